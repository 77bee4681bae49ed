package rtsp

import (
	"bytes"
	"crypto/md5" // what RFC 2617 prescribes; old cameras know nothing else
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"strings"
)

const (
	// maxAuthorization bounds an Authorization or WWW-Authenticate field, in bytes.
	maxAuthorization = 4 << 10
	// maxChallenges bounds the challenges of one response.
	maxChallenges = 8
	// maxRefused bounds how many nonces in a row are called stale at their first use.
	maxRefused = 3
)

// hash is one of the algorithms of Digest that we know, by the name a field has for it.
func hash(algorithm string, parts ...string) (string, bool) {
	s := strings.Join(parts, ":")
	switch algorithm {
	case "MD5":
		sum := md5.Sum([]byte(s))
		return hex.EncodeToString(sum[:]), true
	case "SHA-256":
		sum := sha256.Sum256([]byte(s))
		return hex.EncodeToString(sum[:]), true
	}
	return "", false
}

// Client authenticates requests to a server that asks for it. It is for one connection after another to
// the same server: what the server asked for last holds until it asks again.
type Client struct {
	User, Password string

	c       *challenge // nil before the first
	nc      uint32     // requests that were authenticated with it
	good    bool       // and one of them was let in
	digest  bool       // the server has offered Digest
	refused int        // challenges in a row whose nonce was not good for one request
}

// challenge is a scheme that a server offers (rfc7235#section-4.1).
type challenge struct {
	scheme string // in lower case
	params params
}

// params are what follows a scheme, by name in lower case.
type params map[string]string

// algorithm returns the one of Digest, in upper case.
func (p params) algorithm() string {
	if a := p["algorithm"]; a != "" {
		return strings.ToUpper(a)
	}
	return "MD5"
}

// rank orders challenges: the higher the better, 0 for what we cannot do.
func (c *challenge) rank() int {
	switch c.scheme {
	case "basic":
		return 1
	case "digest":
		if c.params["nonce"] == "" {
			return 0
		}
		if _, has := c.params["qop"]; has && c.qop() == "" {
			return 0
		}
		switch c.params.algorithm() {
		case "MD5":
			return 2
		case "SHA-256":
			return 3
		}
	}
	return 0
}

// qop returns the quality of protection to use; empty is that of RFC 2069, which many cameras have.
func (c *challenge) qop() string {
	best := ""
	for q := range strings.SplitSeq(strings.ToLower(c.params["qop"]), ",") {
		switch q = strings.TrimSpace(q); q {
		case "auth":
			return q
		case "auth-int":
			best = q
		}
	}
	return best
}

// Challenge takes the WWW-Authenticate fields of a 401 response and reports whether it is worth asking
// again with what Authorization returns. It is not if the server refused the first request that had what
// it asked for the last time: then the user or the password is wrong. Nor is it if a server that has had
// a digest wants the password itself.
func (c *Client) Challenge(m *Message) bool {
	var best *challenge
	n := 0
	for _, f := range m.Fields {
		if !Is(f.Name, "WWW-Authenticate") || len(f.Value) > maxAuthorization {
			continue
		}
		for _, one := range parseChallenges(string(f.Value)) {
			if n++; n > maxChallenges {
				break
			}
			if one.rank() > 0 && (best == nil || one.rank() > best.rank()) {
				best = &one
			}
		}
	}
	if best == nil || c.User == "" && c.Password == "" {
		return false
	}
	if best.scheme == "basic" && c.digest {
		return false // somebody in between would like to have the password
	}
	c.digest = best.scheme == "digest"
	worth := true
	if c.c != nil && c.nc > 0 {
		stale := strings.EqualFold(best.params["stale"], "true")
		switch {
		case c.good:
			c.refused = 0 // the nonce was good for a while and has expired
		case stale && c.refused < maxRefused:
			c.refused++
		default:
			worth = false
		}
		if best.scheme == "basic" && c.c.scheme == "basic" {
			worth = false
		}
	}
	c.c, c.nc, c.good = best, 0, false
	return worth
}

