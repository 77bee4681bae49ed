//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/netem"
)

// service is one [[service]] of private.toml. {port} in publish is replaced by a free port.
type service struct{ name, publish, target string }

// system is a public relay, a private relay, and a link between them that tests can cut.
type system struct {
	t               testing.TB
	dir             string
	public, private *process
	https, http     string // addresses of the public relay's listeners
	rtsp, rtsps     string // of those for players of cameras; "": none
	tftp            string // the one for files, over UDP; "": none
	admin           string
	link            *faultProxy // nil: the private relay dials the public relay directly
	key             string      // the site's public key
	sites           string      // [[site]] tables of public.toml
	services        []service

	inside, outside *netem.Namespace  // of the private relay and of the public one and its visitors; nil: the test's own
	listen          string            // more lines of [listen] in public.toml
	options         string            // more lines of private.toml
	limits          string            // lines of [limits] in public.toml
	more            map[string]string // more lines of a [[service]], by its name

	certificate, certificateKey string // files of [tls]
}

// allowed is what the test site may publish.
var allowed = []string{"https://*.example.com", "http://*.example.com", "wss://*.example.com", "ws://*.example.com", "tcp://:20000-31999", "udp://:20000-31999"}

// startSystem starts both relays and waits until the session is up.
func startSystem(t testing.TB, services ...service) *system {
	t.Helper()
	s := newSystem(t, services...)
	s.link = startFaultProxy(t, s.https)
	s.startPrivate()
	return s
}

// startSystemDirect is startSystem without a fault proxy in the link.
func startSystemDirect(t testing.TB, services ...service) *system {
	t.Helper()
	s := newSystem(t, services...)
	s.startPrivate()
	return s
}

// newSystem makes the configuration and starts the public relay alone.
func newSystem(t testing.TB, services ...service) *system {
	t.Helper()
	s := configure(t, nil, services...)
	s.startPublic()
	return s
}

// startSystemOver starts both relays at the ends of an emulated link. Options are lines of
// private.toml.
func startSystemOver(t testing.TB, l *netem.Link, options string, services ...service) *system {
	t.Helper()
	s := configure(t, l, services...)
	s.options = options
	s.startPublic()
	s.startPrivate()
	return s
}

// configure makes the configuration, but for private.toml, and starts nothing.
func configure(t testing.TB, l *netem.Link, services ...service) *system {
	t.Helper()
	s := &system{t: t, dir: tempDir(t), services: services}
	for i := range s.services {
		if strings.Contains(s.services[i].publish, "{port}") {
			s.services[i].publish = strings.ReplaceAll(s.services[i].publish, "{port}", fmt.Sprint(freePort(t)))
		}
	}
	s.key = strings.TrimSpace(run(t, exec.Command(command(t, "relay-private"), "keygen", s.file("office.key"))))
	if !strings.HasPrefix(s.key, "ed25519:") {
		t.Fatalf("keygen printed %q", s.key)
	}
	// Not any port: a relay that is started again gets the same ones, and the kernel gives none of these to others meanwhile.
	s.http, s.admin = freeAddr(t), freeAddr(t)
	host := "127.0.0.1"
	if l != nil {
		s.inside, s.outside, host = l.Inside, l.Outside, "0.0.0.0"
	}
	s.https = fmt.Sprintf("%s:%d", host, freePort(t)) // QUIC has the same one
	s.sites = siteTOML("office", s.key, allowed...)
	s.limits = "handshakes_per_address = 10000000" // all visitors have a few addresses
	s.certificate, s.certificateKey = certFile("cert.pem"), certFile("key.pem")
	return s
}

func (s *system) file(name string) string { return filepath.Join(s.dir, name) }

// siteTOML is a [[site]] of public.toml.
func siteTOML(name, key string, publish ...string) string {
	list, _ := json.Marshal(publish)
	return fmt.Sprintf("[[site]]\nname = %q\nkey = %q\npublish = %s\n", name, key, list)
}

// writePublic writes public.toml. After the first start it names the ports that the relay
// has got.
func (s *system) writePublic() {
	players := ""
	if s.rtsp != "" {
		players = fmt.Sprintf("rtsp = %q\nrtsps = %q\n", s.rtsp, s.rtsps)
	}
	writeFile(s.t, s.file("public.toml"), fmt.Sprintf(`
domain = "localhost"
state  = "state"
[listen]
https = %q
http  = %q
admin = %q
%s%s
[limits]
%s
[tls]
certificate = %q
key = %q
%s`, s.https, s.http, s.admin, players, s.listen, s.limits, s.certificate, s.certificateKey, s.sites))
}

// startPublic starts the public relay and learns its addresses.
func (s *system) startPublic() {
	s.t.Helper()
	s.writePublic()
	s.public = startRelayIn(s.t, s.outside, "relay-public", "--config", s.file("public.toml"))
	var ready struct{ HTTPS, HTTP, Admin, RTSP, RTSPS, TFTP string }
	line := s.public.await(s.t, 0, `"msg":"ready"`)
	if err := json.Unmarshal([]byte(line), &ready); err != nil {
		s.t.Fatalf("%s: %v", line, err)
	}
	// What listens on every address says so for both families.
	s.https, s.http, s.admin = strings.Replace(ready.HTTPS, "[::]", "0.0.0.0", 1), ready.HTTP, ready.Admin
	s.rtsp, s.rtsps, s.tftp = ready.RTSP, ready.RTSPS, ready.TFTP
}

