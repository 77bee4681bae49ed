package camera

import (
	"bytes"
	"encoding/binary"
	"errors"
)

// Packet is an RTP or RTCP packet of a track.
type Packet struct {
	Track  int
	RTCP   bool
	Data   []byte // all of it
	Frame  []byte // the same as an interleaved frame, with channel 2*Track for RTP and 2*Track+1 for RTCP
	Number uint32 // how many RTP packets of the track have come before it; those that are not passed on count

	// Of RTP.
	Sequence  uint16
	Timestamp uint32
	Marker    bool
	Payload   []byte // without padding

	// Begins says that the packet is the first one of an access unit, and Key, if it does, that a viewer can start
	// here.
	Begins, Key bool
}

// Access says what an access unit is to a viewer who has nothing before it.
type Access uint8

const (
	Undecided Access = iota // nothing of the picture itself has come
	Key                     // it can be decoded
	Delta                   // it cannot
)

const (
	// maxUnit is the length of an access unit. What is longer is cut, so that somebody asks now and then whether
	// all this can be sent.
	maxUnit = 2 << 20

	// maxAhead is how many bytes of parameter sets and the like may come ahead of a picture.
	maxAhead = 64 << 10
)

var errRTP = errors.New("this is no RTP packet")

// Reader tells the access units of a track apart. It is started by Reset.
type Reader struct {
	// Access is that of the unit under way.
	Access Access

	// Width and Height are those of the picture by its parameter sets, or else by the description.
	Width, Height int

	// InBand says that parameter sets have come along with pictures.
	InBand bool

	// Marks says that the end of units is marked, as it has been of one at least.
	Marks bool

	// Open says that the unit under way goes on, as far as is known.
	Open bool

	codec     string
	single    bool // each packet is a unit: there are no pictures
	timestamp uint32
	size      int    // of the unit under way
	set       bool   // it has a sequence parameter set
	recovery  bool   // and says that it is a point of recovery
	sps       []byte // the last one
	donl      bool   // H.265: units carry decoding order numbers
}

// Reset begins t from anew.
func (r *Reader) Reset(t *Track) {
	*r = Reader{Width: t.Width, Height: t.Height, codec: t.Codec, single: !t.IsVideo()}
	for _, line := range t.sets {
		r.donl = r.donl || t.Codec == "H265" && maxDON(line)
	}
}

// Read reads the RTP packet p.Data, sets the fields of p that are of RTP, and Begins. If there is an error, it is not one.
func (r *Reader) Read(p *Packet) error {
	if err := p.parse(); err != nil {
		return err
	}
	p.Begins = r.begins(p)
	if p.Begins {
		r.Access, r.size, r.set, r.recovery = Undecided, 0, false, false
		r.timestamp = p.Timestamp
	}
	r.size += len(p.Data)
	switch {
	case r.single:
		r.Access = Key
		return nil
	case r.codec == "JPEG":
		r.lookJPEG(p.Payload)
	case r.Access == Undecided:
		r.look(p.Payload)
	}
	if r.Access == Undecided && r.size > maxAhead {
		r.Access = Delta
	}
	r.Open = !p.Marker || r.Access == Undecided
	r.Marks = r.Marks || p.Marker
	return nil
}

// begins reports whether p is the first packet of a unit.
func (r *Reader) begins(p *Packet) bool {
	switch {
	case r.size == 0, r.single, r.size > maxUnit:
		return true
	case r.Access == Undecided: // the picture has not come yet
		return false
	case !r.Open, p.Timestamp != r.timestamp:
		return true
	}
	return r.heads(p.Payload)
}

// heads reports whether a packet, which follows one with a part of a picture, is the first one of a new unit whatever
// its timestamp is.
func (r *Reader) heads(b []byte) bool {
	switch r.codec {
	case "H264": // access unit delimiter, sequence parameter set
		return len(b) > 0 && (b[0]&0x1f == 9 || b[0]&0x1f == 7)
	case "H265": // and video parameter set
		return len(b) > 1 && (kind265(b) == 35 || kind265(b) == 32 || kind265(b) == 33)
	}
	return false
}

