// Package operate is the operator's end of the tunnel: it opens connections to services of a site, through a public relay
// that reads none of what goes over them, and keeps them when the way to that relay breaks.
//
//	c := &operate.Client{Address: "relay.example.com:443", Token: token, Trust: known.Trust}
//	defer c.Close()
//	conn, err := c.Open(ctx, "office", "db")
//
// For each site there is a session, as between two relays: a tunnel.Session, on one link at a time. When the link breaks,
// because a laptop slept or moved to another network, another one is made, and the streams go on where they were. In
// each stream there is TLS 1.3 with the private relay, which proves to have one of the keys that Trust takes.
//
// # Invariants
//
//   - Nothing of a request or of what follows is sent before Trust has taken the key of the site.
//   - Sessions, links and streams belong to one event loop; a Conn is used from any goroutine, and keeps some hundred
//     kilobytes at most of what has come and was not read.
//   - A connection whose end does not come from the private relay itself fails: nobody on the way can cut it short.
//   - Close ends everything, and returns when the goroutines have ended.
package operate

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"net"
	"net/netip"
	"sync"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
)

const (
	// openTimeout bounds all that comes before a connection is there.
	openTimeout = 30 * time.Second

	// closeTimeout is how long what was written may take to leave when a Client is closed.
	closeTimeout = 2 * time.Second

	// resumeTimeout is how long streams wait for a way to the relay. It is the relay that forgets them first.
	resumeTimeout = 48 * time.Hour
)

// A Client opens connections to services. The exported fields are set before the first call, and not changed
// afterwards. Its methods may be called from several goroutines.
type Client struct {
	// Address is the public relay's host:port. Its certificate must name the host.
	Address string

	// Plain does without TLS on the way to the relay: for its admin listener, on this machine.
	Plain bool

	// RootCAs verify the relay's certificate. If nil, the system's do.
	RootCAs *x509.CertPool

	// Token is the operator's, for the relay.
	Token string

	// Key is the operator's, for sites that want one. It may be nil.
	Key ed25519.PrivateKey

	// Trust decides whether the private relay at the end of a connection is one of the site: it has proved to have key, and
	// listed are those that the public relay names. All are as auth.FormatPublicKey writes them. It may block, and is called
	// by several goroutines. Its error is that of Open. Required; see KnownSites.
	Trust func(site, key string, listed []string) error

	// OnLink is told when the way to a site's session is there (a nil error), when it is lost, and, by an *OverError, when the
	// session has ended. It is called on the loop, and must not block. If nil, nobody is.
	OnLink func(site string, err error)

	// Software is what relays are told, for people to read.
	Software string

	// DialRelay replaces the network on the way to the relay. If nil, TCP.
	DialRelay func(ctx context.Context, network, address string) (net.Conn, error)

	addresses func() ([]net.Addr, error) // of this machine; set by tests. If nil, net.InterfaceAddrs

	portable bool // of the loop; set by tests in virtual time

	mu     sync.Mutex
	core   *evloop.Core // nil until it is used
	closed bool

	// Owned by the loop.
	sessions map[string]*session // by site: those that take streams
	all      map[*session]bool   // and those that still have some
	reached  map[string]bool     // sites that there was a session with
}

// A Conn is a connection to a service. Besides what a net.Conn has, each of its directions can be ended on its own. As with
// crypto/tls, a Write whose deadline has passed leaves nothing to be written behind it.
type Conn interface {
	net.Conn
	CloseWrite() error // the service sees the end of what is sent to it
	Abort()            // ends both directions at once: neither side takes what it has got for all

	// Scheme is that of the target: "tcp", "http", …
	Scheme() string
}

// An Error is why there is no connection, as a relay or the operator's own side has put it.
type Error struct {
	Code relay.OperateCode
	Text string
}

func (e *Error) Error() string { return e.Text }

// An OverError says that a session has ended, and its connections with it: they do not wait for the relay. Why is an *Error if
// that was the relay's decision.
type OverError struct{ Why error }

func (e *OverError) Error() string { return e.Why.Error() }
func (e *OverError) Unwrap() error { return e.Why }

