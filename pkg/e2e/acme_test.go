//go:build linux

package e2e

import (
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// authority is Pebble, an ACME server, with the program that it finds names with.
type authority struct {
	*process
	t         testing.TB
	dir       string
	port      int
	admin     string // URL
	http, tls int    // ports of the relay that it asks
	root      string // file with the certificate that visitors trust
}

func startAuthority(t testing.TB) *authority {
	t.Helper()
	a := &authority{t: t, dir: tempDir(t), port: freePort(t), http: freePort(t), tls: freePort(t)}
	names, manage := freePort(t), freePort(t)
	a.admin = fmt.Sprintf("https://127.0.0.1:%d", manage)
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": fmt.Sprintf("127.0.0.1:%d", a.port), "managementListenAddress": fmt.Sprintf("127.0.0.1:%d", manage),
		"certificate": certFile("cert.pem"), "privateKey": certFile("key.pem"), "keyAlgorithm": "ecdsa",
		"httpPort": a.http, "tlsPort": a.tls, "retryAfter": map[string]int{"authz": 1, "order": 1},
		"profiles": map[string]any{"shortlived": map[string]any{"description": "six days", "validityPeriod": 6 * 24 * 3600}},
	}})
	if err != nil {
		t.Fatal(err)
	}
	writeFile(t, filepath.Join(a.dir, "pebble.json"), string(config))
	resolver := start(t, "challtestsrv", exec.Command(builtTool(t, "pebble-challtestsrv"), "-http01", "", "-https01", "", "-doh", "", "-tlsalpn01", "",
		"-dnsserver", fmt.Sprintf("127.0.0.1:%d", names), "-management", freeAddr(t), "-defaultIPv6", ""))
	awaitPort(t, resolver, "tcp", fmt.Sprintf("127.0.0.1:%d", names))
	cmd := exec.Command(builtTool(t, "pebble"), "-config", filepath.Join(a.dir, "pebble.json"), "-dnsserver", fmt.Sprintf("127.0.0.1:%d", names))
	cmd.Env = append(os.Environ(), "PEBBLE_VA_NOSLEEP=1", "PEBBLE_AUTHZREUSE=0", "PEBBLE_WFE_NONCEREJECT=5")
	a.process = start(t, "pebble", cmd)
	awaitPort(t, a.process, "tcp", fmt.Sprintf("127.0.0.1:%d", a.port))
	awaitPort(t, a.process, "tcp", fmt.Sprintf("127.0.0.1:%d", manage))
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: caPool()}, DisableKeepAlives: true}}
	resp, err := client.Get(a.admin + "/roots/0")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	pem, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	a.root = filepath.Join(a.dir, "root.pem")
	writeFile(t, a.root, string(pem))
	return a
}

// certified is a public relay that has its certificates from an authority.
type certified struct {
	t         testing.TB
	dir       string
	authority *authority
	public    *process
	admin     string
}

func (c *certified) file(name string) string { return filepath.Join(c.dir, name) }

func (c *certified) write(acme string) {
	writeFile(c.t, c.file("public.toml"), fmt.Sprintf(`
domain = "localhost"
state = "state"
[listen]
https = "127.0.0.1:%d"
http = "127.0.0.1:%d"
quic = ""
admin = %q
[acme]
email = "ops@example.com"
directory = "https://127.0.0.1:%d/dir"
directory_ca = %q
%s`, c.authority.tls, c.authority.http, c.admin, c.authority.port, certFile("ca.pem"), acme))
}

func (c *certified) start() {
	c.t.Helper()
	c.public = startRelay(c.t, "relay-public", "--config", c.file("public.toml"))
	c.public.await(c.t, 0, `"msg":"ready"`)
}

func (c *certified) tunnelctl(args ...string) (string, error) {
	cmd := exec.Command(command(c.t, "tunnelctl"), append([]string{"--admin", c.admin, "--state", c.file("state")}, args...)...)
	out, err := cmd.Output()
	return string(out), err
}

