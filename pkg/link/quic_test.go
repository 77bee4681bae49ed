package link

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/quic-go/quic-go"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// listenQUIC lets links in over QUIC.
func (s *server) listenQUIC(t testing.TB, addr string) net.Addr {
	return acceptQUIC(t, addr, ALPN, func(conn *quic.Conn) {
		loop := s.core.Loop(0)
		loop.Post(func() { AcceptQUIC(loop, conn, s.hello) })
	})
}

// acceptQUIC gives f the connections that come, until the end of the test.
func acceptQUIC(t testing.TB, addr, alpn string, f func(*quic.Conn)) net.Addr {
	t.Helper()
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	cfg := certs().server.Clone()
	cfg.NextProtos = []string{alpn}
	tr := &quic.Transport{Conn: QUICSocket(pc.(*net.UDPConn))}
	ln, err := tr.Listen(cfg, QUICConfig())
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			conn, err := ln.Accept(context.Background())
			if err != nil {
				return
			}
			wg.Go(func() { f(conn) })
		}
	})
	t.Cleanup(func() { tr.Close(); pc.Close(); wg.Wait() })
	return pc.LocalAddr()
}

// Whatever is at the other end, a person reads what is wrong.
func TestQUICDialErrors(t *testing.T) {
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	_, key, _ := ed25519.GenerateKey(nil)
	answer := func(b []byte) string {
		return acceptQUIC(t, "127.0.0.1:0", ALPN, func(conn *quic.Conn) {
			if s, err := conn.AcceptStream(t.Context()); err == nil {
				s.Write(b)
				s.Close()
				<-conn.Context().Done()
			}
		}).String()
	}
	closes := acceptQUIC(t, "127.0.0.1:0", ALPN, func(conn *quic.Conn) { conn.CloseWithError(StatusAway, "not now") }).String()
	elsewhere := acceptQUIC(t, "127.0.0.2:0", ALPN, func(*quic.Conn) {}).String()
	for _, tt := range []struct {
		name  string
		addr  string
		roots *x509.CertPool
		phase Phase
		want  string
	}{
		{"no port", "127.0.0.1", certs().roots, PhaseDial, "missing port"},
		{"no such host", "relay.invalid:443", certs().roots, PhaseDial, "relay.invalid"},
		{"unknown authority", closes, x509.NewCertPool(), PhaseTLS, `name its CA with ca = "ca.pem"`},
		{"another name", elsewhere, certs().roots, PhaseTLS, "is not for 127.0.0.2"},
		{"another protocol", acceptQUIC(t, "127.0.0.1:0", "h3", func(*quic.Conn) {}).String(), certs().roots, PhaseTLS, "speaks QUIC and is no public relay"},
		{"closed", closes, certs().roots, PhaseHello, `has closed the link: "not now" (status 1001)`},
		{"the end", answer(nil), certs().roots, PhaseHello, "EOF"},
		{"a long answer", answer([]byte("\xff\xff")), certs().roots, PhaseHello, "too long"},
		{"nonsense", answer([]byte("\x00\x04nope")), certs().roots, PhaseHello, "welcome"},
	} {
		d := dial(core.Loop(0), t.Context(), DialConfig{Transport: QUIC, Address: tt.addr, RootCAs: tt.roots, Site: "office", Key: key}, nil)
		var de *DialError
		if !errors.As(d.err, &de) || de.Phase != tt.phase || !strings.Contains(d.err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, d.err, tt.want)
		}
	}

	// A relay that says nothing, and one that nothing comes back from.
	// The first one hears what a link does that leaves a session which goes on.
	left := make(chan error, 1)
	silent := acceptQUIC(t, "127.0.0.1:0", ALPN, func(conn *quic.Conn) {
		if s, err := conn.AcceptStream(t.Context()); err == nil {
			readMessage(s)
		}
		<-conn.Context().Done()
		left <- quicError(context.Cause(conn.Context()))
	}).String()
	hole, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer hole.Close()
	for addr, phase := range map[string]Phase{silent: PhaseHello, hole.LocalAddr().String(): PhaseDial} {
		ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second) // enough for a handshake
		d := dial(core.Loop(0), ctx, DialConfig{Transport: QUIC, Address: addr, RootCAs: certs().roots, Site: "office", Key: key}, nil)
		cancel()
		var de *DialError
		if !errors.As(d.err, &de) || de.Phase != phase || !errors.Is(d.err, context.DeadlineExceeded) {
			t.Errorf("given up in phase %s: %v", phase, d.err)
		}
	}
	if e, ok := errors.AsType[*CloseError](<-left); !ok || e.Status != StatusAway {
		t.Errorf("a dial that is given up after its Hello ends with %v", e)
	}
	d := dial(core.Loop(0), t.Context(), DialConfig{Transport: QUIC, Address: hole.LocalAddr().String(), RootCAs: certs().roots, Site: "office", Key: key}, nil)
	if d.err == nil || !strings.Contains(d.err.Error(), "nothing comes back from "+hole.LocalAddr().String()+" over UDP") {
		t.Errorf("no answer: %v", d.err)
	}
}

