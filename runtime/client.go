package runtime

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"syscall"

	"github.com/pausa-run/pausa/runtime/wire"
)

// idleConnections is how many connections wait for the next call.
const idleConnections = 8

// Client speaks to the keeper. Its methods are safe for concurrent use. It
// connects anew by itself when a keeper was started again on the same socket.
type Client struct {
	socket string

	mu     sync.Mutex
	idle   []wire.Conn
	closed bool
}

// Connect finds the keeper behind a socket. The error wraps ErrKeeperGone when nobody answers.
func Connect(ctx context.Context, socket string) (*Client, error) {
	c := &Client{socket: socket}
	if _, err := c.Hello(ctx); err != nil {
		return nil, errors.Join(err, c.Close())
	}
	return c, nil
}

// Close gives the connections up; calls that run end with an error.
func (c *Client) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	var errs []error
	for _, conn := range c.idle {
		errs = append(errs, conn.Close())
	}
	c.idle = nil
	return errors.Join(errs...)
}

// take gives a connection for one call, an idle one if its keeper still lives.
func (c *Client) take(ctx context.Context) (wire.Conn, error) {
	c.mu.Lock()
	for len(c.idle) > 0 {
		conn := c.idle[len(c.idle)-1]
		c.idle = c.idle[:len(c.idle)-1]
		if conn.Alive() {
			c.mu.Unlock()
			return conn, nil
		}
		_ = conn.Close()
	}
	c.mu.Unlock()
	var dialer net.Dialer
	conn, err := dialer.DialContext(ctx, "unix", c.socket)
	if err == nil {
		return wire.Conn{UnixConn: conn.(*net.UnixConn)}, nil
	}
	if ctx.Err() != nil {
		return wire.Conn{}, ctx.Err()
	}
	return wire.Conn{}, fmt.Errorf("connect to %s: %w (start it with `pausa serve`): %w", c.socket, ErrKeeperGone, err)
}

func (c *Client) give(conn wire.Conn) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed || len(c.idle) >= idleConnections {
		_ = conn.Close()
		return
	}
	c.idle = append(c.idle, conn)
}

// stream is a connection on which a call runs. A cancelled context closes it,
// which is how the keeper hears that nobody waits any more.
type stream struct {
	conn wire.Conn
	ctx  context.Context
	stop func() bool
}

func (c *Client) open(ctx context.Context, method string, body any, files ...*os.File) (*stream, error) {
	fds := make([]int, len(files))
	for i, f := range files {
		fds[i] = int(f.Fd())
	}
	return c.openFDs(ctx, method, body, fds)
}

func (c *Client) openFDs(ctx context.Context, method string, body any, fds []int) (*stream, error) {
	conn, err := c.take(ctx)
	if err != nil {
		return nil, err
	}
	s := &stream{conn: conn, ctx: ctx, stop: context.AfterFunc(ctx, func() { _ = conn.Close() })}
	request := wire.Request{Method: method}
	if body != nil {
		if request.Body, err = json.Marshal(body); err != nil {
			s.close()
			return nil, fmt.Errorf("encode request: %w", err)
		}
	}
	if err := conn.SendFDs(request, fds); err != nil {
		s.close()
		return nil, s.explain(err)
	}
	return s, nil
}

// receive reads one reply into body, which may be nil.
func (s *stream) receive(body any) ([]*os.File, error) {
	var reply wire.Reply
	files, err := s.conn.Receive(&reply)
	if err != nil {
		return nil, s.explain(err)
	}
	if reply.Error != "" {
		wire.CloseAll(files)
		return nil, &remoteError{text: reply.Error, sentinel: kinds()[reply.Kind]}
	}
	if body != nil {
		if err := json.Unmarshal(reply.Body, body); err != nil {
			wire.CloseAll(files)
			return nil, fmt.Errorf("decode reply: %w", err)
		}
	}
	return files, nil
}

func (s *stream) explain(err error) error {
	if s.ctx.Err() != nil {
		return s.ctx.Err()
	}
	return fmt.Errorf("%w: it closed the connection during the call: %w", ErrKeeperGone, err)
}

func (s *stream) close() {
	s.stop()
	_ = s.conn.Close()
}

// call makes a call with one reply.
func (c *Client) call(ctx context.Context, method string, body, reply any) error {
	s, err := c.open(ctx, method, body)
	if err != nil {
		return err
	}
	_, err = s.receive(reply)
	var remote *remoteError
	if (err == nil || errors.As(err, &remote)) && s.stop() {
		c.give(s.conn)
		return err
	}
	s.close()
	return err
}

// Hello says who answers.
func (c *Client) Hello(ctx context.Context) (info KeeperInfo, err error) {
	err = c.call(ctx, wire.Hello, nil, &info)
	return info, err
}

// StartPod starts a pod's pause: all of it or nothing. The error wraps ErrExists when the id is taken.
func (c *Client) StartPod(ctx context.Context, spec PodSpec) (state PodState, err error) {
	err = c.call(ctx, wire.PodStart, spec, &state)
	return state, err
}

// RemovePod kills the pause and forgets the pod. A nil error means that it is gone, also when it never was.
func (c *Client) RemovePod(ctx context.Context, id string) error {
	return c.call(ctx, wire.PodRemove, wire.ID{ID: id}, nil)
}

// RemoveSlice has systemd stop a slice; nil when there is none of that name.
func (c *Client) RemoveSlice(ctx context.Context, name string) error {
	return c.call(ctx, wire.SliceRemove, wire.ID{ID: name}, nil)
}

