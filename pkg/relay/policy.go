package relay

import (
	"bytes"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"
)

// Bounds of a Policy.
const (
	MaxPrefixes    = 1024     // in Allow, and in Deny
	MaxMethods     = 32       // in Methods
	MaxClientCA    = 64 << 10 // bytes of ClientCA
	MaxUsers       = 1024     // in Users
	MaxUserName    = 64       // bytes of a user's name
	MaxHash        = 256      // bytes of a user's hash
	MaxHeaderRules = 64       // in RequestHeaders, and in ResponseHeaders
	MaxHeaderValue = 4 << 10  // bytes of the value of a field
	MaxHSTS        = 10 * 365 * 24 * time.Hour

	maxMethod = 34 // bytes, as http1 takes them
	maxField  = 128
)

// A Policy is what a service demands of its visitors. The public relay enforces it before anything
// reaches the site; operators' forwards are not visitors. The zero value demands nothing.
//
// Its JSON is strict: a field that is not known here makes it an error, because a relay that passed over
// it would let in whom it should not. So a new field is a new WireVersion.
type Policy struct {
	Allow []netip.Prefix `json:"allow,omitempty"` // who may come in; none: everybody
	Deny  []netip.Prefix `json:"deny,omitempty"`  // who may not, whatever Allow says

	MaxConnections int  `json:"max_connections,omitempty"` // at a time: connections of ports, requests, WebSockets, flows; 0: no bound
	ConnectionRate Rate `json:"connection_rate,omitzero"`  // new connections of one address, or one /64 with IPv6

	// What follows is for HTTP; ClientCA is for rtsps, too, and Users for rtsp and rtsps.

	RequestRate Rate     `json:"request_rate,omitzero"` // requests of one address, or one /64 with IPv6
	Methods     []string `json:"methods,omitempty"`     // none: all. GET has HEAD in it
	MaxBody     int64    `json:"max_body,omitempty"`    // bytes of a request's; 0: no bound
	NoRedirect  bool     `json:"no_redirect,omitempty"` // a request in the clear for an https service finds nothing
	HSTS        *HSTS    `json:"hsts,omitempty"`        // what browsers are told about TLS; nil: nothing
	ClientCA    string   `json:"client_ca,omitempty"`   // PEM certificates of the authorities that vouch for visitors; "": visitors need no certificate

	// Users are the names of who may come in and the hashes of their passwords, as pkg/auth writes and
	// reads them; none: no password is asked for.
	Users map[string]string `json:"users,omitempty"`

	RequestHeaders  HeaderRules `json:"request_headers,omitzero"`  // to the server
	ResponseHeaders HeaderRules `json:"response_headers,omitzero"` // to the visitor
}

// HSTS is a Strict-Transport-Security field (RFC 6797).
type HSTS struct {
	MaxAge            int64 `json:"max_age"` // seconds; 0 has browsers forget it
	IncludeSubDomains bool  `json:"include_subdomains,omitempty"`
}

// String returns the value of the field.
func (h HSTS) String() string {
	s := "max-age=" + strconv.FormatInt(h.MaxAge, 10)
	if h.IncludeSubDomains {
		s += "; includeSubDomains"
	}
	return s
}

// HeaderRules change the fields of a head: Remove first, then Set, which replaces all of that name, then
// Add.
type HeaderRules struct {
	Set    map[string]string `json:"set,omitempty"`
	Add    map[string]string `json:"add,omitempty"`
	Remove []string          `json:"remove,omitempty"`
}

// IsZero reports whether there are none.
func (h HeaderRules) IsZero() bool { return len(h.Set)+len(h.Add)+len(h.Remove) == 0 }

// UnmarshalJSON takes what MarshalJSON writes, and nothing else.
func (p *Policy) UnmarshalJSON(b []byte) error {
	type plain Policy
	var q plain
	if err := decodeStrict(b, "policy", &q); err != nil {
		return err
	}
	*p = Policy(q)
	p.normalize()
	return nil
}

// normalize makes one value of those that mean the same.
func (p *Policy) normalize() {
	p.Allow, p.Deny, p.Methods = none(p.Allow), none(p.Deny), none(p.Methods)
	if len(p.Users) == 0 {
		p.Users = nil
	}
	for _, h := range []*HeaderRules{&p.RequestHeaders, &p.ResponseHeaders} {
		h.Remove = none(h.Remove)
		if len(h.Set) == 0 {
			h.Set = nil
		}
		if len(h.Add) == 0 {
			h.Add = nil
		}
	}
}

