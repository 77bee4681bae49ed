package tunnel

import (
	"bytes"
	"errors"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestSmallFramesPassBulk(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	bulk, small := c.open(), c.open()
	bulk.Write(make([]byte, 60<<10))
	c.s.Flush(c.now)
	bulk.Write(make([]byte, 500<<10))
	c.link.full, c.link.sent = true, nil
	c.recv("03 00000001 000010 0000000000000000 0000000000100000")
	c.s.fill(c.s.control, batchSize) // one batch is on its way
	small.Write([]byte("keystroke"))
	c.s.Flush(c.now)
	c.link.full = false
	c.s.Drained(c.link, c.now)
	want := unhex(t, "02 00000003 000011 0000000000000000 6b65797374726f6b65")
	if !bytes.HasPrefix(c.link.sent, want) {
		t.Fatalf("the small frame is not the first: %x", c.link.sent[:32])
	}
}

// frames splits what was sent and calls f for each.
func frames(b []byte, f func(typ frameType, id uint32, payload []byte)) {
	for len(b) > 0 {
		n := int(b[5])<<16 | int(b[6])<<8 | int(b[7])
		f(frameType(b[0]), uint32(b[1])<<24|uint32(b[2])<<16|uint32(b[3])<<8|uint32(b[4]), b[8:8+n])
		b = b[8+n:]
	}
}

func TestStreamsShareFairly(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	c.link.full = true
	var streams []*Stream
	for range 5 {
		st := c.open()
		streams = append(streams, st)
		st.limit = 10 << 20
		st.Write(make([]byte, 1<<20))
	}
	got := map[uint32]int{}
	for range 40 {
		c.link.sent = nil
		c.s.Flush(c.now)
		c.link.sent = append(c.link.sent, c.s.fill(c.s.control, batchSize)[Headroom:]...)
		frames(c.link.sent, func(typ frameType, id uint32, p []byte) {
			if typ == frameData {
				got[id] += len(p) - 8
			}
		})
	}
	least, most := 1<<30, 0
	for _, st := range streams {
		least, most = min(least, got[st.ID()]), max(most, got[st.ID()])
	}
	if least == 0 || most-least > 2*quantum {
		t.Fatalf("shares: %v", got)
	}
}

// A crowd of streams with small frames does not starve bulk.
func TestSparseStreamsDoNotStarveBulk(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	bulk := c.open()
	bulk.limit = 100 << 20
	bulk.Write(make([]byte, 20<<20))
	var crowd []*Stream
	for range 200 {
		st := c.open()
		st.limit = 100 << 20
		crowd = append(crowd, st)
	}
	sent := map[bool]int{}
	for range 300 {
		for _, st := range crowd {
			if st.Pending() == 0 {
				st.Write(make([]byte, 1000))
			}
		}
		b := c.s.fill(c.s.control, batchSize)
		frames(b[Headroom:], func(typ frameType, id uint32, p []byte) {
			if typ == frameData {
				sent[id == bulk.ID()] += len(p)
			}
		})
	}
	if sent[true] < sent[false]/400 {
		t.Fatalf("bulk %d, crowd %d", sent[true], sent[false])
	}
}

func TestWindowGrowsWithUse(t *testing.T) {
	var in *Stream
	paused := false
	got := 0
	p := newPair(Config{}, Config{MaxWindow: 4 << 20, Accept: func(st *Stream, _ []byte) {
		in = st
		st.SetHandler(&funcs{data: func(b []byte) int { got += len(b); return len(b) }})
	}})
	out := mustOpen(t, p.a, &funcs{})
	buf := make([]byte, 64<<10)
	send := func(n int) {
		for got = 0; got < n; {
			if out.Pending() <= out.HighMark() {
				out.Write(buf)
			}
			p.now = p.now.Add(time.Millisecond)
			p.flush()
			if paused && out.Pending() > out.HighMark() {
				return
			}
		}
	}
	send(16 << 20)
	if in.window != 4<<20 || p.b.grown != 4<<20-64<<10 {
		t.Fatalf("after 16 MiB at 64 MiB/s the window is %d, the session grew by %d", in.window, p.b.grown)
	}
	if most := out.limit - out.acked; most > 4<<20+maxAckLag {
		t.Fatalf("%d bytes may be in flight", most)
	}
	in.Reset(CodeCancelled)
	p.flush()
	if p.b.grown != 0 {
		t.Fatalf("an ended stream leaves %d", p.b.grown)
	}

	// One that trickles keeps its window.
	out = mustOpen(t, p.a, &funcs{})
	p.flush()
	for range 100 {
		out.Write(buf[:4000])
		p.advance(200 * time.Millisecond)
	}
	if in.window != 64<<10 {
		t.Fatalf("at 20 kB/s the window is %d", in.window)
	}

	// One whose handler pauses keeps it too, and what is in flight stays bounded.
	in.Pause()
	paused = true
	send(16 << 20)
	if in.window != 64<<10 || int(in.kept) != 64<<10 {
		t.Fatalf("while paused: window %d, kept %d", in.window, in.kept)
	}
	out.Reset(CodeCancelled)
	p.flush()
	if p.b.Stats().Buffered != 0 || p.a.Stats().Buffered != 0 {
		t.Fatal("a reset leaves memory in use")
	}
}

func TestGrowthStopsAtHalfTheBudget(t *testing.T) {
	p := newPair(Config{}, Config{Budget: 1 << 20, Accept: func(st *Stream, _ []byte) { st.SetHandler(&funcs{}) }})
	buf := make([]byte, 64<<10)
	for range 10 {
		out := mustOpen(t, p.a, &funcs{})
		for range 100 {
			out.Write(buf)
			p.flush()
		}
	}
	if p.b.grown > 512<<10 || p.b.grown == 0 {
		t.Fatalf("grown by %d", p.b.grown)
	}
}

func TestBudgetResetsOnlyTheStreamThatKeepsTooMuch(t *testing.T) {
	var paused []*Stream
	closed := map[uint32]error{}
	good := 0
	p := newPair(Config{}, Config{Budget: 1 << 20, Accept: func(st *Stream, header []byte) {
		if string(header) == "good" {
			st.SetHandler(&funcs{data: func(b []byte) int { good += len(b); return len(b) }})
			return
		}
		paused = append(paused, st)
		st.SetHandler(&funcs{close: func(err error) { closed[st.ID()] = err }})
		st.Pause()
	}})
	neighbour, _ := p.a.Open([]byte("good"))
	neighbour.SetHandler(&funcs{})
	var senders []*Stream
	errs := map[uint32]error{}
	for range 20 {
		st := mustOpen(t, p.a, nil)
		st.SetHandler(&funcs{close: func(err error) { errs[st.ID()] = err }})
		senders = append(senders, st)
	}
	for range 16 {
		for _, st := range append(senders, neighbour) {
			st.Write(make([]byte, 8<<10))
		}
		p.advance(time.Millisecond)
	}
	if good != 16*8<<10 {
		t.Fatalf("the neighbour got %d bytes", good)
	}
	if used := p.b.Stats().Buffered; used > 1<<20 {
		t.Fatalf("%d bytes are kept", used)
	}
	if len(closed) < 3 || len(closed) > 8 || len(errs) != len(closed) {
		t.Fatalf("%d streams of 20 were reset: %v", len(closed), errs)
	}
	for id, err := range errs {
		var e *StreamError
		if !errors.As(err, &e) || e.Code != CodeMemory || !e.Remote {
			t.Fatalf("stream %d: %v", id, err)
		}
	}
}

func TestWriterBackpressure(t *testing.T) {
	drained := 0
	c := newScript(t, Config{Client: true, Budget: 1 << 20})
	c.start()
	st := c.open()
	st.SetHandler(&funcs{drain: func() { drained++ }})
	c.s.Flush(c.now)
	st.limit = 1 << 30
	c.link.full = true
	st.Write(make([]byte, 100<<10))
	if st.Pending() > st.HighMark() {
		t.Fatalf("%d are above the high mark", st.Pending())
	}
	st.Write(make([]byte, 100<<10))
	if st.Pending() <= st.HighMark() {
		t.Fatalf("%d are not above the high mark", st.Pending())
	}
	c.link.full = false
	c.s.Flush(c.now)
	if drained != 1 || st.Pending() != 0 {
		t.Fatalf("drained %d times, %d pending", drained, st.Pending())
	}
	// The high mark shrinks as the budget runs out, and sending stops at half of it.
	st.Write(make([]byte, 2<<20))
	c.s.Flush(c.now)
	if st.HighMark() != 0 {
		t.Fatalf("high mark %d with the budget spent", st.HighMark())
	}
	if c.s.unacked > 512<<10+batchSize {
		t.Fatalf("%d bytes unacknowledged", c.s.unacked)
	}
	for st.Pending() > 0 {
		st.limit = 1 << 30
		if !c.s.acknowledge(st, st.next) {
			t.Fatal("not acknowledged")
		}
		c.s.Flush(c.now)
	}
	if drained != 2 || c.s.unacked > 512<<10+batchSize {
		t.Fatalf("drained %d times", drained)
	}
}

// A writer that finds the high mark below what it wrote long ago is told when to go on.
func TestShrunkHighMarkDrains(t *testing.T) {
	drained := 0
	c := newScript(t, Config{Client: true, Budget: 1 << 20})
	c.start()
	st, other := c.open(), c.open()
	st.SetHandler(&funcs{drain: func() { drained++ }})
	c.s.Flush(c.now)
	st.limit, other.limit = 1<<30, 1<<30
	c.link.full = true
	st.Write(make([]byte, 20<<10))
	other.Write(make([]byte, 800<<10)) // more than three quarters of the budget
	if st.Pending() <= st.HighMark() {
		t.Fatalf("%d pending, high mark %d", st.Pending(), st.HighMark())
	}
	c.link.full = false
	c.s.Flush(c.now)
	if drained != 1 {
		t.Fatalf("drained %d times with %d pending", drained, st.Pending())
	}
}

// A writer that gives little at a time hears when it is sent, also if that was before a link was lost.
func TestNotifySent(t *testing.T) {
	drained := 0
	c := newScript(t, Config{Client: true})
	c.start()
	st := c.open()
	st.SetHandler(&funcs{drain: func() { drained++ }})
	c.s.Flush(c.now)
	st.NotifySent() // nothing is written
	check := func(want int) {
		t.Helper()
		if c.s.Flush(c.now); drained != want {
			t.Fatalf("drained %d times with %d pending, want %d", drained, st.Pending(), want)
		}
	}
	check(0)
	c.link.full = true
	st.Write(make([]byte, 1000))
	st.NotifySent()
	check(0)
	c.link.full = false
	check(1)
	check(1) // once
	c.link.full = true
	c.s.rewind(st)
	st.NotifySent()
	check(1)
	if !c.s.acknowledge(st, 1000) {
		t.Fatal("not acknowledged")
	}
	check(2)
}

func TestUnusedInputIsPresentedAgain(t *testing.T) {
	var seen []string
	use := 0
	c := newScript(t, Config{Accept: func(st *Stream, _ []byte) {
		st.SetHandler(&funcs{
			data: func(b []byte) int { seen = append(seen, string(b)); return use },
			eof:  func() { seen = append(seen, "EOF") },
		})
	}})
	c.start()
	check := func(want ...string) {
		t.Helper()
		if !slices.Equal(seen, want) {
			t.Fatalf("presented %q, want %q", seen, want)
		}
		seen = nil
	}
	c.recv("open", "data")
	check("hello")
	use = 4
	c.recv("data, offset")
	check("helloworld")
	c.s.Flush(c.now)
	check() // not before more arrives
	c.recv("data, fin")
	check("oworld!", "EOF")
	st := c.s.streams[1]
	st.SetHandler(&funcs{data: func(b []byte) int { seen = append(seen, "new "+string(b)); return 1 }, eof: func() { seen = append(seen, "new EOF") }})
	check()
	c.s.Flush(c.now)
	check("new ld!", "new EOF")
	st.Pause()
	c.s.Flush(c.now)
	check()
	st.Resume()
	c.s.Flush(c.now)
	check("new d!")
}

// A handler that hands over to another inside OnData, as a parser does behind a head.
func TestHandlerIsReplacedInsideOnData(t *testing.T) {
	for _, paused := range []bool{false, true} {
		var seen []string
		second := &funcs{
			data: func(b []byte) int { seen = append(seen, string(b)); return len(b) },
			eof:  func() { seen = append(seen, "EOF") },
		}
		c := newScript(t, Config{Accept: func(st *Stream, _ []byte) {
			if paused {
				st.Pause()
			}
			st.SetHandler(&funcs{data: func(b []byte) int { st.SetHandler(second); return 2 }})
		}})
		c.start()
		c.recv("open", "data")
		if paused {
			c.s.streams[1].Resume()
			c.s.Flush(c.now)
		}
		if want := []string{"llo"}; !slices.Equal(seen, want) {
			t.Fatalf("paused %v: %q", paused, seen)
		}
		c.recv("82 00000001 000008 0000000000000005")
		if want := []string{"llo", "EOF"}; !slices.Equal(seen, want) {
			t.Fatalf("paused %v: %q", paused, seen)
		}
	}
}

// The owner learns that a timer is due earlier than it knew.
func TestOwedAcknowledgementWakes(t *testing.T) {
	woken := 0
	c := newScript(t, Config{Wake: func() { woken++ }})
	c.start()
	c.recv("open")
	c.advance(lazyAck)
	c.sends("the open is acknowledged", "03 00000001 000010 0000000000000000 0000000000010000")
	woken = 0
	c.recv("data")
	if woken != 1 || c.s.Next() != c.now.Add(lazyAck) {
		t.Fatalf("woken %d times, next %v", woken, c.s.Next().Sub(c.now))
	}
}

// Sending that waits for the budget goes on when acknowledgements come.
func TestAcknowledgementWakes(t *testing.T) {
	woken := 0
	c := newScript(t, Config{Client: true, Budget: 128 << 10, Wake: func() { woken++ }})
	c.start()
	one, two := c.open(), c.open()
	one.Write(make([]byte, 64<<10))
	two.Write(make([]byte, 64<<10))
	c.s.Flush(c.now)
	if one.Pending()+two.Pending() == 0 {
		t.Fatalf("%d and %d are pending", one.Pending(), two.Pending())
	}
	done := one
	if two.Pending() < one.Pending() {
		done = two
	}
	woken = 0
	b := appendCredit(make([]byte, 0, creditSize), done.ID(), done.next, done.limit)
	if err := c.s.Receive(c.link, b, c.now); err != nil || woken != 1 {
		t.Fatalf("%v, woken %d times", err, woken)
	}
}

func TestHandlerThatUsesNothingIsReset(t *testing.T) {
	var err error
	most := 0
	p := newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) {
		st.SetHandler(&funcs{
			data:  func(b []byte) int { most = max(most, len(b)); return 0 },
			close: func(e error) { err = e },
		})
	}})
	out := mustOpen(t, p.a, &funcs{})
	out.Write(make([]byte, 100<<10))
	p.flush()
	p.flush()
	if !errors.Is(err, ErrInputTooLong) || most != 64<<10 {
		t.Fatalf("after %d bytes: %v", most, err)
	}
}

