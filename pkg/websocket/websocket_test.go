package websocket

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	coder "github.com/coder/websocket"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var testKey = &Key{0x37, 0xfa, 0x21, 0x3d}

// transcript decodes b, given in pieces of the sizes that next returns, and writes
// down what comes out; parts of a message are joined.
func transcript(d *Decoder, b []byte, next func() int) string {
	b = bytes.Clone(b)
	var out strings.Builder
	var message []byte
	for len(b) > 0 {
		piece := b[:min(len(b), max(1, next()))]
		b = b[len(piece):]
		for {
			ev, n, err := d.Next(piece)
			piece = piece[n:]
			if err != nil {
				fmt.Fprintf(&out, "error %v", err)
				return out.String()
			}
			switch ev.Op {
			case None:
				if len(piece) > 0 {
					panic("None with input left")
				}
			case Text, Binary:
				message = append(message, ev.Payload...)
				if ev.Final {
					fmt.Fprintf(&out, "message %d %q\n", ev.Op, message)
					message = nil
				}
				continue
			default:
				fmt.Fprintf(&out, "control %#x %q\n", ev.Op, ev.Payload)
				continue
			}
			break
		}
	}
	if message != nil {
		fmt.Fprintf(&out, "part %q\n", message)
	}
	return out.String()
}

func whole() int { return 1 << 30 }

// The examples of rfc6455#section-5.7.
func TestDecodeRFC(t *testing.T) {
	for _, tt := range []struct {
		masked   bool
		in, want string
	}{
		{false, "\x81\x05Hello", "message 1 \"Hello\"\n"},
		{true, "\x81\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "message 1 \"Hello\"\n"},
		{false, "\x01\x03Hel\x80\x02lo", "message 1 \"Hello\"\n"},
		{false, "\x01\x03Hel\x89\x02hi\x80\x02lo", "control 0x9 \"hi\"\nmessage 1 \"Hello\"\n"},
		{false, "\x89\x05Hello", "control 0x9 \"Hello\"\n"},
		{true, "\x8a\x85\x37\xfa\x21\x3d\x7f\x9f\x4d\x51\x58", "control 0xa \"Hello\"\n"},
		{false, "\x82\x7e\x01\x00" + strings.Repeat("x", 256), "message 2 \"" + strings.Repeat("x", 256) + "\"\n"},
		{false, "\x82\x00\x02\x00\x00\x00\x80\x01x", "message 2 \"\"\nmessage 2 \"x\"\n"},
		{false, "\x88\x00", "control 0x8 \"\"\n"},
		{false, "\x88\x04\x03\xe8ok", "control 0x8 \"\\x03\\xe8ok\"\n"},
	} {
		d := &Decoder{Masked: tt.masked}
		if got := transcript(d, []byte(tt.in), whole); got != tt.want {
			t.Errorf("%q: %s, want %s", tt.in, got, tt.want)
		}
	}
}

