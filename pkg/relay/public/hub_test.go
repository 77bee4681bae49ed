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

// Who is slow loses whole groups of frames, and nobody else loses anything.
func TestSlowWatcher(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		fast, slow, slower := new(testWatcher), new(testWatcher), new(testWatcher)
		c.do(func() {
			for _, w := range []*testWatcher{fast, slow, slower} {
				c.service.watch(w)
			}
		})
		key := 0 // index of the second key frame's first packet
		var r camera.Reader
		r.Reset(&fast.d.Tracks[0])
		for i, f := range frames {
			if p := (camera.Packet{Data: f[4:]}); f[1] == 0 && r.Read(&p) == nil && p.Begins {
				if f[16]&0x1f == 7 || f[16]&0x1f == 24 { // a sequence parameter set, alone or with others
					key = i
				}
			}
		}
		if key == 0 {
			t.Fatal("the clip has no second key frame")
		}
		half := key / 2
		c.send(frames[:half]...)
		c.do(func() { slow.crowded, slower.crowded = true, true })
		had, _ := slow.frames()
		if had == 0 || had == 10 {
			t.Fatalf("%d frames so far", had)
		}
		c.send(frames[half:key]...)
		c.do(func() { slow.crowded = false; c.service.drained(slow) })
		slow.wants(t, "slow, who has caught up,", 10, 1)
		slower.wants(t, "slower", had, 1)
		c.send(frames[key : key+4]...)
		time.Sleep(time.Second) // a part of a frame waits for the rest of it only so long
		c.do(func() { slower.crowded = false; c.service.drained(slower) })
		c.send(frames[key+4:]...)
		time.Sleep(time.Second)
		synctest.Wait()
		fast.wants(t, "fast", 20, 2)
		slow.wants(t, "slow", 20, 2)
		slower.wants(t, "slower", had+10, 2)
		if len(fast.packets) != len(slow.packets) {
			t.Error("slow has not caught up with all")
		}
		if c.service.cam.dropped != uint64(10-had) {
			t.Errorf("%d frames counted as dropped, want %d", c.service.cam.dropped, 10-had)
		}
		gap := false
		list := slower.video()
		for i := 1; i < len(list); i++ {
			if n := list[i].Number - list[i-1].Number; n != 1 {
				gap = true
				if !list[i].Key {
					t.Error("it goes on at something else than a key frame")
				}
			}
		}
		if !gap {
			t.Error("the numbers have no gap")
		}
	})
}

// The camera reboots: the stream goes on, with numbers and times that go on as well.
func TestReboot(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		w := new(testWatcher)
		c.do(func() { c.service.watch(w) })
		c.send(frames...)
		time.Sleep(time.Second)
		synctest.Wait()
		w.wants(t, "before", 20, 2)
		c.methods()
		before := len(w.packets)

		// For five seconds it refuses connections.
		c.do(func() { c.reset = tunnel.CodeRefused })
		c.reboot()
		time.Sleep(5 * time.Second)
		c.do(func() { c.reset = 0 })
		late := new(testWatcher)
		c.do(func() { c.service.watch(late) })
		time.Sleep(4 * time.Second)
		synctest.Wait()
		if got, want := c.methods(), "OPTIONS DESCRIBE SETUP SETUP PLAY"; got != want {
			t.Fatalf("the site is asked for %q, want %s", got, want)
		}
		// It has another clock and another source now.
		again := make([][]byte, len(frames))
		for i, f := range frames {
			again[i] = bytes.Clone(f)
			if f[5] != 200 && f[5] != 202 {
				binary.BigEndian.PutUint16(again[i][6:], binary.BigEndian.Uint16(f[6:])+12345)
				binary.BigEndian.PutUint32(again[i][8:], binary.BigEndian.Uint32(f[8:])+1<<31)
				again[i][12] ^= 0xff
			}
		}
		c.send(again...)
		time.Sleep(time.Second)
		synctest.Wait()
		w.wants(t, "after", 40, 4)
		late.wants(t, "late", 20, 2)
		list := w.video()
		for i := 1; i < len(list); i++ {
			p, q := list[i], list[i-1]
			if p.Sequence != q.Sequence+1 || p.Number != q.Number+1 || !bytes.Equal(p.Data[8:12], q.Data[8:12]) || binary.BigEndian.Uint16(p.Data[2:]) != p.Sequence {
				t.Fatalf("packet %d after %d", p.Sequence, q.Sequence)
			}
			if step := int32(p.Timestamp - q.Timestamp); step < 0 || step > 15*90000 {
				t.Errorf("timestamps step by %d", step)
			}
		}
		var first camera.Packet
		for i := before; first.Payload == nil; i++ {
			if p := w.packets[i]; p.Track == 0 && !p.RTCP {
				first = p
			}
		}
		gap := first.Timestamp - lastVideo(w.packets[:before]).Timestamp
		if gap < 9*90000 || gap > 12*90000 {
			t.Errorf("the time away is %d ticks of a clock of 90000", gap)
		}
		if st := c.service.cam; st.reconnects != 1 {
			t.Errorf("%d reconnects", st.reconnects)
		}
	})
}

