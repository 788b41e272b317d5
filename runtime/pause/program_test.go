package pause

import (
	"bytes"
	"strings"
	"testing"
	"testing/fstest"
)

func TestProgramIsNamedByArchitecture(t *testing.T) {
	fs := fstest.MapFS{"pause-arm64": {Data: []byte("\x7fELF")}}
	got, err := program(fs, "arm64")
	if err != nil || !bytes.HasPrefix(got, []byte("\x7fELF")) {
		t.Fatalf("program = %q, %v", got, err)
	}
}

func TestMissingProgramSaysTheCure(t *testing.T) {
	_, err := program(fstest.MapFS{"pause.c": {}}, "amd64")
	if err == nil || !strings.Contains(err.Error(), "make build") {
		t.Fatalf("error %v does not name the cure", err)
	}
}
