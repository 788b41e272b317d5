#!/bin/bash
# vm-test.sh: integration tests in a VM with cgroup v2, an older kernel and all
# capabilities. RUN is the regular expression of the tests.
set -eu
cd "$(dirname "$0")/.."

RUN=${RUN:-'^(TestHelloExample|TestExec|TestCRIPodLife|TestKillKeeper)$'}
job=$(mktemp -d)
trap 'rm -rf "$job"' EXIT
mkdir -p "$job/bin/tools" "$job/integration"
cp bin/pausa bin/pausa-keeper "$job/bin/"
make -s bin/tools/cnitool
cp bin/tools/cnitool "$job/bin/tools/"
cp -r examples "$job/"
CGO_ENABLED=0 go test -c -tags integration -o "$job/integration/integration.test" ./integration
printf '%s\n' "$RUN" >"$job/run-regexp"
# shellcheck disable=SC2016 # the VM's shell expands it
integration/vm/run-vm.sh -t "${VM_LIMIT:-900}" -j "$job" -- \
  'cd /job/integration && TMPDIR=/root PAUSA_TEST_BIN=/job/bin ./integration.test -test.v -test.timeout 14m -test.run "$(cat /job/run-regexp)"'
