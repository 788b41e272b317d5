package reconcile

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/images"
)

// fakeRegistry pulls what a credential of its list may have.
type fakeRegistry struct {
	mu    sync.Mutex
	users map[string]string // by image: who may pull it, "" is everybody
	fail  error
	pulls []string // "image user@host"
}

func (r *fakeRegistry) pull(_ context.Context, ref string, a images.Auth) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.pulls = append(r.pulls, ref+" "+a.Username+"@"+a.ServerAddress)
	if r.fail != nil {
		return r.fail
	}
	if want := r.users[ref]; want != a.Username {
		return fmt.Errorf("pull image %s: %w", ref, images.ErrAccess)
	}
	return nil
}

func (r *fakeRegistry) seen() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.pulls, ", ")
}

const secrets = `
{apiVersion: v1, kind: Secret, metadata: {name: new}, type: kubernetes.io/dockerconfigjson, stringData: {.dockerconfigjson: '{"auths": {
  "r.example.com": {"username": "all", "password": "p"}, "r.example.com/team": {"username": "team", "password": "p"}}}'}}
---
{apiVersion: v1, kind: Secret, metadata: {name: old}, type: kubernetes.io/dockercfg, stringData: {.dockercfg: '{"*.example.org": {"username": "org", "password": "p"}}'}}
---
{apiVersion: v1, kind: Secret, metadata: {name: opaque}, stringData: {x: y}}
---
{apiVersion: v1, kind: Secret, metadata: {name: torn}, type: kubernetes.io/dockercfg, stringData: {.dockercfg: '{"r": "hush!"}'}}
---
`

func TestImagePullSecrets(t *testing.T) {
	for image, c := range map[string]struct{ owner, secrets, pulls string }{
		"r.example.com/team/missing:1":  {"team", "new", "team@r.example.com"},
		"r.example.com/team/missing:2":  {"all", "{name: old}, {name: new}", "team@r.example.com, all@r.example.com"},
		"r.example.com/other/missing:1": {"all", "new", "all@r.example.com"},
		"a.example.org/missing:1":       {"org", "{name: new}, {name: old}", "org@a.example.org"},
		"example.org/missing:1":         {"", "{name: new}, {name: old}", "@"},
		"r.example.com/missing:5":       {"", "{name: gone}, {name: opaque}, {name: torn}", "@"},
	} {
		r := &fakeRegistry{users: map[string]string{image: c.owner}}
		w := newWorldWith(t, func(o *Options) { o.Pull = r.pull })
		if !strings.Contains(c.secrets, "{") {
			c.secrets = "{name: " + c.secrets + "}"
		}
		w.apply(secrets + "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {imagePullSecrets: [" + c.secrets + "], containers: [{name: c, image: '" + image + "'}]}\n")
		w.until(image+" runs", w.ready("p"))
		want := image + " " + strings.ReplaceAll(c.pulls, ", ", ", "+image+" ")
		if got := r.seen(); got != want {
			t.Errorf("%s was pulled as %q, want %q", image, got, want)
		}
	}
}

// waits gives the reason and message with which a container of pod p waits.
func (w *world) waits() (reason, message string) {
	s := w.pod("p").Status.ContainerStatuses[0].State.Waiting
	if s == nil {
		return "", ""
	}
	return s.Reason, s.Message
}

func TestFailedPullsBackOff(t *testing.T) {
	r := &fakeRegistry{users: map[string]string{"r/missing:1": "me"}}
	w := newWorldWith(t, func(o *Options) { o.Pull = r.pull })
	w.apply(secrets + "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {imagePullSecrets: [{name: gone}, {name: opaque}, {name: torn}], containers: [{name: c, image: 'r/missing:1'}]}\n")
	w.until("the first try fails", func() bool { reason, _ := w.waits(); return reason == "ErrImagePull" })
	_, message := w.waits()
	for _, want := range []string{"refuses access", "the Secret default/gone does not exist", "default/opaque: its type is Opaque", "default/torn: it is no .dockercfg"} {
		if !strings.Contains(message, want) {
			t.Errorf("no word of %q in %q", want, message)
		}
	}
	if strings.Contains(message, "hush") {
		t.Errorf("a secret is told: %q", message)
	}
	for _, delay := range []string{"10s", "20s", "40s"} {
		w.quiet() // what waits for the clock has asked for it
		w.clock.advance(2 * time.Second)
		w.until("it backs off "+delay, func() bool {
			reason, message := w.waits()
			return reason == "ImagePullBackOff" && strings.HasPrefix(message, "Back-off "+delay+" pulling image: ErrImagePull: ")
		})
		d, err := time.ParseDuration(delay)
		if err != nil {
			t.Fatal(err)
		}
		w.quiet()
		tries := r.seen()
		w.clock.advance(d)
		w.until("it is tried again, and fails", func() bool {
			reason, _ := w.waits()
			return r.seen() != tries && reason == "ErrImagePull"
		})
	}
}

