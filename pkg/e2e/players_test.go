//go:build linux

package e2e

import (
	"os/exec"
	"slices"
	"strings"
	"testing"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"

	"culvert.dev/pkg/netem"
)

// configureCameras is configure for services that are published to players, too.
func configureCameras(t testing.TB, l *netem.Link, services ...service) *system {
	t.Helper()
	s := configure(t, l, services...)
	s.rtsp, s.rtsps = freeAddr(t), freeAddr(t)
	s.sites = siteTOML("office", s.key, append(slices.Clone(allowed), "rtsp://*.example.com", "rtsps://*.example.com")...)
	s.more = map[string]string{}
	return s
}

// passwordHash is what the configuration has of other passwords.
func passwordHash(t testing.TB, password string) string {
	t.Helper()
	cmd := exec.Command(command(t, "tunnelctl"), "password")
	cmd.Stdin = strings.NewReader(password + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tunnelctl password: %v\n%s", err, out)
	}
	return strings.TrimSpace(string(out))
}

// digestHash is what the configuration has of a visitor's password who uses Digest.
func digestHash(t testing.TB, user, password string) string {
	t.Helper()
	cmd := exec.Command(command(t, "tunnelctl"), "password", "--digest", user)
	cmd.Stdin = strings.NewReader(password + "\n")
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tunnelctl password: %v\n%s", err, out)
	}
	_, hash, _ := strings.Cut(strings.TrimSpace(string(out)), ":")
	return hash
}

// player is a program that watches a camera through the public relay, in one of its ways.
type player struct {
	name   string
	scheme string // of the URL
	addr   func(*system) string
	play   func(p player, t testing.TB, s *system, frames int, url string) (recording, error)
	option []string
	tunnel gortsplib.Tunnel
}

// ports of the public relay.
func onRTSP(s *system) string  { return s.rtsp }
func onRTSPS(s *system) string { return s.rtsps }
func onHTTP(s *system) string  { return s.http }
func onHTTPS(s *system) string { return s.https }

func playFFmpeg(p player, t testing.TB, s *system, frames int, url string) (recording, error) {
	return ffmpeg(t, s.outside, frames, url, p.option...)
}

func playGStreamer(p player, t testing.TB, s *system, frames int, url string) (recording, error) {
	return gstreamer(t, s.outside, frames, url, p.option...)
}

func playGortsplib(p player, t testing.TB, s *system, frames int, url string) (recording, error) {
	w, err := watch(t, s.outside, p.addr(s), url, p.tunnel, gortsplib.ProtocolTCP)
	if err != nil {
		return recording{}, err
	}
	defer w.client.Close()
	r := w.frames(frames)
	r.video, r.audio = frames, frames // nothing is decoded
	return r, nil
}

// url is what a player is told of a camera.
func (p player) url(s *system, userinfo, path string) string {
	_, port, _ := strings.Cut(p.addr(s), ":")
	return p.scheme + "://" + userinfo + "cams.example.com:" + port + path
}

var players = []player{
	{name: "ffmpeg tcp", scheme: "rtsp", addr: onRTSP, play: playFFmpeg, option: []string{"-rtsp_transport", "tcp"}},
	{name: "ffmpeg refused udp", scheme: "rtsp", addr: onRTSP, play: playFFmpeg},
	{name: "ffmpeg http", scheme: "rtsp", addr: onHTTP, play: playFFmpeg, option: []string{"-rtsp_transport", "http"}},
	{name: "ffmpeg https", scheme: "rtsp", addr: onHTTPS, play: playFFmpeg, option: []string{"-rtsp_transport", "https"}},
	{name: "ffmpeg rtsps", scheme: "rtsps", addr: onRTSPS, play: playFFmpeg, option: []string{"-rtsp_transport", "tcp"}},
	{name: "gstreamer rtsp", scheme: "rtsp", addr: onRTSP, play: playGStreamer},
	{name: "gstreamer rtsph", scheme: "rtsph", addr: onHTTP, play: playGStreamer},
	{name: "gstreamer rtspsh", scheme: "rtspsh", addr: onHTTPS, play: playGStreamer, option: trusting},
	{name: "gstreamer rtsps", scheme: "rtsps", addr: onRTSPS, play: playGStreamer, option: trusting},
	{name: "gortsplib rtsp", scheme: "rtsp", addr: onRTSP, play: playGortsplib},
	{name: "gortsplib rtsps", scheme: "rtsps", addr: onRTSPS, play: playGortsplib},
	{name: "gortsplib http", scheme: "rtsp", addr: onHTTP, play: playGortsplib, tunnel: gortsplib.TunnelHTTP},
	{name: "gortsplib https", scheme: "rtsps", addr: onHTTPS, play: playGortsplib, tunnel: gortsplib.TunnelHTTP},
	{name: "gortsplib ws", scheme: "rtsp", addr: onHTTP, play: playGortsplib, tunnel: gortsplib.TunnelWebSocket},
	{name: "gortsplib wss", scheme: "rtsps", addr: onHTTPS, play: playGortsplib, tunnel: gortsplib.TunnelWebSocket},
}

