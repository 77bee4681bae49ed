package httpd

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/tunnel"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// run serves srv over both backends of the event loop, and over the streams of a session. When f returns,
// everything has to end.
func run(t *testing.T, srv func(t *testing.T) *Server, f func(t *testing.T, addr string)) {
	for _, test := range []struct {
		name     string
		portable bool
		streams  bool
	}{{"native", false, false}, {"portable", true, false}, {"streams", false, true}} {
		t.Run(test.name, func(t *testing.T) {
			core, err := evloop.New(evloop.Config{Portable: test.portable, Loops: 1})
			if err != nil {
				t.Fatal(err)
			}
			s := srv(t)
			defer s.Wait()
			defer core.Close()
			accept := func(c *evloop.Conn) { s.Serve(c, c.Loop(), Peer{Addr: c.RemoteAddr()}) }
			if test.streams {
				accept = overStreams(core.Loop(0), s)
			}
			ln, err := core.Listen("tcp", "127.0.0.1:0", accept)
			if err != nil {
				t.Fatal(err)
			}
			f(t, ln.Addr().String())
		})
	}
}

// overStreams returns an accept function that carries connections to s through a pair of sessions.
func overStreams(loop *evloop.Loop, s *Server) func(*evloop.Conn) {
	var near, far *tunnel.Session
	near = tunnel.New(tunnel.Config{Client: true, Wake: func() { loop.Post(func() { near.Flush(time.Now()) }) }}, time.Now())
	far = tunnel.New(tunnel.Config{
		Wake: func() { loop.Post(func() { far.Flush(time.Now()) }) },
		Accept: func(st *tunnel.Stream, header []byte) {
			s.Serve(st, loop, Peer{Addr: netip.MustParseAddrPort(string(header))})
		},
	}, time.Now())
	a, b := &link{loop: loop, to: far}, &link{loop: loop, to: near}
	a.back, b.back = b, a
	var timer evloop.Timer
	var tick func()
	tick = func() {
		near.Advance(time.Now())
		far.Advance(time.Now())
		loop.Arm(&timer, time.Millisecond, tick)
	}
	loop.Post(func() {
		near.Attach(a, tunnel.RoleInteractive, time.Now())
		far.Attach(b, tunnel.RoleInteractive, time.Now())
		tick()
	})
	return func(c *evloop.Conn) {
		st, err := near.Open([]byte(c.RemoteAddr().String()))
		if err != nil {
			c.Abort(err)
			return
		}
		forward.Splice(c, st, nil)
	}
}

// link is one direction of a link in memory.
type link struct {
	loop *evloop.Loop
	to   *tunnel.Session
	back *link
}

func (l *link) Send(b []byte) {
	b = bytes.Clone(b[tunnel.Headroom:])
	l.loop.Post(func() {
		if err := l.to.Receive(l.back, b, time.Now()); err != nil {
			panic(err)
		}
	})
}
func (l *link) Room() int   { return 64 << 10 }
func (l *link) Close(error) {}

// handler makes a Server of a function.
func handler(f http.HandlerFunc) func(*testing.T) *Server {
	return func(t *testing.T) *Server {
		return &Server{Handler: f, OnPanic: func(r *http.Request, v any, stack []byte) { t.Errorf("panic: %v\n%s", v, stack) }}
	}
}

// peer is a client that writes and reads bytes.
type peer struct {
	*testing.T
	net.Conn
	r *bufio.Reader
}

func dial(t *testing.T, addr string) *peer {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(time.Minute))
	return &peer{t, nc, bufio.NewReader(nc)}
}

func (p *peer) send(lines ...string) {
	p.Helper()
	if _, err := io.WriteString(p, strings.Join(lines, "\r\n")); err != nil {
		p.Fatal(err)
	}
}

