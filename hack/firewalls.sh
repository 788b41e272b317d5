#!/bin/bash
# firewalls.sh OUT: put ufw, firewalld and docker of Debian into the folder OUT, for
# tests that lay it over /usr and /etc of a host made of namespaces. Nothing is
# installed on this machine, whose own firewall stays what it is.
set -eu

out=${1:?usage: firewalls.sh OUT}
mkdir -p "$(dirname "$out")"
work=$(mktemp -d "$out.XXXXXX")
trap 'rm -rf "$work"' EXIT

# What these need besides what make deps installs and python3 brings.
packages=(
  ufw
  firewalld python3-firewall python3-nftables python3-dbus python3-gi gir1.2-glib-2.0 libgirepository-1.0-1
  libnm0 gir1.2-nm-1.0 dbus dbus-bin dbus-daemon libdbus-1-3
  docker.io containerd tini libdevmapper1.02.1
)
apt-cache show firewalld >/dev/null 2>&1 || apt-get update -qq
mkdir "$work/debs" "$work/root"
(cd "$work/debs" && apt-get download -qq -o APT::Sandbox::User=root "${packages[@]}")
for name in bin sbin lib; do # as Debian has them, so that all is below usr
  mkdir -p "$work/root/usr/$name"
  ln -s "usr/$name" "$work/root/$name"
done
for deb in "$work"/debs/*.deb; do
  dpkg-deb --fsys-tarfile "$deb" | tar -x --keep-directory-symlink -C "$work/root"
done
rm -rf "$work/root/usr/share/doc" "$work/root/usr/share/man" "$work/root/usr/share/locale" "$work/root/etc/init.d"
# What ufw's installation does.
for v in "" 6; do
  for part in before after; do
    install -m 0640 "$work/root/usr/share/ufw/iptables/$part$v.rules" "$work/root/etc/ufw/"
  done
  install -m 0640 "$work/root/usr/share/ufw/iptables/user$v.rules" "$work/root/etc/ufw/"
done
install -m 0644 "$work/root/usr/share/ufw/ufw.conf" "$work/root/etc/ufw/"
rm -rf "$out"
mv "$work/root" "$out"
