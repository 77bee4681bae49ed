package tftpd

import (
	"bytes"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// wantError wants an ERROR whose text begins so.
func wantError(t *testing.T, err error, code tftp.Code, text string) {
	t.Helper()
	e, ok := errors.AsType[*tftp.Error](err)
	if !ok || e.Code != code || !strings.HasPrefix(e.Text, text) {
		t.Errorf("got %v, want error %d: %s", err, code, text)
	}
}

// hold gets the first block of boot/large and acknowledges it, so that the transfer is proven.
func (b *bench) hold() *client {
	c := b.client()
	c.ask(1, "boot/large", "octet")
	c.hear()
	c.want2(data(2, b.store.files["large"][512:1024]), ack(1))
	return c
}

// TestLimits has more proven transfers asked for than there may be.
func TestLimits(t *testing.T) {
	for _, w := range ways {
		for _, all := range []bool{true, false} {
			t.Run(fmt.Sprint(w.name, all), func(t *testing.T) {
				b := newBench(t, w, func(b *bench) {
					b.store.files["large"] = content(5000)
					b.MaxTransfers, b.MaxPerAddress = 4, 100
					if !all {
						b.MaxTransfers, b.MaxPerAddress = 100, 4
					}
				})
				var held []*client
				for range 4 {
					held = append(held, b.hold())
				}
				for i := range 3 { // the port may not have heard of the last proof
					on(b.core.Loop(1), func() {})
					on(b.core.Loop(0), func() {})
					if i == 2 {
						_, err := b.client().get("boot/hello", "blksize", "1000", "tsize", "0")
						wantError(t, err, 0, "Too many transfers.")
					}
				}
				held[0].say(errorPacket(0, "")) // so there is room
				b.heard()
				on(b.core.Loop(1), func() {})
				on(b.core.Loop(0), func() {})
				silent := b.client()
				silent.ask(1, "boot/hello", "octet")
				silent.want(data(1, []byte("hello, world")))
				if got, err := b.client().get("boot/hello"); err != nil || string(got) != "hello, world" {
					t.Errorf("instead of one that proves nothing: %q, %v", got, err)
				}
				for i, c := range held[1:] {
					c.want2(data(3, content(5000)[1024:1536]), ack(2))
					c.say(errorPacket(0, fmt.Sprint(i)))
				}
				b.settled()
				if st := b.Stats(); st.Refused.Limit != 1 || st.Refused.Displaced != 1 || st.Unproven != 0 {
					t.Errorf("counted %+v", st)
				}
			})
		}
	}
}

// TestAdmit refuses visitors.
func TestAdmit(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		b := newBench(t, w, func(b *bench) {
			b.share.Admit = func(visitor netip.AddrPort) *tftp.Error {
				if visitor.Addr() != netip.MustParseAddr("127.0.0.1") {
					t.Errorf("visitor %v", visitor)
				}
				return &tftp.Error{Code: tftp.CodeAccess, Text: "Not for you."}
			}
		})
		_, err := b.client().get("boot/hello", "tsize", "0")
		wantError(t, err, tftp.CodeAccess, "Not for you.")
		if errs := b.errs(); len(errs) != 0 {
			t.Errorf("it was told of: %v", errs)
		}
		if st := b.Stats(); st.Refused.Policy != 1 || b.store.opens() != 0 {
			t.Errorf("counted %+v", st)
		}
	})
}

