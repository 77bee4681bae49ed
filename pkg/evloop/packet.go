package evloop

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

const (
	// MaxPacket is the most bytes of a datagram: what UDP can carry over IPv4 (RFC 768, RFC 791).
	MaxPacket = 65507

	// PacketBuffer is what a PacketConn asks the system to buffer in each direction, in bytes. A burst that is
	// longer is lost: 4 MiB are some 3,000 datagrams, 150 ms of 20,000 a second.
	PacketBuffer = 4 << 20

	maxPackets  = 64        // datagrams that one socket receives in a turn
	turnPackets = 256       // datagrams that all sockets receive in a turn, about
	sendPackets = 128       // datagrams gathered before they are sent without waiting for the end of the turn
	sendBytes   = 128 << 10 // and their bytes
	packetSize  = 64 << 10  // room for one datagram; more than any has, so that none is cut
)

// PacketAddr says where a datagram came from and where it arrived, or where and from which address it is to go.
type PacketAddr struct {
	// Remote is the peer.
	Remote netip.AddrPort

	// Local is the address of ours that the peer has sent to. A socket that is bound to no address answers from
	// there; from the one that the system chooses if it is zero. It is zero when the system does not say it
	// (Windows; IPv4 on a BSD other than macOS) and for multicast.
	Local netip.Addr
}

// PacketConn is a UDP socket of a loop. All but LocalAddr, RemoteAddr and Dropped is for that loop only. Silent, it
// holds neither goroutine nor buffer (on the portable backend: one goroutine and 64 KiB).
type PacketConn struct {
	// OnError, if not nil, is told of errors that are not the fault of a datagram of this moment: that the peer
	// of a connected socket is not there (ECONNREFUSED, by ICMP), say. It comes at most once a turn. The socket
	// goes on. Set it on the loop.
	OnError func(error)

	// immutable
	loop   *Loop
	sock   packetSocket
	local  netip.AddrPort
	remote netip.AddrPort // of a connected socket
	mute   bool           // nothing is received

	// owned by loop
	onPacket func(b []byte, from PacketAddr)
	slot     uint64
	entered  bool // slot is valid
	ready    bool // in the loop's queue
	closed   bool
	err      error // OnError is under way with it
	out      bool  // it has datagrams in loop.outgoing: these
	first    int
	last     int

	dropped atomic.Uint64
}

// packetSocket is what a PacketConn needs of a socket. There are two: fdPacket, a descriptor driven without blocking,
// and netPacket, a net.PacketConn driven by goroutines. All methods are called on the loop.
type packetSocket interface {
	// register announces the socket: from now on events for token arrive at the loop.
	register(token uint64) error
	// receive delivers at most maxPackets datagrams. It returns how many, and whether there may be more.
	receive(p *PacketConn) (n int, more bool)
	// send sends what it can of a batch and has p count what it cannot.
	send(p *PacketConn, batch []outPacket)
	// close frees the socket.
	close()
	// buffers returns the bytes that the system buffers; 0: unknown.
	buffers() (receive, send int)
}

// outPacket is a datagram on its way; b is the loop's.
type outPacket struct {
	b    []byte
	to   PacketAddr
	next int // the next one of the same socket
}

// outgoing are the datagrams that a loop has gathered in a turn, of all its sockets.
type outgoing struct {
	buf     []byte // of sendBytes, from loop.buffers; nil when there are none
	packets []outPacket
	dirty   []*PacketConn // that have some of them
	batch   []outPacket   // of one socket
}

// ListenPacket receives datagrams on network "udp", "udp4" or "udp6" and addr. onPacket runs on the loop; b is lent to
// it until it returns. When it is nil, datagrams wait in the system until SetHandler. It may be called from anywhere; off
// the loop, p reaches onPacket by a Post.
func (l *Loop) ListenPacket(network, addr string, onPacket func(b []byte, from PacketAddr)) (*PacketConn, error) {
	switch network {
	case "udp", "udp4", "udp6":
	default:
		return nil, net.UnknownNetworkError(network)
	}
	nc, err := net.ListenPacket(network, addr)
	if err != nil {
		return nil, err
	}
	return l.AttachPacket(nc, onPacket)
}

// ListenPacketFile is like ListenPacket on the UDP socket f, inherited from a service manager, say. f remains the
// caller's, to close.
func (l *Loop) ListenPacketFile(f *os.File, onPacket func(b []byte, from PacketAddr)) (*PacketConn, error) {
	return l.filePacket(f, &PacketConn{loop: l, onPacket: onPacket})
}

