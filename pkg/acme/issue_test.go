package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

func TestFirstCertificate(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{nonces: true})
	for _, kind := range []string{HTTP01, TLSALPN01} {
		t.Run(kind, func(t *testing.T) {
			p := p.in(t)
			s := p.site(func(c *Config) { c.Challenges = []string{kind} })
			p.prove(s)
			s.Manage([]string{"app.example.com", "127.0.0.1"})
			leaf, err := p.firstVisit(s, "app.example.com")
			if err != nil {
				t.Fatal(err)
			}
			if len(leaf.DNSNames) != 1 || leaf.DNSNames[0] != "app.example.com" {
				t.Errorf("names %q", leaf.DNSNames)
			}
			st := s.certified(t, "app.example.com")
			if left := time.Until(st.Renews); left < 50*24*time.Hour || left > 61*24*time.Hour {
				t.Errorf("renews in %v, want ARI's two thirds of ninety days", left)
			}
			if st.Directory != p.url() || st.Issuer == "" || st.Err != "" {
				t.Errorf("status %+v", st)
			}
			s.certified(t, "127.0.0.1")
			if _, err := p.visit("other.example.com"); err == nil || !strings.Contains(err.Error(), "unrecognized name") {
				t.Errorf("a name that is not managed: %v, want unrecognized_name", err)
			}
			if s.Challenging("app.example.com") {
				t.Error("acme-tls/1 is still accepted")
			}
			if _, ok := s.HTTPChallenge("app.example.com", ChallengePath+"guess"); ok {
				t.Error("an answer to a token that nobody has")
			}
		})
	}
}

// What a restart finds is served at once, and nothing is ordered.
func TestRestart(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{})
	front := p.inFront()
	store := openFiles(t, t.TempDir())
	config := func(c *Config) {
		c.Store = store
		c.Directories = []Directory{{URL: front.url(), Roots: front.roots(), Profile: "default"}}
	}
	s := p.site(config)
	switched := p.prove(s)
	s.Manage([]string{"app.example.com"})
	first := s.certified(t, "app.example.com")
	s.Close()

	again := p.site(config)
	switched(again)
	// Not managed any more: its site is away. Visitors are to hear so in a handshake that works.
	if leaf, err := p.visit("app.example.com"); err != nil || !leaf.NotAfter.Equal(first.Expires) {
		t.Errorf("a site that is away: %v", err)
	}
	again.Manage([]string{"app.example.com"})
	if st := again.certified(t, "app.example.com"); !st.Expires.Equal(first.Expires) {
		t.Errorf("expires %v, was %v", st.Expires, first.Expires)
	}
	if n := front.ordered(); n != 1 {
		t.Errorf("%d orders, want 1", n)
	}
	again.Close()

	// The process died while it wrote the files of a new one.
	key := certmagic.StorageKeys.SitePrivateKey(storeKey(front.url()), "app.example.com")
	other, err := certmagic.StandardKeyGenerator{KeyType: certmagic.P256}.GenerateKey()
	if err != nil {
		t.Fatal(err)
	}
	otherPEM, _ := certmagic.PEMEncodePrivateKey(other)
	if err := store.Store(t.Context(), key, otherPEM); err != nil {
		t.Fatal(err)
	}
	third := p.site(config)
	switched(third)
	third.Manage([]string{"app.example.com"})
	if _, err := p.firstVisit(third, "app.example.com"); err != nil {
		t.Errorf("after files that do not belong together: %v", err)
	}
}

func TestEAB(t *testing.T) {
	t.Parallel()
	secret := "zWNDZM6eQGHWpSRTPal5eIUYFTu7EajVIoguysqZ9wG44nMEtx3MUAsUDkMTQ12W"
	p := startPebble(t, options{eab: map[string]string{"kid-1": secret}})
	without := p.site(nil)
	without.Manage([]string{"app.example.com"})
	if st := without.failed(t, "app.example.com"); !strings.Contains(st.Err, "externalAccountRequired") {
		t.Errorf("without a binding: %q", st.Err)
	}
	with := p.site(func(c *Config) { c.Directories[0].EAB = &EAB{KeyID: "kid-1", HMAC: secret} })
	p.prove(with)
	with.Manage([]string{"app.example.com"})
	with.certified(t, "app.example.com")
	if strings.Contains(with.log.String(), secret) {
		t.Error("the secret is in the log")
	}
}