func TestViolations(t *testing.T) {
	for _, tt := range []struct {
		masked bool
		in     string
		status int
		want   string
	}{
		{false, "\xc1\x00", 1002, "reserved bits"},
		{false, "\x83\x00", 1002, "unknown opcode 0x3"},
		{false, "\x8b\x00", 1002, "unknown opcode 0xb"},
		{false, "\x81\x80....", 1002, "frame of a server is masked"},
		{true, "\x81\x05Hello", 1002, "frame of a client is not masked"},
		{false, "\x09\x00", 1002, "control frame is fragmented"},
		{false, "\x89\x7e\x00\x7e", 1002, "control frame of 126 bytes"},
		{false, "\x80\x00", 1002, "continuation without a message"},
		{false, "\x01\x00\x81\x00", 1002, "a message begins within another one"},
		{false, "\x82\x7e\x00\x7d", 1002, "not in its shortest form"},
		{false, "\x82\x7f\x00\x00\x00\x00\x00\x00\xff\xff", 1002, "not in its shortest form"},
		{false, "\x82\x7f\x80\x00\x00\x00\x00\x01\x00\x00", 1002, "or negative"},
		{false, "\x88\x01x", 1002, "close frame of one byte"},
		{false, "\x88\x02\x03\xed", 1002, "close frame with status 1005"},
		{false, "\x88\x03\x03\xe8\xff", 1007, "not UTF-8"},
		{false, "\x82\x7e\x04\x01", 1009, "longer than 1024 bytes"},
		{false, "\x02\x7e\x04\x00" + strings.Repeat("x", 1024) + "\x80\x01x", 1009, "longer than 1024 bytes"},
		{false, "\x02\x01x\x00\x7f\x7f\xff\xff\xff\xff\xff\xff\xff", 1009, "longer than"},
	} {
		d := &Decoder{Masked: tt.masked, MaxMessage: 1024}
		in := []byte(tt.in)
		var err error
		for n := 0; len(in) > 0 && err == nil; in = in[n:] {
			_, n, err = d.Next(in)
		}
		var e *Error
		if !errors.As(err, &e) || e.Status != tt.status || !strings.Contains(e.Reason, tt.want) {
			t.Errorf("%q: %v, want %d and %q", tt.in, err, tt.status, tt.want)
			continue
		}
		if _, n, again := d.Next([]byte("\x81\x00")); n != 0 || again != err {
			t.Errorf("%q: after the error: %d, %v", tt.in, n, again)
		}
	}
	// Without a bound on messages the sum of fragments has one.
	d := &Decoder{}
	d.Next([]byte("\x02\x01x"))
	if _, _, err := d.Next([]byte("\x00\x7f\x7f\xff\xff\xff\xff\xff\xff\xff")); err == nil {
		t.Error("a message of 2^63 bytes is accepted")
	}
}

// session is one of everything, as one role sends it.
func session(key *Key) []byte {
	var b []byte
	b = AppendFrame(b, Text, []byte("Hello"), key)
	b = AppendFrame(b, Ping, []byte("are you there"), key)
	b = AppendFrame(b, Binary, bytes.Repeat([]byte("0123456789"), 15), key) // 16-bit length
	part := AppendFrame(nil, Binary, []byte("first "), key)
	part[0] &^= 0x80
	b = append(b, part...)
	b = AppendFrame(b, Pong, nil, key)
	part = AppendFrame(nil, continuation, nil, key)
	part[0] &^= 0x80
	b = append(b, part...)
	b = AppendFrame(b, continuation, []byte("last"), key)
	return AppendFrame(b, Close, ClosePayload(StatusGoingAway, "bye"), key)
}

func TestEverySplit(t *testing.T) {
	for name, key := range map[string]*Key{"client": testKey, "server": nil} {
		b := session(key)
		want := transcript(&Decoder{Masked: key != nil}, b, whole)
		if strings.Count(want, "\n") != 6 || strings.Contains(want, "error") {
			t.Fatal(want)
		}
		for i := range b {
			for j := i; j < len(b); j++ {
				sizes := []int{i, j - i, 1 << 30}
				if i == 0 {
					sizes = sizes[1:]
				}
				if i == j {
					sizes = []int{max(1, i), 1 << 30}
				}
				next := func() int { n := sizes[0]; sizes = sizes[1:]; return n }
				if got := transcript(&Decoder{Masked: key != nil}, b, next); got != want {
					t.Fatalf("%s, split at %d and %d: %s, want %s", name, i, j, got, want)
				}
			}
		}
		one := func() int { return 1 }
		if got := transcript(&Decoder{Masked: key != nil}, b, one); got != want {
			t.Errorf("%s, byte by byte: %s", name, got)
		}
	}
}

