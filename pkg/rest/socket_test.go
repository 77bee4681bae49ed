package rest

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/memnet"
	"culvert.dev/pkg/websocket"
)

// peer is a client that does what it is told, on the bytes of a connection.
type peer struct {
	t   testing.TB
	c   net.Conn
	r   *bufio.Reader
	dec websocket.Decoder
	in  []byte // read, not decoded
}

// shake makes the handshake, with more header fields.
func shake(t testing.TB, c net.Conn, fields ...string) *peer {
	t.Helper()
	p := &peer{t: t, c: c, r: bufio.NewReader(c)}
	head := "GET /api/ws HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + websocket.NewKey() + "\r\n"
	for _, f := range fields {
		head += f + "\r\n"
	}
	if _, err := c.Write([]byte(head + "\r\n")); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(p.r, nil)
	if err != nil {
		t.Fatal(err)
	}
	if res.StatusCode != 101 {
		t.Fatal(res.Status)
	}
	return p
}

func (p *peer) frame(op websocket.Opcode, payload string) {
	p.t.Helper()
	if _, err := p.c.Write(websocket.AppendFrame(nil, op, []byte(payload), &websocket.Key{1, 2, 3, 4})); err != nil {
		p.t.Fatal(err)
	}
}

func (p *peer) send(messages ...string) {
	p.t.Helper()
	for _, m := range messages {
		p.frame(websocket.Text, m)
	}
}

// next returns the next message, or "PING", or "CLOSE code reason", or "END".
func (p *peer) next() string {
	p.t.Helper()
	var message []byte
	for {
		ev, n, err := p.dec.Next(p.in)
		if err != nil {
			p.t.Fatal(err)
		}
		p.in = p.in[n:]
		switch ev.Op {
		case websocket.None:
			b := make([]byte, 4096)
			n, err := p.r.Read(b)
			if err != nil {
				return "END"
			}
			p.in = b[:n]
		case websocket.Ping:
			return "PING"
		case websocket.Pong:
			return "PONG " + string(ev.Payload)
		case websocket.Close:
			status, reason := websocket.ParseClose(ev.Payload)
			return strings.TrimSpace(fmt.Sprint("CLOSE ", status, " ", reason))
		default:
			message = append(message, ev.Payload...)
			if ev.Final {
				return string(message)
			}
		}
	}
}

// want wants these messages, in any order.
func (p *peer) want(messages ...string) {
	p.t.Helper()
	var got []string
	for range messages {
		got = append(got, p.next())
	}
	slices.Sort(got)
	slices.Sort(messages)
	if !slices.Equal(got, messages) {
		p.t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(messages, "\n"))
	}
}

// sockets runs f with a way to open a connection to s: of package httpd on both backends of the loop, and of net/http.
func sockets(t *testing.T, setup func(*Server), f func(t *testing.T, s *Server, connect func() net.Conn)) {
	connect := func(t *testing.T, addr string) func() net.Conn {
		return func() net.Conn {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { c.Close() })
			c.SetDeadline(time.Now().Add(time.Minute))
			return c
		}
	}
	t.Run("loop", func(t *testing.T) {
		s, _ := newServer(t)
		setup(s)
		f(t, s, connect(t, onLoop(t, s)))
	})
	t.Run("net/http", func(t *testing.T) {
		s, _ := newServer(t)
		setup(s)
		web := httptest.NewServer(s)
		t.Cleanup(web.Close)
		f(t, s, connect(t, web.Listener.Addr().String()))
	})
}

// inBubble runs f in the time of a synctest bubble, with connections in memory.
func inBubble(t *testing.T, f func(t *testing.T, s *Server, connect func() net.Conn)) {
	synctest.Test(t, func(t *testing.T) {
		s, _ := newServer(t)
		core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
		if err != nil {
			t.Fatal(err)
		}
		srv := &httpd.Server{Handler: s}
		defer srv.Wait()
		defer core.Close()
		var mem memnet.Network
		f(t, s, func() net.Conn {
			ours, theirs := mem.Pipe()
			t.Cleanup(func() { ours.Close() })
			l := core.Loop(0)
			l.Post(func() {
				if c, err := l.Attach(theirs); err == nil {
					srv.Serve(c, l, httpd.Peer{})
				}
			})
			return ours
		})
	})
}