// ask has the authority asked anew when a certificate is to be renewed: it has said not to before some hours
// have gone.
func (s *site) askAgain(t *testing.T, directory, name string) {
	t.Helper()
	key := certmagic.StorageKeys.SiteMeta(storeKey(directory), name)
	b, err := s.store.Load(t.Context(), key)
	if err != nil {
		t.Fatal(err)
	}
	var meta certmagic.CertificateResource
	var data acme.Certificate
	if err := errors.Join(json.Unmarshal(b, &meta), json.Unmarshal(meta.IssuerData, &data)); err != nil {
		t.Fatal(err)
	}
	if data.RenewalInfo == nil {
		t.Fatal("the authority has not said when to renew")
	}
	past := time.Now().Add(-time.Hour)
	data.RenewalInfo.RetryAfter = &past
	meta.IssuerData, _ = json.Marshal(data)
	b, _ = json.Marshal(meta)
	if err := s.store.Store(t.Context(), key, b); err != nil {
		t.Fatal(err)
	}
	// The manager looks now instead of then.
	s.mu.Lock()
	s.entries[name].next = time.Time{}
	s.mu.Unlock()
	s.kick()
}

// manage posts to pebble's own interface.
func (p *pebble) post(path string, body any) {
	p.t.Helper()
	b, _ := json.Marshal(body)
	resp, err := p.client().Post(p.manage+path, "application/json", bytes.NewReader(b))
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	if resp.StatusCode != 200 {
		text, _ := io.ReadAll(resp.Body)
		p.t.Fatalf("%s: %s %s", path, resp.Status, text)
	}
}

func (s *site) leafPEM(name string) string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate(name).Certificate[0]}))
}

// The authority says that it is time (RFC 9773), long before the certificate expires.
func TestRenewalInfo(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{})
	front := p.inFront()
	s := p.site(func(c *Config) {
		c.Directories = []Directory{{URL: front.url(), Roots: front.roots(), Profile: "default"}}
	})
	p.prove(s)
	s.Manage([]string{"app.example.com"})
	s.certified(t, "app.example.com")
	old := s.Certificate("app.example.com")

	// It says when, and it is not time: nothing is ordered.
	s.askAgain(t, front.url(), "app.example.com")
	waitFor(t, "the authority to be asked", func() bool { return front.asked("/renewalInfo/") >= 2 && !s.status("app.example.com").Busy })
	if front.ordered() != 1 {
		t.Error("a certificate was renewed that was not due")
	}

	hour := time.Now().Add(-time.Hour)
	p.post("/set-renewal-info/", map[string]string{
		"Certificate": s.leafPEM("app.example.com"),
		"ARIResponse": fmt.Sprintf(`{"suggestedWindow":{"start":%q,"end":%q},"explanationURL":"https://ca.example/why"}`,
			hour.Add(-time.Hour).Format(time.RFC3339), hour.Format(time.RFC3339)),
	})
	var replaces string
	front.refusing(func(w http.ResponseWriter, r *http.Request) bool {
		if strings.HasSuffix(r.URL.Path, "/order-plz") {
			b, _ := io.ReadAll(r.Body)
			r.Body = io.NopCloser(bytes.NewReader(b))
			replaces = payload(b)
		}
		return false
	})
	s.askAgain(t, front.url(), "app.example.com")
	waitFor(t, "another certificate", func() bool { return !s.Certificate("app.example.com").Leaf.Equal(old.Leaf) })
	id, _ := acme.ARIUniqueIdentifier(old.Leaf)
	front.mu.Lock()
	defer front.mu.Unlock()
	if !strings.Contains(replaces, id) {
		t.Errorf("the order %s does not say what it replaces", replaces)
	}
	if out := s.log.String(); !strings.Contains(out, "certificate renewed") || !strings.Contains(out, "https://ca.example/why") {
		t.Errorf("the log tells neither of the renewal nor why:\n%s", out)
	}
}

