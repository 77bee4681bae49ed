//go:build linux

package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/net/http2"
)

// verdict is what may become of a request.
type verdict int

const (
	refused verdict = iota // an error for the visitor; at most an unfinished request for the target
	whole                  // the target sees it once, whole
	either                 // one of the two
	tunnel                 // the target may see it, as a GET, and refuses: 200 would be a tunnel for the visitor
)

// downgrade is a request in fields, as HTTP/2 and HTTP/3 have them, that would be another
// one, or two, if it was written down in HTTP/1.1 as it came.
type downgrade struct {
	name    string
	fields  [][2]string // instead of those of a POST to /case
	more    [][2]string // behind those
	body    string      // in one frame; "" ends with the fields
	trailer [][2]string
	want    verdict
}

// post are the fields of a POST to /case, some of them replaced by others: none at all for
// nil.
func post(replace map[string][]string) (fields [][2]string) {
	for _, f := range [][2]string{{":method", "POST"}, {":scheme", "https"}, {":authority", "app.example.com"}, {":path", "/case"}} {
		values, ok := replace[f[0]]
		if !ok {
			values = []string{f[1]}
		}
		for _, v := range values {
			fields = append(fields, [2]string{f[0], v})
		}
	}
	return fields
}

func with(name string, values ...string) map[string][]string {
	return map[string][]string{name: values}
}

