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
// What is not here: UDP (a program that has a socket of its own is published as a udp:// target, by relay-private), dialling out
// through the public relay, several public relays for one Site. Certificates of https publishes are the public relay's; TLS that ends
// in the program is a tls:// publish, with http.ServeTLS or private.Service.TLS.
//
// Invariants: the key of the site is made here and never leaves the folder; a site that has joined needs no token again; when
// Close has returned nothing runs any more. A Site may be used from any goroutine.
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
	"slices"
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

// Site is a site of a public relay that this program is. Its fields are set before the first call, and not changed after. The zero
// value lacks a Dir.
type Site struct {
	// Dir is the folder where the site's key is, and what was learnt when it joined. It is made if it is missing. It is that of one
	// program at a time: of two with the same key one waits until the other is gone. Required, unless Relay says the rest.
	Dir string

	// Token is what `tunnelctl site add` has printed. It is redeemed once, if Dir knows of no relay yet.
	Token string

	// Relay is the public relay's HOST or HOST:PORT (443 if there is none), Name the site's name there, and Key the file with
	// its key, if these were made by hand or by `relay-private join`: all of them or none. "": Dir has them.
	Relay, Name, Key string

	// CA is a PEM file with the authorities that may vouch for the relay's certificate. "": the token knows a private one,
	// or the system's do.
	CA string

	// Dial replaces the network on the way to the relay, for a proxy or the like. It returns when ctx ends. nil: TCP.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// Log hears of links and services. nil: slog.Default.
	Log *slog.Logger

	portable bool // has the loop work on connections that are no sockets; set by tests

	mu      sync.Mutex
	closed  bool
	joining *joining       // a start that is under way, or nil
	relay   *private.Relay // once it has been started
	stop    context.CancelFunc
	ended   chan struct{} // made with relay; closed when that and its loops have ended
	failure error         // of the relay, or nil; read after ended
	wants   map[string]chan answer
	given   []private.Service // of Serve
}

// joining is a start of the relay. Whoever needs it started meanwhile waits for done.
type joining struct {
	cancel context.CancelFunc
	done   chan struct{}
}

// answer is what the public relay says of a service.
type answer struct {
	addresses []string
	problem   string
}

// errClosed is what methods return after Close.
var errClosed = fmt.Errorf("site: %w", net.ErrClosed)

// joined is what Dir knows: site.json.
type joined struct {
	Relay   string   `json:"relay"`
	Site    string   `json:"site"`
	Publish []string `json:"publish,omitempty"` // what the site may publish, when it joined
}

// Serve publishes a handler at a URL such as https://calc.example.com, or for operators only if that is "", until ctx ends:
// then it withdraws the service and returns nil. Requests that are under way go on; Close waits for them.
// http.Request.RemoteAddr is the visitor's. A handler that panics is logged, and answers its request with 500. Services of
// different names may be served at a time.
//
// While the public relay is away Serve waits, and the log says why. It returns an error if the site cannot join, if the public
// relay refuses the site or the service, or if the name is taken here; net.ErrClosed if Close has ended it. The service is
// withdrawn then, too. After the refusal of a service another one may be tried; that of a site is for good.
func (s *Site) Serve(ctx context.Context, name, publish string, h http.Handler) error {
	svc := private.Service{Service: relay.Service{Name: name}, Handler: h}
	if h == nil {
		return fmt.Errorf("service %q: no handler", name)
	}
	if publish != "" {
		var err error
		if svc.Publish, err = relay.ParsePublish(publish); err != nil {
			return fmt.Errorf("service %q: %w", name, err)
		}
	}
	if err := svc.Validate(); err != nil {
		return err
	}
	add := func() error { return s.replaceLocked(append(slices.Clone(s.given), svc)) }
	_, err := s.offer(ctx, name, add, func() { s.withdraw(name) })
	if err != nil {
		if ctx.Err() != nil {
			return nil
		}
		return err
	}
	defer s.withdraw(name)
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
	if !s.closed {
		named := func(svc private.Service) bool { return svc.Name == name }
		s.replaceLocked(slices.DeleteFunc(slices.Clone(s.given), named)) // what is left was good before
	}
}

// Listener is a net.Listener whose connections are visitors.
type Listener struct {
	*private.Listener
	Addresses []string // where visitors reach it; none: operators only
}

// Listen publishes a service whose visitors come to the listener: see private.Relay.Listen. It returns when the public relay
// has taken the service, or an error as Serve does; if ctx ends before, that of ctx, with what keeps the public relay away. ctx
// has no meaning after that.
//
// The listener is the caller's to close, which withdraws the service, and so are its connections, which go on then. A link
// that is lost and comes back is not noticed by either. A public relay that restarts resets the connections; the listener goes on.
// Both end with s.
func (s *Site) Listen(ctx context.Context, svc private.Service) (*Listener, error) {
	l := new(Listener)
	add := func() (err error) {
		l.Listener, err = s.relay.Listen(svc)
		return err
	}
	var err error
	if l.Addresses, err = s.offer(ctx, svc.Name, add, func() { l.Close() }); err != nil {
		return nil, err
	}
	return l, nil
}