func TestMessages(t *testing.T) {
	sockets(t, func(*Server) {}, func(t *testing.T, s *Server, connect func() net.Conn) {
		p := shake(t, connect())
		for message, want := range map[string]string{
			`{"id":1,"call":"calc/Sum","in":{"a":3.12,"b":4.2}}`: `{"id":1,"result":7.32}`,
			`{"call":"bare/Point","in":{"X":1,"y":2},"id":"a"}`:  `{"id":"a","result":{"x":1,"y":2}}`,
			`{"id":2,"call":"calc/Divide","in":{"x":7,"y":2}}`:   `{"id":2,"result":[3,1]}`,
			`{"id":3,"call":"calc/List"}`:                        `{"id":3,"result":[]}`,
			`{"id":3,"call":"calc/List","in":null}`:              `{"id":3,"result":[]}`,
			`{"id":3,"call":"calc/Set/7"}`:                       `{"id":3,"result":{"id":7}}`,
			`{"id":4,"call":"calc/Text"}`:                        `{"id":4,"result":{"type":"text/plain; charset=utf-8","text":"plain \u003cb\u003e"}}`,
			`{"id":5,"call":"calc/Binary"}`:                      `{"id":5,"result":{"type":"application/octet-stream","base64":"AP8="}}`,
			`{"id":6,"call":"calc/Stream"}`:                      `{"id":6,"result":{"type":"text/csv","text":"1\n2\n"}}`,
			`{"id":7,"call":"calc/Sum","in":{"a":1}}`:            `{"id":7,"error":{"errorCode":400,"errorText":"parameter \"b\": is missing"}}`,
			`{"id":8,"call":"calc/Sum","in":[1]}`:                `{"id":8,"error":{"errorCode":400,"errorText":"want the parameters as a JSON object"}}`,
			`{"id":9,"call":"calc/Nope"}`:                        `{"id":9,"error":{"errorCode":404,"errorText":"service calc has no method \"Nope\""}}`,
			`{"id":10,"call":"calc/Panic"}`:                      `{"id":10,"error":{"errorCode":500,"errorText":"internal server error"}}`,
			`{"id":11,"call":"calc/Unencodable"}`:                `{"id":11,"error":{"errorCode":500,"errorText":"internal server error"}}`,
			`{"id":12}`:                                          `{"id":12,"error":{"errorCode":400,"errorText":"call is missing"}}`,
			`{"id":13,"cal":"calc/List"}`:                        `{"id":13,"error":{"errorCode":400,"errorText":"unknown member \"cal\": there are id, call, in, ahead, cancel, more"}}`,
			`{"id":14,"call":17}`:                                `{"id":14,"error":{"errorCode":400,"errorText":"call: want the name of a method"}}`,
			`{"call":"calc/List"}`:                               `{"id":null,"error":{"errorCode":400,"errorText":"id is missing"}}`,
			`{"id":{},"call":"a/b"}`:                             `{"id":null,"error":{"errorCode":400,"errorText":"id: want a number or a text of at most 64 bytes"}}`,
			`{"id":1,`:                                           `{"id":null,"error":{"errorCode":400,"errorText":"the message is no JSON"}}`,
			`[]`:                                                 `{"id":null,"error":{"errorCode":400,"errorText":"want the parameters as a JSON object"}}`,
			``:                                                   `{"id":null,"error":{"errorCode":400,"errorText":"the message is no JSON"}}`,
		} {
			p.send(message)
			p.want(want)
		}
		p.send(`{"id":1,"call":"calc/Count","in":{"to":2}}`, `{"id":99,"cancel":true}`)
		p.want(`{"id":1,"event":0}`, `{"id":1,"event":1}`, `{"id":1,"end":true}`)
		p.send(`{"id":1,"call":"calc/Count","in":{"to":1,"fail":"no more"}}`)
		p.want(`{"id":1,"event":0}`, `{"id":1,"error":{"errorCode":409,"errorText":"no more"}}`)
		p.frame(websocket.Ping, "are you there")
		p.want("PONG are you there")
		p.frame(websocket.Close, string(websocket.ClosePayload(1000, "bye")))
		p.want("CLOSE 1000", "END")
	})
}

