package reconcile

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	corev1 "k8s.io/api/core/v1"

	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/pod/manifest"
	"github.com/pausa-run/pausa/runtime"
)

func TestProfiles(t *testing.T) {
	dir := t.TempDir()
	profile := filepath.Join(dir, "own.json")
	if err := os.WriteFile(profile, []byte(`{"defaultAction": "SCMP_ACT_ALLOW"}`), 0o600); err != nil {
		t.Fatal(err)
	}
	const local = "{type: Localhost, localhostProfile: own.json}"
	for name, c := range map[string]struct {
		pod, container    string
		seccomp, appArmor string
		err               string
	}{
		"nothing said":      {"", "", "runtime/default", "", ""},
		"the pod's":         {"seccompProfile: " + local + ", appArmorProfile: {type: Localhost, localhostProfile: p}", "", "localhost/" + profile, "localhost/p", ""},
		"the container's":   {"seccompProfile: " + local + ", appArmorProfile: {type: Unconfined}", "seccompProfile: {type: Unconfined}, appArmorProfile: {type: RuntimeDefault}", "unconfined", "runtime/default", ""},
		"privileged":        {"seccompProfile: " + local, "privileged: true", "unconfined", "", ""},
		"no such profile":   {"", "seccompProfile: {type: Localhost, localhostProfile: none.json}", "", "", "seccomp profile none.json: invalid: open"},
		"a folder":          {"", "seccompProfile: {type: Localhost, localhostProfile: ./}", "", "", "not a regular file"},
		"unconfined alone":  {"", "appArmorProfile: {type: Unconfined}", "runtime/default", "unconfined", ""},
		"the default, said": {"seccompProfile: {type: RuntimeDefault}", "", "runtime/default", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			p := &corev1.Pod{}
			p.Spec.SecurityContext, p.Spec.Containers = &corev1.PodSecurityContext{}, []corev1.Container{{SecurityContext: &corev1.SecurityContext{}}}
			parse(t, c.pod, p.Spec.SecurityContext)
			parse(t, c.container, p.Spec.Containers[0].SecurityContext)
			var cfg pod.ContainerConfig
			err := security(&cfg, p, &p.Spec.Containers[0], dir)
			if c.err != "" {
				if err == nil || !strings.Contains(err.Error(), c.err) {
					t.Errorf("error %v, want %q", err, c.err)
				}
				return
			}
			if err != nil || cfg.Security.Seccomp != c.seccomp || cfg.Security.AppArmor != c.appArmor {
				t.Errorf("seccomp %q, AppArmor %q, %v; want %q, %q", cfg.Security.Seccomp, cfg.Security.AppArmor, err, c.seccomp, c.appArmor)
			}
			if strings.HasPrefix(c.seccomp, "localhost/") != (len(cfg.Security.SeccompProfile) > 0) {
				t.Errorf("content of the profile: %q", cfg.Security.SeccompProfile)
			}
		})
	}
}

func TestUnmasked(t *testing.T) {
	unmasked := corev1.UnmaskedProcMount
	c := &corev1.Container{SecurityContext: &corev1.SecurityContext{ProcMount: &unmasked}}
	var cfg pod.ContainerConfig
	if err := security(&cfg, &corev1.Pod{}, c, ""); err != nil || cfg.Security.MaskedPaths == nil || len(cfg.Security.MaskedPaths)+len(cfg.Security.ReadonlyPaths) > 0 {
		t.Errorf("masked %v, read-only %v, %v: want none, said so", cfg.Security.MaskedPaths, cfg.Security.ReadonlyPaths, err)
	}
}

// Each pod with users of its own has a range that nobody else has, also not a pod
// of a kubelet's, and keeps it with the next sandbox.
func TestUsersOfPods(t *testing.T) {
	w := newWorld(t)
	w.pods.mu.Lock()
	w.pods.pods["kube"] = &pod.Pod{ID: "kube", Config: pod.Config{
		Name: "kube", UIDMaps: []runtime.IDMap{{HostID: 1<<30 + 5, Size: 65536}}, GIDMaps: []runtime.IDMap{{HostID: 1<<30 + 5, Size: 65536}},
	}}
	w.pods.mu.Unlock()
	ranges := func(name string) (out []uint32) {
		for _, p := range w.pods.Pods() {
			if p.Config.Name == name && len(p.Config.UIDMaps) == 1 && p.Config.UIDMaps[0] == p.Config.GIDMaps[0] && p.Config.UIDMaps[0].Size == 65536 {
				out = append(out, p.Config.UIDMaps[0].HostID)
			}
		}
		return out
	}
	w.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: a}\nspec: {hostUsers: false, containers: [{name: c, image: b, volumeMounts: [{name: v, mountPath: /v}]}], volumes: [{name: v, emptyDir: {}}]}\n")
	w.until("a is ready", w.ready("a"))
	w.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: b}\nspec: {hostUsers: false, containers: [{name: d, image: b}]}\n")
	w.until("b is ready", w.ready("b"))
	if diff := cmp.Diff([][]uint32{{1<<30 + 2<<16}, {1<<30 + 3<<16}}, [][]uint32{ranges("a"), ranges("b")}); diff != "" {
		t.Error(diff)
	}
	for _, m := range w.pods.running(t, "c").Config.Mounts {
		if len(m.UIDMaps) != 1 || m.UIDMaps[0].HostID != 1<<30+2<<16 {
			t.Errorf("mount %s has the owners %v", m.Destination, m.UIDMaps)
		}
	}
	// Its range is free again when the pod is gone.
	if _, err := w.e.Delete(t.Context(), DeleteOptions{Kind: manifest.KindPod, Namespace: "default", Name: "a", Wait: true}); err != nil {
		t.Fatal(err)
	}
	w.apply("apiVersion: v1\nkind: Pod\nmetadata: {name: c}\nspec: {hostUsers: false, containers: [{name: e, image: b}]}\n")
	w.until("c is ready", w.ready("c"))
	if diff := cmp.Diff([]uint32{1<<30 + 2<<16}, ranges("c")); diff != "" {
		t.Error(diff)
	}
}

