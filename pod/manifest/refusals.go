package manifest

import (
	"reflect"

	corev1 "k8s.io/api/core/v1"
)

// Why groups of fields are refused.
const (
	noAPIServer = "it is for programs that speak to an API server, and there is none"
	noWindows   = "it is for Windows, and this host runs Linux"
	noSELinux   = "volumes are not labelled for SELinux; use an AppArmor or a seccomp profile"
	oneHost     = "there is one host, and it cannot be another; remove it"
	noClaims    = "there are no drivers that would hand out devices; use an annotation cdi.k8s.io/NAME with the name of a CDI device"
	noStorage   = "storage of others is mounted by the host; mount it there and use hostPath"
)

// refusals are fields that are valid Kubernetes and will not be supported, with
// the reason.
func refusals() map[reflect.Type]map[string]string {
	out := map[reflect.Type]map[string]string{
		reflect.TypeFor[corev1.ServiceSpec](): {"loadBalancerClass": "it gives the Service to a load balancer other than Pausa's, and there is none here; remove it"},
		reflect.TypeFor[corev1.PodSpec](): {
			"ephemeralContainers": "they are added to a pod that runs, through an API server; use pausa exec, or a container with shareProcessNamespace",
			"readinessGates":      "they are opened by programs that write to an API server, and there is none; use a readinessProbe",
			"schedulingGates":     "they are opened by programs that write to an API server, and there is none; apply the pod when it may start",
			"evictionResponders":  noAPIServer,
			"schedulingGroup":     oneHost,
			"overhead":            "it belongs to a RuntimeClass, and there is none; remove it",
			"resourceClaims":      noClaims,
		},
		reflect.TypeFor[corev1.NodeAffinity]():             {"requiredDuringSchedulingIgnoredDuringExecution": oneHost},
		reflect.TypeFor[corev1.PodAntiAffinity]():          {"requiredDuringSchedulingIgnoredDuringExecution": oneHost},
		reflect.TypeFor[corev1.TopologySpreadConstraint](): {"minDomains": oneHost},
		reflect.TypeFor[corev1.PodSecurityContext](): {
			"seLinuxOptions": noSELinux, "seLinuxChangePolicy": noSELinux, "windowsOptions": noWindows,
		},
		reflect.TypeFor[corev1.SecurityContext]():      {"seLinuxOptions": noSELinux, "windowsOptions": noWindows},
		reflect.TypeFor[corev1.ResourceRequirements](): {"claims": noClaims},
		reflect.TypeFor[corev1.Container]():            {"volumeDevices": "raw block volumes come with PersistentVolumeClaims; use a hostPath of type BlockDevice"},
		reflect.TypeFor[corev1.EnvVarSource]():         {"fileKeyRef": "read the file in the container's command: . /path/of/file"},
		reflect.TypeFor[corev1.Volume]():               refusedVolumes(),
		reflect.TypeFor[corev1.VolumeProjection]():     {"serviceAccountToken": noAPIServer, "clusterTrustBundle": noAPIServer, "podCertificate": noAPIServer},
	}
	return out
}

// refusedVolumes are the sources that need a driver or an API server.
func refusedVolumes() map[string]string {
	out := map[string]string{
		"persistentVolumeClaim": "there are no PersistentVolumes; use hostPath, or emptyDir for what may go with the pod",
		"ephemeral":             "there are no PersistentVolumes; use emptyDir",
		"csi":                   "there are no CSI drivers; mount it on the host and use hostPath",
		"flexVolume":            "there are no volume drivers; mount it on the host and use hostPath",
		"gitRepo":               "it was removed from Kubernetes for its holes; clone into an emptyDir in an init container",
	}
	for _, name := range []string{
		"gcePersistentDisk", "awsElasticBlockStore", "nfs", "iscsi", "glusterfs", "rbd", "cinder", "cephfs", "flocker", "fc", "azureFile",
		"vsphereVolume", "quobyte", "azureDisk", "photonPersistentDisk", "portworxVolume", "scaleIO", "storageos",
	} {
		out[name] = noStorage
	}
	return out
}
