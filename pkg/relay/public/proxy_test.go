package public

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

func TestProxy(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		app := httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			body, _ := io.ReadAll(req.Body)
			fmt.Fprintf(w, "%s %s %s %s", req.Method, req.Host, req.URL, body)
		}))
		r.connect("office", map[string]string{"app": app}, "app", "https://app.test", "plain", "http://app.test")
		c := r.client()
		for i := range 20 {
			res, err := c.Get(fmt.Sprintf("https://app.test/p?q=%d", i))
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if want := fmt.Sprintf("GET app.test /p?q=%d ", i); string(b) != want {
				t.Fatalf("got %q, want %q", b, want)
			}
			res, err = c.Post("https://app.test/p", "text/plain", struct{ io.Reader }{strings.NewReader("some body")})
			if err != nil {
				t.Fatal(err)
			}
			b, _ = io.ReadAll(res.Body)
			res.Body.Close()
			if want := "POST app.test /p some body"; string(b) != want {
				t.Fatalf("got %q, want %q", b, want)
			}
		}
	})
}

// script is a target that, on each connection, expects what starts with "> " and
// answers with what starts with "< "; "." is the end of both. Lines end with CRLF.
func script(t *testing.T, lines ...string) string {
	return target(t, func(c net.Conn, br *bufio.Reader) {
		for _, l := range lines {
			l = strings.ReplaceAll(l, "|", "\r\n")
			if s, ok := strings.CutPrefix(l, "< "); ok {
				io.WriteString(c, s)
				continue
			}
			want := strings.TrimPrefix(l, "> ")
			got := make([]byte, len(want))
			n, err := io.ReadFull(br, got)
			if string(got[:n]) != want {
				if n > 0 {
					t.Errorf("the server got %q (%v), want %q", got[:n], err, want)
				}
				return
			}
		}
	})
}

const forwarded = "X-Forwarded-For: 127.0.0.1|X-Real-IP: 127.0.0.1|X-Forwarded-Proto: https|X-Forwarded-Host: app.test|"

// exchangeTest is a transcript of what a visitor sends and gets, and what the
// server gets and sends; "|" is CRLF.
type exchangeTest struct {
	name   string
	server []string // see script
	send   string
	want   string
	closed bool // the visitor's connection, after want
}

