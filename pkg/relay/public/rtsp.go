package public

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// Bounds of a player, besides those of a visitor and of pkg/rtsp.
const (
	maxFlight = 16 // requests that wait for their answer
	maxPlays  = 16 // RTSP sessions of one connection
)

// playPhase is where a player is. Closing and gone can follow any other.
type playPhase uint8

const (
	playIdle    playPhase = iota // no byte of the next message has come
	playReading                  // part of one has come
	playHeld                     // a request waits: for its site, or for a password to be checked
	playMoving                   // on the way to the loop of the service that its request is for
	playClosing                  // our end of stream is on its way; input is discarded
	playGone
)

// player is a visitor that speaks RTSP, whatever carries it, and the handler of that. It belongs to the
// loop of its connection, which is that of the service once it has one.
//
// The edge finds the camera, lets the player in and chooses transports; answers come from a server, which is
// the site at the other end of a stream, or the hub of the service. Answers go out in the order of the requests: while one
// is under way to the server, a request that the edge answers itself waits.
type player struct {
	client *client // whose count of admission is the player's to give back
	loop   *loop
	end    evloop.End
	conn   mover    // end, if it can go to another loop; nil: it cannot
	how    string   // "rtsp", "rtsps", "rtsp-http" or "rtsp-ws"
	bound  *service // the only one that end reaches; nil: any

	before, after *player // in the loop's list

	timer    evloop.Timer
	fires    int64 // when timer does; 0: it is stopped
	deadline int64 // of the phase
	moved    int64 // when the visitor was seen to take something, or had nothing to take
	taken    uint64
	written  uint64

	demux    rtsp.Demux
	service  *service // that has let it in; nil: none has
	host     string   // as in the stream's header
	server   rtspServer
	flight   []flight // in the order in which they came
	sessions []string // that are set up

	// Of a player that has its packets by UDP.
	tracks  []*rtpTrack
	setups  int   // that were answered
	playing bool  // a PLAY was
	heard   int64 // when something came
	cut     int   // bytes of a frame that are to come
	cutUDP  bool  // by UDP, for which it is too long

	phase   playPhase
	looks   uint8 // that have found no service, of a request that is held
	blocked bool  // end is paused until something has been taken or answered
	midway  bool  // the last piece of a frame that goes to the visitor has not come
	asked   bool  // a request has come
	eof     bool  // the visitor has sent its end of stream
	last    bool  // no more requests are taken

	// For the access log.
	began          int64
	received, sent uint64 // as they are counted for the service
	packets        Datagrams
	method, path   string // of the request that came furthest
	rank           rtspMethod
	status         int // of the last answer
	user           string
	err            word
	stream         *tunnel.Stream
}

// mover is an End that can go to another loop: a connection, or a WebSocket.
type mover interface {
	Pause()
	Resume()
	Move(to *evloop.Loop, f func()) // as that of evloop.Conn
}

// flight is a request that waits for its answer.
type flight struct {
	cseq    uint32
	method  rtspMethod
	session string    // of TEARDOWN
	track   *rtpTrack // of SETUP, by UDP
	at      int64
}

// rtspServer is what answers the requests of a player: a stream to the site, or the hub. All is on the loop of the
// service. It calls, and from within request as well:
//
//   - player.reply, once for each request, with its CSeq, and in their order;
//   - player.frames with what is played, while player.full says false; after it has said true, when drained is called;
//   - player.unblock when full has said true and there is room again;
//   - player.lost when it can go on no more. It is not called any more then, not even leave.
type rtspServer interface {
	// request takes a request that was let in: OPTIONS, DESCRIBE, SETUP, PLAY, PAUSE, GET_PARAMETER, SET_PARAMETER without a
	// body, or TEARDOWN, for a URL of the service. A SETUP has one transport, which is TCP. m is lent.
	request(m *rtsp.Message, cseq uint32)

	// take takes interleaved frames of the player, which are lent. A long one comes in pieces.
	take(b []byte)

	// full reports whether no more requests and frames should come.
	full() bool

	// drained tells that the player has room again.
	drained()

	// leave is the end of the player.
	leave()
}

// rtspMethod is a method that a server may be asked for.
type rtspMethod uint8

const (
	otherMethod rtspMethod = iota
	methodOptions
	methodGetParameter
	methodSetParameter
	methodTeardown
	methodDescribe
	methodPause
	methodSetup
	methodPlay
)

// rtspMethods in the order of what they say about a visit: the last one is logged.
var rtspMethods = [...]string{"", "OPTIONS", "GET_PARAMETER", "SET_PARAMETER", "TEARDOWN", "DESCRIBE", "PAUSE", "SETUP", "PLAY"}

