package manifest

import (
	"path"
	"regexp"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/apimachinery/pkg/util/validation"
)

// IsSidecar says whether an init container runs beside the others: restartPolicy Always.
func IsSidecar(k *corev1.Container) bool {
	return k.RestartPolicy != nil && *k.RestartPolicy == corev1.ContainerRestartPolicyAlways
}

// life checks probes, hooks, and who may have them.
func (c *checker) life(at string, s *corev1.PodSpec, k *corev1.Container, isInit bool) {
	c.restartRules(at, k)
	if isInit && !IsSidecar(k) {
		for _, f := range []struct {
			name string
			set  bool
		}{
			{"lifecycle", k.Lifecycle != nil},
			{"livenessProbe", k.LivenessProbe != nil},
			{"readinessProbe", k.ReadinessProbe != nil},
			{"startupProbe", k.StartupProbe != nil},
		} {
			if f.set {
				c.fail(at+"."+f.name, "may not be set for init containers without restartPolicy: Always")
			}
		}
		return
	}
	c.probe(at+".livenessProbe", k.LivenessProbe, true)
	c.probe(at+".startupProbe", k.StartupProbe, true)
	c.probe(at+".readinessProbe", k.ReadinessProbe, false)
	if l := k.Lifecycle; l != nil {
		c.hook(at+".lifecycle.postStart", l.PostStart, s)
		c.hook(at+".lifecycle.preStop", l.PreStop, s)
		c.stopSignal(at+".lifecycle.stopSignal", l.StopSignal, s)
	}
}

// Bounds of restart rules, as Kubernetes has them.
const (
	maxRestartRules = 20
	maxExitCodes    = 255
)

// restartRules checks what is done after which exit.
func (c *checker) restartRules(at string, k *corev1.Container) {
	if len(k.RestartPolicyRules) > 0 && k.RestartPolicy == nil {
		c.fail(at+".restartPolicy", "is required with restartPolicyRules: it counts when none of them fits")
	}
	at += ".restartPolicyRules"
	if n := len(k.RestartPolicyRules); n > maxRestartRules {
		c.fail(at, "has %d rules; at most %d are allowed", n, maxRestartRules)
	}
	for i, r := range k.RestartPolicyRules {
		p := at + "[" + strconv.Itoa(i) + "]"
		c.required(p+".action", string(r.Action))
		if r.ExitCodes == nil {
			c.fail(p+".exitCodes", "is required")
			continue
		}
		c.required(p+".exitCodes.operator", string(r.ExitCodes.Operator))
		if n := len(r.ExitCodes.Values); n > maxExitCodes {
			c.fail(p+".exitCodes.values", "has %d codes; at most %d are allowed", n, maxExitCodes)
		}
	}
}

// stopSignal wants a signal that this system has.
func (c *checker) stopSignal(at string, s *corev1.Signal, p *corev1.PodSpec) {
	switch {
	case s == nil:
	case p.OS == nil || p.OS.Name == "":
		c.fail(at, "is only possible with spec.os.name: linux")
	case unix.SignalNum(string(*s)) == 0 && !regexp.MustCompile(`^SIG(CLD|IOT|POLL|RTMIN(\+([1-9]|1[0-5]))?|RTMAX(-([1-9]|1[0-4]))?)$`).MatchString(string(*s)):
		c.fail(at, "%q is not a signal of this system; write one like SIGINT or SIGRTMIN+3", string(*s))
	}
}

