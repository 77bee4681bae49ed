package tftpd

import (
	"net/netip"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// Store has files. Its methods run on the loop that they are given.
type Store interface {
	// Open opens a file of r and calls done, once, on l; at once if it likes. cancel, which may be nil if done has
	// been called, gives up: done does not come after it, and what was opened is freed. It has no effect after done.
	Open(l *evloop.Loop, r *Open, done func(*File, error)) (cancel func())
}

// Open is what is asked of a Store. The Store may keep it, and must not change it.
type Open struct {
	Name    string         // of tftp.CleanName, below the Share: "pxelinux.0"
	Write   bool           // to be written
	Mode    tftp.Mode      // NetASCII: the bytes of End are in netascii, whatever the store has
	Size    int64          // that a writer has announced; -1: none
	Have    string         // the Version that the reader has already; "": none
	Visitor netip.AddrPort // who wants it
}

// File is an open file.
type File struct {
	// End is the bytes, of one direction. It belongs to the loop of Open; the receiver of the File sets a handler in done.
	//
	// To be read: OnData, and OnEOF when all of it has come; then the reader closes it. It may abort it at any time.
	//
	// To be written: Write, and CloseWrite when that was all; OnEOF says that the file is safe at its place, then the writer closes it. A file that was
	// aborted before has not been written: what was there under its name is untouched.
	//
	// OnClose with an error ends both. What is no *tftp.Error becomes "The file cannot be had now.", and is
	// logged on our side.
	End evloop.End

	Size    int64  // of what is read, in bytes of End; -1: not known
	Version string // of what is read: changes when the file does, at most MaxVersion bytes. "": cannot be told
	Same    bool   // Version is Open.Have, so the bytes are known: End is nil
}

// MaxVersion is the most bytes of a File.Version.
const MaxVersion = 64
