package admin

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert.dev/pkg/auth"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const token = "correct horse battery staple"

// relay is the state behind a Handler in these tests.
type relay struct {
	status   Status
	invited  []Invite
	revoked  []string
	promoted []Promote
	sick     error
	busy     error
	log      bytes.Buffer
}

var ok = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "ok") })

// operators makes a store whose admin.token is token.
func operators(t *testing.T) *auth.Operators {
	t.Helper()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "admin.token"), []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	o, err := auth.OpenOperators(dir)
	if err != nil {
		t.Fatal(err)
	}
	return o
}

func (r *relay) handler(t *testing.T) *Handler {
	h := &Handler{
		Operators: operators(t),
		Version:   Version{Version: "v1", Wire: 6},
		Status:    func() (*Status, error) { s := r.status; return &s, nil },
		Figures:   func(context.Context) (*Look, error) { return &Look{Time: time.Now()}, nil },
		AddSite: func(_ context.Context, in Invite) (*Invitation, error) {
			if in.Name == "office" {
				return nil, &Error{Code: http.StatusConflict, Text: `site "office" exists: revoke it first`}
			}
			r.invited = append(r.invited, in)
			return &Invitation{Site: in.Name, Token: "t0k3n", Expires: time.Unix(1e9, 0)}, nil
		},
		RotateSite: func(_ context.Context, in Rotate) (*Invitation, error) {
			return &Invitation{Site: in.Name, Token: "t0k3n"}, nil
		},
		RevokeSite: func(_ context.Context, in Revoke) error {
			if in.Name != "office" {
				return &Error{Code: http.StatusNotFound, Text: fmt.Sprintf("no site %q", in.Name)}
			}
			r.revoked = append(r.revoked, in.Name+" "+in.Key)
			return nil
		},
		PromoteSite: func(_ context.Context, p Promote) (*Promoted, error) {
			if p.Name != "office" {
				return nil, &Error{Code: http.StatusNotFound, Text: fmt.Sprintf("no site %q", p.Name)}
			}
			r.promoted = append(r.promoted, p)
			return &Promoted{Session: "3f2a9c01"}, nil
		},
		Metrics: ok,
		Debug:   ok,
		Healthy: func(context.Context) error { return r.sick },
		Ready:   func(context.Context) error { return r.busy },
		Log:     slog.New(slog.NewTextHandler(&r.log, nil)),
	}
	t.Cleanup(func() { h.Close() })
	return h
}

func start(t *testing.T, r *relay) *Client {
	srv := httptest.NewServer(r.handler(t))
	t.Cleanup(srv.Close)
	base, _ := url.Parse(srv.URL)
	return &Client{Base: base, Token: token}
}

