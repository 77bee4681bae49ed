package main

import (
	"context"
	"errors"
	"log/slog"
	"net/http"
	"time"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/history"
	"culvert.dev/pkg/relay/public"
	"culvert.dev/pkg/rest"
)

// insight is what operators see of what goes on inside the relay: what is open, what was asked, what was carried and what was logged.
type insight struct {
	relay *public.Relay
	known func() []admin.Site // all, also those that have never been connected
	past  history.Store
	logs  *daemon.LogRing
}

// lookTime is how long the loops may take to answer a look.
const lookTime = 5 * time.Second

// awaitTick waits for the next tick or the end of ctx.
func awaitTick(ctx context.Context, tick <-chan time.Time) {
	select {
	case <-ctx.Done():
	case <-tick:
	}
}

// start feeds the history until stop is called.
func (n *insight) start() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go n.remember(ctx, done)
	return func() {
		cancel()
		<-done
	}
}

// remember feeds the history once a second, until ctx ends. It closes done.
func (n *insight) remember(ctx context.Context, done chan<- struct{}) {
	defer close(done)
	tick := time.NewTicker(time.Second)
	defer tick.Stop()
	var f public.Figures
	var samples []history.Sample
	for ; ; awaitTick(ctx, tick.C) {
		if ctx.Err() != nil {
			return
		}
		within, cancel := context.WithTimeout(ctx, lookTime)
		err := n.relay.Figures(within, &f)
		cancel()
		if err != nil { // loops that are as slow as that are in the log
			continue
		}
		samples = samples[:0]
		for _, s := range f.Services {
			samples = append(samples, history.Sample{Site: s.Site, Service: s.Name, Visitors: s.Visitors, In: s.Received, Out: s.Sent, Requests: s.Requests, Errors: s.Errors})
		}
		n.past.Add(f.Time, samples)
	}
}

// serve has h show it.
func (n *insight) serve(h *admin.Handler) {
	h.Figures = n.figures()
	h.Streams, h.Visitors = n.streams, n.visitors
	h.KickSession, h.KickStream = n.kickSession, n.kickStream
	h.Requests, h.FollowRequests = n.requests, n.followRequests
	h.Request, h.Replay = n.request, n.replay
	h.History = n.history
	h.Logs, h.FollowLogs = n.lines, n.followLines
}

// slow is the answer if err says that the relay did not answer in time.
func slow(err error) error {
	if errors.Is(err, context.DeadlineExceeded) {
		return rest.Errorf(http.StatusGatewayTimeout, "the relay has not answered within %v: it is very busy; try again", lookTime)
	}
	return err
}

// figures returns the look that Figures of the API are made of. It has memory of its own.
func (n *insight) figures() func(context.Context) (*admin.Look, error) {
	var f public.Figures
	return func(ctx context.Context) (*admin.Look, error) {
		ctx, cancel := context.WithTimeout(ctx, lookTime)
		defer cancel()
		if err := n.relay.Figures(ctx, &f); err != nil {
			return nil, slow(err)
		}
		l := &admin.Look{
			Time: f.Time, Visitors: f.Visitors, Streams: f.Streams, Requests: f.Requests, Draining: f.Draining,
			Services: make([]admin.ServiceLook, len(f.Services)),
		}
		for i, s := range f.Services {
			l.Services[i] = admin.ServiceLook(s)
		}
		connected := make(map[string]*public.SiteFigures, len(f.Sites))
		for i := range f.Sites {
			connected[f.Sites[i].Name] = &f.Sites[i]
		}
		for _, site := range n.known() {
			one := admin.SiteLook{SiteFigures: admin.SiteFigures{Name: site.Name, State: site.State}}
			if s := connected[site.Name]; s != nil {
				one.Sessions, one.Links, one.Streams, one.RTT = s.Sessions, s.Links, s.Streams, milliseconds(s.RTT)
				one.Received, one.Sent = s.Received, s.Sent
				if s.Active {
					one.State = stateOf(s.Lost, s.Leaving)
				}
			}
			l.Sites = append(l.Sites, one)
		}
		return l, nil
	}
}

func (n *insight) streams(ctx context.Context, in admin.Filter) ([]admin.Stream, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	found, err := n.relay.Streams(ctx, public.Filter(in))
	if err != nil {
		return nil, slow(err)
	}
	list := make([]admin.Stream, len(found))
	for i, s := range found {
		list[i] = admin.Stream{
			ID: s.ID, Site: s.Site, Service: s.Service, Scheme: s.Scheme, Host: s.Host, Remote: s.Remote.String(), Operator: s.Operator,
			Since: s.Since.UTC(), Received: s.Received, Sent: s.Sent, Idle: s.Idle.Seconds(), State: s.State,
		}
	}
	return list, nil
}

func (n *insight) visitors(ctx context.Context, in admin.Limit) ([]admin.Visitor, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	found, err := n.relay.Visitors(ctx, in.Limit)
	if err != nil {
		return nil, slow(err)
	}
	list := make([]admin.Visitor, len(found))
	for i, v := range found {
		list[i] = admin.Visitor{Address: v.Address.String(), Streams: v.Streams, Since: v.Since.UTC(), Received: v.Received, Sent: v.Sent, Services: v.Services}
	}
	return list, nil
}

