package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"path"
	"strings"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3/acme"
)

// record is what is remembered of a name that no certificate could be had for.
type record struct {
	Failures int       `json:"failures,omitempty"`
	Next     time.Time `json:"next,omitzero"`
	Errors   []refusal `json:"errors,omitempty"` // of the last attempt
}

// refusal is why one authority gave no certificate.
type refusal struct {
	CA      string    `json:"ca,omitempty"` // URL of the directory; "": it is no authority's
	Message string    `json:"message"`
	Until   time.Time `json:"until,omitzero"` // the authority does not want to be asked before

	reached bool // the authority has answered
}

func (r *record) text() string {
	var list []string
	for _, e := range r.Errors {
		if e.CA != "" {
			list = append(list, e.CA+": "+e.Message)
		} else {
			list = append(list, e.Message)
		}
	}
	return strings.Join(list, "; ")
}

// until is how long an authority wants to be let alone.
func (r *record) until(ca string) time.Time {
	for _, e := range r.Errors {
		if e.CA == ca {
			return e.Until
		}
	}
	return time.Time{}
}

// waits are what to wait after failures. Let's Encrypt minds five failed validations
// of a name in an hour, and an attempt may be two.
var waits = []time.Duration{
	time.Minute, 15 * time.Minute, 30 * time.Minute, time.Hour, 2 * time.Hour, 4 * time.Hour, 8 * time.Hour, 12 * time.Hour,
}

// maxUnreached bounds the wait while no authority has even answered.
const maxUnreached = 30 * time.Minute

// failed counts a failure. life is what is left of the certificate that is there.
func (r *record) failed(now time.Time, errs []refusal, life time.Duration) {
	wait := waits[min(r.Failures, len(waits)-1)]
	r.Failures++
	r.Errors = errs
	reached := false
	var asked time.Time // when the first authority may be asked again
	for i, e := range errs {
		reached = reached || e.reached
		if i == 0 || e.Until.Before(asked) {
			asked = e.Until
		}
	}
	if !reached {
		wait = min(wait, maxUnreached)
	}
	if life > 0 {
		wait = max(min(wait, life/10), time.Minute)
	}
	wait += time.Duration(rand.Int64N(int64(wait / 5))) // those that failed together do not come back together
	r.Next = now.Add(wait)
	if asked.After(r.Next) {
		r.Next = asked
	}
}

func recordKey(name string) string {
	return path.Join("retry", certmagic.StorageKeys.Safe(name)+".json")
}

// remembered reads the record of a name. Without one, or one that can be read, nothing
// has failed.
func (m *Manager) remembered(ctx context.Context, name string) (r record) {
	b, err := m.store.Load(ctx, recordKey(name))
	if err == nil {
		err = json.Unmarshal(b, &r)
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		m.log.Warn("certificates: what failed before is not known", "name", name, "err", err)
		return record{}
	}
	return r
}

// remember writes it, or forgets it when there is nothing to remember.
func (m *Manager) remember(name string, r record) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(m.ctx), 5*time.Second)
	defer cancel()
	var err error
	if r.Failures == 0 {
		err = m.store.Delete(ctx, recordKey(name))
	} else if b, jsonErr := json.Marshal(r); jsonErr == nil {
		err = m.store.Store(ctx, recordKey(name), b)
	}
	if err != nil {
		m.log.Warn("certificates: what failed cannot be remembered", "name", name, "err", err)
	}
}

// attempt is one attempt to get a certificate. It travels in the context.
type attempt struct {
	name     string
	record   record
	replaces *held // what is renewed, or nil
	errs     []refusal
}

type attemptKey struct{}

func attemptOf(ctx context.Context) *attempt {
	a, _ := ctx.Value(attemptKey{}).(*attempt)
	return a
}

// held is a certificate in the Store.
type held struct {
	certificate *tls.Certificate
	issuer      *issuer
	info        acme.RenewalInfo // empty without ARI
}

// renews is when it is to be renewed, as certmagic has it: when the authority says so, but not later than when a third
// of its life is left.
func (h *held) renews() time.Time {
	leaf := h.certificate.Leaf
	third := leaf.NotAfter.Add(-leaf.NotAfter.Sub(leaf.NotBefore) / 3)
	if at := h.info.SelectedTime; !at.IsZero() && at.Before(third) {
		return at
	}
	return third
}

// due reports whether there is something to do about it: to renew it, or to ask the
// authority when to.
func (h *held) due(now time.Time) bool {
	return !now.Before(h.renews()) || h.info.NeedsRefresh()
}

