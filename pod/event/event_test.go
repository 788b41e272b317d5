package event

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
)

func web() Object {
	return Object{Kind: "Pod", Namespace: "default", Name: "web", UID: "1", Field: "spec.containers{c}"}
}

// clock goes on by a second each time that it is asked.
func clock() func() time.Time {
	t := time.Date(2026, 11, 23, 3, 0, 0, 0, time.UTC)
	return func() time.Time {
		t = t.Add(time.Second)
		return t
	}
}

func TestTheSameIsCounted(t *testing.T) {
	r := Open(Options{Now: clock()})
	r.Normal(web(), "Pulled", "image %s", "a")
	r.Warning(web(), "BackOff", "again")
	r.Normal(web(), "Pulled", "image a")
	r.Warning(web(), "Pulled", "image a") // of another type
	other := web()
	other.UID = "2"
	r.Normal(other, "Pulled", "image a") // of another pod
	got := r.List()
	if len(got) != 4 || got[0].Reason != "BackOff" || got[1].Count != 2 {
		t.Fatalf("%+v", got)
	}
	if spent := got[1].Last.Sub(got[1].First); spent != 2*time.Second {
		t.Errorf("between the first and the last are %v", spent)
	}
	ids := map[int64]bool{}
	for _, e := range got {
		ids[e.ID] = true
	}
	if len(ids) != len(got) {
		t.Errorf("ids are not unique: %+v", got)
	}
}

func TestBounds(t *testing.T) {
	r := Open(Options{Node: "n"})
	r.Warning(r.Node(), "RulesChanged", "%s", strings.Repeat("x", 2*mostBytes))
	for i := range mostOfPods + 10 {
		r.Normal(web(), "Pulled", "image %d", i)
	}
	got := r.List()
	if len(got) != mostOfPods+1 || got[0].Reason != "RulesChanged" || got[1].Message != "image 10" || len(r.known) != len(got) {
		t.Errorf("%d events, %d known, the first of %s and %s", len(got), len(r.known), got[0].Reason, got[1].Message)
	}
	if len(got[0].Message) > mostBytes {
		t.Errorf("a message of %d bytes", len(got[0].Message))
	}
	for i := range 2 * mostOfOthers {
		r.Normal(r.Node(), "R", "%d", i)
	}
	if n := len(r.List()); n != mostOfPods+mostOfOthers {
		t.Errorf("%d events", n)
	}
}

func TestKeptAcrossARestart(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.json")
	r := Open(Options{Path: path, Now: clock()})
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("without an event there is a file: %v", err)
	}
	r = Open(Options{Path: path, Now: clock()})
	r.Normal(web(), "Pulled", "image a")
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	r.Normal(web(), "Pulled", "too late")
	again := Open(Options{Path: path, Now: clock()})
	again.Normal(web(), "Pulled", "image a")
	if got := again.List(); len(got) != 1 || got[0].Count != 2 {
		t.Errorf("%+v", got)
	}
	if err := os.WriteFile(path, []byte(`[{"id":1},`), 0o600); err != nil {
		t.Fatal(err)
	}
	if got := Open(Options{Path: path}).List(); len(got) != 0 {
		t.Errorf("of half a file: %+v", got)
	}
	if _, err := os.Stat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("half a file is left: %v", err)
	}
}

func TestSavedWithoutAClose(t *testing.T) {
	path := filepath.Join(t.TempDir(), "events.json")
	r := Open(Options{Path: path})
	r.Normal(web(), "Pulled", "image a")
	for end := time.Now().Add(time.Minute); ; time.Sleep(50 * time.Millisecond) {
		if len(Open(Options{Path: path}).List()) == 1 {
			break
		}
		if time.Now().After(end) {
			t.Fatal("it is not on the disk")
		}
	}
}

func TestWatch(t *testing.T) {
	r := Open(Options{})
	r.Normal(web(), "Pulled", "image a")
	past, next, stop := r.Watch()
	_, slow, _ := r.Watch()
	r.Normal(web(), "Pulled", "image a")
	if e := <-next; len(past) != 1 || past[0].Count != 1 || e.Count != 2 {
		t.Errorf("past %+v, then %+v", past, e)
	}
	stop()
	stop()
	if _, open := <-next; open {
		t.Error("it goes on when it is stopped")
	}
	for i := range lag {
		r.Normal(web(), "Pulled", "image %d", i)
	}
	read := 0
	for range slow {
		read++
	}
	if read != lag {
		t.Errorf("a slow reader had %d events", read)
	}
	_, last, _ := r.Watch()
	if err := r.Close(); err != nil {
		t.Fatal(err)
	}
	if _, open := <-last; open {
		t.Error("it goes on when the recorder is closed")
	}
}

func TestNone(t *testing.T) {
	var r *Recorder
	r.Normal(web(), "Pulled", "image a")
	_, next, stop := r.Watch()
	stop()
	if _, open := <-next; open || r.List() != nil || r.Node() != (Object{}) || r.Close() != nil {
		t.Error("a nil recorder has something")
	}
}

func TestKubernetes(t *testing.T) {
	r := Open(Options{Node: "n", Now: clock()})
	r.Warning(r.Node(), "RulesChanged", "m")
	r.Normal(web(), "Pulled", "image a")
	node, pod := r.List()[0].Kubernetes("n"), r.List()[1].Kubernetes("n")
	if node.Namespace != "default" || node.InvolvedObject.Namespace != "" || node.Type != corev1.EventTypeWarning || node.Source.Host != "n" {
		t.Errorf("%+v", node)
	}
	if pod.InvolvedObject.FieldPath != "spec.containers{c}" || pod.Type != corev1.EventTypeNormal || pod.Name == node.Name || pod.Count != 1 || pod.InvolvedObject.APIVersion != "v1" {
		t.Errorf("%+v", pod)
	}
}

func BenchmarkNote(b *testing.B) {
	r := Open(Options{})
	for i := 0; b.Loop(); i++ {
		r.Normal(web(), "Pulled", "image %d", i)
	}
	_ = fmt.Sprint(len(r.List()))
}
