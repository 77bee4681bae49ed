//go:build linux

package e2e

import (
	"bytes"
	"context"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/pion/rtp"

	"culvert.dev/pkg/netem"
)

// recording is what a viewer has seen.
type recording struct {
	pictures     []picture
	video, audio int // decoded
	output       string
}

// ffmpeg watches until it has recorded some frames, from a key frame on, and decoded as many.
// Options come before the URL.
func ffmpeg(t testing.TB, n *netem.Namespace, frames int, url string, options ...string) (recording, error) {
	t.Helper()
	file := filepath.Join(tempDir(t), "rec.h264")
	args := append([]string{"-hide_banner", "-nostdin", "-loglevel", "warning"}, options...)
	args = append(args, "-i", url,
		"-map", "0:v", "-c", "copy", "-frames:v", fmt.Sprint(frames), "-f", "h264", file,
		"-map", "0", "-frames:v", fmt.Sprint(frames), "-frames:a", fmt.Sprint(frames), "-fps_mode", "passthrough", "-f", "framecrc", "-")
	cmd := resolving(t, tool(t, "ffmpeg", "ffmpeg"), args...)
	var out, messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &messages
	err := n.Do(cmd.Run)
	r := recording{output: messages.String()}
	for line := range strings.Lines(out.String()) {
		switch {
		case strings.HasPrefix(line, "0,"):
			r.video++
		case strings.HasPrefix(line, "1,"):
			r.audio++
		}
	}
	if err != nil {
		return r, fmt.Errorf("ffmpeg %s: %w\n%s", strings.Join(args, " "), err, &messages)
	}
	b, err := os.ReadFile(file)
	if err == nil {
		r.pictures, err = pictures(nalUnits(b))
	}
	return r, err
}

// gapless checks that a recording has some frames from the first key frame on, one after another.
func (r recording) gapless(t testing.TB, frames int) {
	t.Helper()
	r.pictures = r.pictures[max(0, slices.IndexFunc(r.pictures, picture.isKey)):]
	var n []int
	for _, p := range r.pictures {
		n = append(n, p.n)
	}
	for i, p := range r.pictures {
		if p.n != r.pictures[0].n+i {
			t.Errorf("frame %d comes after %d: %v\n%s", p.n, r.pictures[i-1].n, n, r.output)
			return
		}
	}
	if len(n) < frames || !r.pictures[0].isKey() {
		t.Errorf("%d frames, want %d from a key frame on: %v\n%s", len(n), frames, n, r.output)
	}
}

// gstreamer watches as ffmpeg does, without the sound. It begins with any frame, but decodes what it can from there.
func gstreamer(t testing.TB, n *netem.Namespace, frames int, url string, options ...string) (recording, error) {
	t.Helper()
	file := filepath.Join(tempDir(t), "rec.h264")
	args := append([]string{"-q", "rtspsrc", "location=" + url, "name=src"}, options...)
	// What comes from the decoder ends it all.
	args = append(args, "src.", "!", "rtph264depay", "!", "h264parse", "!", "video/x-h264,stream-format=byte-stream,alignment=au", "!", "tee", "name=t",
		"t.", "!", "queue", "!", "filesink", "buffer-mode=unbuffered", "location="+file,
		"t.", "!", "queue", "!", "avdec_h264", "!", "identity", fmt.Sprintf("eos-after=%d", frames+frameRate), "!", "fakesink", "sync=false")
	cmd := resolving(t, tool(t, "gst-launch-1.0", "gstreamer1.0-tools"), args...)
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+certFile("ca.pem"))
	var messages bytes.Buffer
	cmd.Stdout, cmd.Stderr = &messages, &messages
	err := n.Do(cmd.Run)
	r := recording{output: messages.String(), video: frames, audio: frames}
	// At the end it may ask for a pause, and then send a report, for which gortsplib's server hangs up.
	if err != nil && !strings.Contains(r.output, "gst_rtspsrc_pause ()") {
		return r, fmt.Errorf("gst-launch-1.0 %s: %w\n%s", strings.Join(args, " "), err, &messages)
	}
	b, err := os.ReadFile(file)
	if err == nil {
		r.pictures, err = pictures(nalUnits(b))
	}
	return r, err
}

// watching is gortsplib's client at work.
type watching struct {
	t      testing.TB
	client *gortsplib.Client

	mu    sync.Mutex
	units [][]byte
	came  []time.Time   // of each picture
	added chan struct{} // closed and replaced when there are more of them
	ended error
}

