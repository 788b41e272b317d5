package main

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

func TestEndpointState(t *testing.T) {
	yes, no := true, false
	crashing := &corev1.Pod{Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{
		{Name: "web", State: corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff", Message: "wait 10s"}}},
	}}}
	unready := &corev1.Pod{Status: corev1.PodStatus{Conditions: []corev1.PodCondition{
		{Type: corev1.PodReady, Status: corev1.ConditionFalse, Message: "containers with unready status: [web]"},
	}}}
	for _, c := range []struct {
		is   discoveryv1.EndpointConditions
		pod  *corev1.Pod
		want string
	}{
		{discoveryv1.EndpointConditions{}, nil, "ready"},
		{discoveryv1.EndpointConditions{Ready: &no}, nil, "not ready"},
		{discoveryv1.EndpointConditions{Ready: &no}, crashing, "not ready: container web: CrashLoopBackOff: wait 10s"},
		{discoveryv1.EndpointConditions{Ready: &no}, unready, "not ready: containers with unready status: [web]"},
		{discoveryv1.EndpointConditions{Ready: &no, Terminating: &yes}, unready, "terminating"},
		{discoveryv1.EndpointConditions{Ready: &no, Serving: &yes, Terminating: &yes}, nil, "terminating: gets connections only while no other is ready"},
	} {
		if got := endpointState(&discoveryv1.Endpoint{Conditions: c.is}, c.pod); got != c.want {
			t.Errorf("%+v: %q, want %q", c.is, got, c.want)
		}
	}
}

func TestPodsThatAreNoEndpoints(t *testing.T) {
	svc := &corev1.Service{Spec: corev1.ServiceSpec{Ports: []corev1.ServicePort{{TargetPort: intstr.FromString("http")}}}}
	pods := map[string]*corev1.Pod{
		"a": {ObjectMeta: metav1.ObjectMeta{Name: "a"}, Status: corev1.PodStatus{PodIP: "10.88.0.2"}},
		"b": {ObjectMeta: metav1.ObjectMeta{Name: "b"}, Status: corev1.PodStatus{Phase: corev1.PodFailed}},
		"c": {ObjectMeta: metav1.ObjectMeta{Name: "c"}, Status: corev1.PodStatus{Phase: corev1.PodPending}},
		"d": {ObjectMeta: metav1.ObjectMeta{Name: "d"}, Status: corev1.PodStatus{PodIP: "10.88.0.3"}},
	}
	rows := missingRows(svc, pods, [][]string{{"10.88.0.3:80", "d", "ready"}})
	for i, want := range []string{"no port named http", "it has ended: Failed", "no address yet: Pending"} {
		want = strings.Replace(want, "no port named", "none of its containers has a port named", 1)
		if len(rows) != 3 || !strings.Contains(rows[i][2], want) {
			t.Errorf("rows %q, want %q", rows, want)
		}
	}
}
