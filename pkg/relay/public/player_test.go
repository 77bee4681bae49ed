package public

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"syscall"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

func TestPlayerRouting(t *testing.T) {
	r := newCameraRelay(t, false, func(r *Relay) {})
	r.Reload([]Site{
		{Name: "office", Keys: []string{"k"}, Publish: patterns("https://*.test", "rtsp://*.test", "rtsp://127.0.0.9")},
		{Name: "home", Keys: []string{"k"}, Publish: patterns("rtsp://home.test/a", "rtsps://home.test/b", "https://home.test/c")},
	})
	s := r.connect("office", nil, "gate", "rtsp://cams.test/gate", "yard", "rtsps://cams.test/yard", "web", "https://cams.test/web",
		"root", "rtsp://one.test", "wild", "rtsp://*.test/wild", "address", "rtsp://127.0.0.9/x")
	c := s.camera(&testCamera{})
	for _, tt := range []struct {
		secure bool
		url    string
		want   string // the status, or service and host
	}{
		{false, "rtsp://cams.test/gate", "gate cams.test"},
		{true, "rtsp://cams.test/gate", "gate cams.test"},
		{false, "rtsp://CAMS.test.:8554/gate/", "gate cams.test"},
		{false, "rtsp://user:secret@cams.test/gate?user=a/trackID=1", "gate cams.test"},
		{false, "rtspu://cams.test/gate/a/b", "gate cams.test"},
		{true, "rtsps://cams.test:322/gate", "gate cams.test"},
		{false, "rtsp://cams.test/gates", "404"},
		{false, "rtsp://cams.test/GATE", "404"},
		{false, "rtsp://cams.test", "404"},
		{false, "rtsp://cams.test/yard", "404"}, // it is for those with TLS
		{true, "rtsp://cams.test/yard", "yard cams.test"},
		{true, "rtsp://cams.test/web", "404"}, // no camera
		{false, "rtsp://one.test", "root one.test"},
		{false, "rtsp://one.test/any/thing?x", "root one.test"},
		{false, "rtsp://two.test/wild", "wild two.test"},
		{false, "rtsp://nobody.example/gate", "404"},
		{false, "rtsp://127.0.0.1:8554/gate", "404"}, // nobody knows whose
		{true, "rtsp://127.0.0.1:322/gate", "gate cams.test"},
		{true, "/gate", "gate cams.test"},
		{false, "/gate", "404"},
		{false, "rtsp://127.0.0.9/x", "address 127.0.0.9"},
		{false, "*", "404"},
		{false, "rtsp://cams.test/gate/../yard", "400"},
		{false, "rtsp://cams.test/gate/%2e%2e/yard", "400"},
		{false, "rtsp://cams.test/gate%2f..%2fyard", "400"},
		{false, "rtsp://cams.test//gate", "400"},
		{false, "rtsp://cams.test/%67ate", "400"},
		{false, "rtsp://cams.test/gate\\", "400"},
		{false, "gate", "400"},
		{false, "rtsp://home.test/a", "503"},
		{true, "rtsp://home.test/a/b", "503"},
		{false, "rtsp://home.test/b", "404"},
		{true, "rtsp://home.test/b", "503"},
		{true, "rtsp://home.test/c", "404"},
	} {
		c.mu.Lock()
		c.headers, c.requests = nil, nil
		c.mu.Unlock()
		p := r.player(tt.secure)
		p.send("DESCRIBE", tt.url)
		m := p.answer()
		got := fmt.Sprint(m.Status)
		if m.Status == 200 {
			h := c.header(0)
			got = h.Service + " " + h.Host
			if strings.Contains(c.saw()[0], "secret") {
				t.Errorf("the site saw %q", c.saw()[0])
			}
			if base := string(m.Get("Content-Base")); !strings.HasPrefix(base, "rtsp") {
				t.Errorf("%s is asked for as %s", tt.url, base)
			}
		}
		if got != tt.want {
			t.Errorf("%s (TLS %v): %s, want %s", tt.url, tt.secure, got, tt.want)
		}
		if retry := m.Get("Retry-After"); (m.Status == 503) != (retry != nil) {
			t.Errorf("%s: status %d, Retry-After %q", tt.url, m.Status, retry)
		}
		p.Close()
	}
}

