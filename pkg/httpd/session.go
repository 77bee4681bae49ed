package httpd

import (
	"context"
	"net/netip"
	"sync/atomic"
	"time"
)

// Session is what Sessions tells of a connection.
type Session struct {
	ID       uint64         // for CloseSession; never used again
	Remote   netip.AddrPort // the zero AddrPort: not known
	Name     string         // of Remote, as far as Server.Names has found one
	Proto    string         // "HTTP/1.1", "HTTP/2.0", "HTTP/3.0"
	TLS      bool
	Since    time.Time
	Requests uint64 // begun, by handlers or Fast
	Received uint64 // bytes, above TLS; of HTTP/3: of bodies
	Sent     uint64
	Current  []Current // requests under way, the oldest first; at most 128
}

// Current is a request under way.
type Current struct {
	Method, Target string // Target is cut off after 256 bytes
	Since          time.Time
}

// maxTarget is how much of a request's target the register remembers.
const maxTarget = 256

// session is what the register knows of a connection. It is also the context from which those of its requests are
// made.
type session struct {
	srv  *Server
	peer Peer
	conn connection
	// Guarded by srv.mu.
	next, prev *session
	active     *activity // the newest request under way
	id         uint64
	since      int64 // Unix time in ns

	begun, received, sent atomic.Uint64 // added to by the owner of the connection alone, but for HTTP/3

	minor uint8 // of HTTP/1, or 2 or 3 if the version is that
	out   bool  // it has left the register
}

// connection is how the register ends what it lists. Its methods may be called from anywhere.
type connection interface {
	drain()        // finish what has begun, take nothing more, end
	cut(err error) // end now
}

// add is for counters with one writer.
func add(n *atomic.Uint64, d int) { n.Store(n.Load() + uint64(d)) }

// activity is a request under way.
type activity struct {
	s          *session // nil: not in the list
	next, prev *activity
	current    Current
}

// begin enters a, whose current is set. With srv.mu.
func (s *session) begin(a *activity) {
	s.begun.Add(1)
	a.s, a.next, a.prev = s, s.active, nil
	if s.active != nil {
		s.active.prev = a
	}
	s.active = a
}

// leave takes a out. With srv.mu.
func (a *activity) leave() {
	if a.s == nil {
		return
	}
	if a.next != nil {
		a.next.prev = a.prev
	}
	if a.prev != nil {
		a.prev.next = a.next
	} else {
		a.s.active = a.next
	}
	a.s, a.next, a.prev = nil, nil, nil
}

// person is what an address is counted as: one host of IPv4, one network of IPv6.
func person(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}

// enter puts s into the register, or says why there is no room for it.
func (s *Server) enter(c *session, conn connection) error {
	c.conn = conn
	c.since = time.Now().UnixNano()
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.roomLocked(c.peer.Addr.Addr()); err != nil {
		return err
	}
	if s.MaxPerAddr > 0 && c.peer.Addr.IsValid() {
		if s.perAddr == nil {
			s.perAddr = make(map[netip.Addr]int)
		}
		s.perAddr[person(c.peer.Addr.Addr())]++
	}
	s.conns++
	s.lastID++
	c.id = s.lastID
	c.next = s.first
	if s.first != nil {
		s.first.prev = c
	}
	s.first = c
	return nil
}

// errCrowded is what connections above a limit end with.
type errCrowded string

func (e errCrowded) Error() string { return "http: too many connections" + string(e) }

func (s *Server) roomLocked(addr netip.Addr) error {
	switch {
	case s.ending:
		return ErrServerClosed
	case s.MaxConns > 0 && s.conns >= s.MaxConns:
		return errCrowded("")
	case s.MaxPerAddr > 0 && addr.IsValid() && s.perAddr[person(addr)] >= s.MaxPerAddr:
		return errCrowded(" from " + addr.String())
	}
	return nil
}

