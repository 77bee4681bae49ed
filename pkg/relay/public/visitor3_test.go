package public

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"

	"culvert.dev/pkg/http3"
	"culvert.dev/pkg/link"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
	"culvert.dev/pkg/websocket"
)

// newTestRelay3 is newTestRelay with a listener for QUIC.
func newTestRelay3(t testing.TB, change func(*Relay)) *testRelay {
	return newTestRelay(t, false, func(r *Relay) {
		r.QUIC = "127.0.0.1:0"
		if change != nil {
			change(r)
		}
	})
}

// dial3 makes a connection for HTTP/3 to a name at the relay.
func (r *testRelay) dial3(name string, protos ...string) (*quic.Conn, error) {
	r.t.Helper()
	if protos == nil {
		protos = []string{"h3"}
	}
	return r.dialTLS3(&tls.Config{ServerName: name, NextProtos: protos})
}

func (r *testRelay) dialTLS3(cfg *tls.Config) (*quic.Conn, error) {
	cfg.InsecureSkipVerify = true
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		r.t.Fatal(err)
	}
	tr := &quic.Transport{Conn: pc}
	r.t.Cleanup(func() { tr.Close(); pc.Close() })
	return tr.Dial(r.t.Context(), r.listener("quic"), cfg, &quic.Config{MaxIdleTimeout: 20 * time.Second})
}

// client3 is an HTTP client that finds every host at the relay, by HTTP/3.
func (r *testRelay) client3() *http.Client {
	tr := &quichttp3.Transport{
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		Dial: func(_ context.Context, addr string, cfg *tls.Config, _ *quic.Config) (*quic.Conn, error) {
			host, _, _ := net.SplitHostPort(addr)
			return r.dial3(host)
		},
	}
	r.t.Cleanup(func() { tr.Close() })
	return &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }, Timeout: 60 * time.Second}
}

// fetch3 is the status and the body of what is at a URL.
func fetch3(t testing.TB, c *http.Client, url string) (int, string) {
	t.Helper()
	res, err := c.Get(url)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	b, err := io.ReadAll(res.Body)
	if err != nil {
		t.Fatal(err)
	}
	return res.StatusCode, string(b)
}

// A request over HTTP/3 reaches its server as one of HTTP/1.1 does, with all that belongs to it.
func TestHTTP3(t *testing.T) {
	r := newTestRelay3(t, nil)
	app := httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		body, _ := io.ReadAll(req.Body)
		switch req.URL.Path {
		case "/early":
			w.Header().Set("Link", "</style.css>")
			w.WriteHeader(103)
			w.Header().Del("Link")
		case "/trailers":
			w.Header().Set("Trailer", "X-Sum")
			defer w.Header().Set("X-Sum", "42")
		case "/none":
			w.WriteHeader(204)
			return
		}
		w.Header().Set("X-Request", fmt.Sprintf("%s %s %s %s|%s|%s|%d|%s|%s", req.Proto, req.Method, req.Host, req.URL,
			req.Header.Get("X-Forwarded-For"), req.Header.Get("X-Forwarded-Proto"), req.ContentLength, req.Header.Get("Cookie"), req.Trailer.Get("X-Checksum")))
		w.Write(body)
	}))
	r.connect("office", map[string]string{"app": app}, "app", "https://app.test", "other", "https://app.test/other")
	c := r.client3()
	do := func(method, url string, body io.Reader, change func(*http.Request)) (*http.Response, string) {
		t.Helper()
		req, _ := http.NewRequest(method, url, body)
		if change != nil {
			change(req)
		}
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		b, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(b)
	}

	res, _ := do("GET", "https://app.test/p?q=1", nil, func(r *http.Request) { r.Header["Cookie"] = []string{"a=1", "b=2"} })
	if res.Proto != "HTTP/3.0" || res.Header.Get("X-Request") != "HTTP/1.1 GET app.test /p?q=1|127.0.0.1|https|0|a=1; b=2|" {
		t.Errorf("%s %q", res.Proto, res.Header)
	}
	if _, body := do("POST", "https://app.test/p", strings.NewReader("a body"), nil); body != "a body" {
		t.Errorf("%q", body)
	}
	res, body := do("PUT", "https://app.test/p", struct{ io.Reader }{strings.NewReader("of unknown length")}, func(r *http.Request) {
		r.Trailer = http.Header{"X-Checksum": {"7"}}
	})
	if body != "of unknown length" || !strings.HasSuffix(res.Header.Get("X-Request"), "|-1||7") {
		t.Errorf("%q %q", body, res.Header)
	}
	if res, body := do("HEAD", "https://app.test/p", nil, nil); res.StatusCode != 200 || body != "" {
		t.Errorf("HEAD: %d %q", res.StatusCode, body)
	}
	if res, _ := do("GET", "https://app.test/trailers", nil, nil); res.Trailer.Get("X-Sum") != "42" {
		t.Errorf("trailers: %q", res.Trailer)
	}
	if res, body := do("GET", "https://app.test/none", nil, nil); res.StatusCode != 204 || body != "" {
		t.Errorf("%d %q", res.StatusCode, body)
	}
	early := ""
	res, _ = do("GET", "https://app.test/early", nil, func(r *http.Request) {
		*r = *r.WithContext(httptrace.WithClientTrace(r.Context(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error { early += fmt.Sprint(code, h.Get("Link")); return nil },
		}))
	})
	if early != "103</style.css>" || res.StatusCode != 200 {
		t.Errorf("%q, then %d", early, res.StatusCode)
	}

	for url, want := range map[string]int{
		"https://nobody.example/":  404, // nobody may publish it
		"https://away.test/":       503,
		"https://app.test/a/../b":  400, // not every path of the host is of one service
		"https://app.test/other/x": 404, // the site does not know it any more
	} {
		if status, _ := fetch3(t, c, url); status != want {
			t.Errorf("%s: %d, want %d", url, status, want)
		}
	}
	if status, body := fetch3(t, c, "https://away.test/"); status != 503 || !strings.Contains(body, "not connected") {
		t.Errorf("%d %q", status, body)
	}
	st := r.Status(t.Context())
	if st.Visitors != 3 || st.Counters.Requests != 8 {
		t.Errorf("%d visitors, %+v", st.Visitors, st.Counters)
	}
}

