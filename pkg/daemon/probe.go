package daemon

import (
	"context"
	"fmt"
	"sync"
)

// Probe tells whether event loops turn: each has to run what is posted to it. It may be asked by several goroutines, as
// often as they like: a loop that is stuck has one function of it in its queue.
type Probe struct {
	// N is how many loops there are.
	N int

	// Post posts f to loop i, and reports false when that loop has ended.
	Post func(i int, f func()) bool

	mu    sync.Mutex
	asked []chan struct{} // by loop: closed when what was posted has run; nil: nothing is
}

// Turn returns nil when all loops have turned, or says which has not until the end of ctx, or has ended.
func (p *Probe) Turn(ctx context.Context) error {
	waits := make([]chan struct{}, p.N)
	for i := range waits {
		c, first := p.ask(i)
		if first && !p.Post(i, func() { p.answer(i); close(c) }) {
			p.answer(i)
			return fmt.Errorf("event loop %d has ended", i)
		}
		waits[i] = c
	}
	for i, c := range waits {
		select {
		case <-c:
		case <-ctx.Done():
			return fmt.Errorf("event loop %d does not turn", i)
		}
	}
	return nil
}

// ask returns what is closed when loop i turns, and whether that is still to be posted.
func (p *Probe) ask(i int) (c chan struct{}, first bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.asked == nil {
		p.asked = make([]chan struct{}, p.N)
	}
	if p.asked[i] == nil {
		p.asked[i], first = make(chan struct{}), true
	}
	return p.asked[i], first
}

// answer forgets what was posted to loop i.
func (p *Probe) answer(i int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked[i] = nil
}