// The addresses of a relay take turns.
func TestAlternate(t *testing.T) {
	var list []netip.Addr
	for _, s := range []string{"::1", "::2", "::3", "127.0.0.1", "::4"} {
		list = append(list, netip.MustParseAddr(s))
	}
	if got := fmt.Sprint(alternate(list)); got != "[::1 127.0.0.1 ::2 ::3]" {
		t.Error(got)
	}
}

// quicClient is a peer made by hand.
type quicClient struct {
	*quic.Conn
	t       *testing.T
	control *quic.Stream
}

func newQUICClient(t *testing.T, addr string) *quicClient {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: pc}
	t.Cleanup(func() { tr.Close(); pc.Close() })
	udp, _ := net.ResolveUDPAddr("udp", addr)
	conn, err := tr.Dial(ctx, udp, &tls.Config{RootCAs: certs().roots, ServerName: "localhost", NextProtos: []string{ALPN}}, &quic.Config{EnableDatagrams: true})
	if err != nil {
		t.Fatal(err)
	}
	c := &quicClient{Conn: conn, t: t}
	if c.control, err = conn.OpenStream(); err != nil {
		t.Fatal(err)
	}
	c.control.SetDeadline(time.Now().Add(20 * time.Second))
	return c
}

func (c *quicClient) hello(key ed25519.PrivateKey, exporter []byte) string {
	if exporter == nil {
		state := c.ConnectionState().TLS
		exporter = must(state.ExportKeyingMaterial(auth.ExporterLabel, nil, 32))
	}
	cfg := DialConfig{Site: "office", Key: key}
	c.control.Write(appendMessage(nil, cfg.hello(exporter)))
	answer, err := readMessage(c.control)
	if err != nil {
		c.t.Fatal(err)
	}
	return string(answer)
}

// wantClose expects that the other side ends the connection.
func (c *quicClient) wantClose(name string, status int, reason string) {
	c.t.Helper()
	go func() {
		if _, err := io.Copy(io.Discard, c.control); err == nil {
			c.control.Close()
		}
	}()
	select {
	case <-c.Context().Done():
	case <-time.After(20 * time.Second):
		c.t.Fatalf("%s: the connection is still there", name)
	}
	var closed *CloseError
	if err := quicError(context.Cause(c.Context())); !errors.As(err, &closed) || closed.Status != status || !strings.Contains(closed.Reason, reason) {
		c.t.Errorf("%s: %v, want status %d, %q", name, err, status, reason)
	}
}

// What a peer may do wrong before it has proved itself.
func TestQUICBadHello(t *testing.T) {
	n := &network{transport: QUIC}
	s, _, key := start(t, n, true)
	for _, tt := range []struct {
		name   string
		send   string
		status int
		reason string
		err    string
	}{
		{"long", "\x10\x01", websocket.StatusTooBig, "too long", "too long"},
		{"not JSON", "\x00\x02hi", websocket.StatusPolicy, "malformed", "malformed"},
		{"newer", "\x00\x0e{\"version\":99}", websocket.StatusPolicy, "version", "update the public relay"},
		{"half", "\x00\x0e{\"version", websocket.StatusPolicy, "EOF", "EOF"},
	} {
		c := newQUICClient(t, n.addr)
		c.control.Write([]byte(tt.send))
		c.control.Close()
		c.wantClose(tt.name, tt.status, tt.reason)
		if err := <-s.failed; !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}

	// A proof that was made on another connection is worth nothing on this one.
	a, b := newQUICClient(t, n.addr), newQUICClient(t, n.addr)
	state := a.ConnectionState().TLS
	if answer := b.hello(key, must(state.ExportKeyingMaterial(auth.ExporterLabel, nil, 32))); !strings.Contains(answer, "bad-key") {
		t.Errorf("a replayed proof: %s", answer)
	}
	b.wantClose("a replayed proof", websocket.StatusPolicy, "bad-key")

	// A second bidirectional stream is one too many, and so are very many lanes.
	if _, err := a.OpenStream(); err == nil {
		t.Error("a second control channel")
	}
	for i := 0; ; i++ {
		if _, err := a.OpenUniStream(); err != nil {
			if i != maxLanes {
				t.Errorf("%d lanes: %v", i, err)
			}
			break
		}
	}
	a.CloseWithError(0, "")
	<-s.failed
}

