package public

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// peer2 is either end of an HTTP/2 connection, frame by frame.
type peer2 struct {
	t testing.TB
	net.Conn
	*http2.Framer
	block bytes.Buffer
	enc   *hpack.Encoder
}

func newPeer2(t testing.TB, c net.Conn, r io.Reader) *peer2 {
	p := &peer2{t: t, Conn: c, Framer: http2.NewFramer(c, r)}
	p.enc = hpack.NewEncoder(&p.block)
	p.ReadMetaHeaders = hpack.NewDecoder(4096, nil)
	return p
}

// visit2 is a visitor that has sent its preface and settings.
func visit2(t testing.TB, c net.Conn) *peer2 {
	p := newPeer2(t, c, c)
	io.WriteString(c, http2.ClientPreface)
	p.WriteSettings()
	return p
}

// serve2 is a server that has read the preface and has sent its settings.
func serve2(t testing.TB, c net.Conn, br *bufio.Reader, settings ...http2.Setting) *peer2 {
	p := newPeer2(t, c, br)
	preface := make([]byte, len(http2.ClientPreface))
	if _, err := io.ReadFull(br, preface); err != nil || string(preface) != http2.ClientPreface {
		t.Errorf("preface %q, %v", preface, err)
	}
	p.WriteSettings(settings...)
	return p
}

// head sends a head of name, value, and so on.
func (p *peer2) head(id uint32, end bool, fields ...string) {
	p.block.Reset()
	for i := 0; i < len(fields); i += 2 {
		p.enc.WriteField(hpack.HeaderField{Name: fields[i], Value: fields[i+1]})
	}
	p.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: p.block.Bytes(), EndStream: end, EndHeaders: true})
}

// get sends a GET request for http(s)://app.test/.
func (p *peer2) get(id uint32, fields ...string) {
	p.head(id, true, append([]string{":method", "GET", ":scheme", "https", ":authority", "app.test", ":path", "/"}, fields...)...)
}

// next returns the next frame that is about a stream or ends the connection, and answers
// what has to be answered. It returns nil at the end.
func (p *peer2) next() http2.Frame {
	for {
		f, err := p.ReadFrame()
		if err != nil {
			return nil
		}
		switch f := f.(type) {
		case *http2.SettingsFrame:
			if !f.IsAck() {
				p.WriteSettingsAck()
			}
		case *http2.PingFrame:
			if !f.IsAck() {
				p.WritePing(true, f.Data)
			}
		case *http2.WindowUpdateFrame:
		default:
			return f
		}
	}
}

// show is a frame in words.
func show(f http2.Frame) string {
	switch f := f.(type) {
	case nil:
		return "end"
	case *http2.MetaHeadersFrame:
		s := fmt.Sprint(f.StreamID)
		for _, h := range f.Fields {
			if h.Name != "date" {
				s += " " + h.Name + "=" + h.Value
			}
		}
		if f.StreamEnded() {
			s += " END"
		}
		return s
	case *http2.DataFrame:
		s := fmt.Sprintf("%d %q", f.StreamID, f.Data())
		if f.StreamEnded() {
			s += " END"
		}
		return s
	case *http2.RSTStreamFrame:
		return fmt.Sprint(f.StreamID, " ", f.ErrCode)
	case *http2.GoAwayFrame:
		return fmt.Sprint("GOAWAY ", f.LastStreamID, " ", f.ErrCode)
	}
	return fmt.Sprintf("%T", f)
}

// expect checks the next frames.
func (p *peer2) expect(want ...string) {
	p.t.Helper()
	for _, w := range want {
		if got := show(p.next()); got != w {
			p.t.Fatalf("got frame %s, want %s", got, w)
		}
	}
}

// visit2 connects a visitor that speaks HTTP/2.
func (r *testRelay) visit2() *peer2 {
	r.t.Helper()
	c, err := tls.Dial("tcp", r.https, &tls.Config{InsecureSkipVerify: true, ServerName: "app.test", NextProtos: []string{"h2"}})
	if err != nil {
		r.t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	r.t.Cleanup(func() { c.Close() })
	return visit2(r.t, c)
}

// rawTarget2 is a target that speaks HTTP/2, frame by frame: serve gets each connection,
// with its number.
func rawTarget2(t *testing.T, serve func(n int, p *peer2), settings ...http2.Setting) string {
	var n atomic.Int32
	return target(t, func(c net.Conn, br *bufio.Reader) { serve(int(n.Add(1)), serve2(t, c, br, settings...)) })
}

// inFakeTime2 runs f in fake time with a relay whose service https://app.test is served by
// serve, a handler of streams, in HTTP/1.1.
func inFakeTime2(t *testing.T, serve func(st *tunnel.Stream, b []byte), f func(r *testRelay, dial func() *peer2)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		core, err := evloop.New(evloop.Config{Loops: 2, Portable: true})
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		r := &testRelay{Relay: &Relay{Core: core, TLS: testTLS()}, t: t}
		r.Reload([]Site{{Name: "office", Keys: []string{"k"}, Publish: patterns("https://*.test")}})
		ln := &pipeListener{make(chan net.Conn), make(chan struct{})}
		r.Serve(ln, true)
		s := r.connect("office", nil, "app", "https://app.test")
		s.handle(func(st *tunnel.Stream, _ relay.Header) bool {
			st.SetHandler(&funcHandler{data: func(b []byte) int { serve(st, b); return len(b) }})
			return true
		})
		f(r, func() *peer2 {
			a, b := net.Pipe()
			ln.conns <- pipeEnd{b}
			c := tls.Client(a, &tls.Config{InsecureSkipVerify: true, ServerName: "app.test", NextProtos: []string{"h2"}})
			if err := c.Handshake(); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { a.Close() })
			return newPeer2(t, c, c)
		})
	})
}

