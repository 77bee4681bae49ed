package rest

import (
	"bytes"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/websocket"
)

func BenchmarkLocal(b *testing.B) {
	s, _ := newServer(b)
	c := s.Local("ann")
	b.ReportAllocs()
	for b.Loop() {
		if sum, err := Invoke[float64](b.Context(), c, "calc/Sum", terms{1, 2}); err != nil || sum != 3 {
			b.Fatal(sum, err)
		}
	}
}

// BenchmarkHandler measures a call without a network, beside a handler that does the same by hand.
func BenchmarkHandler(b *testing.B) {
	s, _ := newServer(b)
	for name, h := range map[string]http.Handler{"rest": s, "plain": byHand()} {
		for _, verb := range []string{"GET", "POST"} {
			b.Run(name+"/"+verb, func(b *testing.B) {
				w := discard{http.Header{}}
				body := bytes.NewReader(nil)
				r, _ := http.NewRequest("GET", "/api/calc/Sum?a=3.12&b=4.2", nil)
				if verb == "POST" {
					r, _ = http.NewRequest("POST", "/api/calc/Sum", body)
					r.Header.Set("Content-Type", "application/json")
					r.ContentLength = 18
				}
				b.ReportAllocs()
				for b.Loop() {
					clear(w.h)
					if verb == "POST" {
						body.Reset([]byte(`{"a":3.12,"b":4.2}`))
						r.Body = struct {
							*bytes.Reader
							nothing
						}{body, nothing{}}
					}
					h.ServeHTTP(w, r)
				}
			})
		}
	}
}

type nothing struct{}

func (nothing) Close() error { return nil }

// byHand is calc/Sum by hand.
func byHand() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		var in terms
		if r.Method == "GET" {
			q := r.URL.Query()
			fmt.Sscan(q.Get("a"), &in.A)
			fmt.Sscan(q.Get("b"), &in.B)
		} else if err := json.NewDecoder(r.Body).Decode(&in); err != nil {
			http.Error(w, err.Error(), 400)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		json.NewEncoder(w).Encode(map[string]float64{"result": in.A + in.B})
	})
}

type discard struct{ h http.Header }

func (d discard) Header() http.Header         { return d.h }
func (d discard) Write(b []byte) (int, error) { return len(b), nil }
func (d discard) WriteHeader(int)             {}

// BenchmarkHTTP measures requests over connections that are kept, on package httpd and on net/http, beside a plain handler.
func BenchmarkHTTP(b *testing.B) {
	s, _ := newServer(b)
	for name, h := range map[string]http.Handler{"rest": s, "plain": byHand()} {
		for _, loop := range []bool{true, false} {
			server := "nethttp"
			if loop {
				server = "httpd"
			}
			b.Run(name+"/"+server, func(b *testing.B) {
				addr := serveBench(b, h, loop)
				request := []byte("GET /api/calc/Sum?a=3.12&b=4.2 HTTP/1.1\r\nHost: a\r\n\r\n")
				each(b, 16, func(calls int) error {
					c, err := net.Dial("tcp", addr)
					if err != nil {
						return err
					}
					defer c.Close()
					buf := make([]byte, 4096)
					for range calls {
						if _, err := c.Write(request); err != nil {
							return err
						}
						if _, err := c.Read(buf); err != nil { // small answers come in one piece
							return err
						}
					}
					return nil
				})
			})
		}
	}
}

func serveBench(b *testing.B, h http.Handler, loop bool) string {
	if !loop {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		srv := &http.Server{Handler: h}
		done := make(chan error)
		go func() { done <- srv.Serve(ln) }()
		b.Cleanup(func() { srv.Close(); <-done })
		return ln.Addr().String()
	}
	core, err := evloop.New(evloop.Config{})
	if err != nil {
		b.Fatal(err)
	}
	srv := &httpd.Server{Handler: h}
	ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *evloop.Conn) { srv.Serve(c, c.Loop(), httpd.Peer{Addr: c.RemoteAddr()}) })
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { core.Close(); srv.Wait() })
	return ln.Addr().String()
}

// each deals b.N calls to n clients.
func each(b *testing.B, n int, client func(calls int) error) {
	b.ReportAllocs()
	var wg sync.WaitGroup
	for i := range n {
		wg.Go(func() {
			if err := client(b.N/n + min(1, max(0, b.N%n-i))); err != nil {
				b.Error(err)
			}
		})
	}
	wg.Wait()
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "calls/s")
}

