package public

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// newCameraRelay is newTestRelay with listeners for players.
func newCameraRelay(t testing.TB, portable bool, change func(*Relay)) *testRelay {
	t.Helper()
	return newTestRelay(t, portable, func(r *Relay) {
		r.RTSP, r.RTSPS = "127.0.0.1:0", "127.0.0.1:0"
		if change != nil {
			change(r)
		}
	})
}

// testCamera stands in for a private relay with cameras: it answers requests on streams as a plain RTSP
// server would.
type testCamera struct {
	// instead, if not nil, gets each request first, on the loop; if it returns true, it is answered.
	instead func(st *tunnel.Stream, h relay.Header, m *rtsp.Message) bool

	mu        sync.Mutex
	requests  []string // method, URL and fields of each, in order
	headers   []relay.Header
	streams   []*tunnel.Stream
	frames    []byte // from players
	responses []int  // status of those to what it has asked
	ended     int    // streams whose player has finished
}

const testSDP = "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=0\r\n"

// camera has a site serve cameras.
func (ts *testSite) camera(c *testCamera) *testCamera {
	ts.handle(func(st *tunnel.Stream, h relay.Header) bool {
		c.mu.Lock()
		c.headers = append(c.headers, h)
		c.streams = append(c.streams, st)
		c.mu.Unlock()
		var d rtsp.Demux
		var m rtsp.Message
		st.SetHandler(&funcHandler{data: func(b []byte) (used int) {
			for used < len(b) {
				k, n, err := d.Next(b[used:], &m)
				if err != nil {
					ts.t.Errorf("the site gets %q: %v", b[used:], err)
					return len(b)
				}
				switch k {
				case rtsp.None:
					return used
				case rtsp.Request:
					c.request(st, h, &m)
				case rtsp.Frame:
					c.mu.Lock()
					c.frames = append(c.frames, b[used:used+n]...)
					c.mu.Unlock()
				case rtsp.Response:
					c.mu.Lock()
					c.responses = append(c.responses, m.Status)
					c.mu.Unlock()
				default:
					ts.t.Errorf("the site gets kind %d", k)
				}
				used += n
			}
			return used
		}, eof: func() {
			c.mu.Lock()
			c.ended++
			c.mu.Unlock()
			st.CloseWrite()
		}})
		return true
	})
	return c
}

func (c *testCamera) request(st *tunnel.Stream, h relay.Header, m *rtsp.Message) {
	line := string(m.Method) + " " + string(m.URL)
	for _, f := range m.Fields {
		line += " | " + string(f.Name) + ": " + string(f.Value)
	}
	c.mu.Lock()
	c.requests = append(c.requests, line)
	c.mu.Unlock()
	if c.instead != nil && c.instead(st, h, m) {
		return
	}
	cseq := string(m.Get("CSeq"))
	switch string(m.Method) {
	case "DESCRIBE":
		st.Write([]byte(reply(cseq, 200, testSDP, "Server: Acme Camera 1.0", "Content-Base: "+string(m.URL)+"/", "Content-Type: application/sdp")))
	case "SETUP":
		st.Write([]byte(reply(cseq, 200, "", "Session: 4711;timeout=60", "Transport: "+string(m.Get("Transport"))+";source=10.0.0.20;ssrc=1234")))
	default:
		st.Write([]byte(reply(cseq, 200, "", "Session: 4711")))
	}
}

// saw returns the requests that have come to the site.
func (c *testCamera) saw() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.requests)
}

// header is that of a stream, in order.
func (c *testCamera) header(i int) relay.Header {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.headers[i]
}

// reply is the text of an answer.
func reply(cseq string, status int, body string, fields ...string) string {
	var b []rtsp.Field
	for _, f := range append([]string{"CSeq: " + cseq}, fields...) {
		name, value, _ := strings.Cut(f, ": ")
		b = append(b, rtsp.Field{Name: []byte(name), Value: []byte(value)})
	}
	return string(rtsp.AppendResponse(nil, status, "", b, []byte(body)))
}

