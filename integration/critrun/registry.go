package main

import (
	"bytes"
	"fmt"
	"io"
	"log"
	"net"
	"net/http"
	"os"
	"strings"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"

	"github.com/pausa-run/pausa/integration/mkimage/image"
)

// serveRegistry serves the suite's images on registryAddress until it is
// killed; it says "ready" when all are there.
func serveRegistry(packages string) error {
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
	l, err := net.Listen("tcp", registryAddress)
	if err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	ended := make(chan error, 1)
	go func() {
		ended <- http.Serve(l, registry.New(registry.Logger(log.New(io.Discard, "", 0))))
	}()
	for _, s := range specs {
		if err := push(s); err != nil {
			return err
		}
	}
	fmt.Println("ready")
	return <-ended
}

// push puts an image into the registry, under its path without the host.
func push(s image.Spec) error {
	raw, err := image.Bytes(s)
	if err != nil {
		return err
	}
	img, err := tarball.Image(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(raw)), nil }, nil)
	if err != nil {
		return fmt.Errorf("read image %s: %w", s.Name, err)
	}
	_, path, _ := strings.Cut(s.Name, "/")
	ref, err := name.ParseReference(registryAddress+"/"+path, name.Insecure)
	if err != nil {
		return fmt.Errorf("name image %s: %w", s.Name, err)
	}
	if err := remote.Write(ref, img); err != nil {
		return fmt.Errorf("push image %s: %w", s.Name, err)
	}
	return nil
}
