// Package http2 is HTTP/2 (RFC 9113) without I/O: bytes in, callbacks and bytes out. It is the server of visitors and
// the client of targets that speak HTTP/2 with prior knowledge.
//
//	e := new(http2.Endpoint)            // one for each loop: limits and shared buffers
//	c := e.Server(conn, handler)        // conn is an evloop.Conn, a tunnel.Stream, or what acts like them
//	used, err := c.Receive(b, now)      // in OnData of conn; what is not used is shown again
//	c.Flush()                           // at the end of the turn, if handler.OnOutput asked for it
//
//	func (h *handler) OnRequest(s *http2.Stream, req *http1.Request, end bool) {
//		s.SetHandler(h.newExchange(s, req)) // or forward.Splice(s, other, nil)
//	}
//
// Heads are http1.Request and http1.Response: exactly what HTTP/1.1 would have carried, or they are rejected. A Stream
// acts like a connection, so it can be spliced with one.
//
// # Invariants
//
//   - Everything is called on the loop that owns the Endpoint. Callbacks come from Receive, Flush and Close (and OnOutput
//     from whatever has something to send); they may call any method of any stream or connection but Receive. OnClose of a stream comes exactly once, and last.
//   - What is lent (requests, responses, trailers, data) is lent until the callback returns.
//   - Payload is not kept unless a handler pauses or leaves it, and then within the windows: 256 KiB a stream, and 1 MiB
//     a connection of a server. Those windows open again only by what handlers have used. They grow while that is fast,
//     by what Endpoint.Budget has, so all connections together keep no more than without, and the budget. A client's connection is
//     shared by requests of many, so it has a window for each stream alone; Held says what they keep.
//   - Nothing is queued without a bound. Payload waits in its stream, whose HighMark asks the writer to wait, and all
//     streams are full when a connection has 512 KiB queued; frames that a peer makes us answer are counted against its
//     budget, so that one which never reads gets GOAWAY. All bounds are at the top of conn.go.
//   - What time may pass is the owner's matter: for the preface and the settings (Ready), for a head (what Receive does
//     not use), for a stream that waits for its peer's window (Pending), for a connection without streams.
//   - The result does not depend on how the input was cut.
//   - A connection without streams holds its Conn, two tables of header compression that grow with use, and nothing else.
package http2