// public is what a camera is asked for. ANNOUNCE, RECORD and SET_PARAMETER would change something there.
const rtspPublic = "OPTIONS, DESCRIBE, SETUP, PLAY, PAUSE, TEARDOWN, GET_PARAMETER"

var (
	troubleCSeq      = &trouble{400, "A request needs a CSeq."}
	troubleURL       = &trouble{400, "The URL of this request cannot be read."}
	troubleMessage   = &trouble{400, "This is not RTSP 1.0."}
	troubleRTSP      = &trouble{501, "This method is not known here."}
	troubleReadOnly  = &trouble{405, "Cameras are watched here, and not changed."}
	troubleSession   = &trouble{454, "This session is not one of this connection."}
	troubleOther     = &trouble{455, "Another camera is set up on this connection."}
	troubleTransport = &trouble{461, "Transport is by interleaved TCP only."}
	troubleEncrypted = &trouble{404, "This camera is reached by rtsps."}
	troubleCamera    = &trouble{502, "The camera gave no valid answer."}
	troubleGone      = &trouble{502, "The camera has closed the connection."}
)

// play makes a player of a visitor of a listener of RTSP.
func (v *visitor) play() {
	v.phase = gone
	v.stop()
	v.loop.remove(v)
	how := "rtsp"
	if v.secure {
		how = "rtsps"
	}
	c := v.client.carried() // v itself is done with
	c.verdict = v.verdict
	v.loop.serveRTSP(v.conn, c, how, nil)
}

// serveRTSP serves RTSP on end, whose input is unread. The count of admission of c is given back when end has
// closed. how is for the access log; bound is the only service that can be reached, nil: any, and then end is a mover, as is the
// visitor's connection.
func (l *loop) serveRTSP(end evloop.End, c *client, how string, bound *service) {
	p := &player{client: c, loop: l, end: end, how: how, bound: bound, began: l.since()}
	if conn, ok := end.(mover); ok && bound == nil {
		p.conn = conn
	}
	p.moved = p.began
	l.addPlayer(p)
	p.await(headTime)
	end.SetHandler(p)
}

// addPlayer and removePlayer keep the list of the loop's players.
func (l *loop) addPlayer(p *player) {
	if p.after = l.players; p.after != nil {
		p.after.before = p
	}
	l.players = p
}

func (l *loop) removePlayer(p *player) {
	if p.before != nil {
		p.before.after = p.after
	} else {
		l.players = p.after
	}
	if p.after != nil {
		p.after.before = p.before
	}
	p.before, p.after = nil, nil
}

// drainPlayers is drain for players: those who watch something are let be.
func (l *loop) drainPlayers(all bool) (newcomers int) {
	for p := l.players; p != nil; {
		next := p.after
		switch {
		case p.phase > playHeld || p.busy():
		case p.phase == playIdle && p.asked, all:
			p.close()
		default:
			newcomers++
		}
		p = next
	}
	return newcomers
}

// busy reports whether the player waits for an answer or watches something.
func (p *player) busy() bool { return len(p.flight) > 0 || len(p.sessions) > 0 }

// await gives the current phase d of time.
func (p *player) await(d time.Duration) {
	p.deadline = p.loop.since() + int64(d)
	if p.fires == 0 || p.fires > p.deadline {
		p.arm(d)
	}
}

// arm arms the timer, as that of a visitor.
func (p *player) arm(d time.Duration) {
	p.fires = p.loop.since() + int64(d)
	p.loop.Arm(&p.timer, d, p.onTimer)
}

func (p *player) stop() {
	p.timer.Stop()
	p.fires = 0
}

func (p *player) onTimer() {
	p.fires = 0
	if left := p.deadline - p.loop.since(); left > 0 {
		p.arm(time.Duration(left))
		return
	}
	switch p.phase {
	case playReading:
		if p.blocked { // it is us who wait
			p.await(headTime)
			return
		}
		p.loop.counters.Rejected++
		p.refuse(troubleSlow)
	case playHeld:
		p.release()
	case playIdle:
		if p.busy() || p.blocked {
			p.check()
			return
		}
		p.close()
	case playClosing:
		// Whoever still takes what we have sent gets the time for it.
		if p.taking() {
			p.await(bodyTime)
			return
		}
		p.end.Abort(errDeadline)
	}
}

