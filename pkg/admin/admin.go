// Package admin is the operators' door of a public relay: its API, which is a set of package rest's services, and the
// client that tunnelctl uses.
//
//	GET  /healthz                            200 as long as the relay's event loops turn; needs no token, and comes without TLS
//	GET  /readyz                             200 as long as it takes visitors; needs no token, and comes without TLS
//	GET  /metrics                            for Prometheus
//	GET  /debug/pprof/...                    profiles
//	POST /api/login, /api/logout             a cookie for a token, for browsers
//	     /api/ROOT/METHOD                    the methods, see methods.go; /api/ws for many on one WebSocket
//	GET  /api/openapi.json, /api/docs        what they are
//	GET  /.culvert/operate/SITE              WebSocket: a link of an operator, for streams to services (see package operate)
//	GET  /...                                files of a page for browsers, which need no token
//
// A server is a Handler with its func fields filled in:
//
//	h := &admin.Handler{Operators: operators, Status: relay.Status}
//	defer h.Close()
//	http.Serve(loopback, h) // or package httpd, where a silent WebSocket costs next to nothing
//
// Invariants: nothing but /healthz, /readyz and the files answers without a token that is good now, and these say why not
// and nothing else; a request whose Host is not localhost or an address (or one of Handler.Hosts) is refused, so that a web
// page cannot reach the API by rebinding its own name to 127.0.0.1; a request with a foreign Origin is refused, whatever it
// carries, and one that changes something or opens a WebSocket by a cookie has to have one of ours; what was opened by a
// token ends with it; nothing here keeps a secret: of tokens there are digests, in package auth, and neither log nor audit
// has what was sent as one.
package admin

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"log/slog"
	"math"
	"mime"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"sync"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/rest"
)

// maxBody bounds a request body and a message of a WebSocket: a configuration file fits.
const maxBody = 256 << 10

// maxTTL bounds the life of a join token. A token is a secret in somebody's mail; a year-old one is
// a hole nobody remembers.
const maxTTL = 31 * 24 * time.Hour

// callTime is how long a call may take: the longest, a search for cameras, and some more.
const callTime = SearchTime + 20*time.Second

// Handler serves the API. All fields are set before the first request and not changed afterwards; the funcs are called from
// goroutines of requests, several at a time. Those that are nil are answered with 404. An *rest.Error of theirs chooses the
// answer; any other error is a fault of the relay's, which the log gets and the caller does not. OperatorOf tells them who
// asks.
type Handler struct {
	// Operators says whose a token is. Required.
	Operators *auth.Operators

	// Hosts lists names accepted in Host besides localhost and addresses, without port.
	Hosts []string

	// Login is the URL by which the API is reached from other machines. "": it is not.
	Login string

	// Version of the program.
	Version Version

	// Status returns a snapshot. Sites, services, sessions, links and certificates are parts of it.
	Status func() (*Status, error)

	// Figures looks at what is watched: however many watch, as often as the most eager one wants, and never twice at a time.
	Figures func(context.Context) (*Look, error)

	// AddSite makes a join token, RotateSite one that replaces the site's keys. RevokeSite forgets a key of a site and cuts
	// its sessions. PromoteSite has a stand-by take over. Expose makes an ephemeral site.
	AddSite     func(context.Context, Invite) (*Invitation, error)
	RotateSite  func(context.Context, Rotate) (*Invitation, error)
	RevokeSite  func(context.Context, Revoke) error
	PromoteSite func(context.Context, Promote) (*Promoted, error)
	Expose      func(context.Context, Expose) (*Exposed, error)

	// Cameras has a site look for cameras.
	Cameras func(context.Context, Search) (*Cameras, error)

	// Streams and Visitors list what is open. KickSession and KickStream end one.
	Streams     func(context.Context, Filter) ([]Stream, error)
	Visitors    func(context.Context, Limit) ([]Visitor, error)
	KickSession func(context.Context, ByID) error
	KickStream  func(context.Context, ByID) error

	// RenewCertificate has another certificate ordered for a name.
	RenewCertificate func(context.Context, Named) error

	// Requests lists the last ones, and FollowRequests sends them from now on. Request returns one as far as it was kept,
	// and Replay sends it once more.
	Requests       func(context.Context, Filter) ([]Request, error)
	FollowRequests func(context.Context, Filter, func(Request) error) error
	Request        func(context.Context, ByID) (*Exchange, error)
	Replay         func(context.Context, ByID) (*Exchange, error)

	// History returns the rates of the past.
	History func(context.Context, Span) (*History, error)

	// Alerts lists those that there are, and the last that were. TestAlerts has those who are to be told be told of nothing.
	Alerts     func(context.Context) ([]Alert, error)
	TestAlerts func(context.Context) ([]AlertDelivery, error)

	// Logs returns the last lines of the relay's log. FollowLogs sends these, and then those that come.
	Logs       func(context.Context, Lines) ([]LogLine, error)
	FollowLogs func(context.Context, Lines, func(LogLine) error) error

	// CheckConfig says what is wrong with a configuration file.
	CheckConfig func(context.Context, ConfigText) (*ConfigReport, error)

	// Drain has the relay stop as it does when it is told so by a signal. It returns at once.
	Drain func(context.Context) error

	// Services are served beside those of this package. Their methods say what role they need by rest.Needs, of whom
	// anybody who has a token may call those that do not.
	Services []*rest.Service

	// Operate serves what is below OperatePath. It checks the token itself. nil: 404.
	Operate http.Handler

	// Healthy tells what is wrong with the process, nil that nothing is; Ready why it takes no visitors.
	// They are given a second or two. nil: nothing ever is.
	Healthy, Ready func(context.Context) error

	// Metrics serves /metrics, for viewers; Debug what is below /debug/, for admins. nil: 404.
	Metrics, Debug http.Handler

	// Files serves all other paths, by GET and HEAD, without a token. nil: 404.
	Files http.Handler

	// Audit keeps who changed what and who was refused. nil: nobody keeps it.
	Audit *Audit

	// Log hears about requests refused or failed, and about changes. nil: discarded.
	Log *slog.Logger

	// What one operator may have at a time, by whatever tokens: WebSockets, feeds, and calls under way. 0: 1024, 256, 64.
	// Whoever wants more gets 429.
	MaxSockets, MaxFeeds, MaxCalls int

	once    sync.Once // of start
	api     *rest.Server
	watch   watch
	wrong   attempts[netip.Prefix] // tokens, by address
	foreign attempts[netip.Prefix] // requests of other pages
	refused attempts[string]       // requests of those who may not, by token

	mu     sync.Mutex
	logins map[[32]byte]*login
	living map[*living]struct{}
	held   map[string]*held // by operator
}

