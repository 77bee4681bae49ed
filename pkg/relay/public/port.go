package public

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"strconv"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
)

// port is where the visitors of a tcp or udp service come in. It belongs to the site,
// and so outlives a takeover, and a reload that only changes the rest of the service.
type port struct {
	service   *service
	listeners []*evloop.Listener // tcp; several only on sockets that were there before us
	flows     *flows             // udp
}

// open opens the port of svc, or hands it what is open there already.
func (s *session) open(svc *service) (*port, error) {
	if t := s.group.ports[svc.publish]; t != nil {
		t.hand(svc)
		return t, nil
	}
	return s.listen(svc)
}

// listen opens the port that svc publishes.
func (s *session) listen(svc *service) (*port, error) {
	t, p := &port{service: svc}, svc.publish
	address := net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))
	if p.Scheme == "udp" {
		var err error
		t.flows, err = newFlows(t, s, address)
		svc.flows = t.flows
		return t, err
	}
	accept := func(c *evloop.Conn) {
		s.relay.meet(c, s.loop, func(visitor netip.AddrPort) { s.group.accept(t, c, visitor) })
	}
	add := func(ln *evloop.Listener, err error) error {
		if err == nil {
			ln.OnError = s.relay.listenerError(p.String())
			t.listeners = append(t.listeners, ln)
		}
		return err
	}
	files, err := s.borrow(t, "tcp", address)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if err := add(s.loop.ListenFile(f, accept)); err != nil {
			t.Close()
			return nil, err
		}
	}
	if files != nil {
		return t, nil
	}
	return t, add(s.loop.Listen("tcp", address, accept))
}

var errLent = errors.New("another site has this port")

// borrow returns the sockets for a port that were there before us, if there are some. Of
// them the system does not say that somebody listens there already.
func (s *session) borrow(t *port, network, address string) ([]*os.File, error) {
	r := s.relay
	files := r.inherited(t.service.publish.String(), network, address)
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, f := range files {
		if o, ok := r.lent[f]; ok && o.group != s.group {
			return nil, errLent
		}
	}
	for _, f := range files {
		r.lent[f] = loan{s.group, t}
	}
	return files, nil
}

// giveBack is the end of borrow.
func (t *port) giveBack() {
	r := t.service.session.relay
	r.mu.Lock()
	defer r.mu.Unlock()
	for f, o := range r.lent {
		if o.port == t {
			delete(r.lent, f)
		}
	}
}

// hand gives the port to another service, which has been announced in place of the
// one before.
func (t *port) hand(svc *service) {
	t.service = svc
	svc.flows = t.flows
}

// accept takes a visitor of a port.
func (g *group) accept(t *port, c *evloop.Conn, visitor netip.AddrPort) {
	w := new(waiter)
	if !g.hold(func() {
		if !w.gone {
			c.Resume()
			t.service.accept(c, visitor)
		}
	}) {
		t.service.accept(c, visitor)
		return
	}
	c.SetHandler(w)
	c.Pause()
}

// waiter is the handler of a connection that waits for a takeover.
type waiter struct{ gone bool }

func (w *waiter) OnData([]byte) int { return 0 }
func (w *waiter) OnEOF()            {}
func (w *waiter) OnDrain()          {}
func (w *waiter) OnClose(error)     { w.gone = true }

// Addr is the address that visitors come in by.
func (t *port) Addr() net.Addr {
	if t.flows != nil {
		return net.UDPAddrFromAddrPort(t.flows.conn.LocalAddr())
	}
	return t.listeners[0].Addr()
}

// Close ends the port. Connections stay; flows, whose datagrams all come through
// it, end.
func (t *port) Close() {
	t.giveBack()
	if t.flows != nil {
		t.flows.close()
		return
	}
	for _, ln := range t.listeners {
		ln.Close()
	}
}

// closePorts closes the ports that are not among those to be kept.
func (g *group) closePorts(keep map[relay.Publish]*port) {
	for p, t := range g.ports {
		if keep[p] == nil {
			t.Close()
		}
	}
	g.ports = keep
}
