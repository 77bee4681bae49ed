package netem

import (
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func newLink(t *testing.T, c Config) *Link {
	t.Helper()
	l, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(l.Close)
	return l
}

// listenUDP is a socket in a namespace.
func listenUDP(t *testing.T, n *Namespace) *net.UDPConn {
	t.Helper()
	var c *net.UDPConn
	if err := n.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// at is where a socket of a namespace is reached.
func at(n *Namespace, c interface{ LocalAddr() net.Addr }) netip.AddrPort {
	return netip.AddrPortFrom(n.Addr(), netip.MustParseAddrPort(c.LocalAddr().String()).Port())
}

// echoUDP returns every datagram.
func echoUDP(c *net.UDPConn) {
	b := make([]byte, 2000)
	for {
		n, from, err := c.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		c.WriteToUDPAddrPort(b[:n], from)
	}
}

// pinger measures round trips from inside to an echo outside.
type pinger struct {
	t    *testing.T
	c    *net.UDPConn
	echo netip.AddrPort
	n    uint64
}

func newPinger(t *testing.T, l *Link) *pinger {
	t.Helper()
	echo := listenUDP(t, l.Outside)
	go echoUDP(echo)
	return &pinger{t: t, c: listenUDP(t, l.Inside), echo: at(l.Outside, echo)}
}

// ping returns false if there is no answer in some time.
func (p *pinger) ping(limit time.Duration) (time.Duration, bool) {
	p.t.Helper()
	p.n++
	b := binary.BigEndian.AppendUint64(nil, p.n)
	began := time.Now()
	p.c.WriteToUDPAddrPort(b, p.echo)
	p.c.SetReadDeadline(began.Add(limit))
	for {
		if _, err := p.c.Read(b); errors.Is(err, os.ErrDeadlineExceeded) {
			return 0, false
		} else if err != nil {
			p.t.Fatal(err)
		}
		if binary.BigEndian.Uint64(b) == p.n { // not a late one
			return time.Since(began), true
		}
	}
}

func TestRoundTrip(t *testing.T) {
	l := newLink(t, Config{})
	p := newPinger(t, l)
	var times []time.Duration
	for range 40 {
		d, ok := p.ping(5 * time.Second)
		if !ok {
			t.Fatal("lost without loss")
		}
		times = append(times, d)
	}
	slices.Sort(times)
	if times[0] < 50*time.Millisecond {
		t.Errorf("a round trip took %v, faster than the link is", times[0])
	}
	t.Logf("round trip of a link of 2 x 25 ms: least %v, median %v, most %v", times[0], times[20], times[39])
}

func TestLoss(t *testing.T) {
	l := newLink(t, Config{Loss: 0.03, Delay: time.Millisecond})
	from, to := listenUDP(t, l.Inside), listenUDP(t, l.Outside)
	to.SetReadBuffer(8 << 20)
	const sent = 10000
	received := make(chan int)
	go func() {
		n, b := 0, make([]byte, 2000)
		for {
			if _, err := to.Read(b); err != nil {
				received <- n
				return
			}
			n++
		}
	}()
	for i := range sent {
		if i%10 == 0 {
			time.Sleep(time.Millisecond)
		}
		from.WriteToUDPAddrPort(make([]byte, 512), at(l.Outside, to))
	}
	time.Sleep(100 * time.Millisecond)
	to.Close()
	n := <-received
	in, _ := l.Count()
	t.Logf("of %d packets %d arrived, %d were lost, %d found the queue full", sent, n, in.Lost, in.Dropped)
	if in.Packets+in.Lost+in.Dropped != sent || int64(n) > in.Packets {
		t.Errorf("%+v, and %d of %d arrived", in, n, sent)
	}
	if in.Lost < sent*2/100 || in.Lost > sent*4/100 {
		t.Errorf("lost %d of %d, want about 3 in 100", in.Lost, sent)
	}
}

// TestQueue sends more than the rate for a while: what arrives is the rate's, the rest is
// dropped at the tail.
// A twin and a straggler come one delay late, and nothing else does.
func TestDuplicateReorder(t *testing.T) {
	for _, c := range []Config{{Duplicate: 0.2, Delay: 5 * time.Millisecond}, {Reorder: 0.2, Delay: 5 * time.Millisecond}} {
		l := newLink(t, c)
		from, to := listenUDP(t, l.Inside), listenUDP(t, l.Outside)
		const sent = 1000
		var sending sync.WaitGroup
		sending.Go(func() {
			for i := range sent {
				from.WriteToUDPAddrPort(binary.BigEndian.AppendUint64(nil, uint64(i)), at(l.Outside, to))
				time.Sleep(100 * time.Microsecond) // some are sent while another is late
			}
		})
		times := map[uint64]int{}
		late, twice, next := 0, 0, uint64(0)
		b := make([]byte, 2000)
		for {
			to.SetReadDeadline(time.Now().Add(2 * time.Second))
			if _, err := to.Read(b); err != nil {
				break
			}
			n := binary.BigEndian.Uint64(b)
			switch times[n]++; {
			case times[n] == 2:
				twice++
			case n < next:
				late++
			default:
				next = n + 1
			}
		}
		sending.Wait()
		if len(times) != sent {
			t.Errorf("%+v: %d of %d arrived", c, len(times), sent)
		}
		share := map[bool]int{true: twice, false: late}
		if n := share[c.Duplicate > 0]; n < 100 || n > 300 {
			t.Errorf("%+v: %d of %d, want a fifth", c, n, sent)
		}
		if n := share[c.Duplicate == 0]; n != 0 {
			t.Errorf("%+v: %d of the other kind", c, n)
		}
	}
}

func TestQueue(t *testing.T) {
	l := newLink(t, Config{Rate: 10e6, Delay: time.Millisecond, Queue: 20 * time.Millisecond})
	from, to := listenUDP(t, l.Inside), listenUDP(t, l.Outside)
	// 20 ms at 10 Mbit/s are 25000 bytes, 17 packets of 1500.
	for range 100 {
		from.WriteToUDPAddrPort(make([]byte, 1472), at(l.Outside, to))
	}
	time.Sleep(200 * time.Millisecond)
	in, _ := l.Count()
	if in.Packets+in.Dropped != 100 || in.Packets < 17 || in.Dropped == 0 {
		t.Errorf("100 packets at once: %+v", in)
	}
}

// TestThroughput sends over TCP in both directions, one after the other.
func TestThroughput(t *testing.T) {
	l := newLink(t, Config{})
	for _, way := range []struct {
		name     string
		from, to *Namespace
	}{{"from inside", l.Inside, l.Outside}, {"from outside", l.Outside, l.Inside}} {
		var ln net.Listener
		if err := way.to.Do(func() (err error) {
			ln, err = net.Listen("tcp4", ":0")
			return err
		}); err != nil {
			t.Fatal(err)
		}
		var c net.Conn
		if err := way.from.Do(func() (err error) {
			c, err = net.Dial("tcp4", at(way.to, listenerAddr{ln}).String())
			return err
		}); err != nil {
			t.Fatal(err)
		}
		server, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		began := time.Now()
		time.AfterFunc(3*time.Second, func() { c.(*net.TCPConn).CloseWrite() })
		go func() {
			b := make([]byte, 64<<10)
			for {
				if _, err := c.Write(b); err != nil {
					return
				}
			}
		}()
		n, err := io.Copy(io.Discard, server)
		took := time.Since(began)
		rate := float64(n) * 8 / took.Seconds()
		t.Logf("%s: %.0f Mbit/s of payload in %v", way.name, rate/1e6, took)
		if err != nil || n == 0 || rate > 200e6 {
			t.Errorf("%s: %d bytes in %v, %v", way.name, n, took, err)
		}
		c.Close()
		server.Close()
		ln.Close()
	}
	control := ""
	if err := l.Inside.Do(func() error {
		b, err := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
		control = string(b)
		return err
	}); err != nil || control != "cubic\n" {
		t.Errorf("congestion control %q, %v", control, err)
	}
	in, out := l.Count()
	t.Logf("from inside %+v, from outside %+v", in, out)
}

type listenerAddr struct{ net.Listener }

func (l listenerAddr) LocalAddr() net.Addr { return l.Addr() }

func TestBreak(t *testing.T) {
	l := newLink(t, Config{Delay: time.Millisecond})
	one, other := newPinger(t, l), newPinger(t, l)
	reach := func(p *pinger) bool {
		t.Helper()
		_, ok := p.ping(20 * time.Second)
		return ok
	}
	silent := func(p *pinger) bool {
		t.Helper()
		_, ok := p.ping(300 * time.Millisecond)
		return !ok
	}
	flow := Flow{unix.IPPROTO_UDP, at(l.Inside, one.c).Port(), one.echo.Port()}
	if !reach(one) || !reach(other) {
		t.Fatal("nothing is broken, and yet no answer")
	}
	if flows := l.Flows(time.Minute); !slices.Contains(flows, flow) || len(flows) != 2 {
		t.Errorf("flows %v, want %v and one more", flows, flow)
	}

	l.Break(Fault{FromInside: true}, flow)
	if !silent(one) || !reach(other) {
		t.Error("one flow is broken, from inside: the other one is not to be")
	}
	l.Break(Fault{FromOutside: true}, flow)
	_, before := l.Count()
	if !silent(one) {
		t.Error("an answer from outside")
	}
	if _, after := l.Count(); after.Silenced != before.Silenced+1 {
		t.Errorf("silenced %d packets from outside, want 1", after.Silenced-before.Silenced)
	}
	l.Break(Fault{Delay: 100 * time.Millisecond}, flow)
	if d, ok := one.ping(5 * time.Second); !ok || d < 200*time.Millisecond {
		t.Errorf("delayed by 2 x 100 ms: %v %v", d, ok)
	}
	l.Break(Fault{}, flow)
	l.Break(Fault{FromInside: true, FromOutside: true})
	if !silent(one) || !silent(other) {
		t.Error("all is broken, and yet an answer")
	}
	l.Break(Fault{})
	if !reach(one) || !reach(other) {
		t.Error("healed, and yet no answer")
	}
}

// TestMove changes the address of the inside: a socket that is bound to none goes on with
// the new one, a TCP connection of the old one falls silent.
func TestMove(t *testing.T) {
	l := newLink(t, Config{Delay: time.Millisecond})
	p := newPinger(t, l)
	var ln net.Listener
	if err := l.Outside.Do(func() (err error) {
		ln, err = net.Listen("tcp4", ":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	dial := func() net.Conn {
		t.Helper()
		var c net.Conn
		if err := l.Inside.Do(func() (err error) {
			c, err = net.DialTimeout("tcp4", at(l.Outside, listenerAddr{ln}).String(), 5*time.Second)
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return c
	}
	old := dial()
	defer old.Close()
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()

	before := l.Inside.Addr()
	if err := l.Inside.Move(); err != nil {
		t.Fatal(err)
	}
	if l.Inside.Addr() == before {
		t.Error("the address is what it was")
	}
	if _, ok := p.ping(5 * time.Second); !ok {
		t.Error("no answer at the new address")
	}
	old.Write([]byte("x"))
	server.SetReadDeadline(time.Now().Add(200 * time.Millisecond))
	if n, err := server.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("from the old address: %d, %v, want silence", n, err)
	}
	fresh := dial()
	defer fresh.Close()
	if got := netip.MustParseAddrPort(fresh.LocalAddr().String()).Addr(); got != l.Inside.Addr() {
		t.Errorf("a new connection is from %v, not %v", got, l.Inside.Addr())
	}
}

// TestProcess shows that a process lives where it was started.
func TestProcess(t *testing.T) {
	l := newLink(t, Config{})
	read := func(n *Namespace) string {
		t.Helper()
		var out []byte
		if err := n.Do(func() (err error) {
			out, err = exec.Command("cat", "/proc/self/net/dev").Output()
			return err
		}); err != nil {
			t.Fatal(err)
		}
		return string(out)
	}
	inside, outside, here := read(l.Inside), read(l.Outside), read(nil)
	if inside == here || outside == here {
		t.Errorf("inside:\n%s\noutside:\n%s\nhere:\n%s", inside, outside, here)
	}
}

func TestFlows(t *testing.T) {
	l := newLink(t, Config{Delay: time.Millisecond})
	var ln net.Listener
	if err := l.Outside.Do(func() (err error) {
		ln, err = net.Listen("tcp4", ":0")
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	var c net.Conn
	if err := l.Inside.Do(func() (err error) {
		c, err = net.Dial("tcp4", at(l.Outside, listenerAddr{ln}).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	server, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	want := Flow{unix.IPPROTO_TCP, netip.MustParseAddrPort(c.LocalAddr().String()).Port(), at(l.Outside, listenerAddr{ln}).Port()}
	if got := l.Flows(time.Minute); !slices.Equal(got, []Flow{want}) {
		t.Errorf("flows %v, want %v", got, want)
	}
	c.(*net.TCPConn).SetLinger(0)
	c.Close()
	server.Read(make([]byte, 1)) // the reset
	if got := l.Flows(time.Minute); len(got) != 0 {
		t.Errorf("flows %v after the end of the only one", got)
	}
}
