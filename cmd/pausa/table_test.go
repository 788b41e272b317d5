package main

import (
	"bytes"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

func TestTables(t *testing.T) {
	f := startFake(t)
	f.runWith(t, helloManifest, "apply", "-f", "-").want(t, 0, "created", "")
	f.runWith(t, `apiVersion: v1
kind: Namespace
metadata: {name: shop}
---
apiVersion: v1
kind: ConfigMap
metadata: {name: settings, namespace: shop, labels: {a: b}}
data: {x: "1", y: "2"}
---
apiVersion: v1
kind: Secret
metadata: {name: key, namespace: shop}
data: {password: aHVudGVyMg==}
type: Opaque
`, "apply", "-f", "-").want(t, 0, "created", "")
	var all strings.Builder
	for _, line := range []string{
		"get pods", "get po -o wide", "get all", "get svc,deploy -o wide", "get all -A --show-labels", "get cm,secrets,ns -A",
		"get pods --no-headers", "get pods -o name", "describe pod hello", "describe secret key -n shop", "describe cm settings -n shop",
		"describe svc hello", "describe deployment front",
	} {
		r := f.run(t, strings.Fields(line)...)
		r.want(t, 0, "", "")
		all.WriteString("$ pausa " + line + "\n" + r.out + "\n")
	}
	if strings.Contains(all.String(), "hunter2") || strings.Contains(all.String(), "aHVudGVyMg") {
		t.Error("a secret's value is shown")
	}
	golden(t, "tables.txt", all.String())
}

func TestEndpointsRow(t *testing.T) {
	o, err := parseObject([]byte(`{"apiVersion":"v1","kind":"Endpoints","metadata":{"name":"x"},"subsets":[
		{"addresses":[{"ip":"10.0.0.1"},{"ip":"fd00::1"}],"ports":[{"port":80}]},{"addresses":[{"ip":"10.0.0.2"}]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	cells, _, err := rowOf(o, now())
	if err != nil || cells[0] != "10.0.0.1:80,[fd00::1]:80,10.0.0.2" || cells[1] != "<unknown>" {
		t.Errorf("%q, %v", cells, err)
	}
}

func TestUnknownKindStillPrints(t *testing.T) {
	o, err := parseObject([]byte(`{"apiVersion":"x/v1","kind":"Widget","metadata":{"name":"x","creationTimestamp":"2026-11-22T11:00:00Z"}}`))
	if err != nil {
		t.Fatal(err)
	}
	rows, err := tableRows([]object{o}, tableOptions{now: now(), wide: true})
	if err != nil || strings.Join(rows[1], " ") != "x 60m" {
		t.Errorf("%q, %v", rows, err)
	}
}

func TestHostileNames(t *testing.T) {
	var out bytes.Buffer
	p := &program{out: &out}
	if err := p.printRows([][]string{{"a\x1b[2J", "b\nc"}}); err != nil || out.String() != "a [2J   b c\n" {
		t.Errorf("%q, %v", out.String(), err)
	}
}

func waiting(reason string) corev1.ContainerState {
	return corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: reason}}
}

func terminated(code int32, reason string) corev1.ContainerState {
	return corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{ExitCode: code, Reason: reason}}
}

func TestSummarize(t *testing.T) {
	running := corev1.ContainerState{Running: &corev1.ContainerStateRunning{}}
	crashed := corev1.ContainerStatus{
		State: waiting("CrashLoopBackOff"), RestartCount: 3,
		LastTerminationState: corev1.ContainerState{Terminated: &corev1.ContainerStateTerminated{FinishedAt: metav1.NewTime(now().Add(-2 * time.Minute))}},
	}
	for name, c := range map[string]struct {
		phase      corev1.PodPhase
		reason     string
		init, main []corev1.ContainerStatus
		deleted    bool
		want       podSummary
	}{
		"new":         {phase: "Pending", want: podSummary{"0/2", "Pending", "0"}},
		"running":     {phase: "Running", main: []corev1.ContainerStatus{{State: running, Ready: true}, {State: running}}, want: podSummary{"1/2", "Running", "0"}},
		"creating":    {phase: "Pending", main: []corev1.ContainerStatus{{State: waiting("ContainerCreating")}, {State: waiting("")}}, want: podSummary{"0/2", "ContainerCreating", "0"}},
		"crash":       {phase: "Running", main: []corev1.ContainerStatus{crashed, {State: running, Ready: true}}, want: podSummary{"1/2", "CrashLoopBackOff", "3 (2m ago)"}},
		"done":        {phase: "Succeeded", main: []corev1.ContainerStatus{{State: terminated(0, "Completed")}}, want: podSummary{"0/2", "Completed", "0"}},
		"one done":    {phase: "Running", main: []corev1.ContainerStatus{{State: terminated(0, "Completed")}, {State: running, Ready: true}}, want: podSummary{"1/2", "Running", "0"}},
		"exit code":   {phase: "Failed", main: []corev1.ContainerStatus{{State: terminated(3, "")}}, want: podSummary{"0/2", "ExitCode:3", "0"}},
		"evicted":     {phase: "Failed", reason: "Evicted", want: podSummary{"0/2", "Evicted", "0"}},
		"terminating": {phase: "Running", deleted: true, main: []corev1.ContainerStatus{{State: running, Ready: true}}, want: podSummary{"1/2", "Terminating", "0"}},
		"init":        {phase: "Pending", init: []corev1.ContainerStatus{{State: terminated(0, "Completed")}, {State: running}}, want: podSummary{"0/2", "Init:1/2", "0"}},
		"init failed": {phase: "Pending", init: []corev1.ContainerStatus{{State: terminated(1, "Error")}}, want: podSummary{"0/2", "Init:Error", "0"}},
		"init waits":  {phase: "Pending", init: []corev1.ContainerStatus{{State: waiting("ImagePullBackOff"), RestartCount: 1}}, want: podSummary{"0/2", "Init:ImagePullBackOff", "1"}},
		"init is through": {
			phase: "Running", init: []corev1.ContainerStatus{{State: terminated(0, "Completed")}},
			main: []corev1.ContainerStatus{{State: running, Ready: true}}, want: podSummary{"1/2", "Running", "0"},
		},
	} {
		p := &corev1.Pod{Spec: corev1.PodSpec{Containers: make([]corev1.Container, 2), InitContainers: make([]corev1.Container, 2)}}
		p.Status.Phase, p.Status.Reason = c.phase, c.reason
		p.Status.InitContainerStatuses, p.Status.ContainerStatuses = c.init, c.main
		if c.deleted {
			p.DeletionTimestamp = &metav1.Time{Time: now()}
		}
		if got := summarize(p, now()); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

func TestKindsMatchTheDaemon(t *testing.T) {
	for _, k := range kinds() {
		for _, name := range append(k.names(), k.resource(), strings.ToUpper(k.name)) {
			got, err := parseKind(name)
			if err != nil || got.name != k.name {
				t.Errorf("parseKind(%q) = %q, %v", name, got.name, err)
			}
		}
	}
}
