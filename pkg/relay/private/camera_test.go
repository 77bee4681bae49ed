package private

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/textproto"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// fakeCamera is a camera whose side of the conversation a test writes.
type fakeCamera struct {
	t    testing.TB
	ln   net.Listener
	addr string
}

func newFakeCamera(t testing.TB) *fakeCamera {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	f := &fakeCamera{t: t, ln: ln, addr: ln.Addr().String()}
	t.Cleanup(func() { ln.Close() })
	return f
}

// service is one with the camera as its target; path may have a query.
func (f *fakeCamera) service(t testing.TB, user, path string) Service {
	t.Helper()
	if user != "" {
		user += "@"
	}
	return published(t, tcpService(t, "gate", "rtsp://"+user+f.addr+path), "rtsp://cams.example.com/gate")
}

// accept is the camera's end of the next connection.
func (f *fakeCamera) accept() *rtspPeer {
	f.t.Helper()
	c, err := f.ln.Accept()
	if err != nil {
		f.t.Fatal(err)
	}
	f.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(20 * time.Second))
	return &rtspPeer{t: f.t, r: bufio.NewReader(c), w: c, conn: c, fill: strings.NewReplacer("CAMERA", f.addr)}
}

// rtspPeer is somebody who writes and reads RTSP in tests. In what it writes and wants, CAMERA is the camera's address, and
// lines end with \n.
type rtspPeer struct {
	t    testing.TB
	r    *bufio.Reader
	w    io.Writer
	conn net.Conn // of a camera
	fill *strings.Replacer
}

// stream is the visitor's side of a new stream.
func (s *site) watch(f *fakeCamera) (*rtspPeer, *visitor) {
	s.t.Helper()
	return s.watchAs(f, "rtsp")
}

func (s *site) watchAs(f *fakeCamera, scheme string) (*rtspPeer, *visitor) {
	s.t.Helper()
	v := s.visitBy("gate", scheme)
	return &rtspPeer{t: s.t, r: bufio.NewReader(v.r), w: streamFrom{v}, fill: strings.NewReplacer("CAMERA", f.addr)}, v
}

// streamFrom writes to a visitor's stream.
type streamFrom struct{ v *visitor }

func (s streamFrom) Write(b []byte) (int, error) {
	c := bytes.Clone(b)
	s.v.site.do(func() { s.v.stream.Write(c) })
	return len(b), nil
}

// message writes CRLF for \n in the head, and the length of the body.
func (p *rtspPeer) message(text string) []byte {
	head, body, _ := strings.Cut(p.fill.Replace(text), "\n\n")
	head = strings.ReplaceAll(strings.TrimRight(head, "\n"), "\n", "\r\n")
	body = strings.ReplaceAll(body, "\n", "\r\n")
	if body != "" {
		head += "\r\nContent-Length: " + strconv.Itoa(len(body))
	}
	return []byte(head + "\r\n\r\n" + body)
}

func (p *rtspPeer) send(text string) {
	p.t.Helper()
	if _, err := p.w.Write(p.message(text)); err != nil {
		p.t.Fatal(err)
	}
}

func (p *rtspPeer) sendRaw(b []byte) {
	p.t.Helper()
	if _, err := p.w.Write(b); err != nil {
		p.t.Fatal(err)
	}
}

// read reads a message, which it returns with \n, or a frame.
func (p *rtspPeer) read() string {
	p.t.Helper()
	first, err := p.r.Peek(1)
	if err != nil {
		p.t.Fatalf("no message: %v", err)
	}
	if first[0] == '$' {
		head, err := p.r.Peek(4)
		if err != nil {
			p.t.Fatal(err)
		}
		frame := make([]byte, 4+int(head[2])<<8+int(head[3]))
		if _, err := io.ReadFull(p.r, frame); err != nil {
			p.t.Fatal(err)
		}
		return string(frame)
	}
	var lines []string
	length := 0
	for {
		line, err := textproto.NewReader(p.r).ReadLine()
		if err != nil {
			p.t.Fatalf("after %q: %v", lines, err)
		}
		if line == "" {
			break
		}
		if v, ok := strings.CutPrefix(line, "Content-Length: "); ok {
			length, _ = strconv.Atoi(v)
			continue
		}
		lines = append(lines, line)
	}
	text := strings.Join(lines, "\n") + "\n"
	if length > 0 {
		body := make([]byte, length)
		if _, err := io.ReadFull(p.r, body); err != nil {
			p.t.Fatal(err)
		}
		text += "\n" + strings.ReplaceAll(string(body), "\r\n", "\n")
	}
	return text
}

