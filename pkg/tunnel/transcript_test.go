package tunnel

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"
)

// golden has one vector of each frame, as docs/protocol.md gives them.
var golden = map[string]string{
	"open":           "01 00000001 000006 686561646572",
	"data":           "02 00000001 00000d 0000000000000000 68656c6c6f",
	"data, offset":   "02 00000001 00000d 0000000000000005 776f726c64",
	"data, fin":      "82 00000001 000009 000000000000000a 21",
	"fin alone":      "82 00000001 000008 000000000000000b",
	"credit":         "03 00000001 000010 000000000000000c 000000000001000b",
	"reset":          "04 00000001 000002 0005",
	"reset ack":      "05 00000001 000000",
	"ping":           "06 00000000 000008 0000000000000001",
	"pong":           "07 00000000 000008 0000000000000001",
	"role":           "08 00000000 000001 01",
	"end":            "09 00000000 000000",
	"goaway":         "0a 00000000 000000",
	"datagram":       "0b 00000007 000004 01020304",
	"unknown, flags": "7f 00000000 000003 ffffff",
}

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(strings.ReplaceAll(s, " ", ""))
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// A script drives one session by the bytes of its peer.
type script struct {
	t    *testing.T
	s    *Session
	now  time.Time
	link *tapLink
	err  error    // of the session's OnClose
	log  []string // events of accepted streams
	last *Stream  // accepted last
}

// A tapLink keeps what is sent.
type tapLink struct {
	sent   []byte
	sends  int
	full   bool
	closed error
}

func (l *tapLink) Room() int {
	if l.full {
		return 0
	}
	return 64 << 10
}
func (l *tapLink) Close(err error) { l.closed = err }
func (l *tapLink) Send(b []byte) {
	l.sent = append(l.sent, b[Headroom:]...)
	l.sends++
}

func newScript(t *testing.T, cfg Config) *script {
	c := &script{t: t, now: time.Unix(1e9, 0)}
	if cfg.Accept == nil {
		cfg.Accept = func(st *Stream, header []byte) {
			c.last = st
			c.log = append(c.log, fmt.Sprintf("open %d %q", st.ID(), header))
			st.SetHandler(c.handler(st))
		}
	}
	if cfg.OnClose == nil {
		cfg.OnClose = func(err error) {
			c.err = err
			c.log = append(c.log, fmt.Sprint("session over: ", err))
		}
	}
	c.s = New(cfg, c.now)
	return c
}

// handler logs the events of st.
func (c *script) handler(st *Stream) Handler {
	log := func(format string, args ...any) { c.log = append(c.log, fmt.Sprintf(format, args...)) }
	return &funcs{
		data:  func(b []byte) int { log("data %d %q", st.ID(), b); return len(b) },
		eof:   func() { log("eof %d", st.ID()) },
		drain: func() { log("drain %d", st.ID()) },
		close: func(err error) { log("close %d %v", st.ID(), err) },
	}
}

// attach gives the session a new link.
func (c *script) attach() {
	c.link = &tapLink{}
	c.s.Attach(c.link, RoleInteractive, c.now)
}

// start attaches a link and gets it over with the resume.
func (c *script) start() {
	c.t.Helper()
	c.attach()
	c.recv("end")
	c.sends("END and PING open a link", "end", "ping")
	c.recv("pong")
}

func (c *script) advance(d time.Duration) {
	c.now = c.now.Add(d)
	c.s.Advance(c.now)
}

func (c *script) bytes(frames []string) (b []byte) {
	c.t.Helper()
	for _, f := range frames {
		if v, ok := golden[f]; ok {
			f = v
		}
		b = append(b, unhex(c.t, f)...)
	}
	return b
}

// recv gives frames to the session: golden ones by name, others in hex.
func (c *script) recv(frames ...string) {
	c.t.Helper()
	if err := c.s.Receive(c.link, c.bytes(frames), c.now); err != nil {
		c.t.Fatal(err)
	}
}

// sends wants exactly these frames to be sent.
func (c *script) sends(why string, frames ...string) {
	c.t.Helper()
	c.s.Flush(c.now)
	want := c.bytes(frames)
	if !bytes.Equal(c.link.sent, want) {
		c.t.Fatalf("%s:\nsent %x\nwant %x", why, c.link.sent, want)
	}
	c.link.sent = nil
}