// check ends a player that has been busy and has missed a deadline.
func (p *player) check() {
	now := p.loop.since()
	if p.taking() || p.end.Pending() == 0 {
		p.moved = now
	}
	switch {
	case time.Duration(now-p.moved) >= stuckTime:
		p.err = wordTimeout
		p.end.Abort(errDeadline)
		return
	case len(p.flight) > 0 && p.end.Pending() == 0 && time.Duration(now-p.flight[0].at) >= p.loop.relay.ResponseTimeout:
		p.fail(troubleSilent)
		return
	case len(p.tracks) > 0 && len(p.sessions) > 0 && time.Duration(now-p.heard) >= rtpSilence:
		p.err = wordTimeout
		p.close()
		return
	}
	p.await(busyCheck)
}

// taking reports whether the visitor has taken something since the last look.
func (p *player) taking() bool {
	pending := uint64(p.end.Pending())
	if taken := p.written - min(p.written, pending); pending > 0 && taken != p.taken {
		p.taken = taken
		return true
	}
	return false
}

// rest waits for the next message.
func (p *player) rest() {
	switch {
	case p.phase != playIdle && p.phase != playReading:
	case !p.busy() && (p.last || p.eof || p.loop.relay.draining.Load()):
		p.close()
	case p.phase == playReading:
	case p.busy() || p.blocked:
		p.await(busyCheck)
	case !p.asked:
		p.await(headTime - time.Duration(p.loop.since()-p.began))
	default: // frames do not count
		p.await(idleTime - time.Duration(p.loop.since()-p.heard))
	}
}

// block stops the visitor's bytes until unblock.
func (p *player) block() {
	p.blocked = true
	p.end.Pause()
}

func (p *player) unblock() {
	if p.blocked {
		p.blocked = false
		if p.phase <= playReading {
			p.end.Resume()
		}
	}
}

// OnData takes requests and frames.
func (p *player) OnData(b []byte) (used int) {
	l := p.loop
	m := &l.rtspIn
	for used < len(b) {
		switch p.phase {
		case playClosing, playGone:
			return len(b)
		case playHeld, playMoving:
			return used
		}
		if p.full() || p.server != nil && p.server.full() {
			p.block()
		}
		if p.blocked {
			return used
		}
		k, n, err := p.demux.Next(b[used:], m)
		if err != nil {
			p.reject(err, m)
			return len(b)
		}
		switch k {
		case rtsp.None:
			if p.phase == playIdle {
				p.phase = playReading
				p.await(headTime)
			}
			return used
		case rtsp.Frame:
			p.count(n)
			if p.server != nil {
				p.server.take(b[used : used+n])
			}
		case rtsp.Request:
			if !p.request(m) {
				return used
			}
			p.count(n)
		}
		// A response would be one to a server that asks players, which the edge does not let it do.
		used += n
		if p.phase <= playReading {
			p.phase = playIdle
			p.rest()
		}
	}
	return used
}

// count counts bytes of the visitor.
func (p *player) count(n int) {
	p.received += uint64(n)
	if p.service != nil {
		p.service.received += uint64(n)
	}
}

func (p *player) OnEOF() {
	p.eof = true
	if p.phase <= playReading && (len(p.sessions) > 0 || len(p.flight) == 0) {
		p.close()
	} // otherwise it may want its answers
}

func (p *player) OnDrain() {
	if p.server != nil {
		p.server.drained()
	}
	p.unblock()
}

func (p *player) OnClose(err error) {
	if p.err == fine && err != nil && p.phase != playClosing {
		p.err = wordCancelled
	}
	if p.phase == playMoving { // p.loop is not the one that runs this
		p.phase = playGone
	} else {
		p.phase = playGone
		p.stop()
		p.loop.removePlayer(p)
		p.leave()
	}
	p.loop.relay.admission.leave(p.client.addr.Addr(), p.client.verdict)
}

// close ends the player in good order: what is queued goes out, then the end of stream.
func (p *player) close() {
	if p.phase >= playClosing {
		return
	}
	p.phase = playClosing
	p.leave()
	p.taking()
	p.end.CloseWrite()
	p.end.Resume()
	p.await(farewell)
}

