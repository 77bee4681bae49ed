package evloop

import (
	"errors"
	"net/netip"
)

// errAgain is what a socket's read and write return when nothing can be done now. The loop hears, by an event, when
// that changes. It is temporary in the sense of net.Error, which is what lets crypto/tls try again.
var errAgain error = again{}

type again struct{}

func (again) Error() string   { return "not now" }
func (again) Timeout() bool   { return true }
func (again) Temporary() bool { return true }

// errNoHalfClose is what closeWrite returns when the socket can only be closed as a whole.
var errNoHalfClose = errors.New("connection cannot half-close")

// socket is what a Conn reads and writes. There are three: fdSock, a descriptor driven without blocking; netSock, a
// net.Conn driven by a pair of goroutines; and endSock, which acts on another End of the same loop. All methods are called on the loop.
type socket interface {
	// register announces the socket to loop l: from now on events for token arrive there.
	register(l *Loop, token uint64) error
	// unregister ends that. Events under way are dropped by their token.
	unregister()
	// read returns errAgain when there is nothing, io.EOF at the peer's end of stream.
	read(b []byte) (int, error)
	// write takes what it can; errAgain when that is nothing.
	write(b []byte) (int, error)
	// flushed reports whether everything that write took has reached the system.
	flushed() bool
	// closeWrite sends the end of stream, or returns errNoHalfClose.
	closeWrite() error
	// close frees the socket; if err is not nil, the peer gets a reset instead of an end of stream.
	close(err error)
	// local is our own address; zero after close.
	local() netip.AddrPort
	// lastError is the pending error of a socket whose event said failed.
	lastError() error
}
