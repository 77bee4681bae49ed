// Package admin is the operators' door of a public relay: a small JSON API over HTTP and its Go
// client, which tunnelctl uses.
//
//	GET    /healthz                          200 as long as the relay's event loops turn; needs no token
//	GET    /readyz                           200 as long as it takes visitors; needs no token
//	GET    /metrics                          for Prometheus
//	GET    /debug/pprof/...                  profiles
//	GET    /api/status                       Status
//	GET    /api/sites                        []Site
//	POST   /api/sites                        Invite, answered with an Invitation
//	DELETE /api/sites/NAME[?key=KEY]         forgets the site's keys, or one, and cuts their sessions
//	POST   /api/sites/NAME/promote           Promote, answered with Promoted
//	POST   /api/sites/NAME/cameras           Search, answered with Cameras
//	POST   /api/certificates/NAME/renew      has another one ordered
//	GET    /.culvert/forward/SITE/SERVICE    Upgrade: a stream to the service (see package relay)
//
// A server is a Handler with its func fields filled in:
//
//	h := &admin.Handler{Authorize: token.Matches, Status: relay.Status}
//	http.Serve(loopback, h)
//
// Invariants: nothing but /healthz and /readyz answers without the bearer token, and these say why
// not and nothing else; a request whose Host is not localhost or an address (or one of Handler.Hosts)
// is refused, so that a web page cannot reach the API by rebinding its own name to 127.0.0.1; a request with a foreign Origin is refused, whatever it
// carries; nothing here holds a secret other than the join token of one Invitation, which is
// answered once and never stored.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"
)

// Error is a refusal an operator can act on. Func fields of Handler return it to choose the answer;
// methods of Client return it for every answer that is not a success.
type Error struct {
	Code    int    `json:"-"` // HTTP status
	Message string `json:"error"`
}

func (e *Error) Error() string { return e.Message }

// maxBody bounds a request body: an Invite with some thousand patterns fits.
const maxBody = 64 << 10

// maxTTL bounds the life of a join token. A token is a secret in somebody's mail; a year-old one is
// a hole nobody remembers.
const maxTTL = 31 * 24 * time.Hour

// Handler serves the API. All fields are set before the first request and not changed afterwards;
// the funcs are called from the server's request goroutines, several at a time.
type Handler struct {
	// Authorize reports whether token is the operators' token; it compares in constant time.
	Authorize func(token string) bool

	// Hosts lists names accepted in Host besides localhost and addresses, without port.
	Hosts []string

	// Status returns a snapshot. Sites and Services of it serve the lists, too.
	Status func() (*Status, error)

	// AddSite makes a join token. An *Error chooses the answer.
	AddSite func(Invite) (*Invitation, error)

	// RevokeSite forgets a key of a site and cuts its sessions, or all its keys if key is "". An
	// *Error chooses the answer.
	RevokeSite func(name, key string) error

	// PromoteSite has a stand-by take over. An *Error chooses the answer.
	PromoteSite func(ctx context.Context, name string, p Promote) (*Promoted, error)

	// Cameras has a site look for cameras. An *Error chooses the answer. nil: 404.
	Cameras func(ctx context.Context, site string, in Search) (*Cameras, error)

	// RenewCertificate has another certificate ordered for a name. An *Error chooses the
	// answer. nil: 404.
	RenewCertificate func(name string) error

	// Forward serves the upgrade to a stream; Handler has checked the token. nil: 404.
	Forward http.Handler

	// Healthy tells what is wrong with the process, nil that nothing is; Ready why it takes no visitors.
	// They are given a second or two. nil: nothing ever is.
	Healthy, Ready func(context.Context) error

	// Metrics serves /metrics, Debug what is below /debug/; Handler has checked the token. nil: 404.
	Metrics, Debug http.Handler

	// Log hears about requests refused or failed, and about changes. nil: discarded.
	Log *slog.Logger
}

