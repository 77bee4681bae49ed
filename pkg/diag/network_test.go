package diag

import (
	"bytes"
	"net"
	"net/netip"
	"os/exec"
	"reflect"
	"runtime"
	"strconv"
	"strings"
	"testing"
	"time"
)

func TestParseRoutes(t *testing.T) {
	const v4 = `Iface	Destination	Gateway 	Flags	RefCnt	Use	Metric	Mask		MTU	Window	IRTT
eth0	00000000	0101A8C0	0003	0	0	100	00000000	0	0	0
eth0	0001A8C0	00000000	0001	0	0	100	00FFFFFF	0	0	0
eth0	0002A8C0	00000000	0000	0	0	100	00FFFFFF	0	0	0
wg0	0000000A	00000000	0001	0	0	0	000000FF	0	0	0
bad	x	00000000	0001	0	0	0	000000FF	0	0	0
holes	0000000A	00000000	0001	0	0	0	00FF00FF	0	0	0
`
	want := []Route{{"0.0.0.0/0", "192.168.1.1", "eth0", 100}, {"192.168.1.0/24", "", "eth0", 100}, {"10.0.0.0/8", "", "wg0", 0}}
	if got := parseRoutes4(strings.NewReader(v4)); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
	const v6 = `fd000000000000000000000000000000 40 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 fe800000000000000000000000000001 00000400 00000001 00000000 00450003     eth0
00000000000000000000000000000000 00 00000000000000000000000000000000 00 00000000000000000000000000000000 ffffffff 00000001 00000000 00200200       lo
fd000000000000000000000000000005 80 00000000000000000000000000000000 00 00000000000000000000000000000000 00000000 00000002 00000000 80200001     eth0
ff000000000000000000000000000000 08 00000000000000000000000000000000 00 00000000000000000000000000000000 00000100 00000001 00000000 00000001     eth0
x
`
	want = []Route{{"fd00::/64", "", "eth0", 256}, {"::/0", "fe80::1", "eth0", 1024}}
	if got := parseRoutes6(strings.NewReader(v6)); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

const procARP = `IP address       HW type     Flags       HW address            Mask     Device
192.168.1.1      0x1         0x2         00:11:22:33:44:55     *        eth0
192.168.1.9      0x1         0x0         00:00:00:00:00:00     *        eth0
192.168.1.10     0x1         0x6         02:00:5e:10:00:01     *        br-1
garbage
`

func TestParseARP(t *testing.T) {
	want := []Neighbour{
		{"192.168.1.1", "00:11:22:33:44:55", "eth0", ""}, {"192.168.1.9", "", "eth0", "incomplete"},
		{"192.168.1.10", "02:00:5e:10:00:01", "br-1", "permanent"},
	}
	if got := parseARP(strings.NewReader(procARP)); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

// neighbourMessage is an answer of the kernel.
func neighbourMessage(index int, state uint16, address netip.Addr, mac net.HardwareAddr) []byte {
	attr := func(b []byte, kind uint16, v []byte) []byte {
		b = order.AppendUint16(b, uint16(4+len(v)))
		b = append(order.AppendUint16(b, kind), v...)
		for len(b)%4 != 0 {
			b = append(b, 0)
		}
		return b
	}
	m := []byte{2, 0, 0, 0}
	m = order.AppendUint32(m, uint32(index))
	m = append(order.AppendUint16(m, state), 0, 1)
	m = attr(m, 1, address.AsSlice())
	m = attr(m, 2, mac)
	m = attr(m, 3, make([]byte, 16)) // something else
	b := order.AppendUint32(nil, uint32(16+len(m)))
	b = append(order.AppendUint16(b, 28), 2, 0)
	return append(append(b, make([]byte, 8)...), m...)
}

func TestParseNeighbours(t *testing.T) {
	mac := net.HardwareAddr{0, 0x11, 0x22, 0x33, 0x44, 0x55}
	b := neighbourMessage(2, 2, netip.MustParseAddr("192.168.1.1"), mac)
	b = append(b, neighbourMessage(2, 0x20, netip.MustParseAddr("192.168.1.9"), nil)...)
	b = append(b, neighbourMessage(3, 4, netip.MustParseAddr("fd00::1"), mac)...)
	b = append(b, neighbourMessage(3, 0x40, netip.MustParseAddr("ff02::1"), mac)...)
	b = append(b, 16, 0, 0, 0, 3, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0) // NLMSG_DONE, on a machine with this order
	want := []Neighbour{
		{"192.168.1.1", "00:11:22:33:44:55", "if2", "reachable"}, {"192.168.1.9", "", "if2", "failed"}, {"fd00::1", "00:11:22:33:44:55", "if3", "stale"},
	}
	if got := parseNeighbours(b, func(i int) string { return "if" + strconv.Itoa(i) }); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v", got)
	}
}

func FuzzParseNeighbours(f *testing.F) {
	f.Add(neighbourMessage(2, 2, netip.MustParseAddr("192.168.1.1"), net.HardwareAddr{0, 1, 2, 3, 4, 5}))
	f.Add(neighbourMessage(2, 2, netip.MustParseAddr("fd00::1"), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, n := range parseNeighbours(b, func(int) string { return "eth0" }) {
			if _, err := netip.ParseAddr(n.Address); err != nil {
				t.Errorf("%+v: %v", n, err)
			}
		}
	})
}

func FuzzParseARP(f *testing.F) {
	f.Add([]byte(procARP))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, n := range parseARP(bytes.NewReader(b)) {
			if _, err := netip.ParseAddr(n.Address); err != nil {
				t.Errorf("%+v: %v", n, err)
			}
		}
		for _, r := range append(parseRoutes4(bytes.NewReader(b)), parseRoutes6(bytes.NewReader(b))...) {
			if _, err := netip.ParsePrefix(r.Destination); err != nil {
				t.Errorf("%+v: %v", r, err)
			}
		}
		for _, a := range parseResolvConf(bytes.NewReader(b)) {
			if _, err := netip.ParseAddr(a); err != nil {
				t.Error(err)
			}
		}
	})
}

