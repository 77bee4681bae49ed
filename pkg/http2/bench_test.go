package http2

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"io"
	"net"
	"net/http"
	"runtime"
	"strings"
	"testing"

	"culvert.dev/pkg/http1"
)

// nowhere is a transport that takes everything.
type nowhere struct{ n int }

func (s *nowhere) Write(b []byte) { s.n += len(b) }
func (*nowhere) HighMark() int    { return 64 << 10 }
func (*nowhere) Pending() int     { return 0 }

// hello answers each request with five bytes.
type hello struct{ res http1.Response }

func (*hello) OnOutput()                            {}
func (*hello) OnReject(s *Stream, err *http1.Error) {}
func (h *hello) OnRequest(s *Stream, req *http1.Request, end bool) {
	s.SetHandler(h)
	s.Respond(&h.res, false)
	s.Write(greeting)
	s.CloseWrite()
}
func (*hello) OnData(b []byte) int { return len(b) }
func (*hello) OnEOF()              {}
func (*hello) OnDrain()            {}
func (*hello) OnClose(error)       {}

var greeting = []byte("hello")

func newHello() *hello {
	return &hello{http1.Response{Status: 200, Framing: http1.Length, ContentLength: 5, Fields: []http1.Field{
		field("Server", "test"), field("Content-Type", "text/plain; charset=utf-8"), field("Date", "Sun, 22 Nov 2026 11:00:00 GMT"),
	}}}
}

// browser is the first request of a browser, and the next one.
const browser = getHead + `sec-ch-ua: "Chromium";v="140", "Not=A?Brand";v="24"
sec-ch-ua-mobile: ?0
sec-ch-ua-platform: "Linux"
upgrade-insecure-requests: 1
user-agent: Mozilla/5.0 (X11; Linux x86_64) AppleWebKit/537.36 (KHTML, like Gecko) Chrome/140.0.0.0 Safari/537.36
accept: text/html,application/xhtml+xml,application/xml;q=0.9,image/avif,image/webp,image/apng,*/*;q=0.8
sec-fetch-site: none
sec-fetch-mode: navigate
sec-fetch-dest: document
accept-encoding: gzip, deflate, br, zstd
accept-language: en-US,en;q=0.9
cookie: session=0123456789abcdef0123456789abcdef
priority: u=0, i`

// BenchmarkBadBlock is what header blocks of 48 KiB cost that say little of many octets.
func BenchmarkBadBlock(b *testing.B) {
	// A field of 3900 octets, and as many small ones as a section has.
	field := append([]byte{0x40, 1, 'a', 0x7f, 0x80 + (3900-127)%128, (3900 - 127) / 128}, bytes.Repeat([]byte{'x'}, 3900)...)
	field = append(field, bytes.Repeat([]byte{0x82}, maxFields)...)
	for _, bad := range []struct{ name, start, rest string }{
		{"long-name", string(longName()), "\x7e\x00"},
		{"long-name-not-kept", string(longName()), "\x0f\x2f\x00"},
		{"short-name", "\x40\x01a\x00", "\x7e\x00"},
		{"static-name", "", "\x48\x00"},
		{"field", string(field), "\xbe"},
		{"strings", "", "\x00\x01a\x00"},
	} {
		b.Run(bad.name, func(b *testing.B) {
			block := append([]byte(bad.start), strings.Repeat(bad.rest, (maxBlock-len(bad.start))/len(bad.rest))...)
			t, h := table{max: tableSize}, new(head)
			b.SetBytes(int64(len(block)))
			for b.Loop() {
				if e := t.decode(block, h, maxRequestHead); !h.over || e != nil && e != errBlock {
					b.Fatal(e)
				}
			}
		})
	}
}

// BenchmarkRequest is a browser's request and its answer, without any transport.
func BenchmarkRequest(b *testing.B) {
	w := newWire(b)
	var e Endpoint
	var out nowhere
	c := e.Server(&out, newHello(), epoch)
	c.Receive(append([]byte(preface), settings(settingWindow, maxWindow)...), epoch)
	c.Receive(window(0, 1<<30), epoch)
	first, next := w.head(1, true, browser), w.head(3, true, browser)
	c.Receive(first, epoch)
	b.ReportAllocs()
	id := uint32(3)
	for b.Loop() {
		binary.BigEndian.PutUint32(next[5:], id)
		id += 2
		c.Receive(next, epoch)
		c.Flush()
	}
	if c.Streams() > 0 || out.n < b.N*14 {
		b.Fatal(c.Streams(), out.n)
	}
	b.ReportMetric(float64(out.n)/float64(b.N), "bytes/answer")
}