func TestPutHeader(t *testing.T) {
	for _, n := range []int{0, 1, 125, 126, 65535, 65536, 1 << 20} {
		for _, key := range []*Key{nil, testKey} {
			b := make([]byte, MaxHeader+n)
			payload := b[MaxHeader:]
			for i := range payload {
				payload[i] = byte(i * 7)
			}
			want := bytes.Clone(payload)
			start := PutHeader(b[:MaxHeader], Binary, true, n, key)
			if key != nil {
				Mask(*key, payload)
			}
			d := &Decoder{Masked: key != nil}
			ev, used, err := d.Next(b[start:])
			if err != nil || used != len(b)-start || !ev.Final || !bytes.Equal(ev.Payload, want) {
				t.Errorf("%d bytes: %d used of %d, final %v, %v", n, used, len(b)-start, ev.Final, err)
			}
		}
	}
}

func TestMask(t *testing.T) {
	for _, n := range []int{0, 1, 7, 8, 9, 255, 256, 257, 1023, 1024, 1031, 2048, 5000} {
		b := make([]byte, n)
		for i := range b {
			b[i] = byte(i)
		}
		// In two parts, the second of which starts with a turned key.
		for _, at := range []int{0, n / 3, n / 2, n} {
			got := bytes.Clone(b)
			next := mask(binary.LittleEndian.Uint32(testKey[:]), got[:at])
			mask(next, got[at:])
			for i := range got {
				if got[i] != b[i]^testKey[i%4] {
					t.Fatalf("%d bytes in parts at %d: byte %d is wrong", n, at, i)
				}
			}
		}
	}
}

func TestClosePayload(t *testing.T) {
	p := ClosePayload(StatusPolicy, strings.Repeat("ü", 100))
	if status, reason := ParseClose(p); len(p) > MaxControl || status != StatusPolicy || reason != strings.Repeat("ü", 61) {
		t.Errorf("%d, %q", status, reason)
	}
	if status, _ := ParseClose(nil); status != StatusNone {
		t.Errorf("status %d of an empty close frame", status)
	}
}

func TestHandshake(t *testing.T) {
	const key = "dGhlIHNhbXBsZSBub25jZQ==" // rfc6455#section-1.3
	if got := AcceptKey(key); got != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" {
		t.Fatal(got)
	}
	answer := AppendResponse(nil, key, "")
	for i := range answer {
		if n, err := ReadResponse(answer[:i], key); n != 0 || err != nil {
			t.Fatalf("after %d bytes: %d, %v", i, n, err)
		}
	}
	if n, err := ReadResponse(append(answer, "more"...), key); n != len(answer) || err != nil {
		t.Errorf("%d, %v", n, err)
	}
	good := string(answer)
	for want, bad := range map[string]string{
		"answered 404 Not Found": "HTTP/1.1 404 Nothing Here\r\nContent-Length: 3\r\n\r\nabc",
		"is not HTTP/1.1":        "SSH-2.0-OpenSSH_9.6\r\n",
		"more than 8192 bytes":   "HTTP/1.1 101 x\r\nA: " + strings.Repeat("a", 9000),
		"does not upgrade":       strings.Replace(good, "Upgrade: websocket", "Upgrade: h2c", 1),
		"wrong Sec-WebSocket":    strings.Replace(good, "s3pP", "xxxx", 1),
		"an extension":           strings.Replace(good, "\r\n\r\n", "\r\nSec-WebSocket-Extensions: permessage-deflate\r\n\r\n", 1),
	} {
		if _, err := ReadResponse([]byte(bad), key); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.40q: %v, want %q", bad, err, want)
		}
	}

	h := http.Header{"Upgrade": {"WebSocket"}, "Connection": {"keep-alive", "Upgrade"}, "Sec-Websocket-Version": {"13"}, "Sec-Websocket-Key": {key}}
	get := func(name string) string { return strings.Join(h.Values(name), ",") }
	if got, err := CheckRequest(get); got != key || err != nil {
		t.Errorf("CheckRequest: %q, %v", got, err)
	}
	for name, bad := range map[string]string{"Upgrade": "h2c", "Connection": "close", "Sec-Websocket-Version": "8", "Sec-Websocket-Key": "short"} {
		old := h[name]
		h[name] = []string{bad}
		if _, err := CheckRequest(get); err == nil {
			t.Errorf("%s: %s is accepted", name, bad)
		}
		h[name] = old
	}
}

