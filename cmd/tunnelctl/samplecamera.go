package main

import (
	"bytes"
	_ "embed"
	"fmt"
	"net"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
)

// cameraFilm is what the sample camera sees: four seconds of a test picture in H.264, with a key frame every second, made by
//
//	ffmpeg -f lavfi -i testsrc2=size=320x180:rate=25 -t 4 -c:v libx264 -profile:v main -preset veryslow -b:v 220k -bf 0 -pix_fmt yuv420p \
//	    -threads 1 -x264-params keyint=25:min-keyint=25:scenecut=0:slices=1:ref=1 -bsf:v filter_units=remove_types=6 -f h264 camera.h264
//
//go:embed camera.h264
var cameraFilm []byte

const (
	cameraRate  = 25    // frames a second
	cameraClock = 90000 // units of RTP's timestamps a second (RFC 6184)
	cameraPath  = "/h264"

	// Whoever is to know this is the private relay alone.
	cameraUser   = "camera"
	cameraSecret = "known-on-site-alone"
)

// film is a cameraFilm taken apart.
type film struct {
	sps, pps []byte
	frames   [][]byte // the NAL unit of each
}

func newFilm(b []byte) (f film) {
	_, b, _ = bytes.Cut(b, []byte{0, 0, 1})
	for len(b) > 0 {
		var unit []byte
		unit, b, _ = bytes.Cut(b, []byte{0, 0, 1})
		unit = bytes.TrimRight(unit, "\x00") // of a start code of four bytes
		switch unit[0] & 0x1f {
		case 7:
			f.sps = unit
		case 8:
			f.pps = unit
		default:
			f.frames = append(f.frames, unit)
		}
	}
	return f
}

// unit is the access unit of frame n, counted over all repetitions.
func (f film) unit(n int) [][]byte {
	frame := f.frames[n%len(f.frames)]
	if frame[0]&0x1f == 5 {
		return [][]byte{f.sps, f.pps, frame}
	}
	return [][]byte{frame}
}

// sampleCamera is a camera as there are behind firewalls: it speaks RTSP, and asks for a password by Digest.
type sampleCamera struct {
	film    film
	addr    net.Addr
	server  *gortsplib.Server
	stream  *gortsplib.ServerStream
	encoder *rtph264.Encoder
	over    chan struct{}
	running sync.WaitGroup
}

// startCamera starts a camera on a loopback port of its own.
func startCamera() (*sampleCamera, error) {
	c := &sampleCamera{film: newFilm(cameraFilm), over: make(chan struct{})}
	c.server = &gortsplib.Server{
		RTSPAddress: "127.0.0.1:0",
		Handler:     c,
		AuthMethods: []auth.VerifyMethod{auth.VerifyMethodDigestMD5},
		Listen: func(network, address string) (net.Listener, error) {
			ln, err := net.Listen(network, address)
			if err == nil {
				c.addr = ln.Addr()
			}
			return ln, err
		},
	}
	if err := c.server.Start(); err != nil {
		return nil, err
	}
	h264 := &format.H264{PayloadTyp: 96, SPS: c.film.sps, PPS: c.film.pps, PacketizationMode: 1}
	c.stream = &gortsplib.ServerStream{Server: c.server, Desc: &description.Session{
		Medias: []*description.Media{{Type: description.MediaTypeVideo, Formats: []format.Format{h264}}},
	}}
	err := c.stream.Initialize()
	if err == nil {
		c.encoder, err = h264.CreateEncoder()
	}
	if err != nil {
		c.server.Close()
		return nil, err
	}
	c.running.Go(c.run)
	return c, nil
}

// target is what a service names to show the camera.
func (c *sampleCamera) target() string {
	return fmt.Sprintf("rtsp://%s:%s@%s%s", cameraUser, cameraSecret, c.addr, cameraPath)
}

// run sends each frame when it is due, whether somebody watches or not.
func (c *sampleCamera) run() {
	tick := time.NewTicker(time.Second / cameraRate)
	defer tick.Stop()
	for n := 0; ; n++ {
		packets, err := c.encoder.Encode(c.film.unit(n))
		if err != nil {
			panic("BUG: " + err.Error())
		}
		for _, p := range packets {
			p.Timestamp = uint32(n * cameraClock / cameraRate)
			_ = c.stream.WritePacketRTP(c.stream.Desc.Medias[0], p) // who cannot take it is not helped
		}
		select {
		case <-c.over:
			return
		case <-tick.C:
		}
	}
}

func (c *sampleCamera) close() {
	close(c.over)
	c.running.Wait()
	c.stream.Close()
	c.server.Close()
}

// admit answers a request, which has to prove that it knows the password.
func (c *sampleCamera) admit(conn *gortsplib.ServerConn, req *base.Request, path string) (*base.Response, *gortsplib.ServerStream, error) {
	switch {
	case !conn.VerifyCredentials(req, cameraUser, cameraSecret):
		return &base.Response{StatusCode: base.StatusUnauthorized}, nil, liberrors.ErrServerAuth{}
	case path != cameraPath:
		return &base.Response{StatusCode: base.StatusNotFound}, nil, nil
	}
	return &base.Response{StatusCode: base.StatusOK}, c.stream, nil
}

// OnDescribe, OnSetup and OnPlay are called by the server.
func (c *sampleCamera) OnDescribe(x *gortsplib.ServerHandlerOnDescribeCtx) (*base.Response, *gortsplib.ServerStream, error) {
	return c.admit(x.Conn, x.Request, x.Path)
}

func (c *sampleCamera) OnSetup(x *gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	return c.admit(x.Conn, x.Request, x.Path)
}

func (c *sampleCamera) OnPlay(*gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	return &base.Response{StatusCode: base.StatusOK}, nil
}
