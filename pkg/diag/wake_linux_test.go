package diag

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestWakeOnWire has the magic packet go out to two networks, and reads the frames as the machines there get them.
func TestWakeOnWire(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("making network namespaces needs root")
	}
	mac := net.HardwareAddr{0, 0x11, 0x22, 0x33, 0x44, 0x55}
	all := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and it ends with the goroutine: it stays in its namespace
		done <- func() error {
			if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
				return fmt.Errorf("unshare: %w", err)
			}
			wires := make(map[string]int)
			for name, a := range map[string]string{"home0": "192.168.77.5/24", "lab0": "10.20.30.40/20"} {
				tap, err := newWire(name, netip.MustParsePrefix(a))
				if err != nil {
					return fmt.Errorf("%s: %w", name, err)
				}
				defer unix.Close(tap)
				wires[name] = tap
			}
			want := map[string]netip.AddrPort{"home0": netip.MustParseAddrPort("192.168.77.255:9"), "lab0": netip.MustParseAddrPort("10.20.31.255:9")}
			for _, in := range []Wake{{MAC: mac.String()}, {MAC: "00-11-22-33-44-55", Interface: "lab0"}} {
				woken, err := (&Site{}).wake(t.Context(), in)
				if err != nil {
					return err
				}
				n := len(wires)
				if in.Interface != "" {
					n = 1
				}
				if len(woken.Sent) != n || woken.MAC != mac.String() {
					t.Errorf("%+v: sent %+v", in, woken)
				}
				for name, tap := range wires {
					if in.Interface != "" && in.Interface != name {
						continue
					}
					frame, to, err := nextDatagram(tap)
					if err != nil {
						return fmt.Errorf("%s: %w", name, err)
					}
					if to != want[name] || !bytes.Equal(frame[:6], all) {
						t.Errorf("%s: sent to %v at % x, want %v at % x", name, to, frame[:6], want[name], all)
					}
					if b := frame[14+20+8:]; !bytes.Equal(b, append(bytes.Clone(all), bytes.Repeat(mac, 16)...)) {
						t.Errorf("%s: %d bytes: % x", name, len(b), b)
					}
				}
			}
			return nil
		}()
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
}

// newWire makes a network card of this namespace, and returns what is plugged into it.
func newWire(name string, addr netip.Prefix) (int, error) {
	tap, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, err
	}
	ifr, err := unix.NewIfreq(name)
	if err != nil {
		return tap, err
	}
	ifr.SetUint16(unix.IFF_TAP | unix.IFF_NO_PI)
	if err := unix.IoctlIfreq(tap, unix.TUNSETIFF, ifr); err != nil {
		return tap, err
	}
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return tap, err
	}
	defer unix.Close(s)
	mask := net.CIDRMask(addr.Bits(), 32)
	for _, step := range []struct {
		request uint
		set     func(*unix.Ifreq) error
	}{
		{unix.SIOCSIFADDR, func(r *unix.Ifreq) error { return r.SetInet4Addr(addr.Addr().AsSlice()) }},
		{unix.SIOCSIFNETMASK, func(r *unix.Ifreq) error { return r.SetInet4Addr(mask) }},
		{unix.SIOCSIFFLAGS, func(r *unix.Ifreq) error {
			r.SetUint16(unix.IFF_UP | unix.IFF_BROADCAST | unix.IFF_MULTICAST)
			return nil
		}},
	} {
		r, err := unix.NewIfreq(name)
		if err != nil {
			return tap, err
		}
		if err := step.set(r); err != nil {
			return tap, err
		}
		if err := unix.IoctlIfreq(s, step.request, r); err != nil {
			return tap, err
		}
	}
	return tap, nil
}

// nextDatagram reads the next frame with a whole datagram of UDP over IPv4, and where that goes. What else the system says on a
// new network is passed over.
func nextDatagram(tap int) ([]byte, netip.AddrPort, error) {
	for end := time.Now().Add(time.Minute); time.Now().Before(end); {
		n, err := unix.Poll([]unix.PollFd{{Fd: int32(tap), Events: unix.POLLIN}}, 1000)
		if n == 0 || err == unix.EINTR {
			continue
		}
		if err != nil {
			return nil, netip.AddrPort{}, err
		}
		b := make([]byte, 2000)
		if n, err = unix.Read(tap, b); err != nil {
			return nil, netip.AddrPort{}, err
		}
		b = b[:n]
		const ethernet, ip, udp = 14, 20, 8
		if n < ethernet+ip+udp || binary.BigEndian.Uint16(b[12:]) != unix.ETH_P_IP || b[ethernet] != 0x45 || b[ethernet+9] != unix.IPPROTO_UDP {
			continue
		}
		to := netip.AddrPortFrom(netip.AddrFrom4([4]byte(b[ethernet+16:])), binary.BigEndian.Uint16(b[ethernet+ip+2:]))
		return b, to, nil
	}
	return nil, netip.AddrPort{}, fmt.Errorf("nothing came")
}
