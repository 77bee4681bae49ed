package admin

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"math"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"sync"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/rest"
)

// caller is who makes a request, or has a WebSocket open. It is not changed.
type caller struct {
	auth.Identity
	login *login // nil: a token came with the request itself
}

// good reports whether what a caller has shown is good still, and what it proves now.
func (h *Handler) good(c *caller) (*caller, bool) {
	id, ok := h.Operators.Current(c.Token)
	if !ok || c.login != nil && c.login.isOver() {
		return nil, false
	}
	return &caller{id, c.login}, true
}

type callerKey struct{}

// OperatorOf returns who makes the call, or request, that ctx belongs to.
func OperatorOf(ctx context.Context) (auth.Identity, bool) {
	if c := callerOf(ctx); c != nil {
		return c.Identity, true
	}
	return auth.Identity{}, false
}

func callerOf(ctx context.Context) *caller {
	if call := rest.CallOf(ctx); call != nil {
		switch who := call.Identity.(type) {
		case *counted:
			return who.caller
		case *living:
			return who.caller
		}
	}
	who, _ := ctx.Value(callerKey{}).(*caller)
	return who
}

// mayNot is the answer to who needs another role.
func mayNot(id auth.Identity, need auth.Role, what string) error {
	return rest.Errorf(http.StatusForbidden, "%s needs the role %v, and this token of %q is for %v: an admin can give another one, with `tunnelctl operator role` or `tunnelctl token create`", what, need, id.Operator, id.Role)
}

// authenticate says who makes a request, by the token in its Authorization, or the cookie of a login.
func (h *Handler) authenticate(r *http.Request) (*caller, error) {
	if field := r.Header.Get("Authorization"); field != "" {
		scheme, token, _ := strings.Cut(field, " ")
		if !strings.EqualFold(scheme, "Bearer") {
			return nil, rest.Errorf(http.StatusUnauthorized, "want Authorization: Bearer and a token")
		}
		id, err := h.verify(r, strings.TrimSpace(token))
		if err != nil {
			return nil, err
		}
		return &caller{Identity: id}, nil
	}
	if l := h.loginOf(r); l != nil {
		// What a browser sends by itself is not enough where something can be changed or read on by a page: its page has
		// to be ours. Browsers say so, all of them with WebSockets and POST.
		if isSafe := r.Method == http.MethodGet || r.Method == http.MethodHead; (!isSafe || r.URL.Path == "/api/ws") &&
			r.Header.Get("Origin") == "" && r.Header.Get("Sec-Fetch-Site") != "same-origin" {
			return nil, errForeign
		}
		if who, ok := h.good(&caller{l.id, l}); ok {
			return who, nil
		}
	}
	return nil, rest.Errorf(http.StatusUnauthorized, "a token is needed: `tunnelctl login` asks for one; an admin makes it with `tunnelctl token create`, and the relay has its own in admin.token in its state folder")
}

// verify says whose token it is. Tokens have 256 random bits: those who guess are slowed down for the sake of the log.
func (h *Handler) verify(r *http.Request, token string) (auth.Identity, error) {
	from := remoteOf(r).Addr()
	if id, ok := h.Operators.Verify(token, from); ok {
		return id, nil
	}
	if !h.wrong.allow(network(from), mostAttempts, math.MaxInt, time.Now()) {
		return auth.Identity{}, rest.Errorf(http.StatusTooManyRequests, "too many wrong tokens: wait a minute")
	}
	return auth.Identity{}, rest.Errorf(http.StatusUnauthorized, "the token is wrong, has expired or was revoked: an admin makes another one with `tunnelctl token create`; the relay's own is in admin.token in its state folder")
}

// mostAttempts is how many an address (for IPv6, a /64) has in a minute, and mostAddresses how many are told apart.
const (
	mostAttempts  = 10
	mostAddresses = 4096
)

// mostRefusals is how many lines of what was refused the audit log gets of one token in a minute, and mostForeign of all those
// together who have none: what they do must not drive the rest out of it.
const (
	mostRefusals = 120
	mostForeign  = 120
)

// attempts bounds what goes wrong in a minute.
type attempts[K comparable] struct {
	mu     sync.Mutex
	minute int64
	n      map[K]int
	all    int
}

// allow counts one more, unless there were enough: each of that key, or all of all keys.
func (a *attempts[K]) allow(key K, each, all int, now time.Time) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if m := now.Unix() / 60; m != a.minute || a.n == nil {
		a.minute, a.n, a.all = m, make(map[K]int), 0
	}
	n, known := a.n[key]
	if n >= each || a.all >= all || !known && len(a.n) >= mostAddresses {
		return false
	}
	a.n[key]++
	a.all++
	return true
}

// network is an address, for IPv6 a /64.
func network(from netip.Addr) netip.Prefix {
	bits := 32
	if from = from.Unmap(); from.Is6() {
		bits = 64
	}
	p, _ := from.WithZone("").Prefix(bits)
	return p
}

const (
	loginTime = 12 * time.Hour
	maxLogins = 4096 // in all
	mostOfOne = 32   // of one token; another one ends the oldest
)

