package camera

import (
	"bytes"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4"
	"github.com/bluenviron/mediacommon/v2/pkg/formats/mp4/codecs"
	"github.com/pion/rtcp"
	"github.com/pion/rtp"
)

// clip is a file of testdata, ready to be sent.
type clip struct {
	formats []format.Format
	units   []unit // in the order of decoding
}

// unit is an access unit of a clip.
type unit struct {
	track   int
	dts     int64 // in 90 kHz
	pts     int64 // in 90 kHz
	key     bool
	nalus   [][]byte // of video
	payload []byte   // of audio
}

func loadClip(t testing.TB, name string) clip {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name)
	if err != nil {
		t.Fatal(err)
	}
	in, parts := parseMP4(t, b)
	var c clip
	rates := map[int]int64{}
	for _, tr := range in.Tracks {
		rates[tr.ID] = int64(tr.TimeScale)
		switch k := tr.Codec.(type) {
		case *codecs.H264:
			c.formats = append(c.formats, &format.H264{PayloadTyp: 96, SPS: k.SPS, PPS: k.PPS, PacketizationMode: 1})
		case *codecs.H265:
			c.formats = append(c.formats, &format.H265{PayloadTyp: 96, VPS: k.VPS, SPS: k.SPS, PPS: k.PPS})
		case *codecs.MPEG4Audio:
			c.formats = append(c.formats, &format.MPEG4Audio{PayloadTyp: 97, Config: &k.Config, SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3})
		case *codecs.Opus:
			c.formats = append(c.formats, &format.Opus{PayloadTyp: 97, ChannelCount: k.ChannelCount})
		}
	}
	for _, p := range parts {
		for _, tr := range p.Tracks {
			at := int64(tr.BaseTime)
			for _, s := range tr.Samples {
				u := unit{track: tr.ID - 1, key: tr.ID == 2 || len(c.of(0))%25 == 0, payload: s.Payload}
				u.dts = scale(at, rates[tr.ID], videoRate)
				u.pts = scale(at+int64(s.PTSOffset), rates[tr.ID], videoRate)
				if tr.ID == 1 {
					var au h264.AVCC
					if err := au.Unmarshal(s.Payload); err != nil {
						t.Fatal(err)
					}
					u.nalus = au
				}
				c.units = append(c.units, u)
				at += int64(s.Duration)
			}
		}
	}
	slices.SortStableFunc(c.units, func(a, b unit) int { return int(a.dts - b.dts) })
	return c
}

// parseMP4 splits a file into what it begins with, and the rest.
func parseMP4(t testing.TB, b []byte) (in fmp4.Init, parts fmp4.Parts) {
	t.Helper()
	if err := in.Unmarshal(bytes.NewReader(b)); err != nil {
		t.Fatal(err)
	}
	moof := bytes.Index(b, []byte("moof")) - 4
	if end := bytes.Index(b, []byte("mfra")); end > 0 {
		b = b[:end-4]
	}
	if err := parts.Unmarshal(b[moof:]); err != nil {
		t.Fatal(err)
	}
	return in, parts
}

// sender makes RTP of units, each track with clocks of its own.
type sender struct {
	t     testing.TB
	c     clip
	enc   []func(unit) []*rtp.Packet
	ahead [2]int64 // added to the time of a track, in 90 kHz
}

func newSender(t testing.TB, c clip) *sender {
	s := &sender{t: t, c: c}
	for i, f := range c.formats {
		// Timestamps wrap around in the middle of the clip.
		stamp := func(ticks int64) uint32 {
			return uint32(scale(ticks, videoRate, int64(f.ClockRate()))) - uint32(f.ClockRate())
		}
		var encode func(unit) ([]*rtp.Packet, error)
		switch f := f.(type) {
		case *format.H264:
			e, err := f.CreateEncoder()
			if err != nil {
				t.Fatal(err)
			}
			e.PayloadMaxSize = 300
			encode = func(u unit) ([]*rtp.Packet, error) { return e.Encode(u.nalus) }
		case *format.H265:
			e, err := f.CreateEncoder()
			if err != nil {
				t.Fatal(err)
			}
			e.PayloadMaxSize = 300
			encode = func(u unit) ([]*rtp.Packet, error) { return e.Encode(u.nalus) }
		case *format.MPEG4Audio:
			e, err := f.CreateEncoder()
			if err != nil {
				t.Fatal(err)
			}
			encode = func(u unit) ([]*rtp.Packet, error) { return e.Encode([][]byte{u.payload}) }
		case *format.Opus:
			e, err := f.CreateEncoder()
			if err != nil {
				t.Fatal(err)
			}
			encode = func(u unit) ([]*rtp.Packet, error) {
				p, err := e.Encode(u.payload)
				return []*rtp.Packet{p}, err
			}
		}
		s.enc = append(s.enc, func(u unit) []*rtp.Packet {
			packets, err := encode(u)
			if err != nil {
				t.Fatal(err)
			}
			for _, p := range packets {
				p.Timestamp = stamp(u.pts + s.ahead[i])
			}
			return packets
		})
	}
	return s
}

