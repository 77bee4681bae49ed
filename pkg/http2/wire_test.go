package http2

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/http2/hpack"

	"culvert.dev/pkg/http1"
)

// sink is a transport in memory. What it is given counts as pending while stuck is set.
type sink struct {
	b     []byte
	stuck bool
}

func (s *sink) Write(b []byte) { s.b = append(s.b, b...) }
func (s *sink) HighMark() int  { return 64 << 10 }
func (s *sink) Pending() int {
	if s.stuck {
		return len(s.b)
	}
	return 0
}

// wire is one end of a connection in memory, whose peer is the test, and which writes down what happens.
type wire struct {
	t     testing.TB
	e     *Endpoint
	c     *Conn
	out   sink
	kept  []byte
	now   time.Time
	err   error // of Receive
	asked bool
	log   strings.Builder
	enc   *hpack.Encoder // of the peer
	block bytes.Buffer

	streams []*record
	answer  func(s *Stream, req *http1.Request) // of a server; nil: 204
	hold    bool                                // a server does not answer
	pause   bool                                // streams begin paused
	leave   int                                 // bytes that OnData leaves
	rooms   int
}

var epoch = time.Unix(1_800_000_000, 0)

func newWire(t testing.TB) *wire {
	w := &wire{t: t, e: new(Endpoint), now: epoch}
	w.enc = hpack.NewEncoder(&w.block)
	return w
}

func serverWire(t testing.TB) *wire {
	w := newWire(t)
	w.c = w.e.Server(&w.out, w, w.now)
	w.feed([]byte(preface), settings())
	w.frames()
	return w
}

func clientWire(t testing.TB) *wire {
	w := newWire(t)
	w.c = w.e.Client(&w.out, w, w.now)
	w.feed(settings())
	w.frames()
	return w
}

func (w *wire) OnOutput() {
	if w.asked {
		w.t.Error("OnOutput was called twice")
	}
	w.asked = true
}
func (w *wire) OnRoom()         { w.rooms++ }
func (w *wire) OnGoAway(c Code) { fmt.Fprintf(&w.log, "goaway %v\n", c) }
func (w *wire) OnReject(s *Stream, err *http1.Error) {
	fmt.Fprintf(&w.log, "%d reject %d\n", s.ID(), err.Status)
	s.Respond(&http1.Response{Status: err.Status, ContentLength: -1}, true)
}

func (w *wire) OnRequest(s *Stream, req *http1.Request, end bool) {
	fmt.Fprintf(&w.log, "%d %s %s host %s", s.ID(), req.Method, req.Target, req.Host)
	if req.Upgrade != nil {
		fmt.Fprintf(&w.log, " upgrade %s", req.Upgrade)
	}
	for _, f := range req.Fields {
		fmt.Fprintf(&w.log, " %s=%s", f.Name, f.Value)
	}
	fmt.Fprintf(&w.log, " framing %d end %v\n", req.Framing, end)
	checkDowngrade(w.t, req)
	w.take(s)
	if w.hold {
		return
	}
	if w.answer != nil {
		w.answer(s, req)
	} else {
		s.Respond(&http1.Response{Status: 204, ContentLength: -1}, true)
	}
}

// checkDowngrade checks that what was accepted means the same when it goes on as HTTP/1.1.
func checkDowngrade(t testing.TB, req *http1.Request) {
	var again http1.Request
	out := http1.AppendForwardedRequest(nil, req, http1.Forward{Remote: netip.IPv6Loopback(), Proto: "https"})
	n, err := http1.Limits{MaxHead: 1 << 20, MaxLine: 1 << 20, MaxFields: 200}.ParseRequest(out, &again)
	if n != len(out) || err != nil {
		t.Fatalf("%q: %d, %v", out, n, err)
	}
	if !bytes.Equal(req.Method, again.Method) || !bytes.Equal(req.Target, again.Target) || !bytes.Equal(req.Host, again.Host) ||
		req.Framing != again.Framing || req.ContentLength != again.ContentLength || !bytes.Equal(req.Upgrade, again.Upgrade) {
		t.Fatalf("%+v\nbecame\n%q", req, out)
	}
}

// record is the handler of one stream.
type record struct {
	w      *wire
	s      *Stream
	data   []byte
	closed bool
}

func (w *wire) take(s *Stream) {
	r := &record{w: w, s: s}
	w.streams = append(w.streams, r)
	s.SetHandler(r)
	if w.pause {
		s.Pause()
	}
}

func (r *record) logf(format string, args ...any) {
	if r.closed {
		r.w.t.Error("a callback behind OnClose")
	}
	fmt.Fprintf(&r.w.log, "%d "+format+"\n", append([]any{r.s.ID()}, args...)...)
}

func (r *record) OnResponse(res *http1.Response, end bool) {
	r.logf("response %d framing %d end %v", res.Status, res.Framing, end)
}

func (r *record) OnData(b []byte) int {
	n := max(len(b)-r.w.leave, 0)
	r.data = append(r.data, b[:n]...)
	return n
}

func (r *record) OnEOF() {
	r.logf("eof after %d", len(r.data))
	for _, f := range r.s.Trailers() {
		r.logf("trailer %s=%s", f.Name, f.Value)
	}
}
func (r *record) OnDrain()          { r.logf("drain") }
func (r *record) OnClose(err error) { r.logf("close %v", err); r.closed = true }

// feed shows the pieces to the connection, and ends the turn.
func (w *wire) feed(pieces ...[]byte) {
	w.t.Helper()
	for _, b := range pieces {
		b = append(slices.Clone(w.kept), b...)
		used, err := w.c.Receive(b, w.now)
		if used > len(b) || used < 0 {
			w.t.Fatalf("%d used of %d", used, len(b))
		}
		if err != nil {
			w.err = err
		}
		w.kept = b[used:]
		if len(w.kept) >= 64<<10 {
			w.t.Fatalf("%d bytes left", len(w.kept))
		}
	}
	w.turn()
}

func (w *wire) turn() {
	for w.asked {
		w.asked = false
		w.c.Flush()
	}
}

