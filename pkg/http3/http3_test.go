package http3

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go/quicvarint"

	"culvert.dev/pkg/http1"
)

// pack encodes fields, given as "name: value" lines; a name keeps its case.
func pack(lines ...string) []byte {
	var b bytes.Buffer
	enc := qpack.NewEncoder(&b)
	for _, l := range lines {
		i := strings.Index(l[1:], ":") + 1 // a pseudo field begins with one
		enc.WriteField(qpack.HeaderField{Name: l[:i], Value: strings.TrimPrefix(l[i+1:], " ")})
	}
	if b.Len() == 0 {
		b.Write([]byte{0, 0})
	}
	return b.Bytes()
}

func frame(kind uint64, payload []byte) []byte {
	return append(quicvarint.Append(quicvarint.Append(nil, kind), uint64(len(payload))), payload...)
}

var get = []string{":method: GET", ":scheme: https", ":authority: a.test", ":path: /x?y=1"}

// with is a GET with more fields.
func with(lines ...string) []string { return append(slices.Clone(get), lines...) }

// without is a GET that lacks a field.
func without(name string) (lines []string) {
	for _, l := range get {
		if !strings.HasPrefix(l, name) {
			lines = append(lines, l)
		}
	}
	return lines
}

// A request becomes what http1 would have made of it.
func TestRequest(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []string
		body  bool
		want  string
	}{
		{"plain", get, false, "GET /x?y=1 a.test NoBody -1"},
		{"body of unknown length", with("user-agent: x"), true, "GET /x?y=1 a.test Chunked -1 user-agent=x"},
		{"length", []string{":method: POST", ":scheme: https", ":authority: a.test:8443", ":path: /", "content-length: 5"}, true, "POST / a.test:8443 Length 5 content-length=5"},
		{"POST of nothing", []string{":method: POST", ":scheme: https", ":authority: a.test", ":path: /"}, false, "POST / a.test Length 0"},
		{"host alone", append(without(":authority"), "host: b.test"), false, "GET /x?y=1 b.test NoBody -1 host=b.test"},
		{"host as well", with("host: A.test"), false, "GET /x?y=1 a.test NoBody -1 host=A.test"},
		{"cookies", with("cookie: a=1", "accept: */*", "cookie: b=2"), false, "GET /x?y=1 a.test NoBody -1 cookie=a=1; b=2 accept=*/*"},
		{"te", with("te: trailers"), false, "GET /x?y=1 a.test NoBody -1 te=trailers"},
		{"asterisk", []string{":method: OPTIONS", ":scheme: https", ":authority: a.test", ":path: *"}, false, "OPTIONS * a.test NoBody -1"},
		{"scheme in upper case", []string{":method: GET", ":scheme: HTTPS", ":authority: a.test", ":path: /"}, false, "GET / a.test NoBody -1"},
		{"WebSocket", []string{":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: a.test", ":path: /chat", "sec-websocket-version: 13"}, true,
			"GET /chat a.test NoBody -1 sec-websocket-version=13 upgrades"},
	} {
		var h Head
		var r http1.Request
		if err := h.Decode(pack(c.lines...)); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if err := h.Request(&r, !c.body); err != nil {
			t.Errorf("%s: %v", c.name, err)
			continue
		}
		if got := describe(&r); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.name, got, c.want)
		}
	}
}

func describe(r *http1.Request) string {
	path := string(r.Path)
	if r.Path == nil {
		path = "-"
	}
	if r.Query != nil {
		path += "?" + string(r.Query)
	}
	s := fmt.Sprintf("%s %s %s %s %d", r.Method, path, r.Host, [...]string{"NoBody", "Length", "Chunked", "UntilClose"}[r.Framing], r.ContentLength)
	for _, f := range r.Fields {
		s += fmt.Sprintf(" %s=%s", f.Name, f.Value)
	}
	if r.Upgrade != nil {
		s += " upgrades"
	}
	return s
}

