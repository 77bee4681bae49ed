package public

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
)

// demand announces services again, each name, publish with the policy.
func (ts *testSite) demand(p *relay.Policy, publish ...string) (errs []string) {
	ts.t.Helper()
	list := announcements(publish...)
	for i := range list {
		list[i].Policy = p
	}
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(ts.session.loop.Loop, func() { ts.announce(list, replies) })
	for _, reply := range <-replies {
		errs = append(errs, reply.Error)
	}
	return errs
}

func prefixList(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

// echoHead answers with what it got.
func echoHead(w http.ResponseWriter, req *http.Request) {
	body, err := io.ReadAll(req.Body)
	if err != nil {
		return
	}
	w.Header().Set("Server", "inside")
	fmt.Fprintf(w, "%s %s\n", req.Method, req.URL)
	req.Header.Write(w)
	fmt.Fprintf(w, "%d bytes\n", len(body))
}

// ask sends a request over a connection of its own, and returns status, head and body of the answer.
func (r *testRelay) ask(secure bool, head string, body ...string) (*http.Response, string) {
	r.t.Helper()
	v := r.dial(secure)
	defer v.Close()
	v.send(strings.ReplaceAll(head, "|", "\r\n") + "\r\n\r\n" + strings.Join(body, ""))
	method, _, _ := strings.Cut(head, " ")
	return v.response(method)
}

func TestPolicyHTTP(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test")
		const get = "GET / HTTP/1.1|Host: app.test"
		for _, tt := range []struct {
			name   string
			policy relay.Policy
			ask    string
			body   string
			status int
			has    string // in the answer
		}{
			{"nothing", relay.Policy{}, get, "", 200, "GET /"},
			{"not allowed", relay.Policy{Allow: prefixList("192.0.2.0/24", "2001:db8::/32")}, get, "", 403, "Your address is not allowed here."},
			{"allowed", relay.Policy{Allow: prefixList("192.0.2.0/24", "127.0.0.0/8", "127.0.0.0/16")}, get, "", 200, "GET /"},
			{"denied", relay.Policy{Allow: prefixList("127.0.0.0/8"), Deny: prefixList("127.0.0.1/32")}, get, "", 403, "not allowed"},
			{"another is denied", relay.Policy{Deny: prefixList("127.0.0.2/32", "::/0")}, get, "", 200, "GET /"},
			{"method", relay.Policy{Methods: []string{"GET", "PUT"}}, "DELETE / HTTP/1.1|Host: app.test", "", 405, "not allowed"},
			{"HEAD with GET", relay.Policy{Methods: []string{"GET"}}, "HEAD / HTTP/1.1|Host: app.test", "", 200, ""},
			{"body", relay.Policy{MaxBody: 4}, "POST / HTTP/1.1|Host: app.test|Content-Length: 4", "1234", 200, "4 bytes"},
			{"large body", relay.Policy{MaxBody: 4}, "POST / HTTP/1.1|Host: app.test|Content-Length: 5", "12345", 413, "too large"},
			{"large body that waits", relay.Policy{MaxBody: 4}, "POST / HTTP/1.1|Host: app.test|Content-Length: 5|Expect: 100-continue", "", 413, "too large"},
			{"chunks", relay.Policy{MaxBody: 4}, "POST / HTTP/1.1|Host: app.test|Transfer-Encoding: chunked", "2\r\n12\r\n2\r\n34\r\n0\r\n\r\n", 200, "4 bytes"},
			{"large chunks", relay.Policy{MaxBody: 4}, "POST / HTTP/1.1|Host: app.test|Transfer-Encoding: chunked", "2\r\n12\r\n3\r\n345\r\n0\r\n\r\n", 413, "too large"},
			{"a large chunk", relay.Policy{MaxBody: 4}, "POST / HTTP/1.1|Host: app.test|Transfer-Encoding: chunked", "fffff\r\n12345", 413, "too large"},
			{"request fields", relay.Policy{RequestHeaders: relay.HeaderRules{
				Set: map[string]string{"X-Env": "prod"}, Add: map[string]string{"X-More": "2"}, Remove: []string{"Cookie"}}},
				get + "|Cookie: c|X-More: 1|x_env: test|X-Env: test|Connection: X-Env, X-Secret|X-Secret: s", "", 200, "X-Env: prod\r\n"},
			{"no password", relay.Policy{Users: map[string]string{"alice": "$2y$04$x"}}, get, "", 0, "policy: user \"alice\": no hash of a password that is known"},
		} {
			errs := ts.demand(&tt.policy, "app", "https://app.test")
			if tt.status == 0 {
				if len(errs) != 1 || !strings.Contains(errs[0], tt.has) {
					t.Errorf("%s: published, %q", tt.name, errs)
				}
				continue
			}
			if errs[0] != "" {
				t.Errorf("%s: %s", tt.name, errs[0])
				continue
			}
			res, body := r.ask(true, tt.ask, tt.body)
			if res.StatusCode != tt.status || !strings.Contains(body, tt.has) {
				t.Errorf("%s: %d\n%s\nwant %d, %q", tt.name, res.StatusCode, body, tt.status, tt.has)
			}
			if allow := res.Header.Get("Allow"); tt.status == 405 && allow != "GET, PUT, HEAD" {
				t.Errorf("%s: Allow: %s", tt.name, allow)
			}
			for _, no := range []string{"Cookie", "X-Secret", "test"} {
				if tt.name == "request fields" && strings.Contains(strings.ReplaceAll(body, "app.test", ""), no) {
					t.Errorf("%s: the server has got %s:\n%s", tt.name, no, body)
				}
			}
		}
		// It is a service that is not published, not one without a policy.
		if res, _ := r.ask(true, get); res.StatusCode != 503 {
			t.Errorf("a service whose policy is refused answers %d", res.StatusCode)
		}
	})
}

