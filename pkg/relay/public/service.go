package public

import (
	"net/netip"
	"strings"
	"sync/atomic"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftpd"
	"culvert.dev/pkg/tunnel"
)

// service is something that a session publishes.
type service struct {
	// Immutable.
	session *session
	name    string
	publish relay.Publish
	target  string // scheme of the target
	camera  relay.Camera
	files   relay.Files
	folder  tftpd.Share // of files
	host    string      // of an HTTP or tls service or a camera, as in publish
	secure  bool        // https, and cameras
	plain   bool        // http, and cameras that are published by rtsp
	raw     bool        // tls: what comes is passed through
	prefix  string      // of the path, also of files; "" for all

	// What is demanded of visitors; nil: nothing. Set on the session's loop, read on any.
	policy atomic.Pointer[policy]

	// Owned by the session's loop.
	*tally
	inspect   bool               // operators may see what is said
	held      map[netip.Addr]int // visitors by address, if their number is limited
	stock     upstreams          // idle streams
	leaving   upstreams          // streams that have to end
	kept      int                // bytes of responses that wait in conns, when it was last looked
	conns     []*upstream2       // streams to a target that speaks HTTP/2
	room      int                // requests at a time that it takes on one, as one has said last; 0: none has
	sweeper   evloop.Timer
	sweeping  bool
	removed   bool                           // the session publishes it no longer
	active    int                            // exchanges under way
	peak      int                            // the most of them, falling off by the second
	hub       *hub                           // of a camera that somebody watches with others
	broadcast *broadcast                     // of a camera that browsers watch
	quiet     int64                          // when the sound of a camera has stopped, for browsers; 0: it has not
	visits    map[*tftpd.Transfer]*fileVisit // of files
	latest    map[netip.AddrPort]*fileVisit  // the one of each visitor that has begun last
	asking    *fileStream                    // files that are being opened at the site
	closing   evloop.Timer                   // of closeLibrary
	flows     *flows                         // of a udp service; those of the port, which another service may have by now
	silence   evloop.Timer
}

// newService makes the service of an announcement whose publish URL has been
// accepted.
func newService(s *session, a relay.Announcement, p relay.Publish) *service {
	svc := &service{session: s, name: a.Name, publish: p, target: a.TargetScheme, tally: new(tally)}
	if a.Camera != nil {
		svc.camera = *a.Camera
	}
	switch p.Scheme {
	case "https", "wss", "http", "ws", "rtsp", "rtsps":
		svc.host = p.Host
		svc.secure, svc.plain = relay.OnHTTP(p.Scheme, true), relay.OnHTTP(p.Scheme, false)
		if p.Path != "/" {
			svc.prefix = p.Path
		}
	case "tls":
		svc.host, svc.raw = p.Host, true
	case "tftp":
		if a.Files != nil {
			svc.files = *a.Files
		}
		svc.prefix = strings.TrimSuffix(p.Path, "/")
		svc.newShare()
	}
	return svc
}

// isCamera reports whether players are served by s.
func (s *service) isCamera() bool { return s.publish.IsCamera() }

// isFiles reports whether clients of TFTP are served by s.
func (s *service) isFiles() bool { return s.publish.Scheme == "tftp" }

// routes are what no other service may have.
func (s *service) routes() []route {
	if s.isFiles() {
		return []route{{files: true, prefix: s.prefix}}
	}
	list := []route{{host: s.host, secure: s.secure, raw: s.raw, prefix: s.prefix}}
	if s.secure && s.plain {
		list = append(list, route{host: s.host, prefix: s.prefix})
	}
	return list
}

// same reports whether b is the same service, announced again.
func (s *service) same(b *service) bool {
	return s.name == b.name && s.publish == b.publish && s.target == b.target && s.camera == b.camera && s.files == b.files
}

