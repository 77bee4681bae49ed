package evloop

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// TestDialTimeout dials a listener whose backlog is full: its system does not answer.
func TestDialTimeout(t *testing.T) {
	core := newCore(t, Config{})
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(fd)
	if err := unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Fatal(err)
	}
	unix.Listen(fd, 0)
	sa, _ := unix.Getsockname(fd)
	addr := addrPort(sa).String()
	for range 5 {
		ctx, cancel := context.WithTimeout(t.Context(), 200*time.Millisecond)
		d := dialOn(ctx, core.Loop(0), "tcp", addr)
		cancel()
		if d.err != nil {
			if !errors.Is(d.err, context.DeadlineExceeded) {
				t.Errorf("dial: %v, want its deadline", d.err)
			}
			return
		}
	}
	t.Error("a backlog of nothing took five connections")
}

// TestAcceptWithoutDescriptors runs out of descriptors, and recovers.
func TestAcceptWithoutDescriptors(t *testing.T) {
	core := newCore(t, Config{})
	ln, err := core.Loop(0).Listen("tcp", "127.0.0.1:0", func(c *Conn) { c.SetHandler(&echo{c: c}) })
	if err != nil {
		t.Fatal(err)
	}
	failed := make(chan error, 1)
	run(core.Loop(0), func() {
		ln.OnError = func(err error) {
			select {
			case failed <- err:
			default:
			}
		}
	})
	client, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	var old unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_NOFILE, &old); err != nil {
		t.Fatal(err)
	}
	low := old
	low.Cur = uint64(client) + 20
	unix.Setrlimit(unix.RLIMIT_NOFILE, &low)
	var files []*os.File
	for {
		f, err := os.Open("/dev/null")
		if err != nil {
			break
		}
		files = append(files, f)
	}
	ap := netip.MustParseAddrPort(ln.Addr().String())
	err = unix.Connect(client, &unix.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()})
	if err != nil {
		t.Fatal(err)
	}
	got := <-failed
	unix.Setrlimit(unix.RLIMIT_NOFILE, &old)
	for _, f := range files {
		f.Close()
	}
	if !errors.Is(got, unix.EMFILE) {
		t.Errorf("accept reported %v", got)
	}
	f := os.NewFile(uintptr(client), "client")
	nc, err := net.FileConn(f)
	f.Close()
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	checkEcho(t, nc, 1000)
}

// TestPacketBufferFull sends to a peer that takes nothing: the rest of a batch is dropped, and counted. UDP over loopback
// always takes all; a datagram socket of the system's own does not.
func TestPacketBufferFull(t *testing.T) {
	core := newCore(t, Config{})
	l := core.Loop(0)
	pair, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer unix.Close(pair[1])
	run(l, func() {
		p := &PacketConn{loop: l, sock: &fdPacket{fd: pair[0], loop: l, connected: true}}
		if err := p.start(); err != nil {
			t.Fatal(err)
		}
		defer p.Close()
		const n = 5000
		for range n {
			p.Write(make([]byte, 1000))
		}
		l.outgoing.flush(l)
		sent := 0
		for {
			if _, err := unix.Read(pair[1], make([]byte, 1000)); err != nil {
				break
			}
			sent++
		}
		if sent == 0 || sent == n || sent+int(p.Dropped()) != n {
			t.Errorf("of %d datagrams %d were sent and %d dropped", n, sent, p.Dropped())
		}
	})
}
