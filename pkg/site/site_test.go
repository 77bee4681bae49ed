package site

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
)

// TestServe has a handler published from its beginning to its end.
func TestServe(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		for range 2 { // what was served can be served again
			ctx, stop := context.WithCancel(t.Context())
			served := make(chan error)
			go func() { served <- s.Serve(ctx, "calc", "https://calc.example.com", say) }()
			synctest.Wait()
			time.Sleep(time.Second)
			w.wantGet("https://calc.example.com/", 200, "hello 127.0.0.1:")
			if err := s.Serve(t.Context(), "calc", "https://other.example.com", say); err == nil {
				t.Error("one name was served twice")
			} else {
				wantText(t, err, `service "calc"`, "twice")
			}
			w.wantGet("https://calc.example.com/", 200, "hello 127.0.0.1:")
			stop()
			if err := <-served; err != nil {
				t.Errorf("served until %v", err)
			}
			time.Sleep(time.Second)
			w.wantGet("https://calc.example.com/", 404, "")
		}
	})
}

// TestServeUntilClose is told by the error which of the two ends it was.
func TestServeUntilClose(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		served := make(chan error)
		go func() { served <- s.Serve(t.Context(), "calc", "https://calc.example.com", say) }()
		time.Sleep(time.Second)
		if err := s.Close(); err != nil {
			t.Error(err)
		}
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("served until %v", err)
		}
		if err := s.Serve(t.Context(), "calc", "https://calc.example.com", say); !errors.Is(err, net.ErrClosed) {
			t.Errorf("serve after close: %v", err)
		}
		if _, err := s.Listen(t.Context(), named("echo", "tls")); !errors.Is(err, net.ErrClosed) {
			t.Errorf("listen after close: %v", err)
		}
		if _, err := s.Start(t.Context()); !errors.Is(err, net.ErrClosed) {
			t.Errorf("start after close: %v", err)
		}
	})
}

// TestJoin shows what is kept of a token, and that it is needed once.
func TestJoin(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		w.listen(s, "echo", "tls").Close()
		s.Close()
		if info, err := os.Stat(filepath.Join(s.Dir, "site.key")); err != nil || info.Size() == 0 {
			t.Errorf("key: %v, %v", info, err)
		}
		if _, err := auth.ReadKey(filepath.Join(s.Dir, "site.key")); err != nil {
			t.Error(err) // others could read it
		}
		again := w.site()
		again.Token = ""
		w.listen(again, "echo", "tls")
		again.Close()

		// The same by hand, with a relay that has the usual port.
		hand := w.site()
		hand.Relay, hand.Name, hand.Key = "relay.test", "office", filepath.Join(s.Dir, "site.key")
		hand.Dir, hand.Token = "", ""
		w.listen(hand, "echo", "tls")
	})
}

