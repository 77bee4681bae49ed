package public

import (
	"bytes"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
)

// tunnelTest is a relay with cameras at cams.test/gate and cams.test/yard, and what it has made of
// those who came for RTSP.
type tunnelTest struct {
	*testRelay
	loop    *loop
	site    *testSite
	players []*tunnelPlayer
	log     *bytes.Buffer
}

// tunnelPlayer takes what an End gives it.
type tunnelPlayer struct {
	end     evloop.End
	client  *client
	how     string
	service *service

	in     []byte
	eof    bool
	drains int
	closed bool
	err    error

	hold bool // nothing of what comes is used
}

func (p *tunnelPlayer) OnData(b []byte) int {
	if p.closed || p.eof {
		panic("data behind the end")
	}
	if p.hold {
		return 0
	}
	p.in = append(p.in, b...)
	return len(b)
}
func (p *tunnelPlayer) OnEOF()   { p.eof = true }
func (p *tunnelPlayer) OnDrain() { p.drains++ }
func (p *tunnelPlayer) OnClose(err error) {
	if p.closed {
		panic("closed twice")
	}
	p.closed, p.err = true, err
}

// carrying runs f with such a relay, in fake time.
func carrying(t *testing.T, f func(t *testing.T, c *tunnelTest)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		c := newTunnelTest(t)
		defer c.Core.Close()
		f(t, c)
	})
}

func newTunnelTest(t testing.TB) *tunnelTest {
	core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
	if err != nil {
		t.Fatal(err)
	}
	c := &tunnelTest{log: new(bytes.Buffer)}
	c.testRelay = &testRelay{Relay: &Relay{Core: core, AccessLog: func(b []byte) { c.log.Write(b) }}, t: t}
	c.Reload([]Site{{Name: "office", Keys: []string{"k"}, Publish: patterns("rtsp://*.test", "http://*.test")}})
	c.loop = c.loops[0]
	c.loop.tunnels.serve = func(end evloop.End, cl *client, how string, s *service) {
		p := &tunnelPlayer{end: end, client: cl, how: how, service: s}
		c.players = append(c.players, p)
		end.SetHandler(p)
	}
	c.site = c.connect("office", nil, "gate", "rtsp://cams.test/gate", "yard", "rtsp://cams.test/yard", "web", "http://web.test")
	return c
}

// on runs f on the loop, and waits until nothing is left to be done.
func (c *tunnelTest) on(f func()) {
	onLoop(c.loop.Loop, f)
	synctest.Wait()
}

// memEnd is the socket of a visitor, in memory. Its fields belong to the loop.
type memEnd struct {
	c       *tunnelTest
	handler evloop.Handler
	out     []byte
	stuck   int  // what is written is pending
	fin     bool // the relay has sent its end of stream
	over    bool
	err     error
}

func (e *memEnd) SetHandler(h evloop.Handler) { e.handler = h }
func (e *memEnd) Write(b []byte) {
	if e.fin || e.over {
		panic("written behind the end")
	}
	e.out = append(e.out, b...)
}
func (e *memEnd) Pending() int    { return e.stuck }
func (e *memEnd) HighMark() int   { return 64 << 10 }
func (e *memEnd) Pause()          {}
func (e *memEnd) Resume()         {}
func (e *memEnd) CloseWrite()     { e.fin = true }
func (e *memEnd) Close()          { e.end(nil) }
func (e *memEnd) Abort(err error) { e.end(err) }
func (e *memEnd) end(err error) {
	if !e.over {
		e.over, e.err = true, err
		e.handler.OnClose(err)
	}
}

// visitorAt connects a visitor from an address.
func (c *tunnelTest) visitorAt(addr string, secure bool) *memEnd {
	e := &memEnd{c: c}
	c.on(func() {
		remote := netip.AddrPortFrom(netip.MustParseAddr(addr), 40000)
		conn, err := c.loop.AttachEnd(e, remote)
		if err != nil {
			panic(err)
		}
		v := &visitor{relay: c.Relay, loop: c.loop, conn: conn, client: client{addr: remote, secure: secure}}
		if secure {
			v.sni = "cams.test"
		}
		v.verdict = c.admission.enter(remote.Addr())
		c.loop.add(v)
		v.serve()
	})
	return e
}

func (c *tunnelTest) visitor() *memEnd { return c.visitorAt("192.0.2.1", false) }

func (e *memEnd) send(s string)  { e.c.on(func() { e.handler.OnData([]byte(s)) }) }
func (e *memEnd) sendEOF()       { e.c.on(func() { e.handler.OnEOF() }) }
func (e *memEnd) reset()         { e.c.on(func() { e.end(errors.New("reset")) }) }
func (e *memEnd) isClosed() bool { return e.over || e.fin }

// got takes what has come.
func (e *memEnd) got() (s string) {
	e.c.on(func() { s, e.out = string(e.out), nil })
	return s
}

// player returns the only player, and what it has got.
func (c *tunnelTest) player() (p *tunnelPlayer) {
	c.t.Helper()
	if len(c.players) != 1 {
		c.t.Fatalf("%d players", len(c.players))
	}
	return c.players[0]
}

func b64(s string) string { return base64.StdEncoding.EncodeToString([]byte(s)) }

func head(lines ...string) string { return strings.Join(lines, "\r\n") + "\r\n\r\n" }

const tunnelCookie = "1a2b3c4d5e6f7a8b"