// request takes a request. It reports false if that is to be read again.
func (p *player) request(m *rtsp.Message) bool {
	if p.last {
		return true
	}
	cseq, ok := m.CSeq()
	p.asked = true
	p.heard = p.loop.since()
	method := rtspMethod(max(0, slices.Index(rtspMethods[:], string(m.Method))))
	switch {
	case !ok:
		return p.turnDown(cseq, troubleCSeq)
	case p.client.verdict == sayFull:
		p.last = true
		return p.turnDown(cseq, troubleFull)
	case method == methodSetParameter && len(m.Body) > 0, string(m.Method) == "ANNOUNCE", string(m.Method) == "RECORD":
		return p.turnDown(cseq, troubleReadOnly, rtspField("Allow", rtspPublic))
	case method == otherMethod:
		return p.turnDown(cseq, troubleRTSP, rtspField("Allow", rtspPublic))
	case len(p.sessions) == 0 && method == methodOptions:
		return p.answer(cseq, 200, "OK", rtspField("Public", rtspPublic))
	case len(p.sessions) == 0 && !p.setsUp() && (method == methodPlay || method == methodPause || method == methodTeardown):
		return p.turnDown(cseq, troubleSession)
	case len(p.flight) >= maxFlight:
		p.block()
		return false
	}
	u, err := rtsp.ParseURL(m.URL)
	if err != nil {
		p.loop.counters.Rejected++
		return p.turnDown(cseq, troubleURL)
	}
	p.note(m.Method, method, u.Path)
	d := p.decide(u, m)
	switch d.action {
	case doAnswer:
		fields := make([]rtsp.Field, len(d.fields))
		for i, f := range d.fields {
			fields[i] = rtsp.Field(f)
		}
		return p.turnDown(cseq, d.trouble, fields...)
	case doMove:
		p.move(d.service.session.loop)
		return false
	case doHold:
		p.wait(d.hold(p.release))
		return false
	case doLook:
		p.look()
		return false
	}
	if d.service != p.service {
		if len(p.flight) > 0 { // they are for the service before
			p.block()
			return false
		}
		p.host = string(p.loop.host)
		if !isName(p.loop.host) && d.service.host != "" && d.service.host[0] != '*' {
			p.host = d.service.host
		}
		p.enter(d.service, d.user)
		p.note(m.Method, method, u.Path)
	}
	p.looks = 0
	f := flight{cseq: cseq, method: method, at: p.loop.since()}
	if method == methodSetup {
		if t := p.transport(m, &f); t != nil {
			return p.turnDown(cseq, t)
		}
	}
	if p.server == nil {
		var t *trouble
		if p.server, t = p.service.play(p); t != nil {
			if f.track != nil {
				f.track.leave()
			}
			p.last = true
			return p.turnDown(cseq, t)
		}
	}
	if method == methodTeardown {
		f.session, _ = rtsp.ParseSession(m.Get("session"))
	}
	p.flight = append(p.flight, f)
	switch {
	case u.Scheme == "" && u.Path != "*":
		u.Scheme, u.Authority = "rtsp", p.host
		fallthrough
	case strings.IndexByte(string(m.URL), '@') >= 0:
		m.URL = []byte(u.String())
	}
	p.server.request(m, cseq)
	return true
}

// note keeps what the access log tells about the requests of the player.
func (p *player) note(name []byte, method rtspMethod, path string) {
	if method >= p.rank {
		p.rank, p.path, p.method = method, path, rtspMethods[method]
		if method == otherMethod {
			p.method = string(name[:min(len(name), logMethod+1)])
		}
	}
}

// setsUp reports whether a SETUP waits for its answer.
func (p *player) setsUp() bool {
	return slices.ContainsFunc(p.flight, func(f flight) bool { return f.method == methodSetup })
}

// decide says what becomes of a request, as loop.decide does: doServe comes with a service that has
// let the player in.
func (p *player) decide(u rtsp.URL, m *rtsp.Message) decision {
	l, r, c := p.loop, p.loop.relay, p.client
	path := []byte(u.Path)
	if len(path) == 0 {
		path = []byte{'/'}
	}
	l.host = appendHost(l.host[:0], []byte(u.Authority))
	if len(p.sessions) > 0 || p.setsUp() {
		// What is under way goes on, whoever has the address by now.
		if !p.service.covers(l.host, path) && u.Path != "*" {
			return decision{action: doAnswer, service: p.service, trouble: troubleOther}
		}
		return decision{service: p.service}
	}
	s := p.bound
	if s != nil {
		if !s.covers(l.host, path) {
			return decision{action: doAnswer, trouble: troubleService}
		}
		if s.removed {
			return decision{action: doAnswer, trouble: troubleAway}
		}
		if !isName(l.host) {
			l.host = append(l.host[:0], c.sni...)
		}
	} else {
		routes := r.routes.Load()
		if !isName(l.host) && c.sni != "" && routes.any(l.host, c.secure) == nil {
			l.host = append(l.host[:0], c.sni...)
		}
		if c.secure && routes.passed(l.host) != nil {
			return decision{action: doAnswer, trouble: troubleElsewhere}
		}
		if routes.divided(l.host, c.secure) && (ambiguous(path) || routes.misleads(l.host, path, c.secure)) {
			l.counters.Rejected++
			return decision{action: doAnswer, trouble: troublePath}
		}
		s = routes.find(l.host, path, c.secure)
		if s == nil || !s.isCamera() {
			return p.nobody(routes, string(l.host), string(path))
		}
	}
	switch {
	case s.session.loop != l:
		return decision{action: doMove, service: s}
	case s.session.group.undecided:
		return decision{action: doHold, service: s}
	case s == p.service:
		return decision{service: s}
	case s.session.crowded(c.addr.Addr()):
		return decision{action: doAnswer, service: s, trouble: troubleFull}
	}
	return p.admit(s, m)
}

