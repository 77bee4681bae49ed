package public

import (
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"

	"culvert.dev/pkg/relay"
)

// browsers runs f with a client of each version of HTTP, at a relay for browsers.
func browsers(t *testing.T, f func(t *testing.T, r *testRelay, c *http.Client)) {
	for _, name := range []string{"HTTP/1.1", "HTTP/2", "HTTP/3"} {
		t.Run(name, func(t *testing.T) {
			r := newTestRelay3(t, func(r *Relay) {
				r.RTSP, r.RTSPS = "127.0.0.1:0", "127.0.0.1:0"
				r.TLS = r.TLS.Clone()
				r.TLS.NextProtos = []string{"h2", "http/1.1"}
			})
			c := r.client()
			switch name {
			case "HTTP/2":
				c = r.client2()
			case "HTTP/3":
				c = r.client3()
			}
			f(t, r, c)
		})
	}
}

// browse is what is at a URL: the answer, and its body.
func browse(t *testing.T, c *http.Client, method, url string, fields ...string) (*http.Response, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range fields {
		name, value, _ := strings.Cut(f, ": ")
		req.Header.Set(name, value)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res, string(b)
}

// A camera has a page, which needs nothing from elsewhere, in any version of HTTP.
func TestPage(t *testing.T) {
	browsers(t, func(t *testing.T, r *testRelay, c *http.Client) {
		ts := r.connect("office", nil, "gate", "rtsp://cams.test/a/front-gate", "all", "rtsps://yard.test")
		const gate = "https://cams.test/a/front-gate"
		for _, tt := range []struct {
			method, url string
			status      int
			mime        string
			has         []string
		}{
			{"GET", gate, 200, "text/html; charset=utf-8", []string{"<title>front-gate</title>", `src="/a/front-gate/player.js"`, `href="/a/front-gate/player.css"`}},
			{"GET", gate + "/", 200, "text/html; charset=utf-8", []string{"<title>front-gate</title>"}},
			{"GET", gate + "?x=1", 200, "text/html; charset=utf-8", nil},
			{"HEAD", gate, 200, "text/html; charset=utf-8", nil},
			{"GET", gate + "/player.js", 200, "text/javascript; charset=utf-8", []string{"live.mp4", "snapshot.jpg"}},
			{"GET", gate + "/player.css", 200, "text/css; charset=utf-8", []string{"video"}},
			{"GET", gate + "/other", 404, "text/plain; charset=utf-8", nil},
			{"GET", gate + "/player.js/", 404, "text/plain; charset=utf-8", nil},
			{"HEAD", gate + "/other", 404, "text/plain; charset=utf-8", nil},
			{"GET", "https://yard.test/", 200, "text/html; charset=utf-8", []string{"<title>yard.test</title>", `src="/player.js"`}},
			{"GET", "https://yard.test/player.css", 200, "text/css; charset=utf-8", nil},
			{"POST", gate, 405, "text/plain; charset=utf-8", nil},
		} {
			res, body := browse(t, c, tt.method, tt.url)
			if res.StatusCode != tt.status || res.Header.Get("Content-Type") != tt.mime {
				t.Errorf("%s %s: status %d, type %q, %q", tt.method, tt.url, res.StatusCode, res.Header.Get("Content-Type"), body)
			}
			for _, h := range tt.has {
				if !strings.Contains(body, h) {
					t.Errorf("%s %s has no %s in it", tt.method, tt.url, h)
				}
			}
			if tt.method == "HEAD" && (body != "" || res.ContentLength <= 0 && tt.status == 200) {
				t.Errorf("HEAD %s: a body of %q, a length of %d", tt.url, body, res.ContentLength)
			}
			if csp := res.Header.Get("Content-Security-Policy"); tt.status == 200 && !strings.HasPrefix(csp, "default-src 'none'; script-src 'self';") {
				t.Errorf("%s: Content-Security-Policy: %s", tt.url, csp)
			}
		}
		if c := ts.session; c != nil {
			onLoop(ts.session.loop.Loop, func() {
				for _, s := range ts.session.services {
					if s.visitors != 0 || s.active != 0 {
						t.Errorf("%d visitors, %d exchanges are left", s.visitors, s.active)
					}
				}
			})
		}
	})
}

// Nothing of the page needs what its policy forbids.
func TestPagePolicy(t *testing.T) {
	for _, bad := range []string{"<style", "style=", "onclick", "http:", "https:", "<script>"} {
		if strings.Contains(playerPage, bad) {
			t.Errorf("the page has %s", bad)
		}
	}
	for _, bad := range []string{"eval(", "innerHTML", "http:", "https:", ".style"} {
		if strings.Contains(string(playerScript), bad) {
			t.Errorf("the script has %s", bad)
		}
	}
}

// The page is for those whom the policy lets in.
func TestPageDemands(t *testing.T) {
	browsers(t, func(t *testing.T, r *testRelay, c *http.Client) {
		ts := r.connect("office", nil)
		errs := ts.demand(&relay.Policy{Users: hashes(t)}, "gate", "rtsp://cams.test/gate")
		if errs[0] != "" {
			t.Fatal(errs)
		}
		for _, path := range []string{"", "/", "/player.js", "/live.mp4", "/snapshot.jpg", "/other"} {
			res, body := browse(t, c, "GET", "https://cams.test/gate"+path)
			if res.StatusCode != 401 || !strings.HasPrefix(res.Header.Get("WWW-Authenticate"), "Basic ") {
				t.Errorf("%s: %d %q", path, res.StatusCode, body)
			}
		}
		res, _ := browse(t, c, "GET", "https://cams.test/gate", "Authorization: Basic Ym9iOnBhOnNz")
		if res.StatusCode != 200 {
			t.Errorf("with a password: %d %v", res.StatusCode, res.Header)
		}
		ts.demand(&relay.Policy{Deny: []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8")}}, "gate", "rtsp://cams.test/gate")
		if res, _ := browse(t, r.client(), "GET", "https://cams.test/gate"); res.StatusCode != 403 {
			t.Errorf("from a denied address: %d", res.StatusCode)
		}
	})
}
