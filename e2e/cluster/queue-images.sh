#!/usr/bin/env bash
# Builds the images of examples/queue and prints a line for each: `broker`, `sidecar` or `model`, and its name.
# usage: queue-images.sh
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=debian.sh
. "$cluster_dir/debian.sh"
# shellcheck source=registry.sh
. "$cluster_dir/registry.sh"

uv=${UV:-$(command -v uv || echo "$repo/.tools/uv/bin/uv")}
[[ -x $uv ]] || die "uv is missing: run make deps, or install it"

# RabbitMQ: the published image if its registry answers, else built from Debian packages.
build_broker() {
  need_mmdebstrap
  debian_root "$DEBIAN_SUITE" "$tar" --variant=essential --include=rabbitmq-server
}

broker() {
  local recipe built tar
  recipe=$({ declare -f build_broker debian_root; echo "$DEBIAN_SUITE"; } | sha256sum | cut -c 1-8)
  built=asya/rabbitmq:$recipe
  tar=$cache/rabbitmq-image-$recipe.tar
  if ! have_image "$built"; then
    if have_image "$RABBITMQ_IMAGE" || pulled "$RABBITMQ_IMAGE"; then echo "$RABBITMQ_IMAGE"; return; fi
    locked rabbitmq-image
    [[ -f $tar ]] || step 'building a RabbitMQ image from Debian packages' '2 min' build_broker
    docker import "$tar" "$built" >/dev/null
  fi
  echo "$built"
}

# Build containers may lack a network, so this machine downloads the Python packages.
packages() {
  rm -rf "$stage/site-packages"
  "$uv" pip install --quiet --require-hashes --requirement "$source/requirements.txt" --target "$stage/site-packages" \
    --python-version "$PYTHON_DEFAULT" --python-platform "$(uname -m)-manylinux_2_28" --only-binary :all:
  rm -rf "$stage"/site-packages/{bin,.lock}
  sed -i '/^bin\//d' "$stage"/site-packages/*.dist-info/RECORD
  printf '%s\n' "$wanted" >"$stamp"
}

# python_image NAME: the image of examples/queue/NAME
python_image() {
  local source=$repo/examples/queue/$1 stage=$repo/build/queue-$1 stamp=$repo/build/queue-$1.sha256 wanted each
  wanted=$({ declare -f packages; cat "$source/requirements.txt"; } | sha256sum)
  mkdir -p "$stage"
  if [[ ! -d $stage/site-packages || $(cat "$stamp" 2>/dev/null) != "$wanted" ]]; then
    step "installing the Python packages of the queue's $1" '10 s' packages
  fi
  for each in "$stage"/*; do [[ $each == */site-packages ]] || rm -r "$each"; done
  (cd "$source" && find . -name __pycache__ -prune -o -type f -print0 | tar c --null -T -) | tar x -C "$stage"
  echo "$1 $("$cluster_dir/image.sh" "asya/queue-$1" "$stage")"
}

locked "queue-$(sha256sum <<<"$repo" | cut -c 1-8)"
echo "broker $(PYTHON_IMAGE="$(broker)" "$cluster_dir/image.sh" asya/queue-broker "$repo/examples/queue/broker")"
python_image sidecar
python_image model
