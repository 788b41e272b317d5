// Package dns answers for the names of Services and pods, as Kubernetes has
// them, and forwards all other questions to the host's resolvers.
//
// What is known of the cluster is a zone: Set builds a new one and swaps it, while
// queries go on with the one that they began with; Update changes the names of some
// Services and pods within it, between two answers. No socket is ever closed for a
// change.
package dns
