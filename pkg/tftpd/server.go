package tftpd

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

const (
	defaultTransfers  = 16384
	defaultPerAddress = 256

	unprovenShare = 4   // of MaxTransfers, one of this many may be unproven at once
	maxWrites     = 512 // unproven writes at once: each has a new file open at its target
	maxBare       = 64  // unproven reads without options of an address: each has cost a DATA

	bareRate   = 1 << 20 // bytes a second that go to unproven addresses beyond what they have sent
	bareBurst  = 2 << 20
	errorRate  = 1000 // ERRORs a second that answer what belongs to no transfer
	errorBurst = 1000

	pauseTime = time.Second      // a transfer that stands still for so long begins anew when its request comes again
	openTime  = 30 * time.Second // for a file to be opened, since the request came for the last time
	stallTime = 2 * time.Minute  // for a store to have more, or to take more
	safeTime  = 11 * time.Minute // for it to say that a file is safe: what goes on to another server goes there when it is whole

	maxTries = 1024 // of Server.Ports, for one transfer
)

// What is said to clients. Nothing of ours is in it.
var (
	errTooMany    = &tftp.Error{Code: tftp.CodeUndefined, Text: "Too many transfers. Try again later."}
	errClosing    = &tftp.Error{Code: tftp.CodeUndefined, Text: "The server is closing. Try again later."}
	errNotNow     = &tftp.Error{Code: tftp.CodeUndefined, Text: "The file cannot be had now."}
	errNoWrite    = &tftp.Error{Code: tftp.CodeAccess, Text: "This file may not be written."}
	errTooLarge   = &tftp.Error{Code: tftp.CodeDiskFull, Text: "The file is too large."}
	errOtherSize  = &tftp.Error{Code: tftp.CodeUndefined, Text: "The file has another size than was announced."}
	errUnknownTID = &tftp.Error{Code: tftp.CodeUnknownID, Text: "Unknown transfer."}
)

// Share is files under a prefix, of one service. It belongs to Loop, and so does what its fields are called with. They are set
// before it is found for the first time.
type Share struct {
	Loop    *evloop.Loop
	Store   Store
	Write   bool  // files may be written; whether a new one may replace an old one is the Store's business
	MaxSize int64 // bytes of a file that is written. 0: no bound

	// Admit decides about a visitor, for each transfer. An error refuses it. nil: everybody.
	Admit func(visitor netip.AddrPort) *tftp.Error

	// Begin is told of each transfer that was admitted, right then, and End of the same ones when they are over: err is
	// nil if the file has arrived whole. Either may be nil. A transfer that Core.Close cuts off has no End.
	Begin func(t *Transfer)
	End   func(t *Transfer, err error)

	// Library has the files that are being read. nil: none of them is shared.
	Library *Library

	reads *Library // on Loop, when there was a transfer
}

func (s *Share) library() *Library {
	if s.reads == nil {
		if s.reads = s.Library; s.reads == nil {
			s.reads = NewLibrary(s.Loop, s.Store, nil)
		}
	}
	return s.reads
}

// Server answers on one UDP port. Its fields are set before Listen and may not change then.
type Server struct {
	// Find says whose file name is, a result of tftp.CleanName, and what it is called there. It runs on the port's loop. Without a
	// share, err is the answer; if it is nil, too, there is none.
	Find func(name string, visitor netip.AddrPort) (share *Share, rest string, err *tftp.Error)

	// MaxTransfers and MaxPerAddress bound the transfers at once, in all and of an address (a /64 of
	// IPv6). 0: 16384 and 256.
	MaxTransfers, MaxPerAddress int

	// MaxBlock bounds the bytes of a block: a client that asks for more gets this. 0: what the route to the client carries in one
	// piece, which Linux says; elsewhere 1468 (IPv6: 1448), and tftp.MaxBlock on the loopback interface.
	MaxBlock int

	// Ports are the first and the last port of a range: each transfer gets one of its own, as RFC 1350 has it, for clients
	// that insist on that; at random, so that who forges addresses cannot forge what follows. Zero: all is answered from the port that was asked, which clients take, and firewalls
	// and NAT let pass.
	Ports [2]uint16

	// Log hears of errors of stores. nil: slog.Default.
	Log *slog.Logger

	port   *port
	bare   bucket // bytes to unproven addresses
	errors bucket // ERRORs
	logged bucket

	counts struct {
		running, unproven                                     atomic.Int64
		total, retransmitted, errorsSent, dropped             atomic.Uint64
		malformed, limit, policy, notFound, failed, displaced atomic.Uint64
	}
}

