#!/usr/bin/env bash
# Provides tools: the one on PATH if it is new enough, else a pinned version, which is downloaded as its official release
# or built once into the cache, and linked into .tools/bin.
# usage: tools.sh [kind] [helm] [helm4] [helm3] [cosign] [crane] [kubectl]
#   helm     Helm 3 or 4, as `helm`
#   helm4    Helm 4, as `helm`; helm3: Helm 3, as `helm3`; the tests need both
#   kubectl  copied from the node, so the cluster must be running; a cluster that is not the default one has its own
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=gobuild.sh
. "$cluster_dir/gobuild.sh"

version_of() {
  case $1 in
    kind) kind version | sed -nE 's/^kind v([0-9.]+).*/\1/p' ;;
    helm | helm3) "$1" version --template '{{.Version}}' | sed -nE 's/^v([0-9.]+).*/\1/p' ;;
    cosign) cosign version --json | sed -nE 's/.*"gitVersion": "v([0-9.]+).*/\1/p' ;;
    crane) crane version | sed -nE 's/^v?([0-9.]+).*/\1/p' ;;
    kubectl) kubectl version --client -o json | sed -nE 's/.*"gitVersion": "v([0-9.]+).*/\1/p' ;;
  esac 2>/dev/null || true
}

link() { ln -sfn "$1" "${3:-$repo/.tools/bin}/$2"; }

# tool NAME VERSION MINIMUM PACKAGE DURATION URL SUMS: PACKAGE is the Go package, URL the official release, SUMS the file
# of checksums that is published with it
tool() {
  local kept=$cache/bin/$1-$2
  if at_least "$(version_of "$1")" "$3"; then return; fi
  if [[ ! -x $kept ]]; then
    locked "$1"
    if ! downloaded "$1" "$6" "$7" "$kept"; then
      need_go "building $1 (no $1 $3 or newer is on PATH)"
      step "building $1 $2" "$5" build_tool "$4@v$2" "$kept"
    fi
  fi
  link "$kept" "$1"
}

# downloaded NAME URL SUMS FILE: gets an official release if its host answers within five seconds, and fails otherwise. A
# release with another checksum is an error, not a reason to build.
downloaded() {
  local url=$2 sum work
  have curl || return
  sum=$(curl --silent --fail --location --max-time 5 "$3" 2>/dev/null) || return
  sum=$(awk -v name="${url##*/}" '$2 == name || $2 == "*" name {print $1; exit}' <<<"$sum")
  [[ $sum =~ ^[0-9a-f]{64}$ ]] || return
  say "downloading $url"
  mkdir -p "$cache/bin"
  work=$(mktemp -d "$cache/bin/download.XXXXXX")
  if ! curl --silent --fail --location --output "$work/release" "$url"; then
    rm -r "$work"
    say "its host answered, but the download failed: building it here instead"
    return 1
  fi
  if ! sha256sum --check --status <<<"$sum  $work/release"; then
    rm -r "$work"
    die "$url has another checksum than $3 says: do not use it; install $1 yourself, or try again later"
  fi
  mkdir "$work/files"
  if [[ $url == *.tar.gz ]]; then tar x -C "$work/files" -f "$work/release"; else mv "$work/release" "$work/files/$1"; fi
  # Helm 3 is `helm` in its archive.
  find "$work/files" -type f -name "${1%3}" -exec install -m 755 '{}' "$work/program" ';' -quit
  mv "$work/program" "$4"
  rm -r "$work"
}

build_tool() {
  mkdir -p "$cache/bin"
  GOBIN=$2.build CGO_ENABLED=0 go install -v -trimpath -ldflags '-s -w' "$1"
  mv "$2.build"/* "$2"
  rmdir "$2.build"
}

# kubectl may differ from the API server by one minor version; the node's has the same version.
kubectl_tool() {
  local server client kept
  server=$(docker exec "$node" cat /kind/version)
  server=${server#v}
  client=$(version_of kubectl)
  [[ $client =~ ^1\.([0-9]+) ]] && client=${BASH_REMATCH[1]} || client=-9
  [[ $server =~ ^1\.([0-9]+) ]]
  if ((client - BASH_REMATCH[1] <= 1 && BASH_REMATCH[1] - client <= 1)); then return; fi
  [[ $(uname -s) == Linux ]] || die "kubectl ${server%.*} is missing: install it"
  kept=$cache/bin/kubectl-$server
  if [[ ! -x $kept ]]; then
    mkdir -p "$cache/bin"
    docker cp -q "$node:/usr/bin/kubectl" "$kept.tmp$$"
    mv "$kept.tmp$$" "$kept"
  fi
  mkdir -p "$repo/.tools/bin$suffix"
  link "$kept" kubectl "$repo/.tools/bin$suffix"
}

helm_tool() {
  local url=$HELM_RELEASES/helm-v$2-$platform.tar.gz
  tool "$1" "$2" "$3" "helm.sh/helm/v${2%%.*}/cmd/helm" '2 min' "$url" "$url.sha256sum"
}

os=$(uname -s)
machine=$(uname -m)
platform=${os,,}-$machine
platform=${platform/x86_64/amd64}
platform=${platform/aarch64/arm64}
(($#)) || set -- kind helm
for name in "$@"; do
  case $name in
    kind)
      url=$GITHUB/kubernetes-sigs/kind/releases/download/v$KIND_VERSION/kind-$platform
      tool kind "$KIND_VERSION" "$KIND_MINIMUM" sigs.k8s.io/kind '20 s' "$url" "$url.sha256sum"
      ;;
    helm) helm_tool helm "$HELM_VERSION" "$HELM3_MINIMUM" ;;
    helm4) helm_tool helm "$HELM_VERSION" "$HELM_MINIMUM" ;;
    helm3) helm_tool helm3 "$HELM3_VERSION" "$HELM3_MINIMUM" ;;
    cosign)
      url=$GITHUB/sigstore/cosign/releases/download/v$COSIGN_VERSION
      tool cosign "$COSIGN_VERSION" "$COSIGN_MINIMUM" github.com/sigstore/cosign/v3/cmd/cosign '8 min' \
        "$url/cosign-$platform" "$url/cosign_checksums.txt"
      ;;
    crane)
      url=$GITHUB/google/go-containerregistry/releases/download/v$CRANE_VERSION
      tool crane "$CRANE_VERSION" "$CRANE_MINIMUM" github.com/google/go-containerregistry/cmd/crane '1 min' \
        "$url/go-containerregistry_${os}_${machine/aarch64/arm64}.tar.gz" "$url/checksums.txt"
      ;;
    kubectl) kubectl_tool ;;
    *) die "no such tool: $name" ;;
  esac
done
