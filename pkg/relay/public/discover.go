package public

import (
	"context"
	"errors"
	"fmt"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// Discover has the active private relay of a site look for cameras on its network, which takes some seconds, and returns
// what it found as JSON. It must not be called on a loop.
func (r *Relay) Discover(ctx context.Context, site string, req relay.DiscoverRequest) ([]byte, error) {
	if err := req.Check(); err != nil {
		return nil, err
	}
	g, err := r.groupOf(site)
	if err != nil {
		return nil, err
	}
	d := &discovery{done: make(chan struct{})}
	if !g.loop.Post(func() { d.open(g, req) }) {
		return nil, errDraining
	}
	select {
	case <-d.done:
	case <-ctx.Done():
		g.loop.Post(d.cancel)
		return nil, ctx.Err()
	}
	if d.err != nil {
		return nil, fmt.Errorf("site %q: %w", site, d.err)
	}
	return d.reply.Devices, nil
}

// discovery is a stream on which a private relay looks for cameras. It is owned by the loop until done is closed.
type discovery struct {
	stream *tunnel.Stream
	b      []byte // at most relay.MaxDiscover
	over   bool   // done is closed
	done   chan struct{}
	reply  relay.DiscoverReply
	err    error
}

func (d *discovery) open(g *group, req relay.DiscoverRequest) {
	s := g.active
	if s == nil || s.tun == nil {
		d.finish(errors.New("no private relay is connected"))
		return
	}
	header, err := relay.Header{Kind: relay.KindDiscover}.Append(nil)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	if d.stream, err = s.tun.Open(header); err != nil {
		d.finish(err)
		return
	}
	d.stream.SetHandler(d)
	d.stream.Write(relay.Encode(req))
	d.stream.CloseWrite()
}

func (d *discovery) finish(err error) {
	if !d.over {
		d.over, d.err = true, err
		close(d.done)
	}
}

// cancel ends it because nobody waits any more.
func (d *discovery) cancel() {
	if !d.over && d.stream != nil {
		d.stream.Reset(tunnel.CodeCancelled)
	}
}

func (d *discovery) OnData(b []byte) int {
	if len(d.b)+len(b) > relay.MaxDiscover {
		d.finish(fmt.Errorf("its answer has more than %d bytes", relay.MaxDiscover))
		d.stream.Reset(tunnel.CodeForbidden)
		return len(b)
	}
	d.b = append(d.b, b...)
	return len(b)
}

func (d *discovery) OnEOF() {
	if d.over {
		return
	}
	reply, err := relay.DecodeDiscoverReply(d.b)
	if err == nil && reply.Error != "" {
		err = errors.New(reply.Error)
	}
	d.reply = reply
	d.finish(err)
}

func (d *discovery) OnDrain() {}

func (d *discovery) OnClose(err error) {
	if err == nil {
		err = errors.New("it did not answer")
	}
	d.finish(fmt.Errorf("the search was cut: %w", err))
}
