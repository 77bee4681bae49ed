package public

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// testFlow is the private relay's end of a flow: it answers each datagram with the name of its
// site in front, and keeps what happened. All of it belongs to the loop.
type testFlow struct {
	*tunnel.Stream
	header relay.Header
	site   string
	closed error
	code   tunnel.Code // if not 0, it is reset instead of an answer
}

func (f *testFlow) OnData([]byte) int { return 0 }
func (f *testFlow) OnEOF()            {}
func (f *testFlow) OnDrain()          {}
func (f *testFlow) OnClose(err error) { f.closed = err }
func (f *testFlow) OnDatagram(b []byte) {
	if f.code != 0 {
		f.Reset(f.code)
		return
	}
	f.SendDatagram(append([]byte(f.site+" "), b...))
}

// testFlows takes the flows of a site.
type testFlows struct {
	site *testSite
	all  []*testFlow
	code tunnel.Code // of the next flow
}

func flowsOf(s *testSite, name string) *testFlows {
	fs := &testFlows{site: s}
	s.handle(func(st *tunnel.Stream, h relay.Header) bool {
		if h.Kind == relay.KindNotice {
			st.SetHandler(&funcHandler{eof: st.CloseWrite})
			return true
		}
		f := &testFlow{Stream: st, header: h, site: name, code: fs.code}
		fs.all = append(fs.all, f)
		st.SetHandler(f)
		return true
	})
	return fs
}

// do runs f on the loop with the flows there were.
func (fs *testFlows) do(f func(all []*testFlow)) {
	onLoop(fs.site.session.loop.Loop, func() { f(fs.all) })
}

func (fs *testFlows) len() (n int) {
	fs.do(func(all []*testFlow) { n = len(all) })
	return n
}

// udpPort is where the site's only udp service is to be found.
func (r *testRelay) udpPort(site string) (addr string) {
	r.mu.Lock()
	g := r.groups[site]
	r.mu.Unlock()
	onLoop(g.loop.Loop, func() {
		for _, p := range g.ports {
			if p.flows != nil {
				addr = p.Addr().String()
			}
		}
	})
	return addr
}

type packetVisitor struct {
	*net.UDPConn
	t *testing.T
}

func newPacketVisitor(t *testing.T, addr string) *packetVisitor {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &packetVisitor{c.(*net.UDPConn), t}
}

// expect reads an answer.
func (v *packetVisitor) expect(want string) {
	v.t.Helper()
	b := make([]byte, 100)
	v.SetReadDeadline(time.Now().Add(time.Minute))
	n, err := v.Read(b)
	if err != nil || string(b[:n]) != want {
		v.t.Fatalf("got %q, %v, want %q", b[:n], err, want)
	}
}

// ask sends a datagram and reads the answer.
func (v *packetVisitor) ask(s, answer string) {
	v.t.Helper()
	if _, err := v.Write([]byte(s)); err != nil {
		v.t.Fatal(err)
	}
	v.expect(answer)
}

func TestFlows(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		s := r.connect("office", nil, "echo", "udp://127.0.0.1:0")
		fs := flowsOf(s, "office")
		addr := r.udpPort("office")
		a, b := newPacketVisitor(t, addr), newPacketVisitor(t, addr)
		a.ask("one", "office one")
		b.ask("two", "office two")
		a.ask("", "office ")
		fs.do(func(all []*testFlow) {
			if len(all) != 2 {
				t.Fatalf("%d flows for two visitors", len(all))
			}
			want := relay.Header{Kind: relay.KindFlow, Service: "echo", Scheme: "udp", Visitor: netip.MustParseAddrPort(a.LocalAddr().String())}
			if all[0].header != want {
				t.Errorf("header %+v, want %+v", all[0].header, want)
			}
			all[0].Write([]byte("bytes do not belong here"))
			all[0].SendDatagram([]byte("unasked"))
		})
		a.expect("unasked")
		st := r.Status(t.Context())
		if svc := st.Sessions[0].Services[0]; svc.Visitors != 2 || svc.Total != 2 || svc.Datagrams != (Datagrams{Received: 3, Sent: 4}) || svc.Received != 6 || svc.Sent != 34 {
			t.Errorf("counters %+v", svc)
		}
		if st.Visitors != 2 {
			t.Errorf("%d visitors", st.Visitors)
		}

		// The private relay ends a flow for its silence: the next datagram begins another one.
		fs.do(func(all []*testFlow) { all[0].Reset(tunnel.CodeCancelled) })
		a.ask("three", "office three")
		if n := fs.len(); n != 3 {
			t.Errorf("%d flows, want a third one", n)
		}
		// It refuses one: it is asked again, but not at once.
		fs.do(func(all []*testFlow) { all[2].code, fs.code = tunnel.CodeNotFound, tunnel.CodeNotFound })
		start := time.Now()
		for fs.len() == 3 {
			a.Write([]byte("four"))
			time.Sleep(time.Millisecond)
		}
		if d := time.Since(start); d < restTime {
			t.Errorf("it was asked again after %v", d)
		}
		if d := r.Status(t.Context()).Sessions[0].Services[0].Datagrams.Dropped; d == 0 {
			t.Error("what was dropped meanwhile is not counted")
		}

		// A link that breaks ends no flow.
		onLoop(s.session.loop.Loop, s.cut)
		onLoop(s.session.loop.Loop, s.attach)
		b.ask("five", "office five")
		if n := fs.len(); n != 4 {
			t.Errorf("%d flows after a cut, want 4", n)
		}

		// The site stops offering it.
		onLoop(s.session.loop.Loop, func() { s.announce(nil, make(chan []relay.AnnounceReply, 1)) })
		for listening := true; listening; {
			c, err := net.ListenPacket("udp", addr)
			if listening = err != nil; err == nil {
				c.Close()
			}
		}
		if n := r.admission.connected(); n != 0 {
			t.Errorf("%d visitors of a service that is gone", n)
		}
	})
}

