package http3

import "github.com/quic-go/quic-go/quicvarint"

// Types of unidirectional streams (rfc9114#section-6.2, rfc9204#section-4.2).
const (
	streamControl = 0x00
	streamPush    = 0x01
	streamEncoder = 0x02
	streamDecoder = 0x03
)

// Settings (rfc9114#section-7.2.4.1, rfc9220#section-3).
const (
	settingMaxSection = 0x06
	settingConnect    = 0x08
)

const (
	// maxSettings bounds a SETTINGS frame.
	maxSettings = 1 << 10

	// maxNumber bounds a frame that has one number.
	maxNumber = 8
)

// AppendControl appends what the server's control stream begins with.
func AppendControl(dst []byte) []byte {
	var s []byte
	s = quicvarint.Append(s, settingMaxSection)
	s = quicvarint.Append(s, MaxSection)
	s = quicvarint.Append(s, settingConnect)
	s = quicvarint.Append(s, 1)
	dst = append(dst, streamControl)
	return append(appendHead(dst, frameSettings, len(s)), s...)
}

// AppendGoAway appends the frame that tells the client which requests are the first that will not be
// looked at: the stream with that id, and later ones.
func AppendGoAway(dst []byte, id uint64) []byte {
	dst = appendHead(dst, frameGoAway, quicvarint.Len(id))
	return quicvarint.Append(dst, id)
}

// Peer is what a client sends beside its requests: it knows which streams there may be once.
type Peer struct {
	control, encoder, decoder bool
}

// Open returns a reader for a unidirectional stream of that type; nil for one that is not known, which
// is not to be read.
func (p *Peer) Open(kind uint64) (*Control, error) {
	var once *bool
	switch kind {
	case streamControl:
		once = &p.control
	case streamEncoder:
		once = &p.encoder
	case streamDecoder:
		once = &p.decoder
	case streamPush:
		return nil, violation(StreamCreationError, "a client pushes")
	default:
		return nil, nil
	}
	if *once {
		return nil, violation(StreamCreationError, "a critical stream twice")
	}
	*once = true
	return &Control{stream: kind}, nil
}

// Control reads a client's control stream, or one of QPACK, until the connection ends. There is nothing
// on them that the server has to do, but things that must not be.
type Control struct {
	stream   uint64
	settings bool // SETTINGS has come
	head     frameHead
	inside   bool
	kind     uint64
	left     uint64
	frame    []byte // that is looked at as a whole
	push     uint64 // the last MAX_PUSH_ID
	away     uint64 // the last GOAWAY, and one more
}

// EOF is the end of the stream.
func (c *Control) EOF() error {
	return violation(ClosedCriticalStream, "a critical stream has ended")
}

// Read takes all of b.
func (c *Control) Read(b []byte) error {
	switch c.stream {
	case streamEncoder:
		// Without a dynamic table there is one instruction: that it has no room.
		for _, i := range b {
			if i != 0x20 {
				return violation(EncoderStreamError, "an instruction for a dynamic table")
			}
		}
		return nil
	case streamDecoder:
		return c.cancellations(b)
	}
	for len(b) > 0 {
		if !c.inside {
			kind, length, n, ok := c.head.take(b)
			b = b[n:]
			if !ok {
				return nil
			}
			if err := c.begin(kind, length); err != nil {
				return err
			}
		}
		n := int(min(uint64(len(b)), c.left))
		if c.whole() {
			c.frame = append(c.frame, b[:n]...)
		}
		b = b[n:]
		c.left -= uint64(n)
		if c.inside = c.left > 0; !c.inside {
			err := c.end()
			c.frame = nil
			if err != nil {
				return err
			}
		}
	}
	return nil
}

// whole reports whether a frame is looked at.
func (c *Control) whole() bool {
	switch c.kind {
	case frameSettings, frameGoAway, frameMaxPushID, frameCancelPush:
		return true
	}
	return false
}

// begin looks at the head of a frame.
func (c *Control) begin(kind, length uint64) error {
	c.kind, c.left, c.inside = kind, length, true
	switch {
	case !c.settings && kind != frameSettings:
		return violation(MissingSettings, "a control stream does not begin with SETTINGS")
	case c.settings && kind == frameSettings, kind == frameData, kind == frameHeaders, kind == framePushPromise, ofHTTP2(kind):
		return violation(FrameUnexpected, "unexpected frame on a control stream")
	case kind == frameSettings && length > maxSettings:
		return violation(ExcessiveLoad, "too many settings")
	case kind == framePushPriority: // nothing is pushed, so there is no such id: rfc9218#section-7.2
		return violation(IDError, "a priority of a push")
	case kind != frameSettings && c.whole() && (length == 0 || length > maxNumber):
		return violation(FrameError, "a frame has not the length of a number")
	}
	c.settings = true
	return nil
}

// end looks at a frame.
func (c *Control) end() error {
	if c.kind == frameSettings {
		return settings(c.frame)
	}
	if !c.whole() {
		return nil
	}
	v, n, err := quicvarint.Parse(c.frame)
	switch {
	case err != nil || n != len(c.frame):
		return violation(FrameError, "a frame has not the length of its number")
	case c.kind == frameCancelPush: // rfc9114#section-7.2.3
		return violation(IDError, "a push is cancelled that never was")
	case c.kind == frameMaxPushID && v < c.push, c.kind == frameGoAway && c.away > 0 && v >= c.away:
		return violation(IDError, "an id goes the wrong way")
	case c.kind == frameMaxPushID:
		c.push = v
	case c.kind == frameGoAway:
		c.away = v + 1
	}
	return nil
}

// settings checks the payload of a SETTINGS frame. None of a client's matters to a server that encodes
// fields without a dynamic table and pushes nothing.
func settings(b []byte) error {
	seen := make(map[uint64]bool)
	for len(b) > 0 {
		id, n, err := quicvarint.Parse(b)
		if err != nil {
			return violation(FrameError, "a SETTINGS frame ends within a setting")
		}
		b = b[n:]
		value, n, err := quicvarint.Parse(b)
		if err != nil {
			return violation(FrameError, "a SETTINGS frame ends within a setting")
		}
		b = b[n:]
		switch {
		case seen[id]:
			return violation(SettingsError, "a setting twice")
		case 2 <= id && id <= 5: // HTTP/2's: rfc9114#section-7.2.4.1
			return violation(SettingsError, "a setting of HTTP/2")
		case id == settingConnect && value > 1: // rfc8441#section-3
			return violation(SettingsError, "a setting that is neither 0 nor 1")
		}
		seen[id] = true
	}
	return nil
}

// cancellations takes what a decoder sends: that it has given up reading a stream (rfc9204#section-4.4.2).
// The rest is about a dynamic table.
func (c *Control) cancellations(b []byte) error {
	for _, i := range b {
		switch {
		case c.left > 0: // within a number of 6 bits and more
			if c.left--; i < 0x80 {
				c.left = 0
			} else if c.left == 0 {
				return violation(DecoderStreamError, "a number is too long")
			}
		case i&0xc0 != 0x40:
			return violation(DecoderStreamError, "an acknowledgement of a dynamic table")
		case i&0x3f == 0x3f:
			c.left = 9
		}
	}
	return nil
}
