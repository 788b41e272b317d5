package main

import (
	"archive/tar"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

const (
	e2e     = "registry.k8s.io/e2e-test-images/"
	staging = "gcr.io/k8s-staging-cri-tools/"
)

// suiteImages are all images that the suite pulls. packages is the folder of the
// Debian packages, work a folder for what is unpacked and compiled.
func suiteImages(packages, work string) ([]image.Spec, error) {
	base, err := image.Busybox("")
	if err != nil {
		return nil, err
	}
	base.Format = image.FormatDocker
	for _, p := range []string{"busybox", "nginx"} {
		if err := unpack(packages, p, filepath.Join(work, p)); err != nil {
			return nil, err
		}
	}
	shell, err := shellImage(base, filepath.Join(work, "busybox"))
	if err != nil {
		return nil, err
	}
	web, err := nginxImages(base, filepath.Join(work, "nginx"))
	if err != nil {
		return nil, err
	}
	compiled, err := compiledImages(base, work)
	if err != nil {
		return nil, err
	}
	return slices.Concat([]image.Spec{shell, httpdImage(base)}, web, compiled, userImages(base), namedImages(base)), nil
}

// variant is base under a name, with further files in a layer of their own.
func variant(base image.Spec, name string, config ocispec.ImageConfig, files ...image.File) image.Spec {
	s := base
	s.Name = name
	s.Layers = slices.Clone(base.Layers)
	if len(files) > 0 {
		s.Layers = append(s.Layers, files)
	}
	config.Env = base.Config.Env
	s.Config = config
	return s
}

func shellConfig(user string) ocispec.ImageConfig {
	return ocispec.ImageConfig{User: user, Cmd: []string{"sh"}}
}

func userImages(base image.Spec) []image.Spec {
	predefined := image.Layer{
		image.Text("etc/passwd", "root:x:0:0:root:/root:/bin/sh\ndefault-user:x:1000:1000::/home/default-user:/bin/sh\n"),
		image.Text("etc/group", "root:x:0:\ndefault-user:x:1000:\ngroup-defined-in-image:x:50000:default-user\n"),
	}
	return []image.Spec{
		variant(base, staging+"test-image-user-uid:latest", shellConfig("1002")),
		variant(base, staging+"test-image-user-username:latest", shellConfig("www-data")),
		variant(base, staging+"test-image-user-uid-group:latest", shellConfig("1003:users")),
		variant(base, staging+"test-image-user-username-group:latest", shellConfig("www-data:100")),
		variant(base, staging+"test-image-predefined-group:latest", shellConfig("1000"), predefined...),
	}
}

// namedImages differ in a file, so that each has an id of its own; tags of one image share it.
func namedImages(base image.Spec) []image.Spec {
	var out []image.Spec
	for content, names := range map[string][]string{
		"latest": {"test-image-latest:latest"}, "tag": {"test-image-tag:test"}, "all": {"test-image-tag:all"},
		"tags":   {"test-image-tags:1", "test-image-tags:2", "test-image-tags:3"},
		"digest": {"test-image-digest:latest"},
		"1":      {"test-image-1:latest"}, "2": {"test-image-2:latest"}, "3": {"test-image-3:latest"},
	} {
		for _, name := range names {
			out = append(out, variant(base, staging+name, shellConfig(""), image.Text("content", content)))
		}
	}
	return out
}

// httpdImage logs a line that names httpd when it starts, as the suite expects.
func httpdImage(base image.Spec) image.Spec {
	config := ocispec.ImageConfig{
		Cmd:          []string{"sh", "-c", `echo "Command line: httpd -D FOREGROUND"; exec httpd -f -v -p 80 -h /www`},
		ExposedPorts: map[string]struct{}{"80/tcp": {}},
	}
	return variant(base, e2e+"httpd:2.4.39-4", config, image.Dir("www"), image.Text("www/index.html", "<html><body><h1>It works!</h1></body></html>\n"))
}

// shellImage is Debian's dynamic busybox: the static one runs applets without
// looking at the files, so that a masked path could never be seen. Applets are
// hard links, as some specs replace one of them.
func shellImage(base image.Spec, root string) (image.Spec, error) {
	program := filepath.Join(root, "bin", "busybox")
	out, err := exec.Command(program, "--list").Output()
	if err != nil {
		return image.Spec{}, fmt.Errorf("list the applets of %s: %w", program, err)
	}
	files, err := programs(map[string]string{"bin/busybox": program, "usr/bin/ipcs": "/usr/bin/ipcs"})
	if err != nil {
		return image.Spec{}, err
	}
	for _, a := range strings.Fields(string(out)) {
		if a != "busybox" {
			files = append(files, image.File{Path: "bin/" + a, Type: tar.TypeLink, Mode: 0o755, Link: "bin/busybox"})
		}
	}
	files = append(files, image.File{Path: "bin/pgrep", Mode: 0o755, Data: []byte(`#!/bin/sh
found=1
for d in /proc/[0-9]*; do
  read -r name 2>/dev/null <"$d/comm" && [ "$name" = "$1" ] && { echo "${d#/proc/}"; found=0; }
done
exit $found
`)})
	s := variant(base, e2e+"busybox:1.29-2", shellConfig(""))
	// Only the folders and accounts of the static image: no file of /bin may shadow the dynamic applets.
	s.Layers = []image.Layer{append(withoutPrograms(base.Layers[0]), files...)}
	return s, nil
}

// withoutPrograms leaves out what lies in bin folders.
func withoutPrograms(l image.Layer) image.Layer {
	return slices.DeleteFunc(slices.Clone(l), func(f image.File) bool {
		return f.Type != tar.TypeDir && (strings.Contains(f.Path, "bin/") || f.Type == tar.TypeLink)
	})
}

// nginxImages are Debian's nginx with its libraries; the second listens on another port, for the host's network.
func nginxImages(base image.Spec, root string) ([]image.Spec, error) {
	files, err := programs(map[string]string{"usr/sbin/nginx": filepath.Join(root, "usr/sbin/nginx")})
	if err != nil {
		return nil, err
	}
	mime, err := os.ReadFile(filepath.Join(root, "etc/nginx/mime.types"))
	if err != nil {
		return nil, fmt.Errorf("read nginx's types: %w", err)
	}
	var out []image.Spec
	for name, port := range map[string]string{e2e + "nginx:1.14-2": "80", staging + "hostnet-nginx-amd64:latest": "12003"} {
		conf := "user www-data;\nworker_processes 1;\npid /run/nginx.pid;\nerror_log /dev/stderr warn;\nevents { worker_connections 512; }\n" +
			"http {\n  include /etc/nginx/mime.types;\n  access_log /dev/stdout;\n  server { listen " + port + "; location / { root /usr/share/nginx/html; index index.html; } }\n}\n"
		layer := append(slices.Clone(files),
			image.Dir("etc/nginx"), image.Text("etc/nginx/nginx.conf", conf), image.Text("etc/nginx/mime.types", string(mime)),
			image.Dir("usr/share"), image.Dir("usr/share/nginx"), image.Dir("usr/share/nginx/html"),
			image.Text("usr/share/nginx/html/index.html", "<html><body><h1>Welcome to nginx!</h1></body></html>\n"),
			image.Dir("var/lib"), image.Dir("var/lib/nginx"), image.Dir("var/log/nginx"))
		out = append(out, variant(base, name, ocispec.ImageConfig{Cmd: []string{"nginx", "-g", "daemon off;"}, ExposedPorts: map[string]struct{}{port + "/tcp": {}}}, layer...))
	}
	return out, nil
}

// compiledImages hold one static C program each: one that waits for ever, and a setuid one that tells its user.
func compiledImages(base image.Spec, work string) ([]image.Spec, error) {
	pause, err := compile(work, "pause", "#include <unistd.h>\nint main(void) { for (;;) pause(); }\n")
	if err != nil {
		return nil, err
	}
	nnp, err := compile(work, "nnp", "#include <stdio.h>\n#include <unistd.h>\nint main(void) { printf(\"Effective uid: %d\\n\", geteuid()); return 0; }\n")
	if err != nil {
		return nil, err
	}
	single := func(name string, f image.File, user string) image.Spec {
		s := variant(base, name, ocispec.ImageConfig{User: user, Entrypoint: []string{"/" + f.Path}})
		s.Layers = []image.Layer{{f}}
		return s
	}
	return []image.Spec{
		single("registry.k8s.io/pause:3.9", image.File{Path: "pause", Mode: 0o755, Data: pause}, "65535:65535"),
		single("registry.k8s.io/pause:3.10.2", image.File{Path: "pause", Mode: 0o755, Data: pause}, "65535:65535"),
		single(e2e+"nonewprivs:1.3", image.File{Path: "nnp", Mode: 0o4755, Data: nnp}, ""),
	}, nil
}

func compile(work, name, source string) ([]byte, error) {
	out := filepath.Join(work, name)
	cmd := exec.Command("gcc", "-Os", "-static", "-s", "-x", "c", "-o", out, "-")
	cmd.Stdin = strings.NewReader(source)
	if text, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("compile %s: %w: %s", name, err, text)
	}
	return os.ReadFile(out)
}