// trusting has rtspsrc take any certificate: it asks the system's authorities alone.
var trusting = []string{"tls-validation-flags=0"}

// TestPlayers has every player watch cameras through both relays: one that wants a password of the relay and one that wants none;
// with one stream for each player and with one for all; and a service that wants a password of the visitor.
func TestPlayers(t *testing.T) {
	t.Parallel()
	open, digest, basic := startCamera(t, nil), startCamera(t, nil, auth.VerifyMethodDigestMD5), startCamera(t, nil, auth.VerifyMethodBasic)
	s := configureCameras(t, nil,
		service{"open", "rtsp://cams.example.com/open", open.target()},
		service{"digest", "rtsp://cams.example.com/site/digest", digest.target()},
		service{"private", "rtsp://cams.example.com/private", basic.target()})
	s.more["private"] = "users = { alice = \"" + digestHash(t, "alice", "visitor-s3cret") + "\" }\n"
	s.startPublic()
	s.startPrivate()
	t.Run("each", func(t *testing.T) {
		for _, p := range players {
			for _, camera := range []struct{ userinfo, path string }{{"", "/open"}, {"", "/site/digest"}, {"alice:visitor-s3cret@", "/private"}} {
				t.Run(p.name+camera.path, func(t *testing.T) {
					t.Parallel()
					const frames = 50
					r, err := p.play(p, t, s, frames, p.url(s, camera.userinfo, camera.path))
					if err != nil {
						t.Fatal(err)
					}
					r.gapless(t, frames)
					if r.video < frames || r.audio < frames {
						t.Errorf("decoded %d frames and %d of audio\n%s", r.video, r.audio, r.output)
					}
				})
			}
		}
	})
	for _, c := range []*camera{open, digest, basic} {
		for _, asked := range c.requests() {
			if strings.Contains(asked, "cams.example.com") || strings.Contains(asked, "alice") || strings.Contains(asked, "client_port") {
				t.Errorf("the camera was asked: %s", asked)
			}
		}
	}
	s.keepsSecret("s3cret")
}

// TestPlayersUDP has players get what a camera shows by UDP, from a stream of their own and from the one that all share.
func TestPlayersUDP(t *testing.T) {
	t.Parallel()
	own, shared := startCamera(t, nil), startCamera(t, nil)
	s := configureCameras(t, nil,
		service{"own", "rtsp://cams.example.com/own", own.target()},
		service{"shared", "rtsp://cams.example.com/shared", shared.target()})
	s.listen = "rtp = \"127.0.0.1:0\"\n"
	s.more["own"] = "udp = true\n"
	s.more["shared"] = "udp = true\nfan_out = true\n"
	s.startPublic()
	s.startPrivate()
	byUDP := func(p player, t testing.TB, s *system, frames int, url string) (recording, error) {
		w, err := watch(t, s.outside, p.addr(s), url, p.tunnel, gortsplib.ProtocolUDP)
		if err != nil {
			return recording{}, err
		}
		defer w.client.Close()
		r := w.frames(frames)
		r.video, r.audio = frames, frames // nothing is decoded
		return r, nil
	}
	t.Run("each", func(t *testing.T) {
		for _, p := range []player{
			{name: "ffmpeg", scheme: "rtsp", addr: onRTSP, play: playFFmpeg, option: []string{"-rtsp_transport", "udp"}},
			{name: "gstreamer", scheme: "rtsp", addr: onRTSP, play: playGStreamer, option: []string{"protocols=udp"}},
			{name: "gortsplib", scheme: "rtsp", addr: onRTSP, play: byUDP},
		} {
			for _, path := range []string{"/own", "/shared"} {
				t.Run(p.name+path, func(t *testing.T) {
					t.Parallel()
					const frames = 50
					r, err := p.play(p, t, s, frames, p.url(s, "", path))
					if err != nil {
						t.Fatal(err)
					}
					if r.video < frames || r.audio < frames {
						t.Errorf("decoded %d frames and %d of audio\n%s", r.video, r.audio, r.output)
					}
				})
			}
		}
	})
	for _, c := range []*camera{own, shared} {
		for _, asked := range c.requests() {
			if strings.Contains(asked, "client_port") {
				t.Errorf("the camera was asked: %s", asked)
			}
		}
	}
}
