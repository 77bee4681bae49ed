package public

import (
	"bytes"
	"net/netip"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/websocket"
)

// RTSP over WebSocket is that of ONVIF's Streaming Specification: the subprotocol
// rtsp.onvif.org, whose binary messages have in them what RTSP over TCP has. The messages mean
// nothing by themselves, but some players written for browsers look for RTSP at the beginning
// of each. So what goes out in a turn is one message, which ends where one of RTSP does.

const socketProtocol = "rtsp.onvif.org"

const (
	maxSocketGather = 4 + 1<<16 // bytes of a message: those of the largest one of RTSP, or frame
	maxSocketSpare  = 64        // buffers that a loop keeps for the next turn
)

var (
	troubleSocket        = &trouble{400, "This is no request for a WebSocket."}
	troubleOrigin        = &trouble{403, "This camera is not shown on pages of other servers."}
	troubleSocketVersion = &trouble{426, "This version of WebSocket is not spoken here."}
)

// rtspSocket is an End that is made of a WebSocket.
type rtspSocket struct {
	inflow
	relay    *Relay
	conn     evloop.End // a connection, or a stream of HTTP/2
	addr     netip.Addr
	verdict  verdict // of admission, about the connection
	frames   websocket.Decoder
	out      []byte // what has been written since the turn began, behind room for a header; nil: nothing
	sent     framer // of what goes out
	woken    bool   // flush comes at the end of this turn
	finished bool   // our Close has been sent
}

// socket takes a request for a WebSocket of a camera; if s is nil, of any camera. Some players
// ask for one path, whatever the camera's is.
func (v *visitor) socket(s *service, req *http1.Request) {
	if v.eof {
		v.close()
		return
	}
	key, err := websocket.CheckRequest(func(name string) string { return joined(req.Fields, name) })
	if !v.loop.takesSocket(v, s, req, err) {
		return
	}
	v.conn.Write(websocket.AppendResponse(nil, key, socketProtocol))
	w := v.loop.newSocket(v.conn, &v.client, v.verdict)
	v.handOver(w)
	v.loop.tunnels.serve(w, v.client.carried(), "rtsp-ws", s)
}

// socket is that of visitor, for a request of HTTP/2 (RFC 8441): browsers make it on a connection by which
// they have something of the host already.
func (st *stream2) socket(s *service, req *http1.Request) {
	c, l := st.who(), st.w.v.loop
	if !l.takesSocket(st, s, req, nil) {
		return
	}
	st.finish()
	st.leave()
	st.Respond(&http1.Response{Minor: 1, Status: 101, ContentLength: -1, Fields: []http1.Field{field("sec-websocket-protocol", socketProtocol)}}, false)
	w := l.newSocket(st.Stream, c, uncounted)
	st.SetHandler(w)
	st.Resume()
	l.tunnels.serve(w, c.carried(), "rtsp-ws", s)
}

func (l *loop) newSocket(end evloop.End, c *client, verdict verdict) *rtspSocket {
	w := &rtspSocket{relay: l.relay, conn: end, addr: c.addr.Addr(), verdict: verdict}
	w.loop, w.end = l, w
	w.frames.Masked = true
	return w
}

// takesSocket reports whether a request for a WebSocket, of which the handshake says err, is in order. If not, it
// has been answered.
func (l *loop) takesSocket(f front, s *service, req *http1.Request, err error) bool {
	refuse := func(t *trouble, fields ...http1.Field) bool {
		if v, ok := f.(*visitor); ok {
			v.last = true
		}
		l.logOwn(f.who(), req, s, t)
		f.answer(t, fields...)
		return false
	}
	switch {
	case string(http1.Get(req.Fields, "sec-websocket-version")) != "13":
		return refuse(troubleSocketVersion, field("Sec-WebSocket-Version", "13"))
	case err != nil || string(req.Method) != "GET" || req.Framing != http1.NoBody:
		return refuse(troubleSocket)
	case !mayShow(s, req):
		return refuse(troubleOrigin)
	}
	return true
}

// mayShow reports whether the page that has asked for the WebSocket, if it is one, may have it.
// Browsers let any page ask, from wherever whoever looks at it is and with his certificate
// (rfc6455#section-10.2). So a page of another host is refused where that is what lets him in.
// Where nobody is kept out, or a password is asked for in RTSP, it makes no difference.
func mayShow(s *service, req *http1.Request) bool {
	origin := http1.Get(req.Fields, "origin")
	if origin == nil {
		return true
	}
	_, authority, _ := bytes.Cut(origin, []byte("://"))
	if len(authority) > 0 && string(appendHost(nil, authority)) == string(appendHost(nil, req.Host)) {
		return true
	}
	if s == nil { // its requests will say
		return false
	}
	p := s.policy.Load()
	return p == nil || p.users != nil || p.allow == nil && p.deny == nil && p.authority == nil
}

