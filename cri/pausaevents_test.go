package cri

import (
	"context"
	"errors"
	"io"
	"testing"

	"google.golang.org/grpc/codes"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/pod/event"
)

func TestEventsOfThePausaService(t *testing.T) {
	events := event.Open(event.Options{Node: "n"})
	d := newDaemon(t, func(o *Options) { o.Events = events })
	web := event.Object{Kind: "Pod", Namespace: "shop", Name: "web"}
	events.Warning(events.Node(), "RulesChanged", "m")
	events.Normal(web, "Pulled", "m")
	ask := func(r *pausav1.EventsRequest) (pausav1.Pausa_EventsClient, int) {
		t.Helper()
		stream, err := d.own.Events(t.Context(), r)
		if err != nil {
			t.Fatal(err)
		}
		answer, err := stream.Recv()
		if err != nil {
			t.Fatal(err)
		}
		return stream, len(answer.Events)
	}
	for _, c := range []struct {
		r    *pausav1.EventsRequest
		want int
	}{
		{&pausav1.EventsRequest{}, 2},
		{&pausav1.EventsRequest{Namespace: "default"}, 1},
		{&pausav1.EventsRequest{Namespace: "other"}, 0},
		{&pausav1.EventsRequest{Kind: "Pod"}, 1},
		{&pausav1.EventsRequest{Kind: "Pod", Name: "db"}, 0},
		{&pausav1.EventsRequest{Types: []string{"Warning"}}, 1},
	} {
		stream, n := ask(c.r)
		if _, err := stream.Recv(); n != c.want || !errors.Is(err, io.EOF) {
			t.Errorf("%v: %d events, want %d, then %v", c.r, n, c.want, err)
		}
	}
	stream, err := d.own.Events(t.Context(), &pausav1.EventsRequest{Types: []string{"Bad"}})
	if err == nil {
		_, err = stream.Recv()
	}
	wantCode(t, err, codes.InvalidArgument, "types")

	stream, n := ask(&pausav1.EventsRequest{Namespace: "shop", Name: "db", Watch: true})
	if n != 0 {
		t.Errorf("%d events of db", n)
	}
	events.Normal(web, "Pulled", "again") // not asked for
	web.Name = "db"
	events.Normal(web, "Killing", "m")
	if answer, err := stream.Recv(); err != nil || len(answer.Events) != 1 {
		t.Errorf("watched: %v, %v", answer, err)
	}
	if err := events.Close(); err != nil {
		t.Fatal(err)
	}
	_, err = stream.Recv()
	wantCode(t, err, codes.ResourceExhausted, "ask again")
}

func TestWatchOfEventsEndsWithTheCaller(t *testing.T) {
	d := newDaemon(t, func(o *Options) { o.Events = event.Open(event.Options{}) })
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := d.own.Events(ctx, &pausav1.EventsRequest{Watch: true})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := stream.Recv(); err != nil {
		t.Fatal(err)
	}
	cancel()
	if _, err := stream.Recv(); err == nil {
		t.Error("it goes on")
	}
}