var (
	getHead  = head("GET /gate HTTP/1.0", "Host: cams.test", "x-sessioncookie: "+tunnelCookie, "Accept: application/x-rtsp-tunnelled")
	postHead = head("POST /gate HTTP/1.0", "Host: cams.test", "x-sessioncookie: "+tunnelCookie, "Content-Type: application/x-rtsp-tunnelled", "Content-Length: 32767")

	options  = "OPTIONS rtsp://cams.test/gate RTSP/1.0\r\nCSeq: 1\r\n\r\n"
	describe = "DESCRIBE rtsp://cams.test/gate RTSP/1.0\r\nCSeq: 2\r\nAccept: application/sdp\r\n\r\n"
	teardown = "TEARDOWN rtsp://cams.test/gate RTSP/1.0\r\nCSeq: 3\r\nSession: 1\r\n\r\n"
	rtcp     = "$\x01\x00\x08\x80\xc9\x00\x01abcd"
)

// tunnelClients are what players send, as it was captured, but for names.
var tunnelClients = []struct {
	name, get, post string
	up              []string // by POST
	raw             string   // behind it, by GET
}{{
	name: "ffmpeg 5.1",
	get: head("GET /gate HTTP/1.1", "User-Agent: Lavf/59.27.100", "Range: bytes=0-", "Connection: close", "Host: cams.test:8003", "Icy-MetaData: 1",
		"x-sessioncookie: 0a1b2c3d4e5f6071", "Accept: application/x-rtsp-tunnelled", "Pragma: no-cache", "Cache-Control: no-cache"),
	post: head("POST /gate HTTP/1.1", "User-Agent: Lavf/59.27.100", "Accept: */*", "Connection: close", "Host: cams.test:8003", "Icy-MetaData: 1",
		"x-sessioncookie: 0a1b2c3d4e5f6071", "Content-Type: application/x-rtsp-tunnelled", "Pragma: no-cache", "Cache-Control: no-cache",
		"Content-Length: 32767", "Expires: Sun, 9 Jan 1972 00:00:00 GMT"),
	up: []string{b64(options), b64(describe), b64(teardown)},
}, {
	name: "GStreamer 1.22",
	get: head("GET /gate HTTP/1.0", "Host: cams.test:8003", "x-sessioncookie: abcdefghijklmnopqrstuvw", "Accept: application/x-rtsp-tunnelled",
		"Date: Sun, 22 Nov 2026 10:00:00 GMT", "User-Agent: GStreamer/1.22.0", "User-Agent: WMPlayer/12.00", "ClientChallenge: 9e26d33f2984236010ef6253fb1887f7",
		"CompanyID: KnKV4M4I/B2FjJ1TToLycw==", "GUID: 00000000-0000-0000-0000-000000000000", "RegionData: 0", "PlayerStarttime: [28/03/2003:22:50:23 00:00]"),
	post: head("POST /gate HTTP/1.0", "Host: cams.test:8003", "x-sessioncookie: abcdefghijklmnopqrstuvw", "Content-Type: application/x-rtsp-tunnelled",
		"Content-Length: 32767", "Expires: Sun, 9 Jan 1972 00:00:00 GMT", "Pragma: no-cache", "Cache-Control: no-cache"),
	up: []string{b64(options), b64(describe), b64(rtcp), b64(rtcp), b64(teardown)},
}, {
	name: "live555 2026.06",
	get: head("GET /gate HTTP/1.0", "CSeq: 1", "User-Agent: openRTSP (LIVE555 Streaming Media v2026.06.01)", "Host: cams.test",
		"x-sessioncookie: 5f3a1c9b7d2e4f60812345a", "Accept: application/x-rtsp-tunnelled", "Pragma: no-cache", "Cache-Control: no-cache"),
	post: head("POST /gate HTTP/1.0", "CSeq: 1", "User-Agent: openRTSP (LIVE555 Streaming Media v2026.06.01)", "Host: cams.test",
		"x-sessioncookie: 5f3a1c9b7d2e4f60812345a", "Content-Type: application/x-rtsp-tunnelled", "Pragma: no-cache", "Cache-Control: no-cache",
		"Content-Length: 32767", "Expires: Sun, 9 Jan 1972 00:00:00 GMT"),
	up:  []string{b64(options), b64(describe), b64(teardown)},
	raw: rtcp + rtcp,
}, {
	name: "gortsplib 5.6.4",
	get: head("GET /gate HTTP/1.1", "Host: cams.test:8003", "X-Sessioncookie: 0123456789abcdef0123456789abcdef",
		"Accept: application/x-rtsp-tunnelled", "Content-Length: 30000"),
	post: head("POST /gate HTTP/1.1", "Host: cams.test:8003", "X-Sessioncookie: 0123456789abcdef0123456789abcdef",
		"Content-Type: application/x-rtsp-tunnelled", "Content-Length: 30000"),
	up: []string{b64(options), b64(describe + rtcp[:6]), b64(rtcp[6:] + teardown)},
}, {
	name: "QuickTime 7", // its samples have no Host
	get: head("GET /gate HTTP/1.0", "User-Agent: QTS (qtver=4.1;cpu=PPC;os=Mac 8.6)", "x-sessioncookie: tD9hKgAAfB8ABCftAAAAAw", "Accept: application/x-rtsp-tunnelled",
		"Pragma: no-cache", "Cache-Control: no-cache"),
	post: head("POST /gate HTTP/1.0", "User-Agent: QTS (qtver=4.1;cpu=PPC;os=Mac 8.6)", "Content-Type: application/x-rtsp-tunnelled",
		"x-sessioncookie: tD9hKgAAfB8ABCftAAAAAw", "Pragma: no-cache", "Cache-Control: no-cache", "Content-Length: 32767", "Expires: Sun, 9 Jan 1972 00:00:00 GMT"),
	up: []string{b64(options)[:10] + "\r\n" + b64(options)[10:] + "\r\n", b64(describe[:7]) + b64(describe[7:]), b64(teardown)},
}, {
	name: "no length, no host",
	get:  head("GET /gate/trackID=1 HTTP/1.1", "x-sessioncookie: !", "accept: text/html, Application/X-RTSP-Tunnelled;q=1"),
	post: head("POST /gate/ HTTP/1.1", "x-sessioncookie: !", "content-type: application/x-rtsp-tunnelled"),
	up:   []string{b64(options + describe + rtcp + teardown)},
}, {
	name: "in chunks",
	get:  getHead,
	post: head("POST /gate HTTP/1.1", "Host: cams.test", "x-sessioncookie: "+tunnelCookie, "Content-Type: application/x-rtsp-tunnelled", "Transfer-Encoding: chunked"),
	up:   []string{chunk(b64(options)), chunk(b64(describe)[:9]), chunk(b64(describe)[9:] + b64(teardown))},
}}