func TestClient(t *testing.T) {
	ctx := t.Context()
	r := &relay{status: Status{Version: "v1", Sites: []Site{{Name: "office", State: StateConnected}}}}
	c := start(t, r)

	s, err := c.Status(ctx)
	if err != nil || s.Version != "v1" || len(s.Sites) != 1 || s.Sites[0].State != StateConnected {
		t.Fatalf("Status = %+v, %v", s, err)
	}
	inv, err := c.AddSite(ctx, Invite{Name: "lab", Publish: []string{"https://*.example.com"}, TTL: 3600})
	if err != nil || inv.Token != "t0k3n" {
		t.Fatalf("AddSite = %+v, %v", inv, err)
	}
	if got := r.invited[0].Lifetime(); got != time.Hour {
		t.Errorf("the relay heard a lifetime of %v, want 1h", got)
	}
	if strings.Contains(r.log.String(), "t0k3n") {
		t.Error("the join token is in the log")
	}
	for _, key := range []string{"", "ed25519:a+/b"} {
		if err := c.RevokeSite(ctx, "office", key); err != nil || r.revoked[len(r.revoked)-1] != "office "+key {
			t.Errorf("RevokeSite = %v, revoked %q", err, r.revoked)
		}
	}
	if _, err := c.AddSite(ctx, Invite{Name: "lab", Standby: true}); err != nil || !r.invited[1].Standby {
		t.Errorf("AddSite of a stand-by: %+v, %v", r.invited, err)
	}
	want := Promote{Name: "office", Session: "3f2", Cut: true}
	if done, err := c.PromoteSite(ctx, "office", Promote{Session: "3f2", Cut: true}); err != nil || done.Session != "3f2a9c01" || r.promoted[0] != want {
		t.Errorf("PromoteSite = %+v, %v; the relay heard %+v", done, err, r.promoted)
	}
	if list, err := c.Sites(ctx); err != nil || len(list) != 1 {
		t.Errorf("Sites = %+v, %v", list, err)
	}
	if one, err := c.Site(ctx, "office"); err != nil || one.State != StateConnected {
		t.Errorf("Site = %+v, %v", one, err)
	}
	if v, err := c.Version(ctx); err != nil || v.Version != "v1" {
		t.Errorf("Version = %+v, %v", v, err)
	}

	// Refusals arrive as *Error with their code and words.
	for _, tc := range []struct {
		err  error
		code int
		text string
	}{
		{c.RevokeSite(ctx, "nowhere", ""), 404, `no site "nowhere"`},
		{second(c.PromoteSite(ctx, "nowhere", Promote{})), 404, `no site "nowhere"`},
		{second(c.AddSite(ctx, Invite{Name: "office", Publish: []string{"tcp://:1"}})), 409, "revoke it first"},
		{second(c.AddSite(ctx, Invite{Publish: []string{"tcp://:1"}})), 400, "needs a name"},
		{second(c.AddSite(ctx, Invite{Name: "x"})), 400, "publish pattern"},
		{second(c.AddSite(ctx, Invite{Name: "x", Publish: []string{"tcp://:1"}, Standby: true})), 400, "leave the patterns out"},
		{second(c.AddSite(ctx, Invite{Name: "x", Publish: []string{"tcp://:1"}, TTL: 1e9})), 400, "31 days"},
		{second(c.Site(ctx, "nowhere")), 404, `no site "nowhere": `},
		{second(c.Services(ctx, "nowhere")), 404, `no site "nowhere": `},
		{second(c.Streams(ctx, Filter{})), 404, "this relay has no list of streams"},
		{c.KickStream(ctx, "s1"), 404, "this relay has no way to end streams"},
		{second((&Client{Base: c.Base, Token: "guess"}).Status(ctx)), 401, "admin.token"},
	} {
		var e *Error
		if !errors.As(tc.err, &e) || e.Code != tc.code || !strings.Contains(e.Text, tc.text) {
			t.Errorf("got %v, want %d ... %q", tc.err, tc.code, tc.text)
		}
	}
}

func second[T any](_ T, err error) error { return err }

