package evloop

import (
	"net"
	"net/netip"
	"sync"
	"time"
)

// netPacket makes a packetSocket of any net.PacketConn. A reader goroutine reads ahead, as much as netPacketBytes; a
// writer goroutine exists while there is something to write.
type netPacket struct {
	nc        net.PacketConn
	udp       *net.UDPConn // nc, if it is one
	is6       bool         // these as of fdPacket
	info      bool
	connected bool
	loop      *Loop
	conn      *PacketConn

	mu     sync.Mutex
	token  uint64
	posted bool // an event is under way to loop
	in     []outPacket
	out    []outPacket // the writer takes from it
	inLen  int         // bytes of in
	outLen int
	writes bool // the writer is at work
	closed bool

	more chan struct{} // tells the reader that there is room in in
}

// netPacketBytes bounds what is read ahead, and what waits for the writer; each datagram counts for netPacketCost more.
const (
	netPacketBytes = 512 << 10
	netPacketCost  = 256
)

func newNetPacket(nc net.PacketConn, l *Loop, p *PacketConn) *netPacket {
	s := &netPacket{nc: nc, loop: l, conn: p, more: make(chan struct{}, 1)}
	if udp, ok := nc.(*net.UDPConn); ok {
		s.udp = udp
		s.connected = udp.RemoteAddr() != nil
		udp.SetReadBuffer(PacketBuffer)
		udp.SetWriteBuffer(PacketBuffer)
		if raw, err := udp.SyscallConn(); err == nil {
			s.is6, s.info = controlPacket(raw, s.connected)
		}
	}
	return s
}

func (s *netPacket) register(token uint64) error {
	s.token = token
	s.loop.core.wg.Add(1)
	go s.reader()
	return nil
}

func (s *netPacket) reader() {
	defer s.loop.core.wg.Done()
	buf := make([]byte, packetSize)
	oob := make([]byte, packetControl)
	for {
		n, from, err := s.readFrom(buf, oob)
		if err != nil {
			if !s.failed(err) {
				return
			}
			time.Sleep(time.Millisecond) // should it be for ever
			continue
		}
		b := append([]byte(nil), buf[:n]...)
		s.mu.Lock()
		for s.inLen > netPacketBytes && !s.closed {
			s.mu.Unlock()
			<-s.more
			s.mu.Lock()
		}
		if s.closed {
			s.mu.Unlock()
			return
		}
		s.in = append(s.in, outPacket{b: b, to: from})
		s.inLen += n + netPacketCost
		s.tell()
		s.mu.Unlock()
	}
}

func (s *netPacket) readFrom(b, oob []byte) (n int, from PacketAddr, err error) {
	from.Local = s.conn.local.Addr()
	if s.udp == nil {
		var addr net.Addr
		n, addr, err = s.nc.ReadFrom(b)
		from.Remote = netAddrPort(addr)
		return n, from, err
	}
	var k int
	n, k, _, from.Remote, err = s.udp.ReadMsgUDPAddrPort(b, oob)
	from.Remote = netip.AddrPortFrom(from.Remote.Addr().Unmap(), from.Remote.Port())
	if s.info || from.Local.IsUnspecified() {
		from.Local = parsePktinfo(oob[:k])
	}
	return n, from, err
}

// tell reports that something came; s.mu is held.
func (s *netPacket) tell() {
	if !s.posted {
		s.posted = true
		s.loop.Post(func() {
			s.mu.Lock()
			s.posted = false
			s.mu.Unlock()
			s.loop.note(event{token: s.token, readable: true})
		})
	}
}

// failed tells OnError, unless the socket is closed.
func (s *netPacket) failed(err error) bool {
	s.mu.Lock()
	closed := s.closed
	s.mu.Unlock()
	return !closed && s.loop.Post(func() { s.conn.fail(err) })
}

func (s *netPacket) receive(p *PacketConn) (n int, more bool) {
	for ; n < maxPackets && !p.closed; n++ {
		s.mu.Lock()
		if len(s.in) == 0 {
			s.in = nil
			s.mu.Unlock()
			return n, false
		}
		o := s.in[0]
		s.in[0] = outPacket{}
		s.in = s.in[1:]
		s.inLen -= len(o.b) + netPacketCost
		s.mu.Unlock()
		s.signal()
		p.deliver(o.b, o.to)
	}
	return n, true
}

func (s *netPacket) signal() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

func (s *netPacket) send(p *PacketConn, batch []outPacket) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, o := range batch {
		if s.outLen > netPacketBytes {
			p.dropped.Add(1)
			continue
		}
		o.b = append([]byte(nil), o.b...)
		s.out = append(s.out, o)
		s.outLen += len(o.b) + netPacketCost
	}
	if !s.writes && len(s.out) > 0 {
		s.writes = true
		s.loop.core.wg.Add(1)
		go s.writer()
	}
}

func (s *netPacket) writer() {
	defer s.loop.core.wg.Done()
	for {
		s.mu.Lock()
		out := s.out
		s.out, s.outLen = nil, 0
		if len(out) == 0 {
			s.writes = false
			if s.closed {
				s.nc.Close()
			}
			s.mu.Unlock()
			return
		}
		s.mu.Unlock()
		for _, o := range out {
			if err := s.writeTo(o.b, o.to); err != nil {
				s.conn.dropped.Add(1)
				if s.connected {
					s.failed(err)
				}
			}
		}
	}
}

func (s *netPacket) writeTo(b []byte, to PacketAddr) error {
	switch {
	case s.connected:
		_, err := s.udp.Write(b)
		return err
	case !to.Remote.IsValid():
		return errNoAddress
	case s.udp == nil:
		_, err := s.nc.WriteTo(b, net.UDPAddrFromAddrPort(to.Remote))
		return err
	}
	var oob []byte
	if s.info {
		oob = appendPktinfo(nil, s.is6, to.Local)
	}
	_, _, err := s.udp.WriteMsgUDPAddrPort(b, oob, to.Remote)
	return err
}

// close leaves it to the writer, if it is at work, to close after what is written.
func (s *netPacket) close() {
	s.mu.Lock()
	s.closed = true
	if !s.writes {
		s.nc.Close()
	}
	s.mu.Unlock()
	s.signal()
}

func (s *netPacket) buffers() (receive, send int) {
	if s.udp != nil {
		if raw, err := s.udp.SyscallConn(); err == nil {
			return controlBuffers(raw)
		}
	}
	return 0, 0
}