func TestTranscripts(t *testing.T) {
	head := func(line, fields string) string { return "> " + line + " HTTP/1.1|Host: app.test|" + fields }
	tail := "X-Forwarded-Port: PORT|Forwarded: for=127.0.0.1;host=app.test;proto=https||"
	tests := []exchangeTest{
		{
			name: "fields that are for the next hop, or lie, do not pass",
			server: []string{
				head("GET /x?y", "Accept: a|Accept: b|"+forwarded+tail),
				"< HTTP/1.1 200 OK|Keep-Alive: x|Connection: secret|Secret: x|Content-Length: 2||ok",
			},
			send: "GET /x?y HTTP/1.1|Host: app.test|Accept: a|Connection: keep-alive, Foo|Foo: bar|Keep-Alive: 1|X-Forwarded-For: 1.2.3.4|Forwarded: for=x|Accept: b||",
			want: "HTTP/1.1 200 OK|Content-Length: 2||ok",
		},
		{
			name:   "HEAD has a length and no body",
			server: []string{head("HEAD /", forwarded+tail), "< HTTP/1.1 200 OK|Content-Length: 5||"},
			send:   "HEAD / HTTP/1.1|Host: app.test||",
			want:   "HTTP/1.1 200 OK|Content-Length: 5||",
		},
		{
			name: "chunks are framed anew, trailers pass",
			server: []string{
				head("POST /", "Transfer-Encoding: chunked|"+forwarded+tail+"3|abc|2|de|0|T: v||"),
				"< HTTP/1.1 200 OK|Transfer-Encoding: chunked||4;x=y|wxyz|0|U: w||",
			},
			send: "POST / HTTP/1.1|Host: app.test|Transfer-Encoding: chunked||3;e=f|abc|2|de|0|T: v||",
			want: "HTTP/1.1 200 OK|Transfer-Encoding: chunked||4|wxyz|0|U: w||",
		},
		{
			name:   "a response until close comes in chunks",
			server: []string{head("GET /", forwarded+tail), "< HTTP/1.0 200 OK||all of it"},
			send:   "GET / HTTP/1.1|Host: app.test||",
			want:   "HTTP/1.1 200 OK|Transfer-Encoding: chunked||9|all of it|0||",
		},
		{
			name:   "chunks go to HTTP/1.0 until close",
			server: []string{head("GET /", forwarded+tail), "< HTTP/1.1 200 OK|Transfer-Encoding: chunked||4|wxyz|0||"},
			send:   "GET / HTTP/1.0|Host: app.test|Connection: keep-alive||",
			want:   "HTTP/1.1 200 OK|Connection: close||wxyz",
			closed: true,
		},
		{
			name:   "HTTP/1.0 keeps alive what has a length",
			server: []string{head("GET /", forwarded+tail), "< HTTP/1.1 200 OK|Content-Length: 2||ok"},
			send:   "GET / HTTP/1.0|Host: app.test|Connection: keep-alive||",
			want:   "HTTP/1.1 200 OK|Content-Length: 2|Connection: keep-alive||ok",
		},
		{
			name:   "interim responses pass",
			server: []string{head("GET /", forwarded+tail), "< HTTP/1.1 103 Early Hints|Link: x||HTTP/1.1 204 No Content||"},
			send:   "GET / HTTP/1.1|Host: app.test||",
			want:   "HTTP/1.1 103 Early Hints|Link: x||HTTP/1.1 204 No Content||",
		},
		{
			name:   "Connection: close closes",
			server: []string{head("GET /", forwarded+tail), "< HTTP/1.1 200 OK|Content-Length: 2||ok"},
			send:   "GET / HTTP/1.1|Host: app.test|Connection: close||",
			want:   "HTTP/1.1 200 OK|Content-Length: 2|Connection: close||ok",
			closed: true,
		},
		{
			name: "pipelined requests are answered in order",
			server: []string{
				head("GET /1", forwarded+tail), "< HTTP/1.1 200 OK|Content-Length: 1||1",
				head("GET /2", forwarded+tail), "< HTTP/1.1 200 OK|Content-Length: 1||2",
				head("GET /3", forwarded+tail), "< HTTP/1.1 200 OK|Content-Length: 1||3",
			},
			send: "GET /1 HTTP/1.1|Host: app.test||GET /2 HTTP/1.1|Host: app.test||GET /3 HTTP/1.1|Host: app.test||",
			want: "HTTP/1.1 200 OK|Content-Length: 1||1HTTP/1.1 200 OK|Content-Length: 1||2HTTP/1.1 200 OK|Content-Length: 1||3",
		},
		{
			name: "an early refusal closes, whatever of the body is still to come",
			server: []string{
				head("POST /", "Content-Length: 1000000|"+forwarded+tail+"begin"),
				"< HTTP/1.1 413 Content Too Large|Content-Length: 2||no",
			},
			send:   "POST / HTTP/1.1|Host: app.test|Content-Length: 1000000||begin",
			want:   "HTTP/1.1 413 Content Too Large|Content-Length: 2|Connection: close||no",
			closed: true,
		},
		{
			name:   "a malformed response is 502",
			server: []string{head("GET /", forwarded+tail), "< HTTP/1.1 200 OK|Content-Length: 2|Content-Length: 3||ok"},
			send:   "GET / HTTP/1.1|Host: app.test||",
			want:   "HTTP/1.1 502 Bad Gateway|",
		},
		{
			name:   "an upgrade that nobody asked for is 502",
			server: []string{head("GET /", forwarded+tail), "< HTTP/1.1 101 Switching Protocols|Connection: Upgrade|Upgrade: x||"},
			send:   "GET / HTTP/1.1|Host: app.test||",
			want:   "HTTP/1.1 502 Bad Gateway|",
		},
		{
			name:   "a server that closes without an answer is 502",
			server: []string{head("GET /", forwarded+tail)},
			send:   "GET / HTTP/1.1|Host: app.test||",
			want:   "HTTP/1.1 502 Bad Gateway|",
		},
		{
			name:   "a response that ends early ends the connection",
			server: []string{head("GET /", forwarded+tail), "< HTTP/1.1 200 OK|Content-Length: 10||half"},
			send:   "GET / HTTP/1.1|Host: app.test||",
			want:   "HTTP/1.1 200 OK|Content-Length: 10||half",
			closed: true,
		},
		{
			name:   "a request with two lengths is rejected",
			send:   "POST / HTTP/1.1|Host: app.test|Content-Length: 2|Transfer-Encoding: chunked||0||GET /admin HTTP/1.1|",
			want:   "HTTP/1.1 400 Bad Request|",
			closed: true,
		},
		{
			name:   "a bare LF is rejected",
			send:   "GET / HTTP/1.1\nHost: app.test\n\n",
			want:   "HTTP/1.1 400 Bad Request|",
			closed: true,
		},
		{
			name:   "a malformed chunk is rejected",
			send:   "POST / HTTP/1.1|Host: app.test|Transfer-Encoding: chunked||zz|",
			server: []string{head("POST /", "Transfer-Encoding: chunked|"+forwarded+tail)},
			want:   "HTTP/1.1 400 Bad Request|",
			closed: true,
		},
		{
			name:   "CONNECT is not for us",
			send:   "CONNECT app.test:443 HTTP/1.1|Host: app.test:443||",
			want:   "HTTP/1.1 405 Method Not Allowed|",
			closed: true,
		},
		{name: "nobody has this name", send: "GET / HTTP/1.1|Host: nobody.example||", want: "HTTP/1.1 404 Not Found|"},
		{name: "the relay's own name", send: "GET / HTTP/1.1|Host: relay.test||", want: "HTTP/1.1 404 Not Found|"},
		{name: "a site that is away", send: "GET / HTTP/1.1|Host: away.home.test||", want: "HTTP/1.1 503 Service Unavailable|"},
	}
	backends(t, func(t *testing.T, portable bool) {
		for _, test := range tests {
			t.Run(test.name, func(t *testing.T) {
				r := newTestRelay(t, portable, nil)
				_, port, _ := net.SplitHostPort(r.https)
				server := slices.Clone(test.server)
				for i, l := range server {
					server[i] = strings.ReplaceAll(l, "PORT", port)
				}
				r.connect("office", map[string]string{"app": script(t, server...)}, "app", "https://app.test")
				v := r.dial(true)
				v.send(strings.ReplaceAll(test.send, "|", "\r\n"))
				v.expect(strings.ReplaceAll(test.want, "|", "\r\n"))
				if test.closed {
					io.Copy(io.Discard, v)
					if _, err := v.Reader.ReadByte(); err != io.EOF {
						t.Errorf("the connection ended with %v", err)
					}
				}
			})
		}
	})
}

