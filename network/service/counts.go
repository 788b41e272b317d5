package service

import "fmt"

// Counts reads back how many elements each of our sets and maps holds in the
// kernel, by name: what is to be compared with what should be there.
func (t *Table) Counts() (map[string]int, error) {
	out := map[string]int{}
	for _, f := range families() {
		for _, s := range f.all() {
			elems, err := t.rules.Elements(s)
			if err != nil {
				return nil, fmt.Errorf("count services: %w", err)
			}
			out[s.Name] = len(elems)
		}
	}
	return out, nil
}
