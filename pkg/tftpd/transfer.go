package tftpd

import (
	"errors"
	"net/netip"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// Transfer is one file on its way to a client, or from it. Share.Begin and Share.End see it.
type Transfer struct {
	// What was asked for. Immutable.
	Request tftp.Request
	Name    string // below the Share
	Visitor netip.AddrPort
	Began   time.Time

	// Immutable.
	share *Share
	port  *port
	lane  *lane
	local netip.Addr // of ours that was asked
	asked string     // the request as it came
	bare  bool       // it is a read without options, so that the answer is larger than it

	// standing is what the peer has shown. Who changes it decides: it goes to proven on the transfer's loop, and to displaced on the
	// port's.
	standing atomic.Uint32

	// Owned by the port's loop.
	source *source // until left
	links  [2]link
	known  bool // the port knows that it is no longer unproven
	left   bool // it is over, for the port
	stays  bool // and repeats its last ACK
}

// Of Transfer.standing.
const (
	unproven uint32 = iota
	proven
	displaced
)

// Of Transfer.links.
const (
	inAll = iota
	ofSource
)

func (t *Transfer) peer() evloop.PacketAddr {
	return evloop.PacketAddr{Remote: t.Visitor, Local: t.local}
}

// Options returns what is agreed, zero before that.
func (t *Transfer) Options() tftp.Options { return tftp.Options{} }

// Stats returns the counts of the transfer.
func (t *Transfer) Stats() tftp.Stats { return tftp.Stats{} }

// do does what a lane carries. On the transfer's loop.
func (t *Transfer) do(a action, b []byte) {
	if a == begin { // no store is asked yet
		t.lane.conn.WriteTo(tftp.AppendError(nil, errNotNow, len(t.asked)), t.peer())
		t.lane.tell(t, ended, nil)
	}
}

// asError returns the *tftp.Error that err is.
func asError(err error) *tftp.Error {
	if e, ok := errors.AsType[*tftp.Error](err); ok {
		return e
	}
	return errNotNow
}
