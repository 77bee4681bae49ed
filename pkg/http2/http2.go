package http2

import (
	"errors"
	"fmt"

	"culvert.dev/pkg/http1"
)

// Handler receives the events of one Stream. It is the same interface as evloop.Handler and tunnel.Handler.
type Handler = interface {
	// OnData lends b until it returns. What the handler does not use is kept, and shown again with more data, or
	// after Resume.
	OnData(b []byte) (used int)
	// OnEOF tells that the peer has finished; our side stays open. Trailers are there.
	OnEOF()
	// OnDrain tells that Pending fell to a quarter of HighMark after it was above it.
	OnDrain()
	// OnClose is called once, last: nil when both sides have finished, a *StreamError when either has reset the
	// stream, or what ended the connection. The stream must not be used any more.
	OnClose(err error)
}

// ResponseHandler is the Handler of a request that this side has made.
type ResponseHandler interface {
	Handler
	// OnResponse is called for each interim response and for the final one, before any data; end tells that no data
	// and no trailers follow (OnEOF still does). res is lent. The answer to an extended CONNECT that succeeded is
	// shown as a 101 with Upgrade.
	OnResponse(res *http1.Response, end bool)
}

// ServerHandler receives the events of a server's connection.
type ServerHandler interface {
	// OnRequest shows a request; req is lent. An extended CONNECT (RFC 8441) is a GET with Upgrade. The handler sets
	// the stream's own Handler before it returns, or resets the stream, or answers it whole.
	OnRequest(s *Stream, req *http1.Request, end bool)
	// OnReject asks for an answer, by Respond, to a request that is too large or not supported, as err.Status says.
	// Whatever else is sent for it is dropped.
	OnReject(s *Stream, err *http1.Error)
	// OnOutput asks for a call of Flush before the turn ends. It is called once until then.
	OnOutput()
}

// ClientHandler receives the events of a client's connection.
type ClientHandler interface {
	// OnRoom tells that Room has become more than 0.
	OnRoom()
	// OnGoAway tells that no further request can be made here. Those that the server has not seen end with
	// ErrUnseen; the others go on.
	OnGoAway(code Code)
	// OnOutput asks for a call of Flush before the turn ends. It is called once until then.
	OnOutput()
}

// Transport carries a connection. Write never blocks and copies what it must keep; when Pending falls to the low mark
// the owner calls Flush.
type Transport interface {
	Write(b []byte)
	Pending() int
	HighMark() int
}

// Code says why a stream or a connection ended (rfc9113#section-7).
type Code uint32

const (
	CodeNone               Code = 0x0
	CodeProtocol           Code = 0x1
	CodeInternal           Code = 0x2
	CodeFlowControl        Code = 0x3
	CodeSettingsTimeout    Code = 0x4
	CodeStreamClosed       Code = 0x5
	CodeFrameSize          Code = 0x6
	CodeRefused            Code = 0x7
	CodeCancel             Code = 0x8
	CodeCompression        Code = 0x9
	CodeConnect            Code = 0xa
	CodeEnhanceYourCalm    Code = 0xb
	CodeInadequateSecurity Code = 0xc
	CodeHTTP11Required     Code = 0xd
)

var codeNames = [...]string{
	"NO_ERROR", "PROTOCOL_ERROR", "INTERNAL_ERROR", "FLOW_CONTROL_ERROR", "SETTINGS_TIMEOUT", "STREAM_CLOSED",
	"FRAME_SIZE_ERROR", "REFUSED_STREAM", "CANCEL", "COMPRESSION_ERROR", "CONNECT_ERROR", "ENHANCE_YOUR_CALM",
	"INADEQUATE_SECURITY", "HTTP_1_1_REQUIRED",
}

func (c Code) String() string {
	if int(c) < len(codeNames) {
		return codeNames[c]
	}
	return fmt.Sprintf("code %#x", uint32(c))
}

// Error is what Receive returns when the peer broke the protocol, or a limit. GOAWAY has been written and all streams
// have ended: what is left is to close the transport.
type Error struct {
	Code   Code
	Reason string // fixed text, without anything the peer sent
}

func (e *Error) Error() string { return "http2: " + e.Code.String() + ": " + e.Reason }

// StreamError is what OnClose gets when a stream was reset.
type StreamError struct {
	Code   Code
	Remote bool // the peer reset the stream
}

func (e *StreamError) Error() string {
	if e.Remote {
		return "http2: stream reset by peer: " + e.Code.String()
	}
	return "http2: stream reset: " + e.Code.String()
}

var (
	// ErrNoRoom is returned by Request when Room is 0.
	ErrNoRoom = errors.New("http2: no room for another request on this connection")
	// ErrUnseen is what OnClose gets for a request that the server has not seen, or says that it has not begun with
	// (GOAWAY, REFUSED_STREAM): it may be sent again elsewhere, whatever its method is.
	ErrUnseen = errors.New("http2: request was not seen by the server")
)
