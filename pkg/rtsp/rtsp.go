// Package rtsp has what a relay needs to know of RTSP 1.0 (RFC 2326): messages and the interleaved
// frames between them, the Transport, Session and RTP-Info fields, Basic and Digest authentication on
// both sides (RFC 2617, RFC 7616), the rewriting of URLs and of session descriptions (RFC 4566), and
// the base64 of RTSP over HTTP.
//
// It does no I/O: bytes go in, values that alias them come out.
//
//	var d rtsp.Demux
//	var m rtsp.Message
//	for {
//		k, n, err := d.Next(b, &m)
//		if err != nil {
//			return err // an *Error has the status to answer with; the stream is lost
//		}
//		switch k {
//		case rtsp.None:
//			return // wait for more bytes, and come again with those of b and the new ones
//		case rtsp.Frame:
//			frame(d.Channel, b[4:n]) // of a frame that comes in pieces, see Demux
//		case rtsp.Request, rtsp.Response:
//			message(&m)
//		}
//		b = b[n:]
//	}
//
// Invariants:
//   - How a stream is cut into calls of Next changes nothing in what comes out.
//   - Each byte of a growing input is looked at a fixed number of times.
//   - Everything that a peer counts or measures has a bound: Max… constants.
//   - No line break that a peer put into a value reaches what is written for another peer.
//   - What maps a URL never makes up a destination: it replaces one configured prefix by another.
package rtsp

import (
	"bytes"
	"fmt"
	"strconv"
)

const (
	// MaxHead bounds the start line and the fields of a message, in bytes.
	MaxHead = 16 << 10
	// MaxMessage bounds a message with its body, in bytes.
	MaxMessage = 64 << 10
	// MaxFields bounds the fields of a message. GStreamer's RealMedia request has 20.
	MaxFields = 100
	// MaxURL bounds a URL, in bytes.
	MaxURL = 2 << 10
	// MaxWhole is the longest payload of an interleaved frame that comes in one piece, in bytes.
	MaxWhole = 32 << 10
)

// Status codes of RTSP (rfc2326#section-7.1.1) that the relays send.
const (
	StatusOK                   = 200
	StatusBadRequest           = 400
	StatusUnauthorized         = 401
	StatusForbidden            = 403
	StatusNotFound             = 404
	StatusMethodNotAllowed     = 405
	StatusRequestTooLarge      = 413
	StatusURLTooLong           = 414
	StatusSessionNotFound      = 454
	StatusMethodNotValidHere   = 455
	StatusUnsupportedTransport = 461
	StatusInternalError        = 500
	StatusNotImplemented       = 501
	StatusBadGateway           = 502
	StatusUnavailable          = 503
	StatusGatewayTimeout       = 504
	StatusVersionNotSupported  = 505
	StatusOptionNotSupported   = 551
)

// Reason returns the phrase of a status code.
func Reason(status int) string {
	switch status {
	case StatusOK:
		return "OK"
	case 301:
		return "Moved Permanently"
	case 302:
		return "Moved Temporarily"
	case StatusBadRequest:
		return "Bad Request"
	case StatusUnauthorized:
		return "Unauthorized"
	case StatusForbidden:
		return "Forbidden"
	case StatusNotFound:
		return "Not Found"
	case StatusMethodNotAllowed:
		return "Method Not Allowed"
	case 408:
		return "Request Time-out"
	case StatusRequestTooLarge:
		return "Request Entity Too Large"
	case StatusURLTooLong:
		return "Request-URI Too Large"
	case 415:
		return "Unsupported Media Type"
	case 453:
		return "Not Enough Bandwidth"
	case StatusSessionNotFound:
		return "Session Not Found"
	case StatusMethodNotValidHere:
		return "Method Not Valid in This State"
	case 457:
		return "Invalid Range"
	case 459:
		return "Aggregate Operation Not Allowed"
	case 460:
		return "Only Aggregate Operation Allowed"
	case StatusUnsupportedTransport:
		return "Unsupported Transport"
	case StatusInternalError:
		return "Internal Server Error"
	case StatusNotImplemented:
		return "Not Implemented"
	case StatusBadGateway:
		return "Bad Gateway"
	case StatusUnavailable:
		return "Service Unavailable"
	case StatusGatewayTimeout:
		return "Gateway Time-out"
	case StatusVersionNotSupported:
		return "RTSP Version not supported"
	case StatusOptionNotSupported:
		return "Option not supported"
	}
	return "Status " + strconv.Itoa(status)
}

// Error is what is wrong with a message.
type Error struct {
	Status int    // to answer a request with
	What   string // is wrong
}

