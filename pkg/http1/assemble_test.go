package http1

import (
	"bytes"
	"fmt"
	"strings"
	"testing"
)

// head reads "name: value" lines, pseudo-header fields among them, as a decoder of HTTP/2 would hand them over.
func head(lines string) (p Pseudo, status []byte, fields []Field) {
	for line := range strings.SplitSeq(strings.TrimSuffix(lines, "\n"), "\n") {
		i := strings.Index(line[1:], ":") + 1
		name, value := line[:i], []byte(strings.TrimPrefix(line[i+1:], " "))
		switch name {
		case ":method":
			p.Method = value
		case ":scheme":
			p.Scheme = value
		case ":authority":
			p.Authority = value
		case ":path":
			p.Path = value
		case ":protocol":
			p.Protocol = value
		case ":status":
			status = value
		default:
			fields = append(fields, Field{[]byte(name), value})
		}
	}
	return p, status, fields
}

const get = ":method: GET\n:scheme: https\n:authority: a.test\n:path: /x?y=1\n"

func TestAssembleRequest(t *testing.T) {
	for _, test := range []struct {
		name, in string
		end      bool
		want     string // what goes to the server, or the error
	}{
		{"get", get + "accept: */*", true, "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\naccept: */*\r\n\r\n"},
		{"authority and host", get + "host: A.test", true, "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\n\r\n"},
		{"host only", ":method: GET\n:scheme: http\n:path: /\nhost: a.test:81", true, "GET / HTTP/1.1\r\nHost: a.test:81\r\n\r\n"},
		{"cookies", get + "cookie: a=1\nx: y\ncookie: b=2\ncookie: c=3", true, "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\ncookie: a=1; b=2; c=3\r\nx: y\r\n\r\n"},
		{"trailers", get + "te: trailers", true, "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\nConnection: TE\r\nTE: trailers\r\n\r\n"},
		{"length", get + "content-length: 3", false, "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 3\r\n\r\n"},
		{"length 0", get + "content-length: 0", true, "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\nContent-Length: 0\r\n\r\n"},
		{"no length", get, false, "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"continue", get + "expect: 100-continue", false, "GET /x?y=1 HTTP/1.1\r\nHost: a.test\r\nexpect: 100-continue\r\nTransfer-Encoding: chunked\r\n\r\n"},
		{"options", ":method: OPTIONS\n:scheme: https\n:authority: a.test\n:path: *", true, "OPTIONS * HTTP/1.1\r\nHost: a.test\r\n\r\n"},
		{"extended connect", ":method: CONNECT\n:protocol: websocket\n:scheme: https\n:authority: a.test\n:path: /chat\nsec-websocket-version: 13", false,
			"GET /chat HTTP/1.1\r\nHost: a.test\r\nsec-websocket-version: 13\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n"},

		{"no method", ":scheme: https\n:authority: a\n:path: /", true, "400 missing"},
		{"no scheme", ":method: GET\n:authority: a\n:path: /", true, "400 missing"},
		{"no path", ":method: GET\n:scheme: https\n:authority: a", true, "400 missing"},
		{"empty path", ":method: GET\n:scheme: https\n:authority: a\n:path: ", true, "400 invalid request target"},
		{"no host", ":method: GET\n:scheme: https\n:path: /", true, "400 no Host"},
		{"method with space", ":method: GET /\n:scheme: https\n:authority: a\n:path: /", true, "400 invalid method"},
		{"method with CRLF", ":method: GET\r\n:scheme: https\n:authority: a\n:path: /", true, "400 invalid method"},
		{"long method", ":method: " + strings.Repeat("A", 35) + "\n:scheme: https\n:authority: a\n:path: /", true, "501 method"},
		{"scheme", ":method: GET\n:scheme: ftp\n:authority: a\n:path: /", true, "400 unknown scheme"},
		{"scheme with space", ":method: GET\n:scheme: https \n:authority: a\n:path: /", true, "400 unknown scheme"},
		{"absolute path", ":method: GET\n:scheme: https\n:authority: a\n:path: https://b/", true, "400 invalid request target"},
		{"relative path", ":method: GET\n:scheme: https\n:authority: a\n:path: x", true, "400 invalid request target"},
		{"path with space", ":method: GET\n:scheme: https\n:authority: a\n:path: / HTTP/1.1", true, "400 invalid request target"},
		{"path with CR", ":method: GET\n:scheme: https\n:authority: a\n:path: /\r", true, "400 invalid request target"},
		{"path with fragment", ":method: GET\n:scheme: https\n:authority: a\n:path: /#a", true, "400 invalid request target"},
		{"path with bytes above ASCII", ":method: GET\n:scheme: https\n:authority: a\n:path: /\xe4", true, "400 invalid request target"},
		{"path with bad escape", ":method: GET\n:scheme: https\n:authority: a\n:path: /%4", true, "400 invalid request target"},
		{"asterisk", ":method: GET\n:scheme: https\n:authority: a\n:path: *", true, "400 invalid request target"},
		{"long path", ":method: GET\n:scheme: https\n:authority: a\n:path: /" + strings.Repeat("a", 8<<10), true, "414 "},
		{"userinfo", ":method: GET\n:scheme: https\n:authority: u@a\n:path: /", true, "400 invalid Host"},
		{"authority with slash", ":method: GET\n:scheme: https\n:authority: a/b\n:path: /", true, "400 invalid Host"},
		{"authority with space", ":method: GET\n:scheme: https\n:authority: a b\n:path: /", true, "400 invalid Host"},
		{"empty authority", ":method: GET\n:scheme: https\n:authority: \n:path: /", true, "400 invalid Host"},
		{"other host", get + "host: b.test", true, "400 Host differs"},
		{"host with a port", get + "host: a.test:443", true, "400 Host differs"},
		{"two hosts", get + "host: a.test\nhost: a.test", true, "400 more than one Host"},
		{"empty host", get + "host: ", true, "400 invalid Host"},
		{"upper case", get + "Accept: */*", true, "400 upper case"},
		{"space in name", get + "a b: c", true, "400 invalid character in field name"},
		{"CR in name", get + "a\r: c", true, "400 invalid character in field name"},
		{"NUL in name", get + "a\x00: c", true, "400 invalid character in field name"},
		{"bytes above ASCII in name", get + "\xe4: c", true, "400 invalid character in field name"},
		{"CR in value", get + "a: b\rc", true, "400 control character"},
		{"NUL in value", get + "a: b\x00", true, "400 control character"},
		{"space before value", get + "a:  b", true, "400 whitespace around"},
		{"tab behind value", get + "a: b\t", true, "400 whitespace around"},
		{"connection", get + "connection: close", true, "400 connection-specific"},
		{"keep-alive", get + "keep-alive: 1", true, "400 connection-specific"},
		{"proxy-connection", get + "proxy-connection: close", true, "400 connection-specific"},
		{"upgrade", get + "upgrade: websocket", true, "400 connection-specific"},
		{"transfer-encoding", get + "transfer-encoding: chunked", false, "400 connection-specific"},
		{"te", get + "te: gzip", true, "400 connection-specific"},
		{"te with trailers and more", get + "te: trailers, gzip", true, "400 connection-specific"},
		{"negative length", get + "content-length: -1", false, "400 invalid Content-Length"},
		{"length with plus", get + "content-length: +1", false, "400 invalid Content-Length"},
		{"length list", get + "content-length: 1, 1", false, "400 invalid Content-Length"},
		{"two lengths", get + "content-length: 1\ncontent-length: 1", false, "400 more than one Content-Length"},
		{"length without content", get + "content-length: 1", true, "400 Content-Length of a message without"},
		{"expectation", get + "expect: 200", false, "417 "},
		{"connect", ":method: CONNECT\n:authority: a:443", false, "501 CONNECT"},
		{"protocol without connect", get + ":protocol: websocket", false, "400 missing or unexpected"},
		{"empty protocol", ":method: CONNECT\n:protocol: \n:scheme: https\n:authority: a\n:path: /", false, "400 invalid protocol"},
		{"protocol with CR", ":method: CONNECT\n:protocol: a\rb\n:scheme: https\n:authority: a\n:path: /", false, "400 invalid protocol"},
		{"protocol h2c", ":method: CONNECT\n:protocol: h2c\n:scheme: https\n:authority: a\n:path: /", false, "400 invalid protocol"},
		{"extended connect that ends", ":method: CONNECT\n:protocol: websocket\n:scheme: https\n:authority: a\n:path: /", true, "400 missing or unexpected"},
		{"extended connect with length", ":method: CONNECT\n:protocol: websocket\n:scheme: https\n:authority: a\n:path: /\ncontent-length: 4", false, "400 missing or unexpected"},
		{"extended connect without path", ":method: CONNECT\n:protocol: websocket\n:scheme: https\n:authority: a", false, "400 missing or unexpected"},
		{"many fields", get + strings.Repeat("a: b\n", 101), true, "431 too many"},
		{"long head", get + "a: " + strings.Repeat("b", 16<<10), true, "431 head too large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			p, _, fields := head(test.in)
			r := Request{Fields: fields, Upgrade: []byte("left over")}
			var got string
			if err := AssembleRequest(&r, p, test.end); err != nil {
				got = fmt.Sprint(err.(*Error).Status, " ", err)
				if !strings.HasPrefix(got, test.want) {
					t.Errorf("%s, want %s", got, test.want)
				}
				return
			}
			out := AppendForwardedRequest(nil, &r, Forward{Remote: loopback, Proto: "https"})
			end := bytes.Index(out, []byte("X-Forwarded-For"))
			if got := string(out[:end]) + "\r\n"; got != test.want {
				t.Errorf("%q, want %q", got, test.want)
			}
			sameAgain(t, &r, out)
		})
	}
}

