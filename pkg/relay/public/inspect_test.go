package public

import (
	"bytes"
	"context"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
)

// inspectedApp is a service that is to be inspected.
func inspectedApp(name, publish, target string, policy *relay.Policy) relay.Announcement {
	return relay.Announcement{Name: name, Publish: publish, TargetScheme: target, Inspect: true, Policy: policy}
}

// announceAll announces services, all of which are published.
func (ts *testSite) announceAll(t *testing.T, list ...relay.Announcement) {
	t.Helper()
	for _, reply := range ts.announceTo(list) {
		if reply.Error != "" {
			t.Fatalf("service %s: %s", reply.Name, reply.Error)
		}
	}
}

// last returns the newest request of a service, once there are n.
func (r *testRelay) last(t *testing.T, service string, n int) (q Request) {
	t.Helper()
	eventually(t, fmt.Sprintf("%d requests", n), func() bool {
		list, err := r.Requests(t.Context(), Filter{Service: service, Limit: 10000})
		if err != nil {
			t.Fatal(err)
		}
		if len(list) > 0 {
			q = list[0]
		}
		return len(list) == n
	})
	return q
}

func value(fields []HeaderField, name string) string {
	for _, f := range fields {
		if strings.EqualFold(f.Name, name) {
			return f.Value
		}
	}
	return ""
}