// frames returns what was sent since the last time, in words.
func (w *wire) frames() (list []string) {
	b := w.out.b
	w.out.b = nil
	b = bytes.TrimPrefix(b, []byte(preface))
	for len(b) >= frameHeader {
		h := parseHeader(b)
		if len(b) < frameHeader+h.length {
			break
		}
		p := b[frameHeader : frameHeader+h.length]
		b = b[frameHeader+h.length:]
		var s string
		switch h.kind {
		case typeData:
			s = fmt.Sprintf("DATA %d %d", h.id, h.length)
		case typeHeaders:
			s = fmt.Sprintf("HEADERS %d", h.id)
		case typeReset:
			s = fmt.Sprintf("RST_STREAM %d %v", h.id, Code(binary.BigEndian.Uint32(p)))
		case typeGoAway:
			s = fmt.Sprintf("GOAWAY %d %v", binary.BigEndian.Uint32(p), Code(binary.BigEndian.Uint32(p[4:])))
		case typeWindowUpdate:
			s = fmt.Sprintf("WINDOW_UPDATE %d %d", h.id, binary.BigEndian.Uint32(p))
		case typeSettings:
			s = "SETTINGS"
		case typePing:
			s = "PING"
		default:
			s = fmt.Sprintf("type %d", h.kind)
		}
		if h.flags&flagEndStream != 0 && h.kind <= typeHeaders {
			s += " end"
		} else if h.flags&flagAck != 0 && (h.kind == typeSettings || h.kind == typePing) {
			s += " ack"
		}
		list = append(list, s)
	}
	if len(b) > 0 {
		w.t.Fatalf("%d bytes of no frame", len(b))
	}
	return list
}

// want checks what was sent, WINDOW_UPDATE frames aside.
func (w *wire) want(frames ...string) {
	w.t.Helper()
	got := slices.DeleteFunc(w.frames(), func(s string) bool { return strings.HasPrefix(s, "WINDOW_UPDATE") })
	if !slices.Equal(got, frames) {
		w.t.Errorf("sent %q, want %q", got, frames)
	}
}

func (w *wire) wantLog(lines string) {
	w.t.Helper()
	if got := w.log.String(); got != lines {
		w.t.Errorf("happened\n%swant\n%s", got, lines)
	}
	w.log.Reset()
}

// What the peer sends.

func frame(kind, flags byte, id uint32, payload ...byte) []byte {
	return append(appendHeader(nil, len(payload), kind, flags, id), payload...)
}

func settings(pairs ...uint32) []byte {
	var b []byte
	for i := 0; i < len(pairs); i += 2 {
		b = appendSetting(b, uint16(pairs[i]), pairs[i+1])
	}
	return frame(typeSettings, 0, 0, b...)
}

func data(id uint32, n int, end bool) []byte {
	f := byte(0)
	if end {
		f = flagEndStream
	}
	return frame(typeData, f, id, make([]byte, n)...)
}

func u32(n uint32) []byte { return binary.BigEndian.AppendUint32(nil, n) }

func window(id, n uint32) []byte { return frame(typeWindowUpdate, 0, id, u32(n)...) }

// fields encodes a section: "name: value" lines.
func (w *wire) fields(lines string) []byte {
	w.block.Reset()
	for line := range strings.SplitSeq(strings.Trim(lines, "\n"), "\n") {
		i := strings.Index(line[1:], ":") + 1
		w.enc.WriteField(hpack.HeaderField{Name: line[:i], Value: strings.TrimPrefix(line[i+1:], " ")})
	}
	return bytes.Clone(w.block.Bytes())
}

func (w *wire) head(id uint32, end bool, lines string) []byte {
	f := byte(flagEndHeaders)
	if end {
		f |= flagEndStream
	}
	return frame(typeHeaders, f, id, w.fields(lines)...)
}

const getHead = ":method: GET\n:scheme: https\n:authority: a.test\n:path: /\n"
const postHead = ":method: POST\n:scheme: https\n:authority: a.test\n:path: /up\n"

func TestTranscript(t *testing.T) {
	w := serverWire(t)
	w.feed(w.head(1, true, getHead+"cookie: a=1\naccept: */*\ncookie: b=2"))
	w.wantLog("1 GET / host a.test cookie=a=1; b=2 accept=*/* framing 0 end true\n1 eof after 0\n1 close <nil>\n")
	w.want("HEADERS 1 end")

	// A request with a body and trailers, answered before it is complete.
	w.feed(w.head(3, false, postHead))
	w.want("HEADERS 3 end")
	w.feed(data(3, 100, false), w.head(3, true, "x-sum: 7"))
	w.wantLog("3 POST /up host a.test framing 2 end false\n3 eof after 100\n3 trailer x-sum=7\n3 close <nil>\n")

	// One that nobody reads to the end.
	w.answer = func(s *Stream, req *http1.Request) {
		s.Respond(&http1.Response{Status: 413, ContentLength: -1, Framing: http1.Chunked}, false)
		s.Write([]byte("too"))
		s.Write([]byte(" large"))
		s.Close()
	}
	w.feed(w.head(5, false, postHead))
	w.want("HEADERS 5", "DATA 5 9 end", "RST_STREAM 5 NO_ERROR")
	w.feed(data(5, 100, false), w.head(5, true, "late: trailers")) // they were under way
	w.wantLog("5 POST /up host a.test framing 2 end false\n5 close <nil>\n")
	w.want()

	// Padding and priority are taken off.
	w.answer = nil
	f := w.fields(getHead)
	f = append(append([]byte{2, 0, 0, 0, 0, 9}, f...), 0, 0)
	w.feed(frame(typeHeaders, flagEndHeaders|flagPadded|flagPriority, 7, f...), frame(typeData, flagPadded|flagEndStream, 7, 3, 'a', 'b', 0, 0, 0))
	w.wantLog("7 GET / host a.test framing 2 end false\n7 eof after 2\n7 close <nil>\n")

	// PING is answered, WebSocket is shown as an upgrade.
	w.frames()
	w.feed(frame(typePing, 0, 0, 1, 2, 3, 4, 5, 6, 7, 8))
	w.want("PING ack")
	w.answer = func(s *Stream, req *http1.Request) {
		s.Respond(&http1.Response{Status: 101, Upgrade: req.Upgrade, ContentLength: -1}, false)
		s.Write([]byte("hi"))
	}
	w.feed(w.head(9, false, ":method: CONNECT\n:protocol: websocket\n:scheme: https\n:authority: a.test\n:path: /chat"))
	w.feed(data(9, 4, false))
	w.wantLog("9 GET /chat host a.test upgrade websocket framing 0 end false\n")
	w.want("HEADERS 9", "DATA 9 2")
	if got := w.streams[len(w.streams)-1].data; len(got) != 4 {
		t.Errorf("%d bytes", len(got))
	}
	w.feed(frame(typeReset, 0, 9, u32(uint32(CodeCancel))...))
	w.wantLog("9 close http2: stream reset by peer: CANCEL\n")
	if w.c.Streams() != 0 {
		t.Error("streams are left")
	}
}

