package reconcile

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
)

// graceAnnotation keeps a pod's grace period with its sandbox, for when the object is gone.
const graceAnnotation = "pausa.run/grace-seconds"

// endStrangers ends sandboxes of the name that no object asks for.
func (e *Engine) endStrangers(ctx context.Context, boxes []*box) error {
	if len(boxes) == 0 {
		return nil
	}
	e.withdraw(ctx, refOfBox(boxes[0]))
	for _, b := range boxes {
		seconds, err := strconv.ParseInt(b.Config.Annotations[graceAnnotation], 10, 64)
		if err != nil {
			seconds = corev1.DefaultTerminationGracePeriodSeconds
		}
		if err := e.endBox(ctx, b, time.Duration(seconds)*time.Second); err != nil {
			return err
		}
		if err := e.clean(types.UID(b.Config.UID), b.Config.LogDirectory); err != nil {
			return err
		}
	}
	return nil
}

// endPod ends a pod whose object is marked for deletion, and then the object.
func (e *Engine) endPod(ctx context.Context, o manifest.Object, boxes []*box) error {
	p := o.Value().(*corev1.Pod)
	e.withdraw(ctx, o.Ref())
	now := e.clock.Now()
	grace := max(p.DeletionTimestamp.Sub(now), 0)
	asked := int64(0)
	if g := p.DeletionGracePeriodSeconds; g != nil {
		asked = *g
	}
	if asked > 0 {
		grace = max(grace, time.Second) // a daemon that was away still asks before it kills
	}
	var errs []error
	for _, b := range boxes {
		errs = append(errs, e.endBox(ctx, b, grace))
	}
	err := errors.Join(errs...)
	if err == nil {
		err = e.clean(p.UID, e.logDir(p))
	}
	if err != nil {
		if ctx.Err() != nil {
			return err
		}
		e.opts.Events.Warning(about(o), reasonStopping, "%v", err)
		e.notes.change(p.UID, sandboxNote, func(n *note) { n.reason, n.message = reasonStopping, err.Error() })
		if asked > 0 {
			return err
		}
		// Forced: the pod manager goes on removing what is left.
		e.log.Warn("pod is deleted by force; what is left is removed in the background", "object", o.Ref().String(), "error", err)
	}
	if err := e.objects.remove(o); err != nil {
		return err
	}
	e.notes.forget(p.UID)
	e.users.forget(p.UID)
	e.orphaned(o)
	return nil
}

// orphaned wakes those who wait for the end of a pod whose object is gone already.
func (e *Engine) orphaned(o manifest.Object) {
	for _, owner := range o.Meta().OwnerReferences {
		e.work.add(manifest.Ref{Kind: owner.Kind, Namespace: o.Namespace(), Name: owner.Name})
	}
	e.work.add(manifest.Ref{Kind: manifest.KindNamespace, Name: o.Namespace()})
}

// withdraw takes a pod that is about to end out of the Services first, so that no
// new connection goes to a container that has been told to stop.
func (e *Engine) withdraw(ctx context.Context, ref manifest.Ref) {
	e.fronts.mark(ref)
	if err := e.syncServices(ctx); err != nil && ctx.Err() == nil {
		e.log.Warn("withdraw a pod from its services", "error", err)
		e.work.add(manifest.Ref{Kind: manifest.KindService})
	}
}

// refOfBox is the name of the pod that a sandbox is of.
func refOfBox(b *box) manifest.Ref {
	return manifest.Ref{Kind: manifest.KindPod, Namespace: b.Config.Namespace, Name: b.Config.Name}
}

// endBox stops the containers and removes the sandbox.
func (e *Engine) endBox(ctx context.Context, b *box, grace time.Duration) error {
	if b.Problem == "" {
		if err := e.endContainers(ctx, b, grace); err != nil {
			return err
		}
		// It served to its end if it was the last; its address is somebody else's soon.
		e.withdraw(ctx, refOfBox(b))
	}
	for _, list := range b.containers {
		for _, c := range list {
			e.probes.Forget(c.ID)
		}
	}
	return e.pods.Remove(ctx, b.ID)
}

func (e *Engine) stopContainers(ctx context.Context, b *box, list []pod.Container, grace time.Duration) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, c := range list {
		wg.Go(func() { errs[i] = e.stopContainer(ctx, b, c, grace) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

// stopBoxes gives back what sandboxes hold and keeps their records.
func (e *Engine) stopBoxes(ctx context.Context, boxes []*box) error {
	var errs []error
	for _, b := range boxes {
		if b.StoppedAt.IsZero() && b.Problem == "" {
			errs = append(errs, e.pods.Stop(ctx, b.ID))
		}
	}
	return errors.Join(errs...)
}

// removeBoxes forgets earlier sandboxes of a pod. Those with a Problem are the manager's to retry.
func (e *Engine) removeBoxes(ctx context.Context, boxes []*box) error {
	var errs []error
	for _, b := range boxes {
		if b.Problem == "" {
			errs = append(errs, e.pods.Remove(ctx, b.ID))
		}
	}
	return errors.Join(errs...)
}

// clean removes a pod's volumes and logs. Nothing of the pod may run any more.
func (e *Engine) clean(uid types.UID, logs string) error {
	err := e.volumes.remove(uid)
	if logs != "" {
		err = errors.Join(err, os.RemoveAll(logs))
	}
	if err != nil {
		return fmt.Errorf("clean up after pod %s: %w", uid, err)
	}
	return nil
}

// sweepLogs removes log folders of pods that are not known.
func (e *Engine) sweepLogs(known map[types.UID]bool) error {
	root := filepath.Join(e.opts.StateDir, "logs")
	entries, err := os.ReadDir(root)
	if err != nil {
		if os.IsNotExist(err) {
			return nil
		}
		return err
	}
	var errs []error
	for _, d := range entries {
		uid := types.UID(d.Name()[strings.LastIndexByte(d.Name(), '_')+1:])
		if d.IsDir() && strings.Count(d.Name(), "_") == 2 && !known[uid] {
			errs = append(errs, os.RemoveAll(filepath.Join(root, d.Name())))
		}
	}
	return errors.Join(errs...)
}
