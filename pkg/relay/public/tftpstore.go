package public

import (
	"errors"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftp"
	"culvert.dev/pkg/tftpd"
	"culvert.dev/pkg/tunnel"
)

const (
	// askTime is how long a site may take to say whether there is a file, the time included that a takeover takes.
	// Clients ask for 13 to 30 s.
	askTime = 20 * time.Second

	// fileStall is how long nothing may move on a stream of a file. It is more than a session waits for a link.
	fileStall = 90 * time.Second

	// safeTime is how long a site may take to say that a file is safe, of which it has all: it may have to be passed on to a
	// slow server.
	safeTime = 10 * time.Minute
)

// siteFiles is the tftpd.Store of a service: its files are opened by streams to the site.
type siteFiles struct{ service *service }

// Open opens a file at the site, or at the site's next private relay if it is just being decided which one that is.
func (f siteFiles) Open(_ *evloop.Loop, r *tftpd.Open, done func(*tftpd.File, error)) (cancel func()) {
	s := &fileStream{service: f.service, request: r, done: done, visit: f.service.latest[r.Visitor]}
	s.due.set(s.loop(), askTime, s)
	// Half of those who may wait are for others: addresses of TFTP may be forged.
	if g := s.service.session.group; len(g.held) >= maxHeld/2 || !g.hold(s.ask) {
		s.ask()
	}
	return s.cancel
}

// filePhase is where a fileStream is: asking, then reading, or writing and storing; over can follow any other.
type filePhase uint8

const (
	fileAsking  filePhase = iota // the reply has not come; there is no stream while a takeover is decided
	fileReading                  // bytes come, and go to the handler
	fileWriting                  // bytes go
	fileStoring                  // all have gone; the second reply says whether they are safe
	fileSafe                     // it has, and the handler is about to be told
	fileClosing                  // nothing more is wanted, and the site is about to finish
	fileOver
)

// fileStream is a file at a site: the handler of its stream, and from the reply on the End by which the server has
// the bytes. It belongs to the loop of its service.
type fileStream struct {
	place[*fileStream] // among those of the service that are asking

	service *service // that is asked; another one of the site after a takeover
	request *tftpd.Open
	visit   *fileVisit               // that it is opened for; nil: it is over
	done    func(*tftpd.File, error) // nil once it was called
	stream  *tunnel.Stream           // nil: there is none yet
	handler evloop.Handler           // nil until the server has set it
	due     deadline
	phase   filePhase
	paused  bool
	listed  bool   // place is
	eof     bool   // of what is read
	moved   uint64 // bytes, when it was last looked
	err     error  // why it was aborted
}

func (f *fileStream) loop() *loop { return f.service.session.loop }

// ask opens the stream.
func (f *fileStream) ask() {
	if f.phase == fileOver {
		return
	}
	s := f.service.successor()
	f.service = s
	st, err := s.openStream(f.request.Visitor, "tftp", "")
	if err != nil {
		if err := openTrouble(err); err == troubleFull {
			f.refuse(fileBusy)
		} else {
			f.refuse(fileAway)
		}
		return
	}
	f.stream = st
	push(&s.asking, f)
	f.listed = true
	if f.visit != nil {
		f.visit.stream = st
	}
	st.SetHandler(f)
	r := f.request
	st.Write(relay.AppendFile(nil, relay.FileRequest{Write: r.Write, Name: r.Name, Mode: r.Mode.String(), Size: r.Size, Have: r.Have}))
	if !r.Write {
		st.CloseWrite()
	}
}

// again asks the private relay that has taken over: nothing was heard of the one before.
func (f *fileStream) again() {
	f.unlist()
	st := f.stream
	f.stream = nil
	st.SetHandler(nobody{})
	st.Reset(tunnel.CodeCancelled)
	f.ask()
}

func (f *fileStream) unlist() {
	if f.listed {
		f.listed = false
		take(&f.service.asking, f)
	}
}

// cancel gives up before there was a reply.
func (f *fileStream) cancel() {
	if f.done == nil {
		return
	}
	f.done = nil
	f.end(tunnel.CodeCancelled)
}

