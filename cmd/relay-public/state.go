package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/acme"
	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/metrics"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/public"
)

// state is what the relay knows of sites and certificates: from the configuration, and from its folder.
type state struct {
	log       *slog.Logger // immutable, as is the rest of this group
	dir       string
	domain    string
	store     *auth.Store
	operators *auth.Operators
	changed   func()      // the sites have changed; set before anybody can change them
	address   net.Addr    // of the https listener, or nil; set with changed
	quic      []byte      // see public.Relay.QUICSecret
	files     *acme.Files // certificates of authorities, and what they need

	exposed exposed // by operators, for a while

	certificate atomic.Pointer[tls.Certificate] // given, or of the relay's own CA
	given       atomic.Pointer[tls.Certificate] // from [tls], or nil
	acme        atomic.Pointer[certificates]    // nil without [acme]
	hosts       atomic.Pointer[[]string]        // published by https

	managing sync.Mutex

	mu         sync.Mutex
	configured []public.Site // from public.toml
}

// openState opens the state folder, which exists.
func openState(s *settings, log *slog.Logger) (*state, error) {
	st := &state{log: log, dir: s.state, domain: s.Domain}
	var err error
	if st.operators, err = auth.OpenOperators(s.state); err != nil {
		return nil, err
	}
	if st.store, err = auth.OpenStore(s.state); err != nil {
		return nil, err
	}
	if st.files, err = acme.OpenFiles(filepath.Join(s.state, "acme")); err != nil {
		return nil, err
	}
	if st.quic, err = auth.OpenSecret(s.state, "quic.secret"); err != nil {
		return nil, err
	}
	st.exposed.operators, st.exposed.wake = st.operators, make(chan struct{}, 1)
	st.exposed.changed, st.exposed.taken, st.exposed.others, st.exposed.reached = st.refresh, st.isTaken, st.lasting, st.reached
	if s.certificate == nil && s.acme == nil {
		log.Info("neither [acme] nor a [tls] certificate: the relay is its own authority, which visitors have to trust", "ca", filepath.Join(st.dir, "ca.pem"))
	}
	return st, st.apply(s)
}

// apply takes the sites and the certificates of a configuration.
func (st *state) apply(s *settings) error {
	old, err := st.applyLocked(s)
	if err == nil {
		st.exposed.setAllowed(s.expose)
	}
	st.manage()
	if old != nil {
		old.close()
	}
	return err
}

func (st *state) applyLocked(s *settings) (old *certificates, err error) {
	st.mu.Lock()
	defer st.mu.Unlock()
	configured, given := st.configured, st.given.Swap(s.certificate)
	st.configured = s.sites
	if old, err = st.applyACME(s.acme); err == nil {
		err = st.renewLocked()
	}
	if err != nil {
		st.configured = configured
		st.given.Store(given)
	}
	return old, err
}

// renewLocked brings the certificate up to date: the relay's own names whatever the sites may publish.
func (st *state) renewLocked() error {
	if given := st.given.Load(); given != nil {
		st.certificate.Store(given)
		return nil
	}
	if st.acme.Load() != nil {
		return nil
	}
	names := []string{st.domain}
	add := func(patterns []relay.Pattern) {
		for _, p := range patterns {
			if relay.OnHTTP(p.Scheme, true) && !slices.ContainsFunc(names, func(n string) bool { return relay.MatchHost(n, p.Host) }) {
				names = append(names, p.Host)
			}
		}
	}
	add(st.exposed.allowed()) // so that not each of them needs another certificate
	for _, site := range st.sitesLocked() {
		add(site.Publish)
	}
	files, err := auth.DevCA(st.dir, names...)
	if err != nil {
		return err
	}
	c, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		return err
	}
	st.certificate.Store(&c)
	return nil
}

// sites are all sites that may link.
func (st *state) sites() []public.Site {
	st.mu.Lock()
	defer st.mu.Unlock()
	return st.sitesLocked()
}

