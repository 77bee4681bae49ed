package main

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/pion/rtp"
)

// The demo's camera is published by address: players ask the system for names, and not every system knows those
// under localhost.
const (
	camHost = "127.0.0.1"
	camPath = "/gate"
)

// visitCamera watches the camera in three ways, with the password of a visitor.
func (d *demo) visitCamera(ctx context.Context) (string, error) {
	if _, err := d.watch(ctx, "rtsp", d.rtsp, camPath, "", gortsplib.TunnelNone); err == nil {
		return "", errors.New("nobody asks for a password")
	} else if !strings.Contains(err.Error(), "401") {
		return "", fmt.Errorf("without a password: %w", err)
	}
	var results []string
	for _, way := range []struct {
		name, scheme, address string
		tunnel                gortsplib.Tunnel
	}{
		{"rtsp", "rtsp", d.rtsp, gortsplib.TunnelNone},
		{"rtsps", "rtsps", d.rtsps, gortsplib.TunnelNone},
		{"RTSP in https", "rtsps", d.https, gortsplib.TunnelHTTP},
	} {
		first, err := d.watch(ctx, way.scheme, way.address, camPath, demoUser+":"+demoSecret+"@", way.tunnel)
		if err != nil {
			return "", fmt.Errorf("%s: %w", way.name, err)
		}
		results = append(results, fmt.Sprintf("%s %v", way.name, first.Round(time.Millisecond)))
	}
	return fmt.Sprintf("401 without a password; %d frames as the camera sent them, the first after: %s", watchedFrames, strings.Join(results, ", ")), nil
}

// watchedFrames is how many a visit looks at: more than a second of them.
const watchedFrames = 30

// watch plays the camera until so many frames have come, one after the other as in the film, and returns how
// long the first one took.
func (d *demo) watch(ctx context.Context, scheme, address, path, user string, tunnel gortsplib.Tunnel) (first time.Duration, err error) {
	_, port, _ := net.SplitHostPort(address)
	u, err := base.ParseURL(scheme + "://" + user + net.JoinHostPort(camHost, port) + path)
	if err != nil {
		return 0, err
	}
	tcp := gortsplib.ProtocolTCP
	c := &gortsplib.Client{
		Scheme: u.Scheme, Host: u.Host, Tunnel: tunnel, Protocol: &tcp,
		TLSConfig: &tls.Config{RootCAs: d.roots, ServerName: camHost},
		DialContext: func(_ context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, address)
		},
	}
	if err := c.Start(); err != nil {
		return 0, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, c.Close)()
	began := time.Now()
	desc, _, err := c.Describe(u)
	if err != nil {
		return 0, err
	}
	var h264 *format.H264
	media := desc.FindFormat(&h264)
	if media == nil {
		return 0, errors.New("the description has no H.264")
	}
	if err := c.SetupAll(desc.BaseURL, desc.Medias); err != nil {
		return 0, err
	}
	decoder, err := h264.CreateDecoder()
	if err != nil {
		return 0, err
	}
	seen := &sequence{film: d.samples.camera.film, done: make(chan struct{})}
	c.OnPacketRTP(media, h264, func(p *rtp.Packet) {
		if unit, err := decoder.Decode(p); err == nil { // otherwise there is more of the frame to come
			seen.add(unit, time.Since(began))
		}
	})
	if _, err := c.Play(nil); err != nil {
		return 0, err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }() // ends with Close
	select {
	case <-seen.done:
		return seen.first, seen.err
	case err := <-ended:
		return 0, fmt.Errorf("it ends: %w", err)
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

// sequence follows the frames of a film as they come.
type sequence struct {
	film  film
	at    int // of the next frame; meaningless before the first one
	n     int
	first time.Duration
	err   error
	done  chan struct{} // closed when there have been enough, or a wrong one
}

func (s *sequence) add(unit [][]byte, took time.Duration) {
	if s.n == watchedFrames || s.err != nil || len(unit) == 0 {
		return
	}
	frame := unit[len(unit)-1]
	if s.n == 0 {
		s.first = took
		for i, f := range s.film.frames {
			if bytes.Equal(f, frame) {
				s.at = i
			}
		}
	}
	if want := s.film.frames[s.at%len(s.film.frames)]; !bytes.Equal(frame, want) {
		s.err = fmt.Errorf("frame %d is not as the camera has sent it: %d bytes, want %d", s.n, len(frame), len(want))
	}
	s.at++
	if s.n++; s.n == watchedFrames || s.err != nil {
		close(s.done)
	}
}
