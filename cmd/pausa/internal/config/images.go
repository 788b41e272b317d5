package config

import (
	"errors"
	"fmt"
	"strconv"
	"time"
)

// ImagePolicy says which images come, and which go.
type ImagePolicy struct {
	Pinned              []string
	MaxConcurrentPulls  int           // 0 is any number
	PullProgressTimeout time.Duration // 0 is for ever
	DigestOnly          bool
	VerifierDir         string // "" is none
	GCHighPercent       int    // 0 is never
	GCLowPercent        int
	GCMinAge            time.Duration
}

func imageSettings() []setting {
	return []setting{
		{
			"images.pinned", list, "", "Images that are never collected; * in a name stands for any letters.",
			func(c *Config, v string) error { c.Images.Pinned = splitList(v); return nil },
		},
		{
			"images.max_concurrent_pulls", number, "4", "How many images are pulled at once; 0 is any number.",
			func(c *Config, v string) error { return setNumber(&c.Images.MaxConcurrentPulls, v, 0, 1000) },
		},
		{
			"images.pull_progress_timeout", text, "1m", "How long a registry may send nothing before a pull is tried again; 0s is for ever.",
			func(c *Config, v string) error { return setDuration(&c.Images.PullProgressTimeout, v) },
		},
		{
			"images.digest_only", truth, "false", "Pull only images that are named by their digest, as name@sha256:….",
			func(c *Config, v string) (err error) {
				if c.Images.DigestOnly, err = strconv.ParseBool(v); err != nil {
					return errors.New("must be true or false")
				}
				return nil
			},
		},
		{
			"images.verifier_dir", text, "", "Folder of programs that each pull asks, as containerd's image verifiers; empty is none.",
			func(c *Config, v string) error {
				if v == "" {
					return nil
				}
				return setPath(&c.Images.VerifierDir, v)
			},
		},
		{
			"images.gc_high_percent", number, "0",
			"When the file system of the images is so full, remove images that nothing uses, the one used longest ago first.\n0 is never: what was imported may not come back. A kubelet does this by itself.",
			func(c *Config, v string) error { return setNumber(&c.Images.GCHighPercent, v, 0, 100) },
		},
		{
			"images.gc_low_percent", number, "80", "Where that stops.",
			func(c *Config, v string) error {
				if err := setNumber(&c.Images.GCLowPercent, v, 0, 100); err != nil {
					return err
				}
				if high := c.Images.GCHighPercent; high > 0 && c.Images.GCLowPercent >= high {
					return fmt.Errorf("must be below images.gc_high_percent, which is %d", high)
				}
				return nil
			},
		},
		{
			"images.gc_min_age", text, "1h", "Images that came or were used within this time stay.",
			func(c *Config, v string) error { return setDuration(&c.Images.GCMinAge, v) },
		},
	}
}

func setNumber(to *int, v string, low, high int) error {
	n, err := strconv.Atoi(v)
	if err != nil || n < low || n > high {
		return fmt.Errorf("must be a number from %d to %d", low, high)
	}
	*to = n
	return nil
}

func setDuration(to *time.Duration, v string) error {
	d, err := time.ParseDuration(v)
	if err != nil || d < 0 {
		return errors.New("is not a time such as 90s, 10m or 24h")
	}
	*to = d
	return nil
}
