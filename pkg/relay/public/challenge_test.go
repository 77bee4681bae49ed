package public

import (
	"io"
	"net/http"
	"slices"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
)

func TestChallenge(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, func(r *Relay) {
			r.Challenge = func(host, path string) (string, bool) {
				return "token.key", path == challengePath+"token" && (host == "app.test" || host == "relay.test")
			}
		})
		web := httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			io.WriteString(w, "target "+r.URL.Path)
		}))
		r.connect("office", map[string]string{"app": web, "plain": web}, "app", "https://app.test", "plain", "http://plain.test")
		for _, tc := range []struct {
			host, path string
			status     int
			body       string
		}{
			{"app.test", challengePath + "token", 200, "token.key\n"}, // not redirected
			{"APP.test:80", challengePath + "token", 200, "token.key\n"},
			{"relay.test", challengePath + "token", 200, "token.key\n"},
			{"app.test", challengePath + "other", 301, ""},
			{"app.test", "/", 301, ""},
			{"plain.test", challengePath + "token", 200, "target " + challengePath + "token"}, // the service's own
			{"nobody.invalid", challengePath + "token", 404, ""},
		} {
			v := r.dial(false)
			// Twice, on one connection: nothing of the first is left for the second.
			for range 2 {
				v.send("GET " + tc.path + " HTTP/1.1\r\nHost: " + tc.host + "\r\n\r\n")
				resp, body := v.response("GET")
				if resp.StatusCode != tc.status || tc.body != "" && body != tc.body {
					t.Errorf("%s%s: %d %q, want %d %q", tc.host, tc.path, resp.StatusCode, body, tc.status, tc.body)
				}
				if resp.Close {
					t.Errorf("%s%s: the connection ends", tc.host, tc.path)
					break
				}
			}
			v.Close()
		}
		v := r.dial(true)
		v.send("GET " + challengePath + "token HTTP/1.1\r\nHost: app.test\r\n\r\n")
		if resp, body := v.response("GET"); resp.StatusCode != 200 || body != "target "+challengePath+"token" {
			t.Errorf("with TLS: %d %q, want the service", resp.StatusCode, body)
		}
	})
}

func TestPublished(t *testing.T) {
	told := make(chan []string, 16)
	r := newTestRelay(t, false, func(r *Relay) {
		r.Published = func(hosts []string) {
			r.Listeners() // what takes the relay's lock may be called
			told <- slices.Clone(hosts)
		}
	})
	until := func(want ...string) {
		t.Helper()
		deadline := time.After(10 * time.Second)
		for {
			select {
			case got := <-told:
				if slices.Equal(got, want) {
					return
				}
			case <-deadline:
				t.Fatalf("was not told %q", want)
			}
		}
	}
	ts := r.connect("office", nil, "b", "https://b.test", "x", "wss://a.test/x", "a", "https://a.test", "all", "https://*.test", "plain", "http://plain.test")
	until("*.test", "a.test", "b.test")
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(ts.session.loop.Loop, func() { ts.announce(announcements("b", "https://b.test"), replies) })
	<-replies
	until("b.test")
	r.Reload(nil)
	until()
}