func (w *rtspSocket) OnData(b []byte) (used int) {
	for used < len(b) && !w.paused && !w.closed {
		ev, n, err := w.frames.Next(b[used:])
		used += n
		if err != nil {
			status, reason := websocket.StatusProtocolError, ""
			if e, ok := err.(*websocket.Error); ok {
				status, reason = e.Status, e.Reason
			}
			w.sayClose(status, reason)
			w.conn.Close()
			w.finish(err)
			break
		}
		switch ev.Op {
		case websocket.None:
			return used
		case websocket.Ping:
			if w.conn.Pending() <= w.conn.HighMark() { // rfc6455#section-5.5.3: not each of them needs one
				w.conn.Write(websocket.AppendFrame(nil, websocket.Pong, ev.Payload, nil))
			}
		case websocket.Close:
			status, _ := websocket.ParseClose(ev.Payload)
			if status == websocket.StatusNone {
				status = websocket.StatusNormal
			}
			w.sayClose(status, "")
			w.conn.Close()
			w.finish(nil)
		case websocket.Binary, websocket.Text:
			w.push(ev.Payload)
		}
	}
	if w.closed {
		return len(b)
	}
	return used
}

func (w *rtspSocket) OnEOF()   { w.ends() }
func (w *rtspSocket) OnDrain() { w.drained() }

func (w *rtspSocket) OnClose(err error) {
	w.relay.admission.leave(w.addr, w.verdict)
	w.drop()
	w.finish(err)
}

// Write and the methods below are those of End. What is gathered does not count as pending.
func (w *rtspSocket) Write(b []byte) {
	for len(b) > 0 && !w.finished && !w.closed {
		if w.out == nil {
			w.out = append(w.loop.tunnels.take(), socketRoom[:]...)
		}
		n := min(len(b), len(socketRoom)+maxSocketGather-len(w.out))
		w.out = append(w.out, b[:n]...)
		if b = b[n:]; len(b) > 0 {
			w.flush()
		}
	}
	if w.out != nil && !w.woken {
		w.woken = true
		w.loop.AfterTurn(w.leave)
	}
}

func (w *rtspSocket) leave() {
	w.woken = false
	w.flush()
}

// flush sends what has been gathered, but for the beginning of a message, whose rest is on its way.
// There is one that is whole if no more can be gathered.
func (w *rtspSocket) flush() {
	if w.out == nil {
		return
	}
	p := w.out[len(socketRoom):]
	n := 0
	for n < len(p) {
		m := w.sent.next(p[n:], &w.loop.tunnels.message)
		if m == 0 {
			break
		}
		n += m
	}
	w.send(n)
}

// send sends n bytes of what has been gathered.
func (w *rtspSocket) send(n int) {
	b := w.out
	w.out = nil
	end := len(socketRoom) + n
	if end < len(b) {
		w.out = append(append(make([]byte, 0, len(socketRoom)+len(b)-end), socketRoom[:]...), b[end:]...)
	}
	if n > 0 {
		start := websocket.PutHeader(b[:len(socketRoom)], websocket.Binary, true, n, nil)
		w.conn.Write(b[start:end])
	}
	w.loop.tunnels.give(b)
}

// sayClose sends a Close behind all that was written, once.
func (w *rtspSocket) sayClose(status int, reason string) {
	if w.finished {
		return
	}
	w.flush()
	if w.out != nil {
		w.send(len(w.out) - len(socketRoom))
	}
	w.finished = true
	w.conn.Write(websocket.AppendFrame(nil, websocket.Close, websocket.ClosePayload(status, reason), nil))
}

func (w *rtspSocket) drop() {
	if w.out != nil {
		w.loop.tunnels.give(w.out)
		w.out = nil
	}
}

func (w *rtspSocket) Pending() int  { return w.conn.Pending() }
func (w *rtspSocket) HighMark() int { return w.conn.HighMark() }

func (w *rtspSocket) Pause() {
	w.paused = true
	w.conn.Pause()
}

func (w *rtspSocket) Resume() {
	if w.paused && !w.closed {
		w.paused = false
		w.conn.Resume()
		w.renew()
	}
}

func (w *rtspSocket) CloseWrite() {
	w.sayClose(websocket.StatusNormal, "")
	w.conn.CloseWrite()
}

func (w *rtspSocket) Close() {
	if !w.closed {
		w.sayClose(websocket.StatusNormal, "")
		w.closed = true
		w.conn.Close()
	}
}

func (w *rtspSocket) Abort(err error) {
	w.closed = true
	w.drop()
	w.conn.Abort(err)
}

// Move is that of Conn, which is what a socket for any camera is made of.
func (w *rtspSocket) Move(to *evloop.Loop, f func()) {
	w.loop.AfterTurn(func() { // behind what is to be done at the end of this turn
		w.conn.(*evloop.Conn).Move(to, func() {
			w.loop = w.relay.loopOf(to)
			f()
		})
	})
}

// socketRoom is where the header of a message goes.
var socketRoom [websocket.MaxHeader]byte

// take and give are about buffers of sockets, which need one for the rest of a turn.
func (ts *rtspTunnels) take() []byte {
	if n := len(ts.spare); n > 0 {
		b := ts.spare[n-1]
		ts.spare = ts.spare[:n-1]
		return b
	}
	return make([]byte, 0, 4<<10)
}

func (ts *rtspTunnels) give(b []byte) {
	if len(ts.spare) < maxSocketSpare {
		ts.spare = append(ts.spare, b[:0])
	}
}