// A camera has its address on https, too, so that nobody else can have it, and its host gets a certificate.
func TestCameraClaims(t *testing.T) {
	published := make(chan []string, 10)
	r := newCameraRelay(t, false, func(r *Relay) { r.Published = func(hosts []string) { published <- hosts } })
	s := r.connect("office", nil, "gate", "rtsp://cams.test/gate", "yard", "rtsps://yard.test")
	for hosts := range published {
		if fmt.Sprint(hosts) == "[cams.test yard.test]" {
			break
		}
	}
	errs := s.demand(nil, "gate", "rtsp://cams.test/gate", "yard", "rtsps://yard.test",
		"a", "https://cams.test/gate", "b", "http://cams.test/gate", "c", "rtsps://cams.test/gate",
		"d", "https://yard.test", "e", "http://yard.test", "f", "https://cams.test")
	for i, want := range []string{"", "", `"gate" has this`, `"gate" has this`, `"gate" has this`, `"yard" has this`, "", ""} {
		if want == "" && errs[i] != "" || !strings.Contains(errs[i], want) {
			t.Errorf("service %d: %q, want %q", i, errs[i], want)
		}
	}
	if l, err := net.Listen("tcp", r.listener("rtsp").String()); err == nil {
		l.Close()
		t.Error("nobody listens for rtsp")
	}
}

func TestPlayerTransport(t *testing.T) {
	r := newCameraRelay(t, false, nil)
	c := r.connect("office", nil, "gate", "rtsp://cams.test/gate").camera(&testCamera{})
	p := r.player(false)
	for _, tt := range []struct{ asked, passed string }{
		{"RTP/AVP/TCP;unicast;interleaved=0-1", "RTP/AVP/TCP;unicast;interleaved=0-1"},
		{"RTP/AVP/TCP;interleaved=4-5;mode=play", "RTP/AVP/TCP;unicast;interleaved=4-5"},
		{"rtp/avp/tcp;unicast", "RTP/AVP/TCP;unicast"},
		{"RTP/AVP;unicast;client_port=5000-5001,RTP/AVP;multicast,RTP/AVP/TCP;unicast;interleaved=2-3", "RTP/AVP/TCP;unicast;interleaved=2-3"},
		{"RTP/AVP/TCP;unicast;destination=192.0.2.1;source=10.0.0.1;interleaved=0-1;ssrc=1", "RTP/AVP/TCP;unicast;interleaved=0-1"},
		{"RTP/AVP;unicast;client_port=5000-5001", ""},
		{"RTP/AVP/UDP;unicast;client_port=5000-5001", ""},
		{"RTP/AVP;multicast", ""},
		{"RTP/AVP/TCP;multicast", ""},
		{"RTP/AVP/TCP;unicast;interleaved=0-1;mode=record", ""},
	} {
		status := 461
		if tt.passed != "" {
			status = 200
		}
		p.ask(status, "SETUP", "rtsp://cams.test/gate/trackID=0", "Transport: "+tt.asked)
		if seen := c.saw(); status == 200 && !strings.HasSuffix(seen[len(seen)-1], "Transport: "+tt.passed) {
			t.Errorf("%s is passed on as %s", tt.asked, seen[len(seen)-1])
		}
	}
	p.ask(461, "SETUP", "rtsp://cams.test/gate/trackID=0")
	p.ask(400, "SETUP", "rtsp://cams.test/gate/trackID=0", "Transport: RTP/AVP/TCP;interleaved=900")
}

