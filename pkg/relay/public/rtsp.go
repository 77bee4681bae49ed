package public

import (
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/evloop"
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

	place[*player]        // in the loop's list
	id             uint64 // see loop.number

	due     deadline // of the phase
	moved   int64    // when the visitor was seen to take something, or had nothing to take
	taken   uint64
	written uint64

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
	v.due.stop()
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
	p := &player{client: c, loop: l, end: end, how: how, bound: bound, began: l.since(), id: l.number()}
	if conn, ok := end.(mover); ok && bound == nil {
		p.conn = conn
	}
	p.moved = p.began
	l.addPlayer(p)
	p.await(headTime)
	end.SetHandler(p)
}

// addPlayer and removePlayer keep the list of the loop's players.
func (l *loop) addPlayer(p *player)    { push(&l.players, p) }
func (l *loop) removePlayer(p *player) { take(&l.players, p) }

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
func (p *player) await(d time.Duration) { p.due.set(p.loop, d, p) }

func (p *player) onTimer() {
	if !p.due.reached(p.loop, p) {
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
		p.due.stop()
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
