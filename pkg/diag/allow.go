package diag

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"culvert.dev/pkg/egress"
	"culvert.dev/pkg/rest"
)

// A Rule is one thing that may be asked: what ParseRule reads.
type Rule struct {
	word   string       // "networks", "services" or "*"
	name   string       // of a host, or what follows "*" in a pattern
	below  bool         // all names that end with name
	prefix netip.Prefix // if there is neither word nor name
	port   uint16       // 0: all
}

// ParseRule reads a rule:
//
//	networks            the networks that this machine is in, without its loopback
//	services            the targets of the site's services
//	10.0.0.0/8          addresses
//	10.0.0.5:443        an address, with or without a port; [fd00::5]:443
//	db.lan:5432         a name, whatever its addresses are
//	*.lan               all names below lan
//	*                   everything
//
// The metadata service of clouds, link-local addresses, and what is no address of one machine are allowed by their own address
// alone.
func ParseRule(s string) (Rule, error) {
	if s == "networks" || s == "services" || s == "*" {
		return Rule{word: s}, nil
	}
	if strings.Contains(s, "/") {
		p, err := netip.ParsePrefix(s)
		if err != nil || p != p.Masked() {
			return Rule{}, fmt.Errorf("%q: want a prefix such as 10.0.0.0/8", s)
		}
		return Rule{prefix: p}, nil
	}
	if a, err := netip.ParseAddr(s); err == nil {
		return Rule{prefix: netip.PrefixFrom(a.Unmap().WithZone(""), a.Unmap().BitLen())}, nil
	}
	var r Rule
	host := s
	if h, port, err := net.SplitHostPort(s); err == nil {
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil || n == 0 {
			return Rule{}, fmt.Errorf("%q: port %q: want 1 to 65535", s, port)
		}
		host, r.port = h, uint16(n)
	}
	if a, err := netip.ParseAddr(host); err == nil {
		r.prefix = netip.PrefixFrom(a.Unmap().WithZone(""), a.Unmap().BitLen())
		return r, nil
	}
	r.name = strings.ToLower(strings.TrimSuffix(host, "."))
	if rest, ok := strings.CutPrefix(r.name, "*."); ok {
		r.name, r.below = "."+rest, true
	}
	if !egress.IsName(strings.TrimPrefix(r.name, ".")) {
		return Rule{}, fmt.Errorf("%q: want networks, services, a prefix, an address or a name, which may have a port, or *", s)
	}
	return r, nil
}

// own are the prefixes of the networks that this machine is in.
func own() (list []netip.Prefix) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range ifs {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagLoopback != 0 {
			continue
		}
		for _, p := range prefixesOf(&i) {
			if p.Bits() > 0 {
				list = append(list, p.Masked())
			}
		}
	}
	return list
}

// prefixesOf are the addresses of an interface, with their networks.
func prefixesOf(i *net.Interface) (list []netip.Prefix) {
	addrs, err := i.Addrs()
	if err != nil {
		return nil
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok {
			if ip, ok := netip.AddrFromSlice(n.IP); ok {
				ones, _ := n.Mask.Size()
				list = append(list, netip.PrefixFrom(ip.Unmap(), ones))
			}
		}
	}
	return list
}

// isSpecial reports whether no wide rule allows a. The machine itself may be asked by "*".
func isSpecial(a netip.Addr) bool {
	_, is := egress.Special(a)
	return is && !a.IsLoopback()
}

// allows reports whether name and its address may be asked at port. name may be the address.
func (s *Site) allows(name string, a netip.Addr, port uint16) bool {
	a = a.Unmap().WithZone("")
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	special := isSpecial(a)
	for _, r := range s.rules() {
		if r.port != 0 && r.port != port {
			continue
		}
		switch {
		case special:
			if r.word == "" && r.name == "" && r.prefix.IsSingleIP() && r.prefix.Addr() == a {
				return true
			}
		case r.word == "*":
			return true
		case r.word == "networks":
			if slices.ContainsFunc(own(), func(p netip.Prefix) bool { return p.Contains(a) }) {
				return true
			}
		case r.word == "services":
			for _, t := range s.targets() {
				if host, p, err := net.SplitHostPort(t.Address); err == nil && p == strconv.Itoa(int(port)) && (strings.EqualFold(host, name) || host == a.String()) {
					return true
				}
			}
		case r.name != "":
			if name == r.name || r.below && strings.HasSuffix(name, r.name) {
				return true
			}
		case r.prefix.Contains(a):
			return true
		}
	}
	return false
}

// rules are those of the configuration of the moment.
func (s *Site) rules() []Rule {
	if s.Allow != nil {
		if list := s.Allow(); list != nil {
			return list
		}
	}
	return []Rule{{word: "networks"}, {word: "services"}}
}

func (s *Site) targets() []Target {
	if s.Targets == nil {
		return nil
	}
	return s.Targets()
}

// forbidden says why nobody is asked.
func forbidden(target string) error {
	return rest.Errorf(http.StatusForbidden, "%s is not among what this site lets be asked: name it in diagnostics_targets of its private.toml", target)
}

// resolve returns the addresses of a host that may be asked at port, and how the look-up went.
func (s *Site) resolve(ctx context.Context, host string, port uint16) ([]netip.Addr, error) {
	var all []netip.Addr
	if a, err := netip.ParseAddr(host); err == nil {
		all = []netip.Addr{a}
	} else if !egress.IsName(strings.TrimSuffix(host, ".")) {
		return nil, rest.Errorf(http.StatusBadRequest, "%q is neither an address nor the name of a host", clip(host))
	} else if all, err = s.resolver().LookupNetIP(ctx, "ip", host); err != nil {
		return nil, err
	}
	var may []netip.Addr
	for _, a := range all[:min(len(all), egress.MaxAddresses)] {
		if s.allows(host, a, port) {
			may = append(may, a.Unmap())
		}
	}
	if len(may) == 0 {
		return nil, forbidden(net.JoinHostPort(host, strconv.Itoa(int(port))))
	}
	return may, nil
}

func (s *Site) resolver() *net.Resolver {
	if s.Resolver != nil {
		return s.Resolver
	}
	return net.DefaultResolver
}

// splitTarget reads host:port.
func splitTarget(s string, port uint16) (string, uint16, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil && port != 0 {
		return a.String(), port, nil
	}
	host, p, err := net.SplitHostPort(s)
	if err != nil {
		if port == 0 || strings.ContainsAny(s, ":[]/") {
			return "", 0, rest.Errorf(http.StatusBadRequest, "%q: want HOST:PORT", clip(s))
		}
		return s, port, nil
	}
	n, err := strconv.ParseUint(p, 10, 16)
	if err != nil || n == 0 || host == "" {
		return "", 0, rest.Errorf(http.StatusBadRequest, "%q: want HOST:PORT, the port from 1 to 65535", clip(s))
	}
	return host, uint16(n), nil
}

// clip keeps a message short.
func clip(s string) string {
	if len(s) > 100 {
		return s[:97] + "..."
	}
	return s
}
