package manifest

import (
	"testing"

	"github.com/google/go-cmp/cmp"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
)

func TestProbeDefaults(t *testing.T) {
	o := decode(t, `
apiVersion: apps/v1
kind: Deployment
metadata: {name: d}
spec:
  selector: {matchLabels: {app: d}}
  template:
    metadata: {labels: {app: d}}
    spec:
      initContainers:
      - {name: side, image: i, restartPolicy: Always, startupProbe: {tcpSocket: {port: 1}}}
      - {name: first, image: i}
      containers:
      - name: x
        image: i
        livenessProbe: {httpGet: {port: web}, terminationGracePeriodSeconds: 1}
        readinessProbe: {grpc: {port: 9}, periodSeconds: 1}
        lifecycle: {postStart: {httpGet: {port: 80}}, preStop: {sleep: {seconds: 30}}}
`)[0]
	Default(o)
	d := o.Value().(*appsv1.Deployment).Spec
	s := d.Template.Spec
	x := s.Containers[0]
	got := []any{
		*d.ProgressDeadlineSeconds, x.LivenessProbe.TimeoutSeconds, x.LivenessProbe.PeriodSeconds, x.LivenessProbe.SuccessThreshold, x.LivenessProbe.FailureThreshold,
		x.LivenessProbe.HTTPGet.Path, x.LivenessProbe.HTTPGet.Scheme, x.ReadinessProbe.PeriodSeconds, *x.ReadinessProbe.GRPC.Service,
		x.Lifecycle.PostStart.HTTPGet.Path, IsSidecar(&s.InitContainers[0]), IsSidecar(&s.InitContainers[1]),
	}
	want := []any{
		int32(600), int32(1), int32(10), int32(1), int32(3),
		"/", corev1.URISchemeHTTP, int32(1), "",
		"/", true, false,
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	if err := Validate(o); err != nil {
		t.Error(err)
	}
}
