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

// Counters counts what has happened on the HTTP listeners since the start.
type Counters struct {
	Requests          uint64 `json:"requests"`           // sent on to a site
	Answered          uint64 `json:"answered"`           // by the relay itself: errors and redirects
	Rejected          uint64 `json:"rejected"`           // requests that were malformed or too slow
	Malformed         uint64 `json:"malformed"`          // responses that were
	TurnedAway        uint64 `json:"turned_away"`        // connections beyond a limit
	Refused           uint64 `json:"refused"`            // requests, connections and datagrams that the policy of a service did not let in
	HandshakesFailed  uint64 `json:"handshakes_failed"`  // TLS
	HandshakesLimited uint64 `json:"handshakes_limited"` // connections closed before one, as their address had too many
	Prefaces          uint64 `json:"bad_proxy_headers"`  // connections of proxies without a valid PROXY protocol header
}

// Status is the state of a public relay at one moment.
type Status struct {
	Version   string     `json:"version"`      // of the program
	Wire      int        `json:"wire_version"` // of the protocol between the relays
	Domain    string     `json:"domain"`       // the relay's own name
	Uptime    float64    `json:"uptime_s"`     // seconds
	Draining  bool       `json:"draining,omitempty"`
	Visitors  int        `json:"visitors"` // connections open now
	Counters  Counters   `json:"counters"`
	Listeners []Listener `json:"listeners"`
	Sites     []Site     `json:"sites"`
	Services  []Service  `json:"services"`
	TFTP      *TFTP      `json:"tftp,omitempty"` // nil: there is no listener for it

	Certificates []Certificate `json:"certificates"` // that the relay obtains by itself
}

// Certificate is one that the relay has from an authority, or would like to have.
type Certificate struct {
	Name      string     `json:"name"`
	Directory string     `json:"directory,omitempty"` // URL of the authority's ACME directory
	Issuer    string     `json:"issuer,omitempty"`    // who has signed it
	Expires   *time.Time `json:"expires,omitempty"`   // nil: there is none yet
	Renews    *time.Time `json:"renews,omitempty"`    // when it is due to be renewed
	OnDemand  bool       `json:"on_demand,omitempty"` // because a visitor has asked for it
	Ordering  bool       `json:"ordering,omitempty"`  // the authority is being asked just now
	Failures  int        `json:"failures,omitempty"`  // attempts since the last one that went well
	Error     string     `json:"error,omitempty"`     // why the last one did not
	NextTry   *time.Time `json:"next_try,omitempty"`  // when the next one is due, if the last has failed
}

// TFTP is what is known of TFTP in all.
type TFTP struct {
	Running       int               `json:"running"`               // transfers
	Unproven      int               `json:"unproven,omitempty"`    // of those: from addresses that have not answered yet, and may be forged
	Total         uint64            `json:"total"`                 // transfers that have begun
	Refused       map[string]uint64 `json:"refused,omitempty"`     // requests, by cause: malformed, limit, policy, not-found, failed, displaced
	Retransmitted uint64            `json:"retransmitted"`         // packets that were sent once more
	ErrorsSent    uint64            `json:"errors_sent"`           // ERROR packets
	Dropped       uint64            `json:"datagrams_dropped"`     // that were not answered, or not sent: there were too many, or they made no sense
	Cached        int64             `json:"cached"`                // bytes of files that are kept
	CacheLimit    int64             `json:"cache_limit,omitempty"` // that may be
	Hits          uint64            `json:"hits"`                  // files that had not to come from the site
}

// Listener is one address the relay accepts connections on.
type Listener struct {
	Name string `json:"name"` // https, http, admin, or the publish URL of a tcp service
	Addr string `json:"addr"`
}

// The states of a Site.
const (
	StateConnected = "connected" // the active session has a link
	StateSuspended = "suspended" // its links are lost, streams are kept until the resume timeout
	StateLeaving   = "leaving"   // its private relay shuts down, streams may finish
	StateAway      = "away"      // no session
	StateInvited   = "invited"   // a join token is out; no key is known yet
)

// StateStandby is that of a Session which is not active, and has a link. The others
// have the states of a Site.
const StateStandby = "standby"

// Site is one closed network and the sessions of its private relays. What is said of a
// session here is that of the active one.
type Site struct {
	Name           string     `json:"name"`
	State          string     `json:"state"`
	Publish        []string   `json:"publish"`                   // patterns the site may publish
	Keys           []string   `json:"keys,omitempty"`            // of its private relays
	Remote         string     `json:"remote,omitempty"`          // address the link comes from
	Software       string     `json:"software,omitempty"`        // what the private relay says it is
	RTT            float64    `json:"rtt_ms,omitempty"`          // of the best link; 0: not measured yet
	Streams        int        `json:"streams"`                   // open now
	Received       uint64     `json:"received"`                  // bytes of stream data from the site, this session
	Sent           uint64     `json:"sent"`                      // bytes of stream data to the site, this session
	ConnectedSince *time.Time `json:"connected_since,omitempty"` // when the session began
	SuspendedSince *time.Time `json:"suspended_since,omitempty"` // when its last link was lost
	InvitedUntil   *time.Time `json:"invited_until,omitempty"`   // when the join token expires
	Sessions       []Session  `json:"sessions,omitempty"`        // the active one first
}

