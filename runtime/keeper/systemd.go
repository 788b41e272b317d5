//go:build cgo

package keeper

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/dbus"
	godbus "github.com/godbus/dbus/v5"
	"github.com/opencontainers/cgroups"
)

// systemdPatience bounds the wait for systemd to do a job.
const systemdPatience = 30 * time.Second

const sliceSuffix = ".slice"

// sliceGroup is a slice for libcontainer: its name says what slice it is in.
func sliceGroup(name string, r *cgroups.Resources) *cgroups.Cgroup {
	parent := "-.slice"
	if i := strings.LastIndexByte(name, '-'); i > 0 {
		parent = name[:i] + sliceSuffix
	}
	return &cgroups.Cgroup{Systemd: true, Parent: parent, Name: name, Resources: r}
}

// removeSlice has systemd stop a slice, which it made when the first scope in
// it was made, and would keep for ever. Containers' scopes are libcontainer's.
func removeSlice(name string) error {
	if !strings.HasSuffix(name, sliceSuffix) || strings.ContainsAny(name, "/\x00") {
		return fmt.Errorf("remove slice %q: that is no slice's name", name)
	}
	ctx, cancel := context.WithTimeout(context.Background(), systemdPatience)
	defer cancel()
	bus, err := dbus.NewSystemConnectionContext(ctx)
	if err != nil {
		return fmt.Errorf("remove slice %s: connect to systemd: %w", name, err)
	}
	defer bus.Close()
	done := make(chan string, 1)
	if _, err := bus.StopUnitContext(ctx, name, "replace", done); err != nil {
		var said godbus.Error
		if errors.As(err, &said) && said.Name == "org.freedesktop.systemd1.NoSuchUnit" {
			return nil
		}
		return fmt.Errorf("remove slice %s: %w", name, err)
	}
	select {
	case result := <-done:
		if result != "done" {
			return fmt.Errorf("remove slice %s: systemd says %q", name, result)
		}
		return nil
	case <-ctx.Done():
		return fmt.Errorf("remove slice %s: systemd does not end it: %w", name, ctx.Err())
	}
}

// withoutOrders leaves out annotations that a runtime obeys, by which a pod's author
// would change the scope's properties or name a file of the host's to CRIU.
func withoutOrders(annotations map[string]string) map[string]string {
	out := maps.Clone(annotations)
	maps.DeleteFunc(out, func(name, _ string) bool {
		return strings.HasPrefix(name, "org.systemd.property.") || name == criuLabel
	})
	return out
}
