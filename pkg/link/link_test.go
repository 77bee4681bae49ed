package link

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"hash"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/memnet"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// credentials are what the two ends of TLS need.
type credentials struct {
	server *tls.Config
	roots  *x509.CertPool
}

var certs = sync.OnceValue(makeCredentials)

// makeCredentials makes them for the current time, which is another one in a synctest
// bubble.
func makeCredentials() credentials {
	dir := must(os.MkdirTemp("", "link"))
	defer os.RemoveAll(dir)
	c := must(auth.DevCA(dir, "relay.example.com", "localhost", "127.0.0.1"))
	pair := must(tls.LoadX509KeyPair(c.Certificate, c.Key))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(must(os.ReadFile(c.CA)))
	return credentials{&tls.Config{Certificates: []tls.Certificate{pair}, NextProtos: []string{"http/1.1"}}, roots}
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

func TestMain(m *testing.M) {
	certs() // not first in a bubble, whatever the order of the tests is
	goleak.VerifyTestMain(m)
}

// network is where the relays of a test are: in memory, with the portable loop, or on
// loopback, with the system's.
type network struct {
	mem       *memnet.Network // nil: loopback
	transport Transport
	addr      string
	ping      time.Duration // of the session there; 0: the default
}

// server is as much of a public relay as a link needs: one site, one session.
type server struct {
	core *evloop.Core
	pub  ed25519.PublicKey
	move bool // the session is on another loop than the link comes in on
	ping time.Duration

	refuse atomic.Pointer[relay.Refusal] // if not nil, nobody is let in
	failed chan error                    // from Accept

	mu      sync.Mutex
	loop    *evloop.Loop
	session *Session
	lost    chan error
	serving chan *Link // the links in service, as long as somebody asks
}

// echo returns what a stream brings.
type echo struct{ s *tunnel.Stream }

func (e *echo) OnData(b []byte) int {
	e.s.Write(b)
	if e.s.Pending() > e.s.HighMark() {
		e.s.Pause()
	}
	return len(b)
}
func (e *echo) OnEOF()        { e.s.CloseWrite() }
func (e *echo) OnDrain()      { e.s.Resume() }
func (e *echo) OnClose(error) {}

func (e *echo) OnDatagram(b []byte) { e.s.SendDatagram(b) }

// http finds the end of the request, as the relay's http layer does.
type http struct {
	c *evloop.Conn
	s *server
}

func (h *http) OnData(b []byte) int {
	i := bytes.Index(b, []byte("\r\n\r\n"))
	if i < 0 {
		return 0
	}
	_, key, _ := strings.Cut(string(b[:i]), "Sec-WebSocket-Key: ")
	key, _, _ = strings.Cut(key, "\r\n")
	Accept(h.c, key, h.s.hello)
	return i + 4
}
func (h *http) OnEOF()        { h.c.Close() }
func (h *http) OnDrain()      {}
func (h *http) OnClose(error) {}

func (s *server) hello(in *Incoming, err error) {
	if err != nil {
		s.failed <- err
		return
	}
	if !auth.VerifyLink(s.pub, in.Hello.Site, in.Exporter, in.Hello.Signature) {
		in.Refuse(relay.Refusal{Code: relay.RefuseBadKey, Message: "not your key"})
		return
	}
	if r := s.refuse.Load(); r != nil {
		in.Refuse(*r)
		return
	}
	s.mu.Lock()
	if s.loop == nil {
		for i := range s.core.NumLoops() {
			if l := s.core.Loop(i); (l == in.link.loop()) != s.move {
				s.loop = l
			}
		}
	}
	loop := s.loop
	s.mu.Unlock()
	in.Move(loop, func(err error) {
		if err != nil {
			s.lost <- err
			return
		}
		w := relay.Welcome{Session: strings.Repeat("ab", 16), Resume: strings.Repeat("cd", 32), Resumed: in.Hello.Session != ""}
		l := in.Welcome(w)
		if s.session == nil {
			s.session = NewSession(loop, tunnel.Config{
				Accept: func(st *tunnel.Stream, header []byte) { st.SetHandler(&echo{st}) }, PingInterval: s.ping,
			})
		}
		l.Serve(s.session, tunnel.RoleInteractive, func(_ *Link, err error) { s.lost <- err })
		select {
		case s.serving <- l:
		default:
		}
	})
}

// start starts a server, and a core for the client.
func start(t testing.TB, n *network, move bool) (*server, *evloop.Core, ed25519.PrivateKey) {
	t.Helper()
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	cfg := evloop.Config{Loops: 2, Portable: n.mem != nil}
	s := &server{pub: pub, move: move, ping: n.ping, failed: make(chan error, 10), lost: make(chan error, 10), serving: make(chan *Link, 10)}
	if s.core, err = evloop.New(cfg); err != nil {
		t.Fatal(err)
	}
	accept := func(c *evloop.Conn) {
		c.StartTLS(certs().server, false, 10*time.Second, func(err error) {
			if err != nil {
				s.failed <- err
				return
			}
			c.SetHandler(&http{c, s})
		})
	}
	if n.transport == QUIC {
		n.addr = s.listenQUIC(t, "127.0.0.1:0").String()
	} else if n.mem != nil {
		ln, err := n.mem.Listen("relay.example.com:443")
		if err != nil {
			t.Fatal(err)
		}
		n.addr = "relay.example.com:443"
		s.core.Serve(ln, accept)
	} else {
		ln, err := s.core.Listen("tcp", "127.0.0.1:0", accept)
		if err != nil {
			t.Fatal(err)
		}
		n.addr = ln.Addr().String()
	}
	core, err := evloop.New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { core.Close(); s.core.Close() })
	return s, core, key
}

