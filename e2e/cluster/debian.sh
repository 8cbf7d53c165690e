# shellcheck shell=bash
# Debian root file systems, made from the mirror that apt uses on this machine.

# The Debian release of this machine; empty on other systems.
debian_codename() { (. /etc/os-release 2>/dev/null && [[ $ID == debian ]] && echo "$VERSION_CODENAME"); }

# "URI KEYRING" of the Debian mirror in apt's sources; needs current package lists.
debian_mirror() {
  local uri keyring
  # shellcheck disable=SC2016  # apt's own variables
  uri=$(apt-get indextargets --format '$(ORIGIN)|$(LABEL)|$(COMPONENT)|$(CODENAME)|$(REPO_URI)' 'Identifier: Packages' |
    awk -F'|' -v c="$(debian_codename)" '$1 == "Debian" && $2 == "Debian" && $3 == "main" && $4 == c {print $5}' | tail -n 1)
  [[ $uri ]] || die "apt knows no Debian mirror for $(debian_codename); run apt-get update, or check its sources"
  keyring=$({ cat /etc/apt/sources.list /etc/apt/sources.list.d/* 2>/dev/null || true; } |
    sed -nE 's/.*[Ss]igned-[Bb]y[:=] *([^] ]*debian[^] ]*).*/\1/p' | tail -n 1)
  echo "$uri ${keyring:-/usr/share/keyrings/debian-archive-keyring.gpg}"
}

# Installs mmdebstrap, which builds root file systems, if that is possible.
need_mmdebstrap() {
  have mmdebstrap && return
  [[ $(debian_codename) && $(id -u) == 0 ]] ||
    die "no image registry answers, and building images needs mmdebstrap: install it"
  apt-get update -qq
  DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends mmdebstrap
}

# debian_root SUITE FILE OPTION...: writes a Debian root file system as a tar file, atomically
debian_root() {
  local suite=$1 file=$2 uri keyring
  shift 2
  read -r uri keyring < <(debian_mirror)
  # Images need no manuals and translations.
  mmdebstrap --quiet --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-include=/usr/share/doc/*/copyright' \
    "$@" "$suite" "$file.tmp.tar" "deb [signed-by=$keyring] $uri $suite main"
  mv "$file.tmp.tar" "$file"
}
