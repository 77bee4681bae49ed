package tftpd

import (
	"bytes"
	"encoding/binary"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
)

// network is a net.PacketConn between a Server and peers of any address.
type network struct {
	in   chan packetOf
	once sync.Once
	over chan struct{}

	mu   sync.Mutex
	sent map[netip.AddrPort]int // bytes
	recv map[netip.AddrPort]func(b []byte)
}

type packetOf struct {
	b    []byte
	from netip.AddrPort
}

func newNetwork() *network {
	return &network{in: make(chan packetOf), over: make(chan struct{}), sent: make(map[netip.AddrPort]int), recv: make(map[netip.AddrPort]func([]byte))}
}

func (n *network) ReadFrom(b []byte) (int, net.Addr, error) {
	select {
	case p := <-n.in:
		return copy(b, p.b), net.UDPAddrFromAddrPort(p.from), nil
	case <-n.over:
		return 0, nil, net.ErrClosed
	}
}

func (n *network) WriteTo(b []byte, to net.Addr) (int, error) {
	a := addrPort(to)
	n.mu.Lock()
	n.sent[a] += len(b)
	f := n.recv[a]
	n.mu.Unlock()
	if f != nil {
		f(bytes.Clone(b))
	}
	return len(b), nil
}

func (n *network) Close() error {
	n.once.Do(func() { close(n.over) })
	return nil
}

func (n *network) LocalAddr() net.Addr { return &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 69} }

func (n *network) SetDeadline(t time.Time) error      { return nil }
func (n *network) SetReadDeadline(t time.Time) error  { return nil }
func (n *network) SetWriteDeadline(t time.Time) error { return nil }

func (n *network) say(from netip.AddrPort, b []byte) {
	select {
	case n.in <- packetOf{b, from}:
	case <-n.over:
	}
}

// netBench is a bench on a network.
func netBench(t testing.TB, loop int, set func(*bench)) (*bench, *network) {
	t.Helper()
	core, err := evloop.New(evloop.Config{Loops: 2})
	if err != nil {
		t.Fatal(err)
	}
	b := newBench(t, way{}, set)
	n := newNetwork()
	b.core = core
	b.Server = &Server{Find: b.Find, MaxTransfers: b.MaxTransfers, MaxPerAddress: b.MaxPerAddress, MaxBlock: b.MaxBlock, Log: b.Log}
	b.share.Loop = core.Loop(loop)
	if err := b.listen(core.Loop(0), n); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { core.Close() })
	return b, n
}

// spoofed is an address of nobody.
func spoofed(i int) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)}), 2000)
}

// peer reads a file on a network, in lockstep, and repeats its request until it is answered.
func (n *network) peer(from netip.AddrPort, req []byte, got chan<- []byte) {
	packets := make(chan []byte, 100)
	n.mu.Lock()
	n.recv[from] = func(b []byte) { packets <- b }
	n.mu.Unlock()
	var file []byte
	n.say(from, req)
	last := req
	answer := func(b []byte) {
		last = b
		n.say(from, b)
	}
	for next := uint16(1); ; {
		select {
		case p := <-packets:
			switch {
			case p[1] == 6:
				answer(ack(0))
			case p[1] == 3 && binary.BigEndian.Uint16(p[2:]) == next:
				file = append(file, p[4:]...)
				answer(ack(int(next)))
				next++
				if len(p) < 516 {
					got <- file
					return
				}
			case p[1] == 5:
				got <- p
				return
			}
		case <-time.After(time.Second):
			n.say(from, last)
		case <-n.over:
			return
		}
	}
}

