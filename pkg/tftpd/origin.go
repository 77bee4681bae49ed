package tftpd

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"
	"sync/atomic"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// Origin is the files of another TFTP server: a Store for any loop. Its fields are set before it is used.
//
// What is written is kept in a temporary file until all of it has come, and sent to the server then, for a server that is told of half a
// file has half a file. The server's last acknowledgement says that it is safe.
type Origin struct {
	// Server is its host and port.
	Server string

	// Prefix is what the names there begin with: "boot"; "/srv/tftp" if the server wants them whole.
	Prefix string

	// MaxSize bounds a file that is written, in bytes. 0: no bound.
	MaxSize int64

	// MaxTransfers bounds the files that are open at once. 0: 256.
	MaxTransfers int

	open atomic.Int32
}

const (
	originTransfers = 256
	originName      = 400 // bytes of a name: options have to fit into a request, too

	spoolChunk    = 64 << 10 // bytes that are read from a temporary file at once
	spoolHighMark = 256 << 10
)

// Open opens a file of the server.
func (o *Origin) Open(l *evloop.Loop, r *Open, done func(*File, error)) (cancel func()) {
	name := r.Name
	if o.Prefix != "" {
		name = strings.TrimSuffix(o.Prefix, "/") + "/" + name
	}
	most := int32(o.MaxTransfers)
	if most <= 0 {
		most = originTransfers
	}
	switch {
	case len(name) > originName:
		done(nil, errAccess)
		return nil
	case r.Write && o.MaxSize > 0 && r.Size > o.MaxSize:
		done(nil, errTooLarge)
		return nil
	case o.open.Add(1) > most:
		o.open.Add(-1)
		done(nil, errTooMany)
		return nil
	}
	free := func() { o.open.Add(-1) }
	client := &Client{Mode: r.Mode}
	if r.Write {
		s := &spool{origin: o, client: client, loop: l, name: name, free: free}
		return s.create(done)
	}
	return client.start(&Remote{
		loop: l, server: o.Server, req: tftp.Request{Op: tftp.OpRead, Name: name}, size: -1, free: free, blame: o.blame,
		done: func(remote *Remote, err error) {
			if err != nil {
				done(nil, err)
				return
			}
			done(&File{End: remote, Size: remote.Size()}, nil)
		},
	})
}

// blame makes of what went wrong with the server what a client of ours may hear: none of the server's own words, which may
// have its paths. What is not a plain refusal is for our log.
func (o *Origin) blame(err error) error {
	said, ok := errors.AsType[*tftp.Error](err)
	switch {
	case !ok:
		return fmt.Errorf("tftp://%s: %w", o.Server, err)
	case !said.Remote: // of ours, to the server
		return fmt.Errorf("tftp://%s: %v", o.Server, said)
	}
	switch said.Code {
	case tftp.CodeNotFound:
		return errNotFound
	case tftp.CodeAccess, tftp.CodeNoUser:
		return errAccess
	case tftp.CodeDiskFull:
		return errDiskFull
	case tftp.CodeExists:
		return errExists
	}
	return fmt.Errorf("tftp://%s: %v", o.Server, said) // not wrapped, or it would be sent
}

// spool is the End of a file that is written: a temporary file first, a Remote then. It belongs to loop.
type spool struct {
	origin *Origin
	client *Client
	loop   *evloop.Loop
	name   string // at the server
	free   func()

	file    *os.File // a func of the pool has it while working
	path    string   // of file, if the system does not remove what is open
	working bool
	queue   []byte // is to be written to file
	writing []byte // is being written, from stored on
	stored  int64
	size    int64 // of all that has come
	fin     bool  // which is the whole file

	cancel func() // of Put
	remote *Remote
	sent   int64  // bytes of file that remote has got
	chunk  []byte // of file

	complete bool  // the server has acknowledged it all
	err      error // what else has ended it

	handler evloop.Handler
	paused  bool
	drain   bool // Pending was above the high mark
	saidEOF bool
	closed  bool // Close was called
	over    bool // OnClose was called, or will be
	busy    bool // in settle
	late    bool // settle runs at the end of the turn
}

// create makes the file and calls done.
func (s *spool) create(done func(*File, error)) (cancel func()) {
	cancelled, told := false, false
	s.work(func() (err error) {
		if s.file, err = os.CreateTemp("", "culvert-tftp-*"); err == nil && os.Remove(s.file.Name()) != nil {
			s.path = s.file.Name()
		}
		return err
	}, func() {
		told = true
		if s.file == nil {
			s.free()
		}
		switch {
		case cancelled:
			s.fail(errStopped)
		case s.err != nil:
			done(nil, s.err)
		default:
			done(&File{End: s}, nil)
		}
	})
	return func() { cancelled = !told }
}

// work runs f on the pool and then next, both of which may use the file.
func (s *spool) work(f func() error, next func()) {
	s.working = true
	var err error
	s.loop.Go(func() { err = f() }, func() {
		s.working = false
		if err != nil {
			s.fail(err)
		}
		next()
		s.settle()
	})
}