func TestAdmission(t *testing.T) {
	const auth = "Bearer " + token
	const jsonType = "application/json"
	for _, tc := range []struct {
		name   string
		method string
		path   string
		header map[string]string // Host among them
		body   string
		code   int
	}{
		{"health needs nothing", "GET", "/healthz", map[string]string{"Host": "10.1.2.3:7070"}, "", 200},
		{"readiness needs nothing", "GET", "/readyz", map[string]string{"Host": "10.1.2.3:7070"}, "", 200},
		{"metrics need the token", "GET", "/metrics", map[string]string{"Host": "localhost"}, "", 401},
		{"metrics", "GET", "/metrics", map[string]string{"Host": "10.1.2.3:7070", "Authorization": auth}, "", 200},
		{"metrics as a method", "GET", "/api/metrics/Get", map[string]string{"Host": "10.1.2.3:7070", "Authorization": auth}, "", 200},
		{"metrics through a name of somebody else", "GET", "/metrics", map[string]string{"Host": "evil.example", "Authorization": auth}, "", 421},
		{"profiles need the token", "GET", "/debug/pprof/", map[string]string{"Host": "localhost"}, "", 401},
		{"profiles", "GET", "/debug/pprof/heap", map[string]string{"Host": "localhost", "Authorization": auth}, "", 200},
		{"profiles for a page", "GET", "/debug/pprof/heap", map[string]string{"Host": "localhost", "Authorization": auth, "Sec-Fetch-Site": "cross-site"}, "", 403},
		{"loopback address", "GET", "/api/status/Get", map[string]string{"Host": "127.0.0.1:7070", "Authorization": auth}, "", 200},
		{"loopback IPv6", "GET", "/api/status/Get", map[string]string{"Host": "[::1]:7070", "Authorization": auth}, "", 200},
		{"localhost without port", "GET", "/api/status/Get", map[string]string{"Host": "localhost", "Authorization": auth}, "", 200},
		{"configured name", "GET", "/api/status/Get", map[string]string{"Host": "Relay.example.com", "Authorization": auth}, "", 200},
		{"a name rebound to loopback", "GET", "/api/status/Get", map[string]string{"Host": "evil.example:7070", "Authorization": auth}, "", 421},
		{"a name that only begins like ours", "GET", "/api/status/Get", map[string]string{"Host": "localhost.evil.example", "Authorization": auth}, "", 421},
		{"no token", "GET", "/api/status/Get", map[string]string{"Host": "localhost"}, "", 401},
		{"no token, and nothing there", "GET", "/api/x/y", map[string]string{"Host": "localhost"}, "", 401},
		{"no token for the WebSocket", "GET", "/api/ws", map[string]string{"Host": "localhost", "Connection": "Upgrade", "Upgrade": "websocket"}, "", 401},
		{"no token for the document", "GET", "/api/openapi.json", map[string]string{"Host": "localhost"}, "", 401},
		{"wrong scheme", "GET", "/api/status/Get", map[string]string{"Host": "localhost", "Authorization": "Basic " + token}, "", 401},
		{"foreign origin", "GET", "/api/status/Get", map[string]string{"Host": "localhost", "Authorization": auth, "Origin": "https://evil.example"}, "", 403},
		{"null origin", "GET", "/api/status/Get", map[string]string{"Host": "localhost", "Authorization": auth, "Origin": "null"}, "", 403},
		{"another port is another origin", "GET", "/api/status/Get", map[string]string{"Host": "localhost:7070", "Authorization": auth, "Origin": "http://localhost:8080"}, "", 403},
		{"another scheme is another origin", "GET", "/api/status/Get", map[string]string{"Host": "localhost:7070", "Authorization": auth, "Origin": "https://localhost:7070"}, "", 403},
		{"own origin", "GET", "/api/status/Get", map[string]string{"Host": "localhost:7070", "Authorization": auth, "Origin": "http://localhost:7070"}, "", 200},
		{"cross-site fetch without origin", "GET", "/api/status/Get", map[string]string{"Host": "localhost", "Authorization": auth, "Sec-Fetch-Site": "cross-site"}, "", 403},
		{"a WebSocket of another page", "GET", "/api/ws", map[string]string{"Host": "localhost", "Authorization": auth, "Connection": "Upgrade", "Upgrade": "websocket", "Origin": "http://evil.example"}, "", 403},
		{"a form", "POST", "/api/sites/Invite", map[string]string{"Host": "localhost", "Authorization": auth, "Content-Type": "text/plain"}, `{"name":"x","publish":["tcp://:1"]}`, 415},
		{"JSON", "POST", "/api/sites/Invite", map[string]string{"Host": "localhost", "Authorization": auth, "Content-Type": "application/json; charset=utf-8"}, `{"name":"x","publish":["tcp://:1"]}`, 200},
		{"a key we do not know", "POST", "/api/sites/Invite", map[string]string{"Host": "localhost", "Authorization": auth, "Content-Type": jsonType}, `{"name":"x","pubish":["tcp://:1"]}`, 400},
		{"a body without end", "POST", "/api/sites/Invite", map[string]string{"Host": "localhost", "Authorization": auth, "Content-Type": jsonType}, `{"name":"` + strings.Repeat("x", maxBody) + `"}`, 413},
		{"wrong method", "PUT", "/api/sites/List", map[string]string{"Host": "localhost", "Authorization": auth}, "", 405},
		{"a link that changes something", "GET", "/api/sites/Revoke?name=office", map[string]string{"Host": "localhost", "Authorization": auth}, "", 405},
		{"a site that is not there", "GET", "/api/sites/Get/nowhere", map[string]string{"Host": "localhost", "Authorization": auth}, "", 404},
		{"no such method", "GET", "/api/sites/Lists", map[string]string{"Host": "localhost", "Authorization": auth}, "", 404},
		{"promote by a form", "POST", "/api/sites/Promote", map[string]string{"Host": "localhost", "Authorization": auth, "Content-Type": "application/x-www-form-urlencoded"}, "name=office", 415},
		{"promote", "POST", "/api/sites/Promote", map[string]string{"Host": "localhost", "Authorization": auth, "Content-Type": jsonType}, `{"name":"office"}`, 200},
		{"no page", "GET", "/", map[string]string{"Host": "localhost", "Authorization": auth}, "", 404},
		{"no page, and no token", "GET", "/", map[string]string{"Host": "localhost"}, "", 401},
		{"login by a form", "POST", "/api/login", map[string]string{"Host": "localhost", "Content-Type": "application/x-www-form-urlencoded"}, "token=" + token, 415},
		{"login by a link", "GET", "/api/login", map[string]string{"Host": "localhost"}, "", 405},
		{"login of another page", "POST", "/api/login", map[string]string{"Host": "localhost", "Content-Type": jsonType, "Origin": "http://evil.example"}, `{"token":"` + token + `"}`, 403},
		{"login through a name of somebody else", "POST", "/api/login", map[string]string{"Host": "evil.example", "Content-Type": jsonType}, `{"token":"` + token + `"}`, 421},
		{"login with a wrong token", "POST", "/api/login", map[string]string{"Host": "localhost", "Content-Type": jsonType}, `{"token":"x"}`, 401},
		{"login with nothing", "POST", "/api/login", map[string]string{"Host": "localhost", "Content-Type": jsonType}, ``, 400},
		{"login", "POST", "/api/login", map[string]string{"Host": "localhost", "Content-Type": jsonType, "Origin": "http://localhost"}, `{"token":"` + token + `"}`, 200},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r := &relay{}
			h := r.handler(t)
			h.Hosts = []string{"relay.example.com"}
			req := httptest.NewRequest(tc.method, tc.path, strings.NewReader(tc.body))
			for k, v := range tc.header {
				req.Header.Set(k, v)
			}
			req.Host = tc.header["Host"]
			w := httptest.NewRecorder()
			h.ServeHTTP(w, req)
			if w.Code != tc.code {
				t.Errorf("%s %s: %d %s, want %d", tc.method, tc.path, w.Code, w.Body, tc.code)
			}
			if strings.Contains(w.Body.String()+r.log.String(), token) {
				t.Error("the answer, or the log, contains the token")
			}
			if isIn := tc.code != 401 && tc.code != 421 && tc.code != 403 && req.Header.Get("Authorization") != ""; isIn != (w.Header().Get(signature) != "") {
				t.Errorf("signed: %v, let in: %v", !isIn, isIn)
			}
		})
	}
}

