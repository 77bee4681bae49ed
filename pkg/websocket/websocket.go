// Package websocket is the WebSocket protocol, RFC 6455, without I/O: a Decoder
// takes the bytes of a connection in any pieces and hands out messages and
// control frames; functions encode frames and both sides of the opening
// handshake. There are no extensions.
//
//	var d websocket.Decoder // of a client; a server sets Masked
//	for {
//		ev, n, err := d.Next(b)
//		b = b[n:]
//		…
//		switch ev.Op {
//		case websocket.None: // wait for more bytes
//		case websocket.Binary: // ev.Payload is a part of a message, ev.Final its last
//		case websocket.Ping: // answer with AppendFrame(out, websocket.Pong, ev.Payload, key)
//		}
//	}
//
// Invariants: payloads are unmasked in place and never copied, except those of
// control frames that came in pieces; what a Decoder holds does not grow with
// what the peer sends; the same bytes give the same messages however they are
// split.
package websocket

import (
	"crypto/subtle"
	"encoding/binary"
	"fmt"
	"unicode/utf8"
)

// An Opcode says what a frame is (rfc6455#section-11.8).
type Opcode uint8

// The opcodes. None is no frame: in an Event it asks for more input.
const (
	continuation Opcode = 0x0
	None         Opcode = 0x0
	Text         Opcode = 0x1
	Binary       Opcode = 0x2
	Close        Opcode = 0x8
	Ping         Opcode = 0x9
	Pong         Opcode = 0xa
)

// Status codes of a close frame (rfc6455#section-7.4.1).
const (
	StatusNormal        = 1000
	StatusGoingAway     = 1001
	StatusProtocolError = 1002
	StatusUnsupported   = 1003
	StatusNone          = 1005 // there was no code; never sent
	StatusPolicy        = 1008
	StatusTooBig        = 1009
	StatusInternal      = 1011
)

// Lengths of what RFC 6455 bounds.
const (
	MaxHeader  = 14  // 2, 8 of extended length, 4 of mask
	MaxControl = 125 // payload of a control frame
)

// An Error is a violation of the protocol by the peer.
type Error struct {
	Status int // to close with
	Reason string
}

func (e *Error) Error() string { return "websocket: " + e.Reason }

func violation(format string, args ...any) error {
	return &Error{StatusProtocolError, fmt.Sprintf(format, args...)}
}

// An Event is what a Decoder found.
type Event struct {
	Op Opcode // Text, Binary, Close, Ping or Pong; None if more input is needed

	// Payload is unmasked: a part of a message in the order of arrival, or the
	// whole of a control frame. It is valid until the next call of Next and, for
	// messages, lies in the input.
	Payload []byte

	Final bool // the message ends here; true for control frames
}

// A Decoder takes frames apart. The zero value decodes what servers send.
type Decoder struct {
	// Masked says that the peer is a client: its frames must be masked. Those of a
	// server must not be (rfc6455#section-5.1).
	Masked bool

	// MaxMessage bounds a message, in bytes. It is read when a frame begins. 0: no
	// bound, because nothing of a message is kept here. Whether a text message is
	// UTF-8 is for the caller to say, who sees all of it.
	MaxMessage int64

	header  [MaxHeader]byte // of a frame whose header came in pieces
	nheader int
	payload bool // within a frame

	op      Opcode // of the frame
	final   bool   // FIN of the frame
	left    int64  // bytes of the frame still to come
	key     uint32 // mask, turned to the next byte
	message Opcode // of the message under way, or None
	size    int64  // of the message, with the frame under way

	control  [MaxControl]byte
	ncontrol int
	err      error
}

