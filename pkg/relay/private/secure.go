package private

import (
	"cmp"
	"context"
	"crypto/ed25519"
	"encoding/binary"
	"errors"
	"net"
	"net/netip"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

const (
	// requestTimeout is how long an operator has from the end of the TLS handshake to the end of the request. The way
	// is as long as that of the public relay to us and to the operator together.
	requestTimeout = 10 * time.Second

	// maxOperations bounds the operators' streams of one session that have not come to their request yet.
	maxOperations = 256

	// maxBenches bounds the measurements under way at a time, for all sessions; benchTime each of them.
	maxBenches = 4
	benchTime  = 2 * time.Minute
)

// SetOperators replaces Operators. What is open stays open. It may be called from any goroutine.
func (r *Relay) SetOperators(keys []ed25519.PublicKey) {
	known := make(map[string]bool, len(keys))
	for _, k := range keys {
		known[string(k)] = true
	}
	r.operators.Store(&known)
}

// mayOperate reports whether the operator with that key, nil if none, may open connections.
func (r *Relay) mayOperate(key ed25519.PublicKey) bool {
	known := r.operators.Load()
	return known == nil || len(*known) == 0 || len(key) == ed25519.PublicKeySize && (*known)[string(key)]
}

// operation is an operator's stream until it is known what it is for: the TLS that ends here, in which he asks. The
// public relay, which has opened it, sees neither that nor what follows. It is owned by the loop, and is the handler of
// its connection.
type operation struct {
	peer    *peer
	conn    *evloop.Conn
	header  relay.Header
	timer   evloop.Timer
	counted bool // among the peer's operations
	asked   bool
}

// acceptOperator takes a stream of an operator.
func (p *peer) acceptOperator(s *tunnel.Stream, h relay.Header) {
	switch {
	case p.relay.secure == nil:
		s.Reset(tunnel.CodeInternal)
		return
	case p.operations >= maxOperations:
		s.Reset(tunnel.CodeOverload)
		return
	}
	s.Charge(tunnel.Owner{Service: h.Service, Visitor: relay.Source(h.Visitor.Addr())})
	c, err := p.loop.AttachEnd(s, h.Visitor)
	if err != nil {
		return // the loop is being closed
	}
	o := &operation{peer: p, conn: c, header: h, counted: true}
	p.operations++
	c.SetHandler(o)
	c.StartTLS(p.relay.secure, false, handshakeTimeout, func(err error) {
		if err == nil {
			p.loop.Arm(&o.timer, requestTimeout, func() {
				o.refuse(relay.NewOperateError(relay.OperateTimeout, "no request within %v", requestTimeout))
			})
		}
	})
	c.ExpectCloseNotify()
}

// OnData takes the request.
func (o *operation) OnData(b []byte) int {
	if o.asked {
		return len(b)
	}
	message, rest, err := relay.CutOperate(b)
	if err == nil && message == nil {
		return 0
	}
	var req relay.OperateRequest
	if err == nil {
		req, err = relay.DecodeOperateRequest(message)
	}
	if err != nil {
		o.refuse(relay.NewOperateError(relay.OperateInternal, "the private relay does not understand the request: %v", err))
		return len(b)
	}
	o.asked = true
	o.leave()
	o.serve(req)
	return len(b) - len(rest)
}

func (o *operation) OnEOF() {
	if !o.asked {
		o.conn.Close()
	}
}
func (o *operation) OnDrain()      {}
func (o *operation) OnClose(error) { o.leave() }

// leave ends the time that an operator has for his request.
func (o *operation) leave() {
	o.timer.Stop()
	if o.counted {
		o.counted = false
		o.peer.operations--
	}
}

// refuse tells why not.
func (o *operation) refuse(e *relay.OperateError) {
	o.asked = true
	o.leave()
	o.conn.Write(relay.AppendOperate(nil, relay.OperateAnswer{Error: e}))
	o.conn.Close()
}

// agree says that what follows is the target's.
func (o *operation) agree(scheme string) {
	o.conn.Write(relay.AppendOperate(nil, relay.OperateAnswer{Scheme: scheme}))
}

// serve does what was asked for. Another handler takes the connection over.
func (o *operation) serve(req relay.OperateRequest) {
	r := o.peer.relay
	// The public relay has counted the stream as one to the service in the header.
	if req.Service != o.header.Service {
		o.refuse(relay.NewOperateError(relay.OperateForbidden, "the public relay says that this is for service %q", o.header.Service))
		return
	}
	if key := auth.OperatorKey(o.conn.TLS()); !r.mayOperate(key) {
		text := "the site takes operators alone whose key it knows: make one with `tunnelctl operator key`, and have it added to operators in private.toml"
		if key != nil {
			text = "the site does not know your key " + auth.FormatPublicKey(key) + ": have it added to operators in private.toml"
		}
		o.refuse(relay.NewOperateError(relay.OperateForbidden, "%s", text))
		return
	}
	datagrams := req.Network == "udp"
	if req.Service[0] == '.' {
		o.builtIn(req, datagrams)
		return
	}
	svc := r.services.Load().byName[req.Service]
	switch {
	case svc == nil:
		o.refuse(relay.NewOperateError(relay.OperateNotFound, "the site has no service %q", req.Service))
	case svc.store != nil:
		o.refuse(relay.NewOperateError(relay.OperateNetwork, "service %q has files, for clients of TFTP: use tunnelctl tftp with the relay's address", req.Service))
	case svc.network == "udp" && !datagrams:
		o.refuse(relay.NewOperateError(relay.OperateNetwork, "service %q carries datagrams: use tunnelctl forward --udp", req.Service))
	case svc.network != "udp" && datagrams:
		o.refuse(relay.NewOperateError(relay.OperateNetwork, "service %q carries no datagrams: leave --udp out", req.Service))
	case req.Probe:
		o.agree(svc.Target.Scheme)
		o.conn.Close()
	default:
		o.begin(svc)
	}
}

// begin joins the operator to a service.
func (o *operation) begin(svc *service) {
	p := o.peer
	svc.total.Add(1)
	scheme := svc.Target.Scheme
	switch {
	case svc.network == "udp":
		o.flow(svc)
	case svc.terminate != nil: // the operator's program speaks the service's TLS
		o.agree("tcp")
		p.terminate(o.conn, svc, o.header.Visitor)
	case svc.Target.IsCamera():
		o.agree(scheme)
		svc.open.Add(1)
		newProxy(p, svc, o.conn, true).dial()
	case svc.files != nil, svc.listener != nil:
		o.agree(scheme)
		p.join(o.conn, svc, o.header.Visitor, nil)
	default:
		p.connect(o.conn, svc, o.header.Visitor, func(err error) {
			if err == nil {
				o.agree(scheme)
			} else {
				o.refuse(operateError(svc.Name, err))
			}
		})
	}
}

// operateError tells an operator that the target of a service cannot be reached, and why: who may reach it may know.
func operateError(name string, err error) *relay.OperateError {
	if e, ok := errors.AsType[*relay.OperateError](err); ok {
		return e
	}
	switch code(err) {
	case tunnel.CodeRefused:
		return relay.NewOperateError(relay.OperateRefused, "the target of %s has refused the connection: does it run? The private relay says: %v", name, err)
	case tunnel.CodeTimeout:
		return relay.NewOperateError(relay.OperateTimeout, "the target of %s does not answer. The private relay says: %v", name, err)
	}
	return relay.NewOperateError(relay.OperateUnreachable, "the target of %s cannot be reached. The private relay says: %v", name, err)
}

// builtIn does what this relay does by itself.
func (o *operation) builtIn(req relay.OperateRequest, datagrams bool) {
	r, c := o.peer.relay, o.conn
	switch {
	case req.Service == relay.ServiceSocks:
		o.reach(req)
	case datagrams || req.Service != relay.ServicePing && req.Service != relay.ServiceBench:
		o.refuse(relay.NewOperateError(relay.OperateNotFound, "the private relay has no service %q over %s: is it older than tunnelctl?", req.Service, cmp.Or(req.Network, "tcp")))
	case req.Probe:
		o.agree("tcp")
		c.Close()
	case req.Service == relay.ServicePing:
		o.agree("tcp")
		c.SetHandler(echo{c})
	case req.Address != relay.BenchSink && req.Address != relay.BenchSource:
		o.refuse(relay.NewOperateError(relay.OperateNotFound, "the private relay does not know how to measure %q", req.Address))
	case r.benches.Add(1) > maxBenches:
		r.benches.Add(-1)
		o.refuse(relay.NewOperateError(relay.OperateOverload, "there are %d measurements at this site already: try again when they are over", maxBenches))
	default:
		o.agree("tcp")
		b := &bench{relay: r, conn: c, source: req.Address == relay.BenchSource}
		o.peer.loop.Arm(&b.timer, benchTime, func() { c.Abort(context.DeadlineExceeded) })
		c.SetHandler(b)
		b.OnDrain()
	}
}

// echo sends back what comes.
type echo struct{ conn *evloop.Conn }

func (e echo) OnData(b []byte) int {
	e.conn.Write(b)
	if e.conn.Pending() > e.conn.HighMark() {
		e.conn.Pause()
	}
	return len(b)
}
func (e echo) OnEOF()        { e.conn.CloseWrite() }
func (e echo) OnDrain()      { e.conn.Resume() }
func (e echo) OnClose(error) {}

// bench takes or sends as much as it can.
type bench struct {
	relay  *Relay
	conn   *evloop.Conn
	timer  evloop.Timer
	source bool
	over   bool // the operator has said so
	n      uint64
}

// benchBlock is what is sent. On its way it is encrypted, so that nothing can make it smaller.
var benchBlock [16 << 10]byte

func (b *bench) OnData(data []byte) int {
	b.n += uint64(len(data))
	return len(data)
}

func (b *bench) OnEOF() {
	b.over = true
	if !b.source {
		b.conn.Write(binary.BigEndian.AppendUint64(nil, b.n))
	}
	b.conn.CloseWrite()
}

func (b *bench) OnDrain() {
	for b.source && !b.over && b.conn.Pending() <= b.conn.HighMark() {
		b.conn.Write(benchBlock[:])
	}
}

func (b *bench) OnClose(error) {
	b.over = true
	b.timer.Stop()
	b.relay.benches.Add(-1)
}

// reach joins the operator to an address, as far as the site lets operators go there.
func (o *operation) reach(req relay.OperateRequest) {
	r, c := o.peer.relay, o.conn
	if r.Socks == nil {
		o.refuse(relay.NewOperateError(relay.OperateForbidden, "the site lets operators reach its services alone: [socks] of its private.toml says what else"))
		return
	}
	network := cmp.Or(req.Network, "tcp")
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	w := &wait{cancel: cancel}
	c.Pause()
	c.SetHandler(w)
	var addrs []netip.AddrPort
	var err error
	o.peer.loop.Go(
		func() { addrs, err = r.Socks(ctx, network, req.Address) },
		func() {
			if err == nil && len(addrs) == 0 {
				err = &net.AddrError{Err: "no address", Addr: req.Address}
			}
			switch {
			case w.gone:
			case err != nil:
				cancel()
				o.refuse(operateError(req.Address, err))
			case req.Probe:
				cancel()
				o.agree(network)
				c.Close()
			case network == "udp":
				cancel()
				o.datagrams(&targetFlow{}, addrs[0].String(), req.Address)
			default:
				o.dial(ctx, w, req.Address, addrs)
			}
		})
}

// dial tries the addresses one after the other.
func (o *operation) dial(ctx context.Context, w *wait, name string, addrs []netip.AddrPort) {
	o.peer.loop.Dial(ctx, "tcp", addrs[0].String(), func(c *evloop.Conn, err error) {
		switch {
		case w.gone:
			if err == nil {
				c.Abort(context.Canceled)
			}
		case err != nil && len(addrs) > 1 && ctx.Err() == nil:
			o.dial(ctx, w, name, addrs[1:])
		case err != nil:
			w.cancel()
			o.refuse(operateError(name, err))
		default:
			w.cancel()
			o.agree("tcp")
			forward.Splice(c, o.conn, nil)
		}
	})
}

// wait is the handler of an operator's connection while something is looked for.
type wait struct {
	cancel context.CancelFunc
	gone   bool
}

func (w *wait) OnData([]byte) int { return 0 }
func (w *wait) OnEOF()            {}
func (w *wait) OnDrain()          {}
func (w *wait) OnClose(error) {
	w.gone = true
	w.cancel()
}

// targetFlow is the datagrams of an operator and a target. It is the handler of the operator's connection.
type targetFlow struct {
	forward.Flow
	peer    *peer
	service *service // nil: the target is none of a service
	conn    *evloop.Conn
	target  *evloop.PacketConn // nil until it is there
	preface []byte             // of each datagram, or nil
	out     []byte             // for one datagram
	cancel  context.CancelFunc
	over    bool
}

// flow joins the operator to a service with datagrams.
func (o *operation) flow(svc *service) {
	svc.open.Add(1)
	o.datagrams(&targetFlow{service: svc}, svc.address, svc.Name)
}

// datagrams begins f.
func (o *operation) datagrams(f *targetFlow, address, name string) {
	p := o.peer
	ctx, cancel := context.WithTimeout(context.Background(), connectTimeout)
	f.peer, f.conn, f.cancel, f.Owner = p, o.conn, cancel, f
	f.conn.SetHandler(f)
	f.conn.Pause()
	p.flows.table.Limit = cmp.Or(p.relay.MaxFlows, maxFlows)
	p.flows.table.Add(&f.Flow, netip.Addr{})
	p.loop.DialPacket(ctx, "udp", address, func(c *evloop.PacketConn, err error) {
		cancel()
		switch {
		case f.over:
			if err == nil {
				c.Close()
			}
			return
		case err != nil:
			f.failed(err)
			o.refuse(operateError(name, err))
			return
		}
		f.target = c
		if f.service != nil && f.service.ProxyProtocol != 0 {
			f.preface = appendPreface(nil, f.service.ProxyProtocol, true, o.header.Visitor, c.RemoteAddr())
		}
		c.OnError = f.failed
		c.SetHandler(f.answer)
		o.agree("udp")
		f.conn.Resume()
	})
}

// OnData takes datagrams of the operator.
func (f *targetFlow) OnData(b []byte) (used int) {
	for f.target != nil && len(b)-used >= 2 {
		n := int(binary.BigEndian.Uint16(b[used:]))
		if n > tunnel.MaxDatagram {
			f.conn.Abort(errLongDatagram)
			return len(b)
		}
		if len(b)-used < 2+n {
			return used
		}
		f.out = append(append(f.out[:0], f.preface...), b[used+2:used+2+n]...)
		used += 2 + n
		f.peer.flows.table.Touch(&f.Flow, false, f.peer.now())
		f.target.Write(f.out)
	}
	return used
}

var errLongDatagram = errors.New("a datagram of an operator is longer than UDP has them")

// answer takes a datagram of the target. Those that the operator does not take in time are dropped, as on any path.
func (f *targetFlow) answer(b []byte, _ evloop.PacketAddr) {
	f.peer.flows.table.Touch(&f.Flow, true, f.peer.now())
	if f.service != nil && f.service.down.Load() {
		f.peer.targetBack(f.service)
	}
	if f.over || f.conn.Pending() > f.conn.HighMark() {
		return
	}
	f.out = append(binary.BigEndian.AppendUint16(f.out[:0], uint16(len(b))), b...)
	f.conn.Write(f.out)
}

func (f *targetFlow) failed(err error) {
	if f.service != nil {
		f.peer.targetDown(f.service, err)
	}
}

// Expire ends the flow, which has left the table.
func (f *targetFlow) Expire() { f.conn.Close() }

func (f *targetFlow) OnEOF()   { f.conn.Close() }
func (f *targetFlow) OnDrain() {}
func (f *targetFlow) OnClose(error) {
	f.over = true
	f.cancel()
	f.peer.flows.table.Remove(&f.Flow)
	if f.service != nil {
		f.service.open.Add(-1)
	}
	if f.target != nil {
		f.target.Close()
	}
}
