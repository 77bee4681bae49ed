package httpd

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"

	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
)

// certificate makes one for 127.0.0.1, and the pool that trusts it.
func certificate(t testing.TB) (*tls.Config, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	pool := x509.NewCertPool()
	pool.AddCert(leaf)
	return &tls.Config{Certificates: []tls.Certificate{{Certificate: [][]byte{der}, PrivateKey: key, Leaf: leaf}}}, pool
}

// service is a server that a test may talk to, in one of the ways there are.
type service struct {
	*Server
	url    string
	client *http.Client
	major  int  // version of HTTP
	std    bool // it is net/http, to which we are compared
}

// transports are the ways.
var transports = []string{"net/http", "net/http HTTP/2", "HTTP/1.1", "HTTP/1.1 portable", "HTTP/1.1 TLS", "HTTP/2", "HTTP/2 portable", "HTTP/3", "in process", "stream"}

// everywhere runs f with a client of what serve makes, in each of the ways. When f returns, everything has to end.
func everywhere(t *testing.T, h http.HandlerFunc, f func(t *testing.T, s *service)) {
	for _, name := range transports {
		t.Run(name, func(t *testing.T) {
			s := &service{Server: &Server{Handler: h}}
			s.OnPanic = func(r *http.Request, v any, stack []byte) {
				s.mu.Lock()
				defer s.mu.Unlock()
				if !s.ending { // the client may have all of the answer before the last Write returns
					t.Errorf("panic: %v\n%s", v, stack)
				}
			}
			start(t, name, s)
			f(t, s)
		})
	}
}

// start serves s in one of the ways, until the test ends.
func start(t testing.TB, name string, s *service) {
	config, pool := certificate(t)
	trust := &tls.Config{RootCAs: pool}
	tr := &http.Transport{TLSClientConfig: trust, ExpectContinueTimeout: time.Minute, MaxResponseHeaderBytes: 1 << 20}
	s.client = &http.Client{Transport: tr}
	s.major = 1
	core, err := evloop.New(evloop.Config{Portable: strings.Contains(name, "portable"), Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.Server.Wait)
	t.Cleanup(func() { core.Close() })
	t.Cleanup(s.Server.Close)
	t.Cleanup(func() { s.client.CloseIdleConnections() })
	listen := func(config *tls.Config) {
		ln, err := s.Listen(core, "tcp", "127.0.0.1:0", config)
		if err != nil {
			t.Fatal(err)
		}
		s.url = "http://" + ln.Addr().String()
		if config != nil {
			s.url = "https://" + ln.Addr().String()
		}
	}
	switch name {
	case "net/http", "net/http HTTP/2":
		s.std = true
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		std := &http.Server{Handler: s.Handler, TLSConfig: config}
		s.url = "http://" + ln.Addr().String()
		if name != "net/http" {
			s.major = 2
			tr.ForceAttemptHTTP2 = true
			s.url = "https://" + ln.Addr().String()
			go std.ServeTLS(ln, "", "")
		} else {
			go std.Serve(ln)
		}
		t.Cleanup(func() { std.Close() })
	case "HTTP/1.1", "HTTP/1.1 portable":
		listen(nil)
	case "HTTP/1.1 TLS":
		tr.TLSNextProto = map[string]func(string, *tls.Conn) http.RoundTripper{}
		listen(config)
	case "HTTP/2", "HTTP/2 portable":
		tr.ForceAttemptHTTP2 = true
		s.major = 2
		listen(config)
	case "HTTP/3":
		s.major = 3
		pc, err := net.ListenPacket("udp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		s.url = "https://" + pc.LocalAddr().String()
		served := make(chan struct{})
		go func() {
			defer close(served)
			if err := s.ServePacket(pc, config); !errors.Is(err, ErrServerClosed) {
				t.Error(err)
			}
			pc.Close()
		}()
		t.Cleanup(func() { <-served })
		t.Cleanup(s.Server.Close)
		tr3 := &http3.Transport{TLSClientConfig: trust, QUICConfig: &quic.Config{}, MaxResponseHeaderBytes: 1 << 20}
		s.client.Transport = tr3
		t.Cleanup(func() { tr3.Close() })
	case "in process":
		s.url = "http://here"
		tr.DialContext = s.Dialer(core.Loop(0))
	case "stream":
		ln, err := core.Listen("tcp", "127.0.0.1:0", overStreams(core.Loop(0), s.Server))
		if err != nil {
			t.Fatal(err)
		}
		s.url = "http://" + ln.Addr().String()
	default:
		t.Fatal(name)
	}
}

// do makes a request and wants an answer.
func (s *service) do(t *testing.T, req *http.Request) *http.Response {
	t.Helper()
	resp, err := s.client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { resp.Body.Close() })
	if resp.ProtoMajor != s.major {
		t.Fatalf("answer by %s", resp.Proto)
	}
	return resp
}

func (s *service) request(t *testing.T, method, path string, body io.Reader) *http.Request {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, body)
	if err != nil {
		t.Fatal(err)
	}
	return req
}

