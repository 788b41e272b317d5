package main

import (
	"fmt"
	"net"
	"sort"
	"strconv"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/duration"
)

type tableOptions struct {
	wide      bool
	namespace bool // a first column with the namespace
	typed     bool // names as "pod/x", since several kinds follow each other
	labels    bool
	noHeaders bool
	now       time.Time
}

// printTables prints one table per kind, with an empty line between them.
func (p *program) printTables(groups [][]object, opts tableOptions) error {
	for i, group := range groups {
		if i > 0 {
			fmt.Fprintln(p.out)
		}
		rows, err := tableRows(group, opts)
		if err != nil {
			return err
		}
		if opts.noHeaders {
			rows = rows[1:]
		}
		if err := p.printRows(rows); err != nil {
			return err
		}
	}
	return nil
}

// tableRows makes the table of objects of one kind, its first row the header.
func tableRows(group []object, opts tableOptions) ([][]string, error) {
	columns, more := columnsOf(group[0].kind)
	rows := [][]string{opts.frame(group[0].kind, "NAMESPACE", "NAME", columns, more, "LABELS")}
	for _, o := range group {
		cells, wide, err := rowOf(o, opts.now)
		if err != nil {
			return nil, err
		}
		name := o.meta.Name
		if opts.typed {
			name = o.kind.typed() + "/" + name
		}
		rows = append(rows, opts.frame(o.kind, o.meta.Namespace, name, cells, wide, orNone(mapText(o.meta.Labels))))
	}
	return rows, nil
}

// frame puts the cells that all kinds have round those of one.
func (t tableOptions) frame(k kind, namespace, name string, cells, wide []string, labels string) []string {
	var row []string
	if t.namespace && !k.global {
		row = append(row, namespace)
	}
	row = append(append(row, name), cells...)
	if t.wide {
		row = append(row, wide...)
	}
	if t.labels {
		row = append(row, labels)
	}
	return row
}

// columnsOf names the columns of a kind after NAME, and those that wide adds.
func columnsOf(k kind) (columns, wide []string) {
	switch k.name {
	case "Pod":
		return []string{"READY", "STATUS", "RESTARTS", "AGE"}, []string{"IP", "NODE"}
	case "Service":
		return []string{"TYPE", "CLUSTER-IP", "EXTERNAL-IP", "PORT(S)", "AGE"}, []string{"SELECTOR"}
	case "Deployment":
		return []string{"READY", "UP-TO-DATE", "AVAILABLE", "AGE"}, []string{"CONTAINERS", "IMAGES", "SELECTOR"}
	case "ConfigMap":
		return []string{"DATA", "AGE"}, nil
	case "Secret":
		return []string{"TYPE", "DATA", "AGE"}, nil
	case "Endpoints":
		return []string{"ENDPOINTS", "AGE"}, []string{"NOT-READY"}
	case "EndpointSlice":
		return []string{"ADDRESSTYPE", "PORTS", "ENDPOINTS", "AGE"}, []string{"SERVICE", "NOT-READY", "TERMINATING"}
	case "Namespace":
		return []string{"STATUS", "AGE"}, nil
	default:
		return []string{"AGE"}, nil
	}
}

// rowOf makes the cells under columnsOf.
func rowOf(o object, now time.Time) (cells, wide []string, err error) {
	age := ageOf(o.meta.CreationTimestamp, now)
	switch o.kind.name {
	case "Pod":
		var pod corev1.Pod
		if err := o.decode(&pod); err != nil {
			return nil, nil, err
		}
		s := summarize(&pod, now)
		return []string{s.ready, s.status, s.restarts, age}, []string{orNone(podIPs(&pod)), orNone(pod.Spec.NodeName)}, nil
	case "Service":
		var svc corev1.Service
		if err := o.decode(&svc); err != nil {
			return nil, nil, err
		}
		return []string{string(svc.Spec.Type), clusterIP(&svc), externalIP(&svc), ports(&svc), age}, []string{orNone(mapText(svc.Spec.Selector))}, nil
	case "Deployment":
		var d appsv1.Deployment
		if err := o.decode(&d); err != nil {
			return nil, nil, err
		}
		cells, wide = deploymentRow(&d, age)
		return cells, wide, nil
	case "ConfigMap":
		var c corev1.ConfigMap
		err := o.decode(&c)
		return []string{strconv.Itoa(len(c.Data) + len(c.BinaryData)), age}, nil, err
	case "Secret":
		var s corev1.Secret
		err := o.decode(&s)
		return []string{string(s.Type), strconv.Itoa(len(s.Data) + len(s.StringData)), age}, nil, err
	case "Endpoints":
		var e corev1.Endpoints //nolint:staticcheck // what people ask for
		err := o.decode(&e)
		return []string{endpoints(&e, true), age}, []string{endpoints(&e, false)}, err
	case "EndpointSlice":
		var s discoveryv1.EndpointSlice
		if err := o.decode(&s); err != nil {
			return nil, nil, err
		}
		cells, wide = sliceRow(&s, age)
		return cells, wide, nil
	case "Namespace":
		var n corev1.Namespace
		err := o.decode(&n)
		return []string{string(n.Status.Phase), age}, nil, err
	default:
		return []string{age}, nil, nil
	}
}

