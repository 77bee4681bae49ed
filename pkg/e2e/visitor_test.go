//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"net"
	"net/http"
	"testing"
)

// visitorOf is an HTTP client that finds every host at one address.
func visitorOf(t testing.TB, addr string) *http.Client {
	tr := &http.Transport{
		TLSClientConfig: &tls.Config{RootCAs: caPool()},
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, addr)
		},
	}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}