// look is when to look at it again.
func (h *held) look(now time.Time) time.Time {
	t := h.renews()
	if r := h.info.RetryAfter; h.info.HasWindow() && r != nil && r.Before(t) {
		t = *r
	}
	if last := now.Add(checkTime); t.After(last) {
		t = last
	}
	if soon := now.Add(soonest); t.Before(soon) {
		t = soon
	}
	return t.Add(time.Duration(rand.Int64N(int64(t.Sub(now)/50) + 1)))
}

// load reads the newest certificate of a name: fs.ErrNotExist if there is none. One that can be read is better than none: when the
// Store does not answer there is a copy of what an authority has issued, and nothing for those that have not.
func (m *Manager) load(ctx context.Context, name string) (*held, error) {
	var best *held
	failed := error(fs.ErrNotExist)
	for _, i := range m.issuers {
		h, err := m.loadFrom(ctx, i, name)
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			failed = err
		case best == nil || h.certificate.Leaf.NotBefore.After(best.certificate.Leaf.NotBefore):
			best = h
		}
	}
	if best == nil {
		return nil, failed
	}
	return best, nil
}

func (m *Manager) loadFrom(ctx context.Context, i *issuer, name string) (*held, error) {
	keys := certmagic.StorageKeys
	var parts [3][]byte
	for n, key := range []string{keys.SiteCert(i.key, name), keys.SitePrivateKey(i.key, name), keys.SiteMeta(i.key, name)} {
		b, err := m.store.Load(ctx, key)
		if err != nil {
			return nil, err
		}
		parts[n] = b
	}
	pair, err := tls.X509KeyPair(parts[0], parts[1])
	if err == nil && pair.Leaf == nil {
		pair.Leaf, err = x509.ParseCertificate(pair.Certificate[0])
	}
	if err != nil {
		// The process died while it wrote them, one after the other.
		m.log.Warn("certificates: the files of one do not belong together, so they are dropped", "name", name, "ca", i.dir.URL, "err", err)
		if err := m.store.Delete(ctx, keys.CertsSitePrefix(i.key, name)); err != nil {
			return nil, err
		}
		return nil, fs.ErrNotExist
	}
	h := &held{certificate: &pair, issuer: i}
	var meta certmagic.CertificateResource
	var data acme.Certificate
	if json.Unmarshal(parts[2], &meta) == nil && json.Unmarshal(meta.IssuerData, &data) == nil && data.RenewalInfo != nil {
		h.info = *data.RenewalInfo
	}
	return h, nil
}

// listStored notes which names there are certificates for: sites that are away are
// none that Manage knows of, and their visitors are to be told so.
func (m *Manager) listStored() {
	stored := make(map[string]bool)
	for _, i := range m.issuers {
		list, err := m.store.List(m.ctx, certmagic.StorageKeys.CertsPrefix(i.key), false)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			m.log.Warn("certificates: what there is cannot be listed", "err", err)
		}
		for _, key := range list {
			stored[path.Base(key)] = true
		}
	}
	m.mu.Lock()
	m.stored = stored
	m.mu.Unlock()
}

// work is one attempt for e: what the Store has is served, and if that is nothing, or
// too old, something is done about it.
func (m *Manager) work(e *entry) {
	ctx, cancel := context.WithTimeout(m.ctx, attemptTime)
	defer cancel()
	m.mu.Lock()
	j := job{wanted: e.wanted, hurry: e.hurry, force: e.force, known: e.record}
	e.hurry, e.force = false, false
	m.mu.Unlock()
	next, rec := m.attempt(ctx, e, j)
	m.mu.Lock()
	defer m.mu.Unlock()
	e.busy = false
	if e.hurry { // asked for meanwhile
		next = time.Time{}
	}
	e.next, e.record = next, rec
	e.answered()
	if !e.wanted && e.certificate == nil && m.entries[e.name] == e {
		delete(m.entries, e.name)
	}
	m.kick()
}

// answered tells those who wait that there is something to know. m.mu is held.
func (e *entry) answered() {
	if e.done != nil {
		close(e.done)
		e.done = nil
	}
}