// Pods lists all pods, in no order.
func (c *Client) Pods(ctx context.Context) (pods []PodState, err error) {
	err = c.call(ctx, wire.PodList, nil, &pods)
	return pods, err
}

// CreateContainer records and checks a container; its init is parked in the
// background, and what goes wrong there is StartContainer's error.
func (c *Client) CreateContainer(ctx context.Context, spec ContainerSpec) error {
	return c.call(ctx, wire.ContainerCreate, spec, nil)
}

// StartContainer lets the parked init become the command. When the command
// cannot be run the error says why, and the container is Exited with code 128.
func (c *Client) StartContainer(ctx context.Context, id string) (state ContainerState, err error) {
	if err = c.call(ctx, wire.ContainerStart, wire.ID{ID: id}, &state); err == nil {
		return state, nil
	}
	if now, stateErr := c.Container(context.WithoutCancel(ctx), id); stateErr == nil {
		state = now
	}
	return state, err
}

// Signal sends a signal to the container's init, or to all of its processes;
// nil when it has exited. The error wraps ErrNotFound.
func (c *Client) Signal(ctx context.Context, id string, sig syscall.Signal, all bool) error {
	return c.call(ctx, wire.ContainerSignal, wire.Signal{ID: id, Signal: int(sig), All: all}, nil)
}

// Wait blocks until the container has exited.
func (c *Client) Wait(ctx context.Context, id string) (exit Exit, err error) {
	s, err := c.open(ctx, wire.ContainerWait, wire.ID{ID: id})
	if err != nil {
		return exit, err
	}
	defer s.close() // the keeper reads nothing more on it
	_, err = s.receive(&exit)
	return exit, err
}

// RemoveContainer kills what is left of a container and forgets it. A nil
// error means that it is gone, also when it never was.
func (c *Client) RemoveContainer(ctx context.Context, id string) error {
	return c.call(ctx, wire.ContainerRemove, wire.ID{ID: id}, nil)
}

// Containers lists all containers, in no order.
func (c *Client) Containers(ctx context.Context) (containers []ContainerState, err error) {
	err = c.call(ctx, wire.ContainerList, nil, &containers)
	return containers, err
}

// Container is the state of one container. The error wraps ErrNotFound.
func (c *Client) Container(ctx context.Context, id string) (state ContainerState, err error) {
	err = c.call(ctx, wire.ContainerGet, wire.ID{ID: id}, &state)
	return state, err
}

// Resize changes a terminal's size, in characters; execID "" is the container's own terminal.
func (c *Client) Resize(ctx context.Context, id, execID string, width, height uint16) error {
	return c.call(ctx, wire.ContainerResize, wire.Resize{ID: id, ExecID: execID, Width: width, Height: height}, nil)
}

// Stats reads the cgroups of the named containers as far as they run, or of all that run.
func (c *Client) Stats(ctx context.Context, ids ...string) (stats []Stats, err error) {
	err = c.call(ctx, wire.ContainerStats, wire.IDs{IDs: ids}, &stats)
	return stats, err
}

// GroupStats reads cgroups, by their paths from the root; the path is the id of a reading. What is not there has none.
func (c *Client) GroupStats(ctx context.Context, groups ...string) (stats []Stats, err error) {
	if len(groups) == 0 {
		return nil, nil // nothing would mean all containers
	}
	err = c.call(ctx, wire.ContainerStats, wire.IDs{Groups: groups}, &stats)
	return stats, err
}

// DetailedStats is Stats with Details, for about ten times the work.
func (c *Client) DetailedStats(ctx context.Context, ids ...string) (stats []Stats, err error) {
	err = c.call(ctx, wire.ContainerStats, wire.IDs{IDs: ids, Details: true}, &stats)
	return stats, err
}

// Update changes the limits of a container to those that are set in r: all of them or none.
func (c *Client) Update(ctx context.Context, id string, r Resources) error {
	return c.call(ctx, wire.ContainerUpdate, UpdateRequest{ID: id, Resources: r.OCI(), OOMScoreAdj: r.OOMScoreAdj}, nil)
}

// LimitGroup sets those limits of r on a cgroup that holds the groups of
// containers; it makes it where there is none. The path is absolute from the cgroup root.
func (c *Client) LimitGroup(ctx context.Context, group string, r Resources) error {
	return c.call(ctx, wire.GroupLimit, GroupRequest{Group: group, Resources: r.OCI()}, nil)
}

// ReopenLog goes on in a new file at the container's log path, after the old one was moved away.
func (c *Client) ReopenLog(ctx context.Context, id string) error {
	return c.call(ctx, wire.LogReopen, wire.ID{ID: id}, nil)
}

// Exits gives every exit from now on. The channel closes when the keeper goes,
// when ctx ends, or when the reader is thousands of exits behind: then subscribe
// again and list, in this order, to lose none.
func (c *Client) Exits(ctx context.Context) (<-chan Exit, error) {
	s, err := c.open(ctx, wire.Exits, nil)
	if err != nil {
		return nil, err
	}
	if _, err := s.receive(nil); err != nil {
		s.close()
		return nil, err
	}
	exits := make(chan Exit)
	go func() {
		defer close(exits)
		defer s.close()
		for {
			var exit Exit
			if _, err := s.receive(&exit); err != nil {
				return
			}
			select {
			case exits <- exit:
			case <-ctx.Done():
				return
			}
		}
	}()
	return exits, nil
}
