package private

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

const (
	// The least and the longest wait before a try, see backoff. While streams wait for a link, people wait for
	// the streams. A QUIC link beside others that work is a wish: where UDP is blocked it is as a rule blocked
	// for good.
	minWait        = 100 * time.Millisecond
	maxWait        = 30 * time.Second
	maxWaitStreams = time.Second
	maxWaitWish    = 5 * time.Minute

	// stableLink is how long a link must have lived for the next one to be dialled at once.
	stableLink = 5 * time.Second
)

// A state is what a line is doing.
//
//	idle     → dialling  another line has a link, so there is a session to join
//	dialling → linked    the relay took the site
//	dialling → waiting   the relay was not reached, or refused for now
//	dialling → idle      no link is left: the first line dials, alone
//	waiting  → dialling  the wait is over
//	waiting  → linked    the wait is over, and the suspect link has come back to life
//	waiting  → idle      no link is left, or the other lines do
//	linked   → waiting   the link was lost
//	linked   → dialling  the link is suspect: its replacement is dialled while it may still live
type state uint8

const (
	idle state = iota
	dialling
	linked
	waiting
)

func (s state) String() string { return [...]string{"idle", "dialling", "linked", "waiting"}[s] }

// line is one place for a link of a peer's session, over the links that come and go. It belongs to the
// peer's loop.
type line struct {
	peer      *peer // immutable, as is transport
	transport link.Transport
	role      tunnel.Role // that the link has, or the next one will have

	state   state
	attempt *attempt     // dialling
	link    *link.Link   // linked, or suspect; nil: there is none
	since   time.Time    // of link, or when there was one last
	sent    uint64       // bytes, by link at the last look
	retry   evloop.Timer // waiting
	tries   int          // that failed in a row
	problem string       // why there is no link, as last logged
}

// attempt is one dial. One that is not its line's any more is of no use.
type attempt struct {
	cancel  context.CancelFunc
	session string // that it is to join, or "" for a new one
	choice  string // that it tells
}

// start dials, when it is the line's turn.
func (ln *line) start() {
	p := ln.peer
	switch {
	case ln.link != nil && !ln.suspect():
		ln.state = linked
		return
	case !p.takesTurn(ln):
		ln.state = idle
		return
	}
	ctx, cancel := context.WithCancel(context.Background())
	a := &attempt{cancel: cancel, session: p.id, choice: p.choice.text}
	ln.state, ln.attempt = dialling, a
	r := p.relay
	link.Dial(ctx, p.loop, link.DialConfig{
		Address: p.address, RootCAs: r.RootCAs, Dial: r.Dial, Transport: ln.transport,
		Site: r.Site, Key: r.Key, Software: r.Software, Machine: r.Machine, Process: r.process,
		Session: p.id, Resume: p.secret, Role: ln.role, Links: p.linksBeside(ln), Choice: p.choice.text,
		OnHint: p.hint,
	}, func(l *link.Link, w relay.Welcome, err error) {
		cancel()
		if ln.attempt == a {
			ln.attempt = nil
			ln.dialled(a, l, w, err)
		} else if err == nil {
			l.Close(errGivenUp) // without a word about the session: it may go on
		}
	})
	p.setStatus()
}

// stats finds what a session knows of the link among what it knows of all. It is the zero value if that is nothing.
func (ln *line) stats(links []tunnel.LinkStats) tunnel.LinkStats {
	if ln.link != nil {
		for _, l := range links {
			if l.Link == tunnel.Link(ln.link) {
				return l
			}
		}
	}
	return tunnel.LinkStats{}
}

// suspect reports whether the link is suspect at the moment, or none of the session's any more.
func (ln *line) suspect() bool {
	l := ln.stats(ln.peer.session.Links())
	return l.Link == nil || l.Suspect
}

var errGivenUp = errors.New("the dial was given up")

// rest ends a dial or a wait: another line has its turn.
func (ln *line) rest() {
	if ln.attempt != nil {
		ln.attempt.cancel()
		ln.attempt = nil
	}
	ln.retry.Stop()
	ln.state = idle
}

func (ln *line) dialled(a *attempt, l *link.Link, w relay.Welcome, err error) {
	p := ln.peer
	switch {
	case err != nil:
		ln.refused(err)
		return
	case a.session != p.id, w.Resumed && w.Session != p.id:
		l.Close(nil) // it has joined a session that has ended here meanwhile
		ln.again()
		return
	case !w.Resumed && p.session != nil && !p.forgotten(ln):
		l.Close(nil)
		ln.report("no link", errStranger)
		ln.again()
		return
	}
	if !w.Resumed && !p.begin(w) {
		l.Close(nil)
		return
	}
	old := ln.link
	ln.state, ln.link, ln.since, ln.sent, ln.problem = linked, l, p.now(), 0, ""
	l.OnTuned = ln.tuned
	if ln.wish() {
		p.choice.problem = ""
	}
	p.relay.log.Info("link up", "relay", p.address, "transport", ln.transport.String(), "role", ln.role.String(), "resumed", w.Resumed, "software", w.Software)
	l.Serve(p.session, ln.role, ln.lost)
	if a.choice != p.choice.text {
		p.notify()
	}
	if old != nil {
		old.Close(tunnel.ErrSuperseded)
	}
	p.linkUp(w)
}

