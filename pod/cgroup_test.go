package pod

import (
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestSlice(t *testing.T) {
	for group, want := range map[string][2]string{
		"/pausa":                              {"pausa.slice", "/pausa.slice"},
		"/a/b-c":                              {"a-b_c.slice", "/a.slice/a-b_c.slice"},
		"/pausa/pod12ab":                      {"pausa-pod12ab.slice", "/pausa.slice/pausa-pod12ab.slice"},
		"kubepods-burstable-podx.slice":       {"kubepods-burstable-podx.slice", "/kubepods.slice/kubepods-burstable.slice/kubepods-burstable-podx.slice"},
		"/kubepods.slice/kubepods-podx.slice": {"kubepods-podx.slice", "/kubepods.slice/kubepods-podx.slice"},
	} {
		slice := Slice(group)
		if slice != want[0] || slicePath(slice) != want[1] {
			t.Errorf("%s: slice %s at %s, want %v", group, slice, slicePath(slice), want)
		}
	}
}

func TestCgroupParent(t *testing.T) {
	for _, c := range []struct{ driver, parent, err string }{
		{Cgroupfs, "", ""},
		{Cgroupfs, "/kubepods/podx", ""},
		{Cgroupfs, "../x", "clean absolute path"},
		{Cgroupfs, "/a/../b", "clean absolute path"},
		{Cgroupfs, "/a:b", "':'"},
		{Cgroupfs, "kubepods-podx.slice", "is a systemd slice, but the cgroup driver here is cgroupfs"},
		{Systemd, "", ""},
		{Systemd, "kubepods-podx.slice", ""},
		{Systemd, "/kubepods.slice/kubepods-podx.slice", ""},
		{Systemd, "/kubepods/podx", "is no systemd slice"},
		{Systemd, "/other.slice/kubepods-podx.slice", "systemd has the slice kubepods-podx.slice at /kubepods.slice/kubepods-podx.slice"},
		{Systemd, "../../x.slice", "systemd has the slice"},
		{Systemd, "a--b.slice", "between its dashes"},
		{Systemd, "-a.slice", "between its dashes"},
		{Systemd, ".slice", "between its dashes"},
		{Systemd, strings.Repeat("a", 300) + ".slice", "255"},
		{Systemd, "a\nb.slice", "control characters"},
	} {
		m := &Manager{opts: Options{CgroupDriver: c.driver}}
		err := m.checkCgroupParent(c.parent)
		if (err == nil) != (c.err == "") || err != nil && (!errors.Is(err, ErrInvalid) || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%s %q: %v, want %q", c.driver, c.parent, err, c.err)
		}
	}
}

// A pod keeps the group that it was made with when the driver changes later.
func TestSystemdGroups(t *testing.T) {
	w := newWorld(t)
	w.m.opts.CgroupDriver = Systemd
	own, err := w.m.Run(t.Context(), podConfig("own"))
	if err != nil {
		t.Fatal(err)
	}
	cfg := podConfig("kubelet")
	cfg.CgroupParent = "kubepods-podx.slice"
	given, err := w.m.Run(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	for pod, want := range map[string]string{own: "pausa_test_none-pod" + own + ".slice:pausa:", given: "kubepods-podx.slice:pausa:"} {
		id, err := w.m.CreateContainer(t.Context(), pod, ContainerConfig{Name: "c", Image: "busybox"})
		if err != nil {
			t.Fatal(err)
		}
		if got := w.keeper.ctrs[id].spec.Spec.Linux.CgroupsPath; got != want+id {
			t.Errorf("container's group is %s, want %s", got, want+id)
		}
	}
	w.restart() // with cgroupfs
	for _, pod := range []string{own, given} {
		if err := w.m.Remove(t.Context(), pod); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{"pausa_test_none-pod" + own + ".slice"}; !slices.Equal(w.keeper.slicesGone, want) {
		t.Errorf("removed slices %q, want %q: a parent that was given is its giver's", w.keeper.slicesGone, want)
	}
}
