package link

import (
	"net"
	"runtime"

	"golang.org/x/net/ipv4"
)

// QUICSocket makes a socket ready for a quic.Transport that carries links.
func QUICSocket(pc *net.UDPConn) net.PacketConn { return &socket{pc, ipv4.NewPacketConn(pc)} }

// socket lets the other goroutines of a connection run between reads. quic-go keeps
// 128 datagrams for ReceiveDatagram and drops the rest, and after a pause the kernel
// has thousands of them, which would come without one of ours being run.
type socket struct {
	*net.UDPConn
	batches *ipv4.PacketConn
}

// ReadBatch reads some packets, 8 of them in quic-go.
func (s *socket) ReadBatch(ms []ipv4.Message, flags int) (int, error) {
	runtime.Gosched()
	return s.batches.ReadBatch(ms, flags)
}
