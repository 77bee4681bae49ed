package private

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

const (
	// The wait before a try doubles with each failed one, from minWait to maxWait, and is jittered down to
	// its half. While streams wait for a link, people wait for the streams.
	minWait        = 100 * time.Millisecond
	maxWait        = 30 * time.Second
	maxWaitStreams = time.Second

	// statusNormal closes a link whose session is over (rfc6455#section-7.4.1).
	statusNormal = 1000

	// stableLink is how long a link must have lived for the next one to be dialled at once.
	stableLink = 5 * time.Second
)

// A state is what a peer is doing.
//
//	dialling → linked    the relay took the site; the session is new, or goes on
//	dialling → waiting   the relay was not reached, or refused for now
//	linked   → dialling  the link was lost
//	linked   → waiting   the link was lost soon after it was made
//	waiting  → dialling  the wait is over
//	any      → over      drained, or refused for good
type state uint8

const (
	dialling state = iota
	linked
	waiting
	over
)

// peer is the session with one public relay, over the links that come and go.
type peer struct {
	relay   *Relay       // immutable, as is the rest of this group
	address string       // host:port
	loop    *evloop.Loop // owns all of the following
	ended   chan<- error // gets one value, when the state becomes over

	state      state
	cancelDial context.CancelFunc // dialling
	link       *link.Link         // linked
	since      time.Time          // linked: when it was made
	retry      evloop.Timer       // waiting
	tries      int                // that failed in a row

	flushFunc  func()          // p.flush, made once
	session    *tunnel.Session // nil before the first link, and when it is over
	id, secret string          // to resume it
	tick       evloop.Timer    // its next Advance
	announcing bool            // an announcement is not answered yet
	stale      bool            // the services have changed since
	draining   bool
	deadline   evloop.Timer // of the drain
	problem    string       // why there is no link, as last logged

	status atomic.Pointer[PeerStatus] // written by loop, read by Relay.Status
}

func (p *peer) now() time.Time { return p.loop.Now() }

// start begins to dial, from waiting or as the first thing.
func (p *peer) start() {
	p.state = dialling
	ctx, cancel := context.WithCancel(context.Background())
	p.cancelDial = cancel
	link.Dial(ctx, p.loop, link.DialConfig{
		Address: p.address, RootCAs: p.relay.RootCAs, Dial: p.relay.Dial,
		Site: p.relay.Site, Key: p.relay.Key, Software: p.relay.Software,
		Session: p.id, Resume: p.secret,
	}, p.dialled)
}

func (p *peer) dialled(l *link.Link, w relay.Welcome, err error) {
	p.cancelDial()
	switch {
	case p.state == over:
		if err == nil {
			l.Close(nil)
		}
		return
	case err != nil:
		p.refused(err)
		return
	case w.Resumed && p.session == nil:
		// It timed out here while the relay still had it.
		l.Close(nil)
		p.wait()
		return
	}
	if p.session != nil && !w.Resumed {
		p.relay.log.Warn("session lost: the relay has forgotten it, its streams are closed", "relay", p.address)
		p.forget()
	}
	fresh := p.session == nil
	if fresh && p.draining {
		l.Close(nil)
		p.finish(nil)
		return
	}
	p.state, p.link, p.since, p.problem = linked, l, p.now(), ""
	if fresh {
		p.id, p.secret = w.Session, w.Resume
		p.session = p.newSession()
	}
	p.setStatus()
	p.relay.log.Info("link up", "relay", p.address, "resumed", w.Resumed, "software", w.Software)
	l.Serve(p.session, tunnel.RoleInteractive, p.lost)
	if fresh {
		p.announce()
	}
}

func (p *peer) newSession() *tunnel.Session {
	if p.flushFunc == nil {
		p.flushFunc = p.flush
	}
	var s *tunnel.Session
	s = tunnel.New(tunnel.Config{
		Client: true,
		Wake:   func() { p.loop.AfterTurn(p.flushFunc) },
		Accept: p.accept,
		OnClose: func(err error) {
			if p.session == s {
				p.sessionOver(err)
			}
		},
	}, p.now())
	return s
}

// forget drops the session and closes its streams.
func (p *peer) forget() {
	s := p.session
	p.session, p.id, p.secret = nil, "", ""
	p.announcing, p.stale = false, false
	s.Close(nil)
}

// sessionOver is told that the session has ended by itself: it was drained by either side, or it had no link
// for too long.
func (p *peer) sessionOver(err error) {
	p.session, p.id, p.secret = nil, "", ""
	p.announcing, p.stale = false, false
	if p.draining {
		p.finish(nil)
		return
	}
	p.relay.log.Info("session over", "relay", p.address, "err", err)
	if p.state == linked {
		p.link.Close(nil)
	}
}

