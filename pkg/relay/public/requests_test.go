package public

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tunnel"
)

// The last requests are kept in order, also those that the relay answers by itself, with secrets in queries redacted.
func TestRequests(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.AccessQuery = true })
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == "POST" {
			io.Copy(io.Discard, r.Body)
		}
		io.WriteString(w, "ok")
	})
	s := r.connect("office", map[string]string{"app": httpTarget(t, h)}, "app", "https://*.test")
	policy := relay.Policy{Methods: []string{"GET", "POST"}}
	s.announceAll(t, relay.Announcement{Name: "app", Publish: "https://*.test", TargetScheme: "http", Policy: &policy})
	long := "/" + strings.Repeat("p", 2000)
	for _, q := range []struct{ method, host, path string }{
		{"GET", "a.test", "/one?token=abc&n=1"}, {"POST", "b.test:443", "/two"}, {"DELETE", "a.test", "/three"}, {"GET", "a.nowhere", "/four"}, {"GET", "a.test", long},
	} {
		req, err := http.NewRequest(q.method, "https://"+q.host+q.path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if q.method == "POST" {
			req.Body, req.ContentLength = io.NopCloser(strings.NewReader("hello")), 5
		}
		res, err := r.client().Do(req)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	v := r.dial(true)
	v.send("NONSENSE\r\n\r\n")
	v.response("GET")
	var list []Request
	eventually(t, "all of them", func() bool {
		var err error
		if list, err = r.Requests(t.Context(), Filter{}); err != nil {
			t.Fatal(err)
		}
		return len(list) == 6
	})
	want := []string{
		"  400 malformed  ", "GET a.test 200  office app " + long[:512] + "…", "GET a.nowhere 404 not-found  /four",
		"DELETE a.test 405 policy office app /three", "POST b.test:443 200  office app /two", "GET a.test 200  office app /one?token=[redacted]&n=1",
	}
	for i, q := range list {
		got := strings.Join([]string{q.Method, q.Host, fmt.Sprint(q.Status), q.Word, q.Site, q.Service, q.Path}, " ")
		if strings.Join(strings.Fields(got), " ") != strings.Join(strings.Fields(want[i]), " ") {
			t.Errorf("request %d: %q, want %q", i, got, want[i])
		}
		if !q.Remote.Addr().IsLoopback() || q.Proto != "HTTP/1.1" || time.Since(q.Time) > time.Minute {
			t.Errorf("got %+v", q)
		}
	}
	if q := list[4]; q.Received != 5 || q.Sent == 0 || q.Wait <= 0 {
		t.Errorf("got %+v", q)
	}
	for _, c := range []struct {
		f Filter
		n int
	}{{Filter{Site: "office"}, 4}, {Filter{Service: "app"}, 4}, {Filter{Site: "home"}, 0}, {Filter{Limit: 3}, 3}, {Filter{Limit: -1}, 6}} {
		if list, err := r.Requests(t.Context(), c.f); err != nil || len(list) != c.n {
			t.Errorf("%+v: got %d, %v", c.f, len(list), err)
		}
	}
}

// However many requests of however many services there are, what is kept of them is bounded, and each service keeps some.
func TestRequestsBounds(t *testing.T) {
	r := &Relay{}
	l := &loop{relay: r}
	r.loops = []*loop{l, l, l, l} // a quarter of what may be kept is this one's
	path := []byte("/" + strings.Repeat("x", 4000))
	add := func(to *recent, n int) {
		for range n {
			p := to.slot(l)
			h := p.heading
			h.set(r, &http1.Request{Method: []byte("GET"), Host: []byte("a.test"), Path: path})
			*p = past{id: l.numbers, heading: h}
			l.numbers++
		}
	}
	services := make([]recent, 5000)
	add(&services[0], 5000)
	if n := len(services[0].slots); n != maxRecent {
		t.Errorf("a busy service keeps %d", n)
	}
	for round := range 3 {
		for i := range services {
			add(&services[i], 30)
		}
		if most := maxKeptRequests/4 + minRecent*len(services); l.slots > most {
			t.Fatalf("%d are kept after round %d, want %d at most", l.slots, round, most)
		}
	}
	for i := range services {
		n, last := 0, l.numbers
		services[i].each(func(p *past) bool {
			if p.id >= last {
				t.Fatalf("service %d: %d comes behind %d", i, p.id, last)
			}
			if len(p.heading.text) > 600 || cap(p.heading.text) > 1024 {
				t.Fatalf("%d bytes of a head, %d taken", len(p.heading.text), cap(p.heading.text))
			}
			last = p.id
			n++
			return true
		})
		if n < minRecent {
			t.Fatalf("service %d keeps %d", i, n)
		}
		services[i].free(l)
	}
	if l.slots != 0 {
		t.Errorf("%d are counted of nobody", l.slots)
	}
}

// Who follows gets all that it can take; who takes nothing costs nothing, and is told what was left out.
func TestFollowRequests(t *testing.T) {
	r := newTestRelay(t, false, nil)
	s := r.connect("office", nil, "app", "http://app.test", "other", "http://other.test")
	s.handle(func(st *tunnel.Stream, _ relay.Header) bool {
		st.SetHandler(&funcHandler{data: func(b []byte) int {
			for range strings.Count(string(b), "\r\n\r\n") {
				st.Write([]byte("HTTP/1.1 204 No Content\r\n\r\n"))
			}
			return len(b)
		}})
		return true
	})
	ctx, cancel := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	var mu sync.Mutex
	got, skipped := 0, uint64(0)
	stuck := make(chan struct{})
	follow := func(f Filter, send func(Request, uint64) error) {
		wg.Go(func() {
			if err := r.FollowRequests(ctx, f, send); !errors.Is(err, context.Canceled) && err != errEnough {
				t.Errorf("it ended by %v", err)
			}
		})
	}
	follow(Filter{Service: "app"}, func(q Request, n uint64) error {
		mu.Lock()
		defer mu.Unlock()
		if q.Service != "app" || q.Status != 204 {
			t.Errorf("got %+v", q)
		}
		got++
		skipped += n
		return nil
	})
	follow(Filter{Service: "app"}, func(Request, uint64) error { <-stuck; return nil })
	follow(Filter{}, func(Request, uint64) error { return errEnough })
	eventually(t, "followers", func() bool {
		r.follow.Lock()
		defer r.follow.Unlock()
		return len(r.followers) == 3
	})
	const n = 4 * maxUnread
	v := r.dial(false)
	for _, host := range []string{"app", "other"} {
		for i := 0; i < n; i += 64 {
			v.send(strings.Repeat("GET / HTTP/1.1\r\nHost: "+host+".test\r\n\r\n", 64))
			for range 64 {
				if res, _ := v.response("GET"); res.StatusCode != 204 {
					t.Fatal(res.Status)
				}
			}
		}
	}
	eventually(t, "all requests", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return got+int(skipped) == n
	})
	r.follow.Lock()
	slow := false
	for f := range r.followers {
		f.mu.Lock()
		if len(f.unread) > maxUnread {
			t.Errorf("%d wait for a follower", len(f.unread))
		}
		slow = slow || f.skipped > 0
		f.mu.Unlock()
	}
	if len(r.followers) != 2 || !slow {
		t.Errorf("%d follow, one of them too slowly: %v", len(r.followers), slow)
	}
	r.follow.Unlock()
	close(stuck)
	cancel()
	wg.Wait()
	if r.followed.Load() || len(r.followers) != 0 {
		t.Error("those who have gone are remembered")
	}
}

