package cri

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	criv1 "k8s.io/cri-api/pkg/apis/runtime/v1"
	"k8s.io/cri-streaming/pkg/streaming"
	"k8s.io/cri-streaming/pkg/streaming/remotecommand"
	"k8s.io/streaming/pkg/httpstream/wsstream"
	utilexec "k8s.io/utils/exec"
)

// wsProtocols are the versions of exec and attach over WebSocket. In v5, which is
// all that crictl speaks and cri-streaming does not, a client can end its stdin alone.
func wsProtocols(channels []wsstream.ChannelType) map[string]wsstream.ChannelProtocolConfig {
	out := wsstream.NewDefaultChannelProtocols(channels)
	for _, binary := range []string{remotecommand.StreamProtocolV5Name, remotecommand.StreamProtocolV4Name} {
		out[binary] = wsstream.ChannelProtocolConfig{Binary: true, Channels: channels}
	}
	out["v4."+wsstream.Base64ChannelWebSocketProtocol] = wsstream.ChannelProtocolConfig{Channels: channels}
	return out
}

// wanted are the streams that a request asks for.
type wanted interface {
	GetContainerId() string
	GetStdin() bool
	GetStdout() bool
	GetStderr() bool
	GetTty() bool
}

// websocket serves exec and attach to a client that speaks WebSocket.
func (s *streamer) websocket(w http.ResponseWriter, r *http.Request, want wanted) {
	channels := make([]wsstream.ChannelType, remotecommand.StreamResize+1) // what is not asked for is ignored
	for n, ask := range map[int]bool{remotecommand.StreamStdOut: want.GetStdout(), remotecommand.StreamStdErr: want.GetStderr(), remotecommand.StreamErr: true} {
		if ask {
			channels[n] = wsstream.WriteChannel
		}
	}
	for n, ask := range map[int]bool{remotecommand.StreamStdIn: want.GetStdin(), remotecommand.StreamResize: want.GetTty()} {
		if ask {
			channels[n] = wsstream.ReadChannel
		}
	}
	conn := wsstream.NewConn(wsProtocols(channels))
	conn.SetIdleTimeout(streaming.DefaultConfig.StreamIdleTimeout)
	protocol, streams, err := conn.Open(w, r)
	if err != nil {
		s.log.Debug("open streams over WebSocket", "error", err) // the client has been told
		return
	}
	defer conn.Close()
	_, _ = streams[firstOut(want)].Write(nil) // so the client knows that it is connected
	err = s.serve(r, want, streams)
	_, _ = streams[remotecommand.StreamErr].Write(outcome(protocol, err))
}

func firstOut(want wanted) int {
	switch {
	case want.GetStdout():
		return remotecommand.StreamStdOut
	case want.GetStderr():
		return remotecommand.StreamStdErr
	}
	return remotecommand.StreamErr
}

// serve runs or attaches to what is asked for, with nil for the streams that are not.
func (s *streamer) serve(r *http.Request, want wanted, streams []io.ReadWriteCloser) error {
	var in io.Reader
	var out, errOut io.WriteCloser
	var sizes chan remotecommand.TerminalSize
	if want.GetStdin() {
		in = streams[remotecommand.StreamStdIn]
	}
	if want.GetStdout() {
		out = streams[remotecommand.StreamStdOut]
	}
	if want.GetStderr() {
		errOut = streams[remotecommand.StreamStdErr]
	}
	if want.GetTty() {
		sizes = make(chan remotecommand.TerminalSize)
		go readSizes(r, streams[remotecommand.StreamResize], sizes)
	}
	if e, ok := want.(*criv1.ExecRequest); ok {
		return s.Exec(r.Context(), e.ContainerId, e.Cmd, in, out, errOut, e.Tty, sizes)
	}
	return s.Attach(r.Context(), want.GetContainerId(), in, out, errOut, want.GetTty(), sizes)
}

// readSizes hands on the sizes of the client's terminal until its stream ends.
func readSizes(r *http.Request, from io.Reader, to chan<- remotecommand.TerminalSize) {
	defer close(to)
	dec := json.NewDecoder(from)
	for {
		var size remotecommand.TerminalSize
		if dec.Decode(&size) != nil {
			return
		}
		select {
		case to <- size:
		case <-r.Context().Done():
			return
		}
	}
}

// outcome is the last word to the client: a status, or before v4 a text, and only of a failure.
func outcome(protocol string, err error) []byte {
	if !strings.HasPrefix(protocol, "v") {
		if err == nil {
			return nil
		}
		return []byte(err.Error())
	}
	st := metav1.Status{Status: metav1.StatusSuccess}
	var exit utilexec.ExitError
	switch {
	case errors.As(err, &exit) && exit.Exited():
		st = metav1.Status{
			Status: metav1.StatusFailure, Reason: remotecommand.NonZeroExitCodeReason,
			Message: fmt.Sprintf("command terminated with non-zero exit code: %v", exit),
			Details: &metav1.StatusDetails{Causes: []metav1.StatusCause{{Type: remotecommand.ExitCodeCauseType, Message: strconv.Itoa(exit.ExitStatus())}}},
		}
	case err != nil:
		st = metav1.Status{
			Status: metav1.StatusFailure, Reason: metav1.StatusReasonInternalError, Code: http.StatusInternalServerError,
			Message: fmt.Sprintf("Internal error occurred: error executing command in container: %v", err),
		}
	}
	raw, err := json.Marshal(st)
	if err != nil {
		return []byte(err.Error())
	}
	return raw
}
