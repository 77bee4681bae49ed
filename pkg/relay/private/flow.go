package private

import (
	"cmp"
	"context"
	"net/netip"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/tunnel"
)

const (
	// maxFlows is the default of Relay.MaxFlows.
	maxFlows = 64 << 10

	// maxWaiting bounds the datagrams of a flow that wait for the look-up of their target's name.
	maxWaiting      = 16
	maxWaitingBytes = tunnel.MaxDatagram

	// redialTime is the least time between two tries to find the target of a flow.
	redialTime = time.Second
)

// flows are those of one session. They are owned by its loop.
type flows struct {
	table forward.LoopFlows
	buf   []byte // of a datagram with its PROXY protocol header
}

// flow is the datagrams of one visitor and the target of a service, and the handler of the stream that carries
// them. A target that does not answer does not end it.
type flow struct {
	forward.Flow
	peer     *peer
	services *services // those of the configuration when it was last looked up
	service  *service
	stream   *tunnel.Stream
	visitor  netip.AddrPort

	conn    *evloop.PacketConn // connected to the target, so that nobody else answers; nil: not there yet
	preface []byte             // of each datagram, or nil
	cancel  context.CancelFunc // of the dial under way, or nil
	again   time.Time          // conn and cancel are nil: when to dial again
	waiting [][]byte           // for the dial
	bytes   int                // of waiting
	over    bool
}

// acceptFlow begins a flow.
func (p *peer) acceptFlow(s *tunnel.Stream, svc *service, visitor netip.AddrPort) {
	f := &flow{peer: p, services: p.relay.services.Load(), service: svc, stream: s, visitor: visitor}
	f.Owner = f
	svc.total.Add(1)
	svc.open.Add(1)
	s.SetHandler(f)
	p.flows.table.Limit = cmp.Or(p.relay.MaxFlows, maxFlows)
	p.flows.table.Add(&f.Flow, netip.Addr{})
}

// OnDatagram takes a datagram of the visitor.
func (f *flow) OnDatagram(b []byte) {
	now := f.peer.now()
	f.peer.flows.table.Touch(&f.Flow, false, now)
	if !f.follow() {
		return
	}
	switch {
	case f.conn != nil:
		f.send(b)
		return
	case f.cancel == nil && now.Before(f.again):
		return
	}
	if len(f.waiting) < maxWaiting && f.bytes+len(b) <= maxWaitingBytes {
		f.waiting = append(f.waiting, append([]byte(nil), b...))
		f.bytes += len(b)
	}
	if f.cancel == nil {
		f.dial()
	}
}

// follow has the flow keep up with the configuration: it has no end of its own, so that an old target might be
// used for ever. It reports whether the flow goes on.
func (f *flow) follow() bool {
	now := f.peer.relay.services.Load()
	if now == f.services {
		return true
	}
	f.services = now
	svc := now.byName[f.service.Name]
	if svc == nil || svc.network != f.service.network || svc.address != f.service.address || svc.ProxyProtocol != f.service.ProxyProtocol {
		f.stream.Reset(tunnel.CodeCancelled) // the next datagram begins another one
		return false
	}
	f.service.open.Add(-1)
	f.service = svc
	svc.open.Add(1)
	return true
}

func (f *flow) dial() {
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	f.cancel = cancel
	f.peer.loop.DialPacket(ctx, f.service.network, f.service.address, f.dialled)
}

func (f *flow) dialled(c *evloop.PacketConn, err error) {
	f.cancel()
	f.cancel = nil
	waiting := f.waiting
	f.waiting, f.bytes = nil, 0
	switch {
	case f.over:
		if err == nil {
			c.Close()
		}
		return
	case err != nil:
		f.again = f.peer.now().Add(redialTime)
		f.failed(err)
		return
	}
	f.conn = c
	if version := f.service.ProxyProtocol; version != 0 {
		f.preface = appendPreface(nil, version, true, f.visitor, c.RemoteAddr())
	}
	c.OnError = f.failed
	c.SetHandler(f.answer)
	for _, b := range waiting {
		f.send(b)
	}
}

func (f *flow) send(b []byte) {
	if f.preface != nil {
		fs := &f.peer.flows
		fs.buf = append(append(fs.buf[:0], f.preface...), b...)
		b = fs.buf
	}
	f.conn.Write(b)
}

// answer takes a datagram of the target.
func (f *flow) answer(b []byte, _ evloop.PacketAddr) {
	f.peer.flows.table.Touch(&f.Flow, true, f.peer.now())
	if f.service.down.Load() {
		f.peer.targetBack(f.service)
	}
	f.stream.SendDatagram(b)
}

// failed is told that the target cannot be reached. It may be the next time.
func (f *flow) failed(err error) { f.peer.targetDown(f.service, err) }

// Expire ends the flow, which has left the table.
func (f *flow) Expire() { f.stream.Reset(tunnel.CodeCancelled) }

// OnData drops what does not belong into a flow.
func (f *flow) OnData(b []byte) int { return len(b) }
func (f *flow) OnEOF()              { f.stream.Reset(tunnel.CodeCancelled) }
func (f *flow) OnDrain()            {}

// OnClose is the end, from either side.
func (f *flow) OnClose(error) {
	f.over = true
	f.peer.flows.table.Remove(&f.Flow)
	f.service.open.Add(-1)
	if f.cancel != nil {
		f.cancel()
	}
	if f.conn != nil {
		f.conn.Close()
	}
}
