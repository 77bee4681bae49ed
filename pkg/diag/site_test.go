package diag

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/miekg/dns"

	"culvert.dev/pkg/onvif"
	"culvert.dev/pkg/rest"
)

// rulesOf parses rules.
func rulesOf(t *testing.T, list ...string) []Rule {
	t.Helper()
	rules := []Rule{}
	for _, s := range list {
		r, err := ParseRule(s)
		if err != nil {
			t.Fatal(err)
		}
		rules = append(rules, r)
	}
	return rules
}

// asked is a site whose methods are called in this process.
func asked(t *testing.T, s *Site) rest.Caller {
	srv := &rest.Server{Prefix: "/"}
	srv.Set(s.Service())
	t.Cleanup(func() { srv.Close() })
	return srv.Local(nil)
}

// onLoopback is a site where loopback may be asked.
func onLoopback(t *testing.T) *Site {
	rules := rulesOf(t, "127.0.0.0/8", "::1", "localhost")
	return &Site{Name: "office", Allow: func() []Rule { return rules }}
}

// codeOf is the code of a refusal, or 0.
func codeOf(err error) int {
	if e, ok := errors.AsType[*rest.Error](err); ok {
		return e.Code
	}
	return 0
}

func TestRules(t *testing.T) {
	var targets []Target
	for _, c := range []struct {
		rules   string
		name    string
		address string
		port    uint16
		want    bool
	}{
		{"10.0.0.0/8", "10.1.2.3", "10.1.2.3", 1, true},
		{"10.0.0.0/8", "11.1.2.3", "11.1.2.3", 1, false},
		{"10.0.0.0/8", "db.lan", "10.1.2.3", 1, true},
		{"10.0.0.0/8", "::ffff:10.1.2.3", "::ffff:10.1.2.3", 1, true},
		{"10.0.0.5:443", "10.0.0.5", "10.0.0.5", 443, true},
		{"10.0.0.5:443", "10.0.0.5", "10.0.0.5", 80, false},
		{"[fd00::5]:443", "fd00::5", "fd00::5", 443, true},
		{"fd00::/8", "fd00::5", "fd00::5", 443, true},
		{"db.lan:5432", "DB.lan.", "192.0.2.1", 5432, true},
		{"db.lan:5432", "db.lan", "192.0.2.1", 22, false},
		{"*.lan", "db.lan", "192.0.2.1", 22, true},
		{"*.lan", "a.db.lan", "192.0.2.1", 22, true},
		{"*.lan", "lan", "192.0.2.1", 22, false},
		{"*.lan", "badlan", "192.0.2.1", 22, false},
		{"*", "example.com", "192.0.2.1", 22, true},
		{"*", "localhost", "127.0.0.1", 22, true},
		{"networks", "127.0.0.1", "127.0.0.1", 22, false},
		{"services", "127.0.0.1", "127.0.0.1", 8080, true},
		{"services", "127.0.0.1", "127.0.0.1", 8081, false},
		{"services", "app.lan", "192.0.2.9", 443, true},
		{"", "10.0.0.1", "10.0.0.1", 1, false},

		// What has keys of clouds, and what is no machine, is allowed by its own address alone.
		{"*", "169.254.169.254", "169.254.169.254", 80, false},
		{"0.0.0.0/0", "169.254.169.254", "169.254.169.254", 80, false},
		{"169.254.0.0/16", "169.254.169.254", "169.254.169.254", 80, false},
		{"*.internal", "metadata.google.internal", "169.254.169.254", 80, false},
		{"metadata.google.internal", "metadata.google.internal", "169.254.169.254", 80, false},
		{"*", "x", "::ffff:169.254.169.254", 80, false},
		{"*", "x", "64:ff9b::a9fe:a9fe", 80, false},
		{"*", "x", "fd00:ec2::254", 80, false},
		{"*", "x", "fd20:ce::254", 80, false},
		{"*", "x", "192.0.0.192", 80, false},
		{"*", "x", "64:ff9b:1::a9fe:a9fe", 80, false},
		{"*", "x", "::169.254.169.254", 80, false},
		{"fd00::/8", "x", "fd00:ec2::254", 80, false},
		{"*", "x", "100.100.100.200", 80, false},
		{"169.254.169.254", "169.254.169.254", "169.254.169.254", 80, true},
		{"169.254.169.254:80", "metadata", "169.254.169.254", 80, true},
		{"169.254.169.254:80", "metadata", "169.254.169.254", 81, false},
		{"169.254.169.254/32", "metadata", "169.254.169.254", 81, true},
		{"*", "x", "0.0.0.0", 80, false},
		{"*", "x", "0.1.2.3", 80, false},
		{"*", "x", "::", 80, false},
		{"*", "x", "255.255.255.255", 80, false},
		{"*", "x", "224.0.0.1", 80, false},
		{"*", "x", "fe80::1%eth0", 80, false},
	} {
		targets = []Target{{Address: "127.0.0.1:8080"}, {Address: "app.lan:443"}, {Address: "/run/app.sock"}}
		rules := rulesOf(t, strings.Fields(c.rules)...)
		s := &Site{Allow: func() []Rule { return rules }, Targets: func() []Target { return targets }}
		if got := s.allows(c.name, netip.MustParseAddr(c.address), c.port); got != c.want {
			t.Errorf("%q and %s (%s) port %d: %v", c.rules, c.name, c.address, c.port, got)
		}
	}
	for _, bad := range []string{"", "10.0.0.1/8", "10.0.0.0/33", "a b", "db.lan:0", "db.lan:x", "*.", "*x.lan", "http://a", "a..b", "-/8", "\x00"} {
		if r, err := ParseRule(bad); err == nil {
			t.Errorf("%q is %+v", bad, r)
		}
	}
	// The default has the networks of this machine, and not its loopback.
	s := &Site{}
	if s.allows("localhost", netip.MustParseAddr("127.0.0.1"), 22) {
		t.Error("loopback is allowed by default")
	}
	for _, p := range own() {
		if a := p.Addr().Next(); p.Bits() < 31 && !isSpecial(a) && !s.allows(a.String(), a, 22) {
			t.Errorf("%s of %s is not allowed by default", a, p)
		}
	}
}

