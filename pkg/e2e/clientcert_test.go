//go:build linux

package e2e

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"
)

// clientCertificate makes an authority, whose file is returned, and a certificate of it.
func clientCertificate(t testing.TB, name string) (ca string, cert tls.Certificate) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name + " authority"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign}
	caDER, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	leaf := &x509.Certificate{SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name, Organization: []string{"Culvert"}},
		NotBefore: template.NotBefore, NotAfter: template.NotAfter, KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}}
	der, err := x509.CreateCertificate(rand.Reader, leaf, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	ca = tempDir(t) + "/ca.pem"
	writeFile(t, ca, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: caDER})))
	return ca, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

// oneSession keeps the last ticket, whatever server it is from.
type oneSession struct{ s *tls.ClientSessionState }

func (o *oneSession) Get(string) (*tls.ClientSessionState, bool) { return o.s, o.s != nil }
func (o *oneSession) Put(_ string, s *tls.ClientSessionState)    { o.s = s }

// TestClientCertificates has services with an authority of visitors each, and visitors who
// try to come in with what another service has accepted.
func TestClientCertificates(t *testing.T) {
	t.Parallel()
	rec := startRecorder(t)
	caA, alice := clientCertificate(t, "alice")
	caB, _ := clientCertificate(t, "bob")
	s := configure(t, nil,
		service{"open", "https://open.example.com", "http://" + rec.addr},
		service{"a", "https://a.example.com", "http://" + rec.addr},
		service{"b", "https://b.example.com", "http://" + rec.addr})
	s.more = map[string]string{"a": fmt.Sprintf("client_ca = %q\n", caA), "b": fmt.Sprintf("client_ca = %q\n", caB)}
	s.startPublic()
	s.startPrivate()
	// visit asks for a host on a connection made for a name, and returns the status, 0 if
	// the handshake or the connection failed.
	visit := func(config *tls.Config, name, host string, more ...string) int {
		config = config.Clone()
		config.RootCAs, config.ServerName = caPool(), name
		c, err := tls.Dial("tcp", s.https, config)
		if err != nil {
			return 0
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(waitLimit))
		fmt.Fprintf(c, "GET /case HTTP/1.1\r\nHost: %s\r\n%s\r\n", host, strings.Join(more, ""))
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			return 0
		}
		return resp.StatusCode
	}
	none, withAlice := &tls.Config{}, &tls.Config{Certificates: []tls.Certificate{alice}}
	for _, tt := range []struct {
		what       string
		config     *tls.Config
		name, host string
		want       []int
	}{
		{"her own", withAlice, "a.example.com", "a.example.com", []int{200}},
		{"no certificate", none, "a.example.com", "a.example.com", []int{0, 400, 403, 421, 495, 496}},
		{"another authority's", withAlice, "b.example.com", "b.example.com", []int{0, 400, 403, 421, 495, 496}},
		{"none is asked for", none, "open.example.com", "open.example.com", []int{200}},
		{"through the open name", withAlice, "open.example.com", "a.example.com", []int{421}},
		{"through the open name without", none, "open.example.com", "a.example.com", []int{421}},
		{"through another's name", withAlice, "a.example.com", "b.example.com", []int{421}},
		{"through the relay's name", withAlice, "localhost", "a.example.com", []int{421}},
	} {
		if got := visit(tt.config, tt.name, tt.host); !slices.Contains(tt.want, got) {
			t.Errorf("%s: %d, want one of %v", tt.what, got, tt.want)
		}
	}
	rec.take()
	t.Run("the subject is the relay's word", func(t *testing.T) {
		forged := []string{"X-Client-Cert-Subject: CN=root\r\n", "X_Client_Cert_Subject: CN=root\r\n", "Client-Cert: :root:\r\n", "X-Remote-User: root\r\n"}
		for _, host := range []string{"a.example.com", "open.example.com"} {
			if got := visit(withAlice, host, host, forged...); got != 200 {
				t.Fatalf("%s: %d", host, got)
			}
			all, _ := rec.take()
			if len(all) != 1 || strings.Contains(all[0].raw, "root") {
				t.Errorf("%s: %+v", host, all)
			}
			if told := strings.Contains(all[0].raw, "CN=alice"); told != (host == "a.example.com") {
				t.Errorf("%s: the subject is told: %v\n%s", host, told, all[0].raw)
			}
		}
	})
	t.Run("a ticket is no certificate", func(t *testing.T) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			for _, from := range []string{"open.example.com", "a.example.com"} {
				// What she was given there is shown at a door that would not have let her in.
				tickets := &oneSession{}
				config := &tls.Config{Certificates: []tls.Certificate{alice}, ClientSessionCache: tickets, MaxVersion: version}
				if got := visit(config, from, from); got != 200 || tickets.s == nil {
					t.Fatalf("%s: %d, ticket %v", from, got, tickets.s != nil)
				}
				config.Certificates = nil
				if got := visit(config, "b.example.com", "b.example.com"); got == 200 {
					t.Errorf("%s: a ticket of %s opens b", tls.VersionName(version), from)
				}
			}
		}
	})
}
