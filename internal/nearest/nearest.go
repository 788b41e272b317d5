// Package nearest finds the word that somebody meant.
package nearest

import "strings"

// Word returns the known word that differs least from got, or "" when none is
// near: at most a third of its letters, and at least one, may differ. A swap of
// two neighbouring letters counts as one difference, letters left out as few, capitals count as small. A
// single letter is near nothing, nor is a word of more than 64.
func Word(got string, known []string) string {
	if len(got) < 2 || len(got) > 64 {
		return ""
	}
	got = strings.ToLower(got)
	most := max(1, len(got)/3)
	best, bestDistance := "", most+1
	for _, word := range known {
		small := strings.ToLower(word)
		d := distance(got, small)
		if shortened(got, small) {
			d = min(d, most)
		}
		if d < bestDistance {
			best, bestDistance = word, d
		}
	}
	return best
}

// shortened tells whether got is word with letters left out, as "img" is of "image".
func shortened(got, word string) bool {
	if len(got) < 3 || word == "" || got[0] != word[0] || 2*len(got) < len(word) {
		return false
	}
	for i := range len(word) {
		if got != "" && got[0] == word[i] {
			got = got[1:]
		}
	}
	return got == ""
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
