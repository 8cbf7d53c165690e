# shellcheck shell=bash disable=SC2034  # some variables are for the scripts that read this file
# Shared by all scripts in this folder: paths, versions, messages and errors. Messages go to stderr, so that the stdout
# of a script is its result.

cluster_dir=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
repo=$(cd "$cluster_dir/../.." && pwd)
cache=${XDG_CACHE_HOME:-$HOME/.cache}/asya-runtime
CLUSTER=${CLUSTER:-asya}
node=$CLUSTER-control-plane
# Each cluster has its own kubeconfig, never the user's, and kubectl. Names of the default cluster end without a suffix.
suffix=-$CLUSTER
[[ $CLUSTER != asya ]] || suffix=
export KUBECONFIG=$repo/.tools/kubeconfig$suffix
export PATH=${suffix:+$repo/.tools/bin$suffix:}$repo/.tools/bin:$PATH
mkdir -p "$cache/log" "$repo/.tools/bin"
# shellcheck source=versions.env source=step.sh
. "$cluster_dir/versions.env"
. "$cluster_dir/step.sh"

# Without this, bash continues when Ctrl-C ends a program that handles the signal.
trap 'exit 130' INT

say() { printf '%s\n' "$*" >&2; }
die() { say "error: $*"; exit 1; }
have() { command -v "$1" >/dev/null 2>&1; }

# at_least VERSION MINIMUM: both like 1.2.3
at_least() { [[ $(printf '%s\n%s\n' "$2" "$1" | sort -V | head -n 1) == "$2" ]]; }

# until_deadline SECONDS COMMAND...: repeats the command until it succeeds; fails after the deadline
until_deadline() {
  local deadline=$((SECONDS + $1)); shift
  until "$@" >/dev/null 2>&1; do
    ((SECONDS < deadline)) || return 1
    sleep 0.3
  done
}

# locked NAME: lets one process at a time continue, until it ends. (Without flock, there is no lock.)
locked() {
  have flock || return 0
  exec {lock}>"$cache/$1.lock"
  flock -n "$lock" || { say "waiting for another run ($1)"; flock "$lock"; }
}

# The cluster's node is a container. This mount marks the nodes that these scripts have created; the engine lists it
# for stopped containers too.
mark=/kind/asya-runtime
exists() { docker container inspect "$node" >/dev/null 2>&1; }
ours() { docker container inspect -f '{{range .Mounts}}{{println .Destination}}{{end}}' "$node" | grep -qx "$mark"; }

# release TABLE VERSION NAME: the row of the table with this version, by its first word or by a full version
release() {
  local row
  row=$(awk -v v="${2#v}" '$1 == v || $3 == v || index($2, ":v" v "@") {print; exit}' <<<"$1")
  [[ $row ]] || die "$3 $2 is not supported; supported: $(awk 'NF {printf s $1; s = ", "}' <<<"$1")"
  printf '%s\n' "$row"
}