// packets are those of u.
func (s *sender) packets(u unit) []*rtp.Packet { return s.enc[u.track](u) }

func (s *sender) send(m *Muxer, units ...unit) {
	for _, u := range units {
		for _, p := range s.packets(u) {
			m.Take(packetOf(u.track, p))
		}
	}
}

// report is a sender report of a track for a time.
func (s *sender) report(track int, ticks int64) []byte {
	rate := int64(s.c.formats[track].ClockRate())
	ntp := scale(ticks, videoRate, 1<<20)
	b, err := (&rtcp.SenderReport{
		NTPTime: 3_900_000_000<<32 + uint64(ntp)<<12,
		RTPTime: uint32(scale(ticks+s.ahead[track], videoRate, rate)) - uint32(rate),
	}).Marshal()
	if err != nil {
		s.t.Fatal(err)
	}
	return b
}

// read returns what a reader gets from pos to the end.
func read(m *Muxer, pos uint64) []byte {
	b := bytes.Clone(m.Init())
	for {
		f, next := m.Next(pos)
		if f == nil {
			return b
		}
		b, pos = append(b, f...), next
	}
}

// follower is a reader that is always up to date.
type follower struct {
	m       *Muxer
	started bool
	pos     uint64
	b       []byte
}

func (f *follower) follow() {
	if f.m.Init() == nil {
		return
	}
	if !f.started {
		f.started = true
		f.pos, _ = f.m.Start()
		f.b = bytes.Clone(f.m.Init())
	}
	for {
		data, next := f.m.Next(f.pos)
		if data == nil {
			return
		}
		f.b, f.pos = append(f.b, data...), next
	}
}

// samples are those of a track, with absolute times in its clock.
type timed struct {
	dts, pts, end int64
	key           bool
	data          []byte
}

func samplesOf(parts fmp4.Parts, id int) (all []timed) {
	for _, p := range parts {
		for _, tr := range p.Tracks {
			if tr.ID != id {
				continue
			}
			at := int64(tr.BaseTime)
			for _, s := range tr.Samples {
				all = append(all, timed{at, at + int64(s.PTSOffset), at + int64(s.Duration), !s.IsNonSyncSample, s.Payload})
				at += int64(s.Duration)
			}
		}
	}
	return all
}

// describe is a description of tracks of these formats.
func describe(formats []format.Format) *Description {
	d := new(Description)
	for _, f := range formats {
		d.Tracks = append(d.Tracks, Track{Format: f})
	}
	return d
}

func packetOf(track int, p *rtp.Packet) *Packet {
	return &Packet{Track: track, Sequence: p.SequenceNumber, Timestamp: p.Timestamp, Marker: p.Marker, Payload: p.Payload}
}

func newTestMuxer(t testing.TB, c clip) *Muxer {
	t.Helper()
	m, err := NewMuxer(describe(c.formats), true)
	if err != nil {
		t.Fatal(err)
	}
	return m
}

