package rest

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/http"
	"net/netip"
	"reflect"
	"runtime/debug"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/evloop"
)

// Server calls the methods of its services: for callers in this process (Local), and as an http.Handler for those over HTTP
// and WebSocket. Its fields are set before it serves, and not changed after: SetLimits and SetLog do that.
type Server struct {
	// Prefix is what all paths begin with: "/api/", which may be written "/api". "" is "/". Below it are the methods (root/Method), the document of
	// OpenAPI (openapi.json), a page that shows it (docs) and the WebSocket (ws).
	Prefix string

	Title, Version string // of the document
	Bearer         bool   // the document says that calls want a bearer token; it is Admit that looks at it

	// Admit is asked before each call, whatever its transport, before its parameters are looked at. It may set
	// Call.Identity. An *Error chooses the answer; other errors are as those of functions. nil: everybody may call.
	Admit func(ctx context.Context, c *Call) error

	// Connect is asked before a WebSocket is opened, with a Call that has no Service, and the Method "ws". What it sets as
	// Identity is that of each call on the socket, until Admit changes it. nil: everybody may.
	Connect func(ctx context.Context, c *Call) error

	// Disconnected is told when a WebSocket that was let in is gone, with the same Call, which has no Header any more. nil:
	// nobody is told.
	Disconnected func(c *Call)

	// Done is told of each call that was made, when it is over: what it was given (an In; nil if that was not understood, or
	// not admitted: see Call.Tried), what it returned, how long it took. nil: nobody is told.
	Done func(c *Call, in any, err error, took time.Duration)

	// Origins are those of web pages elsewhere that may make changes and open WebSockets: "https://app.example.com". Pages of
	// the server's own host may anyway, and so may whatever is no browser.
	Origins []string

	// Log gets panics and internal errors. nil: nobody gets them.
	Log *slog.Logger

	// NoDocs serves neither the document nor the page.
	NoDocs bool

	Limits

	table  atomic.Pointer[table]
	limits atomic.Pointer[Limits]      // of SetLimits
	log    atomic.Pointer[slog.Logger] // of SetLog
	calls  atomic.Int64                // under way
	feeds  atomic.Int64
	lines  atomic.Int64 // of feeds: those over HTTP

	partial atomic.Int64 // bytes of messages that have not come whole

	mu      sync.Mutex
	changes sync.Mutex // of table: Set and Remove
	closed  bool
	wg      sync.WaitGroup       // of sockets, and of the calls on them
	sockets map[*socket]struct{} // open
	pushing map[*Call]*pushing   // feeds under way
	core    *evloop.Core         // of sockets that came by Hijack; made by the first
}

// Limits bound what peers can make a Server do. Zero is the default.
type Limits struct {
	MaxBody     int64         // bytes of a request's body, and of a message in a WebSocket, both ways for Content. 0: 1 MiB
	MaxCalls    int           // calls under way, of all clients; one more gets 503. Those in process count, and are not refused. 0: 1024
	MaxFeeds    int           // feeds under way, of all clients. 0: 16384
	HTTPFeeds   int           // of those: over HTTP, where each has a connection and a goroutine of the server. 0: 256
	MaxSockets  int           // WebSockets. 0: 65536
	MaxPartial  int64         // bytes of all messages that have not come whole yet. 0: 64 MiB
	SocketCalls int           // calls under way on one WebSocket; one more gets 429. 0: 64
	SocketFeeds int           // feeds on one WebSocket. 0: 32
	CallTimeout time.Duration // after which a call's context ends; feeds have none. 0: never
	Ping        time.Duration // after which a WebSocket by which nothing comes gets a ping, and again until its answer has to be there. 0: 30 s
	Stall       time.Duration // after which a client is given up that takes nothing, or does not go on with a message. 0: 60 s
}

func or[T comparable](v, def T) T {
	var zero T
	if v == zero {
		return def
	}
	return v
}

