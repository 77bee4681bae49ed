//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package daemon

import (
	"math"

	"golang.org/x/sys/unix"
)

// MaxFiles returns how many files the process may have open, sockets included. 0: as many as it likes.
func MaxFiles() int {
	var l unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &l); err != nil || uint64(l.Cur) > math.MaxInt32 {
		return 0
	}
	return int(l.Cur)
}
