package public

import (
	"bufio"
	"io"
	"net"
	"net/http"
	"net/netip"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
)

func TestRoutes(t *testing.T) {
	var services []*service
	for _, url := range []string{
		"https://app.example.com", "https://app.example.com/api", "https://app.example.com/api/v2",
		"https://*.example.com", "https://*.example.com/only", "http://plain.example.com", "wss://[::1]/ws",
		"https://part.example.com/part",
	} {
		p, err := relay.ParsePublish(url)
		if err != nil {
			t.Fatal(err)
		}
		services = append(services, newService(nil, relay.Announcement{Name: url}, p))
	}
	table := newTable(services, away{patterns: patterns("https://*.example.com", "tcp://:1-9", "wss://chat.example.org/room")})
	for _, test := range []struct {
		host, path string
		want       string // name of the service
	}{
		{"app.example.com", "/", "https://app.example.com"},
		{"APP.example.com.:8443", "/", "https://app.example.com"},
		{"app.example.com", "/api", "https://app.example.com/api"},
		{"app.example.com", "/api/", "https://app.example.com/api"},
		{"app.example.com", "/apis", "https://app.example.com"},
		{"app.example.com", "/api/v2/x", "https://app.example.com/api/v2"},
		{"app.example.com", "/API", "https://app.example.com"},
		{"other.example.com", "/", "https://*.example.com"},
		{"other.example.com", "/only/x", "https://*.example.com/only"},
		{"a.b.example.com", "/", ""}, // a wildcard stands for one label
		{"example.com", "/", ""},
		{"part.example.com", "/part/x", "https://part.example.com/part"},
		{"part.example.com", "/", "https://*.example.com"}, // what the exact host does not have
		{"plain.example.com", "/", "https://*.example.com"},
		{"[0:0::1]:443", "/ws", "wss://[::1]/ws"},
		{"", "/", ""},
	} {
		got := ""
		if s := table.find(appendHost(nil, []byte(test.host)), []byte(test.path), true); s != nil {
			got = s.name
		}
		if got != test.want {
			t.Errorf("%s%s goes to %q, want %q", test.host, test.path, got, test.want)
		}
	}
	if s := table.find([]byte("plain.example.com"), []byte("/"), false); s == nil || s.name != "http://plain.example.com" {
		t.Errorf("http://plain.example.com goes to %v", s)
	}
	if s := table.any([]byte("x.example.com"), true); s == nil {
		t.Error("no loop for x.example.com")
	}
	for _, test := range []struct {
		host, path string
		secure     bool
		want       bool
	}{
		{"any.example.com", "/", true, true},
		{"any.example.com", "/", false, false},
		{"chat.example.org", "/room/1", true, true},
		{"chat.example.org", "/", true, false},
		{"example.net", "/", true, false},
	} {
		if got := table.allowed(test.host, test.path, test.secure); got != test.want {
			t.Errorf("allowed(%s%s, %v) = %v", test.host, test.path, test.secure, got)
		}
	}
	if n := testing.AllocsPerRun(100, func() { table.find([]byte("other.example.com"), []byte("/x"), true) }); n > 0 {
		t.Errorf("find allocates %v objects", n)
	}
}

func TestAdmission(t *testing.T) {
	a := admission{total: 3, perAddr: 2, addrs: make(map[netip.Addr]int)}
	one, two := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("::ffff:192.0.2.2")
	for i, want := range []verdict{admitted, admitted, sayFull} {
		if got := a.enter(one); got != want {
			t.Fatalf("connection %d of one address: %v, want %v", i, got, want)
		}
	}
	if a.enter(two) != admitted || a.enter(two) != sayFull {
		t.Fatal("the total does not hold")
	}
	// What was let in comes out again, and nothing stays behind.
	a.leave(one, sayFull)
	a.leave(one, admitted)
	a.leave(one, admitted)
	a.leave(two, admitted)
	a.leave(two, sayFull)
	if a.connected() != 0 || a.spare != 0 || len(a.addrs) != 0 {
		t.Fatalf("left behind: %d, %d, %v", a.n, a.spare, a.addrs)
	}
	for range maxSpare {
		a.spare++
	}
	a.total = 0
	if a.enter(one) != turnedAway {
		t.Fatal("the spare places have no end")
	}
	// A host with IPv6 has a whole /64.
	if relay.Source(netip.MustParseAddr("2001:db8::1")) != relay.Source(netip.MustParseAddr("2001:db8::2")) {
		t.Fatal("addresses of one /64 count apart")
	}
}