func TestFullName(t *testing.T) {
	override, yes := "other.example.org", true
	for name, c := range map[string]struct {
		spec         corev1.PodSpec
		host, domain string
		err          bool
	}{
		"its name":        {corev1.PodSpec{}, "web-0.x", "", false},
		"its hostname":    {corev1.PodSpec{Hostname: "h", Subdomain: "db"}, "h", "db.default.svc.cluster.local", false},
		"the full name":   {corev1.PodSpec{Hostname: "h", Subdomain: "db", SetHostnameAsFQDN: &yes}, "h.db.default.svc.cluster.local", "", false},
		"no full name":    {corev1.PodSpec{Hostname: "h", SetHostnameAsFQDN: &yes}, "h", "", false},
		"too long a name": {corev1.PodSpec{Hostname: strings.Repeat("h", 60), Subdomain: "db", SetHostnameAsFQDN: &yes}, "", "", true},
		"another name":    {corev1.PodSpec{Hostname: "h", Subdomain: "db", HostnameOverride: &override}, override, "", false},
	} {
		t.Run(name, func(t *testing.T) {
			e := &Engine{opts: Options{DNS: &ClusterDNS{Domain: "cluster.local"}}}
			p := &corev1.Pod{Spec: c.spec}
			p.Name, p.Namespace = "web-0.x", "default"
			host, domain, err := e.fullName(p)
			if host != c.host || domain != c.domain || (err != nil) != c.err {
				t.Errorf("%q, %q, %v; want %q, %q", host, domain, err, c.host, c.domain)
			}
		})
	}
}

func TestResources(t *testing.T) {
	for name, c := range map[string]struct {
		spec  string
		class corev1.PodQOSClass
		group runtime.Resources
		check func(runtime.Resources) bool // of the first container
	}{
		"nothing":     {"{containers: [{name: a, image: b}]}", "BestEffort", runtime.Resources{}, func(r runtime.Resources) bool { return *r.OOMScoreAdj == 1000 && r.CPUShares == 0 }},
		"all limits":  {"{containers: [{name: a, image: b, resources: {limits: {cpu: 1, memory: 1Gi}}}]}", "Guaranteed", runtime.Resources{}, func(r runtime.Resources) bool { return *r.OOMScoreAdj == -997 && r.MemoryLimit == 1<<30 }},
		"one of two":  {"{containers: [{name: a, image: b, resources: {limits: {cpu: 1, memory: 1Gi}}}, {name: c, image: b}]}", "Burstable", runtime.Resources{}, func(r runtime.Resources) bool { return *r.OOMScoreAdj > 0 && *r.OOMScoreAdj < 999 }},
		"huge pages":  {"{containers: [{name: a, image: b, resources: {limits: {memory: 1Gi, hugepages-2Mi: 4Mi}}}]}", "Burstable", runtime.Resources{}, func(r runtime.Resources) bool { return r.Hugepages["2MB"] == 4<<20 }},
		"the pod's":   {"{resources: {limits: {cpu: 500m, memory: 1Gi}}, containers: [{name: a, image: b}]}", "Guaranteed", runtime.Resources{CPUShares: 512, CPUQuota: 50000, CPUPeriod: 100000, MemoryLimit: 1 << 30}, func(r runtime.Resources) bool { return *r.OOMScoreAdj == -997 }},
		"its request": {"{resources: {requests: {memory: 1Gi}}, containers: [{name: a, image: b}]}", "Burstable", runtime.Resources{}, func(r runtime.Resources) bool { return *r.OOMScoreAdj > 0 && *r.OOMScoreAdj < 999 }},
	} {
		t.Run(name, func(t *testing.T) {
			p, _ := declared(t, "apiVersion: v1\nkind: Pod\nmetadata: {name: p}\nspec: "+c.spec+"\n")
			w := newWorldWith(t, func(o *Options) { o.CgroupV2 = true })
			r := w.e.resources(p, &p.Spec.Containers[0])
			if qos(p) != c.class || !c.check(r) || r.Unified["memory.oom.group"] != "1" {
				t.Errorf("%s, %+v, adj %d", qos(p), r, *r.OOMScoreAdj)
			}
			cfg, err := w.e.sandboxConfig(p, 0)
			if diff := cmp.Diff(c.group, cfg.Resources); diff != "" || err != nil {
				t.Errorf("%v, the pod's own (-want +got):\n%s", err, diff)
			}
		})
	}
}
