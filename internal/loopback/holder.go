package loopback

import (
	"bufio"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// tcpListen is the state of a listening socket in /proc/net/tcp.
const tcpListen = "0A"

// Holder names the process that has the port ("tcp", "udp" or "sctp") in the
// calling thread's network namespace, for an error message.
func Holder(network string, port uint16) string {
	for _, table := range []string{network, network + "6"} {
		for _, inode := range socketInodes("/proc/thread-self/net/"+table, port, network == "tcp") {
			if owner := inodeOwner(inode); owner != "" {
				return owner
			}
		}
	}
	return "another process"
}

// socketInodes lists the sockets bound to a local port.
func socketInodes(path string, port uint16, listening bool) []string {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	var out []string
	for sc := bufio.NewScanner(f); sc.Scan(); {
		// sl local_address rem_address st tx:rx tr:tm retrnsmt uid timeout inode
		fields := strings.Fields(sc.Text())
		if len(fields) < 10 || (listening && fields[3] != tcpListen) {
			continue
		}
		_, hex, ok := strings.Cut(fields[1], ":")
		if n, err := strconv.ParseUint(hex, 16, 16); ok && err == nil && uint16(n) == port {
			out = append(out, fields[9])
		}
	}
	return out
}

// inodeOwner is "name (pid 7)" of a process that holds the socket open.
func inodeOwner(inode string) string {
	fds, err := filepath.Glob("/proc/[0-9]*/fd/*")
	if err != nil {
		return ""
	}
	for _, fd := range fds {
		if target, err := os.Readlink(fd); err != nil || target != "socket:["+inode+"]" {
			continue
		}
		dir := filepath.Dir(filepath.Dir(fd))
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue
		}
		return fmt.Sprintf("%s (pid %s)", strings.TrimSpace(string(comm)), filepath.Base(dir))
	}
	return ""
}
