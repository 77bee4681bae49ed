package public

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/binary"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	pionrtp "github.com/pion/rtp"
	xhttp2 "golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

var socketKey = &websocket.Key{0x37, 0xfa, 0x21, 0x3d}

const socketHead = "GET /gate HTTP/1.1\r\nHost: cams.test\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: rtsp.onvif.org\r\n\r\n"

const socketAnswer = "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
	"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\nSec-WebSocket-Protocol: rtsp.onvif.org\r\n\r\n"

// message is one of a player.
func message(op websocket.Opcode, s string) string {
	return string(websocket.AppendFrame(nil, op, []byte(s), socketKey))
}

// part is a frame that is not the last one of its message.
func part(op websocket.Opcode, s string) string {
	b := websocket.AppendFrame(nil, op, []byte(s), socketKey)
	b[0] &^= 0x80
	return string(b)
}

// sentMessages takes apart what a player gets behind the handshake.
func sentMessages(t *testing.T, s string) (list []string, controls []string) {
	t.Helper()
	var d websocket.Decoder
	b := []byte(s)
	message := ""
	for len(b) > 0 {
		ev, n, err := d.Next(b)
		if err != nil {
			t.Fatalf("%q: %v", s, err)
		}
		b = b[n:]
		switch ev.Op {
		case websocket.None:
			t.Fatalf("%q is left", b)
		case websocket.Binary:
			if message += string(ev.Payload); ev.Final {
				list = append(list, message)
				message = ""
			}
		case websocket.Ping, websocket.Pong, websocket.Close:
			controls = append(controls, string([]byte{byte(ev.Op)})+string(ev.Payload))
		default:
			t.Fatalf("opcode %d", ev.Op)
		}
	}
	return list, controls
}

func closed(status uint16) string {
	return string(binary.BigEndian.AppendUint16([]byte{byte(websocket.Close)}, status))
}

// What comes is the payload of messages, however they are cut.
func TestSocket(t *testing.T) {
	in := message(websocket.Binary, options) + message(websocket.Ping, "hi") + message(websocket.Text, describe) +
		part(websocket.Binary, rtcp[:3]) + message(websocket.Pong, "") + part(0, rtcp[3:5]) + message(0, rtcp[5:]) +
		message(websocket.Binary, "") + message(websocket.Binary, teardown[:9]) + message(websocket.Binary, teardown[9:]+strings.Repeat(rtcp, 20))
	want := options + describe + rtcp + teardown + strings.Repeat(rtcp, 20)
	carrying(t, func(t *testing.T, c *tunnelTest) {
		run := func(pieces ...string) {
			t.Helper()
			c.players = nil
			v := c.visitor()
			for _, s := range pieces {
				v.send(s)
			}
			p := c.player()
			if string(p.in) != want || p.how != "rtsp-ws" || p.service.name != "gate" {
				t.Fatalf("%d pieces: heard %q, %+v", len(pieces), p.in, p)
			}
			s := v.got()
			if !strings.HasPrefix(s, socketAnswer) {
				t.Fatalf("%d pieces: %q", len(pieces), s)
			}
			if list, controls := sentMessages(t, s[len(socketAnswer):]); list != nil || len(controls) != 1 || controls[0] != "\x0ahi" {
				t.Fatalf("%d pieces: got %q %q", len(pieces), list, controls)
			}
			v.send(message(websocket.Close, "\x03\xe9bye"))
			if _, controls := sentMessages(t, v.got()); !p.closed || p.err != nil || !v.fin || len(controls) != 1 || controls[0] != closed(1001) {
				t.Fatalf("closed %v %v, %q", p.closed, p.err, controls)
			}
			v.sendEOF()
			if n := c.admission.connected(); n != 0 {
				t.Fatalf("%d visitors are left", n)
			}
		}
		all := socketHead + in
		run(all)
		run(strings.Split(all, "")...)
		for i := 1; i < len(all); i++ {
			run(all[:i], all[i:])
		}
	})
}

