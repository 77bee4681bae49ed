package operate

import (
	"bytes"
	"context"
	"crypto/ed25519"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
	"culvert.dev/pkg/relay/public"
	"culvert.dev/pkg/websocket"
)

func contains(s, part string) bool { return strings.Contains(s, part) }

func TestOpen(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.startPrivate(w.key, nil)
		c := w.operator("alice")
		began := time.Now()
		conn := w.open(c, "echo")
		t.Logf("open took %v", time.Since(began))
		w.roundTrip(conn, "hello")
		if err := conn.CloseWrite(); err != nil {
			t.Fatal(err)
		}
		if b, err := io.ReadAll(conn); err != nil || len(b) > 0 {
			t.Errorf("after our end: %q, %v", b, err)
		}
		conn.Close()

		// The end of one direction leaves the other.
		began = time.Now()
		conn = w.open(c, "hello")
		t.Logf("another one took %v", time.Since(began))
		conn.CloseWrite()
		if b, err := io.ReadAll(conn); err != nil || string(b) != "hello bye" {
			t.Errorf("got %q, %v", b, err)
		}
		conn.Close()

		// What is not there is named.
		_, err := c.Open(t.Context(), "office", "db")
		wantCode(t, err, relay.OperateNotFound, `"office" has no service "db": it has echo, hello`)
		_, err = c.Open(t.Context(), "garden", "db")
		wantCode(t, err, CodeNoSite, `no site "garden"`)
		_, err = c.Open(t.Context(), "lab", "db")
		wantCode(t, err, relay.OperateAway, `"lab" is not connected`)
		_, err = w.operator("mallory").Open(t.Context(), "office", "echo")
		wantCode(t, err, CodeToken, "")
		_, err = w.operator("victor").Open(t.Context(), "office", "echo")
		wantCode(t, err, relay.OperateForbidden, "viewer")
		_, err = c.OpenPacket(t.Context(), "office", "echo")
		wantCode(t, err, relay.OperateNetwork, "leave --udp out")
		_, err = c.Dial(t.Context(), "office", "tcp", "127.0.0.1:1")
		wantCode(t, err, relay.OperateForbidden, "[socks]")
		if _, err := c.Check(t.Context(), "office", "echo", "tcp"); err != nil {
			t.Errorf("check: %v", err)
		}
		_, err = c.Check(t.Context(), "office", "echo", "udp")
		wantCode(t, err, relay.OperateNetwork, "")
	})
}

// A connection goes on when the way of the operator, or of the site, is cut, falls silent, or is gone for long.
func TestCuts(t *testing.T) {
	for name, cut := range map[string]func(w *world){
		"operator cut":    func(w *world) { w.desk.Cut() },
		"site cut":        func(w *world) { w.site.Cut() },
		"both cut":        func(w *world) { w.desk.Cut(); w.site.Cut() },
		"operator silent": func(w *world) { w.desk.Silence(true); time.AfterFunc(40*time.Second, func() { w.desk.Silence(false) }) },
		"asleep for an hour": func(w *world) {
			w.desk.Silence(true)
			w.refuse.Store(true)
			time.Sleep(time.Hour)
			w.desk.Cut()
			w.desk.Silence(false)
			w.refuse.Store(false)
		},
		"refused for a minute": func(w *world) {
			w.refuse.Store(true)
			w.desk.Cut()
			time.Sleep(time.Minute)
			w.refuse.Store(false)
		},
	} {
		t.Run(name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.startPrivate(w.key, nil)
				c := w.operator("alice")
				conn := w.open(c, "echo")
				w.roundTrip(conn, "before")
				// Bytes are on the way in both directions while it happens.
				data := bytes.Repeat([]byte("0123456789abcdef"), 64<<10)
				wrote := make(chan error, 1)
				go func() {
					_, err := conn.Write(data)
					wrote <- errors.Join(err, conn.CloseWrite())
				}()
				got := make([]byte, len(data)/4)
				if _, err := io.ReadFull(conn, got); err != nil {
					t.Fatal(err)
				}
				cut(w)
				began := time.Now()
				rest, err := io.ReadAll(conn)
				if err != nil || !bytes.Equal(append(got, rest...), data) {
					t.Errorf("%d bytes came of %d, %v", len(got)+len(rest), len(data), err)
				}
				t.Logf("the rest took %v", time.Since(began))
				if err := <-wrote; err != nil {
					t.Errorf("write: %v", err)
				}
				conn.Close()
				w.roundTrip(w.open(c, "echo"), "after")
			})
		})
	}
}

