//go:build tools

// Package nettools pins the CNI reference plugins, Flannel and its etcd, which
// are no part of the product and so have a module of their own.
package nettools
