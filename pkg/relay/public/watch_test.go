package public

import (
	"bufio"
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"github.com/bluenviron/mediacommon/v2/pkg/formats/fmp4"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// liveCamera is a camera rtsp://cams.test/gate for browsers. It sends what it is told to.
type liveCamera struct {
	t       *testing.T
	site    *testSite
	service *service
	playing chan *tunnel.Stream
	stream  *tunnel.Stream
}

// premiere has the camera play, as it does for the first browser that watches, and sends that frames.
func (c *liveCamera) premiere(client *http.Client, frames [][]byte) *film {
	c.t.Helper()
	got := make(chan *film, 1)
	go func() {
		defer close(got)
		got <- watchLive(c.t, client)
	}()
	c.plays()
	c.send(frames...)
	f := <-got
	if f == nil {
		c.t.FailNow()
	}
	return f
}

const liveURL = "https://cams.test/gate/live.mp4"

func newLiveCamera(t *testing.T, r *testRelay, sdp string) *liveCamera {
	t.Helper()
	c := &liveCamera{t: t, playing: make(chan *tunnel.Stream, 10)}
	c.site = r.connect("office", nil, "gate", "rtsp://cams.test/gate")
	shared := &sharedCamera{testCamera: new(testCamera), t: t, sdp: sdp, public: "OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN, GET_PARAMETER"}
	shared.instead = func(st *tunnel.Stream, h relay.Header, m *rtsp.Message) bool {
		shared.request(st, h, m)
		if string(m.Method) == "PLAY" {
			c.playing <- st
		}
		return true
	}
	c.site.camera(shared.testCamera)
	onLoop(c.site.session.loop.Loop, func() { c.service = c.site.session.services[0] })
	return c
}

// plays waits for the pull.
func (c *liveCamera) plays() {
	c.t.Helper()
	select {
	case c.stream = <-c.playing:
	case <-c.t.Context().Done():
		c.t.Fatal("nobody watches")
	}
}

func (c *liveCamera) send(frames ...[]byte) {
	onLoop(c.site.session.loop.Loop, func() { c.stream.Write(slices.Concat(frames...)) })
}

func (c *liveCamera) look(f func(s *service)) {
	onLoop(c.site.session.loop.Loop, func() { f(c.service) })
}

// shifted are packets of RTP that come n rounds of a clip of two seconds later.
func shifted(frames [][]byte, n int) (later [][]byte) {
	count := [256]uint16{}
	for _, f := range frames {
		count[f[1]]++
	}
	for _, f := range frames {
		f = bytes.Clone(f)
		if ch := f[1]; ch%2 == 0 {
			rate := []uint32{90000, 0, 48000}[ch]
			binary.BigEndian.PutUint16(f[6:], binary.BigEndian.Uint16(f[6:])+uint16(n)*count[ch])
			binary.BigEndian.PutUint32(f[8:], binary.BigEndian.Uint32(f[8:])+uint32(n)*2*rate)
			later = append(later, f)
		}
	}
	return later
}

// large are the same packets with larger pictures.
func large(frames [][]byte) (more [][]byte) {
	for _, f := range frames {
		if f[1] == 0 && f[5]&0x80 != 0 { // the last one of a picture
			f = append(bytes.Clone(f), bytes.Repeat([]byte{0xff}, 25000)...)
			binary.BigEndian.PutUint16(f[2:], uint16(len(f)-4))
		}
		more = append(more, f)
	}
	return more
}

// apart are the same packets, those of one picture at a time.
func apart(frames [][]byte) (pictures [][][]byte) {
	begin := 0
	for i, f := range frames {
		if f[1] == 0 && f[5]&0x80 != 0 {
			pictures = append(pictures, frames[begin:i+1])
			begin = i + 1
		}
	}
	return pictures
}

// film is what a browser gets of live.mp4.
type film struct {
	t   *testing.T
	res *http.Response
	br  *bufio.Reader
	raw []byte
}

func watchLive(t *testing.T, c *http.Client) *film {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	req, err := http.NewRequestWithContext(ctx, "GET", liveURL, nil)
	if err != nil {
		t.Fatal(err)
	}
	res, err := c.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { res.Body.Close() })
	return &film{t: t, res: res, br: bufio.NewReader(res.Body)}
}

// box reads a box and returns its type: "" at the end.
func (f *film) box() string {
	f.t.Helper()
	var head [8]byte
	if _, err := io.ReadFull(f.br, head[:]); err != nil {
		if err == io.EOF {
			return ""
		}
		f.t.Fatal(err)
	}
	b := make([]byte, binary.BigEndian.Uint32(head[:])-8)
	if _, err := io.ReadFull(f.br, b); err != nil {
		f.t.Fatal(err)
	}
	f.raw = append(append(f.raw, head[:]...), b...)
	return string(head[4:])
}

