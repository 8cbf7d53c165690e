#!/usr/bin/env bash
# A kind cluster from nothing, or the one that is there: engine, tools, node image, cluster, kubeconfig. Any part
# that is ready costs a look; calling it again costs seconds; interrupting it loses only the step at hand.
#   CLUSTER=asya             its name
#   KUBERNETES_VERSION=1.34  a release of versions.env
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

# Asked of the engine, not of the node: a node that is just starting cannot run anything yet.
complete() { docker cp "$node:/kind/asya-complete" - >/dev/null 2>&1; }
# Asked of CoreDNS too: what the API server knows of nodes and pods may be from before the node was started again.
ready() {
  docker exec --env KUBECONFIG=/etc/kubernetes/admin.conf "$node" sh -ec "kubectl wait node $node --for condition=Ready
    kubectl get --raw /api/v1/namespaces/kube-system/services/kube-dns:9153/proxy/metrics" >/dev/null 2>&1
}

# Whether the cluster that is there can be used. After a restart of the engine a node needs about 20 s to come back by
# itself, longer on a busy machine.
usable() {
  [[ $(docker container inspect -f '{{.State.Running}}' "$node") == true ]] || docker start "$node" >/dev/null
  complete || { say "cluster $CLUSTER was left half made"; return 1; }
  ready && return
  say "cluster $CLUSTER does not answer; waiting up to 90 s for it to come back"
  until_deadline 90 ready || { say "it does not"; return 1; }
}

# kind_config BUILT: a published image brings its own network; one of ours has a bridge, and other needs.
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
  until_deadline 180 ready || die "it does not get ready in 180 s; look with: docker exec $node journalctl"
  docker exec "$node" touch /kind/asya-complete
}

if exists; then
  ours || die "a kind cluster or container of the name $CLUSTER exists and is not ours; choose another: CLUSTER=name"
  usable || kind delete cluster --quiet --name "$CLUSTER" --kubeconfig "$KUBECONFIG"
fi
if exists; then
  running=$(docker exec "$node" cat /kind/version)
  [[ $running == "v$minor".* ]] ||
    die "cluster $CLUSTER runs Kubernetes ${running#v}, not $minor: make cluster-down first, or CLUSTER=another-name"
else
  port=${API_PORT:-0}
  if ((10#$port)) && (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
    die "API_PORT=$port: something already listens there; choose another, or leave it out for a free one"
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
until_deadline 30 kubectl get --raw /readyz || die "the API server does not answer on this machine's side; see $KUBECONFIG"
say "cluster $CLUSTER is up (Kubernetes $(docker exec "$node" cat /kind/version)); export KUBECONFIG=$KUBECONFIG"