func TestPausedInputIsPresentedInOrder(t *testing.T) {
	var in *Stream
	var got bytes.Buffer
	p := newPair(Config{}, Config{Window: 1 << 20, Accept: func(st *Stream, _ []byte) {
		in = st
		st.SetHandler(&funcs{data: func(b []byte) int {
			n := max(1, len(b)*2/3)
			got.Write(b[:n])
			if got.Len()%3 == 0 {
				st.Pause()
			}
			return n
		}})
		st.Pause()
	}})
	out := mustOpen(t, p.a, &funcs{})
	want := bytes.Repeat(noise[:65521], 8)
	out.Write(want)
	p.flush()
	for range 10000 {
		in.Resume()
		in.Pause()
		in.Resume()
		p.advance(21 * time.Millisecond)
		if got.Len() == len(want) {
			break
		}
	}
	if !bytes.Equal(got.Bytes(), want) {
		t.Fatalf("%d bytes of %d came, or others", got.Len(), len(want))
	}
}

func TestCloseDropsInput(t *testing.T) {
	var in *Stream
	var events []string
	p := newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) {
		in = st
		st.SetHandler(&funcs{
			data:  func(b []byte) int { events = append(events, "data"); return 0 },
			eof:   func() { events = append(events, "eof") },
			close: func(err error) { events = append(events, "close") },
		})
	}})
	out := mustOpen(t, p.a, &funcs{})
	out.Write([]byte("hello"))
	p.flush()
	in.Write([]byte("bye"))
	in.Close()
	for range 10 { // more than a window, so it is consumed
		out.Write(make([]byte, 32<<10))
		p.flush()
	}
	out.CloseWrite()
	p.advance(lazyAck)
	if got := strings.Join(events, " "); got != "data close" {
		t.Fatal(got)
	}
	if p.a.Stats().Streams != 0 {
		t.Fatal("the other side is not finished")
	}
}

