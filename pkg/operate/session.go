package operate

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

const (
	// A link is dead when nothing came for pingInterval, and nothing for pingTimeout after a ping. A person is waiting.
	pingInterval = 3 * time.Second
	pingTimeout  = 3 * time.Second

	// The wait before another try to reach the relay grows from minWait to maxWait, or to idleWait if nothing is open.
	minWait  = 100 * time.Millisecond
	maxWait  = 3 * time.Second
	idleWait = 30 * time.Second

	// watchInterval is how often it is looked whether the machine has slept or moved. It has slept if the clock went on by
	// more than sleepTime beyond that.
	watchInterval = 2 * time.Second
	sleepTime     = 4 * time.Second

	window = 4 << 20
	budget = 64 << 20
)

var (
	errSlept = errors.New("the machine has slept")
	errMoved = errors.New("the machine has left the network")
	errOver  = errors.New("the relay has ended the session")

	errForgotten = errors.New("the relay has restarted, or has not heard of this machine for too long")
)

// session is the tunnel to the streams of one site. It is owned by the loop.
//
// A session that was lost at the relay, or drained, takes no streams any more: the client makes another one for those.
type session struct {
	client *Client // immutable
	loop   *evloop.Loop
	site   string

	tun        *link.Session // nil until the first link is there
	id, secret string        // to resume it
	link       *link.Link    // or nil
	local      netip.Addr    // of the link; the zero value if it is not known
	told       bool          // OnLink was told that the link is lost
	cancel     context.CancelFunc
	attempt    int                   // the dial under way, or 0
	attempts   int                   // dials so far
	tries      int                   // dials that failed in a row
	retry      evloop.Timer          // until the next dial
	waiting    bool                  // retry is armed
	watch      evloop.Timer          // see watchInterval
	wall       time.Time             // the clock at the last look
	here       []net.Addr            // and the machine's addresses
	lookingUp  bool                  // for them
	leaving    bool                  // it takes no more streams
	dismissed  bool                  // the relay has ended it: the dial under way finds out why
	patient    bool                  // the relay was reached before: what fails now may be a restart
	problem    error                 // of the last dial
	why        atomic.Pointer[error] // for its end; read by anybody
	over       bool
	openings   map[*opening]struct{} // that wait for the first link
}

// opening is a stream that somebody wants.
type opening struct {
	service string
	done    func(*tunnel.Stream, error) // on the loop; once
}

// open opens a stream, as soon as there is a session at the relay.
func (s *session) open(o *opening) {
	if s.tun != nil {
		o.done(s.stream(o.service))
		if s.link == nil && s.waiting { // somebody is here, so the network may be back
			s.dial()
		}
		return
	}
	if s.openings == nil {
		s.openings = make(map[*opening]struct{})
	}
	s.openings[o] = struct{}{}
	if s.attempt == 0 && !s.waiting {
		s.dial()
	}
}

// giveUp forgets an opening whose caller has gone, and returns what it has waited for.
func (s *session) giveUp(o *opening) error {
	delete(s.openings, o)
	if s.tun == nil && len(s.openings) == 0 {
		s.end(context.Canceled)
	}
	return s.problem
}

func (s *session) stream(service string) (*tunnel.Stream, error) {
	header, err := relay.Header{Kind: relay.KindOperate, Service: service}.Append(nil)
	if err != nil {
		return nil, &Error{relay.OperateNotFound, err.Error()}
	}
	return s.tun.Open(header)
}

// dial makes a link, unless that is under way.
func (s *session) dial() {
	if s.attempt != 0 || s.over {
		return
	}
	s.retry.Stop()
	s.waiting = false
	ctx, cancel := context.WithCancel(context.Background())
	s.attempts++
	n, c := s.attempts, s.client
	s.attempt, s.cancel = n, cancel
	var local atomic.Pointer[netip.Addr]
	link.Dial(ctx, s.loop, link.DialConfig{
		Address: c.Address, RootCAs: c.RootCAs, Plain: c.Plain, Site: s.site, Token: c.Token,
		Session: s.id, Resume: s.secret, Software: c.Software,
		Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			dial := c.DialRelay
			if dial == nil {
				dial = new(net.Dialer).DialContext
			}
			nc, err := dial(ctx, network, address)
			if err == nil {
				a := localOf(nc)
				local.Store(&a)
			}
			return nc, err
		},
	}, func(l *link.Link, w relay.Welcome, err error) {
		cancel()
		if s.attempt != n {
			if err == nil {
				l.Close(context.Canceled)
			}
			return
		}
		s.attempt, s.cancel = 0, nil
		if err != nil {
			s.failed(err)
			return
		}
		if a := local.Load(); a != nil {
			s.local = *a
		}
		s.linked(l, w)
	})
}