// A head that is malformed ends its stream and nothing else. (What http1 rejects is in its own tests.)
func TestMalformedHeads(t *testing.T) {
	w := serverWire(t)
	id := uint32(1)
	for name, lines := range map[string]string{
		"pseudo behind a field": ":method: GET\n:scheme: https\n:path: /\na: b\n:authority: a",
		"method twice":          ":method: GET\n" + getHead,
		"path twice":            getHead + ":path: /",
		"authority twice":       getHead + ":authority: a.test",
		"scheme twice":          getHead + ":scheme: https",
		"unknown pseudo":        getHead + ":version: 1",
		"status":                getHead + ":status: 200",
		"no path":               ":method: GET\n:scheme: https\n:authority: a",
		"empty path":            ":method: GET\n:scheme: https\n:authority: a\n:path: ",
		"upper case":            getHead + "Accept: */*",
		"connection":            getHead + "connection: close",
		"transfer-encoding":     getHead + "transfer-encoding: chunked",
		"te":                    getHead + "te: gzip",
		"host":                  getHead + "host: b.test",
		"CRLF in a value":       getHead + "a: b\r\tx: y",
		"CRLF in the path":      ":method: GET\n:scheme: https\n:authority: a\n:path: / HTTP/1.1\rx",
		"space in the method":   ":method: GET / HTTP/1.1\n:scheme: https\n:authority: a\n:path: /",
		"userinfo":              ":method: GET\n:scheme: https\n:authority: u@a\n:path: /",
		"length and no content": getHead + "content-length: 1",
		"two lengths":           getHead + "content-length: 0\ncontent-length: 0",
	} {
		w.feed(w.head(id, true, lines))
		if got, want := w.frames(), fmt.Sprintf("RST_STREAM %d PROTOCOL_ERROR", id); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		id += 2
	}
	w.wantLog("")

	// These deserve an answer.
	w.feed(w.head(id, true, getHead+"a: "+strings.Repeat("\x01", 5000)+strings.Repeat("a", 9000)))
	w.want(fmt.Sprintf("RST_STREAM %d PROTOCOL_ERROR", id))
	w.feed(w.head(id+2, false, getHead+"expect: nothing"), w.head(id+4, true, ":method: CONNECT\n:authority: a:1"))
	w.wantLog(fmt.Sprintf("%d reject 417\n%d reject 501\n", id+2, id+4))
	w.want(fmt.Sprintf("HEADERS %d end", id+2), fmt.Sprintf("RST_STREAM %d NO_ERROR", id+2), fmt.Sprintf("HEADERS %d end", id+4))
	id += 6

	// Content-Length and DATA.
	for _, tt := range []struct {
		name string
		n    []int
		want string
	}{
		{"exact", []int{4, 6}, ""},
		{"short", []int{4}, "RST_STREAM %d PROTOCOL_ERROR"},
		{"long", []int{4, 7}, "RST_STREAM %d PROTOCOL_ERROR"},
	} {
		w.hold = true
		w.feed(w.head(id, false, postHead+"content-length: 10"))
		for i, n := range tt.n {
			w.feed(data(id, n, i == len(tt.n)-1))
		}
		if tt.want == "" {
			w.want()
		} else {
			w.want(fmt.Sprintf(tt.want, id))
		}
		id += 2
	}
	w.log.Reset()

	// Trailers.
	for name, lines := range map[string]string{
		"pseudo": ":status: 200", "upper case": "A: b", "forbidden": "content-length: 5", "forwarding": "x-forwarded-for: 1.1.1.1", "not the end": "a: b",
	} {
		w.feed(w.head(id, false, postHead), w.head(id, name != "not the end", lines))
		if got, want := w.frames(), fmt.Sprintf("RST_STREAM %d PROTOCOL_ERROR", id); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", name, got, want)
		}
		id += 2
	}
	w.hold = false
	w.log.Reset()
	w.feed(w.head(id, true, getHead))
	w.want(fmt.Sprintf("HEADERS %d end", id))
	if w.err != nil {
		t.Error(w.err)
	}
}

