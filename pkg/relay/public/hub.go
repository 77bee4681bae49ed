package public

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

const (
	// maxStream is how much of a stream is kept since its last key frame. A viewer who comes
	// while there is more waits for the next one.
	maxStream = 4 << 20

	// packetCost is what a packet that is kept costs besides its bytes.
	packetCost = 160

	// minLog is how many packets a log has room for that is kept when it is empty.
	minLog = 64

	// hubRest is how long the stream of a camera goes on without viewers: players that try one
	// transport after another come again at once.
	hubRest = 5 * time.Second

	// hubPatience is how long viewers are kept without a stream.
	hubPatience = 30 * time.Second

	// hubBackOff and maxHubBackOff are the first and the longest pause between two attempts to
	// get the stream again.
	hubBackOff, maxHubBackOff = time.Second, 15 * time.Second

	// hubBatch is how much of a picture that is coming in waits for the rest of it: pictures go
	// out whole if they can, because what costs is not bytes but writes.
	hubBatch = 16 << 10

	// hubTick is how long it waits at most.
	hubTick = 50 * time.Millisecond
)

// watcher is whom a hub gives the stream of a camera. All is on the loop of the service.
type watcher interface {
	// described tells what the camera has: once, before the first packet. d stays as it is.
	described(d *camera.Description)

	// packet is a packet of the camera, which is lent. The first one begins a key frame. They
	// come in order, but some are left out, see full, or got lost on their way from the camera.
	packet(p *camera.Packet)

	// flush is called after the packets of one turn.
	flush()

	// full reports whether there is no room for another access unit. It is asked at the start of each. While it
	// says true the watcher waits, until drained; when the next key frame has come meanwhile, it
	// goes on with that.
	full() bool

	// gone tells why there will be nothing more. It is the last call, and unwatch is not called any more.
	gone(t *trouble)
}

// watchState is where a watcher is.
type watchState uint8

const (
	watchIdle    watchState = iota // it has not asked for packets, or wants none for now
	watchWaiting                   // for a key frame
	watchOn
	watchOver
)

// watch is a watcher of a hub.
type watch struct {
	watcher
	hub   *hub
	state watchState
	told  bool   // what the camera has
	at    uint64 // number of the next packet, if it is on
}

// hub is the stream of a camera that all who watch it share: one pull, which is an RTSP session with
// the site, and what of it is kept so that they can start at once. It belongs to the loop of the service. It is made for the first
// watcher and ends a while after the last.
//
// The packets since the last key frame are a log, in which each watcher has a place. Whoever has no room stays where he is and
// catches up; or goes on with the next key frame, when that has come before. So nobody has a queue of his own
// but that of his connection, none waits for another, and only whole groups of frames are left out.
type hub struct {
	service  *service
	loop     *loop
	watchers []*watch
	busy     int // watchers are being told something
	ended    bool
	name     [8]byte // CNAME

	// The stream, from one pull to the next.
	description *camera.Description // nil: nothing is known
	tracks      []hubTrack
	lead        int // index of the track by whose units watchers start and wait; -1: any packet will do
	inBand      func(track int) bool
	played      bool // a packet has come

	// The log.
	log     []camera.Packet
	base    uint64          // number of log[0]
	given   uint64          // packets before that have been given out
	pending int             // bytes of those that have not
	kept    bool            // log[0] begins a key frame
	size    int             // of the log, with packetCost
	pieces  [][]byte        // what its packets are in
	room    int             // bytes of pieces
	held    int             // of session.store
	ahead   []camera.Packet // of the lead's unit under way, until it is known whether that is a key frame: they come before all else of it
	woken   bool
	tick    evloop.Timer
	ticking bool
	endTurn func() // h.turn, made once

	// The pull.
	pull    *pull        // nil: there is none
	timer   evloop.Timer // of the next one, or of the end
	backOff time.Duration
	lostAt  time.Time // since when there is no stream; zero: there is one, or the first one is on its way
}

// hubTrack is a track of the stream. To watchers it goes on where it was when the camera has been away.
type hubTrack struct {
	reader camera.Reader
	ssrc   uint32  // as watchers know it
	rate   float64 // of its clock
	number uint32

	// How sequence numbers and timestamps differ from those of the camera.
	sequence  uint16
	timestamp uint32
	fresh     bool // that is to be found out, by the first packet of a pull
	begun     bool // there was one before

	// Of the last packet.
	last     uint16
	lastTime uint32
	lastAt   time.Time

	// For reports to the camera.
	source   uint32    // its SSRC
	first    uint32    // extended sequence number
	highest  uint32    // the same
	received uint32    // since first
	report   uint32    // middle of the NTP time of its last sender report
	reportAt time.Time // when that came
}

