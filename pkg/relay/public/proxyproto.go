package public

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/pires/go-proxyproto"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
)

// The PROXY protocol (haproxy.org, proxy-protocol.txt): who the visitor is, from
// a proxy that took the connection first.
const (
	maxPrefaceV1 = 107              // bytes of a header of version 1, section 2.1
	maxPrefaceV2 = 4096             // of one of version 2, behind the first 16
	prefaceTime  = 10 * time.Second // from accept to the end of the header
)

var signV1 = []byte("PROXY ")

var errNoPreface = errors.New("no PROXY protocol header, which listen.proxy_protocol asks this address for")

// cutPreface reads the PROXY protocol header that b begins with. It returns its
// length, 0 if more of it is to come, and the visitor's address: the zero value
// if the header tells of none.
func cutPreface(b []byte) (visitor netip.AddrPort, n int, err error) {
	switch {
	case hasPrefix(b, proxyproto.SIGV2):
		if len(b) < 16 {
			return netip.AddrPort{}, 0, nil
		}
		size := int(binary.BigEndian.Uint16(b[14:]))
		if size > maxPrefaceV2 {
			return netip.AddrPort{}, 0, fmt.Errorf("PROXY protocol header of %d bytes, more than %d", size, maxPrefaceV2)
		}
		n = 16 + size
	case hasPrefix(b, signV1):
		end := bytes.IndexByte(b[:min(len(b), maxPrefaceV1)], '\n')
		if end < 0 {
			if len(b) >= maxPrefaceV1 {
				return netip.AddrPort{}, 0, fmt.Errorf("PROXY protocol header of more than %d bytes", maxPrefaceV1)
			}
			return netip.AddrPort{}, 0, nil
		}
		n = end + 1
	default:
		return netip.AddrPort{}, 0, errNoPreface
	}
	if len(b) < n {
		return netip.AddrPort{}, 0, nil
	}
	h, err := proxyproto.Read(bufio.NewReader(bytes.NewReader(b[:n])))
	if err == nil {
		_, err = h.TLVs()
	}
	if err != nil {
		return netip.AddrPort{}, 0, err
	}
	if from, _, ok := h.TCPAddrs(); ok && h.Command.IsProxy() {
		a := from.AddrPort()
		visitor = netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
	}
	return visitor, n, nil
}

// hasPrefix reports whether b begins with sign, or is all of it that has come.
func hasPrefix(b, sign []byte) bool {
	n := min(len(b), len(sign))
	return bytes.Equal(b[:n], sign[:n])
}

// preface is the handler of a connection from a proxy until its header has come.
// It counts as a visitor from nowhere, so that the proxy has no share of its own
// in the limits for one address.
type preface struct {
	relay   *Relay
	loop    *loop
	conn    *evloop.Conn
	next    func(visitor netip.AddrPort)
	timer   evloop.Timer
	verdict verdict
	over    bool
}

// meet calls next as soon as the address of the visitor behind c is known, if it
// ever is. On the connection's loop.
func (r *Relay) meet(c *evloop.Conn, l *loop, next func(visitor netip.AddrPort)) {
	if !r.isProxy(c.RemoteAddr().Addr()) {
		next(c.RemoteAddr())
		return
	}
	p := &preface{relay: r, loop: l, conn: c, next: next}
	if p.verdict = r.admission.enter(netip.Addr{}); p.verdict == turnedAway {
		l.counters.TurnedAway++
		c.Abort(errFull)
		return
	}
	l.Arm(&p.timer, prefaceTime, func() { p.refuse(errDeadline) })
	c.SetHandler(p)
}

func (r *Relay) isProxy(a netip.Addr) bool {
	a = a.Unmap().WithZone("")
	for _, p := range r.Proxies {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// end gives back what the connection had as long as its visitor was unknown.
func (p *preface) end() {
	if !p.over {
		p.over = true
		p.timer.Stop()
		p.relay.admission.leave(netip.Addr{}, p.verdict)
	}
}

func (p *preface) refuse(err error) {
	p.loop.counters.Prefaces++
	from := p.conn.RemoteAddr()
	p.relay.log.Log(context.Background(), p.relay.refusalLevel(from.Addr(), relay.RefuseMalformed), "connection refused", "remote", from, "err", err)
	p.conn.Abort(err)
}

func (p *preface) OnData(b []byte) int {
	visitor, n, err := cutPreface(b)
	switch {
	case err != nil:
		p.refuse(err)
	case n > 0:
		p.end()
		if !visitor.IsValid() { // the proxy itself: it looks whether we are there
			visitor = p.conn.RemoteAddr()
		}
		p.next(visitor)
	}
	return n
}

func (p *preface) OnEOF()        { p.conn.Abort(errTruncated) }
func (p *preface) OnDrain()      {}
func (p *preface) OnClose(error) { p.end() }