// Stats is what a Server has counted since Listen.
type Stats struct {
	Running  int // transfers at the moment, those included whose file is being opened
	Unproven int // of those: whose peer has not shown yet that it gets what is sent to it

	Total         uint64 // transfers that were begun
	Refused       Refused
	Retransmitted uint64 // blocks
	ErrorsSent    uint64 // ERROR packets
	Dropped       uint64 // datagrams that were not answered or not sent: there were too many, or they made no sense
}

// Refused counts requests that were refused, by cause.
type Refused struct {
	Malformed uint64 // no request by RFC 1350
	Limit     uint64 // too many transfers, or closed
	Policy    uint64 // by Share.Admit, or to write where nothing may be written
	NotFound  uint64 // Find or the store has no such file
	Failed    uint64 // the store could not open the file for another reason
	Displaced uint64 // had proven nothing when there was no room for another one
}

// Stats returns the counts. From anywhere.
func (s *Server) Stats() Stats {
	c := &s.counts
	st := Stats{
		Running: int(c.running.Load()), Unproven: int(c.unproven.Load()),
		Total: c.total.Load(), Retransmitted: c.retransmitted.Load(), ErrorsSent: c.errorsSent.Load(), Dropped: c.dropped.Load(),
		Refused: Refused{
			Malformed: c.malformed.Load(), Limit: c.limit.Load(), Policy: c.policy.Load(),
			NotFound: c.notFound.Load(), Failed: c.failed.Load(), Displaced: c.displaced.Load(),
		},
	}
	if s.port != nil {
		st.Dropped += s.port.conn.Dropped()
	}
	return st
}

// refused counts a request that was refused with err.
func (s *Server) refused(err *tftp.Error) {
	switch c := &s.counts; {
	case err == errTooMany || err == errClosing:
		c.limit.Add(1)
	case err.Code == tftp.CodeNotFound:
		c.notFound.Add(1)
	case err.Code == tftp.CodeAccess:
		c.policy.Add(1)
	case err.Code == tftp.CodeIllegal:
		c.malformed.Add(1)
	default:
		c.failed.Add(1)
	}
}

// Listen opens the port on l: network is "udp", "udp4" or "udp6". It is called from anywhere, once.
func (s *Server) Listen(l *evloop.Loop, network, address string) error {
	nc, err := net.ListenPacket(network, address)
	if err != nil {
		return fmt.Errorf("tftp: %w", err)
	}
	return s.listen(l, nc)
}

// ListenFile is like Listen on a UDP socket that was inherited, say. f remains the caller's, to close.
func (s *Server) ListenFile(l *evloop.Loop, f *os.File) error {
	nc, err := net.FilePacketConn(f)
	if err != nil {
		return fmt.Errorf("tftp: %w", err)
	}
	return s.listen(l, nc)
}

func (s *Server) listen(l *evloop.Loop, nc net.PacketConn) error {
	if s.MaxTransfers <= 0 {
		s.MaxTransfers = defaultTransfers
	}
	if s.MaxPerAddress <= 0 {
		s.MaxPerAddress = defaultPerAddress
	}
	if s.Log == nil {
		s.Log = slog.Default()
	}
	now := time.Now()
	s.bare.init(bareRate, bareBurst, now)
	s.errors.init(errorRate, errorBurst, now)
	s.logged.init(1, 10, now)
	p := newPort(s, l)
	if c, ok := nc.(*net.UDPConn); ok {
		if f, err := c.File(); err == nil { // where that is not possible the port's loop sends for all
			p.file = f
		}
	}
	conn, err := l.AttachPacket(nc, nil)
	if err != nil {
		p.closeFile()
		return fmt.Errorf("tftp: %w", err)
	}
	p.conn = conn
	p.lanes[l] = &lane{port: p, loop: l, conn: conn}
	s.port = p
	l.Post(func() { conn.SetHandler(p.receive) })
	return nil
}

// Addr returns the address that Listen has bound.
func (s *Server) Addr() netip.AddrPort { return s.port.conn.LocalAddr() }

// Close ends all transfers with an ERROR to their peers and frees the port, soon. From anywhere.
func (s *Server) Close() {
	if s.port != nil {
		s.port.loop.Post(s.port.close)
	}
}

// mayAnswer reports whether there may be another ERROR to what belongs to no transfer, and counts it.
func (s *Server) mayAnswer(now time.Time) bool {
	if !s.errors.take(1, now) {
		return false
	}
	s.counts.errorsSent.Add(1)
	return true
}

// report logs an error of a store, unless there were many just now.
func (s *Server) report(t *Transfer, err error) {
	if s.logged.take(1, t.lane.loop.Now()) {
		s.Log.Warn("a file could not be had", "file", t.Name, "write", t.Request.Op == tftp.OpWrite, "client", t.Visitor, "err", err)
	}
}
