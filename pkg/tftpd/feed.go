package tftpd

import (
	"bytes"
	"cmp"

	"culvert.dev/pkg/evloop"
)

// feed is the End of a file that is read and whose bytes come from elsewhere, a piece at a time: it asks for the next one when its
// handler has had the last one. It belongs to loop.
type feed struct {
	loop *evloop.Loop
	more func() // asks for a piece: put or fail answers, later
	free func() // nothing is asked for any more. Once; an answer that is still to come does nothing

	handler  evloop.Handler
	in       []byte // put, and not used by handler
	ours     bool   // in is a copy
	fresh    bool   // in is to be presented
	asked    bool   // by more
	paused   bool
	whole    bool // all has been put
	saidEOF  bool
	gotClose bool // CloseWrite was called
	dead     bool
	due      bool // serve is posted
	err      error
}

// put is the next piece, and maybe the last one. b is lent until more has been called twice.
func (f *feed) put(b []byte, last bool) {
	f.asked = false
	if f.dead {
		return
	}
	if len(f.in) > 0 {
		f.in = append(f.in, b...) // in is ours then, or nobody would have asked
	} else {
		f.in, f.ours = b, false
	}
	f.fresh, f.whole = len(f.in) > 0, last
	f.serve()
}

// fail says that the rest does not come.
func (f *feed) fail(err error) {
	f.asked = false
	f.Abort(err)
}

// serve presents what has been put. The next piece is asked for before, unless the handler has left one already.
func (f *feed) serve() {
	f.due = false
	for !f.dead && !f.paused && f.handler != nil {
		if !f.asked && !f.whole && len(f.in) <= chunk {
			f.asked = true
			f.more()
		}
		if !f.fresh {
			break
		}
		f.present()
	}
	if f.whole && !(f.dead || f.paused || f.saidEOF || f.handler == nil) {
		f.saidEOF = true
		f.handler.OnEOF()
		f.end()
	}
}

// present lends what has been put to the handler, and keeps what it does not use.
func (f *feed) present() {
	f.fresh = false
	for len(f.in) > 0 {
		h := f.handler
		used := h.OnData(f.in)
		if f.dead {
			return
		}
		f.in = f.in[used:]
		if len(f.in) > 0 && f.handler != h {
			f.fresh = true // in the eyes of the new one
			break
		}
		if f.paused || len(f.in) <= evloop.MaxKept {
			break
		}
		if used == 0 {
			f.Abort(evloop.ErrInputTooLong)
			return
		}
	}
	switch {
	case len(f.in) == 0:
		f.in = nil
	case !f.ours:
		f.in, f.ours = bytes.Clone(f.in), true
	}
}

func (f *feed) wantServe() {
	if !f.due && !f.dead {
		f.due = true
		f.loop.Post(f.serve)
	}
}

func (f *feed) SetHandler(h evloop.Handler) {
	f.handler = h
	f.fresh = len(f.in) > 0
	f.wantServe()
}

func (f *feed) Pause() { f.paused = true }

func (f *feed) Resume() {
	if f.paused {
		f.paused = false
		f.fresh = len(f.in) > 0
		f.wantServe()
	}
}

// Write does nothing: a file that is read takes nothing.
func (f *feed) Write([]byte) {}

func (f *feed) Pending() int  { return 0 }
func (f *feed) HighMark() int { return highMark }

func (f *feed) CloseWrite() {
	f.gotClose = true
	f.end()
}

// end closes f when both directions are done.
func (f *feed) end() {
	if f.saidEOF && f.gotClose {
		f.die(nil)
	}
}

func (f *feed) Close() { f.die(nil) }

func (f *feed) Abort(err error) { f.die(cmp.Or(err, evloop.ErrClosed)) }

// die ends f; OnClose comes in the next turn.
func (f *feed) die(err error) {
	if f.dead {
		return
	}
	f.dead, f.err, f.in = true, err, nil
	f.free()
	f.loop.Post(func() {
		if h := f.handler; h != nil {
			f.handler = nil
			h.OnClose(f.err)
		}
	})
}