// sameAgain checks that out, the head of r for the server, reads back as r.
func sameAgain(t *testing.T, r *Request, out []byte) {
	t.Helper()
	var again Request
	n, err := Limits{MaxHead: 1 << 20, MaxLine: 1 << 20, MaxFields: 200}.ParseRequest(out, &again)
	if n != len(out) || err != nil {
		t.Fatalf("%q: %d, %v", out, n, err)
	}
	if !bytes.Equal(r.Method, again.Method) || !bytes.Equal(r.Target, again.Target) || !bytes.Equal(r.Path, again.Path) ||
		!bytes.Equal(r.Query, again.Query) || !bytes.Equal(r.Host, again.Host) || r.Framing != again.Framing ||
		r.ContentLength != again.ContentLength || !bytes.Equal(r.Upgrade, again.Upgrade) || r.Expect100 != again.Expect100 {
		t.Fatalf("%+v\nbecame\n%q", r, out)
	}
}

// An HTTP/2 head that is accepted goes to the server as one message, which reads back as what was accepted.
func FuzzAssembleRequest(f *testing.F) {
	f.Add("GET", "https", "a.test", "/", "", "cookie: a\ncookie: b\nte: trailers\nhost: a.test", true)
	f.Add("POST", "http", "[::1]:80", "/%20?a", "", "content-length: 5\nexpect: 100-continue\nx-forwarded-for: a", false)
	f.Add("CONNECT", "https", "a", "/", "websocket", "forwarded: x", false)
	f.Add("OPTIONS", "https", "a", "*", "", "transfer_encoding: x\ncontent_length: 1", true)
	f.Add("POST", "http", "0", "/0", "", "", true)
	f.Fuzz(func(t *testing.T, method, scheme, authority, path, protocol, lines string, end bool) {
		r := Request{}
		if lines != "" {
			for line := range strings.SplitSeq(lines, "\n") {
				name, value, _ := strings.Cut(line, ": ")
				r.Fields = append(r.Fields, Field{[]byte(name), []byte(value)})
			}
		}
		p := Pseudo{Method: []byte(method), Scheme: []byte(scheme), Authority: []byte(authority), Path: []byte(path)}
		if authority == "" {
			p.Authority = nil
		}
		if protocol != "" {
			p.Protocol = []byte(protocol)
		}
		if AssembleRequest(&r, p, end) == nil {
			sameAgain(t, &r, AppendForwardedRequest(nil, &r, Forward{Remote: loopback, Proto: "https"}))
		}
	})
}