// programs are dynamic programs of the host and all libraries they load.
func programs(paths map[string]string) (image.Layer, error) {
	from := map[string]string{}
	for to, path := range paths {
		from[to] = path
		out, err := exec.Command("ldd", path).Output()
		if err != nil {
			return nil, fmt.Errorf("list the libraries of %s: %w", path, err)
		}
		for _, word := range strings.Fields(string(out)) {
			if strings.HasPrefix(word, "/") {
				from[strings.TrimPrefix(word, "/")] = word
			}
		}
	}
	for _, lib := range []string{"libnss_files.so.2", "libnss_compat.so.2"} { // loaded by name, to find users
		if found, _ := filepath.Glob("/lib/*-linux-gnu/" + lib); len(found) > 0 {
			from[strings.TrimPrefix(found[0], "/")] = found[0]
		}
	}
	dirs := map[string]bool{}
	var files image.Layer
	for to, path := range from {
		data, err := os.ReadFile(path)
		if err != nil {
			return nil, fmt.Errorf("read %s: %w", path, err)
		}
		files = append(files, image.File{Path: to, Mode: 0o755, Data: data})
		for d := filepath.Dir(to); d != "."; d = filepath.Dir(d) {
			dirs[d] = true
		}
	}
	var layer image.Layer
	for d := range dirs {
		layer = append(layer, image.Dir(d))
	}
	byPath := func(a, b image.File) int { return strings.Compare(a.Path, b.Path) }
	slices.SortFunc(layer, byPath)
	slices.SortFunc(files, byPath)
	return append(layer, files...), nil
}

// unpack unpacks a package and those named after it ("nginx-common").
func unpack(packages, name, to string) error {
	debs, err := filepath.Glob(filepath.Join(packages, name+"[_\\-]*.deb"))
	if err != nil || len(debs) == 0 {
		return fmt.Errorf("unpack package %s: %w", name, errors.Join(err, fs.ErrNotExist))
	}
	for _, deb := range debs {
		if out, err := exec.Command("dpkg-deb", "-x", deb, to).CombinedOutput(); err != nil {
			return fmt.Errorf("unpack %s: %w: %s", deb, err, out)
		}
	}
	return nil
}
