package main

import (
	"os"
	"testing"

	"culvert.dev/pkg/auth"
)

// certificate makes a certificate for these names and returns it and its key in PEM.
func certificate(t *testing.T, names ...string) (cert, key string) {
	t.Helper()
	files, err := auth.DevCA(t.TempDir(), names...)
	if err != nil {
		t.Fatal(err)
	}
	read := func(name string) string {
		b, err := os.ReadFile(name)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	return read(files.Certificate), read(files.Key)
}

// TestCheckTLS shows what can be wrong with the TLS of a service.
func TestCheckTLS(t *testing.T) {
	keygen(t)
	cert, key := certificate(t, "mail.example.com", "*.any.example.com")
	const head = "relay = \"r\"\nsite = \"s\"\nkey = \"office.key\"\n"
	service := func(lines string) string { return "[[service]]\nname = \"x\"\n" + lines }
	for _, s := range []script{
		{
			name: "good",
			files: map[string]string{"private.toml": head +
				service("publish = \"tls://mail.example.com\"\ntarget = \"tcp://10.0.0.7:143\"\ncertificate = \"cert.pem\"\ncertificate_key = \"key.pem\"\nalpn = [\"imap\"]\nproxy_protocol = 2\n") +
				"[[service]]\nname = \"any\"\npublish = \"tls://*.any.example.com\"\ntarget = \"http://10.0.0.7\"\ncertificate = \"cert.pem\"\ncertificate_key = \"key.pem\"\n" +
				"[[service]]\nname = \"raw\"\npublish = \"tls://raw.example.com\"\ntarget = \"tcp://10.0.0.7:993\"\n"},
			stdout: "ok",
		},
		{
			name:   "a target without TLS",
			files:  map[string]string{"private.toml": head + service("publish = \"tls://web.example.com\"\ntarget = \"http://10.0.0.7\"\n")},
			stderr: `private.toml:6:11: service "x": an http:// target does not end the TLS of a tls:// publish: have this relay do it (tls = "acme", or certificate and certificate_key), or name a tcp:// or unix:// target that does`,
			code:   2,
		},
		{
			name:   "acme",
			files:  map[string]string{"private.toml": head + "[acme]\ndirectory = \"staging\"\n" + service("publish = \"tls://web.example.com\"\ntarget = \"http://10.0.0.7\"\ntls = \"acme\"\n")},
			stdout: "ok",
		},
		{
			name: "acme, wrong",
			files: map[string]string{"private.toml": head + "[acme]\ndirectory = \"none\"\neab_kid = \"x\"\n" +
				service("publish = \"tls://web.example.com\"\ntarget = \"http://10.0.0.7\"\ntls = \"yes\"\n") +
				"[[service]]\nname = \"any\"\npublish = \"tls://*.example.com\"\ntarget = \"http://10.0.0.7\"\ntls = \"acme\"\n" +
				"[[service]]\nname = \"two\"\npublish = \"tls://two.example.com\"\ntarget = \"http://10.0.0.7\"\ntls = \"acme\"\ncertificate = \"cert.pem\"\n"},
			stderr: `
private.toml:4:2: eab_kid and eab_hmac_file belong together: the authority gives you both
private.toml:11:7: tls "yes": want "acme", or leave it out and name a certificate and certificate_key
private.toml:16:7: tls = "acme": a wildcard is proved by a record: [acme.dns] is missing, which says how to set one
private.toml:21:7: tls = "acme" obtains a certificate, and there is one: leave one of them out`,
			code: 2,
		},
		{
			name:   "acme without a table",
			files:  map[string]string{"private.toml": head + service("publish = \"tls://web.example.com\"\ntarget = \"http://10.0.0.7\"\ntls = \"acme\"\n")},
			stderr: `private.toml:8:7: tls = "acme": [acme] is missing, which names the authority, and agrees to its terms`,
			code:   2,
		},
		{
			name: "every mistake",
			files: map[string]string{"private.toml": head +
				service("publish = \"tls://web.example.com\"\ntarget = \"http://10.0.0.7\"\ncertificate = \"cert.pem\"\n") +
				"[[service]]\nname = \"key\"\npublish = \"tls://key.example.com\"\ntarget = \"tcp://10.0.0.7:993\"\ncertificate_key = \"key.pem\"\n" +
				"[[service]]\nname = \"name\"\npublish = \"tls://name.example.com\"\ntarget = \"tcp://10.0.0.7:993\"\ncertificate = \"cert.pem\"\ncertificate_key = \"key.pem\"\n" +
				"[[service]]\nname = \"none\"\npublish = \"tls://none.example.com\"\ntarget = \"tcp://10.0.0.7:993\"\ncertificate = \"none.pem\"\ncertificate_key = \"key.pem\"\n" +
				"[[service]]\nname = \"alpn\"\npublish = \"tls://alpn.example.com\"\ntarget = \"tcp://10.0.0.7:993\"\nalpn = [\"imap\"]\n" +
				"[[service]]\nname = \"https\"\npublish = \"https://mail.example.com\"\ntarget = \"http://10.0.0.7\"\ncertificate = \"cert.pem\"\ncertificate_key = \"key.pem\"\n" +
				"[[service]]\nname = \"both\"\npublish = \"tls://mail.example.com\"\ntarget = \"tcp://10.0.0.7:993\"\n"},
			stderr: `
private.toml:8:15: certificate without certificate_key
private.toml:13:19: certificate_key without certificate
private.toml:18:15: certificate: it is for mail.example.com, *.any.example.com, and not for "name.example.com"
private.toml:24:15: certificate: open none.pem: no such file or directory
private.toml:30:1: alpn is for services whose TLS ends at this relay: name a certificate and certificate_key, or tls = "acme"
private.toml:33:11: service "https": TLS ends here for tls:// publishes only
private.toml:39:11: publish "tls://mail.example.com": service "https" has this host by https://, and TLS can end in one place only`,
			code: 2,
		},
	} {
		s.args = "--config private.toml --check"
		s.files["office.key"], s.files["cert.pem"], s.files["key.pem"] = testKey, cert, key
		t.Run(s.name, s.run)
	}
	t.Run("a key for everybody", func(t *testing.T) {
		dir := t.TempDir()
		for name, text := range map[string]string{"office.key": testKey, "cert.pem": cert, "key.pem": key,
			"private.toml": head + service("publish = \"tls://mail.example.com\"\ntarget = \"tcp://10.0.0.7:143\"\ncertificate = \"cert.pem\"\ncertificate_key = \"key.pem\"\n")} {
			if err := os.WriteFile(dir+"/"+name, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.Chmod(dir+"/key.pem", 0o604); err != nil {
			t.Fatal(err)
		}
		want := dir + "/private.toml:9:19: certificate_key: everybody may read it: run chmod 600 " + dir + "/key.pem"
		if _, err := load(dir + "/private.toml"); err == nil || err.Error() != want {
			t.Errorf("%v, want %s", err, want)
		}
	})
}