// The relay's own name has no HTTP/3, and whoever asks for it on another connection is sent away.
func TestHTTP3OwnDomain(t *testing.T) {
	r := newTestRelay3(t, nil)
	for _, name := range []string{"relay.test", "localhost", ""} {
		if _, err := r.dial3(name); err == nil || !strings.Contains(err.Error(), "no application protocol") {
			t.Errorf("%q: %v", name, err)
		}
	}
	conn, err := r.dial3("app.test")
	if err != nil {
		t.Fatal(err)
	}
	s := ask3(t, conn, ":method: GET", ":scheme: https", ":authority: relay.test", ":path: /.culvert/link")
	if status, _, err := answer3(s); status != "421" || err != nil {
		t.Errorf("%s %v", status, err)
	}
}

// frame3 is a frame of HTTP/3, and pack3 a HEADERS frame.
func frame3(kind uint64, payload []byte) []byte {
	return append(quicvarint.Append(quicvarint.Append(nil, kind), uint64(len(payload))), payload...)
}

func pack3(lines ...string) []byte {
	var b bytes.Buffer
	enc := qpack.NewEncoder(&b)
	for _, l := range lines {
		i := strings.Index(l[1:], ":") + 1
		enc.WriteField(qpack.HeaderField{Name: l[:i], Value: strings.TrimPrefix(l[i+1:], " ")})
	}
	return frame3(1, b.Bytes())
}

// ask3 sends a request without a body.
func ask3(t *testing.T, conn *quic.Conn, lines ...string) *quic.Stream {
	t.Helper()
	s, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(time.Minute))
	s.Write(pack3(lines...))
	s.Close()
	return s
}

// answer3 reads an answer: its status and its body.
func answer3(s *quic.Stream) (status, body string, err error) {
	b, err := io.ReadAll(s)
	for len(b) > 0 {
		kind, n, e := quicvarint.Parse(b)
		if e != nil {
			return status, body, errors.Join(err, e)
		}
		length, m, e := quicvarint.Parse(b[n:])
		if e != nil || uint64(len(b)) < uint64(n+m)+length {
			return status, body, errors.Join(err, io.ErrUnexpectedEOF)
		}
		payload := b[n+m:][:length]
		b = b[n+m:][length:]
		switch kind {
		case 0:
			body += string(payload)
		case 1:
			f, e := qpack.NewDecoder().Decode(payload)()
			if e == nil && f.Name == ":status" {
				status = f.Value
			}
		}
	}
	return status, body, err
}

// What is malformed reaches no server, and the connection goes on unless it can not.
func TestHTTP3Malformed(t *testing.T) {
	r := newTestRelay3(t, nil)
	var requests atomic.Int32
	app := target(t, func(c net.Conn, br *bufio.Reader) {
		for {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			if _, err := io.ReadAll(req.Body); err != nil {
				return
			}
			if req.URL.Path != "/fine" {
				requests.Add(1)
			}
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
		}
	})
	r.connect("office", map[string]string{"app": app}, "app", "https://app.test")
	head := func(more ...string) []byte {
		return pack3(append([]string{":method: POST", ":scheme: https", ":authority: app.test", ":path: /"}, more...)...)
	}
	join := func(parts ...[]byte) []byte { return bytes.Join(parts, nil) }
	data := frame3(0, []byte("12345"))
	for _, c := range []struct {
		name string
		send []byte
		want string // status; or the code that ends the connection
	}{
		{"smuggled line", head("a: b\r\ntransfer-encoding: chunked"), "400"},
		{"transfer-encoding", join(head("transfer-encoding: chunked"), data), "400"},
		{"less body", join(head("content-length: 6"), data), "400"},
		{"more body", join(head("content-length: 4"), data), "400"},
		{"length without body", head("content-length: 5"), "400"},
		{"lengths", join(head("content-length: 5", "content-length: 5"), data), "400"},
		{"another host", head("host: b.test"), "400"},
		{"upper case", head("Accept: */*"), "400"},
		{"large head", head("a: " + strings.Repeat("b", 20000)), "431"},
		{"bad trailers", join(head(), data, pack3("content-length: 5")), "400"},
		{"pseudo field in trailers", join(head(), data, pack3(":path: /admin")), "400"},
		{"data first", data, "0x105"},
		{"settings", join(head(), frame3(4, nil)), "0x105"},
		{"push", join(head(), frame3(5, []byte{0})), "0x105"},
		{"HTTP/2's frame", join(head(), frame3(8, nil)), "0x105"},
		{"data behind trailers", join(head(), pack3("a: b"), data), "0x105"},
		{"half a frame", join(head(), data[:3]), "0x106"},
		{"nothing", nil, "400"},
		{"not QPACK", frame3(1, []byte{0xff, 0xff}), "0x200"},
		{"dynamic table", frame3(1, []byte{0, 0, 0x80}), "0x200"},
	} {
		conn, err := r.dial3("app.test")
		if err != nil {
			t.Fatal(err)
		}
		s, err := conn.OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(time.Minute))
		s.Write(c.send)
		s.Close()
		got, _, err := answer3(s)
		if strings.HasPrefix(c.want, "0x") {
			<-conn.Context().Done()
			if e, ok := errors.AsType[*quic.ApplicationError](context.Cause(conn.Context())); ok {
				got = fmt.Sprintf("%#x", uint64(e.ErrorCode))
			}
		}
		if got != c.want {
			t.Errorf("%s: %s %v, want %s", c.name, got, err, c.want)
		}
		if len(c.want) == 3 {
			fine := ask3(t, conn, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /fine")
			if status, body, err := answer3(fine); status != "200" || body != "ok" {
				t.Errorf("after %s: %s %q %v", c.name, status, body, err)
			}
		}
		conn.CloseWithError(0, "")
	}
	// A server that reads a body as it comes may get a part of one, but never the end.
	if n := requests.Load(); n > 0 {
		t.Errorf("%d malformed requests have come through", n)
	}
}

