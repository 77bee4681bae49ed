package public

import (
	"encoding/binary"
	"encoding/hex"
	"math/rand/v2"
	"strconv"
	"strings"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/rtsp"
)

const (
	// describeTime is how long a player waits to be told what the camera has.
	describeTime = 10 * time.Second

	// restingTime is how long a player who plays nothing may be silent. It is told a bit less.
	restingTime   = 75 * time.Second
	sessionFields = ";timeout=60"

	// maxFrames is how much of what is made for one player alone is written at a time.
	maxFrames = 64 << 10
)

// fanViewer is the server of a player of a camera whose stream is shared, and a watcher of the hub. What it plays is
// the log of the hub, so it has nothing itself but numbers.
type fanViewer struct {
	player  *player // nil: it is over
	service *service
	watch   *watch              // nil: it has not asked for the camera
	known   *camera.Description // nil: it has not been told
	held    []heldRequest       // that wait for the description, and those behind them
	session string              // "" if none is set up
	tracks  []fanTrack          // by index in known
	playing bool
	timer   evloop.Timer // of held, or else of the session
	heard   time.Time    // when a request or frame has come
	run     []byte       // frames as they are in the log, of this turn
	ours    bool         // loop.frames has frames that are not, after those
}

// fanTrack is a track as the player has set it up.
type fanTrack struct {
	transport fanTransport
	url       string // by which it was set up
	number    uint32 // of the packet that it expects, see camera.Packet
	offset    uint16 // between sequence numbers: what was left out leaves no gap
}

// fanTransport is how a track gets to the player.
type fanTransport struct {
	on        bool
	rtp, rtcp uint8 // channels
}

// heldRequest is a request that waits.
type heldRequest struct {
	m    *rtsp.Message
	cseq uint32
}

var (
	troubleAggregate = &trouble{459, "This is for single tracks."}
	troubleSingle    = &trouble{460, "This is for all tracks together."}
	troubleNotNow    = &trouble{455, "This is not possible now."}
	troubleTrack     = &trouble{404, "The camera has no such track."}
)

// share makes the server of a player of s, whose stream is shared.
func (s *service) share(p *player) *fanViewer {
	v := &fanViewer{player: p, service: s, heard: p.loop.Now()}
	p.loop.Arm(&v.timer, restingTime, v.onTimer)
	return v
}

func (v *fanViewer) request(m *rtsp.Message, cseq uint32) {
	v.heard = v.player.loop.Now()
	method := string(m.Method)
	if len(v.held) == 0 && (v.known != nil || method != "DESCRIBE" && method != "SETUP") {
		v.serve(m, cseq)
		return
	}
	v.held = append(v.held, heldRequest{m.Clone(), cseq})
	if len(v.held) > 1 {
		return
	}
	v.player.loop.Arm(&v.timer, describeTime, v.onTimer)
	if w := v.service.attend(v); v.player != nil {
		v.watch = w
		v.release()
	}
}

// release serves the requests that wait for the description, if that has come.
func (v *fanViewer) release() {
	for v.player != nil && v.watch != nil && v.known != nil && len(v.held) > 0 {
		r := v.held[0]
		if v.held = v.held[1:]; len(v.held) == 0 {
			v.held = nil
		}
		v.serve(r.m, r.cseq)
	}
	if v.player != nil && len(v.held) == 0 {
		v.player.loop.Arm(&v.timer, restingTime, v.onTimer)
	}
}

func (v *fanViewer) onTimer() {
	l := v.player.loop
	if len(v.held) > 0 { // there is no description
		held := v.held
		v.held = nil
		v.forget()
		l.Arm(&v.timer, restingTime, v.onTimer)
		for _, r := range held {
			if v.player != nil {
				v.refuse(r.cseq, troubleAbsent)
			}
		}
		return
	}
	left := restingTime - l.Now().Sub(v.heard)
	switch {
	case v.playing: // whether there is still somebody is found out by what is sent
		left = restingTime
	case left <= 0:
		p := v.player
		v.leave()
		p.lost(nil)
		return
	}
	l.Arm(&v.timer, left, v.onTimer)
}

var troubleAbsent = &trouble{503, "The camera does not answer right now. Please try again."}

