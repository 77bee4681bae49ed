package main

import (
	"bytes"
	"crypto/ed25519"
	"crypto/sha256"
	"crypto/tls"
	"encoding/json"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
)

// joinServer is a public relay as far as join can tell. It takes one token.
type joinServer struct {
	t      *testing.T
	token  auth.Token
	asked  int
	key    string // that was registered
	status int    // if not 0, every answer
}

func (s *joinServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	s.asked++
	if s.status != 0 {
		w.WriteHeader(s.status)
		return
	}
	var in relay.JoinRequest
	if err := json.NewDecoder(r.Body).Decode(&in); err != nil || r.URL.Path != relay.JoinPath || r.Method != http.MethodPost {
		s.t.Errorf("%s %s: %v", r.Method, r.URL, err)
	}
	var out relay.JoinResponse
	if s.key != "" || !bytes.Equal(in.Secret, s.token.Secret) {
		w.WriteHeader(http.StatusForbidden)
		out.Error = &relay.Refusal{Code: relay.RefuseBadToken, Message: "the token is unknown, used or expired: ask for a new one"}
	} else {
		s.key = in.Key
		out.Site, out.Publish = s.token.Site, []string{"https://*.example.com", "tcp://:15000-15999"}
	}
	w.Write(relay.Encode(out))
}

// newJoinServer starts one with an authority of its own.
func newJoinServer(t *testing.T) *joinServer {
	files, err := auth.DevCA(t.TempDir(), "localhost")
	if err != nil {
		t.Fatal(err)
	}
	pair, err := tls.LoadX509KeyPair(files.Certificate, files.Key)
	if err != nil {
		t.Fatal(err)
	}
	s := &joinServer{t: t, token: auth.Token{Secret: bytes.Repeat([]byte{7}, 32), Pin: files.Pin, Site: "office"}}
	srv := httptest.NewUnstartedServer(s)
	srv.Config.ErrorLog = slog.NewLogLogger(slog.DiscardHandler, slog.LevelInfo)
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{pair}}
	srv.StartTLS()
	t.Cleanup(srv.Close)
	u, err := url.Parse(srv.URL)
	if err != nil {
		t.Fatal(err)
	}
	s.token.Relay = "localhost:" + u.Port()
	return s
}

// runJoin runs `relay-private join` and returns its exit code and what it printed.
func runJoin(t *testing.T, stdin io.Reader, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	code = command(t.Context(), append([]string{"join"}, args...), stdin, &out, &errs)
	return code, out.String(), errs.String()
}

// A join makes the key, registers its public half and writes a configuration that is good as it is.
func TestJoin(t *testing.T) {
	s := newJoinServer(t)
	dir := filepath.Join(t.TempDir(), "site")
	code, stdout, stderr := runJoin(t, nil, s.token.String(), "--dir", dir)
	if code != 0 || stderr != "" || !strings.Contains(stdout, `has joined `+s.token.Relay+` as site "office"`) {
		t.Fatalf("exit code %d\n%s%s", code, stdout, stderr)
	}
	if strings.Contains(stdout, s.token.String()) {
		t.Error("the token is printed")
	}
	for name, mode := range map[string]os.FileMode{"office.key": 0o600, "private.toml": 0o600, "ca.pem": 0o644} {
		if info, err := os.Stat(filepath.Join(dir, name)); err != nil || info.Mode().Perm() != mode {
			t.Errorf("%s: %v, want mode %v", name, err, mode)
		}
	}
	config, err := os.ReadFile(filepath.Join(dir, "private.toml"))
	if err != nil {
		t.Fatal(err)
	}
	want := `relay = "` + s.token.Relay + `"
site  = "office"
key   = "office.key"
ca    = "ca.pem"                       # who vouches for the relay's certificate

# This site may publish: https://*.example.com, tcp://:15000-15999
# A service is two URLs: where visitors come in, and where they end up. For example:
#
#   [[service]]
#   name    = "app"
#   publish = "https://app.example.com"
#   target  = "http://127.0.0.1:8080"
`
	if string(config) != want {
		t.Errorf("private.toml:\n%s\nwant:\n%s", config, want)
	}
	loaded, err := load(filepath.Join(dir, "private.toml"))
	if err != nil {
		t.Fatal(err)
	}
	if got := auth.FormatPublicKey(loaded.key.Public().(ed25519.PublicKey)); got != s.key {
		t.Errorf("registered %s, have %s", s.key, got)
	}

	// The example is good, too.
	if err := os.WriteFile(filepath.Join(dir, "private.toml"), []byte(strings.ReplaceAll(want, "#   ", "")), 0o600); err != nil {
		t.Fatal(err)
	}
	if loaded, err := load(filepath.Join(dir, "private.toml")); err != nil || len(loaded.services) != 1 {
		t.Errorf("the example: %v", err)
	}
}

