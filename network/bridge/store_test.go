package bridge

import (
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
)

func testStore(t testing.TB) *store {
	t.Helper()
	s, err := openStore(t.TempDir(), "net")
	if err != nil {
		t.Fatal(err)
	}
	return s
}

func left(t testing.TB, s *store) int {
	t.Helper()
	n := 0
	for _, sub := range []string{"addresses", "ports", "attached", "detached"} {
		names, err := s.names(sub)
		if err != nil {
			t.Fatal(err)
		}
		n += len(names)
	}
	return n
}

func TestTenThousandCyclesOnASmallRange(t *testing.T) {
	s := testStore(t)
	for _, r := range []netip.Prefix{netip.MustParsePrefix("10.0.0.16/28"), netip.MustParsePrefix("fd00::10/124")} {
		seen := map[netip.Addr]int{}
		for i := range 10_000 {
			owner := fmt.Sprintf("id%d:eth0", i)
			a, err := s.allocate(r, owner)
			if err != nil {
				t.Fatalf("cycle %d: %v", i, err)
			}
			seen[a]++
			if !r.Contains(a) || a == r.Addr() || a == r.Addr().Next() || isBroadcast(r, a) {
				t.Fatalf("cycle %d: %s is not for pods", i, a)
			}
			known := []netip.Addr{a}
			if i%2 == 0 {
				known = nil // as after a crash before the record
			}
			if err := s.releaseAddrs(owner, known); err != nil {
				t.Fatal(err)
			}
		}
		if len(seen) != usable(r) {
			t.Errorf("%s: used %d addresses in turn, want %d", r, len(seen), usable(r))
		}
	}
	if n := left(t, s); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

func TestFullRange(t *testing.T) {
	s := testStore(t)
	r := netip.MustParsePrefix("10.0.0.0/28")
	var last netip.Addr
	for i := range usable(r) {
		a, err := s.allocate(r, fmt.Sprintf("id%d:eth0", i))
		if err != nil {
			t.Fatal(err)
		}
		last = a
	}
	if _, err := s.allocate(r, "more:eth0"); !errors.Is(err, errFull) {
		t.Fatalf("got %v", err)
	}
	if err := s.releaseAddrs("other:eth0", []netip.Addr{last}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.allocate(r, "more:eth0"); !errors.Is(err, errFull) {
		t.Error("somebody else's release freed the address")
	}
	if err := s.releaseAddrs(fmt.Sprintf("id%d:eth0", usable(r)-1), []netip.Addr{last}); err != nil {
		t.Fatal(err)
	}
	if a, err := s.allocate(r, "more:eth0"); err != nil || a != last {
		t.Errorf("got %s, %v; want %s", a, err, last)
	}
}

func TestSixteenAllocateAtOnce(t *testing.T) {
	s := testStore(t)
	r := netip.MustParsePrefix("10.0.0.0/26")
	var mu sync.Mutex
	held := map[netip.Addr]string{}
	var wg sync.WaitGroup
	for i := range 16 {
		wg.Go(func() {
			for n := range 200 {
				owner := fmt.Sprintf("id%d-%d:eth0", i, n)
				a, err := s.allocate(r, owner)
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				if other := held[a]; other != "" {
					t.Errorf("%s is given to %s and %s", a, other, owner)
				}
				held[a] = owner
				mu.Unlock()
				mu.Lock()
				delete(held, a)
				mu.Unlock()
				if err := s.releaseAddrs(owner, []netip.Addr{a}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if n := left(t, s); n != 0 {
		t.Errorf("%d entries are left", n)
	}
}

// An address that is released is given again after all others that are free.
func TestAddressReleasedFirstIsGivenFirst(t *testing.T) {
	for _, r := range []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28"), netip.MustParsePrefix("fd00::/124")} {
		s := testStore(t)
		var held []netip.Addr
		for i := range usable(r) {
			a, err := s.allocate(r, fmt.Sprintf("id%d:eth0", i))
			if err != nil {
				t.Fatal(err)
			}
			held = append(held, a)
		}
		order := rand.New(rand.NewPCG(1, 2)).Perm(len(held))
		for _, i := range order {
			if err := s.releaseAddrs(fmt.Sprintf("id%d:eth0", i), held[i:i+1]); err != nil {
				t.Fatal(err)
			}
		}
		for _, i := range order {
			if a, err := s.allocate(r, "again:eth0"); err != nil || a != held[i] {
				t.Errorf("got %s, %v; want %s, which is free for longest", a, err, held[i])
			}
		}
	}
}

// However many allocate at once, no address comes back while others have been
// free for longer.
func TestNoAddressComesBackSoon(t *testing.T) {
	const workers, cycles = 16, 150
	s := testStore(t)
	r := netip.MustParsePrefix("10.0.0.0/24")
	var turn atomic.Int64
	var last sync.Map // of each address, when it was asked for
	var all sync.WaitGroup
	soonest := make([]int64, workers)
	for w := range workers {
		soonest[w] = math.MaxInt64
		all.Go(func() {
			for i := range cycles {
				owner := fmt.Sprintf("id%d-%d:eth0", w, i)
				asked := turn.Load()
				a, err := s.allocate(r, owner)
				if err != nil {
					t.Error(err)
					return
				}
				given := turn.Add(1)
				if before, again := last.Swap(a, asked); again {
					soonest[w] = min(soonest[w], given-before.(int64))
				}
				if err := s.releaseAddrs(owner, []netip.Addr{a}); err != nil {
					t.Error(err)
				}
			}
		})
	}
	all.Wait()
	// Each worker may hold one, and have one that is not counted yet.
	if got, want := slices.Min(soonest), int64(usable(r)-2*workers); got < want {
		t.Errorf("an address was given again after %d others, want %d", got, want)
	}
}

// Whoever is killed while it takes or releases an address leaves one that is held
// or free, and never both or neither; a store without an order still gives addresses.
func TestAddressHalfReleased(t *testing.T) {
	s := testStore(t)
	r := netip.MustParsePrefix("10.0.0.0/29")
	a, err := s.allocate(r, "one:eth0")
	if err != nil {
		t.Fatal(err)
	}
	s.noteRelease([]string{a.String()}) // killed before the release
	for i := range usable(r) - 1 {
		if b, err := s.allocate(r, fmt.Sprint("id", i, ":eth0")); err != nil || a == b {
			t.Fatalf("got %s, %v; %s is held", b, err, a)
		}
	}
	if _, err := s.allocate(r, "more:eth0"); !errors.Is(err, errFull) {
		t.Errorf("got %v", err)
	}
	if err := os.WriteFile(s.path("cursor", "released"), []byte("10.0.0.\nwhat"), 0o600); err != nil { // cut off
		t.Fatal(err)
	}
	if err := s.releaseAddrs("one:eth0", []netip.Addr{a}); err != nil {
		t.Fatal(err)
	}
	if b, err := s.allocate(r, "more:eth0"); err != nil || a != b {
		t.Errorf("got %s, %v; want %s", b, err, a)
	}
}

// What is remembered of a large range does not grow without end.
func TestReleasesRememberedAreBounded(t *testing.T) {
	s := testStore(t)
	r := netip.MustParsePrefix("fd00::/64")
	var text string
	for i := range 3 * remembered {
		text = fmt.Sprintf("fd00::1:%x", i)
		s.noteRelease([]string{text})
	}
	if _, err := s.allocate(r, "one:eth0"); err != nil {
		t.Fatal(err)
	}
	past, err := s.releases()
	if err != nil {
		t.Fatal(err)
	}
	if all := slices.Collect(past.oldestFirst()); len(all) != remembered || all[remembered-1] != text {
		t.Errorf("remembered are %v, want %d, the last %s", all, remembered, text)
	}
}

func TestAnotherBootEmptiesTheStore(t *testing.T) {
	s := testStore(t)
	if _, err := s.allocate(netip.MustParsePrefix("10.0.0.0/28"), "id:eth0"); err != nil {
		t.Fatal(err)
	}
	dir, name := filepath.Split(s.dir)
	if _, err := openStore(dir, name); err != nil || left(t, s) != 1 {
		t.Fatalf("opened again in the same boot: %v, %d entries", err, left(t, s))
	}
	if err := os.WriteFile(s.path("boot"), []byte("another"), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := openStore(dir, name); err != nil || left(t, s) != 0 {
		t.Fatalf("opened in another boot: %v, %d entries", err, left(t, s))
	}
}

func TestUnreadableRecordIsPassedOver(t *testing.T) {
	s := testStore(t)
	for owner, content := range map[string]string{"a:eth0": "{", "b:eth0": `{"version":9,"owner":"b:eth0"}`} {
		if err := os.WriteFile(s.path("attached", owner), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.save(attachment{Version: attachmentVersion, Owner: "c:eth0"}); err != nil {
		t.Fatal(err)
	}
	all, err := s.attachments("attached")
	if len(all) != 1 || all[0].Owner != "c:eth0" || err == nil {
		t.Errorf("got %v, %v", all, err)
	}
}

func TestPortClaims(t *testing.T) {
	pod := []netip.Addr{netip.MustParseAddr("10.0.0.5"), netip.MustParseAddr("fd00::5")}
	s := testStore(t)
	claim := func(owner string, m ...PortMapping) error {
		ports, err := resolvePorts(m, pod)
		if err != nil {
			return err
		}
		return s.claimPorts(owner, "ns/"+owner, ports)
	}
	for _, tc := range []struct {
		owner string
		port  PortMapping
		want  string
	}{
		{"a", PortMapping{HostPort: 80, ContainerPort: 8080, Protocol: "TCP"}, ""},
		{"b", PortMapping{HostPort: 80, ContainerPort: 8080, Protocol: "tcp"}, "pod ns/a has tcp"},
		{"b", PortMapping{HostPort: 80, ContainerPort: 8080, Protocol: "tcp", HostIP: "fd00::1"}, "pod ns/a has tcp [::]:80"},
		{"b", PortMapping{HostPort: 80, ContainerPort: 8080, Protocol: "sctp"}, ""},
		{"c", PortMapping{HostPort: 81, ContainerPort: 8080, Protocol: "tcp", HostIP: "::ffff:192.0.2.1"}, ""},
		{"d", PortMapping{HostPort: 81, ContainerPort: 8080, Protocol: "tcp", HostIP: "192.0.2.1"}, "pod ns/c"},
		{"d", PortMapping{HostPort: 81, ContainerPort: 8080, Protocol: "tcp"}, "pod ns/c"},
		{"d", PortMapping{HostPort: 70000, ContainerPort: 8080}, "want 1 to 65535"},
		{"d", PortMapping{HostPort: 81, ContainerPort: 8080, HostIP: "fe80::1%eth0"}, "is not an address"},
	} {
		err := claim(tc.owner, tc.port)
		if (err == nil) != (tc.want == "") || err != nil && !strings.Contains(err.Error(), tc.want) {
			t.Errorf("%s %+v: got %v, want %q", tc.owner, tc.port, err, tc.want)
		}
	}
	if err := claim("e", PortMapping{HostPort: 90, ContainerPort: 1}, PortMapping{HostPort: 90, ContainerPort: 2, HostIP: "192.0.2.1"}); err == nil {
		t.Error("one pod may have a port twice")
	}
	ports, err := s.portsOf("a")
	if err != nil || len(ports) != 2 {
		t.Fatalf("ports of a: %v, %v", ports, err)
	}
	if err := s.removePorts("b", ports); err != nil {
		t.Fatal(err)
	}
	if ports, _ = s.portsOf("a"); len(ports) != 2 {
		t.Error("somebody else's release freed the ports")
	}
	if err := s.removePorts("a", ports); err != nil {
		t.Fatal(err)
	}
	if err := claim("b", PortMapping{HostPort: 80, ContainerPort: 1}); err != nil {
		t.Errorf("after release: %v", err)
	}
}

func FuzzParseConf(f *testing.F) {
	f.Add([]byte(`{"cniVersion":"1.1.0","name":"n","type":"pausa","ranges":["10.0.0.0/24","fd00::/64"]}`))
	f.Add([]byte(`{"name":"n","ranges":["10.0.0.0/32"]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		c, err := ParseConf(data)
		if err == nil && (len(c.Ranges) == 0 || c.Bridge == "" || strings.ContainsAny(c.Name+c.Bridge, "/ ")) {
			t.Errorf("accepted %+v", c)
		}
	})
}

func TestSweepOfRecordsHalfWritten(t *testing.T) {
	s := testStore(t)
	for _, name := range []string{".tmp-dead:eth0-123", ".tmp-mine:eth0-45", "dead:eth1"} {
		if err := os.WriteFile(s.path("attached", name), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.sweepTemp(func(owner string) bool { return owner == "mine:eth0" }); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{".tmp-dead:eth0-123": false, ".tmp-mine:eth0-45": true, "dead:eth1": true} {
		if _, err := os.Lstat(s.path("attached", name)); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", name, err, want)
		}
	}
}

func BenchmarkAllocate(b *testing.B) {
	for _, r := range []string{"10.0.0.0/28", "10.0.0.0/24", "10.0.0.0/16"} {
		b.Run(r, func(b *testing.B) {
			s, r := testStore(b), netip.MustParsePrefix(r)
			for b.Loop() {
				a, err := s.allocate(r, "id:eth0")
				if err == nil {
					err = s.releaseAddrs("id:eth0", []netip.Addr{a})
				}
				if err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