// look decides about the unit, if it can.
func (r *Reader) look(b []byte) {
	switch r.codec {
	case "H264":
		r.look264(b)
	case "H265":
		r.look265(b)
	case "MPEG4":
		r.lookMPEG4(b)
	case "MPV":
		r.lookMPV(b)
	case "VP8":
		r.lookVP8(b)
	case "VP9":
		r.lookVP9(b)
	case "AV1":
		r.lookAV1(b)
	default:
		r.Access = Key
	}
}

// parse reads the head (RFC 3550, section 5.1).
func (p *Packet) parse() error {
	b := p.Data
	if len(b) < 12 || b[0]>>6 != 2 {
		return errRTP
	}
	p.Marker = b[1]&0x80 != 0
	p.Sequence = binary.BigEndian.Uint16(b[2:])
	p.Timestamp = binary.BigEndian.Uint32(b[4:])
	n := 12 + 4*int(b[0]&15)
	if b[0]&0x10 != 0 {
		if len(b) < n+4 {
			return errRTP
		}
		n += 4 + 4*int(binary.BigEndian.Uint16(b[n+2:]))
	}
	end := len(b)
	if b[0]&0x20 != 0 {
		end -= int(b[end-1])
	}
	if n > end {
		return errRTP
	}
	p.Payload = b[n:end]
	return nil
}

// lookJPEG reads the size, in blocks of 8 (RFC 2435, section 3.1).
func (r *Reader) lookJPEG(b []byte) {
	r.Access = Key
	if len(b) >= 8 && b[6] != 0 && b[7] != 0 {
		r.Width, r.Height = 8*int(b[6]), 8*int(b[7])
	}
}

// lookMPEG4 looks for the start of a VOP (RFC 6416; ISO/IEC 14496-2, 6.2.5).
func (r *Reader) lookMPEG4(b []byte) {
	i := bytes.Index(b, []byte{0, 0, 1, 0xb6})
	switch {
	case i >= 0 && i+4 < len(b):
		r.is(b[i+4]>>6 == 0)
	case len(b) < 4 || b[0] != 0 || b[1] != 0 || b[2] != 1: // the middle of something
		r.Access = Delta
	}
}

// lookMPV reads the picture type of MPEG-1 and 2 (RFC 2250, section 3.4).
func (r *Reader) lookMPV(b []byte) {
	if len(b) >= 4 {
		r.is(b[2]&7 == 1)
	}
}

// lookVP8 reads the payload descriptor (RFC 7741, section 4.2) and the first byte of the frame.
func (r *Reader) lookVP8(b []byte) {
	if len(b) < 1 {
		return
	}
	first := b[0]&0x10 != 0 && b[0]&7 == 0 // the start of partition 0
	n := 1
	if b[0]&0x80 != 0 && len(b) > 1 {
		x := b[1]
		n = 2
		if x&0x80 != 0 && len(b) > n { // the picture's number, of one byte or two
			n += 1 + int(b[n]>>7)
		}
		if x&0x40 != 0 {
			n++
		}
		if x&0x30 != 0 {
			n++
		}
	}
	r.is(first && n < len(b) && b[n]&1 == 0)
}

// lookVP9 reads the payload descriptor (RFC 9628, section 4.2), and the head of the frame, as some senders do not say in the
// former what is predicted.
func (r *Reader) lookVP9(b []byte) {
	if len(b) == 0 {
		return
	}
	d, n := b[0], 1
	if d&0x48 != 0x08 || d&0x02 != 0 { // predicted, or not the start; the structure of layers comes with key frames
		r.is(d&0x48 == 0x08)
		return
	}
	if d&0x80 != 0 && n < len(b) { // the picture's number, of one byte or two
		n += 1 + int(b[n]>>7)
	}
	if d&0x20 != 0 { // the layer, and unless flexible an index
		n += 2 - int(d>>4&1)
	}
	if n >= len(b) {
		r.Access = Delta
		return
	}
	// frame_marker 2, profile 2, show_existing_frame 1, frame_type 1 (0: key); with profile 3 one is reserved between.
	head := b[n]
	if head&0x30 == 0x30 {
		head <<= 1
	}
	r.is(head&0x0c == 0)
}

// lookAV1 reads the aggregation header: N says that a coded video sequence begins.
func (r *Reader) lookAV1(b []byte) {
	if len(b) > 0 {
		r.is(b[0]&0x08 != 0)
	}
}

func (r *Reader) is(key bool) {
	r.Access = Delta
	if key {
		r.Access = Key
	}
}
