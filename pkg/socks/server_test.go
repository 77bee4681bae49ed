package socks

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/proxy"
)

// plain is a TCP or UDP connection as a Conn.
type plain struct{ net.Conn }

func (p plain) CloseWrite() error {
	if t, ok := p.Conn.(*net.TCPConn); ok {
		return t.CloseWrite()
	}
	return nil
}

func (p plain) Abort() {
	if t, ok := p.Conn.(*net.TCPConn); ok {
		t.SetLinger(0)
	}
	p.Conn.Close()
}

// serve runs s, until the test ends. Its Dial, if there is none, connects to names that end in ".test" on this machine.
func serve(t *testing.T, s *Server) (address string) {
	t.Helper()
	if s.Dial == nil {
		s.Dial = func(ctx context.Context, network, address string) (Conn, error) {
			host, port, _ := net.SplitHostPort(address)
			if strings.HasSuffix(host, ".test") {
				host = "127.0.0.1"
			}
			nc, err := new(net.Dialer).DialContext(ctx, network, net.JoinHostPort(host, port))
			if err != nil {
				return nil, err
			}
			return plain{nc}, nil
		}
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return ln.Addr().String()
}

// echo is a server that sends back what it gets, and then a word when it has all of it.
func echo(t *testing.T) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer nc.Close()
				if _, err := io.Copy(nc, nc); err == nil {
					io.WriteString(nc, "over")
				}
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

func dial(t *testing.T, address string) *net.TCPConn {
	t.Helper()
	nc, err := net.Dial("tcp", address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { nc.Close() })
	nc.SetDeadline(time.Now().Add(time.Minute))
	return nc.(*net.TCPConn)
}

// Another program's client gets bytes through, in both directions, with their ends; names go as they are.
func TestConnect(t *testing.T) {
	target := echo(t)
	_, port, _ := net.SplitHostPort(target)
	var asked []string
	s := &Server{Login: func(user, password string) bool { return user == "site" && password == "s3cret" }}
	address := serve(t, s)
	dialNow := s.Dial
	var mu sync.Mutex
	s.Dial = func(ctx context.Context, network, address string) (Conn, error) {
		mu.Lock()
		asked = append(asked, address)
		mu.Unlock()
		return dialNow(ctx, network, address)
	}
	d, err := proxy.SOCKS5("tcp", address, &proxy.Auth{User: "site", Password: "s3cret"}, nil)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := d.Dial("tcp", "db.test:"+port)
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16) // 1 MiB
	go func() {
		nc.Write(data)
		nc.(interface{ CloseWrite() error }).CloseWrite()
	}()
	got, err := io.ReadAll(nc)
	if err != nil || !bytes.Equal(got, append(data, "over"...)) {
		t.Errorf("%d bytes, %v", len(got), err)
	}
	mu.Lock()
	defer mu.Unlock()
	if len(asked) != 1 || asked[0] != "db.test:"+port {
		t.Errorf("asked for %q", asked)
	}
}

// A client that sends everything at once is served as well.
func TestHasty(t *testing.T) {
	target := netip.MustParseAddrPort(echo(t))
	nc := dial(t, serve(t, new(Server)))
	out := append([]byte("\x05\x01\x00\x05\x01\x00\x01"), target.Addr().AsSlice()...)
	out = append(binary.BigEndian.AppendUint16(out, target.Port()), "hello"...)
	if _, err := nc.Write(out); err != nil {
		t.Fatal(err)
	}
	nc.CloseWrite()
	if got, err := io.ReadAll(nc); string(got) != "\x05\x00\x05\x00\x00\x01\x00\x00\x00\x00\x00\x00helloover" {
		t.Errorf("%q, %v", got, err)
	}
}

var errNo = errors.New("no")

