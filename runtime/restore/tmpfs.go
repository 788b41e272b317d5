package restore

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"path"
	"strings"
	"time"
)

const (
	maxTmpfs      = 256 << 20 // bytes of the files of one tmpfs
	maxTmpfsFiles = 1 << 14
)

// tmpfs writes the contents of the container's own tmpfs file systems anew: CRIU
// calls tar, as root, to unpack them.
func (c *cleaner) tmpfs() error {
	seen := map[string]bool{}
	for _, m := range c.mounts {
		if m.kind != "tmpfs" {
			continue
		}
		name := fmt.Sprintf("tmpfs-dev-%d.tar.gz.img", m.GetRootDev())
		if seen[name] {
			continue
		}
		seen[name] = true
		if !c.left[name] {
			return refuse(name, "the files of the tmpfs at %s are missing", m.GetMountpoint())
		}
		if err := c.tmpfsFiles(name, m); err != nil {
			return err
		}
	}
	return nil
}

func (c *cleaner) tmpfsFiles(name string, m *mount) error {
	in, err := c.take(name)
	if err != nil {
		return err
	}
	defer in.Close()
	plain, err := gzip.NewReader(in)
	if err != nil {
		return refuse(name, "it is not packed by gzip: %v", err)
	}
	var out bytes.Buffer
	packed := gzip.NewWriter(&out)
	from, to := tar.NewReader(io.LimitReader(plain, maxTmpfs)), tar.NewWriter(packed)
	links := map[string]bool{}
	total := int64(0)
	for files := 0; ; files++ {
		h, err := from.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return refuse(name, "it is no tar, or too large: %v", err)
		}
		if files >= maxTmpfsFiles {
			return refuse(name, "it has more than %d files", maxTmpfsFiles)
		}
		// A tar that is small may say of a file that it is long, and empty.
		if total += min(h.Size, maxTmpfs+1); h.Size < 0 || total > maxTmpfs {
			return refuse(name, "its files have more than %d bytes", maxTmpfs)
		}
		clean, err := c.tmpfsEntry(name, m, h, links)
		if err != nil {
			return err
		}
		if err := to.WriteHeader(clean); err != nil {
			return refuse(name, "the file %.200q: %v", h.Name, err)
		}
		if _, err := io.Copy(to, from); err != nil {
			return refuse(name, "the file %.200q: %v", h.Name, err)
		}
	}
	if err := errors.Join(to.Close(), packed.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return c.put(name, &writer{data: out.Bytes()})
}

// tmpfsEntry is one file as tar shall see it.
func (c *cleaner) tmpfsEntry(name string, m *mount, h *tar.Header, links map[string]bool) (*tar.Header, error) {
	at := path.Clean(strings.TrimSuffix(h.Name, "/"))
	if path.IsAbs(at) || at == ".." || strings.HasPrefix(at, "../") || strings.ContainsRune(at, 0) || len(at) > 1024 {
		return nil, refuse(name, "the file %.200q is outside of the tmpfs", h.Name)
	}
	for dir := path.Dir(at); dir != "."; dir = path.Dir(dir) {
		if links[dir] {
			return nil, refuse(name, "the file %.200q is below a link", h.Name)
		}
	}
	if links[at] {
		return nil, refuse(name, "the file %.200q is there twice", h.Name)
	}
	out := &tar.Header{
		Typeflag: h.Typeflag, Name: "./" + at, Mode: h.Mode & 0o1777, Uid: h.Uid, Gid: h.Gid, ModTime: h.ModTime.Truncate(time.Second), Format: tar.FormatPAX,
	}
	if at == "." {
		out.Name = "./"
	}
	if h.Mode&^0o1777 != 0 || h.Uid < 0 || h.Gid < 0 {
		return nil, refuse(name, "the file %.200q has the mode %o", h.Name, h.Mode)
	}
	switch h.Typeflag {
	case tar.TypeDir:
		out.Name = strings.TrimSuffix(out.Name, "/") + "/"
	case tar.TypeReg:
		out.Size = h.Size
		links[at] = true // nothing is below it, and it comes once
	case tar.TypeSymlink:
		out.Linkname = h.Linkname
		links[at] = true
	case tar.TypeChar, tar.TypeBlock:
		kind := map[byte]string{tar.TypeChar: "c", tar.TypeBlock: "b"}[h.Typeflag]
		if m.GetMountpoint() != "/dev" || !c.device(path.Join("/dev", at), kind, h.Devmajor, h.Devminor) {
			return nil, refuse(name, "the device %.200q (%s %d:%d) is none of the request's", h.Name, kind, h.Devmajor, h.Devminor)
		}
		out.Devmajor, out.Devminor = h.Devmajor, h.Devminor
		links[at] = true
	default:
		return nil, refuse(name, "the file %.200q is of the kind %q, which is not restored", h.Name, h.Typeflag)
	}
	return out, nil
}
