package public

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// logLines collects the lines of a logger.
type logLines struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *logLines) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

// count returns how often s was logged.
func (l *logLines) count(s string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.b.String(), s)
}

func (l *logLines) use(r *Relay) { r.Log = slog.New(slog.NewTextHandler(l, nil)) }

// A site announces one thing after the other: what comes beside is turned away.
func TestOneAnnouncementAtATime(t *testing.T) {
	r := newTestRelay(t, false, nil)
	s := r.connect("office", nil, "app", "https://app.test")
	refused := make(chan error, 1)
	open := func(h *funcHandler) *tunnel.Stream {
		header, _ := relay.Header{Kind: relay.KindAnnounce}.Append(nil)
		st, err := s.peer.Open(header)
		if err != nil {
			panic(err)
		}
		st.SetHandler(h)
		return st
	}
	var first *tunnel.Stream
	onLoop(s.session.loop.Loop, func() {
		first = open(&funcHandler{})
		first.Write([]byte("["))
		open(&funcHandler{close: func(err error) { refused <- err }}).Write([]byte("[]"))
	})
	if e, ok := errors.AsType[*tunnel.StreamError](<-refused); !ok || e.Code != tunnel.CodeOverload {
		t.Errorf("the second one: %v", e)
	}
	onLoop(s.session.loop.Loop, func() { first.Reset(tunnel.CodeCancelled) })
	waitFor(t, func() (heard bool) {
		onLoop(s.session.loop.Loop, func() { heard = !s.session.hearing })
		return heard
	})
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(s.session.loop.Loop, func() {
		s.announce([]relay.Announcement{{Name: "app", Publish: "https://app.test", TargetScheme: "http"}}, replies)
	})
	if got := <-replies; len(got) != 1 || got[0].Error != "" {
		t.Errorf("after the first one is gone: %+v", got)
	}
}

// What a site may publish changes with a reload, at once.
func TestReloadReconsiders(t *testing.T) {
	var log logLines
	r := newTestRelay(t, false, log.use)
	app := target(t, okTarget)
	s := r.connect("office", map[string]string{"app": app, "other": app}, "app", "https://app.test", "port", "tcp://127.0.0.1:0")
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(s.session.loop.Loop, func() {
		s.announce([]relay.Announcement{
			{Name: "app", Publish: "https://app.test", TargetScheme: "http"},
			{Name: "other", Publish: "https://other.example", TargetScheme: "http"},
			{Name: "port", Publish: "tcp://127.0.0.1:0", TargetScheme: "tcp"},
		}, replies)
	})
	port := strings.TrimPrefix((<-replies)[2].Addresses[0], "tcp://")
	status := func(host string) int { return r.status(true, "GET / HTTP/1.1\r\nHost: "+host+"\r\n\r\n") }
	if a, o := status("app.test"), status("other.example"); a != 200 || o != 404 {
		t.Fatalf("before: %d, %d", a, o)
	}
	r.Reload([]Site{{Name: "office", Keys: []string{"k"}, Publish: patterns("https://other.example", "tcp://127.0.0.1:*")}})
	waitFor(t, func() bool { return status("app.test") == 404 && status("other.example") == 200 })
	if !listening(port) {
		t.Error("what has not changed is not there any more")
	}
	r.Reload([]Site{{Name: "office", Keys: []string{"k"}}})
	waitFor(t, func() bool { return status("other.example") == 404 })
	waitFor(t, func() bool { return !listening(port) })
	// The same once more is nothing to talk about.
	n := log.count("services published")
	r.Reload([]Site{{Name: "office", Keys: []string{"k"}}})
	onLoop(s.session.loop.Loop, func() {})
	if log.count("services published") != n || n != 4 {
		t.Errorf("%d lines, then %d, want 4", n, log.count("services published"))
	}
}

// listening reports whether a port takes visitors, even if only to reset them at once.
func listening(port string) bool {
	c, err := net.Dial("tcp", port)
	if err == nil {
		c.Close()
	}
	return err == nil || errors.Is(err, syscall.ECONNRESET)
}

