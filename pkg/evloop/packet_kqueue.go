//go:build darwin || freebsd || netbsd || openbsd || dragonfly

package evloop

import (
	"net/netip"
	"os"

	"golang.org/x/sys/unix"
)

// packetIO is where control messages go.
type packetIO struct{ in, out [packetControl]byte }

func (l *Loop) control() *packetIO {
	if l.packetIO == nil {
		l.packetIO = new(packetIO)
	}
	return l.packetIO
}

func (s *fdPacket) receive(p *PacketConn) (n int, more bool) {
	buf := s.loop.rbuf[:packetSize]
	oob := s.loop.control().in[:]
	failed := false
	for ; n < maxPackets && !p.closed; n++ {
		k, c, _, sa, err := unix.Recvmsg(s.fd, buf, oob, 0)
		switch {
		case err == unix.EAGAIN:
			return n, false
		case err == unix.EINTR:
			continue
		case err != nil: // what an earlier datagram met, as a rule: reading goes on
			p.fail(os.NewSyscallError("recvmsg", err))
			if failed {
				return n, false // an event announces the next one
			}
			failed = true
			continue
		}
		from := PacketAddr{Remote: p.remote, Local: p.local.Addr()}
		if !s.connected {
			from.Remote = addrPort(sa)
			if sa6, ok := sa.(*unix.SockaddrInet6); ok && sa6.ZoneId != 0 {
				from.Remote = netip.AddrPortFrom(from.Remote.Addr().WithZone(zoneName(sa6.ZoneId)), from.Remote.Port())
			}
		}
		if s.info {
			from.Local = parsePktinfo(oob[:c])
		}
		p.deliver(buf[:k:k], from)
	}
	return n, true
}

func (s *fdPacket) send(p *PacketConn, batch []outPacket) {
	for i := range batch {
		err := s.sendOne(&batch[i])
		if err != nil && s.connected && err != unix.EAGAIN && err != unix.ENOBUFS && err != unix.EMSGSIZE {
			p.fail(os.NewSyscallError("sendmsg", err)) // what an earlier datagram met: this one was not tried
			err = s.sendOne(&batch[i])
		}
		if err != nil {
			p.dropped.Add(1)
		}
	}
}

func (s *fdPacket) sendOne(o *outPacket) error {
	var sa unix.Sockaddr
	var oob []byte
	if !s.connected {
		to := o.to.Remote
		if !to.IsValid() || !s.is6 && !to.Addr().Unmap().Is4() {
			return unix.EAFNOSUPPORT
		}
		var err error
		if _, sa, err = sockaddr(to); err != nil {
			return err
		}
		if sa4, ok := sa.(*unix.SockaddrInet4); ok && s.is6 {
			sa = &unix.SockaddrInet6{Port: sa4.Port, Addr: to.Addr().As16()}
		}
		if s.info {
			oob = appendPktinfo(s.loop.control().out[:0], s.is6, o.to.Local)
		}
	}
	for {
		_, err := unix.SendmsgN(s.fd, o.b, oob, sa, 0)
		if err != unix.EINTR {
			return err
		}
	}
}

func setPacketBuffer(fd, opt int) {
	for n := PacketBuffer; n >= 256<<10 && unix.SetsockoptInt(fd, unix.SOL_SOCKET, opt, n) != nil; n /= 2 {
	}
}

func packetBuffers(fd int) (receive, send int) {
	receive, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
	send, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
	return receive, send
}