// BenchmarkWebSocket measures calls over 16 sockets: one at a time on each, and 16.
func BenchmarkWebSocket(b *testing.B) {
	for _, at := range []int{1, 16} {
		b.Run(fmt.Sprint(at), func(b *testing.B) {
			s, _ := newServer(b)
			addr := serveBench(b, s, true)
			each(b, 16, func(calls int) error {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					return err
				}
				defer c.Close()
				p := shake(b, c)
				var batch []byte
				for i := range at {
					batch = websocket.AppendFrame(batch, websocket.Text, fmt.Appendf(nil, `{"id":%d,"call":"calc/Sum","in":{"a":3.12,"b":4.2}}`, i), &websocket.Key{1, 2, 3, 4})
				}
				for done := 0; done < calls; done += at {
					c.Write(batch)
					for range at {
						p.next()
					}
				}
				return nil
			})
		})
	}
}

// BenchmarkFeed measures events of a feed over one socket.
func BenchmarkFeed(b *testing.B) {
	s, _ := newServer(b)
	k := dial(b, serveBench(b, s, true))
	b.ReportAllocs()
	n := 0
	for _, err := range Follow[int](b.Context(), k, "calc/Count", count{To: b.N}) {
		if err != nil {
			b.Fatal(err)
		}
		n++
	}
	if n != b.N {
		b.Error(n)
	}
}

// silent opens n WebSockets in the way of a browser, has each make a call, and tells what all of them cost in memory while they
// say nothing: that of the clients, which is a descriptor and its net.TCPConn, is in it.
func silent(t testing.TB, s *Server, addr string, n int) (each, goroutines int) {
	heap := func() int64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return int64(m.HeapAlloc + m.StackInuse)
	}
	heap()
	before, running := heap(), runtime.NumGoroutine()
	clients := make([]net.Conn, n)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for i := next.Add(1) - 1; int(i) < n; i = next.Add(1) - 1 {
				c, err := net.Dial("tcp", addr)
				if err != nil {
					t.Error(err)
					return
				}
				clients[i] = c
				p := shake(t, c,
					"User-Agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/143.0.0.0 Safari/537.36",
					"Pragma: no-cache", "Cache-Control: no-cache", "Origin: http://example.com", "Accept-Encoding: gzip, deflate, br, zstd",
					"Accept-Language: en-GB,en;q=0.9", "Cookie: session=0123456789abcdef0123456789abcdef", "Sec-WebSocket-Extensions: permessage-deflate")
				p.send(`{"id":1,"call":"calc/Sum","in":{"a":1,"b":2}}`)
				if got := p.next(); got != `{"id":1,"result":3}` {
					t.Error(got)
				}
			}
		})
	}
	wg.Wait()
	for deadline := time.Now().Add(time.Minute); runtime.NumGoroutine() > running && time.Now().Before(deadline); {
		time.Sleep(10 * time.Millisecond)
	}
	goroutines = runtime.NumGoroutine() - running
	each = int(heap()-before) / n
	for _, c := range clients {
		if c != nil {
			c.Close()
		}
	}
	return each, goroutines
}

// BenchmarkSilent tells the memory of a WebSocket by which nothing comes, on package httpd and on net/http.
func BenchmarkSilent(b *testing.B) {
	for _, server := range []string{"httpd", "nethttp"} {
		b.Run(server, func(b *testing.B) {
			s, _ := newServer(b)
			addr := serveBench(b, s, server == "httpd")
			bytes, goroutines := silent(b, s, addr, 9500)
			b.ReportMetric(float64(bytes), "B/socket")
			b.ReportMetric(float64(goroutines), "goroutines")
			b.ReportMetric(0, "ns/op")
		})
	}
}

// TestSilent holds what a silent WebSocket costs: no goroutine, and less memory than one stack.
func TestSilent(t *testing.T) {
	s, _ := newServer(t)
	bytes, goroutines := silent(t, s, onLoop(t, s), 1000)
	if goroutines > 0 {
		t.Errorf("1000 silent WebSockets have %d goroutines", goroutines)
	}
	if bytes > 4096 {
		t.Errorf("a silent WebSocket has %d bytes", bytes)
	}
}
