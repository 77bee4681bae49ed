package public

import (
	"encoding/base64"
	"net/http"
	"net/netip"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/crypto/bcrypt"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
)

func hashes(t testing.TB) map[string]string {
	argon, err := auth.HashPassword([]byte("correct horse"))
	if err != nil {
		t.Fatal(err)
	}
	b, err := bcrypt.GenerateFromPassword([]byte("pa:ss"), bcrypt.MinCost)
	if err != nil {
		t.Fatal(err)
	}
	return map[string]string{"alice": argon, "bob": string(b)}
}

func basic(user, password string) string {
	return "|Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte(user+":"+password))
}

// users returns those of the service app.
func (ts *testSite) users() *users { return ts.session.service("app").policy.Load().users }

func TestUsers(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test")
		if errs := ts.demand(&relay.Policy{Users: hashes(t)}, "app", "https://app.test"); errs[0] != "" {
			t.Fatal(errs)
		}
		const get = "GET / HTTP/1.1|Host: app.test"
		for _, tt := range []struct {
			name, fields string
			status       int
		}{
			{"nobody", "", 401},
			{"argon2id", basic("alice", "correct horse"), 200},
			{"again", basic("alice", "correct horse") + "|X-Remote-User: root|x_remote_user: root", 200},
			{"bcrypt", basic("bob", "pa:ss"), 200},
			{"another scheme", "|Authorization: Bearer x", 401},
			{"no base64", "|Authorization: Basic ???", 401},
			{"no colon", "|Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("alice")), 401},
			{"the password of another", basic("alice", "pa:ss"), 401},
			{"unknown", basic("carol", "correct horse"), 401},
		} {
			res, body := r.ask(true, get+tt.fields)
			if res.StatusCode != tt.status {
				t.Errorf("%s: %d", tt.name, res.StatusCode)
			}
			if s := res.Header.Get("WWW-Authenticate"); tt.status == 401 && s != `Basic realm="app.test", charset="UTF-8"` {
				t.Errorf("%s: WWW-Authenticate: %s", tt.name, s)
			}
			if tt.status == 200 && (strings.Contains(body, "Authorization") || strings.Count(body, "X-Remote-User: ") != 1 || strings.Contains(body, "root")) {
				t.Errorf("%s: the server gets\n%s", tt.name, body)
			}
			if tt.name == "bcrypt" && !strings.Contains(body, "X-Remote-User: bob\r\n") {
				t.Errorf("the server gets\n%s", body)
			}
		}
		onLoop(ts.session.loop.Loop, func() {
			u := ts.users()
			if len(u.good) != 2 || len(u.bad) != 2 || len(u.pending) != 0 || len(u.atOnce) != 0 {
				t.Errorf("%d right, %d wrong, %d pending, %d addresses", len(u.good), len(u.bad), len(u.pending), len(u.atOnce))
			}
		})
		// Another service knows nothing of the name, and it cannot be forged.
		ts.demand(nil, "app", "https://app.test")
		if _, body := r.ask(true, get+"|X-Remote-User: root"+basic("alice", "x")); strings.Contains(body, "root") || !strings.Contains(body, "Authorization: Basic") {
			t.Errorf("without a policy the server gets\n%s", body)
		}
	})
}

// A wrong password is answered late, and after some of them the address is not heard; who is known is.
func TestWrongPasswords(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test")
	ts.demand(&relay.Policy{Users: hashes(t)}, "app", "https://app.test")
	const get = "GET / HTTP/1.1|Host: app.test"
	if res, _ := r.ask(true, get+basic("bob", "pa:ss")); res.StatusCode != 200 {
		t.Fatal(res.StatusCode)
	}
	began := time.Now()
	if res, _ := r.ask(true, get+basic("bob", "wrong")); res.StatusCode != 401 || time.Since(began) < firstDelay {
		t.Errorf("%d after %v", res.StatusCode, time.Since(began))
	}
	onLoop(ts.session.loop.Loop, func() { // the rest of the failures, without waiting for each
		for range maxWrong - 1 {
			ts.users().wrong.fine(netip.MustParseAddr("127.0.0.1"), ts.session.loop.since(), banTime)
		}
	})
	for _, fields := range []string{"", basic("bob", "guess"), basic("alice", "correct horse")} {
		if res, _ := r.ask(true, get+fields); res.StatusCode != 429 || res.Header.Get("Retry-After") != "900" {
			t.Errorf("%q: %d, Retry-After: %s", fields, res.StatusCode, res.Header.Get("Retry-After"))
		}
	}
	if res, _ := r.ask(true, get+basic("bob", "pa:ss")); res.StatusCode != 200 {
		t.Errorf("who is known from before gets %d", res.StatusCode)
	}
	// Another address is heard.
	onLoop(ts.session.loop.Loop, func() {
		if ts.users().wrong.blocked(netip.MustParseAddr("192.0.2.1"), ts.session.loop.since()) > 0 {
			t.Error("another address is blocked too")
		}
	})
}

