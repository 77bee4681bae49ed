package public

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// udpPair is two sockets of a player, for RTP and RTCP.
func udpPair(t *testing.T) (pair [2]*net.UDPConn, ports string) {
	t.Helper()
	pair, err := listenPair("127.0.0.1", "0")
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range pair {
		c.SetDeadline(time.Now().Add(time.Minute))
		t.Cleanup(func() { c.Close() })
	}
	p := pair[0].LocalAddr().(*net.UDPAddr).Port
	return pair, fmt.Sprintf("%d-%d", p, p+1)
}

// newUDPRelay is newCameraRelay for UDP, with a camera that may be had by it.
func newUDPRelay(t *testing.T, portable bool) (*testRelay, *testSite, *testCamera, string) {
	r := newCameraRelay(t, portable, func(r *Relay) { r.RTP = "127.0.0.1:0" })
	s := r.connect("office", nil)
	c := s.camera(&testCamera{})
	if e := s.demandCamera(&relay.Camera{UDP: true}); e != "" {
		t.Fatal(e)
	}
	port := r.rtp.ports
	return r, s, c, fmt.Sprintf("%d-%d", port[0], port[1])
}

func (c *testCamera) send(s *testSite, channel uint8, payload string) {
	frame := append(rtsp.AppendFrameHead(nil, channel, len(payload)), payload...)
	onLoop(s.session.loop.Loop, func() { c.streams[len(c.streams)-1].Write(frame) })
}

func receive(t *testing.T, c *net.UDPConn) string {
	t.Helper()
	b := make([]byte, 70000)
	n, err := c.Read(b)
	if err != nil {
		t.Fatal(err)
	}
	return string(b[:n])
}

func TestPlayerUDP(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r, s, c, serverPorts := newUDPRelay(t, portable)
		at := func(i int) *net.UDPAddr { return &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(r.rtp.ports[i])} }
		for range 4 { // on both loops, which receive from one socket
			video, ports := udpPair(t)
			audio, audioPorts := udpPair(t)
			p := r.player(false)
			p.ask(200, "DESCRIBE", gateURL)
			m := p.ask(200, "SETUP", gateURL+"/trackID=0", "Transport: RTP/AVP;unicast;client_port="+ports)
			if got, want := string(m.Get("Transport")), "RTP/AVP;unicast;client_port="+ports+";server_port="+serverPorts+";ssrc=1234"; got != want {
				t.Fatalf("Transport %q, want %q", got, want)
			}
			m = p.ask(200, "SETUP", gateURL+"/trackID=1", "Session: 4711", "Transport: RTP/AVP/UDP;unicast;client_port="+audioPorts+",RTP/AVP/TCP;unicast;interleaved=0-1")
			if got := string(m.Get("Transport")); !strings.HasPrefix(got, "RTP/AVP;unicast;client_port="+audioPorts) {
				t.Fatalf("Transport %q", got)
			}
			p.ask(200, "PLAY", gateURL, "Session: 4711")
			if seen := c.saw(); !strings.HasSuffix(seen[len(seen)-3], "interleaved=0-1") || !strings.HasSuffix(seen[len(seen)-2], "interleaved=2-3") {
				t.Fatalf("the site saw %q", seen[len(seen)-3:])
			}
			c.send(s, 0, "video")
			c.send(s, 3, "sender report")
			c.send(s, 2, "audio")
			c.send(s, 9, "what is this")
			for _, e := range []struct {
				c    *net.UDPConn
				want string
			}{{video[0], "video"}, {audio[1], "sender report"}, {audio[0], "audio"}} {
				if got := receive(t, e.c); got != e.want {
					t.Errorf("got %q, want %q", got, e.want)
				}
			}
			if _, _, b, err := p.next(); err != nil || string(b) != "$\x09\x00\x0cwhat is this" {
				t.Errorf("by TCP comes %q, %v", b, err)
			}
			c.mu.Lock()
			c.frames = nil
			c.mu.Unlock()
			stranger, _ := udpPair(t)
			stranger[0].WriteToUDP([]byte("let me in"), at(1))
			video[1].WriteToUDP([]byte("to the wrong port"), at(0))
			for i, punch := range []string{"\x80\x00\x00\x00", "\x80\xc9\x00\x00"} { // of gortsplib
				video[i].WriteToUDP([]byte(punch), at(i))
			}
			const report = "\x80\xc9\x00\x01abcd"
			video[1].WriteToUDP([]byte(report), at(1))
			want := "$\x01\x00\x08" + report
			for n := 0; ; n++ {
				c.mu.Lock()
				got := string(c.frames)
				c.mu.Unlock()
				if got == want {
					break
				}
				if n == 2000 {
					t.Fatalf("the camera gets %q, want %q", got, want)
				}
				time.Sleep(time.Millisecond)
			}
			p.ask(200, "TEARDOWN", gateURL, "Session: 4711")
			c.send(s, 0, "too late")
			r.rtp.mu.Lock()
			if n := len(r.rtp.tracks[0]) + len(r.rtp.tracks[1]) + len(r.rtp.of); n != 0 {
				t.Errorf("%d entries are left", n)
			}
			r.rtp.mu.Unlock()
			p.ask(200, "DESCRIBE", gateURL)
			p.Close()
		}
	})
}