// pieceSize is that of most pieces of memory for packets, and maxPieces how many of them a loop keeps for what comes next.
const pieceSize, maxPieces = 64 << 10, 32

// storeShare is which part of as much memory as a session's streams may take there is on top of that for what is kept of its cameras.
const storeShare = 4

// store is the memory that the hubs and broadcasts of a session have for what is kept for whoever comes next.
type store struct{ size, used int }

// hold notes that somebody who has held *held bytes holds n now, and reports whether that may stay so: nobody is to have
// more than what is left. So one has much, many have the same, and there is something for the next one.
func (s *store) hold(held *int, n int) bool {
	s.used += n - *held
	*held = n
	return n <= s.size-s.used
}

// share is how much somebody may hold who holds n now.
func (s *store) share(n int) int { return max(0, s.size-s.used+n) / 2 }

// watch gives v the stream of s, which is a camera.
func (s *service) watch(v watcher) {
	if w := s.attend(v); w.state != watchOver {
		w.start()
	}
}

// attend tells v what the camera has, and gives it no packets until start.
func (s *service) attend(v watcher) *watch {
	w := &watch{watcher: v}
	if s.removed && s.hub == nil {
		w.end(troubleAway)
		return w
	}
	h := s.hub
	if h == nil {
		h = &hub{service: s, loop: s.session.loop, lead: -1, backOff: hubBackOff}
		h.endTurn = h.turn
		h.inBand = func(track int) bool { return h.tracks[track].reader.InBand }
		for i := range h.name {
			h.name[i] = "0123456789abcdef"[rand.IntN(16)]
		}
		s.hub = h
	}
	w.hub = h
	h.watchers = append(h.watchers, w)
	switch {
	case h.pull == nil && h.lostAt.IsZero():
		h.open()
	case h.pull != nil && len(h.watchers) == 1: // it was about to end
		h.timer.Stop()
	}
	if h.description != nil && w.state != watchOver {
		w.tell(h.description)
	}
	return w
}

// unwatch ends what watch has begun.
func (s *service) unwatch(v watcher) {
	if w := s.watching(v); w != nil {
		w.leave()
	}
}

// drained tells that v, which has been full, has room again.
func (s *service) drained(v watcher) {
	if w := s.watching(v); w != nil {
		w.more()
	}
}

func (s *service) watching(v watcher) *watch {
	if s.hub != nil {
		for _, w := range s.hub.watchers {
			if w.watcher == v && w.state != watchOver {
				return w
			}
		}
	}
	return nil
}

// tell tells what the camera has.
func (w *watch) tell(d *camera.Description) {
	if !w.told {
		w.told = true
		w.described(d)
	}
}

// end is the last that w hears.
func (w *watch) end(t *trouble) {
	if w.state != watchOver {
		w.state = watchOver
		w.gone(t)
	}
}

// start gives w packets from here on, in this callback or later: from a key frame.
func (w *watch) start() {
	h := w.hub
	switch {
	case h.lead < 0 && h.description != nil:
		w.state, w.at = watchOn, h.given
	case h.kept:
		w.state, w.at = watchOn, h.base
		w.more()
	default:
		w.state = watchWaiting
	}
}

// pause gives w no more packets until start.
func (w *watch) pause() {
	if w.state != watchOver {
		w.state = watchIdle
	}
}

// more goes on with w, which has room.
func (w *watch) more() {
	h := w.hub
	h.busy++
	h.feed(w)
	h.busy--
	h.sweep()
}

// leave takes w out. After the last one has left the stream goes on for a while.
func (w *watch) leave() {
	if w.state == watchOver {
		return
	}
	w.state = watchOver
	w.hub.sweep()
}

// sweep forgets who has left.
func (h *hub) sweep() {
	if h.busy > 0 || h.ended {
		return
	}
	n := len(h.watchers)
	h.watchers = slices.DeleteFunc(h.watchers, func(w *watch) bool { return w.state == watchOver })
	switch {
	case len(h.watchers) > 0 || n == 0:
	case h.pull == nil || h.service.removed || h.service.session.leaving:
		h.end()
	default:
		h.loop.Arm(&h.timer, hubRest, h.end)
	}
}

