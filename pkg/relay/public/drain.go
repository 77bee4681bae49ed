package public

import (
	"context"
	"errors"
	"time"
)

// Visitors that have come just before a drain have settleTime for their first
// request, which is served. Whether they have is looked at every settleTick.
const (
	settleTime = 2 * time.Second
	settleTick = 20 * time.Millisecond
)

// stopPorts has tcp services accept nobody any more, so that whoever comes is kept
// for the next relay, or refused at once, and not cut.
func (r *Relay) stopPorts() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, g := range r.groups {
		g.loop.Post(g.stopPorts)
	}
}

func (g *group) stopPorts() {
	for _, p := range g.ports {
		for _, ln := range p.listeners {
			ln.Close()
		}
	}
}

// settle closes the visitors that wait for nothing, and waits until those that
// wait for their first answer have it.
func (r *Relay) settle(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, settleTime)
	defer cancel()
	for quiet := 0; quiet < 2; { // a visitor between two loops is on none of them
		if r.newcomers(ctx, false) == 0 {
			quiet++
		} else {
			quiet = 0
		}
		select {
		case <-time.After(settleTick):
		case <-ctx.Done():
			quiet = 2
		}
	}
	r.newcomers(ctx, true)
}

// newcomers is loop.drain on all loops.
func (r *Relay) newcomers(ctx context.Context, all bool) (n int) {
	counts := make(chan int, len(r.loops))
	for _, l := range r.loops {
		if !l.Post(func() { counts <- l.drain(all) }) {
			return 0
		}
	}
	for range r.loops {
		select {
		case m := <-counts:
			n += m
		case <-ctx.Done():
			return 0
		}
	}
	return n
}

var errNotListening = errors.New("the relay does not listen")

// Ready tells why visitors are not let in, nil that they are.
func (r *Relay) Ready() error {
	switch {
	case r.draining.Load():
		return errDraining
	case len(r.Listeners()) == 0:
		return errNotListening
	}
	return nil
}

// hasJustBegun reports whether sites may not have found the relay yet since it
// began to listen.
func (r *Relay) hasJustBegun() bool {
	return r.Grace > 0 && !r.draining.Load() && time.Since(r.began) < r.Grace
}