// TestJoinErrors has a site that does not join, and then one that does in the same folder.
func TestJoinErrors(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		good := w.token("office")
		elsewhere := auth.Token{Secret: make([]byte, 32), Relay: "nowhere.test:443", Site: "office"}.String()
		for _, c := range []struct {
			name   string
			change func(*Site)
			want   []string
		}{
			{"no token", func(s *Site) { s.Token = "" }, []string{"a join token is needed once", "tunnelctl site add"}},
			{"no token at all", func(s *Site) { s.Token = "password" }, []string{"token", "cvt_"}},
			{"half a token", func(s *Site) { s.Token = s.Token[:40] }, []string{"token: damaged"}},
			{"a token nobody knows", func(s *Site) {
				s.Token = auth.Token{Secret: make([]byte, 32), Relay: relayAddress, Site: "office"}.String()
			}, []string{"join relay.test:443: refused: the token is not known"}},
			{"no way", func(s *Site) {
				s.Dial = func(context.Context, string, string) (net.Conn, error) { return nil, errNoWay }
			}, []string{"join relay.test:443", "network is unreachable"}},
			{"no relay", func(s *Site) { s.Token = elsewhere }, []string{"join nowhere.test:443", "refused"}},
			{"nobody vouches", func(s *Site) { s.CA = "" }, []string{"join relay.test:443", "certificate"}},
			{"no authority", func(s *Site) { s.CA = filepath.Join(w.dir, "no.pem") }, []string{"CA:", "no.pem"}},
			{"no certificates", func(s *Site) { s.CA = os.DevNull }, []string{"holds no PEM certificate"}},
			{"a folder that is a file", func(s *Site) { s.Dir = w.ca() }, []string{"roots.pem"}},
		} {
			s := w.site()
			s.Token = good
			c.change(s)
			_, err := s.Listen(t.Context(), named("echo", "tls"))
			wantText(t, err, c.want...)
			if secret := strings.TrimPrefix(s.Token, "cvt_"); err != nil && len(secret) > 20 && strings.Contains(err.Error(), secret) {
				t.Errorf("%s: the error shows the token: %v", c.name, err)
			}
		}
		// A Site that could not join may try again.
		s := w.site()
		dial := s.Dial
		s.Token, s.Dial = good, func(context.Context, string, string) (net.Conn, error) { return nil, errNoWay }
		if _, err := s.Start(t.Context()); err == nil {
			t.Fatal("joined without a way")
		}
		s.Dial = dial
		w.listen(s, "echo", "tls")
		// The token is used up.
		other := w.site()
		other.Dir, other.Token = filepath.Join(w.dir, "other"), good
		_, err := other.Start(t.Context())
		wantText(t, err, "refused: the token is not known")
	})
}

// TestConfiguration has what is wrong before anything is dialled.
func TestConfiguration(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		return filepath.Join(dir, name)
	}
	key := filepath.Join(dir, "good.key")
	if _, err := auth.GenerateKey(key); err != nil {
		t.Fatal(err)
	}
	damaged := filepath.Join(dir, "damaged")
	if err := os.Mkdir(damaged, 0o700); err != nil {
		t.Fatal(err)
	}
	write("damaged/site.json", "{")
	unkeyed := filepath.Join(dir, "unkeyed")
	if err := os.Mkdir(unkeyed, 0o700); err != nil {
		t.Fatal(err)
	}
	write("unkeyed/site.json", `{"relay":"relay.test:443","site":"office"}`)
	for _, c := range []struct {
		s    *Site
		want []string
	}{
		{&Site{}, []string{"site: want Dir"}},
		{&Site{Dir: damaged}, []string{"site.json is damaged", "another token"}},
		{&Site{Dir: unkeyed}, []string{"key file", "no such file"}},
		{&Site{Relay: "https://relay.test", Name: "office", Key: key}, []string{`"https://relay.test"`, "HOST:PORT", "not a URL"}},
		{&Site{Relay: "relay.test:70000", Name: "office", Key: key}, []string{"port", "1 to 65535"}},
		{&Site{Relay: "relay.test:", Name: "office", Key: key}, []string{"port", "1 to 65535"}},
		{&Site{Relay: ":443", Name: "office", Key: key}, []string{"HOST or HOST:PORT"}},
		{&Site{Relay: "relay.test", Key: key}, []string{"site: Name", "empty"}},
		{&Site{Relay: "relay.test", Name: "an office", Key: key}, []string{"site: Name", "letters"}},
		{&Site{Relay: "relay.test", Name: "office"}, []string{"site: want Key"}},
		{&Site{Relay: "relay.test", Name: "office", Key: filepath.Join(dir, "no.key")}, []string{"key file", "no such file"}},
		{&Site{Relay: "relay.test", Name: "office", Key: write("bad.key", "key")}, []string{"bad.key", "no PEM"}},
		{&Site{Relay: "relay.test", Name: "office", Key: key, CA: filepath.Join(dir, "no.pem")}, []string{"CA:", "no such file"}},
	} {
		_, err := c.s.Start(t.Context())
		wantText(t, err, c.want...)
		if err := c.s.Close(); err != nil {
			t.Error(err)
		}
	}

	s := &Site{}
	for _, c := range []struct {
		name, publish string
		h             http.Handler
		want          []string
	}{
		{"", "", say, []string{"name is empty"}},
		{"a service", "", say, []string{"letters"}},
		{"calc", "calc.example.com", say, []string{`service "calc"`, "publish"}},
		{"calc", "https://calc.example.com", nil, []string{`service "calc"`, "no handler"}},
		{"calc", "tcp://:8080", say, []string{"use Listen"}},
		{"calc", "udp://:53", say, []string{`service "calc"`, "udp"}},
		{"calc", "tls://calc.example.com", say, []string{`service "calc"`, "TLS"}},
	} {
		wantText(t, s.Serve(t.Context(), c.name, c.publish, c.h), c.want...)
	}
}