func TestOpenErrors(t *testing.T) {
	p := newPair(Config{MaxStreams: 2}, Config{MaxStreams: 1, Accept: func(st *Stream, _ []byte) { st.SetHandler(&funcs{}) }})
	if _, err := p.a.Open(make([]byte, MaxHeader+1)); err != ErrHeaderTooLong {
		t.Fatal(err)
	}
	mustOpen(t, p.a, &funcs{})
	var err error
	mustOpen(t, p.a, &funcs{close: func(e error) { err = e }})
	if _, err := p.a.Open(nil); err != ErrTooManyStreams {
		t.Fatal(err)
	}
	p.flush()
	if e, ok := err.(*StreamError); !ok || *e != (StreamError{CodeOverload, true}) {
		t.Fatalf("the peer takes one stream: %v", err)
	}
	p.b.GoAway()
	p.flush()
	if _, err := p.a.Open(nil); err != ErrDraining {
		t.Fatal(err)
	}
	if _, err := p.b.Open(nil); err != ErrDraining {
		t.Fatal(err)
	}
	p.a.Close(nil)
	if _, err := p.a.Open(nil); err != ErrClosed {
		t.Fatal(err)
	}
}

// A peer that acknowledges no reset gets no more streams.
func TestOpenIsBoundedByUnacknowledgedResets(t *testing.T) {
	c := newScript(t, Config{Client: true, MaxStreams: 10})
	c.start()
	for range maxTombs + 1000 {
		st, err := c.s.Open(nil)
		if err == ErrTooManyStreams {
			break
		}
		c.s.Flush(c.now)
		st.Reset(CodeCancelled)
		c.s.Flush(c.now)
		c.link.sent = nil
	}
	if n := len(c.s.tombs); n > 10+maxTombs+1 {
		t.Fatalf("%d resets are remembered", n)
	}
}

