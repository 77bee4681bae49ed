package rest

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"time"
)

// feedHead is when a feed that has nothing to say yet begins its answer: until then it can still have another status.
const feedHead = 100 * time.Millisecond

func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("Cache-Control", "no-store")
	path, ok := strings.CutPrefix(r.URL.EscapedPath(), s.prefix())
	if !ok {
		s.refuse(w, Errorf(http.StatusNotFound, "not found: the services are below %s", s.prefix()))
		return
	}
	switch {
	case path == "ws":
		s.upgrade(w, r)
		return
	case s.NoDocs:
	case path == "openapi.json" || path == "docs" || strings.HasPrefix(path, "docs/"):
		s.serveDocs(w, r, path)
		return
	}
	service, m, id, err := s.find(path)
	if err != nil {
		s.refuse(w, err.(*Error))
		return
	}
	if !m.allows(r.Method) {
		verbs := slices.Clone(m.verbs)
		if m.allows(http.MethodHead) && !slices.Contains(verbs, http.MethodHead) {
			verbs = append(verbs, http.MethodHead)
		}
		h.Set("Allow", strings.Join(verbs, ", "))
		if r.Method == http.MethodOptions {
			w.WriteHeader(http.StatusNoContent)
			return
		}
		s.refuse(w, Errorf(http.StatusMethodNotAllowed, "%s/%s wants %s", service.Root, m.name, strings.Join(m.verbs, " or ")))
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead && !s.ownPage(r) {
		s.refuse(w, errForeign)
		return
	}
	c := callOf(r)
	c.Service, c.Method, c.Needs, c.ID, c.Changes, c.Feed = service.Root, m.name, m.needs, id, m.changes, m.push != nil
	c.takes, c.fill = m.params.t, func(in any) error {
		g, err := s.given(w, r, id)
		if err != nil {
			return err
		}
		return g.into(m.params, in)
	}
	if c.Feed {
		s.feed(w, r, c, m)
		return
	}
	var out any
	err = s.do(r.Context(), c, func(ctx context.Context, seen *any) (err error) {
		out, err = m.call(ctx, c.fill, seen)
		return err
	})
	switch {
	case err != nil:
		s.refuse(w, s.answer(c, err))
	case m.out == contentType:
		content := out.(Content)
		s.content(w, r, c, &content)
	default:
		s.result(w, c, service, m, out)
	}
}

// callOf says who makes a request.
func callOf(r *http.Request) *Call {
	c := &Call{Transport: HTTP, UserAgent: r.UserAgent(), Host: r.Host, Header: r.Header}
	c.Remote, _ = netip.ParseAddrPort(r.RemoteAddr)
	return c
}

var errForeign = &Error{http.StatusForbidden, "a page of another site may not do this"}

// ownPage reports whether a request does not come from a page of another site: browsers say where it comes from.
func (s *Server) ownPage(r *http.Request) bool {
	origin := r.Header.Get("Origin")
	if origin == "" || slices.Contains(s.Origins, origin) {
		return true
	}
	u, err := url.Parse(origin)
	return err == nil && u.Host != "" && strings.EqualFold(u.Host, r.Host)
}

// given reads the parameters of a request.
func (s *Server) given(w http.ResponseWriter, r *http.Request, id string) (*given, error) {
	g := &given{item: id}
	if r.URL.RawQuery != "" {
		var err error
		if g.query, err = url.ParseQuery(r.URL.RawQuery); err != nil {
			return nil, Errorf(http.StatusBadRequest, "malformed query")
		}
	}
	if r.Body == nil || r.Body == http.NoBody || r.ContentLength == 0 {
		return g, nil
	}
	limit := s.bounds().MaxBody
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var long *http.MaxBytesError
	switch {
	case errors.As(err, &long):
		return nil, Errorf(http.StatusRequestEntityTooLarge, "the body is longer than %d bytes", limit)
	case err != nil:
		return nil, Errorf(http.StatusBadRequest, "the body has not come whole")
	case len(body) == 0:
		return g, nil
	}
	// Not only for clarity: a page elsewhere cannot send this type without asking first.
	if t, _, err := mime.ParseMediaType(r.Header.Get("Content-Type")); err != nil || t != "application/json" {
		return nil, Errorf(http.StatusUnsupportedMediaType, "want Content-Type: application/json, or the parameters in the query")
	}
	if !json.Valid(body) {
		return nil, Errorf(http.StatusBadRequest, "the body is no JSON: %v", json.Unmarshal(body, new(any)))
	}
	g.body = body
	return g, nil
}

// bareHeader says to clients that an answer is the output as it is, whatever it looks like.
const bareHeader = "Rest-Answer"

