#!/usr/bin/env bash
# Provides tools (kind, helm, helm3, kubectl): the one on PATH if it is new enough, else a pinned version, which is
# built or copied once into the cache and linked into .tools/bin.
# usage: tools.sh [kind] [helm] [helm3] [kubectl]; kubectl is copied from the node, so the cluster must be running
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=gobuild.sh
. "$cluster_dir/gobuild.sh"

version_of() {
  case $1 in
    kind) kind version | sed -nE 's/^kind v([0-9.]+).*/\1/p' ;;
    helm | helm3) "$1" version --template '{{.Version}}' | sed -nE 's/^v([0-9.]+).*/\1/p' ;;
    kubectl) kubectl version --client -o json | sed -nE 's/.*"gitVersion": "v([0-9.]+).*/\1/p' ;;
  esac 2>/dev/null || true
}

link() { ln -sfn "$1" "$repo/.tools/bin/${2}"; }

# go_tool NAME VERSION MINIMUM PACKAGE DURATION
go_tool() {
  local kept=$cache/bin/$1-$2
  if at_least "$(version_of "$1")" "$3"; then return; fi
  if [[ ! -x $kept ]]; then
    need_go "$1 $3 or newer is not on PATH: install it; building it"
    locked "$1"
    step "building $1 $2" "$5" build_tool "$4@v$2" "$kept"
  fi
  link "$kept" "$1"
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
  link "$kept" kubectl
}

for tool in "${@:-kind helm}"; do
  case $tool in
    kind) go_tool kind "$KIND_VERSION" "$KIND_MINIMUM" sigs.k8s.io/kind '20 s' ;;
    helm) go_tool helm "$HELM_VERSION" "$HELM_MINIMUM" helm.sh/helm/v4/cmd/helm '2 min' ;;
    helm3) go_tool helm3 "$HELM3_VERSION" "$HELM3_MINIMUM" helm.sh/helm/v3/cmd/helm '2 min' ;;
    kubectl) kubectl_tool ;;
    *) die "no such tool: $tool" ;;
  esac
done
