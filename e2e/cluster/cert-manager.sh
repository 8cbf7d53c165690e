#!/usr/bin/env bash
# Prints a directory with cert-manager's programs in `bin/` and its CRDs in `crds/`, built once and cached. The programs
# connect to the API server only, so they run as plain processes beside the cluster.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=gobuild.sh
. "$cluster_dir/gobuild.sh"

module=github.com/cert-manager/cert-manager
kept=$cache/cert-manager-$CERT_MANAGER_VERSION

build() {
  local source part
  rm -rf "$kept.parts"
  mkdir -p "$kept.parts/crds"
  go_build "$kept.parts/bin" $module "v$CERT_MANAGER_VERSION" '' $module/cmd/controller $module/cmd/cainjector
  source=$(cd / && go mod download -json "$module@v$CERT_MANAGER_VERSION" | sed -nE 's/^\s*"Dir": "(.*)",/\1/p')
  for part in "$source"/deploy/crds/crd-*.yaml; do
    sed '/{{/d' "$part" >"$kept.parts/crds/$(basename "$part")" # labels, which are Helm templates
  done
  mv "$kept.parts" "$kept"
}

if [[ ! -d $kept ]]; then
  need_go "building cert-manager"
  locked cert-manager
  [[ -d $kept ]] || step "building cert-manager $CERT_MANAGER_VERSION" '4 min' build
fi
printf '%s\n' "$kept"
