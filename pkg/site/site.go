// Package site is a private relay inside a program: what the program serves is published by a public relay, and nothing
// listens on this machine.
//
//	s := &site.Site{Dir: "calculator", Token: token} // the token is for the first start
//	defer s.Close()
//	err := s.Serve(ctx, "calculator", "https://calc.example.com", handler) // until ctx ends
//
// Serve takes any http.Handler, such as a rest.Server. Listen gives a net.Listener whose connections are the visitors, for
// http.Serve and for whatever speaks over a net.Conn:
//
//	ln, err := s.Listen(ctx, private.Service{Service: relay.Service{Name: "echo", Publish: publish}})
//
// Invariants: the key of the site is made here and never leaves the folder; a site that has joined needs no token again; when
// Close has returned nothing runs any more.
package site

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"

	"culvert.dev/pkg/atomicfile"
)

const (
	joinTimeout  = 30 * time.Second // for all of the conversation with the public relay
	drainTimeout = 10 * time.Second // for what is under way when a Site is closed
)

// Site is a site of a public relay that this program is. Its fields are set before the first call, and not changed after.
type Site struct {
	// Dir is the folder where the site's key is, and what was learnt when it joined. It is made if it is missing. Required,
	// unless Relay says the rest.
	Dir string

	// Token is what `tunnelctl site add` has printed. It is redeemed once, if Dir knows of no relay yet.
	Token string

	// Relay is the public relay's host:port, Name the site's name there, and Key the file with its key, if these were made
	// by hand or by `relay-private join`. "": Dir has them.
	Relay, Name, Key string

	// CA is a PEM file with the authorities that may vouch for the relay's certificate. "": the token knows a private one,
	// or the system's do.
	CA string

	// Dial replaces the network on the way to the relay. nil: TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Log hears of links and services. nil: slog.Default.
	Log *slog.Logger

	mu      sync.Mutex
	started bool
	closed  bool
	core    *evloop.Core
	relay   *private.Relay
	stop    context.CancelFunc
	ended   chan struct{} // closed when the relay has ended
	failure error         // why; read after ended
	wants   map[string]chan answer
	given   []private.Service // of Serve
}

// answer is what the public relay says of a service.
type answer struct {
	addresses []string
	problem   string
}

var errClosed = errors.New("site: closed")

// joined is what Dir knows: site.json.
type joined struct {
	Relay   string   `json:"relay"`
	Site    string   `json:"site"`
	Publish []string `json:"publish,omitempty"` // what the site may publish, when it joined
}

// Serve publishes a handler at a URL such as https://calc.example.com, or for operators only if that is "", until ctx ends;
// then it lets requests finish, for ten seconds, and returns nil. http.Request.RemoteAddr is the visitor's. It returns an
// error if the public relay refuses the site, or the service.
func (s *Site) Serve(ctx context.Context, name, publish string, h http.Handler) error {
	svc := private.Service{Service: relay.Service{Name: name}, Handler: h}
	if publish != "" {
		var err error
		if svc.Publish, err = relay.ParsePublish(publish); err != nil {
			return err
		}
	}
	if err := svc.Validate(); err != nil {
		return err
	}
	added := false
	err := s.offer(ctx, name, func(*private.Relay) error {
		err := s.replaceLocked(append(s.given, svc))
		added = err == nil
		return err
	})
	if added { // whatever the public relay says of it, or if it does not in time
		defer s.withdraw(name)
	}
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	select {
	case <-ctx.Done():
		return nil
	case <-s.ended:
		return cmp.Or(s.failure, errClosed)
	}
}

// replaceLocked has the relay offer these services. mu is held.
func (s *Site) replaceLocked(list []private.Service) error {
	if err := s.relay.Reload(list); err != nil {
		return err
	}
	s.given = list
	return nil
}

// withdraw ends a service of Serve.
func (s *Site) withdraw(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var left []private.Service
	for _, svc := range s.given {
		if svc.Name != name {
			left = append(left, svc)
		}
	}
	if !s.closed {
		s.replaceLocked(left) // what is left was good before
	}
}

