package camera

import (
	"bytes"
	"encoding/binary"
	"os"
	"strings"
	"testing"

	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/pion/sdp/v3"
)

// capture returns the description and the interleaved frames of two seconds that ffmpeg has sent, of 10 pictures a
// second (mpeg2: 25) with a key frame every ten, 160×120.
func capture(t testing.TB, name string) (*Description, [][]byte) {
	t.Helper()
	b, err := os.ReadFile("testdata/" + name + ".sdp")
	if err != nil {
		t.Fatal(err)
	}
	d, err := Parse(b)
	if err != nil {
		t.Fatal(err)
	}
	if b, err = os.ReadFile("testdata/" + name + ".rtp"); err != nil {
		t.Fatal(err)
	}
	var frames [][]byte
	for len(b) > 0 {
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		frames = append(frames, b[:n])
		b = b[n:]
	}
	return d, frames
}

// units reads RTP packets of a track and writes down what becomes of each: the unit that it begins as "K" or "D" for what
// that turns out to be, "?" if it does not, and the others as "-".
func units(t testing.TB, r *Reader, packets [][]byte) string {
	t.Helper()
	var b []byte
	begin := -1
	for _, data := range packets {
		p := Packet{Data: data}
		if err := r.Read(&p); err != nil {
			t.Fatal(err)
		}
		if p.Begins {
			begin = len(b)
			b = append(b, '?')
		} else {
			b = append(b, '-')
		}
		if r.Access != Undecided {
			b[begin] = "?KD"[r.Access]
		}
	}
	return string(b)
}

func TestCaptures(t *testing.T) {
	for _, test := range []struct {
		name, codec   string
		keys, deltas  int
		width, height int // by the packets
		inBand        bool
	}{
		{"h264", "H264", 2, 18, 160, 120, true},
		{"h265", "H265", 2, 18, 160, 120, true},
		{"mpeg4", "MPEG4", 2, 18, 0, 0, false},
		{"mpeg2", "MPV", 5, 45, 0, 0, false},
		{"vp8", "VP8", 2, 18, 0, 0, false},
		{"vp9", "VP9", 2, 18, 0, 0, false},
		{"jpeg", "JPEG", 20, 0, 160, 120, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			d, frames := capture(t, test.name)
			track := &d.Tracks[0]
			if track.Codec != test.codec || track.ClockRate != 90000 || d.Lead() != 0 {
				t.Errorf("track %+v", track)
			}
			var packets [][]byte
			for _, f := range frames {
				if f[1] == 0 {
					packets = append(packets, f[4:])
				}
			}
			var r Reader
			r.Reset(track)
			got := units(t, &r, packets)
			if k, d := strings.Count(got, "K"), strings.Count(got, "D"); k != test.keys || d != test.deltas || strings.Contains(got, "?") {
				t.Errorf("%d key frames and %d others, want %d and %d: %s", k, d, test.keys, test.deltas, got)
			}
			if r.Width != test.width || r.Height != test.height || r.InBand != test.inBand || !r.Marks || r.Open {
				t.Errorf("%d×%d, in band %v, marks %v, open %v", r.Width, r.Height, r.InBand, r.Marks, r.Open)
			}

			// Without its markers it has the same units.
			for i, b := range packets {
				packets[i] = bytes.Clone(b)
				packets[i][1] &= 0x7f
			}
			r.Reset(track)
			if again := units(t, &r, packets); again != got {
				t.Errorf("without markers:\n%s\n%s", again, got)
			}
			if r.Marks || !r.Open {
				t.Error("there are no markers")
			}
		})
	}
}

// Sound has a unit in each packet, and all can be started at.
func TestSound(t *testing.T) {
	d, frames := capture(t, "h264")
	var r Reader
	r.Reset(&d.Tracks[1])
	for _, f := range frames {
		if f[1] == 2 {
			p := Packet{Data: f[4:]}
			if err := r.Read(&p); err != nil || !p.Begins || r.Access != Key || r.Open {
				t.Fatalf("%v, %+v", err, p)
			}
		}
	}
}

