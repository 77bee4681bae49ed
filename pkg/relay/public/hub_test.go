package public

import (
	"bytes"
	"encoding/binary"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// sharedCamera is a camera of a site whose stream is shared, in fake time. It sends what it is told to.
type sharedCamera struct {
	*testCamera
	t       *testing.T
	relay   *testRelay
	site    *testSite
	service *service

	// On the loop.
	sdp    string
	public string
	answer func(m *rtsp.Message) string // nil, or "" for the usual answer; "-" for none
	stream *tunnel.Stream               // that plays
	reset  tunnel.Code                  // what streams are answered with instead; 0: nothing
}

// clip returns the description and the interleaved frames of two seconds of H.264 and AAC: ten pictures a
// second, a key frame each second.
func clip(t testing.TB) (sdp string, frames [][]byte) {
	t.Helper()
	d, err := os.ReadFile("../../camera/testdata/h264.sdp")
	if err != nil {
		t.Fatal(err)
	}
	b, err := os.ReadFile("../../camera/testdata/h264.rtp")
	if err != nil {
		t.Fatal(err)
	}
	for len(b) > 0 {
		n := 4 + int(binary.BigEndian.Uint16(b[2:]))
		frames = append(frames, b[:n])
		b = b[n:]
	}
	sdp = strings.ReplaceAll(string(d), "\n", "\r\n")
	sdp = strings.Replace(sdp, "m=audio", "a=control:video\r\nm=audio", 1) + "a=control:audio\r\n"
	return sdp, frames
}

// share runs f with a camera rtsp://cams.test/gate whose stream is shared.
func share(t *testing.T, f func(c *sharedCamera)) {
	t.Helper()
	sdp, _ := clip(t)
	synctest.Test(t, func(t *testing.T) {
		core, err := evloop.New(evloop.Config{Loops: 2, Portable: true})
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		r := &testRelay{Relay: &Relay{Core: core, TLS: testTLS()}, t: t}
		r.Reload([]Site{{Name: "office", Keys: []string{"k"}, Publish: patterns("rtsp://*.test")}})
		c := &sharedCamera{testCamera: new(testCamera), t: t, relay: r, sdp: sdp, public: "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"}
		c.site = r.connect("office", nil)
		c.announce(relay.Announcement{Name: "gate", Publish: "rtsp://cams.test/gate", TargetScheme: "rtsp", Camera: &relay.Camera{FanOut: true}})
		c.instead = c.request
		c.site.camera(c.testCamera)
		onLoop(c.site.session.loop.Loop, func() {
			streams := c.site.onStream
			c.site.onStream = func(st *tunnel.Stream, h relay.Header) bool {
				if c.reset != 0 {
					st.Reset(c.reset)
					return true
				}
				return streams(st, h)
			}
		})
		time.Sleep(time.Second)
		f(c)
	})
}

func (c *sharedCamera) announce(list ...relay.Announcement) {
	c.t.Helper()
	replies := make(chan []relay.AnnounceReply, 1)
	onLoop(c.site.session.loop.Loop, func() { c.site.announce(list, replies) })
	for _, reply := range <-replies {
		if reply.Error != "" {
			c.t.Fatalf("service %s: %s", reply.Name, reply.Error)
		}
	}
	onLoop(c.site.session.loop.Loop, func() {
		if c.service == nil || !slices.Contains(c.site.session.services, c.service) {
			c.service = c.site.session.services[0]
		}
	})
}

// request answers as a camera does.
func (c *sharedCamera) request(st *tunnel.Stream, _ relay.Header, m *rtsp.Message) bool {
	cseq, session := string(m.Get("CSeq")), "Session: 4711;timeout=40"
	if c.answer != nil {
		switch s := c.answer(m); s {
		case "":
		case "-":
			return true
		default:
			st.Write([]byte(s))
			return true
		}
	}
	switch string(m.Method) {
	case "OPTIONS":
		st.Write([]byte(reply(cseq, 200, "", "Public: "+c.public)))
	case "DESCRIBE":
		st.Write([]byte(reply(cseq, 200, c.sdp, "Content-Base: rtsp://cams.test/gate/", "Content-Type: application/sdp")))
	case "SETUP":
		st.Write([]byte(reply(cseq, 200, "", session, "Transport: "+string(m.Get("Transport"))+";ssrc=1234")))
	case "PLAY":
		c.stream = st
		st.Write([]byte(reply(cseq, 200, "", session, "RTP-Info: url=rtsp://cams.test/gate/video;seq=1")))
	case "TEARDOWN":
		c.stream = nil
		st.Write([]byte(reply(cseq, 200, "", session)))
	default:
		st.Write([]byte(reply(cseq, 200, "", session)))
	}
	return true
}

// do runs f on the loop, and waits until nothing moves any more.
func (c *sharedCamera) do(f func()) {
	c.t.Helper()
	onLoop(c.site.session.loop.Loop, f)
	synctest.Wait()
}

// send has the camera send interleaved frames, all at a time.
func (c *sharedCamera) send(frames ...[]byte) {
	c.t.Helper()
	c.do(func() {
		if c.stream == nil {
			c.t.Error("the camera does not play")
			return
		}
		c.stream.Write(slices.Concat(frames...))
	})
}

// reboot loses the camera's connections.
func (c *sharedCamera) reboot() {
	c.t.Helper()
	c.do(func() {
		if c.stream != nil {
			c.stream.Close()
			c.stream = nil
		}
	})
}

// methods are those that the site was asked for since the last call.
func (c *sharedCamera) methods() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	var list []string
	for _, r := range c.requests {
		m, _, _ := strings.Cut(r, " ")
		list = append(list, m)
	}
	c.requests = nil
	return strings.Join(list, " ")
}

