// Package http1 is HTTP/1.1 (RFC 9112) without I/O: bytes in, messages and bytes out.
//
// A head is parsed in one pass over the input and referenced, never copied; a body is decoded as it
// arrives; encoders append to a slice. Nothing here allocates once the caller's Request, Response and
// output slices have grown. An event loop, a goroutine and a fuzzer can all drive it:
//
//	var r http1.Request
//	n, err := http1.ParseRequest(in, &r)
//	switch {
//	case err != nil: // answer err.(*http1.Error).Status and close
//	case n == 0: // incomplete: call again with more input
//	}
//	var body http1.Body
//	body.Reset(r.Framing, r.ContentLength)
//	for in = in[n:]; ; {
//		payload, used, done, err := body.Next(in)
//		// use payload; in = in[used:]; stop when done; wait for input when used is 0
//	}
//
// Invariants: what is ambiguous is rejected, never repaired, because the recipient behind a relay may
// read it differently (request smuggling). The result does not depend on how the input was cut.
// Everything in a Request or Response references the input and is valid as long as that is.
package http1

import (
	"bytes"
	"encoding/binary"
)

// Field is one field line of a head or trailer. Name has the case it was sent with; Value has no
// whitespace around it.
type Field struct {
	Name, Value []byte
}

// Limits bound what a peer can make us read before a head is complete.
type Limits struct {
	MaxHead   int // bytes of a whole head; 0: 16 KiB for requests, 32 KiB for responses
	MaxLine   int // bytes of the request line or status line; 0: 8 KiB
	MaxFields int // field lines; 0: 100

	// NoHost takes a request of HTTP/1.1 that has no Host, too, against rfc9112#section-3.2:
	// Request.Host is nil then, unless the target has one.
	NoHost bool
}

// Error says why a message was rejected. The connection cannot be used for another message.
type Error struct {
	Status int    // what to answer: 400, 414, 417, 431, 501 or 505 for a request, 502 for a response
	Reason string // fixed text, without anything the peer sent
}

func (e *Error) Error() string { return e.Reason }

// Framing says how the length of a body is known.
type Framing uint8

const (
	NoBody     Framing = iota // there is none
	Length                    // ContentLength bytes
	Chunked                   // chunked transfer coding
	UntilClose                // a response that ends with the connection
)

// Classes of bytes.
const (
	isToken  = 1 << iota // tchar, rfc9110#section-5.6.2
	isTarget             // visible ASCII except '#': a fragment is never sent
	isHost               // what we accept in a host name
	isHex
)

var class = func() (t [256]uint8) {
	for c := '!'; c <= '~'; c++ {
		t[c] |= isTarget
	}
	t['#'] &^= isTarget
	for _, c := range "!#$%&'*+-.^_`|~" {
		t[c] |= isToken
	}
	for _, c := range "-._" {
		t[c] |= isHost
	}
	for c := '0'; c <= '9'; c++ {
		t[c] |= isToken | isHost | isHex
	}
	for c := 'a'; c <= 'z'; c++ {
		t[c] |= isToken | isHost
		t[c-0x20] |= isToken | isHost
	}
	for c := 'a'; c <= 'f'; c++ {
		t[c] |= isHex
		t[c-0x20] |= isHex
	}
	return t
}()

