package http2

import (
	"bytes"
	"flag"
	"fmt"
	"math/rand/v2"
	"testing"

	"culvert.dev/pkg/http1"
)

var seeds = flag.Int("seeds", 30, "simulations to run")

// sim is a client and a server of ours, joined by pipes that are slow at random, with handlers that pause, leave bytes and
// give up at random. Everything that was not given up must arrive, in order, and end.
type sim struct {
	t      *testing.T
	rng    *rand.Rand
	client simEnd
	server simEnd
	calls  []*simCall
	calm   bool // no more chance: everything is to come to its end
	full   bool // a connection had too much queued
}

// simEnd is one end of the connection, and its transport.
type simEnd struct {
	sim   *sim
	c     *Conn
	b     []byte // written and not delivered
	high  bool   // was above the high mark
	kept  []byte // delivered and not used
	asked bool
	begin []*simCall // wait for room
}

func (e *simEnd) Write(b []byte) {
	e.b = append(e.b, b...)
	e.high = e.high || len(e.b) > e.HighMark()
}
func (e *simEnd) Pending() int                         { return len(e.b) }
func (e *simEnd) HighMark() int                        { return 20_000 }
func (e *simEnd) OnOutput()                            { e.asked = true }
func (e *simEnd) OnGoAway(Code)                        {}
func (e *simEnd) OnReject(s *Stream, err *http1.Error) { e.sim.t.Errorf("reject: %v", err) }
func (e *simEnd) OnRoom() {
	for len(e.begin) > 0 && e.c.Room() > 0 {
		x := e.begin[0]
		e.begin = e.begin[1:]
		x.start()
	}
}

func (e *simEnd) OnRequest(s *Stream, req *http1.Request, end bool) {
	x := &simEcho{sim: e.sim, s: s}
	s.SetHandler(x)
	if e.sim.rng.IntN(4) == 0 {
		s.Respond(&http1.Response{Status: 103, ContentLength: -1}, false)
	}
	s.Respond(&http1.Response{Status: 200, ContentLength: -1, Framing: http1.Chunked}, false)
	e.sim.calls[s.ID()/2].echo = x
}

// simEcho sends back what it gets.
type simEcho struct {
	sim  *sim
	s    *Stream
	full bool // paused until OnDrain
	rest bool // paused for no reason
	over bool
}

func (x *simEcho) balance() {
	if x.full || x.rest {
		x.s.Pause()
	} else {
		x.s.Resume()
	}
}

func (x *simEcho) OnData(b []byte) int {
	n := len(b)
	if !x.sim.calm && x.sim.rng.IntN(8) == 0 {
		n = x.sim.rng.IntN(n + 1)
	}
	x.s.Write(b[:n])
	x.full = x.s.Pending() > x.s.HighMark()
	x.rest = !x.sim.calm && x.sim.rng.IntN(10) == 0
	x.balance()
	if n < len(b) && !x.full { // or what is left might wait for data that never comes
		x.rest = true
		x.s.Pause()
	}
	return n
}

func (x *simEcho) OnEOF() {
	if x.sim.rng.IntN(2) == 0 {
		x.s.WriteTrailers([]http1.Field{field("x-last", "1")})
	} else {
		x.s.CloseWrite()
	}
}
func (x *simEcho) OnDrain()      { x.full = false; x.balance() }
func (x *simEcho) OnClose(error) { x.over = true }

// simCall sends a body and expects it back.
type simCall struct {
	simEcho
	echo   *simEcho
	body   []byte
	sent   int
	got    []byte
	gaveUp bool
	err    error
	eof    bool
}

func (x *simCall) start() {
	req := &http1.Request{Method: []byte("POST"), Path: []byte("/"), Host: []byte("a"), Minor: 1, Framing: http1.Chunked, ContentLength: -1}
	s, err := x.sim.client.c.Request(req, http1.Forward{Proto: "http"}, false, x)
	if err != nil {
		x.sim.client.begin = append(x.sim.client.begin, x)
		return
	}
	x.s = s
	x.OnDrain()
}

func (x *simCall) OnResponse(*http1.Response, bool) {}

func (x *simCall) OnData(b []byte) int {
	x.got = append(x.got, b...)
	x.rest = !x.sim.calm && x.sim.rng.IntN(10) == 0
	x.balance()
	return len(b)
}

func (x *simCall) OnEOF() { x.eof = true }

func (x *simCall) OnDrain() {
	for x.sent < len(x.body) && x.s.Pending() <= x.s.HighMark() {
		n := min(len(x.body)-x.sent, 1+x.sim.rng.IntN(30_000))
		x.s.Write(x.body[x.sent : x.sent+n])
		if x.sent += n; x.sent == len(x.body) {
			x.s.CloseWrite()
		}
	}
}

