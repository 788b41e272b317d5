package service

import (
	"context"
	"strings"
)

// Watch tells when somebody else has changed chains or maps of our tables,
// deleted them or flushed the rules, and the name of the program that did;
// Resync puts back what is of Services. Own commits and other tables are not
// told. The channel is closed when ctx ends.
func (t *Table) Watch(ctx context.Context) <-chan string {
	out, err := t.rules.Watch(ctx, func(name string) bool { return strings.HasPrefix(name, prefix) })
	if err != nil {
		t.opts.Log.Error("changes of the rules by others will not be seen", "cause", err)
		none := make(chan string)
		context.AfterFunc(ctx, func() { close(none) })
		return none
	}
	return out
}
