//go:build linux

package e2e

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"culvert.dev/pkg/netem"
)

// startEcho is a target that returns every byte, and hands out its ends of connections.
func startEcho(t testing.TB, n *netem.Namespace) (addr string, conns <-chan net.Conn) {
	t.Helper()
	ln, err := listenIn(n, "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	c := make(chan net.Conn, 100)
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			nc, err := ln.Accept()
			if err != nil {
				return
			}
			select {
			case c <- nc:
			default:
			}
			wg.Go(func() {
				io.Copy(nc, nc)
				nc.Close()
			})
		}
	})
	t.Cleanup(func() { ln.Close(); wg.Wait() })
	return ln.Addr().String(), c
}

// visit connects to a tcp service and proves it with a round trip.
func (s *system) visit(name string, limit time.Duration) (net.Conn, error) {
	c, err := dialIn(s.outside, "tcp", s.port(name))
	if err != nil {
		return nil, err
	}
	c.SetDeadline(time.Now().Add(limit))
	if err := roundTrip(c, make([]byte, 5)); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// mustVisit is visit for one that has to work.
func (s *system) mustVisit(name string) net.Conn {
	s.t.Helper()
	c, err := s.visit(name, waitLimit)
	if err != nil {
		s.t.Fatalf("visit %s: %v", name, err)
	}
	s.t.Cleanup(func() { c.Close() })
	return c
}

// awaitVisit sends a visitor each 50 ms until one is served, and returns that one. Those who
// come before the loss of a private relay is known are served by nobody.
func (s *system) awaitVisit(name string) net.Conn {
	s.t.Helper()
	served := make(chan net.Conn)
	stop := make(chan struct{})
	defer close(stop)
	limit := time.After(waitLimit)
	for {
		go func() {
			c, err := s.visit(name, waitLimit)
			if err != nil {
				return
			}
			select {
			case served <- c:
			case <-stop:
				c.Close()
			}
		}()
		select {
		case c := <-served:
			s.t.Cleanup(func() { c.Close() })
			return c
		case <-limit:
			s.t.Fatalf("nobody is served by %s", name)
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// awaitReset waits until a connection is over, and returns when it was.
func awaitReset(t testing.TB, c net.Conn) time.Time {
	t.Helper()
	c.SetDeadline(time.Now().Add(2 * waitLimit))
	for {
		if _, err := c.Read(make([]byte, 100)); errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("%v: still open after %v", c.LocalAddr(), 2*waitLimit)
		} else if err != nil {
			return time.Now()
		}
	}
}

// TestRestart kills each relay and starts it again: the streams of both ends end as soon as
// the link is back, long before the time that they would wait for a lost one, and new ones
// work.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"public", "private"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			l := newLink(t, netem.Config{})
			echo, conns := startEcho(t, l.Inside)
			s := startSystemOver(t, l, "", service{"echo", "tcp://:{port}", "tcp://" + echo})
			c := s.mustVisit("echo")
			target := <-conns
			began := time.Now()
			if side == "public" {
				s.public.kill()
				s.startPublic()
			} else {
				s.private.kill()
				s.startPrivate()
			}
			s.awaitVisit("echo")
			back := time.Now()
			// The target's end is read by startEcho, which closes it.
			for deadline := time.Now().Add(waitLimit); ; time.Sleep(10 * time.Millisecond) {
				if _, err := target.Write(nil); errors.Is(err, net.ErrClosed) {
					break
				} else if time.Now().After(deadline) {
					t.Fatal("the target's connection is still open")
				}
			}
			targetEnded := time.Now()
			visitorEnded := awaitReset(t, c)
			t.Logf("since the kill of the %s relay: a new visitor after %v, the target's end closed after %v at most, the visitor's after %v at most",
				side, back.Sub(began), targetEnded.Sub(began), visitorEnded.Sub(began))
			if ended := max(targetEnded.Sub(back), visitorEnded.Sub(back)); ended > 20*time.Second {
				t.Errorf("streams lived on for %v after the restart", ended)
			}
		})
	}
}

// fetchSlowly begins eight downloads of the file of randomFile that take some seconds, and returns when something of each has come. What it
// returns waits until they are over, and checks what has arrived.
func (s *system) fetchSlowly(sum string) (arrived func()) {
	s.t.Helper()
	var begun, over sync.WaitGroup
	for i := range 8 {
		begun.Add(1)
		over.Go(func() {
			h := sha256.New()
			first := sync.OnceFunc(begun.Done)
			cmd := s.curlCmd("--limit-rate", "1m", s.url("files", "/data"))
			cmd.Stdout = writerFunc(func(b []byte) (int, error) {
				first()
				return h.Write(b)
			})
			err := s.outside.Do(cmd.Run)
			first() // or never
			if got := hex.EncodeToString(h.Sum(nil)); err != nil || got != sum {
				s.t.Errorf("download %d: %v, %s, want %s", i, err, got, sum)
			}
		})
	}
	begun.Wait()
	return over.Wait
}

type writerFunc func([]byte) (int, error)

func (f writerFunc) Write(b []byte) (int, error) { return f(b) }

