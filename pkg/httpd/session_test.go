package httpd

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
)

// eventually waits for what comes by itself.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never: " + what)
		}
	}
}

// ours are the transports that this package serves.
var ours = transports[2:]

// The register lists who is there, what they do and have done, and closes them.
func TestSessions(t *testing.T) {
	for _, name := range ours {
		t.Run(name, func(t *testing.T) {
			started := make(chan struct{})
			s := &service{Server: &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/wait" {
					close(started)
					<-r.Context().Done()
					return
				}
				io.Copy(w, r.Body)
			})}}
			start(t, name, s)
			if got := s.Sessions(); len(got) != 0 {
				t.Fatalf("at first: %+v", got)
			}
			text(t, s.do(t, s.request(t, "POST", "/", strings.NewReader(strings.Repeat("x", 10_000)))))
			failed := make(chan error, 1)
			go func() {
				resp, err := s.client.Do(s.request(t, "POST", "/wait?"+strings.Repeat("y", 1000), strings.NewReader("x")))
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				failed <- err
			}()
			<-started
			var v Session
			eventually(t, "the session with a request under way", func() bool { // the client may have opened another connection
				for _, v = range s.Sessions() {
					if len(v.Current) == 1 {
						return true
					}
				}
				return false
			})
			if c := v.Current[0]; c.Method != "POST" || len(c.Target) != maxTarget || !strings.HasPrefix(c.Target, "/wait?yyy") || time.Since(c.Since) > time.Minute {
				t.Errorf("current: %+v", c)
			}
			if len(s.Sessions()) == 1 && (v.Requests != 2 || v.Received < 10_000 || v.Sent < 10_000) || time.Since(v.Since) > time.Minute || v.ID == 0 {
				t.Errorf("%+v", v)
			}
			if v.TLS != (s.url[4] == 's') || v.Proto[5] != byte('0'+s.major) || v.Remote.Addr().IsLoopback() == (name == "in process") {
				t.Errorf("%+v", v)
			}
			if s.CloseSession(v.ID + 1000) {
				t.Error("a session was closed that is not there")
			}
			if !s.CloseSession(v.ID) {
				t.Error("no such session")
			}
			if err := <-failed; err == nil {
				t.Error("the request was answered")
			}
			s.client.CloseIdleConnections() // if there is another one
			eventually(t, "an empty register", func() bool { return len(s.Sessions()) == 0 })
			if got := text(t, s.do(t, s.request(t, "POST", "/", strings.NewReader("again")))); got != "again" {
				t.Errorf("%q", got)
			}
		})
	}
}

// underWay starts a server that answers old, and sends it a request, whose answer waits for finish to be closed.
func underWay(t *testing.T, name string) (s *service, finish chan struct{}, answer chan string) {
	started, finish := make(chan struct{}), make(chan struct{})
	s = &service{Server: &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/wait" {
			close(started)
			<-finish
		}
		io.WriteString(w, "old")
	})}}
	start(t, name, s)
	answer = make(chan string, 1)
	go func() { answer <- text(t, s.do(t, s.request(t, "GET", "/wait", nil))) }()
	<-started
	return s, finish, answer
}

// Shutdown accepts nothing more, closes who is idle, and lets what has begun come to its end.
func TestShutdown(t *testing.T) {
	for _, name := range ours {
		t.Run(name, func(t *testing.T) {
			s, finish, answer := underWay(t, name)
			over := make(chan error, 1)
			go func() { over <- s.Shutdown(context.Background()) }()
			eventually(t, "the end of accepting", func() bool {
				s.mu.Lock()
				defer s.mu.Unlock()
				return s.ending
			})
			other := *s
			other.client = &http.Client{Transport: s.client.Transport, Timeout: 5 * time.Second}
			if tr, ok := s.client.Transport.(*http.Transport); ok {
				tr = tr.Clone()
				defer tr.CloseIdleConnections()
				other.client.Transport = tr
				if resp, err := other.client.Get(s.url + "/new"); err == nil {
					if resp.StatusCode == 200 {
						t.Error("a new connection was served")
					}
					resp.Body.Close()
				}
			}
			select {
			case err := <-over:
				t.Fatalf("over before the request: %v", err)
			default:
			}
			close(finish)
			if got := <-answer; got != "old" {
				t.Errorf("%q", got)
			}
			if err := <-over; err != nil {
				t.Error(err)
			}
		})
	}
}

