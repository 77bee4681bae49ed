package public

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// machine makes the Hello of a process, of which there are some on a machine.
func machine(name, process byte) relay.Hello {
	hex := func(c byte) string { return strings.Repeat(string(c), 32) }
	return relay.Hello{Site: "office", Key: "k", Machine: hex(name), Process: hex(process)}
}

// pairing is a site with two private relays, in fake time.
type pairing struct {
	*testRelay
	a, b *testSite // a is active
	dial func() *testVisitor
}

// inPairs runs f in fake time with a site of two private relays, whose service
// http://app.test answers with their names.
func inPairs(t *testing.T, f func(p *pairing)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		core, err := evloop.New(evloop.Config{Loops: 2, Portable: true})
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		var log logLines
		p := &pairing{testRelay: &testRelay{Relay: &Relay{Core: core}, t: t}}
		log.use(p.Relay)
		p.Reload([]Site{{Name: "office", Keys: []string{"k", "k2"}, Publish: patterns("http://*.test")}})
		ln := &pipeListener{make(chan net.Conn), make(chan struct{})}
		p.Serve(ln, false)
		p.a = p.named("a", machine('a', '1'))
		p.b = p.named("b", machine('b', '1'))
		p.dial = func() *testVisitor {
			a, b := net.Pipe()
			ln.conns <- b
			t.Cleanup(func() { a.Close() })
			return &testVisitor{t, a, bufio.NewReader(a)}
		}
		if who := p.who(); who != "a" {
			t.Fatalf("%s answers at the beginning", who)
		}
		f(p)
		if t.Failed() {
			t.Log(log.b.String())
		}
	})
}

