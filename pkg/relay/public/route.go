package public

import (
	"cmp"
	"net/netip"
	"slices"
	"strings"
)

// table is the HTTP routes of one moment. It is immutable: a change makes a new
// one, and every loop reads the current one from Relay.routes without a lock.
type table struct {
	hosts map[hostKey][]*service // longest path prefix first
}

// hostKey is a name of a route: "app.example.com", or ".example.com" for the
// wildcard "*.example.com".
type hostKey struct {
	name   string
	secure bool // https and wss; else http and ws
}

// keyOf is the key of a published host.
func keyOf(host string, secure bool) hostKey {
	if rest, ok := strings.CutPrefix(host, "*"); ok {
		host = rest
	}
	return hostKey{host, secure}
}

// newTable makes the table of services, none of which may claim the route of
// another.
func newTable(services []*service) *table {
	t := &table{hosts: make(map[hostKey][]*service, len(services))}
	for _, s := range services {
		k := keyOf(s.host, s.secure)
		t.hosts[k] = append(t.hosts[k], s)
	}
	for _, l := range t.hosts {
		slices.SortFunc(l, func(a, b *service) int { return cmp.Compare(len(b.prefix), len(a.prefix)) })
	}
	return t
}

// find returns the service of a request for host and path, or nil: an exact
// host comes before a wildcard, which stands for one label; then the longest
// prefix decides. host is a canonical one, path may have a query.
func (t *table) find(host, path string, secure bool) *service {
	if s := longest(t.hosts[hostKey{host, secure}], path); s != nil {
		return s
	}
	if i := strings.IndexByte(host, '.'); i > 0 {
		return longest(t.hosts[hostKey{host[i:], secure}], path)
	}
	return nil
}

// any returns a service of host whatever the path is, or nil. It serves to
// choose a loop before the first request.
func (t *table) any(host string, secure bool) *service {
	l := t.hosts[hostKey{host, secure}]
	if i := strings.IndexByte(host, '.'); len(l) == 0 && i > 0 {
		l = t.hosts[hostKey{host[i:], secure}]
	}
	if len(l) == 0 {
		return nil
	}
	return l[0]
}

// longest returns the first of l, sorted by the length of its prefix, whose
// prefix ends where a segment of path does.
func longest(l []*service, path string) *service {
	for _, s := range l {
		if hasPrefix(path, s.prefix) {
			return s
		}
	}
	return nil
}

// hasPrefix reports whether prefix, which is "" or begins but does not end with
// a slash, is path or a parent of it.
func hasPrefix(path, prefix string) bool {
	if !strings.HasPrefix(path, prefix) {
		return false
	}
	return prefix == "" || len(path) == len(prefix) || path[len(prefix)] == '/' || path[len(prefix)] == '?'
}

// hostOf returns the host of a Host field or an authority in its canonical
// form: lower case, without port and without the dot at the end.
func hostOf(authority string) string {
	h := authority
	if strings.HasPrefix(h, "[") {
		if i := strings.IndexByte(h, ']'); i > 0 {
			h = h[1:i]
			if a, err := netip.ParseAddr(h); err == nil {
				return a.String()
			}
			return h
		}
	} else if i := strings.LastIndexByte(h, ':'); i >= 0 {
		h = h[:i]
	}
	h = strings.TrimSuffix(h, ".")
	for i := range len(h) {
		if c := h[i]; 'A' <= c && c <= 'Z' {
			return strings.ToLower(h)
		}
	}
	return h
}