func TestPlayerMethods(t *testing.T) {
	r := newCameraRelay(t, false, nil)
	c := r.connect("office", nil, "gate", "rtsp://cams.test/gate").camera(&testCamera{})
	p := r.player(false)
	const url = "rtsp://cams.test/gate"
	p.ask(200, "OPTIONS", "*")
	p.ask(200, "OPTIONS", "rtsp://nobody.example/")
	p.ask(454, "PLAY", url, "Session: 1")
	p.ask(454, "PAUSE", url, "Session: 1")
	p.ask(454, "TEARDOWN", url, "Session: 1")
	p.ask(405, "ANNOUNCE", url)
	p.ask(405, "RECORD", url)
	p.ask(405, "SET_PARAMETER", url, "Content-Length: 4\r\n\r\na: b") // the empty line behind it is none
	p.ask(501, "REDIRECT", url)
	p.ask(501, "describe", url)
	if got := c.saw(); len(got) > 0 {
		t.Errorf("the site saw %q", got)
	}
	p.ask(200, "SET_PARAMETER", url) // which some keep alive with
	p.ask(200, "GET_PARAMETER", url)
}

// What is no RTSP is answered, if it can be, and ends the connection.
func TestPlayerRubbish(t *testing.T) {
	r := newCameraRelay(t, false, nil)
	r.connect("office", nil, "gate", "rtsp://cams.test/gate").camera(&testCamera{})
	for _, tt := range []struct{ in, want string }{
		{"\x16\x03\x01\x02\x00", "400"},
		{"GET / HTTP/1.1\r\nHost: cams.test\r\n\r\n", "400"},
		{"OPTIONS * RTSP/2.0\r\nCSeq: 7\r\n\r\n", "505 7"},
		{"OPTIONS * RTSP/1.0\r\nCSeq: 7\r\nfolded\r\n\r\n", "400 7"},
		{"OPTIONS * RTSP/1.0\r\nCSeq: 7\r\nContent-Length: 70000\r\n\r\n", "413 7"},
		{"OPTIONS rtsp://" + strings.Repeat("x", 3000) + " RTSP/1.0\r\nCSeq: 7\r\n\r\n", "414"},
		{"OPTIONS * RTSP/1.0\r\nCSeq: 7\r\n" + strings.Repeat("A: b\r\n", 200) + "\r\n", "400"},
		{strings.Repeat("x", 20000), "414"},
	} {
		p := r.player(false)
		io.WriteString(p.Conn, tt.in)
		k, m, b, err := p.next()
		if err != nil || k != rtsp.Response {
			t.Errorf("%.40q: got kind %d %q, %v", tt.in, k, b, err)
			continue
		}
		got := fmt.Sprint(m.Status)
		if cseq, ok := m.CSeq(); ok && cseq > 0 {
			got += fmt.Sprint(" ", cseq)
		}
		if got != tt.want {
			t.Errorf("%.40q: %s, want %s", tt.in, got, tt.want)
		}
		p.expectEnd()
	}
	p := r.player(false)
	io.WriteString(p.Conn, "OPTIONS * RTSP/1.0\r\n\r\n")
	if _, m, _, err := p.next(); err != nil || m.Status != 400 {
		t.Errorf("no CSeq: %+v, %v", m, err)
	}
}

// wholeVisit is what a player says from the beginning to the end, and what it gets.
const wholeVisit = "\r\nOPTIONS rtsp://cams.test/gate RTSP/1.0\r\nCSeq: 1\r\n\r\n" +
	"DESCRIBE rtsp://cams.test/gate RTSP/1.0\r\nCSeq: 2\r\nUser-Agent: a\r\nUser-Agent: b\r\n\r\n" +
	"SETUP rtsp://cams.test/gate/trackID=0 RTSP/1.0\r\nCSeq: 3\r\nTransport: RTP/AVP;unicast;client_port=5000-5001\r\n\r\n" +
	"SETUP rtsp://cams.test/gate/trackID=0 RTSP/1.0\r\nCSeq: 4\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n" +
	"$\x01\x00\x04abcd" +
	"PLAY rtsp://cams.test/gate RTSP/1.0\r\nCSeq: 5\r\nSession: 4711\r\n\r\n" +
	"GET_PARAMETER rtsp://cams.test/gate RTSP/1.0\r\nCSeq: 6\r\nSession: 4711\r\nContent-Length: 3\r\n\r\nabc" +
	"ANNOUNCE rtsp://cams.test/gate RTSP/1.0\r\nCSeq: 7\r\n\r\n" +
	"$\x01\x00\x00$\x01\x00\x02hi" +
	"TEARDOWN rtsp://cams.test/gate RTSP/1.0\r\nCSeq: 8\r\nSession: 4711\r\n\r\n"