// login is what a cookie stands for. It ends with its token.
type login struct {
	digest  [sha256.Size]byte // of the cookie
	id      auth.Identity
	began   time.Time
	over    chan struct{} // closed
	stop    func()        // following the token
	expires *time.Timer
}

func (l *login) isOver() bool {
	select {
	case <-l.over:
		return true
	default:
		return false
	}
}

// cookieName is that of the cookie on the listener that r came by. Cookies do not know ports, so it has it in its name:
// two relays by way of ssh -L must not log each other out. With TLS its prefix says that nobody but this host has set it.
func cookieName(r *http.Request) string {
	if r.TLS != nil {
		return "__Host-culvert"
	}
	if _, port, err := net.SplitHostPort(r.Host); err == nil {
		return "culvert-" + port
	}
	return "culvert-80"
}

// serveLogin gives a cookie for a token.
func (h *Handler) serveLogin(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		h.refuse(w, r, nil, rest.Errorf(http.StatusMethodNotAllowed, "login wants POST"))
		return
	}
	var in struct {
		Token string `json:"token"`
	}
	err := readBody(w, r, &in)
	var id auth.Identity
	if err == nil {
		id, err = h.verify(r, strings.TrimSpace(in.Token))
	}
	if err != nil {
		h.refuse(w, r, nil, err)
		return
	}
	var secret [32]byte
	rand.Read(secret[:])
	value := base64.RawURLEncoding.EncodeToString(secret[:])
	if !h.login(value, id) {
		h.refuse(w, r, &caller{Identity: id}, rest.Errorf(http.StatusServiceUnavailable, "too many browsers are logged in: log one out, or wait until a login has ended by itself"))
		return
	}
	http.SetCookie(w, &http.Cookie{
		Name: cookieName(r), Value: value, Path: "/", MaxAge: int(loginTime / time.Second),
		HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil,
	})
	h.log().Info("operator logged in", "operator", id.Operator, "remote", r.RemoteAddr)
	h.record(AuditLine{Remote: r.RemoteAddr, Via: rest.HTTP, Call: "login", Code: http.StatusOK}, &caller{Identity: id})
	answer(w, http.StatusOK, me(id))
}

// login remembers a cookie, unless there are too many.
func (h *Handler) login(value string, id auth.Identity) bool {
	l := &login{digest: sha256.Sum256([]byte(value)), id: id, began: time.Now(), over: make(chan struct{})}
	h.mu.Lock()
	var oldest *login
	n := 0
	for _, other := range h.logins {
		if other.id.Token == id.Token {
			n++
			if oldest == nil || other.began.Before(oldest.began) {
				oldest = other
			}
		}
	}
	isFull := len(h.logins) >= maxLogins
	if !isFull || n >= mostOfOne {
		h.logins[l.digest] = l
	}
	h.mu.Unlock()
	if n >= mostOfOne {
		h.logout(oldest)
	} else if isFull {
		return false
	}
	// Until it is followed, good asks the operators.
	stop := h.Operators.Follow(id, func() { h.logout(l) })
	timer := time.AfterFunc(loginTime, func() { h.logout(l) })
	h.mu.Lock()
	l.stop, l.expires = stop, timer
	h.mu.Unlock()
	if l.isOver() { // in the meantime
		stop()
		timer.Stop()
	}
	return true
}

// logout ends a login, and what was opened by it.
func (h *Handler) logout(l *login) {
	h.mu.Lock()
	if h.logins[l.digest] != l {
		h.mu.Unlock()
		return
	}
	delete(h.logins, l.digest)
	close(l.over)
	stop, timer := l.stop, l.expires
	h.mu.Unlock()
	if stop != nil {
		stop()
		timer.Stop()
	}
	h.drop(func(c *caller) bool { return c.login == l })
}

// loginOf returns the login that the cookie of a request stands for, or nil.
func (h *Handler) loginOf(r *http.Request) *login {
	name := cookieName(r)
	for _, c := range r.CookiesNamed(name) {
		digest := sha256.Sum256([]byte(c.Value))
		h.mu.Lock()
		l := h.logins[digest]
		h.mu.Unlock()
		if l != nil {
			return l
		}
	}
	return nil
}

// serveLogout ends the login of the request's cookie.
func (h *Handler) serveLogout(w http.ResponseWriter, r *http.Request, who *caller) {
	if r.Method != http.MethodPost {
		w.Header().Set("Allow", "POST")
		h.refuse(w, r, who, rest.Errorf(http.StatusMethodNotAllowed, "logout wants POST"))
		return
	}
	if who.login != nil {
		h.logout(who.login)
		h.record(AuditLine{Remote: r.RemoteAddr, Via: rest.HTTP, Call: "logout", Code: http.StatusOK}, who)
	}
	http.SetCookie(w, &http.Cookie{Name: cookieName(r), Path: "/", MaxAge: -1, HttpOnly: true, SameSite: http.SameSiteStrictMode, Secure: r.TLS != nil})
	answer(w, http.StatusOK, None{})
}

// me is what somebody is told of himself.
func me(id auth.Identity) Me {
	m := Me{Name: id.Operator, Role: id.Role.String()}
	if !id.Expires.IsZero() {
		m.Expires = &id.Expires
	}
	return m
}
