package evloop

import (
	"io"
	"net"
	"net/netip"
	"sync"
	"time"
)

// netSock makes a socket of any net.Conn. A reader goroutine reads ahead one buffer; a writer goroutine exists while
// there is something to write. Both end when the net.Conn is closed.
type netSock struct {
	nc net.Conn

	mu     sync.Mutex
	loop   *Loop
	token  uint64
	posted bool   // onEvent is under way to loop
	got    event  // what it will report
	r      []byte // read ahead and not consumed
	rerr   error  // after r
	wbuf   []byte // the writer owns it while it writes
	busy   bool   // the writer is at work
	fin    bool   // the writer sends the end of stream, too
	werr   error
	closed bool

	more chan struct{}  // tells the reader that r is consumed
	io   sync.WaitGroup // reader and writer
}

func newNetSock(nc net.Conn) *netSock {
	return &netSock{nc: nc, more: make(chan struct{}, 1)}
}

func (s *netSock) register(l *Loop, token uint64) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	first := s.loop == nil
	s.loop, s.token = l, token
	if first {
		l.core.wg.Add(1)
		s.io.Add(1)
		go s.reader()
	} else {
		s.posted = false // what was under way went to the old loop
		s.tell(event{readable: len(s.r) > 0 || s.rerr != nil, writable: !s.busy, failed: s.werr != nil})
	}
	return nil
}

func (s *netSock) unregister() {}

// tell reports e to the loop; s.mu is held.
func (s *netSock) tell(e event) {
	s.got.readable = s.got.readable || e.readable
	s.got.writable = s.got.writable || e.writable
	s.got.failed = s.got.failed || e.failed
	if s.posted || s.closed {
		return
	}
	s.posted = true
	l, token := s.loop, s.token
	l.Post(func() {
		s.mu.Lock()
		if s.loop != l || s.token != token {
			s.mu.Unlock()
			return
		}
		e := s.got
		s.got, s.posted = event{}, false
		s.mu.Unlock()
		e.token = token
		l.note(e)
	})
}

func (s *netSock) reader() {
	s.mu.Lock()
	wg := &s.loop.core.wg
	s.mu.Unlock()
	defer wg.Done()
	defer s.io.Done()
	buf := make([]byte, 16<<10)
	for {
		n, err := s.nc.Read(buf)
		s.mu.Lock()
		s.r, s.rerr = buf[:n], err
		closed := s.closed
		s.tell(event{readable: true})
		s.mu.Unlock()
		if err != nil || closed {
			return
		}
		if n == 0 {
			continue
		}
		<-s.more
		s.mu.Lock()
		closed = s.closed
		s.mu.Unlock()
		if closed {
			return
		}
		if n == len(buf) && n < 64<<10 {
			buf = make([]byte, 4*n)
		}
	}
}

func (s *netSock) read(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.r) > 0 {
		n := copy(b, s.r)
		s.r = s.r[n:]
		if len(s.r) == 0 && s.rerr == nil {
			s.consumed()
		}
		return n, nil
	}
	switch {
	case s.rerr == nil:
		return 0, errAgain
	case s.rerr == io.EOF:
		return 0, io.EOF
	}
	return 0, s.rerr
}

func (s *netSock) write(b []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.werr != nil {
		return 0, s.werr
	}
	if s.busy {
		return 0, errAgain
	}
	n := min(len(b), 64<<10)
	s.wbuf = append(s.wbuf[:0], b[:n]...)
	s.startWriter()
	return n, nil
}

func (s *netSock) startWriter() {
	s.busy = true
	s.loop.core.wg.Add(1)
	s.io.Add(1)
	go s.writer()
}

func (s *netSock) writer() {
	var err error
	if len(s.wbuf) > 0 {
		_, err = s.nc.Write(s.wbuf)
	}
	s.mu.Lock()
	if s.fin && err == nil {
		s.mu.Unlock()
		s.nc.(halfCloser).CloseWrite() // if it fails, reading tells
		s.mu.Lock()
	}
	wg := &s.loop.core.wg
	s.busy = false
	s.wbuf = nil
	s.werr = err
	s.tell(event{writable: true, failed: err != nil})
	s.mu.Unlock()
	s.io.Done()
	wg.Done()
}

func (s *netSock) flushed() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return !s.busy
}

// halfCloser is a net.Conn that can send an end of stream.
type halfCloser interface{ CloseWrite() error }

func (s *netSock) closeWrite() error {
	if _, ok := s.nc.(halfCloser); !ok {
		return errNoHalfClose
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.fin = true
	if !s.busy {
		s.startWriter()
	}
	return nil
}

func (s *netSock) close(err error) {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	if tc, ok := s.nc.(*net.TCPConn); ok && err != nil {
		tc.SetLinger(0)
	}
	s.nc.Close()
	s.consumed()
}

// consumed lets the reader go on.
func (s *netSock) consumed() {
	select {
	case s.more <- struct{}{}:
	default:
	}
}

// release ends the goroutines and returns what was read ahead; the net.Conn stays open. It may block.
func (s *netSock) release() []byte {
	s.mu.Lock()
	s.closed = true
	s.mu.Unlock()
	s.nc.SetReadDeadline(time.Unix(1, 0))
	s.consumed()
	s.io.Wait()
	s.nc.SetReadDeadline(time.Time{})
	return s.r
}

func (s *netSock) local() netip.AddrPort { return netAddrPort(s.nc.LocalAddr()) }

func (s *netSock) lastError() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.werr
}

// netAddrPort returns the address of a TCP end; any other has the zero AddrPort unless its text is one.
func netAddrPort(a net.Addr) netip.AddrPort {
	if a == nil {
		return netip.AddrPort{}
	}
	if t, ok := a.(*net.TCPAddr); ok {
		return netip.AddrPortFrom(t.AddrPort().Addr().Unmap(), uint16(t.Port))
	}
	ap, _ := netip.ParseAddrPort(a.String())
	return ap
}