// payload is that of a signed request.
func payload(jws []byte) string {
	var m struct{ Payload string }
	json.Unmarshal(jws, &m)
	b, _ := base64url(m.Payload)
	return string(b)
}

// A certificate that was revoked is replaced as soon as the authority says so.
func TestRevoked(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{})
	s := p.site(nil)
	p.prove(s)
	s.Manage([]string{"app.example.com"})
	s.certified(t, "app.example.com")
	old := s.Certificate("app.example.com")
	client := acmez.Client{Client: s.issuers[0].client}
	account, err := s.issuers[0].loadAccount(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if err := client.RevokeCertificate(t.Context(), account, old.Leaf, account.PrivateKey, acme.ReasonKeyCompromise); err != nil {
		t.Fatal(err)
	}
	s.askAgain(t, p.url(), "app.example.com")
	waitFor(t, "another certificate", func() bool { return !s.Certificate("app.example.com").Leaf.Equal(old.Leaf) })
	if k := s.Certificate("app.example.com").PrivateKey; k == old.PrivateKey {
		t.Error("the key is the same")
	}
}

// An operator wants another one.
func TestRenew(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{})
	s := p.site(nil)
	p.prove(s)
	s.Manage([]string{"app.example.com"})
	s.certified(t, "app.example.com")
	old := s.Certificate("app.example.com")
	if !s.Renew("app.example.com") || s.Renew("other.example.com") {
		t.Error("which names are managed?")
	}
	waitFor(t, "another certificate", func() bool { return !s.Certificate("app.example.com").Leaf.Equal(old.Leaf) })
	if leaf, err := p.visit("app.example.com"); err != nil || leaf.Equal(old.Leaf) {
		t.Errorf("a visitor has the old one: %v", err)
	}
}

// What certmagic would renew on its own account, because it looked while a certificate was in its hands, is left to the Manager.
func TestOwnRenewal(t *testing.T) {
	t.Parallel()
	s := startPebble(t, options{}).site(nil)
	c, err := s.issuers[0].Issue(context.Background(), &x509.CertificateRequest{DNSNames: []string{"app.example.com"}})
	if _, ok := errors.AsType[certmagic.ErrNoRetry](err); c != nil || !ok {
		t.Errorf("%v, %v", c, err)
	}
}

// The authority may say that a certificate is to be renewed early. Late is not believed, never is not either.
func TestRenews(t *testing.T) {
	from := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	day := func(n int) time.Time { return from.AddDate(0, 0, n) }
	for name, tt := range map[string]struct{ says, want time.Time }{
		"nothing said":         {time.Time{}, day(60)},
		"early":                {day(50), day(50)},
		"after two thirds":     {day(61), day(60)},
		"in the last moment":   {day(89), day(60)},
		"when it is over":      {day(91), day(60)},
		"before it was issued": {day(-1), day(-1)},
	} {
		h := &held{certificate: &tls.Certificate{Leaf: &x509.Certificate{NotBefore: from, NotAfter: day(90)}}}
		h.info.SelectedTime = tt.says
		if got := h.renews(); !got.Equal(tt.want) {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
}

// Certificates of seconds: there is a valid one all the time.
func TestShortLived(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{seconds: 36}) // of which twelve are for the next one
	six := p.site(func(c *Config) { c.Directories[0].Profile = "shortlived" })
	s := p.site(func(c *Config) { c.Directories[0].Profile = "short" })
	switched := p.prove(six)
	six.Manage([]string{"six.example.com"})
	st := six.certified(t, "six.example.com")
	if days := time.Until(st.Expires).Hours() / 24; days > 6 || days < 5.9 {
		t.Errorf("expires in %.1f days, want 6", days)
	}
	if days := time.Until(st.Renews).Hours() / 24; days > 4.01 || days < 2.9 {
		t.Errorf("renews in %.1f days, want 3 to 4", days)
	}
	switched(s)
	s.Manage([]string{"app.example.com"})
	first := s.certified(t, "app.example.com")
	for deadline := first.Expires.Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(500 * time.Millisecond) {
		if _, err := p.visit("app.example.com"); err != nil {
			t.Fatalf("%v before %v: %v", time.Until(deadline), deadline, err)
		}
	}
}

// The authority is gone, and comes back without its memory: there is a new account.
func TestAuthorityDown(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{})
	s := p.site(nil)
	p.prove(s)
	s.Manage([]string{"app.example.com"})
	s.certified(t, "app.example.com")
	p.cmd.Process.Kill()
	p.cmd.Wait()
	s.Manage([]string{"app.example.com", "late.example.com"})
	st := s.failed(t, "late.example.com")
	if st.Failures != 1 || !strings.Contains(st.Err, "connection refused") || time.Until(st.NextTry) > 2*time.Minute {
		t.Errorf("status %+v", st)
	}
	if s.Certificate("app.example.com") == nil {
		t.Error("the certificate that was there is gone")
	}
	p.start(options{})
	s.Retry()
	st = s.certified(t, "late.example.com")
	if st.Err != "" || st.Failures != 0 {
		t.Errorf("status %+v", st)
	}
	if !strings.Contains(s.log.String(), "does not know the account") {
		t.Error("the log does not tell of the new account")
	}
	if _, err := s.store.Load(t.Context(), recordKey("late.example.com")); err == nil {
		t.Error("what failed is still remembered")
	}
}