// What is malformed, or would be another request to a server of HTTP/1.1, goes no further.
func TestMalformed(t *testing.T) {
	for _, c := range []struct {
		name  string
		lines []string
		body  bool
	}{
		{"nothing", nil, false},
		{"no method", without(":method"), false},
		{"no scheme", without(":scheme"), false},
		{"no path", without(":path"), false},
		{"no host", without(":authority"), false},
		{"empty path", append(without(":path"), ":path: "), false},
		{"method twice", with(":method: GET"), false},
		{"path twice", with(":path: /x?y=1"), false},
		{"authority twice", with(":authority: a.test"), false},
		{"scheme twice", with(":scheme: https"), false},
		{"unknown pseudo field", with(":foo: bar"), false},
		{"pseudo field of a response", with(":status: 200"), false},
		{"pseudo field behind another", []string{":method: GET", ":scheme: https", "accept: */*", ":authority: a.test", ":path: /"}, false},
		{"pseudo field behind host", []string{":method: GET", ":scheme: https", "host: a.test", ":authority: a.test", ":path: /"}, false},
		{"pseudo field behind an empty cookie", []string{":method: GET", ":scheme: https", "cookie: ", ":authority: a.test", ":path: /"}, false},
		{"clear scheme", append(without(":scheme"), ":scheme: http"), false},
		{"another scheme", append(without(":scheme"), ":scheme: ftp"), false},
		{"space in method", append(without(":method"), ":method: GET /admin HTTP/1.1"), false},
		{"line in method", append(without(":method"), ":method: GET\r\nX: y"), false},
		{"long method", append(without(":method"), ":method: "+strings.Repeat("A", 40)), false},
		{"space in path", append(without(":path"), ":path: /a HTTP/1.1"), false},
		{"line in path", append(without(":path"), ":path: / HTTP/1.1\r\nHost: b.test\r\n\r\nGET /"), false},
		{"fragment", append(without(":path"), ":path: /a#b"), false},
		{"absolute path", append(without(":path"), ":path: https://b.test/"), false},
		{"relative path", append(without(":path"), ":path: a"), false},
		{"asterisk of GET", append(without(":path"), ":path: *"), false},
		{"broken encoding", append(without(":path"), ":path: /%zz"), false},
		{"other bytes in path", append(without(":path"), ":path: /ü"), false},
		{"long path", append(without(":path"), ":path: /"+strings.Repeat("a", 9000)), false},
		{"userinfo", append(without(":authority"), ":authority: u@a.test"), false},
		{"path in authority", append(without(":authority"), ":authority: a.test/x"), false},
		{"space in authority", append(without(":authority"), ":authority: a.test b.test"), false},
		{"line in authority", append(without(":authority"), ":authority: a.test\r\nX: y"), false},
		{"two authorities", append(without(":authority"), ":authority: a.test,b.test"), false},
		{"another host", with("host: b.test"), false},
		{"empty host as well", with("host: "), false},
		{"host twice", with("host: a.test", "host: a.test"), false},
		{"upper case", with("Accept: */*"), false},
		{"name with a space", with("a b: c"), false},
		{"name with a line", with("a\r\nb: c"), false},
		{"name with a colon", with("transfer-encoding : chunked"), false},
		{"value with CR LF", with("a: b\r\ntransfer-encoding: chunked"), false},
		{"value with LF", with("a: b\nc"), false},
		{"value with CR", with("a: b\rc"), false},
		{"value with NUL", with("a: b\x00c"), false},
		{"value with a space behind", with("a: b "), false},
		{"value with a tab before", with("a: \tb"), false},
		{"connection", with("connection: close"), false},
		{"proxy-connection", with("proxy-connection: close"), false},
		{"keep-alive", with("keep-alive: timeout=5"), false},
		{"transfer-encoding", with("transfer-encoding: chunked"), true},
		{"upgrade", with("upgrade: websocket"), false},
		{"te", with("te: gzip"), false},
		{"te with more", with("te: trailers, gzip"), false},
		{"length without a body", with("content-length: 5"), false},
		{"length twice", with("content-length: 5", "content-length: 5"), true},
		{"two lengths", with("content-length: 5", "content-length: 6"), true},
		{"list of lengths", with("content-length: 5, 5"), true},
		{"length with a sign", with("content-length: +5"), true},
		{"negative length", with("content-length: -5"), true},
		{"huge length", with("content-length: 99999999999999999999"), true},
		{"empty length", with("content-length: "), true},
		{"hexadecimal length", with("content-length: 0x5"), true},
		{"another expectation", with("expect: wonders"), true},
		{"CONNECT", []string{":method: CONNECT", ":authority: a.test:443"}, true},
		{"CONNECT with a path", []string{":method: CONNECT", ":authority: a.test:443", ":path: /"}, true},
		{"CONNECT with a scheme", []string{":method: CONNECT", ":authority: a.test:443", ":scheme: https"}, true},
		{"protocol without CONNECT", with(":protocol: websocket"), true},
		{"extended CONNECT without path", []string{":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: a.test"}, true},
		{"extended CONNECT without authority", []string{":method: CONNECT", ":protocol: websocket", ":scheme: https", ":path: /"}, true},
		{"many fields", with(strings.Split(strings.Repeat("a: b\n", 101), "\n")[:101]...), false},
		{"large head", with("a: " + strings.Repeat("b", MaxSection)), false},
	} {
		var h Head
		var r http1.Request
		err := h.Decode(pack(c.lines...))
		if err == nil {
			err = h.Request(&r, !c.body)
		}
		_, ours := errors.AsType[*Error](err)
		_, theirs := errors.AsType[*http1.Error](err)
		if !ours && !theirs {
			t.Errorf("%s: %v, %s", c.name, err, describe(&r))
		}
	}
}