// What a peer may do on an open link.
func TestQUICOpenLink(t *testing.T) {
	n := &network{transport: QUIC}
	s, _, key := start(t, n, true)
	for _, tt := range []struct {
		name   string
		do     func(c *quicClient)
		status int
		reason string
	}{
		{"bad frame", func(c *quicClient) { c.control.Write([]byte("\x06\x00\x00\x00\x00\x00\x00\x09long ping")) }, websocket.StatusProtocolError, ""},
		{"bad lane", func(c *quicClient) {
			ln := must(c.OpenUniStream())
			ln.Write([]byte("\x06\x00\x00\x00\x00\x00\x00\x09long ping"))
		}, websocket.StatusProtocolError, ""},
		{"lane reset", func(c *quicClient) {
			ln := must(c.OpenUniStream())
			ln.Write([]byte{1})
			ln.CancelWrite(1)
		}, websocket.StatusProtocolError, "canceled"},
		{"control channel refused", func(c *quicClient) { c.control.CancelRead(1) }, websocket.StatusProtocolError, "canceled"},
		{"short datagram", func(c *quicClient) { c.SendDatagram([]byte("abc")) }, websocket.StatusProtocolError, "stream id"},
		{"end", func(c *quicClient) { c.control.Close() }, StatusAway, ""},
	} {
		c := newQUICClient(t, n.addr)
		if answer := c.hello(key, nil); !strings.Contains(answer, `"session"`) {
			t.Fatalf("%s: %s", tt.name, answer)
		}
		tt.do(c)
		if l := <-s.serving; tt.name == "end" { // it waits for our word, 5 s
			if b, err := io.ReadAll(c.control); err != nil {
				t.Errorf("%q, %v", b, err)
			}
			on(l.loop(), func() {
				if l.OpenLane() != nil || l.SendDatagram(2, []byte("late")) {
					t.Error("a link that the peer ends takes more")
				}
			})
			c.CloseWithError(StatusAway, "")
		} else {
			c.wantClose(tt.name, tt.status, tt.reason)
		}
		if err := <-s.lost; err == nil {
			t.Errorf("%s: lost without an error", tt.name)
		}
	}
}

// packets is one end of a network of two, for times that nobody waits for.
type packets struct {
	in   chan []byte
	out  *packets
	addr net.Addr

	mu       sync.Mutex
	deadline time.Time
	changed  chan struct{}
}

func newPackets() (a, b *packets) {
	a = &packets{in: make(chan []byte, 1000), changed: make(chan struct{}, 1), addr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 1), Port: 1}}
	b = &packets{in: make(chan []byte, 1000), changed: make(chan struct{}, 1), addr: &net.UDPAddr{IP: net.IPv4(192, 0, 2, 2), Port: 1}}
	a.out, b.out = b, a
	return a, b
}

func (p *packets) ReadFrom(b []byte) (int, net.Addr, error) {
	for {
		p.mu.Lock()
		over := !p.deadline.IsZero()
		p.mu.Unlock()
		if over {
			return 0, nil, net.ErrClosed
		}
		select {
		case in := <-p.in:
			return copy(b, in), p.out.addr, nil
		case <-p.changed:
		}
	}
}

func (p *packets) WriteTo(b []byte, _ net.Addr) (int, error) {
	select {
	case p.out.in <- bytes.Clone(b):
	default:
	}
	return len(b), nil
}

func (p *packets) Close() error { return p.SetReadDeadline(time.Now()) }

