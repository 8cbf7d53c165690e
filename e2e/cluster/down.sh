#!/usr/bin/env bash
# Removes the cluster, and prints what is kept for the next one.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

docker version >/dev/null 2>&1 || die "no container engine is running, so there is no cluster to remove"
locked "cluster-$CLUSTER"
if exists; then
  ours || die "the kind cluster or container $CLUSTER was not created by these scripts; not removed"
  "$cluster_dir/tools.sh" kind
  kind delete cluster --quiet --name "$CLUSTER" --kubeconfig "$KUBECONFIG"
  say "cluster $CLUSTER removed"
else
  say "there is no cluster $CLUSTER"
fi
rm -f "$KUBECONFIG"
[[ ! $suffix ]] || rm -rf "$repo/.tools/bin$suffix"
say "kept for the next cluster: $cache ($(du -sh "$cache" | cut -f 1)), Go's cache, images named asya/*, the container engine"
say "to remove these too: rm -r $cache; docker image rm --force \$(docker image ls -q 'asya/*')"
