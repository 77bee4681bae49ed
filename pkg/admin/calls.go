package admin

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"strings"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/rest"
)

// What one operator may have at a time, see Handler.
const (
	defaultSockets = 1024
	defaultFeeds   = 256
	defaultCalls   = 64
)

// held is what an operator has at the moment.
type held struct{ sockets, feeds, calls int }

// living is the Identity of the Call of a WebSocket: the one who has it open.
type living struct {
	*caller
	stop func() // following the token
}

// counted is the Identity of a Call that Admit has let in.
type counted struct {
	*caller
	stop func() // following the token; nil unless it is a feed over HTTP
}

// hold counts one more of what an operator has, unless there are enough.
func (h *Handler) hold(operator string, n func(*held) *int, most int, what string) error {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.held[operator]
	if one == nil {
		one = new(held)
		h.held[operator] = one
	}
	if *n(one) >= most {
		return rest.Errorf(http.StatusTooManyRequests, "operator %q has %d %s: end some", operator, most, what)
	}
	*n(one)++
	return nil
}

func (h *Handler) release(operator string, n func(*held) *int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	one := h.held[operator]
	*n(one)--
	if *one == (held{}) {
		delete(h.held, operator)
	}
}

func sockets(o *held) *int { return &o.sockets }
func feeds(o *held) *int   { return &o.feeds }
func calls(o *held) *int   { return &o.calls }

var errGone = &rest.Error{Code: http.StatusUnauthorized, Text: "the token has expired or was revoked: an admin makes another one with `tunnelctl token create`"}

// connect lets an operator open a WebSocket, which ends with the token. Whoever may do anything at all may have one.
func (h *Handler) connect(ctx context.Context, c *rest.Call) error {
	who, _ := ctx.Value(callerKey{}).(*caller)
	if who == nil {
		return errGone
	}
	if err := h.hold(who.Operator, sockets, or(h.MaxSockets, defaultSockets), "WebSockets"); err != nil {
		return err
	}
	l := &living{caller: who}
	c.Identity = l
	l.stop = h.follow(who, l)
	if _, ok := h.good(who); !ok {
		h.disconnected(c)
		return errGone
	}
	return nil
}

// disconnected is told of the end of what connect has let in.
func (h *Handler) disconnected(c *rest.Call) {
	if l, ok := c.Identity.(*living); ok {
		l.stop()
		h.release(l.Operator, sockets)
	}
}

// follow ends what has identity when who is not any more.
func (h *Handler) follow(who *caller, identity any) (stop func()) {
	return h.Operators.Follow(who.Identity, func() {
		h.api.Drop(func(c *rest.Call) bool { return c.Identity == identity })
	})
}

// drop ends the WebSockets and feeds of such callers.
func (h *Handler) drop(such func(*caller) bool) {
	h.api.Drop(func(c *rest.Call) bool {
		switch who := c.Identity.(type) {
		case *living:
			return such(who.caller)
		case *counted:
			return such(who.caller)
		}
		return false
	})
}

// admitCall says whether a caller has the role that a method needs, by what the token proves now.
func (h *Handler) admitCall(ctx context.Context, c *rest.Call) error {
	var who *caller
	switch id := c.Identity.(type) {
	case *living: // a WebSocket
		who = id.caller
	case auth.Identity: // in this process
		who = &caller{Identity: id}
	default:
		who, _ = ctx.Value(callerKey{}).(*caller)
	}
	if who == nil {
		return errGone
	}
	if c.Transport != rest.Local {
		var ok bool
		if who, ok = h.good(who); !ok {
			return errGone
		}
	}
	need := auth.Viewer
	if c.Needs != "" {
		var err error
		if need, err = auth.ParseRole(c.Needs); err != nil {
			need = auth.Administer
		}
	}
	if who.Role < need {
		c.Identity = who // for done
		return mayNot(who.Identity, need, c.Service+"/"+c.Method)
	}
	in := &counted{caller: who}
	var err error
	if c.Feed {
		err = h.hold(who.Operator, feeds, or(h.MaxFeeds, defaultFeeds), "feeds")
	} else {
		err = h.hold(who.Operator, calls, or(h.MaxCalls, defaultCalls), "calls under way")
	}
	if err != nil {
		c.Identity = who
		return err
	}
	c.Identity = in
	if c.Feed && c.Transport == rest.HTTP {
		in.stop = h.follow(who, in)
	}
	return nil
}

// done is told of the end of each call.
func (h *Handler) done(c *rest.Call, in any, err error, _ time.Duration) {
	var who *caller
	switch id := c.Identity.(type) {
	case *counted:
		who = id.caller
		if id.stop != nil {
			id.stop()
		}
		if c.Feed {
			h.release(who.Operator, feeds)
		} else {
			h.release(who.Operator, calls)
		}
	case *caller:
		who = id
	case *living:
		who = id.caller
	}
	line := AuditLine{Remote: c.Remote.String(), Via: c.Transport, Call: c.Service + "/" + c.Method, Code: http.StatusOK}
	if err != nil {
		line.Code, line.Error = http.StatusInternalServerError, "the relay's log says why"
		if e := (*rest.Error)(nil); errors.As(err, &e) {
			line.Code, line.Error = e.Code, e.Text
		}
	}
	if !c.Changes && !isRefusal(line.Code) && !isAudited(c) {
		return
	}
	if isRefusal(line.Code) && !h.isTold(who, c.Remote.Addr()) {
		return
	}
	most := mostSaid
	if in == nil && isRefusal(line.Code) {
		in, most = c.Tried(), mostTried
	}
	line.In = said(in, most)
	h.record(line, who)
	if c.Changes && err == nil {
		h.log().Info("operator: "+line.Call, "operator", who.Operator, "in", string(line.In))
	}
}

// isAudited is whether a method that changes nothing is for the audit log: what visitors have sent is seen by it.
func isAudited(c *rest.Call) bool { return c.Service == "requests" && c.Method == "Get" }

// How many bytes of what a method was given are for the audit log: less of what came from who may not call it.
const (
	mostSaid  = 2 << 10
	mostTried = 512
)

// said is what a method was given, as the audit log has it: without secrets, and not longer than most bytes.
func said(in any, most int) json.RawMessage {
	switch v := in.(type) {
	case nil, None:
		return nil
	case Search:
		v.User, v.Password = "", ""
		in = v
	case ConfigText: // may have anything in it
		in = ConfigText{}
	}
	b, err := json.Marshal(in)
	if err != nil || string(b) == "{}" {
		return nil
	}
	if len(b) > most {
		b, _ = json.Marshal(strings.ToValidUTF8(string(b[:most]), "") + "…")
	}
	return b
}