// How what a player says is cut into pieces changes nothing, and neither do requests that do not wait for
// the answers to those before.
func TestPlayerSplits(t *testing.T) {
	for _, secure := range []bool{false, true} {
		r := newCameraRelay(t, false, nil)
		c := r.connect("office", nil, "gate", "rtsp://cams.test/gate").camera(&testCamera{})
		run := func(pieces ...string) string {
			t.Helper()
			p := r.player(secure)
			defer p.Close()
			for _, piece := range pieces {
				if _, err := io.WriteString(p.Conn, piece); err != nil {
					t.Fatal(err)
				}
			}
			var got strings.Builder
			for i := range 8 {
				k, m, _, err := p.next()
				if err != nil || k != rtsp.Response {
					t.Fatalf("kind %d, %v after %s", k, err, got.String())
				}
				if cseq, _ := m.CSeq(); int(cseq) != i+1 {
					t.Fatalf("the answer to %d comes %dth", cseq, i+1)
				}
				fmt.Fprintf(&got, "%d %d\n", i+1, m.Status)
			}
			c.mu.Lock()
			defer c.mu.Unlock()
			fmt.Fprintf(&got, "%s\n%q", strings.Join(c.requests, "\n"), c.frames)
			c.requests, c.frames = nil, nil
			return got.String()
		}
		want := run(wholeVisit)
		if !strings.HasPrefix(want, "1 200\n2 200\n3 461\n4 200\n5 200\n6 200\n7 405\n8 200\n") || !strings.HasSuffix(want, "\"$\\x01\\x00\\x04abcd$\\x01\\x00\\x00$\\x01\\x00\\x02hi\"") {
			t.Fatalf("in one piece: %s", want)
		}
		step := 1
		if secure || testing.Short() {
			step = 17
		}
		for i := 1; i < len(wholeVisit); i += step {
			if got := run(wholeVisit[:i], wholeVisit[i:]); got != want {
				t.Fatalf("cut at %d:\n%s\nwant\n%s", i, got, want)
			}
		}
		var each []string
		for i := range len(wholeVisit) {
			each = append(each, wholeVisit[i:i+1])
		}
		if got := run(each...); got != want {
			t.Fatalf("byte by byte:\n%s\nwant\n%s", got, want)
		}
	}
}

// What a camera sends arrives as it was, however the stream is cut, frames longer than a message may be included.
func TestPlayerFrames(t *testing.T) {
	r := newCameraRelay(t, false, nil)
	s := r.connect("office", nil, "gate", "rtsp://cams.test/gate")
	c := s.camera(&testCamera{})
	p := r.player(false)
	p.watch("rtsp://cams.test/gate")
	var stream []byte
	for i, n := range []int{0, 1, 4, 1400, 32 << 10, 32<<10 + 1, 65535, 7} {
		stream = rtsp.AppendFrameHead(stream, uint8(i), n)
		stream = append(stream, bytes.Repeat([]byte{byte('a' + i)}, n)...)
	}
	go func() {
		for rest, n := stream, 1; len(rest) > 0; n = n*2%4093 + 1 {
			n = min(n, len(rest))
			piece := rest[:n]
			rest = rest[n:]
			onLoop(s.session.loop.Loop, func() { c.streams[0].Write(piece) })
		}
	}()
	got := make([]byte, len(stream))
	if _, err := io.ReadFull(p.br, got); err != nil || !bytes.Equal(got, stream) {
		t.Fatalf("the frames are others: %v", err)
	}
	// An answer of the edge does not come in the middle of one.
	head := rtsp.AppendFrameHead(nil, 1, 40000)
	onLoop(s.session.loop.Loop, func() { c.streams[0].Write(append(head, bytes.Repeat([]byte("x"), 35000)...)) })
	if _, err := io.ReadFull(p.br, make([]byte, 4+35000)); err != nil {
		t.Fatal(err)
	}
	p.send("ANNOUNCE", "rtsp://cams.test/gate")
	time.Sleep(10 * time.Millisecond) // for what must not happen
	onLoop(s.session.loop.Loop, func() { c.streams[0].Write(bytes.Repeat([]byte("y"), 5000)) })
	rest := make([]byte, 5000)
	if _, err := io.ReadFull(p.br, rest); err != nil || !bytes.Equal(rest, bytes.Repeat([]byte("y"), 5000)) {
		t.Fatalf("the rest of the frame is %.40q, %v", rest, err)
	}
	if m := p.answer(); m.Status != 405 {
		t.Errorf("status %d", m.Status)
	}
}