// begin sends the preface and settings, and reads those of the relay.
func (p *peer2) begin() {
	io.WriteString(p.Conn, http2.ClientPreface)
	p.WriteSettings()
	p.ReadFrame()
	p.WriteSettingsAck()
}

// A visitor has headTime for its settings.
func TestNoSettings2(t *testing.T) {
	for _, what := range []string{"", http2.ClientPreface[:10], http2.ClientPreface, http2.ClientPreface + "\x00\x00\x06\x04"} {
		inFakeTime2(t, ok, func(r *testRelay, dial func() *peer2) {
			p := dial()
			start := time.Now()
			go io.WriteString(p.Conn, what)
			for _, want := range []string{"*http2.SettingsFrame", "*http2.WindowUpdateFrame", "GOAWAY 0 SETTINGS_TIMEOUT"} {
				f, err := p.ReadFrame()
				if got := show(f); got != want || err != nil {
					t.Errorf("%q: got %s, %v, want %s", what, got, err, want)
				}
			}
			p.expect("end")
			if d := time.Since(start); d < headTime || d > headTime+farewell+time.Second {
				t.Errorf("%q: took %v", what, d)
			}
		})
	}
}

// A head that does not end has headTime, whatever else goes on.
func TestSlowHead2(t *testing.T) {
	inFakeTime2(t, silent, func(r *testRelay, dial func() *peer2) {
		p := dial()
		p.begin()
		p.get(1)
		start := time.Now()
		p.head(3, true, ":method", "GET")
		p.Conn.Write([]byte("\x00\x00\x64\x01\x05\x00\x00\x00\x05")) // HEADERS of 100 bytes, of which there is none
		p.expect("3 PROTOCOL_ERROR")
		for {
			if f := p.next(); strings.HasPrefix(show(f), "GOAWAY") {
				if got := show(f); got != "GOAWAY 3 ENHANCE_YOUR_CALM" {
					t.Errorf("got %s", got)
				}
				break
			}
		}
		took(t, start, headTime)
	})
}

// A silent connection is closed after idleTime, and not while it is used.
func TestIdle2(t *testing.T) {
	inFakeTime2(t, ok, func(r *testRelay, dial func() *peer2) {
		p := dial()
		p.begin()
		for i := range uint32(3) {
			time.Sleep(idleTime - time.Second)
			p.get(1 + 2*i)
			p.expect(fmt.Sprint(1+2*i, " :status=200 content-length=2"), fmt.Sprintf("%d %q END", 1+2*i, "ok"))
		}
		start := time.Now()
		p.expect("GOAWAY 5 NO_ERROR", "end")
		if d := time.Since(start); d < idleTime || d > idleTime+farewell+time.Second {
			t.Errorf("took %v", d)
		}
	})
}

// A request that stands still is given up, without the others.
func TestSlowBody2(t *testing.T) {
	inFakeTime2(t, silent, func(r *testRelay, dial func() *peer2) {
		p := dial()
		p.begin()
		start := time.Now()
		p.head(1, false, ":method", "POST", ":scheme", "https", ":authority", "app.test", ":path", "/", "content-length", "10")
		p.WriteData(1, false, []byte("123"))
		p.expect("1 :status=408 content-type=text/plain; charset=utf-8 x-content-type-options=nosniff cache-control=no-store content-length=37",
			`1 "The request took too long to arrive.\n" END`)
		if d := time.Since(start); d < bodyTime || d > bodyTime+busyCheck+time.Second {
			t.Errorf("took %v", d)
		}
		p.expect("1 NO_ERROR") // the few bytes that are missing had some more time
		p.get(3)
		p.WritePing(false, [8]byte{1})
		p.WritePing(false, [8]byte{2})
	})
}

