#!/usr/bin/env bash
# Removes the cluster, and says what stays for the next one.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

docker version >/dev/null 2>&1 || die "no container engine answers, so there is no cluster to remove"
locked "cluster-$CLUSTER"
if exists; then
  ours || die "the kind cluster or container named $CLUSTER is not ours; not touched"
  "$cluster_dir/tools.sh" kind
  kind delete cluster --quiet --name "$CLUSTER" --kubeconfig "$KUBECONFIG"
  say "cluster $CLUSTER is removed"
else
  say "there is no cluster $CLUSTER"
fi
rm -f "$KUBECONFIG"
say "kept for the next one: $cache ($(du -sh "$cache" | cut -f 1)), Go's own cache, images named asya/*, the container engine"
say "to remove that too: rm -r $cache; docker image rm --force \$(docker image ls -q 'asya/*')"
