package admin

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"net/http/cookiejar"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/accesslog"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/rest"
)

// needed is the role of every method.
var needed = map[string]auth.Role{
	"status/Get": auth.Viewer, "status/Watch": auth.Viewer,
	"sites/List": auth.Viewer, "sites/Get": auth.Viewer, "sites/Invite": auth.Administer, "sites/Revoke": auth.Administer, "sites/Rotate": auth.Administer,
	"sites/Promote": auth.Operate, "sites/Expose": auth.Operate, "sites/Cameras": auth.Operate,
	"services/List": auth.Viewer, "sessions/List": auth.Viewer, "sessions/Kick": auth.Operate, "links/List": auth.Viewer,
	"streams/List": auth.Viewer, "streams/Kick": auth.Operate, "visitors/List": auth.Viewer,
	"certificates/List": auth.Viewer, "certificates/Renew": auth.Operate,
	"requests/List": auth.Viewer, "requests/Follow": auth.Viewer, "requests/Get": auth.Operate, "requests/Replay": auth.Operate,
	"history/Get": auth.Viewer, "alerts/List": auth.Viewer, "alerts/Test": auth.Operate, "logs/List": auth.Operate, "logs/Follow": auth.Operate, "metrics/Get": auth.Viewer,
	"config/Check": auth.Administer, "relay/Version": auth.Viewer, "relay/Drain": auth.Administer, "audit/List": auth.Administer,
	"operators/Me": auth.Viewer, "operators/List": auth.Administer, "operators/Add": auth.Administer, "operators/SetRole": auth.Administer, "operators/Remove": auth.Administer,
	"tokens/List": auth.Viewer, "tokens/Create": auth.Viewer, "tokens/Revoke": auth.Viewer,
}

// tokens makes an operator of each role.
func tokens(t *testing.T, h *Handler) map[auth.Role]string {
	t.Helper()
	list := make(map[auth.Role]string)
	for _, role := range []auth.Role{auth.Viewer, auth.Operate, auth.Administer} {
		if err := h.Operators.Add("an-"+role.String(), role); err != nil {
			t.Fatal(err)
		}
		token, _, err := h.Operators.Create("an-"+role.String(), auth.NoRole, 0, "")
		if err != nil {
			t.Fatal(err)
		}
		list[role] = token
	}
	return list
}

func serve(t *testing.T, h *Handler) *url.URL {
	t.Helper()
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	t.Cleanup(func() { h.Close() })
	base, _ := url.Parse(srv.URL)
	return base
}

// Every role tries every method, over HTTP and over a WebSocket, and is refused where it should be, and nowhere else.
func TestRoles(t *testing.T) {
	h := (&relay{}).handler(t)
	base := serve(t, h)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	var names []string
	for _, name := range methodsOf(t, base) {
		if _, ok := needed[name]; !ok {
			t.Errorf("%s is new: who may call it?", name)
		}
		names = append(names, name)
	}
	if len(names) != len(needed) {
		t.Errorf("%d methods, %d are known", len(names), len(needed))
	}
	for role, token := range tokens(t, h) {
		c := &Client{Base: base, Token: token}
		socket, err := c.Dial(ctx)
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range names {
			feed := strings.HasSuffix(name, "/Watch") || strings.HasSuffix(name, "/Follow")
			for via, caller := range map[string]rest.Caller{"HTTP": c.Caller(), "WebSocket": socket} {
				var err error
				if feed {
					err = caller.Follow(ctx, name, None{}, func(func(any) error) error { return io.EOF })
				} else {
					err = caller.Call(ctx, name, None{}, new(json.RawMessage))
				}
				var e *rest.Error
				isRefused := errors.As(err, &e) && e.Code == http.StatusForbidden
				if want := role < needed[name]; isRefused != want || e != nil && e.Code == http.StatusUnauthorized {
					t.Errorf("%v calls %s over %s: %v, want it refused: %v", role, name, via, err, want)
				}
			}
		}
		socket.Close()
	}
	// What is not a method has roles, too.
	for path, need := range map[string]auth.Role{"/metrics": auth.Viewer, "/debug/pprof/": auth.Administer} {
		for role, token := range tokensOf(t, h) {
			req, _ := http.NewRequest(http.MethodGet, base.String()+path, nil)
			req.Header.Set("Authorization", "Bearer "+token)
			resp, err := http.DefaultTransport.RoundTrip(req)
			if err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
			if isRefused := resp.StatusCode == 403; isRefused != (role < need) {
				t.Errorf("%v at %s: %v", role, path, resp.Status)
			}
		}
	}
	http.DefaultTransport.(*http.Transport).CloseIdleConnections()
}

