package private

import (
	"net"
	"net/netip"

	"github.com/pires/go-proxyproto"
)

// appendPreface appends the PROXY protocol header (haproxy.org, proxy-protocol.txt) of a visitor's connection
// or datagram on its way to target. Without a visitor's address it says that there is none: LOCAL, or UNKNOWN
// in version 1. A target on a unix socket is given as the unspecified address, port 0.
func appendPreface(b []byte, version int, datagram bool, visitor, target netip.AddrPort) []byte {
	var from, to net.Addr
	if visitor.IsValid() {
		if !target.IsValid() {
			target = netip.AddrPortFrom(netip.IPv6Unspecified(), 0)
			if visitor.Addr().Is4() {
				target = netip.AddrPortFrom(netip.IPv4Unspecified(), 0)
			}
		}
		from, to = net.TCPAddrFromAddrPort(visitor), net.TCPAddrFromAddrPort(target)
		if datagram {
			from, to = net.UDPAddrFromAddrPort(visitor), net.UDPAddrFromAddrPort(target)
		}
	}
	header, err := proxyproto.HeaderProxyFromAddrs(byte(version), from, to).Format()
	if err != nil {
		panic("BUG: " + err.Error()) // the addresses are of one kind, and valid
	}
	return append(b, header...)
}
