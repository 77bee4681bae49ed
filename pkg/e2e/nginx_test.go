//go:build linux

package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"culvert.dev/pkg/netem"
)

// startNginx runs nginx with the given blocks of http and stream servers.
func startNginx(t testing.TB, name, http, stream string) *process {
	t.Helper()
	return startNginxIn(t, nil, name, http, stream)
}

func startNginxIn(t testing.TB, n *netem.Namespace, name, http, stream string) *process {
	t.Helper()
	dir := tempDir(t)
	program := tool(t, "nginx", "nginx-light", "/usr/sbin/nginx")
	var conf strings.Builder
	if stream != "" {
		// Debian builds the stream module as a file of its own.
		if module := "/usr/lib/nginx/modules/ngx_stream_module.so"; exists(module) {
			fmt.Fprintf(&conf, "load_module %s;\n", module)
		}
	}
	fmt.Fprintf(&conf, "daemon off;\npid %s/pid;\nerror_log stderr warn;\nworker_processes auto;\nworker_rlimit_nofile 20000;\n", dir)
	fmt.Fprintf(&conf, "events { worker_connections 19000; }\n")
	if stream != "" {
		fmt.Fprintf(&conf, "stream {\n%s}\n", stream)
	}
	if http != "" {
		fmt.Fprintf(&conf, "http {\naccess_log off;\nkeepalive_requests 100000000;\nkeepalive_timeout 600;\nclient_max_body_size 0;\ndefault_type application/octet-stream;\n")
		for _, d := range []string{"client_body", "proxy", "fastcgi", "uwsgi", "scgi"} {
			fmt.Fprintf(&conf, "%s_temp_path %s/%s;\n", d, dir, d)
		}
		fmt.Fprintf(&conf, "%s}\n", http)
	}
	file := filepath.Join(dir, "nginx.conf")
	writeFile(t, file, conf.String())
	p := startIn(t, n, name, exec.Command(program, "-p", dir, "-c", file, "-e", "stderr"))
	return p
}

// chain is the reference of the benchmark: two nginx joined by TLS 1.3.
type chain struct {
	public, private *process
	echo, bulk      string // stream listeners of the public side
	http, https     string // of the public side
}

// startChain runs the two nginx before a target.
func startChain(t testing.TB, a targetAddrs) *chain {
	t.Helper()
	return startChainIn(t, nil, nil, a)
}

func startChainIn(t testing.TB, inside, outside *netem.Namespace, a targetAddrs) *chain {
	t.Helper()
	c := &chain{echo: freeAddr(t), bulk: freeAddr(t), http: freeAddr(t), https: freeAddr(t)}
	link := func() string { return fmt.Sprintf("%s:%d", inside.Addr(), freePort(t)) }
	echo, bulk, web := link(), link(), link()
	cert := fmt.Sprintf("ssl_certificate %s; ssl_certificate_key %s; ssl_protocols TLSv1.3;", certFile("cert.pem"), certFile("key.pem"))
	serverTLS := cert
	c.private = startNginxIn(t, inside, "nginx private", fmt.Sprintf(`
upstream target { server %s; keepalive 128; }
map $http_upgrade $connection_upgrade { default upgrade; "" ""; }
server { listen %s ssl; %s
	location / { proxy_pass http://target; proxy_http_version 1.1; proxy_set_header Host $host;
		proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_read_timeout 600; } }
`, a.HTTP, web, serverTLS), fmt.Sprintf(`
server { listen %s ssl; %s proxy_pass %s; }
server { listen %s ssl; %s proxy_pass %s; }
`, echo, serverTLS, a.Echo, bulk, serverTLS, a.Bulk))
	verify := fmt.Sprintf("proxy_ssl_protocols TLSv1.3; proxy_ssl_verify on; proxy_ssl_trusted_certificate %s; proxy_ssl_name localhost; proxy_ssl_server_name on;", certFile("ca.pem"))
	c.public = startNginxIn(t, outside, "nginx public", fmt.Sprintf(`
upstream link { server %s; keepalive 128; }
map $http_upgrade $connection_upgrade { default upgrade; "" ""; }
server { listen %s; listen %s ssl http2; %s
	location / { proxy_pass https://link; %s proxy_http_version 1.1; proxy_set_header Host $host;
		proxy_set_header X-Forwarded-For $remote_addr; proxy_set_header X-Forwarded-Proto $scheme; proxy_set_header X-Forwarded-Host $host;
		proxy_set_header Upgrade $http_upgrade; proxy_set_header Connection $connection_upgrade; proxy_read_timeout 600; } }
`, web, c.http, c.https, serverTLS, verify), fmt.Sprintf(`
server { listen %s; proxy_pass %s; proxy_ssl on; %s }
server { listen %s; proxy_pass %s; proxy_ssl on; %s }
`, c.echo, echo, verify, c.bulk, bulk, verify))
	for _, a := range []string{c.echo, c.bulk, c.http, c.https} {
		awaitPortIn(t, outside, c.public, "tcp", a)
	}
	for _, a := range []string{echo, bulk, web} {
		awaitPortIn(t, inside, c.private, "tcp", a)
	}
	return c
}

// tempDir is t.TempDir in a place that servers running as other users can reach.
func tempDir(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp(root, "t-")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func exists(name string) bool {
	_, err := os.Stat(name)
	return err == nil
}

func writeFile(t testing.TB, name, content string) {
	t.Helper()
	if err := os.WriteFile(name, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}