// named connects a private relay that answers with its name, requests for /slow when its
// visitor sends more.
func (r *testRelay) named(name string, h relay.Hello) *testSite {
	s := r.connectAs(h, nil, "app", "http://app.test")
	s.handle(func(st *tunnel.Stream, _ relay.Header) bool {
		answer := fmt.Sprintf("HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(name), name)
		slow := false
		st.SetHandler(&funcHandler{data: func(b []byte) int {
			if strings.HasPrefix(string(b), "GET /slow") {
				st.Write([]byte(answer[:len(answer)-len(name)])) // the head
				return len(b)
			}
			if strings.HasPrefix(string(b), "POST /slow") {
				slow = true
			}
			if !slow || strings.HasSuffix(string(b), "more") {
				st.Write([]byte(answer))
			}
			return len(b)
		}, close: func(err error) { s.closed = err }})
		return true
	})
	return s
}

// who asks who serves the site.
func (p *pairing) who() string {
	p.t.Helper()
	v := p.dial()
	defer v.Conn.Close()
	v.send(get)
	res, body := v.response("GET")
	if res.StatusCode != 200 {
		return res.Status
	}
	return body
}

// on runs f on the loop of the site.
func (p *pairing) on(f func()) { onLoop(p.a.session.loop.Loop, f) }

// active is the session that is active.
func (p *pairing) active() (s *session) {
	p.on(func() { s = p.a.session.group.active })
	return s
}

// slow sends the beginning of a request, which is answered when the rest comes.
func (p *pairing) slow() *testVisitor {
	v := p.dial()
	v.send("POST /slow HTTP/1.1\r\nHost: app.test\r\nContent-Length: 8\r\n\r\nhave")
	synctest.Wait()
	return v
}

// finish sends the rest, and checks who answers.
func (p *pairing) finish(v *testVisitor, want string) {
	p.t.Helper()
	v.send("more")
	if res, body := v.response("POST"); res.StatusCode != 200 || body != want {
		p.t.Errorf("the slow request: %s, %q, want %s", res.Status, body, want)
	}
}

// states tells of all sessions: A for the active one, s for a stand-by, small l for each
// that has no link.
func (p *pairing) states() string {
	var list []string
	for _, s := range p.Status(context.Background()).Sessions {
		state := "s"
		if s.Active {
			state = "A"
		}
		if !s.Lost.IsZero() {
			state += "l"
		}
		list = append(list, state)
	}
	return strings.Join(list, " ")
}

// within checks that no more than d has passed since start.
func within(t testing.TB, start time.Time, d time.Duration) {
	t.Helper()
	if got := time.Since(start); got > d {
		t.Errorf("took %v, want %v at most", got, d)
	}
}

// The machine of the active private relay is killed: a stand-by takes over within a
// second, and who comes in between waits.
func TestTakeover(t *testing.T) {
	inPairs(t, func(p *pairing) {
		under := p.slow()
		p.on(p.a.cut)
		start := time.Now()
		if who := p.who(); who != "b" {
			t.Errorf("%s answers after the cut", who)
		}
		within(t, start, takeoverTime+holdTime/2)
		if s := p.states(); s != "sl A" {
			t.Errorf("sessions: %s", s)
		}

		// The other one comes back, and stands by. What it had under way goes on there.
		time.Sleep(5 * time.Second)
		if refusal := p.a.resume(0); refusal != nil {
			t.Fatal(refusal)
		}
		p.finish(under, "a")
		if who := p.who(); who != "b" {
			t.Errorf("%s answers after the first is back", who)
		}
		if s := p.states(); s != "s A" {
			t.Errorf("sessions: %s", s)
		}
		if got := fmt.Sprint(p.a.notices, p.b.notices); got != "[standby] [active]" {
			t.Errorf("notices: %s", got)
		}

		// And takes over in its turn.
		p.on(p.b.cut)
		if who := p.who(); who != "a" {
			t.Errorf("%s answers after the second cut", who)
		}
	})
}

// Packets of the active private relay are swallowed: the ping deadline finds out, and
// then nobody waits any longer.
func TestTakeoverBlackhole(t *testing.T) {
	inPairs(t, func(p *pairing) {
		p.on(func() { p.a.link.silent, p.a.link.peer.silent = true, true })
		start := time.Now()
		for p.active() == p.a.session {
			time.Sleep(10 * time.Millisecond)
		}
		within(t, start, 10*time.Second+100*time.Millisecond)
		if who := p.who(); who != "b" {
			t.Errorf("%s answers", who)
		}
	})
}

// A process that dies leaves a TCP link that is reset and a QUIC link that is silent. One
// that lives says so on the other link.
func TestTakeoverOfHalfSilent(t *testing.T) {
	for _, silent := range []bool{true, false} {
		inPairs(t, func(p *pairing) {
			first := p.a.link
			p.a.hello.Role = relay.RoleBulk
			if refusal := p.a.resume(1); refusal != nil {
				t.Fatal(refusal)
			}
			synctest.Wait()
			start := time.Now()
			p.on(func() {
				p.a.link.silent, p.a.link.peer.silent = silent, silent
				first.Close(errors.New("connection reset"))
			})
			want := "a"
			if silent {
				want = "b"
			}
			if who := p.who(); who != want { // a visitor who comes meanwhile
				t.Errorf("%s answers", who)
			}
			within(t, start, takeoverTime+50*time.Millisecond)
			if !silent {
				time.Sleep(5 * time.Second)
				if p.active() != p.a.session || p.a.link.dead {
					t.Error("a private relay that answers has lost its place")
				}
				return
			}
			if p.active() != p.b.session {
				t.Error("a is still active")
			}
		})
	}
}

// A link that is made again at once is no reason.
func TestNoTakeover(t *testing.T) {
	inPairs(t, func(p *pairing) {
		for range 3 {
			p.on(p.a.cut)
			answered := make(chan string)
			go func() { answered <- p.who() }()
			time.Sleep(takeoverTime - 50*time.Millisecond)
			if refusal := p.a.resume(0); refusal != nil {
				t.Fatal(refusal)
			}
			if who := <-answered; who != "a" {
				t.Errorf("%s answers who has waited", who)
			}
			time.Sleep(time.Second)
			if p.active() != p.a.session {
				t.Fatal("taken over")
			}
		}
		// Neither is the end of a stand-by.
		p.on(p.b.cut)
		time.Sleep(time.Second)
		if who := p.who(); who != "a" {
			t.Errorf("%s answers", who)
		}
		// Without a stand-by that has a link the site is suspended, as ever.
		p.on(p.a.cut)
		time.Sleep(time.Second)
		if s := p.states(); s != "Al sl" {
			t.Errorf("sessions: %s", s)
		}
		// The first that is back is the one.
		if refusal := p.b.resume(0); refusal != nil {
			t.Fatal(refusal)
		}
		if who := p.who(); who != "b" {
			t.Errorf("%s answers", who)
		}
	})
}

// A private relay that leaves, and one that ends, hand over at once.
func TestTakeoverLeaving(t *testing.T) {
	inPairs(t, func(p *pairing) {
		under := p.slow()
		start := time.Now()
		p.on(p.a.peer.GoAway)
		synctest.Wait()
		if who := p.who(); who != "b" {
			t.Errorf("%s answers", who)
		}
		p.finish(under, "a")
		within(t, start, 100*time.Millisecond)
		for len(p.Status(context.Background()).Sessions) > 1 {
			time.Sleep(10 * time.Millisecond)
		}
		p.a = p.named("a", machine('a', '2'))
		start = time.Now()
		p.on(func() { p.b.session.close(errors.New("over")) })
		if who := p.who(); who != "a" {
			t.Errorf("%s answers", who)
		}
		within(t, start, 100*time.Millisecond)
		// Nobody is left.
		p.on(func() { p.a.session.close(errors.New("over")) })
		if who := p.who(); !strings.HasPrefix(who, "503 ") {
			t.Errorf("%s without a private relay", who)
		}
	})
}

// Two that fail in turn: somebody always serves, and they take over from each other no
// more often than they fail.
func TestFlapping(t *testing.T) {
	inPairs(t, func(p *pairing) {
		stop := make(chan struct{})
		var wg sync.WaitGroup
		wg.Go(func() {
			for {
				select {
				case <-stop:
					return
				case <-time.After(70 * time.Millisecond):
				}
				start := time.Now()
				if who := p.who(); who != "a" && who != "b" {
					t.Errorf("%s answers", who)
				}
				// Whoever meets two cuts waits for the takeover, and then, if the request was on its way
				// already, for the second private relay to be back, which takes 700 ms at most.
				within(t, start, takeoverTime+700*time.Millisecond+holdTime)
			}
		})
		cuts := 0
		for i := range 60 {
			victim := p.a
			if i%2 == 1 {
				victim = p.b
			}
			p.on(victim.cut)
			cuts++
			// Longer than a takeover takes, or shorter: the other one has a link all the time.
			time.Sleep(takeoverTime - 200*time.Millisecond + time.Duration(i%5)*100*time.Millisecond)
			if refusal := victim.resume(0); refusal != nil {
				t.Fatal(refusal)
			}
			time.Sleep(time.Duration(i%3) * 100 * time.Millisecond)
		}
		close(stop)
		wg.Wait()
		synctest.Wait()
		// Each notice is a change: A has begun as the active one.
		if n := max(len(p.a.notices), len(p.b.notices)); n > cuts || n < 10 {
			t.Errorf("%d changes with %d cuts", n, cuts)
		}
		for _, s := range []*testSite{p.a, p.b} {
			want := relay.NoticeStandby
			if s.session == p.active() {
				want = relay.NoticeActive
			}
			if n := len(s.notices); s.notices[n-1] != want {
				t.Errorf("the last notice is %s, want %s", s.notices[n-1], want)
			}
		}
	})
}

// An operator promotes a stand-by. What is under way finishes where it is, or is reset
// after the time that he gives.
func TestPromote(t *testing.T) {
	inPairs(t, func(p *pairing) {
		promote := func(id string, cut time.Duration) string {
			id, err := p.Promote(context.Background(), "office", id, cut)
			if err != nil {
				return err.Error()
			}
			return id
		}
		under := p.slow()
		if got := promote("", -1); got != p.b.session.shortID() {
			t.Fatal(got)
		}
		if who := p.who(); who != "b" {
			t.Errorf("%s answers", who)
		}
		time.Sleep(bodyTime - time.Second)
		p.finish(under, "a")

		// Back again, with a limit.
		under = p.slow()
		lasting := p.dial() // a response that has begun
		lasting.send("GET /slow HTTP/1.1\r\nHost: app.test\r\n\r\n")
		lasting.expect("HTTP/1.1 200 OK\r\n")
		if got := promote(p.a.session.id[:3], 30*time.Second); got != p.a.session.shortID() {
			t.Fatal(got)
		}
		start := time.Now()
		if res, _ := under.response("POST"); res.StatusCode != 503 {
			t.Errorf("what is under way: %s", res.Status)
		}
		took(t, start, 30*time.Second)
		if _, err := io.ReadAll(lasting.Reader); err != nil {
			t.Errorf("a response that was cut ends with %v", err)
		}
		if s := p.states(); s != "A s" {
			t.Errorf("sessions: %s", s)
		}
		synctest.Wait()
		if got := fmt.Sprint(p.a.notices, p.b.notices); got != "[standby active] [active standby]" {
			t.Errorf("notices: %s", got)
		}

		// It has become active again by then: nothing is cut.
		promote("", 30*time.Second)
		promote("", 30*time.Second)
		under = p.slow()
		time.Sleep(bodyTime - time.Second)
		p.finish(under, "a")

		for id, want := range map[string]string{
			p.a.session.id: "is active already; its stand-bys are " + p.b.session.shortID(),
			"nothing":      `has no session "nothing"; its stand-bys are ` + p.b.session.shortID(),
		} {
			if got := promote(id, -1); !strings.Contains(got, want) {
				t.Errorf("promote %s: %s, want %s", id, got, want)
			}
		}
		c := p.named("c", machine('c', '1'))
		if got := promote("", -1); !strings.Contains(got, "say which one, by its ID: its stand-bys are "+p.b.session.shortID()+", "+c.session.shortID()) {
			t.Errorf("promote one of two: %s", got)
		}
		p.on(c.cut)
		if got := promote(c.session.id, -1); !strings.Contains(got, "has no link") {
			t.Errorf("promote one without a link: %s", got)
		}
		p.on(func() { c.session.close(nil) })
		p.on(func() { p.b.session.leaving = true })
		if got := promote("", -1); !strings.Contains(got, "is shutting down") {
			t.Errorf("promote one that leaves: %s", got)
		}
		p.on(func() { p.b.session.leaving, p.b.session.announced = false, nil })
		if got := promote("", -1); !strings.Contains(got, "what it offers") {
			t.Errorf("promote one that has not announced: %s", got)
		}
		p.on(func() { p.b.session.close(nil) })
		if got := promote("", -1); !strings.Contains(got, "it has no stand-by: connect a second private relay") {
			t.Errorf("promote nobody: %s", got)
		}
		if _, err := p.Promote(context.Background(), "home", "", -1); !errors.Is(err, ErrUnknownSite) {
			t.Errorf("promote of an unknown site: %v", err)
		}
	})
}

// What is cut is cancelled: a private relay has seen it, and does not take it as refused.
func TestPromoteCut(t *testing.T) {
	inPairs(t, func(p *pairing) {
		under := p.slow()
		if _, err := p.Promote(context.Background(), "office", "", 0); err != nil {
			t.Fatal(err)
		}
		if res, _ := under.response("POST"); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
			t.Errorf("the visitor: %s", res.Status)
		}
		synctest.Wait()
		if e, _ := errors.AsType[*tunnel.StreamError](p.a.closed); e == nil || e.Code != tunnel.CodeCancelled {
			t.Errorf("the private relay: %v", p.a.closed)
		}
	})
}

