//go:build linux

package e2e

import (
	"bytes"
	"fmt"
	"hash/crc32"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtpmpeg4audio"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/bluenviron/mediacommon/v2/pkg/codecs/mpeg4audio"

	"culvert.dev/pkg/netem"
)

// The film of every camera: 25 frames a second, of which each 25th is a key frame.
const (
	frameRate = 25
	frameTime = time.Second / frameRate
)

// film is four seconds of H.264 and AAC, without an end: what follows the last frame is the first one.
type film struct {
	sps, pps []byte
	slices   [][]byte // the NAL unit of each frame
	audio    [][]byte // an access unit of 1024 samples each
	config   *mpeg4audio.AudioSpecificConfig
}

// Two films, which differ in their parameter sets.
var (
	smallFilm = sync.OnceValues(func() (*film, error) { return shoot("320x180") })
	largeFilm = sync.OnceValues(func() (*film, error) { return shoot("640x360") })
)

// shoot has ffmpeg make a film.
func shoot(size string) (*film, error) {
	video, audio := filepath.Join(root, size+".h264"), filepath.Join(root, size+".aac")
	cmd := exec.Command("ffmpeg", "-hide_banner", "-loglevel", "error", "-nostdin", "-y",
		"-f", "lavfi", "-i", fmt.Sprintf("testsrc2=size=%s:rate=%d", size, frameRate), "-f", "lavfi", "-i", "sine=frequency=440:sample_rate=48000",
		"-map", "0:v", "-t", "4", "-c:v", "libx264", "-preset", "veryfast", "-bf", "0", "-pix_fmt", "yuv420p", "-threads", "1",
		"-x264-params", "keyint=25:min-keyint=25:scenecut=0:slices=1", "-f", "h264", video,
		"-map", "1:a", "-t", "4", "-c:a", "aac", "-b:a", "48k", "-f", "adts", audio)
	if out, err := cmd.CombinedOutput(); err != nil {
		return nil, fmt.Errorf("ffmpeg: %w (it is installed by .ci/tools)\n%s", err, out)
	}
	f := &film{}
	b, err := os.ReadFile(video)
	if err != nil {
		return nil, err
	}
	for u := range nalUnits(b) {
		switch u[0] & 0x1f {
		case 1, 5:
			f.slices = append(f.slices, u)
		case 7:
			f.sps = u
		case 8:
			f.pps = u
		}
	}
	if len(f.slices) != 4*frameRate || f.sps == nil || f.pps == nil {
		return nil, fmt.Errorf("ffmpeg: %d slices, parameter sets of %d and %d bytes", len(f.slices), len(f.sps), len(f.pps))
	}
	if b, err = os.ReadFile(audio); err != nil {
		return nil, err
	}
	var packets mpeg4audio.ADTSPackets
	if err := packets.Unmarshal(b); err != nil {
		return nil, err
	}
	f.config = &mpeg4audio.AudioSpecificConfig{Type: packets[0].Type, SampleRate: packets[0].SampleRate, ChannelConfig: packets[0].ChannelConfig}
	for _, p := range packets {
		f.audio = append(f.audio, p.AU)
	}
	return f, nil
}

// nalUnits are the units of an H.264 byte stream.
func nalUnits(b []byte) func(func([]byte) bool) {
	return func(yield func([]byte) bool) {
		_, b, _ := bytes.Cut(b, []byte{0, 0, 1})
		for len(b) > 0 {
			var u []byte
			u, b, _ = bytes.Cut(b, []byte{0, 0, 1})
			if u = bytes.TrimRight(u, "\x00"); len(u) > 0 && !yield(u) {
				return
			}
		}
	}
}

// label begins the SEI message by which a camera numbers its frames: a UUID, and then
// the frame's number, the time it was sent, and the check sum of its slice.
var label = append([]byte{6, 5, 16 + 39}, "culvert-frame-no"...)

// frame is the access unit of frame number n.
func (f *film) frame(n int) [][]byte {
	slice := f.slices[n%len(f.slices)]
	var units [][]byte
	if n%frameRate == 0 {
		units = append(units, f.sps, f.pps)
	}
	text := fmt.Sprintf("%010d %019d %08x", n, time.Now().UnixNano(), crc32.ChecksumIEEE(slice))
	return append(units, append(append(slices.Clip(label), text...), 0x80), slice)
}

// picture is a frame that a viewer has got.
type picture struct {
	n    int
	sent time.Time
	came time.Time // known of viewers who are in this process
}

func (p picture) isKey() bool { return p.n%frameRate == 0 }

