package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/dashboard"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/metrics"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/public"
)

// door is what the operators' API needs.
type door struct {
	state    *state
	relay    *public.Relay
	alerts   *alerts
	turning  *daemon.Probe
	access   *accessLog // nil: there is none
	audit    *admin.Audit
	drain    time.Duration // how long what is under way may go on when a stand-by is promoted with Cut
	stop     func()        // as a signal does
	file     string        // the configuration
	settings *settings     // of it, when the relay began
	log      *slog.Logger
}

// handler is the API. here is where it listens, nil if it does not.
func (d *door) handler(here net.Addr) *admin.Handler {
	st, r, log := d.state, d.relay, d.log
	started := time.Now()
	figures := metrics.Config{Status: r.Status, Sites: st.names, Certificates: st.certificates, Version: version}
	if d.access != nil {
		figures.LogDropped = d.access.Dropped
	}
	debug := http.NewServeMux()
	debug.HandleFunc("/debug/pprof/", pprof.Index)
	debug.HandleFunc("/debug/pprof/profile", pprof.Profile)
	debug.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	debug.HandleFunc("/debug/pprof/trace", pprof.Trace)
	var hosts []string
	login := ""
	if d.settings.Operators.Domain {
		hosts, login = []string{r.Domain}, "https://"+strings.TrimSuffix(st.publicAddress(), ":443")
	}
	return &admin.Handler{
		Hosts:            hosts,
		Login:            login,
		Operators:        st.operators,
		Files:            dashboard.Handler(),
		Version:          admin.Version{Version: version, Wire: relay.WireVersion, Go: runtime.Version(), OS: runtime.GOOS, Arch: runtime.GOARCH},
		Status:           func() (*admin.Status, error) { return status(st, r, started, here), nil },
		AddSite:          st.invite,
		RotateSite:       st.rotate,
		RevokeSite:       st.revoke,
		RenewCertificate: st.renewCertificate,
		PromoteSite: func(ctx context.Context, p admin.Promote) (*admin.Promoted, error) {
			return promote(ctx, r, p, d.drain)
		},
		Expose:  st.exposed.add,
		Cameras: func(ctx context.Context, in admin.Search) (*admin.Cameras, error) { return cameras(ctx, r, in) },
		CheckConfig: func(_ context.Context, in admin.ConfigText) (*admin.ConfigReport, error) {
			return checkText(d.file, in.Text, d.settings), nil
		},
		MaxSockets: d.settings.Operators.Sockets,
		Drain: func(context.Context) error {
			d.stop()
			return nil
		},
		Alerts:     d.alerts.list,
		TestAlerts: d.alerts.test,
		Operate:    http.HandlerFunc(r.ServeOperate),
		Healthy:    d.turning.Turn,
		Ready: func(context.Context) error {
			if err := r.Ready(); err != nil {
				return err
			}
			return st.ready(time.Now())
		},
		Metrics: metrics.New(figures),
		Debug:   debug,
		Audit:   d.audit,
		Log:     log,
	}
}

// adminServer is where operators come in: at the admin listener, and at the relay's own domain if that is configured.
type adminServer struct {
	api  *admin.Handler
	core *evloop.Core // of the admin listener: it answers when the loops of visitors do not turn
	here httpd.Server // of those who come by the admin listener
	own  httpd.Server // and by the domain, on the loops of visitors
	addr net.Addr     // of the admin listener; nil: there is none
}

// Bounds of those who come by the domain, who may be anybody.
const (
	maxOwn     = 4096 // connections
	maxOwnEach = 256  // from one address
	ownIdle    = time.Minute
)

// newAdminServer listens at an address, unless it is "", on the socket that was there before us if there is one. api is set
// before anybody is served: before serve is called.
func newAdminServer(sockets *daemon.Sockets, address string, log *slog.Logger) (*adminServer, error) {
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		return nil, err
	}
	a := &adminServer{core: core}
	panicked := func(r *http.Request, value any, stack []byte) {
		log.Error("panic in the admin API", "method", r.Method, "path", r.URL.Path, "panic", fmt.Sprint(value), "stack", string(stack))
	}
	limits := http1.Limits{MaxHead: 32 << 10}
	a.here = httpd.Server{OnPanic: panicked, Limits: limits, MaxConns: 65536}
	a.own = httpd.Server{OnPanic: panicked, Limits: limits, MaxConns: maxOwn, MaxPerAddr: maxOwnEach, IdleTimeout: ownIdle, MaxHandlers: maxOwn}
	a.here.SetHandler(starting)
	a.own.SetHandler(starting)
	if address == "" {
		return a, nil
	}
	accept := func(c *evloop.Conn) { a.here.Serve(c, c.Loop(), httpd.Peer{Addr: c.RemoteAddr()}) }
	ln, err := listenOn(core, sockets, address, accept)
	if err != nil {
		core.Close()
		return nil, err
	}
	a.addr = ln.Addr()
	return a, nil
}