// What goes to the visitor is changed too; HSTS is not the server's business.
func TestPolicyResponse(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"app": script(t,
		"> GET / HTTP/1.1|", "< HTTP/1.1 200 OK|Server: inside|X-Powered-By: magic|Strict-Transport-Security: max-age=1|Set-Cookie: a=b|Content-Length: 2||ok")})
	if errs := ts.demand(&relay.Policy{
		HSTS: &relay.HSTS{MaxAge: 600, IncludeSubDomains: true},
		ResponseHeaders: relay.HeaderRules{
			Set: map[string]string{"X-Powered-By": "us"}, Add: map[string]string{"Set-Cookie": "c=d"}, Remove: []string{"server"}},
	}, "app", "https://app.test"); errs[0] != "" {
		t.Fatal(errs)
	}
	res, body := r.ask(true, "GET / HTTP/1.1|Host: app.test")
	var head bytes.Buffer
	res.Header.Write(&head)
	want := "Content-Length: 2\r\nSet-Cookie: a=b\r\nSet-Cookie: c=d\r\nStrict-Transport-Security: max-age=600; includeSubDomains\r\nX-Powered-By: us\r\n"
	if head.String() != want || body != "ok" {
		t.Errorf("%s%s, want\n%s", head.String(), body, want)
	}
}

// A body that grows too large after the server has answered cannot be refused any more: the visitor is cut off.
func TestPolicyLateBody(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"app": script(t,
		"> POST / HTTP/1.1|", "< HTTP/1.1 200 OK|Content-Length: 10||early", "> Host: app.test|")})
	ts.demand(&relay.Policy{MaxBody: 4}, "app", "https://app.test")
	v := r.dial(true)
	v.send("POST / HTTP/1.1\r\nHost: app.test\r\nTransfer-Encoding: chunked\r\n\r\n2\r\n12\r\n")
	res, err := http.ReadResponse(v.Reader, &http.Request{Method: "POST"})
	if err != nil || res.StatusCode != 200 {
		t.Fatal(res, err)
	}
	b := make([]byte, 5)
	if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "early" {
		t.Fatalf("%q, %v", b, err)
	}
	v.send("3\r\n345\r\n")
	if b, err := io.ReadAll(res.Body); err == nil {
		t.Errorf("the response ends in good order, with %q", b)
	}
}

