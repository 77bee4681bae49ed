package public

import (
	"net/netip"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// Idle streams of HTTP services are kept for the next request. Many servers
// close a silent connection after five seconds; ours must be gone before that.
const (
	minStock  = 64   // streams are kept in any case
	maxStock  = 1024 // if as many were in use at once
	keepTime  = 4 * time.Second
	freshTime = time.Second // an idle stream younger than that may carry what cannot be sent twice
)

// service is something that a session publishes.
type service struct {
	// Immutable.
	session *session
	name    string
	publish relay.Publish
	target  string // scheme of the target
	host    string // of an HTTP service, as in publish
	secure  bool   // https
	prefix  string // of the path; "" for all

	// Owned by the session's loop.
	stock    upstreams // idle streams
	leaving  upstreams // streams that have to end
	joined   *splice   // visitors whose connection is a splice, in a list
	sweeper  evloop.Timer
	sweeping bool
	removed  bool // the session publishes it no longer
	visitors int
	active   int // exchanges under way
	peak     int // the most of them, falling off by the second
	total    uint64
	received uint64 // bytes from visitors, but see bytes
	sent     uint64 // and to them

	flows     *flows // of a udp service; those of the port, which another service may have by now
	silence   evloop.Timer
	datagrams Datagrams
}

// newService makes the service of an announcement whose publish URL has been
// accepted.
func newService(s *session, a relay.Announcement, p relay.Publish) *service {
	svc := &service{session: s, name: a.Name, publish: p, target: a.TargetScheme}
	switch p.Scheme {
	case "https", "wss", "http", "ws":
		svc.host = p.Host
		svc.secure = p.Scheme == "https" || p.Scheme == "wss"
		if p.Path != "/" {
			svc.prefix = p.Path
		}
	}
	return svc
}

// route is what no other service may have.
func (s *service) route() route { return route{s.host, s.secure, s.prefix} }

// same reports whether b is the same service, announced again.
func (s *service) same(b *service) bool {
	return s.name == b.name && s.publish == b.publish && s.target == b.target
}

// header is the header of a stream for a visitor.
func (s *service) header(dst []byte, addr netip.AddrPort, scheme, host string) ([]byte, error) {
	kind := relay.KindConnect
	if s.publish.Scheme == "udp" {
		kind = relay.KindFlow
	}
	return relay.Header{Kind: kind, Service: s.name, Scheme: scheme, Host: host, Visitor: addr}.Append(dst)
}

// openStream opens a stream to s for a visitor. The caller sets its handler.
func (s *service) openStream(addr netip.AddrPort, scheme, host string) (*tunnel.Stream, error) {
	if s.removed {
		return nil, tunnel.ErrClosed
	}
	var buf [relay.MaxHeader]byte
	h, err := s.header(buf[:0], addr, scheme, host)
	if err != nil {
		return nil, err
	}
	return s.session.tun.Open(h)
}

// upstream is a stream that carries HTTP, one exchange after the other. It is
// the stream's handler.
type upstream struct {
	*tunnel.Stream
	service  *service
	exchange *exchange // nil while there is none
	since    int64     // when it was put into stock or dismissed
	used     bool      // it has carried an exchange
	eof      bool      // the server has finished sending

	list          *upstreams // that it is in, or nil
	before, after *upstream
}

// upstreams is a list of streams, the one that was pushed last at its end.
type upstreams struct {
	first, last *upstream
	n           int
}

func (l *upstreams) push(u *upstream) {
	u.list, u.before = l, l.last
	if u.before != nil {
		u.before.after = u
	} else {
		l.first = u
	}
	l.last = u
	l.n++
}

// unlist takes u out of the list that it is in, if any.
func (u *upstream) unlist() {
	l := u.list
	if l == nil {
		return
	}
	if u.before != nil {
		u.before.after = u.after
	} else {
		l.first = u.after
	}
	if u.after != nil {
		u.after.before = u.before
	} else {
		l.last = u.before
	}
	l.n--
	u.list, u.before, u.after = nil, nil, nil
}

// open opens a stream for HTTP.
func (s *service) open(addr netip.AddrPort, scheme string, host []byte) (*upstream, error) {
	st, err := s.openStream(addr, scheme, string(appendHost(nil, host)))
	if err != nil {
		return nil, err
	}
	u := &upstream{Stream: st, service: s}
	st.SetHandler(u)
	return u, nil
}

// take returns an idle stream, or nil. Unless again is set, which says that the
// request may be sent twice, it is one that the server can hardly be closing.
func (s *service) take(again bool) *upstream {
	u := s.stock.last
	if u == nil || !again && time.Duration(s.session.loop.since()-u.since) > freshTime {
		return nil
	}
	u.unlist()
	return u
}

// put takes a stream into stock.
func (s *service) put(u *upstream) {
	if s.removed || s.session.leaving || s.stock.n >= max(minStock, min(s.peak, maxStock)) || s.session.relay.draining.Load() {
		s.dismiss(u)
		return
	}
	u.since = s.session.loop.since()
	u.Resume()
	s.stock.push(u)
	s.sweepLater()
}

// dismiss ends a stream in good order: the server gets an end of stream, and
// some time to answer with its own.
func (s *service) dismiss(u *upstream) {
	u.unlist()
	u.since = s.session.loop.since()
	u.Close()
	s.leaving.push(u)
	s.sweepLater()
}

func (s *service) sweepLater() {
	if !s.sweeping {
		s.sweeping = true
		s.session.loop.Arm(&s.sweeper, keepTime/4, s.sweep)
	}
}

// sweep dismisses the streams that were idle for keepTime, and resets those that
// were dismissed as long ago.
func (s *service) sweep() {
	s.sweeping = false
	s.peak = max(s.active, s.peak*3/4)
	limit := s.session.loop.since() - int64(keepTime)
	for u := s.leaving.first; u != nil && u.since <= limit; u = s.leaving.first {
		u.unlist()
		u.Reset(tunnel.CodeCancelled)
	}
	for u := s.stock.first; u != nil && u.since <= limit; u = s.stock.first {
		s.dismiss(u)
	}
	if s.stock.n+s.leaving.n > 0 {
		s.sweepLater()
	}
}

// remove ends what belongs to the service and to no visitor.
func (s *service) remove() {
	s.removed = true
	s.empty()
}

// finish ends what nobody uses, and flows as soon as nobody does: the session has
// not long to live.
func (s *service) finish() {
	s.empty()
	if s.flows != nil {
		s.flows.finish(s)
	}
}

// empty dismisses the idle streams.
func (s *service) empty() {
	for s.stock.first != nil {
		s.dismiss(s.stock.first)
	}
}

// OnData takes the response, or bytes that nobody asked for.
func (u *upstream) OnData(b []byte) int {
	if u.exchange == nil {
		u.unlist()
		u.Reset(tunnel.CodeCancelled)
		return len(b)
	}
	return u.exchange.onData(b)
}

func (u *upstream) OnEOF() {
	u.eof = true
	if u.exchange == nil {
		u.service.dismiss(u)
		return
	}
	u.exchange.onEOF()
}

func (u *upstream) OnDrain() {
	if u.exchange != nil {
		u.exchange.streamDrained()
	}
}

func (u *upstream) OnClose(err error) {
	if u.exchange == nil {
		u.unlist()
		return
	}
	u.exchange.onReset(err)
}

// accept takes a visitor of a tcp service. It runs on the session's loop.
func (s *service) accept(c *evloop.Conn, addr netip.AddrPort) {
	r := s.session.relay
	v := r.admission.enter(addr.Addr())
	if v != admitted {
		if v == sayFull { // there is nothing to say it with
			r.admission.leave(addr.Addr(), v)
		}
		s.session.loop.counters.TurnedAway++
		c.Abort(errFull)
		return
	}
	st, err := s.openStream(addr, "tcp", "")
	if err != nil {
		r.admission.leave(addr.Addr(), v)
		c.Abort(err)
		return
	}
	s.total++
	join(c, st, addr.Addr(), v, s)
}

// splice is a visitor whose connection is spliced with a stream.
type splice struct {
	service       *service
	stream        *tunnel.Stream
	before, after *splice
	addr          netip.Addr
	verdict       verdict
}

// join splices a visitor, who has entered with v, with a stream of s, until both
// are closed.
func join(c forward.End, st *tunnel.Stream, addr netip.Addr, v verdict, s *service) {
	j := &splice{service: s, stream: st, after: s.joined, addr: addr, verdict: v}
	if j.after != nil {
		j.after.before = j
	}
	s.joined = j
	s.visitors++
	// What the stream has carried before an upgrade has been counted by exchanges.
	sent, received := st.Bytes()
	s.sent -= sent
	s.received -= received
	forward.Splice(c, st, j.over)
}

// resetUnseen ends the visitors of tcp services whose stream the private relay has given
// no sign of: it may have been dead when they came, and if they try again they come to
// another one.
func (s *service) resetUnseen() {
	for j := s.joined; j != nil; j = j.after {
		if !j.stream.Confirmed() {
			j.stream.Reset(tunnel.CodeCancelled)
		}
	}
}

// over is the end of both connection and stream.
func (j *splice) over(error) {
	s := j.service
	if j.before != nil {
		j.before.after = j.after
	} else {
		s.joined = j.after
	}
	if j.after != nil {
		j.after.before = j.before
	}
	s.visitors--
	sent, received := j.stream.Bytes()
	s.sent += sent
	s.received += received
	s.session.relay.admission.leave(j.addr, j.verdict)
}

// bytes returns what has come from visitors and gone to them: of HTTP without the
// heads of requests, and of splices everything.
func (s *service) bytes() (received, sent uint64) {
	received, sent = s.received, s.sent
	for j := s.joined; j != nil; j = j.after {
		o, i := j.stream.Bytes()
		received += i
		sent += o
	}
	return received, sent
}
