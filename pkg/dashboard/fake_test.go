package dashboard

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/accesslog"
	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/rest"
)

// fake is a relay that consists of its admin API, with what a test wants it to say.
type fake struct {
	t         *testing.T
	dir       string
	addr      string
	operators *auth.Operators
	audit     *admin.Audit
	began     time.Time

	handler *admin.Handler
	server  *httptest.Server
	wire    *wire

	mu        sync.Mutex
	status    admin.Status
	rates     map[string][2]float64 // of SITE/SERVICE: bytes per second from and to visitors
	streams   []admin.Stream
	requests  []admin.Request // newest first
	exchanges map[string]admin.Exchange
	alerts    []admin.Alert
	logs      []admin.LogLine
	followers map[chan admin.Request]struct{}
	readers   map[chan admin.LogLine]struct{}
	calls     []string // that changed something: what and of what
	refuse    error    // of the next change
	config    string   // that was checked last
	report    *admin.ConfigReport
}

func ago(d time.Duration) time.Time { return time.Now().Add(-d).UTC() }
func at(t time.Time) *time.Time     { return &t }

// newFake starts one that has some sites, with what belongs to them, and stops it with the test, which is one of several at
// a time from then on: they wait more than they work.
func newFake(t *testing.T) *fake {
	t.Parallel()
	dir := t.TempDir()
	operators, err := auth.OpenOperators(dir)
	if err != nil {
		t.Fatal(err)
	}
	audit, err := admin.OpenAudit(accesslog.Config{Path: dir + "/audit.log"})
	if err != nil {
		t.Fatal(err)
	}
	f := &fake{
		t: t, dir: dir, operators: operators, audit: audit, began: ago(42 * time.Hour),
		rates: map[string][2]float64{}, exchanges: map[string]admin.Exchange{},
		followers: map[chan admin.Request]struct{}{}, readers: map[chan admin.LogLine]struct{}{},
	}
	f.fill()
	f.start()
	t.Cleanup(func() {
		f.stop()
		audit.Close()
	})
	return f
}

// token makes a token of somebody with a role.
func (f *fake) token(role auth.Role) string {
	f.t.Helper()
	name := map[auth.Role]string{auth.Viewer: "vera", auth.Operate: "otto", auth.Administer: "anna"}[role]
	f.operators.Add(name, role) // it may be there
	token, _, err := f.operators.Create(name, auth.NoRole, time.Hour, "the browser's")
	if err != nil {
		f.t.Fatal(err)
	}
	return token
}

// start serves it, at the same address as before.
func (f *fake) start() {
	f.t.Helper()
	if f.handler == nil {
		f.handler = f.admin()
		f.server = httptest.NewServer(f.handler)
	}
	ln, err := net.Listen("tcp", orAny(f.addr))
	if err != nil {
		f.t.Fatal(err)
	}
	f.addr = ln.Addr().String()
	f.wire = &wire{Listener: ln, to: f.server.Listener.Addr().String(), conns: map[net.Conn]struct{}{}}
	f.wire.ends.Go(f.wire.carry)
}

// wire is what is between a browser and the relay, and can be cut.
type wire struct {
	net.Listener
	to   string
	ends sync.WaitGroup

	mu    sync.Mutex
	isCut bool
	conns map[net.Conn]struct{}
}

func (n *wire) carry() {
	for {
		from, err := n.Accept()
		if err != nil {
			return
		}
		to, err := net.Dial("tcp", n.to)
		if err != nil {
			from.Close()
			continue
		}
		n.mu.Lock()
		if n.isCut {
			from.Close()
			to.Close()
		}
		n.conns[from], n.conns[to] = struct{}{}, struct{}{}
		n.mu.Unlock()
		n.ends.Go(func() { n.pump(from, to) })
		n.ends.Go(func() { n.pump(to, from) })
	}
}

func (n *wire) pump(to, from net.Conn) {
	io.Copy(to, from)
	to.Close()
	from.Close()
	n.mu.Lock()
	delete(n.conns, from)
	n.mu.Unlock()
}

func (n *wire) cut() {
	n.Close()
	n.mu.Lock()
	n.isCut = true
	for c := range n.conns {
		c.Close()
	}
	n.mu.Unlock()
	n.ends.Wait()
}

func orAny(addr string) string {
	if addr == "" {
		return "127.0.0.1:0"
	}
	return addr
}

