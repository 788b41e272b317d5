package reconcile

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/pausa-run/pausa/network/dns"
	"github.com/pausa-run/pausa/pod/manifest"
)

// syncServices works out the Services that have changed, gives the table what is
// not as it was, and forgets Services that are deleted.
func (e *Engine) syncServices(ctx context.Context) error {
	e.endpoints.Lock()
	defer e.endpoints.Unlock()
	c := e.refresh()
	err := e.writeServices(ctx, c)
	e.publish(c.names)
	if err != nil {
		for _, o := range c.ended {
			e.fronts.mark(o.Ref())
		}
		return fmt.Errorf("write services: %w", err)
	}
	var errs []error
	for _, o := range c.ended {
		if err := e.objects.remove(o); err != nil {
			e.fronts.mark(o.Ref())
			errs = append(errs, err)
			continue
		}
		e.releaseService(o.Namespace() + "/" + o.Name())
		e.work.add(manifest.Ref{Kind: manifest.KindNamespace, Name: o.Namespace()})
	}
	return errors.Join(errs...)
}

// writeServices is the table's part of syncServices: the first time all of it.
func (e *Engine) writeServices(ctx context.Context, c frontsChange) error {
	var err error
	switch {
	case !e.synced:
		err = e.opts.Services.Sync(ctx, e.allServices())
	case len(c.set)+len(c.gone) > 0 || e.unwritten:
		err = e.opts.Services.Update(ctx, c.set, c.gone)
	}
	e.unwritten = err != nil
	// Cut off before the table has seen the change, it must be given all again.
	e.synced = err == nil || (e.synced && ctx.Err() == nil)
	return err
}

// healServices writes everything again after somebody changed the table.
func (e *Engine) healServices(ctx context.Context) {
	e.endpoints.Lock()
	defer e.endpoints.Unlock()
	e.log.Warn("the services in the kernel were changed by somebody else; writing them again")
	if err := e.opts.Services.Resync(ctx); err != nil && ctx.Err() == nil {
		e.log.Error("write services again", "error", err)
		e.synced = false
		e.work.add(manifest.Ref{Kind: manifest.KindService})
	}
}

// publish gives the DNS server the names that changed; the first time all of them.
func (e *Engine) publish(c dns.Change) {
	switch d := e.opts.DNS; {
	case d == nil:
	case !e.published:
		e.published = true
		d.Set(e.records())
	case len(c.Set.Services)+len(c.Set.Pods)+len(c.GoneServices)+len(c.GonePods) > 0:
		d.Update(c)
	}
}

// records are the names of all Services, with their ready endpoints, and of all pods with addresses.
func (e *Engine) records() dns.Records {
	var r dns.Records
	if own, ok := e.builtinNames(); ok && e.fronts.services[builtinRef()] == nil {
		r.Services = append(r.Services, own)
	}
	for _, ref := range slices.SortedFunc(maps.Keys(e.fronts.services), compareRefs) {
		r.Services = append(r.Services, e.fronts.services[ref].names)
	}
	for _, ref := range slices.SortedFunc(maps.Keys(e.fronts.pods), compareRefs) {
		if p := e.fronts.pods[ref]; len(p.names.Addrs) > 0 {
			r.Pods = append(r.Pods, p.names)
		}
	}
	return r
}
