#!/usr/bin/env bash
# Runs pytest with the newest Pythons: `make test-newest-pythons`. If they are not on PATH, those of Debian unstable are
# used, which needs root on Debian. The file system that they are in stays in the cache: remove it to get newer ones.
set -euo pipefail
# shellcheck source=../../e2e/cluster/lib.sh
. "$(dirname "$0")/../../e2e/cluster/lib.sh"
# shellcheck source=../../e2e/cluster/debian.sh
. "$cluster_dir/debian.sh"

versions=(3.14 3.15)
root=$cache/newest-pythons
run_tests() {
  exec "$repo/.venv/bin/pytest" "$repo/tests/runtime" -k "$(printf '%s or ' "${versions[@]}")not_a_test" "$@"
}
if have "${versions[0]/#/python}" && have "${versions[1]/#/python}"; then run_tests "$@"; fi

if [[ ! -d $root ]]; then
  say 'building a file system with the newest Pythons (usually 1 min)'
  need_mmdebstrap
  # Mirrors that lag behind are good enough
  debian_root sid "$root.tar" --variant=minbase --aptopt='Acquire::Check-Valid-Until "false"' \
    --include="$(printf 'python%s,' "${versions[@]}")"
  mkdir "$root.new"
  tar --extract --file "$root.tar" --directory "$root.new" --exclude './dev/*'
  rm "$root.tar"
  mv "$root.new" "$root"
fi

# The tests give paths of this machine to the interpreters, and signal the processes that they start
if [[ ${IN_NAMESPACE-} != 1 ]]; then
  IN_NAMESPACE=1 exec unshare --mount "$0" "$@"
fi
for folder in /dev /proc /sys /tmp "$repo"; do
  mkdir -p "$root$folder"
  mount --rbind "$folder" "$root$folder"
done
pythons=
for version in "${versions[@]}"; do
  file=$root/opt/run-python$version
  # Some tests make PID namespaces: there, /proc is another one
  cat >"$file" <<EOF
#!/bin/sh
[ /proc -ef "$root/proc" ] || mount --rbind /proc "$root/proc"
exec chroot "$root" /bin/sh -c 'cd "\$0" && exec python$version "\$@"' "\$PWD" "\$@"
EOF
  chmod +x "$file"
  pythons+=:$file
done
ASYA_TEST_PYTHONS=$pythons run_tests "$@"
