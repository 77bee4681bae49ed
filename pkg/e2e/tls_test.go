//go:build linux

package e2e

import (
	"bufio"
	"crypto/rand"
	"crypto/rsa"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net/http"
	"os/exec"
	"slices"
	"strings"
	"testing"
	"time"
)

// selfSigned writes a certificate for *.example.com that certifies itself, and its key.
func selfSigned(t testing.TB, private any, public any) (cert, key string) {
	t.Helper()
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "self"},
		NotBefore:    time.Now().Add(-time.Hour),
		NotAfter:     time.Now().Add(time.Hour),
		DNSNames:     []string{"localhost", "*.example.com"},
		KeyUsage:     x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage:  []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	if err != nil {
		t.Fatal(err)
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(private)
	if err != nil {
		t.Fatal(err)
	}
	dir := tempDir(t)
	cert, key = dir+"/cert.pem", dir+"/key.pem"
	writeFile(t, cert, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
	writeFile(t, key, string(pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER})))
	return cert, key
}

// TestTLS asks the listener what a scanner asks: what it takes, what it prefers, and what
// it refuses.
func TestTLS(t *testing.T) {
	t.Parallel()
	s := startSystem(t, service{"app", "https://app.example.com", "http://" + startSink(t)})
	// handshake is a visitor's; the server's certificate is not the point.
	handshake := func(addr string, c *tls.Config) (tls.ConnectionState, error) {
		c.InsecureSkipVerify = true
		conn, err := tls.Dial("tcp", addr, c)
		if err != nil {
			return tls.ConnectionState{}, err
		}
		defer conn.Close()
		return conn.ConnectionState(), nil
	}
	const app = "app.example.com"
	openssl := func(input string, args ...string) string {
		if !slices.Contains(args, "-noservername") {
			args = append(args, "-servername", app)
		}
		cmd := exec.Command(tool(t, "openssl", "openssl"), append([]string{"s_client", "-connect", s.https, "-CAfile", certFile("ca.pem"), "-verify_return_error"}, args...)...)
		cmd.Stdin = strings.NewReader(input)
		out, _ := cmd.CombinedOutput() // its status is 1 when it was refused
		return string(out)
	}
	expect := func(t *testing.T, out string, words ...string) {
		t.Helper()
		for _, w := range words {
			if !strings.Contains(out, w) {
				t.Errorf("no %q in\n%s", w, out)
			}
		}
	}

	t.Run("versions", func(t *testing.T) {
		const old = "ALL:@SECLEVEL=0" // or else OpenSSL itself would not
		expect(t, openssl("", "-tls1", "-cipher", old), "alert protocol version")
		expect(t, openssl("", "-tls1_1", "-cipher", old), "alert protocol version")
		expect(t, openssl("", "-tls1_2"), "Protocol  : TLSv1.2", "Verify return code: 0", "Compression: NONE")
		expect(t, openssl("", "-tls1_3"), "New, TLSv1.3", "Verify return code: 0", "Compression: NONE", "Early data was not sent")
		expect(t, openssl(""), "New, TLSv1.3")
		expect(t, openssl("", "-tls1_2", "-fallback_scsv"), "alert inappropriate fallback")
	})
	t.Run("ciphers", func(t *testing.T) {
		rsaKey, err := rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			t.Fatal(err)
		}
		withRSA := configure(t, nil)
		withRSA.certificate, withRSA.certificateKey = selfSigned(t, rsaKey, rsaKey.Public())
		withRSA.startPublic()
		weak := tls.InsecureCipherSuites() // RC4, 3DES, RSA key exchange, CBC with SHA-256
		for _, c := range tls.CipherSuites() {
			if strings.Contains(c.Name, "CBC") {
				weak = append(weak, c)
			}
		}
		for _, c := range weak {
			for _, addr := range []string{s.https, withRSA.https} {
				if state, err := handshake(addr, &tls.Config{ServerName: app, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{c.ID}}); err == nil {
					t.Errorf("%s is taken: %v", c.Name, state)
				}
			}
		}
		expect(t, openssl("", "-tls1_2", "-cipher", "aNULL:eNULL:DHE:@SECLEVEL=0"), "alert handshake failure")
		for addr, suites := range map[string][]uint16{
			s.https:       {tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305},
			withRSA.https: {tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305},
		} {
			for _, id := range suites {
				if _, err := handshake(addr, &tls.Config{ServerName: app, MaxVersion: tls.VersionTLS12, CipherSuites: []uint16{id}}); err != nil {
					t.Errorf("%s: %v", tls.CipherSuiteName(id), err)
				}
			}
		}
	})
	t.Run("key exchange", func(t *testing.T) {
		for _, tt := range []struct{ offered, chosen []tls.CurveID }{
			{nil, []tls.CurveID{tls.X25519MLKEM768}}, // what Go and browsers offer
			{[]tls.CurveID{tls.CurveP256, tls.X25519, tls.X25519MLKEM768}, []tls.CurveID{tls.X25519MLKEM768}},
			{[]tls.CurveID{tls.X25519}, []tls.CurveID{tls.X25519}},
			{[]tls.CurveID{tls.CurveP256}, []tls.CurveID{tls.CurveP256}},
			{[]tls.CurveID{tls.CurveP384}, []tls.CurveID{tls.CurveP384}},
		} {
			state, err := handshake(s.https, &tls.Config{ServerName: app, CurvePreferences: tt.offered})
			if err != nil || !slices.Contains(tt.chosen, state.CurveID) {
				t.Errorf("offered %v: %v, %v; want one of %v", tt.offered, state.CurveID, err, tt.chosen)
			}
		}
		expect(t, openssl("", "-groups", "X448:X25519"), "Server Temp Key: X25519")
		expect(t, openssl("", "-groups", "X448"), "alert handshake failure")
	})
	t.Run("resumption", func(t *testing.T) {
		for _, version := range []uint16{tls.VersionTLS12, tls.VersionTLS13} {
			config := &tls.Config{RootCAs: caPool(), ServerName: app, MaxVersion: version, ClientSessionCache: tls.NewLRUClientSessionCache(1)}
			for i := range 3 {
				c, err := tls.Dial("tcp", s.https, config)
				if err != nil {
					t.Fatal(err)
				}
				io.WriteString(c, "GET / HTTP/1.1\r\nHost: app.example.com\r\n\r\n")
				resp, err := http.ReadResponse(bufio.NewReader(c), nil)
				if err != nil || resp.StatusCode != 200 {
					t.Errorf("%v %v", resp, err)
				}
				if got := c.ConnectionState().DidResume; got != (i > 0) {
					t.Errorf("%s, connection %d: resumed is %v", tls.VersionName(version), i, got)
				}
				c.Close()
			}
		}
		expect(t, openssl("", "-tls1_2", "-reconnect"), "Reused, TLSv1.2")
	})
	t.Run("renegotiation", func(t *testing.T) {
		// Its pipe stays open, as else it would end before the answer.
		cmd := exec.Command(tool(t, "openssl", "openssl"), "s_client", "-connect", s.https, "-tls1_2", "-servername", app)
		in, err := cmd.StdinPipe()
		if err != nil {
			t.Fatal(err)
		}
		io.WriteString(in, "R\n")
		out, err := cmd.CombinedOutput()
		if err == nil || !strings.Contains(string(out), "RENEGOTIATING") || !strings.Contains(string(out), "alert") {
			t.Errorf("%v\n%s", err, out)
		}
	})
	t.Run("protocols", func(t *testing.T) {
		for _, tt := range []struct {
			host    string
			offered []string
			want    string // "": none, "!": an alert
		}{
			{app, []string{"h2", "http/1.1"}, "h2"},
			{app, []string{"http/1.1", "h2"}, "h2"},
			{app, []string{"h2"}, "h2"},
			{app, []string{"http/1.1"}, "http/1.1"},
			{app, []string{"http/1.0"}, "http/1.0"},
			{app, []string{"foo", "http/1.1"}, "http/1.1"},
			{app, nil, ""},
			{app, []string{"foo"}, "!"},
			{app, []string{"acme-tls/1"}, "!"}, // nothing is being proved
			{app, []string{"culvert/1"}, "!"},
			{"localhost", []string{"h2", "http/1.1"}, "http/1.1"}, // the relay's own: links are upgrades
			{"localhost", []string{"acme-tls/1"}, "!"},
			{"APP.example.com", []string{"h2"}, "h2"},
			{"nobody.example.com", []string{"h2", "http/1.1"}, "h2"},
		} {
			state, err := handshake(s.https, &tls.Config{ServerName: tt.host, NextProtos: tt.offered})
			if tt.want == "!" {
				if err == nil || !strings.Contains(err.Error(), "no application protocol") {
					t.Errorf("%s, %v: %q, %v; want an alert", tt.host, tt.offered, state.NegotiatedProtocol, err)
				}
			} else if err != nil || state.NegotiatedProtocol != tt.want {
				t.Errorf("%s, %v: %q, %v; want %q", tt.host, tt.offered, state.NegotiatedProtocol, err, tt.want)
			}
		}
	})
	t.Run("names", func(t *testing.T) {
		if _, err := handshake(s.https, &tls.Config{}); err != nil {
			t.Errorf("no name: %v", err)
		}
		expect(t, openssl("", "-noservername", "-verify_hostname", "localhost"), "Verify return code: 0")
	})
	t.Run("a record too long", func(t *testing.T) {
		c := dialFrom(t, 0, s.https)
		c.SetDeadline(time.Now().Add(waitLimit))
		c.Write([]byte{22, 3, 1, 0xff, 0xff, 1, 0, 0, 0})
		if b, err := io.ReadAll(c); err != nil || len(b) > 0 && b[0] != 21 {
			t.Errorf("%x %v: want an alert", b, err)
		}
	})
}
