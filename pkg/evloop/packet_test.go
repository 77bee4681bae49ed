package evloop

import (
	"bytes"
	"net"
	"net/netip"
	"testing"
	"time"
)

// listenPacket receives on the core's first loop; answer gets what comes.
func listenPacket(t testing.TB, core *Core, network, addr string, onPacket func(p *PacketConn, b []byte, from PacketAddr)) *PacketConn {
	t.Helper()
	l := core.Loop(0)
	p, err := l.ListenPacket(network, addr, nil)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { run(l, p.Close) })
	run(l, func() { p.SetHandler(func(b []byte, from PacketAddr) { onPacket(p, b, from) }) })
	return p
}

func echoPacket(p *PacketConn, b []byte, from PacketAddr) { p.WriteTo(b, from) }

func dialUDP(t testing.TB, addr string) *net.UDPConn {
	t.Helper()
	nc, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	return nc.(*net.UDPConn)
}

// TestPacketSizes echoes datagrams of every interesting size, whole.
func TestPacketSizes(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		p := listenPacket(t, core, "udp", "127.0.0.1:0", echoPacket)
		nc := dialUDP(t, p.LocalAddr().String())
		got := make([]byte, packetSize)
		for _, n := range []int{0, 1, 512, 1472, 1473, 9000, MaxPacket} {
			want := randomBytes(n)
			nc.Write(want)
			k, err := nc.Read(got)
			if err != nil || !bytes.Equal(got[:k], want) {
				t.Errorf("%d bytes came back as %d, %v", n, k, err)
			}
		}
	})
}

// TestPacketSource has a socket that is bound to no address answer from the one that was asked.
func TestPacketSource(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		for _, test := range []struct{ network, listen, ask string }{
			{"udp4", "0.0.0.0:0", "127.0.0.2"},
			{"udp", ":0", "127.0.0.2"},
			{"udp", ":0", "127.0.0.1"},
			{"udp", ":0", "::1"},
			{"udp6", "[::]:0", "::1"},
			{"udp", "127.0.0.2:0", "127.0.0.2"},
		} {
			local := make(chan netip.Addr, 1)
			p := listenPacket(t, core, test.network, test.listen, func(p *PacketConn, b []byte, from PacketAddr) {
				local <- from.Local
				p.WriteTo(b, from)
			})
			ask := netip.MustParseAddr(test.ask)
			nc := dialUDP(t, netip.AddrPortFrom(ask, p.LocalAddr().Port()).String()) // connected: hears nobody else
			nc.Write([]byte("?"))
			if got := <-local; got != ask {
				t.Errorf("%s %s: asked at %v, told %v", test.network, test.listen, ask, got)
			}
			if _, err := nc.Read(make([]byte, 1)); err != nil {
				t.Errorf("%s %s, asked at %v: %v", test.network, test.listen, ask, err)
			}
		}
	})
}
