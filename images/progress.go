package images

// Progress is how far one blob of a pull is.
type Progress struct {
	Ref    string // image that is pulled
	Digest string // blob, "sha256:…"
	Bytes  int64  // of it that are here
	Total  int64
	Done   bool // verified and stored
}