// serve answers a request.
func (v *fanViewer) serve(m *rtsp.Message, cseq uint32) {
	switch method := string(m.Method); method {
	case "OPTIONS":
		v.reply(cseq, rtspField("Public", rtspPublic))
	case "DESCRIBE":
		base, _, _ := strings.Cut(string(m.URL), "?")
		v.player.reply(cseq, 200, []rtsp.Field{
			rtspField("Content-Base", strings.TrimRight(base, "/")+"/"), rtspField("Content-Type", "application/sdp"), rtspField("Cache-Control", "no-cache"),
		}, v.known.SDP)
	case "SETUP":
		v.setUp(m, cseq)
	default:
		id, _ := rtsp.ParseSession(m.Get("session"))
		if alive := id == "" && (method == "GET_PARAMETER" || method == "SET_PARAMETER"); !alive && (id != v.session || id == "") {
			v.refuse(cseq, troubleSession)
			return
		}
		on := 0
		for i := range v.tracks {
			if v.tracks[i].transport.on {
				on++
			}
		}
		switch method {
		case "PLAY", "PAUSE", "TEARDOWN":
			if _, single := namedTrack(m.URL); single && on > 1 {
				v.refuse(cseq, troubleSingle)
				return
			}
		}
		switch method {
		case "PLAY":
			v.play(cseq)
		case "PAUSE":
			v.pause()
			v.reply(cseq)
		case "TEARDOWN":
			v.forget()
			v.player.reply(cseq, 200, nil, nil)
		default:
			v.reply(cseq)
		}
	}
}

// reply says that all is well.
func (v *fanViewer) reply(cseq uint32, fields ...rtsp.Field) {
	if v.session != "" {
		fields = append(fields, rtspField("Session", v.session+sessionFields))
	}
	v.player.reply(cseq, 200, fields, nil)
}

func (v *fanViewer) refuse(cseq uint32, t *trouble) {
	v.player.reply(cseq, t.status, t.rtspFields(), nil)
}

// namedTrack returns the number of the track that a URL names, as our descriptions do; players put what they like before and behind it.
func namedTrack(url []byte) (track int, ok bool) {
	const name = "trackid="
	s := strings.ToLower(string(url))
	i := strings.LastIndex(s, name)
	if i < 0 {
		return 0, false
	}
	s = s[i+len(name):]
	end := 0
	for end < len(s) && '0' <= s[end] && s[end] <= '9' {
		end++
	}
	n, err := strconv.ParseUint(s[:end], 10, 8)
	if err != nil {
		return camera.MaxTracks, true // there is none
	}
	return int(n), true
}

func (v *fanViewer) setUp(m *rtsp.Message, cseq uint32) {
	id, _ := rtsp.ParseSession(m.Get("session"))
	track, named := namedTrack(m.URL)
	list, err := rtsp.ParseTransport(m.Get("transport"))
	switch {
	case id != "" && id != v.session, id == "" && v.session != "" && m.Get("session") != nil:
		v.refuse(cseq, troubleSession)
		return
	case v.playing:
		v.refuse(cseq, troubleNotNow)
		return
	case !named && len(v.known.Tracks) > 1:
		v.refuse(cseq, troubleAggregate)
		return
	case track >= len(v.known.Tracks):
		v.refuse(cseq, troubleTrack)
		return
	case err != nil || len(list) == 0 || !list[0].TCP || !strings.HasPrefix(list[0].Protocol, "RTP/AVP"):
		v.refuse(cseq, troubleTransport)
		return
	}
	if v.session == "" {
		var b [8]byte
		binary.BigEndian.PutUint64(b[:], rand.Uint64())
		v.session = hex.EncodeToString(b[:])
		v.tracks = make([]fanTrack, len(v.known.Tracks))
	}
	t := &v.tracks[track]
	h := v.watch.hub
	want := list[0]
	t.transport.on = false
	t.transport = v.channels(want)
	t.url = string(m.URL)
	t.number, t.offset = h.tracks[track].number, 0
	v.reply(cseq, rtspField("Transport", rtsp.Transport{
		Protocol: want.Protocol, TCP: true, Unicast: true, HasInterleaved: true, Interleaved: rtsp.Pair{uint16(t.transport.rtp), uint16(t.transport.rtcp)},
		SSRC: strings.ToUpper(hex.EncodeToString(binary.BigEndian.AppendUint32(nil, h.tracks[track].ssrc))),
	}.String()), rtspField("Cache-Control", "no-cache"))
}

// channels are those that the player wants, or else the first ones that are free.
func (v *fanViewer) channels(want rtsp.Transport) fanTransport {
	free := func(a, b uint16) bool {
		for i := range v.tracks {
			t := v.tracks[i].transport
			if t.on && (a == uint16(t.rtp) || a == uint16(t.rtcp) || b == uint16(t.rtp) || b == uint16(t.rtcp)) {
				return false
			}
		}
		return a != b && a < 256 && b < 256
	}
	a, b := want.Interleaved[0], want.Interleaved[1]
	if !want.HasInterleaved || !free(a, b) {
		for a, b = 0, 1; !free(a, b); a, b = a+2, b+2 { // there are more than the tracks have
		}
	}
	return fanTransport{on: true, rtp: uint8(a), rtcp: uint8(b)}
}