func (s *Server) result(w http.ResponseWriter, c *Call, service *Service, m *Method, out any) {
	b, err := m.encode(out)
	if err != nil {
		s.refuse(w, s.answer(c, Internal(err)))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	if service.Bare {
		w.Header().Set(bareHeader, "bare")
		b = append(b, '\n')
	} else {
		wrapped := make([]byte, 0, len(b)+len("{\"result\":}\n"))
		wrapped = append(wrapped, `{"result":`...)
		wrapped = append(wrapped, b...)
		b = append(wrapped, "}\n"...)
	}
	w.Write(b)
}

// refuse answers with an error.
func (s *Server) refuse(w http.ResponseWriter, e *Error) {
	h := w.Header()
	h.Set("Content-Type", "application/json")
	if e.status() == http.StatusServiceUnavailable || e.status() == http.StatusTooManyRequests {
		if h.Get("Retry-After") == "" {
			h.Set("Retry-After", "1")
		}
	}
	if e.status() == http.StatusUnauthorized && s.Bearer && h.Get("WWW-Authenticate") == "" {
		h.Set("WWW-Authenticate", "Bearer") // rfc9110#section-15.5.2
	}
	b, _ := json.Marshal(e)
	w.WriteHeader(e.status())
	w.Write(append(b, '\n'))
}

// content answers with something that is no JSON.
func (s *Server) content(w http.ResponseWriter, r *http.Request, c *Call, out *Content) {
	defer out.close()
	h := w.Header()
	for name, values := range out.Header {
		h[http.CanonicalHeaderKey(name)] = values
	}
	h.Set("Content-Type", or(out.Type, "application/octet-stream"))
	if out.Stream == nil {
		w.WriteHeader(or(out.Status, http.StatusOK))
		w.Write(out.Body)
		return
	}
	w.WriteHeader(or(out.Status, http.StatusOK))
	if r.Method == http.MethodHead {
		return
	}
	// What the stream has leaves before it is asked for more: it may be slow on purpose.
	flush, stall := http.NewResponseController(w), s.bounds().Stall
	defer flush.SetWriteDeadline(time.Time{})
	b := make([]byte, 32<<10)
	for {
		n, err := out.Stream.Read(b)
		if n > 0 {
			flush.SetWriteDeadline(time.Now().Add(stall)) // as far as the server has such
			if _, err := w.Write(b[:n]); err != nil {
				return
			}
			flush.Flush()
		}
		if err == io.EOF {
			return
		}
		if err != nil {
			s.logger().Warn("a stream broke off", "service", c.Service, "method", c.Method, "error", err)
			panic(http.ErrAbortHandler) // the client must not take what it has got for all
		}
	}
}

// lines is the answer of a feed.
type lines struct {
	mu    sync.Mutex
	w     http.ResponseWriter
	flush *http.ResponseController
	stall time.Duration
	ping  time.Duration
	timer *time.Timer // begins the answer, and then says now and then that the feed is there
	last  time.Time   // when the head or a line was sent
	began bool
	over  bool
}

// begin sends the head. Locked.
func (l *lines) begin() {
	if l.began || l.over {
		return
	}
	l.began = true
	l.w.Header().Set("Content-Type", "application/x-ndjson")
	l.w.WriteHeader(http.StatusOK)
	l.flush.Flush()
	l.sent()
}

func (l *lines) write(b []byte) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.begin()
	return l.line(b)
}

// line writes a line. Locked.
func (l *lines) line(b []byte) error {
	l.flush.SetWriteDeadline(time.Now().Add(l.stall)) // as far as the server has such
	if _, err := l.w.Write(append(b, '\n')); err != nil {
		return err
	}
	l.sent()
	return l.flush.Flush()
}

// sent notes that there is no need to say anything for a while. Locked.
func (l *lines) sent() {
	l.last = time.Now()
	l.timer.Reset(l.ping)
}

// quiet is called by timer, and so perhaps after a line that came at the same time.
func (l *lines) quiet() {
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case l.over:
	case l.began && time.Since(l.last) < l.ping:
	case l.began:
		l.line(nil) // an empty one: otherwise nobody would notice that the client, or something between, has vanished
	default:
		l.begin()
	}
}

// stop is the end of the handler, also by a panic. The timer may still come.
func (l *lines) stop() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.over = true
	l.timer.Stop()
	l.flush.SetWriteDeadline(time.Time{})
}

// feed serves a feed: one JSON value a line. A last line that is an Error says why it has ended, if that is no good reason.
func (s *Server) feed(w http.ResponseWriter, r *http.Request, c *Call, m *Method) {
	limits := s.bounds()
	l := &lines{w: w, flush: http.NewResponseController(w), stall: limits.Stall, ping: limits.Ping}
	l.timer = time.AfterFunc(time.Hour, l.quiet)
	l.timer.Stop()
	defer l.stop()
	err := s.do(r.Context(), c, func(ctx context.Context, seen *any) error {
		fill := func(in any) error {
			err := c.fill(in)
			if err == nil {
				l.timer.Reset(feedHead)
			}
			return err
		}
		return m.push(ctx, fill, seen, func(event any) error {
			b, err := m.encode(event)
			if err != nil {
				return Internal(err)
			}
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			return l.write(b)
		})
	})
	l.mu.Lock()
	defer l.mu.Unlock()
	switch {
	case err != nil && !l.began:
		s.refuse(w, s.answer(c, err))
	case r.Context().Err() != nil: // the client is gone, or has only finished sending: it must not take this for the end of the feed
		panic(http.ErrAbortHandler)
	case err == nil:
		l.begin()
	default:
		b, _ := json.Marshal(s.answer(c, err))
		w.Write(append(b, '\n'))
	}
	l.over = true
}