// What goes out in a turn is one message, which ends where one of RTSP does.
func TestSocketWrites(t *testing.T) {
	carrying(t, func(t *testing.T, c *tunnelTest) {
		v := c.visitor()
		v.send(socketHead)
		v.got()
		p := c.player()
		frame := func(n int) string {
			return "$\x00" + string(binary.BigEndian.AppendUint16(nil, uint16(n))) + strings.Repeat("x", n)
		}
		expect := func(want ...string) {
			t.Helper()
			list, controls := sentMessages(t, v.got())
			if strings.Join(list, "|") != strings.Join(want, "|") || controls != nil {
				t.Fatalf("got %.300q %q, want %.300q", list, controls, want)
			}
		}
		write := func(list ...string) {
			c.on(func() {
				for _, s := range list {
					p.end.Write([]byte(s))
				}
			})
		}
		answer := "RTSP/1.0 200 OK\r\nCSeq: 1\r\n\r\n"
		write(frame(10), answer, frame(1400))
		expect(frame(10) + answer + frame(1400))
		write(frame(10)[:5])
		expect()
		write(frame(10)[5:], answer[:20])
		expect(frame(10))
		write(answer[20:] + frame(20))
		expect(answer + frame(20))

		// As much as may be in one message.
		many, whole := "", ""
		for len(many) < 200<<10 {
			many += frame(1400)
		}
		for n := len(frame(1400)); len(whole)+n <= maxSocketGather; {
			whole += frame(1400)
		}
		write(many)
		var got string
		list, _ := sentMessages(t, v.got())
		for _, s := range list {
			if len(s) > maxSocketGather || !strings.HasPrefix(s, "$") {
				t.Errorf("%d bytes that begin with %q", len(s), s[:1])
			}
			got += s
		}
		if got != many || list[0] != whole {
			t.Errorf("%d bytes of %d, the first message has %d", len(got), len(many), len(list[0]))
		}
		write(frame(0xffff), frame(0xffff))
		expect(frame(0xffff), frame(0xffff))

		// What is no RTSP goes out as it comes, and what is not whole goes before the end.
		write(frame(10), frame(10)[:7])
		expect(frame(10))
		c.on(p.end.CloseWrite)
		list, controls := sentMessages(t, v.got())
		if len(list) != 1 || list[0] != frame(10)[:7] || len(controls) != 1 || controls[0] != closed(1000) || !v.fin {
			t.Errorf("got %q %q", list, controls)
		}
		write("late")
		v.send(message(websocket.Binary, options))
		if string(p.in) != options || v.got() != "" {
			t.Errorf("heard %q", p.in)
		}
		v.send(message(websocket.Close, ""))
		v.sendEOF()
		if !p.closed || p.err != nil || c.admission.connected() != 0 {
			t.Errorf("closed %v, %v", p.closed, p.err)
		}
	})
}

func TestSocketViolations(t *testing.T) {
	for in, status := range map[string]uint16{
		"\x82\x05Hello":    1002, // not masked
		"\xc2\x80abcd":     1002,
		part(0, "x"):       1002,
		"GET / HTTP/1.1":   1002,
		message(3, "x"):    1002,
		"\x88\x81abcd\x00": 1002,
	} {
		carrying(t, func(t *testing.T, c *tunnelTest) {
			v := c.visitor()
			v.send(socketHead + message(websocket.Binary, options) + in + message(websocket.Binary, describe))
			p := c.player()
			_, controls := sentMessages(t, strings.TrimPrefix(v.got(), socketAnswer))
			if string(p.in) != options || !p.closed || p.err == nil || !v.fin || len(controls) != 1 || !strings.HasPrefix(controls[0], closed(status)) {
				t.Errorf("%q: heard %q, closed %v, %v, %q", in, p.in, p.closed, p.err, controls)
			}
			v.sendEOF()
			if c.admission.connected() != 0 {
				t.Errorf("%q: a visitor is left", in)
			}
		})
	}
}

func TestSocketRefused(t *testing.T) {
	for name, tt := range map[string]struct {
		change [2]string
		status string
	}{
		"version":          {[2]string{"Version: 13", "Version: 8"}, "426"},
		"key":              {[2]string{"dGhl", "d"}, "400"},
		"method":           {[2]string{"GET", "PUT"}, "400"},
		"body":             {[2]string{"Upgrade:", "Content-Length: 1\r\nUpgrade:"}, "400"},
		"no such host":     {[2]string{"cams.test", "hall.test"}, "404"},
		"another protocol": {[2]string{"rtsp.onvif.org", "mqtt"}, "404"},
		"HTTP/1.0":         {[2]string{"HTTP/1.1", "HTTP/1.0"}, "404"},
	} {
		carrying(t, func(t *testing.T, c *tunnelTest) {
			v := c.visitor()
			v.send(strings.Replace(socketHead, tt.change[0], tt.change[1], 1))
			if s := v.got(); !strings.HasPrefix(s, "HTTP/1.1 "+tt.status) || len(c.players) != 0 {
				t.Errorf("%s: %q, %d players", name, s, len(c.players))
			}
		})
	}
}