// nobody decides about a request for a camera that is not there.
func (p *player) nobody(routes *table, host, path string) decision {
	r, secure := p.loop.relay, p.client.secure
	switch {
	case routes.allowedCamera(host, path, secure) && r.hasJustBegun():
		return decision{action: doLook}
	case routes.allowedCamera(host, path, secure):
		return decision{action: doAnswer, trouble: troubleAway}
	case !secure:
		if s := routes.find([]byte(host), []byte(path), true); s != nil && s.isCamera() {
			return decision{action: doAnswer, trouble: troubleEncrypted}
		}
	}
	return decision{action: doAnswer, trouble: troubleService}
}

// admit has the policy of s decide about the player.
func (p *player) admit(s *service, m *rtsp.Message) decision {
	l, c := p.loop, p.client
	pol := s.policy.Load()
	if pol == nil {
		return decision{service: s}
	}
	user := ""
	t, fields := pol.meet(c, l.since())
	if t == nil && pol.authority != nil {
		t = pol.authority.check(c, string(l.host), time.Now())
	}
	if t == nil && pol.users != nil {
		d := pol.users.authenticate(l, c.addr.Addr(), m)
		if d.action == doHold {
			return d
		}
		t, fields, user = d.trouble, d.fields, d.user
	}
	if t == nil && s.full(pol, c.addr.Addr()) {
		t = troubleCrowd
	}
	if t != nil {
		l.counters.Refused++
		return decision{action: doAnswer, service: s, trouble: t, fields: fields}
	}
	return decision{service: s, user: user}
}

// covers reports whether a URL with that host and path can be one of s, which the player has already. Not
// all players know the name.
func (s *service) covers(host, path []byte) bool {
	return (!isName(host) || relay.MatchHost(s.host, string(host))) && relay.MatchPath(s.prefix, string(path))
}

// isName reports whether host is neither empty nor an address.
func isName(host []byte) bool {
	if len(host) == 0 {
		return false
	}
	_, err := netip.ParseAddr(string(host))
	return err != nil
}

// enter counts the player as a visitor of s.
func (p *player) enter(s *service, user string) {
	p.leave()
	p.service, p.user = s, user
	s.enter(p.client.addr.Addr())
	s.total++
	p.began, p.received, p.sent, p.rank, p.packets = p.loop.since(), 0, 0, 0, Datagrams{}
}

// leave ends the visit of the service, if there is one, and writes the line of what was.
func (p *player) leave() {
	if srv := p.server; srv != nil {
		p.server = nil
		srv.leave()
	}
	p.endTracks()
	p.flight, p.sessions, p.midway = nil, nil, false
	if s := p.service; s != nil {
		p.service = nil
		s.leave(p.client.addr.Addr())
		s.errors[p.err]++
		p.log(s)
	} else if p.asked && p.status != 0 && p.phase >= playClosing {
		if p.err != fine {
			p.loop.refused[p.err]++
		}
		p.log(nil)
	}
	p.status, p.err, p.stream, p.user = 0, fine, nil, ""
}

func (p *player) log(s *service) {
	l := p.loop
	if l.relay.AccessLog == nil {
		return
	}
	a := &l.access
	a.request = a.request[:0]
	if p.method != "" {
		a.request = appendText(a.request, "method", p.method, logMethod)
	}
	if p.path != "" {
		a.request = appendText(a.request, "path", p.path, logPath)
	}
	c := p.client
	l.log(&record{
		service: s, visitor: c.addr, user: p.user, subject: c.subject(), proto: p.how, tls: c.tls, request: a.request,
		status: p.status, err: p.err, received: p.received, sent: p.sent, packets: p.packets, began: p.began, stream: p.stream,
	})
}