// linked is told that there is another link.
func (s *session) linked(l *link.Link, w relay.Welcome) {
	if s.over {
		l.Close(nil)
		return
	}
	if s.tun != nil && !w.Resumed { // the relay has restarted, or has waited for too long
		s.replace(l, w)
		return
	}
	s.tries, s.problem = 0, nil
	s.client.reached[s.site] = true
	if s.tun == nil {
		s.id, s.secret = w.Session, w.Resume
		s.tun = link.NewSession(s.loop, tunnel.Config{
			Client: true, MaxWindow: window, Budget: budget, ResumeTimeout: resumeTimeout,
			PingInterval: pingInterval, PingTimeout: pingTimeout,
			OnGoAway: s.retire, // new streams are for another session, on what comes after this relay
			OnClose:  func(error) { s.end(errOver) },
		})
		s.look()
	}
	old := s.link
	s.link = l
	l.Serve(s.tun, tunnel.RoleInteractive, s.lost) // supersedes old
	if old != nil {
		old.Close(tunnel.ErrSuperseded)
	}
	s.tell(nil)
	openings := s.openings
	s.openings = nil
	for o := range openings {
		o.done(s.stream(o.service))
	}
}

// replace ends the session, which the relay does not know any more, and goes on with the one that it has made instead.
func (s *session) replace(l *link.Link, w relay.Welcome) {
	c := s.client
	next := &session{client: c, loop: s.loop, site: s.site, attempts: s.attempts, local: s.local, patient: true}
	if s.dismissed {
		s.end(errOver)
	} else {
		s.end(errForgotten)
	}
	if c.sessions[s.site] != nil { // somebody has begun another one, in the end of a stream
		l.Close(nil)
		return
	}
	c.sessions[s.site] = next
	c.all[next] = true
	next.linked(l, w)
}

// tell tells whoever wants to know of the link, once of each change.
func (s *session) tell(err error) {
	if lost := err != nil; lost != s.told || !lost {
		s.told = lost
		if s.client.OnLink != nil {
			s.client.OnLink(s.site, err)
		}
	}
}

// failed is told that a dial led nowhere.
func (s *session) failed(err error) {
	refusal, refused := errors.AsType[*relay.Refusal](err)
	status, answered := errors.AsType[*websocket.StatusError](err)
	s.problem = explain(err)
	if s.tun == nil && !s.patient || refused && !refusal.Retry || answered && status.Code < 500 {
		s.end(s.problem)
		return
	}
	if s.dismissed {
		s.end(errOver)
		return
	}
	s.tell(s.problem)
	if s.link != nil { // it lives after all, see look
		return
	}
	s.wait()
}

// wait waits for the next dial.
func (s *session) wait() {
	if s.over || s.attempt != 0 || s.waiting {
		return
	}
	most := idleWait
	if s.tun == nil || s.tun.Stats().Streams > 0 {
		most = maxWait
	}
	d := min(minWait<<min(s.tries, 16), most)
	s.tries++
	s.waiting = true
	s.loop.Arm(&s.retry, d, s.dial)
}