// TestListenErrors has services that a listener cannot be of.
func TestListenErrors(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		l := w.listen(s, "echo", "tls")
		target := named("target", "tls")
		target.Target = relay.Target{Scheme: "tcp", Host: "127.0.0.1", Port: 1}
		handled := named("handled", "https")
		handled.Handler = say
		for _, c := range []struct {
			svc  private.Service
			want []string
		}{
			{private.Service{}, []string{"name is empty"}},
			{named("an echo", "tls"), []string{"letters"}},
			{target, []string{`service "target"`, "neither Target nor Handler"}},
			{handled, []string{`service "handled"`, "neither Target nor Handler"}},
			{private.Service{Service: relay.Service{Name: "dns", Publish: relay.Publish{Scheme: "udp", Port: 53}}}, []string{`service "dns"`, "udp"}},
			{named("echo", "https"), []string{`service "echo" is defined twice`}},
		} {
			_, err := s.Listen(t.Context(), c.svc)
			wantText(t, err, c.want...)
		}
		// None of them has harmed the first.
		visitor, c := w.meet(l, "echo")
		send(t, visitor, c, "hello")
		visitor.Close()
		c.Close()
	})
}

// TestRefusedService has the public relay say no, and then yes to the same name.
func TestRefusedService(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		err := s.Serve(t.Context(), "calc", "https://calc.example.org", say)
		wantText(t, err, `service "calc": the public relay does not take it`)
		svc := named("echo", "tls")
		svc.Publish.Host = "echo.example.org"
		_, err = s.Listen(t.Context(), svc)
		wantText(t, err, `service "echo": the public relay does not take it`)
		r, err := s.Start(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if st := r.Status().Services; len(st) != 0 {
			t.Errorf("still offered: %+v", st)
		}
		ctx, stop := context.WithCancel(t.Context())
		served := make(chan error)
		go func() { served <- s.Serve(ctx, "calc", "https://calc.example.com", say) }()
		w.listen(s, "echo", "tls")
		time.Sleep(time.Second)
		w.wantGet("https://calc.example.com/", 200, "hello")
		stop()
		if err := <-served; err != nil {
			t.Error(err)
		}
	})
}

// TestAnswerOfBefore has the public relay answer for what a name stood for before.
func TestAnswerOfBefore(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		w.listen(s, "first", "tls") // there is a link
		refused := named("echo", "tls")
		refused.Publish.Host = "echo.example.org"
		ctx, stop := context.WithTimeout(t.Context(), time.Millisecond) // less than the answer takes
		defer stop()
		if _, err := s.Listen(ctx, refused); !errors.Is(err, context.DeadlineExceeded) {
			t.Fatalf("listen: %v", err)
		}
		l := w.listen(s, "echo", "tls")
		if want := "tls://echo.example.com"; len(l.Addresses) != 1 || l.Addresses[0] != want {
			t.Errorf("addresses %q, want %s", l.Addresses, want)
		}
	})
}

