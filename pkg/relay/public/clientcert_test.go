package public

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/base64"
	"encoding/hex"
	"encoding/pem"
	"math/big"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/relay"
)

// testCA is an authority of visitors.
type testCA struct {
	t    testing.TB
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

// newCA makes one, under parent if that is not nil.
func newCA(t testing.TB, name string, parent *testCA) *testCA {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ca := &testCA{t: t, key: key}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true,
	}
	if parent == nil {
		parent = &testCA{cert: template, key: key}
	}
	der, err := x509.CreateCertificate(rand.Reader, template, parent.cert, &key.PublicKey, parent.key)
	if err != nil {
		t.Fatal(err)
	}
	ca.cert, _ = x509.ParseCertificate(der)
	return ca
}

func (ca *testCA) pem() string {
	return string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: ca.cert.Raw}))
}

// issue makes a certificate of a visitor; change, if not nil, gets the template.
func (ca *testCA) issue(change func(*x509.Certificate), chain ...*testCA) *tls.Certificate {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		ca.t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: "alice", Organization: []string{"Acme, Inc."}},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth},
	}
	if change != nil {
		change(template)
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca.cert, &key.PublicKey, ca.key)
	if err != nil {
		ca.t.Fatal(err)
	}
	c := &tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	for _, ca := range chain {
		c.Certificate = append(c.Certificate, ca.cert.Raw)
	}
	return c
}

// handshake makes a visitor by TLS for a server name, with a certificate unless it is nil.
func (r *testRelay) handshake(name string, cert *tls.Certificate, cfg *tls.Config) *testVisitor {
	r.t.Helper()
	c, err := net.Dial("tcp", r.https)
	if err != nil {
		r.t.Fatal(err)
	}
	if cfg == nil {
		cfg = new(tls.Config)
	}
	cfg.InsecureSkipVerify, cfg.ServerName = true, name
	cfg.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
		if cert == nil {
			return new(tls.Certificate), nil
		}
		return cert, nil
	}
	r.t.Cleanup(func() { c.Close() })
	c.SetDeadline(time.Now().Add(time.Minute))
	v := &testVisitor{t: r.t, Conn: tls.Client(c, cfg)}
	v.Reader = bufio.NewReader(v.Conn)
	return v
}

// get asks for / of a host.
func (v *testVisitor) get(host string) (*http.Response, string) {
	v.t.Helper()
	v.send("GET / HTTP/1.1\r\nHost: " + host + "\r\nX-Client-Cert-Subject: CN=root\r\nClient_Cert: :eA==:\r\n\r\n")
	return v.response("GET")
}

func TestClientCertificate(t *testing.T) {
	backends(t, func(t *testing.T, portable bool) {
		r := newTestRelay(t, portable, nil)
		ts := r.connect("office", map[string]string{
			"app": httpTarget(t, http.HandlerFunc(echoHead)), "open": httpTarget(t, http.HandlerFunc(echoHead)), "wild": httpTarget(t, http.HandlerFunc(echoHead))})
		ours, second, other := newCA(t, "ours", nil), newCA(t, "second", nil), newCA(t, "other", nil)
		middle := newCA(t, "middle", ours)
		list := announcements("app", "https://app.test", "open", "https://open.test", "wild", "https://*.test")
		list[0].Policy = &relay.Policy{ClientCA: ours.pem() + second.pem()}
		replies := make(chan []relay.AnnounceReply, 1)
		onLoop(ts.session.loop.Loop, func() { ts.announce(list, replies) })
		for _, reply := range <-replies {
			if reply.Error != "" {
				t.Fatal(reply.Error)
			}
		}
		good := ours.issue(nil)
		for _, tt := range []struct {
			name      string
			cert      *tls.Certificate
			sni, host string
			status    int
		}{
			{"good", good, "app.test", "app.test", 200},
			{"of the second authority", second.issue(nil), "app.test", "app.test", 200},
			{"through an authority below", middle.issue(nil, middle), "APP.test", "app.test:443", 200},
			{"none", nil, "app.test", "app.test", 403},
			{"of another authority", other.issue(nil), "app.test", "app.test", 403},
			{"without the authority between", middle.issue(nil), "app.test", "app.test", 403},
			{"of a server", ours.issue(func(c *x509.Certificate) { c.ExtKeyUsage = []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth} }), "app.test", "app.test", 403},
			{"expired", ours.issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(-time.Minute) }), "app.test", "app.test", 403},
			{"not yet", ours.issue(func(c *x509.Certificate) { c.NotBefore = time.Now().Add(time.Minute) }), "app.test", "app.test", 403},
			{"self-signed", selfSigned(t), "app.test", "app.test", 403},
			{"too long a chain", ours.issue(nil, other, other, other, other, other, other, other, other), "app.test", "app.test", 403},
			{"a service that asks for none", good, "open.test", "open.test", 200},
			{"on a connection for another name", good, "open.test", "app.test", 421},
			{"on one without a name", good, "", "app.test", 421},
			{"the other way round", good, "app.test", "open.test", 200},
		} {
			v := r.handshake(tt.sni, tt.cert, nil)
			res, body := v.get(tt.host)
			if res.StatusCode != tt.status {
				t.Errorf("%s: %d %s", tt.name, res.StatusCode, body)
			}
			if strings.Contains(body, "root") || strings.Contains(body, ":eA==") {
				t.Errorf("%s: the visitor's own word goes on:\n%s", tt.name, body)
			}
			if says := strings.Contains(body, "Client-Cert"); says != (res.StatusCode == 200 && strings.HasPrefix(tt.host, "app")) {
				t.Errorf("%s: the server gets\n%s", tt.name, body)
			}
			if res.Close != (tt.name == "none") { // the next connection asks again
				t.Errorf("%s: the connection ends: %v", tt.name, res.Close)
			}
			if tt.name != "good" {
				continue
			}
			sum := sha256.Sum256(good.Certificate[0])
			for _, f := range []string{
				"X-Client-Cert-Subject: CN=alice,O=Acme\\, Inc.\r\n",
				"X-Client-Cert-Fingerprint: " + hex.EncodeToString(sum[:]) + "\r\n",
				"Client-Cert: :" + base64.StdEncoding.EncodeToString(good.Certificate[0]) + ":\r\n",
			} {
				if !strings.Contains(body, f) {
					t.Errorf("the server does not get %s:\n%s", f, body)
				}
			}
		}
		// Visitors are told which authorities are meant, and others are not asked.
		for sni, want := range map[string]int{"app.test": 2, "open.test": -1, "any.test": -1} {
			n := -1
			c := r.handshake(sni, nil, nil)
			cfg := &tls.Config{InsecureSkipVerify: true, ServerName: sni, GetClientCertificate: func(i *tls.CertificateRequestInfo) (*tls.Certificate, error) {
				n = len(i.AcceptableCAs)
				return new(tls.Certificate), nil
			}}
			nc, err := net.Dial("tcp", r.https)
			if err != nil {
				t.Fatal(err)
			}
			if err := tls.Client(nc, cfg).Handshake(); err != nil {
				t.Error(err)
			}
			nc.Close()
			c.Close()
			if n != want {
				t.Errorf("%s: %d authorities are named, want %d", sni, n, want)
			}
		}
	})
}