// A server that says nothing is given up after the response timeout.
func TestSilentServer2(t *testing.T) {
	inFakeTime2(t, silent, func(r *testRelay, dial func() *peer2) {
		p := dial()
		p.begin()
		p.get(1)
		if got := show(p.next()); !strings.HasPrefix(got, "1 :status=504 ") {
			t.Errorf("got %s", got)
		}
	})
}

// A visitor that has a request under way and is not heard of any more is asked, and given
// up if it does not answer.
func TestDeadVisitor2(t *testing.T) {
	for _, lives := range []bool{true, false} {
		inFakeTime2(t, func(st *tunnel.Stream, b []byte) {
			st.Write([]byte("HTTP/1.1 200 OK\r\n\r\n")) // and then nothing for ever
		}, func(r *testRelay, dial func() *peer2) {
			p := dial()
			p.begin()
			p.get(1)
			p.expect("1 :status=200")
			start, pings := time.Now(), 0
			for time.Since(start) < 10*time.Minute {
				f, err := p.ReadFrame()
				if err != nil {
					break
				}
				if f, ok := f.(*http2.PingFrame); ok {
					pings++
					if lives {
						p.WritePing(true, f.Data)
					}
				}
			}
			d := time.Since(start)
			switch {
			case lives && (d < 10*time.Minute || pings < 10):
				t.Errorf("%d pings, cut after %v", pings, d)
			case !lives && (pings == 0 || d < pingTime+deafTime || d > pingTime+deafTime+2*busyCheck):
				t.Errorf("%d pings, cut after %v", pings, d)
			}
			p.Conn.Close()
		})
	}
}

// A visitor that does not open its window has its response for stuckTime.
func TestStuck2(t *testing.T) {
	inFakeTime2(t, func(st *tunnel.Stream, b []byte) {
		st.Write([]byte("HTTP/1.1 200 OK\r\n\r\n"))
		st.Write(make([]byte, 70000))
	}, func(r *testRelay, dial func() *peer2) {
		p := dial()
		p.begin()
		start := time.Now()
		p.get(1)
		p.expect("1 :status=200")
		for {
			f := p.next()
			if _, isData := f.(*http2.DataFrame); isData {
				continue
			}
			if got := show(f); got != "1 CANCEL" {
				t.Errorf("got %s", got)
			}
			break
		}
		if d := time.Since(start); d < stuckTime || d > stuckTime+busyCheck+time.Second {
			t.Errorf("took %v", d)
		}
	})
}

const extendedConnect = http2.SettingEnableConnectProtocol

// A WebSocket over HTTP/2 (RFC 8441), to servers of both versions.
func TestWebSocket2(t *testing.T) {
	h1 := func(t *testing.T) string {
		return target(t, func(c net.Conn, br *bufio.Reader) {
			var key string
			for {
				line, err := br.ReadString('\n')
				if err != nil {
					return
				}
				if name, value, _ := strings.Cut(line, ": "); strings.EqualFold(name, "Sec-WebSocket-Key") {
					key = strings.TrimSpace(value)
				}
				if line == "\r\n" {
					break
				}
			}
			fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: %s\r\nSec-WebSocket-Protocol: chat\r\n\r\n", websocket.AcceptKey(key))
			io.WriteString(c, "hello")
			io.Copy(c, br)
		})
	}
	h2 := func(t *testing.T) string {
		return rawTarget2(t, func(_ int, p *peer2) {
			got := show(p.next())
			if want := "1 :method=CONNECT :protocol=websocket :scheme=https :authority=app.test :path=/chat sec-websocket-version=13 sec-websocket-protocol=chat"; !strings.HasPrefix(got, want) || strings.Contains(got, "key") {
				t.Errorf("request %s, want %s", got, want)
			}
			p.head(1, false, ":status", "200", "sec-websocket-protocol", "chat")
			p.WriteData(1, false, []byte("hello"))
			for {
				f, isData := p.next().(*http2.DataFrame)
				if !isData {
					return
				}
				p.WriteData(1, f.StreamEnded(), f.Data())
			}
		}, http2.Setting{ID: extendedConnect, Val: 1})
	}
	for name, start := range map[string]func(*testing.T) string{"app": h1, "h2c": h2} {
		t.Run(name, func(t *testing.T) {
			r := newTestRelay(t, false, nil)
			r.connect("office", map[string]string{name: start(t)}, name, "https://app.test")
			t.Run("from HTTP/2", func(t *testing.T) {
				p := r.visit2()
				p.head(1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "app.test", ":path", "/chat",
					"sec-websocket-version", "13", "sec-websocket-protocol", "chat")
				p.expect("1 :status=200 sec-websocket-protocol=chat", `1 "hello"`)
				p.WriteData(1, false, []byte("ping"))
				p.expect(`1 "ping"`)
				p.WriteData(1, true, nil)
				p.expect(`1 "" END`)
			})
			t.Run("from HTTP/1.1", func(t *testing.T) {
				v := r.dial(true)
				v.send("GET /chat HTTP/1.1\r\nHost: app.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
					"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n")
				res, _ := v.response("GET")
				if res.StatusCode != 101 || res.Header.Get("Sec-WebSocket-Accept") != "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" || res.Header.Get("Sec-WebSocket-Protocol") != "chat" {
					t.Errorf("%s %v", res.Status, res.Header)
				}
				v.expect("hello")
				v.send("ping")
				v.expect("ping")
			})
		})
	}
}