// A change takes effect for the next request, on connections that are open, and what is under way goes on.
func TestPolicyChange(t *testing.T) {
	r := newTestRelay(t, false, nil)
	release := make(chan bool)
	ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.(http.Flusher).Flush()
		if req.URL.Path == "/slow" {
			<-release
		}
		io.WriteString(w, "done")
	}))}, "app", "https://app.test")
	slow, kept := r.dial(true), r.dial(true)
	kept.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
	kept.response("GET")
	slow.send("GET /slow HTTP/1.1\r\nHost: app.test\r\n\r\n")
	res, err := http.ReadResponse(slow.Reader, nil)
	if err != nil {
		t.Fatal(err)
	}
	if errs := ts.demand(&relay.Policy{Deny: prefixList("127.0.0.1/32")}, "app", "https://app.test"); errs[0] != "" {
		t.Fatal(errs)
	}
	kept.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
	if res, _ := kept.response("GET"); res.StatusCode != 403 {
		t.Errorf("after the change: %d", res.StatusCode)
	}
	close(release)
	if b, err := io.ReadAll(res.Body); err != nil || string(b) != "done" {
		t.Errorf("what was under way: %q, %v", b, err)
	}
	// And back: the service has been the same all the time.
	ts.demand(nil, "app", "https://app.test")
	kept.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
	if res, _ := kept.response("GET"); res.StatusCode != 200 {
		t.Errorf("after the next change: %d", res.StatusCode)
	}
	if st := r.Status(t.Context()); st.Sessions[0].Services[0].Total != 3 || st.Counters.Refused != 1 {
		t.Errorf("%d requests, %d refused", st.Sessions[0].Services[0].Total, st.Counters.Refused)
	}
}

func TestPolicyRates(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test")
	ts.demand(&relay.Policy{RequestRate: rateOf(t, "1/h burst 3")}, "app", "https://app.test")
	v := r.dial(true)
	for i := range 5 {
		v.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
		res, _ := v.response("GET")
		if want := map[bool]int{true: 200, false: 429}[i < 3]; res.StatusCode != want {
			t.Fatalf("request %d: %d", i, res.StatusCode)
		}
		if s := res.Header.Get("Retry-After"); i >= 3 && s != "3600" {
			t.Errorf("Retry-After: %s", s)
		}
	}
	// Another policy, other buckets. A connection counts once, whatever it asks for.
	ts.demand(&relay.Policy{ConnectionRate: rateOf(t, "1/h burst 2")}, "app", "https://app.test")
	for i := range 3 {
		v := r.dial(true)
		for range 3 {
			v.send("GET / HTTP/1.1\r\nHost: app.test\r\n\r\n")
			res, _ := v.response("GET")
			if want := map[bool]int{true: 200, false: 429}[i < 2]; res.StatusCode != want {
				t.Fatalf("connection %d: %d", i, res.StatusCode)
			}
		}
	}
}

// A connection that asks for several services in turn is one connection for each of them.
func TestPolicyRatesOfTwo(t *testing.T) {
	r := newTestRelay(t, false, nil)
	app := httpTarget(t, http.HandlerFunc(echoHead))
	services := []string{"a", "https://app.test/a", "b", "https://app.test/b"}
	ts := r.connect("office", map[string]string{"a": app, "b": app}, services...)
	ts.demand(&relay.Policy{ConnectionRate: rateOf(t, "1/h burst 1")}, services...)
	v := r.dial(true)
	for i := range 6 {
		v.send("GET /" + "ab"[i%2:i%2+1] + " HTTP/1.1\r\nHost: app.test\r\n\r\n")
		if res, _ := v.response("GET"); res.StatusCode != 200 {
			t.Errorf("request %d: %d", i, res.StatusCode)
		}
	}
}

