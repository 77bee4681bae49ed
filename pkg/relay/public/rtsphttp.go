package public

import (
	"bytes"
	"cmp"
	"errors"
	"net/netip"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
)

// RTSP over HTTP is what Apple made of it for networks that let nothing but HTTP out: on one
// connection a GET, behind whose answer comes all that the server has to say; on another one a
// POST, behind whose head comes what the player has to say, in base64; both with the same
// x-sessioncookie. The heads look like HTTP, and after them nothing is: lengths mean nothing,
// the POST has no answer, and neither connection is used for HTTP again. What players do, and
// do not expect:
//
//   - The GET has to be answered before the POST comes, without a length and not in chunks.
//   - A player may end a POST and begin another one. Most go on without one when it breaks.
//   - live555 sends RTCP on the connection of the GET, as it is.
//   - Some end the GET by a reset, right behind the TEARDOWN on the other connection.
//
// A half waits here for the other one. Strangers do not meet: they would need the same cookie
// at the same service, and the same address. A tunnel is for one service, so both halves are
// on the loop of its session.

const (
	tunnelType = "application/x-rtsp-tunnelled"

	// tunnelAnswer is what all players take for the answer to a GET.
	tunnelAnswer = "HTTP/1.0 200 OK\r\nContent-Type: " + tunnelType + "\r\nCache-Control: no-store\r\nPragma: no-cache\r\nConnection: close\r\n\r\n"

	maxCookie  = 128  // bytes
	maxAlone   = 64   // halves that wait, of one address on one loop
	maxWaiting = 4096 // and of all
	decodeSize = 4096 // bytes of base64 that are decoded at a time

	aloneTime  = 10 * time.Second // for the other half
	bereftTime = 60 * time.Second // without a POST, and without a byte on the GET
	lastWords  = time.Second      // for what the POST still has, when the GET has ended
)

var (
	troubleCookie  = &trouble{400, "The x-sessioncookie of this request is not one: 1 to 128 letters, digits and signs."}
	troubleTwice   = &trouble{409, "There is a tunnel with this x-sessioncookie already."}
	troubleHalves  = &trouble{503, "Too many tunnels are being set up right now. Please try again."}
	troubleNoOther = &trouble{408, "The other half of this tunnel did not come."}

	errBase64 = errors.New("what came by POST is not base64")
	errInner  = errors.New("a request on the connection of a GET that does not belong to it")
	errBereft = errors.New("the POST of the tunnel has ended, and no other one has come")
)

// rtspTunnels are those of a loop, and what its sockets share.
type rtspTunnels struct {
	all     map[tunnelKey]*rtspTunnel
	held    map[netip.Addr]int // halves that wait, by address
	waiting int                // all of them
	spare   [][]byte           // of sockets

	// serve is loop.serveRTSP, but in tests.
	serve func(end evloop.End, c *client, how string, bound *service)

	// Scratch of the callback that is running.
	message rtsp.Message
	decoded []byte
}

// tunnelKey is what the halves of a tunnel have in common.
type tunnelKey struct {
	cookie  string
	service *service
	addr    netip.Addr // of the visitor; the zero one if the halves may come from different ones
	secure  bool
}

// stage is where a tunnel is. It goes down the list, but between paired and bereft to and fro.
type stage uint8

const (
	alone   stage = iota // one half waits for the other
	paired               // there is a GET and a POST
	bereft               // there is a GET, whose POST has ended
	parting              // the GET has sent its end of stream
	ended                // it is not in the table any more
)

// rtspTunnel is an End that is made of a GET, by which everything goes down, and of POSTs, one
// after the other. It lives as long as the GET.
type rtspTunnel struct {
	inflow
	key       tunnelKey
	stage     stage
	get, post *half   // post can be the same as get
	client    *client // of the get
	timer     evloop.Timer
	waits     *record // of the half that is alone
	err       error   // why it ends

	base64 rtsp.Base64
	posted framer
	part   []byte // of a message whose rest is to come by POST; nil: there is none
	raw    framer // of what comes by the GET
}