func none[T any](list []T) []T {
	if len(list) == 0 {
		return nil
	}
	return list
}

// Equal reports whether p and q, which may be nil, demand the same.
func (p *Policy) Equal(q *Policy) bool {
	text := func(p *Policy) []byte {
		if p == nil {
			return nil
		}
		b, err := json.Marshal(p)
		if err != nil {
			panic("BUG: " + err.Error())
		}
		return b
	}
	return bytes.Equal(text(p), text(q))
}

// A PolicyError says which part of a Policy is wrong.
type PolicyError struct {
	Key string // as in private.toml: "allow", "request_headers.set.X-Name", "users.alice"
	Err error
}

func (e *PolicyError) Error() string { return e.Key + ": " + e.Err.Error() }

func (e *PolicyError) Unwrap() error { return e.Err }

// Validate reports what is wrong with p for a service that is published by scheme: a *PolicyError for the
// first mistake, or nil.
func (p *Policy) Validate(scheme string) error {
	if err := p.validate(scheme); err != nil {
		return err
	}
	return nil
}

func (p *Policy) validate(scheme string) *PolicyError {
	bad := func(key, format string, args ...any) *PolicyError {
		return &PolicyError{key, fmt.Errorf(format, args...)}
	}
	if key := p.misplaced(scheme); key != "" {
		switch {
		case scheme == "":
			return bad(key, "is for visitors, and the service has no publish")
		case scheme == "http" || scheme == "ws":
			return bad(key, "needs TLS: publish https://")
		case scheme == "rtsp" && key == "client_ca":
			return bad(key, "needs TLS: publish rtsps://")
		}
		return bad(key, "is for http:// and https:// publishes, not %s://", scheme)
	}
	for _, l := range []struct {
		key  string
		list []netip.Prefix
	}{{"allow", p.Allow}, {"deny", p.Deny}} {
		if len(l.list) > MaxPrefixes {
			return bad(l.key, "%d prefixes, more than %d", len(l.list), MaxPrefixes)
		}
		for _, a := range l.list {
			if !a.IsValid() || a.Addr().Is4In6() {
				return bad(l.key, "%q is no prefix, such as 192.0.2.0/24 or 2001:db8::/32", a)
			}
		}
	}
	if p.MaxConnections < 0 {
		return bad("max_connections", "%d is negative", p.MaxConnections)
	}
	if p.MaxBody < 0 {
		return bad("max_body", "%d is negative", p.MaxBody)
	}
	if err := p.ConnectionRate.check(); err != nil {
		return bad("connection_rate", "%w", err)
	}
	if err := p.RequestRate.check(); err != nil {
		return bad("request_rate", "%w", err)
	}
	if len(p.Methods) > MaxMethods {
		return bad("methods", "%d methods, more than %d", len(p.Methods), MaxMethods)
	}
	for _, m := range p.Methods {
		if !isToken(m) || len(m) > maxMethod || m != strings.ToUpper(m) {
			return bad("methods", "%q is no method, such as GET", clip(m))
		}
	}
	if h := p.HSTS; h != nil && (h.MaxAge < 0 || h.MaxAge > int64(MaxHSTS/time.Second)) {
		return bad("hsts", "%d s: want 0 to ten years", h.MaxAge)
	}
	if p.ClientCA != "" {
		if _, err := p.ClientCAs(); err != nil {
			return bad("client_ca", "%w", err)
		}
	}
	if len(p.Users) > MaxUsers {
		return bad("users", "%d users, more than %d", len(p.Users), MaxUsers)
	}
	for _, name := range slices.Sorted(maps.Keys(p.Users)) {
		if err := CheckUser(name); err != nil {
			return bad("users."+clip(name), "%w", err)
		}
		if hash := p.Users[name]; len(hash) > MaxHash || !isPrintable(hash) || !strings.HasPrefix(hash, "$") {
			return bad("users."+name, "no hash of a password: `tunnelctl password %s` makes one", name)
		}
	}
	if err := p.RequestHeaders.validate("request_headers", isRequestFraming); err != nil {
		return err
	}
	if err := p.ResponseHeaders.validate("response_headers", isFraming); err != nil {
		return err
	}
	if _, set := find(p.ResponseHeaders.Set, hstsField); set && p.HSTS != nil {
		return bad("response_headers.set."+hstsField, "hsts sets this field already")
	}
	return nil
}

