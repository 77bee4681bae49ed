package evloop

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

type dialed struct {
	c   *Conn
	err error
}

func dialOn(ctx context.Context, l *Loop, network, addr string) dialed {
	got := make(chan dialed, 1)
	l.Post(func() {
		l.Dial(ctx, network, addr, func(c *Conn, err error) {
			if c != nil {
				c.SetHandler(&echo{c: c})
			}
			got <- dialed{c, err}
		})
	})
	return <-got
}

func TestDial(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		dir := t.TempDir()
		for _, test := range []struct{ network, listen, dial string }{
			{"tcp", "127.0.0.1:0", "127.0.0.1"},
			{"tcp", "127.0.0.1:0", "localhost"},
			{"unix", filepath.Join(dir, "s"), ""},
		} {
			ln, err := net.Listen(test.network, test.listen)
			if err != nil {
				t.Fatal(err)
			}
			addr := test.listen
			if test.dial != "" {
				_, port, _ := net.SplitHostPort(ln.Addr().String())
				addr = net.JoinHostPort(test.dial, port)
			}
			d := dialOn(t.Context(), core.Loop(0), test.network, addr)
			if d.err != nil {
				t.Fatalf("%s: %v", addr, d.err)
			}
			nc, err := ln.Accept()
			if err != nil {
				t.Fatal(err)
			}
			checkEcho(t, nc, 100<<10)
			nc.Close()
			ln.Close()

			if d := dialOn(t.Context(), core.Loop(0), test.network, addr); d.err == nil {
				t.Errorf("%s: dial of nobody succeeded", addr)
			} else if op := (*net.OpError)(nil); !errors.As(d.err, &op) {
				t.Errorf("%s: %v is no OpError", addr, d.err)
			}
		}
		if d := dialOn(t.Context(), core.Loop(0), "tcp", "host.invalid:80"); d.err == nil {
			t.Error("dial of an unknown name succeeded")
		}
		if d := dialOn(t.Context(), core.Loop(0), "tcp", "no port"); d.err == nil {
			t.Error("dial of a bad address succeeded")
		}
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		if d := dialOn(ctx, core.Loop(0), "tcp", "127.0.0.1:1"); d.err == nil {
			t.Error("dial succeeded though its context had ended")
		}
	})
}

func TestDialFuncTimeout(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		start := time.Now()
		got := make(chan error)
		run(l, func() {
			l.DialFunc(ctx, func(ctx context.Context) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}, func(_ *Conn, err error) { got <- err })
		})
		if err := <-got; !errors.Is(err, context.DeadlineExceeded) || time.Since(start) != time.Minute {
			t.Errorf("%v after %v", err, time.Since(start))
		}
	})
}

// TestCloseEndsDials closes a core while a dial hangs.
func TestCloseEndsDials(t *testing.T) {
	inBubble(t, Config{}, func(t *testing.T, l *Loop) {
		run(l, func() {
			l.DialFunc(context.Background(), func(ctx context.Context) (net.Conn, error) {
				<-ctx.Done()
				return nil, ctx.Err()
			}, func(*Conn, error) {})
		})
		synctest.Wait()
	})
}

func TestListenUnix(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		path := filepath.Join(t.TempDir(), "s")
		ln, err := core.Listen("unix", path, func(c *Conn) { c.SetHandler(&echo{c: c}) })
		if err != nil {
			t.Fatal(err)
		}
		nc, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(err)
		}
		checkEcho(t, nc, 100<<10)
		nc.Close()
		ln.Close()
		run(core.Loop(0), func() {})
		if _, err := os.Stat(path); err == nil {
			t.Error("the socket's file is still there")
		}
	})
}

// TestListenTwice shows that a port is ours alone, though several of our loops listen on it.
func TestListenTwice(t *testing.T) {
	onEveryCore(t, func(t *testing.T, core *Core) {
		ln, err := core.Listen("tcp", "127.0.0.1:0", func(c *Conn) { c.SetHandler(&echo{c: c}) })
		if err != nil {
			t.Fatal(err)
		}
		for range 20 {
			nc := dial(t, ln.Addr().String())
			checkEcho(t, nc, 10)
		}
		if _, err := core.Listen("tcp", ln.Addr().String(), nil); err == nil || !strings.Contains(err.Error(), "in use") {
			t.Errorf("listen on a port that is taken: %v", err)
		}
		ln.Close()
		for _, i := range []int{0, 1} {
			run(core.Loop(i), func() {})
		}
		if nc, err := net.Dial("tcp", ln.Addr().String()); err == nil {
			nc.Close()
			t.Error("the listener is closed and still accepts")
		}
	})
}
