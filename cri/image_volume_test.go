package cri

import (
	"testing"

	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/pausa-run/pausa/pod"
)

func TestImageMounts(t *testing.T) {
	image := &criv1.ImageSpec{Image: "sha256:abc"}
	got, err := mounts([]*criv1.Mount{{ContainerPath: "/data", Image: image, ImageSubPath: "a/b"}}, pod.Config{})
	if err != nil || len(got) != 1 || got[0].Image != "sha256:abc" || got[0].Source != "a/b" || !got[0].Readonly {
		t.Errorf("%+v, %v", got, err)
	}
	for want, m := range map[string]*criv1.Mount{
		"invalid mounts[0].image.image: is empty":                      {Image: &criv1.ImageSpec{}},
		"invalid mounts[0].host_path: excludes image":                  {Image: image, HostPath: "/x"},
		"invalid mounts[0].image_sub_path: needs image":                {HostPath: "/x", ImageSubPath: "a"},
		`invalid mounts[0].image_sub_path: "../a" is not a path`:       {Image: image, ImageSubPath: "../a"},
		`invalid mounts[0].image_sub_path: "/etc" is not a path below`: {Image: image, ImageSubPath: "/etc"},
	} {
		m.ContainerPath = "/data"
		if _, err := mounts([]*criv1.Mount{m}, pod.Config{}); err == nil || len(err.Error()) < len(want) || err.Error()[:len(want)] != want {
			t.Errorf("%v, want %s", err, want)
		}
	}
}