func FuzzParseRule(f *testing.F) {
	for _, s := range []string{"networks", "10.0.0.0/8", "10.0.0.5:443", "[fd00::5]:443", "db.lan:5432", "*.lan", "*"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		r, err := ParseRule(text)
		if err != nil {
			return
		}
		s := &Site{Allow: func() []Rule { return []Rule{r} }}
		if s.allows("metadata", netip.MustParseAddr("169.254.169.254"), 80) && !strings.Contains(strings.ToLower(text), "a9fe") && !strings.Contains(text, "169.254.169.254") {
			t.Errorf("%q allows the metadata service", text)
		}
	})
}

// gone is where nobody listens: a port that was free a moment ago may be another test's by now.
const gone = "127.0.0.1:1"

// TestConnect reaches what listens, and says why it does not reach the rest.
func TestConnect(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c := asked(t, onLoopback(t))
	for _, test := range []struct {
		target, class string
		code          int
	}{
		{ln.Addr().String(), "", 0},
		{gone, classRefused, 0},
		{"192.0.2.1:80", "", 403},
		{"169.254.169.254:80", "", 403},
		{"no.such.name.invalid:80", classNoName, 0},
		{"127.0.0.1", "", 400},
		{"127.0.0.1:0", "", 400},
		{"127.0.0.1:99999", "", 400},
		{"a b:80", "", 400},
		{"", "", 400},
	} {
		got, err := rest.Invoke[Connection](t.Context(), c, "site/Connect", Connect{Target: test.target, Timeout: 20})
		if codeOf(err) != test.code || test.code == 0 && (err != nil || got.OK != (test.class == "") || got.Class != test.class && got.Class != classDNS) {
			t.Errorf("%q: %+v, %v", test.target, got, err)
		}
	}
}

