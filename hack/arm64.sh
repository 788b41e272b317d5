#!/bin/bash
# arm64.sh: build bin/arm64/pausa and bin/arm64/pausa-keeper on an amd64 host.
#
# The compiler is Debian's cross compiler. The library that the keeper links,
# libseccomp, is fetched as Debian has it for arm64 and unpacked beside, so that
# the host keeps its one architecture. LDFLAGS are those of make build.
set -eu
cd "$(dirname "$0")/.."

command -v aarch64-linux-gnu-gcc >/dev/null || { echo "arm64: aarch64-linux-gnu-gcc is missing: apt-get install gcc-aarch64-linux-gnu" >&2; exit 1; }
root=${XDG_CACHE_HOME:-$HOME/.cache}/pausa/arm64

# fetch unpacks a Debian package of arm64 into root, with lists of apt's own.
fetch() {
  local work
  work=$(mktemp -d)
  # shellcheck disable=SC2064 # this folder
  trap "rm -rf '$work'" EXIT
  mkdir -p "$work/state/lists/partial" "$work/cache/archives/partial"
  : >"$work/status"
  local apt=(-q -o APT::Architecture=arm64 -o APT::Architectures=arm64 -o Dir::State="$work/state" -o Dir::Cache="$work/cache"
    -o Dir::State::status="$work/status" -o APT::Sandbox::User=root)
  apt-get "${apt[@]}" update >/dev/null
  (cd "$work" && apt-get "${apt[@]}" download "$1" >/dev/null)
  mkdir -p "$root.new"
  dpkg-deb -x "$work"/*.deb "$root.new"
  mv -T "$root.new" "$root"
}

[ -e "$root/usr/lib/aarch64-linux-gnu/libseccomp.a" ] || fetch libseccomp-dev

runtime/pause/build.sh arm64
export GOARCH=arm64
CGO_ENABLED=0 go build -trimpath -buildvcs=false -ldflags "${LDFLAGS:-}" -o bin/arm64/pausa ./cmd/pausa
# The cross compiler has the C library; pkg-config must not find the host's.
CC=aarch64-linux-gnu-gcc CGO_ENABLED=1 PKG_CONFIG_LIBDIR=$root/usr/lib/aarch64-linux-gnu/pkgconfig PKG_CONFIG_SYSROOT_DIR=$root \
  CGO_CFLAGS="-O2 -g -I$root/usr/include" CGO_LDFLAGS="-O2 -g -L$root/usr/lib/aarch64-linux-gnu" \
  go build -trimpath -buildvcs=false -tags 'seccomp netgo osusergo' -ldflags "${KEEPER_LDFLAGS:--linkmode external -extldflags \"-static\"}" -o bin/arm64/pausa-keeper ./cmd/pausa-keeper