func TestMuxer(t *testing.T) {
	for name, mime := range map[string]string{
		"h264-aac.mp4":  `video/mp4; codecs="avc1.64000c, mp4a.40.2"`,
		"h265-opus.mp4": `video/mp4; codecs="hvc1.1.6.L30.90, opus"`,
	} {
		t.Run(name, func(t *testing.T) {
			c := loadClip(t, name)
			m := newTestMuxer(t, c)
			s := newSender(t, c)
			f := follower{m: m}
			for _, u := range c.units {
				s.send(m, u)
				f.follow()
			}
			if m.Type() != mime {
				t.Errorf("type %s, want %s", m.Type(), mime)
			}
			in, parts := parseMP4(t, f.b)
			if len(in.Tracks) != 2 {
				t.Fatalf("%d tracks", len(in.Tracks))
			}
			base := c.units[0].pts - samplesOf(parts, 1)[0].pts
			for i, want := range [][]unit{c.of(0), c.of(1)} {
				got := samplesOf(parts, i+1)
				if i == 0 && len(got) != len(want)-1 || i == 1 && len(got) < len(want)-8 {
					t.Fatalf("track %d has %d of %d samples", i, len(got), len(want))
				}
				rate, skip := int64(in.Tracks[i].TimeScale), 0
				for !bytes.HasSuffix(want[skip].payload, got[0].data) { // sound from before the first picture
					skip++
				}
				var last timed
				for k, g := range got {
					w := want[k+skip]
					if pts := scale(g.pts, rate, videoRate) + base; pts < w.pts-900*int64(2*i) || pts > w.pts+12000*int64(i) {
						t.Fatalf("track %d sample %d is at %d, want %d", i, k, pts, w.pts)
					}
					if g.key != w.key || !bytes.Equal(g.data, w.payload) {
						t.Fatalf("track %d sample %d, key %v, is not what was sent: %x, %x", i, k, g.key, g.data, w.payload)
					}
					if (k > 1 || k == 1 && i == 0) && (g.dts != last.end || g.dts <= last.dts) { // the clip has a hole behind the first sample of Opus
						t.Fatalf("track %d sample %d is at %d, and the last one until %d", i, k, g.dts, last.end)
					}
					last = g
				}
			}
			if parts[0].Tracks[0].BaseTime != 0 {
				t.Errorf("it begins at %d", parts[0].Tracks[0].BaseTime)
			}
		})
	}
}

func (c clip) of(track int) (all []unit) {
	for _, u := range c.units {
		if u.track == track {
			all = append(all, u)
		}
	}
	return all
}

// A reader that comes later begins at the last key frame, and one that is behind goes on at one.
func TestMuxerReaders(t *testing.T) {
	c := loadClip(t, "h264-aac.mp4")
	m := newTestMuxer(t, c)
	s := newSender(t, c)
	if _, ok := m.Start(); ok {
		t.Fatal("there is a start before there is anything")
	}
	video := c.of(0)
	s.send(m, c.until(video[40])...)
	pos, ok := m.Start()
	if !ok || pos != 25 {
		t.Fatalf("start %d %v, want 25", pos, ok)
	}
	_, parts := parseMP4(t, read(m, pos))
	if got := samplesOf(parts, 1); len(got) != 39-25 || !got[0].key {
		t.Fatalf("%d samples, the first one key: %v", len(got), got[0].key)
	}
	late := uint64(20) // is a little behind, which is nothing
	if f, next := m.Next(late); f == nil || next != 21 {
		t.Errorf("the one who is at %d goes on at %d", late, next)
	}
	s.send(m, c.between(video[40], video[60])...)
	if f, next := m.Next(late); f == nil || next != 51 { // and now it is too far
		t.Errorf("the one who is at %d goes on at %d, want 50", late, next)
	}
	if _, next := m.Next(3); next != 51 {
		t.Errorf("the one whose fragment is gone goes on at %d, want 50", next)
	}
	if f, _ := m.Next(59); f != nil {
		t.Error("there is something behind the end")
	}
	m.Trim(0)
	if f, _ := m.Next(50); f != nil || m.size != 0 {
		t.Errorf("%d bytes are kept", m.size)
	}
	if _, ok := m.Start(); ok {
		t.Error("there is a start where nothing is kept")
	}
	for _, u := range video[:3] {
		u.pts, u.dts = u.pts+video[60].pts, u.dts+video[60].pts
		s.send(m, u)
	}
	if f, next := m.Next(50); f == nil || next != 61 {
		t.Errorf("the one whose fragments were dropped goes on at %d, want 60", next)
	}
}

// until are the units before u, and between those from a to before b.
func (c clip) until(u unit) []unit { return c.between(c.units[0], u) }

func (c clip) between(a, b unit) (some []unit) {
	for _, u := range c.units {
		if u.dts >= a.dts && u.dts < b.dts || u.track == a.track && u.dts == a.dts {
			some = append(some, u)
		}
	}
	return some
}

