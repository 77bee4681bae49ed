package site

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
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

// world is a public relay that sites may join and visitors come to, on networks in memory, in virtual time.
type world struct {
	t        *testing.T
	links    memnet.Network // between sites and the relay
	visitors memnet.Network // before the relay
	dir      string
	cert     tls.Certificate // of the relay, and of every name that is published
	roots    *x509.CertPool
	log      lockedBuffer // of the sites

	public *public.Relay
	core   *evloop.Core // of public; nil while it is away
	sites  []*Site

	mu      sync.Mutex
	secrets map[string]string // names of sites, by secret
	known   public.Site       // the one that has joined
}

type lockedBuffer struct {
	mu sync.Mutex
	b  strings.Builder
}

func (l *lockedBuffer) Write(b []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.Write(b)
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}

// inWorld runs a test in a bubble of virtual time. The sites are closed at its end, if the test has not done so.
func inWorld(t *testing.T, test func(t *testing.T, w *world)) {
	dir := t.TempDir()
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, dir: dir, secrets: make(map[string]string)}
		w.links.Delay, w.visitors.Delay = 10*time.Millisecond, 10*time.Millisecond
		w.certify()
		w.startPublic()
		defer func() {
			for _, s := range w.sites {
				s.Close()
			}
			w.stopPublic()
		}()
		test(t, w)
	})
}

func (w *world) certify() {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		w.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotAfter: time.Date(2100, 1, 1, 0, 0, 0, 0, time.UTC),
		DNSNames: []string{"relay.test", "*.example.com"}, IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		w.t.Fatal(err)
	}
	w.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	w.roots = x509.NewCertPool()
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	w.roots.AppendCertsFromPEM(text)
	if err := os.WriteFile(w.ca(), text, 0o600); err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) ca() string { return filepath.Join(w.dir, "roots.pem") }

// startPublic starts a public relay, or another one in the place of the one before.
func (w *world) startPublic() {
	core, err := evloop.New(evloop.Config{Loops: 2, Portable: true})
	if err != nil {
		w.t.Fatal(err)
	}
	w.core = core
	w.public = &public.Relay{
		Core: core, Domain: "relay.test", TLS: &tls.Config{Certificates: []tls.Certificate{w.cert}, NextProtos: []string{"http/1.1"}},
		Join: w.join,
	}
	w.public.Reload([]public.Site{w.known})
	for _, n := range []*memnet.Network{&w.links, &w.visitors} {
		ln, err := n.Listen(relayAddress)
		if err != nil {
			w.t.Fatal(err)
		}
		w.public.Serve(ln, true)
	}
}

// stopPublic ends the public relay without a word.
func (w *world) stopPublic() {
	if w.core == nil {
		return
	}
	w.links.Cut()
	w.visitors.Cut()
	w.core.Close()
	w.core = nil
}

var published = []string{"https://*.example.com", "tls://*.example.com"}

// join redeems a token.
func (w *world) join(r relay.JoinRequest) relay.JoinResponse {
	w.mu.Lock()
	name, ok := w.secrets[string(r.Secret)]
	delete(w.secrets, string(r.Secret))
	w.mu.Unlock()
	if !ok {
		return relay.JoinResponse{Error: &relay.Refusal{Code: relay.RefuseBadToken, Message: "the token is not known"}}
	}
	w.admit(name, r.Key)
	return relay.JoinResponse{Site: name, Publish: published}
}

// admit has the relay know a site by those keys, and no other.
func (w *world) admit(name string, keys ...string) {
	var patterns []relay.Pattern
	for _, p := range published {
		pattern, err := relay.ParsePattern(p)
		if err != nil {
			w.t.Error(err)
		}
		patterns = append(patterns, pattern)
	}
	w.mu.Lock()
	w.known = public.Site{Name: name, Keys: keys, Publish: patterns}
	known := w.known
	w.mu.Unlock()
	w.public.Reload([]public.Site{known})
}

// token makes a join token for a site.
func (w *world) token(site string) string {
	secret := make([]byte, 32)
	rand.Read(secret)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.secrets[string(secret)] = site
	return auth.Token{Secret: secret, Relay: relayAddress, Site: site}.String()
}

