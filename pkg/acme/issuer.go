package acme

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	mathrand "math/rand/v2"
	"net"
	"net/http"
	"net/url"
	"path"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/caddyserver/certmagic"
	"github.com/mholt/acmez/v3"
	"github.com/mholt/acmez/v3/acme"
)

// pollTime is how long an authority may take to validate, and then to sign.
const pollTime = 90 * time.Second

// issuer is an authority that certmagic may ask for certificates. certmagic's own
// would listen on ports 80 and 443 itself, and does not tell what Retry-After said.
type issuer struct {
	m      *Manager
	dir    Directory
	key    string // of what the Store has from it
	http   *http.Client
	client *acme.Client

	mu    sync.Mutex
	pause time.Time // the authority wants to be let alone until then, whatever the name
}

func newIssuer(m *Manager, d Directory) *issuer {
	i := &issuer{m: m, dir: d, key: storeKey(d.URL)}
	transport := &http.Transport{
		Proxy:                 m.cfg.Proxy,
		DialContext:           (&net.Dialer{Timeout: 15 * time.Second}).DialContext,
		TLSHandshakeTimeout:   15 * time.Second,
		ResponseHeaderTimeout: 30 * time.Second,
		ForceAttemptHTTP2:     true,
		MaxIdleConns:          4,
		IdleConnTimeout:       30 * time.Second,
	}
	if d.Roots != nil {
		transport.TLSClientConfig = &tls.Config{RootCAs: d.Roots}
	}
	i.http = &http.Client{Transport: hearing{transport, i}, Timeout: time.Minute}
	i.client = &acme.Client{
		Directory:   d.URL,
		HTTPClient:  i.http,
		UserAgent:   "culvert",
		PollTimeout: pollTime,
		Logger:      slog.New(quiet{m.log.Handler()}),
	}
	return i
}