// BenchmarkTCP is the same over loopback, 32 requests at a time on one connection, beside net/http's server.
func BenchmarkTCP(b *testing.B) {
	b.Run("ours", func(b *testing.B) { ask(b, serve(b, new(Endpoint))) })
	b.Run("nethttp", func(b *testing.B) {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			b.Fatal(err)
		}
		var p http.Protocols
		p.SetUnencryptedHTTP2(true)
		s := &http.Server{Protocols: &p, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") })}
		done := make(chan struct{})
		go func() { s.Serve(l); close(done) }()
		b.Cleanup(func() { s.Close(); <-done })
		ask(b, l.Addr().String())
	})
}

func ask(b *testing.B, addr string) {
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	w := newWire(b)
	conn.Write(append(append([]byte(preface), settings()...), w.head(1, true, browser)...))
	next := w.head(3, true, browser)
	r := bufio.NewReaderSize(conn, 64<<10)
	answers := func(n int) {
		var head [frameHeader]byte
		for n > 0 {
			if _, err := io.ReadFull(r, head[:]); err != nil {
				b.Fatal(err)
			}
			h := parseHeader(head[:])
			r.Discard(h.length)
			switch {
			case h.kind == typeGoAway || h.kind == typeReset:
				b.Fatal("refused")
			case h.kind <= typeHeaders && h.flags&flagEndStream != 0:
				n--
			case h.kind == typeSettings && h.flags&flagAck == 0:
				conn.Write(frame(typeSettings, flagAck, 0))
			}
		}
	}
	answers(1)
	const batch = 32
	var out []byte
	id := uint32(3)
	b.ResetTimer()
	for n := b.N; n > 0; {
		m := min(n, batch)
		out = append(out[:0], window(0, uint32(5*m))...)
		for range m {
			binary.BigEndian.PutUint32(next[5:], id)
			id += 2
			out = append(out, next...)
		}
		conn.Write(out)
		answers(m)
		n -= m
	}
	b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
}

// BenchmarkUpload is payload from a peer through the connection to a handler, in frames of 16 KiB.
func BenchmarkUpload(b *testing.B) {
	w := newWire(b)
	var e Endpoint
	c := e.Server(new(nowhere), new(upload), epoch)
	c.Receive(append([]byte(preface), settings()...), epoch)
	c.Receive(w.head(1, false, postHead), epoch)
	f := data(1, maxFrame, false)
	b.SetBytes(maxFrame)
	b.ReportAllocs()
	for b.Loop() {
		c.Receive(f, epoch)
		c.Flush()
	}
}

type upload struct{ hello }

func (u *upload) OnRequest(s *Stream, req *http1.Request, end bool) { s.SetHandler(u) }

// BenchmarkDownload is the other way.
func BenchmarkDownload(b *testing.B) {
	w := newWire(b)
	var e Endpoint
	d := new(download)
	c := e.Server(new(nowhere), d, epoch)
	c.Receive(append([]byte(preface), settings()...), epoch)
	c.Receive(w.head(1, true, getHead), epoch)
	more, more1 := window(0, maxFrame), window(1, maxFrame)
	b.SetBytes(maxFrame)
	b.ReportAllocs()
	for b.Loop() {
		c.Receive(more, epoch)
		c.Receive(more1, epoch)
		d.s.Write(zeros[:maxFrame])
		c.Flush()
	}
}

type download struct {
	hello
	s *Stream
}

func (d *download) OnRequest(s *Stream, req *http1.Request, end bool) {
	d.s = s
	s.SetHandler(d)
	s.Respond(&http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}, false)
}

// A silent connection that has served a browser's request holds little.
func TestSilentConnection(t *testing.T) {
	const n = 1000
	var e Endpoint
	w := newWire(t)
	in := append([]byte(preface), settings()...)
	in = append(in, w.head(1, true, browser)...)
	in = append(in, w.head(3, true, browser)...)
	conns := make([]*Conn, n)
	h := newHello()
	open := func(i int) {
		conns[i] = e.Server(new(nowhere), h, epoch)
		conns[i].Receive(in, epoch)
		conns[i].Flush()
	}
	open(0) // and the Endpoint has what it shares
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	for i := range n {
		open(i)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	each := int(after.HeapAlloc-before.HeapAlloc) / n
	t.Logf("%d bytes a connection", each)
	if each > 4<<10 {
		t.Errorf("%d bytes a connection", each)
	}
	for _, c := range conns {
		if c.Streams() != 0 || c.out != nil {
			t.Fatal("not silent")
		}
	}
}