func lastVideo(list []camera.Packet) camera.Packet {
	for i := len(list) - 1; ; i-- {
		if list[i].Track == 0 && !list[i].RTCP {
			return list[i]
		}
	}
}

// A camera that stays away, and one that was never there.
func TestCameraAway(t *testing.T) {
	share(t, func(c *sharedCamera) {
		c.do(func() { c.reset = tunnel.CodeRefused })
		w := new(testWatcher)
		c.do(func() { c.service.watch(w) })
		if w.trouble != troubleServer || c.service.hub != nil {
			t.Errorf("a camera that refuses: %v", w.trouble)
		}
		c.do(func() { c.reset = 0 })

		_, frames := clip(t)
		w = new(testWatcher)
		c.do(func() { c.service.watch(w) })
		c.send(frames...)
		c.do(func() { c.reset = tunnel.CodeUnreachable })
		c.reboot()
		began := time.Now()
		for over := false; !over && time.Since(began) < time.Hour; {
			time.Sleep(time.Second)
			c.do(func() { over = w.trouble != nil })
		}
		if d := time.Since(began); w.trouble != troubleServer || d < 10*time.Second || d > hubPatience+time.Second {
			t.Errorf("%v after %v", w.trouble, d)
		}
		if c.service.hub != nil {
			t.Error("the hub is still there")
		}
	})
}

// When the camera has another codec than before, viewers have to begin anew.
func TestChangedCamera(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		w := new(testWatcher)
		c.do(func() { c.service.watch(w) })
		c.send(frames...)
		c.do(func() { c.sdp = strings.Replace(c.sdp, "MPEG4-GENERIC/16000/1", "L16/16000/1", 1) })
		c.reboot()
		waiting := new(testWatcher)
		time.Sleep(3 * time.Second)
		c.do(func() { c.service.watch(waiting) })
		synctest.Wait()
		if w.trouble != troubleChanged {
			t.Errorf("who has watched hears %v", w.trouble)
		}
		c.send(frames...)
		time.Sleep(time.Second)
		synctest.Wait()
		waiting.wants(t, "who has come since", 20, 2)
		if waiting.d.Tracks[1].Codec != "L16" {
			t.Error("it is told of the old codec")
		}
	})
}