const hstsField = "Strict-Transport-Security"

// misplaced returns the key of something in p that a service published by scheme cannot have, or "".
func (p *Policy) misplaced(scheme string) string {
	secure := scheme == "https" || scheme == "wss"
	clear := scheme == "http" || scheme == "ws"
	camera := isCamera(scheme)
	for _, k := range []struct {
		set, ok bool
		key     string
	}{
		{len(p.Allow) > 0, scheme != "", "allow"},
		{len(p.Deny) > 0, scheme != "", "deny"},
		{p.MaxConnections != 0, scheme != "", "max_connections"},
		{!p.ConnectionRate.IsZero(), scheme != "", "connection_rate"},
		{!p.RequestRate.IsZero(), secure || clear, "request_rate"},
		{len(p.Methods) > 0, secure || clear, "methods"},
		{p.MaxBody != 0, secure || clear, "max_body"},
		{p.NoRedirect, secure, "redirect"},
		{p.HSTS != nil, secure, "hsts"},
		{p.ClientCA != "", secure || scheme == "rtsps", "client_ca"},
		{len(p.Users) > 0, secure || clear || camera, "users"},
		{!p.RequestHeaders.IsZero(), secure || clear, "request_headers"},
		{!p.ResponseHeaders.IsZero(), secure || clear, "response_headers"},
	} {
		if k.set && !k.ok {
			return k.key
		}
	}
	return ""
}

// ClientCAs are the certificates in ClientCA.
func (p *Policy) ClientCAs() ([]*x509.Certificate, error) {
	if len(p.ClientCA) > MaxClientCA {
		return nil, fmt.Errorf("%d bytes, more than %d", len(p.ClientCA), MaxClientCA)
	}
	var list []*x509.Certificate
	for rest := []byte(p.ClientCA); ; {
		var block *pem.Block
		if block, rest = pem.Decode(rest); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			return nil, fmt.Errorf("holds a %q: leave nothing but certificates", clip(block.Type))
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, err
		}
		if !c.IsCA {
			return nil, fmt.Errorf("%q is not the certificate of an authority", clip(c.Subject.String()))
		}
		list = append(list, c)
	}
	if len(list) == 0 {
		return nil, errors.New("holds no PEM certificate")
	}
	return list, nil
}

// CheckUser reports what is wrong with the name of a user: it has 1 to MaxUserName visible ASCII
// characters, and no colon, which ends a name in HTTP (rfc7617#section-2).
func CheckUser(name string) error {
	if name == "" || len(name) > MaxUserName {
		return fmt.Errorf("a user's name has 1 to %d bytes", MaxUserName)
	}
	for i := range len(name) {
		if c := name[i]; c <= ' ' || c > '~' || c == ':' || c == '"' || c == '\\' {
			return errors.New("a user's name has visible ASCII characters, and no colon, quote or backslash")
		}
	}
	return nil
}

func (h HeaderRules) validate(key string, forbidden func(name string) bool) *PolicyError {
	if n := len(h.Set) + len(h.Add) + len(h.Remove); n > MaxHeaderRules {
		return &PolicyError{key, fmt.Errorf("%d rules, more than %d", n, MaxHeaderRules)}
	}
	name := func(at, name string) *PolicyError {
		at = key + "." + at
		switch {
		case len(name) > maxField || !isToken(name):
			return &PolicyError{at, fmt.Errorf("%q is no name of a field", clip(name))}
		case forbidden(strings.ReplaceAll(strings.ToLower(name), "_", "-")):
			return &PolicyError{at, errors.New("this field is the relays' own: it says where a message ends, or who the visitor is")}
		}
		return nil
	}
	for _, m := range []struct {
		at  string
		set map[string]string
	}{{"set", h.Set}, {"add", h.Add}} {
		seen := make(map[string]bool, len(m.set))
		for _, n := range slices.Sorted(maps.Keys(m.set)) {
			at := m.at + "." + clip(n)
			if err := name(at, n); err != nil {
				return err
			}
			if l := strings.ToLower(n); seen[l] {
				return &PolicyError{key + "." + at, errors.New("comes twice; case does not matter in names")}
			} else {
				seen[l] = true
			}
			if v := m.set[n]; len(v) > MaxHeaderValue || v != strings.TrimSpace(v) || strings.ContainsFunc(v, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f }) {
				return &PolicyError{key + "." + at, errors.New("the value has control characters, space around it, or is too long")}
			}
		}
	}
	for _, n := range h.Remove {
		if err := name("remove", n); err != nil {
			return err
		}
	}
	return nil
}