// What is no WebSocket does not look like one.
func TestNoWebSocket2(t *testing.T) {
	connect := []string{":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "app.test", ":path", "/", "sec-websocket-version", "13"}
	answer := func(text string) func(t *testing.T) string {
		return func(t *testing.T) string {
			return target(t, func(c net.Conn, br *bufio.Reader) {
				br.ReadString('\n')
				io.WriteString(c, text)
				io.Copy(io.Discard, br)
			})
		}
	}
	for _, tt := range []struct {
		name  string
		start func(*testing.T) string
		want  string
	}{
		{"app", answer("HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: wrong\r\n\r\n"), "1 :status=502 "},
		{"app", answer("HTTP/1.1 101 Switching Protocols\r\nUpgrade: other\r\nConnection: Upgrade\r\n\r\n"), "1 :status=502 "},
		{"app", answer("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"), "1 :status=502 "},
		{"app", answer("HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n"), "1 :status=403 content-length=0 END"},
		{"h2c", func(t *testing.T) string { return rawTarget2(t, func(_ int, p *peer2) { p.next() }) }, "1 :status=501 "},
	} {
		r := newTestRelay(t, false, nil)
		r.connect("office", map[string]string{tt.name: tt.start(t)}, tt.name, "https://app.test")
		p := r.visit2()
		p.head(1, false, connect...)
		if got := show(p.next()); !strings.HasPrefix(got, tt.want) {
			t.Errorf("got %s, want %s", got, tt.want)
		}
	}
}

// A request that the server says it has not seen is sent again, on so many connections, with
// what has come of its body.
func TestUnseen(t *testing.T) {
	for _, tt := range []struct {
		name   string
		refuse func(p *peer2)
	}{
		{"REFUSED_STREAM", func(p *peer2) { p.WriteRSTStream(1, http2.ErrCodeRefusedStream); p.next() }},
		{"GOAWAY", func(p *peer2) { p.WriteGoAway(0, http2.ErrCodeNo, nil); p.next() }},
	} {
		for _, always := range []bool{false, true} {
			t.Run(fmt.Sprint(tt.name, " always ", always), func(t *testing.T) {
				r := newTestRelay(t, false, nil)
				var conns atomic.Int32
				again := make(chan bool, 1)
				r.connect("office", map[string]string{"h2c": rawTarget2(t, func(n int, p *peer2) {
					conns.Store(int32(n))
					if got := show(p.next()); !strings.Contains(got, ":method=POST") || !strings.Contains(got, "x-a=b") || strings.Count(got, "x-forwarded-for=127.0.0.1") != 1 {
						t.Errorf("connection %d: %s", n, got)
					}
					p.expect(`1 "body"`)
					if n == 1 || always {
						tt.refuse(p)
						return
					}
					again <- true
					p.expect(`1 " and more" END`)
					p.head(1, true, ":status", "201")
					p.next()
				})}, "h2c", "https://app.test")
				p := r.visit2()
				p.head(1, false, ":method", "POST", ":scheme", "https", ":authority", "app.test", ":path", "/", "x-a", "b", "content-length", "13")
				p.WriteData(1, false, []byte("body"))
				want := "1 :status=503 "
				if !always {
					<-again
					p.WriteData(1, true, []byte(" and more"))
					want = "1 :status=201 content-length=0 END"
				}
				if got := show(p.next()); !strings.HasPrefix(got, want) {
					t.Errorf("got %s, want %s", got, want)
				}
				wantConns := int32(2)
				if always {
					wantConns = maxTries2
				}
				if n := conns.Load(); n != wantConns {
					t.Errorf("%d connections, want %d", n, wantConns)
				}
			})
		}
	}
}

// A connection that breaks takes its own requests along and no others; one that was reset
// because of one request takes nothing else.
func TestBroken2(t *testing.T) {
	r := newTestRelay(t, false, nil)
	r.connect("office", map[string]string{"h2c": rawTarget2(t, func(n int, p *peer2) {
		for {
			f, isHead := p.next().(*http2.MetaHeadersFrame)
			if !isHead {
				return
			}
			switch f.PseudoValue("path") {
			case "/reset":
				p.WriteRSTStream(f.StreamID, http2.ErrCodeInternal)
			case "/half":
				p.head(f.StreamID, false, ":status", "200")
				p.WriteData(f.StreamID, false, []byte("half"))
			case "/break":
				return
			default:
				p.head(f.StreamID, true, ":status", "204")
			}
		}
	})}, "h2c", "https://app.test")
	p := r.visit2()
	request := func(id uint32, method, path string) {
		p.head(id, true, ":method", method, ":scheme", "https", ":authority", "app.test", ":path", path)
	}
	request(1, "GET", "/half")
	p.expect("1 :status=200", `1 "half"`)
	request(3, "GET", "/reset")
	if got := show(p.next()); !strings.HasPrefix(got, "3 :status=502 ") {
		t.Errorf("got %s", got)
	}
	p.next() // its text
	request(5, "GET", "/")
	p.expect("5 :status=204 END")
	request(7, "POST", "/break")
	seen := map[string]bool{}
	for range 3 {
		seen[strings.Join(strings.Fields(show(p.next()))[:2], " ")] = true
	}
	if !seen["1 INTERNAL_ERROR"] || !seen["7 :status=502"] {
		t.Errorf("frames %v", seen)
	}
	request(9, "GET", "/")
	p.expect("9 :status=204 END")
}

// inFakeTimeTo2 runs f in fake time with a relay whose service http://app.test is served in
// HTTP/2: serve gets each connection.
func inFakeTimeTo2(t *testing.T, serve func(p *peer2), f func(r *testRelay, dial func() *testVisitor)) {
	t.Helper()
	inFakeTime(t, silent, func(r *testRelay, s *testSite, dial func() *testVisitor) {
		var servers sync.WaitGroup
		var conns []net.Conn
		onLoop(s.session.loop.Loop, func() {
			s.onStream = func(st *tunnel.Stream, _ relay.Header) bool {
				a, b := net.Pipe()
				c, err := s.session.loop.Attach(pipeEnd{b})
				if err != nil {
					t.Error(err)
				}
				forward.Splice(c, st, nil)
				conns = append(conns, a)
				servers.Go(func() { serve(newPeer2(t, a, a)); a.Close() })
				return true
			}
			list := announcements("h2c", "http://app.test")
			s.announce(list, make(chan []relay.AnnounceReply, 1))
		})
		synctest.Wait()
		f(r, dial)
		onLoop(s.session.loop.Loop, func() {
			for _, c := range conns {
				c.Close()
			}
		})
		servers.Wait()
	})
}

// begin2 is the server's side of a connection's start.
func (p *peer2) begin2() {
	io.ReadFull(p.Conn, make([]byte, len(http2.ClientPreface)))
	p.WriteSettings()
}

// A target that accepts and says nothing has readyTime.
func TestSilentTarget2(t *testing.T) {
	inFakeTimeTo2(t, func(p *peer2) { io.Copy(io.Discard, p.Conn) }, func(r *testRelay, dial func() *testVisitor) {
		v := dial()
		start := time.Now()
		v.send(get)
		if res, _ := v.response("GET"); res.StatusCode != 504 {
			t.Error(res.Status)
		}
		took(t, start, readyTime)
	})
}

// A call may be silent for as long as both sides live, and no longer.
func TestPatience2(t *testing.T) {
	for _, lives := range []bool{true, false} {
		pings := 0
		inFakeTimeTo2(t, func(p *peer2) {
			p.begin2()
			start := time.Now()
			for {
				f, err := p.ReadFrame()
				if err != nil {
					return
				}
				if f, ok := f.(*http2.PingFrame); ok && lives {
					pings++
					p.WritePing(true, f.Data)
				}
				if time.Since(start) > 2*time.Hour {
					p.head(1, true, ":status", "204")
				}
			}
		}, func(r *testRelay, dial func() *testVisitor) {
			v := dial()
			start := time.Now()
			v.send(get)
			res, _ := v.response("GET")
			switch d := time.Since(start); {
			case lives && (res.StatusCode != 204 || d < 2*time.Hour):
				t.Errorf("%s after %v", res.Status, d)
			case !lives && (res.StatusCode != 504 || d < pingTime+deafTime || d > pingTime+deafTime+2*time.Second):
				t.Errorf("dead target: %s after %v", res.Status, d)
			}
		})
		if lives && (pings < 200 || pings > 260) {
			t.Errorf("%d pings in two hours", pings)
		}
	}
}

// A connection that nobody uses is closed after keepTime2, by GOAWAY.
func TestIdleTarget2(t *testing.T) {
	var frames []string
	inFakeTimeTo2(t, func(p *peer2) {
		p.begin2()
		start := time.Now()
		for {
			f := p.next()
			frames = append(frames, fmt.Sprint(time.Since(start).Truncate(time.Second), " ", strings.Join(append(strings.Fields(show(f)), "")[:2], " ")))
			if f == nil {
				return
			}
			if f, isHead := f.(*http2.MetaHeadersFrame); isHead {
				p.head(f.StreamID, true, ":status", "204")
			}
		}
	}, func(r *testRelay, dial func() *testVisitor) {
		v := dial()
		for range 3 {
			v.send(get)
			if res, _ := v.response("GET"); res.StatusCode != 204 {
				t.Error(res.Status)
			}
			time.Sleep(keepTime2 - 2*time.Second)
			v.Conn.Close()
			v = dial()
		}
		time.Sleep(2 * keepTime2)
	})
	if want := []string{"0s 1 :method=GET", "58s 3 :method=GET", "1m56s 5 :method=GET", "2m56s GOAWAY 0", "3m0s end "}; !slices.Equal(frames, want) {
		t.Errorf("the target has seen %q, want %q", frames, want)
	}
}

// A visitor that does not answer is let go when the relay shuts down.
func TestDrainSilent2(t *testing.T) {
	inFakeTime2(t, ok, func(r *testRelay, dial func() *peer2) {
		p := dial()
		p.begin()
		p.get(1)
		p.expect("1 :status=200 content-length=2", `1 "ok" END`)
		start := time.Now()
		done := make(chan error)
		go func() {
			ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
			defer cancel()
			done <- r.Drain(ctx)
		}()
		for {
			f, err := p.ReadFrame()
			if err != nil {
				break
			}
			if show(f) == "GOAWAY 1 NO_ERROR" { // and not the first one, of a number that is never reached
				took(t, start, farewell)
				p.Conn.Close()
			}
		}
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

// A visitor above the limit is told so, whatever it speaks.
func TestFull2(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.MaxVisitors = 1 })
	r.connect("office", map[string]string{"app": httpTarget(t, http.NotFoundHandler())}, "app", "https://app.test")
	p := r.visit2()
	p.get(1)
	if got := show(p.next()); !strings.HasPrefix(got, "1 :status=404 ") {
		t.Errorf("got %s", got)
	}
	q := r.visit2()
	q.get(1)
	if got := show(q.next()); !strings.HasPrefix(got, "1 :status=503 ") || !strings.Contains(got, "retry-after=5") {
		t.Errorf("got %s", got)
	}
	for f := q.next(); f != nil; f = q.next() {
	}
}

// A request waits for a site that has not found the relay yet, with its body.
func TestHeld2(t *testing.T) {
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	r := newTestRelay(t, false, func(r *Relay) { r.Core, r.Grace = core, time.Minute })
	p := r.visit2()
	p.head(1, false, ":method", "POST", ":scheme", "https", ":authority", "app.test", ":path", "/a", "content-type", "text/x")
	p.WriteData(1, false, []byte("body, "))
	p.get(3)
	p.WriteRSTStream(3, http2.ErrCodeCancel) // nobody waits for this one any more
	p.WritePing(false, [8]byte{1})
	for {
		if f, err := p.ReadFrame(); err != nil {
			t.Fatal(err)
		} else if ping, ok := f.(*http2.PingFrame); ok && ping.IsAck() { // so the relay has seen it all
			break
		}
	}
	r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%s %s %s %v", r.URL.Path, r.Header.Get("Content-Type"), b, err)
	}))}, "app", "https://app.test")
	p.WriteData(1, true, []byte("all of it"))
	if got := show(p.next()); !strings.HasPrefix(got, "1 :status=200 ") {
		t.Errorf("got %s", got)
	}
	p.expect(`1 "/a text/x body, all of it <nil>" END`)
}