// Nobody waits for a loop that does not answer any more.
func TestPromoteContext(t *testing.T) {
	inPairs(t, func(p *pairing) {
		hold := make(chan struct{})
		p.a.session.loop.Post(func() { <-hold })
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if _, err := p.Promote(ctx, "office", "", -1); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		close(hold)
	})
}

// While the stand-bys are promoted back and forth, every request is answered, every
// connection to a port accepted, and what was begun ends where it was.
func TestPromoteUnderLoad(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
		targets := map[string]string{"app": target(t, okTarget), "port": echo}
		services := []string{"app", "https://app.test", "port", "tcp://127.0.0.1:0"}
		a := r.connectAs(machine('a', '1'), targets, services...)
		r.connectAs(machine('b', '1'), targets, services...)
		port := a.port()
		lasting, err := net.Dial("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		defer lasting.Close()

		stop := make(chan struct{})
		var wg sync.WaitGroup
		client := r.client()
		load := func(once func() error) {
			wg.Go(func() {
				for {
					select {
					case <-stop:
						return
					default:
						if err := once(); err != nil {
							t.Error(err)
							return
						}
					}
				}
			})
		}
		for range 4 {
			load(func() error {
				res, err := client.Get("https://app.test/")
				if err != nil {
					return err
				}
				defer res.Body.Close()
				if b, err := io.ReadAll(res.Body); err != nil || res.StatusCode != 200 || string(b) != "ok" {
					return fmt.Errorf("%s, %q, %v", res.Status, b, err)
				}
				return nil
			})
		}
		load(func() error {
			c, err := net.Dial("tcp", port)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(10 * time.Second))
			io.WriteString(c, "hello")
			b := make([]byte, 5)
			_, err = io.ReadFull(c, b)
			return err
		})
		for range 20 {
			if _, err := r.Promote(context.Background(), "office", "", -1); err != nil {
				t.Fatal(err)
			}
			time.Sleep(10 * time.Millisecond)
			io.WriteString(lasting, "x")
			lasting.SetReadDeadline(time.Now().Add(time.Minute))
			if _, err := io.ReadFull(lasting, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
		}
		close(stop)
		wg.Wait()
	})
}

