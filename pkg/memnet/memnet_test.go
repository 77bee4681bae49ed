package memnet

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/nettest"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestConn(t *testing.T) {
	for name, n := range map[string]*Network{"plain": {}, "delay": {Delay: time.Millisecond}, "narrow": {Buffer: 100}} {
		t.Run(name, func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				ln, err := n.Listen(":0")
				if err != nil {
					return nil, nil, nil, err
				}
				defer ln.Close()
				if c1, err = n.Dial(context.Background(), "tcp", ln.Addr().String()); err != nil {
					return nil, nil, nil, err
				}
				c2, err = ln.Accept()
				return c1, c2, func() { c1.Close(); c2.Close() }, err
			})
		})
		if len(n.pipes) != 0 {
			t.Errorf("%s: %d directions are left", name, len(n.pipes))
		}
	}
}

func TestHalfClose(t *testing.T) {
	var n Network
	a, b := n.Pipe()
	defer a.Close()
	defer b.Close()
	io.WriteString(a, "question")
	a.(interface{ CloseWrite() error }).CloseWrite()
	if got, err := io.ReadAll(b); string(got) != "question" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	// The other direction goes on.
	io.WriteString(b, "answer")
	b.Close()
	if got, err := io.ReadAll(a); string(got) != "answer" || err != nil {
		t.Fatalf("%q, %v", got, err)
	}
	if _, err := a.Write([]byte("x")); !errors.Is(err, net.ErrClosed) {
		t.Errorf("write after CloseWrite: %v", err)
	}
}

func TestDelay(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Network{Delay: 25 * time.Millisecond}
		a, b := n.Pipe()
		defer a.Close()
		defer b.Close()
		start := time.Now()
		io.WriteString(a, "hi")
		buf := make([]byte, 10)
		if m, err := b.Read(buf); string(buf[:m]) != "hi" || err != nil {
			t.Fatalf("%q, %v", buf[:m], err)
		}
		if d := time.Since(start); d != n.Delay {
			t.Errorf("arrived after %v", d)
		}
		a.Close()
		if _, err := b.Read(buf); err != io.EOF || time.Since(start) != 2*n.Delay {
			t.Errorf("end of stream: %v after %v", err, time.Since(start))
		}
	})
}

func TestCut(t *testing.T) {
	var n Network
	a, b := n.Pipe()
	defer a.Close()
	defer b.Close()
	io.WriteString(a, "lost")
	n.Cut()
	for _, c := range []net.Conn{a, b} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("read: %v", err)
		}
		if _, err := c.Write([]byte("x")); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("write: %v", err)
		}
	}
	// Connections made after the cut work.
	c, d := n.Pipe()
	defer c.Close()
	defer d.Close()
	io.WriteString(c, "x")
	if _, err := d.Read(make([]byte, 1)); err != nil {
		t.Error(err)
	}
}

func TestSilence(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var n Network
		ln, err := n.Listen("relay:443")
		if err != nil {
			t.Fatal(err)
		}
		defer ln.Close()
		a, b := n.Pipe()
		defer a.Close()
		defer b.Close()

		n.Silence(true)
		io.WriteString(a, "late")
		b.SetReadDeadline(time.Now().Add(time.Hour))
		buf := make([]byte, 10)
		if _, err := b.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := n.Dial(ctx, "tcp", "relay:443"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("dial: %v", err)
		}

		n.Silence(false)
		b.SetReadDeadline(time.Time{})
		if m, err := b.Read(buf); string(buf[:m]) != "late" || err != nil {
			t.Errorf("%q, %v", buf[:m], err)
		}
	})
}

// One connection is cut or falls silent; another one of the same network does not notice.
func TestOne(t *testing.T) {
	var n Network
	a, b := n.Pipe()
	defer a.Close()
	defer b.Close()
	c, d := n.Pipe()
	defer c.Close()
	defer d.Close()
	buf := make([]byte, 10)
	other := func() {
		t.Helper()
		io.WriteString(c, "x")
		if _, err := d.Read(buf); err != nil {
			t.Error(err)
		}
	}

	Silence(a, true)
	io.WriteString(b, "late")
	a.SetReadDeadline(time.Now().Add(time.Millisecond))
	if _, err := a.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("read: %v", err)
	}
	other()
	Silence(a, false)
	a.SetReadDeadline(time.Time{})
	if m, err := a.Read(buf); string(buf[:m]) != "late" || err != nil {
		t.Errorf("%q, %v", buf[:m], err)
	}

	Cut(a)
	if _, err := b.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("read: %v", err)
	}
	other()
}

func TestListener(t *testing.T) {
	var n Network
	if _, err := n.Dial(t.Context(), "tcp", "relay:443"); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial without a listener: %v", err)
	}
	ln, err := n.Listen(":443")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.Listen(":443"); !errors.Is(err, syscall.EADDRINUSE) {
		t.Errorf("listen twice: %v", err)
	}
	c, err := n.Dial(t.Context(), "tcp", "any.example.com:443")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	// A connection that nobody accepts ends with its listener.
	ln.Close()
	if _, err := c.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("read: %v", err)
	}
	if _, err := ln.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
}
