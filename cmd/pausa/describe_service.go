package main

import (
	"fmt"
	"slices"
	"strings"

	"github.com/urfave/cli/v2"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/utils/ptr"

	"github.com/pausa-run/pausa/cri/pausav1"
)

// describeEndpoints lists what is behind a Service: each endpoint with its state,
// and the pods that the selector matches and that are none, with the reason.
func (p *program) describeEndpoints(ctx *cli.Context, c *client, o object) error {
	var svc corev1.Service
	if err := o.decode(&svc); err != nil {
		return err
	}
	if svc.Spec.Type == corev1.ServiceTypeExternalName {
		return nil
	}
	slicesOf, err := c.fetch(ctx, &pausav1.GetRequest{
		Kind: "EndpointSlice", Namespace: svc.Namespace, LabelSelector: discoveryv1.LabelServiceName + "=" + svc.Name,
	})
	if err != nil && !isNotFound(err) {
		return err
	}
	pods, err := c.selectedPods(ctx, &svc)
	if err != nil {
		return err
	}
	rows, err := endpointRows(slicesOf, pods)
	if err != nil {
		return err
	}
	rows = append(rows, missingRows(&svc, pods, rows)...)
	fmt.Fprintln(p.out, "Endpoints:")
	if len(rows) == 0 {
		why := "no EndpointSlice or Endpoints object of its name is declared"
		if len(svc.Spec.Selector) > 0 {
			why = "no pod has the labels " + mapText(svc.Spec.Selector)
		}
		fmt.Fprintf(p.out, "  <none>: %s\n", why)
		return nil
	}
	for i := range rows {
		rows[i][0] = "  " + rows[i][0]
	}
	return p.printRows(append([][]string{{"  ADDRESS", "POD", "STATE"}}, rows...))
}

// selectedPods are the pods with the labels of the selector by name.
func (c *client) selectedPods(ctx *cli.Context, svc *corev1.Service) (map[string]*corev1.Pod, error) {
	out := map[string]*corev1.Pod{}
	if len(svc.Spec.Selector) == 0 {
		return out, nil
	}
	found, err := c.fetch(ctx, &pausav1.GetRequest{Kind: "Pod", Namespace: svc.Namespace, LabelSelector: labels.SelectorFromSet(svc.Spec.Selector).String()})
	if err != nil && !isNotFound(err) {
		return nil, err
	}
	for _, o := range found {
		pod := &corev1.Pod{}
		if err := o.decode(pod); err != nil {
			return nil, err
		}
		out[pod.Name] = pod
	}
	return out, nil
}

func endpointRows(list []object, pods map[string]*corev1.Pod) ([][]string, error) {
	var rows [][]string
	for _, o := range list {
		var s discoveryv1.EndpointSlice
		if err := o.decode(&s); err != nil {
			return nil, err
		}
		for _, e := range s.Endpoints {
			name := "<none>"
			var pod *corev1.Pod
			if e.TargetRef != nil {
				name, pod = e.TargetRef.Name, pods[e.TargetRef.Name]
			}
			for _, address := range e.Addresses {
				for _, port := range s.Ports {
					if port.Port != nil {
						rows = append(rows, []string{hostPort(address, *port.Port), name, endpointState(&e, pod)})
					}
				}
			}
		}
	}
	return rows, nil
}

// endpointState is "ready", or why not.
func endpointState(e *discoveryv1.Endpoint, pod *corev1.Pod) string {
	switch c := e.Conditions; {
	case ptr.Deref(c.Terminating, false) && ptr.Deref(c.Serving, false):
		return "terminating: gets connections only while no other is ready"
	case ptr.Deref(c.Terminating, false):
		return "terminating"
	case ptr.Deref(c.Ready, true):
		return "ready"
	case pod != nil:
		return "not ready: " + whyNotReady(pod)
	}
	return "not ready"
}

// whyNotReady is what the pod says of itself.
func whyNotReady(pod *corev1.Pod) string {
	for _, s := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		if w := s.State.Waiting; w != nil && w.Reason != "" {
			return strings.TrimSuffix(fmt.Sprintf("container %s: %s: %s", s.Name, w.Reason, oneLine(w.Message)), ": ")
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady && c.Status != corev1.ConditionTrue && c.Message != "" {
			return oneLine(c.Message)
		}
	}
	return string(pod.Status.Phase)
}

// missingRows are the pods that are no endpoints.
func missingRows(svc *corev1.Service, pods map[string]*corev1.Pod, rows [][]string) [][]string {
	var out [][]string
	for name, pod := range pods {
		if slices.ContainsFunc(rows, func(r []string) bool { return r[1] == name }) {
			continue
		}
		why := "it has no address yet: " + whyNotReady(pod)
		switch {
		case pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed:
			why = "it has ended: " + string(pod.Status.Phase)
		case pod.Status.PodIP != "":
			var names []string
			for _, p := range svc.Spec.Ports {
				if p.TargetPort.Type == intstr.String {
					names = append(names, p.TargetPort.StrVal)
				}
			}
			why = "it is not among them yet"
			if len(names) > 0 {
				why = "none of its containers has a port named " + strings.Join(names, " or ")
			}
		}
		out = append(out, []string{"<none>", name, "no endpoint: " + why})
	}
	slices.SortFunc(out, func(a, b []string) int { return strings.Compare(a[1], b[1]) })
	return out
}
