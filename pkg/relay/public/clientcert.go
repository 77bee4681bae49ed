package public

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
)

// Bounds of a visitor's chain: it is verified on the loop, and the certificate is told to
// the server in a field.
const (
	maxChain = 8       // certificates
	maxCert  = 6 << 10 // bytes of the visitor's own
)

// authority is the certificates that vouch for visitors of one service.
type authority struct {
	list  []*x509.Certificate
	roots *x509.CertPool
}

func newAuthority(p *relay.Policy) (*authority, error) {
	list, err := p.ClientCAs()
	if err != nil {
		return nil, fmt.Errorf("policy: client_ca: %w", err)
	}
	a := &authority{list: list, roots: x509.NewCertPool()}
	for _, c := range list {
		a.roots.AddCert(c)
	}
	return a, nil
}

// voucher is what one authority says about a visitor's certificate. It is immutable.
type voucher struct {
	to      *authority
	until   time.Time // it has to be looked at again
	trouble *trouble  // nil: the certificate is good
	subject string    // of it
	fields  []http1.Field
}

// check verifies the certificate of c for a request to host. The handshake has asked for it and
// proved that the visitor has its key, no more: a ticket resumes a session whose certificate
// has expired since, and one connection may be used for several hosts. So everything
// is looked at here, once for each connection and authority.
func (a *authority) check(c *client, host string, now time.Time) *trouble {
	p := a.of(c, now)
	if p.trouble != nil && string(appendHost(nil, []byte(c.sni))) != host {
		return troubleElsewhere // a connection of its own would be asked for another certificate
	}
	return p.trouble
}

// of returns what a says about c.
func (a *authority) of(c *client, now time.Time) *voucher {
	p := c.vouched.Load()
	if p == nil || p.to != a || now.After(p.until) {
		p = a.verify(c.certs, now)
		c.vouched.Store(p)
	}
	return p
}

// vouchTime is how long at most a verified certificate is not looked at again.
const vouchTime = time.Hour

func (a *authority) verify(certs []*x509.Certificate, now time.Time) *voucher {
	p := &voucher{to: a, until: now.Add(vouchTime)}
	switch {
	case len(certs) == 0:
		p.trouble = troubleNoCert
		return p
	case len(certs) > maxChain, len(certs[0].Raw) > maxCert:
		p.trouble = troubleBadCert
		return p
	}
	others := x509.NewCertPool()
	for _, c := range certs[1:] {
		others.AddCert(c)
	}
	leaf := certs[0]
	chains, err := leaf.Verify(x509.VerifyOptions{
		Roots: a.roots, Intermediates: others, CurrentTime: now,
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	})
	if err != nil {
		p.trouble = troubleBadCert
		p.until = now.Add(time.Second) // it may become valid
		return p
	}
	for _, c := range chains[0] {
		if c.NotAfter.Before(p.until) {
			p.until = c.NotAfter
		}
	}
	p.subject = leaf.Subject.String()
	sum := sha256.Sum256(leaf.Raw)
	p.fields = []http1.Field{
		{Name: []byte("X-Client-Cert-Subject"), Value: http1.AppendValue(nil, p.subject)},
		field("X-Client-Cert-Fingerprint", hex.EncodeToString(sum[:])),
		field("Client-Cert", ":"+base64.StdEncoding.EncodeToString(leaf.Raw)+":"), // rfc9440#section-2.1
	}
	return p
}

// asksFor are the TLS configs of hosts whose services want certificates, by host as in table.
type asksFor map[string]*tls.Config

// newAsks makes them. base is the config of everybody else.
func newAsks(base *tls.Config, services []*service) asksFor {
	want := make(map[string][]*x509.Certificate)
	for _, s := range services {
		if p := s.policy.Load(); p != nil && p.authority != nil {
			host := strings.TrimPrefix(s.host, "*")
			want[host] = append(want[host], p.authority.list...)
		}
	}
	if len(want) == 0 || base == nil {
		return nil
	}
	asks := make(asksFor, len(want))
	for host, list := range want {
		// A path of a.example.com that has no service there may be one of *.example.com.
		if host[0] != '.' {
			list = append(list, want[parent(host)]...)
		}
		asks[host] = askFor(base, list)
	}
	return asks
}

// askFor has a handshake ask for a certificate of one of these authorities, and go on without. Tickets
// are of the base, so that they outlive a reload, but one of a handshake that has not asked
// for these very authorities is not taken: its session would have no certificate for as long as it lives.
func askFor(base *tls.Config, list []*x509.Certificate) *tls.Config {
	cfg := base.Clone()
	cfg.GetConfigForClient = nil
	cfg.ClientAuth = tls.RequestClientCert
	cfg.ClientCAs = x509.NewCertPool()
	h := sha256.New()
	for _, c := range list {
		cfg.ClientCAs.AddCert(c)
		h.Write(c.Raw)
	}
	mark := string(h.Sum([]byte("culvert client_ca\x00")))
	cfg.WrapSession = func(cs tls.ConnectionState, ss *tls.SessionState) ([]byte, error) {
		ss.Extra = append(ss.Extra, []byte(mark))
		return base.EncryptTicket(cs, ss)
	}
	cfg.UnwrapSession = func(identity []byte, cs tls.ConnectionState) (*tls.SessionState, error) {
		ss, err := base.DecryptTicket(identity, cs)
		if err != nil || ss == nil {
			return nil, err
		}
		for _, e := range ss.Extra {
			if string(e) == mark {
				return ss, nil
			}
		}
		return nil, nil
	}
	return cfg
}
