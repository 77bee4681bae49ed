package public

import (
	"bytes"
	"cmp"
	"context"
	"net/netip"
	"slices"
	"sync"
	"time"

	"culvert.dev/pkg/http1"
)

// The requests that were answered last are kept for operators: of each service the newest, in a ring of slots whose
// memory is used again, on the loop of the service. Whoever follows them gets what a turn has brought at its end.

const (
	// maxRecent is how many requests are kept of a service, minRecent how many of one that had no more yet.
	maxRecent, minRecent = 1024, 8

	// maxKeptRequests is how many are kept in all, beside minRecent of each service: 64 Ki of at most 1 KiB.
	maxKeptRequests = 64 << 10

	// defaultRequests is how many a list has if nothing is said.
	defaultRequests = 100

	// maxUnread is how many requests wait for a follower.
	maxUnread = 1024

	headPath = 512 // bytes of a path that are kept

	// recentTime is how old a request may be that is shown: they have addresses of visitors.
	recentTime = 24 * time.Hour
)

// Request is a request over HTTP that is over.
type Request struct {
	ID             string
	Time           time.Time // when its head had come
	Site, Service  string    // "": there is none for it
	Remote         netip.AddrPort
	Operator       string        // who has sent it again; "": it is a visitor's
	Method         string        // "", with Host and Path: it could not be read
	Host, Path     string        // Path with the query if AccessQuery says so, where secrets are redacted; at most 512 bytes
	Proto          string        // "HTTP/1.0", "HTTP/1.1", "HTTP/2" or "HTTP/3"
	Status         int           // 0: there was none, as the visitor went away before
	Word           string        // what went wrong, of Words; "": nothing
	Received, Sent uint64        // bytes of its body, and of the response
	Wait, Took     time.Duration // to the head of the response, and to the end; Wait 0: there was none of the server
	Inspectable    bool          // there is an Exchange of it
}

// heading is the head of a request as far as it is shown: method, host and path, one behind the other.
type heading struct {
	text         []byte
	method, host int // bytes
}

// set takes it from req. It is empty if nobody is to see requests.
func (h *heading) set(r *Relay, req *http1.Request) {
	if r.HideRequests {
		return
	}
	b := append(append(h.text[:0], req.Method...), req.Host...)
	h.method, h.host = len(req.Method), len(req.Host)
	path := req.Path
	if cut := len(path) > headPath; cut {
		path = path[:headPath]
		b = append(append(b, path...), "…"...)
	} else if b = append(b, path...); r.AccessQuery && req.Query != nil {
		b = append(append(b, '?'), req.Query[:min(len(req.Query), headPath-len(path))]...)
	}
	h.text = b
}

// hostname is the host without the port.
func (h *heading) hostname() string {
	if h.host == 0 {
		return ""
	}
	return string(appendHost(nil, h.text[h.method:h.method+h.host]))
}

// recent are requests that are over, the newest maxRecent or fewer. It belongs to a loop.
type recent struct {
	slots []past
	n     int // that were put in, since slots has grown last with what it had; the next one goes to n modulo its length
}

// past is a slot: a request that is over. Times are the loop's.
type past struct {
	id                  uint64
	began, first, ended int64 // first is 0 if there was none
	received, sent      uint64
	heading             heading
	remote              netip.AddrPort
	proto, operator     string
	status              int
	err                 word
}

// slot returns the place for the next request, with what was there before.
func (r *recent) slot(l *loop) *past {
	if n := len(r.slots); n == 0 || r.n > 0 && r.n%n == 0 && n < maxRecent && l.slots+n <= maxKeptRequests/len(l.relay.loops) {
		more := max(n, minRecent)
		r.slots = append(r.slots, make([]past, more)...) // they are in order, as it is the oldest one's turn
		r.n = n
		l.slots += more
	}
	p := &r.slots[r.n%len(r.slots)]
	r.n++
	return p
}

// each calls f for the requests, the newest first, until it reports false.
func (r *recent) each(f func(*past) bool) {
	for i := r.n - 1; i >= 0 && i >= r.n-len(r.slots); i-- {
		if !f(&r.slots[i%len(r.slots)]) {
			return
		}
	}
}

// free gives the slots back.
func (r *recent) free(l *loop) {
	l.slots -= len(r.slots)
	*r = recent{}
}

// remember keeps ex, which is over.
func (ex *exchange) remember() {
	l := ex.loop
	if l.relay.HideRequests {
		return
	}
	p := ex.service.recent.slot(l)
	h := p.heading
	*p = ex.past()
	ex.heading = h // whose memory the next exchange uses
	if l.relay.followed.Load() {
		l.tell(ex.service.session.site, ex.service.name, p)
	}
}

// past is ex, which is over.
func (ex *exchange) past() past {
	return past{
		id: ex.id, began: ex.began, first: ex.first, ended: ex.loop.since(), received: ex.in, sent: ex.out,
		heading: ex.heading, remote: ex.client.addr, proto: ex.client.proto, operator: ex.operator, status: ex.status, err: ex.err,
	}
}

// rememberOwn keeps a request that the relay has answered by itself; s is nil if it is for no service, and req if it could not be
// read.
func (l *loop) rememberOwn(c *client, req *http1.Request, s *service, t *trouble) {
	if l.relay.HideRequests {
		return
	}
	in, site, name := &l.strays, "", ""
	if s != nil {
		in, site, name = &s.recent, s.session.site, s.name
	}
	p := in.slot(l)
	h := p.heading
	h.text, h.method, h.host = h.text[:0], 0, 0
	if req != nil {
		h.set(l.relay, req)
	}
	now := l.since()
	*p = past{id: l.number(), began: now, ended: now, heading: h, remote: c.addr, proto: c.proto, status: t.status, err: t.word()}
	if l.relay.followed.Load() {
		l.tell(site, name, p)
	}
}

