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
  local codename packages
  codename=$(debian_codename)
  say "no container engine: installing Docker from Debian packages (usually 40 s)"
  export DEBIAN_FRONTEND=noninteractive
  apt-get update -qq
  packages=(docker.io docker-cli containerd mmdebstrap)
  if [[ $codename == bookworm ]]; then
    add_newer_debian
    packages=("docker.io/$DEBIAN_SUITE" "containerd/$DEBIAN_SUITE" runc/bookworm mmdebstrap)
    have docker || packages+=("docker-cli/$DEBIAN_SUITE")
  fi
  apt-get install -y -qq --no-install-recommends "${packages[@]}"
}

# The daemon must outlive whoever called us: a session of its own, and none of the caller's pipes.
start_engine() {
  say "starting the container engine (log: $cache/log/dockerd.log)"
  if [[ -d /run/systemd/system ]]; then systemctl start docker; return; fi
  local pidfile=/run/docker.pid
  [[ ! -f $pidfile || $(cat "/proc/$(<"$pidfile")/comm" 2>/dev/null) == dockerd ]] || rm -f "$pidfile"
  (
    cd /
    for fd in /proc/self/fd/*; do
      fd=${fd##*/}
      ((fd <= 2)) || eval "exec $fd>&-"
    done
    exec setsid --fork dockerd </dev/null >>"$cache/log/dockerd.log" 2>&1
  )
}

answers >/dev/null 2>&1 && exit
how="install Docker Engine 24 or newer, start it, and let this user reach it (docker version must show a server)"
[[ -z ${DOCKER_HOST:-} ]] || die "no container engine answers at DOCKER_HOST=$DOCKER_HOST"
[[ $(id -u) == 0 && $(uname -s) == Linux ]] || die "no container engine answers: $how"
locked engine
if ! have dockerd; then
  case $(debian_codename) in
    bookworm | trixie | forky | sid) install_engine >"$cache/log/engine.log" 2>&1 ||
      die "installing Docker failed: $(tail -n 1 "$cache/log/engine.log") (log: $cache/log/engine.log)" ;;
    *) die "no container engine answers: $how" ;;
  esac
fi
start_engine
until_deadline 60 answers || die "the container engine does not answer after 60 s; see $cache/log/dockerd.log"