func selfSigned(t testing.TB) *tls.Certificate {
	ca := newCA(t, "alice", nil)
	return &tls.Certificate{Certificate: [][]byte{ca.cert.Raw}, PrivateKey: ca.key}
}

// A ticket does not carry more than it should: the certificate in it is looked at anew, and what was
// agreed before certificates were asked for is not taken up again.
func TestClientCertificateResumed(t *testing.T) {
	for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
		t.Run(tls.VersionName(version), func(t *testing.T) {
			r := newTestRelay(t, false, nil)
			ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test")
			ours, other := newCA(t, "ours", nil), newCA(t, "other", nil)
			good := ours.issue(nil)
			cache := tls.NewLRUClientSessionCache(4)
			come := func() (status int, resumed bool) {
				t.Helper()
				v := r.handshake("app.test", good, &tls.Config{ClientSessionCache: cache, MaxVersion: version})
				defer v.Close()
				res, _ := v.get("app.test")
				return res.StatusCode, v.Conn.(*tls.Conn).ConnectionState().DidResume
			}
			expect := func(what string, status int, resumed bool) {
				t.Helper()
				if s, r := come(); s != status || r != resumed {
					t.Errorf("%s: %d, resumed %v", what, s, r)
				}
			}
			expect("at first", 200, false)
			expect("without a policy", 200, true)
			ts.demand(&relay.Policy{ClientCA: ours.pem()}, "app", "https://app.test")
			expect("since a certificate is asked for", 200, false)
			expect("with the certificate in the ticket", 200, true)
			ts.demand(&relay.Policy{ClientCA: ours.pem(), MaxBody: 1}, "app", "https://app.test")
			expect("after a change of something else", 200, true)
			ts.demand(&relay.Policy{ClientCA: other.pem()}, "app", "https://app.test")
			expect("after a change of the authority", 403, false)
			expect("and again", 403, true)
		})
	}
}

// A certificate that expires while the connection lives is not good any more.
func TestClientCertificateExpires(t *testing.T) {
	ca := newCA(t, "ours", nil)
	a, err := newAuthority(&relay.Policy{ClientCA: ca.pem()})
	if err != nil {
		t.Fatal(err)
	}
	issued := ca.issue(func(c *x509.Certificate) { c.NotAfter = time.Now().Add(10 * time.Minute) })
	cert, err := x509.ParseCertificate(issued.Certificate[0])
	if err != nil {
		t.Fatal(err)
	}
	c := &client{certs: []*x509.Certificate{cert}, sni: "app.test"}
	now := time.Now()
	for _, tt := range []struct {
		at   time.Duration
		want *trouble
	}{{0, nil}, {9 * time.Minute, nil}, {11 * time.Minute, troubleBadCert}} {
		if got := a.check(c, "app.test", now.Add(tt.at)); got != tt.want {
			t.Errorf("after %v: %v", tt.at, got)
		}
	}
}