// parseFields reads field lines and the empty line after them from b[i:] and hands each to field.
// It returns the index behind the empty line, or 0 when b ends before it.
//
// Lines end with CRLF and nothing else (rfc9112#section-2.2 allows a recipient to accept a bare LF, but
// a relay that does so disagrees with its peers), and obs-fold is rejected (rfc9112#section-5.2).
func parseFields(b []byte, i, maxFields int, fields *[]Field, status int) (int, *Error) {
	for {
		if i == len(b) {
			return 0, nil
		}
		if b[i] == '\r' {
			switch {
			case i+1 == len(b):
				return 0, nil
			case b[i+1] != '\n':
				return 0, malformed(status, errBareCR)
			}
			return i + 2, nil
		}
		start := i
		for i < len(b) && class[b[i]]&isToken != 0 {
			i++
		}
		if i == len(b) {
			return 0, nil
		}
		if b[i] != ':' || i == start {
			switch {
			case i == start && (b[i] == ' ' || b[i] == '\t'):
				return 0, malformed(status, errFold)
			case b[i] == '\n':
				return 0, malformed(status, errBareLF)
			case b[i] == ' ' || b[i] == '\t':
				return 0, malformed(status, errSpaceColon)
			}
			return 0, malformed(status, errFieldName)
		}
		name := b[start:i:i]
		i++
		for i < len(b) && (b[i] == ' ' || b[i] == '\t') {
			i++
		}
		start = i
		i = skipText(b, i)
		if i == len(b) {
			return 0, nil
		}
		if b[i] != '\r' {
			if b[i] == '\n' {
				return 0, malformed(status, errBareLF)
			}
			return 0, malformed(status, errFieldValue)
		}
		if i+1 == len(b) {
			return 0, nil
		}
		if b[i+1] != '\n' {
			return 0, malformed(status, errBareCR)
		}
		end := i
		for end > start && (b[end-1] == ' ' || b[end-1] == '\t') {
			end--
		}
		if len(*fields) == maxFields {
			if status == 400 {
				return 0, errManyFields
			}
			return 0, malformed(status, errManyFields)
		}
		*fields = append(*fields, Field{name, b[start:end:end]})
		i += 2
	}
}

// skipText returns the index of the first byte at or behind i that may not be in a field value: a
// control character other than HTAB.
func skipText(b []byte, i int) int {
	const ones, tops = 0x0101010101010101, 0x8080808080808080
	for {
		for i+8 <= len(b) { // eight at a time while none is below 0x20 or DEL
			x := binary.LittleEndian.Uint64(b[i:])
			del := x ^ 0x7f*ones
			if ((x-0x20*ones)&^x|(del-ones)&^del)&tops != 0 {
				break
			}
			i += 8
		}
		for end := min(i+8, len(b)); i < end; i++ {
			if c := b[i]; c < ' ' && c != '\t' || c == 0x7f {
				return i
			}
		}
		if i == len(b) {
			return i
		}
	}
}

var (
	errBareCR     = &Error{400, "bare CR in head"}
	errBareLF     = &Error{400, "bare LF in head"}
	errFold       = &Error{400, "whitespace before field name"}
	errSpaceColon = &Error{400, "whitespace in field name"}
	errFieldName  = &Error{400, "invalid character in field name"}
	errFieldValue = &Error{400, "control character in field value"}
	errManyFields = &Error{431, "too many fields"}
	errLength     = &Error{400, "invalid Content-Length"}
	errTwoLengths = &Error{400, "more than one Content-Length"}
	errBothLength = &Error{400, "both Content-Length and Transfer-Encoding"}
	errTwoCodings = &Error{400, "more than one Transfer-Encoding"}
	errCoding     = &Error{400, "invalid Transfer-Encoding"}
	errCoding10   = &Error{400, "Transfer-Encoding in HTTP/1.0"}
	errOptions    = &Error{400, "too many Connection options"}
	errTwoUpgrade = &Error{400, "more than one Upgrade"}
	errHeadSize   = &Error{431, "head too large"}
)

// malformed returns e with the status for the direction that is being parsed.
func malformed(status int, e *Error) *Error {
	if status == 400 {
		return e
	}
	return &Error{status, e.Reason}
}

// maxOptions bounds the Connection options of one head, and with them the work of removing the fields
// they name.
const maxOptions = 32

// framing collects the fields that decide where a message ends and what becomes of its connection. It
// is filled while the fields are gone through in order.
type framing struct {
	length    int64 // -1: no Content-Length
	chunked   bool
	close     bool // Connection: close
	keepAlive bool // Connection: keep-alive
	upgrade   bool // Connection: upgrade
	nominated bool // Connection names other fields
	options   int
	protocol  []byte // Upgrade
}