// OperatePath begins the path of a link of an operator, on the admin listener and on the relay's own domain alike:
// OperatePath + SITE.
const OperatePath = "/.culvert/operate/"

// signature is the header field of every answer to who has been let in, so that a client knows whom it speaks to.
const signature = "Culvert-Api"

// start makes what the fields are served by.
func (h *Handler) start() {
	h.logins, h.living, h.held = make(map[[32]byte]*login), make(map[*living]struct{}), make(map[string]*held)
	h.api = &rest.Server{
		Prefix:       "/api/",
		Title:        "Culvert relay",
		Version:      or(h.Version.Version, "devel"),
		Bearer:       true,
		Admit:        h.admitCall,
		Connect:      h.connect,
		Disconnected: h.disconnected,
		Done:         h.done,
		Log:          h.log(),
		Limits:       rest.Limits{MaxBody: maxBody, CallTimeout: callTime},
	}
	h.api.Set(h.services()...)
	h.api.Set(h.Services...)
}

// Close ends WebSockets, feeds and logins, and returns when they have ended.
func (h *Handler) Close() error {
	h.once.Do(h.start)
	err := h.api.Close()
	h.mu.Lock()
	var all []*login
	for _, l := range h.logins {
		all = append(all, l)
	}
	h.mu.Unlock()
	for _, l := range all {
		h.logout(l)
	}
	return err
}

func (h *Handler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h.once.Do(h.start)
	head := w.Header()
	head.Set("X-Content-Type-Options", "nosniff")
	head.Set("Referrer-Policy", "no-referrer")
	head.Set("X-Frame-Options", "DENY")
	head.Set("Cross-Origin-Resource-Policy", "same-origin")
	path := r.URL.Path
	switch {
	case r.TLS != nil: // not for everybody
	case path == "/healthz":
		probe(w, r, h.Healthy)
		return
	case path == "/readyz":
		probe(w, r, h.Ready)
		return
	}
	isOperate := strings.HasPrefix(path, OperatePath)
	isFile := !isOperate && !strings.HasPrefix(path, "/api/") && !strings.HasPrefix(path, "/debug/") && path != "/metrics"
	if err := h.ours(r, isFile); err != nil {
		h.refuse(w, r, nil, err)
		return
	}
	switch {
	case isOperate && h.Operate != nil:
		h.Operate.ServeHTTP(w, r)
		return
	case path == "/api/login":
		h.serveLogin(w, r)
		return
	case isFile && h.Files != nil:
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			head.Set("Allow", "GET, HEAD")
			h.refuse(w, r, nil, rest.Errorf(http.StatusMethodNotAllowed, "this wants GET"))
			return
		}
		h.Files.ServeHTTP(w, r)
		return
	}
	who, err := h.authenticate(r)
	if err != nil {
		h.refuse(w, r, nil, err)
		return
	}
	head.Set(signature, "1")
	r = r.WithContext(context.WithValue(r.Context(), callerKey{}, who))
	need, next := auth.NoRole, http.Handler(nil)
	switch {
	case path == "/api/logout":
		h.serveLogout(w, r, who)
		return
	case strings.HasPrefix(path, "/api/"):
		h.api.ServeHTTP(w, r)
		return
	case path == "/metrics":
		need, next = auth.Viewer, h.Metrics
	case strings.HasPrefix(path, "/debug/"):
		need, next = auth.Administer, h.Debug
	}
	switch {
	case next == nil:
		h.refuse(w, r, who, rest.Errorf(http.StatusNotFound, "nothing is here: the API is below /api/, and /api/docs says what there is"))
	case who.Role < need:
		h.refuse(w, r, who, mayNot(who.Identity, need, strings.Trim(path, "/")))
	default:
		next.ServeHTTP(w, r)
	}
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