// TestGivenUp ends the wait for a public relay that is not there. Nothing is published when it is.
func TestGivenUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		w.listen(s, "echo", "tls").Close()
		w.stopPublic()
		time.Sleep(time.Second)
		ctx, stop := context.WithTimeout(t.Context(), 3*time.Second)
		defer stop()
		var wg sync.WaitGroup
		wg.Go(func() {
			if err := s.Serve(ctx, "calc", "https://calc.example.com", say); err != nil {
				t.Errorf("served until %v", err)
			}
		})
		_, err := s.Listen(ctx, named("echo", "tls"))
		if !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("listen: %v", err)
		}
		wantText(t, err, `service "echo"`, relayAddress, "connection refused") // what is the matter
		wg.Wait()
		w.startPublic()
		time.Sleep(time.Minute)
		w.wantGet("https://calc.example.com/", 404, "")
		l := w.listen(s, "echo", "tls") // the name is free
		visitor, c := w.meet(l, "echo")
		visitor.Close()
		c.Close()
	})
}

// A service whose Serve has returned is not offered any more, also if no public relay has said anything of it.
func TestServeUnanswered(t *testing.T) {
	key := filepath.Join(t.TempDir(), "site.key")
	if _, err := auth.GenerateKey(key); err != nil {
		t.Fatal(err)
	}
	s := &Site{
		Relay: "relay.test:443", Name: "office", Key: key, Log: slog.New(slog.DiscardHandler),
		Dial: func(context.Context, string, string) (net.Conn, error) { return nil, errors.New("there is no network") },
	}
	t.Cleanup(func() { s.Close() })
	over, cancel := context.WithCancel(t.Context())
	cancel()
	for range 2 { // a second one of the name is no other service
		if err := s.Serve(over, "web", "", http.NotFoundHandler()); err != nil {
			t.Fatal(err)
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.given) != 0 {
		t.Errorf("%d services are offered", len(s.given))
	}
}

// TestCloseWhileJoining ends a join that hangs, for all who wait for it.
func TestCloseWhileJoining(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		w.links.Silence(true)
		first := make(chan error)
		go func() { first <- s.Serve(t.Context(), "calc", "https://calc.example.com", say) }()
		synctest.Wait()
		ctx, stop := context.WithTimeout(t.Context(), time.Second)
		defer stop()
		began := time.Now()
		if _, err := s.Listen(ctx, named("echo", "tls")); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("listen: %v", err)
		}
		if d := time.Since(began); d != time.Second {
			t.Errorf("a context of a second was over after %v", d)
		}
		s.Close()
		if err := <-first; !errors.Is(err, net.ErrClosed) {
			t.Errorf("serve: %v", err)
		}
		if d := time.Since(began); d != time.Second {
			t.Errorf("close has taken %v", d-time.Second)
		}
		w.links.Silence(false)
	})
}

// TestRefusedSite has the relay end a site that it knows no more: everybody is told why.
func TestRefusedSite(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		l := w.listen(s, "echo", "tls")
		visitor, c := w.meet(l, "echo")
		served := make(chan error)
		go func() { served <- s.Serve(t.Context(), "calc", "https://calc.example.com", say) }()
		time.Sleep(time.Second)
		w.admit("office")
		wantText(t, <-served, relayAddress, "refused")
		_, err := l.Accept()
		if !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		wantText(t, err, "refused")
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("a connection lives on")
		}
		visitor.Close()
		_, err = s.Listen(t.Context(), named("late", "tls"))
		wantText(t, err, "refused")
		wantText(t, s.Serve(t.Context(), "late", "", say), "refused")
		_, err = s.Start(t.Context())
		wantText(t, err, "refused")
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
}

