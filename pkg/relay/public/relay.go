// Package public is the public relay: it takes visitors in, finds the site that
// serves them, and joins each to a stream of that site's session.
//
//	r := &public.Relay{Core: core, Domain: "relay.example.com", TLS: tlsConfig, HTTPS: ":443", HTTP: ":80"}
//	r.Reload(sites)
//	err := r.Listen()
//	…
//	r.Drain(ctx)
//
// A byte of a visitor takes this way: listener → visitor (visitor.go) →
// exchange (exchange.go) → upstream (upstream.go) → session (session.go) → link.
// What becomes of a request is decided in decide.go, for all versions of HTTP;
// front.go says what an exchange has at its two ends.
// After an upgrade, and for tcp services, a splice replaces visitor, exchange
// and upstream.
//
// # Invariants
//
//   - A session, its links, its streams and the connections of its visitors
//     belong to one loop. A visitor that was accepted elsewhere is moved there
//     once it is known where it wants to go. So no byte meets a lock.
//   - Before that a visitor holds its connection, one struct and one timer.
//     Every phase it can stay in has a deadline.
//   - A visitor that does not read stops its own server and nothing else; one
//     that is silent after an upgrade holds its connection, its stream and the
//     splice.
//   - What a site publishes is checked against what it may publish when it is
//     announced; a stream is opened for routes of that table only.
//   - The bytes of a request head never go on as they came: they are parsed,
//     and written anew, with the forwarding fields replaced.
package public

import (
	"cmp"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/http2"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tftpd"
	"culvert.dev/pkg/tunnel"
)