func TestAssembleResponse(t *testing.T) {
	for _, test := range []struct {
		name, in, method string
		end              bool
		want             string
	}{
		{"length", ":status: 200\ncontent-length: 5", "GET", false, "200 framing 1 length 5"},
		{"no length", ":status: 200\na: b", "GET", false, "200 framing 2 length -1"},
		{"no content", ":status: 200\na: b", "GET", true, "200 framing 1 length 0"},
		{"head", ":status: 200\ncontent-length: 5", "HEAD", true, "200 framing 0 length 5"},
		{"304", ":status: 304\ncontent-length: 5", "GET", true, "304 framing 0 length 5"},
		{"204", ":status: 204", "GET", true, "204 framing 0 length -1"},
		{"103", ":status: 103\nlink: x", "GET", false, "103 framing 0 length -1"},
		{"103 at the end", ":status: 103", "GET", true, "502 invalid status"},
		{"101", ":status: 101", "GET", false, "502 invalid status"},
		{"no status", "a: b", "GET", true, "502 invalid status"},
		{"short status", ":status: 20", "GET", true, "502 invalid status"},
		{"low status", ":status: 099", "GET", true, "502 invalid status"},
		{"signed status", ":status: +20", "GET", true, "502 invalid status"},
		{"long status", ":status: 0200", "GET", true, "502 invalid status"},
		{"length without content", ":status: 200\ncontent-length: 5", "GET", true, "502 Content-Length of a message without"},
		{"two lengths", ":status: 200\ncontent-length: 5\ncontent-length: 5", "GET", false, "502 more than one Content-Length"},
		{"upper case", ":status: 200\nA: b", "GET", true, "502 upper case"},
		{"LF in value", ":status: 200\na: b\rc", "GET", true, "502 control character"},
		{"connection", ":status: 200\nconnection: close", "GET", true, "502 connection-specific"},
		{"transfer-encoding", ":status: 200\ntransfer-encoding: chunked", "GET", false, "502 connection-specific"},
		{"long", ":status: 200\na: " + strings.Repeat("b", 32<<10), "GET", false, "502 head too large"},
	} {
		t.Run(test.name, func(t *testing.T) {
			_, status, fields := head(test.in)
			r := Response{Fields: fields, Close: true}
			var got string
			if err := AssembleResponse(&r, status, []byte(test.method), test.end); err != nil {
				got = fmt.Sprint(err.(*Error).Status, " ", err)
			} else {
				got = fmt.Sprintf("%d framing %d length %d", r.Status, r.Framing, r.ContentLength)
			}
			if !strings.HasPrefix(got, test.want) || r.Close {
				t.Errorf("%s, want %s", got, test.want)
			}
		})
	}
}

