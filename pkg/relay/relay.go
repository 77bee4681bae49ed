// Package relay is the vocabulary that the public and the private relay share:
// what a service is, what a site may publish, and every message that the two
// relays exchange outside the frames of a session. It encodes and decodes; it
// dials, listens and decides nothing.
//
//	p, err := relay.ParsePublish("https://intranet.example.com/wiki")
//	t, err := relay.ParseTarget("http://127.0.0.1:8080")
//	err = relay.Service{Name: "wiki", Publish: p, Target: t}.Validate()
//
// Invariants: whatever a Decode or Parse function accepts is within the bounds
// documented here, and encodes again to something that decodes to the same
// value. All decoders are safe on hostile input.
package relay

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"strconv"
	"strings"
)

// WireVersion is the version of the link handshake and of the frames after it.
// Both relays must speak the same one.
const WireVersion = 6

// Paths on the public relay's own domain.
const (
	LinkPath    = "/.culvert/link"     // WebSocket upgrade: a link of a session
	JoinPath    = "/.culvert/join"     // POST JoinRequest: redeem a join token
	OperatePath = "/.culvert/operate/" // + SITE; WebSocket upgrade with an operator's token: a link of a session of his
)

// Bounds of what a peer may send.
const (
	MaxName     = 64      // bytes of a site's or a service's name
	MaxURL      = 512     // bytes of a publish or target URL or of a pattern
	MaxMessage  = 4 << 10 // bytes of Hello, Welcome and JoinRequest
	MaxJoin     = 1 << 20 // bytes of a JoinResponse, which may have thousands of patterns
	MaxChoice   = 200     // bytes of a Hello's choice
	MaxHeader   = 1 << 10 // bytes of a stream header
	MaxAnnounce = 1 << 20 // bytes of an announcement or of the reply to it
	MaxServices = 4096    // services in an announcement
)

// PortError says what to do if err is that a relay may not open a port.
func PortError(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w: ports below 1024 want CAP_NET_BIND_SERVICE: write it into AmbientCapabilities of the unit, or have the service manager open the socket", err)
	}
	return err
}

// ParseAddress reads the address of a public relay, HOST or HOST:PORT, and completes it: the port is 443 if there is none.
func ParseAddress(s string) (string, error) {
	if strings.Contains(s, "/") {
		return "", fmt.Errorf("%q: want HOST or HOST:PORT, not a URL", s)
	}
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		host, port = strings.Trim(s, "[]"), "443"
	}
	if _, ipErr := netip.ParseAddr(host); host == "" || strings.ContainsAny(host, " []") || strings.Contains(host, ":") && ipErr != nil {
		return "", fmt.Errorf("%q: want HOST or HOST:PORT", s)
	}
	if n, err := strconv.ParseUint(port, 10, 16); err != nil || n == 0 {
		return "", fmt.Errorf("%q: port %q: want 1 to 65535", s, port)
	}
	return net.JoinHostPort(host, port), nil
}

// CheckName reports what is wrong with the name of a site or a service: it has 1
// to MaxName letters, digits, dots, dashes and underscores, and starts with a
// letter or digit.
func CheckName(name string) error {
	if name == "" {
		return errors.New("name is empty")
	}
	if len(name) > MaxName {
		return fmt.Errorf("name has %d bytes, more than %d", len(name), MaxName)
	}
	for i := range len(name) {
		c := name[i]
		if isAlnum(c) || i > 0 && (c == '.' || c == '-' || c == '_') {
			continue
		}
		return fmt.Errorf("name %q: want letters, digits, '.', '-' and '_', starting with a letter or digit", name)
	}
	return nil
}

func isAlnum(c byte) bool {
	return 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9'
}

// isPrintable reports whether s is made of visible ASCII and spaces, so that it
// may be logged as it is.
func isPrintable(s string) bool {
	for i := range len(s) {
		if s[i] < ' ' || s[i] > '~' {
			return false
		}
	}
	return true
}