// Accepted tells that a request with what Authorization returned was let in: if the server asks again, the nonce has
// expired.
func (c *Client) Accepted() { c.good = true }

// Authorization returns the field for a request, if there has been a challenge. url is what the request
// line has.
func (c *Client) Authorization(method, url, body []byte) (Field, bool) {
	if c.c == nil {
		return Field{}, false
	}
	c.nc++
	name := []byte("Authorization")
	if c.c.scheme == "basic" {
		v := base64.StdEncoding.EncodeToString([]byte(c.User + ":" + c.Password))
		return Field{name, []byte("Basic " + v)}, true
	}
	p := c.c.params
	algorithm, qop := p.algorithm(), c.c.qop()
	ha1, _ := hash(algorithm, c.User, p["realm"], c.Password)
	a2 := []string{string(method), string(url)}
	if qop == "auth-int" {
		h, _ := hash(algorithm, string(body))
		a2 = append(a2, h)
	}
	ha2, _ := hash(algorithm, a2...)
	a := Authorization{User: c.User, Realm: p["realm"], Nonce: p["nonce"], URI: string(url), QOP: qop, Opaque: p["opaque"]}
	if p["algorithm"] != "" {
		a.Algorithm = algorithm
	}
	if qop == "" {
		a.Response, _ = hash(algorithm, ha1, a.Nonce, ha2)
	} else {
		var random [8]byte
		rand.Read(random[:])
		a.NC, a.CNonce = fmt.Sprintf("%08x", c.nc), hex.EncodeToString(random[:])
		a.Response, _ = hash(algorithm, ha1, a.Nonce, a.NC, a.CNonce, qop, ha2)
	}
	return Field{name, []byte(a.digest())}, true
}

// parseChallenges reads a WWW-Authenticate field, which may have several challenges, separated by the
// same commas as their parameters.
func parseChallenges(s string) []challenge {
	var all []challenge
	for len(all) <= maxChallenges {
		s = strings.TrimLeft(s, " \t,")
		if s == "" {
			break
		}
		word, rest := cutToken(s)
		if word == "" {
			break // nothing that makes sense follows
		}
		rest = strings.TrimLeft(rest, " \t")
		if value, ok := strings.CutPrefix(rest, "="); ok && len(all) > 0 {
			var v string
			v, s = cutValue(strings.TrimLeft(value, " \t"))
			p := all[len(all)-1].params
			if _, has := p[strings.ToLower(word)]; !has {
				p[strings.ToLower(word)] = v
			}
			continue
		}
		all = append(all, challenge{strings.ToLower(word), params{}})
		s = rest
	}
	return all
}

func cutToken(s string) (word, rest string) {
	i := 0
	for i < len(s) && isToken[s[i]] {
		i++
	}
	return s[:i], s[i:]
}

// cutValue cuts a quoted string, or what goes to the next comma, off s.
func cutValue(s string) (value, rest string) {
	if s == "" || s[0] != '"' {
		value, rest, _ = strings.Cut(s, ",")
		return strings.TrimRight(value, " \t"), rest
	}
	for i := 1; i < len(s); i++ {
		switch s[i] {
		case '\\':
			i++
		case '"':
			return unquote(s[:i+1]), s[i+1:]
		}
	}
	return s[1:], "" // without its end
}

// Authorization is what a client sent to authenticate itself.
type Authorization struct {
	Basic          bool   // otherwise it is Digest
	User, Password string // the password is of Basic

	// Of Digest (rfc7616#section-3.4).
	Realm, Nonce   string
	URI            string // as the client wrote it: a URL or a path; some send the presentation's for each track
	Algorithm      string // "MD5" or "SHA-256"
	Response       string
	QOP, NC        string
	CNonce, Opaque string
}

