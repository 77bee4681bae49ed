// Package acmetoml reads the [acme] table of a configuration file, as far as both relays have the same: who certifies,
// how records are set, and where certificates are kept.
//
//	type config struct {
//		ACME acmetoml.Config `toml:"acme"`
//	}
//	…
//	settings := c.ACME.Check(f, dir) // in the check of daemon.ReadFile
//	store, err := settings.Open(files)
//	m, err := acme.New(acme.Config{Store: store.Storage, Cache: store.Cache, Directories: settings.Directories, DNS: settings.DNS})
//
// Invariant: every mistake goes to the file, with its place; what Check returns then is not to be used.
package acmetoml

import (
	"bytes"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"net"
	"os"
	"reflect"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"

	"culvert.dev/pkg/acme"
	"culvert.dev/pkg/daemon"
)

// Config is [acme]. To have it is to agree to the terms of the authorities that it names.
type Config struct {
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

	// DNS sets records, for dns-01 and for wildcards.
	DNS DNSConfig `toml:"dns"`

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

// DNSConfig is [acme.dns]: either Server or Exec.
type DNSConfig struct {
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

// Settings are the values that [acme] stands for.
type Settings struct {
	Directories []acme.Directory
	DNS         *acme.DNS // nil without [acme.dns]; a Hook still needs its Log and Env

	store    string
	password string
	key      []byte
	text     []any // what they were made of
}

// Equal reports whether s and o were made of the same, secrets in files included.
func (s *Settings) Equal(o *Settings) bool { return reflect.DeepEqual(s.text, o.text) }

// Check checks the table and reads the files that it names, which are in dir.
func (c *Config) Check(f *daemon.File, dir string) *Settings {
	s := &Settings{store: c.Store}
	read := func(at, name string) string {
		if name == "" {
			return ""
		}
		b, err := os.ReadFile(daemon.InDir(dir, name))
		if err != nil {
			f.Addf(at, "%s: %v", at, err)
		}
		return string(bytes.TrimSpace(b))
	}
	c.checkDirectories(f, dir, s, read)
	if f.Has("acme.dns") {
		s.DNS = c.DNS.check(f, dir, read)
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
	s.text = []any{*c, s.password, s.key}
	for _, d := range s.Directories {
		s.text = append(s.text, d.EAB)
	}
	return s
}

func (c *Config) checkDirectories(f *daemon.File, dir string, s *Settings, read func(at, name string) string) {
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
		s.Directories = append(s.Directories, d)
	}
}

func (c *DNSConfig) check(f *daemon.File, dir string, read func(at, name string) string) *acme.DNS {
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
		program := daemon.InDir(dir, c.Exec)
		if info, err := os.Stat(program); err != nil {
			f.Addf("acme.dns.exec", "exec: %v", err)
		} else if info.IsDir() || info.Mode()&0o111 == 0 {
			f.Addf("acme.dns.exec", "exec %s: not a program", program)
		}
		d.Hook = &acme.Hook{Program: program, Timeout: time.Duration(c.ExecTimeout)}
	default:
		f.Addf("acme.dns", "[acme.dns] has neither a server for updates nor a program to exec")
	}
	return d
}

// Store is where certificates are kept.
type Store struct {
	certmagic.Storage
	Cache certmagic.Storage // for acme.Config; nil: none
	Close func()
}

// Open opens the store, with files for what there is on this machine.
func (s *Settings) Open(files *acme.Files) (*Store, error) {
	if s.store == "" {
		return &Store{Storage: files, Close: func() {}}, nil
	}
	r, err := acme.OpenRedis(s.store, s.password, s.key)
	if err != nil {
		return nil, fmt.Errorf("certificates: store: %w", err)
	}
	return &Store{Storage: r, Cache: files, Close: func() { r.Close() }}, nil
}
