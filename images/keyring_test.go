package images

import (
	"encoding/base64"
	"errors"
	"slices"
	"strings"
	"testing"
)

func TestKeyring(t *testing.T) {
	var k Keyring
	if err := k.Add([]byte(`{"auths":{
		"https://index.docker.io/v1/": {"username":"hub","password":"p"},
		"registry.example.com": {"username":"whole","password":"p"},
		"registry.example.com/team": {"username":"team","password":"p"},
		"registry.example.com/team/app": {"username":"app","password":"p"},
		"*.example.com": {"username":"glob","password":"p"},
		"http://host.example:5000/v2/": {"username":"port","password":"p"},
		"empty.example.com": {}
	}}`)); err != nil {
		t.Fatal(err)
	}
	if err := k.AddLegacy([]byte(`{"[": {"username":"bad","password":"p"}, "old.example": {"auth":"` +
		base64.StdEncoding.EncodeToString([]byte("old:p")) + `"}}`)); err != nil {
		t.Fatal(err)
	}
	for ref, want := range map[string]string{
		"busybox":                            "hub",
		"docker.io/me/app:1":                 "hub",
		"index.docker.io/me/app":             "hub",
		"registry.example.com/x":             "whole glob",
		"registry.example.com/team/x":        "team whole glob",
		"registry.example.com/team/app:1":    "app team whole glob",
		"other.example.com/team/app":         "glob",
		"example.com/x":                      "",
		"a.b.example.com/x":                  "",
		"registry.example.com:5000/x":        "",
		"registry.example.com.evil.net/x":    "",
		"host.example:5000/x":                "port",
		"host.example/x":                     "",
		"old.example/x@sha256:" + sha(64, 1): "old",
		"empty.example.com/x":                "glob",
	} {
		auths, err := k.For(ref)
		if err != nil {
			t.Errorf("%s: %v", ref, err)
		}
		var got []string
		for _, a := range auths {
			user, _, err := a.split()
			if err != nil {
				t.Error(err)
			}
			got = append(got, user)
			if a.ServerAddress == "" || strings.Contains(a.ServerAddress, "*") {
				t.Errorf("%s: a credential for the host %q", ref, a.ServerAddress)
			}
		}
		if !slices.Equal(got, strings.Fields(want)) {
			t.Errorf("%s: got %v, want %v", ref, got, want)
		}
	}
	if _, err := k.For("Not Good"); !errors.Is(err, ErrInvalid) {
		t.Error(err)
	}
}

func sha(n int, digit byte) string { return strings.Repeat(string('0'+digit), n) }

func TestKeyringTellsNoSecret(t *testing.T) {
	var k Keyring
	for _, bad := range []string{`geheim`, `{"auths": "geheim"}`} {
		if err := k.Add([]byte(bad)); err == nil || strings.Contains(err.Error(), "geheim") {
			t.Errorf("%s: %v", bad, err)
		}
	}
	wantError(t, k.AddLegacy([]byte("[]")), ".dockercfg")
	if auths, err := k.For("r/x"); len(auths) != 0 || err != nil {
		t.Errorf("%v, %v", auths, err)
	}
}
