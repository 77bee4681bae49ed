package public

import (
	"crypto/tls"
	"slices"
	"strings"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

// challengePath is what the path of a request begins with that an authority makes to
// see whether it should sign a certificate (rfc8555#section-8.3).
const challengePath = "/.well-known/acme-challenge/"

// challengeALPN is what an authority offers alone in a handshake for the same purpose
// (rfc8737#section-3). It is accepted while one is waited for.
const challengeALPN = "acme-tls/1"

// newProofTLS makes the config of such handshakes. Nothing follows them.
func newProofTLS(base *tls.Config) *tls.Config {
	if base == nil {
		return nil
	}
	return &tls.Config{
		MinVersion:             tls.VersionTLS12,
		NextProtos:             []string{challengeALPN},
		GetCertificate:         base.GetCertificate,
		SessionTicketsDisabled: true,
	}
}

// isChallenge reports whether an authority is waited for. It may block.
func (r *Relay) isChallenge(hello *tls.ClientHelloInfo) (ok bool) {
	if r.Challenging != nil {
		evloop.Yield(hello, func() { ok = r.Challenging(hello.ServerName) })
	}
	return ok
}

// proof is what Relay.Challenge has said about a request.
type proof struct {
	host, path string
	answer     string
	ok         bool
}

// challenge decides about requests that may come from an authority: in the clear, so
// before anything is redirected. What is not for us is a request as any other.
func (l *loop) challenge(c *client, req *http1.Request) (decision, bool) {
	if c.secure || l.relay.Challenge == nil || !strings.HasPrefix(string(req.Path), challengePath) {
		return decision{}, false
	}
	if m := string(req.Method); m != "GET" && m != "HEAD" {
		return decision{}, false
	}
	p := c.proof
	c.proof = nil
	switch {
	case p == nil || p.host != string(l.host) || p.path != string(req.Path):
		return decision{action: doProve}, true
	case p.ok:
		return decision{action: doAnswer, trouble: &trouble{200, p.answer}}, true
	}
	return decision{}, false
}

// prove asks Relay.Challenge about a request, off the loop, and has it read again.
func (v *visitor) prove(host, path string) {
	v.phase = held
	v.conn.Pause()
	v.due.stop() // what is asked has a deadline of its own
	p := &proof{host: host, path: path}
	v.loop.Go(
		func() { p.answer, p.ok = v.relay.Challenge(host, path) },
		func() {
			v.proof = p
			v.release()
		})
}

// tellPublished has the owner of certificates told which hosts visitors reach by
// https, if those are others now. r.mu is held, and is not when Published is called:
// one call at a time, the last one with what is true at the end.
func (r *Relay) tellPublished() {
	if r.Published == nil {
		return
	}
	var hosts []string
	for route := range r.claims {
		if route.secure {
			hosts = append(hosts, route.host)
		}
	}
	slices.Sort(hosts)
	hosts = slices.Compact(hosts)
	if slices.Equal(hosts, r.published) {
		return
	}
	r.published = hosts
	if !r.telling {
		r.telling = true
		go r.callPublished()
	}
}

func (r *Relay) callPublished() {
	var told []string
	for {
		r.mu.Lock()
		hosts := r.published
		if told != nil && slices.Equal(hosts, told) {
			r.telling = false
			r.mu.Unlock()
			return
		}
		r.mu.Unlock()
		if told = slices.Clone(hosts); told == nil {
			told = []string{}
		}
		r.Published(hosts)
	}
}
