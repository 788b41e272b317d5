package cri

import (
	"context"
	"errors"
	"fmt"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

func TestStatusErr(t *testing.T) {
	for _, c := range []struct {
		err  error
		code codes.Code
	}{
		{pod.ErrNotFound, codes.NotFound},
		{pod.ErrExists, codes.AlreadyExists},
		{pod.ErrInvalid, codes.InvalidArgument},
		{pod.ErrState, codes.FailedPrecondition},
		{pod.ErrUnavailable, codes.Unavailable},
		{images.ErrNotFound, codes.NotFound},
		{images.ErrInUse, codes.FailedPrecondition},
		{images.ErrInvalid, codes.InvalidArgument},
		{runtime.ErrNotFound, codes.NotFound},
		{runtime.ErrExists, codes.AlreadyExists},
		{runtime.ErrState, codes.FailedPrecondition},
		{runtime.ErrKeeperGone, codes.Unavailable},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
		{errUnimplemented, codes.Unimplemented},
		{invalid("a.b", "is %d", 3), codes.InvalidArgument},
		{errors.New("disk on fire"), codes.Internal},
		{status.Error(codes.ResourceExhausted, "as it was"), codes.ResourceExhausted},
	} {
		err := statusErr(fmt.Errorf("do it: %w", c.err))
		if status.Code(err) != c.code {
			t.Errorf("%v: have %s, want %s", c.err, status.Code(err), c.code)
		}
	}
	if statusErr(nil) != nil {
		t.Error("nil became an error")
	}
}

func TestWithin(t *testing.T) {
	err := within("config", within("linux", invalid("sysctls", "no")))
	if err.Error() != "invalid config.linux.sysctls: no" || !errors.Is(err, pod.ErrInvalid) {
		t.Errorf("have %v", err)
	}
	if err := within("x", pod.ErrState); !errors.Is(err, pod.ErrState) || within("x", nil) != nil {
		t.Errorf("other errors: %v", err)
	}
}
