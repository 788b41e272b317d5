package images

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/pkg/archive"
	"golang.org/x/sys/unix"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// stack makes random layers: directories, files with and without entries for
// the directories above them, links, and whiteouts and opaque directories of
// what is below.
type stack struct {
	r     *rand.Rand
	tree  map[string]byte // what is there after the layers so far, by path
	made  map[string]byte // by this layer
	gone  map[string]bool // by this layer
	cut   map[string]bool // gone, or made opaque
	layer image.Layer
	count int
}

func randomStack(seed uint64) []image.Layer {
	s := &stack{r: rand.New(rand.NewPCG(seed, 1)), tree: map[string]byte{}}
	var out []image.Layer
	for range 2 + s.r.IntN(5) {
		s.layer, s.made, s.gone, s.cut = nil, map[string]byte{}, map[string]bool{}, map[string]bool{}
		for range s.r.IntN(4) {
			s.remove()
		}
		for range 1 + s.r.IntN(12) {
			s.add()
		}
		if len(s.layer) > 0 {
			out = append(out, s.layer)
		}
	}
	return out
}

func (s *stack) path() string {
	parts := make([]string, 1+s.r.IntN(4))
	for i := range parts {
		parts[i] = string(rune('a' + s.r.IntN(3)))
	}
	return strings.Join(parts, "/")
}

// put writes an entry with a mode, owner and time of its own.
func (s *stack) put(f image.File) {
	s.count++
	f.UID, f.GID, f.MTime = s.r.IntN(5), s.r.IntN(5), time.Unix(int64(1_000_000+s.count*1000), 0)
	if f.Mode == 0 {
		f.Mode = []int64{0o700, 0o755, 0o1777, 0o2750, 0o4711}[s.r.IntN(5)]
	}
	if f.Type == tar.TypeDir {
		f.Mode &^= 0o2000 // onto each other, the kernel would pass the group on to directories without an entry
		// The same key each time: a directory keeps no attribute that a later entry lacks.
		f.Xattrs = map[string]string{"user.a": fmt.Sprint(s.count)}
	}
	s.layer = append(s.layer, f)
}

// remove hides something of the layers below.
func (s *stack) remove() {
	all := slices.Sorted(maps.Keys(s.tree))
	if len(all) == 0 {
		return
	}
	p := all[s.r.IntN(len(all))]
	for q := range s.cut {
		if q == p || strings.HasPrefix(p, q+"/") || strings.HasPrefix(q, p+"/") {
			return
		}
	}
	s.cut[p] = true
	below := func(q string) bool { return strings.HasPrefix(q, p+"/") }
	if s.tree[p] == tar.TypeDir && s.r.IntN(2) == 0 {
		s.put(image.File{Path: p + "/.wh..wh..opq"})
		maps.DeleteFunc(s.tree, func(q string, _ byte) bool { return below(q) })
		return
	}
	s.put(image.File{Path: path.Join(path.Dir(p), ".wh."+path.Base(p))})
	s.gone[p] = true
	maps.DeleteFunc(s.tree, func(q string, _ byte) bool { return q == p || below(q) })
}