// While passwords are verified everything else goes on, requests with the same ones wait for one
// verification, and there is a bound to what may wait.
func TestVerifications(t *testing.T) {
	r := newTestRelay(t, false, nil)
	ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test")
	ts.demand(&relay.Policy{Users: hashes(t)}, "app", "https://app.test")
	l := ts.session.loop
	release := make(chan bool)
	free := sync.OnceFunc(func() { close(release) })
	t.Cleanup(free)
	var done int
	taken := 0
	working := make(chan bool, 1000)
	fill := func() { // until nothing more may be verified
		for r.verifier.verify(l, func() { working <- true; <-release }, func() { done++ }) {
			taken++
		}
	}
	onLoop(l.Loop, fill)
	for range min(4, max(1, runtime.GOMAXPROCS(0)/2)) {
		<-working // has left the queue
	}
	onLoop(l.Loop, fill)
	if taken < maxVerifying+1 || taken > maxVerifying+4 {
		t.Errorf("%d are taken", taken)
	}
	const get = "GET / HTTP/1.1|Host: app.test"
	if res, _ := r.ask(true, get+basic("alice", "correct horse")); res.StatusCode != 503 || res.Header.Get("Retry-After") == "" {
		t.Errorf("beyond the bound: %d", res.StatusCode)
	}
	if res, _ := r.ask(true, get); res.StatusCode != 401 {
		t.Errorf("without a password: %d", res.StatusCode)
	}
	free()
	eventually(t, "all are verified", func() (ok bool) {
		onLoop(l.Loop, func() { ok = done == taken })
		return ok
	})
	// One address may have a few at a time; the same guess is one.
	onLoop(l.Loop, func() {
		u, addr := ts.users(), netip.MustParseAddr("2001:db8::1")
		ask := func(addr netip.Addr, user string) decision {
			d, _ := u.check(l, addr, []byte(strings.TrimPrefix(basic(user, "guess"), "|Authorization: ")))
			return d
		}
		for _, user := range []string{"a", "b", "c", "d", "d"} {
			if d := ask(addr, user); d.action != doHold || d.attempt == nil {
				t.Errorf("%s: %+v", user, d)
			}
			addr = addr.Next()
		}
		if d := ask(addr, "e"); d.action != doAnswer || d.trouble != troubleGuesses {
			t.Errorf("the fifth: %+v", d)
		}
		if d := ask(netip.MustParseAddr("192.0.2.1"), "e"); d.action != doHold {
			t.Errorf("another address: %+v", d)
		}
		if len(u.pending) != 5 {
			t.Errorf("%d are pending", len(u.pending))
		}
	})
	eventually(t, "the guesses are answered", func() (ok bool) {
		onLoop(l.Loop, func() { ok = len(ts.users().pending) == 0 && len(ts.users().atOnce) == 0 })
		return ok
	})
}

// What is remembered is bounded.
func TestRemember(t *testing.T) {
	m := make(map[credential]int64)
	for i := range 3 * maxKnown {
		c := credential{byte(i), byte(i >> 8), byte(i >> 16)}
		remember(m, c, int64(i), int64(i+100))
		if m[c] == 0 || len(m) > maxKnown {
			t.Fatalf("%d: %d are remembered", i, len(m))
		}
	}
}

func FuzzCredentials(f *testing.F) {
	f.Add([]byte("Basic YWxpY2U6c2VjcmV0"))
	f.Add([]byte("basic  Og=="))
	f.Add([]byte("Bearer x"))
	f.Fuzz(func(t *testing.T, b []byte) {
		name, password, ok := credentials(b)
		if !ok {
			return
		}
		again := "Basic " + base64.StdEncoding.EncodeToString([]byte(name+":"+password))
		if n, p, ok := credentials([]byte(again)); !ok || n != name || p != password || strings.Contains(name, ":") {
			t.Fatalf("%q is %q and %q, then %q and %q", b, name, password, n, p)
		}
	})
}
