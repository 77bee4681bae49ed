package evloop

import (
	"crypto/tls"
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"
)

// stubEnd is an End that does nothing by itself and writes down what is done to it.
type stubEnd struct {
	h       Handler
	log     []string
	wrote   []byte
	pending int
	aborted error
}

func (e *stubEnd) SetHandler(h Handler) { e.h = h }
func (e *stubEnd) Write(b []byte)       { e.wrote = append(e.wrote, b...); e.pending += len(b) }
func (e *stubEnd) Pending() int         { return e.pending }
func (e *stubEnd) HighMark() int        { return 100 }
func (e *stubEnd) Pause()               { e.log = append(e.log, "pause") }
func (e *stubEnd) Resume()              { e.log = append(e.log, "resume") }
func (e *stubEnd) CloseWrite()          { e.log = append(e.log, "close write") }
func (e *stubEnd) Close()               { e.log = append(e.log, "close") }
func (e *stubEnd) Abort(err error) {
	e.log, e.aborted = append(e.log, "abort"), err
	e.h.OnClose(err)
}

// took returns what was done since the last time.
func (e *stubEnd) took() (log []string) {
	log, e.log = e.log, nil
	return log
}

func wantLog(t *testing.T, got []string, want ...string) {
	t.Helper()
	if len(got) != len(want) {
		t.Fatalf("done: %q, want %q", got, want)
	}
	for i := range got {
		if got[i] != want[i] {
			t.Fatalf("done: %q, want %q", got, want)
		}
	}
}