// A private relay that has restarted is known by its machine: what its predecessor had
// is of no use to anybody. One on another machine is a stand-by.
func TestRestartedMachine(t *testing.T) {
	inPairs(t, func(p *pairing) {
		p.on(func() { p.b.session.close(nil) })
		under := p.slow()
		p.on(p.a.cut)
		other := p.named("c", machine('c', '1'))
		start := time.Now()
		p.named("a2", machine('a', '2'))
		if res, _ := under.response("POST"); res.StatusCode != 503 {
			t.Errorf("what was under way: %s", res.Status)
		}
		within(t, start, 100*time.Millisecond)
		if who := p.who(); who != "c" {
			t.Errorf("%s answers", who)
		}
		if s := p.states(); s != "A s" {
			t.Errorf("sessions: %s", s)
		}
		// One whose links are just silent is asked whether it lives.
		old := p.named("d", machine('d', '1'))
		p.on(func() { old.link.silent, old.link.peer.silent = true, true })
		start = time.Now()
		d2 := p.named("d2", machine('d', '2'))
		for ended := false; !ended && time.Since(start) < time.Minute; time.Sleep(10 * time.Millisecond) {
			p.on(func() { ended = old.session.ended })
		}
		within(t, start, takeoverTime+50*time.Millisecond)
		p.on(func() { d2.session.close(nil) })
		// Another process on the same machine leaves one alone that has a link.
		p.named("a3", machine('a', '3'))
		time.Sleep(5 * time.Second)
		if s := p.states(); s != "A s s" || p.active() != other.session {
			t.Errorf("sessions: %s", s)
		}
	})
}

