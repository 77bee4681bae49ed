// Package http3 is the server's side of HTTP/3 (RFC 9114) without I/O: what comes on the streams of a
// QUIC connection goes in, events and bytes come out. The head of a message is one of package http1,
// so that whatever routes, filters and forwards requests knows one kind.
//
//	var in http3.Reader          // of one request stream
//	event, payload, used, err := in.Next(b)
//	switch event {
//	case http3.EventHead:             // payload is a field section
//		err = head.Decode(payload)
//		err = head.Request(&request, ended)
//		in.Expect(request.ContentLength)
//	case http3.EventData:             // payload is a part of the body
//	case http3.EventTrailers:
//		fields, err = head.Trailers(payload)
//	}
//	err = in.EOF()               // at the end of the stream
//
// # Invariants
//
//   - A Request is made by http1, with the checks and limits of a head that came as HTTP/1.1. Nothing
//     gets past it by coming this way.
//   - What RFC 9114 calls malformed is an error, never repaired.
//   - The decoder of fields has no dynamic table: what a peer sends is bounded by the field section
//     that it is in, and no stream waits for another.
package http3

import (
	"fmt"

	"github.com/quic-go/quic-go/quicvarint"
)

// ALPN is the name of HTTP/3 in the handshake.
const ALPN = "h3"

// MaxSection bounds a field section, as RFC 9114 counts it: 32 bytes a field beside the names and
// values. It is announced to clients.
const MaxSection = 16 << 10

// A Code says why a stream or a connection ends (rfc9114#section-8.1).
type Code uint64

const (
	NoError              Code = 0x100
	GeneralProtocolError Code = 0x101
	InternalError        Code = 0x102
	StreamCreationError  Code = 0x103
	ClosedCriticalStream Code = 0x104
	FrameUnexpected      Code = 0x105
	FrameError           Code = 0x106
	ExcessiveLoad        Code = 0x107
	IDError              Code = 0x108
	SettingsError        Code = 0x109
	MissingSettings      Code = 0x10a
	RequestRejected      Code = 0x10b
	RequestCancelled     Code = 0x10c
	RequestIncomplete    Code = 0x10d
	MessageError         Code = 0x10e
	ConnectError         Code = 0x10f
	DecompressionFailed  Code = 0x200 // rfc9204#section-6
	EncoderStreamError   Code = 0x201
	DecoderStreamError   Code = 0x202
)

// Error is what a peer has done wrong: on one stream, or so that the connection has to end.
type Error struct {
	Code       Code
	Connection bool
	Reason     string // fixed text, without anything the peer sent
}

func (e *Error) Error() string { return fmt.Sprintf("HTTP/3: %s (%#x)", e.Reason, uint64(e.Code)) }

// malformed is an error of one message (rfc9114#section-4.1.2).
func malformed(reason string) *Error { return &Error{Code: MessageError, Reason: reason} }

// violation is an error of the connection.
func violation(c Code, reason string) *Error {
	return &Error{Code: c, Connection: true, Reason: reason}
}

// Types of frames (rfc9114#section-7.2, rfc9218#section-7).
const (
	frameData           = 0x00
	frameHeaders        = 0x01
	frameCancelPush     = 0x03
	frameSettings       = 0x04
	framePushPromise    = 0x05
	frameGoAway         = 0x07
	frameMaxPushID      = 0x0d
	framePriorityUpdate = 0xf0700 // of a request
	framePushPriority   = 0xf0701
)

// ofHTTP2 reports whether a type is one that HTTP/2 has and HTTP/3 reserves, so that whoever mixes
// them up is noticed (rfc9114#section-7.2.8).
func ofHTTP2(kind uint64) bool { return kind == 2 || kind == 6 || kind == 8 || kind == 9 }

// frameHead gathers the type and the length of a frame.
type frameHead struct {
	b [16]byte
	n int
}

// take uses some of b. It reports whether the head is complete, and the next one may then begin.
func (h *frameHead) take(b []byte) (kind, length uint64, used int, ok bool) {
	for _, c := range b {
		h.b[h.n] = c
		h.n++
		used++
		first := 1 << (h.b[0] >> 6)
		if h.n <= first || h.n < first+1<<(h.b[first]>>6) {
			continue
		}
		kind, _, _ = quicvarint.Parse(h.b[:first])
		length, _, _ = quicvarint.Parse(h.b[first:h.n])
		h.n = 0
		return kind, length, used, true
	}
	return 0, 0, used, false
}

// AppendData appends the head of a DATA frame of n bytes.
func AppendData(dst []byte, n int) []byte { return appendHead(dst, frameData, n) }

// appendHead appends the head of a frame.
func appendHead(dst []byte, kind byte, length int) []byte {
	return quicvarint.Append(append(dst, kind), uint64(length))
}
