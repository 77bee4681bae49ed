package private

import (
	"bufio"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// wire is one direction of a link in memory: what one session sends, the other receives in the next turn.
type wire struct {
	loop *evloop.Loop
	to   *link.Session
	back *wire // the other direction, which is the link that to knows
}

func (w *wire) Send(b []byte) {
	b = slices.Clone(b[tunnel.Headroom:])
	w.loop.Post(func() { w.to.Receive(w.back, b, w.loop.Now()) })
}
func (w *wire) Room() int   { return 64 << 10 }
func (w *wire) Close(error) {}

// site is a peer whose public side is a bare session.
type site struct {
	t    testing.TB
	loop *evloop.Loop
	peer *peer
	far  *link.Session // of the public side

	visitors []*visitor
}

func newSite(t testing.TB, services ...Service) *site {
	s := newSiteOn(t, newLoops(t), services...)
	t.Cleanup(s.end)
	return s
}

func newLoops(t testing.TB) *evloop.Core {
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { core.Close() })
	return core
}

// newSiteOn makes a site whose end is the caller's to call.
func newSiteOn(t testing.TB, core *evloop.Core, services ...Service) *site {
	r := &Relay{Core: core, log: slog.New(slog.NewTextHandler(t.Output(), nil))}
	list, err := r.makeServices(services)
	if err != nil {
		t.Fatal(err)
	}
	r.services.Store(list)
	s := &site{t: t, loop: core.Loop(0)}
	s.do(func() {
		s.peer = newPeer(r, "", s.loop, nil)
		s.peer.over = true
		s.peer.session = s.peer.newSession()
		s.far = link.NewSession(s.loop, tunnel.Config{})
		there, here := &wire{loop: s.loop, to: s.far}, &wire{loop: s.loop, to: s.peer.session}
		there.back, here.back = here, there
		s.peer.session.Attach(there, tunnel.RoleInteractive, s.loop.Now())
		s.far.Attach(here, tunnel.RoleInteractive, s.loop.Now())
	})
	return s
}

func (s *site) end() {
	s.do(func() {
		s.far.Close(nil)
		if s.peer.session != nil {
			s.peer.session.Close(nil)
		}
	})
	for _, v := range s.visitors {
		v.r.Close()
		close(v.q)
		<-v.delivered
	}
}

// do runs f on the loop and waits for it.
func (s *site) do(f func()) {
	s.t.Helper()
	done := make(chan struct{})
	if !s.loop.Post(func() { f(); close(done) }) {
		s.t.Fatal("loop is closed")
	}
	<-done
}

// visitor is a stream that the public side has opened. Its methods are called by the test.
type visitor struct {
	site   *site
	stream *tunnel.Stream
	closed chan error // gets the value of OnClose

	r *io.PipeReader // what came
	w *io.PipeWriter
	q chan func() // keeps what the loop hands to w in order, off the loop

	delivered chan struct{} // closed when q is closed and empty
}

func (s *site) visit(service string) *visitor {
	s.t.Helper()
	return s.open(relay.Header{Kind: relay.KindConnect, Service: service, Scheme: "https", Visitor: netip.MustParseAddrPort("192.0.2.7:40000")})
}