// Of few bytes many can be made, but not here.
func TestBomb(t *testing.T) {
	// Entry 84 of the static table is a content-security-policy of 53 bytes.
	section := append([]byte{0, 0}, bytes.Repeat([]byte{0xff, 84 - 63}, 5000)...)
	var h Head
	if e, ok := errors.AsType[*http1.Error](h.Decode(section)); !ok || e.Status != 431 {
		t.Error("a bomb was taken")
	}
	for _, b := range [][]byte{{}, {0}, {1, 0}, {0, 1, 0xc0}, {0, 0, 0x80}, {0, 0, 0x10}, {0, 0, 0xff, 0xff}, {0, 0, 0x27}, {0, 0, 0x23, 'a', 'b', 'c'}} {
		if e, ok := errors.AsType[*Error](h.Decode(b)); !ok || e.Code != DecompressionFailed || !e.Connection {
			t.Errorf("% x: %v", b, h.Decode(b))
		}
	}
}

func TestTrailers(t *testing.T) {
	var h Head
	got, err := h.Trailers(pack("grpc-status: 0", "grpc-message: "))
	if err != nil || len(got) != 2 || string(got[0].Value) != "0" || string(got[1].Name) != "grpc-message" {
		t.Errorf("%q %v", got, err)
	}
	if got, err := h.Trailers(pack()); err != nil || len(got) != 0 {
		t.Errorf("none: %q %v", got, err)
	}
	for _, line := range []string{
		":status: 200", ":path: /", "Upper: case", "a: b\r\nc: d", "content-length: 5", "transfer-encoding: chunked", "host: b.test", "te: trailers",
		"connection: close", "x-forwarded-for: 1.2.3.4", "authorization: x", "a b: c", "a: " + strings.Repeat("b", 17000),
	} {
		if got, err := h.Trailers(pack(line)); err == nil {
			t.Errorf("%.40q: %q", line, got)
		}
	}
}

func TestPriority(t *testing.T) {
	for value, want := range map[string]string{
		"": "3 false", "u=1, i": "1 true", "u=7": "7 false", "i=?0,u=0": "0 false", "i=?1": "3 true", "u=8, u=9, x=1, u=-1, i=2": "3 false", "u=2 ,u=5": "5 false",
	} {
		if u, i := Priority([]byte(value)); fmt.Sprint(u, i) != want {
			t.Errorf("%q: %d %v, want %s", value, u, i, want)
		}
	}
}