// end is that of the hub, which nobody watches any more.
func (h *hub) end() {
	if h.ended {
		return
	}
	h.ended = true
	h.timer.Stop()
	h.tick.Stop()
	h.store().hold(&h.held, 0)
	if h.service.hub == h {
		h.service.hub = nil
	}
	if p := h.pull; p != nil {
		h.pull = nil
		p.leave()
	}
}

// fail ends the hub and whoever watches.
func (h *hub) fail(t *trouble) {
	h.end()
	for _, w := range slices.Clone(h.watchers) {
		w.end(t)
	}
	h.watchers = nil
}

// withdraw is the end of the service. A stream that plays goes on, as all that visitors have under way; but
// there is no other one after it.
func (h *hub) withdraw() {
	switch {
	case h.pull == nil || !h.played:
		h.fail(troubleAway)
	case len(h.watchers) == 0:
		h.end()
	}
}

// open gets the stream.
func (h *hub) open() {
	s := h.service
	host := strings.TrimPrefix(s.host, "*.")
	var buf [relay.MaxHeader]byte
	b, err := s.header(buf[:0], netip.AddrPort{}, "rtsp", host)
	if err == nil && s.removed {
		err = tunnel.ErrClosed
	}
	var st *tunnel.Stream
	if err == nil {
		st, err = s.session.tun.Open(b)
	}
	if err != nil {
		h.lost(openTrouble(err))
		return
	}
	h.pull = newPull(h, st, "rtsp://"+host+s.publish.Path)
}

// lost is told that there is no stream any more, or none yet.
func (h *hub) lost(t *trouble) {
	h.pull = nil
	now := h.loop.Now()
	if h.lostAt.IsZero() {
		h.lostAt = now
	}
	h.give()
	h.forget()
	switch {
	case len(h.watchers) == 0:
		h.end()
	case !h.played || h.service.removed || now.Sub(h.lostAt)+h.backOff > hubPatience:
		h.fail(t)
	default:
		h.loop.Arm(&h.timer, h.backOff, h.open)
		h.backOff = min(2*h.backOff, maxHubBackOff)
	}
}

// forget empties the log. Watchers wait for the next key frame.
func (h *hub) forget() {
	h.behind()
	for _, w := range h.watchers {
		if w.state == watchOn && h.lead >= 0 {
			w.state = watchWaiting
		}
	}
	h.purge()
	h.kept, h.ahead = false, nil
}

// described is told what the camera has. Those who know something else go, unless that makes no difference
// to them.
func (h *hub) described(d *camera.Description) {
	s := h.service
	if h.description != nil {
		s.cam.reconnect()
	}
	if h.description == nil || !d.Continues(h.description, h.inBand) {
		h.description = nil
		h.busy++
		for i := 0; i < len(h.watchers); i++ {
			if w := h.watchers[i]; w.told {
				w.end(troubleChanged)
			}
		}
		h.busy--
		h.forget()
		h.tracks = make([]hubTrack, len(d.Tracks))
		for i := range h.tracks {
			h.tracks[i].ssrc, h.tracks[i].last = rand.Uint32(), uint16(rand.Uint32())
		}
	}
	h.description, h.lead = d, d.Lead()
	for i := range h.tracks {
		t := &h.tracks[i]
		inBand := t.reader.InBand
		t.reader.Reset(&d.Tracks[i])
		t.reader.InBand = inBand
		t.fresh, t.received, t.report, t.rate = true, 0, 0, float64(d.Tracks[i].ClockRate)
	}
	s.cam.describe(d)
	h.busy++
	for i := 0; i < len(h.watchers); i++ {
		w := h.watchers[i]
		if w.state != watchOver {
			w.tell(d)
		}
		if w.state == watchWaiting && h.lead < 0 {
			w.start()
		}
	}
	h.busy--
	h.sweep()
}

var troubleChanged = &trouble{503, "The camera has changed. Please try again."}