func chunk(s string) string { return fmt.Sprintf("%x\r\n%s\r\n", len(s), s) }

// decoded is what a player has said by POST.
func decoded(up []string, chunked bool) string {
	s := strings.Join(up, "")
	if chunked {
		s = ""
		for _, c := range up {
			_, rest, _ := strings.Cut(c, "\r\n")
			s += strings.TrimSuffix(rest, "\r\n")
		}
	}
	var d rtsp.Base64
	b, err := d.Decode(nil, []byte(s))
	if err != nil {
		panic(err)
	}
	return string(b)
}

// What real players send is heard, in whatever pieces and in whatever order of the halves it comes.
func TestTunnelClients(t *testing.T) {
	for _, tt := range tunnelClients {
		t.Run(tt.name, func(t *testing.T) {
			up := strings.Join(tt.up, "")
			want := decoded(tt.up, strings.Contains(tt.post, "chunked"))
			carrying(t, func(t *testing.T, c *tunnelTest) {
				run := func(name string, getFirst bool, pieces func(string) []string) {
					t.Helper()
					c.players = nil
					get, post := c.visitor(), c.visitor()
					sendGet := func() {
						for _, s := range pieces(tt.get) {
							get.send(s)
						}
						if s := get.got(); s != tunnelAnswer {
							t.Fatalf("%s: GET is answered %q", name, s)
						}
					}
					if getFirst {
						sendGet()
					}
					for _, s := range pieces(tt.post + up) {
						post.send(s)
					}
					if !getFirst {
						sendGet()
					}
					for _, s := range pieces(tt.raw) {
						get.send(s)
					}
					p := c.player()
					if string(p.in) != want+tt.raw || p.how != "rtsp-http" || p.service.name != "gate" || p.closed || p.eof {
						t.Fatalf("%s: %+v, has heard %q, want %q", name, p, p.in, want+tt.raw)
					}
					c.on(func() { p.end.Write([]byte("RTSP/1.0 200 OK\r\n\r\n")) })
					if down, s := get.got(), post.got(); down != "RTSP/1.0 200 OK\r\n\r\n" || s != "" {
						t.Fatalf("%s: GET has %q, POST %q", name, down, s)
					}
					post.sendEOF()
					get.sendEOF()
					if !p.eof || p.closed {
						t.Fatalf("%s: end: %+v", name, p)
					}
					c.on(p.end.CloseWrite)
					if !p.closed || p.err != nil || !get.over || !post.fin {
						t.Fatalf("%s: closed %v, %v, GET %v, POST %v", name, p.closed, p.err, get.over, post.fin)
					}
					if n := c.admission.connected(); n != 0 || len(c.loop.tunnels.all)+len(c.loop.tunnels.held)+c.loop.tunnels.waiting != 0 {
						t.Fatalf("%s: %d visitors are left, %+v", name, n, c.loop.tunnels)
					}
				}
				for _, getFirst := range []bool{true, false} {
					run("whole", getFirst, func(s string) []string { return []string{s} })
					run("byte by byte", getFirst, func(s string) []string { return strings.Split(s, "") })
				}
				for i := range max(len(tt.get), len(tt.post+up)) {
					run(fmt.Sprintf("split at %d", i), i%2 == 0, func(s string) []string {
						if i >= len(s) {
							return []string{s}
						}
						return []string{s[:i], s[i:]}
					})
				}
			})
		})
	}
}

