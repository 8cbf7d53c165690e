#!/usr/bin/env bash
# Prints the path of a file with all objects of KEDA, whose operator and metrics adapter are built once, cached, and loaded
# into the cluster as an image. They run in the cluster, because the API server calls the adapter and the operator
# connects to brokers by the names of their Services.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=gobuild.sh
. "$cluster_dir/gobuild.sh"

module=github.com/kedacore/keda/v2
kept=$cache/keda-$KEDA_VERSION

# Built in the module's own folder: its go.mod replaces modules, which Go ignores in a module that is only required.
build() {
  local source
  source=$(cd / && go mod download -json "$module@v$KEDA_VERSION" | sed -nE 's/^\s*"Dir": "(.*)",/\1/p')
  rm -rf "$kept.parts"
  mkdir -p "$kept.parts"
  cp -r --no-preserve=mode "$source/config" "$kept.parts/"
  cd "$source"
  GOFLAGS="${GOFLAGS:-} -mod=readonly" CGO_ENABLED=0 \
    go build -v -trimpath -buildvcs=false -ldflags "-s -w -X=$module/version.Version=$KEDA_VERSION" \
    -o "$kept.parts/bin/" ./cmd/operator ./cmd/adapter
  mv "$kept.parts" "$kept"
}

if [[ ! -d $kept ]]; then
  need_go 'building KEDA'
  locked keda
  [[ -d $kept ]] || step "building KEDA $KEDA_VERSION" '15 min' build
fi
image=$("$cluster_dir/image.sh" asya/keda "$kept/bin" "$cluster_dir/keda/Dockerfile")

stage=$repo/build/keda
rm -rf "$stage"
mkdir -p "$stage"
cp -r "$kept/config" "$stage/"
sed "s#IMAGE#${image%:*}#; s#TAG#${image##*:}#" "$cluster_dir/keda/kustomization.yaml" >"$stage/kustomization.yaml"
kubectl kustomize "$stage" >"$stage/keda.yaml"
printf '%s\n' "$stage/keda.yaml"
