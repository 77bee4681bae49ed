package evloop

import (
	"bytes"
	"cmp"
	"crypto/tls"
	"errors"
	"io"
	"net"
)

// The alerts of RFC 8446, section 6, that answer what is no ClientHello.
const (
	alertUnexpectedMessage tls.AlertError = 10
	alertRecordOverflow    tls.AlertError = 22
	alertIllegalParameter  tls.AlertError = 47
	alertDecodeError       tls.AlertError = 50
	alertProtocolVersion   tls.AlertError = 70
)

// A HelloError says why what a client sent first is not the ClientHello of a TLS connection.
type HelloError struct {
	Alert  tls.AlertError // the answer to it, see Conn.RefuseTLS
	reason string
}

func (e *HelloError) Error() string { return "tls: " + e.reason }

// wholeHello reports whether b starts with a complete ClientHello, which may be cut into records in any way (RFC 8446,
// section 5.1). It fails on what cannot become one, and on more handshake messages in the hello's last record, for which
// there can be no reason yet.
func wholeHello(b []byte) (bool, error) {
	const recordHeader, maxRecord, helloHeader, maxHello = 5, 16 << 10, 4, 64 << 10
	var header [helloHeader]byte
	have := 0 // bytes of handshake messages in the records so far
	for {
		switch {
		case len(b) > 0 && b[0] == 0x80: // which a record of SSL 2 starts with
			return false, &HelloError{alertProtocolVersion, "this is SSL 2"}
		case len(b) > 0 && b[0] != 22:
			return false, &HelloError{alertUnexpectedMessage, "this is no handshake"}
		case len(b) > 1 && b[1] != 3:
			return false, &HelloError{alertProtocolVersion, "this is no version of TLS"}
		case len(b) < recordHeader:
			return false, nil
		}
		n := int(b[3])<<8 | int(b[4])
		switch {
		case n == 0:
			return false, &HelloError{alertUnexpectedMessage, "a record of the ClientHello is empty"}
		case n > maxRecord:
			return false, &HelloError{alertRecordOverflow, "a record of the ClientHello is too long"}
		}
		part := b[recordHeader:min(len(b), recordHeader+n)]
		if have < helloHeader {
			copy(header[have:], part)
		}
		size := helloHeader + (int(header[1])<<16 | int(header[2])<<8 | int(header[3])) // once there are so many
		switch seen := have + len(part); {
		case seen > 0 && header[0] != 1:
			return false, &HelloError{alertUnexpectedMessage, "the first message is no ClientHello"}
		case seen >= helloHeader && size > maxHello:
			return false, &HelloError{alertIllegalParameter, "the ClientHello is too long"}
		}
		have += n
		switch {
		case len(part) < n:
			return false, nil
		case have >= helloHeader && have > size:
			return false, &HelloError{alertUnexpectedMessage, "a message follows the ClientHello"}
		case have >= helloHeader && have == size:
			return true, nil
		}
		b = b[recordHeader+n:]
	}
}

// PeekClientHello waits for a complete ClientHello and calls done with its server name ("" if it has none) and
// protocols, leaving it unread: StartTLS comes next, or RefuseTLS, or a handler that passes it on. The name is as
// crypto/tls takes it: it may be in upper case, an address, or no host name at all. An error is a *HelloError, or says
// that the connection ended. The time it may take is the caller's to bound. Until then a handler that is set already
// hears only OnClose.
func (c *Conn) PeekClientHello(done func(sni string, alpn []string, err error)) {
	c.SetHandler(&helloPeek{c: c, next: c.handler, done: done})
}

type helloPeek struct {
	c    *Conn
	next Handler // before and after; may be nil
	done func(string, []string, error)
}

func (p *helloPeek) end(sni string, alpn []string, err error) {
	if done := p.done; done != nil {
		p.done = nil
		p.c.handler = p.next
		done(sni, alpn, err)
	}
}

func (p *helloPeek) OnData(b []byte) int {
	whole, err := wholeHello(b)
	switch {
	case err != nil:
		p.end("", nil, err)
	case whole:
		p.end(parseHello(b))
	case len(b) >= MaxKept:
		p.end("", nil, &HelloError{alertIllegalParameter, "the records of the ClientHello are too many"})
	}
	return 0
}

func (p *helloPeek) OnEOF()   { p.end("", nil, io.ErrUnexpectedEOF) }
func (p *helloPeek) OnDrain() {}
func (p *helloPeek) OnClose(err error) {
	p.end("", nil, cmp.Or(err, ErrClosed))
	if p.next != nil {
		p.next.OnClose(err)
	}
}

// RefuseTLS answers a ClientHello, whole or not, with a fatal alert in the clear and closes c in good order. A
// handshake must not have begun.
func (c *Conn) RefuseTLS(alert tls.AlertError) {
	c.Write(alertRecord(alert))
	c.Close()
}

// alertRecord is a fatal alert in the clear.
func alertRecord(alert tls.AlertError) []byte { return []byte{21, 3, 3, 0, 2, 2, byte(alert)} }

// parseHello has crypto/tls read the ClientHello that b starts with: what comes of it is what a handshake would come to.
func parseHello(b []byte) (sni string, alpn []string, err error) {
	var hello *tls.ClientHelloInfo
	nc := &helloConn{r: bytes.NewReader(b)}
	err = tls.Server(nc, &tls.Config{
		GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			hello = h
			return nil, errPeeked
		},
	}).Handshake()
	if hello == nil {
		return "", nil, &HelloError{nc.alert(), err.Error()}
	}
	return hello.ServerName, hello.SupportedProtos, nil
}

var errPeeked = errors.New("peeked")

// helloConn gives crypto/tls a ClientHello to parse and nothing else. It keeps the answer.
type helloConn struct {
	net.Conn // nil: any other use is a bug
	r        *bytes.Reader
	answer   []byte
}

// alert is what crypto/tls answers, or else that the hello cannot be decoded.
func (h *helloConn) alert() tls.AlertError {
	if len(h.answer) == 7 && h.answer[0] == 21 {
		return tls.AlertError(h.answer[6])
	}
	return alertDecodeError
}

func (h *helloConn) Read(b []byte) (int, error) { return h.r.Read(b) }
func (h *helloConn) Write(b []byte) (int, error) {
	h.answer = append(h.answer, b...)
	return len(b), nil
}
func (h *helloConn) RemoteAddr() net.Addr { return nil }
func (h *helloConn) LocalAddr() net.Addr  { return nil }
