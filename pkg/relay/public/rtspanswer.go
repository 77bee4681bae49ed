package public

import (
	"fmt"
	"slices"
	"strconv"

	"culvert.dev/pkg/rtsp"
)

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

// rtspFields are those that tell a player when to come again, if it may.
func (t *trouble) rtspFields() []rtsp.Field {
	if t.status != 503 {
		return nil
	}
	return []rtsp.Field{rtspField("Retry-After", retryAfter)}
}

func rtspField(name, value string) rtsp.Field { return rtsp.Field(field(name, value)) }

// turnDown answers a request with what is wrong. It reports false if the request has to wait for its turn.
func (p *player) turnDown(cseq uint32, t *trouble, fields ...rtsp.Field) bool {
	if !p.free() {
		return false
	}
	p.err = t.word()
	if !slices.ContainsFunc(fields, func(f rtsp.Field) bool { return rtsp.Is(f.Name, "retry-after") }) {
		fields = append(fields, t.rtspFields()...)
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
	l := p.loop
	l.rtspOut = append(append(l.rtspOut[:0], cseqField(cseq)), fields...)
	b := rtsp.AppendResponse(l.out, status, words, l.rtspOut, nil)
	p.status = status
	if status < 400 {
		p.err = fine
	}
	p.write(b)
	l.out = b[:0]
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
	for _, f := range p.flight {
		if p.midway {
			break
		}
		p.say(f.cseq, rtspStatus(t), t.text, t.rtspFields())
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
	out := append(l.rtspOut[:0], cseqField(cseq))
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
	l.out = rtsp.AppendResponse(l.out, status, "", out, body)
	p.write(l.out)
	l.out = l.out[:0]
	p.unblock()
	p.rest()
}

func cseqField(n uint32) rtsp.Field { return rtspField("CSeq", strconv.FormatUint(uint64(n), 10)) }

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
