package runtime

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/pausa-run/pausa/runtime/wire"
)

// resumePatience is how long a keeper that was told to let containers run again may take.
const resumePatience = time.Minute

// Checkpoint freezes running containers, all before the first is looked at, writes
// the processes and memory of each below its folder, as CRIU does, calls frozen
// while nothing in them moves, and returns when all run again. A ctx that ends
// cuts it short, but a dump that was begun is waited for: CRIU, interrupted,
// would leave broken processes. The error wraps ErrNoCRIU, ErrState or ErrNotFound.
func (c *Client) Checkpoint(ctx context.Context, targets []CheckpointTarget, frozen func() error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	s, err := c.open(context.WithoutCancel(ctx), wire.ContainerCheckpoint, CheckpointRequest{Targets: targets})
	if err != nil {
		return err
	}
	defer s.close()
	stop := context.AfterFunc(ctx, s.resume)
	defer stop()
	_, err = s.receive(nil)
	if err == nil {
		err = frozen()
		s.resume()
		if _, resumeErr := s.receive(nil); resumeErr != nil {
			err = errors.Join(err, fmt.Errorf("let the containers run again: %w", resumeErr))
		}
	}
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), err)
	}
	return err
}

// resume says that nobody needs the containers frozen any more.
func (s *stream) resume() {
	_ = s.conn.SetReadDeadline(time.Now().Add(resumePatience))
	_ = s.conn.CloseWrite()
}
