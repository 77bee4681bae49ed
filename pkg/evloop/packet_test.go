package evloop

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/netip"
	"runtime"
	"syscall"
	"testing"
	"testing/synctest"
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
	nc.SetDeadline(time.Now().Add(time.Minute))
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

// linkLocal returns an address of ours that means nothing without its interface; "" if there is none.
func linkLocal() string {
	ifs, _ := net.Interfaces()
	for _, i := range ifs {
		addrs, _ := i.Addrs()
		for _, a := range addrs {
			if n, ok := a.(*net.IPNet); ok && n.IP.To4() == nil && n.IP.IsLinkLocalUnicast() {
				return n.IP.String() + "%" + i.Name
			}
		}
	}
	return ""
}

// TestPacketSource has a socket that is bound to no address answer from the one that was asked.
func TestPacketSource(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		type source struct{ network, listen, ask string }
		tests := []source{
			{"udp4", "0.0.0.0:0", "127.0.0.2"},
			{"udp", ":0", "127.0.0.2"},
			{"udp", ":0", "127.0.0.1"},
			{"udp", ":0", "::1"},
			{"udp6", "[::]:0", "::1"},
			{"udp", "127.0.0.2:0", "127.0.0.2"},
		}
		if a := linkLocal(); a != "" {
			tests = append(tests, source{"udp", ":0", a})
		}
		for _, test := range tests {
			local := make(chan netip.Addr, 1)
			p := listenPacket(t, core, test.network, test.listen, func(p *PacketConn, b []byte, from PacketAddr) {
				local <- from.Local
				p.WriteTo(b, from)
			})
			ask := netip.MustParseAddr(test.ask)
			nc := dialUDP(t, netip.AddrPortFrom(ask, p.LocalAddr().Port()).String()) // connected: hears nobody else
			nc.Write([]byte("?"))
			if got := <-local; got.WithZone("") != ask.WithZone("") {
				t.Errorf("%s %s: asked at %v, told %v", test.network, test.listen, ask, got)
			}
			if _, err := nc.Read(make([]byte, 1)); err != nil {
				t.Errorf("%s %s, asked at %v: %v", test.network, test.listen, ask, err)
			}
		}
	})
}

// TestPacketRefuses drops what cannot be sent, and nothing else.
func TestPacketRefuses(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		p := listenPacket(t, core, "udp4", "127.0.0.1:0", echoPacket)
		q := listenPacket(t, core, "udp", ":0", echoPacket)
		sink, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		defer sink.Close()
		sink.SetDeadline(time.Now().Add(time.Minute))
		port := sink.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		good := PacketAddr{Remote: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)}
		mapped := PacketAddr{Remote: netip.AddrPortFrom(netip.MustParseAddr("::ffff:127.0.0.1"), port)}
		for _, test := range []struct {
			p  *PacketConn
			to PacketAddr
			n  int
		}{
			{p, good, MaxPacket + 1},
			{p, PacketAddr{}, 1},
			{p, PacketAddr{Remote: netip.AddrPortFrom(netip.IPv6Loopback(), port)}, 1},
			{p, PacketAddr{Remote: netip.AddrPortFrom(good.Remote.Addr(), 0)}, 1},
			{q, PacketAddr{Remote: good.Remote, Local: netip.MustParseAddr("192.0.2.1")}, 1}, // is not ours
		} {
			before := test.p.Dropped()
			run(core.Loop(0), func() {
				test.p.WriteTo([]byte("before"), good)
				test.p.WriteTo(make([]byte, test.n), test.to)
				test.p.WriteTo([]byte("after"), mapped)
			})
			for _, want := range []string{"before", "after"} {
				got := make([]byte, packetSize)
				n, err := sink.Read(got)
				if string(got[:n]) != want {
					t.Errorf("to %v: got %d bytes, %v; want %q", test.to, n, err, want)
				}
			}
			if got := test.p.Dropped() - before; got != 1 {
				t.Errorf("to %v: dropped %d, want 1", test.to, got)
			}
		}
	})
}

