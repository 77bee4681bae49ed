package public

import (
	"bufio"
	"crypto/tls"
	"encoding/hex"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"
)

// unhex is the bytes of hex digits with spaces.
func unhex(s string) string {
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		panic(err)
	}
	return string(b)
}

const signV2 = "0d0a0d0a000d0a515549540a "

// Headers as proxies send them, and what is wrong with others.
func TestPreface(t *testing.T) {
	long := strings.Repeat("00", 4097)
	for _, tt := range []struct{ name, in, visitor, problem string }{
		{"v1 tcp4", "PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n", "192.0.2.7:40000", ""},
		{"v1 tcp6", "PROXY TCP6 2001:db8::7 2001:db8::1 40000 443\r\n", "[2001:db8::7]:40000", ""},
		{"v1 mapped", "PROXY TCP6 ::ffff:192.0.2.7 ::1 40000 443\r\n", "192.0.2.7:40000", ""},
		{"v1 unknown", "PROXY UNKNOWN\r\n", "", ""},
		{"v1 unknown, with addresses", "PROXY UNKNOWN ffff:f ffff:f 65535 65535\r\n", "", ""},
		{"v2 tcp4", unhex(signV2 + "21 11 000c c0000207 c6336401 9c40 01bb"), "192.0.2.7:40000", ""},
		{"v2 tcp6", unhex(signV2 + "21 21 0024 20010db8000000000000000000000007 20010db8000000000000000000000001 9c40 01bb"), "[2001:db8::7]:40000", ""},
		{"v2 with TLVs", unhex(signV2 + "21 11 0018 c0000207 c6336401 9c40 01bb 02 0003 612e62 04 0003 000000"), "192.0.2.7:40000", ""},
		{"v2 local", unhex(signV2 + "20 00 0000"), "", ""},
		{"v2 local, with an address", unhex(signV2 + "20 11 000c c0000207 c6336401 9c40 01bb"), "", ""},
		{"v2 unix", unhex(signV2 + "21 31 00d8" + strings.Repeat("00", 216)), "", ""},
		{"none", "GET / HTTP/1.1\r\n", "", "no PROXY protocol header"},
		{"a TLS hello", unhex("160301"), "", "no PROXY protocol header"},
		{"v1 with a zone", "PROXY TCP6 fe80::1%eth0 ::1 1 2\r\n", "", "address"},
		{"v1, wrong family", "PROXY TCP4 ::1 ::1 1 2\r\n", "", "address"},
		{"v1, bad port", "PROXY TCP4 192.0.2.7 192.0.2.8 99999 1\r\n", "", "port"},
		{"v1, line feed alone", "PROXY TCP4 192.0.2.7 192.0.2.8 1 2\n", "", `\r\n`},
		{"v1, too long", "PROXY UNKNOWN " + strings.Repeat("f", 93), "", "more than 107"},
		{"v2, version 3", unhex(signV2 + "31 11 000c c0000207 c6336401 9c40 01bb"), "", "version"},
		{"v2, short", unhex(signV2 + "21 11 0004 c0000207"), "", "length"},
		{"v2, too long", unhex(signV2 + "21 11 1001" + long), "", "more than 4096"},
		{"v2, broken TLV", unhex(signV2 + "21 11 000f c0000207 c6336401 9c40 01bb 02 0003"), "", "TLV"},
	} {
		visitor, n, err := cutPreface([]byte(tt.in + "hello"))
		switch {
		case tt.problem != "":
			if err == nil || !strings.Contains(err.Error(), tt.problem) || n != 0 {
				t.Errorf("%s: %v, want %q", tt.name, err, tt.problem)
			}
			continue
		case err != nil || n != len(tt.in):
			t.Errorf("%s: %d bytes of %d, %v", tt.name, n, len(tt.in), err)
			continue
		}
		if got := visitor.String(); tt.visitor != got && (tt.visitor != "" || visitor.IsValid()) {
			t.Errorf("%s: visitor %v, want %q", tt.name, visitor, tt.visitor)
		}
		for i := range tt.in {
			if _, n, err := cutPreface([]byte(tt.in[:i])); n != 0 || err != nil {
				t.Errorf("%s, its first %d bytes: %d, %v", tt.name, i, n, err)
				break
			}
		}
	}
}