// refuse answers that there is no file.
func (f *fileStream) refuse(err error) {
	f.end(tunnel.CodeCancelled)
	f.reply(nil, err)
}

// reply calls done.
func (f *fileStream) reply(file *tftpd.File, err error) {
	done := f.done
	f.done = nil
	done(file, err)
}

// end ends the stream.
func (f *fileStream) end(code tunnel.Code) {
	f.phase = fileOver
	f.due.stop()
	f.unlist()
	if f.stream != nil {
		f.stream.Reset(code)
	}
}

// onTimer is the end of the time for a phase, or the moment to look whether something has moved.
func (f *fileStream) onTimer() {
	if !f.due.reached(f.loop(), f) {
		return
	}
	switch f.phase {
	case fileAsking:
		f.refuse(fileSilent)
	case fileReading, fileWriting:
		received, written := f.stream.Bytes()
		moved := received + written - uint64(f.stream.Pending())
		waits := f.phase == fileReading && !f.paused || f.phase == fileWriting && f.stream.Pending() > 0
		if waits && moved == f.moved {
			f.fail(fileSilent)
			return
		}
		f.moved = moved
		f.due.set(f.loop(), fileStall, f)
	case fileStoring:
		f.fail(fileSilent)
	case fileClosing:
		f.end(tunnel.CodeTimeout)
	}
}

// close ends the stream in good order.
func (f *fileStream) close() {
	f.phase = fileClosing
	f.unlist()
	f.due.set(f.loop(), askTime, f)
	f.stream.Close()
}

// fail ends a file that is open: its handler hears err.
func (f *fileStream) fail(err error) {
	f.err = err
	f.end(tunnel.CodeCancelled)
}

// OnData takes the reply, and then what is read, or the second reply.
func (f *fileStream) OnData(b []byte) int {
	switch f.phase {
	case fileReading:
		if f.handler != nil {
			return f.handler.OnData(b)
		}
		return 0
	case fileAsking, fileWriting, fileStoring:
	default:
		return len(b)
	}
	message, rest, err := relay.CutFile(b)
	if err == nil && message == nil {
		return 0
	}
	var reply relay.FileReply
	if err == nil {
		reply, err = relay.DecodeFileReply(message)
	}
	used := len(b) - len(rest)
	switch asking := f.phase == fileAsking; {
	case err != nil && asking:
		f.refuse(fileFailed)
	case err != nil:
		f.fail(fileFailed)
	case reply.Error != nil && asking:
		f.close()
		f.reply(nil, fileError(reply.Error))
	case reply.Error != nil:
		f.fail(fileError(reply.Error))
	case asking:
		f.opened(&reply)
		return used // the handler that was set gets the rest
	case f.phase == fileWriting: // it cannot be safe before it is whole
		f.fail(fileFailed)
	default:
		f.phase = fileSafe
		return used
	}
	return len(b)
}

// opened hands over the file.
func (f *fileStream) opened(reply *relay.FileReply) {
	switch {
	case reply.Same && reply.Version != f.request.Have:
		f.refuse(fileFailed)
		return
	case reply.Same:
		if f.visit != nil {
			f.visit.same = true
		}
		f.close()
		f.reply(&tftpd.File{Size: reply.Size, Version: reply.Version, Same: true}, nil)
		return
	case f.request.Write:
		f.phase = fileWriting
	default:
		f.phase = fileReading
	}
	f.unlist()
	f.due.set(f.loop(), fileStall, f)
	f.reply(&tftpd.File{End: f, Size: reply.Size, Version: reply.Version}, nil)
}

// fileError is what the visitor is told of an error of the site: the code is the site's, and the text ours.
func fileError(e *relay.FileError) *tftp.Error {
	switch tftp.Code(e.Code) {
	case tftp.CodeNotFound:
		return fileNone
	case tftp.CodeAccess:
		return fileRefused
	case tftp.CodeDiskFull:
		return fileFull
	case tftp.CodeExists:
		return fileExists
	}
	return fileFailed
}

