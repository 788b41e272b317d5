//go:build integration

package integration

import (
	"context"
	"flag"
	"fmt"
	"os"
	"strconv"
	"strings"
	"sync"
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
)

var transitions = flag.Int("transitions", 800, "changes of containers that TestContainerEvents makes at least; 10000 is the whole of it")

const (
	created = criv1.ContainerEventType_CONTAINER_CREATED_EVENT
	started = criv1.ContainerEventType_CONTAINER_STARTED_EVENT
	stopped = criv1.ContainerEventType_CONTAINER_STOPPED_EVENT
	deleted = criv1.ContainerEventType_CONTAINER_DELETED_EVENT
)

// story is what one consumer was told, by id of the pod or container, in its order.
type story map[string][]criv1.ContainerEventType

// watcher is one consumer of events.
type watcher struct {
	stream criv1.RuntimeService_GetContainerEventsClient
	cancel context.CancelFunc
}

// watch connects a consumer by a connection of its own.
func (k *kubelet) watch() *watcher {
	k.n.t.Helper()
	own := newKubelet(k.n.t, k.n)
	ctx, cancel := context.WithCancel(own.ctx)
	k.n.t.Cleanup(cancel)
	stream, err := own.runtime.GetContainerEvents(ctx, &criv1.GetEventsRequest{})
	if err != nil {
		k.n.t.Fatal(err)
	}
	// Until its header is here, the stream might not have begun.
	if _, err := stream.Header(); err != nil {
		k.n.t.Fatal(err)
	}
	return &watcher{stream, cancel}
}

// until reads events up to the one of an id and a kind.
func (w *watcher) until(id string, kind criv1.ContainerEventType) (story, error) {
	told := story{}
	for {
		e, err := w.stream.Recv()
		if err != nil {
			return told, fmt.Errorf("after %d ids: %w", len(told), err)
		}
		if err := sound(e); err != nil {
			return told, err
		}
		told[e.ContainerId] = append(told[e.ContainerId], e.ContainerEventType)
		if e.ContainerId == id && e.ContainerEventType == kind {
			return told, nil
		}
	}
}

// sound says what an event lacks, or what its statuses contradict.
func sound(e *criv1.ContainerEventResponse) error {
	if e.PodSandboxStatus.GetMetadata().GetUid() == "" || e.CreatedAt == 0 {
		return fmt.Errorf("event without its pod or time: %v", e)
	}
	for _, c := range e.ContainersStatuses {
		if c.Id == e.ContainerId && (e.ContainerEventType == stopped && c.State != criv1.ContainerState_CONTAINER_EXITED || e.ContainerEventType == deleted || c.Metadata.GetName() == "") {
			return fmt.Errorf("event with a status that contradicts it: %v", e)
		}
	}
	return nil
}

// whole fails the test unless exactly these pods and containers have each begun and ended, in order.
func (s story) whole(t *testing.T, who string, ids map[string]bool) {
	t.Helper()
	want := fmt.Sprint([]criv1.ContainerEventType{created, started, stopped, deleted})
	for id := range ids {
		if got := fmt.Sprint(s[id]); got != want {
			t.Errorf("%s was told of %s: %s", who, id, got)
		}
	}
	if len(s) < len(ids) {
		t.Errorf("%s was told of %d of %d", who, len(s), len(ids))
	}
}

// lives makes pods one after the other, and in each ten containers, of which every other
// one ends by itself. It returns the ids of all.
func (k *kubelet) lives(worker, containers int) (ids []string, err error) {
	var sandbox string
	var config *criv1.PodSandboxConfig
	end := func() error {
		_, err := k.runtime.RemovePodSandbox(k.ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: sandbox})
		return err
	}
	for i := range containers {
		if i%10 == 0 {
			if i > 0 {
				if err := end(); err != nil {
					return ids, err
				}
			}
			config = k.sandboxConfig(fmt.Sprintf("events-%d-%d", worker, i))
			config.LogDirectory = ""
			r, err := k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: config})
			if err != nil {
				return ids, err
			}
			sandbox = r.PodSandboxId
			ids = append(ids, sandbox)
		}
		id, err := k.life(sandbox, config, i)
		if err != nil {
			return ids, err
		}
		ids = append(ids, id)
	}
	return ids, end()
}