// testCA is a private authority, which makes certificates.
type testCA struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newTestCA(t testing.TB) *testCA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "Test Authority"}, NotBefore: time.Now().Add(-time.Hour * 24 * 365), NotAfter: time.Now().Add(24 * 365 * time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return &testCA{cert, key}
}

func (ca *testCA) pool() *x509.CertPool {
	p := x509.NewCertPool()
	p.AddCert(ca.cert)
	return p
}

// issue makes a certificate for 127.0.0.1 and names that ends in so many days.
func (ca *testCA) issue(t testing.TB, left float64, names ...string) tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "leaf\x1b[31m"}, NotBefore: time.Now().Add(-90 * 24 * time.Hour), NotAfter: time.Now().Add(time.Duration(left * float64(24*time.Hour))),
		DNSNames: names, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	if len(names) == 0 {
		template.IPAddresses = []net.IP{net.IPv4(127, 0, 0, 1)}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// serveTLS answers handshakes on loopback.
func serveTLS(t testing.TB, cfg *tls.Config) string {
	ln, err := tls.Listen("tcp", "127.0.0.1:0", cfg)
	if err != nil {
		t.Fatal(err)
	}
	var all sync.WaitGroup
	all.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			all.Go(func() {
				defer c.Close()
				c.SetDeadline(time.Now().Add(time.Minute))
				c.(*tls.Conn).Handshake()
				io.Copy(io.Discard, c)
			})
		}
	})
	t.Cleanup(func() { ln.Close(); all.Wait() })
	return ln.Addr().String()
}

func TestCertificate(t *testing.T) {
	ca := newTestCA(t)
	good := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, 30)}, NextProtos: []string{"h2"}})
	old := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, -2)}})
	other := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, 30, "a.lan", "b.lan")}})
	old12 := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, 30)}, MaxVersion: tls.VersionTLS12})
	wants := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, 30)}, ClientAuth: tls.RequireAnyClientCert, MaxVersion: tls.VersionTLS12})
	plain := httptest.NewServer(http.NotFoundHandler())
	defer plain.Close()

	s := onLoopback(t)
	s.Targets = func() []Target { return []Target{{Service: "app", Address: good, Roots: ca.pool()}} }
	s.Roots = ca.pool()
	c := asked(t, s)
	inspect := func(in Inspect) Handshake {
		t.Helper()
		in.Timeout = 20
		h, err := rest.Invoke[Handshake](t.Context(), c, "site/Certificate", in)
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	h := inspect(Inspect{Target: good, ALPN: "h2,http/1.1"})
	if !h.OK || !h.Verified || h.Version != "TLS 1.3" || h.Protocol != "h2" || len(h.Chain) != 1 || h.Left < 29.8 || h.Left > 30.1 || h.Chain[0].Key != "ECDSA 256" ||
		h.Chain[0].Names[0] != "127.0.0.1" || strings.Contains(h.Chain[0].Subject, "\x1b") || h.Chain[0].Issuer != "CN=Test Authority" {
		t.Errorf("%+v", h)
	}
	if h = inspect(Inspect{Target: old}); h.Verified || !strings.Contains(h.Reason, "expired on") || h.Left > -1.9 || h.Class != classCertificate {
		t.Errorf("%+v", h)
	}
	if h = inspect(Inspect{Target: other}); h.Verified || h.Reason != "it is for a.lan, b.lan, not for 127.0.0.1" {
		t.Errorf("%+v", h)
	}
	if h = inspect(Inspect{Target: other, Name: "b.lan"}); !h.Verified {
		t.Errorf("%+v", h)
	}
	if h = inspect(Inspect{Target: old12}); !h.Verified || h.Version != "TLS 1.2" || !strings.HasPrefix(h.Cipher, "TLS_ECDHE") {
		t.Errorf("%+v", h)
	}
	// Its certificate is seen although it does not let us in.
	if h = inspect(Inspect{Target: wants}); h.OK || !h.Verified || len(h.Chain) != 1 || h.Class != classTLS {
		t.Errorf("%+v", h)
	}
	if h = inspect(Inspect{Target: plain.Listener.Addr().String()}); h.OK || h.Class != classTLS {
		t.Errorf("%+v", h)
	}
	s.Roots = x509.NewCertPool()
	if h = inspect(Inspect{Target: old12}); h.Verified || !strings.Contains(h.Reason, `its authority "Test Authority" is not known here`) {
		t.Errorf("%+v", h)
	}
	if h = inspect(Inspect{Target: good}); !h.Verified {
		t.Errorf("the ca of a service is not used: %+v", h)
	}
}