// take takes an RTP packet of a track, which is lent.
func (h *hub) take(track int, data []byte) {
	t := &h.tracks[track]
	p := camera.Packet{Track: track, Data: data}
	width, height := t.reader.Width, t.reader.Height
	if t.reader.Read(&p) != nil {
		return
	}
	if t.reader.Width != width || t.reader.Height != height {
		h.service.cam.size(track, t.reader.Width, t.reader.Height)
	}
	t.note(&p, h.loop.Now())
	h.lostAt, h.backOff, h.played = time.Time{}, hubBackOff, true
	if track != h.lead {
		h.add(p)
		return
	}
	if t.reader.Access == camera.Undecided {
		n := cap(data) - cap(p.Payload)
		p.Data = bytes.Clone(data)
		p.Payload = p.Data[n : n+len(p.Payload)]
		h.ahead = append(h.ahead, p)
		return
	}
	if first := len(h.log); p.Begins || len(h.ahead) > 0 { // now it is known what this is
		if t.reader.Access == camera.Key {
			h.key()
			first = 0
		}
		for _, a := range h.ahead {
			h.add(a)
		}
		h.ahead = nil
		h.add(p)
		h.log[first].Key = t.reader.Access == camera.Key
		return
	}
	h.add(p)
}

// takeControl takes RTCP packets of a track, which are lent. Of those there are watchers get sender reports, for the time that
// sound and pictures have in common, and a name that both have: what else is there is about the camera.
func (h *hub) takeControl(track int, data []byte) {
	t := &h.tracks[track]
	for len(data) >= 4 { // [version 2 bits, padding 1, count 5, type 8, length in words without the first 16]
		size := 4 + 4*int(binary.BigEndian.Uint16(data[2:]))
		if data[0]>>6 != 2 || size > len(data) {
			return
		}
		if data[1] != 200 || size < 28 { // sender report: [head 4, ssrc 4, NTP time 8, RTP time 4, packets 4, bytes 4, …]
			data = data[size:]
			continue
		}
		now := h.loop.Now()
		t.report, t.reportAt = binary.BigEndian.Uint32(data[10:]), now
		if t.fresh && t.begun { // how its timestamps go on is not known yet
			return
		}
		l := h.loop
		b := append(l.up[:0], 0x80, 200, 0, 6)
		b = binary.BigEndian.AppendUint32(b, t.ssrc)
		b = append(b, data[8:16]...)
		b = binary.BigEndian.AppendUint32(b, binary.BigEndian.Uint32(data[16:])+t.timestamp)
		b = append(b, data[20:28]...)
		b = append(b, 0x81, 202, 0, 4) // source description: [head 4, ssrc 4, item 1 (name), length 1, name 8, end 1, padding 1]
		b = binary.BigEndian.AppendUint32(b, t.ssrc)
		b = append(append(b, 1, byte(len(h.name))), h.name[:]...)
		b = append(b, 0, 0)
		h.add(camera.Packet{Track: track, RTCP: true, Data: b, Number: t.number})
		l.up = b[:0]
		return
	}
}

// note gives the packet the number, the sequence number and the time that watchers expect, and remembers them.
func (t *hubTrack) note(p *camera.Packet, now time.Time) {
	source := binary.BigEndian.Uint32(p.Data[8:])
	if t.fresh {
		t.fresh = false
		t.source, t.received = source, 0
		t.sequence = t.last + 1 - p.Sequence
		if t.begun {
			t.timestamp = t.lastTime + uint32(now.Sub(t.lastAt).Seconds()*t.rate) - p.Timestamp
		}
	}
	if t.received == 0 || source != t.source {
		t.source, t.received = source, 0
		t.first, t.highest = uint32(p.Sequence), uint32(p.Sequence)
	}
	t.received++
	if step := int16(p.Sequence - uint16(t.highest)); step > 0 {
		t.highest += uint32(step)
	}

	p.Sequence += t.sequence
	p.Timestamp += t.timestamp
	p.Number = t.number
	t.number++
	t.begun, t.last, t.lastTime, t.lastAt = true, p.Sequence, p.Timestamp, now
}

// next returns the number of the packet that comes next.
func (h *hub) next() uint64 { return h.base + uint64(len(h.log)) }

// add puts a packet, which is lent, into the log, as watchers get it.
func (h *hub) add(p camera.Packet) {
	size := 4 + len(p.Data)
	last := len(h.pieces) - 1
	if last < 0 || cap(h.pieces[last])-len(h.pieces[last]) < size {
		var b []byte
		l := h.loop
		if k := len(l.pieces) - 1; k >= 0 && size <= pieceSize {
			b, l.pieces[k] = l.pieces[k], nil
			l.pieces = l.pieces[:k]
		} else {
			b = make([]byte, 0, max(size, pieceSize))
		}
		h.pieces = append(h.pieces, b)
		h.room += cap(b)
		last++
	}
	c := h.pieces[last]
	at, channel := len(c), byte(2*p.Track)
	if p.RTCP {
		channel++
	}
	n := cap(p.Data) - cap(p.Payload)
	c = append(rtsp.AppendFrameHead(c, channel, len(p.Data)), p.Data...)
	h.pieces[last] = c
	p.Frame = c[at:]
	p.Data = p.Frame[4:]
	if !p.RTCP {
		p.Payload = p.Data[n : n+len(p.Payload)]
		binary.BigEndian.PutUint16(p.Data[2:], p.Sequence)
		binary.BigEndian.PutUint32(p.Data[4:], p.Timestamp)
		binary.BigEndian.PutUint32(p.Data[8:], h.tracks[p.Track].ssrc)
	}
	h.log = append(h.log, p)
	h.size += size + packetCost
	h.pending += size
}