// TestPacketOrder writes more in a turn than is gathered, to two sockets in turns.
func TestPacketOrder(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		p := listenPacket(t, core, "udp", "127.0.0.1:0", echoPacket)
		q := listenPacket(t, core, "udp", "127.0.0.1:0", echoPacket)
		sink := dialUDP(t, p.LocalAddr().String())
		sink.SetReadBuffer(PacketBuffer)
		other := dialUDP(t, q.LocalAddr().String())
		other.SetReadBuffer(PacketBuffer)
		const n = 300
		run(core.Loop(0), func() {
			for i := range n {
				p.WriteTo(bytes.Repeat([]byte{byte(i)}, i%200), PacketAddr{Remote: netAddrPort(sink.LocalAddr())})
				q.WriteTo(bytes.Repeat([]byte{byte(i)}, 1000), PacketAddr{Remote: netAddrPort(other.LocalAddr())})
			}
		})
		got := make([]byte, packetSize)
		for i := range n {
			if k, err := sink.Read(got); err != nil || k != i%200 || k > 0 && got[k-1] != byte(i) {
				t.Fatalf("datagram %d of one socket: %d bytes, %v", i, k, err)
			}
			if k, err := other.Read(got); err != nil || k != 1000 || got[0] != byte(i) {
				t.Fatalf("datagram %d of the other: %d bytes, %v", i, k, err)
			}
		}
		if p.Dropped()+q.Dropped() != 0 {
			t.Errorf("dropped %d and %d", p.Dropped(), q.Dropped())
		}
	})
}

// TestPacketFlood sends much to a socket that nobody reads, then has it read.
func TestPacketFlood(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		l := core.Loop(0)
		p, err := l.ListenPacket("udp", "127.0.0.1:0", nil)
		if err != nil {
			t.Fatal(err)
		}
		nc := dialUDP(t, p.LocalAddr().String())
		const n = 20_000
		for range n {
			nc.Write(make([]byte, 1000))
		}
		got, after := 0, -1
		last := make(chan struct{}, n)
		run(l, func() {
			p.SetHandler(func(b []byte, from PacketAddr) {
				got++
				if len(b) == 1 {
					last <- struct{}{}
				} else if got == 1 {
					l.Post(func() { after = got })
				}
			})
		})
		for arrived := false; !arrived; { // the system's buffer may still be full
			nc.Write([]byte("x"))
			select {
			case <-last:
				arrived = true
			case <-time.After(10 * time.Millisecond):
			}
		}
		run(l, func() {
			if got < 100 || got >= n {
				t.Errorf("got %d of %d datagrams", got, n)
			}
			if after > turnPackets {
				t.Errorf("another's turn came after %d datagrams", after)
			}
			p.Close()
		})
	})
}

// dialPacket connects on the core's first loop.
func dialPacket(t *testing.T, core *Core, network, addr string) (p *PacketConn, err error) {
	t.Helper()
	l := core.Loop(0)
	done := make(chan struct{})
	l.Post(func() {
		l.DialPacket(t.Context(), network, addr, func(got *PacketConn, gotErr error) {
			p, err = got, gotErr
			close(done)
		})
	})
	<-done
	if err == nil {
		t.Cleanup(func() { run(l, p.Close) })
	}
	return p, err
}

// TestDialPacket talks over a connected socket: to a peer, to nobody, and to the peer that comes then.
func TestDialPacket(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		l := core.Loop(0)
		peer, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		peer.SetDeadline(time.Now().Add(time.Minute))
		addr := netAddrPort(peer.LocalAddr())
		p, err := dialPacket(t, core, "udp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		if p.RemoteAddr() != addr || p.LocalAddr().Addr() != addr.Addr() || p.LocalAddr().Port() == 0 {
			t.Errorf("socket from %v to %v", p.LocalAddr(), p.RemoteAddr())
		}
		heard := make(chan string, 10)
		failed := make(chan error, 100)
		run(l, func() {
			p.SetHandler(func(b []byte, from PacketAddr) {
				if from.Remote != addr || from.Local != p.LocalAddr().Addr() {
					t.Errorf("from %v", from)
				}
				heard <- string(b)
			})
			p.OnError = func(err error) { failed <- err }
			p.Write([]byte("hello"))
		})
		talk := func(peer net.PacketConn) {
			t.Helper()
			b := make([]byte, 10)
			n, from, err := peer.ReadFrom(b)
			if string(b[:n]) != "hello" {
				t.Fatalf("peer got %q, %v", b[:n], err)
			}
			stranger := dialUDP(t, p.LocalAddr().String())
			stranger.Write([]byte("not for you"))
			peer.WriteTo([]byte("answer"), from)
			if got := <-heard; got != "answer" {
				t.Errorf("heard %q", got)
			}
		}
		talk(peer)

		peer.Close()
		run(l, func() { p.Write([]byte("anybody?")) })
		if err := <-failed; !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("nobody is there: %v", err)
		}

		peer, err = net.ListenPacket("udp", addr.String())
		if err != nil {
			t.Fatal(err)
		}
		defer peer.Close()
		peer.SetDeadline(time.Now().Add(time.Minute))
		run(l, func() { p.Write([]byte("hello")) })
		talk(peer)
	})
}