// A connection from before its site came, on another loop than the site has got, is exchanged for
// another one.
func TestOtherLoop2(t *testing.T) {
	r := newTestRelay(t, false, nil)
	var early []*peer2
	for range 20 {
		p := r.visit2()
		p.get(1)
		if got := show(p.next()); !strings.HasPrefix(got, "1 :status=503 ") {
			t.Errorf("got %s", got)
		}
		p.next() // its text
		early = append(early, p)
	}
	r.connect("office", map[string]string{"app": httpTarget(t, http.NotFoundHandler())}, "app", "https://app.test")
	elsewhere := 0
	for _, p := range early {
		p.get(3)
		got := show(p.next())
		if strings.HasPrefix(got, "3 :status=404 ") {
			continue
		}
		elsewhere++
		if !strings.HasPrefix(got, "3 :status=421 ") {
			t.Errorf("got %s", got)
		}
		p.next()
		p.expect("GOAWAY 2147483647 NO_ERROR", "GOAWAY 3 NO_ERROR", "end")
		p = r.visit2()
		p.get(1)
		if got := show(p.next()); !strings.HasPrefix(got, "1 :status=404 ") {
			t.Errorf("another connection: got %s", got)
		}
	}
	if elsewhere == 0 {
		t.Error("all connections were on one loop")
	}
}

