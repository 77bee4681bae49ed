package auth

import (
	"bytes"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"
)

func TestKeyFile(t *testing.T) {
	file := filepath.Join(t.TempDir(), "office.key")
	pub, err := GenerateKey(file)
	if err != nil {
		t.Fatal(err)
	}
	key, err := ReadKey(file)
	if err != nil || !key.Public().(ed25519.PublicKey).Equal(pub) {
		t.Fatalf("ReadKey: %v, another key: %v", err, key != nil)
	}
	if got, err := ParsePublicKey(FormatPublicKey(pub)); err != nil || !got.Equal(pub) {
		t.Fatalf("ParsePublicKey(%q): %v", FormatPublicKey(pub), err)
	}

	// A key is never replaced.
	if _, err := GenerateKey(file); err == nil || !strings.Contains(err.Error(), "exists already") {
		t.Errorf("GenerateKey over a key: %v", err)
	}
	if runtime.GOOS != "windows" {
		info, err := os.Stat(file)
		if err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("mode %v, %v", info.Mode(), err)
		}
		os.Chmod(file, 0o640)
		if _, err := ReadKey(file); err == nil || !strings.Contains(err.Error(), "chmod 600") {
			t.Errorf("ReadKey of a file that the group may read: %v", err)
		}
	}

	for name, content := range map[string]string{
		"no PEM in it":        "hello",
		"want a \"PRIVATE":    string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE"})),
		"want an Ed25519 key": readFile(t, must(DevCA(t.TempDir(), "a")).Key),
	} {
		os.WriteFile(file, []byte(content), 0o600)
		os.Chmod(file, 0o600)
		if _, err := ReadKey(file); err == nil || !strings.Contains(err.Error(), name) {
			t.Errorf("ReadKey: %v, want %q", err, name)
		}
	}
	if _, err := ReadKey(filepath.Join(t.TempDir(), "none")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("ReadKey without a file: %v", err)
	}
	for _, s := range []string{"", "ed25519:", "rsa:AAAA", "ed25519:AA", FormatPublicKey(pub) + "=", FormatPublicKey(pub)[:50] + "\n"} {
		if _, err := ParsePublicKey(s); err == nil {
			t.Errorf("ParsePublicKey(%q) accepted", s)
		}
	}
}

// A proof holds for one key, one site and one TLS connection.
func TestLinkProof(t *testing.T) {
	pub, key, _ := ed25519.GenerateKey(nil)
	other, _, _ := ed25519.GenerateKey(nil)
	exporter, later := bytes.Repeat([]byte{1}, 32), bytes.Repeat([]byte{2}, 32)
	sig := SignLink(key, "office", exporter)
	for _, tt := range []struct {
		name     string
		pub      ed25519.PublicKey
		site     string
		exporter []byte
		want     bool
	}{
		{"as signed", pub, "office", exporter, true},
		{"another key", other, "office", exporter, false},
		{"another site", pub, "offic", exporter, false},
		{"another connection", pub, "office", later, false},
		{"no exporter", pub, "office", nil, false},
		{"no key", nil, "office", exporter, false},
	} {
		if got := VerifyLink(tt.pub, tt.site, tt.exporter, sig); got != tt.want {
			t.Errorf("%s: %v", tt.name, got)
		}
	}
}

func TestToken(t *testing.T) {
	for _, want := range []Token{
		{Secret: bytes.Repeat([]byte{7}, 32), Relay: "relay.example.com:443", Site: "office"},
		{Secret: bytes.Repeat([]byte{7}, 32), Pin: bytes.Repeat([]byte{9}, 32), Relay: "[::1]:8443", Site: "a"},
	} {
		s := want.String()
		got, err := ParseToken(" " + s + "\n")
		if err != nil || got.String() != s || got.Relay != want.Relay || !bytes.Equal(got.Pin, want.Pin) {
			t.Errorf("%s: %+v, %v", s, got, err)
		}
		for i := range s {
			if _, err := ParseToken(s[:i]); err == nil {
				t.Errorf("%s is accepted", s[:i])
			} else if len(s[:i]) > 10 && strings.Contains(err.Error(), s[4:i]) {
				t.Errorf("the error shows the token: %v", err)
			}
		}
	}
}

func FuzzToken(f *testing.F) {
	f.Add(Token{Secret: make([]byte, 32), Relay: "relay.example.com:443", Site: "office"}.String())
	f.Add(Token{Secret: make([]byte, 32), Pin: make([]byte, 32), Relay: "h:1", Site: "a"}.String())
	f.Fuzz(func(t *testing.T, s string) {
		if token, err := ParseToken(s); err == nil && token.String() != strings.TrimSpace(s) {
			t.Fatalf("%q becomes %q", s, token.String())
		}
	})
}