// TestDrainUnderLoad ends each relay while files are downloaded: all of them arrive, and new
// visitors are turned away.
func TestDrainUnderLoad(t *testing.T) {
	t.Parallel()
	for _, side := range []string{"public", "private"} {
		t.Run(side, func(t *testing.T) {
			t.Parallel()
			l := newLink(t, netem.Config{})
			folder, sum := randomFile(t, 4<<20)
			s := startSystemOver(t, l, "", service{"files", "https://files.example.com", "file://" + folder})
			arrived := s.fetchSlowly(sum)
			p := s.public
			if side == "private" {
				p = s.private
			}
			mark := p.lines()
			p.signal(t, syscall.SIGTERM)
			p.await(t, mark, "stopping")
			if side == "public" {
				s.awaitNoVisitors()
			} else {
				s.awaitStatus("files", http.StatusServiceUnavailable)
			}
			arrived()
			if code := p.wait(t, waitLimit); code != 0 {
				t.Errorf("ended with %d", code)
			}
		})
	}
}

// awaitNoVisitors waits until the public relay, which has just been told to stop, takes no new visitors.
func (s *system) awaitNoVisitors() {
	s.t.Helper()
	for deadline := time.Now().Add(waitLimit); ; time.Sleep(10 * time.Millisecond) {
		c, err := dialIn(s.outside, "tcp", s.https)
		if err != nil {
			return
		}
		c.Close()
		if time.Now().After(deadline) {
			s.t.Fatal("a draining relay takes new visitors")
		}
	}
}

// awaitStatus waits until an https service answers with a status.
func (s *system) awaitStatus(host string, status int) {
	s.t.Helper()
	c := s.visitor()
	c.Timeout = 10 * time.Second
	var last string
	for deadline := time.Now().Add(waitLimit); time.Now().Before(deadline); time.Sleep(20 * time.Millisecond) {
		resp, err := c.Get(s.url(host, "/none"))
		if err != nil {
			last = err.Error()
			continue
		}
		resp.Body.Close()
		if resp.StatusCode == status {
			return
		}
		last = resp.Status
	}
	s.t.Fatalf("https://%s answers %s, want %d", host, last, status)
}

// startSecond starts another private relay of the site, and waits until it is ready.
func (s *system) startSecond() *process {
	s.t.Helper()
	file := s.file("second.toml")
	writeFile(s.t, file, s.privateTOML("office", s.relay(), s.file("office.key")))
	return s.startAgain("--config", file)
}

// startAgain starts a private relay with the arguments of one that was there.
func (s *system) startAgain(args ...string) *process {
	s.t.Helper()
	p := startRelayIn(s.t, s.inside, "relay-private", args...)
	p.await(s.t, 0, `"msg":"ready"`)
	return p
}

// TestTakeover kills the active private relay of a site, twice: the one that stands by
// takes over, the relay that comes back stands by, and the old streams end when the time
// is over in which their relay could have come back.
func TestTakeover(t *testing.T) {
	t.Parallel()
	l := newLink(t, netem.Config{})
	echo, _ := startEcho(t, l.Inside)
	s := startSystemOver(t, l, "", service{"echo", "tcp://:{port}", "tcp://" + echo})
	second := s.startSecond()
	var old []net.Conn
	var killed time.Time
	for range 2 {
		old = append(old, s.mustVisit("echo"))
		killed = time.Now()
		s.private.kill()
		c := s.awaitVisit("echo")
		took := time.Since(killed)
		t.Logf("killed: a visitor was served after %v", took)
		if took > 20*time.Second { // the old one could come back for longer
			t.Error("a takeover takes too long")
		}
		first := s.private
		s.private = second
		second = s.startAgain(first.cmd.Args[1:]...)
		c.SetDeadline(time.Now().Add(waitLimit))
		if err := roundTrip(c, make([]byte, 5)); err != nil {
			t.Errorf("a relay that comes back disturbs the one that works: %v", err)
		}
	}
	for i, c := range old {
		t.Logf("the stream of kill %d was over %v after the last one", i+1, awaitReset(t, c).Sub(killed))
	}
}

// TestPromote has a stand-by take over while files are downloaded: they arrive as before,
// and new visitors are served by the other relay.
func TestPromote(t *testing.T) {
	t.Parallel()
	l := newLink(t, netem.Config{})
	folder, sum := randomFile(t, 4<<20)
	writeFile(t, folder+"/who", "first")
	s := startSystemOver(t, l, "", service{"files", "https://files.example.com", "file://" + folder})
	other, _ := randomFile(t, 1)
	writeFile(t, other+"/who", "second")
	s.services[0].target = "file://" + other
	s.startSecond()
	who := func() string {
		t.Helper()
		return s.curl(s.url("files", "/who"))
	}
	if got := who(); got != "first" {
		t.Fatalf("%s serves before", got)
	}
	arrived := s.fetchSlowly(sum)
	began := time.Now()
	if out := runIn(t, s.outside, s.tunnelctl("site", "promote", "office")); !strings.Contains(out, "is active") {
		t.Errorf("promote says %q", out)
	}
	if got := who(); got != "second" {
		t.Errorf("%s serves afterwards", got)
	}
	t.Logf("promoted and served in %v", time.Since(began))
	arrived()
	if got := who(); got != "second" {
		t.Errorf("%s serves at last", got)
	}
}
