//go:build tools

// Package critest pins the CRI validation suite, crictl and cnitool, which are
// no part of the product and so have a module of their own.
package critest

import _ "sigs.k8s.io/cri-tools/cmd/critest"
