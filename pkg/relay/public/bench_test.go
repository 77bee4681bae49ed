package public

import (
	"bytes"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"runtime"
	"strings"
	"testing"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// BenchmarkKeepAlive is one visitor's request and response through the relay and
// a session in memory: the allocations are all that the relay, the session and
// its stand-in make for it.
func BenchmarkKeepAlive(b *testing.B) { benchmarkKeepAlive(b, nil) }

// BenchmarkKeepAliveLogged is the same with an access log that goes nowhere.
func BenchmarkKeepAliveLogged(b *testing.B) {
	benchmarkKeepAlive(b, func(r *Relay) { r.AccessLog, r.AccessAgent = func([]byte) {}, true })
}

func benchmarkKeepAlive(b *testing.B, change func(*Relay)) {
	r := newTestRelay(b, false, change)
	s := r.connect("office", nil, "app", "http://app.test")
	answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")
	s.handle(func(st *tunnel.Stream, _ relay.Header) bool {
		st.SetHandler(&funcHandler{data: func(b []byte) int { st.Write(answer); return len(b) }})
		return true
	})
	v := r.dial(false)
	req := []byte("GET / HTTP/1.1\r\nHost: app.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n")
	res := make([]byte, len(answer))
	b.ReportAllocs()
	for b.Loop() {
		v.Conn.Write(req)
		if _, err := io.ReadFull(v.Conn, res); err != nil {
			b.Fatal(err)
		}
	}
}

// memory is what the program has in use.
func memory() uint64 {
	var m runtime.MemStats
	runtime.GC()
	runtime.GC()
	runtime.ReadMemStats(&m)
	return m.HeapAlloc + m.StackInuse
}

// BenchmarkSilentVisitor measures what an upgraded connection that is silent
// holds, its stream at both ends of the session included.
func BenchmarkSilentVisitor(b *testing.B) {
	const n = 2000
	r := newTestRelay(b, false, nil)
	s := r.connect("office", nil, "app", "http://app.test")
	s.handle(func(st *tunnel.Stream, _ relay.Header) bool {
		st.SetHandler(&funcHandler{data: func(b []byte) int {
			st.Write([]byte("HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n"))
			return len(b)
		}})
		return true
	})
	for b.Loop() {
		var conns []net.Conn
		for range n {
			c, err := net.Dial("tcp", r.http)
			if err != nil {
				b.Fatal(err)
			}
			conns = append(conns, c)
		}
		before := memory()
		buf := make([]byte, 512)
		for _, c := range conns {
			io.WriteString(c, "GET / HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			if _, err := c.Read(buf); err != nil {
				b.Fatal(err)
			}
		}
		b.ReportMetric(float64(int64(memory()-before))/n, "B/visitor")
		for _, c := range conns {
			c.Close()
		}
	}
}

// BenchmarkSilentPlayer measures what a player holds to whom nothing comes, its stream at both ends of the session included.
func BenchmarkSilentPlayer(b *testing.B) {
	for _, how := range []string{"rtsp", "rtsp-http", "rtsp-ws", "fan_out"} {
		b.Run(how, func(b *testing.B) { benchmarkSilentPlayer(b, how) })
	}
}

func benchmarkSilentPlayer(b *testing.B, how string) {
	const n = 2000
	r := newCameraRelay(b, false, nil)
	s := r.connect("office", nil)
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(s.session.loop.Loop, func() {
		s.announce([]relay.Announcement{{Name: "gate", Publish: "rtsp://cams.test/gate", TargetScheme: "rtsp", Camera: &relay.Camera{FanOut: how == "fan_out"}}}, replies)
	})
	<-replies
	var m rtsp.Message
	s.handle(func(st *tunnel.Stream, _ relay.Header) bool {
		st.SetHandler(&funcHandler{data: func(b []byte) (used int) {
			for used < len(b) {
				var d rtsp.Demux
				k, n, err := d.Next(b[used:], &m)
				if err != nil || k == rtsp.None {
					break
				}
				if used += n; k != rtsp.Request {
					continue
				}
				cseq := string(m.Get("cseq"))
				switch string(m.Method) {
				case "DESCRIBE":
					st.Write([]byte(reply(cseq, 200, testSDP, "Content-Type: application/sdp")))
				case "SETUP":
					st.Write([]byte(reply(cseq, 200, "", "Session: 4711", "Transport: "+string(m.Get("transport")))))
				default:
					st.Write([]byte(reply(cseq, 200, "", "Session: 4711")))
				}
			}
			return used
		}})
		return true
	})
	dial := func(addr string) net.Conn {
		c, err := net.Dial("tcp", addr)
		if err != nil {
			b.Fatal(err)
		}
		return c
	}
	buf := make([]byte, 8192)
	until := func(c net.Conn, what string) string {
		for got := 0; ; {
			k, err := c.Read(buf[got:])
			if err != nil {
				b.Fatal(err)
			}
			if got += k; strings.Contains(string(buf[:got]), what) {
				return string(buf[:got])
			}
		}
	}
	for b.Loop() {
		var conns []net.Conn
		before := memory()
		for i := range n {
			addr := r.listener("rtsp").String()
			if how == "rtsp-http" || how == "rtsp-ws" {
				addr = r.http
			}
			c := dial(addr)
			up := func(s string) { io.WriteString(c, s) }
			conns = append(conns, c)
			switch how {
			case "rtsp-http":
				fmt.Fprintf(c, "GET /gate HTTP/1.0\r\nHost: cams.test\r\nx-sessioncookie: %d\r\nAccept: application/x-rtsp-tunnelled\r\n\r\n", i)
				until(c, "\r\n\r\n")
				post := dial(addr)
				conns = append(conns, post)
				fmt.Fprintf(post, "POST /gate HTTP/1.0\r\nHost: cams.test\r\nx-sessioncookie: %d\r\nContent-Type: application/x-rtsp-tunnelled\r\nContent-Length: 32767\r\n\r\n", i)
				up = func(s string) { io.WriteString(post, base64.StdEncoding.EncodeToString([]byte(s))) }
			case "rtsp-ws":
				up(socketHead)
				until(c, "\r\n\r\n")
				up = func(s string) { io.WriteString(c, message(websocket.Binary, s)) }
			}
			const url = "rtsp://cams.test/gate"
			up("DESCRIBE " + url + " RTSP/1.0\r\nCSeq: 1\r\n\r\n")
			until(c, "control:trackID=0\r\n")
			up("SETUP " + url + "/trackID=0 RTSP/1.0\r\nCSeq: 2\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n")
			_, id, _ := strings.Cut(until(c, "\r\n\r\n"), "Session: ")
			id = strings.FieldsFunc(id, func(r rune) bool { return r == ';' || r == '\r' })[0]
			up("PLAY " + url + "/ RTSP/1.0\r\nCSeq: 3\r\nSession: " + id + "\r\n\r\n")
			until(c, "\r\n\r\n")
		}
		b.ReportMetric(float64(int64(memory()-before))/n, "B/player")
		for _, c := range conns {
			c.Close()
		}
	}
}

// BenchmarkRequests is requests at full speed, many at a time on several connections, without and with what operators may see of
// them.
func BenchmarkRequests(b *testing.B) {
	for _, c := range []struct {
		name, service string
		change        func(*Relay)
		follow        bool
	}{
		{"hidden", "app", func(r *Relay) { r.HideRequests = true }, false},
		{"remembered", "app", nil, false},
		{"followed", "app", nil, true},
		{"inspected", "inspected", nil, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			r := newTestRelay(b, false, c.change)
			s := r.connect("office", nil, c.service, "http://app.test")
			answer := []byte("HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: 2\r\n\r\nok")
			s.handle(func(st *tunnel.Stream, _ relay.Header) bool {
				st.SetHandler(&funcHandler{data: func(b []byte) int { st.Write(answer); return len(b) }})
				return true
			})
			if c.follow {
				ctx, cancel := context.WithCancel(b.Context())
				ended := make(chan struct{})
				go func() {
					r.FollowRequests(ctx, Filter{}, func(Request, uint64) error { return nil })
					close(ended)
				}()
				defer func() { cancel(); <-ended }()
			}
			// As many requests are on their way as a pipeline holds.
			const deep = 32
			v := r.dial(false)
			req := bytes.Repeat([]byte("GET /some/path/to/a/thing?with=query HTTP/1.1\r\nHost: app.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"), deep)
			res := make([]byte, len(answer)*deep)
			b.ReportAllocs()
			b.ResetTimer()
			for i := 0; i < b.N; i += deep {
				v.Conn.Write(req)
				if _, err := io.ReadFull(v.Conn, res); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(float64(b.N)/b.Elapsed().Seconds(), "requests/s")
		})
	}
}

// BenchmarkRemember is what keeping a request for operators costs it, beside what it costs without.
func BenchmarkRemember(b *testing.B) {
	r := newTestRelay(b, false, nil)
	s := r.connect("office", nil, "app", "http://app.test")
	var req http1.Request
	if _, err := http1.ParseRequest([]byte("GET /some/path/to/a/thing?with=query HTTP/1.1\r\nHost: app.test\r\nUser-Agent: bench\r\nAccept: */*\r\n\r\n"), &req); err != nil {
		b.Fatal(err)
	}
	onLoop(s.session.loop.Loop, func() {
		ex := &exchange{loop: s.session.loop, service: s.session.service("app"), client: &client{proto: "HTTP/1.1"}}
		b.ReportAllocs()
		for b.Loop() {
			ex.id = ex.loop.number()
			ex.heading.set(r.Relay, &req)
			push(&ex.service.exchanges, ex)
			take(&ex.service.exchanges, ex)
			ex.remember()
		}
	})
}
