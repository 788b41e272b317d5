//go:build tools

// Package flannel pins Flannel, which is no part of the product and so has a
// module of its own. The replaced modules are a cloud's, which no test uses.
package flannel
