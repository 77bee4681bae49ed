//go:build linux

package e2e

import (
	"context"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/coder/websocket"

	"culvert.dev/pkg/relay"
)

// privateRelay starts one more private relay with a configuration of its own.
func (s *system) privateRelay(site, key string) *process {
	s.t.Helper()
	dir := tempDir(s.t)
	file := filepath.Join(dir, "private.toml")
	writeFile(s.t, file, s.privateTOML(site, s.https, key))
	return startRelay(s.t, "relay-private", "--config", file)
}

func (s *system) keygen(name string) (file, public string) {
	s.t.Helper()
	file = s.file(name)
	return file, strings.TrimSpace(run(s.t, exec.Command(command(s.t, "relay-private"), "keygen", file)))
}

// refused expects a private relay to give up, and both sides to say why.
func (s *system) refused(t *testing.T, p *process, mark int, private, public string) {
	t.Helper()
	if code := p.wait(t, waitLimit); code != 1 {
		t.Errorf("relay-private ended with %d, want 1: what cannot heal is not tried again", code)
	}
	if _, _, ok := p.find(0, private); !ok {
		p.dump(t)
		t.Errorf("relay-private does not say %q", private)
	}
	s.public.await(t, mark, public)
}

func TestTrust(t *testing.T) {
	t.Parallel()
	s := newSystem(t, service{"app", "https://app.example.com", "http://" + startSink(t)})

	t.Run("wrong key", func(t *testing.T) {
		other, _ := s.keygen("other.key")
		mark := s.public.lines()
		s.refused(t, s.privateRelay("office", other), mark, "bad-key", "bad-key")
	})
	t.Run("unknown site", func(t *testing.T) {
		mark := s.public.lines()
		s.refused(t, s.privateRelay("nowhere", s.file("office.key")), mark, "unknown-site", "unknown-site")
	})
	t.Run("wrong CA", func(t *testing.T) {
		// The system's authorities do not know the relay: it must not be talked to.
		file := filepath.Join(tempDir(t), "private.toml")
		config := s.privateTOML("office", s.https, s.file("office.key"))
		_, rest, _ := strings.Cut(config, "ca = ")
		_, after, _ := strings.Cut(rest, "\n")
		writeFile(t, file, config[:len(config)-len("ca = ")-len(rest)]+after)
		p := startRelay(t, "relay-private", "--config", file)
		p.await(t, 0, "certificate")
		p.stop()
		if _, _, ok := p.find(0, `"msg":"ready"`); ok {
			t.Error("a relay with an unknown certificate was trusted")
		}
	})
	t.Run("other wire version", func(t *testing.T) {
		for version, advice := range map[int]string{relay.WireVersion + 1: "update the public relay", relay.WireVersion - 1: "update the private relay"} {
			ctx := within(t, waitLimit)
			c, _, err := websocket.Dial(ctx, "wss://localhost"+relay.LinkPath, &websocket.DialOptions{HTTPClient: s.visitor()})
			if err != nil {
				t.Fatal(err)
			}
			defer c.CloseNow()
			hello := relay.Hello{Version: version, Site: "office", Key: s.key, Signature: make([]byte, 64)}
			if err := c.Write(ctx, websocket.MessageText, relay.Encode(hello)); err != nil {
				t.Fatal(err)
			}
			_, b, err := c.Read(ctx)
			if err != nil {
				t.Fatal(err)
			}
			w, err := relay.DecodeWelcome(b)
			if err != nil || w.Error == nil || w.Error.Code != relay.RefuseVersion || w.Error.Retry || !strings.Contains(w.Error.Message, advice) {
				t.Errorf("version %d: %s, %v", version, b, err)
			}
		}
		// The other way round: a public relay of tomorrow.
		newer := newerPublicRelay(t)
		file := filepath.Join(tempDir(t), "private.toml")
		writeFile(t, file, s.privateTOML("office", newer, s.file("office.key")))
		p := startRelay(t, "relay-private", "--config", file)
		if code := p.wait(t, waitLimit); code != 1 {
			t.Errorf("relay-private ended with %d, want 1", code)
		}
		p.await(t, 0, "update the private relay")
	})
	t.Run("publish outside of what is allowed", func(t *testing.T) {
		old := s.services
		defer func() { s.services = old }()
		s.services = append(s.services[:1:1], service{"evil", "https://app.other.org", "http://127.0.0.1:1"}, service{"port", "tcp://:19999", "tcp://127.0.0.1:1"})
		mark := s.public.lines()
		p := s.privateRelay("office", s.file("office.key"))
		for _, name := range []string{"evil", "port"} {
			p.await(t, 0, "service refused", name)
			s.public.await(t, mark, "service refused", name)
		}
		p.await(t, 0, "service up", `"app"`)
		if got := s.curl("-i", s.url("app", "/")); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("the allowed service:\n%s", got)
		}
		p.stop()
		s.public.await(t, mark, "site down")
	})
	t.Run("a site has one active relay", func(t *testing.T) {
		first := s.privateRelay("office", s.file("office.key"))
		first.await(t, 0, `"msg":"ready"`)
		second := s.privateRelay("office", s.file("office.key"))
		second.await(t, 0, `"msg":"ready"`, `"standby":true`)
		first.stop()
		second.await(t, 0, "active: the site's visitors come here")
		second.stop()
	})
}

