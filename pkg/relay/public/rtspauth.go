package public

import (
	"crypto/hmac"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
)

// Players prove by Digest (RFC 2617, RFC 7616) that they know a password, or send it by Basic, on each connection
// once for a service. What guessing costs is the same as for HTTP, and the same addresses are not heard.

// nonceTime is how long a nonce is good for a first request.
const nonceTime = 5 * time.Minute

// nonceMAC is how many bytes of its HMAC a nonce has, behind the time in four.
const nonceMAC = 16

// authenticate decides who a request of a player is from: it answers, holds, or lets the user in.
func (u *users) authenticate(l *loop, addr netip.Addr, m *rtsp.Message) decision {
	value := m.Get("authorization")
	a, err := rtsp.ParseAuthorization(value)
	if err == nil && !a.Basic {
		return u.digest(l, addr, m, value, &a)
	}
	d, ok := u.check(l, addr, value)
	switch {
	case ok:
		d.user = a.User
	case d.trouble == troublePassword:
		d.fields = u.challenges(l, addr, false)
	}
	return d
}

// digest is authenticate for Digest.
func (u *users) digest(l *loop, addr netip.Addr, m *rtsp.Message, value []byte, a *rtsp.Authorization) decision {
	now := l.since()
	refuse := func(stale bool) decision {
		return decision{action: doAnswer, trouble: troublePassword, fields: u.challenges(l, addr, stale)}
	}
	if wait := u.wrong.blocked(addr, now); wait > 0 {
		return decision{action: doAnswer, trouble: troubleGuesses, fields: []http1.Field{retryIn(wait)}}
	}
	made, ours := u.nonceTime(a.Nonce, addr)
	if !ours { // of another relay, or before a restart: nothing is learned from the answer
		return refuse(false)
	}
	what := u.hmac("digest", m.Method, m.URL, value)
	if until, ok := u.bad[what]; ok && until > now {
		return refuse(false)
	}
	if t := u.pending[what]; t != nil {
		return decision{action: doHold, attempt: t}
	}
	ha1 := u.hashes[a.User].HA1(a.Algorithm)
	if ha1 != "" && a.Realm == u.realm && isFor(a.URI, m.URL) && a.Verify(string(m.Method), ha1) {
		if age := l.Now().Sub(made); age < 0 || age > nonceTime {
			return refuse(true)
		}
		return decision{user: a.User}
	}
	t := &attempt{users: u, loop: l, addr: relay.Source(addr), what: what}
	u.pending[what] = t
	t.wrong(now)
	return decision{action: doHold, attempt: t}
}

// isFor reports whether what was proved for a URI is for a request with that URL. Players write a path or a URL, and some
// that of the presentation when they ask for a track of it. The host does not matter, which they know by several names.
func isFor(uri string, url []byte) bool {
	proved, err := rtsp.ParseURL([]byte(uri))
	asked, err2 := rtsp.ParseURL(url)
	if err != nil || err2 != nil {
		return false
	}
	of, path := strings.TrimRight(proved.Path, "/"), strings.TrimRight(asked.Path, "/")
	return of == path || of != "" && relay.MatchPath(of, path)
}

// challenges are what a player is asked with: by Digest for those users whose hash can tell, by Basic for others. Many
// players take the last challenge by Digest, and know MD5 alone; some read realm, nonce and stale in this order only.
func (u *users) challenges(l *loop, addr netip.Addr, stale bool) (list []http1.Field) {
	if u.basic {
		list = append(list, u.challenge)
	}
	if u.realm == "" {
		return list
	}
	old := ""
	if stale {
		old = ", stale=true"
	}
	nonce := u.nonce(l.Now(), addr)
	for _, algorithm := range [...]string{"SHA-256", "MD5"} {
		list = append(list, field("WWW-Authenticate", fmt.Sprintf(`Digest realm="%s", nonce="%s"%s, algorithm=%s`, u.realm, nonce, old, algorithm)))
	}
	return list
}

// nonce makes a nonce for an address, of which nothing has to be remembered.
func (u *users) nonce(now time.Time, addr netip.Addr) string {
	return hex.EncodeToString(u.seal(binary.BigEndian.AppendUint32(nil, uint32(now.Unix())), addr))
}

func (u *users) seal(made []byte, addr netip.Addr) []byte {
	mac := u.hmac("nonce", made, relay.Source(addr).AsSlice())
	return append(made, mac[:nonceMAC]...)
}

// nonceTime tells when a nonce was made for an address, and whether it was.
func (u *users) nonceTime(nonce string, addr netip.Addr) (made time.Time, ours bool) {
	b, err := hex.DecodeString(nonce)
	if err != nil || len(b) != 4+nonceMAC || subtle.ConstantTimeCompare(u.seal(b[:4:4], addr), b) != 1 {
		return time.Time{}, false
	}
	return time.Unix(int64(binary.BigEndian.Uint32(b)), 0), true
}

// hmac is that of some texts under the key of u.
func (u *users) hmac(what string, texts ...[]byte) (c credential) {
	m := hmac.New(sha256.New, u.key[:])
	m.Write([]byte(what))
	for _, t := range texts {
		m.Write(binary.BigEndian.AppendUint32(nil, uint32(len(t))))
		m.Write(t)
	}
	m.Sum(c[:0])
	return c
}
