package private

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"log/slog"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/pires/go-proxyproto"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// makeCertificate makes a certificate of its own authority.
func makeCertificate(t *testing.T, names ...string) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), DNSNames: names,
		IsCA: true, BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}
}

func (v *visitor) Read(b []byte) (int, error)       { return v.r.Read(b) }
func (v *visitor) Write(b []byte) (int, error)      { v.write(string(b)); return len(b), nil }
func (v *visitor) Close() error                     { v.closeWrite(); return nil }
func (v *visitor) LocalAddr() net.Addr              { return nil }
func (v *visitor) RemoteAddr() net.Addr             { return nil }
func (v *visitor) SetDeadline(time.Time) error      { return nil }
func (v *visitor) SetReadDeadline(time.Time) error  { return nil }
func (v *visitor) SetWriteDeadline(time.Time) error { return nil }

// tls begins a handshake with the site, for name and with a config that change may change.
func (v *visitor) tls(name string, roots tls.Certificate, change func(*tls.Config)) (*tls.Conn, error) {
	cfg := &tls.Config{ServerName: name, RootCAs: x509.NewCertPool()}
	cfg.RootCAs.AddCert(roots.Leaf)
	if change != nil {
		change(cfg)
	}
	tc := tls.Client(v, cfg)
	return tc, tc.Handshake()
}

func protocols(list ...string) func(*tls.Config) {
	return func(c *tls.Config) { c.NextProtos = list }
}

// static always has the same certificate.
func static(c tls.Certificate) *TLS {
	return &TLS{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return &c, nil }}
}

// wantAlert checks why a handshake has failed.
func wantAlert(t *testing.T, err error, want string) {
	t.Helper()
	if err == nil || !strings.Contains(err.Error(), "remote error: tls: "+want) {
		t.Errorf("handshake: %v, want %q", err, want)
	}
}

// terminated is a service of that name, published at host and ended with c.
func terminated(t *testing.T, name, host, target string, end *TLS) Service {
	t.Helper()
	s := published(t, tcpService(t, name, target), "tls://"+host)
	s.TLS = end
	return s
}

