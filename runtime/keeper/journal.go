//go:build cgo

package keeper

import (
	"errors"
	"fmt"
	"hash/fnv"
	"os"
	"sync/atomic"
	"unsafe"

	"golang.org/x/sys/unix"
)

// journalFile is one page of memory for a container that outlives the keeper:
// a write to it costs no system call, and a kill -9 takes nothing of it back.
type journalFile struct{ memory []byte }

const journalSize = 4096

func openJournal(path string) (*journalFile, error) {
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open journal: %w", err)
	}
	defer f.Close()
	if err := f.Truncate(journalSize); err != nil {
		return nil, fmt.Errorf("size journal: %w", err)
	}
	memory, err := unix.Mmap(int(f.Fd()), 0, journalSize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED)
	if err != nil {
		return nil, fmt.Errorf("map journal: %w", err)
	}
	return &journalFile{memory: memory}, nil
}

func (f *journalFile) close() {
	if f != nil {
		_ = unix.Munmap(f.memory)
	}
}

// The fields of a journal's entry.
const (
	entryValid = iota // 1: output is being logged, or is logged and may still be in the FIFO
	entryInode
	entryBefore // size of the log before
	entryLength // of the text that is added to the log
	entryTaken  // bytes of output
	entryHash   // of the output
	entryFields
)

// journal says for one stream what is on its way from the FIFO to the log, so
// that the next keeper neither logs it twice nor keeps half a line. A nil
// journal notes nothing.
type journal struct{ entry *[entryFields]uint64 }

// journalOf is the journal of the n-th stream.
func (f *journalFile) journalOf(n int) *journal {
	if f == nil {
		return nil
	}
	return &journal{entry: (*[entryFields]uint64)(unsafe.Pointer(&f.memory[n*entryFields*8]))}
}

func (j *journal) begin(log *os.File, text, output []byte) {
	var st unix.Stat_t
	if j == nil || unix.Fstat(int(log.Fd()), &st) != nil {
		return
	}
	for field, value := range [entryFields]uint64{
		entryInode: st.Ino, entryBefore: uint64(st.Size), entryLength: uint64(len(text)),
		entryTaken: uint64(len(output)), entryHash: hashOf(output),
	} {
		atomic.StoreUint64(&j.entry[field], value)
	}
	atomic.StoreUint64(&j.entry[entryValid], 1)
}

func (j *journal) end() {
	if j != nil {
		atomic.StoreUint64(&j.entry[entryValid], 0)
	}
}

func hashOf(data []byte) uint64 {
	h := fnv.New64a()
	_, _ = h.Write(data)
	return h.Sum64()
}

// settle brings to its end what an earlier keeper was killed at: half a text
// goes from the log, output that is logged goes from the FIFO.
func (j *journal) settle(log, fifo *os.File, pipes *pipePool) error {
	if j == nil || log == nil || j.entry[entryValid] == 0 {
		return nil
	}
	defer j.end()
	var st unix.Stat_t
	if err := unix.Fstat(int(log.Fd()), &st); err != nil {
		return fmt.Errorf("look at log: %w", err)
	}
	before, taken := j.entry[entryBefore], j.entry[entryTaken]
	switch size := uint64(st.Size); {
	case st.Ino != j.entry[entryInode] || size <= before:
		return nil // another file by now, or nothing was written
	case size < before+j.entry[entryLength]:
		return log.Truncate(int64(before))
	}
	raw, err := fifo.SyscallConn()
	if err != nil {
		return err
	}
	buf := make([]byte, pumpSize)
	return errors.Join(err, raw.Control(func(fd uintptr) {
		n, err := pipes.peek(int(fd), buf)
		if err == nil && taken <= uint64(n) && hashOf(buf[:taken]) == j.entry[entryHash] {
			discard(int(fd), buf[:taken])
		}
	}))
}