func TestPullPolicies(t *testing.T) {
	unverified := fmt.Errorf("pull: %w: not signed", images.ErrUnverified)
	for name, c := range map[string]struct {
		image, policy string
		fail          error
		reason        string // "" runs
		pulls         int
	}{
		"Always of one that is here":        {"here:1", "Always", nil, "", 1},
		"Always without the registry":       {"here:1", "Always", errors.New("connection refused"), "ErrImagePull", 1},
		"IfNotPresent of one that is here":  {"here:1", "IfNotPresent", nil, "", 0},
		"IfNotPresent of one that is not":   {"missing:1", "IfNotPresent", nil, "", 1},
		"Never of one that is here":         {"here:1", "Never", nil, "", 0},
		"Never of one that is not":          {"missing:1", "Never", nil, "ErrImageNeverPull", 0},
		"by default of latest":              {"here:latest", "", nil, "", 1},
		"by default without a tag":          {"here", "", nil, "", 1},
		"by default of a tag":               {"here:1", "", nil, "", 0},
		"by default of a digest":            {"here@sha256:" + strings.Repeat("1", 64), "", nil, "", 0},
		"Always of an import":               {"localhost/here:latest", "Always", nil, "", 0},
		"a name that is none":               {"HERE:1", "Always", nil, "InvalidImageName", 0},
		"one that a verifier does not like": {"missing:1", "Always", unverified, "SignatureValidationFailed", 1},
	} {
		t.Run(name, func(t *testing.T) {
			r := &fakeRegistry{fail: c.fail}
			w := newWorldWith(t, func(o *Options) { o.Pull = r.pull })
			policy := ""
			if c.policy != "" {
				policy = ", imagePullPolicy: " + c.policy
			}
			w.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: {containers: [{name: c, image: '" + c.image + "'" + policy + "}]}\n")
			if c.reason == "" {
				w.until("it runs", w.ready("p"))
			} else {
				w.until("it waits", func() bool { reason, _ := w.waits(); return reason == c.reason })
			}
			if n := len(r.pulls); n != c.pulls {
				t.Errorf("%d pulls, want %d: %v", n, c.pulls, r.pulls)
			}
		})
	}
}

func TestImageVolumesOfPods(t *testing.T) {
	needRoot(t)
	r := &fakeRegistry{}
	w := newWorldWith(t, func(o *Options) { o.Pull = r.pull })
	w.apply(`apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers:
  - {name: c, image: 'busybox:1', volumeMounts: [{name: data, mountPath: /data/, subPath: a/b}, {name: here, mountPath: /here}]}
  volumes:
  - {name: data, image: {reference: 'missing/data:1'}}
  - {name: here, image: {reference: 'models:1', pullPolicy: Never}}
  - {name: unused, image: {reference: 'missing/unused:1'}}
`)
	w.until("it runs", w.ready("p"))
	if got := r.seen(); got != "missing/data:1 @" {
		t.Errorf("pulled %s", got)
	}
	list := w.pods.Containers()
	if len(list) != 1 {
		t.Fatalf("containers %+v", list)
	}
	var got []string
	for _, m := range list[0].Config.Mounts {
		if m.Image != "" {
			got = append(got, fmt.Sprint(m.Image, " ", m.Source, " ", m.Destination, " ", m.Readonly))
		}
	}
	if want := "[missing/data:1 a/b /data true models:1  /here true]"; fmt.Sprint(got) != want {
		t.Errorf("mounts %v, want %v", got, want)
	}
}

func TestImageVolumeThatIsNotThere(t *testing.T) {
	r := &fakeRegistry{}
	w := newWorldWith(t, func(o *Options) { o.Pull = r.pull })
	w.apply(`apiVersion: v1
kind: Pod
metadata: {name: p}
spec:
  containers: [{name: c, image: 'busybox:1', volumeMounts: [{name: data, mountPath: /data}]}]
  volumes: [{name: data, image: {reference: 'missing/data:1', pullPolicy: Never}}]
`)
	w.until("it waits", func() bool { reason, _ := w.waits(); return reason == "ErrImageNeverPull" })
	if _, message := w.waits(); !strings.Contains(message, "missing/data:1") {
		t.Error(message)
	}
	if p := w.pod("p"); p.Status.Phase != corev1.PodPending {
		t.Errorf("phase %s", p.Status.Phase)
	}
}