func (n *network) config(key ed25519.PrivateKey) DialConfig {
	cfg := DialConfig{Transport: n.transport, Address: n.addr, RootCAs: certs().roots, Site: "office", Key: key, Software: "culvert test"}
	if n.mem != nil {
		cfg.Dial = n.mem.Dial
	}
	return cfg
}

// on runs f on a loop and waits for it.
func on(l *evloop.Loop, f func()) {
	done := make(chan struct{})
	l.Post(func() { f(); close(done) })
	<-done
}

type dialled struct {
	link    *Link
	welcome relay.Welcome
	err     error
}

// dial makes a link on a loop; use is called there when it succeeds.
func dial(loop *evloop.Loop, ctx context.Context, cfg DialConfig, use func(*Link)) dialled {
	done := make(chan dialled, 2)
	on(loop, func() {
		Dial(ctx, loop, cfg, func(l *Link, w relay.Welcome, err error) {
			if err == nil && use != nil {
				use(l)
			}
			done <- dialled{l, w, err}
		})
	})
	return <-done
}

// pump writes random bytes to a stream and checks that they come back.
type pump struct {
	s         *tunnel.Stream
	left      int // bytes to write
	sent, got hash.Hash
	done      chan error
}

func newPump(s *tunnel.Stream, n int) *pump {
	p := &pump{s: s, left: n, sent: sha256.New(), got: sha256.New(), done: make(chan error, 1)}
	s.SetHandler(p)
	p.OnDrain()
	return p
}

func (p *pump) OnDrain() {
	var b [8 << 10]byte
	for p.left > 0 && p.s.Pending() <= p.s.HighMark() {
		n := min(p.left, len(b))
		rand.Read(b[:n])
		p.sent.Write(b[:n])
		p.s.Write(b[:n])
		if p.left -= n; p.left == 0 {
			p.s.CloseWrite()
		}
	}
}

func (p *pump) OnData(b []byte) int {
	p.got.Write(b)
	return len(b)
}
func (p *pump) OnEOF() {}
func (p *pump) OnClose(err error) {
	if err == nil && !bytes.Equal(p.sent.Sum(nil), p.got.Sum(nil)) {
		err = errors.New("what came back is not what was sent")
	}
	p.done <- err
}

func networks(t *testing.T, f func(t *testing.T, n *network)) {
	t.Run("loopback", func(t *testing.T) { f(t, &network{}) })
	t.Run("memory", func(t *testing.T) { f(t, &network{mem: new(memnet.Network)}) })
	t.Run("quic", func(t *testing.T) { f(t, &network{transport: QUIC}) })
}