// storeKey is what certmagic would call the authority.
func storeKey(directory string) string {
	u, err := url.Parse(directory)
	if err != nil {
		return directory
	}
	p := strings.Trim(strings.NewReplacer("/", "-", `\`, "-").Replace(u.Path), "-")
	if p == "" {
		return u.Host
	}
	return u.Host + "-" + p
}

// IssuerKey implements certmagic.Issuer.
func (i *issuer) IssuerKey() string { return i.key }

// GetRenewalInfo implements certmagic.RenewalInfoGetter.
func (i *issuer) GetRenewalInfo(ctx context.Context, c certmagic.Certificate) (acme.RenewalInfo, error) {
	return i.renewalInfo(ctx, c.Leaf)
}

// renewalInfo asks when to renew a certificate (rfc9773#section-4.1). acmez would do,
// but for windows of one second, which it does not take; some authorities mean "now".
func (i *issuer) renewalInfo(ctx context.Context, leaf *x509.Certificate) (info acme.RenewalInfo, err error) {
	d, err := i.client.GetDirectory(ctx)
	if err != nil {
		return info, err
	}
	if d.RenewalInfo == "" {
		return info, acme.ErrUnsupported
	}
	id, err := acme.ARIUniqueIdentifier(leaf)
	if err != nil {
		return info, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, d.RenewalInfo+"/"+id, nil)
	if err != nil {
		return info, err
	}
	resp, err := i.http.Do(req)
	if err != nil {
		return info, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return info, fmt.Errorf("when to renew: %s", resp.Status)
	}
	if err := json.NewDecoder(io.LimitReader(resp.Body, 64<<10)).Decode(&info); err != nil {
		return info, fmt.Errorf("when to renew: %w", err)
	}
	start, end := info.SuggestedWindow.Start, info.SuggestedWindow.End
	if start.IsZero() || !end.After(start) {
		return acme.RenewalInfo{}, fmt.Errorf("when to renew: from %v to %v is no time", start, end)
	}
	info.UniqueIdentifier = id
	info.SelectedTime = start.Add(time.Duration(mathrand.Int64N(int64(end.Sub(start))))).UTC()
	again, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now())
	if !ok {
		again = time.Now().Add(checkTime)
	}
	if soon := time.Now().Add(time.Minute); again.Before(soon) {
		again = soon
	}
	if last := time.Now().Add(24 * time.Hour); again.After(last) {
		again = last
	}
	info.RetryAfter = &again
	return info, nil
}

// Issue implements certmagic.Issuer. It is tried once: whether to try again is for
// the Manager to say.
func (i *issuer) Issue(ctx context.Context, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	a := attemptOf(ctx)
	if a == nil {
		// certmagic's own maintenance has found a certificate in its cache that is being loaded or renewed just
		// now. When to renew is for the Manager to say, which counts the failures.
		return nil, certmagic.ErrNoRetry{Err: errors.New("the relay renews its certificates by itself")}
	}
	h := &heard{}
	c, err := i.issue(context.WithValue(ctx, heardKey{}, h), a, csr)
	if err == nil {
		return c, nil
	}
	r := refusal{CA: i.dir.URL, Message: explain(err), Until: h.until, reached: h.answered}
	var w waiting
	if errors.As(err, &w) {
		r.Until, r.reached = w.until, true
	}
	a.errs = append(a.errs, r)
	return nil, certmagic.ErrNoRetry{Err: err}
}

// waiting is the error of an authority that is not asked.
type waiting struct {
	until time.Time
	why   string
}

func (w waiting) Error() string {
	if w.why != "" {
		return w.why
	}
	return "it has asked to be let alone until " + w.until.UTC().Format(time.RFC3339)
}

func (i *issuer) issue(ctx context.Context, a *attempt, csr *x509.CertificateRequest) (*certmagic.IssuedCertificate, error) {
	i.mu.Lock()
	pause := i.pause
	i.mu.Unlock()
	if u := a.record.until(i.dir.URL); u.After(pause) {
		pause = u
	}
	if pause.After(time.Now()) {
		return nil, waiting{until: pause}
	}
	if err := i.m.orders.Wait(ctx); err != nil {
		return nil, waiting{why: "too many certificates are being ordered at once: they are spread over time"}
	}
	for again := false; ; again = true {
		account, err := i.account(ctx)
		if err != nil {
			return nil, fmt.Errorf("account: %w", err)
		}
		chains, err := i.order(ctx, a, account, csr)
		var p acme.Problem
		if !again && errors.As(err, &p) && p.Type == acme.ProblemTypeAccountDoesNotExist {
			i.m.log.Warn("certificates: the authority does not know the account any more, so there will be a new one", "ca", i.dir.URL)
			if err := i.m.store.Delete(ctx, i.accountKey()); err != nil {
				return nil, err
			}
			continue
		}
		if err != nil {
			return nil, err
		}
		if len(chains) == 0 {
			return nil, errors.New("there is no certificate in the answer")
		}
		got := chains[0]
		if got.RenewalInfo == nil {
			if block, _ := pem.Decode(got.ChainPEM); block != nil {
				if leaf, err := x509.ParseCertificate(block.Bytes); err == nil {
					if info, err := i.renewalInfo(ctx, leaf); err == nil {
						got.RenewalInfo = &info
					}
				}
			}
		}
		return &certmagic.IssuedCertificate{Certificate: got.ChainPEM, Metadata: got}, nil
	}
}

// order orders a certificate.
func (i *issuer) order(ctx context.Context, a *attempt, account acme.Account, csr *x509.CertificateRequest) ([]acme.Certificate, error) {
	params, err := acmez.OrderParametersFromCSR(account, csr)
	if err != nil {
		return nil, err
	}
	params.Profile = i.dir.Profile
	// An authority that has lost track of the old certificate refuses the order. It is
	// told what is replaced every second time only, if it has refused.
	if a.replaces != nil && a.replaces.issuer == i && a.record.Failures%2 == 0 {
		params.Replaces = a.replaces.certificate.Leaf
	}
	client := &acmez.Client{Client: i.client, ChallengeSolvers: i.m.solvers(a.name)}
	return client.ObtainCertificate(ctx, params)
}

// stored is an account as it is in the Store.
type stored struct {
	Account acme.Account `json:"account"`
	Key     string       `json:"key"` // PEM
}

func (i *issuer) accountKey() string {
	who := i.dir.Email
	if i.dir.EAB != nil {
		who += " " + i.dir.EAB.KeyID
	}
	return path.Join("accounts", certmagic.StorageKeys.Safe(i.key), certmagic.StorageKeys.Safe("account "+who)+".json")
}

// account returns the account, which it makes if there is none.
func (i *issuer) account(ctx context.Context) (acme.Account, error) {
	if a, err := i.loadAccount(ctx); !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	lock := "account_" + certmagic.StorageKeys.Safe(i.accountKey())
	if err := i.m.store.Lock(ctx, lock); err != nil {
		return acme.Account{}, err
	}
	defer i.m.store.Unlock(context.WithoutCancel(ctx), lock)
	if a, err := i.loadAccount(ctx); !errors.Is(err, fs.ErrNotExist) {
		return a, err
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return acme.Account{}, err
	}
	a := acme.Account{PrivateKey: key, TermsOfServiceAgreed: true}
	if i.dir.Email != "" {
		a.Contact = []string{"mailto:" + i.dir.Email}
	}
	if e := i.dir.EAB; e != nil {
		if err := a.SetExternalAccountBinding(ctx, i.client, acme.EAB{KeyID: e.KeyID, MACKey: strings.TrimRight(e.HMAC, "=")}); err != nil {
			return a, err
		}
	}
	if a, err = i.client.NewAccount(ctx, a); err != nil {
		return a, err
	}
	keyPEM, err := certmagic.PEMEncodePrivateKey(key)
	if err != nil {
		return a, err
	}
	b, err := json.Marshal(stored{Account: a, Key: string(keyPEM)})
	if err != nil {
		return a, err
	}
	return a, i.m.store.Store(ctx, i.accountKey(), b)
}

func (i *issuer) loadAccount(ctx context.Context) (acme.Account, error) {
	b, err := i.m.store.Load(ctx, i.accountKey())
	if err != nil {
		return acme.Account{}, err
	}
	var s stored
	if err := json.Unmarshal(b, &s); err != nil {
		return acme.Account{}, fmt.Errorf("%s: %w", i.accountKey(), err)
	}
	s.Account.PrivateKey, err = certmagic.PEMDecodePrivateKey([]byte(s.Key))
	return s.Account, err
}

// heard is what an authority said beside its answers, in one attempt.
type heard struct {
	mu       sync.Mutex
	answered bool
	until    time.Time
}

type heardKey struct{}

// maxPause bounds what an authority can ask for.
const maxPause = 7 * 24 * time.Hour

// hearing listens to the answers of an authority.
type hearing struct {
	http.RoundTripper
	i *issuer
}

func (t hearing) RoundTrip(r *http.Request) (*http.Response, error) {
	resp, err := t.RoundTripper.RoundTrip(r)
	h, _ := r.Context().Value(heardKey{}).(*heard)
	if err != nil || h == nil {
		return resp, err
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	h.answered = true
	if resp.StatusCode != http.StatusTooManyRequests && resp.StatusCode != http.StatusServiceUnavailable {
		return resp, nil
	}
	until, ok := retryAfter(resp.Header.Get("Retry-After"), time.Now())
	if !ok {
		return resp, nil
	}
	h.until = until
	if resp.StatusCode == http.StatusServiceUnavailable {
		t.i.mu.Lock()
		t.i.pause = until
		t.i.mu.Unlock()
	}
	return resp, nil
}

// CloseIdleConnections makes http.Client's work.
func (t hearing) CloseIdleConnections() {
	t.RoundTripper.(*http.Transport).CloseIdleConnections()
}

// retryAfter reads the field of that name: seconds, or a date.
func retryAfter(value string, now time.Time) (time.Time, bool) {
	t, err := http.ParseTime(value)
	if n, numErr := strconv.ParseUint(value, 10, 64); numErr == nil || errors.Is(numErr, strconv.ErrRange) {
		t, err = now.Add(time.Duration(min(n, uint64(maxPause/time.Second)))*time.Second), nil
	}
	if last := now.Add(maxPause); t.After(last) {
		t = last
	}
	return t, err == nil && t.After(now)
}

// explain is what an operator has to read of an error.
func explain(err error) string {
	var p acme.Problem
	if !errors.As(err, &p) {
		return err.Error()
	}
	text := p.Detail
	if text == "" {
		text = p.Title
	}
	for _, s := range p.Subproblems {
		text += "; " + s.Identifier.Value + ": " + s.Detail
	}
	if kind := strings.TrimPrefix(p.Type, "urn:ietf:params:acme:error:"); kind != "" {
		text += " (" + kind + ")"
	}
	if len(text) > 500 {
		text = text[:500] + "…"
	}
	return text
}
