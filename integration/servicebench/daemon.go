package main

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/pausa-run/pausa/integration/host"
)

// manifest is Service i with its endpoints, as people would declare it.
func manifest(i, endpoints, variant int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Service, metadata: {name: s%d}, spec: {clusterIP: %s, ports: [{port: 80}]}}\n---\n"+
		"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s%[1]d, labels: {kubernetes.io/service-name: s%[1]d}}, addressType: IPv4, ports: [{port: 8080}], endpoints: [",
		i, vip(i), i)
	for e := range endpoints {
		a := endpointOf(i, e)
		if e == 0 {
			a = endpointOf(i+variant, -1)
		}
		fmt.Fprintf(&b, "{addresses: [%s]}, ", a)
	}
	b.WriteString("]}\n")
	return b.String()
}

// daemon measures declared Services on their whole way: command line, files, rules.
func daemon(o options) (f figures, err error) {
	f.Subject = "Pausa's daemon"
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return f, err
	}
	h, err := host.Start("bench", bin)
	if err != nil {
		return f, err
	}
	defer func() {
		if err != nil {
			err = fmt.Errorf("%w\n%s", err, h.LogTail())
		}
		_ = h.Close() // its end is not what is measured
	}()
	h.Env = []string{"PAUSA_NETWORK_CNI_CONF_DIR=" + h.Dir + "/cni", "PAUSA_NETWORK_SERVICE_CIDRS=10.96.0.0/12", "PAUSA_LOG_LEVEL=warn"}
	if err := h.Serve(); err != nil {
		return f, err
	}
	began := time.Now()
	const chunk = 1000
	for from := 0; from < o.services; from += chunk {
		var text strings.Builder
		for i := from; i < min(from+chunk, o.services); i++ {
			text.WriteString(manifest(i, o.endpoints, i))
		}
		if err := apply(h, text.String()); err != nil {
			return f, err
		}
	}
	if err := written(h, o.services-1, "10.", true); err != nil {
		return f, err
	}
	f.Load = time.Since(began).Seconds()
	f.RSSMB = rssMB(daemonPid(h))
	var added, changed, removed []time.Duration
	n := o.services + 1
	for r := range o.rounds {
		for _, step := range []struct {
			list *[]time.Duration
			do   func() error
			want string
			has  bool
		}{
			{&added, func() error { return apply(h, manifest(n, o.endpoints, 1000*r)) }, endpointOf(n+1000*r, -1).String(), true},
			{&changed, func() error { return apply(h, manifest(n, o.endpoints, 1000*r+1)) }, endpointOf(n+1000*r+1, -1).String(), true},
			{&removed, func() error { return remove(h, n) }, endpointOf(n+1000*r+1, -1).String(), false},
		} {
			began := time.Now()
			if err := step.do(); err != nil {
				return f, err
			}
			if err := written(h, n, step.want, step.has); err != nil {
				return f, err
			}
			*step.list = append(*step.list, time.Since(began))
		}
	}
	f.AddOne, f.ChangeEndpoint, f.RemoveOne = median(added), median(changed), median(removed)
	return f, nil
}

func apply(h *host.Host, text string) error {
	if out, stderr, code := h.CLI(text, "apply", "-f", "-"); code != 0 {
		return fmt.Errorf("apply: exit status %d: %.500s%.500s", code, out, stderr)
	}
	return nil
}

func remove(h *host.Host, i int) error {
	for _, kind := range []string{"endpointslice", "service"} {
		if _, stderr, code := h.CLI("", "delete", kind, fmt.Sprint("s", i)); code != 0 {
			return fmt.Errorf("delete: exit status %d: %s", code, stderr)
		}
	}
	return nil
}

// written waits until the rules lead Service i to the endpoint, or not.
func written(h *host.Host, i int, endpoint string, want bool) error {
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		out, err := h.Output("nft", "get", "element", "inet", "pausa", "svc-endpoints4", fmt.Sprintf("{ %s . tcp . 80 . 0 }", vip(i)))
		if (err == nil && strings.Contains(out, endpoint)) == want {
			return nil
		}
	}
	return fmt.Errorf("service %d never leads to %s: %v", i, endpoint, want)
}

func daemonPid(h *host.Host) int {
	procs, err := h.Processes()
	if err != nil {
		return os.Getpid()
	}
	for _, p := range procs {
		if p.Comm == "pausa" && strings.Contains(p.Cmdline, "serve") {
			return p.OuterPid
		}
	}
	return 0
}
