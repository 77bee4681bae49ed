package public

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// pipeListener hands out the far ends of net.Pipe, which work in fake time.
type pipeListener struct {
	conns  chan net.Conn
	closed chan struct{}
}

func (l *pipeListener) Accept() (net.Conn, error) {
	select {
	case c := <-l.conns:
		return c, nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}
func (l *pipeListener) Close() error   { close(l.closed); return nil }
func (l *pipeListener) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

// pipeEnd is the end of a pipe that has an address.
type pipeEnd struct{ net.Conn }

func (pipeEnd) RemoteAddr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 40000} }

// inFakeTime runs f in fake time with a relay whose service http://app.test is
// served by serve, a handler of streams.
func inFakeTime(t *testing.T, serve func(st *tunnel.Stream, b []byte), f func(r *testRelay, s *testSite, dial func() *testVisitor)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		core, err := evloop.New(evloop.Config{Loops: 2, Portable: true})
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		r := &testRelay{Relay: &Relay{Core: core}, t: t}
		r.Reload([]Site{{Name: "office", Keys: []string{"k"}, Publish: patterns("http://*.test")}})
		ln := &pipeListener{make(chan net.Conn), make(chan struct{})}
		r.Serve(ln, false)
		s := r.connect("office", nil, "app", "http://app.test")
		s.handle(func(st *tunnel.Stream, _ relay.Header) bool {
			st.SetHandler(&funcHandler{data: func(b []byte) int { serve(st, b); return len(b) }})
			return true
		})
		f(r, s, func() *testVisitor {
			a, b := net.Pipe()
			ln.conns <- pipeEnd{b}
			t.Cleanup(func() { a.Close() })
			return &testVisitor{t, a, bufio.NewReader(a)}
		})
	})
}

func silent(*tunnel.Stream, []byte) {}

func ok(st *tunnel.Stream, _ []byte) {
	st.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
}

// took checks that d has passed since start, give or take the ticks of the timers.
func took(t *testing.T, start time.Time, d time.Duration) {
	t.Helper()
	if got := time.Since(start); got < d || got > d+time.Second {
		t.Errorf("took %v, want %v", got, d)
	}
}

func TestSlowHead(t *testing.T) {
	inFakeTime(t, ok, func(r *testRelay, _ *testSite, dial func() *testVisitor) {
		v := dial()
		start := time.Now()
		var wg sync.WaitGroup
		wg.Go(func() { // a byte every two seconds does not help
			for _, c := range get {
				time.Sleep(2 * time.Second)
				if _, err := fmt.Fprintf(v.Conn, "%c", c); err != nil {
					return
				}
			}
		})
		res, _ := v.response("GET")
		if res.StatusCode != 408 || !res.Close {
			t.Errorf("%s, close %v", res.Status, res.Close)
		}
		took(t, start, 2*time.Second+headTime)
		v.Conn.Close()
		wg.Wait()
	})
}

func TestIdle(t *testing.T) {
	inFakeTime(t, ok, func(r *testRelay, _ *testSite, dial func() *testVisitor) {
		v := dial()
		for range 3 {
			time.Sleep(idleTime - time.Second)
			v.send(get)
			v.response("GET")
		}
		start := time.Now()
		if _, err := v.ReadByte(); err == nil {
			t.Error("got a byte")
		}
		if d := time.Since(start); d < idleTime || d > idleTime+farewell+time.Second {
			t.Errorf("closed after %v", d)
		}
	})
}

func TestSlowBody(t *testing.T) {
	inFakeTime(t, silent, func(r *testRelay, _ *testSite, dial func() *testVisitor) {
		v := dial()
		v.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 10\r\n\r\n123")
		time.Sleep(bodyTime - 5*time.Second)
		v.send("4")
		start := time.Now()
		res, _ := v.response("POST")
		if res.StatusCode != 408 || !res.Close {
			t.Errorf("%s, close %v", res.Status, res.Close)
		}
		if d := time.Since(start); d < bodyTime || d > bodyTime+busyCheck+time.Second {
			t.Errorf("took %v", d)
		}
	})
}

