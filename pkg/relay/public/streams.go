package public

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tunnel"
)

// What visitors and operators have open, for operators to see and to end. It is kept by the loops for their own
// work: a look is one post to each, which copies the newest of it, and no byte waits for a lock.

// maxStreams is how many streams a look shows, and defaultStreams how many if nothing is said.
const maxStreams, defaultStreams = 10000, 1000

// Stream is something that is open: a connection, a request over HTTP that is under way, a flow, a player of a
// camera, or a file on its way.
type Stream struct {
	ID             string // for KickStream; that of a request is its Request.ID afterwards
	Site, Service  string
	Session        string // short ID, as SessionStatus has it
	Scheme         string // "https", "wss", "tcp", "tls", "udp", "rtsp", "tftp", "operate" and so on: how it came in
	Host           string // that was asked for; "" if there is none
	Remote         netip.AddrPort
	Operator       string // who has opened it; "": it is a visitor's
	Since          time.Time
	Received, Sent uint64        // bytes from the visitor, and to it
	Idle           time.Duration // since something has moved, to the second or so
	State          string        // "open", "request" (which is coming in), "waiting" (for the server), "answer", or "suspended" (the site has no link)
}

// Filter says what a list is to have.
type Filter struct {
	Site, Service string // "": all
	Limit         int    // the newest so many; 0: the default of the list, and no more than its bound
}

// takes reports whether what is of that site and service is in the list.
func (f Filter) takes(site, service string) bool {
	return (f.Site == "" || f.Site == site) && (f.Service == "" || f.Service == service)
}

// limit is Limit within its bounds.
func (f Filter) limit(usual, most int) int {
	if f.Limit <= 0 {
		return usual
	}
	return min(f.Limit, most)
}

// open is something that is open, on its loop.
type open interface {
	// sequence is its number, which no other thing on any loop has or had, and since is when it began, in the loop's time.
	sequence() uint64
	since() int64

	// show is all but ID and Since.
	show(now int64) Stream

	// kick ends it at once, because an operator wants it so.
	kick()
}

var errKicked = errors.New("an operator has ended it")

// number returns a number that nothing on any loop has had. They begin somewhere else each time that the relay starts,
// so that what is remembered of another run finds nothing.
func (l *loop) number() uint64 {
	l.numbers++
	return (l.relay.salt+l.numbers)*uint64(len(l.relay.loops)) + uint64(l.index)
}

// loopOfNumber is the loop whose number it is.
func (r *Relay) loopOfNumber(n uint64) *loop { return r.loops[n%uint64(len(r.loops))] }

// formatID and parseID turn numbers into IDs and back.
func formatID(kind byte, n uint64) string {
	return string(strconv.AppendUint([]byte{kind}, n, 36))
}

func parseID(id string) (kind byte, n uint64, ok bool) {
	if len(id) < 2 || len(id) > 14 {
		return 0, 0, false
	}
	n, err := strconv.ParseUint(id[1:], 36, 64)
	return id[0], n, err == nil && formatID(id[0], n) == id
}

// kindOf is the letter that IDs of such things begin with.
func kindOf(o open) byte {
	switch o.(type) {
	case *exchange:
		return 'r'
	case *flow:
		return 'f'
	case *player:
		return 'p'
	case *fileVisit:
		return 't'
	}
	return 'c'
}

// each calls f for what is open of t, the newest of its kind first, until f says that it wants no more of that kind.
func (t *tally) each(f func(open) bool) {
	for ex := t.exchanges; ex != nil; ex = ex.after {
		if !f(ex) {
			break
		}
	}
	for j := t.joined; j != nil; j = j.after {
		if !f(j) {
			break
		}
	}
	for fl := t.flowing; fl != nil; fl = fl.after {
		if !f(fl) {
			break
		}
	}
	for v := t.tftp.visits; v != nil; v = v.after {
		if !f(v) {
			break
		}
	}
}

// everything calls f for each tally of the groups that are of this loop, those of services that are gone and have
// visitors included.
func (l *loop) everything(groups []*group, f func(g *group, name string, t *tally)) {
	for _, g := range groups {
		if g.loop != l {
			continue
		}
		for name, t := range g.tallies {
			f(g, name, t)
		}
		g.sweep()
		for _, o := range g.gone {
			f(g, o.name, o.tally)
		}
	}
}