// What comes on the connection of the GET.
func TestTunnelOfOneConnection(t *testing.T) {
	for _, tt := range []struct{ name, up, want string }{
		{"frames", rtcp + rtcp, rtcp + rtcp},
		{"a long frame", "$\x00\xff\x00" + strings.Repeat("x", 0xff00), "$\x00\xff\x00" + strings.Repeat("x", 0xff00)},
		{"RTSP", options + describe, options + describe},
		{"an empty line, and RTSP", "\r\n" + options + "\r\n" + describe, options + "\r\n" + describe},
		{"POST", postHead + b64(options) + b64(describe), options + describe},
		{"POST behind a frame", rtcp + postHead + b64(options) + b64(describe), rtcp + options + describe},
		{"POST behind an empty line", "\r\n" + postHead + b64(options), options},
		{"POST without a host", strings.Replace(postHead, "Host: cams.test\r\n", "", 1) + b64(options), options},
		{"POST in chunks", strings.Replace(strings.Replace(postHead, "Content-Length: 32767", "Transfer-Encoding: chunked", 1), "1.0", "1.1", 1) +
			chunk(b64(options)) + chunk(b64(describe)) + "0\r\n\r\n" + rtcp + teardown, options + describe + rtcp + teardown},
		{"what is no RTSP", "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n", "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"},
	} {
		carrying(t, func(t *testing.T, c *tunnelTest) {
			run := func(pieces ...string) {
				t.Helper()
				c.players = nil
				v := c.visitor()
				for _, s := range pieces {
					v.send(s)
				}
				if p := c.player(); string(p.in) != tt.want {
					t.Fatalf("%s: %q in %d pieces is heard as %q, want %q", tt.name, tt.up, len(pieces), p.in, tt.want)
				}
				if s := v.got(); s != tunnelAnswer {
					t.Errorf("%s: %q", tt.name, s)
				}
				v.sendEOF()
				p := c.player()
				if !p.eof {
					t.Errorf("%s: the end is not heard", tt.name)
				}
				c.on(p.end.Close)
			}
			all := getHead + tt.up
			run(all)
			if len(all) < 1000 {
				run(strings.Split(all, "")...)
			}
			for i := 1; i < min(len(all), 600); i++ {
				run(all[:i], all[i:])
			}
			if n := c.admission.connected(); n != 0 {
				t.Errorf("%s: %d visitors are left", tt.name, n)
			}
		})
	}
}

// A POST in the middle of a GET's connection that is another tunnel's ends this one.
func TestTunnelInnerStranger(t *testing.T) {
	carrying(t, func(t *testing.T, c *tunnelTest) {
		for _, other := range []string{
			strings.Replace(postHead, tunnelCookie, "other", 1),
			strings.Replace(postHead, "application/x-rtsp-tunnelled", "text/plain", 1),
			"POST / HTTP/1.0\r\nbad header\r\n\r\n",
			"POST /" + strings.Repeat("x", 20<<10),
		} {
			v := c.visitor()
			v.send(getHead)
			v.send(other + b64(options))
			if !v.isClosed() || len(c.players) != 0 || v.got() != tunnelAnswer {
				t.Errorf("%.80q: closed %v, %d players", other, v.isClosed(), len(c.players))
			}
		}
	})
}

// A message of one half is never torn by one of the other.
func TestTunnelMessagesStayWhole(t *testing.T) {
	carrying(t, func(t *testing.T, c *tunnelTest) {
		up := b64(options + describe)
		for i := range up {
			for j := range rtcp {
				get, post := c.visitor(), c.visitor()
				c.players = nil
				get.send(getHead)
				post.send(postHead + up[:i])
				get.send(rtcp[:j])
				post.send(up[i:])
				get.send(rtcp[j:])
				p := c.player()
				if s := string(p.in); s != options+describe+rtcp {
					t.Fatalf("split at %d and %d: %q", i, j, s)
				}
				get.reset()
			}
			get, post := c.visitor(), c.visitor()
			c.players = nil
			get.send(getHead)
			post.send(postHead + up[:i])
			get.send(rtcp)
			post.send(up[i:])
			switch s := string(c.players[0].in); s {
			case rtcp + options + describe, options + rtcp + describe, options + describe + rtcp:
			default:
				t.Fatalf("split at %d: %q", i, s)
			}
			get.reset()
		}
	})
}

// POSTs come one after the other; each begins anew.
func TestTunnelPosts(t *testing.T) {
	carrying(t, func(t *testing.T, c *tunnelTest) {
		get, post := c.visitor(), c.visitor()
		get.send(getHead)
		post.send(postHead + b64(options))
		p := c.player()

		second := c.visitor()
		post.send(b64(describe)[:7]) // is not gone on with
		second.send(postHead + b64(describe))
		if string(p.in) != options+describe || !post.fin || post.got() != "" {
			t.Errorf("heard %q, the first one has its end: %v", p.in, post.fin)
		}
		post.send(b64(options)) // late
		if string(p.in) != options+describe {
			t.Errorf("heard %q", p.in)
		}

		// One that ends leaves the tunnel alive, for a while.
		second.sendEOF()
		time.Sleep(bereftTime - time.Second)
		third := c.visitor()
		third.send(postHead + b64(rtcp))
		third.reset()
		time.Sleep(bereftTime - time.Second)
		synctest.Wait()
		if string(p.in) != options+describe+rtcp || p.eof || p.closed || get.isClosed() {
			t.Errorf("heard %q, eof %v, closed %v %v", p.in, p.eof, p.closed, get.isClosed())
		}

		// The GET's own bytes keep it alive, too.
		get.send(rtcp)
		time.Sleep(bereftTime - time.Second)
		c.on(func() {
			if p.closed {
				t.Error("closed before its time")
			}
		})
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if !p.closed || p.err != errBereft || !get.fin {
			t.Errorf("closed %v, %v; GET has its end: %v", p.closed, p.err, get.fin)
		}
		if s := get.got(); s != tunnelAnswer {
			t.Errorf("GET has %q", s)
		}
		get.sendEOF()
		time.Sleep(time.Minute)
		synctest.Wait()
		if n := c.admission.connected(); n != 0 {
			t.Errorf("%d visitors are left", n)
		}
	})
}

// A POST of far more than its length is heard to the end.
func TestTunnelLongPost(t *testing.T) {
	carrying(t, func(t *testing.T, c *tunnelTest) {
		get, post := c.visitor(), c.visitor()
		get.send(getHead)
		post.send(postHead)
		want := ""
		for range 4000 {
			post.send(b64(rtcp))
			want += rtcp
		}
		if p := c.player(); string(p.in) != want || p.eof {
			t.Errorf("heard %d bytes of %d", len(p.in), len(want))
		}
	})
}

