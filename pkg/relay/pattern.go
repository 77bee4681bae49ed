package relay

import (
	"errors"
	"fmt"
	"strconv"
	"strings"
)

// A Pattern is something that a site is allowed to publish: a publish URL whose
// host may be a wildcard and whose port may be a range. It marshals as its text.
//
//	https://*.example.com      any host one label below example.com, any path; wss too
//	https://example.com/app/*  /app and what is below it
//	rtsp://cams.example.com/*  cameras there, by rtsp and rtsps; rtsps:// allows rtsps alone
//	tls://*.example.com        the same hosts, for TLS that the relay passes through
//	tcp://:15000-15999         those ports, on any address
//	tcp://:*                   any port, and a port chosen by the relay
//	udp://:5000-5999           the same for UDP
//	tftp:///boot/*             files below /boot; tftp:///* is all of them
type Pattern struct {
	Scheme           string
	Host             string // as in Publish; "" for tcp and udp means any
	MinPort, MaxPort uint16 // tcp and udp only, inclusive
	Path             string // as in Publish
}

// ParsePattern reads a pattern.
func ParsePattern(s string) (Pattern, error) {
	p, err := parsePattern(s)
	if err != nil {
		return Pattern{}, fmt.Errorf("pattern %q: %w", clip(redact(s)), err)
	}
	return p, nil
}

func parsePattern(s string) (Pattern, error) {
	u, err := splitURL(s, false)
	if err != nil {
		return Pattern{}, err
	}
	if !isPort(u.scheme) {
		if u.scheme == "tls" && u.path == "/*" {
			return Pattern{}, errors.New("tls has no path: it is inside the encryption")
		}
		p, err := parsePublish(strings.TrimSuffix(s, "/*"))
		return Pattern{Scheme: p.Scheme, Host: p.Host, Path: p.Path}, err
	}
	p := Pattern{Scheme: u.scheme, Host: u.host}
	if u.path != "" && u.path != "/" {
		return Pattern{}, errors.New(u.scheme + " has no path")
	}
	if u.host != "" {
		if err := checkHost(u.host, false); err != nil {
			return Pattern{}, err
		}
	}
	if u.port == "*" {
		p.MaxPort = 65535
		return p, nil
	}
	if u.port == "" {
		return Pattern{}, fmt.Errorf("no port: want %[1]s://:15432, %[1]s://:15000-15999 or %[1]s://:*", u.scheme)
	}
	low, high, isRange := strings.Cut(u.port, "-")
	if !isRange {
		high = low
	}
	if low == "" || high == "" {
		return Pattern{}, fmt.Errorf("port range %q: want low-high", u.port)
	}
	if p.MinPort, err = parsePort(low); err != nil {
		return Pattern{}, err
	}
	if p.MaxPort, err = parsePort(high); err != nil {
		return Pattern{}, err
	}
	if p.MinPort > p.MaxPort {
		return Pattern{}, fmt.Errorf("port range %q: low end is above the high end", u.port)
	}
	return p, nil
}

// Allows reports whether a site with this pattern may publish p.
func (a Pattern) Allows(p Publish) bool {
	if p.IsZero() || plainScheme(a.Scheme) != plainScheme(p.Scheme) && (a.Scheme != "rtsp" || p.Scheme != "rtsps") {
		return false
	}
	if p.IsPort() {
		return (a.Host == "" || a.Host == p.Host) && a.MinPort <= p.Port && p.Port <= a.MaxPort
	}
	return MatchHost(a.Host, p.Host) && MatchPath(a.Path, p.Path)
}

// plainScheme drops the difference between HTTP and the WebSocket in it.
func plainScheme(s string) string {
	switch s {
	case "ws":
		return "http"
	case "wss":
		return "https"
	}
	return s
}

// MatchHost reports whether host, in lower case and without port, is pattern or,
// if pattern is "*.example.com", lies exactly one label below example.com.
func MatchHost(pattern, host string) bool {
	if pattern == host {
		return true
	}
	if !strings.HasPrefix(pattern, "*.") || !strings.HasSuffix(host, pattern[1:]) {
		return false
	}
	label := host[:len(host)-len(pattern)+1]
	return label != "" && strings.IndexByte(label, '.') < 0
}

// MatchPath reports whether path is prefix or lies below it: "/a" covers "/a" and
// "/a/b", not "/ab".
func MatchPath(prefix, path string) bool {
	if prefix == "/" || prefix == "" {
		return true
	}
	return strings.HasPrefix(path, prefix) && (len(path) == len(prefix) || path[len(prefix)] == '/')
}

// String returns the text that ParsePattern reads, or "" for the zero value.
func (a Pattern) String() string {
	if !isPort(a.Scheme) {
		return Publish{Scheme: a.Scheme, Host: a.Host, Path: a.Path}.String()
	}
	port := strconv.Itoa(int(a.MinPort))
	switch {
	case a.MinPort == 0 && a.MaxPort == 65535:
		port = "*"
	case a.MinPort != a.MaxPort:
		port += "-" + strconv.Itoa(int(a.MaxPort))
	}
	return a.Scheme + "://" + bracket(a.Host) + ":" + port
}

// MarshalText returns the text.
func (a Pattern) MarshalText() ([]byte, error) { return []byte(a.String()), nil }

// UnmarshalText reads what ParsePattern reads.
func (a *Pattern) UnmarshalText(b []byte) (err error) {
	*a, err = ParsePattern(string(b))
	return err
}