func FuzzPreface(f *testing.F) {
	f.Add([]byte("PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\nGET"))
	f.Add([]byte("PROXY UNKNOWN\r\n"))
	f.Add([]byte(unhex(signV2 + "21 11 0018 c0000207 c6336401 9c40 01bb 02 0003 612e62 04 0003 000000")))
	f.Add([]byte(unhex(signV2 + "20 00 0000 16")))
	f.Fuzz(func(t *testing.T, b []byte) {
		visitor, n, err := cutPreface(b)
		switch {
		case n < 0 || n > len(b) || n > 16+maxPrefaceV2:
			t.Fatalf("%q: %d bytes", b, n)
		case (err != nil || n == 0) && visitor.IsValid() || err != nil && n != 0:
			t.Fatalf("%q: %v, %d, %v", b, visitor, n, err)
		case err == nil && n == 0 && len(b) >= 16+maxPrefaceV2:
			t.Fatalf("%q is not enough", b)
		}
		if n == 0 {
			return
		}
		// What follows changes nothing, and a part is never enough.
		if v, m, err := cutPreface(b[:n]); v != visitor || m != n || err != nil {
			t.Fatalf("%q: %v, %d, %v without what follows", b[:n], v, m, err)
		}
		if _, m, err := cutPreface(b[:n-1]); m != 0 || err != nil {
			t.Fatalf("%q: %d, %v", b[:n-1], m, err)
		}
	})
}

// proxied connects as a proxy that says s first, a byte at a time.
func proxied(t *testing.T, addr, s string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	for i := range len(s) {
		if _, err := io.WriteString(c, s[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	return c
}

// Behind a proxy the visitor is who its header says, everywhere.
func TestProxies(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, func(r *Relay) {
			r.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}
			r.MaxPerAddress = 1
		})
		web := httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, r.Header.Get("X-Forwarded-For"))
		}))
		echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
		s := r.connect("office", map[string]string{"web": web, "plain": web, "echo": echo},
			"web", "https://app.test", "plain", "http://plain.test", "echo", "tcp://127.0.0.1:0")
		port := s.port()

		const v1 = "PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\n"
		v2 := unhex(signV2 + "21 11 000c cb007109 c6336401 9c40 01bb")
		get := func(c net.Conn, host string) (int, string) {
			t.Helper()
			v := &testVisitor{t, c, bufio.NewReader(c)}
			v.send("GET / HTTP/1.1\r\nHost: " + host + "\r\n\r\n")
			res, body := v.response("GET")
			return res.StatusCode, body
		}
		https := func(preface string) net.Conn {
			return tls.Client(proxied(t, r.https, preface), &tls.Config{InsecureSkipVerify: true, ServerName: "app.test"})
		}
		held := proxied(t, r.http, v1)
		if code, from := get(held, "plain.test"); code != 200 || from != "192.0.2.7" {
			t.Errorf("http: %d, visitor %q", code, from)
		}
		// The limit for one address is the visitor's, not the proxy's.
		if code, from := get(https(v2), "app.test"); code != 200 || from != "203.0.113.9" {
			t.Errorf("https: %d, visitor %q", code, from)
		}
		if code, _ := get(https(v1), "app.test"); code != 503 {
			t.Errorf("a second connection of that visitor: %d, want 503", code)
		}
		held.Close()
		if code, from := get(https(unhex(signV2+"20 00 0000")), "app.test"); code != 200 || from != "127.0.0.1" {
			t.Errorf("the proxy itself: %d, visitor %q", code, from)
		}
		c := proxied(t, port, "PROXY TCP6 2001:db8::7 ::1 1 2\r\n")
		v := &testVisitor{t, c, bufio.NewReader(c)}
		v.send("ping")
		v.expect("ping")

		// Without a header a connection is closed, and counted.
		for _, addr := range []string{r.http, r.https, port} {
			c := proxied(t, addr, "G")
			if b, err := io.ReadAll(c); len(b) > 0 {
				t.Errorf("%s without a header: %q, %v", addr, b, err)
			}
		}
		if n := r.Status(t.Context()).Counters.Prefaces; n != 3 {
			t.Errorf("%d refused connections are counted, want 3", n)
		}
	})
}

// A header from somebody who is no proxy is what it is: no request.
func TestNoProxy(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.Proxies = []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")} })
	v := r.dial(false)
	v.send("PROXY TCP4 192.0.2.7 198.51.100.1 40000 443\r\nGET / HTTP/1.1\r\nHost: a.test\r\n\r\n")
	if res, _ := v.response("GET"); res.StatusCode != 400 {
		t.Errorf("status %d, want 400", res.StatusCode)
	}
}

// A proxy that does not say in time who the visitor is, is refused.
func TestSlowPreface(t *testing.T) {
	inFakeTime(t, ok, func(r *testRelay, _ *testSite, dial func() *testVisitor) {
		r.Proxies = []netip.Prefix{netip.MustParsePrefix("127.0.0.1/32")}
		v, start := dial(), time.Now()
		v.send("PROXY TCP4 192.0.2.7")
		if n := r.admission.connected(); n != 1 {
			t.Errorf("%d connections while the header comes, want 1", n)
		}
		v.expectEOF()
		took(t, start, prefaceTime)
		if n := r.admission.connected(); n != 0 {
			t.Errorf("%d connections are left", n)
		}
	})
}
