//go:build !cgo || !seccomp

// Package seccache keeps compiled seccomp filters for libcontainer's init; see seccache.c.
package seccache

// Record does nothing in a build without libseccomp.
func Record(int) {}

// Linked says whether the linker has put the cache in front of libseccomp.
func Linked() bool { return false }
