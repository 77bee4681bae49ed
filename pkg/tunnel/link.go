package tunnel

import "time"

// A Role says what a session prefers a link for. A link of another role does it all
// when there is no better one.
type Role uint8

const (
	RoleInteractive Role = iota // control frames, and streams that move little
	RoleBulk                    // streams that move much
	RoleDatagram                // datagrams; streams only when there is nothing else
	RoleNone                    // being drained: nothing new goes on it
)

func (r Role) String() string {
	return [...]string{"interactive", "bulk", "datagram", "none"}[min(r, RoleNone)]
}

// A Link carries the frames of a session in order: a WebSocket, or a simulation.
type Link interface {
	// Send takes one batch of whole frames. b[:Headroom] is the link's own
	// scratch, b[Headroom:] is the message. b is lent until the return and may
	// be modified.
	Send(b []byte)
	// Room returns how many bytes the next batch may have, Headroom not counted.
	// 0 or less: the owner calls Session.Drained when there is room again. A
	// frame that does not fit is sent nevertheless, alone.
	Room() int
	// Close gives the link up. The owner calls Session.Lost some time after.
	Close(err error)
}

// A LaneLink is a Link whose streams need not wait for each other (QUIC).
type LaneLink interface {
	Link
	// Lanes reports whether the link has lanes and datagrams at all. If not, it is
	// used as any other. It does not change.
	Lanes() bool
	// OpenLane returns an ordered channel for the DATA of one stream, or nil if
	// there is none to be had now.
	OpenLane() Lane
	// SendDatagram sends a datagram of stream id. b is lent until the return.
	// false: it does not fit, or is not possible; then it goes as a frame.
	SendDatagram(id uint32, b []byte) bool
}

// A Lane is an ordered channel of a LaneLink. It ends with its link, or with Close.
type Lane interface {
	// Send and Room are as those of Link. After Room returned 0 or less the
	// owner calls Session.LaneDrained when there is room.
	Send(b []byte)
	Room() int
	// Close ends the lane behind what was sent on it.
	Close()
}

// LinkStats is a snapshot of a link.
type LinkStats struct {
	Link           Link
	Role           Role
	RTT            time.Duration // smoothed; 0 until a ping was answered
	Since          time.Time     // it was attached
	Suspect        bool          // something is owed, and nothing comes
	Sent, Received uint64        // bytes of frames, lanes and datagrams included
	Asked          bool          // a ping is not answered
}