func TestRate(t *testing.T) {
	r := rate[netip.Addr]{most: maxJoins, size: 2}
	addr, now := netip.MustParseAddr("192.0.2.1"), time.Unix(600, 0)
	for range maxJoins {
		if !r.allow(addr, now) {
			t.Fatal("refused below the limit")
		}
	}
	if r.allow(addr, now.Add(59*time.Second)) {
		t.Fatal("allowed above the limit")
	}
	if !r.allow(netip.MustParseAddr("192.0.2.2"), now) || !r.allow(addr, now.Add(time.Minute)) {
		t.Fatal("refused another address, or a minute later")
	}
	now = now.Add(time.Minute)
	r.allow(netip.MustParseAddr("192.0.2.3"), now)
	if r.allow(netip.MustParseAddr("192.0.2.4"), now) || !r.allow(addr, now) {
		t.Fatal("the table is larger than it may be, or one in it is refused")
	}
}

func TestAmbiguousPaths(t *testing.T) {
	for _, path := range []string{
		"/app/..", "/app/../admin", "/app/./x", "/.", "/app/%2e%2e/admin", "/app/.%2E/admin", "/app/%2E",
		"/app/..%2fadmin", "/app%2F..", "/a%5cb", `/app\..\admin`, "/app/..;/admin", "/app/..;a=b/admin", "/app/..%3b/admin",
	} {
		if !ambiguous([]byte(path)) {
			t.Errorf("%q passes", path)
		}
	}
	for _, path := range []string{"/", "/app", "/app/.x", "/app/..x", "/app/...", "/app/x..", "/app/x.", "/a%20b", "/%2ex", "/a;b", "//x", "*"} {
		if ambiguous([]byte(path)) {
			t.Errorf("%q does not pass", path)
		}
	}
}

// Where the path decides who gets a request, it must have one meaning. Elsewhere it
// is the server's business.
func TestDividedHosts(t *testing.T) {
	r := newTestRelay(t, false, nil)
	app := target(t, okTarget)
	api := target(t, func(c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err == nil {
			io.WriteString(c, "HTTP/1.1 202 Accepted\r\nContent-Length: 0\r\n\r\n")
		}
	})
	r.connect("office", map[string]string{"part": app, "whole": app, "api": api, "rest": app}, "part", "https://part.test/app",
		"whole", "https://whole.test", "api", "https://both.test/api", "rest", "https://both.test")
	for _, test := range []struct {
		host, path string
		want       int
	}{
		{"part.test", "/app/x", 200},
		{"part.test", "/app/../admin", 400},
		{"part.test", "/app/%2e%2e/admin", 400},
		{"part.test", "/app/..%2fadmin", 400},
		{"both.test", "/", 200},
		{"both.test", "/api/x", 202},
		{"both.test", "/%61pi/x", 400},
		{"both.test", "/%41%70i", 200}, // /Api
		{"both.test", "/api%2e/x", 200},
		{"both.test", "//api/x", 400},
		{"both.test", "/;a/%61pi", 400},
		{"both.test", "/api;a=b/x", 400},
		{"both.test", "/api%3bx", 400},
		{"both.test", "/api%00", 400},
		{"both.test", "/api/%61;x//y", 202}, // the same service
		{"both.test", "/x/%61pi;a//b", 200},
		{"whole.test", "/app/%2e%2e/admin%2f", 200},
	} {
		if got := r.status(true, "GET "+test.path+" HTTP/1.1\r\nHost: "+test.host+"\r\n\r\n"); got != test.want {
			t.Errorf("%s%s: %d, want %d", test.host, test.path, got, test.want)
		}
	}
}