// key empties the log for a key frame, with which who is behind goes on.
func (h *hub) key() {
	h.service.cam.keyframe(h.loop.since())
	h.give()
	for _, w := range h.watchers {
		switch {
		case w.state == watchOn:
			h.skip(w)
		case w.state == watchWaiting:
			w.state, w.at = watchOn, h.next()
		}
	}
	h.purge()
	h.kept = true
}

// isUnit reports whether a watcher may stop ahead of p.
func (h *hub) isUnit(p *camera.Packet) bool {
	return p.Begins && (p.Track == h.lead || h.lead < 0)
}

// skip leaves out what w has not had.
func (h *hub) skip(w *watch) {
	frames := 0
	for ; w.at < h.next(); w.at++ {
		if h.isUnit(&h.log[w.at-h.base]) {
			frames++
		}
	}
	h.service.cam.drop(frames)
}

// give gives all watchers what there is, as far as they have room.
func (h *hub) give() {
	h.pending, h.given = 0, h.next()
	h.busy++
	for i := 0; i < len(h.watchers); i++ {
		h.feed(h.watchers[i])
	}
	h.busy--
	h.sweep()
}

// feed gives w what the others have had.
func (h *hub) feed(w *watch) {
	given := false
	for w.state == watchOn && w.at < h.given {
		p := &h.log[w.at-h.base]
		if h.isUnit(p) && w.full() {
			break
		}
		w.at++
		given = true
		w.packet(p)
	}
	if given && w.state != watchOver {
		w.flush()
	}
}

// behind has those who have not had everything wait for the next key frame: it is not kept for them.
func (h *hub) behind() {
	for _, w := range h.watchers {
		if w.state == watchOn && w.at < h.next() {
			h.skip(w)
			if h.lead >= 0 {
				w.state = watchWaiting
			}
		}
	}
}

// purge empties the log. Nobody who is on has a place in it.
func (h *hub) purge() {
	h.base = h.next()
	h.given, h.pending, h.size = h.base, 0, 0
	if cap(h.log) > 2*len(h.log)+minLog {
		h.log = nil
	}
	clear(h.log)
	h.log = h.log[:0]
	l := h.loop
	for _, c := range h.pieces {
		if cap(c) == pieceSize && len(l.pieces) < maxPieces {
			l.pieces = append(l.pieces, c[:0])
		}
	}
	clear(h.pieces)
	h.pieces, h.room = h.pieces[:0], 0
	h.fits()
}

func (h *hub) store() *store { return &h.service.session.store }

// fits notes what the log takes, and reports whether it may stay.
func (h *hub) fits() bool {
	return h.ended || h.store().hold(&h.held, h.room+cap(h.log)*packetCost)
}

// wake has the packets that have come given out at the end of this turn.
func (h *hub) wake() {
	if !h.woken {
		h.woken = true
		h.loop.AfterTurn(h.endTurn)
	}
}

// turn gives out what has come, unless more of the same picture is about to come.
func (h *hub) turn() {
	h.woken = false
	switch {
	case h.ended || h.pending == 0:
	case h.pending >= hubBatch || !h.partial() || !h.fits():
		h.spread()
	case !h.ticking:
		h.ticking = true
		h.loop.Arm(&h.tick, hubTick, func() {
			h.ticking = false
			h.spread()
		})
	}
}

// partial reports whether the end of the lead's unit under way will be seen, and has not come.
func (h *hub) partial() bool {
	return h.lead >= 0 && h.tracks[h.lead].reader.Open && h.tracks[h.lead].reader.Marks
}

// spread gives out what there is.
func (h *hub) spread() {
	h.give()
	if !h.fits() || h.size > maxStream {
		h.kept = false
	}
	if !h.kept {
		h.behind()
		h.purge()
	}
}
