package main

import (
	"bytes"
	"os"
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
	code := command(t.Context(), strings.Fields(s.args), &stdout, &stderr)
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
	for _, s := range []script{
		{
			name: "good",
			files: map[string]string{"public.toml": `
domain = "relay.example.com"
state  = "/var/lib/culvert"

[listen]
https = ":443"
quic  = ":443"
http  = ":80"
rtsp  = ":554"
rtsps = ":322"
rtp   = ":6970"
tftp  = ":69"
tftp_ports = "40000-40999"
admin = "127.0.0.1:7070"

[limits]
visitors = 1000
tftp_cache = 0
tftp_block = 1024

[[site]]
name    = "office"
key     = "ed25519:1yQ/TcItPiLRqEX/qIVJhB08FGTj0D3BzkD0tHr3YMo"
publish = ["https://*.example.com", "rtsp://cams.example.com/*", "tcp://:15000-15999", "tftp:///boot/*"]

[[site]]
name    = "lab"
key     = ["ed25519:1yQ/TcItPiLRqEX/qIVJhB08FGTj0D3BzkD0tHr3YMo", "ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"]
publish = ["https://lab.example.com"]
`},
			stdout: "ok",
		},
		{
			name:  "empty",
			files: map[string]string{"public.toml": ""},
			stderr: `
public.toml: domain is missing: the relay's own name, such as "relay.example.com"
public.toml: state is missing: a folder for what the relay makes itself, such as "/var/lib/culvert"`,
			code: 2,
		},
		{
			name: "every mistake at once",
			files: map[string]string{"public.toml": `domain = "https://relay.example.com"

[listen]
htps = ":443"
https = "443"
quic  = "8443"
http  = ""
rtsp  = "rtsp://:554"
rtsps = "322"
tftp  = "69"
tftp_ports = "40000-40999"
proxy_protocol = ["10.0.0.0/8", "::1", "lb.example.com"]

[acme]
directory = ["letsencrypt", "http://ca.example.com/dir", "zerossl"]
challenges = ["http-01", "dns-01", "smtp"]
names = ["*.example.com", "https://a"]
store = "redis://127.0.0.1"

[tls]
certificate = "cert.pem"

[limits]
visitors = -1

[[site]]
name    = "office"
key     = "ed25519:short"
publish = ["https://*.example.com", "tftp://cams.example.com/*", "tcp://:2-1"]

[[site]]
name    = "office"
publish = []

[[site]]

[[site]]
name    = "lab"
key     = ["ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA", "ed25519:short"]
publish = ["https://lab.example.com"]
`},
			stderr: `
public.toml: state is missing: a folder for what the relay makes itself, such as "/var/lib/culvert"
public.toml:1:10: domain "https://relay.example.com": want a name in lower case, without scheme, port or wildcard
public.toml:4:1: unknown key "htps" (did you mean "https"?)
public.toml:5:9: listen.https "443": want HOST:PORT or :PORT
public.toml:6:9: listen.quic "8443": want HOST:PORT or :PORT
public.toml:8:9: listen.rtsp "rtsp://:554": want HOST:PORT or :PORT
public.toml:9:9: listen.rtsps "322": want HOST:PORT or :PORT
public.toml:10:9: listen.tftp "69": want HOST:PORT or :PORT
public.toml:12:40: proxy_protocol "lb.example.com": want an address or a prefix, such as "10.0.0.0/8"
public.toml:15:29: directory "http://ca.example.com/dir": want "letsencrypt", "staging", "zerossl" or the https:// URL of an ACME directory
public.toml:15:58: directory "zerossl" wants eab_kid and eab_hmac_file, which its web site gives you
public.toml:16:15: challenge http-01: listen.http is empty, so there is nobody to answer
public.toml:16:26: challenge dns-01: [acme.dns] is missing, which says how to set records
public.toml:16:36: challenge "smtp": want "http-01", "tls-alpn-01" or "dns-01"
public.toml:17:10: name "*.example.com": a wildcard is proved by a record: [acme.dns] is missing, which says how to set one
public.toml:17:27: name "https://a": want a host name in lower case, or a wildcard such as "*.example.com"
public.toml:18:9: store without store_key: a file with what ` + "`openssl rand -hex 32`" + ` prints, the same at all relays
public.toml:20:2: [tls] has a certificate and no key
public.toml:24:12: limits.visitors is negative
public.toml:28:11: public key: 5 characters after ed25519: are not base64 of 32 bytes
public.toml:29:37: pattern "tftp://cams.example.com/*": want the path after three slashes, tftp:///boot: TFTP clients do not say which host they mean, and the public relay's tftp listener has the port
public.toml:29:66: pattern "tcp://:2-1": port range "2-1": low end is above the high end
public.toml:31:3: site "office" without a key: ` + "`relay-private keygen FILE`" + ` makes one and prints its public half
public.toml:31:3: site "office" may publish nothing: publish is missing, such as ["https://*.example.com"]
public.toml:32:11: site "office" is defined twice
public.toml:35:3: site without a name
public.toml:39:67: public key: 5 characters after ed25519: are not base64 of 32 bytes`,
			code: 2,
		},
		{
			name:   "RTP for nobody",
			files:  map[string]string{"public.toml": "domain = \"relay.example.com\"\nstate = \"state\"\n[listen]\nrtp = \":65535\"\n"},
			stderr: "public.toml:4:7: listen.rtp \":65535\": RTCP is on the port above it, which there is none\npublic.toml:4:7: listen.rtp is for players that come by rtsp, which is not listened for",
			code:   2,
		},
		{
			name: "TFTP",
			files: map[string]string{"public.toml": "domain = \"relay.example.com\"\nstate = \"state\"\n[listen]\ntftp = \":69\"\ntftp_ports = \"60-70\"\n" +
				"[limits]\ntftp_transfers = -1\ntftp_transfers_per_address = -1\ntftp_cache = -1\ntftp_block = 7\n"},
			stderr: `
public.toml:5:14: tftp_ports: the port of listen.tftp is in the range
public.toml:7:18: limits.tftp_transfers is negative
public.toml:8:30: limits.tftp_transfers_per_address is negative
public.toml:9:14: limits.tftp_cache is negative; 0 keeps nothing
public.toml:10:14: limits.tftp_block is 7, not between 8 and 65464, or 0 for what reaches the client in one packet`,
			code: 2,
		},
		{
			name:   "ports of TFTP for nobody",
			files:  map[string]string{"public.toml": "domain = \"relay.example.com\"\nstate = \"state\"\n[listen]\ntftp_ports = \"60-70\"\n"},
			stderr: `public.toml:4:14: tftp_ports: listen.tftp is missing, where requests come in`,
			code:   2,
		},
		{
			name:   "missing certificate",
			files:  map[string]string{"public.toml": "domain = \"relay.example.com\"\nstate = \"state\"\n[tls]\ncertificate = \"cert.pem\"\nkey = \"key.pem\"\n"},
			stderr: `public.toml:4:15: certificate: open cert.pem: no such file or directory`,
			code:   2,
		},
	} {
		s.args = "--config public.toml --check"
		t.Run(s.name, s.run)
	}
}

func TestUsage(t *testing.T) {
	for _, s := range []script{
		{name: "nothing", stderr: "relay-public: --config FILE is needed", code: 2},
		{name: "unknown flag", args: "--confg x", stderr: "relay-public: unknown flag: --confg", code: 2},
		{name: "argument", args: "public.toml", stderr: `relay-public: unexpected argument "public.toml" (see --help)`, code: 2},
		{name: "no file", args: "--config none.toml", stderr: "relay-public: stat none.toml: no such file or directory", code: 2},
	} {
		t.Run(s.name, s.run)
	}
}