func TestSilentServer(t *testing.T) {
	inFakeTime(t, silent, func(r *testRelay, s *testSite, dial func() *testVisitor) {
		v := dial()
		start := time.Now()
		v.send(get)
		if res, _ := v.response("GET"); res.StatusCode != 504 || res.Close {
			t.Errorf("%s, close %v", res.Status, res.Close)
		}
		took(t, start, r.ResponseTimeout)
		if n := s.visitors("app"); n != 0 {
			t.Errorf("%d requests left", n)
		}
	})
}

// A response that has begun may be silent for as long as it likes (server-sent
// events are), and so may an upgraded connection.
func TestSilentResponse(t *testing.T) {
	inFakeTime(t, func(st *tunnel.Stream, b []byte) {
		if strings.Contains(string(b), "Upgrade") {
			st.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"))
			return
		}
		st.Write([]byte("HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\na\r\n"))
		st.Write([]byte("1\r\nb\r\n"))
	}, func(r *testRelay, s *testSite, dial func() *testVisitor) {
		v, w := dial(), dial()
		v.send(get)
		w.send("GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
		w.expect("HTTP/1.1 101 Switching Protocols\r\n")
		res, err := http.ReadResponse(v.Reader, nil)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 2)
		if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "ab" {
			t.Fatalf("%q, %v", b, err)
		}
		time.Sleep(time.Hour)
		if n := s.visitors("app"); n != 2 {
			t.Errorf("%d visitors, want 2", n)
		}
		// One that has gone is noticed at once.
		v.Conn.Close()
		synctest.Wait()
		time.Sleep(halfTime + busyCheck)
		if n := s.visitors("app"); n != 1 {
			t.Errorf("%d visitors, want 1", n)
		}
	})
}

// While a session has no link, a request waits ten seconds for it.
func TestWaitForLink(t *testing.T) {
	inFakeTime(t, ok, func(r *testRelay, s *testSite, dial func() *testVisitor) {
		v := dial()
		onLoop(s.session.loop.Loop, s.cut)
		start := time.Now()
		v.send(get)
		res, _ := v.response("GET")
		if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
			t.Errorf("%s, %v", res.Status, res.Header)
		}
		took(t, start, waitTime)
		// When the session gives up, its routes go.
		time.Sleep(2 * time.Minute)
		v = dial()
		v.send(get)
		start = time.Now()
		if res, _ := v.response("GET"); res.StatusCode != 503 {
			t.Errorf("%s", res.Status)
		}
		took(t, start, 0)
	})
}

// What began before the link was lost waits for as long as the session does.
func TestRequestOutlivesLink(t *testing.T) {
	var asked *tunnel.Stream
	target := func(st *tunnel.Stream, b []byte) {
		switch {
		case bytes.HasPrefix(b, []byte("GET")):
			asked = st
		case bytes.HasSuffix(b, []byte("end")):
			ok(st, b)
		}
	}
	inFakeTime(t, target, func(r *testRelay, s *testSite, dial func() *testVisitor) {
		whole, upload := dial(), dial()
		whole.send(get)
		upload.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 6\r\n\r\nthe")
		time.Sleep(time.Second)
		onLoop(s.session.loop.Loop, s.cut)
		time.Sleep(50 * time.Second) // of 60
		if refusal := s.resume(0); refusal != nil {
			t.Fatal(refusal)
		}
		upload.send("end")
		onLoop(s.session.loop.Loop, func() { ok(asked, nil) })
		for _, v := range []*testVisitor{whole, upload} {
			if res, _ := v.response("GET"); res.StatusCode != 200 {
				t.Errorf("after the link is back: %s", res.Status)
			}
		}
	})
}

// An idle stream is kept for the next request, and not for long.
func TestStock(t *testing.T) {
	inFakeTime(t, ok, func(r *testRelay, s *testSite, dial func() *testVisitor) {
		v := dial()
		streams := func() (n int) {
			onLoop(s.session.loop.Loop, func() { n = s.peer.Stats().Streams })
			return n
		}
		for range 5 {
			v.send(get)
			v.response("GET")
		}
		time.Sleep(time.Second) // for the last acknowledgements of the announcement
		if n := streams(); n != 1 {
			t.Errorf("%d streams for five requests, want 1", n)
		}
		time.Sleep(3 * keepTime)
		synctest.Wait()
		if n := streams(); n != 0 {
			t.Errorf("%d streams left, want none", n)
		}
	})
}
