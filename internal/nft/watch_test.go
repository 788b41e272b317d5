package nft

import (
	"context"
	"os/exec"
	"strings"
	"testing"
	"time"
)

func TestWatch(t *testing.T) {
	c := openKernel(t)
	list(t, "ruleset") // skips without nft
	ctx, cancel := context.WithCancel(context.Background())
	ch, err := c.Watch(ctx, func(name string) bool { return strings.HasPrefix(name, "my-") })
	if err != nil {
		t.Fatal(err)
	}
	other, err := Open()
	if err != nil {
		t.Fatal(err)
	}
	defer other.Close()
	set := Set{Name: "my-set", Key: []Type{TypePort}}
	own := func(port uint16) {
		t.Helper()
		tx := NewTx()
		tx.AddSet(set)
		tx.SetRules(Chain{Name: "my-chain"}, NewRule(Drop()))
		tx.AddElements(set, Element{Key: Value(nil).Port(port)})
		if err := c.Commit(tx); err != nil {
			t.Fatal(err)
		}
	}
	own(1)
	for i, change := range []string{
		"add element inet pausa my-set { 1000 }",
		"add rule inet pausa my-chain accept",
		"add chain inet pausa my-other",
		"add rule inet pausa theirs accept", // of another part of ours
		"add table bridge pausa",
		"delete table bridge pausa",
		"delete table inet pausa",
		"flush ruleset",
	} {
		own(uint16(2 + i))
		tx := NewTx()
		tx.SetRules(Chain{Name: "theirs"}, NewRule(Accept()))
		if err := other.Commit(tx); err != nil {
			t.Fatal(err)
		}
		if out, err := exec.Command("nft", "add table ip elsewhere { chain my-chain { } ; }").CombinedOutput(); err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		select {
		case <-ch:
			t.Errorf("before %q: told of what is not ours", change)
		default:
		}
		if out, err := exec.Command("nft", change).CombinedOutput(); err != nil {
			t.Fatalf("%s: %v: %s", change, err, out)
		}
		select {
		case by := <-ch:
			if by != "nft" {
				t.Errorf("%q was made by %q", change, by)
			}
		case <-time.After(10 * time.Second):
			t.Fatalf("%q was not told", change)
		}
	}
	// A refused commit renews the socket and thereby, perhaps, its address.
	bad := NewTx()
	bad.DeleteChain("missing")
	if err := c.Commit(bad); err == nil {
		t.Fatal("a missing chain was deleted")
	}
	own(99)
	cancel()
	if _, open := <-ch; open {
		t.Error("a commit after an error was told")
	}
}
