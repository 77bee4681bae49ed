package public

import (
	"context"
	"crypto/subtle"
	"errors"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
)

var (
	troubleToken = &trouble{401, "A valid operator token is needed."}
	troublePost  = &trouble{405, "This needs a POST request."}
	troubleRate  = &trouble{429, "Too many attempts. Please wait a minute."}
	troubleLarge = &trouble{413, "The request is too large."}
	troubleBusy  = &trouble{503, "This cannot be done right now. Please try again."}
	troubleSwap  = &trouble{426, "This needs a WebSocket of an operator."}
)

// own reports whether a request is for the relay itself: for its name, or, at the
// paths of sites and operators, for the machine that it runs on, whatever that is
// called. Who asks proves who he is, so the name does not matter.
func (r *Relay) own(host, path []byte) bool {
	switch {
	case r.Domain == "":
		return false
	case string(host) == r.Domain:
		return true
	case string(path) != relay.LinkPath && string(path) != relay.JoinPath &&
		(len(path) < len(relay.OperatePath) || string(path[:len(relay.OperatePath)]) != relay.OperatePath):
		return false
	case string(host) == "localhost":
		return true
	}
	_, err := netip.ParseAddr(string(host))
	return err == nil
}

// ownDomain serves a request for the relay itself. It reports false if that is left unread, for somebody else.
func (v *visitor) ownDomain() bool {
	path := string(v.loop.req.Path)
	switch {
	case path == relay.LinkPath:
		v.link()
	case path == relay.JoinPath:
		v.join()
	case strings.HasPrefix(path, relay.OperatePath):
		v.operate(strings.TrimPrefix(path, relay.OperatePath))
	case v.relay.Own != nil && v.secure && string(v.loop.host) == v.relay.Domain:
		v.giveOwn()
		return false
	default:
		v.turnDown(troublePage)
	}
	return true
}

// giveOwn gives the connection to whoever serves the relay's own pages, with the request unread.
func (v *visitor) giveOwn() {
	state := v.conn.TLS()
	v.leave()
	v.relay.Own(v.conn, v.loop.Loop, v.addr, state)
}

// sessionOf returns the active session of a site, or what to answer.
func (r *Relay) sessionOf(site string) (*session, *trouble) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if g := r.groups[site]; g != nil && g.active != nil {
		return g.active, nil
	}
	if s, ok := r.sites[site]; ok && len(s.Keys) > 0 {
		return nil, troubleAway
	}
	return nil, troubleService
}

// service returns the service of that name, or nil. On the loop.
func (s *session) service(name string) *service {
	for _, svc := range s.services {
		if svc.name == name {
			return svc
		}
	}
	return nil
}

// join redeems a join token: a POST of a relay.JoinRequest.
func (v *visitor) join() {
	req := &v.loop.req
	switch {
	case v.relay.Join == nil:
		v.turnDown(troublePage)
	case string(req.Method) != "POST":
		v.turnDown(troublePost)
	case req.ContentLength > relay.MaxMessage:
		v.last = true
		v.turnDown(troubleLarge)
	case !v.relay.joins.allow(relay.Source(v.addr.Addr()), v.loop.Now()):
		v.last = true
		v.turnDown(troubleRate)
	default:
		j := &joiner{visitor: v, request: v.loop.appendRequest(nil, req), began: v.loop.since()}
		j.body.Reset(req.Framing, req.ContentLength)
		v.phase = asking
		v.await(headTime)
		v.conn.SetHandler(j)
		if req.Expect100 {
			v.conn.Write([]byte(http1.Continue))
		}
		j.OnData(nil)
	}
}

// joiner is the handler of a connection that sends a JoinRequest.
type joiner struct {
	visitor *visitor
	body    http1.Body
	message []byte
	asked   bool
	request []byte // for the access log
	began   int64
}

func (j *joiner) OnData(b []byte) (used int) {
	v := j.visitor
	for !j.asked {
		payload, n, done, err := j.body.Next(b[used:])
		used += n
		j.message = append(j.message, payload...)
		switch {
		case err != nil:
			v.refuse(rejection(err))
			j.asked = true
		case len(j.message) > relay.MaxMessage:
			v.refuse(troubleLarge)
			j.asked = true
		case done:
			j.asked = true
			j.ask()
		case n == 0:
			return used
		}
	}
	return len(b)
}

// ask redeems the token, off the loop.
func (j *joiner) ask() {
	v := j.visitor
	req, err := relay.DecodeJoinRequest(j.message)
	if err != nil {
		refusal, _ := errors.AsType[*relay.Refusal](err)
		j.reply(relay.JoinResponse{Error: refusal})
		return
	}
	var resp relay.JoinResponse
	v.loop.Go(
		func() { resp = v.relay.Join(req) },
		func() {
			if v.phase == asking {
				j.reply(resp)
			}
		})
}

func (j *joiner) reply(resp relay.JoinResponse) {
	v := j.visitor
	status, w := 200, fine
	if resp.Error != nil {
		status, w = 403, wordAuth
		v.loop.refused[w]++
		v.relay.log.Log(context.Background(), v.relay.refusalLevel(v.addr.Addr(), resp.Error.Code), "join refused", "remote", v.addr, "code", resp.Error.Code, "err", resp.Error.Message)
	} else {
		v.relay.log.Info("site joined", "site", resp.Site, "remote", v.addr)
	}
	body := relay.Encode(resp)
	out := http1.AppendStatusLine(nil, status)
	out = append(out, "Content-Type: application/json\r\nCache-Control: no-store\r\nConnection: close\r\nContent-Length: "...)
	out = strconv.AppendInt(out, int64(len(body)), 10)
	out = append(out, "\r\n\r\n"...)
	v.conn.Write(append(out, body...))
	v.loop.log(&record{visitor: v.addr, proto: v.proto, tls: v.tls, request: j.request, status: status, err: w, began: j.began})
	v.close()
}

func (j *joiner) OnEOF()        { j.visitor.close() }
func (j *joiner) OnDrain()      {}
func (j *joiner) OnClose(error) { j.visitor.leave() }

// maxJoins is how many join requests one address may make in a minute: a token
// has 256 bits, so this keeps the log and the state file quiet, not guesses out.
const maxJoins = 10

// rate bounds how often something happens in a minute. The fields of the first
// group are immutable.
type rate[K comparable] struct {
	most int // for one key
	size int // keys

	mu     sync.Mutex
	minute int64
	n      map[K]int
}

// allow counts one more for key, unless there were enough.
func (r *rate[K]) allow(key K, now time.Time) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if m := now.Unix() / 60; m != r.minute || r.n == nil {
		r.minute = m
		r.n = make(map[K]int)
	}
	n, known := r.n[key]
	if n >= r.most || !known && len(r.n) >= r.size {
		return false
	}
	r.n[key]++
	return true
}

// equal compares secrets.
func equal(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }
