//go:build tools

// Package critest pins the CRI validation suite, which is no part of the
// product and so has a module of its own.
package critest

import _ "sigs.k8s.io/cri-tools/cmd/critest"