// ForwardPath begins the path of a forward request, on the admin listener and on the relay's own
// domain alike: ForwardPath + SITE + "/" + SERVICE.
const ForwardPath = "/.culvert/forward/"

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	switch r.URL.Path {
	case "/healthz":
		probe(w, r, h.Healthy)
		return
	case "/readyz":
		probe(w, r, h.Ready)
		return
	}
	if err := h.admit(r); err != nil {
		h.refuse(w, r, err)
		return
	}
	switch path := r.URL.Path; {
	case strings.HasPrefix(path, ForwardPath) && h.Forward != nil:
		h.Forward.ServeHTTP(w, r)
		return
	case path == "/metrics" && h.Metrics != nil:
		h.Metrics.ServeHTTP(w, r)
		return
	case strings.HasPrefix(path, "/debug/") && h.Debug != nil:
		h.Debug.ServeHTTP(w, r)
		return
	}
	v, err := h.serve(r)
	if err != nil {
		h.refuse(w, r, err)
		return
	}
	answer(w, http.StatusOK, v)
}

// probeTime is how long a probe may take: those who ask seldom wait longer.
const probeTime = 2 * time.Second

// probe answers ok, or 503 with what is wrong.
func probe(w http.ResponseWriter, r *http.Request, check func(context.Context) error) {
	w.Header().Set("Content-Type", "text/plain; charset=utf-8")
	w.Header().Set("Cache-Control", "no-store")
	if check != nil {
		ctx, cancel := context.WithTimeout(r.Context(), probeTime)
		defer cancel()
		if err := check(ctx); err != nil {
			w.WriteHeader(http.StatusServiceUnavailable)
			io.WriteString(w, err.Error()+"\n")
			return
		}
	}
	io.WriteString(w, "ok\n")
}

// admit checks Host, Origin and token, in this order: a page in the operator's browser must not even
// learn whether its guess of a token was right.
func (h *Handler) admit(r *http.Request) error {
	host := hostname(r.Host)
	if !h.isOurHost(host) {
		return &Error{http.StatusMisdirectedRequest, "host is a name that the relay does not know: use its address, or localhost"}
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		return &Error{http.StatusForbidden, "cross-origin request refused"}
	}
	if origin := r.Header.Get("Origin"); origin != "" {
		u, err := url.Parse(origin)
		if err != nil || u.Host != r.Host {
			return &Error{http.StatusForbidden, "cross-origin request refused"}
		}
	}
	scheme, token, _ := strings.Cut(r.Header.Get("Authorization"), " ")
	if !strings.EqualFold(scheme, "Bearer") || !h.Authorize(strings.TrimSpace(token)) {
		return &Error{http.StatusUnauthorized, "missing or wrong token: the relay keeps it in admin.token in its state folder"}
	}
	return nil
}

// isOurHost reports whether a request for host can have been meant for us: an address is nobody's to
// rebind.
func (h *Handler) isOurHost(host string) bool {
	if _, err := netip.ParseAddr(host); err == nil || strings.EqualFold(host, "localhost") {
		return true
	}
	for _, name := range h.Hosts {
		if strings.EqualFold(host, name) {
			return true
		}
	}
	return false
}

// hostname strips the port and the brackets of an IPv6 address.
func hostname(hostport string) string {
	if host, _, err := net.SplitHostPort(hostport); err == nil {
		return host
	}
	return strings.Trim(hostport, "[]")
}

// serve answers one admitted request; a nil value with a nil error is an empty object.
func (h *Handler) serve(r *http.Request) (any, error) {
	name, isSite := strings.CutPrefix(r.URL.Path, "/api/sites/")
	certificate, isCertificate := strings.CutPrefix(r.URL.Path, "/api/certificates/")
	switch {
	case r.URL.Path == "/api/status":
		if err := allow(r, http.MethodGet); err != nil {
			return nil, err
		}
		return h.Status()
	case r.URL.Path == "/api/sites" && r.Method == http.MethodPost:
		return h.addSite(r)
	case r.URL.Path == "/api/sites":
		if err := allow(r, http.MethodGet, http.MethodPost); err != nil {
			return nil, err
		}
		s, err := h.Status()
		if err != nil {
			return nil, err
		}
		return s.Sites, nil
	case isCertificate && strings.HasSuffix(certificate, "/renew") && h.RenewCertificate != nil:
		if err := allow(r, http.MethodPost); err != nil {
			return nil, err
		}
		certificate = strings.TrimSuffix(certificate, "/renew")
		if err := h.RenewCertificate(certificate); err != nil {
			return nil, err
		}
		h.log().Info("certificate: an operator wants another one", "name", certificate)
		return struct{}{}, nil
	case isSite && strings.HasSuffix(name, "/promote"):
		if err := allow(r, http.MethodPost); err != nil {
			return nil, err
		}
		return h.promoteSite(r, strings.TrimSuffix(name, "/promote"))
	case isSite && strings.HasSuffix(name, "/cameras") && h.Cameras != nil:
		if err := allow(r, http.MethodPost); err != nil {
			return nil, err
		}
		var in Search
		if err := readBody(r, &in); err != nil {
			return nil, err
		}
		return h.Cameras(r.Context(), strings.TrimSuffix(name, "/cameras"), in)
	case isSite && name != "":
		if err := allow(r, http.MethodDelete); err != nil {
			return nil, err
		}
		key := r.URL.Query().Get("key")
		if err := h.RevokeSite(name, key); err != nil {
			return nil, err
		}
		if key == "" {
			key = "all"
		}
		h.log().Info("site revoked", "site", name, "key", key)
		return struct{}{}, nil
	}
	return nil, &Error{http.StatusNotFound, "no such endpoint: is tunnelctl newer than the relay?"}
}