func testKey(t *testing.T) string {
	pub, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	return FormatPublicKey(pub)
}

func TestStore(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		s := must(OpenStore(dir))
		publish := []string{"https://*.example.com"}

		// An invited site is listed, and has no key.
		secret, expires, err := s.Invite("office", publish, 0)
		if err != nil || time.Until(expires).Round(time.Minute) != DefaultTTL {
			t.Fatalf("Invite: %v, %v", expires, err)
		}
		if l := s.Sites(); len(l) != 1 || l[0].Keys != nil || l[0].InvitedUntil != expires {
			t.Fatalf("invited: %+v", l)
		}
		// The secret is nowhere on the disk.
		if b := readFile(t, filepath.Join(dir, "sites.json")); strings.Contains(b, string(secret)) || !strings.Contains(b, `"sha256"`) {
			t.Errorf("sites.json: %s", b)
		}

		// It is redeemed once, also after a restart.
		s = must(OpenStore(dir))
		key := testKey(t)
		if got, err := s.Redeem(secret, key); err != nil || got.Name != "office" || !slices.Equal(got.Keys, []string{key}) || got.Publish[0] != publish[0] {
			t.Fatalf("Redeem: %+v, %v", got, err)
		}
		s = must(OpenStore(dir))
		if _, err := s.Redeem(secret, testKey(t)); !errors.Is(err, ErrToken) {
			t.Errorf("Redeem again: %v", err)
		}
		if l := s.Sites(); len(l) != 1 || !slices.Equal(l[0].Keys, []string{key}) || !l[0].InvitedUntil.IsZero() {
			t.Errorf("joined: %+v", l)
		}

		// A newer invitation ends the earlier one; the site stays until it joins again.
		first, _, _ := s.Invite("office", publish, time.Hour)
		second, _, _ := s.Invite("office", []string{"tcp://:22"}, time.Hour)
		if _, err := s.Redeem(first, testKey(t)); !errors.Is(err, ErrToken) {
			t.Errorf("Redeem of a replaced token: %v", err)
		}
		if l := s.Sites(); len(l) != 1 || !slices.Equal(l[0].Keys, []string{key}) || l[0].InvitedUntil.IsZero() {
			t.Errorf("invited again: %+v", l)
		}
		if _, err := s.Redeem(second, "ed25519:short"); err == nil || errors.Is(err, ErrToken) {
			t.Errorf("Redeem for a malformed key: %v", err)
		}
		rotated := testKey(t)
		if got, err := s.Redeem(second, rotated); err != nil || got.Publish[0] != "tcp://:22" {
			t.Fatalf("Redeem for a new key: %+v, %v", got, err)
		}

		// Tokens expire.
		late, _, _ := s.Invite("lab", publish, time.Hour)
		time.Sleep(time.Hour)
		if _, err := s.Redeem(late, testKey(t)); !errors.Is(err, ErrToken) {
			t.Errorf("Redeem of an expired token: %v", err)
		}
		if l := s.Sites(); len(l) != 1 || !slices.Equal(l[0].Keys, []string{rotated}) {
			t.Errorf("expired: %+v", l)
		}

		// A revoked site is remembered as such, until it joins again.
		if err := s.Revoke("office", ""); err != nil {
			t.Fatal(err)
		}
		if l := must(OpenStore(dir)).Sites(); len(l) != 1 || !slices.Equal(l[0].Revoked, []string{rotated}) || l[0].Keys != nil {
			t.Errorf("revoked: %+v", l)
		}
		if err := s.Revoke("nobody", ""); !errors.Is(err, ErrUnknownSite) {
			t.Errorf("Revoke of an unknown site: %v", err)
		}
		secret, _, _ = s.Invite("office", publish, 0)
		s.Redeem(secret, key)
		if l := s.Sites(); len(l) != 1 || l[0].Revoked != nil {
			t.Errorf("joined again: %+v", l)
		}
		if runtime.GOOS != "windows" {
			if info, _ := os.Stat(filepath.Join(dir, "sites.json")); info.Mode().Perm() != 0o600 {
				t.Errorf("mode %v", info.Mode())
			}
		}
	})
}

