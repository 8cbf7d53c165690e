#!/usr/bin/env bash
# Creates a kind cluster, or checks the existing one: engine, tools, node image, cluster, kubeconfig. Parts that are
# ready are skipped. An interruption loses only the current step.
#   CLUSTER=asya             name of the cluster
#   KUBERNETES_VERSION=1.34  a release in versions.env
#   API_PORT=                port of the API server on this machine; a free one by default
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

wanted=$(release "$KUBERNETES_RELEASES" "${KUBERNETES_VERSION:-$KUBERNETES_DEFAULT}" Kubernetes)
minor=${wanted%% *}
[[ ${API_PORT:-0} =~ ^[0-9]{1,5}$ ]] || die "API_PORT=$API_PORT is not a port number"
[[ $CLUSTER =~ ^[a-z0-9][a-z0-9.-]*$ ]] || die "CLUSTER=$CLUSTER is not a cluster name (a-z, 0-9, '.', '-')"

"$cluster_dir/engine.sh"
"$cluster_dir/tools.sh" kind helm
locked "cluster-$CLUSTER"

# Asks the engine, because a node that is starting cannot run programs.
complete() { docker cp "$node:/kind/asya-complete" - >/dev/null 2>&1; }
# Asks CoreDNS too, because the API server's view of nodes and pods may be older than the last restart.
ready() {
  docker exec --env KUBECONFIG=/etc/kubernetes/admin.conf "$node" sh -ec "kubectl wait node $node --for condition=Ready --timeout=10s
    kubectl get --request-timeout=5s --raw /api/v1/namespaces/kube-system/services/kube-dns:9153/proxy/metrics" >/dev/null 2>&1
}

# Whether the existing cluster works. After a restart of the engine a node needs about 20 s, longer on a busy machine.
usable() {
  [[ $(docker container inspect -f '{{.State.Running}}' "$node") == true ]] || docker start "$node" >/dev/null
  complete || { say "cluster $CLUSTER is incomplete"; return 1; }
  ready && return
  say "cluster $CLUSTER does not answer; waiting up to 90 s"
  until_deadline 90 ready || { say "no answer; creating it again"; return 1; }
}

# kind_config BUILT: a published image has a network plug-in; an image built here has a bridge.
kind_config() {
  cat <<EOF
kind: Cluster
apiVersion: kind.x-k8s.io/v1alpha4
networking:
  apiServerPort: $((10#$port))
  disableDefaultCNI: $1
nodes:
- role: control-plane
  extraMounts:
  - {hostPath: /dev/null, containerPath: $mark, readOnly: true}
EOF
  [[ $1 == false ]] || cat "$cluster_dir/node/kubelet.yaml"
}

create() {
  kind_config "$built" |
    kind create cluster --name "$CLUSTER" --image "$image" --config - --kubeconfig "$KUBECONFIG"
  until_deadline 180 ready || die "the node is not ready after 180 s; read its log: docker exec $node journalctl"
  docker exec "$node" touch /kind/asya-complete
}

if exists; then
  ours || die "a kind cluster or container $CLUSTER exists, not created by these scripts; choose another name: CLUSTER=name"
  usable || kind delete cluster --quiet --name "$CLUSTER" --kubeconfig "$KUBECONFIG"
fi
if exists; then
  running=$(docker exec "$node" cat /kind/version)
  [[ $running == "v$minor".* ]] ||
    die "cluster $CLUSTER runs Kubernetes ${running#v}, not $minor: run make cluster-down first, or set CLUSTER=name"
else
  port=${API_PORT:-0}
  if ((10#$port)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    die "API_PORT=$port is in use; choose another port, or unset API_PORT for a free one"
  fi
  image=$("$cluster_dir/node-image.sh" "$minor")
  built=true
  [[ $image != kindest/* ]] || built=false
  step "creating cluster $CLUSTER" '15 s' create
fi
"$cluster_dir/tools.sh" kubectl
kind get kubeconfig --name "$CLUSTER" >"$KUBECONFIG.tmp$$"
mv "$KUBECONFIG.tmp$$" "$KUBECONFIG"
chmod 600 "$KUBECONFIG"
until_deadline 30 kubectl get --request-timeout=5s --raw /readyz || die "the API server cannot be reached from this machine; see $KUBECONFIG"
say "cluster $CLUSTER is ready (Kubernetes $(docker exec "$node" cat /kind/version)); export KUBECONFIG=$KUBECONFIG"