// readBody decodes the body of a request.
func readBody(r *http.Request, v any) error {
	// A form or text/plain body could be sent by a page without asking; JSON cannot.
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != "application/json" {
		return &Error{http.StatusUnsupportedMediaType, "the body must be application/json"}
	}
	d := json.NewDecoder(http.MaxBytesReader(nil, r.Body, maxBody))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		return &Error{http.StatusBadRequest, "body: " + err.Error()}
	}
	return nil
}

func (h *Handler) addSite(r *http.Request) (any, error) {
	var in Invite
	if err := readBody(r, &in); err != nil {
		return nil, err
	}
	switch {
	case in.Name == "":
		return nil, &Error{http.StatusBadRequest, "a site needs a name"}
	case in.Standby && len(in.Publish) > 0:
		return nil, &Error{http.StatusBadRequest, "a stand-by publishes what its site may publish: leave the patterns out"}
	case !in.Standby && len(in.Publish) == 0:
		return nil, &Error{http.StatusBadRequest, "a site needs at least one publish pattern, such as https://*.example.com"}
	case in.TTL < 0 || in.TTL > maxTTL.Seconds():
		return nil, &Error{http.StatusBadRequest, "the token's life must be between 0 and 31 days"}
	}
	inv, err := h.AddSite(in)
	if err != nil {
		return nil, err
	}
	h.log().Info("site invited", "site", in.Name, "standby", in.Standby, "expires", inv.Expires)
	return inv, nil
}

func (h *Handler) promoteSite(r *http.Request, name string) (any, error) {
	var p Promote
	if err := readBody(r, &p); err != nil {
		return nil, err
	}
	done, err := h.PromoteSite(r.Context(), name, p)
	if err != nil {
		return nil, err
	}
	h.log().Info("stand-by promoted", "site", name, "session", done.Session, "cut", p.Cut)
	return done, nil
}

// allow returns a 405 unless the method is one of allowed; GET includes HEAD.
func allow(r *http.Request, allowed ...string) error {
	for _, m := range allowed {
		if r.Method == m || r.Method == http.MethodHead && m == http.MethodGet {
			return nil
		}
	}
	return &Error{http.StatusMethodNotAllowed, "method " + r.Method + " is not one of " + strings.Join(allowed, ", ")}
}

// refuse answers with an *Error as it is, and with 500 for any other error, whose text goes to the
// log only.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, err error) {
	var e *Error
	if !errors.As(err, &e) {
		h.log().Error("admin request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		e = &Error{http.StatusInternalServerError, "the relay could not do it: its log says why"}
	} else if e.Code == http.StatusUnauthorized || e.Code == http.StatusForbidden || e.Code == http.StatusMisdirectedRequest {
		h.log().Warn("admin request refused", "method", r.Method, "path", r.URL.Path, "remote", r.RemoteAddr, "err", e)
	}
	if e.Code == http.StatusUnauthorized {
		w.Header().Set("WWW-Authenticate", `Bearer realm="culvert"`)
	}
	answer(w, e.Code, e)
}

func (h *Handler) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}

func answer(w http.ResponseWriter, code int, v any) {
	b, err := json.MarshalIndent(v, "", "  ")
	if err != nil {
		panic("BUG: admin: " + err.Error()) // only types of this file come here
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.WriteHeader(code)
	w.Write(append(b, '\n'))
}