func text(t *testing.T, resp *http.Response) string {
	t.Helper()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Errorf("body after %q: %v", b, err)
	}
	resp.Body.Close()
	return string(b)
}

// conformance is the table: a handler, and what its client sees, whatever is between them.
var conformance = []struct {
	name    string
	handler http.HandlerFunc
	client  func(t *testing.T, s *service)
}{
	{"plain", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("X-Path", r.URL.Path+"?"+r.URL.RawQuery)
		w.Header().Add("X-Two", "1")
		w.Header().Add("X-Two", "2")
		w.WriteHeader(http.StatusTeapot)
		io.WriteString(w, r.Method+" "+r.Header.Get("X-Ask")+" "+r.Header.Get("Cookie"))
	}, func(t *testing.T, s *service) {
		req := s.request(t, "PATCH", "/a%20b?c=d", nil)
		req.Header.Set("X-Ask", "why")
		req.Header.Set("Cookie", "a=1; b=2; c=3")
		resp := s.do(t, req)
		if got := text(t, resp); got != "PATCH why a=1; b=2; c=3" {
			t.Errorf("body %q", got)
		}
		if resp.StatusCode != 418 || resp.Header.Get("X-Path") != "/a b?c=d" || strings.Join(resp.Header["X-Two"], ",") != "1,2" ||
			resp.Header.Get("Content-Type") != "text/plain; charset=utf-8" || resp.Header.Get("Date") == "" || resp.ContentLength != 23 && s.major < 3 {
			t.Errorf("%d %v %d", resp.StatusCode, resp.Header, resp.ContentLength)
		}
	}},

	{"the handler starts before the body, and answers while it comes", func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.WriteHeader(200)
		w.(http.Flusher).Flush()
		lines := bufio.NewScanner(r.Body)
		for lines.Scan() {
			fmt.Fprintf(w, "<%s>\n", lines.Text())
			w.(http.Flusher).Flush()
		}
		fmt.Fprintf(w, "end %v\n", lines.Err())
	}, func(t *testing.T, s *service) {
		pr, pw := io.Pipe()
		resp := s.do(t, s.request(t, "POST", "/", pr))
		lines := bufio.NewScanner(resp.Body)
		for i := range 5 {
			fmt.Fprintf(pw, "line %d\n", i)
			if !lines.Scan() || lines.Text() != fmt.Sprintf("<line %d>", i) {
				t.Fatalf("%q, %v", lines.Text(), lines.Err())
			}
		}
		pw.Close()
		if !lines.Scan() || lines.Text() != "end <nil>" {
			t.Errorf("%q, %v", lines.Text(), lines.Err())
		}
	}},

	{"8 MiB each way", func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		if n, err := io.Copy(w, r.Body); n != 8<<20 || err != nil {
			panic(fmt.Sprint(n, err))
		}
	}, func(t *testing.T, s *service) {
		resp := s.do(t, s.request(t, "POST", "/", io.LimitReader(zeros{}, 8<<20)))
		if n, err := io.Copy(io.Discard, resp.Body); n != 8<<20 || err != nil {
			t.Error(n, err)
		}
	}},

	{"lengths", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		w.Header().Set("Content-Length", "3")
		fmt.Fprintf(w, "%-3d", len(b))
		if err != nil || r.ContentLength != 5 {
			panic(fmt.Sprint(err, r.ContentLength))
		}
		if gathers(r) {
			return
		}
		if _, err := io.WriteString(w, "!"); !errors.Is(err, http.ErrContentLength) {
			panic(err)
		}
	}, func(t *testing.T, s *service) {
		resp := s.do(t, s.request(t, "PUT", "/", strings.NewReader("12345")))
		if got := text(t, resp); got != "5  " || resp.ContentLength != 3 {
			t.Errorf("%q %d", got, resp.ContentLength)
		}
	}},

	{"trailers", func(w http.ResponseWriter, r *http.Request) {
		b, err := io.ReadAll(r.Body)
		w.Header().Set("Trailer", "X-Sum")
		fmt.Fprintf(w, "%s %v %s", b, err, r.Trailer.Get("X-Check"))
		w.Header().Set("X-Sum", "42")
		w.Header().Set(http.TrailerPrefix+"X-Late", "surprise")
	}, func(t *testing.T, s *service) {
		req := s.request(t, "POST", "/", io.LimitReader(strings.NewReader("body"), 4))
		req.ContentLength = -1
		req.Trailer = http.Header{"X-Check": {"ok"}}
		resp := s.do(t, req)
		if got := text(t, resp); got != "body <nil> ok" {
			t.Errorf("%q", got)
		}
		if resp.Trailer.Get("X-Sum") != "42" || resp.Trailer.Get("X-Late") != "surprise" || resp.Header.Get("X-Sum") != "" {
			t.Errorf("trailers %v, header %v", resp.Trailer, resp.Header)
		}
	}},

	{"103", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Set("Link", "</b.css>; rel=preload")
		w.WriteHeader(http.StatusEarlyHints)
		w.Header().Del("Link")
		io.WriteString(w, "hello")
	}, func(t *testing.T, s *service) {
		req := s.request(t, "GET", "/", nil)
		var mu sync.Mutex
		var hints []string
		req = req.WithContext(httptrace.WithClientTrace(req.Context(), &httptrace.ClientTrace{Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
			mu.Lock()
			defer mu.Unlock()
			hints = append(hints, fmt.Sprint(code, " ", h.Get("Link")))
			return nil
		}}))
		resp := s.do(t, req)
		if got := text(t, resp); got != "hello" || resp.StatusCode != 200 || resp.Header.Get("Link") != "" {
			t.Errorf("%q %d %v", got, resp.StatusCode, resp.Header)
		}
		mu.Lock()
		defer mu.Unlock()
		if len(hints) != 2 || hints[0] != "103 </a.css>; rel=preload" || hints[1] != "103 </b.css>; rel=preload" {
			t.Errorf("%q", hints)
		}
	}},

	{"big heads", func(w http.ResponseWriter, r *http.Request) {
		for i := range 20 {
			w.Header().Set(fmt.Sprint("X-Big-", i), strings.Repeat("y", 1000)+r.Header.Get("X-Big")[:1])
		}
	}, func(t *testing.T, s *service) {
		req := s.request(t, "GET", "/", nil)
		req.Header.Set("X-Big", strings.Repeat("x", 12_000))
		resp := s.do(t, req)
		text(t, resp)
		for i := range 20 {
			if v := resp.Header.Get(fmt.Sprint("X-Big-", i)); v != strings.Repeat("y", 1000)+"x" {
				t.Fatalf("%d: %d bytes", i, len(v))
			}
		}
		if s.std {
			return // takes 1 MiB
		}
		req = s.request(t, "GET", "/", nil)
		req.Header.Set("X-Big", strings.Repeat("x", 40_000))
		if resp, err := s.client.Do(req); err == nil {
			if text(t, resp); resp.StatusCode != http.StatusRequestHeaderFieldsTooLarge {
				t.Error(resp.Status)
			}
		}
	}},

	{"HEAD", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "5000")
		for range 5 {
			if n, err := w.Write(make([]byte, 1000)); (n != 1000 || err != nil) && !gathers(r) {
				panic(fmt.Sprint(n, err))
			}
		}
	}, func(t *testing.T, s *service) {
		resp := s.do(t, s.request(t, "HEAD", "/", nil))
		if got := text(t, resp); got != "" || resp.ContentLength != 5000 {
			t.Errorf("%q %d", got, resp.ContentLength)
		}
		resp = s.do(t, s.request(t, "GET", "/", nil)) // the connection is still good
		if got := text(t, resp); len(got) != 5000 {
			t.Errorf("%d bytes", len(got))
		}
	}},

	{"204 and 304", func(w http.ResponseWriter, r *http.Request) {
		status := map[string]int{"/204": 204, "/304": 304}[r.URL.Path]
		w.WriteHeader(status)
		if _, err := io.WriteString(w, "x"); !errors.Is(err, http.ErrBodyNotAllowed) && !gathers(r) {
			panic(err)
		}
	}, func(t *testing.T, s *service) {
		for _, status := range []int{204, 304} {
			resp := s.do(t, s.request(t, "GET", fmt.Sprint("/", status), nil))
			if got := text(t, resp); got != "" || resp.StatusCode != status {
				t.Errorf("%q %d", got, resp.StatusCode)
			}
		}
	}},

	{"Expect: 100-continue", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/no" {
			http.Error(w, "no", http.StatusForbidden)
			return
		}
		b, err := io.ReadAll(r.Body)
		fmt.Fprintf(w, "%d %v", len(b), err)
	}, func(t *testing.T, s *service) {
		// The client waits for a minute, so an answer that comes sooner has been asked for.
		begin := time.Now()
		body := &counted{Reader: io.LimitReader(zeros{}, 100_000)}
		req := s.request(t, "POST", "/no", body)
		req.ContentLength = 100_000
		req.Header.Set("Expect", "100-continue")
		resp := s.do(t, req)
		if got := text(t, resp); got != "no\n" || resp.StatusCode != 403 {
			t.Errorf("%q %d", got, resp.StatusCode)
		}
		if s.major == 1 && body.n.Load() > 0 {
			t.Errorf("%d bytes of the body were sent", body.n.Load())
		}
		req = s.request(t, "POST", "/yes", io.LimitReader(zeros{}, 100_000))
		req.ContentLength = 100_000
		req.Header.Set("Expect", "100-continue")
		if got := text(t, s.do(t, req)); got != "100000 <nil>" {
			t.Errorf("%q", got)
		}
		if d := time.Since(begin); d > 50*time.Second {
			t.Errorf("took %v", d)
		}
	}},

	{"Flush", func(w http.ResponseWriter, r *http.Request) {
		for i := range 3 {
			fmt.Fprintf(w, "%d\n", i)
			if err := http.NewResponseController(w).Flush(); err != nil {
				panic(err)
			}
			await(r)
		}
	}, func(t *testing.T, s *service) {
		resp := s.do(t, s.request(t, "GET", "/", nil))
		lines := bufio.NewScanner(resp.Body)
		for i := range 3 {
			if !lines.Scan() || lines.Text() != fmt.Sprint(i) {
				t.Fatalf("%q, %v", lines.Text(), lines.Err())
			}
			flush(t)
		}
		if lines.Scan() || lines.Err() != nil {
			t.Errorf("%q, %v", lines.Text(), lines.Err())
		}
	}},

	{"a read deadline", func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := rc.SetReadDeadline(time.Now().Add(20 * time.Millisecond)); err != nil {
			panic(err)
		}
		_, err := io.ReadAll(r.Body)
		fmt.Fprint(w, errors.Is(err, os.ErrDeadlineExceeded))
	}, func(t *testing.T, s *service) {
		pr, pw := io.Pipe()
		defer pw.Close()
		go io.WriteString(pw, "some")
		resp, err := s.client.Do(s.request(t, "POST", "/", pr))
		if err != nil {
			t.Fatal(err)
		}
		if got := text(t, resp); got != "true" {
			t.Errorf("%q", got)
		}
	}},

	{"a write deadline", func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.Flush()
		await(r) // the head is there: a deadline that passes sooner than a slow machine has sent it leaves no answer
		if err := rc.SetWriteDeadline(time.Now().Add(50 * time.Millisecond)); err != nil {
			panic(err)
		}
		var err error
		for err == nil {
			_, err = w.Write(make([]byte, 32<<10))
		}
		results <- err
	}, func(t *testing.T, s *service) {
		resp := s.do(t, s.request(t, "GET", "/", nil))
		flush(t)
		if err := result(t); err == nil {
			t.Error("no error")
		}
		if _, err := io.Copy(io.Discard, resp.Body); err == nil {
			t.Error("the answer looks complete")
		}
	}},

	{"a deadline that was put off", func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		if err := errors.Join(rc.SetReadDeadline(time.Now().Add(time.Hour)), rc.SetReadDeadline(time.Time{}),
			rc.SetWriteDeadline(time.Now().Add(time.Hour)), rc.SetWriteDeadline(time.Time{})); err != nil {
			panic(err)
		}
		io.Copy(w, r.Body)
	}, func(t *testing.T, s *service) {
		if got := text(t, s.do(t, s.request(t, "POST", "/", strings.NewReader("hello")))); got != "hello" {
			t.Errorf("%q", got)
		}
	}},

	{"the client goes", func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		<-r.Context().Done()
		results <- r.Context().Err()
	}, func(t *testing.T, s *service) {
		ctx, cancel := context.WithCancel(context.Background())
		resp := s.do(t, s.request(t, "GET", "/", nil).WithContext(ctx))
		cancel()
		if err := result(t); !errors.Is(err, context.Canceled) {
			t.Error(err)
		}
		resp.Body.Close()
	}},

	{"the client goes while it sends", func(w http.ResponseWriter, r *http.Request) {
		await(r)
		_, err := io.Copy(io.Discard, r.Body)
		<-r.Context().Done()
		results <- err
	}, func(t *testing.T, s *service) {
		ctx, cancel := context.WithCancel(context.Background())
		pr, pw := io.Pipe()
		done := make(chan struct{})
		go func() {
			defer close(done)
			if resp, err := s.client.Do(s.request(t, "POST", "/", pr).WithContext(ctx)); err == nil {
				resp.Body.Close()
				t.Error("there is an answer")
			}
		}()
		pw.Write(make([]byte, 1000))
		flush(t) // it has begun
		cancel()
		pw.CloseWithError(errors.New("gone")) // the client waits for its body before it gives up
		if err := result(t); err == nil {
			t.Error("the body looks complete")
		}
		<-done
	}},

	{"http.ErrAbortHandler", func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/late" {
			io.WriteString(w, "hello")
			w.(http.Flusher).Flush()
		}
		panic(http.ErrAbortHandler)
	}, func(t *testing.T, s *service) {
		if resp, err := s.client.Do(s.request(t, "POST", "/", strings.NewReader("x"))); err == nil {
			t.Errorf("answered %s", resp.Status)
			resp.Body.Close()
		}
		if resp, err := s.client.Do(s.request(t, "POST", "/late", strings.NewReader("x"))); err == nil { // the end may overtake the head
			if b, err := io.ReadAll(resp.Body); err == nil {
				t.Errorf("%q looks complete", b)
			}
			resp.Body.Close()
		}
	}},

	{"a body that nobody reads", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "ignored")
	}, func(t *testing.T, s *service) {
		for range 3 {
			resp, err := s.client.Do(s.request(t, "POST", "/", bytes.NewReader(make([]byte, 100_000))))
			if err != nil {
				t.Fatal(err)
			}
			if got := text(t, resp); got != "ignored" {
				t.Errorf("%q", got)
			}
		}
	}},

	{"many at once", func(w http.ResponseWriter, r *http.Request) {
		n, err := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n, err)
	}, func(t *testing.T, s *service) {
		var wg sync.WaitGroup
		for i := range 50 {
			wg.Add(1)
			go func() {
				defer wg.Done()
				resp, err := s.client.Post(s.url, "", io.LimitReader(zeros{}, int64(i)<<10))
				if err != nil {
					t.Error(err)
					return
				}
				if got := text(t, resp); got != fmt.Sprint(i<<10, nil) {
					t.Errorf("%q", got)
				}
			}()
		}
		wg.Wait()
	}},
}