// Nor does a peer that does not read: what was opened and reset meanwhile waits for room.
func TestOpenIsBoundedByUnsent(t *testing.T) {
	c := newScript(t, Config{Client: true, MaxStreams: 10})
	c.start()
	c.link.full = true
	for range 11 + maxTombs {
		st, err := c.s.Open(nil)
		if err != nil {
			t.Fatal(err)
		}
		st.Reset(CodeCancelled)
		c.s.Flush(c.now)
	}
	if _, err := c.s.Open(nil); err != ErrTooManyStreams {
		t.Fatal(err)
	}
	c.link.full = false
	c.s.Flush(c.now)
	if _, err := c.s.Open(nil); err != nil {
		t.Fatal(err)
	}
}

// Visitors that come while there is no link do not fill the memory: each new stream may
// write before its writer looks at the high mark.
func TestOpenIsBoundedByBudget(t *testing.T) {
	const budget = 1 << 20
	c := newScript(t, Config{Client: true, Budget: budget})
	for {
		st, err := c.s.Open(nil)
		if err == ErrTooManyStreams {
			break
		}
		st.SetHandler(&funcs{})
		st.Write(make([]byte, 16<<10))
		if n := c.s.Stats().Buffered; n > 2*budget+largeChunk {
			t.Fatalf("%d bytes with a budget of %d", n, budget)
		}
	}
}

