package private

import (
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"golang.org/x/net/nettest"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

var (
	listenedAddr = netip.MustParseAddrPort("192.0.2.7:40000")
	anybody      = relay.Publish{Scheme: "tcp", Port: 15000}
)

// listened is a site with one service, which comes to a listener.
func listened(t testing.TB) (*site, *Listener) {
	s := newSite(t)
	l, err := s.peer.relay.Listen(Service{Service: relay.Service{Name: "mine", Publish: anybody}})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	return s, l
}

// dial opens a stream to a service as a visitor.
func (s *site) dial(service string) *evloop.NetConn {
	s.t.Helper()
	var c *evloop.NetConn
	s.do(func() {
		h, err := relay.Header{Kind: relay.KindConnect, Service: service, Scheme: "tcp", Visitor: listenedAddr}.Append(nil)
		if err != nil {
			s.t.Error(err)
		}
		st, err := s.far.Open(h)
		if err != nil {
			s.t.Error(err)
		}
		c = s.loop.NetConn(st, nil, nil, nil)
	})
	return c
}

// TestListenConn has what every net.Conn has to do.
func TestListenConn(t *testing.T) {
	s, l := listened(t)
	nettest.TestConn(t, func() (net.Conn, net.Conn, func(), error) {
		far := s.dial("mine")
		c, err := l.Accept()
		return far, c, func() { c.Close(); far.Close() }, err
	})
}

// TestListen shows a listener from its beginning to its end.
func TestListen(t *testing.T) {
	s, l := listened(t)
	if a := l.Addr(); a.Network() != "culvert" || a.String() != "tcp://:15000" {
		t.Errorf("address %s %s", a.Network(), a)
	}

	// Each visitor is a connection, with the visitor's address.
	far := s.dial("mine")
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if got := c.RemoteAddr().String(); got != listenedAddr.String() {
		t.Errorf("the visitor is %s, want %s", got, listenedAddr)
	}
	big := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go func() {
		far.Write(big)
		far.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if !bytes.Equal(got, big) || err != nil {
		t.Fatalf("%d bytes came, %v", len(got), err)
	}
	go func() {
		c.Write(big)
		c.Close()
	}()
	if got, err = io.ReadAll(far); !bytes.Equal(got, big) || err != nil {
		t.Fatalf("%d bytes came back, %v", len(got), err)
	}
	st := s.peer.relay.Status().Services
	if len(st) != 1 || st[0].Total != 1 {
		t.Errorf("status %+v", st)
	}

	// A name is there once, whoever has it.
	if _, err := s.peer.relay.Listen(Service{Service: relay.Service{Name: "mine"}}); err == nil || !strings.Contains(err.Error(), "twice") {
		t.Errorf("the same name again: %v", err)
	}
	if err := s.peer.relay.Reload([]Service{{Service: relay.Service{Name: "mine", Target: relay.Target{Scheme: "tcp", Host: "127.0.0.1", Port: 1}}}}); err == nil {
		t.Error("a reload has taken the name")
	}
	// A reload leaves the listener.
	if err := s.peer.relay.Reload(nil); err != nil {
		t.Error(err)
	}
	if list := s.peer.relay.services.Load().announcements(); len(list) != 1 || list[0].TargetScheme != "listen" {
		t.Errorf("announced %+v", list)
	}

	// Who waits for Accept is not read, and more than may wait are turned away.
	waiting := make([]*evloop.NetConn, maxBacklog)
	for i := range waiting {
		waiting[i] = s.dial("mine")
	}
	_, err = s.dial("mine").Read(make([]byte, 1))
	if e, ok := errors.AsType[*tunnel.StreamError](err); !ok || e.Code != tunnel.CodeOverload {
		t.Errorf("one too many got %v", err)
	}

	// The end.
	if err := l.Close(); err != nil {
		t.Error(err)
	}
	for _, c := range waiting {
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("who waited got %v", err)
		}
	}
	if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("accept: %v", err)
	}
	_, err = s.dial("mine").Read(make([]byte, 1))
	if e, ok := errors.AsType[*tunnel.StreamError](err); !ok || e.Code != tunnel.CodeNotFound {
		t.Errorf("who came late got %v", err)
	}
	if l.Close() != nil {
		t.Error("closed twice")
	}
	if _, err := s.peer.relay.Listen(Service{Service: relay.Service{Name: "mine"}}); err != nil {
		t.Errorf("the name is not free: %v", err)
	}
}

