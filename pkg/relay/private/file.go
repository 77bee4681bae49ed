package private

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tftpd"
	"culvert.dev/pkg/tunnel"
)

const (
	askTimeout  = 10 * time.Second // for the request on a stream of a file
	openTimeout = 20 * time.Second // for the store to open it
)

// What a visitor is told. Nothing of the site is in it.
var (
	errFileAccess = &tftp.Error{Code: tftp.CodeAccess, Text: "Access to this file is not allowed."}
	errFileLarge  = &tftp.Error{Code: tftp.CodeDiskFull, Text: "The file is too large."}
	errFileNotNow = &tftp.Error{Code: tftp.CodeUndefined, Text: "The file cannot be had now."}
)

// file is a stream of a file of a service, and the handler of its events. It is owned by the loop.
//
//	asking ─ request ─► opening ─ reply ─► reading ─ all of it ─► over
//	                                     └► writing ─ all of it ─► keeping ─ second reply ─► over
//
// Whatever goes wrong is told by a reply with an error, if nothing of the file has been sent, and by a reset otherwise.
type file struct {
	peer    *peer
	service *service
	stream  *tunnel.Stream
	visitor netip.AddrPort

	state  fileState
	timer  evloop.Timer // asking and opening
	open   *tftpd.Open  // since the request
	cancel func()       // opening; may be nil
	moved  int64        // bytes of the file

	// Of what the store has opened.
	end    evloop.End
	size   int64 // of what is read; -1: not known
	ended  bool  // end has had its OnClose, or there is none
	paused bool  // end, or for a file that is written the stream
}

type fileState uint8

const (
	fileAsking fileState = iota
	fileOpening
	fileReading
	fileWriting
	fileKeeping
	fileOver
)

// acceptFile begins with a stream for a file.
func (p *peer) acceptFile(s *tunnel.Stream, svc *service, visitor netip.AddrPort) {
	svc.open.Add(1)
	f := &file{peer: p, service: svc, stream: s, visitor: visitor, ended: true}
	s.SetHandler(f)
	p.loop.Arm(&f.timer, askTimeout, func() { s.Reset(tunnel.CodeTimeout) })
}

// OnData takes the request, and the bytes of a file that is written.
func (f *file) OnData(b []byte) int {
	switch f.state {
	case fileAsking:
		message, rest, err := relay.CutFile(b)
		if err != nil {
			f.stream.Reset(tunnel.CodeForbidden)
			return len(b)
		}
		if message != nil {
			f.ask(message)
		}
		return len(b) - len(rest)
	case fileWriting:
		f.take(b)
	case fileReading: // there is nothing to say
		f.stream.Reset(tunnel.CodeForbidden)
	}
	return len(b)
}

// OnEOF is the end of the request of a file that is read, or of a file that is written.
func (f *file) OnEOF() {
	switch f.state {
	case fileAsking:
		f.stream.Reset(tunnel.CodeForbidden)
	case fileWriting:
		f.state = fileKeeping
		f.end.CloseWrite()
	}
}

// OnDrain lets the store go on.
func (f *file) OnDrain() {
	if f.state == fileReading && f.paused {
		f.paused = false
		f.end.Resume()
	}
}

// OnClose is the end of the stream. What was being written is given up, unless it is safe already.
func (f *file) OnClose(err error) {
	f.state = fileOver
	f.timer.Stop()
	if f.cancel != nil {
		f.cancel()
		f.cancel = nil
	}
	if !f.ended {
		if err == nil {
			err = context.Canceled
		}
		f.end.Abort(err)
	}
	f.service.open.Add(-1)
}

// ask has the store open what a request wants, if it may be had.
func (f *file) ask(message []byte) {
	req, err := relay.DecodeFileRequest(message)
	if err != nil {
		f.stream.Reset(tunnel.CodeForbidden)
		return
	}
	f.open = &tftpd.Open{Name: req.Name, Write: req.Write, Size: req.Size, Have: req.Have, Visitor: f.visitor}
	if req.Mode == relay.ModeNetASCII {
		f.open.Mode = tftp.NetASCII
	}
	f.state = fileOpening
	f.stream.Pause() // what is written stays in the stream's window
	if err := f.service.mayHave(f.open); err != nil {
		f.refuse(err)
		return
	}
	f.peer.loop.Arm(&f.timer, openTimeout, f.tooLate)
	told := false
	cancel := f.service.store.Open(f.peer.loop, f.open, func(opened *tftpd.File, err error) {
		told, f.cancel = true, nil
		f.opened(opened, err)
	})
	if !told {
		f.cancel = cancel
	}
}