func (s *site) open(h relay.Header) *visitor {
	s.t.Helper()
	header, err := h.Append(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	v := &visitor{site: s, closed: make(chan error, 1), q: make(chan func(), 1024), delivered: make(chan struct{})}
	v.r, v.w = io.Pipe()
	s.visitors = append(s.visitors, v)
	go v.deliver()
	s.do(func() {
		if v.stream, err = s.far.Open(header); err == nil {
			v.stream.SetHandler(v)
		}
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return v
}

func (v *visitor) deliver() {
	defer close(v.delivered)
	for f := range v.q {
		f()
	}
}

func (v *visitor) OnData(b []byte) int {
	c := slices.Clone(b)
	v.q <- func() { v.w.Write(c) }
	return len(b)
}
func (v *visitor) OnEOF()   { v.q <- func() { v.w.Close() } }
func (v *visitor) OnDrain() {}
func (v *visitor) OnClose(err error) {
	v.q <- func() { v.w.CloseWithError(err) }
	v.closed <- err
}

func (v *visitor) write(s string) { v.site.do(func() { v.stream.Write([]byte(s)) }) }
func (v *visitor) closeWrite()    { v.site.do(v.stream.CloseWrite) }

// wantCode waits for the reset of the stream.
func (v *visitor) wantCode(want tunnel.Code) {
	v.site.t.Helper()
	var e *tunnel.StreamError
	if err := <-v.closed; !errors.As(err, &e) || e.Code != want || !e.Remote {
		v.site.t.Errorf("stream ended with %v, want a reset with code %v", err, want)
	}
}

func tcpService(t testing.TB, name, target string) Service {
	t.Helper()
	u, err := relay.ParseTarget(target)
	if err != nil {
		t.Fatal(err)
	}
	return Service{Service: relay.Service{Name: name, Target: u}}
}

// upper is a server that answers in capitals, after the client has finished.
func upper(t *testing.T, network, address string) net.Listener {
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go serveUpper(ln, done)
	t.Cleanup(func() { ln.Close(); <-done })
	return ln
}

func serveUpper(ln net.Listener, done chan<- struct{}) {
	defer close(done)
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		c, err := ln.Accept()
		if err != nil {
			return
		}
		conns.Go(func() { answerUpper(c) })
	}
}

func answerUpper(c net.Conn) {
	defer c.Close()
	b, _ := io.ReadAll(c)
	io.WriteString(c, strings.ToUpper(string(b)))
}

// A stream reaches the target, what is sent before the target is there is not lost, and the end of one
// direction leaves the other open.
func TestTarget(t *testing.T) {
	tcp := upper(t, "tcp", "127.0.0.1:0")
	targets := map[string]string{
		"tcp":  "tcp://" + tcp.Addr().String(),
		"http": "http://" + tcp.Addr().String(),
		"name": fmt.Sprintf("tcp://localhost:%d", tcp.Addr().(*net.TCPAddr).Port),
	}
	if runtime.GOOS != "windows" {
		path := filepath.Join(t.TempDir(), "s")
		upper(t, "unix", path)
		targets["unix"] = "unix://" + path
	}
	for name, target := range targets {
		t.Run(name, func(t *testing.T) {
			s := newSite(t, tcpService(t, name, target))
			v := s.visit(name)
			v.write("hello ")
			v.write("world")
			v.closeWrite()
			got, err := io.ReadAll(v.r)
			if string(got) != "HELLO WORLD" || err != nil {
				t.Errorf("answer %q, %v", got, err)
			}
			if err := <-v.closed; err != nil {
				t.Errorf("stream ended with %v", err)
			}
		})
	}
}

// An https target is spoken to in TLS, and its certificate is verified against the service's own CA.
func TestHTTPSTarget(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "over "+r.Proto) }))
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	srv.StartTLS()
	defer srv.Close()
	trusted := tcpService(t, "trusted", srv.URL)
	trusted.RootCAs = x509.NewCertPool()
	trusted.RootCAs.AddCert(srv.Certificate())
	s := newSite(t, trusted, tcpService(t, "stranger", srv.URL))

	v := s.visit("trusted")
	v.write("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	resp, err := http.ReadResponse(bufio.NewReader(v.r), nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); string(b) != "over HTTP/1.1" || err != nil {
		t.Errorf("answer %q, %v", b, err)
	}
	v.closeWrite()

	s.visit("stranger").wantCode(tunnel.CodeRefused)
}