func TestProbe(t *testing.T) {
	mux := http.NewServeMux()
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		http.SetCookie(w, &http.Cookie{Name: "session", Value: "secret"})
		w.Header().Set("X-Text", "a\tb")
		io.WriteString(w, "hello "+r.Host)
	})
	mux.HandleFunc("/big", func(w http.ResponseWriter, r *http.Request) {
		w.Write(make([]byte, maxProbed+1))
	})
	mux.HandleFunc("/cut", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100")
		io.WriteString(w, "x")
	})
	mux.HandleFunc("/loop", func(w http.ResponseWriter, r *http.Request) { http.Redirect(w, r, "/loop", http.StatusFound) })
	mux.HandleFunc("/meta", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "http://169.254.169.254/latest/", http.StatusFound)
	})
	mux.HandleFunc("/file", func(w http.ResponseWriter, r *http.Request) {
		http.Redirect(w, r, "file:///etc/passwd", http.StatusFound)
	})
	mux.HandleFunc("/slow", func(w http.ResponseWriter, r *http.Request) { <-r.Context().Done() })
	srv := httptest.NewServer(mux)
	defer srv.Close()
	secure := httptest.NewTLSServer(mux)
	defer secure.Close()
	c := asked(t, onLoopback(t))
	probe := func(in Probe) (Probed, error) {
		in.Timeout = 20
		if strings.HasSuffix(in.URL, "/slow") {
			in.Timeout = 0.2
		}
		in.Method = either(in.Method, "GET")
		return rest.Invoke[Probed](t.Context(), c, "site/Probe", in)
	}
	p, err := probe(Probe{URL: srv.URL + "/", Host: "app.lan"})
	if err != nil || !p.OK || p.Status != 200 || p.Size != int64(len("hello app.lan")) || p.Total < p.FirstByte || p.FirstByte < p.Connect {
		t.Errorf("%+v, %v", p, err)
	}
	if text := fmt.Sprint(p.Header); strings.Contains(text, "secret") || !strings.Contains(text, "session=…") || strings.Contains(text, "\t") {
		t.Error(text)
	}
	if p, err = probe(Probe{URL: srv.URL + "/big"}); err != nil || !p.Truncated || p.Size != maxProbed {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = probe(Probe{URL: srv.URL + "/big", Method: "HEAD"}); err != nil || p.Size != 0 || !p.OK {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = probe(Probe{URL: srv.URL + "/cut"}); err != nil || p.Status != 200 || !strings.Contains(p.Problem, "breaks off after 1 bytes") {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = probe(Probe{URL: srv.URL + "/loop"}); err != nil || p.Status != 302 || p.Redirected != nil {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = probe(Probe{URL: srv.URL + "/loop", Redirects: 3}); err != nil || p.Status != 302 || len(p.Redirected) != 3 {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = probe(Probe{URL: srv.URL + "/meta", Redirects: 3}); err != nil || p.OK || p.Class != classForbidden {
		t.Errorf("a redirect leads to the metadata service: %+v, %v", p, err)
	}
	if p, err = probe(Probe{URL: srv.URL + "/file", Redirects: 3}); err != nil || p.Problem == "" {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = probe(Probe{URL: srv.URL + "/slow"}); err != nil || p.OK || p.Class != classTimeout {
		t.Errorf("%+v, %v", p, err)
	}
	if p, err = probe(Probe{URL: secure.URL}); err != nil || p.OK || p.Class != classCertificate {
		t.Errorf("a certificate that is not good: %+v, %v", p, err)
	}
	for _, bad := range []string{"ftp://127.0.0.1/", "http:///x", "http://user:secret@127.0.0.1/", "http://127.0.0.1:0/", "http://127.0.0.1:x/", "/relative/path", "http://169.254.169.254/latest/meta-data/", "http://[::ffff:a9fe:a9fe]/", "http://192.0.2.1/"} {
		if p, err := probe(Probe{URL: bad}); codeOf(err) != 400 && codeOf(err) != 403 || strings.Contains(err.Error(), "secret") {
			t.Errorf("%s: %+v, %v", bad, p, err)
		}
	}
	if _, err := probe(Probe{URL: srv.URL, Host: "a\r\nX: y"}); codeOf(err) != 400 {
		t.Error(err)
	}
	if _, err := rest.Invoke[Probed](t.Context(), c, "site/Probe", Probe{URL: srv.URL, Redirects: 99, Timeout: 5}); codeOf(err) != 400 {
		t.Errorf("99 redirects: %v", err)
	}
}

// fakeDNS is a name server on loopback.
func fakeDNS(t *testing.T) string {
	mux := dns.NewServeMux()
	add := func(zone string, records ...string) {
		mux.HandleFunc(zone, func(w dns.ResponseWriter, r *dns.Msg) {
			m := new(dns.Msg).SetReply(r)
			for _, text := range records {
				rr, err := dns.NewRR(text)
				if err != nil {
					t.Error(err)
					continue
				}
				if rr.Header().Rrtype == r.Question[0].Qtype {
					m.Answer = append(m.Answer, rr)
				}
			}
			if _, udp := w.RemoteAddr().(*net.UDPAddr); udp && zone == "big.lan." {
				m.Truncated, m.Answer = true, nil
			}
			w.WriteMsg(m)
		})
	}
	add("app.lan.", "app.lan. 60 A 10.0.0.5", "app.lan. 60 AAAA fd00::5", "app.lan. 60 MX 10 mail.lan.", `app.lan. 60 TXT "a" "b\027[31m"`, "app.lan. 60 NS ns.lan.", "www.lan. 60 CNAME app.lan.")
	add("_sip._tcp.lan.", "_sip._tcp.lan. 60 SRV 1 2 5060 sip.lan.")
	add("5.0.0.10.in-addr.arpa.", "5.0.0.10.in-addr.arpa. 60 PTR app.lan.")
	add("meta.lan.", "meta.lan. 60 A 169.254.169.254")
	many := make([]string, 150)
	for i := range many {
		many[i] = fmt.Sprintf("big.lan. 60 A 10.0.1.%d", i)
	}
	add("big.lan.", many...)
	mux.HandleFunc("broken.lan.", func(w dns.ResponseWriter, r *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeServerFailure)) })
	mux.HandleFunc("silent.lan.", func(dns.ResponseWriter, *dns.Msg) {})
	mux.HandleFunc(".", func(w dns.ResponseWriter, r *dns.Msg) { w.WriteMsg(new(dns.Msg).SetRcode(r, dns.RcodeNameError)) })
	var pc net.PacketConn
	var ln net.Listener
	for try := 0; ; try++ {
		var err error
		if ln, err = net.Listen("tcp", "127.0.0.1:0"); err != nil {
			t.Fatal(err)
		}
		if pc, err = net.ListenPacket("udp", ln.Addr().String()); err == nil {
			break
		}
		ln.Close()
		if try == 20 {
			t.Fatal(err)
		}
	}
	var all sync.WaitGroup
	t.Cleanup(all.Wait) // after they have been shut down
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: mux}, {Listener: ln, Handler: mux}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		all.Go(func() { s.ActivateAndServe() })
		<-started
		t.Cleanup(func() { s.Shutdown() })
	}
	return pc.LocalAddr().String()
}

func TestLookup(t *testing.T) {
	server := fakeDNS(t)
	s := onLoopback(t)
	s.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, server)
	}}
	c := asked(t, s)
	for _, test := range []struct {
		in   Lookup
		want string // status, or class of a failure, and records
	}{
		{Lookup{Name: "app.lan"}, " A 10.0.0.5 AAAA fd00::5"},
		{Lookup{Name: "app.lan", Type: "A"}, " A 10.0.0.5"},
		{Lookup{Name: "app.lan", Type: "MX"}, " MX 10 mail.lan."},
		{Lookup{Name: "app.lan", Type: "TXT"}, " TXT ab?[31m"},
		{Lookup{Name: "_sip._tcp.lan", Type: "SRV"}, " SRV 1 2 5060 sip.lan."},
		{Lookup{Name: "10.0.0.5"}, " PTR app.lan."},
		{Lookup{Name: "none.lan"}, classNoName},
		{Lookup{Name: "app.lan", Server: server}, "NOERROR A 10.0.0.5 AAAA fd00::5"},
		{Lookup{Name: "APP.lan.", Type: "NS", Server: server}, "NOERROR NS ns.lan."},
		{Lookup{Name: "app.lan", Type: "TXT", Server: server}, "NOERROR TXT ab\\027[31m"},
		{Lookup{Name: "10.0.0.5", Server: server}, "NOERROR PTR app.lan."},
		{Lookup{Name: "app.lan", Type: "SRV", Server: server}, "NOERROR" + classNoName},
		{Lookup{Name: "none.lan", Server: server}, "NXDOMAIN" + classNoName},
		{Lookup{Name: "broken.lan", Server: server}, "SERVFAIL" + classDNS},
	} {
		a, err := rest.Invoke[Answer](t.Context(), c, "site/Lookup", test.in)
		got := strings.Trim(a.Status, " ") + a.Class
		for _, r := range a.Records {
			got += " " + r.Type + " " + r.Value
		}
		if err != nil || got != test.want && got != strings.Replace(test.want, "A 10.0.0.5 AAAA fd00::5", "AAAA fd00::5 A 10.0.0.5", 1) {
			t.Errorf("%+v: %q, %v (%+v), want %q", test.in, got, err, a, test.want)
		}
	}
	// What is too long for UDP comes by TCP, and no more of it than there is room for.
	a, err := rest.Invoke[Answer](t.Context(), c, "site/Lookup", Lookup{Name: "big.lan", Type: "A", Server: server})
	if err != nil || len(a.Records) != maxRecords {
		t.Errorf("%d records, %v", len(a.Records), err)
	}
	for in, code := range map[Lookup]int{
		{Name: "app.lan", Server: "192.0.2.1"}: 403, {Name: "app.lan", Server: "169.254.169.254:53"}: 403, {Name: "app.lan", Server: "ns.lan"}: 400,
		{Name: "a b"}: 400, {Name: ""}: 400, {Name: "app.lan", Type: "AXFR"}: 400, {Name: "10.0.0.5", Type: "MX"}: 400, {Name: "bücher.lan"}: 400, {Name: strings.Repeat("a", 64)}: 400,
	} {
		if a, err := rest.Invoke[Answer](t.Context(), c, "site/Lookup", in); codeOf(err) != code {
			t.Errorf("%+v: %+v, %v, want %d", in, a, err, code)
		}
	}
	// A name that leads to the metadata service is as good as its address.
	all := rulesOf(t, "*")
	s.Allow = func() []Rule { return all }
	if got, err := rest.Invoke[Connection](t.Context(), c, "site/Connect", Connect{Target: "meta.lan:80", Timeout: 5}); codeOf(err) != 403 {
		t.Errorf("%+v, %v", got, err)
	}
	// The system's name servers may be asked, whatever the rules are.
	s.Allow = func() []Rule { return []Rule{} }
	s.resolvConf = filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(s.resolvConf, []byte("# none\nsearch lan\nnameserver 192.0.2.53\nnameserver fd00::53%eth0 \nnameserver x\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if at, err := s.nameserver("192.0.2.53"); err != nil || at.Port() != 53 {
		t.Error(at, err)
	}
	if at, err := s.nameserver("192.0.2.53:54"); codeOf(err) != 403 {
		t.Error(at, err)
	}
}