// Relay is a public relay. The exported fields are set before Listen or Serve,
// and not changed afterwards.
type Relay struct {
	// Core runs everything. Required.
	Core *evloop.Core

	// Proxies are the addresses of those who take visitors first: a connection
	// from there begins with a PROXY protocol header, version 1 or 2, which says
	// who the visitor is. A header from anybody else is not one. nil: nobody does.
	Proxies []netip.Prefix

	// Domain is the relay's own name, in lower case: links, joining and
	// operators' forwards come in there. "" has none of them.
	Domain string

	// TLS has the certificates. Required for HTTPS. Its NextProtos are not used.
	TLS *tls.Config

	// HTTPS and HTTP are the addresses to listen on, as net.Listen takes them.
	// "": none.
	HTTPS, HTTP string

	// QUIC is the address to listen on for links over QUIC and for HTTP/3, on UDP. It needs TLS.
	// "": none. If its port is 0, it is that of HTTPS if possible.
	QUIC string

	// RTSP and RTSPS are the addresses to listen on for players of cameras, in the clear
	// and with TLS. "": none.
	RTSP, RTSPS string

	// RTP is the address to listen on, on UDP, for players of cameras that may have their
	// packets by UDP; RTCP is on the port above it. "": all of them have to take them by TCP.
	RTP string

	// TFTP is the address to listen on, on UDP, for clients of TFTP. "": none.
	TFTP string

	// TFTPPorts are the first and the last port of a range, one of which each transfer is answered from. Zero: from that of TFTP.
	TFTPPorts [2]uint16

	// TFTPTransfers bounds the files that are on the way by TFTP, TFTPPerAddress those of one address, or of one /64 with
	// IPv6. 0: 16384 and 256.
	TFTPTransfers, TFTPPerAddress int

	// TFTPCache is how many bytes of files are kept for the next client of TFTP that asks, if a site's
	// service lets us. 0: none.
	TFTPCache int64

	// TFTPBlock bounds the bytes of a block of TFTP. 0: what reaches the client in one packet.
	TFTPBlock int

	// QUICSecret has 32 bytes. A relay that starts again with the same ones makes
	// links over QUIC that it does not know any more end at once, instead of by a
	// timeout. If nil, it has others each time.
	QUICSecret []byte

	// Inherited returns the sockets that the process was started with for a
	// listener: its name ("https", "http", "quic", "rtsp", "rtsps", "tftp", or the publish URL of a
	// service), "tcp" or "udp", and its address. They are used instead of new
	// ones, and stay the caller's, so that a service can be published on them
	// again. If it is nil, or returns none, the relay binds a socket of its own.
	Inherited func(name, network, address string) []*os.File

	// MaxVisitors bounds the connections of visitors, MaxPerAddress those of one
	// address, or of one /64 with IPv6. Some more are answered with 503.
	// 0: 262144 and 16384.
	MaxVisitors, MaxPerAddress int

	// HandshakesPerAddress bounds the TLS handshakes that one address, or one /64 with
	// IPv6, may begin in a minute, of which a fifth may come at once. What comes beyond that
	// is closed before a byte of it is computed. 0: 3000.
	HandshakesPerAddress int

	// MaxFlows bounds the flows of one udp service, MaxFlowsPerAddress those of one
	// address of them, or of one /64 with IPv6. The one that has been silent for
	// longest makes room. 0: 16384 and 256.
	MaxFlows, MaxFlowsPerAddress int

	// MaxStreams, Budget and ResumeTimeout are those of tunnel.Config, for each
	// session. A quarter of Budget is what it may take besides for what is kept of
	// cameras. 0: that package's defaults.
	MaxStreams    int
	Budget        int
	ResumeTimeout time.Duration

	// ResponseTimeout is how long a server may take from the end of a request to
	// the head of its response. 0: 60 s.
	ResponseTimeout time.Duration

	// Grace is how long after its start the relay keeps requests for sites that it
	// knows and that have not found it yet, instead of answering 503 at once.
	Grace time.Duration

	// Software is what sites are told, for people to read.
	Software string

	// Join redeems a join token. It may block. If nil, nobody can join.
	Join func(relay.JoinRequest) relay.JoinResponse

	// Operator returns who has that token of an operator, which came from there. With
	// the role auth.Operate, or above, he may reach any service. It is called on the loops, and must not block. If
	// nil, nobody is an operator.
	Operator func(token string, from netip.Addr) (auth.Identity, bool)

	// FollowOperator has end called once, from any goroutine, when an identity that Operator
	// has returned is no longer good: then its sessions end. stop has it not called from then on. If nil, they live as
	// long as they are used.
	FollowOperator func(id auth.Identity, end func()) (stop func())

	// Own takes over a connection on which somebody asks for a page of the Domain, which is none that sites and
	// operators' streams come by. It is called on the loop of the connection, with the request unread, and has to set
	// a handler before it returns. The connection speaks HTTP/1.1, and is no longer one of a visitor's. nil: there are no
	// such pages.
	Own func(conn *evloop.Conn, l *evloop.Loop, from netip.AddrPort, state *tls.ConnectionState)

	// AccessLog gets lines of the access log, each a JSON object and a newline: one
	// for each request, connection and flow, when it is over. It is called on the
	// loops, must not block, and the bytes are lent. If nil, there is no such log.
	AccessLog func(lines []byte)

	// AccessQuery adds the query to those lines, AccessAgent User-Agent and Referer.
	AccessQuery, AccessAgent bool

	// HideRequests keeps no requests for operators: Requests, FollowRequests and captures have nothing.
	HideRequests bool

	// InspectMemory is how many bytes captures may take, which are of requests to services that are announced with inspect. 0: 64
	// MiB; negative: nothing is captured, whatever is announced.
	InspectMemory int

	// Published is told the hosts that services are published under by https and wss,
	// as published ("*.example.com" among them), whenever those change: one call at a
	// time. If nil, nobody is.
	Published func(hosts []string)

	// Challenge answers what an authority asks for by plain HTTP below
	// /.well-known/acme-challenge/ of a host, to see that it is ours. It may block. If
	// nil, or not ok, services are asked.
	Challenge func(host, path string) (answer string, ok bool)

	// Challenging reports whether TLS has a certificate that answers an authority which
	// offers acme-tls/1 alone in a handshake for name. It may block. If nil, none is
	// ever there.
	Challenging func(name string) bool

	// Log hears of events: of sites, sessions, services and listeners, not of
	// requests. If nil, nobody does.
	Log *slog.Logger

	routes   atomic.Pointer[table]
	altSvc   atomic.Pointer[http1.Field] // of HTTP/3; nil: there is none
	tls      *tls.Config                 // immutable once prepared; see newTLS
	proofTLS *tls.Config                 // and so; of handshakes that are challenges
	tlsOwn   *tls.Config                 // the same for the relay's own name
	tlsRTSP  *tls.Config                 // and of players
	draining atomic.Bool
	prepared sync.Once
	began    time.Time // immutable once prepared
	salt     uint64    // and so; see loop.number

	smallBuffers sync.Once // it has been logged that the system buffers few datagrams
	slowControl  sync.Once // it has been logged that links cannot have the congestion control that they need

	rtp       *rtpPorts     // immutable once listening; nil: there are none
	tftp      *tftpd.Server // and so
	cache     *tftpd.Cache  // of files; and so
	log       *slog.Logger
	admission admission
	windows   *http2.Budget // of all connections with HTTP/2 and HTTP/3
	shakes    shakes
	verifier  verifier
	joins     rate[netip.Addr]
	refusals  rate[refusal]
	sayings   rate[said]
	unserved  rate[netip.Addr] // requests by TFTP that came to nothing and are logged all the same: their address may be forged
	loops     []*loop
	inspector inspector

	followed  atomic.Bool // there are followers
	follow    sync.Mutex
	followers map[*follower]bool // guarded by follow

	byLoop map[*evloop.Loop]*loop // immutable once prepared

	mu        sync.Mutex
	sites     map[string]Site
	groups    map[string]*group     // by site; some are empty
	operating map[string]*operating // by id
	claims    map[route]*service
	lent      map[*os.File]loan // sockets of Inherited that ports use
	listeners []*Listener
	published []string      // what Published is told
	telling   bool          // and is being told
	drained   chan struct{} // closed when the last session has ended; nil unless draining
	over      bool          // drained is closed
}