func TestFloods(t *testing.T) {
	// A peer may do each of these some hundred times at once, and again after a while, but not on and on.
	id := func(i int) uint32 { return uint32(2*i + 1) }
	for name, flood := range map[string]func(w *wire, i int) []byte{
		"ping":          func(*wire, int) []byte { return frame(typePing, 0, 0, make([]byte, 8)...) },
		"ping ack":      func(*wire, int) []byte { return frame(typePing, flagAck, 0, make([]byte, 8)...) },
		"settings":      func(*wire, int) []byte { return settings() },
		"many settings": func(*wire, int) []byte { return settings(make([]uint32, 2*16)...) },
		"settings ack":  func(*wire, int) []byte { return frame(typeSettings, flagAck, 0) },
		"priority":      func(w *wire, i int) []byte { return frame(typePriority, 0, id(i), 0, 0, 0, 0, 0) },
		"unknown":       func(*wire, int) []byte { return frame(0xee, 0, 0) },
		"window update": func(*wire, int) []byte { return window(0, 1) },
		"empty data": func(w *wire, i int) []byte {
			if i == 0 {
				return w.head(1, false, postHead)
			}
			return data(1, 0, false)
		},
		"padding": func(w *wire, i int) []byte {
			if i == 0 {
				return w.head(1, false, postHead)
			}
			return frame(typeData, flagPadded, 1, 1, 0)
		},
		"rapid reset": func(w *wire, i int) []byte {
			return append(w.head(id(i), true, getHead), frame(typeReset, 0, id(i), u32(uint32(CodeCancel))...)...)
		},
		"rapid reset behind payload": func(w *wire, i int) []byte {
			b := append(w.head(id(i), false, postHead), data(id(i), 1, false)...)
			b = append(b, data(id(i), 1, false)...)
			return append(b, frame(typeReset, 0, id(i), u32(uint32(CodeCancel))...)...)
		},
		"made you reset": func(w *wire, i int) []byte {
			return append(w.head(id(i), false, getHead), window(id(i), 0)...)
		},
		"malformed": func(w *wire, i int) []byte { return w.head(id(i), true, getHead+"te: x") },
		"late data": func(w *wire, i int) []byte { return append(w.head(id(i), true, "a: b"), data(id(i), 0, false)...) },
		"reset gone": func(w *wire, i int) []byte {
			if i == 0 {
				return w.head(1, true, "a: b")
			}
			return frame(typeReset, 0, 1, u32(0)...)
		},
	} {
		t.Run(name, func(t *testing.T) {
			w := serverWire(t)
			w.hold = true
			i := 0
			for ; i < 200; i++ {
				w.feed(flood(w, i))
			}
			if w.err != nil {
				t.Fatalf("after %d: %v", i, w.err)
			}
			w.now = w.now.Add(time.Minute)
			for ; i < 400; i++ {
				w.feed(flood(w, i))
			}
			if w.err != nil {
				t.Fatalf("after %d, in two bursts: %v", i, w.err)
			}
			for ; i < 1700 && w.err == nil; i++ {
				w.feed(flood(w, i))
			}
			if e, ok := errors.AsType[*Error](w.err); !ok || e.Code != CodeEnhanceYourCalm {
				t.Fatalf("after %d: %v", i, w.err)
			}
			sent := w.frames()
			if last := sent[len(sent)-1]; !strings.HasPrefix(last, "GOAWAY") || !strings.HasSuffix(last, "ENHANCE_YOUR_CALM") {
				t.Error(last)
			}
			for _, r := range w.streams {
				if !r.closed {
					t.Fatal("a stream was not closed")
				}
			}
		})
	}
}

// A client that gets its answers is never told to be calm, however fast it asks.
func TestBusy(t *testing.T) {
	w := serverWire(t)
	for i := range uint32(5000) {
		w.feed(w.head(2*i+1, true, getHead), frame(typePing, 0, 0, make([]byte, 8)...))
	}
	if w.err != nil {
		t.Error(w.err)
	}
}

func TestConnectionErrors(t *testing.T) {
	continuation := func(n int, size int) []byte {
		b := frame(typeHeaders, 0, 1)
		for range n {
			b = append(b, frame(typeContinuation, 0, 1, make([]byte, size)...)...)
		}
		return b
	}
	for _, tt := range []struct {
		name string
		in   []byte
		code Code
	}{
		{"many continuations", continuation(17, 0), CodeEnhanceYourCalm},
		{"large block", continuation(4, maxFrame), CodeEnhanceYourCalm},
		{"interrupted block", append(frame(typeHeaders, 0, 1), frame(typePing, 0, 0, make([]byte, 8)...)...), CodeProtocol},
		{"block of another stream", append(frame(typeHeaders, 0, 1), frame(typeContinuation, 0, 3)...), CodeProtocol},
		{"continuation alone", frame(typeContinuation, flagEndHeaders, 1), CodeProtocol},
		{"long frame", frame(typePing, 0, 0, make([]byte, maxFrame+1)...), CodeFrameSize},
		{"even stream", frame(typeHeaders, flagEndHeaders, 2, 0x82), CodeProtocol},
		{"stream 0", frame(typeHeaders, flagEndHeaders, 0, 0x82), CodeProtocol},
		{"padding longer than the frame", frame(typeHeaders, flagEndHeaders|flagPadded, 1, 3, 0x82), CodeProtocol},
		{"index 0", frame(typeHeaders, flagEndHeaders, 1, 0x80), CodeCompression},
		{"index of nothing", frame(typeHeaders, flagEndHeaders, 1, 0xc0), CodeCompression},
		{"long integer", frame(typeHeaders, flagEndHeaders, 1, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01), CodeCompression},
		{"string behind the end", frame(typeHeaders, flagEndHeaders, 1, 0x40, 0x7f, 'a'), CodeCompression},
		{"large table", frame(typeHeaders, flagEndHeaders, 1, 0x3f, 0xe2, 0x1f), CodeCompression},
		{"late table size", frame(typeHeaders, flagEndHeaders, 1, 0x82, 0x20), CodeCompression},
		{"data on an idle stream", data(1, 1, false), CodeProtocol},
		{"reset of an idle stream", frame(typeReset, 0, 1, u32(0)...), CodeProtocol},
		{"window of an idle stream", window(1, 1), CodeProtocol},
		{"window of 0", window(0, 0), CodeProtocol},
		{"large window", window(0, maxWindow), CodeFlowControl},
		{"large initial window", settings(settingWindow, 1<<31), CodeFlowControl},
		{"push promise", frame(typePushPromise, flagEndHeaders, 1, 0, 0, 0, 2), CodeProtocol},
		{"push", settings(settingPush, 2), CodeProtocol},
		{"frame size", settings(settingFrameSize, 1), CodeProtocol},
		{"half a setting", frame(typeSettings, 0, 0, 1, 2, 3), CodeFrameSize},
		{"goaway of a stream", frame(typeGoAway, 0, 1, make([]byte, 8)...), CodeProtocol},
		{"short goaway", frame(typeGoAway, 0, 0, 1), CodeFrameSize},
	} {
		t.Run(tt.name, func(t *testing.T) {
			w := serverWire(t)
			w.feed(tt.in)
			if e, ok := errors.AsType[*Error](w.err); !ok || e.Code != tt.code {
				t.Errorf("%v, want %v", w.err, tt.code)
			}
			w.want("GOAWAY 0 " + tt.code.String())
			// And nothing more comes in or out.
			w.feed(w.head(1, true, getHead))
			w.want()
			w.wantLog("")
		})
	}
	w := newWire(t)
	w.c = w.e.Server(&w.out, w, w.now)
	if w.feed([]byte("GET / HTTP/1.1\r\n")); w.err == nil {
		t.Error("HTTP/1.1 was accepted")
	}
	w = newWire(t)
	w.c = w.e.Server(&w.out, w, w.now)
	if w.feed([]byte(preface), frame(typePing, 0, 0, make([]byte, 8)...)); w.err == nil {
		t.Error("no SETTINGS")
	}
}

