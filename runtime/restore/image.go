package restore

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
)

// openFlags follow no link, and wait for no FIFO.
const openFlags = unix.O_NOFOLLOW | unix.O_NONBLOCK | unix.O_CLOEXEC

// The words that images begin with: one that most have, and one for each kind.
const (
	magicCommon    = 0x54564319
	magicInventory = 0x58313116
	magicTree      = 0x50273030
	magicCore      = 0x55053847
	magicIDs       = 0x54432030
	magicFiles     = 0x56303138
	magicFDs       = 0x56213732
	magicFS        = 0x51403912
	magicMM        = 0x57492820
	magicPagemap   = 0x56084025
	magicSeccomp   = 0x64413049
	magicTimes     = 0x43114433
	magicMounts    = 0x55563928
	magicNetwork   = 0x55933752
	magicFIFOData  = 0x59333054
	magicPipeData  = 0x56453709
)

// reader reads the entries of one image.
type reader struct {
	name string
	data []byte
}

// open reads a whole image of a kind.
func (c *cleaner) open(name string, magic uint32) (*reader, error) {
	f, err := c.take(name)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxImage+1))
	if err != nil {
		return nil, refuse(name, "read it: %v", err)
	}
	if len(data) > maxImage {
		return nil, refuse(name, "it has more than %d bytes", maxImage)
	}
	r := &reader{name: name, data: data}
	want := []uint32{magicCommon, magic}
	if magic == magicInventory {
		want = want[1:]
	}
	for _, word := range want {
		if got, err := r.word(); err != nil || got != word {
			return nil, refuse(name, "it does not begin as such an image does")
		}
	}
	return r, nil
}

func (r *reader) word() (uint32, error) {
	if len(r.data) < 4 {
		return 0, refuse(r.name, "it is cut off")
	}
	word := binary.LittleEndian.Uint32(r.data)
	r.data = r.data[4:]
	return word, nil
}

// bytes takes n bytes.
func (r *reader) bytes(n uint32) ([]byte, error) {
	if uint64(n) > uint64(len(r.data)) {
		return nil, refuse(r.name, "it is cut off")
	}
	out := r.data[:n]
	r.data = r.data[n:]
	return out, nil
}

// next decodes the next entry into m; io.EOF at the end.
func (r *reader) next(m proto.Message) error {
	if len(r.data) == 0 {
		return io.EOF
	}
	size, err := r.word()
	if err != nil {
		return err
	}
	body, err := r.bytes(size)
	if err != nil {
		return err
	}
	if err := proto.Unmarshal(body, m); err != nil {
		return refuse(r.name, "decode an entry: %v", err)
	}
	if what := unknown(m.ProtoReflect()); what != "" {
		return refuse(r.name, "%s has a field that is not known here: it was written by a newer CRIU, or forged", what)
	}
	return nil
}

// unknown names a message with a field that its definition does not have; "" for none.
func unknown(m protoreflect.Message) (what string) {
	if len(m.GetUnknown()) > 0 {
		return string(m.Descriptor().Name())
	}
	m.Range(func(f protoreflect.FieldDescriptor, v protoreflect.Value) bool {
		switch {
		case f.Message() == nil:
		case f.IsList():
			for i := 0; i < v.List().Len() && what == ""; i++ {
				what = unknown(v.List().Get(i).Message())
			}
		default:
			what = unknown(v.Message())
		}
		return what == ""
	})
	return what
}

// message is a pointer to the struct T that is a proto.Message.
type message[T any] interface {
	*T
	proto.Message
}

// entries reads all entries of an image.
func entries[T any, M message[T]](c *cleaner, name string, magic uint32) (all []M, err error) {
	r, err := c.open(name, magic)
	if err != nil {
		return nil, err
	}
	for {
		m := M(new(T))
		err := r.next(m)
		if errors.Is(err, io.EOF) {
			return all, nil
		}
		if err != nil {
			return nil, err
		}
		all = append(all, m)
	}
}

// only reads the one entry of an image.
func only[T any, M message[T]](c *cleaner, name string, magic uint32) (M, error) {
	all, err := entries[T, M](c, name, magic)
	if err != nil {
		return nil, err
	}
	if len(all) != 1 {
		return nil, refuse(name, "it has %d entries, not one", len(all))
	}
	return all[0], nil
}

// writer collects what becomes an image.
type writer struct {
	data []byte
	err  error
}

func newWriter(magic uint32) *writer {
	w := &writer{}
	if magic != magicInventory {
		w.word(magicCommon)
	}
	w.word(magic)
	return w
}

func (w *writer) word(n uint32) { w.data = binary.LittleEndian.AppendUint32(w.data, n) }

func (w *writer) entry(m proto.Message) {
	body, err := proto.Marshal(m)
	if err != nil {
		w.err = errors.Join(w.err, fmt.Errorf("encode image: %w", err))
	}
	w.word(uint32(len(body)))
	w.data = append(w.data, body...)
}

func (c *cleaner) put(name string, w *writer) error {
	if w.err != nil {
		return w.err
	}
	f, err := c.create(name)
	if err != nil {
		return err
	}
	_, err = f.Write(w.data)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write image %s: %w", name, err)
	}
	return nil
}

// put writes entries of one kind.
func put[M proto.Message](c *cleaner, name string, magic uint32, all ...M) error {
	w := newWriter(magic)
	for _, m := range all {
		w.entry(m)
	}
	return c.put(name, w)
}
