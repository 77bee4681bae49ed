package tunnel

import (
	"fmt"
	"runtime"
	"testing"
	"time"
)

// A pair is two sessions joined by links that deliver at once.
type pair struct {
	now  time.Time
	a, b *Session
	la   *pairLink // a's end
	lb   *pairLink
}

type pairLink struct {
	p    *pair
	peer *pairLink
	to   *Session // the peer's
}

func (l *pairLink) Room() int       { return 64 << 10 }
func (l *pairLink) Close(err error) {}
func (l *pairLink) Send(b []byte) {
	if err := l.to.Receive(l.peer, b[Headroom:], l.p.now); err != nil {
		panic(err)
	}
}

func newPair(a, b Config) *pair {
	p := &pair{now: time.Unix(1e9, 0)}
	a.Client = true
	p.a, p.b = New(a, p.now), New(b, p.now)
	p.la = &pairLink{p: p, to: p.b}
	p.lb = &pairLink{p: p, to: p.a, peer: p.la}
	p.la.peer = p.lb
	p.a.Attach(p.la, RoleInteractive, p.now)
	p.b.Attach(p.lb, RoleInteractive, p.now)
	p.flush()
	return p
}

// flush lets everything cross, time standing still.
func (p *pair) flush() {
	for range 3 {
		p.a.Flush(p.now)
		p.b.Flush(p.now)
	}
}

func (p *pair) advance(d time.Duration) {
	p.now = p.now.Add(d)
	p.a.Advance(p.now)
	p.b.Advance(p.now)
	p.flush()
}

// funcs is a Handler of funcs; nil ones do nothing, and use all data.
type funcs struct {
	data  func(b []byte) int
	eof   func()
	drain func()
	close func(err error)
}

func (f *funcs) OnData(b []byte) int {
	if f.data == nil {
		return len(b)
	}
	return f.data(b)
}

func (f *funcs) OnEOF() {
	if f.eof != nil {
		f.eof()
	}
}

func (f *funcs) OnDrain() {
	if f.drain != nil {
		f.drain()
	}
}

func (f *funcs) OnClose(err error) {
	if f.close != nil {
		f.close(err)
	}
}

func mustOpen(t testing.TB, s *Session, h Handler) *Stream {
	t.Helper()
	st, err := s.Open([]byte("header"))
	if err != nil {
		t.Fatal(err)
	}
	st.SetHandler(h)
	return st
}

func BenchmarkBulk(b *testing.B) {
	for _, size := range []int{1 << 10, 16 << 10, 64 << 10} {
		for _, n := range []int{1, 64} {
			b.Run(fmt.Sprintf("write=%d/streams=%d", size, n), func(b *testing.B) {
				var got int
				p := newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) {
					st.SetHandler(&funcs{data: func(b []byte) int { got += len(b); return len(b) }})
				}})
				streams := make([]*Stream, n)
				for i := range streams {
					streams[i] = mustOpen(b, p.a, &funcs{})
				}
				p.flush()
				buf := make([]byte, size)
				b.SetBytes(int64(size))
				b.ReportAllocs()
				for i := 0; b.Loop(); i++ {
					st := streams[i%n]
					st.Write(buf)
					if st.Pending() >= 64<<10 || i%n == n-1 {
						p.now = p.now.Add(20 * time.Microsecond)
						p.a.Flush(p.now)
						p.b.Flush(p.now)
					}
				}
				p.flush()
				if got < b.N*size {
					b.Fatalf("%d of %d bytes arrived", got, b.N*size)
				}
			})
		}
	}
}

func BenchmarkEcho64(b *testing.B) {
	p := newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) {
		st.SetHandler(&funcs{data: func(b []byte) int { st.Write(b); return len(b) }})
	}})
	var got int
	st := mustOpen(b, p.a, &funcs{data: func(b []byte) int { got += len(b); return len(b) }})
	p.flush()
	buf := make([]byte, 64)
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		st.Write(buf)
		p.a.Flush(p.now)
		p.b.Flush(p.now)
		if i%256 == 255 {
			p.advance(25 * time.Millisecond)
		}
	}
	if got < b.N*64 {
		b.Fatalf("%d echoes of %d", got/64, b.N)
	}
}

func BenchmarkOpenClose(b *testing.B) {
	p := newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) {
		st.SetHandler(&funcs{data: func(b []byte) int { st.Write(b); return len(b) }, eof: st.CloseWrite})
	}})
	buf := make([]byte, 64)
	var closed int
	h := &funcs{close: func(error) { closed++ }}
	b.ReportAllocs()
	for i := 0; b.Loop(); i++ {
		st := mustOpen(b, p.a, h)
		st.Write(buf)
		st.CloseWrite()
		p.a.Flush(p.now)
		p.b.Flush(p.now)
		if i%64 == 63 {
			p.advance(25 * time.Millisecond)
		}
	}
	p.advance(25 * time.Millisecond)
	p.advance(25 * time.Millisecond)
	if closed != b.N {
		b.Fatalf("%d of %d streams ended", closed, b.N)
	}
}

// idleBytes returns what n idle streams cost per stream, in the session that opened
// them and in the other one.
func idleBytes(t testing.TB, n int) float64 {
	heap := func() uint64 {
		var m runtime.MemStats
		runtime.GC()
		runtime.GC()
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	h := &funcs{}
	p := newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) { st.SetHandler(h) }})
	p.flush()
	before := heap()
	for i := range n {
		mustOpen(t, p.a, h).Write([]byte("hello")) // silent afterwards
		if i%1000 == 0 {
			p.advance(25 * time.Millisecond)
		}
	}
	p.advance(25 * time.Millisecond)
	p.advance(25 * time.Millisecond)
	p.a.pool.trim()
	p.a.pool.trim()
	after := heap()
	if got := p.b.Stats().Streams; got != n {
		t.Fatalf("%d of %d streams", got, n)
	}
	runtime.KeepAlive(p)
	return float64(after-before) / float64(2*n)
}

func BenchmarkIdleStreams(b *testing.B) {
	var per float64
	for b.Loop() {
		per = idleBytes(b, 100_000)
	}
	b.ReportMetric(per, "B/stream")
}

// BenchmarkResume cuts the link of 100,000 streams and attaches another.
func BenchmarkResume(b *testing.B) {
	h := &funcs{}
	p := newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) { st.SetHandler(h) }})
	for range 100_000 {
		mustOpen(b, p.a, h).Write([]byte("hello"))
	}
	p.advance(lazyAck)
	for b.Loop() {
		p.a.Attach(p.la, RoleInteractive, p.now)
		p.b.Attach(p.lb, RoleInteractive, p.now)
		p.flush()
	}
	if p.a.Stats().Streams != 100_000 || p.a.control == nil {
		b.Fatal("streams are lost")
	}
}
