// Package integration tests the built binaries on hosts made of namespaces
// (package integration/host), with the build tag integration and as root, and
// holds the rules about who may import whom (no tag, no root).
package integration