// Start joins, if that has not been done, and begins to dial, which it does not wait for. Serve and Listen do so by themselves.
// It returns the relay, for its Status, Listen and SetOperators: Run and Reload are for s. ctx ends the joining, and nothing else. After
// an error Start may be tried again, unless the relay has ended: then the error is why.
func (s *Site) Start(ctx context.Context) (*private.Relay, error) {
	for {
		s.mu.Lock()
		if s.closed || s.relay != nil {
			defer s.mu.Unlock()
			return s.startedLocked()
		}
		if j := s.joining; j != nil {
			s.mu.Unlock()
			select {
			case <-j.done:
				continue
			case <-ctx.Done():
				return nil, ctx.Err()
			}
		}
		ctx, cancel := context.WithCancel(ctx)
		j := &joining{cancel, make(chan struct{})}
		s.joining = j
		s.mu.Unlock()
		at, key, roots, err := s.open(ctx)
		cancel()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.joining = nil
		close(j.done)
		if err == nil && !s.closed {
			err = s.startLocked(at, key, roots)
		}
		if err != nil && !s.closed {
			return nil, err
		}
		return s.startedLocked()
	}
}

// startedLocked returns the relay, or what has ended it.
func (s *Site) startedLocked() (*private.Relay, error) {
	if s.relay != nil {
		select {
		case <-s.ended:
			return nil, cmp.Or(s.failure, errClosed)
		default:
		}
	}
	if s.closed {
		return nil, errClosed
	}
	return s.relay, nil
}

func (s *Site) startLocked(at joined, key string, roots *x509.CertPool) error {
	secret, err := auth.ReadKey(key)
	if err != nil {
		return err
	}
	core, err := evloop.New(evloop.Config{Portable: s.portable})
	if err != nil {
		return err
	}
	log := s.Log
	if log == nil {
		log = slog.Default()
	}
	s.relay = &private.Relay{
		Core: core, Relays: []string{at.Relay}, Site: at.Site, Key: secret, RootCAs: roots, Transport: private.TransportWSS,
		DrainTimeout: drainTimeout, Software: "culvert in a program", Log: log, Dial: s.Dial, Announced: s.announced,
	}
	running, stop := context.WithCancel(context.Background())
	s.stop, s.ended, s.wants = stop, make(chan struct{}), make(map[string]chan answer)
	go s.run(running)
	return nil
}

// run runs the relay, until Close or until the relay is refused.
func (s *Site) run(ctx context.Context) {
	defer close(s.ended)
	s.failure = s.relay.Run(ctx)
	s.relay.Core.Close()
}

// offer adds a service, and waits for what the public relay says of it. If that is no, or nothing, the service is taken back.
// mu is held in add, and not in back.
func (s *Site) offer(ctx context.Context, name string, add func() error, back func()) ([]string, error) {
	if _, err := s.Start(ctx); err != nil {
		return nil, err
	}
	got := make(chan answer, 1)
	s.mu.Lock()
	err := errClosed
	switch {
	case s.closed:
	case s.wants[name] != nil:
		err = fmt.Errorf("service %q is defined twice", name)
	default:
		if err = add(); err == nil {
			s.wants[name] = got
		}
	}
	s.mu.Unlock()
	if err != nil {
		return nil, err
	}
	addresses, err := s.await(ctx, got)
	if err != nil {
		back()
		err = fmt.Errorf("service %q: %w", name, err)
	}
	s.mu.Lock()
	delete(s.wants, name)
	s.mu.Unlock()
	return addresses, err
}

// await returns what the public relay says of a service.
func (s *Site) await(ctx context.Context, got <-chan answer) ([]string, error) {
	select {
	case a := <-got:
		if a.problem != "" {
			return nil, fmt.Errorf("the public relay does not take it: %s", a.problem)
		}
		return a.addresses, nil
	case <-s.ended:
		return nil, cmp.Or(s.failure, errClosed)
	case <-ctx.Done():
		err := fmt.Errorf("no answer of the public relay: %w", ctx.Err())
		for _, p := range s.relay.Status().Relays {
			if p.Problem != "" {
				err = fmt.Errorf("%w (%s: %s)", err, p.Address, p.Problem)
			}
		}
		return nil, err
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

// Close ends everything, and returns nil when nothing runs any more. There are no new visitors; requests and connections may
// finish, for ten seconds, then they are reset. Serve returns and Accept ends after that, with net.ErrClosed. What is joining is
// given up. It may be called more than once: each call waits.
func (s *Site) Close() error {
	s.mu.Lock()
	s.closed = true
	j := s.joining
	s.mu.Unlock()
	if j != nil {
		j.cancel()
		<-j.done
	}
	s.mu.Lock()
	started := s.relay != nil
	s.mu.Unlock()
	if started {
		s.stop()
		<-s.ended
	}
	return nil
}

// open returns which relay is dialled as whom, joining it first if need be.
func (s *Site) open(ctx context.Context) (at joined, key string, roots *x509.CertPool, err error) {
	if s.Relay != "" {
		at = joined{Site: s.Name}
		if at.Relay, err = relay.ParseAddress(s.Relay); err != nil {
			return at, "", nil, fmt.Errorf("site: Relay %w", err)
		}
		if err := relay.CheckName(s.Name); err != nil {
			return at, "", nil, fmt.Errorf("site: Name: %w", err)
		}
		if s.Key == "" {
			return at, "", nil, errors.New("site: want Key, the file with the site's key, beside Relay and Name")
		}
		roots, err = readRoots(s.CA)
		return at, s.Key, roots, err
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
