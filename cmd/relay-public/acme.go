package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/acme"
	"culvert.dev/pkg/acmetoml"
	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
)

// acmeConfig is [acme].
type acmeConfig struct {
	acmetoml.Config

	// Challenges are how the relay may prove that a name is its own: "http-01" (on listen.http, which has to
	// be reached on port 80), "tls-alpn-01" (on listen.https, on port 443) and "dns-01" (see DNS). The
	// default is the first two.
	Challenges []string `toml:"challenges"`

	// Names are further names to have certificates for, such as "*.example.com", which is then for all hosts
	// right below it. Wildcards need DNS.
	Names []string `toml:"names"`
}

// acmeSettings are the values that [acme] stands for.
type acmeSettings struct {
	*acmetoml.Settings
	challenges []string
	names      []string
}

// equal reports whether nothing has changed between them.
func (s *acmeSettings) equal(o *acmeSettings) bool {
	return s.Settings.Equal(o.Settings) && slices.Equal(s.challenges, o.challenges) && slices.Equal(s.names, o.names)
}

// check completes the settings and reads the files they name.
func (c *acmeConfig) check(f *daemon.File, dir string, hasHTTP bool) *acmeSettings {
	s := &acmeSettings{Settings: c.Config.Check(f, dir), challenges: c.Challenges, names: c.Names}
	if s.challenges == nil {
		s.challenges = []string{acme.TLSALPN01}
		if hasHTTP {
			s.challenges = []string{acme.HTTP01, acme.TLSALPN01}
		}
	}
	for i, kind := range s.challenges {
		at := fmt.Sprintf("acme.challenges[%d]", i)
		switch {
		case kind == acme.HTTP01 && !hasHTTP:
			f.Addf(at, "challenge http-01: listen.http is empty, so there is nobody to answer")
		case kind == acme.DNS01 && s.DNS == nil:
			f.Addf(at, "challenge dns-01: [acme.dns] is missing, which says how to set records")
		case kind != acme.HTTP01 && kind != acme.TLSALPN01 && kind != acme.DNS01:
			f.Addf(at, "challenge %q: want \"http-01\", \"tls-alpn-01\" or \"dns-01\"", kind)
		}
	}
	if len(s.challenges) == 0 {
		f.Addf("acme.challenges", "challenges is empty: there would be no way to prove anything")
	}
	for i, name := range s.names {
		at := fmt.Sprintf("acme.names[%d]", i)
		if p, err := relay.ParsePattern("https://" + name); err != nil || p.Host != name || p.Path != "/" {
			f.Addf(at, "name %q: want a host name in lower case, or a wildcard such as \"*.example.com\"", name)
		} else if strings.HasPrefix(name, "*.") && s.DNS == nil {
			f.Addf(at, "name %q: a wildcard is proved by a record: [acme.dns] is missing, which says how to set one", name)
		}
	}
	return s
}

// certificates are what [acme] runs.
type certificates struct {
	*acme.Manager
	settings *acmeSettings
	close    func()
}

// startACME starts what [acme] asks for.
func (st *state) startACME(s *acmeSettings) (*certificates, error) {
	store, err := s.Open(st.files)
	if err != nil {
		return nil, err
	}
	if s.DNS != nil && s.DNS.Hook != nil {
		h := s.DNS.Hook
		h.Log, h.Env = st.log, os.Environ()
	}
	m, err := acme.New(acme.Config{
		Store:       store.Storage,
		Cache:       store.Cache,
		Directories: s.Directories,
		Challenges:  s.challenges,
		DNS:         s.DNS,
		OnDemand:    st.onDemand,
		Fallback:    st.domain,
		Proxy:       http.ProxyFromEnvironment,
		Log:         st.log,
	})
	if err != nil {
		store.Close()
		return nil, err
	}
	return &certificates{m, s, func() { m.Close(); store.Close() }}, nil
}

// applyACME takes the [acme] of a configuration: what has not changed goes on. The old one, if any, is to be
// closed by the caller, without st.mu.
func (st *state) applyACME(s *acmeSettings) (old *certificates, err error) {
	now := st.acme.Load()
	switch {
	case s == nil && now == nil:
		return nil, nil
	case s != nil && now != nil && s.equal(now.settings):
		now.Retry()
		return nil, nil
	case s == nil:
		st.acme.Store(nil)
		return now, nil
	}
	next, err := st.startACME(s)
	if err != nil {
		return nil, err
	}
	st.acme.Store(next)
	return now, nil
}