func TestDialPacketAddresses(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		for _, test := range []struct {
			network, addr, remote string // "": an error
		}{
			{"udp", "127.0.0.1:53", "127.0.0.1:53"},
			{"udp", "[::1]:53", "[::1]:53"},
			{"udp6", "[::1]:53", "[::1]:53"},
			{"udp4", "localhost:53", "127.0.0.1:53"},
			{"udp", "127.0.0.1:domain", "127.0.0.1:53"},
			{"udp4", "[::1]:53", ""},
			{"udp6", "127.0.0.1:53", ""},
			{"tcp", "127.0.0.1:53", ""},
			{"udp5", "127.0.0.1:53", ""},
			{"udp", "127.0.0.1", ""},
			{"udp", "name.invalid:53", ""},
		} {
			p, err := dialPacket(t, core, test.network, test.addr)
			switch {
			case test.remote == "" && err == nil:
				t.Errorf("%s %s was dialled", test.network, test.addr)
			case test.remote != "" && err != nil:
				t.Errorf("%s %s: %v", test.network, test.addr, err)
			case err == nil && p.RemoteAddr().String() != test.remote:
				t.Errorf("%s %s leads to %v", test.network, test.addr, p.RemoteAddr())
			}
		}
	})
}

// TestPacketClose closes in a callback: what was written leaves, nothing more comes.
func TestPacketClose(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		l := core.Loop(0)
		p, err := l.ListenPacket("udp", "127.0.0.1:0", nil)
		if err != nil {
			t.Fatal(err)
		}
		nc := dialUDP(t, p.LocalAddr().String())
		for range 10 {
			nc.Write([]byte("x"))
		}
		calls := 0
		run(l, func() {
			p.OnError = func(error) { t.Error("an error after Close") }
			p.SetHandler(func(b []byte, from PacketAddr) {
				calls++
				p.WriteTo([]byte("bye"), from)
				p.Close()
				p.Close()
				p.WriteTo([]byte("too late"), from)
				p.fail(errNoAddress)
			})
		})
		got := make([]byte, 10)
		if n, err := nc.Read(got); string(got[:n]) != "bye" {
			t.Errorf("got %q, %v", got[:n], err)
		}
		for range 3 {
			run(l, func() {})
		}
		run(l, func() {
			if calls != 1 {
				t.Errorf("%d calls, %d of them after Close", calls, calls-1)
			}
		})
	})
}

// TestPacketCoreClose ends a core that has sockets.
func TestPacketCoreClose(t *testing.T) {
	for _, portable := range []bool{false, true} {
		core := newCore(t, Config{Portable: portable})
		l := core.Loop(0)
		p, err := l.ListenPacket("udp", "127.0.0.1:0", func([]byte, PacketAddr) {})
		if err != nil {
			t.Fatal(err)
		}
		if _, err := dialPacket(t, core, "udp", p.LocalAddr().String()); err != nil {
			t.Fatal(err)
		}
		core.Close()
		if _, err := l.ListenPacket("udp", p.LocalAddr().String(), nil); !errors.Is(err, ErrClosed) {
			t.Errorf("ListenPacket after Close: %v", err)
		}
		nc, err := net.ListenPacket("udp", p.LocalAddr().String())
		if err != nil {
			t.Fatalf("the port is not free: %v", err)
		}
		nc.Close()
	}
}

// TestPacketSilent counts what a thousand connected sockets cost that have said something.
func TestPacketSilent(t *testing.T) {
	if !havePoller {
		t.Skip("without a poller each has a goroutine")
	}
	core := newCore(t, Config{})
	l := core.Loop(0)
	p := listenPacket(t, core, "udp", "127.0.0.1:0", echoPacket)
	n := 0
	done := make(chan struct{})
	heap := func() uint64 {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return m.HeapAlloc
	}
	const conns = 1000
	goroutines, before := runtime.NumGoroutine(), heap()
	run(l, func() {
		for range conns {
			l.DialPacket(t.Context(), "udp", p.LocalAddr().String(), func(c *PacketConn, err error) {
				if err != nil {
					t.Fatal(err)
				}
				c.SetHandler(func([]byte, PacketAddr) {
					if n++; n == conns {
						close(done)
					}
				})
				c.Write([]byte("x"))
			})
		}
	})
	<-done
	if g := runtime.NumGoroutine(); g > goroutines {
		t.Errorf("%d goroutines for %d sockets", g-goroutines, conns)
	}
	if each := (int64(heap()) - int64(before)) / conns; each > 2000 {
		t.Errorf("%d bytes a socket", each)
	} else {
		t.Logf("%d bytes a socket", each)
	}
	run(l, func() {
		if l.outgoing.buf != nil {
			t.Error("the loop holds a buffer for nothing")
		}
	})
}

