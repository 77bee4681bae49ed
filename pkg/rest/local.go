package rest

import (
	"context"
	"encoding/json"
	"errors"
	"iter"
	"net/http"
	"net/url"
	"reflect"
)

func unescape(s string) (string, error) { return url.PathUnescape(s) }

// A Caller calls methods, in this process or elsewhere: Server.Local, a Client, a Socket. Invoke and Follow use it.
type Caller interface {
	// Call calls a method with an input and fills in what out points to.
	Call(ctx context.Context, name string, in, out any) error
	// Follow calls a feed, and each with each event until it returns an error, which Follow returns. decode fills in what its
	// argument points to.
	Follow(ctx context.Context, name string, in any, each func(decode func(event any) error) error) error
}

// Invoke calls a method: "sites/List", or "sites/Get/17" for one that has an item in its path (escaped as in a URL). An answer
// that is an error is an *Error.
func Invoke[Out, In any](ctx context.Context, c Caller, name string, in In) (out Out, err error) {
	if l, ok := c.(*local); ok {
		return localInvoke[Out](ctx, l, name, in)
	}
	err = c.Call(ctx, name, in, &out)
	return out, err
}

// Follow calls a feed. The sequence ends when the feed does, or when the loop over it is left, which ends the feed. An error is
// its last element.
func Follow[Event, In any](ctx context.Context, c Caller, name string, in In) iter.Seq2[Event, error] {
	return func(yield func(Event, error) bool) {
		ctx, cancel := context.WithCancel(ctx)
		defer cancel()
		err := c.Follow(ctx, name, in, func(decode func(any) error) error {
			var e Event
			if err := decode(&e); err != nil {
				return err
			}
			if !yield(e, nil) {
				return errLeft
			}
			return nil
		})
		if err != nil && !errors.Is(err, errLeft) {
			var none Event
			yield(none, err)
		}
	}
}

// errLeft says that nobody wants further events.
var errLeft = errors.New("no further events are wanted")

// local is the Caller of Server.Local.
type local struct {
	s        *Server
	identity any
}

// Local calls methods in this process, as identity. What is passed and returned is not serialised if it has the types of the
// method; it is not copied, either.
func (s *Server) Local(identity any) Caller { return &local{s, identity} }

// find finds a method, and makes the Call of it.
func (l *local) find(name string, feed bool) (*Call, *Method, error) {
	service, m, id, err := l.s.find(name)
	if err != nil {
		return nil, nil, err
	}
	if feed != (m.push != nil) {
		return nil, nil, wrongKind(m)
	}
	return &Call{Service: service.Root, Method: m.name, Needs: m.needs, ID: id, Changes: m.changes, Feed: feed, Identity: l.identity, Transport: Local, takes: m.params.t}, m, nil
}

func wrongKind(m *Method) error {
	if m.push != nil {
		return Errorf(http.StatusBadRequest, "%s is a feed: follow it", m.name)
	}
	return Errorf(http.StatusBadRequest, "%s is no feed: call it", m.name)
}

// localInvoke is Invoke in this process, which passes in and out as they are.
func localInvoke[Out, In any](ctx context.Context, l *local, name string, in In) (out Out, err error) {
	c, m, err := l.find(name, false)
	if err != nil {
		return out, err
	}
	f, ok := m.fn.(func(context.Context, In) (Out, error))
	if !ok {
		err = l.converted(ctx, c, m, in, &out)
		return out, err
	}
	if l.s.Done != nil {
		c.fill = fill(m, in, c.ID)
	}
	err = l.s.do(ctx, c, func(ctx context.Context, seen *any) (err error) {
		if m.params.checks || c.ID != "" {
			checked := in // on the heap, for reflection
			if err := m.params.local(&checked, c.ID); err != nil {
				return err
			}
			in = checked
		}
		if seen != nil {
			*seen = in
		}
		out, err = f(ctx, in)
		return err
	})
	return out, l.told(c, err)
}

// told logs what has to be, and hides it.
func (l *local) told(c *Call, err error) error {
	var i *internalError
	var p *panicked
	if errors.As(err, &i) || errors.As(err, &p) {
		return l.s.answer(c, err)
	}
	return err
}

// local checks what comes in this process; in is a pointer.
func (p *params) local(in any, id string) error {
	v := reflect.ValueOf(in).Elem()
	for i := range p.list {
		if q := &p.list[i]; q.inPath && id != "" {
			if err := fromText(v.FieldByIndex(q.index), []string{id}); err != nil {
				return badParam(q.name, "%v", err)
			}
		}
	}
	return p.settle(v)
}

// fill returns what fills in the In of m from another value.
func fill(m *Method, in any, id string) func(any) error {
	return func(to any) error {
		if v := reflect.ValueOf(in); v.IsValid() && v.Type() == m.params.t {
			reflect.ValueOf(to).Elem().Set(v)
			return m.params.local(to, id)
		}
		b, err := json.Marshal(in)
		if err != nil {
			return err
		}
		g := &given{item: id}
		if string(b) != "null" {
			g.body = b
		}
		return g.into(m.params, to)
	}
}

// assign sets what out points to, by JSON if it has another type.
func assign(m *Method, v, out any) error {
	to := reflect.ValueOf(out).Elem()
	if from := reflect.ValueOf(v); from.IsValid() && from.Type().AssignableTo(to.Type()) {
		to.Set(from)
		return nil
	}
	b, err := m.encode(v)
	if err != nil {
		return err
	}
	return decodeResult(b, out)
}

func (l *local) Call(ctx context.Context, name string, in, out any) error {
	c, m, err := l.find(name, false)
	if err != nil {
		return err
	}
	return l.converted(ctx, c, m, in, out)
}

func (l *local) converted(ctx context.Context, c *Call, m *Method, in, out any) error {
	c.fill = fill(m, in, c.ID)
	return l.told(c, l.s.do(ctx, c, func(ctx context.Context, seen *any) error {
		v, err := m.call(ctx, c.fill, seen)
		if err != nil {
			return err
		}
		return assign(m, v, out)
	}))
}

func (l *local) Follow(ctx context.Context, name string, in any, each func(decode func(any) error) error) error {
	c, m, err := l.find(name, true)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c.fill = fill(m, in, c.ID)
	var left error
	err = l.s.do(ctx, c, func(ctx context.Context, seen *any) error {
		return m.push(ctx, c.fill, seen, func(event any) error {
			if left == nil && ctx.Err() != nil {
				return ctx.Err()
			}
			if left == nil {
				if left = each(func(out any) error { return assign(m, event, out) }); left != nil {
					cancel()
				}
			}
			return left
		})
	})
	if left != nil {
		return left
	}
	return l.told(c, err)
}
