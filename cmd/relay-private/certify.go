package main

import (
	"cmp"
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"culvert.dev/pkg/acme"
	"culvert.dev/pkg/acmetoml"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay/private"
)

// end says how the TLS of a service's visitors ends at this relay, if it does.
func (c *serviceConfig) end(f *daemon.File, at, dir string, svc *private.Service, authority *acmetoml.Settings) *private.TLS {
	made := &private.TLS{Protocols: c.ALPN, GetCertificate: noCertificate}
	switch {
	case c.TLS != "" && c.TLS != "acme":
		f.Addf(at+".tls", "tls %q: want \"acme\", or leave it out and name a certificate and certificate_key", c.TLS)
	case c.TLS != "" && (c.Certificate != "" || c.CertificateKey != ""):
		f.Addf(at+".tls", "tls = \"acme\" obtains a certificate, and there is one: leave one of them out")
	case c.TLS != "":
		made.ACME = true
		switch {
		case authority == nil:
			f.Addf(at+".tls", "tls = \"acme\": [acme] is missing, which names the authority, and agrees to its terms")
		case strings.HasPrefix(svc.Publish.Host, "*") && authority.DNS == nil:
			f.Addf(at+".tls", "tls = \"acme\": a wildcard is proved by a record: [acme.dns] is missing, which says how to set one")
		}
	case c.Certificate != "" && c.CertificateKey != "":
		made.GetCertificate = certificateOf(f, at+".certificate", daemon.InDir(dir, c.Certificate), daemon.InDir(dir, c.CertificateKey), svc.Publish.Host)
	case c.Certificate != "":
		f.Addf(at+".certificate", "certificate without certificate_key")
	case c.CertificateKey != "":
		f.Addf(at+".certificate_key", "certificate_key without certificate")
	case c.ALPN != nil:
		f.Addf(at+".alpn", "alpn is for services whose TLS ends at this relay: name a certificate and certificate_key, or tls = \"acme\"")
		fallthrough
	default:
		return nil
	}
	if c.ClientCA != "" {
		made.ClientCAs = readCA(f, at+".client_ca", daemon.InDir(dir, c.ClientCA))
	}
	return made
}

// certificates are what [acme] runs.
type certificates struct {
	*acme.Manager
	store *acmetoml.Store
}

// startACME starts what [acme] asks for; nil if that is nothing.
func (s *settings) startACME(log *slog.Logger) (*certificates, error) {
	if s.acme == nil {
		return nil, nil
	}
	files, err := acme.OpenFiles(filepath.Join(s.state, "acme"))
	if err != nil {
		return nil, fmt.Errorf("certificates: %w", err)
	}
	store, err := s.acme.Open(files)
	if err != nil {
		return nil, err
	}
	cfg := acme.Config{
		Store:       store.Storage,
		Cache:       store.Cache,
		Directories: s.acme.Directories,
		Challenges:  []string{acme.TLSALPN01}, // nobody but the public relay has a port 80
		DNS:         s.acme.DNS,
		Log:         log,
		Proxy: func(r *http.Request) (*url.URL, error) {
			return s.find(net.JoinHostPort(r.URL.Hostname(), cmp.Or(r.URL.Port(), "443")))
		},
	}
	if s.acme.DNS != nil && s.acme.DNS.Hook != nil {
		h := s.acme.DNS.Hook
		h.Log, h.Env = log, os.Environ()
	}
	m, err := acme.New(cfg)
	if err != nil {
		store.Close()
		return nil, err
	}
	return &certificates{m, store}, nil
}

// close ends it.
func (c *certificates) close() {
	if c != nil {
		c.Close()
		c.store.Close()
	}
}

// use has the services that want it get their certificates from c, which is nil if none does.
func (c *certificates) use(services []private.Service) {
	for _, svc := range services {
		if c != nil && svc.TLS != nil && svc.TLS.ACME {
			svc.TLS.GetCertificate = c.GetCertificate
		}
	}
}

// manage takes the names for which certificates can be obtained.
func (c *certificates) manage(hosts []string) {
	if c != nil {
		c.Manage(hosts)
	}
}

// retry has what failed tried again.
func (c *certificates) retry() {
	if c != nil {
		c.Retry()
	}
}

// missing are the names that have no certificate, or one that has expired.
func (c *certificates) missing() string {
	if c == nil {
		return ""
	}
	var names []string
	for _, one := range c.Status() {
		if one.Expires.Before(time.Now()) {
			names = append(names, one.Name)
		}
	}
	return strings.Join(names, ", ")
}

func noCertificate(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }

// certificateOf reads a certificate for host.
func certificateOf(f *daemon.File, at, certificate, key, host string) func(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		f.Addf(at, "certificate: %v", err)
	} else if host != "" {
		if err := pair.Leaf.VerifyHostname(strings.Replace(host, "*", "any", 1)); err != nil {
			f.Addf(at, "certificate: it is for %s, and not for %q", strings.Join(pair.Leaf.DNSNames, ", "), host)
		}
	}
	if info, err := os.Stat(key); err == nil && runtime.GOOS != "windows" && info.Mode().Perm()&0o004 != 0 {
		f.Addf(at+"_key", "certificate_key: everybody may read it: run chmod 600 %s", key)
	}
	return func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &pair, nil }
}