// pictures reads the numbers of the frames in NAL units, and checks that each is whole. The last
// one may not be: a viewer stops when it pleases.
func pictures(units func(func([]byte) bool)) (p []picture, err error) {
	var sum string
	whole := true
	for u := range units {
		switch kind := u[0] & 0x1f; {
		case bytes.HasPrefix(u, label):
			if !whole && err == nil {
				err = fmt.Errorf("frame %d is not whole", p[len(p)-1].n)
			}
			f := strings.Fields(string(bytes.TrimRight(u[len(label):], "\x80")))
			if len(f) != 3 {
				return nil, fmt.Errorf("the label of a frame is %q", u)
			}
			n, _ := strconv.Atoi(f[0])
			sent, _ := strconv.ParseInt(f[1], 10, 64)
			p, sum, whole = append(p, picture{n: n, sent: time.Unix(0, sent)}), f[2], false
		case kind == 1 || kind == 5:
			if len(p) > 0 {
				whole = fmt.Sprintf("%08x", crc32.ChecksumIEEE(u)) == sum
			}
		}
	}
	if !whole {
		p = p[:len(p)-1]
	}
	return p, err
}

// camera is an RTSP server on a loopback address that shows a film.
type camera struct {
	t              testing.TB
	in             *netem.Namespace
	user, password string
	methods        []auth.VerifyMethod
	addr           string // the same after a reboot
	over           chan struct{}
	done           chan struct{}

	mu      sync.Mutex
	film    *film
	server  *gortsplib.Server // nil while it is off
	stream  *gortsplib.ServerStream
	video   *rtph264.Encoder
	audio   *rtpmpeg4audio.Encoder
	next    int       // the number of the next frame
	samples int       // how many access units of audio have been sent
	began   time.Time // of frame 0, had there been no pause
	clock   uint32    // of RTP, of frame 0
	filler  []byte    // an NAL unit of each frame that nobody looks at
	conns   int       // since the beginning
	open    int       // now
	plays   int       // successful PLAY requests
	asked   []string  // the requests
	ended   []string  // why connections were closed
}

// startCamera starts a camera that asks for the given user and password in one of some ways, or is open to all if there
// are none.
func startCamera(t testing.TB, n *netem.Namespace, methods ...auth.VerifyMethod) *camera {
	t.Helper()
	f, err := smallFilm()
	if err != nil {
		t.Fatal(err)
	}
	c := &camera{t: t, in: n, film: f, methods: methods, addr: freeAddr(t), over: make(chan struct{}), done: make(chan struct{}), began: time.Now()}
	if len(methods) > 0 {
		c.user, c.password = "admin", "s3cret-of-the-camera"
	}
	c.on()
	go c.run()
	t.Cleanup(func() {
		close(c.over)
		<-c.done
		c.off()
		if t.Failed() {
			c.mu.Lock()
			defer c.mu.Unlock()
			t.Logf("--- requests at the camera (%d connections, ended by %q)\n%s", c.conns, c.ended, strings.Join(c.asked[max(0, len(c.asked)-60):], "\n"))
		}
	})
	return c
}

// target is the camera as a private relay's configuration names it.
func (c *camera) target() string {
	if c.user == "" {
		return "rtsp://" + c.addr + "/cam?stream=1"
	}
	return "rtsp://" + c.user + ":" + c.password + "@" + c.addr + "/cam?stream=1"
}