// orphan is a tally whose service is gone, and its visitors are not.
type orphan struct {
	*tally
	name string
}

// sweep forgets the orphans that nothing is open of.
func (g *group) sweep() {
	g.gone = slices.DeleteFunc(g.gone, func(o orphan) bool {
		over := !o.open()
		if over {
			o.recent.free(g.loop)
		}
		return over
	})
}

// open reports whether something is.
func (t *tally) open() bool {
	return t.exchanges != nil || t.joined != nil || t.flowing != nil || t.tftp.visits != nil
}

// newest gathers the newest of what it is given.
type newest struct {
	limit int
	list  []open
	floor int64 // what began before it is too old
}

// add takes o, unless there are enough that began later: then it reports false.
func (n *newest) add(o open) bool {
	if o.since() < n.floor {
		return false
	}
	if n.list = append(n.list, o); len(n.list) >= 2*n.limit {
		n.cut()
	}
	return true
}

func (n *newest) cut() {
	slices.SortFunc(n.list, func(a, b open) int { return cmp.Compare(b.since(), a.since()) })
	if len(n.list) > n.limit {
		clear(n.list[n.limit:])
		n.list = n.list[:n.limit]
		n.floor = n.list[n.limit-1].since()
	}
}

// streams is the loop's part of Streams.
func (l *loop) streams(groups []*group, f Filter, limit int) []Stream {
	found := newest{limit: limit, floor: -1 << 63}
	l.everything(groups, func(g *group, name string, t *tally) {
		if f.takes(g.site, name) {
			t.each(found.add)
		}
	})
	for p := l.players; p != nil; p = p.after {
		if s := p.service; s != nil && f.takes(s.session.site, s.name) {
			found.add(p)
		}
	}
	found.cut()
	now := l.since()
	list := make([]Stream, len(found.list))
	for i, o := range found.list {
		one := o.show(now)
		one.ID, one.Since = formatID(kindOf(o), o.sequence()), l.start.Add(time.Duration(o.since()))
		list[i] = one
	}
	return list
}

// ask has f answer on each loop. If ctx ends before all have, the error is its own, and what there is comes with it.
func ask[T any](ctx context.Context, r *Relay, f func(l *loop) T) ([]T, error) {
	r.prepare()
	answers := make(chan T, len(r.loops))
	asked := 0
	for _, l := range r.loops {
		if l.Post(func() { answers <- f(l) }) {
			asked++
		}
	}
	list := make([]T, 0, asked)
	for range asked {
		select {
		case a := <-answers:
			list = append(list, a)
		case <-ctx.Done():
			return list, ctx.Err()
		}
	}
	return list, nil
}

// snapshot returns the groups that there are.
func (r *Relay) snapshot() []*group {
	r.mu.Lock()
	defer r.mu.Unlock()
	groups := make([]*group, 0, len(r.groups))
	for _, g := range r.groups {
		groups = append(groups, g)
	}
	return groups
}

// Streams returns what is open, the newest first: 1000 if f says nothing, and 10000 at most. It must not be called on a loop.
func (r *Relay) Streams(ctx context.Context, f Filter) ([]Stream, error) {
	limit := f.limit(defaultStreams, maxStreams)
	groups := r.snapshot()
	parts, err := ask(ctx, r, func(l *loop) []Stream { return l.streams(groups, f, limit) })
	if err != nil {
		return nil, err
	}
	list := slices.Concat(parts...)
	slices.SortStableFunc(list, func(a, b Stream) int { return b.Since.Compare(a.Since) })
	return list[:min(limit, len(list))], nil
}

// Visitor is an address with what is open from there.
type Visitor struct {
	Address        netip.Addr
	Streams        int
	Since          time.Time // when the oldest of them began
	Received, Sent uint64
	Services       []string // SITE/SERVICE
}