// play answers PLAY, and has the hub give packets, in this order.
func (v *fanViewer) play(cseq uint32) {
	h := v.watch.hub
	var info []string
	for i := range v.tracks {
		t := &v.tracks[i]
		if !t.transport.on {
			continue
		}
		s := "url=" + t.url
		if !v.playing {
			p := h.first(i)
			sequence := h.tracks[i].last + 1
			number := h.tracks[i].number
			if p != nil {
				sequence, number = p.Sequence, p.Number
			}
			t.offset -= uint16(number - t.number)
			t.number = number
			if s += ";seq=" + strconv.Itoa(int(sequence+t.offset)); p != nil {
				s += ";rtptime=" + strconv.FormatUint(uint64(p.Timestamp), 10)
			}
		}
		info = append(info, s)
	}
	fields := []rtsp.Field{rtspField("Range", "npt=now-")}
	if !v.playing {
		fields = append(fields, rtspField("RTP-Info", strings.Join(info, ",")))
	}
	v.reply(cseq, fields...)
	if v.player != nil && !v.playing {
		v.playing = true
		v.service.cam.viewer(1)
		v.watch.start()
	}
}

// first returns the first packet of a track that whoever starts now will get; nil if that has not come.
func (h *hub) first(track int) *camera.Packet {
	if h.kept {
		for i := range h.log {
			if p := &h.log[i]; p.Track == track && !p.RTCP {
				return p
			}
		}
	}
	return nil
}

// pause stops what is played.
func (v *fanViewer) pause() {
	if v.playing {
		v.playing = false
		v.service.cam.viewer(-1)
		v.watch.pause()
	}
}

// forget ends the session and the watch.
func (v *fanViewer) forget() {
	if v.watch != nil {
		v.pause()
		v.watch.leave()
	}
	v.watch, v.known, v.session, v.tracks = nil, nil, "", nil
}

func (v *fanViewer) take([]byte) { v.heard = v.player.loop.Now() }

func (v *fanViewer) drained() {
	if v.watch != nil {
		v.watch.more()
	}
}

func (v *fanViewer) leave() {
	v.timer.Stop()
	v.forget()
	v.held, v.player = nil, nil
}

func (v *fanViewer) described(d *camera.Description) {
	v.known = d
	v.release()
}

// packet adds a packet to those of this turn. If it is to be what it is in the log, it stays there.
func (v *fanViewer) packet(p *camera.Packet) {
	t := &v.tracks[p.Track]
	if !t.transport.on {
		return
	}
	channel := t.transport.rtcp
	if !p.RTCP {
		channel = t.transport.rtp
		t.offset -= uint16(p.Number - t.number)
		t.number = p.Number + 1
	}
	l := v.player.loop
	f := p.Frame
	if !v.ours && f[1] == channel && (p.RTCP || t.offset == 0) {
		n := len(v.run)
		switch {
		case n == 0:
			v.run = f
		case cap(v.run)-n >= len(f) && &v.run[:n+1][n] == &f[0]:
			v.run = v.run[:n+len(f)]
		default:
			v.player.frames(v.run)
			v.run = f
		}
		return
	}
	if !v.ours {
		v.ours = true
		l.frames = l.frames[:0]
	}
	at := len(l.frames)
	l.frames = append(l.frames, f...)
	l.frames[at+1] = channel
	if !p.RTCP {
		binary.BigEndian.PutUint16(l.frames[at+6:], p.Sequence+t.offset)
	}
	if len(l.frames) >= maxFrames {
		v.flush()
	}
}

func (v *fanViewer) flush() {
	if len(v.run) > 0 {
		v.player.frames(v.run)
		v.run = nil
	}
	if v.ours {
		v.ours = false
		v.player.frames(v.player.loop.frames)
	}
}

// full is that of both an rtspServer and a watcher: the player takes no more frames now. What it asks for
// in the meantime does not make it less.
func (v *fanViewer) full() bool { return v.player.full() }

func (v *fanViewer) gone(t *trouble) {
	p := v.player
	v.pause()
	v.timer.Stop()
	v.watch, v.held, v.player = nil, nil, nil
	p.lost(t)
}
