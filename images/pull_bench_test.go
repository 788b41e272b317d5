package images

import (
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"testing"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// large is an image of ten layers, each of many files that shrink to about a
// third, as programs and their data do; 300 MB in all when compressed.
func large(name string) image.Spec {
	r := rand.New(rand.NewPCG(1, 2))
	words := make([][]byte, 4096)
	for i := range words {
		words[i] = fmt.Appendf(nil, "%x ", r.Uint64()>>(r.IntN(5)*8))
	}
	s := image.Spec{Name: name}
	for l := range 10 {
		var layer image.Layer
		for f := range 160 {
			var b bytes.Buffer
			for b.Len() < 400_000 {
				b.Write(words[r.IntN(len(words))])
			}
			layer = append(layer, image.File{Path: fmt.Sprintf("l%d/d%d/f%d", l, f%20, f), Data: b.Bytes()})
		}
		s.Layers = append(s.Layers, layer)
	}
	return s
}

func BenchmarkLarge(b *testing.B) {
	ctx := context.Background()
	data := packed(b, large("localhost/large:1"))
	b.Logf("%d MB compressed", len(data)>>20)
	s := open(b, folders(b))
	b.Run("import", func(b *testing.B) {
		for b.Loop() {
			list, err := s.Import(ctx, bytes.NewReader(data), ImportOptions{})
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			forgetAll(b, s, list[0].ID)
			b.StartTimer()
		}
	})
	r := newRegistry(b)
	ref := r.push(b, "large:1", large(""))
	b.Run("pull", func(b *testing.B) {
		for b.Loop() {
			img, err := s.Pull(ctx, ref, PullOptions{})
			if err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			forgetAll(b, s, img.ID)
			b.StartTimer()
		}
	})
}

func forgetAll(b *testing.B, s *Store, id string) {
	b.Helper()
	if err := s.Remove(context.Background(), id); err != nil {
		b.Fatal(err)
	}
	s.garbage()
	s.garbage()
}
