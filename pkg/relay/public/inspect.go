package public

import (
	"errors"
	"slices"
	"sync"
	"time"

	"culvert.dev/pkg/http1"
)

// Of services whose site allows it, heads and bodies of requests are captured: by their loops, while they pass, into memory of
// their own. A capture that is complete belongs to the inspector, which all loops share, and is not changed any more. The
// lock is taken for each piece of some KiB, and by services that are inspected only.

const (
	maxBodyKept       = 64 << 10 // bytes of a body
	maxServiceKept    = 8 << 20  // of captures of a service, those under way included
	maxExchanges      = 256      // of a service
	defaultInspection = 64 << 20 // of captures in all
	captureCost       = 1 << 10  // of a capture besides

	// captureTime is how long a capture is kept.
	captureTime = time.Hour
)

// inspector has the captures. Its fields are guarded by mu.
type inspector struct {
	limit int // immutable; negative: nothing is captured

	mu       sync.Mutex
	used     int // bytes, of captures under way included
	services map[serviceName]*inspected
	byNumber map[uint64]*capture
	oldest   *capture // the list of those that are complete
	newest   *capture
	sweeping bool // sweep comes
}

// serviceName is a service, whichever session has it.
type serviceName struct{ site, name string }

// inspected is a service of which there are captures.
type inspected struct {
	used int        // bytes
	list []*capture // those that are complete, the oldest first
}

// capture is a request and its response. While it is under way it belongs to the loop of the exchange.
type capture struct {
	number   uint64
	of       serviceName
	client   *client // who has asked
	replayed string  // ID of the request that it is a copy of; "": of none
	request  *http1.Request
	sent     keptBody // of the request
	fields   []http1.Field
	answer   keptBody // of the response
	whole    bool     // the request was complete
	cost     int      // bytes that are counted

	// Set at the end.
	told          Request
	kept          time.Time
	before, after *capture // in the list: older and newer
}

// keptBody is the beginning of a body.
type keptBody struct {
	bytes []byte
	size  int64 // of all that has come
}

func (k *keptBody) truncated() bool { return k.size > int64(len(k.bytes)) }

// inspects begins a capture of a request, unless there is no room for it.
func (r *Relay) inspects(ex *exchange, req *http1.Request) *capture {
	in := &r.inspector
	if in.limit < 0 || r.HideRequests {
		return nil
	}
	c := &capture{number: ex.id, of: serviceName{ex.service.session.site, ex.service.name}}
	// What Request.Clone makes: the target is in it as it was sent, and in its parts.
	n := captureCost + len(req.Method) + len(req.Target) + len(req.Scheme) + len(req.Host) + len(req.Path) + len(req.Query) + len(req.Upgrade) + 64*len(req.Fields)
	for _, f := range req.Fields {
		n += len(f.Name) + len(f.Value)
	}
	for _, cert := range ex.client.certs { // they outlive the connection
		n += 2 * len(cert.Raw)
	}
	if !in.charge(c, n) {
		return nil
	}
	c.client, c.replayed, c.request = ex.client.carried(), ex.client.replayed, req.Clone()
	return c
}

// body keeps a piece of one of c's bodies.
func (in *inspector) body(c *capture, k *keptBody, p []byte) {
	gap := k.truncated() // nothing is kept behind one
	k.size += int64(len(p))
	if gap {
		return
	}
	p = p[:min(len(p), maxBodyKept-len(k.bytes))]
	if need := len(k.bytes) + len(p); need > cap(k.bytes) {
		grown := min(maxBodyKept, max(need, 2*cap(k.bytes), 2<<10))
		if !in.charge(c, grown-cap(k.bytes)) {
			return
		}
		b := make([]byte, len(k.bytes), grown)
		copy(b, k.bytes)
		k.bytes = b
	}
	k.bytes = append(k.bytes, p...)
}

// head keeps fields of the response: of its head, and then those of its trailers, in which gRPC says how it went.
func (in *inspector) head(c *capture, fields []http1.Field) {
	n := 0
	for _, f := range fields {
		n += 48 + len(f.Name) + len(f.Value)
	}
	if n > 0 && in.charge(c, n) {
		c.fields = append(c.fields, (&http1.Request{Fields: fields}).Clone().Fields...)
	}
}

// charge counts n more bytes for c, and makes room for them. It reports false if there is none.
func (in *inspector) charge(c *capture, n int) bool {
	in.mu.Lock()
	defer in.mu.Unlock()
	s := in.service(c.of)
	for s.used+n > maxServiceKept && len(s.list) > 0 {
		in.drop(s.list[0])
	}
	for in.used+n > in.limit && in.oldest != nil {
		in.drop(in.oldest)
	}
	s = in.service(c.of) // what was dropped may have been all that it had
	if s.used+n > maxServiceKept || in.used+n > in.limit {
		in.settle(c.of)
		return false
	}
	s.used += n
	in.used += n
	c.cost += n
	return true
}

// service returns what there is of a service. mu is held.
func (in *inspector) service(of serviceName) *inspected {
	s := in.services[of]
	if s == nil {
		if in.services == nil {
			in.services, in.byNumber = make(map[serviceName]*inspected), make(map[uint64]*capture)
		}
		s = new(inspected)
		in.services[of] = s
	}
	return s
}

