#!/bin/bash
# deps.sh: install the Debian packages that building and testing need. It does
# nothing, and needs no network, when they are all there.
set -eu

pkgs=(
  # build: the keeper is static cgo with libseccomp, pause is C
  gcc libc6-dev libseccomp-dev pkg-config
  # the image of examples and tests, and tools the tests look at the kernel with
  busybox-static nftables iptables iproute2 conntrack util-linux procps strace shellcheck
  # runtime handlers
  runc crun
  # a VM with cgroup v2
  qemu-system-x86 mmdebstrap squashfs-tools cpio e2fsprogs kmod
)

missing=()
for p in "${pkgs[@]}"; do
  [ "$(dpkg-query -W -f '${db:Status-Status}' "$p" 2>/dev/null || true)" = installed ] || missing+=("$p")
done

command -v go >/dev/null || { echo "deps: no go in PATH: install Go $(awk '$1 == "go" {print $2}' go.mod) or newer" >&2; exit 1; }
[ ${#missing[@]} -gt 0 ] || exit 0

if [ "$(id -u)" != 0 ]; then
  echo "deps: these packages are missing: ${missing[*]}; run 'make deps' as root" >&2
  exit 1
fi
echo "deps: installing ${missing[*]}"
export DEBIAN_FRONTEND=noninteractive
apt-get update -qq
apt-get install -y -qq --no-install-recommends "${missing[@]}" >/dev/null
