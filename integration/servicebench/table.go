package main

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"github.com/pausa-run/pausa/network/service"
)

// services are n Services with endpoints; the last one leads to the pod.
func services(n, endpoints int) []service.Service {
	out := make([]service.Service, n)
	for i := range out {
		out[i] = one(i, endpoints, i == n-1)
	}
	return out
}

func one(i, endpoints int, real bool) service.Service {
	s := service.Service{
		Namespace: "bench", Name: fmt.Sprint("s", i), ClusterIPs: []netip.Addr{vip(i)},
		Ports: []service.Port{{Protocol: "TCP", Port: 80}},
	}
	for e := range endpoints {
		to := netip.AddrPortFrom(endpointOf(i, e), 8080)
		if real {
			to = netip.AddrPortFrom(netip.MustParseAddr(podAddr), uint16(firstPort+e))
		}
		s.Ports[0].Endpoints = append(s.Ports[0].Endpoints, to)
	}
	return s
}

// table measures the rules in the kernel and what writes them, without a daemon.
func table(ctx context.Context, o options, m kernelMemory) (figures, error) {
	f := figures{Subject: "Pausa's table"}
	w, err := newWorld(o.endpoints)
	if err != nil {
		return f, err
	}
	opts := service.Options{NoLoopback: true, ServiceCIDRs: []netip.Prefix{netip.MustParsePrefix("10.96.0.0/12")}}
	if f.Direct, err = w.connect(fmt.Sprintf("%s:%d", podAddr, firstPort), o.connects); err != nil {
		return f, err
	}
	t, err := service.Open(ctx, opts)
	if err != nil {
		return f, err
	}
	defer t.Close()
	if err := t.Sync(ctx, services(10, o.endpoints)); err != nil {
		return f, err
	}
	if f.ConnectFew, err = w.connect(vip(9).String()+":80", o.connects); err != nil {
		return f, err
	}
	if err := t.Sync(ctx, nil); err != nil {
		return f, err
	}
	before := m.mb()
	if f.Load, err = load(ctx, t, services(o.services, o.endpoints)); err != nil {
		return f, err
	}
	f.KernelMB = m.mb() - before
	if f.ConnectAll, err = w.connect(vip(o.services-1).String()+":80", o.connects); err != nil {
		return f, err
	}
	if err := changes(ctx, t, o, &f); err != nil {
		return f, err
	}
	f.LoadMany, err = load(ctx, t, services(1000, 100))
	return f, err
}

// load times a Sync into an empty table; the median of three.
func load(ctx context.Context, t *service.Table, all []service.Service) (float64, error) {
	var times []time.Duration
	for range 3 {
		if err := t.Sync(ctx, nil); err != nil {
			return 0, err
		}
		began := time.Now()
		if err := t.Sync(ctx, all); err != nil {
			return 0, err
		}
		times = append(times, time.Since(began))
	}
	return median(times), nil
}

// changes times one Service coming, changing an endpoint and going, beside all others.
func changes(ctx context.Context, t *service.Table, o options, f *figures) error {
	var added, changed, removed []time.Duration
	timed := func(list *[]time.Duration, set []service.Service, gone ...service.ID) error {
		began := time.Now()
		err := t.Update(ctx, set, gone)
		*list = append(*list, time.Since(began))
		return err
	}
	for i := range o.rounds {
		s := one(o.services+1, o.endpoints, false)
		if err := timed(&added, []service.Service{s}); err != nil {
			return err
		}
		s.Ports[0].Endpoints[0] = netip.AddrPortFrom(endpointOf(i, 9), 8080)
		if err := timed(&changed, []service.Service{s}); err != nil {
			return err
		}
		if err := timed(&removed, nil, service.ID{Namespace: s.Namespace, Name: s.Name}); err != nil {
			return err
		}
	}
	f.AddOne, f.ChangeEndpoint, f.RemoveOne = median(added), median(changed), median(removed)
	return nil
}
