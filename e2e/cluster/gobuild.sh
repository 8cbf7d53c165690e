# shellcheck shell=bash
# Programs built from Go modules.

# need_go FOR_WHAT
need_go() {
  local found
  found=$(go env GOVERSION 2>/dev/null || true)
  at_least "${found#go}" "$GO_MINIMUM" || die "$1 needs Go $GO_MINIMUM or newer (found: ${found:-none})"
}

# go_build DIRECTORY MODULE VERSION LDFLAGS PACKAGE...: builds packages of a module, or a local package (a path) that
# imports the module, into the directory, atomically. A single program gets the name of the directory without the
# version.
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
  # GOFLAGS extends the user's settings; -v shows progress in the log.
  GOFLAGS="${GOFLAGS:-} -mod=mod" CGO_ENABLED=0 \
    go build -v -trimpath -buildvcs=false -ldflags "-s -w $ldflags" -o "bin/${program%%-*}" "$@"
  mv bin "$out"
  cd /
  rm -rf "$work"
}

# Kubernetes' modules require each other as v0.0.0 and replace that by a path in the repository. Here each is replaced
# by the corresponding release.
staging() {
  local file
  file=$(cd / && go list -m -f '{{.GoMod}}' "$1@$2")
  sed -nE "s#^[[:space:]]+(k8s\.io/[a-z-]+) => \./staging/.*#replace \1 => \1 v0.${2#v1.}#p" "$file"
}
