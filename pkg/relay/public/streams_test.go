package public

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// list returns what is open, once there is as much of it.
func (r *testRelay) list(t *testing.T, n int, f Filter) (list []Stream) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d streams", n), func() bool {
		var err error
		if list, err = r.Streams(t.Context(), f); err != nil {
			t.Fatal(err)
		}
		return len(list) == n
	})
	return list
}

// Whatever is open, in any version of HTTP and without, operators see whose it is, what it has carried and for how long
// it has been silent, and they end it.
func TestStreams(t *testing.T) {
	h := http.NewServeMux()
	never := make(chan struct{})
	t.Cleanup(func() { close(never) })
	h.HandleFunc("/never", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-never:
		case <-r.Context().Done():
		}
	})
	h.HandleFunc("/some", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "some")
		http.NewResponseController(w).Flush()
		select {
		case <-never:
		case <-r.Context().Done():
		}
	})
	echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
	r := newTestRelay3(t, nil)
	s := r.connect("office", map[string]string{"app": httpTarget(t, h), "port": echo, "h2c": http2Target(t, h)},
		"app", "https://app.test", "h2c", "https://h2c.test", "port", "tcp://127.0.0.1:0")
	if list := r.list(t, 0, Filter{}); len(list) != 0 {
		t.Errorf("got %v of a relay without visitors", list)
	}

	type answer struct {
		status int
		err    error
	}
	answers := make(chan answer, 1)
	for _, v := range []struct {
		name, proto string
		client      func() *http.Client
		host        string
	}{{"h1", "HTTP/1.1", r.client, "app"}, {"h2", "HTTP/2", r.client2, "app"}, {"h3", "HTTP/3", r.client3, "app"}, {"h2 to h2c", "HTTP/2", r.client2, "h2c"}} {
		t.Run(v.name, func(t *testing.T) {
			get := func(path string) {
				res, err := v.client().Get("https://" + v.host + ".test" + path)
				a := answer{err: err}
				if err == nil {
					a.status = res.StatusCode
					_, a.err = io.ReadAll(res.Body)
					res.Body.Close()
				}
				answers <- a
			}
			// One that waits for the server is answered.
			go get("/never?secret=1")
			one := r.list(t, 1, Filter{Site: "office"})[0]
			if one.Site != "office" || one.Service != v.host || one.Scheme != "https" || one.Host != v.host+".test" || one.State != "waiting" ||
				!one.Remote.Addr().IsLoopback() || one.Remote.Port() == 0 || time.Since(one.Since) > time.Minute || one.Session != s.session.shortID() {
				t.Errorf("got %+v", one)
			}
			if kicked, err := r.KickStream(t.Context(), one.ID); err != nil || kicked.ID != one.ID || kicked.Service != v.host {
				t.Errorf("got %+v, %v", kicked, err)
			}
			if a := <-answers; a.status != 503 {
				t.Errorf("got %+v, want 503", a)
			}
			r.list(t, 0, Filter{})
			if _, err := r.KickStream(t.Context(), one.ID); !errors.Is(err, ErrNoStream) {
				t.Errorf("a second kick: %v", err)
			}

			// One whose answer has begun is cut.
			go get("/some")
			eventually(t, "the answer", func() bool {
				list, _ := r.Streams(t.Context(), Filter{})
				return len(list) == 1 && list[0].State == "answer" && list[0].Sent > 0
			})
			list, _ := r.Streams(t.Context(), Filter{Service: v.host})
			if _, err := r.KickStream(t.Context(), list[0].ID); err != nil {
				t.Error(err)
			}
			if a := <-answers; a.err == nil || a.status != 200 && v.proto != "HTTP/3" { // where a reset may overtake what was sent before
				t.Errorf("got %+v, want an error in the body", a)
			}
			r.list(t, 0, Filter{})

			// Both were remembered with their IDs.
			requests, err := r.Requests(t.Context(), Filter{Service: v.host, Limit: 2})
			if err != nil || len(requests) != 2 || requests[0].ID != list[0].ID || requests[1].ID != one.ID {
				t.Fatalf("got %+v, %v", requests, err)
			}
			q := requests[1]
			if q.Method != "GET" || q.Host != v.host+".test" || q.Path != "/never" || q.Status != 503 || q.Word != "kicked" || q.Proto != v.proto || q.Wait != 0 || q.Took <= 0 {
				t.Errorf("got %+v", q)
			}
			if q := requests[0]; q.Status != 200 || q.Word != "kicked" || q.Wait <= 0 || q.Took < q.Wait || q.Sent == 0 {
				t.Errorf("got %+v", q)
			}
		})
	}

	t.Run("tcp", func(t *testing.T) {
		addr := s.port()
		var conns []net.Conn
		for range 3 {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			io.WriteString(c, "hello")
			if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
				t.Fatal(err)
			}
			conns = append(conns, c)
		}
		list := r.list(t, 3, Filter{})
		for i, one := range list {
			if c := conns[2-i]; one.Remote.String() != c.LocalAddr().String() || one.Scheme != "tcp" || one.Received != 5 || one.Sent != 5 || one.State != "open" {
				t.Errorf("got %+v, want that of %v", one, c.LocalAddr())
			}
		}
		if two := r.list(t, 2, Filter{Limit: 2}); two[0].ID != list[0].ID || two[1].ID != list[1].ID {
			t.Error("not the newest ones")
		}
		if v, err := r.Visitors(t.Context(), 0); err != nil || len(v) != 1 || v[0].Streams != 3 || v[0].Received != 15 || !slices.Equal(v[0].Services, []string{"office/port"}) || !v[0].Since.Equal(list[2].Since) {
			t.Errorf("got %+v, %v", v, err)
		}
		r.list(t, 0, Filter{Service: "app"})
		r.list(t, 0, Filter{Site: "home"})

		// Of a service that is gone, visitors who are still there are shown.
		replies := make(chan []relay.AnnounceReply, 1)
		onLoop(s.session.loop.Loop, func() { s.announce(announcements("app", "https://app.test"), replies) })
		<-replies
		r.list(t, 3, Filter{Service: "port"})

		if _, err := r.KickStream(t.Context(), list[1].ID); err != nil {
			t.Error(err)
		}
		if _, err := conns[1].Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("got %v, want a reset", err)
		}
		r.list(t, 2, Filter{})
		onLoop(s.session.loop.Loop, func() { s.announce(announcements("app", "https://app.test"), replies) })
		<-replies
		conns[0].Close()
		conns[2].Close()
		r.list(t, 0, Filter{})
		onLoop(s.session.loop.Loop, func() {
			s.session.group.sweep()
			if n := len(s.session.group.gone); n != 0 {
				t.Errorf("%d services are remembered that nobody uses", n)
			}
		})
	})

	for _, id := range []string{"", "c", "c1", "x1", "r!", "r-1", "c+1", "c01", "r" + strings.Repeat("z", 30), "rZZ"} {
		if _, err := r.KickStream(t.Context(), id); !errors.Is(err, ErrNoStream) {
			t.Errorf("kick of %q: %v", id, err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	busy := make(chan struct{})
	for _, l := range r.loops {
		l.Post(func() { <-busy })
	}
	if _, err := r.Streams(ctx, Filter{}); !errors.Is(err, context.Canceled) {
		t.Errorf("loops that do not answer: %v", err)
	}
	close(busy)
}

// WebSockets, flows and what operators forward are streams, too.
func TestStreamsUpgraded(t *testing.T) {
	r := newTestRelay(t, false, nil)
	s := r.connect("office", nil, "app", "https://*.test", "dns", "udp://127.0.0.1:0")
	s.handle(func(st *tunnel.Stream, h relay.Header) bool {
		switch {
		case h.Kind == relay.KindFlow:
			st.SetHandler(&testFlow{Stream: st, site: "office"})
		case h.Kind == relay.KindOperate:
			st.SetHandler(&funcHandler{data: func(b []byte) int { st.Write(b); return len(b) }})
		default:
			st.SetHandler(&funcHandler{data: func(b []byte) int {
				if strings.HasPrefix(string(b), "GET ") {
					st.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"))
				} else {
					st.Write(b)
				}
				return len(b)
			}})
		}
		return true
	})
	v := r.dial(true)
	v.send("GET /chat HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n")
	if res, err := http.ReadResponse(v.Reader, nil); err != nil || res.StatusCode != 101 {
		t.Fatal(res, err)
	}
	v.send("ping")
	v.expect("ping")
	one := r.list(t, 1, Filter{})[0]
	if one.Scheme != "wss" || one.Host != "app.test" || one.Received != 4 || one.Sent != 4 || one.State != "open" {
		t.Errorf("got %+v", one)
	}
	if q, err := r.Requests(t.Context(), Filter{}); err != nil || len(q) != 1 || q[0].Status != 101 || q[0].Path != "/chat" {
		t.Errorf("got %+v, %v", q, err)
	}
	onLoop(s.session.loop.Loop, s.cut)
	if one := r.list(t, 1, Filter{})[0]; one.State != "suspended" {
		t.Errorf("got %+v of a site without a link", one)
	}
	s.resume(0)

	c, err := net.Dial("udp", r.udpPort("office"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	buf := make([]byte, 100)
	eventually(t, "an answer", func() bool {
		io.WriteString(c, "q")
		c.SetReadDeadline(time.Now().Add(time.Second))
		_, err := c.Read(buf)
		return err == nil
	})
	flow := r.list(t, 1, Filter{Service: "dns"})[0]
	if flow.Scheme != "udp" || flow.Received == 0 || flow.Sent == 0 || flow.Remote.String() != c.LocalAddr().String() {
		t.Errorf("got %+v", flow)
	}
	for _, id := range []string{flow.ID, one.ID} {
		if _, err := r.KickStream(t.Context(), id); err != nil {
			t.Error(err)
		}
	}
	if _, err := v.Reader.ReadByte(); err == nil {
		t.Error("the WebSocket goes on")
	}
	r.list(t, 0, Filter{})
	onLoop(s.session.loop.Loop, func() {
		if n := s.session.service("app").errors[wordKicked] + s.session.service("dns").errors[wordKicked]; n != 2 {
			t.Errorf("%d were counted as kicked", n)
		}
	})

	r.operator("operator", "office").mustOpen("app")
	if one := r.list(t, 1, Filter{})[0]; one.Scheme != "operate" || one.Operator != "alice" {
		t.Errorf("got %+v", one)
	}
}

// A session that is kicked is gone with all that it carries, at once, and its private relay may come again.
func TestKickSession(t *testing.T) {
	r := newTestRelay(t, false, nil)
	echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
	s := r.connect("office", map[string]string{"port": echo}, "port", "tcp://127.0.0.1:0")
	addr := s.port()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if _, err := r.KickSession(t.Context(), "nothing"); !errors.Is(err, ErrNoSession) {
		t.Errorf("an unknown one: %v", err)
	}
	if _, err := r.KickSession(t.Context(), ""); !errors.Is(err, ErrNoSession) {
		t.Errorf("none: %v", err)
	}
	if site, err := r.KickSession(t.Context(), s.session.shortID()); site != "office" || err != nil {
		t.Errorf("got %q, %v", site, err)
	}
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
		t.Errorf("got %v, want a reset", err)
	}
	if n := len(r.Status(t.Context()).Sessions); n != 0 {
		t.Errorf("%d sessions are left", n)
	}
	again := r.connect("office", map[string]string{"port": echo}, "port", "tcp://127.0.0.1:0")
	if st := r.Status(t.Context()); len(st.Sessions) != 1 || !st.Sessions[0].Active || st.Sessions[0].ID != again.session.shortID() {
		t.Errorf("got %+v", st.Sessions)
	}
}
