package http1

import (
	"errors"
	"fmt"
	"testing"
)

var responses = []struct {
	name, method, in string
	want             string
}{
	{"length", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 OK length=5"},
	{"chunked", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "200 OK chunked"},
	{"until close", "GET", "HTTP/1.1 200 OK\r\n\r\n", "200 OK until-close close"},
	{"no reason", "GET", "HTTP/1.1 200 \r\nContent-Length: 0\r\n\r\n", "200  length=0"},
	{"no space behind the status", "GET", "HTTP/1.1 200\r\nContent-Length: 0\r\n\r\n", "200  length=0"},
	{"HEAD", "HEAD", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\n", "200 OK (5)"},
	{"204", "GET", "HTTP/1.1 204 No Content\r\n\r\n", "204 No Content"},
	{"304", "GET", "HTTP/1.1 304 Not Modified\r\nContent-Length: 5\r\n\r\n", "304 Not Modified (5)"},
	{"100", "GET", "HTTP/1.1 100 Continue\r\n\r\n", "100 Continue"},
	{"101", "GET", "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n", "101 Switching Protocols upgrade=websocket"},
	{"101 without Upgrade", "GET", "HTTP/1.1 101 Switching Protocols\r\n\r\n", "502 101 without Upgrade"},
	{"close", "GET", "HTTP/1.1 200 OK\r\nConnection: close\r\nContent-Length: 5\r\n\r\n", "200 OK length=5 close"},
	{"HTTP/1.0", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\n\r\n", "200 OK length=5 close"},
	{"HTTP/1.0 keep-alive", "GET", "HTTP/1.0 200 OK\r\nContent-Length: 5\r\nConnection: keep-alive\r\n\r\n", "200 OK length=5"},
	{"HTTP/1.0 chunked", "GET", "HTTP/1.0 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n", "502 Transfer-Encoding in HTTP/1.0"},
	{"both lengths", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n", "502 both Content-Length and Transfer-Encoding"},
	{"two lengths", "GET", "HTTP/1.1 200 OK\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\n", "502 more than one Content-Length"},
	{"unknown coding", "GET", "HTTP/1.1 200 OK\r\nTransfer-Encoding: gzip\r\n\r\n", "502 transfer coding not supported"},
	{"obs-fold", "GET", "HTTP/1.1 200 OK\r\nX: a\r\n b\r\n\r\n", "502 whitespace before field name"},
	{"bare LF", "GET", "HTTP/1.1 200 OK\nContent-Length: 5\n\n", "502 malformed status line"},
	{"not HTTP", "GET", "SSH-2.0-OpenSSH_9.2p1\r\n", "502 malformed status line"},
	{"status of two digits", "GET", "HTTP/1.1 20 OK\r\n\r\n", "502 malformed status line"},
	{"status of four digits", "GET", "HTTP/1.1 2000 OK\r\n\r\n", "502 malformed status line"},
	{"status below 100", "GET", "HTTP/1.1 099 OK\r\n\r\n", "502 malformed status line"},
	{"HTTP/2", "GET", "HTTP/2.0 200 OK\r\n\r\n", "502 HTTP version not supported"},
	{"NUL in reason", "GET", "HTTP/1.1 200 O\x00K\r\n\r\n", "502 malformed status line"},
}

func describeResponse(n int, err error, length int, r *Response) string {
	var e *Error
	switch {
	case errors.As(err, &e):
		return fmt.Sprint(e.Status, " ", e.Reason)
	case n != length:
		return fmt.Sprintf("used %d of %d bytes", n, length)
	}
	s := fmt.Sprintf("%d %s", r.Status, r.Reason)
	switch r.Framing {
	case NoBody:
		if r.ContentLength >= 0 {
			s += fmt.Sprintf(" (%d)", r.ContentLength)
		}
	case Length:
		s += fmt.Sprintf(" length=%d", r.ContentLength)
	case Chunked:
		s += " chunked"
	case UntilClose:
		s += " until-close"
	}
	if r.Close {
		s += " close"
	}
	if r.Upgrade != nil {
		s += " upgrade=" + string(r.Upgrade)
	}
	return s
}

func TestParseResponse(t *testing.T) {
	for _, test := range responses {
		var r Response
		n, err := ParseResponse([]byte(test.in), []byte(test.method), &r)
		if got := describeResponse(n, err, len(test.in), &r); got != test.want {
			t.Errorf("%s:\n got %s\nwant %s", test.name, got, test.want)
		}
		for i := range len(test.in) {
			n, err := ParseResponse([]byte(test.in[:i]), []byte(test.method), &r)
			if n != 0 || err != nil && describeResponse(n, err, 0, &r) != test.want {
				t.Errorf("%s: cut at %d: %d, %v", test.name, i, n, err)
			}
		}
	}
}