func (n *insight) kickStream(ctx context.Context, in admin.ByID) error {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	_, err := n.relay.KickStream(ctx, in.ID)
	if errors.Is(err, public.ErrNoStream) {
		return rest.Errorf(http.StatusNotFound, "%v: `tunnelctl streams` lists those that are open", err)
	}
	return slow(err)
}

func (n *insight) kickSession(ctx context.Context, in admin.ByID) error {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	_, err := n.relay.KickSession(ctx, in.ID)
	switch {
	case errors.Is(err, public.ErrNoSession):
		return rest.Errorf(http.StatusNotFound, "%v: `tunnelctl sessions` lists those that there are", err)
	case err != nil && !errors.Is(err, context.DeadlineExceeded):
		return rest.Errorf(http.StatusConflict, "%v", err)
	}
	return slow(err)
}

func (n *insight) requests(ctx context.Context, in admin.Filter) ([]admin.Request, error) {
	ctx, cancel := context.WithTimeout(ctx, lookTime)
	defer cancel()
	found, err := n.relay.Requests(ctx, public.Filter(in))
	if err != nil {
		return nil, slow(err)
	}
	list := make([]admin.Request, len(found))
	for i := range found {
		list[i] = request(&found[i])
	}
	return list, nil
}

func (n *insight) followRequests(ctx context.Context, in admin.Filter, send func(admin.Request) error) error {
	return n.relay.FollowRequests(ctx, public.Filter(in), func(q public.Request, _ uint64) error { return send(request(&q)) })
}

// request is what operators see of one.
func request(q *public.Request) admin.Request {
	return admin.Request{
		ID: q.ID, Time: q.Time.UTC(), Site: q.Site, Service: q.Service, Remote: q.Remote.String(), Operator: q.Operator,
		Method: q.Method, Host: q.Host, Path: q.Path, Proto: q.Proto, Status: q.Status, Word: q.Word,
		Received: q.Received, Sent: q.Sent, Wait: milliseconds(q.Wait), Took: milliseconds(q.Took), Inspectable: q.Inspectable,
	}
}

func (n *insight) request(_ context.Context, in admin.ByID) (*admin.Exchange, error) {
	e, err := n.relay.Exchange(in.ID)
	if err != nil {
		return nil, rest.Errorf(http.StatusNotFound, "%v", err)
	}
	return exchange(e), nil
}

func (n *insight) replay(ctx context.Context, in admin.ByID) (*admin.Exchange, error) {
	who, _ := admin.OperatorOf(ctx)
	e, err := n.relay.Replay(ctx, in.ID, who.Operator)
	switch {
	case errors.Is(err, public.ErrNoExchange):
		return nil, rest.Errorf(http.StatusNotFound, "%v", err)
	case errors.Is(err, context.DeadlineExceeded):
		return nil, rest.Errorf(http.StatusGatewayTimeout, "the server behind the service has not answered in time")
	case err != nil:
		return nil, rest.Errorf(http.StatusConflict, "%v", err)
	}
	return exchange(e), nil
}

// exchange is what operators see of one.
func exchange(e *public.Exchange) *admin.Exchange {
	fields := func(list []public.HeaderField) []admin.HeaderField {
		made := make([]admin.HeaderField, len(list))
		for i, f := range list {
			made[i] = admin.HeaderField(f)
		}
		return made
	}
	body := func(b public.Body) admin.Body {
		return admin.Body{Text: b.Text, Base64: b.Binary, Size: b.Size, Truncated: b.Truncated, Redacted: b.Redacted}
	}
	return &admin.Exchange{
		Request: request(&e.Request), ReplayOf: e.Replayed,
		RequestHeader: fields(e.RequestHeader), ResponseHeader: fields(e.ResponseHeader),
		RequestBody: body(e.RequestBody), ResponseBody: body(e.ResponseBody),
	}
}

func (n *insight) history(_ context.Context, in admin.Span) (*admin.History, error) {
	h := n.past.Get(in.Site, in.Service, time.Duration(in.Span*float64(time.Second)), time.Now())
	return &admin.History{Step: h.Step.Seconds(), Start: h.Start, In: h.In, Out: h.Out, Visitors: h.Visitors, Requests: h.Requests, Errors: h.Errors}, nil
}

func (n *insight) lines(_ context.Context, in admin.Lines) ([]admin.LogLine, error) {
	kept := n.logs.Last(in.Lines)
	list := make([]admin.LogLine, len(kept))
	for i := range kept {
		list[i] = line(&kept[i])
	}
	return list, nil
}

func (n *insight) followLines(ctx context.Context, in admin.Lines, send func(admin.LogLine) error) error {
	return n.logs.Follow(ctx, in.Lines, func(r daemon.LogRecord, skipped int) error {
		if skipped > 0 {
			left := admin.LogLine{Time: r.Time.UTC(), Level: slog.LevelWarn.String(), Message: "lines were left out here, as this connection is too slow for them"}
			if err := send(left); err != nil {
				return err
			}
		}
		return send(line(&r))
	})
}

// line is what operators see of a record.
func line(r *daemon.LogRecord) admin.LogLine {
	l := admin.LogLine{Time: r.Time.UTC(), Level: r.Level.String(), Message: r.Message}
	for _, a := range r.Attrs {
		if l.Attrs == nil {
			l.Attrs = make(map[string]string, len(r.Attrs))
		}
		l.Attrs[a.Name] = a.Value
	}
	return l
}