// Two private relays of a copied machine have one machine id. They do not take each other
// for a restart, whichever loses its link.
func TestCopiedMachine(t *testing.T) {
	inPairs(t, func(p *pairing) {
		var log logLines
		p.log = slog.New(slog.NewTextHandler(&log, nil))
		c := p.named("c", machine('a', '2'))
		time.Sleep(time.Second)
		for _, s := range []*testSite{p.a, c} {
			under := p.slow()
			p.on(s.cut)
			time.Sleep(takeoverTime / 2)
			if refusal := s.resume(0); refusal != nil {
				t.Fatal(refusal)
			}
			p.finish(under, "a")
		}
		// One that has no link when the other begins anew is none, either.
		under := p.slow()
		p.on(func() { c.session.close(nil) })
		p.on(p.a.cut)
		c = p.named("c", machine('a', '2'))
		if refusal := p.a.resume(0); refusal != nil {
			t.Fatal(refusal)
		}
		p.finish(under, "a")
		if n := log.count("level=WARN msg=\"two private relays"); n != 1 {
			t.Errorf("%d warnings of one pair", n)
		}
		// The link of a process that has died may end when the next one has begun.
		p.named("c2", machine('a', '3'))
		p.on(c.cut)
		if !c.session.ended || p.a.session.ended {
			t.Errorf("ended: %v, %v", c.session.ended, p.a.session.ended)
		}
	})
}