// want reads an answer to a request of that method and compares its status line, the fields whose
// names are given in the expectation, and its body.
func (p *peer) want(method, status, body string, fields ...string) *http.Response {
	p.Helper()
	resp, err := http.ReadResponse(p.r, &http.Request{Method: method})
	if err != nil {
		p.Fatalf("answer: %v", err)
	}
	got, err := io.ReadAll(resp.Body)
	if err != nil {
		p.Fatalf("body after %q: %v", got, err)
	}
	if resp.Status != status || string(got) != body {
		p.Fatalf("answer %q with %q, want %q with %q", resp.Status, got, status, body)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		got := strings.Join(resp.Header[name], ", ")
		switch name {
		case "Content-Length": // taken out of Header when chunked
			got = fmt.Sprint(resp.ContentLength)
		case "Connection":
			if resp.Close {
				got = "close"
			}
		case "Transfer-Encoding":
			got = strings.Join(resp.TransferEncoding, ", ")
		}
		if got != value {
			p.Fatalf("%s: %q, want %q", name, got, value)
		}
	}
	return resp
}

// wantEOF wants the server to have nothing more to say.
func (p *peer) wantEOF() {
	p.Helper()
	if b, err := io.ReadAll(p.r); err != nil || len(b) > 0 {
		p.Fatalf("at the end: %q, %v", b, err)
	}
}

const get = "GET / HTTP/1.1\r\nHost: a\r\n\r\n"

func TestAnswers(t *testing.T) {
	run(t, handler(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/small":
			io.WriteString(w, "hello")
		case "/large":
			for range 10 {
				w.Write(bytes.Repeat([]byte("x"), 1000))
			}
		case "/declared":
			w.Header().Set("Content-Length", "10000")
			for range 10 {
				w.Write(bytes.Repeat([]byte("x"), 1000))
			}
		case "/short":
			w.Header().Set("Content-Length", "10")
			io.WriteString(w, "hello")
		case "/long":
			w.Header().Set("Content-Length", "5")
			io.WriteString(w, "hello")
			if _, err := io.WriteString(w, "!"); err != http.ErrContentLength {
				t.Errorf("write beyond Content-Length: %v", err)
			}
		case "/flush":
			w.(http.Flusher).Flush()
			io.WriteString(w, "hel")
			if err := http.NewResponseController(w).Flush(); err != nil {
				t.Error(err)
			}
			io.WriteString(w, "lo")
		case "/204":
			w.WriteHeader(204)
			if _, err := io.WriteString(w, "hello"); err != http.ErrBodyNotAllowed {
				t.Errorf("write to 204: %v", err)
			}
		case "/304":
			w.Header().Set("ETag", `"x"`)
			w.WriteHeader(304)
		case "/empty":
		case "/103":
			w.Header().Set("Link", "x")
			w.WriteHeader(103)
			w.Header().Del("Link")
			io.WriteString(w, "hello")
		case "/inject":
			w.Header().Set("X", "a\r\nSet-Cookie: evil=1")
			w.Header()["Bad Name"] = []string{"x"}
			w.Header().Set("Transfer-Encoding", "gzip")
		case "/close":
			w.Header().Set("Connection", "close")
		case "/echo":
			fmt.Fprintf(w, "%s %s %s %s %s %d %q %s", r.Method, r.URL, r.Host, r.Proto, r.RequestURI, r.ContentLength, r.Header, r.RemoteAddr[:9])
		}
	}), func(t *testing.T, addr string) {
		p := dial(t, addr)
		request := func(method, path string) {
			t.Helper()
			p.send(method+" "+path+" HTTP/1.1", "Host: a", "", "")
		}
		large := strings.Repeat("x", 10000)
		request("GET", "/small")
		resp := p.want("GET", "200 OK", "hello", "Content-Length: 5", "Content-Type: text/plain; charset=utf-8")
		if d, err := http.ParseTime(resp.Header.Get("Date")); err != nil || time.Since(d) > time.Minute {
			t.Errorf("Date: %v", resp.Header)
		}
		request("HEAD", "/small")
		p.want("HEAD", "200 OK", "", "Content-Length: 5")
		request("GET", "/large")
		p.want("GET", "200 OK", large, "Transfer-Encoding: chunked")
		request("HEAD", "/large")
		p.want("HEAD", "200 OK", "")
		request("GET", "/declared")
		p.want("GET", "200 OK", large, "Content-Length: 10000")
		request("HEAD", "/declared")
		p.want("HEAD", "200 OK", "", "Content-Length: 10000")
		request("GET", "/long")
		p.want("GET", "200 OK", "hello")
		request("GET", "/flush")
		p.want("GET", "200 OK", "hello", "Transfer-Encoding: chunked")
		request("GET", "/204")
		p.want("GET", "204 No Content", "", "Content-Length: 0") // of net/http: there is no such field
		request("GET", "/304")
		p.want("GET", "304 Not Modified", "", `Etag: "x"`, "Content-Type: ")
		request("GET", "/empty")
		p.want("GET", "200 OK", "", "Content-Length: 0")
		request("GET", "/103")
		p.want("GET", "103 Early Hints", "", "Link: x")
		p.want("GET", "200 OK", "hello", "Link: ")
		request("GET", "/inject")
		p.want("GET", "200 OK", "", "X: a  Set-Cookie: evil=1", "Content-Length: 0")
		request("GET", "/echo?a=b")
		p.want("GET", "200 OK", `GET /echo?a=b a HTTP/1.1 /echo?a=b 0 map[] 127.0.0.1`)
		p.send("GET http://b/echo HTTP/1.1", "Host: a", "x-y: 1", "X-Y: 2", "", "")
		p.want("GET", "200 OK", `GET http://b/echo b HTTP/1.1 http://b/echo 0 map["X-Y":["1" "2"]] 127.0.0.1`)

		request("GET", "/close")
		p.want("GET", "200 OK", "", "Connection: close")
		p.wantEOF()

		p = dial(t, addr)
		request("GET", "/short")
		if b, err := io.ReadAll(p.r); err != nil || !strings.HasSuffix(string(b), "Content-Length: 10\r\nConnection: close\r\n\r\nhello") {
			t.Errorf("an answer shorter than declared: %q, %v", b, err)
		}

		p = dial(t, addr)
		p.send("GET /small HTTP/1.0", "", "")
		p.want("GET", "200 OK", "hello", "Content-Length: 5", "Connection: close")
		p.wantEOF()

		p = dial(t, addr)
		p.send("GET /small HTTP/1.0", "Connection: keep-alive", "", "")
		p.want("GET", "200 OK", "hello", "Content-Length: 5", "Connection: keep-alive")
		p.send("GET /large HTTP/1.0", "Connection: keep-alive", "", "")
		p.want("GET", "200 OK", large, "Connection: close")
		p.wantEOF()
	})
}

