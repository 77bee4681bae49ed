package operate

import (
	"context"
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/memnet"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
	"culvert.dev/pkg/relay/public"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

const relayAddress = "relay.test:443"

// world is both relays and operators in one process, on networks in memory, in virtual time.
type world struct {
	t      *testing.T
	site   memnet.Network // between the relays
	desk   memnet.Network // between operators and the public relay
	refuse atomic.Bool    // new links of operators are refused

	cert   tls.Certificate
	roots  *x509.CertPool
	public *public.Relay
	core   *evloop.Core // of the public relay
	keys   []string     // of the site, for the public relay
	key    ed25519.PrivateKey
	trust  func(site, key string, listed []string) error

	mu        sync.Mutex
	tokens    map[string]auth.Identity
	followers map[auth.Identity][]func()
	cleanup   []func()
}

// inWorld runs a test in a bubble of virtual time.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t}
		w.site.Delay, w.site.Buffer = 10*time.Millisecond, 1<<20
		w.desk.Delay, w.desk.Buffer = 20*time.Millisecond, 1<<20
		w.setUp()
		w.startPublic()
		defer func() {
			for i := len(w.cleanup) - 1; i >= 0; i-- {
				w.cleanup[i]()
			}
			w.site.Cut()
			w.desk.Cut()
			w.core.Close()
		}()
		test(t, w)
	})
}

