package main

import (
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/pausa-run/pausa/cri/pausav1"
	"github.com/pausa-run/pausa/integration/host"
	"github.com/pausa-run/pausa/internal/nft"
	"github.com/pausa-run/pausa/network/service"
	"github.com/pausa-run/pausa/pod/manifest"
)

// declared is Service i with its endpoints, as people would declare it.
func declared(i, endpoints, variant int) string {
	var b strings.Builder
	fmt.Fprintf(&b, "---\n{apiVersion: v1, kind: Service, metadata: {name: s%d, namespace: default}, spec: {clusterIP: %s, ports: [{port: 80}]}}\n---\n"+
		"{apiVersion: discovery.k8s.io/v1, kind: EndpointSlice, metadata: {name: s%[1]d, namespace: default, labels: {kubernetes.io/service-name: s%[1]d}}, addressType: IPv4, ports: [{port: 8080}], endpoints: [",
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

// subject is the daemon on a host of its own, and the rules there.
type subject struct {
	*host.Host
	api   pausav1.PausaClient
	rules *nft.Conn
}

// daemon measures declared Services on their whole way: request, files, rules.
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
	conn, err := h.Dial()
	if err != nil {
		return f, err
	}
	defer conn.Close()
	rules, err := nft.OpenAt(fmt.Sprintf("/proc/%d/ns/net", h.Pid()))
	if err != nil {
		return f, err
	}
	defer rules.Close()
	d := &subject{h, pausav1.NewPausaClient(conn), rules}
	if f.Load, err = d.load(o); err != nil {
		return f, err
	}
	if err := d.changes(o, &f); err != nil {
		return f, err
	}
	time.Sleep(4 * time.Second) // it gives back what it needed for the load
	f.RSSMB = rssMB(daemonPid(h))
	return f, nil
}

// load declares all Services by the command line, a thousand in a file.
func (d *subject) load(o options) (float64, error) {
	const chunk = 1000
	var files []string
	for from := 0; from < o.services; from += chunk {
		var text strings.Builder
		for i := from; i < min(from+chunk, o.services); i++ {
			text.WriteString(declared(i, o.endpoints, i))
		}
		files = append(files, text.String())
	}
	began := time.Now()
	for _, text := range files {
		if err := d.commandLine(text); err != nil {
			return 0, err
		}
	}
	err := d.written(o.services-1, endpointOf(2*(o.services-1), -1), true)
	return time.Since(began).Seconds(), err
}

// changes times one Service coming, changing an endpoint and going, by the
// daemon's API; and one change by the command line.
func (d *subject) changes(o options, f *figures) error {
	var added, changed, typed, removed []time.Duration
	n := o.services + 1
	timed := func(list *[]time.Duration, do func() error, e netip.Addr, want bool) error {
		began := time.Now()
		if err := do(); err != nil {
			return err
		}
		err := d.written(n, e, want)
		*list = append(*list, time.Since(began))
		return err
	}
	for r := range o.rounds {
		variant := 1000 * r
		e := func(i int) netip.Addr { return endpointOf(n+variant+i, -1) }
		apply := func(i int) func() error {
			return func() error { return d.apply(declared(n, o.endpoints, variant+i)) }
		}
		err := timed(&added, apply(0), e(0), true)
		if err == nil {
			err = timed(&changed, apply(1), e(1), true)
		}
		if err == nil {
			err = timed(&typed, func() error { return d.commandLine(declared(n, o.endpoints, variant+2)) }, e(2), true)
		}
		if err == nil {
			err = timed(&removed, func() error { return d.remove(n) }, e(2), false)
		}
		if err != nil {
			return err
		}
	}
	f.AddOne, f.ChangeEndpoint, f.ChangeTyped, f.RemoveOne = median(added), median(changed), median(typed), median(removed)
	return nil
}

func (d *subject) commandLine(text string) error {
	if out, stderr, code := d.CLI(text, "apply", "-f", "-"); code != 0 {
		return fmt.Errorf("apply: exit status %d: %.500s%.500s", code, out, stderr)
	}
	return nil
}

func (d *subject) apply(text string) error {
	objects, err := manifest.Decode(strings.NewReader(text), "benchmark")
	if err != nil {
		return err
	}
	req := &pausav1.ApplyRequest{}
	for _, o := range objects {
		data, err := json.Marshal(o)
		if err != nil {
			return err
		}
		req.Objects = append(req.Objects, &pausav1.Object{Json: data, Source: "benchmark"})
	}
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, err = d.api.Apply(ctx, req)
	return err
}

func (d *subject) remove(i int) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	for _, kind := range []string{"EndpointSlice", "Service"} {
		_, err := d.api.Delete(ctx, &pausav1.DeleteRequest{Kind: kind, Namespace: "default", Name: fmt.Sprint("s", i), Wait: true})
		if err != nil {
			return err
		}
	}
	return nil
}

// written waits until the rules lead Service i to the endpoint, or not. It asks
// the kernel for these elements alone.
func (d *subject) written(i int, endpoint netip.Addr, want bool) error {
	to := netip.AddrPortFrom(vip(i), 80)
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); time.Sleep(100 * time.Microsecond) {
		found, err := service.Look(d.rules, to, "TCP", false)
		if err != nil {
			return err
		}
		if slices.Contains(found.Endpoints, netip.AddrPortFrom(endpoint, 8080)) == want {
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
