package public

import (
	"cmp"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// Bounds of operators' sessions.
const (
	maxOperating        = 1 << 10  // in all
	maxOperatorSessions = 32       // of one operator
	maxOperatorStreams  = 1 << 10  // of one session
	operatorBudget      = 16 << 20 // bytes of one session: it may wait for its operator for hours
	operatorWindow      = 4 << 20

	// operatorResume is how long the session of an operator who has fallen silent waits for him, with all connections that he
	// has open. A laptop may be closed for a night.
	operatorResume = 12 * time.Hour

	// partedResume is how long a session waits whose link was ended by the operator's side without a word: the program was
	// killed, most likely, and its connections must not be kept at their targets for hours.
	partedResume = 2 * time.Minute

	// siteTime is how long a stream waits for a site that may be about to come, and is looked for every siteTick.
	siteTime = 5 * time.Second
	siteTick = 100 * time.Millisecond
)

var (
	troublePlain = &trouble{403, "This needs TLS: the token must not cross a network in the clear."}

	errOperatorOver = errors.New("the operator's token is good no more, or has another role now")
	errSiteRemoved  = errors.New("the site was removed")
	errOperatorGone = errors.New("the operator has gone away")
	errEvictedBy    = errors.New("the operator has too many sessions")
)

// operating is the session of an operator, for the services of one site: its streams are joined to those of the site's
// active session. All of it belongs to the loop of the site.
type operating struct {
	// Immutable.
	relay      *Relay
	group      *group
	loop       *loop // the group's
	operator   auth.Identity
	id, secret string // to resume by
	since      time.Time

	// Guarded by relay.mu.
	linked bool // it has a link, or is about to

	// Owned by the loop.
	tun      *link.Session // nil until the first link is there
	link     *link.Link    // or nil
	remote   netip.AddrPort
	software string
	parting  evloop.Timer // see partedResume
	ended    bool
	why      error // for its end, if that is not his
	unfollow func()
}

// operate takes the request of an operator for a link of a session with a site.
func (v *visitor) operate(site string) {
	req := &v.loop.req
	key, err := websocket.CheckRequest(func(name string) string { return joined(req.Fields, name) })
	switch {
	case v.conn.TLS() == nil:
		v.turnDown(troublePlain)
		return
	case err != nil || string(req.Method) != "GET" || req.Minor != 1 || req.Framing != http1.NoBody:
		v.turnDown(troubleSwap)
		return
	}
	id, ok := v.relay.operatorOf(string(http1.Get(req.Fields, "authorization")), v.addr.Addr())
	if !ok {
		v.turnDown(troubleToken)
		return
	}
	v.phase = asking
	v.due.stop() // link has a deadline of its own
	link.AcceptOperator(v.conn, key, func(in *link.Incoming, err error) {
		if err != nil {
			v.relay.log.Debug("no link of an operator", "operator", id.Operator, "remote", v.addr, "err", err)
			v.unlinked()
			return
		}
		v.leave()
		v.relay.greetOperator(in, id, site, v.addr, v.loop)
	})
}

// operatorOf returns whose token is in the value of an Authorization field.
func (r *Relay) operatorOf(authorization string, from netip.Addr) (auth.Identity, bool) {
	scheme, token, _ := strings.Cut(authorization, " ")
	if r.Operator == nil || !strings.EqualFold(scheme, "bearer") {
		return auth.Identity{}, false
	}
	return r.Operator(strings.TrimSpace(token), from)
}

// ServeOperate is the handler of relay.OperatePath on the operators' own listener, which is on this machine: it needs no
// TLS. It checks the token itself.
func (r *Relay) ServeOperate(w http.ResponseWriter, req *http.Request) {
	r.prepare()
	fail := func(t *trouble) { http.Error(w, t.text, t.status) }
	from, _ := netip.ParseAddrPort(req.RemoteAddr)
	id, ok := r.operatorOf(req.Header.Get("Authorization"), from.Addr())
	if !ok {
		fail(troubleToken)
		return
	}
	key, err := websocket.CheckRequest(func(name string) string { return strings.Join(req.Header.Values(name), ",") })
	if err != nil || req.Method != http.MethodGet {
		fail(troubleSwap)
		return
	}
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		r.log.Error("operator", "err", err)
		fail(troubleBusy)
		return
	}
	nc.SetDeadline(time.Time{})
	if rw.Reader.Buffered() > 0 { // before the answer there is nothing to be said
		nc.Close()
		return
	}
	site := strings.TrimPrefix(req.URL.Path, relay.OperatePath)
	l := r.loops[0]
	if !l.Post(func() {
		c, err := l.Attach(nc)
		if err != nil {
			return
		}
		link.AcceptOperator(c, key, func(in *link.Incoming, err error) {
			if err == nil {
				r.greetOperator(in, id, site, from, l)
			}
		})
	}) {
		nc.Close()
	}
}