// TestFlood has ten thousand addresses ask that are not there, and a client that is.
func TestFlood(t *testing.T) {
	for loop := range 2 {
		b, n := netBench(t, loop, func(b *bench) {
			b.MaxTransfers = 4000
			b.store.files["boot"] = content(20_000)
		})
		// One that has proven itself is in the middle of its file, and goes on.
		slow := netip.MustParseAddrPort("198.51.100.1:1000")
		blocks := make(chan []byte, 1000)
		n.mu.Lock()
		n.recv[slow] = func(b []byte) { blocks <- b }
		n.mu.Unlock()
		n.say(slow, request(1, "boot/boot", "octet"))
		at := 0
		goOn := func() {
			t.Helper()
			for {
				select {
				case p := <-blocks:
					if p[1] != 3 || int(p[3]) > at+1 {
						t.Fatalf("who is in the middle gets %s", show(p))
					}
					if int(p[3]) == at+1 { // or it has waited for long, and got the last one again
						at++
						n.say(slow, ack(at))
						return
					}
				case <-time.After(20 * time.Second):
					t.Fatalf("who is in the middle gets nothing after block %d: %+v", at, b.Stats())
				}
			}
		}
		goOn()

		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		plain, asked := request(1, "boot/boot", "octet"), request(1, "boot/boot", "octet", "blksize", "512", "tsize", "0")
		const many = 10_000
		got := make(chan []byte, 1)
		for i := range many {
			if i%500 == 0 {
				goOn()
			}
			if i == many/2 {
				go n.peer(netip.MustParseAddrPort("198.51.100.2:1000"), asked, got)
			}
			if i%2 == 0 {
				n.say(spoofed(i), plain)
			} else {
				n.say(spoofed(i), asked)
			}
		}
		select {
		case file := <-got:
			if !bytes.Equal(file, content(20_000)) {
				t.Errorf("a client got %s, %+v", show(file), b.Stats())
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("a client gets nothing: %+v", b.Stats())
		}
		on(b.core.Loop(1), func() {})
		on(b.core.Loop(0), func() {})
		runtime.GC()
		runtime.ReadMemStats(&after)
		if n := int64(after.HeapAlloc) - int64(before.HeapAlloc); n > 64<<20 {
			t.Errorf("%d bytes of heap more", n)
		}

		goOn()
		st := b.Stats()
		if st.Unproven > 1000 || st.Running > 1001 {
			t.Errorf("counted %+v", st)
		}
		n.mu.Lock()
		total := 0
		for i := range many {
			sent, most := n.sent[spoofed(i)], 516
			if i%2 == 1 {
				most = 3 * len(asked) // an OACK, twice repeated
			} else {
				total += sent
			}
			if sent > most {
				t.Fatalf("%d bytes went to an address that has sent one request", sent)
			}
		}
		n.mu.Unlock()
		if total > bareBurst+2*bareRate || total == 0 {
			t.Errorf("%d bytes went to those without options", total)
		}
	}
}

// TestWriteFlood has many addresses that are not there announce files: few of them are made at a time, and one who is there writes his.
func TestWriteFlood(t *testing.T) {
	b, n := netBench(t, 1, nil)
	for i := range 5 * maxWrites {
		n.say(spoofed(i), request(2, "boot/new", "octet"))
	}
	writer := netip.MustParseAddrPort("198.51.100.2:1000")
	packets := make(chan []byte, 100)
	n.mu.Lock()
	n.recv[writer] = func(b []byte) { packets <- b }
	n.mu.Unlock()
	want := func(p []byte) {
		t.Helper()
		select {
		case got := <-packets:
			if !bytes.Equal(got, p) {
				t.Fatalf("got %s, want %s", show(got), show(p))
			}
		case <-time.After(20 * time.Second):
			t.Fatalf("got nothing: %+v", b.Stats())
		}
	}
	n.say(writer, request(2, "boot/mine", "octet"))
	want(ack(0))
	for i := range 2 * maxWrites { // it makes room
		n.say(spoofed(10_000+i), request(2, "boot/new", "octet"))
	}
	for deadline := time.Now().Add(20 * time.Second); b.Stats().Total < 7*maxWrites+1; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("counted %+v", b.Stats())
		}
	}
	if st := b.Stats(); st.Unproven != maxWrites {
		t.Errorf("counted %+v", st)
	}
	n.say(writer, data(1, []byte("mine")))
	want(ack(0))
	want(ack(1))
	if got := b.store.written["mine"]; string(got) != "mine" {
		t.Errorf("written %q", got)
	}
}

// TestMadeRoom has a client answer when its transfer has made room for others: it begins again, and gets the file.
func TestMadeRoom(t *testing.T) {
	for loop := range 2 {
		b, n := netBench(t, loop, func(b *bench) {
			b.MaxTransfers = 4
			b.store.files["boot"] = content(20_000)
		})
		at := netip.MustParseAddrPort("198.51.100.2:1000")
		answers := make(chan []byte, 100)
		n.mu.Lock()
		n.recv[at] = func(b []byte) { answers <- b }
		n.mu.Unlock()
		n.say(at, request(1, "boot/boot", "octet"))
		if p := <-answers; !bytes.Equal(p, data(1, content(20_000)[:512])) {
			t.Errorf("got %s", show(p))
		}
		for i := range 3 {
			n.say(spoofed(i), request(1, "boot/boot", "octet"))
		}
		n.say(at, ack(1))
		for next := 2; next <= 40; {
			p := <-answers
			if int(p[3]) != next { // block 1 may come once more
				continue
			}
			if p[1] != 3 {
				t.Fatalf("got %s", show(p))
			}
			n.say(at, ack(next))
			next++
		}
		if st := b.Stats(); st.Refused.Displaced < 3 || st.ErrorsSent != 0 {
			t.Errorf("counted %+v", st)
		}
	}
}

