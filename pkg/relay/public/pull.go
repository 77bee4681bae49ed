package public

import (
	"encoding/binary"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

const (
	// pullStepTime is how long the site may take to answer a request.
	pullStepTime = 10 * time.Second

	// reportTime is how often the camera is told what has come, as RTCP demands.
	reportTime = 5 * time.Second

	// doubtTime is how long a camera may be silent before it is asked whether it is there.
	doubtTime = 10 * time.Second
)

// pullStep is where a pull is. The steps follow each other; over can follow any of them.
type pullStep uint8

const (
	pullOptions pullStep = iota
	pullDescribe
	pullSetup // once for each track
	pullPlay
	pullPlaying
	pullOver
)

// pull is an RTSP session with the site for a hub: a stream, and its handler. URLs, credentials and times of the camera are
// the private relay's matter.
type pull struct {
	*tunnel.Stream
	hub     *hub // nil: it is over
	loop    *loop
	demux   rtsp.Demux
	long    []byte // a frame that comes in pieces
	step    pullStep
	cseq    uint32
	url     string // of the camera, as the site knows it
	base    string // of its tracks
	session string // "" if there is none
	channel [256]uint8
	set     int // tracks that were set up, or could not be
	tracks  int // that were
	me      uint32

	description *camera.Description
	params      bool          // it knows GET_PARAMETER
	interval    time.Duration // of keep-alive requests

	timer    evloop.Timer
	deadline time.Time // of the step, or of a keep-alive request; zero: there is none
	heard    time.Time // when something has come
	alive    time.Time // when the last keep-alive request was sent
}

// noTrack is the entry of pull.channel for a channel of nothing.
const noTrack = 0xff

// newPull begins with a stream to the site.
func newPull(h *hub, st *tunnel.Stream, url string) *pull {
	p := &pull{Stream: st, hub: h, loop: h.loop, url: url, base: url, me: rand.Uint32(), heard: h.loop.Now()}
	for i := range p.channel {
		p.channel[i] = noTrack
	}
	st.SetHandler(p)
	p.ask("OPTIONS", p.url)
	return p
}

// ask sends a request, which is to be answered in time.
func (p *pull) ask(method, url string, fields ...rtsp.Field) {
	l := p.loop
	p.cseq++
	fields = append(fields, cseqField(p.cseq), rtspField("User-Agent", "culvert"))
	if p.session != "" {
		fields = append(fields, rtspField("Session", p.session))
	}
	l.up = rtsp.AppendRequest(l.up[:0], []byte(method), []byte(url), fields, nil)
	p.Write(l.up)
	l.up = l.up[:0]
	p.deadline = l.Now().Add(pullStepTime)
	if p.step < pullPlaying {
		l.Arm(&p.timer, pullStepTime, p.onTimer)
	}
}

// onTimer looks after deadlines, reports and keep-alive requests. While the site has no link there is nobody to be late.
func (p *pull) onTimer() {
	l, now := p.loop, p.loop.Now()
	linked := p.hub.service.session.lostAt.IsZero()
	switch {
	case !linked:
		p.heard = now
		if !p.deadline.IsZero() {
			p.deadline = now.Add(pullStepTime)
		}
	case p.deadline.IsZero() || now.Before(p.deadline):
	case p.step < pullPlaying || now.Sub(p.heard) >= doubtTime:
		p.fail(troubleSilent)
		return
	default: // it plays, and has no answer to that
		p.deadline = time.Time{}
	}
	if p.step < pullPlaying {
		l.Arm(&p.timer, reportTime, p.onTimer)
		return
	}
	if linked && p.Pending() <= p.HighMark() {
		p.report()
		if p.deadline.IsZero() && (now.Sub(p.alive) >= p.interval || now.Sub(p.heard) >= doubtTime) {
			p.alive = now
			method := "OPTIONS"
			if p.params {
				method = "GET_PARAMETER"
			}
			p.ask(method, p.base)
		}
	}
	l.Arm(&p.timer, min(reportTime, p.interval), p.onTimer)
}

// report sends receiver reports (RFC 3550, section 6.4.2).
func (p *pull) report() {
	l := p.loop
	b := l.up[:0]
	for i := range p.hub.tracks {
		t := &p.hub.tracks[i]
		if t.received == 0 {
			continue
		}
		b = rtsp.AppendFrameHead(b, byte(2*i+1), 32)
		b = append(b, 0x81, 201, 0, 7)
		b = binary.BigEndian.AppendUint32(b, p.me)
		b = binary.BigEndian.AppendUint32(b, t.source)
		lost := min(t.highest-t.first+1-min(t.received, t.highest-t.first+1), 0x7fffff)
		b = binary.BigEndian.AppendUint32(b, lost) // and no fraction of late
		b = binary.BigEndian.AppendUint32(b, t.highest)
		b = binary.BigEndian.AppendUint32(b, 0) // nobody has measured the jitter
		delay := uint32(0)
		if t.report != 0 {
			delay = uint32(l.Now().Sub(t.reportAt).Seconds() * 65536)
		}
		b = binary.BigEndian.AppendUint32(b, t.report)
		b = binary.BigEndian.AppendUint32(b, delay)
	}
	p.Write(b)
	l.up = b[:0]
}

// OnData takes what the camera sends.
func (p *pull) OnData(b []byte) (used int) {
	h := p.hub
	if h == nil {
		return len(b)
	}
	p.heard = p.loop.Now()
	m := &p.loop.rtspBack
	media := 0
	for used < len(b) {
		k, n, err := p.demux.Next(b[used:], m)
		if err != nil {
			p.loop.counters.Malformed++
			p.fail(troubleCamera)
			return len(b)
		}
		if k == rtsp.None {
			break
		}
		switch k {
		case rtsp.Frame:
			media += n
			p.frame(b[used : used+n])
		case rtsp.Response:
			p.response(m)
		case rtsp.Request:
			if p.Pending() > p.HighMark() { // it asks, and takes no answers
				p.fail(troubleCamera)
				break
			}
			if cseq, ok := m.CSeq(); ok { // it asks whether we are there, or whatever else
				p.Write(rtsp.AppendResponse(nil, rtsp.StatusNotImplemented, "", []rtsp.Field{cseqField(cseq)}, nil))
			}
		}
		if p.hub == nil {
			return len(b)
		}
		used += n
	}
	if media > 0 {
		h.service.cam.media(p.loop.since(), media)
		h.wake()
	}
	return used
}

// frame takes an interleaved frame, or a piece of a long one.
func (p *pull) frame(b []byte) {
	if !p.demux.First || !p.demux.Last {
		if p.long = append(p.long, b...); !p.demux.Last {
			return
		}
		b, p.long = p.long, nil
	}
	track := p.channel[p.demux.Channel]
	switch {
	case track == noTrack || p.step < pullPlay:
	case p.demux.Channel&1 == 0:
		p.hub.take(int(track), b[4:])
	default:
		p.hub.takeControl(int(track), b[4:])
	}
}

// response goes on to the next step.
func (p *pull) response(m *rtsp.Message) {
	if cseq, ok := m.CSeq(); !ok || cseq != p.cseq || p.deadline.IsZero() || m.Status < 200 {
		return
	}
	p.deadline = time.Time{}
	good := m.Status < 300
	switch p.step {
	case pullOptions:
		p.params = good && strings.Contains(strings.ToUpper(string(m.Get("public"))), "GET_PARAMETER")
		p.step = pullDescribe
		p.ask("DESCRIBE", p.url, rtspField("Accept", "application/sdp"))
	case pullDescribe:
		if !good {
			p.fail(cameraTrouble(m.Status))
			return
		}
		p.describe(m)
	case pullSetup:
		if good {
			p.setUp(m)
		}
		if p.hub != nil {
			p.set++
			p.next()
		}
	case pullPlay:
		if !good {
			p.fail(cameraTrouble(m.Status))
			return
		}
		p.step, p.alive = pullPlaying, p.loop.Now()
		p.loop.Arm(&p.timer, min(reportTime, p.interval), p.onTimer)
	case pullPlaying: // whatever it says to a keep-alive request, it is there
		if m.Status == rtsp.StatusSessionNotFound {
			p.fail(troubleGone)
		}
	}
}

// cameraTrouble is what watchers hear of a status of the camera.
func cameraTrouble(status int) *trouble {
	switch status {
	case 404, 410:
		return troubleNoCamera
	case 453, 503:
		return troubleInUse
	case 504:
		return troubleSilent
	}
	return troubleCamera
}

var (
	troubleNoCamera = &trouble{404, "The camera does not know this stream."}
	troubleInUse    = &trouble{503, "The camera is busy right now. Please try again."}
)

func (p *pull) describe(m *rtsp.Message) {
	d, err := camera.Parse(m.Body)
	if err != nil {
		p.fail(troubleCamera)
		return
	}
	for _, name := range [...]string{"content-base", "content-location"} {
		if v := m.Get(name); len(v) > 0 {
			p.base = string(v)
			break
		}
	}
	p.description, p.step = d, pullSetup
	p.hub.described(d)
	if p.hub != nil {
		p.next()
	}
}

// next sets the next track up, or plays.
func (p *pull) next() {
	d := p.description
	if p.set < len(d.Tracks) {
		c := strconv.Itoa(2*p.set) + "-" + strconv.Itoa(2*p.set+1)
		p.ask("SETUP", joinControl(p.base, d.Tracks[p.set].Control), rtspField("Transport", "RTP/AVP/TCP;unicast;interleaved="+c))
		return
	}
	if p.tracks == 0 {
		p.fail(troubleCamera)
		return
	}
	p.step = pullPlay
	p.ask("PLAY", joinControl(p.base, d.Control), rtspField("Range", "npt=0.000-"))
}

// setUp notes what a track comes by.
func (p *pull) setUp(m *rtsp.Message) {
	channel := uint16(2 * p.set)
	if list, err := rtsp.ParseTransport(m.Get("transport")); err == nil && len(list) > 0 && list[0].HasInterleaved {
		channel = list[0].Interleaved[0]
	}
	id, timeout := rtsp.ParseSession(m.Get("session"))
	if channel > 254 || channel&1 != 0 || id == "" {
		p.fail(troubleCamera)
		return
	}
	p.channel[channel], p.channel[channel+1] = uint8(p.set), uint8(p.set)
	p.session = id
	p.interval = min(max(timeout/2, time.Second), rtsp.DefaultTimeout)
	p.tracks++
}

// joinControl is the URL of a control attribute. Cameras and players put it behind the base, whatever that ends with.
func joinControl(base, control string) string {
	switch {
	case control == "" || control == "*":
		return base
	case strings.Contains(control, "://"):
		return control
	case control[0] == '/' && strings.HasSuffix(base, "/"):
		return base + control[1:]
	case control[0] == '?' || control[0] == '/' || strings.HasSuffix(base, "/"):
		return base + control
	}
	return base + "/" + control
}

// leave ends the pull in good order.
func (p *pull) leave() {
	if p.session != "" {
		p.ask("TEARDOWN", joinControl(p.base, p.description.Control))
	}
	p.hub, p.step = nil, pullOver
	p.Close()
	p.loop.Arm(&p.timer, farewell, func() { p.Reset(tunnel.CodeCancelled) })
}

// fail ends the pull and tells the hub why.
func (p *pull) fail(t *trouble) {
	h := p.hub
	p.leave()
	h.lost(t)
}

func (p *pull) OnEOF() {
	if p.hub != nil {
		p.fail(troubleGone)
	}
}

func (p *pull) OnDrain() {}

func (p *pull) OnClose(err error) {
	p.timer.Stop()
	h := p.hub
	if h == nil {
		return
	}
	p.hub, p.step = nil, pullOver
	t := troubleGone
	if err != nil {
		t = streamTrouble(err)
	}
	h.lost(t)
}