// site is one that has not been started, and has a token.
func (w *world) site() *Site {
	s := &Site{
		Dir: filepath.Join(w.dir, "office"), Token: w.token("office"), CA: w.ca(), Dial: w.links.Dial, portable: true,
		Log: slog.New(slog.NewTextHandler(io.MultiWriter(&w.log, w.t.Output()), nil)),
	}
	w.sites = append(w.sites, s)
	return s
}

// named is a service, published at https://NAME.example.com or with another scheme.
func named(name, scheme string) private.Service {
	return private.Service{Service: relay.Service{Name: name, Publish: relay.Publish{Scheme: scheme, Host: name + ".example.com", Path: map[string]string{"https": "/"}[scheme]}}}
}

// listen publishes a service that must be taken.
func (w *world) listen(s *Site, name, scheme string) *Listener {
	w.t.Helper()
	l, err := s.Listen(w.t.Context(), named(name, scheme))
	if err != nil {
		w.t.Fatal(err)
	}
	return l
}

// dial is how a visitor gets to the public relay.
func (w *world) dial(ctx context.Context, network, _ string) (net.Conn, error) {
	return w.visitors.Dial(ctx, network, relayAddress)
}

// get is a visitor's request on a connection of its own, its status and its body.
func (w *world) get(url string) (status int, body string, err error) {
	transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: w.roots}, DialContext: w.dial}
	defer transport.CloseIdleConnections()
	resp, err := (&http.Client{Transport: transport}).Get(url)
	if err != nil {
		return 0, "", err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return resp.StatusCode, string(b), err
}

// wantGet wants that answer.
func (w *world) wantGet(url string, status int, body string) {
	w.t.Helper()
	if got, b, err := w.get(url); err != nil || got != status || !strings.Contains(b, body) {
		w.t.Errorf("GET %s: %d %q, %v, want %d %q", url, got, b, err, status, body)
	}
}

// visit opens a connection to a service that is published by tls://. Both sides see the bytes as they are: what a TLS client begins
// with is sent, and the site's side, which take reads up to there, says nothing of TLS.
func (w *world) visit(name string) net.Conn {
	w.t.Helper()
	c, err := w.dial(w.t.Context(), "tcp", "")
	if err != nil {
		w.t.Fatal(err)
	}
	if _, err := c.Write(hello(name + ".example.com")); err != nil {
		w.t.Fatal(err)
	}
	return c
}

// hello is what a TLS client begins with.
func hello(host string) []byte {
	here, there := net.Pipe()
	go func() {
		tls.Client(there, &tls.Config{ServerName: host}).Handshake()
		there.Close()
	}()
	defer here.Close()
	head := make([]byte, 5)
	io.ReadFull(here, head)
	body := make([]byte, int(head[3])<<8|int(head[4]))
	io.ReadFull(here, body)
	return append(head, body...)
}

// take accepts a visitor of visit.
func take(t *testing.T, l net.Listener) net.Conn {
	t.Helper()
	c, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	head := make([]byte, 5)
	if _, err := io.ReadFull(c, head); err != nil {
		t.Fatal(err)
	}
	if _, err := io.CopyN(io.Discard, c, int64(head[3])<<8|int64(head[4])); err != nil {
		t.Fatal(err)
	}
	return c
}

// meet is a visitor and the site's side of him.
func (w *world) meet(l net.Listener, name string) (visitor, c net.Conn) {
	w.t.Helper()
	visitor = w.visit(name)
	return visitor, take(w.t, l)
}

// send wants what is written to one side to come out at the other.
func send(t *testing.T, from, to net.Conn, text string) {
	t.Helper()
	if _, err := io.WriteString(from, text); err != nil {
		t.Fatal(err)
	}
	b := make([]byte, len(text))
	if _, err := io.ReadFull(to, b); err != nil || string(b) != text {
		t.Fatalf("sent %q, got %q, %v", text, b, err)
	}
}

// wantText wants an error that says all of this.
func wantText(t *testing.T, err error, parts ...string) {
	t.Helper()
	if err == nil || slices.ContainsFunc(parts, func(s string) bool { return !strings.Contains(err.Error(), s) }) {
		t.Errorf("error %v, want %q", err, parts)
	}
}

// say answers every request with the visitor's address.
var say = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello "+r.RemoteAddr) })

var errNoWay = &net.OpError{Op: "dial", Net: "tcp", Err: syscall.ENETUNREACH}