func (p *rtspPeer) want(text string) {
	p.t.Helper()
	if got, want := p.read(), p.fill.Replace(text); got != want {
		p.t.Fatalf("got:\n%s\nwant:\n%s", got, want)
	}
}

func (p *rtspPeer) wantEnd() {
	p.t.Helper()
	if b, err := io.ReadAll(p.r); err != nil || len(b) > 0 {
		p.t.Fatalf("got %q, %v, want the end", b, err)
	}
}

// setUp has the camera c set up a track whose reports are on a channel; n is its CSeq.
func (p *rtspPeer) setUp(c *rtspPeer, n, channel int) {
	p.t.Helper()
	transport := fmt.Sprintf("Transport: RTP/AVP/TCP;unicast;interleaved=%d-%d\n", 100+channel, channel)
	p.send("SETUP rtsp://cams.example.com/gate/1 RTSP/1.0\nCSeq: 5\n" + transport)
	c.want(fmt.Sprintf("SETUP rtsp://CAMERA/live/1 RTSP/1.0\nCSeq: %d\n%s", n, transport))
	c.send(fmt.Sprintf("RTSP/1.0 200 OK\nCSeq: %d\nSession: 5\n%s", n, transport))
	p.want("RTSP/1.0 200 OK\nCSeq: 5\nSession: 5\n" + transport)
}

// visitBy is visit by another scheme.
func (s *site) visitBy(service, scheme string) *visitor {
	s.t.Helper()
	return s.open(relay.Header{Kind: relay.KindConnect, Service: service, Scheme: scheme})
}

// A request goes to the camera with the camera's URL and this relay's CSeq, and without what says who the visitor is; the
// answer comes back with the visitor's, and without what says what and where the camera is.
func TestCameraConversation(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "", "/h264/main"))
	v, stream := s.watch(f)
	v.send("OPTIONS rtsp://cams.example.com:8554/gate RTSP/1.0\nCSeq: 1\nUser-Agent: a\nUser-Agent: b\nAuthorization: Basic eDp5\nVia: x\nX-Forwarded-For: 192.0.2.1\nHost: cams.example.com\n")
	c := f.accept()
	c.want("OPTIONS rtsp://CAMERA/h264/main RTSP/1.0\nCSeq: 1\nUser-Agent: a\nUser-Agent: b\n")
	c.send("RTSP/1.0 200 OK\nCSeq: 1\nServer: Camera/1.0\nPublic: OPTIONS, DESCRIBE, SETUP, PLAY\n")
	v.want("RTSP/1.0 200 OK\nCSeq: 1\nPublic: OPTIONS, DESCRIBE, SETUP, PLAY\n")

	v.send("DESCRIBE rtsp://cams.example.com:8554/gate RTSP/1.0\nCSeq: 77\nAccept: application/sdp\n")
	c.want("DESCRIBE rtsp://CAMERA/h264/main RTSP/1.0\nCSeq: 2\nAccept: application/sdp\n")
	c.send("RTSP/1.0 200 OK\nCSeq: 2\nContent-Base: rtsp://CAMERA/h264/main/\nContent-Type: application/sdp\nX-Server-IP-Address: 10.0.0.7\n\n" +
		"v=0\no=- 1 1 IN IP4 127.0.0.1\ns=-\nt=0 0\nm=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\na=control:rtsp://CAMERA/h264/main/trackID=1\n")
	v.want("RTSP/1.0 200 OK\nCSeq: 77\nContent-Base: rtsp://cams.example.com:8554/gate/\nContent-Type: application/sdp\n\n" +
		"v=0\no=- 1 1 IN IP4 0.0.0.0\ns=-\nt=0 0\nm=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\na=control:rtsp://cams.example.com:8554/gate/trackID=1\n")

	v.send("SETUP rtsp://cams.example.com:8554/gate/trackID=1 RTSP/1.0\nCSeq: 78\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\n")
	c.want("SETUP rtsp://CAMERA/h264/main/trackID=1 RTSP/1.0\nCSeq: 3\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\n")
	c.send("RTSP/1.0 200 OK\nCSeq: 3\nTransport: RTP/AVP/TCP;unicast;destination=10.0.0.9;source=10.0.0.7;interleaved=0-1;ssrc=1234\nSession: 5;timeout=60\n")
	v.want("RTSP/1.0 200 OK\nCSeq: 78\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=1234\nSession: 5;timeout=60\n")

	v.send("PLAY rtsp://cams.example.com:8554/gate/ RTSP/1.0\nCSeq: 79\nSession: 5\n")
	c.want("PLAY rtsp://CAMERA/h264/main/ RTSP/1.0\nCSeq: 4\nSession: 5\n")
	c.sendRaw([]byte("$\x00\x00\x02hi")) // before the answer
	c.send("RTSP/1.0 200 OK\nCSeq: 4\nSession: 5\nRTP-Info: url=rtsp://CAMERA/h264/main/trackID=1;seq=1;rtptime=2\n")
	c.sendRaw([]byte("$\x01\x00\x03lo!"))
	v.want("$\x00\x00\x02hi")
	v.want("RTSP/1.0 200 OK\nCSeq: 79\nSession: 5\nRTP-Info: url=rtsp://cams.example.com:8554/gate/trackID=1;seq=1;rtptime=2\n")
	v.want("$\x01\x00\x03lo!")

	v.sendRaw([]byte("$\x01\x00\x04rtcp"))
	c.want("$\x01\x00\x04rtcp")

	// The visitor leaves without a word, and the camera hears of it.
	s.do(func() { stream.stream.Reset(tunnel.CodeCancelled) })
	c.want("TEARDOWN rtsp://CAMERA/h264/main RTSP/1.0\nCSeq: 5\nSession: 5\n")
	c.wantEnd()
}