// field takes note of f if it is one of framing's.
func (m *framing) field(f Field) *Error {
	switch len(f.Name) {
	case len("Upgrade"):
		if EqualFold(f.Name, "upgrade") {
			if m.protocol != nil {
				return errTwoUpgrade
			}
			m.protocol = f.Value
		}
	case len("Connection"):
		if EqualFold(f.Name, "connection") {
			return m.connection(f.Value)
		}
	case len("Content-Length"):
		if EqualFold(f.Name, "content-length") {
			// rfc9112#section-6.3 lets a recipient merge equal values; we take exactly one.
			if m.length >= 0 {
				return errTwoLengths
			}
			n, ok := parseDecimal(f.Value)
			if !ok {
				return errLength
			}
			if m.chunked {
				return errBothLength
			}
			m.length = n
		}
	case len("Transfer-Encoding"):
		if EqualFold(f.Name, "transfer-encoding") {
			if m.chunked {
				return errTwoCodings
			}
			if !EqualFold(f.Value, "chunked") {
				if len(f.Value) > 0 && !containsFold(f.Value, "chunked") {
					return errUnknownCoding
				}
				return errCoding // an attempt to be read as chunked by some and not by others
			}
			if m.length >= 0 {
				return errBothLength
			}
			m.chunked = true
		}
	}
	return nil
}

var errUnknownCoding = &Error{501, "transfer coding not supported"}

func (m *framing) connection(list []byte) *Error {
	for len(list) > 0 {
		var option []byte
		option, list = nextElement(list)
		if len(option) == 0 {
			continue
		}
		if m.options++; m.options > maxOptions {
			return errOptions
		}
		switch {
		case EqualFold(option, "close"):
			m.close = true
		case EqualFold(option, "keep-alive"):
			m.keepAlive = true
		case EqualFold(option, "upgrade"):
			m.upgrade = true
		default:
			m.nominated = true
		}
	}
	return nil
}

// nextElement cuts the first element off a comma-separated list and trims it.
func nextElement(list []byte) (element, rest []byte) {
	if i := bytes.IndexByte(list, ','); i >= 0 {
		element, rest = list[:i], list[i+1:]
	} else {
		element = list
	}
	return trim(element), rest
}

// trim removes SP and HTAB from both ends.
func trim(b []byte) []byte {
	for len(b) > 0 && (b[0] == ' ' || b[0] == '\t') {
		b = b[1:]
	}
	for len(b) > 0 && (b[len(b)-1] == ' ' || b[len(b)-1] == '\t') {
		b = b[:len(b)-1]
	}
	return b
}

// parseDecimal parses 1*DIGIT that fits an int64.
func parseDecimal(b []byte) (n int64, ok bool) {
	if len(b) == 0 || len(b) > 18 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// Get returns the value of the first field of that name, in any case; nil if there is none.
func Get(fields []Field, name string) []byte {
	for i := range fields {
		if len(fields[i].Name) == len(name) && EqualFold(fields[i].Name, name) {
			return fields[i].Value
		}
	}
	return nil
}

// EqualFold reports whether b and s are the same but for the case of ASCII letters.
func EqualFold(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if c != s[i] && lower(c) != lower(s[i]) {
			return false
		}
	}
	return true
}

func containsFold(b []byte, s string) bool {
	for i := 0; i+len(s) <= len(b); i++ {
		if EqualFold(b[i:i+len(s)], s) {
			return true
		}
	}
	return false
}

func lower(c byte) byte {
	if 'A' <= c && c <= 'Z' {
		return c + 0x20
	}
	return c
}

// hostname returns host without its port and without the brackets of an IPv6 literal.
func hostname(host []byte) []byte {
	if len(host) > 0 && host[0] == '[' {
		if i := bytes.IndexByte(host, ']'); i > 0 {
			return host[1:i]
		}
	}
	if i := bytes.IndexByte(host, ':'); i >= 0 {
		return host[:i]
	}
	return host
}

// ValidName reports whether name may be the name of a field.
func ValidName(name string) bool {
	for i := range len(name) {
		if class[name[i]]&isToken == 0 {
			return false
		}
	}
	return name != ""
}

// AppendValue appends a field value that did not come from this package: control characters, which
// could end the line, become spaces.
func AppendValue(dst []byte, value string) []byte {
	for i := range len(value) {
		c := value[i]
		if c < ' ' && c != '\t' || c == 0x7f {
			c = ' '
		}
		dst = append(dst, c)
	}
	return dst
}
