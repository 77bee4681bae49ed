package tunnel

// A Link carries the frames of a session in order: a WebSocket, or a simulation.
type Link interface {
	// Send takes one batch of whole frames. b[:Headroom] is the link's own
	// scratch, b[Headroom:] is the message. b is lent until the return and may
	// be modified.
	Send(b []byte)
	// Writable reports whether the link takes another batch now. If not, its
	// owner calls Session.Drained when it does.
	Writable() bool
	// Close gives the link up. The owner calls Session.Lost some time after.
	Close(err error)
}