func TestClock(t *testing.T) {
	ahead := fakeNTP(t, func(_ int, req []byte) []byte { return reply(req, time.Hour) }).String()
	bad := fakeNTP(t, func(_ int, req []byte) []byte { return []byte("x") }).String()
	s := &Site{Allow: func() []Rule { return []Rule{} }, NTP: func() []string { return []string{ahead, bad} }}
	c := asked(t, s)
	list, err := rest.Invoke[[]Clock](t.Context(), c, "site/Clock", Clocks{})
	if err != nil || len(list) != 2 || list[0].Offset < 3599000 || list[0].Problem != "" || list[1].Problem != errNotNTP.Error() {
		t.Errorf("%+v, %v", list, err)
	}
	// What the file does not name is a target as others are.
	if list, err = rest.Invoke[[]Clock](t.Context(), c, "site/Clock", Clocks{Server: "127.0.0.1:1234"}); codeOf(err) != 403 {
		t.Errorf("%+v, %v", list, err)
	}
	s.NTP = nil
	if list, err = rest.Invoke[[]Clock](t.Context(), c, "site/Clock", Clocks{}); codeOf(err) != 400 {
		t.Errorf("%+v, %v", list, err)
	}
}

// TestLimits bounds how much is asked of others.
func TestLimits(t *testing.T) {
	s := onLoopback(t)
	c := asked(t, s)
	refused := 0
	for range burst + 20 {
		if _, err := rest.Invoke[Connection](t.Context(), c, "site/Connect", Connect{Target: "192.0.2.1:80", Timeout: 1}); codeOf(err) == 429 {
			refused++
		}
	}
	if refused == 0 {
		t.Error("nothing bounds how often is asked")
	}
	if _, err := rest.Invoke[Host](t.Context(), c, "site/Host", nothing{}); err != nil {
		t.Errorf("what asks nobody is bounded, too: %v", err)
	}
	s = onLoopback(t)
	c = asked(t, s)
	for range maxAtOnce {
		s.atOnce <- struct{}{}
	}
	if _, err := rest.Invoke[Connection](t.Context(), c, "site/Connect", Connect{Target: "127.0.0.1:80", Timeout: 1}); codeOf(err) != 429 {
		t.Error(err)
	}
	for range maxAtOnce {
		<-s.atOnce
	}
	if _, err := rest.Invoke[[]onvif.Device](t.Context(), c, "site/Cameras", Search{}); codeOf(err) != 403 {
		t.Error(err)
	}
	// By HTTP nothing is sent by a link alone.
	srv := &rest.Server{Prefix: "/"}
	srv.Set(s.Service())
	defer srv.Close()
	web := httptest.NewServer(srv)
	defer web.Close()
	for path, status := range map[string]int{"/site/Wake?mac=00:11:22:33:44:55": 405, "/site/Cameras": 405, "/site/Host": 200, "/site/None": 404, "/site/Connect": 400} {
		res, err := http.Get(web.URL + path)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.StatusCode != status {
			t.Errorf("%s: %s, want %d", path, res.Status, status)
		}
	}
	// The same by the client of another process.
	base, _ := url.Parse(web.URL)
	h, err := rest.Invoke[Host](t.Context(), &rest.Client{Base: base}, "site/Host", nothing{})
	if err != nil || h.Site != "office" {
		t.Errorf("%+v, %v", h, err)
	}
}

