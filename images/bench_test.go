package images

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"testing"
	"time"

	cimages "github.com/containerd/containerd/v2/core/images"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

func benchImage(b *testing.B) []byte {
	b.Helper()
	spec, err := image.Busybox("")
	if err != nil {
		b.Skipf("needs a static busybox: %v", err)
	}
	return packed(b, spec)
}

func BenchmarkImport(b *testing.B) {
	ctx := context.Background()
	s := open(b, folders(b))
	data := benchImage(b)
	for b.Loop() {
		list, err := s.Import(ctx, bytes.NewReader(data), ImportOptions{})
		if err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		if err := s.Remove(ctx, list[0].ID); err != nil {
			b.Fatal(err)
		}
		s.garbage()
		b.StartTimer()
	}
}

func BenchmarkMountUnmount(b *testing.B) {
	ctx := context.Background()
	s := open(b, folders(b))
	spec, err := image.Busybox("")
	if err != nil {
		b.Skipf("needs a static busybox: %v", err)
	}
	ref := load(b, s, spec).ID
	var mount, unmount time.Duration
	n := 0
	for b.Loop() {
		id := fmt.Sprintf("c%d", n)
		n++
		t0 := time.Now()
		root, err := s.Mount(ctx, id, ref, MountOptions{})
		if err != nil {
			b.Fatal(err)
		}
		mount += time.Since(t0)
		if err := os.WriteFile(root+"/x", []byte("x"), 0o600); err != nil {
			b.Fatal(err)
		}
		t0 = time.Now()
		if err := s.Unmount(ctx, id); err != nil {
			b.Fatal(err)
		}
		unmount += time.Since(t0)
	}
	b.ReportMetric(float64(mount.Microseconds())/float64(n), "µs/mount")
	b.ReportMetric(float64(unmount.Microseconds())/float64(n), "µs/unmount")
}

func BenchmarkList500(b *testing.B) {
	ctx := context.Background()
	s := open(b, folders(b))
	img := load(b, s, small("localhost/a:0"))
	target := s.cache.Load().targets[img.RepoTags[0]]
	for n := range 499 { // more names make records; copies of one image are enough for the time of a rebuild
		if _, err := s.rows.Create(in(ctx), cimages.Image{Name: fmt.Sprintf("localhost/a:n%d", n), Target: target}); err != nil {
			b.Fatal(err)
		}
	}
	t0 := time.Now()
	if err := s.refresh(ctx); err != nil {
		b.Fatal(err)
	}
	refresh := time.Since(t0)
	c := *s.cache.Load()
	for len(c.list) < 500 {
		c.list = append(c.list, c.list[0])
	}
	s.cache.Store(&c)
	for b.Loop() {
		if list, err := s.List(ctx); err != nil || len(list) != 500 {
			b.Fatal(len(list), err)
		}
	}
	b.ReportMetric(float64(refresh.Microseconds()), "µs/rebuild")
}
