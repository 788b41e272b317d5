package main

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

const sample = `[{"SpecReports": [
 {"ContainerHierarchyTexts": ["[k8s.io] Pod"], "LeafNodeType": "It", "LeafNodeText": "runs", "State": "passed"},
 {"ContainerHierarchyTexts": ["[k8s.io] Pod"], "LeafNodeType": "It", "LeafNodeText": "falls", "State": "failed", "Failure": {"Message": "two\nlines"}},
 {"ContainerHierarchyTexts": ["[k8s.io] AppArmor"], "LeafNodeType": "It", "LeafNodeText": "guards", "State": "skipped", "Failure": {"Message": "not enabled"}},
 {"ContainerHierarchyTexts": ["[k8s.io] Image"], "LeafNodeType": "It", "LeafNodeText": "public image with digest", "State": "skipped"},
 {"LeafNodeType": "ReportAfterSuite", "State": "passed"}]}]`

func TestPrintReport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "report.json")
	if err := os.WriteFile(path, []byte(sample), 0o600); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	if err := printReport(&out, path); err != nil {
		t.Fatal(err)
	}
	want := `FAILED: [k8s.io] Pod falls
    two
    lines
skipped, not enabled:
    [k8s.io] AppArmor guards
skipped, ` + skips()[0].reason + `:
    [k8s.io] Image public image with digest
FAIL! -- 1 Passed | 1 Failed | 0 Pending | 2 Skipped
`
	if out.String() != want {
		t.Errorf("report:\n%s\nwant:\n%s", out.String(), want)
	}
	if err := printReport(&out, path+"x"); err == nil {
		t.Error("a report that is not there is no error")
	}
}