func TestStreamWithoutHandlerIsRefused(t *testing.T) {
	p := newPair(Config{}, Config{Accept: func(*Stream, []byte) {}})
	var err error
	mustOpen(t, p.a, &funcs{close: func(e error) { err = e }})
	p.flush()
	if e, ok := err.(*StreamError); !ok || e.Code != CodeInternal {
		t.Fatal(err)
	}
}

func TestGoAwayWaitsForStreams(t *testing.T) {
	over := 0
	done := func(err error) {
		if err != nil {
			t.Error(err)
		}
		over++
	}
	var in *Stream
	p := newPair(Config{OnClose: done}, Config{OnClose: done, Accept: func(st *Stream, _ []byte) {
		in = st
		st.SetHandler(&funcs{eof: st.CloseWrite})
	}})
	out := mustOpen(t, p.a, &funcs{})
	p.flush()
	p.a.GoAway()
	p.advance(time.Second)
	in.Write([]byte("still here"))
	p.advance(time.Second)
	if over != 0 {
		t.Fatal("over with an open stream")
	}
	out.CloseWrite()
	p.advance(lazyAck)
	p.advance(lazyAck)
	if over != 2 {
		t.Fatalf("%d sides are over", over)
	}
}

func TestResumeTimeout(t *testing.T) {
	c := newScript(t, Config{Client: true, ResumeTimeout: 10 * time.Second})
	c.start()
	c.open()
	c.s.Flush(c.now)
	c.s.Lost(c.link, errors.New("cut"), c.now)
	c.advance(9 * time.Second)
	c.happens("it waits")
	c.advance(time.Second)
	c.happens("and gives up", "close 1 stream reset: session lost", "session over: session lost: no link within the resume timeout of 10s")
	if !errors.Is(c.err, ErrResumeTimeout) || !c.s.Next().IsZero() {
		t.Fatal(c.err, c.s.Next())
	}
	c.attach()
	if c.link.closed != ErrClosed {
		t.Fatal("a session that is over takes a link")
	}
}

