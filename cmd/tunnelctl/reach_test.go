package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ed25519"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
	"culvert.dev/pkg/relay/public"
)

// office is a public relay, and a site with services that end here.
type office struct {
	t       *testing.T
	key     ed25519.PrivateKey
	private *private.Relay
	flags   []string   // that lead to the relay
	uploads chan error // how each connection to office/upload has ended
	config  string     // folder

	revoked atomic.Bool // the relay does not take the token any more
	entered chan func() // has a function for each session that was let in, which ends it
}

// startOffice starts both relays. Its services: "echo", which says "|end" after the end; "upload"; "broken", which breaks off after a
// byte; "stalled", whose answer over HTTP does not end; "none", whose target is not there; "dns", which echoes datagrams; "web", over HTTP.
func startOffice(t *testing.T) *office {
	t.Helper()
	o := &office{t: t, uploads: make(chan error, 1), config: t.TempDir(), entered: make(chan func(), 100)}
	t.Setenv("XDG_CONFIG_HOME", o.config)
	for _, name := range []string{"CULVERT_ADMIN", "CULVERT_RELAY", "CULVERT_CA", "CULVERT_TOKEN_FILE", "CULVERT_CONFIG"} {
		t.Setenv(name, "")
	}
	dir := t.TempDir()
	file := filepath.Join(dir, "token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	pub, key, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	o.key = key
	certs, err := auth.DevCA(filepath.Join(dir, "certs"), "localhost", "127.0.0.1")
	if err != nil {
		t.Fatal(err)
	}
	cert, roots := loadCertificates(t, certs)
	core := func() *evloop.Core {
		core, err := evloop.New(evloop.Config{Loops: 1})
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { core.Close() })
		return core
	}
	r := &public.Relay{
		Core: core(), Domain: "localhost", TLS: serverTLS(cert), HTTPS: "127.0.0.1:0",
		Operator: func(got string, _ netip.Addr) (auth.Identity, bool) {
			return auth.Identity{Operator: "alice", Role: auth.Operate}, got == token && !o.revoked.Load()
		},
		FollowOperator: func(_ auth.Identity, end func()) func() {
			o.entered <- end
			return func() {}
		},
	}
	r.Reload([]public.Site{{Name: "office", Keys: []string{auth.FormatPublicKey(pub)}}, {Name: "lab", Keys: []string{auth.FormatPublicKey(pub)}}})
	if err := r.Listen(); err != nil {
		t.Fatal(err)
	}
	admin := httptest.NewServer(http.HandlerFunc(r.ServeOperate))
	t.Cleanup(admin.Close)
	o.flags = []string{"--admin", admin.Listener.Addr().String(), "--token-file", file}

	echo, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { echo.Close() })
	go echoDatagrams(echo)
	target := func(name, text string) private.Service {
		u, err := relay.ParseTarget(text)
		if err != nil {
			t.Fatal(err)
		}
		return private.Service{Service: relay.Service{Name: name, Target: u}}
	}
	www := t.TempDir()
	if err := os.WriteFile(filepath.Join(www, "hello"), []byte("hello from the site"), 0o600); err != nil {
		t.Fatal(err)
	}
	ready := make(chan struct{})
	o.private = &private.Relay{
		Core: core(), Relays: []string{r.Listeners()[0].Addr.String()}, Site: "office", Key: key, RootCAs: roots, OnReady: func() { close(ready) },
		Services: []private.Service{target("none", "tcp://127.0.0.1:1"), target("dns", "udp://"+echo.LocalAddr().String()), target("web", "file://"+filepath.ToSlash(www))},
	}
	o.serve("echo", func(c net.Conn) {
		defer c.Close()
		io.Copy(c, c)
		io.WriteString(c, "|end")
	})
	o.serve("upload", func(c net.Conn) {
		defer c.Close()
		io.WriteString(c, "ok")
		_, err := io.Copy(io.Discard, c)
		o.uploads <- err
	})
	o.serve("broken", func(c net.Conn) {
		c.Read(make([]byte, 1))
		c.(interface{ Abort() }).Abort()
	})
	o.serve("stalled", func(c net.Conn) {
		defer c.Close()
		in := bufio.NewReader(c)
		if _, err := http.ReadRequest(in); err != nil { // a client does not take an answer that comes before
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 100\r\n\r\nbegun\n")
		io.Copy(io.Discard, in)
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error, 1)
	go func() { ended <- o.private.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		if err := <-ended; err != nil {
			t.Error(err)
		}
	})
	<-ready
	return o
}

