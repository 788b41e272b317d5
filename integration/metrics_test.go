//go:build integration

package integration

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
)

// The daemon's own figures: what was done, what is there, and no name of a pod among the labels.
func TestMetrics(t *testing.T) {
	n := newHost(t, "metrics")
	const socket = "/run/pausa/metrics.sock"
	n.Env = append(n.Env, "PAUSA_METRICS_ADDRESS=unix://"+socket)
	if err := n.Serve(); err != nil {
		t.Fatal(err)
	}
	n.importBusybox()
	n.baseline()
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "unix", n.Path(socket))
	}}}
	has := func(lines ...string) func() error {
		return func() error {
			resp, err := client.Get("http://metrics/metrics")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			raw, err := io.ReadAll(resp.Body)
			if err != nil {
				return err
			}
			for _, l := range lines {
				if !strings.Contains(string(raw), "\n"+l) {
					return fmt.Errorf("no %q in:\n%s", l, raw)
				}
			}
			if strings.Contains(string(raw), "zebra") {
				t.Errorf("a pod's name is in:\n%s", raw)
			}
			return nil
		}
	}
	n.apply(shellPod("zebra", "while :; do sleep 1; done"))
	n.waitReady("app=zebra", 1)
	if out, err := n.Output("stat", "-c", "%a", socket); err != nil || out != "600\n" {
		t.Errorf("the socket's rights are %q, %v", out, err)
	}
	n.eventually("the pod is counted", has(
		`pausa_pods{origin="declared",state="ready"} 1`, `pausa_pods{origin="cri",state="ready"} 0`, `pausa_containers{origin="declared",state="running"} 1`,
		`pausa_network_duration_seconds_count{operation="attach",result="ok"} 1`, `pausa_call_duration_seconds_count{code="OK",method="Apply"} 1`,
		`pausa_keeper_restarts_total 0`, `pausa_build_info{`, `go_goroutines `,
	))
	if err := n.KillKeeper(syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	n.eventually("the new keeper is counted", has("pausa_keeper_restarts_total 1"))
	if _, err := n.Output("nft", "flush", "ruleset"); err != nil {
		t.Fatal(err)
	}
	n.eventually("the healing is counted", has(`pausa_network_heals_total{result="ok",what="rules"} 1`))
}
