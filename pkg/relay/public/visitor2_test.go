package public

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"
)

// client2 is an HTTP/2 client that finds every host at the relay.
func (r *testRelay) client2() *http.Client {
	protocols := new(http.Protocols)
	protocols.SetHTTP2(true)
	tr := &http.Transport{
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, r.https)
		},
		TLSClientConfig: &tls.Config{InsecureSkipVerify: true},
		Protocols:       protocols,
	}
	r.t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{
		Transport:     tr,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
		Timeout:       time.Minute,
	}
}

// http2Target serves a handler in HTTP/2 with prior knowledge.
func http2Target(t *testing.T, h http.Handler) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: h, Protocols: new(http.Protocols)}
	srv.Protocols.SetUnencryptedHTTP2(true)
	done := make(chan struct{})
	go func() { srv.Serve(ln); close(done) }()
	t.Cleanup(func() { srv.Close(); <-done })
	return ln.Addr().String()
}

// versions runs a test for all combinations of the versions of visitor and target.
func versions(t *testing.T, h http.Handler, f func(t *testing.T, r *testRelay, c *http.Client, url string)) {
	for _, visitor := range []string{"1", "2"} {
		for _, target := range []string{"1", "2"} {
			t.Run(visitor+" to "+target, func(t *testing.T) {
				r := newTestRelay(t, false, func(r *Relay) { r.HandshakesPerAddress = 1 << 20 })
				if target == "1" {
					r.connect("office", map[string]string{"app": httpTarget(t, h)}, "app", "https://app.test")
				} else {
					r.connect("office", map[string]string{"h2c": http2Target(t, h)}, "h2c", "https://app.test")
				}
				c := r.client2()
				if visitor == "1" {
					c = r.client()
				}
				f(t, r, c, "https://app.test")
			})
		}
	}
}

