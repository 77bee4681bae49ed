package camera

import (
	"bytes"
	"errors"
	"hash/fnv"
	"slices"
	"strconv"
	"strings"

	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h265"
	"github.com/pion/sdp/v3"
)

const (
	// MaxDescription is how much of a description is read.
	MaxDescription = 64 << 10

	// MaxTracks is how many tracks of a description there can be. Each has two of the 256 channels of
	// an RTSP connection.
	MaxTracks = 32
)

// ErrNoTracks is a description of nothing that can be shown.
var ErrNoTracks = errors.New("the description has no track that comes by RTP")

// Description is what is known of a stream before its first packet.
type Description struct {
	Tracks []Track

	// Control is the control attribute of the session: "" if there is none.
	Control string

	// SDP describes the same tracks to viewers. The control attribute of the one with index N is trackID=N.
	SDP []byte
}

// Track is one medium of a stream.
type Track struct {
	Media       string // as in the description: "video", "audio", "application"
	Codec       string // "H264", "H265", "AAC", "PCMU" …: the encoding's name in capital letters; "" if it is not said
	ClockRate   int    // of timestamps, per second; 0 if it is not known
	PayloadType uint8  // the first one, if there are several
	Width       int    // of the picture, as far as the description says; 0 if it does not
	Height      int
	Control     string // the control attribute, which is a URL or a part of one; "" if there is none

	// Format is what gortsplib makes of the track; nil if it can do nothing with it.
	Format format.Format

	offer []string // lines of the offer, but for the control attribute
	sets  []string // of them those that parameter sets sent along with pictures replace
}

// IsVideo reports whether the track has pictures.
func (t *Track) IsVideo() bool { return t.Media == "video" }

// Lead returns the index of the track by whose pictures viewers start and are held back: the first one with
// video, or -1.
func (d *Description) Lead() int {
	return slices.IndexFunc(d.Tracks, func(t Track) bool { return t.IsVideo() })
}

// TrackOf returns the index of the track that a SETUP is for, or -1: its URL ends with the track's control attribute.
func TrackOf(tracks []Track, url string) int {
	best := -1
	for i := range tracks {
		c := strings.TrimPrefix(tracks[i].Control, "*")
		if strings.HasSuffix(url, c) && (c != "" || len(tracks) == 1) && (best < 0 || len(c) > len(tracks[best].Control)) {
			best = i
		}
	}
	return best
}

// Continues reports whether a viewer that knows old can go on with d in its place. inBand says of a
// track of old whether its parameter sets come along with its pictures, so that a viewer learns the new ones.
func (d *Description) Continues(old *Description, inBand func(track int) bool) bool {
	if len(d.Tracks) != len(old.Tracks) {
		return false
	}
	for i := range d.Tracks {
		n, o := &d.Tracks[i], &old.Tracks[i]
		if !slices.Equal(n.offer, o.offer) || !slices.Equal(n.sets, o.sets) && !inBand(i) {
			return false
		}
	}
	return true
}

// Parse reads a description in SDP. It takes what cameras write, and leaves out tracks that do not come by plain RTP
// and those for sound that is to be sent to the camera. The error is ErrNoTracks.
func Parse(b []byte) (*Description, error) {
	d := new(Description)
	control, media := split(b[:min(len(b), MaxDescription)])
	d.Control = control
	back := func(m medium) bool { return m.sendOnly }
	if !slices.ContainsFunc(media, func(m medium) bool { return !back(m) }) {
		back = func(medium) bool { return false } // some say that of all they send
	}
	for _, m := range media {
		if m.byRTP() && !back(m) && len(d.Tracks) < MaxTracks {
			d.Tracks = append(d.Tracks, m.track())
		}
	}
	if len(d.Tracks) == 0 {
		return nil, ErrNoTracks
	}
	d.SDP = d.offer()
	return d, nil
}

// medium is a section of a description.
type medium struct {
	name     string // video, audio
	protocol string // RTP/AVP
	formats  []string
	control  string
	sendOnly bool
	lines    []string // attributes and bandwidths that viewers are told
	attrs    []sdp.Attribute
}