// A stream beside those of requests has to be what it says.
func TestHTTP3Control(t *testing.T) {
	r := newTestRelay3(t, nil)
	settings := append([]byte{0}, frame3(4, nil)...)
	for _, c := range []struct {
		name    string
		streams [][]byte
		end     bool
		code    http3.Code
	}{
		{"no settings", [][]byte{append([]byte{0}, frame3(7, []byte{0})...)}, false, http3.MissingSettings},
		{"two control streams", [][]byte{settings, settings}, false, http3.StreamCreationError},
		{"push", [][]byte{{1, 0}}, false, http3.StreamCreationError},
		{"end of control stream", [][]byte{settings}, true, http3.ClosedCriticalStream},
		{"dynamic table", [][]byte{{2, 0x3f, 0x01}}, false, http3.EncoderStreamError},
	} {
		conn, err := r.dial3("app.test")
		if err != nil {
			t.Fatal(err)
		}
		for _, b := range c.streams {
			s, err := conn.OpenUniStreamSync(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			s.Write(b)
			if c.end {
				s.Close()
			}
		}
		<-conn.Context().Done()
		if e, ok := errors.AsType[*quic.ApplicationError](context.Cause(conn.Context())); !ok || http3.Code(e.ErrorCode) != c.code {
			t.Errorf("%s: %v", c.name, context.Cause(conn.Context()))
		}
	}
}

// sums serves uploads by their hash, and downloads of as many bytes as asked for.
func sums(t *testing.T) string {
	return httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.Method == "POST" {
			h := sha256.New()
			n, err := io.Copy(h, req.Body)
			fmt.Fprintf(w, "%d %x %v", n, h.Sum(nil), err)
			return
		}
		var n int64
		fmt.Sscan(req.URL.Query().Get("n"), &n)
		io.Copy(w, random(n))
	}))
}

// random is n bytes that are the same each time.
func random(n int64) io.Reader {
	return io.LimitReader(rand.NewChaCha8([32]byte{1}), n)
}

// Large bodies arrive as they were, also at the same time, and on a connection whose address changes.
func TestHTTP3Bulk(t *testing.T) {
	const size = int64(10 << 20)
	h := sha256.New()
	io.Copy(h, random(size))
	want := hex.EncodeToString(h.Sum(nil))
	r := newTestRelay3(t, nil)
	r.connect("office", map[string]string{"app": sums(t)}, "app", "https://app.test")
	c := r.client3()
	c.Timeout = 5 * time.Minute
	var wg sync.WaitGroup
	wg.Go(func() {
		res, err := c.Post("https://app.test/", "", struct{ io.Reader }{random(size)})
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); string(b) != fmt.Sprintf("%d %s <nil>", size, want) {
			t.Errorf("up: %s %v", b, err)
		}
	})
	wg.Go(func() {
		res, err := c.Get(fmt.Sprintf("https://app.test/?n=%d", size))
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		h := sha256.New()
		if n, err := io.Copy(h, res.Body); err != nil || n != size || hex.EncodeToString(h.Sum(nil)) != want {
			t.Errorf("down: %d bytes, %x, %v", n, h.Sum(nil), err)
		}
	})
	wg.Wait()
}

// A hundred requests at a time on one connection, and more one after the other.
func TestHTTP3Concurrent(t *testing.T) {
	var most, now atomic.Int32
	count := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		n := now.Add(1)
		defer now.Add(-1)
		for m := most.Load(); n > m && !most.CompareAndSwap(m, n); m = most.Load() {
		}
		body, _ := io.ReadAll(req.Body)
		fmt.Fprintf(w, "%s %s", req.URL, body)
	})
	targets3(t, count, func(t *testing.T, r *testRelay) {
		most.Store(0)
		c := r.client3()
		fetch3(t, c, "https://app.test/")
		var wg sync.WaitGroup
		for i := range 100 {
			wg.Go(func() {
				for j := range 5 {
					body := strings.Repeat("x", i*100+j)
					res, err := c.Post(fmt.Sprintf("https://app.test/%d", i), "", strings.NewReader(body))
					if err != nil {
						t.Error(err)
						return
					}
					b, _ := io.ReadAll(res.Body)
					res.Body.Close()
					if want := fmt.Sprintf("/%d %s", i, body); string(b) != want {
						t.Errorf("%.40q, want %.40q", b, want)
					}
				}
			})
		}
		wg.Wait()
		if most.Load() < 2 {
			t.Error("one request at a time")
		}
		waitFor(t, func() bool { st := r.Status(t.Context()); return st.Sessions[0].Services[0].Visitors == 0 })
	})
}

// targets3 runs a test with a server of HTTP/1.1, and with one of HTTP/2.
func targets3(t *testing.T, h http.Handler, f func(t *testing.T, r *testRelay)) {
	for name, serve := range map[string]func(*testing.T, http.Handler) string{"app": httpTarget, "h2c": http2Target} {
		t.Run(name, func(t *testing.T) {
			r := newTestRelay3(t, nil)
			r.connect("office", map[string]string{name: serve(t, h)}, name, "https://app.test")
			f(t, r)
		})
	}
}