// Visitors' TLS ends here, and the target gets what was in it.
func TestTerminate(t *testing.T) {
	certificate := makeCertificate(t, "*.example.com")
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host+" over "+r.Proto) }))
	defer web.Close()
	secure := httptest.NewTLSServer(web.Config.Handler)
	defer secure.Close()
	dir := t.TempDir()
	if err := os.WriteFile(filepath.Join(dir, "a.txt"), []byte("a file"), 0o600); err != nil {
		t.Fatal(err)
	}
	again := terminated(t, "again", "again.example.com", secure.URL, static(certificate))
	again.RootCAs = x509.NewCertPool()
	again.RootCAs.AddCert(secure.Certificate())
	line := terminated(t, "line", "line.example.com", "tcp://"+upper(t, "tcp", "127.0.0.1:0").Addr().String(), static(certificate))
	line.TLS.Protocols = []string{"upper"}
	s := newSite(t,
		terminated(t, "web", "web.example.com", web.URL, static(certificate)), again, line,
		terminated(t, "files", "files.example.com", "file://"+filepath.ToSlash(dir), static(certificate)),
		terminated(t, "down", "down.example.com", "tcp://127.0.0.1:1", static(certificate)),
	)
	get := func(service, path string) string {
		t.Helper()
		tc, err := s.visit(service).tls(service+".example.com", certificate, protocols("h2", "http/1.1"))
		if err != nil {
			t.Fatal(err)
		}
		if p := tc.ConnectionState().NegotiatedProtocol; p != "http/1.1" {
			t.Errorf("%s: protocol %q", service, p)
		}
		io.WriteString(tc, "GET "+path+" HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
		if err != nil {
			t.Fatal(err)
		}
		b, _ := io.ReadAll(resp.Body)
		return string(b)
	}
	for i, got := range []string{get("web", "/"), get("again", "/"), get("files", "/a.txt")} {
		if want := []string{"x over HTTP/1.1", "x over HTTP/1.1", "a file"}[i]; got != want {
			t.Errorf("answer %q, want %q", got, want)
		}
	}

	// Any protocol, with its half-closes; what it is called is said if the client knows it.
	for _, offered := range []string{"upper", ""} {
		v := s.visit("line")
		tc, err := v.tls("LINE.example.com", certificate, func(c *tls.Config) {
			if offered != "" {
				c.NextProtos = []string{"other", offered}
			}
		})
		if err != nil {
			t.Fatal(err)
		}
		if p := tc.ConnectionState().NegotiatedProtocol; p != offered {
			t.Errorf("protocol %q, want %q", p, offered)
		}
		io.WriteString(tc, strings.Repeat("hello ", 100_000))
		tc.CloseWrite()
		got, err := io.ReadAll(tc)
		if string(got) != strings.Repeat("HELLO ", 100_000) || err != nil {
			t.Errorf("answer of %d bytes, %v", len(got), err)
		}
		v.closeWrite()
		if err := <-v.closed; err != nil {
			t.Errorf("stream ended with %v", err)
		}
	}
	for _, tt := range []struct {
		service string
		change  func(*tls.Config)
		alert   string
	}{
		{"web", protocols("h2"), "no application protocol"},
		{"line", protocols("mail"), "no application protocol"},
		{"line", func(c *tls.Config) { c.MaxVersion, c.MinVersion = tls.VersionTLS11, tls.VersionTLS10 }, "protocol version"},
		{"line", func(c *tls.Config) {
			c.MaxVersion, c.CipherSuites = tls.VersionTLS12, []uint16{tls.TLS_ECDHE_ECDSA_WITH_AES_128_CBC_SHA}
		}, "handshake failure"},
	} {
		v := s.visit(tt.service)
		_, err := v.tls(tt.service+".example.com", certificate, tt.change)
		wantAlert(t, err, tt.alert)
		v.closeWrite()
		<-v.closed
	}

	// The code says why there is no target, as without TLS.
	v := s.visit("down")
	if tc, err := v.tls("down.example.com", certificate, nil); err != nil {
		t.Error(err)
	} else if _, err := tc.Read(make([]byte, 1)); err == nil {
		t.Error("somebody answers")
	}
	v.wantCode(tunnel.CodeRefused)

	v = s.visit("web")
	v.write("GET / HTTP/1.1\r\n\r\n")
	if got, err := io.ReadAll(v.r); !bytes.Equal(got, []byte{21, 3, 3, 0, 2, 2, 10}) {
		t.Errorf("HTTP in place of TLS is answered with % x, %v", got, err)
	}
	v.closeWrite()
	<-v.closed
	// This side of a stream may end a moment later.
	for _, want := range []ServiceStatus{{Name: "line", Total: 5, Unshaken: 3}, {Name: "down", Total: 1, Failed: 1}} {
		var got ServiceStatus
		for limit := time.Now().Add(time.Minute); got != want && time.Now().Before(limit); {
			s.do(func() {})
			for _, st := range s.peer.relay.Status().Services {
				if st.Name == want.Name {
					got = st
				}
			}
		}
		if got != want {
			t.Errorf("counted %+v, want %+v", got, want)
		}
	}
}

