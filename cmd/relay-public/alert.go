package main

import (
	"bytes"
	"cmp"
	"context"
	"crypto/x509"
	"fmt"
	"log/slog"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/alert"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay/public"
)

// alertsConfig is [alerts]. Without it alerts are listed by tunnelctl and the dashboard, and nobody is told.
type alertsConfig struct {
	// AwayAfter is how long a site has no private relay before that is an alert. The default is "2m".
	AwayAfter daemon.Duration `toml:"away_after"`

	// DiskFree is how many per cent of the state folder's disk have to be free. The default is 5.
	DiskFree int `toml:"disk_free"`

	// CertificateDays is how many days before its end a certificate that was not renewed is an alert, and one of [tls], which
	// the relay does not renew. The default is 14. What the relay cannot renew is one after three attempts, too.
	CertificateDays int `toml:"certificate_days"`

	// Interval is how often an alert that comes and goes is told: its beginning and its end at once, and the rest of it
	// once in an interval. The default is "10m".
	Interval daemon.Duration `toml:"interval"`

	// PerHour is how many messages are sent in an hour to the webhook, and how many mails, after five at once. What is held back goes into the
	// next one. The default is 12.
	PerHour int `toml:"per_hour"`

	// Webhook and Mail are who is told.
	Webhook webhookConfig `toml:"webhook"`
	Mail    mailConfig    `toml:"mail"`
}

// webhookConfig is [alerts.webhook]. Files are read again on SIGHUP.
type webhookConfig struct {
	// URL gets each message as JSON by POST: https, unless it is on this machine. Redirects are followed on the same host
	// only. URLFile is a file with the URL, because those of many services are secrets. One of them is needed.
	URL     string `toml:"url"`
	URLFile string `toml:"url_file"`

	// SecretFile is a file with a secret of 16 bytes or more, by which messages are signed: the field Culvert-Signature. They are not
	// if it is missing.
	SecretFile string `toml:"secret_file"`

	// CA is a PEM file of authorities that are trusted instead of the system's.
	CA string `toml:"ca"`
}

// mailConfig is [alerts.mail]. Files are read again on SIGHUP.
type mailConfig struct {
	// Server is who takes mail, HOST:PORT. On port 465 TLS is spoken at once; on others STARTTLS is demanded, unless the
	// server is on this machine. Needed.
	Server string `toml:"server"`

	// User and PasswordFile, a file with the password, are for servers that want them.
	User         string `toml:"user"`
	PasswordFile string `toml:"password_file"`

	// From is the sender, "relay@example.com" or "Relay <relay@example.com>"; To has who gets the mails. Needed.
	From string         `toml:"from"`
	To   daemon.Strings `toml:"to"`

	// CA is a PEM file of authorities that are trusted instead of the system's.
	CA string `toml:"ca"`
}

// defaultAlerts is [alerts] before anything is read into it.
func defaultAlerts() alertsConfig {
	return alertsConfig{AwayAfter: daemon.Duration(2 * time.Minute), DiskFree: 5, CertificateDays: 14, Interval: daemon.Duration(10 * time.Minute), PerHour: 12}
}

const (
	minSecret = 16       // bytes of a secret that signs
	maxFile   = 64 << 10 // of a file with a secret or an URL
)

