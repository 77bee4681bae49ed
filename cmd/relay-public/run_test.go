package main

import (
	"bufio"
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/signal.loop"))
}

// instance is a running relay.
type instance struct {
	t     *testing.T
	dir   string
	ready map[string]any // attributes of the ready line
	lines chan map[string]any
	stop  context.CancelFunc
	code  chan int
}

// start runs the command in the folder dir, with public.toml in it, until it is ready.
func start(t *testing.T, dir, config string) *instance {
	t.Helper()
	file := filepath.Join(dir, "public.toml")
	if err := os.WriteFile(file, []byte(config), 0o600); err != nil {
		t.Fatal(err)
	}
	r, w := io.Pipe()
	ctx, cancel := context.WithCancel(t.Context())
	in := &instance{t: t, dir: dir, lines: make(chan map[string]any, 1000), stop: cancel, code: make(chan int, 1)}
	go in.read(r)
	go in.run(ctx, w, "--config", file, "--log-level", "debug")
	t.Cleanup(in.end)
	in.ready = in.await("ready")
	return in
}

func (in *instance) run(ctx context.Context, stderr *io.PipeWriter, args ...string) {
	code := command(ctx, args, io.Discard, stderr)
	stderr.Close()
	in.code <- code
}

func (in *instance) read(r io.Reader) {
	defer close(in.lines)
	for sc := bufio.NewScanner(r); sc.Scan(); {
		line := make(map[string]any)
		if err := json.Unmarshal(sc.Bytes(), &line); err != nil {
			line["msg"] = sc.Text()
		}
		in.lines <- line
	}
}

// await returns the next log line with that message.
func (in *instance) await(msg string) map[string]any {
	in.t.Helper()
	for line := range in.lines {
		if line["msg"] == msg {
			return line
		}
	}
	in.t.Fatalf("the relay ended before it said %q", msg)
	return nil
}

// end stops the relay, which must end well.
func (in *instance) end() {
	in.stop()
	for range in.lines {
	}
	if code := <-in.code; code != 0 {
		in.t.Errorf("exit code %d", code)
	}
}

func (in *instance) client() *admin.Client {
	token, err := os.ReadFile(filepath.Join(in.dir, "state", "admin.token"))
	if err != nil {
		in.t.Fatal(err)
	}
	return &admin.Client{
		Base:  &url.URL{Scheme: "http", Host: in.ready["admin"].(string)},
		Token: strings.TrimSpace(string(token)),
	}
}

const basic = `domain = "localhost"
state  = "state"

[listen]
https = "127.0.0.1:0"
http  = ""
admin = "127.0.0.1:0"
`

