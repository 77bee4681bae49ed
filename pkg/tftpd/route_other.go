//go:build !linux

package tftpd

import "net/netip"

// routeMTU does not know: only Linux says it.
func routeMTU(netip.Addr) (mtu int, ok bool) { return 0, false }