// Each side's end is the other's.
func TestPlayerEnds(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newCameraRelay(t, portable, nil)
		s := r.connect("office", nil, "gate", "rtsp://cams.test/gate")
		c := s.camera(&testCamera{})
		const url = "rtsp://cams.test/gate"
		ended := func(want int) {
			t.Helper()
			eventually(t, "the site hears of the end", func() bool {
				c.mu.Lock()
				defer c.mu.Unlock()
				return c.ended == want
			})
		}
		p := r.player(false)
		p.watch(url)
		p.Conn.(*net.TCPConn).CloseWrite()
		p.expectEnd()
		ended(1)

		p = r.player(false) // an end behind a request, whose answer is wanted
		p.send("DESCRIBE", url)
		p.Conn.(*net.TCPConn).CloseWrite()
		if m := p.answer(); m.Status != 200 {
			t.Errorf("status %d", m.Status)
		}
		p.expectEnd()
		ended(2)

		p = r.player(false) // a reset
		p.watch(url)
		p.Conn.(*net.TCPConn).SetLinger(0)
		p.Close()
		ended(3)

		p = r.player(false) // the camera's end
		p.watch(url)
		onLoop(s.session.loop.Loop, func() { c.streams[3].CloseWrite() })
		p.expectEnd()

		for _, tt := range []struct {
			end    func(st *tunnel.Stream)
			status int
		}{
			{func(st *tunnel.Stream) { st.CloseWrite() }, 502},
			{func(st *tunnel.Stream) { st.Reset(tunnel.CodeNotFound) }, 404},
			{func(st *tunnel.Stream) { st.Reset(tunnel.CodeUnreachable) }, 502},
			{func(st *tunnel.Stream) { st.Reset(tunnel.CodeTimeout) }, 504},
			{func(st *tunnel.Stream) { st.Reset(tunnel.CodeOverload) }, 503},
			{func(st *tunnel.Stream) { st.Reset(tunnel.CodeInternal) }, 502},
			{func(st *tunnel.Stream) { st.Write([]byte("rubbish\r\n\r\n")) }, 502},
			{func(st *tunnel.Stream) {
				st.Write([]byte(reply("1", 401, "", "WWW-Authenticate: Basic realm=\"camera\"")))
			}, 502},
		} {
			onLoop(s.session.loop.Loop, func() {
				c.instead = func(st *tunnel.Stream, _ relay.Header, _ *rtsp.Message) bool { tt.end(st); return true }
			})
			p := r.player(false)
			m := p.ask(tt.status, "DESCRIBE", url)
			if m.Get("WWW-Authenticate") != nil || (tt.status == 503) != (m.Get("Retry-After") != nil) {
				t.Errorf("%d comes with %q", tt.status, m.Fields)
			}
			p.expectEnd()
		}
		onLoop(s.session.loop.Loop, func() { c.instead = nil })
		eventually(t, "no visitors are left", func() bool {
			visitors := 0
			onLoop(s.session.loop.Loop, func() { visitors = s.session.service("gate").visitors })
			return visitors == 0
		})
	})
}