// digest writes the value of the field.
func (a *Authorization) digest() string {
	var b strings.Builder
	b.WriteString("Digest ")
	quoted := func(name, v string) { b.WriteString(name + "=" + quote(v)) }
	quoted("username", a.User)
	quoted(", realm", a.Realm)
	quoted(", nonce", a.Nonce)
	quoted(", uri", a.URI)
	quoted(", response", a.Response)
	if a.Algorithm != "" {
		b.WriteString(", algorithm=" + a.Algorithm)
	}
	if a.Opaque != "" {
		quoted(", opaque", a.Opaque)
	}
	if a.QOP != "" {
		b.WriteString(", qop=" + a.QOP + ", nc=" + a.NC)
		quoted(", cnonce", a.CNonce)
	}
	return b.String()
}

// ParseAuthorization reads an Authorization field of Basic, or of Digest with an algorithm and a quality
// of protection that Verify knows.
func ParseAuthorization(v []byte) (Authorization, error) {
	var a Authorization
	if len(v) > maxAuthorization {
		return a, badf("an Authorization of %d bytes", len(v))
	}
	scheme, rest := cutToken(string(v))
	switch strings.ToLower(scheme) {
	case "basic":
		b, err := base64.StdEncoding.DecodeString(strings.Trim(rest, " \t"))
		user, password, ok := bytes.Cut(b, []byte(":"))
		if err != nil || !ok {
			return a, badf("an Authorization of Basic that is not user:password in base64")
		}
		return Authorization{Basic: true, User: string(user), Password: string(password)}, nil
	case "digest":
	default:
		return a, badf("an Authorization of scheme %.20q", scheme)
	}
	p := params{}
	for {
		rest = strings.TrimLeft(rest, " \t,")
		if rest == "" {
			break
		}
		name, value := cutToken(rest)
		value, ok := strings.CutPrefix(strings.TrimLeft(value, " \t"), "=")
		name = strings.ToLower(name)
		if _, has := p[name]; has || name == "" || !ok {
			return a, badf("an Authorization with %.20q", rest)
		}
		p[name], rest = cutValue(strings.TrimLeft(value, " \t"))
	}
	a = Authorization{
		User: p["username"], Realm: p["realm"], Nonce: p["nonce"], URI: p["uri"], Algorithm: p.algorithm(),
		Response: strings.ToLower(p["response"]), QOP: strings.ToLower(p["qop"]), NC: p["nc"], CNonce: p["cnonce"], Opaque: p["opaque"],
	}
	if a.QOP == "" {
		a.NC, a.CNonce = "", "" // they mean nothing
	}
	h, known := hash(a.Algorithm)
	switch {
	case !known:
		return a, badf("an Authorization of Digest by %.20q", a.Algorithm)
	case a.User == "" || a.Nonce == "" || a.URI == "" || len(a.Response) != len(h):
		return a, badf("an Authorization of Digest without user, nonce, URI or response")
	case a.QOP != "" && (a.QOP != "auth" || len(a.NC) != 8 || a.CNonce == ""):
		return a, badf("an Authorization of Digest with qop %.10q, nc %.10q and cnonce %.10q", a.QOP, a.NC, a.CNonce)
	}
	return a, nil
}

// Verify reports whether a Digest is that of a request with that method by who knows what ha1 was made
// of: the hash of user, realm and password by the same algorithm, in hexadecimal. The time it takes
// does not depend on where a wrong response differs. Whether nonce, realm and user are right is for the caller.
func (a *Authorization) Verify(method, ha1 string) bool {
	ha2, ok := hash(a.Algorithm, method, a.URI)
	if !ok || a.Basic || len(ha1) != len(ha2) {
		return false
	}
	parts := []string{strings.ToLower(ha1), a.Nonce, ha2}
	if a.QOP != "" {
		parts = []string{strings.ToLower(ha1), a.Nonce, a.NC, a.CNonce, a.QOP, ha2}
	}
	want, _ := hash(a.Algorithm, parts...)
	return subtle.ConstantTimeCompare([]byte(want), []byte(a.Response)) == 1
}