// Listener is a net.Listener whose connections are visitors.
type Listener struct {
	*private.Listener
	Addresses []string // where visitors reach it; none: operators only
}

// Listen publishes a service whose visitors come to the listener: see private.Relay.Listen. It returns when the public relay
// has taken the service, or an error that says why it does not. The listener ends with s.
func (s *Site) Listen(ctx context.Context, svc private.Service) (*Listener, error) {
	l := new(Listener)
	err := s.offer(ctx, svc.Name, func(r *private.Relay) (err error) {
		l.Listener, err = r.Listen(svc)
		return err
	}, &l.Addresses)
	if err != nil {
		if l.Listener != nil {
			l.Close()
		}
		return nil, err
	}
	return l, nil
}

// Start joins, if that has not been done, and begins to dial. Serve and Listen do so by themselves. It returns the relay,
// which may be given more services; it must not be Run.
func (s *Site) Start(ctx context.Context) (*private.Relay, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.startLocked(ctx); err != nil {
		return nil, err
	}
	return s.relay, nil
}

// offer adds a service, and waits for what the public relay says of it.
func (s *Site) offer(ctx context.Context, name string, add func(*private.Relay) error, addresses ...*[]string) error {
	s.mu.Lock()
	if err := s.startLocked(ctx); err != nil {
		s.mu.Unlock()
		return err
	}
	if s.wants[name] != nil {
		s.mu.Unlock()
		return fmt.Errorf("service %q is being offered", name)
	}
	got := make(chan answer, 1)
	s.wants[name] = got
	err := add(s.relay)
	s.mu.Unlock()
	defer func() {
		s.mu.Lock()
		delete(s.wants, name)
		s.mu.Unlock()
	}()
	if err != nil {
		return err
	}
	select {
	case a := <-got:
		if a.problem != "" {
			return fmt.Errorf("service %q: the public relay does not take it: %s", name, a.problem)
		}
		for _, list := range addresses {
			*list = a.addresses
		}
		return nil
	case <-s.ended:
		return cmp.Or(s.failure, errClosed)
	case <-ctx.Done():
		return fmt.Errorf("service %q: no answer of the public relay: %w", name, ctx.Err())
	}
}

// announced is told what a public relay says of a service. On a loop.
func (s *Site) announced(_, service string, addresses []string, problem string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if c := s.wants[service]; c != nil {
		select {
		case c <- answer{addresses, problem}:
		default:
		}
	}
}

func (s *Site) startLocked(ctx context.Context) error {
	switch {
	case s.closed:
		return errClosed
	case s.started:
		return nil
	}
	at, key, roots, err := s.open(ctx)
	if err != nil {
		return err
	}
	secret, err := auth.ReadKey(key)
	if err != nil {
		return err
	}
	core, err := evloop.New(evloop.Config{})
	if err != nil {
		return err
	}
	log := s.Log
	if log == nil {
		log = slog.Default()
	}
	s.core = core
	s.relay = &private.Relay{
		Core: core, Relays: []string{at.Relay}, Site: at.Site, Key: secret, RootCAs: roots, Transport: private.TransportWSS,
		DrainTimeout: drainTimeout, Software: "culvert in a program", Log: log, Dial: s.Dial, Announced: s.announced,
	}
	running, stop := context.WithCancel(context.Background())
	s.stop, s.ended, s.wants, s.started = stop, make(chan struct{}), make(map[string]chan answer), true
	go s.run(running)
	return nil
}

// run runs the relay, until Close or until the relay is refused.
func (s *Site) run(ctx context.Context) {
	defer close(s.ended)
	s.failure = s.relay.Run(ctx)
}

// Close ends everything: requests and connections may finish, for ten seconds.
func (s *Site) Close() error {
	s.mu.Lock()
	started := s.started && !s.closed
	s.closed = true
	s.mu.Unlock()
	if started {
		s.stop()
		<-s.ended
		s.core.Close()
	}
	return nil
}

