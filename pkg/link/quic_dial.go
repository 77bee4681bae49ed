package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"

	"github.com/quic-go/quic-go"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
)

const (
	// maxAddresses is how many addresses of a relay are tried, each headStart after
	// the one before (rfc8305#section-8).
	maxAddresses = 4
	headStart    = 250 * time.Millisecond
)

// A quicDial is what came of a dial.
type quicDial struct {
	conn    *quic.Conn
	release func() // closes the socket of conn
	hint    string // about the socket
	control *quic.Stream
	welcome relay.Welcome
	phase   Phase // that was reached
	err     error
}

// close gives up what has been made. The relay may have heard the Hello, and the session goes on.
func (q *quicDial) close() {
	if q.conn != nil {
		q.conn.CloseWithError(StatusAway, "")
		q.release()
	}
}

// dialQUIC dials with blocking calls, on a goroutine of its own.
func (d *dialer) dialQUIC() {
	d.loop.Spawn(func(core context.Context) {
		defer context.AfterFunc(core, d.stop)()
		q := d.connect()
		if q.err == nil {
			q.phase = PhaseHello
			q.control, q.welcome, q.err = d.greetQUIC(q.conn)
		}
		if q.err != nil {
			q.close()
			q.conn = nil
		}
		if !d.loop.Post(func() { d.dialledQUIC(&q) }) {
			q.close()
		}
	})
}

// dialledQUIC makes the link. On the loop.
func (d *dialer) dialledQUIC(q *quicDial) {
	d.phase = q.phase
	if q.err == nil && d.cause != nil {
		q.err = d.cause
		d.loop.Spawn(func(context.Context) { q.close() })
	}
	if q.err != nil {
		d.failed(q.err)
		return
	}
	if q.hint != "" && d.cfg.OnHint != nil {
		d.cfg.OnHint(q.hint)
	}
	l := newQUICLink(d.loop, q.conn, q.control, q.release)
	d.report(l, q.welcome, nil)
}

// connect finds the relay, and makes a connection to the first of its addresses that
// answers.
func (d *dialer) connect() quicDial {
	host, service, _ := net.SplitHostPort(d.cfg.Address)
	port, err := net.DefaultResolver.LookupPort(d.ctx, "udp", service)
	if err != nil {
		return quicDial{phase: PhaseDial, err: err}
	}
	addrs, err := net.DefaultResolver.LookupNetIP(d.ctx, "ip", host)
	if err != nil {
		return quicDial{phase: PhaseDial, err: err}
	}
	addrs = alternate(addrs)

	ctx, cancel := context.WithCancel(d.ctx)
	defer cancel()
	results := make(chan quicDial, len(addrs))
	next := time.NewTimer(0)
	defer next.Stop()
	var first quicDial // its error is the one that is told
	for begun, ended := 0, 0; ended < len(addrs); {
		select {
		case <-next.C:
			addr := netip.AddrPortFrom(addrs[begun].Unmap(), uint16(port))
			d.loop.Spawn(func(context.Context) { results <- d.shake(ctx, addr) })
			if begun++; begun < len(addrs) {
				next.Reset(headStart)
			}
		case q := <-results:
			ended++
			if q.err == nil {
				cancel()
				for range begun - ended {
					late := <-results
					late.close()
				}
				return q
			}
			if first.err == nil {
				first = q
			}
			if begun < len(addrs) {
				next.Reset(0)
			}
		}
	}
	return first
}

// alternate brings the two kinds of addresses into turns, the first one first.
func alternate(addrs []netip.Addr) []netip.Addr {
	var kinds [2][]netip.Addr
	for _, a := range addrs {
		kind := 0
		if a.Unmap().Is4() != addrs[0].Unmap().Is4() {
			kind = 1
		}
		kinds[kind] = append(kinds[kind], a)
	}
	var list []netip.Addr
	for i := range addrs {
		for _, kind := range kinds {
			if i < len(kind) {
				list = append(list, kind[i])
			}
		}
	}
	return slices.Clip(list[:min(len(list), maxAddresses)])
}

// shake does the handshake with one address. The socket is bound to no address of this
// machine, so that the link outlives a change of it.
func (d *dialer) shake(ctx context.Context, addr netip.AddrPort) quicDial {
	network := "udp4"
	if addr.Addr().Is6() {
		network = "udp6"
	}
	pc, err := net.ListenUDP(network, nil)
	if err != nil {
		return quicDial{phase: PhaseDial, err: err}
	}
	tr := &quic.Transport{Conn: QUICSocket(pc)}
	cfg := QUICConfig()
	cfg.MaxIncomingStreams = -1
	conn, err := tr.Dial(ctx, net.UDPAddrFromAddrPort(addr), &tls.Config{
		MinVersion: tls.VersionTLS13,
		ServerName: d.host,
		RootCAs:    d.cfg.RootCAs,
		NextProtos: []string{ALPN},
	}, cfg)
	q := quicDial{conn: conn, phase: PhaseDial, err: err, hint: BufferHint(pc), release: func() { tr.Close(); pc.Close() }}
	if err != nil {
		q.release()
		q.conn = nil
		if e, ok := errors.AsType[*quic.TransportError](err); ok && e.ErrorCode.IsCryptoError() {
			q.phase = PhaseTLS
		}
		if e, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
			q.err = e
		}
	}
	return q
}

// greetQUIC says who we are, and hears what the relay says to that.
func (d *dialer) greetQUIC(conn *quic.Conn) (*quic.Stream, relay.Welcome, error) {
	state := conn.ConnectionState().TLS
	exporter, err := state.ExportKeyingMaterial(auth.ExporterLabel, nil, 32)
	if err != nil {
		return nil, relay.Welcome{}, err
	}
	control, err := conn.OpenStreamSync(d.ctx)
	if err != nil {
		return nil, relay.Welcome{}, cause(d.ctx, err)
	}
	stop := context.AfterFunc(d.ctx, func() { control.CancelWrite(0); control.CancelRead(0) })
	defer stop()
	if _, err := control.Write(appendMessage(nil, d.cfg.hello(exporter))); err != nil {
		return nil, relay.Welcome{}, cause(d.ctx, err)
	}
	message, err := readMessage(control)
	if err != nil {
		return nil, relay.Welcome{}, cause(d.ctx, err)
	}
	w, err := decodeWelcome(message)
	if err == nil && !stop() {
		err = context.Cause(d.ctx)
	}
	return control, w, err
}

// hintQUIC says what to look at after an error of QUIC, or "".
func (d *dialer) hintQUIC(err error) string {
	var (
		shaking *quic.HandshakeTimeoutError
		idle    *quic.IdleTimeoutError
		tp      *quic.TransportError
	)
	switch {
	case d.phase == PhaseDial && (errors.Is(err, ErrTimeout) || errors.As(err, &shaking) || errors.As(err, &idle)):
		return fmt.Sprintf("nothing comes back from %s over UDP: it is blocked on the way, or the relay does not listen there ([listen] quic)", d.cfg.Address)
	case errors.As(err, &tp) && tp.Remote && tp.ErrorCode == alertNoProtocol:
		return fmt.Sprintf("%s speaks QUIC and is no public relay", d.cfg.Address)
	}
	return ""
}

// alertNoProtocol is no_application_protocol as an error of QUIC (rfc9001#section-4.8).
const alertNoProtocol = 0x100 + 120
