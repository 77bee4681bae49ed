package acme

import (
	"context"
	"crypto/tls"
	"encoding/json"
	"errors"
	"net/netip"
	"path"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
	"github.com/miekg/dns"
)

const (
	maxToken     = 256             // bytes of a token; they have 43 as a rule
	challengeOld = time.Hour       // nobody asks any more
	askStore     = 2 * time.Second // a visitor waits for a store that long
)

// challenges are those that are under way: of this process, and, where relays share a
// Store, of all.
type challenges struct {
	shared certmagic.Storage // nil: nobody else asks for what we have ordered

	mu     sync.Mutex
	tokens map[string]acme.Challenge // of HTTP-01, by token
	names  map[string]*alpn          // of TLS-ALPN-01, by the name in the handshake
}

type alpn struct {
	challenge   acme.Challenge
	certificate *tls.Certificate
}

func (c *challenges) init(store certmagic.Storage) {
	if s, ok := store.(interface{ Shared() bool }); ok && s.Shared() {
		c.shared = store
	}
	c.tokens, c.names = make(map[string]acme.Challenge), make(map[string]*alpn)
}

// solvers are those for the challenges of a name.
func (m *Manager) solvers(name string) map[string]acmez.Solver {
	list := make(map[string]acmez.Solver)
	if strings.HasPrefix(name, "*.") {
		if m.cfg.DNS != nil {
			list[DNS01] = m.cfg.DNS.solver(m.log)
		}
		return list
	}
	for _, kind := range m.cfg.Challenges {
		switch kind {
		case HTTP01:
			list[kind] = httpSolver{&m.challenges}
		case TLSALPN01:
			list[kind] = alpnSolver{&m.challenges}
		case DNS01:
			list[kind] = m.cfg.DNS.solver(m.log)
		}
	}
	return list
}

func tokenKey(token string) string { return path.Join("challenges", "http", token+".json") }
func nameKey(name string) string {
	return path.Join("challenges", "tls", certmagic.StorageKeys.Safe(name)+".json")
}

// shownChallenge is one in a shared Store.
type shownChallenge struct {
	Challenge acme.Challenge `json:"challenge"`
	Since     time.Time      `json:"since"`
}

func (c *challenges) publish(ctx context.Context, key string, ch acme.Challenge) error {
	if c.shared == nil {
		return nil
	}
	b, err := json.Marshal(shownChallenge{ch, time.Now()})
	if err != nil {
		return err
	}
	return c.shared.Store(ctx, key, b)
}

func (c *challenges) withdraw(ctx context.Context, key string) error {
	if c.shared == nil {
		return nil
	}
	return c.shared.Delete(context.WithoutCancel(ctx), key)
}

// find asks the shared Store for a challenge of another relay.
func (c *challenges) find(ctx context.Context, key string) (acme.Challenge, bool) {
	if c.shared == nil {
		return acme.Challenge{}, false
	}
	ctx, cancel := context.WithTimeout(ctx, askStore)
	defer cancel()
	b, err := c.shared.Load(ctx, key)
	var s shownChallenge
	if err != nil || json.Unmarshal(b, &s) != nil || time.Since(s.Since) > challengeOld {
		return acme.Challenge{}, false
	}
	return s.Challenge, true
}

type httpSolver struct{ c *challenges }

func (s httpSolver) Present(ctx context.Context, ch acme.Challenge) error {
	if !isToken(ch.Token) {
		return errors.New("the authority has sent a token that is none")
	}
	s.c.mu.Lock()
	s.c.tokens[ch.Token] = ch
	s.c.mu.Unlock()
	return s.c.publish(ctx, tokenKey(ch.Token), ch)
}

func (s httpSolver) CleanUp(ctx context.Context, ch acme.Challenge) error {
	s.c.mu.Lock()
	delete(s.c.tokens, ch.Token)
	s.c.mu.Unlock()
	return s.c.withdraw(ctx, tokenKey(ch.Token))
}