// However much a block stands for, decoding it holds little.
func TestCompressionBomb(t *testing.T) {
	w := serverWire(t)
	name := append([]byte{0x40, 1, 'a', 0x7f, 0x80 + (3900-127)%128, (3900 - 127) / 128}, bytes.Repeat([]byte{'x'}, 3900)...)
	block := append(w.fields(getHead), name...)
	for len(block) < 16000 {
		block = append(block, 0x80|62)
	}
	w.feed(frame(typeHeaders, flagEndHeaders|flagEndStream, 1, block...))
	w.wantLog("1 reject 431\n")
	if n := cap(w.e.head.text); n > 64<<10 {
		t.Errorf("%d bytes", n)
	}
	// The table is what it was: the next block reads as it should.
	w.enc.WriteField(hpack.HeaderField{Name: "a", Value: strings.Repeat("x", 3900)})
	w.feed(w.head(3, true, getHead))
	if w.err != nil {
		t.Error(w.err)
	}
}

// longName is a literal that enters a name of 4000 octets, 'a' and so on, into the table.
func longName() []byte {
	return append(append([]byte{0x40, 0x7f, 0x80 + (4000-127)%128, (4000 - 127) / 128}, bytes.Repeat([]byte{'a'}, 4000)...), 0)
}

// Literals that refer to a long name are no way to have much copied, kept in the table or not.
func TestReferredNames(t *testing.T) {
	for _, ref := range []string{"\x7e\x00", "\x0f\x2f\x00", "\x1f\x2f\x00"} {
		for _, limit := range []int{maxRequestHead, maxResponseHead} {
			last := maxNames * limit / (4000 + entrySize) // that many are within the bound
			for n := last; n <= last+1; n++ {
				block := append(longName(), bytes.Repeat([]byte(ref), n)...)
				var h head
				tab := table{max: tableSize}
				if e := tab.decode(block, &h, limit); (e == errBlock) != (n > last) || e != nil && e != errBlock || !h.over {
					t.Errorf("%q, %d times, limit %d: %v", ref, n, limit, e)
				}
			}
		}
	}
	w := serverWire(t)
	w.feed(frame(typeHeaders, flagEndHeaders|flagEndStream, 1, append(append(w.fields(getHead), longName()...), bytes.Repeat([]byte{0x7e, 0}, 5000)...)...))
	if e, ok := errors.AsType[*Error](w.err); !ok || e.Code != CodeEnhanceYourCalm {
		t.Error(w.err)
	}
}

func TestStreamLimit(t *testing.T) {
	w := serverWire(t)
	w.hold = true
	for i := range uint32(maxStreams) {
		w.feed(w.head(2*i+1, true, getHead))
	}
	w.want()
	w.feed(w.head(2*maxStreams+1, true, getHead))
	w.want("RST_STREAM 257 REFUSED_STREAM")
	w.streams[0].s.Respond(&http1.Response{Status: 204, ContentLength: -1}, true)
	w.turn()
	w.feed(w.head(2*maxStreams+3, true, getHead))
	w.want("HEADERS 1 end")
	if w.c.Streams() != maxStreams {
		t.Errorf("%d streams", w.c.Streams())
	}
	// A stream that is skipped is closed, one that has ended is another matter.
	w.feed(w.head(2*maxStreams+9, true, getHead))
	w.want("RST_STREAM 265 REFUSED_STREAM")
	if w.feed(w.head(2*maxStreams+7, true, getHead)); w.err.(*Error).Code != CodeProtocol {
		t.Error(w.err)
	}
}

func TestReceiveWindows(t *testing.T) {
	w := serverWire(t)
	w.hold, w.pause = true, true
	send := func(id uint32, n int) {
		for ; n > 0; n -= min(n, maxFrame) {
			w.feed(data(id, min(n, maxFrame), false))
		}
	}
	w.feed(w.head(1, false, postHead), w.head(3, false, postHead), w.head(5, false, postHead), w.head(7, false, postHead), w.head(9, false, postHead))
	w.frames()
	send(1, streamWindow)
	if got := w.frames(); len(got) != 0 {
		t.Errorf("a paused stream: %q", got)
	}
	send(1, 1)
	w.want("RST_STREAM 1 FLOW_CONTROL_ERROR")

	// What it had held is free again. Kept bytes come when the handler resumes, and open the windows.
	send(3, streamWindow)
	w.frames()
	if n := len(w.streams[1].data); n != 0 {
		t.Errorf("%d bytes", n)
	}
	w.streams[1].s.Resume()
	w.turn()
	if n := len(w.streams[1].data); n != streamWindow {
		t.Errorf("%d bytes", n)
	}
	got := strings.Join(w.frames(), ", ")
	if !strings.Contains(got, "WINDOW_UPDATE 3 ") || !strings.Contains(got, "WINDOW_UPDATE 0 ") {
		t.Error(got)
	}
	// What a handler leaves is shown again with what comes.
	w.leave = 10
	w.streams[2].s.Resume()
	send(5, 100)
	if n := len(w.streams[2].data); n != 90 {
		t.Errorf("%d bytes", n)
	}
	w.leave = 0
	send(5, 1)
	if n := len(w.streams[2].data); n != 101 {
		t.Errorf("%d bytes", n)
	}
	// The windows of all streams together are larger than that of the connection.
	for _, r := range w.streams {
		r.s.Pause()
	}
	for id := uint32(3); id <= 9; id += 2 {
		send(id, streamWindow-64<<10)
	}
	if w.err != nil {
		t.Fatal(w.err)
	}
	w.feed(w.head(11, false, postHead), w.head(13, false, postHead))
	send(11, streamWindow)
	if send(13, streamWindow); w.err == nil || w.err.(*Error).Code != CodeFlowControl {
		t.Errorf("%v", w.err)
	}
}