// enter takes a place in a bounded set, which leave gives back.
func enter(ctx context.Context, places chan struct{}) (leave func(), err error) {
	select {
	case places <- struct{}{}:
		return func() { <-places }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// serve makes a certificate that of e, and rec what has failed since.
func (m *Manager) serve(e *entry, h *held, rec record) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e.record = rec
	e.certificate, e.authority, e.renews = h.certificate, h.issuer.dir.URL, h.renews()
	e.answered()
}

// job is what an attempt is to do.
type job struct {
	wanted, hurry, force bool // as those of the entry
	known                record
}

// attempt returns when to look at e again, and what has failed.
func (m *Manager) attempt(ctx context.Context, e *entry, j job) (next time.Time, rec record) {
	leave, err := enter(ctx, m.loads)
	if err != nil {
		return time.Time{}, j.known
	}
	h, err := m.load(ctx, e.name)
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		rec = m.remembered(ctx, e.name)
	}
	leave()
	now := time.Now()
	switch {
	case err == nil:
		m.serve(e, h, rec)
		if !j.wanted || !j.force && !h.due(now) {
			return h.look(now), record{}
		}
	case !errors.Is(err, fs.ErrNotExist):
		if m.ctx.Err() == nil {
			m.log.Warn("certificates: the store cannot be read", "name", e.name, "err", err, "next", loadRetry)
		}
		j.known.Errors = []refusal{{Message: "store: " + err.Error()}}
		return now.Add(loadRetry + time.Duration(rand.Int64N(int64(loadRetry/5)))), j.known
	case !j.wanted:
		return time.Time{}, record{}
	}
	if !j.hurry && rec.Next.After(now) {
		return rec.Next, rec
	}
	return m.ask(ctx, e, h, rec, j.force)
}

// ask asks the authorities: for a certificate, or when to renew h.
func (m *Manager) ask(ctx context.Context, e *entry, h *held, rec record, force bool) (time.Time, record) {
	leave, err := enter(ctx, m.slots)
	if err != nil {
		return time.Time{}, rec
	}
	defer leave()
	a := &attempt{name: e.name, record: rec}
	if h != nil {
		a.replaces = h
	}
	ctx = context.WithValue(ctx, attemptKey{}, a)
	if force && h != nil {
		err = m.magic.RenewCertSync(ctx, e.name, true)
	} else {
		err = m.magic.ManageSync(ctx, []string{e.name})
	}
	var hashes []string
	for _, c := range m.cache.AllMatchingCertificates(e.name) {
		if c.Names[0] == e.name {
			hashes = append(hashes, c.Hash())
		}
	}
	m.cache.Remove(hashes)
	if m.ctx.Err() != nil {
		return time.Time{}, rec
	}
	now := time.Now()
	if err != nil {
		return m.couldNot(e, h, a, err)
	}
	got, err := m.load(ctx, e.name)
	if err != nil {
		return m.couldNot(e, h, a, fmt.Errorf("the certificate that has just been stored: %w", err))
	}
	m.serve(e, got, record{})
	if rec.Failures > 0 {
		m.remember(e.name, record{})
	}
	next := got.look(now)
	switch isNew := h == nil || !h.certificate.Leaf.Equal(got.certificate.Leaf); {
	case isNew && h == nil:
		m.logGot("certificate obtained", e.name, got)
	case isNew:
		m.logGot("certificate renewed", e.name, got)
	case got.due(now): // the authority did not say when
		next = now.Add(time.Hour)
	}
	return next, record{}
}

func (m *Manager) logGot(what, name string, h *held) {
	m.log.Info(what, "name", name, "ca", h.issuer.dir.URL,
		"expires", h.certificate.Leaf.NotAfter, "renews", h.renews().Round(time.Second))
}

// couldNot notes that there is no certificate, or no new one.
func (m *Manager) couldNot(e *entry, h *held, a *attempt, err error) (time.Time, record) {
	errs := a.errs
	if len(errs) == 0 {
		errs = []refusal{{Message: err.Error()}}
	}
	now := time.Now()
	rec := a.record
	var life time.Duration
	if h != nil {
		life = max(time.Until(h.certificate.Leaf.NotAfter), 1)
	}
	rec.failed(now, errs, life)
	m.remember(e.name, rec)
	level, what, more := slog.LevelWarn, "certificate could not be obtained", []any(nil)
	if h != nil {
		what, more = "certificate could not be renewed, the old one stays", []any{"expires", h.certificate.Leaf.NotAfter}
		if left := h.certificate.Leaf.NotAfter; now.After(left.Add(-left.Sub(h.certificate.Leaf.NotBefore) / 10)) {
			level = slog.LevelError
		}
	}
	m.log.Log(context.Background(), level, what, append([]any{
		"name", e.name, "err", rec.text(), "failures", rec.Failures, "next", rec.Next.Round(time.Second),
	}, more...)...)
	return rec.Next, rec
}
