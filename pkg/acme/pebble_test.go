package acme

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// tool is the path of a program of others.
func tool(t testing.TB, name string) string {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("the authority of the tests runs on Linux")
	}
	local, _ := filepath.Abs("../../.ci/bin/" + name)
	if _, err := os.Stat(local); err == nil {
		return local
	}
	found, err := exec.LookPath(name)
	if err != nil {
		t.Fatalf("%s is not here: `.ci/tools` installs it", name)
	}
	return found
}

var handedOut sync.Map

// freePort is a port of loopback that nobody uses, below those that the system takes for connections. A program that is
// just being started does not hold it either: between fork and exec it has the sockets of this process.
func freePort(t testing.TB) string {
	t.Helper()
	syscall.ForkLock.RLock()
	defer syscall.ForkLock.RUnlock()
	for range 1000 {
		port := strconv.Itoa(12000 + rand.IntN(8000)) // pkg/e2e has those above
		if _, taken := handedOut.LoadOrStore(port, true); taken {
			continue
		}
		ln, err := net.Listen("tcp", "127.0.0.1:"+port)
		if err != nil {
			continue
		}
		ln.Close()
		return port
	}
	t.Fatal("no free port")
	return ""
}

// pebble is an authority, Pebble, and what it finds names with: challtestsrv.
type pebble struct {
	t        testing.TB
	dir      string
	port     string // of the directory
	manage   string // URL
	dns      string // HOST:PORT that it asks
	dnsAdmin string // URL of challtestsrv
	roots    *x509.CertPool
	http     string // HOST:PORT that it asks for HTTP-01
	tls      string // and for TLS-ALPN-01
	cmd      *exec.Cmd
}

// options of startPebble.
type options struct {
	eab     map[string]string
	dns     string // a resolver instead of challtestsrv
	nonces  bool   // reject some
	seconds int    // a certificate of the profile "short" lives
}

// startPebble starts an authority, and web servers where it looks for proofs.
func startPebble(t testing.TB, o options) *pebble {
	t.Helper()
	p := &pebble{t: t, dir: t.TempDir(), port: freePort(t)}
	self := testCertificate(t, p.dir)
	p.roots = x509.NewCertPool()
	p.roots.AddCert(self)
	manage, httpPort, tlsPort := freePort(t), freePort(t), freePort(t)
	p.manage, p.http, p.tls = "https://127.0.0.1:"+manage, "127.0.0.1:"+httpPort, "127.0.0.1:"+tlsPort
	dnsPort, adminPort := freePort(t), freePort(t)
	p.dns, p.dnsAdmin = "127.0.0.1:"+dnsPort, "http://127.0.0.1:"+adminPort
	start(t, nil, tool(t, "pebble-challtestsrv"), "-http01", "", "-https01", "", "-doh", "", "-tlsalpn01", "",
		"-dnsserver", p.dns, "-management", "127.0.0.1:"+adminPort, "-defaultIPv6", "")
	for _, addr := range []string{p.dns, "127.0.0.1:" + adminPort} {
		waitFor(t, "challtestsrv to listen", func() bool {
			c, err := net.Dial("tcp", addr)
			if err != nil {
				return false
			}
			c.Close()
			return true
		})
	}
	if o.dns != "" {
		p.dns = o.dns
	}
	if o.seconds == 0 {
		o.seconds = 3600
	}
	number := func(s string) (n int) { fmt.Sscan(s, &n); return n }
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": "127.0.0.1:" + p.port, "managementListenAddress": "127.0.0.1:" + manage,
		"certificate": filepath.Join(p.dir, "cert.pem"), "privateKey": filepath.Join(p.dir, "key.pem"),
		"httpPort": number(httpPort), "tlsPort": number(tlsPort), "ocspResponderURL": "", "keyAlgorithm": "ecdsa",
		"externalAccountBindingRequired": o.eab != nil, "externalAccountMACKeys": o.eab,
		"domainBlocklist": []string{"blocked.example"}, "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{
			"default":    map[string]any{"description": "ninety days", "validityPeriod": 90 * 24 * 3600},
			"shortlived": map[string]any{"description": "six days", "validityPeriod": 6 * 24 * 3600},
			"short":      map[string]any{"description": "for tests", "validityPeriod": o.seconds},
		},
	}})
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(p.dir, "pebble.json"), config, 0o600); err != nil {
		t.Fatal(err)
	}
	p.start(o)
	return p
}

