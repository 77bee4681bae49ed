package evloop

import (
	"os"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

func tcpInfo(fd int) (TCPInfo, error) {
	i, err := unix.GetsockoptTCPInfo(fd, unix.IPPROTO_TCP, unix.TCP_INFO)
	if err != nil {
		return TCPInfo{}, err
	}
	// Of struct tcp_info: { … options[1] wscales[1] delivery_rate_app_limited:1 … }, which unix.TCPInfo leaves out.
	flags := *(*byte)(unsafe.Add(unsafe.Pointer(i), unsafe.Offsetof(i.Options)+2))
	return TCPInfo{
		RTT:                time.Duration(i.Rtt) * time.Microsecond,
		RTTVar:             time.Duration(i.Rttvar) * time.Microsecond,
		MinRTT:             time.Duration(i.Min_rtt) * time.Microsecond,
		DeliveryRate:       i.Delivery_rate,
		AppLimited:         flags&1 != 0,
		Window:             i.Snd_cwnd,
		SegmentSize:        i.Snd_mss,
		Unacked:            i.Unacked,
		Unsent:             i.Notsent_bytes,
		SegmentsOut:        i.Segs_out,
		Retransmitted:      i.Total_retrans,
		BytesAcked:         i.Bytes_acked,
		BytesRetransmitted: i.Bytes_retrans,
	}, nil
}

func congestion(fd int) (string, error) {
	return unix.GetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION)
}

func setCongestion(fd int, name string) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptString(fd, unix.IPPROTO_TCP, unix.TCP_CONGESTION, name))
}

func setUnsent(fd, n int) error {
	return os.NewSyscallError("setsockopt", unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NOTSENT_LOWAT, n))
}