// A packet that is missing costs the rest of its group of pictures.
func TestMuxerLoss(t *testing.T) {
	for _, name := range []string{"h264-aac.mp4", "h265-opus.mp4"} {
		c := loadClip(t, name)
		video := c.of(0)
		for drop := range 12 { // of one of the first pictures
			m := newTestMuxer(t, c)
			s := newSender(t, c)
			f := follower{m: m}
			n := 0
			for _, u := range c.units {
				for _, p := range s.packets(u) {
					if u.track == 0 {
						if n++; n == 30+drop {
							continue
						}
					}
					m.Take(packetOf(u.track, p))
				}
				f.follow()
			}
			_, parts := parseMP4(t, f.b)
			got := samplesOf(parts, 1)
			if len(got) < 49 || len(got) > len(video)-2 {
				t.Fatalf("%s %d: %d pictures of %d", name, drop, len(got), len(video))
			}
			w := 0
			for i, g := range got {
				skipped := 0
				for !bytes.Equal(video[w].payload, g.data) {
					w++
					skipped++
				}
				if skipped > 0 && !g.key {
					t.Errorf("%s %d: picture %d comes behind a gap of %d", name, drop, i, skipped)
				}
				if i > 0 && g.dts != got[i-1].end {
					t.Errorf("%s %d: a hole before picture %d", name, drop, i)
				}
				w++
			}
		}
	}
}

// Without sound, or with some that stops, browsers must not wait for it.
func TestMuxerSilence(t *testing.T) {
	c := loadClip(t, "h264-aac.mp4")
	video := c.of(0)
	m := newTestMuxer(t, c)
	s := newSender(t, c)
	s.send(m, video[:12]...)
	if m.Init() != nil {
		t.Error("sound is not waited for")
	}
	s.send(m, video[12:15]...)
	if want := `video/mp4; codecs="avc1.64000c"`; m.Type() != want {
		t.Fatalf("type %s, want %s", m.Type(), want)
	}
	if pos, _ := m.Start(); pos != 0 {
		t.Errorf("the first picture is at %d", pos)
	}
	// It comes.
	s.send(m, c.between(video[15], video[30])...)
	if m.Generation() != 1 || !strings.Contains(m.Type(), "mp4a") {
		t.Fatalf("generation %d, type %s", m.Generation(), m.Type())
	}
	// It stops.
	s.send(m, video[30:75]...)
	if m.Generation() != 2 || !m.Muted() {
		t.Fatalf("generation %d", m.Generation())
	}
	// It comes again: nobody waits for it any more.
	shift := video[74].pts + 3600
	for _, u := range c.units {
		u.pts, u.dts = u.pts+shift, u.dts+shift
		s.send(m, u)
	}
	if m.Generation() != 2 || m.Type() != `video/mp4; codecs="avc1.64000c"` {
		t.Fatalf("generation %d, type %s", m.Generation(), m.Type())
	}
	if m, err := NewMuxer(describe(c.formats), false); err != nil || m.sound != nil {
		t.Errorf("sound that is not wanted: %v", err)
	}
}

// Sound that is off by a constant moves to where the sender reports say that it is.
func TestMuxerReports(t *testing.T) {
	c := loadClip(t, "h264-aac.mp4")
	m := newTestMuxer(t, c)
	s := newSender(t, c)
	f := follower{m: m}
	var delay []unit // sound comes 0.4 s later than the pictures
	for _, u := range c.units {
		if u.track == 1 {
			u.dts += 36000
		}
		delay = append(delay, u)
	}
	slices.SortStableFunc(delay, func(a, b unit) int { return int(a.dts - b.dts) })
	for i, u := range delay {
		s.send(m, u)
		f.follow()
		if i == 20 {
			m.Take(&Packet{Track: 0, RTCP: true, Data: s.report(0, u.dts)})
			m.Take(&Packet{Track: 1, RTCP: true, Data: s.report(1, u.dts+9000)})
		}
	}
	_, parts := parseMP4(t, f.b)
	got := samplesOf(parts, 2)
	off := func(g timed) int64 {
		for _, u := range c.of(1) {
			if bytes.Equal(u.payload, g.data) {
				return scale(g.pts, 16000, videoRate) + c.units[0].pts - u.pts
			}
		}
		t.Fatal("a sample that was not sent")
		return 0
	}
	if o := off(got[0]); o < 30000 || o > 45000 {
		t.Errorf("without reports sound is off by %d", o)
	}
	if o := off(got[len(got)-1]); o < -minShift*3/2 || o > minShift*3/2 {
		t.Errorf("with reports sound is off by %d", o)
	}
	for i := 1; i < len(got); i++ {
		if hole := got[i].dts - got[i-1].end; hole < 0 || hole > 1024 {
			t.Errorf("a hole of %d before sample %d", hole, i)
		}
	}
}

