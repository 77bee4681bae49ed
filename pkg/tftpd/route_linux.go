package tftpd

import (
	"net"
	"net/netip"

	"golang.org/x/sys/unix"
)

// routeMTU returns the MTU of the route to peer, as far as it is known. Nothing is sent.
func routeMTU(peer netip.Addr) (mtu int, ok bool) {
	c, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(peer, 9)))
	if err != nil {
		return 0, false
	}
	defer c.Close()
	raw, err := c.SyscallConn()
	if err != nil {
		return 0, false
	}
	level, option := unix.IPPROTO_IP, unix.IP_MTU
	if peer.Is6() {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_MTU
	}
	raw.Control(func(fd uintptr) { mtu, err = unix.GetsockoptInt(int(fd), level, option) })
	return mtu, err == nil && mtu > 0
}

// hearErrors has a socket that is connected to nobody report what comes back by ICMP: that nobody listens there, say.
func hearErrors(c *net.UDPConn, is6 bool) {
	raw, err := c.SyscallConn()
	if err != nil {
		return
	}
	level, option := unix.IPPROTO_IP, unix.IP_RECVERR
	if is6 {
		level, option = unix.IPPROTO_IPV6, unix.IPV6_RECVERR
	}
	raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), level, option, 1) }) // without, it takes longer to find out
}