// TestParallel has calls answered in the order in which they end.
func TestParallel(t *testing.T) {
	sockets(t, func(*Server) {}, func(t *testing.T, s *Server, connect func() net.Conn) {
		goOn := make(chan bool)
		s.Set(&Service{Root: "slow", Methods: []*Method{
			Of("Wait", func(ctx context.Context, in struct{}) (string, error) {
				select {
				case <-goOn:
					return "done", nil
				case <-ctx.Done():
					return "", ctx.Err()
				}
			}),
		}})
		p := shake(t, connect(), "User-Agent: tester", "X-Test: field")
		p.send(`{"id":1,"call":"slow/Wait"}`, `{"id":2,"call":"slow/Wait"}`, `{"id":3,"call":"calc/Sum","in":{"a":1,"b":2}}`)
		p.want(`{"id":3,"result":3}`)
		p.send(`{"id":1,"cancel":true}`)
		p.want(`{"id":1,"error":{"errorCode":499,"errorText":"cancelled"}}`)
		p.send(`{"id":4,"call":"bare/Who"}`)
		p.want(`{"id":4,"result":"bare Who \u003cnil\u003e websocket tester true field"}`)
		goOn <- true
		p.want(`{"id":2,"result":"done"}`)

		// An id has one call.
		p.send(`{"id":1,"call":"slow/Wait"}`, `{"id":1,"call":"slow/Wait"}`)
		p.want("CLOSE 1008 id 1 is that of a call under way", "END")
	})
}

func TestSocketLimits(t *testing.T) {
	sockets(t, func(*Server) {}, func(t *testing.T, s *Server, connect func() net.Conn) {
		s.SetLimits(Limits{SocketCalls: 2, SocketFeeds: 1, MaxBody: 1000, MaxPartial: 1500, MaxSockets: 3})
		s.Set(&Service{Root: "slow", Methods: []*Method{
			Of("Wait", func(ctx context.Context, in struct{}) (string, error) { <-ctx.Done(); return "", ctx.Err() }),
		}})
		p := shake(t, connect())
		p.send(`{"id":1,"call":"slow/Wait"}`, `{"id":2,"call":"slow/Wait"}`, `{"id":3,"call":"slow/Wait"}`,
			`{"id":4,"call":"calc/Forever"}`, `{"id":5,"call":"calc/Forever"}`)
		p.want(`{"id":3,"error":{"errorCode":429,"errorText":"2 calls are under way on this WebSocket: wait for their answers"}}`,
			`{"id":5,"error":{"errorCode":429,"errorText":"1 feeds are under way on this WebSocket: cancel one"}}`)
		p.send(`{"id":4,"cancel":true}`)
		p.want(`{"id":4,"error":{"errorCode":499,"errorText":"cancelled"}}`)

		// Messages are bounded, and so is what has come of all that are not whole.
		q := shake(t, connect())
		half := websocket.AppendFrame(nil, websocket.Text, make([]byte, 1000), &websocket.Key{})[:900]
		q.c.Write(half)
		q.frame(websocket.Ping, "") // part of the message
		r := shake(t, connect())
		q.t, r.t = t, t
		eventually(t, "half of a message", func() bool { return s.partial.Load() >= 800 })
		if res := refused(t, connect()); res != "503 Service Unavailable" {
			t.Error("a fourth WebSocket:", res)
		}
		r.c.Write(half)
		r.want("CLOSE 1013 too much is under way: try again", "END")
		q.c.Close()
		p.send(strings.Repeat(" ", 1001))
		p.want("CLOSE 1009 message is longer than 1000 bytes", "END")
		eventually(t, "the end of the messages", func() bool { return s.partial.Load() == 0 })
	})
}

