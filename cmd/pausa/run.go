package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"regexp"
	"strings"
	"time"

	"github.com/urfave/cli/v2"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/pausa-run/pausa/cri/pausav1"
)

func (p *program) runCommand() *cli.Command {
	return &cli.Command{
		Name:      "run",
		Usage:     "Run an image in a pod of its own",
		ArgsUsage: "IMAGE [-- COMMAND [ARG...]]",
		Description: "Declares a pod with one container. Without -d it prints what the container\n" +
			"writes until it ends, and ends with its exit status.\n\n" +
			"Examples:\n" +
			"  pausa run --rm localhost/busybox -- echo hello\n" +
			"  pausa run -it --rm localhost/busybox -- sh\n" +
			"  pausa run -d --name web --port 8080:80 --env MODE=dev localhost/web",
		Flags: append(stdioFlags(), namespaceFlag(),
			&cli.StringFlag{Name: "name", Usage: "`NAME` of the pod; without it made from the image's"},
			&cli.BoolFlag{Name: "rm", Usage: "delete the pod when its container has ended"},
			&cli.BoolFlag{Name: "detach", Aliases: []string{"d"}, Usage: "return at once and leave it running"},
			&cli.StringSliceFlag{Name: "env", Aliases: []string{"e"}, Usage: "`NAME=VALUE` for the container, NAME alone passes on this program's; may be repeated"},
			&cli.StringSliceFlag{Name: "port", Aliases: []string{"p"}, Usage: "`PORT` of the container; HOSTPORT:PORT or HOSTIP:HOSTPORT:PORT opens it on the host, PORT/udp is UDP, A-B in place of each PORT a range; may be repeated"},
			&cli.StringSliceFlag{Name: "label", Usage: "`KEY=VALUE` of the pod; may be repeated"},
			&cli.StringSliceFlag{Name: "annotation", Usage: "`KEY=VALUE` of the pod, such as pausa.run/network=NAME; may be repeated"},
			&cli.StringFlag{Name: "restart", Usage: "`POLICY`: Always, OnFailure or Never; by default Always with -d, else Never"},
			&cli.StringFlag{Name: "runtime", Usage: "`HANDLER` that makes the container, as named in the daemon's settings; by default its default one"},
			&cli.BoolFlag{Name: "command", Usage: "COMMAND replaces the image's entrypoint, else it follows it"}),
		Action: p.runPod,
	}
}

func (p *program) runPod(ctx *cli.Context) error {
	pod, err := p.podOf(ctx)
	if err != nil {
		return badUsage(ctx, "%w", err)
	}
	data, err := json.Marshal(pod)
	if err != nil {
		return fmt.Errorf("write pod: %w", err)
	}
	c, err := dial(ctx)
	if err != nil {
		return err
	}
	defer c.close()
	if _, err := c.fetchOne(ctx, kindOf("Pod"), pod.Namespace, pod.Name); err == nil {
		return fmt.Errorf("pods %q already exists: choose another --name, or run 'pausa delete pod %s'", pod.Name, pod.Name)
	}
	answer, err := c.Apply(ctx.Context, &pausav1.ApplyRequest{Objects: []*pausav1.Object{{Json: data, Source: "pausa run"}}})
	if err != nil {
		return first(ctx.Context, err)
	}
	for _, r := range answer.GetResults() {
		if r.GetError() != "" {
			return errors.New(r.GetError())
		}
	}
	if ctx.Bool("detach") {
		fmt.Fprintf(p.out, "pod/%s created\n", pod.Name)
		return nil
	}
	code, err := p.follow(ctx, c, pod)
	return p.leave(ctx, c, pod, code, err)
}

