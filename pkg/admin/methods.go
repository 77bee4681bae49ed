package admin

import (
	"bytes"
	"context"
	"errors"
	"net/http"
	"slices"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/rest"
)

// services are the methods. Every one of them says whose it is.
func (h *Handler) services() []*rest.Service {
	const viewer, operator, admin = auth.Viewer, auth.Operate, auth.Administer
	list := []*rest.Service{
		{Root: "status", Doc: "What the relay is doing.", Methods: []*rest.Method{
			method("Get", viewer, "status", h.statusNow(), "The state of the relay now."),
			feed("Watch", viewer, "figures", h.watcher(), "Rates, one set each every_s seconds."),
		}},
		{Root: "sites", Doc: "The closed networks that private relays connect.", Methods: []*rest.Method{
			method("List", viewer, "sites", ofStatus(h, func(s *Status, _ None) ([]Site, error) { return s.Sites, nil }), "All sites, with their sessions and links."),
			method("Get", viewer, "sites", ofStatus(h, func(s *Status, in Named) (Site, error) { return find(s, in.Name) }), "One site.", rest.Path("{name}")),
			method("Invite", admin, "invitations", checked(h.AddSite, checkInvite), "Makes a join token for a new site, or for a stand-by of one.", rest.Changes()),
			method("Revoke", admin, "revocation of sites", act(h.RevokeSite), "Forgets a key of a site, or all, and cuts their sessions.", rest.Changes()),
			method("Rotate", admin, "new keys for sites", checked(h.RotateSite, checkRotate), "Makes a join token that replaces the keys of a site as soon as it is used.", rest.Changes()),
			method("Promote", operator, "stand-bys", h.PromoteSite, "Has a stand-by take a site's visitors over.", rest.Changes()),
			method("Expose", operator, "ephemeral sites", h.Expose, "Makes a site that is gone a minute after its last session.", rest.Changes()),
			method("Cameras", operator, "search for cameras", h.Cameras, "Has a site look for cameras on its network, which takes some seconds.", rest.Verbs(http.MethodPost)),
		}},
		{Root: "services", Doc: "What sites offer.", Methods: []*rest.Method{
			method("List", viewer, "services", ofStatus(h, servicesOf), "The services that connected sites have announced."),
		}},
		{Root: "sessions", Doc: "The connections of private relays.", Methods: []*rest.Method{
			method("List", viewer, "sessions", ofStatus(h, sessionsOf), "The sessions of a site, or of all, the active ones first."),
			method("Kick", operator, "way to end sessions", act(h.KickSession), "Ends a session. Its private relay comes back by itself.", rest.Changes()),
		}},
		{Root: "links", Doc: "The transport connections of sessions.", Methods: []*rest.Method{
			method("List", viewer, "links", ofStatus(h, linksOf), "The links of a site, or of all."),
		}},
		{Root: "streams", Doc: "Connections of visitors and operators.", Methods: []*rest.Method{
			method("List", viewer, "list of streams", h.Streams, "What is open, the newest first."),
			method("Kick", operator, "way to end streams", act(h.KickStream), "Resets a stream.", rest.Changes()),
		}},
		{Root: "visitors", Doc: "Who has streams.", Methods: []*rest.Method{
			method("List", viewer, "list of visitors", h.Visitors, "Addresses with what they have open."),
		}},
		{Root: "certificates", Doc: "Those that the relay obtains by itself.", Methods: []*rest.Method{
			method("List", viewer, "certificates", ofStatus(h, func(s *Status, _ None) ([]Certificate, error) { return s.Certificates, nil }), "All certificates, with when they expire."),
			method("Renew", operator, "certificates of its own", act(h.RenewCertificate), "Has another certificate ordered.", rest.Changes()),
		}},
		{Root: "requests", Doc: "The last requests of visitors.", Methods: []*rest.Method{
			method("List", viewer, "list of requests", h.Requests, "The last requests, the newest first."),
			feed("Follow", viewer, "list of requests", h.FollowRequests, "Requests from now on, when they end."),
			method("Get", operator, "inspector", h.Request, "One request with heads and bodies, as far as they were kept. Secrets are redacted.", rest.Path("{id}")),
			method("Replay", operator, "inspector", h.Replay, "Sends a request once more, and returns what was answered.", rest.Changes()),
		}},
		{Root: "history", Doc: "The past.", Methods: []*rest.Method{
			method("Get", viewer, "history", h.History, "Rates of the relay, a site or a service, over time."),
		}},
		{Root: "alerts", Doc: "What an operator should look after.", Methods: []*rest.Method{
			method("List", viewer, "alerts", none(h.Alerts), "Alerts that there are, and the last ones that were."),
			method("Test", operator, "alerts", none(h.TestAlerts), "Tells all who are to be told of alerts that this is a test, and says what came of it.", rest.Changes()),
		}},
		{Root: "logs", Doc: "The relay's log.", Methods: []*rest.Method{
			method("List", operator, "log in memory", h.Logs, "The last lines, the oldest first."),
			feed("Follow", operator, "log in memory", h.FollowLogs, "The last lines, and then those that come."),
		}},
		{Root: "metrics", Doc: "Figures for Prometheus.", Methods: []*rest.Method{
			method("Get", viewer, "metrics", h.metrics(), "The same as /metrics."),
		}},
		{Root: "config", Doc: "Configuration files.", Methods: []*rest.Method{
			method("Check", admin, "check of files", h.CheckConfig, "What is wrong with a public.toml, which is not used.", rest.Verbs(http.MethodPost)),
		}},
		{Root: "relay", Doc: "The program.", Methods: []*rest.Method{
			method("Version", viewer, "version", func(context.Context, None) (Version, error) { return h.Version, nil }, "Which program this is."),
			method("Drain", admin, "way to stop it", none(actNow(h.Drain)), "Has the relay take no more visitors, wait for those it has, and stop.", rest.Changes()),
		}},
		{Root: "audit", Doc: "Who has changed what, and who was refused.", Methods: []*rest.Method{
			method("List", admin, "audit log", h.audit(), "The last lines, the oldest first."),
		}},
		{Root: "operators", Doc: "Who may use this API.", Methods: []*rest.Method{
			method("Me", viewer, "", h.whoAmI, "Who the caller is."),
			method("List", admin, "", h.listOperators, "All operators but the one of admin.token."),
			method("Add", admin, "", h.addOperator, "Makes an operator, with a first token, which is shown this once.", rest.Changes()),
			method("SetRole", admin, "", h.setRole, "Gives an operator another role, and the tokens that have none of their own.", rest.Changes()),
			method("Remove", admin, "", h.removeOperator, "Forgets an operator, and ends all tokens of that name.", rest.Changes()),
		}},
		{Root: "tokens", Doc: "What operators prove themselves with.", Methods: []*rest.Method{
			method("List", viewer, "", h.listTokens, "The caller's tokens; of all operators, for admins."),
			method("Create", viewer, "", h.createToken, "Makes a token, which is shown this once.", rest.Changes()),
			method("Revoke", viewer, "", h.revokeToken, "Ends a token, and what was opened by it.", rest.Changes()),
		}},
	}
	for _, s := range list {
		s.Bare = true
	}
	return list
}