// Both directions go on at once, message by message.
func TestHTTP3Duplex(t *testing.T) {
	echo := http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		w.Header().Set("Trailer", "X-Lines")
		w.WriteHeader(200)
		rc.Flush()
		for n, br := 0, bufio.NewReader(req.Body); ; n++ {
			line, err := br.ReadString('\n')
			if err != nil {
				w.Header().Set("X-Lines", fmt.Sprint(n))
				return
			}
			io.WriteString(w, "echo "+line)
			rc.Flush()
		}
	})
	targets3(t, echo, func(t *testing.T, r *testRelay) {
		pr, pw := io.Pipe()
		res, err := r.client3().Post("https://app.test/", "", pr)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		br := bufio.NewReader(res.Body)
		for i := range 20 {
			fmt.Fprintf(pw, "%d\n", i)
			if line, err := br.ReadString('\n'); line != fmt.Sprintf("echo %d\n", i) {
				t.Fatalf("%q %v", line, err)
			}
		}
		pw.Close()
		if rest, err := io.ReadAll(br); len(rest) > 0 || err != nil || res.Trailer.Get("X-Lines") != "20" {
			t.Errorf("%q %v %q", rest, err, res.Trailer)
		}
	})
}

// Whoever goes first, the other one hears of it, and nothing is left.
func TestHTTP3Cancel(t *testing.T) {
	r := newTestRelay3(t, nil)
	streams := make(chan *tunnel.Stream, 10)
	ended := make(chan error, 10)
	ts := r.connect("office", nil, "app", "https://app.test")
	ts.handle(func(st *tunnel.Stream, h relay.Header) bool {
		st.SetHandler(&funcHandler{close: func(err error) { ended <- err }})
		streams <- st
		return true
	})
	conn, err := r.dial3("app.test")
	if err != nil {
		t.Fatal(err)
	}
	lines := []string{":method: POST", ":scheme: https", ":authority: app.test", ":path: /"}
	begin := func() (*quic.Stream, *tunnel.Stream) {
		s, err := conn.OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(time.Minute))
		s.Write(pack3(lines...))
		return s, <-streams
	}
	idle := func() bool {
		st := r.Status(t.Context())
		return st.Sessions[0].Services[0].Visitors == 0
	}
	loop := ts.session.loop

	s, _ := begin() // the visitor resets its half
	s.CancelWrite(quic.StreamErrorCode(http3.RequestCancelled))
	if err := <-ended; err == nil {
		t.Error("a stream whose visitor has gone has ended in good order")
	}
	waitFor(t, idle)

	s, _ = begin() // the visitor wants no answer
	s.CancelRead(quic.StreamErrorCode(http3.RequestCancelled))
	if err := <-ended; err == nil {
		t.Error("a stream whose visitor wants no answer has ended in good order")
	}
	waitFor(t, idle)

	s, st := begin() // the server resets, before the answer and in the middle
	onLoop(loop.Loop, func() { st.Reset(tunnel.CodeCancelled) })
	if status, _, err := answer3(s); status != "502" {
		t.Errorf("%s %v", status, err)
	}
	<-ended
	s, st = begin()
	onLoop(loop.Loop, func() { st.Write([]byte("HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")) })
	if _, err := io.ReadFull(s, make([]byte, 8)); err != nil {
		t.Error(err)
	}
	onLoop(loop.Loop, func() { st.Reset(tunnel.CodeCancelled) })
	_, err = io.ReadAll(s)
	if e, ok := errors.AsType[*quic.StreamError](err); !ok || http3.Code(e.ErrorCode) != http3.InternalError {
		t.Errorf("%v", err)
	}
	<-ended
	waitFor(t, idle)

	s, st = begin() // an early answer: nobody wants the rest
	onLoop(loop.Loop, func() { st.Write([]byte("HTTP/1.1 413 Too large\r\nContent-Length: 0\r\n\r\n")) })
	if status, _, err := answer3(s); status != "413" || err != nil {
		t.Errorf("%s %v", status, err)
	}
	for err = nil; err == nil; {
		_, err = s.Write(make([]byte, 1000))
	}
	if e, ok := errors.AsType[*quic.StreamError](err); !ok || http3.Code(e.ErrorCode) != http3.NoError {
		t.Errorf("%v", err)
	}
	<-ended
	waitFor(t, idle)

	begin() // the connection ends
	begin()
	conn.CloseWithError(0, "")
	<-ended
	<-ended
	waitFor(t, func() bool { return idle() && r.Status(t.Context()).Visitors == 0 })

	if conn, err = r.dial3("app.test"); err != nil {
		t.Fatal(err)
	}
	s, _ = begin() // the site leaves
	onLoop(loop.Loop, func() { ts.session.close(nil) })
	if status, _, err := answer3(s); status != "503" {
		t.Errorf("%s %v", status, err)
	}
}

// Whoever does not read stops its own server, and whoever's server does not read has to wait.
func TestHTTP3Slow(t *testing.T) {
	r := newTestRelay3(t, nil)
	var sent, got atomic.Int64
	going := make(chan struct{})
	app := target(t, func(c net.Conn, br *bufio.Reader) {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if req.Method == "POST" {
			<-going
			for buf := make([]byte, 64<<10); err == nil; {
				var n int
				n, err = br.Read(buf)
				got.Add(int64(n))
			}
			return
		}
		io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		for buf := make([]byte, 64<<10); err == nil; {
			var n int
			n, err = c.Write(buf)
			sent.Add(int64(n))
		}
	})
	r.connect("office", map[string]string{"app": app}, "app", "https://app.test")
	settled := func(n *atomic.Int64) int64 {
		last := int64(-1)
		waitFor(t, func() bool {
			now := n.Load()
			defer func() { last = now }()
			if now == last && now > 0 {
				return true
			}
			time.Sleep(300 * time.Millisecond)
			return false
		})
		return n.Load()
	}
	conn, err := r.dial3("app.test")
	if err != nil {
		t.Fatal(err)
	}
	ask3(t, conn, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /")
	if n := settled(&sent); n > 24<<20 {
		t.Errorf("%d bytes for nobody", n)
	}
	var up atomic.Int64
	s, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s.Write(pack3(":method: POST", ":scheme: https", ":authority: app.test", ":path: /"))
		for {
			if _, err := s.Write(frame3(0, make([]byte, 10000))); err != nil {
				return
			}
			up.Add(10000)
		}
	}()
	before := settled(&up)
	if before > 24<<20 {
		t.Errorf("%d bytes to nobody", before)
	}
	close(going)
	waitFor(t, func() bool { return up.Load() > before+10<<20 })
	conn.CloseWithError(0, "")
	<-done
	waitFor(t, func() bool { return r.Status(t.Context()).Visitors == 0 })
}

