//go:build cgo

package keeper

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	goruntime "runtime"
	"strconv"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

const (
	ptraceGetFilter = 0x420c // PTRACE_SECCOMP_GET_FILTER
	instructionSize = 8
)

// compiledFilter is what the kernel gets for a profile. libcontainer adds to what
// libseccomp compiles, so it is read back from a process that has it, as CRIU does.
func compiledFilter(ctx context.Context, profile []byte) (_ []byte, err error) {
	ctx, cancel := context.WithTimeout(ctx, compilePatience)
	defer cancel()
	cmd := exec.CommandContext(ctx, "/proc/self/exe", CompileCommand)
	stdin, err := cmd.StdinPipe()
	if err != nil {
		return nil, err
	}
	null, err := os.OpenFile(os.DevNull, os.O_WRONLY, 0)
	if err != nil {
		return nil, err
	}
	defer null.Close()
	cmd.ExtraFiles = []*os.File{null} // what the cache would get
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("run compiler: %w", err)
	}
	defer func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}()
	if _, err := stdin.Write(profile); err != nil {
		return nil, fmt.Errorf("tell the compiler the profile: %w", err)
	}
	for ; ctx.Err() == nil; time.Sleep(time.Millisecond) {
		if thread := filteredThread(cmd.Process.Pid); thread != 0 {
			return filterOf(thread)
		}
	}
	return nil, fmt.Errorf("wait for the compiler: %w", ctx.Err())
}

// filteredThread is the thread of a process that has a seccomp filter; 0 for none.
func filteredThread(pid int) int {
	files, _ := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/status", pid))
	for _, file := range files {
		status, _ := os.ReadFile(file)
		if bytes.Contains(status, []byte("\nSeccomp:\t2\n")) {
			thread, _ := strconv.Atoi(filepath.Base(filepath.Dir(file)))
			return thread
		}
	}
	return 0
}

// filterOf reads the filter of a thread of a child.
func filterOf(thread int) (filter []byte, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		goruntime.LockOSThread() // a tracer is a thread; this one ends with the goroutine
		filter, err = tracedFilter(thread)
	}()
	<-done
	return filter, err
}

func tracedFilter(thread int) ([]byte, error) {
	if err := unix.PtraceSeize(thread); err != nil {
		return nil, fmt.Errorf("trace the compiler: %w", err)
	}
	if err := unix.PtraceInterrupt(thread); err != nil {
		return nil, fmt.Errorf("stop the compiler: %w", err)
	}
	var status unix.WaitStatus
	for {
		_, err := unix.Wait4(thread, &status, unix.WALL, nil)
		if err == nil {
			break
		}
		if !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("wait for the compiler: %w", err)
		}
	}
	if !status.Stopped() {
		return nil, errors.New("the compiler has ended behind its own filter")
	}
	count, _, errno := unix.Syscall6(unix.SYS_PTRACE, ptraceGetFilter, uintptr(thread), 0, 0, 0, 0)
	if errno != 0 || count == 0 {
		return nil, fmt.Errorf("measure the filter: %w", errno)
	}
	filter := make([]byte, count*instructionSize)
	if _, _, errno = unix.Syscall6(unix.SYS_PTRACE, ptraceGetFilter, uintptr(thread), 0, uintptr(unsafe.Pointer(&filter[0])), 0, 0); errno != 0 {
		return nil, fmt.Errorf("read the filter: %w", errno)
	}
	return filter, nil
}
