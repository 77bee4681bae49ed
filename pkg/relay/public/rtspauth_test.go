package public

import (
	"bufio"
	"context"
	"encoding/base64"
	"fmt"
	"io"
	"net"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/crypto/bcrypt"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// inPlayTime runs f in fake time with a relay whose service rtsp://cams.test/gate is served by c.
func inPlayTime(t *testing.T, c *testCamera, f func(r *testRelay, s *testSite, dial func() *testPlayer)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		core, err := evloop.New(evloop.Config{Loops: 2, Portable: true})
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		r := &testRelay{Relay: &Relay{Core: core}, t: t}
		r.Reload([]Site{{Name: "office", Keys: []string{"k"}, Publish: patterns("rtsp://*.test")}})
		ln := &pipeListener{make(chan net.Conn), make(chan struct{})}
		r.addListener("rtsp", core.Serve(ln, func(c *evloop.Conn) { r.accept(c, false, true) }))
		s := r.connect("office", nil, "gate", "rtsp://cams.test/gate")
		s.camera(c)
		f(r, s, func() *testPlayer {
			a, b := net.Pipe()
			ln.conns <- pipeEnd{b}
			t.Cleanup(func() { a.Close() })
			return &testPlayer{t: t, Conn: a, br: bufio.NewReader(a)}
		})
	})
}

func digestHash(t testing.TB, user, password string) string {
	h, err := auth.HashDigest(user, auth.DigestRealm, []byte(password))
	if err != nil {
		t.Fatal(err)
	}
	return h
}

// challenges returns what an answer asks with.
func challenges(m *rtsp.Message) (list []string) {
	for _, f := range m.Fields {
		if rtsp.Is(f.Name, "WWW-Authenticate") {
			list = append(list, string(f.Value))
		}
	}
	return list
}

// demandUsers has the service gate ask for passwords.
func (ts *testSite) demandUsers(users map[string]string) {
	ts.t.Helper()
	if errs := ts.demand(&relay.Policy{Users: users}, "gate", "rtsp://cams.test/gate"); errs[0] != "" {
		ts.t.Fatal(errs)
	}
}

const gateURL = "rtsp://cams.test/gate"

// login asks for the camera until it is let in, as that user, or the challenge is not worth another try, or is
// changed by change to one that is not taken.
func (p *testPlayer) login(user, password, uri string, change func(*rtsp.Message)) *rtsp.Message {
	p.t.Helper()
	c := rtsp.Client{User: user, Password: password}
	var fields []string
	for range 3 {
		p.send("DESCRIBE", gateURL, fields...)
		m := p.answer()
		if m.Status != 401 {
			return m
		}
		if change != nil {
			change(m)
		}
		if !c.Challenge(m) {
			return m
		}
		f, _ := c.Authorization([]byte("DESCRIBE"), []byte(uri), nil)
		fields = []string{string(f.Name) + ": " + string(f.Value)}
	}
	p.t.Fatal("asked again and again")
	return nil
}

