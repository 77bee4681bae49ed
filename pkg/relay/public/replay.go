package public

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

// A captured request is sent again as its visitor has sent it, secrets included, over a new stream of the same service. The server
// is told the visitor's address as it was then, not the operator's, whose may be one that servers trust. What the service
// demands of methods and bodies holds; who the visitor is was found out then. The answer is captured as that of any request.

// replayer is the front of a request that is sent again. It belongs to the loop of the service.
type replayer struct {
	loop    *loop
	client  *client
	of      *capture
	ex      *exchange // while there is one
	capture *capture  // of it; nil: there was no room
	timer   evloop.Timer
	size    int
	ending  bool // it has more than is kept of it: the rest is not waited for
	over    bool
	result  chan error // takes one
}

// Replay sends a captured request again, for an operator of that name, and returns what came of it. It must not be called on a loop.
// If ctx ends before, so does the request. An error that is ErrNoExchange or ErrNoReplay says why nothing was sent.
func (r *Relay) Replay(ctx context.Context, id, operator string) (*Exchange, error) {
	r.prepare()
	c := r.captured(id)
	switch {
	case c == nil:
		return nil, ErrNoExchange
	case c.request.Upgrade != nil:
		return nil, fmt.Errorf("%w: it asks for another protocol, such as WebSocket", ErrNoReplay)
	case !c.whole:
		return nil, fmt.Errorf("%w: its body has never come to its end", ErrNoReplay)
	case c.sent.truncated():
		return nil, fmt.Errorf("%w: its body has %d bytes, of which %d were kept", ErrNoReplay, c.sent.size, len(c.sent.bytes))
	}
	r.mu.Lock()
	g := r.groups[c.of.site]
	r.mu.Unlock()
	if g == nil {
		return nil, fmt.Errorf("%w: site %q is not connected", ErrNoReplay, c.of.site)
	}
	who := c.client.carried()
	who.operator, who.replayed = operator, id
	p := &replayer{loop: g.loop, client: who, of: c, result: make(chan error, 1)}
	who.replayer = p
	begin := func() {
		if err := p.begin(g); err != nil {
			p.result <- err
		}
	}
	if !g.loop.Post(func() {
		if !g.hold(begin) {
			begin()
		}
	}) {
		return nil, errDraining
	}
	select {
	case err := <-p.result:
		if err != nil {
			return nil, err
		}
	case <-ctx.Done():
		g.loop.Post(p.cancel)
		return nil, ctx.Err()
	}
	if p.capture == nil {
		return nil, errors.New("it was sent, and there was no memory to keep the answer: the limit of captures is reached by requests under way")
	}
	return p.capture.show(), nil
}

// begin sends the request.
func (p *replayer) begin(g *group) error {
	if p.over { // it was given up while it was held
		return nil
	}
	c := p.of
	refuse := func(format string, args ...any) error {
		return fmt.Errorf("%w: %s", ErrNoReplay, fmt.Sprintf(format, args...))
	}
	if p.loop.relay.draining.Load() {
		return errDraining
	}
	if g.active == nil {
		return refuse("site %q is not connected", c.of.site)
	}
	s := g.active.service(c.of.name)
	switch {
	case s == nil:
		return refuse("site %q has no service %q any more", c.of.site, c.of.name)
	case !s.inspect:
		return refuse("the site allows no inspection of service %q any more", c.of.name)
	}
	req := c.request.Clone()
	if policy := s.policy.Load(); policy != nil {
		switch {
		case len(policy.methods) > 0 && !slices.Contains(policy.methods, string(req.Method)):
			return refuse("service %q takes no %s any more", c.of.name, req.Method)
		case policy.maxBody > 0 && c.sent.size > policy.maxBody:
			return refuse("service %q takes no bodies of more than %d bytes any more", c.of.name, policy.maxBody)
		}
	}
	if p.ex = p.loop.begin(p, s, req); p.ex == nil {
		return nil // answer was called
	}
	p.check()
	if !p.ex.sent {
		p.ex.body(c.sent.bytes)
		p.ex.end(nil)
		p.ex.pushed(len(c.sent.bytes))
	}
	return nil
}

// check has the exchange checked from time to time.
func (p *replayer) check() {
	p.loop.Arm(&p.timer, busyCheck, func() {
		p.check()
		p.ex.check()
	})
}

// cancel ends the request, because nobody waits for it any more. On the loop.
func (p *replayer) cancel() {
	if ex := p.ex; ex != nil {
		p.finish()
		ex.cancel()
	}
	p.over = true
}

// enough ends a request whose answer has come, as far as it is kept.
func (p *replayer) enough() {
	if ex := p.ex; ex != nil {
		p.finish()
		ex.drop()
		p.result <- nil
	}
}

// finish is the end of the exchange.
func (p *replayer) finish() {
	p.ex, p.over = nil, true
	p.timer.Stop()
}

// ends tells who waits.
func (p *replayer) ends() {
	p.finish()
	p.result <- nil
}

func (p *replayer) who() *client                                       { return p.client }
func (p *replayer) interim(*http1.Response)                            {}
func (p *replayer) head(*http1.Response, bool) bool                    { return false }
func (p *replayer) end([]http1.Field)                                  {}
func (p *replayer) flush()                                             {}
func (p *replayer) full() bool                                         { return p.ending }
func (p *replayer) waiting() bool                                      { return false }
func (p *replayer) pause()                                             {}
func (p *replayer) resume()                                            {}
func (p *replayer) done()                                              { p.ends() }
func (p *replayer) answer(*trouble, ...http1.Field)                    { p.ends() }
func (p *replayer) cut()                                               { p.ends() }
func (p *replayer) abort()                                             { p.ends() }
func (p *replayer) upgrade(*http1.Response, stream, *service) *trouble { return troubleAnswer }

// body counts what is captured.
func (p *replayer) body(b []byte) {
	if p.size += len(b); p.size > maxBodyKept && !p.ending {
		p.ending = true
		p.loop.Post(p.enough)
	}
}