// happens wants exactly these events.
func (c *script) happens(why string, events ...string) {
	c.t.Helper()
	got := strings.Join(c.log, "\n")
	if want := strings.Join(events, "\n"); got != want {
		c.t.Fatalf("%s:\ngot:\n%s\nwant:\n%s", why, got, want)
	}
	c.log = nil
}

func (c *script) open() *Stream {
	c.t.Helper()
	st := mustOpen(c.t, c.s, &funcs{})
	st.SetHandler(c.handler(st))
	return st
}

func TestTranscriptOfAnOpener(t *testing.T) {
	c := newScript(t, Config{Client: true})
	st := c.open()
	st.Write([]byte("hello"))
	c.attach()
	c.sends("a link begins with END, and nothing else before the peer's END", "end")
	c.recv("end")
	c.sends("then streams open, with their data", "ping", "open", "data")

	st.Write([]byte("world"))
	c.sends("data carries its offset", "data, offset")
	st.Write([]byte("!"))
	st.CloseWrite()
	st.Write([]byte("too late"))
	c.sends("FIN is a flag on the last data", "data, fin")
	c.recv("pong", "credit")
	c.happens("the FIN is acknowledged, but the peer is not finished")
	c.recv("82 00000001 00000a 0000000000000000 6f6b")
	c.happens("its FIN ends the stream", `data 1 "ok"`, "eof 1", "close 1 <nil>")
	c.sends("the acknowledgement may wait")
	c.advance(lazyAck)
	c.sends("but not long", "03 00000001 000010 0000000000000003 0000000000010002")
	c.recv("data", "credit", "reset")
	c.happens("late frames of a finished stream are ignored")
	c.sends("but acknowledged", "reset ack", "03 00000001 000010 0000000000000005 0000000000000005")
	if s := c.s.Stats(); s.Streams != 0 || s.Buffered != 0 || s.Sent != 11 || s.Received != 2 {
		t.Fatalf("%+v", s)
	}
}

func TestTranscriptOfAnAcceptor(t *testing.T) {
	c := newScript(t, Config{})
	c.start()
	c.recv("open", "data", "data, offset", "data, fin")
	c.happens("a stream comes whole", `open 1 "header"`, `data 1 "hello"`, `data 1 "world"`, `data 1 "!"`, "eof 1")
	c.last.CloseWrite()
	c.sends("a FIN without data takes one byte of the offsets too", "82 00000001 000008 0000000000000000")
	c.advance(lazyAck)
	c.sends("12 bytes are received, the FIN is one", "credit")
	c.recv("03 00000001 000010 0000000000000001 0000000000010000")
	c.happens("both directions are finished", "close 1 <nil>")

	c.recv("01 00000003 000000")
	c.happens("a header may be empty", `open 3 ""`)
	c.last.Reset(CodeNotFound)
	c.happens("OnClose never comes inside the call")
	c.sends("a reset carries its code", "04 00000003 000002 0005")
	c.happens("it comes soon", "close 3 stream reset: not found")
	c.recv("02 00000003 000009 0000000000000000 21", "05 00000003 000000")
	c.happens("late data of a reset stream is ignored")

	c.recv("06 00000000 000008 00000000000000ff", "06 00000000 000008 0000000000000001")
	c.sends("the last ping is answered", "pong")
	c.recv("datagram", "unknown, flags", "01 00000005 000000")
	c.happens("unknown frames are skipped", `open 5 ""`)
	c.recv("04 00000005 000002 0001")
	c.happens("the peer resets", "close 5 stream reset by peer: cancelled")
	c.sends("the reset is acknowledged, the open needs no more", "05 00000005 000000")
}

func TestCutRepeatsWhatIsMissing(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	st := c.open()
	st.Write([]byte("hello"))
	st.Write([]byte("world"))
	st.Write([]byte("!"))
	st.CloseWrite()
	c.sends("all of it", "open", "82 00000001 000013 0000000000000000 68656c6c6f776f726c6421")
	c.s.Lost(c.link, errors.New("cut"), c.now)
	c.attach()
	c.sends("the peer is told nothing of a stream that it may not have", "end")
	c.recv("03 00000001 000010 0000000000000005 0000000000010005", "end")
	c.sends("it has it, and the rest comes again",
		"ping", "82 00000001 00000e 0000000000000005 776f726c6421")
	c.recv("02 00000001 000009 0000000000000000 21", "02 00000001 00000a 0000000000000000 2121")
	c.happens("what is here already is dropped", `data 1 "!"`, `data 1 "!"`)
	c.s.Lost(c.link, errors.New("cut"), c.now)
	c.attach()
	c.sends("CREDIT tells what was received", "03 00000001 000010 0000000000000002 0000000000010002", "end")
	c.recv("03 00000001 000010 0000000000000007 0000000000010005", "03 00000001 000010 0000000000000006 0000000000010005", "end")
	c.sends("an older one changes nothing", "ping", "82 00000001 00000c 0000000000000007 726c6421")
}