// A request and its response are the same whatever speaks what.
func TestVersions(t *testing.T) {
	h := http.NewServeMux()
	h.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		w.Header().Set("Trailer", "X-Sum")
		w.Header().Set("X-Seen", fmt.Sprintf("%s %s %s %q %d", r.Method, r.Host, r.URL.RawQuery, r.Header.Values("X-Two"), r.ContentLength))
		w.Header().Set("X-Forwarded", r.Header.Get("X-Forwarded-For")+" "+r.Header.Get("X-Forwarded-Proto")+" "+r.Header.Get("X-Forwarded-Host"))
		w.Header().Set("X-Cookie", r.Header.Get("Cookie"))
		w.WriteHeader(200)
		n, err := io.Copy(w, r.Body)
		w.Header().Set("X-Sum", fmt.Sprint(n, err, r.Trailer))
	})
	h.HandleFunc("/status", func(w http.ResponseWriter, r *http.Request) {
		var status int
		fmt.Sscan(r.URL.RawQuery, &status)
		w.Header().Set("X-A", "b")
		w.WriteHeader(status)
		if status != 204 && status != 304 {
			io.WriteString(w, "text")
		}
	})
	h.HandleFunc("/hints", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a>; rel=preload")
		w.WriteHeader(103)
		io.WriteString(w, "after")
	})
	h.HandleFunc("/early", func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, "too much", http.StatusRequestEntityTooLarge)
	})
	h.HandleFunc("/abort", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "part")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	versions(t, h, func(t *testing.T, r *testRelay, c *http.Client, url string) {
		do := func(req *http.Request) (*http.Response, string) {
			t.Helper()
			res, err := c.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			b, err := io.ReadAll(res.Body)
			if err != nil {
				t.Errorf("%s: %v", req.URL, err)
			}
			return res, string(b)
		}
		request := func(method, path string, body io.Reader) *http.Request {
			req, err := http.NewRequestWithContext(t.Context(), method, url+path, body)
			if err != nil {
				t.Fatal(err)
			}
			return req
		}

		t.Run("fields", func(t *testing.T) {
			req := request("POST", "/echo?a=b%20c", strings.NewReader("body"))
			req.Header["X-Two"] = []string{"1", "2"}
			req.Header.Set("X-Forwarded-For", "6.6.6.6")
			req.Header["Cookie"] = []string{"a=b; c=d"}
			res, body := do(req)
			if got, want := res.Header.Get("X-Seen"), `POST app.test a=b%20c ["1" "2"] 4`; got != want {
				t.Errorf("the target has seen %s, want %s", got, want)
			}
			if got := res.Header.Get("X-Forwarded"); got != "127.0.0.1 https app.test" {
				t.Errorf("forwarding fields %q", got)
			}
			if got := res.Header.Get("X-Cookie"); got != "a=b; c=d" {
				t.Errorf("cookie %q", got)
			}
			if body != "body" || res.StatusCode != 200 {
				t.Errorf("%s, body %q", res.Status, body)
			}
		})
		t.Run("long body of unknown length, trailers both ways", func(t *testing.T) {
			data := bytes.Repeat([]byte("0123456789abcdef"), 3<<16) // 3 MiB: beyond all windows
			req := request("POST", "/echo", io.MultiReader(bytes.NewReader(data), strings.NewReader("!")))
			req.Trailer = http.Header{"X-Check": []string{"yes"}}
			res, body := do(req)
			if body != string(data)+"!" {
				t.Errorf("body of %d bytes came back as %d", len(data)+1, len(body))
			}
			if got, want := res.Trailer.Get("X-Sum"), fmt.Sprint(len(data)+1, " <nil> map[X-Check:[yes]]"); got != want {
				t.Errorf("trailer %q, want %q", got, want)
			}
		})
		t.Run("HEAD and statuses without a body", func(t *testing.T) {
			for _, status := range []string{"200", "404"} {
				res, body := do(request("HEAD", "/status?"+status, nil))
				if !strings.HasPrefix(res.Status, status) || body != "" || res.ContentLength != 4 || res.Header.Get("X-A") != "b" {
					t.Errorf("HEAD %s: %s, %q, length %d", status, res.Status, body, res.ContentLength)
				}
			}
			for _, status := range []string{"204", "304"} {
				res, body := do(request("GET", "/status?"+status, nil))
				if !strings.HasPrefix(res.Status, status) || body != "" {
					t.Errorf("GET %s: %s, %q", status, res.Status, body)
				}
			}
		})
		t.Run("interim answers", func(t *testing.T) {
			var hints []string
			ctx := httptrace.WithClientTrace(t.Context(), &httptrace.ClientTrace{
				Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
					hints = append(hints, fmt.Sprint(code, h.Get("Link")))
					return nil
				},
			})
			if _, body := do(request("GET", "/hints", nil).WithContext(ctx)); body != "after" {
				t.Errorf("body %q", body)
			}
			if want := []string{"103</a>; rel=preload"}; !slices.Equal(hints, want) {
				t.Errorf("hints %q, want %q", hints, want)
			}
		})
		t.Run("expect", func(t *testing.T) {
			req := request("POST", "/echo", strings.NewReader("body"))
			req.Header.Set("Expect", "100-continue")
			if res, body := do(req); res.StatusCode != 200 || body != "body" {
				t.Errorf("%s, %q", res.Status, body)
			}
		})
		t.Run("answer before the end of the request", func(t *testing.T) {
			body, w := io.Pipe()
			defer w.Close()
			go func() {
				for {
					if _, err := w.Write(make([]byte, 16<<10)); err != nil {
						return
					}
				}
			}()
			if res, text := do(request("POST", "/early", body)); res.StatusCode != 413 || text != "too much\n" {
				t.Errorf("%s, %q", res.Status, text)
			}
			body.Close()
		})
		t.Run("cut in the middle", func(t *testing.T) {
			res, err := c.Do(request("GET", "/abort", nil))
			if err != nil {
				t.Fatal(err)
			}
			defer res.Body.Close()
			if b, err := io.ReadAll(res.Body); err == nil || string(b) != "part" {
				t.Errorf("read %q, %v, want an error behind a part", b, err)
			}
		})
		t.Run("many at once", func(t *testing.T) {
			var wg sync.WaitGroup
			for i := range 200 {
				wg.Go(func() {
					text := strings.Repeat(fmt.Sprint(i, " "), 100*i)
					res, err := c.Post(url+"/echo", "text/plain", strings.NewReader(text))
					if err != nil {
						t.Error(err)
						return
					}
					defer res.Body.Close()
					if b, err := io.ReadAll(res.Body); string(b) != text || err != nil {
						t.Errorf("request %d: %d bytes came back as %d, %v", i, len(text), len(b), err)
					}
				})
			}
			wg.Wait()
		})
	})
}

// Both directions run at the same time, and each piece goes on at once.
func TestDuplex(t *testing.T) {
	versions(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		rc := http.NewResponseController(w)
		rc.EnableFullDuplex()
		rc.Flush()
		buf := make([]byte, 100)
		for {
			n, err := r.Body.Read(buf)
			w.Write(buf[:n])
			rc.Flush()
			if err != nil {
				return
			}
		}
	}), func(t *testing.T, r *testRelay, c *http.Client, url string) {
		body, w := io.Pipe()
		req, _ := http.NewRequestWithContext(t.Context(), "POST", url, body)
		go w.Write([]byte("0"))
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		buf := make([]byte, 10)
		for i := range 50 {
			n, err := res.Body.Read(buf)
			if want := fmt.Sprint(i); string(buf[:n]) != want {
				t.Fatalf("got %q, %v, want %q", buf[:n], err, want)
			}
			fmt.Fprint(w, i+1)
		}
		w.Close()
		if rest, err := io.ReadAll(res.Body); string(rest) != "50" || err != nil {
			t.Errorf("in the end %q, %v", rest, err)
		}
	})
}