func (p *packets) SetReadDeadline(d time.Time) error {
	p.mu.Lock()
	p.deadline = d
	p.mu.Unlock()
	select {
	case p.changed <- struct{}{}:
	default:
	}
	return nil
}
func (p *packets) SetDeadline(time.Time) error      { return nil }
func (p *packets) SetWriteDeadline(time.Time) error { return nil }
func (p *packets) SetReadBuffer(int) error          { return nil }
func (p *packets) SetWriteBuffer(int) error         { return nil }
func (p *packets) LocalAddr() net.Addr              { return p.addr }

// A peer that makes a connection and says nothing, or begins and does not go on, is
// sent away.
func TestQUICNoHello(t *testing.T) {
	for _, begin := range []string{"", "\x00"} {
		synctest.Test(t, func(t *testing.T) {
			core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
			if err != nil {
				t.Fatal(err)
			}
			defer core.Close()
			creds := makeCredentials()
			creds.server.NextProtos = []string{ALPN}
			a, b := newPackets()
			server, client := &quic.Transport{Conn: a}, &quic.Transport{Conn: b}
			defer server.Close()
			defer client.Close()
			ln, err := server.Listen(creds.server, QUICConfig())
			if err != nil {
				t.Fatal(err)
			}
			c, err := client.Dial(t.Context(), a.addr, &tls.Config{RootCAs: creds.roots, ServerName: "localhost", NextProtos: []string{ALPN}}, QUICConfig())
			if err != nil {
				t.Fatal(err)
			}
			conn, err := ln.Accept(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			failed := make(chan error, 1)
			began := time.Now()
			on(core.Loop(0), func() {
				AcceptQUIC(core.Loop(0), conn, func(_ *Incoming, err error) { failed <- err })
			})
			if begin != "" {
				must(c.OpenStream()).Write([]byte(begin))
			}
			if err := <-failed; err == nil || !strings.Contains(err.Error(), "no hello within 10s") || time.Since(began) != handshakeTimeout {
				t.Errorf("%v after %v", err, time.Since(began))
			}
			<-c.Context().Done()
		})
	}
}

// nat is a box between a link and its relay.
type nat struct {
	t      *testing.T
	front  *net.UDPConn
	target *net.UDPAddr
	hole   atomic.Bool // it swallows everything
	wg     sync.WaitGroup

	mu     sync.Mutex
	back   *net.UDPConn
	client netip.AddrPort
}

func newNAT(t *testing.T, target string) *nat {
	b := &nat{t: t}
	b.target, _ = net.ResolveUDPAddr("udp", target)
	var err error
	if b.front, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}); err != nil {
		t.Fatal(err)
	}
	b.rebind()
	b.wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, from, err := b.front.ReadFromUDPAddrPort(buf)
			if err != nil {
				return
			}
			b.mu.Lock()
			back := b.back
			b.client = from
			b.mu.Unlock()
			if !b.hole.Load() {
				back.WriteToUDP(buf[:n], b.target)
			}
		}
	})
	t.Cleanup(func() { b.front.Close(); b.back.Close(); b.wg.Wait() })
	return b
}

// rebind takes another port on the relay's side.
func (b *nat) rebind() {
	back, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		b.t.Fatal(err)
	}
	b.mu.Lock()
	old := b.back
	b.back = back
	b.mu.Unlock()
	if old != nil {
		old.Close()
	}
	b.wg.Go(func() {
		buf := make([]byte, 2048)
		for {
			n, _, err := back.ReadFromUDP(buf)
			if err != nil {
				return
			}
			b.mu.Lock()
			client := b.client
			b.mu.Unlock()
			if !b.hole.Load() {
				b.front.WriteToUDPAddrPort(buf[:n], client)
			}
		}
	})
}