// read gives b to a reader in pieces of n bytes and describes what came of it.
func read(r *Reader, b []byte, n int) (events []string, err error) {
	for len(b) > 0 {
		piece := b[:min(n, len(b))]
		b = b[len(piece):]
		for len(piece) > 0 {
			e, payload, used, err := r.Next(piece)
			if err != nil {
				return events, err
			}
			if e == EventNone && used != len(piece) {
				return events, fmt.Errorf("BUG: %d of %d bytes were used", used, len(piece))
			}
			piece = piece[used:]
			if e == EventNone {
				continue
			}
			s := [...]string{"", "head ", "data ", "trailers "}[e]
			if k := len(events) - 1; e == EventData && k >= 0 && strings.HasPrefix(events[k], s) {
				events[k] += string(payload)
			} else {
				events = append(events, s+string(payload))
			}
		}
	}
	return events, nil
}

func TestReader(t *testing.T) {
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	head, data, more, tail := frame(frameHeaders, []byte("H")), frame(frameData, []byte("one")), frame(frameData, []byte("two")), frame(frameHeaders, []byte("T"))
	unknown := frame(0x21+0x1f*1000, []byte("grease"))
	for _, c := range []struct {
		name   string
		in     []byte
		length int64
		want   string
		code   Code // 0: no error
	}{
		{"head", head, -1, "head H", 0},
		{"all", join(head, data, more, tail), 6, "head H|data onetwo|trailers T", 0},
		{"unknown frames", join(unknown, head, unknown, data, unknown, frame(frameData, nil), tail, unknown), -1, "head H|data one|trailers T", 0},
		{"empty sections", join(frame(frameHeaders, nil), frame(frameHeaders, nil)), -1, "head |trailers ", 0},
		{"nothing", nil, -1, "", RequestIncomplete},
		{"body first", data, -1, "", FrameUnexpected},
		{"unknown alone", unknown, -1, "", RequestIncomplete},
		{"body behind trailers", join(head, tail, data), -1, "head H|trailers T", FrameUnexpected},
		{"trailers twice", join(head, tail, tail), -1, "head H|trailers T", FrameUnexpected},
		{"settings", join(head, frame(frameSettings, nil)), -1, "head H", FrameUnexpected},
		{"push", join(head, frame(framePushPromise, []byte{0})), -1, "head H", FrameUnexpected},
		{"priority", join(head, frame(framePriorityUpdate, []byte{0})), -1, "head H", FrameUnexpected},
		{"HTTP/2's ping", join(head, frame(6, make([]byte, 8))), -1, "head H", FrameUnexpected},
		{"half a frame", head[:2], -1, "", FrameError},
		{"half a frame's head", join(head, data[:1]), -1, "head H", FrameError},
		{"too much", join(head, data, more), 5, "head H|data one", MessageError},
		{"too little", join(head, data), 5, "head H|data one", MessageError},
	} {
		for _, n := range []int{1, 2, 3, 1000} {
			var r Reader
			events, err := read(&r, c.in[:min(len(head), len(c.in))], n)
			if err == nil {
				if len(events) == 1 {
					r.Expect(c.length)
				}
				var rest []string
				rest, err = read(&r, c.in[min(len(head), len(c.in)):], n)
				events = append(events, rest...)
			}
			if err == nil {
				err = r.EOF()
			}
			e, _ := errors.AsType[*Error](err)
			switch {
			case c.code == 0 && err != nil, c.code != 0 && (e == nil || e.Code != c.code):
				t.Errorf("%s by %d: %v", c.name, n, err)
			case c.name != "too much" && strings.Join(events, "|") != c.want:
				t.Errorf("%s by %d: %q", c.name, n, events)
			}
		}
	}
	var r Reader
	if _, _, _, err := r.Next(quicvarint.Append([]byte{frameHeaders}, MaxSection+1)); err != error(errSection) {
		t.Errorf("a large section: %v", err)
	}
}

