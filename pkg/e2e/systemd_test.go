//go:build linux

package e2e

import (
	"crypto/tls"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// serviceManager is as much of systemd as a service of ours sees: sockets that stay open between two runs of it,
// messages, and a watchdog that only counts.
type serviceManager struct {
	t        testing.TB
	conn     *net.UnixConn
	path     string
	watchdog time.Duration
	sockets  []*os.File
	names    []string

	mu       sync.Mutex
	messages []string
	added    chan struct{} // closed and replaced at each message
}

func startServiceManager(t testing.TB) *serviceManager {
	t.Helper()
	m := &serviceManager{t: t, path: tempDir(t) + "/notify", watchdog: 200 * time.Millisecond, added: make(chan struct{})}
	var err error
	if m.conn, err = net.ListenUnixgram("unixgram", &net.UnixAddr{Name: m.path, Net: "unixgram"}); err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go m.read(done)
	t.Cleanup(func() {
		m.conn.Close()
		<-done
		for _, f := range m.sockets {
			f.Close()
		}
		if t.Failed() {
			t.Logf("--- messages\n%s", strings.ReplaceAll(strings.Join(m.messages, "\n"), "WATCHDOG=1\n", ""))
		}
	})
	return m
}

func (m *serviceManager) read(done chan<- struct{}) {
	defer close(done)
	b := make([]byte, 4096)
	for {
		n, err := m.conn.Read(b)
		if err != nil {
			return
		}
		m.mu.Lock()
		m.messages = append(m.messages, string(b[:n]))
		close(m.added)
		m.added = make(chan struct{})
		m.mu.Unlock()
	}
}

// listen opens a socket of a .socket unit and returns its address.
func (m *serviceManager) listen(name string) string {
	m.t.Helper()
	ln, err := net.Listen("tcp", freeAddr(m.t))
	if err != nil {
		m.t.Fatal(err)
	}
	defer ln.Close()
	f, err := ln.(*net.TCPListener).File()
	if err != nil {
		m.t.Fatal(err)
	}
	m.sockets, m.names = append(m.sockets, f), append(m.names, name)
	return ln.Addr().String()
}

// listenPacket opens a UDP socket at an address.
func (m *serviceManager) listenPacket(name, address string) {
	m.t.Helper()
	pc, err := net.ListenPacket("udp", address)
	if err != nil {
		m.t.Fatal(err)
	}
	defer pc.Close()
	f, err := pc.(*net.UDPConn).File()
	if err != nil {
		m.t.Fatal(err)
	}
	m.sockets, m.names = append(m.sockets, f), append(m.names, name)
}

// start runs a service, with the sockets, and waits until it is ready.
func (m *serviceManager) start(name string, args ...string) *process {
	m.t.Helper()
	cmd := exec.Command("/bin/sh", append([]string{"-c", `LISTEN_PID=$$ WATCHDOG_PID=$$ exec "$0" "$@"`, command(m.t, name)}, args...)...)
	cmd.ExtraFiles = m.sockets
	cmd.Env = append(os.Environ(), "NOTIFY_SOCKET="+m.path, fmt.Sprint("WATCHDOG_USEC=", m.watchdog.Microseconds()),
		fmt.Sprint("LISTEN_FDS=", len(m.sockets)), "LISTEN_FDNAMES="+strings.Join(m.names, ":"))
	from := m.count()
	p := start(m.t, name, cmd)
	p.abrupt = true
	m.await(from, "READY=1")
	return p
}

// count is the number of messages so far, for a later await.
func (m *serviceManager) count() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return len(m.messages)
}

// await waits for a message, at or after number from, that has the prefix.
func (m *serviceManager) await(from int, prefix string) string {
	m.t.Helper()
	if s, ok := m.heard(from, prefix, waitLimit); ok {
		return s
	}
	m.t.Fatalf("no message %q", prefix)
	return ""
}

func (m *serviceManager) heard(from int, prefix string, limit time.Duration) (string, bool) {
	timeout := time.After(limit)
	for {
		m.mu.Lock()
		added := m.added
		for i := from; i < len(m.messages); i++ {
			if strings.HasPrefix(m.messages[i], prefix) {
				defer m.mu.Unlock()
				return m.messages[i], true
			}
		}
		m.mu.Unlock()
		select {
		case <-added:
		case <-timeout:
			return "", false
		}
	}
}