func TestRefusals(t *testing.T) {
	var mu sync.Mutex
	var told []string
	s := &Server{
		Dial: func(ctx context.Context, network, address string) (Conn, error) {
			return nil, fmt.Errorf("%s: %w", address, errNo)
		},
		Reply: func(err error) Reply {
			if errors.Is(err, errNo) {
				return NotAllowed
			}
			return Failed
		},
		OnError: func(client netip.AddrPort, address string, err error) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, address+" "+err.Error())
			if !client.Addr().IsLoopback() {
				t.Errorf("client %v", client)
			}
		},
	}
	address := serve(t, s)
	for in, want := range map[string]string{
		"\x05\x01\x00\x05\x01\x00\x03\x01a\x00\x50":            "\x05\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00",
		"\x05\x01\x00\x05\x02\x00\x01\x00\x00\x00\x00\x00\x00": "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00",
		"\x05\x01\x00\x05\x09\x00\x01\x00\x00\x00\x00\x00\x00": "\x05\x00\x05\x07\x00\x01\x00\x00\x00\x00\x00\x00",
		"\x05\x01\x01" + strings.Repeat("x", 2000):             "\x05\xff",
		"\x04\x01\x00\x50\x7f\x00\x00\x01\x00":                 "\x00\x5b\x00\x00\x00\x00\x00\x00",
		"\x05":                                                 "",
	} {
		nc := dial(t, address)
		nc.Write([]byte(in))
		nc.CloseWrite()
		if got, err := io.ReadAll(nc); string(got) != want {
			t.Errorf("%q: %q, %v", in[:min(len(in), 20)], got, err)
		}
	}
	for _, want := range []string{"a:80 a:80: no", "BIND", "no way to log in", "SOCKS 4"} {
		all := ""
		for end := time.Now().Add(time.Minute); !strings.Contains(all, want); time.Sleep(time.Millisecond) { // it is told after the reply
			if time.Now().After(end) {
				t.Fatalf("no %q in\n%s", want, all)
			}
			mu.Lock()
			all = strings.Join(told, "\n")
			mu.Unlock()
		}
	}
}