// Targets that speak HTTP/2 have visitors who do.
func TestTerminateHTTP2(t *testing.T) {
	certificate := makeCertificate(t, "*.example.com")
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host+" over "+r.Proto) })
	plain, secure := httptest.NewUnstartedServer(h), httptest.NewUnstartedServer(h)
	plain.Config.Protocols = new(http.Protocols)
	plain.Config.Protocols.SetUnencryptedHTTP2(true)
	plain.Start()
	defer plain.Close()
	secure.EnableHTTP2 = true
	secure.StartTLS()
	defer secure.Close()
	again := terminated(t, "h2", "h2.example.com", strings.Replace(secure.URL, "https", "h2", 1), static(certificate))
	again.RootCAs = x509.NewCertPool()
	again.RootCAs.AddCert(secure.Certificate())
	s := newSite(t, again, terminated(t, "h2c", "h2c.example.com", strings.Replace(plain.URL, "http", "h2c", 1), static(certificate)))
	for _, name := range []string{"h2", "h2c"} {
		host := name + ".example.com"
		tr := &http.Transport{ForceAttemptHTTP2: true, DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
			return s.visit(name).tls(host, certificate, protocols("http/1.1", "h2"))
		}}
		for range 3 { // on one connection
			res, err := (&http.Client{Transport: tr}).Get("https://" + host)
			if err != nil {
				t.Fatal(err)
			}
			b, _ := io.ReadAll(res.Body)
			res.Body.Close()
			if string(b) != host+" over HTTP/2.0" {
				t.Errorf("%s: %q", name, b)
			}
		}
		if st := s.peer.relay.Status().Services; st[0].Total > 1 || st[1].Total > 1 {
			t.Errorf("streams %+v", st)
		}
		tr.CloseIdleConnections()
	}
}

// A visitor who is directed to a service by another name than its own finds nothing, though the certificate would do.
func TestTerminateNames(t *testing.T) {
	certificate := makeCertificate(t, "*.example.com", "example.org")
	target := "tcp://" + upper(t, "tcp", "127.0.0.1:0").Addr().String()
	s := newSite(t, terminated(t, "any", "*.example.com", target, static(certificate)), terminated(t, "one", "one.example.com", target, static(certificate)),
		published(t, tcpService(t, "raw", target), "tls://raw.example.com"))
	for _, tt := range []struct {
		service, name string
		ok            bool
	}{
		{"any", "two.example.com", true},
		{"any", "one.example.com", false},
		{"any", "raw.example.com", false},
		{"any", "example.org", false},
		{"any", "", false},
		{"one", "one.example.com", true},
		{"one", "two.example.com", false},
		{"one", "", true}, // an operator's client may have no name to ask for
	} {
		_, err := s.visit(tt.service).tls(tt.name, certificate, func(c *tls.Config) { c.InsecureSkipVerify = true })
		if tt.ok && err != nil {
			t.Errorf("%s at %s: %v", tt.name, tt.service, err)
		} else if !tt.ok {
			wantAlert(t, err, "unrecognized name")
		}
	}
}

// The target hears who the visitor is before anything else.
func TestTerminateProxyProtocol(t *testing.T) {
	certificate := makeCertificate(t, "web.example.com")
	plain, secure := httptest.NewUnstartedServer(nil), httptest.NewUnstartedServer(nil)
	for _, srv := range []*httptest.Server{plain, secure} {
		srv.Config.Handler = http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.RemoteAddr) })
		srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
		srv.Listener = &proxyproto.Listener{Listener: srv.Listener, ConnPolicy: func(proxyproto.ConnPolicyOptions) (proxyproto.Policy, error) { return proxyproto.REQUIRE, nil }}
	}
	plain.Start()
	defer plain.Close()
	secure.StartTLS()
	defer secure.Close()
	for name, srv := range map[string]*httptest.Server{"plain": plain, "secure": secure} {
		for version := 1; version <= 2; version++ {
			svc := terminated(t, "web", "web.example.com", srv.URL, static(certificate))
			svc.ProxyProtocol = version
			if name == "secure" {
				svc.RootCAs = x509.NewCertPool()
				svc.RootCAs.AddCert(srv.Certificate())
			}
			s := newSite(t, svc)
			tc, err := s.visit("web").tls("web.example.com", certificate, nil)
			if err != nil {
				t.Fatal(err)
			}
			io.WriteString(tc, "GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
			resp, err := http.ReadResponse(bufio.NewReader(tc), nil)
			if err != nil {
				t.Fatal(err)
			}
			if b, _ := io.ReadAll(resp.Body); string(b) != "192.0.2.7:40000" {
				t.Errorf("%s, version %d: the target says that the visitor is %s", name, version, b)
			}
		}
	}
}

