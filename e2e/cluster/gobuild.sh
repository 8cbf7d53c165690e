# shellcheck shell=bash
# Programs built from Go modules.

# need_go FOR_WHAT
need_go() {
  local found
  found=$(go env GOVERSION 2>/dev/null || true)
  at_least "${found#go}" "$GO_MINIMUM" || die "$1 needs Go $GO_MINIMUM or newer (found: ${found:-none})"
}

# go_build DIRECTORY MODULE VERSION LDFLAGS PACKAGE...: builds packages of a module, or a package of ours that
# imports the module (a path), into the directory, which appears complete or not at all. A single program is named
# as the directory is, without its version.
go_build() {
  local out=$1 module=$2 version=$3 ldflags=$4 work=$1.build program
  shift 4
  program=$(basename "$out")
  if (($# > 1)); then program=; fi
  rm -rf "$work"
  mkdir -p "$work/bin"
  cd "$work" || return
  printf 'module build\n\ngo %s\n' "${GO_MINIMUM%.*}" >go.mod
  if [[ $module ]]; then
    printf '\nrequire %s %s\n' "$module" "$version" >>go.mod
    staging "$module" "$version" >>go.mod
  fi
  if [[ $1 == /* ]]; then
    cp "$1"/*.go .
    set -- .
  fi
  # GOFLAGS adds to the machine's own settings; -v names each package as it is compiled, a sign of life in the log.
  GOFLAGS="${GOFLAGS:-} -mod=mod" CGO_ENABLED=0 \
    go build -v -trimpath -buildvcs=false -ldflags "-s -w $ldflags" -o "bin/${program%%-*}" "$@"
  mv bin "$out"
  cd /
  rm -rf "$work"
}

# Kubernetes' own modules require one another as v0.0.0 and say where in the repository they are; outside of it,
# each is replaced by the release that goes with it.
staging() {
  local file
  file=$(cd / && go list -m -f '{{.GoMod}}' "$1@$2")
  sed -nE "s#^[[:space:]]+(k8s\.io/[a-z-]+) => \./staging/.*#replace \1 => \1 v0.${2#v1.}#p" "$file"
}
