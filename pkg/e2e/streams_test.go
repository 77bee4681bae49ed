//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"encoding/base64"
	"encoding/binary"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/pion/rtp"
)

var longTests = flag.Bool("long", false, "what takes minutes: a minute of video whose link is cut every ten seconds, instead of twelve seconds and three; large files by each client of TFTP")

// rawPlayer speaks RTSP by hand, and reads when it is told to.
type rawPlayer struct {
	t    testing.TB
	r    *bufio.Reader
	send func(string) // what goes up
	cseq int
	base string
	h264 rtph264.Decoder

	session string
	units   [][]byte // that have come
	lost    int      // packets
	packets int
	last    uint16
	ssrc    uint32
}

func newRawPlayer(t testing.TB, down io.Reader, send func(string)) *rawPlayer {
	t.Helper()
	p := &rawPlayer{t: t, r: bufio.NewReaderSize(down, 4096), send: send}
	if err := p.h264.Init(); err != nil {
		t.Fatal(err)
	}
	return p
}

// dialPlayer is a rawPlayer on a plain connection with a small buffer.
func dialPlayer(t testing.TB, addr string) (*rawPlayer, net.Conn) {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	c.(*net.TCPConn).SetReadBuffer(16 << 10)
	c.SetDeadline(time.Now().Add(2 * waitLimit))
	return newRawPlayer(t, c, func(s string) { io.WriteString(c, s) }), c
}

// next reads what comes next: a frame, which is kept if it is of channel 0, or the head of an answer.
func (p *rawPlayer) next() (status string, head textproto.MIMEHeader, err error) {
	b, err := p.r.Peek(1)
	if err != nil {
		return "", nil, err
	}
	if b[0] != '$' {
		r := textproto.NewReader(p.r)
		if status, err = r.ReadLine(); err != nil {
			return "", nil, err
		}
		head, err = r.ReadMIMEHeader()
		return status, head, err
	}
	var h [4]byte
	if _, err := io.ReadFull(p.r, h[:]); err != nil {
		return "", nil, err
	}
	body := make([]byte, binary.BigEndian.Uint16(h[2:]))
	if _, err := io.ReadFull(p.r, body); err != nil {
		return "", nil, err
	}
	if h[1] != 0 {
		return "", nil, nil
	}
	var packet rtp.Packet
	if err := packet.Unmarshal(body); err != nil {
		return "", nil, fmt.Errorf("a frame of channel 0: %w", err)
	}
	if p.packets > 0 && (packet.SequenceNumber != p.last+1 || packet.SSRC != p.ssrc) {
		p.lost++
	}
	p.packets, p.last, p.ssrc = p.packets+1, packet.SequenceNumber, packet.SSRC
	if au, err := p.h264.Decode(&packet); err == nil {
		for _, u := range au {
			if u[0]&0x1f != 12 { // the filler
				p.units = append(p.units, u)
			}
		}
	}
	return "", nil, nil
}

// ask sends a request and returns the answer, which has to have status 200.
func (p *rawPlayer) ask(method, url string, fields ...string) (head textproto.MIMEHeader, body string) {
	p.t.Helper()
	p.cseq++
	if p.session != "" {
		fields = append(fields, "Session: "+p.session)
	}
	p.send(fmt.Sprintf("%s %s RTSP/1.0\r\nCSeq: %d\r\nUser-Agent: by hand\r\n%s\r\n", method, url, p.cseq, strings.Join(append(fields, ""), "\r\n")))
	for {
		status, head, err := p.next()
		if err != nil {
			p.t.Fatalf("%s %s: %v", method, url, err)
		}
		if status == "" {
			continue
		}
		n, _ := strconv.Atoi(head.Get("Content-Length"))
		b := make([]byte, n)
		if _, err := io.ReadFull(p.r, b); err != nil {
			p.t.Fatalf("%s %s: %v", method, url, err)
		}
		if status != "RTSP/1.0 200 OK" || head.Get("Cseq") != fmt.Sprint(p.cseq) {
			p.t.Fatalf("%s %s: %s %v", method, url, status, head)
		}
		return head, string(b)
	}
}