// Visitors prove who they are to the site itself.
func TestTerminateClientCA(t *testing.T) {
	certificate, alice, mallory := makeCertificate(t, "one.example.com"), makeCertificate(t), makeCertificate(t)
	svc := terminated(t, "one", "one.example.com", "tcp://"+upper(t, "tcp", "127.0.0.1:0").Addr().String(), static(certificate))
	svc.TLS.ClientCAs = x509.NewCertPool()
	svc.TLS.ClientCAs.AddCert(alice.Leaf)
	s := newSite(t, svc)
	for name, who := range map[string]*tls.Certificate{"alice": &alice, "mallory": &mallory, "nobody": nil} {
		tc, err := s.visit("one").tls("one.example.com", certificate, func(c *tls.Config) {
			if who != nil {
				c.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) { return who, nil }
			}
		})
		if err == nil { // with TLS 1.3 the client hears of it later
			io.WriteString(tc, "x")
			tc.CloseWrite()
			_, err = io.ReadAll(tc)
		}
		if (err == nil) != (name == "alice") {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// A reload gives new handshakes another certificate. What is open goes on.
func TestTerminateReload(t *testing.T) {
	old, renewed := makeCertificate(t, "one.example.com"), makeCertificate(t, "one.example.com")
	target := "tcp://" + upper(t, "tcp", "127.0.0.1:0").Addr().String()
	s := newSite(t, terminated(t, "one", "one.example.com", target, static(old)))
	before, err := s.visit("one").tls("one.example.com", old, nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.peer.relay.Reload([]Service{terminated(t, "one", "one.example.com", target, static(renewed))}); err != nil {
		t.Fatal(err)
	}
	if _, err := s.visit("one").tls("one.example.com", renewed, nil); err != nil {
		t.Error(err)
	}
	io.WriteString(before, "still here")
	before.CloseWrite()
	if got, err := io.ReadAll(before); string(got) != "STILL HERE" || err != nil {
		t.Errorf("the old connection: %q, %v", got, err)
	}
}

// A challenge is answered, and over.
func TestTerminateChallenge(t *testing.T) {
	certificate, challenge := makeCertificate(t, "one.example.com"), makeCertificate(t, "one.example.com")
	for _, acme := range []bool{true, false} {
		svc := terminated(t, "one", "one.example.com", "tcp://"+upper(t, "tcp", "127.0.0.1:0").Addr().String(), &TLS{ACME: acme, Protocols: []string{"upper"}})
		svc.TLS.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
			if slices.Equal(hello.SupportedProtos, []string{acmeALPN}) {
				return &challenge, nil
			}
			return &certificate, nil
		}
		s := newSite(t, svc)
		v := s.visit("one")
		tc, err := v.tls("one.example.com", challenge, protocols(acmeALPN))
		if !acme {
			wantAlert(t, err, "no application protocol")
			continue
		}
		if err != nil {
			t.Fatal(err)
		}
		if p := tc.ConnectionState().NegotiatedProtocol; p != acmeALPN {
			t.Errorf("protocol %q", p)
		}
		if n, err := tc.Read(make([]byte, 1)); n != 0 || err != io.EOF {
			t.Errorf("after the challenge: %d bytes, %v", n, err)
		}
		v.closeWrite()
		if err := <-v.closed; err != nil {
			t.Errorf("stream ended with %v", err)
		}
		// What offers something else besides is no challenge.
		if tc, err := s.visit("one").tls("one.example.com", certificate, protocols(acmeALPN, "upper")); err != nil || tc.ConnectionState().NegotiatedProtocol != "upper" {
			t.Errorf("another handshake: %v", err)
		}
	}
}

// Certificates are wanted for what the relay publishes, while visitors come here.
func TestNames(t *testing.T) {
	acme := func(name, host string) Service {
		return terminated(t, name, host, "tcp://10.0.0.5:443", &TLS{ACME: true, GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return nil, nil }})
	}
	one, two, refused := acme("one", "one.example.com"), acme("two", "two.example.com"), acme("refused", "refused.example.com")
	files := terminated(t, "files", "files.example.com", "tcp://10.0.0.5:443", static(tls.Certificate{}))
	var mu sync.Mutex
	var told []string
	tell := func(w *world) {
		w.relay.Names = func(hosts []string) {
			mu.Lock()
			defer mu.Unlock()
			told = append(told, strings.Join(hosts, " "))
		}
		w.hub.refused["refused"] = "not yours"
	}
	inWorld(t, []Service{two, one, refused, files, published(t, tcpService(t, "raw", "tcp://10.0.0.5:443"), "tls://raw.example.com")}, func(t *testing.T, w *world) {
		want := func(when string, list ...string) {
			t.Helper()
			synctest.Wait()
			mu.Lock()
			defer mu.Unlock()
			if !slices.Equal(told, list) {
				t.Errorf("%s: %q, want %q", when, told, list)
			}
			told = nil
		}
		want("at the beginning", "one.example.com two.example.com")
		if err := w.relay.Reload([]Service{one, files}); err != nil {
			t.Fatal(err)
		}
		want("after a reload", "one.example.com")
		if err := w.relay.Reload([]Service{one}); err != nil {
			t.Fatal(err)
		}
		want("after one that changes nothing")
		w.on(func() { w.relay.peers[0].setStandby(true) })
		want("when another private relay has taken over", "")
		w.on(func() { w.relay.peers[0].setStandby(false) })
		want("when this one has", "one.example.com")
	}, tell)
}

func TestTerminateValidate(t *testing.T) {
	end := static(tls.Certificate{})
	with := func(s Service, change func(*Service)) Service {
		if s.TLS != nil {
			c := *s.TLS
			s.TLS = &c
		}
		change(&s)
		return s
	}
	https := func(s *Service) { s.Publish = relay.Publish{Scheme: "https", Host: "a.example.com", Path: "/"} }
	for _, tt := range []struct {
		service Service
		want    string // "": it is right
	}{
		{terminated(t, "a", "a.example.com", "http://10.0.0.5", end), ""},
		{terminated(t, "a", "*.example.com", "file:///srv", end), ""},
		{terminated(t, "a", "a.example.com", "unix:///run/a", nil), ""},
		{terminated(t, "a", "a.example.com", "http://10.0.0.5", nil), "does not end the TLS"},
		{terminated(t, "a", "a.example.com", "file:///srv", nil), "does not end the TLS"},
		{terminated(t, "a", "a.example.com", "udp://10.0.0.5:1", end), "carries no datagrams"},
		{with(terminated(t, "a", "a.example.com", "http://10.0.0.5", end), https), "for tls:// publishes only"},
		{with(terminated(t, "a", "a.example.com", "http://10.0.0.5", end), func(s *Service) { s.TLS.GetCertificate = nil }), "no certificate"},
		{with(terminated(t, "a", "a.example.com", "http://10.0.0.5", end), func(s *Service) { s.TLS.Protocols = []string{"h2"} }), "alpn is for tcp:// and unix:// targets"},
		{with(terminated(t, "a", "a.example.com", "tcp://10.0.0.5:1", end), func(s *Service) { s.TLS.Protocols = []string{acmeALPN} }), "is for the challenges"},
		{with(terminated(t, "a", "a.example.com", "http://10.0.0.5", end), func(s *Service) { s.ProxyProtocol = 1 }), ""},
		{with(terminated(t, "a", "a.example.com", "tcp://10.0.0.5:1", nil), func(s *Service) { s.ProxyProtocol = 2 }), ""},
		{with(terminated(t, "a", "a.example.com", "file:///srv", end), func(s *Service) { s.ProxyProtocol = 2 }), "for targets that are servers"},
	} {
		err := tt.service.Validate()
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%v to %v: %v, want %q", tt.service.Publish, tt.service.Target, err, tt.want)
		}
	}
}