// loan is who uses an inherited socket.
type loan struct {
	group *group
	port  *port
}

// Site is a site that may link.
type Site struct {
	Name    string
	Keys    []string // "ed25519:…", of each private relay; none: it is not known yet, or revoked
	Revoked []string // keys that are not to be accepted any more
	Publish []relay.Pattern
}

// Listener is an address that the relay accepts visitors on.
type Listener struct {
	Name string // "https", "http", "quic", "rtsp", "rtsps", "rtp" or "tftp"
	Addr net.Addr
	ln   io.Closer
}

// prepare makes what the other methods need.
func (r *Relay) prepare() {
	r.prepared.Do(func() {
		if r.log = r.Log; r.log == nil {
			r.log = slog.New(slog.DiscardHandler)
		}
		r.admission = admission{total: r.MaxVisitors, perAddr: r.MaxPerAddress, addrs: make(map[netip.Addr]int)}
		if r.admission.total == 0 {
			r.admission.total = 256 << 10
		}
		if r.admission.perAddr == 0 {
			r.admission.perAddr = 16 << 10
		}
		r.shakes.init(cmp.Or(r.HandshakesPerAddress, 3000))
		if r.MaxFlows == 0 {
			r.MaxFlows = 16 << 10
		}
		if r.MaxFlowsPerAddress == 0 {
			r.MaxFlowsPerAddress = 256
		}
		r.joins = rate[netip.Addr]{most: maxJoins, size: 64 << 10}
		r.refusals = rate[refusal]{most: 1, size: maxRefused}
		r.sayings = rate[said]{most: maxSaid, size: 64 << 10}
		r.unserved = rate[netip.Addr]{most: 60, size: 1 << 10}
		r.tls = r.newTLS()
		r.proofTLS = newProofTLS(r.TLS)
		if r.ResponseTimeout == 0 {
			r.ResponseTimeout = 60 * time.Second
		}
		r.windows = http2.NewBudget(maxWindows)
		r.inspector.limit = cmp.Or(r.InspectMemory, defaultInspection)
		r.salt = rand.Uint64N(1 << 40)
		r.byLoop = make(map[*evloop.Loop]*loop)
		start := time.Now()
		r.began = start
		for i := range r.Core.NumLoops() {
			l := &loop{Loop: r.Core.Loop(i), relay: r, start: start, index: i, endpoint: http2.Endpoint{Budget: r.windows}}
			l.tunnels.serve = l.serveRTSP
			r.loops = append(r.loops, l)
			r.byLoop[l.Loop] = l
		}
		r.sites = make(map[string]Site)
		r.groups = make(map[string]*group)
		r.claims = make(map[route]*service)
		r.lent = make(map[*os.File]loan)
		r.routes.Store(newTable(nil, away{}))
	})
}