// half is a connection of a tunnel. Its visitor is counted until it is closed.
type half struct {
	tunnel  *rtspTunnel // nil: it is out of it
	loop    *loop
	conn    *evloop.Conn
	addr    netip.Addr
	verdict verdict
	posts   bool        // what comes is base64
	body    *http1.Body // in chunks; nil: it is not
}

// opensTunnel reports whether req is one of the two halves. Its cookie may be invalid.
func opensTunnel(req *http1.Request) bool {
	name := ""
	switch string(req.Method) {
	case "GET":
		name = "accept"
	case "POST":
		name = "content-type"
	default:
		return false
	}
	if http1.Get(req.Fields, "x-sessioncookie") == nil {
		return false
	}
	for i := range req.Fields {
		if !http1.EqualFold(req.Fields[i].Name, name) {
			continue
		}
		for v := range bytes.SplitSeq(req.Fields[i].Value, comma) {
			v, _, _ = bytes.Cut(v, semicolon)
			if http1.EqualFold(bytes.TrimSpace(v), tunnelType) {
				return true
			}
		}
	}
	return false
}

var semicolon = []byte{';'}

// sessionCookie returns the cookie of a half; "" if that is not one, or there are several.
func sessionCookie(fields []http1.Field) (cookie string) {
	for _, f := range fields {
		if !http1.EqualFold(f.Name, "x-sessioncookie") {
			continue
		}
		if cookie != "" || len(f.Value) == 0 || len(f.Value) > maxCookie {
			return ""
		}
		for _, c := range f.Value {
			if c <= ' ' || c >= 0x7f {
				return ""
			}
		}
		cookie = string(f.Value)
	}
	return cookie
}

// hostless goes on with a request that names no host, which only the half of a tunnel may do:
// it is for the host of the TLS handshake, or the only one that has cameras. n and err are
// what http1.ParseRequest has said of b.
func (v *visitor) hostless(b []byte, n int, err error) (int, error) {
	req := &v.loop.req
	if n == 0 && err == nil {
		return n, err
	}
	routes := v.relay.routes.Load()
	host := cmp.Or(v.sni, routes.cameras)
	if !routes.hasCameras([]byte(host), v.secure) {
		return n, err
	}
	if err != nil {
		m, failed := http1.Limits{NoHost: true}.ParseRequest(b, req)
		if m == 0 || failed != nil || req.Host != nil {
			return n, err
		}
		if !opensTunnel(req) {
			return n, err
		}
		n = m
	}
	if opensTunnel(req) {
		req.Host = []byte(host)
	}
	return n, nil
}

// tunnel takes the half of a tunnel to a camera.
func (v *visitor) tunnel(s *service, req *http1.Request) {
	l := v.loop
	refuse := func(t *trouble) {
		v.last = true // what follows may be the rest of a tunnel
		l.logOwn(&v.client, req, s, t)
		v.answer(t)
	}
	if v.eof {
		v.close()
		return
	}
	isGet := string(req.Method) == "GET"
	key := tunnelKey{cookie: sessionCookie(req.Fields), service: s, addr: v.addr.Addr().Unmap(), secure: v.secure}
	if key.cookie == "" {
		refuse(troubleCookie)
		return
	}
	if s.camera.Roaming {
		key.addr = netip.Addr{}
	}
	t := l.tunnels.all[key]
	if t != nil && t.stage == alone && isGet == (t.get != nil) {
		t.giveUp(wordCancelled) // whoever comes again has lost the first one
		t = nil
	}
	switch {
	case t == nil && !l.tunnels.hasRoom(v.addr.Addr()):
		refuse(troubleHalves)
		return
	case t == nil:
		t = l.newTunnel(key, v, req)
	case isGet && t.stage != alone:
		refuse(troubleTwice)
		return
	}
	h := &half{tunnel: t, loop: l, conn: v.conn, addr: v.addr.Addr(), verdict: v.verdict}
	if !isGet && req.Framing == http1.Chunked {
		h.body = new(http1.Body)
		h.body.Reset(req.Framing, req.ContentLength)
	}
	v.handOver(h)
	if isGet {
		t.client = v.client.carried()
		t.get = h
		h.conn.Write([]byte(tunnelAnswer))
	} else {
		t.usePost(h)
	}
	switch {
	case t.get == nil:
		h.conn.Pause() // what comes waits in the connection
	case t.post != nil && t.stage == alone:
		t.begin()
	}
}

