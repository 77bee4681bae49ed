package public

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

// Whatever a value is, the line stays one line and valid, tells no terminal what to do, and is read as what
// encoding/json would have written.
func FuzzAppendText(f *testing.F) {
	for _, s := range []string{
		"", "/index.html", `a"b\c`, "a\nb\r\tc\x00\x1b[31m\x7f", "é€😀", "\xff\xfe", "\xe2\x82", "\xc3\x28", "\u2028\u2029\u202e", "\u0085\u009b", "\ud7ff\U0010ffff",
		"\xed\xa0\x80", strings.Repeat("x", 39) + "é", strings.Repeat("é", 30), strings.Repeat("\xff", 50), `","status":200,"x":"`,
	} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		const most = 40
		line := append(appendText([]byte(`{"a":1`), "value", s, most), '}')
		if bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 || r == 0x2028 || r == 0x202e }) {
			t.Fatalf("%q", line)
		}
		if fromBytes := append(appendText([]byte(`{"a":1`), "value", []byte(s), most), '}'); !bytes.Equal(line, fromBytes) {
			t.Fatalf("%q as bytes: %q", line, fromBytes)
		}
		var got struct{ A, Value any }
		d := json.NewDecoder(bytes.NewReader(line))
		d.DisallowUnknownFields()
		if err := d.Decode(&got); err != nil || !utf8.Valid(line) {
			t.Fatalf("%q: %v", line, err)
		}
		value := got.Value.(string)
		if len(s) > most {
			var ok bool
			if value, ok = strings.CutSuffix(value, "…"); !ok {
				t.Fatalf("%q of %q: no sign of the cut", value, s)
			}
			if utf8.ValidString(s) && (!strings.HasPrefix(s, value) || len(value) <= most-utf8.UTFMax) {
				t.Fatalf("%q of %q", value, s)
			}
			return
		}
		b, _ := json.Marshal(s)
		var want string
		json.Unmarshal(b, &want)
		if value != want {
			t.Fatalf("%q, want %q", value, want)
		}
	})
}

// testRecord has everything in it that a line can have.
func testRecord(l *loop, head string) *record {
	var req http1.Request
	if n, err := http1.ParseRequest([]byte(head), &req); n == 0 || err != nil {
		return nil
	}
	return &record{
		service: &service{name: "wiki", session: &session{site: "office", id: "0123456789abcdef"}},
		visitor: netip.MustParseAddrPort("[2001:db8::1]:443"), user: "anna", subject: "CN=anna", proto: "HTTP/1.1", tls: 0x304,
		request: l.appendRequest(nil, &req), status: 200, err: wordCancelled,
		received: 12, sent: 3456, packets: Datagrams{Received: 1, Sent: 2}, began: -int64(1500 * time.Microsecond), first: time.Millisecond,
	}
}

// testLoop is a loop that has an access log and does not turn.
func testLoop(lines *[]byte) *loop {
	return &loop{Loop: new(evloop.Loop), relay: &Relay{AccessLog: func(b []byte) { *lines = append(*lines, b...) }}}
}

func TestRecord(t *testing.T) {
	const head = "GET /a/b?c=d HTTP/1.1\r\nHost: Wiki.test\r\nUser-Agent: curl/8\r\nReferer: https://a.test/x?secret=1\r\n\r\n"
	const before = `{"time":"0001-01-01T00:00:00.000Z","site":"office","service":"wiki","visitor":"[2001:db8::1]:443","user":"anna","subject":"CN=anna",` +
		`"proto":"HTTP/1.1","tls":"1.3","method":"GET","host":"Wiki.test","path":"/a/b",`
	const after = `"status":200,"received":12,"sent":3456,"datagrams_received":1,"datagrams_sent":2,"duration_ms":1.500,"first_byte_ms":1,` +
		`"session":"01234567","error":"cancelled"}` + "\n"
	var lines []byte
	l := testLoop(&lines)
	for _, test := range []struct {
		query, agent bool
		want         string
	}{
		{false, false, ""},
		{true, false, `"query":"c=d",`},
		{false, true, `"user_agent":"curl/8","referer":"https://a.test/x",`},
		{true, true, `"query":"c=d","user_agent":"curl/8","referer":"https://a.test/x?secret=1",`},
	} {
		l.relay.AccessQuery, l.relay.AccessAgent = test.query, test.agent
		if got := string(testRecord(l, head).append(nil, l)); got != before+test.want+after {
			t.Errorf("got  %s\nwant %s", got, before+test.want+after)
		}
	}

	// What is not known is not there.
	r := &record{visitor: netip.MustParseAddrPort("192.0.2.1:80"), proto: "tcp"}
	if got, want := string(r.append(nil, l)), `{"time":"0001-01-01T00:00:00.000Z","visitor":"192.0.2.1:80","proto":"tcp","received":0,"sent":0,"duration_ms":0}`+"\n"; got != want {
		t.Errorf("got  %s\nwant %s", got, want)
	}
}

// Any head that is accepted makes one valid line of bounded length.
func FuzzRecord(f *testing.F) {
	f.Add("GET /%22%0a?\"x\" HTTP/1.1\r\nHost: a.test\r\nUser-Agent: \"\\\xff\t\r\nReferer: ?\r\n\r\n")
	f.Add("GET /" + strings.Repeat("a", 5000) + " HTTP/1.1\r\nHost: a.test\r\nUser-Agent: " + strings.Repeat("\x80", 5000) + "\r\n\r\n")
	var lines []byte
	l := testLoop(&lines)
	l.relay.AccessQuery, l.relay.AccessAgent = true, true
	f.Fuzz(func(t *testing.T, head string) {
		r := testRecord(l, head)
		if r == nil {
			return
		}
		line := r.append(nil, l)
		var m map[string]any
		if err := json.Unmarshal(line, &m); err != nil || slices.Index(line, '\n') != len(line)-1 || len(line) > 1000+6*(logMethod+logHost+2*logPath+2*logField) {
			t.Fatalf("%v, %d bytes: %q", err, len(line), line)
		}
	})
}

func BenchmarkRecord(b *testing.B) {
	var lines []byte
	l := testLoop(&lines)
	l.relay.AccessAgent = true
	r := testRecord(l, "GET /a/b/c/index.html?c=d HTTP/1.1\r\nHost: wiki.test\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\r\n")
	var req http1.Request
	http1.ParseRequest([]byte("GET /a/b/c/index.html?c=d HTTP/1.1\r\nHost: wiki.test\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n\r\n"), &req)
	var line []byte
	b.ReportAllocs()
	for b.Loop() {
		r.request = l.appendRequest(r.request[:0], &req)
		line = r.append(line[:0], l)
	}
	b.SetBytes(int64(len(line)))
}
