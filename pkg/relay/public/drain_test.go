package public

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
)

// Visitors that came just before the drain get what they came for; those that came for nothing are not waited for.
func TestDrainNewcomers(t *testing.T) {
	r := newTestRelay(t, false, nil)
	r.connect("office", map[string]string{"app": target(t, okTarget)}, "app", "https://app.test")
	shaking, silent, half, served := r.dial(true), r.dial(true), r.dial(true), r.dial(true)
	served.send(get)
	served.response("GET")
	half.send(get[:10])
	silent.send("") // the handshake alone
	waitFor(t, func() bool { return r.admission.connected() == 4 })
	done := make(chan error, 1)
	go func() { done <- r.Drain(t.Context()) }()
	served.expectEOF()
	shaking.send(get)
	half.send(get[10:])
	for _, v := range []*testVisitor{shaking, half} {
		if res, _ := v.response("GET"); res.StatusCode != 200 || !res.Close {
			t.Errorf("a newcomer: %s, close %v", res.Status, res.Close)
		}
		v.Conn.Close()
	}
	silent.expectEOF()
	silent.Conn.Close()
	served.Conn.Close()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

// A relay that has just begun keeps requests for a site that it knows until the site has found it, and no longer.
func TestGrace(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, func(r *Relay) { r.Grace = 20 * time.Second })
		v := r.dial(true)
		v.send("POST / HTTP/1.1\r\nHost: app.test\r\nContent-Length: 4\r\n\r\nbody")
		waitFor(t, func() bool {
			isHeld := false
			for _, l := range r.loops {
				onLoop(l.Loop, func() { isHeld = isHeld || l.first != nil && l.first.phase == held })
			}
			return isHeld
		})
		if got := r.status(true, "GET / HTTP/1.1\r\nHost: elsewhere.example\r\n\r\n"); got != 404 {
			t.Errorf("a host of nobody: %d, want 404", got)
		}
		r.connect("office", map[string]string{"app": target(t, okTarget)}, "app", "https://app.test")
		if res, body := v.response("POST"); res.StatusCode != 200 || body != "ok" {
			t.Errorf("%s %q", res.Status, body)
		}
	})
	r := newTestRelay(t, false, func(r *Relay) { r.Grace = 10 * time.Millisecond })
	if got := r.status(true, get); got != 503 {
		t.Errorf("the grace is over: %d, want 503", got)
	}
}

// The listeners, and the port of a service, are sockets that were there before. What connects to them while nobody
// accepts is served later.
func TestInherited(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		sockets := make(map[string]*os.File)
		addresses := make(map[string]string)
		for _, name := range []string{"https", "tcp"} {
			ln, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			f, err := ln.(*net.TCPListener).File()
			ln.Close()
			if err != nil {
				t.Skip(err)
			}
			defer f.Close()
			sockets[name], addresses[name] = f, ln.Addr().String()
		}
		published := "tcp://" + addresses["tcp"]
		var asked atomic.Value
		change := func(r *Relay) {
			r.HTTP = ""
			r.Inherited = func(name, network, address string) []*os.File {
				if name == published {
					asked.Store(network + " " + address)
					name = "tcp"
				}
				if f := sockets[name]; f != nil {
					return []*os.File{f}
				}
				return nil
			}
		}
		early, err := net.Dial("tcp", addresses["tcp"])
		if err != nil {
			t.Fatal(err)
		}
		defer early.Close()
		echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
		for range 2 { // the sockets survive a relay
			r := newTestRelay(t, portable, change)
			if r.https != addresses["https"] {
				t.Errorf("listens on %s, not on %s", r.https, addresses["https"])
			}
			office := r.connect("office", map[string]string{"app": target(t, okTarget), "echo": echo}, "app", "https://app.test", "echo", published)
			if got := r.status(true, get); got != 200 {
				t.Errorf("status %d", got)
			}
			if want := fmt.Sprint("tcp ", addresses["tcp"]); asked.Load() != want {
				t.Errorf("asked for %q, want %q", asked.Load(), want)
			}
			v := &testVisitor{t: t, Conn: early}
			v.SetDeadline(time.Now().Add(time.Minute))
			v.send("hello")
			b := make([]byte, 5)
			if _, err := io.ReadFull(early, b); err != nil || string(b) != "hello" {
				t.Fatalf("%q, %v", b, err)
			}
			early.Close()
			r.Reload([]Site{
				{Name: "office", Keys: []string{"k"}, Publish: patterns("https://*.test", "tcp://127.0.0.1:*")},
				{Name: "home", Keys: []string{"k"}, Publish: patterns("tcp://127.0.0.1:*")},
			})
			home := r.connect("home", map[string]string{"echo": echo})
			steal := func() string {
				replies := make(chan []relay.AnnounceReply, 1)
				onLoop(home.session.loop.Loop, func() { home.announce(announcements("echo", published), replies) })
				return (<-replies)[0].Error
			}
			if err := steal(); !strings.Contains(err, "another site has this port") {
				t.Errorf("a second site on the socket: %q", err)
			}
			onLoop(office.session.loop.Loop, func() { office.session.close(nil) })
			if err := steal(); err != "" {
				t.Errorf("when the first one is gone: %s", err)
			}
			ctx, cancel := context.WithCancel(t.Context())
			cancel()
			r.Drain(ctx)
			r.Core.Close()
			if early, err = net.Dial("tcp", addresses["tcp"]); err != nil {
				t.Fatalf("between two relays: %v", err)
			}
			defer early.Close()
		}
	})
}