// begin reads the beginning.
func (f *film) begin() {
	f.t.Helper()
	if got := []string{f.box(), f.box()}; !slices.Equal(got, []string{"ftyp", "moov"}) {
		f.t.Fatalf("it begins with %q", got)
	}
	var in fmp4.Init
	if err := in.Unmarshal(bytes.NewReader(f.raw)); err != nil || len(in.Tracks) != 2 {
		f.t.Fatalf("%d tracks, %v", len(in.Tracks), err)
	}
	f.raw = nil
}

// fragments reads n of them, and returns the pictures.
func (f *film) fragments(n int) (pictures []*fmp4.Sample, at []uint64) {
	f.t.Helper()
	f.raw = nil
	for range n {
		if got := []string{f.box(), f.box()}; !slices.Equal(got, []string{"moof", "mdat"}) {
			f.t.Fatalf("it goes on with %q", got)
		}
	}
	var parts fmp4.Parts
	if err := parts.Unmarshal(f.raw); err != nil {
		f.t.Fatal(err)
	}
	for _, p := range parts {
		if p.Tracks[0].ID != 1 || len(p.Tracks[0].Samples) != 1 {
			f.t.Fatalf("a fragment with %d samples of track %d", len(p.Tracks[0].Samples), p.Tracks[0].ID)
		}
		pictures, at = append(pictures, p.Tracks[0].Samples[0]), append(at, p.Tracks[0].BaseTime)
	}
	return pictures, at
}

// A camera is an MP4 without an end, in any version of HTTP.
func TestLive(t *testing.T) {
	browsers(t, func(t *testing.T, r *testRelay, client *http.Client) {
		sdp, frames := clip(t)
		c := newLiveCamera(t, r, sdp)
		f := c.premiere(client, frames)
		if h := f.res.Header; f.res.StatusCode != 200 || h.Get("Content-Type") != `video/mp4; codecs="avc1.64000c, mp4a.40.2"` || h.Get("Cache-Control") != "no-store" || f.res.ContentLength != -1 {
			t.Fatalf("%s %v", f.res.Status, h)
		}
		f.begin()
		pictures, at := f.fragments(19)
		for i, p := range pictures {
			if p.IsNonSyncSample != (i%10 != 0) || at[i] != uint64(i*9000) || p.Duration != 9000 {
				t.Errorf("picture %d is at %d for %d, key %v", i, at[i], p.Duration, !p.IsNonSyncSample)
			}
		}

		// Whoever comes later begins with the last key frame, at once.
		late := watchLive(t, client)
		late.begin()
		if pictures, at := late.fragments(9); pictures[0].IsNonSyncSample || at[0] != 90000 {
			t.Errorf("the first picture is at %d, key %v", at[0], !pictures[0].IsNonSyncSample)
		}
		// Both go on.
		c.send(shifted(frames, 1)...)
		for _, f := range []*film{f, late} {
			if _, at := f.fragments(20); at[19] != 38*9000 {
				t.Errorf("the last picture is at %d", at[19])
			}
		}
		c.look(func(s *service) {
			if s.cam.viewers != 2 || s.visitors != 2 || len(s.hub.watchers) != 1 {
				t.Errorf("%d viewers, %d visitors, %d watchers", s.cam.viewers, s.visitors, len(s.hub.watchers))
			}
		})

		// The camera goes away: that is no end in good order.
		c.look(func(s *service) { s.hub.fail(troubleAway) })
		for _, f := range []*film{f, late} {
			if b, err := io.ReadAll(f.br); err == nil || len(b) > 0 {
				t.Errorf("%d bytes, %v, want an error", len(b), err)
			}
		}
		c.look(func(s *service) {
			if s.cam.viewers != 0 || s.visitors != 0 || s.active != 0 || s.broadcast != nil || s.hub != nil {
				t.Errorf("what is left: %d viewers, %d visitors, %d exchanges, %v %v", s.cam.viewers, s.visitors, s.active, s.broadcast, s.hub)
			}
		})
	})
}

// A browser that leaves takes nothing with it but its own, and the last one ends the broadcast.
func TestLiveLeave(t *testing.T) {
	t.Parallel() // it waits for seconds
	browsers(t, func(t *testing.T, r *testRelay, client *http.Client) {
		sdp, frames := clip(t)
		c := newLiveCamera(t, r, sdp)
		one := c.premiere(client, frames)
		one.begin()
		two := watchLive(t, client)
		two.begin()
		one.res.Body.Close()
		c.send(shifted(frames, 1)...)
		two.fragments(29)
		// Nobody watches, and somebody who has not got anything goes, too.
		two.res.Body.Close()
		waitFor(t, func() (gone bool) {
			c.look(func(s *service) { gone = s.broadcast == nil && s.visitors == 0 && s.cam.viewers == 0 })
			return gone
		})
		c.look(func(s *service) {
			if s.hub == nil || len(s.hub.watchers) != 0 {
				t.Errorf("hub %v", s.hub)
			}
			if n := s.session.store.used; n != s.hub.held {
				t.Errorf("%d bytes are counted, %d are kept", n, s.hub.held)
			}
		})
		// It begins again with what the hub has kept.
		three := watchLive(t, client)
		three.begin()
		if _, at := three.fragments(9); at[0] != 0 {
			t.Errorf("the first picture is at %d", at[0])
		}
	})
}

