//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"
)

// smuggled is a request that may never be one at a target.
const smuggled = "GET /smuggled HTTP/1.1\r\nHost: app.example.com\r\n\r\n"

// desync starts the system of the tests below: a recorder behind https://app.example.com.
func desync(t *testing.T) (*system, *recorder) {
	t.Helper()
	r := startRecorder(t)
	return startSystem(t, service{"app", "https://app.example.com", "http://" + r.addr}), r
}

// alone checks what a target saw of one case: at most one request, for the path /case,
// with this body if it is whole, and no byte more; and that the next visitor's request is
// answered as if nothing had happened.
func alone(t *testing.T, s *system, r *recorder, next *http.Client, body string) (arrived []seen) {
	t.Helper()
	resp, err := next.Get("https://app.example.com/next")
	if err != nil {
		t.Fatalf("the next visitor: %v", err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != 200 || string(b) != "saw GET /next" {
		t.Errorf("the next visitor: %s %q %v", resp.Status, b, err)
	}
	all, wrong := r.take()
	for _, w := range wrong {
		t.Errorf("the target got what is no request: %s", w)
	}
	nexts := 0
	for _, q := range all {
		switch {
		case q.Method == "GET" && q.URL.Path == "/next" && q.body == "":
			nexts++
		default:
			arrived = append(arrived, q)
		}
	}
	if nexts != 1 {
		t.Errorf("the next visitor's request arrived %d times", nexts)
	}
	if len(arrived) > 1 {
		t.Errorf("%d requests arrived", len(arrived))
	}
	for _, q := range arrived {
		if q.URL.Path != "/case" || q.Host != "app.example.com" || q.Header.Get("X-Forwarded-Proto") != "https" || !strings.HasPrefix(q.Header.Get("X-Forwarded-For"), "127.0.") ||
			q.err == nil && q.body != body || !strings.HasPrefix(body, q.body) {
			t.Errorf("arrived: %s %s %s, body %q %v, of\n%s", q.Method, q.Host, q.URL, q.body, q.err, q.raw)
		}
		for name, values := range q.Header {
			// A server that hands fields on as variables takes the two for one.
			if loose := strings.ReplaceAll(strings.ToLower(name), "_", "-"); len(values) > 1 ||
				strings.Contains(name, "_") && (strings.HasPrefix(loose, "x-forwarded-") || loose == "content-length" || loose == "transfer-encoding") {
				t.Errorf("arrived: %s: %q", name, values)
			}
		}
	}
	return arrived
}

// TestSmuggling sends requests that two servers could understand differently. What follows
// each of them must never be answered as a request of its own.
func TestSmuggling(t *testing.T) {
	t.Parallel()
	s, rec := desync(t)
	next := s.visitor()
	const host = "Host: app.example.com\r\n"
	post := func(head, body string) string { return "POST /case HTTP/1.1\r\n" + host + head + "\r\n" + body }
	chunked := func(body string) string { return post("Transfer-Encoding: chunked\r\n", body) }
	for name, request := range map[string]string{
		"length and chunked":           post("Content-Length: 4\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
		"chunked and length":           post("Transfer-Encoding: chunked\r\nContent-Length: 4\r\n", "0\r\n\r\n"),
		"chunked and empty length":     post("Transfer-Encoding: chunked\r\nContent-Length:\r\n", "0\r\n\r\n"),
		"two lengths":                  post("Content-Length: 4\r\nContent-Length: 5\r\n", "abcde"),
		"two equal lengths":            post("Content-Length: 4\r\nContent-Length: 4\r\n", "abcd"),
		"list of lengths":              post("Content-Length: 4, 5\r\n", "abcde"),
		"list of equal lengths":        post("Content-Length: 4, 4\r\n", "abcd"),
		"signed length":                post("Content-Length: +4\r\n", "abcd"),
		"negative length":              post("Content-Length: -1\r\n", "abcd"),
		"hex length":                   post("Content-Length: 0x4\r\n", "abcd"),
		"length with an exponent":      post("Content-Length: 4e0\r\n", "abcd"),
		"length with a blank":          post("Content-Length: 4 4\r\n", "abcd"),
		"length behind a tab":          post("Content-Length: \v4\r\n", "abcd"),
		"empty length":                 post("Content-Length:\r\n", ""),
		"huge length":                  post("Content-Length: 99999999999999999999\r\n", ""),
		"length beyond 64 bits":        post("Content-Length: 18446744073709551620\r\n", "abcd"),
		"chunked twice":                post("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
		"chunked and identity":         post("Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n", "0\r\n\r\n"),
		"chunked not last":             post("Transfer-Encoding: chunked, identity\r\n", "0\r\n\r\n"),
		"chunked at last":              post("Transfer-Encoding: identity, chunked\r\n", "0\r\n\r\n"),
		"chunked in quotes":            post("Transfer-Encoding: \"chunked\"\r\n", "0\r\n\r\n"),
		"chunked with a parameter":     post("Transfer-Encoding: chunked;q=1\r\n", "0\r\n\r\n"),
		"nearly chunked":               post("Transfer-Encoding: xchunked\r\n", "0\r\n\r\n"),
		"chunked behind a control":     post("Transfer-Encoding: \x0bchunked\r\n", "0\r\n\r\n"),
		"empty coding":                 post("Transfer-Encoding:\r\n", ""),
		"coding in a folded line":      post("Transfer-Encoding:\r\n chunked\r\n", "0\r\n\r\n"),
		"space before the colon":       post("Content-Length : 4\r\n", "abcd"),
		"space before chunked's colon": post("Transfer-Encoding : chunked\r\n", "0\r\n\r\n"),
		"tab before the colon":         post("Transfer-Encoding\t: chunked\r\n", "0\r\n\r\n"),
		"a line that begins blank":     "POST /case HTTP/1.1\r\n Content-Length: 4\r\n" + host + "\r\nabcd",
		"a line without a colon":       post("Content-Length\r\n", "abcd"),
		"a field without a name":       post(": 4\r\n", "abcd"),
		"folded line":                  post("X: a\r\n b\r\n", ""),
		"folded with a tab":            post("X: a\r\n\tTransfer-Encoding: chunked\r\n", ""),
		"bare CR":                      post("X: a\rTransfer-Encoding: chunked\r\n", ""),
		"bare LF behind a field":       post("X: a\nTransfer-Encoding: chunked\r\n", "0\r\n\r\n"),
		"bare LF behind the head":      "POST /case HTTP/1.1\n" + host + "\n",
		"CR CR LF":                     post("X: a\r\r\n", ""),
		"NUL":                          post("X: \x00\r\n", ""),
		"NUL in a name":                post("Content-Length\x00: 4\r\n", "abcd"),
		"high bytes in a name":         post("Content-Length\xc2\xa0: 4\r\n", "abcd"),
		"two hosts":                    "GET /case HTTP/1.1\r\n" + host + host + "\r\n",
		"two different hosts":          "GET /case HTTP/1.1\r\n" + host + "Host: other.example.com\r\n\r\n",
		"no host":                      "GET /case HTTP/1.1\r\n\r\n",
		"empty host":                   "GET /case HTTP/1.1\r\nHost:\r\n\r\n",
		"host of another":              "GET http://other.example.com/ HTTP/1.1\r\nHost: app.example.com:x\r\n\r\n",
		"host with a user":             "GET /case HTTP/1.1\r\nHost: app.example.com@other.example.com\r\n\r\n",
		"host with a path":             "GET /case HTTP/1.1\r\nHost: app.example.com/x\r\n\r\n",
		"host with a list":             "GET /case HTTP/1.1\r\nHost: app.example.com, other.example.com\r\n\r\n",
		"target with a user":           "GET http://other@app.example.com/case HTTP/1.1\r\n" + host + "\r\n",
		"space in the target":          "GET /case x HTTP/1.1\r\n" + host + "\r\n",
		"tab in the target":            "GET /case\tx HTTP/1.1\r\n" + host + "\r\n",
		"control in the target":        "GET /case\x01 HTTP/1.1\r\n" + host + "\r\n",
		"fragment in the target":       "GET /case#x HTTP/1.1\r\n" + host + "\r\n",
		"two spaces":                   "GET  /case HTTP/1.1\r\n" + host + "\r\n",
		"tab for a space":              "GET\t/case HTTP/1.1\r\n" + host + "\r\n",
		"no version":                   "GET /case\r\n" + host + "\r\n",
		"version in small letters":     "GET /case http/1.1\r\n" + host + "\r\n",
		"space behind the version":     "GET /case HTTP/1.1 \r\n" + host + "\r\n",
		"chunked in HTTP/1.0":          "POST /case HTTP/1.0\r\n" + host + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"bad chunk":                    chunked("+4\r\nabcd\r\n0\r\n\r\n"),
		"hex prefix":                   chunked("0x4\r\nabcd\r\n0\r\n\r\n"),
		"blank before the size":        chunked(" 4\r\nabcd\r\n0\r\n\r\n"),
		"blank behind the size":        chunked("4 \r\nabcd\r\n0\r\n\r\n"),
		"chunk of a negative size":     chunked("-4\r\nabcd\r\n0\r\n\r\n"),
		"size of 65 bits":              chunked("10000000000000004\r\nabcd\r\n0\r\n\r\n"),
		"no size":                      chunked("\r\n\r\n0\r\n\r\n"),
		"chunk without end":            chunked("4\r\nabcdX\r\n0\r\n\r\n"),
		"chunk with a bare LF":         chunked("4\nabcd\n0\n\n"),
		"LF behind the size":           chunked("4\r\nabcd\r\n0\n\r\n"),
		"CR behind the size":           chunked("4\rabcd\r\n0\r\n\r\n"),
		"LF in a chunk extension":      chunked("4;a\nb\r\nabcd\r\n0\r\n\r\n"),
		"CR in a chunk extension":      chunked("4;a\rb\r\nabcd\r\n0\r\n\r\n"),
		"long chunk extension":         chunked("4;" + strings.Repeat("a", 9<<10) + "\r\nabcd\r\n0\r\n\r\n"),
		"LF behind the chunk's bytes":  chunked("4\r\nabcd\n0\r\n\r\n"),
		"length in the trailers":       chunked("4\r\nabcd\r\n0\r\nContent-Length: 50\r\n\r\n"),
		"coding in the trailers":       chunked("4\r\nabcd\r\n0\r\nTransfer-Encoding: chunked\r\n\r\n"),
		"host in the trailers":         chunked("4\r\nabcd\r\n0\r\nHost: other.example.com\r\n\r\n"),
		"LF in the trailers":           chunked("4\r\nabcd\r\n0\r\nX: y\n\r\n"),
		"preface of HTTP/2":            "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"CONNECT":                      "CONNECT app.example.com:443 HTTP/1.1\r\n" + host + "\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			c := dialTLS(t, s.https, "app.example.com")
			c.SetDeadline(time.Now().Add(waitLimit))
			io.WriteString(c, request+smuggled)
			answer, err := io.ReadAll(c)
			if err != nil {
				t.Errorf("the connection is not closed in order: %v", err)
			}
			if !strings.HasPrefix(string(answer), "HTTP/1.1 4") && !strings.HasPrefix(string(answer), "HTTP/1.1 50") ||
				strings.Count(string(answer), "HTTP/1.1 ") != 1 || strings.Contains(string(answer), "saw") {
				t.Errorf("want one refusal, got\n%s", answer)
			}
			for _, q := range alone(t, s, rec, next, "abcd") {
				if q.err == nil {
					t.Errorf("a whole request arrived: %q", q.raw)
				}
			}
		})
	}
	// These are in order, if strange, and have one meaning.
	for name, c := range map[string]struct{ request, body string }{
		"chunk extensions":            {chunked("4;a=b;c=\"d\"\r\nabcd\r\n0;x\r\n\r\n"), "abcd"},
		"many zeros":                  {chunked("000000004\r\nabcd\r\n000\r\n\r\n"), "abcd"},
		"chunks that look like heads": {chunked(fmt.Sprintf("%x\r\n", len(smuggled)) + smuggled + "\r\n0\r\n\r\n"), smuggled},
		"a body that is a request":    {post(fmt.Sprintf("Content-Length: %d\r\n", len(smuggled)), smuggled), smuggled},
		"GET with a body":             {"GET /case HTTP/1.1\r\n" + host + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(smuggled)) + smuggled, smuggled},
		"length of many digits":       {post("Content-Length: 000004\r\n", "abcd"), "abcd"},
		"absolute target":             {"POST https://app.example.com/case HTTP/1.1\r\nHost: app.example.com\r\nContent-Length: 4\r\n\r\nabcd", "abcd"},
		"target and host that differ": {"POST https://app.example.com/case HTTP/1.1\r\nHost: other.example.com\r\nContent-Length: 4\r\n\r\nabcd", "abcd"},
		"names with underscores":      {post("Content_Length: 50\r\nTransfer_Encoding: chunked\r\nX_Forwarded_For: 6.6.6.6\r\nContent-Length: 4\r\n", "abcd"), "abcd"},
		"length is no hop":            {post("Connection: Content-Length\r\nContent-Length: 4\r\n", "abcd"), "abcd"},
		"coding is no hop":            {post("Connection: Transfer-Encoding\r\nTransfer-Encoding: chunked\r\n", "4\r\nabcd\r\n0\r\n\r\n"), "abcd"},
		"host is no hop":              {post("Connection: Host, X-Forwarded-For, X-Forwarded-Proto\r\nContent-Length: 4\r\n", "abcd"), "abcd"},
		"upgrade to HTTP/2":           {post("Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\nContent-Length: 4\r\n", "abcd"), "abcd"},
		"WebSocket that is refused":   {post("Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 777\r\nContent-Length: 4\r\n", "abcd"), "abcd"},
	} {
		t.Run(name, func(t *testing.T) {
			v := dialTLS(t, s.https, "app.example.com")
			v.SetDeadline(time.Now().Add(waitLimit))
			io.WriteString(v, c.request)
			resp, err := http.ReadResponse(bufio.NewReader(v), nil)
			if err != nil {
				t.Fatal(err)
			}
			if resp.StatusCode != 200 {
				t.Errorf("%s", resp.Status)
			}
			arrived := alone(t, s, rec, next, c.body)
			if len(arrived) != 1 || arrived[0].err != nil || strings.Contains(arrived[0].raw, "Upgrade: h2c") {
				t.Errorf("%d arrived: %+v", len(arrived), arrived)
			}
		})
	}
	t.Run("pipelined requests are answered in order", func(t *testing.T) {
		c := dialTLS(t, s.https, "app.example.com")
		c.SetDeadline(time.Now().Add(waitLimit))
		var all strings.Builder
		for i := range 50 {
			fmt.Fprintf(&all, "GET /%d HTTP/1.1\r\n%s\r\n", i, host)
		}
		io.WriteString(c, all.String())
		r := bufio.NewReader(c)
		for i := range 50 {
			resp, err := http.ReadResponse(r, nil)
			if err != nil {
				t.Fatalf("answer %d: %v", i, err)
			}
			body, _ := io.ReadAll(resp.Body)
			if want := fmt.Sprintf("saw GET /%d", i); string(body) != want {
				t.Fatalf("answer %d: %q", i, body)
			}
		}
	})
}