// A large announcement is quick, and does not fill the log.
func TestLargeAnnouncement(t *testing.T) {
	var log logLines
	r := newTestRelay(t, false, log.use)
	s := r.connect("office", nil)
	var list []relay.Announcement
	for i := range relay.MaxServices {
		host := "test"
		if i >= relay.MaxServices/2 {
			host = "example"
		}
		list = append(list, relay.Announcement{Name: fmt.Sprint("s", i), Publish: fmt.Sprintf("https://s%d.%s", i, host), TargetScheme: "http"})
	}
	for range 3 {
		replies := make(chan []relay.AnnounceReply, 1)
		onLoop(s.session.loop.Loop, func() { s.announce(list, replies) })
		for i, reply := range <-replies {
			if ok := reply.Error == ""; ok != (i < relay.MaxServices/2) {
				t.Fatalf("service %d: %q", i, reply.Error)
			}
		}
	}
	if n := log.count("service refused"); n != 3*maxRefusals {
		t.Errorf("%d lines of refused services, want %d", n, 3*maxRefusals)
	}
	if n := log.count("services=2048 refused=2048 withdrawn=0"); n != 3 {
		t.Errorf("%d summaries, want 3", n)
	}
}

// A private relay that drains waits for no stream that nobody uses.
func TestPeerDrains(t *testing.T) {
	r := newTestRelay(t, false, nil)
	s := r.connect("office", nil, "app", "https://app.test", "late", "https://late.test")
	var late *tunnel.Stream
	s.handle(func(st *tunnel.Stream, h relay.Header) bool {
		st.SetHandler(&funcHandler{data: func(b []byte) int {
			if h.Service == "late" {
				late = st
			} else {
				st.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"))
			}
			return len(b)
		}, eof: func() { st.CloseWrite() }})
		return true
	})
	v, w := r.dial(true), r.dial(true)
	v.send(get)
	v.response("GET")
	w.send("GET / HTTP/1.1\r\nHost: late.test\r\n\r\n")
	waitFor(t, func() bool { return s.visitors("late") == 1 })
	streams := func() (n int) {
		onLoop(s.session.loop.Loop, func() { n = s.peer.Stats().Streams })
		return n
	}
	start := time.Now()
	onLoop(s.session.loop.Loop, func() { s.peer.GoAway() })
	waitFor(t, func() bool { return streams() == 1 })
	if d := time.Since(start); d >= keepTime {
		t.Errorf("idle streams took %v", d)
	}
	v.send(get)
	if res, _ := v.response("GET"); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Errorf("a new request: %s", res.Status)
	}
	onLoop(s.session.loop.Loop, func() { late.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n")) })
	if res, _ := w.response("GET"); res.StatusCode != 200 {
		t.Errorf("the request that was under way: %s", res.Status)
	}
	waitFor(t, func() bool { return len(r.Status(context.Background()).Sessions) == 0 })
}

// Bytes of spliced connections count while they are there, and afterwards.
func TestServiceBytes(t *testing.T) {
	r := newTestRelay(t, false, nil)
	var port string
	s := r.connect("office", map[string]string{
		"echo": target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) }),
		"chat": script(t, "> GET", "< HTTP/1.1 101 Switching Protocols|Connection: Upgrade|Upgrade: x||", "< welcome"),
	}, "chat", "http://chat.test")
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(s.session.loop.Loop, func() {
		s.announce([]relay.Announcement{
			{Name: "echo", Publish: "tcp://127.0.0.1:0", TargetScheme: "tcp"},
			{Name: "chat", Publish: "http://chat.test", TargetScheme: "http"},
		}, replies)
	})
	port = strings.TrimPrefix((<-replies)[0].Addresses[0], "tcp://")
	is := func(i int, received, sent uint64) func() bool {
		return func() bool {
			svc := r.Status(context.Background()).Sessions[0].Services[i]
			return svc.Received == received && svc.Sent == sent
		}
	}
	c, err := net.Dial("tcp", port)
	if err != nil {
		t.Fatal(err)
	}
	io.WriteString(c, "hello")
	io.ReadFull(c, make([]byte, 5))
	waitFor(t, is(0, 5, 5))
	io.WriteString(c, "again")
	io.ReadFull(c, make([]byte, 5))
	waitFor(t, is(0, 10, 10))
	c.Close()
	waitFor(t, func() bool { return s.visitors("echo") == 0 })
	waitFor(t, is(0, 10, 10))

	v := r.dial(false)
	v.send("GET / HTTP/1.1\r\nHost: chat.test\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
	v.expect("HTTP/1.1 101 Switching Protocols\r\n")
	if svc := r.Status(context.Background()).Sessions[0].Services[1]; svc.Received > 1<<20 || svc.Sent > 1<<20 {
		t.Errorf("after an upgrade: %+v", svc)
	}
}