// Frames, whole and in pieces, go the way of their channel.
func TestPlayerDeals(t *testing.T) {
	r, s, c, _ := newUDPRelay(t, false)
	video, ports := udpPair(t)
	p := r.player(false)
	p.ask(200, "SETUP", gateURL+"/trackID=0", "Transport: RTP/AVP;unicast;client_port="+ports)
	p.ask(200, "SETUP", gateURL+"/trackID=1", "Session: 4711", "Transport: RTP/AVP/TCP;unicast;interleaved=2-3")
	p.ask(200, "PLAY", gateURL, "Session: 4711")
	var stream, wantTCP []byte
	var wantUDP []string
	for i, n := range []int{10, 0, 1400, 40000, 7, 33000, 5} {
		payload := bytes.Repeat([]byte{byte('a' + i)}, n)
		for _, channel := range []uint8{0, 2} {
			frame := append(rtsp.AppendFrameHead(nil, channel, n), payload...)
			stream = append(stream, frame...)
			if channel == 2 {
				wantTCP = append(wantTCP, frame...)
			} else if n <= rtsp.MaxWhole {
				wantUDP = append(wantUDP, string(payload))
			}
		}
	}
	go func() {
		for rest, n := stream, 1; len(rest) > 0; n = n*3%4093 + 1 {
			n = min(n, len(rest))
			piece := rest[:n]
			rest = rest[n:]
			onLoop(s.session.loop.Loop, func() { c.streams[0].Write(piece) })
		}
	}()
	for _, want := range wantUDP {
		if got := receive(t, video[0]); got != want {
			t.Fatalf("a datagram of %d bytes, want %d", len(got), len(want))
		}
	}
	got := make([]byte, len(wantTCP))
	if _, err := io.ReadFull(p.br, got); err != nil || !bytes.Equal(got, wantTCP) {
		t.Fatalf("by TCP comes something else, %v", err)
	}
}

func TestPlayerUDPRefused(t *testing.T) {
	r, s, c, _ := newUDPRelay(t, false)
	onLoop(s.session.loop.Loop, func() { r.MaxFlowsPerAddress = 1 })
	p := r.player(false)
	setup := func(status int, transport string) {
		t.Helper()
		p.ask(status, "SETUP", gateURL+"/trackID=0", "Transport: "+transport)
	}
	for _, transport := range []string{
		"RTP/AVP;unicast;client_port=53-54", "RTP/AVP;unicast;client_port=0-1", "RTP/AVP;unicast", "RTP/AVP;multicast;client_port=5000-5001",
		"RTP/SAVP;unicast;client_port=5000-5001", "RTP/AVP;unicast;client_port=5000-5000", "RTP/AVP;unicast;client_port=5000-5001;mode=record",
	} {
		setup(461, transport)
	}
	secure := r.player(true)
	secure.ask(461, "SETUP", gateURL+"/trackID=0", "Transport: RTP/AVP;unicast;client_port=5000-5001")
	// However many are asked for, one address gets no more than its share; a destination is not even looked at.
	setup(200, "RTP/AVP;unicast;destination=192.0.2.1;client_port=5000-5001")
	setup(461, "RTP/AVP;unicast;client_port=5002-5003")
	setup(200, "RTP/AVP;unicast;client_port=5002-5003,RTP/AVP/TCP;unicast")
	q := r.player(false)
	q.ask(461, "SETUP", gateURL+"/trackID=0", "Transport: RTP/AVP;unicast;client_port=5000-5001")
	p.Close()
	for n := 1; n > 0; {
		onLoop(s.session.loop.Loop, func() { n = s.session.service("gate").visitors - 2 })
	}
	// A camera that takes something else is none for UDP.
	onLoop(s.session.loop.Loop, func() {
		c.instead = cameraAnswers(200, "Session: 1", "Transport: RTP/AVP;unicast;client_port=1-2")
	})
	q.ask(502, "SETUP", gateURL+"/trackID=0", "Transport: RTP/AVP;unicast;client_port=5000-5001")
	q.expectEnd()
	onLoop(s.session.loop.Loop, func() { c.instead = cameraAnswers(404) })
	q = r.player(false)
	q.ask(404, "SETUP", gateURL+"/trackID=0", "Transport: RTP/AVP;unicast;client_port=5000-5001")
	q.ask(404, "SETUP", gateURL+"/trackID=0", "Transport: RTP/AVP;unicast;client_port=5000-5001")
}

// Whoever has fallen silent is taken for gone, since nothing else would tell.
func TestPlayerUDPSilence(t *testing.T) {
	r, s, c, _ := newUDPRelay(t, false)
	onLoop(s.session.loop.Loop, func() {
		c.instead = func(st *tunnel.Stream, h relay.Header, m *rtsp.Message) bool {
			if string(m.Method) != "SETUP" {
				return false
			}
			return cameraAnswers(200, "Session: 4711;timeout=600", "Transport: "+string(m.Get("Transport")))(st, h, m)
		}
	})
	video, ports := udpPair(t)
	p := r.player(false)
	m := p.ask(200, "SETUP", gateURL+"/trackID=0", "Transport: RTP/AVP;unicast;client_port="+ports)
	if got := string(m.Get("Session")); got != "4711;timeout=60" {
		t.Errorf("Session %q", got)
	}
	p.ask(200, "PLAY", gateURL, "Session: 4711")
	later := func(d time.Duration) (open bool) { // as if nothing had come for d
		onLoop(s.session.loop.Loop, func() {
			v := s.session.loop.players
			v.heard -= int64(d)
			v.check()
			open = v.phase < playClosing
		})
		return open
	}
	if !later(50 * time.Second) {
		t.Fatal("given up after 50 s")
	}
	before := int64(0)
	onLoop(s.session.loop.Loop, func() { before = s.session.loop.players.heard })
	video[1].WriteToUDP([]byte("report"), &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1), Port: int(r.rtp.ports[1])})
	for now := before; now == before; {
		onLoop(s.session.loop.Loop, func() { now = s.session.loop.players.heard })
	}
	if !later(50*time.Second) || later(20*time.Second) {
		t.Fatal("a report does not count, or silence does not")
	}
	p.expectEnd()
}