// Listen opens the listeners. Their loops serve them until Drain or the end of
// the Core.
func (r *Relay) Listen() error {
	r.prepare()
	err := r.openListeners()
	if err != nil {
		r.stopListening()
	}
	return relay.PortError(err)
}

func (r *Relay) openListeners() error {
	if r.RTP != "" { // before there are players
		if err := r.listenRTP(); err != nil {
			return fmt.Errorf("listener rtp %q: %w", r.RTP, err)
		}
	}
	if r.TFTP != "" { // before there are services
		if err := r.listenTFTP(); err != nil {
			return fmt.Errorf("listener tftp %q: %w", r.TFTP, err)
		}
	}
	for _, l := range []struct {
		name, addr string
		secure     bool
		player     bool
	}{{"https", r.HTTPS, true, false}, {"http", r.HTTP, false, false}, {"rtsps", r.RTSPS, true, true}, {"rtsp", r.RTSP, false, true}} {
		if l.addr == "" {
			continue
		}
		if err := r.listen(l.name, l.addr, func(c *evloop.Conn) { r.accept(c, l.secure, l.player) }); err != nil {
			return fmt.Errorf("listener %s %q: %w", l.name, l.addr, err)
		}
	}
	if r.QUIC != "" {
		if err := r.listenQUIC(); err != nil {
			return fmt.Errorf("listener quic %q: %w", r.QUIC, err)
		}
	}
	return nil
}

// listen opens one of the listeners.
func (r *Relay) listen(name, addr string, accept func(*evloop.Conn)) error {
	files := r.inherited(name, "tcp", addr)
	for _, f := range files {
		ln, err := r.Core.ListenFile(f, accept)
		if err != nil {
			return err
		}
		r.addListener(name, ln)
	}
	if files != nil {
		return nil
	}
	ln, err := r.Core.Listen("tcp", addr, accept)
	if err != nil {
		return err
	}
	r.addListener(name, ln)
	return nil
}

// inherited returns the sockets of a listener that were there before us.
func (r *Relay) inherited(name, network, addr string) []*os.File {
	if r.Inherited == nil {
		return nil
	}
	return r.Inherited(name, network, addr)
}

// Serve accepts visitors from any listener, with TLS if secure. The Core owns ln
// from now on.
func (r *Relay) Serve(ln net.Listener, secure bool) {
	r.prepare()
	name := "http"
	if secure {
		name = "https"
	}
	r.addListener(name, r.Core.Serve(ln, func(c *evloop.Conn) { r.accept(c, secure, false) }))
}

func (r *Relay) addListener(name string, ln *evloop.Listener) {
	ln.OnError = r.listenerError(name)
	r.mu.Lock()
	r.listeners = append(r.listeners, &Listener{Name: name, Addr: ln.Addr(), ln: ln})
	r.mu.Unlock()
}

