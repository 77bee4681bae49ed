package http2

import (
	"errors"
	"fmt"
	"time"

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

// Endpoint makes the connections of one loop, which share its limits and its buffers. The zero value works.
type Endpoint struct {
	// MaxStreams is the number of requests that a visitor may have under way on one connection. 0: 128.
	MaxStreams int
}

// Server makes the server's side of a connection that carries HTTP/2 from its first byte.
func (e *Endpoint) Server(t Transport, h ServerHandler, now time.Time) *Conn { return new(Conn) }

// Client makes the client's side.
func (e *Endpoint) Client(t Transport, h ClientHandler, now time.Time) *Conn { return new(Conn) }

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

// Error is what Receive returns when the peer broke the protocol, or a limit. GOAWAY has been written: what is left is
// Flush, Close, and to close the transport.
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

// Conn is one connection.
type Conn struct{}

// Receive takes what the transport has received and returns how much of it was used. The rest, less than 64 KiB, is an
// incomplete frame and is to be shown again with more behind it.
func (c *Conn) Receive(b []byte, now time.Time) (used int, err error) { return len(b), nil }

// Flush writes what has been gathered, as far as the transport takes it, and makes the callbacks that are due. Call it
// at the end of a turn in which OnOutput was called, and when the transport has drained.
func (c *Conn) Flush() {}

// Request sends a request of a client, with the forwarding fields set; end says that no data follows. A request with
// Upgrade becomes an extended CONNECT, which needs CanConnect.
func (c *Conn) Request(req *http1.Request, fwd http1.Forward, end bool, h ResponseHandler) (*Stream, error) {
	return nil, ErrNoRoom
}

// Room returns how many requests a client can make now.
func (c *Conn) Room() int { return 0 }

// CanConnect reports whether the server takes extended CONNECT (rfc8441#section-3). It is false until its settings came.
func (c *Conn) CanConnect() bool { return false }

// Ready reports whether the peer's settings have come.
func (c *Conn) Ready() bool { return false }

// Streams returns the number of streams that are open.
func (c *Conn) Streams() int { return 0 }

// Ping asks the peer for a sign of life: Unanswered is the number of pings since the last one that was answered.
func (c *Conn) Ping() {}

// Unanswered returns how many pings await an answer.
func (c *Conn) Unanswered() int { return 0 }

// Drain has the peer make no further requests, without losing any that are under way: GOAWAY with the highest number,
// and with the last one a round trip later (rfc9113#section-6.8). Done reports when all is over.
func (c *Conn) Drain() {}

// Done reports whether the connection has been drained or told to go away, and has no streams and nothing to send: the
// transport can be closed.
func (c *Conn) Done() bool { return false }

// GoAway refuses whatever the peer has not begun yet, with a code.
func (c *Conn) GoAway(code Code) {}

// Close ends all streams with err. Nothing else is sent or received: the transport is lost, or about to be closed.
func (c *Conn) Close(err error) {}

// Stream is one request and its response. It acts like a connection. When it is over its methods do nothing.
type Stream struct{}

// SetHandler sets who receives the stream's events from now on. Kept bytes are presented to h, and so is an end.
func (s *Stream) SetHandler(h Handler) {}

// Respond sends the head of a response, an interim or the final one, with the hop-by-hop fields removed; end says that
// nothing follows. A 101 answers an extended CONNECT.
func (s *Stream) Respond(res *http1.Response, end bool) {}

// Write queues b, or sends it.
func (s *Stream) Write(b []byte) {}

// Pending returns the number of bytes that are not sent yet.
func (s *Stream) Pending() int { return 0 }

// HighMark is the Pending above which a writer waits for OnDrain. It is -1 while the connection has too much queued.
func (s *Stream) HighMark() int { return 0 }

// Bytes returns how many bytes of payload were received, and how many were written, sent or not. It stays what it is
// when the stream has ended.
func (s *Stream) Bytes() (received, written uint64) { return 0, 0 }

// Pause holds OnData and OnEOF back. What comes is kept, within the window.
func (s *Stream) Pause() {}

// Resume undoes Pause.
func (s *Stream) Resume() {}

// CloseWrite finishes our side when everything written is sent.
func (s *Stream) CloseWrite() {}

// WriteTrailers is CloseWrite with a trailer section.
func (s *Stream) WriteTrailers(fields []http1.Field) {}

// Trailers returns the trailer section that was received; it is lent to OnEOF.
func (s *Stream) Trailers() []http1.Field { return nil }

// Close finishes our side and drops further input. The stream is over when everything written is sent.
func (s *Stream) Close() {}

// Reset ends the stream at once. OnClose gets a *StreamError.
func (s *Stream) Reset(code Code) {}

// Abort is Reset with the code of err if that is a *StreamError, or else with CodeInternal. OnClose gets err.
func (s *Stream) Abort(err error) {}

// ID returns the number of the stream.
func (s *Stream) ID() uint32 { return 0 }