// Visitors returns the addresses with the most streams, of the newest 10000 streams: 1000 addresses if limit is 0. It must not be
// called on a loop.
func (r *Relay) Visitors(ctx context.Context, limit int) ([]Visitor, error) {
	streams, err := r.Streams(ctx, Filter{Limit: maxStreams})
	if err != nil {
		return nil, err
	}
	at := make(map[netip.Addr]int)
	var list []Visitor
	for _, s := range streams {
		if s.Operator != "" {
			continue
		}
		a := s.Remote.Addr().Unmap()
		i, known := at[a]
		if !known {
			i = len(list)
			at[a] = i
			list = append(list, Visitor{Address: a})
		}
		v := &list[i]
		v.Streams++
		v.Since = s.Since // they come the newest first
		v.Received += s.Received
		v.Sent += s.Sent
		if name := s.Site + "/" + s.Service; len(v.Services) < maxShown && !slices.Contains(v.Services, name) {
			v.Services = append(v.Services, name)
		}
	}
	slices.SortStableFunc(list, func(a, b Visitor) int { return cmp.Compare(b.Streams, a.Streams) })
	return list[:min(Filter{Limit: limit}.limit(defaultStreams, maxStreams), len(list))], nil
}

// ErrNoStream says that there is no stream of an ID, and ErrNoSession that there is no session of one.
var (
	ErrNoStream  = errors.New("no such stream: it may be over already")
	ErrNoSession = errors.New("no such session")
)

// KickStream ends a stream at once: a connection is reset, a request is cut. It must not be called on a loop.
func (r *Relay) KickStream(ctx context.Context, id string) (Stream, error) {
	r.prepare()
	kind, n, ok := parseID(id)
	if !ok {
		return Stream{}, fmt.Errorf("stream %q: %w", id, ErrNoStream)
	}
	groups := r.snapshot()
	l := r.loopOfNumber(n)
	parts, err := ask(ctx, r, func(on *loop) *Stream {
		if on != l && kind != 'p' { // players alone move, with their number
			return nil
		}
		return on.kick(groups, kind, n)
	})
	for _, s := range parts {
		if s != nil {
			return *s, nil
		}
	}
	if err != nil {
		return Stream{}, err
	}
	return Stream{}, fmt.Errorf("stream %q: %w", id, ErrNoStream)
}

// kick ends what has that number, and returns what it was, or nil.
func (l *loop) kick(groups []*group, kind byte, n uint64) *Stream {
	var found open
	is := func(o open) bool {
		if kindOf(o) != kind {
			return false
		}
		if o.sequence() == n {
			found = o
		}
		return found == nil
	}
	l.everything(groups, func(_ *group, _ string, t *tally) {
		if found == nil {
			t.each(is)
		}
	})
	for p := l.players; p != nil && found == nil; p = p.after {
		if p.service != nil {
			is(p)
		}
	}
	if found == nil {
		return nil
	}
	s := found.show(l.since())
	s.ID, s.Since = formatID(kind, n), l.start.Add(time.Duration(found.since()))
	found.kick()
	return &s
}

// KickSession ends a session at once, by its ID or the beginning of that: its links are cut and the connections of its
// visitors reset. The private relay comes back by itself, with a new session. It returns the site. It must not be called on a loop.
func (r *Relay) KickSession(ctx context.Context, id string) (site string, err error) {
	r.prepare()
	if id == "" {
		return "", fmt.Errorf("session %q: %w", id, ErrNoSession)
	}
	r.mu.Lock()
	var fit []*session
	for _, g := range r.groups {
		for _, s := range g.sessions {
			if strings.HasPrefix(s.id, id) {
				fit = append(fit, s)
			}
		}
	}
	r.mu.Unlock()
	switch len(fit) {
	case 0:
		return "", fmt.Errorf("session %q: %w", id, ErrNoSession)
	case 1:
	default:
		return "", fmt.Errorf("session %q: there are %d that begin so: give more of it", id, len(fit))
	}
	s, done := fit[0], make(chan struct{})
	if !s.loop.Post(func() {
		s.kick()
		close(done)
	}) {
		return "", errDraining
	}
	select {
	case <-done:
		return s.site, nil
	case <-ctx.Done():
		return "", ctx.Err()
	}
}