// What is outside of the service's path does not reach the camera, nor does what cannot work through the relays.
func TestCameraRefuses(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "", "/h264/main"))
	v, _ := s.watch(f)
	for i, test := range []struct {
		request string
		status  string
	}{
		{"DESCRIBE rtsp://cams.example.com/other", "404 Not Found"},
		{"DESCRIBE rtsp://cams.example.com/gatekeeper", "404 Not Found"},
		{"DESCRIBE rtsp://cams.example.com/gate/../other", "404 Not Found"},
		{"DESCRIBE rtsp://cams.example.com/gate/%2e%2e/other", "404 Not Found"},
		{"DESCRIBE rtsp://cams.example.com/", "404 Not Found"},
		{"DESCRIBE rtsp://cams.example.com/gate/~0", "404 Not Found"},
		{"DESCRIBE rtsp://cams.example.com/gate/~-1", "404 Not Found"},
		{"DESCRIBE rtsp://cams.example.com/gate/~99999999999999999999", "404 Not Found"},
		{"DESCRIBE /gate", "404 Not Found"},
		{"SETUP rtsp://cams.example.com/gate/trackID=1?channel=2", "404 Not Found"},
		{"SETUP rtsp://cams.example.com/gate/&channel=2", "404 Not Found"},
		{"SETUP rtsp://cams.example.com/gate&channel=2", "404 Not Found"},
		{"SETUP rtsp://cams.example.com/gate/;channel=2", "404 Not Found"},
		{"SETUP rtsp://cams.example.com/gate/trackID=1 RTSP/1.0\nTransport: RTP/AVP;unicast;client_port=5000-5001", "461 Unsupported Transport"},
		{"SETUP rtsp://cams.example.com/gate/trackID=1 RTSP/1.0\nTransport: RTP/AVP/TCP;multicast", "461 Unsupported Transport"},
		{"SETUP rtsp://cams.example.com/gate/trackID=1 RTSP/1.0\nTransport: ", "400 Bad Request"},
	} {
		line, rest, _ := strings.Cut(test.request, "\n")
		if !strings.HasSuffix(line, " RTSP/1.0") {
			line += " RTSP/1.0"
		}
		v.send(fmt.Sprintf("%s\nCSeq: %d\n%s\n", line, i+10, rest))
		v.want(fmt.Sprintf("RTSP/1.0 %s\nCSeq: %d\n", test.status, i+10))
	}
	// The next one is the first that the camera hears of.
	v.send("SETUP rtsp://cams.example.com/gate/trackID=1 RTSP/1.0\nCSeq: 50\nTransport: RTP/AVP;unicast;client_port=5000-5001,RTP/AVP/TCP;unicast;interleaved=2-3;destination=192.0.2.1\n")
	c := f.accept()
	c.want("SETUP rtsp://CAMERA/h264/main/trackID=1 RTSP/1.0\nCSeq: 1\nTransport: RTP/AVP/TCP;unicast;interleaved=2-3\n")
	v.sendRaw([]byte("rubbish\r\n\r\n"))
	v.want("RTSP/1.0 400 Bad Request\n")
	v.wantEnd()
	c.wantEnd()
}

