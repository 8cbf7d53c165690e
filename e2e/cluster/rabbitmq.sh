#!/usr/bin/env bash
# Prints a directory with a RabbitMQ server of Debian, for the tests of examples/queue that need no cluster: bin/rabbitmq
# starts it in the foreground. Its packages are downloaded and unpacked into the cache; nothing is installed. Prints nothing
# on machines that are not Debian or Ubuntu.
# usage: rabbitmq.sh
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

packages=(rabbitmq-server erlang-{asn1,base,crypto,eldap,ftp,inets,mnesia,os-mon,parsetools,public-key,runtime-tools,ssl}
  erlang-{syntax-tools,tools,xmerl})
have apt-get && have dpkg-deb || exit 0

unpack() {
  rm -rf "$target.tmp"
  mkdir -p "$target.tmp/packages" "$target.tmp/bin"
  cd "$target.tmp/packages"
  apt-cache show "${packages[@]}" >/dev/null 2>&1 || apt-get update -qq
  apt-get download -q -o APT::Sandbox::User=root "${packages[@]}"
  for package in *.deb; do dpkg-deb -x "$package" "$target.tmp"; done
  rm -r "$target.tmp/packages"
  # Programs of this package know their directory.
  sed -i "s#ROOTDIR=/usr/lib/erlang#ROOTDIR=$target/usr/lib/erlang#" "$target.tmp/usr/lib/erlang/bin/erl"
  cat >"$target.tmp/bin/rabbitmq" <<EOT
#!/bin/sh
PATH=$target/usr/lib/erlang/bin:\$PATH exec $target/usr/lib/rabbitmq/bin/rabbitmq-server
EOT
  cat >"$target.tmp/bin/epmd" <<EOT
#!/bin/sh
exec $target/usr/lib/erlang/erts-*/bin/epmd "\$@"
EOT
  chmod +x "$target.tmp"/bin/*
  mv "$target.tmp" "$target"
}

recipe=$({ declare -f unpack; echo "${packages[@]}"; cat /etc/os-release; } | sha256sum | cut -c 1-8)
target=$cache/rabbitmq-$recipe
locked rabbitmq
[[ -d $target ]] || step 'unpacking RabbitMQ from Debian packages' '10 s' unpack
echo "$target"
