// Package nearest finds the word that somebody meant.
package nearest

// Word returns the known word that differs least from got, or "" when none is
// near: at most a third of its letters, and at least one, may differ. A swap of
// two neighbouring letters counts as one difference. A single letter is near nothing.
func Word(got string, known []string) string {
	if len(got) < 2 {
		return ""
	}
	best, bestDistance := "", 1+max(1, len(got)/3)
	for _, word := range known {
		if d := distance(got, word); d < bestDistance {
			best, bestDistance = word, d
		}
	}
	return best
}

// distance is the optimal string alignment distance between a and b, in bytes.
func distance(a, b string) int {
	before, prev, row := make([]int, len(b)+1), make([]int, len(b)+1), make([]int, len(b)+1)
	for j := range prev {
		prev[j] = j
	}
	for i := 1; i <= len(a); i++ {
		row[0] = i
		for j := 1; j <= len(b); j++ {
			cost := 1
			if a[i-1] == b[j-1] {
				cost = 0
			}
			row[j] = min(prev[j]+1, row[j-1]+1, prev[j-1]+cost)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				row[j] = min(row[j], before[j-2]+1)
			}
		}
		before, prev, row = prev, row, before
	}
	return prev[len(b)]
}