func TestSendWindowsAndFairness(t *testing.T) {
	w := serverWire(t)
	w.answer = func(s *Stream, req *http1.Request) {
		s.Respond(&http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}, false)
		for s.Pending() <= s.HighMark() {
			s.Write(zeros)
		}
		s.CloseWrite()
	}
	w.feed(w.head(1, true, getHead), w.head(3, true, getHead), w.head(5, true, getHead))
	var sent int
	for _, f := range w.frames() {
		var id, n int
		if _, err := fmt.Sscanf(f, "DATA %d %d", &id, &n); err == nil {
			sent += n
		}
	}
	if sent != defaultWindow {
		t.Errorf("%d bytes, and the window is 65535", sent)
	}
	w.feed(window(1, 1<<20), window(3, 1<<20), window(5, 1<<20))
	w.want()
	w.feed(window(0, 8*maxFrame))
	turns := w.frames()
	if slices.Sort(turns); !slices.Equal(slices.Compact(slices.Clone(turns)), []string{"DATA 1 16384", "DATA 3 16384", "DATA 5 16384"}) ||
		len(turns) != 8 || turns[1] != turns[0] || turns[4] == turns[1] || turns[6] == turns[3] {
		t.Errorf("not in turn: %q", turns)
	}
	w.out.stuck = true
	w.feed(window(0, 1<<20))
	if n := len(w.out.b); n > 64<<10+2*maxFrame {
		t.Errorf("%d bytes for a transport that is stuck", n)
	}
	w.out.stuck = false
	w.c.Flush()
	w.turn()
	if w.c.Streams() != 0 || w.c.queued != 0 {
		t.Errorf("%d streams, %d bytes are left", w.c.Streams(), w.c.queued)
	}

	// SETTINGS_INITIAL_WINDOW_SIZE works on streams that are open, and may make windows negative.
	w.log.Reset()
	w.frames()
	w.answer = func(s *Stream, req *http1.Request) {
		s.Respond(&http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}, false)
		s.Write(zeros[:30])
	}
	w.feed(settings(settingWindow, 20), w.head(7, true, getHead))
	w.want("SETTINGS ack", "HEADERS 7", "DATA 7 20")
	w.feed(settings(settingWindow, 0))
	w.feed(window(7, 15))
	w.want("SETTINGS ack")
	w.feed(window(7, 6))
	w.want("DATA 7 1")
	w.feed(settings(settingWindow, 100))
	w.want("SETTINGS ack", "DATA 7 9")
	w.feed(window(7, maxWindow))
	w.want("RST_STREAM 7 FLOW_CONTROL_ERROR")
}

// All streams look full when the connection has too much queued, and are told when it has not.
func TestQueueOfConnection(t *testing.T) {
	w := serverWire(t)
	w.answer = func(s *Stream, req *http1.Request) {
		s.Respond(&http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}, false)
	}
	const n = 12
	for i := range uint32(n) {
		w.feed(w.head(2*i+1, true, getHead))
	}
	w.feed(settings(settingWindow, 0))
	w.log.Reset()
	full := 0
	for _, r := range w.streams {
		for range 2 {
			if r.s.Pending() <= r.s.HighMark() {
				r.s.Write(zeros)
			}
		}
		if r.s.HighMark() == 0 {
			full++
		}
	}
	if w.c.queued > maxQueued+n*len(zeros) || full == 0 {
		t.Errorf("%d bytes queued, %d streams full", w.c.queued, full)
	}

	// One that the peer has room for goes on, as if the others were not there.
	w.log.Reset()
	w.frames()
	w.feed(window(0, 1<<24), window(1, 1<<20))
	if r := w.streams[0]; r.s.Pending() > r.s.HighMark() || w.log.String() != "1 drain\n" || w.c.queued <= maxQueued {
		t.Errorf("%d bytes of one and %d in all are queued; it was told %q", r.s.Pending(), w.c.queued, w.log.String())
	}
	w.streams[0].s.Write(zeros)
	w.turn()
	if r := w.streams[0]; r.s.Pending() > r.s.HighMark() {
		t.Errorf("%d bytes wait, and so does the stream", r.s.Pending())
	}
	w.log.Reset()
	w.feed(settings(settingWindow, 1<<20), window(0, 1<<24))
	if got := strings.Count(w.log.String(), "drain"); got != n-1 {
		t.Errorf("%d streams of %d were told", got, n-1)
	}
}

// Those who wait are told as well when what was queued is dropped.
func TestQueueDropped(t *testing.T) {
	w := serverWire(t)
	w.answer = func(s *Stream, req *http1.Request) {
		s.Respond(&http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}, false)
	}
	for i := range uint32(12) {
		w.feed(w.head(2*i+1, true, getHead))
	}
	w.feed(settings(settingWindow, 0))
	for _, r := range w.streams[:9] {
		r.s.Write(zeros)
		r.s.Write(zeros)
	}
	last := w.streams[11]
	last.s.Write(zeros[:1<<10])
	if last.s.Pending() <= last.s.HighMark() {
		t.Fatal("not full")
	}
	w.log.Reset()
	for _, r := range w.streams[:9] {
		w.feed(frame(typeReset, 0, r.s.ID(), u32(uint32(CodeCancel))...))
	}
	if got := w.log.String(); !strings.Contains(got, "23 drain\n") {
		t.Error(got)
	}
}

