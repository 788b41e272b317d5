package apparmor

// Profile is the name of the default profile, what runtime/default stands for.
const Profile = "pausa-default"

// profile is the policy of the default profile. It includes nothing, as a host
// may have the parser without the files that come beside it. What it denies is
// what a container could reach of the host once its masked and read-only paths
// are out of the way: kernel settings, hardware, security modules, mounts.
const profile = `@{PROC}=/proc/
profile ` + Profile + ` flags=(attach_disconnected,mediate_deleted) {
  file,
  network,
  capability,
  umount,
  unix,

  # Whoever runs the container may signal and trace it; containers among themselves, too.
  signal (receive) peer=unconfined,
  signal (send,receive) peer=` + Profile + `,
  ptrace (readby,tracedby) peer=unconfined,
  ptrace (trace,read,readby,tracedby) peer=` + Profile + `,

  deny mount,

  # Files right below /proc, and all folders there that are no process.
  deny @{PROC}/* w,
  deny @{PROC}/{[^1-9],[^1-9][^0-9],[^1-9s][^0-9y][^0-9s],[^1-9][^0-9][^0-9][^0-9/]*}/** w,
  # /proc/sys but kernel/shm* and kernel/msg* and kernel/sem, which are of the IPC namespace.
  deny @{PROC}/sys/[^k]** w,
  deny @{PROC}/sys/kernel/[^ms]** w,
  deny @{PROC}/sys/kernel/m[^s]** w,
  deny @{PROC}/sys/kernel/s[^he]** w,
  deny @{PROC}/sysrq-trigger rwklx,
  deny @{PROC}/kcore rwklx,

  # /sys but the control groups.
  deny /sys/[^f]*/** wklx,
  deny /sys/f[^s]*/** wklx,
  deny /sys/fs/[^c]*/** wklx,
  deny /sys/fs/c[^g]*/** wklx,
  deny /sys/fs/cg[^r]*/** wklx,
  deny /sys/firmware/** rwklx,
  deny /sys/devices/virtual/powercap/** rwklx,
  deny /sys/kernel/security/** rwklx,
}
`