// listenOn listens on the socket that was there before us, if there is one.
func listenOn(core *evloop.Core, sockets *daemon.Sockets, address string, accept func(*evloop.Conn)) (*evloop.Listener, error) {
	if files := sockets.Files("admin", "tcp", address); len(files) > 0 {
		return core.ListenFile(files[0], accept)
	}
	return core.Listen("tcp", address, accept)
}

// starting answers until serve is called.
var starting = http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Retry-After", "1")
	http.Error(w, "the relay is just starting", http.StatusServiceUnavailable)
})

// serve has operators served by api.
func (a *adminServer) serve(api *admin.Handler) {
	a.api = api
	a.here.SetHandler(api)
	a.own.SetHandler(api)
}

// take serves whoever asks for a page of the relay's own domain: it is public.Relay's Own.
func (a *adminServer) take(conn *evloop.Conn, l *evloop.Loop, from netip.AddrPort, state *tls.ConnectionState) {
	a.own.Serve(conn, l, httpd.Peer{Addr: from, TLS: state})
}

// close ends what there is, and waits for the requests for a second.
func (a *adminServer) close() {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	if a.api != nil {
		a.api.Close()
	}
	for _, srv := range []*httpd.Server{&a.here, &a.own} {
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
	}
	a.core.Close()
	a.here.Wait()
	a.own.Wait()
}

// status is what operators see.
func status(st *state, r *public.Relay, started time.Time, here net.Addr) *admin.Status {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	now := r.Status(ctx)
	s := &admin.Status{
		Version:   version,
		Wire:      relay.WireVersion,
		Domain:    r.Domain,
		Uptime:    time.Since(started).Seconds(),
		Draining:  now.Draining,
		Visitors:  now.Visitors,
		Counters:  admin.Counters(now.Counters),
		Listeners: []admin.Listener{},
		Sites:     []admin.Site{},
		Services:  []admin.Service{},
		TFTP:      overTFTP(now.TFTP),

		Certificates: st.obtained(),
	}
	if here != nil {
		s.Listeners = append(s.Listeners, admin.Listener{Name: "admin", Addr: here.String()})
	}
	for _, l := range now.Listeners {
		s.Listeners = append(s.Listeners, admin.Listener{Name: l.Name, Addr: l.Addr.String()})
	}
	sessions := make(map[string][]public.SessionStatus)
	for _, session := range now.Sessions {
		sessions[session.Site] = append(sessions[session.Site], session)
		for _, svc := range session.Services {
			s.Services = append(s.Services, admin.Service{
				Site: session.Site, Name: svc.Name, Publish: svc.Publish, Target: svc.Target,
				Visitors: svc.Visitors, Total: svc.Total, Received: svc.Received, Sent: svc.Sent, Errors: troubles(svc.Errors),
				DatagramsReceived: svc.Datagrams.Received, DatagramsSent: svc.Datagrams.Sent, DatagramsDropped: svc.Datagrams.Dropped,
				Camera: camera(svc.Camera), Files: files(svc.TFTP),
			})
		}
	}
	for _, site := range st.known() {
		for _, status := range sessions[site.Name] {
			one := session(status)
			site.Sessions = append(site.Sessions, one)
			if one.Active {
				site.State, site.ConnectedSince, site.SuspendedSince = one.State, &one.ConnectedSince, one.SuspendedSince
				site.Remote, site.Software, site.RTT = one.Remote, one.Software, one.RTT
				site.Streams, site.Received, site.Sent = one.Streams, one.Received, one.Sent
			}
		}
		slices.SortStableFunc(site.Sessions, func(a, b admin.Session) int {
			if a.Active != b.Active {
				if a.Active {
					return -1
				}
				return 1
			}
			return a.ConnectedSince.Compare(b.ConnectedSince)
		})
		s.Sites = append(s.Sites, site)
	}
	slices.SortFunc(s.Sites, func(a, b admin.Site) int { return strings.Compare(a.Name, b.Name) })
	return s
}

// troubles are those of a service that there were.
func troubles(t public.Troubles) (m map[string]uint64) {
	for i, n := range t {
		if w := public.Words[i]; w != "" && n > 0 {
			if m == nil {
				m = make(map[string]uint64)
			}
			m[w] = n
		}
	}
	return m
}

