package public

import "culvert.dev/pkg/evloop"

// inflow is what comes in of an End that is made of other connections: it is presented to
// the End's handler, and what that does not use is kept, as a Conn does. It belongs to a loop.
type inflow struct {
	loop    *loop
	end     evloop.End // that it is of
	handler evloop.Handler
	kept    []byte // nil when there is nothing
	used    int    // bytes of kept that the handler has used already
	paused  bool   // by the handler
	again   bool   // present comes at the end of this turn
	eof     bool   // nothing more comes
	saidEOF bool   // and the handler knows
	closed  bool   // by the handler, or over: it hears no more than OnClose
	over    bool   // it has had that
}

// SetHandler is that of End.
func (f *inflow) SetHandler(h evloop.Handler) {
	f.handler = h
	f.renew()
}

// renew has what is kept presented again, soon.
func (f *inflow) renew() {
	if !f.again {
		f.again = true
		f.loop.AfterTurn(f.present)
	}
}

func (f *inflow) present() {
	f.again = false
	if f.handler == nil || f.paused || f.closed {
		return
	}
	if f.kept != nil {
		f.push(nil)
	}
	f.tellEOF()
}

// push presents b, which is lent, behind what is kept. However small the pieces are that come, and those that the
// handler uses, each byte is copied a fixed number of times.
func (f *inflow) push(b []byte) {
	if f.closed {
		return
	}
	whole, at := f.kept, f.used
	own := whole != nil
	if own {
		whole = append(whole, b...)
		f.kept, f.used = nil, 0
	} else {
		whole = b
	}
	for at < len(whole) && f.handler != nil && !f.paused {
		h := f.handler
		n := h.OnData(whole[at:])
		at += n
		switch left := len(whole) - at; {
		case f.closed:
			return
		case n > 0 && left > evloop.MaxKept, f.handler != h: // go on
			continue
		case left > evloop.MaxKept && !f.paused:
			f.end.Abort(evloop.ErrInputTooLong)
			return
		}
		break
	}
	switch left := len(whole) - at; {
	case left == 0:
	case own && at < left:
		f.kept, f.used = whole, at
	default:
		f.kept = append([]byte(nil), whole[at:]...)
	}
}

// ends is the end of what comes in.
func (f *inflow) ends() {
	f.eof = true
	f.tellEOF()
}

func (f *inflow) tellEOF() {
	if f.eof && !f.saidEOF && !f.closed && !f.paused && f.handler != nil {
		f.saidEOF = true
		f.handler.OnEOF()
	}
}

// drained says that what was written is out, as far as the handler waits for it.
func (f *inflow) drained() {
	if f.handler != nil && !f.closed {
		f.handler.OnDrain()
	}
}

// finish is the end of the End, which the handler is told once.
func (f *inflow) finish(err error) {
	f.closed = true
	f.kept = nil
	if f.over {
		return
	}
	f.over = true
	if h := f.handler; h != nil {
		f.handler = nil
		h.OnClose(err)
	}
}