// What a visitor gives up is given up at the target.
func TestCancel(t *testing.T) {
	gone := make(chan error, 1)
	versions(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		<-r.Context().Done()
		gone <- r.Context().Err()
	}), func(t *testing.T, r *testRelay, c *http.Client, url string) {
		if strings.HasPrefix(t.Name(), "TestCancel/1") {
			t.Skip("in HTTP/1.1 it is an end of stream, which has halfTime")
		}
		ctx, cancel := context.WithCancel(t.Context())
		req, _ := http.NewRequestWithContext(ctx, "GET", url, nil)
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		cancel()
		res.Body.Close()
		select {
		case <-gone:
		case <-time.After(10 * time.Second):
			t.Error("the target has not heard of it")
		}
	})
}

// The relay's own answers, for browsers and for clients of gRPC.
func TestOwnAnswers2(t *testing.T) {
	r := newTestRelay(t, false, nil)
	r.connect("office", map[string]string{"h2c-down": "127.0.0.1:1", "down": "127.0.0.1:1"}, "h2c-down", "https://rpc.test", "down", "https://down.test")
	c := r.client2()
	for _, tt := range []struct {
		url, status, grpc string
	}{
		{"https://rpc.test/a.B/C", "502 Bad Gateway", "14"},
		{"https://down.test/a.B/C", "502 Bad Gateway", "14"},
		{"https://none.example/a.B/C", "404 Not Found", "12"},
		{"https://away.home.test/a.B/C", "503 Service Unavailable", "14"},
	} {
		res, err := c.Get(tt.url)
		if err != nil {
			t.Fatal(err)
		}
		text, _ := io.ReadAll(res.Body)
		res.Body.Close()
		if res.Status != tt.status || len(text) == 0 || res.Header.Get("Content-Type") != "text/plain; charset=utf-8" {
			t.Errorf("%s: %s, %q", tt.url, res.Status, text)
		}
		if res.StatusCode == 503 && res.Header.Get("Retry-After") == "" {
			t.Error("no Retry-After")
		}
		req, _ := http.NewRequest("POST", tt.url, strings.NewReader("\x00\x00\x00\x00\x00"))
		req.Header.Set("Content-Type", "application/grpc+proto")
		req.Header.Set("TE", "trailers")
		if res, err = c.Do(req); err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Get("grpc-status"); res.StatusCode != 200 || got != tt.grpc || res.Header.Get("grpc-message") == "" || res.Header.Get("Content-Type") != "application/grpc" {
			t.Errorf("%s: gRPC gets %s, status %q, want %s", tt.url, res.Status, got, tt.grpc)
		}
	}
}

// A connection for one name serves the others, but the relay's own.
func TestHTTP2Names(t *testing.T) {
	r := newTestRelay(t, false, nil)
	target := httpTarget(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, r.Host) }))
	r.connect("office", map[string]string{"a": target, "b": target}, "a", "https://app.test", "b", "https://b.test")
	c := r.client2()
	for host, want := range map[string]string{"app.test": "200 OK", "b.test": "200 OK", "relay.test": "421 Misdirected Request"} {
		req, _ := http.NewRequest("GET", "https://app.test/", nil)
		req.Host = host
		res, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if res.Status != want || res.ProtoMajor != 2 {
			t.Errorf("%s on a connection for app.test: %s %s, want %s", host, res.Proto, res.Status, want)
		}
	}
	// The relay itself speaks HTTP/1.1, because links are upgrades; and so does it with who names nobody and may be for any loop.
	for name, want := range map[string]string{"relay.test": "http/1.1", "app.test": "h2", "": "http/1.1"} {
		conn, err := tls.Dial("tcp", r.https, &tls.Config{InsecureSkipVerify: true, ServerName: name, NextProtos: []string{"h2", "http/1.1"}})
		if err != nil {
			t.Fatal(err)
		}
		if got := conn.ConnectionState().NegotiatedProtocol; got != want {
			t.Errorf("server name %q: %s, want %s", name, got, want)
		}
		conn.Close()
	}
}

// A relay that shuts down finishes what is under way and has the visitor make no more
// requests.
func TestDrain2(t *testing.T) {
	started, finish := make(chan bool), make(chan bool)
	r := newTestRelay(t, false, nil)
	r.connect("office", map[string]string{"h2c": http2Target(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/first" {
			close(started)
			<-finish
		}
		io.WriteString(w, "whole")
	}))}, "h2c", "https://app.test")
	c := r.client2()
	var wg sync.WaitGroup
	wg.Go(func() {
		res, err := c.Get("https://app.test/first")
		if err != nil {
			t.Error(err)
			return
		}
		defer res.Body.Close()
		if b, err := io.ReadAll(res.Body); string(b) != "whole" || err != nil {
			t.Errorf("%q, %v", b, err)
		}
	})
	<-started
	wg.Go(func() {
		ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
		defer cancel()
		if err := r.Drain(ctx); err != nil {
			t.Errorf("drain: %v", err)
		}
	})
	for {
		res, err := c.Get("https://app.test/")
		if err == nil {
			res.Body.Close()
			continue
		}
		if errors.Is(err, context.DeadlineExceeded) {
			t.Error("a request waits for ever")
		}
		break
	}
	close(finish)
	wg.Wait()
}
