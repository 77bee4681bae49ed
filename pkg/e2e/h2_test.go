//go:build linux

package e2e

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// resolving is a command in a world of its own where the hosts of example.com are at
// 127.0.0.1, for programs that can be told a name or an address, and not both.
func resolving(t testing.TB, program string, args ...string) *exec.Cmd {
	t.Helper()
	hosts := filepath.Join(tempDir(t), "hosts")
	writeFile(t, hosts, "127.0.0.1 localhost app.example.com files.example.com ws.example.com cams.example.com\n")
	return exec.Command(tool(t, "unshare", "util-linux"), append([]string{"--mount", "sh", "-c", `mount --bind "$0" /etc/hosts && exec "$@"`, hosts, program}, args...)...)
}

// largeSize is the size of /large below.
const largeSize = 32 << 20

// webH2 publishes a web server as app, and as files a folder with /large, whose SHA-256 is
// returned.
func webH2(t testing.TB) (s *system, large string) {
	t.Helper()
	srv := httptest.NewServer(http.HandlerFunc(serveH2))
	t.Cleanup(srv.Close)
	dir, b := tempDir(t), make([]byte, largeSize)
	rand.NewChaCha8([32]byte{2}).Read(b)
	writeFile(t, filepath.Join(dir, "large"), string(b))
	return startSystem(t,
		service{"app", "https://app.example.com", srv.URL},
		service{"files", "https://files.example.com", "file://" + dir}), fmt.Sprintf("%x", sha256.Sum256(b))
}

// serveH2 is serveSink with an answer that has trailers.
func serveH2(w http.ResponseWriter, r *http.Request) {
	if r.URL.Path != "/trailers" {
		serveSink(w, r)
		return
	}
	w.Header().Set("Trailer", "X-Sum")
	n, _ := io.Copy(io.Discard, r.Body)
	w.WriteHeader(http.StatusOK)
	fmt.Fprintf(w, "%d bytes and %q", n, r.Trailer.Get("X-Told"))
	w.Header().Set("X-Sum", "42")
}

// TestH2Spec runs h2spec against the listener, as a visitor of a service.
func TestH2Spec(t *testing.T) {
	t.Parallel()
	s, _ := webH2(t)
	_, port, _ := net.SplitHostPort(s.https)
	out, err := resolving(t, builtTool(t, "h2spec"), "--tls", "--insecure", "--host", "app.example.com", "--port", port, "--timeout", "15").CombinedOutput()
	if err != nil || !bytes.Contains(out, []byte(" 0 skipped, 0 failed")) {
		_, failures, _ := strings.Cut(string(out), "Failures:")
		t.Errorf("%v\n%s", err, failures)
	}
}

// TestH2Load shows that no request fails when there are many at a time.
func TestH2Load(t *testing.T) {
	t.Parallel()
	s, _ := webH2(t)
	body := filepath.Join(tempDir(t), "body")
	writeFile(t, body, strings.Repeat("0123456789abcdef", 16<<10))
	for name, args := range map[string][]string{
		"requests":  {"app.example.com/", "-n", "20000", "-c", "20", "-m", "100"},
		"uploads":   {"app.example.com/up", "-n", "200", "-c", "5", "-m", "20", "-d", body},
		"downloads": {"files.example.com/large", "-n", "8", "-c", "2", "-m", "4", "-w", "20", "-W", "22"},
	} {
		t.Run(name, func(t *testing.T) { h2load(t, s.https, args[0], args[1:]...) })
	}
}