func (o *office) serve(name string, f func(net.Conn)) {
	ln, err := o.private.Listen(private.Service{Service: relay.Service{Name: name}})
	if err != nil {
		o.t.Fatal(err)
	}
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go f(c)
		}
	}()
}

func echoDatagrams(pc net.PacketConn) {
	b := make([]byte, 64<<10)
	for {
		n, from, err := pc.ReadFrom(b)
		if err != nil {
			return
		}
		pc.WriteTo(b[:n], from)
	}
}

// run runs tunnelctl against the relay.
func (o *office) run(stdin string, args ...string) (code int, stdout, stderr string) {
	return tunnelctl(o.t.Context(), stdin, append(o.flags, args...)...)
}

// forward runs tunnelctl forward, and returns where it listens, how to end it, and what it prints to stderr then.
func (o *office) forward(args ...string) (addrs []string, end func() (code int, stderr string)) {
	o.t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	r, w := io.Pipe()
	var stderr bytes.Buffer
	codec := make(chan int, 1)
	go func() {
		code := command(ctx, append(o.flags, append([]string{"forward"}, args...)...), strings.NewReader(""), w, &stderr)
		w.Close()
		codec <- code
	}()
	end = func() (int, string) {
		cancel()
		code := <-codec
		return code, stderr.String()
	}
	for _, arg := range args {
		if !strings.Contains(arg, "/") {
			continue
		}
		line := make([]byte, 200)
		n, err := r.Read(line)
		if err != nil {
			code, text := end()
			o.t.Fatalf("forward ended with %d: %s", code, text)
		}
		addr, service, ok := strings.Cut(strings.TrimSpace(string(line[:n])), " -> ")
		if !ok || service != arg {
			o.t.Fatalf("it printed %q", line[:n])
		}
		addrs = append(addrs, addr)
	}
	return addrs, end
}

