// Package forward joins two ends of an event loop: what one receives, the
// other sends.
//
//	stream, _ := session.Open(header)
//	forward.Splice(visitor, stream, nil) // from here on both live by themselves
//
// An end is an [evloop.Conn], a [tunnel.Stream], or anything else that acts
// like them. Both ends of a pair belong to the same loop, so that backpressure
// needs no lock: when the destination has queued more than its high mark, its
// source is paused, and nothing else is. A pair that is silent holds one small
// struct and neither buffers nor goroutines.
package forward

import (
	"errors"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tunnel"
)

// Handler receives the events of one End, on the loop that owns it.
type Handler = evloop.Handler

// End is what a connection and a stream have in common.
type End = evloop.End

// pair is two ends that feed each other. It is owned by their loop.
type pair struct {
	a, b    side
	onClose func(err error)
	err     error // the first error of either end
}

// side is one end of a pair and the handler of that end's events.
type side struct {
	end    End
	other  *side
	pair   *pair
	paused bool // end is paused because other.end has too much queued
	eof    bool // end has finished sending
	closed bool // end has had its OnClose
}

// Splice makes a and b each other's destination, until both are closed, and
// takes both over: their handlers are replaced, and reading is resumed or
// paused as the other end's queue asks for. The end of one direction is passed
// on and leaves the other direction open; an error of one end aborts the other.
//
// If onClose is not nil, it is called once, after both ends have closed, with
// the first error, or nil. a and b must belong to the calling loop.
func Splice(a, b End, onClose func(err error)) {
	p := &pair{onClose: onClose}
	p.a = side{end: a, other: &p.b, pair: p}
	p.b = side{end: b, other: &p.a, pair: p}
	a.SetHandler(&p.a)
	b.SetHandler(&p.b)
	p.a.balance()
	p.b.balance()
}

// balance pauses s when the other end cannot take more, and resumes it when
// that end can.
func (s *side) balance() {
	if s.closed {
		return
	}
	o := s.other.end
	s.paused = o.Pending() > o.HighMark()
	if s.paused {
		s.end.Pause()
	} else {
		s.end.Resume()
	}
}

func (s *side) OnData(b []byte) int {
	o := s.other
	if o.closed {
		return len(b)
	}
	o.end.Write(b)
	if !s.paused && !o.closed && o.end.Pending() > o.end.HighMark() {
		s.paused = true
		s.end.Pause()
	}
	return len(b)
}

func (s *side) OnEOF() {
	s.eof = true
	if !s.other.closed {
		s.other.end.CloseWrite()
	}
}

func (s *side) OnDrain() {
	if o := s.other; o.paused && !o.closed {
		o.paused = false
		o.end.Resume()
	}
}

func (s *side) OnClose(err error) {
	s.closed = true
	p, o := s.pair, s.other
	if err != nil && p.err == nil {
		p.err = err
	}
	if o.closed {
		if p.onClose != nil {
			p.onClose(p.err)
		}
		return
	}
	switch {
	case err != nil:
		o.end.Abort(reason(err))
	case !s.eof || !o.eof:
		// Closed from elsewhere, before both directions had finished: what
		// is queued may still go out, nothing more can come in.
		o.end.Close()
	}
	// Otherwise both directions have finished: o closes when its queue is out.
}

// reason is what the other end is told about err: the code of a reset stream
// is passed on, and the loss of a connection means that its side went away.
func reason(err error) error {
	if e, ok := errors.AsType[*tunnel.StreamError](err); ok {
		return e
	}
	return &tunnel.StreamError{Code: tunnel.CodeCancelled}
}