func TestPlayerPassword(t *testing.T) {
	c := &testCamera{}
	inPlayTime(t, c, func(r *testRelay, s *testSite, dial func() *testPlayer) {
		b, _ := bcrypt.GenerateFromPassword([]byte("pa:ss"), bcrypt.MinCost)
		only := func(algorithm string) func(*rtsp.Message) {
			return func(m *rtsp.Message) {
				for i := len(m.Fields) - 1; i >= 0; i-- {
					if v := string(m.Fields[i].Value); strings.HasPrefix(v, "Digest") && !strings.HasSuffix(v, algorithm) {
						m.Fields = append(m.Fields[:i], m.Fields[i+1:]...)
					}
				}
			}
		}
		for _, tt := range []struct {
			name           string
			users          map[string]string
			user, password string
			uri            string
			change         func(*rtsp.Message)
			status         int
		}{
			{"Basic", map[string]string{"bob": string(b)}, "bob", "pa:ss", gateURL, nil, 200},
			{"Basic, wrong", map[string]string{"bob": string(b)}, "bob", "pass", gateURL, nil, 401},
			{"Digest", map[string]string{"eve": digestHash(t, "eve", "secret")}, "eve", "secret", gateURL, nil, 200},
			{"Digest by MD5", map[string]string{"eve": digestHash(t, "eve", "secret")}, "eve", "secret", gateURL, only("MD5"), 200},
			{"Digest, path alone", map[string]string{"eve": digestHash(t, "eve", "secret")}, "eve", "secret", "/gate", nil, 200},
			{"Digest, for another camera", map[string]string{"eve": digestHash(t, "eve", "secret")}, "eve", "secret", "rtsp://cams.test/door", nil, 401},
			{"Digest, for a track", map[string]string{"eve": digestHash(t, "eve", "secret")}, "eve", "secret", gateURL + "/trackID=0", nil, 401},
			{"Digest, wrong", map[string]string{"eve": digestHash(t, "eve", "secret")}, "eve", "Secret", gateURL, nil, 401},
			{"Digest of another", map[string]string{"eve": digestHash(t, "eve", "secret")}, "bob", "secret", gateURL, nil, 401},
			{"both kinds", map[string]string{"eve": digestHash(t, "eve", "secret"), "bob": string(b)}, "eve", "secret", gateURL, nil, 200},
			{"both kinds, Basic", map[string]string{"eve": digestHash(t, "eve", "secret"), "bob": string(b)}, "bob", "pa:ss", gateURL, only("none"), 200},
			{"Basic for a Digest hash", map[string]string{"eve": digestHash(t, "eve", "secret"), "bob": string(b)}, "eve", "secret", gateURL, only("none"), 200},
		} {
			s.demandUsers(tt.users)
			before := len(c.saw())
			p := dial()
			p.ask(200, "OPTIONS", gateURL) // nobody is asked before
			m := p.login(tt.user, tt.password, tt.uri, tt.change)
			if m.Status != tt.status {
				t.Errorf("%s: status %d %s", tt.name, m.Status, m.Reason)
			}
			if m.Status != 200 {
				if n := len(c.saw()); n != before {
					t.Errorf("%s: the site was asked", tt.name)
				}
				continue
			}
			p.ask(200, "SETUP", gateURL+"/trackID=0", "Transport: RTP/AVP/TCP;unicast") // on this connection he is known
			for _, line := range c.saw()[before:] {
				if strings.Contains(line, "Authorization") {
					t.Errorf("%s: the site saw %s", tt.name, line)
				}
			}
			p.Close()
		}
	})
}

// How a player is asked, by what kinds of hashes there are.
func TestPlayerChallenges(t *testing.T) {
	inPlayTime(t, &testCamera{}, func(r *testRelay, s *testSite, dial func() *testPlayer) {
		b, _ := bcrypt.GenerateFromPassword([]byte("pa:ss"), bcrypt.MinCost)
		for _, tt := range []struct {
			users map[string]string
			want  string
		}{
			{map[string]string{"bob": string(b)}, `Basic realm="cams.test"`},
			{map[string]string{"eve": digestHash(t, "eve", "s")}, `Digest realm="culvert", nonce=`},
			{map[string]string{"eve": digestHash(t, "eve", "s"), "bob": string(b)}, `Basic Digest Digest`},
		} {
			s.demandUsers(tt.users)
			p := dial()
			list := challenges(p.ask(401, "DESCRIBE", gateURL))
			kinds := ""
			for _, one := range list {
				kind, _, _ := strings.Cut(one, " ")
				kinds += kind + " "
			}
			if !strings.HasPrefix(list[0], tt.want) && strings.TrimSpace(kinds) != tt.want {
				t.Errorf("asked by %q, want %s", list, tt.want)
			}
			if last := list[len(list)-1]; strings.HasPrefix(last, "Digest") && !strings.HasSuffix(last, "algorithm=MD5") {
				t.Errorf("the last challenge is %s", last)
			}
			p.Close()
		}
	})
}

// A nonce is good for its address and for a while; after that the player is told that its password was right.
func TestPlayerNonce(t *testing.T) {
	inPlayTime(t, &testCamera{}, func(r *testRelay, s *testSite, dial func() *testPlayer) {
		s.demandUsers(map[string]string{"eve": digestHash(t, "eve", "secret")})
		p := dial()
		c := rtsp.Client{User: "eve", Password: "secret"}
		c.Challenge(p.ask(401, "DESCRIBE", gateURL))
		f, _ := c.Authorization([]byte("DESCRIBE"), []byte(gateURL), nil)
		p.Close()
		time.Sleep(nonceTime - time.Minute)
		p = dial()
		p.ask(200, "DESCRIBE", gateURL, "Authorization: "+string(f.Value))
		p.Close()
		time.Sleep(2 * time.Minute)
		p = dial()
		start := time.Now()
		list := challenges(p.ask(401, "DESCRIBE", gateURL, "Authorization: "+string(f.Value)))
		if len(list) != 2 || !strings.Contains(list[1], ", stale=true, ") {
			t.Errorf("asked by %q", list)
		}
		// One that is not ours says nothing about the password, and costs nothing.
		forged := strings.Replace(string(f.Value), `nonce="`, `nonce="0`, 1)
		if list := challenges(p.ask(401, "DESCRIBE", gateURL, "Authorization: "+forged)); strings.Contains(list[1], "stale") {
			t.Errorf("asked by %q", list)
		}
		if d := time.Since(start); d > 100*time.Millisecond {
			t.Errorf("the answers took %v", d)
		}
	})
}

