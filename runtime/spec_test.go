package runtime

import (
	"encoding/json"
	"flag"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	specs "github.com/opencontainers/runtime-spec/specs-go"
)

var update = flag.Bool("update", false, "write the golden files anew")

func plain() ContainerConfig {
	return ContainerConfig{
		ID: "web", PodID: "pod", Pod: PodState{ID: "pod", Pid: 42},
		Rootfs: "/rootfs", Args: []string{"serve"}, Env: []string{"PATH=/bin"}, CgroupPath: "/pausa/pod/web",
	}
}

func TestSpecGolden(t *testing.T) {
	score := -5
	full := plain()
	full.ReadonlyRootfs, full.Terminal, full.Cwd = true, true, "/srv"
	full.UID, full.GID, full.AdditionalGIDs = 1000, 100, []uint32{5, 6}
	full.Pod.Spec = PodSpec{SharePID: true, UIDMaps: []IDMap{{HostID: 100000, Size: 65536}}}
	full.Mounts = []Mount{
		{Source: "/a", Destination: "/data/sub", Readonly: true, RecursiveRO: true},
		{Source: "/b", Destination: "/data", Propagation: "rslave"},
		{Destination: "/dev/shm", Type: "tmpfs", Options: []string{"size=1m"}},
	}
	full.Devices = []Device{{HostPath: "/dev/null", ContainerPath: "/dev/nothing", Permissions: "rw"}}
	full.Resources = Resources{
		CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, CpusetCpus: "0-1", MemoryLimit: 1 << 20, MemorySwap: 2 << 20,
		PidsLimit: 10, OOMScoreAdj: &score, Hugepages: map[string]uint64{"2MB": 4 << 20}, Unified: map[string]string{"memory.high": "max"},
	}
	full.Security = Security{
		NoNewPrivs: true, AddCaps: []string{"net_admin"}, DropCaps: []string{"ALL"}, AppArmor: "profile", SELinuxLabel: "label",
		MaskedPaths: []string{}, ReadonlyPaths: []string{"/proc/sys"},
	}
	full.Rlimits = []Rlimit{{Type: "RLIMIT_NOFILE", Soft: 10, Hard: 20}}
	privileged := plain()
	privileged.Security.Privileged, privileged.Security.Seccomp = true, "runtime/default"
	privileged.HostPID, privileged.HostNetwork, privileged.HostIPC = true, true, true
	for name, c := range map[string]ContainerConfig{"plain": plain(), "full": full, "privileged": privileged} {
		t.Run(name, func(t *testing.T) { compare(t, name, c) })
	}
}

func compare(t *testing.T, name string, c ContainerConfig) {
	spec, err := Spec(c)
	if err != nil {
		t.Fatal(err)
	}
	got, err := json.MarshalIndent(spec, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	got = append(got, '\n')
	file := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("%s differs from what Spec gives; look at it with -update and git diff:\n%s", file, got)
	}
}

func TestSpecRefuses(t *testing.T) {
	for name, c := range map[string]struct {
		change func(*ContainerConfig)
		word   string
	}{
		"id":          {func(c *ContainerConfig) { c.ID = "../x" }, "../x"},
		"pod":         {func(c *ContainerConfig) { c.Pod.Pid = 0 }, "pause"},
		"command":     {func(c *ContainerConfig) { c.Args = nil }, "command"},
		"rootfs":      {func(c *ContainerConfig) { c.Rootfs = "/a/../b" }, "/a/../b"},
		"cwd":         {func(c *ContainerConfig) { c.Cwd = "here" }, "here"},
		"nul":         {func(c *ContainerConfig) { c.Args = []string{"a\x00b"} }, "NUL"},
		"env":         {func(c *ContainerConfig) { c.Env = []string{"=x"} }, "=x"},
		"destination": {func(c *ContainerConfig) { c.Mounts = []Mount{{Source: "/a", Destination: "/x/../../y"}} }, "/x/../../y"},
		"source":      {func(c *ContainerConfig) { c.Mounts = []Mount{{Source: "a", Destination: "/y"}} }, "/y"},
		"propagation": {func(c *ContainerConfig) { c.Mounts = []Mount{{Source: "/a", Destination: "/y", Propagation: "p"}} }, "propagation"},
		"capability":  {func(c *ContainerConfig) { c.Security.AddCaps = []string{"FLY"} }, "FLY"},
		"profile":     {func(c *ContainerConfig) { c.Security.Seccomp = "own" }, "own"},
		"no content":  {func(c *ContainerConfig) { c.Security.Seccomp = "localhost//p" }, "/p"},
		"empty":       {func(c *ContainerConfig) { c.Security.Seccomp, c.Security.SeccompProfile = "localhost//p", []byte("{}") }, "/p"},
		"rlimit":      {func(c *ContainerConfig) { c.Rlimits = []Rlimit{{"RLIMIT_CPU", 2, 1}} }, "RLIMIT_CPU"},
		"device":      {func(c *ContainerConfig) { c.Devices = []Device{{HostPath: "/proc/version", ContainerPath: "/x"}} }, "device node"},
		"permissions": {func(c *ContainerConfig) { c.Devices = []Device{{"/dev/null", "/x", "rx"}} }, "rx"},
	} {
		config := plain()
		c.change(&config)
		if _, err := Spec(config); err == nil || !strings.Contains(err.Error(), c.word) || !strings.Contains(err.Error(), config.ID) {
			t.Errorf("%s: error %v does not name %q and the container", name, err, c.word)
		}
	}
}