func (k *kubelet) life(sandbox string, pod *criv1.PodSandboxConfig, i int) (string, error) {
	config := k.containerConfig("")
	config.Metadata.Name, config.LogPath = fmt.Sprint("c", i), ""
	config.Command = []string{"sleep", "1000"}
	if i%2 == 0 {
		config.Command = []string{"true"}
	}
	r, err := k.runtime.CreateContainer(k.ctx, &criv1.CreateContainerRequest{PodSandboxId: sandbox, SandboxConfig: pod, Config: config})
	if err != nil {
		return "", err
	}
	if _, err = k.runtime.StartContainer(k.ctx, &criv1.StartContainerRequest{ContainerId: r.ContainerId}); err == nil && i%2 == 1 {
		_, err = k.runtime.StopContainer(k.ctx, &criv1.StopContainerRequest{ContainerId: r.ContainerId})
	}
	if err == nil {
		_, err = k.runtime.RemoveContainer(k.ctx, &criv1.RemoveContainerRequest{ContainerId: r.ContainerId})
	}
	return r.ContainerId, err
}

// Every consumer is told of each transition of every container, in order: one that reads
// along, one that reads when all is over, and one that connects again, which is told the
// present state first. One that never reads takes no more than a bounded memory.
func TestContainerEvents(t *testing.T) {
	n := newNode(t, "events")
	k := newKubelet(t, n)
	before := n.daemonMemory()
	along, late, never, again := k.watch(), k.watch(), k.watch(), k.watch()
	const workers = 4
	last, err := k.runtime.RunPodSandbox(k.ctx, &criv1.RunPodSandboxRequest{Config: k.sandboxConfig("last")})
	if err != nil {
		t.Fatal(err)
	}
	end := last.PodSandboxId // its removal is the last event that a reader waits for
	var told story
	var mu sync.Mutex
	ids := map[string]bool{end: true}
	var reading, making sync.WaitGroup
	reading.Go(func() {
		var err error
		if told, err = along.until(end, deleted); err != nil {
			t.Error(err)
		}
	})
	if _, err := again.until(end, started); err != nil {
		t.Fatal(err)
	}
	again.cancel()
	for w := range workers {
		making.Go(func() {
			made, err := k.lives(w, max(1, *transitions/4/workers))
			if err != nil {
				t.Error(err)
			}
			mu.Lock()
			defer mu.Unlock()
			for _, id := range made {
				ids[id] = true
			}
		})
	}
	making.Wait()
	back := k.watch()
	if now, err := back.until(end, started); err != nil || len(now) != 1 {
		t.Errorf("who connects again is told of %d, %v", len(now), err)
	}
	if _, err := k.runtime.RemovePodSandbox(k.ctx, &criv1.RemovePodSandboxRequest{PodSandboxId: end}); err != nil {
		t.Fatal(err)
	}
	reading.Wait()
	told.whole(t, "who reads along", ids)
	lately, err := late.until(end, deleted)
	if err != nil {
		t.Error(err)
	}
	lately.whole(t, "who reads late", ids)
	if then, err := back.until(end, deleted); err != nil || len(then) != 1 {
		t.Errorf("who connected again is then told of %d, %v", len(then), err)
	}
	after := n.daemonMemory()
	t.Logf("%d pods and containers, %d events each consumer; memory of the daemon %d → %d kB", len(ids), 4*len(ids), before, after)
	if after > before+64<<10 {
		t.Errorf("the daemon took %d kB more for those who do not read", after-before)
	}
	never.cancel()
}

// daemonMemory is what the daemon has in memory of its own, in kB.
func (n *node) daemonMemory() int {
	n.t.Helper()
	procs, err := n.Processes()
	if err != nil {
		n.t.Fatal(err)
	}
	for _, p := range procs {
		if p.Comm != "pausa" {
			continue
		}
		raw, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", p.OuterPid))
		if err != nil {
			n.t.Fatal(err)
		}
		_, rest, _ := strings.Cut(string(raw), "RssAnon:")
		if f := strings.Fields(rest); len(f) > 0 {
			kb, _ := strconv.Atoi(f[0])
			return kb
		}
	}
	n.t.Fatal("no daemon")
	return 0
}
