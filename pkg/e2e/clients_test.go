//go:build linux

package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"culvert.dev/pkg/netem"
)

// pythonServer is a WebSocket server that is not ours: it echoes, and speaks the
// subprotocol "chat".
const pythonServer = `
import asyncio, websockets
async def echo(ws):
    async for message in ws:
        await ws.send(message)
async def main():
    async with websockets.serve(echo, "127.0.0.1", 0, subprotocols=["chat"], max_size=None) as server:
        print("port", server.sockets[0].getsockname()[1], flush=True)
        await asyncio.Future()
asyncio.run(main())
`

// pythonClient is a WebSocket visitor that is not ours.
const pythonClient = `
import asyncio, os, ssl, sys, websockets
uri, port, ca = sys.argv[1], int(sys.argv[2]), sys.argv[3]
async def main():
    tls = ssl.create_default_context(cafile=ca)
    async with websockets.connect(uri, ssl=tls, host="127.0.0.1", port=port, subprotocols=["x", "chat"], max_size=None) as ws:
        assert ws.subprotocol == "chat", ws.subprotocol
        for message in ["hello", "", "gr\u00fc\u00dfe", os.urandom(1), os.urandom(70000), os.urandom(5 << 20)]:
            await ws.send(message)
            assert await ws.recv() == message
        await asyncio.wait_for(await ws.ping(), 60)
        await asyncio.gather(*(ws.send(str(i)) for i in range(1000)))
        for i in range(1000):
            assert await ws.recv() == str(i)
        await ws.close(4001, "enough")
    assert ws.close_code == 4001, ws.close_code
asyncio.run(main())
print("all good")
`

const python = "/usr/bin/python3" // Debian's, which sees Debian's packages

// startPython starts pythonServer and returns its port on its namespace's loopback.
func startPython(t testing.TB, n *netem.Namespace) (port string) {
	t.Helper()
	if out, err := exec.Command(python, "-c", "import websockets").CombinedOutput(); err != nil {
		t.Fatalf("python3-websockets is not installed: apt-get install python3-websockets\n%s", out)
	}
	server := startIn(t, n, "python server", exec.Command(python, "-c", pythonServer))
	return strings.TrimPrefix(server.await(t, 0, "port "), "port ")
}

func TestPythonWebSockets(t *testing.T) {
	t.Parallel()
	port := startPython(t, nil)
	s := startSystem(t,
		service{"chat", "wss://chat.example.com", "http://127.0.0.1:" + port},
		service{"path", "https://app.example.com/chat", "http://127.0.0.1:" + port})
	for _, uri := range []string{"wss://chat.example.com/", "wss://app.example.com/chat"} {
		out := run(t, exec.Command(python, "-c", pythonClient, uri, s.https[strings.IndexByte(s.https, ':')+1:], certFile("ca.pem")))
		if out != "all good\n" {
			t.Errorf("%s: %s", uri, out)
		}
	}
}

// asUser makes a command run as an unprivileged user, which PostgreSQL insists on, and
// gives that user a folder. Someone who is not root runs it as himself.
func asUser(t testing.TB, dir, name string, args ...string) *exec.Cmd {
	t.Helper()
	if os.Getuid() != 0 {
		return exec.Command(name, args...)
	}
	if out, err := exec.Command("chown", "nobody:", dir).CombinedOutput(); err != nil {
		t.Fatalf("chown: %v\n%s", err, out)
	}
	nobody, err := user.Lookup("nobody")
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("setpriv", append([]string{"--reuid", nobody.Uid, "--regid", nobody.Gid, "--clear-groups", name}, args...)...)
	cmd.Dir = dir
	return cmd
}