// Cameras write their URLs in many ways, and whatever a player makes of what it is told leads back to them.
func TestCameraForms(t *testing.T) {
	const base = "rtsp://cams.example.com/gate"
	for _, test := range []struct {
		name, target, contentBase, session, control string // of the camera
		wantBase, wantControl                       string // of the visitor
		setup                                       map[string]string
	}{
		{
			name: "Dahua", target: "/cam/realmonitor?channel=1&subtype=0",
			contentBase: "rtsp://CAMERA/cam/realmonitor?channel=1&subtype=0/", session: "*", control: "trackID=0",
			wantBase: base + "/", wantControl: "trackID=0",
			setup: map[string]string{
				base + "/trackID=0":           "rtsp://CAMERA/cam/realmonitor?channel=1&subtype=0/trackID=0",
				base + "/&channel=2":          "",
				base + "/trackID=0&channel=2": "",
				base + "&channel=2":           "",
				base + "?channel=2":           "rtsp://CAMERA/cam/realmonitor?channel=1&subtype=0",
			},
		},
		{
			name: "Hikvision", target: "/Streaming/Channels/101",
			contentBase: "rtsp://CAMERA/Streaming/Channels/101/", session: "rtsp://CAMERA/Streaming/Channels/101/", control: "rtsp://CAMERA/Streaming/Channels/101/trackID=1",
			wantBase: base + "/", wantControl: base + "/trackID=1",
			setup: map[string]string{base + "/trackID=1": "rtsp://CAMERA/Streaming/Channels/101/trackID=1"},
		},
		{
			name: "Axis", target: "/axis-media/media.amp?videocodec=h264",
			contentBase: "rtsp://CAMERA/axis-media/media.amp/", session: "rtsp://CAMERA/axis-media/media.amp?videocodec=h264", control: "rtsp://CAMERA/axis-media/media.amp/stream=0?videocodec=h264",
			wantControl: base + "/~0",
			setup:       map[string]string{base + "/~0": "rtsp://CAMERA/axis-media/media.amp/stream=0?videocodec=h264", base + "/~1": ""},
		},
		{
			name: "query in a track", target: "/media.amp",
			contentBase: "rtsp://CAMERA/media.amp/", session: "*", control: "rtsp://CAMERA/media.amp/stream=0?codec=h264&x=1",
			wantBase: base + "/", wantControl: base + "/~0",
			setup: map[string]string{
				base + "/~0":                      "rtsp://CAMERA/media.amp/stream=0?codec=h264&x=1",
				base + "/stream=0?codec=h264&x=1": "",
			},
		},
		{
			name: "query in a relative track", target: "/media.amp",
			contentBase: "rtsp://CAMERA/media.amp/", session: "*", control: "stream=0?codec=h264&x=1",
			wantBase: base + "/", wantControl: "stream=0?codec=h264&x=1",
			setup: map[string]string{
				base + "/stream=0?codec=h264&x=1": "rtsp://CAMERA/media.amp/stream=0?codec=h264&x=1",
				base + "/stream=0?codec=h264&x=2": "",
			},
		},
		{
			name: "password in a query", target: "/h264",
			contentBase: "rtsp://CAMERA/h264/?user=viewer&password=secret", session: "*", control: "rtsp://CAMERA/h264/1?user=viewer&password=secret",
			wantControl: base + "/~0",
			setup:       map[string]string{base + "/~0": "rtsp://CAMERA/h264/1?user=viewer&password=secret", base: "rtsp://CAMERA/h264"},
		},
		{
			name: "live555 without the port", target: "/main",
			contentBase: "rtsp://127.0.0.1/main/", session: "*", control: "track1",
			wantControl: base + "/~0",
			setup:       map[string]string{base + "/~0": "rtsp://127.0.0.1/main/track1", base: "rtsp://CAMERA/main"},
		},
		{
			name: "another host", target: "/main",
			session: "*", control: "rtsp://10.9.8.7/real/track1",
			wantControl: base + "/~0",
			setup:       map[string]string{base + "/~0": "rtsp://10.9.8.7/real/track1"},
		},
		{
			name: "nothing said", target: "/main/",
			session: "*", control: "track1", wantControl: "track1",
			setup: map[string]string{base + "/track1": "rtsp://CAMERA/main/track1"},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			f := newFakeCamera(t)
			s := newSite(t, f.service(t, "", test.target))
			v, _ := s.watch(f)
			v.send("DESCRIBE " + base + "/ RTSP/1.0\nCSeq: 1\n")
			c := f.accept()
			c.want("DESCRIBE rtsp://CAMERA" + test.target + " RTSP/1.0\nCSeq: 1\n")
			answer := "RTSP/1.0 200 OK\nCSeq: 1\nX-Address: 10.9.8.7\nContent-Type: application/sdp\n"
			if test.contentBase != "" {
				answer += "Content-Base: " + test.contentBase + "\n"
			}
			c.send(answer + "\nv=0\no=- 1 1 IN IP4 127.0.0.1\ns=Media of 127.0.0.1\nt=0 0\na=control:" + test.session + "\nm=video 0 RTP/AVP 96\na=control:" + test.control + "\n")
			got := v.read()
			if strings.Contains(got, "127.0.0.1") || strings.Contains(got, "10.9.8.7") {
				t.Errorf("the visitor is told where the camera is:\n%s", got)
			}
			if b := field(got, "Content-Base"); b != test.wantBase {
				t.Errorf("Content-Base %q, want %q", b, test.wantBase)
			}
			_, control, _ := strings.Cut(got, "m=video")
			_, control, _ = strings.Cut(control, "a=control:")
			if control = strings.TrimSpace(control); control != test.wantControl {
				t.Errorf("control %q, want %q", control, test.wantControl)
			}
			n := 1
			for url, want := range test.setup {
				v.send("SETUP " + url + " RTSP/1.0\nCSeq: 9\nTransport: RTP/AVP/TCP;interleaved=0-1\n")
				if want == "" {
					v.want("RTSP/1.0 404 Not Found\nCSeq: 9\n")
					continue
				}
				n++
				c.want(fmt.Sprintf("SETUP %s RTSP/1.0\nCSeq: %d\nTransport: RTP/AVP/TCP;interleaved=0-1\n", want, n))
				c.send(fmt.Sprintf("RTSP/1.0 200 OK\nCSeq: %d\n", n))
				v.want("RTSP/1.0 200 OK\nCSeq: 9\n")
			}
		})
	}
}