// withDefaults returns l with every zero replaced.
func (l Limits) withDefaults() Limits {
	return Limits{
		MaxBody:     or(l.MaxBody, 1<<20),
		MaxCalls:    or(l.MaxCalls, 1024),
		MaxFeeds:    or(l.MaxFeeds, 16384),
		HTTPFeeds:   or(l.HTTPFeeds, 256),
		MaxSockets:  or(l.MaxSockets, 65536),
		MaxPartial:  or(l.MaxPartial, 64<<20),
		SocketCalls: or(l.SocketCalls, 64),
		SocketFeeds: or(l.SocketFeeds, 32),
		CallTimeout: l.CallTimeout,
		Ping:        or(l.Ping, 30*time.Second),
		Stall:       or(l.Stall, time.Minute),
	}
}

// SetLimits replaces Limits while the server serves, for what begins from now on.
func (s *Server) SetLimits(l Limits) {
	l = l.withDefaults()
	s.limits.Store(&l)
}

func (s *Server) bounds() *Limits {
	if l := s.limits.Load(); l != nil {
		return l
	}
	l := s.Limits.withDefaults()
	s.limits.CompareAndSwap(nil, &l)
	return s.limits.Load()
}

// prefix is Prefix with all its slashes.
func (s *Server) prefix() string {
	p := "/" + strings.Trim(s.Prefix, "/")
	if p != "/" {
		p += "/"
	}
	return p
}

// SetLog replaces Log while the server serves.
func (s *Server) SetLog(l *slog.Logger) { s.log.Store(l) }

func (s *Server) logger() *slog.Logger {
	if l := s.log.Load(); l != nil {
		return l
	}
	if s.Log != nil {
		return s.Log
	}
	return slog.New(slog.DiscardHandler)
}

// table is what is served; it is not changed, but replaced.
type table struct {
	services map[string]*entry // by root
	document func() []byte     // of OpenAPI
}

type entry struct {
	service *Service
	methods map[string]*Method
}

// Set adds services, in place of those with the same root. Calls under way end with the methods that they have begun with.
// It panics if two methods of a service have the same name, or a service cannot be at its root.
func (s *Server) Set(services ...*Service) {
	s.replace(func(t map[string]*entry) {
		for _, service := range services {
			if !segment(service.Root) || service.Root == "ws" || service.Root == "docs" || service.Root == "openapi.json" {
				panic(fmt.Sprintf("rest: root %q: want letters, digits, and -._~ between them, and none of ws, docs, openapi.json", service.Root))
			}
			e := &entry{service: service, methods: make(map[string]*Method, len(service.Methods))}
			for _, m := range service.Methods {
				if e.methods[m.name] != nil {
					panic(fmt.Sprintf("rest: service %s has two methods %s", service.Root, m.name))
				}
				if m.results != nil && service.Bare {
					panic(fmt.Sprintf("rest: service %s is bare, so method %s cannot have several results", service.Root, m.name))
				}
				e.methods[m.name] = m
			}
			t[service.Root] = e
		}
	})
}

// Remove takes the service at root away. Calls under way go on.
func (s *Server) Remove(root string) {
	s.replace(func(t map[string]*entry) { delete(t, root) })
}

func (s *Server) replace(change func(map[string]*entry)) {
	s.changes.Lock()
	defer s.changes.Unlock()
	services := map[string]*entry{}
	if t := s.table.Load(); t != nil {
		services = maps.Clone(t.services)
	}
	change(services)
	t := &table{services: services}
	t.document = sync.OnceValue(func() []byte { return s.document(t) })
	s.table.Store(t)
}