// A session over a link, on the loop that the link comes in on and on another.
func TestLink(t *testing.T) {
	networks(t, func(t *testing.T, n *network) {
		for _, move := range []bool{false, true} {
			s, core, key := start(t, n, move)
			loop := core.Loop(0)
			var me *Session
			on(loop, func() { me = NewSession(loop, tunnel.Config{Client: true}) })
			lost := make(chan error, 2)
			var p *pump
			d := dial(loop, t.Context(), n.config(key), func(l *Link) {
				l.Serve(me, tunnel.RoleInteractive, func(_ *Link, err error) { lost <- err })
				st, err := me.Open([]byte("header"))
				if err != nil {
					t.Error(err)
					return
				}
				p = newPump(st, 8<<20)
			})
			if d.err != nil || d.welcome.Resumed {
				t.Fatalf("%+v", d)
			}
			if err := <-p.done; err != nil {
				t.Fatal(err)
			}
			// A close is orderly, and both ends hear of it: of that of the link, and of
			// that of the session.
			want := StatusAway
			on(loop, func() {
				if move {
					me.Close(nil)
					want = StatusOver
				}
				d.link.Close(nil)
				d.link.Close(nil)
			})
			if err := <-lost; err != nil {
				t.Errorf("lost here: %v", err)
			}
			var closed *CloseError
			if err := <-s.lost; !errors.As(err, &closed) || closed.Status != want {
				t.Errorf("lost there: %v", err)
			}
			if n.mem != nil {
				n.mem = new(memnet.Network)
			}
		}
	})
}

// A link that is cut in mid-transfer is replaced, and no byte is lost.
func TestCut(t *testing.T) {
	n := &network{mem: new(memnet.Network)}
	s, core, key := start(t, n, true)
	loop := core.Loop(0)
	var me *Session
	on(loop, func() { me = NewSession(loop, tunnel.Config{Client: true}) })
	lost := make(chan error, 2)
	cfg := n.config(key)
	var p *pump
	for i := range 4 {
		d := dial(loop, t.Context(), cfg, func(l *Link) {
			l.Serve(me, tunnel.RoleInteractive, func(_ *Link, err error) { lost <- err })
			if p == nil {
				st, _ := me.Open([]byte("header"))
				p = newPump(st, 16<<20)
			}
		})
		if d.err != nil || d.welcome.Resumed != (i > 0) {
			t.Fatalf("link %d: %+v", i, d)
		}
		cfg.Session, cfg.Resume = d.welcome.Session, d.welcome.Resume
		if i < 3 {
			n.mem.Cut()
			if err := <-lost; err == nil {
				t.Error("a cut without an error")
			}
			if err := <-s.lost; err == nil {
				t.Error("a cut without an error")
			}
		}
	}
	if err := <-p.done; err != nil {
		t.Fatal(err)
	}
}

func TestRefusals(t *testing.T) {
	n := &network{}
	s, core, key := start(t, n, true)
	_, other, _ := ed25519.GenerateKey(nil)
	for name, tt := range map[string]struct {
		key  ed25519.PrivateKey
		r    *relay.Refusal
		want string
	}{
		"bad key": {other, nil, "refused: not your key (bad-key)"},
		"busy":    {key, &relay.Refusal{Code: relay.RefuseBusy, Message: "later", Retry: true}, "refused: later (busy)"},
	} {
		s.refuse.Store(tt.r)
		d := dial(core.Loop(0), t.Context(), n.config(tt.key), nil)
		var de *DialError
		var r *relay.Refusal
		if !errors.As(d.err, &de) || de.Phase != PhaseHello || !errors.As(d.err, &r) || d.err.Error() != tt.want {
			t.Errorf("%s: %v", name, d.err)
		} else if tt.r != nil && *r != *tt.r {
			t.Errorf("%s: %+v", name, r)
		}
	}
}

// serve answers every connection of a listener with f, until the test ends.
func serve(t *testing.T, f func(net.Conn)) string {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			wg.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(20 * time.Second))
				f(c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String()
}