// What a camera can answer, and what becomes of it.
func TestPullTroubles(t *testing.T) {
	for _, test := range []struct {
		name   string
		method string
		answer func(m *rtsp.Message) string
		want   *trouble // nil: it plays
		after  time.Duration
	}{
		{"no OPTIONS", "OPTIONS", func(m *rtsp.Message) string { return reply(string(m.Get("CSeq")), 501, "") }, nil, 0},
		{"no such stream", "DESCRIBE", func(m *rtsp.Message) string { return reply(string(m.Get("CSeq")), 404, "") }, troubleNoCamera, 0},
		{"credentials that are wrong", "DESCRIBE", func(m *rtsp.Message) string {
			return reply(string(m.Get("CSeq")), 401, "", "WWW-Authenticate: Basic realm=\"x\"")
		}, troubleCamera, 0},
		{"too many viewers", "SETUP", func(m *rtsp.Message) string { return reply(string(m.Get("CSeq")), 453, "") }, troubleCamera, 0},
		{"one track less", "SETUP", func(m *rtsp.Message) string {
			if strings.HasSuffix(string(m.URL), "audio") {
				return reply(string(m.Get("CSeq")), 404, "")
			}
			return ""
		}, nil, 0},
		{"no description", "DESCRIBE", func(m *rtsp.Message) string { return reply(string(m.Get("CSeq")), 200, "hello") }, troubleCamera, 0},
		{"no session", "SETUP", func(m *rtsp.Message) string {
			return reply(string(m.Get("CSeq")), 200, "", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
		}, troubleCamera, 0},
		{"no RTSP", "OPTIONS", func(m *rtsp.Message) string { return "HTTP/1.1 400 Bad Request\r\n\r\n" }, troubleCamera, 0},
		{"no answer", "DESCRIBE", func(m *rtsp.Message) string { return "-" }, troubleSilent, pullStepTime},
		{"no answer to PLAY", "PLAY", func(m *rtsp.Message) string { return "-" }, troubleSilent, pullStepTime},
		{"a question of its own", "SETUP", func(m *rtsp.Message) string {
			return "OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n" + reply(string(m.Get("CSeq")), 200, "", "Session: 1", "Transport: "+string(m.Get("Transport")))
		}, nil, 0},
		{"interim answers", "PLAY", func(m *rtsp.Message) string {
			return reply(string(m.Get("CSeq")), 100, "") + reply(string(m.Get("CSeq")), 200, "", "Session: 4711")
		}, nil, 0},
	} {
		t.Run(test.name, func(t *testing.T) {
			share(t, func(c *sharedCamera) {
				c.do(func() {
					c.answer = func(m *rtsp.Message) string {
						if string(m.Method) == test.method {
							return test.answer(m)
						}
						return ""
					}
				})
				w := new(testWatcher)
				c.do(func() { c.service.watch(w) })
				time.Sleep(test.after + time.Second)
				c.do(func() {})
				if w.trouble != test.want {
					t.Errorf("trouble %v, want %v", w.trouble, test.want)
				}
				if test.name == "a question of its own" && !slices.Equal(c.responses, []int{501, 501}) {
					t.Errorf("its questions are answered by %d", c.responses)
				}
				if got := c.methods(); test.want == nil && (!strings.HasSuffix(got, "PLAY") || c.service.hub == nil) {
					t.Errorf("the site was asked for %s", got)
				}
			})
		})
	}
}

// A site that asks and asks, and takes no answers, does not have them pile up here.
func TestPullOfTooManyQuestions(t *testing.T) {
	share(t, func(c *sharedCamera) {
		w := new(testWatcher)
		c.do(func() { c.service.watch(w) })
		questions := []byte(strings.Repeat("OPTIONS * RTSP/1.0\r\nCSeq: 1\r\n\r\n", 1000))
		var st *tunnel.Stream
		c.do(func() {
			st = c.stream
			st.Pause()
		})
		for range 100 {
			c.do(func() { st.Write(questions) })
			if c.service.hub == nil {
				break
			}
		}
		if w.trouble != troubleCamera {
			t.Errorf("trouble %v; %d bytes of answers wait", w.trouble, c.service.hub.pull.Pending())
		}
	})
}

// A camera that has stopped without a word is asked, and left.
func TestSilentCamera(t *testing.T) {
	share(t, func(c *sharedCamera) {
		c.do(func() { c.public = "OPTIONS" })
		_, frames := clip(t)
		w := new(testWatcher)
		c.do(func() { c.service.watch(w) })
		c.send(frames...)
		c.methods()
		c.do(func() { c.answer = func(*rtsp.Message) string { return "-" } })
		time.Sleep(doubtTime + reportTime + time.Second)
		synctest.Wait()
		if got := c.methods(); got != "OPTIONS" {
			t.Errorf("it is asked for %s", got)
		}
		c.do(func() { c.answer = nil })
		time.Sleep(30 * time.Second)
		synctest.Wait()
		if got := c.methods(); !strings.Contains(got, "TEARDOWN OPTIONS DESCRIBE SETUP SETUP PLAY") {
			t.Errorf("it is asked for %s", got)
		}
		c.send(frames...)
		w.wants(t, "the watcher", 40, 4)
	})
}

// A site without a link is no camera that is away: everybody waits, and nothing is lost.
func TestStalledPull(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		w := new(testWatcher)
		c.do(func() { c.service.watch(w) })
		c.send(frames[:20]...)
		c.do(func() { c.site.cut() })
		c.do(func() { c.stream.Write(slices.Concat(frames[20:]...)) })
		time.Sleep(50 * time.Second)
		synctest.Wait()
		if w.trouble != nil {
			t.Fatal(w.trouble)
		}
		c.do(func() { c.site.attach() })
		time.Sleep(time.Second)
		synctest.Wait()
		w.wants(t, "the watcher", 20, 2)
		if c.service.cam.reconnects != 0 {
			t.Error("it has begun again")
		}
		list := w.video()
		for i := 1; i < len(list); i++ {
			if list[i].Sequence != list[i-1].Sequence+1 {
				t.Fatal("something is lost")
			}
		}
	})
}

