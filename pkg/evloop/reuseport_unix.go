//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package evloop

import (
	"os"
	"runtime"
	"syscall"

	"golang.org/x/sys/unix"
)

// shareBeforeBind says that a socket whose port others are to join must say so before it is bound. On Linux it may say
// so later, and so finds out whether the port is free.
const shareBeforeBind = runtime.GOOS != "linux"

func setReusePort(fd int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEPORT, 1))
}

func controlReusePort(_, _ string, c syscall.RawConn) error {
	var err error
	if cerr := c.Control(func(fd uintptr) { err = setReusePort(int(fd)) }); cerr != nil {
		return cerr
	}
	return err
}
