//go:build cgo

package main

import _ "github.com/opencontainers/runc/libcontainer/nsenter" // a C constructor that makes namespaces for inits

const complete = true