// cut cuts the network: nothing gets through until start, but the relay is as it was.
func (f *fake) cut() { f.wire.cut() }

// stop ends the relay, which has forgotten who was signed in when it starts again.
func (f *fake) stop() {
	f.cut()
	f.handler.Close()
	f.server.Close()
	f.handler = nil
}

func (f *fake) url() string { return "http://" + f.addr + "/" }

// with changes the state.
func (f *fake) with(change func()) {
	f.mu.Lock()
	defer f.mu.Unlock()
	change()
}

// called returns the changes that were asked for, and forgets them.
func (f *fake) called() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	c := f.calls
	f.calls = nil
	return c
}

// changed notes a change.
func (f *fake) changed(format string, a ...any) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, a...))
	err := f.refuse
	f.refuse = nil
	return err
}

func (f *fake) admin() *admin.Handler {
	return &admin.Handler{
		Operators: f.operators,
		Audit:     f.audit,
		Version:   admin.Version{Version: "v1.4.0", Wire: 6, Go: "go1.26", OS: "linux", Arch: "amd64"},
		Files:     Handler(),
		Status:    f.now,
		Figures:   f.look,
		AddSite: func(_ context.Context, in admin.Invite) (*admin.Invitation, error) {
			if err := f.changed("invite %s %s standby=%v", in.Name, strings.Join(in.Publish, " "), in.Standby); err != nil {
				return nil, err
			}
			return &admin.Invitation{Site: in.Name, Token: "cvj_J7kq2v9XbT4mN8wRzYc5LdHsPf3GaEu6", Expires: time.Now().Add(in.Lifetime())}, nil
		},
		CheckConfig: func(_ context.Context, in admin.ConfigText) (*admin.ConfigReport, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.config = in.Text
			return f.report, nil
		},
		Drain: func(context.Context) error {
			if err := f.changed("drain"); err != nil {
				return err
			}
			f.with(func() { f.status.Draining = true })
			return nil
		},
		RotateSite: func(_ context.Context, in admin.Rotate) (*admin.Invitation, error) {
			return &admin.Invitation{Site: in.Name, Token: "cvj_rotate", Expires: time.Now().Add(time.Hour)}, f.changed("rotate %s", in.Name)
		},
		RevokeSite: func(_ context.Context, in admin.Revoke) error { return f.changed("revoke %s %s", in.Name, in.Key) },
		PromoteSite: func(_ context.Context, in admin.Promote) (*admin.Promoted, error) {
			if err := f.changed("promote %s %s cut=%v", in.Name, in.Session, in.Cut); err != nil {
				return nil, err
			}
			f.with(func() {
				for i := range f.status.Sites {
					if s := &f.status.Sites[i]; s.Name == in.Name {
						for j := range s.Sessions {
							s.Sessions[j].Active = s.Sessions[j].ID == in.Session
						}
						slices.Reverse(s.Sessions)
					}
				}
			})
			return &admin.Promoted{Session: in.Session}, nil
		},
		Streams: func(_ context.Context, in admin.Filter) ([]admin.Stream, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			list := []admin.Stream{}
			for _, s := range f.streams {
				if (in.Site == "" || s.Site == in.Site) && (in.Service == "" || s.Service == in.Service) && len(list) < in.Limit {
					list = append(list, s)
				}
			}
			return list, nil
		},
		Visitors: func(context.Context, admin.Limit) ([]admin.Visitor, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			by := map[string]*admin.Visitor{}
			list := []admin.Visitor{}
			for _, s := range f.streams {
				host, _, _ := strings.Cut(s.Remote, ":")
				v := by[host]
				if v == nil {
					v = &admin.Visitor{Address: host, Since: s.Since}
					by[host] = v
				}
				v.Streams++
				v.Received += s.Received
				v.Sent += s.Sent
				if name := s.Site + "/" + s.Service; !slices.Contains(v.Services, name) {
					v.Services = append(v.Services, name)
				}
			}
			for _, v := range by {
				list = append(list, *v)
			}
			return list, nil
		},
		Cameras: func(_ context.Context, in admin.Search) (*admin.Cameras, error) {
			if err := f.changed("cameras %s %s:%s", in.Site, in.User, in.Password); err != nil {
				return nil, err
			}
			return &admin.Cameras{Devices: json.RawMessage(`[{"id":"urn:1","address":"192.168.7.20","name":"<b data-evil>gate","hardware":"X-200","streams":[{"profile":"main","codec":"H264","width":1920,"height":1080,"url":"rtsp://192.168.7.20/main"}]},{"id":"urn:2","address":"192.168.7.21","problem":"it wants a user and a password"}]`)}, nil
		},
		KickSession: func(_ context.Context, in admin.ByID) error { return f.changed("kick session %s", in.ID) },
		KickStream: func(_ context.Context, in admin.ByID) error {
			if err := f.changed("kick stream %s", in.ID); err != nil {
				return err
			}
			f.with(func() { f.streams = slices.DeleteFunc(f.streams, func(s admin.Stream) bool { return s.ID == in.ID }) })
			return nil
		},
		RenewCertificate: func(_ context.Context, in admin.Named) error { return f.changed("renew %s", in.Name) },
		Requests: func(_ context.Context, in admin.Filter) ([]admin.Request, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return f.requests[:min(len(f.requests), in.Limit)], nil
		},
		FollowRequests: func(ctx context.Context, _ admin.Filter, send func(admin.Request) error) error {
			return follow(ctx, f, f.followers, send)
		},
		Request: func(_ context.Context, in admin.ByID) (*admin.Exchange, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			x, ok := f.exchanges[in.ID]
			if !ok {
				return nil, rest.Errorf(http.StatusNotFound, "request %q is not kept, or not any more", in.ID)
			}
			return &x, nil
		},
		Replay: func(_ context.Context, in admin.ByID) (*admin.Exchange, error) {
			if err := f.changed("replay %s", in.ID); err != nil {
				return nil, err
			}
			f.mu.Lock()
			defer f.mu.Unlock()
			x := f.exchanges[in.ID]
			x.ID, x.Time, x.Status, x.Took = in.ID+"r", time.Now().UTC(), 200, 7.3
			x.ResponseHeader = []admin.HeaderField{{Name: "Content-Type", Value: "application/json"}, {Name: "Server", Value: "api/1.9"}, {Name: "X-Request-Id", Value: "8f02"}}
			x.ResponseBody = admin.Body{Text: `{"ok":true,"order":{"id":1843,"state":"paid"}}`, Size: 46}
			return &x, nil
		},
		History: func(_ context.Context, in admin.Span) (*admin.History, error) {
			h := &admin.History{Step: in.Span / 300}
			h.Start = time.Now().Add(-time.Duration(in.Span * float64(time.Second))).UTC()
			f.mu.Lock()
			defer f.mu.Unlock()
			var total [2]float64
			for name, r := range f.rates {
				if (in.Site == "" || strings.HasPrefix(name, in.Site+"/")) && (in.Service == "" || name == in.Site+"/"+in.Service) {
					total[0] += r[0]
					total[1] += r[1]
				}
			}
			for i := range 300 {
				w := pace(h.Start.Add(time.Duration(float64(i) * h.Step * float64(time.Second))).Sub(f.began).Seconds())
				h.In = append(h.In, total[0]*w)
				h.Out = append(h.Out, total[1]*w)
				h.Visitors = append(h.Visitors, float64(len(f.streams)))
				h.Requests = append(h.Requests, 40*w)
				h.Errors = append(h.Errors, math.Max(0, w-1.5))
			}
			return h, nil
		},
		Alerts: func(context.Context) ([]admin.Alert, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return slices.Clone(f.alerts), nil
		},
		TestAlerts: func(context.Context) ([]admin.AlertDelivery, error) {
			if err := f.changed("test alerts"); err != nil {
				return nil, err
			}
			return []admin.AlertDelivery{{To: "ops@example.com"}, {To: "https://hooks.example.com/…", Error: "answered 403"}}, nil
		},
		Logs: func(context.Context, admin.Lines) ([]admin.LogLine, error) {
			f.mu.Lock()
			defer f.mu.Unlock()
			return slices.Clone(f.logs), nil
		},
		FollowLogs: func(ctx context.Context, _ admin.Lines, send func(admin.LogLine) error) error {
			f.mu.Lock()
			past := slices.Clone(f.logs)
			f.mu.Unlock()
			for _, l := range past {
				if err := send(l); err != nil {
					return err
				}
			}
			return follow(ctx, f, f.readers, send)
		},
	}
}