// handOver leaves the visitor's connection, and its count, to h.
func (v *visitor) handOver(h evloop.Handler) {
	v.phase = gone
	v.due.stop()
	v.loop.remove(v)
	v.conn.SetHandler(h)
}

// carried is c without its connection, for what that carries.
func (c *client) carried() *client {
	n := &client{addr: c.addr, sni: c.sni, proto: c.proto, certs: c.certs, tls: c.tls, port: c.port, secure: c.secure, verdict: uncounted}
	n.met.Store(c.met.Load())
	n.vouched.Store(c.vouched.Load())
	return n
}

// hasRoom reports whether another half of addr may wait.
func (ts *rtspTunnels) hasRoom(addr netip.Addr) bool {
	return ts.waiting < maxWaiting && ts.held[relay.Source(addr)] < maxAlone
}

// drain ends the halves that wait, if all is set; it returns how many there were.
func (ts *rtspTunnels) drain(all bool) (n int) {
	for _, t := range ts.all {
		if t.stage != alone {
			continue
		}
		n++
		if all {
			t.giveUp(wordAway)
		}
	}
	return n
}

// newTunnel makes a tunnel of its first half, which v has just sent.
func (l *loop) newTunnel(key tunnelKey, v *visitor, req *http1.Request) *rtspTunnel {
	t := &rtspTunnel{key: key}
	t.loop, t.end = l, t
	t.waits = &record{
		service: key.service, visitor: v.addr, subject: v.subject(), proto: v.proto, tls: v.tls,
		request: l.appendRequest(nil, req), began: l.since(),
	}
	ts := &l.tunnels
	if ts.all == nil {
		ts.all, ts.held = make(map[tunnelKey]*rtspTunnel), make(map[netip.Addr]int)
	}
	ts.all[key] = t
	ts.waiting++
	ts.held[relay.Source(v.addr.Addr())]++
	l.Arm(&t.timer, aloneTime, t.onTimer)
	return t
}

// found ends the waiting for the other half.
func (t *rtspTunnel) found() {
	ts := &t.loop.tunnels
	ts.waiting--
	drop(ts.held, relay.Source(t.waits.visitor.Addr()))
	t.waits = nil
	t.timer.Stop()
}

// begin has the tunnel served: there is something to be heard.
func (t *rtspTunnel) begin() {
	t.found()
	t.stage = paired
	if t.post == nil {
		t.bereave()
	}
	t.loop.tunnels.serve(t, t.client, "rtsp-http", t.key.service)
	if t.post != nil && !t.paused && !t.closed {
		t.post.conn.Resume()
	}
}

// usePost takes h for the POST from now on, instead of another one, which has ended as far as
// the player is concerned. It begins with a message of its own.
func (t *rtspTunnel) usePost(h *half) {
	t.losePost()
	t.post = h
	h.posts = true
	if t.stage == bereft {
		t.stage = paired
		t.timer.Stop()
	}
	if t.paused {
		h.conn.Pause()
	}
}

// losePost ends the POST, and what has come of a message with it.
func (t *rtspTunnel) losePost() {
	t.base64, t.posted, t.part = rtsp.Base64{}, framer{}, nil
	if h := t.post; h != nil {
		t.post = nil
		if h.posts = false; h != t.get {
			h.leave()
		}
	}
}

// bereave gives the player time for another POST.
func (t *rtspTunnel) bereave() {
	t.stage = bereft
	t.loop.Arm(&t.timer, bereftTime, t.onTimer)
}

func (t *rtspTunnel) onTimer() {
	switch t.stage {
	case alone:
		t.giveUp(wordTimeout)
	case bereft:
		t.fail(errBereft)
	case parting:
		t.ends()
	}
}