// What does not end by itself is cut when Shutdown's time is over.
func TestShutdownCuts(t *testing.T) {
	for _, name := range ours {
		t.Run(name, func(t *testing.T) {
			started := make(chan struct{})
			s := &service{Server: &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				close(started)
				<-r.Context().Done()
			})}}
			start(t, name, s)
			failed := make(chan error, 1)
			go func() {
				resp, err := s.client.Do(s.request(t, "POST", "/", strings.NewReader("x")))
				if err == nil {
					_, err = io.ReadAll(resp.Body)
					resp.Body.Close()
				}
				failed <- err
			}()
			<-started
			ctx, cancel := context.WithCancel(context.Background())
			cancel()
			if err := s.Shutdown(ctx); !errors.Is(err, context.Canceled) {
				t.Error(err)
			}
			if err := <-failed; err == nil {
				t.Error("the request was answered")
			}
		})
	}
}

// Connections above a limit are refused, of one address or in all, and there is room again when others have gone.
func TestLimitOfConnections(t *testing.T) {
	for _, limits := range [][2]int{{2, 0}, {0, 2}} {
		run(t, func(t *testing.T) *Server {
			return &Server{MaxConns: limits[0], MaxPerAddr: limits[1], Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })}
		}, func(t *testing.T, addr string) {
			a, b := dial(t, addr), dial(t, addr)
			for _, p := range []*peer{a, b} {
				p.send(get)
				p.want("GET", "200 OK", "hello")
			}
			c := dial(t, addr)
			c.want("GET", "503 Service Unavailable", "too many connections\n", "Retry-After: 5", "Connection: close")
			c.wantEOF()
			a.Close()
			eventually(t, "room for another one", func() bool {
				p := dial(t, addr)
				defer p.Close()
				p.send(get)
				resp, err := http.ReadResponse(p.r, nil)
				return err == nil && resp.StatusCode == 200
			})
		})
	}
	for in, want := range map[string]string{
		"192.0.2.1": "192.0.2.1", "::ffff:192.0.2.1": "192.0.2.1",
		"2001:db8:0:1:2:3:4:5": "2001:db8:0:1::", "fe80::1%eth0": "fe80::",
	} {
		if got := person(netip.MustParseAddr(in)); got.String() != want {
			t.Errorf("%s is counted as %s", in, got)
		}
	}
}

// Before TLS, a connection that is too many costs no handshake.
func TestLimitBeforeTLS(t *testing.T) {
	for _, name := range []string{"HTTP/2", "HTTP/3"} {
		s := &service{Server: &Server{MaxConns: 1, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})}}
		start(t, name, s)
		text(t, s.do(t, s.request(t, "GET", "/", nil)))
		second := &service{Server: &Server{}, url: s.url}
		start(t, name, second)
		second.Server.Close()
		if resp, err := second.client.Get(s.url); err == nil {
			t.Errorf("%s: %s", name, resp.Status)
			resp.Body.Close()
		}
	}
}

// The handler and the logger are replaced while requests are under way.
func TestReplace(t *testing.T) {
	for _, name := range ours {
		t.Run(name, func(t *testing.T) {
			s, finish, answer := underWay(t, name)
			var log lines
			s.SetLogger(slog.New(slog.NewTextHandler(&log, nil)))
			s.SetHandler(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.URL.Path == "/panic" {
					panic("what the caller must not know")
				}
				w.WriteHeader(http.StatusAccepted)
				io.WriteString(w, "new")
			}))
			if got := text(t, s.do(t, s.request(t, "GET", "/a?b", nil))); got != "new" {
				t.Errorf("%q", got)
			}
			resp := s.do(t, s.request(t, "POST", "/panic", strings.NewReader("x")))
			if got := text(t, resp); got != "internal server error\n" || resp.StatusCode != 500 {
				t.Errorf("%q %s", got, resp.Status)
			}
			close(finish)
			if got := <-answer; got != "old" {
				t.Errorf("%q", got)
			}
			eventually(t, "all lines", func() bool { return strings.Count(log.String(), "msg=request") == 3 })
			for _, want := range []string{"method=GET", "target=/a?b", "status=202 sent=3", "status=500", "target=/wait status=200 sent=3", "msg=\"handler panicked\"", "what the caller must not know"} {
				if !strings.Contains(log.String(), want) {
					t.Errorf("no %s in\n%s", want, log.String())
				}
			}
			s.SetLogger(nil)
			text(t, s.do(t, s.request(t, "GET", "/", nil)))
			if strings.Count(log.String(), "msg=request") != 3 {
				t.Errorf("logged on:\n%s", log.String())
			}
		})
	}
}

