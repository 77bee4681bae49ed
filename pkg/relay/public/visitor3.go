package public

import (
	"context"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/quicvarint"

	"culvert.dev/pkg/http3"
)

const (
	// maxRequests3 is how many requests a visitor may have at a time over HTTP/3.
	maxRequests3 = 128

	// maxWindow3 is how much of their bodies may be on the way to us, and freeWindow3
	// what of it is not taken from maxWindows; both beyond what a stranger has.
	maxWindow3, freeWindow3 = 6 << 20, 1 << 20

	// maxOthers3 is how many streams there may be beside those of requests: the
	// control stream, two of QPACK, and what a client sends to keep servers honest.
	maxOthers3 = 16

	// What costs us work and comes to nothing is allowed in a burst, and so many
	// times a second: cancelled requests, malformed ones, streams of unknown types.
	// A browser that leaves a page cancels some dozens at once.
	maxWaste, wasteRate = 256, 32

	// lingerTime is how long a client that was told to go has for it, when it has
	// its last answer.
	lingerTime = time.Second
)

// visitor3 is one HTTP/3 connection of a visitor. It has three goroutines and one for each
// stream that carries no request; its requests are on the loops of their services.
type visitor3 struct {
	client  *client // as it is now; owned by serve
	addr    netip.Addr
	verdict verdict
	q       *quicListener
	relay   *Relay
	conn    *quic.Conn
	first   *loop // where requests are decided first
	control *quic.SendStream
	queued  atomic.Int64 // bytes of responses that wait to be written

	mu       sync.Mutex
	peer     http3.Peer
	requests int           // under way
	others   int           // streams that are being read beside them
	next     quic.StreamID // of the first request that has not come yet
	leaving  bool          // the visitor was told to go
	newcomer bool          // it will be, after its first requests
	idle     *time.Timer   // runs while there is no request
	waste    float64
	wasted   time.Time // when waste was true
}

// visit takes the connection of a visitor.
func (q *quicListener) visit(conn *quic.Conn) {
	r := q.relay
	state := conn.ConnectionState().TLS
	from := addrPort(conn.RemoteAddr())
	v := &visitor3{q: q, relay: r, conn: conn, addr: from.Addr(), wasted: time.Now()}
	v.verdict = r.admission.enter(v.addr)
	v.client = &client{
		addr: from, sni: state.ServerName, proto: "HTTP/3", certs: state.PeerCertificates, tls: state.Version,
		port: addrPort(conn.LocalAddr()).Port(), secure: true, verdict: v.verdict,
	}
	v.first = r.loops[q.next%len(r.loops)]
	q.next++
	if s := r.routes.Load().any(appendHost(nil, []byte(state.ServerName)), true); s != nil {
		v.first = s.session.loop
	}
	if v.verdict != admitted {
		v.first.Post(func() { v.first.counters.TurnedAway++ })
	}
	if v.verdict == turnedAway {
		conn.CloseWithError(quic.ApplicationErrorCode(http3.ExcessiveLoad), "")
		return
	}
	q.known(conn.Context(), maxWindow3, freeWindow3)
	v.first.Spawn(v.serve)
}

// addrPort is the address of a UDP socket.
func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.UDPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// serve takes requests until the connection ends.
func (v *visitor3) serve(ctx context.Context) {
	defer v.relay.admission.leave(v.addr, v.verdict)
	defer context.AfterFunc(ctx, func() { v.close(http3.NoError, "") })()
	control, err := v.conn.OpenUniStream()
	if err == nil {
		_, err = control.Write(http3.AppendControl(nil))
	}
	if err != nil { // a client that allows no control stream is none of HTTP/3
		v.close(http3.ClosedCriticalStream, "no control stream")
		return
	}
	v.mu.Lock()
	v.control = control
	v.newcomer = v.verdict != admitted // it hears that there is no room, and no more
	wait := idleTime
	if v.newcomer {
		wait = headTime
	}
	v.idle = time.AfterFunc(wait, v.leave)
	v.mu.Unlock()
	defer v.idle.Stop()
	v.q.enlist(v)
	defer v.q.delist(v)
	v.first.Spawn(v.acceptOthers)
	for {
		s, err := v.conn.AcceptStream(v.conn.Context())
		if err != nil {
			return
		}
		if !v.enter(s) {
			s.CancelRead(quic.StreamErrorCode(http3.RequestRejected))
			s.CancelWrite(quic.StreamErrorCode(http3.RequestRejected))
			s.ReleaseStreamCredit()
			v.spoil()
			continue
		}
		st := newStream3(v, s)
		v.first.Spawn(st.read)
	}
}