// api is a server that says what it was asked.
func api(t *testing.T) http.Handler {
	h := http.NewServeMux()
	h.HandleFunc("/login", func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Set-Cookie", "sid=abcdef")
		w.Header().Set(http.TrailerPrefix+"Grpc-Status", "7")
		w.WriteHeader(201)
		fmt.Fprintf(w, `{"token":"t0k","got":%d,"auth":%q,"from":%q,"method":%q,"query":%q}`, len(b), r.Header.Get("Authorization"), r.Header.Get("X-Forwarded-For"), r.Method, r.URL.RawQuery)
	})
	h.HandleFunc("/large", func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		b := bytes.Repeat([]byte("0123456789abcdef"), 1<<10)
		for range 10 {
			w.Write(b)
		}
	})
	h.HandleFunc("/endless", func(w http.ResponseWriter, r *http.Request) {
		b := make([]byte, 10000)
		for {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	h.HandleFunc("/never", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	return h
}

// Of services that say so, what visitors and server say is kept, whatever version of HTTP they speak, and shown without secrets; and
// it can be sent again, secrets included.
func TestInspect(t *testing.T) {
	var mu sync.Mutex
	var lines []string
	r := newTestRelay3(t, func(r *Relay) {
		r.AccessLog = func(b []byte) {
			mu.Lock()
			defer mu.Unlock()
			lines = append(lines, strings.Split(strings.TrimSpace(string(b)), "\n")...)
		}
	})
	ts := r.connect("office", map[string]string{"app": httpTarget(t, api(t)), "h2c": http2Target(t, api(t)), "other": httpTarget(t, api(t))})
	ts.announceAll(t, inspectedApp("app", "https://app.test", "http", nil), inspectedApp("h2c", "https://h2c.test", "h2c", nil),
		relay.Announcement{Name: "other", Publish: "https://other.test", TargetScheme: "http"})
	n := map[string]int{}
	for _, v := range []struct {
		name, proto, host string
		client            *http.Client
	}{{"h1", "HTTP/1.1", "app", r.client()}, {"h2", "HTTP/2", "app", r.client2()}, {"h3", "HTTP/3", "app", r.client3()},
		{"h1 to h2c", "HTTP/1.1", "h2c", r.client()}, {"h2 to h2c", "HTTP/2", "h2c", r.client2()}, {"h3 to h2c", "HTTP/3", "h2c", r.client3()}} {
		t.Run(v.name, func(t *testing.T) {
			ask := func(method, path string, body io.Reader, fields ...string) {
				t.Helper()
				req, err := http.NewRequest(method, "https://"+v.host+".test"+path, body)
				if err != nil {
					t.Fatal(err)
				}
				for i := 0; i < len(fields); i += 2 {
					req.Header.Set(fields[i], fields[i+1])
				}
				res, err := v.client.Do(req)
				if err != nil {
					t.Fatal(err)
				}
				if _, err := io.Copy(io.Discard, res.Body); err != nil {
					t.Fatal(err)
				}
				res.Body.Close()
				n[v.host]++
			}
			const form = `{"user":"bob","password":"hunter2"}`
			ask("POST", "/login?code=xyz&a=1", strings.NewReader(form), "Authorization", "Bearer s3cret", "Content-Type", "application/json")
			q := r.last(t, v.host, n[v.host])
			if !q.Inspectable || q.Status != 201 || q.Path != "/login" {
				t.Fatalf("got %+v", q)
			}
			e, err := r.Exchange(q.ID)
			if err != nil {
				t.Fatal(err)
			}
			if e.Request.Method != "POST" || e.Path != "/login?code=[redacted]&a=1" || e.Proto != v.proto || e.Status != 201 || e.Service != v.host || e.Host != v.host+".test" || e.Replayed != "" {
				t.Errorf("got %+v", e.Request)
			}
			if value(e.RequestHeader, "authorization") != "Bearer [redacted]" || value(e.ResponseHeader, "set-cookie") != "[redacted]" || value(e.ResponseHeader, "content-type") != "application/json" || value(e.ResponseHeader, "grpc-status") != "7" {
				t.Errorf("got %+v and %+v", e.RequestHeader, e.ResponseHeader)
			}
			if e.RequestBody.Text != `{"user":"bob","password":"[redacted]"}` || e.RequestBody.Size != int64(len(form)) || !e.RequestBody.Redacted {
				t.Errorf("got %+v", e.RequestBody)
			}
			if want := `{"token":"[redacted]","got":35,"auth":"[redacted]"`; !strings.HasPrefix(e.ResponseBody.Text, want) || !strings.Contains(e.ResponseBody.Text, "code=") {
				t.Errorf("got %+v", e.ResponseBody)
			}

			// Sent again, the server hears the same.
			again, err := r.Replay(t.Context(), q.ID, "alice")
			n[v.host]++
			if err != nil {
				t.Fatal(err)
			}
			if again.ID == q.ID || again.Replayed != q.ID || again.Operator != "alice" || again.Status != 201 || again.RequestBody.Text != e.RequestBody.Text || again.ResponseBody.Text != e.ResponseBody.Text {
				t.Errorf("got %+v", again)
			}
			c := r.captured(again.ID)
			if !bytes.Contains(c.answer.bytes, []byte(`"auth":"Bearer s3cret"`)) || !bytes.Contains(c.answer.bytes, []byte(`"from":"127.0.0.1"`)) || !bytes.Contains(c.answer.bytes, []byte(`"query":"code=xyz&a=1"`)) {
				t.Errorf("the server has seen %s", c.answer.bytes)
			}
			if q := r.last(t, v.host, n[v.host]); q.ID != again.ID || q.Operator != "alice" {
				t.Errorf("got %+v", q)
			}
			eventually(t, "the line", func() bool {
				mu.Lock()
				defer mu.Unlock()
				return slices.ContainsFunc(lines, func(s string) bool {
					var l struct {
						Operator string `json:"operator"`
						Replay   string `json:"replay_of"`
					}
					return json.Unmarshal([]byte(s), &l) == nil && l.Operator == "alice" && l.Replay == q.ID
				})
			})
			if twice, err := r.Replay(t.Context(), again.ID, "bob"); err != nil || twice.Operator != "bob" || twice.Replayed != again.ID {
				t.Errorf("a replay of a replay: %+v, %v", twice, err)
			}
			n[v.host]++

			// Of what is large the beginning is kept; the request cannot be sent again, the answer of one is not waited for.
			ask("POST", "/large", io.MultiReader(strings.NewReader(strings.Repeat("y", maxBodyKept+1))))
			q = r.last(t, v.host, n[v.host])
			e, err = r.Exchange(q.ID)
			if err != nil || len(e.RequestBody.Text) != maxBodyKept || !e.RequestBody.Truncated || e.RequestBody.Size != maxBodyKept+1 || len(e.ResponseBody.Text) != maxBodyKept || e.ResponseBody.Size != 160<<10 || !e.ResponseBody.Truncated {
				t.Errorf("got %d of %d and %d of %d bytes, %v", len(e.RequestBody.Text), e.RequestBody.Size, len(e.ResponseBody.Text), e.ResponseBody.Size, err)
			}
			if _, err := r.Replay(t.Context(), q.ID, "alice"); !errors.Is(err, ErrNoReplay) || !strings.Contains(err.Error(), "65537 bytes, of which 65536") {
				t.Errorf("got %v", err)
			}
			ask("GET", "/large", nil)
			q = r.last(t, v.host, n[v.host])
			if e, err = r.Replay(t.Context(), q.ID, "alice"); err != nil || e.Status != 200 || !e.ResponseBody.Truncated || len(e.ResponseBody.Text) != maxBodyKept {
				t.Errorf("got %v", err)
			}
			n[v.host]++
			if q := r.last(t, v.host, n[v.host]); q.Word != "" {
				t.Errorf("the replay has gone wrong: %+v", q)
			}

			// Of a visitor who goes away there is what has come.
			ctx, cancel := context.WithCancel(t.Context())
			req, _ := http.NewRequestWithContext(ctx, "GET", "https://"+v.host+".test/endless", nil)
			res, err := v.client.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			io.ReadFull(res.Body, make([]byte, 100))
			cancel()
			res.Body.Close()
			n[v.host]++
			q = r.last(t, v.host, n[v.host])
			if e, err := r.Exchange(q.ID); err != nil || e.Word != "cancelled" || len(e.ResponseBody.Binary) == 0 {
				t.Errorf("got %v", err)
			}
			if e, err := r.Replay(t.Context(), q.ID, "alice"); err != nil || len(e.ResponseBody.Binary) != maxBodyKept {
				t.Errorf("got %v", err)
			}
			n[v.host]++

			// A replay that takes too long for the operator ends.
			req, _ = http.NewRequestWithContext(ctx, "GET", "https://"+v.host+".test/never", nil)
			ctx, cancel = context.WithCancel(t.Context())
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				if res, err := v.client.Do(req.WithContext(ctx)); err == nil {
					io.Copy(io.Discard, res.Body)
					res.Body.Close()
				}
			}()
			one := r.list(t, 1, Filter{Service: v.host})[0]
			if _, err := r.KickStream(t.Context(), one.ID); err != nil {
				t.Error(err)
			}
			<-ended
			cancel()
			n[v.host]++
			q = r.last(t, v.host, n[v.host])
			ctx, cancel = context.WithTimeout(t.Context(), 50*time.Millisecond)
			defer cancel()
			if _, err := r.Replay(ctx, q.ID, "alice"); !errors.Is(err, context.DeadlineExceeded) {
				t.Errorf("got %v", err)
			}
			n[v.host]++
			r.list(t, 0, Filter{})
		})
	}
	// Nothing is kept of a service that does not say so.
	res, err := r.client().Get("https://other.test/login")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	q := r.last(t, "other", 1)
	if _, err := r.Exchange(q.ID); q.Inspectable || !errors.Is(err, ErrNoExchange) {
		t.Errorf("got %+v, %v", q, err)
	}
	for _, id := range []string{"", "r", "rr", "c1", "r0", strings.Repeat("r", 100)} {
		if _, err := r.Exchange(id); !errors.Is(err, ErrNoExchange) {
			t.Errorf("%q: %v", id, err)
		}
		if _, err := r.Replay(t.Context(), id, "alice"); !errors.Is(err, ErrNoExchange) {
			t.Errorf("%q: %v", id, err)
		}
	}

	// A site that allows it no more has what was captured forgotten.
	list, err := r.Requests(t.Context(), Filter{Service: "app", Limit: 1})
	if err != nil || len(list) != 1 || !list[0].Inspectable {
		t.Fatalf("got %+v, %v", list, err)
	}
	ts.announceAll(t, relay.Announcement{Name: "app", Publish: "https://app.test", TargetScheme: "http"})
	if _, err := r.Exchange(list[0].ID); !errors.Is(err, ErrNoExchange) {
		t.Errorf("got %v", err)
	}
	if in := &r.inspector; in.used != 0 || len(in.services) != 0 || len(in.byNumber) != 0 || in.oldest != nil {
		t.Errorf("%d bytes of %d services are left", in.used, len(in.services))
	}
}

// A replay obeys what the service demands now of methods and bodies, and not of passwords: the visitor's was right.
func TestReplayPolicy(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"app": httpTarget(t, api(t))})
	users := map[string]string{"bob": "$2a$04$NF3mDCW9W3rsMLQSZQa8SelsMpFq/EKtfFIDGfd9r4sqWk6sZn8qO"}
	policy := func(p relay.Policy) *relay.Policy { return &p }
	ts.announceAll(t, inspectedApp("app", "https://app.test", "http", nil))
	res, err := r.client().Post("https://app.test/login", "text/plain", strings.NewReader("hello"))
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	q := r.last(t, "app", 1)
	for _, c := range []struct {
		policy *relay.Policy
		error  string
	}{
		{policy(relay.Policy{Methods: []string{"GET"}}), `takes no POST`},
		{policy(relay.Policy{MaxBody: 4}), "no bodies of more than 4 bytes"},
		{policy(relay.Policy{MaxBody: 5, Methods: []string{"POST"}, Users: users, Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}}), ""},
	} {
		ts.announceAll(t, inspectedApp("app", "https://app.test", "http", c.policy))
		e, err := r.Replay(t.Context(), q.ID, "alice")
		if c.error == "" && (err != nil || e.Status != 201) || c.error != "" && (!errors.Is(err, ErrNoReplay) || !strings.Contains(err.Error(), c.error)) {
			t.Errorf("got %+v, %v, want %q", e, err, c.error)
		}
	}
	ts.announceAll(t, inspectedApp("app", "https://app.test", "http", nil), inspectedApp("more", "https://more.test", "http", nil))
	onLoop(ts.session.loop.Loop, ts.cut)
	onLoop(ts.session.loop.Loop, func() { ts.session.close(nil) })
	if _, err := r.Replay(t.Context(), q.ID, "alice"); !errors.Is(err, ErrNoReplay) || !strings.Contains(err.Error(), "not connected") {
		t.Errorf("got %v", err)
	}
}