// refused makes a handshake that has no success and returns the status.
func refused(t *testing.T, c net.Conn, fields ...string) string {
	head := "GET /api/ws HTTP/1.1\r\nHost: example.com\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: " + websocket.NewKey() + "\r\n"
	for _, f := range fields {
		head += f + "\r\n"
	}
	if _, err := c.Write([]byte(head + "\r\n")); err != nil {
		t.Fatal(err)
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		t.Fatal(err)
	}
	return res.Status
}

func TestConnect(t *testing.T) {
	left := make(chan any, 10)
	sockets(t, func(s *Server) {
		s.Connect = func(ctx context.Context, c *Call) error {
			if c.Header.Get("Authorization") == "" {
				return Errorf(401, "log in")
			}
			c.Identity = c.Header.Get("Authorization")
			return nil
		}
		s.Disconnected = func(c *Call) { left <- c.Identity }
	}, func(t *testing.T, s *Server, connect func() net.Conn) {
		if got := refused(t, connect()); got != "401 Unauthorized" {
			t.Error(got)
		}
		if got := refused(t, connect(), "Origin: https://evil.example"); got != "403 Forbidden" {
			t.Error(got)
		}
		if w := askFor(s, "GET", "/api/ws", ""); w.Code != 426 || w.Header().Get("Upgrade") != "websocket" {
			t.Error(w.Code, w.Header())
		}
		ann := shake(t, connect(), "Authorization: ann", "Origin: http://example.com")
		bob := shake(t, connect(), "Authorization: bob")
		ann.send(`{"id":1,"call":"calc/Forever"}`)
		bob.send(`{"id":1,"call":"bare/Who"}`)
		bob.want(`{"id":1,"result":"bare Who bob websocket  true "}`)
		s.Drop(func(c *Call) bool { return c.Identity == "ann" })
		for {
			got := ann.next()
			if got == `{"id":1,"error":{"errorCode":403,"errorText":"you have been disconnected"}}` {
				continue
			}
			if got != "CLOSE 1008 you have been disconnected" {
				t.Error(got)
			}
			break
		}
		if who := <-left; who != "ann" {
			t.Error(who)
		}
		bob.send(`{"id":2,"call":"calc/List"}`)
		bob.want(`{"id":2,"result":[]}`)
		s.Close()
		bob.want("CLOSE 1001 the server is being closed", "END")
		if who := <-left; who != "bob" {
			t.Error(who)
		}
		if got := refused(t, connect(), "Authorization: ann"); got != "503 Service Unavailable" {
			t.Error(got)
		}
		if who := <-left; who != "ann" { // let in by Connect, and still refused
			t.Error(who)
		}
	})
}

// TestBackpressure has a feed wait for a client that takes nothing, and end when it is gone.
func TestBackpressure(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server, connect func() net.Conn) {
		var sent atomic.Int64
		ended := make(chan error, 1)
		s.Set(&Service{Root: "feed", Methods: []*Method{
			Feed("Fast", func(ctx context.Context, in struct{}, send func(string) error) error {
				text := strings.Repeat("x", 10_000)
				for {
					if err := send(text); err != nil {
						ended <- err
						return err
					}
					sent.Add(1)
				}
			}),
		}})
		p := shake(t, connect())
		p.send(`{"id":1,"call":"feed/Fast"}`)
		p.next()
		synctest.Wait() // it has filled what buffers there are, and stands still
		n := sent.Load()
		if n > 100 {
			t.Errorf("%d events of 10 kB are on the way to a client that takes nothing", n)
		}
		for range n + 100 {
			if got := p.next(); len(got) < 10_000 {
				t.Fatal(got)
			}
		}
		synctest.Wait()
		if again := sent.Load(); again < n+100 {
			t.Errorf("%d events are sent, %d were taken", again, n+100)
		}
		p.c.Close()
		if err := <-ended; err == nil {
			t.Error("sent to nobody")
		}
	})
}

