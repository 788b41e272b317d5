package restore

import (
	"errors"
	"math"
	"os"
	goruntime "runtime"
	"slices"
	"strings"
	"testing"

	core "github.com/checkpoint-restore/go-criu/v8/crit/images/criu-core"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/fdinfo"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/inventory"
	"github.com/checkpoint-restore/go-criu/v8/crit/images/netdev"
	specs "github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
)

func needAMD64(t *testing.T) {
	if goruntime.GOARCH != "amd64" {
		t.Skip("the dump is of an amd64 processor")
	}
}

// What belongs to the request is let through, and what is the request's to say is written anew.
func TestImages(t *testing.T) {
	needAMD64(t)
	d := newDump(t)
	// None of this is taken from a checkpoint.
	edit(d, "core-1.img", magicCore, func(all []*core.CoreEntry) []*core.CoreEntry {
		all[0].Tc.OomScoreAdj, all[0].Tc.CgSet, all[0].Tc.Loginuid = proto.Int32(-1000), proto.Uint32(1), proto.Uint32(7)
		all[0].Tc.Rlimits.Rlimits[unix.RLIMIT_NOFILE].Max = proto.Uint64(math.MaxUint64)
		return nil
	})
	edit(d, "inventory.img", magicInventory, func(all []*inventory.InventoryEntry) []*inventory.InventoryEntry {
		all[0].RootIds = decode[core.TaskKobjIdsEntry](t, d.dir, "ids-1.img", magicIDs)[0] // all of CRIU's namespaces
		return nil
	})
	edit(d, "netns-10.img", magicNetwork, func([]*netdev.NetnsEntry) []*netdev.NetnsEntry {
		return []*netdev.NetnsEntry{{ExtKey: proto.String("other")}}
	})
	nofile := uint64(100)
	d.spec.Process.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Soft: nofile, Hard: nofile}}
	to, err := d.images()
	if err != nil {
		t.Fatal(err)
	}
	tc := decode[core.CoreEntry](t, to, "core-1.img", magicCore)[0].Tc
	if tc.GetOomScoreAdj() != 0 || tc.GetCgSet() != 2 || tc.Loginuid != nil || tc.Rlimits.Rlimits[unix.RLIMIT_NOFILE].GetMax() != nofile {
		t.Errorf("process %v", tc)
	}
	root := decode[inventory.InventoryEntry](t, to, "inventory.img", magicInventory)[0].RootIds
	ids := decode[core.TaskKobjIdsEntry](t, to, "ids-1.img", magicIDs)[0]
	if root.GetMntNsId() == ids.GetMntNsId() || root.GetPidNsId() == ids.GetPidNsId() || root.GetNetNsId() == ids.GetNetNsId() || root.GetCgroupNsId() == ids.GetCgroupNsId() {
		t.Errorf("the container shares a namespace with CRIU: %v, %v", ids, root)
	}
	if root.GetIpcNsId() != ids.GetIpcNsId() || root.GetUtsNsId() != ids.GetUtsNsId() {
		t.Errorf("CRIU would fill the pod's namespaces from images: %v, %v", ids, root)
	}
	if net := decode[netdev.NetnsEntry](t, to, "netns-10.img", magicNetwork)[0]; net.GetExtKey() != "extRootNetNS" {
		t.Errorf("network %v", net)
	}
	for _, name := range []string{"cgroup.img", "seccomp.img", "descriptors.json", "utsns-12.img", "ipcns-var-11.img"} {
		if _, err := os.Stat(to + "/" + name); !errors.Is(err, os.ErrNotExist) {
			t.Errorf("%s was taken from the checkpoint: %v", name, err)
		}
	}
	var streams []string
	for _, f := range decode[fdinfo.FileEntry](t, to, "files.img", magicFiles) {
		if f.Reg.GetExt() {
			streams = append(streams, f.Reg.GetName())
		}
	}
	if !slices.Equal(streams, []string{"pipe:stdout", "pipe:stderr"}) {
		t.Errorf("streams %q", streams)
	}
}

// Each thing that a checkpoint could bring of its own is refused, by the name of its file.
func TestHostile(t *testing.T) {
	needAMD64(t)
	for _, cases := range []map[string]hostile{rightsCases(), fileCases(), mountCases(), memoryCases(), formCases()} {
		for name, c := range cases {
			t.Run(name, func(t *testing.T) {
				d := newDump(t)
				c.change(d)
				_, err := d.images()
				if !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), c.word) || !strings.Contains(err.Error(), c.file) {
					t.Errorf("%v, want %s refused for %q", err, c.file, c.word)
				}
			})
		}
	}
}

// Requests that a restore cannot confine are refused before anything is read.
func TestUnsupportedRequests(t *testing.T) {
	for name, change := range map[string]func(*specs.Spec){
		"terminal": func(s *specs.Spec) { s.Process.Terminal = true },
		"user namespace": func(s *specs.Spec) {
			s.Linux.Namespaces = append(s.Linux.Namespaces, specs.LinuxNamespace{Type: specs.UserNamespace})
		},
		"shares a namespace": func(s *specs.Spec) {
			s.Linux.Namespaces = slices.DeleteFunc(s.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.NetworkNamespace })
		},
		"PID namespace": func(s *specs.Spec) {
			for i := range s.Linux.Namespaces {
				s.Linux.Namespaces[i].Path = "/proc/1/ns/x"
			}
		},
		"propagation": func(s *specs.Spec) { s.Linux.RootfsPropagation = "rshared" },
	} {
		d := newDump(t)
		change(d.spec)
		if _, err := d.images(); !errors.Is(err, ErrRefused) || !strings.Contains(err.Error(), "the request") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// Whatever stands in one of the images, the answer is a refusal or images that can be read.
func FuzzImages(f *testing.F) {
	d := newDump(f)
	entries, err := os.ReadDir(d.dir)
	if err != nil {
		f.Fatal(err)
	}
	for i, e := range entries {
		data, err := os.ReadFile(d.path(e.Name()))
		if err != nil {
			f.Fatal(err)
		}
		if len(data) < 2048 {
			f.Add(uint8(i), data)
		}
	}
	f.Fuzz(func(t *testing.T, which uint8, data []byte) {
		d.t = t
		name := entries[int(which)%len(entries)].Name()
		was, err := os.ReadFile(d.path(name))
		if err == nil {
			err = os.WriteFile(d.path(name), data, 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
		to, err := d.images()
		if err != nil && !errors.Is(err, ErrRefused) {
			t.Errorf("%s: %v", name, err)
		}
		if err == nil {
			decode[fdinfo.FileEntry](t, to, "files.img", magicFiles)
		}
		if err := errors.Join(os.RemoveAll(to), os.WriteFile(d.path(name), was, 0o600)); err != nil {
			t.Fatal(err)
		}
	})
}
