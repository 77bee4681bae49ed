package tftp

import (
	"errors"
	"time"
)

// ErrTimeout is what Closed gets when the peer has not answered any more.
var ErrTimeout = errors.New("tftp: the peer does not answer any more")

// A Transfer is the transfer of one file. It belongs to whoever calls it, and is not safe for others at the same time. Its
// methods may be called after it has ended, and do nothing then.
type Transfer struct {
	cfg   Config
	opts  Options
	stats Stats
}

// Serve begins a transfer at a server: the file of the request is open. A reader is sent cfg.Source, whose size is answered
// if it is known (-1: it is not); a writer's file goes to cfg.Sink. It answers at once.
func Serve(cfg Config, req Request, size int64, now time.Time) *Transfer {
	return &Transfer{cfg: cfg, opts: req.Options}
}

// Dial begins a transfer at a client: it sends the request, with the options that are there. For an OpWrite, which sends
// cfg.Source, a tsize is set to size (-1: not known, so it is left out); an OpRead fills cfg.Sink. In netascii a tsize is left out.
// A windowsize above 32767 asks for 32767, so that block numbers stay clear.
func Dial(cfg Config, req Request, size int64, now time.Time) *Transfer {
	return &Transfer{cfg: cfg, opts: req.Options}
}

// Receive takes a datagram from the peer. The caller has compared its address with that of the transfer; a client takes the
// port of the first one that answers its request.
func (t *Transfer) Receive(b []byte, now time.Time) {}

// Again tells a server that the request has come again: its answer is repeated, at most twice a second, if the peer has not gone past it.
func (t *Transfer) Again(now time.Time) {}

// Tick tells the time. It does nothing before Deadline.
func (t *Transfer) Tick(now time.Time) {}

// Deadline returns when Tick is to be called. It may have changed after any other call. The zero time: there is nothing to wait
// for; if Closed was called, the transfer may be forgotten.
func (t *Transfer) Deadline() time.Time { return time.Time{} }

// Wake tells a sender that its Source, which said Wait, has more.
func (t *Transfer) Wake(now time.Time) {}

// Acked returns the offset in bytes below which the Source of a sender is not asked again.
func (t *Transfer) Acked() int64 { return 0 }

// Hold tells a receiver that its Sink is full: nothing new is acknowledged until Hold(false). What the peer has sent already
// still comes.
func (t *Transfer) Hold(on bool, now time.Time) {}

// Confirm tells a receiver, after Complete, that the file is safe: the last block is acknowledged, and Closed is called.
func (t *Transfer) Confirm(now time.Time) {}

// Fail ends the transfer. The peer gets an ERROR, and Closed gets e.
func (t *Transfer) Fail(e *Error, now time.Time) {}

// Proven says that the peer has shown that it gets what is sent to it. It is always so unless Config.Unproven.
func (t *Transfer) Proven() bool { return !t.cfg.Unproven }

// Options returns what is agreed; at a client, what it asks for until the server has answered. Size is also what a peer
// said that it will send.
func (t *Transfer) Options() Options { return t.opts }

// Stats returns the counters.
func (t *Transfer) Stats() Stats { return t.stats }
