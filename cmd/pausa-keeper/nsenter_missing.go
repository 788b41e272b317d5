//go:build !cgo

package main

// complete is false for a build that can be checked, but cannot start a container.
const complete = false