// A link outlives a change of its address, in the middle of a transfer, without a
// new one. One that nothing comes through any more is found out by the session.
func TestQUICPath(t *testing.T) {
	connect := func(ping time.Duration) (s *server, box *nat, me *Session, lost chan error) {
		t.Helper()
		n := &network{transport: QUIC, ping: ping}
		s, core, key := start(t, n, true)
		box = newNAT(t, n.addr)
		n.addr = box.front.LocalAddr().String()
		loop := core.Loop(0)
		on(loop, func() {
			me = NewSession(loop, tunnel.Config{Client: true, PingInterval: ping, PingTimeout: 2 * ping})
		})
		lost = make(chan error, 1)
		d := dial(loop, t.Context(), n.config(key), func(l *Link) {
			l.Serve(me, tunnel.RoleInteractive, func(_ *Link, err error) { lost <- err })
		})
		if d.err != nil {
			t.Fatal(d.err)
		}
		return s, box, me, lost
	}
	s, box, me, lost := connect(time.Minute) // a slow machine is no reason to give it up
	var p *pump
	on(me.loop, func() {
		st, _ := me.Open([]byte("header"))
		p = newPump(st, 8<<20)
	})
	for range 3 {
		time.Sleep(100 * time.Millisecond)
		box.rebind()
	}
	select {
	case err := <-p.done:
		if err != nil {
			t.Fatal(err)
		}
	case err := <-lost:
		t.Fatal("lost:", err)
	case err := <-s.lost:
		t.Fatal("lost there:", err)
	}

	_, box, me, lost = connect(time.Second)
	box.hole.Store(true)
	on(me.loop, func() { me.Open([]byte("another")) })
	select {
	case err := <-lost:
		if !errors.Is(err, tunnel.ErrLinkTimeout) {
			t.Error("lost:", err)
		}
	case <-time.After(time.Minute):
		t.Error("nobody finds out that nothing comes through")
	}
}

