package public

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

var okTarget = func(c net.Conn, br *bufio.Reader) {
	for {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		io.Copy(io.Discard, req.Body)
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
}

const get = "GET / HTTP/1.1\r\nHost: app.test\r\n\r\n"

// status sends a request on a new connection and returns the status.
func (r *testRelay) status(secure bool, request string) int {
	r.t.Helper()
	v := r.dial(secure)
	v.send(request)
	res, _ := v.response("GET")
	v.Conn.Close()
	return res.StatusCode
}

func TestPlainListener(t *testing.T) {
	r := newTestRelay(t, false, nil)
	app := target(t, okTarget)
	r.connect("office", map[string]string{"app": app, "plain": app}, "app", "https://app.test", "plain", "http://plain.test")
	_, port, _ := net.SplitHostPort(r.https)
	for _, test := range []struct {
		request  string
		status   int
		location string
	}{
		{"GET / HTTP/1.1\r\nHost: plain.test\r\n\r\n", 200, ""},
		{"GET /a?b=c HTTP/1.1\r\nHost: App.test:80\r\n\r\n", 301, "https://app.test:" + port + "/a?b=c"},
		{"POST /a HTTP/1.1\r\nHost: app.test\r\nContent-Length: 0\r\n\r\n", 308, "https://app.test:" + port + "/a"},
		{"GET / HTTP/1.1\r\nHost: relay.test\r\n\r\n", 301, "https://relay.test:" + port + "/"},
		{"GET / HTTP/1.1\r\nHost: nobody.example\r\n\r\n", 404, ""},
		{"GET /.culvert/link HTTP/1.1\r\nHost: nobody.example\r\n\r\n", 404, ""},
		{"GET / HTTP/1.0\r\n\r\n", 404, ""},
	} {
		v := r.dial(false)
		v.send(test.request)
		res, _ := v.response("GET")
		if res.StatusCode != test.status || res.Header.Get("Location") != test.location {
			t.Errorf("%q: %s, Location %q, want %d, %q", test.request, res.Status, res.Header.Get("Location"), test.status, test.location)
		}
	}
	// What is published in the clear is not there with TLS.
	if got := r.status(true, "GET / HTTP/1.1\r\nHost: plain.test\r\n\r\n"); got != 503 {
		t.Errorf("https://plain.test: %d, want 503: the site may publish it, and does not", got)
	}
}

func TestFull(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.MaxVisitors, r.MaxPerAddress = 4, 3 })
	r.connect("office", map[string]string{"app": target(t, okTarget)}, "app", "https://app.test", "plain", "http://app.test")
	var held []*testVisitor
	for range 3 {
		v := r.dial(true)
		v.send(get)
		v.response("GET")
		held = append(held, v)
	}
	for _, secure := range []bool{true, false} {
		v := r.dial(secure)
		v.send(get)
		res, _ := v.response("GET")
		if res.StatusCode != 503 || res.Header.Get("Retry-After") == "" || !res.Close {
			t.Errorf("one too many: %s, %v", res.Status, res.Header)
		}
		v.Conn.Close()
	}
	// Those that are in go on, and a place that is left is free again.
	held[0].send(get)
	held[0].response("GET")
	held[1].Conn.Close()
	waitFor(t, func() bool { return r.admission.connected() == 2 })
	if got := r.status(true, get); got != 200 {
		t.Errorf("after one has left: %d", got)
	}
}

func TestLostLink(t *testing.T) {
	r := newTestRelay(t, false, nil)
	s := r.connect("office", map[string]string{"app": target(t, okTarget)}, "app", "https://app.test")
	v := r.dial(true)
	v.send(get)
	v.response("GET")

	// While the link is lost a request waits, and so does a new visitor.
	onLoop(s.session.loop.Loop, s.cut)
	v.send(get)
	other := r.dial(true)
	other.send(get)
	waitFor(t, func() bool { return r.Status(context.Background()).Counters.Requests == 3 })
	if st := r.Status(context.Background()); len(st.Sessions) != 1 || st.Sessions[0].Lost.IsZero() {
		t.Errorf("status of a lost session: %+v", st.Sessions)
	}
	if refusal := s.resume(0); refusal != nil {
		t.Fatal(refusal)
	}
	for _, v := range []*testVisitor{v, other} {
		if res, _ := v.response("GET"); res.StatusCode != 200 {
			t.Errorf("after the link is back: %s", res.Status)
		}
	}

	// A private relay that has restarted begins anew: the old session ends at
	// once, and what waited in it is told to come again.
	onLoop(s.session.loop.Loop, s.cut)
	v.send(get)
	waitFor(t, func() bool { return r.Status(context.Background()).Counters.Requests == 4 })
	s2 := r.connect("office", s.targets, "app", "https://app.test")
	if res, _ := v.response("GET"); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Errorf("a request in the old session: %s", res.Status)
	}
	v.send(get)
	if res, _ := v.response("GET"); res.StatusCode != 200 {
		t.Errorf("in the new session: %s", res.Status)
	}

	// Whoever resumes proves it, and has the key that the session began with.
	for _, h := range []relay.Hello{
		{Session: s2.session.id, Resume: s.session.secret, Key: "k"},
		{Session: s2.session.id, Resume: s2.session.secret, Key: "other"},
	} {
		h.Site = "office"
		a, refusal := r.admit(h, r.loops[0])
		if refusal != nil || a.resumed || a.session == s2.session {
			t.Errorf("%+v resumes: %v", h, refusal)
		}
		onLoop(a.session.loop.Loop, func() { a.session.close(nil) })
	}

	// The end of the session is the end of its routes.
	onLoop(s2.session.loop.Loop, func() { s2.session.close(errors.New("over")) })
	if got := r.status(true, get); got != 503 {
		t.Errorf("after the session: %d, want 503", got)
	}
}