// TestAttachEnd shows what a connection does to its End.
func TestAttachEnd(t *testing.T) {
	remote := netip.MustParseAddrPort("192.0.2.1:8080")
	onEnd := func(t *testing.T, f func(t *testing.T, l *Loop, e *stubEnd, c *Conn, r *record)) {
		inBubble(t, Config{}, func(t *testing.T, l *Loop) {
			e, r := new(stubEnd), newRecord()
			var c *Conn
			run(l, func() {
				c, _ = l.AttachEnd(e, remote)
				c.SetHandler(r)
			})
			wantLog(t, e.took(), "resume")
			f(t, l, e, c, r)
		})
	}
	t.Run("input", func(t *testing.T) {
		onEnd(t, func(t *testing.T, l *Loop, e *stubEnd, c *Conn, r *record) {
			if c.RemoteAddr() != remote || c.LocalAddr().IsValid() {
				t.Errorf("addresses %v, %v", c.RemoteAddr(), c.LocalAddr())
			}
			run(l, func() { c.Pause(); e.h.OnData([]byte("abc")) })
			run(l, func() { e.h.OnData(make([]byte, endAhead-4)) })
			wantLog(t, e.took())
			run(l, func() { e.h.OnData([]byte("d")) }) // what is not read is bounded
			wantLog(t, e.took(), "pause")
			n := 0
			run(l, func() { c.SetHandler(&events{data: func(b []byte) int { n += len(b); return len(b) }}); c.Resume() })
			synctest.Wait()
			run(l, func() {
				wantLog(t, e.took(), "resume")
				if n != endAhead {
					t.Errorf("%d bytes came", n)
				}
				if s := c.sock.(*endSock); s.in != nil {
					t.Error("a silent connection holds a buffer")
				}
			})
		})
	})
	t.Run("output", func(t *testing.T) {
		onEnd(t, func(t *testing.T, l *Loop, e *stubEnd, c *Conn, r *record) {
			run(l, func() { c.Write(make([]byte, 101)) })
			synctest.Wait()
			run(l, func() { c.Write([]byte("waits")) })
			synctest.Wait()
			run(l, func() {
				if len(e.wrote) != 101 || c.Pending() != 5 {
					t.Errorf("%d bytes written, %d wait", len(e.wrote), c.Pending())
				}
				e.pending = 0
				e.h.OnDrain()
			})
			synctest.Wait()
			run(l, func() {
				if string(e.wrote[101:]) != "waits" || c.Pending() != 0 {
					t.Errorf("%d bytes written, %d wait", len(e.wrote), c.Pending())
				}
			})
		})
	})
	t.Run("both directions end", func(t *testing.T) {
		onEnd(t, func(t *testing.T, l *Loop, e *stubEnd, c *Conn, r *record) {
			run(l, func() { e.h.OnData([]byte("last")); e.h.OnEOF() })
			synctest.Wait()
			run(l, func() { c.CloseWrite() })
			synctest.Wait()
			run(l, func() { e.h.OnClose(nil) })
			wantLog(t, e.took(), "close write", "close")
			wantLog(t, <-r.ended, "data last", "eof", "close <nil>")
			time.Sleep(2 * endFinish)
			wantLog(t, e.took())
		})
	})
	t.Run("it ends with an error", func(t *testing.T) {
		onEnd(t, func(t *testing.T, l *Loop, e *stubEnd, c *Conn, r *record) {
			run(l, func() { e.h.OnClose(errors.New("reset")) })
			wantLog(t, <-r.ended, "close reset")
			wantLog(t, e.took())
		})
	})
	t.Run("abort", func(t *testing.T) {
		onEnd(t, func(t *testing.T, l *Loop, e *stubEnd, c *Conn, r *record) {
			boom := errors.New("boom")
			run(l, func() { c.Abort(boom) })
			wantLog(t, <-r.ended, "close boom")
			run(l, func() {
				wantLog(t, e.took(), "abort")
				if e.aborted != boom {
					t.Errorf("aborted with %v", e.aborted)
				}
			})
		})
	})
	t.Run("its peer does not end", func(t *testing.T) {
		onEnd(t, func(t *testing.T, l *Loop, e *stubEnd, c *Conn, r *record) {
			run(l, func() { c.Write([]byte("bye")); c.Close() })
			wantLog(t, <-r.ended, "close <nil>")
			run(l, func() { wantLog(t, e.took(), "close write", "close"); e.h.OnData([]byte("more")) })
			time.Sleep(endFinish + tick)
			synctest.Wait()
			run(l, func() { wantLog(t, e.took(), "abort") })
		})
	})
	t.Run("it stays", func(t *testing.T) {
		onEnd(t, func(t *testing.T, l *Loop, e *stubEnd, c *Conn, r *record) {
			run(l, func() {
				c.Detach(func(nc net.Conn, err error) {
					if nc != nil || err != errors.ErrUnsupported {
						t.Errorf("Detach: %v, %v", nc, err)
					}
				})
				c.Write([]byte("goes on"))
			})
			core, err := New(Config{Portable: true, Loops: 1})
			if err != nil {
				t.Fatal(err)
			}
			defer core.Close()
			run(l, func() { c.Move(core.Loop(0), func() { t.Error("moved") }) })
			if log := <-r.ended; log[0] != "close "+errStays.Error() {
				t.Errorf("%q", log)
			}
		})
	})
	t.Run("the core ends", func(t *testing.T) {
		core := newCore(t, Config{})
		e, r := new(stubEnd), newRecord()
		l := core.Loop(0)
		run(l, func() {
			c, err := l.AttachEnd(e, remote)
			if err != nil {
				t.Error(err)
				return
			}
			c.SetHandler(r)
		})
		core.Close()
		wantLog(t, <-r.ended, "close "+ErrClosed.Error())
		wantLog(t, e.took(), "resume", "abort")
	})
}

// TestAttachEndTLS has TLS in TLS, each driven by the same loop.
func TestAttachEndTLS(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		server := serverConfig(t)
		outer := tlsPeer(t, core, func(c *Conn) Handler {
			inner, err := c.Loop().AttachEnd(c, c.RemoteAddr())
			if err != nil {
				t.Error(err)
			}
			inner.StartTLS(server, false, 10*time.Second, func(err error) {
				if err != nil {
					t.Error(err)
					return
				}
				inner.SetHandler(&echo{c: inner})
			})
			return inner.sock.(*endSock)
		}, nil)
		tc := tls.Client(outer, clientConfig())
		ask(t, tc, "x", "x")
		checkEcho(t, tc, 1<<20)
		if _, err := outer.Read(make([]byte, 1)); err != io.EOF {
			t.Errorf("behind it: %v", err)
		}
	})
}
