package http2

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/http/httptrace"
	"net/netip"
	"net/textproto"
	"slices"
	"strings"
	"sync"
	"testing"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

// std is the client of net/http, by HTTP/2 with prior knowledge.
func std(t testing.TB) *http.Client {
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	tr := &http.Transport{Protocols: &p}
	t.Cleanup(tr.CloseIdleConnections)
	return &http.Client{Transport: tr}
}

func TestServerWithNetHTTP(t *testing.T) {
	base := "http://" + serve(t, new(Endpoint))
	client := std(t)
	get := func(t *testing.T, req *http.Request) (*http.Response, string) {
		t.Helper()
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		return res, string(body)
	}
	request := func(method, path string, body io.Reader) *http.Request {
		req, err := http.NewRequest(method, base+path, body)
		if err != nil {
			t.Fatal(err)
		}
		return req
	}

	t.Run("get", func(t *testing.T) {
		res, body := get(t, request("GET", "/", nil))
		if res.ProtoMajor != 2 || res.StatusCode != 200 || body != "hello" || res.ContentLength != 5 {
			t.Errorf("%s %q, length %d", res.Status, body, res.ContentLength)
		}
	})
	t.Run("interim responses", func(t *testing.T) {
		var seen []string
		req := request("GET", "/early", nil)
		req = req.WithContext(httptrace.WithClientTrace(context.Background(), &httptrace.ClientTrace{
			Got1xxResponse: func(code int, h textproto.MIMEHeader) error {
				seen = append(seen, fmt.Sprint(code, h.Get("Link")))
				return nil
			},
		}))
		res, body := get(t, req)
		if !slices.Equal(seen, []string{"103</a.css>", "100"}) || body != "late" {
			t.Errorf("%q, %q", seen, body)
		}
		if len(res.Header) != 0 {
			t.Errorf("hop-by-hop fields: %v", res.Header)
		}
	})
	t.Run("trailers", func(t *testing.T) {
		req := request("POST", "/echo", io.MultiReader(strings.NewReader("some "), strings.NewReader("words")))
		req.Trailer = http.Header{"X-Sum": {"42"}}
		req.Header.Add("Cookie", "a=1; b=2")
		res, body := get(t, req)
		if body != "some words" || res.Trailer.Get("X-Sum") != "42" || res.Trailer.Get("X-Count") != "10" || res.Header.Get("X-Cookie") != "a=1; b=2" {
			t.Errorf("%q, %v, %v", body, res.Header, res.Trailer)
		}
	})
	t.Run("large request", func(t *testing.T) {
		if _, body := get(t, request("POST", "/upload", bytes.NewReader(make([]byte, 9_000_001)))); body != "9000001" {
			t.Error(body)
		}
	})
	t.Run("large response", func(t *testing.T) {
		if _, body := get(t, request("GET", "/bytes?9000001", nil)); len(body) != 9_000_001 {
			t.Error(len(body))
		}
	})
	t.Run("echo", func(t *testing.T) {
		sent := bytes.Repeat([]byte("0123456789abcdef"), 256<<10) // 4 MiB
		if _, body := get(t, request("POST", "/echo", bytes.NewReader(sent))); body != string(sent) {
			t.Errorf("%d bytes", len(body))
		}
	})
	t.Run("head", func(t *testing.T) {
		if res, body := get(t, request("HEAD", "/bytes?77", nil)); res.ContentLength != 77 || body != "" {
			t.Errorf("%d, %q", res.ContentLength, body)
		}
	})
	t.Run("long path", func(t *testing.T) {
		if res, _ := get(t, request("GET", "/"+strings.Repeat("a", 9000), nil)); res.StatusCode != 414 {
			t.Error(res.Status)
		}
	})
	t.Run("many at once", func(t *testing.T) {
		var wg sync.WaitGroup
		for i := range 400 { // four times what a connection takes
			wg.Go(func() {
				n := 1000 * i
				res, err := client.Do(request("GET", fmt.Sprintf("/bytes?%d", n), nil))
				if err != nil {
					t.Error(err)
					return
				}
				defer res.Body.Close()
				if m, err := io.Copy(io.Discard, res.Body); int(m) != n || err != nil {
					t.Error(n, m, err)
				}
			})
		}
		wg.Wait()
	})
}

