package public

import (
	"context"
	"time"
)

// Figures is what is looked at often: counters and a few states, without what takes memory to tell. Times and rates are for
// who compares two of them.
type Figures struct {
	Time     time.Time
	Visitors int    // connections
	Streams  int    // of all sessions
	Requests uint64 // over HTTP, sent on to a site so far
	Draining bool   // as of a Status
	Sites    []SiteFigures
	Services []ServiceFigures

	// Used again from one look to the next.
	groups []*group
	parts  []figuresPart // by loop
	done   chan struct{}
}

// SiteFigures are those of a site that has been connected.
type SiteFigures struct {
	Name     string
	Sessions int           // that there are
	Active   bool          // one of them is active, which the rest is about
	Lost     bool          // it has no link right now
	Leaving  bool          // its private relay shuts down
	RTT      time.Duration // of the best link; 0: not measured yet
	Streams  int
	Links    int // of all sessions

	Received, Sent uint64 // bytes of streams, from the site and to it, of all sessions so far
}

// ServiceFigures are those of a service. What is counted begins at 0 when a service of that name is announced anew.
type ServiceFigures struct {
	Site, Name     string
	Visitors       int    // now
	Received, Sent uint64 // bytes from visitors, and to them
	Requests       uint64 // that are over; of services that are no HTTP: visitors who came
	Errors         uint64 // of them, those that went wrong on our side of the visitor: answers 5xx, and what has the words limit, timeout, unreachable, bad-answer, away and reset
}

// figuresPart is the part of a loop.
type figuresPart struct {
	streams  int
	requests uint64
	sites    []SiteFigures
	services []ServiceFigures
}

// Figures looks again, and writes what there is over what f had: in the slices, too. Bytes of services with more than some
// thousand connections may be counted some seconds late. It must not be called on a loop.
func (r *Relay) Figures(ctx context.Context, f *Figures) error {
	r.prepare()
	if len(f.parts) != len(r.loops) {
		f.parts, f.done = make([]figuresPart, len(r.loops)), make(chan struct{}, len(r.loops))
	}
	groups := f.groups[:0]
	r.mu.Lock()
	for _, g := range r.groups {
		groups = append(groups, g)
	}
	r.mu.Unlock()
	f.groups = groups
	parts, done, asked := f.parts, f.done, 0
	for i, l := range r.loops {
		if l.Post(func() {
			parts[i].look(l, groups)
			done <- struct{}{}
		}) {
			asked++
		} else {
			parts[i] = figuresPart{}
		}
	}
	for range asked {
		select {
		case <-done:
		case <-ctx.Done():
			*f = Figures{} // the loops still write into the parts
			return ctx.Err()
		}
	}
	f.Time, f.Visitors, f.Draining = time.Now(), r.admission.connected(), r.draining.Load()
	f.Streams, f.Requests, f.Sites, f.Services = 0, 0, f.Sites[:0], f.Services[:0]
	for i := range parts {
		p := &parts[i]
		f.Streams += p.streams
		f.Requests += p.requests
		f.Sites = append(f.Sites, p.sites...)
		f.Services = append(f.Services, p.services...)
	}
	return nil
}

// look is the loop's part. On the loop.
func (p *figuresPart) look(l *loop, groups []*group) {
	p.streams, p.requests, p.sites, p.services = 0, l.counters.Requests, p.sites[:0], p.services[:0]
	now := l.since()
	for _, g := range groups {
		if g.loop != l {
			continue
		}
		site := SiteFigures{Name: g.site}
		sessions := g.all()
		carried := g.traffic(sessions)
		site.Received, site.Sent = carried.Received, carried.Sent
		for _, s := range sessions {
			if s.tun == nil {
				continue
			}
			st := s.tun.Stats()
			site.Sessions++
			site.Links += len(s.links)
			p.streams += st.Streams
			if s == g.active {
				site.Active, site.Lost, site.Leaving = true, len(s.links) == 0, s.leaving
				site.RTT, site.Streams = st.RTT, st.Streams
			}
		}
		p.sites = append(p.sites, site)
		if g.active == nil {
			continue
		}
		for _, s := range g.active.services {
			t := s.tally
			t.settle(now)
			one := ServiceFigures{Site: g.site, Name: s.name, Visitors: t.visitors, Received: t.received, Sent: t.sent}
			one.Requests, one.Errors = t.finished()
			p.services = append(p.services, one)
		}
	}
}

// finished counts what is over, and how much of it went wrong on our side of the visitor.
func (t *tally) finished() (all, wrong uint64) {
	answered := uint64(0) // with 5xx
	for _, of := range t.requests {
		for class, n := range of {
			all += n
			if class == 5 {
				answered += n
			}
		}
	}
	for _, w := range [...]word{wordLimit, wordTimeout, wordUnreachable, wordBadAnswer, wordAway, wordReset} {
		wrong += t.errors[w]
	}
	if all == 0 {
		all = t.total
	}
	return all, wrong + answered - min(answered, t.ours)
}