func TestCutLosesOpen(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	one, two := c.open(), c.open()
	one.Write([]byte("hello"))
	two.Write([]byte("!"))
	c.sends("two streams", "open", "01 00000003 000006 686561646572",
		"data", "02 00000003 000009 0000000000000000 21")
	c.attach() // supersedes
	c.recv("03 00000001 000010 0000000000000005 0000000000010005", "end")
	c.sends("the second is opened again; the peer is told nothing of it before",
		"03 00000001 000010 0000000000000000 0000000000010000", "end",
		"01 00000003 000006 686561646572", "02 00000003 000009 0000000000000000 21", "ping")
	c.happens("nobody notices")
}

func TestCutLosesReset(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	st := c.open()
	c.sends("a stream", "open")
	st.Reset(CodeNotFound)
	c.sends("a reset", "reset")
	for range 2 {
		c.attach()
		c.sends("a link begins with END", "end")
		c.recv("end")
		c.sends("a reset is repeated on each control path", "ping", "reset")
	}
	c.recv("reset ack")
	c.attach()
	c.recv("end")
	c.sends("until it is acknowledged", "end", "ping")
}

// More opens and resets than fit into a batch keep their order.
func TestCutWithManyStreams(t *testing.T) {
	const n = 10_000
	c := newScript(t, Config{Client: true})
	c.start()
	var streams []*Stream
	for range 2 * n {
		streams = append(streams, mustOpen(t, c.s, &funcs{}))
	}
	c.s.Flush(c.now)
	for _, st := range streams[:n] {
		st.Reset(CodeCancelled)
	}
	for _, st := range streams[n:] {
		st.Write([]byte("!"))
	}
	c.attach()
	c.recv("end")
	c.s.Flush(c.now)
	opened, last, resets := map[uint32]int{}, uint32(0), 0
	frames(c.link.sent, func(typ frameType, id uint32, _ []byte) {
		switch typ {
		case frameOpen:
			if id < last || resets > 0 {
				t.Fatalf("OPEN %d behind %d, and %d resets", id, last, resets)
			}
			last = id
			opened[id]++
		case frameReset:
			resets++
		case frameData:
			if opened[id] != 1 {
				t.Fatalf("data of stream %d before its OPEN", id)
			}
		}
	})
	if len(opened) != n || resets != n {
		t.Fatalf("%d streams are opened again, %d reset", len(opened), resets)
	}
}

func TestLateDataIsAcknowledged(t *testing.T) {
	c := newScript(t, Config{})
	c.start()
	c.recv("open", "82 00000001 000009 0000000000000000 21")
	c.last.CloseWrite()
	c.advance(lazyAck)
	c.sends("the end of it", "03 00000001 000010 0000000000000002 0000000000010001", "82 00000001 000008 0000000000000000")
	c.recv("03 00000001 000010 0000000000000001 0000000000010000")
	c.happens("it has ended", `open 1 "header"`, `data 1 "!"`, "eof 1", "close 1 <nil>")
	c.recv("02 00000001 000009 0000000000000000 21")
	c.sends("what comes of it is acknowledged again", "03 00000001 000010 0000000000000001 0000000000000001")
	c.recv("02 00000001 000009 0000000000000000 21", "82 00000001 000008 0000000000000001")
	c.sends("once", "03 00000001 000010 0000000000000002 0000000000000002")
	c.recv("01 00000003 000000")
	c.last.Reset(CodeRefused)
	c.recv("82 00000003 000009 0000000000000000 21")
	c.sends("that of one that is being reset is not", "04 00000003 000002 0002")
}

