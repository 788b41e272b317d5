package boot

import (
	"regexp"
	"testing"
)

func TestID(t *testing.T) {
	first, err := ID()
	if err != nil || !regexp.MustCompile(`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`).MatchString(first) {
		t.Fatalf("%q, %v; want an id without white space", first, err)
	}
	if again, err := ID(); again != first || err != nil {
		t.Errorf("%q, %v; want the same within one boot: %q", again, err, first)
	}
}