// header is the header of a stream for a visitor.
func (s *service) header(dst []byte, addr netip.AddrPort, scheme, host string) ([]byte, error) {
	kind := relay.KindConnect
	switch s.publish.Scheme {
	case "udp":
		kind = relay.KindFlow
	case "tftp":
		kind = relay.KindFile
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
	st, err := s.session.tun.Open(h)
	if err == nil && !relay.IsHTTP2(s.target) { // that one is not a visitor's alone
		charge(st, addr.Addr())
	}
	return st, err
}

// charge puts the memory of st down to a visitor.
func charge(st *tunnel.Stream, addr netip.Addr) {
	st.Charge(tunnel.Owner{Visitor: relay.Source(addr)})
}

// accept takes a visitor of a tcp service. It runs on the session's loop.
func (s *service) accept(c *evloop.Conn, addr netip.AddrPort) {
	r := s.session.relay
	l, rec := s.session.loop, record{service: s, visitor: addr, proto: "tcp", began: s.session.loop.since()}
	if !s.admits(addr.Addr()) {
		c.Abort(errPolicy)
		s.turnAway(rec, wordPolicy)
		return
	}
	v := r.admission.enter(addr.Addr())
	if v != admitted {
		if v == sayFull { // there is nothing to say it with
			r.admission.leave(addr.Addr(), v)
		}
		l.counters.TurnedAway++
		c.Abort(errFull)
		s.turnAway(rec, wordLimit)
		return
	}
	st, err := s.openStream(addr, "tcp", "")
	if err != nil {
		r.admission.leave(addr.Addr(), v)
		c.Abort(err)
		s.turnAway(rec, openTrouble(err).word())
		return
	}
	s.total++
	rec.stream = st
	join(c, st, addr, v, s, "tcp").logs(rec)
}

// turnAway writes down a connection or flow that did not come about.
func (s *service) turnAway(r record, w word) {
	s.errors[w]++
	r.err = w
	s.session.loop.log(&r)
}

// splice is a visitor whose connection is spliced with a stream.
type splice struct {
	place[*splice] // among those of the tally
	service        *service
	stream         stream
	addr           netip.AddrPort
	verdict        verdict
	kicked         bool    // by an operator
	record         *record // of the access log; nil: there is none

	id             uint64    // see loop.number
	began, moved   int64     // when it began, and when a byte was seen to have moved
	scheme         string    // how the visitor came
	label          *label    // nil: there is nothing to say
	received, sent uint64    // bytes of the stream, from the visitor and to it, as far as they are counted for the service
	carried        [2]uint64 // of them that it had carried when the splice began
}

// label is what few splices have.
type label struct {
	host     string // if it is not the service's
	operator string // whose it is; "": a visitor's
}

// name tells what host the visitor asked for.
func (j *splice) name(host string) {
	if host != "" && host != j.service.host {
		j.labelled().host = host
	}
}

// of tells that an operator has opened it.
func (j *splice) of(operator string) *splice {
	if operator != "" {
		j.labelled().operator = operator
	}
	return j
}

func (j *splice) labelled() *label {
	if j.label == nil {
		j.label = new(label)
	}
	return j.label
}

// settle counts what has moved since the last time.
func (j *splice) settle(now int64) {
	sent, received := j.stream.Bytes()
	if sent == j.sent && received == j.received {
		return
	}
	j.service.sent += sent - j.sent
	j.service.received += received - j.received
	j.sent, j.received, j.moved = sent, received, now
}

// join splices a visitor, who has entered with v, with a stream of s, until both
// are closed. scheme is how the visitor came.
func join(c forward.End, st stream, addr netip.AddrPort, v verdict, s *service, scheme string) *splice {
	l := s.session.loop
	j := &splice{service: s, stream: st, addr: addr, verdict: v, scheme: scheme, id: l.number(), began: l.since()}
	j.moved = j.began
	push(&s.joined, j)
	s.enter(addr.Addr())
	// What the stream has carried before an upgrade has been counted by exchanges.
	j.sent, j.received = st.Bytes()
	j.carried = [2]uint64{j.received, j.sent}
	forward.Splice(c, st, j.over)
	return j
}

// logs has the end of j logged, as that of r. It is called right after join.
func (j *splice) logs(r record) {
	if j.service.session.relay.AccessLog == nil {
		return
	}
	sent, received := j.stream.Bytes()
	r.received -= received
	r.sent -= sent
	j.record = &r
}

// resetUnseen ends the visitors of tcp services whose stream the private relay has given
// no sign of: it may have been dead when they came, and if they try again they come to
// another one.
func (s *service) resetUnseen() {
	for j := s.joined; j != nil; j = j.after {
		if j.service == s && !j.stream.Confirmed() {
			j.stream.Abort(&tunnel.StreamError{Code: tunnel.CodeCancelled})
		}
	}
}

// over is the end of both connection and stream.
func (j *splice) over(err error) {
	s := j.service
	s.drop(j)
	s.leave(j.addr.Addr())
	j.settle(s.session.loop.since())
	s.session.relay.admission.leave(j.addr.Addr(), j.verdict)
	w := wordOf(err)
	if j.kicked {
		w = wordKicked
	}
	s.errors[w]++
	if r := j.record; r != nil {
		r.received += j.received
		r.sent += j.sent
		r.err = w
		s.session.loop.log(r)
	}
}