// echo drives a Decoder with a blocking connection: it echoes messages and answers
// control frames, until the close frame, which it returns.
func echo(c io.ReadWriter, d *Decoder, key *Key) (status int, err error) {
	buf := make([]byte, 1000)
	var message []byte
	for {
		n, err := c.Read(buf)
		if err != nil {
			return 0, err
		}
		for b := buf[:n]; ; {
			ev, n, err := d.Next(b)
			if err != nil {
				return 0, err
			}
			b = b[n:]
			var out []byte
			switch ev.Op {
			case Text, Binary:
				message = append(message, ev.Payload...)
				if ev.Final {
					out = AppendFrame(nil, ev.Op, message, key)
					message = message[:0]
				}
			case Ping:
				out = AppendFrame(nil, Pong, ev.Payload, key)
			case Close:
				status, _ := ParseClose(ev.Payload)
				_, err := c.Write(AppendFrame(nil, Close, ev.Payload, key))
				return status, err
			}
			if _, err := c.Write(out); err != nil {
				return 0, err
			}
			if ev.Op == None {
				break
			}
		}
	}
}

// chat sends messages of many sizes by somebody else's implementation and expects
// them back.
func chat(t *testing.T, c *coder.Conn) {
	t.Helper()
	ctx := t.Context()
	c.SetReadLimit(1 << 20)
	rnd := rand.New(rand.NewPCG(1, 2))
	for _, n := range []int{0, 1, 125, 126, 4096, 65535, 65536, 300_000} {
		p := make([]byte, n)
		for i := range p {
			p[i] = byte(rnd.Uint32())
		}
		if err := c.Write(ctx, coder.MessageBinary, p); err != nil {
			t.Fatal(err)
		}
		typ, got, err := c.Read(ctx)
		if err != nil || typ != coder.MessageBinary || !bytes.Equal(got, p) {
			t.Fatalf("%d bytes: %v, %d back, %v", n, typ, len(got), err)
		}
	}
	// A message in fragments, and a ping while another goroutine reads the pong.
	w, err := c.Writer(ctx, coder.MessageText)
	if err != nil {
		t.Fatal(err)
	}
	for range 10 {
		io.WriteString(w, strings.Repeat("fragment ", 1000))
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if typ, got, err := c.Read(ctx); err != nil || typ != coder.MessageText || len(got) != 90_000 {
		t.Fatalf("fragments: %v, %d, %v", typ, len(got), err)
	}
	reading, stop := context.WithCancel(ctx)
	defer stop()
	c.CloseRead(reading)
	if err := c.Ping(ctx); err != nil {
		t.Fatal(err)
	}
	if err := c.Close(coder.StatusNormalClosure, "done"); err != nil && !errors.Is(err, io.EOF) {
		t.Logf("close: %v", err)
	}
}

// The library's client talks to our server.
func TestServerInterop(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	type result struct {
		status int
		err    error
	}
	done := make(chan result, 1)
	srv := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		key, err := CheckRequest(func(name string) string { return strings.Join(r.Header.Values(name), ",") })
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			done <- result{0, err}
			return
		}
		c, _, err := w.(http.Hijacker).Hijack()
		if err != nil {
			done <- result{0, err}
			return
		}
		defer c.Close()
		c.Write(AppendResponse(nil, key, ""))
		status, err := echo(c, &Decoder{Masked: true}, nil)
		done <- result{status, err}
	})}
	go srv.Serve(ln) // ends with Close
	defer srv.Close()

	c, _, err := coder.Dial(t.Context(), "ws://"+ln.Addr().String()+"/", nil)
	if err != nil {
		t.Fatal(err)
	}
	chat(t, c)
	if r := <-done; r.err != nil || r.status != StatusNormal {
		t.Errorf("close frame: %d, %v", r.status, r.err)
	}
}

