package http2

import "encoding/binary"

// A frame is length(3) type(1) flags(1) stream(4) payload(length): rfc9113#section-4.1.
const (
	frameHeader = 9
	maxFrame    = 16 << 10 // the default of SETTINGS_MAX_FRAME_SIZE, which is what both of us use
)

const (
	typeData         = 0x0
	typeHeaders      = 0x1
	typePriority     = 0x2
	typeReset        = 0x3
	typeSettings     = 0x4
	typePushPromise  = 0x5
	typePing         = 0x6
	typeGoAway       = 0x7
	typeWindowUpdate = 0x8
	typeContinuation = 0x9
)

const (
	flagAck        = 0x1
	flagEndStream  = 0x1
	flagEndHeaders = 0x4
	flagPadded     = 0x8
	flagPriority   = 0x20
)

// The settings (rfc9113#section-6.5.2, rfc8441#section-3): identifier(2) value(4).
const (
	settingTableSize   = 0x1
	settingPush        = 0x2
	settingStreams     = 0x3
	settingWindow      = 0x4
	settingFrameSize   = 0x5
	settingHeaderList  = 0x6
	settingConnect     = 0x8
	defaultWindow      = 65535
	maxWindow          = 1<<31 - 1
	preface            = "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
	maxStreamID        = 1<<31 - 1
	maxStreamsUntold   = 100 // before the server has said how many it takes
	lastClientStreamID = maxStreamID - 2
)

type header struct {
	length int
	kind   byte
	flags  byte
	id     uint32
}

func parseHeader(b []byte) header {
	return header{
		length: int(b[0])<<16 | int(b[1])<<8 | int(b[2]),
		kind:   b[3],
		flags:  b[4],
		id:     binary.BigEndian.Uint32(b[5:]) & maxStreamID,
	}
}

func appendHeader(dst []byte, length int, kind, flags byte, id uint32) []byte {
	dst = append(dst, byte(length>>16), byte(length>>8), byte(length), kind, flags)
	return binary.BigEndian.AppendUint32(dst, id)
}

func appendSetting(dst []byte, id uint16, value uint32) []byte {
	return binary.BigEndian.AppendUint32(binary.BigEndian.AppendUint16(dst, id), value)
}

func appendWindowUpdate(dst []byte, id, n uint32) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(dst, 4, typeWindowUpdate, 0, id), n)
}

func appendGoAway(dst []byte, last uint32, code Code, reason string) []byte {
	dst = appendHeader(dst, 8+len(reason), typeGoAway, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, last)
	return append(binary.BigEndian.AppendUint32(dst, uint32(code)), reason...)
}

// pad returns the payload of a padded frame without its padding.
func pad(b []byte) ([]byte, bool) {
	if len(b) == 0 || int(b[0]) >= len(b) {
		return nil, false
	}
	return b[1 : len(b)-int(b[0])], true
}
