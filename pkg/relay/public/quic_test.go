package public

import (
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"math"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/quic-go/quic-go"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http2"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// listener returns the address of a listener.
func (r *testRelay) listener(name string) net.Addr {
	for _, l := range r.Listeners() {
		if l.Name == name {
			return l.Addr
		}
	}
	r.t.Fatalf("no listener %s", name)
	return nil
}

// dialledLink is what became of a dial.
type dialledLink struct {
	*link.Link
	welcome relay.Welcome
	err     error
}

// dialQUIC makes a link to a relay on 127.0.0.1.
func dialQUIC(loop *evloop.Loop, cfg link.DialConfig) dialledLink {
	roots := x509.NewCertPool()
	cert, _ := x509.ParseCertificate(testTLS().Certificates[0].Certificate[0])
	roots.AddCert(cert)
	cfg.Transport, cfg.RootCAs = link.QUIC, roots
	c := make(chan dialledLink, 1)
	loop.Post(func() {
		link.Dial(context.Background(), loop, cfg, func(l *link.Link, w relay.Welcome, err error) { c <- dialledLink{l, w, err} })
	})
	return <-c
}

// A private relay comes in over QUIC, on the port of HTTPS, is refused as over a
// WebSocket, and hears at once that the relay was killed and is there again.
func TestQUIC(t *testing.T) {
	pub, key, _ := ed25519.GenerateKey(nil)
	_, otherKey, _ := ed25519.GenerateKey(nil)
	sites := []Site{{Name: "office", Keys: []string{auth.FormatPublicKey(pub)}, Publish: patterns("https://*.test")}}
	secret := make([]byte, 32)
	secret[0] = 1
	var log logLines
	r := newTestRelay(t, false, func(r *Relay) {
		r.QUIC, r.QUICSecret = "127.0.0.1:0", secret
		log.use(r)
	})
	r.Reload(sites)
	addr := r.listener("quic")
	if _, port, _ := net.SplitHostPort(r.https); addr.String() != "127.0.0.1:"+port {
		t.Errorf("quic on %v, https on %v", addr, r.https)
	}

	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	loop := core.Loop(0)
	cfg := link.DialConfig{Address: addr.String(), Site: "office", Key: otherKey}
	d := dialQUIC(loop, cfg)
	if refusal, ok := errors.AsType[*relay.Refusal](d.err); !ok || refusal.Code != relay.RefuseBadKey {
		t.Fatalf("another key: %v", d.err)
	}
	cfg.Key = key
	if d = dialQUIC(loop, cfg); d.err != nil {
		t.Fatal(d.err)
	}
	waitFor(t, func() bool {
		st := r.Status(t.Context())
		return len(st.Sessions) == 1 && st.Sessions[0].Site == "office"
	})
	lost := make(chan error, 1)
	serve := func() {
		d.Serve(link.NewSession(loop, tunnel.Config{Client: true}), tunnel.RoleInteractive, func(_ *link.Link, err error) { lost <- err })
	}
	onLoop(loop, serve)

	// It is killed: it says nothing any more. Another one has its secret.
	r.mu.Lock()
	for _, l := range r.listeners {
		if q, ok := l.ln.(*quicListener); ok {
			q.transport.Conn.Close()
		}
	}
	r.mu.Unlock()
	waitFor(t, func() bool { return log.count("nobody comes in over QUIC any more") == 1 })
	again := newTestRelay(t, false, func(r *Relay) { r.QUIC, r.QUICSecret = addr.String(), secret })
	again.Reload(sites)
	onLoop(loop, func() { d.SendDatagram(1, []byte("is anybody there?")) })
	if err := <-lost; err == nil || errors.Is(err, tunnel.ErrLinkTimeout) {
		t.Errorf("lost without having been told: %v", err)
	}
	cfg.Session, cfg.Resume = d.welcome.Session, d.welcome.Resume
	if d = dialQUIC(loop, cfg); d.err != nil || d.welcome.Resumed {
		t.Fatalf("%+v", d)
	}

	// A drain ends the links in good order.
	drained := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	onLoop(loop, serve)
	go func() { drained <- again.Drain(ctx) }()
	if err := <-lost; err != nil { // nil: this side has closed it first
		if e, ok := errors.AsType[*link.CloseError](err); !ok || e.Status != link.StatusOver {
			t.Errorf("lost: %v", err)
		}
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
}

// Whoever does not say who they are finds only so many of them beside them.
func TestQUICStrangers(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.QUIC = "127.0.0.1:0" })
	pc, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: pc}
	defer func() { tr.Close(); pc.Close() }()
	dial := func() (*quic.Conn, error) {
		return tr.Dial(t.Context(), r.listener("quic"), &tls.Config{InsecureSkipVerify: true, NextProtos: []string{link.ALPN}}, nil)
	}
	var conns []*quic.Conn
	for i := range maxStrangersFrom {
		c, err := dial()
		if err != nil {
			t.Fatalf("connection %d: %v", i, err)
		}
		conns = append(conns, c)
	}
	if _, err := dial(); err == nil {
		t.Error("one more than allowed")
	}
	conns[0].CloseWithError(0, "")
	waitFor(t, func() bool { _, err := dial(); return err == nil })
	for _, c := range conns {
		c.CloseWithError(0, "")
	}
}

// The windows of QUIC grow when it is known who comes: those of visitors at the expense of others, up to a limit, and
// those of links freely. With the connection ends what it has taken.
func TestQUICWindows(t *testing.T) {
	windows := http2.NewBudget(maxWindows)
	q := &quicListener{relay: &Relay{windows: windows}, from: make(map[netip.Addr]int)}
	// grown is by how much the window of a connection grows that doubles as long as it may.
	grown := func(window, free int64) (n int64, end func()) {
		ctx, cancel := context.WithCancel(t.Context())
		ctx, err := q.enter(ctx, &quic.ClientInfo{RemoteAddr: &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)}})
		if err != nil {
			t.Fatal(err)
		}
		s := ctx.Value(strangerKey{}).(*stranger)
		if s.grow(windows, 1) {
			t.Error("a stranger's window grows")
		}
		q.known(ctx, window, free)
		for size := int64(384 << 10); n < 64<<20 && s.grow(windows, size); size *= 2 {
			n += size
		}
		return n, cancel
	}
	var ends []func()
	for i := range 40 {
		n, end := grown(maxWindow3, freeWindow3)
		ends = append(ends, end)
		if i == 0 && (n <= 4<<20 || n > maxWindow3 || windows.Used() != n-freeWindow3) {
			t.Errorf("the window of the first visitor grows by %d, of that %d are taken", n, windows.Used())
		}
		if n < freeWindow3/4 || windows.Used() > maxWindows {
			t.Errorf("the window of a visitor grows by %d; all have taken %d", n, windows.Used())
		}
	}
	before := windows.Used()
	n, end := grown(math.MaxInt64/2, math.MaxInt64/2)
	if n < 16<<20 || windows.Used() != before {
		t.Errorf("the window of a link grows by %d, of that %d are taken", n, windows.Used()-before)
	}
	for _, end := range append(ends, end) {
		end()
	}
	waitFor(t, func() bool { return q.connected() == 0 && windows.Used() == 0 })
}