// setup does all there is to do for the video, but PLAY.
func (p *rawPlayer) setup(url string) {
	p.t.Helper()
	p.ask("OPTIONS", url)
	head, sdp := p.ask("DESCRIBE", url, "Accept: application/sdp")
	_, video, _ := strings.Cut(sdp, "m=video ")
	_, control, ok := strings.Cut(video, "a=control:")
	if !ok {
		p.t.Fatalf("DESCRIBE: no control of the video in\n%s", sdp)
	}
	control, _, _ = strings.Cut(control, "\r\n")
	if p.base = head.Get("Content-Base"); p.base == "" {
		p.base = url + "/"
	}
	if !strings.HasPrefix(control, "rtsp") {
		control = p.base + control
	}
	head, _ = p.ask("SETUP", control, "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
	p.session, _, _ = strings.Cut(head.Get("Session"), ";")
}

// watch does what setup does, and PLAY.
func (p *rawPlayer) watch(url string) {
	p.t.Helper()
	p.setup(url)
	p.ask("PLAY", p.base, "Range: npt=0.000-")
}

// pictures are the frames so far.
func (p *rawPlayer) pictures() []picture {
	p.t.Helper()
	pictures, err := pictures(slices.Values(p.units))
	if err != nil {
		p.t.Error(err)
	}
	return pictures
}

// frames reads until a condition holds.
func (p *rawPlayer) until(what string, ok func([]picture) bool) []picture {
	p.t.Helper()
	for n := 0; ; n++ {
		if n%20 == 0 {
			if pictures := p.pictures(); ok(pictures) {
				return pictures
			}
		}
		if _, _, err := p.next(); err != nil {
			p.t.Fatalf("%s: after %d frames: %v", what, len(p.pictures()), err)
		}
	}
}

// camURL is a camera at one of the public relay's ports.
func camURL(scheme, addr, path string) string {
	_, port, _ := strings.Cut(addr, ":")
	return scheme + "://cams.example.com:" + port + path
}

// enough is a condition of await and until.
func enough(n int) func([]picture) bool { return func(p []picture) bool { return len(p) >= n } }

// TestPasswords has visitors with the right password, the wrong one and none come to services that know them by a Digest hash and
// by another one.
func TestPasswords(t *testing.T) {
	t.Parallel()
	c := startCamera(t, nil, auth.VerifyMethodDigestMD5)
	s := configureCameras(t, nil,
		service{"digest", "rtsp://cams.example.com/digest", c.target()},
		service{"basic", "rtsps://cams.example.com/basic", c.target()})
	s.more["digest"] = "users = { alice = \"" + digestHash(t, "alice", "visitor-s3cret") + "\" }\n"
	s.more["basic"] = "users = { alice = \"" + passwordHash(t, "visitor-s3cret") + "\" }\n"
	s.startPublic()
	s.startPrivate()
	secure := []player{
		{name: "ffmpeg", scheme: "rtsps", addr: onRTSPS, play: playFFmpeg, option: []string{"-rtsp_transport", "tcp"}},
		{name: "gstreamer", scheme: "rtsps", addr: onRTSPS, play: playGStreamer, option: trusting},
		{name: "gortsplib", scheme: "rtsps", addr: onHTTPS, play: playGortsplib, tunnel: gortsplib.TunnelHTTP},
	}
	for _, path := range []string{"/digest", "/basic"} {
		for _, p := range secure {
			r, err := p.play(p, t, s, 25, p.url(s, "alice:visitor-s3cret@", path))
			if err != nil {
				t.Errorf("%s %s: %v", p.name, path, err)
				continue
			}
			r.gapless(t, 25)
		}
	}
	conns, _ := c.count()
	for _, p := range secure {
		for _, userinfo := range []string{"", "alice:wr0ng@"} {
			r, err := p.play(p, t, s, 25, p.url(s, userinfo, "/digest"))
			if err == nil {
				t.Errorf("%s came in as %q\n%s", p.name, userinfo, r.output)
			} else if text := err.Error(); !strings.Contains(text, "401") && !strings.Contains(text, "Unauthorized") && !strings.Contains(text, "authentication") {
				t.Errorf("%s as %q: %v", p.name, userinfo, err)
			}
		}
	}
	// In the clear there is no such camera as is published by rtsps alone.
	if _, err := watch(t, nil, s.rtsp, camURL("rtsp", s.rtsp, "/basic"), gortsplib.TunnelNone, gortsplib.ProtocolTCP); err == nil || !strings.Contains(err.Error(), "404") {
		t.Errorf("a camera of rtsps over rtsp: %v", err)
	}
	if now, _ := c.count(); now != conns {
		t.Errorf("%d connections to the camera for nobody", now-conns)
	}
	s.keepsSecret("s3cret")
	s.keepsSecret("wr0ng")
}

// TestVideoOverCuts cuts the link again and again while cameras are watched: no frame is missing.
func TestVideoOverCuts(t *testing.T) {
	t.Parallel()
	cuts, pause := 4, 3*time.Second
	if *longTests {
		cuts, pause = 6, 10*time.Second
	}
	c := startCamera(t, nil, auth.VerifyMethodDigestMD5)
	s := configureCameras(t, nil,
		service{"alone", "rtsp://cams.example.com/alone", c.target()},
		service{"shared", "rtsp://cams.example.com/shared", c.target()})
	s.more["shared"] = "fan_out = true\n"
	s.startPublic()
	s.link = startFaultProxy(t, s.https)
	s.startPrivate()
	frames := int((time.Duration(cuts) * pause).Seconds() * frameRate)
	over := make(chan struct{})
	cut := 0
	go func() {
		defer close(over)
		for range cuts {
			time.Sleep(pause)
			cut += s.link.cut()
		}
	}()
	t.Run("each", func(t *testing.T) {
		for _, path := range []string{"/alone", "/shared"} {
			for _, p := range players {
				if !slices.Contains([]string{"ffmpeg http", "gortsplib rtsps", "gortsplib https"}, p.name) {
					continue
				}
				t.Run(p.name+path, func(t *testing.T) {
					t.Parallel()
					r, err := p.play(p, t, s, frames, p.url(s, "", path))
					if err != nil {
						t.Fatal(err)
					}
					r.gapless(t, frames)
					if r.video < frames {
						t.Errorf("decoded %d\n%s", r.video, r.output)
					}
				})
			}
		}
	})
	if <-over; cut < cuts {
		t.Errorf("%d connections of links cut in %d times", cut, cuts)
	}
}

// TestSlowPlayer has a player with a stream of its own stop reading beside one that reads: nobody but itself has to wait, and
// what is kept for it has a bound.
func TestSlowPlayer(t *testing.T) {
	t.Parallel()
	c := startCamera(t, nil)
	c.fill(100 << 10) // 2.5 MB a second
	s := configureCameras(t, nil, service{"gate", "rtsp://cams.example.com/gate", c.target()})
	s.startPublic()
	s.startPrivate()
	url := camURL("rtsp", s.rtsp, "/gate")
	public, private := s.public.rss(), s.private.rss()
	for range 3 {
		slow, _ := dialPlayer(t, s.rtsp)
		slow.watch(url)
		slow.until("the first frames", enough(5))
	}
	w, err := watch(t, nil, s.rtsp, url, gortsplib.TunnelNone, gortsplib.ProtocolTCP)
	if err != nil {
		t.Fatal(err)
	}
	r := w.frames(200)
	r.gapless(t, 200)
	for _, p := range r.pictures {
		if late := p.came.Sub(p.sent); late > 10*time.Second {
			t.Errorf("frame %d came %v late", p.n, late)
			break
		}
	}
	grown(t, s.public, public, 64<<20)
	grown(t, s.private, private, 64<<20)
}

// TestDeadline stops the link for longer than video may be late: what comes afterwards is fresh, and whole.
func TestDeadline(t *testing.T) {
	t.Parallel()
	c := startCamera(t, nil)
	c.fill(40 << 10) // a megabyte a second, so that it is not the buffers of the system that keep it
	s := configureCameras(t, nil,
		service{"fresh", "rtsp://cams.example.com/fresh", c.target()},
		service{"all", "rtsp://cams.example.com/all", c.target()})
	s.more["fresh"] = "deadline = \"1s\"\n"
	s.startPublic()
	s.link = startFaultProxy(t, s.https)
	s.startPrivate()
	watchers := map[string]*watching{}
	for _, path := range []string{"/fresh", "/all"} {
		w, err := watch(t, nil, s.rtsp, camURL("rtsp", s.rtsp, path), gortsplib.TunnelNone, gortsplib.ProtocolTCP)
		if err != nil {
			t.Fatal(err)
		}
		w.frames(25)
		watchers[path] = w
	}
	s.link.stall()
	time.Sleep(5 * time.Second)
	flow := time.Now()
	s.link.flow()
	after := func(p []picture) bool { return p[len(p)-1].sent.After(flow.Add(time.Second)) }
	watchers["/all"].await("after the stall", after).gapless(t, 100)
	p := watchers["/fresh"].await("after the stall", after).pictures
	dropped := 0
	for i := 1; i < len(p); i++ {
		if n := p[i].n - p[i-1].n - 1; n > 0 {
			if dropped += n; !p[i].isKey() {
				t.Errorf("after frame %d comes %d, which is no key frame", p[i-1].n, p[i].n)
			}
		}
	}
	if dropped < 2*frameRate {
		t.Errorf("%d frames were dropped of 125", dropped)
	}
	t.Logf("%d frames were dropped", dropped)
}

// TestTunnelTexts replays what players send that are not here, byte by byte.
func TestTunnelTexts(t *testing.T) {
	t.Parallel()
	c := startCamera(t, nil)
	s := configureCameras(t, nil, service{"gate", "rtsp://cams.example.com/gate", c.target()})
	s.startPublic()
	s.startPrivate()
	const (
		live555GET = "GET /gate HTTP/1.0\r\nCSeq: 1\r\nUser-Agent: openRTSP (LIVE555 Streaming Media v2026.06.02)\r\nHost: cams.example.com\r\n" +
			"x-sessioncookie: {cookie}\r\nAccept: application/x-rtsp-tunnelled\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\r\n"
		live555POST = "POST /gate HTTP/1.0\r\nCSeq: 1\r\nUser-Agent: openRTSP (LIVE555 Streaming Media v2026.06.02)\r\nHost: cams.example.com\r\n" +
			"x-sessioncookie: {cookie}\r\nContent-Type: application/x-rtsp-tunnelled\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n" +
			"Content-Length: 32767\r\nExpires: Sun, 9 Jan 1972 00:00:00 GMT\r\n\r\n"
		quickTimeGET = "GET /gate HTTP/1.0\r\nUser-Agent: QTS (qtver=7.6.6;cpu=PPC;os=Mac 10.5.8)\r\nx-sessioncookie: {cookie}\r\n" +
			"Accept: application/x-rtsp-tunnelled\r\nPragma: no-cache\r\nCache-Control: no-cache\r\n\r\n"
		quickTimePOST = "POST /gate HTTP/1.0\r\nUser-Agent: QTS (qtver=7.6.6;cpu=PPC;os=Mac 10.5.8)\r\nContent-Type: application/x-rtsp-tunnelled\r\n" +
			"x-sessioncookie: {cookie}\r\nPragma: no-cache\r\nCache-Control: no-cache\r\nContent-Length: 32767\r\n" +
			"Expires: Sun, 9 Jan 1972 00:00:00 GMT\r\n\r\n"
		gortsplibGET = "GET /gate HTTP/1.1\r\nHost: cams.example.com:8003\r\nX-Sessioncookie: {cookie}\r\n" +
			"Accept: application/x-rtsp-tunnelled\r\nContent-Length: 30000\r\n\r\n"
		gortsplibPOST = "POST /gate HTTP/1.1\r\nHost: cams.example.com:8003\r\nX-Sessioncookie: {cookie}\r\n" +
			"Content-Type: application/x-rtsp-tunnelled\r\nContent-Length: 30000\r\n\r\n"
		// Its first request has fields of RealMedia in it, one of them twice.
		realMedia = "User-Agent: RealMedia Player (HelixDNAClient)/10.0.0.0\r\nClientChallenge: 9e26d33f2984236010ef6253fb1887f7\r\n" +
			"CompanyID: KnKV4M4I/B2FjJ1TToLycw==\r\nGUID: 00000000-0000-0000-0000-000000000000\r\nRegionData: 0"
	)
	for _, tt := range []struct {
		name, get, post string
		lines           int    // characters of a line of base64; 0: no line breaks
		postFirst       bool   // the POST is there before the GET
		reopen          bool   // a POST for each request
		join            bool   // the first request comes with the head of the POST
		first           string // more fields of the first request
		rtcp            bool   // reports on the connection of the GET
		piece           int    // bytes of a write
	}{
		{name: "live555", get: live555GET, post: live555POST, rtcp: true, piece: 1},
		{name: "QuickTime", get: quickTimeGET, post: quickTimePOST, reopen: true, piece: 1},
		{name: "QuickTime, lines", get: quickTimeGET, post: quickTimePOST, lines: 76, piece: 7},
		{name: "gortsplib", get: gortsplibGET, post: gortsplibPOST, piece: 3},
		{name: "the POST first", get: live555GET, post: live555POST, postFirst: true, piece: 1000},
		{name: "GStreamer", get: strings.ReplaceAll(live555GET, "CSeq: 1\r\n", "Date: Sun, 22 Nov 2026 12:00:00 GMT\r\n"), post: live555POST, join: true, first: realMedia, piece: 1 << 20},
	} {
		t.Run(tt.name, func(t *testing.T) {
			dial := func() net.Conn {
				conn, err := net.Dial("tcp", s.http)
				if err != nil {
					t.Fatal(err)
				}
				t.Cleanup(func() { conn.Close() })
				conn.SetDeadline(time.Now().Add(waitLimit))
				return conn
			}
			cookie := fmt.Sprintf("tD9hKgAAfB8ABCftAA%04x", rand.IntN(1<<16))
			write := func(conn net.Conn, text string) {
				text = strings.Replace(text, "{cookie}", cookie, 1)
				for b := range slices.Chunk([]byte(text), tt.piece) {
					if _, err := conn.Write(b); err != nil {
						t.Fatal(err)
					}
				}
			}
			down := dial()
			up := dial()
			if tt.postFirst {
				write(up, tt.post)
			}
			write(down, tt.get)
			opened := tt.postFirst
			requests := 0
			p := newRawPlayer(t, down, func(text string) {
				if requests++; requests == 1 && tt.first != "" {
					text = strings.TrimSuffix(text, "\r\n") + tt.first + "\r\n\r\n"
				}
				text = base64.StdEncoding.EncodeToString([]byte(text))
				if tt.lines > 0 {
					var b strings.Builder
					for line := range slices.Chunk([]byte(text), tt.lines) {
						b.Write(line)
						b.WriteString("\r\n")
					}
					text = b.String()
				}
				if tt.reopen && opened {
					up.Close()
					up, opened = dial(), false
				}
				switch {
				case opened:
					write(up, text)
				case tt.join:
					write(up, tt.post+text)
				default:
					write(up, tt.post)
					write(up, text)
				}
				opened = true
			})
			status, err := textproto.NewReader(p.r).ReadLine()
			if err != nil || status != "HTTP/1.0 200 OK" {
				t.Fatalf("GET: %q %v", status, err)
			}
			head, err := textproto.NewReader(p.r).ReadMIMEHeader()
			if err != nil || head.Get("Content-Type") != "application/x-rtsp-tunnelled" || head.Get("Content-Length") != "" || head.Get("X-Server-Ip-Address") != "" || head.Get("Server") != "" {
				t.Fatalf("GET: %v %v", head, err)
			}
			p.watch(camURL("rtsp", s.http, "/gate"))
			if tt.rtcp {
				// A receiver report, the head and the rest in segments of their own.
				down.Write([]byte{'$', 1, 0, 8})
				down.Write([]byte{0x80, 201, 0, 1, 1, 2, 3, 4})
			}
			r := recording{pictures: p.until("frames", enough(50))}
			r.gapless(t, 20)
			p.ask("GET_PARAMETER", p.base)
			p.ask("TEARDOWN", p.base)
		})
	}
	eventually(t, "the end of all streams", func() bool { _, open := c.count(); return open == 0 })
	if !bytes.Contains([]byte(strings.Join(c.requests(), "\n")), []byte("TEARDOWN")) {
		t.Errorf("no TEARDOWN has come to the camera: %q", c.requests())
	}
}
