package public

import (
	"bufio"
	"context"
	"crypto/x509"
	"encoding/binary"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// operatorsOf are those of tests.
func operatorsOf(token string, _ netip.Addr) (auth.Identity, bool) {
	switch token {
	case "operator":
		return auth.Identity{Operator: "alice", Role: auth.Operate, Token: "1"}, true
	case "other":
		return auth.Identity{Operator: "bob", Role: auth.Administer, Token: "3"}, true
	case "viewer":
		return auth.Identity{Operator: "victor", Role: auth.Viewer, Token: "2"}, true
	}
	return auth.Identity{}, false
}

// testOperator stands in for an operator's program: a session, whose streams are as the public relay joins them, without the TLS that
// would be in them.
type testOperator struct {
	t       *testing.T
	loop    *evloop.Loop
	tun     *link.Session
	link    *link.Link
	welcome relay.Welcome
	lost    chan error
}

// operator begins a session with a site.
func (r *testRelay) operator(token, site string) *testOperator {
	r.t.Helper()
	o, err := r.tryOperator(link.DialConfig{Address: r.https, Token: token, Site: site})
	if err != nil {
		r.t.Fatal(err)
	}
	return o
}

func (r *testRelay) tryOperator(cfg link.DialConfig) (*testOperator, error) {
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		r.t.Fatal(err)
	}
	r.t.Cleanup(func() { core.Close() })
	leaf, _ := x509.ParseCertificate(testTLS().Certificates[0].Certificate[0])
	cfg.RootCAs = x509.NewCertPool()
	cfg.RootCAs.AddCert(leaf)
	o := &testOperator{t: r.t.(*testing.T), loop: core.Loop(0), lost: make(chan error, 1)}
	done := make(chan error)
	o.loop.Post(func() {
		link.Dial(context.Background(), o.loop, cfg, func(l *link.Link, w relay.Welcome, err error) {
			if err == nil {
				o.link, o.welcome = l, w
				o.tun = link.NewSession(o.loop, tunnel.Config{Client: true})
				l.Serve(o.tun, tunnel.RoleInteractive, func(_ *link.Link, err error) { o.lost <- err })
			}
			done <- err
		})
	})
	return o, <-done
}

// open opens a stream and returns it with the reply of the relay.
func (o *testOperator) open(service string) (net.Conn, relay.OperateReply) {
	o.t.Helper()
	c, err := o.openAs(relay.Header{Kind: relay.KindOperate, Service: service})
	if err != nil {
		o.t.Fatal(err)
	}
	var head [2]byte
	if _, err := io.ReadFull(c, head[:]); err != nil {
		o.t.Fatalf("no reply: %v", err)
	}
	b := make([]byte, binary.BigEndian.Uint16(head[:]))
	if _, err := io.ReadFull(c, b); err != nil {
		o.t.Fatal(err)
	}
	var reply relay.OperateReply
	if err := json.Unmarshal(b, &reply); err != nil { // keys of tests are no real ones
		o.t.Fatalf("%s: %v", b, err)
	}
	return c, reply
}

func (o *testOperator) openAs(h relay.Header) (c net.Conn, err error) {
	header, err := h.Append(nil)
	if err != nil {
		o.t.Fatal(err)
	}
	onLoop(o.loop, func() {
		var st *tunnel.Stream
		if st, err = o.tun.Open(header); err == nil {
			c = o.loop.NetConn(st, nil, nil, nil)
		}
	})
	if err == nil {
		c.SetDeadline(time.Now().Add(time.Minute))
	}
	return c, err
}

// mustOpen opens a stream that is joined to a service.
func (o *testOperator) mustOpen(service string) net.Conn {
	o.t.Helper()
	c, reply := o.open(service)
	if reply.Error != nil || len(reply.Keys) == 0 {
		o.t.Fatalf("reply %+v", reply)
	}
	return c
}

