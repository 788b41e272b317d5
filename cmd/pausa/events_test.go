package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/pod/event"
)

// Events sends those that are asked for, in the way of the daemon.
func (f *fakeDaemon) Events(r *pausav1.EventsRequest, out grpc.ServerStreamingServer[pausav1.EventsResponse]) error {
	answer := &pausav1.EventsResponse{}
	for _, e := range f.events {
		k := e.Kubernetes("node1")
		if (r.Namespace == "" || r.Namespace == k.Namespace) && (r.Kind == "" || r.Kind == e.Object.Kind) &&
			(r.Name == "" || r.Name == e.Object.Name) && (len(r.Types) == 0 || slices.Contains(r.Types, k.Type)) {
			answer.Events = append(answer.Events, mustJSON(k))
		}
	}
	if err := out.Send(answer); err != nil || !r.Watch {
		return err
	}
	for e := range f.later {
		if err := out.Send(&pausav1.EventsResponse{Events: [][]byte{mustJSON(e.Kubernetes("node1"))}}); err != nil {
			return err
		}
	}
	return nil
}

func someEvents() []event.Event {
	at := func(ago time.Duration) time.Time { return now().Add(-ago) }
	hello := event.Object{Kind: "Pod", Namespace: "default", Name: "hello", UID: "u1", Field: "spec.containers{web}"}
	return []event.Event{
		{ID: 1, Object: event.Object{Kind: "Node", Name: "node1"}, Warning: true, Reason: "RulesChanged", Message: "rules of pausa were changed by nft; it was made again", Count: 3, First: at(2 * time.Minute), Last: at(90 * time.Second)},
		{ID: 2, Object: hello, Reason: "Pulled", Message: "image\x1b[2J", Count: 1, First: at(5 * time.Second), Last: at(5 * time.Second)},
		{ID: 3, Object: event.Object{Kind: "Service", Namespace: "shop", Name: "db"}, Warning: true, Reason: "NoReadyEndpoints", Message: "none", Count: 1, First: at(0), Last: at(0)},
	}
}

func TestEvents(t *testing.T) {
	f := startFake(t)
	f.run(t, "events").want(t, 0, "", "No events found in default namespace.")
	f.events = someEvents()
	f.run(t, "events").want(t, 0, "LAST SEEN          TYPE      REASON         OBJECT       MESSAGE\n"+
		"90s (x3 over 2m)   Warning   RulesChanged   node/node1   rules of pausa were changed by nft; it was made again\n"+
		"5s                 Normal    Pulled         pod/hello    image [2J\n", "")
	for line, want := range map[string]string{
		"-A --no-headers":                 "default default shop",
		"-n shop --no-headers":            "0s",
		"--for node/node1 --no-headers":   "90s",
		"--for no/node1 --no-headers":     "90s",
		"--for po/hello --no-headers":     "5s",
		"-A --types warning --no-headers": "default shop",
		"-A --types Warning,Normal -A":    "NAMESPACE default default shop",
		"--for pod/hello -o wide":         "LAST 5s",
	} {
		r := f.run(t, append([]string{"events"}, strings.Fields(line)...)...)
		var first []string
		for l := range strings.Lines(r.out) {
			first = append(first, strings.Fields(l)[0])
		}
		if got := strings.Join(first, " "); r.code != 0 || got != want {
			t.Errorf("events %s: exit %d, lines begin with %q, want %q", line, r.code, got, want)
		}
	}
	f.run(t, "events", "--for", "pod/hello", "-o", "wide").want(t, 0, "spec.containers{web}   pausa, node1   image [2J   5s           1       hello.2", "")
	var list struct {
		Kind  string
		Items []struct {
			Reason         string
			InvolvedObject struct{ Name string }
		}
	}
	r := f.run(t, "events", "-A", "-o", "json")
	if err := json.Unmarshal([]byte(r.out), &list); err != nil || list.Kind != "List" || len(list.Items) != 3 || list.Items[2].InvolvedObject.Name != "db" {
		t.Errorf("%v: %s", err, r.out)
	}
}

func TestWatchEvents(t *testing.T) {
	f := startFake(t)
	f.events = someEvents()
	f.later = make(chan event.Event, 1)
	f.later <- event.Event{ID: 9, Object: event.Object{Kind: "Pod", Namespace: "default", Name: "late"}, Reason: "Killing", Message: "m", Count: 1, First: now(), Last: now()}
	close(f.later)
	r := f.run(t, "events", "--watch", "--types", "Normal")
	if lines := strings.Split(r.out, "\n"); r.code != 0 || len(lines) != 4 || !strings.HasPrefix(lines[0], "LAST SEEN") || !strings.HasPrefix(lines[2], "0s ") || !strings.Contains(lines[2], "pod/late") {
		t.Errorf("exit %d:\n%s%s", r.code, r.out, r.err)
	}
	if r := f.run(t, "events", "-w", "-o", "yaml", "-n", "shop"); strings.Count(r.out, "---\n") != 1 || !strings.Contains(r.out, "reason: NoReadyEndpoints") {
		t.Errorf("%s%s", r.out, r.err)
	}
}

func TestDescribeTellsEvents(t *testing.T) {
	f := startFake(t)
	f.runWith(t, helloManifest, "apply", "-f", "-").want(t, 0, "created", "")
	f.events = someEvents()
	f.run(t, "describe", "pod", "hello").want(t, 0, "Events: <none>\n", "") // those of another pod of its name are not its own
	f.events[1].Object.UID = ""
	f.run(t, "describe", "pod", "hello").want(t, 0, "Events:\n  TYPE     REASON   AGE   MESSAGE\n  Normal   Pulled   5s    image [2J\n", "")
}
