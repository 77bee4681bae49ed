package camera

import (
	"bytes"
	"image"
	"image/jpeg"
	"testing"

	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
	"github.com/pion/rtp"
)

func TestStill(t *testing.T) {
	for name, want := range map[string]string{"h264-aac.mp4": "h264", "h265-opus.mp4": "hevc"} {
		c := loadClip(t, name)
		s := newSender(t, c)
		still := NewStill(c.formats[0])
		if still == nil || still.Format != want {
			t.Fatalf("%s: %+v", name, still)
		}
		video := c.of(0)
		for i, u := range video[10:26] {
			var b []byte
			packets := s.packets(u)
			for k, p := range packets {
				if b = still.RTP(p); b != nil && k < len(packets)-1 {
					t.Fatalf("%s: a picture after packet %d of %d", name, k, len(packets))
				}
			}
			if (b != nil) != u.key {
				t.Fatalf("%s: picture %d, %v", name, i+10, b != nil)
			}
			if b == nil {
				continue
			}
			var au h264.AnnexB
			if err := au.Unmarshal(b); err != nil {
				t.Fatal(err)
			}
			if n := len(au) - len(u.nalus); n < 2 || !bytes.Equal(au[n], u.nalus[0]) {
				t.Errorf("%s: %d units with %d before", name, len(au), n)
			}
		}
	}
	for _, f := range []format.Format{nil, &format.Opus{}} {
		if NewStill(f) != nil {
			t.Errorf("a still of %T", f)
		}
	}
	if NewStill(&format.H264{}).RTP(&rtp.Packet{}) != nil {
		t.Error("a still of nothing")
	}
}

func TestStillJPEG(t *testing.T) {
	f := &format.MJPEG{}
	e, err := f.CreateEncoder()
	if err != nil {
		t.Fatal(err)
	}
	picture := testJPEG(t)
	packets, err := e.Encode(picture)
	if err != nil || len(packets) < 2 {
		t.Fatalf("%d packets, %v", len(packets), err)
	}
	still := NewStill(f)
	for i, p := range packets {
		b := still.RTP(p)
		if (b != nil) != (i == len(packets)-1) {
			t.Fatalf("packet %d of %d: %v", i, len(packets), b != nil)
		}
		if b != nil && !bytes.HasPrefix(b, []byte{0xff, 0xd8, 0xff}) {
			t.Errorf("it begins with %x", b[:4])
		}
	}
}

// testJPEG is a picture that takes several packets.
func testJPEG(t *testing.T) []byte {
	t.Helper()
	m := image.NewYCbCr(image.Rect(0, 0, 320, 240), image.YCbCrSubsampleRatio420)
	for i := range m.Y {
		m.Y[i] = byte(i * i >> 5)
	}
	var b bytes.Buffer
	if err := jpeg.Encode(&b, m, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}
