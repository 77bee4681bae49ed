package public

import (
	"reflect"
	"testing"
	"time"
)

// What operators are told of a camera whose stream begins, goes on, stops and begins again.
func TestCameraRate(t *testing.T) {
	var c cameraTally
	at := func(seconds float64) int64 { return int64(seconds * float64(time.Second)) }
	want := func(seconds float64, rate uint64) {
		t.Helper()
		if got := c.rate(at(seconds)); got != rate {
			t.Errorf("at %v s: %d bits per second, want %d", seconds, got, rate)
		}
	}
	want(3, 0)
	// 1000 bytes a second, in four pieces.
	for s := 10.0; s < 40; s += 0.25 {
		c.media(at(s), 250)
		switch s {
		case 10.75: // the second is not over
			want(s, 0)
		case 11.75, 13, 15, 20, 39.75:
			want(s, 8000)
		}
	}
	// It stops, and is forgotten.
	want(40, 8000)
	want(42, 8*3000/5)
	want(44.9, 8*1000/5)
	want(45, 0)
	want(1000, 0)
	// It begins again, with a peak in the first second: what came before does not weigh on it.
	c.media(at(2000.5), 5000)
	want(2001, 40000)
	want(2002, 20000)
	if c.received != 35000 {
		t.Errorf("%d bytes have come", c.received)
	}
}

func TestCameraStatus(t *testing.T) {
	var c cameraTally
	if st := c.status(1); !reflect.DeepEqual(*st, CameraStatus{}) {
		t.Errorf("a camera that nobody has seen: %+v", st)
	}
	c.viewer(+1)
	c.viewer(+1)
	c.viewer(-1)
	c.describe(CameraTrack{Media: "video", Codec: "H\x1b[31m264\u2028", Width: 640, Height: 360}, CameraTrack{Media: "audio", Codec: "MPEG4-GENERIC-AND-MORE"})
	c.keyframe(int64(time.Second))
	c.reconnect()
	c.drop(3)
	st := c.status(int64(time.Minute))
	if age := time.Since(st.KeyFrame); age < 59*time.Second || age > 61*time.Second {
		t.Errorf("the key frame is %v old", age)
	}
	st.KeyFrame = time.Time{}
	if want := (CameraStatus{Viewers: 1, Reconnects: 1, Dropped: 3, Tracks: []CameraTrack{
		{Media: "video", Codec: "H[31m264", Width: 640, Height: 360}, {Media: "audio", Codec: "MPEG4-GENERIC-AN"},
	}}); !reflect.DeepEqual(*st, want) {
		t.Errorf("%+v, want %+v", *st, want)
	}
	c.describe(make([]CameraTrack, 32)...)
	if n := len(c.status(0).Tracks); n != maxTracksShown {
		t.Errorf("%d tracks are shown", n)
	}
}