func (p *pebble) start(o options) {
	p.t.Helper()
	reject := "0"
	if o.nonces {
		reject = "20"
	}
	p.cmd = start(p.t, []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0", "PEBBLE_WFE_NONCEREJECT=" + reject},
		tool(p.t, "pebble"), "-config", filepath.Join(p.dir, "pebble.json"), "-dnsserver", p.dns)
	waitFor(p.t, "the authority to listen", func() bool {
		resp, err := p.client().Get(p.url())
		if err != nil {
			return false
		}
		resp.Body.Close()
		return true
	})
}

// in is p for a subtest.
func (p *pebble) in(t testing.TB) *pebble {
	q := *p
	q.t = t
	return &q
}

func (p *pebble) url() string { return "https://127.0.0.1:" + p.port + "/dir" }

func (p *pebble) client() *http.Client {
	return &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: p.roots}, DisableKeepAlives: true}}
}

// root is the authority's certificate, for visitors.
func (p *pebble) root() *x509.CertPool {
	p.t.Helper()
	resp, err := p.client().Get(p.manage + "/roots/0")
	if err != nil {
		p.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, _ := io.ReadAll(resp.Body)
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(b) {
		p.t.Fatalf("no root in %q", b)
	}
	return pool
}

// point has a name lead to an address; "" to where names lead by default.
func (p *pebble) point(name, address string) {
	p.t.Helper()
	path, body := "/add-a", fmt.Sprintf(`{"host":%q,"addresses":[%q]}`, name+".", address)
	if address == "" {
		path, body = "/clear-a", fmt.Sprintf(`{"host":%q}`, name+".")
	}
	resp, err := http.Post(p.dnsAdmin+path, "application/json", strings.NewReader(body))
	if err != nil {
		p.t.Fatal(err)
	}
	resp.Body.Close()
	http.DefaultClient.CloseIdleConnections()
}

// start starts a program, which ends with the test.
func start(t testing.TB, env []string, program string, args ...string) *exec.Cmd {
	t.Helper()
	cmd := exec.Command(program, args...)
	cmd.Env = append(os.Environ(), env...)
	out := &output{}
	cmd.Stdout, cmd.Stderr = out, out
	cmd.WaitDelay = time.Second
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
		if t.Failed() && testing.Verbose() {
			t.Logf("%s said:\n%s", filepath.Base(program), out.String())
		}
	})
	return cmd
}

// output is what a program says; the last of it.
type output struct {
	mu sync.Mutex
	b  []byte
}

func (o *output) Write(b []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.b = append(o.b, b...); len(o.b) > 64<<10 {
		o.b = o.b[len(o.b)-32<<10:]
	}
	return len(b), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return string(o.b)
}

// waitFor looks until something is true: for longer than a failed attempt is followed by another one.
func waitFor(t testing.TB, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(2 * time.Minute); ; {
		if ok() {
			return
		}
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
		time.Sleep(20 * time.Millisecond)
	}
}

// authority is a proxy in front of a pebble, which can refuse.
type authority struct {
	*httptest.Server
	mu     sync.Mutex
	refuse func(w http.ResponseWriter, r *http.Request) bool
	paths  []string
}

// inFront starts one. Its directory is at url.
func (p *pebble) inFront() *authority {
	target, _ := url.Parse("https://127.0.0.1:" + p.port)
	a := &authority{}
	client := p.client()
	a.Server = httptest.NewTLSServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		a.mu.Lock()
		a.paths = append(a.paths, r.URL.Path)
		refuse := a.refuse
		a.mu.Unlock()
		if refuse != nil && refuse(w, r) {
			return
		}
		body, _ := io.ReadAll(r.Body)
		out, _ := http.NewRequestWithContext(r.Context(), r.Method, target.String()+r.URL.RequestURI(), bytes.NewReader(body))
		out.Host = r.Host // that it makes its URLs with
		out.Header = r.Header.Clone()
		resp, err := client.Do(out)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadGateway)
			return
		}
		defer resp.Body.Close()
		for k, v := range resp.Header {
			w.Header()[k] = v
		}
		w.WriteHeader(resp.StatusCode)
		io.Copy(w, resp.Body)
	}))
	p.t.Cleanup(a.Close)
	return a
}

func (a *authority) url() string { return a.URL + "/dir" }

func (a *authority) roots() *x509.CertPool {
	pool := x509.NewCertPool()
	pool.AddCert(a.Certificate())
	return pool
}

// asked counts the requests for paths that have part in them.
func (a *authority) asked(part string) (n int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.paths {
		if strings.Contains(p, part) {
			n++
		}
	}
	return n
}

func (a *authority) ordered() int { return a.asked("/order-plz") }

func (a *authority) refusing(f func(w http.ResponseWriter, r *http.Request) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.refuse = f
}

// testLog is a Log that keeps what is said.
type testLog struct {
	output
	*slog.Logger
}