// Whatever is at the other end, a person reads what is wrong.
func TestDialErrors(t *testing.T) {
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	_, key, _ := ed25519.GenerateKey(nil)

	secure := func(answer string) string {
		return serve(t, func(c net.Conn) {
			tc := tls.Server(c, certs().server)
			b := make([]byte, 4096)
			tc.Read(b)
			io.WriteString(tc, answer)
			tc.CloseWrite()
			io.Copy(io.Discard, tc)
		})
	}
	old := serve(t, func(c net.Conn) {
		cfg := certs().server.Clone()
		cfg.MaxVersion = tls.VersionTLS12
		tls.Server(c, cfg).Handshake()
	})
	plain := serve(t, func(c net.Conn) {
		io.WriteString(c, "HTTP/1.1 400 Bad Request\r\n\r\n")
		io.Copy(io.Discard, c)
	})
	web := secure("HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n")
	for _, tt := range []struct {
		name  string
		addr  string
		roots *x509.CertPool
		phase Phase
		want  string
	}{
		{"no port", "relay.example.com", certs().roots, PhaseDial, "missing port"},
		{"nobody listens", "127.0.0.1:1", certs().roots, PhaseDial, syscall.ECONNREFUSED.Error()},
		{"unknown authority", web, x509.NewCertPool(), PhaseTLS, `name its CA with ca = "ca.pem"`},
		{"another name", "elsewhere.example.com:443", certs().roots, PhaseTLS, "is not for elsewhere.example.com"},
		{"TLS 1.2", old, certs().roots, PhaseTLS, "protocol version"},
		{"no TLS", plain, certs().roots, PhaseTLS, "does not speak TLS"},
		{"a web server", web, certs().roots, PhaseUpgrade, "answered 404 Not Found"},
		{"nonsense", secure("SSH-2.0-x\r\n"), certs().roots, PhaseUpgrade, "is not HTTP/1.1"},
		{"silence, then the end", secure(""), certs().roots, PhaseUpgrade, "unexpected EOF"},
	} {
		cfg := DialConfig{Address: tt.addr, RootCAs: tt.roots, Site: "office", Key: key}
		if tt.name == "another name" {
			cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, web)
			}
		}
		d := dial(core.Loop(0), t.Context(), cfg, nil)
		var de *DialError
		if !errors.As(d.err, &de) || de.Phase != tt.phase || !strings.Contains(d.err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.name, d.err, tt.want)
		}
	}
}

// Time ends every phase of a dial, and so does its context.
func TestDialTimeout(t *testing.T) {
	_, key, _ := ed25519.GenerateKey(nil)
	for name, tt := range map[string]struct {
		phase  Phase
		answer func(net.Conn, *tls.Config)
		silent bool
	}{
		"dial":    {PhaseDial, nil, true},
		"tls":     {PhaseTLS, func(net.Conn, *tls.Config) {}, false},
		"upgrade": {PhaseUpgrade, func(c net.Conn, cfg *tls.Config) { tls.Server(c, cfg).Handshake() }, false},
		"hello": {PhaseHello, func(c net.Conn, cfg *tls.Config) {
			tc := tls.Server(c, cfg)
			b := make([]byte, 4096)
			n, _ := tc.Read(b)
			_, key, _ := strings.Cut(string(b[:n]), "Sec-WebSocket-Key: ")
			tc.Write(websocket.AppendResponse(nil, key[:24], ""))
		}, false},
	} {
		for _, cancelled := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s/cancelled=%v", name, cancelled), func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					creds := makeCredentials()
					var mem memnet.Network
					ln, err := mem.Listen("relay.example.com:443")
					if err != nil {
						t.Fatal(err)
					}
					defer ln.Close()
					mem.Silence(tt.silent)
					if tt.answer != nil {
						go func() { // ends with the dialer's connection
							c, err := ln.Accept()
							if err != nil {
								return
							}
							defer c.Close()
							tt.answer(c, creds.server)
							io.Copy(io.Discard, c)
						}()
					}
					core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
					if err != nil {
						t.Fatal(err)
					}
					defer core.Close()
					ctx, cancel := context.WithCancel(t.Context())
					defer cancel()
					if cancelled {
						time.AfterFunc(time.Second, cancel)
					}
					began := time.Now()
					n := &network{mem: &mem, addr: "relay.example.com:443"}
					cfg := n.config(key)
					cfg.RootCAs = creds.roots
					d := dial(core.Loop(0), ctx, cfg, nil)
					took := time.Since(began)
					want, after := error(ErrTimeout), handshakeTimeout
					if cancelled {
						want, after = context.Canceled, time.Second
					}
					var de *DialError
					if !errors.As(d.err, &de) || de.Phase != tt.phase || !errors.Is(d.err, want) {
						t.Errorf("%v", d.err)
					}
					if took < after || took > after+time.Second/2 {
						t.Errorf("after %v, want %v", took, after)
					}
				})
			})
		}
	}
}

// client is a peer made by hand, as blocking code.
type client struct {
	t    *testing.T
	c    *tls.Conn
	d    websocket.Decoder
	rest []byte
}

func newClient(t *testing.T, addr string) *client {
	t.Helper()
	return newClientTLS(t, addr, &tls.Config{ServerName: "localhost", RootCAs: certs().roots})
}

