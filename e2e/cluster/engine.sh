#!/usr/bin/env bash
# Ensures that a container engine is running: starts an installed one, or, on Debian as root, installs one first.
# README.md lists what it installs.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=debian.sh
. "$cluster_dir/debian.sh"

answers() { have docker && timeout 10 docker version --format '{{.Server.Version}}'; }

# On Debian 12 the engine cannot start privileged containers everywhere: take that package from a newer release, with
# a priority that affects no other package.
add_newer_debian() {
  local uri keyring
  read -r uri keyring < <(debian_mirror)
  cat >/etc/apt/preferences.d/asya-runtime <<EOF
Explanation: container engine for asya-runtime's test cluster; nothing else comes from here unless asked for
Package: *
Pin: release n=$DEBIAN_SUITE
Pin-Priority: 100
EOF
  cat >/etc/apt/sources.list.d/asya-runtime.sources <<EOF
Types: deb
URIs: $uri
Suites: $DEBIAN_SUITE
Components: main
Signed-By: $keyring
EOF
  apt-get update -qq
}

install_engine() {
  local packages=(docker.io docker-cli containerd mmdebstrap)
  export DEBIAN_FRONTEND=noninteractive
  apt-get update
  if [[ $(debian_codename) == bookworm ]]; then
    add_newer_debian
    packages=("docker.io/$DEBIAN_SUITE" "containerd/$DEBIAN_SUITE" runc/bookworm mmdebstrap)
    have docker || packages+=("docker-cli/$DEBIAN_SUITE")
  fi
  apt-get install -y --no-install-recommends "${packages[@]}"
}

# The daemon must outlive the caller: it gets a new session, and none of the caller's pipes.
start_engine() {
  local pidfile=/run/docker.pid
  if [[ -d /run/systemd/system ]]; then systemctl start docker; return; fi
  # A stale pid file may name another process, which the daemon would take for itself.
  [[ ! -f $pidfile || $(cat "/proc/$(<"$pidfile")/comm" 2>/dev/null) == dockerd ]] || rm -f "$pidfile"
  (
    cd /
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      ((fd <= 2)) || eval "exec $fd>&-"
    done
    exec setsid --fork dockerd </dev/null >>"$log" 2>&1
  )
}

answers >/dev/null 2>&1 && exit
[[ -z ${DOCKER_HOST:-} ]] || die "no container engine is running at DOCKER_HOST=$DOCKER_HOST"
how="no container engine is running: install Docker Engine 24 or newer, start it, and give this user access"
[[ $(id -u) == 0 && $(uname -s) == Linux ]] || die "$how"
locked engine
if ! have dockerd || ! have docker; then
  case $(debian_codename) in
    bookworm | trixie | forky | sid) step 'installing Docker from Debian packages' '30 s' install_engine ;;
    *) die "$how" ;;
  esac
fi
answers >/dev/null 2>&1 && exit # started by another run, or by the installation
log=$cache/log/dockerd.log
say "starting the container engine (log: $log)"
start_engine
until_deadline 60 answers || die "the container engine is not running after 60 s: $(tail -n 1 "$log") (log: $log)"