// An operator whose program was killed is not waited for as one who sleeps.
func TestKilled(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.startPrivate(w.key, nil)
		c := w.operator("alice")
		w.roundTrip(w.open(c, "echo"), "hello")
		w.refuse.Store(true)
		w.desk.Cut() // as the system does for a process that has ended
		time.Sleep(time.Minute)
		if n := len(w.public.OperatorSessions()); n != 1 {
			t.Errorf("%d sessions after a minute", n)
		}
		time.Sleep(2 * time.Minute)
		if n := len(w.public.OperatorSessions()); n != 0 {
			t.Errorf("%d sessions after three minutes", n)
		}
	})
}

// When the public relay has restarted, connections are lost, and say so; new ones wait for the relay and the site to be back.
func TestRelayRestart(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.startPrivate(w.key, nil)
		c := w.operator("alice")
		conn := w.open(c, "echo")
		w.roundTrip(conn, "before")
		w.core.Close()
		w.site.Cut()
		w.desk.Cut()
		opened := make(chan error, 1)
		go func() {
			conn, err := c.Open(w.t.Context(), "office", "echo")
			if err == nil {
				defer conn.Close()
				w.roundTrip(conn, "while it was away")
			}
			opened <- err
		}()
		time.Sleep(3 * time.Second)
		w.startPublic()
		if err := <-opened; err != nil {
			t.Errorf("opened during the restart: %v", err)
		}
		_, err := conn.Read(make([]byte, 1))
		wantCode(t, err, relay.OperateUnreachable, "has restarted")
		w.roundTrip(w.open(c, "echo"), "after")
	})
}

// A token that is revoked ends what was opened with it at once, and opens nothing more.
func TestRevoked(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.startPrivate(w.key, nil)
		c := w.operator("alice")
		told := make(chan error, 10)
		c.OnLink = func(_ string, err error) { told <- err }
		conn := w.open(c, "echo")
		w.roundTrip(conn, "before")
		began := time.Now()
		w.revoke("alice")
		_, err := conn.Read(make([]byte, 1))
		wantCode(t, err, CodeToken, "the connection to office/echo was lost: the relay does not accept the token")
		if err := <-told; err != nil {
			t.Errorf("the first that was told of the link: %v", err)
		}
		over, ok := errors.AsType[*OverError](<-told)
		if !ok {
			t.Fatalf("told of %v", over)
		}
		wantCode(t, over, CodeToken, "does not accept the token")
		if took := time.Since(began); took > time.Second {
			t.Errorf("the connection lived for %v", took)
		}
		_, err = c.Open(t.Context(), "office", "echo")
		wantCode(t, err, CodeToken, "does not accept the token")
		if n := len(w.public.OperatorSessions()); n != 0 {
			t.Errorf("%d sessions", n)
		}
	})
}

// Why the relay has ended a session is found out: by a token that does not open another one, or does; nobody waits for a relay that
// does not say.
func TestDismissed(t *testing.T) {
	for _, test := range []struct {
		name string
		end  func(w *world)
		code relay.OperateCode
		text string
		next error // of another connection; nil: it is there
	}{
		{
			"another role", func(w *world) { w.become("alice", auth.Identity{Operator: "alice", Role: auth.Viewer, Token: "1"}) },
			relay.OperateForbidden, `operator "alice" has the role viewer`, &Error{Code: relay.OperateForbidden},
		},
		{
			"the same role", func(w *world) { w.become("alice", w.tokens["alice"]) },
			relay.OperateUnreachable, "was lost: the relay has ended the session", nil,
		},
		{
			"nobody answers", func(w *world) { w.refuse.Store(true); w.become("alice", w.tokens["alice"]) },
			relay.OperateUnreachable, "was lost: the relay has ended the session", syscall.ECONNREFUSED,
		},
		{
			"revoked while the link is cut", func(w *world) {
				w.desk.Cut()
				w.revoke("alice")
			},
			CodeToken, "does not accept the token", &Error{Code: CodeToken},
		},
	} {
		t.Run(test.name, func(t *testing.T) {
			inWorld(t, func(t *testing.T, w *world) {
				w.startPrivate(w.key, nil)
				c := w.operator("alice")
				var over []error
				c.OnLink = func(_ string, err error) { // on the loop
					if e, ok := errors.AsType[*OverError](err); ok {
						over = append(over, e)
					}
				}
				conn := w.open(c, "echo")
				w.roundTrip(conn, "before")
				began := time.Now()
				test.end(w)
				_, err := conn.Read(make([]byte, 1))
				wantCode(t, err, test.code, test.text)
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("the connection lived for %v", took)
				}
				next, err := c.Open(t.Context(), "office", "echo")
				switch want, isError := errors.AsType[*Error](test.next); {
				case isError:
					wantCode(t, err, want.Code, "")
				case !errors.Is(err, test.next):
					t.Errorf("another connection: %v, want %v", err, test.next)
				case err == nil:
					w.roundTrip(next, "after")
				}
				c.Close()
				if len(over) != 1 {
					t.Errorf("told %d times of the end: %v", len(over), over)
				}
			})
		})
	}
}