func TestExpectContinue(t *testing.T) {
	r := newTestRelay(t, false, nil)
	app := httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		b, _ := io.ReadAll(req.Body) // net/http says 100 here
		w.Write(b)
	}))
	r.connect("office", map[string]string{"app": app}, "app", "https://app.test")
	v := r.dial(true)
	v.send("POST / HTTP/1.1\r\nHost: app.test\r\nExpect: 100-continue\r\nContent-Length: 5\r\n\r\n")
	v.expect("HTTP/1.1 100 Continue\r\n\r\n")
	v.send("hello")
	if res, body := v.response("POST"); res.StatusCode != 200 || body != "hello" {
		t.Fatalf("%s %q", res.Status, body)
	}
}

// A kept stream whose server closes it at the wrong moment costs no visitor an
// error, if the request may be sent again.
func TestRetry(t *testing.T) {
	r := newTestRelay(t, false, nil)
	var conns atomic.Int32
	app := target(t, func(c net.Conn, br *bufio.Reader) {
		for n := 0; ; n++ {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			io.Copy(io.Discard, req.Body)
			if n == 1 && conns.Load() == 0 { // the second request on the first connection
				conns.Add(1)
				return
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	r.connect("office", map[string]string{"app": app}, "app", "https://app.test")
	v := r.dial(true)
	for range 3 {
		v.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
		if res, _ := v.response("GET"); res.StatusCode != 200 {
			t.Fatal(res.Status)
		}
	}
	if conns.Load() != 1 {
		t.Fatal("the stream was not reused")
	}
	// A POST is not sent twice.
	conns.Store(0)
	r2 := newTestRelay(t, false, nil)
	r2.connect("office", map[string]string{"app": app}, "app", "https://app.test")
	v = r2.dial(true)
	v.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
	v.response("GET")
	v.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 1\r\n\r\nx")
	if res, _ := v.response("POST"); res.StatusCode != 502 {
		t.Fatal(res.Status)
	}
}

func TestStreamErrors(t *testing.T) {
	for code, want := range map[tunnel.Code]int{
		tunnel.CodeRefused: 502, tunnel.CodeUnreachable: 502, tunnel.CodeCancelled: 502, tunnel.CodeInternal: 502,
		tunnel.CodeForbidden: 502, tunnel.CodeTimeout: 504, tunnel.CodeNotFound: 404, tunnel.CodeOverload: 503,
		tunnel.CodeMemory: 503, tunnel.CodeDraining: 503,
	} {
		r := newTestRelay(t, false, nil)
		s := r.connect("office", nil, "app", "https://app.test")
		s.handle(func(st *tunnel.Stream, h relay.Header) bool {
			if h.Service != "app" || h.Scheme != "https" || h.Host != "app.test" || !h.Visitor.IsValid() {
				t.Errorf("stream header %+v", h)
			}
			st.Reset(code)
			return true
		})
		v := r.dial(true)
		for range 2 { // the connection goes on
			v.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
			res, body := v.response("GET")
			if res.StatusCode != want || (want == 503) != (res.Header.Get("Retry-After") != "") {
				t.Errorf("%v: %s, Retry-After %q, want %d", code, res.Status, res.Header.Get("Retry-After"), want)
			}
			if strings.Contains(body, "127.0.0.1") || body == "" {
				t.Errorf("body %q", body)
			}
		}
	}
}

// After 101 the bytes are nobody's but the visitor's and the server's: what came
// with the heads is not lost, and each direction ends by itself.
func TestUpgrade(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		app := target(t, func(c net.Conn, br *bufio.Reader) {
			if _, err := http.ReadRequest(br); err != nil {
				return
			}
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nwelcome ")
			io.Copy(c, br)
			io.WriteString(c, " bye")
		})
		s := r.connect("office", map[string]string{"app": app}, "app", "https://app.test")
		v := r.dial(true)
		v.send("GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ")
		v.expect("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nwelcome early ")
		v.send("late")
		v.expect("late")
		if n := s.visitors("app"); n != 1 {
			t.Errorf("%d visitors, want 1", n)
		}
		closeWrite(v.Conn)
		v.expect(" bye")
		v.expectEOF()
		v.Conn.Close()
		waitFor(t, func() bool { return s.visitors("app") == 0 && r.admission.connected() == 0 })
	})
}

func closeWrite(c net.Conn) { c.(interface{ CloseWrite() error }).CloseWrite() }

// visitors returns the count of a service.
func (ts *testSite) visitors(name string) (n int) {
	onLoop(ts.session.loop.Loop, func() { n = ts.session.service(name).visitors })
	return n
}

// waitFor waits for something that other goroutines bring about.
func waitFor(t *testing.T, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(time.Minute); !f(); {
		if time.Now().After(deadline) {
			t.Fatal("it does not come")
		}
		time.Sleep(time.Millisecond)
	}
}

func TestTCP(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br); io.WriteString(c, " bye") })
		s := r.connect("office", map[string]string{"db": echo}, "db", "tcp://127.0.0.1:0")
		addr := s.port()
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, "hello")
		closeWrite(c)
		b, err := io.ReadAll(c)
		if err != nil || string(b) != "hello bye" {
			t.Fatalf("got %q, %v", b, err)
		}
		// The listener goes with the session.
		onLoop(s.session.loop.Loop, func() { s.session.close(errRevoked) })
		waitFor(t, func() bool {
			c, err := net.Dial("tcp", addr)
			if err == nil {
				c.Close()
			}
			return err != nil
		})
	})
}