func (e *Error) Error() string { return "rtsp: " + e.What }

func badf(format string, args ...any) *Error {
	return &Error{StatusBadRequest, fmt.Sprintf(format, args...)}
}

// Field is a line of a message's head. The value has no white space around it.
type Field struct{ Name, Value []byte }

// Message is a request or a response. What Demux.Next fills in aliases its input; Clone what has to live
// longer.
type Message struct {
	Method, URL []byte // of a request
	Status      int    // of a response; 0 says that this is a request
	Reason      []byte // of a response
	Fields      []Field
	Body        []byte
}

// Get returns the value of the first field of that name, in any case, or nil. A field without a value
// has an empty one that is not nil.
func (m *Message) Get(name string) []byte {
	for i := range m.Fields {
		if Is(m.Fields[i].Name, name) {
			return m.Fields[i].Value
		}
	}
	return nil
}

// CSeq returns the number of a request or of a response's request, and whether there is one.
func (m *Message) CSeq() (uint32, bool) {
	n, err := strconv.ParseUint(string(m.Get("CSeq")), 10, 32)
	return uint32(n), err == nil
}

// Clone returns a copy that aliases nothing.
func (m *Message) Clone() *Message {
	n := len(m.Method) + len(m.URL) + len(m.Reason) + len(m.Body)
	for _, f := range m.Fields {
		n += len(f.Name) + len(f.Value)
	}
	all := make([]byte, 0, n)
	keep := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		i := len(all)
		all = append(all, b...)
		return all[i:len(all):len(all)]
	}
	c := &Message{Method: keep(m.Method), URL: keep(m.URL), Status: m.Status, Reason: keep(m.Reason)}
	if len(m.Fields) > 0 {
		c.Fields = make([]Field, len(m.Fields))
		for i, f := range m.Fields {
			c.Fields[i] = Field{keep(f.Name), keep(f.Value)}
		}
	}
	c.Body = keep(m.Body)
	return c
}

// Is reports whether b is that name of a field, a method or a parameter, in any case.
func Is(b []byte, name string) bool {
	if len(b) != len(name) {
		return false
	}
	for i := range b {
		if lower(b[i]) != lower(name[i]) {
			return false
		}
	}
	return true
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 'a' - 'A'
	}
	return c
}

// AppendRequest appends a request. A Content-Length among the fields is left out, and the body's own
// written if there is a body.
func AppendRequest(dst, method, url []byte, fields []Field, body []byte) []byte {
	dst = appendText(dst, method)
	dst = append(dst, ' ')
	dst = appendText(dst, url)
	dst = append(dst, " RTSP/1.0\r\n"...)
	return appendRest(dst, fields, body)
}

// AppendResponse appends a response, with the fields as AppendRequest does. If reason is "", it is that of
// the status.
func AppendResponse(dst []byte, status int, reason string, fields []Field, body []byte) []byte {
	dst = append(dst, "RTSP/1.0 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	if reason == "" {
		reason = Reason(status)
	}
	dst = append(dst, reason...)
	dst = append(dst, "\r\n"...)
	return appendRest(dst, fields, body)
}

func appendRest(dst []byte, fields []Field, body []byte) []byte {
	for _, f := range fields {
		if Is(f.Name, "Content-Length") {
			continue
		}
		dst = appendText(dst, f.Name)
		dst = append(dst, ": "...)
		dst = appendText(dst, f.Value)
		dst = append(dst, "\r\n"...)
	}
	if len(body) > 0 {
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, int64(len(body)), 10)
		dst = append(dst, "\r\n"...)
	}
	dst = append(dst, "\r\n"...)
	return append(dst, body...)
}

// appendText appends b with a space for each byte that would end a line.
func appendText(dst, b []byte) []byte {
	i := len(dst)
	dst = append(dst, b...)
	for ; i < len(dst); i++ {
		if c := dst[i]; c == '\r' || c == '\n' || c == 0 {
			dst[i] = ' '
		}
	}
	return dst
}

// AppendFrameHead appends the head of an interleaved frame of n bytes, at most 65535
// (rfc2326#section-10.12).
func AppendFrameHead(dst []byte, channel uint8, n int) []byte {
	return append(dst, '$', channel, byte(n>>8), byte(n))
}

// isToken holds the characters of a token: names of methods, fields and parameters.
var isToken = func() (t [256]bool) {
	for c := '!'; c <= '~'; c++ {
		t[c] = !bytes.ContainsRune([]byte(`()<>@,;:\"/[]?={}`), c)
	}
	return t
}()

func token(b []byte) bool {
	for _, c := range b {
		if !isToken[c] {
			return false
		}
	}
	return len(b) > 0
}
