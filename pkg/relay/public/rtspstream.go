package public

import (
	"slices"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

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
