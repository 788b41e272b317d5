package cri

import (
	"path"
	"regexp"
	"strings"
	"unicode/utf8"
)

// What strangers may send. A name travels in file names, cgroup paths and
// CNI_ARGS, a DNS entry in a line of resolv.conf: they are refused, never escaped.
const (
	maxName    = 253
	maxPath    = 4095
	maxStrings = 1 << 20 // bytes of a request's labels or annotations together
	maxID      = 1<<31 - 1
)

func alnum(c byte) bool {
	return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9'
}

// only says that s is made of letters, digits and the bytes of extra.
func only(s, extra string) bool {
	for i := range len(s) {
		if !alnum(s[i]) && strings.IndexByte(extra, s[i]) < 0 {
			return false
		}
	}
	return true
}

// named is only, with a letter or digit at both ends and at most limit bytes.
func named(s, extra string, limit int) bool {
	return s != "" && len(s) <= limit && only(s, extra) && alnum(s[0]) && alnum(s[len(s)-1])
}

// printable says that s has no byte but visible ASCII: no space, no control character.
func printable(s string) bool {
	return strings.IndexFunc(s, func(r rune) bool { return r < '!' || r > '~' }) < 0
}

// matches is for what is rarely asked: compiling costs more than all of a common request. No rule counts repetitions.
func matches(rule, s string) bool { return regexp.MustCompile(rule).MatchString(s) }

func checkName(field, s string) error {
	switch {
	case s == "":
		return invalid(field, "is empty")
	case len(s) > maxName:
		return invalid(field, "has %d bytes: at most %d are allowed", len(s), maxName)
	case !named(s, "._-", maxName) || strings.Contains(s, ".."):
		return invalid(field, "%q: letters, digits, '-', '_' and '.' are allowed, first and last a letter or digit, no '..'", s)
	}
	return nil
}

// checkText refuses what can be no C string and no JSON string.
func checkText(field, s string) error {
	switch {
	case strings.ContainsRune(s, 0):
		return invalid(field, "contains a NUL byte")
	case !utf8.ValidString(s):
		return invalid(field, "is not UTF-8")
	}
	return nil
}

func checkTexts(field string, all []string) error {
	for _, s := range all {
		if err := checkText(field, s); err != nil {
			return err
		}
	}
	return nil
}

// checkAbs wants an absolute path without "..", as both ends of a mount must be.
func checkAbs(field, p string) error {
	if err := checkPath(field, p); err != nil {
		return err
	}
	if !path.IsAbs(p) {
		return invalid(field, "%q is not an absolute path", p)
	}
	return nil
}

// checkPath wants a path without "..", newline or NUL.
func checkPath(field, p string) error {
	if err := checkText(field, p); err != nil {
		return err
	}
	switch {
	case len(p) > maxPath:
		return invalid(field, "has %d bytes: at most %d are allowed", len(p), maxPath)
	case strings.ContainsAny(p, "\n\r"):
		return invalid(field, "%q contains a newline", p)
	}
	for part := range strings.SplitSeq(p, "/") {
		if part == ".." {
			return invalid(field, "%q contains '..'", p)
		}
	}
	return nil
}

func checkMap(field string, m map[string]string) error {
	total := 0
	for k, v := range m {
		if k == "" {
			return invalid(field, "has an empty key")
		}
		if err := checkText(field, k+v); err != nil {
			return err
		}
		total += len(k) + len(v)
	}
	if total > maxStrings {
		return invalid(field, "has %d bytes: at most %d are allowed", total, maxStrings)
	}
	return nil
}

// checkID wants a user or group id that the kernel's signed interfaces take.
func checkID(field string, id int64) error {
	if id < 0 || id > maxID {
		return invalid(field, "%d is not between 0 and %d", id, maxID)
	}
	return nil
}
