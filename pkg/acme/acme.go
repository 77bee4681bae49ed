// Package acme obtains certificates from authorities that speak ACME (RFC 8555),
// keeps them in a Store, renews them in time, and hands them to TLS servers.
//
//	store, err := acme.OpenFiles("/var/lib/culvert/acme")
//	m, err := acme.New(acme.Config{
//		Store:       store,
//		Directories: []acme.Directory{{URL: acme.LetsEncrypt, Email: "ops@example.com"}},
//	})
//	m.Manage([]string{"app.example.com"})
//	srv.TLSConfig.GetCertificate = m.GetCertificate
//	…
//	m.Close()
//
// The server shows the authority what it asks for: HTTPChallenge has the answers to
// requests below /.well-known/acme-challenge/ on port 80, GetCertificate those to
// handshakes on port 443 that offer acme-tls/1 alone. With Config.DNS records are
// set instead, which wildcards need.
//
// certmagic decides when a certificate has to be renewed (ARI, RFC 9773, or a third
// of its life), writes it and locks it; acmez speaks the protocol. When to try, how
// long to wait after a failure, and how many orders there may be is decided here,
// because it has to survive a restart.
//
// # Invariants
//
//   - Manage never blocks. One goroutine decides what is due, others do it, a bounded
//     number at a time; all have ended when Close returns.
//   - A certificate that cannot be renewed is served until a better one is there. An
//     expired one is served too: visitors see what is wrong.
//   - What failed is not tried again before the time that the Store remembers, which
//     is never before the one that the authority asked for (Retry-After).
//   - Nobody but the caller of Manage, and OnDemand, decides what is ordered.
package acme

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"go.uber.org/zap"
	"golang.org/x/time/rate"
)

// Kinds of challenges, as in Config.Challenges.
const (
	HTTP01    = "http-01"
	TLSALPN01 = "tls-alpn-01"
	DNS01     = "dns-01"
)

// ALPN is the protocol that a handshake offers, alone, when it is a challenge
// (rfc8737#section-3).
const ALPN = "acme-tls/1"

// ChallengePath is what the path of every HTTP challenge begins with
// (rfc8555#section-8.3).
const ChallengePath = "/.well-known/acme-challenge/"

// Config is what a Manager works with.
type Config struct {
	// Store keeps accounts, certificates and what failed. Required.
	Store certmagic.Storage

	// Cache has copies of certificates and keys on this machine, so that they are
	// there while Store, across a network, is not. If nil there are none.
	Cache certmagic.Storage

	// Directories are the authorities, in order: the next is asked when one fails.
	// Required.
	Directories []Directory

	// Challenges are the kinds that may be used. nil: HTTP01 and TLSALPN01. With DNS,
	// wildcards use DNS01 whether or not it is among them.
	Challenges []string

	// DNS sets the records of DNS01. If nil, nothing does.
	DNS *DNS

	// OnDemand says whether a certificate may be ordered for a name that somebody
	// asks for in a handshake and that is not managed. If nil, none is.
	OnDemand func(name string) error

	// Fallback is the name whose certificate is for handshakes that ask for none.
	Fallback string

	// Proxy finds the HTTP proxy on the way to an authority. If nil there is none.
	Proxy func(*http.Request) (*url.URL, error)

	// Log hears of every certificate that was obtained, renewed, or could not be. If
	// nil, nobody does.
	Log *slog.Logger
}

// Directory is an authority, and how it knows us.
type Directory struct {
	// URL is that of the ACME directory, such as LetsEncrypt.
	URL string

	// Email is whom the authority may write to. It may be "".
	Email string

	// EAB binds the account to one that the authority has already, if it asks for that.
	EAB *EAB

	// Profile is the kind of certificate, of those that the authority offers, such as
	// "shortlived". "" is its default.
	Profile string

	// Roots are trusted instead of the system's when the authority is talked to.
	Roots *x509.CertPool
}

// EAB is an external account binding (rfc8555#section-7.3.4).
type EAB struct {
	KeyID string
	HMAC  string // base64url
}

// Directories with a name.
const (
	LetsEncrypt = "https://acme-v02.api.letsencrypt.org/directory"
	Staging     = "https://acme-staging-v02.api.letsencrypt.org/directory" // of Let's Encrypt: generous, and trusted by nobody
	ZeroSSL     = "https://acme.zerossl.com/v2/DV90"                       // needs an EAB
)