// A site has a key for each of its private relays. A token for a stand-by adds one, any
// other token replaces them all; each is revoked by itself.
func TestStandbyKeys(t *testing.T) {
	dir := t.TempDir()
	s := must(OpenStore(dir))
	if _, _, err := s.InviteStandby("office", 0); !errors.Is(err, ErrUnknownSite) {
		t.Errorf("a stand-by of nobody: %v", err)
	}
	first, second, third, fourth := testKey(t), testKey(t), testKey(t), testKey(t)
	secret, _, _ := s.Invite("office", []string{"tcp://:22"}, 0)
	if _, _, err := s.InviteStandby("office", 0); !errors.Is(err, ErrUnknownSite) {
		t.Errorf("a stand-by of a site that has not joined: %v", err)
	}
	s.Redeem(secret, first)

	// Two tokens are out at once; each adds a key, and leaves what the site may publish.
	a, _, err := s.InviteStandby("office", 0)
	if err != nil {
		t.Fatal(err)
	}
	b, _, _ := s.InviteStandby("office", 0)
	s = must(OpenStore(dir))
	for i, redeem := range []struct {
		secret []byte
		key    string
	}{{a, second}, {b, third}} {
		got, err := s.Redeem(redeem.secret, redeem.key)
		if err != nil || len(got.Keys) != i+2 || got.Keys[i+1] != redeem.key || !slices.Equal(got.Publish, []string{"tcp://:22"}) {
			t.Errorf("redeem %d: %+v, %v", i, got, err)
		}
	}
	if _, err := s.Redeem(a, fourth); !errors.Is(err, ErrToken) {
		t.Errorf("a token that was used: %v", err)
	}

	if err := s.Revoke("office", fourth); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("revoke of a key that it does not have: %v", err)
	}
	if err := s.Revoke("lab", first); !errors.Is(err, ErrUnknownSite) {
		t.Errorf("revoke of a key of nobody: %v", err)
	}
	if err := s.Revoke("office", first); err != nil {
		t.Error(err)
	}
	if err := s.Revoke("office", first); !errors.Is(err, ErrUnknownKey) {
		t.Errorf("revoke again: %v", err)
	}
	l := must(OpenStore(dir)).Sites()
	if !slices.Equal(l[0].Keys, []string{second, third}) || !slices.Equal(l[0].Revoked, []string{first}) {
		t.Errorf("after a revoke: %+v", l)
	}

	// A key that was revoked comes back by a token.
	again, _, _ := s.InviteStandby("office", 0)
	if got, err := s.Redeem(again, first); err != nil || got.Revoked != nil || !slices.Equal(got.Keys, []string{second, third, first}) {
		t.Errorf("a revoked key again: %+v, %v", got, err)
	}

	// There is a bound, tokens included.
	n := len(s.Sites()[0].Keys)
	for ; n < MaxKeys; n++ {
		if _, _, err := s.InviteStandby("office", 0); err != nil {
			t.Fatal(err)
		}
	}
	if _, _, err := s.InviteStandby("office", 0); !errors.Is(err, ErrTooManyKeys) {
		t.Errorf("one too many: %v", err)
	}

	// The last key that goes takes the tokens along.
	for _, key := range []string{first, second, third} {
		if err := s.Revoke("office", key); err != nil {
			t.Error(err)
		}
	}
	if l := s.Sites(); l[0].Keys != nil || len(l[0].Revoked) != 3 || !l[0].InvitedUntil.IsZero() {
		t.Errorf("without keys: %+v", l)
	}

	// An ordinary token begins anew.
	secret, _, _ = s.Invite("office", nil, 0)
	if got, err := s.Redeem(secret, fourth); err != nil || !slices.Equal(got.Keys, []string{fourth}) || got.Revoked != nil {
		t.Errorf("joined anew: %+v, %v", got, err)
	}
	// What is remembered of revoked keys is bounded.
	for range 2 * MaxKeys {
		secret, _, err := s.InviteStandby("office", 0)
		if err != nil {
			t.Fatal(err)
		}
		key := testKey(t)
		if _, err := s.Redeem(secret, key); err != nil {
			t.Fatal(err)
		}
		s.Revoke("office", key)
	}
	if l := s.Sites(); len(l[0].Revoked) != MaxKeys || !slices.Equal(l[0].Keys, []string{fourth}) {
		t.Errorf("%d revoked keys, keys %v", len(l[0].Revoked), l[0].Keys)
	}
}