func TestTunnelRubbish(t *testing.T) {
	for _, rubbish := range []string{"?", "\x00", "A===", "=", "AAA-", options, "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"} {
		carrying(t, func(t *testing.T, c *tunnelTest) {
			get, post := c.visitor(), c.visitor()
			get.send(getHead)
			post.send(postHead + b64(options) + rubbish)
			p := c.player()
			if !strings.HasPrefix(string(p.in), options) || !p.closed || p.err != errBase64 || !get.fin || !post.fin || post.got() != "" {
				t.Errorf("%q: heard %q, closed %v, %v, GET and POST have their end: %v, %v", rubbish, p.in, p.closed, p.err, get.fin, post.fin)
			}
		})
	}
}

// Halves that are not of one tunnel do not meet.
func TestTunnelStrangers(t *testing.T) {
	for name, tt := range map[string]struct {
		addr      string
		secure    bool
		get, post string
		roaming   bool
		meet      bool
	}{
		"the same":           {meet: true},
		"another path":       {post: strings.Replace(postHead, "/gate", "/gate/trackID=1", 1), meet: true},
		"a query":            {post: strings.Replace(postHead, "/gate", "/gate?a=b", 1), meet: true},
		"another cookie":     {post: strings.Replace(postHead, tunnelCookie, tunnelCookie+"x", 1)},
		"case of the cookie": {post: strings.Replace(postHead, tunnelCookie, strings.ToUpper(tunnelCookie), 1)},
		"another service":    {post: strings.Replace(postHead, "/gate", "/yard", 1)},
		"another address":    {addr: "192.0.2.2"},
		"roaming":            {addr: "2001:db8::1", roaming: true, meet: true},
		"with TLS":           {secure: true},
	} {
		carrying(t, func(t *testing.T, c *tunnelTest) {
			for _, s := range c.site.session.services {
				s.camera.Roaming = tt.roaming
			}
			if tt.addr == "" {
				tt.addr = "192.0.2.1"
			}
			if tt.post == "" {
				tt.post = postHead
			}
			get, post := c.visitor(), c.visitorAt(tt.addr, tt.secure)
			post.send(tt.post + b64(options))
			get.send(getHead)
			if met := len(c.players) > 0; met != tt.meet {
				t.Errorf("%s: they meet: %v", name, met)
			}
			if tt.meet {
				return
			}
			// They are told so.
			time.Sleep(aloneTime + time.Second)
			if s := post.got(); !strings.HasPrefix(s, "HTTP/1.1 408 ") || !post.fin {
				t.Errorf("%s: POST has %q", name, s)
			}
			if s := get.got(); s != tunnelAnswer || !get.fin {
				t.Errorf("%s: GET has %q", name, s)
			}
			get.reset()
			post.reset()
			if n := c.admission.connected(); n != 0 || len(c.loop.tunnels.all)+len(c.loop.tunnels.held)+c.loop.tunnels.waiting != 0 {
				t.Errorf("%s: %d visitors are left, %+v", name, n, c.loop.tunnels)
			}
			if s := c.log.String(); strings.Count(s, "\n") != 2 || strings.Count(s, `"error":"timeout"`) != 2 || !strings.Contains(s, `"status":408`) {
				t.Errorf("%s: logged %s", name, s)
			}
		})
	}
}

// What is refused, and that nothing behind it is taken for a request.
func TestTunnelRefused(t *testing.T) {
	smuggled := "GET / HTTP/1.1\r\nHost: web.test\r\n\r\n"
	replace := func(s, a, b string) string {
		if !strings.Contains(s, a) {
			panic(a)
		}
		return strings.Replace(s, a, b, 1)
	}
	for name, tt := range map[string]struct {
		head   string
		status int
	}{
		"no cookie":               {replace(getHead, tunnelCookie, ""), 400},
		"a long cookie":           {replace(getHead, tunnelCookie, strings.Repeat("x", 129)), 400},
		"a cookie with a space":   {replace(postHead, tunnelCookie, "a b"), 400},
		"a cookie with UTF-8":     {replace(postHead, tunnelCookie, "ä"), 400},
		"two cookies":             {replace(getHead, "Accept:", "X-SessionCookie: x\r\nAccept:"), 400},
		"no such service":         {replace(postHead, "/gate", "/hall"), 404},
		"no such host":            {replace(getHead, "cams.test", "hall.test"), 404},
		"an HTTP service":         {replace(postHead, "cams.test", "web.test"), 404},
		"an ambiguous path":       {replace(postHead, "/gate", "/yard/../gate"), 400},
		"two hosts":               {replace(postHead, "Host:", "Host: a.test\r\nHost:"), 400},
		"an invalid host":         {replace(postHead, "cams.test", "a@b"), 400},
		"two lengths":             {replace(postHead, "Content-Length:", "Content-Length: 1\r\nContent-Length:"), 400},
		"a field that goes on":    {replace(postHead, "Content-Length:", "a: b\r\n c\r\nContent-Length:"), 400},
		"a line that ends by LF":  {replace(getHead, "Accept:", "a: b\nAccept:"), 400},
		"1.1 without host, plain": {"GET /gate HTTP/1.1\r\n\r\n", 400},
		"1.1 without host, bad":   {"GET /gate HTTP/1.1\r\nx-sessioncookie: 1\r\nAccept: */*\r\n\r\n", 400},
	} {
		carrying(t, func(t *testing.T, c *tunnelTest) {
			v := c.visitor()
			v.send(tt.head + smuggled)
			v.send(smuggled)
			v.sendEOF()
			s := v.got()
			if !strings.HasPrefix(s, fmt.Sprintf("HTTP/1.1 %d ", tt.status)) || strings.Count(s, "HTTP/1.") != 1 || !v.isClosed() {
				t.Errorf("%s: %q, closed %v", name, s, v.isClosed())
			}
			if len(c.players) != 0 || len(c.loop.tunnels.all) != 0 || c.admission.connected() != 0 {
				t.Errorf("%s: %d players, %d tunnels, %d visitors", name, len(c.players), len(c.loop.tunnels.all), c.admission.connected())
			}
		})
	}
}