var errForeign = &rest.Error{Code: http.StatusForbidden, Text: "cross-origin request refused"}

// ours checks Host and Origin, before any token: a page in the operator's browser must not even learn whether its guess of
// one was right. A link elsewhere may lead to a file.
func (h *Handler) ours(r *http.Request, isFile bool) error {
	if !h.isOurHost(hostname(r.Host)) {
		return rest.Errorf(http.StatusMisdirectedRequest, "host is a name that the relay does not know: use its address, or localhost")
	}
	if site := r.Header.Get("Sec-Fetch-Site"); site == "cross-site" || site == "same-site" {
		isLink := isFile && r.Method == http.MethodGet && r.Header.Get("Sec-Fetch-Mode") == "navigate" && r.Header.Get("Sec-Fetch-Dest") == "document"
		if !isLink {
			return errForeign
		}
	}
	if origin := r.Header.Get("Origin"); origin != "" && !isOurOrigin(r, origin) {
		return errForeign
	}
	return nil
}

// isOurOrigin reports whether an Origin is where the request itself went to.
func isOurOrigin(r *http.Request, origin string) bool {
	scheme := "http"
	if r.TLS != nil {
		scheme = "https"
	}
	u, err := url.Parse(origin)
	return err == nil && u.Scheme == scheme && u.Host != "" && strings.EqualFold(u.Host, r.Host)
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

// readBody decodes the body of a request that is none of package rest's.
func readBody(w http.ResponseWriter, r *http.Request, v any) error {
	// A form or text/plain body could be sent by a page without asking; JSON cannot.
	if t, _, _ := mime.ParseMediaType(r.Header.Get("Content-Type")); t != "application/json" {
		return rest.Errorf(http.StatusUnsupportedMediaType, "the body must be application/json")
	}
	d := json.NewDecoder(http.MaxBytesReader(w, r.Body, 4<<10))
	d.DisallowUnknownFields()
	if err := d.Decode(v); err != nil {
		// Not err: a syntax error would repeat a part of what may be a token.
		return rest.Errorf(http.StatusBadRequest, `the body is not what is wanted: {"token": "…"}`)
	}
	return nil
}

// refuse answers with an error, and says so to whom it may concern. who is nil if nobody knows.
func (h *Handler) refuse(w http.ResponseWriter, r *http.Request, who *caller, err error) {
	var e *rest.Error
	if !errors.As(err, &e) {
		h.log().Error("admin request failed", "method", r.Method, "path", r.URL.Path, "err", err)
		e = rest.Errorf(http.StatusInternalServerError, "the relay could not do it: its log says why")
	}
	head := w.Header()
	switch e.Code {
	case http.StatusUnauthorized:
		head.Set("WWW-Authenticate", `Bearer realm="culvert"`)
	case http.StatusTooManyRequests:
		head.Set("Retry-After", "60")
	}
	if isRefusal(e.Code) && h.isTold(who, remoteOf(r).Addr()) {
		path := strings.ToValidUTF8(r.URL.Path[:min(len(r.URL.Path), mostPath)], "")
		h.log().Warn("admin request refused", "method", r.Method, "path", path, "remote", r.RemoteAddr, "err", e)
		line := AuditLine{Remote: r.RemoteAddr, Via: rest.HTTP, Call: strings.Trim(path, "/"), Code: e.Code, Error: e.Text}
		h.record(line, who)
	}
	answer(w, e.Code, e)
}

// mostPath is how many bytes of a path are told of who was refused.
const mostPath = 100

// isTold is whether one more refusal of somebody, nil if nobody knows of whom, is for the logs.
func (h *Handler) isTold(who *caller, from netip.Addr) bool {
	if who == nil {
		return h.foreign.allow(network(from), mostAttempts, mostForeign, time.Now())
	}
	return h.refused.allow(who.Token, mostRefusals, math.MaxInt, time.Now())
}

// isRefusal is whether an answer says that somebody may not.
func isRefusal(code int) bool {
	return code == http.StatusUnauthorized || code == http.StatusForbidden || code == http.StatusMisdirectedRequest
}

// remoteOf is where a request comes from; the zero AddrPort if that is not known.
func remoteOf(r *http.Request) netip.AddrPort {
	a, _ := netip.ParseAddrPort(r.RemoteAddr)
	return netip.AddrPortFrom(a.Addr().Unmap(), a.Port())
}

func (h *Handler) log() *slog.Logger {
	if h.Log == nil {
		return slog.New(slog.DiscardHandler)
	}
	return h.Log
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

func answer(w http.ResponseWriter, code int, v any) {
	b, err := json.Marshal(v)
	if err != nil {
		panic("BUG: admin: " + err.Error()) // only types of this package come here
	}
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(code)
	w.Write(append(b, '\n'))
}
