package public

import (
	"net"
	"net/netip"
	"strconv"

	"culvert.dev/pkg/evloop"
)

// port is where the visitors of a tcp or udp service come in. It outlives a reload
// that only changes the rest of the service. It is owned by the session's loop.
type port struct {
	service  *service
	listener *evloop.Listener // tcp
	flows    *flows           // udp
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
	ln, err := s.loop.Listen("tcp", address, func(c *evloop.Conn) {
		s.relay.meet(c, s.loop, func(visitor netip.AddrPort) { t.service.accept(c, visitor) })
	})
	if err != nil {
		return nil, err
	}
	ln.OnError = s.relay.listenerError(p.String())
	t.listener = ln
	return t, nil
}

// hand gives the port to another service, which has been announced in place of the
// one before.
func (t *port) hand(svc *service) {
	t.service = svc
	svc.flows = t.flows
}

// Addr is the address that visitors come in by.
func (t *port) Addr() net.Addr {
	if t.flows != nil {
		return net.UDPAddrFromAddrPort(t.flows.conn.LocalAddr())
	}
	return t.listener.Addr()
}

// Close ends the port. Connections stay; flows, whose datagrams all come through
// it, end.
func (t *port) Close() {
	if t.flows != nil {
		t.flows.close()
		return
	}
	t.listener.Close()
}