// on starts the camera, at the address that it had before.
func (c *camera) on() {
	c.t.Helper()
	var ln net.Listener
	server := &gortsplib.Server{
		RTSPAddress:    c.addr,
		Handler:        c,
		AuthMethods:    c.methods,
		WriteQueueSize: 16384, // packets: seconds of the largest frames, on a machine that has other things to do
		Listen: func(_, addr string) (_ net.Listener, err error) {
			ln, err = listenIn(c.in, addr)
			return ln, err
		},
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	video := &format.H264{PayloadTyp: 96, SPS: c.film.sps, PPS: c.film.pps, PacketizationMode: 1}
	audio := &format.MPEG4Audio{PayloadTyp: 97, Config: c.film.config, SizeLength: 13, IndexLength: 3, IndexDeltaLength: 3}
	if err := server.Start(); err != nil {
		c.t.Fatalf("camera: %v", err)
	}
	c.addr = ln.Addr().String()
	stream := &gortsplib.ServerStream{Server: server, Desc: &description.Session{Medias: []*description.Media{
		{Type: description.MediaTypeVideo, Formats: []format.Format{video}},
		{Type: description.MediaTypeAudio, Formats: []format.Format{audio}},
	}}}
	err := stream.Initialize()
	if err == nil {
		c.video, err = video.CreateEncoder()
	}
	if err == nil {
		c.audio, err = audio.CreateEncoder()
	}
	if err != nil {
		c.t.Fatalf("camera: %v", err)
	}
	// What has been running begins with a key frame, and with a clock of its own.
	c.next = (c.next + frameRate - 1) / frameRate * frameRate
	c.resume()
	c.clock += 1 << 30
	c.server, c.stream = server, stream
}

// off ends the camera in mid-sentence.
func (c *camera) off() {
	c.mu.Lock()
	server := c.server
	c.server, c.stream = nil, nil
	c.mu.Unlock()
	if server != nil {
		server.Close()
	}
}

// reboot takes a camera away for a while. It comes back with a film.
func (c *camera) reboot(pause time.Duration, film *film) {
	c.t.Helper()
	c.off()
	time.Sleep(pause)
	c.mu.Lock()
	c.film = film
	c.mu.Unlock()
	c.on()
}

// fill makes each frame larger by some bytes.
func (c *camera) fill(n int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.filler = nil
	if n > 0 {
		c.filler = append([]byte{12}, bytes.Repeat([]byte{0xff}, n)...)
	}
}

// resume makes now the time of the next frame. The clock of RTP does not stand still meanwhile.
func (c *camera) resume() {
	pause := time.Since(c.began.Add(time.Duration(c.next) * frameTime))
	c.began = c.began.Add(pause)
	c.clock += uint32(pause / time.Microsecond * 90 / 1000)
	c.samples = c.next * 48000 / frameRate / 1024
}

// run sends the frames when they are due.
func (c *camera) run() {
	defer close(c.done)
	for {
		c.mu.Lock()
		wait := frameTime
		if c.stream != nil {
			c.show()
			c.next++
			wait = time.Until(c.began.Add(time.Duration(c.next) * frameTime))
		}
		c.mu.Unlock()
		select {
		case <-c.over:
			return
		case <-time.After(wait):
		}
	}
}

// show sends the next frame and the sound until then. What a viewer does not take is the viewer's affair.
func (c *camera) show() {
	medias := c.stream.Desc.Medias
	units := c.film.frame(c.next)
	if c.filler != nil {
		units = append(units, c.filler)
	}
	packets, err := c.video.Encode(units)
	if err != nil {
		panic("BUG: " + err.Error())
	}
	for _, p := range packets {
		p.Timestamp = c.clock + uint32(c.next*90000/frameRate)
		c.stream.WritePacketRTP(medias[0], p)
	}
	for ; c.samples*1024/(48000/frameRate) <= c.next; c.samples++ {
		packets, err := c.audio.Encode([][]byte{c.film.audio[c.samples%len(c.film.audio)]})
		if err != nil {
			panic("BUG: " + err.Error())
		}
		for _, p := range packets {
			p.Timestamp = uint32(c.samples * 1024)
			c.stream.WritePacketRTP(medias[1], p)
		}
	}
}

// count is the number of connections since the start and of those that are open.
func (c *camera) count() (conns, open int) {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.conns, c.open
}

// requests are all requests since the start, each with its URL and its credentials.
func (c *camera) requests() []string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clone(c.asked)
}

func (c *camera) OnConnOpen(*gortsplib.ServerHandlerOnConnOpenCtx) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.conns++
	c.open++
}

func (c *camera) OnConnClose(x *gortsplib.ServerHandlerOnConnCloseCtx) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.open--
	c.ended = append(c.ended, fmt.Sprint(x.Error))
}

func (c *camera) OnRequest(_ *gortsplib.ServerConn, req *base.Request) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.asked = append(c.asked, fmt.Sprintf("%s %s Transport %q Authorization %q", req.Method, req.URL, req.Header["Transport"], req.Header["Authorization"]))
}

// admit answers a request that needs credentials.
func (c *camera) admit(conn *gortsplib.ServerConn, req *base.Request, path, query string) (*base.Response, *gortsplib.ServerStream, error) {
	if c.user != "" && !conn.VerifyCredentials(req, c.user, c.password) {
		return &base.Response{StatusCode: base.StatusUnauthorized}, nil, liberrors.ErrServerAuth{}
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if path != "/cam" || query != "stream=1" || c.stream == nil {
		return &base.Response{StatusCode: base.StatusNotFound}, nil, nil
	}
	return &base.Response{StatusCode: base.StatusOK, Header: base.Header{"Server": base.HeaderValue{"IPCam 1.0"}}}, c.stream, nil
}

func (c *camera) OnDescribe(x *gortsplib.ServerHandlerOnDescribeCtx) (*base.Response, *gortsplib.ServerStream, error) {
	return c.admit(x.Conn, x.Request, x.Path, x.Query)
}

func (c *camera) OnSetup(x *gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	return c.admit(x.Conn, x.Request, x.Path, x.Query)
}

func (c *camera) OnPlay(*gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.plays++
	return &base.Response{StatusCode: base.StatusOK}, nil
}

func (c *camera) OnPause(*gortsplib.ServerHandlerOnPauseCtx) (*base.Response, error) {
	return &base.Response{StatusCode: base.StatusOK}, nil
}

// OnStreamWriteError is what happens to players who do not read: their streams end.
func (c *camera) OnStreamWriteError(*gortsplib.ServerHandlerOnStreamWriteErrorCtx) {}
