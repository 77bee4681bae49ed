package evloop

import (
	"errors"
	"syscall"
	"time"
)

// TCPInfo is what the system knows of a TCP connection's path, from its own sending. What an old kernel does not
// know is zero.
type TCPInfo struct {
	RTT, RTTVar, MinRTT time.Duration // smoothed, its variation, the least of the last minutes
	DeliveryRate        uint64        // bytes a second that arrived lately
	AppLimited          bool          // DeliveryRate was bounded by what there was to send
	Window              uint32        // congestion window, in segments
	SegmentSize         uint32        // bytes
	Unacked             uint32        // segments under way
	Unsent              uint32        // bytes that wait in the system
	SegmentsOut         uint32        // in all, with those sent again; it wraps
	Retransmitted       uint32        // segments sent again, in all; it wraps
	BytesAcked          uint64
	BytesRetransmitted  uint64
}

// notSent bounds what the system queues for a connection and has not sent, in bytes, where it has TCP_NOTSENT_LOWAT.
// What waits is then ours: a link can still send what is urgent first, and a thousand peers that do not read cannot
// fill the memory that the system has for all of TCP, which would stop everybody's connections.
const notSent = 128 << 10

// TCPInfo asks the system about the connection below, TLS or not. It is false where there is no TCP, and on systems
// other than Linux.
func (c *Conn) TCPInfo() (info TCPInfo, ok bool) {
	err := c.control(func(fd int) (err error) {
		info, err = tcpInfo(fd)
		return err
	})
	return info, err == nil
}

// Congestion returns the name of the connection's congestion control; "" where TCPInfo is false.
func (c *Conn) Congestion() (name string) {
	c.control(func(fd int) (err error) {
		name, err = congestion(fd)
		return err
	})
	return name
}

// SetCongestion changes the congestion control of a connection that may be at work: to "bbr", say. The error is
// errors.ErrUnsupported except on Linux, ENOENT if the kernel does not have it, and EPERM if it is not for everybody.
func (c *Conn) SetCongestion(name string) error {
	return c.control(func(fd int) error { return setCongestion(fd, name) })
}

// SetUnsent bounds what the system queues for the connection and has not sent yet, in bytes (TCP_NOTSENT_LOWAT): the
// more that is, the longer waits what is urgent; less than the path takes in a turn costs throughput. It is 128 KiB
// unless it is set. The error is errors.ErrUnsupported except on Linux.
func (c *Conn) SetUnsent(bytes int) error {
	return c.control(func(fd int) error { return setUnsent(fd, bytes) })
}

// control runs f on the descriptor below c.
func (c *Conn) control(f func(fd int) error) error {
	switch s := c.sock.(type) {
	case *fdSock:
		return f(s.fd)
	case *netSock:
		if sc, ok := s.nc.(syscall.Conn); ok {
			raw, err := sc.SyscallConn()
			if err != nil {
				return err
			}
			if cerr := raw.Control(func(fd uintptr) { err = f(int(fd)) }); cerr != nil {
				return cerr
			}
			return err
		}
	}
	return errors.ErrUnsupported
}