func (r *Relay) listenerError(name string) func(error) {
	return func(err error) { r.log.Error("listener", "name", name, "err", err) }
}

func (r *Relay) stopListening() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.listeners {
		l.ln.Close()
	}
	r.altSvc.Store(nil)
	r.listeners = nil
}

// Listeners returns the addresses that are listened on, for as long as they are.
func (r *Relay) Listeners() []Listener {
	r.mu.Lock()
	defer r.mu.Unlock()
	var list []Listener
	for _, l := range r.listeners {
		list = append(list, Listener{Name: l.Name, Addr: l.Addr})
	}
	return list
}

// Reload replaces the sites that may link. The sessions of a site that is not among
// them any more end, and those of a key that is none of its keys any more. A site that
// may publish something else has what it announced last considered again.
func (r *Relay) Reload(sites []Site) {
	r.prepare()
	r.mu.Lock()
	old := r.sites
	r.sites = make(map[string]Site, len(sites))
	for _, s := range sites {
		s.Keys, s.Publish = slices.Clone(s.Keys), slices.Clone(s.Publish)
		r.sites[s.Name] = s
	}
	var ended, changed []*session
	for name, g := range r.groups {
		now, ok := r.sites[name]
		if !ok && len(g.sessions) == 0 {
			delete(r.groups, name)
		}
		for _, s := range g.sessions {
			switch {
			case !ok || !slices.Contains(now.Keys, s.key):
				ended = append(ended, s)
			case !slices.Equal(now.Publish, old[name].Publish):
				changed = append(changed, s)
			}
		}
	}
	r.endOperators(func(s *operating) bool { _, ok := r.sites[s.group.site]; return !ok }, errSiteRemoved)
	r.storeRoutes()
	r.mu.Unlock()
	for _, s := range ended {
		s.loop.Post(func() { s.close(errRevoked) })
	}
	for _, s := range changed {
		s.loop.Post(s.reconsider)
	}
}

// Drain stops listening, closes the visitors that wait for nothing, serves those
// that have just come, and asks every session to end with its last stream. It
// returns when the last visitor has gone, or with the context's error, when it has cut
// what was left. The Core may then be closed.
func (r *Relay) Drain(ctx context.Context) error {
	r.prepare()
	r.draining.Store(true)
	r.stopListening()
	r.stopPorts()
	r.settle(ctx)
	r.mu.Lock()
	if r.drained == nil {
		r.drained = make(chan struct{})
		r.checkDrained()
	}
	drained := r.drained
	for _, g := range r.groups {
		for _, s := range g.sessions {
			s.loop.Post(s.drain)
		}
	}
	r.drainOperators()
	r.mu.Unlock()
	select {
	case <-drained:
	case <-ctx.Done():
		r.cut(drained)
		return ctx.Err()
	}
	// What the last streams have brought may not have been read yet.
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for r.admission.connected() > 0 {
		select {
		case <-tick.C:
		case <-ctx.Done():
			r.cut(drained)
			return ctx.Err()
		}
	}
	return nil
}

// cutTime is how long the end of a session may take.
const cutTime = time.Second

// cut ends the sessions that have not finished in time, and the transfers by TFTP. The private relays hear of it, so
// they close at once what is left; clients get an ERROR.
func (r *Relay) cut(drained <-chan struct{}) {
	if r.tftp != nil {
		r.tftp.Close()
	}
	r.mu.Lock()
	for _, g := range r.groups {
		for _, s := range g.sessions {
			s.loop.Post(func() { s.close(nil) })
		}
	}
	r.endOperators(func(*operating) bool { return true }, errDraining)
	r.mu.Unlock()
	select {
	case <-drained:
	case <-time.After(cutTime):
	}
}

