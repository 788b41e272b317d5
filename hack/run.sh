#!/bin/bash
# run.sh: two pods behind a Service, on a host of their own.
#
#   hack/run.sh             make the host, run the example, delete it, prove that nothing is left
#   KEEP=1 hack/run.sh      the same, but leave it running
#   hack/run.sh --stop DIR  end what KEEP=1 left
#
# The host is a network, mount, PID and UTS namespace without a way out; the
# machine's own network, mounts and processes are not touched.
set -eu

here=$(cd "$(dirname "$0")/.." && pwd)
run=/run/pausa
sock=$run/pausa.sock

die() { echo "run: $*" >&2; exit 1; }
say() { printf '\n\033[1m== %s\033[0m\n' "$*"; }

# init is process 1 of the host; bash reaps what the keeper or the daemon leave.
init() {
  mount -t tmpfs -o mode=755,nosuid,nodev run /run
  hostname pausa-demo
  ip link set lo up
  : >"$1/ready"
  while :; do sleep 3600 & wait $! || true; done
}

inside() { nsenter --target "$pid" --net --mount --pid --uts -- "$@"; }
pausa() { inside "$here/bin/pausa" --socket "$sock" "$@"; }

# until_ok SECONDS CMD...: repeats CMD until it succeeds.
until_ok() {
  local end=$((SECONDS + $1))
  shift
  until "$@" >/dev/null 2>&1; do
    [ $SECONDS -lt $end ] || die "waited in vain for: $*"$'\n'"$(tail -n 20 "$dir/daemon.log")"
    sleep 0.1
  done
}

start_host() {
  dir=$(mktemp -d /tmp/pausa-run.XXXXXX)
  chmod 755 "$dir"
  trap 'stop_host "$dir"' EXIT
  setsid unshare --net --mount --pid --uts --fork --kill-child --mount-proc --propagation private \
    bash "$here/hack/run.sh" --init "$dir" </dev/null >"$dir/init.log" 2>&1 &
  echo $! >"$dir/unshare.pid"
  disown
  for _ in $(seq 100); do
    if [ -e "$dir/ready" ]; then break; fi
    sleep 0.05
  done
  [ -e "$dir/ready" ] || die "the host did not come up: $(cat "$dir/init.log")"
  pid=$(cat "/proc/$(cat "$dir/unshare.pid")/task/$(cat "$dir/unshare.pid")/children")
  pid=${pid// /}
  echo "$pid" >"$dir/pid"
}

# is_init PID DIR: the process is the host's first, or the one that started it.
is_init() { tr '\0' ' ' 2>/dev/null <"/proc/$1/cmdline" | grep -qF -- "--init $2"; }

# stop_host DIR: ends every process of the host, then removes its cgroups and files.
stop_host() {
  local d=$1 unshare_pid group
  [ -s "$d/unshare.pid" ] || die "$d is not a folder of run.sh"
  unshare_pid=$(cat "$d/unshare.pid")
  if is_init "$unshare_pid" "$d"; then
    kill -KILL "$unshare_pid"
    # Its process 1 goes with it, and everything in the host with that one.
    while [ -s "$d/pid" ] && is_init "$(cat "$d/pid")" "$d"; do sleep 0.05; done
  fi
  for group in /sys/fs/cgroup/"${d##*/}" /sys/fs/cgroup/*/"${d##*/}"; do
    [ -d "$group" ] || continue
    for _ in $(seq 100); do
      find "$group" -depth -type d -exec rmdir {} + 2>/dev/null || true
      [ -d "$group" ] || break
      sleep 0.05
    done
  done
  rm -rf "$d"
}

# facts prints everything that a pod may leave behind, one line each. What it
# starts itself, and zombies that are about to be reaped, do not count.
facts() {
  # shellcheck disable=SC2016 # the host's shell expands it
  inside bash -c '
    shopt -s nullglob
    for p in /proc/[0-9]*; do
      p=${p#/proc/}; read -r -a s 2>/dev/null <"/proc/$p/stat" || continue
      case $p:${s[1]}:${s[3]} in 1:* | $$:* | *:$$ | *"(sleep):1") ;; *) echo "process ${s[1]}" ;; esac
    done
    cut -d" " -f5 /proc/self/mountinfo | sed "s/^/mount /"
    ip -o addr | awk "{ print \"address\", \$2, \$4 }" | grep -v " fe80:" || true
    ip -o link | awk -F": " "{ print \"link\", \$2 }"
    nft -j list ruleset | tr "{" "\n" | grep -o "\"elem\".*" || true
    find /sys/fs/cgroup -maxdepth 8 -type d -path "*/$2*" | sed "s/^/cgroup /"
    find /run/pausa "$1/state" -path "$1/state/images/*" ! -path "$1/state/images/rw*" -prune -o -print | sed "s/^/file /"
  ' facts "$dir" "${dir##*/}" | sort
}