// With an h2 target TLS has to end in HTTP/2.
func TestHTTP2Target(t *testing.T) {
	srv := httptest.NewUnstartedServer(http.NotFoundHandler())
	srv.EnableHTTP2 = true
	srv.StartTLS()
	defer srv.Close()
	cfg := srv.TLS.Clone()
	cfg.NextProtos = nil
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() { // a server that has never heard of ALPN
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			io.Copy(io.Discard, c)
			c.Close()
		}
	})
	defer served.Wait()
	defer ln.Close()
	rpc, old := tcpService(t, "rpc", "h2://"+srv.Listener.Addr().String()), tcpService(t, "old", "h2://"+ln.Addr().String())
	rpc.RootCAs = x509.NewCertPool()
	rpc.RootCAs.AddCert(srv.Certificate())
	old.RootCAs = rpc.RootCAs
	s := newSite(t, rpc, old)
	v := s.visit("rpc")
	v.write("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00")
	var frame [9]byte
	if _, err := io.ReadFull(v.r, frame[:]); err != nil || frame[3] != 4 {
		t.Errorf("first frame % x, %v, want SETTINGS", frame, err)
	}
	v.closeWrite()
	s.visit("old").wantCode(tunnel.CodeRefused)
}

// A folder is served by the private relay itself.
func TestFileTarget(t *testing.T) {
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.txt"), []byte("a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newSite(t, tcpService(t, "files", "file://"+filepath.ToSlash(dir)))
	v := s.visit("files")
	v.write("GET /a.txt HTTP/1.1\r\nHost: x\r\n\r\n")
	r := bufio.NewReader(v.r)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != "a file" || err != nil {
		t.Errorf("%s, %q, %v", resp.Status, b, err)
	}
	// The stream can be used again.
	v.write("GET /../../etc/passwd HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
	if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode == 200 {
		t.Errorf("outside of the folder: %v, %v", resp, err)
	}
}

// Why there is no target reaches the public side as a code.
func TestNoTarget(t *testing.T) {
	s := newSite(t,
		tcpService(t, "down", "tcp://127.0.0.1:1"), // a port that was free a moment ago may be another test's by now
		tcpService(t, "no-socket", "unix:///no/such/socket"),
		tcpService(t, "plain", "https://"+upper(t, "tcp", "127.0.0.1:0").Addr().String()),
	)
	s.visit("down").wantCode(tunnel.CodeRefused)
	s.visit("no-socket").wantCode(tunnel.CodeUnreachable)
	s.visit("nothing").wantCode(tunnel.CodeNotFound)
	if got := s.peer.relay.Status().Services[0]; got.Failed != 1 || got.Total != 1 || got.Open != 0 {
		t.Errorf("counters %+v", got)
	}
}

// The peer names services, never addresses, and cannot announce anything here.
func TestForeignHeader(t *testing.T) {
	s := newSite(t)
	for _, header := range []string{"", "\x01\x01\x0e127.0.0.1:22\x00\x00\x00", "\x01\x02\x00\x00\x00\x00", strings.Repeat("x", tunnel.MaxHeader)} {
		v := &visitor{site: s, closed: make(chan error, 1), q: make(chan func(), 16)}
		s.do(func() {
			st, err := s.far.Open([]byte(header))
			if err != nil {
				t.Error(err)
				return
			}
			st.SetHandler(v)
		})
		v.wantCode(tunnel.CodeInternal)
	}
}

// A visitor that goes away while its target is being dialled leaves nothing behind.
func TestGoneWhileDialling(t *testing.T) {
	// A listener whose queue is never accepted from, behind a TLS handshake that does not end.
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	s := newSite(t, tcpService(t, "slow", "https://"+ln.Addr().String()))
	v := s.visit("slow")
	c, err := ln.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	s.do(func() { v.stream.Reset(tunnel.CodeCancelled) })
	<-v.closed
	// Our end of the target's connection is closed without a handshake.
	c.SetReadDeadline(time.Now().Add(time.Minute))
	if _, err := io.Copy(io.Discard, c); errors.Is(err, os.ErrDeadlineExceeded) {
		t.Error("the connection to the target stays open")
	}
}
