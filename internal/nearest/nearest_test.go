package nearest

import "testing"

func TestWord(t *testing.T) {
	known := []string{"apply", "delete", "get", "describe", "logs", "images.registry_config"}
	for got, want := range map[string]string{
		"aply":                  "apply",
		"dleete":                "delete",
		"gte":                   "get",
		"log":                   "logs",
		"images.registry_confg": "images.registry_config",
		"frobnicate":            "",
		"":                      "",
		"x":                     "",
		"APPLY":                 "apply",
		"dsc":                   "",
		"dscrib":                "describe",
		"desc":                  "describe",
	} {
		if word := Word(got, known); word != want {
			t.Errorf("Word(%q) = %q, want %q", got, word, want)
		}
	}
}

func TestDistance(t *testing.T) {
	for _, c := range []struct {
		a, b string
		want int
	}{
		{"", "", 0},
		{"", "abc", 3},
		{"abc", "", 3},
		{"abc", "abc", 0},
		{"abc", "acb", 1},
		{"kitten", "sitting", 3},
	} {
		if d := distance(c.a, c.b); d != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.a, c.b, d, c.want)
		}
		if d := distance(c.b, c.a); d != c.want {
			t.Errorf("distance(%q, %q) = %d, want %d", c.b, c.a, d, c.want)
		}
	}
}
