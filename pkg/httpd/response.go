package httpd

import (
	"bufio"
	"bytes"
	"errors"
	"io"
	"net"
	"net/http"
	"net/textproto"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
)

// smallBody is how much of a body is gathered before the head goes out: what fits gets a
// Content-Length, and goes out in one write with its head.
const smallBody = 4 << 10

// response is the http.ResponseWriter of one exchange. It is owned by the handler's goroutine.
type response struct {
	x      *exchange
	header http.Header
	*buffers

	wroteHeader bool // WriteHeader was called: the head is fixed, but for its framing
	sentHead    bool
	over        bool // upgraded or abandoned
	short       bool // fewer bytes were written than Content-Length says
	status      int
	length      int64 // the handler's Content-Length; -1: none
	written     int64
	chunked     bool
	close       bool // the connection ends with this answer
	hasDate     bool
	hasType     bool
	hasCoding   bool     // Content-Encoding: the type cannot be sniffed
	trailers    []string // announced by the field Trailer
}

// buffers is the memory of a response.
type buffers struct {
	fields []byte // status line and fields as they were when WriteHeader was called
	body   []byte // gathered, at most smallBody
	pre    []byte // what goes out before the bytes of the current Write

	// Of HTTP/2.
	lines []byte
	head  http1.Response
}

var bufferPool = sync.Pool{New: func() any { return &buffers{body: make([]byte, 0, smallBody)} }}

var (
	_ http.Flusher    = (*response)(nil)
	_ io.StringWriter = (*response)(nil)
	_ Upgrader        = (*response)(nil)
)

func (w *response) init(x *exchange) {
	w.x = x
	w.header = make(http.Header)
	w.buffers = bufferPool.Get().(*buffers)
	w.body = w.body[:0]
	w.length = -1
	w.close = x.req.Close
}

func (w *response) Header() http.Header { return w.header }

// WriteHeader fixes the head of the answer, or sends an interim answer at once if status is 1xx.
func (w *response) WriteHeader(status int) {
	if w.over || w.wroteHeader {
		return
	}
	if status < 100 || status > 999 || status == http.StatusSwitchingProtocols {
		panic("httpd: status " + strconv.Itoa(status) + " cannot be written") // 101 needs Upgrade
	}
	if status < 200 {
		if w.x.two || w.x.req.ProtoMinor > 0 {
			if status == http.StatusContinue {
				w.x.mu.Lock()
				w.x.expect = false
				w.x.mu.Unlock()
			}
			if w.x.two {
				w.x.send(part{head: w.parse(appendFields(appendStatus(w.lines[:0], status), w.header, nil), status)})
				return
			}
			w.pre = append(appendFields(appendStatus(w.pre[:0], status), w.header, nil), "\r\n"...)
			w.x.send(part{pieces: [3][]byte{w.pre}})
		}
		return
	}
	w.wroteHeader = true
	w.status = status
	w.fields = appendFields(appendStatus(w.fields[:0], status), w.header, w)
}

func appendStatus(dst []byte, status int) []byte {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(status), 10)
	dst = append(dst, ' ')
	dst = append(dst, http.StatusText(status)...)
	return append(dst, "\r\n"...)
}

// appendFields appends header in the order of names, without the fields that are ours to set. w, unless
// nil, learns what the handler has decided by them.
func appendFields(dst []byte, header http.Header, w *response) []byte {
	var space [16]string
	names := space[:0]
	for name := range header {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		values := header[name]
		if len(values) == 0 || !http1.ValidName(name) {
			continue
		}
		switch textproto.CanonicalMIMEHeaderKey(name) {
		case "Transfer-Encoding", "Keep-Alive":
			continue
		case "Trailer":
			if w == nil {
				continue
			}
			for _, value := range values {
				for t := range strings.SplitSeq(value, ",") {
					w.trailers = append(w.trailers, textproto.CanonicalMIMEHeaderKey(strings.TrimSpace(t)))
				}
			}
		case "Connection":
			if w != nil && strings.Contains(strings.ToLower(values[0]), "close") {
				w.close = true
			}
			continue
		case "Content-Length":
			if n, err := strconv.ParseInt(values[0], 10, 64); err == nil && n >= 0 && w != nil {
				w.length = n
			}
			continue
		case "Date":
			if w != nil {
				w.hasDate = true
			}
		case "Content-Type":
			if w != nil {
				w.hasType = true
			}
		case "Content-Encoding":
			if w != nil {
				w.hasCoding = true
			}
		}
		for _, value := range values {
			dst = append(dst, name...)
			dst = append(dst, ": "...)
			dst = http1.AppendValue(dst, value)
			dst = append(dst, "\r\n"...)
		}
	}
	return dst
}