// curl asks for a host as somebody who trusts the authority and nobody else.
func (c *certified) curl(args ...string) (string, error) {
	base := []string{"--silent", "--show-error", "--max-time", "60", "--cacert", c.authority.root}
	for _, p := range []struct{ from, to int }{{443, c.authority.tls}, {80, c.authority.http}} {
		base = append(base, "--connect-to", fmt.Sprintf(":%d:127.0.0.1:%d", p.from, p.to))
	}
	// --connect-to HOST:PORT:…: an empty host is any.
	cmd := exec.Command(tool(c.t, "curl", "curl"), append(base, args...)...)
	cmd.Env = append(os.Environ(), "http_proxy=", "https_proxy=", "HTTPS_PROXY=", "ALL_PROXY=", "NO_PROXY=*")
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestCertificates is the whole product with certificates by themselves: a site joins by a token, publishes
// names, and visitors get in.
func TestCertificates(t *testing.T) {
	t.Parallel()
	a := startAuthority(t)
	c := &certified{t: t, dir: tempDir(t), authority: a, admin: freeAddr(t)}
	c.write("")
	c.start()

	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "hello "+r.Host) }))
	t.Cleanup(web.Close)

	// The token has to fit the relay's certificate, which comes within seconds.
	var token string
	eventuallyWithin(t, certLimit, "a join token", func() bool {
		out, err := c.tunnelctl("site", "add", "office", "--publish", "https://*.example.com")
		token = strings.TrimSpace(out)
		return err == nil
	})
	join := exec.Command(command(t, "relay-private"), "join", "--dir", c.file("office"))
	join.Env = append(os.Environ(), "CULVERT_TOKEN="+token)
	run(t, join)
	toml := c.file("office/private.toml")
	b, err := os.ReadFile(toml)
	if err != nil {
		t.Fatal(err)
	}
	publish := func(names ...string) string {
		text := string(b)
		for i, n := range names {
			text += fmt.Sprintf("\n[[service]]\nname = \"s%d\"\npublish = \"https://%s.example.com\"\ntarget = %q\n", i, n, web.URL)
		}
		return text
	}
	writeFile(t, toml, publish("app"))
	private := startRelay(t, "relay-private", "--config", toml)
	private.await(t, 0, `"msg":"ready"`)

	// The first visitor waits for the certificate in the handshake.
	began := time.Now()
	out, err := c.curl("https://app.example.com/")
	if err != nil && time.Since(began) > 5*time.Second {
		// That is about as long as the relay keeps a visitor.
		eventuallyWithin(t, certLimit, "the first certificate, on this machine", func() bool {
			out, err = c.curl("https://app.example.com/")
			return err == nil
		})
	}
	if err != nil || out != "hello app.example.com" {
		t.Fatalf("the first visitor: %v %s", err, out)
	}
	t.Logf("the first visitor of a name that was published just now had its answer after %v", time.Since(began).Round(time.Millisecond))

	if out, err := c.curl("--include", "http://app.example.com/x"); err != nil || !strings.Contains(out, " 301 ") {
		t.Errorf("in the clear: %v %s, want a redirect", err, out)
	}
	// Nothing is published there, and nobody gets a certificate for it.
	if out, err := c.curl("https://other.example.com/"); err == nil || !strings.Contains(out, "unrecognized name") {
		t.Errorf("a name that is not published: %v %s", err, out)
	}

	// One more name, while the relays run, and the other challenge, while the public one does.
	c.write("challenges = [\"tls-alpn-01\"]\nprofile = \"shortlived\"\n")
	mark := c.public.lines()
	c.public.signal(t, syscall.SIGHUP)
	c.public.await(t, mark, `"msg":"reloaded"`)
	writeFile(t, toml, publish("app", "late"))
	private.signal(t, syscall.SIGHUP)
	eventuallyWithin(t, certLimit, "the name that was published late", func() bool {
		out, err := c.curl("https://late.example.com/")
		return err == nil && out == "hello late.example.com"
	})
	out, err = c.tunnelctl("certificates")
	for _, want := range []string{"localhost", "app.example.com", "late.example.com", "good", "Pebble"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("tunnelctl certificates: %v\n%s\nlacks %q", err, out, want)
		}
	}

	out, err = c.tunnelctl("certificates", "renew", "app.example.com")
	if err != nil || !strings.Contains(out, "being ordered") {
		t.Errorf("tunnelctl certificates renew: %v %s", err, out)
	}
	eventuallyWithin(t, certLimit, "another certificate", func() bool {
		_, _, ok := c.public.find(0, `"msg":"certificate renewed"`, `"name":"app.example.com"`)
		return ok
	})

	// Killed while it orders, and started again: it goes on, with what it had.
	a.signal(t, syscall.SIGSTOP) // so that the order takes long
	writeFile(t, toml, publish("app", "late", "third"))
	private.signal(t, syscall.SIGHUP)
	eventually(t, "the order to begin", func() bool {
		out, _ := c.tunnelctl("certificates", "--json")
		var list []struct {
			Name     string
			Ordering bool
		}
		json.Unmarshal([]byte(out), &list)
		for _, one := range list {
			if one.Name == "third.example.com" && one.Ordering {
				return true
			}
		}
		return false
	})
	c.public.kill()
	a.signal(t, syscall.SIGCONT)
	c.start()
	for _, name := range []string{"app", "late", "third"} {
		eventuallyWithin(t, certLimit, name+" after a restart", func() bool {
			out, err := c.curl("https://" + name + ".example.com/")
			return err == nil && out == "hello "+name+".example.com"
		})
	}
	filepath.WalkDir(c.file("state/acme"), func(path string, d os.DirEntry, err error) error {
		if info, err := d.Info(); err != nil || info.Mode().Perm()&0o077 != 0 {
			t.Errorf("%s: mode %v, %v", path, info.Mode(), err)
		}
		return nil
	})
}

// certLimit bounds the wait for a certificate: a second attempt comes a minute after one that has failed.
const certLimit = 3 * waitLimit

// eventually looks until something is true.
func eventually(t testing.TB, what string, ok func() bool) {
	t.Helper()
	eventuallyWithin(t, waitLimit, what, ok)
}

// eventuallyWithin is eventually for what takes long.
func eventuallyWithin(t testing.TB, limit time.Duration, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(limit); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited in vain for %s", what)
		}
	}
}