// Visitors who do not read hold up nobody else, though they share the connection to the target.
func TestSlowReaders2(t *testing.T) {
	const size = 2 << 20
	var conns atomic.Int32
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { w.Write(make([]byte, size)) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols), ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateNew {
			conns.Add(1)
		}
	}}
	srv.Protocols.SetUnencryptedHTTP2(true)
	var served sync.WaitGroup
	served.Go(func() { srv.Serve(ln) })
	defer served.Wait()
	defer srv.Close()
	r := newTestRelay(t, false, nil)
	s := r.connect("office", map[string]string{"h2c": ln.Addr().String()}, "h2c", "https://app.test")
	p := r.visit2()
	for id := range uint32(20) {
		p.get(1 + 2*id)
	}
	for heads := 0; heads < 20; { // their bodies wait
		if _, isHead := p.next().(*http2.MetaHeadersFrame); isHead {
			heads++
		}
	}
	res, err := r.client2().Get("https://app.test/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if n, err := io.Copy(io.Discard, res.Body); n != size || err != nil {
		t.Errorf("%d bytes, %v", n, err)
	}
	if n := conns.Load(); n != 1 {
		t.Errorf("%d connections to the target, want 1", n)
	}
	// What waits for them is bounded.
	onLoop(s.session.loop.Loop, func() {
		svc := s.session.service("h2c")
		svc.sweeper.Stop() // which would look again
		svc.kept = maxKept2 + 1
	})
	if res, err := r.client2().Get("https://app.test/"); err != nil {
		t.Error(err)
	} else if res.Body.Close(); res.StatusCode != 503 {
		t.Errorf("with too much that waits: %s", res.Status)
	}
}