// Somebody who has the public relay can have the site's streams come to a private relay of his own. The operator finds out before he
// has said anything.
func TestManInTheMiddle(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		evil := newKey(t)
		w.keys = append(w.keys, public25519(evil)) // he writes that into the relay's state
		w.reload()
		reached := make(chan struct{}, 1)
		w.startPrivate(evil, func(r *private.Relay) {
			w.serve(r, "secrets", func(c net.Conn) { reached <- struct{}{}; c.Close() })
		})
		known := &KnownSites{File: filepath.Join(t.TempDir(), "known_sites"), Relay: relayAddress, Accept: []string{public25519(w.key)}}
		w.trust = known.Trust
		c := w.operator("alice")
		for _, service := range []string{"secrets", "echo", relay.ServicePing} {
			_, err := c.Open(t.Context(), "office", service)
			e, ok := errors.AsType[*KeyError](err)
			if !ok || e.Key != public25519(evil) || !contains(err.Error(), "nothing was sent") {
				t.Errorf("%s: %v, want the wrong key refused", service, err)
			}
		}
		select {
		case <-reached:
			t.Error("the wrong private relay has heard a request")
		default:
		}
	})
}

// What the public relay gets to see is ciphertext: the link to its own listener on the same machine has no TLS, so what crosses that is
// what it sees.
func TestCiphertext(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.startPrivate(w.key, nil)
		const admin = "127.0.0.1:7070"
		ln, err := w.desk.Listen(admin)
		if err != nil {
			t.Fatal(err)
		}
		srv := &http.Server{Handler: http.HandlerFunc(w.public.ServeOperate)}
		served := make(chan error)
		go func() { served <- srv.Serve(ln) }()
		defer func() { srv.Close(); <-served }()

		c := w.operator("alice")
		c.Address, c.Plain = admin, true
		tap := new(tap)
		dial := c.DialRelay
		c.DialRelay = func(ctx context.Context, network, address string) (net.Conn, error) {
			nc, err := dial(ctx, network, address)
			return &tapped{nc, tap}, err
		}
		const secret = "correct horse battery staple"
		conn := w.open(c, "echo")
		w.roundTrip(conn, secret)
		conn.Close()
		c.Close()
		up, down := tap.seen(t)
		if !contains(down, `"keys":[`) || !contains(up, "echo") {
			t.Error("the tap does not work")
		}
		for _, text := range []string{secret, `"service"`, `{"scheme"`} {
			if contains(up, text) || contains(down, text) {
				t.Errorf("%q was seen by the public relay", text)
			}
		}

		c = w.operator("mallory")
		c.Address, c.Plain = admin, true
		_, err = c.Open(t.Context(), "office", "echo")
		wantCode(t, err, CodeToken, "")
	})
}

// tap has what crosses a link.
type tap struct {
	mu       sync.Mutex
	up, down []byte
}

type tapped struct {
	net.Conn
	tap *tap
}

func (c *tapped) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	c.tap.mu.Lock()
	defer c.tap.mu.Unlock()
	c.tap.down = append(c.tap.down, b[:n]...)
	return n, err
}

func (c *tapped) Write(b []byte) (int, error) {
	c.tap.mu.Lock()
	c.tap.up = append(c.tap.up, b...)
	c.tap.mu.Unlock()
	return c.Conn.Write(b)
}

// seen returns what was said, without the masks of the operator's frames.
func (t *tap) seen(tb testing.TB) (up, down string) {
	t.mu.Lock()
	defer t.mu.Unlock()
	at := bytes.Index(t.up, []byte("\r\n\r\n")) + 4
	plain, d := t.up[:at:at], websocket.Decoder{Masked: true}
	for at < len(t.up) {
		ev, n, err := d.Next(t.up[at:])
		if err != nil || n == 0 {
			tb.Fatalf("%d bytes behind %d: %v", len(t.up), at, err)
		}
		at += n
		plain = append(plain, ev.Payload...)
	}
	return string(plain), string(t.down)
}

