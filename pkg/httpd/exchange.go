package httpd

import (
	"context"
	"errors"
	"io"
	"log/slog"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

// exchange is one request and its answer: what the loop and the handler's goroutine share. The loop
// appends the body to in and writes what the goroutine leaves in out; each waits for the other on cond
// and by Post.
type exchange struct {
	// Immutable.
	on     carrier
	loop   *evloop.Loop
	srv    *Server
	two    bool // it is a stream of HTTP/2
	req    *http.Request
	cancel context.CancelFunc

	activity activity // guarded by srv.mu

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
	inErr      error       // what Read says behind in
	expect     bool        // the client waits for 100 (Continue)
	stuffed    bool        // the loop paused the connection because in is long
	waiting    bool        // Read waits
	bodyClosed bool        // Read will not be called again
	trailer    http.Header // http.Request.Trailer, which Read fills at the end
	behind     [][2]string // what came behind the body
	out        part        // what send waits for
	sending    bool
	err        error // the connection has ended
	readBy     *time.Timer
	writeBy    *time.Timer
}

// part is a piece of an answer on its way to the loop.
type part struct {
	head   *http1.Response // of HTTP/2: an interim head, or the final one; nil: none
	pieces [3][]byte

	trailers []http1.Field // with the last part, of HTTP/2
}

// carrier is what an exchange is on: a connection of HTTP/1.1, or a stream of HTTP/2. Its methods are called on the loop, but for
// register.
type carrier interface {
	register() *session
	carries(x *exchange) bool // it has not ended for x
	put(x *exchange, head *http1.Response, pieces *[3][]byte)
	conclude(x *exchange, p *part, keep bool) // put what is left, and end the answer
	refuse(x *exchange)                       // answer 500: nothing has been answered yet
	abort(x *exchange, err error)
	crowded() bool // more is pending than should be; OnDrain comes
	progress()
	resume(x *exchange)
	goOn(x *exchange)     // send 100 (Continue)
	give(x *exchange) End // stop carrying
}

// newExchange makes the http.Request of r, which is only lent.
func newExchange(on carrier, loop *evloop.Loop, c *session, r *http1.Request, two bool) (*exchange, error) {
	target := string(r.Target)
	if two {
		target = string(r.Path)
		if r.Query != nil {
			target += "?" + string(r.Query)
		}
	}
	u, err := url.ParseRequestURI(target)
	if err != nil {
		return nil, err
	}
	x := &exchange{on: on, loop: loop, srv: c.srv, two: two, expect: r.Expect100}
	x.cond.L = &x.mu
	if !two {
		x.dec.Reset(r.Framing, r.ContentLength)
	}
	header := make(http.Header, len(r.Fields))
	values := make([]string, len(r.Fields))
	for i, f := range r.Fields {
		key := textproto.CanonicalMIMEHeaderKey(string(f.Name))
		if key == "Host" || key == "Transfer-Encoding" {
			continue // as in net/http, these have fields of http.Request
		}
		values[i] = string(f.Value)
		if old, ok := header[key]; ok {
			if two && key == "Cookie" { // browsers send one field for each: rfc9113#section-8.2.3
				old[0] += "; " + values[i]
			} else {
				header[key] = append(old, values[i])
			}
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
	switch {
	case two:
		req.Proto, req.ProtoMajor, req.ProtoMinor = "HTTP/2.0", 2, 0
	case r.Minor == 0:
		req.Proto = "HTTP/1.0"
	}
	if r.Framing == http1.Chunked {
		req.ContentLength = -1
		if !two {
			req.TransferEncoding = []string{"chunked"}
		}
		x.trailer = announced(header)
		req.Trailer = x.trailer
	}
	if r.Framing != http1.NoBody && !(r.Framing == http1.Length && r.ContentLength == 0) {
		req.Body = (*requestBody)(x)
	}
	if c.peer.Addr.IsValid() {
		req.RemoteAddr = c.peer.Addr.String()
	}
	ctx, cancel := context.WithCancel(c)
	x.cancel = cancel
	x.req = req.WithContext(ctx)
	x.activity.current = Current{Method: req.Method, Target: target[:min(len(target), maxTarget)], Since: loop.Now()}
	return x, nil
}

// announced returns the names of trailers that a request says will come, as net/http does: without values.
func announced(header http.Header) http.Header {
	t := make(http.Header)
	for _, line := range header["Trailer"] {
		for name := range strings.SplitSeq(line, ",") {
			if name = textproto.CanonicalMIMEHeaderKey(textproto.TrimString(name)); name != "" {
				t[name] = nil
			}
		}
	}
	delete(header, "Trailer")
	return t
}

// whole knows that all of the body has come. With mu.
func (x *exchange) whole(trailers []http1.Field) {
	for _, f := range trailers {
		key := textproto.CanonicalMIMEHeaderKey(string(f.Name))
		x.behind = append(x.behind, [2]string{key, string(f.Value)})
	}
	x.inErr = io.EOF
}

// run answers the request, in a goroutine of the server.
func (x *exchange) run() {
	defer x.cancel()
	x.w.init(x)
	ok := x.serve()
	x.mu.Lock()
	for _, t := range [...]*time.Timer{x.readBy, x.writeBy} {
		if t != nil {
			t.Stop()
		}
	}
	x.mu.Unlock()
	if l := x.srv.logger.Load(); l != nil {
		x.log(l, ok)
	}
	if ok {
		x.w.finish()
	}
}

// log writes the line of x.
func (x *exchange) log(l *slog.Logger, ok bool) {
	status := x.w.status
	switch {
	case !ok && !x.w.sentHead:
		status = http.StatusInternalServerError
	case !x.w.wroteHeader && !x.w.over:
		status = http.StatusOK
	}
	line(l, x.req, status, x.w.written, x.activity.current.Since)
}

// line tells l of a request that was answered.
func line(l *slog.Logger, r *http.Request, status int, written int64, since time.Time) {
	attrs := []slog.Attr{
		slog.String("remote", r.RemoteAddr), slog.String("proto", r.Proto), slog.String("method", r.Method),
		slog.String("host", r.Host), slog.String("target", r.RequestURI), slog.Int("status", status),
		slog.Int64("sent", written), slog.Duration("took", time.Since(since)),
	}
	if name := Caller(r.Context()); name != "" {
		attrs = append(attrs, slog.String("name", name))
	}
	l.LogAttrs(context.WithoutCancel(r.Context()), slog.LevelInfo, "request", attrs...)
}

// panicked tells of a panic of a handler.
func (s *Server) panicked(r *http.Request, v any) {
	if f := s.OnPanic; f != nil {
		f(r, v, debug.Stack())
	} else if l := s.logger.Load(); l != nil {
		l.Error("handler panicked", "method", r.Method, "target", r.RequestURI, "panic", v, "stack", string(debug.Stack()))
	}
}

// serve calls the handler and reports whether it returned in good order.
func (x *exchange) serve() (ok bool) {
	defer func() {
		v := recover()
		if v == nil {
			return
		}
		err, is := v.(error)
		aborted := is && errors.Is(err, http.ErrAbortHandler)
		if !aborted {
			x.srv.panicked(x.req, v)
		}
		x.w.abandon(aborted)
	}()
	if x.ended() == nil {
		x.srv.currentHandler().ServeHTTP(&x.w, x.req)
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

// send has the loop write p and waits until the client has taken enough of what was written
// before. What p refers to is free when it returns.
func (x *exchange) send(p part) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err == nil {
		x.out = p
		x.sending = true
		if !x.loop.Post(x.write) {
			x.err = evloop.ErrClosed
		}
	}
	for x.sending && x.err == nil {
		x.cond.Wait()
	}
	x.out = part{}
	return x.err
}

// write is the loop's part of send.
func (x *exchange) write() {
	if !x.on.carries(x) {
		return // failed before; the slices are not ours any more
	}
	x.began = x.w.sentHead // the goroutine is waiting: what is its is ours
	x.on.put(x, x.out.head, &x.out.pieces)
	if !x.on.carries(x) {
		return
	}
	x.on.progress()
	if x.on.carries(x) && x.on.crowded() {
		x.blocked = true
		return
	}
	x.sentOut()
}

// sentOut wakes the goroutine that waits in send. On the loop.
func (x *exchange) sentOut() {
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
		x.loop.Post(x.sendContinue)
	}
	if x.stuffed && x.inOff == len(x.in) {
		x.stuffed = false
		x.loop.Post(x.readOn)
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
			if x.inErr == io.EOF && x.behind != nil {
				for _, f := range x.behind {
					x.trailer[f[0]] = append(x.trailer[f[0]], f[1])
				}
				x.behind = nil
			}
			return 0, x.inErr
		}
	}
	if x.stuffed && len(x.in)-x.inOff <= maxUnread/2 {
		x.stuffed = false
		x.loop.Post(x.readOn)
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
		x.loop.Post(x.readOn)
	}
	return nil
}

func (x *exchange) sendContinue() {
	if x.on.carries(x) && !x.began {
		x.on.goOn(x)
	}
}

// readOn resumes the connection that feed paused.
func (x *exchange) readOn() {
	if x.on.carries(x) && !x.lost {
		x.on.resume(x)
	}
}

// SetReadDeadline is for http.ResponseController: from t on, reading the body fails with os.ErrDeadlineExceeded, and an HTTP/1.1
// connection is not used again. The zero time takes a deadline back that has not passed.
func (w *response) SetReadDeadline(t time.Time) error {
	return w.x.setDeadline(&w.x.readBy, t, func(x *exchange) {
		x.mu.Lock()
		if x.inErr == nil {
			x.inErr, x.lost = os.ErrDeadlineExceeded, true
		}
		x.mu.Unlock()
		x.cond.Broadcast()
	})
}

// SetWriteDeadline is for http.ResponseController: from t on, the answer is cut off if it is not complete, with
// os.ErrDeadlineExceeded for the handler.
func (w *response) SetWriteDeadline(t time.Time) error {
	return w.x.setDeadline(&w.x.writeBy, t, func(x *exchange) { x.on.abort(x, os.ErrDeadlineExceeded) })
}

// setDeadline has f called on the loop at t, as far as x is carried then.
func (x *exchange) setDeadline(timer **time.Timer, t time.Time, f func(*exchange)) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if *timer != nil {
		(*timer).Stop()
		*timer = nil
	}
	if t.IsZero() {
		return nil
	}
	*timer = time.AfterFunc(time.Until(t), func() {
		x.loop.Post(func() {
			if x.on.carries(x) {
				f(x)
			}
		})
	})
	return nil
}