// tokensOf makes another token for each operator of tokens.
func tokensOf(t *testing.T, h *Handler) map[auth.Role]string {
	list := make(map[auth.Role]string)
	for _, role := range []auth.Role{auth.Viewer, auth.Operate, auth.Administer} {
		token, _, err := h.Operators.Create("an-"+role.String(), auth.NoRole, 0, "")
		if err != nil {
			t.Fatal(err)
		}
		list[role] = token
	}
	return list
}

// methodsOf lists what the document of OpenAPI has.
func methodsOf(t *testing.T, base *url.URL) (names []string) {
	t.Helper()
	req, _ := http.NewRequest(http.MethodGet, base.String()+"/api/openapi.json", nil)
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := http.DefaultTransport.RoundTrip(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	var document struct {
		Paths map[string]any `json:"paths"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&document); err != nil {
		t.Fatal(err)
	}
	seen := make(map[string]bool)
	for path := range document.Paths {
		parts := strings.Split(strings.TrimPrefix(path, "/api/"), "/")
		if name := strings.Join(parts[:min(2, len(parts))], "/"); len(parts) > 1 && !seen[name] {
			seen[name] = true
			names = append(names, name)
		}
	}
	return names
}

// Nobody but an admin gets more by making a token than he has, or sees and ends what others have.
func TestTokensOfOthers(t *testing.T) {
	h := (&relay{}).handler(t)
	base := serve(t, h)
	ctx := t.Context()
	all := tokens(t, h)
	operator := &Client{Base: base, Token: all[auth.Operate]}
	boss := &Client{Base: base, Token: all[auth.Administer]}
	less, err := boss.CreateToken(ctx, CreateToken{Role: "viewer", Note: "a script"})
	if err != nil || less.Role != "viewer" {
		t.Fatalf("%+v, %v", less, err)
	}
	script := &Client{Base: base, Token: less.Token}
	bossID := h.Operators.Tokens("an-admin")[0].Token
	create := func(c *Client, in CreateToken) error { _, err := c.CreateToken(ctx, in); return err }
	for i, test := range []struct {
		err  error
		code int
	}{
		{create(operator, CreateToken{Operator: "an-admin"}), 403},
		{create(operator, CreateToken{Role: "admin"}), 403},
		{create(operator, CreateToken{Never: true}), 403},
		{create(operator, CreateToken{TTL: 91 * 24 * 3600}), 403},
		{create(operator, CreateToken{TTL: 3600}), 0},
		{create(script, CreateToken{Role: "admin"}), 403},
		{operator.RevokeToken(ctx, bossID), 404},
		{script.RevokeToken(ctx, bossID), 403},
		{boss.RevokeToken(ctx, auth.AdminTokenID), 409},
		{create(boss, CreateToken{Operator: "admin"}), 409},
		{create(boss, CreateToken{Operator: "nobody"}), 404},
		{create(boss, CreateToken{Operator: "an-viewer", Role: "admin"}), 400},
		{create(boss, CreateToken{Never: true, TTL: 5}), 400},
		{create(boss, CreateToken{TTL: -1}), 400},
		{create(boss, CreateToken{TTL: 1e300}), 400},
		{create(boss, CreateToken{Operator: "an-viewer", Never: true}), 0},
		{boss.RevokeToken(ctx, h.Operators.Tokens("an-viewer")[0].Token), 0},
	} {
		var e *Error
		if test.code == 0 && test.err != nil || test.code != 0 && (!errors.As(test.err, &e) || e.Code != test.code) {
			t.Errorf("%d: %v, want %d", i, test.err, test.code)
		}
	}
	// A token that was made by one for less is for no more.
	again, err := script.CreateToken(ctx, CreateToken{})
	if err != nil || again.Role != "viewer" {
		t.Errorf("%+v, %v", again, err)
	}
	if list, err := operator.Tokens(ctx); err != nil || len(list) != 2 {
		t.Errorf("an operator sees %+v, %v", list, err)
	}
}

// A browser logs in for a cookie, which pages of others cannot use, and which ends with the token.
func TestCookie(t *testing.T) {
	r := &relay{}
	h := r.handler(t)
	base := serve(t, h)
	h.Files = ok
	token := tokens(t, h)[auth.Administer]
	jar, _ := cookiejar.New(nil)
	transport := &http.Transport{}
	defer transport.CloseIdleConnections()
	browser := &http.Client{Jar: jar, Transport: transport}
	do := func(method, path, body string, header map[string]string) (int, *http.Response) {
		t.Helper()
		req, _ := http.NewRequest(method, base.String()+path, strings.NewReader(body))
		req.Header.Set("Content-Type", "application/json")
		for k, v := range header {
			req.Header.Set(k, v)
		}
		resp, err := browser.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		return resp.StatusCode, resp
	}
	ours := map[string]string{"Origin": base.String(), "Sec-Fetch-Site": "same-origin"}
	wants := func(what string, got, want int) {
		t.Helper()
		if got != want {
			t.Errorf("%s: %d, want %d", what, got, want)
		}
	}
	code, _ := do("GET", "/api/status/Get", "", ours)
	wants("before the login", code, 401)
	code, resp := do("POST", "/api/login", `{"token":"`+token+`"}`, ours)
	wants("login", code, 200)
	cookie := resp.Cookies()[0]
	if !cookie.HttpOnly || cookie.SameSite != http.SameSiteStrictMode || cookie.Value == token || len(cookie.Value) < 40 || cookie.MaxAge != 12*3600 {
		t.Errorf("cookie %+v", cookie)
	}
	if _, port, _ := strings.Cut(base.Host, ":"); cookie.Name != "culvert-"+port {
		t.Errorf("cookie %q", cookie.Name)
	}
	upgrade := func(origin string) map[string]string {
		h := map[string]string{"Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="}
		if origin != "" {
			h["Origin"] = origin
		}
		return h
	}
	for _, test := range []struct {
		what, method, path, body string
		header                   map[string]string
		code                     int
	}{
		{"a page of ours", "GET", "/api/status/Get", "", ours, 200},
		{"a page of ours changes something", "POST", "/api/sites/Revoke", `{"name":"office"}`, ours, 200},
		{"nobody says whose page", "POST", "/api/sites/Revoke", `{"name":"office"}`, nil, 403},
		{"a page of another port", "POST", "/api/sites/Revoke", `{"name":"office"}`, map[string]string{"Origin": "http://127.0.0.1:1", "Sec-Fetch-Site": "same-site"}, 403},
		{"a page of somebody else", "POST", "/api/sites/Revoke", `{"name":"office"}`, map[string]string{"Origin": "https://evil.example"}, 403},
		{"an image of somebody else", "GET", "/api/status/Get", "", map[string]string{"Sec-Fetch-Site": "cross-site"}, 403},
		{"a form", "POST", "/api/sites/Revoke", "name=office", map[string]string{"Origin": base.String(), "Content-Type": "application/x-www-form-urlencoded"}, 415},
		{"a WebSocket of nobody", "GET", "/api/ws", "", upgrade(""), 403},
		{"a WebSocket of somebody else", "GET", "/api/ws", "", upgrade("https://evil.example"), 403},
		{"a WebSocket of ours", "GET", "/api/ws", "", upgrade(base.String()), 101},
		{"a link to the page", "GET", "/", "", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "document"}, 200},
		{"the page in a frame", "GET", "/", "", map[string]string{"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate", "Sec-Fetch-Dest": "iframe"}, 403},
		{"logout by a page of somebody else", "POST", "/api/logout", "", map[string]string{"Origin": "https://evil.example"}, 403},
	} {
		code, _ := do(test.method, test.path, test.body, test.header)
		wants(test.what, code, test.code)
	}
	code, _ = do("POST", "/api/logout", "{}", ours)
	wants("logout", code, 200)
	jar.SetCookies(base, []*http.Cookie{cookie}) // somebody has kept it
	code, _ = do("GET", "/api/status/Get", "", ours)
	wants("after the logout", code, 401)

	code, _ = do("POST", "/api/login", `{"token":"`+token+`"}`, ours)
	wants("login again", code, 200)
	if err := h.Operators.Revoke(h.Operators.Tokens("an-admin")[0].Token); err != nil {
		t.Fatal(err)
	}
	code, _ = do("GET", "/api/status/Get", "", ours)
	wants("after the token was revoked", code, 401)
	h.mu.Lock()
	defer h.mu.Unlock()
	if len(h.logins) > 0 {
		t.Errorf("%d logins are left", len(h.logins))
	}
	if strings.Contains(r.log.String(), token) || strings.Contains(r.log.String(), cookie.Value) {
		t.Error("a secret is in the log")
	}
}

// One operator has so many WebSockets, feeds and calls; another one does not notice.
func TestBoundsOfOne(t *testing.T) {
	h := (&relay{}).handler(t)
	h.MaxSockets, h.MaxFeeds = 2, 1
	base := serve(t, h)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	all := tokens(t, h)
	viewer, boss := &Client{Base: base, Token: all[auth.Viewer]}, &Client{Base: base, Token: all[auth.Administer]}
	var sockets []*rest.Socket
	for i := range 3 {
		s, err := viewer.Dial(ctx)
		var e *Error
		if i < 2 && err != nil || i == 2 && (!errors.As(err, &e) || e.Code != http.StatusTooManyRequests) {
			t.Errorf("WebSocket %d: %v", i, err)
		}
		if err == nil {
			sockets = append(sockets, s)
			defer s.Close()
		}
	}
	if s, err := boss.Dial(ctx); err != nil {
		t.Error(err)
	} else {
		s.Close()
	}
	for range viewer.WatchFigures(ctx, Every{}) {
		for _, err := range viewer.WatchFigures(ctx, Every{}) {
			var e *Error
			if !errors.As(err, &e) || e.Code != http.StatusTooManyRequests {
				t.Errorf("a second feed: %v", err)
			}
			break
		}
		break
	}
	// What has ended makes room.
	sockets[0].Close()
	for {
		s, err := viewer.Dial(ctx)
		if err == nil {
			s.Close()
			break
		}
		if ctx.Err() != nil {
			t.Fatal(err)
		}
	}
}

// Whoever guesses is told to wait, and leaves few lines behind; who knows the token is let in.
func TestGuesses(t *testing.T) {
	r := &relay{}
	h := r.handler(t)
	audit, err := OpenAudit(accesslog.Config{Path: filepath.Join(t.TempDir(), "audit.log")})
	if err != nil {
		t.Fatal(err)
	}
	defer audit.Close()
	h.Audit = audit
	ask := func(from, token string) int {
		req := httptest.NewRequest("GET", "/api/operators/Me", nil)
		req.Host, req.RemoteAddr = "localhost", from
		req.Header.Set("Authorization", "Bearer "+token)
		w := httptest.NewRecorder()
		h.ServeHTTP(w, req)
		return w.Code
	}
	last := 0
	for range 100 {
		last = ask("192.0.2.1:1000", "guess-of-a-token")
	}
	if last != http.StatusTooManyRequests {
		t.Errorf("the hundredth guess: %d", last)
	}
	if code := ask("192.0.2.1:1000", token); code != 200 {
		t.Errorf("the token, among guesses: %d", code)
	}
	if code := ask("192.0.2.2:1000", "guess"); code != 401 {
		t.Errorf("a guess from elsewhere: %d", code)
	}
	if n := len(audit.Last(1000)); n < 1 || n > 2*mostAttempts+1 {
		t.Errorf("%d lines in the audit log", n)
	}
	if strings.Contains(r.log.String(), "guess") {
		t.Error("guesses are in the log")
	}
	var a attempts[netip.Prefix]
	for i := range 2 * mostAddresses {
		a.allow(network(netip.AddrFrom4([4]byte{10, byte(i >> 16), byte(i >> 8), byte(i)})), 1, 1<<20, time.Unix(0, 0))
	}
	if len(a.n) > mostAddresses {
		t.Errorf("%d addresses are remembered", len(a.n))
	}
}

// What somebody has tried who may not is in the audit log as what others have done: without secrets, and with less of it.
func TestTried(t *testing.T) {
	h := (&relay{}).handler(t)
	audit, err := OpenAudit(accesslog.Config{Path: filepath.Join(t.TempDir(), "audit.log")})
	if err != nil {
		t.Fatal(err)
	}
	defer audit.Close()
	h.Audit = audit
	c := &Client{Base: serve(t, h), Token: tokens(t, h)[auth.Viewer]}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	socket, err := c.Dial(ctx)
	if err != nil {
		t.Fatal(err)
	}
	defer socket.Close()
	for _, caller := range []rest.Caller{c.Caller(), socket} {
		for _, try := range []struct {
			name string
			in   any
			want string
		}{
			{"sites/Revoke", Revoke{Name: "office", Key: "ed25519:x"}, `{"name":"office","key":"ed25519:x"}`},
			{"sites/Cameras", Search{Site: "office", User: "admin", Password: "hunter2"}, `{"site":"office"}`},
			{"config/Check", ConfigText{Text: "password = 1"}, `{"text":""}`},
			{"relay/Drain", None{}, ""},
			{"sites/Revoke", map[string]int{"name": 1}, ""},
		} {
			err := caller.Call(ctx, try.name, try.in, new(json.RawMessage))
			if e := (*rest.Error)(nil); !errors.As(err, &e) || e.Code != http.StatusForbidden {
				t.Errorf("%s: %v", try.name, err)
			}
			if line := audit.Last(1)[0]; line.Call != try.name || string(line.In) != try.want {
				t.Errorf("%s over %s: %+v, with %s, want %s", try.name, line.Via, line, line.In, try.want)
			}
		}
		caller.Call(ctx, "sites/Invite", Invite{Name: strings.Repeat("x", 10000)}, new(json.RawMessage))
		if line := audit.Last(1)[0]; len(line.In) < mostTried || len(line.In) > 2*mostTried {
			t.Errorf("%d bytes are kept: %s", len(line.In), line.In)
		}
		err := caller.Follow(ctx, "logs/Follow", Lines{Lines: 7}, func(func(any) error) error { return nil })
		if line := audit.Last(1)[0]; err == nil || line.Call != "logs/Follow" || string(line.In) != `{"lines":7}` {
			t.Errorf("%v, %+v, with %s", err, line, line.In)
		}
	}
}

// What a method was given is in the audit log without secrets, and not longer than it has to be.
func TestSaid(t *testing.T) {
	for _, test := range []struct {
		in   any
		want string
	}{
		{nil, ""}, {None{}, ""},
		{Search{Site: "office", User: "admin", Password: "hunter2"}, `{"site":"office"}`},
		{Revoke{Name: "office"}, `{"name":"office"}`},
		{ConfigText{Text: "password = 1"}, `{"text":""}`},
	} {
		if got := string(said(test.in, mostSaid)); got != test.want {
			t.Errorf("%+v: %s, want %s", test.in, got, test.want)
		}
	}
	if b := said(Invite{Name: strings.Repeat("ü", 10000)}, mostSaid); len(b) > 2*mostSaid || !json.Valid(b) {
		t.Errorf("%d bytes: %.50s", len(b), b)
	}
}

// Lines that were written before a restart are there after it, damaged ones apart.
func TestAudit(t *testing.T) {
	c := accesslog.Config{Path: filepath.Join(t.TempDir(), "audit.log"), MaxSize: 100 << 10, Keep: 2}
	a, err := OpenAudit(c)
	if err != nil {
		t.Fatal(err)
	}
	for range mostLines + 10 {
		a.Record(AuditLine{Operator: "ann", Call: "sites/Revoke", Code: 200, In: json.RawMessage(`{"name":"office"}`)})
	}
	a.Record(AuditLine{Operator: "bob", Call: "relay/Drain", Code: 403})
	if list := a.Last(3); len(list) != 3 || list[2].Operator != "bob" || list[1].Operator != "ann" {
		t.Errorf("%+v", list)
	}
	if n := len(a.Last(1 << 20)); n != mostLines {
		t.Errorf("%d lines in memory", n)
	}
	a.log.Write([]byte("not JSON\n"))
	if err := a.Close(); err != nil {
		t.Fatal(err)
	}
	if a, err = OpenAudit(c); err != nil {
		t.Fatal(err)
	}
	defer a.Close()
	if list := a.Last(1); len(list) != 1 || list[0].Operator != "bob" {
		t.Errorf("after a restart: %+v", list)
	}
}

// Rates are differences between two looks, which watchers share.
func TestFigures(t *testing.T) {
	at := time.Unix(1e9, 0)
	before := &look{Look: &Look{
		Time: at, Sites: []SiteLook{{SiteFigures: SiteFigures{Name: "office"}, Received: 1000, Sent: 10}},
		Services: []ServiceLook{{Site: "office", Name: "web", Requests: 5, Received: 100, Sent: 50, Errors: 1}},
	}}
	now := &look{Look: &Look{
		Time: at.Add(2 * time.Second), Visitors: 3, Streams: 2, Draining: true,
		Sites:    []SiteLook{{SiteFigures: SiteFigures{Name: "office", State: StateConnected, Streams: 2, Links: 2, Sessions: 2}, Received: 5200, Sent: 30}},
		Services: []ServiceLook{{Site: "office", Name: "web", Requests: 11, Received: 40, Sent: 250, Visitors: 1, Errors: 5}},
	}}
	f := now.since(before)
	if s := f.Sites[0]; s.In != 10 || s.Out != 2100 || s.Streams != 2 || s.Links != 2 || s.Sessions != 2 || f.Streams != 2 || f.Visitors != 3 || !f.Draining {
		t.Errorf("%+v", f)
	}
	// 40 bytes where there were 100: it has begun anew.
	if s := f.Services[0]; s.In != 20 || s.Out != 100 || s.Requests != 3 || s.Errors != 2 {
		t.Errorf("%+v", s)
	}
	if now.since(before) != f {
		t.Error("what two watchers want is measured twice")
	}
	if f := now.since(nil); f.Sites[0].In != 0 || f.Services[0].Requests != 0 {
		t.Errorf("without a look before: %+v", f)
	}
	if b, err := json.Marshal((&look{Look: &Look{}}).since(nil)); err != nil || !bytes.Contains(b, []byte(`"sites":[]`)) {
		t.Errorf("%s, %v", b, err)
	}
}

// Another program that speaks JSON is not taken for a relay that has nothing to say.
func TestForeign(t *testing.T) {
	for _, body := range []string{`{}`, `{"status":"UP"}`, `[]`, `null`, `<html>`, ``} {
		for _, code := range []int{200, 404, 401, 307} {
			srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
				w.Header().Set("Content-Type", "application/json")
				w.Header().Set("Location", "http://127.0.0.1:1/")
				w.WriteHeader(code)
				io.WriteString(w, body)
			}))
			base, _ := url.Parse(srv.URL)
			s, err := (&Client{Base: base, Token: token}).Status(t.Context())
			var e *ForeignError
			if !errors.As(err, &e) {
				t.Errorf("%d %q: %+v, %v", code, body, s, err)
			}
			srv.Close()
		}
	}
}