// Next takes from b and returns what it found and how many bytes it took. An event
// None means that all of b is used. After an error, which is an *Error, the
// Decoder returns the same one.
func (d *Decoder) Next(b []byte) (ev Event, n int, err error) {
	if d.err != nil {
		return Event{}, 0, d.err
	}
	for {
		if !d.payload {
			m, err := d.readHeader(b[n:])
			n += m
			if err != nil {
				d.err = err
				return Event{}, n, err
			}
			if !d.payload {
				return Event{}, n, nil
			}
			if d.left == 0 && !d.final { // an empty fragment
				d.payload = false
				continue
			}
		}
		p := b[n:]
		if int64(len(p)) > d.left {
			p = p[:d.left]
		}
		if len(p) == 0 && d.left > 0 {
			return Event{}, n, nil
		}
		if d.Masked {
			d.key = mask(d.key, p)
		}
		n += len(p)
		d.left -= int64(len(p))
		done := d.left == 0
		d.payload = !done
		if d.op >= Close {
			if !done || d.ncontrol > 0 {
				d.ncontrol += copy(d.control[d.ncontrol:], p)
				if !done {
					return Event{}, n, nil
				}
				p = d.control[:d.ncontrol]
				d.ncontrol = 0
			}
			if d.op == Close {
				if d.err = checkClose(p); d.err != nil {
					return Event{}, n, d.err
				}
			}
			return Event{Op: d.op, Payload: p, Final: true}, n, nil
		}
		ev = Event{Op: d.message, Payload: p, Final: done && d.final}
		if ev.Final {
			d.message, d.size = None, 0
		}
		return ev, n, nil
	}
}

// readHeader takes a frame header from b and sets payload when it is complete
// (rfc6455#section-5.2).
func (d *Decoder) readHeader(b []byte) (n int, err error) {
	h := b
	if d.nheader > 0 || len(b) < MaxHeader {
		// Take no more than the header needs, as far as it is known.
		for need := headerLen(d.header[:d.nheader]); d.nheader < need; need = headerLen(d.header[:d.nheader]) {
			if n == len(b) {
				return n, nil
			}
			m := copy(d.header[d.nheader:need], b[n:])
			d.nheader += m
			n += m
		}
		h = d.header[:d.nheader]
		d.nheader = 0
	} else {
		n = headerLen(b)
	}
	op, final, masked := Opcode(h[0]&0xf), h[0]&0x80 != 0, h[1]&0x80 != 0
	length := int64(h[1] & 0x7f)
	key := h[2:]
	switch length {
	case 126:
		length = int64(binary.BigEndian.Uint16(h[2:]))
		key = h[4:]
		if length < 126 {
			return n, violation("length %d is not in its shortest form", length)
		}
	case 127:
		length = int64(binary.BigEndian.Uint64(h[2:]))
		key = h[10:]
		if length < 1<<16 {
			return n, violation("length %d is not in its shortest form, or negative", length)
		}
	}
	switch {
	case h[0]&0x70 != 0:
		return n, violation("reserved bits are set")
	case masked != d.Masked && masked:
		return n, violation("frame of a server is masked")
	case masked != d.Masked:
		return n, violation("frame of a client is not masked")
	case op >= Close && op <= Pong:
		if !final {
			return n, violation("control frame is fragmented")
		}
		if length > MaxControl {
			return n, violation("control frame of %d bytes", length)
		}
	case op == continuation:
		if d.message == None {
			return n, violation("continuation without a message")
		}
	case op == Text || op == Binary:
		if d.message != None {
			return n, violation("a message begins within another one")
		}
		d.message, d.size = op, 0
	default:
		return n, violation("unknown opcode %#x", uint8(op))
	}
	if op < Close {
		if d.MaxMessage > 0 && length > d.MaxMessage-d.size {
			return n, &Error{StatusTooBig, fmt.Sprintf("message is longer than %d bytes", d.MaxMessage)}
		}
		if d.size += length; d.size < 0 {
			return n, violation("message is too long")
		}
	}
	if masked {
		d.key = binary.LittleEndian.Uint32(key)
	}
	d.op, d.final, d.left, d.payload = op, final, length, true
	return n, nil
}

// headerLen returns the length of the header that starts with h, as far as h says.
func headerLen(h []byte) int {
	if len(h) < 2 {
		return 2
	}
	n := 2
	switch h[1] & 0x7f {
	case 126:
		n += 2
	case 127:
		n += 8
	}
	if h[1]&0x80 != 0 {
		n += 4
	}
	return n
}

