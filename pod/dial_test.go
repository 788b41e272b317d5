package pod

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"os/exec"
	goruntime "runtime"
	"strconv"
	"testing"

	"golang.org/x/sys/unix"
)

func ownNetNS(t *testing.T) string {
	t.Helper()
	name, err := os.Readlink("/proc/thread-self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	return name
}

// listenInNew listens on 127.0.0.1 in a new network namespace, whose path it returns.
func listenInNew(t testing.TB) (netns string, addr netip.AddrPort) {
	t.Helper()
	type result struct {
		l   net.Listener
		fd  int
		err error
	}
	done := make(chan result)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends here
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- result{err: err}
			return
		}
		up := exec.Command("ip", "link", "set", "lo", "up")
		if err := up.Run(); err != nil {
			done <- result{err: err}
			return
		}
		fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		l, err2 := net.Listen("tcp", "127.0.0.1:0")
		done <- result{l, fd, errors.Join(err, err2)}
	}()
	r := <-done
	if r.err != nil {
		t.Skipf("make a network namespace: %v", r.err)
	}
	t.Cleanup(func() { r.l.Close(); _ = unix.Close(r.fd) })
	go func() {
		for {
			c, err := r.l.Accept()
			if err != nil {
				return
			}
			c.Close()
		}
	}()
	return "/proc/self/fd/" + strconv.Itoa(r.fd), r.l.Addr().(*net.TCPAddr).AddrPort()
}

func TestDialFromNamespace(t *testing.T) {
	goruntime.LockOSThread()
	defer goruntime.UnlockOSThread()
	home := ownNetNS(t)
	netns, addr := listenInNew(t)
	ctx := context.Background()
	for range 50 {
		conn, err := dialFrom(ctx, Pod{NetNS: netns}, addr)
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.RemoteAddr().String(); got != addr.String() {
			t.Fatalf("connected to %s, want %s", got, addr)
		}
		conn.Close()
		if now := ownNetNS(t); now != home {
			t.Fatalf("our thread is in %s, was in %s", now, home)
		}
	}
	if c, err := dialFrom(ctx, Pod{NetNS: netns}, netip.AddrPortFrom(addr.Addr(), 1)); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("a port where nobody listens: %v %v", c, err)
	}
	if _, err := dialFrom(ctx, Pod{NetNS: "/nonexistent"}, addr); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("a namespace that is gone: %v", err)
	}
	ended, cancel := context.WithCancel(ctx)
	cancel()
	if _, err := dialFrom(ended, Pod{NetNS: netns}, netip.MustParseAddrPort("192.0.2.1:1")); err == nil {
		t.Error("no error without a route")
	}
	for range 20 { // every thread that a goroutine may get is at home
		done := make(chan string)
		go func() { name, _ := os.Readlink("/proc/thread-self/ns/net"); done <- name }()
		if now := <-done; now != home {
			t.Errorf("a thread is in %s, want %s", now, home)
		}
	}
}

// What one connection from inside a namespace costs.
func BenchmarkDial(b *testing.B) {
	netns, addr := listenInNew(b)
	for b.Loop() {
		conn, err := dialFrom(context.Background(), Pod{NetNS: netns}, addr)
		if err != nil {
			b.Fatal(err)
		}
		conn.Close()
	}
}
