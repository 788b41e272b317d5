#!/bin/bash
# build-vm.sh OUT: make a small Linux VM of Debian packages.
#
#   OUT/vmlinuz     Debian's cloud kernel
#   OUT/initrd.img  busybox and the few modules that mount the root
#   OUT/base.ext4   the root
#
# The root has AppArmor, nf_tables, criu and two inits: vm-init, which mounts
# cgroup v2 and runs one command, and systemd, which does it from a unit.
set -euo pipefail

out=${1:?usage: build-vm.sh OUT}
here=$(cd "$(dirname "$0")" && pwd)
sources=/etc/apt/sources.list.d/debian.sources
[ -e "$sources" ] || sources=/etc/apt/sources.list
packages=apparmor,busybox-static,conntrack,criu,crun,dbus,e2fsprogs,iproute2,iptables,kmod,libseccomp2,nftables,procps,runc,systemd-sysv
# shellcheck source=/dev/null
suite=$(. /etc/os-release && echo "$VERSION_CODENAME")

mkdir -p "$out"
out=$(cd "$out" && pwd)
work=$(mktemp -d "$out/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
cd "$work"

get_kernel() {
  local package
  apt-cache show linux-image-cloud-amd64 >/dev/null 2>&1 || apt-get update -qq
  package=$(apt-cache depends linux-image-cloud-amd64 | awk '/Depends: linux-image-/ {print $2; exit}')
  apt-get download -qq -o APT::Sandbox::User=root "$package"
  dpkg-deb -x ./*.deb kernel
  version=$(ls kernel/lib/modules)
  cp "kernel/boot/vmlinuz-$version" vmlinuz
}

unpack_root() {
  mmdebstrap --quiet --variant=minbase --include="$packages" \
    --aptopt='APT::Install-Recommends "false"' --aptopt='Acquire::Languages "none"' \
    --dpkgopt='path-exclude=/usr/share/man/*' --dpkgopt='path-exclude=/usr/share/doc/*' --dpkgopt='path-exclude=/usr/share/locale/*' \
    "$suite" root.tar "$sources"
  mkdir root
  tar -C root -xpf root.tar --exclude='./var/cache/apt/*' --exclude='./var/lib/apt/lists/*'
  rm root.tar
  echo vm >root/etc/hostname
  echo '127.0.0.1 localhost vm' >root/etc/hosts
  : >root/etc/fstab
  echo 0123456789abcdef0123456789abcdef >root/etc/machine-id
  mkdir -p root/job root/lib/modules
  cp -a "kernel/lib/modules/$version" root/lib/modules/
  chroot root depmod "$version"
  install -m 0755 "$here/vm-init" "$here/vm-job" root/sbin/
  install -m 0644 "$here/vm-job.service" root/etc/systemd/system/
  ln -s ../vm-job.service root/etc/systemd/system/multi-user.target.wants/
  # What nobody looks at, or wants the network.
  for unit in apt-daily.timer apt-daily-upgrade.timer dpkg-db-backup.timer e2scrub_all.timer fstrim.timer systemd-timesyncd.service \
    getty@tty1.service getty-static.service serial-getty@ttyS0.service serial-getty@ttyS1.service systemd-networkd-wait-online.service; do
    ln -sf /dev/null "root/etc/systemd/system/$unit"
  done
}

make_disk() {
  local used
  used=$(du -sm root | cut -f1)
  mkfs.ext4 -q -F -m 0 -O ^has_journal -E lazy_itable_init=1,nodiscard -d root base.ext4 $((used * 130 / 100 + 1024))M
}

# initrd holds what is needed to mount the root, no more.
make_initrd() {
  local m
  mkdir -p initrd/bin initrd/mods initrd/new initrd/proc initrd/dev
  cp root/bin/busybox initrd/bin/
  ln -s busybox initrd/bin/sh
  for m in virtio_pci virtio_blk ext4; do
    chroot root modprobe -S "$version" --show-depends "$m" | awk '$1 == "insmod" {print $2}'
  done | awk '!seen[$0]++' >modules
  while read -r m; do
    cp "root/$m" initrd/mods/
    echo "${m##*/}" >>initrd/mods/order
  done <modules
  install -m 0755 "$here/initrd-init" initrd/init
  (cd initrd && find . | cpio -o -H newc --quiet) >initrd.img
}

get_kernel
unpack_root
make_disk
make_initrd
mv vmlinuz initrd.img "$out/"
mv base.ext4 "$out/" # last: who finds it finds all
