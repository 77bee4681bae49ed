package private

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// discoverTimeout bounds a search for cameras.
const discoverTimeout = 30 * time.Second

// discovery is a stream on which a public relay asks for the cameras on this network. It is owned by the loop.
type discovery struct {
	peer    *peer
	stream  *tunnel.Stream
	request []byte        // at most relay.MaxMessage
	gone    chan struct{} // closed with the stream
}

func (d *discovery) OnData(b []byte) int {
	if len(d.request)+len(b) > relay.MaxMessage {
		d.stream.Reset(tunnel.CodeForbidden)
		return len(b)
	}
	d.request = append(d.request, b...)
	return len(b)
}

func (d *discovery) OnDrain()      {}
func (d *discovery) OnClose(error) { close(d.gone) }

var (
	errNoDiscovery = errors.New("this private relay cannot look for cameras")
	errDiscovering = errors.New("another search is under way: try again in half a minute")
)

func (d *discovery) OnEOF() {
	p := d.peer
	req, err := relay.DecodeDiscoverRequest(d.request)
	d.request = nil
	switch {
	case err != nil:
	case p.relay.Discover == nil:
		err = errNoDiscovery
	case !p.relay.discovering.CompareAndSwap(false, true):
		err = errDiscovering
	}
	if err != nil {
		d.answer(nil, err)
		return
	}
	p.loop.Spawn(func(ctx context.Context) { d.search(ctx, req) })
}

// search looks for cameras, on a goroutine of its own, until the stream is closed, and answers.
func (d *discovery) search(ctx context.Context, req relay.DiscoverRequest) {
	defer d.peer.relay.discovering.Store(false)
	ctx, cancel := context.WithTimeout(ctx, discoverTimeout)
	defer cancel()
	over := make(chan struct{})
	go func() { // until the search is over, which waits for it
		defer close(over)
		select {
		case <-d.gone:
			cancel()
		case <-ctx.Done():
		}
	}()
	devices, err := d.peer.relay.Discover(ctx, req)
	cancel()
	<-over
	if err == nil { // what is refused costs the public relay nothing, and so it gets no line
		d.peer.relay.log.Info("an operator has looked for cameras", "relay", d.peer.address)
	}
	d.peer.loop.Post(func() { d.answer(devices, err) })
}

// answer tells what there is. On the loop.
func (d *discovery) answer(devices []byte, err error) {
	select {
	case <-d.gone:
		return
	default:
	}
	reply := relay.DiscoverReply{Devices: devices}
	if err != nil {
		reply = refusedDiscovery(err)
	}
	b := relay.Encode(reply)
	if len(b) > relay.MaxDiscover {
		b = relay.Encode(refusedDiscovery(fmt.Errorf("%d bytes of cameras are too many to tell: run `relay-private cameras` there", len(b))))
	}
	d.stream.Write(b)
	d.stream.CloseWrite()
}

// refusedDiscovery is the reply that says why nobody has looked, in the visible ASCII that it may have.
func refusedDiscovery(err error) relay.DiscoverReply {
	s := strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}, err.Error())
	return relay.DiscoverReply{Error: s[:min(len(s), 1<<10)]}
}