func newClientTLS(t *testing.T, addr string, cfg *tls.Config) *client {
	t.Helper()
	nc, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	nc.SetDeadline(time.Now().Add(20 * time.Second))
	c := &client{t: t, c: tls.Client(nc, cfg)}
	t.Cleanup(func() { nc.Close() })
	key := websocket.NewKey()
	c.c.Write(websocket.AppendRequest(nil, "localhost", relay.LinkPath, key))
	for {
		c.more()
		n, err := websocket.ReadResponse(c.rest, key)
		if err != nil {
			t.Fatal(err)
		}
		if n > 0 {
			c.rest = c.rest[n:]
			return c
		}
	}
}

func (c *client) more() error {
	b := make([]byte, 4096)
	n, err := c.c.Read(b)
	c.rest = append(c.rest, b[:n]...)
	return err
}

func (c *client) send(op websocket.Opcode, payload []byte) {
	c.c.Write(websocket.AppendFrame(nil, op, payload, &websocket.Key{1, 2, 3, 4}))
}

func (c *client) hello(key ed25519.PrivateKey) {
	state := c.c.ConnectionState()
	exporter, err := state.ExportKeyingMaterial(auth.ExporterLabel, nil, 32)
	if err != nil {
		c.t.Fatal(err)
	}
	c.send(websocket.Text, relay.Encode(relay.Hello{
		Version: relay.WireVersion, Site: "office", Key: auth.FormatPublicKey(key.Public().(ed25519.PublicKey)),
		Signature: auth.SignLink(key, "office", exporter),
	}))
}

// next reads a frame that comes whole.
func (c *client) next() (websocket.Opcode, string) {
	c.t.Helper()
	for {
		ev, n, err := c.d.Next(c.rest)
		if err != nil {
			c.t.Fatal(err)
		}
		c.rest = c.rest[n:]
		if ev.Op != websocket.None {
			return ev.Op, string(ev.Payload)
		}
		if err := c.more(); err != nil && len(c.rest) == 0 {
			c.t.Fatal(err)
		}
	}
}

// wantClose skips messages and expects a close frame, then the end.
func (c *client) wantClose(status int, reason string) {
	c.t.Helper()
	for {
		op, p := c.next()
		if op != websocket.Close {
			continue
		}
		got, why := websocket.ParseClose([]byte(p))
		if got != status || !strings.Contains(why, reason) {
			c.t.Errorf("closed with %d %q, want %d %q", got, why, status, reason)
		}
		if n, err := io.Copy(io.Discard, c.c); n != 0 || err != nil {
			c.t.Errorf("%d bytes after the close frame, %v", n, err)
		}
		return
	}
}

// What a peer may do wrong before it has proved itself.
func TestBadHello(t *testing.T) {
	n := &network{}
	s, _, key := start(t, n, true)
	for _, tt := range []struct {
		name   string
		send   func(c *client)
		status int
		reason string
		err    string
	}{
		{"binary first", func(c *client) { c.send(websocket.Binary, []byte("frames")) }, websocket.StatusPolicy, "before the link is open", "before the link is open"},
		{"long", func(c *client) { c.send(websocket.Text, make([]byte, relay.MaxMessage+1)) }, websocket.StatusTooBig, "longer than", "longer than"},
		{"not JSON", func(c *client) { c.send(websocket.Text, []byte("hi")) }, websocket.StatusPolicy, "malformed", "malformed"},
		{"newer", func(c *client) { c.send(websocket.Text, fmt.Appendf(nil, `{"version":%d}`, relay.WireVersion+1)) }, websocket.StatusPolicy, "version", "update the public relay"},
		{"unmasked", func(c *client) { c.c.Write([]byte("\x81\x02{}")) }, websocket.StatusProtocolError, "not masked", "not masked"},
		{"close", func(c *client) { c.send(websocket.Close, websocket.ClosePayload(1001, "bye")) }, 1001, "", "bye"},
	} {
		c := newClient(t, n.addr)
		tt.send(c)
		c.wantClose(tt.status, tt.reason)
		if err := <-s.failed; !strings.Contains(err.Error(), tt.err) {
			t.Errorf("%s: %v", tt.name, err)
		}
	}

	// The exporter of TLS 1.2 does not always depend on the whole handshake.
	old := newClientTLS(t, n.addr, &tls.Config{ServerName: "localhost", RootCAs: certs().roots, MaxVersion: tls.VersionTLS12})
	old.hello(key)
	if _, p := old.next(); !strings.Contains(p, "TLS 1.3") {
		t.Errorf("TLS 1.2: %s", p)
	}
	old.wantClose(websocket.StatusPolicy, "internal")

	// A proof that was made on another connection is worth nothing on this one.
	a, b := newClient(t, n.addr), newClient(t, n.addr)
	state := a.c.ConnectionState()
	exporter, _ := state.ExportKeyingMaterial(auth.ExporterLabel, nil, 32)
	b.send(websocket.Text, relay.Encode(relay.Hello{
		Version: relay.WireVersion, Site: "office", Key: auth.FormatPublicKey(s.pub), Signature: auth.SignLink(key, "office", exporter),
	}))
	if _, p := b.next(); !strings.Contains(p, "bad-key") {
		t.Errorf("a replayed proof: %s", p)
	}
	b.wantClose(websocket.StatusPolicy, "bad-key")
}

