package camera

import (
	"bytes"
	"encoding/binary"
	"strconv"
	"strings"

	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
)

// look264 looks at the NAL units of a packet (RFC 6184, section 5.4).
func (r *Reader) look264(b []byte) {
	if len(b) == 0 {
		return
	}
	switch b[0] & 0x1f {
	case 24: // STAP-A: [size 2, unit]*
		r.each264(b[1:], 0)
	case 25: // STAP-B: [order 2] and the same
		r.each264(b[min(3, len(b)):], 0)
	case 26: // MTAP16: [order 2], [size 2, order 1, time 2, unit]*
		r.each264(b[min(3, len(b)):], 3)
	case 27: // MTAP24
		r.each264(b[min(3, len(b)):], 4)
	case 28: // FU-A: [start 1 bit, end 1, reserved 1, type 5], part
		r.part264(b, 2)
	case 29: // FU-B: [order 2] after that
		r.part264(b, 4)
	default:
		r.unit264(b)
	}
}

// each264 looks at those of an aggregate, which have skip bytes between their size and themselves.
func (r *Reader) each264(b []byte, skip int) {
	for len(b) >= 2 && r.Access == Undecided {
		n := int(binary.BigEndian.Uint16(b))
		b = b[2:]
		if len(b) < skip {
			return
		}
		b = b[skip:]
		if n == 0 || n > len(b) {
			return
		}
		r.unit264(b[:n])
		b = b[n:]
	}
}

// part264 looks at a fragment.
func (r *Reader) part264(b []byte, head int) {
	if len(b) <= head {
		return
	}
	kind := b[1] & 0x1f
	switch {
	case b[1]&0x80 != 0:
		r.nal264(kind, b[head:])
	case kind >= 1 && kind <= 5: // its start is lost
		r.Access = Delta
	}
}

func (r *Reader) unit264(b []byte) {
	if len(b) < 1 {
		return
	}
	kind := b[0] & 0x1f
	if kind == 7 {
		r.sequence(b, size264)
	}
	r.nal264(kind, b[1:])
}

// nal264 looks at a NAL unit of that type, of which body may be the beginning only (ITU-T H.264, table 7-1).
func (r *Reader) nal264(kind byte, body []byte) {
	switch kind {
	case 5: // a slice of an IDR picture
		r.is(isFirst(body))
	case 1, 2:
		r.is(isFirst(body) && r.set && (r.recovery || isIntra(body)))
	case 3, 4: // the rest of a picture whose beginning is lost
		r.Access = Delta
	case 6:
		r.recovery = r.recovery || hasRecovery(body)
	case 7:
		r.set = true
	}
}

// sequence notes a sequence parameter set.
func (r *Reader) sequence(b []byte, size func([]byte) (int, int)) {
	r.InBand = true
	if len(b) > maxSet || bytes.Equal(b, r.sps) {
		return
	}
	r.sps = append(r.sps[:0], b...)
	if w, h := size(b); w > 0 {
		r.Width, r.Height = w, h
	}
}

// isFirst reports whether a slice is the first one of its picture: both H.264, in first_mb_in_slice, and H.265 say it in the
// first bit.
func isFirst(slice []byte) bool { return len(slice) > 0 && slice[0]&0x80 != 0 }

// isIntra reports whether all slices of the picture of a slice are I slices: first_mb_in_slice is skipped, and slice_type is
// 7, or 2, which says it of this one (7.3.3, 7.4.3). Some cameras have no IDR pictures but their first.
func isIntra(b []byte) bool {
	w := bits{b: b[:min(len(b), 16)]}
	w.golomb()
	kind := w.golomb()
	return !w.over && (kind == 2 || kind == 7)
}

// bits reads bits.
type bits struct {
	b    []byte
	n    int
	over bool // it has read more than there is
}

func (w *bits) bit() uint32 {
	if w.n >= 8*len(w.b) {
		w.over = true
		return 0
	}
	v := w.b[w.n/8] >> (7 - w.n%8) & 1
	w.n++
	return uint32(v)
}

// golomb reads an Exp-Golomb code (9.1).
func (w *bits) golomb() uint32 {
	zeros := 0
	for !w.over && zeros < 32 && w.bit() == 0 {
		zeros++
	}
	v := uint32(0)
	for range zeros {
		v = v<<1 | w.bit()
	}
	return 1<<zeros - 1 + v
}

// hasRecovery reports whether a SEI unit has a recovery point, message 6 (7.3.2.3.1, D.1.8).
func hasRecovery(b []byte) bool {
	b = h264.EmulationPreventionRemove(b[:min(len(b), maxSet)])
	for len(b) >= 2 && b[0] != 0x80 {
		var kind, size int
		if kind, b = seiNumber(b); b == nil {
			return false
		}
		if size, b = seiNumber(b); b == nil {
			return false
		}
		if kind == 6 {
			return true
		}
		if size > len(b) {
			return false
		}
		b = b[size:]
	}
	return false
}

// seiNumber reads a number that is the sum of bytes, the first below 255 being the last. The rest is nil if there is none.
func seiNumber(b []byte) (n int, rest []byte) {
	for i, c := range b {
		n += int(c)
		if c != 0xff {
			return n, b[i+1:]
		}
	}
	return 0, nil
}

func kind265(b []byte) byte { return b[0] >> 1 & 0x3f }

// maxDON reports whether a line of parameters says that NAL units carry decoding order numbers (RFC 7798, section 7.1).
func maxDON(line string) bool {
	_, v, ok := strings.Cut(strings.ToLower(line), "sprop-max-don-diff=")
	v, _, _ = strings.Cut(v, ";")
	n, err := strconv.Atoi(strings.TrimSpace(v))
	return ok && err == nil && n > 0
}

// look265 looks at the NAL units of a packet (RFC 7798, section 4.4).
func (r *Reader) look265(b []byte) {
	if len(b) < 3 {
		return
	}
	donl := 0
	if r.donl {
		donl = 2
	}
	switch kind265(b) {
	case 48: // aggregate: [order 2], [size 2, unit]*, later ones with an order of one byte
		b = b[min(2+donl, len(b)):]
		for len(b) >= 2 && r.Access == Undecided {
			n := int(binary.BigEndian.Uint16(b))
			b = b[2:]
			if n > len(b) {
				return
			}
			r.unit265(b[:n])
			b = b[n:]
			if r.donl && len(b) > 0 {
				b = b[1:]
			}
		}
	case 49: // fragment: [start 1 bit, end 1, type 6]
		if b[2]&0x80 != 0 {
			r.nal265(b[2]&0x3f, b[3:])
		} else if b[2]&0x3f < 32 { // its start is lost
			r.Access = Delta
		}
	case 50: // PACI: [A 1 bit, type 6, …]
		r.Access = Delta
		if kind := b[2] >> 1 & 0x3f; kind >= 16 && kind <= 23 {
			r.Access = Key
		}
	default:
		if r.donl && len(b) >= 4 {
			b = append(b[:2:2], b[4:]...)
		}
		r.unit265(b)
	}
}

func (r *Reader) unit265(b []byte) {
	if len(b) < 2 {
		return
	}
	if kind265(b) == 33 {
		r.sequence(b, size265)
	}
	r.nal265(kind265(b), b[2:])
}

// nal265 looks at a NAL unit of that type (ITU-T H.265, table 7-1).
func (r *Reader) nal265(kind byte, body []byte) {
	switch {
	case kind >= 16 && kind <= 23: // BLA, IDR, CRA, and what may come of them
		r.is(isFirst(body))
	case kind < 32: // another picture
		r.Access = Delta
	}
}
