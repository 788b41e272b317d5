package cri

import (
	"context"
	"fmt"
	"log/slog"
	"path"
	"runtime/debug"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// unary wraps every call: panics become errors, errors get codes, and what changes something is logged.
func (s *Server) unary(ctx context.Context, req any, i *grpc.UnaryServerInfo, h grpc.UnaryHandler) (resp any, err error) {
	began := time.Now()
	defer func() {
		err = s.finish(ctx, i.FullMethod, req, began, recover(), err)
	}()
	if err := checkIDs(req); err != nil {
		return nil, err
	}
	return h(ctx, req)
}

// checkIDs refuses ids that can be none, before anybody looks for them or logs them.
func checkIDs(req any) error {
	ids := map[string]string{}
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		ids["pod_sandbox_id"] = r.GetPodSandboxId()
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		ids["container_id"] = r.GetContainerId()
	}
	if r, ok := req.(interface{ GetContainerIds() []string }); ok {
		for _, id := range r.GetContainerIds() {
			if !isID(id) {
				ids["container_ids"] = id
			}
		}
	}
	for field, id := range ids {
		if id != "" && !isID(id) {
			return invalid(field, "%.80q: at most %d letters, digits, '-', '_' and '.' are allowed", id, maxName)
		}
	}
	return nil
}

func isID(id string) bool { return len(id) <= maxName && only(id, "._-") }

// streaming is unary for streams.
func (s *Server) streaming(srv any, ss grpc.ServerStream, i *grpc.StreamServerInfo, h grpc.StreamHandler) (err error) {
	began := time.Now()
	defer func() {
		err = s.finish(ss.Context(), i.FullMethod, nil, began, recover(), err)
	}()
	return h(srv, ss)
}

func (s *Server) finish(ctx context.Context, method string, req any, began time.Time, panicked any, err error) error {
	method = path.Base(method)
	if panicked != nil {
		s.log.Error("call panicked", "method", method, "panic", fmt.Sprint(panicked), "stack", string(debug.Stack()))
		return status.Errorf(codes.Internal, "%s: internal error: %v (the daemon's log has the stack)", method, panicked)
	}
	err = statusErr(err)
	if s.o.Observe != nil {
		s.o.Observe(method, status.Code(err), time.Since(began))
	}
	if !mutates(method) || !s.log.Enabled(ctx, slog.LevelDebug) {
		return err
	}
	attrs := append(subject(req), "method", method, "ms", float64(time.Since(began).Microseconds())/1000)
	if err != nil {
		attrs = append(attrs, "error", err)
	}
	s.log.DebugContext(ctx, "call", attrs...)
	return err
}

// mutates says whether a method changes something, by how the API names what only looks.
func mutates(method string) bool {
	looks := []string{"List", "Stream", "Get", "Version", "Status", "Info", "Logs"}
	return !slices.ContainsFunc(looks, func(p string) bool { return strings.HasPrefix(method, p) }) &&
		!strings.HasSuffix(method, "Status") && !strings.HasSuffix(method, "Stats") && !strings.HasSuffix(method, "Info") && method != "RuntimeConfig"
}

// subject names what a request is about.
func subject(req any) []any {
	var out []any
	if r, ok := req.(interface{ GetPodSandboxId() string }); ok {
		out = append(out, "pod", r.GetPodSandboxId())
	}
	if r, ok := req.(interface{ GetContainerId() string }); ok {
		out = append(out, "container", r.GetContainerId())
	}
	return out
}
