// Package tunnel is the session between a private and a public relay: many
// flow-controlled byte streams over one link, which outlive the link.
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
//     bounds it. After a cut both sides say what they have ([Session.Attach]) and
//     the rest is sent again: no byte is lost or doubled, no stream is reset.
//   - Credits and acknowledgements are absolute: a late or repeated one is harmless.
//   - A reset is remembered until it is acknowledged, and is sent again after a
//     cut: it arrives once, with its code.
//   - OnData is lent the link's own bytes; a byte is copied only when its stream
//     is paused, or when its handler did not use it.
//   - OnClose is called exactly once for each stream, last. It, OnDrain, and what
//     follows a Resume or a SetHandler, come at the end of Receive or in Flush,
//     never inside the method that caused them.
package tunnel
