// pause owns a pod's namespaces: it is cloned straight into them, gives up all
// that it may do, and sleeps until it is killed. It is linked without a libc.
//
//   argv[1]  hostname to set, "" leaves it alone
//   argv[2]  uid and gid to become, in decimal
//   fd 3     an empty read-only mount that becomes the root
//   fd 4     ready pipe: one zero byte, then end of file, says that pause is
//            ready; any other byte is the number of the step that went wrong
//
// The only signal it takes is SIGCHLD (as PID 1 of a shared PID namespace it
// reaps zombies). SIGTERM has no effect, so that a root container in the same
// PID namespace cannot end the pod by it.
#include <asm/unistd.h>
#include <linux/audit.h>
#include <linux/capability.h>
#include <linux/filter.h>
#include <linux/prctl.h>
#include <linux/seccomp.h>
#include <linux/securebits.h>
#include <stddef.h>

#if defined(__x86_64__)
#define ARCH AUDIT_ARCH_X86_64
static long sys(long n, long a, long b, long c, long d, long e)
{
	long r;
	register long r10 __asm__("r10") = d;
	register long r8 __asm__("r8") = e;
	__asm__ volatile("syscall" : "=a"(r) : "a"(n), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
			 : "rcx", "r11", "memory");
	return r;
}
__asm__(".globl _start\n_start:\n\txor %ebp, %ebp\n\tmov %rsp, %rdi\n\tand $-16, %rsp\n\tcall pause_main\n");
#elif defined(__aarch64__)
#define ARCH AUDIT_ARCH_AARCH64
static long sys(long n, long a, long b, long c, long d, long e)
{
	register long x8 __asm__("x8") = n;
	register long x0 __asm__("x0") = a;
	register long x1 __asm__("x1") = b;
	register long x2 __asm__("x2") = c;
	register long x3 __asm__("x3") = d;
	register long x4 __asm__("x4") = e;
	__asm__ volatile("svc #0" : "+r"(x0) : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4) : "memory");
	return x0;
}
__asm__(".globl _start\n_start:\n\tmov x29, #0\n\tmov x0, sp\n\tbl pause_main\n");
#else
#error "pause knows x86-64 and arm64"
#endif

#define CALL(n, a, b, c, d) sys(__NR_##n, (long)(a), (long)(b), (long)(c), (long)(d), 0)
#define ROOT_FD 3
#define READY_FD 4
#define SIGNAL_CHLD 17
#define NO_HANG 1
#define LAST_CAP_TRIED 63

// Four calls are left after the start; close only serves to end the handshake.
#define ALLOW(nr) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (nr), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
static const struct sock_filter filter[] = {
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, arch)),
	BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, ARCH, 1, 0),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
	BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
	ALLOW(__NR_rt_sigtimedwait),
	ALLOW(__NR_wait4),
	ALLOW(__NR_close),
	ALLOW(__NR_exit_group),
	BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_KILL_PROCESS),
};

static void fail(char step)
{
	CALL(write, READY_FD, &step, 1, 0);
	for (;;)
		CALL(exit_group, step, 0, 0, 0);
}

static void check(long result, char step)
{
	if (result < 0)
		fail(step);
}

static long decimal(const char *s)
{
	long n = 0;
	while (*s >= '0' && *s <= '9')
		n = n * 10 + (*s++ - '0');
	return n;
}

static void enter_root(void)
{
	check(CALL(fchdir, ROOT_FD, 0, 0, 0), 2);
	check(CALL(chroot, ".", 0, 0, 0), 3);
	check(CALL(chdir, "/", 0, 0, 0), 4);
	CALL(close, ROOT_FD, 0, 0, 0);
}

static void drop_privileges(long id)
{
	struct __user_cap_header_struct head = {_LINUX_CAPABILITY_VERSION_3, 0};
	struct __user_cap_data_struct none[2] = {{0, 0, 0}, {0, 0, 0}};

	// Dropping a capability that the kernel does not know is an error to ignore.
	for (int cap = 0; cap <= LAST_CAP_TRIED; cap++)
		CALL(prctl, PR_CAPBSET_DROP, cap, 0, 0);
	check(CALL(prctl, PR_SET_SECUREBITS, SECBIT_NOROOT | SECBIT_NOROOT_LOCKED, 0, 0), 5);
	check(CALL(setgroups, 0, 0, 0, 0), 6);
	check(CALL(setresgid, id, id, id, 0), 7);
	check(CALL(setresuid, id, id, id, 0), 8);
	check(CALL(capset, &head, none, 0, 0), 9);
	check(CALL(prctl, PR_SET_NO_NEW_PRIVS, 1, 0, 0), 10);
	check(CALL(prctl, PR_SET_DUMPABLE, 0, 0, 0), 11);
}

static void confine(void)
{
	const struct sock_fprog program = {sizeof filter / sizeof *filter, (struct sock_filter *)filter};
	char ready = 0;

	// The byte goes out first, because write is not among the calls left.
	check(CALL(write, READY_FD, &ready, 1, 0), 12);
	check(CALL(prctl, PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program, 0), 13);
	CALL(close, READY_FD, 0, 0, 0);
}

__attribute__((used, noreturn)) void pause_main(long *stack)
{
	char **argv = (char **)(stack + 1);
	unsigned long all = ~0UL, chld = 1UL << (SIGNAL_CHLD - 1);
	long length = 0;

	CALL(rt_sigprocmask, 0, &all, 0, sizeof all);
	if (stack[0] < 3)
		fail(14);
	CALL(setsid, 0, 0, 0, 0);
	while (argv[1][length])
		length++;
	if (length)
		check(CALL(sethostname, argv[1], length, 0, 0), 1);
	enter_root();
	drop_privileges(decimal(argv[2]));
	confine();
	for (;;) {
		CALL(rt_sigtimedwait, &chld, 0, 0, sizeof chld);
		while (CALL(wait4, -1, 0, NO_HANG, 0) > 0)
			;
	}
}
