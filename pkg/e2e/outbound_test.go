//go:build linux

package e2e

import (
	"bytes"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
)

// outboundProxy is a proxy of somebody else, on its way out of the closed network.
type outboundProxy struct {
	port  int
	start func(t testing.TB) *process
}

// tinyproxy allows CONNECT to one port, to those who have the login ("user password", or "" for everybody).
func tinyproxy(t testing.TB, port, login string) *outboundProxy {
	p := &outboundProxy{port: freePort(t)}
	conf := fmt.Sprintf("Port %d\nListen 127.0.0.1\nTimeout 600\nMaxClients 50\nLogLevel Warning\nAllow 127.0.0.1\nConnectPort %s\n", p.port, port)
	if login != "" {
		conf += "BasicAuth " + login + "\n"
	}
	file := tempDir(t) + "/tinyproxy.conf"
	writeFile(t, file, conf)
	p.start = func(t testing.TB) *process {
		return start(t, "tinyproxy", exec.Command(tool(t, "tinyproxy", "tinyproxy-bin"), "-d", "-c", file))
	}
	return p
}

// squid allows CONNECT to one port, as its usual configuration does for 443. It knows relay.example.com, which nobody
// else does.
func squid(t testing.TB, port string) *outboundProxy {
	p := &outboundProxy{port: freePort(t)}
	dir := tempDir(t)
	writeFile(t, dir+"/hosts", "127.0.0.1 localhost relay.example.com\n")
	writeFile(t, dir+"/squid.conf", fmt.Sprintf(`
http_port 127.0.0.1:%d
acl CONNECT method CONNECT
acl relay_port port %s
http_access deny CONNECT !relay_port
http_access allow all
hosts_file %s/hosts
access_log none
cache_log /dev/null
cache_store_log none
cache deny all
pid_filename none
shutdown_lifetime 0 seconds
coredump_dir %[3]s
`, p.port, port, dir))
	p.start = func(t testing.TB) *process {
		squid := start(t, "squid", exec.Command(tool(t, "squid", "squid", "/usr/sbin/squid"), "-N", "-d", "0", "-f", dir+"/squid.conf"))
		squid.abrupt = true
		return squid
	}
	return p
}

// microsocks speaks SOCKS5, to those who have the login ("user password", or "" for everybody).
func microsocks(t testing.TB, login string) *outboundProxy {
	p := &outboundProxy{port: freePort(t)}
	args := []string{"-i", "127.0.0.1", "-p", fmt.Sprint(p.port)}
	if user, password, ok := strings.Cut(login, " "); ok {
		args = append(args, "-u", user, "-P", password)
	}
	p.start = func(t testing.TB) *process {
		return start(t, "microsocks", exec.Command(tool(t, "microsocks", "microsocks"), args...))
	}
	return p
}

// run starts the proxy and waits for it.
func (p *outboundProxy) run(t testing.TB) *process {
	t.Helper()
	program := p.start(t)
	awaitPort(t, program, "tcp", fmt.Sprintf("127.0.0.1:%d", p.port))
	return program
}

// throughProxy starts the private relay with a proxy in its configuration.
func (s *system) throughProxy(url string) {
	s.t.Helper()
	s.options = fmt.Sprintf("proxy = %q\n", url)
	s.writePrivate()
	if err := os.Chmod(s.file("private.toml"), 0o600); err != nil {
		s.t.Fatal(err)
	}
	s.private = startRelay(s.t, "relay-private", "--config", s.file("private.toml"))
}

// TestOutboundProxy sends a site's links through proxies as companies have them. The proxy dies in mid-download, and
// the visitor notices nothing but a pause.
func TestOutboundProxy(t *testing.T) {
	t.Parallel()
	for name, tt := range map[string]struct {
		proxy func(t testing.TB, port string) *outboundProxy
		url   string
	}{
		"tinyproxy":              {func(t testing.TB, port string) *outboundProxy { return tinyproxy(t, port, "") }, "http://127.0.0.1:%d"},
		"tinyproxy, password":    {func(t testing.TB, port string) *outboundProxy { return tinyproxy(t, port, "site s3cret") }, "http://site:s3cret@127.0.0.1:%d"},
		"squid":                  {squid, "http://127.0.0.1:%d"},
		"microsocks":             {func(t testing.TB, _ string) *outboundProxy { return microsocks(t, "") }, "socks5://127.0.0.1:%d"},
		"microsocks, password":   {func(t testing.TB, _ string) *outboundProxy { return microsocks(t, "site s3cret") }, "socks5h://site:s3cret@127.0.0.1:%d"},
		"microsocks, not needed": {func(t testing.TB, _ string) *outboundProxy { return microsocks(t, "") }, "socks5://site:s3cret@127.0.0.1:%d"},
	} {
		t.Run(name, func(t *testing.T) {
			data := make([]byte, 24<<20)
			rand.Read(data)
			folder := tempDir(t)
			writeFile(t, folder+"/data", string(data))
			s := newSystem(t, service{"files", "https://files.example.com", "file://" + folder})
			_, port, _ := strings.Cut(s.https, ":")
			p := tt.proxy(t, port)
			program := p.run(t)
			s.throughProxy(fmt.Sprintf(tt.url, p.port))
			s.private.await(t, 0, `"msg":"ready"`)

			resp, err := s.visitor().Get("https://files.example.com/data")
			if err != nil {
				t.Fatal(err)
			}
			defer resp.Body.Close()
			got := make([]byte, len(data))
			if _, err := io.ReadFull(resp.Body, got[:1<<20]); err != nil {
				t.Fatal(err)
			}
			from := s.private.lines()
			program.kill()
			s.private.await(t, from, "link lost")
			s.private.await(t, from, "through the proxy", "it is not reached")
			p.run(t)
			if _, err := io.ReadFull(resp.Body, got[1<<20:]); err != nil {
				t.Fatal(err)
			}
			if !bytes.Equal(got, data) {
				t.Error("the file arrived wrong")
			}
			s.private.await(t, from, `"msg":"link up"`, `"resumed":true`)
			s.keepsSecret("s3cret")
		})
	}
}