// Requests of the visitor may come all at once, and their answers in any pieces.
func TestCameraPipelining(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "", "/live"))
	v, _ := s.watch(f)
	var all []byte
	const n = maxAsked + 4
	for i := range n {
		all = append(all, v.message(fmt.Sprintf("GET_PARAMETER rtsp://cams.example.com/gate RTSP/1.0\nCSeq: %d\n", 100+i))...)
	}
	v.sendRaw(all)
	c := f.accept()
	for i := range n {
		c.want(fmt.Sprintf("GET_PARAMETER rtsp://CAMERA/live RTSP/1.0\nCSeq: %d\n", i+1))
		if i < maxAsked-1 {
			continue // all that may be on their way
		}
		for j := range n {
			if i == maxAsked-1 && j < maxAsked || i == j {
				c.send(fmt.Sprintf("RTSP/1.0 200 OK\nCSeq: %d\n\nbody %d", j+1, j))
			}
		}
	}
	for i := range n {
		v.want(fmt.Sprintf("RTSP/1.0 200 OK\nCSeq: %d\n\nbody %d", 100+i, i))
	}
}

// However the bytes of both sides are cut, the same comes out; and what one side says does not get into a frame of the other.
func TestCameraPieces(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "", "/live"))
	big := make([]byte, 4+0xffff)
	copy(big, "$\x02\xff\xff")
	for i := range big[4:] {
		big[4+i] = byte(i)
	}
	for _, size := range []int{1, 2, 7, 1000, 40000} {
		v, _ := s.watch(f)
		c := f.accept()
		pieces := func(p *rtspPeer, b []byte) {
			for len(b) > 0 {
				n := min(size, len(b))
				p.sendRaw(b[:n])
				b = b[n:]
				if size < 1000 && len(b) > 3000 && len(b) < 60000 {
					n := len(b) - 3000 // not all of a frame byte by byte
					p.sendRaw(b[:n])
					b = b[n:]
				}
			}
		}
		v.setUp(c, 1, 1)
		v.setUp(c, 2, 2)
		ask := v.message("PLAY rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 9\n")
		pieces(v, append(append([]byte("$\x01\x00\x05rtcp!\r\n"), ask...), big...))
		c.want("$\x01\x00\x05rtcp!")
		c.want("PLAY rtsp://CAMERA/live RTSP/1.0\nCSeq: 3\n")
		c.want(string(big))
		answer := c.message("RTSP/1.0 200 OK\nCSeq: 3\nServer: x\n")
		pieces(c, append(append(append([]byte(nil), big...), answer...), "$\x00\x00\x00$\x00\x00\x01x"...))
		v.want(string(big))
		v.want("RTSP/1.0 200 OK\nCSeq: 9\n")
		v.want("$\x00\x00\x00")
		v.want("$\x00\x00\x01x")
		v.w.(streamFrom).v.closeWrite()
		c.wantEnd()
		c.conn.Close()
		v.wantEnd()
	}
}