// pace is how fast counters run some seconds after the beginning, as traffic does: carried is what they have come to, for each
// one that a second has on the average.
func pace(seconds float64) float64 { return 1 + 0.35*math.Cos(seconds/21) + 0.2*math.Cos(seconds/5) }
func carried(seconds float64) float64 {
	return seconds + 0.35*21*math.Sin(seconds/21) + 0.2*5*math.Sin(seconds/5)
}

// follow sends what is given to a channel that it adds to a set.
func follow[E any](ctx context.Context, f *fake, set map[chan E]struct{}, send func(E) error) error {
	c := make(chan E, 4096)
	f.with(func() { set[c] = struct{}{} })
	defer f.with(func() { delete(set, c) })
	for {
		select {
		case <-ctx.Done():
			return ctx.Err()
		case e := <-c:
			if err := send(e); err != nil {
				return err
			}
		}
	}
}

// request has some come, the oldest first.
func (f *fake) request(list ...admin.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for c := range f.followers {
		for _, r := range list {
			c <- r
		}
	}
	f.status.Counters.Requests += uint64(len(list))
	slices.Reverse(list)
	f.requests = append(list, f.requests...)
}

// say has the relay log a line.
func (f *fake) say(level, message string, attrs map[string]string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	l := admin.LogLine{Time: time.Now().UTC(), Level: level, Message: message, Attrs: attrs}
	f.logs = append(f.logs, l)
	for c := range f.readers {
		c <- l
	}
}

