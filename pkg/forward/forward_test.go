package forward

import (
	"errors"
	"testing"
	"unsafe"

	"culvert.dev/pkg/tunnel"
)

// fakeEnd is an end whose peer is the test: deliver is what the peer sends,
// sent is what it received, and take is the peer reading n queued bytes.
type fakeEnd struct {
	h      Handler
	queued []byte // written and not yet taken by the peer
	sent   []byte // taken by the peer
	stuck  bool   // the peer does not read
	paused bool
	fin    bool // CloseWrite was called
	closed bool // Close was called
	eof    bool
	err    error // of Abort
	over   bool  // OnClose was given
	above  bool
}

const fakeHigh, fakeLow = 1000, 250

func (e *fakeEnd) SetHandler(h Handler) { e.h = h }
func (e *fakeEnd) Pending() int         { return len(e.queued) }
func (e *fakeEnd) HighMark() int        { return fakeHigh }
func (e *fakeEnd) Pause()               { e.paused = true }
func (e *fakeEnd) Resume()              { e.paused = false }

func (e *fakeEnd) Write(b []byte) {
	if e.over || e.fin {
		return
	}
	e.queued = append(e.queued, b...)
	e.above = e.above || len(e.queued) > fakeHigh
	if !e.stuck {
		e.take(len(e.queued))
	}
}

func (e *fakeEnd) take(n int) {
	n = min(n, len(e.queued))
	e.sent = append(e.sent, e.queued[:n]...)
	e.queued = e.queued[n:]
	if e.above && len(e.queued) <= fakeLow {
		e.above = false
		e.h.OnDrain()
	}
	e.finish()
}

// finish ends e when both directions have, as a connection does.
func (e *fakeEnd) finish() {
	if !e.over && len(e.queued) == 0 && (e.closed || e.fin && e.eof) {
		e.over = true
		e.h.OnClose(nil)
	}
}

func (e *fakeEnd) CloseWrite() { e.fin = true; e.finish() }
func (e *fakeEnd) Close()      { e.closed = true; e.finish() }

func (e *fakeEnd) Abort(err error) {
	if e.over {
		return
	}
	e.over, e.err, e.queued = true, err, nil
	e.h.OnClose(err)
}

// deliver is the peer sending b; it reports whether the end took it.
func (e *fakeEnd) deliver(b []byte) bool {
	if e.paused {
		return false
	}
	return e.h.OnData(b) == len(b)
}

func (e *fakeEnd) deliverEOF() { e.eof = true; e.h.OnEOF(); e.finish() }

// splice joins two fake ends and counts the onClose calls.
func splice(t *testing.T) (a, b *fakeEnd, done *int, err *error) {
	t.Helper()
	a, b = new(fakeEnd), new(fakeEnd)
	done, err = new(int), new(error)
	Splice(a, b, func(e error) { *done++; *err = e })
	return a, b, done, err
}

func TestSpliceBothWays(t *testing.T) {
	a, b, done, err := splice(t)
	a.deliver([]byte("ping"))
	b.deliver([]byte("pong"))
	if string(b.sent) != "ping" || string(a.sent) != "pong" {
		t.Fatalf("a got %q and b got %q, want pong and ping", a.sent, b.sent)
	}

	// The end of one direction leaves the other open.
	a.deliverEOF()
	if !b.fin || a.fin {
		t.Fatalf("after EOF of a: b.fin = %v, a.fin = %v, want true, false", b.fin, a.fin)
	}
	b.deliver([]byte(" and more"))
	if string(a.sent) != "pong and more" {
		t.Fatalf("after its EOF a got %q", a.sent)
	}

	// When both have finished, both close, and the owner hears it once.
	if *done != 0 {
		t.Fatal("onClose before both directions had finished")
	}
	b.deliverEOF()
	if !a.over || !b.over || *done != 1 || *err != nil {
		t.Fatalf("a.over %v, b.over %v, onClose %d times with %v", a.over, b.over, *done, *err)
	}
}

func TestSpliceBackpressure(t *testing.T) {
	a, b, _, _ := splice(t)
	b.stuck = true
	chunk := make([]byte, 300)
	n := 0
	for a.deliver(chunk) {
		n++
	}
	// The source stops one chunk above the mark of the stalled reader.
	if n != 4 || len(b.queued) != 1200 {
		t.Fatalf("took %d chunks, %d bytes queued; want 4, 1200", n, len(b.queued))
	}
	// The other direction goes on.
	if !b.deliver([]byte("up")) || string(a.sent) != "up" {
		t.Fatal("the other direction stalled too")
	}
	// Above the low mark nothing moves, below it the source resumes.
	b.take(900)
	if !a.paused {
		t.Fatal("resumed above the low mark")
	}
	b.take(100)
	if a.paused {
		t.Fatal("still paused below the low mark")
	}
	// What is queued at the end of both directions still goes out.
	a.deliver([]byte("last"))
	a.deliverEOF()
	b.deliverEOF()
	if b.over {
		t.Fatal("closed with bytes queued")
	}
	b.take(1000)
	if !b.over || len(b.sent) != 1204 {
		t.Fatalf("over %v with %d bytes sent, want 1204", b.over, len(b.sent))
	}
}

func TestSpliceStartsPaused(t *testing.T) {
	a, b := &fakeEnd{paused: true}, &fakeEnd{stuck: true, queued: make([]byte, 2000), above: true}
	Splice(a, b, nil)
	if !a.paused {
		t.Fatal("a resumed though b has too much queued")
	}
	b.take(2000)
	if a.paused {
		t.Fatal("a did not resume after b drained")
	}
}

func TestSpliceErrors(t *testing.T) {
	gone := errors.New("connection reset by peer")
	a, b, done, err := splice(t)
	a.over = true
	a.h.OnClose(gone)
	want := tunnel.StreamError{Code: tunnel.CodeCancelled}
	if e, ok := errors.AsType[*tunnel.StreamError](b.err); !ok || e.Code != want.Code {
		t.Fatalf("b aborted with %v, want %v", b.err, &want)
	}
	if *done != 1 || *err != gone {
		t.Fatalf("onClose %d times with %v, want once with %v", *done, *err, gone)
	}

	// The code of a reset stream reaches the other end as it is.
	a, b, done, _ = splice(t)
	refused := &tunnel.StreamError{Code: tunnel.CodeRefused, Remote: true}
	b.over = true
	b.h.OnClose(refused)
	if a.err != refused || *done != 1 {
		t.Fatalf("a aborted with %v, onClose %d times", a.err, *done)
	}

	// An end closed from elsewhere closes the other, without a reset.
	a, b, done, err = splice(t)
	a.Close()
	if !b.closed || b.err != nil || *done != 1 || *err != nil {
		t.Fatalf("b.closed %v, aborted with %v, onClose %d times with %v", b.closed, b.err, *done, *err)
	}
}

func TestSpliceMemory(t *testing.T) {
	if n := unsafe.Sizeof(pair{}); n > 128 {
		t.Errorf("a spliced pair holds %d bytes, want at most 128", n)
	}
	n := testing.AllocsPerRun(100, func() { Splice(new(fakeEnd), new(fakeEnd), nil) })
	if n > 3 { // the two ends and the pair
		t.Errorf("Splice allocates %v objects, want the pair alone", n-2)
	}
}
