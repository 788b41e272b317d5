#!/bin/bash
# vm-test.sh [tests|critest|systemd|networks]: what needs another kernel, cgroup v2, AppArmor or
# systemd, in a VM. RUN is a regular expression of the tests or specs to run.
#
#   tests    integration tests, the keeper's tests of control groups and checkpoints, and a
#            few AppArmor specs of the Kubernetes CRI suite
#   critest  the whole suite, and checkpoints and a restore over the socket; the output is in bin/critest-vm.log;
#            RUNTIME=/usr/bin/crun has the VM's crun make the containers, /usr/sbin/runc its runc
#   systemd  the tests of the systemd cgroup driver and of a reboot, with cgroup
#            v2 and then with v1 and v2 side by side
#   networks the CNI reference plugins that need kernel modules
# shellcheck disable=SC2016 # the VM's shell expands what is quoted
set -eu
cd "$(dirname "$0")/.."

what=${1:-tests}
job=$(mktemp -d)
trap 'rm -rf "$job"' EXIT
mkdir -p "$job/bin/tools" "$job/integration"
cp bin/pausa bin/pausa-keeper "$job/bin/"

add_tests() {
  make -s bin/tools/cnitool bin/tools/crictl
  cp bin/tools/cnitool bin/tools/crictl "$job/bin/tools/"
  cp -r examples "$job/"
  CGO_ENABLED=0 go test -c -tags integration -o "$job/integration/integration.test" ./integration
  # The VM's shell has the programs by these names.
  printf '#!/bin/bash\ncd /job/integration && TMPDIR=/root PAUSA_TEST_BIN=/job/bin exec ./integration.test -test.v -test.timeout 30m -test.run "$1"\n' >"$job/tests"
  chmod 0755 "$job/tests"
}

add_keeper_tests() {
  CGO_ENABLED=1 go test -c -tags 'seccomp netgo osusergo' -ldflags '-linkmode external -extldflags "-static"' -o "$job/keeper.test" ./runtime/keeper
  printf '#!/bin/bash\ncd /root && TMPDIR=/root PAUSA_TEST_KEEPER=/job/bin/pausa-keeper exec /job/keeper.test -test.v -test.timeout 10m -test.run "$1"\n' >"$job/keeper-tests"
  chmod 0755 "$job/keeper-tests"
}

add_critest() {
  make -s bin/tools/critest
  cp bin/tools/critest "$job/bin/tools/"
  CGO_ENABLED=0 go build -o "$job/critrun" ./integration/critrun
  "$job/critrun" -build-images "$job/images"
  mkdir "$job/sudo" # which the suite calls
  printf '#!/bin/bash\nexec "$@"\n' >"$job/sudo/sudo"
  printf '#!/bin/bash\ncd /root && TMPDIR=/root PATH=$PATH:/job/sudo exec /job/critrun -bin /job/bin -images /job/images -log /root/critest.log -runtime "%s" -focus "$1"\n' "${RUNTIME:-}" >"$job/critest"
  chmod 0755 "$job/sudo/sudo" "$job/critest"
}

# vm LIMIT OPTIONS... -- COMMAND
vm() {
  local limit=$1
  shift
  integration/vm/run-vm.sh -t "${VM_LIMIT:-$limit}" -j "$job" "$@"
}

case $what in
  tests)
    add_tests
    add_keeper_tests
    add_critest
    run=${RUN:-'^(TestHelloExample|TestExec|TestCRIPodLife|TestKillKeeper|TestPodSpecOfKernel)$'}
    keeper='^(TestOOM.*|TestLimits.*|TestCheckpoint.*|TestRestore.*|TestExecIsDeadWhenTheCallReturns|TestExecLeavesNoGroup|TestStats|TestDetails)$'
    specs='AppArmor runtime should support apparmor field'
    vm 1500 -- "/job/tests '$run' && { [ '${RUN:-}' ] || { /job/keeper-tests '$keeper' && /job/critest '$specs'; }; }"
    ;;
  critest)
    add_tests
    add_critest
    status=0
    vm 3000 -m 3072 -- "{ [ '${RUN:-}${RUNTIME:-}' ] || /job/tests '^(TestCheckpoint|TestCheckpointPod|TestRestorePod.*)$'; } && /job/critest '${RUN:-}'; rc=\$?; echo == log; cat /root/critest.log; exit \$rc" >bin/critest-vm.log || status=$?
    sed -n '/^VM-READY/,/^== log/p' bin/critest-vm.log
    exit $status
    ;;
  systemd)
    add_tests
    cp docs/pausa.service "$job/"
    # The job runs again after the reboot, where only the second test goes on.
    run='if [ $BOOT = 1 ]; then PAUSA_TEST_VM=1 /job/tests "^(TestSystemd|TestReboot)$" && exit 250; else PAUSA_TEST_VM=1 /job/tests "^TestReboot$"; fi'
    for hierarchy in 1 0; do
      echo "== systemd.unified_cgroup_hierarchy=$hierarchy"
      vm 1800 -s -a "systemd.unified_cgroup_hierarchy=$hierarchy" -- "$run"
    done
    ;;
  networks)
    make -s bin/tools/cni
    cp -r bin/tools/cni "$job/bin/tools/"
    add_tests
    vm 900 -- "/job/tests '${RUN:-^TestReferencePluginsOfOtherKernels$}'"
    ;;
  *)
    echo "vm-test: $what is none of tests, critest, systemd, networks" >&2
    exit 2
    ;;
esac