func TestPublish(t *testing.T) {
	r := newTestRelay(t, false, nil)
	app := target(t, okTarget)
	s := r.connect("office", map[string]string{"app": app, "again": app}, "app", "https://app.test", "port", "tcp://127.0.0.1:0")
	announce := func(s *testSite, list ...string) (errs []string) {
		replies := make(chan []relay.AnnounceReply, 1)
		onLoop(s.session.loop.Loop, func() {
			var l []relay.Announcement
			for i := 0; i < len(list); i += 3 {
				l = append(l, relay.Announcement{Name: list[i], Publish: list[i+1], TargetScheme: list[i+2]})
			}
			s.announce(l, replies)
		})
		for _, r := range <-replies {
			errs = append(errs, r.Error)
		}
		return errs
	}
	_, taken, _ := net.SplitHostPort(r.https)
	for i, err := range announce(s,
		"app", "https://app.test", "http",
		"again", "https://app.test", "http",
		"else", "https://app.example.org", "http",
		"boot", "tftp://boot.test/", "tftp",
		"target", "https://x.test", "tcp",
		"taken", "tcp://127.0.0.1:"+taken, "tcp",
		"port", "tcp://127.0.0.1:0", "tcp",
		"hidden", "", "tcp",
	) {
		want := []string{
			"", `service "app" has this address`, "may not publish", "three slashes",
			"needs an http://", "cannot listen", "", "",
		}[i]
		if want == "" && err != "" || !strings.Contains(err, want) {
			t.Errorf("service %d: %q, want %q", i, err, want)
		}
	}
	// The service that was announced again is the same one.
	if st := r.Status(context.Background()); len(st.Sessions) != 1 || len(st.Sessions[0].Services) != 3 {
		t.Errorf("status: %+v", st)
	}
	home := r.connect("home", map[string]string{"mine": app}, "mine", "https://mine.test")
	if errs := announce(home, "mine", "https://mine.test", "http", "steal", "https://app.test", "http"); !strings.Contains(errs[1], "another site") {
		t.Errorf("another site's address: %q", errs[1])
	}
	// What is announced no more is gone, and free for others.
	announce(s, "app", "https://other.test", "http")
	if got := r.status(true, get); got != 404 {
		t.Errorf("a service that was removed: %d", got)
	}
	if got := r.status(true, strings.Replace(get, "app", "other", 1)); got != 200 {
		t.Errorf("the new address: %d", got)
	}
	if errs := announce(home, "steal", "https://app.test", "http"); errs[0] != "" {
		t.Errorf("an address that is free: %q", errs[0])
	}
	// A site that is revoked loses its session, and nobody is told to wait for it.
	r.Reload([]Site{{Name: "office", Revoked: []string{"k"}, Publish: patterns("https://*.test")}, {Name: "home", Keys: []string{"k"}}})
	waitFor(t, func() bool { return len(r.Status(context.Background()).Sessions) == 1 })
	if got := r.status(true, strings.Replace(get, "app", "other", 1)); got != 404 {
		t.Errorf("a service of a revoked site: %d", got)
	}
	if _, trouble := r.sessionOf("office"); trouble != troubleService {
		t.Errorf("an operator's connection to a revoked site: %v", trouble)
	}
	// Nor does one begin whose key was still good when it was looked at.
	if _, refusal := r.admit(relay.Hello{Site: "office", Key: "k"}, r.loops[0]); refusal == nil || refusal.Code != relay.RefuseRevoked {
		t.Errorf("a link with a key that was revoked: %v", refusal)
	}
}

