package evloop

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestTune reads and sets what the system knows of a connection, below TLS.
func TestTune(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		conns := make(chan *Conn, 1)
		server := serverConfig(t)
		addr := listen(t, core, func(c *Conn) {
			c.StartTLS(server, false, 10*time.Second, func(err error) {
				c.SetHandler(&echo{c: c})
				conns <- c
			})
		})
		nc := tls.Client(dial(t, addr), clientConfig())
		ask(t, nc, "x", "x")
		c := <-conns
		nc.Write(make([]byte, 100_000))
		io.ReadFull(nc, make([]byte, 100_000))
		run(core.Loop(0), func() {
			info, ok := c.TCPInfo()
			if runtime.GOOS != "linux" {
				if ok || c.Congestion() != "" || !errors.Is(c.SetCongestion("reno"), errors.ErrUnsupported) || !errors.Is(c.SetUnsent(1), errors.ErrUnsupported) {
					t.Error("tuning claims to work here")
				}
				return
			}
			if !ok || info.RTT <= 0 || info.MinRTT <= 0 || info.DeliveryRate == 0 || info.BytesAcked < 10_000 ||
				info.SegmentsOut == 0 || info.Window == 0 || info.SegmentSize == 0 || info.Retransmitted > info.SegmentsOut {
				t.Errorf("TCPInfo %+v, %v", info, ok)
			}
			if err := c.SetCongestion("reno"); err != nil || c.Congestion() != "reno" {
				t.Errorf("congestion control %q after setting it: %v", c.Congestion(), err)
			}
			if err := c.SetCongestion("none"); err == nil || c.Congestion() != "reno" {
				t.Errorf("an unknown congestion control was set: %v, %q", err, c.Congestion())
			}
			if err := c.SetUnsent(32 << 10); err != nil {
				t.Error(err)
			}
		})
		ask(t, nc, "x", "x")
	})
}

// TestTuneWithoutTCP asks the same of a unix socket and a pipe.
func TestTuneWithoutTCP(t *testing.T) {
	core := newCore(t, Config{})
	l := core.Loop(0)
	a, b := net.Pipe()
	defer a.Close()
	run(l, func() {
		c, err := l.Attach(b)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Abort(nil)
		if _, ok := c.TCPInfo(); ok || !errors.Is(c.SetUnsent(1), errors.ErrUnsupported) || c.Congestion() != "" {
			t.Error("a pipe has TCP below")
		}
	})
	got := make(chan string, 1)
	ln, err := l.Listen("unix", t.TempDir()+"/s", func(c *Conn) {
		_, ok := c.TCPInfo()
		name := c.Congestion()
		c.Abort(nil)
		if ok || name != "" {
			got <- "a unix socket has TCP below: " + name
		} else {
			got <- ""
		}
	})
	if err != nil {
		t.Skip(err)
	}
	nc, err := net.Dial("unix", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	if s := <-got; strings.TrimSpace(s) != "" {
		t.Error(s)
	}
}
