//go:build cgo && seccomp

// Package seccache keeps compiled seccomp filters for libcontainer's init; see seccache.c.
package seccache

// #cgo pkg-config: libseccomp
// #cgo LDFLAGS: -Wl,--wrap=seccomp_init -Wl,--wrap=seccomp_arch_add -Wl,--wrap=seccomp_attr_set
// #cgo LDFLAGS: -Wl,--wrap=seccomp_rule_add_array -Wl,--wrap=seccomp_rule_add_exact_array -Wl,--wrap=seccomp_export_bpf
// #include "seccache.h"
import "C"

// Record makes the next filter that this process compiles be written to fd, as an entry of the cache file.
func Record(fd int) { C.seccache_record(C.int(fd)) }

// Linked says whether the linker has put the cache in front of libseccomp.
func Linked() bool { return C.seccache_linked() != 0 }