// testPlayer is a raw player.
type testPlayer struct {
	t testing.TB
	net.Conn
	br   *bufio.Reader
	cseq int
}

// player connects a player, with TLS for cams.test or without.
func (r *testRelay) player(secure bool) *testPlayer {
	r.t.Helper()
	name := "rtsp"
	if secure {
		name = "rtsps"
	}
	c, err := net.Dial("tcp", r.listener(name).String())
	if err != nil {
		r.t.Fatal(err)
	}
	if secure {
		c = tls.Client(c, &tls.Config{InsecureSkipVerify: true, ServerName: "cams.test"})
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	r.t.Cleanup(func() { c.Close() })
	return &testPlayer{t: r.t, Conn: c, br: bufio.NewReader(c)}
}

// send sends a request, with the next CSeq.
func (p *testPlayer) send(method, url string, fields ...string) {
	p.t.Helper()
	p.cseq++
	var b strings.Builder
	fmt.Fprintf(&b, "%s %s RTSP/1.0\r\nCSeq: %d\r\n", method, url, p.cseq)
	for _, f := range fields {
		b.WriteString(f + "\r\n")
	}
	if _, err := io.WriteString(p.Conn, b.String()+"\r\n"); err != nil {
		p.t.Fatal(err)
	}
}

// next reads a message or a frame.
func (p *testPlayer) next() (k rtsp.Kind, m *rtsp.Message, frame []byte, err error) {
	var d rtsp.Demux
	m = new(rtsp.Message)
	for n := 1; ; n++ {
		b, err := p.br.Peek(n)
		if err != nil {
			return rtsp.None, nil, nil, err
		}
		if n = p.br.Buffered(); n > len(b) {
			b, _ = p.br.Peek(n)
		}
		k, used, err := d.Next(b, m)
		if err != nil {
			p.t.Fatalf("got %q: %v", b, err)
		}
		if k == rtsp.None {
			continue
		}
		m = m.Clone()
		frame = bytes.Clone(b[:used])
		p.br.Discard(used)
		return k, m, frame, nil
	}
}

// answer reads the answer to the last request, in words: the status and the fields.
func (p *testPlayer) answer() *rtsp.Message {
	p.t.Helper()
	k, m, b, err := p.next()
	if err != nil || k != rtsp.Response {
		p.t.Fatalf("got kind %d %q, %v, want an answer", k, b, err)
	}
	if cseq, _ := m.CSeq(); int(cseq) != p.cseq {
		p.t.Fatalf("the answer to %d, want that to %d: %q", cseq, p.cseq, b)
	}
	return m
}

// ask sends a request and checks the status of the answer.
func (p *testPlayer) ask(status int, method, url string, fields ...string) *rtsp.Message {
	p.t.Helper()
	p.send(method, url, fields...)
	m := p.answer()
	if m.Status != status {
		p.t.Fatalf("%s %s: %d %s, want %d", method, url, m.Status, m.Reason, status)
	}
	return m
}

// watch goes as far as PLAY.
func (p *testPlayer) watch(url string) {
	p.t.Helper()
	p.ask(200, "OPTIONS", url)
	p.ask(200, "DESCRIBE", url)
	p.ask(200, "SETUP", url+"/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
	p.ask(200, "PLAY", url, "Session: 4711")
}

// expectEnd reads the end of stream.
func (p *testPlayer) expectEnd() {
	p.t.Helper()
	if b, err := io.ReadAll(p.br); err != nil || len(b) > 0 {
		p.t.Fatalf("got %q, %v, want the end of stream", b, err)
	}
}

func TestPlayer(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		for _, secure := range []bool{false, true} {
			r := newCameraRelay(t, portable, nil)
			s := r.connect("office", nil, "gate", "rtsp://cams.test/gate", "yard", "rtsp://cams.test/yard")
			c := s.camera(&testCamera{})
			p := r.player(secure)
			url := "rtsp://cams.test:8554/gate"
			if m := p.ask(200, "OPTIONS", url); string(m.Get("Public")) != rtspPublic {
				t.Errorf("OPTIONS is answered by %+v", m)
			}
			m := p.ask(200, "DESCRIBE", url, "Accept: application/sdp", "Authorization: Basic YTpi", "Proxy-Require: x", "User-Agent: test")
			if string(m.Body) != testSDP || string(m.Get("Content-Base")) != url+"/" || m.Get("Server") != nil {
				t.Errorf("DESCRIBE is answered by %+v", m)
			}
			m = p.ask(200, "SETUP", url+"/trackID=0", "Transport: RTP/AVP;unicast;client_port=5000-5001,RTP/AVP/TCP;unicast;interleaved=0-1;destination=192.0.2.9")
			if got := string(m.Get("Transport")); got != "RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=1234" {
				t.Errorf("SETUP is answered by Transport %q", got)
			}
			p.ask(200, "PLAY", url, "Session: 4711")
			want := []string{
				"DESCRIBE " + url + " | CSeq: 2 | Accept: application/sdp | User-Agent: test",
				"SETUP " + url + "/trackID=0 | CSeq: 3 | Transport: RTP/AVP/TCP;unicast;interleaved=0-1",
				"PLAY " + url + " | CSeq: 4 | Session: 4711",
			}
			if got := c.saw(); !slices.Equal(got, want) {
				t.Errorf("the site saw\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if h := c.header(0); h.Kind != relay.KindConnect || h.Service != "gate" || h.Scheme != "rtsp" || h.Host != "cams.test" {
				t.Errorf("the stream's header is %+v", h)
			}
			frame := "$\x00\x00\x04abcd"
			onLoop(s.session.loop.Loop, func() { c.streams[0].Write([]byte(frame)) })
			if _, _, b, err := p.next(); string(b) != frame {
				t.Errorf("got frame %q, %v", b, err)
			}
			io.WriteString(p.Conn, "$\x01\x00\x02hi")
			p.ask(200, "GET_PARAMETER", url, "Session: 4711")
			c.mu.Lock()
			if string(c.frames) != "$\x01\x00\x02hi" {
				t.Errorf("the camera gets %q", c.frames)
			}
			c.mu.Unlock()
			p.ask(200, "OPTIONS", url, "Session: 4711")
			p.ask(455, "DESCRIBE", "rtsp://cams.test/yard")
			p.ask(200, "TEARDOWN", url, "Session: 4711")
			p.ask(200, "DESCRIBE", "rtsp://cams.test/yard")
			if h := c.header(1); h.Service != "yard" {
				t.Errorf("the second stream's header is %+v", h)
			}
			onLoop(s.session.loop.Loop, func() { c.streams[1].CloseWrite() })
			p.expectEnd()
		}
	})
}

// cameraAnswers makes a testCamera.instead that answers everything so.
func cameraAnswers(status int, fields ...string) func(*tunnel.Stream, relay.Header, *rtsp.Message) bool {
	return func(st *tunnel.Stream, _ relay.Header, m *rtsp.Message) bool {
		st.Write([]byte(reply(string(m.Get("CSeq")), status, "", fields...)))
		return true
	}
}

// A camera at an address instead of a name is one that will be back, too.
func TestPlayerAddressAway(t *testing.T) {
	r := newCameraRelay(t, false, nil)
	r.Reload([]Site{{Name: "office", Keys: []string{"k"}, Publish: patterns("rtsp://127.0.0.1/*")}})
	r.player(false).ask(503, "DESCRIBE", "rtsp://127.0.0.1:8554/gate")
	r.player(false).ask(404, "DESCRIBE", "rtsp://127.0.0.2:8554/gate")
}