// method makes a method of a function, nil if the relay has nothing to do what it does, which is what.
func method[In, Out any](name string, needs auth.Role, what string, f func(context.Context, In) (Out, error), doc string, more ...rest.Option) *rest.Method {
	call := func(ctx context.Context, in In) (Out, error) {
		if f == nil {
			var zero Out
			return zero, rest.Errorf(http.StatusNotFound, "this relay has no %s", what)
		}
		out, err := f(ctx, in)
		return out, inside(err)
	}
	return rest.Of(name, call, append(more, rest.Needs(needs.String()), rest.Doc(doc+" For role "+needs.String()+"."))...)
}

// feed is method for a feed.
func feed[In, Event any](name string, needs auth.Role, what string, f func(context.Context, In, func(Event) error) error, doc string) *rest.Method {
	call := func(ctx context.Context, in In, send func(Event) error) error {
		if f == nil {
			return rest.Errorf(http.StatusNotFound, "this relay has no %s", what)
		}
		return inside(f(ctx, in, send))
	}
	return rest.Feed(name, call, rest.Needs(needs.String()), rest.Doc(doc+" For role "+needs.String()+"."))
}

// inside keeps errors inside that were not made to be told.
func inside(err error) error {
	if e := (*rest.Error)(nil); err == nil || errors.As(err, &e) || errors.Is(err, context.Canceled) || errors.Is(err, context.DeadlineExceeded) {
		return err
	}
	return rest.Internal(err)
}

