package diag

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"

	"culvert.dev/pkg/rest"
)

const (
	maxInterfaces = 256
	maxOnOne      = 64 // addresses of an interface
	maxRoutes     = 1024
	maxNeighbours = 4096
)

// order is that of the machine, which netlink has.
var order = binary.NativeEndian

// errNotHere is the answer where a system does not tell.
var errNotHere = rest.Errorf(http.StatusNotImplemented, "this is not told on the system of this private relay: it is for Linux")

// Interface is one of the machine's.
type Interface struct {
	Name      string   `json:"name"`
	Index     int      `json:"index"`
	MAC       string   `json:"mac,omitempty"`
	MTU       int      `json:"mtu"`
	Up        bool     `json:"up"`
	Running   bool     `json:"running"` // there is a carrier
	Loopback  bool     `json:"loopback,omitempty"`
	Addresses []string `json:"addresses,omitempty"` // with their prefix: 192.168.1.5/24
}

func interfaces() ([]Interface, error) {
	ifs, err := net.Interfaces()
	if err != nil {
		return nil, rest.Internal(err)
	}
	list := []Interface{}
	for _, i := range ifs[:min(len(ifs), maxInterfaces)] {
		one := Interface{
			Name: printable(i.Name), Index: i.Index, MAC: i.HardwareAddr.String(), MTU: i.MTU,
			Up: i.Flags&net.FlagUp != 0, Running: i.Flags&net.FlagRunning != 0, Loopback: i.Flags&net.FlagLoopback != 0,
		}
		for _, p := range prefixesOf(&i) {
			if len(one.Addresses) < maxOnOne {
				one.Addresses = append(one.Addresses, p.String())
			}
		}
		list = append(list, one)
	}
	return list, nil
}

// Route is one of the machine's.
type Route struct {
	Destination string `json:"destination"` // 0.0.0.0/0 is the default
	Gateway     string `json:"gateway,omitempty"`
	Interface   string `json:"interface"`
	Metric      int    `json:"metric,omitempty"`
}

// parseRoutes4 reads /proc/net/route: numbers in hex, addresses in the machine's order of bytes.
//
//	Iface Destination Gateway Flags RefCnt Use Metric Mask MTU Window IRTT
func parseRoutes4(r io.Reader) (list []Route) {
	for sc := bufio.NewScanner(r); sc.Scan() && len(list) < maxRoutes; {
		f := strings.Fields(sc.Text())
		if len(f) < 8 {
			continue
		}
		to, err := littleEndian(f[1])
		via, err2 := littleEndian(f[2])
		mask, err3 := littleEndian(f[7])
		flags, err4 := strconv.ParseUint(f[3], 16, 16)
		if errors.Join(err, err2, err3, err4) != nil || flags&1 == 0 { // RTF_UP
			continue
		}
		ones, bits := net.IPMask(mask.AsSlice()).Size()
		if bits == 0 {
			continue
		}
		one := Route{Destination: netip.PrefixFrom(to, ones).String(), Interface: printable(f[0])}
		if flags&2 != 0 { // RTF_GATEWAY
			one.Gateway = via.String()
		}
		one.Metric, _ = strconv.Atoi(f[6])
		list = append(list, one)
	}
	return list
}

func littleEndian(s string) (netip.Addr, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 4 {
		return netip.Addr{}, errors.New("no address")
	}
	return netip.AddrFrom4([4]byte{b[3], b[2], b[1], b[0]}), nil
}

// parseRoutes6 reads /proc/net/ipv6_route: all numbers in hex.
//
//	destination length source length gateway metric refcnt use flags interface
func parseRoutes6(r io.Reader) (list []Route) {
	for sc := bufio.NewScanner(r); sc.Scan() && len(list) < maxRoutes; {
		f := strings.Fields(sc.Text())
		if len(f) < 10 {
			continue
		}
		to, err := address6(f[0])
		ones, err2 := strconv.ParseUint(f[1], 16, 8)
		via, err3 := address6(f[4])
		flags, err4 := strconv.ParseUint(f[8], 16, 32)
		metric, err5 := strconv.ParseUint(f[5], 16, 32)
		const local, cache, reject = 0x80000000, 0x01000000, 0x0200
		if errors.Join(err, err2, err3, err4, err5) != nil || ones > 128 || flags&1 == 0 || flags&(local|cache|reject) != 0 || to.IsMulticast() || f[9] == "lo" {
			continue
		}
		one := Route{Destination: netip.PrefixFrom(to, int(ones)).String(), Interface: printable(f[9]), Metric: int(metric)}
		if !via.IsUnspecified() {
			one.Gateway = via.String()
		}
		list = append(list, one)
	}
	return list
}

func address6(s string) (netip.Addr, error) {
	b, err := hex.DecodeString(s)
	if err != nil || len(b) != 16 {
		return netip.Addr{}, errors.New("no address")
	}
	return netip.AddrFrom16([16]byte(b)), nil
}

// Neighbour is a machine on one of the networks, that this one has spoken to lately.
type Neighbour struct {
	Address   string `json:"address"`
	MAC       string `json:"mac,omitempty"`
	Interface string `json:"interface"`
	State     string `json:"state,omitempty"` // reachable, stale, delay, probe, failed, incomplete, permanent or noarp
}

