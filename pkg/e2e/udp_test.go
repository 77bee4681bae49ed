//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pires/go-proxyproto"
)

// datagram is one that a udpServer has received.
type datagram struct {
	from netip.AddrPort
	text string
}

// udpServer answers each datagram with itself, and remembers the last ones.
type udpServer struct {
	conn *net.UDPConn
	addr string
	came chan datagram
	done chan struct{}
}

func startUDP(t testing.TB, addr string) *udpServer {
	t.Helper()
	conn, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &udpServer{conn: conn.(*net.UDPConn), addr: conn.LocalAddr().String(), came: make(chan datagram, 1000), done: make(chan struct{})}
	go s.serve()
	t.Cleanup(s.stop)
	return s
}

func (s *udpServer) serve() {
	defer close(s.done)
	buf := make([]byte, 64<<10)
	for {
		n, from, err := s.conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return
		}
		select {
		case s.came <- datagram{from, string(buf[:n])}:
		default:
		}
		s.conn.WriteToUDPAddrPort(buf[:n], from)
	}
}

func (s *udpServer) stop() {
	s.conn.Close()
	<-s.done
}

// next is the next datagram that comes.
func (s *udpServer) next(t testing.TB) datagram {
	t.Helper()
	select {
	case d := <-s.came:
		return d
	case <-time.After(waitLimit):
		t.Fatal("no datagram has come")
		return datagram{}
	}
}

// udpVisitor is a visitor of a udp service.
type udpVisitor struct {
	net.Conn
	t    testing.TB
	buf  []byte
	sent map[string]bool // by Write
}

func dialUDP(t testing.TB, addr string) *udpVisitor {
	t.Helper()
	c, err := net.Dial("udp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return &udpVisitor{c, t, make([]byte, 64<<10), map[string]bool{}}
}

func (v *udpVisitor) Write(b []byte) (int, error) {
	v.sent[string(b)] = true
	return v.Conn.Write(b)
}

// ask sends b until it comes back, and reports how often that was. Datagrams may be lost, but
// what comes is whole.
func (v *udpVisitor) ask(b []byte) (sent int) {
	v.t.Helper()
	for began := time.Now(); time.Since(began) < waitLimit; {
		if _, err := v.Write(b); err != nil {
			v.t.Fatal(err)
		}
		sent++
		v.SetReadDeadline(time.Now().Add(time.Second))
		for {
			n, err := v.Read(v.buf)
			if errors.Is(err, os.ErrDeadlineExceeded) {
				break
			} else if err != nil {
				v.t.Fatal(err)
			}
			if bytes.Equal(v.buf[:n], b) {
				return sent
			}
			if !v.sent[string(v.buf[:n])] { // or else it is late
				v.t.Fatalf("%d bytes %.20q came back, want %d bytes %.20q", n, v.buf[:n], len(b), b)
			}
		}
	}
	v.t.Fatalf("no answer to %d bytes", len(b))
	return sent
}

func random(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(rand.Uint32())
	}
	return b
}

// Datagrams of every size come whole, and those of two visitors are two flows.
func TestUDP(t *testing.T) {
	server := startUDP(t, "127.0.0.1:0")
	s := startSystem(t, service{"echo", "udp://:{port}", "udp://" + server.addr})
	a, b := dialUDP(t, s.port("echo")), dialUDP(t, s.port("echo"))
	sent := 0
	sizes := []int{0, 1, 2, 100, 512, 1200, 1472, 1473, 4096, 8191, 16384, 32768, 65000, 65506, 65507}
	for range 100 {
		sizes = append(sizes, rand.IntN(65508))
	}
	for _, n := range sizes {
		sent += a.ask(random(n))
		sent += b.ask(random(n))
	}
	if most := len(sizes) * 2; sent > most+most/20 {
		t.Errorf("%d datagrams were sent for %d to come back", sent, most)
	}
	flows := map[netip.AddrPort]bool{}
	for len(server.came) > 0 {
		flows[server.next(t).from] = true
	}
	if len(flows) != 2 {
		t.Errorf("the server has seen %d peers, want one for each visitor", len(flows))
	}
	status := s.adminGet("/api/status/Get")
	if !strings.Contains(status, `"visitors":2`) || !strings.Contains(status, `"datagrams_received":`) {
		t.Errorf("status: %s", status)
	}
	out, err := s.tunnelctl("connect", "office/echo").CombinedOutput()
	if err == nil || !strings.Contains(string(out), "carries datagrams") {
		t.Errorf("tunnelctl connect of a udp service: %v, %s", err, out)
	}
}

