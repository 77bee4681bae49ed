package relay

import "net/netip"

// Source is the address that limits are counted by: a host with IPv6 usually
// has a whole /64 to itself.
func Source(a netip.Addr) netip.Addr {
	a = a.Unmap().WithZone("")
	if a.Is6() {
		p, _ := a.Prefix(64)
		return p.Addr()
	}
	return a
}
