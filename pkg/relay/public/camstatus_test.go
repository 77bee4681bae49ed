package public

import (
	"os"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
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
	c.describe(&camera.Description{Tracks: []camera.Track{{Media: "video", Codec: "H\x1b[31m264\u2028", Width: 640, Height: 360}, {Media: "audio", Codec: "MPEG4-GENERIC-AND-MORE"}}})
	c.size(0, 1280, 720)
	c.size(7, 1, 1)
	c.keyframe(int64(time.Second))
	c.reconnect()
	c.drop(3)
	st := c.status(int64(time.Minute))
	if age := time.Since(st.KeyFrame); age < 59*time.Second || age > 61*time.Second {
		t.Errorf("the key frame is %v old", age)
	}
	st.KeyFrame = time.Time{}
	if want := (CameraStatus{Viewers: 1, Reconnects: 1, Dropped: 3, Tracks: []CameraTrack{
		{Media: "video", Codec: "H[31m264", Width: 1280, Height: 720}, {Media: "audio", Codec: "MPEG4-GENERIC-AN"},
	}}); !reflect.DeepEqual(*st, want) {
		t.Errorf("%+v, want %+v", *st, want)
	}
	c.describe(&camera.Description{Tracks: make([]camera.Track, 32)})
	if n := len(c.status(0).Tracks); n != maxTracksShown {
		t.Errorf("%d tracks are shown", n)
	}
}

