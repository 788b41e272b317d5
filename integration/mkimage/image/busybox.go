package image

import (
	"archive/tar"
	"bytes"
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"sort"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// BusyboxPath is where Debian's package busybox-static keeps its program.
const BusyboxPath = "/bin/busybox"

// Busybox is an image of the static busybox at path ("" is BusyboxPath) under
// the name localhost/busybox:latest, with a hard link for each applet.
func Busybox(path string) (Spec, error) {
	if path == "" {
		path = BusyboxPath
	}
	arch, err := staticArch(path)
	if err != nil {
		return Spec{}, err
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return Spec{}, fmt.Errorf("read busybox: %w", err)
	}
	applets, err := applets(path)
	if err != nil {
		return Spec{}, err
	}
	return Spec{
		Name:     "localhost/busybox:latest",
		Layers:   []Layer{busyboxLayer(data, applets)},
		Platform: ocispec.Platform{OS: "linux", Architecture: arch},
		Config: ocispec.ImageConfig{
			Cmd: []string{"sh"},
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
	}, nil
}

// staticArch gives the Go name of the machine that the program at path is for,
// and refuses one that needs shared libraries: it would not start in the image.
func staticArch(path string) (string, error) {
	f, err := elf.Open(path)
	if err != nil {
		return "", fmt.Errorf("read busybox: %w (install Debian's package busybox-static, or run `make deps`)", err)
	}
	defer func() { _ = f.Close() }()
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			return "", fmt.Errorf("read busybox: %s is not static: install Debian's package busybox-static, or run `make deps`", path)
		}
	}
	switch f.Machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	}
	return "", fmt.Errorf("read busybox: %s is for %s: only x86-64 and arm64 are known", path, f.Machine)
}

func applets(path string) ([]string, error) {
	out, err := exec.Command(path, "--list-full").Output()
	if err != nil {
		return nil, fmt.Errorf("list the applets of %s: %w", path, err)
	}
	names := strings.Fields(string(out))
	sort.Strings(names)
	return names, nil
}

func busyboxLayer(data []byte, applets []string) Layer {
	const program = "bin/busybox"
	l := parents(append([]string{program}, applets...))
	l = append(l, File{Path: program, Mode: 0o755, Data: data})
	for _, a := range applets {
		if a != program && a != "linuxrc" {
			// A hard link's header has the mode of its file, as tar writes it: it is set again.
			l = append(l, File{Path: a, Type: tar.TypeLink, Mode: 0o755, Link: program})
		}
	}
	l = append(l, Dir("dev"), Dir("etc"), Dir("home"), Dir("mnt"), Dir("opt"), Dir("proc"), Dir("run"), Dir("sys"),
		File{Path: "root", Type: tar.TypeDir, Mode: 0o700},
		File{Path: "tmp", Type: tar.TypeDir, Mode: 0o1777},
		Dir("var"), Dir("var/log"), Dir("var/www"),
		File{Path: "var/tmp", Type: tar.TypeDir, Mode: 0o1777},
		Symlink("var/run", "/run"),
		File{Path: "home/app", Type: tar.TypeDir, Mode: 0o755, UID: 1000, GID: 1000})
	return append(l, accounts()...)
}

func accounts() Layer {
	return Layer{
		Text("etc/passwd", `root:x:0:0:root:/root:/bin/sh
daemon:x:1:1:daemon:/usr/sbin:/bin/false
www-data:x:33:33:www-data:/var/www:/bin/false
app:x:1000:1000:app:/home/app:/bin/sh
nobody:x:65534:65534:nobody:/home:/bin/false
`),
		Text("etc/group", `root:x:0:
daemon:x:1:
tty:x:5:
www-data:x:33:
users:x:100:app
app:x:1000:
nogroup:x:65534:
`),
		File{Path: "etc/shadow", Mode: 0o640, Data: []byte("root:*:::::::\n")},
		Text("etc/nsswitch.conf", "passwd: files\ngroup: files\nhosts: files dns\n"),
		Text("etc/services", "http 80/tcp\nhttps 443/tcp\ndomain 53/tcp\ndomain 53/udp\n"),
	}
}

// Filler is a layer with one file of size bytes that gzip cannot shrink much,
// the same for the same n.
func Filler(n, size int) Layer {
	data := make([]byte, size)
	x := uint64(n)*0x9e3779b97f4a7c15 + 1
	for i := range data {
		x ^= x << 13
		x ^= x >> 7
		x ^= x << 17
		data[i] = byte(x)
	}
	return Layer{Dir("layers"), {Path: fmt.Sprintf("layers/%d", n), Data: data}}
}

// Bytes is Write into memory.
func Bytes(s Spec) ([]byte, error) {
	var b bytes.Buffer
	err := Write(&b, s)
	return b.Bytes(), err
}