// What a visitor does not read is bounded for its connection, and holds up nothing that it does read.
func TestHTTP3Unread(t *testing.T) {
	r := newTestRelay3(t, nil)
	ts := r.connect("office", map[string]string{"app": target(t, func(c net.Conn, br *bufio.Reader) {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		if req.Header.Get("Upgrade") != "" {
			fmt.Fprintf(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: upgrade\r\nSec-WebSocket-Accept: %s\r\n\r\n",
				websocket.AcceptKey(req.Header.Get("Sec-WebSocket-Key")))
		} else {
			io.WriteString(c, "HTTP/1.1 200 OK\r\n\r\n")
		}
		for buf := make([]byte, 64<<10); err == nil; {
			_, err = c.Write(buf)
		}
	})}, "app", "https://app.test")
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: pc}
	t.Cleanup(func() { tr.Close(); pc.Close() })
	conn, err := tr.Dial(t.Context(), r.listener("quic"), &tls.Config{InsecureSkipVerify: true, ServerName: "app.test", NextProtos: []string{"h3"}},
		&quic.Config{MaxIdleTimeout: 20 * time.Second, InitialStreamReceiveWindow: 1000, MaxStreamReceiveWindow: 1000})
	if err != nil {
		t.Fatal(err)
	}
	const unread, piece = 100, 32 << 10
	for range unread {
		ask3(t, conn, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /")
	}
	var v *visitor3
	waitFor(t, func() bool {
		for _, l := range r.listeners {
			if q, ok := l.ln.(*quicListener); ok {
				q.mu.Lock()
				for v = range q.visitors {
				}
				q.mu.Unlock()
			}
		}
		return v != nil
	})
	waitFor(t, func() bool { return v.queued.Load() > maxQueued3 })
	read := func(name string, s *quic.Stream) {
		buf := make([]byte, 1000)
		for n := 0; n < 256<<10; {
			m, err := s.Read(buf)
			if err != nil {
				t.Fatalf("%s: %d bytes, %v", name, n, err)
			}
			n += m
			if got := v.queued.Load(); got > maxQueued3+(unread+2)*(piece+1000) {
				t.Fatalf("%s: %d bytes wait", name, got)
			}
		}
	}
	read("download", ask3(t, conn, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /"))
	s, err := conn.OpenStreamSync(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(time.Minute))
	s.Write(pack3(":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: app.test", ":path: /", "sec-websocket-version: 13"))
	read("WebSocket", s)
	var sent uint64
	onLoop(ts.session.loop.Loop, func() { sent = ts.session.service("app").sent })
	t.Logf("%d bytes taken from the servers, %d of them wait", sent, v.queued.Load())
	conn.CloseWithError(0, "")
	waitFor(t, func() bool { return v.queued.Load() == 0 })
}

// Two sites share a host, on two loops: over HTTP/3 each request goes its way, and the others have HTTP/1.1 to do so.
func TestHTTP3TwoLoops(t *testing.T) {
	r := newTestRelay3(t, nil)
	name := func(name string) string {
		return httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			b, _ := io.ReadAll(req.Body)
			fmt.Fprintf(w, "%s %s", name, b)
		}))
	}
	a := r.connect("office", map[string]string{"app": name("office")}, "app", "https://app.test")
	b := r.connect("home", map[string]string{"app": name("home")}, "app", "https://app.test/home")
	if a.session.loop == b.session.loop {
		t.Fatal("both sites are on one loop")
	}
	c := r.client3()
	h2 := r.client()
	h2.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	for i := range 10 {
		for path, want := range map[string]string{"/": "office", "/home": "home"} {
			body := strings.Repeat("x", i*10000)
			for version, c := range map[int]*http.Client{3: c, 1: h2} {
				res, err := c.Post("https://app.test"+path, "", strings.NewReader(body))
				if err != nil {
					t.Fatal(err)
				}
				got, err := io.ReadAll(res.Body)
				res.Body.Close()
				if string(got) != want+" "+body || err != nil || res.ProtoMajor != version {
					t.Errorf("%s: %s %.20q %v", path, res.Proto, got, err)
				}
			}
		}
	}
}

// A request waits for a takeover, and is not lost by it.
func TestHTTP3Takeover(t *testing.T) {
	r := newTestRelay3(t, nil)
	a := r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "a"}, map[string]string{"app": sums(t)}, "app", "https://app.test")
	r.connectAs(relay.Hello{Site: "office", Key: "k", Machine: "b"}, map[string]string{"app": sums(t)}, "app", "https://app.test")
	c := r.client3()
	if status, body := fetch3(t, c, "https://app.test/?n=3"); status != 200 || len(body) != 3 {
		t.Errorf("%d %q", status, body)
	}
	onLoop(a.session.loop.Loop, a.cut)
	if status, body := fetch3(t, c, "https://app.test/?n=3"); status != 200 || len(body) != 3 {
		t.Errorf("%d %q", status, body)
	}
}

// Whoever comes over TLS hears that there is HTTP/3, and what a server says of its own ports goes no further.
func TestAltSvc(t *testing.T) {
	r := newTestRelay3(t, nil)
	app := httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) { w.Header().Set("Alt-Svc", `h3=":1"`) }))
	r.connect("office", map[string]string{"app": app}, "app", "https://app.test")
	c := r.client()
	_, port, _ := net.SplitHostPort(r.listener("quic").String())
	res, err := c.Get("https://app.test/")
	if err != nil {
		t.Fatal(err)
	}
	res.Body.Close()
	if got, want := strings.Join(res.Header["Alt-Svc"], "|"), `h3=":`+port+`"; ma=86400`; got != want {
		t.Errorf("%q, want %q", got, want)
	}
}