// checkDrained notes the end of the last session. r.mu is held.
func (r *Relay) checkDrained() {
	if r.drained == nil || r.over {
		return
	}
	for _, g := range r.groups {
		if len(g.sessions) > 0 {
			return
		}
	}
	r.over = true
	close(r.drained)
}

func (r *Relay) loopOf(l *evloop.Loop) *loop { return r.byLoop[l] }

// entry is what admit has decided: the session that a link is for.
type entry struct {
	session *session
	resumed bool               // it exists already
	instead map[*session]error // to be closed first, and why
}

// admit decides about a Hello that has been authenticated. The session's loop gets
// the link.
func (r *Relay) admit(h relay.Hello, l *loop) (entry, *relay.Refusal) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !slices.Contains(r.sites[h.Site].Keys, h.Key) { // since it was authenticated
		return entry{}, &relay.Refusal{Code: relay.RefuseRevoked, Message: fmt.Sprintf("the key of site %q was revoked just now", h.Site)}
	}
	g := r.groups[h.Site]
	if g == nil {
		best := l
		if r.mayHaveFiles(h.Site) {
			best = r.loops[portLoop]
		}
		g = &group{relay: r, site: h.Site, loop: r.leastLoaded(best)}
	}
	busy := func(format string, args ...any) *relay.Refusal {
		return &relay.Refusal{Code: relay.RefuseBusy, Message: fmt.Sprintf(format, args...), Retry: true}
	}
	linked := 0
	var back *session
	for _, s := range g.sessions {
		if s.linked > 0 {
			linked++
		}
		if h.Session != "" && equal(h.Session, s.id) && equal(h.Resume, s.secret) && h.Key == s.key && !s.replaced {
			back = s
		}
	}
	switch {
	case back != nil && h.Links > 0 && back.linked >= tunnel.MaxLinks:
		return entry{}, busy("the session has %d links already", back.linked)
	case linked >= maxLinked && (back == nil || back.linked == 0):
		return entry{}, busy("site %q has %d private relays connected already", h.Site, linked)
	case back != nil:
		back.linked++
		return entry{session: back, resumed: true}, nil
	case r.draining.Load():
		return entry{}, &relay.Refusal{Code: relay.RefuseDraining, Message: "the public relay is shutting down", Retry: true}
	}
	a := entry{session: newSession(g, h), instead: make(map[*session]error)}
	var oldest *session // of those that can be spared
	n := 0
	for _, s := range g.sessions {
		switch {
		case s.replaced:
		case s.linked == 0 && s.machine == h.Machine && (h.Machine == "" && s.key == h.Key ||
			h.Machine != "" && s.process != h.Process && !slices.Contains(s.twins, h.Process)):
			a.instead[s], s.replaced = errReplaced, true
		default:
			n++
			if oldest == nil && s.linked == 0 && s != g.active {
				oldest = s
			}
		}
	}
	if n >= maxSessions && oldest != nil {
		a.instead[oldest], oldest.replaced = errEvicted, true
	}
	a.session.linked = 1
	g.sessions = append(g.sessions, a.session)
	r.groups[h.Site] = g
	return a, nil
}

// leastLoaded returns the loop with the fewest sites, l among equals.
func (r *Relay) leastLoaded(l *loop) *loop {
	n := make(map[*loop]int)
	for _, g := range r.groups {
		n[g.loop]++
	}
	for _, o := range r.loops {
		if n[o] < n[l] {
			l = o
		}
	}
	return l
}

// unlink notes that a link of s has gone.
func (r *Relay) unlink(s *session) {
	r.mu.Lock()
	s.linked--
	r.mu.Unlock()
}

// removeSession forgets a session that has ended.
func (r *Relay) removeSession(s *session) {
	r.mu.Lock()
	defer r.mu.Unlock()
	g := s.group
	if i := slices.Index(g.sessions, s); i >= 0 {
		g.sessions = slices.Delete(g.sessions, i, i+1)
	}
	r.checkDrained()
}

