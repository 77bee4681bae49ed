package private

import (
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// packetTarget answers each datagram with itself in capitals.
type packetTarget struct {
	*net.UDPConn
	addr  string
	peers chan netip.AddrPort // of each datagram
	done  chan struct{}
}

func newPacketTarget(t *testing.T, addr string) *packetTarget {
	t.Helper()
	c, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	p := &packetTarget{c.(*net.UDPConn), c.LocalAddr().String(), make(chan netip.AddrPort, 1000), make(chan struct{})}
	go p.serve()
	t.Cleanup(p.stop)
	return p
}

func (p *packetTarget) serve() {
	defer close(p.done)
	buf := make([]byte, 64<<10)
	for {
		n, from, err := p.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		p.peers <- from
		p.WriteToUDPAddrPort([]byte(strings.ToUpper(string(buf[:n]))), from)
	}
}

func (p *packetTarget) stop() { p.Close(); <-p.done }

// visitorFlow is the public side of a flow. Its methods are called by the test.
type visitorFlow struct {
	site   *site
	stream *tunnel.Stream
	got    chan string
	closed chan error
}

func (v *visitorFlow) OnData(b []byte) int { return len(b) }
func (v *visitorFlow) OnEOF()              {}
func (v *visitorFlow) OnDrain()            {}
func (v *visitorFlow) OnClose(err error)   { v.closed <- err }
func (v *visitorFlow) OnDatagram(b []byte) { v.got <- string(b) }

func (s *site) flow(kind relay.Kind, service string) *visitorFlow {
	s.t.Helper()
	header, err := relay.Header{Kind: kind, Service: service, Scheme: "udp", Visitor: netip.MustParseAddrPort("192.0.2.7:40000")}.Append(nil)
	if err != nil {
		s.t.Fatal(err)
	}
	v := &visitorFlow{site: s, got: make(chan string, 1000), closed: make(chan error, 1)}
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

func (v *visitorFlow) send(b string) { v.site.do(func() { v.stream.SendDatagram([]byte(b)) }) }

func (v *visitorFlow) expect(want string) {
	v.site.t.Helper()
	select {
	case got := <-v.got:
		if got != want {
			v.site.t.Errorf("got %q, want %q", got, want)
		}
	case err := <-v.closed:
		v.site.t.Fatalf("the flow ended with %v instead of %q", err, want)
	case <-time.After(time.Minute):
		v.site.t.Fatalf("no %q", want)
	}
}

func (v *visitorFlow) wantCode(want tunnel.Code) {
	v.site.t.Helper()
	if err := <-v.closed; err == nil || err.(*tunnel.StreamError).Code != want {
		v.site.t.Errorf("the flow ended with %v, want code %v", err, want)
	}
}

func TestFlow(t *testing.T) {
	target := newPacketTarget(t, "127.0.0.1:0")
	_, port, _ := net.SplitHostPort(target.addr)
	s := newSite(t, udpService(t, "addr", "udp://"+target.addr), udpService(t, "name", "udp://localhost:"+port), tcpService(t, "tcp", "tcp://127.0.0.1:1"))
	for _, service := range []string{"addr", "name"} {
		v := s.flow(relay.KindFlow, service)
		for i := range 5 { // the first ones wait for the look-up of the name
			v.send(fmt.Sprint("d", i))
		}
		for i := range 5 {
			v.expect(fmt.Sprint("D", i))
		}
		v.send("")
		v.expect("")
		large := strings.Repeat("x", 65507)
		v.send(large)
		v.expect(strings.ToUpper(large))
		peers := map[netip.AddrPort]bool{}
		for range 7 {
			peers[<-target.peers] = true
		}
		if len(peers) != 1 {
			t.Errorf("the target has seen %d peers in one flow", len(peers))
		}
		// Nobody but the target can answer.
		for peer := range peers {
			stranger, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(peer))
			if err != nil {
				t.Fatal(err)
			}
			stranger.Write([]byte("let me in"))
			stranger.Close()
		}
		v.send("after")
		v.expect("AFTER")
		<-target.peers
		s.do(func() { v.stream.Reset(tunnel.CodeCancelled) })
		<-v.closed
	}
	s.flow(relay.KindFlow, "nothing").wantCode(tunnel.CodeNotFound)
	s.flow(relay.KindFlow, "tcp").wantCode(tunnel.CodeForbidden)
	s.flow(relay.KindConnect, "addr").wantCode(tunnel.CodeForbidden)
	for _, svc := range s.peer.relay.Status().Services[:2] {
		if svc.Open != 0 || svc.Total != 1 || svc.Failed != 0 {
			t.Errorf("counters %+v", svc)
		}
	}
}

// Beyond MaxFlows the flow that has been silent for longest makes room.
func TestMaxFlows(t *testing.T) {
	target := newPacketTarget(t, "127.0.0.1:0")
	s := newSite(t, udpService(t, "addr", "udp://"+target.addr))
	s.do(func() { s.peer.relay.MaxFlows = 2 })
	var list []*visitorFlow
	for range 4 {
		v := s.flow(relay.KindFlow, "addr")
		v.send("a")
		v.expect("A")
		list = append(list, v)
	}
	list[0].wantCode(tunnel.CodeCancelled)
	list[1].wantCode(tunnel.CodeCancelled)
	for _, v := range list[2:] {
		v.send("b")
		v.expect("B")
	}
}

// A target that is not there ends no flow, whether it has no name or no server.
func TestFlowWithoutTarget(t *testing.T) {
	target := newPacketTarget(t, "127.0.0.1:0")
	target.stop()
	s := newSite(t, udpService(t, "down", "udp://"+target.addr), udpService(t, "unknown", "udp://no-such-host.invalid:9"))
	status := func(i int) ServiceStatus { return s.peer.relay.Status().Services[i] }
	v, unknown := s.flow(relay.KindFlow, "down"), s.flow(relay.KindFlow, "unknown")
	unknown.send("hello")
	for status(0).Failed == 0 {
		v.send("hello")
		time.Sleep(time.Millisecond)
	}
	again := newPacketTarget(t, target.addr)
	for got := ""; got != "AGAIN"; { // the last hello may still get there
		v.send("again")
		select {
		case got = <-v.got:
		case <-time.After(time.Millisecond):
		}
	}
	if s.peer.relay.services.Load().byName["down"].down.Load() {
		t.Error("the target is still noted as down")
	}
	again.stop()
	for status(1).Failed == 0 {
		time.Sleep(time.Millisecond)
	}
	for range 3 {
		unknown.send("hello")
	}
	if got := status(1); got.Failed != 1 || got.Open != 1 {
		t.Errorf("a target without address: %+v", got)
	}
}

// A flow does not outlive what the configuration says about its service.
func TestFlowFollows(t *testing.T) {
	one, two := newPacketTarget(t, "127.0.0.1:0"), newPacketTarget(t, "127.0.0.1:0")
	kept := udpService(t, "kept", "udp://"+one.addr)
	s := newSite(t, kept, udpService(t, "moved", "udp://"+one.addr), udpService(t, "gone", "udp://"+one.addr))
	flows := map[string]*visitorFlow{}
	for _, name := range []string{"kept", "moved", "gone"} {
		flows[name] = s.flow(relay.KindFlow, name)
		flows[name].send("a")
		flows[name].expect("A")
	}
	if err := s.peer.relay.Reload([]Service{kept, udpService(t, "moved", "udp://"+two.addr)}); err != nil {
		t.Fatal(err)
	}
	for _, v := range flows {
		v.send("b")
	}
	flows["kept"].expect("B")
	flows["moved"].wantCode(tunnel.CodeCancelled)
	flows["gone"].wantCode(tunnel.CodeCancelled)
	again := s.flow(relay.KindFlow, "moved")
	again.send("c")
	again.expect("C")
	<-two.peers
	if got := s.peer.relay.Status().Services; got[0].Open != 1 || got[1].Open != 1 {
		t.Errorf("open flows after the reload: %+v", got)
	}
}

func udpService(t *testing.T, name, target string) Service {
	t.Helper()
	s := tcpService(t, name, target)
	s.Publish = relay.Publish{Scheme: "udp"}
	return s
}
