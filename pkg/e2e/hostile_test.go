//go:build linux

package e2e

import (
	"bytes"
	"crypto/sha256"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// crowd is how many hostile visitors there are of each kind.
const crowd = 1000

// dialFrom connects from the i-th of 250 loopback addresses.
func dialFrom(t testing.TB, i int, addr string) *net.TCPConn {
	t.Helper()
	d := net.Dialer{Timeout: waitLimit, LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 9, byte(1+i%250))}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatalf("visitor %d: %v", i, err)
	}
	t.Cleanup(func() { c.Close() })
	return c.(*net.TCPConn)
}

// neighbour asks for a page again and again until stop is closed; every answer has to be
// right, and to come within waitLimit.
func neighbour(t testing.TB, s *system, stop <-chan struct{}, done *sync.WaitGroup) {
	done.Add(1)
	c := s.visitor()
	c.Timeout = waitLimit
	go func() {
		defer done.Done()
		for n := 0; ; n++ {
			resp, err := c.Get("https://app.example.com/")
			if err != nil {
				t.Errorf("neighbour, request %d: %v", n, err)
				return
			}
			b, err := io.ReadAll(resp.Body)
			resp.Body.Close()
			if err != nil || resp.StatusCode != http.StatusOK || !bytes.Contains(b, []byte("behind the firewall")) {
				t.Errorf("neighbour, request %d: %s %q %v", n, resp.Status, b, err)
				return
			}
			select {
			case <-stop:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	}()
}

// grown fails when a program's memory has grown by more than limit.
func grown(t testing.TB, p *process, before int64, limit int64) {
	t.Helper()
	if now := p.rss(); now-before > limit {
		t.Errorf("%s has grown from %d to %d MiB", p.name, before>>20, now>>20)
	} else {
		t.Logf("%s: %d MiB, then %d MiB", p.name, before>>20, now>>20)
	}
}

func TestHostileVisitors(t *testing.T) {
	_, a := startTarget(t)
	s := startSystem(t,
		service{"app", "https://app.example.com", "http://" + startSink(t)},
		service{"plain", "http://app.example.com", "http://" + startSink(t)},
		service{"echo", "tcp://:{port}", "tcp://" + a.Echo})
	s.curl(s.url("app", "/"))
	before := s.public.rss()
	var wg sync.WaitGroup
	stop := make(chan struct{})
	neighbour(t, s, stop, &wg)

	// Half a ClientHello each.
	hello := clientHello(t)
	for i := range crowd {
		c := dialFrom(t, i, s.https)
		c.Write(hello[:len(hello)*(i%10)/10])
	}
	// Slow requests: some never end their head, some never send their body.
	config := &tls.Config{RootCAs: caPool(), ServerName: "app.example.com"}
	for i := range crowd {
		var c net.Conn
		if i%2 == 0 {
			c = dialFrom(t, i, s.http)
		} else {
			tc := tls.Client(dialFrom(t, i, s.https), config)
			tc.SetDeadline(time.Now().Add(waitLimit))
			if err := tc.Handshake(); err != nil {
				t.Fatalf("slow visitor %d: %v", i, err)
			}
			c = tc
		}
		io.WriteString(c, []string{
			"GE", "GET / HTTP/1.1\r\nHost: app.example.com\r\nX: ", "POST / HTTP/1.1\r\nHost: app.example.com\r\nContent-Length: 100000\r\n\r\nx",
		}[i%3])
	}
	// Noise on every port.
	noise := make([]byte, 10<<20)
	rand.NewChaCha8([32]byte{1}).Read(noise)
	for _, addr := range []string{s.https, s.http, s.admin, s.port("echo")} {
		for i := range 4 {
			c := dialFrom(t, i, addr)
			c.SetDeadline(time.Now().Add(waitLimit))
			wg.Go(func() { io.Copy(io.Discard, c) })
			// The relay hangs up in the middle of most of it.
			c.Write(noise[i*len(noise)/4 : (i+1)*len(noise)/4])
			c.CloseWrite()
		}
	}
	// Noise inside of TLS, and noise that begins like a WebSocket link.
	for i := range 4 {
		c := tls.Client(dialFrom(t, i, s.https), &tls.Config{RootCAs: caPool(), ServerName: "localhost"})
		c.SetDeadline(time.Now().Add(waitLimit))
		if i%2 == 0 {
			fmt.Fprintf(c, strings.Replace(wsRequest, "GET / ", "GET /.culvert/link ", 1), "localhost")
		}
		c.Write(noise[:1<<20])
		wg.Go(func() { io.Copy(io.Discard, c) })
	}
	if got := s.curl("-o", "/dev/null", "-w", "%{http_code}", s.url("app", "/")); got != "200" {
		t.Errorf("a new visitor got %s", got)
	}
	grown(t, s.public, before, 128<<20)
	close(stop)
	wg.Wait()
}

// clientHello is the first flight of a TLS client.
func clientHello(t testing.TB) []byte {
	t.Helper()
	a, b := net.Pipe()
	defer b.Close()
	c := tls.Client(a, &tls.Config{ServerName: "app.example.com"})
	go func() {
		c.Handshake() // fails when b is closed
		a.Close()
	}()
	buf := make([]byte, 16<<10)
	n, err := b.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	return buf[:n]
}

// TestStalledVisitors has a thousand visitors who stop reading in the middle of a download.
func TestStalledVisitors(t *testing.T) {
	s, b := webSystem(t)
	s.curl(s.url("app", "/"))
	public, private := s.public.rss(), s.private.rss()
	config := &tls.Config{RootCAs: caPool(), ServerName: "files.example.com"}
	var wg sync.WaitGroup
	gate := make(chan struct{}, 16)
	for i := range crowd {
		tcp := dialFrom(t, i, s.https)
		// What the kernel takes for a visitor is not the relay's memory: keep it small.
		tcp.SetReadBuffer(64 << 10)
		gate <- struct{}{}
		wg.Go(func() {
			defer func() { <-gate }()
			c := tls.Client(tcp, config)
			c.SetDeadline(time.Now().Add(waitLimit))
			// A MiB each is four times what a session has for a stream. All of the blob would fill what the system has
			// for TCP, with what nginx has sent and the private relay has not read.
			io.WriteString(c, "GET /blob HTTP/1.1\r\nHost: files.example.com\r\nRange: bytes=0-1048575\r\n\r\n")
			buf := make([]byte, 32<<10)
			if _, err := io.ReadFull(c, buf); err != nil || !bytes.HasPrefix(buf, []byte("HTTP/1.1 206 ")) {
				t.Errorf("visitor %d: %v %.40q", i, err, buf)
			}
		})
	}
	wg.Wait()

	// The neighbour's download passes by them.
	const size = 64 << 20
	got := sha256.New()
	cmd := s.curlCmd("--fail", "--range", fmt.Sprintf("0-%d", size-1), s.url("files", "/blob"))
	cmd.Stdout = got
	began := time.Now()
	err := cmd.Run()
	t.Logf("the neighbour's %d MiB took %v", size>>20, time.Since(began))
	f, openErr := os.Open(b.path)
	if openErr != nil {
		t.Fatal(openErr)
	}
	defer f.Close()
	want := sha256.New()
	io.CopyN(want, f, size)
	if err != nil || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		t.Errorf("the neighbour's download: %v, or it arrived wrong", err)
	}
	// A session may keep 256 MiB, and a collector may let it become twice that; what a thousand visitors cost comes on top.
	// Without a bound they would have all of their MiB there, and as much garbage.
	grown(t, s.public, public, 768<<20)
	grown(t, s.private, private, 512<<20)
}

// TestSilentWebSockets shows that a silent WebSocket holds no goroutine in either relay.
func TestSilentWebSockets(t *testing.T) {
	t.Parallel()
	_, a := startTarget(t)
	s := startSystem(t, service{"app", "wss://app.example.com", "http://" + a.HTTP})
	goroutines := func() int {
		t.Helper()
		m := regexp.MustCompile(`^goroutine profile: total (\d+)`).FindStringSubmatch(s.adminGet("/debug/pprof/goroutine?debug=1"))
		if m == nil {
			t.Fatal("the admin listener has no goroutine profile")
		}
		n, _ := strconv.Atoi(m[1])
		return n
	}
	before := goroutines()
	l := startLoad(t, nil, job{Kind: "idle-ws", Addr: s.https, TLS: true, Host: "app.example.com", Conns: crowd})
	defer l.stop()
	if open := l.result(t).Open; open != crowd {
		t.Fatalf("%d of %d WebSockets are open", open, crowd)
	}
	if after := goroutines(); after > before+20 {
		t.Errorf("relay-public: %d goroutines became %d with %d WebSockets", before, after, crowd)
	}
	// The private relay has no listener to ask: its last words are its stacks.
	s.private.signal(t, syscall.SIGQUIT)
	s.private.wait(t, waitLimit)
	n := 0
	for from := 0; ; n++ {
		_, next, ok := s.private.find(from, "goroutine ", " [")
		if !ok {
			break
		}
		from = next
	}
	if n == 0 || n > 60 {
		t.Errorf("relay-private: %d goroutines with %d WebSockets", n, crowd)
	}
}
