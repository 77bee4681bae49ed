package public

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// testRelay is a public relay on loopback, and in the same process what stands
// in for the private relays of its sites.
type testRelay struct {
	*Relay
	t           testing.TB
	https, http string // addresses
}

// newTestRelay starts a relay with listeners on loopback. change, if not nil,
// gets it before.
func newTestRelay(t testing.TB, portable bool, change func(*Relay)) *testRelay {
	t.Helper()
	core, err := evloop.New(evloop.Config{Loops: 2, Portable: portable})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { core.Close() })
	r := &Relay{
		Core: core, Domain: "relay.test", TLS: testTLS(), HTTPS: "127.0.0.1:0", HTTP: "127.0.0.1:0",
		Operator: operatorsOf,
	}
	if testing.Verbose() {
		r.Log = slog.New(slog.NewTextHandler(t.Output(), nil))
	}
	if change != nil {
		change(r)
	}
	r.Reload([]Site{{Name: "office", Keys: []string{"k", "other"}, Publish: patterns("https://*.test", "http://*.test", "rtsp://*.test", "tcp://127.0.0.1:*", "udp://127.0.0.1:*", "tftp:///*")},
		{Name: "home", Keys: []string{"k"}, Publish: patterns("https://*.test", "https://*.home.test", "tftp:///boot/*")}})
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	tr := &testRelay{Relay: r, t: t}
	for _, l := range r.Listeners() {
		switch l.Name {
		case "https":
			tr.https = l.Addr.String()
		case "http":
			tr.http = l.Addr.String()
		}
	}
	return tr
}

func patterns(list ...string) (all []relay.Pattern) {
	for _, s := range list {
		p, err := relay.ParsePattern(s)
		if err != nil {
			panic(err)
		}
		all = append(all, p)
	}
	return all
}

// farOff is after any time that a test may have: certificates made in one of fake time serve the others.
var farOff = time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC)

// testTLS has one certificate for every name of the tests.
var testTLS = sync.OnceValue(func() *tls.Config {
	key, _ := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: farOff,
		DNSNames: []string{"relay.test", "*.test"}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		panic(err)
	}
	return &tls.Config{
		Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key}},
		NextProtos:   []string{"http/1.1"},
	}
})

// testSite stands in for a private relay: it has the other end of a session and
// joins each stream to a target, or gives it to onStream.
type testSite struct {
	t        testing.TB
	session  *session
	peer     *link.Session
	targets  map[string]string                            // address by service
	onStream func(st *tunnel.Stream, h relay.Header) bool // if it returns true, the stream is its own
	link     *memLink                                     // the public side's
	hello    relay.Hello
	notices  []string
	ended    error // how its last link did, for the private relay
	closed   error // how a stream of named did
}

// memLink carries batches to the other side, in later turns of the same loop.
type memLink struct {
	loop   *evloop.Loop
	src    *link.Session // its own
	dst    *link.Session
	peer   *memLink
	dead   bool
	silent bool                     // swallows what is sent
	lost   func(tunnel.Link, error) // is told of the end
}

func (l *memLink) Send(b []byte) {
	m := bytes.Clone(b[tunnel.Headroom:])
	l.loop.Post(func() {
		if !l.dead && !l.silent {
			if err := l.dst.Receive(l.peer, m, l.loop.Now()); err != nil {
				panic(err)
			}
		}
	})
}

func (l *memLink) Room() int { return 64 << 10 }

func (l *memLink) Close(err error) {
	if l.dead {
		return
	}
	l.dead = true
	if !l.silent {
		l.peer.dead = true
	}
	told := error(&link.CloseError{Status: link.StatusAway})
	if l.src.Closed() {
		told = &link.CloseError{Status: link.StatusOver}
	}
	if err != nil {
		told = errors.New("connection reset")
	}
	silent := l.silent
	l.loop.Post(func() {
		l.end(err)
		if !silent {
			l.peer.end(told)
		}
	})
}

// end tells session and owner.
func (l *memLink) end(err error) {
	l.src.Lost(l, err, l.loop.Now())
	l.lost(l, err)
}

// onLoop runs f on a loop and waits for it.
func onLoop(l *evloop.Loop, f func()) {
	done := make(chan struct{})
	if l.Post(func() { f(); close(done) }) {
		<-done
	}
}

// connect starts a session for a site and announces services, name → publish.
func (r *testRelay) connect(site string, targets map[string]string, publish ...string) *testSite {
	r.t.Helper()
	return r.connectAs(relay.Hello{Site: site, Key: "k"}, targets, publish...)
}