// A private relay that does not say where it runs takes the place of one with the same
// key that does not either, as long as that has no link.
func TestUnknownMachine(t *testing.T) {
	inPairs(t, func(p *pairing) {
		unknown := relay.Hello{Site: "office", Key: "k"}
		c := p.named("c", unknown)
		p.on(c.cut)
		otherKey := unknown
		otherKey.Key = "k2"
		p.named("d", otherKey)
		if s := p.states(); s != "A s sl s" {
			t.Errorf("sessions: %s", s)
		}
		p.named("e", unknown)
		if s := p.states(); s != "A s s s" {
			t.Errorf("sessions: %s", s)
		}
	})
}

// A key that is revoked takes its own sessions along, and nobody else's.
func TestRevokeKey(t *testing.T) {
	inPairs(t, func(p *pairing) {
		second := machine('c', '1')
		second.Key = "k2"
		c := p.named("c", second)
		p.Reload([]Site{{Name: "office", Keys: []string{"k2"}, Revoked: []string{"k"}, Publish: patterns("http://*.test")}})
		start := time.Now()
		if who := p.who(); who != "c" {
			t.Errorf("%s answers", who)
		}
		within(t, start, 100*time.Millisecond)
		if s := p.states(); s != "A" || p.active() != c.session {
			t.Errorf("sessions: %s", s)
		}
		p.Reload(nil)
		synctest.Wait()
		if s := p.states(); s != "" {
			t.Errorf("sessions of a site that was removed: %s", s)
		}
		p.Reload(nil)
		if len(p.groups) != 0 {
			t.Error("a site that was removed is remembered")
		}
	})
}

// There is a bound for those that are linked, and one for those that were.
func TestManyStandbys(t *testing.T) {
	inPairs(t, func(p *pairing) {
		var all []*testSite
		for i := len(p.Status(context.Background()).Sessions); i < maxLinked; i++ {
			all = append(all, p.named("c", machine('c', byte('a'+i))))
		}
		if _, refusal := p.admit(machine('d', '1'), p.loops[0]); refusal == nil || refusal.Code != relay.RefuseBusy || !refusal.Retry {
			t.Errorf("one too many: %v", refusal)
		}
		// One goes without a farewell; another takes its place, and it finds none.
		p.on(all[0].cut)
		p.named("d", machine('d', '1'))
		if refusal := all[0].resume(0); refusal == nil || refusal.Code != relay.RefuseBusy {
			t.Errorf("back too late: %v", refusal)
		}
		p.on(all[1].cut) // there is room for one at a time
		for i := range 3 * maxSessions {
			p.on(p.named("e", machine(byte('A'+i), '1')).cut)
		}
		if n := len(p.Status(context.Background()).Sessions); n != maxSessions {
			t.Errorf("%d sessions, want %d", n, maxSessions)
		}
		if who := p.who(); who != "a" {
			t.Errorf("%s answers", who)
		}
	})
}

// A session lives as long as one of its links does.
func TestSeveralLinks(t *testing.T) {
	inPairs(t, func(p *pairing) {
		links := func() string {
			var list []string
			for _, s := range p.Status(context.Background()).Sessions {
				if s.ID == p.a.session.shortID() {
					for _, l := range s.Links {
						list = append(list, l.Transport+" "+l.Role)
					}
				}
			}
			return strings.Join(list, ", ")
		}
		first := p.a.link
		p.a.hello.Role = relay.RoleBulk
		if refusal := p.a.resume(1); refusal != nil {
			t.Fatal(refusal)
		}
		synctest.Wait()
		if got := links(); got != "wss interactive, wss bulk" {
			t.Errorf("links: %s", got)
		}
		under := p.slow()
		p.on(func() { first.Close(errors.New("cut")) })
		time.Sleep(time.Minute / 2)
		p.finish(under, "a")
		if got := links(); got != "wss bulk" || p.active() != p.a.session {
			t.Errorf("links after the first has gone: %s", got)
		}

		// The private relay says that it has no other: what there was goes first.
		second := p.a.link
		p.a.hello.Role = ""
		if refusal := p.a.resume(0); refusal != nil {
			t.Fatal(refusal)
		}
		synctest.Wait()
		if got := links(); got != "wss interactive" || !second.dead || p.active() != p.a.session {
			t.Errorf("links after a new beginning: %s", got)
		}

		// There is a bound.
		for p.a.session.linked < tunnel.MaxLinks {
			a, refusal := p.admit(p.a.again(1), p.loops[0])
			if refusal != nil || a.session != p.a.session {
				t.Fatal(refusal)
			}
		}
		if _, refusal := p.admit(p.a.again(1), p.loops[0]); refusal == nil || refusal.Code != relay.RefuseBusy {
			t.Errorf("one link too many: %v", refusal)
		}
		for p.a.session.linked > 1 { // they fail on their way
			p.unlink(p.a.session)
		}

		// One link says that the session is over. The other one may finish.
		p.a.hello.Role = relay.RoleBulk
		if refusal := p.a.resume(1); refusal != nil {
			t.Fatal(refusal)
		}
		under = p.slow()
		third := p.a.link
		p.on(func() { third.end(&link.CloseError{Status: link.StatusOver}) })
		start := time.Now()
		if who := p.who(); who != "b" {
			t.Errorf("%s answers", who)
		}
		within(t, start, 100*time.Millisecond)
		if res, _ := under.response("POST"); res.StatusCode != 503 {
			t.Errorf("what was under way: %s", res.Status)
		}
		took(t, start, partTime)
		if s := p.states(); s != "A" {
			t.Errorf("sessions: %s", s)
		}
		// With the last link it is over at once.
		c := p.named("c", machine('c', '1'))
		p.on(func() { c.peer.Close(nil) })
		synctest.Wait()
		if s := p.states(); s != "A" {
			t.Errorf("sessions: %s", s)
		}
	})
}