func (w *world) setUp() {
	w.tokens = map[string]auth.Identity{
		"alice":  {Operator: "alice", Role: auth.Operate, Token: "1"},
		"victor": {Operator: "victor", Role: auth.Viewer, Token: "2"},
	}
	w.followers = make(map[auth.Identity][]func())
	w.key = newKey(w.t)
	w.keys = []string{public25519(w.key)}
	w.trust = func(_, key string, _ []string) error {
		if key != public25519(w.key) {
			return &KeyError{Site: "office", Key: key, Known: []string{public25519(w.key)}}
		}
		return nil
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		DNSNames: []string{"relay.test"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		w.t.Fatal(err)
	}
	w.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	leaf, _ := x509.ParseCertificate(der)
	w.roots = x509.NewCertPool()
	w.roots.AddCert(leaf)
}

func newKey(t *testing.T) ed25519.PrivateKey {
	_, key, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	return key
}

func public25519(key ed25519.PrivateKey) string {
	return auth.FormatPublicKey(key.Public().(ed25519.PublicKey))
}

func (w *world) log() *slog.Logger {
	if !testing.Verbose() {
		return nil
	}
	return slog.New(slog.NewTextHandler(w.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
}

// startPublic starts a public relay, or another one in the place of the one before.
func (w *world) startPublic() {
	core, err := evloop.New(evloop.Config{Loops: 2, Portable: true})
	if err != nil {
		w.t.Fatal(err)
	}
	w.core = core
	w.public = &public.Relay{
		Core: core, Domain: "relay.test", TLS: &tls.Config{Certificates: []tls.Certificate{w.cert}, NextProtos: []string{"http/1.1"}},
		Grace: 5 * time.Second, Log: w.log(),
		Operator: func(token string, _ netip.Addr) (auth.Identity, bool) {
			w.mu.Lock()
			defer w.mu.Unlock()
			id, ok := w.tokens[token]
			return id, ok
		},
		FollowOperator: func(id auth.Identity, end func()) func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.followers[id] = append(w.followers[id], end)
			return func() {}
		},
	}
	w.reload()
	for _, n := range []*memnet.Network{&w.site, &w.desk} {
		ln, err := n.Listen(relayAddress)
		if err != nil {
			w.t.Fatal(err)
		}
		w.public.Serve(ln, true)
	}
}

func (w *world) reload() {
	w.public.Reload([]public.Site{{Name: "office", Keys: w.keys}, {Name: "lab", Keys: []string{public25519(newKey(w.t))}}})
}

// revoke takes a token away.
func (w *world) revoke(token string) { w.become(token, auth.Identity{}) }

// become gives a token another meaning, none for the zero Identity, and ends what was opened with it.
func (w *world) become(token string, next auth.Identity) {
	w.mu.Lock()
	id := w.tokens[token]
	w.tokens[token] = next
	if next == (auth.Identity{}) {
		delete(w.tokens, token)
	}
	ends := w.followers[id]
	delete(w.followers, id)
	w.mu.Unlock()
	for _, end := range ends {
		end()
	}
}

// private is a private relay.
type privateRelay struct {
	*private.Relay
	stop func()
}

// startPrivate starts a private relay with a service "echo", which sends back what it gets, and "hello", which says hello,
// hears the end, and says bye. change, if not nil, gets it before.
func (w *world) startPrivate(key ed25519.PrivateKey, change func(*private.Relay)) *privateRelay {
	w.t.Helper()
	core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
	if err != nil {
		w.t.Fatal(err)
	}
	ready := make(chan struct{})
	r := &private.Relay{
		Core: core, Relays: []string{relayAddress}, Site: "office", Key: key, RootCAs: w.roots,
		OnReady: func() { close(ready) }, Dial: w.site.Dial, Log: w.log(),
	}
	if change != nil {
		change(r)
	}
	w.serve(r, "echo", func(c net.Conn) {
		defer c.Close()
		if _, err := io.Copy(c, c); err != nil {
			c.(interface{ Abort() }).Abort()
		}
	})
	w.serve(r, "hello", func(c net.Conn) {
		defer c.Close()
		io.WriteString(c, "hello")
		io.Copy(io.Discard, c)
		io.WriteString(c, " bye")
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- r.Run(ctx) }()
	var once sync.Once
	p := &privateRelay{Relay: r, stop: func() {
		once.Do(func() {
			cancel()
			if err := <-ended; err != nil {
				w.t.Errorf("the private relay: %v", err)
			}
			core.Close()
		})
	}}
	w.cleanup = append(w.cleanup, p.stop)
	<-ready
	return p
}

// serve has a service end in the test.
func (w *world) serve(r *private.Relay, name string, f func(net.Conn)) {
	ln, err := r.Listen(private.Service{Service: relay.Service{Name: name}})
	if err != nil {
		w.t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go f(c)
		}
	}()
}

// operator is a client with that token.
func (w *world) operator(token string) *Client {
	c := &Client{
		Address: relayAddress, RootCAs: w.roots, Token: token, Software: "test", portable: true,
		Trust: func(site, key string, listed []string) error { return w.trust(site, key, listed) },
		DialRelay: func(ctx context.Context, network, address string) (net.Conn, error) {
			if w.refuse.Load() {
				return nil, syscall.ECONNREFUSED
			}
			return w.desk.Dial(ctx, network, address)
		},
		addresses: func() ([]net.Addr, error) { return nil, errors.New("not told") },
	}
	if testing.Verbose() {
		c.OnLink = func(site string, err error) {
			w.t.Logf("%v link to %s: %v", time.Now().Format(time.TimeOnly), site, err)
		}
	}
	w.cleanup = append(w.cleanup, func() { c.Close() })
	return c
}

// open opens a connection to a service of the office.
func (w *world) open(c *Client, service string) Conn {
	w.t.Helper()
	conn, err := c.Open(w.t.Context(), "office", service)
	if err != nil {
		w.t.Fatalf("open %s: %v", service, err)
	}
	return conn
}

// roundTrip wants back what it sends.
func (w *world) roundTrip(c net.Conn, text string) {
	w.t.Helper()
	if _, err := io.WriteString(c, text); err != nil {
		w.t.Fatalf("write %q: %v", text, err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(c, b); err != nil || string(b) != text {
		w.t.Fatalf("sent %q, got %q, %v", text, b, err)
	}
}

// wantCode wants an Error with that code.
func wantCode(t *testing.T, err error, code relay.OperateCode, text string) {
	t.Helper()
	e, ok := errors.AsType[*Error](err)
	if !ok || e.Code != code || !contains(e.Text, text) {
		t.Errorf("error %v (%T), want %s … %q", err, err, code, text)
	}
}
