package evloop

import (
	"bytes"
	"errors"
	"io"
	"net"
	"os"
	"runtime"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/nettest"
)

// netConnPair returns a NetConn and the TCP connection of its peer.
func netConnPair(t testing.TB, core *Core) (*NetConn, net.Conn) {
	t.Helper()
	got := make(chan *NetConn, 1)
	far := peer(t, core, func(c *Conn) {
		got <- c.Loop().NetConn(c, net.TCPAddrFromAddrPort(c.LocalAddr()), net.TCPAddrFromAddrPort(c.RemoteAddr()), nil)
	})
	c := <-got
	t.Cleanup(func() { c.Abort() })
	return c, far
}

// TestNetConn has what every net.Conn has to do.
func TestNetConn(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
			c, far := netConnPair(t, core)
			far.SetDeadline(time.Time{})
			return c, far, func() { c.Close(); far.Close() }, nil
		})
	})
}

// TestNetConnHalves ends one direction, and then the other one.
func TestNetConnHalves(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		c, far := netConnPair(t, core)
		go func() {
			c.Write([]byte("first"))
			c.CloseWrite()
		}()
		if b, err := io.ReadAll(far); string(b) != "first" || err != nil {
			t.Fatalf("the peer has read %q, %v", b, err)
		}
		far.Write([]byte("then"))
		far.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); string(b) != "then" || err != nil {
			t.Fatalf("read %q, %v", b, err)
		}
		if _, err := c.Write([]byte("more")); err == nil {
			t.Error("written behind the end")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) {
			t.Errorf("read of a closed connection: %v", err)
		}
		if err := c.Close(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("closed twice: %v", err)
		}
	})
}

// TestNetConnClose has what was written go out behind Close, however much it is.
func TestNetConnClose(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		c, far := netConnPair(t, core)
		sent := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
		go func() {
			c.Write(sent)
			c.Close()
		}()
		if b, err := io.ReadAll(far); !bytes.Equal(b, sent) || err != nil {
			t.Fatalf("%d bytes of %d came, %v", len(b), len(sent), err)
		}
	})
}

// TestNetConnAbort breaks a connection off.
func TestNetConnAbort(t *testing.T) {
	onEveryConn(t, func(t *testing.T, core *Core) {
		c, far := netConnPair(t, core)
		if _, err := c.Write([]byte("some")); err != nil {
			t.Fatal(err)
		}
		c.Abort()
		if _, err := io.ReadAll(far); runtime.GOOS != "windows" && !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("the peer has read the end: %v", err)
		}
		c, far = netConnPair(t, core)
		far.(*net.TCPConn).SetLinger(0)
		far.Close()
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("a reset is %v", err)
		}
	})
}

// TestNetConnAbortBeforeFlush aborts while the loop has not got to what was written, or to the end of writing: the peer
// must not see a good end.
func TestNetConnAbortBeforeFlush(t *testing.T) {
	for name, before := range map[string]func(c *NetConn){
		"Write":      func(c *NetConn) { c.Write([]byte("some")) },
		"CloseWrite": func(c *NetConn) { c.CloseWrite() },
		"Close":      func(c *NetConn) { c.Close() },
	} {
		t.Run(name, func(t *testing.T) {
			inBubble(t, Config{}, func(t *testing.T, l *Loop) {
				e := new(stubEnd)
				var c *NetConn
				run(l, func() { c = l.NetConn(e, nil, nil, nil) })
				busy := make(chan bool)
				l.Post(func() { <-busy })
				before(c)
				c.Abort()
				close(busy)
				e.did(t, l, "pause", "abort")
			})
		})
	}
}

// did expects what was done since the last time, once nothing moves.
func (e *stubEnd) did(t *testing.T, l *Loop, want ...string) {
	t.Helper()
	synctest.Wait()
	var log []string
	run(l, func() { log = e.took() })
	wantLog(t, log, want...)
}

// TestNetConnBounds has a reader and a writer that do not go on hold the other side back, with a bounded buffer.
func TestNetConnBounds(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		e := new(stubEnd)
		var c *NetConn
		over := 0
		run(l, func() { c = l.NetConn(e, nil, nil, func(error) { over++ }) })
		e.did(t, l, "pause")

		// Nothing is asked for before somebody reads.
		go c.Read(make([]byte, 3))
		synctest.Wait()
		e.did(t, l, "resume")
		run(l, func() { e.h.OnData([]byte("abc")) })
		synctest.Wait()
		run(l, func() { e.h.OnData(make([]byte, netConnIn-1)) })
		e.did(t, l)
		run(l, func() { e.h.OnData([]byte("d")) })
		e.did(t, l, "pause")
		if n, err := io.ReadFull(c, make([]byte, netConnIn/2)); err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		e.did(t, l)
		if n, err := io.ReadFull(c, make([]byte, netConnIn/2)); err != nil {
			t.Fatal(n, err)
		}
		synctest.Wait()
		e.did(t, l, "resume")
		if c.in != nil {
			t.Error("a silent connection holds a buffer")
		}

		// The End has room for 100 bytes, and a piece more.
		c.SetWriteDeadline(time.Now().Add(time.Second))
		n, err := c.Write(make([]byte, 1<<20))
		if n > 2*netConnOut+101 || n < netConnOut || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%d bytes taken, %v", n, err)
		}
		var wrote int
		c.SetWriteDeadline(time.Time{})
		run(l, func() { wrote, e.pending = len(e.wrote), 0; e.h.OnDrain() })
		synctest.Wait()
		run(l, func() {})
		if len(e.wrote) != n || wrote == n {
			t.Errorf("%d bytes written, %d before, of %d", len(e.wrote), wrote, n)
		}
		if c.out != nil {
			t.Error("a silent connection holds a buffer")
		}
		run(l, func() { e.h.OnClose(nil) })
		if over != 1 {
			t.Errorf("told of its end %d times", over)
		}
	})
}

// TestNetConnReaper does not wait for ever for a peer that does not finish.
func TestNetConnReaper(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		e := new(stubEnd)
		var c *NetConn
		run(l, func() { c = l.NetConn(e, nil, nil, nil) })
		c.Close()
		synctest.Wait()
		e.did(t, l, "pause", "close")
		time.Sleep(netConnFinish + time.Second)
		e.did(t, l, "abort")
	})
}

// TestNetConnWithoutLoop has those who wait told that the core is closed.
func TestNetConnWithoutLoop(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		c, _ := netConnPair(t, core)
		failed := make(chan error)
		go func() {
			_, err := c.Read(make([]byte, 1))
			failed <- err
		}()
		core.Close()
		if err := <-failed; err == nil || err == io.EOF {
			t.Errorf("read: %v", err)
		}
		if _, err := c.Write([]byte("x")); err == nil {
			t.Error("written")
		}
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
}