// A head without a host is for the name of the handshake, or the only host that has cameras.
func TestTunnelWithoutHost(t *testing.T) {
	hostless := strings.Replace(getHead, "Host: cams.test\r\n", "", 1)
	for _, tt := range []struct {
		also   string // is published
		secure bool
		path   string
		want   string
	}{
		{"rtsp://cams.test/hall", false, "/hall", tunnelAnswer},
		{"rtsp://other.test/hall", true, "/gate", tunnelAnswer},
		{"rtsp://other.test/hall", true, "/hall", "HTTP/1.1 404 "},
		{"rtsp://other.test/hall", false, "/gate", "HTTP/1.1 4"},
		{"rtsp://other.test/hall", false, "/hall", "HTTP/1.1 4"},
	} {
		for _, version := range []string{"HTTP/1.0", "HTTP/1.1"} {
			carrying(t, func(t *testing.T, c *tunnelTest) {
				replies := make(chan []relay.AnnounceReply, 1)
				c.on(func() { c.site.announce(announcements("gate", "rtsp://cams.test/gate", "also", tt.also), replies) })
				<-replies
				v := c.visitorAt("192.0.2.1", tt.secure)
				v.send(strings.NewReplacer("/gate", tt.path, "HTTP/1.0", version).Replace(hostless))
				if s := v.got(); !strings.HasPrefix(s, tt.want) {
					t.Errorf("%s, secure %v, %s %s: %.40q, want %q", tt.also, tt.secure, version, tt.path, s, tt.want)
				}
			})
		}
	}
}

// Who asks in the clear for what is not is not sent elsewhere: the other half would not come there.
func TestTunnelInTheClear(t *testing.T) {
	r := newTestRelay(t, false, nil)
	r.connect("office", nil, "vault", "rtsps://cams.test/vault")
	v := r.dial(false)
	v.send(strings.Replace(getHead, "/gate", "/vault", 1))
	if res, body := v.response("GET"); res.StatusCode != 404 || body != troubleEncrypted.text+"\n" || !res.Close {
		t.Errorf("%s: %s", res.Status, body)
	}
}

// A GET for a tunnel that there is is refused; one that still waits makes room.
func TestTunnelTwice(t *testing.T) {
	carrying(t, func(t *testing.T, c *tunnelTest) {
		first, get, post := c.visitor(), c.visitor(), c.visitor()
		first.send(getHead)
		time.Sleep(aloneTime / 2)
		get.send(getHead)
		if !first.fin || get.isClosed() || get.got() != tunnelAnswer {
			t.Errorf("the first one has its end: %v, the second one: %v", first.fin, get.isClosed())
		}
		time.Sleep(aloneTime - time.Second) // it has all of its time
		post.send(postHead + b64(options))
		p := c.player()

		third := c.visitor()
		third.send(getHead + rtcp)
		if s := third.got(); !strings.HasPrefix(s, "HTTP/1.1 409 ") || !third.fin {
			t.Errorf("the third one has %q", s)
		}
		if string(p.in) != options || p.closed || get.isClosed() {
			t.Errorf("heard %q, closed %v %v", p.in, p.closed, get.isClosed())
		}
		get.reset()

		// POSTs likewise.
		a, b := c.visitor(), c.visitor()
		a.send(postHead + b64(options))
		b.send(postHead + b64(describe))
		c.players = nil
		again := c.visitor()
		again.send(getHead)
		if s := string(c.player().in); s != describe || !a.fin || a.got() != "" {
			t.Errorf("heard %q, the first POST has its end: %v", s, a.fin)
		}
	})
}

func TestTunnelsThatWait(t *testing.T) {
	carrying(t, func(t *testing.T, c *tunnelTest) {
		var all []*memEnd
		half := func(addr string, i int) *memEnd {
			e := c.visitorAt(addr, false)
			s := getHead
			if i%2 == 1 {
				s = postHead
			}
			e.send(strings.Replace(s, tunnelCookie, fmt.Sprint("c", i), 1))
			all = append(all, e)
			return e
		}
		for i := range maxAlone {
			if e := half("2001:db8::1", i); e.isClosed() {
				t.Fatalf("half %d is refused", i)
			}
		}
		if e := half("2001:db8::2", 1000); !e.isClosed() || !strings.HasPrefix(e.got(), "HTTP/1.1 503 ") {
			t.Error("one more of the network is not refused")
		}
		if e := half("192.0.2.1", 1000); e.isClosed() {
			t.Error("another address has no room")
		}
		if n := c.loop.drain(false); n != maxAlone+1 {
			t.Errorf("%d newcomers", n)
		}
		c.on(func() { c.loop.drain(true) })
		for i, e := range all {
			if !e.isClosed() {
				t.Errorf("half %d is left", i)
			}
			e.reset()
		}
		if n := c.admission.connected(); n != 0 || len(c.loop.tunnels.all)+len(c.loop.tunnels.held)+c.loop.tunnels.waiting != 0 {
			t.Errorf("%d visitors are left, %+v", n, c.loop.tunnels)
		}
		// A half that goes makes room.
		for i := range 3 * maxAlone {
			if e := half("192.0.2.1", i); e.isClosed() {
				t.Fatalf("half %d is refused", i)
			} else if i%2 == 0 {
				e.sendEOF()
			} else {
				e.reset()
			}
		}
	})
}