// Handlers and the tests of their clients wait for each other, and not when the other one has failed.
var (
	flushes = make(chan struct{})
	results = make(chan error, len(transports))
)

// await waits for the client to flush.
func await(r *http.Request) {
	select {
	case <-flushes:
	case <-r.Context().Done():
	}
}

// flush has the handler go on.
func flush(t *testing.T) {
	t.Helper()
	select {
	case flushes <- struct{}{}:
	case <-time.After(time.Minute):
		t.Fatal("no handler waits")
	}
}

// result is what the handler has to tell.
func result(t *testing.T) error {
	t.Helper()
	select {
	case err := <-results:
		return err
	case <-time.After(time.Minute):
		t.Fatal("the handler tells nothing")
		return nil
	}
}

// One http.Handler does the same whatever carries it, and what net/http does.
func TestConformance(t *testing.T) {
	for _, test := range conformance {
		t.Run(strings.ReplaceAll(test.name, " ", "_"), func(t *testing.T) { everywhere(t, test.handler, test.client) })
	}
}

// gathers reports whether net/http answers by HTTP/2, and so learns later what is wrong with a Write.
func gathers(r *http.Request) bool {
	return r.Context().Value(http.ServerContextKey) != nil && r.ProtoMajor == 2
}

// counted is a body that tells how much of it was sent.
type counted struct {
	io.Reader
	n atomic.Int64
}

func (c *counted) Read(p []byte) (int, error) {
	n, err := c.Reader.Read(p)
	c.n.Add(int64(n))
	return n, err
}
