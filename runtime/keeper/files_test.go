//go:build cgo

package keeper_test

import (
	"io"
	"os"
	"testing"
)

// What is deposited is given back as often as it is asked for, and replaced by the next deposit.
func TestDeposit(t *testing.T) {
	h := newHost(t)
	file := func(text string) *os.File {
		r, w, err := os.Pipe()
		if err != nil {
			t.Fatal(err)
		}
		_, _ = io.WriteString(w, text)
		w.Close()
		t.Cleanup(func() { r.Close() })
		return r
	}
	if files, err := h.client.Deposited(t.Context()); err != nil || len(files) != 0 {
		t.Fatalf("before a deposit: %v, %v", files, err)
	}
	if err := h.client.Deposit(t.Context(), map[string]*os.File{"a": file("old"), "b": file("gone")}); err != nil {
		t.Fatal(err)
	}
	if err := h.client.Deposit(t.Context(), map[string]*os.File{"a": file("new")}); err != nil {
		t.Fatal(err)
	}
	first, err := h.client.Deposited(t.Context())
	if err != nil || len(first) != 1 {
		t.Fatalf("%v, %v", first, err)
	}
	first["a"].Close()
	again, err := h.client.Deposited(t.Context())
	if err != nil || len(again) != 1 {
		t.Fatalf("the second time: %v, %v", again, err)
	}
	defer again["a"].Close()
	if text, err := io.ReadAll(again["a"]); err != nil || string(text) != "new" {
		t.Errorf("it holds %q, %v", text, err)
	}
	if err := h.client.Deposit(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if files, err := h.client.Deposited(t.Context()); err != nil || len(files) != 0 {
		t.Errorf("after it was emptied: %v, %v", files, err)
	}
}
