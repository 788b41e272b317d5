package main

import (
	"fmt"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

// podSummary is a pod in the words of a table.
type podSummary struct {
	ready    string // "1/2"
	status   string // "Running", "CrashLoopBackOff", "Init:0/1", "Terminating", …
	restarts string // "3 (2m ago)"
}

// summarize says a pod's state as kubectl does: the most telling reason of its
// containers, else its phase.
func summarize(pod *corev1.Pod, now time.Time) podSummary {
	status := string(pod.Status.Phase)
	if pod.Status.Reason != "" {
		status = pod.Status.Reason
	}
	restarts, last := restartsOf(pod.Status.ContainerStatuses)
	ready := 0
	if text, pending := initStatus(pod); pending {
		status = text
		restarts, last = restartsOf(pod.Status.InitContainerStatuses)
	} else {
		status, ready = containersStatus(pod, status)
	}
	if pod.DeletionTimestamp != nil {
		status = "Terminating"
	}
	out := podSummary{fmt.Sprintf("%d/%d", ready, len(pod.Spec.Containers)), status, strconv.Itoa(restarts)}
	if restarts > 0 && !last.IsZero() {
		out.restarts += fmt.Sprintf(" (%s ago)", duration.HumanDuration(now.Sub(last)))
	}
	return out
}

func restartsOf(statuses []corev1.ContainerStatus) (count int, last time.Time) {
	for _, s := range statuses {
		count += int(s.RestartCount)
		if t := s.LastTerminationState.Terminated; t != nil && t.FinishedAt.After(last) {
			last = t.FinishedAt.Time
		}
	}
	return count, last
}

// initStatus says how far the init containers are; pending is false when they
// are through, or when there are none.
func initStatus(pod *corev1.Pod) (text string, pending bool) {
	for i, s := range pod.Status.InitContainerStatuses {
		switch {
		case s.State.Terminated != nil && s.State.Terminated.ExitCode == 0:
			continue
		case s.State.Terminated != nil:
			return "Init:" + terminatedText(s.State.Terminated), true
		case s.State.Waiting != nil && s.State.Waiting.Reason != "" && s.State.Waiting.Reason != "PodInitializing":
			return "Init:" + s.State.Waiting.Reason, true
		default:
			return fmt.Sprintf("Init:%d/%d", i, len(pod.Spec.InitContainers)), true
		}
	}
	return "", false
}

// containersStatus finds the first container with a reason to tell, and counts the ready ones.
func containersStatus(pod *corev1.Pod, phase string) (status string, ready int) {
	status = phase
	running := false
	for i := len(pod.Status.ContainerStatuses) - 1; i >= 0; i-- {
		s := pod.Status.ContainerStatuses[i]
		switch {
		case s.State.Waiting != nil && s.State.Waiting.Reason != "":
			status = s.State.Waiting.Reason
		case s.State.Terminated != nil:
			status = terminatedText(s.State.Terminated)
		case s.State.Running != nil && s.Ready:
			running = true
			ready++
		}
	}
	if status == "Completed" && running {
		return "Running", ready
	}
	return status, ready
}

func terminatedText(t *corev1.ContainerStateTerminated) string {
	switch {
	case t.Reason != "":
		return t.Reason
	case t.Signal != 0:
		return fmt.Sprintf("Signal:%d", t.Signal)
	default:
		return fmt.Sprintf("ExitCode:%d", t.ExitCode)
	}
}