// target is net/http's server as a target that speaks HTTP/2 with prior knowledge.
func target(t testing.TB) string {
	mux := http.NewServeMux()
	mux.HandleFunc("/hello", func(w http.ResponseWriter, r *http.Request) {
		fmt.Fprintf(w, "%s %s %s", r.Proto, r.Host, r.Header.Get("X-Forwarded-For"))
	})
	mux.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Trailer", "X-Count")
		n, _ := io.Copy(w, r.Body)
		w.Header().Set("X-Count", fmt.Sprint(n))
		w.Header().Set(http.TrailerPrefix+"X-Sum", r.Trailer.Get("X-Sum"))
	})
	mux.HandleFunc("/early", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Link", "</a.css>")
		w.WriteHeader(103)
		w.WriteHeader(204)
	})
	mux.HandleFunc("/length", func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "12")
		if r.Method != "HEAD" {
			io.WriteString(w, "twelve bytes")
		}
	})
	mux.HandleFunc("/abort", func(w http.ResponseWriter, r *http.Request) {
		w.(http.Flusher).Flush()
		panic(http.ErrAbortHandler)
	})
	s := httptest.NewUnstartedServer(mux)
	var p http.Protocols
	p.SetUnencryptedHTTP2(true)
	s.Config.Protocols = &p
	s.Start()
	t.Cleanup(s.Close)
	return s.Listener.Addr().String()
}

// testClient is a client's connection on a loop; do and what it returns may be used from anywhere.
type testClient struct {
	carrier
	core  *evloop.Core
	room  []func()
	ready chan struct{}
}

func (x *testClient) OnGoAway(Code) {}

func (x *testClient) OnRoom() {
	for len(x.room) > 0 && x.c.Room() > 0 {
		f := x.room[0]
		x.room = x.room[1:]
		f()
	}
}

// dialClient connects a client to addr.
func dialClient(t testing.TB, addr string) *testClient {
	t.Helper()
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { core.Close() })
	x := &testClient{core: core, ready: make(chan struct{})}
	core.Loop(0).Post(func() {
		core.Loop(0).Dial(context.Background(), "tcp", addr, func(conn *evloop.Conn, err error) {
			if err != nil {
				t.Error(err)
				return
			}
			x.conn = conn
			x.c = new(Endpoint).Client(conn, x, conn.Loop().Now())
			conn.SetHandler(x)
			close(x.ready)
		})
	})
	<-x.ready
	return x
}

// call is one request of a testClient, and what came of it.
type call struct {
	s        *Stream
	send     []byte // body
	trailers []http1.Field

	interim []int
	head    string
	body    []byte
	after   string // trailers received
	err     error
	done    chan struct{}
}

func (a *call) OnResponse(res *http1.Response, end bool) {
	if res.Status < 200 && res.Upgrade == nil {
		a.interim = append(a.interim, res.Status)
		return
	}
	a.head = fmt.Sprintf("%d length %d", res.Status, res.ContentLength)
}

func (a *call) OnData(b []byte) int { a.body = append(a.body, b...); return len(b) }

func (a *call) OnEOF() {
	for _, f := range a.s.Trailers() {
		a.after += fmt.Sprintf("%s: %s\n", f.Name, f.Value)
	}
}

func (a *call) OnDrain() {
	for len(a.send) > 0 && a.s.Pending() <= a.s.HighMark() {
		n := min(len(a.send), 10_000)
		a.s.Write(a.send[:n])
		a.send = a.send[n:]
	}
	if len(a.send) == 0 {
		a.s.WriteTrailers(a.trailers)
	}
}

func (a *call) OnClose(err error) { a.err = err; close(a.done) }

func (x *testClient) do(t testing.TB, head string, a *call) *call {
	var req http1.Request
	if n, err := http1.ParseRequest([]byte(head), &req); n != len(head) || err != nil {
		t.Fatalf("%q: %v", head, err)
	}
	a.done = make(chan struct{})
	fwd := http1.Forward{Remote: netip.MustParseAddr("192.0.2.7"), Proto: "http"}
	var begin func()
	begin = func() {
		s, err := x.c.Request(&req, fwd, req.Framing == http1.NoBody, a)
		if errors.Is(err, ErrNoRoom) {
			x.room = append(x.room, begin)
			return
		}
		if a.s = s; req.Framing != http1.NoBody {
			a.OnDrain()
		}
	}
	x.core.Loop(0).Post(begin)
	return a
}