// While a long frame is on its way in pieces, neither what this relay asks the camera nor what it answers the visitor gets
// into it.
func TestCameraLongFrames(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "", "/live"))
	v, _ := s.watch(f)
	c := f.accept()
	v.setUp(c, 1, 0)
	frame := append([]byte("$\x00\xf0\x00"), bytes.Repeat([]byte("x"), 0xf000)...)
	c.sendRaw(frame[:40000])
	first := make([]byte, 30000)
	if _, err := io.ReadFull(v.r, first); err != nil {
		t.Fatal(err)
	}
	v.send("DESCRIBE rtsp://cams.example.com/other RTSP/1.0\nCSeq: 1\n") // answered here
	v.send("OPTIONS rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 2\n")
	c.sendRaw(frame[40000:])
	rest := make([]byte, len(frame)-len(first))
	if _, err := io.ReadFull(v.r, rest); err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(append(first, rest...), frame) {
		t.Error("the frame has changed")
	}
	v.want("RTSP/1.0 404 Not Found\nCSeq: 1\n")
	c.want("OPTIONS rtsp://CAMERA/live RTSP/1.0\nCSeq: 2\n")

	// The other direction: a camera's sign of life.
	v.sendRaw(frame[:40000])
	if _, err := io.ReadFull(c.r, first); err != nil {
		t.Fatal(err)
	}
	c.send("OPTIONS * RTSP/1.0\nCSeq: 31\n")
	c.send("RTSP/1.0 200 OK\nCSeq: 2\n")
	c.send("ANNOUNCE rtsp://CAMERA/live RTSP/1.0\nCSeq: 32\n")
	v.sendRaw(frame[40000:])
	if _, err := io.ReadFull(c.r, rest); err != nil {
		t.Fatal(err)
	}
	c.want("RTSP/1.0 200 OK\nCSeq: 31\n")
	c.want("RTSP/1.0 501 Not Implemented\nCSeq: 32\n")
	v.want("RTSP/1.0 200 OK\nCSeq: 2\n")
}

// A camera may send visitors to another place of its own, which they do not hear of. It may send them nowhere else.
func TestCameraRedirects(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "", "/live"))
	v, _ := s.watch(f)
	ask := func(n int) {
		v.send(fmt.Sprintf("DESCRIBE rtsp://cams.example.com/gate RTSP/1.0\nCSeq: %d\n", n))
	}
	ask(1)
	c := f.accept()
	c.want("DESCRIBE rtsp://CAMERA/live RTSP/1.0\nCSeq: 1\n")
	c.send("RTSP/1.0 302 Moved Temporarily\nCSeq: 1\nLocation: rtsp://CAMERA/ch0/main?x=1\n")
	c.want("DESCRIBE rtsp://CAMERA/ch0/main?x=1 RTSP/1.0\nCSeq: 2\n")
	c.send("RTSP/1.0 200 OK\nCSeq: 2\nContent-Base: rtsp://CAMERA/ch0/main?x=1/\n")
	v.want("RTSP/1.0 200 OK\nCSeq: 1\nContent-Base: rtsp://cams.example.com/gate/\n")
	ask(2)
	c.want("DESCRIBE rtsp://CAMERA/ch0/main?x=1 RTSP/1.0\nCSeq: 3\n")
	c.send("RTSP/1.0 301 Moved\nCSeq: 3\nLocation: rtsp://CAMERA/ch0/main?x=1/b\n")
	v.want("RTSP/1.0 301 Moved Permanently\nCSeq: 2\nLocation: rtsp://cams.example.com/gate/b\n")
	for i, elsewhere := range []string{"rtsp://10.9.8.7/live", "http://CAMERA/live", "rtsp://", "rubbish"} {
		ask(i)
		c.want(fmt.Sprintf("DESCRIBE rtsp://CAMERA/ch0/main?x=1 RTSP/1.0\nCSeq: %d\n", 4+i))
		c.send(fmt.Sprintf("RTSP/1.0 302 Moved\nCSeq: %d\nLocation: %s\n", 4+i, elsewhere))
		v.want(fmt.Sprintf("RTSP/1.0 502 Bad Gateway\nCSeq: %d\n", i))
	}
	// Round and round it does not go.
	for i := range 3 {
		if i == 0 {
			ask(9)
		}
		c.want(fmt.Sprintf("DESCRIBE %s RTSP/1.0\nCSeq: %d\n", []string{"rtsp://CAMERA/ch0/main?x=1", "rtsp://CAMERA/1", "rtsp://CAMERA/2"}[i], 8+i))
		c.send(fmt.Sprintf("RTSP/1.0 302 Moved\nCSeq: %d\nLocation: /%d\n", 8+i, i+1))
	}
	v.want("RTSP/1.0 502 Bad Gateway\nCSeq: 9\n")
}