// connectAs is connect with a Hello.
func (r *testRelay) connectAs(h relay.Hello, targets map[string]string, publish ...string) *testSite {
	r.t.Helper()
	a, refusal := r.admit(h, r.loops[0])
	if refusal != nil {
		r.t.Fatal(refusal)
	}
	s := a.session
	ts := &testSite{t: r.t, session: s, hello: h, targets: targets}
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(s.loop.Loop, func() {
		for o, why := range a.instead {
			o.close(why)
		}
		ts.peer = link.NewSession(s.loop.Loop, tunnel.Config{Client: true, Accept: ts.accept})
		ts.attach()
		ts.announce(announcements(publish...), replies)
	})
	for _, reply := range <-replies {
		if reply.Error != "" {
			r.t.Errorf("service %s: %s", reply.Name, reply.Error)
		}
	}
	return ts
}

// port is where the site's port is, or one of several.
func (ts *testSite) port() (addr string) {
	onLoop(ts.session.loop.Loop, func() {
		for _, p := range ts.session.group.ports {
			addr = p.Addr().String()
		}
	})
	return addr
}

// announcements makes a list of name, publish, and so on. The target of a name that
// begins with h2c speaks HTTP/2, and inspected may be.
func announcements(publish ...string) (list []relay.Announcement) {
	for i := 0; i < len(publish); i += 2 {
		scheme := "http"
		switch s, _, _ := strings.Cut(publish[i+1], ":"); s {
		case "tcp", "udp", "rtsp":
			scheme = s
		case "rtsps":
			scheme = "rtsp"
		case "tftp":
			scheme = "file"
		}
		if strings.HasPrefix(publish[i], "h2c") {
			scheme = "h2c"
		}
		list = append(list, relay.Announcement{Name: publish[i], Publish: publish[i+1], TargetScheme: scheme, Inspect: publish[i] == "inspected"})
	}
	return list
}

// again is the Hello of a further link.
func (ts *testSite) again(others int) relay.Hello {
	h := ts.hello
	h.Session, h.Resume, h.Links = ts.session.id, ts.session.secret, others
	return h
}

// resume attaches a new link to the session, as a private relay does that has others.
func (ts *testSite) resume(others int) *relay.Refusal {
	h := ts.again(others)
	a, refusal := ts.session.relay.admit(h, ts.session.relay.loops[0])
	if refusal == nil {
		if a.session != ts.session || !a.resumed {
			ts.t.Error("the session does not go on")
		}
		onLoop(ts.session.loop.Loop, func() { ts.attachTo(h) })
	}
	return refusal
}

// handle sets who gets the streams.
func (ts *testSite) handle(f func(st *tunnel.Stream, h relay.Header) bool) {
	onLoop(ts.session.loop.Loop, func() { ts.onStream = f })
}

// attach joins both sessions by a new link. On the loop.
func (ts *testSite) attach() { ts.attachTo(ts.hello) }

func (ts *testSite) attachTo(h relay.Hello) {
	loop := ts.session.loop
	c := ts.session.take(h, netip.AddrPort{})
	a := &memLink{loop: loop.Loop, src: ts.session.tun, dst: ts.peer, lost: ts.session.linkLost}
	b := &memLink{loop: loop.Loop, src: ts.peer, dst: ts.session.tun, peer: a, lost: func(_ tunnel.Link, err error) { ts.ended = err }}
	a.peer = b
	c.Link = a
	ts.link = a
	role := tunnel.RoleInteractive
	if h.Role == relay.RoleBulk {
		role = tunnel.RoleBulk
	}
	ts.session.tun.Attach(a, role, loop.Now())
	ts.peer.Attach(b, role, loop.Now())
}

// cut loses the link. On the loop.
func (ts *testSite) cut() {
	a := ts.link
	a.dead, a.peer.dead = true, true
	a.end(errors.New("cut"))
	a.peer.end(errors.New("cut"))
}

// announce sends a list of services. On the loop.
func (ts *testSite) announce(list []relay.Announcement, replies chan<- []relay.AnnounceReply) {
	header, _ := relay.Header{Kind: relay.KindAnnounce}.Append(nil)
	st, err := ts.peer.Open(header)
	if err != nil {
		panic(err)
	}
	var got []byte
	st.SetHandler(&funcHandler{
		data: func(b []byte) int { got = append(got, b...); return len(b) },
		eof: func() {
			list, err := relay.DecodeAnnounceReply(got)
			if err != nil {
				panic(err)
			}
			replies <- list
		},
	})
	st.Write(relay.Encode(list))
	st.CloseWrite()
}

