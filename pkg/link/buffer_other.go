//go:build !(darwin || freebsd || linux)

package link

import "net"

// BufferHint says what to do about the buffers of a socket for QUIC. Nothing is known
// to be done on this system.
func BufferHint(*net.UDPConn) string { return "" }