func TestOperate(t *testing.T) {
	r := newTestRelay(t, false, nil)
	echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br); io.WriteString(c, " bye") })
	var headers []relay.Header
	var mu sync.Mutex
	s := r.connect("office", map[string]string{"ssh": echo, relay.ServicePing: echo}, "ssh", "")
	s.handle(func(_ *tunnel.Stream, h relay.Header) bool {
		mu.Lock()
		defer mu.Unlock()
		headers = append(headers, h)
		return false
	})
	request := func(site, token string) string {
		return "GET /.culvert/operate/" + site + " HTTP/1.1\r\nHost: relay.test\r\nAuthorization: Bearer " + token +
			"\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + websocket.NewKey() + "\r\n\r\n"
	}
	for _, test := range []struct {
		secure  bool
		request string
		want    int
	}{
		{true, request("office", "guess"), 401},
		{true, strings.Replace(request("office", "operator"), "Upgrade: websocket", "Upgrade: other", 1), 426},
		{true, strings.Replace(request("office", "operator"), "Bearer", "Basic", 1), 401},
		{true, strings.Replace(request("office", "guess"), "relay.test", "127.0.0.1", 1), 401},
		{true, strings.Replace(request("office", "guess"), "relay.test", "app.test", 1), 503},
		{true, "GET /.culvert/link HTTP/1.1\r\nHost: relay.test\r\n\r\n", 426},
		// By whatever name the machine is reached.
		{true, "GET /.culvert/link HTTP/1.1\r\nHost: 127.0.0.1:443\r\n\r\n", 426},
		{true, "GET /.culvert/link HTTP/1.1\r\nHost: [::1]\r\n\r\n", 426},
		{true, "GET /.culvert/link HTTP/1.1\r\nHost: localhost\r\n\r\n", 426},
		{true, "GET /.culvert/join HTTP/1.1\r\nHost: localhost\r\n\r\n", 404},
		{true, "GET /.culvert/linked HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n", 404},
		{true, "GET /.culvert/link HTTP/1.1\r\nHost: app.test\r\n\r\n", 503},
		// In the clear nobody comes in.
		{false, request("office", "operator"), 301},
	} {
		if got := r.status(test.secure, test.request); got != test.want {
			t.Errorf("%q: %d, want %d", test.request, got, test.want)
		}
	}
	for site, token := range map[string]string{"office": "viewer", "nowhere": "operator"} {
		_, err := r.tryOperator(link.DialConfig{Address: r.https, Token: token, Site: site})
		if refusal, ok := errors.AsType[*relay.Refusal](err); !ok || refusal.Retry {
			t.Errorf("%s at %s: %v", token, site, err)
		}
	}

	o := r.operator("operator", "office")
	for _, service := range []string{"ssh", relay.ServicePing} {
		c := o.mustOpen(service)
		io.WriteString(c, "hello")
		closeWrite(c)
		if b, err := io.ReadAll(c); err != nil || string(b) != "hello bye" {
			t.Errorf("%s: %q, %v", service, b, err)
		}
		c.Close()
	}
	mu.Lock()
	if h := headers[0]; h.Kind != relay.KindOperate || h.Service != "ssh" || h.Host != "alice" || h.Scheme != "operate" || !h.Visitor.IsValid() {
		t.Errorf("the site has seen %+v", h)
	}
	mu.Unlock()
	for service, want := range map[string]string{"none": `has no service "none": it has ssh`, ".other": "no service"} {
		if _, reply := o.open(service); reply.Error == nil || reply.Error.Code != relay.OperateNotFound || !strings.Contains(reply.Error.Text, want) {
			t.Errorf("%s: %+v", service, reply.Error)
		}
	}
	if _, reply := r.operator("operator", "home").open("ssh"); reply.Error == nil || reply.Error.Code != relay.OperateAway {
		t.Errorf("a site that is not there: %+v", reply.Error)
	}
	// Nothing else can be opened by an operator.
	for _, h := range []relay.Header{{Kind: relay.KindConnect, Service: "ssh"}, {Kind: relay.KindAnnounce}, {Kind: relay.KindDiscover}} {
		c, err := o.openAs(h)
		if err != nil {
			t.Fatal(err)
		}
		if e, ok := errors.AsType[*tunnel.StreamError](second(c.Read(make([]byte, 1)))); !ok || e.Code != tunnel.CodeForbidden {
			t.Errorf("kind %d: %v", h.Kind, e)
		}
	}
	// An end in good order is no error of the service.
	waitFor(t, func() bool { return s.visitors("ssh") == 0 && r.admission.connected() == 0 })
	onLoop(s.session.loop.Loop, func() {
		for _, svc := range []*service{s.session.service("ssh"), s.session.forOperators(relay.ServicePing)} {
			if svc.total != 1 || svc.errors != (Troubles{fine: 1}) {
				t.Errorf("%s: total %d, errors %v", svc.name, svc.total, svc.errors)
			}
		}
	})

	// The same on the operators' own listener, without TLS.
	admin := httptest.NewServer(http.HandlerFunc(r.ServeOperate))
	defer admin.Close()
	o, err := r.tryOperator(link.DialConfig{Address: admin.Listener.Addr().String(), Plain: true, Token: "operator", Site: "office"})
	if err != nil {
		t.Fatal(err)
	}
	o.mustOpen("ssh").Close()
	if _, err := r.tryOperator(link.DialConfig{Address: admin.Listener.Addr().String(), Plain: true, Token: "guess", Site: "office"}); err == nil {
		t.Error("the wrong token is good at the own listener")
	}
}

