//go:build linux

package e2e

import (
	"errors"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// TestFaultProxy shows that what the other tests break is really broken.
func TestFaultProxy(t *testing.T) {
	_, a := startTarget(t)
	f := startFaultProxy(t, a.Echo)
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", f.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(waitLimit))
		return c
	}
	buf := make([]byte, 10)

	c := dial()
	if err := roundTrip(c, buf); err != nil {
		t.Fatalf("nothing broken: %v", err)
	}
	if n := f.cut(); n != 1 {
		t.Errorf("%d connections cut", n)
	}
	if _, err := c.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("after the cut: %v, want a reset", err)
	}

	f.setRefuse(true)
	if c, err := net.Dial("tcp", f.addr); err == nil {
		if err := roundTrip(c, buf); err == nil {
			t.Error("refused, and yet an echo")
		}
		c.Close()
	}
	f.setRefuse(false)

	c = dial()
	if err := roundTrip(c, buf); err != nil {
		t.Fatal(err)
	}
	f.stall()
	c.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if err := roundTrip(c, buf); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("stalled: %v, want silence", err)
	}
	f.flow()
	c.SetDeadline(time.Now().Add(waitLimit))
	if n, err := c.Read(buf); n == 0 || err != nil {
		t.Errorf("after the stall: %v", err)
	}
}
