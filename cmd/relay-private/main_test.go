package main

import (
	"bytes"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// script runs the command in a fresh folder with the files and checks everything that it prints.
type script struct {
	name   string
	files  map[string]string
	args   string // separated by spaces
	stdout string
	stderr string
	code   int
}

func (s script) run(t *testing.T) {
	t.Chdir(t.TempDir())
	for name, text := range s.files {
		if err := os.WriteFile(name, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var stdout, stderr bytes.Buffer
	code := command(t.Context(), strings.Fields(s.args), strings.NewReader(""), &stdout, &stderr)
	if code != s.code {
		t.Errorf("exit code %d, want %d", code, s.code)
	}
	for _, out := range []struct{ name, got, want string }{{"stdout", stdout.String(), s.stdout}, {"stderr", stderr.String(), s.stderr}} {
		if strings.TrimSpace(out.got) != strings.TrimSpace(out.want) {
			t.Errorf("%s:\n%s\nwant:\n%s", out.name, out.got, out.want)
		}
	}
}

func TestCheck(t *testing.T) {
	keygen(t)
	for _, s := range []script{
		{
			name: "good",
			args: "--config private.toml --check",
			files: map[string]string{"private.toml": `
relay = "relay.example.com"
site  = "office"
key   = "office.key"

[[service]]
name    = "intranet"
publish = "https://intranet.example.com"
target  = "http://127.0.0.1:8080"

[[service]]
name   = "ssh-jump"
target = "tcp://10.0.0.9:22"
`},
			stdout: "ok",
		},
		{
			name:  "empty",
			args:  "--config private.toml --check",
			files: map[string]string{"private.toml": ""},
			stderr: `
private.toml: relay is missing: the public relay's address, such as "relay.example.com"
private.toml: site is missing: the name that the public relay knows this network by
private.toml: key is missing: the file made by ` + "`relay-private join` or `relay-private keygen`",
			code: 2,
		},
		{
			name: "every mistake at once",
			args: "--config private.toml --check",
			files: map[string]string{"private.toml": `relay = ["relay.example.com", "https://relay.example.org", "relay.example.com:443"]
site  = "the office"
key   = "none.key"
ca    = "office.key"
transport = "carrier pigeon"
links = 9

[[service]]
nmae    = "one"
publish = "tftp://cams.example.com/gate"
target  = "ftp://10.0.0.6:554"

[[service]]
name    = "two"
publish = "https://two.example.com"
target  = "http://127.0.0.1:8080/path"

[[service]]
name    = "two"
publish = "https://two.example.com"
target  = "file:///no/such/folder"

[[service]]
name    = "db"
publish = "tcp://:15432"
target  = "http://127.0.0.1:1"
ca      = "office.key"

[[service]]
name    = "web"
publish = "https://web.example.com"
target  = "http://127.0.0.1:1"
proxy_protocol = 2
`},
			stderr: `
private.toml:1:31: relay "https://relay.example.org": want HOST or HOST:PORT, not a URL
private.toml:1:60: relay "relay.example.com:443" is listed twice
private.toml:2:9: site name "the office": want letters, digits, '.', '-' and '_', starting with a letter or digit
private.toml:3:9: key file: open none.key: no such file or directory
private.toml:4:9: ca: office.key holds no PEM certificate
private.toml:5:13: transport "carrier pigeon" is none of auto, wss, quic
private.toml:6:9: links 9: want 1 to 8
private.toml:8:3: service without a name
private.toml:9:1: unknown key "nmae" (did you mean "name"?)
private.toml:10:11: publish "tftp://cams.example.com/gate": want the path after three slashes, tftp:///boot: TFTP clients do not say which host they mean, and the public relay's tftp listener has the port
private.toml:11:11: target "ftp://10.0.0.6:554": ftp is not supported by this version
private.toml:16:11: service "two": target "http://127.0.0.1:8080/path": leave the path out: the visitor's path reaches the target as it is
private.toml:19:11: service "two" is defined twice
private.toml:20:11: publish "https://two.example.com" is taken by service "two"
private.toml:21:11: target "file:///no/such/folder": stat /no/such/folder: no such file or directory
private.toml:25:11: service "db": a tcp:// publish needs a tcp:// or unix:// target, not http://
private.toml:27:11: ca is for https://, h2:// and rtsps:// targets, and https:// snapshots
private.toml:27:11: ca: office.key holds no PEM certificate
private.toml:31:11: service "web": proxy_protocol is for tcp://, tls:// and udp:// publishes: visitors share the connections to an HTTP target, and X-Forwarded-For has their addresses`,
			code: 2,
		},
		{
			name:   "quic",
			args:   "--config private.toml --check",
			files:  map[string]string{"private.toml": "relay = \"r\"\nsite = \"s\"\nkey = \"office.key\"\ntransport = \"quic\"\n"},
			stdout: "ok",
		},
		{
			name:   "quic has one link",
			args:   "--config private.toml --check",
			files:  map[string]string{"private.toml": "relay = \"r\"\nsite = \"s\"\nkey = \"office.key\"\ntransport = \"quic\"\nlinks = 2\n"},
			stderr: `private.toml:5:9: links are WebSocket links: transport "quic" has one link for everything`,
			code:   2,
		},
		{
			name:   "quic through a proxy",
			args:   "--config private.toml --check",
			files:  map[string]string{"private.toml": "relay = \"r\"\nsite = \"s\"\nkey = \"office.key\"\ntransport = \"quic\"\nproxy = \"http://proxy:3128\"\n"},
			stderr: `private.toml:4:13: transport "quic": the way out is a proxy, which carries no QUIC; use "auto" or "wss"`,
			code:   2,
		},
		{
			name:   "no file",
			args:   "--config private.toml --check",
			stderr: "relay-private: stat private.toml: no such file or directory",
			code:   2,
		},
		{
			name:   "flags instead of a file",
			args:   "--relay relay.example.com --site office --key office.key --publish https://app.example.com=http://127.0.0.1:8080 --publish tcp://:15432=tcp://10.0.0.5:5432 --check",
			stdout: "ok",
		},
		{
			name: "a password in the flags",
			args: "--relay relay.example.com --site office --key office.key --publish rtsp://a:hunter2@10.0.0.20 --publish rtsp://cams.example.com=rtsp://a:hunter2@10.0.0.20/h264 --check",
			stderr: `
command line: --publish "…": want URL=TARGET, such as https://app.example.com=http://127.0.0.1:8080
command line: --publish rtsp://cams.example.com=rtsp://…@10.0.0.20:554/h264: everybody on this machine sees the password of a command line: use a file, with --config`,
			code: 2,
		},
		{
			name: "addresses that are taken",
			args: "--config private.toml --check",
			files: map[string]string{"private.toml": `relay = "r"
site = "s"
key = "office.key"
service = [
	{ name = "a", publish = "rtsp://h.test/p", target = "rtsp://10.0.0.1" },
	{ name = "b", publish = "https://h.test/p", target = "http://10.0.0.1" },
	{ name = "c", publish = "ws://h.test/p", target = "http://10.0.0.1" },
	{ name = "d", publish = "rtsps://h.test/q", target = "rtsp://10.0.0.1" },
	{ name = "e", publish = "http://h.test/q", target = "http://10.0.0.1" },
	{ name = "f", publish = "rtsp://h.test/q", target = "rtsp://10.0.0.1" },
	{ name = "g", publish = "tcp://:0", target = "tcp://10.0.0.1:1" },
	{ name = "h", publish = "tcp://:0", target = "tcp://10.0.0.1:1" },
]
`},
			stderr: `
private.toml:6:26: publish "https://h.test/p" is taken by service "a"
private.toml:7:26: publish "ws://h.test/p" is taken by service "a"
private.toml:10:26: publish "rtsp://h.test/q" is taken by service "d"`,
			code: 2,
		},
		{
			name: "files",
			args: "--config private.toml --check",
			files: map[string]string{"private.toml": `relay = "r"
site = "s"
key = "office.key"
service = [
	{ name = "a", publish = "tftp:///boot/", target = "tftp://10.0.0.7/boot", write = true, max_size = "64MiB" },
	{ name = "b", publish = "tftp:///", target = "tftp://10.0.0.7", write = "new", cache = false, allow = "192.0.2.0/24", max_connections = 9, connection_rate = "1/s" },
	{ name = "c", publish = "tftp:///boot/x86", target = "https://10.0.0.8/images/", write = false },
	{ name = "d", publish = "tftp:///tmp", target = "file:///tmp", write = "replace", ignore_case = true },
]
`},
			stdout: "ok",
		},
		{
			name:   "listen",
			args:   "--config private.toml --check",
			files:  map[string]string{"private.toml": "relay = \"r\"\nsite = \"s\"\nkey = \"office.key\"\n[listen]\ntftp = \":69\"\ntftp_ports = \"40000-40999\"\n"},
			stdout: "ok",
		},
		{
			name:   "listen nowhere",
			args:   "--config private.toml --check",
			files:  map[string]string{"private.toml": "relay = \"r\"\nsite = \"s\"\nkey = \"office.key\"\n[listen]\ntftp_ports = \"40000-40999\"\n"},
			stderr: "private.toml:5:14: tftp_ports: listen.tftp is missing, where requests come in",
			code:   2,
		},
		{
			name:   "listen, no port",
			args:   "--config private.toml --check",
			files:  map[string]string{"private.toml": "relay = \"r\"\nsite = \"s\"\nkey = \"office.key\"\n[listen]\ntftp = \"69\"\n"},
			stderr: "private.toml:5:8: listen.tftp \"69\": want HOST:PORT or :PORT, such as \"192.0.2.1:69\"",
			code:   2,
		},
		{
			name:   "listen twice",
			args:   "--config private.toml --check",
			files:  map[string]string{"private.toml": "relay = \"r\"\nsite = \"s\"\nkey = \"office.key\"\n[listen]\ntftp = \":69\"\ntftp_ports = \"60-79\"\n"},
			stderr: "private.toml:6:14: tftp_ports: the port of listen.tftp is in the range",
			code:   2,
		},
		{
			name: "files, wrong",
			args: "--config private.toml --check",
			files: map[string]string{"private.toml": `relay = "r"
site = "s"
key = "office.key"
service = [
	{ name = "a", publish = "tftp:///boot", target = "tftp://10.0.0.7", write = "append", max_size = 9 },
	{ name = "b", publish = "tftp:///boot/", target = "file:///no/such/folder", ignore_case = true },
	{ name = "c", publish = "tftp:///c", target = "http://10.0.0.8", write = "new", ignore_case = true },
	{ name = "d", publish = "https://h.test", target = "http://10.0.0.8", write = false, max_size = 1, cache = true, ignore_case = false },
	{ name = "e", target = "tftp://10.0.0.7" },
	{ name = "f", publish = "tftp:///f", target = "udp://10.0.0.7:69", write = true, max_size = 0 },
	{ name = "g", publish = "tftp:///g", target = "tftp://10.0.0.7", methods = ["GET"], fan_out = true, proxy_protocol = 2 },
]
`},
			stderr: `
private.toml:5:78: write "append" is none of false, true, "new", "replace"
private.toml:6:26: publish "tftp:///boot/" is taken by service "a"
private.toml:6:52: target "file:///no/such/folder": stat /no/such/folder: no such file or directory
private.toml:7:26: service "c": write is for file:// and tftp:// targets: an http:// target is only read from
private.toml:7:96: ignore_case is for file:// targets, not http://: others look files up themselves
private.toml:8:80: write is for tftp:// publishes
private.toml:8:98: max_size is for tftp:// publishes
private.toml:8:109: cache is for tftp:// publishes
private.toml:8:129: ignore_case is for tftp:// publishes
private.toml:9:2: service "e": a tftp:// target needs a tftp:// publish: the relays carry files there, and no datagrams
private.toml:10:26: service "f": a tftp:// publish needs a file://, tftp://, http:// or https:// target, not udp://
private.toml:10:94: max_size 0: want bytes, such as "64MiB"; write = false has nobody write at all
private.toml:11:26: service "g": proxy_protocol is for tcp://, tls:// and udp:// publishes: it is this relay that asks for files
private.toml:11:67: methods: is for http:// and https:// publishes, not tftp://
private.toml:11:96: fan_out is for rtsp:// and rtsps:// targets, not tftp://`,
			code: 2,
		},
		{
			name: "inspect",
			args: "--config private.toml --check",
			files: map[string]string{"private.toml": `relay = "r"
site = "s"
key = "office.key"
service = [
	{ name = "a", publish = "https://a.test", target = "http://10.0.0.7", inspect = true },
	{ name = "b", publish = "wss://b.test", target = "http://10.0.0.7", inspect = true },
	{ name = "c", publish = "tcp://:1000", target = "tcp://10.0.0.7:1", inspect = true },
	{ name = "d", target = "http://10.0.0.7", inspect = true },
	{ name = "e", publish = "rtsp://e.test", target = "rtsp://10.0.0.7", inspect = true },
	{ name = "f", publish = "tls://f.test", target = "https://10.0.0.7", inspect = true },
	{ name = "g", publish = "tcp://:1001", target = "tcp://10.0.0.7:1", inspect = false },
]
`},
			stderr: `
private.toml:7:80: service "c": inspect is for http:// and https:// publishes
private.toml:8:54: service "d": inspect is for http:// and https:// publishes
private.toml:9:81: service "e": inspect is for http:// and https:// publishes
private.toml:10:81: service "f": inspect is for http:// and https:// publishes`,
			code: 2,
		},
		{
			name: "bad flags",
			args: "--site office --key office.key --publish http://127.0.0.1:8080 --publish tcp://:1=ftp://x:1 --check",
			stderr: `
command line: --publish "http://127.0.0.1:8080": want URL=TARGET, such as https://app.example.com=http://127.0.0.1:8080
command line: relay is missing: the public relay's address, such as "relay.example.com"
command line: target "ftp://x:1": ftp is not supported by this version`,
			code: 2,
		},
	} {
		if s.files == nil {
			s.files = map[string]string{}
		}
		s.files["office.key"] = testKey
		t.Run(s.name, s.run)
	}
}

func TestUsage(t *testing.T) {
	keygen(t)
	for _, s := range []script{
		{
			name:   "nothing",
			stderr: "relay-private: nothing to do: give --config FILE, or --relay, --site, --key and --publish, or a command (see --help)",
			code:   2,
		},
		{
			name:   "unknown flag",
			args:   "--confg x",
			stderr: "relay-private: unknown flag: --confg",
			code:   2,
		},
		{
			name:   "both",
			args:   "--config private.toml --site office",
			stderr: "relay-private: --config and --relay, --site, --key, --ca, --publish exclude each other",
			code:   2,
		},
		{
			name:   "unknown command",
			args:   "jion TOKEN",
			stderr: "relay-private: unknown command \"jion\" for \"relay-private\"\nusage: relay-private [flags]",
			code:   2,
		},
		{
			name:   "keygen without a file",
			args:   "keygen",
			stderr: "relay-private: accepts 1 arg(s), received 0\nusage: relay-private keygen FILE [flags]",
			code:   2,
		},
		{
			name:   "cameras at no address",
			args:   "cameras --address gate.lan",
			stderr: `relay-private: --address: "gate.lan": want an IP address, or one with a port`,
			code:   2,
		},
		{
			name:   "cameras without the password",
			args:   "cameras --user admin",
			stderr: "relay-private: no password: type it, or give it as a line on stdin",
			code:   2,
		},
		{
			name:   "bad log level",
			args:   "--relay r --site s --key office.key --log-level loud",
			files:  map[string]string{"office.key": testKey},
			stderr: `relay-private: log level "loud" is none of debug, info, warn, error`,
			code:   2,
		},
	} {
		t.Run(s.name, s.run)
	}
}

// testKey is a key file, made by keygen.
var testKey string

func keygen(t *testing.T) {
	t.Helper()
	name := filepath.Join(t.TempDir(), "office.key")
	var stdout, stderr bytes.Buffer
	if code := command(t.Context(), []string{"keygen", name}, nil, &stdout, &stderr); code != 0 {
		t.Fatalf("keygen: %d, %s", code, stderr.String())
	}
	b, err := os.ReadFile(name)
	if err != nil {
		t.Fatal(err)
	}
	testKey = string(b)
}

// keygen prints the public key, keeps the private one to its owner, and never overwrites a key.
func TestKeygen(t *testing.T) {
	name := filepath.Join(t.TempDir(), "office.key")
	var stdout, stderr bytes.Buffer
	if code := command(t.Context(), []string{"keygen", name}, nil, &stdout, &stderr); code != 0 || !strings.HasPrefix(stdout.String(), "ed25519:") {
		t.Fatalf("exit code %d, %q, %q", code, stdout.String(), stderr.String())
	}
	info, err := os.Stat(name)
	if err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	before, _ := os.ReadFile(name)
	if code := command(t.Context(), []string{"keygen", name}, nil, &stdout, &stderr); code != 1 || !strings.Contains(stderr.String(), "exists") {
		t.Errorf("a second time: exit code %d, %q", code, stderr.String())
	}
	if after, _ := os.ReadFile(name); !bytes.Equal(before, after) {
		t.Error("the key was overwritten")
	}
}

func TestMaxFlows(t *testing.T) {
	for _, tt := range []struct{ files, sessions, want int }{
		{0, 1, 0}, {1 << 20, 1, 0}, {1 << 17, 2, 32 << 10}, {1024, 1, 512}, {1024, 3, 170}, {1, 1, 1},
	} {
		if got := maxFlows(tt.files, tt.sessions); got != tt.want {
			t.Errorf("%d files, %d sessions: %d flows, want %d", tt.files, tt.sessions, got, tt.want)
		}
	}
}