// now is the state, with counters that have gone on at their rates.
func (f *fake) now() (*admin.Status, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	s := f.status
	s.Uptime = time.Since(f.began).Seconds()
	s.Visitors = len(f.streams)
	n := carried(time.Since(f.began).Seconds())
	s.Services = slices.Clone(f.status.Services)
	s.Sites = slices.Clone(f.status.Sites)
	ofSite, ofService := map[string]int{}, map[[2]string]int{}
	for i := range f.streams {
		x := &f.streams[i]
		ofSite[x.Site]++
		ofService[[2]string{x.Site, x.Service}]++
	}
	for i := range s.Sites {
		s.Sites[i].Sessions = slices.Clone(f.status.Sites[i].Sessions)
		s.Sites[i].Streams = ofSite[s.Sites[i].Name]
	}
	for i := range s.Services {
		one := &s.Services[i]
		r := f.rates[one.Site+"/"+one.Name]
		one.Received = uint64(r[0] * n)
		one.Sent = uint64(r[1] * n)
		for j := range s.Sites {
			if site := &s.Sites[j]; site.Name == one.Site && len(site.Sessions) > 0 {
				site.Sessions[0].Sent += one.Received
				site.Sessions[0].Received += one.Sent
				site.Sessions[0].Streams = site.Streams
			}
		}
		one.Visitors = ofService[[2]string{one.Site, one.Name}]
	}
	for i := range s.Sites {
		if site := &s.Sites[i]; len(site.Sessions) > 0 {
			site.Received, site.Sent = site.Sessions[0].Received, site.Sessions[0].Sent
		}
	}
	return &s, nil
}

// look is the state of the relay as far as it is watched.
func (f *fake) look(context.Context) (*admin.Look, error) {
	s, err := f.now()
	if err != nil {
		return nil, err
	}
	l := &admin.Look{Time: time.Now(), Visitors: s.Visitors, Requests: s.Counters.Requests, Draining: s.Draining}
	for i := range s.Sites {
		site := &s.Sites[i]
		one := admin.SiteLook{SiteFigures: admin.SiteFigures{Name: site.Name, State: site.State, RTT: site.RTT, Sessions: len(site.Sessions)}}
		for _, session := range site.Sessions {
			one.Streams += session.Streams
			one.Links += len(session.Links)
			one.Received += session.Received
			one.Sent += session.Sent
		}
		l.Streams += one.Streams
		l.Sites = append(l.Sites, one)
	}
	for i := range s.Services {
		one := &s.Services[i]
		failed := uint64(0)
		for _, n := range one.Errors {
			failed += n
		}
		l.Services = append(l.Services, admin.ServiceLook{
			Site: one.Site, Name: one.Name, Visitors: one.Visitors, Received: one.Received, Sent: one.Sent, Requests: one.Total, Errors: failed,
		})
	}
	return l, nil
}