// act makes a method's function of one that has nothing to return.
func act[In any](f func(context.Context, In) error) func(context.Context, In) (None, error) {
	if f == nil {
		return nil
	}
	return func(ctx context.Context, in In) (None, error) { return None{}, f(ctx, in) }
}

// actNow is act for what needs nothing to be said.
func actNow(f func(context.Context) error) func(context.Context) (None, error) {
	if f == nil {
		return nil
	}
	return func(ctx context.Context) (None, error) { return None{}, f(ctx) }
}

// none makes a method's function of one that needs nothing to be said.
func none[Out any](f func(context.Context) (Out, error)) func(context.Context, None) (Out, error) {
	if f == nil {
		return nil
	}
	return func(ctx context.Context, _ None) (Out, error) { return f(ctx) }
}

// checked looks at what comes in before f does.
func checked[In, Out any](f func(context.Context, In) (Out, error), check func(In) error) func(context.Context, In) (Out, error) {
	if f == nil {
		return nil
	}
	return func(ctx context.Context, in In) (Out, error) {
		if err := check(in); err != nil {
			var zero Out
			return zero, err
		}
		return f(ctx, in)
	}
}

// ofStatus makes a method's function of a part of the status.
func ofStatus[In, Out any](h *Handler, part func(*Status, In) (Out, error)) func(context.Context, In) (Out, error) {
	if h.Status == nil {
		return nil
	}
	return func(_ context.Context, in In) (Out, error) {
		s, err := h.Status()
		if err != nil {
			var zero Out
			return zero, err
		}
		return part(s, in)
	}
}

func (h *Handler) statusNow() func(context.Context, None) (*Status, error) {
	return ofStatus(h, func(s *Status, _ None) (*Status, error) { return s, nil })
}

func find(s *Status, name string) (Site, error) {
	if i := slices.IndexFunc(s.Sites, func(site Site) bool { return site.Name == name }); i >= 0 {
		return s.Sites[i], nil
	}
	return Site{}, rest.Errorf(http.StatusNotFound, "no site %q: `tunnelctl sites` lists those that there are", name)
}

// some returns the site of that name, or all with "".
func some(s *Status, name string) ([]Site, error) {
	if name == "" {
		return s.Sites, nil
	}
	site, err := find(s, name)
	return []Site{site}, err
}

func servicesOf(s *Status, in OfSite) ([]Service, error) {
	if _, err := some(s, in.Site); err != nil || in.Site == "" {
		return s.Services, err
	}
	return slices.DeleteFunc(s.Services, func(one Service) bool { return one.Site != in.Site }), nil
}

func sessionsOf(s *Status, in OfSite) (list []Session, err error) {
	sites, err := some(s, in.Site)
	for _, site := range sites {
		for _, one := range site.Sessions {
			one.Site = site.Name
			list = append(list, one)
		}
	}
	return list, err
}

func linksOf(s *Status, in OfSite) (list []Link, err error) {
	sessions, err := sessionsOf(s, in)
	for _, session := range sessions {
		for _, one := range session.Links {
			one.Site, one.Session = session.Site, session.ID
			list = append(list, one)
		}
	}
	return list, err
}

func checkInvite(in Invite) error {
	switch {
	case in.Name == "":
		return rest.Errorf(http.StatusBadRequest, "a site needs a name")
	case in.Standby && len(in.Publish) > 0:
		return rest.Errorf(http.StatusBadRequest, "a stand-by publishes what its site may publish: leave the patterns out")
	case !in.Standby && len(in.Publish) == 0:
		return rest.Errorf(http.StatusBadRequest, "a site needs at least one publish pattern, such as https://*.example.com")
	}
	return checkTTL(in.TTL)
}

func checkRotate(in Rotate) error { return checkTTL(in.TTL) }

