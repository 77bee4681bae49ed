package tftpd

import (
	"net/netip"

	"culvert.dev/pkg/tftp"
)

// routeBlock returns how many bytes a block may have so that its datagram goes to peer in one piece.
func routeBlock(peer netip.Addr) int {
	const dataHead, udpHead = 4, 8
	mtu, ipHead := 1500, 20
	if peer = peer.Unmap(); peer.Is6() {
		ipHead = 40
	}
	if m, ok := routeMTU(peer); ok {
		mtu = m
	} else if peer.IsLoopback() {
		return tftp.MaxBlock
	}
	return min(max(mtu-ipHead-udpHead-dataHead, tftp.MinBlock), tftp.MaxBlock)
}