// TestErrors has stores fail, in words that a client must not see.
func TestErrors(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		for _, test := range []struct {
			name  string
			store func(m *memory)
			code  tftp.Code
			text  string
			log   string
		}{
			{"cannot open", func(m *memory) { m.openErr = errors.New("open /srv/secret: too many files") }, 0, "The file cannot be had now.", "/srv/secret"},
			{"not found", func(m *memory) { m.openErr = &tftp.Error{Code: tftp.CodeNotFound, Text: "File not found."} }, 1, "File not found.", ""},
			{"from afar", func(m *memory) {
				m.openErr = fmt.Errorf("origin: %w", &tftp.Error{Code: tftp.CodeAccess, Text: "/srv/tftp/x: permission denied", Remote: true})
			}, 2, "Access denied.", ""},
			{"silence from afar", func(m *memory) { m.openErr = fmt.Errorf("tftp://192.0.2.1: %w", tftp.ErrTimeout) }, 0, "The file cannot be had now.", "192.0.2.1"},
			{"cut", func(m *memory) { m.cut = 100 << 10 }, 0, "The file cannot be had now.", "/dev/sdb1"},
			{"cut, size unknown", func(m *memory) { m.cut = 100 << 10; m.unsized = true }, 0, "The file cannot be had now.", "/dev/sdb1"},
		} {
			t.Run(test.name, func(t *testing.T) {
				b := newBench(t, w, func(b *bench) {
					b.store.files["large"] = content(300_000)
					test.store(b.store)
				})
				_, err := b.client().get("boot/large", "blksize", "1000", "windowsize", "10", "timeout", "100")
				wantError(t, err, test.code, test.text)
				if errs := b.errs(); len(errs) != 1 || errs[0] == nil {
					t.Errorf("ended by %v", errs)
				}
				if log := b.logs.String(); (log != "") != (test.log != "") || !strings.Contains(log, test.log) {
					t.Errorf("logged %q, want %q in it", log, test.log)
				}
			})
		}
	})
}

// TestShort announces more than there is.
func TestShort(t *testing.T) {
	for _, size := range []int64{600, 2000} {
		b := newBench(t, way{}, func(b *bench) {
			b.share.Store = storeFunc(func(l *evloop.Loop, r *Open, done func(*File, error)) func() {
				done(&File{End: &memoryEnd{store: b.store, loop: l, left: content(512)}, Size: size}, nil)
				return nil
			})
		})
		if got, err := b.client().get("boot/short"); err == nil {
			t.Errorf("a file of %d bytes has come with 512, as %d", size, len(got))
		}
		if errs := b.errs(); len(errs) != 1 || errs[0] == nil {
			t.Errorf("ended by %v", errs)
		}
	}
}

type storeFunc func(l *evloop.Loop, r *Open, done func(*File, error)) func()

func (f storeFunc) Open(l *evloop.Loop, r *Open, done func(*File, error)) func() {
	return f(l, r, done)
}

// TestWriteRefused writes what may not be written, or does not fit, or cannot be kept.
func TestWriteRefused(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		for _, test := range []struct {
			name    string
			set     func(b *bench)
			size    int
			options []string
			code    tftp.Code
			text    string
			opens   int
		}{
			{"read only", func(b *bench) { b.share.Write = false }, 10, nil, tftp.CodeAccess, "This", 0},
			{"announced", func(b *bench) { b.share.MaxSize = 9 }, 10, []string{"tsize", "10"}, tftp.CodeDiskFull, "The file is too large.", 0},
			{"not announced", func(b *bench) { b.share.MaxSize = 1023 }, 1024, nil, tftp.CodeDiskFull, "The file is too large.", 1},
			{"last byte", func(b *bench) { b.share.MaxSize = 9 }, 10, nil, tftp.CodeDiskFull, "The file is", 1},
			{"not safe", func(b *bench) {
				b.store.safe = make(chan error, 1)
				b.store.safe <- errors.New("/srv is full")
			}, 10, nil, 0, "The file cannot be had now.", 1},
		} {
			t.Run(test.name, func(t *testing.T) {
				b := newBench(t, w, test.set)
				wantError(t, b.client().put("boot/file", content(test.size), test.options...), test.code, test.text)
				if errs := b.errs(); len(errs) != 1 || errs[0] == nil {
					t.Errorf("ended by %v", errs)
				}
				if b.store.opens() != test.opens || len(b.store.written) != 0 {
					t.Errorf("opened %d times, written %d", b.store.opens(), len(b.store.written))
				}
			})
		}
	})
}