// split takes a description apart into the control attribute of the session and the media.
func split(b []byte) (control string, media []medium) {
	for line := range bytes.Lines(b) {
		line = bytes.TrimSpace(line)
		if len(line) < 3 || line[1] != '=' || !isText(line) {
			continue
		}
		value := string(line[2:])
		if line[0] == 'm' {
			m := medium{}
			if f := strings.Fields(value); len(f) >= 4 {
				m.name, m.protocol = f[0], f[2]
				for _, n := range f[3:] {
					if pt, err := strconv.ParseUint(n, 10, 7); err == nil {
						m.formats = append(m.formats, strconv.FormatUint(pt, 10))
					}
				}
			}
			media = append(media, m)
			continue
		}
		var m *medium
		if len(media) > 0 {
			m = &media[len(media)-1]
		}
		switch key, v, _ := strings.Cut(value, ":"); {
		case m == nil && line[0] == 'a' && key == "control":
			control = strings.TrimSpace(v)
		case m == nil:
		case line[0] == 'b':
			m.lines = append(m.lines, "b="+value)
		case line[0] != 'a':
		case key == "control":
			m.control = strings.TrimSpace(v)
		case key == "sendonly":
			m.sendOnly = true
		case slices.Contains(offered, key):
			m.lines = append(m.lines, "a="+value)
			m.attrs = append(m.attrs, sdp.Attribute{Key: key, Value: v})
		}
	}
	return control, media
}

// offered are the attributes of a medium that viewers are told.
var offered = []string{"rtpmap", "fmtp", "framerate", "framesize", "cliprect", "x-dimensions", "x-framerate", "ptime", "maxptime", "rotate", "lang"}

func isText(line []byte) bool {
	return !bytes.ContainsFunc(line, func(r rune) bool { return r < ' ' && r != '\t' || r == 0x7f })
}

// byRTP reports whether the medium comes in packets that we can read: SRTP has its keys with the camera.
func (m *medium) byRTP() bool {
	profile, ok := strings.CutPrefix(strings.ToUpper(m.protocol), "RTP/")
	profile, _, _ = strings.Cut(profile, "/")
	return ok && (profile == "AVP" || profile == "AVPF") && len(m.formats) > 0 && isToken(m.name)
}

func isToken(s string) bool {
	return s != "" && !strings.ContainsFunc(s, func(r rune) bool { return (r < 'a' || r > 'z') && (r < 'A' || r > 'Z') && r != '-' })
}

// known are encodings by static payload type, and the rates of their clocks (RFC 3551, section 6).
var known = map[uint8]struct {
	codec string
	rate  int
}{
	0: {"PCMU", 8000}, 3: {"GSM", 8000}, 4: {"G723", 8000}, 5: {"DVI4", 8000}, 6: {"DVI4", 16000}, 7: {"LPC", 8000}, 8: {"PCMA", 8000}, 9: {"G722", 8000},
	10: {"L16", 44100}, 11: {"L16", 44100}, 12: {"QCELP", 8000}, 14: {"MPA", 90000}, 15: {"G728", 8000}, 16: {"DVI4", 11025}, 17: {"DVI4", 22050}, 18: {"G729", 8000},
	25: {"CELB", 90000}, 26: {"JPEG", 90000}, 28: {"NV", 90000}, 31: {"H261", 90000}, 32: {"MPV", 90000}, 33: {"MP2T", 90000}, 34: {"H263", 90000},
}

// common are names by which some encodings are better known.
var common = map[string]string{"MPEG4-GENERIC": "AAC", "MP4A-LATM": "AAC", "MP4V-ES": "MPEG4", "HEVC": "H265"}