var errEnough = errors.New("enough")

// A relay that keeps no requests has none, and works.
func TestRequestsHidden(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.HideRequests = true })
	s := r.connect("office", map[string]string{"inspected": httpTarget(t, api(t))}, "inspected", "https://app.test")
	res, err := r.client().Get("https://app.test/login")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if list, err := r.Requests(t.Context(), Filter{}); err != nil || len(list) != 0 {
		t.Errorf("got %+v, %v", list, err)
	}
	onLoop(s.session.loop.Loop, func() {
		if r.inspector.used != 0 || s.session.loop.slots != 0 {
			t.Errorf("%d bytes are captured, %d requests kept", r.inspector.used, s.session.loop.slots)
		}
	})
}

// Players and files by TFTP are streams: they are shown and ended.
func TestStreamsOfOthers(t *testing.T) {
	t.Run("player", func(t *testing.T) {
		r := newCameraRelay(t, false, nil)
		s := r.connect("office", nil, "gate", "rtsp://cams.test/gate")
		s.camera(new(testCamera))
		p := r.player(false)
		p.watch("rtsp://cams.test/gate")
		one := r.list(t, 1, Filter{})[0]
		if one.Scheme != "rtsp" || one.Service != "gate" || one.Host != "cams.test" || one.Received == 0 || one.Remote.Port() == 0 {
			t.Errorf("got %+v", one)
		}
		if _, err := r.KickStream(t.Context(), one.ID); err != nil {
			t.Error(err)
		}
		r.list(t, 0, Filter{})
		onLoop(s.session.loop.Loop, func() {
			if n := s.session.service("gate").errors[wordKicked]; n != 1 {
				t.Errorf("%d were counted as kicked", n)
			}
		})
	})
	t.Run("tftp", func(t *testing.T) {
		r := newFileRelay(t, false, nil)
		s := r.connect("office", nil, "boot", "tftp:///boot")
		filesOf(s, map[string]string{"image": textOf(1 << 20)})
		c := r.fileClient()
		c.request(tftp.OpRead, "boot/image")
		if _, err := c.next(tftp.OpData, 1); err != nil {
			t.Fatal(err)
		}
		one := r.list(t, 1, Filter{})[0]
		if one.Scheme != "tftp" || one.Service != "boot" || !one.Remote.Addr().IsLoopback() {
			t.Errorf("got %+v", one)
		}
		if _, err := r.KickStream(t.Context(), one.ID); err != nil {
			t.Error(err)
		}
		if _, err := c.next(tftp.OpData, 2); err == nil || !strings.Contains(err.Error(), fileKicked.Text[:10]) {
			t.Errorf("the client hears %v", err)
		}
		r.list(t, 0, Filter{})
	})
}

// Lists of very many streams are the newest ones, in order, whatever services they are of.
func TestNewest(t *testing.T) {
	n := newest{limit: 10, floor: -1 << 63}
	streams := make([]*splice, 5000)
	for i := range streams {
		streams[i] = &splice{id: uint64(i), began: int64(i * 7919 % len(streams)), addr: netip.AddrPort{}}
	}
	taken := 0
	for _, s := range streams {
		if n.add(s) {
			taken++
		}
	}
	n.cut()
	for i, o := range n.list {
		if o.since() != int64(len(streams)-1-i) {
			t.Errorf("place %d: %d", i, o.since())
		}
	}
	if len(n.list) != 10 || taken > 1000 {
		t.Errorf("%d are listed, %d were taken", len(n.list), taken)
	}
}
