package evloop

import (
	"crypto/tls"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

var certificate = sync.OnceValue(newCertificate)

func serverConfig(testing.TB) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{certificate()}, DynamicRecordSizingDisabled: true}
}

func clientConfig() *tls.Config {
	return &tls.Config{RootCAs: rootsOf(certificate()), ServerName: "relay.test"}
}

// tlsPeer connects to a TLS server on the core's first loop whose handler is made by handler.
func tlsPeer(t testing.TB, core *Core, handler func(*Conn) Handler, cfg *tls.Config) *tls.Conn {
	t.Helper()
	if cfg == nil {
		cfg = clientConfig()
	}
	server := serverConfig(t)
	nc := peer(t, core, func(c *Conn) {
		c.StartTLS(server, false, 30*time.Second, func(err error) {
			if err != nil {
				t.Error(err)
				return
			}
			c.SetHandler(handler(c))
		})
	})
	tc := tls.Client(nc, cfg)
	if err := tc.Handshake(); err != nil {
		t.Fatal(err)
	}
	return tc
}

// recorder keeps what is written to it.
type recorder struct {
	net.Conn
	b []byte
}

func (r *recorder) Write(b []byte) (int, error)      { r.b = append(r.b, b...); return len(b), nil }
func (r *recorder) Read([]byte) (int, error)         { return 0, io.EOF }
func (r *recorder) SetWriteDeadline(time.Time) error { return nil }
func (r *recorder) Close() error                     { return nil }

// clientHello returns the first message of a client.
func clientHello(testing.TB) []byte {
	var r recorder
	tls.Client(&r, clientConfig()).Handshake()
	return r.b
}