var downgrades = func() []downgrade {
	length := fmt.Sprint(len(smuggled))
	list := []downgrade{
		{name: "as it should be", body: "abcd", want: whole},
		{name: "with a length", more: [][2]string{{"content-length", length}}, body: smuggled, want: whole},
		{name: "without a body", want: whole},
		{name: "GET with a body", fields: post(with(":method", "GET")), body: smuggled, want: whole},
		{name: "trailers", body: "abcd", trailer: [][2]string{{"x-sum", "1"}}, want: whole},
		{name: "te: trailers", more: [][2]string{{"te", "trailers"}}, body: "abcd", want: whole},
		{name: "host and :authority agree", more: [][2]string{{"host", "app.example.com"}}, body: "abcd", want: whole},
		{name: "host for :authority", fields: post(with(":authority")), more: [][2]string{{"host", "app.example.com"}}, body: "abcd", want: either},
		{name: "forwarding fields", more: [][2]string{{"x-forwarded-for", "6.6.6.6"}, {"x_forwarded_for", "6.6.6.6"}, {"x-forwarded-proto", "gopher"}, {"forwarded", "for=6.6.6.6"}}, body: "abcd", want: whole},
		{name: "names with underscores", more: [][2]string{{"content_length", "50"}, {"transfer_encoding", "chunked"}}, body: "abcd", want: either},
		{name: "another scheme", fields: post(with(":scheme", "http")), body: "abcd", want: either},

		// A length that is not that of the body: H2.CL.
		{name: "length 0", more: [][2]string{{"content-length", "0"}}, body: smuggled, want: either}, // it is whole before the body comes
		{name: "length too short", more: [][2]string{{"content-length", "4"}}, body: "abcd" + smuggled},
		{name: "length too long", more: [][2]string{{"content-length", "50"}}, body: "abcd"},
		{name: "length without a body", more: [][2]string{{"content-length", "4"}}},
		{name: "two lengths", more: [][2]string{{"content-length", "4"}, {"content-length", "5"}}, body: "abcd"},
		{name: "two equal lengths", more: [][2]string{{"content-length", "4"}, {"content-length", "4"}}, body: "abcd", want: either},
		{name: "list of lengths", more: [][2]string{{"content-length", "4, 4"}}, body: "abcd"},
		{name: "signed length", more: [][2]string{{"content-length", "+4"}}, body: "abcd"},
		{name: "empty length", more: [][2]string{{"content-length", ""}}, body: "abcd"},
		{name: "huge length", more: [][2]string{{"content-length", "18446744073709551620"}}, body: "abcd"},
		// Fields of a connection that is not there: H2.TE.
		{name: "transfer-encoding: chunked", more: [][2]string{{"transfer-encoding", "chunked"}}, body: "0\r\n\r\n" + smuggled},
		{name: "transfer-encoding: identity", more: [][2]string{{"transfer-encoding", "identity"}}, body: "abcd"},
		{name: "chunked and a length", more: [][2]string{{"transfer-encoding", "chunked"}, {"content-length", "4"}}, body: "abcd"},
		{name: "connection: close", more: [][2]string{{"connection", "close"}}, body: "abcd"},
		{name: "connection: a field", more: [][2]string{{"connection", "content-length"}, {"content-length", "4"}}, body: "abcd"},
		{name: "keep-alive", more: [][2]string{{"keep-alive", "timeout=5"}}, body: "abcd"},
		{name: "proxy-connection", more: [][2]string{{"proxy-connection", "close"}}, body: "abcd"},
		{name: "upgrade", more: [][2]string{{"upgrade", "websocket"}}, body: "abcd"},
		{name: "upgrade: h2c", more: [][2]string{{"upgrade", "h2c"}, {"http2-settings", "AAMAAABkAAQAAP__"}}, body: "abcd"},
		{name: "te: chunked", more: [][2]string{{"te", "chunked"}}, body: "abcd"},
		{name: "te: trailers, chunked", more: [][2]string{{"te", "trailers, chunked"}}, body: "abcd"},
		{name: "an unknown expectation", more: [][2]string{{"expect", "200-ok"}}, body: "abcd"},
		// Pseudo-fields.
		{name: "no method", fields: post(with(":method")), body: "abcd"},
		{name: "no scheme", fields: post(with(":scheme")), body: "abcd"},
		{name: "no path", fields: post(with(":path")), body: "abcd"},
		{name: "no host at all", fields: post(with(":authority")), body: "abcd"},
		{name: "two methods", fields: post(with(":method", "POST", "GET")), body: "abcd"},
		{name: "two schemes", fields: post(with(":scheme", "https", "https")), body: "abcd"},
		{name: "two authorities", fields: post(with(":authority", "app.example.com", "app.example.com")), body: "abcd"},
		{name: "two paths", fields: post(with(":path", "/case", "/smuggled")), body: "abcd"},
		{name: "empty method", fields: post(with(":method", "")), body: "abcd"},
		{name: "empty scheme", fields: post(with(":scheme", "")), body: "abcd"},
		{name: "empty path", fields: post(with(":path", "")), body: "abcd"},
		{name: "empty authority", fields: post(with(":authority", "")), body: "abcd"},
		{name: "unknown pseudo-field", more: [][2]string{{":foo", "bar"}}, body: "abcd"},
		{name: ":status", more: [][2]string{{":status", "200"}}, body: "abcd"},
		{name: ":protocol without CONNECT", more: [][2]string{{":protocol", "websocket"}}, body: "abcd"},
		{name: "pseudo-field behind a field", fields: append([][2]string{{"x", "y"}}, post(nil)...), body: "abcd"},
		{name: "host of another", more: [][2]string{{"host", "other.example.com"}}, body: "abcd"},
		{name: "two hosts", more: [][2]string{{"host", "app.example.com"}, {"host", "app.example.com"}}, body: "abcd"},
		{name: "authority with a user", fields: post(with(":authority", "other@app.example.com")), body: "abcd"},
		{name: "authority with a path", fields: post(with(":authority", "app.example.com/smuggled")), body: "abcd"},
		{name: "CONNECT", fields: [][2]string{{":method", "CONNECT"}, {":authority", "app.example.com:443"}}, body: smuggled},
		{name: "CONNECT with a path", fields: post(with(":method", "CONNECT")), body: smuggled},
		{name: "path without a slash", fields: post(with(":path", "case")), body: "abcd"},
		{name: "path is a URL", fields: post(with(":path", "https://other.example.com/case")), body: "abcd"},
		{name: "path is a star", fields: post(with(":path", "*")), body: "abcd"},
		{name: "path with a fragment", fields: post(with(":path", "/case#x")), body: "abcd"},
		{name: "path with a bad escape", fields: post(with(":path", "/case%0")), body: "abcd"},
		{name: "path that is long", fields: post(with(":path", "/"+strings.Repeat("a", 9<<10))), body: "abcd"},
		// Trailers.
		{name: "pseudo-field in the trailers", body: "abcd", trailer: [][2]string{{":path", "/smuggled"}}},
		{name: "length in the trailers", body: "abcd", trailer: [][2]string{{"content-length", "4"}}},
		{name: "coding in the trailers", body: "abcd", trailer: [][2]string{{"transfer-encoding", "chunked"}}},
		{name: "line break in the trailers", body: "abcd", trailer: [][2]string{{"x", "y\r\n\r\n" + smuggled}}},
		{name: "line break in a trailer's name", body: "abcd", trailer: [][2]string{{"x: y\r\n\r\n" + smuggled, "z"}}},
		// Names.
		{name: "capitals", more: [][2]string{{"X-Case", "y"}}, body: "abcd"},
		{name: "capitals that decide", more: [][2]string{{"Transfer-Encoding", "chunked"}}, body: "abcd"},
		{name: "no name", more: [][2]string{{"", "y"}}, body: "abcd"},
		// Size.
		{name: "too many fields", more: slices.Repeat([][2]string{{"x", "y"}}, 200), body: "abcd"},
		{name: "too long a field", more: [][2]string{{"x", strings.Repeat("y", 20<<10)}}, body: "abcd"},
		// Requests inside of a tunnel.
		{name: "CONNECT to an unknown protocol", fields: append(post(with(":method", "CONNECT")), [2]string{":protocol", "culvert"}), body: smuggled, want: tunnel},
		{name: "CONNECT with a length", fields: append(post(with(":method", "CONNECT")), [2]string{":protocol", "websocket"}, [2]string{"content-length", length}), body: smuggled, want: tunnel},
		{name: "WebSocket that the target refuses", fields: append(post(with(":method", "CONNECT")), [2]string{":protocol", "websocket"}, [2]string{"sec-websocket-version", "777"}), body: smuggled, want: tunnel},
		{name: "protocol with a line break", fields: append(post(with(":method", "CONNECT")), [2]string{":protocol", "websocket\r\nX: y"}), body: smuggled},
	}
	// Whatever ends a line, or a field, for somebody: in each place.
	for _, bad := range []string{"\r\n", "\n", "\r", "\x00", "\r\n\r\n" + smuggled, "\nTransfer-Encoding: chunked"} {
		for _, at := range []string{":method", ":scheme", ":authority", ":path"} {
			value := post(nil)[slices.IndexFunc(post(nil), func(f [2]string) bool { return f[0] == at })][1]
			list = append(list, downgrade{name: fmt.Sprintf("%q in %s", bad, at), fields: post(with(at, value+bad+"x")), body: "abcd"})
		}
		list = append(list,
			downgrade{name: fmt.Sprintf("%q in a value", bad), more: [][2]string{{"x", "y" + bad + "z"}}, body: "abcd"},
			downgrade{name: fmt.Sprintf("%q behind a value", bad), more: [][2]string{{"x", "y" + bad}}, body: "abcd"},
			downgrade{name: fmt.Sprintf("%q in a name", bad), more: [][2]string{{"x" + strings.ToLower(bad) + "y", "z"}}, body: "abcd"})
	}
	for _, bad := range []string{" ", "\t", ":", "\x7f", "\xff", "\"", "("} {
		list = append(list, downgrade{name: fmt.Sprintf("%q in a name", bad), more: [][2]string{{"x" + bad + "y", "z"}}, body: "abcd"})
	}
	for _, bad := range []string{" HTTP/1.1\r\nX: y", " /smuggled HTTP/1.1", " ", "\t", "\x7f"} {
		list = append(list,
			downgrade{name: fmt.Sprintf("%q in the path", bad), fields: post(with(":path", "/case"+bad+"x")), body: "abcd"},
			downgrade{name: fmt.Sprintf("%q in the method", bad), fields: post(with(":method", "POST"+bad+"x")), body: "abcd"},
			downgrade{name: fmt.Sprintf("%q in the authority", bad), fields: post(with(":authority", "app.example.com"+bad+"x")), body: "abcd"})
	}
	// rfc9113#section-8.2.1: a blank at the end of a value is an error, too.
	for _, v := range []string{" y", "y ", "\ty"} {
		list = append(list, downgrade{name: fmt.Sprintf("value %q", v), more: [][2]string{{"x", v}}, body: "abcd", want: either})
	}
	for i := range list {
		if list[i].fields == nil {
			list[i].fields = post(nil)
		}
	}
	return list
}()

