package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

func TestOptionsReachTheImage(t *testing.T) {
	if _, err := os.Stat(image.BusyboxPath); err != nil {
		t.Skipf("no busybox here: %v", err)
	}
	extra := filepath.Join(t.TempDir(), "run.sh")
	if err := os.WriteFile(extra, []byte("#!/bin/sh\n"), 0o755); err != nil {
		t.Fatal(err)
	}
	o, err := parse([]string{
		"-o", "x", "-name", "localhost/y:2", "-label", "a=b", "-user", "app", "-layers", "3",
		"-env", "K=v", "-cmd", "sleep 9", "-file", extra + ":/opt/run.sh",
	})
	if err != nil {
		t.Fatal(err)
	}
	s, err := o.spec()
	if err != nil {
		t.Fatal(err)
	}
	last := s.Layers[0][len(s.Layers[0])-1]
	if s.Name != "localhost/y:2" || s.Config.Labels["a"] != "b" || s.Config.User != "app" || len(s.Layers) != 3 ||
		len(s.Config.Cmd) != 2 || s.Config.Env[1] != "K=v" || last.Path != "opt/run.sh" || last.Mode != 0o755 {
		t.Errorf("spec %+v, last file %+v", s.Config, last)
	}
}

func TestFailedRunLeavesNoFile(t *testing.T) {
	dir := t.TempDir()
	err := run([]string{"-o", filepath.Join(dir, "out.tar"), "-format", "zip"})
	if err == nil || !strings.Contains(err.Error(), "zip") {
		t.Fatalf("unknown format: %v", err)
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left behind: %v", left)
	}
	if err := run(nil); err == nil {
		t.Error("no output file was accepted")
	}
}
