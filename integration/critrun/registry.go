package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// buildImages makes the suite's images of Debian packages, an archive each.
func buildImages(ctx context.Context, packages, into string) error {
	if err := download(ctx, packages); err != nil {
		return err
	}
	work, err := os.MkdirTemp("", "critest-images-")
	if err != nil {
		return fmt.Errorf("make a folder for images: %w", err)
	}
	specs, err := suiteImages(packages, work)
	if err := os.RemoveAll(work); err != nil {
		return fmt.Errorf("remove the folder for images: %w", err)
	}
	if err != nil {
		return err
	}
	if err := os.MkdirAll(into, 0o755); err != nil {
		return fmt.Errorf("make the folder of images: %w", err)
	}
	for i, s := range specs {
		raw, err := image.Bytes(s)
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(into, fmt.Sprintf("%02d.tar", i)), raw, 0o644); err != nil {
			return fmt.Errorf("write image %s: %w", s.Name, err)
		}
	}
	return nil
}

// serveRegistry serves the images of a folder on registryAddress until it is
// killed; it says "ready" when all are there.
func serveRegistry(images string) error {
	archives, err := filepath.Glob(filepath.Join(images, "*.tar"))
	if err != nil || len(archives) == 0 {
		return fmt.Errorf("no image archive in %s: %w", images, errors.Join(err, os.ErrNotExist))
	}
	l, err := net.Listen("tcp", registryAddress)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- http.Serve(l, registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	}()
	for _, a := range archives {
		if err := push(a); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	return <-ended
}

// push puts the image of an archive into the registry, under its path without the host.
func push(archive string) error {
	open := func() (io.ReadCloser, error) { return os.Open(archive) }
	manifest, err := tarball.LoadManifest(open)
	if err != nil || len(manifest) != 1 || len(manifest[0].RepoTags) != 1 {
		return fmt.Errorf("read %s: want one image with one name, have %v: %w", archive, manifest, err)
	}
	img, err := tarball.Image(open, nil)
	if err != nil {
		return fmt.Errorf("read %s: %w", archive, err)
	}
	tag := manifest[0].RepoTags[0]
	_, path, _ := strings.Cut(tag, "/")
	ref, err := name.ParseReference(registryAddress+"/"+path, name.Insecure)
	if err != nil {
		return fmt.Errorf("name image %s: %w", tag, err)
	}
	if err := remote.Write(ref, img); err != nil {
		return fmt.Errorf("push image %s: %w", tag, err)
	}
	return nil
}
