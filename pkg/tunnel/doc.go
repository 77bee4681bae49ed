// Package tunnel is the session between a private and a public relay: many
// flow-controlled byte streams, and datagrams, over one or several links, which the
// session outlives.
//
// The package does no I/O. Bytes of a [Link], and the time, go in; events
// (a [Handler] of each [Stream]) and batches of frames ([Link.Send]) come out.
// It has no goroutine, no lock, no clock and no socket: a [Session] and all its
// streams belong to one owner, an event loop as a rule, and every method is
// called by that owner alone.
//
//	s := tunnel.New(tunnel.Config{Client: true, Accept: accept, Wake: wake}, now)
//	s.Attach(link, role, now)        // the link is authenticated
//	err := s.Receive(link, b, now)   // whatever came, in any fragments
//	s.Flush(now)                     // at the end of the turn: one batch, few writes
//	timer.Reset(s.Next())            // then s.Advance(now)
//
//	st, err := s.Open(header)
//	st.SetHandler(h)
//	st.Write(b)
//
// The wire is described byte by byte in docs/protocol.md.
//
// # Invariants
//
//   - Every byte of a stream has an absolute 64-bit offset. A receiver drops what
//     it already has, so re-sending is always harmless; a gap is a violation.
//   - What is sent is kept until the peer says it received it. The peer's window
//     bounds it. When a link is lost the rest is sent again on another one, or on the
//     next: no byte is lost or doubled, no stream is reset.
//   - A stream's DATA is in flight on one path at a time, a link or a lane of it. The
//     sender alone chooses it, and changes it only with nothing in flight, or by going
//     back to what is acknowledged (path.go has all of the choice).
//   - All but DATA and datagrams is harmless when it comes twice, late or out of order,
//     and is sent again when it may be lost (resume.go).
//   - Credits and acknowledgements are absolute: a late or repeated one is harmless.
//   - A reset is remembered until it is acknowledged, and is sent again: it arrives
//     once, with its code.
//   - OnData is lent the link's own bytes; a byte is copied only when its stream
//     is paused, or when its handler did not use it.
//   - OnClose is called exactly once for each stream, last. It, OnDrain, and what
//     follows a Resume or a SetHandler, come at the end of Receive or in Flush,
//     never inside the method that caused them.
package tunnel