// add puts something at a path above which is no file, nor what this layer removed.
func (s *stack) add() {
	p := s.path()
	for up := path.Dir(p); up != "."; up = path.Dir(up) {
		if kind, there := s.tree[up]; there && kind != tar.TypeDir || s.gone[up] {
			return
		}
	}
	if _, twice := s.made[p]; twice || s.gone[p] {
		return
	}
	kind := []byte{tar.TypeDir, tar.TypeReg, tar.TypeReg, tar.TypeReg, tar.TypeSymlink, tar.TypeLink, tar.TypeFifo}[s.r.IntN(7)]
	f := image.File{Path: p, Type: kind}
	switch kind {
	case tar.TypeReg:
		f.Data = fmt.Appendf(nil, "%d", s.count)
	case tar.TypeSymlink:
		f.Link, f.Mode = s.path(), 0o777
	case tar.TypeLink:
		i := slices.IndexFunc(s.layer, func(f image.File) bool { return f.Type == tar.TypeReg && s.made[f.Path] == tar.TypeReg })
		if i < 0 {
			return
		}
		f = s.layer[i]
		f.Path, f.Type, f.Link, f.Data = p, tar.TypeLink, f.Path, nil
	}
	for q := range s.made {
		if kind != tar.TypeDir && strings.HasPrefix(q, p+"/") {
			return // this layer has files below
		}
	}
	if kind == tar.TypeLink {
		s.layer = append(s.layer, f)
	} else {
		s.put(f)
	}
	s.made[p], s.tree[p] = kind, kind
	for up := path.Dir(p); up != "."; up = path.Dir(up) {
		s.tree[up] = tar.TypeDir
	}
	if kind != tar.TypeDir {
		maps.DeleteFunc(s.tree, func(q string, _ byte) bool { return strings.HasPrefix(q, p+"/") })
	}
}

// onTop unpacks layers one after the other into one folder, as the
// specification says it. It gives the directories whose time no entry says.
func onTop(t *testing.T, root string, layers []image.Layer) (anyTime map[string]bool) {
	t.Helper()
	anyTime = map[string]bool{}
	for _, l := range layers {
		before := directoriesIn(t, root)
		data := extractLayer(t, l)
		if _, err := archive.Apply(context.Background(), root, bytes.NewReader(data)); err != nil {
			t.Fatal(err)
		}
		own := map[string]bool{}
		for _, f := range l {
			if f.Type == tar.TypeDir {
				own[f.Path] = true
				delete(anyTime, f.Path)
			}
		}
		for p, now := range directoriesIn(t, root) {
			was, stayed := before[p]
			switch {
			case own[p]:
			case stayed && was.Ino == now.Ino && was.Btime == now.Btime: // an inode may be used again
				time := unix.Timespec{Sec: was.Mtime.Sec, Nsec: int64(was.Mtime.Nsec)}
				err := unix.UtimesNanoAt(unix.AT_FDCWD, filepath.Join(root, p), []unix.Timespec{time, time}, 0)
				if err != nil {
					t.Fatal(err)
				}
			default:
				anyTime[p] = true
			}
		}
	}
	return anyTime
}

