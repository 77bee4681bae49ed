// Package evloop is the event-driven core that every server of Culvert runs on.
//
// A [Core] has one [Loop] per processor. A [Conn] belongs to exactly one loop: every method of a Conn, every
// callback of its [Handler] and every Timer runs on that loop, so a protocol is a plain state machine without
// locks. A [PacketConn], which is a UDP socket, likewise. Only [Loop.Post] may be called from anywhere.
//
//	core, _ := evloop.New(evloop.Config{})
//	defer core.Close()
//	core.Listen("tcp", "127.0.0.1:7", func(c *evloop.Conn) { c.SetHandler(&echo{c}) })
//
//	type echo struct{ c *evloop.Conn }
//
//	func (e *echo) OnData(b []byte) int {
//		e.c.Write(b)
//		if e.c.Pending() > e.c.HighMark() {
//			e.c.Pause()
//		}
//		return len(b)
//	}
//	func (e *echo) OnEOF()        { e.c.CloseWrite() }
//	func (e *echo) OnDrain()      { e.c.Resume() }
//	func (e *echo) OnClose(error) {}
//
// # Invariants
//
//   - A silent connection holds no goroutine, no buffer and no runtime timer: only its Conn (and crypto/tls state).
//   - Bytes given to OnData are lent until it returns. What the handler does not use is kept, at most [MaxKept] bytes.
//   - Write never blocks and never fails; what the socket does not take is queued. A writer that finds Pending above
//     HighMark pauses the source of its bytes until OnDrain. Above a hard mark the connection's own reads stop as
//     well, so that a peer which never reads cannot make us queue answers (TLS KeyUpdate included).
//   - Everything written in one turn leaves in one system call, unless it is more than [flushSize].
//   - OnClose comes exactly once, is the last call, and comes before the descriptor's number is free for reuse.
//     Events carry a generation, so that a late one never meets a connection that reuses the slot.
//   - An end of stream in one direction never closes the other.
//   - A turn serves each connection a bounded number of bytes, then the next one; datagrams likewise.
//   - A datagram arrives whole or not at all. What a turn sends leaves at its end, some in one system call; what the
//     system does not take then is dropped and counted, never queued.
//
// # Files
//
// loop.go is the turn. conn.go is one connection's reading, writing and closing. socket.go says what the loop needs
// of a socket; sock_fd.go drives a descriptor without blocking, sock_net.go drives any net.Conn by a pair of
// goroutines (the portable backend); sock_end.go makes a connection of what acts like one. poll.go is the contract that each poll_*.go keeps. tls.go is the only file that
// knows how crypto/tls is driven from a loop, hello.go what comes before that. packet.go is UDP; packet_fd.go with packet_linux.go (recvmmsg, sendmmsg)
// or packet_kqueue.go drives a descriptor, packet_net.go any net.PacketConn. tune.go asks TCP about its path.
package evloop