// A flow outlives the links, and a target that is away for a while.
func TestUDPFaults(t *testing.T) {
	t.Parallel()
	server := startUDP(t, freeAddr(t)) // it is started again there
	s := startSystem(t, service{"echo", "udp://:{port}", "udp://" + server.addr})
	v := dialUDP(t, s.port("echo"))
	v.ask([]byte("one"))
	flow := server.next(t).from
	for i := range 5 {
		s.link.cut()
		v.ask(fmt.Appendf(nil, "after cut %d", i))
	}
	s.link.stall()
	v.Write([]byte("lost, or late"))
	time.Sleep(100 * time.Millisecond)
	s.link.flow()
	v.ask([]byte("after a stall"))

	server.stop()
	v.Write([]byte("is anybody there?"))
	s.private.await(t, 0, "target cannot be reached", "echo")
	again := startUDP(t, server.addr)
	v.ask([]byte("after the restart"))
	s.private.await(t, 0, "target is back", "echo")
	for _, server := range []*udpServer{server, again} {
		for len(server.came) > 0 {
			if d := server.next(t); d.from != flow {
				t.Errorf("%q came from %v, and the first datagram from %v", d.text, d.from, flow)
			}
		}
	}
	if line, _, ok := s.private.find(0, "target cannot be reached"); ok {
		if _, _, again := s.private.find(s.private.lines(), "target cannot be reached"); again {
			t.Errorf("the log repeats %s", line)
		}
	}
}

// A reload takes flows to the new target, and a service that is gone has none.
func TestUDPReload(t *testing.T) {
	t.Parallel()
	one, two := startUDP(t, "127.0.0.1:0"), startUDP(t, "127.0.0.1:0")
	s := startSystem(t, service{"echo", "udp://:{port}", "udp://" + one.addr})
	v := dialUDP(t, s.port("echo"))
	v.ask([]byte("one"))
	s.services[0].target = "udp://" + two.addr
	s.writePrivate()
	n := s.private.lines()
	s.private.signal(t, hangup)
	s.private.await(t, n, "service up", "echo")
	v.ask([]byte("two"))
	if d := two.next(t); d.text != "two" {
		t.Errorf("the new target got %q", d.text)
	}
	addr := s.port("echo")
	s.services = nil
	s.writePrivate()
	n = s.public.lines()
	s.private.signal(t, hangup)
	s.public.await(t, n, "services published")
	pc, err := net.ListenPacket("udp", addr)
	if err != nil {
		t.Fatalf("the port of a service that is gone: %v", err)
	}
	pc.Close()
}

// A name server behind the relays, asked by dig.
func TestDNS(t *testing.T) {
	t.Parallel()
	dnsmasq, dig := tool(t, "dnsmasq", "dnsmasq-base", "/usr/sbin/dnsmasq"), tool(t, "dig", "bind9-dnsutils")
	var text []string
	for i := range 15 {
		text = append(text, strings.Repeat(string(rune('a'+i)), 250))
	}
	port := freePort(t)
	p := start(t, "dnsmasq", exec.Command(dnsmasq, "--keep-in-foreground", "--no-resolv", "--no-hosts", "--user=", "--group=", "--conf-file=/dev/null",
		"--pid-file=", "--log-facility=-", "--listen-address=127.0.0.1", "--bind-interfaces", fmt.Sprintf("--port=%d", port), "--edns-packet-max=4096",
		"--address=/office.test/192.0.2.80", "--txt-record=large.test,"+strings.Join(text, ",")))
	awaitPort(t, p, "tcp", fmt.Sprintf("127.0.0.1:%d", port))
	s := startSystem(t, service{"dns", "udp://:{port}", fmt.Sprintf("udp://127.0.0.1:%d", port)})
	_, at, _ := strings.Cut(s.port("dns"), ":")
	ask := func(args ...string) string {
		t.Helper()
		return run(t, exec.Command(dig, append([]string{"@127.0.0.1", "-p", at, "+ignore", "+notcp", "+time=2", "+tries=5"}, args...)...))
	}
	if out := ask("+short", "A", "www.office.test"); out != "192.0.2.80\n" {
		t.Errorf("A: %q", out)
	}
	out := ask("+bufsize=4096", "TXT", "large.test")
	for _, part := range text {
		if !strings.Contains(out, part) {
			t.Fatalf("an answer of almost 4 KiB: %s", out)
		}
	}
	if !strings.Contains(out, "MSG SIZE  rcvd: 3") {
		t.Errorf("the answer is not as large as it should be: %s", out[len(out)-200:])
	}
	// A resolver asks each question from another port.
	names := s.dir + "/names"
	var list strings.Builder
	for i := range 500 {
		fmt.Fprintf(&list, "h%d.office.test A\n", i)
	}
	writeFile(t, names, list.String())
	if n := strings.Count(ask("+short", "-f", names), "192.0.2.80\n"); n != 500 {
		t.Errorf("%d answers to 500 questions", n)
	}
}

// Messages of logger come one by one, and each whole.
func TestSyslog(t *testing.T) {
	t.Parallel()
	logger := tool(t, "logger", "bsdutils")
	server := startUDP(t, "127.0.0.1:0")
	s := startSystem(t, service{"log", "udp://:{port}", "udp://" + server.addr})
	_, port, _ := strings.Cut(s.port("log"), ":")
	long := strings.Repeat("0123456789", 800)
	for _, message := range []string{"disk is full", long} {
		run(t, exec.Command(logger, "--udp", "--server", "127.0.0.1", "--port", port, "--rfc5424", "--size", "10KiB", "--tag", "test", message))
		if d := server.next(t); !strings.HasPrefix(d.text, "<13>1 ") || !strings.HasSuffix(strings.TrimRight(d.text, "\n\x00"), message) {
			t.Errorf("the server got %.100q, want %.100q at its end", d.text, message)
		}
	}
}

