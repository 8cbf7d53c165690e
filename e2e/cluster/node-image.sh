#!/usr/bin/env bash
# Prints the node image for a Kubernetes release: the published one if its registry answers, else one built here
# from Debian packages and Go modules. Complete parts stay in the cache: a run continues after an interruption, and
# another release builds only the parts that differ.
# usage: node-image.sh [VERSION]
set -euo pipefail
# shellcheck source=lib.sh
. "$(dirname "$0")/lib.sh"
# shellcheck source=debian.sh
. "$cluster_dir/debian.sh"
# shellcheck source=registry.sh
. "$cluster_dir/registry.sh"
# shellcheck source=gobuild.sh
. "$cluster_dir/gobuild.sh"

row=$(release "$KUBERNETES_RELEASES" "${1:-$KUBERNETES_DEFAULT}" Kubernetes)
read -r minor published version <<<"$row"
"$cluster_dir/engine.sh"
kept=$cache/node

root_packages=systemd,systemd-sysv,dbus,conntrack,iptables,nftables,iproute2,ethtool,util-linux,mount,kmod
root_packages+=,ca-certificates,curl,jq,procps,containerd,runc,containernetworking-plugins
proxy_packages=iptables,nftables,conntrack
# A container needs little of systemd; these units would fail, wait, or block logins.
masked="systemd-resolved.service systemd-networkd.service systemd-logind.service systemd-timesyncd.service
  systemd-binfmt.service systemd-update-utmp.service console-getty.service getty.target apt-daily.timer
  apt-daily-upgrade.timer fstrim.timer e2scrub_all.timer dpkg-db-backup.timer sys-kernel-debug.mount
  sys-kernel-tracing.mount sys-kernel-config.mount dev-hugepages.mount sys-fs-fuse-connections.mount
  proc-sys-fs-binfmt_misc.automount"

build_kubernetes() {
  local names=(kubeadm kubelet kubectl kube-apiserver kube-controller-manager kube-scheduler kube-proxy)
  local package=k8s.io/component-base/version # where kubeadm and the API server have their version
  local flags="-X $package.gitVersion=v$version -X $package.gitMajor=1 -X $package.gitMinor=${minor#*.}"
  go_build "$kubernetes" k8s.io/kubernetes "v$version" "$flags -X $package.gitTreeState=clean" \
    "${names[@]/#/k8s.io/kubernetes/cmd/}"
}
build_coredns() { go_build "$coredns" github.com/coredns/coredns "$(tag_of coredns)" "" "$cluster_dir/node/coredns"; }
build_etcd() {
  local tag
  tag=$(tag_of etcd) # 3.6.5-0: the number after the dash counts images, not releases
  go_build "$etcd" go.etcd.io/etcd/server/v3 "v${tag%-*}" "" go.etcd.io/etcd/server/v3
}
build_pause() { go_build "$pause" "" "" "" "$cluster_dir/node/pause"; }
build_containerd() {
  local names=(containerd containerd-shim-runc-v2 ctr) module=github.com/containerd/containerd/v2
  go_build "$containerd" "$module" "v$CONTAINERD_VERSION" "-X $module/version.Version=v$CONTAINERD_VERSION" \
    "${names[@]/#/$module/cmd/}"
}

build_root() {
  need_mmdebstrap
  debian_root "$DEBIAN_SUITE" "$root" --variant=minbase --include="$root_packages"
}
# Unpacked and not configured: only kube-proxy runs in its image, and calls these programs.
build_proxy_root() {
  need_mmdebstrap
  debian_root "$DEBIAN_SUITE" "$proxy_root" --variant=extract --include="$proxy_packages"
}

# image_names: the images that kubeadm needs, as registry.k8s.io/name:tag; tag_of NAME
image_names() { "$kubernetes/kubeadm" config images list --kubernetes-version "v$version" 2>/dev/null; }
image_of() { image_names | grep "/$1:"; }
tag_of() { local image; image=$(image_of "$1"); echo "${image##*:}"; }

# program_image NAME FILE: an image of one program
program_image() {
  tar c --owner=0 --group=0 -C "$(dirname "$2")" "$(basename "$2")" |
    docker import --change 'ENV PATH=/' --change "ENTRYPOINT [\"/$(basename "$2")\"]" - "$(image_of "$1")"
}

pack_images() {
  local name work=$kept/proxy.tmp images
  for name in kube-apiserver kube-controller-manager kube-scheduler; do program_image $name "$kubernetes/$name"; done
  program_image etcd "$etcd/etcd"
  program_image coredns "$coredns/coredns"
  program_image pause "$pause/pause"
  rm -rf "$work"
  mkdir -p "$work"
  tar xf "$proxy_root" -C "$work" --exclude=./dev
  for name in bin sbin lib lib64; do [[ -e $work/$name ]] || ln -s "usr/$name" "$work/$name"; done
  for name in ip{,6}tables{,-save,-restore}; do ln -sf xtables-nft-multi "$work/usr/sbin/$name"; done
  install -D "$kubernetes/kube-proxy" "$work/usr/local/bin/kube-proxy"
  tar c --owner=0 --group=0 -C "$work" . |
    docker import --change 'ENV PATH=/usr/local/bin:/usr/sbin:/usr/bin' - "$(image_of kube-proxy)"
  rm -r "$work"
  mapfile -t images < <(image_names)
  docker save "${images[@]}" -o "$images_tar.tmp"
  docker image rm "${images[@]}" # the names of published images
  mv "$images_tar.tmp" "$images_tar"
}

