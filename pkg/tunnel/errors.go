package tunnel

import (
	"errors"
	"fmt"
)

var (
	// ErrClosed is returned by Open on a session that is over.
	ErrClosed = errors.New("session is closed")
	// ErrDraining is returned by Open once either side has called GoAway.
	ErrDraining = errors.New("session is draining")
	// ErrTooManyStreams is returned by Open when Config.MaxStreams are open, when they
	// take twice Config.Budget, or when too many that have ended wait for the peer.
	ErrTooManyStreams = errors.New("too many streams")
	// ErrHeaderTooLong is returned by Open for a header of more than MaxHeader bytes.
	ErrHeaderTooLong = errors.New("stream header too long")
	// ErrInputTooLong is what OnClose gets when a handler that is not paused uses
	// nothing of 64 KiB.
	ErrInputTooLong = errors.New("handler used nothing of 64 KiB of input")
	// ErrResumeTimeout ends a session that had no link for Config.ResumeTimeout.
	ErrResumeTimeout = errors.New("session lost: no link within the resume timeout")
	// ErrLinkTimeout closes a link on which nothing came, not even the answer to a ping.
	ErrLinkTimeout = errors.New("link timeout: no answer to a ping")
	// ErrSuperseded closes a link when the session attaches to a newer one.
	ErrSuperseded = errors.New("link superseded by a newer one")
	// ErrProtocol is wrapped by every error of Receive: the peer broke the protocol.
	ErrProtocol = errors.New("protocol violation")
)

// A Code says why a stream was reset. It crosses the wire; the numbers are fixed
// in docs/protocol.md.
type Code uint16

const (
	CodeCancelled   Code = 1  // the visitor or the target went away
	CodeRefused     Code = 2  // the target refused the connection
	CodeUnreachable Code = 3  // the target is not reachable, or its name is unknown
	CodeTimeout     Code = 4  // the target did not answer in time
	CodeNotFound    Code = 5  // no such service
	CodeForbidden   Code = 6  // the service may not be used this way
	CodeOverload    Code = 7  // a limit on streams or connections is reached
	CodeDraining    Code = 8  // the session takes no new streams; nothing of the stream was seen
	CodeInternal    Code = 10 // a fault of the side that reset
	CodeSessionLost Code = 11 // the session is over; local only
	CodeMemory      Code = 12 // the session's memory budget is spent
)

var codeNames = [...]string{
	CodeCancelled:   "cancelled",
	CodeRefused:     "refused",
	CodeUnreachable: "unreachable",
	CodeTimeout:     "timeout",
	CodeNotFound:    "not found",
	CodeForbidden:   "forbidden",
	CodeOverload:    "overload",
	CodeDraining:    "draining",
	CodeInternal:    "internal error",
	CodeSessionLost: "session lost",
	CodeMemory:      "out of memory budget",
}

func (c Code) String() string {
	if int(c) < len(codeNames) && codeNames[c] != "" {
		return codeNames[c]
	}
	return fmt.Sprintf("code %d", uint16(c))
}

// StreamError is what OnClose gets, as a *StreamError, when a stream was reset.
type StreamError struct {
	Code   Code
	Remote bool // the peer reset the stream
}

func (e *StreamError) Error() string {
	if e.Remote {
		return "stream reset by peer: " + e.Code.String()
	}
	return "stream reset: " + e.Code.String()
}
