// Command critrun runs critest, the Kubernetes CRI validation suite, against
// bin/pausa on a host made of namespaces. The images that the suite pulls are
// made of Debian packages and served by a registry inside that host.
package main

import (
	"bufio"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/pausa-run/pausa/integration/host"
)

// registryAddress is where the images are served, inside the host.
const registryAddress = "127.0.0.1:5000"

func main() {
	host.Main()
	focus := flag.String("focus", "", "regular `expression` of the specs to run; empty runs all")
	bin := flag.String("bin", "bin", "`folder` of the built programs")
	log := flag.String("log", "bin/critest.log", "`file` that gets the suite's whole output")
	images := flag.String("images", "", "`folder` of the suite's images, as -build-images made it; empty makes them now")
	build := flag.String("build-images", "", "make the suite's images in `folder`, and no more")
	packages := flag.String("packages", "bin/critest-packages", "`folder` that keeps the Debian packages the images are made of")
	serve := flag.String("registry", "", "serve the images of `folder` (what the host's registry runs)")
	runtime := flag.String("runtime", "", "`path` of an OCI runtime that makes the containers; empty is the built-in one")
	flag.Parse()
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	var err error
	switch {
	case *serve != "":
		err = serveRegistry(*serve)
	case *build != "":
		err = buildImages(ctx, *packages, *build)
	default:
		err = run(ctx, options{bin: *bin, log: *log, focus: *focus, images: *images, packages: *packages, runtime: *runtime})
	}
	stop()
	if err != nil {
		fmt.Fprintln(os.Stderr, "critrun:", err)
		os.Exit(1)
	}
}

type options struct{ bin, log, focus, images, packages, runtime string }

func run(ctx context.Context, o options) (err error) {
	bin, err := filepath.Abs(o.bin)
	if err != nil {
		return fmt.Errorf("find %s: %w", o.bin, err)
	}
	suite := filepath.Join(bin, "tools", "critest")
	if _, err := os.Stat(suite); err != nil {
		return fmt.Errorf("find the suite: %w: run 'make bin/tools/critest'", err)
	}
	h, err := host.Start("critest", bin)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, h.Close()) }()
	images := o.images
	if images == "" {
		images = filepath.Join(h.Dir, "images")
		if err := buildImages(ctx, o.packages, images); err != nil {
			return err
		}
	}
	if err := prepare(ctx, h, images, o.runtime); err != nil {
		return err
	}
	report := filepath.Join(h.Dir, "report.json")
	suiteErr := runSuite(ctx, h, suite, report, o.log, o.focus)
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if err := printReport(os.Stdout, report); err != nil {
		return errors.Join(err, suiteErr, fmt.Errorf("the end of the daemon's log:\n%s", h.LogTail()))
	}
	if suiteErr != nil {
		return fmt.Errorf("%w: see %s", suiteErr, o.log)
	}
	return nil
}

// prepare starts the registry and the daemon on the host.
func prepare(ctx context.Context, h *host.Host, images, runtime string) error {
	certs := filepath.Join(h.Dir, "certs.d")
	for _, name := range []string{"registry.k8s.io", "k8s.gcr.io", "gcr.io"} {
		dir := filepath.Join(certs, name)
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return fmt.Errorf("configure the mirror of %s: %w", name, err)
		}
		toml := fmt.Sprintf("server = \"http://%s\"\n\n[host.\"http://%s\"]\n  capabilities = [\"pull\", \"resolve\"]\n", registryAddress, registryAddress)
		if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(toml), 0o644); err != nil {
			return fmt.Errorf("configure the mirror of %s: %w", name, err)
		}
	}
	self, err := os.Executable()
	if err != nil {
		return fmt.Errorf("find this program: %w", err)
	}
	registry := h.Command(ctx, self, "-registry", images)
	registry.Stderr = os.Stderr
	ready, err := registry.StdoutPipe()
	if err != nil {
		return fmt.Errorf("make a pipe: %w", err)
	}
	if err := registry.Start(); err != nil {
		return fmt.Errorf("start the registry: %w", err)
	}
	if line, err := bufio.NewReader(ready).ReadString('\n'); err != nil || line != "ready\n" {
		return fmt.Errorf("start the registry: it said %q: %w", line, errors.Join(err, registry.Wait()))
	}
	h.Env = []string{"PAUSA_IMAGES_REGISTRY_CONFIG=" + certs, "PAUSA_NETWORK_CNI_CONF_DIR=" + h.Dir + "/cni", "PAUSA_LOG_LEVEL=debug"}
	config := filepath.Join(h.Dir, "config.toml")
	if err := os.WriteFile(config, []byte(settings(runtime)), 0o600); err != nil {
		return fmt.Errorf("write settings: %w", err)
	}
	if err := withoutHybrid(ctx, h, runtime); err != nil {
		return err
	}
	return h.Serve("--config", config)
}

