#!/bin/bash
# run-vm.sh [-t SECONDS] [-j DIR] [-m MB] [-c CPUS] [-s] [-a ARGUMENTS] -- COMMAND...
#
# Runs one command as root in a VM without network and exits with its status;
# 124: the time is over, 125: the VM failed. DIR is /job in the VM, read-only.
# A command that exits with 250 is run again after a real reboot, with its disk
# kept and BOOT=2. -s has systemd as process 1; -a adds to the kernel's
# arguments (systemd.unified_cgroup_hierarchy=0: cgroup v1 and v2 side by side).
# The VM is emulated: processes cost some fifteen times what they cost here, so
# nothing in it may be timed. It is built once and kept under XDG_CACHE_HOME.
set -euo pipefail

here=$(cd "$(dirname "$0")" && pwd)
limit=300 job='' memory=2048 cpus=2 arguments=''
while getopts t:j:m:c:a:s o; do
  case $o in
    t) limit=$OPTARG ;;
    j) job=$OPTARG ;;
    m) memory=$OPTARG ;;
    c) cpus=$OPTARG ;;
    a) arguments+=" $OPTARG" ;;
    s) arguments+=" vm_init=/sbin/init systemd.show_status=0" ;;
    *) exit 125 ;;
  esac
done
shift $((OPTIND - 1))
[ "${1:-}" != -- ] || shift
[ $# -gt 0 ] || { echo "run-vm: no command" >&2; exit 125; }

# The key is what the VM is made of: another recipe, another VM.
key=$(cat "$here"/build-vm.sh "$here"/vm-* "$here"/initrd-init | sha256sum | cut -c1-12)
vm=${XDG_CACHE_HOME:-$HOME/.cache}/pausa/vm-$key
if [ ! -e "$vm/base.ext4" ]; then
  echo "run-vm: building the VM in $vm" >&2
  "$here/build-vm.sh" "$vm" || { echo "run-vm: the VM could not be built" >&2; exit 125; }
fi

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT

# The guest's clock follows the host's TSC: tell its rate where it is known, as
# calibration can go wrong by far on a loaded host.
tsc=
if grep -q hypervisor /proc/cpuinfo; then
  tsc=$(awk -F'[:. ]+' '/^cpu MHz/ {print "tsc_early_khz=" $(NF-1) $NF; exit}' /proc/cpuinfo)
fi
append="console=ttyS0 root=/dev/vda panic=-1 quiet mitigations=off nokaslr no_timer_check tsc=reliable $tsc"
append+=" random.trust_cpu=on apparmor=1 security=apparmor lsm=landlock,yama,apparmor,bpf$arguments vm.cmd64=$(printf %s "$*" | base64 -w0)"
[ ${#append} -lt 2000 ] || { echo "run-vm: the command is too long: put it into a file of -j" >&2; exit 125; }

# shellcheck disable=SC2054 # commas separate the options of one argument
args=(
  -accel tcg,thread=multi,tb-size=512 -cpu qemu64 -smp "$cpus" -m "$memory" -machine q35,vmport=off
  -nodefaults -display none -serial stdio -serial "file:$work/status" -device virtio-rng-pci
  -kernel "$vm/vmlinuz" -initrd "$vm/initrd.img" -append "$append"
  -drive "if=none,id=root,file=$vm/base.ext4,format=raw,snapshot=on,cache=unsafe" -device virtio-blk-pci,drive=root,serial=root
)
if [ -n "$job" ]; then
  mksquashfs "$job" "$work/job.sq" -comp lz4 -no-progress -quiet -noappend >/dev/null
  # shellcheck disable=SC2054
  args+=(-drive "if=none,id=job,file=$work/job.sq,format=raw,readonly=on" -device virtio-blk-pci,drive=job,serial=job)
fi

# A crash of the emulator itself (SIGSEGV, seen once) says nothing of what runs in it:
# the VM, whose disks are snapshots, is started anew.
for try in 1 2 3; do
  qemu=0
  TMPDIR=$work timeout -k 5 "$limit" qemu-system-x86_64 "${args[@]}" </dev/null 2>"$work/err" | sed -u 's/\r$//' || qemu=${PIPESTATUS[0]}
  if [ "$qemu" != 139 ] || [ "$try" = 3 ]; then break; fi
  echo "run-vm: the emulator crashed; the VM is started anew" >&2
  : >"$work/status"
done
grep -v 'warning: TCG' "$work/err" >&2 || true
case $qemu in
  124 | 137) echo "run-vm: the time ($limit s) is over" >&2; exit 124 ;;
esac
status=$(tr -dc 0-9 <"$work/status")
[ -n "$status" ] || { echo "run-vm: the VM gave no exit status (qemu $qemu)" >&2; exit 125; }
exit "$status"
