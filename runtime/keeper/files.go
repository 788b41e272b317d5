//go:build cgo

package keeper

import (
	"encoding/json"
	"fmt"

	"github.com/pausa-run/pausa/runtime/wire"
)

// putFiles takes files of the daemon's in place of those before. They are kept
// as bare descriptors: an os.File of a socket would wake the keeper up for each
// packet.
func (k *Keeper) putFiles(c *call) error {
	var q wire.Files
	if err := c.decode(&q); err != nil {
		return err
	}
	if len(q.Names) != len(c.files) {
		return fmt.Errorf("%d files came for %d names", len(c.files), len(q.Names))
	}
	fresh := map[string]int{}
	for i, name := range q.Names {
		fd, err := wire.Duplicate(c.files[i])
		if err != nil {
			closeFiles(fresh)
			return fmt.Errorf("keep %s: %w", name, err)
		}
		fresh[name] = fd
	}
	k.mu.Lock()
	old := k.files
	k.files = fresh
	k.mu.Unlock()
	closeFiles(old)
	return nil
}

func closeFiles(files map[string]int) {
	for _, fd := range files {
		wire.CloseFDs([]int{fd})
	}
}

// serveFiles sends duplicates of the daemon's files.
func (k *Keeper) serveFiles(c *call) error {
	var q wire.Files
	var fds []int
	k.mu.Lock() // and not only while they are listed: they must not be closed while they are sent
	defer k.mu.Unlock()
	for name, fd := range k.files {
		q.Names, fds = append(q.Names, name), append(fds, fd)
	}
	body, err := json.Marshal(q)
	if err != nil {
		return err
	}
	return c.conn.SendFDs(wire.Reply{Body: body}, fds)
}
