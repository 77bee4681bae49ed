package http2

import (
	"slices"
	"testing"
	"time"

	"culvert.dev/pkg/http1"
)

// path is a client's connection to a server's over a path of a delay and no other limit, in virtual time. Its client
// or its server sends as much as the windows allow.
type path struct {
	t       *testing.T
	delay   time.Duration
	now     time.Time
	ends    [2]*pathEnd // client, server
	pause   bool        // the receivers take nothing
	streams []*pathStream
}

// pathEnd is the transport and the handler of one side.
type pathEnd struct {
	*path
	c     *Conn
	peer  *pathEnd
	way   []flight // to this side
	kept  []byte
	asked bool
}

type flight struct {
	due time.Time
	b   []byte
}

func (e *pathEnd) Write(b []byte) {
	e.peer.way = append(e.peer.way, flight{e.now.Add(e.delay), slices.Clone(b)})
}
func (e *pathEnd) Pending() int                         { return 0 }
func (e *pathEnd) HighMark() int                        { return 1 << 30 }
func (e *pathEnd) OnOutput()                            { e.asked = true }
func (e *pathEnd) OnRoom()                              {}
func (e *pathEnd) OnGoAway(c Code)                      { e.t.Error(c) }
func (e *pathEnd) OnReject(s *Stream, err *http1.Error) { e.t.Error(err) }

func (e *pathEnd) OnRequest(s *Stream, req *http1.Request, end bool) {
	x := e.stream(s)
	s.Respond(&http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}, false)
	if x.sends = end; end {
		x.OnDrain()
	}
}

func (e *pathEnd) stream(s *Stream) *pathStream {
	x := &pathStream{path: e.path, s: s, h2: e.c}
	e.streams = append(e.streams, x)
	if e.pause {
		s.Pause()
	}
	s.SetHandler(x)
	return x
}

// pathStream is a stream at one side.
type pathStream struct {
	*path
	s     *Stream
	h2    *Conn
	sends bool
	got   int
	over  bool
}

func (x *pathStream) OnResponse(*http1.Response, bool) {}
func (x *pathStream) OnData(b []byte) int              { x.got += len(b); return len(b) }
func (x *pathStream) OnEOF() {
	if !x.sends {
		x.s.CloseWrite()
	}
}
func (x *pathStream) OnClose(error) { x.over = true }
func (x *pathStream) OnDrain() {
	for x.sends && x.s.Pending() <= x.s.HighMark() {
		_, before := x.s.Bytes()
		x.s.Write(zeros)
		if _, after := x.s.Bytes(); after == before {
			return // it is over
		}
	}
}

func newPath(t *testing.T, delay time.Duration, budget *Budget) *path {
	p := &path{t: t, delay: delay, now: epoch}
	c, s := &pathEnd{path: p}, &pathEnd{path: p}
	c.peer, s.peer = s, c
	p.ends = [2]*pathEnd{c, s}
	c.c = (&Endpoint{Budget: budget}).Client(c, c, p.now)
	s.c = (&Endpoint{Budget: budget}).Server(s, s, p.now)
	p.run(4 * delay)
	return p
}

// request makes a request: by POST, an upload of so many bytes (-1: without end), by PUT, one that the test writes, or a
// download without end by GET.
func (p *path) request(method string, length int64) *pathStream {
	req := &http1.Request{Method: []byte(method), Host: []byte("a"), Path: []byte("/"), ContentLength: length}
	if method != "GET" {
		req.Framing = http1.Chunked
		if length >= 0 {
			req.Framing = http1.Length
		}
	}
	x := &pathStream{path: p, h2: p.ends[0].c, sends: method == "POST"}
	s, err := x.h2.Request(req, http1.Forward{Proto: "https"}, method == "GET", x)
	if err != nil {
		p.t.Fatal(err)
	}
	x.s = s
	p.streams = append(p.streams, x)
	if p.pause {
		s.Pause()
	}
	switch {
	case length >= 0:
		s.Write(make([]byte, length))
		s.CloseWrite()
	case x.sends:
		x.OnDrain()
	}
	return x
}

// run lets time pass.
func (p *path) run(d time.Duration) {
	for until := p.now.Add(d); ; {
		for _, e := range p.ends {
			for e.asked {
				e.asked = false
				e.c.Flush()
			}
		}
		var next *pathEnd
		for _, e := range p.ends {
			if len(e.way) > 0 && (next == nil || e.way[0].due.Before(next.way[0].due)) {
				next = e
			}
		}
		if next == nil || next.way[0].due.After(until) {
			p.now = until
			return
		}
		f := next.way[0]
		next.way = next.way[1:]
		p.now = f.due
		b := append(next.kept, f.b...)
		n, err := next.c.Receive(b, p.now)
		if err != nil {
			p.t.Fatal(err)
		}
		next.kept = slices.Clone(b[n:])
	}
}

// received is what all streams have got.
func (p *path) received() (n int) {
	for _, x := range p.streams {
		n += x.got
	}
	return n
}

const mib = 1 << 20