// kick ends the session, because an operator wants it so. Its links are told that it is over: if they were just cut, each of them would
// come back by itself for a session that is not there, and one of these would be left to stand by. On the loop.
func (s *session) kick() {
	if s.ended {
		return
	}
	s.relay.say(slog.LevelInfo, "session ended by an operator", s.site, "session", s.shortID(), "remote", s.remote)
	s.close(nil)
}

// state is that of a stream which is nothing but open.
func (s *service) state() string {
	if len(s.session.links) == 0 {
		return "suspended"
	}
	return "open"
}

// stream is what is the same for all that is open of s.
func (s *service) stream(scheme string, remote netip.AddrPort) Stream {
	return Stream{Site: s.session.site, Service: s.name, Session: s.session.shortID(), Scheme: scheme, Host: s.host, Remote: remote, State: s.state()}
}

func (ex *exchange) sequence() uint64 { return ex.id }
func (ex *exchange) since() int64     { return ex.began }

func (ex *exchange) show(now int64) Stream {
	s := ex.service.stream(ex.client.scheme(), ex.client.addr)
	if h := ex.heading; h.host > 0 {
		s.Host = string(h.text[h.method : h.method+h.host])
	}
	s.Received, s.Sent, s.Idle = ex.in, ex.out, time.Duration(now-ex.progress)
	s.Operator = ex.operator
	switch {
	case s.State != "open":
	case !ex.sent && !ex.answered:
		s.State = "request"
	case !ex.answered:
		s.State = "waiting"
	default:
		s.State = "answer"
	}
	return s
}

// kick ends ex: with an answer if there can be one, or else by a cut that the visitor notices.
func (ex *exchange) kick() {
	if !ex.answered {
		ex.fail(troubleKicked)
		return
	}
	f := ex.front
	ex.err = wordKicked
	ex.drop()
	f.abort()
}

func (j *splice) sequence() uint64 { return j.id }
func (j *splice) since() int64     { return j.began }

func (j *splice) show(now int64) Stream {
	j.settle(now)
	s := j.service.stream(j.scheme, j.addr)
	if l := j.label; l != nil {
		s.Host, s.Operator = cmp.Or(l.host, s.Host), l.operator
	}
	s.Received, s.Sent, s.Idle = j.received-j.carried[0], j.sent-j.carried[1], time.Duration(now-j.moved)
	return s
}

func (j *splice) kick() {
	j.kicked = true
	j.stream.Abort(&tunnel.StreamError{Code: tunnel.CodeCancelled})
}

func (f *flow) sequence() uint64 { return f.id }
func (f *flow) since() int64     { return f.began }

func (f *flow) show(int64) Stream {
	s := f.service.stream("udp", f.addr.Remote)
	s.Received, s.Sent, s.Idle = f.received, f.sent, f.flows.loop.Now().Sub(f.Last())
	if f.stream == nil {
		s.State = "waiting"
	}
	return s
}

// kick ends the flow. The visitor's next datagram begins another one: only a policy keeps somebody out.
func (f *flow) kick() {
	f.err = wordKicked
	f.end()
}

func (p *player) sequence() uint64 { return p.id }
func (p *player) since() int64     { return p.began }

func (p *player) show(now int64) Stream {
	s := p.service.stream(p.how, p.client.addr)
	s.Host = cmp.Or(p.host, s.Host)
	s.Received, s.Sent = p.received, p.sent
	if p.playing || len(p.sessions) > 0 { // frames come all the time; when the visitor takes none for long, check ends it
		s.Idle = time.Duration(now - max(p.heard, p.moved))
	} else {
		s.Idle = time.Duration(now - max(p.heard, p.began))
	}
	return s
}

func (p *player) kick() {
	p.err = wordKicked
	p.end.Abort(errKicked)
}

func (v *fileVisit) sequence() uint64 { return v.id }
func (v *fileVisit) since() int64     { return v.began }

func (v *fileVisit) show(now int64) Stream {
	s := v.service.stream("tftp", v.transfer.Visitor)
	s.Idle = time.Duration(now - max(v.moved, v.began))
	if n := uint64(v.transfer.Stats().Bytes); v.transfer.Request.Op == tftp.OpWrite {
		s.Received = n
	} else {
		s.Sent = n
	}
	return s
}

func (v *fileVisit) kick() { v.transfer.Abort(fileKicked) }