// startPostgres starts a server with an empty database. It listens on a port of its
// namespace's loopback, and on a socket in dir.
func startPostgres(t testing.TB, n *netem.Namespace) (port int, dir string) {
	t.Helper()
	postgres := tool(t, "postgres", "postgresql", "/usr/lib/postgresql/*/bin/postgres")
	initdb := tool(t, "initdb", "postgresql", "/usr/lib/postgresql/*/bin/initdb")
	dir, port = tempDir(t), freePort(t)
	data := filepath.Join(dir, "data")
	run(t, asUser(t, dir, initdb, "-D", data, "-U", "culvert", "-A", "trust", "--no-sync", "-E", "UTF8", "--locale", "C"))
	server := startIn(t, n, "postgres", asUser(t, dir, postgres, "-D", data, "-p", fmt.Sprint(port), "-k", dir, "-h", "127.0.0.1", "-F"))
	awaitPortIn(t, n, server, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	server.await(t, 0, "ready to accept connections")
	return port, dir
}

func TestPostgreSQL(t *testing.T) {
	t.Parallel()
	psql := tool(t, "psql", "postgresql-client")
	port, dir := startPostgres(t, nil)
	s := startSystem(t,
		service{"db", "tcp://:{port}", fmt.Sprintf("tcp://127.0.0.1:%d", port)},
		service{"socket", "tcp://:{port}", fmt.Sprintf("unix://%s/.s.PGSQL.%d", dir, port)})
	query := func(name, sql string) string {
		t.Helper()
		_, p, _ := strings.Cut(s.port(name), ":")
		return run(t, exec.Command(psql, "-X", "-A", "-t", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", p, "-U", "culvert", "-d", "postgres", "-c", sql))
	}
	query("db", "create table t as select i, repeat(md5(i::text), 8) as s from generate_series(1, 100000) i")
	want := query("db", "select count(*), md5(string_agg(s, '' order by i)) from t")
	if !strings.HasPrefix(want, "100000|") {
		t.Fatalf("count: %q", want)
	}
	if got := query("socket", "select count(*), md5(string_agg(s, '' order by i)) from t"); got != want {
		t.Errorf("over the unix socket: %q, want %q", got, want)
	}
	// 26 MB of rows one way, and back the other.
	rows := query("db", "copy t to stdout")
	_, p, _ := strings.Cut(s.port("db"), ":")
	load := exec.Command(psql, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-h", "127.0.0.1", "-p", p, "-U", "culvert", "-d", "postgres",
		"-c", "create table u (like t)", "-c", "copy u from stdin")
	load.Stdin = strings.NewReader(rows)
	run(t, load)
	if got := query("db", "select count(*), md5(string_agg(s, '' order by i)) from u"); got != want {
		t.Errorf("copied back: %q, want %q", got, want)
	}
}

// startSSHD starts a server on a port of its namespace's loopback. login has the arguments
// with which ssh gets in, but for the port and what follows.
func startSSHD(t testing.TB, n *netem.Namespace) (port int, login []string) {
	t.Helper()
	sshd := tool(t, "sshd", "openssh-server", "/usr/sbin/sshd")
	keygen := tool(t, "ssh-keygen", "openssh-client")
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if os.Getuid() == 0 {
		// The folder sshd drops its privileges into; the service would make it at boot.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	dir, port := tempDir(t), freePort(t)
	for _, name := range []string{"host", "user"} {
		run(t, exec.Command(keygen, "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name)))
	}
	writeFile(t, filepath.Join(dir, "sshd_config"), fmt.Sprintf(`
ListenAddress 127.0.0.1:%d
HostKey %s/host
AuthorizedKeysFile %[2]s/user.pub
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
StrictModes no
UsePAM no
PidFile none
`, port, dir))
	server := startIn(t, n, "sshd", exec.Command(sshd, "-D", "-e", "-f", filepath.Join(dir, "sshd_config")))
	awaitPortIn(t, n, server, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	return port, []string{"-F", "none", "-i", filepath.Join(dir, "user"), "-o", "BatchMode=yes", "-o", "IdentitiesOnly=yes",
		"-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "LogLevel=ERROR", "-l", me.Username}
}

func TestSSH(t *testing.T) {
	t.Parallel()
	ssh := tool(t, "ssh", "openssh-client")
	port, options := startSSHD(t, nil)
	s := startSystem(t, service{"ssh", "", fmt.Sprintf("tcp://127.0.0.1:%d", port)})
	forward := s.tunnelctl("forward", "office/ssh")
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	forward.Stdout = w
	start(t, "tunnelctl forward", forward)
	w.Close()
	defer r.Close()
	line := make([]byte, 200)
	n, err := r.Read(line)
	if err != nil {
		t.Fatalf("tunnelctl forward printed nothing: %v", err)
	}
	local, _, ok := strings.Cut(string(line[:n]), " -> office/ssh\n")
	_, localPort, _ := strings.Cut(local, ":")
	if !ok || localPort == "" {
		t.Fatalf("tunnelctl forward printed %q", line[:n])
	}

	payload := make([]byte, 32<<20)
	rand.Read(payload)
	sum := sha256.Sum256(payload)
	login := func(more ...string) *exec.Cmd {
		args := slices.Concat(options, more, []string{"127.0.0.1", "cat | tee /dev/stderr | sha256sum"})
		cmd := exec.CommandContext(within(t, 3*waitLimit), ssh, args...)
		cmd.Stdin = strings.NewReader(string(payload))
		return cmd
	}
	connect := s.inShell(s.tunnelctl("connect", "office/ssh"))
	for name, way := range map[string][]string{
		"forward": {"-p", localPort},
		"connect": {"-o", "ProxyCommand=" + connect},
	} {
		cmd := login(way...)
		echoed := sha256.New()
		cmd.Stderr = echoed
		out, err := cmd.Output()
		if err != nil {
			t.Errorf("ssh over tunnelctl %s: %v %s", name, err, out)
			continue
		}
		if want := hex.EncodeToString(sum[:]); !strings.HasPrefix(string(out), want) || hex.EncodeToString(echoed.Sum(nil)) != want {
			t.Errorf("ssh over tunnelctl %s: 32 MiB arrived wrong", name)
		}
	}
}
