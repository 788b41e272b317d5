// Command cribench measures a CRI runtime over its socket: how long a pod takes
// to be ready and to be gone, each call of its life, exec, lists, and the
// memory per pod. It prints medians, and with -json all figures.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"syscall"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/integration/host"
	"github.com/pausa-run/pausa/integration/mkimage/image"
)

type options struct {
	bin, socket, image, cgroupParent, logs, helpers, json string
	daemon, rounds, warm, pods, containers                int
}

func main() {
	host.Main()
	var o options
	flag.StringVar(&o.bin, "bin", "bin", "`folder` of the built programs, for a daemon on a host of its own")
	flag.StringVar(&o.socket, "socket", "", "`path` of the socket of a runtime that runs already, instead of -bin")
	flag.IntVar(&o.daemon, "daemon", 0, "`pid` of that runtime's daemon; 0 measures no memory")
	flag.StringVar(&o.image, "image", "localhost/busybox:latest", "`name` of an image that is present and has a shell")
	flag.StringVar(&o.cgroupParent, "cgroup-parent", "/cribench", "parent `cgroup` of the pods")
	flag.StringVar(&o.logs, "logs", "", "`folder` for container logs; empty makes one")
	flag.StringVar(&o.helpers, "helpers", "^(pausa-keeper|pause|containerd-shim.*|conmon.*)$", "`expression` of the names of processes that belong to the runtime")
	flag.StringVar(&o.json, "json", "", "`file` that gets all figures")
	flag.IntVar(&o.rounds, "rounds", 30, "pod lives that are measured")
	flag.IntVar(&o.warm, "warm", 3, "pod lives before that")
	flag.IntVar(&o.pods, "pods", 20, "pods at once, for lists and memory")
	flag.IntVar(&o.containers, "containers", 1, "containers in each of them")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, o)
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "cribench:", err)
		os.Exit(1)
	}
}

func run(ctx context.Context, o options) error {
	if o.logs == "" {
		dir, err := os.MkdirTemp("", "cribench-")
		if err != nil {
			return fmt.Errorf("make the folder of logs: %w", err)
		}
		defer os.RemoveAll(dir)
		o.logs = dir
	}
	if o.socket == "" {
		h, err := ownHost(o.bin)
		if err != nil {
			return err
		}
		defer h.Close()
		o.socket, o.cgroupParent = h.Path(host.Socket), h.CgroupParent+"/bench"
		if o.daemon, err = daemonPid(h); err != nil {
			return err
		}
	}
	conn, err := grpc.NewClient("unix://"+o.socket, grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(16<<20))) // as a kubelet has it
	if err != nil {
		return fmt.Errorf("connect to %s: %w", o.socket, err)
	}
	defer conn.Close()
	b := &bench{o: o, runtime: criv1.NewRuntimeServiceClient(conn), run: fmt.Sprint(time.Now().UnixNano())}
	results, err := b.all(ctx, conn)
	if err != nil {
		return err
	}
	results.print(os.Stdout)
	return results.save(o.json)
}

// ownHost starts the daemon on a host of its own, with the busybox image.
func ownHost(bin string) (*host.Host, error) {
	bin, err := filepath.Abs(bin)
	if err != nil {
		return nil, fmt.Errorf("find %s: %w", bin, err)
	}
	h, err := host.Start("bench", bin)
	if err != nil {
		return nil, err
	}
	h.Env = []string{"PAUSA_NETWORK_CNI_CONF_DIR=" + h.Dir + "/cni"}
	if err := fill(h); err != nil {
		_ = h.Close() // the first error is the one to read
		return nil, err
	}
	return h, nil
}

func fill(h *host.Host) error {
	if err := h.Serve(); err != nil {
		return err
	}
	s, err := image.Busybox("")
	if err != nil {
		return err
	}
	raw, err := image.Bytes(s)
	if err != nil {
		return err
	}
	archive := filepath.Join(h.Dir, "busybox.tar")
	if err := os.WriteFile(archive, raw, 0o600); err != nil {
		return fmt.Errorf("write the image: %w", err)
	}
	if out, stderr, code := h.CLI("", "images", "import", archive); code != 0 {
		return fmt.Errorf("import the image: exit status %d: %s%s", code, out, stderr)
	}
	return nil
}

func daemonPid(h *host.Host) (int, error) {
	procs, err := h.Processes()
	if err != nil {
		return 0, err
	}
	for _, p := range procs {
		if p.Comm == "pausa" {
			return p.OuterPid, nil
		}
	}
	return 0, fmt.Errorf("host %s has no daemon", h.Name)
}

// results are all figures of one run.
type results struct {
	Runtime   string            `json:"runtime"`
	Version   string            `json:"version"`
	Millis    map[string]figure `json:"millis"`
	MemoryMB  *memory           `json:"memoryMB,omitempty"`
	PodsAtEnd int               `json:"pods"`
	// CPUMillis is the processor time of the runtime for one call: it depends less on what else the machine does.
	CPUMillis map[string]float64 `json:"cpuMillis,omitempty"`
	// IdleCPU is the share of one processor, in percent, that the runtime takes with these pods and without a client.
	IdleCPU float64 `json:"idleCPUPercent"`
}

func (r *results) print(w io.Writer) {
	fmt.Fprintf(w, "%s %s, milliseconds:\n%-28s %8s %8s %8s %8s\n", r.Runtime, r.Version, "", "p50", "p90", "min", "cpu")
	for _, name := range order() {
		if f, ok := r.Millis[name]; ok {
			fmt.Fprintf(w, "%-28s %8.2f %8.2f %8.2f", name, f.P50, f.P90, f.Min)
			if cpu, ok := r.CPUMillis[name]; ok {
				fmt.Fprintf(w, " %8.2f", cpu)
			}
			fmt.Fprintln(w)
		}
	}
	if m := r.MemoryMB; m != nil {
		fmt.Fprintf(w, "memory (PSS, MB): %.1f without pods, %.1f with %d, %.3f per pod\n", m.Empty, m.Full, r.PodsAtEnd, m.PerPod)
		fmt.Fprintf(w, "idle with %d pods: %.2f %% of one processor\n", r.PodsAtEnd, r.IdleCPU)
	}
}

func (r *results) save(path string) error {
	if path == "" {
		return nil
	}
	raw, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return fmt.Errorf("encode the figures: %w", err)
	}
	if err := os.WriteFile(path, append(raw, '\n'), 0o644); err != nil {
		return fmt.Errorf("save the figures: %w", err)
	}
	return nil
}