// A page of another server may not show a camera that only some addresses may see.
func TestSocketOrigin(t *testing.T) {
	with := func(p *relay.Policy) *policy {
		made, err := newPolicy(p, "culvert")
		if err != nil {
			t.Fatal(err)
		}
		return made
	}
	some := with(&relay.Policy{Allow: []netip.Prefix{netip.MustParsePrefix("192.0.2.0/24")}})
	password := with(&relay.Policy{Allow: some.source.Allow, Users: map[string]string{
		"alice": "$argon2id$v=19$m=8,t=1,p=1$c29tZXNhbHRzb21lc2FsdA$QgqUmEPgqIGAkFcRXSXHwJXmeWBOdUwzk8Kyo7QiQBY"}})
	for _, tt := range []struct {
		policy       *policy
		path, origin string
		status       string
	}{
		{nil, "/gate", "", "101"},
		{nil, "/gate", "https://evil.test", "101"},
		{some, "/gate", "", "101"},
		{some, "/gate", "https://CAMS.test:8443", "101"},
		{some, "/gate", "https://evil.test", "403"},
		{some, "/gate", "null", "403"},
		{some, "/gate", "https://cams.test.evil.test", "403"},
		{password, "/gate", "https://evil.test", "101"},
		{nil, "/", "", "101"},
		{nil, "/", "http://cams.test", "101"},
		{nil, "/", "https://evil.test", "403"},
	} {
		carrying(t, func(t *testing.T, c *tunnelTest) {
			for _, s := range c.site.session.services {
				s.policy.Store(tt.policy)
			}
			v := c.visitor()
			head := strings.Replace(socketHead, "/gate", tt.path, 1)
			if tt.origin != "" {
				head = strings.Replace(head, "Upgrade:", "Origin: "+tt.origin+"\r\nUpgrade:", 1)
			}
			v.send(head)
			if s := v.got(); !strings.HasPrefix(s, "HTTP/1.1 "+tt.status) {
				t.Errorf("%s from %q: %.40q, want %s", tt.path, tt.origin, s, tt.status)
			}
		})
	}
}

// A WebSocket at a path that is no camera's is for any one of the host.
func TestSocketOfAnyCamera(t *testing.T) {
	carrying(t, func(t *testing.T, c *tunnelTest) {
		for path, bound := range map[string]string{"/": "", "/rtsp-over-websocket": "", "/gate/rtsp-over-websocket": "gate", "/yard": "yard", "/yard/": "yard"} {
			c.players = nil
			v := c.visitor()
			v.send(strings.Replace(socketHead, "/gate", path, 1) + message(websocket.Binary, options))
			p := c.player()
			if string(p.in) != options || v.got() != socketAnswer || bound == "" && p.service != nil || bound != "" && p.service.name != bound {
				t.Errorf("%s: heard %q, %+v", path, p.in, p.service)
			}
			if _, ok := p.end.(mover); !ok {
				t.Error("it cannot be moved")
			}
		}
	})
}

func TestSocketEnds(t *testing.T) {
	for name, tt := range map[string]struct {
		do       func(c *tunnelTest, p *tunnelPlayer, v *memEnd)
		eof, err bool
	}{
		"FIN":   {func(c *tunnelTest, p *tunnelPlayer, v *memEnd) { v.sendEOF(); c.on(p.end.CloseWrite) }, true, false},
		"reset": {func(c *tunnelTest, p *tunnelPlayer, v *memEnd) { v.reset() }, false, true},
		"Close": {func(c *tunnelTest, p *tunnelPlayer, v *memEnd) {
			c.on(func() { p.end.Write([]byte(rtcp)); p.end.Close(); p.end.Close() })
			if list, controls := sentMessages(c.t.(*testing.T), strings.TrimPrefix(v.got(), socketAnswer)); len(list) != 1 || len(controls) != 1 {
				c.t.Errorf("got %q %q", list, controls)
			}
			v.send(message(websocket.Binary, options))
		}, false, false},
		"Abort": {func(c *tunnelTest, p *tunnelPlayer, v *memEnd) {
			c.on(func() { p.end.Write([]byte("$")); p.end.Abort(errDeadline) })
		}, false, true},
		"shutdown": {func(c *tunnelTest, p *tunnelPlayer, v *memEnd) { c.Core.Close() }, false, true},
	} {
		carrying(t, func(t *testing.T, c *tunnelTest) {
			v := c.visitor()
			v.send(socketHead)
			p := c.player()
			tt.do(c, p, v)
			time.Sleep(time.Minute)
			synctest.Wait()
			if !p.closed || (p.err != nil) != tt.err || p.eof != tt.eof || !v.over {
				t.Errorf("%s: closed %v, %v, eof %v; over %v", name, p.closed, p.err, p.eof, v.over)
			}
			if n := c.admission.connected(); n != 0 {
				t.Errorf("%s: %d visitors are left", name, n)
			}
		})
	}
}

