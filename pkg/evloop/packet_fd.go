//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package evloop

import (
	"encoding/binary"
	"net"
	"net/netip"
	"os"
	"strconv"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

// fdPacket drives a UDP socket's descriptor without blocking. receive and send are in packet_linux.go and
// packet_kqueue.go.
type fdPacket struct {
	fd        int
	loop      *Loop
	is6       bool // an IPv6 socket, which knows IPv4 addresses in their mapped form
	connected bool
	info      bool // bound to no address: each datagram tells which one it was sent to
	entered   bool // into the poller
}

// takePacketFD takes a duplicate of the descriptor out of nc.
func takePacketFD(nc *net.UDPConn, l *Loop) (*fdPacket, error) {
	fd, err := dupFD(nc)
	if err != nil {
		return nil, err
	}
	s := &fdPacket{fd: fd, loop: l, connected: nc.RemoteAddr() != nil}
	s.is6, s.info = setPacketOptions(fd, s.connected)
	return s, nil
}

// dialPacketFD connects a new socket.
func dialPacketFD(addr netip.AddrPort, l *Loop) (*fdPacket, netip.AddrPort, error) {
	domain, sa, err := sockaddr(addr)
	if err != nil {
		return nil, netip.AddrPort{}, err
	}
	fd, err := rawSocket(domain, unix.SOCK_DGRAM)
	if err != nil {
		return nil, netip.AddrPort{}, os.NewSyscallError("socket", err)
	}
	setPacketOptions(fd, true)
	if err := unix.Connect(fd, sa); err != nil {
		unix.Close(fd)
		return nil, netip.AddrPort{}, os.NewSyscallError("connect", err)
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		unix.Close(fd)
		return nil, netip.AddrPort{}, os.NewSyscallError("getsockname", err)
	}
	return &fdPacket{fd: fd, loop: l, connected: true}, addrPort(local), nil
}

func (s *fdPacket) register(token uint64) error {
	s.entered = true
	return s.loop.poll.add(s.fd, token, false) // what cannot be sent is dropped: nothing waits, and each datagram that has left would be an event
}

func (s *fdPacket) close() {
	if s.entered {
		s.loop.poll.remove(s.fd)
	}
	unix.Close(s.fd)
}

func (s *fdPacket) buffers() (receive, send int) { return packetBuffers(s.fd) }

// setPacketOptions asks for large buffers and, if the socket is bound to no address, for the one that each datagram was
// sent to.
func setPacketOptions(fd int, connected bool) (is6, info bool) {
	setPacketBuffer(fd, unix.SO_RCVBUF)
	setPacketBuffer(fd, unix.SO_SNDBUF)
	if connected {
		return false, false
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return false, false
	}
	_, is6 = sa.(*unix.SockaddrInet6)
	switch {
	case !addrPort(sa).Addr().IsUnspecified():
	case is6:
		info = unix.SetsockoptInt(fd, unix.IPPROTO_IPV6, unix.IPV6_RECVPKTINFO, 1) == nil
	case ipPktinfo != 0:
		info = unix.SetsockoptInt(fd, unix.IPPROTO_IP, ipPktinfo, 1) == nil
	}
	return is6, info
}

// controlPacket does the same for a net.PacketConn with a descriptor.
func controlPacket(c syscall.RawConn, connected bool) (is6, info bool) {
	c.Control(func(fd uintptr) { is6, info = setPacketOptions(int(fd), connected) })
	return is6, info
}

func controlBuffers(c syscall.RawConn) (receive, send int) {
	c.Control(func(fd uintptr) { receive, send = packetBuffers(int(fd)) })
	return receive, send
}

// Of an in_pktinfo, all but the address to answer from stays zero: { ifindex[4] spec_dst[4] addr[4] }. An in6_pktinfo is
// { addr[16] ifindex[4] }.
const (
	pktinfo4 = 12
	pktinfo6 = 20
)

// packetControl is enough for what comes with a datagram or goes with it.
const packetControl = 64

// appendPktinfo appends the control message that makes a datagram leave from local.
func appendPktinfo(oob []byte, is6 bool, local netip.Addr) []byte {
	if !local.IsValid() || !is6 && !local.Unmap().Is4() {
		return oob
	}
	n, level, typ := pktinfo4, unix.IPPROTO_IP, ipPktinfo
	if is6 {
		n, level, typ = pktinfo6, unix.IPPROTO_IPV6, unix.IPV6_PKTINFO
	}
	at := len(oob)
	oob = append(oob, make([]byte, unix.CmsgSpace(n))...)
	h := (*unix.Cmsghdr)(unsafe.Pointer(&oob[at]))
	h.Level, h.Type = int32(level), int32(typ)
	h.SetLen(unix.CmsgLen(n))
	data := oob[at+unix.CmsgLen(0):]
	if is6 {
		a := local.As16()
		copy(data, a[:])
	} else {
		a := local.Unmap().As4()
		copy(data[4:], a[:])
	}
	return oob
}

// parsePktinfo returns the address that a datagram was sent to, if one can answer from it.
func parsePktinfo(oob []byte) (local netip.Addr) {
	for len(oob) >= unix.CmsgLen(0) {
		h, data, rest, err := unix.ParseOneSocketControlMessage(oob)
		if err != nil {
			break
		}
		oob = rest
		switch {
		case h.Level == unix.IPPROTO_IP && int(h.Type) == ipPktinfo && len(data) >= pktinfo4:
			local = netip.AddrFrom4([4]byte(data[4:]))
		case h.Level == unix.IPPROTO_IPV6 && h.Type == unix.IPV6_PKTINFO && len(data) >= pktinfo6:
			local = netip.AddrFrom16([16]byte(data)).Unmap()
			if local.IsLinkLocalUnicast() && local.Is6() {
				local = local.WithZone(zoneName(binary.NativeEndian.Uint32(data[16:])))
			}
		}
	}
	if local.IsMulticast() || local == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return netip.Addr{}
	}
	return local
}

// zoneName is the inverse of zoneIndex.
func zoneName(index uint32) string {
	if index == 0 {
		return ""
	}
	return strconv.FormatUint(uint64(index), 10)
}
