package public

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"syscall"

	"culvert.dev/pkg/evloop"
)

// Handshakes counts TLS handshakes with visitors and private relays, but for those of
// QUIC.
type Handshakes struct {
	TLS12, TLS13 uint64 // that came about
	Failed       [len(HandshakeTroubles)]uint64
}

// HandshakeTroubles are why handshakes fail: the visitor took too long; there were too
// many; the visitor went away; what it sent is no TLS; its certificate is not good; it
// refused ours, or something else that we said; they have no version, or no algorithm, in
// common, or what it said makes no sense; a site that ends its TLS itself is away, or
// there is a limit.
var HandshakeTroubles = [...]string{"timeout", "crowded", "cancelled", "not-tls", "certificate", "refused", "protocol", "turned-away"}

var errTurnedAway = errors.New("nobody is there to end the TLS")

func (h *Handshakes) add(o Handshakes) {
	h.TLS12 += o.TLS12
	h.TLS13 += o.TLS13
	for i, n := range o.Failed {
		h.Failed[i] += n
	}
}

// handshake counts one that is over.
func (l *loop) handshake(version uint16, err error) {
	h := &l.handshakes
	switch {
	case err != nil:
		l.counters.HandshakesFailed++
		h.Failed[handshakeTrouble(err)]++
	case version == tls.VersionTLS13:
		h.TLS13++
	default:
		h.TLS12++
	}
}

// handshakeTrouble is the index in HandshakeTroubles.
func handshakeTrouble(err error) int {
	if errors.Is(err, errDeadline) || errors.Is(err, evloop.ErrHandshakeTimeout) {
		return 0
	}
	if errors.Is(err, evloop.ErrHandshakeCrowded) {
		return 1
	}
	if err == errTurnedAway {
		return 7
	}
	if _, ok := errors.AsType[*tls.CertificateVerificationError](err); ok {
		return 4
	}
	if e, ok := errors.AsType[*net.OpError](err); ok && e.Op == "remote error" { // an alert
		return 5
	}
	if _, ok := errors.AsType[tls.RecordHeaderError](err); ok {
		return 3
	}
	if _, ok := errors.AsType[*evloop.HelloError](err); ok {
		return 3
	}
	_, system := errors.AsType[syscall.Errno](err)
	if system || errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, evloop.ErrClosed) || errors.Is(err, errTruncated) {
		return 2
	}
	return 6
}
