package evloop

import (
	"errors"
	"io"
	"net/netip"
	"time"
)

// End is one end of a byte stream that acts like a Conn: a stream of a session, or a Conn.
type End = interface {
	SetHandler(h Handler)
	Write(b []byte)
	Pending() int
	HighMark() int
	Pause()
	Resume()
	CloseWrite()
	Close()
	Abort(err error)
}

const (
	endAhead  = 64 << 10    // bytes that are taken from an End before they are read
	endFinish = time.Minute // for the end of an End that was closed and whose peer goes on
)

// AttachEnd makes a Conn of e, which calls its handler on this loop and which the Conn owns from now on: it is for
// StartTLS on a stream that is no socket. remote is what RemoteAddr will say. The Conn can be neither moved nor detached.
// It has no goroutine, and no buffer while it is silent. An error that ends e is that of the Conn, and the other way
// round. On error e is aborted. On the loop only.
func (l *Loop) AttachEnd(e End, remote netip.AddrPort) (*Conn, error) {
	return l.newConn(&endSock{loop: l, end: e}, remote)
}

// endSock makes a socket of an End, whose handler it is. What comes is copied, since it is lent, and not always at a time
// when it could be read: the loop has one read buffer, and e may be calling out of it.
type endSock struct {
	loop  *Loop
	end   End
	token uint64

	in     []byte // from loop.buffers; in[inOff:] is to be read
	inOff  int
	paused bool // end is, because in is long
	eof    bool
	ended  bool  // end has had its OnClose
	err    error // why, or nil
	closed bool  // nobody reads or writes any more
	reaper Timer // closed, and end is not over
}

var errStays = errors.New("what is attached to an end of this loop cannot be moved")

func (s *endSock) register(_ *Loop, token uint64) error {
	s.token = token
	s.end.SetHandler(s)
	s.end.Resume()
	return nil
}

func (s *endSock) unregister() {}

func (s *endSock) OnData(b []byte) int {
	if s.closed {
		return len(b)
	}
	if s.inOff > 0 && len(s.in)+len(b) > cap(s.in) { // make room at the front first
		s.in = s.in[:copy(s.in, s.in[s.inOff:])]
		s.inOff = 0
	}
	s.in = s.loop.buffers.append(s.in, b)
	if len(s.in)-s.inOff >= endAhead && !s.paused {
		s.paused = true
		s.end.Pause()
	}
	s.loop.note(event{token: s.token, readable: true})
	return len(b)
}

func (s *endSock) OnEOF() {
	s.eof = true
	s.loop.note(event{token: s.token, readable: true})
}

func (s *endSock) OnDrain() { s.loop.note(event{token: s.token, writable: true}) }

func (s *endSock) OnClose(err error) {
	s.ended, s.err, s.eof = true, err, true
	s.reaper.Stop()
	s.loop.note(event{token: s.token, readable: true, writable: true, failed: err != nil})
}

func (s *endSock) read(b []byte) (int, error) {
	if s.inOff < len(s.in) {
		n := copy(b, s.in[s.inOff:])
		if s.inOff += n; s.inOff == len(s.in) {
			s.loop.buffers.put(s.in)
			s.in, s.inOff = nil, 0
			if s.paused {
				s.paused = false
				s.end.Resume()
			}
		}
		return n, nil
	}
	if s.eof {
		return 0, io.EOF
	}
	return 0, errAgain
}

func (s *endSock) write(b []byte) (int, error) {
	switch {
	case s.ended:
		return 0, io.ErrClosedPipe
	case s.end.Pending() > s.end.HighMark():
		return 0, errAgain
	}
	n := min(len(b), flushSize)
	s.end.Write(b[:n])
	return n, nil
}

// flushed is always true: what the end has taken it writes, whoever else has gone.
func (s *endSock) flushed() bool { return true }

func (s *endSock) closeWrite() error {
	if !s.ended {
		s.end.CloseWrite()
	}
	return nil
}

func (s *endSock) close(err error) {
	s.closed = true
	if s.in != nil {
		s.loop.buffers.put(s.in)
		s.in = nil
	}
	switch {
	case s.ended:
	case err != nil:
		s.end.Abort(err)
	default:
		s.loop.Arm(&s.reaper, endFinish, func() { s.end.Abort(ErrClosed) })
		s.end.Close()
	}
}

func (s *endSock) local() netip.AddrPort { return netip.AddrPort{} }
func (s *endSock) lastError() error      { return s.err }