func directoriesIn(t *testing.T, root string) map[string]unix.Statx_t {
	t.Helper()
	out := map[string]unix.Statx_t{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.IsDir() || p == root {
			return err
		}
		var st unix.Statx_t
		defer func() { out[p[len(root)+1:]] = st }()
		return unix.Statx(unix.AT_FDCWD, p, unix.AT_SYMLINK_NOFOLLOW, unix.STATX_BASIC_STATS|unix.STATX_BTIME, &st)
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// extractLayer is the plain tar of a layer, as an image has it.
func extractLayer(t *testing.T, l image.Layer) []byte {
	t.Helper()
	dir := t.TempDir()
	extract(t, packed(t, image.Spec{Layers: []image.Layer{l}, Uncompressed: true}), dir)
	blobs, err := filepath.Glob(filepath.Join(dir, "blobs/sha256/*"))
	if err != nil {
		t.Fatal(err)
	}
	for _, b := range blobs {
		data, err := os.ReadFile(b)
		if err != nil {
			t.Fatal(err)
		}
		if data[0] != '{' {
			return data
		}
	}
	t.Fatal("the image has no layer")
	return nil
}

// treeOf gives a line for each path: type, mode, owner, time, attributes, content.
func treeOf(t *testing.T, root string, anyTime map[string]bool) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil || p == root {
			return err
		}
		var st unix.Stat_t
		if err := unix.Lstat(p, &st); err != nil {
			return err
		}
		rel := p[len(root)+1:]
		line := fmt.Sprintf("%o %d:%d", st.Mode, st.Uid, st.Gid)
		if !anyTime[rel] {
			line += fmt.Sprintf(" at %d.%d", st.Mtim.Sec, st.Mtim.Nsec)
		}
		var value [64]byte
		if n, err := unix.Lgetxattr(p, "user.a", value[:]); err == nil {
			line += " user.a=" + string(value[:n])
		}
		switch d.Type() {
		case fs.ModeSymlink:
			to, err := os.Readlink(p)
			out[rel] = line + " -> " + to
			return err
		case 0:
			data, err := os.ReadFile(p)
			out[rel] = line + " " + string(data)
			return err
		}
		out[rel] = line
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// Layers that were unpacked side by side show the tree that they make when
// they are unpacked onto each other.
func TestStackedLayersAreTheSequentialTree(t *testing.T) {
	s := open(t, folders(t))
	for seed := range uint64(40) {
		layers := randomStack(seed)
		want := t.TempDir()
		anyTime := onTop(t, want, layers)
		img := load(t, s, image.Spec{Name: "localhost/stack:1", Layers: layers})
		got := treeOf(t, mountAs(t, s, "c", img.ID), anyTime)
		if err := s.Unmount(context.Background(), "c"); err != nil {
			t.Fatal(err)
		}
		if wanted := treeOf(t, want, anyTime); !maps.Equal(got, wanted) {
			for p := range maps.Keys(got) {
				if got[p] == wanted[p] {
					delete(got, p)
					delete(wanted, p)
				}
			}
			t.Fatalf("seed %d, layers %+v:\ngot  %v\nwant %v", seed, layers, got, wanted)
		}
		if err := s.Remove(context.Background(), img.ID); err != nil {
			t.Fatal(err)
		}
	}
}

// A directory without an entry of its own is that of the layers below, unless they no longer have it.
func TestDirectoriesWithoutEntry(t *testing.T) {
	old := time.Unix(1_000_000, 0)
	home := image.File{Path: "home", Type: tar.TypeDir, Mode: 0o2750, UID: 7, GID: 8, MTime: old, Xattrs: map[string]string{"user.a": "x"}}
	file := image.Text("home/deep/f", "f")
	cases := map[string]struct {
		layers []image.Layer
		home   string
	}{
		"below":           {[]image.Layer{{home}, {file}}, "42750 7:8 at 1000000.0 user.a=x"},
		"two below":       {[]image.Layer{{home}, {image.Text("home/g", "g")}, {file}}, "42750 7:8 at 1000000.0 user.a=x"},
		"removed between": {[]image.Layer{{home}, {image.Text(".wh.home", "")}, {file}}, "40755 0:0"},
		"a file between":  {[]image.Layer{{home}, {image.Text("home", "")}, {file}}, "40755 0:0"},
		"nowhere":         {[]image.Layer{{image.Text("x", "x")}, {file}}, "40755 0:0"},
		"own entry later": {[]image.Layer{{home}, {file, image.File{Path: "home", Type: tar.TypeDir, Mode: 0o711, MTime: old}}}, "40711 0:0 at 1000000.0"},
		"opaque above": {[]image.Layer{
			{image.Dir("home"), image.File{Path: "home/deep", Type: tar.TypeDir, Mode: 0o700}}, {image.Text("home/.wh..wh..opq", "")}, {file},
		}, "40755 0:0 at 0.0"},
	}
	for name, c := range cases {
		t.Run(name, func(t *testing.T) {
			s := open(t, folders(t))
			img := load(t, s, image.Spec{Name: "localhost/a:1", Layers: c.layers})
			loose := map[string]bool{"home": !strings.Contains(c.home, " at "), "home/deep": true}
			got := treeOf(t, mountAs(t, s, "c", img.ID), loose)
			if got["home"] != c.home || got["home/deep"] != "40755 0:0" {
				t.Errorf("home is %q, want %q; deep is %q", got["home"], c.home, got["home/deep"])
			}
		})
	}
}
