package main

import (
	"bytes"
	"slices"
	"strings"
	"testing"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/h264"
)

func TestFilm(t *testing.T) {
	f := newFilm(cameraFilm)
	var sps h264.SPS
	if err := sps.Unmarshal(f.sps); err != nil || sps.Width() != 320 || sps.Height() != 180 || len(f.pps) == 0 || len(f.frames) != 4*cameraRate {
		t.Fatalf("%d frames, parameter sets %x, %x, %v", len(f.frames), f.sps, f.pps, err)
	}
	for n, frame := range f.frames {
		if h264.IsRandomAccess([][]byte{frame}) != (n%cameraRate == 0) {
			t.Errorf("frame %d is of type %d", n, frame[0]&0x1f)
		}
	}
	// It begins anew with what it takes to begin.
	for _, n := range []int{0, len(f.frames)} {
		if u := f.unit(n); len(u) != 3 || !bytes.Equal(u[0], f.sps) || !bytes.Equal(u[1], f.pps) || !bytes.Equal(u[2], f.frames[0]) {
			t.Errorf("frame %d is %x", n, u)
		}
	}
}

// The camera is watched as through the relays, by who knows its password.
func TestSampleCamera(t *testing.T) {
	c, err := startCamera()
	if err != nil {
		t.Fatal(err)
	}
	defer c.close()
	d := &demo{samples: &samples{camera: c}}
	watch := func(user string) error {
		_, err := d.watch(t.Context(), "rtsp", c.addr.String(), cameraPath, user, gortsplib.TunnelNone)
		return err
	}
	if err := watch(cameraUser + ":" + cameraSecret + "@"); err != nil {
		t.Error(err)
	}
	for _, user := range []string{"", cameraUser + ":sesame@"} {
		if err := watch(user); err == nil || !strings.Contains(err.Error(), "401") && !strings.Contains(err.Error(), "authentication") {
			t.Errorf("as %q: %v", user, err)
		}
	}
}

// A frame that is lost or changed on the way is not taken for one that came.
func TestSequence(t *testing.T) {
	f := newFilm(cameraFilm)
	play := func(change func(units [][][]byte) [][][]byte) error {
		var units [][][]byte
		for n := range watchedFrames + 1 {
			units = append(units, f.unit(len(f.frames)-3+n)) // over the end
		}
		s := &sequence{film: f, done: make(chan struct{})}
		for _, u := range change(units) {
			s.add(u, 1)
		}
		select {
		case <-s.done:
		default:
			t.Error("it goes on")
		}
		return s.err
	}
	if err := play(func(u [][][]byte) [][][]byte { return u }); err != nil {
		t.Error(err)
	}
	if err := play(func(u [][][]byte) [][][]byte { return slices.Delete(u, 7, 8) }); err == nil || !strings.HasPrefix(err.Error(), "frame 7 is not") {
		t.Errorf("a frame is missing: %v", err)
	}
	if err := play(func(u [][][]byte) [][][]byte {
		last := u[5][len(u[5])-1]
		u[5] = [][]byte{append(bytes.Clone(last[:len(last)-1]), 0x55)}
		return u
	}); err == nil || !strings.HasPrefix(err.Error(), "frame 5 is not") {
		t.Errorf("a frame is changed: %v", err)
	}
}
