package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"regexp"
	"slices"
	"strings"
)

// skip is a kind of spec that cannot pass here, and why.
type skip struct{ expr, reason string }

// skips are the specs that are left out by us; what the suite leaves out by
// itself, with its own reason, is not named here.
func skips() []skip {
	return []skip{
		{"public image with digest", "wants an image with a digest that cannot be forged, and there is no way to its registry"},
	}
}

// suiteReport is the part of ginkgo's JSON report that is used here.
type suiteReport struct {
	SpecReports []spec
	RunTime     int64 // ns
}

type spec struct {
	ContainerHierarchyTexts []string
	LeafNodeType            string
	LeafNodeText            string
	State                   string
	Failure                 struct{ Message string }
}

func (s spec) name() string {
	return strings.Join(append(slices.Clone(s.ContainerHierarchyTexts), s.LeafNodeText), " ")
}

// reason is why a spec was skipped.
func (s spec) reason() string {
	if s.Failure.Message != "" {
		return s.Failure.Message
	}
	for _, k := range skips() {
		if regexp.MustCompile(k.expr).MatchString(s.name()) {
			return k.reason
		}
	}
	if strings.Contains(strings.ToLower(s.name()), "benchmark") {
		return "a benchmark: the suite runs it only when asked"
	}
	return "outside of -focus, or left out by the suite"
}

// printReport prints failures, then what was skipped and why, then the suite's summary line.
func printReport(w io.Writer, path string) error {
	raw, err := os.ReadFile(path)
	if err != nil {
		return fmt.Errorf("read the suite's report: %w", err)
	}
	var reports []suiteReport
	if err := json.Unmarshal(raw, &reports); err != nil {
		return fmt.Errorf("read the suite's report: %w", err)
	}
	count := map[string]int{}
	skipped := map[string][]string{}
	for _, r := range reports {
		for _, s := range r.SpecReports {
			if s.LeafNodeType != "It" {
				continue
			}
			count[s.State]++
			switch s.State {
			case "passed":
			case "skipped":
				skipped[s.reason()] = append(skipped[s.reason()], s.name())
			default:
				fmt.Fprintf(w, "%s: %s\n    %s\n", strings.ToUpper(s.State), s.name(), indent(s.Failure.Message))
			}
		}
	}
	printSkipped(w, skipped)
	return summary(w, count)
}

func printSkipped(w io.Writer, skipped map[string][]string) {
	reasons := make([]string, 0, len(skipped))
	for r := range skipped {
		reasons = append(reasons, r)
	}
	slices.Sort(reasons)
	for _, r := range reasons {
		fmt.Fprintf(w, "skipped, %s:\n", r)
		for _, name := range skipped[r] {
			fmt.Fprintln(w, "   ", name)
		}
	}
}

func summary(w io.Writer, count map[string]int) error {
	failed := 0
	for state, n := range count {
		if state != "passed" && state != "skipped" && state != "pending" {
			failed += n
		}
	}
	verdict := "SUCCESS!"
	if failed > 0 || count["passed"] == 0 {
		verdict = "FAIL!"
	}
	fmt.Fprintf(w, "%s -- %d Passed | %d Failed | %d Pending | %d Skipped\n", verdict, count["passed"], failed, count["pending"], count["skipped"])
	return nil
}

func indent(s string) string { return strings.ReplaceAll(strings.TrimSpace(s), "\n", "\n    ") }