// mayHave checks again what the public relay has let through: that one is not trusted with the site's files.
func (s *service) mayHave(o *tftpd.Open) *tftp.Error {
	if name, err := tftp.CleanName(o.Name); err != nil || name != o.Name {
		return errFileAccess
	}
	if !o.Write {
		return nil
	}
	switch files := s.Files; {
	case files == nil || files.Write == "":
		return errFileAccess
	case files.MaxSize > 0 && o.Size > files.MaxSize:
		return errFileLarge
	}
	return nil
}

var errOpenTimeout = fmt.Errorf("the file was not opened within %v", openTimeout)

func (f *file) tooLate() {
	if f.cancel != nil {
		f.cancel()
		f.cancel = nil
	}
	f.fail(errOpenTimeout)
}

// opened is told what the store has.
func (f *file) opened(opened *tftpd.File, err error) {
	f.timer.Stop()
	if err != nil {
		f.fail(err)
		return
	}
	f.peer.targetBack(f.service)
	reply := relay.FileReply{Size: opened.Size, Version: opened.Version, Same: opened.Same}
	if f.open.Write {
		reply = relay.FileReply{Size: -1}
	}
	if reply.Check() != nil { // a version that cannot be written; the file is none the worse
		reply.Version = ""
	}
	f.reply(reply)
	if opened.Same {
		f.finish()
		return
	}
	f.end, f.size, f.ended = opened.End, opened.Size, false
	if f.state = fileReading; f.open.Write {
		f.state = fileWriting
	}
	f.end.SetHandler((*fileEnd)(f))
	f.stream.Resume()
}

func (f *file) reply(r relay.FileReply) { f.stream.Write(relay.AppendFile(nil, r)) }

// finish ends the stream in good order: what is on its way still goes out.
func (f *file) finish() {
	f.state = fileOver
	f.stream.Close()
}

// refuse says why there is no file, or why it was not written.
func (f *file) refuse(err *tftp.Error) {
	f.timer.Stop()
	f.reply(relay.FileReply{Error: fileError(err), Size: -1})
	f.finish()
}

// fileError is err in words that a reply may have. Those of a server behind us stay here: they may have its paths.
func fileError(err *tftp.Error) *relay.FileError {
	made := &relay.FileError{Code: uint16(err.Code), Text: err.Text}
	if (relay.FileReply{Error: made}).Check() != nil || err.Remote {
		made.Text = errFileNotNow.Text
		if err.Code > tftp.CodeOptions {
			made.Code = uint16(tftp.CodeUndefined)
		}
	}
	return made
}

// fail is told what went wrong at the store.
func (f *file) fail(err error) {
	said, ok := errors.AsType[*tftp.Error](err)
	switch {
	case ok:
	case f.state == fileOpening:
		f.peer.targetDown(f.service, err)
	default:
		f.peer.fileFailed(f, err)
	}
	if !ok {
		said = errFileNotNow
	}
	switch f.state {
	case fileOpening, fileWriting, fileKeeping:
		f.refuse(said)
	case fileReading: // what has been sent cannot be taken back
		f.state = fileOver
		f.stream.Reset(tunnel.CodeCancelled)
	}
}

// fileLogInterval is the least time between two lines about files of a service that broke off: visitors decide how many there are.
const fileLogInterval = 10 * time.Second

// fileFailed counts a file that broke off.
func (p *peer) fileFailed(f *file, err error) {
	f.service.failed.Add(1)
	last, now := f.service.brokenAt.Load(), p.now().UnixNano()
	if now-last >= int64(fileLogInterval) && f.service.brokenAt.CompareAndSwap(last, now) {
		p.relay.log.Warn("a file broke off", "service", f.service.Name, "target", f.service.Target, "file", f.open.Name, "write", f.open.Write, "bytes", f.moved, "err", err)
	}
}

// take gives the store what has come of a file.
func (f *file) take(b []byte) {
	f.moved += int64(len(b))
	if most := f.service.Files.MaxSize; most > 0 && f.moved > most {
		f.refuse(errFileLarge)
		f.end.Abort(errFileLarge)
		return
	}
	f.end.Write(b)
	if f.state == fileWriting && f.end.Pending() > f.end.HighMark() {
		f.paused = true
		f.stream.Pause()
	}
}

// fileEnd is file as the handler of what the store has opened.
type fileEnd file

// OnData takes the bytes of a file that is read.
func (e *fileEnd) OnData(b []byte) int {
	f := (*file)(e)
	if f.state != fileReading {
		return len(b)
	}
	f.moved += int64(len(b))
	f.stream.Write(b)
	if !f.paused && f.stream.Pending() > f.stream.HighMark() {
		f.paused = true
		f.end.Pause()
	}
	return len(b)
}