// fill makes a relay of a small firm.
func (f *fake) fill() {
	key := func(s string) string {
		return "ed25519:" + base64.RawStdEncoding.EncodeToString([]byte(strings.Repeat(s, 8)))[:43]
	}
	f.status = admin.Status{
		Version: "v1.4.0", Wire: 6, Domain: "relay.example.com",
		Counters: admin.Counters{Requests: 1843201, Answered: 4120, Rejected: 87, Refused: 1312, TurnedAway: 3},
		Listeners: []admin.Listener{{Name: "https", Addr: "203.0.113.7:443"}, {Name: "http", Addr: "203.0.113.7:80"}, {Name: "admin", Addr: "127.0.0.1:7000"},
			{Name: "tcp://:15432", Addr: "203.0.113.7:15432"}},
		Sites: []admin.Site{
			{
				Name: "office", State: admin.StateConnected, RTT: 11.8, Remote: "198.51.100.20:50112", Software: "culvert v1.4.0", Publish: []string{"https://*.example.com", "tcp://:15000-15999", "udp://:5514"}, Keys: []string{key("offa"), key("offb")}, ConnectedSince: at(ago(41 * time.Hour)),
				Sessions: []admin.Session{
					{ID: "3f2a9c01d4e8b7a6", State: admin.StateConnected, Active: true, Key: key("offa"), Machine: "gw-1", Software: "culvert v1.4.0", Remote: "198.51.100.20:50112", RTT: 11.8, ConnectedSince: ago(41 * time.Hour), Offers: 6,
						Links: []admin.Link{
							{Transport: "wss", Role: "interactive", RTT: 11.8, Remote: "198.51.100.20:50112", Since: ago(41 * time.Hour)},
							{Transport: "wss", Role: "bulk", RTT: 12.4, Remote: "198.51.100.20:50114", Since: ago(41 * time.Hour)},
							{Transport: "quic", Role: "datagram", RTT: 11.2, Remote: "198.51.100.20:41700", Since: ago(5 * time.Hour)},
						}},
					{ID: "b81d22f05577ac90", State: admin.StateStandby, Key: key("offb"), Machine: "gw-2", Software: "culvert v1.4.0", Remote: "198.51.100.21:38220", RTT: 12.6, ConnectedSince: ago(9 * time.Hour), Offers: 6,
						Links: []admin.Link{{Transport: "wss", Role: "interactive", RTT: 12.6, Remote: "198.51.100.21:38220", Since: ago(9 * time.Hour)}}},
				},
			},
			{
				Name: "warehouse", State: admin.StateConnected, RTT: 34.1, Remote: "192.0.2.80:60200", Publish: []string{"https://*.wh.example.com", "rtsp://cams.example.com/*"}, Keys: []string{key("ware")}, ConnectedSince: at(ago(3 * time.Hour)),
				Sessions: []admin.Session{{ID: "77c0e1b24a90f3d8", State: admin.StateConnected, Active: true, Key: key("ware"), Machine: "pi-dock", Software: "culvert v1.3.2", Remote: "192.0.2.80:60200", RTT: 34.1, ConnectedSince: ago(3 * time.Hour), Offers: 3,
					Refused: []admin.Refused{{Service: "printer", Error: "tcp://:9100 is not one of the patterns that the site may publish"}},
					Links:   []admin.Link{{Transport: "wss", Role: "interactive", RTT: 34.1, Remote: "192.0.2.80:60200", Since: ago(3 * time.Hour)}, {Transport: "quic", Role: "bulk", RTT: 33.0, Remote: "192.0.2.80:60201", Suspect: true, Since: ago(20 * time.Minute)}}}},
			},
			{Name: "lab", State: admin.StateAway, Publish: []string{"https://lab.example.com"}, Keys: []string{key("labx")}},
			{Name: "harbour", State: admin.StateInvited, Publish: []string{"https://harbour.example.com"}, InvitedUntil: at(time.Now().Add(22 * time.Hour))},
		},
		Services: []admin.Service{
			{Site: "office", Name: "intranet", Publish: "https://intranet.example.com", Target: "http", Total: 48211},
			{Site: "office", Name: "api", Publish: "https://api.example.com", Target: "h2c", Total: 912044, Errors: map[string]uint64{"target-refused": 4, "response-timeout": 1}},
			{Site: "office", Name: "files", Publish: "https://files.example.com", Target: "file", Total: 5310},
			{Site: "office", Name: "database", Publish: "tcp://:15432", Target: "tcp", Total: 88},
			{Site: "office", Name: "ssh", Target: "tcp", Total: 12},
			{Site: "office", Name: "syslog", Publish: "udp://:5514", Target: "udp", Total: 31, DatagramsReceived: 92110, DatagramsDropped: 3},
			{Site: "warehouse", Name: "stock", Publish: "https://stock.wh.example.com", Target: "http", Total: 2044},
			{Site: "warehouse", Name: "gate", Publish: "rtsp://cams.example.com/gate", Target: "rtsp", Total: 61,
				Camera: &admin.Camera{Viewers: 3, Rate: 3_100_000, Tracks: []admin.CameraTrack{{Media: "video", Codec: "H264", Width: 1920, Height: 1080}}, KeyFrame: at(ago(2 * time.Second))}},
		},
		Certificates: []admin.Certificate{
			{Name: "relay.example.com", Issuer: "Let's Encrypt E7", Directory: "https://acme-v02.api.letsencrypt.org/directory", Expires: at(time.Now().Add(71 * 24 * time.Hour)), Renews: at(time.Now().Add(41 * 24 * time.Hour))},
			{Name: "intranet.example.com", Issuer: "Let's Encrypt E7", Expires: at(time.Now().Add(64 * 24 * time.Hour)), Renews: at(time.Now().Add(34 * 24 * time.Hour)), OnDemand: true},
			{Name: "api.example.com", Issuer: "Let's Encrypt E8", Expires: at(time.Now().Add(5*24*time.Hour + time.Hour)), Renews: at(ago(25 * 24 * time.Hour)), OnDemand: true, Failures: 7, Error: "the authority could not reach http://api.example.com/.well-known/acme-challenge/…: connection refused", NextTry: at(time.Now().Add(50 * time.Minute))},
			{Name: "stock.wh.example.com", OnDemand: true, Ordering: true},
		},
	}
	f.rates = map[string][2]float64{
		"office/intranet": {14_200, 412_000}, "office/api": {233_000, 1_840_000}, "office/files": {900, 5_120_000}, "office/database": {8_100, 61_000}, "office/ssh": {310, 1_220}, "office/syslog": {4_400, 0},
		"warehouse/stock": {2_300, 38_000}, "warehouse/gate": {1_900, 1_160_000},
	}
	for i, s := range []admin.Stream{
		{Site: "office", Service: "api", Scheme: "https", Host: "api.example.com", Remote: "203.0.113.50:51344", Since: ago(2 * time.Second), Received: 1422, Sent: 20811, State: "open"},
		{Site: "office", Service: "intranet", Scheme: "https", Host: "intranet.example.com", Remote: "203.0.113.51:40112", Since: ago(14 * time.Second), Received: 8122, Sent: 912044, Idle: 3, State: "open"},
		{Site: "office", Service: "files", Scheme: "https", Host: "files.example.com", Remote: "203.0.113.50:51390", Since: ago(95 * time.Second), Received: 702, Sent: 486_120_334, State: "open"},
		{Site: "office", Service: "database", Scheme: "tcp", Remote: "198.51.100.77:61002", Since: ago(4 * time.Hour), Received: 88_120, Sent: 910_334, Idle: 12, State: "open"},
		{Site: "office", Service: "ssh", Scheme: "forward", Remote: "192.0.2.14:50444", Operator: "maria", Since: ago(26 * time.Minute), Received: 18_400, Sent: 61_210, Idle: 41, State: "open"},
		{Site: "warehouse", Service: "gate", Scheme: "rtsp", Host: "cams.example.com", Remote: "203.0.113.90:47000", Since: ago(50 * time.Minute), Received: 5120, Sent: 1_120_334_112, State: "open"},
		{Site: "warehouse", Service: "stock", Scheme: "https", Host: "stock.wh.example.com", Remote: "203.0.113.51:40190", Since: ago(7 * time.Second), Received: 922, Sent: 14_100, Idle: 6, State: "half-closed"},
	} {
		s.ID = fmt.Sprintf("s%d", i+1)
		f.streams = append(f.streams, s)
	}
	add := func(age time.Duration, service, method, host, path string, status int, wait, took float64, sent uint64, word string, inspectable bool) {
		site := "office"
		if service == "stock" {
			site = "warehouse"
		}
		f.requests = append(f.requests, admin.Request{ID: fmt.Sprintf("r%d", len(f.requests)+1), Time: ago(age), Site: site, Service: service, Remote: "203.0.113.50:51344", Method: method, Host: host, Path: path, Proto: "HTTP/2.0", Status: status, Word: word, Received: 320, Sent: sent, Wait: wait, Took: took, Inspectable: inspectable})
	}
	add(time.Second, "api", "POST", "api.example.com", "/v1/orders?token=%5Bredacted%5D", 502, 30.2, 31.0, 311, "target-refused", true)
	add(2*time.Second, "api", "GET", "api.example.com", "/v1/orders/1843", 200, 8.4, 9.1, 1220, "", true)
	add(3*time.Second, "intranet", "GET", "intranet.example.com", "/assets/app.css", 304, 3.1, 3.1, 0, "", false)
	add(3*time.Second, "intranet", "GET", "intranet.example.com", "/", 200, 22.9, 24.4, 18_220, "", false)
	add(5*time.Second, "files", "GET", "files.example.com", "/images/debian-13.2.0-amd64-netinst.iso", 206, 12.0, 94_210, 486_120_334, "", false)
	add(9*time.Second, "stock", "GET", "stock.wh.example.com", "/rack/14/label.png", 200, 41.2, 44.0, 68, "", true)
	add(14*time.Second, "api", "DELETE", "api.example.com", "/v1/sessions/77", 404, 7.7, 7.9, 61, "", true)
	add(22*time.Second, "intranet", "GET", "intranet.example.com", "/search?q=tide+tables&page=2&sort=relevance&lang=en", 200, 611, 702, 40_114, "", false)
	f.exchanges["r1"] = admin.Exchange{
		Request:        f.requests[0],
		RequestHeader:  []admin.HeaderField{{Name: "Accept", Value: "application/json"}, {Name: "Authorization", Value: "[redacted]"}, {Name: "Content-Type", Value: "application/json"}, {Name: "User-Agent", Value: "shop/2.1"}},
		ResponseHeader: []admin.HeaderField{{Name: "Content-Type", Value: "text/plain; charset=utf-8"}, {Name: "Server", Value: "api/1.8"}},
		RequestBody:    admin.Body{Text: `{"customer":"c-204","lines":[{"sku":"bolt-m8","n":400}],"password":"[redacted]"}`, Size: 81, Redacted: true},
		ResponseBody:   admin.Body{Text: "the target does not answer\n", Size: 27},
	}
	f.exchanges["r2"] = admin.Exchange{Request: f.requests[1], RequestHeader: f.exchanges["r1"].RequestHeader[:1], ResponseHeader: []admin.HeaderField{{Name: "Content-Type", Value: "application/json"}}, ResponseBody: admin.Body{Text: `{"id":1843,"state":"paid"}`, Size: 26}}
	pixel, _ := base64.StdEncoding.DecodeString("iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg==")
	f.exchanges["r6"] = admin.Exchange{Request: f.requests[5], ResponseHeader: []admin.HeaderField{{Name: "Content-Type", Value: "image/png"}}, ResponseBody: admin.Body{Base64: pixel, Size: int64(len(pixel))}}
	f.alerts = []admin.Alert{
		{ID: "a1", Kind: admin.AlertSiteAway, Subject: "lab", Text: "the site has no session", Since: ago(6 * time.Minute)},
		{ID: "a2", Kind: admin.AlertCertificate, Subject: "api.example.com", Text: "ends in 5 days, and 7 attempts to renew it have failed", Since: ago(25 * time.Hour)},
		{ID: "a0", Kind: admin.AlertSiteAway, Subject: "warehouse", Text: "the site has no session", Since: ago(5 * time.Hour), Resolved: at(ago(3 * time.Hour))},
	}
	for i, l := range []admin.LogLine{
		{Level: "INFO", Message: "site: connected", Attrs: map[string]string{"site": "warehouse", "session": "77c0e1b2", "remote": "192.0.2.80:60200"}},
		{Level: "INFO", Message: "certificate: obtained", Attrs: map[string]string{"name": "intranet.example.com"}},
		{Level: "WARN", Message: "certificate: not renewed", Attrs: map[string]string{"name": "api.example.com", "err": "connection refused", "next": "50m"}},
		{Level: "ERROR", Message: "access log: not written", Attrs: map[string]string{"err": "no space left on device"}},
	} {
		l.Time = ago(time.Duration(40-i*10) * time.Second)
		f.logs = append(f.logs, l)
	}
}
