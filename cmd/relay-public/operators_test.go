package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/rest"
)

const withDomain = basic + `
[operators]
domain = true
expose = ["https://*.try.localhost"]
`

// away returns a client that comes in by the relay's own domain, with somebody's token.
func (in *instance) away(token string) *admin.Client {
	in.t.Helper()
	pem, err := os.ReadFile(filepath.Join(in.dir, "state", "ca.pem"))
	if err != nil {
		in.t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	_, port, _ := strings.Cut(in.ready["https"].(string), ":")
	return &admin.Client{Base: &url.URL{Scheme: "https", Host: "localhost:" + port}, Token: token, TLS: &tls.Config{RootCAs: roots}}
}

// The API is at the relay's own domain, too, over HTTP and WebSocket, and for whoever has a token alone.
func TestOperatorsDomain(t *testing.T) {
	in := start(t, t.TempDir(), withDomain)
	here := in.client()
	ann, err := here.AddOperator(t.Context(), "ann", "viewer")
	if err != nil {
		t.Fatal(err)
	}
	far := in.away(ann.Token)
	if ann.Login != far.Base.String() {
		t.Errorf("one logs in at %q, want %q", ann.Login, far.Base)
	}
	if s, err := far.Status(t.Context()); err != nil || s.Domain != "localhost" {
		t.Fatalf("%+v, %v", s, err)
	}
	if me, err := far.Me(t.Context()); err != nil || me.Name != "ann" || me.Role != "viewer" {
		t.Errorf("%+v, %v", me, err)
	}
	_, err = in.away("guess").Status(t.Context())
	wantCode(t, err, http.StatusUnauthorized)
	_, err = far.AddSite(t.Context(), admin.Invite{Name: "x", Publish: []string{"tcp://:1"}})
	wantCode(t, err, http.StatusForbidden)

	socket, err := far.Dial(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	if list, err := rest.Invoke[[]admin.Site](t.Context(), socket, "sites/List", admin.None{}); err != nil || len(list) != 0 {
		t.Errorf("%+v, %v", list, err)
	}
	_, err = rest.Invoke[admin.None](t.Context(), socket, "relay/Drain", admin.None{})
	wantCode(t, err, http.StatusForbidden)

	client := &http.Client{Transport: &http.Transport{TLSClientConfig: far.TLS, ForceAttemptHTTP2: true}}
	defer client.CloseIdleConnections()
	for path, code := range map[string]int{"/": 200, "/healthz": 404, "/readyz": 404, "/metrics": 401, "/debug/pprof/": 401, "/api/status/Get": 401} {
		resp, err := client.Get(far.Base.String() + path)
		if err != nil {
			t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if resp.StatusCode != code || resp.ProtoMajor != 1 || resp.Header.Get("Alt-Svc") != "" {
			t.Errorf("%s: %v %v, want %d: %.200s", path, resp.Proto, resp.Status, code, body)
		}
	}
	// The same connection, with another name in it.
	req, _ := http.NewRequest(http.MethodGet, far.Base.String()+"/", nil)
	req.Host = "evil.example"
	if resp, err := client.Do(req); err != nil || resp.StatusCode == 200 {
		t.Errorf("%v, %v", resp, err)
	} else {
		resp.Body.Close()
	}
}

// What was opened by a token ends when it is revoked, or when its operator has another role.
func TestRevokedWhileOpen(t *testing.T) {
	in := start(t, t.TempDir(), withDomain)
	here := in.client()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	for name, end := range map[string]func(admin.NewToken) error{
		"revoked": func(n admin.NewToken) error { return here.RevokeToken(ctx, n.ID) },
		"removed": func(n admin.NewToken) error { return here.RemoveOperator(ctx, n.Operator) },
		"role":    func(n admin.NewToken) error { return here.SetRole(ctx, n.Operator, "viewer") },
	} {
		made, err := here.AddOperator(ctx, name, "operator")
		if err != nil {
			t.Fatal(err)
		}
		for _, c := range []*admin.Client{in.away(made.Token), {Base: here.Base, Token: made.Token}} {
			socket, err := c.Dial(ctx)
			if err != nil {
				t.Fatal(err)
			}
			defer socket.Close()
			defer func() {
				select {
				case <-socket.Done():
				case <-ctx.Done():
					t.Errorf("%s: the WebSocket is open", name)
				}
			}()
			n := 0
			var last error
			for _, err := range c.WatchFigures(ctx, admin.Every{Every: 0.2}) {
				if last = err; err != nil {
					break
				}
				if n++; n == 2 && c.Base.Scheme == "http" {
					if err := end(made); err != nil {
						t.Fatal(err)
					}
				}
				if n == 2 && c.Base.Scheme == "https" {
					break // the next one ends both WebSockets
				}
			}
			if c.Base.Scheme == "http" && (last == nil || ctx.Err() != nil) {
				t.Errorf("%s: the feed has ended with %v after %d", name, last, n)
			}
		}
	}
}

// Operators expose what they may, for as long as they are there.
func TestExpose(t *testing.T) {
	in := start(t, t.TempDir(), withDomain+`
[[site]]
name    = "office"
key     = "ed25519:1yQ/TcItPiLRqEX/qIVJhB08FGTj0D3BzkD0tHr3YMo"
publish = ["https://app.try.localhost", "https://*.localhost"]
`)
	ctx := t.Context()
	here := in.client()
	ann, err := here.AddOperator(ctx, "ann", "operator")
	if err != nil {
		t.Fatal(err)
	}
	c := &admin.Client{Base: here.Base, Token: ann.Token}
	const key = "ed25519:1yQ/TcItPiLRqEX/qIVJhB08FGTj0D3BzkD0tHr3YMo"
	expose := func(c *admin.Client, name string, urls ...string) error {
		_, err := c.Expose(ctx, admin.Expose{Name: name, Publish: urls, Key: key})
		return err
	}
	for i, test := range []struct {
		err  error
		code int
	}{
		{expose(c, "", "https://elsewhere.localhost"), 403},
		{expose(c, "", "https://app.try.localhost"), 409},
		{expose(c, "office", "https://a.try.localhost"), 409},
		{expose(c, "a b", "https://a.try.localhost"), 400},
		{expose(c, ""), 0}, // at a name that the relay chooses
		{expose(c, "", "https://*.try.localhost"), 400},
		{second(c.Expose(ctx, admin.Expose{Publish: []string{"https://a.try.localhost"}, Key: "x"})), 400},
		{expose(c, "mine", "https://a.try.localhost"), 0},
		{expose(c, "mine", "https://b.try.localhost"), 409},
		{expose(here, "", "https://a.try.localhost"), 409},
		{expose(here, "", "https://elsewhere.localhost"), 0},
	} {
		var e *admin.Error
		if test.code == 0 && test.err != nil || test.code != 0 && (!errors.As(test.err, &e) || e.Code != test.code) {
			t.Errorf("%d: %v, want %d", i, test.err, test.code)
		}
	}
	site, err := here.Site(ctx, "mine")
	if err != nil || !site.Ephemeral || site.State != admin.StateAway {
		t.Errorf("%+v, %v", site, err)
	}
	// It ends with the token that it was made by.
	if err := here.RevokeToken(ctx, ann.ID); err != nil {
		t.Fatal(err)
	}
	for range 6000 {
		if _, err = here.Site(ctx, "mine"); err != nil {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	wantCode(t, err, http.StatusNotFound)
}

func second[T any](_ T, err error) error { return err }

// A file is checked as a reload would, which changes nothing; drain stops the relay; and all of it is in the audit log,
// which has no secrets.
func TestCheckDrainAudit(t *testing.T) {
	dir := t.TempDir()
	in := start(t, dir, withDomain)
	ctx := t.Context()
	c := in.client()
	for text, want := range map[string]string{
		withDomain: "true [] []",
		strings.Replace(withDomain, `http  = ""`, `http  = ":0"`, 1): "true [] [[listen]]",
		"domain = 1": "false [public.toml:1:10: domain: want a string, not an integer] []",
		"":           "false [public.toml: domain is missing",
	} {
		r, err := c.CheckConfig(ctx, text)
		if err != nil || !strings.HasPrefix(fmt.Sprint(r.OK, r.Mistakes, r.Restart), want) && !(strings.HasPrefix(want, "false") && !r.OK && len(r.Mistakes) > 0) {
			t.Errorf("%.20q: %+v, %v, want %s", text, r, err, want)
		}
	}
	made, err := c.AddOperator(ctx, "ann", "viewer")
	if err != nil {
		t.Fatal(err)
	}
	wantCode(t, (&admin.Client{Base: c.Base, Token: made.Token}).Drain(ctx), http.StatusForbidden)
	if _, err := (&admin.Client{Base: c.Base, Token: "cvo_guess"}).Me(ctx); err == nil {
		t.Error("a guess is good")
	}
	lines, err := c.AuditLog(ctx, admin.Lines{Lines: 10})
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, l := range lines {
		all = append(all, fmt.Sprint(l.Operator, " ", l.Call, " ", l.Code))
	}
	const want = "admin operators/Add 200, ann relay/Drain 403,  api/operators/Me 401"
	if got := strings.Join(all, ", "); got != want {
		t.Errorf("audit log: %s, want %s", got, want)
	}
	if err := c.Drain(ctx); err != nil {
		t.Fatal(err)
	}
	in.await("stopping: visitors may finish")
	for range in.lines {
	}
	if code := <-in.code; code != 0 {
		t.Errorf("exit code %d", code)
	}
	in.code <- 0
	b, err := os.ReadFile(filepath.Join(dir, "state", "audit.log"))
	if err != nil || strings.Count(string(b), "\n") != 4 || strings.Contains(string(b), made.Token) || strings.Contains(string(b), "guess") || strings.Contains(string(b), c.Token) {
		t.Errorf("%v, %s", err, b)
	}
}