func checkTTL(seconds float64) error {
	if !(seconds >= 0 && seconds <= maxTTL.Seconds()) {
		return rest.Errorf(http.StatusBadRequest, "the token's life must be between 0 and 31 days")
	}
	return nil
}

// metrics serves what Metrics does as a method.
func (h *Handler) metrics() func(context.Context, None) (rest.Content, error) {
	if h.Metrics == nil {
		return nil
	}
	return func(ctx context.Context, _ None) (rest.Content, error) {
		r, err := http.NewRequestWithContext(ctx, http.MethodGet, "/metrics", nil)
		if err != nil {
			return rest.Content{}, err
		}
		w := &page{header: make(http.Header)}
		h.Metrics.ServeHTTP(w, r)
		return rest.Content{Type: w.header.Get("Content-Type"), Status: w.status, Body: w.body.Bytes()}, nil
	}
}

// page is a ResponseWriter that keeps what is written.
type page struct {
	header http.Header
	status int
	body   bytes.Buffer
}

func (p *page) Header() http.Header         { return p.header }
func (p *page) WriteHeader(status int)      { p.status = status }
func (p *page) Write(b []byte) (int, error) { return p.body.Write(b) }

// audit lists what Audit has.
func (h *Handler) audit() func(context.Context, Lines) ([]AuditLine, error) {
	if h.Audit == nil {
		return nil
	}
	return func(_ context.Context, in Lines) ([]AuditLine, error) { return h.Audit.Last(in.Lines), nil }
}

// refused makes an answer of an error of the operators' store.
func refused(err error) error {
	code := 0
	switch {
	case errors.Is(err, auth.ErrUnknownOperator), errors.Is(err, auth.ErrUnknownToken):
		code = http.StatusNotFound
	case errors.Is(err, auth.ErrOperatorExists), errors.Is(err, auth.ErrTooMany):
		code = http.StatusConflict
	case errors.Is(err, auth.ErrRole), errors.Is(err, auth.ErrOperatorName), errors.Is(err, auth.ErrTTL), errors.Is(err, auth.ErrNote):
		code = http.StatusBadRequest
	default:
		return err
	}
	next := ""
	switch {
	case errors.Is(err, auth.ErrUnknownOperator):
		next = ": `tunnelctl operator list` shows those that there are"
	case errors.Is(err, auth.ErrUnknownToken):
		next = ": `tunnelctl token list` shows those that there are"
	case errors.Is(err, auth.ErrOperatorExists):
		next = ": `tunnelctl token create --operator` makes another token, `tunnelctl operator role` changes the role"
	case errors.Is(err, auth.ErrTooMany):
		next = ": revoke or remove some first"
	}
	return rest.Errorf(code, "%v%s", err, next)
}

func (h *Handler) whoAmI(ctx context.Context, _ None) (Me, error) {
	id, _ := OperatorOf(ctx)
	return me(id), nil
}

func (h *Handler) listOperators(context.Context, None) ([]Operator, error) {
	list := []Operator{}
	for _, o := range h.Operators.List() {
		list = append(list, Operator{Name: o.Name, Role: o.Role.String(), Created: o.Created, Tokens: o.Tokens, LastUsed: timeOrNil(o.LastUsed)})
	}
	return list, nil
}

func timeOrNil(t time.Time) *time.Time {
	if t.IsZero() {
		return nil
	}
	return &t
}

func (h *Handler) addOperator(ctx context.Context, in OperatorRole) (NewToken, error) {
	role, err := auth.ParseRole(in.Role)
	if err == nil {
		err = h.Operators.Add(in.Name, role)
	}
	if err != nil {
		return NewToken{}, refused(err)
	}
	return h.newToken(in.Name, auth.NoRole, 0, "the first one")
}

func (h *Handler) newToken(operator string, role auth.Role, ttl time.Duration, note string) (NewToken, error) {
	token, id, err := h.Operators.Create(operator, role, ttl, note)
	if err != nil {
		return NewToken{}, refused(err)
	}
	return NewToken{ID: id.Token, Operator: id.Operator, Role: id.Role.String(), Token: token, Expires: timeOrNil(id.Expires), Login: h.Login}, nil
}

