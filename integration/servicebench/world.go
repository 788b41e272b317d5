package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	goruntime "runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"

	"github.com/vishvananda/netns"
)

// The pod that answers has the address 10.1.0.2 and listens on these ports.
const (
	podAddr   = "10.1.0.2"
	firstPort = 8000
	hostAddr  = "192.168.7.1"
)

// world is this namespace as a host, with one pod and one other host that connects.
type world struct {
	other netns.NsHandle
}

func newWorld(ports int) (*world, error) {
	// Nobody else sees these mounts and this namespace.
	script := `set -eu
ip link set lo up
echo 1 >/proc/sys/net/ipv4/ip_forward
for f in iptables ip6tables; do echo 0 >/proc/sys/net/bridge/bridge-nf-call-$f; done 2>/dev/null || true
mount -t tmpfs ns /mnt; mkdir /mnt/ns; mount --bind /mnt/ns /mnt/ns; mount --make-private /mnt/ns
for n in pod other; do touch /mnt/ns/$n; unshare --net=/mnt/ns/$n true; ip link add $n type veth peer name eth0; done 2>/dev/null || true
`
	if out, err := exec.Command("sh", "-c", script).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make namespaces: %w: %s", err, out)
	}
	lines := `set -eu
ip link del pod 2>/dev/null || true; ip link del other 2>/dev/null || true
ip link add pod type veth peer name podpeer; ip link add other type veth peer name otherpeer
ip link set podpeer netns /mnt/ns/pod; ip link set otherpeer netns /mnt/ns/other
ip addr add 10.1.0.1/24 dev pod; ip link set pod up
ip addr add ` + hostAddr + `/24 dev other; ip link set other up
nsenter --net=/mnt/ns/pod sh -euc 'ip link set lo up; ip addr add ` + podAddr + `/24 dev podpeer; ip link set podpeer up; ip route add default via 10.1.0.1'
nsenter --net=/mnt/ns/other sh -euc 'ip link set lo up; ip addr add 192.168.7.2/24 dev otherpeer; ip link set otherpeer up; ip route add default via ` + hostAddr + `'
ip route add default via 192.168.7.2`
	if out, err := exec.Command("sh", "-c", lines).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("make links: %w: %s", err, out)
	}
	other, err := netns.GetFromPath("/mnt/ns/other")
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	pod, err := netns.GetFromPath("/mnt/ns/pod")
	if err != nil {
		return nil, fmt.Errorf("open namespace: %w", err)
	}
	for i := range ports {
		err := within(pod, func() error {
			ln, err := new(net.ListenConfig).Listen(context.Background(), "tcp4", ":"+strconv.Itoa(firstPort+i))
			if err != nil {
				return err
			}
			go func() {
				for {
					c, err := ln.Accept()
					if err != nil {
						return
					}
					c.Close()
				}
			}()
			return nil
		})
		if err != nil {
			return nil, err
		}
	}
	return &world{other}, nil
}

// within calls f on a thread in the namespace.
func within(ns netns.NsHandle, f func() error) error {
	done := make(chan error)
	go func() {
		goruntime.LockOSThread() // and never unlocked: the thread ends with this
		err := netns.Set(ns)
		if err == nil {
			err = f()
		}
		done <- err
	}()
	return <-done
}

// connect is the median time of n connects from the other host.
func (w *world) connect(to string, n int) (float64, error) {
	var times []time.Duration
	err := within(w.other, func() error {
		failed := 0
		for len(times) < n {
			began := time.Now()
			c, err := net.DialTimeout("tcp", to, time.Second)
			if err != nil {
				// A port that was tried before there were rules: the kernel remembers.
				if failed++; failed > 50 {
					return err
				}
				continue
			}
			times = append(times, time.Since(began))
			c.Close()
		}
		return nil
	})
	return median(times), err
}

// reachable waits until the address answers (or not), and returns how long that took.
func (w *world) reachable(to string, want bool, limit time.Duration) (took time.Duration, err error) {
	began := time.Now()
	err = within(w.other, func() error {
		for time.Since(began) < limit {
			c, err := net.DialTimeout("tcp", to, 20*time.Millisecond)
			if err == nil {
				c.Close()
			}
			if (err == nil) == want {
				return nil
			}
			// Each try in vain is remembered as a connection without translation.
			time.Sleep(min(time.Millisecond+time.Since(began)/20, 200*time.Millisecond))
		}
		return fmt.Errorf("%s after %s: reachable %v", to, limit, !want)
	})
	return time.Since(began), err
}

func median(times []time.Duration) float64 {
	if len(times) == 0 {
		return 0
	}
	slices.Sort(times)
	return times[len(times)/2].Seconds()
}

// kernelMemory counts what the kernel allocates for this process and those that
// it starts, by a memory cgroup of its own.
type kernelMemory struct{ dir, file string }

func newKernelMemory() (kernelMemory, error) {
	m := kernelMemory{dir: fmt.Sprintf("/sys/fs/cgroup/memory/servicebench-%d", os.Getpid()), file: "memory.kmem.usage_in_bytes"}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil { // v2: what of it is the kernel's is in memory.stat
		m = kernelMemory{dir: fmt.Sprintf("/sys/fs/cgroup/servicebench-%d", os.Getpid()), file: "memory.stat"}
	}
	if err := os.Mkdir(m.dir, 0o755); err != nil { //nolint:gosec // as others there
		return m, fmt.Errorf("count the kernel's memory: %w", err)
	}
	if err := os.WriteFile(m.dir+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return m, fmt.Errorf("count the kernel's memory: %w", err)
	}
	return m, nil
}

func (m kernelMemory) mb() float64 {
	raw, err := os.ReadFile(m.dir + "/" + m.file)
	if err != nil {
		return 0
	}
	text := strings.TrimSpace(string(raw))
	for line := range strings.Lines(text) {
		if n, ok := strings.CutPrefix(line, "kernel "); ok {
			text = strings.TrimSpace(n)
		}
	}
	n, err := strconv.ParseFloat(text, 64)
	if err != nil {
		return 0
	}
	return n / (1 << 20)
}

// close leaves the cgroup and removes it.
func (m kernelMemory) close() error {
	parent := m.dir[:strings.LastIndexByte(m.dir, '/')]
	if err := os.WriteFile(parent+"/cgroup.procs", []byte(strconv.Itoa(os.Getpid())), 0o600); err != nil {
		return fmt.Errorf("leave the cgroup: %w", err)
	}
	// What a program started that was killed takes a moment to end.
	for range 50 {
		if err := os.Remove(m.dir); !errors.Is(err, syscall.EBUSY) {
			return err
		}
		time.Sleep(100 * time.Millisecond)
	}
	return os.Remove(m.dir)
}

func rssMB(pid int) float64 {
	return procMB(fmt.Sprintf("/proc/%d/status", pid), "VmRSS:")
}

// procMB adds up lines of kilobytes.
func procMB(path string, names ...string) float64 {
	f, err := os.Open(path)
	if err != nil {
		return 0
	}
	defer f.Close()
	sum := 0
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) > 1 && slices.Contains(names, fields[0]) {
			n, _ := strconv.Atoi(fields[1]) // what is no number is nothing
			sum += n
		}
	}
	return float64(sum) / 1024
}

// vip is the cluster IP of the nth Service.
func vip(i int) netip.Addr { return netip.AddrFrom4([4]byte{10, 96, byte(1 + i>>8), byte(i)}) }

// endpointOf is an address that nobody has; that of -1 comes before all others, in
// the first slot.
func endpointOf(i, e int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(100 + e), byte(i >> 8), byte(i)})
}
