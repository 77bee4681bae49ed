//go:build linux

package e2e

import (
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"
)

// TestFanOut has many watch a camera that is pulled once, each from a key frame on, and one of them stop reading.
func TestFanOut(t *testing.T) {
	t.Parallel()
	c := startCamera(t, nil, auth.VerifyMethodDigestMD5)
	s := configureCameras(t, nil, service{"gate", "rtsp://cams.example.com/gate", c.target()})
	s.more["gate"] = "fan_out = true\n"
	s.startPublic()
	s.startPrivate()
	url := camURL("rtsp", s.rtsp, "/gate")
	t.Run("players", func(t *testing.T) {
		w, err := watch(t, nil, s.rtsp, url, gortsplib.TunnelNone, gortsplib.ProtocolTCP)
		if err != nil {
			t.Fatal(err)
		}
		t.Run("each", func(t *testing.T) {
			for _, p := range players {
				t.Run(p.name, func(t *testing.T) {
					t.Parallel()
					r, err := p.play(p, t, s, 50, p.url(s, "", "/gate"))
					if err != nil {
						t.Fatal(err)
					}
					if len(r.pictures) == 0 || !r.pictures[0].isKey() {
						t.Errorf("it does not begin with a key frame: %+v", r.pictures[:min(len(r.pictures), 2)])
					}
					r.gapless(t, 50)
				})
			}
		})
		w.frames(50).gapless(t, 50)
		if conns, _ := c.count(); conns != 1 {
			t.Errorf("%d connections to the camera for %d players", conns, len(players)+1)
		}
		for _, asked := range c.requests() {
			if strings.Contains(asked, "cams.example.com") {
				t.Errorf("the camera was asked: %s", asked)
			}
		}
	})
	t.Run("a viewer who stops reading", func(t *testing.T) {
		began, _ := c.count()
		c.fill(60 << 10) // 1.5 MB a second, more than the buffers of the system hold for long
		defer c.fill(0)
		slow, _ := dialPlayer(t, s.rtsp)
		slow.watch(url)
		slow.until("the first frames", enough(25))
		w, err := watch(t, nil, s.rtsp, url, gortsplib.TunnelNone, gortsplib.ProtocolTCP)
		if err != nil {
			t.Fatal(err)
		}
		beside := w.frames(300)
		// On a busy machine it may itself be too slow now and then, but it has most of what the other one has not.
		if _, dropped := gaps(t, beside.pictures); dropped > 100 {
			t.Errorf("a viewer who reads has 300 frames and lacks %d", dropped)
		}
		for _, p := range beside.pictures {
			if late := p.came.Sub(p.sent); late > 10*time.Second {
				t.Errorf("frame %d came %v late", p.n, late)
				break
			}
		}
		// Who reads again gets what the buffers have, and goes on with a key frame.
		last := beside.pictures[len(beside.pictures)-1].n
		p := slow.until("reading again", func(p []picture) bool { return p[len(p)-1].n > last })
		if n, _ := gaps(t, p); n == 0 {
			t.Error("no frame was dropped: this has tested nothing")
		}
		if now, _ := c.count(); now > began+1 {
			t.Errorf("%d connections to the camera for two viewers", now-began)
		}
	})
	eventually(t, "the end of the pull", func() bool { _, open := c.count(); return open == 0 })
}

// gaps counts where frames were dropped, and how many: what comes behind must be a key frame.
func gaps(t testing.TB, p []picture) (gaps, dropped int) {
	t.Helper()
	for i := 1; i < len(p); i++ {
		if p[i].n != p[i-1].n+1 {
			gaps++
			dropped += p[i].n - p[i-1].n - 1
			if !p[i].isKey() {
				t.Errorf("after frame %d comes %d, which is no key frame", p[i-1].n, p[i].n)
			}
		}
	}
	return gaps, dropped
}

// TestCameraReboots takes cameras away from those who watch.
func TestCameraReboots(t *testing.T) {
	t.Parallel()
	small, err := smallFilm()
	if err != nil {
		t.Fatal(err)
	}
	large, err := largeFilm()
	if err != nil {
		t.Fatal(err)
	}
	c := startCamera(t, nil, auth.VerifyMethodDigestMD5)
	s := configureCameras(t, nil,
		service{"shared", "rtsp://cams.example.com/shared", c.target()},
		service{"alone", "rtsp://cams.example.com/alone", c.target()})
	s.more["shared"] = "fan_out = true\n"
	s.startPublic()
	s.startPrivate()
	shared, _ := dialPlayer(t, s.rtsp)
	shared.watch(camURL("rtsp", s.rtsp, "/shared"))
	before := shared.until("before", enough(30))
	alone, err := watch(t, nil, s.https, camURL("rtsps", s.https, "/alone"), gortsplib.TunnelHTTP, gortsplib.ProtocolTCP)
	if err != nil {
		t.Fatal(err)
	}
	alone.await("before", enough(30))

	c.reboot(time.Second, small)
	p := shared.until("after the reboot", func(p []picture) bool { return p[len(p)-1].n > before[len(before)-1].n+100 })
	if n, _ := gaps(t, p); n > 1 || shared.lost > 0 {
		t.Errorf("%d gaps in the numbers of frames, %d in those of packets", n, shared.lost)
	}
	// Who has a stream of its own is told at once that it is over.
	eventually(t, "the end of a player's stream", func() bool {
		alone.mu.Lock()
		defer alone.mu.Unlock()
		return alone.ended != nil
	})

	c.reboot(time.Second, large)
	for _, path := range []string{"/shared", "/alone"} {
		r, err := ffmpeg(t, nil, 25, camURL("rtsp", s.rtsp, path), "-rtsp_transport", "tcp")
		if err != nil {
			t.Fatalf("%s, another film: %v", path, err)
		}
		if r.gapless(t, 25); r.video != 25 {
			t.Errorf("%s, another film: decoded %d\n%s", path, r.video, r.output)
		}
	}
}
