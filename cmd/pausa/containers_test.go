package main

import (
	"archive/tar"
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func TestExec(t *testing.T) {
	f := startFake(t)
	f.runWith(t, podText("a", "localhost/busybox"), "apply", "-f", "-").want(t, 0, "created", "")
	f.run(t, "exec", "a", "--", "echo", "-n", "hi").want(t, 0, "-n hi\n", "")
	f.run(t, "exec", "pod/a", "echo", "-x").want(t, 0, "-x\n", "")
	f.run(t, "exec", "a", "-c", "main", "--", "exit", "42").want(t, 42, "", "")
	f.run(t, "exec", "a", "--", "warn").want(t, 0, "", "careful\n")
	f.runWith(t, "in\n", "exec", "-i", "a", "--", "cat").want(t, 0, "in\n", "")
	f.runWith(t, "in\n", "exec", "a", "--", "cat").want(t, 0, "", "")
	f.run(t, "exec", "-it", "a", "--", "echo", "x").want(t, 0, "x\n", "warning: standard input is not a terminal")
	f.run(t, "exec", "a", "--", "nonsense").want(t, 1, "", "error: start nonsense: no such file")
	f.run(t, "exec", "a", "--", "drop").want(t, 1, "", "the connection to the container ended before")
	f.run(t, "exec", "b", "--", "echo").want(t, 1, "", `error: pods "b" not found`)
	f.run(t, "exec", "a", "-c", "x", "--", "echo").want(t, 1, "", `container "x" of pod "a" not found`)
	f.run(t, "exec", "a").want(t, 2, "", "name the command to run")
	f.run(t, "exec").want(t, 2, "", "name a pod")
	f.run(t, "exec", "svc/a", "--", "echo").want(t, 2, "", "svc/a is not a pod")
}

func TestAttach(t *testing.T) {
	f := startFake(t)
	f.runWith(t, podText("a", "localhost/busybox", "cat"), "apply", "-f", "-").want(t, 0, "created", "")
	f.runWith(t, "one\ntwo\n", "attach", "-i", "a").want(t, 0, "one\ntwo\n", "")
	f.run(t, "attach").want(t, 2, "", "name one pod")
}

func TestLogs(t *testing.T) {
	f := startFake(t)
	f.runWith(t, podText("a", "localhost/busybox"), "apply", "-f", "-").want(t, 0, "created", "")
	f.logs["a/main"] = "one\n!two\n"
	f.run(t, "logs", "a").want(t, 0, "one\n", "!two\nwarning: showing container main\n")
	f.run(t, "logs", "-fp", "a", "main", "--tail", "3", "--since", "1500ms", "--timestamps").want(t, 0, "one\n", "!two\n")
	req := f.logCalls[1]
	if !req.GetFollow() || !req.GetPrevious() || !req.GetTimestamps() || req.GetTail() != 3 || req.GetSinceSeconds() != 2 || req.GetContainer() != "main" {
		t.Errorf("request: %v", req)
	}
	if first := f.logCalls[0]; first.Tail != nil || first.SinceSeconds != nil {
		t.Errorf("request: %v", first)
	}
	f.run(t, "logs", "b").want(t, 1, "", `error: pods "b" not found`)
	f.run(t, "logs", "a", "--tail", "-2").want(t, 2, "", "must be 0 or more")
	f.run(t, "logs", "a", "x", "-c", "y").want(t, 2, "", "name one")
}

func TestRun(t *testing.T) {
	f := startFake(t)
	f.run(t, "run", "--rm", "localhost/busybox", "--", "echo", "-e", "hello").want(t, 0, "-e hello\n", "")
	if len(f.objects) != 0 {
		t.Errorf("--rm left %v", f.objects)
	}
	f.run(t, "run", "--name", "x", "localhost/busybox", "exit", "7").want(t, 7, "", "")
	f.run(t, "get", "pod", "x").want(t, 0, "x      0/1     Error", "")
	f.run(t, "run", "--name", "x", "localhost/busybox").want(t, 1, "", `pods "x" already exists`)
	f.runWith(t, "abc\n", "run", "-i", "--rm", "localhost/busybox", "cat").want(t, 0, "abc\n", "")
	f.run(t, "run", "--rm", "localhost/missing").want(t, 1, "", "ErrImageNeverPull: image is not on this host")
	f.run(t, "run", "-d", "--name", "web", "-p", "127.0.0.1:8080:80", "-p", "53/udp", "--env", "A=b,c", "--label", "k=v", "localhost/web").
		want(t, 0, "pod/web created\n", "")
	r := f.run(t, "get", "pod", "web", "-o", "yaml")
	for _, text := range []string{"hostIP: 127.0.0.1", "hostPort: 8080", "containerPort: 53", "protocol: UDP", "value: b,c", "k: v", "restartPolicy: Always"} {
		if !strings.Contains(r.out, text) {
			t.Errorf("no %q in\n%s", text, r.out)
		}
	}
	for _, c := range []struct{ args, want string }{
		{"run", "name an image"},
		{"run -d --rm x", "--detach cannot be combined"},
		{"run --port 0:80 x", "must be PORT"},
		{"run --port 80/icmp x", "must be PORT"},
		{"run --port 70000 x", "must be PORT"},
		{"run --port nohost:1:2 x", "must be PORT"},
		{"run --env =x x", "must be NAME=VALUE"},
		{"run --env NOT_SET x", "is not in this program's environment"},
		{"run --label x x", "must be KEY=VALUE"},
		{"run --restart maybe x", "must be Always, OnFailure or Never"},
	} {
		f.run(t, strings.Fields(c.args)...).want(t, 2, "", c.want)
	}
}

func TestNameFor(t *testing.T) {
	for image, want := range map[string]string{
		"localhost:5000/Team/Web_App:1.2": "web-app-",
		"busybox@sha256:0123":             "busybox-",
		"":                                "pod-",
	} {
		if got := nameFor(image); !strings.HasPrefix(got, want) || len(got) != len(want)+5 {
			t.Errorf("nameFor(%q) = %q, want %q and five letters", image, got, want)
		}
	}
}

func TestImages(t *testing.T) {
	f := startFake(t)
	f.run(t, "images", "list").want(t, 0, "localhost/busybox   latest   0123456789ab   1.23MB", "")
	f.run(t, "images", "ls", "-o", "wide").want(t, 0, "sha256:fedcba", "")
	f.run(t, "images", "list", "-o", "name").want(t, 0, "localhost/busybox:latest\n", "")
	f.run(t, "images", "list", "-o", "json").want(t, 0, `"repoTags": [`, "")
	f.run(t, "images", "list", "nope").want(t, 1, "", `error: image "nope" not found`)
	f.run(t, "images", "pull", "localhost/x", "--progress", "none").want(t, 0, "sha256:2\n", "")
	f.run(t, "images", "pull", "nowhere/x").want(t, 1, "", "error: image is not in the registry")
	f.run(t, "images", "rm", "0123456789ab").want(t, 0, "image \"0123456789ab\" removed\n", "")
	f.run(t, "images", "rm", "0123456789ab").want(t, 1, "", "not found")
	f.run(t, "images", "rm", "0123456789ab", "--ignore-not-found").want(t, 0, "", "")
	f.run(t, "images", "rm").want(t, 2, "", "name an image")
	f.run(t, "images", "frob").want(t, 2, "", `unknown command "frob"`)
}

func TestImport(t *testing.T) {
	f := startFake(t)
	big := strings.Repeat("x", 3*chunkSize+7)
	f.run(t, "images", "import", write(t, "a.tar", big)).want(t, 0, "localhost/imported:latest\n", "")
	if string(f.imported) != big {
		t.Errorf("%d bytes arrived of %d", len(f.imported), len(big))
	}
	f.run(t, "images", "import", "--name", "localhost/n:2", write(t, "seen.tar", big)).want(t, 0, "localhost/n:2\n", "")
	if string(f.imported) != "file " {
		t.Errorf("%d bytes arrived of a file that the daemon sees", len(f.imported))
	}
	f.runWith(t, "abc", "images", "import", "-", "--name", "localhost/n:1").want(t, 0, "localhost/n:1\n", "")
	f.runWith(t, "bad"+big, "images", "import", "-").want(t, 1, "", "error: import -: archive is no OCI or docker archive")
	f.run(t, "images", "import", "/no/such").want(t, 1, "", "no such file")
	dir := t.TempDir()
	f.run(t, "images", "import", dir).want(t, 1, "", "is no OCI layout")
	for _, name := range []string{"oci-layout", "index.json"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{}"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	f.run(t, "images", "import", dir).want(t, 0, "localhost/imported", "")
	r := tar.NewReader(bytes.NewReader(f.imported))
	var names []string
	for h, err := r.Next(); err != io.EOF; h, err = r.Next() {
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, h.Name)
	}
	if strings.Join(names, " ") != "index.json oci-layout" {
		t.Errorf("archive of the layout holds %v", names)
	}
}

func TestSizeText(t *testing.T) {
	for n, want := range map[uint64]string{0: "0B", 999: "999B", 1000: "1kB", 1_234_567: "1.23MB", 99_400_000: "99.4MB", 999_900_000: "1GB"} {
		if got := sizeText(n); got != want {
			t.Errorf("sizeText(%d) = %q, want %q", n, got, want)
		}
	}
}