// sitesLocked merges the sites of the configuration with those that have joined; the former win.
func (st *state) sitesLocked() []public.Site {
	list := slices.Clone(st.configured)
	for _, joined := range st.store.Sites() {
		if len(joined.Keys)+len(joined.Revoked) == 0 || st.isConfiguredLocked(joined.Name) {
			continue
		}
		site := public.Site{Name: joined.Name, Keys: joined.Keys, Revoked: joined.Revoked}
		for _, text := range joined.Publish {
			p, err := relay.ParsePattern(text)
			if err != nil {
				st.log.Warn("state: pattern left out", "site", joined.Name, "err", err)
				continue
			}
			site.Publish = append(site.Publish, p)
		}
		list = append(list, site)
	}
	return append(list, st.exposed.sites()...)
}

// lasting are the sites that are not ephemeral, those that are only invited included.
func (st *state) lasting() (list []public.Site) {
	st.mu.Lock()
	defer st.mu.Unlock()
	list = slices.Clone(st.configured)
	for _, s := range st.store.Sites() {
		site := public.Site{Name: s.Name}
		for _, text := range s.Publish {
			if p, err := relay.ParsePattern(text); err == nil {
				site.Publish = append(site.Publish, p)
			}
		}
		list = append(list, site)
	}
	return list
}

// isTaken reports whether a site that is not ephemeral has that name.
func (st *state) isTaken(name string) bool {
	return slices.ContainsFunc(st.lasting(), func(s public.Site) bool { return s.Name == name })
}

func (st *state) isConfiguredLocked(name string) bool {
	return slices.ContainsFunc(st.configured, func(s public.Site) bool { return s.Name == name })
}

// savedEvery is how often it is written when tokens were last used.
const savedEvery = 10 * time.Minute

// saveUses writes when tokens were last used, until ctx ends.
func (st *state) saveUses(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	t := time.NewTicker(savedEvery)
	defer t.Stop()
	for running := true; running; {
		select {
		case <-t.C:
		case <-ctx.Done():
			running = false
		}
		if err := st.operators.Save(); err != nil {
			st.log.Error("operators", "err", err)
		}
	}
}

// refresh makes a change of the sites effective.
func (st *state) refresh() {
	st.mu.Lock()
	err := st.renewLocked()
	st.mu.Unlock()
	if err != nil {
		st.log.Error("certificate", "err", err)
	}
	st.changed()
}

// known are all sites for operators to see, without their sessions.
func (st *state) known() []admin.Site {
	st.mu.Lock()
	defer st.mu.Unlock()
	var list []admin.Site
	for _, s := range st.configured {
		site := admin.Site{Name: s.Name, State: admin.StateAway, Keys: s.Keys}
		for _, p := range s.Publish {
			site.Publish = append(site.Publish, p.String())
		}
		list = append(list, site)
	}
	for _, s := range st.store.Sites() {
		if st.isConfiguredLocked(s.Name) || len(s.Keys) == 0 && s.InvitedUntil.IsZero() {
			continue
		}
		site := admin.Site{Name: s.Name, State: admin.StateAway, Publish: s.Publish, Keys: s.Keys}
		if len(s.Keys) == 0 {
			site.State = admin.StateInvited
		}
		if !s.InvitedUntil.IsZero() {
			site.InvitedUntil = &s.InvitedUntil
		}
		list = append(list, site)
	}
	for _, s := range st.exposed.sites() {
		site := admin.Site{Name: s.Name, State: admin.StateAway, Keys: s.Keys, Ephemeral: true}
		for _, p := range s.Publish {
			site.Publish = append(site.Publish, p.String())
		}
		list = append(list, site)
	}
	return list
}

