package camera

import (
	"bytes"
	"encoding/hex"
	"errors"
	"fmt"
	mathbits "math/bits"
	"slices"
	"strings"

	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph265"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/opus"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4/seekablebuffer"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mp4/codecs"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

const (
	// maxKept is how many bytes of fragments a Muxer keeps.
	maxKept = 8 << 20

	// maxLag is how far behind a reader of fragments may be, before it goes on at the last key frame.
	maxLag = videoRate

	// videoRate is the clock rate of H.264 and H.265, in which a Muxer counts.
	videoRate = 90000

	// audioWait is how long the beginning waits for sound, and audioLost how long it may be silent before
	// it is left out: a player stands still for as long as it misses one of the tracks that it was promised.
	audioWait, audioLost = videoRate / 2, 3 * videoRate / 2

	// maxJump is the longest step of the camera's clock that is a pause and not another time.
	maxJump = 10 * videoRate

	// maxReady is how many pictures may wait for sound, and maxSamples how many samples of sound for a picture. Those have
	// maxSample bytes at most: those of AAC have 768 for each channel, and packets of Opus six frames of 1275.
	maxReady, maxSamples, maxSample = 100, 1000, 8 << 10

	// maxSpare is how much memory for fragments is kept for the next one.
	maxSpare = 64 << 10

	// Sender reports move sound to where it belongs if it is further off than minShift, and not further than maxShift,
	// which would be two clocks that have nothing to do with each other.
	minShift, maxShift = videoRate / 25, 3 * videoRate
)

// ErrNotPlayable is a stream without a video track that browsers play as MP4.
var ErrNotPlayable = errors.New("no track with H.264 or H.265")

// Muxer makes MP4 of a stream, in fragments of one picture each and the sound that belongs to it, for any number of
// readers. Sound that browsers do not play in MP4 is left out. Each reader begins with Init and the fragment
// at Start, and goes on with Next until Generation changes: then the stream has become another one, and it begins again.
//
// A fragment is made when the next picture has come, as its duration is not known before: browsers take a
// picture that lasted longer than it was said to for a loss.
type Muxer struct {
	picture    videoFormat
	sound      audioFormat // nil: there is none
	video      int         // index of the track
	audio      int
	generation int
	muted      bool

	init      []byte
	mime      string
	withSound bool

	// Of video.
	clock   unwrapper
	began   bool  // a key frame has come
	base    int64 // timestamp of time 0
	arrived bool  // a packet has come, the last one of which is next-1
	next    uint16
	unit    uint32 // timestamp of the unit that is coming in
	open    bool
	partial int        // bytes of packets of it that are not a unit yet
	ahead   [][]byte   // what is to be put ahead of the next unit
	lost    bool       // part of a unit is missing: there is nothing to see before the next key frame
	ready   []*picture // that are to become fragments
	early   int        // bytes of those that wait for the beginning
	last    *picture   // whose duration is not known

	// Of audio.
	heard     bool  // there is some
	placed    bool  // soundAt is known
	soundAt   int64 // timestamp of time 0
	soundEnd  int64 // behind the last sample, in its clock
	samples   []sample
	soundTime unwrapper

	reports [2]report // of video and audio

	first, end uint64 // positions of kept
	start      uint64 // of the last key frame
	kept       []fragment
	size       int
	buf        seekablebuffer.Buffer
}

type picture struct {
	time     int64 // of decoding
	duration int64
	offset   int64 // until it is shown
	key      bool
	data     []byte
}

// shown is when p is to be seen.
func (p *picture) shown() int64 { return p.time + p.offset }

type sample struct {
	time, duration int64 // in the clock of the track
	data           []byte
}

type fragment struct {
	time int64
	key  bool
	data []byte
}

// report says which timestamp of a track is of which time.
type report struct {
	ntp  int64 // nanoseconds
	rtp  int64
	have bool
}

// NewMuxer returns a Muxer for the stream that d describes, with sound if there is some and sound is set. The error is
// ErrNotPlayable.
func NewMuxer(d *Description, sound bool) (*Muxer, error) {
	m := &Muxer{}
	for i := range d.Tracks {
		f := d.Tracks[i].Format
		if p := newVideoFormat(f); p != nil && m.picture == nil {
			m.picture, m.video = p, i
		}
		if s := newAudioFormat(f); s != nil && m.sound == nil && sound {
			m.sound, m.audio = s, i
		}
	}
	if m.picture == nil {
		return nil, ErrNotPlayable
	}
	return m, nil
}

// Generation counts how often the stream has become another one.
func (m *Muxer) Generation() int { return m.generation }

// Init is what a file begins with; nil until enough is known.
func (m *Muxer) Init() []byte { return m.init }

// Type is the media type of the file, with the codecs.
func (m *Muxer) Type() string { return m.mime }

// Muted reports whether sound has stopped while there were pictures, and is left out since.
func (m *Muxer) Muted() bool { return m.muted }

// Start returns the position of the last key frame's fragment.
func (m *Muxer) Start() (pos uint64, ok bool) {
	return m.start, m.start >= m.first && m.start < m.end
}

// Next returns the fragment at pos and the position behind it, or nil. A reader who is too far behind gets
// the last key frame's.
func (m *Muxer) Next(pos uint64) (data []byte, next uint64) {
	start, ok := m.Start()
	if ok && pos < start && (pos < m.first || m.kept[len(m.kept)-1].time-m.kept[pos-m.first].time > maxLag) {
		pos = start
	}
	if pos < m.first || pos >= m.end {
		return nil, pos
	}
	return m.kept[pos-m.first].data, pos + 1
}

// Size is how many bytes are kept, for readers and of what is not a fragment yet.
func (m *Muxer) Size() int { return m.size + m.unfinished() }

// unfinished is how many bytes have come that are not a fragment yet.
func (m *Muxer) unfinished() int {
	n := m.partial + m.early
	for _, b := range m.ahead {
		n += len(b)
	}
	for i := range m.samples {
		n += len(m.samples[i].data)
	}
	if m.last != nil {
		n += len(m.last.data)
	}
	return n
}

// Trim forgets the oldest fragments, until Size is n at most or there are none. Who has not got them goes on at the next key frame.
func (m *Muxer) Trim(n int) {
	n -= m.unfinished()
	pos, size := m.first, m.size
	for ; pos < m.end && size > n; pos++ {
		size -= len(m.kept[pos-m.first].data)
	}
	m.trim(pos)
}

// Restart forgets everything. Another generation begins with the next key frame.
func (m *Muxer) Restart() {
	m.lose()
	m.restart()
}

// Take takes a packet. It keeps nothing of p.
func (m *Muxer) Take(p *Packet) {
	if !survives(func() { m.take(p) }) {
		m.Restart()
	}
}

func (m *Muxer) take(p *Packet) {
	video := p.Track == m.video
	switch {
	case !video && (m.sound == nil || p.Track != m.audio):
	case p.RTCP:
		m.takeReport(video, p.Data)
	case len(p.Payload) == 0:
	case video:
		m.takeVideo(p.copy())
	default:
		m.takeAudio(p.copy())
	}
}

// copy makes of p what gortsplib's decoders take, and keep.
func (p *Packet) copy() *rtp.Packet {
	return &rtp.Packet{Header: rtp.Header{Marker: p.Marker, SequenceNumber: p.Sequence, Timestamp: p.Timestamp}, Payload: bytes.Clone(p.Payload)}
}

// takeReport takes RTCP, which says what time the timestamps of a track are.
func (m *Muxer) takeReport(video bool, b []byte) {
	packets, err := rtcp.Unmarshal(b)
	if err != nil {
		return
	}
	clock, to := &m.soundTime, &m.reports[1]
	if video {
		clock, to = &m.clock, &m.reports[0]
	}
	for _, p := range packets {
		if sr, ok := p.(*rtcp.SenderReport); ok && clock.set && sr.NTPTime != 0 {
			*to = report{
				ntp: int64(sr.NTPTime>>32)*1e9 + int64((sr.NTPTime&0xffffffff)*1e9>>32),
				rtp: clock.peek(sr.RTPTime), have: true,
			}
		}
	}
}

// restart begins another generation.
func (m *Muxer) restart() {
	m.generation++
	m.init, m.mime, m.withSound = nil, "", false
	m.began, m.last, m.ready, m.early, m.ahead = false, nil, nil, 0, nil
	m.heard, m.placed, m.soundEnd, m.samples = false, false, 0, nil
	m.reports = [2]report{}
	m.first, m.start = m.end, m.end
	m.kept, m.size = nil, 0
	m.picture.restart()
}

func (m *Muxer) takeVideo(p *rtp.Packet) {
	if m.arrived && p.SequenceNumber != m.next {
		m.lose()
	}
	m.arrived, m.next = true, p.SequenceNumber+1
	if !m.open {
		m.open, m.unit = true, p.Timestamp
	}
	au, err := m.picture.decode(p)
	switch {
	case err == nil:
	case errors.Is(err, rtph264.ErrMorePacketsNeeded), errors.Is(err, rtph265.ErrMorePacketsNeeded):
		m.partial += len(p.Payload)
		return
	default:
		m.lose()
		return
	}
	m.partial = 0
	t := m.unit
	// Without a marker, a unit ends when the next one begins.
	if m.open = p.Timestamp != t; m.open {
		m.unit = p.Timestamp
	}
	if au = withoutEmpty(au); len(au) > 0 {
		m.takeUnit(au, m.clock.next(t))
	}
}

// lose drops what there is of a unit.
func (m *Muxer) lose() {
	m.lost, m.open, m.partial = true, false, 0
	m.picture.restart()
}

func (m *Muxer) takeUnit(au [][]byte, pts int64) {
	if !m.picture.isPicture(au) { // parameter sets on their own: they belong to what follows
		if m.ahead = append(m.ahead, au...); len(m.ahead) > h264.MaxNALUsPerAccessUnit {
			m.ahead = nil
		}
		return
	}
	au, m.ahead = append(m.ahead, au...), nil
	key := m.picture.isKey(au)
	if m.picture.learn(au) && m.init != nil {
		m.restart()
	}
	if m.last != nil {
		switch step := pts - m.base - m.last.shown(); {
		case step == 0 && !m.lost: // the rest of it
			if more, err := h264.AVCC(au).Marshal(); err == nil && len(m.last.data)+len(more) <= h264.MaxAccessUnitSize {
				m.last.data = append(m.last.data, more...)
				m.last.key = m.last.key || key
			}
			return
		case step < -maxJump || step > maxJump:
			m.restart()
		}
	}
	if (m.lost || !m.began) && !key || m.picture.codec() == nil {
		return
	}
	m.lost = false
	data, err := h264.AVCC(au).Marshal() // the same for both
	if err != nil {
		m.lost = true
		return
	}
	dts := m.picture.decodeTime(au, pts)
	if !m.began {
		m.began, m.base = true, dts
	}
	p := &picture{time: dts - m.base, offset: pts - dts, key: key, data: data}
	if last := m.last; last != nil {
		if p.time <= last.time {
			p.offset -= last.time + 1 - p.time
			p.time = last.time + 1
		}
		last.duration = p.time - last.time
		m.ready = append(m.ready, last)
		m.early += len(last.data)
	}
	m.last = p
	m.emit()
}

// emit makes fragments of the pictures that are ready.
func (m *Muxer) emit() {
	if len(m.ready) == 0 {
		return
	}
	if m.init == nil {
		if m.sound != nil && !m.heard && m.last.time < audioWait && len(m.ready) < maxReady && m.early < maxKept {
			return
		}
		m.begin()
		if m.init == nil {
			return
		}
	}
	for _, p := range m.ready {
		m.add(p)
	}
	clear(m.ready)
	m.ready, m.early = m.ready[:0], 0
	if m.withSound && m.last.time-scale(m.soundEnd, m.sound.rate(), videoRate) > audioLost {
		m.muted, m.sound = true, nil
		m.restart()
	}
}

// begin makes init.
func (m *Muxer) begin() {
	in := fmp4.Init{Tracks: []*fmp4.InitTrack{{ID: 1, TimeScale: videoRate, Codec: m.picture.codec()}}}
	names := m.picture.name()
	if m.withSound = m.heard; m.withSound {
		in.Tracks = append(in.Tracks, &fmp4.InitTrack{ID: 2, TimeScale: uint32(m.sound.rate()), Codec: m.sound.codec()})
		names += ", " + m.sound.name()
	}
	m.buf.Reset()
	if err := in.Marshal(&m.buf); err != nil {
		m.ready, m.early = nil, 0
		m.began, m.last = false, nil // the parameter sets of the next key frame may be better
		return
	}
	m.init = bytes.Clone(m.buf.Bytes())
	m.mime = `video/mp4; codecs="` + names + `"`
}

// add makes a fragment of p and the sound that has come.
func (m *Muxer) add(p *picture) {
	part := fmp4.Part{SequenceNumber: uint32(m.end) + 1, Tracks: []*fmp4.PartTrack{{ID: 1, BaseTime: uint64(p.time), Samples: []*fmp4.Sample{{
		Duration: uint32(p.duration), PTSOffset: int32(p.offset), IsNonSyncSample: !p.key, Payload: p.data,
	}}}}}
	if len(m.samples) > 0 {
		t := &fmp4.PartTrack{ID: 2, BaseTime: uint64(m.samples[0].time)}
		for i, s := range m.samples {
			if i+1 < len(m.samples) {
				s.duration = m.samples[i+1].time - s.time
			}
			t.Samples = append(t.Samples, &fmp4.Sample{Duration: uint32(s.duration), Payload: s.data})
		}
		part.Tracks = append(part.Tracks, t)
		clear(m.samples)
		m.samples = m.samples[:0]
	}
	m.buf.Reset()
	if err := part.Marshal(&m.buf); err != nil {
		return
	}
	if p.key {
		m.trim(m.start) // readers who are a little behind go on with what was before
		m.start = m.end
	}
	m.kept = append(m.kept, fragment{p.time, p.key, bytes.Clone(m.buf.Bytes())})
	m.size += m.buf.Len()
	if m.buf.Cap() > maxSpare {
		m.buf = seekablebuffer.Buffer{}
	}
	m.end++
	m.Trim(maxKept)
}

// trim keeps nothing before pos.
func (m *Muxer) trim(pos uint64) {
	n := 0
	for ; m.first < pos && n < len(m.kept); n++ {
		m.size -= len(m.kept[n].data)
		m.first++
	}
	m.kept = slices.Delete(m.kept, 0, n)
}

func (m *Muxer) takeAudio(p *rtp.Packet) {
	units, err := m.sound.decode(p)
	if err != nil {
		return
	}
	rate, t := m.sound.rate(), m.soundTime.next(p.Timestamp)
	if !m.began {
		return
	}
	if m.init != nil && !m.withSound {
		m.restart()
		return
	}
	fresh := !m.placed
	if fresh {
		// Packets come in the order of time, more or less; sender reports will say more.
		m.heard, m.placed = true, true
		m.soundAt = t - scale(m.last.shown(), videoRate, rate)
	}
	jump := scale(maxJump, videoRate, rate)
	for _, u := range units {
		d := m.sound.duration(u)
		if d <= 0 || len(u) > maxSample {
			continue
		}
		m.align(t, d)
		at := t - m.soundAt
		t += d
		switch gap := at - m.soundEnd; {
		case !fresh && (gap < -jump || gap > jump): // the camera's clock was set
			m.placed = false
			return
		case gap > -d/2 && gap < d/2:
			at = m.soundEnd
		case gap < 0:
			continue
		}
		if len(m.samples) == maxSamples {
			m.samples = slices.Delete(m.samples, 0, 1)
		}
		m.samples = append(m.samples, sample{at, d, u})
		m.soundEnd = at + d
	}
}

// align moves sound a little, at timestamp t, if sender reports say that it is not where it belongs.
func (m *Muxer) align(t, d int64) {
	v, a := m.reports[0], m.reports[1]
	if !v.have || !a.have {
		return
	}
	rate := m.sound.rate()
	now := a.ntp + scale(t-a.rtp, rate, 1e9)
	is := scale(t-m.soundAt, rate, videoRate)
	should := v.rtp - m.base + scale(now-v.ntp, 1e9, videoRate)
	switch off := is - should; {
	case off > minShift && off < maxShift:
		m.soundAt += d / 4
	case off < -minShift && off > -maxShift:
		m.soundAt -= d / 4
	}
}

// scale converts v from units of 1/from to units of 1/to.
func scale(v, from, to int64) int64 { return v/from*to + v%from*to/from }

// unwrapper makes timestamps of 64 bits.
type unwrapper struct {
	last int64
	set  bool
}

func (u *unwrapper) peek(t uint32) int64 { return u.last + int64(int32(t-uint32(u.last))) }

func (u *unwrapper) next(t uint32) int64 {
	if !u.set {
		u.last, u.set = int64(t), true
	}
	u.last = u.peek(t)
	return u.last
}

// videoFormat is H.264 or H.265.
type videoFormat interface {
	// decode returns an access unit.
	decode(*rtp.Packet) ([][]byte, error)

	// restart forgets what has come of the unit, and of the order of pictures.
	restart()

	isPicture(au [][]byte) bool
	isKey(au [][]byte) bool

	// learn takes the parameter sets of a unit. It reports whether what codec and name return has changed.
	learn(au [][]byte) bool

	// decodeTime is when a unit is to be decoded that is to be shown at pts.
	decodeTime(au [][]byte, pts int64) int64

	codec() codecs.Codec // nil: it is not known yet
	name() string        // as in the codecs parameter (rfc6381)
	sets() [][]byte      // parameter sets
}

func newVideoFormat(f format.Format) videoFormat {
	var v videoFormat
	switch f := f.(type) {
	case *format.H264:
		v = &videoH264{format: f, sps: f.SPS, pps: f.PPS}
	case *format.H265:
		v = &videoH265{format: f, vps: f.VPS, sps: f.SPS, pps: f.PPS}
	default:
		return nil
	}
	v.restart()
	return v
}

type videoH264 struct {
	format   *format.H264
	decoder  *rtph264.Decoder
	order    *h264.DTSExtractor
	sps, pps []byte
}

func (v *videoH264) restart() {
	v.decoder = &rtph264.Decoder{PacketizationMode: 1} // takes all that mode 0 has
	v.order = nil
}

func (v *videoH264) decode(p *rtp.Packet) ([][]byte, error) { return v.decoder.Decode(p) }

func (v *videoH264) isPicture(au [][]byte) bool {
	return slices.ContainsFunc(au, func(nalu []byte) bool { t := nalu[0] & 0x1f; return t >= 1 && t <= 5 })
}

func (v *videoH264) isKey(au [][]byte) bool { return h264.IsRandomAccess(au) }

func (v *videoH264) learn(au [][]byte) (changed bool) {
	for _, nalu := range au {
		switch h264.NALUType(nalu[0] & 0x1f) {
		case h264.NALUTypeSPS:
			if !bytes.Equal(nalu, v.sps) {
				v.sps, v.pps, changed = nalu, nil, true
			}
		case h264.NALUTypePPS:
			// There may be several. All but the first one are in the pictures alone.
			if len(v.pps) == 0 {
				v.pps = nalu
			}
		}
	}
	return changed
}

func (v *videoH264) decodeTime(au [][]byte, pts int64) int64 {
	if h264.IsRandomAccess(au) {
		if v.order == nil {
			v.order = &h264.DTSExtractor{}
			v.order.Initialize()
		}
		au = append([][]byte{v.sps}, au...)
	}
	if v.order == nil {
		return pts
	}
	dts, err := v.order.Extract(au, pts)
	if err != nil || dts > pts {
		v.order = nil // until the next key frame
		return pts
	}
	return dts
}

func (v *videoH264) codec() codecs.Codec {
	if len(v.sps) < 4 || len(v.pps) == 0 {
		return nil
	}
	return &codecs.H264{SPS: v.sps, PPS: v.pps}
}

func (v *videoH264) sets() [][]byte { return [][]byte{v.sps, v.pps} }

func (v *videoH264) name() string { return "avc1." + hex.EncodeToString(v.sps[1:4]) }

type videoH265 struct {
	format        *format.H265
	decoder       *rtph265.Decoder
	order         *h265.DTSExtractor
	vps, sps, pps []byte
}

func (v *videoH265) restart() {
	v.decoder = &rtph265.Decoder{MaxDONDiff: v.format.MaxDONDiff}
	if v.decoder.Init() != nil {
		v.decoder = new(rtph265.Decoder)
	}
	v.order = nil
}

func (v *videoH265) decode(p *rtp.Packet) ([][]byte, error) { return v.decoder.Decode(p) }

func (v *videoH265) isPicture(au [][]byte) bool {
	return slices.ContainsFunc(au, func(nalu []byte) bool { return nalu[0]>>1&0x3f < 32 })
}

func (v *videoH265) isKey(au [][]byte) bool { // BLA, too
	return slices.ContainsFunc(au, func(nalu []byte) bool { t := nalu[0] >> 1 & 0x3f; return t >= 16 && t <= 23 })
}

func (v *videoH265) learn(au [][]byte) (changed bool) {
	for _, nalu := range au {
		switch h265.NALUType(nalu[0] >> 1 & 0x3f) {
		case h265.NALUType_VPS_NUT:
			if len(v.vps) == 0 {
				v.vps = nalu
			}
		case h265.NALUType_SPS_NUT:
			if !bytes.Equal(nalu, v.sps) {
				v.sps, v.pps, changed = nalu, nil, true
			}
		case h265.NALUType_PPS_NUT:
			if len(v.pps) == 0 {
				v.pps = nalu
			}
		}
	}
	return changed
}

func (v *videoH265) decodeTime(au [][]byte, pts int64) int64 {
	if v.isKey(au) {
		if v.order == nil {
			v.order = &h265.DTSExtractor{}
			v.order.Initialize()
		}
		au = append([][]byte{v.sps, v.pps}, au...)
	}
	if v.order == nil {
		return pts
	}
	dts, err := v.order.Extract(au, pts)
	if err != nil {
		v.order = nil
		return pts
	}
	return dts
}

func (v *videoH265) codec() codecs.Codec {
	if len(v.profile()) < 12 || len(v.vps) == 0 || len(v.pps) == 0 {
		return nil
	}
	return &codecs.H265{VPS: v.vps, SPS: v.sps, PPS: v.pps}
}

func (v *videoH265) sets() [][]byte { return [][]byte{v.vps, v.sps, v.pps} }

// profile is the profile and level of the SPS (H.265, 7.3.3), 12 bytes.
func (v *videoH265) profile() []byte {
	if len(v.sps) < 15 {
		return nil
	}
	b := h264.EmulationPreventionRemove(v.sps[:min(len(v.sps), 24)])
	if len(b) < 15 {
		return nil
	}
	return b[3:15]
}

// name is as in ISO 14496-15, annex E.3.
func (v *videoH265) name() string {
	p := v.profile()
	var compatible uint32
	for _, b := range p[1:5] {
		compatible = compatible<<8 | uint32(b)
	}
	tier := "L"
	if p[0]&0x20 != 0 {
		tier = "H"
	}
	var s strings.Builder
	fmt.Fprintf(&s, "hvc1.%s%d.%X.%s%d", []string{"", "A", "B", "C"}[p[0]>>6], p[0]&0x1f, mathbits.Reverse32(compatible), tier, p[11])
	for _, b := range bytes.TrimRight(p[5:11], "\x00") {
		fmt.Fprintf(&s, ".%X", b)
	}
	return s.String()
}

// audioFormat is AAC or Opus.
type audioFormat interface {
	decode(*rtp.Packet) ([][]byte, error)
	rate() int64
	duration(unit []byte) int64
	codec() codecs.Codec
	name() string
}

func newAudioFormat(f format.Format) audioFormat {
	switch f := f.(type) {
	case *format.MPEG4Audio:
		if c := f.Config; c == nil || c.SampleRate <= 0 || c.ChannelConfig == 0 || c.ChannelConfig > 7 {
			return nil
		}
		if d, err := f.CreateDecoder(); err == nil {
			return &audioAAC{f, d.Decode}
		}
	case *format.Opus:
		if f.ChannelCount != 1 && f.ChannelCount != 2 {
			return nil
		}
		if d, err := f.CreateDecoder(); err == nil {
			return &audioOpus{f, d.Decode}
		}
	}
	return nil
}

type audioAAC struct {
	format *format.MPEG4Audio
	take   func(*rtp.Packet) ([][]byte, error)
}

func (a *audioAAC) decode(p *rtp.Packet) ([][]byte, error) { return a.take(p) }
func (a *audioAAC) rate() int64                            { return int64(a.format.Config.SampleRate) }
func (a *audioAAC) codec() codecs.Codec                    { return &codecs.MPEG4Audio{Config: *a.format.Config} }
func (a *audioAAC) name() string                           { return fmt.Sprintf("mp4a.40.%d", a.format.Config.Type) }

func (a *audioAAC) duration([]byte) int64 {
	if a.format.Config.FrameLengthFlag {
		return 960
	}
	return mpeg4audio.SamplesPerAccessUnit
}

type audioOpus struct {
	format *format.Opus
	take   func(*rtp.Packet) ([]byte, error)
}

func (a *audioOpus) decode(p *rtp.Packet) ([][]byte, error) {
	u, err := a.take(p)
	return [][]byte{u}, err
}

func (a *audioOpus) rate() int64                { return 48000 }
func (a *audioOpus) duration(unit []byte) int64 { return opus.PacketDuration2(unit) }
func (a *audioOpus) codec() codecs.Codec        { return &codecs.Opus{ChannelCount: a.format.ChannelCount} }
func (a *audioOpus) name() string               { return "opus" }
