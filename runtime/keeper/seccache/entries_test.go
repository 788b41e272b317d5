package seccache

import (
	"bytes"
	"encoding/binary"
	"testing"
)

func entry(key, filter string) []byte {
	out := binary.NativeEndian.AppendUint32(nil, uint32(len(key)))
	out = binary.NativeEndian.AppendUint32(out, uint32(len(filter)))
	return append(append(out, key...), filter...)
}

func TestAddKeepsOneEntryOfAKind(t *testing.T) {
	var file []byte
	var err error
	for _, e := range [][]byte{entry("a", "12345678"), entry("b", "12345678"), entry("a", "87654321")} {
		if file, err = Add(file, e); err != nil {
			t.Fatal(err)
		}
	}
	want := Magic + string(entry("a", "12345678")) + string(entry("b", "12345678"))
	if string(file) != want {
		t.Errorf("file %q, want %q", file, want)
	}
}

func TestAddBeginsADamagedFileAnew(t *testing.T) {
	for _, file := range []string{"x", Magic + "abc", Magic + string(entry("k", "12345678")[:12])} {
		got, err := Add([]byte(file), entry("a", "12345678"))
		if err != nil || string(got) != Magic+string(entry("a", "12345678")) {
			t.Errorf("%q: %q, %v", file, got, err)
		}
	}
}

func FuzzSplit(f *testing.F) {
	f.Add(entry("key", "12345678"))
	f.Add([]byte{})
	f.Fuzz(func(t *testing.T, data []byte) {
		key, filter, rest, err := Split(data)
		if err == nil && !bytes.Equal(append(entry(string(key), string(filter)), rest...), data) {
			t.Errorf("parts of %q do not make the whole", data)
		}
	})
}