// publishedHosts takes the hosts that are published by https now.
func (st *state) publishedHosts(hosts []string) {
	st.hosts.Store(&hosts)
	st.manage()
}

// manage has the right names certified.
func (st *state) manage() {
	st.managing.Lock() // so that the last one to ask knows the last state
	defer st.managing.Unlock()
	c := st.acme.Load()
	if c == nil {
		return
	}
	names := append([]string{st.domain}, c.settings.names...)
	if hosts := st.hosts.Load(); hosts != nil {
		names = append(names, *hosts...)
	}
	given := st.given.Load()
	c.Manage(slices.DeleteFunc(names, func(n string) bool {
		return strings.HasPrefix(n, "*.") && c.settings.DNS == nil || given != nil && covers(given, n)
	}))
}

// covers reports whether a certificate is for a name, which may be a wildcard.
func covers(c *tls.Certificate, name string) bool {
	return slices.Contains(c.Leaf.DNSNames, name) || !strings.HasPrefix(name, "*.") && c.Leaf.VerifyHostname(name) == nil
}

// onDemand lets visitors have certificates ordered for hosts of a wildcard that is published.
func (st *state) onDemand(name string) error {
	if hosts := st.hosts.Load(); hosts != nil {
		for _, h := range *hosts {
			if strings.HasPrefix(h, "*.") && relay.MatchHost(h, name) {
				return nil
			}
		}
	}
	return errors.New("nothing is published there")
}

// certificateFor is the certificate of a handshake. It may wait for one that is on its way.
func (st *state) certificateFor(hello *tls.ClientHelloInfo) (c *tls.Certificate, err error) {
	given, m := st.given.Load(), st.acme.Load()
	name := hello.ServerName
	if name == "" {
		name = st.domain
	}
	isChallenge := len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPN
	switch {
	case m == nil:
		return st.certificate.Load(), nil
	case isChallenge:
	case given != nil && covers(given, strings.ToLower(name)):
		return given, nil
	default:
		if c := m.Certificate(name); c != nil {
			return c, nil
		}
	}
	evloop.Yield(hello, func() { c, err = m.GetCertificate(hello) })
	return c, err
}

// ownCertificate is that of the domain, nil if there is none yet.
func (st *state) ownCertificate() *tls.Certificate {
	given, m := st.given.Load(), st.acme.Load()
	if m == nil || given != nil && covers(given, st.domain) {
		return st.certificate.Load()
	}
	return m.Certificate(st.domain)
}

// renewCertificate has another certificate ordered.
func (st *state) renewCertificate(_ context.Context, in admin.Named) error {
	name := in.Name
	if m := st.acme.Load(); m != nil && m.Renew(name) {
		return nil
	}
	return &admin.Error{Code: http.StatusNotFound, Text: fmt.Sprintf("the relay obtains no certificate for %q: `tunnelctl certs` lists those that it does", name)}
}

// challenge answers an authority's HTTP-01.
func (st *state) challenge(host, path string) (string, bool) {
	if m := st.acme.Load(); m != nil {
		return m.HTTPChallenge(host, path)
	}
	return "", false
}

// challenging reports whether it may ask by TLS-ALPN-01.
func (st *state) challenging(name string) bool {
	m := st.acme.Load()
	return m != nil && m.Challenging(name)
}

// closeACME ends what startACME has started.
func (st *state) closeACME() {
	if c := st.acme.Swap(nil); c != nil {
		c.close()
	}
}

// obtained are the certificates of [acme], for operators to see.
func (st *state) obtained() []admin.Certificate {
	list := []admin.Certificate{}
	m := st.acme.Load()
	if m == nil {
		return list
	}
	at := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.Round(time.Second)
		return &t
	}
	for _, c := range m.Status() {
		list = append(list, admin.Certificate{
			Name: c.Name, Directory: c.Directory, Issuer: c.Issuer, Expires: at(c.Expires), Renews: at(c.Renews),
			OnDemand: c.OnDemand, Ordering: c.Busy, Failures: c.Failures, Error: c.Err, NextTry: at(c.NextTry),
		})
	}
	return list
}