// leave takes c out of the register. It may be called more than once.
func (c *session) leave() {
	s := c.srv
	s.mu.Lock()
	defer s.mu.Unlock()
	if c.out {
		return
	}
	c.out = true
	if c.next != nil {
		c.next.prev = c.prev
	}
	if c.prev != nil {
		c.prev.next = c.next
	} else {
		s.first = c.next
	}
	c.next, c.prev = nil, nil
	if s.MaxPerAddr > 0 && c.peer.Addr.IsValid() {
		a := person(c.peer.Addr.Addr())
		if s.perAddr[a]--; s.perAddr[a] == 0 {
			delete(s.perAddr, a)
		}
	}
	if s.conns--; s.conns == 0 && s.emptied != nil {
		close(s.emptied)
		s.emptied = nil
	}
}

// Sessions lists the connections that are there, the newest first. Those that an Upgrade or a Hijack has taken are not.
func (s *Server) Sessions() []Session {
	s.mu.Lock()
	all := make([]Session, 0, s.conns)
	for c := s.first; c != nil; c = c.next {
		v := Session{
			ID: c.id, Remote: c.peer.Addr, TLS: c.peer.TLS != nil, Since: time.Unix(0, c.since),
			Proto:    [...]string{"HTTP/1.0", "HTTP/1.1", "HTTP/2.0", "HTTP/3.0"}[c.minor],
			Requests: c.begun.Load(), Received: c.received.Load(), Sent: c.sent.Load(),
		}
		for a := c.active; a != nil && len(v.Current) < 128; a = a.next {
			v.Current = append(v.Current, a.current)
		}
		for i, j := 0, len(v.Current)-1; i < j; i, j = i+1, j-1 {
			v.Current[i], v.Current[j] = v.Current[j], v.Current[i]
		}
		all = append(all, v)
	}
	s.mu.Unlock()
	if s.Names != nil {
		for i := range all {
			all[i].Name = s.Names.Name(all[i].Remote.Addr())
		}
	}
	return all
}

// CloseSession cuts the connection of that ID, and reports whether there is one. Contexts of its requests end.
func (s *Server) CloseSession(id uint64) bool {
	s.mu.Lock()
	c := s.first
	for c != nil && c.id != id {
		c = c.next
	}
	s.mu.Unlock()
	if c != nil {
		c.conn.cut(ErrServerClosed)
	}
	return c != nil
}

// Shutdown stops accepting: listeners are closed, idle connections end, the others do when they have answered what has
// begun (HTTP/1.1 says Connection: close, HTTP/2 and HTTP/3 GOAWAY), new ones are refused. It returns when all have ended; if ctx ends before that, it cuts
// the rest and returns ctx's error. What was upgraded or hijacked is not its own any more.
func (s *Server) Shutdown(ctx context.Context) error {
	done := s.stop(func(c connection) { c.drain() })
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		s.stop(func(c connection) { c.cut(ErrServerClosed) })
		return ctx.Err()
	}
}

// Close is Shutdown that waits for nothing.
func (s *Server) Close() { s.stop(func(c connection) { c.cut(ErrServerClosed) }) }

// stop takes no more connections and calls end for those there are. The channel is closed when all have ended.
func (s *Server) stop(end func(connection)) <-chan struct{} {
	s.mu.Lock()
	s.ending = true
	done := s.emptied
	if done == nil {
		done = make(chan struct{})
		if s.conns == 0 {
			close(done)
		} else {
			s.emptied = done
		}
	}
	listeners := s.listeners
	s.listeners = nil
	all := make([]connection, 0, s.conns)
	for c := s.first; c != nil; c = c.next {
		all = append(all, c.conn)
	}
	s.mu.Unlock()
	for l := range listeners {
		l.Close()
	}
	for _, c := range all {
		end(c)
	}
	return done
}

// The context of a connection: it has no end of its own, since those of its requests are ended one by one.

func (c *session) Deadline() (time.Time, bool) { return time.Time{}, false }
func (c *session) Done() <-chan struct{}       { return nil }
func (c *session) Err() error                  { return nil }
func (c *session) Value(key any) any {
	if key == (sessionKey{}) {
		return c
	}
	return nil
}

type sessionKey struct{}

// Caller returns the name of the host that a request came from, as far as Server.Names has found it: handlers are not
// kept waiting for that. ctx is the request's. "": not known, or not known yet.
func Caller(ctx context.Context) string {
	c, ok := ctx.Value(sessionKey{}).(*session)
	if !ok || c.srv.Names == nil {
		return ""
	}
	return c.srv.Names.Name(c.peer.Addr.Addr())
}
