package evloop

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/coder/websocket"
)

// TestDetach takes a connection from its loop and brings it back, twice, with bytes under way in both directions.
func TestDetach(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		for _, secure := range []bool{false, true} {
			ended := make(chan error, 1)
			var handler func(c *Conn) Handler
			handler = func(c *Conn) Handler {
				return &events{
					data: func(b []byte) int {
						i := bytes.IndexByte(b, '\n') + 1
						if string(b[:i]) != "detach\n" {
							c.Write(b[:i])
							return i
						}
						c.Write([]byte("detached\n"))
						c.Detach(func(nc net.Conn, err error) {
							if err != nil {
								t.Error(err)
								return
							}
							go comeBack(t, core.Loop(1), nc, handler)
						})
						return i
					},
					eof:    func() { c.CloseWrite() },
					closed: func(err error) { ended <- err },
				}
			}
			var nc net.Conn
			if secure {
				nc = tlsPeer(t, core, handler, nil)
			} else {
				nc = peer(t, core, func(c *Conn) { c.SetHandler(handler(c)) })
			}
			ask(t, nc, "on the loop\n", "on the loop\n")
			for range 2 {
				ask(t, nc, "detach\nblocking\n", "detached\nblocking\n")
				ask(t, nc, "on the loop again\n", "on the loop again\n")
			}
			nc.(interface{ CloseWrite() error }).CloseWrite()
			if b, err := io.ReadAll(nc); len(b) > 0 || err != nil {
				t.Errorf("at the end: %q, %v", b, err)
			}
			nc.Close()
			if err := <-ended; err != nil {
				t.Errorf("OnClose(%v)", err)
			}
		}
	})
}

// comeBack echoes one line, blocking, then attaches nc to l.
func comeBack(t *testing.T, l *Loop, nc net.Conn, handler func(*Conn) Handler) {
	line, err := bufio.NewReaderSize(oneByte{nc}, 16).ReadString('\n')
	if err != nil {
		t.Error(err)
	}
	io.WriteString(nc, line)
	l.Post(func() {
		c, err := l.Attach(nc)
		if err != nil {
			t.Error(err)
			return
		}
		c.SetHandler(handler(c))
	})
}

// oneByte reads no more than it is asked for line by line.
type oneByte struct{ io.Reader }

func (r oneByte) Read(b []byte) (int, error) { return r.Reader.Read(b[:1]) }

// oneListener is a net.Listener of the connections that are sent to it.
type oneListener struct {
	conns chan net.Conn
	addr  net.Addr
}

func (l *oneListener) Accept() (net.Conn, error) {
	if c, ok := <-l.conns; ok {
		return c, nil
	}
	return nil, net.ErrClosed
}
func (l *oneListener) Close() error   { return nil }
func (l *oneListener) Addr() net.Addr { return l.addr }

// TestDetachHTTP gives a TLS connection, whose handshake the loop did, to net/http, with HTTP/2, and to a WebSocket.
func TestDetachHTTP(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		ln := &oneListener{conns: make(chan net.Conn, 10), addr: &net.TCPAddr{}}
		body := randomBytes(300_000)
		mux := http.NewServeMux()
		mux.HandleFunc("/body", func(w http.ResponseWriter, r *http.Request) { w.Write(body) })
		mux.HandleFunc("/ws", func(w http.ResponseWriter, r *http.Request) {
			c, err := websocket.Accept(w, r, nil)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.CloseNow()
			for {
				typ, b, err := c.Read(r.Context())
				if err != nil {
					return
				}
				c.Write(r.Context(), typ, b)
			}
		})
		server := &http.Server{Handler: mux}
		served := make(chan struct{})
		go func() {
			server.Serve(ln)
			close(served)
		}()
		defer func() {
			close(ln.conns)
			server.Close()
			<-served
		}()
		cfg := serverConfig(t)
		cfg.NextProtos = []string{"h2", "http/1.1"}
		addr := listen(t, core, func(c *Conn) {
			c.StartTLS(cfg, false, 10*time.Second, func(err error) {
				if err != nil {
					t.Error(err)
					return
				}
				c.SetHandler(new(events))
				c.Detach(func(nc net.Conn, err error) {
					if _, ok := nc.(*tls.Conn); !ok {
						t.Errorf("detached a %T: %v", nc, err)
						return
					}
					ln.conns <- nc
				})
			})
		})
		ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
		defer cancel()

		transport := &http.Transport{TLSClientConfig: clientConfig(), ForceAttemptHTTP2: true}
		defer transport.CloseIdleConnections()
		for range 20 {
			req, _ := http.NewRequestWithContext(ctx, "GET", "https://"+addr+"/body", nil)
			res, err := transport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			got, err := io.ReadAll(res.Body)
			res.Body.Close()
			if res.ProtoMajor != 2 || err != nil || !bytes.Equal(got, body) {
				t.Fatalf("%s: %d bytes, %v", res.Proto, len(got), err)
			}
		}

		plain := &http.Transport{TLSClientConfig: clientConfig(), Protocols: new(http.Protocols)}
		plain.Protocols.SetHTTP1(true)
		defer plain.CloseIdleConnections()
		ws, _, err := websocket.Dial(ctx, "wss://"+addr+"/ws", &websocket.DialOptions{HTTPClient: &http.Client{Transport: plain}})
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			ws.Write(ctx, websocket.MessageBinary, body[:30_000])
			if _, b, err := ws.Read(ctx); err != nil || !bytes.Equal(b, body[:30_000]) {
				t.Fatalf("%d bytes, %v", len(b), err)
			}
		}
		ws.Close(websocket.StatusNormalClosure, "")
	})
}
