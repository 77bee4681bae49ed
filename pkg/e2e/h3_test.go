//go:build linux

package e2e

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/qpack"
	"github.com/quic-go/quic-go"
	"github.com/quic-go/quic-go/http3"
	"github.com/quic-go/quic-go/quicvarint"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// Types of frames (rfc9114#section-7.2) that these tests send or read.
const (
	dataFrame3     = 0x0
	headersFrame3  = 0x1
	settingsFrame3 = 0x4
)

// rawH3 is a visitor over HTTP/3 that sends whatever the test wants.
type rawH3 struct {
	conn *quic.Conn
	ctx  context.Context
}

// dialH3 connects to a name at the relay's address and says hello.
func dialH3(t testing.TB, addr, host string) *rawH3 {
	t.Helper()
	ctx := within(t, waitLimit)
	conn, err := quic.DialAddr(ctx, addr, &tls.Config{RootCAs: caPool(), ServerName: host, NextProtos: []string{"h3"}}, nil)
	if err != nil {
		t.Fatalf("%s: %v", host, err)
	}
	t.Cleanup(func() { conn.CloseWithError(0x100, "") }) // H3_NO_ERROR
	control, err := conn.OpenUniStream()
	if err != nil {
		t.Fatal(err)
	}
	control.Write(frame3([]byte{0x0}, settingsFrame3, nil)) // the stream's type first
	return &rawH3{conn, ctx}
}

// frame3 appends a frame.
func frame3(b []byte, kind uint64, payload []byte) []byte {
	b = quicvarint.Append(b, kind)
	b = quicvarint.Append(b, uint64(len(payload)))
	return append(b, payload...)
}

// headers3 is a HEADERS frame of these fields, whatever is in them.
func headers3(fields ...[2]string) []byte {
	var block bytes.Buffer
	enc := qpack.NewEncoder(&block)
	for _, f := range fields {
		enc.WriteField(qpack.HeaderField{Name: f[0], Value: f[1]})
	}
	return frame3(nil, headersFrame3, block.Bytes())
}

// open begins a request.
func (r *rawH3) open(t testing.TB, frames ...[]byte) *quic.Stream {
	t.Helper()
	s, err := r.conn.OpenStreamSync(r.ctx)
	if err != nil {
		t.Fatal(err)
	}
	s.SetDeadline(time.Now().Add(waitLimit))
	for _, f := range frames {
		s.Write(f) // what fails is seen in the answer
	}
	return s
}

// answer3 reads the answer on a stream to its end. The error is that of a connection that
// is lost.
func answer3(s *quic.Stream) (*answer, error) {
	a := &answer{}
	br := bufio.NewReader(s)
	for {
		kind, payload, err := readFrame3(br)
		var reset *quic.StreamError
		switch {
		case err == io.EOF:
			a.ended = true
			return a, nil
		case errors.As(err, &reset):
			code := http2.ErrCode(reset.ErrorCode)
			a.reset = &code
			return a, nil
		case err != nil:
			return nil, err
		}
		switch kind {
		case dataFrame3:
			a.body = append(a.body, payload...)
		case headersFrame3:
			var fields []hpack.HeaderField
			next := qpack.NewDecoder().Decode(payload)
			for {
				f, err := next()
				if err == io.EOF {
					break
				}
				if err != nil {
					return nil, err
				}
				if f.Name == ":status" {
					a.status = f.Value
				} else {
					fields = append(fields, hpack.HeaderField{Name: f.Name, Value: f.Value})
				}
			}
			switch {
			case a.fields != nil:
				a.trailer = fields
			case strings.HasPrefix(a.status, "1"):
			default:
				a.fields = append(fields, hpack.HeaderField{}) // never nil
			}
		}
	}
}

func readFrame3(br *bufio.Reader) (kind uint64, payload []byte, err error) {
	if kind, err = quicvarint.Read(br); err != nil {
		return 0, nil, err
	}
	n, err := quicvarint.Read(br)
	if err != nil || n > 16<<20 {
		return 0, nil, fmt.Errorf("frame of %d bytes: %w", n, err)
	}
	payload = make([]byte, n)
	_, err = io.ReadFull(br, payload)
	return kind, payload, err
}

// TestDowngradeH3 sends each of the requests of TestDowngradeH2 over HTTP/3.
func TestDowngradeH3(t *testing.T) {
	t.Parallel()
	s, rec := desync(t)
	next := s.visitor()
	for _, d := range downgrades {
		t.Run(d.name, func(t *testing.T) {
			c := dialH3(t, s.https, "app.example.com")
			st := c.open(t, headers3(slices.Concat(d.fields, d.more)...))
			if d.body != "" {
				st.Write(frame3(nil, dataFrame3, []byte(d.body)))
			}
			if d.trailer != nil {
				st.Write(headers3(d.trailer...))
			}
			st.Close()
			a, err := answer3(st)
			d.judge(t, a, err, alone(t, s, rec, next, d.payload()))
		})
	}
}

// visitorH3 is quic-go's client, which finds every host at the relay.
func (s *system) visitorH3() *http.Client {
	tr := &http3.Transport{
		TLSClientConfig: &tls.Config{RootCAs: caPool()},
		Dial: func(ctx context.Context, _ string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
			return quic.DialAddr(ctx, s.https, tlsConfig, config)
		},
	}
	s.t.Cleanup(func() { tr.Close() })
	return &http.Client{Transport: tr}
}