// who is the visitor. One whose address has changed is another one for policies.
func (v *visitor3) who() *client {
	if addr := addrPort(v.conn.RemoteAddr()); addr != v.client.addr {
		c := v.client
		v.client = &client{addr: addr, sni: c.sni, proto: c.proto, certs: c.certs, tls: c.tls, port: c.port, secure: true, verdict: c.verdict}
	}
	return v.client
}

// enter counts a request. It reports false if none is taken any more.
func (v *visitor3) enter(s *quic.Stream) bool {
	v.mu.Lock()
	defer v.mu.Unlock()
	if v.leaving {
		return false
	}
	v.requests++
	v.next = s.StreamID() + 4
	v.idle.Stop()
	return true
}

// left is the end of a request.
func (v *visitor3) left(s *quic.Stream) {
	s.ReleaseStreamCredit()
	v.mu.Lock()
	defer v.mu.Unlock()
	v.requests--
	switch {
	case v.requests > 0 || v.conn.Context().Err() != nil:
	case v.newcomer:
		v.goAway()
	case v.leaving:
		v.idle.Reset(lingerTime)
	default:
		v.idle.Reset(idleTime)
	}
}

// leave tells the visitor to go, and when it has been told, closes the connection.
func (v *visitor3) leave() {
	v.mu.Lock()
	over := v.leaving && v.requests == 0
	if !v.leaving {
		v.goAway()
	}
	v.mu.Unlock()
	if over {
		v.close(http3.NoError, "")
	}
}

// drain tells the visitor to go. One that has just come has settleTime for its first request.
func (v *visitor3) drain() {
	v.mu.Lock()
	defer v.mu.Unlock()
	switch {
	case v.leaving:
	case v.next == 0:
		v.newcomer = true
		v.idle.Reset(settleTime)
	default:
		v.goAway()
	}
}

// goAway says which requests are not served any more. v.mu is held.
func (v *visitor3) goAway() {
	v.leaving, v.newcomer = true, false
	v.control.Write(http3.AppendGoAway(nil, uint64(v.next))) // fits into a packet, so it does not wait
	if v.requests == 0 {
		v.idle.Reset(lingerTime)
	}
}

// close ends the connection. It waits for the goroutine of it, so it is nothing for a loop.
func (v *visitor3) close(code http3.Code, reason string) {
	v.conn.CloseWithError(quic.ApplicationErrorCode(code), reason)
}

// spoil counts work that came to nothing. It ends the connection if there is too much of it.
func (v *visitor3) spoil() {
	now := time.Now()
	v.mu.Lock()
	v.waste = max(0, v.waste-now.Sub(v.wasted).Seconds()*wasteRate) + 1
	v.wasted = now
	over := v.waste > maxWaste
	v.mu.Unlock()
	if over {
		v.first.Spawn(func(context.Context) { v.close(http3.ExcessiveLoad, "too many requests that came to nothing") })
	}
}

// acceptOthers reads the streams beside those of requests.
func (v *visitor3) acceptOthers(context.Context) {
	for {
		s, err := v.conn.AcceptUniStream(v.conn.Context())
		if err != nil {
			return
		}
		v.mu.Lock()
		v.others++
		over := v.others > maxOthers3
		v.mu.Unlock()
		if over {
			v.close(http3.ExcessiveLoad, "too many streams")
			return
		}
		v.first.Spawn(func(context.Context) { v.readOther(s) })
	}
}

// readOther reads one of them.
func (v *visitor3) readOther(s *quic.ReceiveStream) {
	defer func() {
		s.ReleaseStreamCredit()
		v.mu.Lock()
		v.others--
		v.mu.Unlock()
	}()
	kind, err := quicvarint.Read(quicvarint.NewReader(s))
	if err != nil { // it has ended within the type of a stream, which has none then
		v.spoil()
		return
	}
	v.mu.Lock()
	in, err := v.peer.Open(kind)
	v.mu.Unlock()
	if in == nil && err == nil {
		s.CancelRead(quic.StreamErrorCode(http3.StreamCreationError))
		v.spoil()
		return
	}
	for buf := make([]byte, 64); err == nil; {
		n, end := s.Read(buf)
		if err = in.Read(buf[:n]); err == nil && end != nil {
			err = in.EOF()
		}
	}
	if v.conn.Context().Err() == nil {
		e := err.(*http3.Error)
		v.close(e.Code, e.Reason)
	}
}
