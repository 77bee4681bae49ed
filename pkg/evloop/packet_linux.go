package evloop

import (
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const ipPktinfo = unix.IP_PKTINFO

// packetIO is what recvmmsg and sendmmsg want of a loop. A callback of what was received may send.
type packetIO struct{ in, out mmsg }

type mmsg struct {
	headers [maxPackets]unix.Mmsghdr
	iovecs  [maxPackets]unix.Iovec
	names   [maxPackets]unix.RawSockaddrInet6 // or a RawSockaddrInet4
	control [maxPackets][packetControl]byte
}

func (l *Loop) mmsg() *packetIO {
	if l.packetIO == nil {
		l.packetIO = new(packetIO)
		for _, m := range []*mmsg{&l.packetIO.in, &l.packetIO.out} {
			for i := range m.headers {
				h := &m.headers[i].Hdr
				h.Name = (*byte)(unsafe.Pointer(&m.names[i]))
				h.Iov = &m.iovecs[i]
				h.SetIovlen(1)
				h.Control = &m.control[i][0]
			}
		}
	}
	return l.packetIO
}

// receive reads whole datagrams into the loop's read buffer, as many at once as it has room for.
func (s *fdPacket) receive(p *PacketConn) (n int, more bool) {
	m, buf := &s.loop.mmsg().in, s.loop.rbuf
	slots := min(len(buf)/packetSize, maxPackets)
	control := packetControl
	if s.connected {
		control = 0
	}
	failed := false
	for n < maxPackets {
		for i := range slots {
			h := &m.headers[i].Hdr
			h.Namelen = unix.SizeofSockaddrInet6
			h.SetControllen(control)
			m.iovecs[i].Base = &buf[i*packetSize]
			m.iovecs[i].SetLen(packetSize)
		}
		k, errno := mmsgCall(unix.SYS_RECVMMSG, s.fd, m.headers[:slots])
		switch {
		case errno == unix.EAGAIN:
			return n, false
		case errno != 0: // what an earlier datagram met, as a rule: reading goes on
			p.fail(os.NewSyscallError("recvmmsg", errno))
			if failed {
				return n, false // an event announces the next one
			}
			failed = true
			continue
		}
		for i := range k {
			from := PacketAddr{Remote: p.remote, Local: p.local.Addr()}
			if !s.connected {
				h := &m.headers[i].Hdr
				from.Remote = m.name(i)
				if local := parsePktinfo(m.control[i][:h.Controllen]); local.IsValid() || from.Local.IsUnspecified() {
					from.Local = local
				}
			}
			p.deliver(buf[i*packetSize:][:m.headers[i].Len:packetSize], from)
		}
		n += k
		if k < slots || p.closed {
			return n, false
		}
	}
	return n, true
}

// send sends a batch, in order.
func (s *fdPacket) send(p *PacketConn, batch []outPacket) {
	m := &s.loop.mmsg().out
	for len(batch) > 0 {
		k := min(len(batch), maxPackets)
		n := 0
		for i := range batch[:k] {
			if m.set(n, s, &batch[i]) {
				n++
			} else {
				p.dropped.Add(1)
			}
		}
		batch = batch[k:]
		failed := false
		for headers := m.headers[:n]; len(headers) > 0; {
			k, errno := mmsgCall(unix.SYS_SENDMMSG, s.fd, headers)
			switch errno {
			case 0:
				headers = headers[k:]
				failed = false
				continue
			case unix.EAGAIN, unix.ENOBUFS, unix.ENOMEM:
				p.dropped.Add(uint64(len(headers) + len(batch)))
				return
			}
			if s.connected && errno != unix.EMSGSIZE {
				p.fail(os.NewSyscallError("sendmmsg", errno))
				if !failed { // what an earlier datagram met: this one was not tried
					failed = true
					continue
				}
			}
			p.dropped.Add(1)
			headers = headers[1:]
			failed = false
		}
	}
}

// set makes message i of a datagram, unless s cannot send to its address.
func (m *mmsg) set(i int, s *fdPacket, o *outPacket) bool {
	h := &m.headers[i].Hdr
	h.Namelen = 0
	h.SetControllen(0)
	m.iovecs[i].Base = unsafe.SliceData(o.b)
	m.iovecs[i].SetLen(len(o.b))
	if s.connected {
		return true
	}
	if h.Namelen = m.setName(i, s.is6, o.to.Remote); h.Namelen == 0 {
		return false
	}
	h.SetControllen(len(appendPktinfo(m.control[i][:0], s.is6, o.to.Local)))
	return true
}

// name returns the address of message i.
func (m *mmsg) name(i int) netip.AddrPort {
	n := &m.names[i]
	port := func(p uint16) uint16 { b := (*[2]byte)(unsafe.Pointer(&p)); return uint16(b[0])<<8 | uint16(b[1]) }
	switch n.Family {
	case unix.AF_INET:
		n4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(n))
		return netip.AddrPortFrom(netip.AddrFrom4(n4.Addr), port(n4.Port))
	case unix.AF_INET6:
		a := netip.AddrFrom16(n.Addr).Unmap()
		if n.Scope_id != 0 && a.Is6() {
			a = a.WithZone(zoneName(n.Scope_id))
		}
		return netip.AddrPortFrom(a, port(n.Port))
	}
	return netip.AddrPort{}
}

// setName sets the address of message i and returns its length; 0 if the socket has no such addresses.
func (m *mmsg) setName(i int, is6 bool, to netip.AddrPort) uint32 {
	n := &m.names[i]
	a := to.Addr()
	port := [2]byte{byte(to.Port() >> 8), byte(to.Port())}
	switch {
	case !a.IsValid():
		return 0
	case is6:
		zone, err := zoneIndex(a.Zone())
		if err != nil {
			return 0
		}
		*n = unix.RawSockaddrInet6{Family: unix.AF_INET6, Port: *(*uint16)(unsafe.Pointer(&port)), Addr: a.As16(), Scope_id: zone}
		return unix.SizeofSockaddrInet6
	case a.Unmap().Is4():
		*(*unix.RawSockaddrInet4)(unsafe.Pointer(n)) = unix.RawSockaddrInet4{Family: unix.AF_INET, Port: *(*uint16)(unsafe.Pointer(&port)), Addr: a.Unmap().As4()}
		return unix.SizeofSockaddrInet4
	}
	return 0
}

// mmsgCall calls recvmmsg or sendmmsg, which do not block here.
func mmsgCall(trap uintptr, fd int, headers []unix.Mmsghdr) (int, syscall.Errno) {
	for {
		n, _, errno := syscall.RawSyscall6(trap, uintptr(fd), uintptr(unsafe.Pointer(&headers[0])), uintptr(len(headers)), unix.MSG_DONTWAIT, 0, 0)
		if errno != unix.EINTR {
			return int(n), errno
		}
	}
}

// setPacketBuffer asks for PacketBuffer bytes: past the system's limit, which root may do, or as many as it gives.
func setPacketBuffer(fd, opt int) {
	force := unix.SO_RCVBUFFORCE
	if opt == unix.SO_SNDBUF {
		force = unix.SO_SNDBUFFORCE
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, force, PacketBuffer) != nil {
		unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, PacketBuffer)
	}
}

// packetBuffers undoes the doubling of socket(7).
func packetBuffers(fd int) (receive, send int) {
	receive, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	send, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	return receive / 2, send / 2
}
