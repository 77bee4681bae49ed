//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"culvert.dev/pkg/admin"
)

// insider is a client of the public relay's API.
func (s *system) insider() *admin.Client {
	return &admin.Client{Base: &url.URL{Scheme: "http", Host: s.admin}, Token: s.token()}
}

// poll calls f until it says that it is so.
func poll(t *testing.T, what string, f func() bool) {
	t.Helper()
	for end := time.Now().Add(waitLimit); !f(); time.Sleep(20 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s: not within %v", what, waitLimit)
		}
	}
}

// An operator looks for what a visitor's request was answered, sends it again, ends what is open, and has a session begin anew.
func TestInsight(t *testing.T) {
	var logins atomic.Int32
	app := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		b, _ := io.ReadAll(r.Body)
		if r.Header.Get("Authorization") == "Bearer s3cretbearer" && string(b) == `{"user":"bob","password":"hunter2"}` && r.URL.RawQuery == "code=c0decode" {
			logins.Add(1)
		}
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Set-Cookie", "sid=c00kie")
		w.WriteHeader(http.StatusAccepted)
		fmt.Fprint(w, `{"welcome":"bob","token":"t0kentoken"}`)
	}))
	defer app.Close()
	echo, _ := startEcho(t, nil)
	s := configure(t, nil,
		service{"app", "https://app.example.com", app.URL},
		service{"plain", "https://plain.example.com", app.URL},
		service{"echo", "tcp://:{port}", "tcp://" + echo},
	)
	s.more = map[string]string{"app": "inspect = true\n"}
	s.startPublic()
	s.startPrivate()
	c, ctx := s.insider(), t.Context()

	login := func(host, version string) {
		s.curl(version, "--output", os.DevNull, "-H", "Authorization: Bearer s3cretbearer", "--json", `{"user":"bob","password":"hunter2"}`, s.url(host, "/login?code=c0decode"))
	}
	for i, version := range []string{"--http1.1", "--http2"} {
		login("app", version)
		login("plain", version)
		var q admin.Request
		poll(t, "the request", func() bool {
			list, err := c.Requests(ctx, admin.Filter{Service: "app"})
			if err != nil {
				t.Fatal(err)
			}
			if len(list) > 0 {
				q = list[0]
			}
			return len(list) == 2*i+1
		})
		if q.Method != "POST" || q.Path != "/login" || q.Status != 202 || !q.Inspectable || q.Wait <= 0 || q.Took < q.Wait {
			t.Errorf("%s: got %+v", version, q)
		}
		e, err := c.Request(ctx, q.ID)
		if err != nil {
			t.Fatal(err)
		}
		again, err := c.Replay(ctx, q.ID)
		if err != nil {
			t.Fatal(err)
		}
		if again.Operator != "admin" || again.ReplayOf != q.ID || again.Status != 202 || logins.Load() != int32(3*i+3) {
			t.Errorf("%s: got %+v after %d logins", version, again.Request, logins.Load())
		}
		for _, shown := range []*admin.Exchange{e, again} {
			b, err := json.Marshal(shown)
			if err != nil {
				t.Fatal(err)
			}
			for _, secret := range []string{"s3cretbearer", "hunter2", "c0decode", "t0kentoken", "c00kie"} {
				if strings.Contains(string(b), secret) {
					t.Errorf("%s: %q is in %s", version, secret, b)
				}
			}
			for _, plain := range []string{`"welcome\":\"bob`, `\"user\":\"bob\"`, "/login?code=[redacted]", "Bearer [redacted]"} {
				if !strings.Contains(string(b), plain) {
					t.Errorf("%s: %q is missing in %s", version, plain, b)
				}
			}
		}
	}
	if list, err := c.Requests(ctx, admin.Filter{Service: "plain"}); err != nil || len(list) != 2 || list[0].Inspectable {
		t.Errorf("got %+v, %v", list, err)
	}

	// What is open is ended, and only that.
	dial := func() net.Conn {
		t.Helper()
		conn, err := net.Dial("tcp", s.port("echo"))
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { conn.Close() })
		conn.SetDeadline(time.Now().Add(waitLimit))
		if err := roundTrip(conn, make([]byte, 100)); err != nil {
			t.Fatal(err)
		}
		return conn
	}
	isReset := func(conn net.Conn) {
		t.Helper()
		if _, err := conn.Read(make([]byte, 1)); err == nil || err == io.EOF {
			t.Errorf("got %v, want a reset", err)
		}
	}
	one, other := dial(), dial()
	streams, err := c.Streams(ctx, admin.Filter{Service: "echo"})
	if err != nil || len(streams) != 2 {
		t.Fatalf("got %+v, %v", streams, err)
	}
	for _, st := range streams {
		if st.Remote == one.LocalAddr().String() {
			if err := c.KickStream(ctx, st.ID); err != nil {
				t.Error(err)
			}
		}
	}
	isReset(one)
	if err := roundTrip(other, make([]byte, 100)); err != nil {
		t.Errorf("the other connection: %v", err)
	}

	// A session that is kicked ends at once, and comes back by itself.
	sessions, err := c.Sessions(ctx, "office")
	if err != nil || len(sessions) != 1 {
		t.Fatalf("got %+v, %v", sessions, err)
	}
	if err := c.KickSession(ctx, sessions[0].ID); err != nil {
		t.Fatal(err)
	}
	isReset(other)
	poll(t, "another session", func() bool {
		now, err := c.Sessions(ctx, "office")
		return err == nil && len(now) == 1 && now[0].ID != sessions[0].ID && now[0].State == admin.StateConnected
	})
	poll(t, "its services", func() bool {
		conn, err := net.Dial("tcp", s.port("echo"))
		if err != nil {
			return false
		}
		conn.SetDeadline(time.Now().Add(waitLimit))
		err = roundTrip(conn, make([]byte, 100))
		conn.Close()
		return err == nil
	})
	list, err := c.Requests(ctx, admin.Filter{Service: "app", Limit: 1})
	if err != nil || len(list) != 1 {
		t.Fatalf("got %+v, %v", list, err)
	}
	if _, err := c.Replay(ctx, list[0].ID); err != nil {
		t.Errorf("a request of before: %v", err)
	}

	// A site that allows it no more has what was captured forgotten.
	s.more = nil
	s.writePrivate()
	s.private.signal(t, syscall.SIGHUP)
	poll(t, "the end of inspection", func() bool {
		_, err := c.Request(ctx, list[0].ID)
		return err != nil
	})

	// The past has it, and so has the log.
	poll(t, "the past", func() bool {
		past, err := c.History(ctx, admin.Span{Site: "office", Span: 120})
		if err != nil {
			t.Fatal(err)
		}
		in, requests := 0.0, 0.0
		for i := range past.In {
			in += past.In[i] * past.Step
			requests += past.Requests[i] * past.Step
		}
		return in > 200 && requests > 1
	})
	lines, err := c.Logs(ctx, admin.Lines{})
	if err != nil {
		t.Fatal(err)
	}
	found := false
	for _, l := range lines {
		found = found || l.Message == "session ended by an operator" && l.Attrs["site"] == "office" && l.Attrs["session"] == sessions[0].ID
	}
	if !found {
		t.Errorf("the end of the session is missing in %+v", lines)
	}
}
