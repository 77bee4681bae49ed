package private

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/memnet"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// FuzzCamera has a camera and a visitor say anything, in any pieces. Whatever comes out on either side is RTSP to its end, the
// visitor is not told where the camera is, and the camera is asked for nothing but its own URL.
func FuzzCamera(f *testing.F) {
	ask := "OPTIONS rtsp://v/gate RTSP/1.0\r\nCSeq: 1\r\n\r\nDESCRIBE rtsp://v/gate RTSP/1.0\r\nCSeq: 2\r\n\r\n" +
		"SETUP rtsp://v/gate/trackID=1 RTSP/1.0\r\nCSeq: 3\r\nTransport: RTP/AVP/TCP;interleaved=0-1\r\n\r\nPLAY rtsp://v/gate/ RTSP/1.0\r\nCSeq: 4\r\nSession: 1\r\n\r\n$\x01\x00\x04rtcp"
	answer := "RTSP/1.0 200 OK\r\nCSeq: 1\r\nServer: x\r\nPublic: PLAY\r\n\r\n" +
		"RTSP/1.0 401 Unauthorized\r\nCSeq: 2\r\nWWW-Authenticate: Digest realm=\"r\", nonce=\"n\"\r\n\r\n" +
		"RTSP/1.0 401 Unauthorized\r\nCSeq: 3\r\n\r\nRTSP/1.0 200 OK\r\nCSeq: 5\r\nContent-Base: rtsp://10.9.8.7/live/\r\nContent-Type: application/sdp\r\nContent-Length: 94\r\n\r\n" +
		"v=0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:rtsp://10.9.8.7/live/trackID=1\r\n" +
		"$\x00\x00\x10\x80\xe0\x00\x01\x00\x00\x00\x00\x00\x00\x00\x00\x65\x80\x00\x00RTSP/1.0 302 Moved\r\nCSeq: 4\r\nLocation: rtsp://10.9.8.7/other\r\n\r\n"
	f.Add([]byte(ask), []byte(answer), uint8(7), false)
	f.Add([]byte(ask), []byte(answer), uint8(200), true)
	f.Add([]byte("$\x00\xff\xff"+ask), []byte("$\x00\xff\xff"+answer+"OPTIONS * RTSP/1.0\r\nCSeq: 9\r\n\r\n"), uint8(50), true)
	f.Add([]byte("GET / HTTP/1.1\r\n\r\n"), []byte("SSH-2.0-x\r\n"), uint8(255), false)

	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { core.Close() })
	loop := core.Loop(0)
	f.Fuzz(func(t *testing.T, fromVisitor, fromCamera []byte, size uint8, late bool) {
		target, err := relay.ParseTarget("rtsp://admin:secret@10.9.8.7/live")
		if err != nil {
			t.Fatal(err)
		}
		publish, err := relay.ParsePublish("rtsp://cams.example.com/gate")
		if err != nil {
			t.Fatal(err)
		}
		svc := Service{Service: relay.Service{Name: "gate", Publish: publish, Target: target}}
		if late {
			svc.Deadline = time.Second
		}
		r := &Relay{log: slog.New(slog.DiscardHandler)}
		list, err := r.makeServices([]Service{svc})
		if err != nil {
			t.Fatal(err)
		}
		near, far := new(memnet.Network).Pipe()
		var toCamera bytes.Buffer
		cameraEnded := make(chan struct{})
		go func() {
			defer close(cameraEnded)
			toCamera.ReadFrom(far)
			far.Close()
		}()
		toVisitor := &collector{}
		done := make(chan struct{})
		loop.Post(func() {
			p := &peer{relay: r, loop: loop}
			var here, there *tunnel.Session
			c := newProxy(p, list.list[0], nil, false)
			here = tunnel.New(tunnel.Config{Client: true, Accept: func(st *tunnel.Stream, _ []byte) { c.visitor = st; st.SetHandler(visitorSide{c}) }}, loop.Now())
			there = tunnel.New(tunnel.Config{}, loop.Now())
			a, b := &pipe{loop: loop, to: there}, &pipe{loop: loop, to: here}
			a.back, b.back = b, a
			here.Attach(a, tunnel.RoleInteractive, loop.Now())
			there.Attach(b, tunnel.RoleInteractive, loop.Now())
			flush := func() {
				for more := true; more; more = a.sent || b.sent {
					a.sent, b.sent = false, false
					here.Flush(loop.Now())
					there.Flush(loop.Now())
				}
			}
			flush()
			st, err := there.Open([]byte("x"))
			if err != nil {
				t.Error(err)
			}
			st.SetHandler(toVisitor)
			flush()
			conn, err := loop.Attach(near)
			if err != nil {
				t.Error(err)
			}
			c.begin(conn)
			n := 1 + int(size)*8
			var kept []byte
			for !c.gone && len(fromVisitor)+len(fromCamera) > 0 {
				k := min(n, len(fromVisitor))
				st.Write(fromVisitor[:k])
				fromVisitor = fromVisitor[k:]
				flush()
				k = min(n, len(fromCamera))
				kept = append(kept, fromCamera[:k]...)
				fromCamera = fromCamera[k:]
				used := cameraSide{c}.OnData(kept)
				kept = kept[used:]
				flush()
			}
			visitorSide{c}.OnClose(nil)
			flush()
			here.Close(nil)
			there.Close(nil)
			conn.Close()
			close(done)
		})
		<-done
		<-cameraEnded

		check := func(who string, b []byte, url string) {
			var d rtsp.Demux
			var m rtsp.Message
			for len(b) > 0 {
				k, n, err := d.Next(b, &m)
				if err != nil {
					t.Fatalf("the %s gets %q: %v", who, b, err)
				}
				if k == rtsp.None {
					return
				}
				if k == rtsp.Request && url != "" && !strings.HasPrefix(string(m.URL), url) {
					t.Fatalf("the camera is asked for %q", m.URL)
				}
				if k == rtsp.Request && url == "" {
					t.Fatalf("the visitor is asked for %q", m.URL)
				}
				for _, name := range [...]string{"Content-Base", "Content-Location", "Location"} {
					if u, err := rtsp.ParseURL(m.Get(name)); k == rtsp.Response && url == "" && err == nil && strings.HasPrefix(u.Authority, "10.9.8.7") {
						t.Fatalf("the visitor is told %q", b[:n])
					}
				}
				b = b[n:]
			}
		}
		check("visitor", toVisitor.got, "")
		if !bytes.Contains(toCamera.Bytes(), []byte("~")) {
			check("camera", toCamera.Bytes(), "rtsp://10.9.8.7/")
		}
	})
}

// pipe is a link between two sessions of a loop without a way between them.
type pipe struct {
	loop *evloop.Loop
	to   *tunnel.Session
	back *pipe
	sent bool
}

func (p *pipe) Send(b []byte) {
	p.sent = true
	p.to.Receive(p.back, b[tunnel.Headroom:], p.loop.Now())
}
func (p *pipe) Room() int   { return 64 << 10 }
func (p *pipe) Close(error) {}

// collector keeps what comes.
type collector struct{ got []byte }

func (c *collector) OnData(b []byte) int { c.got = append(c.got, b...); return len(b) }
func (c *collector) OnEOF()              {}
func (c *collector) OnDrain()            {}
func (c *collector) OnClose(error)       {}