// A request that waits for its password to be checked counts once.
func TestPolicyRateOfUsers(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test")
	ts.demand(&relay.Policy{RequestRate: rateOf(t, "1/h burst 1"), Users: hashes(t)}, "app", "https://app.test")
	for _, want := range []int{200, 429} {
		if res, _ := r.ask(true, "GET / HTTP/1.1|Host: app.test"+basic("bob", "pa:ss")); res.StatusCode != want {
			t.Errorf("%d, want %d", res.StatusCode, want)
		}
	}
}

// redirect = false: nothing in the clear says that there is something.
func TestPolicyRedirect(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test")
	if res, _ := r.ask(false, "GET / HTTP/1.1|Host: app.test"); res.StatusCode != 301 {
		t.Errorf("by default: %d", res.StatusCode)
	}
	ts.demand(&relay.Policy{NoRedirect: true}, "app", "https://app.test")
	if res, _ := r.ask(false, "GET / HTTP/1.1|Host: app.test"); res.StatusCode != 404 {
		t.Errorf("without: %d", res.StatusCode)
	}
}

// Visitors of ports that may not come in are closed before a stream is opened.
func TestPolicyPort(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		var reached atomic.Int32
		echo := target(t, func(c net.Conn, br *bufio.Reader) {
			reached.Add(1)
			io.Copy(c, br)
		})
		ts := r.connect("office", map[string]string{"db": echo}, "db", "tcp://127.0.0.1:0")
		try := func() (net.Conn, bool) {
			c, err := net.Dial("tcp", ts.port())
			if err != nil {
				return nil, false // it was closed that fast
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(time.Minute))
			io.WriteString(c, "x")
			_, err = c.Read(make([]byte, 1))
			return c, err == nil
		}
		for _, tt := range []struct {
			name   string
			policy *relay.Policy
			want   [3]bool // may the visitors come in that stay?
		}{
			{"nothing", nil, [3]bool{true, true, true}},
			{"denied", &relay.Policy{Deny: prefixList("127.0.0.0/8")}, [3]bool{}},
			{"rate", &relay.Policy{ConnectionRate: rateOf(t, "1/h burst 2")}, [3]bool{true, true, false}},
			{"connections", &relay.Policy{MaxConnections: 1}, [3]bool{true, false, false}},
			{"allowed", &relay.Policy{Allow: prefixList("127.0.0.1/32")}, [3]bool{true, true, true}},
		} {
			if errs := ts.demand(tt.policy, "db", "tcp://127.0.0.1:0"); errs[0] != "" {
				t.Fatal(errs)
			}
			before := reached.Load()
			var conns []net.Conn
			n := int32(0)
			for i, want := range tt.want {
				c, ok := try()
				if c != nil {
					conns = append(conns, c)
				}
				if ok != want {
					t.Errorf("%s: visitor %d: %v", tt.name, i, ok)
				}
				if want {
					n++
				}
			}
			if got := reached.Load() - before; got != n {
				t.Errorf("%s: %d have reached the server, want %d", tt.name, got, n)
			}
			for _, c := range conns {
				c.Close()
			}
			eventually(t, tt.name+": no visitor is left", func() bool {
				return r.Status(t.Context()).Sessions[0].Services[0].Visitors == 0
			})
		}
	})
}

// eventually waits for something that another goroutine does.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !f(); time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(what + ": not within a minute")
		}
	}
}