// Who says nothing is let go of, and more clients than there may be wait.
func TestLimits(t *testing.T) {
	target := echo(t)
	silent := dial(t, serve(t, &Server{Wait: 50 * time.Millisecond}))
	if got, err := io.ReadAll(silent); len(got) > 0 || err != nil {
		t.Errorf("%q, %v", got, err)
	}

	address := serve(t, &Server{MaxConns: 1})
	first := dial(t, address)
	first.Write([]byte("\x05\x01\x00"))
	if _, err := io.ReadFull(first, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	second := dial(t, address)
	second.Write([]byte("\x05\x01\x00"))
	second.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
	if n, err := second.Read(make([]byte, 2)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("%d bytes, %v, beside another one", n, err)
	}
	first.Close()
	d, err := proxy.SOCKS5("tcp", address, nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	second.Close()
	nc, err := d.Dial("tcp", target)
	if err != nil {
		t.Fatal(err)
	}
	nc.Close()
}

// A target that breaks off does not look as if it had finished.
func TestBrokenOff(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		nc, err := ln.Accept()
		if err != nil {
			return
		}
		io.ReadFull(nc, make([]byte, 5))
		nc.(*net.TCPConn).SetLinger(0)
		nc.Close()
	}()
	told := make(chan error, 10)
	d, err := proxy.SOCKS5("tcp", serve(t, &Server{OnError: func(_ netip.AddrPort, _ string, err error) { told <- err }}), nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	nc, err := d.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	io.WriteString(nc, "hello")
	if got, err := io.ReadAll(nc); err == nil {
		t.Errorf("%q looks complete", got)
	}
	<-told
}

// farEnd is a Conn that has sent "half", and is silent then.
type farEnd struct {
	broken bool          // it takes nothing
	gone   func()        // before it is aborted; nil: nothing is waited for
	sent   bool          // owned by Read
	once   sync.Once     // of over
	over   chan struct{} // closed when it is
}

func (f *farEnd) Read(b []byte) (int, error) {
	if !f.sent {
		f.sent = true
		return copy(b, "half"), nil
	}
	<-f.over
	return 0, net.ErrClosed
}

func (f *farEnd) Write(b []byte) (int, error) {
	if f.broken {
		return 0, errors.New("broken")
	}
	return len(b), nil
}

func (f *farEnd) CloseWrite() error { return nil }
func (f *farEnd) Close() error      { f.once.Do(func() { close(f.over) }); return nil }
func (f *farEnd) Abort() {
	if f.gone != nil {
		f.gone()
	}
	f.Close()
}

// A server that ends breaks off what goes through it, and so does a target that does not take what a hasty client has sent.
func TestCutOff(t *testing.T) {
	for _, broken := range []bool{false, true} {
		seen := make(chan struct{}) // closed when the client has seen the end
		far := &farEnd{broken: broken, over: make(chan struct{})}
		if !broken {
			far.gone = func() { <-seen } // so that the end cannot be the target's
		}
		s := &Server{Dial: func(context.Context, string, string) (Conn, error) { return far, nil }}
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		ctx, cancel := context.WithCancel(context.Background())
		done := make(chan error, 1)
		go func() { done <- s.Serve(ctx, ln) }()
		nc := dial(t, ln.Addr().String())
		// The greeting, and a request for 127.0.0.1:80 with something behind it.
		nc.Write(append([]byte{5, 1, 0, 5, 1, 0, 1, 127, 0, 0, 1, 0, 80}, "hello"...))
		if !broken {
			if _, err := io.ReadFull(nc, make([]byte, 2+10+len("half"))); err != nil {
				t.Fatal(err)
			}
			cancel()
		}
		if got, err := io.ReadAll(nc); err == nil {
			t.Errorf("broken %v: %q looks complete", broken, got)
		}
		close(seen)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// Datagrams go to several destinations and come back with where they are from, as long as the connection lives. Nobody else's do.
func TestAssociate(t *testing.T) {
	var targets []*net.UDPConn
	for range 2 {
		pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		if err != nil {
			t.Fatal(err)
		}
		targets = append(targets, pc)
		defer pc.Close()
		go func() {
			b := make([]byte, 1000)
			for {
				n, from, err := pc.ReadFromUDPAddrPort(b)
				if err != nil {
					return
				}
				pc.WriteToUDPAddrPort(append([]byte("re: "), b[:n]...), from)
			}
		}()
	}
	nc := dial(t, serve(t, &Server{MaxFlows: 2, Idle: 50 * time.Millisecond}))
	nc.Write([]byte("\x05\x01\x00\x05\x03\x00\x01\x00\x00\x00\x00\x00\x00"))
	reply := make([]byte, 12)
	if _, err := io.ReadFull(nc, reply); err != nil || reply[3] != 0 {
		t.Fatalf("%q, %v", reply, err)
	}
	relay := netip.AddrPortFrom(netip.AddrFrom4([4]byte(reply[6:10])), binary.BigEndian.Uint16(reply[10:]))
	pc, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(relay))
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	pc.SetDeadline(time.Now().Add(time.Minute))
	stranger, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(relay))
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	ask := func(host string, port uint16, text string) {
		t.Helper()
		for try := 0; ; try++ { // a datagram may be lost, also here
			pc.Write(append(AppendDatagramHead(nil, host, port), text...))
			if try == 0 {
				stranger.Write(append(AppendDatagramHead(nil, host, port), "stranger"...))
				pc.Write([]byte("\x00\x00\x01\x01\x7f\x00\x00\x01\x00\x50fragment"))
				pc.Write([]byte("rubbish"))
			}
			b := make([]byte, 1000)
			pc.SetReadDeadline(time.Now().Add(2 * time.Second))
			for {
				n, err := pc.Read(b)
				if err != nil && try < 20 {
					break
				} else if err != nil {
					t.Fatal(err)
				}
				h, p, payload, ok := ParseDatagram(b[:n])
				if !ok || strings.HasSuffix(string(payload), "stranger") || strings.HasSuffix(string(payload), "fragment") {
					t.Fatalf("%q from %s:%d, %v", payload, h, p, ok)
				}
				if h == host && p == port && string(payload) == "re: "+text {
					return
				} // else it is one that was late
			}
		}
	}
	for i := range 3 { // flows that were given up begin anew
		for _, target := range targets {
			port := target.LocalAddr().(*net.UDPAddr).AddrPort().Port()
			ask("127.0.0.1", port, fmt.Sprint("a", i))
			ask("ns.test", port, fmt.Sprint("b", i))
		}
		time.Sleep(60 * time.Millisecond) // only makes it likely that they were
	}
	nc.Close()
	for range 1000 { // until the socket is gone
		if _, err := pc.Write([]byte("x")); err != nil {
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Error("the association outlives its connection")
}