// TestH2Clients reads what curl and nghttp say of the same answers.
func TestH2Clients(t *testing.T) {
	t.Parallel()
	s, large := webH2(t)
	_, port, _ := net.SplitHostPort(s.https)
	file := filepath.Join(tempDir(t), "large")
	t.Run("curl", func(t *testing.T) {
		if got := s.curl("--http2", "-o", "/dev/null", "-w", "%{http_code} %{http_version}", s.url("app", "/")); got != "200 2" {
			t.Error(got)
		}
		s.curl("--http2", "-o", file, s.url("files", "/large"))
		if got, want := s.curl("--http2", "--upload-file", file, s.url("app", "/up")), fmt.Sprintf("%d %s", largeSize, large); got != want {
			t.Errorf("arrived: %s, want %s", got, want)
		}
		if got := s.curl("--http2", s.url("app", "/headers")); !strings.Contains(got, "X-Forwarded-For: 127.0.0.1\n") || !strings.Contains(got, "X-Forwarded-Proto: https\n") {
			t.Errorf("forwarding fields:\n%s", got)
		}
		if got := s.curl("--http2", "-o", "/dev/null", "-w", "%{http_code}", s.url("nobody", "/")); got != "404" {
			t.Errorf("unknown host: %s", got)
		}
	})
	t.Run("trailers in both directions", func(t *testing.T) {
		body := filepath.Join(tempDir(t), "body")
		writeFile(t, body, "hello")
		out := run(t, resolving(t, tool(t, "nghttp", "nghttp2-client"), "-v", "--no-content-length", "--trailer", "x-told: secret", "--data", body, "https://app.example.com:"+port+"/trailers"))
		for _, want := range []string{`5 bytes and "secret"`, "x-sum: 42", ":status: 200"} {
			if !strings.Contains(out, want) {
				t.Errorf("no %q in\n%s", want, out)
			}
		}
	})
	t.Run("a download outlives three cuts of the link", func(t *testing.T) {
		done := make(chan string)
		at := s.link.total()
		go func() { done <- download(t, s.curlCmd("--http2", s.url("files", "/large"))) }()
		for i := range int64(3) {
			s.link.awaitTotal(at + largeSize*(i+1)/5)
			s.link.cut()
		}
		if got := <-done; got != large {
			t.Errorf("SHA-256 %s, want %s", got, large)
		}
	})
}

// TestH2WebSocket speaks with a WebSocket server over RFC 8441.
func TestH2WebSocket(t *testing.T) {
	t.Parallel()
	s := startSystem(t, service{"ws", "wss://ws.example.com", "http://127.0.0.1:" + startPython(t, nil)})
	c := dialH2(t, 0, s.https, "ws.example.com")
	c.hello(t)
	if c.settings[http2.SettingEnableConnectProtocol] != 1 {
		t.Fatalf("settings %v: no SETTINGS_ENABLE_CONNECT_PROTOCOL", c.settings)
	}
	connect := func(id uint32) {
		c.headers(id, false, [][2]string{{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "https"}, {":authority", "ws.example.com"}, {":path", "/"},
			{"sec-websocket-version", "13"}, {"sec-websocket-protocol", "x, chat"}, {"origin", "https://ws.example.com"}}...)
	}
	got := func(id uint32, want string) {
		t.Helper()
		for a := c.answers[id]; a == nil || len(a.body) < len(want); a = c.answers[id] {
			if a != nil && (a.ended || a.reset != nil) {
				t.Fatalf("over after %q", a.body)
			}
			if _, err := c.next(); err != nil {
				t.Fatal(err)
			}
		}
		a := c.answers[id]
		if a.status != "200" || a.field("sec-websocket-protocol") != "chat" || a.field("sec-websocket-accept") != "" || string(a.body) != want {
			t.Fatalf("stream %d: %s %v %q, want %q", id, a.status, a.fields, a.body, want)
		}
	}
	// Two conversations on one connection, and the link is cut below them.
	for _, id := range []uint32{1, 3} {
		connect(id)
		c.WriteData(id, false, wsPing)
		got(id, string(wsReply))
	}
	s.link.cut()
	for _, id := range []uint32{3, 1} {
		c.WriteData(id, false, wsPing)
		got(id, string(wsReply)+string(wsReply))
	}
	// A close frame is answered with one, and then the stream ends.
	c.WriteData(1, false, []byte("\x88\x82\x00\x00\x00\x00\x03\xe8"))
	a, err := c.await(1)
	if err != nil || !a.ended || !bytes.HasSuffix(a.body, []byte("\x88\x02\x03\xe8")) {
		t.Errorf("closed: %+v %v", a, err)
	}
	c.WriteData(3, false, wsPing)
	got(3, strings.Repeat(string(wsReply), 3))
}

