package rest

//lint:file-ignore SA1019 net/http knows no extended CONNECT

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/websocket"

	"golang.org/x/net/http2"
)

// TestHTTP2 has a WebSocket on a stream of HTTP/2.
func TestHTTP2(t *testing.T) {
	s, _ := newServer(t)
	web := httptest.NewUnstartedServer(nil)
	web.StartTLS() // for its certificate
	defer web.Close()
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	srv := &httpd.Server{Handler: s}
	defer srv.Wait()
	defer core.Close()
	ln, err := srv.Listen(core, "tcp", "127.0.0.1:0", &tls.Config{Certificates: web.TLS.Certificates})
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(web.Certificate())
	transport := &http2.Transport{TLSClientConfig: &tls.Config{RootCAs: pool, ServerName: "example.com"}}
	defer transport.CloseIdleConnections()
	r, w := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), "CONNECT", "https://"+ln.Addr().String()+"/api/ws", r)
	if err != nil {
		t.Fatal(err)
	}
	req.Header = http.Header{":protocol": {"websocket"}, "Sec-Websocket-Version": {"13"}}
	res, err := transport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		t.Fatal(res.Status)
	}
	p := &peer{t: t, c: half{w}, r: bufio.NewReader(res.Body)}
	p.send(`{"id":1,"call":"calc/Sum","in":{"a":1,"b":2}}`)
	p.want(`{"id":1,"result":3}`)
	p.send(`{"id":2,"call":"calc/Count","in":{"to":2}}`)
	p.want(`{"id":2,"event":0}`, `{"id":2,"event":1}`, `{"id":2,"end":true}`)
	p.frame(websocket.Close, "")
	p.want("CLOSE 1000", "END")
	w.Close()
}

// half is a writer as a connection.
type half struct{ io.WriteCloser }

func (half) Read([]byte) (int, error)         { return 0, io.EOF }
func (half) LocalAddr() net.Addr              { return nil }
func (half) RemoteAddr() net.Addr             { return nil }
func (half) SetDeadline(time.Time) error      { return nil }
func (half) SetReadDeadline(time.Time) error  { return nil }
func (half) SetWriteDeadline(time.Time) error { return nil }
