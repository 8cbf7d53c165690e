#!/usr/bin/env bash
# Makes sure that a container engine answers: the one that does; else one that is installed is started; else, on
# Debian as root, it is installed. Seconds when there is nothing to do. See README.md for what it installs.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=debian.sh
. "$cluster_dir/debian.sh"

answers() { have docker && timeout 10 docker version --format '{{.Server.Version}}'; }

# Older Debian has no engine that starts privileged containers everywhere: take that one package from a newer
# release, at a priority that changes nothing else.
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

# The daemon must outlive whoever called us: a session of its own, and none of the caller's pipes.
start_engine() {
  local pidfile=/run/docker.pid
  if [[ -d /run/systemd/system ]]; then systemctl start docker; return; fi
  # The number in a file left behind may be another process by now, which the daemon would take for itself.
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
[[ -z ${DOCKER_HOST:-} ]] || die "no container engine answers at DOCKER_HOST=$DOCKER_HOST"
how="no container engine answers: install Docker Engine 24 or newer, start it, and let this user reach it"
[[ $(id -u) == 0 && $(uname -s) == Linux ]] || die "$how"
locked engine
if ! have dockerd || ! have docker; then
  case $(debian_codename) in
    bookworm | trixie | forky | sid) step 'installing Docker from Debian packages' '30 s' install_engine ;;
    *) die "$how" ;;
  esac
fi
answers >/dev/null 2>&1 && exit # another run has started it, or the installation has
log=$cache/log/dockerd.log
say "starting the container engine (its log: $log)"
start_engine
until_deadline 60 answers || die "the container engine does not answer after 60 s: $(tail -n 1 "$log") (log: $log)"