// newerPublicRelay refuses every link as a public relay of a later version would.
func newerPublicRelay(t testing.TB) string {
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		c, err := websocket.Accept(w, r, nil)
		if err != nil {
			return
		}
		defer c.CloseNow()
		ctx, cancel := context.WithTimeout(r.Context(), 10*time.Second)
		defer cancel()
		if _, _, err := c.Read(ctx); err != nil {
			return
		}
		c.Write(ctx, websocket.MessageText, relay.Encode(relay.Welcome{Error: &relay.Refusal{
			Code: relay.RefuseVersion, Message: "the private relay is older than the public one: update the private relay",
		}}))
		c.Close(websocket.StatusPolicyViolation, "")
	}))
	srv.TLS = serverTLS(t)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func TestJoin(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	sink := startSink(t)
	invite := func(name string, more ...string) string {
		t.Helper()
		cmd := s.tunnelctl(append([]string{"site", "add", name, "--publish", "https://*.example.com"}, more...)...)
		token, err := cmd.Output() // the token alone
		if err != nil {
			t.Fatalf("tunnelctl site add: %v", err)
		}
		return strings.TrimSpace(string(token))
	}
	join := func(token, dir string) (string, error) {
		cmd := exec.Command(command(t, "relay-private"), "join", "--dir", dir)
		cmd.Env = append(os.Environ(), "CULVERT_TOKEN="+token, "SSL_CERT_FILE="+certFile("ca.pem"))
		out, err := cmd.CombinedOutput()
		return string(out), err
	}

	token := invite("branch")
	dir := filepath.Join(tempDir(t), "site")
	if out, err := join(token, dir); err != nil {
		t.Fatalf("join: %v\n%s", err, out)
	}
	if out, err := join(token, filepath.Join(tempDir(t), "again")); err == nil || !strings.Contains(out, "bad-token") {
		t.Errorf("a token joined twice: %v\n%s", err, out)
	}
	f, err := os.OpenFile(filepath.Join(dir, "private.toml"), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	f.WriteString("\n[[service]]\nname = \"app\"\npublish = \"https://branch.example.com\"\ntarget = \"http://" + sink + "\"\n")
	f.Close()
	cmd := exec.Command(command(t, "relay-private"), "--config", filepath.Join(dir, "private.toml"))
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+certFile("ca.pem"))
	p := start(t, "relay-private branch", cmd)
	p.await(t, 0, `"msg":"ready"`)
	if got := s.curl("-i", s.url("branch", "/")); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("the joined site:\n%s", got)
	}
	if out := run(t, s.tunnelctl("status")); !strings.Contains(out, "branch") || !strings.Contains(out, "connected") {
		t.Errorf("tunnelctl status:\n%s", out)
	}

	expired := invite("late", "--ttl", "1ms")
	if out, err := join(expired, filepath.Join(tempDir(t), "late")); err == nil || !strings.Contains(out, "bad-token") {
		t.Errorf("an expired token joined: %v\n%s", err, out)
	}
	if out, err := join("culvert-nonsense", filepath.Join(tempDir(t), "x")); err == nil {
		t.Errorf("nonsense joined:\n%s", out)
	}

	// The joined site outlives a restart of the public relay, and not its revocation.
	s.public.stop()
	mark := p.lines()
	s.startPublic()
	p.await(t, mark, "service up")
	mark = s.public.lines()
	run(t, s.tunnelctl("site", "revoke", "branch"))
	s.public.await(t, mark, "site down")
	if code := p.wait(t, waitLimit); code != 1 {
		t.Errorf("a revoked private relay ended with %d, want 1", code)
	}
	if _, _, ok := p.find(0, "revoked"); !ok {
		t.Error("the private relay does not say that it is revoked")
	}
	if got := s.curl("-i", s.url("branch", "/")); strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("the revoked site:\n%s", got)
	}
}
