package public

import (
	"slices"
	"strings"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/rtsp"
)

// CameraStatus is what is known of a camera, in ServiceStatus.
type CameraStatus struct {
	Viewers    int    // who play it just now
	Received   uint64 // bytes of RTP and RTCP from the site
	Rate       uint64 // bits of them in a second, on the average of the last few
	Tracks     []CameraTrack
	KeyFrame   time.Time // when the last one came; zero: none has
	Reconnects uint64    // of the stream that viewers share, because the camera or the site was away
	Dropped    uint64    // frames that were left out for viewers who are slow
}

// CameraTrack is one track of a camera, by its last description.
type CameraTrack struct {
	Media         string // "video", "audio", "application"
	Codec         string // "H264"; "" if it is not known
	Width, Height int    // of the picture; 0 if not known
}

// Bounds of what a camera's description may have operators be shown.
const (
	maxTracksShown = 8
	maxWordShown   = 16 // bytes
)

// cameraTally is what is counted for a camera, whether its viewers share a stream or each has one. It is part of the
// tally of its service, and owned by the same loop. Times are those of loop.since.
type cameraTally struct {
	viewers    int
	received   uint64
	tracks     []CameraTrack
	key        int64 // when the last key frame came; 0: none has
	reconnects uint64
	dropped    uint64
	meter      // of received
}

// viewer counts those who play: +1 when one begins, -1 when one has ended.
func (c *cameraTally) viewer(n int) { c.viewers += n }

// media counts n bytes of interleaved frames that have come from the site.
func (c *cameraTally) media(now int64, n int) {
	c.received += uint64(n)
	c.add(now, uint64(n))
}

// keyframe tells that a key frame has come.
func (c *cameraTally) keyframe(now int64) { c.key = now }

// describe tells what the camera has. Its words are the camera's own: what is not printable is dropped.
func (c *cameraTally) describe(d *camera.Description) {
	c.tracks = make([]CameraTrack, 0, min(len(d.Tracks), maxTracksShown))
	for i := range d.Tracks[:cap(c.tracks)] {
		t := &d.Tracks[i]
		c.tracks = append(c.tracks, CameraTrack{shownWord(t.Media), shownWord(t.Codec), t.Width, t.Height})
	}
}

// size tells how large the pictures of a track are.
func (c *cameraTally) size(track, width, height int) {
	if track < len(c.tracks) && width > 0 && height > 0 {
		c.tracks[track].Width, c.tracks[track].Height = width, height
	}
}

func shownWord(s string) string {
	return strings.Map(func(r rune) rune {
		if r <= ' ' || r > '~' {
			return -1
		}
		return r
	}, s[:min(len(s), maxWordShown)])
}

// reconnect tells that the stream that viewers share has begun again.
func (c *cameraTally) reconnect() { c.reconnects++ }

// drop counts frames, whole ones, that were left out for a viewer who is slow.
func (c *cameraTally) drop(frames int) { c.dropped += uint64(frames) }

// status is the camera's part of Status.
func (c *cameraTally) status(now int64) *CameraStatus {
	st := &CameraStatus{
		Viewers: c.viewers, Received: c.received, Rate: c.rate(now), Tracks: slices.Clone(c.tracks),
		Reconnects: c.reconnects, Dropped: c.dropped,
	}
	if c.key != 0 {
		st.KeyFrame = time.Now().Add(time.Duration(c.key - now))
	}
	return st
}

// cameraView counts what passes by on a stream that one player has for itself. The zero value but for tally is ready.
type cameraView struct {
	tally   *cameraTally
	tracks  []camera.Track // with video, by their index; from DESCRIBE to PLAY
	asked   []viewSetup    // SETUPs that wait for their answer
	readers []viewReader   // of the tracks with video that are set up
	playing bool
}

type viewSetup struct {
	cseq uint32
	url  string
}

type viewReader struct {
	channel uint8
	track   int
	camera.Reader
}

// ask sees a request on its way to the camera.
func (v *cameraView) ask(m *rtsp.Message, cseq uint32) {
	if string(m.Method) == "SETUP" && len(v.asked) < maxFlight {
		v.asked = append(v.asked, viewSetup{cseq, string(m.URL)})
	}
}

// answer sees the answer to a request.
func (v *cameraView) answer(method rtspMethod, cseq uint32, m *rtsp.Message) {
	url := ""
	if i := slices.IndexFunc(v.asked, func(s viewSetup) bool { return s.cseq == cseq }); i >= 0 {
		url = v.asked[i].url
		v.asked = slices.Delete(v.asked, i, i+1)
	}
	if m.Status < 200 || m.Status >= 300 {
		return
	}
	switch method {
	case methodDescribe:
		if d, err := camera.Parse(m.Body); err == nil {
			v.tally.describe(d)
			v.tracks = d.Tracks
		}
	case methodSetup:
		list, err := rtsp.ParseTransport(m.Get("Transport"))
		if i := camera.TrackOf(v.tracks, url); err == nil && i >= 0 && v.tracks[i].IsVideo() && list[0].HasInterleaved {
			v.read(i, uint8(list[0].Interleaved[0]))
		}
	case methodPlay:
		v.tracks = nil
		v.plays(true)
	case methodPause, methodTeardown:
		v.plays(false)
	}
}

// read reads what comes on a channel from now on.
func (v *cameraView) read(track int, channel uint8) {
	i := slices.IndexFunc(v.readers, func(r viewReader) bool { return r.channel == channel })
	if i < 0 {
		if len(v.readers) == maxTracksShown {
			return
		}
		i = len(v.readers)
		v.readers = append(v.readers, viewReader{channel: channel})
	}
	v.readers[i].track = track
	v.readers[i].Reset(&v.tracks[track])
}

func (v *cameraView) plays(on bool) {
	if v.playing != on {
		v.playing = on
		n := 1
		if !on {
			n = -1
		}
		v.tally.viewer(n)
	}
}

// frame sees an interleaved frame that has come, or a piece of one.
func (v *cameraView) frame(now int64, d *rtsp.Demux, b []byte) {
	v.tally.media(now, len(b))
	if !d.First {
		return
	}
	for i := range v.readers {
		r := &v.readers[i]
		if r.channel != d.Channel {
			continue
		}
		was, p := r.Access, camera.Packet{Data: b[min(4, len(b)):]}
		if r.Read(&p) == nil && r.Access == camera.Key && (p.Begins || was != camera.Key) {
			v.tally.keyframe(now)
			v.tally.size(r.track, r.Width, r.Height)
		}
	}
}

// over ends the view.
func (v *cameraView) over() {
	v.plays(false)
	v.tracks, v.asked, v.readers = nil, nil, nil
}
