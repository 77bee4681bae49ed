//go:build unix

package daemon

import (
	"os"
	"strconv"
	"strings"
	"syscall"
)

const (
	firstSocket = 3 // SD_LISTEN_FDS_START
	maxSockets  = 1024
)

// InheritedSockets returns what the service manager has passed on, or nil. It is called once: what the environment
// says of them is removed, so that no child takes them for its own.
func InheritedSockets() (*Sockets, error) {
	pid, count, names := os.Getenv("LISTEN_PID"), os.Getenv("LISTEN_FDS"), os.Getenv("LISTEN_FDNAMES")
	for _, name := range []string{"LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES"} {
		os.Unsetenv(name)
	}
	if pid != strconv.Itoa(os.Getpid()) {
		return nil, nil
	}
	n, err := strconv.Atoi(count)
	if err != nil || n < 0 || n > maxSockets {
		return nil, UsageError("LISTEN_FDS=" + count + " is no number of sockets")
	}
	name := strings.Split(names, ":")
	s := new(Sockets)
	for i := range n {
		fd := firstSocket + i
		syscall.CloseOnExec(fd)
		one := "unknown"
		if i < len(name) && name[i] != "" {
			one = name[i]
		}
		made, err := newSocket(os.NewFile(uintptr(fd), one), one)
		if err != nil {
			return nil, UsageError(err.Error())
		}
		s.list = append(s.list, made)
	}
	return s, nil
}
