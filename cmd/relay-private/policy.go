package main

import (
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay"
)

// policyConfig is what a [[service]] demands of its visitors. The public relay sees to it, before anything
// reaches the site. tcp://, udp:// and tls:// services have Allow, Deny, MaxConnections and ConnectionRate
// alone. Operators, who come by `tunnelctl forward`, are not visitors.
type policyConfig struct {
	// Allow has the addresses and prefixes that visitors may come from, such as "192.0.2.0/24",
	// "2001:db8::/32" or "198.51.100.7". If missing, everybody may.
	Allow daemon.Strings `toml:"allow"`

	// Deny has those that they may not come from, whatever Allow says.
	Deny daemon.Strings `toml:"deny"`

	// MaxConnections is how many visitors there may be at a time: connections, flows, or of HTTP requests
	// under way and WebSockets. One address may have as many as are still free, so one alone gets half.
	MaxConnections int `toml:"max_connections"`

	// ConnectionRate is how many new connections or flows one address (for IPv6, one /64) may make: "100/s",
	// "20/m", "1000/h". All of them may come at once, unless it says otherwise: "20/m burst 5".
	ConnectionRate relay.Rate `toml:"connection_rate"`

	// RequestRate is the same for requests.
	RequestRate relay.Rate `toml:"request_rate"`

	// Methods are those that requests may have; HEAD may be used where GET may. If missing, all.
	Methods daemon.Strings `toml:"methods"`

	// MaxBody bounds the body of a request: "10MB", "64KiB", or a number of bytes.
	MaxBody daemon.Size `toml:"max_body"`

	// ClientCA is a PEM file with the authorities of client certificates: visitors need one from them. The
	// target is told whose it is by X-Client-Cert-Subject, X-Client-Cert-Fingerprint and Client-Cert. Of a tls://
	// service whose TLS ends at this relay it may be one too; its target is told nothing.
	ClientCA string `toml:"client_ca"`

	// Users are names and hashes of passwords, as `tunnelctl password` prints them: visitors need one of
	// them. The target is told the name by X-Remote-User, and does not see the password.
	Users map[string]string `toml:"users"`

	// UsersFile is a file with more of them, a line NAME:HASH each, as Apache's `htpasswd -B` makes it. It is
	// read again on SIGHUP, and must not be readable by everybody.
	UsersFile string `toml:"users_file"`

	// RequestHeaders and ResponseHeaders change what goes to the target, and to the visitor.
	RequestHeaders  headerConfig `toml:"request_headers"`
	ResponseHeaders headerConfig `toml:"response_headers"`

	// HSTS has browsers use https alone for that long, such as "180d" or "8760h". "; includeSubDomains" behind
	// it has them do so for all names below this one too, whoever serves them.
	HSTS string `toml:"hsts"`

	// Redirect sends visitors in the clear to https. The default is true; with false they find nothing,
	// unless another service is published there by http://.
	Redirect bool `toml:"redirect"`
}

// headerConfig is what is done to the fields of a head, in this order.
type headerConfig struct {
	// Remove has names of fields that do not go on.
	Remove []string `toml:"remove"`

	// Set has fields that replace those of their name.
	Set map[string]string `toml:"set"`

	// Add has fields that come beside those of their name.
	Add map[string]string `toml:"add"`
}

// policy reads what c demands of visitors of a service that is published by scheme. Mistakes go to f; at is the
// service there. If the TLS of visitors ends at this relay, so does the proof of who they are.
func (c *policyConfig) policy(f *daemon.File, at, dir, scheme string, endsHere bool) *relay.Policy {
	p := &relay.Policy{
		MaxConnections: c.MaxConnections, ConnectionRate: c.ConnectionRate, RequestRate: c.RequestRate,
		Methods: c.Methods, MaxBody: int64(c.MaxBody), Users: make(map[string]string),
		NoRedirect:      f.Has(at+".redirect") && !c.Redirect,
		RequestHeaders:  c.RequestHeaders.rules(),
		ResponseHeaders: c.ResponseHeaders.rules(),
	}
	p.Allow = prefixes(f, at+".allow", c.Allow)
	p.Deny = prefixes(f, at+".deny", c.Deny)
	for _, none := range []struct {
		key   string
		empty bool
		what  string
	}{
		{"allow", len(c.Allow) == 0, "is empty, so nobody could come in: leave it out if everybody may"},
		{"methods", len(c.Methods) == 0, "is empty, so nothing could be asked for: leave it out if everything may"},
		{"users", len(c.Users) == 0, "is empty, so nobody could come in: leave it out if no password is needed"},
		{"max_connections", c.MaxConnections == 0, "is 0, so nobody could come in: leave it out for no bound"},
		{"max_body", c.MaxBody == 0, "is 0: leave it out for no bound, or name the methods that have no body"},
		{"client_ca", c.ClientCA == "", "is empty: name a PEM file, or leave it out if no certificate is needed"},
		{"users_file", c.UsersFile == "", "is empty: name a file, or leave it out if no password is needed"},
	} {
		if none.empty && f.Has(at+"."+none.key) {
			f.Addf(at+"."+none.key, "%s %s", none.key, none.what)
		}
	}
	if c.ClientCA != "" && !endsHere {
		b, err := readBounded(daemon.InDir(dir, c.ClientCA), relay.MaxClientCA)
		if err != nil {
			f.Addf(at+".client_ca", "client_ca: %v", err)
		} else if p.ClientCA = string(b); p.ClientCA == "" {
			f.Addf(at+".client_ca", "client_ca: %s is empty", c.ClientCA)
		}
	}
	for name, hash := range c.Users {
		h, err := auth.ParsePasswordHash(hash)
		if err != nil {
			f.Addf(at+".users."+name, "user %q: %v", name, err)
			continue
		}
		if h.HA1("MD5") != "" {
			keepSecret(f, at+".users."+name, "a Digest hash is as good as a password")
		}
		p.Users[name] = hash
	}
	if c.UsersFile != "" {
		c.readUsers(f, at, daemon.InDir(dir, c.UsersFile), p.Users)
	}
	hashes := make(map[string]auth.PasswordHash, len(p.Users))
	for name, hash := range p.Users {
		if h, err := auth.ParsePasswordHash(hash); err == nil {
			hashes[name] = h
		}
	}
	if _, err := auth.Realm(hashes); err != nil {
		f.Addf(at+".users", "users: %v: make it anew with `tunnelctl password --digest NAME`", err)
	}
	if c.HSTS != "" {
		h, err := parseHSTS(c.HSTS)
		if err != nil {
			f.Addf(at+".hsts", "%v", err)
		}
		p.HSTS = h
	}
	if p.Equal(&relay.Policy{}) {
		return nil
	}
	err := p.Validate(scheme)
	if e, ok := errors.AsType[*relay.PolicyError](err); ok {
		f.Addf(at+"."+e.Key, "%v", e)
		return nil
	}
	return p
}