// bodyAllowed reports whether an answer of that status has a body: rfc9110#section-6.4.1.
func bodyAllowed(status int) bool {
	return status >= 200 && status != http.StatusNoContent && status != http.StatusNotModified
}

func (w *response) Write(p []byte) (int, error) {
	if n, err := w.admit(len(p)); n == 0 || err != nil {
		return n, err
	}
	if w.isHead() {
		return len(p), nil
	}
	if len(w.body)+len(p) <= smallBody {
		w.body = append(w.body, p...)
		return len(p), nil
	}
	if err := w.send(p); err != nil {
		return 0, err
	}
	return len(p), nil
}

// WriteString is Write.
func (w *response) WriteString(s string) (int, error) {
	if len(w.body)+len(s) > smallBody || w.isHead() {
		return w.Write([]byte(s))
	}
	if n, err := w.admit(len(s)); n == 0 || err != nil {
		return n, err
	}
	w.body = append(w.body, s...)
	return len(s), nil
}

// admit says whether n more bytes of body are in order.
func (w *response) admit(n int) (int, error) {
	if w.over {
		return 0, http.ErrHijacked
	}
	if !w.wroteHeader {
		w.WriteHeader(http.StatusOK)
	}
	if n > 0 && !bodyAllowed(w.status) {
		return 0, http.ErrBodyNotAllowed
	}
	if w.length >= 0 && w.written+int64(n) > w.length {
		return 0, http.ErrContentLength
	}
	w.written += int64(n)
	return n, nil
}

func (w *response) isHead() bool { return w.x.req.Method == http.MethodHead }

// Flush sends what was written so far.
func (w *response) Flush() { w.FlushError() }

// FlushError is Flush that says whether the client is still there.
func (w *response) FlushError() error {
	if w.over {
		return http.ErrHijacked
	}
	if !w.wroteHeader {
		w.WriteHeader(http.StatusOK)
	}
	if w.sentHead && len(w.body) == 0 {
		return w.x.ended()
	}
	return w.send(nil)
}

// EnableFullDuplex is for http.ResponseController: reading the body after the answer has begun needs
// nothing of us.
func (w *response) EnableFullDuplex() error { return nil }

// send sends the head, if it is still here, what was gathered, and p.
func (w *response) send(p []byte) error {
	out := w.gathered(p, false)
	if w.chunked && len(w.body)+len(p) > 0 {
		if len(p) > 0 {
			out.pieces[2] = []byte("\r\n")
		} else {
			w.pre = append(w.pre, "\r\n"...)
			out.pieces[0] = w.pre
		}
	}
	w.body = w.body[:0]
	out.pieces[1] = p
	return w.x.send(out)
}

// gathered returns what goes out before p: the head, if it is still here, and what was gathered.
func (w *response) gathered(p []byte, final bool) (out part) {
	pre := w.pre[:0]
	switch {
	case w.sentHead:
	case w.x.two:
		w.lines = w.appendHead(w.lines[:0], p, final)
		out.head = w.parse(w.lines, w.status)
	default:
		pre = w.appendHead(pre, p, final)
	}
	if n := len(w.body) + len(p); w.chunked && n > 0 {
		pre = http1.AppendChunkSize(pre, n)
	}
	w.pre = append(pre, w.body...)
	out.pieces[0] = w.pre
	return out
}