func TestConfirmed(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	first, second := c.open(), c.open()
	c.s.Flush(c.now)
	c.recv(credit(1, 0, 1<<20))
	if !first.Confirmed() || second.Confirmed() {
		t.Fatal(first.Confirmed(), second.Confirmed())
	}
}

func TestPing(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	c.s.Flush(c.now)
	c.advance(2 * time.Second)
	c.recv("01 00000002 000000")
	c.advance(2 * time.Second)
	c.sends("something came: no ping", "03 00000002 000010 0000000000000000 0000000000010000")
	if want := c.now.Add(time.Second); c.s.Next() != want {
		t.Fatal(c.s.Next())
	}
	c.advance(time.Second)
	c.sends("silence for 3 s", "06 00000000 000008 0000000000000002")
	c.now = c.now.Add(100 * time.Millisecond)
	c.recv("07 00000000 000008 0000000000000002", "07 00000000 000008 0000000000000002", "pong")
	if rtt := c.s.Stats().RTT; rtt != 25*time.Millisecond {
		t.Fatalf("rtt %v", rtt) // a quarter of the way from the first, 0
	}
	c.advance(3 * time.Second)
	c.sends("again", "06 00000000 000008 0000000000000003")
	c.advance(6999 * time.Millisecond)
	if c.link.closed != nil {
		t.Fatal("given up too early")
	}
	c.advance(time.Millisecond)
	if c.link.closed != ErrLinkTimeout || c.s.Stats().Attached {
		t.Fatal(c.link.closed)
	}
	c.happens("the streams wait", `open 2 ""`)
}

// An owner that doubts its links asks them all, once.
func TestPingOnRequest(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	c.s.Ping(c.now)
	c.s.Ping(c.now)
	c.sends("at once", "06 00000000 000008 0000000000000002")
}

// An owner that slept, as a laptop does, asks before it gives up.
func TestPingAfterSleep(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	c.advance(time.Hour)
	c.sends("it asks", "06 00000000 000008 0000000000000002")
	c.advance(time.Second)
	c.recv("07 00000000 000008 0000000000000002")
	if c.link.closed != nil {
		t.Fatal(c.link.closed)
	}
}

func TestNewLinkSupersedes(t *testing.T) {
	c := newScript(t, Config{Client: true})
	c.start()
	old := c.link
	c.attach()
	if old.closed != ErrSuperseded {
		t.Fatal(old.closed)
	}
	if err := c.s.Receive(old, c.bytes([]string{"open", "end", "end"}), c.now); err != nil {
		t.Fatal("the old link is not ignored: ", err)
	}
	c.s.Lost(old, errors.New("cut"), c.now)
	if !c.s.Stats().Attached {
		t.Fatal("the loss of the old link takes the new one")
	}
}

