package public

import (
	"bufio"
	"bytes"
	"context"
	"crypto/subtle"
	"errors"
	"net"
	"net/http"
	"net/netip"
	"strconv"
	"strings"
	"sync"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
)

// forwardProtocol is what an operator's request asks to be upgraded to.
const forwardProtocol = "culvert-forward"

const switching = "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: " + forwardProtocol + "\r\n\r\n"

var (
	troubleToken = &trouble{401, "A valid operator token is needed."}
	troublePost  = &trouble{405, "This needs a POST request."}
	troubleRate  = &trouble{429, "Too many attempts. Please wait a minute."}
	troubleLarge = &trouble{413, "The request is too large."}
	troubleBusy  = &trouble{503, "This cannot be done right now. Please try again."}
	troubleFlow  = &trouble{400, "This service carries datagrams, which a forward does not: use its UDP port."}
	troubleFile  = &trouble{400, "This service has files, which a forward does not carry: use TFTP."}
	troubleSwap  = &trouble{426, "This needs an upgrade of the connection."}
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
		!bytes.HasPrefix(path, []byte(relay.ForwardPath)) && !bytes.HasPrefix(path, []byte(relay.OperatePath)):
		return false
	case string(host) == "localhost":
		return true
	}
	_, err := netip.ParseAddr(string(host))
	return err == nil
}

// ownDomain serves a request for the relay itself. It reports false if the
// request is to be read again on another loop.
func (v *visitor) ownDomain() bool {
	req := &v.loop.req
	path := string(req.Path)
	switch {
	case path == relay.LinkPath:
		v.link()
		return true
	case path == relay.JoinPath:
		v.join()
		return true
	case strings.HasPrefix(path, relay.ForwardPath):
		return v.forward(strings.TrimPrefix(path, relay.ForwardPath))
	case strings.HasPrefix(path, relay.OperatePath):
		v.operate(strings.TrimPrefix(path, relay.OperatePath))
		return true
	}
	v.turnDown(troublePage)
	return true
}

// forward joins an operator to a service, given as SITE/SERVICE.
func (v *visitor) forward(name string) bool {
	req := &v.loop.req
	if id, ok := v.relay.operatorOf(string(http1.Get(req.Fields, "authorization")), v.addr.Addr()); !ok || id.Role < auth.Operate {
		v.turnDown(troubleToken)
		return true
	}
	if !http1.EqualFold(req.Upgrade, forwardProtocol) || req.Framing != http1.NoBody {
		v.turnDown(troubleSwap)
		return true
	}
	site, service, _ := strings.Cut(name, "/")
	s, t := v.relay.sessionOf(site)
	if t != nil {
		v.turnDown(t)
		return true
	}
	if s.loop != v.loop {
		v.move(s.loop, v.serve)
		return false
	}
	if v.hold(s.group) {
		return false
	}
	svc := s.service(service)
	if svc == nil {
		v.turnDown(troubleService)
		return true
	}
	if t := svc.noForward(); t != nil {
		v.turnDown(t)
		return true
	}
	st, err := svc.openStream(v.addr, "forward", "")
	if err != nil {
		v.turnDown(openTrouble(err))
		return true
	}
	v.conn.Write([]byte(switching))
	svc.total++
	r := record{
		service: svc, visitor: v.addr, proto: "forward", tls: v.tls, request: v.loop.appendRequest(nil, req),
		status: 101, began: v.loop.since(), stream: st,
	}
	v.spliced(st, svc, "forward").logs(r)
	return true
}

// noForward says why an operator cannot be forwarded to s, or nil.
func (s *service) noForward() *trouble {
	switch {
	case s.flows != nil:
		return troubleFlow
	case s.isFiles():
		return troubleFile
	}
	return nil
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

// ServeForward is the handler of relay.ForwardPath on the operators' own
// listener. The caller has checked who asks.
func (r *Relay) ServeForward(w http.ResponseWriter, req *http.Request) {
	r.prepare()
	fail := func(t *trouble) {
		if t.status == 503 {
			w.Header().Set("Retry-After", retryAfter)
		}
		http.Error(w, t.text, t.status)
	}
	site, service, _ := strings.Cut(strings.TrimPrefix(req.URL.Path, relay.ForwardPath), "/")
	if !strings.EqualFold(req.Header.Get("Upgrade"), forwardProtocol) {
		fail(troubleSwap)
		return
	}
	s, t := r.sessionOf(site)
	if t != nil {
		fail(t)
		return
	}
	found := make(chan *trouble, 1)
	find := func() {
		if s = s.group.active; s == nil {
			found <- troubleAway
			return
		}
		if svc := s.service(service); svc != nil {
			found <- svc.noForward()
		} else {
			found <- troubleService
		}
	}
	s.loop.Post(func() {
		if !s.group.hold(find) {
			find()
		}
	})
	select {
	case t := <-found:
		if t != nil {
			fail(t)
			return
		}
	case <-req.Context().Done():
		return
	}
	nc, rw, err := http.NewResponseController(w).Hijack()
	if err != nil {
		r.log.Error("forward", "site", site, "service", service, "err", err)
		fail(troubleBusy)
		return
	}
	nc.SetDeadline(time.Time{})
	if !s.loop.Post(func() { s.forward(service, nc, rw.Reader) }) {
		nc.Close()
	}
}

var errWithdrawn = errors.New("the service is not there any more")

// forward joins a connection that was taken over from net/http to a service. On
// the loop.
func (s *session) forward(service string, nc net.Conn, unread *bufio.Reader) {
	c, err := s.loop.Attach(nc)
	if err != nil {
		return
	}
	svc := s.service(service)
	if svc == nil || svc.noForward() != nil {
		c.Abort(errWithdrawn)
		return
	}
	st, err := svc.openStream(c.RemoteAddr(), "forward", "")
	if err != nil {
		c.Abort(err)
		return
	}
	c.Write([]byte(switching))
	if n := unread.Buffered(); n > 0 {
		b, _ := unread.Peek(n)
		st.Write(b)
	}
	svc.total++
	v := s.relay.admission.count(c.RemoteAddr().Addr())
	join(c, st, c.RemoteAddr(), v, svc, "forward").logs(record{
		service: svc, visitor: c.RemoteAddr(), proto: "forward", status: 101, began: s.loop.since(), stream: st,
	})
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