func deploymentRow(d *appsv1.Deployment, age string) (cells, wide []string) {
	want := int32(1)
	if d.Spec.Replicas != nil {
		want = *d.Spec.Replicas
	}
	var names, images []string
	for _, c := range d.Spec.Template.Spec.Containers {
		names, images = append(names, c.Name), append(images, c.Image)
	}
	cells = []string{
		fmt.Sprintf("%d/%d", d.Status.ReadyReplicas, want), strconv.Itoa(int(d.Status.UpdatedReplicas)),
		strconv.Itoa(int(d.Status.AvailableReplicas)), age,
	}
	return cells, []string{strings.Join(names, ","), strings.Join(images, ","), orNone(metav1.FormatLabelSelector(d.Spec.Selector))}
}

func podIPs(pod *corev1.Pod) string {
	var out []string
	for _, ip := range pod.Status.PodIPs {
		out = append(out, ip.IP)
	}
	if len(out) == 0 {
		return pod.Status.PodIP
	}
	return strings.Join(out, ",")
}

func clusterIP(svc *corev1.Service) string {
	if len(svc.Spec.ClusterIPs) > 0 {
		return strings.Join(svc.Spec.ClusterIPs, ",")
	}
	return orNone(svc.Spec.ClusterIP)
}

func externalIP(svc *corev1.Service) string {
	out := append([]string{}, svc.Spec.ExternalIPs...)
	for _, in := range svc.Status.LoadBalancer.Ingress {
		out = append(out, in.IP)
	}
	if svc.Spec.ExternalName != "" {
		out = append(out, svc.Spec.ExternalName)
	}
	return orNone(strings.Join(out, ","))
}

// ports is a Service's ports as "80:30080/TCP,443/TCP".
func ports(svc *corev1.Service) string {
	var out []string
	for _, port := range svc.Spec.Ports {
		text := strconv.Itoa(int(port.Port))
		if port.NodePort > 0 {
			text += ":" + strconv.Itoa(int(port.NodePort))
		}
		protocol := port.Protocol
		if protocol == "" {
			protocol = corev1.ProtocolTCP
		}
		out = append(out, text+"/"+string(protocol))
	}
	return orNone(strings.Join(out, ","))
}

// sliceRow lists the endpoints that get connections, and beside them the others.
func sliceRow(s *discoveryv1.EndpointSlice, age string) (cells, wide []string) {
	var ports, ready, unready, terminating []string
	for _, p := range s.Ports {
		if p.Port != nil {
			ports = append(ports, strconv.Itoa(int(*p.Port)))
		}
	}
	for _, e := range s.Endpoints {
		to := &ready
		switch c := e.Conditions; {
		case c.Terminating != nil && *c.Terminating:
			to = &terminating
		case c.Ready != nil && !*c.Ready:
			to = &unready
		}
		*to = append(*to, e.Addresses...)
	}
	text := func(list []string) string { return orNone(strings.Join(list, ",")) }
	return []string{string(s.AddressType), text(ports), text(ready), age},
		[]string{orNone(s.Labels[discoveryv1.LabelServiceName]), text(unready), text(terminating)}
}

// endpoints is the ready addresses with their ports, as "10.0.0.2:80,10.0.0.3:80",
// or those that are not ready.
func endpoints(e *corev1.Endpoints, ready bool) string { //nolint:staticcheck // what people ask for
	var out []string
	for _, subset := range e.Subsets {
		list := subset.Addresses
		if !ready {
			list = subset.NotReadyAddresses
		}
		for _, address := range list {
			for _, port := range subset.Ports {
				out = append(out, hostPort(address.IP, port.Port))
			}
			if len(subset.Ports) == 0 {
				out = append(out, address.IP)
			}
		}
	}
	return orNone(strings.Join(out, ","))
}

func ageOf(created metav1.Time, now time.Time) string {
	if created.IsZero() {
		return "<unknown>"
	}
	return duration.HumanDuration(now.Sub(created.Time))
}

func orNone(s string) string {
	if s == "" {
		return "<none>"
	}
	return s
}

// mapText is m as "a=b,c=d", sorted.
func mapText(m map[string]string) string {
	out := make([]string, 0, len(m))
	for k, v := range m {
		out = append(out, k+"="+v)
	}
	sort.Strings(out)
	return strings.Join(out, ",")
}

// hostPort is net.JoinHostPort for a number.
func hostPort(host string, port int32) string { return net.JoinHostPort(host, strconv.Itoa(int(port))) }
