//go:build !linux && !darwin && !freebsd && !netbsd && !openbsd && !dragonfly

package evloop

import (
	"errors"
	"net"
	"net/netip"
	"syscall"
)

// Without a poller nothing is driven by descriptor.

type packetIO struct{}

type fdPacket struct{ netPacket }

func takePacketFD(*net.UDPConn, *Loop) (*fdPacket, error) { return nil, errors.ErrUnsupported }

func dialPacketFD(netip.AddrPort, *Loop) (*fdPacket, netip.AddrPort, error) {
	return nil, netip.AddrPort{}, errors.ErrUnsupported
}

const packetControl = 0

func controlPacket(syscall.RawConn, bool) (is6, info bool) { return false, false }

func controlBuffers(syscall.RawConn) (receive, send int) { return 0, 0 }

func appendPktinfo(oob []byte, _ bool, _ netip.Addr) []byte { return oob }

func parsePktinfo([]byte) netip.Addr { return netip.Addr{} }
