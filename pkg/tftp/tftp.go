// Package tftp is TFTP without I/O: packets (RFC 1350), options (RFC 2347, 2348, 2349, 7440), names,
// netascii, and the state machine of one transfer, of either direction and in either role.
//
// A Transfer gets datagrams and the time, and calls the funcs of its Config. A server of one file:
//
//	req, err := tftp.ParseRequest(b)
//	if err != nil {
//		send(tftp.AppendError(nil, err.(*tftp.Error), len(b)))
//		return
//	}
//	t := tftp.Serve(tftp.Config{Send: send, Source: file, Closed: forget}, req, size, now)
//	for {
//		select {
//		case b := <-datagrams: // from the address that the request came from
//			t.Receive(b, now)
//		case <-after(t.Deadline()):
//			t.Tick(now)
//		}
//	}
//
// Invariants:
//   - Closed has a nil error only if all bytes are on the other side (sender) or have been given to Sink and confirmed
//     (receiver). A file that is cut short never looks whole.
//   - A datagram is answered by at most a window of datagrams, and in lockstep by at most one. What comes twice makes
//     nothing be sent twice for ever (the Sorcerer's Apprentice, rfc1123#section-4.2.3.1).
//   - An address that has not answered gets one block, or an option acknowledgement that is no longer than its request,
//     thrice. Nothing repeats that block but the request itself.
//   - A transfer holds no data: what may have to be sent again is asked for again, from Source, at or above Acked.
//   - Nothing that a peer sends makes it panic, allocate, or wait for ever.
package tftp

import "fmt"

// An Opcode is the first two bytes of a packet.
type Opcode uint16

const (
	OpRead      Opcode = 1 // | 1 | name | 0 | mode | 0 | { option | 0 | value | 0 }
	OpWrite     Opcode = 2 // | 2 | as of OpRead
	OpData      Opcode = 3 // | 3 | block, 16 bits | data
	OpAck       Opcode = 4 // | 4 | block, 16 bits |
	OpError     Opcode = 5 // | 5 | code, 16 bits | text | 0
	OpOptionAck Opcode = 6 // | 6 | { option | 0 | value | 0 }
)

// String returns what RFC 1350 calls it.
func (o Opcode) String() string {
	switch o {
	case OpRead:
		return "RRQ"
	case OpWrite:
		return "WRQ"
	case OpData:
		return "DATA"
	case OpAck:
		return "ACK"
	case OpError:
		return "ERROR"
	case OpOptionAck:
		return "OACK"
	}
	return fmt.Sprintf("opcode %d", uint16(o))
}

// A Mode is how the bytes of a file are represented.
type Mode uint8

const (
	Octet    Mode = iota // as they are
	NetASCII             // lines end in CR LF, and a CR is CR NUL: see EncodeNetASCII
)

// String returns the mode as it is in requests.
func (m Mode) String() string {
	if m == NetASCII {
		return "netascii"
	}
	return "octet"
}

// Bounds of what is in packets.
const (
	MaxRequest   = 512   // bytes of a request (rfc2347#section-3)
	MinBlock     = 8     // bytes of a block, at least (rfc2348)
	DefaultBlock = 512   // bytes of a block without blksize
	MaxBlock     = 65464 // bytes of a block, at most
	MaxWindow    = 65535 // blocks of a window, at most (rfc7440#section-3)
)

// Options are those of a request or, in a Transfer, those that are agreed. The zero value has none.
type Options struct {
	Block       int    // blksize, in bytes; 0: not there, so that blocks have DefaultBlock
	Window      int    // windowsize, in blocks; 0: not there, so 1
	Timeout     int    // timeout, in seconds, 1 to 255; 0: not there
	Size        int64  // tsize, in bytes, if HasSize. A reader asks for it with 0
	HasSize     bool   // there is a tsize
	Rollover    uint16 // if HasRollover: the number of the block after block 65535, 0 or 1
	HasRollover bool   // there is a rollover, which no RFC has and some servers and loaders have; without it: 0
}

// A Request is a parsed RRQ or WRQ.
type Request struct {
	Op      Opcode // OpRead or OpWrite
	Name    string // as it was sent: see CleanName
	Mode    Mode
	Options Options
}

// A Code is that of an ERROR (rfc1350#section-5, rfc2347#section-4).
type Code uint16

const (
	CodeUndefined Code = iota // see the text
	CodeNotFound              // file not found
	CodeAccess                // access violation
	CodeDiskFull              // disk full or allocation exceeded
	CodeIllegal               // illegal TFTP operation
	CodeUnknownID             // unknown transfer ID: there is no transfer with that port
	CodeExists                // file already exists
	CodeNoUser                // no such user
	CodeOptions               // option negotiation failed
)

// An Error ends a transfer, or a request. It is what an ERROR packet says.
type Error struct {
	Code   Code
	Text   string // for whoever sits at the peer
	Remote bool   // the peer said so
}

func (e *Error) Error() string {
	if e.Remote {
		return fmt.Sprintf("tftp: the peer answers error %d: %q", e.Code, e.Text)
	}
	return fmt.Sprintf("tftp: error %d: %s", e.Code, e.Text)
}

// Window returns how many blocks of so many bytes go into a window when so many are asked for: no more than 64, and no
// more than 64 KiB. Beyond that the buffers of receivers overflow, and each window costs a timeout.
func Window(block, asked int) int {
	return max(1, min(asked, 64, 65536/max(block, 1)))
}

// A State is what a Source says beside the bytes.
type State uint8

const (
	More   State = iota // here are as many bytes as were asked for, and the file may go on
	End                 // the file ends with these bytes, which may be as many as were asked for, or none
	Wait                // the bytes are not there yet: no bytes, Wake comes
	Failed              // they will never be there: no bytes, Fail comes
)

// A Source has the bytes that are sent.
type Source interface {
	// Append appends n bytes of the file from an offset on. What it has given once, it gives again, from Acked on.
	// It may call Wake and Fail of the Transfer that asks, but nothing else.
	Append(dst []byte, off int64, n int) (out []byte, state State)
}

// A Config is of one transfer. Its funcs are called by the methods of the Transfer, and Send also by Serve and Dial. Sink,
// Complete and Closed may call its methods, Send may not.
type Config struct {
	// Send has a datagram for the peer, which is lent. A request (OpRead, OpWrite) goes to the server's well-known port,
	// and makes it choose a new one; all else goes to where the peer's packets come from.
	Send func(b []byte)
	// Source is what is sent; nil for a receiver.
	Source Source
	// Sink gets what has come, in order, lent; nil for a sender. After Hold it may get as much as is left of the window.
	Sink func(b []byte)
	// Complete is told a receiver when Sink has had the last byte. Confirm or Fail follows, at once or later.
	Complete func()
	// Closed is called once, last, never by Serve or Dial. Nil: the other side has all of it (sender), or was told that we have
	// it (receiver). Otherwise an *Error, or ErrTimeout.
	Closed func(err error)
	// MaxBlock bounds the blocks that a server agrees to, in bytes. 0: MaxBlock.
	MaxBlock int
	// Unproven says that the address of a client may be forged: see Proven.
	Unproven bool
}

// Stats are the counters of one transfer.
type Stats struct {
	Blocks        int64 // blocks that went over, each once: acknowledged, or received in order
	Retransmitted int64 // packets that were sent once more
	Duplicates    int64 // packets that came and were nothing new
	Bytes         int64 // of the file, in those blocks
}