// A player that does not read stops its own stream, after a bounded number of bytes, and nobody else's.
func TestPlayerStalls(t *testing.T) {
	r := newCameraRelay(t, false, nil)
	s := r.connect("office", nil, "gate", "rtsp://cams.test/gate")
	c := s.camera(&testCamera{})
	deaf, good := r.player(false), r.player(false)
	deaf.Conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	deaf.watch("rtsp://cams.test/gate")
	good.watch("rtsp://cams.test/gate")
	frame := append(rtsp.AppendFrameHead(nil, 0, 1400), make([]byte, 1400)...)
	var sent [2]int
	for range 20000 { // 28 MB for each
		onLoop(s.session.loop.Loop, func() {
			for i, st := range c.streams {
				if st.Pending() < st.HighMark() {
					st.Write(frame)
					sent[i] += len(frame)
				}
			}
		})
		if n := good.br.Buffered(); n < len(frame) {
			good.br.Peek(1)
		}
		if sent[1] > 0 {
			if _, err := io.ReadFull(good.br, make([]byte, len(frame))); err != nil {
				t.Fatal(err)
			}
			sent[1] -= len(frame)
		}
	}
	if sent[1] > 1<<20 {
		t.Errorf("the other player is %d bytes behind", sent[1])
	}
	if sent[0] > 12<<20 {
		t.Errorf("the camera has sent %d bytes to a player that does not read", sent[0])
	}
	good.ask(200, "GET_PARAMETER", "rtsp://cams.test/gate", "Session: 4711")
	deaf.Conn.(*net.TCPConn).SetLinger(0)
	deaf.Close()
	if _, err := deaf.Read(make([]byte, 1)); !errors.Is(err, net.ErrClosed) && !errors.Is(err, syscall.ECONNRESET) {
		t.Error(err)
	}
}

func TestPlayerPolicy(t *testing.T) {
	r := newCameraRelay(t, false, nil)
	s := r.connect("office", nil, "gate", "rtsp://cams.test/gate")
	c := s.camera(&testCamera{})
	const url = "rtsp://cams.test/gate"
	rate := relay.Rate{N: 1, Per: time.Hour, Burst: 2}
	for _, tt := range []struct {
		name   string
		policy relay.Policy
		want   []int // of players, one after the other, who stay
	}{
		{"nothing", relay.Policy{}, []int{200, 200, 200}},
		{"allowed", relay.Policy{Allow: prefixList("127.0.0.0/8")}, []int{200}},
		{"not allowed", relay.Policy{Allow: prefixList("10.0.0.0/8")}, []int{403}},
		{"denied", relay.Policy{Deny: prefixList("127.0.0.1/32")}, []int{403}},
		{"two at a time", relay.Policy{MaxConnections: 2}, []int{200, 200, 503}},
		{"a rate", relay.Policy{ConnectionRate: rate}, []int{200, 200, 503}},
	} {
		if errs := s.demand(&tt.policy, "gate", "rtsp://cams.test/gate"); errs[0] != "" {
			t.Fatal(errs)
		}
		before := len(c.saw())
		passed := 0
		var all []*testPlayer
		for _, status := range tt.want {
			p := r.player(false)
			all = append(all, p)
			p.send("DESCRIBE", url)
			if m := p.answer(); m.Status != status {
				t.Errorf("%s: status %d, want %d", tt.name, m.Status, status)
			}
			if status == 200 {
				passed++
				p.ask(200, "DESCRIBE", url) // counts once
			}
		}
		if n := len(c.saw()) - before; n != 2*passed {
			t.Errorf("%s: the site saw %d requests", tt.name, n)
		}
		for _, p := range all {
			p.Close()
		}
		for n := 1; n > 0; {
			onLoop(s.session.loop.Loop, func() { n = s.session.service("gate").visitors })
		}
	}
}

