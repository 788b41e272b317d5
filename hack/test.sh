#!/bin/bash
# test.sh: everything that must pass, in the order in which it fails fastest.
# The last lines are those of go test for the integration tests. Nothing is
# left out in silence: every skipped test is listed with its reason, and one
# that skips for want of root is a failure, as this runs as root.
set -eu
cd "$(dirname "$0")/.."
mkdir -p bin

[ "$(id -u)" = 0 ] || { echo "test: namespaces, mounts, cgroups and the VM's image need root" >&2; exit 1; }

# step NAME CMD...: runs one part and tells how long it took.
step() {
  local name=$1 start=$SECONDS
  shift
  printf '\n== %s\n' "$name"
  "$@"
  echo "== $name took $((SECONDS - start)) s"
}

# go_test LOG ARGS...: go test, whole output in LOG; here failures, skips and the lines per package.
go_test() {
  local log=$1 status=0
  shift
  go test -v "$@" >"$log" 2>&1 || status=$?
  grep -aE '^(ok|FAIL|panic:)' "$log" || true
  if [ $status -ne 0 ]; then
    echo "test: failed; the end of $log:" >&2
    grep -aE -B 40 '^ *--- FAIL' "$log" | grep -avE '^ *(=== |--- PASS)' | tail -n 200 >&2 || tail -n 60 "$log" >&2
    return $status
  fi
  skips "$log"
}

skips() {
  local list
  list=$(grep -a -A 1 -E '^ *--- SKIP' "$1" | grep -v '^--$' || true)
  [ -n "$list" ] || return 0
  printf 'skipped:\n%s\n' "$list"
  if grep -qiE '(needs|must be|not) root|as root' <<<"$list"; then
    echo "test: a test was skipped for want of root, but this is root" >&2
    return 1
  fi
}

unit() { go_test bin/unit.log -race -timeout 15m ./...; }

# fuzz runs every fuzz target for a few seconds. It counts inputs: with a time, go test
# may call the end of that time, on a busy machine, a failure of the target.
fuzz() {
  local file target
  while IFS=: read -r file target; do
    echo "$(dirname "$file") $target"
    go test -run '^$' -fuzz "^$target\$" -fuzztime "${FUZZTIME:-10000x}" -fuzzminimizetime 10x "./$(dirname "$file")" >bin/fuzz.log 2>&1 || {
      cat bin/fuzz.log >&2
      return 1
    }
  done < <(grep -rnoE --include='*_test.go' '^func Fuzz[A-Za-z0-9_]+' cmd cri images internal network pod runtime integration |
    sed -E 's/:[0-9]+:func /:/')
}

critest() { make -s critest; }
vm() { hack/vm-test.sh; }

step lint make -s lint
step "unit tests" unit
step fuzz fuzz
step critest critest
step VM vm
step "integration tools" make -s bin/tools/cnitool bin/tools/crictl bin/tools/cni bin/tools/kubelet
printf '\n== integration tests\n'
go test -tags integration -count=1 -timeout 30m ./integration/...