// OnEOF says that a file has been read, or that it is safe.
func (e *fileEnd) OnEOF() {
	f := (*file)(e)
	switch f.state {
	case fileReading:
		if f.size >= 0 && f.moved != f.size {
			f.fail(fmt.Errorf("the file has %d bytes and not %d as was said", f.moved, f.size))
			f.end.Abort(context.Canceled)
			return
		}
		f.finish()
	case fileKeeping:
		f.reply(relay.FileReply{Size: -1})
		f.finish()
	default:
		return
	}
	f.ended = true
	f.end.Close()
}

// OnDrain lets the visitor go on.
func (e *fileEnd) OnDrain() {
	if f := (*file)(e); f.state == fileWriting && f.paused {
		f.paused = false
		f.stream.Resume()
	}
}

var errFileCut = errors.New("it ended too early")

// OnClose is the end of what the store has opened.
func (e *fileEnd) OnClose(err error) {
	f := (*file)(e)
	f.ended = true
	if f.state == fileOver {
		return
	}
	if err == nil {
		err = errFileCut
	}
	f.fail(err)
}

// newStore returns what has the files of a tftp service: what has them already, if s is what it was.
func (r *Relay) newStore(s Service) (tftpd.Store, error) {
	if list := r.services.Load(); list != nil {
		if old := list.byName[s.Name]; old != nil && old.store != nil && old.sameFiles(s) {
			return old.store, nil
		}
	}
	var files relay.Files
	if s.Files != nil {
		files = *s.Files
	}
	switch t := s.Target; t.Scheme {
	case "file":
		root, err := os.OpenRoot(t.Path)
		if err != nil {
			return nil, err
		}
		// It is closed by the garbage collector, as that of a folder that is served by HTTP.
		return &tftpd.Folder{Root: root, Write: files.Write, MaxSize: files.MaxSize, IgnoreCase: s.IgnoreCase, Log: r.log.With("service", s.Name)}, nil
	case "tftp":
		origin := &tftpd.Origin{Server: net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))), Prefix: strings.TrimPrefix(t.Path, "/"), MaxSize: files.MaxSize}
		if files.Write == relay.WriteNew {
			return createOnly{origin}, nil
		}
		return origin, nil
	default:
		host := net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
		host = strings.TrimSuffix(host, map[string]string{"http": ":80", "https": ":443"}[t.Scheme]) // there are servers that look at the port
		return &tftpd.Web{URL: t.Scheme + "://" + host + t.Path, RootCAs: s.RootCAs}, nil
	}
}

// sameFiles reports whether the files of b are those of s, had in the same way.
func (s *service) sameFiles(b Service) bool {
	a := s.Service
	if a.Target != b.Target || a.IgnoreCase != b.IgnoreCase || !a.RootCAs.Equal(b.RootCAs) || (a.Files == nil) != (b.Files == nil) || a.Files != nil && *a.Files != *b.Files {
		return false
	}
	folder, ok := s.store.(*tftpd.Folder)
	if !ok {
		return true
	}
	was, err := folder.Root.Stat(".") // it may have been replaced by another one
	is, err2 := os.Stat(b.Target.Path)
	return err == nil && err2 == nil && os.SameFile(was, is)
}

// leave gives up what the services of s keep open and those of next do not need. Either may be nil.
func (s *services) leave(next *services) {
	if s == nil {
		return
	}
	for _, svc := range s.files {
		web, ok := svc.store.(*tftpd.Web)
		if ok && (next == nil || !slices.ContainsFunc(next.files, func(n *service) bool { return n.store == svc.store })) {
			web.Close()
		}
	}
}

// createOnly is a Store whose files are written only if they are not there, as far as can be seen by asking for them.
type createOnly struct{ tftpd.Store }

var errFileExists = &tftp.Error{Code: tftp.CodeExists, Text: "The file exists already."}

// Open opens a file.
func (c createOnly) Open(l *evloop.Loop, r *tftpd.Open, done func(*tftpd.File, error)) (cancel func()) {
	if !r.Write {
		return c.Store.Open(l, r, done)
	}
	given := false
	var stop func()
	look := c.Store.Open(l, &tftpd.Open{Name: r.Name, Size: -1, Visitor: r.Visitor}, func(found *tftpd.File, err error) {
		given = true
		e, ok := errors.AsType[*tftp.Error](err)
		switch {
		case err == nil:
			found.End.SetHandler(unread{})
			found.End.Abort(context.Canceled)
			done(nil, errFileExists)
		case ok && e.Code == tftp.CodeNotFound:
			stop = c.Store.Open(l, r, done)
		default:
			done(nil, err)
		}
	})
	if !given {
		stop = look
	}
	return func() {
		if stop != nil {
			stop()
		}
	}
}

// unread is the handler of a file that nobody wants.
type unread struct{}

func (unread) OnData(b []byte) int { return len(b) }
func (unread) OnEOF()              {}
func (unread) OnDrain()            {}
func (unread) OnClose(error)       {}