// move takes the player to another loop, where the request is read again.
func (p *player) move(to *loop) {
	if p.conn == nil { // who made it has seen to it that the service is here
		p.refuse(troubleAway)
		return
	}
	if len(p.flight) > 0 {
		p.block()
		return
	}
	p.leave()
	p.phase = playMoving
	p.stop()
	p.loop.removePlayer(p)
	p.conn.Pause()
	p.conn.Move(to.Loop, func() {
		p.loop = to
		to.addPlayer(p)
		p.moved = to.since()
		p.began = p.moved
		p.phase = playReading
		p.await(headTime)
		p.conn.Resume()
	})
}

// wait keeps a request until release is called, as whoever has it queued will do, or else until the
// next look.
func (p *player) wait(queued bool) {
	if !queued {
		p.look()
		return
	}
	p.phase = playHeld
	p.end.Pause()
	p.stop()
}

// look keeps a request, which is read again soon, and then later and later.
func (p *player) look() {
	p.phase = playHeld
	p.end.Pause()
	p.await(holdTime << p.looks)
	p.looks = min(p.looks+1, 3)
}

// release has a request that was held read again, if it still is.
func (p *player) release() {
	if p.phase == playHeld {
		p.phase = playReading
		p.await(headTime)
		p.blocked = false
		p.end.Resume()
	}
}

// transport has a SETUP ask for what there is: the first alternative of the player that can be had.
func (p *player) transport(m *rtsp.Message, f *flight) *trouble {
	for i := range m.Fields {
		if !rtsp.Is(m.Fields[i].Name, "transport") {
			continue
		}
		list, err := rtsp.ParseTransport(m.Fields[i].Value)
		if err != nil {
			return troubleMessage
		}
		for _, t := range list {
			ok := t.TCP && !t.Multicast
			switch {
			case t.Mode == "RECORD":
				continue
			case ok:
				t = rtsp.Transport{Protocol: t.Protocol, TCP: true, Unicast: true, Interleaved: t.Interleaved, HasInterleaved: t.HasInterleaved}
			default:
				t, ok = p.byUDP(t, f)
			}
			if ok {
				m.Fields[i].Value = []byte(t.String())
				return nil
			}
		}
	}
	return troubleTransport
}

// rtspStatus is that of an answer of ours, of which some are not for RTSP.
func rtspStatus(t *trouble) int {
	switch t.status {
	case 421:
		return 404
	case 429:
		return 503
	}
	return t.status
}

func rtspField(name, value string) rtsp.Field { return rtsp.Field(field(name, value)) }

// turnDown answers a request with what is wrong. It reports false if the request has to wait for its turn.
func (p *player) turnDown(cseq uint32, t *trouble, fields ...rtsp.Field) bool {
	if !p.free() {
		return false
	}
	p.err = t.word()
	if t.status == 503 && !slices.ContainsFunc(fields, func(f rtsp.Field) bool { return rtsp.Is(f.Name, "retry-after") }) {
		fields = append(fields, rtspField("Retry-After", retryAfter))
	}
	p.loop.counters.Answered++
	return p.answer(cseq, rtspStatus(t), t.text, fields...)
}

// free reports whether the edge may answer a request now; or else that one waits.
func (p *player) free() bool {
	if len(p.flight) > 0 || p.midway {
		p.block()
		return false
	}
	return true
}

// answer answers a request in our words, which players show.
func (p *player) answer(cseq uint32, status int, words string, fields ...rtsp.Field) bool {
	if !p.free() {
		return false
	}
	p.say(cseq, status, words, fields)
	return true
}

func (p *player) say(cseq uint32, status int, words string, fields []rtsp.Field) {
	b := append(p.loop.out, "RTSP/1.0 "...)
	b = append(append(strconv.AppendInt(b, int64(status), 10), ' '), words...)
	b = append(b, "\r\nCSeq: "...)
	b = append(strconv.AppendUint(b, uint64(cseq), 10), "\r\n"...)
	for _, f := range fields {
		b = append(append(append(append(b, f.Name...), ": "...), f.Value...), "\r\n"...)
	}
	b = append(b, "\r\n"...)
	p.status = status
	if status < 400 {
		p.err = fine
	}
	p.write(b)
	p.loop.out = b[:0]
}

// write sends b, whole messages or frames.
func (p *player) write(b []byte) {
	p.end.Write(b)
	p.written += uint64(len(b))
	p.sent += uint64(len(b))
	if p.service != nil {
		p.service.sent += uint64(len(b))
	}
}

// reject answers what is no RTSP, and closes.
func (p *player) reject(err error, m *rtsp.Message) {
	p.loop.counters.Rejected++
	t := troubleMessage
	if e, ok := err.(*rtsp.Error); ok && e.Status != 400 {
		t = &trouble{e.Status, rtsp.Reason(e.Status)}
	}
	p.asked = true
	cseq, _ := m.CSeq()
	p.endWith(t, cseq)
}