func TestBadRequests(t *testing.T) {
	run(t, handler(func(http.ResponseWriter, *http.Request) { t.Error("handler was called") }), func(t *testing.T, addr string) {
		for in, status := range map[string]string{
			"GET / HTTP/1.1\r\n\r\n":                                   "400 Bad Request",
			"CONNECT a:1 HTTP/1.1\r\nHost: a:1\r\n\r\n":                "501 Not Implemented",
			"GET / HTTP/2.0\r\nHost: a\r\n\r\n":                        "505 HTTP Version Not Supported",
			"GET /" + strings.Repeat("a", 9000):                        "414 URI Too Long",
			"GET / HTTP/1.1\r\nX: " + strings.Repeat("a", 17000):       "431 Request Header Fields Too Large",
			"GET / HTTP/1.1\r\nHost: a\r\nHost: a\r\n\r\n" + get + get: "400 Bad Request",
		} {
			p := dial(t, addr)
			p.send(in)
			p.wantStatus(status)
			p.wantEOF()
		}
	})
}

// wantStatus wants an answer of that status that ends the connection.
func (p *peer) wantStatus(status string) {
	p.Helper()
	resp, err := http.ReadResponse(p.r, nil)
	if err != nil {
		p.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	if resp.Status != status || !resp.Close {
		p.Fatalf("%s, close %v; want %s and close", resp.Status, resp.Close, status)
	}
}

// Requests that come at once are answered one after the other, by the loop and by handlers, however
// the bytes are cut.
func TestPipelining(t *testing.T) {
	run(t, func(t *testing.T) *Server {
		s := handler(func(w http.ResponseWriter, r *http.Request) {
			body, err := io.ReadAll(r.Body)
			fmt.Fprintf(w, "slow %s%s %v", r.URL.Path, body, err)
		})(t)
		s.Fast = func(r *http1.Request, dst []byte) ([]byte, bool) {
			if !bytes.HasPrefix(r.Path, []byte("/fast")) {
				return dst, false
			}
			return fmt.Appendf(dst, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\nfast %s", 5+len(r.Path), r.Path), true
		}
		return s
	}, func(t *testing.T, addr string) {
		in := strings.Join([]string{
			"GET /fast1 HTTP/1.1", "Host: a", "",
			"GET /fast2 HTTP/1.1", "Host: a", "",
			"GET /3 HTTP/1.1", "Host: a", "",
			"POST /4 HTTP/1.1", "Host: a", "Content-Length: 3", "", "abc" +
				"POST /5 HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "", "3", "def", "0", "",
			"GET /fast6 HTTP/1.1", "Host: a", "",
			"GET /7 HTTP/1.1", "Host: a", "Connection: close", "",
			"GET /never HTTP/1.1", "Host: a", "",
		}, "\r\n")
		for cut := 0; cut < len(in); cut += 13 {
			p := dial(t, addr)
			p.send(in[:cut])
			if cut > 0 {
				time.Sleep(time.Millisecond) // only makes it likely that the server sees two pieces
			}
			p.send(in[cut:])
			p.want("GET", "200 OK", "fast /fast1")
			p.want("GET", "200 OK", "fast /fast2")
			p.want("GET", "200 OK", "slow /3 <nil>")
			p.want("GET", "200 OK", "slow /4abc <nil>")
			p.want("GET", "200 OK", "slow /5def <nil>")
			p.want("GET", "200 OK", "fast /fast6")
			p.want("GET", "200 OK", "slow /7 <nil>")
			p.wantEOF()
			p.Close()
		}
	})
}

// A client that sends requests for ever and reads nothing is paused, not buffered for.
func TestPipeliningBackpressure(t *testing.T) {
	var mu sync.Mutex
	answers := 0
	run(t, func(t *testing.T) *Server {
		return &Server{Fast: func(r *http1.Request, dst []byte) ([]byte, bool) {
			mu.Lock()
			answers++
			mu.Unlock()
			dst = append(dst, "HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n"...)
			return append(dst, make([]byte, 1000)...), true
		}}
	}, func(t *testing.T, addr string) {
		mu.Lock()
		answers = 0
		mu.Unlock()
		p := dial(t, addr)
		const n = 10_000
		sent := make(chan struct{})
		go func() {
			defer close(sent)
			io.WriteString(p.Conn, strings.Repeat(get, n))
		}()
		last := -1
		for { // until the server stands still
			time.Sleep(50 * time.Millisecond)
			mu.Lock()
			now := answers
			mu.Unlock()
			if now == last {
				break
			}
			last = now
		}
		if last > n*3/4 { // 10 MB of answers; what the kernel takes is some MB
			t.Errorf("%d requests answered to a client that does not read", last)
		}
		for range n {
			p.want("GET", "200 OK", string(make([]byte, 1000)))
		}
		<-sent
	})
}

func TestRequestBody(t *testing.T) {
	run(t, handler(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/count":
			n, err := io.Copy(io.Discard, r.Body)
			fmt.Fprintf(w, "%d %v", n, err)
		case "/ignore":
			io.WriteString(w, "ignored")
		case "/echo":
			io.Copy(w, r.Body)
		}
	}), func(t *testing.T, addr string) {
		p := dial(t, addr)
		big := strings.Repeat("0123456789abcdef", 1<<16) // 1 MiB
		p.send("PUT /count HTTP/1.1", "Host: a", fmt.Sprint("Content-Length: ", len(big)), "", big)
		p.want("PUT", "200 OK", "1048576 <nil>")

		// A body that nobody reads is skipped while it is small, and ends the connection otherwise.
		p.send("PUT /ignore HTTP/1.1", "Host: a", "Content-Length: 100000", "", big[:100000])
		p.want("PUT", "200 OK", "ignored")
		p.send("PUT /ignore HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "", "5", "hello", "0", "X: trailer", "", "")
		p.want("PUT", "200 OK", "ignored")
		p.send("PUT /count HTTP/1.1", "Host: a", "Content-Length: 100000000", "Expect: 100-continue", "", big)
		p.want("PUT", "100 Continue", "")
		p.CloseWrite()
		p.want("PUT", "200 OK", "1048576 unexpected EOF")
		p.wantEOF()

		p = dial(t, addr)
		p.send("PUT /ignore HTTP/1.1", "Host: a", "Content-Length: 100000000", "Expect: 100-continue", "", "")
		p.want("PUT", "200 OK", "ignored", "Connection: close")
		p.wantEOF()

		p = dial(t, addr)
		go io.WriteString(p.Conn, "PUT /ignore HTTP/1.1\r\nHost: a\r\nContent-Length: 100000000\r\n\r\n"+big)
		p.want("PUT", "200 OK", "ignored")

		p = dial(t, addr)
		p.send("PUT /count HTTP/1.1", "Host: a", "Transfer-Encoding: chunked", "", "5", "hello!", "")
		p.want("PUT", "200 OK", "5 chunk does not end with CRLF")
		p.wantEOF()

		// What comes in goes out at the same time, much more than anybody buffers.
		resp, err := http.Post("http://"+addr+"/echo", "text/plain", io.LimitReader(zeros{}, 16<<20))
		if err != nil {
			t.Fatal(err)
		}
		if n, err := io.Copy(io.Discard, resp.Body); n != 16<<20 || err != nil {
			t.Errorf("echo of 16 MiB: %d, %v", n, err)
		}
		resp.Body.Close()
		http.DefaultClient.CloseIdleConnections()
	})
}

type zeros struct{}

func (zeros) Read(p []byte) (int, error) { clear(p); return len(p), nil }

func (p *peer) CloseWrite() { p.Conn.(*net.TCPConn).CloseWrite() }

func TestHalfClose(t *testing.T) {
	run(t, handler(func(w http.ResponseWriter, r *http.Request) {
		<-r.Context().Done() // the client has finished sending
		io.WriteString(w, "hello")
	}), func(t *testing.T, addr string) {
		p := dial(t, addr)
		p.send(get)
		p.CloseWrite()
		p.want("GET", "200 OK", "hello")
		p.wantEOF()

		p = dial(t, addr)
		p.CloseWrite()
		p.wantEOF()
	})
}

func TestClientGone(t *testing.T) {
	errs := make(chan error, 1)
	run(t, handler(func(w http.ResponseWriter, r *http.Request) {
		for {
			if _, err := w.Write(make([]byte, 10000)); err != nil {
				<-r.Context().Done()
				errs <- err
				return
			}
		}
	}), func(t *testing.T, addr string) {
		p := dial(t, addr)
		p.send(get)
		p.r.ReadByte()
		p.Close()
		if err := <-errs; err == nil {
			t.Error("no error")
		}
	})
}

func TestPanic(t *testing.T) {
	panics := make(chan any, 10)
	run(t, func(t *testing.T) *Server {
		return &Server{
			OnPanic: func(r *http.Request, v any, stack []byte) { panics <- v },
			Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				switch r.URL.Path {
				case "/abort":
					panic(http.ErrAbortHandler)
				case "/late":
					w.(http.Flusher).Flush()
				}
				panic(r.URL.Path)
			}),
		}
	}, func(t *testing.T, addr string) {
		for _, path := range []string{"/", "/late", "/abort"} {
			p := dial(t, addr)
			p.send("GET "+path+" HTTP/1.1", "Host: a", "", "")
			resp, err := http.ReadResponse(p.r, nil)
			if err != nil {
				switch path {
				case "/late": // the reset may overtake the head
					<-panics
				case "/abort": // as with net/http
				default:
					t.Fatal(err)
				}
				continue
			}
			_, err = io.ReadAll(resp.Body)
			switch path {
			case "/late":
				if err == nil {
					t.Error("the answer looks complete")
				}
			default:
				if resp.StatusCode != 500 || err != nil {
					t.Errorf("%s: %s, %v", path, resp.Status, err)
				}
			}
			if path == "/abort" {
				continue
			}
			if v := <-panics; v != path {
				t.Errorf("told of %v", v)
			}
		}
	})
}

