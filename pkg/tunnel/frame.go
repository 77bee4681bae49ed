package tunnel

import "encoding/binary"

// A frame is an 8-byte header and its payload; docs/protocol.md has the layouts.
//
//	type and flags u8 | stream id u32 | payload length u24, big endian
type frameType uint8

const (
	frameOpen     frameType = 0x01 // stream header, at most 1024 bytes
	frameData     frameType = 0x02 // offset u64, at most 32 KiB of data; flagFIN
	frameCredit   frameType = 0x03 // received u64, limit u64
	frameReset    frameType = 0x04 // code u16
	frameResetAck frameType = 0x05 // empty
	framePing     frameType = 0x06 // value u64
	framePong     frameType = 0x07 // value u64
	frameRole     frameType = 0x08 // role u8
	frameEnd      frameType = 0x09 // empty
	frameGoAway   frameType = 0x0a // empty
	frameDatagram frameType = 0x0b // a datagram

	typeMask frameType = 0x1f // the upper three bits are flags
	flagFIN  frameType = 0x80 // on DATA: the stream ends after these bytes
)

const (
	headerSize     = 8
	dataHeaderSize = headerSize + 8 // with the offset
	creditSize     = headerSize + 16
	maxData        = 32 << 10 // data in one frame
	maxSmall       = headerSize + MaxHeader

	// initialWindow is what either side may send on a stream before it got a
	// CREDIT. A larger Config.Window is granted by a CREDIT at once.
	initialWindow = 64 << 10
)

// payloadBounds returns the least and the largest payload of a frame, and
// whether the type is known. The payload of an unknown type is skipped.
func payloadBounds(t frameType) (least, most int, known bool) {
	switch t {
	case frameOpen:
		return 0, MaxHeader, true
	case frameData:
		return 8, 8 + maxData, true
	case frameCredit:
		return 16, 16, true
	case frameReset:
		return 2, 2, true
	case frameResetAck, frameGoAway, frameEnd:
		return 0, 0, true
	case frameRole:
		return 1, 1, true
	case frameDatagram:
		return 0, MaxDatagram, true
	case framePing, framePong:
		return 8, 8, true
	}
	return 0, 1<<24 - 1, false
}

func putHeader(b []byte, t frameType, id uint32, length int) {
	binary.BigEndian.PutUint64(b, uint64(t)<<56|uint64(id)<<24|uint64(length))
}

func appendCredit(b []byte, id uint32, received, limit uint64) []byte {
	n := len(b)
	b = b[:n+creditSize]
	putHeader(b[n:], frameCredit, id, 16)
	binary.BigEndian.PutUint64(b[n+8:], received)
	binary.BigEndian.PutUint64(b[n+16:], limit)
	return b
}

func appendUint64(b []byte, t frameType, v uint64) []byte {
	n := len(b)
	b = b[:n+headerSize+8]
	putHeader(b[n:], t, 0, 8)
	binary.BigEndian.PutUint64(b[n+8:], v)
	return b
}

func appendReset(b []byte, id uint32, code Code) []byte {
	n := len(b)
	b = b[:n+headerSize+2]
	putHeader(b[n:], frameReset, id, 2)
	binary.BigEndian.PutUint16(b[n+8:], uint16(code))
	return b
}

func appendRole(b []byte, role Role) []byte {
	n := len(b)
	b = b[:n+headerSize+1]
	putHeader(b[n:], frameRole, 0, 1)
	b[n+8] = byte(role)
	return b
}

func appendEmpty(b []byte, t frameType, id uint32) []byte {
	n := len(b)
	b = b[:n+headerSize]
	putHeader(b[n:], t, id, 0)
	return b
}

// after reports whether stream id a was given out after b. Ids wrap around.
func after(a, b uint32) bool { return int32(a-b) > 0 }
