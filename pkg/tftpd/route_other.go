//go:build !linux

package tftpd

import (
	"net"
	"net/netip"
)

// routeMTU does not know: only Linux says it.
func routeMTU(netip.Addr) (mtu int, ok bool) { return 0, false }

// hearErrors does nothing: a server that is not there is known by its silence.
func hearErrors(*net.UDPConn, bool) {}