// The first start makes the state, and says what to do; a token that it gives out lets a site join, once, at the
// address that the relay listens on, with the authority that it has made.
func TestFirstStart(t *testing.T) {
	dir := t.TempDir()
	in := start(t, dir, basic)
	next := in.await("no site yet: invite one, then run relay-private join there")["next"]
	if want := fmt.Sprintf("tunnelctl --state %s/state --admin %s site add NAME --publish 'https://*.localhost'", dir, in.ready["admin"]); next != want {
		t.Errorf("next: %s\nwant %s", next, want)
	}
	for name, mode := range map[string]os.FileMode{"": 0o700, "admin.token": 0o600, "quic.secret": 0o600, "ca.key": 0o600, "ca.pem": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, "state", name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("state/%s: %v, %v, want mode %v", name, info.Mode(), err, mode)
		}
	}

	client := in.client()
	invitation, err := client.AddSite(t.Context(), admin.Invite{Name: "office", Publish: []string{"https://*.apps.localhost"}})
	if err != nil {
		t.Fatal(err)
	}
	token, err := auth.ParseToken(invitation.Token)
	if err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(in.ready["https"].(string), ":")
	if token.Relay != "localhost:"+port || token.Site != "office" || token.Pin == nil {
		t.Errorf("token for %s, site %s, pin %x", token.Relay, token.Site, token.Pin)
	}
	if s := sites(t, client); s != "office invited" {
		t.Errorf("sites: %s", s)
	}
	if answer := redeem(t, token); answer.Site != "office" || answer.Error != nil {
		t.Errorf("joined as %q, %v", answer.Site, answer.Error)
	}
	if answer := redeem(t, token); answer.Error == nil || answer.Error.Code != relay.RefuseBadToken {
		t.Errorf("joined twice: %v", answer.Error)
	}
	if s := sites(t, client); s != "office away" {
		t.Errorf("sites: %s", s)
	}

	// The relay's certificate now has the names that the site may publish.
	pem, err := os.ReadFile(filepath.Join(dir, "state", "ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	c, err := tls.Dial("tcp", in.ready["https"].(string), &tls.Config{RootCAs: roots, ServerName: "wiki.apps.localhost"})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()
	// curl --http1.0 offers nothing but this.
	c, err = tls.Dial("tcp", in.ready["https"].(string), &tls.Config{RootCAs: roots, ServerName: "wiki.apps.localhost", NextProtos: []string{"http/1.0"}})
	if err != nil {
		t.Fatal(err)
	}
	c.Close()

	// Another private relay of the site gets a key of its own, which can be revoked alone.
	keys := func() []string {
		status, err := client.Status(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		return status.Sites[0].Keys
	}
	before := keys()
	if invitation, err = client.AddSite(t.Context(), admin.Invite{Name: "office", Standby: true}); err != nil {
		t.Fatal(err)
	}
	if token, err = auth.ParseToken(invitation.Token); err != nil {
		t.Fatal(err)
	}
	if answer := redeem(t, token); answer.Site != "office" || !slices.Equal(answer.Publish, []string{"https://*.apps.localhost"}) {
		t.Errorf("joined as %q, %q, %v", answer.Site, answer.Publish, answer.Error)
	}
	after := keys()
	if len(before) != 1 || len(after) != 2 || after[0] != before[0] {
		t.Errorf("keys %q, then %q", before, after)
	}
	if err := client.RevokeSite(t.Context(), "office", before[0]); err != nil {
		t.Error(err)
	}
	if k := keys(); !slices.Equal(k, after[1:]) {
		t.Errorf("keys after a revoke: %q", k)
	}
	wantCode(t, client.RevokeSite(t.Context(), "office", before[0]), http.StatusNotFound)
	_, err = client.AddSite(t.Context(), admin.Invite{Name: "lab", Standby: true})
	wantCode(t, err, http.StatusNotFound)
	_, err = client.PromoteSite(t.Context(), "office", admin.Promote{})
	wantCode(t, err, http.StatusConflict)
	_, err = client.PromoteSite(t.Context(), "offic", admin.Promote{})
	wantCode(t, err, http.StatusNotFound)

	if err := client.RevokeSite(t.Context(), "office", ""); err != nil {
		t.Error(err)
	}
	if s := sites(t, client); s != "" {
		t.Errorf("sites: %s", s)
	}
	wantCode(t, client.RevokeSite(t.Context(), "offic", ""), http.StatusNotFound)
}

// redeem joins with a token, as relay-private does.
func redeem(t *testing.T, token auth.Token) relay.JoinResponse {
	t.Helper()
	c, _ := auth.PinnedTLS(token.Pin, "localhost")
	transport := &http.Transport{TLSClientConfig: c}
	defer transport.CloseIdleConnections()
	public, _, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	body := relay.Encode(relay.JoinRequest{Version: relay.WireVersion, Secret: token.Secret, Key: auth.FormatPublicKey(public)})
	resp, err := (&http.Client{Transport: transport}).Post("https://"+token.Relay+relay.JoinPath, "application/json", strings.NewReader(string(body)))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	answer, err := relay.DecodeJoinResponse(b)
	if err != nil {
		t.Fatal(err)
	}
	return answer
}

// sites lists names and states.
func sites(t *testing.T, client *admin.Client) string {
	t.Helper()
	status, err := client.Status(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var list []string
	for _, s := range status.Sites {
		list = append(list, s.Name+" "+s.State)
	}
	return strings.Join(list, ", ")
}

func wantCode(t *testing.T, err error, code int) {
	t.Helper()
	var e *admin.Error
	if !errors.As(err, &e) || e.Code != code {
		t.Errorf("%v, want status %d", err, code)
	}
}

// Sites of the configuration and of the state stand side by side; those of the configuration are changed there.
func TestConfiguredSite(t *testing.T) {
	in := start(t, t.TempDir(), basic+`
[[site]]
name    = "branch"
key     = "ed25519:1yQ/TcItPiLRqEX/qIVJhB08FGTj0D3BzkD0tHr3YMo"
publish = ["https://branch.localhost"]
`)
	client := in.client()
	if _, err := client.AddSite(t.Context(), admin.Invite{Name: "office", Publish: []string{"tcp://:*"}}); err != nil {
		t.Error(err)
	}
	if s := sites(t, client); s != "branch away, office invited" {
		t.Errorf("sites: %s", s)
	}
	_, err := client.AddSite(t.Context(), admin.Invite{Name: "branch", Publish: []string{"tcp://:*"}})
	wantCode(t, err, http.StatusConflict)
	wantCode(t, client.RevokeSite(t.Context(), "branch", ""), http.StatusConflict)
	_, err = client.AddSite(t.Context(), admin.Invite{Name: "branch", Standby: true})
	wantCode(t, err, http.StatusConflict)
	_, err = client.AddSite(t.Context(), admin.Invite{Name: "a b", Publish: []string{"tcp://:*"}})
	wantCode(t, err, http.StatusBadRequest)
	_, err = client.AddSite(t.Context(), admin.Invite{Name: "x", Publish: []string{"tftp://:1"}})
	wantCode(t, err, http.StatusBadRequest)
}

// ask fetches a page of the admin listener.
func (in *instance) ask(path, token string) (int, string) {
	in.t.Helper()
	req, err := http.NewRequestWithContext(context.Background(), http.MethodGet, "http://"+in.ready["admin"].(string)+path, nil)
	if err != nil {
		in.t.Fatal(err)
	}
	if token != "" {
		req.Header.Set("Authorization", "Bearer "+token)
	}
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		in.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		in.t.Fatal(err)
	}
	return resp.StatusCode, string(b)
}

// What is there to look at on the admin listener, and with what.
func TestAdminPages(t *testing.T) {
	in := start(t, t.TempDir(), basic+`
[[site]]
name    = "branch"
key     = "ed25519:1yQ/TcItPiLRqEX/qIVJhB08FGTj0D3BzkD0tHr3YMo"
publish = ["https://branch.localhost"]
`)
	token := in.client().Token
	for _, test := range []struct {
		path, token string
		code        int
		want        string
	}{
		{"/healthz", "", 200, "ok\n"},
		{"/readyz", "", 200, "ok\n"},
		{"/metrics", "", 401, "token"},
		{"/metrics", "guess", 401, "token"},
		{"/metrics", token, 200, "\nculvert_site_up{site=\"branch\"} 0\n"},
		{"/metrics", token, 200, "\nculvert_certificate_expiry_timestamp_seconds{name=\"localhost\"} "},
		{"/metrics", token, 200, "\nprocess_open_fds "},
		{"/debug/pprof/goroutine?debug=1", "", 401, "token"},
		{"/debug/pprof/goroutine?debug=1", token, 200, "goroutine profile: total "},
		{"/debug/pprof/cmdline", token, 404, ""},
		{"/debug/vars", token, 404, ""},
	} {
		if code, text := in.ask(test.path, test.token); code != test.code || !strings.Contains(text, test.want) {
			t.Errorf("%s with token %.4q: %d %q, want %d %q", test.path, test.token, code, text, test.code, test.want)
		}
	}
	// None of it is on the listeners of visitors.
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	for _, path := range []string{"/metrics", "/healthz", "/readyz", "/debug/pprof/", "/api/status/Get"} {
		req, _ := http.NewRequest(http.MethodGet, "https://"+in.ready["https"].(string)+path, nil)
		req.Host = "localhost"
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		if resp.Body.Close(); resp.StatusCode != 404 {
			t.Errorf("%s for visitors: %v", path, resp.Status)
		}
	}
}

// From the beginning of a drain on the relay is not ready, and healthy to the end.
func TestReadyWhileDraining(t *testing.T) {
	in := start(t, t.TempDir(), strings.Replace(basic, `http  = ""`, `http  = "127.0.0.1:0"`, 1))
	c, err := net.Dial("tcp", in.ready["http"].(string)) // one who has not asked yet keeps the relay for a moment
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	for code := 0; code != 404; { // the relay has taken it
		io.WriteString(c, "GET / HTTP/1.1\r\nHost: x.localhost\r\n\r\nGET / HTTP/1.1\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		code = resp.StatusCode
	}
	in.stop()
	in.await("stopping: visitors may finish")
	var code int
	var text string
	for code != 503 {
		code, text = in.ask("/readyz", "")
	}
	if text != "the relay is shutting down\n" {
		t.Errorf("not ready: %q", text)
	}
	if code, text := in.ask("/healthz", ""); code != 200 {
		t.Errorf("not healthy: %d %q", code, text)
	}
}

// A certificate that does not do makes the relay not ready.
func TestReady(t *testing.T) {
	files, err := auth.DevCA(t.TempDir(), "relay.test")
	if err != nil {
		t.Fatal(err)
	}
	c, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		domain string
		now    time.Time
		have   *tls.Certificate
		want   string
	}{
		{"relay.test", time.Now(), &c, "<nil>"},
		{"other.test", time.Now(), &c, "the certificate is not for the relay's domain"},
		{"relay.test", c.Leaf.NotAfter.Add(time.Second), &c, "the certificate for the relay's domain has expired"},
		{"relay.test", time.Now(), nil, "there is no certificate for the relay's domain"},
	} {
		st := &state{domain: test.domain}
		st.certificate.Store(test.have)
		if got := fmt.Sprint(st.ready(test.now)); got != test.want {
			t.Errorf("%q, want %q", got, test.want)
		}
	}
}

// The access log is in the state folder, or where it is said; it is complete when the relay has ended.
func TestAccessLog(t *testing.T) {
	dir := t.TempDir()
	in := start(t, dir, basic+`
[access_log]
file = "logs/access.log"
`)
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{InsecureSkipVerify: true}, DisableKeepAlives: true}}
	for range 3 {
		resp, err := client.Get("https://" + in.ready["https"].(string) + "/a?secret=1")
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
	}
	in.stop()
	for range in.lines {
	}
	b, err := os.ReadFile(filepath.Join(dir, "state", "logs", "access.log"))
	if n := strings.Count(string(b), `"path":"/a","status":404`); err != nil || n != 3 || strings.Contains(string(b), "secret") {
		t.Errorf("%v, %d lines:\n%s", err, n, b)
	}

	// A log that cannot be is an error, not a relay without one.
	text := strings.Replace(basic, "[listen]", "access_log = { file = \"admin.token/access.log\" }\n[listen]", 1)
	if err := os.WriteFile(filepath.Join(dir, "public.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	var stderr strings.Builder
	if code := command(t.Context(), []string{"--config", filepath.Join(dir, "public.toml")}, io.Discard, &stderr); code != 1 || !strings.Contains(stderr.String(), "access log: ") {
		t.Errorf("exit code %d\n%s", code, stderr.String())
	}
}

// An address that is taken is an error that names the listener.
func TestAddressTaken(t *testing.T) {
	in := start(t, t.TempDir(), basic)
	for _, listener := range []string{"https", "admin"} {
		dir := t.TempDir()
		text := strings.Replace(basic, listener+` = "127.0.0.1:0"`, fmt.Sprintf("%s = %q", listener, in.ready["admin"]), 1)
		if err := os.WriteFile(filepath.Join(dir, "public.toml"), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		var stderr strings.Builder
		code := command(t.Context(), []string{"--config", filepath.Join(dir, "public.toml")}, io.Discard, &stderr)
		if want := fmt.Sprintf("relay-public: listener %s %q: ", listener, in.ready["admin"]); code != 1 || !strings.Contains(stderr.String(), want) {
			t.Errorf("exit code %d\n%s\nwant %s", code, stderr.String(), want)
		}
	}
}

func TestMaxVisitors(t *testing.T) {
	for _, tt := range []struct{ wanted, files, want int }{
		{200000, 0, 200000},
		{200000, 1 << 20, 200000},
		{200000, 1024, 832},
		{100, 1024, 100},
		{100, 32, 1},
	} {
		if got := maxVisitors(tt.wanted, tt.files); got != tt.want {
			t.Errorf("%d wanted, %d files: %d, want %d", tt.wanted, tt.files, got, tt.want)
		}
	}
}