// refuse says why the player is ended.
func (p *player) refuse(t *trouble) { p.endWith(t, 0) }

func (p *player) endWith(t *trouble, cseq uint32) {
	p.err = t.word()
	if len(p.flight) == 0 && !p.midway {
		p.say(cseq, rtspStatus(t), t.text, nil)
	}
	p.close()
}

// fail answers the requests that wait, and ends the player. The server is not asked any more.
func (p *player) fail(t *trouble) {
	p.err = t.word()
	var fields []rtsp.Field
	if t.status == 503 {
		fields = append(fields, rtspField("Retry-After", retryAfter))
	}
	for _, f := range p.flight {
		if p.midway {
			break
		}
		p.say(f.cseq, rtspStatus(t), t.text, fields)
	}
	p.close()
}

// lost is told that the server can go on no more; nil says that this is its end in good order.
func (p *player) lost(t *trouble) {
	p.server = nil
	switch {
	case t != nil:
		p.fail(t)
	case len(p.flight) > 0:
		p.fail(troubleGone)
	default:
		p.close()
	}
}

// unfit are the fields of an answer that visitors do not get: they are about the camera, or the edge has its own.
var unfit = [...]string{"CSeq", "Server", "Via", "Connection", "WWW-Authenticate", "Authentication-Info", "X-Server-IP-Address", "Content-Length"}

// private are the fields of a request that are for the edge.
var private = [...]string{"Authorization", "Connection", "Content-Length"}

func isOne(name []byte, of []string) bool {
	if len(name) > 6 && rtsp.Is(name[:6], "Proxy-") {
		return true
	}
	return slices.ContainsFunc(of, func(s string) bool { return rtsp.Is(name, s) })
}

// reply answers a request of the player. What it is given is lent.
func (p *player) reply(cseq uint32, status int, fields []rtsp.Field, body []byte) {
	i := slices.IndexFunc(p.flight, func(f flight) bool { return f.cseq == cseq })
	if i < 0 || p.phase >= playClosing {
		return
	}
	f := p.flight[i]
	if status == 401 || status == 407 { // of the camera, whose password is not the visitor's matter
		p.fail(troubleCamera)
		return
	}
	if status >= 200 {
		p.flight = slices.Delete(p.flight, i, i+1)
	}
	l := p.loop
	out := append(l.rtspOut[:0], rtsp.Field{Name: nameCSeq, Value: strconv.AppendUint(nil, uint64(cseq), 10)})
	for _, f := range fields {
		if !isOne(f.Name, unfit[:]) {
			out = append(out, f)
		}
	}
	l.rtspOut = out
	switch {
	case status < 200:
	case status < 300:
		if !p.succeeded(f, out) {
			p.flight = slices.Insert(p.flight, i, f) // fail answers it
			p.fail(troubleCamera)
			return
		}
	case f.track != nil:
		f.track.leave()
	}
	if p.status = status; status < 400 {
		p.err = fine
	}
	l.out = rtsp.AppendResponse(l.out, status, out, body)
	p.write(l.out)
	l.out = l.out[:0]
	p.unblock()
	p.rest()
}

var nameCSeq = []byte("CSeq")

// succeeded notes what an answer has changed. It reports false if a SETUP for UDP was not answered as it has to be.
func (p *player) succeeded(f flight, fields []rtsp.Field) bool {
	switch f.method {
	case methodSetup:
		good := f.track == nil
		for i := range fields {
			switch name := fields[i].Name; {
			case rtsp.Is(name, "session"):
				id, timeout := rtsp.ParseSession(fields[i].Value)
				if !slices.Contains(p.sessions, id) && len(p.sessions) < maxPlays {
					p.sessions = append(p.sessions, id)
				}
				if f.track != nil {
					fields[i].Value = fmt.Appendf(nil, "%s;timeout=%d", id, int(min(timeout, rtpSilence).Seconds()))
				}
			case rtsp.Is(name, "transport"):
				list, err := rtsp.ParseTransport(fields[i].Value)
				if err != nil {
					continue
				}
				t := list[0]
				t.Source, t.Destination = "", ""
				if f.track != nil {
					t, good = f.track.answered(t)
				}
				fields[i].Value = []byte(t.String())
			}
		}
		if !good {
			return false
		}
		p.setups++
		p.tracks = slices.DeleteFunc(p.tracks, func(t *rtpTrack) bool { return t.player == nil })
		if f.track != nil {
			p.tracks = append(p.tracks, f.track)
		}
	case methodPlay:
		p.playing = true
	case methodTeardown:
		if i := slices.Index(p.sessions, f.session); i >= 0 {
			p.sessions = slices.Delete(p.sessions, i, i+1)
		} else if f.session == "" {
			p.sessions = nil
		}
		if len(p.sessions) == 0 {
			p.setups, p.playing = 0, false
			for _, t := range p.tracks {
				t.leave() // it stays in the list, for what still comes
			}
		}
	}
	return true
}