// A stream whose own queue is sent first is told when those of the others are short, too.
func TestQueueOfStream(t *testing.T) {
	w := serverWire(t)
	w.answer = func(s *Stream, req *http1.Request) {
		s.Respond(&http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}, false)
	}
	const n = 6
	for i := range uint32(n) {
		w.feed(w.head(2*i+1, true, getHead))
	}
	w.feed(settings(settingWindow, 0))
	for _, r := range w.streams {
		for r.s.Pending() <= r.s.HighMark() {
			r.s.Write(zeros[:1<<10])
		}
	}
	w.log.Reset()
	w.feed(window(0, 1<<24), window(1, 1<<20))
	if w.c.queued <= maxQueued/2 || w.c.queued > maxQueued {
		t.Fatalf("%d bytes queued", w.c.queued)
	}
	w.feed(settings(settingWindow, 1<<20))
	if got := strings.Count(w.log.String(), "drain"); got != n {
		t.Errorf("%d streams of %d were told", got, n)
	}
}

func TestDrain(t *testing.T) {
	w := serverWire(t)
	w.hold = true
	w.feed(w.head(1, true, getHead))
	w.c.Drain()
	w.turn()
	w.want("GOAWAY 2147483647 NO_ERROR", "PING")
	w.feed(w.head(3, true, getHead)) // it was under way
	w.feed(frame(typePing, flagAck, 0, binary.BigEndian.AppendUint64(nil, pingDrain)...))
	w.want("GOAWAY 3 NO_ERROR")
	w.feed(w.head(5, true, getHead))
	if w.c.Streams() != 2 || w.c.Done() {
		t.Errorf("%d streams", w.c.Streams())
	}
	for _, r := range w.streams {
		r.s.Respond(&http1.Response{Status: 204, ContentLength: -1}, true)
	}
	w.turn()
	w.want("HEADERS 1 end", "HEADERS 3 end")
	if !w.c.Done() {
		t.Error("not done")
	}
}

func (w *wire) request(method string, end bool) *record {
	w.t.Helper()
	r := &record{w: w}
	req := &http1.Request{Method: []byte(method), Path: []byte("/"), Host: []byte("a.test"), Minor: 1, ContentLength: -1}
	if !end {
		req.Framing = http1.Chunked
	}
	s, err := w.c.Request(req, http1.Forward{Proto: "http"}, end, r)
	if err != nil {
		w.t.Fatal(err)
	}
	r.s = s
	w.streams = append(w.streams, r)
	w.turn()
	return r
}

func TestClient(t *testing.T) {
	w := clientWire(t)
	w.request("GET", true)
	w.want("HEADERS 1 end")
	w.feed(w.head(1, false, ":status: 103\nlink: x"), w.head(1, false, ":status: 200\ncontent-length: 3"), data(1, 3, true))
	w.wantLog("1 response 103 framing 0 end false\n1 response 200 framing 1 end false\n1 eof after 3\n1 close <nil>\n")

	r := w.request("POST", false)
	r.s.Write([]byte("abc"))
	r.s.WriteTrailers([]http1.Field{field("X-Sum", "7")})
	w.turn()
	w.want("HEADERS 3", "DATA 3 3", "HEADERS 3 end")
	w.feed(w.head(3, true, ":status: 204"))
	w.wantLog("3 response 204 framing 0 end true\n3 eof after 0\n3 close <nil>\n")

	// The server needs no more of the request.
	w.request("POST", false)
	w.feed(w.head(5, true, ":status: 413"), frame(typeReset, 0, 5, u32(0)...))
	w.wantLog("5 response 413 framing 1 end true\n5 eof after 0\n5 close <nil>\n")
	w.frames()

	for _, tt := range []struct{ name, head, more string }{
		{"no status", "a: b", ""},
		{"101", ":status: 101", ""},
		{"two", ":status: 200\n:status: 200", ""},
		{"pseudo of a request", ":status: 200\n:path: /", ""},
		{"connection", ":status: 200\nconnection: close", ""},
		{"long", ":status: 200\ncontent-length: 1", "xx"},
		{"data of 204", ":status: 204", "x"},
	} {
		r := w.request("GET", true)
		id := r.s.ID()
		w.frames()
		w.feed(w.head(id, false, tt.head))
		if tt.more != "" {
			w.feed(data(id, len(tt.more), false))
		}
		if got, want := w.frames(), fmt.Sprintf("RST_STREAM %d PROTOCOL_ERROR", id); len(got) != 1 || got[0] != want {
			t.Errorf("%s: %q, want %q", tt.name, got, want)
		}
	}
	r = w.request("GET", true)
	w.frames()
	w.feed(data(r.s.ID(), 1, false))
	w.want(fmt.Sprintf("RST_STREAM %d PROTOCOL_ERROR", r.s.ID()))

	// What the server has not seen is told apart.
	w.log.Reset()
	a, b := w.request("GET", true), w.request("POST", true)
	c := w.request("POST", true)
	w.feed(frame(typeReset, 0, b.s.ID(), u32(uint32(CodeRefused))...))
	w.feed(frame(typeGoAway, 0, 0, append(u32(a.s.ID()), u32(0)...)...))
	w.wantLog(fmt.Sprintf("%d close %v\ngoaway NO_ERROR\n%d close %v\n", b.s.ID(), ErrUnseen, c.s.ID(), ErrUnseen))
	if w.c.Room() != 0 || w.c.Done() {
		t.Error("there is room")
	}
	w.feed(w.head(a.s.ID(), true, ":status: 204"))
	if !w.c.Done() || w.err != nil {
		t.Error("not done", w.err)
	}
}