func (h headerConfig) rules() relay.HeaderRules {
	return relay.HeaderRules{Set: h.Set, Add: h.Add, Remove: h.Remove}
}

// prefixes reads a list of addresses and prefixes.
func prefixes(f *daemon.File, at string, list []string) (all []netip.Prefix) {
	for i, text := range list {
		p, err := netip.ParsePrefix(text)
		if a, addrErr := netip.ParseAddr(text); addrErr == nil {
			p, err = a.Prefix(a.BitLen())
		}
		switch {
		case err != nil || p.Addr().Zone() != "":
			err = errors.New("want an address or a prefix, such as \"192.0.2.0/24\" or \"2001:db8::/32\"")
		case p.Addr().Is4In6():
			err = errors.New("write an IPv4 address as one")
		case p != p.Masked():
			err = fmt.Errorf("has bits behind its length: did you mean %s?", p.Masked())
		}
		if err != nil {
			where := fmt.Sprintf("%s[%d]", at, i)
			if !f.Has(where) {
				where = at
			}
			f.Addf(where, "%q: %v", text, err)
			continue
		}
		all = append(all, p)
	}
	return all
}

const maxUsersFile = 1 << 20

// readUsers adds the users of a file.
func (c *policyConfig) readUsers(f *daemon.File, at, name string, users map[string]string) {
	b, err := readBounded(name, maxUsersFile)
	if err != nil {
		f.Addf(at+".users_file", "users_file: %v", err)
		return
	}
	if info, err := os.Stat(name); err == nil && info.Mode().Perm()&0o004 != 0 && runtime.GOOS != "windows" {
		f.Addf(at+".users_file", "users_file: everybody may read %s, and try passwords at leisure: run chmod o-r %s", name, name)
	}
	list, err := auth.ParseHtpasswd(b)
	if err != nil {
		f.Addf(at+".users_file", "users_file: %s, %v", name, err)
		return
	}
	if len(list) == 0 {
		f.Addf(at+".users_file", "users_file: there is nobody in %s, so nobody could come in: `tunnelctl password NAME` makes a line", name)
	}
	for user, hash := range list {
		if _, ok := users[user]; ok {
			f.Addf(at+".users_file", "users_file: %s has user %q, who is in users too", name, user)
		}
		users[user] = hash
	}
}

// readBounded reads a file that a path given by mistake is not.
func readBounded(name string, limit int64) ([]byte, error) {
	info, err := os.Stat(name)
	switch {
	case err != nil:
		return nil, err
	case !info.Mode().IsRegular() && info.Mode().Type() != fs.ModeNamedPipe:
		return nil, fmt.Errorf("%s is not a file", name)
	case info.Size() > limit:
		return nil, fmt.Errorf("%s has %d bytes, more than %d", name, info.Size(), limit)
	}
	return os.ReadFile(name)
}

// parseHSTS reads "180d", or a duration of Go, and perhaps "; includeSubDomains".
func parseHSTS(s string) (*relay.HSTS, error) {
	text, rest, more := strings.Cut(s, ";")
	h := &relay.HSTS{IncludeSubDomains: strings.EqualFold(strings.TrimSpace(rest), "includeSubDomains")}
	text = strings.TrimSpace(text)
	day := time.Duration(0)
	if digits, ok := strings.CutSuffix(text, "d"); ok {
		text, day = digits+"h", 24
	}
	d, err := time.ParseDuration(text)
	if day != 0 {
		if d > relay.MaxHSTS {
			err = errors.New("too long")
		}
		d *= day
	}
	if err != nil || d < 0 || more && !h.IncludeSubDomains {
		return nil, fmt.Errorf("hsts %q: want a time such as \"180d\", or \"180d; includeSubDomains\"", s)
	}
	h.MaxAge = int64(d / time.Second)
	return h, nil
}