// request is p for operators.
func (p *past) request(l *loop, site, service string) Request {
	text, h := string(p.heading.text), p.heading
	q := Request{
		ID: formatID('r', p.id), Time: l.start.Add(time.Duration(p.began)), Site: site, Service: service, Remote: p.remote, Operator: p.operator,
		Method: text[:h.method], Host: text[h.method : h.method+h.host], Path: text[h.method+h.host:],
		Proto: p.proto, Status: p.status, Word: Words[p.err], Received: p.received, Sent: p.sent, Took: time.Duration(p.ended - p.began),
	}
	if p.first != 0 {
		q.Wait = time.Duration(p.first - p.began)
	}
	return q
}

// kept is a slot that a list is to have.
type kept struct {
	*past
	site, service string
}

// requests is the loop's part of Requests.
func (l *loop) requests(groups []*group, f Filter, limit int) []Request {
	var list []kept
	floor := l.since() - int64(recentTime)
	cut := func() {
		slices.SortStableFunc(list, func(a, b kept) int { return cmp.Compare(b.ended, a.ended) })
		if len(list) > limit {
			list = list[:limit]
			floor = list[limit-1].ended
		}
	}
	gather := func(r *recent, site, service string) {
		r.each(func(p *past) bool {
			if p.ended < floor {
				return false
			}
			if list = append(list, kept{p, site, service}); len(list) >= 2*limit {
				cut()
			}
			return true
		})
	}
	for _, g := range groups {
		if g.loop != l {
			continue
		}
		for name, t := range g.tallies {
			if f.takes(g.site, name) {
				gather(&t.recent, g.site, name)
			}
		}
	}
	if f.takes("", "") {
		gather(&l.strays, "", "")
	}
	cut()
	made := make([]Request, len(list))
	for i, k := range list {
		made[i] = k.request(l, k.site, k.service)
	}
	return made
}

// Requests returns requests that are over, the last one first: 100 if f says nothing, and no more of a service than the newest 1024.
// Without a site and a service in f, those that found none are among them. It must not be called on a loop.
func (r *Relay) Requests(ctx context.Context, f Filter) ([]Request, error) {
	limit := f.limit(defaultRequests, maxStreams)
	groups := r.snapshot()
	parts, err := ask(ctx, r, func(l *loop) []Request { return l.requests(groups, f, limit) })
	if err != nil {
		return nil, err
	}
	list := slices.Concat(parts...)
	end := func(q Request) time.Time { return q.Time.Add(q.Took) }
	slices.SortStableFunc(list, func(a, b Request) int { return end(b).Compare(end(a)) })
	list = list[:min(limit, len(list))]
	for i := range list {
		r.finish(&list[i])
	}
	return list, nil
}

// finish does with a request what needs no loop.
func (r *Relay) finish(q *Request) {
	if path, query, ok := bytes.Cut([]byte(q.Path), question); ok {
		q.Path = string(path) + "?" + string(redactForm(nil, query))
	}
	q.Inspectable = r.captured(q.ID) != nil
}

// follower is somebody who follows requests.
type follower struct {
	filter Filter

	mu      sync.Mutex
	unread  []Request
	skipped uint64        // since the last look, as there were too many unread
	news    chan struct{} // takes one
}

// tell has followers hear of a request at the end of this turn.
func (l *loop) tell(site, service string, p *past) {
	if len(l.news) == 0 {
		if l.tellAll == nil {
			l.tellAll = l.tellFollowers
		}
		l.AfterTurn(l.tellAll)
	}
	if len(l.news) < maxUnread {
		l.news = append(l.news, p.request(l, site, service))
	} else {
		l.unsaid++
	}
}

func (l *loop) tellFollowers() {
	r := l.relay
	r.follow.Lock()
	defer r.follow.Unlock()
	for f := range r.followers {
		f.take(l.news, l.unsaid)
	}
	clear(l.news)
	l.news, l.unsaid = l.news[:0], 0
}

// take adds requests to what is unread.
func (f *follower) take(list []Request, unsaid uint64) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.skipped += unsaid
	for _, q := range list {
		switch {
		case !f.filter.takes(q.Site, q.Service):
		case len(f.unread) >= maxUnread:
			f.skipped++
		default:
			f.unread = append(f.unread, q)
		}
	}
	if len(f.unread) > 0 {
		select {
		case f.news <- struct{}{}:
		default:
		}
	}
}

// FollowRequests calls send with each request that ends from now on, until ctx ends or send fails. Of a burst that send is too slow
// for, the newest are left out: skipped is how many since the last call. f's Limit says nothing.
func (r *Relay) FollowRequests(ctx context.Context, f Filter, send func(q Request, skipped uint64) error) error {
	r.prepare()
	me := &follower{filter: f, news: make(chan struct{}, 1)}
	r.follow.Lock()
	if r.followers == nil {
		r.followers = make(map[*follower]bool)
	}
	r.followers[me] = true
	r.followed.Store(true)
	r.follow.Unlock()
	defer func() {
		r.follow.Lock()
		delete(r.followers, me)
		r.followed.Store(len(r.followers) > 0)
		r.follow.Unlock()
	}()
	var list []Request
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-me.news:
		}
		me.mu.Lock()
		list, me.unread = me.unread, list[:0]
		skipped := me.skipped
		me.skipped = 0
		me.mu.Unlock()
		for i := range list {
			r.finish(&list[i])
			if err := send(list[i], skipped); err != nil {
				return err
			}
			skipped = 0
		}
		clear(list)
	}
}
