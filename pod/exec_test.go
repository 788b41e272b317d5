package pod

import (
	"bytes"
	"io"
	"maps"
	"strings"
	"testing"
)

// Output is copied with io.Copy, which takes any short cut that the writer offers.
func TestOutputIsCapped(t *testing.T) {
	for _, have := range []int{0, execOutputLimit - 1} {
		var c capped
		c.kept.Write(bytes.Repeat([]byte("a"), have))
		n, err := io.Copy(&c, struct{ io.Reader }{strings.NewReader(strings.Repeat("b", execOutputLimit+1))})
		if err != nil || n != execOutputLimit+1 {
			t.Errorf("copied %d bytes, %v: the command would block", n, err)
		}
		if c.kept.Len() != execOutputLimit {
			t.Errorf("after %d bytes %d were kept, want %d", have, c.kept.Len(), execOutputLimit)
		}
	}
}

func TestSysctlsOfAPod(t *testing.T) {
	const port, ping = "net.ipv4.ip_unprivileged_port_start", "net.ipv4.ping_group_range"
	for name, c := range map[string]struct {
		config Config
		want   map[string]string
	}{
		"none given":       {Config{}, map[string]string{port: "0", ping: "0 2147483647"}},
		"the pod's wins":   {Config{Sysctls: map[string]string{"net/ipv4/ip_unprivileged_port_start": "80", "kernel.sem": "1"}}, map[string]string{"net/ipv4/ip_unprivileged_port_start": "80", ping: "0 2147483647", "kernel.sem": "1"}},
		"the host's stays": {Config{HostNetwork: true, Sysctls: map[string]string{"kernel.sem": "1"}}, map[string]string{"kernel.sem": "1"}},
	} {
		if got := c.config.spec("id").Sysctls; !maps.Equal(got, c.want) {
			t.Errorf("%s: %v, want %v", name, got, c.want)
		}
	}
}