// Datagrams of whom the policy does not let in are dropped.
func TestPolicyDatagrams(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", nil, "log", "udp://127.0.0.1:0")
	for _, tt := range []struct {
		policy   *relay.Policy
		visitors int
	}{
		{&relay.Policy{Deny: prefixList("127.0.0.0/8")}, 0},
		{&relay.Policy{MaxConnections: 1}, 1},
	} {
		ts.demand(tt.policy, "log", "udp://127.0.0.1:0")
		addr := ts.port()
		for range 3 {
			c, err := net.Dial("udp", addr)
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.Write([]byte("hello"))
		}
		eventually(t, "three datagrams are counted", func() bool {
			s := r.Status(t.Context()).Sessions[0].Services[0]
			return s.Total+s.Datagrams.Dropped >= 3 && s.Visitors <= tt.visitors
		})
		if s := r.Status(t.Context()).Sessions[0].Services[0]; s.Visitors > tt.visitors {
			t.Errorf("%d flows", s.Visitors)
		}
	}
}

// An address that takes all it can get leaves room for others.
func TestFairness(t *testing.T) {
	t.Run("service", func(t *testing.T) {
		r := newTestRelay(t, false, func(r *Relay) { r.Proxies = prefixList("127.0.0.0/8") })
		echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
		ts := r.connect("office", map[string]string{"db": echo}, "db", "tcp://127.0.0.1:0")
		ts.demand(&relay.Policy{MaxConnections: 20}, "db", "tcp://127.0.0.1:0")
		fair(t, ts)
	})
	t.Run("session", func(t *testing.T) {
		r := newTestRelay(t, false, func(r *Relay) { r.Proxies, r.MaxStreams = prefixList("127.0.0.0/8"), 20 })
		echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
		fair(t, r.connect("office", map[string]string{"db": echo}, "db", "tcp://127.0.0.1:0"))
	})
}

// fair has one address hammer a port that has room for 20.
func fair(t *testing.T, ts *testSite) {
	addr := ts.port()
	come := func(from string) bool {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(time.Minute))
		fmt.Fprintf(c, "PROXY TCP4 %s 192.0.2.99 1000 15432\r\nx", from)
		_, err = c.Read(make([]byte, 1))
		return err == nil
	}
	n := 0
	for range 60 {
		if come("192.0.2.1") {
			n++
		}
	}
	if n < 9 || n > 11 {
		t.Errorf("one address alone has got %d of 20", n)
	}
	for i := range 5 {
		if from := fmt.Sprint("192.0.2.", 10+i); !come(from) {
			t.Errorf("%s is not served", from)
		}
	}
}

// Whoever makes more handshakes than one may is closed at once, without a byte of TLS. Others are
// not, and neither is the relay's own name.
func TestHandshakeLimit(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		var log logLines
		r := newTestRelay(t, portable, func(r *Relay) {
			r.HandshakesPerAddress, r.Proxies = 10, prefixList("127.0.0.0/8") // two at once, and then one in six seconds
			log.use(r)
		})
		shake := func(from, name string) error {
			c, err := net.Dial("tcp", r.https)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(time.Minute))
			if _, err := fmt.Fprintf(c, "PROXY TCP4 %s 192.0.2.99 1000 443\r\n", from); err != nil {
				return err
			}
			return tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: name}).Handshake()
		}
		for i := range 7 {
			if err := shake("192.0.2.1", "app.test"); (err == nil) != (i < 2) {
				t.Fatalf("handshake %d: %v", i, err)
			}
		}
		if err := shake("192.0.2.1", "relay.test"); err != nil {
			t.Errorf("for the relay's own name: %v", err)
		}
		if err := shake("192.0.2.2", "app.test"); err != nil {
			t.Errorf("from another address: %v", err)
		}
		if n := r.Status(t.Context()).Counters.HandshakesLimited; n != 5 {
			t.Errorf("%d are counted", n)
		}
		// Once a minute, and another one may have begun.
		if n := log.count("limits.handshakes_per_address"); n > 2 || log.count("address=192.0.2.1 per_minute=10") == 0 {
			t.Errorf("%d lines of the log say so, or not of whom", n)
		}
	})
}