// TestAhead has a feed wait for one who has asked for no more.
func TestAhead(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server, connect func() net.Conn) {
		p := shake(t, connect())
		p.send(`{"id":1,"call":"calc/Count","in":{"to":5},"ahead":2}`)
		p.want(`{"id":1,"event":0}`, `{"id":1,"event":1}`)
		synctest.Wait()
		p.frame(websocket.Ping, "")
		p.want("PONG ") // and no event
		p.send(`{"id":1,"more":1}`)
		p.want(`{"id":1,"event":2}`)
		p.send(`{"id":2,"call":"calc/List"}`)
		p.want(`{"id":2,"result":[]}`)
		p.send(`{"id":1,"more":1000000}`)
		p.want(`{"id":1,"event":3}`, `{"id":1,"event":4}`, `{"id":1,"end":true}`)
	})
}

func TestSilence(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server, connect func() net.Conn) {
		p := shake(t, connect())
		start := time.Now()
		p.want("PING")
		if d := time.Since(start); d < 30*time.Second || d > time.Minute+time.Second {
			t.Errorf("the first ping came after %v", d)
		}
		p.frame(websocket.Pong, "")
		p.want("PING")
		start = time.Now()
		p.want("END")
		if d := time.Since(start); d < 29*time.Second || d > 31*time.Second {
			t.Errorf("was given up after %v", d)
		}

		// Who begins a message ends it.
		p = shake(t, connect())
		p.c.Write(websocket.AppendFrame(nil, websocket.Text, []byte(`{"id":1}`), &websocket.Key{})[:10])
		start = time.Now()
		for p.c.SetReadDeadline(start.Add(10 * time.Minute)); ; {
			got := p.next()
			if got == "PING" {
				p.c.Write([]byte{' '}) // of the message
				continue
			}
			if got != "CLOSE 1008 the message took too long" && got != "END" {
				t.Error(got)
			}
			break
		}
		if d := time.Since(start); d < time.Minute || d > 2*time.Minute {
			t.Errorf("a message that does not end was given up after %v", d)
		}

		// Who takes nothing has nothing.
		p = shake(t, connect())
		p.send(`{"id":1,"call":"calc/Count","in":{"to":10000000}}`)
		p.next()
		time.Sleep(5 * time.Minute)
		if n := s.feeds.Load(); n != 0 {
			t.Error("the feed goes on")
		}
	})
}

// TestSocketCancelled has a Socket go on when one of its calls is given up.
func TestSocketCancelled(t *testing.T) {
	s, _ := newServer(t)
	released := make(chan bool, 1)
	s.Set(&Service{Root: "slow", Methods: []*Method{
		Of("Wait", func(ctx context.Context, in struct{}) (string, error) {
			<-ctx.Done()
			released <- true
			return "", ctx.Err()
		}),
	}})
	k := dial(t, onLoop(t, s))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() {
		_, err := Invoke[string](ctx, k, "slow/Wait", struct{}{})
		done <- err
	}()
	eventually(t, "the call", func() bool { return s.calls.Load() > 0 })
	cancel()
	if err := <-done; !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	<-released
	// A feed whose events nobody takes does not stop the others.
	n := 0
	for e, err := range Follow[int](t.Context(), k, "calc/Count", count{To: 1000}) {
		if err != nil || e != n {
			t.Fatal(e, err)
		}
		if n++; n == 100 {
			for range 10 {
				if sum, err := Invoke[float64](t.Context(), k, "calc/Sum", terms{1, 2}); err != nil || sum != 3 {
					t.Error(sum, err)
				}
			}
		}
	}
	if n != 1000 {
		t.Error(n)
	}
	// Many at a time.
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			if sum, err := Invoke[float64](t.Context(), k, "calc/Sum", terms{float64(i), 1}); err != nil || sum != float64(i+1) {
				t.Error(i, sum, err)
			}
		})
	}
	wg.Wait()
	k.Close()
	var lost *LostError
	if _, err := Invoke[float64](t.Context(), k, "calc/Sum", terms{1, 2}); !errors.As(err, &lost) {
		t.Error(err)
	}
	if _, err := DialWebSocket(t.Context(), "ws://"+onLoop(t, s)+"/api/nope", nil, nil); err == nil || err.Error() != `no service "nope"` {
		t.Error(err)
	}
}