// What passes by on the way to a player tells of the camera: the capture is that of a real one.
func TestCameraPassesBy(t *testing.T) {
	sdp, err := os.ReadFile("../../camera/testdata/h264.sdp")
	if err != nil {
		t.Fatal(err)
	}
	frames, err := os.ReadFile("../../camera/testdata/h264.rtp")
	if err != nil {
		t.Fatal(err)
	}
	described := strings.NewReplacer("b=AS:150\n", "a=control:trackID=0\n", "b=AS:24\n", "a=control:trackID=1\n").Replace(strings.ReplaceAll(string(sdp), "\r\n", "\n"))
	backends(t, func(t *testing.T, portable bool) {
		r := newCameraRelay(t, portable, nil)
		s := r.connect("office", nil, "gate", "rtsp://cams.test/gate")
		c := s.camera(&testCamera{instead: func(st *tunnel.Stream, _ relay.Header, m *rtsp.Message) bool {
			if string(m.Method) == "DESCRIBE" {
				st.Write([]byte(reply(string(m.Get("CSeq")), 200, described, "Content-Type: application/sdp")))
			}
			return string(m.Method) == "DESCRIBE"
		}})
		status := func() CameraStatus {
			t.Helper()
			svc := r.Status(t.Context()).Sessions[0].Services[0]
			if svc.Camera == nil {
				t.Fatal("the service is no camera")
			}
			return *svc.Camera
		}
		if st := status(); !reflect.DeepEqual(st, CameraStatus{}) {
			t.Errorf("a camera that nobody has watched: %+v", st)
		}
		p := r.player(false)
		url := "rtsp://cams.test/gate"
		p.ask(200, "DESCRIBE", url)
		p.ask(200, "SETUP", url+"/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
		p.ask(200, "SETUP", url+"/trackID=1", "Session: 4711", "Transport: RTP/AVP/TCP;unicast;interleaved=2-3")
		tracks := []CameraTrack{{"video", "H264", 160, 120}, {Media: "audio", Codec: "AAC"}}
		if st := status(); st.Viewers != 0 || !st.KeyFrame.IsZero() || !reflect.DeepEqual(st.Tracks, tracks) {
			t.Errorf("before PLAY: %+v", st)
		}
		p.ask(200, "PLAY", url, "Session: 4711")
		go onLoop(s.session.loop.Loop, func() { c.streams[0].Write(frames) })
		for n := 0; n < len(frames); {
			_, _, b, err := p.next()
			if err != nil {
				t.Fatal(err)
			}
			n += len(b)
		}
		if st := status(); st.Viewers != 1 || time.Since(st.KeyFrame) > time.Minute || st.Received != uint64(len(frames)) || !reflect.DeepEqual(st.Tracks, tracks) {
			t.Errorf("while it plays: %+v", st)
		}
		p.ask(200, "PAUSE", url, "Session: 4711")
		if st := status(); st.Viewers != 0 {
			t.Errorf("after PAUSE there are %d viewers", st.Viewers)
		}
		p.ask(200, "PLAY", url, "Session: 4711")
		p.ask(200, "TEARDOWN", url, "Session: 4711")
		if st := status(); st.Viewers != 0 {
			t.Errorf("after TEARDOWN there are %d viewers", st.Viewers)
		}
		// One that goes without a word.
		q := r.player(false)
		q.watch(url)
		if st := status(); st.Viewers != 1 {
			t.Errorf("the next one: %d viewers", st.Viewers)
		}
		q.Close()
		eventually(t, "the viewer who went away is not counted", func() bool { return status().Viewers == 0 })
	})
}

// The site is told each way that visitors have to a camera.
func TestCameraAddresses(t *testing.T) {
	r := newCameraRelay(t, false, nil)
	s := r.connect("office", nil, "app", "https://app.test")
	replies := make(chan []relay.AnnounceReply, 1)
	announce := func(list ...relay.Announcement) []relay.AnnounceReply {
		onLoop(s.session.loop.Loop, func() { s.announce(list, replies) })
		return <-replies
	}
	port := func(listener string) string {
		if listener == "https" {
			return portOf(r.https)
		}
		return portOf(r.listener(listener).String())
	}
	shared := &relay.Camera{FanOut: true}
	list := announce(
		relay.Announcement{Name: "gate", Publish: "rtsp://cams.test/gate", TargetScheme: "rtsp"},
		relay.Announcement{Name: "yard", Publish: "rtsps://cams.test", TargetScheme: "rtsps", Camera: shared},
		relay.Announcement{Name: "wiki", Publish: "https://wiki.test", TargetScheme: "http", Camera: shared},
		relay.Announcement{Name: "page", Publish: "https://cams.test/gate", TargetScheme: "http"},
		relay.Announcement{Name: "port", Publish: "rtsp://cams.test/port", TargetScheme: "tcp"},
	)
	for i, want := range [][]string{
		{"rtsp://cams.test:" + port("rtsp") + "/gate", "rtsps://cams.test:" + port("rtsps") + "/gate", "https://cams.test:" + port("https") + "/gate"},
		{"rtsps://cams.test:" + port("rtsps"), "https://cams.test:" + port("https")},
	} {
		if got := list[i]; got.Error != "" || !slices.Equal(got.Addresses, want) {
			t.Errorf("%s is reached at %q, %s, want %q", got.Name, got.Addresses, got.Error, want)
		}
	}
	for i, want := range []string{
		`fan_out, udp and roaming are for rtsp://`, `service "gate" has this address`, `an rtsp:// publish needs an rtsp://`,
	} {
		if got := list[i+2]; !strings.Contains(got.Error, want) {
			t.Errorf("%s: %q, want %q", got.Name, got.Error, want)
		}
	}
	// Shown in another way it is another service.
	status := func() []ServiceStatus { return r.Status(t.Context()).Sessions[0].Services }
	find := func() *service {
		return r.routes.Load().find([]byte("cams.test"), []byte("/gate"), true)
	}
	before := find()
	announce(relay.Announcement{Name: "gate", Publish: "rtsp://cams.test/gate", TargetScheme: "rtsp"})
	if find() != before {
		t.Error("a camera that is announced again is another one")
	}
	announce(relay.Announcement{Name: "gate", Publish: "rtsp://cams.test/gate", TargetScheme: "rtsp", Camera: shared})
	if after := find(); after == before || !after.camera.FanOut || len(status()) != 1 {
		t.Errorf("with fan_out it is %+v of %d", after.camera, len(status()))
	}
}