// TestClose ends a site with a visitor who stays: he has ten seconds.
func TestClose(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		l := w.listen(s, "echo", "tls")
		visitor, c := w.meet(l, "echo")
		waiting := w.visit("echo") // and another whom nobody has accepted
		accepted := make(chan error)
		time.Sleep(time.Second)
		began := time.Now()
		var closing sync.WaitGroup
		for range 2 {
			closing.Go(func() {
				if err := s.Close(); err != nil {
					t.Error(err)
				}
				if d := time.Since(began); d < drainTimeout {
					t.Errorf("closed after %v", d)
				}
			})
		}
		synctest.Wait()
		send(t, visitor, c, "still here")
		send(t, c, visitor, "so am I")
		closing.Wait()
		if d := time.Since(began); d > drainTimeout+time.Second {
			t.Errorf("close has taken %v", d)
		}
		go func() {
			_, err := l.Accept()
			accepted <- err
		}()
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		if _, err := c.Read(make([]byte, 1)); err == nil {
			t.Error("read after the end")
		}
		if _, err := c.Write([]byte("late")); err == nil {
			t.Error("written after the end")
		}
		for _, v := range []net.Conn{visitor, waiting} {
			if n, err := io.Copy(io.Discard, v); n != 0 {
				t.Errorf("%d bytes, %v", n, err)
			}
			v.Close()
		}
		if err := c.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
		l.Close()
	})
}

// TestCloseEndsAccept has nobody but an accept under way: it ends at once.
func TestCloseEndsAccept(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		l := w.listen(s, "echo", "tls")
		accepted := make(chan error)
		go func() {
			_, err := l.Accept()
			accepted <- err
		}()
		synctest.Wait()
		began := time.Now()
		s.Close()
		if err := <-accepted; !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		if d := time.Since(began); d > time.Second {
			t.Errorf("close has taken %v", d)
		}
	})
}

// TestGraceful has requests finish, and kept connections without one not hold anything up.
func TestGraceful(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		slow := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/slow" {
				io.WriteString(rw, "begun ")
				rw.(http.Flusher).Flush()
				time.Sleep(3 * time.Second)
			}
			io.WriteString(rw, "done")
		})
		l := w.listen(s, "web", "https")
		srv := &http.Server{Handler: slow}
		served := make(chan error, 2)
		go func() { served <- srv.Serve(l) }()
		ctx, stop := context.WithCancel(t.Context())
		go func() { served <- s.Serve(ctx, "calc", "https://calc.example.com", slow) }()
		time.Sleep(time.Second)
		var wg sync.WaitGroup
		for _, host := range []string{"web", "calc"} {
			w.wantGet("https://"+host+".example.com/", 200, "done")
			wg.Go(func() { w.wantGet("https://"+host+".example.com/slow", 200, "begun done") })
		}
		time.Sleep(time.Second)
		began := time.Now()
		stop()
		if err := <-served; err != nil {
			t.Errorf("serve: %v", err)
		}
		l.Close() // as http.Server.Shutdown does
		if err := <-served; !errors.Is(err, net.ErrClosed) {
			t.Errorf("http serve: %v", err)
		}
		s.Close()
		if d := time.Since(began); d > 5*time.Second {
			t.Errorf("close has taken %v", d)
		}
		wg.Wait()
		srv.Close()
	})
}

// TestPublicRestarts has the public relay end and another one begin: what was published is, without anything done.
func TestPublicRestarts(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		l := w.listen(s, "echo", "tls")
		go s.Serve(t.Context(), "calc", "https://calc.example.com", say)
		visitor, c := w.meet(l, "echo")
		send(t, visitor, c, "hello")
		w.stopPublic()
		time.Sleep(5 * time.Second)
		c.SetReadDeadline(time.Now().Add(time.Second))
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read while the relay is away: %v", err)
		}
		c.SetReadDeadline(time.Time{})
		w.startPublic()
		if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("read after the restart: %v", err) // it is no end that the visitor made
		}
		visitor.Close()
		c.Close()
		time.Sleep(10 * time.Second)
		visitor, c = w.meet(l, "echo")
		send(t, visitor, c, "hello again")
		visitor.Close()
		c.Close()
		w.wantGet("https://calc.example.com/", 200, "hello")
	})
}