// Codes of an Error that come from no relay in these words.
const (
	CodeToken   relay.OperateCode = "token"    // the relay does not take the token for one of an operator
	CodeNoRelay relay.OperateCode = "no-relay" // what answers is no public relay
	CodeNoSite  relay.OperateCode = "no-site"  // the relay has no such site
)

// ErrClosed is the error of what is asked of a Client after Close.
var ErrClosed = errors.New("the client is closed")

// Open connects to a service of a site, by its name. An *Error says why there is no connection.
func (c *Client) Open(ctx context.Context, site, service string) (Conn, error) {
	return c.connect(ctx, site, relay.OperateRequest{Service: service})
}

// OpenPacket connects to a service with datagrams. Each Write of the connection sends one, and each Read receives one, of
// which it drops what the buffer has no room for.
func (c *Client) OpenPacket(ctx context.Context, site, service string) (Conn, error) {
	return c.connect(ctx, site, relay.OperateRequest{Service: service, Network: "udp"})
}

// Dial connects to any address, HOST:PORT, that the site lets operators reach; names are looked up at the site. network is
// "tcp", or "udp" as OpenPacket has it.
func (c *Client) Dial(ctx context.Context, site, network, address string) (Conn, error) {
	return c.connect(ctx, site, relay.OperateRequest{Service: relay.ServiceSocks, Network: network, Address: address})
}

// Check asks the private relay whether a service is there and can be used over that network, "tcp" or "udp", without a
// word to its target. It returns the target's scheme.
func (c *Client) Check(ctx context.Context, site, service, network string) (scheme string, err error) {
	conn, err := c.connect(ctx, site, relay.OperateRequest{Service: service, Network: network, Probe: true})
	if err != nil {
		return "", err
	}
	conn.CloseWrite()
	defer conn.Close()
	return conn.Scheme(), nil
}

// loop returns the one that everything is on.
func (c *Client) loop() (*evloop.Loop, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, ErrClosed
	}
	if c.core == nil {
		core, err := evloop.New(evloop.Config{Loops: 1, Portable: c.portable})
		if err != nil {
			return nil, err
		}
		c.core = core
		c.sessions, c.all, c.reached = make(map[string]*session), make(map[*session]bool), make(map[string]bool)
	}
	return c.core.Loop(0), nil
}

// session returns the one for new streams to a site. On the loop.
func (c *Client) session(l *evloop.Loop, site string) *session {
	s := c.sessions[site]
	if s == nil {
		s = &session{client: c, loop: l, site: site, patient: c.reached[site]}
		c.sessions[site] = s
		c.all[s] = true
	}
	return s
}

// Close ends all connections and sessions. What was written goes out, if that takes no longer than two seconds.
func (c *Client) Close() error {
	c.mu.Lock()
	core := c.core
	if c.closed || core == nil {
		c.closed = true
		c.mu.Unlock()
		return nil
	}
	c.closed = true
	c.mu.Unlock()
	gone := make(chan struct{})
	l := core.Loop(0)
	l.Post(func() {
		for s := range c.all {
			s.leave()
		}
		c.wait(l, time.Now().Add(closeTimeout), gone)
	})
	select {
	case <-gone:
	case <-time.After(2 * closeTimeout):
	}
	return core.Close()
}

// wait waits for the end of all sessions, until deadline. On the loop.
func (c *Client) wait(l *evloop.Loop, deadline time.Time, gone chan<- struct{}) {
	if len(c.all) > 0 && time.Now().Before(deadline) {
		l.Arm(new(evloop.Timer), 10*time.Millisecond, func() { c.wait(l, deadline, gone) })
		return
	}
	for s := range c.all {
		s.end(ErrClosed)
	}
	l.Post(func() { close(gone) }) // behind what the ends of links have to say
}

// localOf is the address of this machine that a connection uses: the zero value if that is not known.
func localOf(nc net.Conn) netip.Addr {
	if a, ok := nc.LocalAddr().(*net.TCPAddr); ok {
		return a.AddrPort().Addr().Unmap()
	}
	return netip.Addr{}
}