// A name leads elsewhere. What failed is not tried again by a restart, and is by an operator.
func TestWrongChallenge(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{})
	front := p.inFront()
	store := openFiles(t, t.TempDir())
	config := func(c *Config) {
		c.Store = store
		c.Directories = []Directory{{URL: front.url(), Roots: front.roots(), Profile: "default"}}
		c.Challenges = []string{HTTP01}
	}
	s := p.site(config)
	switched := p.prove(s)
	p.point("app.example.com", "127.0.0.9")
	s.Manage([]string{"app.example.com"})
	if _, err := p.visit("app.example.com"); err == nil {
		t.Error("a visitor without a certificate")
	}
	st := s.failed(t, "app.example.com")
	if st.Failures != 1 || !strings.Contains(st.Err, "127.0.0.9") || time.Until(st.NextTry) < 50*time.Second {
		t.Errorf("status %+v", st)
	}
	orders := front.ordered()
	s.Close()

	s = p.site(config)
	switched(s)
	s.Manage([]string{"app.example.com"})
	again := s.failed(t, "app.example.com")
	if again.Failures != 1 || !again.NextTry.Equal(st.NextTry) || front.ordered() != orders {
		t.Errorf("after a restart: %+v, %d orders, want %+v and %d", again, front.ordered(), st, orders)
	}
	p.point("app.example.com", "")
	s.Retry()
	if st := s.certified(t, "app.example.com"); st.Err != "" {
		t.Errorf("status %+v", st)
	}
}

// The authority says how long it wants to be let alone: that holds across restarts, and for operators too. The
// next authority is asked meanwhile.
func TestRateLimited(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{})
	front := p.inFront()
	front.refusing(func(w http.ResponseWriter, r *http.Request) bool {
		if !strings.HasSuffix(r.URL.Path, "/order-plz") {
			return false
		}
		w.Header().Set("Retry-After", "3600")
		w.Header().Set("Content-Type", "application/problem+json")
		w.WriteHeader(http.StatusTooManyRequests)
		io.WriteString(w, `{"type":"urn:ietf:params:acme:error:rateLimited","detail":"too many certificates already issued","status":429}`)
		return true
	})
	store := openFiles(t, t.TempDir())
	limited := Directory{URL: front.url(), Roots: front.roots(), Profile: "default"}
	config := func(c *Config) { c.Store, c.Directories = store, []Directory{limited} }
	s := p.site(config)
	switched := p.prove(s)
	s.Manage([]string{"app.example.com"})
	st := s.failed(t, "app.example.com")
	if left := time.Until(st.NextTry); left < 59*time.Minute || left > time.Hour || !strings.Contains(st.Err, "too many certificates already issued (rateLimited)") {
		t.Errorf("next try in %v: %s", left, st.Err)
	}
	s.Close()
	s = p.site(config)
	switched(s)
	s.Manage([]string{"app.example.com"})
	s.failed(t, "app.example.com")
	s.Retry()
	waitFor(t, "the operator's try", func() bool { return s.status("app.example.com").Failures == 2 })
	st = s.failed(t, "app.example.com")
	if n := front.ordered(); n != 1 || time.Until(st.NextTry) < 58*time.Minute {
		t.Errorf("%d orders, next try %v", n, time.Until(st.NextTry))
	}
	s.Close()
	s = p.site(func(c *Config) { c.Store, c.Directories = store, append([]Directory{limited}, c.Directories...) })
	switched(s)
	s.Manage([]string{"app.example.com", "new.example.com"})
	if st := s.certified(t, "new.example.com"); st.Directory != p.url() {
		t.Errorf("from %s, want the second authority", st.Directory)
	}
}