// The addresses of visitors, from nginx in front of the public relay to nginx and others
// behind the private one.
func TestProxyProtocol(t *testing.T) {
	t.Parallel()
	v1, v2, plain, front, frontTCP := freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t), freeAddr(t)
	udp := startUDP(t, "127.0.0.1:0")
	show := `location / { default_type text/plain; return 200 "$proxy_protocol_addr $http_x_forwarded_for\n"; }`
	target := startNginx(t, "nginx behind", fmt.Sprintf(`
server { listen %s proxy_protocol; listen %s proxy_protocol; %s }
server { listen %s; %[3]s }
`, v1, v2, show, plain), "")
	awaitPort(t, target, "tcp", plain)

	s := configure(t, nil,
		service{"web", "https://app.example.com", "http://" + plain},
		service{"one", "tcp://:{port}", "tcp://" + v1},
		service{"two", "tcp://:{port}", "tcp://" + v2},
		service{"log", "udp://:{port}", "udp://" + udp.addr})
	s.listen = `proxy_protocol = ["127.0.0.2"]`
	s.startPublic()
	toml := s.privateTOML("office", s.relay(), s.file("office.key"))
	for target, version := range map[string]int{v1: 1, v2: 2, udp.addr: 2} {
		toml = strings.Replace(toml, target+"\"\n", fmt.Sprintf("%s\"\nproxy_protocol = %d\n", target, version), 1)
	}
	writeFile(t, s.file("private.toml"), toml)
	s.private = startRelay(t, "relay-private", "--config", s.file("private.toml"))
	s.private.await(t, 0, `"msg":"ready"`)

	// nginx is at 127.0.0.2, and its visitors at 127.0.0.3.
	proxy := startNginx(t, "nginx in front", "", fmt.Sprintf(`
server { listen %s; proxy_pass %s; proxy_protocol on; proxy_bind 127.0.0.2; }
server { listen %s; proxy_pass %s; proxy_protocol on; proxy_bind 127.0.0.2; }
`, front, s.https, frontTCP, s.port("two")))
	awaitPort(t, proxy, "tcp", front)
	get := func(addr, url string) string {
		t.Helper()
		return run(t, exec.Command(tool(t, "curl", "curl"), "--silent", "--show-error", "--max-time", "60", "--noproxy", "*",
			"--cacert", certFile("ca.pem"), "--interface", "127.0.0.3", "--connect-to", "::"+addr, url))
	}
	for _, tt := range []struct{ way, addr, url, want string }{
		{"https", s.https, "https://app.example.com/", " 127.0.0.3\n"},
		{"https through nginx", front, "https://app.example.com/", " 127.0.0.3\n"},
		{"tcp, version 1 behind", s.port("one"), "http://a.example.com/", "127.0.0.3 \n"},
		{"tcp through nginx, version 2 behind", frontTCP, "http://a.example.com/", "127.0.0.3 \n"},
	} {
		if got := get(tt.addr, tt.url); got != tt.want {
			t.Errorf("%s: %q, want %q", tt.way, got, tt.want)
		}
	}

	visitor := dialUDP(t, s.port("log"))
	for _, want := range []string{"hello", "again"} { // one after the other, as another link may be made for them meanwhile
		visitor.Write([]byte(want))
		r := bufio.NewReader(strings.NewReader(udp.next(t).text))
		h, err := proxyproto.Read(r)
		if err != nil {
			t.Fatal(err)
		}
		rest, _ := r.Peek(r.Buffered())
		if from, to, ok := h.UDPAddrs(); !ok || from.String() != visitor.LocalAddr().String() || to.String() != udp.addr || string(rest) != want {
			t.Errorf("a datagram from %v to %v: %q, want %q from %v", from, to, rest, want, visitor.LocalAddr())
		}
	}
}

// Many datagrams at once, both ways: those that are lost are few, and no stream waits for them.
func TestUDPFlood(t *testing.T) {
	server := startUDP(t, "127.0.0.1:0")
	_, a := startTarget(t)
	s := startSystemDirect(t, service{"echo", "udp://:{port}", "udp://" + server.addr}, service{"tcp", "tcp://:{port}", "tcp://" + a.Echo})
	ctx, stop := context.WithCancel(t.Context())
	var wg sync.WaitGroup
	for range 4 {
		v := dialUDP(t, s.port("echo"))
		b := random(1200)
		wg.Go(func() {
			for ctx.Err() == nil {
				for range 50 {
					v.Write(b)
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
	c, err := net.Dial("tcp", s.port("tcp"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(waitLimit))
	buf := make([]byte, 64)
	for i := range 200 {
		if err := roundTrip(c, buf); err != nil {
			t.Fatalf("round trip %d beside the flood: %v", i, err)
		}
	}
	stop()
	wg.Wait()
	dialUDP(t, s.port("echo")).ask([]byte("after the flood"))
}