// packet is an RTP packet.
func packet(timestamp uint32, marker bool, payload ...byte) []byte {
	b := []byte{0x80, 96, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1}
	if marker {
		b[1] |= 0x80
	}
	binary.BigEndian.PutUint32(b[4:], timestamp)
	return append(b, payload...)
}

// Bytes of H.264 that tests are made of.
const (
	slice    = 0x41 // a slice of a picture that others refer to
	idr      = 0x65
	sei      = 0x06
	seq      = 0x67
	pic      = 0x68
	aud      = 0x09
	first    = 0x9a // the head of a first slice: P
	firstI   = 0x88 // of an I slice
	later    = 0x40 // of a slice that is not the first one
	fua      = 0x7c
	stapa    = 0x78
	recovery = 6
)

func TestH264(t *testing.T) {
	for _, test := range []struct {
		name, want string
		packets    [][]byte
	}{
		{"a picture", "KD", [][]byte{packet(1, true, idr, firstI), packet(2, true, slice, first)}},
		{"parameters with it", "K--D", [][]byte{packet(1, false, seq), packet(1, false, pic), packet(1, true, idr, firstI), packet(2, true, slice, first)}},
		{"a marker on each of them", "K--D", [][]byte{packet(1, true, seq), packet(1, true, pic), packet(1, true, idr, firstI), packet(2, true, slice, first)}},
		{"a time of their own", "DK--D", [][]byte{packet(1, true, slice, first), packet(2, false, seq), packet(3, false, pic), packet(4, true, idr, firstI), packet(5, true, slice, first)}},
		{"the time of the picture before", "DK--D", [][]byte{packet(1, false, slice, first), packet(1, false, seq), packet(1, false, pic), packet(4, false, idr, firstI), packet(5, false, slice, first)}},
		{"delimiters", "K-D-", [][]byte{packet(1, false, aud), packet(1, false, idr, firstI), packet(2, false, aud), packet(2, false, slice, first)}},
		{"several slices", "K-D-", [][]byte{packet(1, false, idr, firstI), packet(1, true, idr, later), packet(2, false, slice, first), packet(2, true, slice, later)}},
		{"the first slice is lost", "DK", [][]byte{packet(1, true, idr, later), packet(2, true, idr, firstI)}},
		{"fragments", "K--D-", [][]byte{packet(1, false, fua, 0x85, firstI), packet(1, false, fua, 0x05, 1), packet(1, true, fua, 0x45, 1), packet(2, false, fua, 0x81, first), packet(2, true, fua, 0x41, 1)}},
		{"the first fragment is lost", "D-K", [][]byte{packet(1, false, fua, 0x05, 1), packet(1, true, fua, 0x45, 1), packet(2, true, idr, firstI)}},
		{"aggregates", "KD", [][]byte{packet(1, true, stapa, 0, 1, seq, 0, 1, pic, 0, 2, idr, firstI), packet(2, true, stapa, 0, 2, slice, first)}},
		{"aggregates with parameters only", "K-D", [][]byte{packet(1, false, stapa, 0, 1, seq, 0, 1, pic), packet(1, true, idr, firstI), packet(2, true, slice, first)}},
		{"aggregates with order", "K", [][]byte{packet(1, true, 0x79, 0, 0, 0, 1, seq, 0, 2, idr, firstI)}},
		{"aggregates with time", "K", [][]byte{packet(1, true, 0x7a, 0, 0, 0, 1, 0, 0, 0, seq, 0, 2, 0, 0, 0, idr, firstI)}},
		{"aggregates with more time", "K", [][]byte{packet(1, true, 0x7b, 0, 0, 0, 1, 0, 0, 0, 0, seq, 0, 2, 0, 0, 0, 0, idr, firstI)}},
		{"fragments with order", "K", [][]byte{packet(1, true, 0x7d, 0x85, 0, 0, firstI)}},
		{"I slices without IDR", "KD", [][]byte{packet(1, true, stapa, 0, 1, seq, 0, 2, slice, firstI), packet(2, true, slice, firstI)}},
		{"a point of recovery", "KD", [][]byte{packet(1, true, stapa, 0, 1, seq, 0, 5, sei, recovery, 1, 0x84, 0x80, 0, 2, slice, first), packet(2, true, stapa, 0, 5, sei, recovery, 1, 0x84, 0x80, 0, 2, slice, first)}},
		{"other messages", "D", [][]byte{packet(1, true, stapa, 0, 1, seq, 0, 5, sei, 5, 1, 6, 0x80, 0, 2, slice, first)}},
		{"lengths that lie", "K-", [][]byte{packet(1, true, stapa, 0, 200, idr, firstI), packet(2, true, idr, firstI)}}, // the first one was no picture
		{"empty ones", "?--", [][]byte{packet(1, true), packet(2, true, stapa), packet(3, true, fua)}},
	} {
		var r Reader
		r.Reset(&Track{Media: "video", Codec: "H264"})
		if got := units(t, &r, test.packets); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

func TestH265(t *testing.T) {
	const head = 1 // second byte of a NAL unit's head
	nal := func(kind byte) byte { return kind << 1 }
	for _, test := range []struct {
		name, want, fmtp string
		packets          [][]byte
	}{
		{"IDR, CRA, BLA", "KKKD", "", [][]byte{packet(1, true, nal(19), head, 0x80), packet(2, true, nal(21), head, 0x80), packet(3, true, nal(16), head, 0x80), packet(4, true, nal(1), head, 0x80)}},
		{"parameters", "K---D", "", [][]byte{packet(1, false, nal(32), head, 1), packet(1, false, nal(33), head, 1), packet(1, false, nal(34), head, 1), packet(1, true, nal(20), head, 0x80), packet(2, true, nal(0), head, 0x80)}},
		{"of the time before", "DK-", "", [][]byte{packet(1, false, nal(1), head, 0x80), packet(1, false, nal(32), head, 1), packet(2, false, nal(20), head, 0x80)}},
		{"aggregate", "KD", "", [][]byte{packet(1, true, nal(48), head, 0, 3, nal(33), head, 1, 0, 3, nal(19), head, 0x80), packet(2, true, nal(48), head, 0, 3, nal(1), head, 0x80)}},
		{"fragments", "K-D-", "", [][]byte{packet(1, false, nal(49), head, 0x80|19, 0x80), packet(1, true, nal(49), head, 0x40|19, 0), packet(2, false, nal(49), head, 0x80|1, 0x80), packet(2, true, nal(49), head, 0x40|1, 0)}},
		{"the first fragment is lost", "DK", "", [][]byte{packet(1, true, nal(49), head, 0x40|19, 0), packet(2, true, nal(19), head, 0x80)}},
		{"with order", "K", "96 sprop-max-don-diff=2; x=1", [][]byte{packet(1, true, nal(48), head, 0, 0, 0, 3, nal(33), head, 1, 0, 0, 3, nal(19), head, 0x80)}},
		{"one with order", "KD", "96 sprop-max-don-diff=2", [][]byte{packet(1, true, nal(19), head, 0, 0, 0x80), packet(2, true, nal(1), head, 0, 0, 0x80)}},
		{"PACI", "KD", "", [][]byte{packet(1, true, nal(50), head, 19<<1, 0), packet(2, true, nal(50), head, 1<<1, 0)}},
	} {
		d, err := Parse([]byte("m=video 0 RTP/AVP 96\na=rtpmap:96 H265/90000\na=fmtp:" + test.fmtp + "\n"))
		if err != nil {
			t.Fatal(err)
		}
		var r Reader
		r.Reset(&d.Tracks[0])
		if got := units(t, &r, test.packets); got != test.want {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
}

// What is not known begins with each timestamp, and can be started at.
func TestUnknown(t *testing.T) {
	var r Reader
	r.Reset(&Track{Media: "video", Codec: "H261"})
	if got := units(t, &r, [][]byte{packet(1, false, 1), packet(1, false, 2), packet(2, false, 1), packet(2, true, 2), packet(2, true, 2)}); got != "K-K-K" {
		t.Error(got)
	}
}

// A unit without an end is cut, and parameters without a picture are no reason to wait.
func TestEndless(t *testing.T) {
	var r Reader
	r.Reset(&Track{Media: "video", Codec: "H264"})
	part := packet(1, false, append([]byte{fua, 0x01}, make([]byte, 1400)...)...)
	begins, size := 0, 0
	for size < 3*maxUnit {
		p := Packet{Data: part}
		if r.Read(&p); p.Begins {
			begins++
		}
		size += len(part)
	}
	if begins != 3 {
		t.Errorf("%d units of %d bytes", begins, size)
	}

	r.Reset(&Track{Media: "video", Codec: "H264"})
	for n := 0; r.Access == Undecided; n++ {
		p := Packet{Data: packet(uint32(n), true, append([]byte{sei, 200, 255}, make([]byte, 1400)...)...)}
		if r.Read(&p); n > maxAhead/1000 {
			t.Fatal("it is never decided")
		}
	}
}

func TestNoRTP(t *testing.T) {
	var r Reader
	r.Reset(&Track{Media: "video", Codec: "H264"})
	good := packet(1, true, idr, firstI)
	change := func(f func(b []byte)) []byte { b := bytes.Clone(good); f(b); return b }
	for _, b := range [][]byte{
		nil, good[:11],
		change(func(b []byte) { b[0] = 0x40 }),
		change(func(b []byte) { b[0] |= 0x0f }),                    // sources that are not there
		change(func(b []byte) { b[0] |= 0x10 }),                    // an extension
		change(func(b []byte) { b[0] |= 0x20; b[len(b)-1] = 200 }), // padding
	} {
		if err := r.Read(&Packet{Data: b}); err == nil {
			t.Errorf("%x is a packet", b)
		}
	}
	p := Packet{Data: append(change(func(b []byte) { b[0] |= 0x30 }), 0, 0, 0, 0, 1)}
	copy(p.Data[12:], []byte{0xbe, 0xde, 0, 0})
	if err := r.Read(&p); err != nil || len(p.Payload) != len(p.Data)-16-1 {
		t.Errorf("%v, payload %x", err, p.Payload)
	}
}

// hikvision is what a camera of that maker writes, with its address in it.
const hikvision = "v=0\r\no=- 1700000000000000 1700000000000000 IN IP4 192.168.1.64\r\ns=Media Presentation\r\ne=NONE\r\nb=AS:5100\r\nt=0 0\r\n" +
	"a=control:rtsp://192.168.1.64:554/Streaming/Channels/101/?transportmode=unicast\r\n" +
	"m=video 0 RTP/AVP 96\r\nc=IN IP4 192.168.1.64\r\nb=AS:5000\r\na=recvonly\r\na=x-dimensions:1920,1080\r\n" +
	"a=control:rtsp://192.168.1.64:554/Streaming/Channels/101/trackID=1?transportmode=unicast\r\na=rtpmap:96 H264/90000\r\n" +
	"a=fmtp:96 profile-level-id=420029; packetization-mode=1; sprop-parameter-sets=Z00AKZpmA8ARPyzUBAQFAAADA+gAAMNQBA==,aO48gA==\r\n" +
	"m=audio 0 RTP/AVP 8\r\nc=IN IP4 0.0.0.0\r\nb=AS:50\r\na=recvonly\r\na=control:rtsp://192.168.1.64:554/Streaming/Channels/101/trackID=2?transportmode=unicast\r\na=rtpmap:8 PCMA/8000\r\n" +
	"m=audio 0 RTP/AVP 0\r\na=control:trackID=4\r\na=rtpmap:0 PCMU/8000\r\na=sendonly\r\n" +
	"m=application 0 RTP/AVP 107\r\na=control:trackID=3\r\na=rtpmap:107 vnd.onvif.metadata/90000\r\n" +
	"a=Media_header:MEDIAINFO=494D4B48010300000400000111710110401F000000FA000000000000000000000000000000000000;\r\na=appversion:1.0\r\n"

func TestParse(t *testing.T) {
	d, err := Parse([]byte(hikvision))
	if err != nil {
		t.Fatal(err)
	}
	const want = "m=video 0 RTP/AVP 96\r\nb=AS:5000\r\na=x-dimensions:1920,1080\r\na=rtpmap:96 H264/90000\r\n" +
		"a=fmtp:96 profile-level-id=420029; packetization-mode=1; sprop-parameter-sets=Z00AKZpmA8ARPyzUBAQFAAADA+gAAMNQBA==,aO48gA==\r\na=control:trackID=0\r\n" +
		"m=audio 0 RTP/AVP 8\r\nb=AS:50\r\na=rtpmap:8 PCMA/8000\r\na=control:trackID=1\r\n" +
		"m=application 0 RTP/AVP 107\r\na=rtpmap:107 vnd.onvif.metadata/90000\r\na=control:trackID=2\r\n"
	head, got, _ := strings.Cut(string(d.SDP), "a=range:npt=now-\r\n")
	if got != want || strings.Contains(head, "192.168") {
		t.Errorf("offers %s%s", head, got)
	}
	if len(d.Tracks) != 3 || d.Lead() != 0 {
		t.Fatalf("tracks %+v", d.Tracks)
	}
	v, a, m := d.Tracks[0], d.Tracks[1], d.Tracks[2]
	if _, ok := v.Format.(*format.H264); !ok || v.Width != 1920 || v.Height != 1080 || v.Control != "rtsp://192.168.1.64:554/Streaming/Channels/101/trackID=1?transportmode=unicast" {
		t.Errorf("video %+v", v)
	}
	if _, ok := a.Format.(*format.G711); !ok || a.Codec != "PCMA" || a.ClockRate != 8000 || a.PayloadType != 8 {
		t.Errorf("audio %+v", a)
	}
	if m.Format != nil || m.Codec != "VND.ONVIF.METADATA" || m.ClockRate != 90000 {
		t.Errorf("metadata %+v", m)
	}
	if d.Control != "rtsp://192.168.1.64:554/Streaming/Channels/101/?transportmode=unicast" {
		t.Errorf("control %s", d.Control)
	}
	var check sdp.SessionDescription
	if err := check.Unmarshal(d.SDP); err != nil {
		t.Errorf("the offer is no SDP: %v", err)
	}
}

// Descriptions that are not as they should be.
func TestParseTolerates(t *testing.T) {
	for _, test := range []struct{ name, in, want string }{ // codecs of the tracks
		{"nothing before the media", "m=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000", "H264"},
		{"bare returns and spaces", "v=0\r\n m=x\r\nm=video 0 RTP/AVP  96 \r\na=rtpmap:96  H264/90000 \r\n\r\n", "H264"},
		{"parameters that cannot be read", "m=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\na=fmtp:96 sprop-parameter-sets=!!,??", "H264"},
		{"a codec nobody knows", "m=video 0 RTP/AVP 96\na=rtpmap:96 NEW/90000\nm=audio 0 RTP/AVP 97\na=rtpmap:97 X/1/2", "NEW X"},
		{"no rtpmap", "m=video 0 RTP/AVP 96\nm=audio 0 RTP/AVP 0", " PCMU"},
		{"all of it sendonly", "m=video 0 RTP/AVP 26\na=sendonly", "JPEG"},
		{"not by RTP", "m=video 0 udp 33\nm=audio 0 RTP/SAVP 0\nm=audio 0 RTP/AVP 8\nm=\nm=audio\nm=a b RTP/AVP x", "PCMA"},
		{"control bytes", "m=video 0 RTP/AVP 26\na=x-dimensions:1\x002", "JPEG"},
	} {
		d, err := Parse([]byte(test.in))
		if err != nil {
			t.Errorf("%s: %v", test.name, err)
			continue
		}
		var got []string
		for _, track := range d.Tracks {
			got = append(got, track.Codec)
		}
		if s := strings.Join(got, " "); s != test.want {
			t.Errorf("%s: %q, want %q", test.name, s, test.want)
		}
	}
	for _, in := range []string{"", "v=0\r\n", "m=video 0 RTP/AVP\n", "hello", "m=video 0 TCP 1\n"} {
		if _, err := Parse([]byte(in)); err != ErrNoTracks {
			t.Errorf("%q: %v", in, err)
		}
	}
	if d, err := Parse([]byte(strings.Repeat("m=video 0 RTP/AVP 26\n", 3000))); err != nil || len(d.Tracks) != MaxTracks {
		t.Errorf("%v", err)
	}
}

// When the camera comes back, a viewer can go on with what it knows, or not.
func TestContinues(t *testing.T) {
	parse := func(s string) *Description {
		d, err := Parse([]byte(s))
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	old := parse(hikvision)
	for _, test := range []struct {
		name              string
		d                 *Description
		continues, inBand bool
	}{
		{"the same", parse(hikvision), true, true},
		{"another address", parse(strings.ReplaceAll(hikvision, "192.168.1.64", "10.0.0.1")), true, true},
		{"another picture", parse(strings.ReplaceAll(hikvision, "aO48gA==", "aO48gB==")), false, true},
		{"another codec", parse(strings.ReplaceAll(hikvision, "H264", "H265")), false, false},
		{"another sound", parse(strings.ReplaceAll(hikvision, "RTP/AVP 8\r", "RTP/AVP 0\r")), false, false},
		{"fewer tracks", parse(hikvision[:strings.Index(hikvision, "m=audio")]), false, false},
	} {
		if got := test.d.Continues(old, func(int) bool { return false }); got != test.continues {
			t.Errorf("%s: continues %v", test.name, got)
		}
		if got := test.d.Continues(old, func(int) bool { return true }); got != test.inBand {
			t.Errorf("%s: continues %v with parameters in band", test.name, got)
		}
	}
}

// What Parse offers it reads again, as the same, and clients can.
func FuzzParse(f *testing.F) {
	f.Add([]byte(hikvision))
	for _, name := range []string{"h264", "h265", "mpeg4", "vp8", "vp9", "jpeg", "mpeg2"} {
		b, err := os.ReadFile("testdata/" + name + ".sdp")
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		d, err := Parse(b)
		if err != nil {
			return
		}
		if strings.ContainsFunc(string(d.SDP), func(r rune) bool { return r < ' ' && r != '\r' && r != '\n' && r != '\t' }) {
			t.Errorf("control bytes in %q", d.SDP)
		}
		again, err := Parse(d.SDP)
		if err != nil || len(again.Tracks) != len(d.Tracks) || !bytes.Equal(again.SDP, d.SDP) && len(d.SDP) < MaxDescription {
			t.Errorf("%q becomes %q: %v", b, d.SDP, err)
		}
	})
}

// A reader takes any packets, in any codec.
func FuzzReader(f *testing.F) {
	codecs := []string{"H264", "H265", "MPEG4", "MPV", "VP8", "VP9", "AV1", "JPEG", ""}
	for i, name := range []string{"h264", "h265", "mpeg4", "mpeg2", "vp8", "vp9", "", "jpeg"} {
		if name == "" {
			continue
		}
		_, frames := capture(f, name)
		f.Add(uint8(i), bytes.Join(frames[:4], nil))
	}
	f.Fuzz(func(t *testing.T, codec uint8, b []byte) {
		var r Reader
		r.Reset(&Track{Media: "video", Codec: codecs[int(codec)%len(codecs)], sets: []string{"sprop-max-don-diff=" + string(rune('0'+codec%2))}})
		was := Undecided
		for began := false; len(b) >= 4; {
			n := min(4+int(binary.BigEndian.Uint16(b[2:])), len(b))
			p := Packet{Data: b[4:n]}
			b = b[n:]
			if r.Read(&p) != nil {
				continue
			}
			if !began && !p.Begins {
				t.Fatal("the first packet begins nothing")
			}
			began = true
			if !p.Begins && was != Undecided && r.Access != was {
				t.Fatalf("access has changed from %d to %d", was, r.Access)
			}
			was = r.Access
		}
	})
}

func BenchmarkReader(b *testing.B) {
	d, frames := capture(b, "h264")
	var r Reader
	r.Reset(&d.Tracks[0])
	size := 0
	for b.Loop() {
		for _, f := range frames {
			if f[1] == 0 {
				p := Packet{Data: f[4:]}
				r.Read(&p)
				size += len(f)
			}
		}
	}
	b.SetBytes(int64(size / max(1, b.N)))
}