// giveUp ends a tunnel of one half.
func (t *rtspTunnel) giveUp(w word) {
	l, r := t.loop, t.waits
	t.found()
	t.remove()
	t.closed = true
	r.err = w
	if h := t.get; h != nil {
		r.status = 200
		h.leave()
	}
	if h := t.post; h != nil {
		if w == wordTimeout {
			r.status = troubleNoOther.status
			h.conn.Write(http1.AppendError(nil, time.Now(), r.status, troubleNoOther.text, false, false))
		}
		h.leave()
	}
	s := r.service
	s.errors[w]++
	if r.status != 0 {
		l.counters.Answered++
		s.requests[protocol(r.proto)][r.status/100]++
	}
	l.log(r)
}

// remove takes t out of the table.
func (t *rtspTunnel) remove() {
	t.timer.Stop()
	if t.stage != ended {
		t.stage = ended
		delete(t.loop.tunnels.all, t.key)
	}
}

// fail ends the tunnel because of what the player does.
func (t *rtspTunnel) fail(err error) {
	if t.stage == alone {
		t.giveUp(wordMalformed)
		return
	}
	t.remove()
	t.losePost()
	t.get.leave()
	t.finish(err)
}

// fromGet takes what comes on the connection of the GET: messages and frames as they are, or the
// POST.
func (t *rtspTunnel) fromGet(b []byte) (used int) {
	for used < len(b) && !t.paused && !t.closed {
		rest := b[used:]
		switch {
		case t.get.posts:
			n := t.fromPost(rest)
			if used += n; n == 0 {
				return used
			}
			continue
		case t.raw.within():
		case t.stage == alone && (rest[0] == '\r' || rest[0] == '\n'): // behind the head, from somebody who counts them differently
			used++
			continue
		case bytes.HasPrefix(rest, methodPost):
			n := t.innerPost(rest)
			if n == 0 {
				return used
			}
			used += n
			continue
		case bytes.HasPrefix(methodPost, rest):
			return used
		}
		n := t.raw.next(rest, &t.loop.tunnels.message)
		if n == 0 {
			break
		}
		switch t.stage {
		case alone:
			t.begin()
		case bereft:
			t.bereave()
		}
		t.push(rest[:n])
		used += n
	}
	if t.closed {
		return len(b)
	}
	return used
}

var methodPost = []byte("POST ")

// innerPost takes the head of a POST that comes on the connection of the GET. It returns 0 if
// it is not complete.
func (t *rtspTunnel) innerPost(b []byte) int {
	req := &t.loop.req
	n, err := http1.Limits{NoHost: true}.ParseRequest(b, req)
	switch {
	case err != nil, n > 0 && (!opensTunnel(req) || sessionCookie(req.Fields) != t.key.cookie):
		t.fail(errInner)
		return len(b)
	case n == 0:
		return 0
	}
	t.usePost(t.get)
	t.get.body = nil
	if req.Framing == http1.Chunked {
		t.get.body = new(http1.Body)
		t.get.body.Reset(req.Framing, req.ContentLength)
	}
	if t.stage == alone {
		t.begin()
	}
	return n
}

// fromPost takes base64.
func (t *rtspTunnel) fromPost(b []byte) (used int) {
	h := t.post
	for used < len(b) && !t.paused && !t.closed && t.post == h {
		p, done := b[used:min(len(b), used+decodeSize)], false
		if h.body == nil {
			used += len(p)
		} else {
			payload, n, last, err := h.body.Next(p)
			if err != nil {
				t.fail(errBase64)
				break
			}
			if used += n; n == 0 {
				return used
			}
			p, done = payload, last
		}
		var err error
		ts := &t.loop.tunnels
		ts.decoded, err = t.base64.Decode(ts.decoded[:0], p)
		t.raise(ts.decoded)
		switch {
		case t.closed:
		case err != nil:
			t.fail(errBase64)
		case done:
			t.postEnded()
		}
	}
	if t.closed || t.post != h && h != t.get {
		return len(b)
	}
	return used
}

// raise presents the messages that have come whole: between them there may be others that came
// by the GET.
func (t *rtspTunnel) raise(b []byte) {
	if t.part != nil {
		t.part = append(t.part, b...)
		b = t.part
	}
	at := 0
	for at < len(b) {
		n := t.posted.next(b[at:], &t.loop.tunnels.message)
		if n == 0 {
			break
		}
		t.push(b[at : at+n])
		at += n
	}
	switch {
	case at == len(b) || t.closed:
		t.part = nil
	case at > 0 || t.part == nil:
		t.part = append(t.part[:0], b[at:]...)
	}
}