// Requests that a connection to the target has no room for get another one.
func TestRoom2(t *testing.T) {
	var wait sync.WaitGroup
	wait.Add(10)
	var mu sync.Mutex
	conns := map[string]int{}
	r := newTestRelay(t, false, nil)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			conns[r.RemoteAddr]++
			mu.Unlock()
			if r.URL.Path != "/" {
				wait.Done()
				wait.Wait()
			}
			io.WriteString(w, "ok")
		}),
		HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: 4},
		Protocols: new(http.Protocols),
	}
	srv.Protocols.SetUnencryptedHTTP2(true)
	var served sync.WaitGroup
	served.Go(func() { srv.Serve(ln) })
	defer served.Wait()
	defer srv.Close()
	r.connect("office", map[string]string{"h2c": ln.Addr().String()}, "h2c", "https://app.test")
	c := r.client2()
	get := func(path string) {
		res, err := c.Get("https://app.test" + path)
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		if b, _ := io.ReadAll(res.Body); string(b) != "ok" {
			t.Errorf("%s, %q", res.Status, b)
		}
	}
	get("/") // its settings are known then
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() { get("/wait") })
	}
	clients.Wait()
	if len(conns) < 3 {
		t.Errorf("connections %v, want at least 3 of up to 4 requests at a time", conns)
	}
}

// Requests that come before a target has said how few it takes at a time share as many
// connections as they need, and all are answered.
func TestBurst2(t *testing.T) {
	const requests = 100
	for _, most := range []int{1, 3} {
		t.Run(fmt.Sprint(most), func(t *testing.T) {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			var conns atomic.Int32
			var wait sync.WaitGroup
			wait.Add(requests)
			srv := &http.Server{
				Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					b, err := io.ReadAll(r.Body)
					wait.Done()
					wait.Wait() // all are under way at once
					fmt.Fprintf(w, "%s %v", b, err)
				}),
				ConnState: func(_ net.Conn, s http.ConnState) {
					if s == http.StateNew {
						conns.Add(1)
					}
				},
				HTTP2:     &http.HTTP2Config{MaxConcurrentStreams: most},
				Protocols: new(http.Protocols),
			}
			srv.Protocols.SetUnencryptedHTTP2(true)
			var served sync.WaitGroup
			served.Go(func() { srv.Serve(ln) })
			defer served.Wait()
			defer srv.Close()
			r := newTestRelay(t, false, nil)
			r.connect("office", map[string]string{"h2c": ln.Addr().String()}, "h2c", "https://app.test")
			c := r.client2()
			ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
			defer cancel()
			var clients sync.WaitGroup
			for i := range requests {
				clients.Go(func() {
					body := fmt.Sprint("body ", i)
					req, err := http.NewRequestWithContext(ctx, "POST", "https://app.test/", strings.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					res, err := c.Do(req)
					if err != nil {
						t.Error(err)
						return
					}
					defer res.Body.Close()
					if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 || string(b) != body+" <nil>" {
						t.Errorf("%s, %q, %v", res.Status, b, err)
					}
				})
			}
			clients.Wait()
			if n, want := int(conns.Load()), (requests+most-1)/most; n != want {
				t.Errorf("%d connections of up to %d requests for %d, want %d", n, most, requests, want)
			}
		})
	}
}

