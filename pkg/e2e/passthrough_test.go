//go:build linux

package e2e

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/pem"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// newSiteCertificate makes a certificate that nobody but a site has, and returns its files and the key's secret number.
func newSiteCertificate(t testing.TB) (cert, key string, secret []byte) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if secret, err = k.Bytes(); err != nil {
		t.Fatal(err)
	}
	cert, key = selfSigned(t, k, &k.PublicKey)
	if err := os.Chmod(key, 0o600); err != nil {
		t.Fatal(err)
	}
	return cert, key, secret
}

// startPassing starts both relays with a site that may publish names by tls://, and these [[service]] tables.
func startPassing(t testing.TB, tables string, services ...service) *system {
	t.Helper()
	s := configure(t, nil, services...)
	s.sites = siteTOML("office", s.key, append([]string{"tls://*.example.com"}, allowed...)...)
	s.startPublic()
	s.link = startFaultProxy(t, s.https)
	s.options = "drain_timeout = \"1s\"\n" + tables
	s.startPrivate()
	return s
}

// siteTable is a [[service]] whose TLS ends at the private relay.
func siteTable(name, publish, target, cert, key string) string {
	return fmt.Sprintf("[[service]]\nname = %q\npublish = %q\ntarget = %q\ncertificate = %q\ncertificate_key = %q\n", name, publish, target, cert, key)
}

// met is the SHA-256 of the certificate that openssl meets behind a name.
func (s *system) met(name string, args ...string) string {
	s.t.Helper()
	client := exec.Command(tool(s.t, "openssl", "openssl"), append([]string{"s_client", "-connect", s.https, "-servername", name}, args...)...)
	out, _ := client.Output()
	if !bytes.Contains(out, []byte("BEGIN CERTIFICATE")) {
		return "nobody"
	}
	return fingerprint(s.t, out)
}

// fingerprint is the SHA-256 of the first certificate in PEM.
func fingerprint(t testing.TB, text []byte) string {
	t.Helper()
	cmd := exec.Command(tool(t, "openssl", "openssl"), "x509", "-noout", "-fingerprint", "-sha256")
	cmd.Stdin = bytes.NewReader(text)
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("openssl x509: %v", err)
	}
	_, hash, _ := strings.Cut(strings.TrimSpace(string(out)), "=")
	return hash
}

func fileFingerprint(t testing.TB, name string) string {
	t.Helper()
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	return fingerprint(t, b)
}

// holds reports whether some bytes are in the memory of a process.
func holds(t testing.TB, p *process, secret []byte) bool {
	t.Helper()
	pid := p.cmd.Process.Pid
	maps, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", pid))
	if err != nil {
		t.Fatal(err)
	}
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", pid))
	if err != nil {
		t.Skipf("the memory of another process cannot be read: %v", err)
	}
	defer mem.Close()
	buf := make([]byte, 1<<20)
	for line := range strings.Lines(string(maps)) {
		var from, to int64
		var mode string
		if n, _ := fmt.Sscanf(line, "%x-%x %s", &from, &to, &mode); n != 3 || mode[0] != 'r' || mode[1] != 'w' {
			continue
		}
		for at := from; at < to; {
			n, err := mem.ReadAt(buf[:min(int64(len(buf)), to-at)], at)
			if bytes.Contains(buf[:n], secret) {
				return true
			}
			if err != nil && n == 0 {
				break
			}
			if n == len(buf) {
				n -= len(secret) // it may lie across
			}
			at += int64(n)
		}
	}
	return false
}