// TestWindowsGrow moves bulk over a path of 50 ms: what moves in a second is what the largest windows allow.
func TestWindowsGrow(t *testing.T) {
	for _, tt := range []struct {
		name, method string
		streams      int
		budget       int64
		least, most  int // MiB in a second, at last
	}{
		{"an upload", "POST", 1, 64 * mib, 60, 82},
		{"a download", "GET", 1, 64 * mib, 60, 82},
		{"an upload without a budget", "POST", 1, 0, 3, 5},
		{"a download without a budget", "GET", 1, 0, 3, 5},
		{"forty uploads", "POST", 40, 64 * mib, 90, 122},
		{"forty uploads without a budget", "POST", 40, 0, 15, 21},
	} {
		t.Run(tt.name, func(t *testing.T) {
			p := newPath(t, 25*time.Millisecond, NewBudget(tt.budget))
			for range tt.streams {
				p.request(tt.method, -1)
			}
			p.run(2 * time.Second)
			n := p.received()
			p.run(time.Second)
			if n = (p.received() - n) / mib; n < tt.least || n > tt.most {
				t.Errorf("%d MiB in a second, want %d to %d", n, tt.least, tt.most)
			}
		})
	}
}

// TestWindowsStay shows what does not grow: what nobody takes, and what is far slower than its window.
func TestWindowsStay(t *testing.T) {
	b := NewBudget(64 * mib)
	for _, method := range []string{"POST", "GET"} {
		p := newPath(t, 25*time.Millisecond, b)
		p.pause = true
		x := p.request(method, -1)
		p.run(time.Minute)
		if got := p.received(); got != 0 || b.Used() != 0 {
			t.Errorf("%s: %d bytes were taken, the budget is used by %d", method, got, b.Used())
		}
		for _, e := range p.ends {
			if n := e.c.Held(); n > streamWindow {
				t.Errorf("%s: %d bytes are held", method, n)
			}
		}
		x.s.Reset(CodeCancel)
	}
	// 30 KiB, a second later as much, and so on.
	p := newPath(t, 25*time.Millisecond, b)
	x := p.request("PUT", -1)
	for range 60 {
		x.s.Write(make([]byte, 30<<10))
		p.run(time.Second)
	}
	if b.Used() != 0 {
		t.Errorf("a slow upload uses %d of the budget", b.Used())
	}
}

// TestWindowBudget shows that windows together take no more than there is, and give it back.
func TestWindowBudget(t *testing.T) {
	const size = 16 * mib
	used := func(b *Budget, what string, want bool) {
		t.Helper()
		if n := b.Used(); n > size || n > 0 != want {
			t.Errorf("%s: %d of the budget is used", what, n)
		}
	}
	for _, method := range []string{"POST", "GET"} {
		b := NewBudget(size)
		var paths []*path
		for range 15 {
			p := newPath(t, 25*time.Millisecond, b)
			p.request(method, -1)
			p.run(2 * time.Second)
			paths = append(paths, p)
			used(b, method, true)
		}
		if n := b.Used(); n < size/2 {
			t.Errorf("%s: %d of the budget is used by all", method, n)
		}
		for i, p := range paths {
			s := p.streams[0].s
			switch {
			case i%3 == 0:
				p.ends[0].c.Close(errLost)
				p.ends[1].c.Close(errLost)
			case i%3 == 1:
				s.Reset(CodeCancel)
				p.run(time.Second)
				if method == "GET" {
					continue
				}
				// What a visitor may still send of a window is given back with the next requests.
				for range 12 {
					p.request("POST", 1*mib)
					p.run(time.Second)
				}
				if c := p.ends[1].c; c.window != connWindow || c.excess != 0 {
					t.Errorf("after an upload that was cut off the window is %d", c.window)
				}
			default: // it becomes slow
				p.streams[0].sends, p.streams[1].sends = false, false
				p.run(time.Second)
				for range 800 {
					p.run(time.Second)
					for _, x := range p.streams {
						x.s.Write(make([]byte, 10<<10))
					}
				}
			}
		}
		used(b, method+", when they are over", false)
	}
}

// TestWindowTapers shows that an upload whose length is known leaves nothing behind.
func TestWindowTapers(t *testing.T) {
	b := NewBudget(64 * mib)
	p := newPath(t, 25*time.Millisecond, b)
	x := p.request("POST", 40*mib)
	most := int64(0)
	for range 2000 {
		p.run(time.Millisecond)
		most = max(most, b.Used())
	}
	if c := p.ends[1].c; p.received() != 40*mib || c.window != connWindow || most < 3*mib || b.Used() != 0 {
		t.Errorf("%d bytes, over %v, window %d, budget used %d, at most %d", p.received(), x.over, c.window, b.Used(), most)
	}
}

// TestWindowHeld shows that many streams do not get more than the connection's window, whatever theirs are.
func TestWindowHeld(t *testing.T) {
	b := NewBudget(64 * mib)
	p := newPath(t, 25*time.Millisecond, b)
	for range 100 {
		p.request("POST", -1)
	}
	p.run(2 * time.Second)
	for _, x := range p.streams {
		if x.s != nil && !x.sends {
			x.s.Pause()
		}
	}
	p.run(2 * time.Second)
	if n, most := p.ends[1].c.Held(), connWindow+int(b.Used()); n > most || most > maxConnWindow {
		t.Errorf("%d bytes are held, want %d", n, most)
	}
}