// explain makes an *Error of what a relay has to say, where it is one to act on.
func explain(err error) error {
	if r, ok := errors.AsType[*relay.Refusal](err); ok {
		code := relay.OperateInternal
		switch r.Code {
		case relay.RefuseForbidden:
			code = relay.OperateForbidden
		case relay.RefuseUnknownSite:
			code = CodeNoSite
		case relay.RefuseBusy:
			code = relay.OperateOverload
		case relay.RefuseDraining:
			code = relay.OperateAway
		}
		return &Error{code, r.Message}
	}
	if s, ok := errors.AsType[*websocket.StatusError](err); ok {
		switch s.Code {
		case 401:
			return &Error{CodeToken, "the relay does not accept the token"}
		case 403:
			return &Error{relay.OperateForbidden, "the relay does not let operators in here: without TLS, it does on its own machine alone"}
		}
		return &Error{CodeNoRelay, "what answers there is no public relay, or an older one: it " + s.Error()}
	}
	return err
}

// lost is told of the end of a link, after the tunnel.
func (s *session) lost(l *link.Link, err error) {
	if s.link != l || s.over {
		return
	}
	s.link = nil
	if closed, ok := errors.AsType[*link.CloseError](err); !ok || closed.Status != link.StatusOver {
		s.tell(err)
	} else if s.leaving {
		s.end(errOver)
		return
	} else { // it does not say why, and refuses another link if that is due to the token
		s.dismissed = true
	}
	s.tries = 0
	s.dial()
}

// retire has new streams go to another session.
func (s *session) retire() {
	s.leaving = true
	if s.client.sessions[s.site] == s {
		delete(s.client.sessions, s.site)
	}
}

// leave ends the session with its last stream.
func (s *session) leave() {
	s.retire()
	if s.link == nil || s.tun == nil {
		s.end(ErrClosed)
		return
	}
	s.tun.GoAway()
}

// end ends the session now, and its streams.
func (s *session) end(err error) {
	if s.over {
		return
	}
	quiet := s.leaving || s.tun == nil
	s.over = true
	s.why.Store(&err)
	s.retire()
	delete(s.client.all, s)
	s.retry.Stop()
	s.watch.Stop()
	if s.cancel != nil {
		s.cancel()
		s.attempt, s.cancel = 0, nil
	}
	if s.tun != nil {
		s.tun.Close(nil) // the link says so to the relay
	}
	openings := s.openings
	s.openings = nil
	for o := range openings {
		o.done(nil, err)
	}
	if !quiet && s.client.OnLink != nil {
		s.client.OnLink(s.site, &OverError{err})
	}
}

// look looks whether the machine has slept, or has other addresses than before.
func (s *session) look() {
	if s.over {
		return
	}
	now := time.Now().Round(0) // the clock on the wall: the other one stands still in sleep, on most systems
	slept := !s.wall.IsZero() && now.Sub(s.wall) > watchInterval+sleepTime
	s.wall = now
	s.loop.Arm(&s.watch, watchInterval, s.look)
	if slept {
		s.redial(errSlept)
	}
	if s.lookingUp {
		return
	}
	s.lookingUp = true
	addresses := s.client.addresses
	if addresses == nil {
		addresses = net.InterfaceAddrs
	}
	var here []net.Addr
	var err error
	s.loop.Go(
		func() { here, err = addresses() },
		func() {
			s.lookingUp = false
			if err == nil && !s.over {
				s.moved(here)
			}
		})
}

// moved is told the machine's addresses.
func (s *session) moved(here []net.Addr) {
	same := slices.EqualFunc(here, s.here, func(a, b net.Addr) bool { return a.String() == b.String() })
	first := s.here == nil
	s.here = here
	if same || first {
		return
	}
	switch {
	case s.link == nil && s.waiting:
		s.tries = 0
		s.dial()
	case s.link != nil && s.local.IsValid() && !slices.ContainsFunc(here, func(a net.Addr) bool {
		n, ok := a.(*net.IPNet)
		if !ok {
			return false
		}
		ip, _ := netip.AddrFromSlice(n.IP)
		return ip.Unmap() == s.local.WithZone("")
	}):
		s.redial(errMoved)
	}
}

// redial makes another link at once. The one that is there, which is most likely dead, stays until then.
func (s *session) redial(why error) {
	s.tries = 0
	if s.attempt != 0 { // it may hang on the network that was
		s.cancel()
		s.attempt, s.cancel = 0, nil
	}
	s.tell(why)
	s.dial()
}