func TestCapabilities(t *testing.T) {
	for name, c := range map[string]struct {
		security Security
		want     []string
	}{
		"default":      {Security{}, DefaultCapabilities()},
		"drop one":     {Security{DropCaps: []string{"cap_chown"}}, slices.DeleteFunc(DefaultCapabilities(), func(c string) bool { return c == "CAP_CHOWN" })},
		"only one":     {Security{DropCaps: []string{"all"}, AddCaps: []string{"CHOWN"}}, []string{"CAP_CHOWN"}},
		"all":          {Security{AddCaps: []string{"ALL"}}, allCapabilities()},
		"all less one": {Security{AddCaps: []string{"ALL"}, DropCaps: []string{"SYS_ADMIN"}}, slices.DeleteFunc(allCapabilities(), func(c string) bool { return c == "CAP_SYS_ADMIN" })},
		"privileged":   {Security{Privileged: true, DropCaps: []string{"ALL"}}, allCapabilities()},
	} {
		got, err := c.security.capabilities()
		if err != nil {
			t.Fatal(err)
		}
		slices.Sort(c.want)
		if !slices.Equal(got.Bounding, c.want) || !slices.Equal(got.Effective, c.want) || len(got.Inheritable)+len(got.Ambient) != 0 {
			t.Errorf("%s: %v, want %v", name, got.Bounding, c.want)
		}
	}
	got, err := Security{DropCaps: []string{"ALL"}, AmbientCaps: []string{"NET_RAW"}}.capabilities()
	if err != nil || !slices.Equal(got.Ambient, []string{"CAP_NET_RAW"}) || !slices.Equal(got.Inheritable, got.Ambient) || !slices.Equal(got.Permitted, got.Ambient) {
		t.Errorf("ambient: %+v, %v", got, err)
	}
}

func TestDefaultSeccompDependsOnCapabilities(t *testing.T) {
	allows := func(c ContainerConfig, call string) bool {
		c.Security.Seccomp = "runtime/default"
		spec, err := Spec(c)
		if err != nil {
			t.Fatal(err)
		}
		return slices.ContainsFunc(spec.Linux.Seccomp.Syscalls, func(s specs.LinuxSyscall) bool {
			return s.Action == specs.ActAllow && len(s.Args) == 0 && slices.Contains(s.Names, call)
		})
	}
	if c := plain(); allows(c, "mount") || !allows(c, "read") {
		t.Error("default profile: mount must be refused, read allowed")
	}
	c := plain()
	c.Security.AddCaps = []string{"SYS_ADMIN"}
	if !allows(c, "mount") {
		t.Error("mount is refused in spite of CAP_SYS_ADMIN")
	}
}

// Whatever is asked for, Spec gives an error or a spec that keeps its promises.
func FuzzSpec(f *testing.F) {
	f.Add("web", "/rootfs", "serve", "/srv", "/data", "/a", "CHOWN", "runtime/default", []byte("{}"), false)
	f.Add("a", "/", "x", "", "/dev/shm", "/b", "ALL", "localhost//x", []byte(`{"defaultAction":"SCMP_ACT_ALLOW"}`), true)
	f.Fuzz(func(t *testing.T, id, rootfs, arg, cwd, destination, source, capability, profile string, content []byte, privileged bool) {
		c := plain()
		c.ID, c.Rootfs, c.Args, c.Cwd = id, rootfs, []string{arg}, cwd
		c.Mounts = []Mount{{Source: source, Destination: destination}}
		c.Security = Security{AddCaps: []string{capability}, Seccomp: profile, SeccompProfile: content, Privileged: privileged}
		spec, err := Spec(c)
		if err != nil {
			return
		}
		if strings.Contains(spec.Root.Path, "\x00") || !filepath.IsAbs(spec.Process.Cwd) || !ValidID(id) {
			t.Errorf("spec of %+v is not safe", c)
		}
		for _, m := range spec.Mounts {
			if !filepath.IsAbs(m.Destination) || filepath.Clean(m.Destination) != m.Destination {
				t.Errorf("mount at %q", m.Destination)
			}
		}
		if !privileged && (len(spec.Linux.MaskedPaths) == 0 || spec.Linux.Resources.Devices[0].Allow) {
			t.Error("an ordinary container is not confined")
		}
	})
}