// Other parameter sets, and another time, are another stream.
func TestMuxerChanges(t *testing.T) {
	c := loadClip(t, "h264-aac.mp4")
	video := c.of(0)
	m := newTestMuxer(t, c)
	s := newSender(t, c)
	s.send(m, c.until(video[30])...)
	old := m.Init()

	sps := bytes.Clone(c.formats[0].(*format.H264).SPS)
	sps[3]++ // level
	key := video[50]
	key.nalus = append([][]byte{sps, c.formats[0].(*format.H264).PPS}, key.nalus...)
	s.send(m, key)
	s.send(m, c.between(video[51], video[60])...)
	if m.Generation() != 1 || m.Type() != `video/mp4; codecs="avc1.64000d, mp4a.40.2"` || bytes.Equal(m.Init(), old) {
		t.Fatalf("generation %d, type %s", m.Generation(), m.Type())
	}
	pos, ok := m.Start()
	_, parts := parseMP4(t, read(m, pos))
	if !ok || parts[0].Tracks[0].BaseTime != 0 {
		t.Errorf("start %v at %d", ok, parts[0].Tracks[0].BaseTime)
	}

	s.ahead = [2]int64{1e8, 1e8}
	s.send(m, video[60:]...)
	if m.Generation() != 2 || m.Init() != nil {
		t.Errorf("generation %d", m.Generation())
	}
}

// Units that have no marker end with the next one; parameter sets with a marker of their own belong to what follows.
func TestMuxerMarkers(t *testing.T) {
	c := loadClip(t, "h264-aac.mp4")
	c.formats = c.formats[:1]
	f := c.formats[0].(*format.H264)
	sps, pps := f.SPS, f.PPS
	f.SPS, f.PPS = nil, nil // they come with the stream
	video := c.of(0)
	for _, marked := range []bool{true, false} {
		m := newTestMuxer(t, c)
		s := newSender(t, c)
		fo := follower{m: m}
		for _, u := range video {
			if u.key && marked {
				sets := u
				sets.nalus = [][]byte{{9, 0x10}, sps, pps}
				s.send(m, sets)
			}
			if u.key && !marked {
				u.nalus = append([][]byte{sps, pps}, u.nalus...)
			}
			for _, p := range s.packets(u) {
				p.Marker = p.Marker && marked
				m.Take(packetOf(0, p))
			}
			fo.follow()
		}
		_, parts := parseMP4(t, fo.b)
		got := samplesOf(parts, 1)
		if len(got) < len(video)-2 {
			t.Fatalf("marker %v: %d pictures", marked, len(got))
		}
		for i, g := range got {
			if !bytes.HasSuffix(g.data, video[i].payload) || g.pts+video[0].pts != video[i].pts || g.key != video[i].key {
				t.Fatalf("marker %v: picture %d is at %d, want %d", marked, i, g.pts, video[i].pts)
			}
		}
	}
}

func TestMuxerMemory(t *testing.T) {
	c := loadClip(t, "h264-aac.mp4")
	m := newTestMuxer(t, clip{formats: c.formats[:1]})
	s := newSender(t, c)
	video := c.of(0)
	big := video[1]
	big.nalus = [][]byte{append(bytes.Clone(big.nalus[0]), make([]byte, 1<<20)...)}
	s.send(m, video[0])
	for range 20 {
		big.pts += 3600
		s.send(m, big)
		if m.Size() > maxKept {
			t.Fatalf("%d bytes are kept", m.Size())
		}
	}
	if _, ok := m.Start(); ok {
		t.Error("the key frame is kept")
	}
	if f, _ := m.Next(0); f != nil {
		t.Error("a reader gets pictures that it cannot decode")
	}
}

// A camera whose clock hardly moves does not have pictures wait for sound without end.
func TestMuxerSlowClock(t *testing.T) {
	c := loadClip(t, "h264-aac.mp4")
	m := newTestMuxer(t, c)
	s := newSender(t, c)
	big := c.of(0)[0]
	big.nalus = append(slices.Clone(big.nalus), append([]byte{0x65, 0x88}, make([]byte, 1<<20)...))
	for range 12 {
		big.pts, big.dts = big.pts+1, big.dts+1
		s.send(m, big)
	}
	if m.Init() == nil {
		t.Errorf("%d bytes wait for the beginning", m.early)
	}
}

