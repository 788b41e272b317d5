package service

import (
	"context"
	"strings"
)

// Watch tells when somebody else has changed our chains or maps, deleted the
// table or flushed the rules; Resync puts them back. Own commits, other tables
// and other parts' chains in ours are not told. The channel is closed when ctx
// ends.
func (t *Table) Watch(ctx context.Context) <-chan struct{} {
	out, err := t.rules.Watch(ctx, func(name string) bool { return strings.HasPrefix(name, prefix) })
	if err != nil {
		t.opts.Log.Error("changes of the rules by others will not be seen", "cause", err)
		none := make(chan struct{})
		context.AfterFunc(ctx, func() { close(none) })
		return none
	}
	return out
}