// TestReport has a site with all kinds of trouble, and one with none.
func TestReport(t *testing.T) {
	ca := newTestCA(t)
	soon := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, 5)}})
	expired := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, -1)}})
	good := serveTLS(t, &tls.Config{Certificates: []tls.Certificate{ca.issue(t, 60)}})
	late := fakeNTP(t, func(_ int, req []byte) []byte { return reply(req, 90*time.Second) }).String()
	right := fakeNTP(t, func(_ int, req []byte) []byte { return reply(req, 0) }).String()
	names := fakeDNS(t)

	s := onLoopback(t)
	s.Software = "culvert test"
	s.resolvConf = filepath.Join(t.TempDir(), "none")
	s.Resolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, network, names)
	}}
	target := func(name, address string) Target {
		return Target{Service: name, URL: "https://" + address, Network: "tcp", Address: address, TLS: true, Roots: ca.pool()}
	}
	tls := []Target{target("good", good), target("soon", soon), target("expired", expired), target("gone", gone),
		{Service: "folder", URL: "file:///x", Folder: true, Address: filepath.Join(t.TempDir(), "none")}, {Service: "log", URL: "udp://10.0.0.1:514"},
		{Service: "mail", URL: "tcp://" + good, Network: "tcp", Address: good, Certificate: func(context.Context) (*x509.Certificate, error) { return nil, errors.New("no certificate") }}}
	s.Targets = func() []Target { return tls }
	s.NTP = func() []string { return []string{late} }
	s.Relays = func() []Relay {
		return []Relay{{Address: "none.lan:443", Linked: true, Choice: "wss: no udp", Links: []Link{{Transport: "wss", State: "linked"}, {Transport: "quic", State: "waiting", Problem: "timeout"}}}, {Address: "app.lan:443", Problem: "refused"}}
	}
	c := asked(t, s)
	r, err := Gather(t.Context(), c, Options{Targets: []string{soon, gone, "http://" + gone, "192.0.2.1:1"}})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, f := range r.Findings {
		got = append(got, f.Level+" "+f.Subject+": "+f.Text+" -> "+f.Do)
	}
	for _, want := range []string{
		"wrong service expired: target https://" + expired + ": its certificate is not good: expired on",
		"wrong service gone: target https://" + gone + ": refused: nothing listens there, or a firewall says no -> start the server",
		"wrong service folder: ",
		"wrong service mail: its certificate: no certificate",
		"warning service soon: the certificate of target https://" + soon + " expires in 5 days -> renew it",
		"wrong clock: is off: 1m30s has to be added",
		"wrong dns: none.lan is not found: there is no such name",
		"wrong relay app.lan:443: no link: refused",
		"note relay none.lan:443: no QUIC link",
		"wrong target " + gone + ": refused",
		"note target 192.0.2.1:1: was not tried: 192.0.2.1:1 is not among",
		"warning target " + soon + ": its certificate expires in 5 days",
		"wrong target http://" + gone + ": refused",
	} {
		found := false
		for _, g := range got {
			found = found || strings.HasPrefix(g, want)
		}
		if !found {
			t.Errorf("not found: %s", want)
		}
	}
	for _, g := range got {
		if strings.Contains(g, "service good") || strings.Contains(g, "service log") {
			t.Errorf("found: %s", g)
		}
	}
	if t.Failed() {
		t.Log(strings.Join(got, "\n"))
	}
	if r.Findings[0].Level != Wrong || r.Findings[len(r.Findings)-1].Level != Note {
		t.Error("the worst is not first")
	}

	tls = tls[:1]
	s.NTP = func() []string { return []string{right} }
	s.Relays = func() []Relay { return []Relay{{Address: "app.lan:443", Linked: true}} }
	s.limit.SetBurst(1000)
	s.limit.SetLimit(1000)
	if r, err = Gather(t.Context(), c, Options{Names: []string{"app.lan"}}); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Findings {
		if strings.HasPrefix(f.Subject, "service") || f.Subject == "dns" || f.Subject == "clock" && f.Level == Wrong || strings.HasPrefix(f.Subject, "relay") || f.Subject == "Services" {
			t.Errorf("found: %+v", f)
		}
	}
	if r.Site != "office" || r.Host == nil || len(r.Interfaces) == 0 || len(r.Services) != 1 || len(r.Names) != 2 || r.Drift == nil {
		t.Errorf("%+v", r)
	}
}
