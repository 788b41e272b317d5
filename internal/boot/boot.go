// Package boot tells one run of the kernel from another: records of an earlier
// one speak of what is gone.
package boot

import (
	"fmt"
	"os"
	"strings"
)

// ID is the kernel's random id of this boot.
func ID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(b)), nil
}