// A side that has finished but for an acknowledgement asks for it when a link is lost: then,
// and until the peer must have noticed as well.
func TestLostAcknowledgementIsAskedFor(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	st := c.open()
	st.CloseWrite()
	c.sends("all of it", "open", "82 00000001 000008 0000000000000000")
	c.recv("82 00000001 000008 0000000000000000")
	first := c.link
	c.s.Attach(&tapLink{}, RoleBulk, c.now)
	c.s.Lost(c.s.carriers[1].link, errors.New("cut"), c.now)
	c.sends("the end of it, again", "82 00000001 000008 0000000000000000")
	fins := 0
	for range 40 {
		c.advance(time.Second)
		c.s.Flush(c.now)
		frames(first.sent, func(typ frameType, id uint32, p []byte) {
			switch typ {
			case frameData | flagFIN:
				fins++
			case framePing:
				c.recv(fmt.Sprintf("07 00000000 000008 %x", p))
			}
		})
		first.sent = nil
	}
	if fins != 3 {
		t.Fatalf("asked for %d times", fins)
	}
	c.recv("03 00000001 000010 0000000000000001 0000000000010000")
	c.happens("it ends", "eof 1", "close 1 <nil>")
}

func TestViolations(t *testing.T) {
	big := strings.Repeat("00", 1025)
	for why, frames := range map[string][]string{
		"data for a stream that never was":    {"data, offset"},
		"data for one of ours that never was": {"02 00000002 000009 0000000000000000 21"},
		"data in a gap":                       {"open", "data, offset"},
		"data behind FIN":                     {"open", "82 00000001 000008 0000000000000000", "data"},
		"FIN before the end":                  {"open", "data", "82 00000001 000008 0000000000000002"},
		"another FIN before the end":          {"open", "82 00000001 000009 0000000000000000 21", "82 00000001 000008 0000000000000000"},
		"an offset that wraps around":         {"open", "02 00000001 000009 ffffffffffffffff 21"},
		"an open with our parity":             {"01 00000002 000000"},
		"an open of the session itself":       {"01 00000000 000000"},
		"a header too long":                   {"01 00000001 000401 " + big},
		"too much data":                       {"02 00000001 008009"},
		"data without an offset":              {"02 00000001 000007"},
		"a short credit":                      {"03 00000001 00000f"},
		"a long ping":                         {"06 00000000 000009"},
		"an acknowledgement of nothing":       {"open", "03 00000001 000010 0000000000000001 0000000000010000"},
		"END twice":                           {"end"},
		"more roles than anybody needs":       slices.Repeat([]string{"role"}, roleBurst+1),
		"a role that is none":                 {"08 00000000 000001 04"},
		"a datagram too long":                 {"0b 00000001 00ffe4"},
	} {
		c := newScript(t, Config{})
		c.start()
		err := c.s.Receive(c.link, c.bytes(frames), c.now)
		if !errors.Is(err, ErrProtocol) {
			t.Errorf("%s: %v", why, err)
		}
		if again := c.s.Receive(c.link, c.bytes([]string{"ping"}), c.now); again != err {
			t.Errorf("%s: the link goes on: %v", why, again)
		}
	}
	for _, frame := range []string{"open", "data"} {
		c := newScript(t, Config{})
		c.attach()
		if err := c.s.Receive(c.link, c.bytes([]string{frame}), c.now); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s before END: %v", frame, err)
		}
	}
	for why, frames := range map[string][]string{
		"another stream":  {"data", "02 00000003 000009 0000000000000000 21"},
		"a control frame": {"data", "ping"},
		"an open":         {"open"},
		"an unknown one":  {"unknown, flags"},
		"a gap":           {"data, offset"},
	} {
		c := newScript(t, Config{})
		c.start()
		c.recv("open", "01 00000003 000000")
		r := c.s.NewLaneReceiver(c.link)
		if err := c.s.ReceiveLane(r, c.bytes(frames), c.now); !errors.Is(err, ErrProtocol) {
			t.Errorf("%s on a lane: %v", why, err)
		}
	}
}

func TestWindowIsEnforced(t *testing.T) {
	c := newScript(t, Config{})
	c.start()
	c.recv("open")
	c.last.Pause()
	chunk := make([]byte, maxData)
	frame := func(off, n int) []byte {
		b := make([]byte, dataHeaderSize)
		putHeader(b, frameData, 1, 8+n)
		b[14], b[15] = byte(off>>8), byte(off)
		b[13] = byte(off >> 16)
		return append(b, chunk[:n]...)
	}
	for i := range initialWindow / maxData {
		if err := c.s.Receive(c.link, frame(i*maxData, maxData), c.now); err != nil {
			t.Fatal(err)
		}
	}
	c.recv("02 00000001 000008 0000000000010000")
	if err := c.s.Receive(c.link, frame(initialWindow, 1), c.now); !errors.Is(err, ErrProtocol) {
		t.Fatalf("one byte more than the window: %v", err)
	}
}