// Services of the same name in another session go on where those before were: a site that is away has what was captured kept.
func TestInspectTakeover(t *testing.T) {
	r := newTestRelay(t, false, nil)
	targets := map[string]string{"inspected": httpTarget(t, api(t))}
	ts := r.connect("office", targets, "inspected", "https://app.test")
	res, err := r.client().Get("https://app.test/login")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	q := r.last(t, "inspected", 1)
	if _, err := r.KickSession(t.Context(), ts.session.shortID()); err != nil {
		t.Fatal(err)
	}
	if _, err := r.Exchange(q.ID); err != nil {
		t.Error(err)
	}
	r.connect("office", targets, "inspected", "https://app.test")
	if e, err := r.Replay(t.Context(), q.ID, "alice"); err != nil || e.Status != 201 {
		t.Errorf("got %+v, %v", e, err)
	}
}

// The public relay's word is the last one, and what is no HTTP cannot be inspected.
func TestInspectForbidden(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.InspectMemory = -1 })
	ts := r.connect("office", map[string]string{"app": httpTarget(t, api(t))})
	ts.announceAll(t, inspectedApp("app", "https://app.test", "http", nil))
	res, err := r.client().Get("https://app.test/login")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if q := r.last(t, "app", 1); q.Inspectable {
		t.Errorf("got %+v", q)
	}
	for _, a := range []relay.Announcement{inspectedApp("a", "tcp://127.0.0.1:0", "tcp", nil), inspectedApp("b", "rtsp://cam.test", "rtsp", nil), inspectedApp("c", "tls://x.test", "https", nil)} {
		if reply := ts.announceTo([]relay.Announcement{a}); !strings.Contains(reply[0].Error, "inspect is for http://") {
			t.Errorf("%s: %q", a.Publish, reply[0].Error)
		}
	}
}