func (h *Handler) setRole(_ context.Context, in OperatorRole) (None, error) {
	role, err := auth.ParseRole(in.Role)
	if err == nil {
		err = h.Operators.SetRole(in.Name, role)
	}
	return None{}, refused(err)
}

func (h *Handler) removeOperator(_ context.Context, in Named) (None, error) {
	return None{}, refused(h.Operators.Remove(in.Name))
}

func (h *Handler) listTokens(ctx context.Context, _ None) ([]TokenInfo, error) {
	who, _ := OperatorOf(ctx)
	of := who.Operator
	if who.Role == auth.Administer {
		of = ""
	}
	list := []TokenInfo{}
	for _, t := range h.Operators.Tokens(of) {
		one := TokenInfo{
			ID: t.Token, Operator: t.Operator, Role: t.Role.String(), Note: t.Note, Created: t.Created,
			Expires: timeOrNil(t.Expires), LastUsed: timeOrNil(t.LastUsed), Current: t.Token == who.Token,
		}
		if t.LastFrom.IsValid() {
			one.LastFrom = t.LastFrom.String()
		}
		list = append(list, one)
	}
	return list, nil
}

// createToken gives nobody but an admin more than he has: neither another operator's token, nor a higher role than that of
// the token that asks, nor one without end.
func (h *Handler) createToken(ctx context.Context, in CreateToken) (NewToken, error) {
	who, _ := OperatorOf(ctx)
	operator, role := or(in.Operator, who.Operator), auth.NoRole
	if in.Role != "" {
		var err error
		if role, err = auth.ParseRole(in.Role); err != nil {
			return NewToken{}, refused(err)
		}
	}
	if who.Role < auth.Administer {
		if operator != who.Operator {
			return NewToken{}, rest.Errorf(http.StatusForbidden, "tokens of others need the role admin: this one of %q is for %v", who.Operator, who.Role)
		}
		if in.Never || in.TTL > auth.OperatorTTL.Seconds() {
			return NewToken{}, rest.Errorf(http.StatusForbidden, "a token that lives longer than %d days needs the role admin", auth.OperatorTTL/(24*time.Hour))
		}
		if role > who.Role {
			return NewToken{}, mayNot(who, role, "a token for "+role.String())
		}
		role = or(role, who.Role)
	}
	ttl := time.Duration(-1)
	switch {
	case operator == auth.AdminName:
		return NewToken{}, rest.Errorf(http.StatusConflict, "%q has the token in the relay's admin.token alone: `tunnelctl operator add NAME --role admin` makes an operator who can have others", auth.AdminName)
	case in.Never && in.TTL != 0:
		return NewToken{}, rest.Errorf(http.StatusBadRequest, "never and ttl_s exclude each other")
	case !in.Never && (!(in.TTL >= 0) || in.TTL > auth.MaxOperatorTTL.Seconds()):
		return NewToken{}, rest.Errorf(http.StatusBadRequest, "ttl_s must be between 0 and %.0f (ten years)", auth.MaxOperatorTTL.Seconds())
	case !in.Never && in.TTL > 0 && in.TTL < 1:
		return NewToken{}, rest.Errorf(http.StatusBadRequest, "a token lives for a second at least")
	case !in.Never:
		ttl = time.Duration(in.TTL * float64(time.Second))
	}
	return h.newToken(operator, role, ttl, in.Note)
}

// revokeToken ends a token. What somebody else has, or what is for more, is an admin's to end.
func (h *Handler) revokeToken(ctx context.Context, in ByID) (None, error) {
	who, _ := OperatorOf(ctx)
	if in.ID == auth.AdminTokenID {
		return None{}, rest.Errorf(http.StatusConflict, "remove the file admin.token in the relay's state folder, and have it reload (SIGHUP): it makes another one")
	}
	if who.Role < auth.Administer {
		own := h.Operators.Tokens(who.Operator)
		i := slices.IndexFunc(own, func(t auth.OperatorToken) bool { return t.Token == in.ID })
		if i < 0 {
			return None{}, refused(auth.ErrUnknownToken) // whether another one has it is not told
		}
		if own[i].Role > who.Role {
			return None{}, mayNot(who, own[i].Role, "the end of this token")
		}
	}
	return None{}, refused(h.Operators.Revoke(in.ID))
}
