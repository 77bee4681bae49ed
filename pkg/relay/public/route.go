package public

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"

	"culvert.dev/pkg/relay"
)

// route is what one service at a time may have.
type route struct {
	host   string // as published: "app.example.com" or "*.example.com"
	secure bool   // with TLS: https and wss; else http and ws, or raw. Cameras have both, or this one
	raw    bool   // tls
	files  bool   // tftp, which has no host
	prefix string // of the path: "" or "/a/b"
}

// table is the routes of one moment. It is immutable: a change makes a new
// one, and every loop reads the current one from Relay.routes without a lock.
type table struct {
	// By host, or by ".example.com" for "*.example.com"; the longest prefix first.
	secure, plain map[string][]*service

	// By host in the same way. No host is here and in secure.
	raw map[string]*service

	files []*service // by tftp; the longest prefix first

	away

	asks asksFor // hosts whose visitors are asked for a certificate

	cameras string // the only host that has some; "" if there is none, or more than one
}

// away is what is known of sites that are away.
type away struct {
	patterns []relay.Pattern // what they may publish
	passes   []relay.Pattern // those of tls
	names    map[string]bool // hosts, as in table, that they had by https (false) or tls (true) when they were there
}

// newTable makes the table of services, no two of which have the same route.
func newTable(services []*service, away away) *table {
	t := &table{
		secure: make(map[string][]*service),
		plain:  make(map[string][]*service),
		raw:    make(map[string]*service),
		away:   away,
	}
	for _, p := range t.patterns {
		if p.Scheme == "tls" {
			t.passes = append(t.passes, p)
		}
	}
	hosts := 0 // that have cameras
	for _, s := range services {
		if s.isFiles() {
			t.files = append(t.files, s)
			continue
		}
		name := strings.TrimPrefix(s.host, "*")
		if s.isCamera() && s.host != t.cameras {
			t.cameras = s.host
			hosts++
		}
		if s.raw {
			t.raw[name] = s
		}
		if s.secure {
			t.secure[name] = append(t.secure[name], s)
		}
		if s.plain {
			t.plain[name] = append(t.plain[name], s)
		}
	}
	if hosts != 1 || strings.HasPrefix(t.cameras, "*") {
		t.cameras = ""
	}
	byPrefix := func(a, b *service) int { return cmp.Compare(len(b.prefix), len(a.prefix)) }
	slices.SortFunc(t.files, byPrefix)
	for _, hosts := range []map[string][]*service{t.secure, t.plain} {
		for _, l := range hosts {
			slices.SortFunc(l, byPrefix)
		}
	}
	return t
}

func (t *table) hosts(secure bool) map[string][]*service {
	if secure {
		return t.secure
	}
	return t.plain
}

// find returns the service of a request for host and path, or nil: an exact
// host comes before a wildcard, which stands for one label; then the longest
// prefix decides. host is a canonical one, see appendHost.
func (t *table) find(host, path []byte, secure bool) *service {
	hosts := t.hosts(secure)
	if s := longest(hosts[string(host)], path); s != nil {
		return s
	}
	for i, c := range host {
		if c == '.' && i > 0 {
			return longest(hosts[string(host[i:])], path)
		}
	}
	return nil
}

// redirects reports whether a request in the clear is sent to https: there is a service, which
// wants that, or may be one.
func (t *table) redirects(host, path []byte) bool {
	s := t.find(host, path, true)
	if s == nil {
		return t.passed(host).isWeb() || t.allowed(string(host), string(path), true)
	}
	p := s.policy.Load()
	return p == nil || !p.noRedirect
}

// hasCameras reports whether host has some.
func (t *table) hasCameras(host []byte, secure bool) bool {
	hosts := t.hosts(secure)
	return slices.ContainsFunc(hosts[string(host)], (*service).isCamera) || slices.ContainsFunc(hosts[parent(string(host))], (*service).isCamera)
}

// divided reports whether what a request for host reaches depends on its path.
func (t *table) divided(host []byte, secure bool) bool {
	hosts := t.hosts(secure)
	prefixed := func(l []*service) bool { return len(l) > 0 && l[0].prefix != "" }
	if prefixed(hosts[string(host)]) {
		return true
	}
	for i, c := range host {
		if c == '.' && i > 0 {
			return prefixed(hosts[string(host[i:])])
		}
	}
	return false
}

// split reports whether requests for host go to more than one loop, depending on their path.
func (t *table) split(host string) bool {
	var first *loop
	for _, l := range [][]*service{t.secure[host], t.secure[parent(host)]} {
		for _, s := range l {
			if first != nil && s.session.loop != first {
				return true
			}
			first = s.session.loop
		}
	}
	return false
}