assemble() {
  local context=$kept/context.tmp unit units
  rm -rf "$context"
  mkdir -p "$context/rootfs/opt/cni"
  cp -a "$cluster_dir/node/rootfs/." "$context/rootfs/"
  chmod -R u=rwX,go=rX "$context/rootfs" # independent of the umask of the checkout
  install -D -t "$context/rootfs/usr/bin" "$kubernetes"/{kubeadm,kubelet,kubectl}
  ln -s /usr/lib/cni "$context/rootfs/opt/cni/bin"
  sed -i "s#@PAUSE@#$(image_of pause)#" "$context/rootfs/etc/containerd/config.toml"
  echo "v$version" >"$context/rootfs/kind/version"
  units=$context/rootfs/etc/systemd/system
  mkdir -p "$units/multi-user.target.wants"
  ln -s ../kubelet.service "$units/multi-user.target.wants/"
  for unit in $masked; do ln -s /dev/null "$units/$unit"; done
  docker import "$root" asya/node-base
  docker build --build-arg BASE=asya/node-base --file "$cluster_dir/node/Dockerfile" --tag asya/node-bare "$context"
  rm -r "$context"
}

# Puts containerd 2 in place of Debian's, for image volumes.
add_containerd() {
  local context=$kept/containerd.tmp
  rm -rf "$context"
  install -D -t "$context/rootfs/usr/bin" "$containerd"/*
  install -D -m 644 -t "$context/rootfs/etc/containerd" "$cluster_dir/containerd/config.toml"
  sed -i "s#@PAUSE@#$(image_of pause)#" "$context/rootfs/etc/containerd/config.toml"
  docker build --file "$cluster_dir/containerd/Dockerfile" --tag asya/node-bare "$context"
  rm -r "$context"
}

# The images are stored packed in the node's containerd, which unpacks them on first use.
bake() {
  local container=asya-node-bake
  docker rm --force "$container" 2>/dev/null || true
  docker run --detach --name "$container" --privileged --entrypoint sleep asya/node-bare infinity
  # shellcheck disable=SC2016  # for the shell in the container
  docker exec -i "$container" bash -euc 'containerd >/tmp/log 2>&1 &
    for ((try = 0; try < 100; try++)); do ctr version >/dev/null 2>&1 && break; sleep 0.2; done
    ctr --namespace k8s.io images import --label=io.cri-containerd.pinned=pinned --no-unpack --digests -
    kill %1; wait || true; rm /tmp/log' <"$images_tar"
  docker commit --change 'ENTRYPOINT ["/usr/local/bin/entrypoint", "/sbin/init"]' "$container" "$built"
  docker rm --force "$container"
  docker image rm asya/node-bare asya/node-base
}

# part FILE WHAT USUAL COMMAND...: a step, unless its file exists
part() {
  if [[ -e $1 ]]; then
    step_number=$((step_number + 1))
    say "[$step_number/$steps] $2: cached"
  else
    step "${@:2}"
  fi
}

digest() { sha256sum | cut -c 1-8; }
# The name contains a hash of the recipe: a changed recipe makes a new image, and equal parts are shared.
recipe=$({ declare -f build_kubernetes assemble bake pack_images debian_root; echo "$root_packages $proxy_packages $masked"
  cd "$cluster_dir" && find node -type f | LC_ALL=C sort | xargs tail -n +1; } | digest)
# The nodes of older releases keep Debian's containerd, and their name.
containerd=
if at_least "$minor" "$CONTAINERD_SINCE"; then
  containerd=$kept/containerd-$CONTAINERD_VERSION
  recipe=$({ echo "$recipe $CONTAINERD_VERSION"; declare -f build_containerd add_containerd
    cd "$cluster_dir" && find containerd -type f | LC_ALL=C sort | xargs tail -n +1; } | digest)
fi
built=asya/node:v$version-$recipe

if have_image "$published"; then echo "$published"; exit; fi
if ! have_image "$built"; then
  if pulled "$published"; then echo "$published"; exit; fi
  need_go "building a node image for Kubernetes"
  need_mmdebstrap
  locked node-image
  mkdir -p "$kept"
  docker buildx version >/dev/null 2>&1 || export DOCKER_BUILDKIT=0
  say "no registry provides $published: building it here, once (usually 11 min on 2 cores; can be interrupted)"
  steps=$((9${containerd:+ + 2}))
  kubernetes=$kept/kubernetes-$version
  part "$kubernetes" "building Kubernetes $version" '7 min on 2 cores' build_kubernetes
  coredns=$kept/coredns-$(tag_of coredns)
  etcd=$kept/etcd-$(tag_of etcd)
  pause=$kept/pause
  root=$kept/root-$(declare -f debian_root build_root | cat - <(echo "$root_packages") | digest).tar
  proxy_root=$kept/proxy-$(declare -f debian_root build_proxy_root | cat - <(echo "$proxy_packages") | digest).tar
  images_tar=$kept/images-$version-$recipe.tar
  part "$coredns" "building CoreDNS $(tag_of coredns)" '1 min' build_coredns
  part "$etcd" "building etcd $(tag_of etcd)" '1 min' build_etcd
  part "$pause" 'building pause' '1 s' build_pause
  [[ -z $containerd ]] || part "$containerd" "building containerd $CONTAINERD_VERSION" '2 min' build_containerd
  part "$root" "installing the node's Debian $DEBIAN_SUITE" '40 s' build_root
  part "$proxy_root" "installing kube-proxy's Debian $DEBIAN_SUITE" '10 s' build_proxy_root
  part "$images_tar" 'packing the control-plane images' '10 s' pack_images
  step 'assembling the node' '10 s' assemble
  [[ -z $containerd ]] || step "adding containerd $CONTAINERD_VERSION" '5 s' add_containerd
  trap 'docker rm --force asya-node-bake >/dev/null 2>&1 || true' EXIT
  step 'adding the control-plane images' '20 s' bake
  rm "$images_tar"
fi
echo "$built"