// Captures stay within their bounds, whatever comes: of each service, and of all, those under way included.
func TestInspectorBounds(t *testing.T) {
	r := &Relay{InspectMemory: 20 << 20}
	in := &r.inspector
	in.limit = r.InspectMemory
	var number uint64
	begin := func(name string) *capture {
		number++
		c := &capture{number: number, of: serviceName{"office", name}}
		if !in.charge(c, captureCost) {
			return nil
		}
		return c
	}
	check := func() {
		t.Helper()
		sum := 0
		for of, s := range in.services {
			if sum += s.used; s.used > maxServiceKept || len(s.list) > maxExchanges {
				t.Fatalf("%v has %d bytes in %d", of, s.used, len(s.list))
			}
		}
		if sum != in.used || in.used > in.limit {
			t.Fatalf("%d bytes are counted, %d in services", in.used, sum)
		}
	}
	piece := bytes.Repeat([]byte("x"), 10000)
	fill := func(c *capture) {
		for range 10 {
			in.body(c, &c.sent, piece)
			in.body(c, &c.answer, piece)
		}
	}
	for i := range 2000 {
		c := begin(fmt.Sprint(i % 7))
		fill(c)
		if cap(c.sent.bytes) > maxBodyKept || c.sent.size != 100000 || !c.sent.truncated() {
			t.Fatalf("%d bytes of %d are kept", len(c.sent.bytes), c.sent.size)
		}
		in.complete(c, Request{}, i%5 > 0)
		check()
	}
	if in.get(number) == nil || in.used < 18<<20 {
		t.Errorf("%d bytes are kept", in.used)
	}
	for range 2000 { // small ones
		in.complete(begin("small"), Request{}, true)
		check()
	}
	if n := len(in.services[serviceName{"office", "small"}].list); n != maxExchanges {
		t.Errorf("%d of the small ones are kept", n)
	}
	// Those under way take the room of those that are over, and then there is no more.
	var all []*capture
	for i := range 1000 {
		if c := begin(fmt.Sprint("way", i%50)); c != nil {
			fill(c)
			all = append(all, c)
		}
		check()
	}
	if in.oldest != nil || len(all) == 0 || len(all) > 300 {
		t.Errorf("%d are under way", len(all))
	}
	for _, c := range all {
		in.complete(c, Request{}, true)
		check()
	}
	for of := range in.services {
		in.forget(of)
	}
	if in.used != 0 || len(in.services) != 0 || in.oldest != nil || in.newest != nil || len(in.byNumber) != 0 {
		t.Errorf("%d bytes are left", in.used)
	}
}