// OnEOF is the end of the file, or of the second reply.
func (f *fileStream) OnEOF() {
	switch f.phase {
	case fileAsking:
		f.refuse(fileFailed)
	case fileReading, fileSafe:
		f.eof = true
		f.due.stop()
		if f.handler != nil {
			f.handler.OnEOF()
		}
	case fileWriting, fileStoring:
		f.fail(fileFailed)
	}
}

// OnDrain passes on that there is room for more.
func (f *fileStream) OnDrain() {
	if f.handler != nil {
		f.handler.OnDrain()
	}
}

// OnClose is the end of the stream.
func (f *fileStream) OnClose(err error) {
	switch {
	case f.done != nil:
		f.refuse(streamFileError(err))
		return
	case f.err != nil:
		err = f.err
	case f.phase == fileClosing:
		err = nil
	case err != nil:
		err = streamFileError(err)
	}
	f.phase = fileOver
	f.due.stop()
	if h := f.handler; h != nil {
		f.handler = nil
		h.OnClose(err)
	}
}

// streamFileError is what the visitor is told when the stream was reset.
func streamFileError(err error) *tftp.Error {
	e, ok := errors.AsType[*tunnel.StreamError](err)
	if !ok {
		return fileFailed
	}
	switch e.Code {
	case tunnel.CodeNotFound:
		return fileNone
	case tunnel.CodeForbidden:
		return fileRefused
	case tunnel.CodeRefused, tunnel.CodeUnreachable:
		return fileNoServer
	case tunnel.CodeTimeout:
		return fileSilent
	case tunnel.CodeOverload, tunnel.CodeMemory:
		return fileBusy
	case tunnel.CodeDraining, tunnel.CodeSessionLost:
		return fileAway
	case tunnel.CodeCancelled:
		if !e.Remote { // by resetStreams: another private relay serves the site now
			return fileAway
		}
	}
	return fileFailed
}

// What follows makes f the End of a tftpd.File.

// SetHandler is that of End.
func (f *fileStream) SetHandler(h evloop.Handler) {
	f.handler = h
	f.stream.SetHandler(f) // so that what is kept is presented
}

// Write is that of End.
func (f *fileStream) Write(b []byte) { f.stream.Write(b) }

// Pending is that of End.
func (f *fileStream) Pending() int { return f.stream.Pending() }

// HighMark is that of End.
func (f *fileStream) HighMark() int { return f.stream.HighMark() }

// Pause is that of End.
func (f *fileStream) Pause() {
	f.paused = true
	f.stream.Pause()
}

// Resume is that of End.
func (f *fileStream) Resume() {
	f.paused = false
	f.stream.Resume()
}

// CloseWrite says that the file is whole.
func (f *fileStream) CloseWrite() {
	if f.phase == fileWriting {
		f.phase = fileStoring
		f.due.set(f.loop(), safeTime, f)
		f.stream.CloseWrite()
	}
}

// Close is the end of a file that is whole. Of another one no more bytes are to cross the link.
func (f *fileStream) Close() {
	if f.eof && f.phase < fileClosing {
		f.close()
		return
	}
	f.Abort(nil)
}

// Abort gives the file up.
func (f *fileStream) Abort(err error) {
	if f.phase >= fileClosing {
		return
	}
	f.fail(err)
	if err == nil {
		f.phase = fileClosing
	}
}

// nobody is the handler of a stream that was given up.
type nobody struct{}

func (nobody) OnData(b []byte) int { return len(b) }
func (nobody) OnEOF()              {}
func (nobody) OnDrain()            {}
func (nobody) OnClose(error)       {}

// successor is the service that is published in place of s, if s is not any more.
func (s *service) successor() *service {
	if a := s.session.group.active; s.removed && a != nil {
		for _, o := range a.services {
			if o.name == s.name && o.publish == s.publish && o.files == s.files {
				return o
			}
		}
	}
	return s
}

// askAgain has files opened elsewhere that the private relay has not answered for: it has no link, and another
// one has taken over. Nothing was written yet.
func (s *service) askAgain() {
	for s.asking != nil && s.asking.service.successor() != s {
		s.asking.again()
	}
}