// fail ends what is not over yet.
func (s *spool) fail(err error) {
	if s.err != nil || s.complete {
		return
	}
	if isFull(err) {
		err = errDiskFull
	}
	s.err = err
	s.queue, s.writing = nil, nil
	switch {
	case s.remote != nil:
		s.remote.Abort(err)
	case s.cancel != nil:
		s.cancel()
	}
}

// settle does the next thing that is due, and tells what has happened, until nothing is left of either.
func (s *spool) settle() {
	s.busy = true
	for s.step(); s.tell(); s.step() {
	}
	s.busy = false
}

// later settles at the end of the turn.
func (s *spool) later() {
	if s.busy || s.late {
		return
	}
	s.late = true
	s.loop.AfterTurn(func() {
		s.late = false
		s.settle()
	})
}

// step begins what the file is to be used for next.
func (s *spool) step() {
	switch {
	case s.working || s.file == nil:
	case s.err != nil || s.complete:
		file, path := s.file, s.path
		s.file = nil
		s.work(func() error {
			file.Close() // nobody needs it any more
			if path != "" {
				os.Remove(path)
			}
			return nil
		}, s.free)
	case len(s.queue) > 0:
		s.queue, s.writing = s.writing[:0], s.queue
		file, b, off := s.file, s.writing, s.stored // fail changes s meanwhile
		s.work(func() error {
			_, err := file.WriteAt(b, off)
			return err
		}, func() {
			s.stored += int64(len(b))
			s.writing = s.writing[:0]
		})
	case !s.fin:
	case s.cancel == nil:
		s.queue, s.writing = nil, nil
		s.cancel = s.client.start(&Remote{
			loop: s.loop, server: s.origin.Server, req: tftp.Request{Op: tftp.OpWrite, Name: s.name}, size: s.size, blame: s.origin.blame, done: s.agreed,
		})
	case s.remote == nil || s.remote.Pending() > s.remote.HighMark():
	case s.sent < s.size:
		s.chunk = slices.Grow(s.chunk[:0], spoolChunk)[:min(spoolChunk, s.size-s.sent)]
		file, b, off := s.file, s.chunk, s.sent
		s.work(func() error {
			_, err := file.ReadAt(b, off)
			return err
		}, func() {
			if s.err == nil {
				s.sent += int64(len(b))
				s.remote.Write(b)
			}
		})
	default:
		s.remote.CloseWrite()
	}
}

// agreed gets the answer of the server.
func (s *spool) agreed(remote *Remote, err error) {
	if err != nil {
		s.fail(err)
	} else {
		s.remote = remote
		remote.SetHandler((*spoolRemote)(s))
	}
	s.later()
}

// spoolRemote is the handler of the Remote.
type spoolRemote spool

func (s *spoolRemote) OnData(b []byte) int { return len(b) }
func (s *spoolRemote) OnDrain()            { (*spool)(s).later() }

func (s *spoolRemote) OnEOF() {
	s.complete = true
	(*spool)(s).later()
}

func (s *spoolRemote) OnClose(err error) {
	if err == nil {
		err = errStopped
	}
	(*spool)(s).fail(err) // if it is not complete
	(*spool)(s).later()
}

// tell calls back at most once, and reports whether it has.
func (s *spool) tell() bool {
	switch {
	case s.over || s.handler == nil:
		return false
	case s.err != nil:
		s.end(s.err)
	case s.complete && (s.closed || s.saidEOF):
		s.end(nil)
	case s.closed:
		return false
	case s.drain && s.Pending() <= s.HighMark()/2:
		s.drain = false
		s.handler.OnDrain()
	case s.complete && !s.paused:
		s.saidEOF = true
		s.handler.OnEOF()
	default:
		return false
	}
	return true
}

// end arranges for OnClose.
func (s *spool) end(err error) {
	s.over = true
	if errors.Is(err, errStopped) {
		err = nil
	}
	s.loop.AfterTurn(func() { s.handler.OnClose(err) })
}

// The methods of an evloop.End.

func (s *spool) SetHandler(h evloop.Handler) {
	s.handler = h
	s.later()
}

func (s *spool) Write(b []byte) {
	if s.fin || s.closed || s.err != nil {
		return
	}
	s.size += int64(len(b))
	if most := s.origin.MaxSize; most > 0 && s.size > most {
		s.fail(errTooLarge)
	} else {
		s.queue = append(s.queue, b...)
		s.drain = s.drain || s.Pending() > s.HighMark()
	}
	s.later()
}

// Pending is what is not in the file yet.
func (s *spool) Pending() int { return len(s.queue) + len(s.writing) }

func (s *spool) HighMark() int { return spoolHighMark }

func (s *spool) Pause() { s.paused = true }

func (s *spool) Resume() {
	s.paused = false
	s.later()
}

func (s *spool) CloseWrite() {
	s.fin = true
	s.later()
}

func (s *spool) Close() {
	s.closed = true
	if !s.fin {
		s.fail(errStopped)
	}
	s.later()
}

func (s *spool) Abort(err error) {
	s.closed = true
	if err == nil {
		err = errStopped
	}
	s.fail(err)
	s.later()
}
