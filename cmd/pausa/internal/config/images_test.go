package config

import (
	"slices"
	"strings"
	"testing"
	"time"
)

func TestImageSettings(t *testing.T) {
	c, _, _, err := load(t, "[images]\npinned = [\"a\", \"*/pause:*\"]\nmax_concurrent_pulls = 2\npull_progress_timeout = \"90s\"\n"+
		"digest_only = true\nverifier_dir = \"/v\"\ngc_high_percent = 90\ngc_low_percent = 70\ngc_min_age = \"24h\"\n", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	got, want := c.Images, ImagePolicy{
		Pinned: []string{"a", "*/pause:*"}, MaxConcurrentPulls: 2, PullProgressTimeout: 90 * time.Second,
		DigestOnly: true, VerifierDir: "/v", GCHighPercent: 90, GCLowPercent: 70, GCMinAge: 24 * time.Hour,
	}
	if !slices.Equal(got.Pinned, want.Pinned) {
		t.Errorf("pinned %q", got.Pinned)
	}
	got.Pinned, want.Pinned = nil, nil
	if got.GCMinAge != want.GCMinAge || got.GCHighPercent != 90 || got.GCLowPercent != 70 || !got.DigestOnly || got.VerifierDir != "/v" ||
		got.MaxConcurrentPulls != 2 || got.PullProgressTimeout != want.PullProgressTimeout {
		t.Errorf("got %+v", got)
	}
	for text, want := range map[string]string{
		"gc_high_percent = 101\n":           "from 0 to 100",
		"gc_high_percent = 50\n":            "must be below images.gc_high_percent, which is 50",
		"gc_min_age = \"soon\"\n":           "is not a time such as",
		"pull_progress_timeout = \"-1s\"\n": "is not a time such as",
		"max_concurrent_pulls = -1\n":       "must be a number from 0",
		"digest_only = \"x\"\n":             "must be true or false",
		"verifier_dir = \"v\"\n":            "is not an absolute path",
	} {
		if _, _, _, err := load(t, "[images]\n"+text, nil, nil); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v, want %q", text, err, want)
		}
	}
}