// What went wrong inside is for the log, not for the answer.
func TestInternalErrorsStayInside(t *testing.T) {
	r := &relay{}
	h := r.handler(t)
	h.Status = func() (*Status, error) { return nil, errors.New("open /var/lib/culvert/x: no space") }
	req := httptest.NewRequest("GET", "/api/status/Get", nil)
	req.Host = "localhost"
	req.Header.Set("Authorization", "Bearer "+token)
	w := httptest.NewRecorder()
	h.ServeHTTP(w, req)
	if w.Code != 500 || strings.Contains(w.Body.String(), "/var/lib") {
		t.Errorf("answer %d %s tells too much", w.Code, w.Body)
	}
	if !strings.Contains(r.log.String(), "no space") {
		t.Errorf("log %q lacks the cause", r.log.String())
	}
}

// Who asks without a token learns that the relay does not do, why, and nothing else.
func TestProbes(t *testing.T) {
	r := new(relay)
	get := func(path string) string {
		w := httptest.NewRecorder()
		r.handler(t).ServeHTTP(w, httptest.NewRequest("GET", path, nil))
		return fmt.Sprint(w.Code, " ", w.Body)
	}
	for _, test := range []struct {
		sick, busy error
		want       string
	}{
		{nil, nil, "200 ok\n200 ok\n"},
		{nil, errors.New("draining"), "200 ok\n503 draining\n"},
		{errors.New("event loop 1 does not turn"), nil, "503 event loop 1 does not turn\n200 ok\n"},
	} {
		r.sick, r.busy = test.sick, test.busy
		if got := get("/healthz") + get("/readyz"); got != test.want {
			t.Errorf("got %q, want %q", got, test.want)
		}
	}
	if r.log.Len() > 0 {
		t.Errorf("logged: %s", &r.log)
	}
}