// A camera that ends the connection, or whose connection breaks, ends the stream, and the log has it once.
func TestCameraEnds(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "", "/live"))
	log := &logBuffer{}
	s.peer.relay.log = slog.New(slog.NewTextHandler(log, nil))

	v, stream := s.watch(f)
	c := f.accept()
	v.send("OPTIONS rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 2\n")
	c.want("OPTIONS rtsp://CAMERA/live RTSP/1.0\nCSeq: 1\n")
	c.conn.(*net.TCPConn).CloseWrite()
	v.want("RTSP/1.0 502 Bad Gateway\nCSeq: 2\n")
	v.wantEnd()
	c.wantEnd()
	stream.closeWrite()
	if err := <-stream.closed; err != nil {
		t.Errorf("stream ended with %v", err)
	}

	v, stream = s.watch(f)
	c = f.accept()
	v.send("OPTIONS rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 2\n")
	c.want("OPTIONS rtsp://CAMERA/live RTSP/1.0\nCSeq: 1\n")
	c.conn.(*net.TCPConn).SetLinger(0)
	c.conn.Close()
	stream.wantCode(tunnel.CodeCancelled)

	// One that ends the connection after what was asked for is not down.
	v, stream = s.watch(f)
	c = f.accept()
	v.send("SETUP rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 2\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\n")
	c.read()
	c.send("RTSP/1.0 200 OK\nCSeq: 1\nSession: 5\n")
	v.want("RTSP/1.0 200 OK\nCSeq: 2\nSession: 5\n")
	c.conn.(*net.TCPConn).SetLinger(0)
	c.conn.Close()
	v.wantEnd()
	stream.closeWrite()
	if err := <-stream.closed; err != nil {
		t.Errorf("stream ended with %v", err)
	}
	if n := log.count("target cannot be reached"); n != 1 {
		t.Errorf("%d lines in the log", n)
	}

	_, stream = s.watch(f)
	c = f.accept()
	c.sendRaw([]byte("SSH-2.0-OpenSSH_9.2\r\n"))
	stream.wantCode(tunnel.CodeRefused)
	if n := log.count("target cannot be reached"); n != 1 { // it let us connect, and showed nothing
		t.Errorf("%d lines in the log", n)
	}
	f.ln.Close()
	for range 3 {
		_, stream = s.watch(f)
		stream.wantCode(tunnel.CodeRefused)
	}
	if n := log.count("target cannot be reached"); n != 1 {
		t.Errorf("%d lines in the log after the camera has gone", n)
	}
	s.wantAllEnded()
	if st := s.peer.relay.Status().Services[0]; st.Total != 7 {
		t.Errorf("status %+v", st)
	}
}

// wantAllEnded waits until this side knows that its streams have ended.
func (s *site) wantAllEnded() {
	s.t.Helper()
	end := time.Now().Add(time.Minute)
	for s.peer.relay.Status().Services[0].Open != 0 {
		if time.Now().After(end) {
			s.t.Fatal("streams stay open")
		}
		s.do(func() {})
	}
}
