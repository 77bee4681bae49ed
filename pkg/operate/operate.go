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
//   - Nothing of a request or of what follows is sent before the key of the site has been found right.
//   - Sessions, links and streams belong to one event loop; a Conn is used from any goroutine, and has at most bufferSize
//     bytes of what has come and was not read.
//   - Close ends everything, and returns when the goroutines have ended.
package operate

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"net"
	"time"
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
	// listed are those that the public relay names. Both are as auth.FormatPublicKey writes them. Required.
	Trust func(site, key string, listed []string) error

	// OnLink is told when the way to a relay is there (a nil error) or not any more. It is called on the loop, and must not
	// block. If nil, nobody is.
	OnLink func(site string, err error)

	// Software is what relays are told, for people to read.
	Software string

	// DialRelay replaces the network on the way to the relay. If nil, TCP.
	DialRelay func(ctx context.Context, network, address string) (net.Conn, error)
}

// A Conn is a connection to a service. Besides what a net.Conn has, each of its directions can be ended on its own.
type Conn interface {
	net.Conn
	CloseWrite() error // the service sees the end of what is sent to it
	Abort()            // ends both directions at once: neither side takes what it has got for all

	// Scheme is that of the target: "tcp", "http", …
	Scheme() string
}

var errSoon = errors.New("not there yet")

// Open connects to a service of a site, by its name, over TCP or what comes close to it. An *Error says why there is no
// connection.
func (c *Client) Open(ctx context.Context, site, service string) (Conn, error) { return nil, errSoon }

// OpenPacket connects to a service with datagrams. Each Write of the connection sends one, and each Read receives one, of
// which it drops what the buffer has no room for.
func (c *Client) OpenPacket(ctx context.Context, site, service string) (Conn, error) {
	return nil, errSoon
}

// Dial connects to any address, HOST:PORT, that the site lets operators reach; names are looked up at the site. network is
// "tcp" or "udp".
func (c *Client) Dial(ctx context.Context, site, network, address string) (Conn, error) {
	return nil, errSoon
}

// Check asks the private relay whether the service is there and is used over that network, "tcp" or "udp", without a word
// to its target. It returns the target's scheme.
func (c *Client) Check(ctx context.Context, site, service, network string) (scheme string, err error) {
	return "", errSoon
}

// Ping measures the round trip to the private relay of a site, times times.
func (c *Client) Ping(ctx context.Context, site string, times int, interval time.Duration, each func(n int, took time.Duration)) error {
	return errSoon
}

// Close ends all connections and sessions.
func (c *Client) Close() error { return nil }