// ambiguous reports whether a server may take path for another one than it looks
// like: it has a segment "." or "..", also in the form "..;x" that some servers
// take for the same, or a backslash or an encoded slash; in any encoding.
func ambiguous(path []byte) bool {
	dots := 0 // of the segment, which has nothing else; -1: it has
	for i := 0; i < len(path); {
		c, n := unescape(path[i:])
		switch {
		case c == '\\' || c == '/' && n > 1:
			return true
		case (c == '/' || c == ';') && dots > 0:
			return true
		case c == '/':
			dots = 0
		case c == '.' && (dots == 0 || dots == 1):
			dots++
		default:
			dots = -1
		}
		i += n
	}
	return dots > 0
}

// misleads reports whether a server that decodes path, as nearly all do, merges its
// slashes or drops the parameters of its segments would take it for one of another
// service: /%61pi, //api and /api;v=1 are /api for many of them, and what that service
// demands of visitors would be got around.
func (t *table) misleads(host, path []byte, secure bool) bool {
	var buf [256]byte
	plain := buf[:0]
	parameter, plainly := false, true
	for i := 0; i < len(path); {
		c, n := unescape(path[i:])
		i += n
		switch {
		case c == 0: // the end, for some
			return true
		case c == '/' && len(plain) > 0 && plain[len(plain)-1] == '/', c == ';', parameter && c != '/':
			parameter = parameter && c != '/' || c == ';'
			plainly = false
			continue
		case n > 1:
			plainly = false
		}
		parameter = false
		plain = append(plain, c)
	}
	return !plainly && t.find(host, plain, secure) != t.find(host, path, secure)
}

// unescape returns the first character of path and how many bytes it takes. http1
// has checked the encoding.
func unescape(path []byte) (c byte, n int) {
	if path[0] != '%' || len(path) < 3 {
		return path[0], 1
	}
	digit := func(c byte) byte {
		if c >= 'A' {
			return c | 0x20 - 'a' + 10
		}
		return c - '0'
	}
	return digit(path[1])<<4 | digit(path[2]), 3
}

// any returns a service of host, whatever the path is, or nil.
func (t *table) any(host []byte, secure bool) *service {
	hosts := t.hosts(secure)
	l := hosts[string(host)]
	for i := 0; len(l) == 0 && i < len(host); i++ {
		if host[i] == '.' && i > 0 {
			l = hosts[string(host[i:])]
			break
		}
	}
	if len(l) == 0 {
		return nil
	}
	return l[0]
}

// allowed reports whether some site that is away may publish a service at host and
// path.
func (t *table) allowed(host, path string, secure bool) bool {
	return t.may(host, path, func(scheme string) bool { return relay.OnHTTP(scheme, secure) })
}

// allowedCamera is allowed for players.
func (t *table) allowedCamera(host, path string, secure bool) bool {
	return t.may(host, path, func(scheme string) bool { return scheme == "rtsp" || scheme == "rtsps" && secure })
}

// allowedFiles is allowed for files by TFTP.
func (t *table) allowedFiles(path string) bool {
	return t.may("", path, func(scheme string) bool { return scheme == "tftp" })
}

func (t *table) may(host, path string, by func(scheme string) bool) bool {
	for _, p := range t.patterns {
		if by(p.Scheme) && relay.MatchHost(p.Host, host) && relay.MatchPath(p.Path, path) {
			return true
		}
	}
	return false
}

// longest returns the first of l, which is sorted by the length of the prefix,
// whose prefix ends where a segment of path does.
func longest(l []*service, path []byte) *service {
	for _, s := range l {
		n := len(s.prefix)
		if n == 0 || len(path) >= n && string(path[:n]) == s.prefix && (len(path) == n || path[n] == '/') {
			return s
		}
	}
	return nil
}

// appendHost appends the canonical form of a host: lower case, without port,
// brackets and the dot at the end. authority has been checked by http1.
func appendHost(dst, authority []byte) []byte {
	h := authority
	if len(h) > 0 && h[0] == '[' {
		if i := strings.IndexByte(string(h), ']'); i > 0 {
			h = h[1:i]
		}
		if a, err := netip.ParseAddr(string(h)); err == nil {
			return a.AppendTo(dst)
		}
	} else {
		for i, c := range h {
			if c == ':' {
				h = h[:i]
				break
			}
		}
	}
	if n := len(h); n > 0 && h[n-1] == '.' {
		h = h[:n-1]
	}
	for _, c := range h {
		if 'A' <= c && c <= 'Z' {
			c += 'a' - 'A'
		}
		dst = append(dst, c)
	}
	return dst
}