// The same for requests: one address has as many under way as it can get, and another is served.
func TestFairRequests(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.Proxies, r.MaxStreams = prefixList("127.0.0.0/8"), 20 })
	release := make(chan bool)
	var hanging atomic.Int32
	r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/hang" {
			hanging.Add(1)
			<-release
		}
	}))}, "app", "http://app.test")
	t.Cleanup(func() { close(release) })
	come := func(from, path string) *testVisitor {
		v := r.dial(false)
		v.send("PROXY TCP4 " + from + " 192.0.2.99 1000 80\r\nGET " + path + " HTTP/1.1\r\nHost: app.test\r\n\r\n")
		return v
	}
	refused := 0
	for range 30 {
		before := hanging.Load()
		v := come("192.0.2.1", "/hang")
		answered := make(chan bool, 1)
		go func() {
			_, err := v.Peek(1)
			answered <- err == nil
		}()
		eventually(t, "the request is under way or refused", func() bool {
			select {
			case ok := <-answered:
				if !ok {
					t.Fatal("the connection was closed")
				}
				refused++
				return true
			default:
				return hanging.Load() > before
			}
		})
	}
	if n := hanging.Load(); n < 9 || n > 11 || int(n)+refused != 30 {
		t.Errorf("one address has %d requests under way of 20, %d were refused", n, refused)
	}
	for i := range 5 {
		if res, _ := come(fmt.Sprint("192.0.2.", 10+i), "/").response("GET"); res.StatusCode != 200 {
			t.Errorf("another address: %d", res.StatusCode)
		}
	}
}

// What a policy demands it demands of HTTP/2 as well.
func TestPolicyHTTP2(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test")
	ca := newCA(t, "ours", nil)
	ts.demand(&relay.Policy{
		ClientCA: ca.pem(), Users: hashes(t), MaxBody: 4, Methods: []string{"GET", "POST"}, HSTS: &relay.HSTS{MaxAge: 60},
		RequestHeaders: relay.HeaderRules{Set: map[string]string{"X-Env": "prod"}, Remove: []string{"X-Secret"}},
	}, "app", "https://app.test")
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, r.https)
		},
		TLSClientConfig:   &tls.Config{InsecureSkipVerify: true, Certificates: []tls.Certificate{*ca.issue(nil)}},
		ForceAttemptHTTP2: true,
	}
	t.Cleanup(tr.CloseIdleConnections)
	ask := func(method string, body io.Reader, user, password string) (int, string) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), method, "https://app.test/", body)
		if err != nil {
			t.Fatal(err)
		}
		req.Header.Set("X-Secret", "s")
		req.Header.Set("X-Remote-User", "root")
		if user != "" {
			req.SetBasicAuth(user, password)
		}
		res, err := tr.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if res.ProtoMajor != 2 {
			t.Fatalf("the answer is %s", res.Proto)
		}
		if hsts := res.Header.Get("Strict-Transport-Security"); res.StatusCode == 200 && hsts != "max-age=60" {
			t.Errorf("HSTS: %q", hsts)
		}
		return res.StatusCode, string(b)
	}
	if status, body := ask("GET", nil, "bob", "pa:ss"); status != 200 || strings.Contains(body, "X-Secret") || strings.Contains(body, "root") ||
		strings.Contains(body, "Authorization") || !strings.Contains(body, "X-Remote-User: bob") || !strings.Contains(body, "X-Env: prod") || !strings.Contains(body, "X-Client-Cert-Subject: CN=alice") {
		t.Errorf("%d\n%s", status, body)
	}
	for _, tt := range []struct {
		method string
		body   io.Reader
		user   string
		want   int
	}{
		{"GET", nil, "", 401},
		{"DELETE", nil, "bob", 405},
		{"POST", strings.NewReader("1234"), "bob", 200},
		{"POST", struct{ io.Reader }{strings.NewReader("1234")}, "bob", 200},
		{"POST", struct{ io.Reader }{strings.NewReader("12345")}, "bob", 413},
	} {
		if status, body := ask(tt.method, tt.body, tt.user, "pa:ss"); status != tt.want {
			t.Errorf("%s: %d %s, want %d", tt.method, status, body, tt.want)
		}
	}
}