// TestSocketLost has a Socket notice that nobody is there any more.
// TestFeedCalled has a feed called as if it were a method: however many events come before that is noticed, other calls on the socket
// go on.
func TestFeedCalled(t *testing.T) {
	s, _ := newServer(t)
	cancelled := make(chan bool, 2)
	s.Set(&Service{Root: "ticks", Methods: []*Method{
		Feed("Watch", func(ctx context.Context, _ struct{}, send func(int) error) error {
			for send(1) == nil {
			}
			cancelled <- true
			return nil
		}),
	}})
	k, err := DialWebSocket(t.Context(), "ws://"+onLoop(t, s)+"/api/ws", nil, nil)
	if err != nil {
		t.Fatal(err)
	}
	defer k.Close()
	// The call waits, and nobody takes what comes for it.
	w := &waiter{got: make(chan answer, 1)}
	k.mu.Lock()
	k.last++
	id := k.last
	k.waiting[id] = w
	k.mu.Unlock()
	if err := k.write(t.Context(), fmt.Appendf(nil, `{"id":%d,"call":"ticks/Watch","ahead":100}`, id)); err != nil {
		t.Fatal(err)
	}
	if sum, err := Invoke[float64](t.Context(), k, "calc/Sum", map[string]float64{"a": 1, "b": 2}); err != nil || sum != 3 {
		t.Fatalf("another call: %v, %v", sum, err)
	}
	k.tellCancelled(id)
	<-cancelled
	if _, err := Invoke[int](t.Context(), k, "ticks/Watch", struct{}{}); err == nil || !strings.Contains(err.Error(), "is a feed: follow it") {
		t.Fatalf("the feed: %v", err)
	}
	<-cancelled
}

func TestSocketLost(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server, connect func() net.Conn) {
		c := connect()
		client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string, string) (net.Conn, error) { return c, nil }}}
		k, err := DialWebSocket(t.Context(), "ws://example.com/api/ws", nil, client)
		if err != nil {
			t.Fatal(err)
		}
		defer k.Close()
		time.Sleep(time.Hour) // in silence: both sides ask each other
		if sum, err := Invoke[float64](t.Context(), k, "calc/Sum", terms{1, 2}); err != nil || sum != 3 {
			t.Error(sum, err)
		}
		memnet.Silence(c, true)
		start := time.Now()
		_, err = Invoke[float64](t.Context(), k, "calc/Sum", terms{1, 2})
		var lost *LostError
		if d := time.Since(start); !errors.As(err, &lost) || d > 2*time.Minute {
			t.Errorf("%v after %v", err, d)
		}
		<-k.Done()
		time.Sleep(3 * time.Minute) // the server has given it up, as well
		s.mu.Lock()
		defer s.mu.Unlock()
		if n := len(s.sockets); n != 0 {
			t.Errorf("%d WebSockets are left", n)
		}
	})
}

// TestQuietFeed has a feed over HTTP say now and then that it is there.
func TestQuietFeed(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server, connect func() net.Conn) {
		c := connect()
		io.WriteString(c, "GET /api/calc/Forever HTTP/1.1\r\nHost: example.com\r\n\r\n")
		start := time.Now()
		r := bufio.NewReader(c)
		res, err := http.ReadResponse(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		if d := time.Since(start); d > time.Second {
			t.Errorf("the head came after %v", d)
		}
		b := make([]byte, 3)
		if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "\n\n\n" {
			t.Errorf("%q %v", b, err)
		}
		if d := time.Since(start); d < time.Minute || d > 2*time.Minute {
			t.Errorf("three empty lines came in %v", d)
		}
		memnet.Silence(c, true)
		time.Sleep(10 * time.Minute)
		c.Close()
	})
}