// leave deletes the pod after --rm, or when its container never ran; otherwise
// it stays for logs and describe.
func (p *program) leave(ctx *cli.Context, c *client, pod *corev1.Pod, code int, err error) error {
	if ctx.Bool("rm") {
		// The user may have ended us: the pod must go all the same.
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx.Context), time.Minute)
		defer cancel()
		_, gone := c.Delete(clean, &pausav1.DeleteRequest{Kind: "Pod", Namespace: pod.Namespace, Name: pod.Name, Wait: true, GraceSeconds: graceOf(ctx)})
		if gone != nil && !isNotFound(gone) {
			err = errors.Join(err, fmt.Errorf("delete pod %s: %w", pod.Name, gone))
		}
	} else if ctx.Err() != nil {
		fmt.Fprintf(p.err, "pod %s goes on: see it with 'pausa logs -f %s', end it with 'pausa delete pod %s'\n", pod.Name, pod.Name, pod.Name)
	}
	return ended(ctx, code, err)
}

// graceOf is short when the user ended the program and waits at the terminal.
func graceOf(ctx *cli.Context) *int64 {
	if ctx.Err() == nil {
		return nil
	}
	seconds := int64(2)
	return &seconds
}

// follow shows the container's output until it ends, and returns its exit code.
func (p *program) follow(ctx *cli.Context, c *client, pod *corev1.Pod) (int, error) {
	state, err := c.awaitContainer(ctx, pod, started)
	if err != nil {
		return 0, err
	}
	attached := false
	if ctx.Bool("stdin") && state.Running != nil {
		s := &session{p: p, open: c.Attach, start: &pausav1.ExecRequest_Start{
			Namespace: pod.Namespace, Pod: pod.Name, Container: pod.Spec.Containers[0].Name, Stdin: true, Tty: ctx.Bool("tty"),
		}}
		_, err := s.run(ctx.Context)
		if ctx.Err() != nil {
			return 0, ctx.Err()
		}
		attached = s.got || err == nil && ctx.Bool("tty")
	}
	if !attached {
		req := &pausav1.LogsRequest{Namespace: pod.Namespace, Pod: pod.Name, Container: pod.Spec.Containers[0].Name, Follow: true}
		if err := p.copyLogs(ctx.Context, c, req); err != nil {
			return 0, err
		}
	}
	state, err = c.awaitContainer(ctx, pod, finished)
	if err != nil {
		return 0, err
	}
	if t := state.Terminated; t.Message != "" && t.ExitCode != 0 {
		fmt.Fprintf(p.err, "error: container of pod %s: %s\n", pod.Name, strings.TrimSpace(t.Message))
	}
	return int(state.Terminated.ExitCode), nil
}

func started(s corev1.ContainerState) bool  { return s.Running != nil || s.Terminated != nil }
func finished(s corev1.ContainerState) bool { return s.Terminated != nil }

// awaitContainer looks at the pod's container until its state is as wanted. A
// container that cannot be started, or that restarts after an end, is an end too.
func (c *client) awaitContainer(ctx *cli.Context, pod *corev1.Pod, wanted func(corev1.ContainerState) bool) (corev1.ContainerState, error) {
	for pause := pollFirst; ; pause = longer(pause) {
		o, err := c.fetchOne(ctx, kindOf("Pod"), pod.Namespace, pod.Name)
		if err != nil {
			return corev1.ContainerState{}, err
		}
		var now corev1.Pod
		if err := o.decode(&now); err != nil {
			return corev1.ContainerState{}, err
		}
		for _, s := range now.Status.ContainerStatuses {
			switch w := s.State.Waiting; {
			case wanted(s.State):
				return s.State, nil
			case wanted(s.LastTerminationState):
				return s.LastTerminationState, nil
			case w != nil && hopeless(w.Reason):
				return corev1.ContainerState{}, fmt.Errorf("pod %s cannot start: %s: %s", pod.Name, w.Reason, w.Message)
			}
		}
		if now.Status.Phase == corev1.PodFailed && len(now.Status.ContainerStatuses) == 0 {
			return corev1.ContainerState{}, fmt.Errorf("pod %s failed: %s: %s", pod.Name, now.Status.Reason, now.Status.Message)
		}
		if !sleep(ctx.Context, pause) {
			return corev1.ContainerState{}, ctx.Err()
		}
	}
}

// hopeless reasons do not go away while somebody waits at the terminal.
func hopeless(reason string) bool {
	switch reason {
	case "", "ContainerCreating", "PodInitializing":
		return false
	default:
		return strings.HasPrefix(reason, "Err") || strings.HasSuffix(reason, "Error") || strings.HasSuffix(reason, "BackOff") || reason == "InvalidImageName"
	}
}