// The end of stdin reaches the service, and what it says afterwards still arrives.
func TestConnect(t *testing.T) {
	o := startOffice(t)
	code, stdout, stderr := o.run("some input", "connect", "office/echo")
	if code != 0 || stdout != "some input|end" || !strings.Contains(stderr, auth.FormatPublicKey(o.key.Public().(ed25519.PublicKey))) {
		t.Errorf("exit code %d, stdout %q, stderr %q", code, stdout, stderr)
	}
	// The key is known from then on.
	if code, _, stderr := o.run("", "connect", "office/echo"); code != 0 || stderr != "" {
		t.Errorf("exit code %d, stderr %q", code, stderr)
	}
	for _, test := range []struct {
		args string
		code int
		want string
	}{
		{"connect office/dns", 2, "use tunnelctl forward --udp"},
		{"connect office/nothing", exitNotFound, `no service "nothing": it has broken, dns, echo`},
		{"connect nowhere/echo", exitNotFound, `no site "nowhere"`},
		{"diag nowhere", exitNotFound, `no site "nowhere"`},
		{"diag office", exitNotFound, "diagnostics = true"},
		{"connect lab/echo", exitUnreachable, "not connected"},
		{"connect office/none", exitUnreachable, "refused the connection"},
		{"connect office", 2, "want SITE/SERVICE"},
		{"connect --site-key nonsense office/echo", 2, "--site-key"},
		{"connect --site-key ed25519:AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA office/echo", exitDenied, "not the one that was given"},
		{"forward office/nothing", exitNotFound, "no service"},
		{"forward office/dns", 2, "--udp"},
		{"forward --udp office/echo", 2, "leave --udp out"},
		{"forward office/echo 70000", 2, "no port"},
		{"forward 5432 office/echo", 2, "want SITE/SERVICE"},
	} {
		if code, stdout, stderr := o.run("", strings.Fields(test.args)...); code != test.code || stdout != "" || !strings.Contains(stderr, test.want) {
			t.Errorf("%s: exit code %d, stdout %q, stderr %q", test.args, code, stdout, stderr)
		}
	}
	file := filepath.Join(t.TempDir(), "other")
	if err := os.WriteFile(file, []byte("another\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if code, _, stderr := o.run("", "--token-file", file, "connect", "office/echo"); code != exitDenied || !strings.Contains(stderr, "does not accept the token") {
		t.Errorf("with another token: %d, %s", code, stderr)
	}
}

// A site whose key is another one than before is not spoken to, until somebody has said that this is right.
func TestKeyChanged(t *testing.T) {
	o := startOffice(t)
	other, _, err := ed25519.GenerateKey(nil)
	if err != nil {
		t.Fatal(err)
	}
	known := filepath.Join(o.config, "culvert", "known_sites")
	if err := os.MkdirAll(filepath.Dir(known), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(known, fmt.Appendf(nil, "%s office %s\n", o.flags[1], auth.FormatPublicKey(other)), 0o600); err != nil {
		t.Fatal(err)
	}
	now := auth.FormatPublicKey(o.key.Public().(ed25519.PublicKey))
	code, _, stderr := o.run("", "connect", "office/echo")
	for _, want := range []string{now, auth.FormatPublicKey(other), "--site-key", known} {
		if code != exitDenied || !strings.Contains(stderr, want) {
			t.Errorf("exit code %d, %q lacks %q", code, stderr, want)
		}
	}
	for _, args := range [][]string{{"connect", "--site-key", now, "office/echo"}, {"connect", "office/echo"}} {
		code, stdout, stderr := o.run("x", args...)
		if code != 0 || stdout != "x|end" {
			t.Errorf("%q: exit code %d, %s", args, code, stderr)
		}
		if isTold := strings.Contains(stderr, auth.FormatPublicKey(other)+" is forgotten"); isTold != (len(args) > 2) {
			t.Errorf("%q: %s", args, stderr)
		}
	}
}

func TestForward(t *testing.T) {
	o := startOffice(t)
	addrs, end := o.forward("office/echo", "office/web")

	// Each connection is a stream of its own; half-close passes both ways.
	for i := range 3 {
		c, err := net.Dial("tcp", addrs[0])
		if err != nil {
			t.Fatal(err)
		}
		fmt.Fprintf(c, "hello %d", i)
		c.(*net.TCPConn).CloseWrite()
		if b, err := io.ReadAll(c); string(b) != fmt.Sprintf("hello %d|end", i) || err != nil {
			t.Errorf("read %q, %v", b, err)
		}
		c.Close()
	}
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}
	resp, err := client.Get("http://" + addrs[1] + "/hello")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(resp.Body); string(b) != "hello from the site" || err != nil {
		t.Errorf("read %q, %v", b, err)
	}
	resp.Body.Close()

	// A connection that is open when it is told to end does not hold it, and ending so is no error.
	c, err := net.Dial("tcp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "x")
	if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	if code, stderr := end(); code != 0 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// A connection that cannot be forwarded is reset, so that its client does not take it for an empty
// answer; the next one is tried again.
func TestForwardRefused(t *testing.T) {
	o := startOffice(t)
	for service, want := range map[string]string{"lab/echo": "not connected", "office/none": "refused the connection"} {
		addrs, end := o.forward(service)
		for range 2 {
			c, err := net.Dial("tcp", addrs[0])
			if errors.Is(err, syscall.ECONNRESET) {
				continue // the reset was faster than the dialler
			} else if err != nil {
				t.Fatal(err)
			}
			if _, err := c.Read(make([]byte, 1)); err == nil || err == io.EOF {
				t.Errorf("read: %v, want a reset", err)
			}
			c.Close()
		}
		if code, stderr := end(); code != 0 || !strings.Contains(stderr, service+": ") || !strings.Contains(stderr, want) {
			t.Errorf("%s: exit code %d, %s", service, code, stderr)
		}
	}
}

// A stream that breaks off is named by its service: the addresses of the connection to the relay help nobody.
func TestConnectBroken(t *testing.T) {
	o := startOffice(t)
	if code, _, stderr := o.run("x", "connect", "office/broken"); code != exitUnreachable || !strings.Contains(stderr, "tunnelctl: office/broken: ") {
		t.Errorf("exit code %d, %q", code, stderr)
	}
}

// When the token is revoked, what runs with it says so, and ends at once with the exit code for that.
func TestTokenRevoked(t *testing.T) {
	for _, args := range []string{"forward office/echo", "forward --udp office/dns", "socks office 0", "connect office/echo", "http office/stalled /", "ping office", "bench -t 1m office"} {
		t.Run(args, func(t *testing.T) {
			o := startOffice(t)
			stdin, typed := io.Pipe()
			defer typed.Close()
			r, stdout := io.Pipe()
			printed := bufio.NewReader(r)
			var stderr bytes.Buffer
			codec := make(chan int, 1)
			go func() {
				code := command(t.Context(), append(o.flags, strings.Fields(args)...), stdin, stdout, &stderr)
				stdout.Close()
				codec <- code
			}()
			end := <-o.entered
			name, _, _ := strings.Cut(args, " ")
			var open net.Conn
			switch {
			case name == "bench": // which says nothing before its end
			case name == "connect":
				io.WriteString(typed, "x\n")
				fallthrough
			default:
				line, err := printed.ReadString('\n')
				if err != nil {
					t.Fatalf("it ended with %d: %s", <-codec, stderr.String())
				}
				if args == "forward office/echo" {
					addr, _, _ := strings.Cut(line, " -> ")
					if open, err = net.Dial("tcp", addr); err != nil {
						t.Fatal(err)
					}
					defer open.Close()
					io.WriteString(open, "x")
					if _, err := io.ReadFull(open, make([]byte, 1)); err != nil {
						t.Fatal(err)
					}
				}
			}
			go io.Copy(io.Discard, printed)
			o.revoked.Store(true)
			end()
			if open != nil {
				if _, err := open.Read(make([]byte, 1)); err == nil || err == io.EOF {
					t.Errorf("the open connection: %v, want a reset", err)
				}
			}
			code := <-codec
			text := stderr.String()
			if code != exitDenied || !strings.Contains(text, "tunnelctl: "+o.flags[1]+" does not accept the token: ") || strings.Contains(text, "connections wait") {
				t.Errorf("exit code %d, %s", code, text)
			}
			if open != nil && !strings.Contains(text, fmt.Sprintf("office/echo: the connection of %v was ended", open.LocalAddr())) {
				t.Errorf("the connection that was open is not named: %s", text)
			}
		})
	}
}

// A client that breaks off is not one that has finished: the service sees it break off, too.
func TestForwardAborted(t *testing.T) {
	o := startOffice(t)
	addrs, end := o.forward("office/upload")
	c, err := net.Dial("tcp", addrs[0])
	if err != nil {
		t.Fatal(err)
	}
	if _, err := io.ReadFull(c, make([]byte, 2)); err != nil {
		t.Fatal(err)
	}
	local{c.(*net.TCPConn)}.Abort()
	if err := <-o.uploads; err == nil {
		t.Error("the service took a broken upload for a whole one")
	}
	end()
}

// brokenWriter is a stdout that is closed.
type brokenWriter struct{}

func (brokenWriter) Write([]byte) (int, error) { return 0, syscall.EPIPE }

// When nobody takes what the service says, what was still to be sent to it is not: the service sees it break off.
func TestConnectClosedOut(t *testing.T) {
	o := startOffice(t)
	in, more := io.Pipe()
	defer more.Close()
	var stderr bytes.Buffer
	if code := command(t.Context(), append(o.flags, "connect", "office/upload"), in, brokenWriter{}, &stderr); code == 0 {
		t.Errorf("exit code %d, %s", code, stderr.String())
	}
	if err := <-o.uploads; err == nil {
		t.Error("the service took a broken upload for a whole one")
	}
}

// brokenStream is the end of a stream that is lost.
type brokenStream struct{ io.Writer }

var errStream = errors.New("the connection to office/echo was lost")

func (brokenStream) Read([]byte) (int, error) { return 0, errStream }
func (brokenStream) CloseWrite() error        { return nil }
func (brokenStream) Close() error             { return nil }
func (brokenStream) Abort()                   {}

// heldUp is a stream that takes nothing, as the way to the relay is lost.
type heldUp struct {
	writing chan bool     // takes one for each Write
	over    chan struct{} // closed by Abort
	once    sync.Once
}

func (h *heldUp) Read([]byte) (int, error) { <-h.over; return 0, net.ErrClosed }
func (h *heldUp) Write([]byte) (int, error) {
	h.writing <- true
	<-h.over
	return 0, net.ErrClosed
}
func (h *heldUp) CloseWrite() error { return nil }
func (h *heldUp) Close() error      { h.Abort(); return nil }
func (h *heldUp) Abort()            { h.once.Do(func() { close(h.over) }) }

// A forward of datagrams ends also while the way to the relay is lost.
func TestForwardUDPHeldUp(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		u := &udpForward{forwarder: &forwarder{}}
		flow := &udpFlow{out: make(chan []byte, 1)}
		conn := &heldUp{writing: make(chan bool), over: make(chan struct{})}
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		ended := make(chan bool)
		go func() {
			u.exchange(ctx, conn, netip.AddrPort{}, flow)
			close(ended)
		}()
		flow.out <- []byte("x")
		<-conn.writing
		cancel()
		<-ended
	})
}

// What has happened to a stream is told without what the copying into a socket has added.
func TestStreamLost(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	c, err := net.Dial("tcp", ln.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := splice(t.Context(), local{c.(*net.TCPConn)}, brokenStream{io.Discard}); err != errStream {
		t.Errorf("%v, want %v", err, errStream)
	}
}

// A port that others reach is said to be one.
func TestForwardOpen(t *testing.T) {
	o := startOffice(t)
	_, end := o.forward("office/echo", "127.0.0.1:0", "office/web", "0.0.0.0:0")
	if code, stderr := end(); code != 0 || strings.Count(stderr, "without a token") != 1 || !strings.Contains(stderr, "office/web: whoever reaches this machine at 0.0.0.0:0") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// Datagrams of any size come back as they were, those of each program to that program.
func TestForwardUDP(t *testing.T) {
	o := startOffice(t)
	addrs, end := o.forward("--udp", "office/dns")
	addr := strings.TrimSuffix(addrs[0], "/udp")
	for i := range 3 {
		c, err := net.Dial("udp", addr)
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		c.SetDeadline(time.Now().Add(time.Minute))
		for _, size := range []int{0, 1, 1200, 9000} {
			sent, got := bytes.Repeat([]byte{byte('a' + i)}, size), make([]byte, 64<<10)
			if _, err := c.Write(sent); err != nil {
				t.Fatal(err)
			}
			if n, err := c.Read(got); err != nil || !bytes.Equal(got[:n], sent) {
				t.Errorf("%d bytes sent, %d came back, %v", size, n, err)
			}
		}
	}
	if code, stderr := end(); code != 0 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func TestHTTP(t *testing.T) {
	o := startOffice(t)
	for _, test := range []struct {
		args []string
		code int
		want string
	}{
		{[]string{"office/web", "/hello"}, 0, "hello from the site"},
		{[]string{"office/web", "-i", "http://example.com/hello"}, 0, "HTTP/1.1 200 OK\n"},
		{[]string{"office/web", "-X", "HEAD", "-i", "/hello"}, 0, "Content-Length: 19\n"},
		{[]string{"office/web", "-i", "/nothing"}, 0, "404"},
		{[]string{"office/web", "-f", "/nothing"}, exitHTTP, "404"},
		{[]string{"office/web", "-d", "x", "-i", "/hello"}, 0, "HTTP/1.1 405"},
		{[]string{"office/web", "hello"}, 2, "begins with /"},
		{[]string{"office/web", "-H", "nonsense", "/hello"}, 2, "FIELD: value"},
		{[]string{"office/echo", "/"}, 1, "not HTTP"}, // whether a program serves HTTP is seen when it answers
	} {
		if code, stdout, stderr := o.run("", append([]string{"http"}, test.args...)...); code != test.code || !strings.Contains(stdout+stderr, test.want) {
			t.Errorf("%q: exit code %d, stdout %q, stderr %q", test.args, code, stdout, stderr)
		}
	}
}

func TestPingAndBench(t *testing.T) {
	o := startOffice(t)
	code, stdout, stderr := o.run("", "ping", "-c", "2", "-i", "10ms", "office")
	if code != 0 || !strings.Contains(stdout, "2 sent, 2 received, min/avg/max/dev ") {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
	var p pings
	if code, stdout, _ := o.run("", "--json", "ping", "-c", "3", "-i", "10ms", "office"); code != 0 || json.Unmarshal([]byte(stdout), &p) != nil || p.Received != 3 || p.Max < p.Min || p.Min <= 0 {
		t.Errorf("exit code %d, %q: %+v", code, stdout, p)
	}
	if code, _, stderr := o.run("", "ping", "-c", "1", "lab"); code != exitUnreachable || !strings.Contains(stderr, "not connected") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	var m measurement
	if code, stdout, stderr := o.run("", "--json", "bench", "-t", "200ms", "office"); code != 0 || json.Unmarshal([]byte(stdout), &m) != nil || m.Up <= 0 || m.Down <= 0 || m.Idle.Count == 0 {
		t.Errorf("exit code %d, %q, %s", code, stdout, stderr)
	}
	if code, stdout, _ := o.run("", "bench", "-t", "100ms", "office"); code != 0 || strings.Count(stdout, "\n") != 4 {
		t.Errorf("exit code %d, %q", code, stdout)
	}
}

// A site that wants to know operators itself lets in those whose key it has.
func TestOperatorKey(t *testing.T) {
	o := startOffice(t)
	code, stdout, stderr := o.run("", "operator", "key")
	key, err := auth.ParsePublicKey(strings.TrimSpace(stdout))
	if code != 0 || err != nil {
		t.Fatalf("exit code %d, %q, %s", code, stdout, stderr)
	}
	if _, again, _ := o.run("", "operator", "key"); again != stdout {
		t.Errorf("then it is %q", again)
	}
	other, _, _ := ed25519.GenerateKey(nil)
	o.private.SetOperators([]ed25519.PublicKey{other})
	if code, _, stderr := o.run("", "connect", "office/echo"); code != exitDenied || !strings.Contains(stderr, strings.TrimSpace(stdout)) {
		t.Errorf("exit code %d, %s", code, stderr)
	}
	o.private.SetOperators([]ed25519.PublicKey{other, key})
	if code, _, stderr := o.run("", "connect", "office/echo"); code != 0 {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

func loadCertificates(t *testing.T, c auth.Certificates) (tls.Certificate, *x509.CertPool) {
	cert, err := tls.LoadX509KeyPair(c.Certificate, c.Key)
	if err != nil {
		t.Fatal(err)
	}
	pem, err := os.ReadFile(c.CA)
	if err != nil {
		t.Fatal(err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(pem)
	return cert, roots
}

func serverTLS(cert tls.Certificate) *tls.Config {
	return &tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"http/1.1"}}
}