// payload is the body that a target may see. What follows a CONNECT is none, nor is what follows a request that is whole without it.
func (d downgrade) payload() string {
	if slices.Contains(d.fields, [2]string{":method", "CONNECT"}) || slices.Contains(d.more, [2]string{"content-length", "0"}) {
		return ""
	}
	return d.body
}

// TestDowngradeH2 sends each of them over HTTP/2.
func TestDowngradeH2(t *testing.T) {
	t.Parallel()
	s, rec := desync(t)
	next := s.visitor()
	for i, d := range downgrades {
		t.Run(d.name, func(t *testing.T) {
			c := dialH2(t, i, s.https, "app.example.com")
			c.hello(t)
			c.headers(1, d.body == "", slices.Concat(d.fields, d.more)...)
			if d.body != "" {
				c.WriteData(1, d.trailer == nil, []byte(d.body))
			}
			if d.trailer != nil {
				c.headers(1, true, d.trailer...)
			}
			a, err := c.await(1)
			d.judge(t, a, err, alone(t, s, rec, next, d.payload()))
			c.conn.Close()
		})
	}
}

// judge compares what became of a request with what should. a is nil when the whole
// connection is lost.
func (d downgrade) judge(t *testing.T, a *answer, err error, arrived []seen) {
	t.Helper()
	served := a != nil && a.status == "200"
	got := "refused"
	switch {
	case a == nil:
		got = err.Error()
	case a.reset != nil && *a.reset != http2.ErrCodeNo && !served:
		got = fmt.Sprintf("reset: %v", *a.reset)
	case a.status != "":
		got = a.status
	}
	complete := slices.ContainsFunc(arrived, func(q seen) bool { return q.err == nil })
	t.Logf("%s, %d arrived", got, len(arrived))
	switch {
	case d.want == whole && (!served || !complete):
		t.Errorf("%s, and at the target %d; want it served", got, len(arrived))
	case (d.want == refused || d.want == tunnel) && served:
		t.Errorf("it is served: %q", a.body)
	case d.want == refused && complete:
		t.Error("it is refused, and yet the target got it whole")
	case served && !complete:
		t.Error("it is answered, and yet the target did not get it")
	case !served && a != nil && a.reset == nil && (len(a.status) != 3 || a.status[0] != '4' && a.status[0] != '5'):
		t.Errorf("status %q", a.status)
	}
}
