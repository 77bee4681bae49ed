//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"

	"culvert.dev/pkg/netem"
)

// visitorOf is an HTTP client that finds every host at one address.
func visitorOf(t testing.TB, addr string) *http.Client {
	return visitorIn(t, nil, addr)
}

func visitorIn(t testing.TB, n *netem.Namespace, addr string) *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: caPool()},
		DialContext: func(_ context.Context, network, _ string) (net.Conn, error) {
			return dialIn(n, network, addr)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

// certFile returns the path of ca.pem, cert.pem or key.pem.
func certFile(name string) string { return filepath.Join(root, "certs", name) }

// caPool holds the test CA.
var caPool = sync.OnceValue(func() *x509.CertPool {
	pool := x509.NewCertPool()
	b, err := os.ReadFile(certFile("ca.pem"))
	if err != nil || !pool.AppendCertsFromPEM(b) {
		panic("BUG: test CA is unreadable")
	}
	return pool
})

// dialTLS connects to a TLS listener as a visitor of host.
func dialTLS(t testing.TB, addr, host string) *tls.Conn {
	t.Helper()
	d := tls.Dialer{NetDialer: &net.Dialer{Timeout: waitLimit}, Config: &tls.Config{RootCAs: caPool(), ServerName: host}}
	c, err := d.DialContext(t.Context(), "tcp", addr)
	if err != nil {
		t.Fatalf("dial %s as %s: %v", addr, host, err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*tls.Conn)
}

// serverTLS is the configuration of a TLS server with the test certificate.
func serverTLS(t testing.TB) *tls.Config {
	t.Helper()
	cert, err := tls.LoadX509KeyPair(certFile("cert.pem"), certFile("key.pem"))
	if err != nil {
		t.Fatal(err)
	}
	return &tls.Config{Certificates: []tls.Certificate{cert}}
}