// A WebSocket over HTTP/3 is one of HTTP/1.1 for the server (RFC 9220).
func TestHTTP3WebSocket(t *testing.T) {
	r := newTestRelay3(t, nil)
	wrong := make(chan bool, 3)
	app := target(t, func(c net.Conn, br *bufio.Reader) {
		req, err := http.ReadRequest(br)
		if err != nil {
			return
		}
		key, err := websocket.CheckRequest(req.Header.Get)
		if err != nil {
			io.WriteString(c, "HTTP/1.1 400 Bad\r\nContent-Length: 0\r\n\r\n")
			return
		}
		if <-wrong {
			key = websocket.NewKey()
		}
		io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Protocol: chat\r\nSec-WebSocket-Accept: "+websocket.AcceptKey(key)+"\r\n\r\n")
		io.Copy(c, br)
		c.(*net.TCPConn).CloseWrite()
	})
	r.connect("office", map[string]string{"app": app}, "app", "https://app.test")
	conn, err := r.dial3("app.test")
	if err != nil {
		t.Fatal(err)
	}
	open := func() *quic.Stream {
		s, err := conn.OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(time.Minute))
		s.Write(pack3(":method: CONNECT", ":protocol: websocket", ":scheme: https", ":authority: app.test", ":path: /chat", "sec-websocket-version: 13"))
		return s
	}
	wrong <- false
	s := open()
	for _, m := range []string{"hello", strings.Repeat("x", 1000), "again"} {
		s.Write(frame3(0, []byte(m)))
	}
	s.Close()
	status, body, err := answer3(s)
	if status != "200" || body != "hello"+strings.Repeat("x", 1000)+"again" || err != nil {
		t.Errorf("%s %.40q %v", status, body, err)
	}
	waitFor(t, func() bool {
		st := r.Status(t.Context())
		return st.Visitors == 1 && st.Sessions[0].Services[0].Visitors == 0
	})
	wrong <- true
	if status, _, _ := answer3(open()); status != "502" { // that key was another one's
		t.Errorf("a wrong proof: %s", status)
	}
	wrong <- false
	s = open()
	if _, err := io.ReadFull(s, make([]byte, 4)); err != nil {
		t.Error(err)
	}
	waitFor(t, func() bool { return r.Status(t.Context()).Sessions[0].Services[0].Visitors == 1 })
	conn.CloseWithError(0, "")
	waitFor(t, func() bool {
		st := r.Status(t.Context())
		return st.Visitors == 0 && st.Sessions[0].Services[0].Visitors == 0
	})
}

