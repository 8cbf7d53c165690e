#!/usr/bin/env bash
# Runs an image registry without TLS on this machine's loopback address, lets the cluster's node pull from it by the same
# name, and prints that name. It keeps its content in memory of the container engine until it is removed.
# usage: local-registry.sh [up | down]
#   REGISTRY_PORT=5000   its port
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=gobuild.sh
. "$cluster_dir/gobuild.sh"

port=${REGISTRY_PORT:-5000}
[[ $port =~ ^[0-9]{1,5}$ ]] || die "REGISTRY_PORT=$port is not a port number"
name=asya-registry-$port
address=localhost:$port
program=$cache/registry-$DISTRIBUTION_VERSION
image=asya/registry:$DISTRIBUTION_VERSION

build_program() {
  go_build "$program" github.com/distribution/distribution/v3 "v$DISTRIBUTION_VERSION" '' "$cluster_dir/registry"
}

build_image() {
  tar c --owner=0 --group=0 -C "$program" registry -C "$cluster_dir/registry" config.yml |
    docker import --change 'ENTRYPOINT ["/registry", "serve", "/config.yml"]' - "$image"
}

answers() { curl --silent --fail --output /dev/null --max-time 2 "http://$address/v2/"; }

# The node's localhost is not this machine's: containerd asks the registry's container instead.
connect_node() {
  docker network connect kind "$name" 2>/dev/null || true # it may be connected already
  # shellcheck disable=SC2016  # for the shell in the node
  docker exec -i "$node" sh -ec '
    folder=/etc/containerd/certs.d
    mkdir -p "$folder/$1"
    printf "[host.\"http://%s:5000\"]\n" "$2" >"$folder/$1/hosts.toml"
    if ! grep -q config_path /etc/containerd/config.toml; then
      printf "\n[plugins.\"io.containerd.grpc.v1.cri\".registry]\n  config_path = \"%s\"\n" "$folder" \
        >>/etc/containerd/config.toml
      systemctl restart containerd
    fi' - "$address" "$name"
}

case ${1:-up} in
  up)
    "$cluster_dir/engine.sh"
    locked registry
    if [[ ! -x $program/registry ]]; then
      need_go 'building a registry'
      step "building the registry $DISTRIBUTION_VERSION" '30 s' build_program
    fi
    docker image inspect "$image" >/dev/null 2>&1 || build_image >/dev/null
    if ! docker container inspect "$name" >/dev/null 2>&1; then
      if (: <"/dev/tcp/127.0.0.1/$port") 2>/dev/null; then
        die "REGISTRY_PORT=$port is in use; choose another port"
      fi
      docker run --detach --name "$name" --publish "127.0.0.1:$port:5000" --tmpfs /var/lib/registry "$image" >/dev/null
    fi
    until_deadline 30 answers || die "the registry does not answer on $address; see: docker logs $name"
    ! exists || connect_node
    echo "$address"
    ;;
  down) docker rm --force --volumes "$name" >/dev/null 2>&1 || true ;;
  *) die 'usage: local-registry.sh [up | down]' ;;
esac