type alpnSolver struct{ c *challenges }

func (s alpnSolver) Present(ctx context.Context, ch acme.Challenge) error {
	certificate, err := acmez.TLSALPN01ChallengeCert(ch)
	if err != nil {
		return err
	}
	name := alpnName(ch)
	s.c.mu.Lock()
	s.c.names[name] = &alpn{ch, certificate}
	s.c.mu.Unlock()
	return s.c.publish(ctx, nameKey(name), ch)
}

func (s alpnSolver) CleanUp(ctx context.Context, ch acme.Challenge) error {
	name := alpnName(ch)
	s.c.mu.Lock()
	if a := s.c.names[name]; a != nil && a.challenge.Token == ch.Token {
		delete(s.c.names, name)
	}
	s.c.mu.Unlock()
	return s.c.withdraw(ctx, nameKey(name))
}

// alpnName is the server name of the handshake that asks: for an address it is that
// of the reverse zone (rfc8738#section-6).
func alpnName(ch acme.Challenge) string {
	if _, err := netip.ParseAddr(ch.Identifier.Value); err == nil {
		if r, err := dns.ReverseAddr(ch.Identifier.Value); err == nil {
			return strings.TrimSuffix(r, ".")
		}
	}
	return strings.ToLower(ch.Identifier.Value)
}

// isToken reports whether it is base64url, and so can be in a path.
func isToken(s string) bool {
	if s == "" || len(s) > maxToken {
		return false
	}
	for _, c := range []byte(s) {
		if !(c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' || c >= '0' && c <= '9' || c == '-' || c == '_') {
			return false
		}
	}
	return true
}

// HTTPChallenge returns the answer to a request for a path of a host, which has no
// port, that an authority makes on port 80 to see that the host is ours. Nothing else
// is ok. It may ask the Store, and so block for two seconds.
func (m *Manager) HTTPChallenge(host, path string) (answer string, ok bool) {
	token, isChallenge := strings.CutPrefix(path, ChallengePath)
	if !isChallenge || !isToken(token) {
		return "", false
	}
	m.challenges.mu.Lock()
	ch, ok := m.challenges.tokens[token]
	m.challenges.mu.Unlock()
	if !ok {
		ch, ok = m.challenges.find(m.ctx, tokenKey(token))
	}
	if !ok || ch.Type != HTTP01 || !strings.EqualFold(ch.Identifier.Value, host) {
		return "", false
	}
	m.log.Debug("certificates: HTTP-01 answered", "name", host)
	return ch.KeyAuthorization, true
}

// Challenging reports whether an authority may ask for a name by TLS-ALPN-01 now, so
// that acme-tls/1 is to be accepted. Ask for handshakes that offer it alone: it may
// ask the Store, and so block for two seconds.
func (m *Manager) Challenging(name string) bool {
	_, ok := m.alpn(name)
	return ok
}

// alpn finds the challenge for a server name.
func (m *Manager) alpn(name string) (*alpn, bool) {
	name = strings.ToLower(name)
	m.challenges.mu.Lock()
	a := m.challenges.names[name]
	m.challenges.mu.Unlock()
	if a != nil {
		return a, true
	}
	ch, ok := m.challenges.find(m.ctx, nameKey(name))
	return &alpn{challenge: ch}, ok && ch.Type == TLSALPN01 && alpnName(ch) == name
}

// alpnCertificate answers a challenge.
func (m *Manager) alpnCertificate(name string) (*tls.Certificate, error) {
	a, ok := m.alpn(name)
	if !ok {
		return nil, errors.New("no TLS-ALPN-01 challenge is under way for this name")
	}
	m.log.Debug("certificates: TLS-ALPN-01 answered", "name", name)
	if a.certificate != nil {
		return a.certificate, nil
	}
	return acmez.TLSALPN01ChallengeCert(a.challenge)
}