// TestConfirm holds the last ACK back until the file is safe, and what was written is what is read from then on.
func TestConfirm(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		safe := make(chan error)
		b := newBench(t, w, func(b *bench) { b.store.safe = safe })
		c := b.client()
		c.ask(2, "boot/file", "octet")
		c.want(ack(0))
		c.say(data(1, []byte("new")))
		c.wantSilence(50 * time.Millisecond)
		safe <- nil
		c.want(ack(1))
		if errs := b.errs(); len(errs) != 1 || errs[0] != nil {
			t.Errorf("ended by %v", errs)
		}
	})
}

// TestBackpressure writes to a store that takes nothing for a while.
func TestBackpressure(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		b := newBench(t, w, func(b *bench) { b.store.slow = true })
		c := b.client()
		c.ask(2, "boot/file", "octet", "blksize", "1024")
		c.hear()
		file := content(100 << 10)
		n := 0
		for ; n < 64; n++ {
			c.want2(ack(n+1), data(n+1, file[n<<10:][:1024]))
		}
		c.say(data(65, file[64<<10:][:1024])) // which is above the mark
		c.wantSilence(50 * time.Millisecond)
		on(b.share.Loop, func() { b.store.ends[0].drain() })
		c.want(ack(65))
		c.say(errorPacket(0, "Enough."))
		if errs := b.errs(); len(errs) != 1 || errs[0] == nil {
			t.Errorf("ended by %v", errs)
		}
	})
}

// TestNetASCII has the store do the work: the mode goes there, and no size is announced.
func TestNetASCII(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		modes := make(chan Open, 2)
		b := newBench(t, w, func(b *bench) {
			b.share.Store = storeFunc(func(l *evloop.Loop, r *Open, done func(*File, error)) func() {
				modes <- *r
				return b.store.Open(l, r, done)
			})
		})
		c := b.client()
		c.ask(1, "boot/hello", "NetASCII", "tsize", "0", "blksize", "600")
		c.want(append([]byte{0, 6}, "blksize\x00600\x00"...))
		c.want2(data(1, []byte("hello, world")), ack(0))
		c.say(ack(1))
		c = b.client()
		c.ask(2, "boot/new", "netascii", "tsize", "3")
		c.hear()
		c.want2(ack(1), data(1, []byte("x\r\n")))
		for range 2 {
			if o := <-modes; o.Mode != tftp.NetASCII || o.Size != -1 {
				t.Errorf("asked for %+v", o)
			}
		}
	})
}

// TestBlocks asks for long ones.
func TestBlocks(t *testing.T) {
	lo := min(routeMTU0(t)-32, tftp.MaxBlock)
	for _, test := range []struct{ most, asked, want int }{
		{0, 1428, 1428}, {0, 65464, lo}, {1200, 65464, 1200}, {1200, 1000, 1000}, {65464, 65464, 65464},
	} {
		b := newBench(t, way{}, func(b *bench) { b.MaxBlock = test.most })
		c := b.client()
		c.ask(1, "boot/hello", "octet", "blksize", strconv.Itoa(test.asked))
		c.want(append([]byte{0, 6}, "blksize\x00"+strconv.Itoa(test.want)+"\x00"...))
	}
}

// routeMTU0 is the MTU of the loopback interface.
func routeMTU0(t *testing.T) int {
	all, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, i := range all {
		if i.Flags&net.FlagLoopback != 0 {
			return i.MTU
		}
	}
	return 65536
}