// Whoever guesses waits longer and longer, and is not heard then, by no way.
func TestPlayerGuesses(t *testing.T) {
	inPlayTime(t, &testCamera{}, func(r *testRelay, s *testSite, dial func() *testPlayer) {
		s.demandUsers(map[string]string{"eve": digestHash(t, "eve", "secret")})
		start := time.Now()
		for i := range maxWrong {
			p := dial()
			m := p.login("eve", fmt.Sprint(i), gateURL, nil)
			if m.Status != 401 && i < maxWrong-1 {
				t.Fatalf("guess %d: status %d", i, m.Status)
			}
			p.Close()
		}
		if d := time.Since(start); d < 20*time.Second {
			t.Errorf("%d guesses took %v", maxWrong, d)
		}
		p := dial()
		m := p.login("eve", "secret", gateURL, nil)
		if m.Status != 503 || m.Get("Retry-After") == nil {
			t.Errorf("the one who guessed gets %d", m.Status)
		}
		p.ask(503, "DESCRIBE", gateURL, "Authorization: Basic "+base64.StdEncoding.EncodeToString([]byte("eve:secret")))
		time.Sleep(banTime + time.Minute)
		p = dial()
		if m := p.login("eve", "secret", gateURL, nil); m.Status != 200 {
			t.Errorf("later: status %d", m.Status)
		}
	})
}

// Deadlines of players, in fake time, where connections have no half: the end is seen after the farewell.
func TestPlayerDeadlines(t *testing.T) {
	inPlayTime(t, &testCamera{}, func(r *testRelay, s *testSite, dial func() *testPlayer) {
		p := dial()
		start := time.Now()
		p.expectEnd() // without a request
		took(t, start, headTime+farewell)

		p = dial()
		p.ask(200, "OPTIONS", "*")
		start = time.Now()
		conn := p.Conn
		go func() { // frames of nothing keep nobody there
			for {
				if _, err := io.WriteString(conn, "$\x00\x00\x01a"); err != nil {
					return
				}
				time.Sleep(5 * time.Second)
			}
		}()
		p.expectEnd()
		took(t, start, idleTime+farewell)

		p = dial()
		p.ask(200, "DESCRIBE", gateURL)
		p.Conn.Write([]byte("OPTIONS * RT"))
		start = time.Now()
		if _, m, _, err := p.next(); err != nil || m.Status != 408 {
			t.Errorf("%+v, %v", m, err)
		}
		p.expectEnd()
		took(t, start, headTime+farewell)

		p = dial()
		p.watch(gateURL)
		time.Sleep(time.Hour) // nobody has to say anything while he watches
		p.ask(200, "TEARDOWN", gateURL, "Session: 4711")
		start = time.Now()
		p.expectEnd()
		took(t, start, idleTime+farewell)
	})
}

// A camera that does not answer, and a player that does not read.
func TestPlayerWaits(t *testing.T) {
	c := &testCamera{}
	c.instead = func(_ *tunnel.Stream, _ relay.Header, m *rtsp.Message) bool {
		return string(m.Method) == "GET_PARAMETER"
	}
	inPlayTime(t, c, func(r *testRelay, s *testSite, dial func() *testPlayer) {
		p := dial()
		p.ask(200, "DESCRIBE", gateURL)
		start := time.Now()
		p.ask(504, "GET_PARAMETER", gateURL)
		if d := time.Since(start); d < r.ResponseTimeout || d > r.ResponseTimeout+busyCheck+time.Second {
			t.Errorf("told after %v", d)
		}
		p.expectEnd()

		p = dial()
		p.watch(gateURL)
		frame := append(rtsp.AppendFrameHead(nil, 0, 1400), make([]byte, 1400)...)
		flood := func() {
			onLoop(s.session.loop.Loop, func() {
				for st := c.streams[len(c.streams)-1]; st.Pending() < st.HighMark(); {
					st.Write(frame)
				}
			})
		}
		// Slowly, for half an hour, is good enough.
		for range 100 {
			flood()
			time.Sleep(20 * time.Second)
			if _, err := io.ReadFull(p.br, make([]byte, 10*len(frame))); err != nil {
				t.Fatal(err)
			}
		}
		start = time.Now()
		for visitors := 1; visitors > 0; {
			time.Sleep(time.Second)
			onLoop(s.session.loop.Loop, func() { visitors = s.session.service("gate").visitors })
		}
		// What drives a pipe takes up to 64 KiB at a time, which are 90 s of the reader above.
		if d := time.Since(start); d < stuckTime-2*time.Minute || d > stuckTime+2*busyCheck {
			t.Errorf("given up after %v", d)
		}
	})
}