// parse makes a head of HTTP/2 of the lines of one that we have made.
func (w *response) parse(lines []byte, status int) *http1.Response {
	w.lines = lines
	h := &w.head
	*h = http1.Response{Status: status, Fields: h.Fields[:0], ContentLength: -1, Framing: http1.UntilClose}
	if status >= 200 && w.length >= 0 {
		h.Framing, h.ContentLength = http1.Length, w.length
	}
	_, lines, _ = bytes.Cut(lines, crlf)
	for len(lines) > 2 {
		var l []byte
		l, lines, _ = bytes.Cut(lines, crlf)
		if name, value, ok := bytes.Cut(l, colon); ok {
			h.Fields = append(h.Fields, http1.Field{Name: name, Value: value})
		}
	}
	return h
}

var crlf, colon = []byte("\r\n"), []byte(": ")

// appendHead appends the head. p is what follows what was gathered; final says that nothing else does.
func (w *response) appendHead(dst, p []byte, final bool) []byte {
	w.sentHead = true
	x := w.x
	dst = append(dst, w.fields...)
	if !w.hasDate {
		dst = append(dst, "Date: "...)
		dst = http1.AppendDate(dst, time.Now())
		dst = append(dst, "\r\n"...)
	}
	allowed := bodyAllowed(w.status)
	if allowed && !w.hasType && !w.hasCoding {
		sniff := w.body
		if len(sniff) == 0 {
			sniff = p
		}
		if len(sniff) > 0 {
			dst = append(dst, "Content-Type: "...)
			dst = append(dst, http.DetectContentType(sniff)...)
			dst = append(dst, "\r\n"...)
		}
	}
	if final && w.length < 0 && allowed && (!w.isHead() || w.written > 0) && !w.hasTrailers() {
		w.length = w.written
	}
	switch {
	case w.status == http.StatusNoContent:
	case w.length >= 0 && x.two: // in the response itself
	case w.length >= 0:
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, w.length, 10)
		dst = append(dst, "\r\n"...)
	case !allowed || w.isHead() || x.two:
	case x.req.ProtoMinor > 0:
		w.chunked = true
		dst = append(dst, "Transfer-Encoding: chunked\r\n"...)
	default:
		w.close = true // the body ends with the connection
	}
	x.mu.Lock()
	if x.expect {
		// The client was not told to go on. Whether it sends the body now is its choice, and we
		// could not tell that body from a request: rfc9110#section-10.1.1.
		w.close = true
	}
	x.mu.Unlock()
	switch {
	case x.two:
	case w.close:
		dst = append(dst, "Connection: close\r\n"...)
	case x.req.ProtoMinor == 0:
		dst = append(dst, "Connection: keep-alive\r\n"...)
	}
	return append(dst, "\r\n"...)
}

// finish sends the rest when the handler has returned.
func (w *response) finish() {
	if w.over {
		w.release()
		return
	}
	if !w.wroteHeader {
		w.WriteHeader(http.StatusOK)
	}
	if w.length >= 0 && w.written != w.length && bodyAllowed(w.status) && !w.isHead() {
		w.close = true // the client must not take the next answer for the rest of this one
		w.short = true
	}
	out := w.gathered(nil, true)
	if w.hasTrailers() {
		out.trailers = w.appendTrailers(nil)
	}
	if w.chunked {
		if len(w.body) > 0 {
			w.pre = append(w.pre, crlf...)
		}
		w.pre = http1.AppendLastChunk(w.pre, out.trailers)
		out.pieces[0] = w.pre
	}
	w.x.out = out // nobody is in send
	w.x.loop.Post(w.conclude)
}

// conclude is the loop's part of finish.
func (w *response) conclude() {
	if x := w.x; x.on.carries(x) {
		x.began = true
		x.on.conclude(x, &x.out, !w.close)
	}
	w.release()
}

// hasTrailers reports whether the handler has announced trailers, or set some.
func (w *response) hasTrailers() bool {
	if len(w.trailers) > 0 {
		return true
	}
	for name := range w.header {
		if strings.HasPrefix(name, http.TrailerPrefix) {
			return true
		}
	}
	return false
}

