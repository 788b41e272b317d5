package host

import (
	"fmt"
	"io"
	"os"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// initName is argument 0 of a host's process 1.
const initName = "pausa-host-init"

// Main becomes the process 1 of a host when the program was started as such,
// and then does not return. Programs that call Start call it first.
func Main() {
	if len(os.Args) != 1 || os.Args[0] != initName || os.Getpid() != 1 {
		return
	}
	if err := setUp(os.Getenv("PAUSA_HOST_NAME")); err != nil {
		fmt.Fprintln(os.Stderr, "host init:", err)
		os.Exit(1)
	}
	go func() {
		// The other end is closed, or its process is gone: so is the host.
		_, _ = io.Copy(io.Discard, os.Stdin)
		os.Exit(0)
	}()
	fmt.Print("ready")
	os.Stdout.Close()
	reap()
}

// setUp makes the mounts of a host private, gives it its own /proc and /run, and raises lo.
func setUp(name string) error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("make mounts private: %w", err)
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	if err := unix.Mount("run", "/run", "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755"); err != nil {
		return fmt.Errorf("mount /run: %w", err)
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("find lo: %w", err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		return fmt.Errorf("raise lo: %w", err)
	}
	return nil
}

// reap collects whatever ends in the host, for ever.
func reap() {
	for {
		// The parent of nobody waits for its next orphan.
		if _, err := unix.Wait4(-1, nil, 0, nil); err == unix.ECHILD {
			_ = unix.Nanosleep(&unix.Timespec{Nsec: 5e6}, nil)
		}
	}
}