func (x *simCall) OnClose(err error) { x.over, x.err = true, err }

// deliver brings n bytes from one end to the other.
func (s *sim) deliver(from, to *simEnd, n int) {
	n = min(n, len(from.b))
	in := append(to.kept, from.b[:n]...)
	from.b = from.b[n:]
	used, err := to.c.Receive(in, epoch)
	if err != nil {
		s.t.Fatal(err)
	}
	to.kept = bytes.Clone(in[used:])
	if from.high && len(from.b) < from.HighMark()/4 {
		from.high = false
		from.c.Flush()
	}
}

func (s *sim) step(n int) (idle bool) {
	idle = len(s.client.b) == 0 && len(s.server.b) == 0
	s.deliver(&s.client, &s.server, n)
	s.deliver(&s.server, &s.client, n)
	for _, e := range []*simEnd{&s.client, &s.server} {
		for e.asked {
			e.asked = false
			e.c.Flush()
			idle = false
		}
	}
	return idle
}

func TestSimulation(t *testing.T) {
	full := 0
	for seed := range *seeds {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			if simulate(t, uint64(seed)) {
				full++
			}
		})
	}
	t.Logf("%d of %d had a connection that was full", full, *seeds)
}

// simulate reports whether a connection was full at times.
func simulate(t *testing.T, seed uint64) bool {
	rng := rand.New(rand.NewPCG(seed, 1))
	s := &sim{t: t, rng: rng}
	s.client.sim, s.server.sim = s, s
	s.server.c = (&Endpoint{MaxStreams: 1 + rng.IntN(30)}).Server(&s.server, &s.server, epoch)
	s.client.c = new(Endpoint).Client(&s.client, &s.client, epoch)
	s.step(1 << 20)
	large := rng.IntN(3) == 0 // so that the connection's queue is full, too
	for i := range 40 {
		n := 1 + rng.IntN(1<<rng.IntN(20))
		if large {
			n += 200_000
		}
		x := &simCall{body: make([]byte, n)}
		x.sim = s
		for j := range x.body {
			x.body[j] = byte(i + j + j>>8)
		}
		s.calls = append(s.calls, x)
	}
	next := 0
	for range 3000 {
		if next < len(s.calls) && (large || rng.IntN(20) == 0) {
			// Streams are numbered as they begin: one waits behind those that wait already.
			if len(s.client.begin) > 0 {
				s.client.begin = append(s.client.begin, s.calls[next])
			} else {
				s.calls[next].start()
			}
			next++
		}
		s.step(rng.IntN(1 << rng.IntN(17)))
		s.full = s.full || s.client.c.queued > maxQueued || s.server.c.queued > maxQueued
		x := s.calls[rng.IntN(len(s.calls))]
		for _, h := range []*simEcho{&x.simEcho, x.echo} {
			if h != nil && h.s != nil && !h.over && rng.IntN(3) == 0 {
				h.rest = rng.IntN(3) == 0
				h.balance()
			}
		}
		if x.s != nil && !x.over && rng.IntN(300) == 0 {
			x.gaveUp = true
			if e := x.echo; e != nil && !e.over && rng.IntN(2) == 0 {
				e.s.Abort(errLost)
			} else {
				x.s.Reset(CodeCancel)
			}
		}
	}
	s.calm = true
	for ; next < len(s.calls); next++ {
		if len(s.client.begin) > 0 {
			s.client.begin = append(s.client.begin, s.calls[next])
		} else {
			s.calls[next].start()
		}
	}
	for range 100_000 {
		for _, x := range s.calls {
			for _, h := range []*simEcho{&x.simEcho, x.echo} {
				if h != nil && h.s != nil && !h.over && h.rest {
					h.rest = false
					h.balance()
				}
			}
		}
		if s.step(50_000) {
			break
		}
	}
	for i, x := range s.calls {
		switch {
		case x.gaveUp:
			if !x.over || !bytes.HasPrefix(x.body, x.got) {
				t.Errorf("call %d, given up: over %v", i, x.over)
			}
		case !x.over || !x.eof || x.err != nil || !bytes.Equal(x.got, x.body):
			t.Errorf("call %d: %d bytes of %d, sent %d, over %v, eof %v, %v", i, len(x.got), len(x.body), x.sent, x.over, x.eof, x.err)
		}
		if x.echo != nil && !x.echo.over {
			t.Errorf("call %d: the server's stream is not over", i)
		}
	}
	for _, c := range []*Conn{s.client.c, s.server.c} {
		if c.n != 0 || c.queued != 0 || c.ready.head != nil || c.due.head != nil || c.recvWindow+c.used != c.window {
			t.Errorf("left: %d streams, %d queued, window %d + %d", c.n, c.queued, c.recvWindow, c.used)
		}
	}
	return s.full
}
