#!/usr/bin/env bash
# Prints a base image with Python: the published slim image if its registry answers, else one built from Debian packages
# (the interpreter, its standard library, those of C and C++, certificates and time zones; no compiler, no pip).
# usage: python-image.sh [VERSION]
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=debian.sh
. "$cluster_dir/debian.sh"
# shellcheck source=registry.sh
. "$cluster_dir/registry.sh"

# Equal packages give an equal image: files that are made while it is built get this time. It is later than those of the
# packages, whose compiled Python files refer to them.
export SOURCE_DATE_EPOCH=$IMAGE_EPOCH

row=$(release "$PYTHON_RELEASES" "${1:-$PYTHON_DEFAULT}" Python)
read -r version published suite <<<"$row"
"$cluster_dir/engine.sh"

build() {
  need_mmdebstrap
  # shellcheck disable=SC2016  # mmdebstrap's own variable
  debian_root "$suite" "$tar" --variant=essential --include=python3,ca-certificates,libstdc++6,netbase,tzdata \
    --customize-hook='ln -s python3 "$1/usr/bin/python"'
}

# Debian unstable has several Pythons, and a mirror of it that lags behind is good enough.
build_unstable() {
  need_mmdebstrap
  debian_root "$suite" "$tar" --variant=essential --aptopt='Acquire::Check-Valid-Until "false"' \
    --include="python$version,ca-certificates,libstdc++6,netbase,tzdata" \
    --customize-hook="ln -s python$version \"\$1/usr/bin/python3\"; ln -s python3 \"\$1/usr/bin/python\""
}

build=build
[[ $suite != sid ]] || build=build_unstable

# The name contains a hash of the recipe: a changed recipe makes a new image.
recipe=$({ declare -f "$build" debian_root; echo "$IMAGE_EPOCH"; } | sha256sum | cut -c 1-8)
built=asya/python:$version-$recipe
tar=$cache/python-$version-$recipe.tar

if have_image "$published"; then echo "$published"; exit; fi
if ! have_image "$built"; then
  if pulled "$published"; then echo "$published"; exit; fi
  locked "python-$version"
  [[ -f $tar ]] || step "building a Python $version image from Debian $suite" '30 s' "$build"
  docker import --change 'ENV PATH=/usr/local/bin:/usr/bin:/bin' --change 'CMD ["python3"]' "$tar" "$built" >/dev/null
fi
echo "$built"
