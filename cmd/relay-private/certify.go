package main

import (
	"crypto/tls"
	"os"
	"runtime"
	"strings"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay/private"
)

// end says how the TLS of a service's visitors ends at this relay, if it does.
func (c *serviceConfig) end(f *daemon.File, at, dir string, svc *private.Service) *private.TLS {
	made := &private.TLS{Protocols: c.ALPN, GetCertificate: noCertificate}
	switch {
	case c.Certificate != "" && c.CertificateKey != "":
		made.GetCertificate = certificateOf(f, at+".certificate", inDir(dir, c.Certificate), inDir(dir, c.CertificateKey), svc.Publish.Host)
	case c.Certificate != "":
		f.Addf(at+".certificate", "certificate without certificate_key")
	case c.CertificateKey != "":
		f.Addf(at+".certificate_key", "certificate_key without certificate")
	case c.ALPN != nil:
		f.Addf(at+".alpn", "alpn is for services whose TLS ends at this relay: name a certificate and certificate_key")
		fallthrough
	default:
		return nil
	}
	return made
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