// WebSockets that have waited for a target's settings, and find that there is no room, get
// other connections.
func TestBurstOfWebSockets2(t *testing.T) {
	const sockets, most = 20, 3
	var conns atomic.Int32
	come := make(chan bool)
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"h2c": target(t, func(c net.Conn, br *bufio.Reader) {
		if conns.Add(1) == 1 {
			<-come
		}
		p := serve2(t, c, br, http2.Setting{ID: extendedConnect, Val: 1}, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: most})
		n := 0
		for f := p.next(); f != nil; f = p.next() {
			if h, isHead := f.(*http2.MetaHeadersFrame); isHead {
				if n++; n > most || h.PseudoValue("protocol") != "websocket" {
					t.Errorf("number %d: %s", n, show(f))
				}
				p.head(h.StreamID, false, ":status", "200")
			}
		}
	})}, "h2c", "https://app.test")
	p := r.visit2()
	for i := range uint32(sockets) {
		p.head(2*i+1, false, ":method", "CONNECT", ":protocol", "websocket", ":scheme", "https", ":authority", "app.test", ":path", "/", "sec-websocket-version", "13")
	}
	waitFor(t, func() (all bool) {
		onLoop(ts.session.loop.Loop, func() {
			c := ts.session.service("h2c").conns
			all = len(c) == 1 && len(c[0].calls) == sockets
		})
		return all
	})
	close(come)
	for range sockets {
		if got := show(p.next()); !strings.Contains(got, " :status=200") {
			t.Fatalf("got %s", got)
		}
	}
	if n, want := int(conns.Load()), (sockets+most-1)/most; n != want {
		t.Errorf("%d connections, want %d", n, want)
	}
}

// A visitor that does not read some responses gets the others nevertheless.
func TestUnread2(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"app": target(t, func(c net.Conn, br *bufio.Reader) {
		_, err := http.ReadRequest(br)
		if err == nil {
			_, err = io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		}
		for buf := make([]byte, 64<<10); err == nil; {
			_, err = c.Write(buf)
		}
	})}, "app", "https://app.test")
	p := r.visit2()
	p.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
	const unread = 30
	for i := range uint32(unread) {
		p.get(2*i + 1)
	}
	waitFor(t, func() (all bool) {
		onLoop(ts.session.loop.Loop, func() { all = ts.session.service("app").sent >= unread<<14 })
		return all
	})
	const id = 2*unread + 1
	p.get(id)
	p.WriteWindowUpdate(id, 8<<20)
	p.WriteWindowUpdate(0, 8<<20)
	for got := 0; got < 4<<20; {
		if f, ok := p.next().(*http2.DataFrame); ok {
			if f.StreamID != id {
				t.Fatalf("data of stream %d", f.StreamID)
			}
			got += len(f.Data())
		}
	}
}

// A visitor for whom there is no place is told so, and the connection ends, whether it acknowledges that or not.
func TestNoPlace2(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.MaxVisitors, r.MaxPerAddress = 1, 1 })
	r.connect("office", map[string]string{"app": target(t, okTarget)}, "app", "https://app.test")
	r.dial(true)
	waitFor(t, func() bool { return r.admission.connected() == 1 })
	p := r.visit2()
	p.get(1)
	for status := ""; ; {
		f, err := p.ReadFrame()
		if err == io.EOF {
			if status != ":status 503" {
				t.Errorf("%q", status)
			}
			return
		}
		if err != nil {
			t.Fatal(err)
		}
		if h, ok := f.(*http2.MetaHeadersFrame); ok {
			status = ":status " + h.PseudoValue("status")
		}
	}
}

// However many interim responses a server sends, a visitor that does not read them does not have them queued.
func TestInterims2(t *testing.T) {
	r := newTestRelay(t, false, nil)
	r.connect("office", map[string]string{"app": target(t, func(c net.Conn, br *bufio.Reader) {
		if _, err := http.ReadRequest(br); err == nil {
			io.WriteString(c, strings.Repeat("HTTP/1.1 103 Early Hints\r\nLink: </a>\r\n\r\n", 1000)+"HTTP/1.1 204 No Content\r\n\r\n")
		}
	})}, "app", "https://app.test")
	p := r.visit2()
	p.get(1)
	for n := 0; ; n++ {
		if h, ok := p.next().(*http2.MetaHeadersFrame); ok && h.PseudoValue("status") == "204" {
			if n != maxInterims {
				t.Errorf("%d interim responses", n)
			}
			return
		}
	}
}