// invite makes a join token.
func (st *state) invite(_ context.Context, in admin.Invite) (*admin.Invitation, error) {
	if err := relay.CheckName(in.Name); err != nil {
		return nil, &admin.Error{Code: http.StatusBadRequest, Text: "site: " + err.Error()}
	}
	for _, text := range in.Publish {
		if _, err := relay.ParsePattern(text); err != nil {
			return nil, &admin.Error{Code: http.StatusBadRequest, Text: err.Error()}
		}
	}
	st.mu.Lock()
	isConfigured := st.isConfiguredLocked(in.Name)
	st.mu.Unlock()
	switch {
	case isConfigured && in.Standby:
		return nil, &admin.Error{Code: http.StatusConflict, Text: fmt.Sprintf("site %q has a [[site]] entry in the relay's configuration: make a key with `relay-private keygen FILE`, add it to key there, as a list, and reload", in.Name)}
	case isConfigured:
		return nil, &admin.Error{Code: http.StatusConflict, Text: fmt.Sprintf("site %q has a [[site]] entry in the relay's configuration: change it there, or remove it and reload", in.Name)}
	case st.exposed.has(in.Name):
		return nil, &admin.Error{Code: http.StatusConflict, Text: fmt.Sprintf("site %q is what an operator exposes at the moment: take another name, or wait until it is gone", in.Name)}
	}
	own := st.ownCertificate()
	if own == nil {
		return nil, st.noCertificate()
	}
	token := auth.Token{Relay: st.publicAddress(), Site: in.Name, Pin: pinOf(own, st.domain)}
	var err error
	var out admin.Invitation
	if in.Standby {
		token.Secret, out.Expires, err = st.store.InviteStandby(in.Name, in.Lifetime())
	} else {
		token.Secret, out.Expires, err = st.store.Invite(in.Name, in.Publish, in.Lifetime())
	}
	switch {
	case errors.Is(err, auth.ErrUnknownSite):
		return nil, &admin.Error{Code: http.StatusNotFound, Text: fmt.Sprintf("site %q has no private relay that another one could stand by for: its first one joins with a token made without --stand-by", in.Name)}
	case errors.Is(err, auth.ErrTooManyKeys):
		return nil, &admin.Error{Code: http.StatusConflict, Text: fmt.Sprintf("site %q may have %d keys, those invited included: revoke one with `tunnelctl site revoke %s --key KEY`, or wait until tokens expire", in.Name, auth.MaxKeys, in.Name)}
	case err != nil:
		return nil, err
	}
	out.Site, out.Token = in.Name, token.String()
	return &out, nil
}

// publicAddress is where private relays find this one.
func (st *state) publicAddress() string {
	port := "443"
	if a := st.address; a != nil {
		if _, p, err := net.SplitHostPort(a.String()); err == nil {
			port = p
		}
	}
	return net.JoinHostPort(st.domain, port)
}

// reached is where private relays find this one, and the authority in PEM that its certificate needs, "" for one that every machine
// knows.
func (st *state) reached() (address, ca string, err error) {
	own := st.ownCertificate()
	if own == nil {
		return "", "", st.noCertificate()
	}
	if a := authority(own, st.domain); a != nil {
		ca = string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: a.Raw}))
	}
	return st.publicAddress(), ca, nil
}

// noCertificate says that there is none for the domain.
func (st *state) noCertificate() *admin.Error {
	return &admin.Error{Code: http.StatusServiceUnavailable, Text: fmt.Sprintf("the relay has no certificate for %s yet, which private relays need: `tunnelctl certs` says why", st.domain)}
}

// pinOf identifies the authority of a certificate that a private relay has to trust, nil if every machine does
// already.
func pinOf(c *tls.Certificate, domain string) []byte {
	top := authority(c, domain)
	if top == nil {
		return nil
	}
	pin := auth.Pin(top)
	return pin[:]
}

// authority is that of a certificate for domain, which comes with it, or nil if every machine trusts it already.
func authority(c *tls.Certificate, domain string) *x509.Certificate {
	rest := x509.NewCertPool()
	var top *x509.Certificate
	for i, der := range c.Certificate {
		parsed, err := x509.ParseCertificate(der)
		if err != nil || i == 0 {
			continue
		}
		rest.AddCert(parsed)
		if parsed.IsCA {
			top = parsed
		}
	}
	if _, err := c.Leaf.Verify(x509.VerifyOptions{DNSName: domain, Intermediates: rest}); err == nil {
		return nil
	}
	return top
}

// rotate makes a join token that replaces the keys of a site when it is used.
func (st *state) rotate(ctx context.Context, in admin.Rotate) (*admin.Invitation, error) {
	for _, site := range st.store.Sites() {
		if site.Name == in.Name && len(site.Keys) > 0 {
			return st.invite(ctx, admin.Invite{Name: in.Name, Publish: site.Publish, TTL: in.TTL})
		}
	}
	st.mu.Lock()
	isConfigured := st.isConfiguredLocked(in.Name)
	st.mu.Unlock()
	if isConfigured {
		return nil, &admin.Error{Code: http.StatusConflict, Text: fmt.Sprintf("site %q has a [[site]] entry in the relay's configuration: make a key with `relay-private keygen FILE`, replace the one there and reload", in.Name)}
	}
	return nil, &admin.Error{Code: http.StatusNotFound, Text: fmt.Sprintf("site %q has no keys that could be replaced: `tunnelctl site add` makes a token for a new one", in.Name)}
}