// What is kept of all cameras of a session is bounded: beyond that, who is there goes on, and who comes waits.
func TestManyStreams(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		a, b := new(testWatcher), new(testWatcher)
		size := c.service.session.store.size
		c.do(func() {
			c.service.session.store.used += size // by others
			c.service.watch(a)
		})
		c.send(frames[:10]...)
		time.Sleep(time.Second)
		c.do(func() {
			if h := c.service.hub; h.kept || len(h.log) > 0 || h.room > 0 {
				t.Errorf("%d packets are kept, in %d bytes", len(h.log), h.room)
			}
			c.service.watch(b)
		})
		if len(a.packets) == 0 || len(b.packets) > 0 {
			t.Errorf("a has %d packets, b %d", len(a.packets), len(b.packets))
		}
		c.do(func() { c.service.session.store.used -= size })
		c.send(frames[10:]...)
		time.Sleep(time.Second)
		c.do(func() {
			if n := c.service.session.store.used; n == 0 || n != c.service.hub.held {
				t.Errorf("%d bytes are counted, %d are kept", n, c.service.hub.held)
			}
		})
		if len(b.packets) == 0 || !b.packets[0].Key {
			t.Error("b does not go on with a key frame")
		}
		c.do(func() {
			c.service.unwatch(a)
			c.service.unwatch(b)
		})
		time.Sleep(hubRest + time.Second)
		c.do(func() {
			if n := c.service.session.store.used; n != 0 || c.service.hub != nil {
				t.Errorf("%d bytes are counted in the end", n)
			}
		})
	})
}

// A group of frames that is longer than what is kept: who is there goes on, who comes waits.
func TestLongGroup(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		var first, delta [][]byte // packets of a key frame, and of the frame after it
		units := 0
		for _, f := range frames {
			if f[1] != 0 {
				continue
			}
			if units == 0 {
				first = append(first, f)
			} else if units == 1 {
				delta = append(delta, f)
			} else {
				break
			}
			if f[5]&0x80 != 0 {
				units++
			}
		}
		a, b := new(testWatcher), new(testWatcher)
		c.do(func() { c.service.watch(a) })
		c.send(first...)
		n, size := 1, 0
		for size < 2*maxStream {
			for _, f := range delta {
				f = bytes.Clone(f)
				binary.BigEndian.PutUint32(f[8:], uint32(n)*9000)
				c.send(f)
				size += len(f) + packetCost
			}
			n++
		}
		a.wants(t, "who is there", n, 1)
		c.do(func() {
			h := c.service.hub
			if h.size > 2*len(delta)*(1500+packetCost) || len(h.pieces) > 2 {
				t.Errorf("%d bytes are kept, in %d pieces", h.size, len(h.pieces))
			}
			c.service.watch(b)
		})
		c.send(delta...)
		if len(b.packets) > 0 {
			t.Error("who comes late has something")
		}
		c.send(first...)
		b.wants(t, "who has come late", 1, 1)
	})
}