// The address of a visitor may change in mid-transfer.
func TestHTTP3Rebinding(t *testing.T) {
	r := newTestRelay3(t, nil)
	r.connect("office", map[string]string{"app": sums(t)}, "app", "https://app.test")
	conn, err := r.dial3("app.test")
	if err != nil {
		t.Fatal(err)
	}
	s := ask3(t, conn, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /?n=5000000")
	if _, err := io.ReadFull(s, make([]byte, 100000)); err != nil {
		t.Fatal(err)
	}
	pc, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	tr := &quic.Transport{Conn: pc}
	defer func() { tr.Close(); pc.Close() }()
	path, err := conn.AddPath(tr)
	if err != nil {
		t.Fatal(err)
	}
	if err := path.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := path.Switch(); err != nil {
		t.Fatal(err)
	}
	if n, err := io.Copy(io.Discard, s); err != nil || n < 4900000 {
		t.Errorf("%d bytes, %v", n, err)
	}
	s = ask3(t, conn, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /?n=5")
	if status, body, err := answer3(s); status != "200" || len(body) != 5 || err != nil {
		t.Errorf("%s %q %v", status, body, err)
	}
	conn.CloseWithError(0, "")
	waitFor(t, func() bool { return r.Status(t.Context()).Visitors == 0 })
}

// Requests that come to nothing end the connection, in the end; and there are only so many of them at a time.
func TestHTTP3Reset(t *testing.T) {
	r := newTestRelay3(t, nil)
	ts := r.connect("office", nil, "app", "https://app.test")
	ts.handle(func(st *tunnel.Stream, h relay.Header) bool {
		st.SetHandler(&funcHandler{})
		return true
	})
	conn, err := r.dial3("app.test")
	if err != nil {
		t.Fatal(err)
	}
	head := pack3(":method: GET", ":scheme: https", ":authority: app.test", ":path: /")
	for i := 0; i < 20000 && conn.Context().Err() == nil; i++ {
		s, err := conn.OpenStreamSync(t.Context())
		if err != nil {
			break
		}
		s.Write(head)
		s.CancelWrite(quic.StreamErrorCode(http3.RequestCancelled))
		s.CancelRead(quic.StreamErrorCode(http3.RequestCancelled))
	}
	<-conn.Context().Done()
	if e, ok := errors.AsType[*quic.ApplicationError](context.Cause(conn.Context())); !ok || http3.Code(e.ErrorCode) != http3.ExcessiveLoad {
		t.Errorf("%v", context.Cause(conn.Context()))
	}

	if conn, err = r.dial3("app.test"); err != nil {
		t.Fatal(err)
	}
	for range maxRequests3 {
		s, err := conn.OpenStream()
		if err != nil {
			t.Fatal(err)
		}
		s.Write(head)
	}
	if _, err := conn.OpenStream(); err == nil {
		t.Error("one more than allowed")
	}
	conn.CloseWithError(0, "")
	waitFor(t, func() bool {
		st := r.Status(t.Context())
		return st.Visitors == 0 && st.Sessions[0].Services[0].Visitors == 0
	})
}

// There are as many visitors as there may be, however they come.
func TestHTTP3Admission(t *testing.T) {
	r := newTestRelay3(t, func(r *Relay) { r.MaxPerAddress = 2 })
	r.connect("office", map[string]string{"app": sums(t)}, "app", "https://app.test")
	var conns []*quic.Conn
	for i, want := range []string{"200", "200", "503"} {
		conn, err := r.dial3("app.test")
		if err != nil {
			t.Fatal(err)
		}
		conns = append(conns, conn)
		s := ask3(t, conn, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /?n=1")
		if status, _, err := answer3(s); status != want {
			t.Errorf("%d: %s %v, want %s", i, status, err, want)
		}
	}
	<-conns[2].Context().Done() // it has been told, and that is all
	if e, ok := errors.AsType[*quic.ApplicationError](context.Cause(conns[2].Context())); !ok || http3.Code(e.ErrorCode) != http3.NoError {
		t.Errorf("%v", context.Cause(conns[2].Context()))
	}
	for _, c := range conns[:2] {
		c.CloseWithError(0, "")
	}
	waitFor(t, func() bool { st := r.Status(t.Context()); return st.Visitors == 0 && st.Counters.TurnedAway == 1 })
}

// What a service demands of its visitors it demands of these.
func TestHTTP3Policy(t *testing.T) {
	r := newTestRelay3(t, nil)
	ts := r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(echoHead))}, "app", "https://app.test")
	ca := newCA(t, "ours", nil)
	ask := func(cert *tls.Certificate, sni string, body []byte, lines ...string) (string, string) {
		t.Helper()
		cfg := &tls.Config{ServerName: sni, NextProtos: []string{"h3"}}
		if cert != nil {
			cfg.Certificates = []tls.Certificate{*cert}
		}
		conn, err := r.dialTLS3(cfg)
		if err != nil {
			t.Fatal(err)
		}
		defer conn.CloseWithError(0, "")
		s, err := conn.OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(time.Minute))
		s.Write(pack3(append([]string{":method: POST", ":scheme: https", ":authority: app.test", ":path: /"}, lines...)...))
		s.Write(frame3(0, body))
		s.Close()
		status, answer, err := answer3(s)
		if err != nil {
			t.Fatal(err)
		}
		return status, answer
	}
	ts.demand(&relay.Policy{ClientCA: ca.pem(), MaxBody: 10}, "app", "https://app.test")
	if status, body := ask(ca.issue(nil), "app.test", []byte("short"), "client-cert: :eA==:"); status != "200" || !strings.Contains(body, "CN=alice") || strings.Contains(body, "eA==") {
		t.Errorf("a good certificate: %s %s", status, body)
	}
	if status, body := ask(ca.issue(nil), "app.test", []byte("much too long")); status != "413" {
		t.Errorf("a long body: %s %s", status, body)
	}
	if status, body := ask(nil, "app.test", nil); status != "403" {
		t.Errorf("no certificate: %s %s", status, body)
	}
	if status, body := ask(newCA(t, "other", nil).issue(nil), "app.test", nil); status != "403" {
		t.Errorf("another authority: %s %s", status, body)
	}
	if status, body := ask(ca.issue(nil), "open.test", nil); status != "421" {
		t.Errorf("a connection for another name: %s %s", status, body)
	}
	ts.demand(&relay.Policy{Deny: prefixList("127.0.0.0/8")}, "app", "https://app.test")
	if status, body := ask(nil, "app.test", nil); status != "403" {
		t.Errorf("from a denied address: %s %s", status, body)
	}
	ts.demand(&relay.Policy{Methods: []string{"GET"}}, "app", "https://app.test")
	if status, body := ask(nil, "app.test", nil); status != "405" {
		t.Errorf("another method: %s %s", status, body)
	}
}

// Names whose TLS a site ends have no HTTP/3 here.
func TestHTTP3PassThrough(t *testing.T) {
	r := newPassing(t, false, func(r *Relay) { r.QUIC = "127.0.0.1:0" })
	r.connect("office", nil, "mail", "tls://mail.test", "web", "https://web.test")
	for _, name := range []string{"mail.test", "away.test"} { // somebody may publish the second one so
		if _, err := r.dial3(name); err == nil || !strings.Contains(err.Error(), "no application protocol") {
			t.Errorf("%s: %v", name, err)
		}
	}
	conn, err := r.dial3("web.test")
	if err != nil {
		t.Fatal(err)
	}
	if status, _, err := answer3(ask3(t, conn, ":method: GET", ":scheme: https", ":authority: mail.test", ":path: /")); status != "421" || err != nil {
		t.Errorf("%s %v", status, err)
	}
}

// The handshakes of one address are limited, and who has been let in is let be.
func TestHTTP3Handshakes(t *testing.T) {
	r := newTestRelay3(t, func(r *Relay) { r.HandshakesPerAddress = 10 }) // two at once
	for i := range 3 {
		_, err := r.dial3("app.test")
		if (err == nil) != (i < 2) {
			t.Errorf("%d: %v", i, err)
		}
	}
	if _, err := r.dial3("relay.test", link.ALPN); err != nil {
		t.Errorf("a link: %v", err)
	}
	waitFor(t, func() bool { return r.Status(t.Context()).Counters.HandshakesLimited == 1 })
}

