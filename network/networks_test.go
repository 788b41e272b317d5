package network

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

func TestSeveralRanges(t *testing.T) {
	h := hosttest.New(t)
	m := newManager(t, h, func(o *Options) { o.PodCIDRs = must(prefixes("10.9.0.0/30", "fd09::/64", "10.8.0.0/29")) })
	must0(t, m.Sync(t.Context()))
	var pods []*hosttest.Host
	var got []netip.Addr
	for i := range 6 { // 1 fits into the first range, 5 into the third
		p, r := newPod(t, m, fmt.Sprint("pod", i))
		pods, got = append(pods, p), append(got, r.IPs[0])
	}
	if fmt.Sprint(got) != "[10.9.0.2 10.8.0.2 10.8.0.3 10.8.0.4 10.8.0.5 10.8.0.6]" {
		t.Errorf("got %v", got)
	}
	pods[0].Serve("first", "tcp", ap("[::]:80"))
	wantCall(t, pods[5], "tcp", netip.AddrPortFrom(got[0], 80), "first 10.8.0.6")
	if err := m.Status(t.Context()); err == nil || !strings.Contains(err.Error(), "no free address") {
		t.Errorf("status of full ranges: %v", err)
	}
	for i := range pods {
		must0(t, m.Check(t.Context(), fmt.Sprint("pod", i)))
		detach(t, m, fmt.Sprint("pod", i))
	}
	wantNothing(t, h, m)
}

func TestNetworksAreApart(t *testing.T) {
	h, other, m := twoHosts(t, func(o *Options) {
		o.Networks = []Named{
			{"blue", must(prefixes("10.90.0.0/24", "fd90::/64"))},
			{"green", must(prefixes("10.91.0.0/24", "fd91::/64"))},
		}
		o.Connected = [][2]string{{"green", "pausa"}}
	})
	pods, results := map[string]*hosttest.Host{}, map[string]Result{}
	for _, name := range []string{"pausa", "blue", "green"} {
		p, r, err := podWith(t, m, "pod"+name, map[string]string{AnnotationNetwork: name})
		if err != nil || r.Network != name {
			t.Fatalf("%s: %+v, %v", name, r, err)
		}
		p.Serve(name, "tcp", ap("[::]:80"))
		pods[name], results[name] = p, r
	}
	other.Serve("other", "tcp", ap("[::]:80"))
	connected := map[string]bool{"green pausa": true, "pausa green": true}
	for from := range pods {
		for to := range pods {
			for i, ip := range results[to].IPs {
				if from == to || connected[from+" "+to] {
					want := to + " " + results[from].IPs[i].String()
					wantCall(t, pods[from], "tcp", netip.AddrPortFrom(ip, 80), want)
					continue
				}
				if _, err := pods[from].Call("tcp", netip.AddrPortFrom(ip, 80)); !errors.Is(err, unix.ECONNREFUSED) {
					t.Errorf("%s to %s: %v, want a refusal at once", from, to, err)
				}
			}
		}
		wantCall(t, pods[from], "tcp", ap("192.0.2.2:80"), "other 192.0.2.1")
		must0(t, m.Check(t.Context(), "pod"+from))
	}
	if what, err := damage(m); what != "" || err != nil {
		t.Errorf("damage at first: %q, %v", what, err)
	}
	must(h.Run("ip", "link", "del", "pausa0-blue"))
	if what, err := damage(m); what != "BridgeDeleted: bridge pausa0-blue is gone" || err != nil {
		t.Errorf("damage: %q, %v", what, err)
	}
	must0(t, m.Sync(t.Context()))
	wantCall(t, h, "tcp", netip.AddrPortFrom(results["blue"].IPs[0], 80), "blue 10.90.0.1")
	for name := range pods {
		detach(t, m, "pod"+name)
	}
	wantNothing(t, h, m)
}

func TestNamedNetworksAreChecked(t *testing.T) {
	ranges := must(prefixes("10.9.0.0/24"))
	blue := Named{"blue", must(prefixes("10.90.0.0/24"))}
	for want, tc := range map[string]struct {
		all       []Named
		connected [][2]string
	}{
		"lower-case letters":   {all: []Named{{"Blue", blue.Ranges}}},
		"longer than 15":       {all: []Named{{"ultramarine", blue.Ranges}}},
		"two of this name":     {all: []Named{blue, blue}},
		"network pausa: there": {all: []Named{{"pausa", blue.Ranges}}},
		"overlap":              {all: []Named{{"blue", ranges}}},
		"no ranges":            {all: []Named{{"blue", nil}}},
		"there is no network":  {all: []Named{blue}, connected: [][2]string{{"blue", "red"}}},
		"want two networks":    {all: []Named{blue}, connected: [][2]string{{"blue", "blue"}}},
	} {
		if err := CheckNamed("pausa0", ranges, tc.all, tc.connected); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("got %v, want %q", err, want)
		}
	}
	if err := CheckNamed("pausa0", ranges, []Named{blue}, [][2]string{{"blue", "pausa"}}); err != nil {
		t.Error(err)
	}
}

// TestConfFolderIsFollowed: appearing parents, links that change, bad files: the next look sees it.
func TestConfFolderIsFollowed(t *testing.T) {
	h := hosttest.New(t)
	var logged strings.Builder
	top := t.TempDir()
	m := newManager(t, h, func(o *Options) { o.ConfDir, o.BinDirs, o.Log = top+"/etc/cni/net.d", []string{top}, textLog(&logged) })
	now := func(want string) {
		t.Helper()
		name := ""
		list, err := m.confList()
		if err == nil {
			name = list.Name
		}
		if name != want {
			t.Errorf("network %q, %v; want %q", name, err, want)
		}
	}
	write := func(dir, file, text string) {
		t.Helper()
		must0(t, os.MkdirAll(dir, 0o700))
		must0(t, os.WriteFile(dir+"/"+file, []byte(text), 0o600))
	}
	conf := func(name string) string {
		return fmt.Sprintf(`{"cniVersion":"1.0.0","name":%q,"plugins":[{"type":"fake"}]}`, name)
	}
	now("pausa")
	write(top+"/one", "10.conflist", conf("one"))
	write(top+"/two", "10.conflist", conf("two"))
	must0(t, os.MkdirAll(top+"/etc/cni", 0o700))
	must0(t, os.Symlink(top+"/one", top+"/etc/cni/net.d"))
	now("one")
	must0(t, os.Symlink(top+"/two", top+"/etc/cni/next")) // as a config map's volume is changed
	must0(t, os.Rename(top+"/etc/cni/next", top+"/etc/cni/net.d"))
	now("two")
	write(top+"/two", "05.conflist", "{")
	now("two")
	now("two")
	must0(t, os.Remove(top+"/two/10.conflist"))
	now("")
	must0(t, os.RemoveAll(top+"/etc"))
	now("pausa")
	if n := strings.Count(logged.String(), "05.conflist"); n != 2 { // once beside a good one, once alone
		t.Errorf("the bad file is named %d times in\n%s", n, logged.String())
	}
}