// handler is what the suite's specs of runtime handlers ask for.
const handler = "test-handler"

// settings give the runtime that makes the containers the name that specs ask for.
func settings(runtime string) string {
	if runtime == "" {
		return fmt.Sprintf("[runtimes.pausa]\naliases = [%q]\n", handler)
	}
	return fmt.Sprintf("[runtimes]\ndefault = %q\n[runtimes.%s]\npath = %q\n", handler, handler, runtime)
}

// withoutHybrid puts another hierarchy over the unified one for crun, which
// refuses a host with controllers there and in cgroup v1, and wants groups there
// all the same. The host's own mounts stay as they are.
func withoutHybrid(ctx context.Context, h *host.Host, runtime string) error {
	const unified, other = "/sys/fs/cgroup/unified", "/sys/fs/cgroup/systemd"
	if _, err := os.Stat(unified); err != nil || filepath.Base(runtime) != "crun" {
		return nil //nolint:nilerr // nothing to hide
	}
	if out, err := h.Command(ctx, "mount", "--bind", other, unified).CombinedOutput(); err != nil {
		return fmt.Errorf("hide %s: %w: %s", unified, err, out)
	}
	return nil
}

// runSuite runs critest inside the host, its output into the log.
func runSuite(ctx context.Context, h *host.Host, suite, report, log, focus string) error {
	images := filepath.Join(h.Dir, "images.yaml")
	content := "defaultTestContainerImage: registry.k8s.io/e2e-test-images/busybox:1.29-2\nwebServerTestImage: registry.k8s.io/e2e-test-images/nginx:1.14-2\n"
	if err := os.WriteFile(images, []byte(content), 0o644); err != nil {
		return fmt.Errorf("write the list of images: %w", err)
	}
	socket := "unix://" + host.Socket
	args := []string{
		suite, "-runtime-endpoint", socket, "-image-endpoint", socket, "-test-images-file", images,
		"-ginkgo.no-color", "-ginkgo.v", "-ginkgo.json-report", report, "-test.timeout", "0", "-runtime-handler", handler,
	}
	if focus != "" {
		args = append(args, "-ginkgo.focus", focus)
	}
	for _, s := range skips() {
		args = append(args, "-ginkgo.skip", s.expr)
	}
	out, err := os.OpenFile(log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o644)
	if err != nil {
		return fmt.Errorf("open the log: %w", err)
	}
	defer out.Close()
	cmd := h.Command(ctx, args...)
	cmd.Stdout, cmd.Stderr = out, out
	start := time.Now()
	err = cmd.Run()
	fmt.Printf("critest ran %s, its output is in %s\n", time.Since(start).Round(time.Second), log)
	if err != nil {
		return fmt.Errorf("run critest: %w", err)
	}
	return nil
}

// download fetches the Debian packages that the images are made of, once.
func download(ctx context.Context, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return fmt.Errorf("make the folder of packages: %w", err)
	}
	for _, name := range []string{"busybox", "nginx", "nginx-common"} {
		if have, _ := filepath.Glob(filepath.Join(dir, name+"_*.deb")); len(have) > 0 {
			continue
		}
		cmd := exec.CommandContext(ctx, "apt-get", "download", "-q", "-o", "APT::Sandbox::User=root", name)
		cmd.Dir = dir
		if out, err := cmd.CombinedOutput(); err != nil {
			return fmt.Errorf("download package %s: %w: %s", name, err, strings.TrimSpace(string(out)))
		}
	}
	return nil
}