// watch starts gortsplib's client for a URL at an address.
func watch(t testing.TB, n *netem.Namespace, addr, url string, tunnel gortsplib.Tunnel, protocol gortsplib.Protocol) (*watching, error) {
	t.Helper()
	u, err := base.ParseURL(url)
	if err != nil {
		t.Fatal(err)
	}
	w := &watching{t: t, added: make(chan struct{}), client: &gortsplib.Client{
		Scheme:        u.Scheme,
		Host:          u.Host,
		Tunnel:        tunnel,
		Protocol:      &protocol,
		TLSConfig:     &tls.Config{RootCAs: caPool(), ServerName: u.Hostname()},
		ReadTimeout:   waitLimit,
		DialContext:   func(_ context.Context, network, _ string) (net.Conn, error) { return dialIn(n, network, addr) },
		ResolveIPAddr: func(string, string) (*net.IPAddr, error) { return &net.IPAddr{IP: net.IPv4(127, 0, 0, 1)}, nil },
	}}
	if err := w.client.Start(); err != nil {
		return nil, err
	}
	t.Cleanup(w.client.Close)
	desc, _, err := w.client.Describe(u)
	if err != nil {
		return nil, fmt.Errorf("DESCRIBE: %w", err)
	}
	if err := w.client.SetupAll(desc.BaseURL, desc.Medias); err != nil {
		return nil, fmt.Errorf("SETUP: %w", err)
	}
	var video *format.H264
	media := desc.FindFormat(&video)
	if media == nil {
		return nil, fmt.Errorf("no H.264 in %+v", desc)
	}
	d, err := video.CreateDecoder()
	if err != nil {
		return nil, err
	}
	w.client.OnPacketRTP(media, video, func(p *rtp.Packet) {
		au, err := d.Decode(p)
		if err != nil {
			return // more packets are needed
		}
		if protocol == gortsplib.ProtocolUDP {
			if p, err := pictures(slices.Values(au)); err != nil || len(p) == 0 {
				return // packets of it were lost
			}
		}
		w.mu.Lock()
		defer w.mu.Unlock()
		for _, u := range au {
			if u[0]&0x1f != 12 { // the filler
				w.units = append(w.units, u)
			}
			if bytes.HasPrefix(u, label) {
				w.came = append(w.came, time.Now())
			}
		}
		close(w.added)
		w.added = make(chan struct{})
	})
	if _, err := w.client.Play(nil); err != nil {
		return nil, fmt.Errorf("PLAY: %w", err)
	}
	go func() {
		err := w.client.Wait()
		w.mu.Lock()
		defer w.mu.Unlock()
		w.ended = err
		close(w.added)
		w.added = make(chan struct{})
	}()
	return w, nil
}

// got is what has come so far.
func (w *watching) got() (recording, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	p, err := pictures(slices.Values(w.units))
	for i := range p {
		p[i].came = w.came[i]
	}
	return recording{pictures: p}, err
}

// await waits until a condition holds for what has come.
func (w *watching) await(what string, ok func([]picture) bool) recording {
	w.t.Helper()
	for limit := time.After(2 * waitLimit); ; {
		w.mu.Lock()
		added, ended := w.added, w.ended
		w.mu.Unlock()
		r, err := w.got()
		if err != nil {
			w.t.Fatalf("%s: %v", what, err)
		}
		if ok(r.pictures) {
			return r
		}
		if ended != nil {
			w.t.Fatalf("%s: after %d frames: %v", what, len(r.pictures), ended)
		}
		select {
		case <-added:
		case <-limit:
			w.t.Fatalf("%s: no more than %d frames", what, len(r.pictures))
		}
	}
}

// frames waits for n frames from a key frame on, and forgets those before.
func (w *watching) frames(n int) recording {
	w.t.Helper()
	first := func(p []picture) int { return max(0, slices.IndexFunc(p, picture.isKey)) }
	r := w.await(fmt.Sprint(n, " frames"), func(p []picture) bool { return len(p)-first(p) >= n })
	r.pictures = r.pictures[first(r.pictures):]
	return r
}

// TestCamera shows that what viewers are compared with is right: without any relay, every
// frame of the camera arrives.
func TestCamera(t *testing.T) {
	t.Parallel()
	for name, methods := range map[string][]auth.VerifyMethod{
		"open": nil, "basic": {auth.VerifyMethodBasic}, "digest": {auth.VerifyMethodDigestMD5},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := startCamera(t, nil, methods...)
			r, err := ffmpeg(t, nil, 50, c.target(), "-rtsp_transport", "tcp")
			if err != nil {
				t.Fatal(err)
			}
			r.gapless(t, 50)
			if r.video != 50 || r.audio != 50 {
				t.Errorf("decoded %d and %d\n%s", r.video, r.audio, r.output)
			}
			if conns, _ := c.count(); conns != 1 || slices.ContainsFunc(c.requests(), func(s string) bool { return !strings.Contains(s, c.addr+"/cam") }) {
				t.Errorf("%d connections, requests %q", conns, c.requests())
			}
			for _, tunnel := range []gortsplib.Tunnel{gortsplib.TunnelNone, gortsplib.TunnelHTTP, gortsplib.TunnelWebSocket} {
				w, err := watch(t, nil, c.addr, c.target(), tunnel, gortsplib.ProtocolTCP)
				if err != nil {
					t.Fatal(err)
				}
				w.frames(25).gapless(t, 25)
			}
		})
	}
}