// SendPacketFile is like ListenPacketFile for a loop that only sends by the socket f: what comes is left to others who have it.
func (l *Loop) SendPacketFile(f *os.File) (*PacketConn, error) {
	return l.filePacket(f, &PacketConn{loop: l, mute: true})
}

func (l *Loop) filePacket(f *os.File, p *PacketConn) (*PacketConn, error) {
	nc, err := net.FilePacketConn(f)
	if err != nil {
		return nil, err
	}
	if _, ok := nc.(*net.UDPConn); !ok {
		nc.Close()
		return nil, net.UnknownNetworkError(nc.LocalAddr().Network())
	}
	return l.attachPacket(nc, p)
}

// AttachPacket brings nc, which the loop owns from now on, onto l; onPacket is as for ListenPacket. A UDP socket is driven
// by descriptor, where the loop can; any other net.PacketConn by goroutines. On error nc is closed. It may be called
// from anywhere.
func (l *Loop) AttachPacket(nc net.PacketConn, onPacket func(b []byte, from PacketAddr)) (*PacketConn, error) {
	return l.attachPacket(nc, &PacketConn{loop: l, onPacket: onPacket})
}

func (l *Loop) attachPacket(nc net.PacketConn, p *PacketConn) (*PacketConn, error) {
	p.local = netAddrPort(nc.LocalAddr())
	if c, ok := nc.(*net.UDPConn); ok {
		p.remote = netAddrPort(c.RemoteAddr())
		if !l.core.cfg.Portable {
			s, err := takePacketFD(c, l)
			c.Close()
			if err != nil {
				return nil, err
			}
			p.sock = s
		}
	}
	if p.sock == nil {
		p.sock = newNetPacket(nc, l, p)
	}
	if !l.Post(func() {
		if err := p.start(); err != nil && p.OnError != nil {
			p.OnError(err)
		}
	}) {
		p.sock.close()
		return nil, ErrClosed
	}
	return p, nil
}

// DialPacket connects a UDP socket to addr (host:port; the first address of a name that the system has a route to) and
// calls done on the loop, at once if addr is literal. Datagrams of others do not arrive. The context bounds it until
// then. done sets a handler and OnError, or closes. On the loop only.
func (l *Loop) DialPacket(ctx context.Context, network, addr string, done func(*PacketConn, error)) {
	finish := func(p *PacketConn, err error) {
		if err != nil {
			done(nil, &net.OpError{Op: "dial", Net: network, Err: err})
			return
		}
		done(p, nil)
	}
	family := strings.TrimPrefix(network, "udp")
	if family == network || family != "" && family != "4" && family != "6" {
		finish(nil, net.UnknownNetworkError(network))
		return
	}
	if ap, err := netip.ParseAddrPort(addr); err == nil {
		if is4 := ap.Addr().Unmap().Is4(); family == "4" && !is4 || family == "6" && is4 {
			finish(nil, &net.AddrError{Err: "address is not of network " + network, Addr: addr})
			return
		}
		finish(l.dialPacket(ap))
		return
	}
	l.lookUp(ctx, network, addr, func(addrs []netip.Addr, port uint16, err error) {
		if err != nil {
			finish(nil, err)
			return
		}
		first := error(errNoAddress)
		for i, a := range addrs {
			p, err := l.dialPacket(netip.AddrPortFrom(a.Unmap(), port))
			if err == nil {
				finish(p, nil)
				return
			}
			if i == 0 {
				first = err
			}
		}
		finish(nil, first)
	})
}

var errNoAddress = errors.New("name has no address")

// dialPacket connects to a literal address, which takes no time.
func (l *Loop) dialPacket(addr netip.AddrPort) (*PacketConn, error) {
	if err := l.closed(); err != nil {
		return nil, err
	}
	if l.core.cfg.Portable {
		nc, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(addr))
		if err != nil {
			return nil, errors.Unwrap(err)
		}
		return l.AttachPacket(nc, nil)
	}
	s, local, err := dialPacketFD(addr, l)
	if err != nil {
		return nil, err
	}
	p := &PacketConn{loop: l, sock: s, local: local, remote: addr}
	return p, p.start()
}

// start enters the socket into the loop, or closes it; on the loop.
func (p *PacketConn) start() error {
	if p.closed {
		return nil
	}
	err := p.loop.closed()
	if err == nil {
		p.slot = p.loop.enter(slot{p: p})
		p.entered = true
		if !p.mute {
			err = p.sock.register(p.slot)
		}
	}
	if err != nil {
		p.Close()
	}
	return err
}