// One connection goes to cameras of sites on other loops, and each time to the loop of the site.
func TestPlayerMoves(t *testing.T) {
	for _, secure := range []bool{false, true} {
		r := newCameraRelay(t, false, func(r *Relay) {})
		r.Reload([]Site{
			{Name: "office", Keys: []string{"k"}, Publish: patterns("rtsp://cams.test/a")},
			{Name: "home", Keys: []string{"k"}, Publish: patterns("rtsp://cams.test/b")},
		})
		office := r.connect("office", nil, "a", "rtsp://cams.test/a")
		home := r.connect("home", nil, "b", "rtsp://cams.test/b")
		if office.session.loop == home.session.loop {
			t.Fatal("both sites are on one loop")
		}
		office.camera(&testCamera{})
		home.camera(&testCamera{})
		for range 4 {
			p := r.player(secure)
			for _, url := range []string{"rtsp://cams.test/a", "rtsp://cams.test/b", "rtsp://cams.test/a"} {
				p.watch(url)
				p.ask(200, "TEARDOWN", url, "Session: 4711")
			}
			// And all at once.
			for range 3 {
				p.send("DESCRIBE", "rtsp://cams.test/a")
				p.send("DESCRIBE", "rtsp://cams.test/b")
			}
			p.cseq -= 6
			for range 6 {
				p.cseq++
				if m := p.answer(); m.Status != 200 {
					t.Errorf("status %d", m.Status)
				}
			}
			p.Close()
		}
	}
}

// Who comes above the limits is told so.
func TestPlayerFull(t *testing.T) {
	r := newCameraRelay(t, false, func(r *Relay) { r.MaxPerAddress = 1 })
	r.connect("office", nil, "gate", "rtsp://cams.test/gate").camera(&testCamera{})
	p := r.player(false)
	p.ask(200, "DESCRIBE", "rtsp://cams.test/gate")
	q := r.player(false)
	q.ask(503, "OPTIONS", "*")
	q.expectEnd()
	p.ask(200, "DESCRIBE", "rtsp://cams.test/gate")
}

// A request waits for a site that is about to find a relay which has just begun, and for the stand-by that
// takes over.
func TestPlayerHeld(t *testing.T) {
	r := newCameraRelay(t, false, func(r *Relay) { r.Grace = time.Minute })
	p := r.player(true)
	p.send("DESCRIBE", "rtsp://cams.test/gate")
	p.send("DESCRIBE", "rtsp://cams.test/gate/2")
	camera := target(t, func(c net.Conn, br *bufio.Reader) {
		for n := 2; ; {
			switch line, err := br.ReadString('\n'); {
			case err != nil:
				return
			case line == "\r\n":
				io.WriteString(c, reply(fmt.Sprint(n-1), 200, ""))
				n++
			}
		}
	})
	a := r.connect("office", map[string]string{"gate": camera}, "gate", "rtsp://cams.test/gate")
	p.cseq--
	if m := p.answer(); m.Status != 200 {
		t.Errorf("status %d", m.Status)
	}
	p.cseq++
	if m := p.answer(); m.Status != 200 {
		t.Errorf("status %d", m.Status)
	}
	b := r.connectAs(relay.Hello{Site: "office", Key: "other"}, nil, "gate", "rtsp://cams.test/gate")
	cb := b.camera(&testCamera{})
	onLoop(a.session.loop.Loop, a.cut)
	q := r.player(false)
	q.ask(200, "DESCRIBE", "rtsp://cams.test/gate")
	if len(cb.saw()) != 1 {
		t.Error("the stand-by was not asked")
	}
}