// The site decides itself who may come in, whatever the public relay says.
func TestOperatorsKeys(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		mine := newKey(t)
		p := w.startPrivate(w.key, func(r *private.Relay) { r.Operators = []ed25519.PublicKey{mine.Public().(ed25519.PublicKey)} })
		_, err := w.operator("alice").Open(t.Context(), "office", "echo")
		wantCode(t, err, relay.OperateForbidden, "tunnelctl operator key")
		stranger := w.operator("alice")
		stranger.Key = newKey(t)
		_, err = stranger.Open(t.Context(), "office", relay.ServicePing)
		wantCode(t, err, relay.OperateForbidden, public25519(stranger.Key))
		c := w.operator("alice")
		c.Key = mine
		w.roundTrip(w.open(c, "echo"), "hello")
		p.SetOperators([]ed25519.PublicKey{nil}) // nobody
		for _, c := range []*Client{c, stranger, w.operator("alice")} {
			_, err := c.Open(t.Context(), "office", "echo")
			wantCode(t, err, relay.OperateForbidden, "operators")
		}
		p.SetOperators(nil)
		w.roundTrip(w.open(stranger, "echo"), "hello")
	})
}

func TestPingAndBench(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.startPrivate(w.key, nil)
		c := w.operator("alice")
		p, err := c.Pinger(t.Context(), "office")
		if err != nil {
			t.Fatal(err)
		}
		for range 3 {
			if took, err := p.Ping(t.Context()); err != nil || took < 60*time.Millisecond || took > 100*time.Millisecond {
				t.Errorf("ping: %v, %v; the way is 30 ms", took, err)
			}
		}
		p.Close()
		m, err := c.Bench(t.Context(), "office", time.Second, nil)
		if err != nil || m.Down < 1<<20 || m.Up < 1<<20 || m.Idle.Count == 0 || m.LoadedUp.Count == 0 || m.LoadedDown.Count == 0 {
			t.Errorf("bench: %+v, %v", m, err)
		}
		t.Logf("%+v", m)
		synctest.Wait()
		time.Sleep(10 * time.Second)
		if left, err := w.public.Streams(t.Context(), public.Filter{}); err != nil || len(left) > 0 {
			t.Errorf("streams left: %+v, %v", left, err)
		}
	})
}

// A service that says nothing holds an opening for no longer than its context.
func TestGiveUp(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.startPrivate(w.key, nil)
		c := w.operator("alice")
		w.roundTrip(w.open(c, "echo"), "hello")
		w.desk.Silence(true)
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
		defer cancel()
		if _, err := c.Open(ctx, "office", "echo"); !errors.Is(err, context.DeadlineExceeded) {
			t.Errorf("open: %v", err)
		}
		began := time.Now()
		_, err := c.Open(t.Context(), "office", "echo")
		wantCode(t, err, relay.OperateTimeout, "no answer")
		if took := time.Since(began); took != openTimeout {
			t.Errorf("it took %v", took)
		}
	})
}

// The machine has slept, or has moved to another network: then the next link is made at once, and not when the old one is found
// dead.
func TestMoved(t *testing.T) {
	inWorld(t, func(t *testing.T, w *world) {
		w.startPrivate(w.key, nil)
		c := w.operator("alice")
		here := "127.0.0.1/8"
		var mu sync.Mutex
		c.addresses = func() ([]net.Addr, error) {
			mu.Lock()
			defer mu.Unlock()
			_, n, err := net.ParseCIDR(here)
			n.IP = net.ParseIP(strings.TrimSuffix(here, "/8"))
			return []net.Addr{n}, err
		}
		up := make(chan error, 10)
		c.OnLink = func(_ string, err error) { up <- err }
		conn := w.open(c, "echo")
		w.roundTrip(conn, "before")
		if err := <-up; err != nil {
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		mu.Lock()
		here = "10.0.0.7/8"
		mu.Unlock()
		began := time.Now()
		if err := <-up; !errors.Is(err, errMoved) {
			t.Errorf("told %v, want that it has moved", err)
		}
		if err := <-up; err != nil {
			t.Error(err)
		}
		if took := time.Since(began); took > 3*time.Second {
			t.Errorf("it took %v", took)
		}
		w.roundTrip(conn, "after")
	})
}