// revoke forgets a key of a site, or all.
func (st *state) revoke(_ context.Context, in admin.Revoke) error {
	name, key := in.Name, in.Key
	st.mu.Lock()
	isConfigured := st.isConfiguredLocked(name)
	st.mu.Unlock()
	if isConfigured {
		return &admin.Error{Code: http.StatusConflict, Text: fmt.Sprintf("site %q has a [[site]] entry in the relay's configuration: remove it, or the key, there and reload", name)}
	}
	if st.exposed.remove(name) {
		return nil
	}
	switch err := st.store.Revoke(name, key); {
	case errors.Is(err, auth.ErrUnknownSite):
		return &admin.Error{Code: http.StatusNotFound, Text: fmt.Sprintf("no site %q", name)}
	case errors.Is(err, auth.ErrUnknownKey):
		return &admin.Error{Code: http.StatusNotFound, Text: fmt.Sprintf("site %q does not have this key; `tunnelctl sites --json` shows those that it has", name)}
	case err != nil:
		return err
	}
	st.refresh()
	return nil
}

// join redeems a token.
func (st *state) join(req relay.JoinRequest) relay.JoinResponse {
	site, err := st.store.Redeem(req.Secret, req.Key)
	switch {
	case errors.Is(err, auth.ErrToken):
		return relay.JoinResponse{Error: &relay.Refusal{Code: relay.RefuseBadToken, Message: "the token is unknown, used or expired: ask for a new one"}}
	case err != nil:
		st.log.Error("join", "err", err)
		return relay.JoinResponse{Error: &relay.Refusal{Code: relay.RefuseInternal, Message: "the relay could not store the site's key: its log says why", Retry: true}}
	}
	st.refresh()
	return relay.JoinResponse{Site: site.Name, Publish: site.Publish}
}

// sayNext tells the operator of a relay that nobody can use yet what to do.
func (st *state) sayNext(adminAddress string) {
	if len(st.known()) > 0 {
		return
	}
	next := "tunnelctl --state " + st.dir
	if adminAddress != defaults().Listen.Admin {
		next += " --admin " + adminAddress
	}
	next += " site add NAME --publish 'https://*." + parent(st.domain) + "'"
	st.log.Info("no site yet: invite one, then run relay-private join there", "next", next)
}

// parent is the domain that a relay's own name lies in.
func parent(domain string) string {
	if _, rest, ok := strings.Cut(domain, "."); ok && strings.Contains(rest, ".") {
		return rest
	}
	return domain
}

// names are those of all sites.
func (st *state) names() []string {
	var list []string
	for _, s := range st.known() {
		list = append(list, s.Name)
	}
	return list
}

// certificates are those that the metrics tell of: names that visitors have chosen are left out.
func (st *state) certificates() []metrics.Certificate {
	m := st.acme.Load()
	var list []metrics.Certificate
	if c := st.certificate.Load(); c != nil && c.Leaf != nil && (m == nil || c == st.given.Load()) {
		list = append(list, metrics.Certificate{Name: st.domain, Expires: c.Leaf.NotAfter})
	}
	if m == nil {
		return list
	}
	for _, c := range m.Status() {
		if !c.OnDemand && (len(list) == 0 || c.Name != list[0].Name) {
			list = append(list, metrics.Certificate{Name: c.Name, Expires: c.Expires, Failures: c.Failures})
		}
	}
	return list
}

// ready tells why private relays cannot come in, as far as that is due to the certificate for the domain.
func (st *state) ready(now time.Time) error {
	c := st.ownCertificate()
	switch {
	case c == nil || c.Leaf == nil:
		return errors.New("there is no certificate for the relay's domain")
	case now.After(c.Leaf.NotAfter):
		return errors.New("the certificate for the relay's domain has expired")
	case c.Leaf.VerifyHostname(st.domain) != nil:
		return errors.New("the certificate is not for the relay's domain")
	}
	return nil
}
