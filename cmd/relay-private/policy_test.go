package main

import (
	"encoding/json"
	"os"
	"testing"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
)

const bcryptHash = "$2y$05$CCCCCCCCCCCCCCCCCCCCC.E5YPO9kmyuRGyh0XouQYb4YMJKvyOeW"

func TestPolicy(t *testing.T) {
	keygen(t)
	t.Chdir(t.TempDir())
	write := func(name, text string, mode os.FileMode) {
		if err := os.WriteFile(name, []byte(text), mode); err != nil {
			t.Fatal(err)
		}
	}
	ca, err := auth.DevCA(".", "visitors")
	if err != nil {
		t.Fatal(err)
	}
	key, err := auth.GenerateKey("office.key")
	if err != nil || key == nil {
		t.Fatal(err)
	}
	write("users", "# others\nbob:"+bcryptHash+"\n", 0o640)
	write("private.toml", `
relay = "relay.example.com"
site  = "office"
key   = "office.key"

[[service]]
name    = "web"
publish = "https://web.example.com"
target  = "http://127.0.0.1:1"
allow   = ["192.0.2.0/24", "2001:db8::/32", "198.51.100.7"]
deny    = "192.0.2.7"
methods = ["GET", "POST"]
max_body = "10MB"
max_connections = 100
request_rate    = "100/s"
connection_rate = "20/m burst 5"
client_ca  = "ca.pem"
users      = { alice = "`+bcryptHash+`" }
users_file = "users"
request_headers  = { set = { X-Env = "prod" }, remove = ["Cookie"] }
hsts     = "180d; includeSubDomains"
redirect = false
[service.response_headers]
remove = ["Server"]
[service.response_headers.add]
X-Robots-Tag = "noindex"

[[service]]
name     = "db"
publish  = "tcp://:15432"
target   = "tcp://127.0.0.1:1"
allow    = "10.0.0.0/8"

[[service]]
name     = "open"
publish  = "https://open.example.com"
target   = "http://127.0.0.1:1"
redirect = true
max_body = 4_096
hsts     = "1h"
`, 0o600)
	s, err := load("private.toml")
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(ca.CA)
	if err != nil {
		t.Fatal(err)
	}
	minute := time.Minute
	want := &relay.Policy{
		MaxConnections: 100, ConnectionRate: relay.Rate{N: 20, Per: minute, Burst: 5}, RequestRate: relay.Rate{N: 100, Per: time.Second, Burst: 100},
		Methods: []string{"GET", "POST"}, MaxBody: 10_000_000, NoRedirect: true,
		HSTS: &relay.HSTS{MaxAge: 180 * 24 * 3600, IncludeSubDomains: true}, ClientCA: string(pem),
		Users:           map[string]string{"alice": bcryptHash, "bob": bcryptHash},
		RequestHeaders:  relay.HeaderRules{Set: map[string]string{"X-Env": "prod"}, Remove: []string{"Cookie"}},
		ResponseHeaders: relay.HeaderRules{Remove: []string{"Server"}, Add: map[string]string{"X-Robots-Tag": "noindex"}},
	}
	if err := json.Unmarshal([]byte(`["192.0.2.0/24", "2001:db8::/32", "198.51.100.7/32"]`), &want.Allow); err != nil {
		t.Fatal(err)
	}
	if err := json.Unmarshal([]byte(`["192.0.2.7/32"]`), &want.Deny); err != nil {
		t.Fatal(err)
	}
	for i, want := range []string{encode(want), `{"allow":["10.0.0.0/8"]}`, `{"max_body":4096,"hsts":{"max_age":3600}}`} {
		if got := encode(s.services[i].Policy); got != want {
			t.Errorf("%s:\n%s\nwant\n%s", s.services[i].Name, got, want)
		}
	}
}

func encode(p *relay.Policy) string {
	b, err := json.Marshal(p)
	if err != nil {
		panic(err)
	}
	return string(b)
}