// flood is a visitor over HTTP/2 that is not interested in answers.
type flood struct {
	name string
	// attack sends until n is reached or the connection is given up, which is an error.
	attack func(t *testing.T, s *system, i, n int) error
	// endures: the relay need not give the connection up, as long as the others are served.
	endures bool
}

var errSurvived = errors.New("the relay has taken it all")

// repeat calls send for each of n, reading nothing, until the connection fails.
func repeat(c *rawH2, n int, send func(i int) error) error {
	for i := range n {
		if err := send(i); err != nil {
			return err
		}
	}
	// What is said now is not lost in buffers.
	for {
		if _, err := c.next(); err != nil {
			return err
		}
		if c.goaway != nil {
			return errGoAway
		}
		if err := c.WritePing(false, [8]byte{}); err != nil {
			return err
		}
		if f, err := c.next(); err != nil {
			return err
		} else if p, ok := f.(*http2.PingFrame); ok && p.IsAck() {
			return errSurvived
		}
	}
}

var floods = []flood{
	{name: "rapid reset", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		block := c.encode(get("app.example.com", "/")...)
		return repeat(c, n, func(i int) error {
			id := uint32(2*i + 1)
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: true, EndHeaders: true})
			return c.WriteRSTStream(id, http2.ErrCodeCancel)
		})
	}},
	{name: "resets that the relay is made to send", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		block := c.encode(get("app.example.com", "/")...)
		return repeat(c, n, func(i int) error {
			id := uint32(2*i + 1)
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block, EndStream: false, EndHeaders: true})
			return c.WriteWindowUpdate(id, 0)
		})
	}},
	{name: "requests beyond the limit", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		return repeat(c, n, func(i int) error { return c.headers(uint32(2*i+1), false, get("app.example.com", "/")...) })
	}},
	{name: "malformed requests", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		return repeat(c, n, func(i int) error {
			return c.headers(uint32(2*i+1), true, get("app.example.com", "/", [2]string{"Connection", "close"})...)
		})
	}},
	{name: "CONTINUATION without end", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode(get("app.example.com", "/")...)})
		field := c.encode([2]string{"x", "y"})
		return repeat(c, n, func(int) error { return c.WriteContinuation(1, false, field) })
	}},
	{name: "CONTINUATION without anything", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: c.encode(get("app.example.com", "/")...)})
		return repeat(c, n, func(int) error { return c.WriteContinuation(1, false, nil) })
	}},
	{name: "SETTINGS", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		return repeat(c, n, func(int) error { return c.WriteSettings() })
	}},
	{name: "PING", endures: true, attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		return repeat(c, n, func(int) error { return c.WritePing(false, [8]byte{}) })
	}},
	{name: "PRIORITY", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		return repeat(c, n, func(i int) error { return c.WritePriority(uint32(2*i+1), http2.PriorityParam{StreamDep: 0, Weight: 1}) })
	}},
	{name: "empty DATA", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		c.headers(1, false, post(nil)...)
		return repeat(c, n, func(int) error { return c.WriteData(1, false, nil) })
	}},
	{name: "DATA of padding", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		c.headers(1, false, post(nil)...)
		return repeat(c, n, func(int) error { return c.WriteDataPadded(1, false, nil, make([]byte, 255)) })
	}},
	{name: "frames of unknown types", endures: true, attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		return repeat(c, n, func(int) error { return c.WriteRawFrame(0xbb, 0, 0, nil) })
	}},
	{name: "WINDOW_UPDATE", endures: true, attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		return repeat(c, n, func(int) error { return c.WriteWindowUpdate(0, 1) })
	}},
	{name: "a bomb of the header table", endures: true, attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		c.enc.SetMaxDynamicTableSize(4096)
		c.headers(1, true, get("app.example.com", "/", [2]string{"x", strings.Repeat("y", 3900)})...)
		bomb := c.encode(get("app.example.com", "/")...)
		bomb = append(bomb, bytes.Repeat([]byte{0x80 | 62}, 16000)...) // 62 MB
		return repeat(c, n/20, func(i int) error {
			return c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 3), BlockFragment: bomb, EndStream: true, EndHeaders: true})
		})
	}},
	{name: "names without an end", attack: func(t *testing.T, s *system, i, n int) error {
		c := dialH2(t, i, s.https, "app.example.com")
		// A literal field whose name is as long as can be said.
		b := hpack.AppendHuffmanString([]byte{0x00, 0x7f, 0xff, 0xff, 0xff, 0xff, 0x0f}, "x")
		return repeat(c, n, func(i int) error {
			return c.WriteHeaders(http2.HeadersFrameParam{StreamID: uint32(2*i + 1), BlockFragment: b, EndStream: true, EndHeaders: true})
		})
	}},
}

