package public

import (
	"cmp"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
)

// policy is a relay.Policy, ready to be enforced. It is immutable, but for the limiters
// and what users remember, which are owned by the loop of the service. A changed policy is
// another one, and has forgotten both.
type policy struct {
	source *relay.Policy

	allow, deny    prefixes
	maxConnections int
	connections    *limiter // nil: no limit

	requests   *limiter // nil: no limit
	methods    []string
	allowed    []byte // of Allow
	maxBody    int64  // 0: no limit
	noRedirect bool
	authority  *authority // that vouches for certificates; nil: none are asked for
	users      *users     // nil: no password is asked for

	request, response edit
}

// newPolicy makes a policy; nil if nothing is demanded. realm is what visitors are told that
// they need a password for.
func newPolicy(p *relay.Policy, realm string) (*policy, error) {
	if p == nil {
		return nil, nil
	}
	made := &policy{
		source: p,
		allow:  newPrefixes(p.Allow), deny: newPrefixes(p.Deny),
		maxConnections: p.MaxConnections,
		connections:    newLimiter(p.ConnectionRate),
		requests:       newLimiter(p.RequestRate),
		maxBody:        p.MaxBody,
		noRedirect:     p.NoRedirect,
		request:        newEdit(p.RequestHeaders),
		response:       newEdit(p.ResponseHeaders),
	}
	if made.methods = slices.Clone(p.Methods); slices.Contains(made.methods, "GET") && !slices.Contains(made.methods, "HEAD") {
		made.methods = append(made.methods, "HEAD")
	}
	made.allowed = []byte(strings.Join(made.methods, ", "))
	if p.HSTS != nil {
		made.response.remove = append(made.response.remove, "strict-transport-security")
		made.response.add = append(made.response.add, field("Strict-Transport-Security", p.HSTS.String()))
	}
	var err error
	if p.ClientCA != "" {
		if made.authority, err = newAuthority(p); err != nil {
			return nil, err
		}
	}
	if len(p.Users) > 0 {
		if made.users, err = newUsers(p.Users, realm); err != nil {
			return nil, err
		}
		made.request.remove = append(made.request.remove, "authorization")
	}
	return made, nil
}

// equal reports whether two policies, which may be nil, demand the same.
func (p *policy) equal(q *policy) bool {
	if p == nil || q == nil {
		return p == q
	}
	return p.source.Equal(q.source)
}

var (
	troubleAddress   = &trouble{403, "Your address is not allowed here."}
	troubleRequests  = &trouble{429, "Too many requests. Please slow down."}
	troubleForbidden = &trouble{405, "This method is not allowed here."}
	troubleBody      = &trouble{413, "The body of this request is too large."}
	troublePassword  = &trouble{401, "A user name and a password are needed."}
	troubleGuesses   = &trouble{429, "Too many wrong passwords. Please try again later."}
	troubleVerifying = &trouble{503, "Too many passwords are being checked right now. Please try again."}
	troubleCrowd     = &trouble{503, "Too many visitors right now. Please try again."}
	troubleNoCert    = &trouble{403, "A client certificate is needed, and none was sent."}
	troubleBadCert   = &trouble{403, "The client certificate is not accepted here."}
)

// retryIn is Retry-After: whole seconds, at least one.
func retryIn(wait time.Duration) http1.Field {
	return field("Retry-After", strconv.FormatInt(max(1, int64((wait+time.Second-1)/time.Second)), 10))
}

func field(name, value string) http1.Field {
	return http1.Field{Name: []byte(name), Value: []byte(value)}
}

// admits decides about a connection or flow of a service that is no HTTP, before anything is
// opened for it.
func (s *service) admits(addr netip.Addr) bool {
	p := s.policy.Load()
	if p == nil {
		return !s.session.crowded(addr)
	}
	if !p.lets(addr) || p.connections.allow(addr, s.session.loop.since()) > 0 || s.full(p, addr) || s.session.crowded(addr) {
		s.session.loop.counters.Refused++
		return false
	}
	return true
}

// lets reports whether visitors of that address may come in.
func (p *policy) lets(addr netip.Addr) bool {
	addr = addr.Unmap().WithZone("")
	return !p.deny.contain(addr) && (p.allow == nil || p.allow.contain(addr))
}

// meet decides about a connection, when its first request to the service comes.
func (p *policy) meet(c *client, now int64) (*trouble, []http1.Field) {
	if c.knows(p) {
		return nil, nil
	}
	if !p.lets(c.addr.Addr()) {
		return troubleAddress, nil
	}
	if wait := p.connections.allow(c.addr.Addr(), now); wait > 0 {
		return troubleRequests, []http1.Field{retryIn(wait)}
	}
	c.meets(p)
	return nil, nil
}