// TestServiceManager runs both relays as services: they say when they are ready and what they do, their watchdogs are
// fed while their loops turn, and they say when they stop.
func TestServiceManager(t *testing.T) {
	t.Parallel()
	m := startServiceManager(t)
	s := configure(t, nil, service{"blob", "https://blob.example.com", "http://127.0.0.1:9"})
	s.https, s.admin, s.http = m.listen("culvert.socket"), "127.0.0.1:0", ""
	m.listenPacket("culvert.socket", s.https)
	admin := m.listen("admin") // found by its name
	s.writePublic()
	s.public = m.start("relay-public", "--config", s.file("public.toml"))
	line := s.public.await(t, 0, `"msg":"ready"`)
	for _, want := range []string{`"https":"` + s.https, `"quic":"` + s.https, `"admin":"` + admin} {
		if !strings.Contains(line, want) {
			t.Errorf("the relay does not listen at %s: %s", want, line)
		}
	}
	s.options = "transport = \"quic\"\n"
	s.writePrivate()
	own := startServiceManager(t)
	from := m.count()
	s.private = own.start("relay-private", "--config", s.file("private.toml"))
	own.await(0, "STATUS=linked to localhost:")
	m.await(from, "STATUS=1 sessions, 1 of them linked; 1 services;")

	for _, p := range []struct {
		*process
		*serviceManager
	}{{s.public, m}, {s.private, own}} {
		for range 3 {
			p.serviceManager.await(p.count(), "WATCHDOG=1")
		}
		p.signal(t, syscall.SIGSTOP)
		for range 10 { // what it said before, which may still be on its way
			if _, ok := p.heard(p.count(), "WATCHDOG=1", p.watchdog); !ok {
				break
			}
		}
		if _, ok := p.heard(p.count(), "WATCHDOG=1", 3*p.watchdog); ok {
			t.Errorf("the watchdog of %s is fed while nothing of it turns", p.name)
		}
		p.signal(t, syscall.SIGCONT)
		p.serviceManager.await(p.count(), "WATCHDOG=1")
	}

	from = m.count()
	s.public.signal(t, syscall.SIGHUP)
	m.await(from, "RELOADING=1\nMONOTONIC_USEC=")
	m.await(from, "READY=1")
	for _, p := range []*process{s.private, s.public} {
		p.signal(t, syscall.SIGTERM)
		if code := p.wait(t, waitLimit); code != 0 {
			t.Errorf("%s ended with %d", p.name, code)
		}
	}
	for _, m := range []*serviceManager{m, own} {
		m.await(0, "STOPPING=1\nEXTEND_TIMEOUT_USEC=")
	}
}

// TestRestartRefusesNobody restarts a public relay whose sockets are the service manager's, while visitors come all the
// time, over TLS and to the port of a service: every one of them is answered.
func TestRestartRefusesNobody(t *testing.T) {
	t.Parallel()
	_, a := startTarget(t)
	m := startServiceManager(t)
	s := configure(t, nil, service{"web", "https://app.example.com", "http://" + a.HTTP})
	s.https, s.admin, s.http = m.listen("culvert.socket"), m.listen("admin"), ""
	echo := m.listen("culvert.socket")
	_, port, _ := strings.Cut(echo, ":")
	s.services = append(s.services, service{"echo", "tcp://127.0.0.1:" + port, a.Echo})
	s.services[1].target = "tcp://" + a.Echo
	s.sites = siteTOML("office", s.key, append(allowed, "tcp://127.0.0.1:*")...)
	s.writePublic()
	args := []string{"--config", s.file("public.toml")}
	s.public = m.start("relay-public", args...)
	s.startPrivate()

	var answered [2]atomic.Int64
	var wg sync.WaitGroup
	over := make(chan struct{})
	loop := func(i int, visit func() error) {
		wg.Go(func() {
			for {
				select {
				case <-over:
					return
				default:
				}
				if err := visit(); err != nil {
					t.Errorf("a visitor of %s: %v", s.services[i].name, err)
				} else {
					answered[i].Add(1)
				}
			}
		})
	}
	roots := s.visitor().Transport.(*http.Transport).TLSClientConfig.RootCAs
	for range 3 {
		loop(0, func() error {
			c, err := tls.DialWithDialer(&net.Dialer{Timeout: waitLimit}, "tcp", s.https, &tls.Config{RootCAs: roots, ServerName: "app.example.com"})
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(waitLimit))
			io.WriteString(c, "GET /1000 HTTP/1.1\r\nHost: app.example.com\r\nConnection: close\r\n\r\n")
			b, err := io.ReadAll(c)
			if err == nil && !strings.HasPrefix(string(b), "HTTP/1.1 200 ") {
				err = fmt.Errorf("%.300q", b)
			}
			return err
		})
		loop(1, func() error {
			c, err := net.DialTimeout("tcp", echo, waitLimit)
			if err != nil {
				return err
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(waitLimit))
			return roundTrip(c, make([]byte, 5))
		})
	}
	for range 3 {
		time.Sleep(500 * time.Millisecond)
		before := [2]int64{answered[0].Load(), answered[1].Load()}
		s.public.signal(t, syscall.SIGTERM)
		if code := s.public.wait(t, waitLimit); code != 0 {
			t.Errorf("ended with %d", code)
		}
		s.public = m.start("relay-public", args...)
		for i := range answered {
			for deadline := time.Now().Add(waitLimit); answered[i].Load() < before[i]+20; time.Sleep(10 * time.Millisecond) {
				if time.Now().After(deadline) {
					t.Fatalf("%s does not come back", s.services[i].name)
				}
			}
		}
	}
	close(over)
	wg.Wait()
	t.Logf("%d requests and %d connections, all answered", answered[0].Load(), answered[1].Load())
}

// TestTwoOnOneFolder starts a second public relay on the state folder of the first.
func TestTwoOnOneFolder(t *testing.T) {
	t.Parallel()
	s := newSystem(t)
	again := startRelay(t, "relay-public", "--config", s.file("public.toml"))
	if code := again.wait(t, waitLimit); code != 1 {
		t.Errorf("exit code %d", code)
	}
	if line, _, ok := again.find(0, "state", fmt.Sprintf("is in use by another process (pid %d)", s.public.cmd.Process.Pid)); !ok {
		t.Errorf("it said %q", line)
	}
	s.public.kill()
	s.startPublic() // a lock dies with its process
}
