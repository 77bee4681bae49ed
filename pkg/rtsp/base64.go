package rtsp

import "errors"

// Base64 decodes what comes up in a tunnel over HTTP, as it comes: quanta of four, padding at the end of
// any of them (clients encode each message by itself), white space anywhere. Its zero value is at the
// start.
type Base64 struct {
	n   uint8 // characters of the current quantum
	pad uint8 // of those, '='
	acc uint32
}

// Decode appends to dst what src has; the two must not overlap, because a quantum may have begun before src.
// After an error, which says that src is not base64, nothing more can be decoded.
func (d *Base64) Decode(dst, src []byte) ([]byte, error) {
	for _, c := range src {
		v := sextet[c]
		switch {
		case v < 64 && d.pad == 0:
		case c == '=' && d.n >= 2:
			d.pad++
			v = 0
		case c == '\r' || c == '\n' || c == ' ' || c == '\t':
			continue
		default:
			return dst, errors.New("rtsp: not base64")
		}
		d.acc = d.acc<<6 | uint32(v)
		if d.n++; d.n < 4 {
			continue
		}
		switch d.pad {
		case 0:
			dst = append(dst, byte(d.acc>>16), byte(d.acc>>8), byte(d.acc))
		case 1:
			dst = append(dst, byte(d.acc>>16), byte(d.acc>>8))
		case 2:
			dst = append(dst, byte(d.acc>>16))
		}
		*d = Base64{}
	}
	return dst, nil
}

// sextet maps characters to their six bits, and others to 0xff.
var sextet = func() (t [256]byte) {
	for i := range t {
		t[i] = 0xff
	}
	for i, c := range []byte("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789+/") {
		t[c] = byte(i)
	}
	return t
}()