func TestOnDemand(t *testing.T) {
	t.Parallel()
	p := startPebble(t, options{})
	s := p.site(func(c *Config) {
		c.OnDemand = func(name string) error {
			if strings.HasSuffix(name, ".apps.example.com") {
				return nil
			}
			return errors.New("no")
		}
	})
	p.prove(s)
	if _, err := p.firstVisit(s, "a.apps.example.com"); err != nil {
		t.Errorf("a name that may be asked for: %v", err)
	}
	if st := s.status("a.apps.example.com"); !st.OnDemand {
		t.Errorf("status %+v", st)
	}
	if _, err := p.visit("a.example.com"); err == nil {
		t.Error("a name that may not be asked for")
	}
	s.Manage([]string{"b.example.com"})
	if st := s.status("a.apps.example.com"); !st.OnDemand {
		t.Error("Manage has dropped a name that visitors ask for")
	}
	// There is a bound of how many names visitors can have ordered in a while.
	for i := range 20 {
		s.expect(fmt.Sprintf("n%d.apps.example.com", i))
	}
	s.mu.RLock()
	n := s.onDemand()
	s.mu.RUnlock()
	if n > 11 {
		t.Errorf("%d names at once", n)
	}
}

// A name below a wildcard that is wanted needs no certificate of its own.
func TestManage(t *testing.T) {
	m, err := New(Config{Store: openFiles(t, t.TempDir()), Directories: []Directory{{URL: "https://127.0.0.1:1/dir"}}})
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	names := func() (list []string) {
		for _, s := range m.Status() {
			list = append(list, s.Name)
		}
		return list
	}
	m.Manage([]string{"*.example.com", "a.example.com", "example.com", "a.b.example.com"})
	if got := fmt.Sprint(names()); got != "[*.example.com a.b.example.com example.com]" {
		t.Errorf("managed %s", got)
	}
	m.Manage(nil)
	waitFor(t, "names to be dropped", func() bool { return len(names()) == 0 })
	hello := &tls.ClientHelloInfo{ServerName: "a.example.com"}
	if c, err := m.GetCertificate(hello); c != nil || err != nil {
		t.Errorf("a name that is not managed: %v, %v", c, err)
	}
}

func TestFiles(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "acme")
	f := openFiles(t, dir)
	testStore(t, f)
	filepath.WalkDir(dir, func(path string, d os.DirEntry, err error) error {
		info, _ := d.Info()
		if info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v", path, info.Mode())
		}
		return nil
	})
	ctx, cancel := context.WithCancel(t.Context())
	if err := f.Lock(ctx, "a"); err != nil {
		t.Fatal(err)
	}
	if ok, err := f.TryLock(ctx, "a"); ok || err != nil {
		t.Errorf("TryLock of one that is held: %v, %v", ok, err)
	}
	got := make(chan error)
	go func() { got <- f.Lock(ctx, "a") }()
	f.Unlock(ctx, "a")
	if err := <-got; err != nil {
		t.Error(err)
	}
	go func() { got <- f.Lock(ctx, "a") }()
	cancel()
	if err := <-got; !errors.Is(err, context.Canceled) {
		t.Errorf("Lock without time: %v", err)
	}
}

func openFiles(t testing.TB, dir string) *Files {
	t.Helper()
	f, err := OpenFiles(dir)
	if err != nil {
		t.Fatal(err)
	}
	return f
}
