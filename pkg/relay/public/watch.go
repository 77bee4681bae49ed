package public

import (
	"slices"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/http1"
)

// live.mp4 of a camera is an MP4 without an end. It begins with the last key frame and goes on for as long as
// there is a picture: what a broadcast makes of the packets that come through the hub.

// quietTime is for how long browsers get no sound of a camera whose sound has stopped: each time that it comes and
// goes they have to begin again.
const quietTime = 10 * time.Minute

// maxUnfinished is how much of a broadcast may wait to be sent when all together take twice what they may.
const maxUnfinished = 256 << 10

// broadcast makes MP4 of a camera for all browsers that watch it. There is one while there are any. It belongs
// to the loop of the service.
type broadcast struct {
	service *service
	muxer   *camera.Muxer // nil: nothing has come
	viewers []*viewer
	held    int      // of session.store
	trouble *trouble // why it is over; nil: it is not
}

// viewer is a browser that watches, and the back of its exchange. It is sent what the muxer has kept when there is
// room for it. Whoever is too far behind goes on at a key frame, so nothing is queued for anybody.
type viewer struct {
	own
	broadcast  *broadcast
	exchange   *exchange // nil: it is over
	generation int       // of what it gets
	next       uint64
	paused     bool
}

var troubleCodec = &trouble{415, "This camera sends no video that browsers play as MP4."}

// liveFields are those of the stream.
func liveFields(mime string) []http1.Field {
	return []http1.Field{field("Content-Type", mime), field("Cache-Control", "no-store"), field("X-Content-Type-Options", "nosniff")}
}

// view has ex watch s. It returns nil if there is no exchange any more.
func (s *service) view(ex *exchange) *exchange {
	if ex.head {
		ex.respond(&http1.Response{Minor: 1, Status: 200, ContentLength: -1, Framing: http1.NoBody, Fields: liveFields("video/mp4")}, true)
		ex.pulled(0)
		return nil
	}
	b := s.broadcast
	if b == nil {
		b = &broadcast{service: s}
		s.broadcast = b
		s.watch(b)
	}
	if b.trouble != nil { // at once
		ex.fail(b.trouble)
		return nil
	}
	v := &viewer{broadcast: b, exchange: ex}
	ex.back = v
	b.viewers = append(b.viewers, v)
	if v.proceed(); v.exchange == nil {
		return nil
	}
	return ex
}

// described takes what is known of the camera before the first packet.
func (b *broadcast) described(d *camera.Description) {
	var err error
	s := b.service
	if b.muxer, err = camera.NewMuxer(d, s.quiet == 0 || time.Duration(s.session.loop.since()-s.quiet) > quietTime); err != nil {
		b.end(troubleCodec)
		s.unwatch(b)
	}
}

func (b *broadcast) packet(p *camera.Packet) {
	if b.trouble != nil {
		return
	}
	if b.muxer.Take(p); b.muxer.Muted() {
		b.service.quiet = b.service.session.loop.since()
	}
}

func (b *broadcast) flush() {
	for _, v := range slices.Clone(b.viewers) { // those that are over leave
		v.proceed()
	}
	if b.trouble != nil {
		return
	}
	if m, s := b.muxer, &b.service.session.store; !s.hold(&b.held, m.Size()) {
		m.Trim(s.share(b.held))
		if s.hold(&b.held, m.Size()); s.used > 2*s.size && b.held > maxUnfinished {
			m.Restart()
			s.hold(&b.held, m.Size())
		}
	}
}

// full reports whether frames have to be dropped. Viewers drop their own.
func (b *broadcast) full() bool { return false }

func (b *broadcast) gone(t *trouble) { b.end(t) }

// end ends all viewers, and makes room for another broadcast.
func (b *broadcast) end(t *trouble) {
	b.service.session.store.hold(&b.held, 0)
	if b.trouble = t; b.service.broadcast == b {
		b.service.broadcast = nil
	}
	for len(b.viewers) > 0 {
		v := b.viewers[0]
		ex := v.exchange
		v.leave()
		if ex.answered {
			ex.cut(t.word())
		} else {
			ex.fail(t)
		}
	}
}

// proceed sends what there is and has room.
func (v *viewer) proceed() {
	ex, m := v.exchange, v.broadcast.muxer
	if ex == nil || v.paused || m == nil || m.Init() == nil && !ex.answered {
		return
	}
	if !ex.answered {
		start, ok := m.Start()
		if !ok {
			return
		}
		v.generation, v.next = m.Generation(), start
		v.broadcast.service.cam.viewer(1)
		ex.respond(&http1.Response{Minor: 1, Status: 200, ContentLength: -1, Framing: http1.Chunked, Fields: liveFields(m.Type())}, false)
		ex.payload(m.Init())
		ex.pulled(len(m.Init()))
	}
	if v.generation != m.Generation() { // the browser asks again
		v.leave()
		ex.complete(nil)
		ex.pulled(0)
		return
	}
	for v.exchange != nil && !v.paused {
		data, next := m.Next(v.next)
		if data == nil {
			return
		}
		if dropped := int(next - v.next - 1); dropped > 0 {
			v.broadcast.service.cam.drop(dropped)
		}
		v.next = next
		ex.payload(data)
		ex.pulled(len(data))
	}
}

// leave takes v out. The last one ends the broadcast.
func (v *viewer) leave() {
	b := v.broadcast
	if v.exchange.answered {
		b.service.cam.viewer(-1)
	}
	v.exchange = nil
	i := slices.Index(b.viewers, v)
	b.viewers = slices.Delete(b.viewers, i, i+1)
	if len(b.viewers) == 0 && b.trouble == nil {
		b.end(troubleAway)
		b.service.unwatch(b)
	}
}

// patient reports whether the browser waits on; for the first picture, not for ever.
func (v *viewer) patient() bool { return v.exchange.answered }

func (v *viewer) pause() { v.paused = true }

func (v *viewer) resume() {
	v.paused = false
	v.proceed()
}

func (v *viewer) release() { v.cancel() }

func (v *viewer) cancel() {
	if v.exchange != nil {
		v.leave()
	}
}