// With one goroutine allowed, a second request waits for the first, and is not forgotten.
func TestMaxHandlers(t *testing.T) {
	release := make(chan struct{})
	run(t, func(t *testing.T) *Server {
		s := handler(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				<-release
			}
			io.WriteString(w, r.URL.Path)
		})(t)
		s.MaxHandlers = 1
		return s
	}, func(t *testing.T, addr string) {
		a, b, c := dial(t, addr), dial(t, addr), dial(t, addr)
		a.send("GET /wait HTTP/1.1", "Host: a", "", "")
		b.send("GET /b HTTP/1.1", "Host: a", "", "")
		c.send("GET /c HTTP/1.1", "Host: a", "", "")
		c.Close() // while it waits, or before
		release <- struct{}{}
		a.want("GET", "200 OK", "/wait")
		b.want("GET", "200 OK", "/b")
	})
}

// Requests that wait for a goroutine do not pile up when their clients go away.
func TestQueueForgetsTheGone(t *testing.T) {
	s := &Server{MaxHandlers: 1}
	s.running = 1 // and stays so
	for range 10000 {
		x := &exchange{on: &conn{}, cancel: func() {}}
		x.cond.L = &x.mu
		s.dispatch(x)
		x.fail(io.EOF)
	}
	if n := len(s.queue); n > 2*minQueue {
		t.Errorf("%d requests of nobody are waiting", n)
	}
}

