package network

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// fakeConf is the configuration of the plugin "fake": what it does wrong, by command.
type fakeConf struct {
	CNIVersion string            `json:"cniVersion"`
	Type       string            `json:"type"`
	Mode       map[string]string `json:"mode,omitempty"` // command -> fail, hang, garbage, noaddress, ipv6first
	Log        string            `json:"log"`
	DNS        json.RawMessage   `json:"dns,omitempty"` // of the result

	Capabilities  map[string]bool `json:"capabilities,omitempty"`
	PrevResult    json.RawMessage `json:"prevResult,omitempty"`
	RuntimeConfig json.RawMessage `json:"runtimeConfig,omitempty"`
}

// fakePlugin is the test binary's main when it is called as a plugin.
func fakePlugin() int {
	var c fakeConf
	if err := json.NewDecoder(os.Stdin).Decode(&c); err != nil {
		fmt.Println(err)
		return 1
	}
	command := os.Getenv("CNI_COMMAND")
	line := fmt.Sprintf("%s %s prev=%t args=%s runtime=%s netns=%t\n", filepath.Base(os.Args[0]), command, len(c.PrevResult) > 0,
		os.Getenv("CNI_ARGS"), c.RuntimeConfig, os.Getenv("CNI_NETNS") != "")
	f, err := os.OpenFile(c.Log, os.O_APPEND|os.O_CREATE|os.O_WRONLY, 0o600)
	if err != nil {
		return 1
	}
	defer f.Close()
	if _, err := f.WriteString(line); err != nil {
		return 1
	}
	fmt.Fprintln(os.Stderr, "fake speaks to standard error")
	switch mode := c.Mode[command]; mode {
	case "fail":
		fmt.Printf(`{"cniVersion":%q,"code":100,"msg":"fake fails"}`, c.CNIVersion)
		return 1
	case "hang":
		_ = exec.Command("sleep", "60").Run() // a child that holds standard output
		return 1
	case "garbage":
		fmt.Println("this is no JSON")
		return 0
	case "noaddress":
		fmt.Printf(`{"cniVersion":%q,"interfaces":[{"name":"eth0","sandbox":"x"}]}`, c.CNIVersion)
		return 0
	}
	if command == "ADD" {
		fmt.Println(fakeResult(c))
	}
	return 0
}

func fakeResult(c fakeConf) string {
	if len(c.PrevResult) > 0 {
		return string(c.PrevResult)
	}
	ip4, ip6 := `"address":"10.1.2.3/24","gateway":"10.1.2.1"`, `"address":"fd01::3/64","gateway":"fd01::1"`
	switch c.CNIVersion {
	case "", "0.1.0", "0.2.0":
		return fmt.Sprintf(`{"cniVersion":%q,"ip4":{"ip":"10.1.2.3/24","gateway":"10.1.2.1"},"ip6":{"ip":"fd01::3/64"}}`, c.CNIVersion)
	case "0.3.0", "0.3.1", "0.4.0":
		ip4, ip6 = `"version":"4",`+ip4, `"version":"6",`+ip6
	}
	dns := string(c.DNS)
	if dns == "" {
		dns = "{}"
	}
	return fmt.Sprintf(`{"cniVersion":%q,"dns":`+dns+`,"interfaces":[{"name":"cni0"},{"name":"eth0","mac":"02:00:00:00:00:01","sandbox":"x"}],`+
		`"ips":[{"interface":1,%s},{"interface":1,%s},{"interface":0,"address":"10.1.2.1/24"%s}]}`, c.CNIVersion, ip6, ip4,
		map[bool]string{true: `,"version":"4"`}[strings.HasPrefix(c.CNIVersion, "0.")])
}

// fakeNetwork writes a conflist of the given plugins and returns the options for it and its log.
func fakeNetwork(t testing.TB, version string, plugins ...fakeConf) (change func(*Options), confDir string, log func() string) {
	t.Helper()
	bin, dir := t.TempDir(), t.TempDir()
	self := must(os.Executable())
	logFile := filepath.Join(dir, "calls")
	list := map[string]any{"name": "fakenet", "plugins": plugins}
	if version != "" {
		list["cniVersion"] = version
	}
	for i, p := range plugins {
		plugins[i].Log = logFile
		_ = os.Symlink(self, filepath.Join(bin, p.Type))
	}
	must0(t, os.WriteFile(filepath.Join(dir, "10-fake.conflist"), must(json.Marshal(list)), 0o600))
	return func(o *Options) { o.ConfDir, o.BinDirs = dir, []string{bin} }, dir, func() string {
		b, err := os.ReadFile(logFile)
		if err != nil && !os.IsNotExist(err) {
			t.Fatal(err)
		}
		_ = os.Remove(logFile)
		return string(b)
	}
}

// textLog writes a log without times.
func textLog(w io.Writer) *slog.Logger {
	return slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{ReplaceAttr: func(_ []string, a slog.Attr) slog.Attr {
		if a.Key == slog.TimeKey {
			return slog.Attr{}
		}
		return a
	}}))
}

// noSleepers waits until no child of a hanging plugin is left.
func noSleepers(t testing.TB, before int) {
	t.Helper()
	deadline := time.Now().Add(5 * time.Second)
	for sleepers() > before {
		if time.Now().After(deadline) {
			t.Fatal("a child of the plugin was not killed")
		}
		time.Sleep(10 * time.Millisecond)
	}
}

func sleepers() int {
	n := 0
	all, _ := filepath.Glob("/proc/[0-9]*/cmdline")
	for _, f := range all {
		if b, err := os.ReadFile(f); err == nil && string(b) == "sleep\x0060\x00" {
			n++
		}
	}
	return n
}
