//go:build linux

package e2e

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
)

// startSOCKS runs tunnelctl socks, and returns where it listens.
func startSOCKS(t *testing.T, s *system, args ...string) (addr string, p *process) {
	t.Helper()
	cmd := s.tunnelctl(append([]string{"socks", "office", "127.0.0.1:0"}, args...)...)
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	cmd.Stdout = w
	p = start(t, "tunnelctl socks", cmd)
	w.Close()
	line := make([]byte, 200)
	n, err := r.Read(line)
	if err != nil {
		t.Fatalf("tunnelctl socks printed nothing: %v", err)
	}
	addr, rest, ok := strings.Cut(string(line[:n]), " -> ")
	if !ok || rest != "office (SOCKS 5)\n" {
		t.Fatalf("tunnelctl socks printed %q", line[:n])
	}
	return addr, p
}

// curl reaches what the site allows, by names that are looked up there, and nothing else; who has no login reaches nothing. What the site
// allows changes by SIGHUP.
func TestSOCKS(t *testing.T) {
	t.Parallel()
	curl := tool(t, "curl", "curl")
	var servers [2]*httptest.Server
	var ports [2]string
	for i := range servers {
		servers[i] = httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %d bytes", r.Method, r.Host, len(body))
		}))
		defer servers[i].Close()
		_, ports[i], _ = net.SplitHostPort(servers[i].Listener.Addr().String())
	}
	s := configure(t, nil, service{"none", "", "tcp://127.0.0.1:1"})
	// A rule for a name is about the name: whoever looks it up elsewhere comes with an address, which no rule is about.
	s.options = "[socks]\nallow = [\"localhost:" + ports[0] + "\", \"0.0.0.0/0:*\"]\n"
	s.startPublic()
	s.startPrivate()
	addr, p := startSOCKS(t, s)
	get := func(args ...string) (string, int) {
		t.Helper()
		cmd := exec.CommandContext(within(t, waitLimit), curl, append([]string{"-sS", "--noproxy", "", "--max-time", "60"}, args...)...)
		out, err := cmd.CombinedOutput()
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.Fatal(err)
		}
		return string(out), cmd.ProcessState.ExitCode()
	}
	const proxyFailed = 97 // CURLE_PROXY
	for _, test := range []struct {
		args []string
		want string
		code int
	}{
		{[]string{"--socks5-hostname", addr, "http://localhost:" + ports[0] + "/"}, "GET localhost:" + ports[0] + " 0 bytes", 0},
		{[]string{"--proxy", "socks5h://" + addr, "--data-binary", "@" + command(t, "tunnelctl"), "http://localhost:" + ports[0] + "/"}, "POST localhost", 0},
		{[]string{"--socks5", addr, "http://127.0.0.1:" + ports[0] + "/"}, "(2)", proxyFailed},
		{[]string{"--socks5-hostname", addr, "http://localhost:" + ports[1] + "/"}, "(2)", proxyFailed},
		{[]string{"--socks5-hostname", addr, "http://169.254.169.254/latest/meta-data/"}, "(2)", proxyFailed},
		{[]string{"--socks5-hostname", addr, "http://nobody.invalid:" + ports[0] + "/"}, "(4)", proxyFailed},
		{[]string{"--proxy", "http://" + addr, "http://localhost:" + ports[0] + "/"}, "this is a SOCKS proxy", 0},
		{[]string{"--socks4a", addr, "http://localhost:" + ports[0] + "/"}, "SOCKS", proxyFailed},
	} {
		if out, code := get(test.args...); code != test.code || !strings.Contains(out, test.want) {
			t.Errorf("curl %s: %d %s", strings.Join(test.args, " "), code, out)
		}
	}
	p.await(t, 0, "localhost:"+ports[1], "[socks] of its private.toml")
	p.await(t, 0, "takes this for an HTTP proxy", "--socks5-hostname")

	writeFile(t, s.file("login"), "me:s3cret\n")
	locked, _ := startSOCKS(t, s, "--login-file", s.file("login"))
	url := "http://localhost:" + ports[0] + "/"
	if out, code := get("--socks5-hostname", locked, url); code != proxyFailed {
		t.Errorf("without a login: %d %s", code, out)
	}
	if out, code := get("--socks5-hostname", locked, "--proxy-user", "me:wrong", url); code != proxyFailed {
		t.Errorf("with a wrong password: %d %s", code, out)
	}
	if out, code := get("--socks5-hostname", locked, "--proxy-user", "me:s3cret", url); code != 0 || !strings.HasPrefix(out, "GET localhost") {
		t.Errorf("with the login: %d %s", code, out)
	}

	s.options = "[socks]\nallow = \"127.0.0.1:" + ports[1] + "\"\n"
	s.writePrivate()
	from := s.private.lines()
	s.private.signal(t, syscall.SIGHUP)
	s.private.await(t, from, `"msg":"reloaded"`)
	if out, code := get("--socks5-hostname", addr, "http://localhost:"+ports[1]+"/"); code != 0 || !strings.HasPrefix(out, "GET localhost") {
		t.Errorf("what is allowed now: %d %s", code, out)
	}
	if out, code := get("--socks5-hostname", addr, url); code != proxyFailed {
		t.Errorf("what was allowed before: %d %s", code, out)
	}
	cmd := s.tunnelctl("socks", "office", "0.0.0.0:0")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "--login-file") {
		t.Errorf("socks for everybody: %v %s", err, out)
	}
	cmd = s.tunnelctl("socks", "nowhere", "0")
	if out, err := cmd.CombinedOutput(); err == nil || !strings.Contains(string(out), "nowhere") {
		t.Errorf("socks to a site that there is not: %v %s", err, out)
	}
}
