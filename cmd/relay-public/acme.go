package main

import (
	"bytes"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/acme"
	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"github.com/caddyserver/certmagic"
)

// acmeConfig is [acme]. To have it is to agree to the terms of the authorities that it names.
type acmeConfig struct {
	// Email is whom an authority may write to. It may be missing.
	Email string `toml:"email"`

	// Directory is the authority: "letsencrypt", which is the default, "staging" (of Let's Encrypt, for
	// trials), "zerossl", or the https:// URL of an ACME directory; or a list, of which the next is asked
	// when one fails.
	Directory daemon.Strings `toml:"directory"`

	// DirectoryCA is a PEM file of authorities that are trusted, besides the system's, when a Directory is
	// talked to.
	DirectoryCA string `toml:"directory_ca"`

	// EABKid and EABHMACFile bind the account to one that the authority has already: the key's name, and a
	// file with the key in base64url. With several directories they are lists, with "" for those without.
	EABKid      daemon.Strings `toml:"eab_kid"`
	EABHMACFile daemon.Strings `toml:"eab_hmac_file"`

	// Profile is the kind of certificate, such as "shortlived", of those that the authority offers. With
	// several directories it may be a list.
	Profile daemon.Strings `toml:"profile"`

	// Challenges are how the relay may prove that a name is its own: "http-01" (on listen.http, which has to
	// be reached on port 80), "tls-alpn-01" (on listen.https, on port 443) and "dns-01" (see DNS). The
	// default is the first two.
	Challenges []string `toml:"challenges"`

	// Names are further names to have certificates for, such as "*.example.com", which is then for all hosts
	// right below it. Wildcards need DNS.
	Names []string `toml:"names"`

	// DNS sets records, for dns-01 and for wildcards.
	DNS acmeDNSConfig `toml:"dns"`

	// Store is where certificates are kept if relays share them: redis://HOST:PORT/DB, rediss:// with TLS,
	// or unix:///PATH?db=DB. The default is a folder in State. With it State has copies, for when the server
	// does not answer.
	Store string `toml:"store"`

	// StorePasswordFile has the password of the server, if it wants one.
	StorePasswordFile string `toml:"store_password_file"`

	// StoreKey is a file with 64 hexadecimal digits, as `openssl rand -hex 32` makes them, that seal what is
	// in Store. All relays have the same.
	StoreKey string `toml:"store_key"`
}

// acmeDNSConfig is [acme.dns]: either Server or Exec.
type acmeDNSConfig struct {
	// Server is the primary server of the zones, HOST:PORT, which takes dynamic updates (RFC 2136).
	Server string `toml:"server"`

	// KeyName, KeyAlgorithm ("hmac-sha256", which is the default, or "hmac-sha512") and KeyFile (the secret
	// in base64) sign them.
	KeyName      string `toml:"key_name"`
	KeyAlgorithm string `toml:"key_algorithm"`
	KeyFile      string `toml:"key_file"`

	// Exec is a program that sets and removes a record. ExecTimeout bounds a call of it; the default is "2m".
	Exec        string          `toml:"exec"`
	ExecTimeout daemon.Duration `toml:"exec_timeout"`

	// Resolvers, HOST:PORT, are asked for zones, and whether a record has arrived. The default is the
	// system's, and the servers of the zone.
	Resolvers []string `toml:"resolvers"`

	// PropagationDelay is waited before anybody asks. PropagationTimeout is how long a record may take; the
	// default is "2m", and "0s" has nobody look.
	PropagationDelay   daemon.Duration `toml:"propagation_delay"`
	PropagationTimeout daemon.Duration `toml:"propagation_timeout"`

	// Override is the name whose record is set instead of _acme-challenge.NAME, which has to be a CNAME for it.
	Override string `toml:"override"`
}

// acmeSettings are the values that [acme] stands for.
type acmeSettings struct {
	directories []acme.Directory
	challenges  []string
	names       []string
	dns         *acme.DNS
	store       string
	password    string
	key         []byte
	text        any // what they were made of, to be compared
}