// TestThisMachine compares what is told of this machine with what `ip` tells.
func TestThisMachine(t *testing.T) {
	ifs, err := interfaces()
	if err != nil || len(ifs) == 0 {
		t.Fatal(ifs, err)
	}
	list, err := routes()
	near, err2 := neighbours()
	if runtime.GOOS != "linux" {
		if err != errNotHere || err2 != errNotHere {
			t.Errorf("%v, %v", err, err2)
		}
		return
	}
	if err != nil || err2 != nil {
		t.Fatal(err, err2)
	}
	if out, err := exec.Command("ip", "-4", "route", "show", "default").Output(); err == nil {
		f := strings.Fields(string(out)) // default via 192.0.2.1 dev eth0
		for _, r := range list {
			if r.Destination == "0.0.0.0/0" && len(f) > 4 && (r.Gateway != f[2] || r.Interface != f[4]) && !strings.Contains(string(out), r.Gateway) {
				t.Errorf("%+v, and ip says %s", r, out)
			}
		}
	}
	if out, err := exec.Command("ip", "neigh").Output(); err == nil {
		for line := range strings.Lines(string(out)) {
			f := strings.Fields(line)
			if a, err := netip.ParseAddr(f[0]); err != nil || a.IsMulticast() || len(f) < 5 || !strings.Contains(line, "lladdr") {
				continue
			}
			found := false
			for _, n := range near {
				found = found || n.Address == f[0] && strings.Contains(line, n.MAC) && strings.Contains(line, n.Interface)
			}
			if !found {
				t.Logf("not told (it may be new): %s", line)
			}
		}
	}
	h := (&Site{Name: "office", Folders: []string{t.TempDir()}, began: time.Now()}).host()
	if h.Name == "" || h.Kernel == "" || h.Uptime == 0 || len(h.Load) != 3 || h.Memory < h.Available || h.OpenFiles < 3 || len(h.Disks) != 2 || h.Disks[0].Size < h.Disks[0].Available {
		t.Errorf("%+v", h)
	}
}

// TestWake has a magic packet sent to each network that has a broadcast address.
func TestWake(t *testing.T) {
	b := magic(net.HardwareAddr{1, 2, 3, 4, 5, 6})
	if len(b) != 102 || !bytes.Equal(b[:12], []byte{0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 1, 2, 3, 4, 5, 6}) || !bytes.Equal(b[96:], []byte{1, 2, 3, 4, 5, 6}) {
		t.Errorf("% x", b)
	}
	for in, want := range map[string]string{"192.168.1.5/24": "192.168.1.255", "10.1.2.3/8": "10.255.255.255", "10.0.0.1/30": "10.0.0.3", "172.16.5.9/20": "172.16.15.255"} {
		if got := broadcast(netip.MustParsePrefix(in)).String(); got != want {
			t.Errorf("%s: %s, want %s", in, got, want)
		}
	}
	for _, mac := range []string{"", "00:11:22:33:44", "00:11:22:33:44:55:66:77", "zz:11:22:33:44:55"} {
		if _, err := wake(t.Context(), Wake{MAC: mac}, 9); err == nil {
			t.Errorf("%q was taken", mac)
		}
	}
	if _, err := wake(t.Context(), Wake{MAC: "00:11:22:33:44:55", Interface: "no-such-0"}, 9); err == nil || !strings.Contains(err.Error(), "no interface") {
		t.Error(err)
	}
}
