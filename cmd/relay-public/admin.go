package main

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
	"net/netip"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/public"
)

// serveAdmin serves operators on ln until stop is called, which waits for the requests.
func serveAdmin(ln net.Listener, st *state, r *public.Relay, log *slog.Logger) (stop func()) {
	started := time.Now()
	mux := http.NewServeMux()
	mux.Handle("/", &admin.Handler{
		Authorize:  st.admin.Matches,
		Status:     func() (*admin.Status, error) { return status(st, r, started, ln.Addr()), nil },
		AddSite:    st.invite,
		RevokeSite: st.revoke,
		Forward:    http.HandlerFunc(r.ServeForward),
		Log:        log,
	})
	mux.HandleFunc("/debug/pprof/", localOnly(pprof.Index))
	mux.HandleFunc("/debug/pprof/profile", localOnly(pprof.Profile))
	mux.HandleFunc("/debug/pprof/symbol", localOnly(pprof.Symbol))
	mux.HandleFunc("/debug/pprof/trace", localOnly(pprof.Trace))
	srv := &http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 10 * time.Second,
		IdleTimeout:       75 * time.Second,
		MaxHeaderBytes:    32 << 10,
		ErrorLog:          slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	done := make(chan struct{})
	go runAdmin(srv, ln, done, log)
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		if srv.Shutdown(ctx) != nil {
			srv.Close()
		}
		<-done
	}
}

func runAdmin(srv *http.Server, ln net.Listener, done chan<- struct{}, log *slog.Logger) {
	defer close(done)
	if err := srv.Serve(ln); !errors.Is(err, http.ErrServerClosed) {
		log.Error("admin listener", "err", err)
	}
}

// localOnly serves requests that come from this machine and mean it: profiles need no token, and a page that
// has rebound its name to 127.0.0.1 gets none.
func localOnly(h http.HandlerFunc) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		from, err := netip.ParseAddrPort(r.RemoteAddr)
		host := r.Host
		if h, _, err := net.SplitHostPort(host); err == nil {
			host = h
		}
		ip, hostErr := netip.ParseAddr(strings.Trim(host, "[]"))
		if err != nil || !from.Addr().Unmap().IsLoopback() || host != "localhost" && (hostErr != nil || !ip.IsLoopback()) || r.Header.Get("Origin") != "" {
			http.Error(w, "profiles are for this machine alone: use 127.0.0.1 or localhost", http.StatusForbidden)
			return
		}
		h(w, r)
	}
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
		Listeners: []admin.Listener{{Name: "admin", Addr: here.String()}},
		Sites:     []admin.Site{},
		Services:  []admin.Service{},
	}
	for _, l := range now.Listeners {
		s.Listeners = append(s.Listeners, admin.Listener{Name: l.Name, Addr: l.Addr.String()})
	}
	sessions := make(map[string]public.SessionStatus)
	for _, session := range now.Sessions {
		if session.Active {
			sessions[session.Site] = session
		}
		for _, svc := range session.Services {
			s.Services = append(s.Services, admin.Service{
				Site: session.Site, Name: svc.Name, Publish: svc.Publish, Target: svc.Target,
				Visitors: svc.Visitors, Total: svc.Total, Received: svc.Received, Sent: svc.Sent,
				DatagramsReceived: svc.Datagrams.Received, DatagramsSent: svc.Datagrams.Sent, DatagramsDropped: svc.Datagrams.Dropped,
			})
		}
	}
	for _, site := range st.known() {
		if session, ok := sessions[site.Name]; ok {
			site.State = admin.StateConnected
			if !session.Lost.IsZero() {
				site.State, site.SuspendedSince = admin.StateSuspended, &session.Lost
			}
			site.Remote, site.Software, site.ConnectedSince = session.Remote, session.Software, &session.Since
			site.RTT = float64(session.RTT.Microseconds()) / 1000
			site.Streams, site.Received, site.Sent = session.Streams, session.Received, session.Sent
		}
		s.Sites = append(s.Sites, site)
	}
	slices.SortFunc(s.Sites, func(a, b admin.Site) int { return strings.Compare(a.Name, b.Name) })
	return s
}
