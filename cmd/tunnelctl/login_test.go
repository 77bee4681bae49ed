package main

import (
	"errors"
	"net/url"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"culvert.dev/pkg/admin"
)

// Somebody logs in, is asked from then on, makes operators and tokens, and logs out.
func TestLogin(t *testing.T) {
	f := startFake(t)
	dir := t.TempDir()
	t.Setenv("HOME", dir)
	t.Setenv("XDG_CONFIG_HOME", "")
	t.Setenv("CULVERT_CONTEXT", "")
	secret := func(who string) string {
		b, err := os.ReadFile(f.tokens[who])
		if err != nil {
			t.Fatal(err)
		}
		return strings.TrimSpace(string(b))
	}
	var out, errs string
	run := func(code int, stdin string, args ...string) {
		t.Helper()
		var got int
		if got, out, errs = tunnelctl(t.Context(), stdin, args...); got != code {
			t.Errorf("%v: exit code %d, want %d\n%s%s", args, got, code, out, errs)
		}
		for _, who := range []string{"admin", "viewer"} {
			if strings.Contains(out+errs, secret(who)) {
				t.Errorf("%v prints a token that it was given", args)
			}
		}
	}
	says := func(want ...string) {
		t.Helper()
		for _, w := range want {
			if !strings.Contains(out+errs, w) {
				t.Errorf("lacks %q:\n%s%s", w, out, errs)
			}
		}
	}

	run(0, "", "context")
	says("not logged in anywhere")
	_, err := os.Stat(filepath.Join(defaultState, "admin.token"))
	isElsewhere := errors.Is(err, os.ErrNotExist) // and not on a machine that has a relay
	if isElsewhere {
		run(3, "", "status")
		says("you are not logged in: `tunnelctl login --relay")
	}
	run(4, "", "logout")
	says("not logged in")
	run(3, "wrong\n", "login", "prod", "--admin", f.addr)
	says("does not accept the token")
	run(3, "cvt_abc\n", "login", "prod", "--admin", f.addr)
	says("join token", "relay-private join")
	run(2, "\n", "login", "prod", "--admin", f.addr)
	says("no token for")
	run(5, secret("admin")+"\n", "login", "prod", "--admin", f.foreign)
	says("not as the admin API")
	run(2, secret("admin")+"\n", "login", "a b", "--admin", f.addr)
	run(4, "", "--context", "prod", "status")
	says("login prod")

	run(0, secret("admin")+"\n", "login", "prod", "--admin", f.addr)
	says("logged in to prod as admin, admin, which never expires")
	run(0, secret("viewer")+"\n", "login", "looking", "--admin", f.addr)
	says("logged in to looking", "viewer, until ")
	file := filepath.Join(dir, ".config", "culvert", "relays.json")
	if info, err := os.Stat(file); err != nil || runtime.GOOS != "windows" && info.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", info, err)
	}
	run(0, "", "context")
	says("prod", "looking", "current")

	run(0, "", "status")
	says("relay.example.com")
	run(3, "", "operator", "list")
	says("operators/List needs the role admin", "operator role")
	run(0, "", "--context", "prod", "operator", "list")
	run(0, "", "context", "use", "prod")
	run(4, "", "context", "use", "prud")
	says(`did you mean "prod"?`)
	run(0, "", "whoami")
	says("admin, admin, at ")

	run(2, "", "operator", "add", "ann")
	says("--role is missing")
	run(2, "", "operator", "add", "ann", "--role", "root") // which the relay says
	says("viewer")
	run(0, "", "operator", "add", "ann", "--role", "operator")
	says("ann, operator, until", "tunnelctl login --admin "+f.addr+"\non this machine", ":"+f.addr+" relay.example.com ")
	if token := strings.TrimSpace(out); !strings.HasPrefix(token, "cvo_") || strings.Contains(token, "\n") {
		t.Errorf("stdout is not the token alone: %q", out)
	}
	run(1, "", "operator", "add", "ann", "--role", "operator")
	says("token create --operator")
	run(0, "", "operator", "role", "ann", "viewer")
	run(4, "", "operator", "role", "nobody", "viewer")
	says("operator list")
	run(0, "", "token", "create", "--operator", "ann", "--ttl", "1h", "--note", "a script")
	run(2, "", "token", "create", "--operator", "ann", "--role", "admin")
	says("above that of")
	run(2, "", "token", "create", "--ttl", "-1h")
	run(2, "", "token", "create", "--operator", "ann", "--ttl", "999999h")
	says("ten years")
	run(2, "", "operator", "role", "ann", "root")
	run(2, "", "site", "add", "x", "--publish", "tcp://:1", "--ttl", "999h")
	says("31 days")
	run(0, "", "token", "list")
	says("a script", "ann", "never")
	run(4, "", "token", "revoke", "00000000")
	says("token list")
	run(0, "", "operator", "remove", "ann")
	run(4, "", "audit")
	says("no audit log")
	run(2, "", "drain")
	says("--yes")
	run(4, "", "drain", "--yes")

	// A token that others may have seen is not used.
	if runtime.GOOS != "windows" {
		os.Chmod(file, 0o644)
		run(3, "", "status")
		says("chmod 600")
		os.Chmod(file, 0o600)
	}
	run(0, secret("admin")+"\n", "login", "third", "--admin", f.addr)
	run(0, "", "logout")
	says("logged out of third", "`tunnelctl context use NAME`", "prod, looking")
	if isElsewhere {
		run(3, "", "status")
		says("no relay is chosen: `tunnelctl context use NAME`", "prod, looking")
	}
	run(0, "", "context", "use", "prod")
	run(0, "", "logout", "--revoke", "looking")
	run(4, "", "--context", "looking", "status")
	run(3, secret("viewer")+"\n", "login", "looking", "--admin", f.addr)
	run(1, "", "logout", "--revoke", "prod")
	says("admin.token")
	run(0, "", "logout", "prod")
	run(0, "", "--json", "context")
	if strings.TrimSpace(out) != "[]" {
		t.Errorf("after the last logout: %s", out)
	}
}

// Whoever makes a token is told how it is used: by the domain, where the relay is reached by it.
func TestLoginHint(t *testing.T) {
	for _, test := range []struct{ base, login, want string }{
		{"http://127.0.0.1:7070", "https://relay.example.com:8443", "tunnelctl login --relay https://relay.example.com:8443"},
		{"https://relay.example.com", "", "tunnelctl login --relay https://relay.example.com"}, // of an older relay
	} {
		base, err := url.Parse(test.base)
		if err != nil {
			t.Fatal(err)
		}
		if got := loginHint(t.Context(), &admin.Client{Base: base}, admin.NewToken{Login: test.login}); got != test.want {
			t.Errorf("%+v: %q", test, got)
		}
	}
}

func TestKindOf(t *testing.T) {
	for _, test := range []struct{ name, text, want string }{
		{"x.toml", "domain = \"relay.example.com\"", "public"},
		{"x.toml", "# a comment\n[[site]]\nname = \"x\"\n", "public"},
		{"x.toml", "relay = \"relay.example.com\"\n[[service]]\n", "private"},
		{"public.toml", "", "public"},
		{"/etc/culvert/private.toml", "", "private"},
		{"x.toml", "", ""},
	} {
		if got := kindOf(test.name, []byte(test.text)); got != test.want {
			t.Errorf("%s %q: %q, want %q", test.name, test.text, got, test.want)
		}
	}
}
