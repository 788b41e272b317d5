package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime/debug"
	"slices"
	"time"

	"k8s.io/apimachinery/pkg/labels"

	"github.com/pausa-run/pausa/cmd/pausa/internal/config"
	"github.com/pausa-run/pausa/cri"
	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/pod/reconcile"
)

// declared gives the socket the engine's objects, as JSON.
type declared struct {
	engine  *reconcile.Engine
	release *time.Timer // of memory
}

// A request for very many objects leaves as much garbage again. It goes back to the
// system when no such request has come for a while.
const (
	manyObjects  = 500
	releaseAfter = 2 * time.Second
)

func declaredBy(engine *reconcile.Engine) declared {
	d := declared{engine, time.AfterFunc(releaseAfter, debug.FreeOSMemory)}
	d.release.Stop()
	return d
}

// Apply has an error of its own only if no single object is to blame.
func (d declared) Apply(ctx context.Context, objects []cri.Object, dryRun bool) ([]cri.ApplyResult, error) {
	if len(objects) >= manyObjects {
		defer d.release.Reset(releaseAfter)
	}
	var read []manifest.Object
	var errs []error
	for _, o := range objects {
		found, err := manifest.Decode(bytes.NewReader(o.JSON), o.Source)
		errs = append(errs, err)
		read = append(read, found...)
	}
	if err := errors.Join(errs...); err != nil {
		return nil, fmt.Errorf("%w: %w", pod.ErrInvalid, err)
	}
	results, err := d.engine.Apply(ctx, read, dryRun)
	if err != nil && !slices.ContainsFunc(results, func(r reconcile.ApplyResult) bool { return r.Err != nil }) {
		return nil, err
	}
	out := make([]cri.ApplyResult, 0, len(results))
	for _, r := range results {
		one := cri.ApplyResult{Ref: cri.Ref(r.Ref), Outcome: r.Outcome}
		if r.Note != "" {
			one.Outcome += " (" + r.Note + ")"
		}
		switch {
		case r.Err != nil:
			one.Error = r.Err.Error()
		case r.Outcome == "":
			one.Outcome = "not stored"
		}
		out = append(out, one)
	}
	return out, nil
}

func (d declared) Get(_ context.Context, sel cri.Selection) ([][]byte, error) {
	selector, err := parseSelector(sel.LabelSelector)
	if err != nil {
		return nil, err
	}
	found, err := d.engine.Get(sel.Kind, sel.Namespace, sel.Name, selector)
	if err != nil {
		return nil, err
	}
	out := make([][]byte, 0, len(found))
	for _, o := range found {
		data, err := json.Marshal(o)
		if err != nil {
			return nil, err
		}
		out = append(out, data)
	}
	return out, nil
}

func (d declared) Delete(ctx context.Context, sel cri.Selection, o cri.DeleteOptions) ([]cri.Ref, error) {
	selector, err := parseSelector(sel.LabelSelector)
	if err != nil {
		return nil, err
	}
	gone, err := d.engine.Delete(ctx, reconcile.DeleteOptions{
		Kind: sel.Kind, Namespace: sel.Namespace, Name: sel.Name, All: o.All, Selector: selector, Wait: o.Wait, Grace: o.Grace,
	})
	out := make([]cri.Ref, 0, len(gone))
	for _, r := range gone {
		out = append(out, cri.Ref(r))
	}
	return out, err
}

func (d declared) FindContainer(namespace, pod, container string, previous bool) (id, logPath string, err error) {
	return d.engine.FindContainer(namespace, pod, container, previous)
}

// parseSelector is nil for "", which selects everything.
func parseSelector(text string) (labels.Selector, error) {
	if text == "" {
		return nil, nil
	}
	selector, err := labels.Parse(text)
	if err != nil {
		return nil, fmt.Errorf("%w: label selector %q: %w", pod.ErrInvalid, text, err)
	}
	return selector, nil
}

// imageOptions are the settings of the image store.
func imageOptions(c *config.Config, log *slog.Logger) images.Options {
	return images.Options{
		Root: filepath.Join(c.State, "images"), Run: filepath.Join(c.Run, "images"), RegistryConfig: c.RegistryConfig, Log: log,
		Pinned: c.Images.Pinned, DigestOnly: c.Images.DigestOnly, VerifierDir: c.Images.VerifierDir,
		MaxConcurrentPulls: c.Images.MaxConcurrentPulls, PullProgressTimeout: c.Images.PullProgressTimeout,
		GC: images.GC{HighPercent: c.Images.GCHighPercent, LowPercent: c.Images.GCLowPercent, MinAge: c.Images.GCMinAge},
	}
}

// pullFor gives the socket the store's pull.
func pullFor(store *images.Store, meters *meters) cri.PullFunc {
	return func(ctx context.Context, ref string, auth *cri.Auth) (images.Image, error) {
		var opts images.PullOptions
		if auth != nil {
			if auth.RegistryToken != "" {
				return images.Image{}, fmt.Errorf("%w: pull %s: registry tokens are not supported: use a user name and password, or an identity token", pod.ErrInvalid, ref)
			}
			opts.Auth = images.Auth{
				Username: auth.Username, Password: auth.Password, IdentityToken: auth.IdentityToken, ServerAddress: auth.Server,
			}
		}
		return meters.pull(func() (images.Image, error) { return store.Pull(ctx, ref, opts) })
	}
}