// What a peer may do on an open link.
func TestOpenLink(t *testing.T) {
	n := &network{}
	s, _, key := start(t, n, true)
	for _, tt := range []struct {
		name   string
		send   func(c *client)
		status int
		reason string
	}{
		{"text", func(c *client) { c.send(websocket.Text, []byte("hi")) }, websocket.StatusUnsupported, "text message"},
		{"bad frame", func(c *client) { c.send(websocket.Binary, []byte("\x06\x00\x00\x00\x00\x00\x00\x09long ping")) }, websocket.StatusProtocolError, ""},
		{"bad websocket", func(c *client) { c.c.Write([]byte("\xf2\x80\x00\x00\x00\x00")) }, websocket.StatusProtocolError, "reserved bits"},
		{"close", func(c *client) { c.send(websocket.Close, nil) }, websocket.StatusNormal, ""},
	} {
		c := newClient(t, n.addr)
		c.hello(key)
		if op, p := c.next(); op != websocket.Text || !strings.Contains(p, `"session"`) {
			t.Fatalf("%s: %v %s", tt.name, op, p)
		}
		c.send(websocket.Ping, []byte("are you there"))
		for {
			if op, p := c.next(); op == websocket.Pong {
				if p != "are you there" {
					t.Errorf("%s: pong %q", tt.name, p)
				}
				break
			}
		}
		tt.send(c)
		c.wantClose(tt.status, tt.reason)
		if err := <-s.lost; err == nil {
			t.Errorf("%s: lost without an error", tt.name)
		}
	}

	// An end of stream without a close frame is a loss, too.
	c := newClient(t, n.addr)
	c.hello(key)
	c.next()
	c.c.CloseWrite()
	if err := <-s.lost; !errors.Is(err, errEOF) {
		t.Errorf("end of stream: %v", err)
	}
}

// A peer that pings and reads nothing does not make the answers pile up, before its
// Hello neither.
func TestPingFlood(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		var mem memnet.Network
		a, b := mem.Pipe()
		defer a.Close()
		loop := core.Loop(0)
		var c *evloop.Conn
		on(loop, func() {
			if c, err = loop.Attach(b); err != nil {
				t.Error(err)
				return
			}
			Accept(c, websocket.NewKey(), func(*Incoming, error) {})
		})
		ping := websocket.AppendFrame(nil, websocket.Ping, make([]byte, websocket.MaxControl), &websocket.Key{})
		flood := bytes.Repeat(ping, 4<<20/len(ping))
		if _, err := a.Write(flood); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		on(loop, func() {
			if n := c.Pending(); n > c.HighMark()+len(ping) {
				t.Errorf("%d bytes of pongs are queued, high mark %d", n, c.HighMark())
			}
		})
	})
}

// A peer that upgrades and says nothing is sent away.
func TestNoHello(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		var mem memnet.Network
		a, b := mem.Pipe()
		defer a.Close()
		failed := make(chan error, 1)
		began := time.Now()
		on(core.Loop(0), func() {
			c, err := core.Loop(0).Attach(b)
			if err != nil {
				t.Error(err)
				return
			}
			Accept(c, websocket.NewKey(), func(_ *Incoming, err error) { failed <- err })
		})
		if err := <-failed; err == nil || time.Since(began) < handshakeTimeout || time.Since(began) > handshakeTimeout+time.Second {
			t.Errorf("%v after %v", err, time.Since(began))
		}
	})
}