// Streams that move much have lanes while they do, and none afterwards.
func TestQUICLanes(t *testing.T) {
	n := &network{transport: QUIC}
	_, core, key := start(t, n, true)
	loop := core.Loop(0)
	var me *Session
	on(loop, func() { me = NewSession(loop, tunnel.Config{Client: true}) })
	lost := make(chan error, 1)
	var pumps []*pump
	d := dial(loop, t.Context(), n.config(key), func(l *Link) {
		l.Serve(me, tunnel.RoleInteractive, func(_ *Link, err error) { lost <- err })
		for range 12 {
			st, _ := me.Open([]byte("header"))
			pumps = append(pumps, newPump(st, 1<<20))
		}
	})
	if d.err != nil {
		t.Fatal(d.err)
	}
	lanes := func() (n int) {
		on(loop, func() { n = d.link.quic.lanes })
		return n
	}
	most := 0
	for _, p := range pumps {
		for over := false; !over; {
			select {
			case err := <-p.done:
				if err != nil {
					t.Fatal(err)
				}
				over = true
			case err := <-lost:
				t.Fatal("lost:", err)
			case <-time.After(5 * time.Millisecond):
				most = max(most, lanes())
			}
		}
	}
	if most < 2 {
		t.Errorf("%d lanes for %d streams", most, len(pumps))
	}
	for range 12000 {
		if lanes() == 0 {
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	if n := lanes(); n != 0 {
		t.Errorf("%d lanes are left", n)
	}
}

// flow is a stream whose datagrams a test sees.
type flow struct {
	st  *tunnel.Stream
	got chan []byte
}

func (f *flow) OnData(b []byte) int { return len(b) }
func (f *flow) OnEOF()              {}
func (f *flow) OnDrain()            {}
func (f *flow) OnClose(error)       {}
func (f *flow) OnDatagram(b []byte) {
	select {
	case f.got <- bytes.Clone(b):
	default:
	}
}

// Datagrams of any size come whole, those that fit as datagrams of QUIC.
func TestQUICDatagrams(t *testing.T) {
	n := &network{transport: QUIC}
	_, core, key := start(t, n, true)
	loop := core.Loop(0)
	var me *Session
	on(loop, func() { me = NewSession(loop, tunnel.Config{Client: true}) })
	f := &flow{got: make(chan []byte, 1000)}
	d := dial(loop, t.Context(), n.config(key), func(l *Link) {
		l.Serve(me, tunnel.RoleDatagram, func(*Link, error) {})
		f.st, _ = me.Open([]byte("header"))
		f.st.SetHandler(f)
	})
	if d.err != nil {
		t.Fatal(d.err)
	}
	for _, size := range []int{0, 1, 512, 1200, 1400, 1472, 9000, tunnel.MaxDatagram} {
		want := bytes.Repeat([]byte{byte(size)}, size)
		for try := 0; ; try++ { // it may be lost
			on(loop, func() { f.st.SendDatagram(want) })
			var got []byte
			select {
			case got = <-f.got:
			case <-time.After(time.Second):
				if try < 10 {
					continue
				}
				t.Fatalf("a datagram of %d bytes does not come", size)
			}
			if !bytes.Equal(got, want) {
				t.Errorf("a datagram of %d bytes comes as one of %d", size, len(got))
			}
			break
		}
	}
	on(loop, func() {
		if !d.link.SendDatagram(2, make([]byte, 1000)) || d.link.SendDatagram(2, make([]byte, 1500)) {
			t.Error("1000 bytes should fit into a packet, and 1500 not")
		}
		// Of many at once, the rest goes as frames.
		q := d.link.quic
		q.burst = 0
		for i := range 2 * maxBurst {
			if d.link.SendDatagram(4, make([]byte, 100)) != (i < maxBurst) {
				t.Errorf("datagram %d of a burst: %v", i, i >= maxBurst)
			}
		}
		// When QUIC does not keep up, the rest goes as frames too.
		taken := 0
		for range 50_000 {
			q.burst = 0
			if d.link.SendDatagram(4, make([]byte, 100)) {
				taken++
			}
		}
		q.mu.Lock()
		if q.waiting > maxOutgoing || taken == 0 || taken == 50_000 {
			t.Errorf("%d bytes wait, %d datagrams were taken", q.waiting, taken)
		}
		q.mu.Unlock()
	})
}

// A loop that is busy does not have the datagrams pile up that come meanwhile.
func TestQUICDatagramFlood(t *testing.T) {
	n := &network{transport: QUIC}
	s, _, key := start(t, n, false)
	c := newQUICClient(t, n.addr)
	if answer := c.hello(key, nil); !strings.Contains(answer, `"session"`) {
		t.Fatal(answer)
	}
	l := <-s.serving
	free := make(chan bool)
	l.loop().Post(func() { <-free })
	for range 3 * maxArrived {
		if err := c.SendDatagram(make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		time.Sleep(20 * time.Microsecond) // QUIC keeps 128
	}
	l.quic.mu.Lock()
	n1 := len(l.quic.arrived)
	l.quic.mu.Unlock()
	close(free)
	if n1 > maxArrived || n1 == 0 {
		t.Errorf("%d datagrams wait", n1)
	}
	on(l.loop(), func() {})
	on(l.loop(), func() {
		l.quic.mu.Lock()
		defer l.quic.mu.Unlock()
		if len(l.quic.arrived) > 0 && !l.quic.posted {
			t.Error("datagrams are left")
		}
	})
	c.CloseWithError(StatusAway, "")
	<-s.lost
}

// The end of a core is the end of its links, which tell it.
func TestQUICCoreClose(t *testing.T) {
	n := &network{transport: QUIC}
	s, core, key := start(t, n, true)
	loop := core.Loop(0)
	d := dial(loop, t.Context(), n.config(key), func(l *Link) {
		l.Serve(NewSession(loop, tunnel.Config{Client: true}), tunnel.RoleInteractive, func(*Link, error) {})
	})
	if d.err != nil {
		t.Fatal(d.err)
	}
	core.Close()
	var closed *CloseError
	if err := <-s.lost; !errors.As(err, &closed) || closed.Status != StatusAway {
		t.Errorf("lost: %v", err)
	}
}

func FuzzMessage(f *testing.F) {
	f.Add([]byte("\x00\x02{}frames"))
	f.Add([]byte("\x10\x01"))
	f.Fuzz(func(t *testing.T, b []byte) {
		r := bytes.NewReader(b)
		m, err := readMessage(r)
		if err != nil {
			return
		}
		if len(m) > relay.MaxMessage || !bytes.Equal(appendMessage(nil, m), b[:len(b)-r.Len()]) {
			t.Errorf("%q is %q, and %d bytes are left", b, m, r.Len())
		}
	})
}

// A socket with a small buffer is reported, with what to do.
func TestBufferHint(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("nothing is known to be done")
	}
	pc, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	pc.SetReadBuffer(64 << 10)
	if hint := BufferHint(pc); !strings.Contains(hint, "128 KiB") && !strings.Contains(hint, "64 KiB") || !strings.Contains(hint, "sysctl") {
		t.Errorf("hint: %q", hint)
	}
}
