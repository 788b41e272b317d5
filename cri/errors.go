package cri

import (
	"context"
	"errors"
	"fmt"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"github.com/pausa-run/pausa/images"
	"github.com/pausa-run/pausa/pod"
	"github.com/pausa-run/pausa/runtime"
)

// errUnimplemented marks what this runtime does not do, with the reason beside it.
var errUnimplemented = errors.New("not implemented")

// statusErr gives err the gRPC code that says what the caller can do about it.
// It is the only place where errors become codes.
func statusErr(err error) error {
	if err == nil {
		return nil
	}
	var coded interface{ GRPCStatus() *status.Status }
	if errors.As(err, &coded) {
		return err
	}
	return status.Error(codeOf(err), err.Error())
}

func codeOf(err error) codes.Code {
	for _, m := range []struct {
		target error
		code   codes.Code
	}{
		{pod.ErrInvalid, codes.InvalidArgument},
		{images.ErrInvalid, codes.InvalidArgument},
		{errUnimplemented, codes.Unimplemented},
		{runtime.ErrNoCRIU, codes.Unimplemented},
		{pod.ErrNotFound, codes.NotFound},
		{images.ErrNotFound, codes.NotFound},
		{runtime.ErrNotFound, codes.NotFound},
		{pod.ErrExists, codes.AlreadyExists},
		{runtime.ErrExists, codes.AlreadyExists},
		{pod.ErrState, codes.FailedPrecondition},
		{images.ErrInUse, codes.FailedPrecondition},
		{images.ErrUnverified, codes.Unknown}, // the one code of which a kubelet reads the text
		{images.ErrRefused, codes.FailedPrecondition},
		{runtime.ErrState, codes.FailedPrecondition},
		{pod.ErrUnavailable, codes.Unavailable},
		{runtime.ErrKeeperGone, codes.Unavailable},
		{context.DeadlineExceeded, codes.DeadlineExceeded},
		{context.Canceled, codes.Canceled},
	} {
		if errors.Is(err, m.target) {
			return m.code
		}
	}
	return codes.Internal
}

// fieldError refuses one field of a request. It is a pod.ErrInvalid.
type fieldError struct{ field, reason string }

func (e *fieldError) Error() string { return "invalid " + e.field + ": " + e.reason }
func (e *fieldError) Unwrap() error { return pod.ErrInvalid }

// invalid refuses field, which is written as in the request ("config.linux.sysctls").
func invalid(field, format string, args ...any) error {
	return &fieldError{field, fmt.Sprintf(format, args...)}
}

// within puts prefix before the field's name of a refusal.
func within(prefix string, err error) error {
	var f *fieldError
	if errors.As(err, &f) {
		return &fieldError{prefix + "." + f.field, f.reason}
	}
	return err
}
