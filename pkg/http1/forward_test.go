package http1

import (
	"net/netip"
	"strings"
	"testing"
	"time"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// lines makes a message of lines.
func lines(s ...string) string { return strings.Join(s, "\r\n") + "\r\n\r\n" }

func TestAppendForwardedRequest(t *testing.T) {
	v6 := netip.MustParseAddr("2001:db8::7%eth0")
	for _, test := range []struct {
		name     string
		fwd      Forward
		in, want string
	}{
		{"plain", Forward{Remote: loopback, Proto: "https", Port: 443},
			lines("GET /a?b HTTP/1.1", "Host: a.example", "Accept: */*"),
			lines("GET /a?b HTTP/1.1", "Host: a.example", "Accept: */*",
				"X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: a.example",
				"X-Forwarded-Port: 443", "Forwarded: for=127.0.0.1;host=a.example;proto=https")},
		{"absolute form", Forward{Remote: v6, Proto: "http"},
			lines("GET http://a.example:8443?q HTTP/1.1", "Host: b.example"),
			lines("GET /?q HTTP/1.1", "Host: a.example:8443",
				"X-Forwarded-For: 2001:db8::7", "X-Real-IP: 2001:db8::7", "X-Forwarded-Proto: http", "X-Forwarded-Host: a.example:8443",
				`Forwarded: for="[2001:db8::7]";host="a.example:8443";proto=http`)},
		{"hop by hop", Forward{Remote: netip.MustParseAddr("::ffff:192.0.2.1"), Proto: "http"},
			lines("POST / HTTP/1.1", "Host: a", "Connection: keep-alive, X-Secret, Host", "x-secret: 1", "Keep-Alive: 5", "Proxy-Connection: x",
				"TE: gzip, trailers", "Trailer: X-Sum", "Upgrade: h2c", "Content_Length: 7", "Transfer_Encoding: x", "Transfer-Encoding: chunked", "Cookie: c"),
			lines("POST / HTTP/1.1", "Host: a", "Trailer: X-Sum", "Cookie: c", "Connection: TE", "TE: trailers", "Transfer-Encoding: chunked",
				"X-Forwarded-For: 192.0.2.1", "X-Real-IP: 192.0.2.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: a",
				"Forwarded: for=192.0.2.1;host=a;proto=http")},
		{"visitor's own forwarding fields", Forward{Remote: loopback, Proto: "http"},
			lines("PUT / HTTP/1.1", "Host: a", "X-Forwarded-For: 1.1.1.1", "X_Forwarded_For: 1.1.1.1", "X-Forwarded-User: root", "x-real-ip: 1", "Forwarded: for=1",
				"X-Forwarded-Proto: https", "Content-Length: 3", "Expect: 100-continue"),
			lines("PUT / HTTP/1.1", "Host: a", "Expect: 100-continue", "Content-Length: 3",
				"X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "X-Forwarded-Proto: http", "X-Forwarded-Host: a",
				"Forwarded: for=127.0.0.1;host=a;proto=http")},
		{"who the visitor is", Forward{Remote: loopback, Proto: "https", Fields: []Field{{[]byte("X-Remote-User"), []byte("alice")}}},
			lines("GET / HTTP/1.1", "Host: a", "X-Remote-User: root", "x_remote_user: root", "Client-Cert: :eA==:", "Client_Cert_Chain: x", "X-Client-Cert-Subject: CN=root",
				"X-Client-Cert_Fingerprint: 0", "X-Client-Certificate: kept", "Cookie: c", "Connection: X-Remote-User, Forwarded"),
			lines("GET / HTTP/1.1", "Host: a", "X-Client-Certificate: kept", "Cookie: c",
				"X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: a",
				"Forwarded: for=127.0.0.1;host=a;proto=https", "X-Remote-User: alice")},
		{"websocket", Forward{Remote: loopback, Proto: "https"},
			lines("GET /ws HTTP/1.1", "Host: a", "Connection: Upgrade", "Upgrade: websocket", "Sec-WebSocket-Key: x"),
			lines("GET /ws HTTP/1.1", "Host: a", "Sec-WebSocket-Key: x", "Connection: Upgrade", "Upgrade: websocket",
				"X-Forwarded-For: 127.0.0.1", "X-Real-IP: 127.0.0.1", "X-Forwarded-Proto: https", "X-Forwarded-Host: a",
				"Forwarded: for=127.0.0.1;host=a;proto=https")},
		{"HTTP/1.0", Forward{Proto: "http"},
			lines("GET / HTTP/1.0", "Host: b", "Expect: 100-continue"),
			lines("GET / HTTP/1.1", "Host: b", "X-Forwarded-Proto: http", "X-Forwarded-Host: b", "Forwarded: for=unknown;host=b;proto=http")},
	} {
		var r Request
		if n, err := ParseRequest([]byte(test.in), &r); n != len(test.in) || err != nil {
			t.Fatalf("%s: %d, %v", test.name, n, err)
		}
		got := AppendForwardedRequest(nil, &r, test.fwd)
		if string(got) != test.want {
			t.Errorf("%s:\n%s\nwant\n%s", test.name, got, test.want)
		}
		if n, err := ParseRequest(got, &r); n != len(got) || err != nil {
			t.Errorf("%s: what we wrote is not accepted: %v", test.name, err)
		}
	}
}

func TestAppendForwardedResponse(t *testing.T) {
	for _, test := range []struct {
		name, method string
		minor        int
		keepAlive    bool
		in, want     string
		framing      Framing
	}{
		{"length", "GET", 1, true,
			lines("HTTP/1.1 200 Fine", "content-length: 5", "Connection: close, X-A", "X-A: 1", "ETag: x", "Keep-Alive: 5"),
			lines("HTTP/1.1 200 Fine", "ETag: x", "Content-Length: 5"), Length},
		{"closing", "GET", 1, false,
			lines("HTTP/1.1 200 OK", "Content-Length: 5"),
			lines("HTTP/1.1 200 OK", "Content-Length: 5", "Connection: close"), Length},
		{"chunked", "GET", 1, true,
			lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"),
			lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"), Chunked},
		{"chunked for HTTP/1.0", "GET", 0, true,
			lines("HTTP/1.1 200 OK", "Transfer-Encoding: chunked"),
			lines("HTTP/1.1 200 OK", "Connection: close"), UntilClose},
		{"until close", "GET", 1, true,
			lines("HTTP/1.0 200 OK", "X: y"),
			lines("HTTP/1.1 200 OK", "X: y", "Transfer-Encoding: chunked"), Chunked},
		{"HTTP/1.0 keep-alive", "GET", 0, true,
			lines("HTTP/1.1 200 OK", "Content-Length: 5"),
			lines("HTTP/1.1 200 OK", "Content-Length: 5", "Connection: keep-alive"), Length},
		{"HEAD", "HEAD", 1, true,
			lines("HTTP/1.1 200 OK", "Content-Length: 5"),
			lines("HTTP/1.1 200 OK", "Content-Length: 5"), NoBody},
		{"204", "GET", 1, true,
			lines("HTTP/1.1 204 No Content", "Content-Length: 0"),
			lines("HTTP/1.1 204 No Content"), NoBody},
		{"101", "GET", 1, true,
			lines("HTTP/1.1 101 Switching Protocols", "Connection: upgrade", "Upgrade: websocket", "Sec-WebSocket-Accept: x"),
			lines("HTTP/1.1 101 Switching Protocols", "Sec-WebSocket-Accept: x", "Connection: Upgrade", "Upgrade: websocket"), NoBody},
	} {
		var r Response
		if n, err := ParseResponse([]byte(test.in), []byte(test.method), &r); n != len(test.in) || err != nil {
			t.Fatalf("%s: %d, %v", test.name, n, err)
		}
		got, framing := AppendForwardedResponse(nil, &r, test.minor, test.keepAlive)
		if string(got) != test.want || framing != test.framing {
			t.Errorf("%s: %d\n%s\nwant\n%s", test.name, framing, got, test.want)
		}
	}
}

func TestAppendError(t *testing.T) {
	now := time.Date(2026, 11, 6, 9, 5, 7, 0, time.FixedZone("CET", 3600))
	got := AppendError(nil, now, 503, "the site is away", false, false, Field{[]byte("Retry-After"), []byte("5")})
	want := lines("HTTP/1.1 503 Service Unavailable", "Date: Fri, 06 Nov 2026 08:05:07 GMT", "Content-Type: text/plain; charset=utf-8",
		"X-Content-Type-Options: nosniff", "Cache-Control: no-store", "Content-Length: 17", "Connection: close", "Retry-After: 5") + "the site is away\n"
	if string(got) != want {
		t.Errorf("%s", got)
	}
	if got := AppendError(nil, now, 404, "no", true, true); strings.Contains(string(got), "Connection") || !strings.HasSuffix(string(got), "3\r\n\r\n") {
		t.Errorf("%s", got)
	}
}

func BenchmarkForward(b *testing.B) {
	var r Request
	if _, err := ParseRequest(curl, &r); err != nil {
		b.Fatal(err)
	}
	out := make([]byte, 0, 4096)
	fwd := Forward{Remote: loopback, Proto: "https"}
	b.ReportAllocs()
	for b.Loop() {
		out = AppendForwardedRequest(out[:0], &r, fwd)
	}
}

func TestRemove(t *testing.T) {
	fields := []Field{{[]byte("A"), []byte("1")}, {[]byte("X-Secret"), []byte("2")}, {[]byte("b"), []byte("3")}, {[]byte("x_secret"), []byte("4")}}
	fields = Remove(fields, []string{"x-secret", "c"})
	if len(fields) != 2 || string(fields[0].Value) != "1" || string(fields[1].Value) != "3" {
		t.Errorf("%q", fields)
	}
}