// The token may come from places that other users of the machine cannot see.
func TestJoinToken(t *testing.T) {
	for name, give := range map[string]func(t *testing.T, token string) (stdin io.Reader, args []string){
		"environment": func(t *testing.T, token string) (io.Reader, []string) {
			t.Setenv("CULVERT_TOKEN", token)
			return nil, nil
		},
		"file": func(t *testing.T, token string) (io.Reader, []string) {
			file := filepath.Join(t.TempDir(), "token")
			if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
				t.Fatal(err)
			}
			return nil, []string{"--token-file", file}
		},
		"stdin": func(t *testing.T, token string) (io.Reader, []string) {
			return strings.NewReader(token + "\n"), []string{"--token-file", "-"}
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newJoinServer(t)
			stdin, args := give(t, s.token.String())
			if code, _, stderr := runJoin(t, stdin, append(args, "--dir", t.TempDir())...); code != 0 {
				t.Errorf("exit code %d\n%s", code, stderr)
			}
		})
	}
}

// Whatever goes wrong is said plainly, and leaves nothing behind.
func TestJoinErrors(t *testing.T) {
	for name, test := range map[string]struct {
		prepare func(s *joinServer, dir string)
		want    string // RELAY and DIR stand for the real ones
		code    int
	}{
		"used": {
			func(s *joinServer, _ string) { s.key = "used" },
			"relay-private: join RELAY: refused: the token is unknown, used or expired: ask for a new one (bad-token)", 1,
		},
		"another authority": {
			func(s *joinServer, _ string) { s.token.Pin = make([]byte, sha256.Size) },
			`relay-private: join RELAY: Post "https://RELAY/.culvert/join": the relay's certificate is not signed by the authority that the token names; is this the relay that made the token?`, 1,
		},
		"no pin": {
			func(s *joinServer, _ string) { s.token.Pin = nil },
			`relay-private: join RELAY: Post "https://RELAY/.culvert/join": tls: failed to verify certificate: x509: certificate signed by unknown authority: if the relay has a private CA, name it with --ca`, 1,
		},
		"no relay": {
			func(s *joinServer, _ string) { s.status = http.StatusNotFound },
			"relay-private: join RELAY: it answers 404 Not Found: is it a public relay?", 1,
		},
		"key exists": {
			func(s *joinServer, dir string) { os.WriteFile(filepath.Join(dir, "office.key"), nil, 0o600) },
			"relay-private: DIR/office.key exists already: nothing is overwritten; choose another --dir, or remove it if this site is to join anew", 1,
		},
	} {
		t.Run(name, func(t *testing.T) {
			s := newJoinServer(t)
			dir := t.TempDir()
			test.prepare(s, dir)
			before, _ := os.ReadDir(dir)
			code, _, stderr := runJoin(t, nil, s.token.String(), "--dir", dir)
			want := strings.NewReplacer("RELAY", s.token.Relay, "DIR", dir).Replace(test.want)
			if code != test.code || strings.TrimSpace(stderr) != want {
				t.Errorf("exit code %d\n%s\nwant %d\n%s", code, stderr, test.code, want)
			}
			if after, _ := os.ReadDir(dir); len(after) != len(before) {
				t.Errorf("left behind: %v", after)
			}
		})
	}
}

func TestJoinUsage(t *testing.T) {
	t.Setenv("CULVERT_TOKEN", "")
	for _, s := range []script{
		{name: "none", args: "join", stderr: "relay-private: no token: give it as the argument, in CULVERT_TOKEN, or with --token-file; `tunnelctl site add` on the public relay makes one", code: 2},
		{name: "no token", args: "join hello", stderr: "relay-private: token: want one that starts with cvt_", code: 2},
		{name: "damaged", args: "join cvt_AQa7", stderr: "relay-private: token: damaged; copy all of it, without line breaks", code: 2},
		{name: "twice", args: "join cvt_x --token-file y", stderr: "relay-private: the token is given twice: as an argument and with --token-file", code: 2},
	} {
		t.Run(s.name, s.run)
	}
}
