//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package evloop

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

func controlReusePort(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) {
		err = os.NewSyscallError("setsockopt", unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
	}); cerr != nil {
		return cerr
	}
	return err
}
