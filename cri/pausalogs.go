package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"time"

	"github.com/pausa-run/pausa/cri/logs"
	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/pod"
)

// Logs streams the log of a container of a declared pod.
func (s *pausaService) Logs(r *pausav1.LogsRequest, out pausav1.Pausa_LogsServer) error {
	objects, err := s.objects()
	if err != nil {
		return err
	}
	o := logs.Options{Follow: r.Follow, Timestamps: r.Timestamps, Tail: -1}
	if r.Tail != nil {
		if o.Tail = *r.Tail; o.Tail < 0 {
			return invalid("tail", "%d is negative", o.Tail)
		}
	}
	if r.SinceSeconds != nil {
		ago, err := seconds("since_seconds", *r.SinceSeconds)
		if err != nil {
			return err
		}
		o.Since = time.Now().Add(-ago)
	}
	id, path, err := objects.FindContainer(r.Namespace, r.Pod, r.Container, r.Previous)
	if err != nil {
		return err
	}
	if path == "" {
		return fmt.Errorf("container %s of pod %s keeps no log: %w", r.Container, r.Pod, pod.ErrState)
	}
	ctx, cancel := context.WithCancel(out.Context())
	defer cancel()
	if r.Follow {
		o.Ended = s.ended(ctx, id)
	}
	err = logs.Read(ctx, path, o, func(l logs.Lines) error {
		return out.Send(&pausav1.LogsResponse{Data: l.Data, Stderr: l.Stderr})
	})
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("container %s of pod %s has no log yet: %w", r.Container, r.Pod, pod.ErrNotFound)
	}
	return err
}

// ended is closed when the container has, or cannot be waited for, or the daemon stops.
func (s *pausaService) ended(ctx context.Context, id string) <-chan struct{} {
	done := make(chan struct{})
	ctx, cancel := context.WithCancel(ctx)
	go func() {
		select {
		case <-s.stopping:
		case <-ctx.Done():
		}
		cancel()
	}()
	go func() {
		defer close(done)
		defer cancel()
		if id != "" { // else only the log is left
			_, _ = s.o.Pods.Wait(ctx, id)
		}
	}()
	return done
}