// One who reads slowly misses whole groups of pictures and delays nobody.
func TestLiveSlow(t *testing.T) {
	browsers(t, func(t *testing.T, r *testRelay, client *http.Client) {
		sdp, frames := clip(t)
		c := newLiveCamera(t, r, sdp)
		fast := c.premiere(client, frames)
		fast.begin()
		fast.fragments(19)
		slow := watchLive(t, client)
		slow.begin()

		// It stands still until the relay holds something back for it, and then for a while.
		rounds := 0
		for more := 3; more > 0; {
			if rounds++; rounds > 100 {
				t.Fatal("the relay sends and sends")
			}
			for _, picture := range apart(large(shifted(frames, rounds))) {
				c.send(picture...)
				fast.fragments(1)
			}
			c.look(func(s *service) {
				if s.broadcast.muxer.Size() > 8<<20 {
					t.Errorf("%d bytes are kept", s.broadcast.muxer.Size())
				}
				if s.broadcast.viewers[1].paused {
					more--
				}
			})
		}
		// And goes on with a key frame.
		jumps, last := 0, uint64(9*9000)
		for last < uint64(20*rounds)*9000 {
			pictures, at := slow.fragments(1)
			if at[0] != last+9000 {
				if jumps++; pictures[0].IsNonSyncSample {
					t.Fatalf("behind %d comes %d, which is no key frame", last, at[0])
				}
			}
			last = at[0]
		}
		c.look(func(s *service) {
			if jumps == 0 || s.cam.dropped == 0 {
				t.Errorf("%d jumps, %d pictures dropped", jumps, s.cam.dropped)
			}
		})
	})
}

// Before there is a picture a browser waits, and gets a proper answer if none comes.
func TestLiveTroubles(t *testing.T) {
	browsers(t, func(t *testing.T, r *testRelay, client *http.Client) {
		sdp, frames := clip(t)
		c := newLiveCamera(t, r, sdp)
		if res, body := browse(t, client, "HEAD", liveURL); res.StatusCode != 200 || res.Header.Get("Content-Type") != "video/mp4" || body != "" {
			t.Errorf("HEAD: %s %v %q", res.Status, res.Header, body)
		}
		c.look(func(s *service) {
			if s.hub != nil {
				t.Error("HEAD has the camera play")
			}
		})

		// It goes before it has sent anything.
		answer := func() (status chan int) {
			status = make(chan int, 1)
			go func() {
				res, _ := browse(t, client, "GET", liveURL)
				status <- res.StatusCode
			}()
			return status
		}
		status := answer()
		c.plays()
		c.look(func(s *service) { s.hub.fail(troubleAway) })
		if got := <-status; got != 503 {
			t.Errorf("status %d", got)
		}

		// Other parameter sets end the stream in good order: the browser comes again, and gets the new ones.
		f := c.premiere(client, frames)
		f.begin()
		f.fragments(19)
		c.send(resized(shifted(frames, 1))...)
		if b, err := io.ReadAll(f.br); err != nil {
			t.Errorf("%d bytes, %v, want the end", len(b), err)
		}
		f = watchLive(t, client)
		f.begin()
		if f.res.Header.Get("Content-Type") != `video/mp4; codecs="avc1.64000d, mp4a.40.2"` {
			t.Errorf("it comes again as %s", f.res.Header.Get("Content-Type"))
		}

		// The site goes.
		onLoop(c.site.session.loop.Loop, func() { c.site.peer.Close(nil) })
		if _, err := io.ReadAll(f.br); err == nil {
			t.Error("without the site the stream ends in good order")
		}
	})
}

// resized are the same packets with a higher level in the parameter sets.
func resized(frames [][]byte) (other [][]byte) {
	for _, f := range frames {
		if i := bytes.Index(f, []byte{0x67, 0x64, 0x00, 0x0c}); i > 0 {
			f = bytes.Clone(f)
			f[i+3]++
		}
		other = append(other, f)
	}
	return other
}

// Of cameras whose video browsers do not know there are snapshots alone.
func TestLiveCodec(t *testing.T) {
	browsers(t, func(t *testing.T, r *testRelay, client *http.Client) {
		newLiveCamera(t, r, "v=0\r\no=- 0 0 IN IP4 0.0.0.0\r\ns=-\r\nt=0 0\r\nm=video 0 RTP/AVP 26\r\na=control:video\r\n")
		for range 2 { // the second time it is known at once
			if res, body := browse(t, client, "GET", liveURL); res.StatusCode != 415 || strings.Contains(body, "26") {
				t.Errorf("%s %q", res.Status, body)
			}
		}
	})
}