// A file of a version that knew one key a site is read, and written as it is now.
func TestStoreOneKey(t *testing.T) {
	dir, key, gone := t.TempDir(), testKey(t), testKey(t)
	old := `{"sites":[{"name":"lab","key":"` + gone + `","publish":["tcp://:22"],"joined":"2026-01-02T03:04:05Z","revoked":true},` +
		`{"name":"office","key":"` + key + `","publish":["tcp://:23"],"joined":"2026-01-02T03:04:05Z"}],"invitations":[]}`
	if err := os.WriteFile(filepath.Join(dir, "sites.json"), []byte(old), 0o600); err != nil {
		t.Fatal(err)
	}
	s := must(OpenStore(dir))
	check := func(s *Store) {
		t.Helper()
		l := s.Sites()
		if len(l) != 2 || l[0].Keys != nil || !slices.Equal(l[0].Revoked, []string{gone}) ||
			!slices.Equal(l[1].Keys, []string{key}) || l[1].Revoked != nil || l[1].Publish[0] != "tcp://:23" {
			t.Errorf("sites: %+v", l)
		}
	}
	check(s)
	if _, _, err := s.Invite("new", nil, 0); err != nil {
		t.Fatal(err)
	}
	b := readFile(t, filepath.Join(dir, "sites.json"))
	if !strings.Contains(b, `"joined": "2026-01-02T03:04:05Z"`) || strings.Count(b, `"key": `) != 2 || strings.Count(b, `"keys": `) != 2 {
		t.Errorf("sites.json: %s", b)
	}
	if err := s.Revoke("new", ""); err != nil {
		t.Fatal(err)
	}
	check(must(OpenStore(dir)))
}

// Of many that redeem one token, one joins.
func TestRedeemRace(t *testing.T) {
	s := must(OpenStore(t.TempDir()))
	secret, _, err := s.Invite("office", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	joined := make(chan string, 8)
	for range cap(joined) {
		key := testKey(t)
		wg.Go(func() {
			if _, err := s.Redeem(secret, key); err == nil {
				joined <- key
			}
		})
	}
	wg.Wait()
	if l := s.Sites(); len(joined) != 1 || !slices.Equal(l[0].Keys, []string{<-joined}) {
		t.Errorf("%d have joined", len(joined))
	}
}

// What cannot be written has not happened.
func TestStoreUnwritable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "state")
	os.Mkdir(dir, 0o700)
	s := must(OpenStore(dir))
	secret, _, err := s.Invite("office", nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	os.RemoveAll(dir)
	if _, err := s.Redeem(secret, testKey(t)); err == nil || errors.Is(err, ErrToken) {
		t.Errorf("Redeem without a folder: %v", err)
	}
	if l := s.Sites(); len(l) != 1 || l[0].Keys != nil {
		t.Errorf("the site has joined: %+v", l)
	}
	os.Mkdir(dir, 0o700)
	os.WriteFile(filepath.Join(dir, "sites.json"), []byte("{"), 0o600)
	if _, err := OpenStore(dir); err == nil || !strings.Contains(err.Error(), "sites.json") {
		t.Errorf("OpenStore of a damaged file: %v", err)
	}
}

func TestAdminToken(t *testing.T) {
	dir := t.TempDir()
	a := must(OpenAdminToken(dir))
	file := filepath.Join(dir, "admin.token")
	token := strings.TrimSpace(readFile(t, file))
	again := must(OpenAdminToken(dir))
	if !a.Matches(token) || !again.Matches(token) || a.Matches(token+"x") || a.Matches("") {
		t.Error("Matches")
	}
	os.WriteFile(file, []byte("\n"), 0o600)
	if _, err := OpenAdminToken(dir); err == nil {
		t.Error("an empty token is accepted")
	}
}

// handshake connects a client to a server with a certificate of c.
func handshake(t *testing.T, c Certificates, client *tls.Config) error {
	t.Helper()
	pair, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	a, b := net.Pipe()
	defer a.Close()
	defer b.Close()
	deadline := time.Now().Add(time.Minute)
	a.SetDeadline(deadline)
	b.SetDeadline(deadline)
	served := make(chan struct{})
	server := tls.Server(b, &tls.Config{Certificates: []tls.Certificate{pair}})
	go func() { defer close(served); server.Handshake() }()
	defer func() { a.Close(); <-served }()
	return tls.Client(a, client).Handshake()
}

