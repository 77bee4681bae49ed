// Package rest serves typed functions. A function knows nothing of TCP, HTTP, WebSocket or TLS; it is called the same way in
// process, over HTTP and over WebSocket.
//
//	type Terms struct {
//		A float64 `json:"a" doc:"the first term"`
//		B float64 `json:"b"`
//	}
//	sum := func(_ context.Context, in Terms) (float64, error) { return in.A + in.B, nil }
//
//	srv := &rest.Server{Prefix: "/api/", Title: "calculator", Version: "1"}
//	srv.Set(&rest.Service{Root: "calc", Methods: []*rest.Method{rest.Of("Sum", sum)}})
//	http.Serve(ln, srv) // or httpd.Server{Handler: srv}, where WebSockets cost neither goroutine nor buffer
//
//	GET /api/calc/Sum?a=3.12&b=4.2   {"result":7.32}
//	GET /api/calc/Sum?a=x            400 {"errorCode":400,"errorText":"parameter \"a\": want a number, not \"x\""}
//
//	total, err := rest.Invoke[float64](ctx, srv.Local(nil), "calc/Sum", Terms{3.12, 4.2})
//
// Client and DialWebSocket give what calls a server elsewhere, in place of srv.Local. Parameters, the document of OpenAPI and
// the answers follow the tags of encoding/json; see Of.
//
// Invariants: whatever a peer decides the size or number of is bounded by Limits where it is read; a panic of a function is
// logged and tells the caller nothing; an answer that is no *Error, and not wrapped by Internal, is the caller's fault and
// says its text; a WebSocket by which nothing comes has neither goroutine nor buffer where the server is one of package httpd;
// no call outlives Close.
package rest

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"reflect"
	"slices"
	"strings"
)

// A Service is a group of methods below one root. The fields are set before it is given to a Server, and not changed after.
type Service struct {
	// Root is the first element of the paths: "sites" for /api/sites/List. Letters, digits, and -._~ between them.
	Root string

	// Doc says what the service is for, in the document of OpenAPI.
	Doc string

	// Bare says that an answer is the output as it is. Otherwise it is {"result": output}.
	Bare bool

	Methods []*Method
}

// A Method is a function with a name. Of and Feed make one; it is not changed after.
type Method struct {
	name    string
	doc     string
	needs   string
	item    string // the name of what follows the method's in a path; "": nothing does
	verbs   []string
	changes bool

	params  *params
	out     reflect.Type // of the result, or of an event
	results []int        // fields of out that are the results, if these are several
	fn      any          // func(ctx, In) (Out, error) or func(ctx, In, func(Event) error) error

	call func(ctx context.Context, fill func(in any) error, seen *any) (out any, err error)
	push func(ctx context.Context, fill func(in any) error, seen *any, send func(event any) error) error // of a feed
}

// An Option changes a Method that is being made.
type Option func(*Method)

// Doc says what the method does, in the document of OpenAPI. Its first line is the title.
func Doc(text string) Option { return func(m *Method) { m.doc = text } }

// Verbs are those of HTTP by which the method can be called. The default is GET (and with it HEAD) and POST.
func Verbs(v ...string) Option { return func(m *Method) { m.verbs = v } }

// Changes says that the method changes something: a link must not be enough to call it, so it wants POST.
func Changes() Option {
	return func(m *Method) { m.changes, m.verbs = true, []string{http.MethodPost} }
}

// Needs is a word for Server.Admit: for example a role.
func Needs(what string) Option { return func(m *Method) { m.needs = what } }

// Path says what follows the method's name in a path: "{id}" for /api/sites/Get/17. It becomes Call.ID, and the parameter of
// that name if In has one, which can then be left out elsewhere.
func Path(pattern string) Option {
	return func(m *Method) {
		item, ok := strings.CutPrefix(pattern, "{")
		item, closed := strings.CutSuffix(item, "}")
		if !ok || !closed || !segment(item) {
			panic(fmt.Sprintf("rest: path %q of method %s: want one element such as {id}", pattern, m.name))
		}
		m.item = item
	}
}

// Of makes a method of a function. In is a struct; what its exported fields are called in JSON are the parameters, whose
// names are matched without regard to case. A parameter has to be given unless its field is a pointer or has one of
//
//	`json:"limit,omitempty"`  or omitzero
//	`default:"100"`           what the field becomes if it is left out or zero
//
// and these say more about it:
//
//	`doc:"at most so many"`   in the document
//	`min:"1" max:"1000"`      of a number; of the length of a text, of bytes, of a list
//	`enum:"tcp,udp"`          the texts that it may be
//
// Out is anything that encoding/json takes, or Content, or a struct that embeds Results. Of panics if it cannot serve these
// types: that is a mistake in the program.
func Of[In, Out any](name string, f func(ctx context.Context, in In) (Out, error), opts ...Option) *Method {
	m := newMethod(name, reflect.TypeFor[In](), reflect.TypeFor[Out](), opts)
	m.fn = f
	m.call = func(ctx context.Context, fill func(any) error, seen *any) (any, error) {
		in := new(In)
		if err := fill(in); err != nil {
			return nil, err
		}
		if seen != nil {
			*seen = *in
		}
		return f(ctx, *in)
	}
	return m
}