// open returns which relay is dialled as whom, joining it first if need be.
func (s *Site) open(ctx context.Context) (at joined, key string, roots *x509.CertPool, err error) {
	if s.Relay != "" {
		at = joined{Relay: withPort(s.Relay), Site: s.Name}
		if roots, err = readRoots(s.CA); err != nil {
			return at, "", nil, err
		}
		return at, s.Key, roots, nil
	}
	if s.Dir == "" {
		return at, "", nil, errors.New("site: want Dir, the folder for the site's key, or Relay, Name and Key")
	}
	b, err := os.ReadFile(filepath.Join(s.Dir, "site.json"))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if at, err = s.join(ctx); err != nil {
			return at, "", nil, err
		}
	case err != nil:
		return at, "", nil, err
	default:
		if err := json.Unmarshal(b, &at); err != nil || at.Relay == "" || at.Site == "" {
			return at, "", nil, fmt.Errorf("site: %s is damaged: remove it and the key beside it, and join with another token", filepath.Join(s.Dir, "site.json"))
		}
	}
	ca := s.CA
	if ca == "" {
		if name := filepath.Join(s.Dir, "ca.pem"); exists(name) {
			ca = name
		}
	}
	roots, err = readRoots(ca)
	return at, filepath.Join(s.Dir, "site.key"), roots, err
}

// join redeems the token. What it leaves behind when it fails is a key that the next try replaces.
func (s *Site) join(ctx context.Context) (joined, error) {
	if s.Token == "" {
		return joined{}, fmt.Errorf("site: %s knows of no relay: a join token is needed once, `tunnelctl site add` on the public relay makes one", s.Dir)
	}
	token, err := auth.ParseToken(s.Token)
	if err != nil {
		return joined{}, err
	}
	if err := os.MkdirAll(s.Dir, 0o700); err != nil {
		return joined{}, err
	}
	key := filepath.Join(s.Dir, "site.key")
	if err := os.Remove(key); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return joined{}, err
	}
	public, err := auth.GenerateKey(key)
	if err != nil {
		return joined{}, err
	}
	c, authority, err := s.verify(token)
	if err != nil {
		return joined{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, joinTimeout)
	defer cancel()
	answer, err := Redeem(ctx, token, auth.FormatPublicKey(public), "culvert in a program", c, s.Dial)
	if err != nil {
		return joined{}, err
	}
	at := joined{Relay: token.Relay, Site: answer.Site, Publish: answer.Publish}
	if pem := authority(); pem != nil {
		if err := atomicfile.Write(filepath.Join(s.Dir, "ca.pem"), pem, 0o644); err != nil {
			return at, err
		}
	}
	b, err := json.MarshalIndent(at, "", "  ")
	if err != nil {
		return at, err
	}
	return at, atomicfile.Write(filepath.Join(s.Dir, "site.json"), append(b, '\n'), 0o600)
}

// verify returns how the relay of a token is verified, and a func that returns the private authority to remember, or nil.
func (s *Site) verify(token auth.Token) (*tls.Config, func() []byte, error) {
	none := func() []byte { return nil }
	host, _, err := net.SplitHostPort(token.Relay)
	if err != nil {
		return nil, nil, fmt.Errorf("token: relay: %w", err)
	}
	if s.CA == "" && token.Pin != nil {
		c, authority := auth.PinnedTLS(token.Pin, host)
		return c, authority, nil
	}
	roots, err := readRoots(s.CA)
	return &tls.Config{MinVersion: tls.VersionTLS13, ServerName: host, RootCAs: roots}, none, err
}

func readRoots(file string) (*x509.CertPool, error) {
	if file == "" {
		return nil, nil
	}
	pem, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("CA: %w", err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA: %s holds no PEM certificate", file)
	}
	return pool, nil
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

// withPort completes HOST to HOST:443.
func withPort(s string) string {
	if _, _, err := net.SplitHostPort(s); err != nil {
		return net.JoinHostPort(s, "443")
	}
	return s
}