// find looks up root/Method or root/Method/item, as they are in a path: escaped.
func (s *Server) find(name string) (*Service, *Method, string, error) {
	root, rest, _ := strings.Cut(name, "/")
	method, item, _ := strings.Cut(rest, "/")
	t := s.table.Load()
	if t == nil {
		return nil, nil, "", Errorf(http.StatusNotFound, "there are no services")
	}
	e := t.services[root]
	if e == nil {
		return nil, nil, "", Errorf(http.StatusNotFound, "no service %.64q%s", root, closest(root, t.services))
	}
	m := e.methods[method]
	switch {
	case m == nil:
		return nil, nil, "", Errorf(http.StatusNotFound, "service %s has no method %.64q%s", root, method, closest(method, e.methods))
	case item != "" && (m.item == "" || strings.Contains(item, "/")):
		return nil, nil, "", Errorf(http.StatusNotFound, "nothing is behind %s/%s", root, method)
	}
	id, err := unescape(item)
	if err != nil {
		return nil, nil, "", Errorf(http.StatusBadRequest, "malformed path")
	}
	return e.service, m, id, nil
}

// closest names what is called like name but for the case.
func closest[T any](name string, m map[string]T) string {
	for n := range m {
		if strings.EqualFold(n, name) {
			return ": is it " + n + "?"
		}
	}
	return ""
}

// The transports of a Call.
const (
	HTTP      = "http"
	WebSocket = "websocket"
	Local     = "local"
)

// A Call is what is known of one call, and of who makes it. It is valid while the call is under way.
type Call struct {
	Service string // its root
	Method  string
	Needs   string // of the method
	ID      string // what follows the method in the path
	Changes bool   // the method does

	Identity  any // who calls: what Admit has set, or Local was given
	Remote    netip.AddrPort
	UserAgent string
	Host      string      // of the request
	Header    http.Header // of the request that made the call, or opened its WebSocket; nil in process. Not to be changed
	Transport string      // HTTP, WebSocket, Local
	Feed      bool        // the method is one

	takes reflect.Type         // the method's In
	fill  func(into any) error // makes that of what came
}

// Tried returns what a call that Admit has refused would have given to the method: an In, nil if what came makes none. It is for
// Done: nothing of it is read, but for that.
func (c *Call) Tried() any {
	if c.fill == nil {
		return nil
	}
	in := reflect.New(c.takes)
	if c.fill(in.Interface()) != nil {
		return nil
	}
	return in.Elem().Interface()
}

type callKey struct{}

// under is the context of a call.
type under struct {
	context.Context
	call *Call
}

func (u *under) Value(key any) any {
	if key == (callKey{}) {
		return u.call
	}
	return u.Context.Value(key)
}

// CallOf returns the call that ctx belongs to, nil if it belongs to none.
func CallOf(ctx context.Context) *Call {
	c, _ := ctx.Value(callKey{}).(*Call)
	return c
}

var errBusy = &Error{http.StatusServiceUnavailable, "too many calls are under way: try again"}

// enter admits a call to the limits; leave undoes it.
func (s *Server) enter(c *Call) error {
	l := s.bounds()
	full := false
	if c.Feed {
		full = s.feeds.Add(1) > int64(l.MaxFeeds)
		if c.Transport == HTTP {
			full = s.lines.Add(1) > int64(l.HTTPFeeds) || full
		}
	} else {
		full = s.calls.Add(1) > int64(l.MaxCalls)
	}
	if full && c.Transport != Local {
		s.leave(c)
		return errBusy
	}
	return nil
}

func (s *Server) leave(c *Call) {
	if !c.Feed {
		s.calls.Add(-1)
		return
	}
	s.feeds.Add(-1)
	if c.Transport == HTTP {
		s.lines.Add(-1)
	}
}

