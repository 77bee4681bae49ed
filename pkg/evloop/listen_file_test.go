package evloop

import (
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"
)

// TestListenFile serves a socket that somebody else has opened, before and after a connection came to it.
func TestListenFile(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		for _, network := range []string{"tcp", "unix"} {
			t.Run(network, func(t *testing.T) {
				addr := "127.0.0.1:0"
				if network == "unix" {
					addr = filepath.Join(t.TempDir(), "s")
				}
				manager, err := net.Listen(network, addr)
				if err != nil {
					t.Fatal(err)
				}
				defer manager.Close()
				addr = manager.Addr().String()
				connect := func() net.Conn {
					nc, err := net.Dial(network, addr)
					if err != nil {
						t.Fatal(err)
					}
					t.Cleanup(func() { nc.Close() })
					nc.SetDeadline(time.Now().Add(time.Minute))
					return nc
				}
				early := connect()
				f, err := manager.(interface{ File() (*os.File, error) }).File()
				if err != nil {
					t.Fatal(err)
				}
				loops := make(chan *Loop, 10)
				serve := func() *Listener {
					ln, err := core.ListenFile(f, func(c *Conn) {
						loops <- c.Loop()
						c.SetHandler(&echo{c: c})
					})
					if err != nil {
						t.Fatal(err)
					}
					if ln.Addr().String() != addr {
						t.Errorf("listener says %v, socket %v", ln.Addr(), addr)
					}
					return ln
				}
				ln := serve()
				checkEcho(t, early, 100_000)
				checkEcho(t, connect(), 100_000)
				if a, b := <-loops, <-loops; a == b {
					t.Error("both connections came to one loop")
				}
				ln.Close()
				run(core.Loop(0), func() {})
				between := connect() // nobody serves now, and nobody is refused
				defer serve().Close()
				f.Close()
				checkEcho(t, between, 1000)
				if _, err := os.Stat(addr); network == "unix" && err != nil {
					t.Errorf("the socket's path is gone: %v", err)
				}
			})
		}
	})
}

func TestListenFileRefuses(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		f, err := os.Open(os.DevNull)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		if _, err := core.ListenFile(f, nil); err == nil {
			t.Error("a device listens")
		}
		if _, err := core.Loop(0).ListenPacketFile(f, nil); err == nil {
			t.Error("a device is a packet socket")
		}
	})
}
