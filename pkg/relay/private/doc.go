// Package private is the private relay: it dials out to the public relays, keeps one session with each of
// them across the links that come and go, and joins every stream that arrives to the target that its own
// configuration names.
//
//	r := &private.Relay{
//		Core: core, Relays: []string{"relay.example.com:443"}, Site: "office", Key: key, Services: services,
//	}
//	err := r.Run(ctx) // until ctx ends and the streams have finished, or a relay refuses for good
//
// A session is a peer (peer.go). It has a line (line.go) for each link that it is to have: so many WebSockets, QUIC,
// or both, between which a choice is made by measurement (choice.go).
//
// A byte takes this way: link → [tunnel.Session] → accept (stream.go) → the target's connection, joined by
// [forward.Splice]; all of it on the loop that owns the session.
//
// Invariants: the peer names a service, never an address; a stream and its target's connection belong to the
// loop of their session; a silent stream holds no goroutine, buffer or timer here.
package private
