package http1

import (
	"bytes"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// describe is what a parsed request amounts to, in one line.
func describe(r *Request) string {
	var s strings.Builder
	fmt.Fprintf(&s, "%s %s", r.Method, r.Path)
	if r.Query != nil {
		fmt.Fprintf(&s, " ?%s", r.Query)
	}
	fmt.Fprintf(&s, " 1.%d host=%s", r.Minor, r.Host)
	switch r.Framing {
	case Length:
		fmt.Fprintf(&s, " length=%d", r.ContentLength)
	case Chunked:
		s.WriteString(" chunked")
	}
	if r.Close {
		s.WriteString(" close")
	}
	if r.Expect100 {
		s.WriteString(" expect")
	}
	if r.Upgrade != nil {
		fmt.Fprintf(&s, " upgrade=%s", r.Upgrade)
	}
	return s.String()
}

const host = "Host: a.example\r\n"

var requests = []struct {
	name, in string
	want     string // of describe, or the error's status and reason
}{
	{"plain", "GET / HTTP/1.1\r\n" + host + "\r\n", "GET / 1.1 host=a.example"},
	{"query", "GET /a?b=c?d HTTP/1.1\r\n" + host + "\r\n", "GET /a ?b=c?d 1.1 host=a.example"},
	{"empty query", "GET /a? HTTP/1.1\r\n" + host + "\r\n", "GET /a ? 1.1 host=a.example"},
	{"one empty line first", "\r\nGET / HTTP/1.1\r\n" + host + "\r\n", "GET / 1.1 host=a.example"},
	{"two empty lines first", "\r\n\r\nGET / HTTP/1.1\r\n" + host + "\r\n", "400 invalid method"},
	{"host and port", "GET / HTTP/1.1\r\nHost: A.example:8443\r\n\r\n", "GET / 1.1 host=A.example:8443"},
	{"IPv6 host", "GET / HTTP/1.1\r\nHost: [2001:db8::1]:80\r\n\r\n", "GET / 1.1 host=[2001:db8::1]:80"},
	{"value trimmed", "GET / HTTP/1.1\r\nHost: \t a.example \t\r\n\r\n", "GET / 1.1 host=a.example"},
	{"custom method", "M-SEARCH * HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"asterisk", "OPTIONS * HTTP/1.1\r\n" + host + "\r\n", "OPTIONS * 1.1 host=a.example"},
	{"asterisk for GET", "GET * HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"absolute wins", "GET http://b.example:80/x?y HTTP/1.1\r\n" + host + "\r\n", "GET /x ?y 1.1 host=b.example:80"},
	{"absolute without path", "GET HTTPS://b.example HTTP/1.1\r\n" + host + "\r\n", "GET / 1.1 host=b.example"},
	{"absolute with query only", "GET http://b.example?q HTTP/1.1\r\n" + host + "\r\n", "GET / ?q 1.1 host=b.example"},
	{"absolute OPTIONS", "OPTIONS http://b.example HTTP/1.1\r\n" + host + "\r\n", "OPTIONS * 1.1 host=b.example"},
	{"absolute without Host", "GET http://b.example/ HTTP/1.1\r\n\r\n", "400 no Host"},
	{"absolute with userinfo", "GET http://u@b.example/ HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"absolute of another scheme", "GET ftp://b.example/ HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"absolute without host", "GET http:///x HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"CONNECT", "CONNECT b.example:443 HTTP/1.1\r\n" + host + "\r\n", "CONNECT  1.1 host=b.example:443"},
	{"CONNECT without port", "CONNECT b.example HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"HTTP/1.0", "GET / HTTP/1.0\r\n\r\n", "GET / 1.0 host= close"},
	{"HTTP/1.0 keep-alive", "GET / HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n", "GET / 1.0 host="},
	{"close", "GET / HTTP/1.1\r\n" + host + "Connection: foo, Close\r\n\r\n", "GET / 1.1 host=a.example close"},
	{"close in the second field", "GET / HTTP/1.1\r\n" + host + "Connection: foo\r\nconnection: ,close\r\n\r\n", "GET / 1.1 host=a.example close"},
	{"length", "POST / HTTP/1.1\r\n" + host + "Content-Length: 005\r\n\r\n", "POST / 1.1 host=a.example length=5"},
	{"chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: Chunked\r\n\r\n", "POST / 1.1 host=a.example chunked"},
	{"expect", "PUT / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nExpect: 100-Continue\r\n\r\n", "PUT / 1.1 host=a.example length=5 expect"},
	{"expect without body", "GET / HTTP/1.1\r\n" + host + "Expect: 100-continue\r\n\r\n", "GET / 1.1 host=a.example"},
	{"unknown expectation", "GET / HTTP/1.1\r\n" + host + "Expect: miracles\r\n\r\n", "417 unknown expectation"},
	{"websocket", "GET / HTTP/1.1\r\n" + host + "Connection: keep-alive, Upgrade\r\nUpgrade: websocket\r\n\r\n", "GET / 1.1 host=a.example upgrade=websocket"},
	{"upgrade not in Connection", "GET / HTTP/1.1\r\n" + host + "Upgrade: websocket\r\n\r\n", "GET / 1.1 host=a.example"},
	{"upgrade in HTTP/1.0", "GET / HTTP/1.0\r\nConnection: upgrade, keep-alive\r\nUpgrade: websocket\r\n\r\n", "GET / 1.0 host="},
	{"h2c", "GET / HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: h2c\r\n\r\n", "GET / 1.1 host=a.example"},
	{"two upgrades", "GET / HTTP/1.1\r\n" + host + "Connection: Upgrade\r\nUpgrade: websocket\r\nUpgrade: tcp\r\n\r\n", "400 more than one Upgrade"},
	{"obs-text and HTAB in a value", "GET / HTTP/1.1\r\n" + host + "X: a\tb\xe9\r\n\r\n", "GET / 1.1 host=a.example"},
	{"empty value", "GET / HTTP/1.1\r\n" + host + "X:\r\n\r\n", "GET / 1.1 host=a.example"},

	// Two recipients may disagree about where these end.
	{"length and coding", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "400 both Content-Length and Transfer-Encoding"},
	{"coding and length", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n", "400 both Content-Length and Transfer-Encoding"},
	{"two lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 6\r\n\r\n", "400 more than one Content-Length"},
	{"two equal lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5\r\nContent-Length: 5\r\n\r\n", "400 more than one Content-Length"},
	{"list of lengths", "POST / HTTP/1.1\r\n" + host + "Content-Length: 5, 5\r\n\r\n", "400 invalid Content-Length"},
	{"signed length", "POST / HTTP/1.1\r\n" + host + "Content-Length: +5\r\n\r\n", "400 invalid Content-Length"},
	{"negative length", "POST / HTTP/1.1\r\n" + host + "Content-Length: -1\r\n\r\n", "400 invalid Content-Length"},
	{"hexadecimal length", "POST / HTTP/1.1\r\n" + host + "Content-Length: 0x5\r\n\r\n", "400 invalid Content-Length"},
	{"empty length", "POST / HTTP/1.1\r\n" + host + "Content-Length: \r\n\r\n", "400 invalid Content-Length"},
	{"length overflow", "POST / HTTP/1.1\r\n" + host + "Content-Length: 18446744073709551621\r\n\r\n", "400 invalid Content-Length"},
	{"coding identity", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: identity\r\n\r\n", "501 transfer coding not supported"},
	{"coding gzip, chunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: gzip, chunked\r\n\r\n", "400 invalid Transfer-Encoding"},
	{"coding xchunked", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: xchunked\r\n\r\n", "400 invalid Transfer-Encoding"},
	{"coding chunked, identity", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked, identity\r\n\r\n", "400 invalid Transfer-Encoding"},
	{"coding chunked;q", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked;q=1\r\n\r\n", "400 invalid Transfer-Encoding"},
	{"coding quoted", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \"chunked\"\r\n\r\n", "400 invalid Transfer-Encoding"},
	{"coding empty", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding:\r\n\r\n", "400 invalid Transfer-Encoding"},
	{"coding behind VT", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: \x0bchunked\r\n\r\n", "400 control character in field value"},
	{"two codings", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n", "400 more than one Transfer-Encoding"},
	{"second coding hidden", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding: chunked\r\nTransfer-Encoding: x\r\n\r\n", "400 more than one Transfer-Encoding"},
	{"coding in HTTP/1.0", "POST / HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n", "400 Transfer-Encoding in HTTP/1.0"},
	{"space before colon", "POST / HTTP/1.1\r\n" + host + "Transfer-Encoding : chunked\r\n\r\n", "400 whitespace in field name"},
	{"tab before colon", "POST / HTTP/1.1\r\n" + host + "Content-Length\t: 5\r\n\r\n", "400 whitespace in field name"},
	{"obs-fold", "POST / HTTP/1.1\r\n" + host + "X: a\r\n b\r\n\r\n", "400 whitespace before field name"},
	{"obs-fold hides coding", "POST / HTTP/1.1\r\n" + host + "X: a\r\n\tTransfer-Encoding: chunked\r\n\r\n", "400 whitespace before field name"},
	{"whitespace before the first field", "GET / HTTP/1.1\r\n " + host + "\r\n", "400 whitespace before field name"},
	{"bare CR in value", "GET / HTTP/1.1\r\n" + host + "X: a\rContent-Length: 5\r\n\r\n", "400 bare CR in head"},
	{"bare LF in value", "GET / HTTP/1.1\r\n" + host + "X: a\nContent-Length: 5\r\n\r\n", "400 bare LF in head"},
	{"bare LF ends the head", "GET / HTTP/1.1\r\n" + host + "\n", "400 bare LF in head"},
	{"bare CR ends the head", "GET / HTTP/1.1\r\n" + host + "\rX", "400 bare CR in head"},
	{"bare LF after the request line", "GET / HTTP/1.1\n" + host + "\r\n", "400 malformed request line"},
	{"NUL in value", "GET / HTTP/1.1\r\n" + host + "X: a\x00b\r\n\r\n", "400 control character in field value"},
	{"DEL in value", "GET / HTTP/1.1\r\n" + host + "X: aaaaaaaaaaaaaaa\x7f\r\n\r\n", "400 control character in field value"},
	{"NUL in name", "GET / HTTP/1.1\r\n" + host + "X\x00: a\r\n\r\n", "400 invalid character in field name"},
	{"no colon", "GET / HTTP/1.1\r\n" + host + "Foo\r\n\r\n", "400 invalid character in field name"},
	{"empty name", "GET / HTTP/1.1\r\n" + host + ": a\r\n\r\n", "400 invalid character in field name"},
	{"no Host", "GET / HTTP/1.1\r\n\r\n", "400 no Host"},
	{"empty Host", "GET / HTTP/1.1\r\nHost:\r\n\r\n", "400 invalid Host"},
	{"two Hosts", "GET / HTTP/1.1\r\n" + host + host + "\r\n", "400 more than one Host"},
	{"Host list", "GET / HTTP/1.1\r\nHost: a, b\r\n\r\n", "400 invalid Host"},
	{"Host with path", "GET / HTTP/1.1\r\nHost: a/b\r\n\r\n", "400 invalid Host"},
	{"Host with userinfo", "GET / HTTP/1.1\r\nHost: a@b\r\n\r\n", "400 invalid Host"},
	{"Host with empty port", "GET / HTTP/1.1\r\nHost: a:\r\n\r\n", "400 invalid Host"},
	{"Host with large port", "GET / HTTP/1.1\r\nHost: a:65536\r\n\r\n", "400 invalid Host"},
	{"Host half bracketed", "GET / HTTP/1.1\r\nHost: [::1\r\n\r\n", "400 invalid Host"},
	{"Host bracketed IPv4", "GET / HTTP/1.1\r\nHost: [127.0.0.1]\r\n\r\n", "400 invalid Host"},
	{"Host behind brackets", "GET / HTTP/1.1\r\nHost: [::1]a\r\n\r\n", "400 invalid Host"},
	{"two spaces", "GET  / HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"space in target", "GET /a b HTTP/1.1\r\n" + host + "\r\n", "400 malformed request line"},
	{"space behind version", "GET / HTTP/1.1 \r\n" + host + "\r\n", "400 malformed request line"},
	{"tab for space", "GET\t/ HTTP/1.1\r\n" + host + "\r\n", "400 invalid method"},
	{"fragment", "GET /a#b HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"control in target", "GET /\x01 HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"bytes above ASCII in target", "GET /\xc3\xa9 HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"percent in path", "GET /%zz HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"percent ends path", "GET /%41%4 HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"relative target", "GET a HTTP/1.1\r\n" + host + "\r\n", "400 invalid request target"},
	{"HTTP/0.9", "GET /\r\n", "400 invalid request target"},
	{"HTTP/2 preface", "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", "505 HTTP version not supported"},
	{"HTTP/1.2", "GET / HTTP/1.2\r\n" + host + "\r\n", "505 HTTP version not supported"},
	{"lower-case version", "GET / http/1.1\r\n" + host + "\r\n", "400 malformed request line"},
	{"method in brackets", "(GET) / HTTP/1.1\r\n" + host + "\r\n", "400 invalid method"},
	{"TLS on a plain port", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", "400 invalid method"},
	{"method without end", strings.Repeat("A", 40), "501 method not supported"},
	{"long target", "GET /" + strings.Repeat("a", 8<<10), "414 request line too long"},
	{"long head", "GET / HTTP/1.1\r\n" + host + "X: " + strings.Repeat("a", 16<<10), "431 head too large"},
	{"many fields", "GET / HTTP/1.1\r\n" + host + strings.Repeat("X: y\r\n", 100) + "\r\n", "431 too many fields"},
	{"many options", "GET / HTTP/1.1\r\n" + host + "Connection: " + strings.Repeat("a,", 33) + "\r\n\r\n", "400 too many Connection options"},
}

func TestParseRequest(t *testing.T) {
	for _, test := range requests {
		t.Run(test.name, func(t *testing.T) {
			var r Request
			n, err := ParseRequest([]byte(test.in), &r)
			if got := result(n, err, len(test.in), &r); got != test.want {
				t.Fatalf("%q:\n got %s\nwant %s", test.in, got, test.want)
			}
		})
	}
}

func result(n int, err error, length int, r *Request) string {
	var e *Error
	switch {
	case errors.As(err, &e):
		return fmt.Sprint(e.Status, " ", e.Reason)
	case n != length:
		return fmt.Sprintf("used %d of %d bytes", n, length)
	}
	return describe(r)
}

// Wherever the input is cut, the result is the same: a prefix is incomplete, or is already wrong in
// the way the whole is.
func TestParseRequestSplit(t *testing.T) {
	for _, test := range requests {
		var r Request
		for i := range len(test.in) {
			n, err := ParseRequest([]byte(test.in[:i]), &r)
			if n != 0 || err != nil && result(n, err, 0, &r) != test.want {
				t.Fatalf("%s: %q: %d, %v", test.name, test.in[:i], n, err)
			}
		}
		in := []byte(test.in + "GET /next HTTP/1.1\r\n")
		n, err := ParseRequest(in, &r)
		if err == nil && n == 0 {
			continue // the whole was incomplete, too
		}
		if got := result(n, err, len(test.in), &r); got != test.want {
			t.Fatalf("%s: with more behind it: %s", test.name, got)
		}
	}
}

func TestLimits(t *testing.T) {
	in := []byte("GET /abc HTTP/1.1\r\nHost: a\r\nX: y\r\n\r\n")
	var r Request
	for i := 1; i < len(in); i++ {
		if n, err := (Limits{MaxHead: i}).ParseRequest(in, &r); err != errHeadSize {
			t.Fatalf("MaxHead %d: %d, %v", i, n, err)
		}
	}
	line := bytes.IndexByte(in, '\n') + 1
	for i := 5; i < line; i++ {
		if n, err := (Limits{MaxLine: i}).ParseRequest(in, &r); err != errLongTarget {
			t.Fatalf("MaxLine %d: %d, %v", i, n, err)
		}
	}
	n, err := Limits{MaxHead: len(in), MaxLine: line, MaxFields: 2}.ParseRequest(in, &r)
	if n != len(in) || err != nil {
		t.Fatalf("exactly at the limits: %d, %v", n, err)
	}
	if _, err := (Limits{MaxFields: 1}).ParseRequest(in, &r); err != errManyFields {
		t.Fatalf("MaxFields: %v", err)
	}
}

func TestNoHost(t *testing.T) {
	var r Request
	for in, host := range map[string]string{
		"GET / HTTP/1.1\r\nA: b\r\n\r\n":                      "",
		"GET http://b.example/ HTTP/1.1\r\n\r\n":              "b.example",
		"GET / HTTP/1.1\r\n" + host + "Connection: x\r\n\r\n": "a.example",
	} {
		n, err := Limits{NoHost: true}.ParseRequest([]byte(in), &r)
		if n != len(in) || err != nil || string(r.Host) != host || (r.Host == nil) != (host == "") {
			t.Errorf("%q: %d, %v, host %q", in, n, err, r.Host)
		}
	}
	for _, in := range []string{"GET / HTTP/1.1\r\nHost:\r\n\r\n", "GET / HTTP/1.1\r\n" + host + host + "\r\n", "CONNECT / HTTP/1.1\r\n\r\n"} {
		if n, err := (Limits{NoHost: true}).ParseRequest([]byte(in), &r); err == nil {
			t.Errorf("%q: %d", in, n)
		}
	}
}

func TestFields(t *testing.T) {
	var r Request
	if _, err := ParseRequest([]byte("GET / HTTP/1.1\r\nHost: a\r\nX-Y:  1 2 \r\nx-y:3\r\n\r\n"), &r); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprintf("%q", r.Fields); got != `[{"Host" "a"} {"X-Y" "1 2"} {"x-y" "3"}]` {
		t.Errorf("fields %s", got)
	}
	if got := Get(r.Fields, "X-y"); string(got) != "1 2" {
		t.Errorf("Get: %q", got)
	}
	if got := Get(r.Fields, "Z"); got != nil {
		t.Errorf("Get of a field that is not there: %q", got)
	}
	for in, want := range map[string]string{"a:80": "a", "a": "a", "[::1]:80": "::1", "[::1]": "::1", "": ""} {
		if got := hostname([]byte(in)); string(got) != want {
			t.Errorf("hostname(%q) = %q", in, got)
		}
	}
}

// curl is what a client of a relay typically sends.
var curl = []byte("GET /api/v1/items?page=2 HTTP/1.1\r\nHost: app.example.com\r\nUser-Agent: curl/8.14.1\r\n" +
	"Accept: */*\r\nAccept-Encoding: gzip, deflate, br\r\nConnection: keep-alive\r\n\r\n")

func TestParseDoesNotAllocate(t *testing.T) {
	var r Request
	var resp Response
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\n")
	method, out := []byte("GET"), make([]byte, 0, 4096)
	fwd := Forward{Remote: loopback, Proto: "https"}
	if n := testing.AllocsPerRun(100, func() {
		if n, err := ParseRequest(curl, &r); n != len(curl) || err != nil {
			t.Fatal(n, err)
		}
		out = AppendForwardedRequest(out[:0], &r, fwd)
		if n, err := ParseResponse(answer, method, &resp); n != len(answer) || err != nil {
			t.Fatal(n, err)
		}
		out, _ = AppendForwardedResponse(out[:0], &resp, 1, true)
	}); n != 0 {
		t.Errorf("%v allocations a request", n)
	}
}

func BenchmarkParseRequest(b *testing.B) {
	var r Request
	b.SetBytes(int64(len(curl)))
	b.ReportAllocs()
	for b.Loop() {
		if n, _ := ParseRequest(curl, &r); n == 0 {
			b.Fatal("incomplete")
		}
	}
}

func TestClone(t *testing.T) {
	in := []byte("POST http://h/p?q HTTP/1.1\r\nHost: h\r\nConnection: upgrade, x\r\nUpgrade: u\r\nX: 1\r\nContent-Length: 3\r\n\r\n")
	var r Request
	if _, err := ParseRequest(in, &r); err != nil {
		t.Fatal(err)
	}
	want := AppendForwardedRequest(nil, &r, Forward{})
	c := r.Clone()
	if string(c.Scheme) != "http" || string(c.Target) != "http://h/p?q" {
		t.Errorf("scheme %q, target %q", c.Scheme, c.Target)
	}
	clear(in)
	clear(r.Fields)
	if got := AppendForwardedRequest(nil, c, Forward{}); string(got) != string(want) {
		t.Errorf("got %q, want %q", got, want)
	}
}