// writePrivate writes private.toml.
func (s *system) writePrivate() {
	s.t.Helper()
	writeFile(s.t, s.file("private.toml"), s.privateTOML("office", s.relay(), s.file("office.key")))
	if err := os.Chmod(s.file("private.toml"), 0o600); err != nil { // there may be passwords in it
		s.t.Fatal(err)
	}
}

// relay is what the private relay dials.
func (s *system) relay() string {
	switch {
	case s.link != nil:
		return s.link.addr
	case s.outside != nil:
		_, port, _ := strings.Cut(s.https, ":")
		return s.outside.Addr().String() + ":" + port
	}
	return s.https
}

func (s *system) privateTOML(site, relay, key string) string {
	relay = strings.ReplaceAll(relay, "127.0.0.1:", "localhost:")
	var b strings.Builder
	fmt.Fprintf(&b, "relay = %q\nsite = %q\nkey = %q\nca = %q\n%s\n", relay, site, key, certFile("ca.pem"), s.options)
	for _, v := range s.services {
		fmt.Fprintf(&b, "[[service]]\nname = %q\ntarget = %q\n", v.name, v.target)
		if v.publish != "" {
			fmt.Fprintf(&b, "publish = %q\n", v.publish)
		}
		b.WriteString(s.more[v.name])
	}
	return b.String()
}

// startPrivate starts the private relay and waits until its session is up.
func (s *system) startPrivate() {
	s.t.Helper()
	s.writePrivate()
	s.private = startRelayIn(s.t, s.inside, "relay-private", "--config", s.file("private.toml"))
	s.private.await(s.t, 0, `"msg":"ready"`)
}

// port returns the address that a service of the system is published at over tcp or udp.
func (s *system) port(name string) string {
	for _, v := range s.services {
		if v.name == name {
			_, port, _ := strings.Cut(v.publish, "://")
			return "127.0.0.1" + port
		}
	}
	panic("BUG: no service " + name)
}

// url is the https URL of a path of a virtual host at the public relay's port.
func (s *system) url(host, path string) string {
	_, port, _ := strings.Cut(s.https, ":")
	return "https://" + host + ".example.com:" + port + path
}

// curl runs curl as a visitor and returns what it printed on its standard output.
func (s *system) curl(args ...string) string {
	s.t.Helper()
	var out []byte
	err := s.outside.Do(func() (err error) {
		out, err = s.curlCmd(args...).Output()
		return err
	})
	if err != nil {
		s.t.Fatalf("curl %s: %v\n%s", strings.Join(args, " "), err, out)
	}
	return string(out)
}

// curlCmd is a curl that finds every host of example.com at the public relay.
func (s *system) curlCmd(args ...string) *exec.Cmd {
	s.t.Helper()
	base := []string{
		"--silent", "--show-error", "--http1.1", "--max-time", "300", "--cacert", certFile("ca.pem"),
		"--connect-to", "::127.0.0.1:" + s.https[strings.IndexByte(s.https, ':')+1:],
	}
	cmd := exec.Command(tool(s.t, "curl", "curl"), append(base, args...)...)
	cmd.Env = append(os.Environ(), "http_proxy=", "https_proxy=", "HTTPS_PROXY=", "ALL_PROXY=", "NO_PROXY=*")
	return cmd
}

// visitor is an HTTP client that finds every host at the public relay.
func (s *system) visitor() *http.Client {
	return visitorIn(s.t, s.outside, s.https)
}

// tunnelctl runs the operators' command.
func (s *system) tunnelctl(args ...string) *exec.Cmd {
	s.t.Helper()
	cmd := exec.Command(command(s.t, "tunnelctl"), append([]string{"--admin", s.admin, "--state", s.file("state")}, args...)...)
	cmd.Env = append(os.Environ(), "XDG_CONFIG_HOME="+s.file("config")) // the keys of other tests' sites are others
	return cmd
}

// inShell is a tunnelctl as the line of a shell.
func (s *system) inShell(cmd *exec.Cmd) string {
	return "env XDG_CONFIG_HOME=" + s.file("config") + " " + strings.Join(cmd.Args, " ")
}

// token is the operators' token.
func (s *system) token() string {
	s.t.Helper()
	b, err := os.ReadFile(s.file("state/admin.token"))
	if err != nil {
		s.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

// adminGet fetches a page of the public relay's admin listener.
func (s *system) adminGet(path string) string {
	s.t.Helper()
	req, _ := http.NewRequestWithContext(s.t.Context(), "GET", "http://"+s.admin+path, nil)
	req.Header.Set("Authorization", "Bearer "+s.token())
	c := visitorIn(s.t, s.outside, s.admin)
	c.Timeout = time.Minute
	resp, err := c.Do(req)
	if err != nil {
		s.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != 200 {
		s.t.Fatalf("GET %s: %v %v\n%s", path, resp.Status, err, b)
	}
	return string(b)
}