// keepsSecret checks that nobody has logged a secret, or shows it to whoever lists processes.
func (s *system) keepsSecret(secret string) {
	s.t.Helper()
	for _, p := range []*process{s.private, s.public} {
		if line, _, ok := p.find(0, secret); ok {
			s.t.Errorf("%s logs the secret: %s", p.name, line)
		}
		if b, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", p.cmd.Process.Pid)); bytes.Contains(b, []byte(secret)) {
			s.t.Errorf("%s has the secret in its command line", p.name)
		}
	}
}

// TestOutboundProxyRefuses is told by proxies what is wrong, and says it with what to do.
func TestOutboundProxyRefuses(t *testing.T) {
	t.Parallel()
	s := newSystem(t, service{"blob", "https://blob.example.com", "http://127.0.0.1:9"})
	_, port, _ := strings.Cut(s.https, ":")
	locked, deny, limited, socks := tinyproxy(t, port, "site s3cret"), tinyproxy(t, "443", ""), squid(t, "443"), microsocks(t, "site s3cret")
	away := freeAddr(t)
	for _, p := range []*outboundProxy{locked, deny, limited, socks} {
		p.run(t)
	}
	at := func(p *outboundProxy) string { return fmt.Sprintf("127.0.0.1:%d", p.port) }
	for _, tt := range []struct{ url, want string }{
		{"http://" + at(locked), "it asks for a user and a password: put them into proxy"},
		{"http://site:wr0ng@" + at(locked), "it does not take the user and the password"},
		{"http://" + at(deny), "it does not allow CONNECT to the relay"},
		{"http://" + at(limited), "it does not allow CONNECT to the relay"},
		{"socks5://" + at(socks), "it asks for a user and a password: put them into proxy"},
		{"socks5://site:wr0ng@" + at(socks), "it does not take the user and the password"},
		{"http://" + away, "through the proxy http://" + away + ": it is not reached"},
		{"socks5://" + s.https, "is it a SOCKS5 proxy?"},
	} {
		s.throughProxy(tt.url)
		s.private.await(t, 0, `"msg":"no link, trying again"`, "through the proxy", tt.want)
		s.keepsSecret("wr0ng")
		s.private.kill()
	}
}

// TestJoinThroughProxy joins and runs in a network that reaches the relay, and knows its name, through a proxy alone.
func TestJoinThroughProxy(t *testing.T) {
	t.Parallel()
	dir := tempDir(t)
	writeFile(t, dir+"/public.toml", fmt.Sprintf(`
domain = "relay.example.com"
state  = "state"
[listen]
https = "127.0.0.1:0"
http  = ""
admin = "127.0.0.1:0"
[tls]
certificate = %q
key = %q
`, certFile("cert.pem"), certFile("key.pem")))
	public := startRelay(t, "relay-public", "--config", dir+"/public.toml")
	var ready struct{ HTTPS, Admin string }
	if err := json.Unmarshal([]byte(public.await(t, 0, `"msg":"ready"`)), &ready); err != nil {
		t.Fatal(err)
	}
	_, port, _ := strings.Cut(ready.HTTPS, ":")
	p := squid(t, port)
	program := p.run(t)
	proxy := fmt.Sprintf("http://127.0.0.1:%d", p.port)

	token, err := exec.Command(command(t, "tunnelctl"), "--admin", ready.Admin, "--state", dir+"/state",
		"site", "add", "office", "--publish", "https://files.example.com").Output()
	if err != nil {
		t.Fatal(err)
	}
	join := func(env ...string) (string, error) {
		cmd := exec.Command(command(t, "relay-private"), "join", "--token-file", "-", "--ca", certFile("ca.pem"), "--dir", dir+"/office")
		cmd.Stdin = bytes.NewReader(token)
		cmd.Env = append([]string{"PATH=" + os.Getenv("PATH")}, env...)
		out, err := cmd.CombinedOutput()
		return string(out), err
	}
	if out, err := join("NO_PROXY=relay.example.com", "HTTPS_PROXY="+proxy); err == nil {
		t.Errorf("joined without the proxy:\n%s", out)
	}
	if out, err := join("ALL_PROXY=http://u:s3cret@127.0.0.1:1"); err == nil || !strings.Contains(out, "through the proxy http://127.0.0.1:1: it is not reached") || strings.Contains(out, "s3cret") {
		t.Errorf("%v\n%s", err, out)
	}
	if out, err := join("ALL_PROXY=" + proxy); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	config, err := os.ReadFile(dir + "/office/private.toml")
	if err != nil || !strings.Contains(string(config), fmt.Sprintf("# proxy = %q", proxy)) {
		t.Errorf("%v\n%s", err, config)
	}

	folder := tempDir(t)
	writeFile(t, folder+"/hello", "hello")
	writeFile(t, dir+"/office/private.toml", strings.ReplaceAll(string(config), "# proxy =", "proxy =")+
		fmt.Sprintf("[[service]]\nname = \"files\"\npublish = \"https://files.example.com\"\ntarget = %q\n", "file://"+folder))
	private := startRelay(t, "relay-private", "--config", dir+"/office/private.toml")
	private.await(t, 0, `"msg":"ready"`)
	resp, err := visitorOf(t, ready.HTTPS).Get("https://files.example.com/hello")
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		t.Errorf("a visitor got %s", resp.Status)
	}
	from := private.lines()
	program.kill() // to see that it went that way
	private.await(t, from, "link lost")
}