// Our client talks to the library's server.
func TestClientInterop(t *testing.T) {
	served := make(chan struct{})
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		defer close(served)
		c, err := coder.Accept(w, r, nil)
		if err != nil {
			t.Error(err)
			return
		}
		chat(t, c)
	}))
	defer srv.Close()

	c, err := net.Dial("tcp", srv.Listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	key := NewKey()
	c.Write(AppendRequest(nil, srv.Listener.Addr().String(), "/", key))
	var b []byte
	for n := 0; n == 0; {
		one := make([]byte, 1)
		if _, err := c.Read(one); err != nil {
			t.Fatal(err)
		}
		b = append(b, one...)
		if n, err = ReadResponse(b, key); err != nil {
			t.Fatal(err)
		}
	}
	if status, err := echo(c, &Decoder{}, testKey); err != nil || status != StatusNormal {
		t.Errorf("close frame: %d, %v", status, err)
	}
	<-served
}

// The same bytes mean the same however they are split, and what is decoded and
// encoded again means the same, too.
func FuzzDecoder(f *testing.F) {
	f.Add(session(nil), false, uint64(1))
	f.Add(session(testKey), true, uint64(2))
	f.Add([]byte("\x82\x7f\x00\x00\x00\x00\x00\x01\x00\x00x"), false, uint64(3))
	f.Fuzz(func(t *testing.T, b []byte, masked bool, seed uint64) {
		want := transcript(&Decoder{Masked: masked, MaxMessage: 1 << 16}, b, whole)
		rnd := rand.New(rand.NewPCG(seed, 0))
		got := transcript(&Decoder{Masked: masked, MaxMessage: 1 << 16}, b, func() int { return 1 + rnd.IntN(5) })
		if got != want {
			t.Fatalf("in pieces: %s, whole: %s", got, want)
		}

		var again []byte
		d := &Decoder{Masked: masked, MaxMessage: 1 << 16}
		var message []byte
		for rest := bytes.Clone(b); ; {
			ev, n, err := d.Next(rest)
			rest = rest[n:]
			if err != nil || ev.Op == None {
				break
			}
			if ev.Op < Close {
				message = append(message, ev.Payload...)
				if !ev.Final {
					continue
				}
				again = AppendFrame(again, ev.Op, message, nil)
				message = nil
				continue
			}
			again = AppendFrame(again, ev.Op, ev.Payload, nil)
		}
		if i := strings.Index(want, "error"); i >= 0 {
			want = want[:i]
		}
		if i := strings.Index(want, "part"); i >= 0 {
			want = want[:i]
		}
		if got := transcript(&Decoder{}, again, whole); got != want {
			t.Fatalf("encoded again: %s, want %s", got, want)
		}
	})
}

func BenchmarkMask(b *testing.B) {
	for _, n := range []int{64, 1024, 16 << 10, 64 << 10} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			p := make([]byte, n)
			b.SetBytes(int64(n))
			for b.Loop() {
				Mask(*testKey, p)
			}
		})
	}
}

func BenchmarkDecode(b *testing.B) {
	for _, masked := range []bool{false, true} {
		b.Run(fmt.Sprintf("masked=%v", masked), func(b *testing.B) {
			var key *Key
			if masked {
				key = testKey
			}
			frame := AppendFrame(nil, Binary, make([]byte, 64<<10), key)
			d := &Decoder{Masked: masked}
			b.SetBytes(64 << 10)
			b.ReportAllocs()
			for b.Loop() {
				// The payload is unmasked in place; what it then says does not matter here.
				if _, n, err := d.Next(frame); n != len(frame) || err != nil {
					b.Fatal(n, err)
				}
			}
		})
	}
}
