//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"os"
	"time"
	"unsafe"

	"github.com/opencontainers/runc/libcontainer/system"
	"golang.org/x/sys/unix"
)

// process is a process that ends only once for us: a pidfd cannot come to mean another one.
type process struct {
	pid       int
	startTime uint64 // clock ticks since boot
	fd        *os.File
}

// openProcess takes hold of pid. With startTime not 0 it must be the process that started then.
func openProcess(pid int, startTime uint64) (*process, error) {
	fd, err := unix.PidfdOpen(pid, unix.PIDFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return newProcess(pid, fd, startTime)
}

func newProcess(pid, fd int, startTime uint64) (*process, error) {
	p := &process{pid: pid, fd: os.NewFile(uintptr(fd), "pidfd")}
	stat, err := system.Stat(pid)
	if err == nil && startTime != 0 && stat.StartTime != startTime {
		err = fmt.Errorf("it is another process now")
	}
	if err != nil {
		_ = p.fd.Close()
		return nil, fmt.Errorf("check process %d: %w", pid, err)
	}
	p.startTime = stat.StartTime
	return p, nil
}

func (p *process) signal(sig unix.Signal) error {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return nil // closed: it has ended and was collected
	}
	var sent error
	if err := raw.Control(func(fd uintptr) { sent = unix.PidfdSendSignal(int(fd), sig, nil, 0) }); err != nil {
		return nil
	}
	if errors.Is(sent, unix.ESRCH) {
		return nil
	}
	return sent
}

// ended says that the process runs no more; it may not have been collected yet.
func (p *process) ended() bool {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return true
	}
	ended := true // what is closed was waited for
	_ = raw.Control(func(fd uintptr) {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(poll, 0)
		ended = n > 0
	})
	return ended
}

// ending is how a process ended. known is false when nobody could say.
type ending struct {
	code, signal int
	known        bool
}

// wait blocks, without a thread of its own, until the process has ended, and
// collects it when it is a child. For any other process the kernel tells the
// code through the pidfd (from 6.15 on), once its own parent has collected it.
func (p *process) wait() ending {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return ending{}
	}
	var end ending
	child := true
	_ = raw.Read(func(fd uintptr) bool {
		var done bool
		end, done, child = collect(int(fd))
		return done || !child
	})
	if !child {
		end = p.waitStranger()
	}
	_ = p.fd.Close()
	return end
}

// siginfo is what waitid fills in for a child; the padding makes it the kernel's 128 bytes.
type siginfo struct {
	signo, errno, code int32
	_                  int32
	pid                int32
	uid                uint32
	status             int32
	_                  [100]byte
}

const (
	waitPidfd    = 3 // P_PIDFD
	codeExited   = 1 // CLD_EXITED
	pidInfoExit  = 1 << 3
	pidfdGetInfo = 0xC040FF0B // _IOWR(0xFF, 11, 64 bytes)
)

func collect(fd int) (end ending, done, child bool) {
	var info siginfo
	for {
		_, _, errno := unix.Syscall6(unix.SYS_WAITID, waitPidfd, uintptr(fd), uintptr(unsafe.Pointer(&info)), unix.WEXITED|unix.WNOHANG, 0, 0)
		switch {
		case errno == unix.EINTR:
			continue
		case errno == unix.EAGAIN:
			return end, false, true // a nonblocking pidfd of a child that runs
		case errno != 0:
			return end, false, false
		case info.pid == 0:
			return end, false, true
		case info.code == codeExited:
			return ending{code: int(info.status), known: true}, true, true
		}
		return ending{code: 128 + int(info.status), signal: int(info.status), known: true}, true, true
	}
}

// strangerPatience bounds how long the code of a process is awaited that is somebody else's child.
const strangerPatience = 3 * time.Second

func (p *process) waitStranger() ending {
	raw, err := p.fd.SyscallConn()
	if err != nil {
		return ending{}
	}
	_ = raw.Read(func(fd uintptr) bool {
		poll := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}
		n, _ := unix.Poll(poll, 0)
		return n > 0
	})
	var end ending
	for deadline := time.Now().Add(strangerPatience); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		var supported bool
		_ = raw.Control(func(fd uintptr) { end, supported = exitInfo(int(fd)) })
		if end.known || !supported {
			break
		}
	}
	return end
}

// pidfdInfo is struct pidfd_info of the kernel, first version.
type pidfdInfo struct {
	mask, cgroupID  uint64
	pid, tgid, ppid uint32
	ids             [8]uint32
	exitCode        int32
}

func exitInfo(fd int) (end ending, supported bool) {
	info := pidfdInfo{mask: pidInfoExit}
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), pidfdGetInfo, uintptr(unsafe.Pointer(&info)))
	if errno != 0 {
		return end, errno == unix.ESRCH || errno == unix.EINTR
	}
	if info.mask&pidInfoExit == 0 {
		return end, true
	}
	status := unix.WaitStatus(info.exitCode)
	if status.Signaled() {
		return ending{code: 128 + int(status.Signal()), signal: int(status.Signal()), known: true}, true
	}
	return ending{code: status.ExitStatus(), known: true}, true
}