// lines is a buffer for many.
type lines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lines) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(p)
}

func (l *lines) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// Requests that are sent ahead are kept up to a limit and answered in their order; beyond it the client's socket is not read. If the client
// goes away meanwhile, that is noticed.
func TestAhead(t *testing.T) {
	release := make(chan struct{})
	began, canceled := make(chan struct{}), make(chan struct{})
	run(t, func(t *testing.T) *Server {
		s := handler(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/wait" {
				began <- struct{}{}
				select {
				case <-release:
				case <-r.Context().Done():
					canceled <- struct{}{}
				}
			}
			io.WriteString(w, r.URL.Path)
		})(t)
		s.MaxAhead = 2000
		return s
	}, func(t *testing.T, addr string) {
		p := dial(t, addr)
		var in, want []string
		for i := range 16 { // a whole queue, in the first packet or in many
			in = append(in, fmt.Sprintf("GET /%d HTTP/1.1\r\nHost: a\r\n\r\n", i))
			want = append(want, fmt.Sprint("/", i))
		}
		p.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" + strings.Join(in[:8], ""))
		for _, s := range in[8:] {
			p.send(s)
		}
		<-began
		release <- struct{}{}
		p.want("GET", "200 OK", "/wait")
		for _, w := range want {
			p.want("GET", "200 OK", w)
		}
		// All are answered also if the client has finished sending.
		p.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" + strings.Join(in, ""))
		p.CloseWrite()
		<-began
		release <- struct{}{}
		p.want("GET", "200 OK", "/wait")
		for _, w := range want {
			p.want("GET", "200 OK", w)
		}
		p.wantEOF()

		// Who goes away with requests in the queue is missed. (The streams of a session tell of a reset alone.)
		p = dial(t, addr)
		p.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n" + in[0])
		<-began
		p.Conn.(*net.TCPConn).SetLinger(0)
		p.Close()
		<-canceled

		// Nobody reads for ever.
		p = dial(t, addr)
		p.send("GET /wait HTTP/1.1\r\nHost: a\r\n\r\n")
		<-began
		sent := make(chan struct{})
		const n = 400_000 // 12 MB
		go func() {
			defer close(sent)
			io.WriteString(p.Conn, strings.Repeat(in[0], n))
		}()
		select {
		case <-sent:
			t.Error("12 MB of requests were taken behind one that is not answered")
		case <-time.After(300 * time.Millisecond):
		}
		p.Conn.(*net.TCPConn).SetLinger(0)
		p.Close()
		<-sent
		select { // where sockets are read by goroutines, nobody looks at one that is not read
		case release <- struct{}{}:
		case <-canceled:
		}
	})
}

// A hijacked connection is the handler's, with what was read of it, as net/http's is.
func TestHijack(t *testing.T) {
	s := handler(func(w http.ResponseWriter, r *http.Request) {
		nc, rw, err := http.NewResponseController(w).Hijack()
		if err != nil {
			t.Error(err)
			return
		}
		defer nc.Close()
		if _, err := w.Write([]byte("x")); err != http.ErrHijacked {
			t.Errorf("write after that: %v", err)
		}
		io.WriteString(rw, "raw: ")
		rw.Flush()
		line, _ := rw.ReadString('\n')
		rw.WriteString(line)
		rw.Flush()
	})(t)
	for _, portable := range []bool{false, true} {
		core, err := evloop.New(evloop.Config{Portable: portable, Loops: 1})
		if err != nil {
			t.Fatal(err)
		}
		ln, err := s.Listen(core, "tcp", "127.0.0.1:0", nil)
		if err != nil {
			t.Fatal(err)
		}
		p := dial(t, ln.Addr().String())
		p.send(get + "early\n")
		if b, err := io.ReadAll(p.r); string(b) != "raw: early\n" {
			t.Errorf("%q, %v", b, err)
		}
		eventually(t, "an empty register", func() bool { return len(s.Sessions()) == 0 })
		core.Close()
	}
	s.Wait()
}