// appendTrailers appends what the handler has set of the trailers that it has announced, and those with http.TrailerPrefix.
func (w *response) appendTrailers(dst []http1.Field) []http1.Field {
	add := func(name string, values []string) {
		if !http1.ValidName(name) {
			return
		}
		for _, v := range values {
			dst = append(dst, http1.Field{Name: []byte(name), Value: http1.AppendValue(nil, v)})
		}
	}
	for _, name := range w.trailers {
		add(name, w.header[name])
	}
	for name, values := range w.header {
		if name, ok := strings.CutPrefix(name, http.TrailerPrefix); ok {
			add(textproto.CanonicalMIMEHeaderKey(name), values)
		}
	}
	return dst
}

// abandon is finish for a handler that has panicked; aborted says that it has done so to break the answer off.
func (w *response) abandon(aborted bool) {
	x := w.x
	over, began := w.over, w.sentHead || aborted
	w.over = true
	x.loop.Post(func() {
		switch {
		case !x.on.carries(x) || over:
		case began:
			x.on.abort(x, errPanicked)
		default:
			x.on.refuse(x)
		}
	})
}

var errPanicked = errors.New("http: handler panicked")

// release gives the buffers back.
func (w *response) release() {
	if max(cap(w.pre), cap(w.fields), cap(w.lines)) <= 4*smallBody {
		bufferPool.Put(w.buffers)
	}
	w.buffers = nil
}

// Upgrade implements Upgrader.
func (w *response) Upgrade(status int, header http.Header, take func(end End, loop *evloop.Loop)) error {
	x := w.x
	if w.over || w.wroteHeader || x.req.Body != http.NoBody {
		return http.ErrHijacked
	}
	w.over = true
	out := appendFields(appendStatus(w.pre[:0], status), header, nil)
	if status == http.StatusSwitchingProtocols {
		out = append(out, "Connection: Upgrade\r\n"...)
	}
	if x.two {
		w.parse(out, status)
	} else {
		w.pre = append(out, "\r\n"...)
	}
	return x.leave(func(end End) {
		take(end, x.loop)
	})
}

// Hijack is for http.Hijacker: it takes the connection off the loop. It works in HTTP/1.1 on connections, and not on
// streams of a session: an Upgrader works on both, and costs nothing while it is silent.
func (w *response) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	x := w.x
	c, ok := x.on.(*conn)
	if !ok {
		return nil, nil, http.ErrNotSupported
	}
	end, ok := c.end.(*evloop.Conn)
	switch {
	case !ok:
		return nil, nil, http.ErrNotSupported
	case w.over || w.sentHead || x.req.Body != http.NoBody:
		return nil, nil, http.ErrHijacked
	}
	w.over = true
	w.pre = w.pre[:0]
	type result struct {
		nc  net.Conn
		err error
	}
	done := make(chan result, 1)
	err := x.leave(func(End) {
		end.Detach(func(nc net.Conn, err error) { done <- result{nc, err} })
	})
	if err != nil {
		return nil, nil, err
	}
	var r result
wait:
	for {
		select {
		case r = <-done:
			break wait
		case <-time.After(time.Second):
			if !x.loop.Post(func() {}) { // Detach does not tell that the core is being closed
				return nil, nil, evloop.ErrClosed
			}
		}
	}
	if r.err != nil {
		return nil, nil, r.err
	}
	return r.nc, bufio.NewReadWriter(bufio.NewReader(r.nc), bufio.NewWriter(r.nc)), nil
}

// leave takes the connection from x, on the loop, and calls take.
func (x *exchange) leave(take func(End)) error {
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.err == nil {
		x.sending = true
		if !x.loop.Post(func() {
			if !x.on.carries(x) {
				return
			}
			if x.two {
				x.on.put(x, &x.w.head, &[3][]byte{})
			} else {
				x.on.put(x, nil, &[3][]byte{x.w.pre})
			}
			c, _ := x.on.(*conn)
			end := x.on.give(x)
			take(end)
			if c != nil {
				c.unpause()
			}
			x.sentOut()
		}) {
			x.err = evloop.ErrClosed
		}
	}
	for x.sending && x.err == nil {
		x.cond.Wait()
	}
	return x.err
}
