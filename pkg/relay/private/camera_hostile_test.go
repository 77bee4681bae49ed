package private

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// Whoever has the public relay can watch a camera, but neither change it nor speak through it.
func TestCameraIsOnlyWatched(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "", "/live"))
	v, _ := s.watch(f)
	c := f.accept()
	for _, test := range []struct{ request, answer string }{
		{"ANNOUNCE rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 1\nContent-Type: application/sdp\n\nv=0\n", "405 Method Not Allowed\nCSeq: 1\n"},
		{"RECORD rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 1\n", "405 Method Not Allowed\nCSeq: 1\n"},
		{"SET_PARAMETER rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 1\n\nreboot: 1\n", "405 Method Not Allowed\nCSeq: 1\n"},
		{"REBOOT rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 1\n", "501 Not Implemented\nCSeq: 1\n"},
		{"record rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 1\n", "501 Not Implemented\nCSeq: 1\n"},
		{"SETUP rtsp://cams.example.com/gate/1 RTSP/1.0\nCSeq: 1\nTransport: RTP/AVP/TCP;interleaved=0-1;mode=record\n", "461 Unsupported Transport\nCSeq: 1\n"},
		{
			"DESCRIBE rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 1\nRequire: www.onvif.org/ver20/backchannel\n",
			"551 Option not supported\nCSeq: 1\nUnsupported: www.onvif.org/ver20/backchannel\n",
		},
		{"DESCRIBE rtsp://cams.example.com/gate/..%2fadmin RTSP/1.0\nCSeq: 1\n", "404 Not Found\nCSeq: 1\n"},
		{"DESCRIBE rtsp://cams.example.com/gate/%2e%2E%5cadmin RTSP/1.0\nCSeq: 1\n", "404 Not Found\nCSeq: 1\n"},
	} {
		v.send(test.request)
		v.want("RTSP/1.0 " + test.answer)
	}
	v.send("SET_PARAMETER rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 2\n") // some keep alive with it
	c.want("SET_PARAMETER rtsp://CAMERA/live RTSP/1.0\nCSeq: 1\n")
	c.send("RTSP/1.0 200 OK\nCSeq: 1\n")
	v.want("RTSP/1.0 200 OK\nCSeq: 2\n")

	// A frame that began when its channel meant nothing does not become something else on its way.
	long := append([]byte("$\x01\xf0\x00"), []byte(strings.Repeat("RECORD rtsp://x RTSP/1.0\r\n\r\n", 0xf000/28+1))[:0xf000]...)
	v.sendRaw(long[:40000])
	v.sendRaw(nil)
	v.sendRaw(long[40000:])
	v.setUp(c, 2, 1)
	v.sendRaw([]byte("$\x65\x00\x05sound$\x01\x00\x04rtcp$\x00\x00\x05sound$\x01\x00\x04more"))
	c.want("$\x01\x00\x04rtcp")
	c.want("$\x01\x00\x04more")
}

