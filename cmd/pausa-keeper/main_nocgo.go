//go:build !cgo

// Command pausa-keeper cannot work without cgo. This file keeps
// `CGO_ENABLED=0 go build ./...` going.
package main

import (
	"fmt"
	"os"
)

func main() {
	fmt.Fprintln(os.Stderr, "pausa-keeper: this program was built without cgo and cannot start containers: build it with `make build`")
	os.Exit(1)
}
