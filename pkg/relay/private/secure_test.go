package private

import (
	"bytes"
	"crypto/ed25519"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// newSecureSite is newSite for operators.
func newSecureSite(t *testing.T, services ...Service) (s *site, key ed25519.PrivateKey) {
	t.Helper()
	s = newSite(t, services...)
	_, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	secure, err := auth.OperateServer(key)
	if err != nil {
		t.Fatal(err)
	}
	s.do(func() { s.peer.relay.secure = secure })
	return s, key
}

// stream opens a stream of an operator, as the public relay does.
func (s *site) operator(service string) net.Conn {
	s.t.Helper()
	header, err := relay.Header{Kind: relay.KindOperate, Service: service, Scheme: "operate", Host: "alice", Visitor: netip.MustParseAddrPort("192.0.2.7:40000")}.Append(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	var c net.Conn
	s.do(func() {
		st, e := s.far.Open(header)
		if err = e; err == nil {
			c = s.loop.NetConn(st, nil, nil, nil)
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	s.t.Cleanup(func() { c.Close() })
	return c
}

// secure does the handshake, as the operator does.
func (s *site) secure(service string, own ed25519.PrivateKey) *tls.Conn {
	s.t.Helper()
	cfg, err := auth.OperateClient(own, func(ed25519.PublicKey) error { return nil })
	if err != nil {
		s.t.Fatal(err)
	}
	c := tls.Client(s.operator(service), cfg)
	if err := c.Handshake(); err != nil {
		s.t.Fatal(err)
	}
	return c
}

// answer reads what the relay has to say.
func answer(t *testing.T, c net.Conn) relay.OperateAnswer {
	t.Helper()
	var head [2]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		t.Fatalf("no answer: %v", err)
	}
	b := make([]byte, binary.BigEndian.Uint16(head[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		t.Fatal(err)
	}
	a, err := relay.DecodeOperateAnswer(b)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

func (s *site) request(r relay.OperateRequest) (*tls.Conn, relay.OperateAnswer) {
	s.t.Helper()
	c := s.secure(r.Service, nil)
	if _, err := c.Write(relay.AppendOperate(nil, r)); err != nil {
		s.t.Fatal(err)
	}
	return c, answer(s.t.(*testing.T), c)
}

// What an operator can reach: every sort of target, and what is not there.
func TestOperate(t *testing.T) {
	echo := func(c net.Conn) { io.Copy(c, c); c.(interface{ CloseWrite() error }).CloseWrite() }
	plain := startTarget(t, "tcp", echo)
	udp, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer udp.Close()
	go func() {
		b := make([]byte, 64<<10)
		for {
			n, from, err := udp.ReadFrom(b)
			if err != nil {
				return
			}
			udp.WriteTo(b[:n], from)
		}
	}()
	files, _ := fileService(t, relay.Files{}, nil)
	files.Name = "boot"
	s, _ := newSecureSite(t, tcpService(t, "echo", "tcp://"+plain), tcpService(t, "dns", "udp://"+udp.LocalAddr().String()), tcpService(t, "none", "tcp://127.0.0.1:1"), files)

	c, a := s.request(relay.OperateRequest{Service: "echo"})
	if a.Error != nil || a.Scheme != "tcp" {
		t.Fatalf("%+v", a)
	}
	io.WriteString(c, "hello")
	c.CloseWrite()
	if b, err := io.ReadAll(c); err != nil || string(b) != "hello" {
		t.Errorf("%q, %v", b, err)
	}

	c, a = s.request(relay.OperateRequest{Service: "dns", Network: "udp"})
	if a.Error != nil || a.Scheme != "udp" {
		t.Fatalf("%+v", a)
	}
	for _, n := range []int{0, 1, 1500, 8000} {
		b := append(binary.BigEndian.AppendUint16(nil, uint16(n)), bytes.Repeat([]byte{7}, n)...)
		for half := range 2 { // however it is cut
			c.Write(b[half*len(b)/2 : (half+1)*len(b)/2])
		}
		got := make([]byte, len(b))
		if _, err := io.ReadFull(c, got); err != nil || !bytes.Equal(got, b) {
			t.Errorf("a datagram of %d bytes: %v", n, err)
		}
	}

	for _, test := range []struct {
		r    relay.OperateRequest
		code relay.OperateCode // "": none
		text string
	}{
		{relay.OperateRequest{Service: "echo", Probe: true}, "", ""},
		{relay.OperateRequest{Service: "none", Probe: true}, "", ""},
		{relay.OperateRequest{Service: "none"}, relay.OperateRefused, "none has refused"},
		{relay.OperateRequest{Service: "other"}, relay.OperateNotFound, `"other"`},
		{relay.OperateRequest{Service: "boot"}, relay.OperateNetwork, "TFTP"},
		{relay.OperateRequest{Service: "dns"}, relay.OperateNetwork, "--udp"},
		{relay.OperateRequest{Service: "echo", Network: "udp"}, relay.OperateNetwork, "--udp"},
		{relay.OperateRequest{Service: relay.ServiceSocks, Address: "a:1"}, relay.OperateForbidden, "[socks]"},
		{relay.OperateRequest{Service: relay.ServiceBench, Address: "other"}, relay.OperateNotFound, "measure"},
		{relay.OperateRequest{Service: relay.ServicePing, Network: "udp"}, relay.OperateNotFound, ""},
		{relay.OperateRequest{Service: relay.ServicePing, Probe: true}, "", ""},
		{relay.OperateRequest{Service: ".diag"}, relay.OperateNotFound, "older"},
	} {
		c, a := s.request(test.r)
		if a.Error == nil && test.code == "" || a.Error != nil && a.Error.Code == test.code && strings.Contains(a.Error.Text, test.text) {
			if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
				t.Errorf("%+v: then %q, %v", test.r, b, err)
			}
			continue
		}
		t.Errorf("%+v: %+v, want %s %q", test.r, a.Error, test.code, test.text)
	}
	s.wantAllEnded()
}

// Somebody who has the public relay, or a token, and no good intentions.
func TestOperateHostile(t *testing.T) {
	plain := startTarget(t, "tcp", func(c net.Conn) { t.Error("the target was reached") })
	s, _ := newSecureSite(t, tcpService(t, "echo", "tcp://"+plain))

	// It says that the stream is for another service than the operator wants.
	c := s.secure(relay.ServicePing, nil)
	c.Write(relay.AppendOperate(nil, relay.OperateRequest{Service: "echo"}))
	if a := answer(t, c); a.Error == nil || a.Error.Code != relay.OperateForbidden {
		t.Errorf("another service than in the header: %+v", a)
	}

	// Requests that are none.
	for _, b := range []string{"\x00\x00", "\xff\xff", "\x00\x02{}", "\x00\x02[]", "\x00\x01x", "\x00\x12{\"service\":\"../a\"}", "GET / HTTP/1.1\r\n\r\n"} {
		c := s.secure("echo", nil)
		io.WriteString(c, b)
		if a := answer(t, c); a.Error == nil {
			t.Errorf("%q is accepted", b)
		}
		if _, err := io.ReadAll(c); err != nil {
			t.Errorf("%q: %v", b, err)
		}
	}

	// No TLS, none to the end, and an end in the middle of a request.
	for _, b := range []string{"hello", "\x16\x03\x01\x00\x05hello", strings.Repeat("x", 100<<10)} {
		c := s.operator("echo")
		io.WriteString(c, b)
		c.(interface{ CloseWrite() error }).CloseWrite()
		if b, err := io.ReadAll(c); err == nil && len(b) > 0 && b[0] != 21 { // an alert
			t.Errorf("%.20q is answered by %q", b, b)
		}
	}
	c = s.secure("echo", nil)
	io.WriteString(c, "\x00\x10{")
	c.CloseWrite()
	if b, err := io.ReadAll(c); len(b) > 0 || err != nil {
		t.Errorf("half a request: %q, %v", b, err)
	}

	// More than there may be at a time.
	var all []net.Conn
	for range maxOperations {
		all = append(all, s.operator("echo"))
	}
	one := s.operator("echo")
	if e, ok := errors.AsType[*tunnel.StreamError](second(one.Read(make([]byte, 1)))); !ok || e.Code != tunnel.CodeOverload {
		t.Errorf("one too many: %v", e)
	}
	for _, c := range all {
		c.Close()
	}

	// A site that was given no key takes no operators.
	s.do(func() { s.peer.relay.secure = nil })
	one = s.operator("echo")
	if e, ok := errors.AsType[*tunnel.StreamError](second(one.Read(make([]byte, 1)))); !ok || e.Code != tunnel.CodeInternal {
		t.Errorf("without a key: %v", e)
	}
}

func second[T any](_ T, err error) error { return err }

// startTarget listens, and gives each connection to f in a goroutine.
func startTarget(t *testing.T, network string, f func(net.Conn)) string {
	t.Helper()
	ln, err := net.Listen(network, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				f(c)
			}()
		}
	}()
	return ln.Addr().String()
}
