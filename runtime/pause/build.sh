#!/bin/sh
# Builds pause for one architecture: build.sh [amd64|arm64]. CC may name another compiler.
set -eu
cd "$(dirname "$0")"
arch=${1:-$(go env GOARCH)}
case $arch in
amd64) cc=${CC:-gcc} ;;
arm64) cc=${CC:-$([ "$(uname -m)" = aarch64 ] && echo gcc || echo aarch64-linux-gnu-gcc)} ;;
*) echo "build.sh: pause knows amd64 and arm64, not $arch" >&2; exit 1 ;;
esac
$cc -Os -Wall -Wextra -Werror -std=gnu11 -static -nostdlib -nostartfiles -ffreestanding \
	-fno-stack-protector -fno-asynchronous-unwind-tables -fno-pie -no-pie \
	-Wl,--build-id=none -Wl,-z,noexecstack -Wl,-z,norelro -Wl,-n -s \
	-o "pause-$arch.tmp" src/pause.c
mv "pause-$arch.tmp" "pause-$arch"