// frames sends interleaved frames, whole ones or pieces in order, which are lent.
func (p *player) frames(b []byte) {
	switch {
	case p.phase >= playClosing:
	case len(p.tracks) == 0:
		p.write(b)
	default:
		p.deal(b)
	}
}

// full reports whether the player has so much queued that frames have to wait for rtspServer.drained.
func (p *player) full() bool { return p.end.Pending() > p.end.HighMark() }

// play makes the server of a player, which has been let in.
func (s *service) play(p *player) (rtspServer, *trouble) {
	if s.camera.FanOut {
		return s.share(p), nil
	}
	st, err := s.openStream(p.client.addr, "rtsp", p.host)
	if err != nil {
		return nil, openTrouble(err)
	}
	r := &rtspStream{Stream: st, player: p, view: cameraView{tally: &s.cam}}
	p.stream = st
	st.SetHandler(r)
	return r, nil
}

// rtspStream is a stream to a camera for one player alone, and its handler.
type rtspStream struct {
	*tunnel.Stream
	player *player // nil: it has left
	demux  rtsp.Demux
	view   cameraView
	timer  evloop.Timer // of the end
}

func (r *rtspStream) request(m *rtsp.Message, cseq uint32) {
	l := r.player.loop
	r.view.ask(m, cseq)
	fields := m.Fields[:0]
	for _, f := range m.Fields {
		if !isOne(f.Name, private[:]) {
			fields = append(fields, f)
		}
	}
	l.up = rtsp.AppendRequest(l.up[:0], m.Method, m.URL, fields, m.Body)
	r.Write(l.up)
	l.up = l.up[:0]
}

func (r *rtspStream) take(b []byte) { r.Write(b) }
func (r *rtspStream) full() bool    { return r.Pending() > r.HighMark() }
func (r *rtspStream) drained()      { r.Resume() }

// leave ends the stream after what is queued, a TEARDOWN perhaps.
func (r *rtspStream) leave() {
	l := r.player.loop
	r.player = nil
	r.view.over()
	r.Close()
	l.Arm(&r.timer, farewell, func() { r.Reset(tunnel.CodeCancelled) })
}

// OnData takes what the camera sends: frames are passed on as many at a time as there are.
func (r *rtspStream) OnData(b []byte) (used int) {
	from := 0 // of frames that were not passed on
	for used < len(b) && r.player != nil {
		p := r.player
		m := &p.loop.rtspBack
		k, n, err := r.demux.Next(b[used:], m)
		if err != nil {
			p.loop.counters.Malformed++
			p.frames(b[from:used])
			r.give(troubleCamera)
			return len(b)
		}
		if k == rtsp.None {
			break
		}
		if k != rtsp.Frame {
			p.frames(b[from:used])
			from = used + n
			if k == rtsp.Response {
				if cseq, ok := m.CSeq(); ok {
					if i := slices.IndexFunc(p.flight, func(f flight) bool { return f.cseq == cseq }); i >= 0 {
						r.view.answer(p.flight[i].method, cseq, m)
					}
					p.reply(cseq, m.Status, m.Fields, m.Body)
				}
			}
		} else {
			r.view.frame(p.loop.since(), &r.demux, b[used:used+n])
			waited := p.midway
			if p.midway = !r.demux.Last; waited && !p.midway {
				p.unblock()
			}
		}
		used += n
	}
	p := r.player
	if p == nil {
		return len(b)
	}
	if from < used {
		p.frames(b[from:used])
	}
	if p.full() {
		r.Pause()
	}
	return used
}

func (r *rtspStream) OnEOF() { r.give(nil) }

func (r *rtspStream) OnDrain() {
	if r.player != nil {
		r.player.unblock()
	}
}

func (r *rtspStream) OnClose(err error) {
	r.timer.Stop()
	if p := r.player; p != nil {
		r.player = nil
		r.view.over()
		t := (*trouble)(nil)
		if err != nil {
			t = streamTrouble(err)
		}
		p.lost(t)
	}
}

// give ends the stream, and tells the player.
func (r *rtspStream) give(t *trouble) {
	if p := r.player; p != nil {
		r.leave()
		p.lost(t)
	}
}