func second[T any](_ T, err error) error { return err }

// A session is resumed by whoever has begun it, and by nobody else; and not when the token is another one.
func TestOperateResume(t *testing.T) {
	r := newTestRelay(t, false, nil)
	echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
	r.connect("office", map[string]string{"ssh": echo}, "ssh", "")
	o := r.operator("operator", "office")
	o.mustOpen("ssh")
	again := func(token, site string) bool {
		o, err := r.tryOperator(link.DialConfig{Address: r.https, Token: token, Site: site, Session: o.welcome.Session, Resume: o.welcome.Resume})
		if err != nil {
			t.Fatal(err)
		}
		return o.welcome.Resumed
	}
	if again("other", "office") || again("operator", "home") {
		t.Error("somebody else goes on with the session")
	}
	if !again("operator", "office") {
		t.Error("the session is not resumed")
	}
	if err := <-o.lost; err == nil {
		t.Error("the link before lives on")
	}
}

// One operator has no more than so many sessions: those that nobody uses make room.
func TestOperateLimits(t *testing.T) {
	r := newTestRelay(t, false, nil)
	hello := relay.OperateHello{Version: relay.WireVersion}
	id, _ := operatorsOf("operator", netip.Addr{})
	first, _, _, refusal := r.admitOperator(hello, id, "office", r.loops[0])
	if refusal != nil {
		t.Fatal(refusal)
	}
	for range maxOperatorSessions - 1 {
		if _, evicted, _, refusal := r.admitOperator(hello, id, "office", r.loops[0]); refusal != nil || evicted != nil {
			t.Fatal(refusal, evicted)
		}
	}
	if _, _, _, refusal := r.admitOperator(hello, id, "office", r.loops[0]); refusal == nil || refusal.Code != relay.RefuseBusy || !refusal.Retry {
		t.Errorf("one too many: %v", refusal)
	}
	first.unlinked()
	if _, evicted, _, refusal := r.admitOperator(hello, id, "office", r.loops[0]); refusal != nil || evicted != first {
		t.Errorf("evicted %v, %v", evicted, refusal)
	}
	if n := len(r.OperatorSessions()); n != maxOperatorSessions {
		t.Errorf("%d sessions", n)
	}
	// Another one has room.
	other, _ := operatorsOf("other", netip.Addr{})
	if _, _, _, refusal := r.admitOperator(hello, other, "office", r.loops[0]); refusal != nil {
		t.Error(refusal)
	}
}

// A site that is removed takes the sessions of operators with it.
func TestOperateSiteRemoved(t *testing.T) {
	r := newTestRelay(t, false, nil)
	o := r.operator("operator", "office")
	r.Reload(nil)
	if e, ok := errors.AsType[*link.CloseError](<-o.lost); !ok || e.Status != link.StatusOver {
		t.Errorf("the link has ended with %v", e)
	}
}

// An operator's connections come through a takeover as visitors do.
func TestOperateDuringTakeover(t *testing.T) {
	r := newTestRelay(t, false, nil)
	echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
	a := r.connectAs(machine('a', '1'), nil, "ssh", "", "port", "tcp://127.0.0.1:0")
	r.connectAs(machine('b', '1'), map[string]string{"ssh": echo, "port": echo}, "ssh", "", "port", "tcp://127.0.0.1:0")
	o := r.operator("operator", "office")
	port := a.port()
	onLoop(a.session.loop.Loop, a.cut)
	opened := make(chan net.Conn)
	go func() { opened <- o.mustOpen("ssh") }()
	c, err := net.Dial("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(time.Minute))
	for _, c := range []net.Conn{c, <-opened} {
		io.WriteString(c, "hello")
		b := make([]byte, 5)
		if n, err := io.ReadFull(c, b); err != nil || string(b) != "hello" {
			t.Errorf("%q, %v", b[:n], err)
		}
	}
}
