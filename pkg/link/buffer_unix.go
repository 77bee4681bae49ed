//go:build darwin || freebsd || linux

package link

import (
	"fmt"
	"net"
	"runtime"

	"golang.org/x/sys/unix"
)

// BufferHint says what to do about the buffers of a socket that quic-go uses, if the
// system has granted less than it asks for; otherwise "".
func BufferHint(pc *net.UDPConn) string {
	raw, err := pc.SyscallConn()
	if err != nil {
		return ""
	}
	size, get := 0, error(nil)
	if err := raw.Control(func(fd uintptr) {
		size, get = unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_RCVBUF)
	}); err != nil || get != nil || size >= wantedBuffer {
		return ""
	}
	todo := "kern.ipc.maxsockbuf=8388608"
	if runtime.GOOS == "linux" {
		todo = "net.core.rmem_max=7500000 and net.core.wmem_max=7500000"
	}
	return fmt.Sprintf("the UDP socket has a buffer of %d KiB: datagrams are lost in bursts; sysctl %s allow more", size>>10, todo)
}

// wantedBuffer is what quic-go asks for.
const wantedBuffer = 7 << 20