// TestPorts has each transfer answered from a port of its own.
func TestPorts(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		// A range of three ports, of which the second is taken.
		var first int
		var taken net.PacketConn
		for taken == nil {
			nc, err := net.ListenPacket("udp4", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			first = nc.LocalAddr().(*net.UDPAddr).Port - 1
			taken = nc
		}
		defer taken.Close()
		b := newBench(t, w, func(b *bench) {
			b.Ports = [2]uint16{uint16(first), uint16(first + 2)}
			b.store.files["large"] = content(5000)
		})
		open := func() *client {
			nc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
			if err != nil {
				t.Fatal(err)
			}
			return newClient(t, nc)
		}
		seen := make(map[uint16]bool)
		for range 6 {
			c := open()
			c.WriteToUDPAddrPort(request(1, "boot/large", "octet", "blksize", "600"), b.Addr())
			p := make([]byte, 1000)
			_, from, err := c.ReadFromUDPAddrPort(p)
			if err != nil {
				t.Fatal(err)
			}
			if from.Port() == uint16(first+1) || from == b.Addr() {
				t.Fatalf("answered from %v", from)
			}
			seen[from.Port()] = true

			stranger := open()
			stranger.WriteToUDPAddrPort(ack(0), from)
			stranger.WriteToUDPAddrPort(errorPacket(0, ""), from)
			if n, _, err := stranger.ReadFromUDPAddrPort(p); err != nil || !bytes.Equal(p[:n], errorPacket(5, "")) {
				t.Errorf("a stranger gets %s, %v", show(p[:n]), err)
			}
			c.WriteToUDPAddrPort(errorPacket(0, ""), b.Addr()) // which is not the transfer's port
			b.heard()
			c.WriteToUDPAddrPort(ack(0), from)
			if got, err := c.read(); err != nil || len(got) < 4000 || !bytes.Contains(content(5000), got[:100]) {
				t.Errorf("%d bytes, %v", len(got), err)
			}
			b.settled()
		}
		if len(seen) > 2 {
			t.Errorf("ports %v", seen)
		}
		if errs := b.errs(); len(errs) != 6 {
			t.Errorf("ended by %v", errs)
		}
	})
}

// TestClose ends what is going on: a file that is being opened, read, or written.
func TestClose(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		b := newBench(t, w, func(b *bench) { b.store.files["large"] = content(5000) })
		reader, writer := b.hold(), b.client()
		writer.ask(2, "boot/new", "octet")
		writer.want(ack(0))
		writer.want2(ack(1), data(1, content(512)))
		b.store.mu.Lock()
		b.store.gate = make(chan struct{})
		defer close(b.store.gate)
		b.store.mu.Unlock()
		opening := b.client()
		opening.ask(1, "boot/other", "octet", "tsize", "0", "blksize", "1024")
		b.heard()
		b.Close()
		for _, c := range []*client{reader, writer, opening} {
			if p := c.hear(); !bytes.HasPrefix(p, errorPacket(0, "The server is closing")[:20]) {
				t.Errorf("got %s", show(p))
			}
		}
		if errs := b.errs(); len(errs) != 3 {
			t.Errorf("ended by %v", errs)
		}
		b.Close()
		for { // on the portable backend the socket is closed by the goroutine that wrote to it
			nc, err := net.ListenPacket("udp4", b.Addr().String())
			if err == nil {
				nc.Close()
				return
			}
			time.Sleep(time.Millisecond)
		}
	})
}

// TestCloseLingering closes a Server whose transfer on a port of its own is over and repeats its last ACK: the port is free.
func TestCloseLingering(t *testing.T) {
	onEvery(t, func(t *testing.T, w way) {
		nc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		own := nc.LocalAddr().(*net.UDPAddr)
		nc.Close()
		b := newBench(t, w, func(b *bench) { b.Ports = [2]uint16{uint16(own.Port), uint16(own.Port)} })
		c, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		client := newClient(t, c)
		client.WriteToUDPAddrPort(request(2, "boot/new", "octet"), b.Addr())
		p := make([]byte, 100)
		if n, from, err := client.ReadFromUDPAddrPort(p); err != nil || !bytes.Equal(p[:n], ack(0)) || int(from.Port()) != own.Port {
			t.Fatalf("got %s from %v, %v", show(p[:n]), from, err)
		}
		client.WriteToUDPAddrPort(data(1, nil), own.AddrPort())
		if n, _, err := client.ReadFromUDPAddrPort(p); err != nil || !bytes.Equal(p[:n], ack(1)) {
			t.Fatalf("got %s, %v", show(p[:n]), err)
		}
		b.settled()
		b.Close()
		for start := time.Now(); ; time.Sleep(time.Millisecond) { // loops close it in their own time
			nc, err := net.ListenUDP("udp4", own)
			if err == nil {
				nc.Close()
				return
			}
			if time.Since(start) > 30*time.Second {
				t.Fatalf("30 s after Close: %v", err)
			}
		}
	})
}