// Names are found without anybody waiting, kept, and not asked for again and again if there are none.
func TestNames(t *testing.T) {
	var asked atomic.Int32
	blocked := make(chan struct{})
	n := &Names{Max: 3, Parallel: 2, Timeout: time.Minute, Lookup: func(ctx context.Context, addr netip.Addr) (string, error) {
		asked.Add(1)
		switch addr.As4()[3] {
		case 1:
			return "one.example", nil
		case 2:
			return "", errors.New("no such name")
		}
		select {
		case <-blocked:
		case <-ctx.Done():
		}
		return "late.example", ctx.Err()
	}}
	ip := func(i byte) netip.Addr { return netip.AddrFrom4([4]byte{192, 0, 2, i}) }
	if got := n.Name(ip(1)); got != "" {
		t.Errorf("at once: %q", got)
	}
	eventually(t, "a name", func() bool { return n.Name(ip(1)) == "one.example" })
	if got := n.Name(netip.MustParseAddr("::ffff:192.0.2.1")); got != "one.example" || asked.Load() != 1 {
		t.Errorf("%q, asked %d times", got, asked.Load())
	}
	eventually(t, "the end of a failed look-up", func() bool {
		n.Name(ip(2))
		n.mu.Lock()
		defer n.mu.Unlock()
		return n.known[ip(2)] != nil && !n.known[ip(2)].busy
	})
	for range 100 {
		n.Name(ip(2))
	}
	if asked.Load() != 2 {
		t.Errorf("asked %d times, for a name that there is and one that there is not", asked.Load())
	}
	n.Name(ip(3))
	n.Name(ip(4))
	eventually(t, "two look-ups", func() bool { return asked.Load() == 4 })
	n.Name(ip(5)) // too many at once
	if got := n.Name(netip.Addr{}); got != "" || asked.Load() != 4 {
		t.Errorf("%q, asked %d times", got, asked.Load())
	}
	n.mu.Lock()
	if len(n.known) != 3 || len(n.order) != 3 || n.known[ip(1)] != nil {
		t.Errorf("known: %v", n.order)
	}
	n.mu.Unlock()
	n.Close()
	n.Name(ip(9))
	if asked.Load() != 4 {
		t.Error("asked after Close")
	}
}

// Handlers and the register learn the name of the caller when it is known.
func TestCaller(t *testing.T) {
	names := &Names{Lookup: func(context.Context, netip.Addr) (string, error) { return "caller.example", nil }}
	defer names.Close()
	for _, name := range []string{"HTTP/1.1", "HTTP/2", "HTTP/3"} {
		s := &service{Server: &Server{Names: names, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, Caller(r.Context())) })}}
		start(t, name, s)
		eventually(t, "the name", func() bool {
			return text(t, s.do(t, s.request(t, "GET", "/", nil))) == "caller.example"
		})
		if v := s.Sessions(); !slices.ContainsFunc(v, func(v Session) bool { return v.Name == "caller.example" }) {
			t.Errorf("%s: %+v", name, v)
		}
	}
	if got := Caller(context.Background()); got != "" {
		t.Error(got)
	}
}

// What clients of HTTP/2 send to handlers that do not read waits in the windows of the connection: 1 MiB, however many streams there are.
func TestUnreadBodies(t *testing.T) {
	release := make(chan struct{})
	var started atomic.Int32
	s := &service{Server: &Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		started.Add(1)
		<-release
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	})}}
	start(t, "HTTP/2", s)
	const streams, size = 64, 256 << 10
	var sent atomic.Int64
	answers := make(chan string, streams)
	for range streams {
		go func() {
			resp, err := s.client.Do(s.request(t, "POST", "/", io.TeeReader(io.LimitReader(zeros{}, size), counter{&sent})))
			if err != nil {
				answers <- err.Error()
				return
			}
			b, _ := io.ReadAll(resp.Body)
			resp.Body.Close()
			answers <- string(b)
		}()
	}
	eventually(t, "all handlers", func() bool { return started.Load() == streams })
	last := int64(-1)
	eventually(t, "the end of sending", func() bool {
		time.Sleep(50 * time.Millisecond)
		now := sent.Load()
		same := now == last
		last = now
		return same
	})
	if most := int64(1<<20 + streams*64<<10); last > most { // and what the client has read and not sent
		t.Errorf("%d bytes were taken for handlers that do not read", last)
	}
	close(release)
	for range streams {
		if got := <-answers; got != fmt.Sprint(size, nil) {
			t.Errorf("%q", got)
		}
	}
}

type counter struct{ n *atomic.Int64 }

func (c counter) Write(p []byte) (int, error) {
	c.n.Add(int64(len(p)))
	return len(p), nil
}