// drop forgets a complete capture, which is the oldest of its service. mu is held, here and below.
func (in *inspector) drop(c *capture) {
	if c.before != nil {
		c.before.after = c.after
	} else {
		in.oldest = c.after
	}
	if c.after != nil {
		c.after.before = c.before
	} else {
		in.newest = c.before
	}
	c.before, c.after = nil, nil
	delete(in.byNumber, c.number)
	s := in.services[c.of]
	s.list[0] = nil
	s.list = s.list[1:]
	in.release(c)
}

// release gives back what c took.
func (in *inspector) release(c *capture) {
	in.used -= c.cost
	in.services[c.of].used -= c.cost
	c.cost = 0
	in.settle(c.of)
}

// settle forgets a service of which there is nothing.
func (in *inspector) settle(of serviceName) {
	if s := in.services[of]; s != nil && s.used == 0 && len(s.list) == 0 {
		delete(in.services, of)
	}
}

// complete takes a capture that is over, as told says; or forgets it, if its service is not to be inspected any more.
func (in *inspector) complete(c *capture, told Request, keep bool) {
	c.told, c.kept = told, time.Now()
	in.mu.Lock()
	defer in.mu.Unlock()
	if !keep {
		in.release(c)
		return
	}
	if c.before = in.newest; c.before != nil {
		c.before.after = c
	} else {
		in.oldest = c
	}
	in.newest = c
	in.byNumber[c.number] = c
	s := in.services[c.of]
	if s.list = append(s.list, c); len(s.list) > maxExchanges {
		in.drop(s.list[0])
	}
	in.sweepLater()
}

// sweepLater has sweep come when the oldest capture is to be forgotten.
func (in *inspector) sweepLater() {
	if !in.sweeping && in.oldest != nil {
		in.sweeping = true
		time.AfterFunc(time.Until(in.oldest.kept.Add(captureTime))+time.Second, in.sweep)
	}
}

// sweep forgets captures that are too old.
func (in *inspector) sweep() {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.sweeping = false
	limit := time.Now().Add(-captureTime)
	for in.oldest != nil && !in.oldest.kept.After(limit) {
		in.drop(in.oldest)
	}
	in.sweepLater()
}

// forget forgets the captures of a service that are complete: its site allows it no more.
func (in *inspector) forget(of serviceName) {
	in.mu.Lock()
	defer in.mu.Unlock()
	for s := in.services[of]; s != nil && len(s.list) > 0; {
		in.drop(s.list[0])
	}
}

// get returns a complete capture, or nil.
func (in *inspector) get(number uint64) *capture {
	in.mu.Lock()
	defer in.mu.Unlock()
	c := in.byNumber[number]
	if c != nil && time.Since(c.kept) > captureTime {
		return nil
	}
	return c
}

// seen completes the capture of ex, if there is one.
func (ex *exchange) seen() {
	c := ex.capture
	if c == nil {
		return
	}
	ex.capture = nil
	c.whole = ex.sent && !ex.large
	p := ex.past()
	ex.loop.relay.inspector.complete(c, p.request(ex.loop, c.of.site, c.of.name), ex.service.inspect && !ex.service.removedFor(c.of))
}

// removedFor reports whether the site has withdrawn the service, or says that it is not to be inspected. A service that is there under
// the same name in another session is not withdrawn.
func (s *service) removedFor(of serviceName) bool {
	if !s.removed {
		return false
	}
	a := s.session.group.active
	if a == nil {
		return false
	}
	now := a.service(of.name)
	return now == nil || !now.inspect
}

// HeaderField is one line of a head.
type HeaderField struct{ Name, Value string }

// Exchange is a request with what was said, as far as it was kept. Secrets are redacted: see docs/operations.md.
type Exchange struct {
	Request                       // Path has the query
	RequestHeader, ResponseHeader []HeaderField
	RequestBody, ResponseBody     Body
	Replayed                      string // ID of the request that this one has sent again; "": it is a visitor's own
}

// ErrNoExchange says that there is no Exchange of an ID, and ErrNoReplay that it cannot be sent again.
var (
	ErrNoExchange = errors.New("no such request, or nothing of it was kept: captures are of services with inspect = true, and kept for an hour at most")
	ErrNoReplay   = errors.New("this request cannot be sent again")
)

// Exchange returns what was kept of a request.
func (r *Relay) Exchange(id string) (*Exchange, error) {
	r.prepare()
	c := r.captured(id)
	if c == nil {
		return nil, ErrNoExchange
	}
	return c.show(), nil
}

func (r *Relay) captured(id string) *capture {
	if kind, n, ok := parseID(id); ok && kind == 'r' {
		return r.inspector.get(n)
	}
	return nil
}

// show makes an Exchange of c, which is complete.
func (c *capture) show() *Exchange {
	e := &Exchange{
		Request:       c.told,
		RequestHeader: showFields(c.request.Fields), ResponseHeader: showFields(c.fields),
		RequestBody: c.sent.show(c.request.Fields), ResponseBody: c.answer.show(c.fields),
		Replayed: c.replayed,
	}
	e.Inspectable = true
	e.Path = string(c.request.Path)
	if c.request.Query != nil {
		e.Path += "?" + string(redactForm(nil, c.request.Query))
	}
	return e
}

func showFields(fields []http1.Field) []HeaderField {
	list := make([]HeaderField, 0, len(fields))
	for _, f := range fields {
		list = append(list, HeaderField{string(f.Name), redactField(string(f.Name), string(f.Value))})
	}
	return slices.Clip(list)
}
