package tftp

import (
	"bytes"
	"encoding/binary"
	"math"
	"strconv"
	"strings"
)

// maxText bounds the text of an ERROR that is sent or kept, in bytes.
const maxText = 128

// opcode returns that of a packet, or 0.
func opcode(b []byte) Opcode {
	if len(b) < 2 {
		return 0
	}
	return Opcode(binary.BigEndian.Uint16(b))
}

// ParseRequest parses an RRQ or a WRQ. Names of options and modes may be in any case. Options that are unknown or make no
// sense are left out (rfc2347#section-3); those that ask for more than there is ask for the most. The error is an *Error, to be sent back.
func ParseRequest(b []byte) (Request, error) {
	var r Request
	if len(b) > MaxRequest {
		return r, &Error{Code: CodeIllegal, Text: "The request is too long."}
	}
	r.Op = opcode(b)
	if r.Op != OpRead && r.Op != OpWrite {
		return r, &Error{Code: CodeIllegal, Text: "This is no request."}
	}
	name, rest, ok := cutString(b[2:])
	mode, rest, ok2 := cutString(rest)
	if !ok || !ok2 || len(name) == 0 {
		return r, &Error{Code: CodeIllegal, Text: "The request has no name or no mode."}
	}
	switch {
	case foldEqual(mode, "octet"):
		r.Mode = Octet
	case foldEqual(mode, "netascii"):
		r.Mode = NetASCII
	default: // "mail" is obsolete (rfc1350#section-1)
		return r, &Error{Code: CodeIllegal, Text: "The mode must be octet or netascii."}
	}
	r.Name = string(name)
	r.Options.parse(rest)
	return r, nil
}

// parse takes options from the end of a request or from an OACK. It returns whether there was nothing unknown, senseless
// or twice.
func (o *Options) parse(b []byte) (clean bool) {
	clean = true
	for len(b) > 0 {
		name, rest, ok := cutString(b)
		value, rest, ok2 := cutString(rest)
		if !ok || !ok2 {
			return clean && len(bytes.Trim(b, "\x00")) == 0 // padding
		}
		b = rest
		n, digits := number(value)
		switch {
		case len(name) == 0 && len(value) == 0: // padding, too
		case !digits:
			clean = false
		case foldEqual(name, "blksize") && n >= MinBlock && o.Block == 0:
			o.Block = int(min(n, MaxBlock))
		case foldEqual(name, "windowsize") && n >= 1 && o.Window == 0:
			o.Window = int(min(n, MaxWindow))
		case foldEqual(name, "timeout") && n >= 1 && n <= 255 && o.Timeout == 0:
			o.Timeout = int(n)
		case foldEqual(name, "tsize") && n < math.MaxInt64 && !o.HasSize:
			o.Size, o.HasSize = n, true
		case foldEqual(name, "rollover") && n <= 1 && !o.HasRollover:
			o.Rollover, o.HasRollover = uint16(n), true
		default:
			clean = false
		}
	}
	return clean
}

// Append appends the packet.
func (r *Request) Append(dst []byte) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(r.Op))
	dst = append(append(dst, r.Name...), 0)
	dst = append(append(dst, r.Mode.String()...), 0)
	return r.Options.append(dst)
}

// append appends those that are there.
func (o *Options) append(dst []byte) []byte {
	option := func(name string, value int64) {
		dst = append(append(dst, name...), 0)
		dst = append(strconv.AppendInt(dst, value, 10), 0)
	}
	if o.Block != 0 {
		option("blksize", int64(o.Block))
	}
	if o.Window != 0 {
		option("windowsize", int64(o.Window))
	}
	if o.Timeout != 0 {
		option("timeout", int64(o.Timeout))
	}
	if o.HasSize {
		option("tsize", o.Size)
	}
	if o.HasRollover {
		option("rollover", int64(o.Rollover))
	}
	return dst
}

// AppendError appends an ERROR of no more than so many bytes, but at least 5. The text is cut.
func AppendError(dst []byte, e *Error, most int) []byte {
	dst = binary.BigEndian.AppendUint16(dst, uint16(OpError))
	dst = binary.BigEndian.AppendUint16(dst, uint16(e.Code))
	text, _, _ := strings.Cut(e.Text, "\x00")
	dst = append(dst, text[:min(len(text), maxText, max(most-5, 0))]...)
	return append(dst, 0)
}

// parseError parses an ERROR. Of its text remains what can be printed.
func parseError(b []byte) (*Error, bool) {
	if len(b) < 4 {
		return nil, false
	}
	text, _, _ := bytes.Cut(b[4:], []byte{0})
	printable := func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}
	return &Error{
		Code:   Code(binary.BigEndian.Uint16(b[2:])),
		Text:   strings.Map(printable, string(text[:min(len(text), maxText)])),
		Remote: true,
	}, true
}

// cutString cuts b after its first NUL.
func cutString(b []byte) (s, rest []byte, ok bool) {
	return bytes.Cut(b, []byte{0})
}

// foldEqual compares with a lower-case ASCII name.
func foldEqual(b []byte, name string) bool {
	if len(b) != len(name) {
		return false
	}
	for i, c := range b {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		if c != name[i] {
			return false
		}
	}
	return true
}

// number parses decimal digits, and stops counting at the largest number there is.
func number(b []byte) (n int64, ok bool) {
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		d := int64(c - '0')
		if n > (math.MaxInt64-d)/10 {
			n = math.MaxInt64
			continue
		}
		n = n*10 + d
	}
	return n, len(b) > 0
}