func (c *checker) probe(at string, p *corev1.Probe, ends bool) {
	if p == nil {
		return
	}
	c.handlers(at, p.HTTPGet, p.TCPSocket, p.GRPC, p.Exec)
	for _, f := range []struct {
		name  string
		value int32
	}{
		{"initialDelaySeconds", p.InitialDelaySeconds},
		{"timeoutSeconds", p.TimeoutSeconds},
		{"periodSeconds", p.PeriodSeconds},
		{"successThreshold", p.SuccessThreshold},
		{"failureThreshold", p.FailureThreshold},
	} {
		if f.value < 0 {
			c.fail(at+"."+f.name, "%d is negative", f.value)
		}
	}
	if ends && p.SuccessThreshold > 1 {
		c.fail(at+".successThreshold", "%d is not possible; must be 1", p.SuccessThreshold)
	}
	switch g := p.TerminationGracePeriodSeconds; {
	case g == nil:
	case !ends:
		c.fail(at+".terminationGracePeriodSeconds", "must not be set for readinessProbes")
	case *g <= 0:
		c.fail(at+".terminationGracePeriodSeconds", "%d is not possible; must be greater than 0", *g)
	}
}

func (c *checker) handlers(at string, h *corev1.HTTPGetAction, t *corev1.TCPSocketAction, g *corev1.GRPCAction, e *corev1.ExecAction) {
	n := 0
	if h != nil {
		n++
		c.httpGet(at+".httpGet", h)
	}
	if t != nil {
		n++
		c.portOrName(at+".tcpSocket.port", t.Port)
	}
	if g != nil {
		n++
		c.port(at+".grpc.port", g.Port)
	}
	if e != nil {
		n++
		c.command(at+".exec", e)
	}
	c.oneHandler(at, n, "httpGet, tcpSocket, grpc, exec")
}

func (c *checker) oneHandler(at string, n int, which string) {
	switch {
	case n == 0:
		c.fail(at, "must specify a handler type: one of %s", which)
	case n > 1:
		c.fail(at, "may not specify more than 1 handler type; use one of %s", which)
	}
}

func (c *checker) command(at string, e *corev1.ExecAction) {
	if len(e.Command) == 0 {
		c.fail(at+".command", "is required")
	}
}

func (c *checker) httpGet(at string, h *corev1.HTTPGetAction) {
	c.portOrName(at+".port", h.Port)
	for _, x := range h.HTTPHeaders {
		c.all(at+".httpHeaders", x.Name, validation.IsHTTPHeaderName(x.Name))
		if strings.ContainsAny(x.Value, "\r\n\x00") {
			c.fail(at+".httpHeaders", "the value of %s must not have line breaks", x.Name)
		}
	}
}

func (c *checker) portOrName(at string, p intstr.IntOrString) {
	if p.Type == intstr.Int {
		c.port(at, p.IntVal)
		return
	}
	c.all(at, p.StrVal, validation.IsValidPortName(p.StrVal))
}

func (c *checker) hook(at string, h *corev1.LifecycleHandler, s *corev1.PodSpec) {
	if h == nil {
		return
	}
	n := 0
	if h.Exec != nil {
		n++
		c.command(at+".exec", h.Exec)
	}
	if h.HTTPGet != nil {
		n++
		c.httpGet(at+".httpGet", h.HTTPGet)
	}
	if h.Sleep != nil {
		n++
		most := int64(corev1.DefaultTerminationGracePeriodSeconds)
		if g := s.TerminationGracePeriodSeconds; g != nil {
			most = *g
		}
		if h.Sleep.Seconds < 0 || h.Sleep.Seconds > most {
			c.fail(at+".sleep.seconds", "%d is not possible; use 0 to terminationGracePeriodSeconds, %d", h.Sleep.Seconds, most)
		}
	}
	if h.TCPSocket != nil {
		n++
		c.fail(at+".tcpSocket", "is deprecated and does nothing as a hook; use exec, httpGet or sleep")
	}
	c.oneHandler(at, n, "exec, httpGet, sleep")
}

func (c *checker) messagePath(at, value string) {
	if value != "" && (!path.IsAbs(value) || hasDotDot(value) || strings.ContainsAny(value, ":\x00") || path.Clean(value) == "/") {
		c.fail(at, "%q is not an absolute path of a file without \"..\" and \":\"", value)
	}
}