// A server that authenticates connections gets a new one for each request of that
// kind: the next visitor must not be taken for the one before.
func TestConnectionAuthentication(t *testing.T) {
	for _, test := range []struct {
		name, request, response string
		conns                   int32
	}{
		{"basic", "Authorization: Basic x\r\n", "200 OK\r\n", 1},
		{"negotiate", "Authorization: negotiate x\r\n", "200 OK\r\n", 3},
		{"ntlm", "Authorization: NTLM x\r\n", "200 OK\r\n", 3},
		{"offered", "", "401 Unauthorized\r\nWWW-Authenticate: Basic realm=x, NTLM\r\n", 3},
		{"offered beside", "", "401 Unauthorized\r\nWWW-Authenticate: Basic realm=x\r\nWWW-Authenticate: Negotiate\r\n", 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			var conns atomic.Int32
			r := newTestRelay(t, false, nil)
			r.connect("office", map[string]string{"app": target(t, func(c net.Conn, br *bufio.Reader) {
				conns.Add(1)
				for {
					if _, err := http.ReadRequest(br); err != nil {
						return
					}
					io.WriteString(c, "HTTP/1.1 "+test.response+"Content-Length: 2\r\n\r\nok")
				}
			})}, "app", "https://app.test")
			v := r.dial(true)
			for range 3 {
				v.send("GET / HTTP/1.1\r\nHost: app.test\r\n" + test.request + "\r\n")
				v.response("GET")
			}
			if n := conns.Load(); n != test.conns {
				t.Errorf("%d connections for 3 requests, want %d", n, test.conns)
			}
		})
	}
}

