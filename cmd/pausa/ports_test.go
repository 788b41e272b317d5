package main

import (
	"fmt"
	"testing"
)

func TestParsePorts(t *testing.T) {
	for text, want := range map[string]string{
		"80":                        "[:0>80/TCP]",
		"8080:80/udp":               "[:8080>80/UDP]",
		"127.0.0.1:8080:80":         "[127.0.0.1:8080>80/TCP]",
		"[::1]:8080:80":             "[::1:8080>80/TCP]",
		"8000-8002:80-82":           "[:8000>80/TCP :8001>81/TCP :8002>82/TCP]",
		"192.0.2.1:53-54:53-54/udp": "[192.0.2.1:53>53/UDP 192.0.2.1:54>54/UDP]",
		"80-81":                     "[:0>80/TCP :0>81/TCP]",
		"65535":                     "[:0>65535/TCP]",
	} {
		ports, err := parsePorts(text)
		var got []string
		for _, p := range ports {
			got = append(got, fmt.Sprintf("%s:%d>%d/%s", p.HostIP, p.HostPort, p.ContainerPort, p.Protocol))
		}
		if err != nil || fmt.Sprint(got) != want {
			t.Errorf("%s: %v, %v; want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", "0", "65536", "x", "80/icmp", "8000-8002:80-81", "82-80", "80:", ":80", "x:80:80", "1-65536"} {
		if ports, err := parsePorts(text); err == nil {
			t.Errorf("%q is accepted as %v", text, ports)
		}
	}
}