// podOf is the pod that the command line asks for.
func (p *program) podOf(ctx *cli.Context) (*corev1.Pod, error) {
	if ctx.NArg() == 0 {
		return nil, errors.New("name an image, see 'pausa images list'")
	}
	if ctx.Bool("detach") && (ctx.Bool("rm") || ctx.Bool("stdin") || ctx.Bool("tty")) {
		return nil, errors.New("--detach cannot be combined with --rm, --stdin or --tty")
	}
	image, name := ctx.Args().First(), ctx.String("name")
	if name == "" {
		name = nameFor(image)
	}
	box := corev1.Container{Name: "main", Image: image, Stdin: ctx.Bool("stdin"), StdinOnce: ctx.Bool("stdin"), TTY: ctx.Bool("tty")}
	if ctx.Bool("command") {
		box.Command = ctx.Args().Tail()
	} else {
		box.Args = ctx.Args().Tail()
	}
	var err error
	if box.Env, err = p.envOf(ctx.StringSlice("env")); err != nil {
		return nil, err
	}
	for _, text := range ctx.StringSlice("port") {
		ports, err := parsePorts(text)
		if err != nil {
			return nil, err
		}
		box.Ports = append(box.Ports, ports...)
	}
	labels, annotations := map[string]string{"run": name}, map[string]string{}
	for flag, to := range map[string]map[string]string{"label": labels, "annotation": annotations} {
		for _, text := range ctx.StringSlice(flag) {
			key, value, ok := strings.Cut(text, "=")
			if !ok {
				return nil, fmt.Errorf("--%s %s: must be KEY=VALUE", flag, text)
			}
			to[key] = value
		}
	}
	policy, err := restartPolicy(ctx.String("restart"), ctx.Bool("detach"))
	out := &corev1.Pod{
		TypeMeta:   metav1.TypeMeta{APIVersion: "v1", Kind: "Pod"},
		ObjectMeta: metav1.ObjectMeta{Name: name, Namespace: ctx.String("namespace"), Labels: labels, Annotations: annotations},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{box}, RestartPolicy: policy},
	}
	if handler := ctx.String("runtime"); handler != "" {
		out.Spec.RuntimeClassName = &handler
	}
	return out, err
}

func restartPolicy(text string, detach bool) (corev1.RestartPolicy, error) {
	if text == "" && detach {
		return corev1.RestartPolicyAlways, nil
	}
	if text == "" {
		return corev1.RestartPolicyNever, nil
	}
	for _, policy := range []corev1.RestartPolicy{corev1.RestartPolicyAlways, corev1.RestartPolicyOnFailure, corev1.RestartPolicyNever} {
		if strings.EqualFold(text, strings.ReplaceAll(string(policy), "-", "")) {
			return policy, nil
		}
	}
	return "", fmt.Errorf("--restart %s: must be Always, OnFailure or Never", text)
}

func (p *program) envOf(texts []string) ([]corev1.EnvVar, error) {
	var out []corev1.EnvVar
	for _, text := range texts {
		name, value, ok := strings.Cut(text, "=")
		if name == "" {
			return nil, fmt.Errorf("--env %s: must be NAME=VALUE", text)
		}
		if !ok {
			if value, ok = p.env(name); !ok {
				return nil, fmt.Errorf("--env %s: is not in this program's environment: write %s=VALUE", name, name)
			}
		}
		out = append(out, corev1.EnvVar{Name: name, Value: value})
	}
	return out, nil
}

// nameFor makes a pod's name: the last part of the image's and five random letters.
func nameFor(image string) string {
	base, _, _ := strings.Cut(image, "@")
	base = base[strings.LastIndexByte(base, '/')+1:]
	base, _, _ = strings.Cut(base, ":")
	base = regexp.MustCompile(`[^a-z0-9]+`).ReplaceAllString(strings.ToLower(base), "-")
	base = strings.Trim(base[:min(40, len(base))], "-")
	if base == "" {
		base = "pod"
	}
	return base + "-" + strings.ToLower(rand.Text()[:5])
}
