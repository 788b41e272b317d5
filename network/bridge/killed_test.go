package bridge

import (
	"bytes"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"testing"

	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

// steps are the system calls by which the plugin changes anything: of its store, of
// links and addresses, of rules.
const steps = "symlinkat,symlink,renameat,renameat2,rename,unlinkat,unlink,mkdirat,ftruncate,write,sendto,sendmsg"

// killedAt runs the plugin as a process that is killed at its nth step; it is false when
// there are fewer.
func killedAt(t *testing.T, h *hosttest.Host, exe, command, id string, pod *hosttest.Host, conf []byte, nth int) bool {
	t.Helper()
	cmd := exec.Command("strace", "-f", "-qq", "-o", "/dev/null", "-e", "trace="+steps, "-e", fmt.Sprintf("inject=%s:signal=SIGKILL:when=%d", steps, nth), exe)
	cmd.Env = append(os.Environ(), "CNI_COMMAND="+command, "CNI_CONTAINERID="+id, "CNI_NETNS="+pod.NetNS(), "CNI_IFNAME=eth0", "GOMAXPROCS=1")
	var said bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = bytes.NewReader(conf), &said, &said
	if err := h.Do(cmd.Start); err != nil {
		t.Fatal(err)
	}
	err := cmd.Wait()
	var exit *exec.ExitError
	if err == nil || !errors.As(err, &exit) || exit.Exited() {
		if err != nil {
			t.Fatalf("%s to be killed at step %d: %v: %s", command, nth, err, said.String())
		}
		return false
	}
	return true
}

// Killed at each of its steps, ADD and DEL leave what the next DEL, or GC, takes away:
// no address, link or rule stays.
func TestKilledAtEveryStep(t *testing.T) {
	if _, err := exec.LookPath("strace"); err != nil {
		t.Skip("needs strace, which 'make deps' installs")
	}
	h := hosttest.New(t)
	p := newPlugin(t, h)
	dir, exe := t.TempDir(), filepath.Join(t.TempDir(), Type)
	self, err := os.Executable()
	if err == nil {
		err = os.Symlink(self, exe)
	}
	if err != nil {
		t.Fatal(err)
	}
	conf := confOf(dir, "1.1.0", `,"runtimeConfig":{"portMappings":[{"hostPort":8080,"containerPort":80,"protocol":"tcp"}]}`)
	run := func(command, id string, pod *hosttest.Host) {
		t.Helper()
		if _, err := p.Run(t.Context(), request(command, id, pod, conf)); err != nil {
			t.Fatalf("%s %s: %v", command, id, err)
		}
	}
	run("STATUS", "", h)
	halves := regexp.MustCompile(`(?m)^file .*/\.tmp-.*\n`) // of records: they are for GC
	whole := func() string { return halves.ReplaceAllString(state(t, h, p, dir), "") }
	before := whole()
	var kills int
	for _, c := range []struct{ command, cure string }{{"ADD", "DEL"}, {"ADD", "GC"}, {"DEL", "DEL"}, {"DEL", "GC"}} {
		for nth, killed := 1, true; killed; nth++ {
			pod, id := hosttest.New(t), fmt.Sprintf("%s-%s-%d", c.command, c.cure, nth)
			if c.command == "DEL" {
				run("ADD", id, pod)
				p.living = map[string]bool{} // as for a daemon that is started again
			}
			killed = killedAt(t, h, exe, c.command, id, pod, conf, nth)
			kills++
			run(c.cure, id, pod)
			if after := whole(); after != before {
				t.Fatalf("%s killed at step %d, then %s: left\n%s\nwas\n%s", c.command, nth, c.cure, after, before)
			}
		}
	}
	t.Logf("killed %d times", kills)
	run("GC", "", h)
	if after := state(t, h, p, dir); after != before {
		t.Errorf("left after GC\n%s\nwas\n%s", after, before)
	}
	for i := range usable(netip.MustParsePrefix("10.5.0.0/28")) {
		if _, err := p.Run(t.Context(), request("ADD", fmt.Sprint("last", i), hosttest.New(t), confOf(dir, "1.1.0", ""))); err != nil {
			t.Fatalf("an address was lost: %v", err)
		}
	}
}