// camera is what operators see of one.
func camera(c *public.CameraStatus) *admin.Camera {
	if c == nil {
		return nil
	}
	one := &admin.Camera{Viewers: c.Viewers, Received: c.Received, Rate: c.Rate, Reconnects: c.Reconnects, Dropped: c.Dropped}
	for _, t := range c.Tracks {
		one.Tracks = append(one.Tracks, admin.CameraTrack(t))
	}
	if !c.KeyFrame.IsZero() {
		one.KeyFrame = &c.KeyFrame
	}
	return one
}

// files is what operators see of a service of files.
func files(t *public.TFTPStatus) *admin.Files {
	if t == nil {
		return nil
	}
	return &admin.Files{Rate: t.Rate, Retransmitted: t.Retransmitted, Refused: t.Refused, Cached: t.Cached, Hits: t.Hits}
}

// overTFTP is what operators see of TFTP in all.
func overTFTP(t *public.TFTPPort) *admin.TFTP {
	if t == nil {
		return nil
	}
	one := &admin.TFTP{
		Running: t.Running, Unproven: t.Unproven, Total: t.Total, Retransmitted: t.Retransmitted, ErrorsSent: t.ErrorsSent, Dropped: t.Dropped,
		Cached: t.Cache.Bytes, CacheLimit: t.Cache.Limit, Hits: t.Cache.Hits,
	}
	for cause, n := range t.Causes() {
		if n > 0 {
			if one.Refused == nil {
				one.Refused = make(map[string]uint64)
			}
			one.Refused[cause] = n
		}
	}
	return one
}

// session is what operators see of one.
func session(s public.SessionStatus) admin.Session {
	one := admin.Session{
		ID: s.ID, Active: s.Active, Key: s.Key, Machine: s.Machine, Process: s.Process,
		Remote: s.Remote, Software: s.Software, Choice: s.Choice, RTT: milliseconds(s.RTT), Links: []admin.Link{},
		Streams: s.Streams, Received: s.Received, Sent: s.Sent, Buffered: s.Buffered, Dropped: s.Dropped,
		ConnectedSince: s.Since, Offers: s.Announced,
	}
	if one.State = stateOf(!s.Lost.IsZero(), s.Leaving); one.State == admin.StateConnected && !s.Active {
		one.State = admin.StateStandby
	}
	if !s.Lost.IsZero() {
		one.SuspendedSince = &s.Lost
	}
	for _, l := range s.Links {
		one.Links = append(one.Links, admin.Link{
			Transport: l.Transport, Role: l.Role, RTT: milliseconds(l.RTT), Remote: l.Remote, Suspect: l.Suspect, Since: l.Since,
		})
	}
	for _, e := range s.Refused {
		one.Refused = append(one.Refused, admin.Refused{Service: e.Name, Error: e.Error})
	}
	return one
}

// stateOf is that of an active session.
func stateOf(lost, leaving bool) string {
	switch {
	case lost:
		return admin.StateSuspended
	case leaving:
		return admin.StateLeaving
	}
	return admin.StateConnected
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// withSessions are the names of the sites that have a session; true: with a link.
func withSessions(r *public.Relay) map[string]bool {
	ctx, cancel := context.WithTimeout(context.Background(), 5*time.Second)
	defer cancel()
	names := make(map[string]bool)
	for _, s := range r.Status(ctx).Sessions {
		names[s.Site] = names[s.Site] || s.Lost.IsZero()
	}
	return names
}

// promote has a stand-by take over.
func promote(ctx context.Context, r *public.Relay, p admin.Promote, drain time.Duration) (*admin.Promoted, error) {
	if !p.Cut {
		drain = -1
	}
	id, err := r.Promote(ctx, p.Name, p.Session, drain)
	switch {
	case errors.Is(err, public.ErrUnknownSite):
		return nil, noSite(p.Name)
	case err != nil:
		return nil, &admin.Error{Code: http.StatusConflict, Text: err.Error()}
	}
	return &admin.Promoted{Session: id}, nil
}

// cameras has a site look for cameras.
func cameras(ctx context.Context, r *public.Relay, in admin.Search) (*admin.Cameras, error) {
	ctx, cancel := context.WithTimeout(ctx, admin.SearchTime)
	defer cancel()
	devices, err := r.Discover(ctx, in.Site, relay.DiscoverRequest{User: in.User, Password: in.Password})
	switch {
	case errors.Is(err, public.ErrUnknownSite):
		return nil, noSite(in.Site)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, &admin.Error{Code: http.StatusGatewayTimeout, Text: fmt.Sprintf("site %q has not answered within %v", in.Site, admin.SearchTime)}
	case err != nil:
		return nil, &admin.Error{Code: http.StatusConflict, Text: err.Error()}
	}
	return &admin.Cameras{Devices: devices}, nil
}

func noSite(name string) *admin.Error {
	return &admin.Error{Code: http.StatusNotFound, Text: fmt.Sprintf("no site %q: `tunnelctl sites` lists those that there are", name)}
}