// testWatcher writes down what it is given.
type testWatcher struct {
	d       *camera.Description
	packets []camera.Packet
	flushed int // how many packets had come when it was called last
	crowded bool
	trouble *trouble
}

func (w *testWatcher) described(d *camera.Description) {
	if w.d != nil || w.trouble != nil {
		panic("described again")
	}
	w.d = d
}
func (w *testWatcher) packet(p *camera.Packet) {
	if w.d == nil || w.trouble != nil {
		panic("a packet at the wrong time")
	}
	q := *p
	q.Frame = bytes.Clone(p.Frame)
	q.Data, q.Payload = q.Frame[4:], bytes.Clone(p.Payload)
	w.packets = append(w.packets, q)
}
func (w *testWatcher) flush()          { w.flushed = len(w.packets) }
func (w *testWatcher) full() bool      { return w.crowded }
func (w *testWatcher) gone(t *trouble) { w.trouble = t }

// video returns the RTP packets of video.
func (w *testWatcher) video() (list []camera.Packet) {
	for _, p := range w.packets {
		if p.Track == 0 && !p.RTCP {
			list = append(list, p)
		}
	}
	return list
}

// frames counts access units of video and, of them, key frames.
func (w *testWatcher) frames() (all, keys int) {
	for _, p := range w.video() {
		if p.Begins {
			all++
		}
		if p.Key {
			keys++
		}
	}
	return all, keys
}

func (w *testWatcher) wants(t *testing.T, name string, frames, keys int) {
	t.Helper()
	if f, k := w.frames(); f != frames || k != keys || w.flushed != len(w.packets) || w.trouble != nil {
		t.Errorf("%s: %d frames, %d key frames, want %d and %d; %d of %d packets flushed; %v", name, f, k, frames, keys, w.flushed, len(w.packets), w.trouble)
	}
	if len(w.packets) > 0 && !w.video()[0].Key {
		t.Errorf("%s begins with something else than a key frame", name)
	}
}

// One pull serves everybody: from the first one on until some seconds after the last.
func TestHub(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		a, b := new(testWatcher), new(testWatcher)
		c.do(func() { c.service.watch(a) })
		if got, want := c.methods(), "OPTIONS DESCRIBE SETUP SETUP PLAY"; got != want {
			t.Fatalf("the site is asked for %s, want %s", got, want)
		}
		if a.d == nil || len(a.d.Tracks) != 2 || a.d.Tracks[0].Codec != "H264" {
			t.Fatalf("described %+v", a.d)
		}
		for _, f := range frames {
			c.send(f)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		a.wants(t, "a", 20, 2)
		c.do(func() { c.service.watch(b) })
		b.wants(t, "b, who joins in the middle of a group,", 10, 1)
		for i, p := range b.packets {
			if q := a.packets[len(a.packets)-len(b.packets)+i]; !bytes.Equal(p.Frame, q.Frame) {
				t.Fatalf("packet %d differs", i)
			}
		}
		if st := c.service.cam; st.received == 0 || st.key == 0 || len(st.tracks) != 2 || st.tracks[0].Width != 160 || st.dropped+st.reconnects != 0 {
			t.Errorf("counted %+v", st)
		}

		// The camera hears from us while it plays.
		time.Sleep(25 * time.Second)
		synctest.Wait()
		if got := c.methods(); !strings.HasPrefix(got, "GET_PARAMETER") {
			t.Errorf("after 25 seconds it was asked for %q", got)
		}
		c.mu.Lock()
		if r := c.testCamera.frames; len(r) < 36 || r[0] != '$' || r[1] != 1 || r[5] != 201 {
			t.Errorf("reports %x", r)
		}
		c.mu.Unlock()

		c.do(func() { c.service.unwatch(a) })
		time.Sleep(time.Minute)
		synctest.Wait()
		c.methods()
		c.do(func() { c.service.unwatch(b) })
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if got := c.methods(); strings.Contains(got, "TEARDOWN") {
			t.Error("the last one has hardly left")
		}
		time.Sleep(2 * time.Second)
		synctest.Wait()
		if got := c.methods(); got != "TEARDOWN" || c.service.hub != nil {
			t.Errorf("at the end it is asked for %q", got)
		}
	})
}