// do makes a call: it asks Admit, runs f with the context of the call, catches its panic and tells Done. c is filled in. f gets
// the place for what Done is told it was given, nil if nobody wants to know.
func (s *Server) do(ctx context.Context, c *Call, f func(ctx context.Context, seen *any) error) (err error) {
	if err := s.enter(c); err != nil {
		return err
	}
	defer s.leave(c)
	u := &under{ctx, c}
	ctx = u
	if d := s.bounds().CallTimeout; d > 0 && !c.Feed {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeout(u, d)
		defer cancel()
	}
	if c.Feed {
		var cancel context.CancelCauseFunc
		u.Context, cancel = context.WithCancelCause(u.Context)
		defer cancel(nil)
		if err := s.push(c, cancel); err != nil {
			return err
		}
		defer s.pushed(c)
		defer func() {
			if cause := context.Cause(u.Context); cause == errDropped || cause == errClosed {
				err = cause
			}
		}()
	}
	var seen *any
	if s.Done != nil {
		seen = new(any)
		start := time.Now()
		defer func() { s.Done(c, *seen, err, time.Since(start)) }()
	}
	defer func() {
		if v := recover(); v != nil {
			if e, ok := v.(error); ok && errors.Is(e, http.ErrAbortHandler) {
				err = e
				panic(v)
			}
			s.logger().Error("panic in a method", "service", c.Service, "method", c.Method, "panic", fmt.Sprint(v), "stack", string(debug.Stack()))
			err = &panicked{v}
		}
	}()
	if s.Admit != nil {
		if err := s.Admit(ctx, c); err != nil {
			return err
		}
	}
	if c.Feed {
		s.admitted(c)
	}
	return f(ctx, seen)
}

// pushing is a feed in the register of those that Drop ends. While Admit decides about its Call, that is Admit's alone: whoever
// wants to look at it then is asked again afterwards.
type pushing struct {
	cancel   context.CancelCauseFunc
	admitted bool
	asked    []func(*Call) bool
}

// push enters a feed into the register; pushed takes it out.
func (s *Server) push(c *Call, cancel context.CancelCauseFunc) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.closed {
		return errClosed
	}
	if s.pushing == nil {
		s.pushing = make(map[*Call]*pushing)
	}
	s.pushing[c] = &pushing{cancel: cancel}
	return nil
}

// admitted is told that Admit is done with the Call of a feed.
func (s *Server) admitted(c *Call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	p := s.pushing[c]
	p.admitted = true
	for _, such := range p.asked {
		if such(c) {
			p.cancel(errDropped)
		}
	}
	p.asked = nil
}

func (s *Server) pushed(c *Call) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.pushing, c)
}

// panicked is a panic that has been logged.
type panicked struct{ v any }

func (p *panicked) Error() string { return errInternal.Text }

// answer is what a caller over HTTP or WebSocket is told of err. It logs what has to be.
func (s *Server) answer(c *Call, err error) *Error {
	var p *panicked
	if errors.As(err, &p) {
		return errInternal
	}
	e, internal := told(err)
	if internal {
		s.logger().Error("a method failed", "service", c.Service, "method", c.Method, "error", err)
	}
	return e
}

// Drop ends the feeds, whatever their transport, whose Call is such, and the WebSockets, with what is under way on them, whose
// Call at Connect is: for example because an identity is not one any more.
func (s *Server) Drop(such func(c *Call) bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	why := errDropped
	if s.closed {
		why = errClosed
	}
	for c, p := range s.pushing {
		if s.closed {
			p.cancel(why)
		} else if !p.admitted {
			p.asked = append(p.asked, such)
		} else if such(c) {
			p.cancel(why)
		}
	}
	for k := range s.sockets {
		k.drop(such)
	}
}

var (
	errDropped = &Error{http.StatusForbidden, "you have been disconnected"}
	errClosed  = &Error{http.StatusServiceUnavailable, "the server is being closed"}
)

// Close ends the WebSockets, with what is under way on them, and the feeds, and returns when the former have ended. New ones are
// refused; other calls over HTTP and in process are not touched. It must not be called on a loop that has a WebSocket.
func (s *Server) Close() error {
	s.mu.Lock()
	s.closed = true
	core := s.core
	s.core = nil
	s.mu.Unlock()
	s.Drop(func(*Call) bool { return true })
	if core != nil {
		for range 2 { // the turn has to end in which the close frames are written
			turned := make(chan struct{})
			core.Loop(0).Post(func() { close(turned) })
			<-turned
		}
		core.Close()
	}
	s.wg.Wait()
	return nil
}