// stuffed is an End whose peer reads nothing.
type stuffed struct {
	evloop.End
	pending int
}

func (e *stuffed) Write(b []byte) { e.pending += len(b) }
func (e *stuffed) Pending() int   { return e.pending }
func (e *stuffed) HighMark() int  { return 4096 }

// Who sends pings and reads no answers has not all of them kept for him.
func TestSocketPings(t *testing.T) {
	end := new(stuffed)
	w := &rtspSocket{conn: end}
	w.frames.Masked = true
	ping := websocket.AppendFrame(nil, websocket.Ping, make([]byte, 100), &websocket.Key{1, 2, 3, 4})
	for range 1000 {
		if n := w.OnData(ping); n != len(ping) {
			t.Fatalf("%d bytes were used", n)
		}
	}
	if end.pending < 4096 || end.pending > 4096+2*len(ping) {
		t.Errorf("%d bytes wait", end.pending)
	}
}

func TestSocketPause(t *testing.T) {
	carrying(t, func(t *testing.T, c *tunnelTest) {
		v := c.visitor()
		v.send(socketHead + message(websocket.Binary, options))
		p := c.player()
		c.on(p.end.Pause)
		var want bytes.Buffer
		for range 100 {
			v.send(message(websocket.Binary, describe))
			want.WriteString(describe)
		}
		if string(p.in) != options {
			t.Errorf("a paused one heard %d bytes", len(p.in))
		}
		c.on(p.end.Resume)
		if string(p.in) != options+want.String() {
			t.Errorf("heard %d bytes of %d", len(p.in), want.Len())
		}
	})
}

// A client of gortsplib plays over both, on either listener, whatever loop it comes to.
func TestTunnelsOfGortsplib(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newCameraRelay(t, portable, nil)
		s := r.connect("office", nil, "gate", "rtsp://cams.test/gate", "yard", "rtsp://cams.test/yard")
		s.camera(&testCamera{instead: func(st *tunnel.Stream, _ relay.Header, m *rtsp.Message) bool {
			if string(m.Method) != "PLAY" {
				return false
			}
			cseq, _ := m.CSeq()
			st.Write([]byte(reply(fmt.Sprint(cseq), 200, "", "Session: 4711")))
			for i := range 10 {
				p := pionrtp.Packet{Header: pionrtp.Header{Version: 2, PayloadType: 96, Marker: true, SequenceNumber: uint16(i), SSRC: 1}, Payload: []byte{0x65, 1, 2, 3}}
				b, err := p.Marshal()
				if err != nil {
					t.Error(err)
				}
				st.Write(append(rtsp.AppendFrameHead(nil, 0, len(b)), b...))
			}
			return true
		}})
		for _, way := range []gortsplib.Tunnel{gortsplib.TunnelHTTP, gortsplib.TunnelWebSocket} {
			for _, secure := range []bool{false, true} {
				for range 4 { // two loops, and the kernel chooses
					scheme, to := "rtsp", r.http
					if secure {
						scheme, to = "rtsps", r.https
					}
					tcp := gortsplib.ProtocolTCP
					c := &gortsplib.Client{
						Scheme: scheme, Host: "cams.test:80", Tunnel: way, Protocol: &tcp,
						TLSConfig: &tls.Config{InsecureSkipVerify: true, ServerName: "cams.test"},
						DialContext: func(ctx context.Context, network, _ string) (net.Conn, error) {
							return new(net.Dialer).DialContext(ctx, network, to)
						},
					}
					if err := c.Start(); err != nil {
						t.Fatal(err)
					}
					u, err := base.ParseURL(scheme + "://cams.test:80/gate")
					if err != nil {
						t.Fatal(err)
					}
					desc, _, err := c.Describe(u)
					if err != nil {
						t.Fatalf("%v, secure %v: %v", way, secure, err)
					}
					if err := c.SetupAll(desc.BaseURL, desc.Medias); err != nil {
						t.Fatal(err)
					}
					got := make(chan int, 20)
					c.OnPacketRTPAny(func(_ *description.Media, _ format.Format, p *pionrtp.Packet) { got <- len(p.Payload) })
					if _, err := c.Play(nil); err != nil {
						t.Fatal(err)
					}
					for range 10 {
						select {
						case <-got:
						case <-time.After(time.Minute):
							t.Fatal("packets are missing")
						}
					}
					c.Close()
				}
			}
		}
		waitFor(t, func() bool { return r.admission.connected() == 0 })
		onLoop(s.session.loop.Loop, func() {
			if ts := s.session.loop.tunnels; len(ts.all) != 0 || ts.waiting != 0 {
				t.Errorf("left: %+v", ts)
			}
		})
	})
}