// What a stand-by announces is looked at, not published; a reload has it looked at again.
func TestStandbyAnnouncement(t *testing.T) {
	r := newTestRelay(t, false, nil)
	app := target(t, okTarget)
	targets := map[string]string{"app": app, "late": app}
	r.connectAs(machine('a', '1'), targets, "app", "https://app.test", "port", "tcp://127.0.0.1:0")
	r.connect("home", targets, "app", "https://mine.test")
	b := r.connectAs(machine('b', '1'), targets)
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(b.session.loop.Loop, func() {
		b.announce(announcements(
			"app", "https://app.test",
			"late", "https://late.example",
			"mine", "https://mine.test",
			"twice", "https://app.test",
			"port", "tcp://127.0.0.1:4711",
		), replies)
	})
	want := []string{"", "may not publish", "another site", `service "app" has this address`, ""}
	for i, reply := range <-replies {
		if want[i] == "" && reply.Error != "" || !strings.Contains(reply.Error, want[i]) {
			t.Errorf("service %s: %q, want %q", reply.Name, reply.Error, want[i])
		}
		if i == 4 && (len(reply.Addresses) != 1 || reply.Addresses[0] != "tcp://127.0.0.1:4711") {
			t.Errorf("a port would be at %q", reply.Addresses)
		}
	}
	if listening("127.0.0.1:4711") {
		t.Error("the port of a stand-by is open")
	}
	standby := func() SessionStatus {
		for _, s := range r.Status(context.Background()).Sessions {
			if s.Site == "office" && !s.Active {
				return s
			}
		}
		t.Fatal("no stand-by")
		return SessionStatus{}
	}
	if s := standby(); s.Announced != 5 || len(s.Services) != 0 || len(s.Refused) != 3 || s.Refused[0].Name != "late" {
		t.Errorf("status: %+v", s)
	}
	if got := r.status(true, "GET / HTTP/1.1\r\nHost: late.example\r\n\r\n"); got != 404 {
		t.Errorf("a service of a stand-by: %d", got)
	}

	r.Reload([]Site{
		{Name: "office", Keys: []string{"k"}, Publish: patterns("https://*.test", "https://*.example", "tcp://127.0.0.1:0")},
		{Name: "home", Keys: []string{"k"}, Publish: patterns("https://mine.test")},
	})
	waitFor(t, func() bool { s := standby(); return len(s.Refused) == 3 && s.Refused[2].Name == "port" })
	if _, err := r.Promote(context.Background(), "office", "", -1); err != nil {
		t.Fatal(err)
	}
	if got := r.status(true, "GET / HTTP/1.1\r\nHost: late.example\r\n\r\n"); got != 200 {
		t.Errorf("after it was promoted: %d", got)
	}
	for _, s := range r.Status(context.Background()).Sessions {
		if s.Site == "office" && s.Active && (len(s.Services) != 2 || len(s.Refused) != 3) {
			t.Errorf("status: %+v", s)
		}
	}
}