func TestDevCA(t *testing.T) {
	dir := t.TempDir()
	c := must(DevCA(dir, "relay.example.com", "*.example.com", "127.0.0.1", "::1"))
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM([]byte(readFile(t, c.CA)))
	for name, ok := range map[string]bool{"relay.example.com": true, "app.example.com": true, "127.0.0.1": true, "::1": true, "example.org": false} {
		if err := handshake(t, c, &tls.Config{ServerName: name, RootCAs: roots}); (err == nil) != ok {
			t.Errorf("%s: %v", name, err)
		}
	}

	// It is reused while it covers the names, and the authority stays when it does not.
	before, ca := readFile(t, c.Certificate), readFile(t, c.CA)
	must(DevCA(dir, "*.example.com"))
	if readFile(t, c.Certificate) != before {
		t.Error("a good certificate was replaced")
	}
	must(DevCA(dir, "*.example.com", "localhost"))
	if readFile(t, c.Certificate) == before || readFile(t, c.CA) != ca {
		t.Error("want a new certificate of the same authority")
	}
	if runtime.GOOS != "windows" {
		for _, f := range []string{"ca.key", "key.pem"} {
			if info, _ := os.Stat(filepath.Join(dir, f)); info.Mode().Perm() != 0o600 {
				t.Errorf("%s: mode %v", f, info.Mode())
			}
		}
	}
	pair := must(tls.LoadX509KeyPair(c.Certificate, c.Key))
	if life := time.Until(pair.Leaf.NotAfter); life > certLife || life < certLife-24*time.Hour {
		t.Errorf("the certificate lives for %v", life)
	}
	if _, err := DevCA(dir); err == nil {
		t.Error("a certificate without names is made")
	}
}

func TestPinnedTLS(t *testing.T) {
	c := must(DevCA(t.TempDir(), "relay.example.com", "127.0.0.1"))
	other := must(DevCA(t.TempDir(), "relay.example.com"))

	cfg, ca := PinnedTLS(c.Pin, "relay.example.com")
	if err := handshake(t, c, cfg); err != nil {
		t.Fatal(err)
	}
	if string(ca()) != readFile(t, c.CA) {
		t.Error("ca is not ca.pem")
	}
	cfg, _ = PinnedTLS(c.Pin, "127.0.0.1")
	if err := handshake(t, c, cfg); err != nil {
		t.Errorf("by address: %v", err)
	}

	// An authority that another one has signed may be pinned, too.
	mid := c
	top := must(DevCA(t.TempDir(), "top"))
	topPair := must(tls.LoadX509KeyPair(top.CA, strings.TrimSuffix(top.CA, ".pem")+".key"))
	midPair := must(tls.LoadX509KeyPair(c.CA, strings.TrimSuffix(c.CA, ".pem")+".key"))
	signed := must(x509.CreateCertificate(rand.Reader, midPair.Leaf, topPair.Leaf, midPair.Leaf.PublicKey, topPair.PrivateKey))
	mid.Certificate = filepath.Join(t.TempDir(), "cert.pem")
	leaf, _ := pem.Decode([]byte(readFile(t, c.Certificate)))
	os.WriteFile(mid.Certificate, append(pem.EncodeToMemory(leaf), pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: signed})...), 0o600)
	cfg, _ = PinnedTLS(c.Pin, "relay.example.com")
	if err := handshake(t, mid, cfg); err != nil {
		t.Errorf("an intermediate authority: %v", err)
	}

	// Another name, and another authority, fail.
	cfg, ca = PinnedTLS(c.Pin, "example.org")
	if err := handshake(t, c, cfg); !errors.As(err, new(x509.HostnameError)) || ca() != nil {
		t.Errorf("another name: %v", err)
	}
	cfg, ca = PinnedTLS(c.Pin, "relay.example.com")
	if err := handshake(t, other, cfg); err == nil || ca() != nil {
		t.Errorf("another authority: %v", err)
	}

	// The authority in the chain of a certificate that it has not signed is not enough.
	mixed := other
	mixed.Certificate = filepath.Join(t.TempDir(), "cert.pem")
	own, _ := pem.Decode([]byte(readFile(t, other.Certificate)))
	os.WriteFile(mixed.Certificate, append(pem.EncodeToMemory(own), readFile(t, c.CA)...), 0o600)
	cfg, ca = PinnedTLS(c.Pin, "relay.example.com")
	if err := handshake(t, mixed, cfg); err == nil || ca() != nil {
		t.Errorf("a certificate that the authority has not signed: %v", err)
	}
}

func readFile(t *testing.T, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func must[T any](v T, err error) T {
	if err != nil {
		panic(err)
	}
	return v
}

// A secret is made once, for its owner's eyes, and a broken one is not taken for one.
func TestSecret(t *testing.T) {
	dir := t.TempDir()
	a, err := OpenSecret(dir, "x.secret")
	if err != nil || len(a) != 32 {
		t.Fatal(a, err)
	}
	if b, err := OpenSecret(dir, "x.secret"); err != nil || !bytes.Equal(a, b) {
		t.Errorf("%x, then %x, %v", a, b, err)
	}
	file := filepath.Join(dir, "x.secret")
	if info, err := os.Stat(file); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Error(info, err)
	}
	os.WriteFile(file, a[:31], 0o600)
	if _, err := OpenSecret(dir, "x.secret"); err == nil {
		t.Error("31 bytes taken for a secret")
	}
}