// The End of a tunnel is one, whoever ends it.
func TestTunnelEnds(t *testing.T) {
	reset := errors.New("no more")
	for name, tt := range map[string]struct {
		do        func(c *tunnelTest, p *tunnelPlayer, get, post *memEnd)
		eof       bool
		err       bool
		hard, fin bool // how the GET ends
	}{
		"FIN, and TEARDOWN behind it": {func(c *tunnelTest, p *tunnelPlayer, get, post *memEnd) {
			get.sendEOF()
			if p.eof {
				c.t.Error("the last words of the POST are not waited for")
			}
			post.send(b64(teardown))
			post.sendEOF()
			if !p.eof || !strings.HasSuffix(string(p.in), teardown) {
				c.t.Errorf("heard %q, eof %v", p.in, p.eof)
			}
			c.on(p.end.CloseWrite)
		}, true, false, false, true},
		"FIN, and nothing": {func(c *tunnelTest, p *tunnelPlayer, get, post *memEnd) {
			get.sendEOF()
			time.Sleep(2 * lastWords)
			synctest.Wait()
			c.on(p.end.CloseWrite)
		}, true, false, false, true},
		"reset": {func(c *tunnelTest, p *tunnelPlayer, get, post *memEnd) {
			get.reset()
		}, false, true, true, false},
		"Close": {func(c *tunnelTest, p *tunnelPlayer, get, post *memEnd) {
			c.on(func() {
				p.end.Write([]byte("bye"))
				p.end.Close()
				p.end.Write([]byte("late"))
			})
			post.send(b64(describe)) // is not heard
			if s := get.got(); s != tunnelAnswer+"bye" {
				c.t.Errorf("GET has %q", s)
			}
			get.sendEOF()
		}, false, false, false, true},
		"CloseWrite": {func(c *tunnelTest, p *tunnelPlayer, get, post *memEnd) {
			c.on(p.end.CloseWrite)
			post.send(b64(describe))
			if string(p.in) != options+describe {
				c.t.Errorf("heard %q", p.in)
			}
			get.sendEOF()
			post.sendEOF()
		}, false, false, false, true},
		"Abort": {func(c *tunnelTest, p *tunnelPlayer, get, post *memEnd) {
			c.on(func() { p.end.Abort(reset) })
			if p.err != reset {
				c.t.Errorf("closed with %v", p.err)
			}
		}, false, true, true, false},
		"shutdown": {func(c *tunnelTest, p *tunnelPlayer, get, post *memEnd) {
			c.Core.Close()
		}, false, true, true, false},
	} {
		carrying(t, func(t *testing.T, c *tunnelTest) {
			get, post := c.visitor(), c.visitor()
			get.send(getHead)
			post.send(postHead + b64(options))
			p := c.player()
			tt.do(c, p, get, post)
			time.Sleep(time.Minute)
			synctest.Wait()
			if !p.closed || (p.err != nil) != tt.err || p.eof != tt.eof {
				t.Errorf("%s: closed %v, %v, eof %v", name, p.closed, p.err, p.eof)
			}
			if !get.over || get.fin != tt.fin || (get.err != nil) != tt.hard || !post.over {
				t.Errorf("%s: GET over %v, end %v, %v; POST over %v", name, get.over, get.fin, get.err, post.over)
			}
			if n := c.admission.connected(); n != 0 || len(c.loop.tunnels.all) != 0 {
				t.Errorf("%s: %d visitors, %d tunnels are left", name, n, len(c.loop.tunnels.all))
			}
		})
	}
}

// A handler that does not keep up is waited for, and then gets all of it.
func TestTunnelPause(t *testing.T) {
	carrying(t, func(t *testing.T, c *tunnelTest) {
		get, post := c.visitor(), c.visitor()
		get.send(getHead)
		post.send(postHead + b64(options))
		p := c.player()
		c.on(p.end.Pause)
		want := options
		for range 1000 {
			post.send(b64(describe))
			want += describe
		}
		get.send(rtcp)
		second := c.visitor()
		if string(p.in) != options {
			t.Errorf("a paused one heard %d bytes", len(p.in))
		}
		c.on(p.end.Resume)
		if string(p.in) != want+rtcp && string(p.in) != options+rtcp+want[len(options):] {
			t.Errorf("heard %d bytes of %d", len(p.in), len(want+rtcp))
		}

		// What is not used is kept, and presented to the next handler.
		p.in = nil
		p.hold = true
		second.send(postHead + b64(options))
		get.sendEOF()
		time.Sleep(2 * lastWords)
		q := &tunnelPlayer{}
		c.on(func() { p.end.SetHandler(q) })
		if string(q.in) != options || p.in != nil || !p.eof {
			t.Errorf("heard %q", q.in)
		}
	})
	// Up to a limit.
	carrying(t, func(t *testing.T, c *tunnelTest) {
		get, post := c.visitor(), c.visitor()
		get.send(getHead)
		post.send(postHead)
		p := c.player()
		p.hold = true
		for range evloop.MaxKept/len(describe) + 1 {
			post.send(b64(describe))
		}
		if !p.closed || p.err != evloop.ErrInputTooLong {
			t.Errorf("closed %v, %v", p.closed, p.err)
		}
	})
}