// tuned is told what was done about a path that loses. That nothing can be is the same for all links.
func (ln *line) tuned(what string, err error) {
	r := ln.peer.relay
	log := r.log.With("relay", ln.peer.address, "role", ln.role.String(), "what", what)
	if err != nil {
		r.slowControl.Do(func() { log.Warn("path", "err", err) })
	} else {
		log.Info("path")
	}
}

// errStranger is what a line finds that reaches another relay than the others do.
var errStranger = errors.New("the relay at the end of it does not know the session that lives on the other links: does the address stand for several relays? Each wants an entry in the configuration of its own")

// lost is told that the link is gone, after the session.
func (ln *line) lost(l *link.Link, err error) {
	p := ln.peer
	if ln.link != l {
		return // it was replaced
	}
	ln.unlink()
	closed, ok := errors.AsType[*link.CloseError](err)
	switch {
	case ok && closed.Status == link.StatusOver && p.session != nil:
		p.end()
	case err != nil && p.session != nil && !p.ending:
		ln.report("link lost", err)
		if ln.wish() && p.choice.quic {
			p.choose(false)
		}
	}
	switch {
	case p.links() == 0 && p.ending:
		p.atEnd()
	case p.links() == 0:
		p.alone()
	case ln.state == idle && !p.ending:
		ln.wait()
	}
}

// wish reports whether the line is for a QUIC link beside WebSocket links, which are enough.
func (ln *line) wish() bool { return ln.transport != ln.peer.lines[0].transport }

// setRole changes what the line is for. A link that is being dialled would come with the old role, and take the place
// of the one that has it now: it is dialled anew.
func (ln *line) setRole(role tunnel.Role) {
	ln.role = role
	if ln.link != nil {
		ln.peer.session.SetRole(ln.link, role)
	}
	if ln.attempt != nil {
		ln.rest()
		ln.start()
	}
}

// unlink forgets the link, and returns it or nil.
func (ln *line) unlink() *link.Link {
	l := ln.link
	if l == nil {
		return nil
	}
	ln.link = nil
	if ln.state == linked {
		ln.state = idle
	}
	now := ln.peer.now()
	if now.Sub(ln.since) >= stableLink {
		ln.tries = 0
	}
	ln.since = now
	return l
}

// again tries again after a dial that led nowhere.
func (ln *line) again() {
	switch p := ln.peer; {
	case p.links() > 0:
		ln.wait()
	case ln == p.lines[0]:
		p.alone()
	default:
		ln.rest()
	}
}

// refused is told that a try has failed.
func (ln *line) refused(err error) {
	p := ln.peer
	var refusal *relay.Refusal
	if errors.As(err, &refusal) && !refusal.Retry {
		err = fmt.Errorf("%s: %w%s", p.address, err, advice(refusal.Code))
		if len(p.relay.Relays) > 1 {
			p.relay.log.Error("refused for good; the other relays go on", "err", err)
		}
		p.finish(err)
		return
	}
	if ln.wish() {
		p.choice.problem = reason(err)
		if d, ok := errors.AsType[*link.DialError](err); ok && d.Hint != "" {
			p.choice.problem = d.Hint // what to do, as it is to fit into a sentence
		}
	}
	ln.report("no link", err)
	ln.again()
	if refusal == nil && ln == p.lines[0] && p.links() == 0 {
		p.help()
	}
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
func (ln *line) report(event string, err error) {
	p := ln.peer
	if problem := reason(err); ln.problem != problem {
		ln.problem = problem
		switch log := p.relay.log.With("relay", p.address, "transport", ln.transport.String(), "role", ln.role.String(), "err", err); {
		case p.links() == 0:
			log.Warn(event + ", trying again")
		case ln.wish() && p.choice.problem != "":
			p.choose(false) // says it
		default:
			log.Info(event + ", trying again; the other links go on")
		}
	}
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
func (ln *line) wait() {
	d := ln.delay()
	ln.tries++
	if d == 0 {
		ln.start()
		return
	}
	ln.state = waiting
	ln.peer.loop.Arm(&ln.retry, d, ln.start)
}

// delay is the wait before the next try.
func (ln *line) delay() time.Duration {
	if ln.tries == 0 {
		return 0
	}
	most := maxWait
	switch p := ln.peer; {
	case p.session != nil && p.links() == 0:
		most = maxWaitStreams
	case ln.wish():
		most = maxWaitWish
	}
	return backoff(minWait, most, ln.tries-1)
}

// backoff is a wait that doubles with each try that has failed, from least to most, and is jittered down to its half.
func backoff(least, most time.Duration, failed int) time.Duration {
	d := min(least<<min(failed, 16), most)
	return d/2 + rand.N(d/2)
}
