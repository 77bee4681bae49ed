package admin

import (
	"context"
	"sync"
	"time"
)

// look is one that watchers share.
type look struct {
	*Look

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
func (w *watch) look(ctx context.Context, figures func(context.Context) (*Look, error)) (now, before *look, err error) {
	w.mu.Lock() // others want the same look
	defer w.mu.Unlock()
	before = w.last
	if before != nil && time.Since(before.Time) < freshLook {
		return before, nil, nil
	}
	l, err := figures(ctx)
	if err != nil {
		return nil, nil, err
	}
	w.last = &look{Look: l}
	if before != nil && time.Since(before.Time) > oldLook {
		before = nil
	}
	return w.last, before, nil
}

// watcher is the feed of Figures.
func (h *Handler) watcher() func(context.Context, Every, func(Figures) error) error {
	if h.Figures == nil {
		return nil
	}
	return func(ctx context.Context, in Every, send func(Figures) error) error {
		every := time.Duration(in.Every * float64(time.Second))
		now, before, err := h.watch.look(ctx, h.Figures)
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
			if now, _, err = h.watch.look(ctx, h.Figures); err != nil {
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
		at = before.Time
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
	f := &Figures{
		Time: l.Time.UTC(), Visitors: l.Visitors, Streams: l.Streams, Requests: l.Requests, Draining: l.Draining,
		Sites: make([]SiteFigures, len(l.Sites)), Services: make([]ServiceFigures, len(l.Services)),
	}
	type key struct{ site, name string }
	sites, services := make(map[string]*SiteLook), make(map[key]*ServiceLook)
	took := 0.0
	if before != nil {
		took = l.Time.Sub(before.Time).Seconds()
		for i := range before.Sites {
			one := &before.Sites[i]
			sites[one.Name] = one
		}
		for i := range before.Services {
			one := &before.Services[i]
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
	for i := range l.Sites {
		now, was := &l.Sites[i], new(SiteLook)
		if w := sites[now.Name]; w != nil {
			was = w
		}
		f.Sites[i] = now.SiteFigures
		f.Sites[i].In, f.Sites[i].Out = rate(now.Sent, was.Sent), rate(now.Received, was.Received)
	}
	for i := range l.Services {
		now, was := &l.Services[i], new(ServiceLook)
		if w := services[key{now.Site, now.Name}]; w != nil {
			was = w
		}
		f.Services[i] = ServiceFigures{
			Site: now.Site, Name: now.Name, Visitors: now.Visitors,
			In: rate(now.Received, was.Received), Out: rate(now.Sent, was.Sent),
			Requests: rate(now.Requests, was.Requests), Errors: rate(now.Errors, was.Errors),
		}
	}
	return f
}