// A visitor who is about to send a short rest of a request which was answered is not told
// to stop: some do not show the answer then.
func TestAnsweredEarly(t *testing.T) {
	w := serverWire(t)
	w.answer = func(s *Stream, req *http1.Request) {
		s.Respond(&http1.Response{Status: 413, ContentLength: 0, Framing: http1.Length}, true)
		s.Close()
	}
	w.feed(w.head(1, false, postHead+"content-length: 100"))
	w.want("HEADERS 1 end")
	w.log.Reset()
	w.feed(data(1, 60, false), data(1, 40, false))
	w.wantLog("")
	w.feed(data(1, 0, true))
	w.wantLog("1 close <nil>\n")
	w.want()

	// It may give up, must not send more than it said, has one window, and a rest of unknown length is not waited for.
	w.feed(w.head(3, false, postHead+"content-length: 100"), frame(typeReset, 0, 3, u32(0)...))
	w.want("HEADERS 3 end")
	w.feed(w.head(5, false, postHead+"content-length: 100"), data(5, 101, true))
	w.want("HEADERS 5 end", "RST_STREAM 5 PROTOCOL_ERROR")
	w.feed(w.head(7, false, postHead+fmt.Sprintf("content-length: %d", streamWindow+1)))
	w.want("HEADERS 7 end")
	for range streamWindow/maxFrame - 1 {
		w.feed(data(7, maxFrame, false))
	}
	if got := w.frames(); slices.ContainsFunc(got, func(f string) bool { return !strings.HasPrefix(f, "WINDOW_UPDATE 0 ") }) {
		t.Error("more than the connection's window:", got)
	}
	w.feed(data(7, maxFrame, false))
	if got := w.frames(); len(got) == 0 || got[len(got)-1] != "RST_STREAM 7 NO_ERROR" {
		t.Error(got)
	}
	w.feed(w.head(9, false, postHead))
	w.want("HEADERS 9 end", "RST_STREAM 9 NO_ERROR")
	if w.err != nil || w.c.n != 0 {
		t.Error(w.err, w.c.n)
	}
}

// A server that answers early, and wants no more of the request, may do so on and on.
func TestEarlyAnswers(t *testing.T) {
	w := clientWire(t)
	for range 2 * resetsMax {
		r := w.request("POST", false)
		w.feed(w.head(r.s.ID(), true, ":status: 200\ngrpc-status: 16"), frame(typeReset, 0, r.s.ID(), u32(uint32(CodeNone))...))
		if w.err != nil || !r.closed {
			t.Fatalf("stream %d: %v, %v", r.s.ID(), r.closed, w.err)
		}
		w.streams = w.streams[:0]
	}
}

func TestRoom(t *testing.T) {
	w := newWire(t)
	w.c = w.e.Client(&w.out, w, w.now)
	if n := w.c.Room(); n != maxStreamsUntold {
		t.Error(n)
	}
	w.feed(settings(settingStreams, 1))
	w.request("GET", true)
	if w.c.Room() != 0 || w.rooms != 0 {
		t.Error("room")
	}
	w.feed(w.head(1, true, ":status: 204"))
	if w.c.Room() != 1 || w.rooms != 1 {
		t.Error("no room")
	}
	r := w.request("GET", true)
	w.c.Close(errLost)
	if !r.closed || w.c.Streams() != 0 || w.c.Room() != 0 {
		t.Error("not closed")
	}
	w.wantLog("1 response 204 framing 0 end true\n1 eof after 0\n1 close <nil>\n3 close connection lost\n")
}

func TestPing(t *testing.T) {
	w := clientWire(t)
	w.c.Ping()
	w.c.Ping()
	w.turn()
	w.want("PING", "PING")
	if w.c.Unanswered() != 2 {
		t.Error(w.c.Unanswered())
	}
	w.feed(frame(typePing, flagAck, 0, binary.BigEndian.AppendUint64(nil, pingAlive)...))
	if w.c.Unanswered() != 0 {
		t.Error(w.c.Unanswered())
	}
}

// session is some of everything that a client may send.
func session(w *wire) []byte {
	b := []byte(preface)
	b = append(b, settings(settingTableSize, 100, settingWindow, 1000)...)
	b = append(b, w.head(1, true, getHead+"cookie: a\ncookie: b")...)
	b = append(b, w.head(3, false, postHead+"content-length: 60")...)
	b = append(b, data(3, 50, false)...)
	b = append(b, frame(typePing, 0, 0, make([]byte, 8)...)...)
	b = append(b, frame(typeData, flagPadded, 3, append([]byte{5}, make([]byte, 15)...)...)...)
	b = append(b, w.head(3, true, "x-sum: 7")...)
	f := w.fields(getHead + "a: " + strings.Repeat("b", 30))
	b = append(b, frame(typeHeaders, flagEndStream, 5, f[:5]...)...)
	b = append(b, frame(typeContinuation, 0, 5, f[5:9]...)...)
	b = append(b, frame(typeContinuation, flagEndHeaders, 5, f[9:]...)...)
	b = append(b, frame(0xaa, 0, 0, 1, 2, 3)...)
	b = append(b, w.head(7, false, postHead)...)
	b = append(b, data(7, 10, false)...)
	b = append(b, frame(typeReset, 0, 7, u32(uint32(CodeCancel))...)...)
	b = append(b, w.head(9, true, getHead+"te: gzip")...)
	b = append(b, window(0, 100)...)
	b = append(b, w.head(11, true, getHead)...)
	b = append(b, data(13, 1, true)...) // and this is the end
	return b
}

// play feeds b, cut at the given places, and returns what happened.
func play(t testing.TB, b []byte, cuts ...int) string {
	w := newWire(t)
	w.c = w.e.Server(&w.out, w, w.now)
	w.answer = func(s *Stream, req *http1.Request) {
		s.Respond(&http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}, false)
		s.CloseWrite()
	}
	last := 0
	for _, i := range append(cuts, len(b)) {
		w.feed(b[last:i])
		last = i
	}
	for _, r := range w.streams {
		fmt.Fprintf(&w.log, "%d: %d bytes\n", r.s.ID(), len(r.data))
	}
	lines := strings.Split(w.log.String(), "\n")
	slices.SortStableFunc(lines, func(a, b string) int { // callbacks of different streams have no order
		a, _, _ = strings.Cut(a, " ")
		b, _, _ = strings.Cut(b, " ")
		return strings.Compare(a, b)
	})
	return strings.Join(lines, "\n") + fmt.Sprintln(w.err)
}

func TestSegmentation(t *testing.T) {
	b := session(newWire(t))
	whole := play(t, b)
	if !strings.Contains(whole, "3 eof after 60") || !strings.Contains(whole, "frame on an idle stream") {
		t.Fatal(whole)
	}
	every := make([]int, len(b))
	for i := range b {
		every[i] = i
		if got := play(t, b, i); got != whole {
			t.Fatalf("cut at %d:\n%swhole:\n%s", i, got, whole)
		}
	}
	if got := play(t, b, every...); got != whole {
		t.Fatalf("each byte alone:\n%swhole:\n%s", got, whole)
	}
}