func (ts *testSite) accept(st *tunnel.Stream, header []byte) {
	h, err := relay.DecodeHeader(header)
	if err != nil {
		panic(err)
	}
	if h.Kind == relay.KindNotice {
		ts.notices = append(ts.notices, h.Service)
		st.SetHandler(&funcHandler{eof: func() { st.CloseWrite() }})
		return
	}
	if ts.onStream != nil && ts.onStream(st, h) {
		return
	}
	addr, ok := ts.targets[h.Service]
	if !ok {
		st.Reset(tunnel.CodeNotFound)
		return
	}
	gone := false
	st.Pause()
	eof := false
	st.SetHandler(&funcHandler{data: func([]byte) int { return 0 }, eof: func() { eof = true }, close: func(error) { gone = true }})
	ts.session.loop.Dial(context.Background(), "tcp", addr, func(c *evloop.Conn, err error) {
		switch {
		case gone && err == nil:
			c.Abort(nil)
		case gone:
		case err != nil:
			st.Reset(tunnel.CodeRefused)
		default:
			forward.Splice(c, st, nil)
			if eof {
				c.CloseWrite()
			}
		}
	})
}

// funcHandler is a handler made of funcs.
type funcHandler struct {
	data  func([]byte) int
	eof   func()
	drain func()
	close func(error)
}

func (h *funcHandler) OnData(b []byte) int {
	if h.data == nil {
		return len(b)
	}
	return h.data(b)
}
func (h *funcHandler) OnEOF() {
	if h.eof != nil {
		h.eof()
	}
}
func (h *funcHandler) OnDrain() {
	if h.drain != nil {
		h.drain()
	}
}
func (h *funcHandler) OnClose(err error) {
	if h.close != nil {
		h.close(err)
	}
}

// backends runs a test over both ways to drive sockets.
func backends(t *testing.T, f func(t *testing.T, portable bool)) {
	t.Run("native", func(t *testing.T) { f(t, false) })
	t.Run("portable", func(t *testing.T) { f(t, true) })
}

// target serves a raw TCP server, one goroutine per connection, until the test
// ends.
func target(t *testing.T, serve func(c net.Conn, br *bufio.Reader)) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	var mu sync.Mutex
	conns := map[net.Conn]bool{}
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			conns[c] = true
			mu.Unlock()
			wg.Go(func() {
				serve(c, bufio.NewReader(c))
				c.Close()
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range conns {
			c.Close()
		}
		mu.Unlock()
		wg.Wait()
	})
	return ln.Addr().String()
}

// httpTarget serves a handler of net/http.
func httpTarget(t *testing.T, h http.Handler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h}
	done := make(chan struct{})
	go func() { srv.Serve(ln); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return ln.Addr().String()
}

// client is an HTTP client that finds every host at the relay.
func (r *testRelay) client() *http.Client {
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			to := r.http
			if strings.HasSuffix(addr, ":443") {
				to = r.https
			}
			return new(net.Dialer).DialContext(ctx, network, to)
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       time.Minute,
	}
}

// visitor is a raw visitor.
type testVisitor struct {
	t testing.TB
	net.Conn
	*bufio.Reader
}

// dial connects a raw visitor, in the clear or with TLS.
func (r *testRelay) dial(secure bool) *testVisitor {
	r.t.Helper()
	addr := r.http
	if secure {
		addr = r.https
	}
	c, err := net.Dial("tcp", addr)
	if err != nil {
		r.t.Fatal(err)
	}
	if secure {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "app.test"})
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	r.t.Cleanup(func() { c.Close() })
	return &testVisitor{r.t, c, bufio.NewReader(c)}
}

func (v *testVisitor) Read(b []byte) (int, error) { return v.Reader.Read(b) }

func (v *testVisitor) send(s string) {
	v.t.Helper()
	if _, err := io.WriteString(v.Conn, s); err != nil {
		v.t.Fatal(err)
	}
}

// response reads a response to a request of that method, with its body.
func (v *testVisitor) response(method string) (*http.Response, string) {
	v.t.Helper()
	res, err := http.ReadResponse(v.Reader, &http.Request{Method: method})
	if err != nil {
		v.t.Fatal(err)
	}
	body, err := io.ReadAll(res.Body)
	if err != nil {
		v.t.Fatal(err)
	}
	return res, string(body)
}

// expect reads exactly s.
func (v *testVisitor) expect(s string) {
	v.t.Helper()
	b := make([]byte, len(s))
	n, err := io.ReadFull(v.Reader, b)
	if string(b[:n]) != s {
		v.t.Fatalf("got %q (%v), want %q", b[:n], err, s)
	}
}

// expectEOF reads the end of stream.
func (v *testVisitor) expectEOF() {
	v.t.Helper()
	if b, err := io.ReadAll(v.Reader); err != nil || len(b) > 0 {
		v.t.Fatalf("got %q, %v, want the end of stream", b, err)
	}
}
