// Package thread runs functions on operating-system threads of their own, for
// what a thread can do to itself alone, such as entering a namespace. The thread
// ends with the function: no other goroutine can come to run on it.
package thread

import (
	"fmt"
	goruntime "runtime"

	"golang.org/x/sys/unix"
)

// Run calls f on a new thread and returns its error. It is never the process's
// first one, which cannot end: /proc/self, and /proc/net with it, would stay where f has taken it.
func Run(f func() error) error {
	done := make(chan error, 1)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends with the goroutine
		if unix.Gettid() == unix.Getpid() {
			err := Run(f) // not here, as this goroutine keeps the first thread
			goruntime.UnlockOSThread()
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

// InNetNS is Run in the network namespace that fd is open on. Goroutines that f
// starts are outside of it.
func InNetNS(fd int, f func() error) error {
	return Run(func() error {
		if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter network namespace: %w", err)
		}
		return f()
	})
}

// InNetNSAt is InNetNS for the namespace at path.
func InNetNSAt(path string, f func() error) error {
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open network namespace %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fd) }()
	return InNetNS(fd, f)
}