// TestLinkLost has the link end under a connection, which goes on.
func TestLinkLost(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		l := w.listen(s, "echo", "tls")
		visitor, c := w.meet(l, "echo")
		send(t, visitor, c, "hello")
		w.links.Cut()
		send(t, visitor, c, "still here")
		send(t, c, visitor, "so am I")
		visitor.Close()
		c.Close()
	})
}

// TestRestart has the program end without a word, and begin again.
func TestRestart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		var gone atomic.Bool
		dial := s.Dial
		s.Dial = func(ctx context.Context, network, address string) (net.Conn, error) {
			if gone.Load() {
				return nil, errNoWay
			}
			return dial(ctx, network, address)
		}
		w.listen(s, "echo", "tls")
		gone.Store(true)
		w.links.Cut()
		again := w.site()
		l := w.listen(again, "echo", "tls")
		visitor, c := w.meet(l, "echo")
		send(t, visitor, c, "hello")
		visitor.Close()
		c.Close()
	})
}

// TestTwoPrograms has another program of the same folder, which waits until the first is gone.
func TestTwoPrograms(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		first, second := w.site(), w.site()
		l := w.listen(first, "echo", "tls")
		waiting := w.listen(second, "echo", "tls")
		visitor, c := w.meet(l, "echo")
		send(t, visitor, c, "hello")
		visitor.Close()
		c.Close()
		first.Close()
		visitor, c = w.meet(waiting, "echo")
		send(t, visitor, c, "hello")
		visitor.Close()
		c.Close()
	})
}

// TestConn has what a connection tells, its deadlines and its halves. private.TestListenConn has the rest.
func TestConn(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		l := w.listen(s, "echo", "tls")
		visitor, c := w.meet(l, "echo")
		if got, want := c.RemoteAddr().String(), visitor.LocalAddr().String(); got != want {
			t.Errorf("the visitor is %s, want %s", got, want)
		}
		if a, ok := c.RemoteAddr().(*net.TCPAddr); !ok {
			t.Errorf("the visitor's address is a %T (%v)", c.RemoteAddr(), a)
		}
		if c.LocalAddr() != l.Addr() || l.Addr().String() != "tls://echo.example.com" || l.Addr().Network() != "culvert" {
			t.Errorf("local %v, listener %v", c.LocalAddr(), l.Addr())
		}
		if len(l.Addresses) != 1 || l.Addresses[0] != "tls://echo.example.com" {
			t.Errorf("addresses %q", l.Addresses)
		}

		c.SetReadDeadline(time.Now().Add(time.Second))
		_, err := c.Read(make([]byte, 1))
		if e, ok := errors.AsType[net.Error](err); !ok || !e.Timeout() || !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("read: %v", err)
		}
		c.SetDeadline(time.Time{})
		send(t, visitor, c, "after the deadline")

		// A visitor who takes nothing holds up the writer, and nobody else.
		c.SetWriteDeadline(time.Now().Add(time.Minute))
		n, err := c.Write(bytes.Repeat([]byte("x"), 32<<20))
		if !errors.Is(err, os.ErrDeadlineExceeded) || n == 0 || n > 16<<20 {
			t.Errorf("%d bytes were written, %v", n, err)
		}
		other, d := w.meet(l, "echo")
		send(t, other, d, "hello")
		visitor.Close()
		c.Close()

		// One half ends, and the other goes on.
		other.(interface{ CloseWrite() error }).CloseWrite()
		if b, err := io.ReadAll(d); len(b) != 0 || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		send(t, d, other, "the rest")
		if err := d.(interface{ CloseWrite() error }).CloseWrite(); err != nil {
			t.Error(err)
		}
		if b, err := io.ReadAll(other); len(b) != 0 || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		other.Close()
		d.Close()
	})
}