// FuzzTunnel has two connections send anything behind their heads, in any pieces. What comes up is that, message by
// message, and nothing if they are strangers.
func FuzzTunnel(f *testing.F) {
	f.Add([]byte(b64(options)+b64(describe)), []byte(rtcp+rtcp), "c", "c", false, uint64(1))
	f.Add([]byte(b64(rtcp[:5])+"\r\n"+b64(rtcp[5:])), []byte(options), "c", "c", true, uint64(2))
	f.Add([]byte("?"), []byte("$"), "c", "d", true, uint64(3))
	f.Add([]byte(b64("x")), []byte("\r\nx\n"), "", "", true, uint64(4))
	c := newTunnelTest(f)
	f.Cleanup(func() { c.Core.Close() })
	settle := func(fn func()) {
		onLoop(c.loop.Loop, fn)
		onLoop(c.loop.Loop, func() {})
	}
	f.Fuzz(func(t *testing.T, up, raw []byte, cookie1, cookie2 string, postFirst bool, seed uint64) {
		if len(up) > 8<<10 || len(raw) > 8<<10 || bytes.Contains(raw, []byte("POST")) ||
			strings.ContainsAny(cookie1+cookie2, "\r\n\x00") {
			return
		}
		c.players = nil
		ends := [2]*memEnd{{c: c}, {c: c}}
		in := [2][]byte{
			append([]byte(strings.Replace(getHead, tunnelCookie, cookie1, 1)), raw...),
			append([]byte(strings.Replace(postHead, tunnelCookie, cookie2, 1)), up...),
		}
		heads := [2]int{len(in[0]) - len(raw), len(in[1]) - len(up)}
		settle(func() {
			for _, e := range ends {
				remote := netip.MustParseAddrPort("192.0.2.1:1000")
				conn, err := c.loop.AttachEnd(e, remote)
				if err != nil {
					t.Error(err)
					return
				}
				v := &visitor{relay: c.Relay, loop: c.loop, conn: conn, client: client{addr: remote}}
				v.verdict = c.admission.enter(remote.Addr())
				c.loop.add(v)
				v.serve()
			}
		})
		send := func(i, n int) {
			n = min(n, len(in[i]))
			b := bytes.Clone(in[i][:n])
			in[i] = in[i][n:]
			settle(func() {
				if !ends[i].over {
					ends[i].handler.OnData(b)
				}
			})
		}
		first := 0
		if postFirst {
			first = 1
		}
		send(first, heads[first])
		send(1-first, heads[1-first])
		for len(in[0])+len(in[1]) > 0 {
			i := int(seed>>5) & 1
			if len(in[i]) == 0 {
				i = 1 - i
			}
			send(i, int(seed&31)+1)
			seed = seed*6364136223846793005 + 1442695040888963407
			seed ^= seed >> 33
		}
		settle(func() {})
		valid := func(s string) bool {
			s = strings.Trim(s, " \t")
			return s != "" && len(s) <= maxCookie && strings.IndexFunc(s, func(r rune) bool { return r <= ' ' || r >= 0x7f }) < 0
		}
		met := valid(cookie1) && strings.Trim(cookie1, " \t") == strings.Trim(cookie2, " \t")
		var heard []byte
		settle(func() {
			for _, p := range c.players {
				heard = append(heard, p.in...)
			}
		})
		posted, _ := new(rtsp.Base64).Decode(nil, up)
		if !met {
			posted = nil
		}
		if len(c.players) > 1 || met && len(c.players) == 0 {
			t.Fatalf("%d players", len(c.players))
		}
		if !valid(cookie1) {
			raw = nil
		}
		clean := met
		if _, err := new(rtsp.Base64).Decode(nil, up); err != nil {
			clean = false // all ends there
		}
		if !merged(heard, messages(posted), messages(bytes.TrimLeft(raw, "\r\n")), messages(raw), clean) {
			t.Fatalf("heard %q, sent %q and %q", heard, posted, raw)
		}
		settle(func() {
			for _, e := range ends {
				e.end(io.ErrUnexpectedEOF)
			}
		})
		settle(func() {})
		settle(func() {
			if n := c.admission.connected(); n != 0 || len(c.loop.tunnels.all) != 0 {
				t.Errorf("%d visitors, %d tunnels are left", n, len(c.loop.tunnels.all))
			}
		})
	})
}

// messages takes a stream apart; what is none comes byte by byte.
func messages(b []byte) (list []string) {
	var fr framer
	var m rtsp.Message
	for len(b) > 0 {
		n := fr.next(b, &m)
		if n == 0 {
			break
		}
		if fr.lost {
			n = 1
		}
		list = append(list, string(b[:n]))
		b = b[n:]
	}
	return list
}

// merged reports whether heard has the messages of both lists, or those at their beginning, each in its order. The second
// list may lack its empty lines.
func merged(heard []byte, a, b1, b2 []string, all bool) bool {
	for _, b := range [][]string{b1, b2} {
		type at struct{ i, j, n int }
		seen := map[at]bool{}
		todo := []at{{0, 0, 0}}
		for len(todo) > 0 {
			p := todo[len(todo)-1]
			todo = todo[:len(todo)-1]
			if p.n == len(heard) && (!all || p.i == len(a) && p.j == len(b)) {
				return true
			}
			try := func(q at, s string) {
				if q.n += len(s); bytes.HasPrefix(heard[p.n:], []byte(s)) && !seen[q] {
					seen[q] = true
					todo = append(todo, q)
				}
			}
			if p.i < len(a) {
				try(at{p.i + 1, p.j, p.n}, a[p.i])
			}
			if p.j < len(b) {
				try(at{p.i, p.j + 1, p.n}, b[p.j])
			}
		}
	}
	return false
}