func TestClientWithNetHTTP(t *testing.T) {
	x := dialClient(t, target(t))
	const chunked = "Transfer-Encoding: chunked\r\n\r\n"

	a := x.do(t, "GET /hello HTTP/1.1\r\nHost: a.test\r\nConnection: keep-alive\r\nX-Forwarded-For: 6.6.6.6\r\n\r\n", new(call))
	if <-a.done; string(a.body) != "HTTP/2.0 a.test 192.0.2.7" || a.head != "200 length 25" || a.err != nil {
		t.Errorf("%s %q %v", a.head, a.body, a.err)
	}
	a = x.do(t, "GET /early HTTP/1.1\r\nHost: a.test\r\n\r\n", new(call))
	if <-a.done; !slices.Equal(a.interim, []int{103}) || a.head != "204 length -1" || a.err != nil {
		t.Errorf("%d %s %v", a.interim, a.head, a.err)
	}
	a = x.do(t, "HEAD /length HTTP/1.1\r\nHost: a.test\r\n\r\n", new(call))
	if <-a.done; a.head != "200 length 12" || a.err != nil {
		t.Errorf("%s %v", a.head, a.err)
	}
	a = x.do(t, "GET /abort HTTP/1.1\r\nHost: a.test\r\n\r\n", new(call))
	<-a.done
	if e, ok := errors.AsType[*StreamError](a.err); !ok || !e.Remote || e.Code != CodeInternal {
		t.Errorf("%s %v", a.head, a.err)
	}
	sent := bytes.Repeat([]byte("0123456789abcdef"), 256<<10) // 4 MiB
	a = x.do(t, "POST /echo HTTP/1.1\r\nHost: a.test\r\nTrailer: X-Sum\r\n"+chunked, &call{send: sent, trailers: []http1.Field{field("X-Sum", "7")}})
	if <-a.done; !bytes.Equal(a.body, sent) || a.err != nil || a.after != "x-count: 4194304\nx-sum: 7\n" {
		t.Errorf("%s, %d bytes, %q, %v", a.head, len(a.body), a.after, a.err)
	}
	a = x.do(t, "POST /echo HTTP/1.1\r\nHost: a.test\r\nContent-Length: 4\r\n\r\n", &call{send: []byte("four")})
	if <-a.done; string(a.body) != "four" || a.err != nil {
		t.Errorf("%s %q %v", a.head, a.body, a.err)
	}

	var all []*call
	for i := range 600 { // net/http's server takes 250 at once
		send := bytes.Repeat([]byte{byte(i)}, i*100+1)
		all = append(all, x.do(t, "POST /echo HTTP/1.1\r\nHost: a.test\r\n"+chunked, &call{send: send}))
	}
	for i, a := range all {
		if <-a.done; a.err != nil || len(a.body) != i*100+1 || a.body[0] != byte(i) {
			t.Errorf("%d: %s, %d bytes, %v", i, a.head, len(a.body), a.err)
		}
	}
}

// Both roles with each other: what only they have.
func TestWebSocket(t *testing.T) {
	x := dialClient(t, serve(t, new(Endpoint)))
	// Extended CONNECT needs the settings first.
	b := x.do(t, "GET / HTTP/1.1\r\nHost: a.test\r\n\r\n", new(call))
	<-b.done
	may := make(chan bool)
	x.core.Loop(0).Post(func() { may <- x.c.CanConnect() })
	if !<-may {
		t.Fatal("the server does not offer extended CONNECT")
	}
	a := x.do(t, "GET /ws HTTP/1.1\r\nHost: a.test\r\nConnection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Key: k\r\n\r\n", new(call))
	x.core.Loop(0).Post(func() {
		a.s.Write([]byte("ping"))
		a.s.CloseWrite()
	})
	if <-a.done; a.head != "101 length -1" || string(a.body) != "ping" || a.err != nil {
		t.Errorf("%s %q %v", a.head, a.body, a.err)
	}
	a = x.do(t, "GET /reset HTTP/1.1\r\nHost: a.test\r\n\r\n", new(call))
	if <-a.done; a.err != ErrUnseen {
		t.Errorf("%v", a.err)
	}
}
