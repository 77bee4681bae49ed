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
	stock    []*upstream // idle streams, the youngest last
	leaving  []*upstream // streams that have to end
	sweeper  evloop.Timer
	sweeping bool
	removed  bool // the session publishes it no longer
	visitors int
	active   int // exchanges under way
	peak     int // the most of them, falling off by the second
	total    uint64
	received uint64 // bytes of HTTP from visitors
	sent     uint64 // and to them
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
	return relay.Header{Kind: relay.KindConnect, Service: s.name, Scheme: scheme, Host: host, Visitor: addr}.Append(dst)
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
	n := len(s.stock)
	if n == 0 {
		return nil
	}
	u := s.stock[n-1]
	if !again && time.Duration(s.session.loop.since()-u.since) > freshTime {
		return nil
	}
	s.stock[n-1] = nil
	s.stock = s.stock[:n-1]
	return u
}

// put takes a stream into stock.
func (s *service) put(u *upstream) {
	if s.removed || len(s.stock) >= max(minStock, min(s.peak, maxStock)) || s.session.relay.draining.Load() {
		s.dismiss(u)
		return
	}
	u.since = s.session.loop.since()
	u.Resume()
	s.stock = append(s.stock, u)
	s.sweepLater()
}

// dismiss ends a stream in good order: the server gets an end of stream, and
// some time to answer with its own.
func (s *service) dismiss(u *upstream) {
	u.since = s.session.loop.since()
	u.Close()
	s.leaving = append(s.leaving, u)
	s.sweepLater()
}

// forget takes u, which has ended, out of the lists.
func (s *service) forget(u *upstream) {
	for _, l := range []*[]*upstream{&s.stock, &s.leaving} {
		for i, o := range *l {
			if o == u {
				copy((*l)[i:], (*l)[i+1:])
				(*l)[len(*l)-1] = nil
				*l = (*l)[:len(*l)-1]
				return
			}
		}
	}
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
	n := 0
	for n < len(s.stock) && s.stock[n].since <= limit {
		n++
	}
	old := append([]*upstream(nil), s.stock[:n]...)
	s.stock = append(s.stock[:0], s.stock[n:]...)
	for n = 0; n < len(s.leaving) && s.leaving[n].since <= limit; n++ {
		s.leaving[n].Reset(tunnel.CodeCancelled)
	}
	s.leaving = append(s.leaving[:0], s.leaving[n:]...)
	for _, u := range old {
		s.dismiss(u)
	}
	if len(s.stock)+len(s.leaving) > 0 {
		s.sweepLater()
	} else {
		s.stock, s.leaving = nil, nil
	}
}

// remove ends what belongs to the service and to no visitor.
func (s *service) remove() {
	s.removed = true
	s.empty()
}

// empty dismisses the idle streams.
func (s *service) empty() {
	for _, u := range s.stock {
		s.dismiss(u)
	}
	s.stock = nil
}

// OnData takes the response, or bytes that nobody asked for.
func (u *upstream) OnData(b []byte) int {
	if u.exchange == nil {
		u.service.forget(u)
		u.Reset(tunnel.CodeCancelled)
		return len(b)
	}
	return u.exchange.onData(b)
}

func (u *upstream) OnEOF() {
	u.eof = true
	if u.exchange == nil {
		u.service.forget(u)
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
		u.service.forget(u)
		return
	}
	u.exchange.onReset(err)
}

// accept takes a visitor of a tcp service. It runs on the session's loop.
func (s *service) accept(c *evloop.Conn) {
	r, addr := s.session.relay, c.RemoteAddr()
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

// join splices a visitor, who has entered with v, with a stream of s, until both
// are closed.
func join(c forward.End, st *tunnel.Stream, addr netip.Addr, v verdict, s *service) {
	s.visitors++
	forward.Splice(c, st, func(error) {
		s.visitors--
		s.session.relay.admission.leave(addr, v)
	})
}