// Browsers ask for a WebSocket by HTTP/2 if they have a connection of it.
func TestSocketOverHTTP2(t *testing.T) {
	r := newCameraRelay(t, false, nil)
	s := r.connect("office", nil, "gate", "rtsp://cams.test/gate")
	cam := s.camera(&testCamera{})
	nc, err := tls.Dial("tcp", r.https, &tls.Config{InsecureSkipVerify: true, ServerName: "cams.test", NextProtos: []string{"h2"}})
	if err != nil {
		t.Fatal(err)
	}
	defer nc.Close()
	nc.SetDeadline(time.Now().Add(time.Minute))
	io.WriteString(nc, xhttp2.ClientPreface)
	fr := xhttp2.NewFramer(nc, nc)
	fr.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	fr.WriteSettings()
	var block bytes.Buffer
	enc := hpack.NewEncoder(&block)
	ask := func(id uint32, version string) {
		block.Reset()
		for _, f := range [][2]string{{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "https"}, {":authority", "cams.test"}, {":path", "/gate"},
			{"sec-websocket-version", version}, {"sec-websocket-protocol", "x, rtsp.onvif.org"}} {
			enc.WriteField(hpack.HeaderField{Name: f[0], Value: f[1]})
		}
		fr.WriteHeaders(xhttp2.HeadersFrameParam{StreamID: id, BlockFragment: block.Bytes(), EndHeaders: true})
	}
	// read returns the next head, or the next data, of a stream; and whether that is its end.
	read := func(id uint32) (head map[string]string, data []byte, end bool) {
		t.Helper()
		for {
			f, err := fr.ReadFrame()
			if err != nil {
				t.Fatal(err)
			}
			if f.Header().StreamID != id {
				continue
			}
			switch f := f.(type) {
			case *xhttp2.MetaHeadersFrame:
				head = make(map[string]string)
				for _, h := range f.Fields {
					head[h.Name] = h.Value
				}
				return head, nil, f.StreamEnded()
			case *xhttp2.DataFrame:
				return nil, bytes.Clone(f.Data()), f.StreamEnded()
			}
		}
	}
	ask(1, "8")
	if head, _, _ := read(1); head[":status"] != "426" || head["sec-websocket-version"] != "13" {
		t.Errorf("an old one is answered by %v", head)
	}
	ask(3, "13")
	if head, _, _ := read(3); head[":status"] != "200" || head["sec-websocket-protocol"] != "rtsp.onvif.org" || head["sec-websocket-accept"] != "" {
		t.Fatalf("answered by %v", head)
	}
	send := func(s string) { fr.WriteData(3, false, []byte(s)) }
	var d websocket.Decoder
	var b []byte
	over := false // the relay has sent its end of stream
	next := func() (websocket.Opcode, string) {
		t.Helper()
		var got []byte
		for {
			ev, n, err := d.Next(b)
			if err != nil {
				t.Fatal(err)
			}
			b = b[n:]
			if ev.Op != websocket.None {
				if got = append(got, ev.Payload...); ev.Final {
					return ev.Op, string(got)
				}
				continue
			}
			_, b, over = read(3)
		}
	}
	send(message(websocket.Binary, options))
	if op, s := next(); op != websocket.Binary || !strings.HasPrefix(s, "RTSP/1.0 200 ") {
		t.Errorf("OPTIONS is answered by %q", s)
	}
	send(message(websocket.Text, describe[:20]) + message(websocket.Ping, "?") + message(websocket.Binary, describe[20:]))
	if op, s := next(); op != websocket.Pong || s != "?" {
		t.Errorf("a ping is answered by %d %q", op, s)
	}
	if op, s := next(); op != websocket.Binary || !strings.HasSuffix(s, testSDP) || len(cam.saw()) != 1 {
		t.Errorf("DESCRIBE is answered by %q, the camera saw %q", s, cam.saw())
	}
	send(message(websocket.Close, "\x03\xe8"))
	if op, s := next(); op != websocket.Close || s != "\x03\xe8" {
		t.Errorf("the end is %d %q", op, s)
	}
	if !over {
		if _, rest, end := read(3); len(rest) != 0 || !end {
			t.Errorf("behind it comes %q", rest)
		}
	}
	waitFor(t, func() (gone bool) {
		onLoop(s.session.loop.Loop, func() { gone = s.session.services[0].visitors == 0 })
		return gone
	})
}