// Where there are too many flows, an older one makes room, of the same visitor first.
func TestFlowsMakeRoom(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.MaxFlows, r.MaxFlowsPerAddress = 3, 2 })
	fs := flowsOf(r.connect("office", nil, "echo", "udp://127.0.0.1:0"), "office")
	addr := r.udpPort("office")
	for range 5 {
		newPacketVisitor(t, addr).ask("hello", "office hello")
	}
	for over := 0; over < 3; { // what was reset may be on its way
		fs.do(func(all []*testFlow) {
			over = 0
			for i, f := range all {
				if f.closed == nil {
					continue
				}
				over++
				if e, _ := errors.AsType[*tunnel.StreamError](f.closed); i >= 3 || e.Code != tunnel.CodeCancelled {
					t.Errorf("flow %d of 5 was closed with %v", i, f.closed)
				}
			}
		})
	}
	if st := r.Status(t.Context()); st.Visitors != 2 || st.Sessions[0].Services[0].Total != 5 {
		t.Errorf("%+v", st)
	}
}

// A flow stays with the session that it began in, as long as that is there.
func TestFlowsTakeover(t *testing.T) {
	r := newTestRelay(t, false, nil)
	first := r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "a"}, nil, "echo", "udp://127.0.0.1:0")
	flowsOf(first, "first")
	addr := r.udpPort("office")
	a := newPacketVisitor(t, addr)
	a.ask("one", "first one")
	second := r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "b"}, nil, "echo", "udp://127.0.0.1:0")
	flowsOf(second, "second")
	if _, err := r.Promote(t.Context(), "office", "", -1); err != nil {
		t.Fatal(err)
	}
	b := newPacketVisitor(t, addr)
	b.ask("two", "second two")
	a.ask("three", "first three")

	// The other one leaves: what falls silent ends, and who goes on moves.
	onLoop(first.session.loop.Loop, func() { first.peer.GoAway() })
	c := newPacketVisitor(t, addr)
	c.ask("four", "second four")
	a.ask("five", "second five")

	// The active one dies.
	third := r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "c"}, nil, "echo", "udp://127.0.0.1:0")
	flowsOf(third, "third")
	onLoop(second.session.loop.Loop, second.cut)
	for {
		a.Write([]byte("six"))
		a.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		buf := make([]byte, 100)
		if n, err := a.Read(buf); err == nil {
			if string(buf[:n]) != "third six" {
				t.Errorf("after the takeover: %q", buf[:n])
			}
			break
		}
	}
	if r.udpPort("office") != addr {
		t.Error("the port has changed")
	}
}

// A port that was there before the relay is used, and stays when the service goes.
func TestFlowsInherited(t *testing.T) {
	c, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	f, err := c.File()
	if err != nil {
		t.Skip(err) // Windows
	}
	defer f.Close()
	addr := c.LocalAddr().String()
	r := newTestRelay(t, false, func(r *Relay) {
		r.Inherited = func(name, network, at string) []*os.File {
			if name == "udp://"+addr && network == "udp" && at == addr {
				return []*os.File{f}
			}
			return nil
		}
	})
	flowsOf(r.connect("office", nil, "echo", "udp://"+addr), "office")
	newPacketVisitor(t, addr).ask("one", "office one")
}

// When the relay drains, flows end as soon as they fall silent.
func TestFlowsDrain(t *testing.T) {
	r := newTestRelay(t, false, nil)
	flowsOf(r.connect("office", nil, "echo", "udp://127.0.0.1:0"), "office")
	a := newPacketVisitor(t, r.udpPort("office"))
	a.ask("one", "office one")
	drained := make(chan error, 1)
	go func() { drained <- r.Drain(t.Context()) }()
	for !r.draining.Load() {
		time.Sleep(time.Millisecond)
	}
	a.ask("two", "office two")
	if err := <-drained; err != nil {
		t.Error(err)
	}
}