func TestCheckTrailers(t *testing.T) {
	for in, want := range map[string]string{
		"grpc-status: 0\ngrpc-message: ok": "",
		"x-forwarded-for: 1.2.3.4":         "field not allowed",
		"content-length: 0":                "field not allowed",
		"authorization: x":                 "field not allowed",
		"transfer-encoding: chunked":       "connection-specific",
		":status: 200":                     "invalid character in field name",
		"A: b":                             "upper case",
		"a: b\rc":                          "control character",
	} {
		var fields []Field
		for line := range strings.SplitSeq(in, "\n") {
			i := strings.Index(line[1:], ":") + 1
			fields = append(fields, Field{[]byte(line[:i]), []byte(line[i+2:])})
		}
		if err := CheckTrailers(fields); (err != nil) != (want != "") || err != nil && !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", in, err, want)
		}
	}
}

// A server behind HTTP/2 is told the same as one behind HTTP/1.1.
func TestForwardedFields(t *testing.T) {
	in := "POST /x HTTP/1.1\r\nHost: a.test:81\r\nConnection: close, x-hop, TE\r\nX-Hop: 1\r\nTE: trailers\r\nKeep-Alive: 1\r\nX-Forwarded-For: 6.6.6.6\r\nForwarded: for=6.6.6.6\r\nContent-Length: 2\r\nAccept: */*\r\n\r\n"
	var r Request
	if _, err := ParseRequest([]byte(in), &r); err != nil {
		t.Fatal(err)
	}
	fields, _ := AppendForwardedFields(nil, nil, &r, Forward{Remote: loopback, Proto: "https", Port: 443})
	var got bytes.Buffer
	for _, f := range fields {
		fmt.Fprintf(&got, "%s: %s\n", f.Name, f.Value)
	}
	want := `Accept: */*
TE: trailers
Content-Length: 2
X-Forwarded-For: 127.0.0.1
X-Real-IP: 127.0.0.1
X-Forwarded-Proto: https
X-Forwarded-Host: a.test:81
X-Forwarded-Port: 443
Forwarded: for=127.0.0.1;host="a.test:81";proto=https
`
	if got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}

	var res Response
	in = "HTTP/1.1 200 OK\r\nConnection: keep-alive, x-hop\r\nX-Hop: 1\r\nKeep-Alive: 1\r\nContent-Length: 2\r\nServer: s\r\n\r\n"
	if _, err := ParseResponse([]byte(in), methodGet, &res); err != nil {
		t.Fatal(err)
	}
	fields, _ = AppendForwardedResponseFields(nil, nil, &res)
	got.Reset()
	for _, f := range fields {
		fmt.Fprintf(&got, "%s: %s\n", f.Name, f.Value)
	}
	if want := "Server: s\nContent-Length: 2\n"; got.String() != want {
		t.Errorf("got\n%swant\n%s", got.String(), want)
	}
}