// check completes the settings and reads the files they name.
func (c *acmeConfig) check(f *daemon.File, dir string, hasHTTP bool) *acmeSettings {
	s := &acmeSettings{challenges: c.Challenges, names: c.Names, store: c.Store}
	read := func(at, name string) string {
		if name == "" {
			return ""
		}
		b, err := os.ReadFile(inDir(dir, name))
		if err != nil {
			f.Addf(at, "%s: %v", at, err)
		}
		return string(bytes.TrimSpace(b))
	}
	c.checkDirectories(f, dir, s, read)
	if s.challenges == nil {
		s.challenges = []string{acme.TLSALPN01}
		if hasHTTP {
			s.challenges = []string{acme.HTTP01, acme.TLSALPN01}
		}
	}
	if f.Has("acme.dns") {
		s.dns = c.DNS.check(f, dir, read)
	}
	for i, kind := range s.challenges {
		at := fmt.Sprintf("acme.challenges[%d]", i)
		switch {
		case kind == acme.HTTP01 && !hasHTTP:
			f.Addf(at, "challenge http-01: listen.http is empty, so there is nobody to answer")
		case kind == acme.DNS01 && s.dns == nil:
			f.Addf(at, "challenge dns-01: [acme.dns] is missing, which says how to set records")
		case kind != acme.HTTP01 && kind != acme.TLSALPN01 && kind != acme.DNS01:
			f.Addf(at, "challenge %q: want \"http-01\", \"tls-alpn-01\" or \"dns-01\"", kind)
		}
	}
	if len(s.challenges) == 0 {
		f.Addf("acme.challenges", "challenges is empty: there would be no way to prove anything")
	}
	for i, name := range s.names {
		at := fmt.Sprintf("acme.names[%d]", i)
		if p, err := relay.ParsePattern("https://" + name); err != nil || p.Host != name || p.Path != "/" {
			f.Addf(at, "name %q: want a host name in lower case, or a wildcard such as \"*.example.com\"", name)
		} else if strings.HasPrefix(name, "*.") && s.dns == nil {
			f.Addf(at, "name %q: a wildcard is proved by a record: [acme.dns] is missing, which says how to set one", name)
		}
	}
	switch {
	case c.Store != "":
		if c.StoreKey == "" {
			f.Addf("acme.store", "store without store_key: a file with what `openssl rand -hex 32` prints, the same at all relays")
			break
		}
		text := read("acme.store_key", c.StoreKey)
		key, err := hex.DecodeString(text)
		if text != "" && (err != nil || len(key) != acme.StoreKeySize) {
			f.Addf("acme.store_key", "store_key: %s has no %d hexadecimal digits, as `openssl rand -hex %d` prints them", c.StoreKey, 2*acme.StoreKeySize, acme.StoreKeySize)
			break
		}
		s.key, s.password = key, read("acme.store_password_file", c.StorePasswordFile)
		if text == "" {
			break
		}
		if r, err := acme.OpenRedis(s.store, s.password, s.key); err != nil {
			f.Addf("acme.store", "store: %v", err)
		} else {
			r.Close()
		}
	case c.StoreKey != "" || c.StorePasswordFile != "":
		f.Addf("acme", "[acme] has a store_key or store_password_file and no store")
	}
	s.text = []any{*c, s.directoriesText(), s.password, s.key}
	return s
}

// directoriesText is what is to be compared of the directories: the secrets, which are in files.
func (s *acmeSettings) directoriesText() (list []string) {
	for _, d := range s.directories {
		if d.EAB != nil {
			list = append(list, d.EAB.HMAC)
		}
	}
	return list
}

func (c *acmeConfig) checkDirectories(f *daemon.File, dir string, s *acmeSettings, read func(at, name string) string) {
	names := c.Directory
	if names == nil {
		names = []string{"letsencrypt"}
	}
	if len(names) == 0 {
		f.Addf("acme.directory", "directory is empty")
	}
	var roots *x509.CertPool
	if c.DirectoryCA != "" {
		if text := read("acme.directory_ca", c.DirectoryCA); text != "" {
			var err error
			if roots, err = x509.SystemCertPool(); err != nil {
				roots = x509.NewCertPool()
			}
			if !roots.AppendCertsFromPEM([]byte(text)) {
				f.Addf("acme.directory_ca", "directory_ca: %s has no certificate in PEM", c.DirectoryCA)
			}
		}
	}
	for _, l := range []struct {
		at   string
		list daemon.Strings
	}{{"acme.eab_kid", c.EABKid}, {"acme.eab_hmac_file", c.EABHMACFile}} {
		if n := len(l.list); n != 0 && n != len(names) {
			f.Addf(l.at, "%s has %d values for %d directories: want one for each, \"\" for none", strings.TrimPrefix(l.at, "acme."), n, len(names))
			return
		}
	}
	if n := len(c.Profile); n > 1 && n != len(names) {
		f.Addf("acme.profile", "profile has %d values for %d directories: want one for all, or one for each", n, len(names))
		return
	}
	if len(c.EABKid) != len(c.EABHMACFile) {
		f.Addf("acme", "eab_kid and eab_hmac_file belong together: the authority gives you both")
		return
	}
	for i, name := range names {
		at := "acme.directory"
		if len(names) > 1 {
			at = fmt.Sprintf("acme.directory[%d]", i)
		}
		url, err := acme.DirectoryURL(name)
		if err != nil {
			f.Addf(at, "%v", err)
		}
		d := acme.Directory{URL: url, Email: c.Email, Roots: roots}
		switch len(c.Profile) {
		case 0:
		case 1:
			d.Profile = c.Profile[0]
		default:
			d.Profile = c.Profile[i]
		}
		if len(c.EABKid) > 0 && c.EABKid[i] != "" {
			d.EAB = &acme.EAB{KeyID: c.EABKid[i], HMAC: read("acme.eab_hmac_file", c.EABHMACFile[i])}
		} else if url == acme.ZeroSSL {
			f.Addf(at, "directory %q wants eab_kid and eab_hmac_file, which its web site gives you", name)
		}
		s.directories = append(s.directories, d)
	}
}