func TestStreamIDsWrapAround(t *testing.T) {
	opened := 0
	p := newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) {
		opened++
		st.SetHandler(&funcs{data: func(b []byte) int { st.Write(b); return len(b) }})
	}})
	first := mustOpen(t, p.a, &funcs{})
	p.advance(lazyAck)
	p.a.nextID, p.b.highest = 0xfffffffd, 0xfffffffb
	// The link is cut with the OPENs of both sides of the end in flight.
	p.a.Flush(p.now)
	var got int
	h := &funcs{data: func(b []byte) int { got += len(b); return len(b) }}
	streams := []*Stream{mustOpen(t, p.a, h), mustOpen(t, p.a, h), mustOpen(t, p.a, h)}
	if ids := []uint32{streams[0].ID(), streams[1].ID(), streams[2].ID()}; !slices.Equal(ids, []uint32{0xfffffffd, 0xffffffff, 3}) {
		t.Fatal(ids) // 1 is still in use
	}
	p.a.Attach(p.la, RoleInteractive, p.now)
	p.b.Attach(p.lb, RoleInteractive, p.now)
	for _, st := range streams {
		st.Write([]byte("!"))
	}
	p.flush()
	if opened != 4 || got != 3 {
		t.Fatalf("%d streams opened, %d answer", opened, got)
	}
	_ = first
}

func TestCallbacksInsideCallbacks(t *testing.T) {
	var p *pair
	closes := 0
	p = newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) {
		st.SetHandler(&funcs{
			data: func(b []byte) int {
				if st.ID()%4 == 1 {
					p.b.Close(nil)
				}
				return 0
			},
			close: func(error) { closes++ },
		})
	}, OnClose: func(error) { closes += 100 }})
	for range 4 {
		mustOpen(t, p.a, &funcs{}).Write([]byte("x"))
	}
	p.flush()
	if closes != 101 && closes != 104 {
		t.Fatalf("closes %d", closes)
	}
	if p.b.Stats().Buffered != 0 {
		t.Fatal("memory is left")
	}
}

func TestBuffersAreGivenBack(t *testing.T) {
	p := newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) { st.SetHandler(&funcs{}) }})
	mustOpen(t, p.a, &funcs{}).Write(make([]byte, 10<<20))
	for range 200 {
		p.flush()
	}
	if p.a.pool.free[1].n == 0 {
		t.Fatal("no free chunks after a burst")
	}
	for range 3 {
		p.a.trimBuffers()
	}
	if p.a.pool.free[1].n != 0 || p.a.batch != nil {
		t.Fatalf("%d chunks are kept", p.a.pool.free[1].n)
	}
}

func TestSteadyStateDoesNotAllocate(t *testing.T) {
	p := newPair(Config{}, Config{Accept: func(st *Stream, _ []byte) {
		st.SetHandler(&funcs{data: func(b []byte) int { st.Write(b[:1]); return len(b) }})
	}})
	var streams []*Stream
	for range 10 {
		streams = append(streams, mustOpen(t, p.a, &funcs{}))
	}
	buf := make([]byte, 40<<10)
	turn := func() {
		for i, st := range streams {
			st.Write(buf[:len(buf)>>i])
		}
		p.now = p.now.Add(5 * time.Millisecond)
		p.a.Advance(p.now)
		p.b.Advance(p.now)
		p.a.Flush(p.now)
		p.b.Flush(p.now)
		p.a.Flush(p.now)
	}
	for range 2000 {
		turn()
	}
	if n := testing.AllocsPerRun(1000, turn); n != 0 {
		t.Fatalf("%v allocations per turn", n)
	}
}

func TestIdleStreamsAreSmall(t *testing.T) {
	if per := idleBytes(t, 20_000); per > 260 {
		t.Fatalf("%.0f bytes per idle stream", per)
	}
}

func TestErrorTexts(t *testing.T) {
	for err, want := range map[error]string{
		&StreamError{CodeRefused, true}:      "stream reset by peer: refused",
		&StreamError{CodeMemory, false}:      "stream reset: out of memory budget",
		&StreamError{Code(999), false}:       "stream reset: code 999",
		&StreamError{CodeSessionLost, false}: "stream reset: session lost",
	} {
		if err.Error() != want {
			t.Errorf("%q, want %q", err.Error(), want)
		}
	}
}
