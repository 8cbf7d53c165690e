# shellcheck shell=bash disable=SC2034  # some of it is for those who read this file
# What every script here begins with: places, versions, how to say something and how to fail.
# Messages go to stderr, so that a script's stdout is its result.

cluster_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$cluster_dir/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/asya-runtime
CLUSTER=${CLUSTER:-asya}
node=$CLUSTER-control-plane
export KUBECONFIG=$repo/.tools/kubeconfig # never the user's own
export PATH=$repo/.tools/bin:$PATH
mkdir -p "$cache/log" "$repo/.tools/bin"
# shellcheck source=versions.env source=step.sh
. "$cluster_dir/versions.env"
. "$cluster_dir/step.sh"

# Without this, bash goes on when Ctrl-C ends a program that has a handler of its own.
trap 'exit 130' INT

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# at_least VERSION MINIMUM: both like 1.2.3
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# until_deadline SECONDS COMMAND...: tries until it succeeds or time is up
until_deadline() {
  local deadline=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.3
  done
}

# locked NAME: one process at a time beyond this point, until it ends. (A system without flock goes unlocked.)
locked() {
  have flock || return 0
  exec {lock}>"$cache/$1.lock"
  flock -n "$lock" || { say "waiting for another run ($1)"; flock "$lock"; }
}

# The cluster's node is a container. One with something mounted here is ours; the engine knows that even of a
# container that is stopped.
mark=/kind/asya-runtime
exists() { docker container inspect "$node" >/dev/null 2>&1; }
ours() { docker container inspect -f '{{range .Mounts}}{{println .Destination}}{{end}}' "$node" | grep -qx "$mark"; }

# release TABLE VERSION WHAT: the table's row whose first word is VERSION, or that lists it as a full version
release() {
  local row
  row=$(awk -v v="${2#v}" '$1 == v || $3 == v || index($2, ":v" v "@") {print; exit}' <<<"$1")
  [[ $row ]] || die "$3 $2 is not known here; known: $(awk 'NF {printf s $1; s = ", "}' <<<"$1")"
  printf '%s\n' "$row"
}
