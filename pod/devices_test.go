package pod

import (
	"slices"
	"testing"

	"github.com/pausa-run/pausa/runtime"
)

func TestDevicesOfPrivileged(t *testing.T) {
	own := runtime.Device{HostPath: "/dev/zero", ContainerPath: "/dev/null", Permissions: "r"}
	cfg := &ContainerConfig{Devices: []runtime.Device{own}}
	got := func(pod *Config) []runtime.Device {
		t.Helper()
		devices, err := devicesOf(cfg, pod)
		if err != nil {
			t.Fatal(err)
		}
		return devices
	}
	if d := got(&Config{}); !slices.Equal(d, cfg.Devices) {
		t.Errorf("not privileged: %v", d)
	}
	cfg.Security.Privileged = true
	if d := got(&Config{UIDMaps: []runtime.IDMap{{Size: 1}}}); !slices.Equal(d, cfg.Devices) {
		t.Errorf("in a user namespace: %v", d)
	}
	all := got(&Config{})
	null := slices.DeleteFunc(slices.Clone(all), func(d runtime.Device) bool { return d.ContainerPath != "/dev/null" })
	if !slices.Equal(null, []runtime.Device{own}) {
		t.Errorf("its own device does not replace the host's: %v", null)
	}
	for path, want := range map[string]bool{"/dev/zero": true, "/dev/ptmx": false} {
		if slices.ContainsFunc(all, func(d runtime.Device) bool { return d.ContainerPath == path }) != want {
			t.Errorf("%s among the host's devices: %t", path, !want)
		}
	}
}
