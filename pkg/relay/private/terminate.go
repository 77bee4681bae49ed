package private

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/relay"
)

// TLS says how the TLS of a tls:// service's visitors ends at this relay.
type TLS struct {
	// GetCertificate is that of tls.Config; it may wait. Required.
	GetCertificate func(*tls.ClientHelloInfo) (*tls.Certificate, error)

	// ACME says that GetCertificate answers the challenges of an authority, too: handshakes that offer acme-tls/1
	// alone (RFC 8737). The names of the service are among those that Relay.Names hears of.
	ACME bool

	// Protocols are offered by ALPN, the best first, to visitors of a tcp:// or unix:// target. None: whatever they
	// ask for, nothing is negotiated. What the other targets speak is known.
	Protocols []string

	// ClientCAs vouch for the certificates that visitors must have. If nil, they need none.
	ClientCAs *x509.CertPool
}

// handshakeTimeout is how long a visitor has from the stream's beginning to the end of the TLS handshake.
const handshakeTimeout = 10 * time.Second

// acmeALPN is the protocol of a challenge, which ends with the handshake (rfc8737#section-3).
const acmeALPN = "acme-tls/1"

// cipherSuites are those of TLS 1.2: authenticated encryption with forward secrecy, which HTTP/2 demands
// (rfc9113#section-9.2.2).
var cipherSuites = []uint16{
	tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
	tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
	tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305,
}

// validate reports what is wrong with the TLS of s.
func (t *TLS) validate(s relay.Service) error {
	switch {
	case s.Publish.Scheme != "tls":
		return fmt.Errorf("service %q: TLS ends here for tls:// publishes only", s.Name)
	case t.GetCertificate == nil:
		return fmt.Errorf("service %q: no certificate", s.Name)
	case len(t.Protocols) > 0 && s.Target.Scheme != "tcp" && s.Target.Scheme != "unix":
		return fmt.Errorf("service %q: alpn is for tcp:// and unix:// targets: an %s:// target has its own", s.Name, s.Target.Scheme)
	case slices.Contains(t.Protocols, acmeALPN):
		return fmt.Errorf("service %q: alpn %q is for the challenges of certificate authorities", s.Name, acmeALPN)
	}
	return nil
}

// config is what visitors of s, one of the services, get in their handshakes.
func (t *TLS) config(s *service, all *services) *tls.Config {
	// A certificate for several services does not make one of them another: whoever directs visitors to the wrong
	// one meets nothing here.
	certificate := func(hello *tls.ClientHelloInfo) (c *tls.Certificate, err error) {
		host := s.Publish.Host
		if name := strings.ToLower(hello.ServerName); name != "" {
			if !relay.MatchHost(host, name) || all.passed[name] != nil && all.passed[name] != s {
				return nil, nil // crypto/tls says unrecognized_name
			}
		} else if hello.ServerName = host; strings.HasPrefix(host, "*") {
			return nil, nil
		}
		evloop.Yield(hello, func() { c, err = t.GetCertificate(hello) })
		return c, err
	}
	base := &tls.Config{
		MinVersion:                  tls.VersionTLS12,
		CipherSuites:                cipherSuites,
		GetCertificate:              certificate,
		NextProtos:                  t.Protocols,
		DynamicRecordSizingDisabled: true,
	}
	switch s.Target.Scheme {
	case "http", "https", "file":
		base.NextProtos = []string{"http/1.1"}
	case "h2c", "h2":
		base.NextProtos = []string{"h2"}
	}
	if t.ClientCAs != nil {
		base.ClientCAs, base.ClientAuth = t.ClientCAs, tls.RequireAndVerifyClientCert
	}
	if t.ACME {
		challenge := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: []string{acmeALPN}, GetCertificate: certificate, SessionTicketsDisabled: true}
		base.GetConfigForClient = func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			if len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acmeALPN {
				return challenge, nil
			}
			return nil, nil
		}
	}
	return base
}

// terminate does the TLS handshake on a stream of a visitor, or on what comes out of an operator's, and then serves the
// plaintext.
func (p *peer) terminate(s forward.End, svc *service, visitor netip.AddrPort) {
	c, err := p.loop.AttachEnd(s, visitor)
	if err != nil {
		return // the loop is being closed
	}
	svc.open.Add(1)
	c.SetHandler(unshaken{svc})
	c.StartTLS(svc.terminate, false, handshakeTimeout, func(err error) {
		switch {
		case err != nil:
			svc.unshaken.Add(1)
		case c.TLS().NegotiatedProtocol == acmeALPN:
			c.Close()
		default:
			svc.open.Add(-1)
			p.join(c, svc, visitor, c.TLS())
		}
	})
}

// unshaken is the handler of a connection that has not come out of its handshake.
type unshaken struct{ service *service }

func (u unshaken) OnData(b []byte) int { return len(b) }
func (u unshaken) OnEOF()              {}
func (u unshaken) OnDrain()            {}
func (u unshaken) OnClose(error)       { u.service.streamEnded(nil) }

// setNames notes for which of the services in an announcement certificates can be obtained from now on: those that the
// relay publishes, as long as visitors, authorities among them, come here.
func (p *peer) setNames() {
	r := p.relay
	var names []string
	if !p.standby {
		names = p.published
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if slices.Equal(r.names[p], names) {
		return
	}
	if r.names == nil {
		r.names = make(map[*peer][]string)
	}
	r.names[p] = names
	select {
	case r.renamed <- struct{}{}:
	default:
	}
}

// wanted are the hosts of Names.
func (r *Relay) wanted() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := make(map[string]bool)
	for _, names := range r.names {
		for _, n := range names {
			all[n] = true
		}
	}
	return slices.Sorted(maps.Keys(all))
}