func TestPolicyMistakes(t *testing.T) {
	keygen(t)
	const head = `relay = "relay.example.com"
site  = "office"
key   = "office.key"
[[service]]
name    = "web"
publish = "https://web.example.com"
target  = "http://127.0.0.1:1"
`
	for _, s := range []script{
		{
			name: "values",
			files: map[string]string{"private.toml": head + `allow = ["192.0.2.1/24", "::ffff:10.0.0.1"]
deny  = "example.com"
methods = []
max_connections = 0
max_body = 0
client_ca = "none.pem"
users = { alice = "secret" }
users_file = "users"
hsts = "half a year"
`, "users": "bob:" + bcryptHash + "\nbob:" + bcryptHash},
			stderr: `
private.toml:8:10: "192.0.2.1/24": has bits behind its length: did you mean 192.0.2.0/24?
private.toml:8:26: "::ffff:10.0.0.1": write an IPv4 address as one
private.toml:9:9: "example.com": want an address or a prefix, such as "192.0.2.0/24" or "2001:db8::/32"
private.toml:10:1: methods is empty, so nothing could be asked for: leave it out if everything may
private.toml:11:19: max_connections is 0, so nobody could come in: leave it out for no bound
private.toml:12:12: max_body is 0: leave it out for no bound, or name the methods that have no body
private.toml:13:13: client_ca: stat none.pem: no such file or directory
private.toml:14:19: user "alice": no hash of a password that is known: want argon2id ($argon2id$...), bcrypt ($2a$, $2b$, $2y$) or, for cameras, $digest$..., as ` + "`tunnelctl password` and `htpasswd -B`" + ` make them
private.toml:15:14: users_file: users, line 2: this user has a line above
private.toml:16:8: hsts "half a year": want a time such as "180d", or "180d; includeSubDomains"
`,
		},
		{
			name: "types",
			files: map[string]string{"private.toml": head + `request_rate = "100"
max_body = "10 apples"
users = "alice"
request_headers = { sett = { X-A = "b" } }
`},
			stderr: `
private.toml:8:16: service[0].request_rate: "100": want a rate such as "100/s", "20/m" or "20/m burst 50", with numbers from 1 to 1000000
private.toml:9:12: service[0].max_body: "10 apples" is not a size, such as "10MB", "64KiB" or a number of bytes
private.toml:10:9: service[0].users must be a table, not a string
private.toml:11:21: unknown key "sett" (did you mean "set"?)
`,
		},
		{
			name: "a field of the relays",
			files: map[string]string{"private.toml": head + `request_headers = { set = { X-Forwarded-For = "1.1.1.1" } }
`},
			stderr: `private.toml:8:47: request_headers.set.X-Forwarded-For: this field is the relays' own: it says where a message ends, or who the visitor is`,
		},
		{
			name: "what a port does not have",
			files: map[string]string{"private.toml": head + `
[[service]]
name    = "db"
publish = "tcp://:15432"
target  = "tcp://127.0.0.1:1"
methods = ["GET"]

[[service]]
name    = "ssh"
target  = "tcp://127.0.0.1:22"
allow   = "10.0.0.0/8"

[[service]]
name    = "plain"
publish = "http://web.example.com"
target  = "http://127.0.0.1:1"
hsts    = "1d"
`},
			stderr: `
private.toml:13:1: methods: is for http:// and https:// publishes, not tcp://
private.toml:18:11: allow: is for visitors, and the service has no publish
private.toml:24:11: hsts: needs TLS: publish https://`,
		},
	} {
		s.args = "--config private.toml --check"
		s.code = 2
		s.files["office.key"] = testKey
		t.Run(s.name, func(t *testing.T) { s.run(t) })
	}
	t.Run("a file for everybody", func(t *testing.T) {
		t.Chdir(t.TempDir())
		for name, text := range map[string]string{"private.toml": head + "users_file = \"users\"\n", "office.key": testKey} {
			if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.WriteFile("users", []byte("bob:"+bcryptHash), 0o644); err != nil {
			t.Fatal(err)
		}
		_, err := load("private.toml")
		if want := "private.toml:8:14: users_file: everybody may read users, and try passwords at leisure: run chmod o-r users"; err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	})
}