// Neither can sites.
func TestSayings(t *testing.T) {
	inPairs(t, func(p *pairing) {
		var log logLines
		p.log = slog.New(slog.NewTextHandler(&log, nil))
		time.Sleep(time.Until(time.Now().Truncate(time.Minute).Add(time.Minute)))
		under := p.slow()
		for range 2 * maxSaid {
			p.on(p.a.cut)
			if refusal := p.a.resume(0); refusal != nil {
				t.Fatal(refusal)
			}
			replies := make(chan []relay.AnnounceReply, 1)
			p.on(func() { p.a.announce(announcements("app", "http://app.test", "no", "http://no.example"), replies) })
			<-replies
			p.on(func() { p.a.session.tuned("loss", errors.New("no bbr")) })
			p.on(func() { p.a.session.tuned("loss", nil) })
		}
		p.finish(under, "a")
		for what, want := range map[string]int{
			`"site lost its link"`: maxSaid, `"services published"`: maxSaid, `"service refused"`: maxSaid,
			`"no bbr"`: 1, "INFO msg=link": maxSaid,
		} {
			if n := log.count(what); n != want {
				t.Errorf("%s: %d lines, want %d", what, n, want)
			}
		}
		time.Sleep(time.Minute)
		p.on(p.a.peer.GoAway)
		synctest.Wait()
		if log.count(`level=INFO msg="site taken over by a stand-by"`) != 1 {
			t.Error("a private relay that shuts down is no reason for a warning")
		}
		if log.count(`level=INFO msg="stand-by down" site=office session=`+p.a.session.shortID()+"\n") != 1 {
			t.Error("no end of a session in good order")
		}
	})
}

// Strangers cannot fill the log, and a second reason is still heard of.
func TestRefusalLevel(t *testing.T) {
	r := newTestRelay(t, false, nil)
	r.refusals.minute = time.Now().Unix() / 60
	warnings := 0
	note := func(addr string, code relay.RefusalCode) {
		if r.refusalLevel(netip.MustParseAddr(addr), code) == slog.LevelWarn {
			warnings++
		}
	}
	for range 10 {
		note("192.0.2.1", relay.RefuseUnknownSite)
		note("192.0.2.1", relay.RefuseBadKey)
	}
	if warnings < 2 || warnings > 4 { // 4 if a minute begins right now
		t.Errorf("%d warnings of 20 refusals, want 2", warnings)
	}
	for i := range 2000 {
		note(fmt.Sprintf("192.0.%d.%d", i/250, i%250), relay.RefuseBadKey)
	}
	if warnings > 2*maxRefused {
		t.Errorf("%d warnings of 2000 addresses", warnings)
	}
}

// A private relay that uses its transports in another way tells so, and the status has it.
func TestChoiceNotice(t *testing.T) {
	r := newTestRelay(t, false, nil)
	s := r.connect("office", nil)
	ended := make(chan error, 1)
	onLoop(s.session.loop.Loop, func() {
		header, err := relay.Header{Kind: relay.KindNotice, Service: relay.NoticeChoice, Host: "wss; quic does not get through"}.Append(nil)
		if err != nil {
			t.Error(err)
		}
		st, err := s.peer.Open(header)
		if err != nil {
			t.Error(err)
			return
		}
		st.SetHandler(&funcHandler{close: func(err error) { ended <- err }})
		st.CloseWrite()
	})
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if got := r.Status(t.Context()).Sessions[0].Choice; got != "wss; quic does not get through" {
		t.Errorf("choice %q", got)
	}
}
