package manifest

import (
	"fmt"
	"reflect"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// section says which fields of one Kubernetes type are supported. Fields are
// separated by blanks; "field=a|b" takes only these values. Fields that the type
// has and the section does not name are valid Kubernetes, but not supported yet.
type section struct {
	of     any
	path   string
	fields string
	notes  string
}

// supportTable is the one place that says what is supported: the decoder obeys
// it and docs/support.md is made of it.
func supportTable() []section {
	return slices.Concat(objectSections(), podSections(), containerSections(), volumeSections())
}

func objectSections() []section {
	return []section{
		{
			metav1.ObjectMeta{},
			"metadata", "name namespace labels annotations ownerReferences uid resourceVersion generation creationTimestamp deletionTimestamp deletionGracePeriodSeconds managedFields selfLink",
			"everything but name, namespace, labels and annotations belongs to Pausa and is ignored in a manifest",
		},
		{metav1.LabelSelector{}, "selector", "matchLabels matchExpressions", ""},
		{metav1.LabelSelectorRequirement{}, "selector.matchExpressions[]", "key operator values", ""},
		{corev1.Namespace{}, "Namespace", "metadata spec status", ""},
		{corev1.NamespaceSpec{}, "Namespace.spec", "", "its content is deleted with it"},
		{corev1.ConfigMap{}, "ConfigMap", "metadata data binaryData immutable", ""},
		{corev1.Secret{}, "Secret", "metadata data stringData type immutable", ""},
		{corev1.Service{}, "Service", "metadata spec status", ""},
		{
			corev1.ServiceSpec{},
			"Service.spec", "type=ClusterIP|NodePort|LoadBalancer|ExternalName selector ports externalName clusterIP clusterIPs externalIPs ipFamilies ipFamilyPolicy publishNotReadyAddresses " +
				"sessionAffinity=None|ClientIP sessionAffinityConfig internalTrafficPolicy=Cluster|Local externalTrafficPolicy=Cluster|Local healthCheckNodePort " +
				"allocateLoadBalancerNodePorts loadBalancerIP loadBalancerSourceRanges trafficDistribution=PreferClose|PreferSameZone|PreferSameNode",
			"clusterIP None makes a headless Service: its name leads to its endpoints; type ExternalName is another name for externalName. Both are for DNS alone. Type LoadBalancer has addresses of network.load_balancer_cidrs, or the host's own. The traffic policies differ for endpoints on other hosts alone: Local leaves these out, Cluster gives their clients the address of this host. trafficDistribution has no effect on one host",
		},
		{corev1.SessionAffinityConfig{}, "Service.spec.sessionAffinityConfig", "clientIP", ""},
		{corev1.ClientIPConfig{}, "Service.spec.sessionAffinityConfig.clientIP", "timeoutSeconds", "a client is forgotten so long after its last connection"},
		{corev1.ServicePort{}, "Service.spec.ports[]", "name protocol=TCP|UDP|SCTP appProtocol port targetPort nodePort", ""},
		{discoveryv1.EndpointSlice{}, "EndpointSlice", "metadata addressType=IPv4|IPv6 endpoints ports", "the label kubernetes.io/service-name says for which Service; nameless ports, ports without a number and addresses by name are refused"},
		{discoveryv1.Endpoint{}, "EndpointSlice.endpoints[]", "addresses conditions hostname targetRef nodeName zone hints deprecatedTopology", "without a nodeName it is on another host; zone, hints and targetRef have no effect"},
		{discoveryv1.EndpointConditions{}, "EndpointSlice.endpoints[].conditions", "ready serving terminating", ""},
		{discoveryv1.EndpointPort{}, "EndpointSlice.ports[]", "name protocol=TCP|UDP|SCTP port appProtocol", ""},
		{corev1.Endpoints{}, "Endpoints", "metadata subsets", "the older form of an EndpointSlice, for the Service of the same name; refused if that has a selector"}, //nolint:staticcheck // what older manifests have
		{corev1.EndpointSubset{}, "Endpoints.subsets[]", "addresses notReadyAddresses ports", ""},                                                                     //nolint:staticcheck // as above
		{corev1.EndpointAddress{}, "Endpoints.subsets[].addresses[]", "ip hostname nodeName targetRef", ""},
		{corev1.EndpointPort{}, "Endpoints.subsets[].ports[]", "name port protocol=TCP|UDP|SCTP appProtocol", ""},
		{appsv1.Deployment{}, "Deployment", "metadata spec status", ""},
		{
			appsv1.DeploymentSpec{},
			"Deployment.spec", "replicas selector template strategy minReadySeconds revisionHistoryLimit progressDeadlineSeconds",
			"revisionHistoryLimit is accepted and has no effect: old revisions are not kept",
		},
		{appsv1.DeploymentStrategy{}, "Deployment.spec.strategy", "type=RollingUpdate|Recreate rollingUpdate", ""},
		{appsv1.RollingUpdateDeployment{}, "Deployment.spec.strategy.rollingUpdate", "maxSurge maxUnavailable", "a template with host ports is updated without surge: two pods cannot hold one host port"},
		{corev1.PodTemplateSpec{}, "Deployment.spec.template", "metadata spec", "spec is that of a Pod"},
	}
}

func podSections() []section {
	return []section{
		{corev1.Pod{}, "Pod", "metadata spec status", ""},
		{
			corev1.PodSpec{},
			"Pod.spec", "containers initContainers volumes restartPolicy=Always|OnFailure|Never terminationGracePeriodSeconds activeDeadlineSeconds " +
				"dnsPolicy=ClusterFirst|Default|None|ClusterFirstWithHostNet dnsConfig hostNetwork hostPID hostIPC shareProcessNamespace securityContext hostname subdomain hostAliases " +
				"setHostnameAsFQDN hostnameOverride os hostUsers automountServiceAccountToken=false serviceAccountName=default serviceAccount=default enableServiceLinks imagePullSecrets " +
				"nodeName nodeSelector affinity tolerations topologySpreadConstraints priorityClassName priority preemptionPolicy resources schedulerName=default-scheduler runtimeClassName",
			"dnsPolicy ClusterFirst acts as Default with hostNetwork, with network.dns.enabled = false, and on a network of other CNI plugins; runtimeClassName is the name or an alias of a runtime handler in the settings of the daemon: there is no RuntimeClass. " +
				"activeDeadlineSeconds counts from the moment the pod was applied. With hostUsers: false the pod has 65536 ids of the host of its own, from 1073741824 on, and its root is nobody on the host; volumes show it their files as if it were root. " +
				"One host has nothing to choose from: nodeSelector may name kubernetes.io/os and kubernetes.io/arch; tolerations, topologySpreadConstraints, preferred affinities and priorities are accepted and have no effect",
		},
		{corev1.PodOS{}, "Pod.spec.os", "name=linux", ""},
		{corev1.Affinity{}, "Pod.spec.affinity", "nodeAffinity podAffinity podAntiAffinity", "without effect, as there is one host"},
		{corev1.NodeAffinity{}, "Pod.spec.affinity.nodeAffinity", "preferredDuringSchedulingIgnoredDuringExecution", ""},
		{corev1.PodAffinity{}, "Pod.spec.affinity.podAffinity", "preferredDuringSchedulingIgnoredDuringExecution requiredDuringSchedulingIgnoredDuringExecution", "all pods are together"},
		{corev1.PodAntiAffinity{}, "Pod.spec.affinity.podAntiAffinity", "preferredDuringSchedulingIgnoredDuringExecution", ""},
		{corev1.TopologySpreadConstraint{}, "Pod.spec.topologySpreadConstraints[]", "maxSkew topologyKey whenUnsatisfiable labelSelector nodeAffinityPolicy nodeTaintsPolicy matchLabelKeys", "without effect, as there is one host"},
		{corev1.LocalObjectReference{}, "Pod.spec.imagePullSecrets[]", "name", "a Secret of type kubernetes.io/dockerconfigjson or kubernetes.io/dockercfg; without it, or without a fitting entry in it, images are pulled with the daemon's own credentials, if it has any"},
		{corev1.PodSecurityContext{}, "Pod.spec.securityContext", "runAsUser runAsGroup runAsNonRoot supplementalGroups supplementalGroupsPolicy=Merge|Strict fsGroup fsGroupChangePolicy=Always|OnRootMismatch sysctls seccompProfile appArmorProfile", "fsGroup is for volumes that Pausa makes: a hostPath keeps its owner"},
		{corev1.Sysctl{}, "Pod.spec.securityContext.sysctls[]", "name value", "only those that a namespace has of its own"},
		{corev1.HostAlias{}, "Pod.spec.hostAliases[]", "ip hostnames", ""},
		{corev1.PodDNSConfig{}, "Pod.spec.dnsConfig", "nameservers searches options", ""},
		{corev1.PodDNSConfigOption{}, "Pod.spec.dnsConfig.options[]", "name value", ""},
	}
}

func containerSections() []section {
	return []section{
		{
			corev1.Container{},
			"Pod.spec.containers[]", "name image command args workingDir ports env envFrom resources resizePolicy volumeMounts securityContext imagePullPolicy=Always|IfNotPresent|Never stdin stdinOnce tty " +
				"livenessProbe readinessProbe startupProbe lifecycle restartPolicy=Always|OnFailure|Never restartPolicyRules terminationMessagePath terminationMessagePolicy=File|FallbackToLogsOnError",
			"the same for initContainers; restartPolicy Always makes one of these a sidecar, and probes and lifecycle are for sidecars and containers; images of registry localhost are never pulled",
		},
		{corev1.ContainerRestartRule{}, "Pod.spec.containers[].restartPolicyRules[]", "action=Restart|RestartAllContainers exitCodes", "the first rule that fits an exit counts, else restartPolicy; RestartAllContainers ends the others within the grace period and begins again with the init containers, in the same sandbox"},
		{corev1.ContainerRestartRuleOnExitCodes{}, "Pod.spec.containers[].restartPolicyRules[].exitCodes", "operator=In|NotIn values", ""},
		{
			corev1.Probe{},
			"Pod.spec.containers[].livenessProbe", "exec httpGet tcpSocket grpc initialDelaySeconds timeoutSeconds periodSeconds successThreshold failureThreshold terminationGracePeriodSeconds",
			"the same for readinessProbe and startupProbe; httpGet, tcpSocket and grpc are asked from inside the pod's network. Until its first success a readinessProbe over the network is asked more often than its period",
		},
		{corev1.ExecAction{}, "exec", "command", ""},
		{corev1.HTTPGetAction{}, "httpGet", "path port host scheme=HTTP|HTTPS httpHeaders protocol=HTTP1", "200 to 399 is a success; redirects to another host are not followed; certificates are not verified"},
		{corev1.HTTPHeader{}, "httpGet.httpHeaders[]", "name value", ""},
		{corev1.TCPSocketAction{}, "tcpSocket", "port host", ""},
		{corev1.GRPCAction{}, "grpc", "port service mode=Plaintext|TLS", "grpc.health.v1; certificates are not verified"},
		{corev1.Lifecycle{}, "Pod.spec.containers[].lifecycle", "postStart preStop stopSignal", "stopSignal needs spec.os.name"},
		{corev1.LifecycleHandler{}, "Pod.spec.containers[].lifecycle.preStop", "exec httpGet sleep tcpSocket", "the same for postStart; tcpSocket is refused: it is deprecated and does nothing"},
		{corev1.SleepAction{}, "sleep", "seconds", ""},
		{corev1.ContainerPort{}, "Pod.spec.containers[].ports[]", "name protocol=TCP|UDP|SCTP containerPort hostPort hostIP", ""},
		{corev1.EnvVar{}, "Pod.spec.containers[].env[]", "name value valueFrom", ""},
		{corev1.EnvVarSource{}, "Pod.spec.containers[].env[].valueFrom", "configMapKeyRef secretKeyRef fieldRef resourceFieldRef", ""},
		{corev1.ConfigMapKeySelector{}, "configMapKeyRef", "name key optional", ""},
		{corev1.SecretKeySelector{}, "secretKeyRef", "name key optional", ""},
		{corev1.ObjectFieldSelector{}, "fieldRef", "apiVersion=v1 fieldPath", "metadata.name, .namespace, .uid, .labels['KEY'], .annotations['KEY'], spec.nodeName, status.hostIP, .hostIPs, .podIP, .podIPs"},
		{corev1.ResourceFieldSelector{}, "resourceFieldRef", "containerName resource=limits.cpu|limits.memory|requests.cpu|requests.memory divisor", ""},
		{corev1.EnvFromSource{}, "Pod.spec.containers[].envFrom[]", "prefix configMapRef secretRef", ""},
		{corev1.ConfigMapEnvSource{}, "configMapRef", "name optional", ""},
		{corev1.SecretEnvSource{}, "secretRef", "name optional", ""},
		{corev1.ResourceRequirements{}, "Pod.spec.containers[].resources", "limits requests", "cpu, memory and hugepages-SIZE; a running container gets other ones in place, unless its resizePolicy says otherwise or the pod's QoS class would change. Those of Pod.spec.resources are for all containers together"},
		{corev1.ContainerResizePolicy{}, "Pod.spec.containers[].resizePolicy[]", "resourceName=cpu|memory restartPolicy=NotRequired|RestartContainer", ""},
		{
			corev1.SecurityContext{},
			"Pod.spec.containers[].securityContext", "runAsUser runAsGroup runAsNonRoot privileged capabilities readOnlyRootFilesystem allowPrivilegeEscalation procMount=Default|Unmasked seccompProfile appArmorProfile",
			"without a seccompProfile the built-in one is used, and without an appArmorProfile that of the daemon, where the host has AppArmor; a privileged container has neither. procMount Unmasked needs hostUsers: false",
		},
		{corev1.Capabilities{}, "Pod.spec.containers[].securityContext.capabilities", "add drop", ""},
		{corev1.SeccompProfile{}, "seccompProfile", "type=RuntimeDefault|Localhost|Unconfined localhostProfile", "localhostProfile is a path below security.seccomp_profiles of the daemon's settings"},
		{corev1.AppArmorProfile{}, "appArmorProfile", "type=RuntimeDefault|Localhost|Unconfined localhostProfile", "localhostProfile is the name of a profile that is loaded on the host"},
		{corev1.VolumeMount{}, "Pod.spec.containers[].volumeMounts[]", "name mountPath readOnly recursiveReadOnly=Disabled|IfPossible|Enabled subPath subPathExpr mountPropagation=None|HostToContainer|Bidirectional bindMountOptions", "bindMountOptions are of noexec, nodev and nosuid"},
	}
}

func volumeSections() []section {
	return []section{
		{corev1.Volume{}, "Pod.spec.volumes[]", "name emptyDir hostPath configMap secret downwardAPI projected image", ""},
		{corev1.EmptyDirVolumeSource{}, "Pod.spec.volumes[].emptyDir", "medium sizeLimit mode", "medium Memory, HugePages or HugePages-SIZE; sizeLimit holds with these; on disk nothing counts what is written. With an fsGroup that may write it whatever the mode"},
		{corev1.HostPathVolumeSource{}, "Pod.spec.volumes[].hostPath", "path type=DirectoryOrCreate|Directory|FileOrCreate|File|Socket|CharDevice|BlockDevice", ""},
		{corev1.ConfigMapVolumeSource{}, "Pod.spec.volumes[].configMap", "name items defaultMode defaultUser optional", ""},
		{corev1.SecretVolumeSource{}, "Pod.spec.volumes[].secret", "secretName items defaultMode defaultUser optional", "on tmpfs"},
		{corev1.ImageVolumeSource{}, "Pod.spec.volumes[].image", "reference pullPolicy=Always|IfNotPresent|Never", "an image's files, read-only; subPath may name a folder or a file in it"},
		{corev1.KeyToPath{}, "Pod.spec.volumes[].configMap.items[]", "key path mode user", "the same for secrets"},
		{corev1.DownwardAPIVolumeSource{}, "Pod.spec.volumes[].downwardAPI", "items defaultMode defaultUser", ""},
		{corev1.DownwardAPIVolumeFile{}, "Pod.spec.volumes[].downwardAPI.items[]", "path fieldRef resourceFieldRef mode user", "fieldRef is one of metadata.name, .namespace, .uid, .labels, .annotations, .labels['KEY'], .annotations['KEY']; labels and annotations follow those of the pod"},
		{corev1.ProjectedVolumeSource{}, "Pod.spec.volumes[].projected", "sources defaultMode defaultUser", "with a secret among its sources on tmpfs"},
		{corev1.VolumeProjection{}, "Pod.spec.volumes[].projected.sources[]", "configMap secret downwardAPI", ""},
		{corev1.ConfigMapProjection{}, "Pod.spec.volumes[].projected.sources[].configMap", "name items optional", ""},
		{corev1.SecretProjection{}, "Pod.spec.volumes[].projected.sources[].secret", "name items optional", ""},
		{corev1.DownwardAPIProjection{}, "Pod.spec.volumes[].projected.sources[].downwardAPI", "items", ""},
	}
}

// rule is what the table says of one field: any value, only those listed, or none
// and why.
type rule struct {
	values  []string
	refused string
}

// rules indexes the table by type.
func rules() map[reflect.Type]map[string]rule {
	out := map[reflect.Type]map[string]rule{}
	for _, s := range supportTable() {
		fields := map[string]rule{}
		for f := range strings.FieldsSeq(s.fields) {
			name, values, some := strings.Cut(f, "=")
			r := rule{}
			if some {
				r.values = strings.Split(values, "|")
			}
			fields[name] = r
		}
		for name, why := range refusals()[reflect.TypeOf(s.of)] {
			fields[name] = rule{refused: why}
		}
		out[reflect.TypeOf(s.of)] = fields
	}
	return out
}

// SupportMatrix is docs/support.md: what is supported of each type, and what is
// valid Kubernetes and refused with "not supported yet".
func SupportMatrix() string {
	var b strings.Builder
	b.WriteString("# Supported Kubernetes fields\n\n" +
		"This page is made from the table that the decoder obeys (`go test ./pod/manifest -update`).\n" +
		"A field that Kubernetes has and this page does not list as supported is refused by name, never skipped.\n\n" +
		"Kinds that can be declared: " + strings.Join(Kinds(), ", ") + "; also `kind: List`.\n" +
		"Kinds that are refused as not supported yet: " + strings.Join(foreignKinds(), ", ") + ".\n")
	for _, s := range supportTable() {
		fmt.Fprintf(&b, "\n## %s\n\n", s.path)
		known := rules()[reflect.TypeOf(s.of)]
		var yes, no, never []string
		for _, f := range fieldsOf(reflect.TypeOf(s.of)) {
			r, ok := known[f.name]
			switch {
			case f.name == "kind" || (f.name == "apiVersion" && !ok):
			case !ok:
				no = append(no, "`"+f.name+"`")
			case r.refused != "":
				never = append(never, "\n- refused: `"+f.name+"`: "+r.refused)
			case len(r.values) > 0:
				yes = append(yes, "`"+f.name+"` ("+strings.Join(r.values, ", ")+")")
			default:
				yes = append(yes, "`"+f.name+"`")
			}
		}
		if s.notes != "" {
			b.WriteString(s.notes + "\n\n")
		}
		b.WriteString("- supported: " + orNone(yes) + "\n- not yet: " + orNone(no) + strings.Join(never, "") + "\n")
	}
	return b.String()
}

func orNone(list []string) string {
	if len(list) == 0 {
		return "none"
	}
	return strings.Join(list, ", ")
}

// field is one JSON field of a Go struct.
type field struct {
	name string
	typ  reflect.Type
}

// fieldsOf lists the JSON fields of a struct, inlined ones included, in order.
func fieldsOf(t reflect.Type) []field {
	var out []field
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		switch {
		case f.Anonymous && (name == "" || strings.Contains(opts, "inline")):
			out = append(out, fieldsOf(f.Type)...)
		case name != "" && name != "-":
			out = append(out, field{name, f.Type})
		}
	}
	return out
}