// DirectoryURL returns the URL of a directory by its name, "letsencrypt", "staging"
// or "zerossl", or the URL that it is given.
func DirectoryURL(name string) (string, error) {
	switch name {
	case "letsencrypt":
		return LetsEncrypt, nil
	case "staging":
		return Staging, nil
	case "zerossl":
		return ZeroSSL, nil
	}
	if u, err := url.Parse(name); err != nil || u.Scheme != "https" || u.Host == "" {
		return "", fmt.Errorf("directory %q: want \"letsencrypt\", \"staging\", \"zerossl\" or the https:// URL of an ACME directory", name)
	}
	return name, nil
}

const (
	maxWorkers  = 16               // certificates that are worked on at a time
	maxOnDemand = 1000             // names that were not asked for by Manage
	attemptTime = 10 * time.Minute // for one attempt, at all authorities; records take minutes to spread
	checkTime   = 6 * time.Hour    // between looks at a certificate, for want of a reason to look earlier
	soonest     = 10 * time.Second // between looks in any case
	loadRetry   = 30 * time.Second // until a Store that does not answer is asked again
	idleDemand  = 30 * 24 * time.Hour
)

// A Manager manages the certificates of a set of names.
type Manager struct {
	cfg     Config // immutable, as is the rest of this group
	log     *slog.Logger
	ctx     context.Context // ends with Close
	cancel  context.CancelFunc
	store   certmagic.Storage
	magic   *certmagic.Config
	cache   *certmagic.Cache // a workbench: what is in it is being looked at
	issuers []*issuer
	wake    chan struct{}
	loads   chan struct{}
	slots   chan struct{}
	orders  *rate.Limiter // of all names
	demands *rate.Limiter // of names on demand
	tasks   sync.WaitGroup

	challenges challenges

	mu      sync.RWMutex
	entries map[string]*entry
	stored  map[string]bool // names that the Store had certificates for at the start
	waiting int             // handshakes
	closed  bool
}

// entry is a name and its certificate. It is guarded by Manager.mu.
type entry struct {
	name     string
	wanted   bool // Manage or OnDemand has asked for it
	onDemand bool
	asked    time.Time // by a visitor, if onDemand
	busy     bool
	force    bool          // the next attempt is to get another certificate
	hurry    bool          // the next attempt does not mind how long the record says to wait
	done     chan struct{} // while busy; closed when a certificate is there, or it ends

	certificate *tls.Certificate
	authority   string    // URL of the directory
	renews      time.Time // by ARI, or by its life
	next        time.Time // when it is looked at next
	record
}

// New starts a Manager, which manages nothing yet.
func New(cfg Config) (*Manager, error) {
	switch {
	case cfg.Store == nil:
		return nil, errors.New("acme: no store")
	case len(cfg.Directories) == 0:
		return nil, errors.New("acme: no directory")
	}
	if cfg.Challenges == nil {
		cfg.Challenges = []string{HTTP01, TLSALPN01}
	}
	for _, c := range cfg.Challenges {
		if !slices.Contains([]string{HTTP01, TLSALPN01, DNS01}, c) {
			return nil, fmt.Errorf("acme: challenge %q: want %s, %s or %s", c, HTTP01, TLSALPN01, DNS01)
		}
		if c == DNS01 && cfg.DNS == nil {
			return nil, fmt.Errorf("acme: challenge %s: nothing sets the records", c)
		}
	}
	if cfg.Log == nil {
		cfg.Log = slog.New(slog.DiscardHandler)
	}
	m := &Manager{
		cfg:     cfg,
		log:     cfg.Log,
		wake:    make(chan struct{}, 1),
		loads:   make(chan struct{}, maxWorkers),
		slots:   make(chan struct{}, maxWorkers),
		orders:  rate.NewLimiter(rate.Every(36*time.Second), 100), // Let's Encrypt: 300 in three hours
		demands: rate.NewLimiter(rate.Every(time.Minute), 10),
		entries: make(map[string]*entry),
	}
	m.ctx, m.cancel = context.WithCancel(context.Background())
	m.store = cfg.Store
	if cfg.Cache != nil {
		m.store = &cached{Storage: cfg.Store, local: cfg.Cache, log: m.log}
	}
	m.challenges.init(cfg.Store)
	logger := zap.New(bridge{log: m.log})
	m.cache = certmagic.NewCache(certmagic.CacheOptions{
		GetConfigForCert: func(certmagic.Certificate) (*certmagic.Config, error) { return m.magic, nil },
		// It is empty whenever that goroutine looks. certmagic also takes it for how
		// punctual we are: a renewal may come that much too early.
		RenewCheckInterval: time.Minute,
		OCSPCheckInterval:  24 * time.Hour,
		Logger:             logger,
	})
	var issuers []certmagic.Issuer
	for _, d := range cfg.Directories {
		i := newIssuer(m, d)
		m.issuers = append(m.issuers, i)
		issuers = append(issuers, i)
	}
	m.magic = certmagic.New(m.cache, certmagic.Config{
		Issuers:   issuers,
		KeySource: certmagic.StandardKeyGenerator{KeyType: certmagic.P256},
		OCSP:      certmagic.OCSPConfig{DisableStapling: true},
		Storage:   m.store,
		Logger:    logger,
	})
	m.tasks.Go(m.run)
	m.tasks.Go(m.clean)
	return m, nil
}

