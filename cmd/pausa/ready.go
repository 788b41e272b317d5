package main

import (
	"context"
	"fmt"
	"net"
	"strings"
	"time"
)

// announce tells the service manager, if there is one, when the socket answers
// and when the daemon begins to stop.
func (p *program) announce(ctx context.Context, socket string) error {
	address, ok := p.env("NOTIFY_SOCKET")
	if !ok || address == "" {
		return nil
	}
	for !answers(ctx, socket) {
		if !sleep(ctx, 5*time.Millisecond) {
			return nil
		}
	}
	if err := notify(ctx, address, "READY=1"); err != nil {
		return err
	}
	<-ctx.Done()
	return notify(context.WithoutCancel(ctx), address, "STOPPING=1")
}

func answers(ctx context.Context, socket string) bool {
	c, err := (&net.Dialer{}).DialContext(ctx, "unix", socket)
	if err != nil {
		return false
	}
	_ = c.Close() // nothing was said on it
	return true
}

// notify sends one message of systemd's protocol.
func notify(ctx context.Context, address, message string) error {
	if strings.HasPrefix(address, "@") {
		address = "\x00" + address[1:]
	}
	c, err := (&net.Dialer{}).DialContext(ctx, "unixgram", address)
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	_, err = c.Write([]byte(message))
	_ = c.Close() // datagrams are sent or they are not
	if err != nil {
		return fmt.Errorf("tell the service manager: %w", err)
	}
	return nil
}