// TestPassThrough has visitors meet the TLS of a site, of its target or of its private relay, through a public relay that
// has neither key nor plaintext.
func TestPassThrough(t *testing.T) {
	t.Parallel()
	cert, key, secret := newSiteCertificate(t)
	pair, err := tls.LoadX509KeyPair(cert, key)
	if err != nil {
		t.Fatal(err)
	}
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{
		TLSConfig: &tls.Config{Certificates: []tls.Certificate{pair}},
		Handler:   http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { fmt.Fprintf(w, "%s %s", r.Proto, r.Host) }),
	}
	ended := make(chan struct{})
	go func() { srv.ServeTLS(ln, "", ""); close(ended) }()
	t.Cleanup(func() { srv.Close(); <-ended })
	folder, sum := randomFile(t, 20<<20)
	_, target := startTarget(t)

	s := startPassing(t,
		siteTable("files", "tls://files.example.com", "file://"+folder, cert, key)+
			siteTable("echo", "tls://echo.example.com", "tcp://"+target.Echo, cert, key)+
			siteTable("web", "tls://web.example.com", "http://"+target.HTTP, cert, key),
		service{"raw", "tls://raw.example.com", "tcp://" + ln.Addr().String()},
		service{"https", "https://https.example.com", "http://" + target.HTTP})
	_, port, _ := strings.Cut(s.https, ":")

	site, relay := fileFingerprint(t, cert), fileFingerprint(t, certFile("cert.pem"))
	for name, want := range map[string]string{"raw": site, "files": site, "echo": site, "https": relay, "nothing": relay} {
		for _, version := range []string{"-tls1_2", "-tls1_3"} {
			if got := s.met(name+".example.com", version); got != want {
				t.Errorf("%s, %s: certificate %s, want %s", name, version, got, want)
			}
		}
	}
	if out, err := s.curlCmd("--cacert", cert, s.url("web", "/")).CombinedOutput(); err != nil {
		t.Errorf("curl: %v\n%s", err, out)
	}
	for _, version := range []string{"--http1.1", "--http2"} {
		want := map[string]string{"--http1.1": "HTTP/1.1", "--http2": "HTTP/2.0"}[version] + " raw.example.com:" + port
		if got := s.curl("--cacert", cert, version, s.url("raw", "/")); got != want {
			t.Errorf("curl %s got %q, want %q", version, got, want)
		}
	}
	out, err := s.curlCmd("--cacert", certFile("ca.pem"), s.url("raw", "/")).CombinedOutput()
	if err == nil {
		t.Errorf("a certificate of the relay's authority for a name of the site: %s", out)
	}

	// What the visitor sends is nowhere in the public relay, nor is the key.
	marker := make([]byte, 32)
	rand.Read(marker)
	secretWord := hex.EncodeToString(marker)
	c, err := tls.Dial("tcp", s.https, &tls.Config{ServerName: "echo.example.com", InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, secretWord)
	if _, err := io.ReadFull(c, make([]byte, len(secretWord))); err != nil {
		t.Fatal(err)
	}
	if holds(t, s.public, []byte(secretWord)) {
		t.Error("the public relay has seen what a visitor sent")
	}
	if holds(t, s.public, secret) {
		t.Error("the public relay has the key of the site")
	}
	if !holds(t, s.private, secret) {
		t.Error("the key was not found where it must be: the search is wrong")
	}

	// A stream survives cuts of the link as any other does.
	done := make(chan string, 1)
	go func() {
		got, err := s.download("--cacert", cert, "--limit-rate", "8M")
		done <- fmt.Sprint(got, " ", err)
	}()
	var got string
	cuts := 0
	for mark := s.link.total() + 2<<20; got == ""; {
		select {
		case got = <-done:
		case <-time.After(10 * time.Millisecond):
			if cuts < 4 && s.link.total() >= mark {
				s.link.cut()
				cuts++
				mark = s.link.total() + 2<<20
			}
		}
	}
	if got != sum+" <nil>" || cuts == 0 {
		t.Errorf("a download across %d cuts: %s, want %s", cuts, got, sum)
	}

	// A new certificate is for new handshakes; who is connected stays so.
	renewed, renewedKey, _ := newSiteCertificate(t)
	for from, to := range map[string]string{renewed: cert, renewedKey: key} {
		b, err := os.ReadFile(from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(to, b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	lines := s.private.lines()
	s.private.signal(t, syscall.SIGHUP)
	s.private.await(t, lines, `"msg":"reloaded"`)
	if got := s.met("echo.example.com"); got != fileFingerprint(t, renewed) {
		t.Errorf("after the reload: certificate %s", got)
	}
	io.WriteString(c, secretWord)
	if _, err := io.ReadFull(c, make([]byte, len(secretWord))); err != nil {
		t.Errorf("a connection that was there before: %v", err)
	}

	// While the site is away, visitors are told by an alert.
	s.private.stop()
	out, err = s.curlCmd("--cacert", cert, "--retry", "10", "--retry-delay", "1", "--retry-all-errors", s.url("raw", "/")).CombinedOutput()
	if err == nil || !strings.Contains(string(out), "alert internal error") {
		t.Errorf("while the site is away: %v\n%s", err, out)
	}
}

// TestPassThroughCertificates has a private relay obtain certificates for itself, through a public relay that passes the
// authority's handshake through and has certificates of its own for other names.
func TestPassThroughCertificates(t *testing.T) {
	t.Parallel()
	a := startAuthority(t)
	_, target := startTarget(t)
	folder := tempDir(t)
	writeFile(t, folder+"/index.html", "from the site")
	s := configure(t, nil, service{"https", "https://https.example.com", "http://" + target.HTTP})
	s.sites = siteTOML("office", s.key, append([]string{"tls://*.example.com"}, allowed...)...)
	s.https = fmt.Sprintf("127.0.0.1:%d", a.tls)
	s.startPublic()
	const table = "[[service]]\nname = %q\npublish = \"tls://%s.example.com\"\ntarget = %q\ntls = \"acme\"\n"
	acme := fmt.Sprintf("drain_timeout = \"1s\"\nstate = \"site-state\"\n[acme]\nemail = \"ops@example.com\"\ndirectory = \"https://localhost:%d/dir\"\ndirectory_ca = %q\n", a.port, certFile("ca.pem"))
	s.options = acme + fmt.Sprintf(table, "files", "files", "file://"+folder)
	s.startPrivate()

	get := func(name string) (string, error) {
		out, err := s.curlCmd("--cacert", a.root, s.url(name, "/")).CombinedOutput()
		return string(out), err
	}
	eventuallyWithin(t, certLimit, "the first certificate", func() bool {
		out, err := get("files")
		return err == nil && out == "from the site"
	})
	// The key that it belongs to is at the site, and there alone.
	var secret []byte
	filepath.WalkDir(s.file("site-state"), func(path string, d os.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, "files.example.com.key") {
			b, _ := os.ReadFile(path)
			block, _ := pem.Decode(b)
			if k, err := x509.ParseECPrivateKey(block.Bytes); err == nil {
				secret, _ = k.Bytes()
			}
			if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
				t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
			}
		}
		return nil
	})
	if secret == nil {
		t.Fatal("there is no key in the site's state")
	}
	if holds(t, s.public, secret) {
		t.Error("the public relay has the key of the site")
	}
	if !holds(t, s.private, secret) {
		t.Error("the key was not found where it must be: the search is wrong")
	}

	// A name that is published later gets its own, and one that the public relay refuses none.
	s.options += fmt.Sprintf(table, "late", "late", "http://"+target.HTTP) + "[[service]]\nname = \"stranger\"\npublish = \"tls://stranger.example.org\"\ntarget = \"tcp://127.0.0.1:1\"\ntls = \"acme\"\n"
	s.writePrivate()
	lines := s.private.lines()
	s.private.signal(t, syscall.SIGHUP)
	s.private.await(t, lines, `"msg":"service refused"`, "stranger")
	eventuallyWithin(t, certLimit, "the certificate of a name that was published late", func() bool {
		_, err := get("late")
		return err == nil
	})
	if line, _, ok := s.private.find(0, "stranger.example.org", "certificate"); ok {
		t.Errorf("a certificate was ordered for a name that is not published: %s", line)
	}

	// What was obtained is there after a restart, without the authority.
	before := s.met("files.example.com")
	a.kill()
	s.private.stop()
	s.startPrivate()
	eventually(t, "the certificate after a restart", func() bool {
		out, err := get("files")
		return err == nil && out == "from the site"
	})
	if after := s.met("files.example.com"); after != before || before == "nobody" {
		t.Errorf("certificate %s after the restart, %s before", after, before)
	}
}