// checkClose checks the payload of a close frame (rfc6455#section-5.5.1, 7.4).
func checkClose(p []byte) error {
	if len(p) == 0 {
		return nil
	}
	if len(p) == 1 {
		return violation("close frame of one byte")
	}
	switch code := binary.BigEndian.Uint16(p); {
	case code >= 1000 && code <= 1003, code >= 1007 && code <= 1014, code >= 3000 && code <= 4999:
	default:
		return violation("close frame with status %d", code)
	}
	if !utf8.Valid(p[2:]) {
		return &Error{1007, "close reason is not UTF-8"}
	}
	return nil
}

// ParseClose takes the payload of a close frame, which the Decoder has checked,
// apart.
func ParseClose(p []byte) (status int, reason string) {
	if len(p) < 2 {
		return StatusNone, ""
	}
	return int(binary.BigEndian.Uint16(p)), string(p[2:])
}

// ClosePayload makes the payload of a close frame. The reason is cut to what fits.
func ClosePayload(status int, reason string) []byte {
	for len(reason) > MaxControl-2 || !utf8.ValidString(reason) {
		reason = reason[:min(len(reason)-1, MaxControl-2)]
	}
	return append(binary.BigEndian.AppendUint16(nil, uint16(status)), reason...)
}

// A Key masks what a client sends. It must be unpredictable and different for
// each frame (rfc6455#section-5.3).
type Key [4]byte

// PutHeader writes the header of a frame with n bytes of payload at the end of
// headroom, which must have MaxHeader bytes, and returns where it starts. A client
// gives a key, and masks the payload with Mask; a server gives nil.
func PutHeader(headroom []byte, op Opcode, final bool, n int, key *Key) int {
	var h [MaxHeader]byte
	b := appendHeader(h[:0], op, final, n, key)
	start := len(headroom) - len(b)
	copy(headroom[start:], b)
	return start
}

func appendHeader(b []byte, op Opcode, final bool, n int, key *Key) []byte {
	first, bit := byte(op), byte(0)
	if final {
		first |= 0x80
	}
	if key != nil {
		bit = 0x80
	}
	switch {
	case n < 126:
		b = append(b, first, bit|byte(n))
	case n < 1<<16:
		b = append(b, first, bit|126)
		b = binary.BigEndian.AppendUint16(b, uint16(n))
	default:
		b = append(b, first, bit|127)
		b = binary.BigEndian.AppendUint64(b, uint64(n))
	}
	if key != nil {
		b = append(b, key[:]...)
	}
	return b
}

// AppendFrame appends a whole frame to b: a short message or a control frame, whose
// payload must not be longer than MaxControl. A client gives a key, a server nil.
func AppendFrame(b []byte, op Opcode, payload []byte, key *Key) []byte {
	if op >= Close && len(payload) > MaxControl {
		panic("BUG: websocket: control frame is too long")
	}
	b = appendHeader(b, op, true, len(payload), key)
	at := len(b)
	b = append(b, payload...)
	if key != nil {
		Mask(*key, b[at:])
	}
	return b
}

// Mask masks or unmasks a whole payload in place.
func Mask(key Key, b []byte) { mask(binary.LittleEndian.Uint32(key[:]), b) }

// mask masks b in place and returns the key turned to the byte after b.
func mask(key uint32, b []byte) uint32 {
	turn := uint(len(b)%4) * 8
	next := key>>turn | key<<(32-turn)
	wide := uint64(key)<<32 | uint64(key)
	if len(b) >= 256 {
		// The vector code of crypto/subtle, over a key that is repeated often enough.
		// The pattern is a multiple of 4 bytes long, so that the key never turns.
		var pattern [1024]byte
		n := min(len(b), len(pattern)) &^ 7
		for i := 0; i < n; i += 8 {
			binary.LittleEndian.PutUint64(pattern[i:], wide)
		}
		for len(b) >= n {
			subtle.XORBytes(b[:n], b[:n], pattern[:n])
			b = b[n:]
		}
	}
	for len(b) >= 8 {
		binary.LittleEndian.PutUint64(b, binary.LittleEndian.Uint64(b)^wide)
		b = b[8:]
	}
	for i := range b {
		b[i] ^= byte(wide >> (8 * uint(i)))
	}
	return next
}