// A capture is counted as what it takes: with a long target, which is kept as a whole and in parts, and with the visitor's certificates.
func TestInspectorCost(t *testing.T) {
	r := &Relay{InspectMemory: 1 << 20}
	r.inspector.limit = r.InspectMemory
	leaf, err := x509.ParseCertificate(testTLS().Certificates[0].Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	var req http1.Request
	head := "GET http://a.test/" + strings.Repeat("path/", 600) + "?" + strings.Repeat("q", 3000) + " HTTP/1.1\r\nHost: a.test\r\nX-Long: " + strings.Repeat("x", 4000) + "\r\n\r\n"
	if n, err := http1.ParseRequest([]byte(head), &req); n != len(head) || err != nil {
		t.Fatal(n, err)
	}
	for _, certs := range [][]*x509.Certificate{nil, {leaf, leaf, leaf}} {
		c := r.inspects(&exchange{client: &client{certs: certs}, service: &service{name: "web", session: &session{site: "office"}}}, &req)
		q := c.request
		kept := len(q.Method) + len(q.Target) + len(q.Scheme) + len(q.Host) + len(q.Path) + len(q.Query)
		for _, f := range q.Fields {
			kept += len(f.Name) + len(f.Value)
		}
		for _, cert := range c.client.certs {
			kept += len(cert.Raw)
		}
		if kept < 4000+2*6000 || c.cost < kept {
			t.Errorf("%d bytes are kept, %d counted", kept, c.cost)
		}
	}
}

// What was captured is forgotten after an hour, whether anything comes meanwhile or not.
func TestInspectorTime(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		in := &inspector{limit: 1 << 20}
		add := func(n uint64) {
			c := &capture{number: n, of: serviceName{"office", "app"}}
			in.charge(c, captureCost)
			in.complete(c, Request{}, true)
		}
		add(1)
		time.Sleep(30 * time.Minute)
		add(2)
		time.Sleep(30*time.Minute + 2*time.Second)
		synctest.Wait()
		in.mu.Lock()
		if len(in.byNumber) != 1 || in.used != captureCost {
			t.Errorf("%d are kept", len(in.byNumber))
		}
		in.mu.Unlock()
		time.Sleep(31 * time.Minute)
		synctest.Wait()
		in.mu.Lock()
		defer in.mu.Unlock()
		if len(in.byNumber) != 0 || in.used != 0 || in.sweeping {
			t.Errorf("%d are kept", len(in.byNumber))
		}
	})
}

// Whose last capture makes room for another one of the same service is still counted: what is complete afterwards has a place.
func TestInspectorMakesRoomOfItsOwn(t *testing.T) {
	in := &inspector{limit: 5000}
	take := func(number uint64, name string, n int) *capture {
		c := &capture{number: number, of: serviceName{"office", name}}
		if !in.charge(c, n) {
			t.Fatalf("no room for capture %d", number)
		}
		return c
	}
	in.complete(take(1, "a", 2000), Request{}, true)
	in.complete(take(2, "b", 2500), Request{}, true)
	in.complete(take(3, "a", 2000), Request{}, true) // in the place of 1
	in.complete(take(4, "b", 4500), Request{}, false)
	for n, want := range map[uint64]bool{1: false, 2: false, 3: false, 4: false} {
		if (in.get(n) != nil) != want {
			t.Errorf("capture %d is there: %v", n, !want)
		}
	}
	if in.used != 0 || len(in.services) != 0 {
		t.Errorf("%d bytes are used, of %d services", in.used, len(in.services))
	}
}