func TestMuxerNothingToPlay(t *testing.T) {
	for _, f := range [][]format.Format{nil, {nil}, {&format.MJPEG{}}, {&format.Opus{ChannelCount: 2}}} {
		if _, err := NewMuxer(describe(f), true); !errors.Is(err, ErrNotPlayable) {
			t.Errorf("%v: %v", f, err)
		}
	}
	m, err := NewMuxer(describe([]format.Format{&format.G711{MULaw: true, SampleRate: 8000, ChannelCount: 1}, &format.H264{PacketizationMode: 1}}), true)
	if err != nil || m.sound != nil || m.video != 1 {
		t.Errorf("%+v, %v", m, err)
	}
}

func FuzzMuxer(f *testing.F) {
	for i, name := range []string{"h264-aac.mp4", "h265-opus.mp4"} {
		c := loadClip(f, name)
		s := newSender(f, c)
		var b []byte
		for _, u := range c.units[:14] {
			for _, p := range s.packets(u) {
				raw, _ := p.Marshal()
				b = append(append(b, byte(u.track), byte(len(raw)>>8), byte(len(raw))), raw...)
			}
			if u.track == 1 {
				raw := s.report(1, u.dts)
				b = append(append(b, 3, 0, byte(len(raw))), raw...)
			}
		}
		f.Add(b, i == 1)
	}
	f.Fuzz(func(t *testing.T, b []byte, hevc bool) {
		formats := []format.Format{&format.H264{PacketizationMode: 1}, &format.MPEG4Audio{Config: &mpeg4audio.AudioSpecificConfig{Type: mpeg4audio.ObjectTypeAACLC, SampleRate: 16000, ChannelConfig: 1}, SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3}}
		if hevc {
			formats = []format.Format{&format.H265{}, &format.Opus{ChannelCount: 1}}
		}
		m, err := NewMuxer(describe(formats), true)
		if err != nil {
			t.Fatal(err)
		}
		fo := follower{m: m}
		generation := 0
		for len(b) > 3 {
			n := min(int(b[1])<<8|int(b[2]), len(b)-3)
			raw := b[3 : 3+n]
			var p rtp.Packet
			if b[0]&2 != 0 {
				m.Take(&Packet{Track: int(b[0] & 1), RTCP: true, Data: raw})
			} else if p.Unmarshal(raw) == nil {
				m.Take(packetOf(int(b[0]&1), &p))
			}
			b = b[3+n:]
			if m.Generation() != generation {
				generation, fo = m.Generation(), follower{m: m}
			}
			fo.follow()
		}
		if fo.b != nil {
			_, parts := parseMP4(t, fo.b)
			last := int64(-1)
			for _, s := range samplesOf(parts, 1) {
				if s.dts <= last {
					t.Fatal("time goes back")
				}
				last = s.dts
			}
		}
	})
}

func BenchmarkMuxer(b *testing.B) {
	c := loadClip(b, "h264-aac.mp4")
	s := newSender(b, c)
	var packets []*rtp.Packet
	var tracks []int
	for _, u := range c.units {
		for _, p := range s.packets(u) {
			packets, tracks = append(packets, p), append(tracks, u.track)
		}
	}
	b.ReportAllocs()
	for b.Loop() {
		m := newTestMuxer(b, c)
		for i, p := range packets {
			m.Take(packetOf(tracks[i], p))
		}
	}
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(b.N)/75, "ns/picture")
}

// fragile is a decoder that breaks at its nth packet.
type fragile struct {
	videoFormat
	n int
}

func (f *fragile) decode(p *rtp.Packet) ([][]byte, error) {
	if f.n--; f.n == 0 {
		panic("index out of range")
	}
	return f.videoFormat.decode(p)
}

// A packet that a library does not survive ends the stream of one camera, which begins again.
func TestMuxerPanic(t *testing.T) {
	c := loadClip(t, "h264-aac.mp4")
	m := newTestMuxer(t, c)
	m.picture = &fragile{m.picture, 40}
	newSender(t, c).send(m, c.units...)
	if m.Generation() != 1 {
		t.Errorf("generation %d, want another one", m.Generation())
	}
	if _, ok := m.Start(); !ok || m.Init() == nil {
		t.Error("it does not go on")
	}
}