func (m *medium) track() Track {
	pt, _ := strconv.ParseUint(m.formats[0], 10, 7)
	t := Track{Media: m.name, Control: m.control, PayloadType: uint8(pt), Codec: known[uint8(pt)].codec, ClockRate: known[uint8(pt)].rate}
	profile := "RTP/AVP"
	if strings.EqualFold(m.protocol, "RTP/AVPF") {
		profile = "RTP/AVPF"
	}
	t.offer = append(t.offer, "m="+m.name+" 0 "+profile+" "+strings.Join(m.formats, " "))
	for _, line := range m.lines {
		if strings.HasPrefix(line, "a=fmtp:") && t.IsVideo() {
			t.sets = append(t.sets, line)
		} else {
			t.offer = append(t.offer, line)
		}
	}
	for _, a := range m.attrs {
		n, v, _ := strings.Cut(strings.TrimSpace(a.Value), " ")
		if a.Key != "rtpmap" || n != m.formats[0] {
			continue
		}
		name, rate, _ := strings.Cut(strings.TrimSpace(v), "/")
		rate, _, _ = strings.Cut(rate, "/")
		t.Codec = strings.ToUpper(name)
		if hz, err := strconv.ParseUint(rate, 10, 31); err == nil {
			t.ClockRate = int(hz)
		}
	}
	if c := common[t.Codec]; c != "" {
		t.Codec = c
	}
	t.Format = m.format()
	switch f := t.Format.(type) {
	case *format.H264:
		t.Width, t.Height = size264(f.SPS)
	case *format.H265:
		t.Width, t.Height = size265(f.SPS)
	}
	return t
}

// format is what gortsplib says of the first format, without its parameters if these cannot be read.
func (m *medium) format() format.Format {
	md := &sdp.MediaDescription{MediaName: sdp.MediaName{Media: m.name, Protos: []string{"RTP", "AVP"}, Formats: m.formats}, Attributes: m.attrs}
	f, err := unmarshal(md, m.formats[0])
	if err != nil {
		md.Attributes = slices.DeleteFunc(slices.Clone(m.attrs), func(a sdp.Attribute) bool { return a.Key == "fmtp" })
		f, err = unmarshal(md, m.formats[0])
	}
	if _, unknown := f.(*format.Generic); err != nil || unknown {
		return nil
	}
	return f
}

func unmarshal(md *sdp.MediaDescription, payloadType string) (f format.Format, err error) {
	if !survives(func() { f, err = format.Unmarshal(md, payloadType) }) {
		return nil, errPanic
	}
	return f, err
}

var errPanic = errors.New("camera: a library does not survive this")

// survives runs f, which has a library read what a camera has sent, and reports whether that went without a panic.
// A panic would be the end of the process and of everybody in it, for one camera that somebody has broken into.
func survives(f func()) (ok bool) {
	defer func() {
		ok = recover() == nil
	}()
	f()
	return
}

// offer writes the description for viewers.
func (d *Description) offer() []byte {
	var b []byte
	for i := range d.Tracks {
		t := &d.Tracks[i]
		for _, line := range slices.Concat(t.offer, t.sets) {
			b = append(append(b, line...), "\r\n"...)
		}
		b = append(strconv.AppendInt(append(b, "a=control:trackID="...), int64(i), 10), "\r\n"...)
	}
	version := fnv.New32a()
	version.Write(b)
	head := "v=0\r\no=- " + strconv.FormatUint(uint64(version.Sum32()), 10) + " 1 IN IP4 127.0.0.1\r\ns=-\r\nc=IN IP4 0.0.0.0\r\nt=0 0\r\n" +
		"a=control:*\r\na=range:npt=now-\r\n"
	return append([]byte(head), b...)
}

// maxSet is the length of a parameter set that is looked into.
const maxSet = 1024

// size264 and size265 are the size of a picture by its sequence parameter set; 0 if that says nothing.
func size264(sps []byte) (width, height int) {
	var s h264.SPS
	if len(sps) <= maxSet && survives(func() {
		if s.Unmarshal(sps) == nil {
			width, height = s.Width(), s.Height()
		}
	}) {
		return sane(width, height)
	}
	return 0, 0
}

func size265(sps []byte) (width, height int) {
	var s h265.SPS
	if len(sps) <= maxSet && survives(func() {
		if s.Unmarshal(sps) == nil {
			width, height = s.Width(), s.Height()
		}
	}) {
		return sane(width, height)
	}
	return 0, 0
}

func sane(width, height int) (int, int) {
	if width < 1 || height < 1 || width > 1<<14 || height > 1<<14 {
		return 0, 0
	}
	return width, height
}