// postEnded is the end of the POST, by the player.
func (t *rtspTunnel) postEnded() {
	if t.post == t.get { // in chunks, and what follows is as before
		t.losePost()
		t.bereave()
		return
	}
	t.losePost()
	switch t.stage {
	case alone:
		t.giveUp(wordCancelled)
	case paired:
		t.bereave()
	case parting:
		t.timer.Stop()
		t.ends()
	}
}

// framer finds where messages end, and frames.
type framer struct {
	demux rtsp.Demux
	seen  int  // bytes of a long frame
	lost  bool // it is not RTSP, and goes on as it comes
}

// within reports whether what comes next cannot be the beginning of anything.
func (f *framer) within() bool { return f.seen > 0 || f.lost }

// next returns the length of the message at the start of b; 0 if that is not complete, and the
// next call has more of it.
func (f *framer) next(b []byte, m *rtsp.Message) int {
	for !f.lost {
		k, n, err := f.demux.Next(b[f.seen:], m)
		if err != nil {
			f.lost = true
			break
		}
		if n == 0 {
			return 0
		}
		if f.seen += n; k != rtsp.Frame || f.demux.Last {
			n, f.seen = f.seen, 0
			return n
		}
	}
	f.seen = 0
	return len(b)
}

// leave ends the connection of a half that nobody needs any more, in good order.
func (h *half) leave() {
	h.tunnel = nil
	h.conn.Close()
}

func (h *half) OnData(b []byte) int {
	t := h.tunnel
	switch {
	case t == nil || t.closed:
		return len(b)
	case h == t.get:
		return t.fromGet(b)
	case t.stage == alone: // the POST is paused
		return 0
	}
	return t.fromPost(b)
}

func (h *half) OnEOF() {
	t := h.tunnel
	switch {
	case t == nil || t.closed:
	case h != t.get:
		t.postEnded()
	case t.stage == alone:
		t.giveUp(wordCancelled)
	case t.stage == paired && t.post != t.get:
		// A TEARDOWN may be on its way by the POST.
		t.stage = parting
		t.loop.Arm(&t.timer, lastWords, t.onTimer)
	default:
		t.stage = parting
		t.timer.Stop()
		t.ends()
	}
}

func (h *half) OnDrain() {
	if t := h.tunnel; t != nil && h == t.get {
		t.drained()
	}
}

func (h *half) OnClose(err error) {
	h.loop.relay.admission.leave(h.addr, h.verdict)
	t := h.tunnel
	switch {
	case t == nil:
	case t.stage == alone:
		t.giveUp(wordCancelled)
	case h == t.get:
		t.remove()
		t.losePost()
		t.finish(cmp.Or(t.err, err))
	default:
		t.postEnded()
	}
}

// Write and the methods below are those of End.
func (t *rtspTunnel) Write(b []byte) {
	if !t.closed {
		t.get.conn.Write(b)
	}
}

func (t *rtspTunnel) Pending() int  { return t.get.conn.Pending() }
func (t *rtspTunnel) HighMark() int { return t.get.conn.HighMark() }

func (t *rtspTunnel) Pause() {
	t.paused = true
	t.get.conn.Pause()
	if t.post != nil {
		t.post.conn.Pause()
	}
}

func (t *rtspTunnel) Resume() {
	if !t.paused || t.closed {
		return
	}
	t.paused = false
	t.get.conn.Resume()
	if t.post != nil {
		t.post.conn.Resume()
	}
	t.renew()
}

func (t *rtspTunnel) CloseWrite() {
	if !t.closed {
		t.get.conn.CloseWrite()
	}
}

func (t *rtspTunnel) Close() {
	if t.closed {
		return
	}
	t.closed = true
	t.remove()
	t.losePost()
	t.get.conn.Close()
}

func (t *rtspTunnel) Abort(err error) {
	if t.over {
		return
	}
	t.closed = true
	t.err = cmp.Or(t.err, err)
	t.remove()
	t.losePost()
	t.get.conn.Abort(err)
}