// conflict tells whether another site than that of g has what svc wants. r.mu is held.
func (r *Relay) conflict(g *group, svc *service) error {
	for _, k := range svc.routes() {
		if o := r.claims[k]; o != nil && o.session.group != g {
			return errors.New("publish \"" + svc.publish.String() + "\": another site has this address")
		}
	}
	for _, o := range r.routes.Load().rivals(svc) {
		if o.session.group != g {
			return errors.New("publish \"" + svc.publish.String() + "\": another site has this host by " + o.publish.Scheme + "://, and TLS can end in one place only")
		}
	}
	return nil
}

// replaceRoutes replaces the routes of a site. r.mu is held.
func (r *Relay) replaceRoutes(g *group, routes map[route]*service) {
	for k, svc := range r.claims {
		if svc.session.group == g {
			delete(r.claims, k)
		}
	}
	for k, svc := range routes {
		r.claims[k] = svc
	}
	r.storeRoutes()
}

// storeRoutes makes the current routes visible to the loops. r.mu is held.
func (r *Relay) storeRoutes() {
	services := make([]*service, 0, len(r.claims))
	for k, svc := range r.claims {
		if k == svc.routes()[0] {
			services = append(services, svc)
		}
	}
	away := away{names: make(map[string]bool)}
	for name, s := range r.sites {
		g := r.groups[name]
		if g != nil && g.active != nil && g.heard || len(s.Keys) == 0 {
			continue // one that is there has said what it publishes
		}
		away.patterns = append(away.patterns, s.Publish...)
		if g != nil {
			maps.Copy(away.names, g.names)
		}
	}
	t := newTable(services, away)
	t.asks = newAsks(r.tls, services)
	r.routes.Store(t)
	r.tellPublished()
}

// addresses returns where visitors find a service, with the port if that is open
// already. r.mu is held.
func (r *Relay) addresses(s *service, ports map[relay.Publish]*port) []string {
	p := s.publish
	switch p.Scheme {
	case "":
		return nil
	case "tcp", "udp":
		if t := ports[p]; t != nil {
			return []string{p.Scheme + "://" + t.Addr().String()}
		}
		return []string{p.String()}
	case "tftp":
		return r.tftpAddresses(p)
	}
	// The scheme that visitors use is that of publish, but for cameras: those have an address for each way in.
	ways := []struct{ scheme, listener, usual string }{{p.Scheme, "http", "80"}}
	switch {
	case p.Scheme == "rtsp":
		ways = cameraWays[:]
	case p.Scheme == "rtsps":
		ways = cameraWays[1:]
	case s.secure || s.raw:
		ways[0].listener, ways[0].usual = "https", "443"
	}
	var list []string
	for _, way := range ways {
		for _, l := range r.listeners {
			if l.Name != way.listener {
				continue
			}
			host := p.Host
			if strings.Contains(host, ":") {
				host = "[" + host + "]"
			}
			if _, port, err := net.SplitHostPort(l.Addr.String()); err == nil && port != way.usual {
				host += ":" + port
			}
			path := p.Path
			if path == "/" {
				path = ""
			}
			if a := way.scheme + "://" + host + path; !slices.Contains(list, a) { // several sockets may have one port
				list = append(list, a)
			}
		}
	}
	return list
}

// cameraWays are the ways to a camera that have an address: the scheme, the listener and its usual port.
var cameraWays = [...]struct{ scheme, listener, usual string }{{"rtsp", "rtsp", "554"}, {"rtsps", "rtsps", "322"}, {"https", "https", "443"}}

// httpsPort is ":port" of the https listener unless it is the usual one, and
// whether there is a listener.
func (r *Relay) httpsPort() (suffix string, ok bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, l := range r.listeners {
		if a, isTCP := l.Addr.(*net.TCPAddr); l.Name == "https" {
			if isTCP && a.Port != 443 {
				return ":" + strconv.Itoa(a.Port), true
			}
			return "", true
		}
	}
	return "", false
}