// SetHandler makes onPacket the handler from now on.
func (p *PacketConn) SetHandler(onPacket func(b []byte, from PacketAddr)) {
	p.onPacket = onPacket
	p.wantReceive()
}

// LocalAddr returns the address that the socket is bound to.
func (p *PacketConn) LocalAddr() netip.AddrPort { return p.local }

// RemoteAddr returns the address that the socket is connected to; zero if it is not.
func (p *PacketConn) RemoteAddr() netip.AddrPort { return p.remote }

// Loop returns the loop that owns p.
func (p *PacketConn) Loop() *Loop { return p.loop }

// Dropped returns how many datagrams could not be sent: the system's buffer was full, they were longer than MaxPacket,
// or their address cannot be reached from this socket.
func (p *PacketConn) Dropped() uint64 { return p.dropped.Load() }

// Buffers returns how many bytes the system buffers in each direction; 0 if it does not say. Less than PacketBuffer
// means that it has a limit (on Linux net.core.rmem_max and wmem_max).
func (p *PacketConn) Buffers() (receive, send int) {
	if p.closed {
		return 0, 0
	}
	return p.sock.buffers()
}

// Write sends b to the peer of a connected socket; see WriteTo.
func (p *PacketConn) Write(b []byte) { p.WriteTo(b, PacketAddr{Remote: p.remote}) }

// WriteTo sends b at the end of the turn, together with what else the turn has written. It copies b and never blocks;
// what the system does not take is dropped and counted. On a connected socket the address has no meaning.
func (p *PacketConn) WriteTo(b []byte, to PacketAddr) {
	if p.closed {
		return
	}
	if len(b) > MaxPacket {
		p.dropped.Add(1)
		return
	}
	o := &p.loop.outgoing
	if len(o.packets) == sendPackets || len(o.buf)+len(b) > sendBytes {
		o.flush(p.loop)
	}
	if o.buf == nil {
		o.buf = p.loop.buffers.get(sendBytes)
	}
	i, at := len(o.packets), len(o.buf)
	o.buf = append(o.buf, b...)
	o.packets = append(o.packets, outPacket{b: o.buf[at:], to: to})
	if p.out {
		o.packets[p.last].next = i
	} else {
		p.out = true
		p.first = i
		o.dirty = append(o.dirty, p)
	}
	p.last = i
}

// flush sends what was gathered, with as few system calls as the sockets allow.
func (o *outgoing) flush(l *Loop) {
	if o.buf == nil {
		return
	}
	for i, p := range o.dirty {
		o.batch = o.batch[:0]
		for k := p.first; ; k = o.packets[k].next {
			o.batch = append(o.batch, o.packets[k])
			if k == p.last {
				break
			}
		}
		p.out = false
		p.sock.send(p, o.batch)
		o.dirty[i] = nil
	}
	o.dirty = o.dirty[:0]
	clear(o.packets)
	o.packets = o.packets[:0]
	l.buffers.put(o.buf)
	o.buf = nil
}

// Close sends what was written and frees the socket. No callback comes after it.
func (p *PacketConn) Close() {
	if p.closed {
		return
	}
	if p.out {
		p.loop.outgoing.flush(p.loop)
	}
	p.closed = true
	if p.entered {
		p.loop.leave(p.slot)
	}
	p.sock.close()
	p.onPacket = nil
}

// fail tells OnError, at the end of the turn.
func (p *PacketConn) fail(err error) {
	if p.err == nil {
		p.loop.AfterTurn(func() {
			err := p.err
			p.err = nil
			if p.OnError != nil && !p.closed {
				p.OnError(err)
			}
		})
	}
	p.err = err
}

// deliver lends a datagram to the handler.
func (p *PacketConn) deliver(b []byte, from PacketAddr) {
	if p.onPacket != nil { // not closed
		p.onPacket(b, from)
	}
}

func (p *PacketConn) wantReceive() {
	if !p.ready && !p.closed {
		p.ready = true
		p.loop.packets.add(p)
	}
}

// servePackets receives up to some turnPackets datagrams; the sockets that were not served keep their place.
func (l *Loop) servePackets() {
	queue := l.packets.take()
	for i, n := 0, 0; i < len(queue); i++ {
		if n >= turnPackets {
			l.packets.next = slices.Insert(l.packets.next, 0, queue[i:]...)
			clear(queue[i:])
			return
		}
		p := queue[i]
		queue[i] = nil
		p.ready = false
		if p.onPacket == nil { // closed, or SetHandler comes
			continue
		}
		start := time.Now()
		m, more := p.sock.receive(p)
		l.held(p, start)
		n += m
		if more {
			p.wantReceive()
		}
	}
}