// What the other listeners do with connections is done with players' too.
func TestPlayerConnections(t *testing.T) {
	r := newCameraRelay(t, false, func(r *Relay) {
		r.Proxies = prefixList("127.0.0.9/32")
		r.RTP = "127.0.0.1:0"
	})
	r.Reload([]Site{{Name: "office", Keys: []string{"k"}, Publish: patterns("rtsp://*.test", "tls://raw.test")},
		{Name: "home", Keys: []string{"k"}, Publish: patterns("tls://away.test")}})
	s := r.connect("office", nil, "gate", gateURL, "raw", "tls://raw.test")
	c := s.camera(&testCamera{})

	// The name of a service that ends its TLS itself is not one that we end TLS for.
	for _, name := range []string{"raw.test", "away.test"} {
		conn, err := tls.Dial("tcp", r.listener("rtsps").String(), &tls.Config{InsecureSkipVerify: true, ServerName: name})
		if err == nil {
			conn.Close()
			t.Errorf("a handshake for %s", name)
		}
	}
	// Whatever protocol a player offers by ALPN, it is RTSP.
	conn, err := tls.Dial("tcp", r.listener("rtsps").String(), &tls.Config{InsecureSkipVerify: true, ServerName: "cams.test", NextProtos: []string{"rtsp/2.0", "h2"}})
	if err != nil {
		t.Fatal(err)
	}
	if p := conn.ConnectionState().NegotiatedProtocol; p != "" {
		t.Errorf("protocol %q", p)
	}
	conn.Close()

	// Behind a proxy the visitor is who that says, and has no UDP, which would not come from the proxy.
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 9)}}
	nc, err := d.Dial("tcp", r.listener("rtsp").String())
	if err != nil {
		t.Skip(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(time.Minute))
	p := &testPlayer{t: t, Conn: nc, br: bufio.NewReader(nc)}
	io.WriteString(nc, "PROXY TCP4 192.0.2.7 127.0.0.1 4000 554\r\n")
	if errs := s.demandCamera(&relay.Camera{UDP: true}); errs != "" {
		t.Fatal(errs)
	}
	p.ask(200, "DESCRIBE", gateURL)
	if h := c.header(0); h.Visitor.String() != "192.0.2.7:4000" {
		t.Errorf("the visitor is %s", h.Visitor)
	}
	p.ask(461, "SETUP", gateURL, "Transport: RTP/AVP;unicast;client_port=5000-5001")
}

// demandCamera announces the service gate with that.
func (ts *testSite) demandCamera(camera *relay.Camera) string {
	list := announcements("gate", gateURL)
	list[0].Camera = camera
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(ts.session.loop.Loop, func() { ts.announce(list, replies) })
	return (<-replies)[0].Error
}

// A certificate lets players in as it does browsers.
func TestPlayerCertificate(t *testing.T) {
	r := newCameraRelay(t, false, nil)
	s := r.connect("office", nil)
	s.camera(&testCamera{})
	ours, other := newCA(t, "ours", nil), newCA(t, "other", nil)
	if errs := s.demand(&relay.Policy{ClientCA: ours.pem()}, "gate", "rtsps://cams.test/gate"); errs[0] != "" {
		t.Fatal(errs)
	}
	for _, tt := range []struct {
		name   string
		cert   *tls.Certificate
		sni    string
		url    string
		status int
	}{
		{"good", ours.issue(nil), "cams.test", gateURL, 200},
		{"good, by address", ours.issue(nil), "cams.test", "rtsps://127.0.0.1:322/gate", 200},
		{"none", nil, "cams.test", gateURL, 403},
		{"of another authority", other.issue(nil), "cams.test", gateURL, 403},
		{"on a connection for another name", ours.issue(nil), "app.test", gateURL, 404},
	} {
		cfg := &tls.Config{InsecureSkipVerify: true, ServerName: tt.sni}
		if tt.cert != nil {
			cfg.Certificates = []tls.Certificate{*tt.cert}
		}
		conn, err := tls.Dial("tcp", r.listener("rtsps").String(), cfg)
		if err != nil {
			t.Fatalf("%s: %v", tt.name, err)
		}
		conn.SetDeadline(time.Now().Add(time.Minute))
		p := &testPlayer{t: t, Conn: conn, br: bufio.NewReader(conn)}
		p.send("DESCRIBE", tt.url)
		if m := p.answer(); m.Status != tt.status {
			t.Errorf("%s: status %d %s", tt.name, m.Status, m.Reason)
		}
		conn.Close()
	}
}
