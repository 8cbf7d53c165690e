#!/usr/bin/env bash
# Builds the images of the tests' model and prints a line for each: its key and its name.
# usage: [MORE_PYTHONS='3.14 3.15'] model-images.sh
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=debian.sh
. "$cluster_dir/debian.sh"

# Build containers may have no network: on Debian, this machine downloads the packages of the image. They only need a C
# library, so that the release does not matter.
packages=$cache/packages
download_packages() {
  rm -rf "$packages.tmp"
  mkdir -p "$packages.tmp"
  cd "$packages.tmp" || return
  if [[ $(debian_codename) ]]; then
    apt-cache show tini dumb-init >/dev/null 2>&1 || apt-get update -qq
    apt-get download -q -o APT::Sandbox::User=root tini dumb-init
  fi
  mv "$packages.tmp" "$packages"
}

stage=$repo/build/model
locked model-packages
[[ -d $packages ]] || step "downloading tini and dumb-init" '5 s' download_packages
rm -rf "$stage"
mkdir -p "$stage"
cp -r "$repo"/e2e/model/. "$stage"
find "$stage" -name __pycache__ -prune -exec rm -r {} +
cp -r "$packages" "$stage/packages"
while read -r what target python; do
  [[ $what ]] || continue
  image=$("$cluster_dir/image.sh" "asya/e2e-$what" "$stage" --target "$target" --base "$python")
  echo "$what $image"
done <<EOT
model model $PYTHON_DEFAULT
$(for version in ${MORE_PYTHONS-}; do echo "model-$version model $version"; done)
model-3.11 model 3.11
model-3.9 model 3.9
shell shell $PYTHON_DEFAULT
script script $PYTHON_DEFAULT
init init $PYTHON_DEFAULT
no-python no-python $PYTHON_DEFAULT
EOT
