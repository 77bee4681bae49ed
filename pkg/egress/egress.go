// Package egress knows what a private relay has to look at when it dials what somebody else has chosen: a name has many
// addresses, and some addresses are no machine of the site's network. Who may reach what is said by the rules of packages diag and
// socks.
package egress

import (
	"net/netip"
	"strings"
)

// MaxAddresses is how many addresses of a name are looked at.
const MaxAddresses = 16

// IsName reports whether s can be the name of a host.
func IsName(s string) bool {
	if s == "" || len(s) > 253 {
		return false
	}
	for label := range strings.SplitSeq(s, ".") {
		if label == "" || len(label) > 63 || strings.Trim(strings.ToLower(label), "abcdefghijklmnopqrstuvwxyz0123456789-_") != "" {
			return false
		}
	}
	return true
}

// special are such addresses, with IPv4's own in IPv6.
var special = func() (list []netip.Prefix) {
	for _, s := range []string{
		"0.0.0.0/8", "127.0.0.0/8", "169.254.0.0/16", "224.0.0.0/4", "255.255.255.255/32",
		"100.100.100.200/32", "168.63.129.16/32", "192.0.0.192/32", // metadata of Alibaba, Azure's wire server, Oracle
		"::/128", "::1/128", "fe80::/10", "ff00::/8", "fd00:ec2::254/128", "fd20:ce::254/128", // of AWS and Google by IPv6
	} {
		list = append(list, netip.MustParsePrefix(s))
	}
	return list
}()

// embedding are prefixes behind which there is an address of IPv4: NAT64 (rfc6052), its local one (rfc8215), and what was IPv4-compatible.
var embedding = []netip.Prefix{netip.MustParsePrefix("64:ff9b::/96"), netip.MustParsePrefix("64:ff9b:1::/96"), netip.MustParsePrefix("::/96"), netip.MustParsePrefix("::ffff:0:0:0/96")}

// Special returns the special prefix that a is in: such an address is reached only if it was meant, not by a rule that happens to
// hold for it, nor by a name that leads there.
func Special(a netip.Addr) (netip.Prefix, bool) {
	for _, p := range special {
		if p.Contains(a) {
			return p, true
		}
	}
	for _, p := range embedding {
		if p.Contains(a) {
			b := a.As16()
			if _, ok := Special(netip.AddrFrom4([4]byte(b[12:]))); ok {
				return p, true
			}
		}
	}
	return netip.Prefix{}, false
}