// Not more than 16 requests are on their way, and each is answered in its turn.
func TestPlayerInFlight(t *testing.T) {
	var waiting []string
	c := &testCamera{}
	inPlayTime(t, c, func(r *testRelay, s *testSite, dial func() *testPlayer) {
		var at *tunnel.Stream
		onLoop(s.session.loop.Loop, func() {
			c.instead = func(st *tunnel.Stream, _ relay.Header, m *rtsp.Message) bool {
				at = st
				waiting = append(waiting, string(m.Get("CSeq")))
				return true
			}
		})
		p := dial()
		go func() {
			for range 40 {
				p.send("GET_PARAMETER", gateURL)
			}
			p.send("OPTIONS", gateURL)
		}()
		answered := 0
		for answered < 40 {
			synctest.Wait()
			onLoop(s.session.loop.Loop, func() {
				if len(waiting) > maxFlight {
					t.Errorf("%d requests are on their way", len(waiting))
				}
				at.Write([]byte(reply(waiting[0], 200, "")))
				waiting = waiting[1:]
			})
			answered++
			if _, m, _, err := p.next(); err != nil || string(m.Get("CSeq")) != fmt.Sprint(answered) {
				t.Fatalf("%+v, %v", m, err)
			}
		}
		if _, m, _, err := p.next(); err != nil || string(m.Get("CSeq")) != "41" || m.Get("Public") == nil {
			t.Fatalf("%+v, %v", m, err)
		}
	})
}

// Before the relay ends it closes players that watch nothing, and waits for the others.
func TestPlayerDrain(t *testing.T) {
	inPlayTime(t, &testCamera{}, func(r *testRelay, s *testSite, dial func() *testPlayer) {
		idle, viewer, fresh := dial(), dial(), dial()
		idle.ask(200, "DESCRIBE", gateURL)
		viewer.watch(gateURL)
		done := make(chan error, 1)
		go func() { done <- r.Drain(context.Background()) }()
		idle.expectEnd()
		fresh.expectEnd() // when settleTime is over
		time.Sleep(time.Minute)
		viewer.ask(200, "GET_PARAMETER", gateURL, "Session: 4711")
		select {
		case err := <-done:
			t.Fatalf("drained with a viewer, %v", err)
		default:
		}
		viewer.ask(200, "TEARDOWN", gateURL, "Session: 4711")
		viewer.expectEnd()
		viewer.Close()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}

func TestPlayerAccessLog(t *testing.T) {
	log := &logged{t: t, lines: make(chan string, 100)}
	r := newCameraRelay(t, false, func(r *Relay) { r.AccessLog = log.write })
	s := r.connect("office", nil, "gate", gateURL)
	c := s.camera(&testCamera{})
	p := r.player(true)
	p.watch(gateURL + "?secret=1")
	frame := append(rtsp.AppendFrameHead(nil, 0, 1000), make([]byte, 1000)...)
	onLoop(s.session.loop.Loop, func() { c.streams[0].Write(frame) })
	p.next()
	p.ask(200, "TEARDOWN", gateURL, "Session: 4711")
	p.Close()
	l := log.want("rtsps 1.3 office gate PLAY /gate 200")
	if l.Sent < 1004 || l.Received < 300 || l.Stream == nil || l.Link == "" {
		t.Errorf("%+v", l)
	}
	received, sent := uint64(0), uint64(0)
	onLoop(s.session.loop.Loop, func() { received, sent = s.session.service("gate").tally.bytes() })
	if received != l.Received || sent != l.Sent {
		t.Errorf("the service counts %d and %d bytes, the line has %d and %d", received, sent, l.Received, l.Sent)
	}

	p = r.player(false)
	p.ask(404, "DESCRIBE", "rtsp://cams.test/nothing?a")
	p.Close()
	log.want("rtsp DESCRIBE /nothing 404 not-found")
	p = r.player(false)
	io.WriteString(p.Conn, "rubbish\r\n")
	p.Conn.SetReadDeadline(time.Now().Add(5 * time.Second))
	io.Copy(io.Discard, p.br)
	p.Close()
	log.want("rtsp 400 malformed")
	r.player(false).Close() // who says nothing is not worth a line

	s.demandUsers(map[string]string{"eve": digestHash(t, "eve", "secret")})
	p = r.player(false)
	if m := p.login("eve", "secret", gateURL, nil); m.Status != 200 {
		t.Fatal(m.Status)
	}
	onLoop(s.session.loop.Loop, func() { c.streams[1].Reset(tunnel.CodeTimeout) })
	p.expectEnd()
	if l := log.want("rtsp office gate DESCRIBE /gate 200 timeout"); l.User != "eve" {
		t.Errorf("%+v", l)
	}
}