// flush sends what the session has, at the end of a turn.
func (p *peer) flush() {
	if p.session != nil {
		p.session.Flush(p.now())
		p.arm()
	}
}

func (p *peer) advance() {
	if p.session != nil {
		p.session.Advance(p.now())
		p.arm()
	}
}

func (p *peer) arm() {
	if p.session == nil {
		return
	}
	if next := p.session.Next(); !next.IsZero() {
		p.loop.Arm(&p.tick, next.Sub(p.now()), p.advance)
	}
}

// lost is told that the link is gone, after the session.
func (p *peer) lost(l *link.Link, err error) {
	if p.link != l {
		return
	}
	p.link = nil
	switch closed, ok := errors.AsType[*link.CloseError](err); {
	case ok && closed.Status == statusNormal && p.session != nil:
		p.relay.log.Info("session ended by the relay", "relay", p.address)
		p.forget()
	case err != nil:
		p.report("link lost", err)
	}
	p.arm()
	if p.now().Sub(p.since) >= stableLink {
		p.tries = 0
	}
	p.wait()
}

// refused is told that a try has failed.
func (p *peer) refused(err error) {
	var refusal *relay.Refusal
	if errors.As(err, &refusal) && !refusal.Retry {
		err = fmt.Errorf("%s: %w%s", p.address, err, advice(refusal.Code))
		if len(p.relay.Relays) > 1 {
			p.relay.log.Error("refused for good; the other relays go on", "err", err)
		}
		p.finish(err)
		return
	}
	p.report("no link", err)
	p.wait()
}

// advice is what to do about a refusal that waiting does not heal.
func advice(code relay.RefusalCode) string {
	switch code {
	case relay.RefuseUnknownSite:
		return ": check site in the configuration, or join with a token from `tunnelctl site add`"
	case relay.RefuseBadKey:
		return ": check key in the configuration, or join again with a new token"
	}
	return "" // the others say it themselves
}

// report logs why there is no link, once until the reason changes.
func (p *peer) report(event string, err error) {
	problem := reason(err)
	if p.problem != problem {
		p.relay.log.Warn(event+", trying again", "relay", p.address, "err", err)
	}
	p.problem = problem
	p.setStatus()
}

// reason is err without what is different at each try, such as local ports.
func reason(err error) string {
	var op *net.OpError
	if errors.As(err, &op) {
		return op.Op + ": " + op.Err.Error()
	}
	return fmt.Sprint(err)
}

// wait dials again: at once the first time, then later and later.
func (p *peer) wait() {
	p.state = waiting
	if p.draining && !p.busy() {
		p.finish(nil)
		return
	}
	p.loop.Arm(&p.retry, p.delay(), p.start)
	p.tries++
}

// delay is the wait before the next try.
func (p *peer) delay() time.Duration {
	if p.tries == 0 {
		return 0
	}
	d := min(minWait<<min(p.tries-1, 16), maxWait)
	if p.session != nil {
		d = min(d, maxWaitStreams)
	}
	return d/2 + rand.N(d/2)
}

// drain ends the session with its last stream, or with the timeout.
func (p *peer) drain() {
	if p.state == over {
		return
	}
	p.draining = true
	if p.link == nil && !p.busy() { // there is nobody to take leave of
		p.finish(nil)
		return
	}
	p.loop.Arm(&p.deadline, p.relay.DrainTimeout, p.cut)
	p.session.GoAway()
}

// busy reports whether streams are open.
func (p *peer) busy() bool { return p.session != nil && p.session.Stats().Streams > 0 }

// cut ends the streams that have not finished in time.
func (p *peer) cut() {
	if n := p.session.Stats().Streams; n > 0 {
		p.relay.log.Warn("drain timeout: streams are cut", "relay", p.address, "streams", n)
	}
	p.session.Close(nil) // then sessionOver
}

// finish is the end of the peer.
func (p *peer) finish(err error) {
	if p.state == dialling {
		p.cancelDial()
	}
	l := p.link
	p.state, p.link = over, nil
	p.retry.Stop()
	p.tick.Stop()
	p.deadline.Stop()
	if err != nil {
		p.problem = err.Error()
	}
	p.setStatus()
	if p.session != nil {
		p.forget()
	}
	if l != nil {
		l.Close(nil)
	}
	p.ended <- err
}

func (p *peer) setStatus() {
	p.status.Store(&PeerStatus{Address: p.address, Linked: p.state == linked, Problem: p.problem})
}