func TestTranscriptOfAGoAway(t *testing.T) {
	var c *script
	var st *Stream
	c = newScript(t, Config{Client: true, OnGoAway: func() {
		c.log = append(c.log, "goaway")
		if _, err := c.s.Open(nil); !errors.Is(err, ErrDraining) {
			t.Errorf("open: %v", err)
		}
		st.Close()
	}})
	c.start()
	st = c.open()
	c.sends("a stream opens", "open")
	c.recv("goaway", "goaway")
	c.happens("the owner is told, once", "goaway")
	c.sends("and ends what is idle", "82 00000001 000008 0000000000000000")
	c.recv("03 00000001 000010 0000000000000001 0000000000010001", "82 00000001 000008 0000000000000000")
	c.happens("the stream ends", "close 1 <nil>")
	c.advance(lazyAck)
	c.sends("and with it", "03 00000001 000010 0000000000000001 0000000000010000")
	c.happens("the session", "session over: <nil>")
}

func TestBytes(t *testing.T) {
	c := newScript(t, Config{})
	c.start()
	want := func(received, written uint64) {
		t.Helper()
		if r, w := c.last.Bytes(); r != received || w != written {
			t.Errorf("%d received, %d written, want %d, %d", r, w, received, written)
		}
	}
	c.recv("open", "data")
	want(5, 0)
	c.last.Write([]byte("hello"))
	want(5, 5)
	c.recv("data, offset", "data, fin")
	c.last.CloseWrite()
	want(11, 5)
	c.last.Reset(CodeCancelled)
	want(11, 5)
}

// TestEverySplit cuts a conversation in two at each byte, and into single bytes.
func TestEverySplit(t *testing.T) {
	frames := []string{
		"end", "open", "data", "unknown, flags", "data, offset", "datagram", "01 00000003 000000", "ping",
		"0b 00000003 000004 01020304", "0b 00000003 000000",
		"82 00000003 000009 0000000000000000 21", "data, fin", "04 00000001 000002 0001", "pong",
		"0c 00000000 000000", "goaway", "05 00000001 000000",
	}
	whole := (&script{t: t}).bytes(frames)
	run := func(cuts ...int) string {
		var one, three strings.Builder // the events of streams 1 and 3; data may come in pieces
		c := newScript(t, Config{Accept: func(st *Stream, header []byte) {
			log := &one
			if st.ID() == 3 {
				log = &three
			}
			fmt.Fprintf(log, "open %q ", header)
			st.SetHandler(&taker{&funcs{
				data:  func(b []byte) int { log.Write(b); return len(b) },
				eof:   func() { log.WriteString(" eof") },
				close: func(err error) { fmt.Fprint(log, " close ", err) },
			}, func(b []byte) { fmt.Fprintf(log, "[%x] ", b) }})
		}})
		c.attach()
		c.s.Flush(c.now)
		from := 0
		for _, to := range append(cuts, len(whole)) {
			if err := c.s.Receive(c.link, bytes.Clone(whole[from:to]), c.now); err != nil {
				t.Fatalf("cuts %v: %v", cuts, err)
			}
			from = to
		}
		c.s.Flush(c.now)
		return fmt.Sprintf("%s\n%s\n%x", &one, &three, c.link.sent)
	}
	want := run()
	if !strings.HasPrefix(want, "open \"header\" helloworld! eof close stream reset by peer: cancelled\nopen \"\" [01020304] [] ! eof\n") {
		t.Fatal(want)
	}
	var each []int
	for i := 1; i < len(whole); i++ {
		each = append(each, i)
		if got := run(i); got != want {
			t.Fatalf("cut at %d:\n%s\nwant:\n%s", i, got, want)
		}
	}
	if got := run(each...); got != want {
		t.Fatalf("single bytes:\n%s\nwant:\n%s", got, want)
	}
}

// The vectors are those of the documentation.
func TestVectorsAreDocumented(t *testing.T) {
	doc, err := os.ReadFile("../../docs/protocol.md")
	if err != nil {
		t.Fatal(err)
	}
	for name, v := range golden {
		if !strings.Contains(string(doc), v) && name != "unknown, flags" {
			t.Errorf("%s: %s is not in docs/protocol.md", name, v)
		}
	}
	for code, name := range codeNames {
		if name != "" && !strings.Contains(string(doc), fmt.Sprintf("\n| %d | ", code)) {
			t.Errorf("code %d, %s, is not in docs/protocol.md", code, name)
		}
	}
}
