package public

import (
	"context"
	"crypto/ed25519"
	"crypto/x509"
	"errors"
	"net"
	"net/http"
	"testing"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// TestLinks lets private relays in and turns them away, over real TLS.
func TestLinks(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		pub, key, _ := ed25519.GenerateKey(nil)
		_, otherKey, _ := ed25519.GenerateKey(nil)
		known := auth.FormatPublicKey(pub)
		r.Reload([]Site{
			{Name: "office", Keys: []string{known}, Publish: patterns("https://*.test")},
			{Name: "old", Revoked: []string{known}},
			{Name: "new"},
		})
		roots := x509.NewCertPool()
		cert, _ := x509.ParseCertificate(testTLS().Certificates[0].Certificate[0])
		roots.AddCert(cert)

		loop := r.loops[1].Loop
		type result struct {
			link    *link.Link
			welcome relay.Welcome
			err     error
		}
		dial := func(cfg link.DialConfig) result {
			t.Helper()
			cfg.Address, cfg.RootCAs, cfg.Software = "relay.test:443", roots, "test"
			cfg.Dial = func(ctx context.Context, network, _ string) (net.Conn, error) {
				return new(net.Dialer).DialContext(ctx, network, r.https)
			}
			c := make(chan result, 1)
			loop.Post(func() {
				link.Dial(context.Background(), loop, cfg, func(l *link.Link, w relay.Welcome, err error) { c <- result{l, w, err} })
			})
			return <-c
		}
		refused := func(cfg link.DialConfig, want relay.RefusalCode, retry bool) {
			t.Helper()
			res := dial(cfg)
			refusal, ok := errors.AsType[*relay.Refusal](res.err)
			if !ok || refusal.Code != want || refusal.Retry != retry || refusal.Message == "" {
				t.Errorf("site %q: %v, want %s", cfg.Site, res.err, want)
			}
		}
		refused(link.DialConfig{Site: "nobody", Key: key}, relay.RefuseUnknownSite, false)
		refused(link.DialConfig{Site: "office", Key: otherKey}, relay.RefuseBadKey, false)
		refused(link.DialConfig{Site: "new", Key: key}, relay.RefuseBadKey, false)
		refused(link.DialConfig{Site: "old", Key: key}, relay.RefuseRevoked, false)

		waitFor(t, func() bool { return r.admission.connected() == 0 })

		// The first one is let in.
		first := dial(link.DialConfig{Site: "office", Key: key})
		if first.err != nil || first.welcome.Resumed {
			t.Fatal(first.err, first.welcome)
		}
		var session *link.Session
		lost := make(chan error, 4)
		serve := func(l *link.Link) {
			l.Serve(session, tunnel.RoleInteractive, func(_ *link.Link, err error) { lost <- err })
		}
		onLoop(loop, func() {
			session = link.NewSession(loop, tunnel.Config{Client: true})
			serve(first.link)
		})
		if !first.welcome.Active {
			t.Error("the first one stands by")
		}
		// A second one stands by, and so does whoever cannot prove that he is the first.
		count := func(n int) func() bool {
			return func() bool { return len(r.Status(context.Background()).Sessions) == n }
		}
		for _, cfg := range []link.DialConfig{
			{Site: "office", Key: key},
			{Site: "office", Key: key, Session: first.welcome.Session, Resume: first.welcome.Session + first.welcome.Session},
		} {
			other := dial(cfg)
			if other.err != nil || other.welcome.Resumed || other.welcome.Active || other.welcome.Session == first.welcome.Session {
				t.Fatal(other.err, other.welcome)
			}
			waitFor(t, count(2))
			// Its session ends with the link, as it says so.
			onLoop(loop, func() {
				over := link.NewSession(loop, tunnel.Config{Client: true})
				other.link.Serve(over, tunnel.RoleInteractive, func(*link.Link, error) {})
				over.Close(nil)
			})
			waitFor(t, count(1))
		}

		// The first one comes back, before its loss was noticed here or after.
		resume := link.DialConfig{Site: "office", Key: key, Session: first.welcome.Session, Resume: first.welcome.Resume}
		second := dial(resume)
		if second.err != nil || !second.welcome.Resumed || second.welcome.Session != first.welcome.Session {
			t.Fatal(second.err, second.welcome)
		}
		onLoop(loop, func() { serve(second.link) })
		<-lost
		onLoop(loop, func() { second.link.Close(errors.New("cut")) })
		<-lost
		waitFor(t, func() bool {
			st := r.Status(context.Background())
			return len(st.Sessions) == 1 && !st.Sessions[0].Lost.IsZero()
		})
		third := dial(resume)
		if third.err != nil || !third.welcome.Resumed {
			t.Fatal(third.err, third.welcome)
		}
		onLoop(loop, func() { serve(third.link) })
		waitFor(t, func() bool {
			st := r.Status(context.Background())
			return len(st.Sessions) == 1 && st.Sessions[0].Lost.IsZero() && st.Sessions[0].Carried == 3
		})

		// Revoking cuts it.
		r.Reload(nil)
		<-lost
		refused(link.DialConfig{Site: "office", Key: key}, relay.RefuseUnknownSite, false)
	})
}

// Somebody who asks for a link and does not say who he is counts as a visitor.
func TestStrangers(t *testing.T) {
	r := newTestRelay(t, false, func(r *Relay) { r.MaxPerAddress = 2 })
	upgrade := "GET /.culvert/link HTTP/1.1\r\nHost: relay.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" +
		"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n\r\n"
	for i, want := range []int{101, 101, 503} {
		v := r.dial(true)
		v.send(upgrade)
		if res, err := http.ReadResponse(v.Reader, nil); err != nil || res.StatusCode != want {
			t.Errorf("link %d: %v, %v, want %d", i, res, err, want)
		}
	}
}

// What is not a WebSocket handshake is no link.
func TestUpgradeRequired(t *testing.T) {
	r := newTestRelay(t, false, nil)
	for _, fields := range []string{
		"",
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\n",
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: short\r\n",
		"Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 8\r\nSec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==\r\n",
	} {
		if got := r.status(true, "GET /.culvert/link HTTP/1.1\r\nHost: relay.test\r\n"+fields+"\r\n"); got != 426 {
			t.Errorf("%q: %d, want 426", fields, got)
		}
	}
}

// A visitor that ends on its way to another loop leaves the lists alone: neither
// loop may touch the other's.
func TestLeaveWhileMoving(t *testing.T) {
	r := newTestRelay(t, false, nil)
	from, to := r.loops[0], r.loops[1]
	v := &visitor{relay: r.Relay, loop: from, client: client{verdict: admitted}}
	onLoop(from.Loop, func() { from.add(v); from.remove(v); v.phase = moving })
	left := make(chan bool)
	from.Post(func() {
		w := &visitor{loop: from}
		from.add(w)
		from.remove(w)
	})
	to.Post(func() { r.admission.count(v.addr.Addr()); v.leave(); close(left) })
	<-left
	if n := r.admission.connected(); n != 0 {
		t.Errorf("%d visitors left", n)
	}
}