// parseARP reads /proc/net/arp.
//
//	IP address  HW type  Flags  HW address  Mask  Device
func parseARP(r io.Reader) (list []Neighbour) {
	sc := bufio.NewScanner(r)
	for sc.Scan() && len(list) < maxNeighbours {
		f := strings.Fields(sc.Text())
		if len(f) < 6 {
			continue
		}
		a, err := netip.ParseAddr(f[0])
		flags, err2 := strconv.ParseUint(strings.TrimPrefix(f[2], "0x"), 16, 16)
		if err != nil || err2 != nil {
			continue
		}
		one := Neighbour{Address: a.String(), Interface: printable(f[5])}
		switch {
		case flags&4 != 0:
			one.State = "permanent"
		case flags&2 == 0:
			one.State = "incomplete"
		}
		if mac, err := net.ParseMAC(f[3]); err == nil && flags&2 != 0 {
			one.MAC = mac.String()
		}
		list = append(list, one)
	}
	return list
}

// The states of a neighbour, as Linux has them (linux/neighbour.h).
var neighbourStates = map[uint16]string{0x01: "incomplete", 0x02: "reachable", 0x04: "stale", 0x08: "delay", 0x10: "probe", 0x20: "failed", 0x40: "noarp", 0x80: "permanent"}

// parseNeighbours reads the answers to RTM_GETNEIGH: messages of netlink, each with a struct ndmsg and attributes.
//
//	nlmsghdr: length 4 | type 2 | flags 2 | sequence 4 | port 4
//	ndmsg:    family 1 | padding 3 | interface 4 | state 2 | flags 1 | type 1
//	rtattr:   length 2 | type 2 | value, padded to 4
func parseNeighbours(b []byte, name func(index int) string) (list []Neighbour) {
	const newNeighbour, attrAddress, attrMAC = 28, 1, 2
	for len(b) >= 16 && len(list) < maxNeighbours {
		size := int(order.Uint32(b))
		if size < 16 || size > len(b) {
			break
		}
		kind, m := order.Uint16(b[4:]), b[16:size]
		b = b[min(len(b), (size+3)&^3):]
		if kind != newNeighbour || len(m) < 12 {
			continue
		}
		state := order.Uint16(m[8:])
		one := Neighbour{State: neighbourStates[state], Interface: name(int(order.Uint32(m[4:])))}
		m = m[12:]
		for len(m) >= 4 {
			n, attr := int(order.Uint16(m)), order.Uint16(m[2:])
			if n < 4 || n > len(m) {
				break
			}
			switch v := m[4:n]; attr {
			case attrAddress:
				if a, ok := netip.AddrFromSlice(v); ok {
					one.Address = a.String()
				}
			case attrMAC:
				if len(v) > 0 && len(v) <= 20 {
					one.MAC = net.HardwareAddr(v).String()
				}
			}
			m = m[min(len(m), (n+3)&^3):]
		}
		// The kernel has those of broadcast and multicast, too, which nobody is.
		if a, err := netip.ParseAddr(one.Address); err != nil || a.IsMulticast() || a.IsLoopback() || state == 0x40 {
			continue
		}
		list = append(list, one)
	}
	return list
}

// Wake is a machine that is to be switched on.
type Wake struct {
	MAC       string `json:"mac" doc:"of its network card, 00:11:22:33:44:55" min:"11" max:"20"`
	Interface string `json:"interface,omitempty" doc:"the network that it is in; the default is all" max:"64"`
}

// Woken is where the packet was sent to. Whether anybody has heard it, nobody says.
type Woken struct {
	MAC  string   `json:"mac"`
	Sent []string `json:"sent"` // the broadcast addresses
}

// magic is what network cards wait for: six times FF, then the address sixteen times.
func magic(mac net.HardwareAddr) []byte {
	b := []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff}
	for range 16 {
		b = append(b, mac...)
	}
	return b
}

// wake sends a magic packet to the broadcast address of each network, by UDP.
func wake(ctx context.Context, in Wake, port uint16) (Woken, error) {
	mac, err := net.ParseMAC(in.MAC)
	if err != nil || len(mac) != 6 {
		return Woken{}, badRequest("mac %q: want six bytes, such as 00:11:22:33:44:55", clip(in.MAC))
	}
	ifs, err := net.Interfaces()
	if err != nil {
		return Woken{}, rest.Internal(err)
	}
	w := Woken{MAC: mac.String()}
	found := in.Interface == ""
	var errs []error
	for _, i := range ifs {
		if in.Interface != "" && i.Name != in.Interface {
			continue
		}
		found = true
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagBroadcast == 0 || len(w.Sent) == maxInterfaces {
			continue
		}
		for _, p := range prefixesOf(&i) {
			if !p.Addr().Is4() || p.Bits() > 30 {
				continue
			}
			to := netip.AddrPortFrom(broadcast(p), port)
			if err := sendFrom(ctx, p.Addr(), to, magic(mac)); err != nil {
				errs = append(errs, err)
				continue
			}
			w.Sent = append(w.Sent, to.Addr().String()+" ("+printable(i.Name)+")")
		}
	}
	switch {
	case !found:
		return w, rest.Errorf(http.StatusNotFound, "there is no interface %q", clip(in.Interface))
	case len(w.Sent) == 0 && errs == nil:
		return w, rest.Errorf(http.StatusNotFound, "no interface that is up has a network with a broadcast address")
	case len(w.Sent) == 0:
		_, text := classify(errors.Join(errs...))
		return w, badRequest("nothing could be sent: %s", text)
	}
	return w, nil
}

// broadcast is the last address of a network.
func broadcast(p netip.Prefix) netip.Addr {
	b := p.Masked().Addr().As4()
	for i := p.Bits(); i < 32; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	return netip.AddrFrom4(b)
}

// sendFrom sends a datagram from an address of this machine, so that it leaves by that interface.
func sendFrom(ctx context.Context, from netip.Addr, to netip.AddrPort, b []byte) error {
	d := net.Dialer{LocalAddr: net.UDPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
	c, err := d.DialContext(ctx, "udp4", to.String())
	if err != nil {
		return err
	}
	defer c.Close()
	_, err = c.Write(b)
	return err
}