// isFraming reports whether a field, in lower case with dashes, says where a message ends or how a
// connection goes on.
func isFraming(name string) bool {
	switch name {
	case "connection", "keep-alive", "proxy-connection", "te", "trailer", "transfer-encoding", "content-length", "upgrade":
		return true
	}
	return false
}

// isRequestFraming adds what says where a request goes and who its visitor is.
func isRequestFraming(name string) bool {
	switch name {
	case "host", "expect", "x-real-ip", "forwarded", "client-cert", "client-cert-chain", "x-remote-user":
		return true
	}
	return isFraming(name) || strings.HasPrefix(name, "x-forwarded-") || strings.HasPrefix(name, "x-client-cert-")
}

// find looks a name up in any case.
func find(m map[string]string, name string) (string, bool) {
	for n, v := range m {
		if strings.EqualFold(n, name) {
			return v, true
		}
	}
	return "", false
}

// isToken reports whether s is a token of rfc9110#section-5.6.2.
func isToken(s string) bool {
	for i := range len(s) {
		if c := s[i]; !isAlnum(c) && strings.IndexByte("!#$%&'*+-.^_`|~", c) < 0 {
			return false
		}
	}
	return s != ""
}

// MaxRate bounds both numbers of a Rate.
const MaxRate = 1_000_000

// A Rate is how often something may happen: N times in each Per, of which Burst at once. The zero value
// is no limit. It marshals as text, "20/m burst 50".
type Rate struct {
	N     int
	Per   time.Duration // a second, a minute or an hour
	Burst int
}

var ratePeriods = []struct {
	unit string
	per  time.Duration
}{{"s", time.Second}, {"m", time.Minute}, {"h", time.Hour}}

// ParseRate reads "100/s", "20/m" or "1000/h", with " burst 50" behind it for how much of it may come at
// once. Without that, all of it may.
func ParseRate(s string) (Rate, error) {
	bad := func() (Rate, error) {
		return Rate{}, fmt.Errorf("%q: want a rate such as \"100/s\", \"20/m\" or \"20/m burst 50\", with numbers from 1 to %d", clip(s), MaxRate)
	}
	text, burst, hasBurst := strings.Cut(s, " burst ")
	count, unit, ok := strings.Cut(text, "/")
	if !ok {
		return bad()
	}
	var r Rate
	for _, p := range ratePeriods {
		if p.unit == unit {
			r.Per = p.per
		}
	}
	var err error
	if r.N, err = parseCount(count); err != nil || r.Per == 0 {
		return bad()
	}
	r.Burst = r.N
	if hasBurst {
		if r.Burst, err = parseCount(burst); err != nil {
			return bad()
		}
	}
	return r, nil
}

func parseCount(s string) (int, error) {
	n, err := strconv.ParseUint(s, 10, 32)
	if err != nil || n < 1 || n > MaxRate || s[0] == '+' || s[0] == '0' {
		return 0, errors.New("out of range")
	}
	return int(n), nil
}

// IsZero reports whether r is no limit.
func (r Rate) IsZero() bool { return r == Rate{} }

// String returns what ParseRate reads, or "" for the zero value.
func (r Rate) String() string {
	for _, p := range ratePeriods {
		if p.per == r.Per {
			s := strconv.Itoa(r.N) + "/" + p.unit
			if r.Burst != r.N {
				s += " burst " + strconv.Itoa(r.Burst)
			}
			return s
		}
	}
	return ""
}

// MarshalText returns String.
func (r Rate) MarshalText() ([]byte, error) { return []byte(r.String()), nil }

// UnmarshalText reads what ParseRate reads.
func (r *Rate) UnmarshalText(b []byte) (err error) {
	*r, err = ParseRate(string(b))
	return err
}

func (r Rate) check() error {
	if r.IsZero() {
		return nil
	}
	_, err := ParseRate(r.String())
	return err
}