// A camera that ends the connection with its 401 is dialled again, once, and asked with what it has asked for.
func TestCameraEndsAfterChallenge(t *testing.T) {
	for name, password := range map[string]string{"right": "secret", "wrong": "guess"} {
		t.Run(name, func(t *testing.T) {
			f := newFakeCamera(t)
			s := newSite(t, f.service(t, "admin:"+password, "/live"))
			log := &logBuffer{}
			s.peer.relay.log = slog.New(slog.NewTextHandler(log, nil))
			l := &login{nonce: "n1", offers: []string{`Digest realm="cam", nonce="%s"`}}
			v, stream := s.watch(f)
			v.send("OPTIONS rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 1\n")
			c := f.accept()
			c.want("OPTIONS rtsp://CAMERA/live RTSP/1.0\nCSeq: 1\n")
			c.send("RTSP/1.0 200 OK\nCSeq: 1\n")
			v.want("RTSP/1.0 200 OK\nCSeq: 1\n")
			v.sendRaw(append(v.message("DESCRIBE rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 2\n"),
				v.message("GET_PARAMETER rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 3\n")...))
			c.want("DESCRIBE rtsp://CAMERA/live RTSP/1.0\nCSeq: 2\n")
			c.want("GET_PARAMETER rtsp://CAMERA/live RTSP/1.0\nCSeq: 3\n")
			c.send(l.refuse("2"))
			c.conn.(*net.TCPConn).CloseWrite()

			c = f.accept()
			if password == "guess" {
				request := c.read()
				if !strings.HasPrefix(request, "DESCRIBE ") || !strings.Contains(request, "\nAuthorization: Digest ") {
					t.Fatalf("asks %q", request)
				}
				c.send(l.refuse(field(request, "CSeq")))
				v.want("RTSP/1.0 503 Service Unavailable\nCSeq: 2\n")
				c.send(l.refuse(field(c.read(), "CSeq")))
				v.want("RTSP/1.0 503 Service Unavailable\nCSeq: 3\n")
				c.conn.(*net.TCPConn).CloseWrite()
				v.wantEnd() // and not a third time
				stream.closeWrite()
				if n := log.count("camera refuses the password"); n != 1 {
					t.Errorf("the log has it %d times: %s", n, log.b.String())
				}
				return
			}
			for i, method := range []string{"DESCRIBE", "GET_PARAMETER"} {
				request := c.read()
				if !strings.HasPrefix(request, method+" ") || !l.check(request, "admin", password) {
					t.Fatalf("asks %q", request)
				}
				c.send("RTSP/1.0 200 OK\nCSeq: " + field(request, "CSeq") + "\n")
				v.want(fmt.Sprintf("RTSP/1.0 200 OK\nCSeq: %d\n", 2+i))
			}
			v.setUpAs(c, l, "admin", password)
			v.sendRaw([]byte("$\x01\x00\x04rtcp"))
			c.want("$\x01\x00\x04rtcp")
			c.sendRaw([]byte("$\x00\x00\x02hi"))
			v.want("$\x00\x00\x02hi")
			c.conn.(*net.TCPConn).CloseWrite() // the second time it is the end
			v.wantEnd()
			stream.closeWrite()
			s.wantAllEnded()
		})
	}
}

// setUpAs is setUp of a camera that wants a password.
func (p *rtspPeer) setUpAs(c *rtspPeer, l *login, user, password string) {
	p.t.Helper()
	p.send("SETUP rtsp://cams.example.com/gate/1 RTSP/1.0\nCSeq: 5\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\n")
	request := c.read()
	if !l.check(request, user, password) {
		p.t.Fatalf("asks %q", request)
	}
	// It takes the channels, and does not say so.
	c.send("RTSP/1.0 200 OK\nCSeq: " + field(request, "CSeq") + "\nSession: 1234 ;timeout=60\nTransport: RTP/AVP/TCP;unicast\n")
	p.want("RTSP/1.0 200 OK\nCSeq: 5\nSession: 1234 ;timeout=60\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\n")
}

// A camera that asks and does not read what it is answered ends its stream, and not this relay's memory.
func TestCameraAsksForEver(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "", "/live"))
	_, stream := s.watch(f)
	c := f.accept()
	c.conn.(*net.TCPConn).SetReadBuffer(4 << 10)
	ask := c.message("OPTIONS * RTSP/1.0\nCSeq: 1\nSession: " + strings.Repeat("x", 8<<10) + "\n")
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		for range 64 << 20 / len(ask) {
			if _, err := c.conn.Write(ask); err != nil {
				return
			}
		}
	}()
	stream.wantCode(tunnel.CodeRefused)
	<-ended
}

// A camera that does not send over TCP shows nothing, and the log says why, once however many try.
func TestCameraByUDP(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, f.service(t, "", "/live"))
	log := &logBuffer{}
	s.peer.relay.log = slog.New(slog.NewTextHandler(log, nil))
	for _, answer := range []string{
		"RTSP/1.0 461 Unsupported Transport\nCSeq: 1\nServer: x\n",
		"RTSP/1.0 200 OK\nCSeq: 1\nSession: 1\nTransport: RTP/AVP;unicast;client_port=0-1;server_port=5000-5001;source=10.0.0.7\n",
	} {
		v, stream := s.watch(f)
		v.send("SETUP rtsp://cams.example.com/gate/1 RTSP/1.0\nCSeq: 7\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\n")
		c := f.accept()
		c.want("SETUP rtsp://CAMERA/live/1 RTSP/1.0\nCSeq: 1\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\n")
		c.send(answer)
		v.want("RTSP/1.0 461 Unsupported Transport\nCSeq: 7\n")
		stream.closeWrite()
	}
	if n := log.count("does not send over TCP"); n != 1 {
		t.Errorf("the log has it %d times: %s", n, log.b.String())
	}
}