func (c *acmeDNSConfig) check(f *daemon.File, dir string, read func(at, name string) string) *acme.DNS {
	d := &acme.DNS{Resolvers: c.Resolvers, Delay: time.Duration(c.PropagationDelay), Timeout: time.Duration(c.PropagationTimeout), Override: c.Override}
	if f.Has("acme.dns.propagation_timeout") && c.PropagationTimeout == 0 {
		d.Timeout = -1
	}
	for i, r := range c.Resolvers {
		if _, _, err := net.SplitHostPort(r); err != nil {
			f.Addf(fmt.Sprintf("acme.dns.resolvers[%d]", i), "resolver %q: want HOST:PORT", r)
		}
	}
	switch {
	case c.Server != "" && c.Exec != "":
		f.Addf("acme.dns", "[acme.dns] has both server and exec: one of them sets the records")
	case c.Server != "":
		if _, _, err := net.SplitHostPort(c.Server); err != nil {
			c.Server = net.JoinHostPort(c.Server, "53")
		}
		p := &acme.RFC2136{Server: c.Server, KeyName: c.KeyName, KeyAlgorithm: c.KeyAlgorithm, Secret: read("acme.dns.key_file", c.KeyFile)}
		if (c.KeyName == "") != (c.KeyFile == "") {
			f.Addf("acme.dns", "[acme.dns] key_name and key_file belong together")
		} else if err := p.Check(); err != nil {
			f.Addf("acme.dns", "[acme.dns] %v", err)
		}
		d.Provider = p
	case c.Exec != "":
		program := inDir(dir, c.Exec)
		if info, err := os.Stat(program); err != nil {
			f.Addf("acme.dns.exec", "exec: %v", err)
		} else if info.IsDir() || info.Mode()&0o111 == 0 {
			f.Addf("acme.dns.exec", "exec %s: not a program", program)
		}
		d.Provider = &acme.Hook{Program: program, Timeout: time.Duration(c.ExecTimeout), Env: os.Environ()}
	default:
		f.Addf("acme.dns", "[acme.dns] has neither a server for updates nor a program to exec")
	}
	return d
}

// certificates are what [acme] runs.
type certificates struct {
	*acme.Manager
	settings *acmeSettings
	close    func()
}

// startACME starts what [acme] asks for.
func (st *state) startACME(s *acmeSettings) (*certificates, error) {
	var cache certmagic.Storage
	store, closeStore := certmagic.Storage(st.files), func() {}
	if s.store != "" {
		r, err := acme.OpenRedis(s.store, s.password, s.key)
		if err != nil {
			return nil, fmt.Errorf("certificates: store: %w", err)
		}
		store, cache, closeStore = r, st.files, func() { r.Close() }
	}
	if s.dns != nil {
		if h, ok := s.dns.Provider.(*acme.Hook); ok {
			h.Log = st.log
		}
	}
	m, err := acme.New(acme.Config{
		Store:       store,
		Cache:       cache,
		Directories: s.directories,
		Challenges:  s.challenges,
		DNS:         s.dns,
		OnDemand:    st.onDemand,
		Fallback:    st.domain,
		Proxy:       http.ProxyFromEnvironment,
		Log:         st.log,
	})
	if err != nil {
		closeStore()
		return nil, err
	}
	return &certificates{m, s, func() { m.Close(); closeStore() }}, nil
}