// takeover is what a handler hands a connection to: it echoes.
type takeover struct{ end End }

func (h takeover) OnData(b []byte) int { h.end.Write(b); return len(b) }
func (h takeover) OnEOF()              { h.end.Close() }
func (h takeover) OnDrain()            {}
func (h takeover) OnClose(error)       {}

func TestUpgrade(t *testing.T) {
	run(t, handler(func(w http.ResponseWriter, r *http.Request) {
		err := w.(Upgrader).Upgrade(http.StatusSwitchingProtocols, http.Header{"Upgrade": {"echo"}}, func(end End, loop *evloop.Loop) {
			end.SetHandler(takeover{end})
		})
		if err != nil {
			t.Error(err)
		}
		if _, err := w.Write([]byte("x")); err != http.ErrHijacked {
			t.Errorf("write after the upgrade: %v", err)
		}
	}), func(t *testing.T, addr string) {
		p := dial(t, addr)
		p.send("GET / HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: echo", "", "early ")
		p.want("GET", "101 Switching Protocols", "", "Connection: Upgrade", "Upgrade: echo", "Content-Length: 0")
		p.send("late")
		p.CloseWrite()
		if b, err := io.ReadAll(p.r); err != nil || string(b) != "early late" {
			t.Errorf("%q, %v", b, err)
		}
	})
}

// net/http's client agrees with us about everything it does by itself.
func TestClient(t *testing.T) {
	run(t, handler(func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		if err != nil {
			t.Error(err)
		}
		io.CopyN(w, zeros{}, n)
	}), func(t *testing.T, addr string) {
		client := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: 10 * time.Second}}
		defer client.CloseIdleConnections()
		var wg sync.WaitGroup
		for i := range 8 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				for j := range 50 {
					size := int64(1) << (j % 20)
					var body io.Reader = io.LimitReader(zeros{}, size)
					if i%2 == 0 { // with a length
						body = bytes.NewReader(make([]byte, size))
					}
					req, _ := http.NewRequestWithContext(context.Background(), "POST", "http://"+addr, body)
					if i%3 == 0 {
						req.Header.Set("Expect", "100-continue")
					}
					resp, err := client.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					if n, err := io.Copy(io.Discard, resp.Body); n != size || err != nil {
						t.Errorf("%d of %d bytes: %v", n, size, err)
					}
					resp.Body.Close()
				}
			}()
		}
		wg.Wait()
	})
}
