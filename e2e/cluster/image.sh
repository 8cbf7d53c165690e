#!/usr/bin/env bash
# Builds an image, tags it by its content, loads it into the cluster if one is running, and prints its name. The
# Dockerfile gets the base image as PYTHON_IMAGE. Build containers may have no network, and have neither the machine's
# certificates nor its package mirrors: everything that a Dockerfile needs must be in its context. PLATFORM and
# PYTHON_IMAGE in the environment select another platform and its base image; NO_CACHE=1 builds all layers again.
# usage: image.sh NAME CONTEXT [DOCKERFILE] [--base PYTHON_VERSION] [--target STAGE]
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"

usage="usage: image.sh NAME CONTEXT [DOCKERFILE] [--base PYTHON_VERSION] [--target STAGE]"
words=()
base=$PYTHON_DEFAULT
target=()
while (($#)); do
  case $1 in
    --base) base=${2:?$usage}; shift ;;
    --target) target=(--target "${2:?$usage}"); shift ;;
    -*) die "$usage" ;;
    *) words+=("$1") ;;
  esac
  shift
done
((${#words[@]} == 2 || ${#words[@]} == 3)) || die "$usage"
name=${words[0]} context=${words[1]} dockerfile=${words[2]:-${words[1]}/Dockerfile}
[[ -f $dockerfile ]] || die "no such file: $dockerfile"

python=${PYTHON_IMAGE:-$("$cluster_dir/python-image.sh" "$base")}
[[ -z ${NO_CACHE:-} ]] || target+=(--no-cache)
[[ -z ${PLATFORM:-} ]] || target+=(--platform "$PLATFORM")
log=$cache/log/image-${name//\//-}.log
# Use the classic builder if the BuildKit plug-in is missing; with BuildKit, build a plain image that kind can load.
docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0
export BUILDX_NO_DEFAULT_ATTESTATIONS=1
idfile=$(mktemp)
trap 'rm -f "$idfile"' EXIT
# tar makes the image independent of the owner of the files and of the umask of the checkout.
tar c --hard-dereference --owner=0 --group=0 --mode=u=rwX,go=rX -C "$context" . -C "$(realpath "$(dirname "$dockerfile")")" \
  "$(basename "$dockerfile")" |
  docker build --build-arg "PYTHON_IMAGE=$python" ${target[@]+"${target[@]}"} --file "$(basename "$dockerfile")" --iidfile "$idfile" - \
    >"$log" 2>&1 || { tail -n 5 "$log" >&2; die "building $name failed (log: $log)"; }
id=$(<"$idfile")
id=${id#sha256:}
# The letters keep Helm from reading a tag of digits only as a number.
image=$name:sha-${id:0:12}
docker tag "$id" "$image"

in_node() { docker exec "$node" ctr --namespace k8s.io images list -q; }
reference=docker.io/$image
[[ $name == */* ]] || reference=docker.io/library/$image
if ours 2>/dev/null && images=$(in_node 2>/dev/null) && ! grep -qxF "$reference" <<<"$images"; then
  say "loading $image into cluster $CLUSTER"
  # Three times as fast as `kind load`, which writes a temporary file.
  docker save "$image" | docker exec -i "$node" ctr --namespace k8s.io images import - >"$log" 2>&1 ||
    die "loading $image into cluster $CLUSTER failed: $(tail -n 1 "$log")"
fi
echo "$image"