// Feed makes a method that pushes events until it returns: over WebSocket as messages, over HTTP as JSON values, one a line
// (application/x-ndjson). send waits while the client takes nothing, and fails when it is gone; ctx ends then as well. send
// may be called from one goroutine at a time. In is as for Of.
func Feed[In, Event any](name string, f func(ctx context.Context, in In, send func(Event) error) error, opts ...Option) *Method {
	m := newMethod(name, reflect.TypeFor[In](), reflect.TypeFor[Event](), opts)
	if m.out == contentType || m.results != nil {
		panic("rest: feed " + name + ": events are JSON values")
	}
	m.fn = f
	m.push = func(ctx context.Context, fill func(any) error, seen *any, send func(any) error) error {
		in := new(In)
		if err := fill(in); err != nil {
			return err
		}
		if seen != nil {
			*seen = *in
		}
		return f(ctx, *in, func(e Event) error { return send(e) })
	}
	return m
}

func newMethod(name string, in, out reflect.Type, opts []Option) *Method {
	if !segment(name) {
		panic(fmt.Sprintf("rest: method %q: a name has letters, digits, and -._~ between them", name))
	}
	m := &Method{name: name, out: out, verbs: []string{http.MethodGet, http.MethodPost}}
	for _, o := range opts {
		o(m)
	}
	if len(m.verbs) == 0 {
		panic("rest: method " + name + ": no verb")
	}
	var err error
	if m.params, err = paramsOf(in, m.item); err != nil {
		panic(fmt.Sprintf("rest: method %s: %v", name, err))
	}
	if m.results, err = resultsOf(out); err != nil {
		panic(fmt.Sprintf("rest: method %s: %v", name, err))
	}
	return m
}

// allows reports whether verb calls m.
func (m *Method) allows(verb string) bool {
	return slices.Contains(m.verbs, verb) || verb == http.MethodHead && m.push == nil && slices.Contains(m.verbs, http.MethodGet)
}

// segment reports whether s can be an element of a path as it is.
func segment(s string) bool {
	for i := range len(s) {
		switch c := s[i]; {
		case 'a' <= c|0x20 && c|0x20 <= 'z', '0' <= c && c <= '9':
		case strings.IndexByte("-._~", c) >= 0 && i > 0 && i < len(s)-1:
		default:
			return false
		}
	}
	return s != ""
}

// An Error is a refusal that its caller can act on. A function returns it to choose the answer; a client returns it for each
// answer that is one.
type Error struct {
	Code int    `json:"errorCode"` // the HTTP status, if it is one of an error; otherwise that is 400
	Text string `json:"errorText"`
}

// Errorf makes an *Error.
func Errorf(code int, format string, a ...any) *Error {
	return &Error{Code: code, Text: fmt.Sprintf(format, a...)}
}

func (e *Error) Error() string { return e.Text }

// status is that of HTTP.
func (e *Error) status() int {
	if e.Code >= 400 && e.Code <= 599 {
		return e.Code
	}
	return http.StatusBadRequest
}

// Internal wraps an error whose text is not for callers: they get a 500 that says nothing, and the log gets err. It returns nil
// for nil.
func Internal(err error) error {
	if err == nil {
		return nil
	}
	return &internalError{err}
}

type internalError struct{ err error }

func (e *internalError) Error() string { return e.err.Error() }
func (e *internalError) Unwrap() error { return e.err }

// errInternal is what callers are told of a fault that is ours.
var errInternal = &Error{http.StatusInternalServerError, "internal server error"}

// told is what a caller is told of err; internal says that it belongs in the log.
func told(err error) (e *Error, internal bool) {
	var i *internalError
	switch {
	case errors.As(err, &i):
		return errInternal, true
	case errors.As(err, &e):
		return e, false
	case errors.Is(err, context.DeadlineExceeded):
		return &Error{http.StatusGatewayTimeout, "took too long"}, false
	case errors.Is(err, context.Canceled):
		return &Error{http.StatusServiceUnavailable, "cancelled"}, false
	}
	return &Error{http.StatusBadRequest, err.Error()}, false
}