// A drain lets requests finish, and takes no others.
func TestHTTP3Drain(t *testing.T) {
	r := newTestRelay3(t, nil)
	answer := make(chan struct{})
	r.connect("office", map[string]string{"app": httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/wait" {
			w.(http.Flusher).Flush()
			<-answer
		}
		io.WriteString(w, "done")
	}))}, "app", "https://app.test")
	conn, err := r.dial3("app.test")
	if err != nil {
		t.Fatal(err)
	}
	newcomer, err := r.dial3("app.test")
	if err != nil {
		t.Fatal(err)
	}
	s := ask3(t, conn, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /wait")
	if _, err := io.ReadFull(s, make([]byte, 4)); err != nil {
		t.Fatal(err)
	}
	waitFor(t, func() bool { return r.Status(t.Context()).Visitors == 2 })
	drained := make(chan error, 1)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	go func() { drained <- r.Drain(ctx) }()
	waitFor(t, func() bool { return len(r.Listeners()) == 0 })

	if status, body, err := answer3(ask3(t, newcomer, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /")); status != "200" || body != "done" {
		t.Errorf("the newcomer: %s %q %v", status, body, err)
	}
	control, err := conn.AcceptUniStream(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	control.SetReadDeadline(time.Now().Add(time.Minute))
	want := http3.AppendGoAway(http3.AppendControl(nil), 4)
	got := make([]byte, len(want))
	if _, err := io.ReadFull(control, got); !bytes.Equal(got, want) {
		t.Errorf("% x (%v), want % x", got, err, want)
	}
	late := ask3(t, conn, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /")
	_, _, err = answer3(late)
	if e, ok := errors.AsType[*quic.StreamError](err); !ok || http3.Code(e.ErrorCode) != http3.RequestRejected {
		t.Errorf("a late one: %v", err)
	}
	close(answer)
	if b, err := io.ReadAll(s); err != nil || !bytes.Contains(b, []byte("done")) {
		t.Errorf("%q %v", b, err)
	}
	if err := <-drained; err != nil {
		t.Error(err)
	}
	for _, c := range []*quic.Conn{conn, newcomer} {
		<-c.Context().Done()
		if e, ok := errors.AsType[*quic.ApplicationError](context.Cause(c.Context())); !ok || http3.Code(e.ErrorCode) != http3.NoError {
			t.Errorf("%v", context.Cause(c.Context()))
		}
	}
}

// A link and visitors share the socket, and neither can be the other.
func TestHTTP3BesideLink(t *testing.T) {
	t.Parallel() // it waits for seconds
	r := newTestRelay3(t, nil)
	r.connect("office", map[string]string{"app": sums(t)}, "app", "https://app.test")
	conn, err := r.dial3("app.test", "culvert/1", "h3")
	if err != nil {
		t.Fatal(err)
	}
	if p := conn.ConnectionState().TLS.NegotiatedProtocol; p != "h3" {
		t.Errorf("%q", p)
	}
	s := ask3(t, conn, ":method: GET", ":scheme: https", ":authority: app.test", ":path: /?n=5")
	if status, _, err := answer3(s); status != "200" || err != nil {
		t.Errorf("%s %v", status, err)
	}
	stranger, err := r.dial3("relay.test", link.ALPN)
	if err != nil {
		t.Fatal(err)
	}
	s, _ = stranger.OpenStreamSync(t.Context())
	s.Write(pack3(":method: GET", ":scheme: https", ":authority: app.test", ":path: /"))
	<-stranger.Context().Done()
	if e, ok := errors.AsType[*quic.ApplicationError](context.Cause(stranger.Context())); !ok || e.ErrorCode < 1000 {
		t.Errorf("%v", context.Cause(stranger.Context()))
	}
	if st := r.Status(t.Context()); st.Visitors != 1 {
		t.Errorf("%d visitors", st.Visitors)
	}
}

// What a server says last is not the end of what the visitor says.
func TestHTTP3HalfClose(t *testing.T) {
	got := make(chan string, 3)
	read := func(r io.Reader) {
		for b := make([]byte, 4); ; {
			n, err := io.ReadFull(r, b)
			if got <- string(b[:n]); err != nil {
				return
			}
		}
	}
	r := newTestRelay3(t, nil)
	r.connect("office", map[string]string{
		"ws": target(t, func(c net.Conn, br *bufio.Reader) {
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			key, _ := websocket.CheckRequest(req.Header.Get)
			io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+websocket.AcceptKey(key)+"\r\n\r\nbye")
			c.(*net.TCPConn).CloseWrite()
			read(br)
		}),
		"early": target(t, func(c net.Conn, br *bufio.Reader) {
			for { // a connection that ended here might be the next request's
				req, err := http.ReadRequest(br)
				if err != nil {
					return
				}
				answer := "HTTP/1.1 200 OK\r\nContent-Length: 3\r\n\r\nbye"
				if req.URL.Path == "/empty" {
					answer = "HTTP/1.1 200 OK\r\nContent-Length: 0\r\n\r\n"
				}
				io.WriteString(c, answer)
				read(req.Body)
			}
		}),
	}, "ws", "https://ws.test", "early", "https://early.test")
	for _, tt := range []struct{ name, head, body string }{
		{"ws.test", ":method: CONNECT\n:protocol: websocket\n:path: /\nsec-websocket-version: 13", "bye"},
		{"early.test", ":method: POST\n:path: /", "bye"},
		{"early.test", ":method: POST\n:path: /empty", ""},
	} {
		conn, err := r.dial3(tt.name)
		if err != nil {
			t.Fatal(err)
		}
		s, err := conn.OpenStreamSync(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		s.SetDeadline(time.Now().Add(5 * time.Second))
		s.Write(pack3(append([]string{":scheme: https", ":authority: " + tt.name}, strings.Split(tt.head, "\n")...)...))
		if status, body, err := answer3(s); status != "200" || body != tt.body || err != nil {
			t.Errorf("%s: %s %q %v", tt.head, status, body, err)
		}
		for _, want := range []string{"late", "news", ""} {
			if want != "" {
				s.Write(frame3(0, []byte(want)))
			} else {
				s.Close()
			}
			select {
			case g := <-got:
				if g != want {
					t.Errorf("%s: the server has got %q, want %q", tt.head, g, want)
				}
			case <-time.After(10 * time.Second):
				t.Fatalf("%s: the server waits for %q", tt.head, want)
			}
		}
		conn.CloseWithError(0, "")
	}
}
