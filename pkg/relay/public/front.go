package public

import (
	"crypto/x509"
	"net/netip"
	"sync/atomic"

	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/tunnel"
)

// client is what is known of the visitor behind a connection, in any version of
// HTTP. Policy, the access log and the forwarding fields read it. The fields are
// set before the first request is decided, but for proto in HTTP/1.
type client struct {
	addr               netip.AddrPort
	sni                string              // server name of the TLS handshake; "" if there was none
	proto              string              // "HTTP/1.0", "HTTP/1.1", "HTTP/2" or "HTTP/3"
	certs              []*x509.Certificate // that the visitor has sent, the first of which it has proved to have the key of. Nobody has vouched for them, see authority
	tls                uint16              // version; 0: none
	port               uint16              // that the visitor came in by
	secure             bool                // TLS
	verdict            verdict             // of admission, about the connection
	replayer           *replayer           // whose request it is; nil: a visitor's
	operator, replayed string              // with replayer: who has sent it, and the ID of the request that it was
	proof              *proof              // what Relay.Challenge has said about the request; nil: it has not been asked

	// What policies have found, on any loop.
	met     atomic.Pointer[met]     // those that have let this connection in, the last one first
	vouched atomic.Pointer[voucher] // of the certificate
}

// met is a policy that has let a connection in. A connection may be for several services in turn.
type met struct {
	policy *policy
	before *met
	n      int // with those before
}

// maxMet is how many of them a connection remembers. They may be of services that are gone.
const maxMet = 16

// knows reports whether p has let c in.
func (c *client) knows(p *policy) bool {
	m := c.met.Load()
	for m != nil && m.policy != p {
		m = m.before
	}
	return m != nil
}

// meets writes down that p has.
func (c *client) meets(p *policy) {
	for {
		old := c.met.Load()
		m := &met{policy: p, before: old, n: 1}
		if old != nil && old.n < maxMet {
			m.n += old.n
		} else {
			m.before = nil
		}
		if c.met.CompareAndSwap(old, m) {
			return
		}
	}
}

// subject is that of the visitor's certificate; "" if no authority of a service has vouched for one.
func (c *client) subject() string {
	if p := c.vouched.Load(); p != nil && p.trouble == nil {
		return p.subject
	}
	return ""
}

func (c *client) scheme() string {
	if c.secure {
		return "https"
	}
	return "http"
}

// upgraded is the scheme of what a connection or a request has been upgraded to.
func (c *client) upgraded(res *http1.Response) string {
	switch {
	case !http1.EqualFold(res.Upgrade, "websocket"):
		return c.scheme()
	case c.secure:
		return "wss"
	}
	return "ws"
}

// front is the visitor's side of one exchange: an HTTP/1.1 connection, or a
// stream of HTTP/2 or HTTP/3. All methods are called on the loop of the exchange,
// which is that of the service's session. A front that lives elsewhere, on
// another loop or in a goroutine, is a bridge: its methods pass on what they are
// given, and what its other half has to say to the exchange is posted to the loop.
//
// What a front does, in this order:
//
//   - It makes an http1.Request of the head, exactly one that
//     http1.ParseRequest would have accepted, and asks loop.decide on any loop.
//     If that says doMove, it asks again on the loop of the service.
//   - With doServe it calls loop.serve, in the same callback, and has the
//     exchange; or nil, when that has been answered at once. A front that cannot be
//     read again keeps a copy (http1.Request.Clone) while it waits for doHold or doLook.
//   - It gives the body of the request to exchange.body in pieces, and its end to
//     exchange.end, and calls exchange.pushed after each batch; unless exchange.sent is set
//     from the beginning, when there is none. Between pause and resume it takes
//     nothing more from the visitor; what is on the way already may still be given.
//   - It calls exchange.drained after full has said true and there is room again,
//     exchange.check every busyCheck, and exchange.cancel if the visitor is gone.
//
// An exchange ends by exactly one call of done, answer, cut, abort or upgrade, or
// by exchange.cancel. The exchange must not be used any more from within that call.
type front interface {
	// who is the visitor. It stays the same.
	who() *client

	// interim passes on a head with a 1xx status other than 101. res and all in it
	// are lent, here and below.
	interim(res *http1.Response)

	// head passes on the final head. It is to be cleared of hop-by-hop fields, and
	// res.Framing says whether the length of the body is known. end says that there
	// is no body: neither body nor end will be called. head reports whether the
	// rest of the request is of no use once the response is complete.
	head(res *http1.Response, end bool) (last bool)

	// body passes on a piece of the body, which is lent and not empty.
	body(p []byte)

	// end is the end of the body.
	end(trailers []http1.Field)

	// flush sends what the methods above have gathered. It is called in the same
	// callback.
	flush()

	// full reports whether the front has so much queued that the response has to
	// wait until exchange.drained.
	full() bool

	// waiting reports whether the visitor has not taken all that it was given.
	waiting() bool

	// pause and resume are about the body of the request.
	pause()
	resume()

	// done is the end in good order. The request may be incomplete: nobody wants the
	// rest.
	done()

	// answer ends an exchange, of which no final head has been given, with an answer
	// of our own. It is also what a front does itself with doAnswer.
	answer(t *trouble, fields ...http1.Field)

	// cut ends an exchange in the middle of the response, in such a way that the
	// visitor notices.
	cut()

	// abort ends an exchange whose visitor has missed a deadline.
	abort()

	// upgrade ends an exchange by 101 (Switching Protocols): from here on, the
	// visitor and st, a stream of s, are spliced. Or it returns what is wrong with
	// the answer, and nothing has happened.
	upgrade(res *http1.Response, st stream, s *service) *trouble
}

// back is the server's side of one exchange: a stream that carries HTTP/1.1, or one of
// an HTTP/2 connection in a stream. It calls interim, head and so on of the exchange.
type back interface {
	// body, end, flush and full are those of the request; see front.
	body(p []byte)
	end(trailers []http1.Field)
	flush()
	full() bool

	// waiting reports whether the way to the server has not taken all of the request.
	waiting() bool

	// pause and resume are about the response.
	pause()
	resume()

	// patient reports whether exchanges may be silent for as long as the visitor
	// likes.
	patient() bool

	// reads reports whether the server may still take the rest of a request that
	// it has answered.
	reads() bool

	// release ends the back of an exchange that is complete.
	release()

	// cancel ends it at any other time.
	cancel()

	// via is the stream that it uses.
	via() *tunnel.Stream
}

// stream is what a visitor is spliced with after an upgrade.
type stream interface {
	forward.End
	// Bytes and Confirmed are those of tunnel.Stream.
	Bytes() (received, written uint64)
	Confirmed() bool
}
