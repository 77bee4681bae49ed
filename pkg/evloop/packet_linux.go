package evloop

import (
	"encoding/binary"
	"net/netip"
	"os"
	"syscall"
	"unsafe"

	"golang.org/x/sys/unix"
)

const ipPktinfo = unix.IP_PKTINFO

// sendBatch is how many datagrams go in one system call. More gains nothing, and a call is not preempted.
const sendBatch = 16

// packetIO is what recvmmsg and sendmmsg want of a loop. A callback of what was received may send.
type packetIO struct{ in, out mmsg }

type mmsg struct {
	headers []unix.Mmsghdr
	iovecs  []unix.Iovec
	names   []unix.RawSockaddrInet6 // or a RawSockaddrInet4
	control [][packetControl]byte
}

func newMmsg(n int) mmsg {
	m := mmsg{make([]unix.Mmsghdr, n), make([]unix.Iovec, n), make([]unix.RawSockaddrInet6, n), make([][packetControl]byte, n)}
	for i := range m.headers {
		h := &m.headers[i].Hdr
		h.Name = (*byte)(unsafe.Pointer(&m.names[i]))
		h.Iov = &m.iovecs[i]
		h.SetIovlen(1)
		h.Control = &m.control[i][0]
	}
	return m
}

// mmsg returns the loop's messages. Those that receive share its read buffer: as many whole datagrams at once as it has
// room for, which costs nothing while sockets are silent.
func (l *Loop) mmsg() *packetIO {
	if l.packetIO == nil {
		l.packetIO = &packetIO{newMmsg(len(l.rbuf) / packetSize), newMmsg(sendBatch)}
		in := &l.packetIO.in
		for i := range in.iovecs {
			in.iovecs[i].Base = &l.rbuf[i*packetSize]
			in.iovecs[i].SetLen(packetSize)
		}
	}
	return l.packetIO
}

func (s *fdPacket) receive(p *PacketConn) (n int, more bool) {
	m, buf := &s.loop.mmsg().in, s.loop.rbuf
	control := 0
	if s.info {
		control = packetControl
	}
	failed := false
	for n < maxPackets {
		for i := range m.headers {
			h := &m.headers[i].Hdr
			h.Namelen = unix.SizeofSockaddrInet6
			h.SetControllen(control)
		}
		k, errno := mmsgCall(unix.SYS_RECVMMSG, s.fd, m.headers)
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
				from.Remote = m.name(i)
			}
			if s.info {
				from.Local = parsePktinfo(m.control[i][:m.headers[i].Hdr.Controllen])
			}
			p.deliver(buf[i*packetSize:][:m.headers[i].Len:packetSize], from)
		}
		n += k
		if k < len(m.headers) || p.closed {
			return n, false
		}
	}
	return n, true
}

// send sends a batch, in order.
func (s *fdPacket) send(p *PacketConn, batch []outPacket) {
	m := &s.loop.mmsg().out
	for len(batch) > 0 {
		k := min(len(batch), sendBatch)
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
	if s.info {
		h.SetControllen(len(appendPktinfo(m.control[i][:0], s.is6, o.to.Local)))
	}
	return true
}

// name returns the address of message i.
func (m *mmsg) name(i int) netip.AddrPort {
	n := &m.names[i]
	switch n.Family {
	case unix.AF_INET:
		n4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(n))
		return netip.AddrPortFrom(netip.AddrFrom4(n4.Addr), netPort(&n4.Port))
	case unix.AF_INET6:
		a := netip.AddrFrom16(n.Addr).Unmap()
		if n.Scope_id != 0 && a.Is6() {
			a = a.WithZone(zoneName(n.Scope_id))
		}
		return netip.AddrPortFrom(a, netPort(&n.Port))
	}
	return netip.AddrPort{}
}

// setName sets the address of message i and returns its length; 0 if the socket has no such addresses.
func (m *mmsg) setName(i int, is6 bool, to netip.AddrPort) uint32 {
	n := &m.names[i]
	a := to.Addr()
	switch {
	case !a.IsValid():
		return 0
	case is6:
		zone, err := zoneIndex(a.Zone())
		if err != nil {
			return 0
		}
		*n = unix.RawSockaddrInet6{Family: unix.AF_INET6, Addr: a.As16(), Scope_id: zone}
		setNetPort(&n.Port, to.Port())
		return unix.SizeofSockaddrInet6
	case a.Unmap().Is4():
		n4 := (*unix.RawSockaddrInet4)(unsafe.Pointer(n))
		*n4 = unix.RawSockaddrInet4{Family: unix.AF_INET, Addr: a.Unmap().As4()}
		setNetPort(&n4.Port, to.Port())
		return unix.SizeofSockaddrInet4
	}
	return 0
}

func netPort(p *uint16) uint16 { return binary.BigEndian.Uint16((*[2]byte)(unsafe.Pointer(p))[:]) }

func setNetPort(p *uint16, port uint16) {
	binary.BigEndian.PutUint16((*[2]byte)(unsafe.Pointer(p))[:], port)
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