// TestFeedHalfClosed has a client of a feed finish sending, which ends its request: it does not look as if the feed had ended well.
func TestFeedHalfClosed(t *testing.T) {
	inBubble(t, func(t *testing.T, s *Server, connect func() net.Conn) {
		s.Set(&Service{Root: "ticks", Methods: []*Method{
			Feed("Watch", func(ctx context.Context, _ struct{}, send func(int) error) error {
				send(1)
				<-ctx.Done()
				return nil
			}),
		}})
		c := connect()
		io.WriteString(c, "GET /api/ticks/Watch HTTP/1.1\r\nHost: example.com\r\n\r\n")
		res, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		b := make([]byte, 2)
		if _, err := io.ReadFull(res.Body, b); err != nil || string(b) != "1\n" {
			t.Fatalf("%q %v", b, err)
		}
		c.(interface{ CloseWrite() error }).CloseWrite()
		if b, err := io.ReadAll(res.Body); err == nil {
			t.Errorf("%q looks complete", b)
		}
	})
}

// late notes what is written when the handler has returned.
type late struct {
	http.ResponseWriter
	over bool
	n    int
}

func (w *late) Write(b []byte) (int, error) {
	if w.over {
		w.n++
	}
	return w.ResponseWriter.Write(b)
}

// TestFeedAborted has a feed break its answer off by a panic: nothing more is written.
func TestFeedAborted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := new(Server)
		s.Set(&Service{Root: "ticks", Methods: []*Method{
			Feed("Watch", func(_ context.Context, _ struct{}, send func(int) error) error {
				send(1)
				panic(http.ErrAbortHandler)
			}),
		}})
		w := &late{ResponseWriter: httptest.NewRecorder()}
		func() {
			defer func() {
				if v := recover(); v != http.ErrAbortHandler {
					t.Errorf("panic: %v", v)
				}
			}()
			s.ServeHTTP(w, httptest.NewRequest("GET", "/ticks/Watch", nil))
		}()
		w.over = true
		time.Sleep(time.Hour)
		synctest.Wait()
		if w.n > 0 {
			t.Errorf("%d writes behind the end", w.n)
		}
	})
}

// TestQuietTooLate has the timer of a feed come when an event has just gone: there is no empty line between the events.
func TestQuietTooLate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := httptest.NewRecorder()
		l := &lines{w: w, flush: http.NewResponseController(w), stall: time.Minute, ping: 30 * time.Second}
		l.timer = time.AfterFunc(time.Hour, l.quiet)
		defer l.timer.Stop()
		written := func() string {
			l.mu.Lock()
			defer l.mu.Unlock()
			return w.Body.String()
		}
		l.write([]byte("0"))
		l.quiet()
		l.write([]byte("1"))
		l.quiet()
		if got := written(); got != "0\n1\n" {
			t.Errorf("%q", got)
		}
		time.Sleep(l.ping)
		synctest.Wait()
		if got := written(); got != "0\n1\n\n" {
			t.Errorf("after a while %q", got)
		}
	})
}

func FuzzMessage(f *testing.F) {
	for _, seed := range []string{
		`{"id":1,"call":"calc/Sum","in":{"a":3.12,"b":4.2}}`, `{"id":"x","cancel":true}`, `{"id":1,"more":3}`, `{"call":"a","id":1e5,"ahead":-1}`, `{}`, `[]`, `{"\u0069d":1}`, ` { "id" : [ "}" ] } `,
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		r, err := parseRequest(b)
		if err == nil && (r.id == "null" || len(r.id) > maxID || r.call == "" && !r.cancel && r.more == 0 || r.ahead > maxAhead || r.more > maxAhead) {
			t.Errorf("%q: %+v", b, r)
		}
	})
}
