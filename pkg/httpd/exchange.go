package httpd

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"runtime/debug"
	"sync"
	"sync/atomic"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

// exchange is one request and its answer: what the loop and the handler's goroutine share. The loop
// appends the body to in and writes what the goroutine leaves in out; each waits for the other on cond
// and by Post.
type exchange struct {
	// Immutable.
	c      *conn
	req    *http.Request
	cancel context.CancelFunc

	// Owned by the loop.
	dec       http1.Body
	discarded int
	lost      bool // the end of the body, and so the next request, will never be found
	began     bool // part of the final answer is written: too late for 100 (Continue)
	blocked   bool // the goroutine waits in send for OnDrain

	// Owned by the goroutine.
	w response

	gone atomic.Bool // the connection has ended; what Server.dispatch may ask without mu

	mu         sync.Mutex
	cond       sync.Cond // of mu: something below has changed
	in         []byte    // body that came and was not read; in[inOff:] is left
	inOff      int
	inErr      error     // what Read says behind in
	expect     bool      // the client waits for 100 (Continue)
	stuffed    bool      // the loop paused the connection because in is long
	waiting    bool      // Read waits
	bodyClosed bool      // Read will not be called again
	out        [3][]byte // what send waits for
	sending    bool
	err        error // the connection has ended
}

// newExchange makes the http.Request of r, which is only lent.
func newExchange(c *conn, r *http1.Request) (*exchange, error) {
	target := string(r.Target)
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil, err
	}
	x := &exchange{c: c, expect: r.Expect100}
	x.cond.L = &x.mu
	x.dec.Reset(r.Framing, r.ContentLength)
	header := make(http.Header, len(r.Fields))
	values := make([]string, len(r.Fields))
	for i, f := range r.Fields {
		key := textproto.CanonicalMIMEHeaderKey(string(f.Name))
		if key == "Host" || key == "Transfer-Encoding" {
			continue // as in net/http, these have fields of http.Request
		}
		values[i] = string(f.Value)
		if old, ok := header[key]; ok {
			header[key] = append(old, values[i])
		} else {
			header[key] = values[i : i+1 : i+1]
		}
	}
	req := http.Request{
		Method:        string(r.Method),
		URL:           u,
		Proto:         "HTTP/1.1",
		ProtoMajor:    1,
		ProtoMinor:    r.Minor,
		Header:        header,
		Body:          http.NoBody,
		ContentLength: max(r.ContentLength, 0),
		Host:          string(r.Host),
		RequestURI:    target,
		TLS:           c.peer.TLS,
		Close:         r.Close,
	}
	if r.Minor == 0 {
		req.Proto = "HTTP/1.0"
	}
	if r.Framing == http1.Chunked {
		req.ContentLength = -1
		req.TransferEncoding = []string{"chunked"}
	}
	if !x.dec.Done() {
		req.Body = (*requestBody)(x)
	}
	if c.peer.Addr.IsValid() {
		req.RemoteAddr = c.peer.Addr.String()
	}
	ctx, cancel := context.WithCancel(context.Background())
	x.cancel = cancel
	x.req = req.WithContext(ctx)
	return x, nil
}

// run answers the request, in a goroutine of the server.
func (x *exchange) run() {
	defer x.cancel()
	x.w.init(x)
	if x.serve() {
		x.w.finish()
	}
}

// serve calls the handler and reports whether it returned in good order.
func (x *exchange) serve() (ok bool) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		if err, is := v.(error); !is || !errors.Is(err, http.ErrAbortHandler) {
			if f := x.c.srv.OnPanic; f != nil {
				f(x.req, v, debug.Stack())
			}
		}
		x.w.abandon()
	}()
	h := x.c.srv.Handler
	if h == nil {
		h = http.NotFoundHandler()
	}
	if x.ended() == nil {
		h.ServeHTTP(&x.w, x.req)
	}
	return true
}

// ended returns why the connection has ended, nil if it has not.
func (x *exchange) ended() error {
	x.mu.Lock()
	defer x.mu.Unlock()
	return x.err
}

// fail is called on the loop when the connection ends.
func (x *exchange) fail(err error) {
	x.gone.Store(true)
	x.mu.Lock()
	if x.err == nil {
		x.err = err
	}
	if x.inErr == nil {
		x.inErr = io.ErrUnexpectedEOF
	}
	x.sending = false
	x.mu.Unlock()
	x.cond.Broadcast()
	x.cancel()
}

// starve fails the body if the handler waits for it. On the loop.
func (x *exchange) starve() {
	x.mu.Lock()
	if x.waiting && x.inErr == nil {
		x.inErr, x.lost = os.ErrDeadlineExceeded, true
	}
	x.mu.Unlock()
	x.cond.Broadcast()
}

// send has the loop write three slices and waits until the client has taken enough of what was written
// before. The slices are free when it returns.
func (x *exchange) send(a, b, c []byte) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err == nil {
		x.out = [3][]byte{a, b, c}
		x.sending = true
		if !x.c.loop.Post(x.write) {
			x.err = evloop.ErrClosed
		}
	}
	for x.sending && x.err == nil {
		x.cond.Wait()
	}
	x.out = [3][]byte{}
	return x.err
}

// write is the loop's part of send.
func (x *exchange) write() {
	c := x.c
	if c.x != x {
		return // failed before; the slices are not ours any more
	}
	x.began = x.w.sentHead // the goroutine is waiting: what is its is ours
	for _, b := range x.out {
		c.end.Write(b)
	}
	c.progress()
	if c.x == x && c.end.Pending() > c.end.HighMark() {
		x.blocked = true
		return
	}
	x.sent()
}

// sent wakes the goroutine that waits in send. On the loop.
func (x *exchange) sent() {
	x.mu.Lock()
	x.sending = false
	x.mu.Unlock()
	x.cond.Broadcast()
}

// requestBody is the exchange as http.Request.Body.
type requestBody exchange

func (b *requestBody) Read(p []byte) (n int, err error) {
	x := (*exchange)(b)
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.bodyClosed {
		return 0, http.ErrBodyReadAfterClose
	}
	if len(p) == 0 {
		return 0, nil
	}
	if x.expect {
		x.expect = false
		x.c.loop.Post(x.sendContinue)
	}
	x.waiting = true
	for x.inOff == len(x.in) && x.inErr == nil {
		x.cond.Wait()
	}
	x.waiting = false
	n = copy(p, x.in[x.inOff:])
	x.inOff += n
	if x.inOff == len(x.in) {
		x.in, x.inOff = x.in[:0], 0
		if n == 0 {
			return 0, x.inErr
		}
	}
	if x.stuffed && len(x.in)-x.inOff <= maxUnread/2 {
		x.stuffed = false
		x.c.loop.Post(x.readOn)
	}
	return n, nil
}

// Close says that the handler has seen enough.
func (b *requestBody) Close() error {
	x := (*exchange)(b)
	x.mu.Lock()
	defer x.mu.Unlock()
	x.bodyClosed = true
	x.in, x.inOff = nil, 0
	if x.stuffed {
		x.stuffed = false
		x.c.loop.Post(x.readOn)
	}
	return nil
}

func (x *exchange) sendContinue() {
	if x.c.x == x && !x.began {
		x.c.end.Write([]byte(http1.Continue))
	}
}

// readOn resumes the connection that feed paused.
func (x *exchange) readOn() {
	if x.c.x == x && !x.lost {
		x.c.unpause()
	}
}