// check returns who is to be told. Mistakes go to f.
func (c *alertsConfig) check(f *daemon.File, dir string) (senders []alert.Sender) {
	if c.AwayAfter <= 0 {
		f.Addf("alerts.away_after", "away_after is not positive: each cut would be an alert")
	}
	if c.DiskFree < 0 || c.DiskFree > 90 {
		f.Addf("alerts.disk_free", "disk_free is %d: want per cent, 0 to 90", c.DiskFree)
	}
	if c.CertificateDays < 0 || c.CertificateDays > 365 {
		f.Addf("alerts.certificate_days", "certificate_days is %d, not between 0 and 365", c.CertificateDays)
	}
	if c.Interval <= 0 {
		f.Addf("alerts.interval", "interval is not positive")
	}
	if c.PerHour < 1 || c.PerHour > 3600 {
		f.Addf("alerts.per_hour", "per_hour is %d, not between 1 and 3600", c.PerHour)
	}
	read := func(at, name string) string {
		if name == "" {
			return ""
		}
		b, err := os.ReadFile(daemon.InDir(dir, name))
		if err == nil && len(b) > maxFile {
			err = fmt.Errorf("%s is too large", name)
		}
		if err != nil {
			f.Addf(at, "%v", err)
		} else if b = bytes.TrimSpace(b); len(b) == 0 {
			f.Addf(at, "%s is empty", name)
		}
		return string(b)
	}
	roots := func(at, name string) *x509.CertPool {
		text := read(at, name)
		if text == "" {
			return nil
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM([]byte(text)) {
			f.Addf(at, "%s has no certificate", name)
		}
		return pool
	}
	if f.Has("alerts.webhook") {
		const at = "alerts.webhook"
		w := c.Webhook
		text, where := cmp.Or(w.URL, read(at+".url_file", w.URLFile)), at+".url"
		if w.URL == "" && w.URLFile != "" {
			where += "_file"
		}
		switch u, err := url.Parse(text); {
		case w.URL != "" && w.URLFile != "":
			f.Addf(at, "[alerts.webhook] has a url and a url_file: want one of them")
		case w.URL == "" && w.URLFile == "":
			f.Addf(at, "[alerts.webhook] has no url, such as \"https://hooks.example.com/culvert\", and no url_file")
		case text == "": // the file was complained about
		case err != nil:
			f.Addf(where, "no URL") // err has the text, which may be secret
		default:
			if err := alert.CheckWebhook(u); err != nil {
				f.Addf(where, "%v", err)
			}
			hook := &alert.Webhook{URL: u, Roots: roots(at+".ca", w.CA)}
			if secret := read(at+".secret_file", w.SecretFile); w.SecretFile != "" {
				if hook.Secret = []byte(secret); len(secret) > 0 && len(secret) < minSecret {
					f.Addf(at+".secret_file", "the secret has %d bytes, want %d or more: `openssl rand -hex 32` makes one", len(secret), minSecret)
				}
			}
			senders = append(senders, hook)
		}
	}
	if f.Has("alerts.mail") {
		const at = "alerts.mail"
		m := &alert.Mail{
			Server: c.Mail.Server, User: c.Mail.User, Password: read(at+".password_file", c.Mail.PasswordFile),
			From: c.Mail.From, To: c.Mail.To, Roots: roots(at+".ca", c.Mail.CA),
		}
		if err := m.Check(); err != nil {
			f.Addf(at, "[alerts.mail]: %v", err)
		}
		senders = append(senders, m)
	}
	return senders
}

// alerts looks for what operators should look after.
type alerts struct {
	*alert.Center
	relay   *public.Relay // set before run
	state   *state
	log     *slog.Logger
	config  atomic.Pointer[alertsConfig]
	seen    map[string]time.Time // when a site was last there; owned by run
	started time.Time
	testing sync.Mutex // one test at a time
	tested  time.Time  // guarded by testing
}

// newAlerts goes on with the alerts that the state folder knows.
func newAlerts(s *settings, st *state, log *slog.Logger) *alerts {
	a := &alerts{state: st, log: log, seen: make(map[string]time.Time), started: time.Now()}
	a.Center = &alert.Center{
		Relay: s.Domain, Path: filepath.Join(s.state, "alerts.json"),
		OnTrouble: func(sender string, err error) {
			if err != nil {
				log.Error("alerts are not delivered: trying again", "to", sender, "err", err)
			} else {
				log.Info("alerts are delivered again", "to", sender)
			}
		},
		OnFile: func(err error) { log.Error("alerts", "err", err) },
	}
	a.apply(s)
	return a
}

// apply takes a configuration.
func (a *alerts) apply(s *settings) {
	a.config.Store(&s.Alerts)
	a.SetLimits(time.Duration(s.Alerts.Interval), s.Alerts.PerHour)
	a.SetSenders(s.senders...)
}

// run looks and tells until ctx ends.
func (a *alerts) run(ctx context.Context) {
	told := make(chan struct{})
	go func() {
		defer close(told)
		a.Center.Run(ctx)
	}()
	defer func() { <-told }()
	for {
		pause := min(max(time.Duration(a.config.Load().AwayAfter)/8, 100*time.Millisecond), 10*time.Second)
		select {
		case <-ctx.Done():
			return
		case <-time.After(pause):
		}
		a.look(ctx)
	}
}

// look observes everything once.
func (a *alerts) look(ctx context.Context) {
	c, now := a.config.Load(), time.Now()
	a.lookForSites(ctx, time.Duration(c.AwayAfter), now)
	a.Observe(admin.AlertCertificate, a.certificates(time.Duration(c.CertificateDays)*24*time.Hour, now))

	var full []alert.Condition
	switch free, total, err := alert.Disk(a.state.dir); {
	case err != nil:
		full = []alert.Condition{{Subject: a.state.dir, Text: "the state folder cannot be looked at: " + err.Error()}}
	case total > 0:
		least := uint64(c.DiskFree)
		if least > 0 && a.Open(admin.AlertDisk, a.state.dir) {
			least++ // it is over when there is a bit more
		}
		if percent := float64(free) / float64(total) * 100; percent < float64(least) {
			full = []alert.Condition{{Subject: a.state.dir, Text: fmt.Sprintf("the disk of the state folder is full: %.1f %% of %.1f GB are free", percent, float64(total)/1e9)}}
		}
	}
	a.Observe(admin.AlertDisk, full)
}

// lookForSites observes which sites have no private relay.
func (a *alerts) lookForSites(ctx context.Context, after time.Duration, now time.Time) {
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	status := a.relay.Status(ctx)
	if status.Draining || slices.ContainsFunc(status.Lags, func(d time.Duration) bool { return d < 0 }) {
		return // not all of it is known
	}
	for _, s := range status.Sessions {
		if s.Lost.IsZero() {
			a.seen[s.Site] = now
		} else if a.seen[s.Site].Before(s.Lost) {
			a.seen[s.Site] = s.Lost
		}
	}
	var away []alert.Condition
	known := make(map[string]bool)
	for _, site := range a.state.known() {
		known[site.Name] = true
		if site.State == admin.StateInvited {
			continue
		}
		seen, ever := a.seen[site.Name]
		if !ever { // since we have been there
			seen = a.started
			a.seen[site.Name] = seen
		}
		// What a process before us has told is over when the site is there, not because we have just started.
		if now.Sub(seen) >= after || seen != now && a.Open(admin.AlertSiteAway, site.Name) {
			text := fmt.Sprintf("the site has had no private relay since %s", seen.UTC().Format("2006-01-02 15:04:05 MST"))
			if seen == a.started {
				text = "the site has had no private relay since this relay was started"
			}
			away = append(away, alert.Condition{Subject: site.Name, Text: text})
		}
	}
	for name := range a.seen {
		if !known[name] {
			delete(a.seen, name)
		}
	}
	a.Observe(admin.AlertSiteAway, away)
}

// maxFailures is how many attempts at a certificate may fail: authorities have bad hours.
const maxFailures = 3

// certificates returns those that will not be good for long.
func (a *alerts) certificates(before time.Duration, now time.Time) (list []alert.Condition) {
	const date = "2006-01-02 15:04 MST"
	add := func(name, format string, args ...any) {
		list = append(list, alert.Condition{Subject: name, Text: fmt.Sprintf(format, args...)})
	}
	for _, c := range a.state.obtained() {
		switch {
		case c.Expires == nil && c.OnDemand: // somebody has asked for a name: that is no promise
		case c.Expires == nil && c.Failures >= maxFailures:
			add(c.Name, "the certificate could not be obtained in %d attempts: %s", c.Failures, c.Error)
		case c.Expires == nil:
		case c.Failures >= maxFailures:
			add(c.Name, "the certificate, which ends at %s, could not be renewed in %d attempts: %s", c.Expires.UTC().Format(date), c.Failures, c.Error)
		case c.Failures > 0 && c.Expires.Sub(now) < before:
			add(c.Name, "the certificate ends at %s and could not be renewed: %s", c.Expires.UTC().Format(date), c.Error)
		}
	}
	if given := a.state.given.Load(); given != nil && len(given.Certificate) > 0 {
		leaf := given.Leaf
		if leaf == nil {
			leaf, _ = x509.ParseCertificate(given.Certificate[0])
		}
		if leaf != nil && leaf.NotAfter.Sub(now) < before {
			add(a.state.domain, "the certificate of [tls] ends at %s: put another one there and reload the relay", leaf.NotAfter.UTC().Format(date))
		}
	}
	return list
}

// accessLog observes whether the access log can be written. nil: it can.
func (a *alerts) accessLog(path string, err error) {
	if err == nil {
		a.Observe(admin.AlertAccessLog, nil)
		return
	}
	a.Observe(admin.AlertAccessLog, []alert.Condition{{Subject: path, Text: "the access log cannot be written: " + err.Error()}})
}

// list is what operators see.
func (a *alerts) list(context.Context) ([]admin.Alert, error) {
	list := []admin.Alert{}
	for _, x := range a.List() {
		list = append(list, admin.Alert(x))
	}
	return list, nil
}

// testPause is how often a test may be asked for.
const testPause = 5 * time.Second

// test has all who are to be told be told of nothing.
func (a *alerts) test(ctx context.Context) ([]admin.AlertDelivery, error) {
	a.testing.Lock()
	defer a.testing.Unlock()
	if since := time.Since(a.tested); since < testPause {
		return nil, &admin.Error{Code: 429, Text: fmt.Sprintf("there was a test %d seconds ago: wait a moment", int(since.Seconds()))}
	}
	a.tested = time.Now()
	came := a.Test(ctx)
	list := []admin.AlertDelivery{}
	for name, err := range came {
		t := admin.AlertDelivery{To: name}
		if err != nil {
			t.Error = err.Error()
		}
		list = append(list, t)
	}
	slices.SortFunc(list, func(x, y admin.AlertDelivery) int { return cmp.Compare(x.To, y.To) })
	if len(list) == 0 {
		return nil, &admin.Error{Code: 404, Text: "nobody is told of alerts: public.toml has neither [alerts.webhook] nor [alerts.mail]"}
	}
	return list, nil
}
