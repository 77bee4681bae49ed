package admin

import (
	"context"
	"sync"
	"time"
)

// look is the status at one moment.
type look struct {
	at     time.Time
	status *Status

	mu      sync.Mutex
	figures map[time.Time]*Figures // since an earlier one, for all who ask for the same
}

// How old a look may be that is taken for one of now, and how many are remembered for those who begin to watch.
const (
	freshLook = 100 * time.Millisecond
	oldLook   = 10 * time.Second
)

// watch is what watchers share: however many there are, the relay is looked at as often as the most eager one wants.
type watch struct {
	mu   sync.Mutex
	last *look
}

// look returns one that is not older than freshLook, and the one before it, nil if that is too old.
func (w *watch) look(status func() (*Status, error)) (now, before *look, err error) {
	w.mu.Lock() // others want the same look
	defer w.mu.Unlock()
	before = w.last
	if before != nil && time.Since(before.at) < freshLook {
		return before, nil, nil
	}
	s, err := status()
	if err != nil {
		return nil, nil, err
	}
	w.last = &look{at: time.Now(), status: s}
	if before != nil && time.Since(before.at) > oldLook {
		before = nil
	}
	return w.last, before, nil
}

// watcher is the feed of Figures.
func (h *Handler) watcher() func(context.Context, Every, func(Figures) error) error {
	if h.Status == nil {
		return nil
	}
	return func(ctx context.Context, in Every, send func(Figures) error) error {
		every := time.Duration(in.Every * float64(time.Second))
		now, before, err := h.watch.look(h.Status)
		if err != nil {
			return err
		}
		if err := send(*now.since(before)); err != nil {
			return err
		}
		// Those with the same interval look at the same moments, and so have one look together.
		timer := time.NewTimer(untilNext(time.Now(), every))
		defer timer.Stop()
		for {
			select {
			case <-ctx.Done():
				return ctx.Err()
			case <-timer.C:
			}
			before := now
			if now, _, err = h.watch.look(h.Status); err != nil {
				return err
			}
			if now != before {
				if err := send(*now.since(before)); err != nil {
					return err
				}
			}
			timer.Reset(untilNext(time.Now(), every))
		}
	}
}

// untilNext is how long it is until the next multiple of every, or the one after that if that is almost now.
func untilNext(now time.Time, every time.Duration) time.Duration {
	d := now.Truncate(every).Add(every).Sub(now)
	if d < freshLook {
		d += every
	}
	return d
}

// since returns the rates since an earlier look, nil if there is none: they are 0 then.
func (l *look) since(before *look) *Figures {
	var at time.Time // not the look itself, which would keep all before it
	if before != nil {
		at = before.at
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if f := l.figures[at]; f != nil {
		return f
	}
	if l.figures == nil {
		l.figures = make(map[time.Time]*Figures)
	}
	f := l.measure(before)
	l.figures[at] = f
	return f
}

func (l *look) measure(before *look) *Figures {
	s := l.status
	f := &Figures{Time: l.at.UTC(), Visitors: s.Visitors, Requests: s.Counters.Requests, Sites: []SiteFigures{}, Services: []ServiceFigures{}}
	type key struct{ site, name string }
	sites, services := make(map[string]*Session), make(map[key]*Service)
	took := 0.0
	if before != nil {
		took = l.at.Sub(before.at).Seconds()
		for i := range before.status.Sites {
			site := &before.status.Sites[i]
			for j := range site.Sessions {
				sites[site.Sessions[j].ID] = &site.Sessions[j]
			}
		}
		for i := range before.status.Services {
			one := &before.status.Services[i]
			services[key{one.Site, one.Name}] = one
		}
	}
	// rate is that of a count that may have begun anew.
	rate := func(now, was uint64) float64 {
		if took <= 0 {
			return 0
		}
		if now < was {
			was = 0
		}
		return float64(now-was) / took
	}
	for i := range s.Sites {
		site := &s.Sites[i]
		one := SiteFigures{Name: site.Name, State: site.State, RTT: site.RTT, Sessions: len(site.Sessions)}
		for j := range site.Sessions {
			session := &site.Sessions[j]
			one.Streams += session.Streams
			one.Links += len(session.Links)
			if was := sites[session.ID]; was != nil {
				one.In += rate(session.Sent, was.Sent)
				one.Out += rate(session.Received, was.Received)
			} else {
				one.In += rate(session.Sent, 0)
				one.Out += rate(session.Received, 0)
			}
		}
		f.Streams += one.Streams
		f.Sites = append(f.Sites, one)
	}
	none := new(Service)
	for i := range s.Services {
		now := &s.Services[i]
		was := services[key{now.Site, now.Name}]
		if was == nil {
			was = none
		}
		f.Services = append(f.Services, ServiceFigures{
			Site: now.Site, Name: now.Name, Visitors: now.Visitors,
			In: rate(now.Received, was.Received), Out: rate(now.Sent, was.Sent),
			Requests: rate(now.Total, was.Total), Errors: rate(sum(now.Errors), sum(was.Errors)),
		})
	}
	return f
}

func sum(m map[string]uint64) (n uint64) {
	for _, v := range m {
		n += v
	}
	return n
}
