package socks

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"culvert.dev/pkg/egress"
)

// ErrForbidden is why an address is not to be reached.
var ErrForbidden = errors.New("it is not among what may be reached")

// Rule allows some hosts at some ports: what ParseRule reads.
type Rule struct {
	text        string
	any         bool         // all hosts
	name        string       // of a host, or ".corp.example" for all below it
	prefix      netip.Prefix // if there is no name
	first, last uint16       // ports
}

func (r Rule) String() string { return r.text }

// ParseRule reads HOST:PORT. HOST is a prefix (10.0.0.0/8), an address (10.0.0.5, [fd00::5]), a name (db.corp.example), all names
// below one (*.corp.example), or *. PORT is a port, a range (8000-8999), or *.
//
// Prefixes and addresses hold for whatever leads there, names for what was asked for. Loopback and link-local addresses, the
// metadata services of clouds, and what is no address of one machine are allowed only by a rule that lies within them as a whole, such as
// "127.0.0.1:8080": neither by *, nor by a wide prefix, nor by a name that leads there, unless that is "localhost".
func ParseRule(s string) (Rule, error) {
	r := Rule{text: s}
	i := strings.LastIndexByte(s, ':')
	if i < 0 || strings.HasSuffix(s, "]") {
		return r, fmt.Errorf("%q: want HOST:PORT, such as \"10.0.0.0/8:*\" or \"*.corp.example:443\"", s)
	}
	host, ports := s[:i], s[i+1:]
	if ports == "*" {
		r.first, r.last = 1, 65535
	} else {
		from, to, isRange := strings.Cut(ports, "-")
		if !isRange {
			to = from
		}
		a, err1 := strconv.ParseUint(from, 10, 16)
		b, err2 := strconv.ParseUint(to, 10, 16)
		if err1 != nil || err2 != nil || a == 0 || b < a {
			return r, fmt.Errorf("%q: port %q: want a port, a range such as 8000-8999, or *", s, ports)
		}
		r.first, r.last = uint16(a), uint16(b)
	}
	bare := host
	if strings.HasPrefix(host, "[") {
		var ok bool
		if bare, ok = strings.CutSuffix(host[1:], "]"); !ok {
			if addr, bits, found := strings.Cut(host[1:], "]/"); found { // [fd00::]/8
				bare = addr + "/" + bits
			} else {
				return r, fmt.Errorf("%q: host %q: ] is missing", s, host)
			}
		}
	} else if strings.Contains(host, ":") {
		return r, fmt.Errorf("%q: an address of IPv6 is written in brackets: [fd00::5]:443, [fd00::/8]:*", s)
	}
	switch {
	case bare == "*":
		r.any = true
	case strings.Contains(bare, "/"):
		p, err := netip.ParsePrefix(bare)
		if err != nil || p != p.Masked() || p.Addr().Is4In6() {
			return r, fmt.Errorf("%q: %q is no prefix such as 10.0.0.0/8", s, bare)
		}
		r.prefix = p
	default:
		if a, err := netip.ParseAddr(bare); err == nil {
			if a.Zone() != "" {
				return r, fmt.Errorf("%q: an address with a zone", s)
			}
			a = a.Unmap()
			r.prefix = netip.PrefixFrom(a, a.BitLen())
			break
		}
		name := strings.ToLower(strings.TrimSuffix(bare, "."))
		rest, below := strings.CutPrefix(name, "*.")
		if !egress.IsName(rest) {
			return r, fmt.Errorf("%q: host %q: want a prefix, an address, a name, \"*.\" and a name, or *", s, bare)
		}
		r.name = rest
		if below {
			r.name = "." + rest
		}
	}
	return r, nil
}

// allows reports whether r lets name (which may be the address) be reached at a.
func (r Rule) allows(name string, a netip.Addr, port uint16) bool {
	if port < r.first || port > r.last {
		return false
	}
	if p, ok := egress.Special(a); ok {
		if r.name == "localhost" && name == "localhost" {
			return a.IsLoopback()
		}
		// The rule speaks of nothing but what is special, so it was meant.
		return r.prefix.IsValid() && r.prefix.Contains(a) && r.prefix.Bits() >= p.Bits()
	}
	switch {
	case r.any:
		return true
	case r.name == "":
		return r.prefix.Contains(a)
	}
	return r.matches(name)
}

// matches reports whether r is about that name.
func (r Rule) matches(name string) bool {
	return name == r.name || r.name[0] == '.' && strings.HasSuffix(name, r.name) && len(name) > len(r.name)
}

// mayLead reports whether r can allow something for a name, whatever its addresses are: if none does, it need not be looked up.
func (r Rule) mayLead(name string, port uint16) bool {
	return port >= r.first && port <= r.last && (r.any || r.name == "" || r.matches(name))
}

// Rules are those of a site. What none allows is forbidden.
type Rules struct {
	Allow []Rule

	// Lookup finds the addresses of a name. nil: the system's resolver.
	Lookup func(ctx context.Context, name string) ([]netip.Addr, error)
}

// Resolve returns where HOST:PORT is, as far as it may be reached: these addresses are to be dialled, and not the name again. An
// error is ErrForbidden, or of the look-up.
func (r *Rules) Resolve(ctx context.Context, address string) ([]netip.AddrPort, error) {
	host, p, err := net.SplitHostPort(address)
	n, portErr := strconv.ParseUint(p, 10, 16)
	if err != nil || portErr != nil || n == 0 || host == "" {
		return nil, fmt.Errorf("%q is no HOST:PORT", address)
	}
	port := uint16(n)
	name := strings.ToLower(strings.TrimSuffix(host, "."))
	var addrs []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		if a.Zone() != "" {
			return nil, ErrForbidden
		}
		addrs, name = []netip.Addr{a}, ""
	} else if !egress.IsName(name) {
		return nil, fmt.Errorf("%q is neither an address nor the name of a host", host)
	} else if !slices.ContainsFunc(r.Allow, func(rule Rule) bool { return rule.mayLead(name, port) }) {
		return nil, ErrForbidden
	} else if addrs, err = r.lookUp(ctx, name); err != nil {
		return nil, err
	}
	var may []netip.AddrPort
	for _, a := range addrs[:min(len(addrs), egress.MaxAddresses)] {
		a = a.Unmap().WithZone("")
		if slices.ContainsFunc(r.Allow, func(rule Rule) bool { return rule.allows(name, a, port) }) {
			may = append(may, netip.AddrPortFrom(a, port))
		}
	}
	if len(may) == 0 {
		return nil, ErrForbidden
	}
	return may, nil
}

func (r *Rules) lookUp(ctx context.Context, name string) ([]netip.Addr, error) {
	if r.Lookup != nil {
		return r.Lookup(ctx, name)
	}
	return net.DefaultResolver.LookupNetIP(ctx, "ip", name)
}