// Close ends what is under way and forgets it. Certificates stay in the Store.
func (m *Manager) Close() {
	m.mu.Lock()
	wasClosed := m.closed
	m.closed = true
	m.mu.Unlock()
	if wasClosed {
		return
	}
	m.cancel()
	m.tasks.Wait()
	m.cache.Stop()
	for _, i := range m.issuers {
		i.http.CloseIdleConnections()
	}
}

// Manage replaces the names that certificates are wanted for: host names in lower
// case, wildcards such as "*.example.com", or IP addresses. A name below a wildcard
// that is wanted too needs none of its own. It returns at once; certificates follow.
func (m *Manager) Manage(names []string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	wanted := make(map[string]bool, len(names))
	for _, n := range names {
		wanted[n] = true
	}
	for _, n := range names {
		if wild := wildcard(n); wild != "" && wanted[wild] {
			delete(wanted, n)
		}
	}
	for name, e := range m.entries {
		switch {
		case wanted[name]:
		case e.onDemand && m.cfg.OnDemand != nil && m.cfg.OnDemand(name) == nil:
		default:
			e.wanted, e.onDemand = false, false
		}
	}
	for name := range wanted {
		e := m.entries[name]
		if e == nil {
			e = &entry{name: name}
			m.entries[name] = e
		}
		if !e.wanted {
			e.wanted, e.next = true, time.Time{}
		}
		e.onDemand = false
	}
	m.kick()
}

// Retry tries now what has failed before, but for authorities that have asked for
// more time.
func (m *Manager) Retry() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.entries {
		if e.Errors != nil {
			e.next, e.hurry = time.Time{}, true
		}
	}
	m.kick()
}

// Renew has another certificate ordered for a name, with a new key, unless the
// authority has asked for more time. It reports whether the name is managed.
func (m *Manager) Renew(name string) bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[name]
	if e == nil || !e.wanted {
		return false
	}
	e.next, e.hurry, e.force = time.Time{}, true, true
	m.kick()
	return true
}

// kick has run look again.
func (m *Manager) kick() {
	select {
	case m.wake <- struct{}{}:
	default:
	}
}

// wildcard is the wildcard that covers a name, "" for one that none covers.
func wildcard(name string) string {
	if _, rest, ok := strings.Cut(name, "."); ok && !strings.HasPrefix(name, "*.") && strings.Contains(rest, ".") {
		return "*." + rest
	}
	return ""
}

// run begins what is due.
func (m *Manager) run() {
	m.listStored()
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		timer.Reset(m.begin(time.Now()))
		select {
		case <-timer.C:
		case <-m.wake:
		case <-m.ctx.Done():
			return
		}
	}
}

// begin begins what is due now and returns for how long nothing will be.
func (m *Manager) begin(now time.Time) time.Duration {
	m.mu.Lock()
	defer m.mu.Unlock()
	wait := time.Hour
	for _, e := range m.entries {
		switch {
		case !e.wanted || e.busy:
		case e.next.After(now):
			wait = min(wait, e.next.Sub(now))
		case e.onDemand && e.certificate != nil && now.Sub(e.asked) > idleDemand:
			e.wanted, e.onDemand = false, false
		default:
			m.start(e)
		}
	}
	return wait
}

// start begins an attempt. m.mu is held, and e is not busy.
func (m *Manager) start(e *entry) {
	if m.closed {
		return
	}
	e.busy, e.done = true, make(chan struct{})
	m.tasks.Go(func() { m.work(e) })
}