// Session is the session of one private relay.
type Session struct {
	ID             string     `json:"id"` // what Promote takes
	State          string     `json:"state"`
	Active         bool       `json:"active"`            // it gets the site's visitors
	Key            string     `json:"key"`               // of the private relay
	Machine        string     `json:"machine,omitempty"` // where it runs; the same after a restart
	Process        string     `json:"process,omitempty"` // another one after a restart
	Remote         string     `json:"remote"`            // where its newest link comes from
	Software       string     `json:"software,omitempty"`
	Choice         string     `json:"choice,omitempty"` // why it uses the transports that it does, in its own words
	RTT            float64    `json:"rtt_ms,omitempty"`
	Links          []Link     `json:"links"`
	Streams        int        `json:"streams"`
	Received       uint64     `json:"received"`
	Sent           uint64     `json:"sent"`
	Buffered       int        `json:"buffered"`                    // bytes that its streams keep here
	Dropped        uint64     `json:"datagrams_dropped,omitempty"` // they came faster than its links take them, or it had none
	ConnectedSince time.Time  `json:"connected_since"`
	SuspendedSince *time.Time `json:"suspended_since,omitempty"`
	Offers         int        `json:"offers"`            // services that it has announced
	Refused        []Refused  `json:"refused,omitempty"` // those of them that are, or would be, not published; the first 20
}

// Link is one link of a session.
type Link struct {
	Transport string    `json:"transport"` // wss or quic
	Role      string    `json:"role"`      // interactive, bulk or datagram; none: it is being drained
	RTT       float64   `json:"rtt_ms,omitempty"`
	Remote    string    `json:"remote"`
	Suspect   bool      `json:"suspect,omitempty"` // an answer is owed, and nothing comes
	Since     time.Time `json:"since"`
}

// Refused is a service that is not published, and why.
type Refused struct {
	Service string `json:"service"`
	Error   string `json:"error"`
}

// Service is one pair of publish and target that a connected site has announced.
type Service struct {
	Site     string `json:"site"`
	Name     string `json:"name"`
	Publish  string `json:"publish,omitempty"` // URL; empty: reachable by operators only
	Target   string `json:"target_scheme"`     // the scheme alone: the address is the site's own business
	Visitors int    `json:"visitors"`          // now
	Total    uint64 `json:"visitors_total"`
	Received uint64 `json:"received"` // bytes from visitors
	Sent     uint64 `json:"sent"`     // bytes to visitors

	// Errors counts what went wrong, by the words of the access log; nil: nothing.
	Errors map[string]uint64 `json:"errors,omitempty"`

	// Of a udp service, whose visitors are flows. Dropped are those that were lost at its port: there was a
	// limit, or a buffer was full.
	DatagramsReceived uint64 `json:"datagrams_received,omitempty"`
	DatagramsSent     uint64 `json:"datagrams_sent,omitempty"`
	DatagramsDropped  uint64 `json:"datagrams_dropped,omitempty"`

	Camera *Camera `json:"camera,omitempty"` // nil: the service is none
	Files  *Files  `json:"files,omitempty"`  // nil: the service has none, by TFTP
}

// Files is what is known of a service of files by TFTP. Its visitors are transfers.
type Files struct {
	Rate          uint64 `json:"bits_per_second"` // of files, both ways, on the average of the last seconds
	Retransmitted uint64 `json:"retransmitted"`   // packets that were sent once more
	Refused       uint64 `json:"refused"`         // requests that were not admitted
	Cached        int64  `json:"cached"`          // bytes of its files that are kept at the public relay
	Hits          uint64 `json:"hits"`            // files that were read and had not to come from the site
}

// Camera is what is known of the camera of a service.
type Camera struct {
	Viewers    int           `json:"viewers"`             // who play it now
	Received   uint64        `json:"received"`            // bytes of pictures and sound from the site
	Rate       uint64        `json:"bits_per_second"`     // of them, on the average of the last seconds
	Tracks     []CameraTrack `json:"tracks,omitempty"`    // of its last description; nil: nobody has watched it yet
	KeyFrame   *time.Time    `json:"key_frame,omitempty"` // when the last one came
	Reconnects uint64        `json:"reconnects"`          // of the stream that viewers share
	Dropped    uint64        `json:"frames_dropped"`      // for viewers who are slow
}

// CameraTrack is one track of a Camera.
type CameraTrack struct {
	Media  string `json:"media"` // video, audio, application
	Codec  string `json:"codec,omitempty"`
	Width  int    `json:"width,omitempty"` // of the picture; 0: not known
	Height int    `json:"height,omitempty"`
}

// Invite asks for a join token: a site of that name may join once, and may then publish what the
// patterns allow. A token for a stand-by adds a private relay to a site that is there, and has no
// patterns.
type Invite struct {
	Name    string   `json:"name"`
	Publish []string `json:"publish,omitempty"`
	Standby bool     `json:"standby,omitempty"`
	TTL     float64  `json:"ttl_s"` // seconds the token lives; 0: the relay's default, 24 h
}

// Lifetime returns the TTL as a duration.
func (i Invite) Lifetime() time.Duration { return time.Duration(i.TTL * float64(time.Second)) }

// Invitation is the answer to an Invite. Token is a secret, shown this once.
type Invitation struct {
	Site    string    `json:"site"`
	Token   string    `json:"token"`
	Expires time.Time `json:"expires"`
}

// Promote has a stand-by of a site take over: visitors who come from now on go to it.
type Promote struct {
	Session string `json:"session,omitempty"` // the ID of a Session, or its beginning; "": the only stand-by
	Cut     bool   `json:"cut,omitempty"`     // what visitors have under way elsewhere is reset after the relay's drain_timeout
}

// Promoted is the answer to a Promote.
type Promoted struct {
	Session string `json:"session"` // ID
}

// Search has the private relay of a site look for cameras on its network. It takes some seconds.
type Search struct {
	User     string `json:"user,omitempty"` // for cameras that tell who has a password alone what they show
	Password string `json:"password,omitempty"`
}

// SearchTime is how long a Search may take.
const SearchTime = 40 * time.Second

// Cameras is the answer to a Search: a list of what package onvif calls a Device.
type Cameras struct {
	Devices json.RawMessage `json:"devices"`
}

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
