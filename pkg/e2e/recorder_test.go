//go:build linux

package e2e

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"testing"
	"time"
)

// recorder is a target that writes down what reaches it, byte for byte and as another
// server reads it. It answers each request with "saw METHOD /path".
type recorder struct {
	addr string

	mu    sync.Mutex
	busy  int // requests that have begun to come
	seen  []seen
	wrong []string // bytes that are no request
}

// seen is a request at a recorder.
type seen struct {
	*http.Request
	raw  string // everything that came on its connection so far
	body string
	err  error // the body ended early
}

func startRecorder(t testing.TB) *recorder {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	r := &recorder{addr: ln.Addr().String()}
	var wg sync.WaitGroup
	var conns sync.Map
	wg.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			conns.Store(c, true)
			wg.Go(func() { r.serve(c) })
		}
	})
	t.Cleanup(func() {
		ln.Close()
		conns.Range(func(c, _ any) bool { c.(net.Conn).Close(); return true })
		wg.Wait()
	})
	return r
}

func (r *recorder) serve(c net.Conn) {
	defer c.Close()
	var raw tape
	br := bufio.NewReader(io.TeeReader(c, &raw))
	for {
		if _, err := br.Peek(1); err != nil {
			return
		}
		r.mu.Lock()
		r.busy++
		r.mu.Unlock()
		req, err := http.ReadRequest(br)
		if err != nil {
			r.mu.Lock()
			r.busy--
			if _, ok := err.(net.Error); !ok && err != io.ErrUnexpectedEOF {
				r.wrong = append(r.wrong, fmt.Sprintf("%v in %q", err, raw))
			}
			r.mu.Unlock()
			return
		}
		body, err := io.ReadAll(req.Body)
		r.mu.Lock()
		r.busy--
		r.seen = append(r.seen, seen{req, string(raw), string(body), err})
		r.mu.Unlock()
		if err != nil {
			return
		}
		answer := fmt.Sprintf("saw %s %s", req.Method, req.URL.Path)
		fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n\r\n", len(answer))
		if req.Method != "HEAD" {
			io.WriteString(c, answer)
		}
	}
}

// take returns the requests since the last time, and the bytes that were none. It waits for the end of those that have begun.
func (r *recorder) take() ([]seen, []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for deadline := time.Now().Add(waitLimit); r.busy > 0; {
		if time.Now().After(deadline) {
			r.wrong = append(r.wrong, "a request has not ended")
			break
		}
		r.mu.Unlock()
		time.Sleep(time.Millisecond)
		r.mu.Lock()
	}
	s, w := r.seen, r.wrong
	r.seen, r.wrong = nil, nil
	return s, w
}

// tape keeps what is written to it.
type tape []byte

func (t *tape) Write(b []byte) (int, error) {
	*t = append(*t, b...)
	return len(b), nil
}
