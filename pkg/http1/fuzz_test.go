package http1

import (
	"bufio"
	"bytes"
	"io"
	"net/http"
	"slices"
	"testing"
)

// What we accept net/http accepts as well and understands the same: method, target, host, fields,
// framing and body. (It accepts more.)
func FuzzRequestAgainstNetHTTP(f *testing.F) {
	for _, test := range requests {
		f.Add([]byte(test.in))
	}
	for _, test := range bodies {
		if test.framing == Chunked {
			f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nTransfer-Encoding: chunked\r\n\r\n" + test.in))
		}
	}
	f.Add([]byte("POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 5\r\n\r\nhello"))
	f.Fuzz(func(t *testing.T, in []byte) {
		if bytes.HasPrefix(in, []byte("\r\n")) {
			return // http.ReadRequest leaves the empty line to its caller
		}
		var r Request
		n, err := ParseRequest(in, &r)
		if n == 0 || err != nil {
			return
		}
		std, err := http.ReadRequest(bufio.NewReader(bytes.NewReader(in)))
		if err != nil {
			t.Fatalf("net/http: %v: %q", err, in)
		}
		if std.Method != string(r.Method) || std.RequestURI != string(r.Target) || std.Host != string(r.Host) {
			t.Fatalf("%s %s host %s; net/http: %s %s host %s", r.Method, r.Target, r.Host, std.Method, std.RequestURI, std.Host)
		}
		if chunked := slices.Equal(std.TransferEncoding, []string{"chunked"}); chunked != (r.Framing == Chunked) {
			t.Fatalf("framing %d; net/http: %q", r.Framing, std.TransferEncoding)
		}
		if r.Framing != Chunked && std.ContentLength != max(r.ContentLength, 0) {
			t.Fatalf("length %d; net/http: %d", r.ContentLength, std.ContentLength)
		}
		if std.Close && !r.Close {
			t.Fatal("net/http closes, we do not")
		}
		fields := http.Header{}
		for _, f := range r.Fields {
			fields.Add(string(f.Name), string(f.Value))
		}
		for name, values := range fields {
			switch name {
			case "Host", "Transfer-Encoding", "Trailer", "Cache-Control", "Content-Length":
				continue // net/http takes these out or changes them
			}
			if !slices.Equal(std.Header[name], values) {
				t.Fatalf("%s: %q; net/http: %q", name, values, std.Header[name])
			}
		}

		payload, end := decode(r.Framing, r.ContentLength, string(in[n:]))
		if len(end) < 4 || end[:4] != "done" {
			return
		}
		body, err := io.ReadAll(std.Body)
		if err != nil || string(body) != payload {
			t.Fatalf("body %q; net/http: %q, %v", payload, body, err)
		}
	})
}

// What we forward reads back as the same message, whatever came in.
func FuzzForwardedRequest(f *testing.F) {
	for _, test := range requests {
		f.Add([]byte(test.in))
	}
	f.Fuzz(func(t *testing.T, in []byte) {
		var r, again Request
		if n, err := ParseRequest(in, &r); n == 0 || err != nil || r.Host == nil || string(r.Method) == "CONNECT" {
			return
		}
		out := AppendForwardedRequest(nil, &r, Forward{Remote: loopback, Proto: "https"})
		n, err := Limits{MaxHead: 1 << 20, MaxLine: 1 << 20, MaxFields: 200}.ParseRequest(out, &again)
		if n != len(out) || err != nil {
			t.Fatalf("%q: %d, %v", out, n, err)
		}
		if !bytes.Equal(r.Method, again.Method) || !bytes.Equal(r.Path, again.Path) || !bytes.Equal(r.Host, again.Host) ||
			r.Framing != again.Framing || r.ContentLength != again.ContentLength || !bytes.Equal(r.Upgrade, again.Upgrade) {
			t.Fatalf("%q\nbecame\n%q", in, out)
		}
		for i, f := range again.Fields {
			for _, g := range again.Fields[:i] {
				if equalFoldBytes(f.Name, g.Name) && isForwarding(f.Name) {
					t.Fatalf("%s twice: %q", f.Name, out)
				}
			}
		}
	})
}

func FuzzResponse(f *testing.F) {
	for _, test := range responses {
		f.Add([]byte(test.in), test.method == "HEAD")
	}
	f.Fuzz(func(t *testing.T, in []byte, head bool) {
		method := "GET"
		if head {
			method = "HEAD"
		}
		var r Response
		n, err := ParseResponse(in, []byte(method), &r)
		if n == 0 || err != nil {
			return
		}
		std, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(in)), &http.Request{Method: method})
		if err != nil {
			t.Fatalf("net/http: %v: %q", err, in)
		}
		if std.StatusCode != r.Status {
			t.Fatalf("status %d; net/http: %d", r.Status, std.StatusCode)
		}
		if chunked := slices.Equal(std.TransferEncoding, []string{"chunked"}); r.Framing == Chunked && !chunked {
			t.Fatalf("framing %d; net/http: %q", r.Framing, std.TransferEncoding)
		}
		if r.Framing == Length && std.ContentLength != r.ContentLength || r.Framing == UntilClose && std.ContentLength != -1 {
			t.Fatalf("length %d; net/http: %d", r.ContentLength, std.ContentLength)
		}
		payload, end := decode(r.Framing, r.ContentLength, string(in[n:]))
		if len(end) < 4 || end[:4] != "done" {
			return
		}
		body, err := io.ReadAll(std.Body)
		if err != nil || string(body) != payload {
			t.Fatalf("body %q; net/http: %q, %v", payload, body, err)
		}
	})
}

// However a body is cut, the same comes out.
func FuzzBody(f *testing.F) {
	for _, test := range bodies {
		f.Add([]byte(test.in), uint8(test.framing), test.length, uint16(1), uint16(5))
	}
	f.Fuzz(func(t *testing.T, in []byte, framing uint8, length int64, a, b uint16) {
		payload, end := decode(Framing(framing%4), length, string(in))
		x, y := int(a)%(len(in)+1), int(b)%(len(in)+1)
		if p, e := decode(Framing(framing%4), length, string(in), min(x, y), max(x, y)); p != payload || e != end {
			t.Fatalf("cut at %d and %d: %q, %s; uncut: %q, %s", x, y, p, e, payload, end)
		}
	})
}