// TestH3 uses quic-go's client for what browsers do.
func TestH3(t *testing.T) {
	t.Parallel()
	s, large := webH2(t)
	_, port, _ := strings.Cut(s.https, ":")
	if got := s.curl("--http2", "-o", "/dev/null", "-w", "%header{alt-svc}", s.url("app", "/")); !strings.HasPrefix(got, `h3=":`+port+`"`) {
		t.Errorf("Alt-Svc over h2: %q", got)
	}
	if got := s.curl("-o", "/dev/null", "-w", "%header{alt-svc}", s.url("app", "/")); !strings.HasPrefix(got, `h3=":`+port+`"`) {
		t.Errorf("Alt-Svc over h1: %q", got)
	}
	c := s.visitorH3()
	get := func(url string, body io.Reader) (*http.Response, []byte) {
		t.Helper()
		req, err := http.NewRequestWithContext(t.Context(), "GET", url, body)
		if err != nil {
			t.Fatal(err)
		}
		if body != nil {
			req.Method = "POST"
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		defer resp.Body.Close()
		b, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Errorf("%s: %v", url, err)
		}
		return resp, b
	}
	if resp, b := get("https://app.example.com/x", nil); resp.StatusCode != 200 || resp.Proto != "HTTP/3.0" || string(b) != "GET /x from behind the firewall\n" {
		t.Errorf("%s %s %q", resp.Proto, resp.Status, b)
	}
	if _, b := get("https://app.example.com/headers", nil); !bytes.Contains(b, []byte("X-Forwarded-For: 127.0.0.1\n")) || !bytes.Contains(b, []byte("X-Forwarded-Proto: https\n")) {
		t.Errorf("forwarding fields:\n%s", b)
	}
	if resp, _ := get("https://nobody.example.com/", nil); resp.StatusCode != 404 {
		t.Errorf("unknown host: %s", resp.Status)
	}
	if resp, b := get("https://app.example.com/trailers", strings.NewReader("hello")); string(b) != `5 bytes and ""` || resp.Trailer.Get("X-Sum") != "42" {
		t.Errorf("%q, trailers %v", b, resp.Trailer)
	}
	sent := strings.Repeat("0123456789abcdef", 64<<10)
	if _, b := get("https://app.example.com/up", strings.NewReader(sent)); !strings.HasPrefix(string(b), fmt.Sprintf("%d ", len(sent))) {
		t.Errorf("upload: %q", b)
	}
	if resp, b := get("https://files.example.com/large", nil); resp.StatusCode != 200 || fmt.Sprintf("%x", sha256.Sum256(b)) != large {
		t.Errorf("download: %s, %d bytes", resp.Status, len(b))
	}
	var wg sync.WaitGroup
	for i := range 500 {
		wg.Go(func() {
			resp, err := c.Get(fmt.Sprintf("https://app.example.com/%d", i))
			if err != nil {
				t.Error(err)
				return
			}
			defer resp.Body.Close()
			if b, err := io.ReadAll(resp.Body); err != nil || string(b) != fmt.Sprintf("GET /%d from behind the firewall\n", i) {
				t.Errorf("%q %v", b, err)
			}
		})
	}
	wg.Wait()
}

// TestH3WebSocket speaks with a WebSocket server over RFC 9220.
func TestH3WebSocket(t *testing.T) {
	t.Parallel()
	s := startSystem(t, service{"ws", "wss://ws.example.com", "http://127.0.0.1:" + startPython(t, nil)})
	c := dialH3(t, s.https, "ws.example.com")
	st := c.open(t, headers3([][2]string{{":method", "CONNECT"}, {":protocol", "websocket"}, {":scheme", "https"}, {":authority", "ws.example.com"}, {":path", "/"},
		{"sec-websocket-version", "13"}, {"sec-websocket-protocol", "chat"}, {"origin", "https://ws.example.com"}}...))
	st.Write(frame3(nil, dataFrame3, wsPing))
	// Half of a frame's bytes now, half after the link was cut.
	br := bufio.NewReader(st)
	var got []byte
	read := func(n int) {
		t.Helper()
		for len(got) < n {
			kind, payload, err := readFrame3(br)
			if err != nil {
				t.Fatal(err)
			}
			if kind == dataFrame3 {
				got = append(got, payload...)
			}
		}
	}
	read(len(wsReply))
	st.Write(frame3(nil, dataFrame3, wsPing[:4]))
	s.link.cut()
	st.Write(frame3(nil, dataFrame3, wsPing[4:]))
	read(2 * len(wsReply))
	st.Write(frame3(nil, dataFrame3, []byte("\x88\x82\x00\x00\x00\x00\x03\xe8")))
	read(2*len(wsReply) + 4)
	if want := string(wsReply) + string(wsReply) + "\x88\x02\x03\xe8"; string(got) != want {
		t.Errorf("%q, want %q", got, want)
	}
	if _, _, err := readFrame3(br); err != io.EOF {
		t.Errorf("after the close: %v", err)
	}
}