// greetOperator lets an operator in, if there is room. It runs on the loop of the link.
func (r *Relay) greetOperator(in *link.Incoming, id auth.Identity, site string, from netip.AddrPort, l *loop) {
	s, evicted, resumed, refusal := r.admitOperator(in.Operate, id, site, l)
	if refusal != nil {
		in.Refuse(*refusal)
		r.log.Info("operator refused", "operator", id.Operator, "site", site, "remote", from, "err", refusal)
		return
	}
	if evicted != nil {
		evicted.loop.Post(func() { evicted.close(errEvictedBy) })
	}
	in.Move(s.loop.Loop, func(err error) {
		switch {
		case err != nil && resumed:
			s.unlinked()
		case err != nil:
			s.close(err)
		case s.ended:
			in.Refuse(relay.Refusal{Code: relay.RefuseBusy, Message: "the session ended just now", Retry: true})
		default:
			s.serve(in, from, resumed)
		}
	})
}

// admitOperator finds or makes the session of an operator. evicted has to make room for it, or is nil.
func (r *Relay) admitOperator(h relay.OperateHello, id auth.Identity, site string, l *loop) (s, evicted *operating, resumed bool, refusal *relay.Refusal) {
	refuse := func(code relay.RefusalCode, retry bool, format string, args ...any) (s, evicted *operating, resumed bool, refusal *relay.Refusal) {
		return nil, nil, false, &relay.Refusal{Code: code, Message: fmt.Sprintf(format, args...), Retry: retry}
	}
	if id.Role < auth.Operate {
		return refuse(relay.RefuseForbidden, false, "operator %q has the role %v, and needs %v to reach services", id.Operator, id.Role, auth.Operate)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.sites[site]; !ok {
		return refuse(relay.RefuseUnknownSite, false, "the public relay has no site %q, or no private relay has joined it yet", site)
	}
	var oldest *operating // of the operator's, without a link
	n := 0
	for _, o := range r.operating {
		if h.Session != "" && equal(h.Session, o.id) && equal(h.Resume, o.secret) && o.operator == id && o.group.site == site {
			o.linked = true
			return o, nil, true, nil
		}
		if o.operator.Operator == id.Operator {
			n++
			if !o.linked && (oldest == nil || o.since.Before(oldest.since)) {
				oldest = o
			}
		}
	}
	switch {
	case r.draining.Load():
		return refuse(relay.RefuseDraining, true, "the public relay is shutting down")
	case n >= maxOperatorSessions && oldest == nil:
		return refuse(relay.RefuseBusy, true, "operator %q has %d sessions already", id.Operator, n)
	case n >= maxOperatorSessions:
		evicted = oldest
		delete(r.operating, evicted.id)
	case len(r.operating) >= maxOperating:
		return refuse(relay.RefuseBusy, true, "there are %d sessions of operators already", len(r.operating))
	}
	g := r.groups[site]
	if g == nil {
		best := l
		if r.mayHaveFiles(site) {
			best = r.loops[portLoop]
		}
		g = &group{relay: r, site: site, loop: r.leastLoaded(best)}
		r.groups[site] = g
	}
	var b [48]byte
	rand.Read(b[:])
	s = &operating{
		relay: r, group: g, loop: g.loop, operator: id, since: time.Now(), linked: true,
		id: hex.EncodeToString(b[:16]), secret: hex.EncodeToString(b[16:]),
	}
	if r.operating == nil {
		r.operating = make(map[string]*operating)
	}
	r.operating[s.id] = s
	return s, evicted, false, nil
}

// serve begins to use a link, which is on the session's loop.
func (s *operating) serve(in *link.Incoming, from netip.AddrPort, resumed bool) {
	if s.tun == nil {
		s.tun = link.NewSession(s.loop.Loop, tunnel.Config{
			MaxStreams:    maxOperatorStreams,
			Budget:        operatorBudget,
			MaxWindow:     operatorWindow,
			ResumeTimeout: operatorResume,
			Accept:        s.accept,
			OnClose:       s.onClose,
		})
		if follow := s.relay.FollowOperator; follow != nil {
			s.unfollow = follow(s.operator, func() { s.loop.Post(func() { s.close(errOperatorOver) }) })
		}
	}
	s.parting.Stop()
	if old := s.link; old != nil { // he dials again when the one that he had is of no use
		s.link = nil
		s.tun.Lost(old, errSuperseded, s.loop.Now())
		old.Close(errSuperseded)
	}
	s.remote, s.software = from, in.Operate.Software
	l := in.Welcome(relay.Welcome{Session: s.id, Resume: s.secret, Resumed: resumed, Active: true, Software: s.relay.Software})
	s.link = l
	l.Serve(s.tun, tunnel.RoleInteractive, s.lost)
	s.log(slog.LevelInfo, map[bool]string{false: "operator up", true: "operator resumed"}[resumed], "software", s.software)
	if s.relay.draining.Load() {
		s.tun.GoAway()
	}
}

func (s *operating) log(level slog.Level, what string, args ...any) {
	s.relay.say(level, what, s.group.site, append([]any{"operator", s.operator.Operator, "session", s.id[:8], "remote", s.remote}, args...)...)
}

// unlinked notes that there is no link.
func (s *operating) unlinked() {
	s.relay.mu.Lock()
	s.linked = s.link != nil
	s.relay.mu.Unlock()
}

// lost is told of the end of a link, after the tunnel.
func (s *operating) lost(l *link.Link, err error) {
	if s.link != l {
		return
	}
	s.link = nil
	s.unlinked()
	closed, orderly := errors.AsType[*link.CloseError](err)
	switch {
	case s.ended:
		return
	case orderly && closed.Status == link.StatusOver, err == nil:
		s.close(nil)
		return
	case !errors.Is(err, tunnel.ErrLinkTimeout):
		s.loop.Arm(&s.parting, partedResume, func() { s.close(tunnel.ErrResumeTimeout) })
	}
	s.log(slog.LevelInfo, "operator lost", "err", err)
}

// close ends the session now, and its streams.
func (s *operating) close(err error) {
	if s.tun == nil {
		s.onClose(err)
		return
	}
	s.why = err
	s.tun.Close(nil) // the link ends in good order, so that he hears that it is over
}

// onClose is the end of the session, after that of its streams.
func (s *operating) onClose(err error) {
	if s.ended {
		return
	}
	s.ended = true
	err = cmp.Or(s.why, err)
	s.parting.Stop()
	if s.unfollow != nil {
		s.unfollow()
	}
	s.relay.mu.Lock()
	delete(s.relay.operating, s.id)
	s.relay.mu.Unlock()
	if err == nil {
		s.log(slog.LevelInfo, "operator down")
	} else {
		s.log(slog.LevelWarn, "operator down", "err", err)
	}
}

// endOperators ends the sessions of operators for which which says so. r.mu is held.
func (r *Relay) endOperators(which func(*operating) bool, err error) {
	for _, s := range r.operating {
		if which(s) {
			s.loop.Post(func() { s.close(err) })
		}
	}
}

// drainOperators has the sessions of operators end with their last streams. r.mu is held.
func (r *Relay) drainOperators() {
	for _, s := range r.operating {
		s.loop.Post(func() {
			if s.tun != nil {
				s.tun.GoAway()
			}
		})
	}
}

// accept takes a stream that the operator has opened.
func (s *operating) accept(st *tunnel.Stream, header []byte) {
	h, err := relay.DecodeHeader(header)
	if err != nil || h.Kind != relay.KindOperate {
		st.Reset(tunnel.CodeForbidden)
		return
	}
	o := &operatorStream{session: s, stream: st, service: h.Service, began: s.loop.since()}
	st.Charge(tunnel.Owner{Service: h.Service, Visitor: relay.Source(s.remote.Addr())})
	st.SetHandler(o)
	st.Pause()
	o.find()
}

// operatorStream is a stream of an operator that is not joined to the site yet, and its handler until then.
type operatorStream struct {
	session *operating
	stream  *tunnel.Stream
	service string
	began   int64
	timer   evloop.Timer
	gone    bool
}

func (o *operatorStream) OnData([]byte) int { return 0 }
func (o *operatorStream) OnEOF()            {}
func (o *operatorStream) OnDrain()          {}
func (o *operatorStream) OnClose(error) {
	o.gone = true
	o.timer.Stop()
}

// find looks for the service, now or when it is decided who has it.
func (o *operatorStream) find() {
	s := o.session
	if o.gone || s.group.hold(o.find) {
		return
	}
	a, waited := s.group.active, time.Duration(s.loop.since()-o.began)
	switch {
	case s.relay.draining.Load():
		o.refuse(relay.OperateAway, "the public relay is shutting down")
	case waited < siteTime && (a == nil && s.relay.hasJustBegun() || a != nil && a.announced == nil):
		s.loop.Arm(&o.timer, siteTick, o.find)
	case a == nil:
		o.away()
	default:
		o.join(a)
	}
}

// away tells that there is no private relay.
func (o *operatorStream) away() {
	r, site := o.session.relay, o.session.group.site
	r.mu.Lock()
	known := len(r.sites[site].Keys) > 0
	r.mu.Unlock()
	if !known {
		o.refuse(relay.OperateAway, "site %q has not joined yet: its private relay needs the join token", site)
		return
	}
	o.refuse(relay.OperateAway, "site %q is not connected: does its private relay run?", site)
}

// refuse tells why not.
func (o *operatorStream) refuse(code relay.OperateCode, format string, args ...any) {
	o.stream.Write(relay.AppendOperate(nil, relay.OperateReply{Error: relay.NewOperateError(code, format, args...)}))
	o.stream.SetHandler(dropped{o.stream})
	o.stream.Resume()
	o.stream.CloseWrite()
}

// dropped is the handler of a stream that was refused: what still comes is dropped.
type dropped struct{ stream *tunnel.Stream }

func (d dropped) OnData(b []byte) int { return len(b) }
func (d dropped) OnEOF()              {}
func (d dropped) OnDrain()            {}
func (d dropped) OnClose(error)       {}

// builtIns are the services that private relays have by themselves.
var builtIns = [...]string{relay.ServicePing, relay.ServiceBench, relay.ServiceSocks}

// forOperators returns the service of that name, or nil.
func (s *session) forOperators(name string) *service {
	if !slices.Contains(builtIns[:], name) {
		return s.service(name)
	}
	if svc := s.builtIn[name]; svc != nil {
		return svc
	}
	if s.builtIn == nil {
		s.builtIn = make(map[string]*service)
	}
	svc := newService(s, relay.Announcement{Name: name, TargetScheme: "tcp"}, relay.Publish{})
	svc.tally = s.group.tally(name)
	s.builtIn[name] = svc
	return svc
}

// maxNamed is how many services a refusal names.
const maxNamed = 10

// join joins the stream to one of the site's active session.
func (o *operatorStream) join(a *session) {
	s := o.session
	svc := a.forOperators(o.service)
	if svc == nil {
		var names []string
		for _, other := range a.services {
			names = append(names, other.name)
		}
		slices.Sort(names)
		has := "it has none"
		if n := len(names); n > maxNamed {
			has = fmt.Sprintf("it has %d, such as %s", n, strings.Join(names[:maxNamed], ", "))
		} else if n > 0 {
			has = "it has " + strings.Join(names, ", ")
		}
		o.refuse(relay.OperateNotFound, "site %q has no service %q: %s", s.group.site, o.service, has)
		return
	}
	header, err := relay.Header{Kind: relay.KindOperate, Service: svc.name, Scheme: operateScheme, Host: s.operator.Operator, Visitor: s.remote}.Append(nil)
	if err != nil {
		o.refuse(relay.OperateInternal, "the public relay cannot ask the site: %v", err)
		return
	}
	st, err := a.tun.Open(header)
	if err != nil {
		o.refuse(relay.OperateOverload, "the public relay can open no stream to site %q just now: %v", s.group.site, err)
		return
	}
	charge(st, s.remote.Addr())
	s.relay.mu.Lock()
	keys := s.relay.sites[s.group.site].Keys
	s.relay.mu.Unlock()
	if len(keys) > relay.MaxOperateKeys { // the last ones are those that joined last
		keys = keys[len(keys)-relay.MaxOperateKeys:]
	}
	if !slices.Contains(keys, a.key) {
		keys = append(slices.Clone(keys[:min(len(keys), relay.MaxOperateKeys-1)]), a.key)
	}
	o.timer.Stop()
	o.stream.Write(relay.AppendOperate(nil, relay.OperateReply{Keys: keys}))
	svc.total++
	v := s.relay.admission.count(s.remote.Addr())
	join(operatorEnd{o.stream}, st, s.remote, v, svc, operateScheme).of(s.operator.Operator).logs(record{service: svc, visitor: s.remote, proto: operateScheme, operator: s.operator.Operator, began: s.loop.since(), stream: st})
}

// operatorEnd is the stream of an operator. However it ends, it is he who has gone away, and no fault of the service.
type operatorEnd struct{ *tunnel.Stream }

func (e operatorEnd) SetHandler(h evloop.Handler) { e.Stream.SetHandler(operatorSide{h}) }

type operatorSide struct{ evloop.Handler }

func (s operatorSide) OnClose(err error) {
	if e, ok := errors.AsType[*tunnel.StreamError](err); ok && (e.Remote || e.Code == tunnel.CodeSessionLost) {
		err = errOperatorGone
	}
	s.Handler.OnClose(err)
}

// operateScheme is how an operator comes to a service, for the private relay and the access log.
const operateScheme = "operate"

// OperatorSession is the session of an operator with one site.
type OperatorSession struct {
	ID       string // short, for people
	Operator string
	Token    string // ID
	Site     string
	Since    time.Time
	Linked   bool // otherwise it waits for the operator to come back
}

// OperatorSessions returns those that there are, in the order in which they began.
func (r *Relay) OperatorSessions() []OperatorSession {
	r.prepare()
	r.mu.Lock()
	defer r.mu.Unlock()
	list := make([]OperatorSession, 0, len(r.operating))
	for _, s := range r.operating {
		list = append(list, OperatorSession{ID: s.id[:8], Operator: s.operator.Operator, Token: s.operator.Token, Site: s.group.site, Since: s.since, Linked: s.linked})
	}
	slices.SortFunc(list, func(a, b OperatorSession) int { return a.Since.Compare(b.Since) })
	return list
}