func TestControl(t *testing.T) {
	settingsFrame := func(numbers ...uint64) []byte {
		var b []byte
		for _, n := range numbers {
			b = quicvarint.Append(b, n)
		}
		return frame(frameSettings, b)
	}
	number := func(kind, n uint64) []byte { return frame(kind, quicvarint.Append(nil, n)) }
	ok := settingsFrame(settingMaxSection, 100, 0x33, 1, 0x21, 5)
	for _, c := range []struct {
		name   string
		stream uint64
		in     [][]byte
		code   Code
	}{
		{"settings", streamControl, [][]byte{ok}, 0},
		{"no settings in it", streamControl, [][]byte{settingsFrame()}, 0},
		{"what Chromium sends", streamControl, [][]byte{ok, frame(framePriorityUpdate, []byte("\x00u=1")), number(frameMaxPushID, 0), frame(0x40, []byte("x")), number(frameGoAway, 0)}, 0},
		{"other frame first", streamControl, [][]byte{number(frameMaxPushID, 1)}, MissingSettings},
		{"unknown frame first", streamControl, [][]byte{frame(0x21, nil)}, MissingSettings},
		{"settings twice", streamControl, [][]byte{ok, ok}, FrameUnexpected},
		{"a setting twice", streamControl, [][]byte{settingsFrame(6, 1, 6, 1)}, SettingsError},
		{"a setting of HTTP/2", streamControl, [][]byte{settingsFrame(4, 1)}, SettingsError},
		{"connect 2", streamControl, [][]byte{settingsFrame(8, 2)}, SettingsError},
		{"half a setting", streamControl, [][]byte{frame(frameSettings, []byte{6})}, FrameError},
		{"long settings", streamControl, [][]byte{frame(frameSettings, make([]byte, maxSettings+1))}, ExcessiveLoad},
		{"data", streamControl, [][]byte{ok, frame(frameData, nil)}, FrameUnexpected},
		{"head", streamControl, [][]byte{ok, frame(frameHeaders, nil)}, FrameUnexpected},
		{"HTTP/2's window", streamControl, [][]byte{ok, frame(8, nil)}, FrameUnexpected},
		{"push goes back", streamControl, [][]byte{ok, number(frameMaxPushID, 5), number(frameMaxPushID, 4)}, IDError},
		{"away goes on", streamControl, [][]byte{ok, number(frameGoAway, 5), number(frameGoAway, 5), number(frameGoAway, 6)}, IDError},
		{"cancel", streamControl, [][]byte{ok, number(frameCancelPush, 0)}, IDError},
		{"priority of a push", streamControl, [][]byte{ok, frame(framePushPriority, []byte{0})}, IDError},
		{"no number", streamControl, [][]byte{ok, frame(frameGoAway, nil)}, FrameError},
		{"number and more", streamControl, [][]byte{ok, frame(frameGoAway, []byte{0, 0})}, FrameError},
		{"long number", streamControl, [][]byte{ok, frame(frameGoAway, make([]byte, 9))}, FrameError},
		{"table of size 0", streamEncoder, [][]byte{{0x20}}, 0},
		{"table", streamEncoder, [][]byte{{0x3f, 0x01}}, EncoderStreamError},
		{"insert", streamEncoder, [][]byte{{0xc0, 0x00}}, EncoderStreamError},
		{"cancellations", streamDecoder, [][]byte{{0x40, 0x7f, 0x80, 0x01, 0x44}}, 0},
		{"acknowledgement", streamDecoder, [][]byte{{0x80}}, DecoderStreamError},
		{"increment", streamDecoder, [][]byte{{0x01}}, DecoderStreamError},
		{"endless number", streamDecoder, [][]byte{append([]byte{0x7f}, bytes.Repeat([]byte{0x80}, 20)...)}, DecoderStreamError},
	} {
		for _, n := range []int{1, 2, 1000} {
			var p Peer
			s, err := p.Open(c.stream)
			if err != nil {
				t.Fatal(err)
			}
			for b := bytes.Join(c.in, nil); len(b) > 0 && err == nil; b = b[min(n, len(b)):] {
				err = s.Read(b[:min(n, len(b))])
			}
			e, _ := errors.AsType[*Error](err)
			if c.code == 0 && err != nil || c.code != 0 && (e == nil || e.Code != c.code || !e.Connection) {
				t.Errorf("%s by %d: %v", c.name, n, err)
			}
		}
	}
	var p Peer
	for _, kind := range []uint64{streamControl, streamEncoder, streamDecoder} {
		p.Open(kind)
		if _, err := p.Open(kind); err == nil {
			t.Errorf("stream %d twice", kind)
		}
	}
	if _, err := p.Open(streamPush); err == nil {
		t.Error("a push")
	}
	if c, err := p.Open(0x21); c != nil || err != nil {
		t.Errorf("a stream of unknown type: %v %v", c, err)
	}
}