// Each request of a connection goes where its own Host says.
func TestHostsOfOneConnection(t *testing.T) {
	r := newTestRelay(t, false, nil)
	r.connect("office", map[string]string{"app": target(t, okTarget)}, "app", "https://app.test")
	v := r.dial(true)
	for range 2 {
		for host, want := range map[string]int{"relay.test": 404, "app.test": 200, "away.test": 503, "other.example": 404} {
			v.send("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
			if res, _ := v.response("GET"); res.StatusCode != want || res.Close {
				t.Errorf("%s: %d, close %v, want %d", host, res.StatusCode, res.Close, want)
			}
		}
	}
}

func TestJoin(t *testing.T) {
	var mu sync.Mutex
	var got []relay.JoinRequest
	r := newTestRelay(t, false, func(r *Relay) {
		r.Join = func(req relay.JoinRequest) relay.JoinResponse {
			mu.Lock()
			defer mu.Unlock()
			got = append(got, req)
			if req.Software == "bad" {
				return relay.JoinResponse{Error: &relay.Refusal{Code: relay.RefuseBadToken, Message: "no"}}
			}
			return relay.JoinResponse{Site: "new"}
		}
	})
	body := func(software string) string {
		return string(relay.Encode(relay.JoinRequest{
			Version: relay.WireVersion, Secret: make([]byte, 32),
			Key: "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", Software: software,
		}))
	}
	post := func(b string) string {
		return fmt.Sprintf("POST /.culvert/join HTTP/1.1\r\nHost: relay.test\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
	}
	for _, test := range []struct {
		request string
		want    int
	}{
		{post(body("good")), 200},
		{post(body("bad")), 403},
		{post("{}"), 403},
		{"GET /.culvert/join HTTP/1.1\r\nHost: relay.test\r\n\r\n", 405},
		{post(strings.Repeat("x", 5000)), 413},
	} {
		if got := r.status(true, test.request); got != test.want {
			t.Errorf("%.60q: %d, want %d", test.request, got, test.want)
		}
	}
	mu.Lock()
	if len(got) != 2 {
		t.Errorf("%d requests came through, want 2", len(got))
	}
	mu.Unlock()
	for range maxJoins {
		r.status(true, post(body("good")))
	}
	if got := r.status(true, post(body("good"))); got != 429 {
		t.Errorf("too many: %d, want 429", got)
	}
}

func TestDrain(t *testing.T) {
	r := newTestRelay(t, false, nil)
	release := make(chan struct{})
	s := r.connect("office", map[string]string{"app": target(t, func(c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err == nil {
			<-release
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})}, "app", "https://app.test")
	v := r.dial(true)
	v.send(get)
	waitFor(t, func() bool { return s.visitors("app") == 1 })
	done := make(chan error, 1)
	go func() { done <- r.Drain(context.Background()) }()
	waitFor(t, func() bool {
		c, err := net.Dial("tcp", r.https)
		if err == nil {
			c.Close()
		}
		return err != nil
	})
	select {
	case <-done:
		t.Fatal("drained with a request under way")
	default:
	}
	close(release)
	if res, _ := v.response("GET"); res.StatusCode != 200 || !res.Close {
		t.Errorf("the last response: %s, close %v", res.Status, res.Close)
	}
	v.Conn.Close()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if err := r.Drain(ctx); err != nil && !errors.Is(err, context.Canceled) {
		t.Fatal(err)
	}
}

// Visitors that do not read stop their own servers and nothing else, and what
// they can make the relay hold is bounded.
func TestStalledVisitors(t *testing.T) {
	const stalled = 1000
	r := newTestRelay(t, false, nil)
	var blocked atomic.Int32
	s := r.connect("office", nil, "app", "http://app.test", "bulk", "http://bulk.test")
	chunk := make([]byte, 16<<10)
	s.handle(func(st *tunnel.Stream, h relay.Header) bool {
		left := 8 << 20
		pump := func() {
			for left > 0 {
				if st.Pending() > st.HighMark() {
					blocked.Add(1)
					return
				}
				st.Write(chunk)
				left -= len(chunk)
			}
			st.CloseWrite()
		}
		st.SetHandler(&funcHandler{data: func(b []byte) int {
			if h.Service == "app" {
				st.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
			} else {
				st.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
				pump()
			}
			return len(b)
		}, drain: func() { pump() }})
		return true
	})
	for range stalled {
		v := r.dial(false)
		v.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
		v.send("GET / HTTP/1.1\r\nHost: bulk.test\r\n\r\n")
	}
	// Until nothing moves any more.
	var last uint64
	waitFor(t, func() bool {
		time.Sleep(100 * time.Millisecond)
		now := r.Status(context.Background()).Sessions[0].Received
		still := now == last && blocked.Load() >= stalled
		last = now
		return still
	})
	v := r.dial(false)
	start := time.Now()
	for range 50 {
		v.send(get)
		v.expect("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
	}
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("50 requests beside stalled visitors took %v", d)
	}
	st := r.Status(context.Background())
	// The windows of the streams hold it, within the session's budget.
	if b := st.Sessions[0].Buffered; b > 256<<20 {
		t.Errorf("%d bytes buffered for %d stalled visitors", b, stalled)
	}
	onLoop(s.session.loop.Loop, func() {
		queued := 0
		for _, svc := range s.session.services {
			queued += svc.visitors
		}
		if queued != stalled {
			t.Errorf("%d requests under way, want %d", queued, stalled)
		}
	})
}