func newLog(t testing.TB) *testLog {
	l := &testLog{}
	level := slog.LevelInfo
	t.Cleanup(func() {
		if t.Failed() {
			t.Logf("the log:\n%s", l)
		}
	})
	if os.Getenv("ACME_DEBUG") != "" {
		level = slog.LevelDebug
	}
	l.Logger = slog.New(slog.NewTextHandler(&l.output, &slog.HandlerOptions{Level: level}))
	return l
}

// site is a Manager and what it says.
type site struct {
	*Manager
	log *testLog
}

// site starts a Manager, which ends with the test.
func (p *pebble) site(change func(*Config)) *site {
	p.t.Helper()
	t := p.t
	s := &site{log: newLog(t)}
	cfg := Config{
		Directories: []Directory{{URL: p.url(), Email: "ops@example.com", Roots: p.roots, Profile: "default"}},
		Log:         s.log.Logger,
	}
	if change != nil {
		change(&cfg)
	}
	if cfg.Store == nil {
		store, err := OpenFiles(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		cfg.Store = store
	}
	m, err := New(cfg)
	if err != nil {
		t.Fatal(err)
	}
	s.Manager = m
	t.Cleanup(m.Close)
	return s
}

// prove serves proofs by both kinds, and visitors, of the sites in turn. What it returns replaces them.
func (p *pebble) prove(sites ...*site) (switched func(sites ...*site)) {
	p.t.Helper()
	next := 0
	var mu sync.Mutex
	turn := func() *site {
		mu.Lock()
		defer mu.Unlock()
		next++
		return sites[next%len(sites)]
	}
	plain, err := net.Listen("tcp", p.http)
	if err != nil {
		p.t.Fatal(err)
	}
	web := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		host, _, err := net.SplitHostPort(r.Host)
		if err != nil {
			host = r.Host
		}
		if answer, ok := turn().HTTPChallenge(host, r.URL.Path); ok {
			io.WriteString(w, answer+"\n")
			return
		}
		http.NotFound(w, r)
	}), ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0)}
	secure, err := net.Listen("tcp", p.tls)
	if err != nil {
		p.t.Fatal(err)
	}
	hosts := &http.Server{
		Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello") }),
		TLSConfig: &tls.Config{GetConfigForClient: func(h *tls.ClientHelloInfo) (*tls.Config, error) {
			s := turn()
			c := &tls.Config{GetCertificate: s.GetCertificate, NextProtos: []string{"http/1.1"}}
			if slices.Equal(h.SupportedProtos, []string{ALPN}) && s.Challenging(h.ServerName) {
				c.NextProtos = []string{ALPN}
			}
			return c, nil
		}},
		ErrorLog: slog.NewLogLogger(slog.DiscardHandler, 0),
	}
	var done sync.WaitGroup
	done.Go(func() { web.Serve(plain) })
	done.Go(func() { hosts.ServeTLS(secure, "", "") })
	p.t.Cleanup(func() {
		web.Close()
		hosts.Close()
		done.Wait()
	})
	return func(next ...*site) {
		mu.Lock()
		defer mu.Unlock()
		sites = next
	}
}

// visit does a handshake as a visitor of name, and returns the certificate.
func (p *pebble) visit(name string) (*x509.Certificate, error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	d := tls.Dialer{Config: &tls.Config{ServerName: name, RootCAs: p.root()}}
	c, err := d.DialContext(ctx, "tcp", p.tls)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	return c.(*tls.Conn).ConnectionState().PeerCertificates[0], nil
}

// firstVisit is visit for a name whose certificate is on its way, which the visitor waits for.
func (p *pebble) firstVisit(s *site, name string) (*x509.Certificate, error) {
	p.t.Helper()
	began := time.Now()
	leaf, err := p.visit(name)
	if err != nil && time.Since(began) > waitTime {
		s.certified(p.t, name) // which takes longer on this machine
		leaf, err = p.visit(name)
	}
	return leaf, err
}

// status is that of one name.
func (s *site) status(name string) CertificateStatus {
	for _, c := range s.Status() {
		if c.Name == name {
			return c
		}
	}
	return CertificateStatus{}
}

// certified waits for a certificate of a name.
func (s *site) certified(t testing.TB, name string) CertificateStatus {
	t.Helper()
	waitFor(t, "a certificate for "+name, func() bool { return !s.status(name).Expires.IsZero() })
	return s.status(name)
}

// failed waits for a failure.
func (s *site) failed(t testing.TB, name string) CertificateStatus {
	t.Helper()
	waitFor(t, "a failure for "+name, func() bool { return s.status(name).Err != "" && !s.status(name).Busy })
	return s.status(name)
}
