package tftp

import "bytes"

// EncodeNetASCII makes netascii (rfc764, as rfc1350#section-1 has it) of text whose lines end in LF: LF becomes CR LF, and CR becomes
// CR NUL. The zero value is ready.
type EncodeNetASCII struct{}

// Append appends the next piece of a text. It is at most twice as long then.
func (*EncodeNetASCII) Append(dst, src []byte) []byte {
	for {
		i := bytes.IndexAny(src, "\r\n")
		if i < 0 {
			return append(dst, src...)
		}
		dst = append(dst, src[:i]...)
		if src[i] == '\n' {
			dst = append(dst, '\r', '\n')
		} else {
			dst = append(dst, '\r', 0)
		}
		src = src[i+1:]
	}
}

// DecodeNetASCII is the inverse of EncodeNetASCII. A CR before anything else than LF and NUL stays. The zero value is ready.
type DecodeNetASCII struct {
	cr bool // the last byte was a CR, which is not appended yet
}

// Append appends the next piece of a text, which may have been cut anywhere.
func (d *DecodeNetASCII) Append(dst, src []byte) []byte {
	for len(src) > 0 {
		if d.cr {
			d.cr = false
			switch src[0] {
			case '\n':
				dst, src = append(dst, '\n'), src[1:]
			case 0:
				dst, src = append(dst, '\r'), src[1:]
			default:
				dst = append(dst, '\r')
			}
			continue
		}
		i := bytes.IndexByte(src, '\r')
		if i < 0 {
			return append(dst, src...)
		}
		dst, src = append(dst, src[:i]...), src[i+1:]
		d.cr = true
	}
	return dst
}

// End appends what the end of the text leaves: a CR, if that was the last byte.
func (d *DecodeNetASCII) End(dst []byte) []byte {
	if d.cr {
		d.cr = false
		dst = append(dst, '\r')
	}
	return dst
}