// TestListenPacketFile serves a socket that somebody else has opened.
func TestListenPacketFile(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		l := core.Loop(0)
		manager, err := net.ListenUDP("udp", nil)
		if err != nil {
			t.Fatal(err)
		}
		defer manager.Close()
		nc := dialUDP(t, netip.AddrPortFrom(netip.MustParseAddr("127.0.0.2"), netAddrPort(manager.LocalAddr()).Port()).String())
		nc.Write([]byte("early"))
		f, err := manager.File()
		if err != nil {
			t.Fatal(err)
		}
		p, err := l.ListenPacketFile(f, nil)
		f.Close()
		if err != nil {
			t.Fatal(err)
		}
		run(l, func() { p.SetHandler(func(b []byte, from PacketAddr) { p.WriteTo(b, from) }) })
		got := make([]byte, 10)
		for _, want := range []string{"early", "late"} {
			if n, err := nc.Read(got); string(got[:n]) != want {
				t.Errorf("got %q, %v, want %q", got[:n], err, want)
			}
			nc.Write([]byte("late"))
		}
		if r, s := p.Buffers(); runtime.GOOS == "linux" && (r < 1000 || s < 1000) {
			t.Errorf("buffers of %d and %d bytes", r, s)
		}
		run(l, p.Close)
	})
}

// datagrams is a net.PacketConn in memory. It takes nothing while it is full.
type datagrams struct {
	net.PacketConn // nil: any other use is a bug
	in, out        chan string
	closed         chan struct{}
}

func (d *datagrams) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case s := <-d.in:
		return copy(b, s), net.UDPAddrFromAddrPort(netip.MustParseAddrPort("192.0.2.1:1")), nil
	case <-d.closed:
		return 0, nil, io.ErrClosedPipe
	}
}

func (d *datagrams) WriteTo(b []byte, to net.Addr) (int, error) {
	select {
	case d.out <- to.String() + " " + string(b):
		return len(b), nil
	case <-d.closed:
		return 0, io.ErrClosedPipe
	}
}

func (d *datagrams) LocalAddr() net.Addr { return nil }
func (d *datagrams) Close() error        { close(d.closed); return nil }

// TestAttachPacket drives any net.PacketConn, and queues little for one that takes nothing.
func TestAttachPacket(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		d := &datagrams{in: make(chan string), out: make(chan string), closed: make(chan struct{})}
		p, err := l.AttachPacket(d, nil)
		if err != nil {
			t.Fatal(err)
		}
		run(l, func() { p.SetHandler(func(b []byte, from PacketAddr) { p.WriteTo(b, from) }) })
		d.in <- "hello"
		if got := <-d.out; got != "192.0.2.1:1 hello" {
			t.Errorf("sent %q", got)
		}
		to := PacketAddr{Remote: netip.MustParseAddrPort("192.0.2.2:2")}
		const n = 10_000
		for range 10 {
			run(l, func() {
				for range n / 10 {
					p.WriteTo(make([]byte, 1000), to)
				}
			})
		}
		synctest.Wait()
		sent := 0
		for ; ; sent++ {
			synctest.Wait()
			select {
			case <-d.out:
				continue
			default:
			}
			break
		}
		if dropped := int(p.Dropped()); sent+dropped != n || sent > 2*netPacketBytes/1000 || sent < 100 {
			t.Errorf("of %d datagrams %d were sent and %d dropped", n, sent, dropped)
		}
		run(l, p.Close)
	})
}

// TestSendPacketFile sends from a loop that leaves it to another one to receive.
func TestSendPacketFile(t *testing.T) {
	for _, portable := range []bool{false, true} {
		core := newCore(t, Config{Loops: 2, Portable: portable})
		nc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		f, err := nc.(*net.UDPConn).File()
		nc.Close()
		if err != nil {
			t.Skip("the system does not share sockets so: ", err)
		}
		defer f.Close()
		one, other := core.Loop(0), core.Loop(1)
		sender, err := other.SendPacketFile(f)
		if err != nil {
			t.Fatal(err)
		}
		p, err := one.ListenPacketFile(f, nil)
		if err != nil {
			t.Fatal(err)
		}
		run(one, func() {
			p.SetHandler(func(b []byte, from PacketAddr) {
				b = bytes.Clone(b)
				other.Post(func() { sender.WriteTo(b, from) })
			})
		})
		client := dialUDP(t, p.LocalAddr().String())
		b := make([]byte, 10)
		for i := range 100 {
			client.Write([]byte{byte(i)})
			if n, err := client.Read(b); err != nil || n != 1 || b[0] != byte(i) {
				t.Fatalf("answer %d: %d, %v", i, b[:n], err)
			}
		}
		run(other, sender.Close)
		run(one, p.Close)
	}
}