// check decides whether a request for s, whose loop this is, may go to the site. If it reports false
// the decision says what becomes of it. A request that has waited comes here again.
func (p *policy) check(l *loop, s *service, c *client, req *http1.Request) (d decision, pass bool) {
	refuse := func(t *trouble, fields ...http1.Field) (decision, bool) {
		l.counters.Refused++
		return decision{action: doAnswer, service: s, trouble: t, fields: fields}, false
	}
	now, addr := l.since(), c.addr.Addr()
	if t, fields := p.meet(c, now); t != nil {
		return refuse(t, fields...)
	}
	if p.authority != nil {
		if t := p.authority.check(c, string(l.host), time.Now()); t != nil {
			return refuse(t)
		}
	}
	if wait := p.requests.allow(addr, now); wait > 0 {
		return refuse(troubleRequests, retryIn(wait))
	}
	if len(p.methods) > 0 && !slices.Contains(p.methods, string(req.Method)) {
		return refuse(troubleForbidden, http1.Field{Name: []byte("Allow"), Value: p.allowed})
	}
	if p.maxBody > 0 && req.ContentLength > p.maxBody {
		return refuse(troubleBody)
	}
	if p.users != nil {
		if d, ok := p.users.check(l, addr, http1.Get(req.Fields, "authorization")); !ok {
			if d.action == doAnswer {
				l.counters.Refused++
			} else { // it comes here again
				p.requests.forgive(addr, now)
			}
			d.service = s
			return d, false
		}
	}
	if s.full(p, addr) {
		return refuse(troubleCrowd)
	}
	return decision{}, true
}

// forward changes a request that is about to go to the server. It returns whose password has been
// checked, and what the server is told besides, in memory that is used again for the next request.
func (p *policy) forward(l *loop, c *client, req *http1.Request) (user string, extra []http1.Field) {
	extra = l.extra[:0]
	if p.users != nil {
		user, _, _ = credentials(http1.Get(req.Fields, "authorization"))
		extra = append(extra, field("X-Remote-User", user))
	}
	if p.authority != nil {
		extra = append(extra, p.authority.of(c, time.Now()).fields...)
	}
	req.Fields = http1.Remove(req.Fields, p.request.remove)
	l.extra = append(extra, p.request.add...)
	return user, l.extra
}

// answered changes a response that is about to go to the visitor.
func (p *policy) answered(res *http1.Response) {
	if len(p.response.remove) > 0 {
		res.Fields = http1.Remove(res.Fields, p.response.remove)
	}
	res.Fields = append(res.Fields, p.response.add...)
}

// edit is relay.HeaderRules.
type edit struct {
	remove []string // in lower case, those that are set included
	add    []http1.Field
}

func newEdit(h relay.HeaderRules) (e edit) {
	for _, name := range h.Remove {
		e.remove = append(e.remove, loose(name))
	}
	for _, name := range slices.Sorted(maps.Keys(h.Set)) {
		e.remove = append(e.remove, loose(name))
		e.add = append(e.add, field(name, h.Set[name]))
	}
	for _, name := range slices.Sorted(maps.Keys(h.Add)) {
		e.add = append(e.add, field(name, h.Add[name]))
	}
	return e
}

// loose is a name as http1.Remove takes it.
func loose(name string) string { return strings.ReplaceAll(strings.ToLower(name), "_", "-") }

// prefixes is a set of addresses: prefixes in order, none of which is in another one.
type prefixes []netip.Prefix

func newPrefixes(list []netip.Prefix) (set prefixes) {
	for _, p := range list {
		set = append(set, p.Masked())
	}
	slices.SortFunc(set, func(a, b netip.Prefix) int {
		return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
	})
	return slices.CompactFunc(set, func(a, b netip.Prefix) bool { return a.Contains(b.Addr()) })
}

// contain reports whether addr, which is not a mapped one, is in one of them.
func (set prefixes) contain(addr netip.Addr) bool {
	i, exact := slices.BinarySearchFunc(set, addr, func(p netip.Prefix, a netip.Addr) int { return p.Addr().Compare(a) })
	return exact || i > 0 && set[i-1].Contains(addr)
}

// Visitors of a service are counted by address: one of them must not take all the room
// that there is. As much as is still free is what each may have, so one alone gets half of it,
// and of k that want all each gets a share of k+1, the last of which is left to the others.

// enter and leave count a visitor: a connection of a port, a flow, or a request.
func (s *service) enter(addr netip.Addr) {
	addr = relay.Source(addr)
	s.visitors++
	s.session.held[addr]++
	if p := s.policy.Load(); p != nil && p.maxConnections > 0 {
		if s.held == nil {
			s.held = make(map[netip.Addr]int)
		}
		s.held[addr]++
	}
}

func (s *service) leave(addr netip.Addr) {
	addr = relay.Source(addr)
	s.visitors--
	drop(s.session.held, addr)
	drop(s.held, addr)
}

func drop(held map[netip.Addr]int, addr netip.Addr) {
	if n := held[addr]; n > 1 {
		held[addr] = n - 1
	} else {
		delete(held, addr)
	}
}

// full reports whether s has no room for another visitor of that address.
func (s *service) full(p *policy, addr netip.Addr) bool {
	if p.maxConnections == 0 {
		return false
	}
	free := p.maxConnections - s.visitors
	return free <= 0 || s.held[relay.Source(addr)] > free
}

// crowded reports whether the session has no room for another stream of that address. While
// half of the streams are free nobody has to be looked at.
func (s *session) crowded(addr netip.Addr) bool {
	free, of := s.tun.Room()
	return free < of/2 && s.held[relay.Source(addr)] >= free
}

// errPolicy is the end of a visitor of a port.
var errPolicy = errors.New("the policy of the service does not let this visitor in")