// TestUnprovenOfAddress has one address ask ten thousand times.
func TestUnprovenOfAddress(t *testing.T) {
	b, n := netBench(t, 0, nil)
	at := netip.MustParseAddr("192.0.2.77")
	for i := range 10_000 {
		n.say(netip.AddrPortFrom(at, uint16(1000+i)), request(1, "boot/hello", "octet"))
	}
	for i := range 1000 {
		n.say(netip.AddrPortFrom(at, uint16(20_000+i)), request(1, "boot/hello", "octet", "tsize", "0", "blksize", "600"))
	}
	got := make(chan []byte, 1)
	go n.peer(netip.MustParseAddrPort("192.0.2.78:1000"), request(1, "boot/hello", "octet"), got)
	<-got
	for range 12000 { // until its last ACK is there
		if on(b.core.Loop(0), func() {}); b.Stats().Running == 256 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if st := b.Stats(); st.Running != 256 || st.Unproven != 256 || st.Refused.Displaced != 11_000-256 || st.Refused.Limit != 0 {
		t.Errorf("counted %+v", st)
	}
	on(b.core.Loop(0), func() {
		if n := b.port.sources[at].bare; n != 0 {
			t.Errorf("%d without options are left behind 256 with", n)
		}
	})
}

// TestMany has ten thousand clients read at once.
func TestMany(t *testing.T) {
	const loop = 1 // not that of the port
	{
		const many = 10_000
		b, n := netBench(t, loop, func(b *bench) {
			b.MaxPerAddress = many
			b.MaxTransfers = 5 * many // so that many of them may be unproven at a time
			b.store.files["boot"] = content(3000)
			b.share.Library = NewLibrary(b.share.Loop, b.store, NewCache(1<<20))
		})
		b.share.Library = NewLibrary(b.share.Loop, b.store, NewCache(1<<20))
		type state struct {
			from netip.AddrPort
			next int
			file []byte
		}
		var mu sync.Mutex
		room := make(chan struct{}, 200) // packets under way
		var peers []*state
		for i := range many {
			s := &state{from: netip.AddrPortFrom(spoofed(i/100).Addr(), uint16(1000+i%100))}
			peers = append(peers, s)
			n.mu.Lock()
			n.recv[s.from] = func(p []byte) {
				mu.Lock()
				defer mu.Unlock()
				if s.next == 0 && p[1] == 6 || p[1] == 3 && int(p[3]) == s.next {
					if s.next++; p[1] == 3 {
						s.file = append(s.file, p[4:]...)
					}
					<-room
				}
			}
			n.mu.Unlock()
		}
		say := func(peers []*state, block int) {
			for _, s := range peers {
				if room <- struct{}{}; block == 0 {
					n.say(s.from, request(1, "boot/boot", "octet", "blksize", "512"))
					continue
				}
				n.say(s.from, ack(block-1))
				if block == 7 {
					<-room
				}
			}
			for range cap(room) { // all of them have been answered
				room <- struct{}{}
			}
			for range cap(room) {
				<-room
			}
		}
		begun := time.Now()
		for some := range slices.Chunk(peers, 1000) { // who does not prove himself in ten seconds is given up
			say(some, 0)
			say(some, 1)
		}
		asked := 1 + int(time.Since(begun)/trustTime) // whether it is still the same
		if st := b.Stats(); st.Running != many {
			t.Errorf("counted %+v", st)
		}
		for block := 2; block < 8; block++ { // of which the last one is an ACK that is not answered
			say(peers, block)
		}
		b.settled()
		mu.Lock()
		for _, s := range peers {
			if !bytes.Equal(s.file, content(3000)) {
				t.Fatalf("%v got %d bytes", s.from, len(s.file))
			}
		}
		mu.Unlock()
		if st := b.Stats(); st.Total != many || b.store.opens() > asked {
			t.Errorf("opened %d times; counted %+v", b.store.opens(), st)
		}
	}
}