// What cameras leave out and get wrong does not show visitors where they are, nor are they lost for it.
func TestCameraManners(t *testing.T) {
	f := newFakeCamera(t)
	s := newSite(t, published(t, tcpService(t, "gate", "rtsp://10.9.8.7/live"), "rtsp://cams.example.com/gate"))
	s.do(func() {
		s.peer.relay.dialCamera = func(ctx context.Context) (net.Conn, error) { return new(net.Dialer).DialContext(ctx, "tcp", f.addr) }
	})
	v, _ := s.watch(f)
	v.send("DESCRIBE rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 4\n")
	c := f.accept()
	c.want("DESCRIBE rtsp://10.9.8.7/live RTSP/1.0\nCSeq: 1\n")
	// Its own port, which needs not be written.
	c.send("RTSP/1.0 302 Moved\nCSeq: 1\nLocation: rtsp://x:y@10.9.8.7:554/main\n")
	c.want("DESCRIBE rtsp://10.9.8.7/main RTSP/1.0\nCSeq: 2\n")
	// No reason, no CSeq, no type, names in lower case, lines that end with LF alone.
	sdp := "v=0\no=- 1 1 IN IP4 10.9.8.7\ns=-\na=control:\nm=video 0 RTP/AVP 96\na=control:rtsp://10.9.8.7:554/main/track1 \nm=audio 0 RTP/AVP 0\n"
	c.sendRaw(fmt.Appendf(nil, "RTSP/1.0 200\ncontent-length:  %d \ncontent-base: rtsp://10.9.8.7/main/\n\n%s", len(sdp), sdp))
	v.want("RTSP/1.0 200 OK\nCSeq: 4\ncontent-base: rtsp://cams.example.com/gate/\n\n" +
		"v=0\no=- 1 1 IN IP4 0.0.0.0\ns=-\na=control:\nm=video 0 RTP/AVP 96\na=control:rtsp://cams.example.com/gate/track1\nm=audio 0 RTP/AVP 0\n")
	v.send("GET_PARAMETER rtsp://cams.example.com/gate RTSP/1.0\nCSeq: 5\n")
	c.read()
	c.send("RTSP/1.0 404 Not Found\nCSeq: 3\n\n<a href=http://10.9.8.7/>Camera 3000</a>")
	v.want("RTSP/1.0 404 Not Found\nCSeq: 5\n")

	// A description that a long URL of the visitor's makes too long is not passed on.
	long := "rtsp://cams.example.com:8554/gate/" + strings.Repeat("x", 1900)
	v.send("DESCRIBE " + long + " RTSP/1.0\nCSeq: 6\n")
	c.read()
	host := "rtsp://" + strings.Repeat("v", 1900) + "/gate"
	c.send("RTSP/1.0 404 Not Found\nCSeq: 4\n")
	v.want("RTSP/1.0 404 Not Found\nCSeq: 6\n")
	v.send("DESCRIBE " + host + " RTSP/1.0\nCSeq: 7\n")
	c.read()
	c.send("RTSP/1.0 200 OK\nCSeq: 5\nContent-Type: application/sdp\n\nv=0\n" + strings.Repeat("a=control:/y\n", 1000))
	v.want("RTSP/1.0 502 Bad Gateway\nCSeq: 7\n")
}

// Frames with nothing in them cost memory, too.
func TestBacklogCountsEmptyFrames(t *testing.T) {
	q := &backlog{deadline: 30 * time.Second}
	d := &rtsp.Demux{First: true, Last: true}
	now := time.Unix(1000, 0)
	for range 100_000 {
		now = now.Add(time.Millisecond / 10)
		q.frame(d, []byte("$\x00\x00\x00"), 1<<20, now)
		q.age(now, 1<<20)
		if kept := len(q.items) - q.heads; kept > 1<<20/100 {
			t.Fatalf("%d frames are kept in %d bytes", kept, q.bytes)
		}
	}
}