// TestMany has many visitors at once.
func TestMany(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		const visitors = 200
		s := w.site()
		l := w.listen(s, "echo", "tls")
		var accepting sync.WaitGroup
		accepting.Go(func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				accepting.Go(func() {
					defer c.Close()
					io.Copy(c, c)
				})
			}
		})
		hello := hello("echo.example.com")
		var wg sync.WaitGroup
		for i := range visitors {
			wg.Go(func() {
				c, err := w.dial(t.Context(), "tcp", "")
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				sent := append(slices.Clip(hello), bytes.Repeat([]byte(fmt.Sprint(i)), 1000)...)
				go func() {
					c.Write(sent)
					c.(interface{ CloseWrite() error }).CloseWrite()
				}()
				if got, err := io.ReadAll(c); err != nil || !bytes.Equal(got, sent) {
					t.Errorf("visitor %d: %d bytes of %d, %v", i, len(got), len(sent), err)
				}
			})
		}
		wg.Wait()
		l.Close()
		accepting.Wait()
	})
}

// TestBacklog has visitors whom nobody accepts: private.TestListen has how many may wait.
func TestBacklog(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		l := w.listen(s, "echo", "tls")
		var waiting []net.Conn
		for range 5 {
			waiting = append(waiting, w.visit("echo"))
		}
		time.Sleep(time.Minute)
		c := take(t, l)
		send(t, waiting[0], c, "hello")
		l.Close()
		for _, v := range waiting[1:] {
			v.SetReadDeadline(time.Now().Add(time.Minute))
			if n, err := io.Copy(io.Discard, v); n != 0 || errors.Is(err, os.ErrDeadlineExceeded) {
				t.Errorf("who waited got %d bytes, %v", n, err)
			}
			v.Close()
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Errorf("accept: %v", err)
		}
		send(t, waiting[0], c, "still here")
		waiting[0].Close()
		c.Close()
	})
}

// TestPanic has handlers that panic: their visitors are told, and the others are served.
func TestPanic(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		h := http.HandlerFunc(func(rw http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/panic" {
				panic("a secret of the program")
			}
			io.WriteString(rw, "fine")
		})
		l := w.listen(s, "web", "https")
		srv := &http.Server{Handler: h, ErrorLog: log.New(t.Output(), "", 0)}
		var wg sync.WaitGroup
		wg.Go(func() { srv.Serve(l) })
		ctx, stop := context.WithCancel(t.Context())
		wg.Go(func() { s.Serve(ctx, "calc", "https://calc.example.com", h) })
		time.Sleep(time.Second)
		for _, host := range []string{"web", "calc"} {
			for range 3 {
				status, body, err := w.get("https://" + host + ".example.com/panic")
				if err != nil || status < 500 || strings.Contains(body, "secret") {
					t.Errorf("%s: %d %q, %v", host, status, body, err)
				}
				w.wantGet("https://"+host+".example.com/", 200, "fine")
			}
		}
		if !strings.Contains(w.log.String(), "a secret of the program") {
			t.Error("the log of the site has nothing of it")
		}
		stop()
		srv.Close()
		wg.Wait()
	})
}

// TestTLS has the program end the TLS of its visitors.
func TestTLS(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		s := w.site()
		l := w.listen(s, "secret", "tls")
		srv := &http.Server{Handler: say, TLSConfig: &tls.Config{Certificates: []tls.Certificate{w.cert}}}
		served := make(chan error)
		go func() { served <- srv.ServeTLS(l, "", "") }()
		w.wantGet("https://secret.example.com/", 200, "hello 127.0.0.1:")
		if err := srv.Shutdown(t.Context()); err != nil {
			t.Error(err)
		}
		if err := <-served; err != http.ErrServerClosed {
			t.Error(err)
		}

		// The same with the TLS ended on the loop.
		svc := named("secret", "tls")
		svc.TLS = &private.TLS{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &w.cert, nil }}
		ended, err := s.Listen(t.Context(), svc)
		if err != nil {
			t.Fatal(err)
		}
		srv = &http.Server{Handler: say}
		go func() { served <- srv.Serve(ended) }()
		w.wantGet("https://secret.example.com/", 200, "hello 127.0.0.1:")
		srv.Close()
		<-served
	})
}
