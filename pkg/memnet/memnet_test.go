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

// connect returns both ends of a new connection.
func connect(n *Network) (client, server net.Conn, err error) {
	ln, err := n.Listen("a:1")
	if err != nil {
		return nil, nil, err
	}
	defer ln.Close()
	if client, err = n.Dial(context.Background(), "tcp", "a:1"); err != nil {
		return nil, nil, err
	}
	server, err = ln.Accept()
	return client, server, err
}

func TestConn(t *testing.T) {
	for _, delay := range []time.Duration{0, time.Millisecond} {
		t.Run(delay.String(), func(t *testing.T) {
			nettest.TestConn(t, func() (c1, c2 net.Conn, stop func(), err error) {
				c1, c2, err = connect(&Network{Delay: delay})
				return c1, c2, func() { c1.Close(); c2.Close() }, err
			})
		})
	}
}

func TestNetwork(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := &Network{Delay: 50 * time.Millisecond}
		c, s, err := connect(n)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		defer s.Close()
		buf := make([]byte, 10)

		// A byte takes its time, and the other direction outlives the end of one.
		began := time.Now()
		c.Write([]byte("x"))
		c.(*conn).CloseWrite()
		if got, err := io.ReadAll(s); err != nil || string(got) != "x" || time.Since(began) != n.Delay {
			t.Errorf("%q, %v after %v", got, err, time.Since(began))
		}
		s.Write([]byte("y"))
		if got, err := c.Read(buf); err != nil || got != 1 {
			t.Errorf("other direction: %d, %v", got, err)
		}

		// A cut is a reset at both ends.
		if cut := n.Cut(); cut != 1 {
			t.Errorf("%d connections cut", cut)
		}
		for _, end := range []net.Conn{c, s} {
			if _, err := end.Read(buf); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("after a cut: %v", err)
			}
		}
		if _, err := n.Dial(t.Context(), "tcp", "a:1"); !errors.Is(err, syscall.ECONNREFUSED) {
			t.Errorf("no listener: %v", err)
		}

		// Silence is no error, for ever.
		c, s, err = connect(n)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		defer s.Close()
		n.Silence(true)
		if _, err := c.Write([]byte("lost")); err != nil {
			t.Errorf("write into the silence: %v", err)
		}
		n.Silence(false)
		s.SetReadDeadline(time.Now().Add(time.Hour))
		if _, err := s.Read(buf); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read from the silence: %v", err)
		}
	})
}
