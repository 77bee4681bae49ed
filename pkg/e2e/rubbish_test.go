//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"os"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"culvert.dev/pkg/netem"
)

// startUDPEcho is a UDP target that returns every datagram.
func startUDPEcho(t testing.TB, n *netem.Namespace) (addr string) {
	t.Helper()
	c := listenUDP(t, n)
	go func() {
		b := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			c.WriteToUDPAddrPort(b[:n], from)
		}
	}()
	return c.LocalAddr().String()
}

// listenUDP is a socket on a namespace's loopback.
func listenUDP(t testing.TB, n *netem.Namespace) (c *net.UDPConn) {
	t.Helper()
	if err := n.Do(func() (err error) {
		c, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		return err
	}); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestRubbish sends what is not QUIC, almost QUIC, and QUIC of a stranger to the relay's UDP
// port, and datagrams of all sizes to a UDP service. Private relays and visitors do not
// notice.
func TestRubbish(t *testing.T) {
	t.Parallel()
	l := newLink(t, netem.Config{Delay: time.Millisecond})
	echo, _ := startEcho(t, l.Inside)
	s := startSystemOver(t, l, over("quic"),
		service{"echo", "tcp://:{port}", "tcp://" + echo},
		service{"udp", "udp://:{port}", "udp://" + startUDPEcho(t, l.Inside)})
	old := s.mustVisit("echo")
	before := s.public.rss()

	to := func(addr string) *net.UDPAddr {
		a, err := net.ResolveUDPAddr("udp4", addr)
		if err != nil {
			t.Fatal(err)
		}
		return a
	}
	_, port, _ := net.SplitHostPort(s.https)
	link, flow := to("127.0.0.1:"+port), to(s.port("udp"))
	rnd := rand.New(rand.NewPCG(1, 2))
	source := rand.NewChaCha8([32]byte{1})
	for range 20 {
		c := listenUDP(t, l.Outside)
		for i := range 500 {
			b := make([]byte, rnd.IntN(1500))
			source.Read(b)
			if i%2 == 0 && len(b) > 20 { // a long header, of QUIC 1 and of versions that nobody has
				b[0] |= 0xc0
				binary.BigEndian.PutUint32(b[1:], uint32(rnd.IntN(3)))
				b[5] = byte(rnd.IntN(22))
			}
			c.WriteToUDP(b, link)
			c.WriteToUDP(b, flow)
		}
		c.WriteToUDP(nil, link)
		c.WriteToUDP(make([]byte, 65507), link)
		c.WriteToUDP(make([]byte, 65507), flow)
	}

	// A stranger who knows the protocol, but not what comes next.
	transport := &quic.Transport{Conn: listenUDP(t, l.Outside)}
	defer transport.Close()
	for _, first := range []string{"", "GET / HTTP/1.1\r\n\r\n", "\xff\xff", "\x00\x02{}", "\x00\x00"} {
		ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
		c, err := transport.Dial(ctx, link, &tls.Config{RootCAs: caPool(), ServerName: "localhost", NextProtos: []string{"culvert/1"}}, &quic.Config{EnableDatagrams: true})
		if err != nil {
			t.Errorf("a handshake: %v", err)
			cancel()
			continue
		}
		c.SendDatagram([]byte("rubbish"))
		if st, err := c.OpenStreamSync(ctx); err == nil {
			st.Write([]byte(first))
		}
		select {
		case <-c.Context().Done():
		case <-ctx.Done():
			t.Errorf("after %q the connection is still open", first)
		}
		cancel()
	}
	ctx, cancel := context.WithTimeout(t.Context(), waitLimit)
	defer cancel()
	if c, err := transport.Dial(ctx, link, &tls.Config{RootCAs: caPool(), ServerName: "localhost", NextProtos: []string{"rubbish"}}, nil); err == nil {
		t.Error("a connection for another protocol")
		c.CloseWithError(0, "")
	}

	old.SetDeadline(time.Now().Add(waitLimit))
	if err := roundTrip(old, make([]byte, 5)); err != nil {
		t.Errorf("a visitor who was there before: %v", err)
	}
	s.mustVisit("echo")
	c := listenUDP(t, l.Outside)
	want := []byte("still here")
	got := make([]byte, 100)
	for tries := 0; ; tries++ {
		c.WriteToUDP(want, flow)
		c.SetReadDeadline(time.Now().Add(time.Second))
		n, err := c.Read(got)
		if err == nil && bytes.Equal(got[:n], want) {
			break
		} else if err != nil && !errors.Is(err, os.ErrDeadlineExceeded) || tries > 30 {
			t.Fatalf("a datagram comes back as %q, %v", got[:n], err)
		}
	}
	if grown := s.public.rss() - before; grown > 100<<20 {
		t.Errorf("the public relay has grown by %d MiB", grown>>20)
	}
}