# furniture is what the first pod makes once for all that follow.
furniture() {
  grep -vxE "(file|mount) $run/(images(/rootfs)?|network/netns)|file $run/(keeper/filters-[0-9a-f]+|network/cni/results|network/ipam/pausa/cursor/[^/]+)" || true
}

start_daemon() {
  (cd "$here" && go run ./integration/mkimage -o "$dir/busybox.tar")
  PAUSA_CGROUP_PARENT=/${dir##*/} nsenter --target "$pid" --net --mount --pid --uts -- \
    "$here/bin/pausa" serve --state "$dir/state" --run $run --socket $sock </dev/null >"$dir/daemon.log" 2>&1 &
  disown
  until_ok 20 pausa get pods
  pausa images import "$dir/busybox.tar"
}

ready_json() { pausa get deployments -o json | grep -Eq '"readyReplicas": ?2'; }

# both_answer NAME CMD...: repeats CMD until both pods have answered.
both_answer() {
  local who=$1 end=$((SECONDS + 20)) line answers=
  shift
  while [ $SECONDS -lt $end ]; do
    answers=$(printf '%s\n%s\n' "$answers" "$("$@" 2>/dev/null || true)" | sed '/^$/d' | sort -u)
    if [ "$(wc -l <<<"$answers")" -ge 2 ]; then
      while read -r line; do echo "from $who: $line"; done <<<"$answers"
      return
    fi
  done
  die "only these pods answered $who: $answers"$'\n'"$(tail -n 20 "$dir/daemon.log")"
}

example() {
  say "apply examples/hello.yaml"
  pausa apply -f "$here/examples/hello.yaml"
  until_ok 30 ready_json
  pausa get pods,deployments,services -o wide

  say "call the Service"
  local svc vip port pod
  svc=$(pausa get service hello -o json)
  vip=$(grep -m1 -oE '"clusterIP": ?"[^"]+"' <<<"$svc" | cut -d'"' -f4)
  port=$(grep -m1 -oE '"port": ?[0-9]+' <<<"$svc" | grep -oE '[0-9]+')
  pod=$(pausa get pods -o name | head -n 1)
  echo "http://$vip:$port/"
  both_answer "the host" inside timeout 5 busybox wget -q -O - "http://$vip:$port/"
  both_answer "a pod" pausa exec "${pod#pod/}" -c web -- timeout 5 wget -q -O - "http://$vip:$port/"

  say "logs and exec"
  pausa logs "${pod#pod/}" -c backend --tail 3
  pausa exec "${pod#pod/}" -c web -- uname -n
}

keep() {
  trap - EXIT
  cat <<TEXT

Left running in $dir.
  a shell on that host:  nsenter --target $pid --net --mount --pid --uts -- bash
  one command:           nsenter --target $pid --net --mount --pid --uts -- $here/bin/pausa get pods
  its log:               $dir/daemon.log
  stop it:               hack/run.sh --stop $dir
TEXT
}

# nothing_left compares the host with what it was before the example.
nothing_left() {
  local end=$((SECONDS + 15)) left=
  while :; do
    left=$(comm -13 "$dir/before" <(facts) | furniture)
    [ -n "$left" ] || return 0
    [ $SECONDS -lt $end ] || die "this is left:"$'\n'"$left"
    sleep 0.2
  done
}

demo() {
  start_host
  say "start the daemon, import the image"
  start_daemon
  facts >"$dir/before"
  example
  if [ -n "${KEEP:-}" ]; then
    keep
    return
  fi
  say "delete it all"
  pausa delete --all -A
  nothing_left
  echo "nothing is left: processes, namespaces, mounts, cgroups, links, addresses, nft elements, files"
  echo
  echo "OK: service hello answered from 2 pods"
}

[ "$(id -u)" = 0 ] || die "namespaces and mounts need root"
case ${1:-} in
  --init) init "$2" ;;
  --stop) stop_host "${2:?which folder}" ;;
  "") demo ;;
  *) die "usage: hack/run.sh [--stop DIR]" ;;
esac
