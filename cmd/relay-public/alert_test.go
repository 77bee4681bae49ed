package main

import (
	"crypto/hmac"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/alert"
	"culvert.dev/pkg/daemon"
)

// hook is a server that gets alerts.
func hook(t *testing.T, secret string) (*httptest.Server, chan alert.Told) {
	told := make(chan alert.Told, 100)
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		body, err := io.ReadAll(r.Body)
		if err != nil {
			t.Error(err)
		}
		sent, _, _ := strings.Cut(strings.TrimPrefix(r.Header.Get(alert.SignatureField), "t="), ",")
		at, err := strconv.ParseInt(sent, 10, 64)
		if err != nil || !hmac.Equal([]byte(r.Header.Get(alert.SignatureField)), []byte(alert.Sign([]byte(secret), time.Unix(at, 0), body))) {
			t.Errorf("signature %q", r.Header.Get(alert.SignatureField))
		}
		var m alert.Message
		if err := json.Unmarshal(body, &m); err != nil {
			t.Error(err)
		}
		for _, a := range m.Alerts {
			told <- a
		}
	}))
	t.Cleanup(srv.Close)
	return srv, told
}

// A site that is away is told of once, whatever restarts there are, and so is that nobody expects it any more.
func TestAlerts(t *testing.T) {
	const secret = "0123456789abcdef"
	srv, told := hook(t, secret)
	dir := t.TempDir()
	for name, text := range map[string]string{"hook.secret": secret + "\n", "hook.url": srv.URL + "/secret\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	config := basic + `
[alerts]
away_after = "200ms"
disk_free  = 0

[alerts.webhook]
url_file    = "hook.url"
secret_file = "hook.secret"
`
	site := `
[[site]]
name    = "office"
key     = "ed25519:1yQ/TcItPiLRqEX/qIVJhB08FGTj0D3BzkD0tHr3YMo"
publish = ["https://*.localhost"]
`
	in := start(t, dir, config+site)
	if a := <-told; a.Kind != admin.AlertSiteAway || a.Subject != "office" || a.Status != "firing" || !strings.Contains(a.Text, "since this relay was started") {
		t.Fatalf("%+v", a)
	}
	list, err := in.client().Alerts(t.Context())
	if err != nil || len(list) != 1 || list[0].Subject != "office" || list[0].Resolved != nil {
		t.Errorf("%+v, %v", list, err)
	}
	came, err := in.client().TestAlerts(t.Context())
	if err != nil || len(came) != 1 || came[0].Error != "" || strings.Contains(came[0].To, "secret") {
		t.Errorf("%+v, %v", came, err)
	}
	if a := <-told; a.Kind != admin.AlertTest {
		t.Errorf("%+v", a)
	}
	if _, err := in.client().TestAlerts(t.Context()); err == nil || !strings.Contains(err.Error(), "wait a moment") {
		t.Errorf("a test right behind another one: %v", err)
	}
	in.end()
	in.code <- 0

	in = start(t, dir, config+site) // tells nothing: the next one is that the site is not expected any more
	in.end()
	in.code <- 0
	in = start(t, dir, config)
	if a := <-told; a.Subject != "office" || a.Status != "resolved" {
		t.Errorf("%+v", a)
	}
	list, err = in.client().Alerts(t.Context())
	if err != nil || len(list) != 1 || list[0].Resolved == nil {
		t.Errorf("%+v, %v", list, err)
	}
}

// Every mistake in [alerts] is told, with its place.
func TestCheckAlerts(t *testing.T) {
	const head = "domain = \"relay.example.com\"\nstate = \"s\"\n"
	for config, want := range map[string]string{
		"[alerts]\naway_after = \"0s\"": "away_after is not positive", "[alerts]\ndisk_free = 95": "disk_free is 95", "[alerts]\nper_hour = 0": "per_hour is 0",
		"[alerts]\ncertificate_days = -1": "certificate_days is -1", "[alerts]\ninterval = \"0s\"": "interval is not positive",
		"[alerts]\naway = \"1m\"": "away_after",
		"[alerts.webhook]":        "has no url",
		"[alerts.webhook]\nurl = \"http://hooks.example.com/x\"":         "use https",
		"[alerts.webhook]\nurl = \"https://x/\"\nurl_file = \"good\"":    "want one of them",
		"[alerts.webhook]\nurl_file = \"none\"":                          "none",
		"[alerts.webhook]\nurl_file = \"empty\"":                         "empty is empty",
		"[alerts.webhook]\nurl = \"https://x/\"\nsecret_file = \"good\"": "the secret has 4 bytes",
		"[alerts.webhook]\nurl = \"https://x/\"\nca = \"good\"":          "no certificate",
		"[alerts.mail]": "smtp.example.com:587",
		"[alerts.mail]\nserver = \"x:25\"\nfrom = \"a@b\"":                           "nobody would get mail",
		"[alerts.mail]\nserver = \"x:25\"\nfrom = \"a@b\"\nto = \"c\"":               "to \"c\"",
		"[alerts.mail]\nserver = \"x:25\"\nfrom = \"a@b\"\nto = \"c@d\"\nuser=\"u\"": "belong together",
	} {
		dir := t.TempDir()
		for name, text := range map[string]string{"public.toml": head + config + "\n", "good": "good\n", "empty": "\n"} {
			if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := load(filepath.Join(dir, "public.toml")); err == nil || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "public.toml:") {
			t.Errorf("%s\n%v", config, err)
		}
	}
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "public.toml"), []byte(head+"[alerts.mail]\nserver = \"smtp.example.com:587\"\nfrom = \"Relay <relay@example.com>\"\nto = \"ops@example.com\"\n[alerts.webhook]\nurl=\"https://hooks.example.com/x\"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s, err := load(filepath.Join(dir, "public.toml"))
	if err != nil || len(s.senders) != 2 {
		t.Errorf("%v, %v", s.senders, err)
	}
}

// A reload takes all of [alerts].
func TestAlertsReloaded(t *testing.T) {
	s := &settings{state: t.TempDir(), config: config{Alerts: defaultAlerts()}}
	a := newAlerts(s, &state{dir: s.state}, slog.New(slog.DiscardHandler))
	if a.Interval != 10*time.Minute || a.PerHour != 12 {
		t.Errorf("%v, %d", a.Interval, a.PerHour)
	}
	next := *s
	next.Alerts.Interval, next.Alerts.PerHour = daemon.Duration(time.Minute), 60
	a.apply(&next)
	if a.Interval != time.Minute || a.PerHour != 60 || next.needRestart(s) != nil {
		t.Errorf("after a reload: %v, %d, restart: %v", a.Interval, a.PerHour, next.needRestart(s))
	}
}
