package runtime

import (
	"context"
	"fmt"
	"os"

	"github.com/pausa-run/pausa/runtime/wire"
)

// Deposit gives the keeper duplicates of the caller's own files, in place of
// those that it had before. They stay open when the caller ends, however it ends,
// and Deposited gives them to the next one: a socket loses nothing that waits in
// it. They are gone with the keeper.
func (c *Client) Deposit(ctx context.Context, files map[string]*os.File) error {
	var q wire.Files
	var fds []int
	defer func() { wire.CloseFDs(fds) }()
	for name, f := range files {
		fd, err := wire.Duplicate(f)
		if err != nil {
			return fmt.Errorf("hand over %s: %w", name, err)
		}
		q.Names, fds = append(q.Names, name), append(fds, fd)
	}
	s, err := c.openFDs(ctx, wire.FilesPut, q, fds)
	if err != nil {
		return err
	}
	defer s.close()
	_, err = s.receive(nil)
	return err
}

// Deposited are duplicates of what Deposit gave last. The caller closes them.
func (c *Client) Deposited(ctx context.Context) (map[string]*os.File, error) {
	s, err := c.open(ctx, wire.FilesGet, nil)
	if err != nil {
		return nil, err
	}
	defer s.close()
	var q wire.Files
	files, err := s.receive(&q)
	if err != nil {
		return nil, err
	}
	if len(files) != len(q.Names) {
		wire.CloseAll(files)
		return nil, fmt.Errorf("%d files came for %d names", len(files), len(q.Names))
	}
	out := map[string]*os.File{}
	for i, name := range q.Names {
		out[name] = files[i]
	}
	return out, nil
}
