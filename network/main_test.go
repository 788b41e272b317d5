package network

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/pausa-run/pausa/network/bridge"
	"github.com/pausa-run/pausa/network/bridge/hosttest"
)

// The test binary is also the plugins that the tests run, by the name it is called by.
func TestMain(m *testing.M) {
	switch filepath.Base(os.Args[0]) {
	case "pausa", "pausa-exec":
		os.Exit(bridge.PluginMain(os.Stdin, os.Stdout, os.Environ()))
	case "fake", "fake2":
		os.Exit(fakePlugin())
	}
	os.Exit(hosttest.Main(m))
}
