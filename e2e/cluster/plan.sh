#!/usr/bin/env bash
# Prints what is found on this machine, what `make demo` adds, and how long that usually takes. Changes nothing.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

seconds=45 # the demo
found() { printf '  %-18s %s\n' "$1" "$2" >&2; }
# missing WHAT HOW SECONDS
missing() {
  found "$1" "missing: $2 ($(duration "$3"))"
  seconds=$((seconds + $3))
}
# tool NAME VERSION SECONDS
tool() {
  if [[ -x $cache/bin/$1-$2 ]] || have "$1"; then
    found "$1" found
  else
    missing "$1" "downloads its official release, or builds it with Go" "$3"
  fi
}

say 'make demo turns a function of a small web application into an actor, in a local Kubernetes cluster (kind). It finds:'
engine=false
if have docker && timeout 10 docker version >/dev/null 2>&1; then
  found Docker running
  engine=true
elif have dockerd; then
  missing Docker 'starts it' 5
else
  missing Docker 'installs it from Debian packages, as root on Debian' 30
fi
if [[ -f $repo/.venv/installed ]]; then found 'Python packages' found; else missing 'Python packages' 'installs them into .venv' 20; fi
tool kind "$KIND_VERSION" 20
tool helm "$HELM_VERSION" 120
if $engine && exists; then
  found cluster "$CLUSTER, with Kubernetes $(docker exec "$node" cat /kind/version 2>/dev/null || echo 'that is stopped')"
else
  read -r minor published version < <(release "$KUBERNETES_RELEASES" "${KUBERNETES_VERSION:-$KUBERNETES_DEFAULT}" Kubernetes)
  if $engine && docker image ls --format '{{.Repository}}:{{.Tag}}' | grep -qE "^(${published%@*}|asya/node:v$version-.*)$"; then
    found 'node image' "Kubernetes $minor"
  else
    missing 'node image' 'pulls it (1 min), or builds it if no image registry answers' 660
  fi
  missing cluster 'creates it' 15
fi
say "This takes about $(duration "$seconds"). It writes to .venv, .tools, build, $cache and Docker; \
\`make demo-clean\`, \`make cluster-down\` and \`make clean\` remove it."