// What we send, other people's decoder reads.
func TestSection(t *testing.T) {
	var s Section
	for range 2 {
		s.Status(404)
		s.Field([]byte("Content-Type"), []byte("text/plain"))
		s.Field([]byte("X-Empty"), nil)
		b := s.Append(nil)
		kind, n, _ := quicvarint.Parse(b)
		length, m, _ := quicvarint.Parse(b[n:])
		if kind != frameHeaders || int(length) != len(b)-n-m {
			t.Fatalf("frame %d of %d bytes in %d", kind, length, len(b))
		}
		next := qpack.NewDecoder().Decode(b[n+m:])
		var got []string
		for {
			f, err := next()
			if err != nil {
				break
			}
			got = append(got, f.Name+"="+f.Value)
		}
		if want := ":status=404 content-type=text/plain x-empty="; strings.Join(got, " ") != want {
			t.Errorf("%q", got)
		}
	}
	if b := s.Append(nil); !bytes.Equal(b, []byte{frameHeaders, 2, 0, 0}) {
		t.Errorf("no fields: % x", b)
	}
}

// FuzzRequest looks for a request that is another one when it is written and parsed again.
func FuzzRequest(f *testing.F) {
	f.Add(frame(frameHeaders, pack(get...)), 3)
	f.Add(append(frame(frameHeaders, pack(":method: POST", ":scheme: https", ":authority: a", ":path: /", "content-length: 1", "cookie: a", "cookie: b")), frame(frameData, []byte("x"))...), 5)
	f.Add(frame(frameHeaders, pack(":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: a", ":path: /")), 7)
	f.Add(append(frame(frameHeaders, pack(get...)), frame(frameHeaders, pack("a: b"))...), 1)
	f.Fuzz(func(t *testing.T, b []byte, n int) {
		if n <= 0 {
			return
		}
		whole, wholeErr := read(new(Reader), b, len(b)+1)
		parts, partsErr := read(new(Reader), b, n)
		if (wholeErr == nil) != (partsErr == nil) || wholeErr == nil && !slices.Equal(whole, parts) {
			t.Fatalf("%q %v, in pieces %q %v", whole, wholeErr, parts, partsErr)
		}
		var h Head
		for _, e := range whole {
			if section, ok := strings.CutPrefix(e, "trailers "); ok {
				h.Trailers([]byte(section))
			}
			section, ok := strings.CutPrefix(e, "head ")
			if !ok || h.Decode([]byte(section)) != nil {
				continue
			}
			for _, body := range []bool{false, true} {
				var r, again http1.Request
				if h.Request(&r, !body) != nil {
					continue
				}
				text := http1.AppendForwardedRequest(nil, &r, http1.Forward{Proto: "https"})
				if m, err := http1.ParseRequest(text, &again); r.Path != nil && (err != nil || m != len(text) || string(again.Path) != string(r.Path) || string(again.Host) != string(r.Host)) {
					t.Fatalf("%q: %v", text, err)
				}
			}
		}
	})
}

// FuzzControl looks for a panic, and for a result that depends on how the input was cut.
func FuzzControl(f *testing.F) {
	f.Add(uint64(streamControl), frame(frameSettings, []byte{6, 0x40, 100}), 1)
	f.Add(uint64(streamEncoder), []byte{0x20}, 1)
	f.Add(uint64(streamDecoder), []byte{0x40, 0x7f, 0x80, 0x01}, 2)
	f.Fuzz(func(t *testing.T, stream uint64, b []byte, n int) {
		if n <= 0 {
			return
		}
		var p, q Peer
		whole, _ := p.Open(stream)
		parts, _ := q.Open(stream)
		if whole == nil {
			return
		}
		want := whole.Read(b)
		var err error
		for len(b) > 0 && err == nil {
			err = parts.Read(b[:min(n, len(b))])
			b = b[min(n, len(b)):]
		}
		if fmt.Sprint(want) != fmt.Sprint(err) {
			t.Fatalf("%v, in pieces %v", want, err)
		}
	})
}