// Parameter sets that come long before their picture are part of it, and hold up nothing.
func TestEarlyParameters(t *testing.T) {
	share(t, func(c *sharedCamera) {
		sound := []byte{'$', 2, 0, 14, 0x80, 97, 0, 1, 0, 0, 0, 1, 0, 0, 0, 1, 1, 2}
		seq := byte(0)
		video := func(marker, timestamp byte, nal ...byte) []byte {
			seq++
			return append([]byte{'$', 0, 0, byte(12 + len(nal)), 0x80, 96 | marker, 0, seq, 0, 0, 0, timestamp, 0, 0, 0, 1}, nal...)
		}
		a, b := new(testWatcher), new(testWatcher)
		c.do(func() { c.service.watch(a) })
		for n := range byte(3) {
			c.send(video(0x80, 4*n, 0x67, 1), video(0x80, 4*n, 0x68, 1))
			time.Sleep(200 * time.Millisecond)
			c.send(sound)
			time.Sleep(200 * time.Millisecond)
			c.do(func() {
				if len(a.packets) != int(n)*5 { // and that of sound
					t.Errorf("%d packets before picture %d", len(a.packets), n)
				}
			})
			c.send(video(0x80, 4*n+1, 0x65, 0x88), video(0x80, 4*n+2, 0x41, 0x9a))
		}
		a.wants(t, "who waits", 6, 3)
		c.do(func() { c.service.watch(b) })
		b.wants(t, "who comes later", 2, 1)
		if b.packets[0].Payload[0] != 0x67 || len(b.packets) != 4 {
			t.Error("it begins without parameter sets")
		}
	})
}

// Rubbish in the place of packets harms nobody.
func TestRubbish(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		w := new(testWatcher)
		c.do(func() { c.service.watch(w) })
		rubbish := [][]byte{
			{'$', 0, 0, 0}, {'$', 0, 0, 3, 1, 2, 3}, {'$', 1, 0, 4, 0x80, 200, 0, 6}, {'$', 1, 0, 3, 0x80, 200, 0},
			{'$', 9, 0, 1, 0}, {'$', 200, 0, 1, 0}, append([]byte{'$', 0, 0xff, 0xff}, make([]byte, 0xffff)...),
		}
		for i, f := range frames {
			c.send(rubbish[i%len(rubbish)])
			c.send(f)
		}
		time.Sleep(time.Second)
		synctest.Wait()
		w.wants(t, "the watcher", 20, 2)
	})
}

// A camera without video has no key frames to wait for.
func TestSoundOnly(t *testing.T) {
	share(t, func(c *sharedCamera) {
		c.do(func() {
			i := strings.Index(c.sdp, "m=video")
			c.sdp = c.sdp[:i] + "m=audio 0 RTP/AVP 0\r\na=control:x\r\n"
		})
		sound := func(n byte) []byte { return append([]byte{'$', 0, 0, 14, 0x80, 0, 0, n, 0, 0, 0, n, 0, 0, 0, 1}, 1, 2) }
		a, b := new(testWatcher), new(testWatcher)
		c.do(func() { c.service.watch(a) })
		c.send(sound(1))
		c.send(sound(2))
		c.do(func() { a.crowded = true; c.service.watch(b) })
		c.send(sound(3))
		c.do(func() { a.crowded = false })
		c.send(sound(4))
		if len(a.packets) != 3 || len(b.packets) != 2 {
			t.Errorf("a has %d packets, b %d", len(a.packets), len(b.packets))
		}
	})
}

// The service goes: who watches is told. Another announcement of the same service changes nothing.
func TestHubOfServiceThatGoes(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		w := new(testWatcher)
		c.do(func() { c.service.watch(w) })
		c.send(frames[:20]...)
		gate := relay.Announcement{Name: "gate", Publish: "rtsp://cams.test/gate", TargetScheme: "rtsp", Camera: &relay.Camera{FanOut: true}}
		yard := relay.Announcement{Name: "yard", Publish: "rtsp://cams.test/yard", TargetScheme: "rtsp"}
		c.announce(gate, yard)
		old := c.service
		c.announce(yard)
		c.send(frames[20:]...) // what is under way goes on
		time.Sleep(time.Second)
		synctest.Wait()
		w.wants(t, "who is there", 20, 2)
		late := new(testWatcher)
		c.reboot()
		synctest.Wait()
		if w.trouble == nil || old.hub != nil {
			t.Error("who watches is not told")
		}
		c.do(func() { old.watch(late) })
		if late.trouble != troubleAway {
			t.Errorf("who comes too late hears %v", late.trouble)
		}
	})
}