// TestListenHTTP has http.Serve take the visitors, and pkg/httpd.
func TestListenHTTP(t *testing.T) {
	say := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello "+r.RemoteAddr) })
	s, l := listened(t)
	srv := &http.Server{Handler: say}
	served := make(chan error)
	go func() { served <- srv.Serve(l) }()
	if err := s.peer.relay.Reload([]Service{{Service: relay.Service{Name: "handled"}, Handler: say}}); err != nil {
		t.Fatal(err)
	}
	for _, service := range []string{"mine", "handled"} {
		c := s.dial(service)
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		b, err := io.ReadAll(c)
		if err != nil || !strings.Contains(string(b), "200 OK") || !strings.HasSuffix(string(b), "hello "+listenedAddr.String()) {
			t.Errorf("%s: %q, %v", service, b, err)
		}
		c.Close()
	}
	srv.Close()
	if err := <-served; err != http.ErrServerClosed {
		t.Errorf("serve: %v", err)
	}
}

// TestOwnTargets tells which services may end in this program.
func TestOwnTargets(t *testing.T) {
	rest := relay.Target{Scheme: "rest", Host: "site"}
	h := http.NotFoundHandler()
	users := &relay.Policy{Users: map[string]string{"a": "$2y$05$......................................................"}}
	at := relay.Publish{Scheme: "https", Host: "diag.example.com", Path: "/"}
	for _, c := range []struct {
		s    Service
		want string
	}{
		{Service{Service: relay.Service{Name: "a", Target: rest}, Handler: h}, ""},
		{Service{Service: relay.Service{Name: "a", Target: rest}}, "needs a Handler"},
		{Service{Service: relay.Service{Name: "a", Target: rest, Publish: at}, Handler: h}, "demand users or client_ca"},
		{Service{Service: relay.Service{Name: "a", Target: rest, Publish: at, Policy: users}, Handler: h}, ""},
		{Service{Service: relay.Service{Name: "a", Target: rest, Publish: relay.Publish{Scheme: "http", Host: "a.example.com", Path: "/"}, Policy: users}, Handler: h}, "https:// or tls://"},
		{Service{Service: relay.Service{Name: "a", Target: rest, Publish: anybody}, Handler: h}, "https:// or tls://"},
		{Service{Service: relay.Service{Name: "a", Target: rest, Publish: relay.Publish{Scheme: "tls", Host: "a.example.com"}}, Handler: h}, "is for operators"},
		{Service{Service: relay.Service{Name: "a", Publish: at}, Handler: h}, ""},
		{Service{Service: relay.Service{Name: "a", Publish: anybody}, Handler: h}, "carries no HTTP"},
		{Service{Service: relay.Service{Name: "a", Target: relay.Target{Scheme: "tcp", Host: "127.0.0.1", Port: 1}}, Handler: h}, "rest:// target, or for none"},
		{Service{Service: relay.Service{Name: "a"}}, "no target"},
		{Service{Service: relay.Service{Name: "a", Publish: relay.Publish{Scheme: "udp", Port: 1}}, listener: &Listener{}}, "udp"},
		{Service{Service: relay.Service{Name: "a", Publish: relay.Publish{Scheme: "tls", Host: "a.example.com"}}, listener: &Listener{}}, ""},
	} {
		err := c.s.Validate()
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%+v: %v, want %q", c.s.Service, err, c.want)
		}
	}
}