// TestH2Floods has visitors who do what costs them little and a server much. Whoever does
// is hung up on; the others notice nothing; and no memory stays.
func TestH2Floods(t *testing.T) {
	s, _ := webH2(t)
	s.curl(s.url("app", "/"))
	for _, f := range floods {
		t.Run(f.name, func(t *testing.T) {
			before, busy := s.public.rss(), cpuSeconds(s.public.pids())
			var wg, neighbours sync.WaitGroup
			stop := make(chan struct{})
			neighbour(t, s, stop, &neighbours)
			began := time.Now()
			for i := range 4 {
				wg.Go(func() {
					err := f.attack(t, s, i, 20_000)
					switch {
					case errors.Is(err, errSurvived) && !f.endures:
						t.Errorf("visitor %d: %v", i, err)
					case i == 0:
						t.Logf("after %v: %v", time.Since(began).Round(time.Millisecond), err)
					}
				})
			}
			wg.Wait()
			t.Logf("%.2f s of CPU", cpuSeconds(s.public.pids())-busy)
			grown(t, s.public, before, 64<<20)
			close(stop)
			neighbours.Wait()
		})
	}
}

// TestH2SlowReaders has visitors who ask for more than they read: with no window, with one
// of a byte, and with a large one on a connection that they do not read.
func TestH2SlowReaders(t *testing.T) {
	s, large := webH2(t)
	s.curl(s.url("app", "/"))
	for name, window := range map[string]uint32{"no window": 0, "a byte": 1, "windows that are not used": 1<<31 - 1} {
		t.Run(name, func(t *testing.T) {
			public, private := s.public.rss(), s.private.rss()
			var neighbours sync.WaitGroup
			stop := make(chan struct{})
			neighbour(t, s, stop, &neighbours)
			for i := range 10 {
				tcp := dialFrom(t, i, s.https)
				tcp.SetReadBuffer(64 << 10) // what the kernel takes for a visitor is not the relay's memory
				c := h2Over(t, tcp, "files.example.com", http2.Setting{ID: http2.SettingInitialWindowSize, Val: window})
				c.hello(t)
				if window > 1<<20 {
					c.WriteWindowUpdate(0, 1<<31-1-65535)
				}
				for id := uint32(1); id < 200; id += 2 {
					c.headers(id, true, get("files.example.com", "/large")...)
				}
				for c.answers[199] == nil || c.answers[199].status == "" {
					if _, err := c.next(); err != nil {
						t.Fatalf("visitor %d: %v", i, err)
					}
					if window > 1<<20 {
						break // the answers' bodies are before that
					}
				}
			}
			if got := download(t, s.curlCmd("--http2", s.url("files", "/large"))); got != large {
				t.Errorf("the neighbour's download: SHA-256 %s", got)
			}
			grown(t, s.public, public, 512<<20)
			grown(t, s.private, private, 512<<20)
			close(stop)
			neighbours.Wait()
		})
	}
}