// TestPerVisitor has requests of two visitors come to a target that a program is: each on a stream of its own, whose header
// says who it is, and which is used again. To other targets they share one.
func TestPerVisitor(t *testing.T) {
	for _, scheme := range []string{relay.SchemeListen, "rest", "http"} {
		r := newTestRelay(t, false, nil)
		s := r.connect("office", nil)
		users := &relay.Policy{Users: hashes(t)}
		replies := make(chan []relay.AnnounceReply, 1)
		onLoop(s.session.loop.Loop, func() {
			s.announce([]relay.Announcement{{Name: "app", Publish: "https://app.test", TargetScheme: scheme, Policy: users}}, replies)
		})
		if list := <-replies; list[0].Error != "" {
			t.Fatal(list[0].Error)
		}
		streams := 0
		s.handle(func(st *tunnel.Stream, h relay.Header) bool {
			streams++
			st.SetHandler(&funcHandler{data: func(b []byte) int {
				st.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: " + strconv.Itoa(len(h.Visitor.String())) + "\r\n\r\n" + h.Visitor.String()))
				return len(b)
			}})
			return true
		})
		v, w := r.dial(true), r.dial(true)
		for range 2 {
			for _, c := range []*testVisitor{v, w} {
				c.send(strings.ReplaceAll("GET / HTTP/1.1|Host: app.test"+basic("bob", "pa:ss")+"||", "|", "\r\n"))
				res, body := c.response("GET")
				if res.StatusCode != 200 || scheme != "http" && body != c.LocalAddr().String() {
					t.Errorf("%s: %s, the visitor is %s, want %s", scheme, res.Status, body, c.LocalAddr())
				}
			}
		}
		onLoop(s.session.loop.Loop, func() {
			if want := map[bool]int{true: 2, false: 1}[scheme != "http"]; streams != want {
				t.Errorf("%s: %d streams, want %d", scheme, streams, want)
			}
		})
	}
}
