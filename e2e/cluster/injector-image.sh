#!/usr/bin/env bash
# Builds the injector's image and prints its name. The locked Python packages are installed on this machine, because
# build containers may have no network. For another platform, set PLATFORM and PYTHON_IMAGE (see image.sh), and MACHINE to
# the name of its processor.
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

machine=${MACHINE:-$(uname -m)}
stage=$repo/build/image
[[ $machine == "$(uname -m)" ]] || stage+=-$machine
stamp=$stage.sha256
uv=${UV:-$(command -v uv || echo "$repo/.tools/uv/bin/uv")}
[[ -x $uv ]] || die "uv is missing: run make deps, or install it"

install_packages() {
  rm -rf "$stage/site-packages"
  "$uv" pip install --quiet --require-hashes --requirement "$repo/requirements.txt" --target "$stage/site-packages" \
    --python-version "$PYTHON_DEFAULT" --python-platform "$machine-manylinux_2_28" --only-binary :all:
  rm -rf "$stage"/site-packages/{bin,.lock} # scripts that name this machine's Python
  sed -i '/^bin\//d' "$stage"/site-packages/*.dist-info/RECORD # and their checksums
  printf '%s\n' "$wanted" >"$stamp"
}

wanted=$({ declare -f install_packages; cat "$repo/requirements.txt"; } | sha256sum)
locked "stage-$(sha256sum <<<"$repo" | cut -c 1-8)"
mkdir -p "$stage"
if [[ ! -d $stage/site-packages || $(cat "$stamp" 2>/dev/null) != "$wanted" ]]; then
  step "installing the injector's Python packages" '5 s' install_packages
fi
rm -rf "$stage/asya_injector"
cp -r "$repo/injector/asya_injector" "$stage/"
install -D -m 644 -t "$stage/asya_injector/data" "$repo"/runtime/asya_{runtime,entrypoint}.py # as in the wheel
find "$stage/asya_injector" -name __pycache__ -prune -exec rm -r {} +
"$cluster_dir/image.sh" asya/injector "$stage" "$repo/injector/Dockerfile"