// A relay that shuts down tells every private relay, stand-bys too, lets nobody else in,
// and waits for what is under way.
func TestDrainStandbys(t *testing.T) {
	inPairs(t, func(p *pairing) {
		under := p.slow()
		if _, err := p.Promote(context.Background(), "office", "", -1); err != nil {
			t.Fatal(err)
		}
		drained := make(chan error, 1)
		go func() { drained <- p.Drain(context.Background()) }()
		for len(p.Status(context.Background()).Sessions) == 2 { // b has nothing under way
			time.Sleep(10 * time.Millisecond)
		}
		if p.active() != nil {
			t.Error("a session that ends takes over")
		}
		if _, refusal := p.admit(machine('c', '1'), p.loops[0]); refusal == nil || refusal.Code != relay.RefuseDraining || !refusal.Retry {
			t.Errorf("a new session: %v", refusal)
		}
		if _, err := p.Promote(context.Background(), "office", "", -1); !errors.Is(err, errDraining) {
			t.Errorf("promote: %v", err)
		}
		time.Sleep(20 * time.Second)
		p.finish(under, "a")
		if err := <-drained; err != nil {
			t.Error(err)
		}
	})
}

// A link that is lost while the relay drains does not make it think.
func TestDrainLosesLink(t *testing.T) {
	inPairs(t, func(p *pairing) {
		under, other := p.slow(), p.b
		if _, err := p.Promote(context.Background(), "office", "", -1); err != nil {
			t.Fatal(err)
		}
		p.slow()
		drained := make(chan error, 1)
		go func() { drained <- p.Drain(context.Background()) }()
		time.Sleep(settleTime + time.Second)
		p.on(other.cut)
		time.Sleep(5 * time.Second)
		p.on(func() {
			if g := p.a.session.group; g.undecided || g.active != other.session {
				t.Errorf("undecided %v", g.undecided)
			}
		})
		p.finish(under, "a")
		if err := <-drained; err != nil { // when the resume timeout is over
			t.Error(err)
		}
	})
}

// What has not finished in time is cut, and the private relays are told that it is over.
func TestDrainTimeout(t *testing.T) {
	inPairs(t, func(p *pairing) {
		under := p.slow()
		p.on(p.b.cut)
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		start := time.Now()
		if err := p.Drain(ctx); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
		took(t, start, 30*time.Second)
		if res, _ := under.response("POST"); res.StatusCode != 503 {
			t.Errorf("what was under way: %s", res.Status)
		}
		synctest.Wait()
		if s := p.states(); s != "" || !strings.Contains(fmt.Sprint(p.a.ended), fmt.Sprint(link.StatusOver)) {
			t.Errorf("sessions: %s; the link of the active one ended with %v", s, p.a.ended)
		}
	})
}

// Who has come to a private relay that was dead already need not wait for it.
func TestUnseenDuringTakeover(t *testing.T) {
	r := newTestRelay(t, false, nil)
	echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
	a := r.connectAs(machine('a', '1'), map[string]string{"port": echo}, "port", "tcp://127.0.0.1:0")
	r.connectAs(machine('b', '1'), nil, "port", "tcp://127.0.0.1:0")
	port := a.port()
	visit := func() net.Conn {
		c, err := net.Dial("tcp", port)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		c.SetDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, "hello")
		return c
	}
	seen := visit()
	if _, err := io.ReadFull(seen, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	onLoop(a.session.loop.Loop, func() { a.link.silent, a.link.peer.silent = true, true })
	unseen := visit()
	for visitors := 0; visitors < 2; {
		onLoop(a.session.loop.Loop, func() { visitors = a.session.services[0].visitors })
	}
	onLoop(a.session.loop.Loop, a.cut)
	if n, err := unseen.Read(make([]byte, 5)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("who came too late: %d bytes, %v", n, err)
	}
	seen.SetDeadline(time.Now().Add(50 * time.Millisecond))
	if _, err := seen.Read(make([]byte, 5)); !errors.Is(err, os.ErrDeadlineExceeded) {
		t.Errorf("who was there before: %v", err)
	}
}