// applyACME takes the [acme] of a configuration: what has not changed goes on. The old one, if any, is to be
// closed by the caller, without st.mu.
func (st *state) applyACME(s *acmeSettings) (old *certificates, err error) {
	now := st.acme.Load()
	switch {
	case s == nil && now == nil:
		return nil, nil
	case s != nil && now != nil && reflect.DeepEqual(s.text, now.settings.text):
		now.Retry()
		return nil, nil
	case s == nil:
		st.acme.Store(nil)
		return now, nil
	}
	next, err := st.startACME(s)
	if err != nil {
		return nil, err
	}
	st.acme.Store(next)
	return now, nil
}

// publishedHosts takes the hosts that are published by https now.
func (st *state) publishedHosts(hosts []string) {
	st.hosts.Store(&hosts)
	st.manage()
}

// manage has the right names certified.
func (st *state) manage() {
	c := st.acme.Load()
	if c == nil {
		return
	}
	names := append([]string{st.domain}, c.settings.names...)
	if hosts := st.hosts.Load(); hosts != nil {
		names = append(names, *hosts...)
	}
	given := st.given.Load()
	c.Manage(slices.DeleteFunc(names, func(n string) bool {
		return strings.HasPrefix(n, "*.") && c.settings.dns == nil || given != nil && covers(given, n)
	}))
}

// covers reports whether a certificate is for a name, which may be a wildcard.
func covers(c *tls.Certificate, name string) bool {
	return slices.Contains(c.Leaf.DNSNames, name) || !strings.HasPrefix(name, "*.") && c.Leaf.VerifyHostname(name) == nil
}

// onDemand lets visitors have certificates ordered for hosts of a wildcard that is published.
func (st *state) onDemand(name string) error {
	if hosts := st.hosts.Load(); hosts != nil {
		for _, h := range *hosts {
			if strings.HasPrefix(h, "*.") && relay.MatchHost(h, name) {
				return nil
			}
		}
	}
	return errors.New("nothing is published there")
}

// certificateFor is the certificate of a handshake. It may wait for one that is on its way.
func (st *state) certificateFor(hello *tls.ClientHelloInfo) (c *tls.Certificate, err error) {
	given, m := st.given.Load(), st.acme.Load()
	name := hello.ServerName
	if name == "" {
		name = st.domain
	}
	isChallenge := len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPN
	switch {
	case m == nil:
		return st.certificate.Load(), nil
	case isChallenge:
	case given != nil && covers(given, strings.ToLower(name)):
		return given, nil
	default:
		if c := m.Certificate(name); c != nil {
			return c, nil
		}
	}
	evloop.Yield(hello, func() { c, err = m.GetCertificate(hello) })
	return c, err
}

// ownCertificate is that of the domain, nil if there is none yet.
func (st *state) ownCertificate() *tls.Certificate {
	given, m := st.given.Load(), st.acme.Load()
	if m == nil || given != nil && covers(given, st.domain) {
		return st.certificate.Load()
	}
	return m.Certificate(st.domain)
}

// challenge answers an authority's HTTP-01.
func (st *state) challenge(host, path string) (string, bool) {
	if m := st.acme.Load(); m != nil {
		return m.HTTPChallenge(host, path)
	}
	return "", false
}

// challenging reports whether it may ask by TLS-ALPN-01.
func (st *state) challenging(name string) bool {
	m := st.acme.Load()
	return m != nil && m.Challenging(name)
}

// closeACME ends what startACME has started.
func (st *state) closeACME() {
	if c := st.acme.Swap(nil); c != nil {
		c.close()
	}
}

// obtained are the certificates of [acme], for operators to see.
func (st *state) obtained() []admin.Certificate {
	list := []admin.Certificate{}
	m := st.acme.Load()
	if m == nil {
		return list
	}
	at := func(t time.Time) *time.Time {
		if t.IsZero() {
			return nil
		}
		t = t.Round(time.Second)
		return &t
	}
	for _, c := range m.Status() {
		list = append(list, admin.Certificate{
			Name: c.Name, Directory: c.Directory, Issuer: c.Issuer, Expires: at(c.Expires), Renews: at(c.Renews),
			OnDemand: c.OnDemand, Ordering: c.Busy, Failures: c.Failures, Error: c.Err, NextTry: at(c.NextTry),
		})
	}
	return list
}
