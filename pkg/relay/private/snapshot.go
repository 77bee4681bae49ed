package private

import (
	"bytes"
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"mime"
	"net"
	"net/http"
	"net/url"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/pion/rtp"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/httpd"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
)

// A snapshot is a JPEG of what a camera sees now. It comes from the camera's own web server, if the service names
// its address; out of the stream, if that is MJPEG; or else from the first key frame of the stream, which
// the program ffmpeg decodes, if there is one on this machine.

const (
	snapshotPath = "/snapshot.jpg"

	// maxSnapshots is how many are taken at a time, of all cameras.
	maxSnapshots = 4

	snapshotAge  = time.Second      // for as long, everybody gets the same one
	snapshotTime = 10 * time.Second // for its turn, for asking the camera, and for decoding, each

	// maxSnapshot is the size of a picture, and maxStill that of what it is made of.
	maxSnapshot, maxStill = 8 << 20, 8 << 20

	maxPixels = "67108864" // of a picture that ffmpeg decodes: parameter sets may claim any size
)

// studio takes the snapshots of all services.
type studio struct {
	ffmpeg string // the program; "": there is none
	log    *slog.Logger
	slots  chan struct{}
	time   time.Duration // snapshotTime
}

func newStudio(ffmpeg string, log *slog.Logger) *studio {
	return &studio{ffmpeg: ffmpeg, log: log, slots: make(chan struct{}, maxSnapshots), time: snapshotTime}
}

// server makes what answers to requests for snapshots of s.
func (st *studio) server(s *service) *httpd.Server {
	return &httpd.Server{Handler: &snapshot{studio: st, service: s}}
}

// snapshot is the one of a service, and the handler of requests for it.
type snapshot struct {
	studio  *studio
	service *service

	mu      sync.Mutex
	taking  chan struct{} // closed when it has been taken; nil: nobody does
	taken   time.Time
	picture []byte
	err     error

	told   sync.Once // that there is none, and what to do
	failed bool      // the last one did. Owned by whoever takes
}

var (
	errNoSnapshot    = errors.New("no snapshot")
	errManySnapshots = errors.New("too many snapshots at a time")
)

func (s *snapshot) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Cache-Control", "no-store")
	switch {
	case r.URL.Path != strings.TrimSuffix(s.service.Publish.Path, "/")+snapshotPath:
		http.Error(w, "There is nothing here.", http.StatusNotFound)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "This method is not allowed here.", http.StatusMethodNotAllowed)
		return
	}
	b, err := s.get(r.Context())
	switch {
	case err == nil:
		h.Set("Content-Type", "image/jpeg")
		h.Set("Content-Length", strconv.Itoa(len(b)))
		h.Set("X-Content-Type-Options", "nosniff")
		w.Write(b)
	case errors.Is(err, errNoSnapshot):
		http.Error(w, "There is no snapshot of this camera.", http.StatusNotFound)
	case errors.Is(err, errManySnapshots):
		h.Set("Retry-After", "1")
		http.Error(w, "Too many snapshots are being taken right now. Please try again.", http.StatusServiceUnavailable)
	default:
		http.Error(w, "The camera gave no snapshot.", http.StatusBadGateway)
	}
}

// get returns a snapshot that is not older than snapshotAge, or the last failure to take one.
func (s *snapshot) get(ctx context.Context) ([]byte, error) {
	s.mu.Lock()
	if s.taking == nil && time.Since(s.taken) < snapshotAge {
		defer s.mu.Unlock()
		return s.picture, s.err
	}
	if done := s.taking; done != nil { // for all who come meanwhile
		s.mu.Unlock()
		select {
		case <-done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.picture, s.err
	}
	s.taking = make(chan struct{})
	s.mu.Unlock()

	b, err := s.wait() // not with ctx: others wait for it, too
	s.mu.Lock()
	defer s.mu.Unlock()
	s.picture, s.err, s.taken = b, err, time.Now()
	close(s.taking)
	s.taking = nil
	return b, err
}

// wait takes one when it is its turn.
func (s *snapshot) wait() ([]byte, error) {
	turn := time.NewTimer(s.studio.time)
	defer turn.Stop()
	select {
	case s.studio.slots <- struct{}{}:
		defer func() { <-s.studio.slots }()
	case <-turn.C:
		return nil, errManySnapshots
	}
	ctx, cancel := context.WithTimeout(context.Background(), s.studio.time)
	defer cancel()
	b, err := s.take(ctx)
	switch {
	case errors.Is(err, errNoSnapshot):
		s.told.Do(func() {
			s.studio.log.Warn("a visitor has asked for a snapshot, and there is none: set snapshot = \"http://…\" of the camera in its [[service]], or install ffmpeg",
				"service", s.service.Name, "reason", err)
		})
	case err != nil && !s.failed:
		s.studio.log.Warn("no snapshot of the camera", "service", s.service.Name, "target", s.service.Target, "err", err)
	case err == nil && s.failed:
		s.studio.log.Info("snapshots of the camera are back", "service", s.service.Name)
	}
	s.failed = err != nil && !errors.Is(err, errNoSnapshot)
	return b, err
}

func (s *snapshot) take(ctx context.Context) (b []byte, err error) {
	if s.service.Snapshot != (relay.Target{}) {
		b, err = s.service.fetch(ctx)
	} else {
		b, err = s.pull(ctx)
	}
	switch {
	case err != nil:
		return nil, err
	case !bytes.HasPrefix(b, []byte{0xff, 0xd8, 0xff}):
		return nil, errors.New("what came is no JPEG")
	}
	return b, nil
}

// fetch asks the camera's web server.
func (s *service) fetch(ctx context.Context) ([]byte, error) {
	t := s.Snapshot
	login := rtsp.Client{User: t.User, Password: t.Password}
	u := &url.URL{Scheme: t.Scheme, Host: net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port))), RawQuery: t.Query}
	u.RawPath = t.Path
	var err error
	if u.Path, err = url.PathUnescape(t.Path); err != nil {
		u.Path = t.Path
	}
	tr := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: s.RootCAs}, MaxResponseHeaderBytes: 64 << 10, DisableCompression: true}
	defer tr.CloseIdleConnections()
	c := &http.Client{Transport: tr, CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse }}
	for range 3 { // the second time with the password, and if its nonce is stale once more
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, u.String(), nil)
		if err != nil {
			return nil, errors.New("the address of snapshot is no URL") // the error might show it
		}
		if f, ok := login.Authorization([]byte(http.MethodGet), []byte(u.RequestURI()), nil); ok {
			req.Header.Set(string(f.Name), string(f.Value))
		}
		res, err := c.Do(req)
		if e, ok := errors.AsType[*url.Error](err); ok {
			err = e.Err // without the query, which may have a password
		}
		if err != nil {
			return nil, fmt.Errorf("asking for %v: %w", t, err)
		}
		b, err := readPicture(res)
		if res.StatusCode == http.StatusUnauthorized && err == nil {
			m := &rtsp.Message{Status: res.StatusCode}
			for _, v := range res.Header.Values("WWW-Authenticate") {
				m.Fields = append(m.Fields, rtsp.Field{Name: []byte("WWW-Authenticate"), Value: []byte(v)})
			}
			if login.Challenge(m) {
				continue
			}
		}
		switch kind, _, _ := mime.ParseMediaType(res.Header.Get("Content-Type")); {
		case err != nil:
			return nil, fmt.Errorf("reading %v: %w", t, err)
		case res.StatusCode != http.StatusOK:
			return nil, fmt.Errorf("%v is answered with status %d", t, res.StatusCode)
		case kind != "image/jpeg" && kind != "image/jpg":
			return nil, fmt.Errorf("%v is %q, not image/jpeg", t, kind)
		}
		return b, nil
	}
	return nil, fmt.Errorf("%v asks for the password again and again", t)
}

// readPicture reads the body of an answer, which it closes.
func readPicture(res *http.Response) ([]byte, error) {
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxSnapshot+1))
	if err == nil && len(b) > maxSnapshot {
		err = fmt.Errorf("more than %d bytes", maxSnapshot)
	}
	return b, err
}

// pull takes a picture out of the camera's stream.
func (s *snapshot) pull(ctx context.Context) ([]byte, error) {
	t := s.service.Target
	address := net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
	path := cameraURL(t)
	if t.User != "" {
		path = strings.Replace(path, "://", "://"+url.UserPassword(t.User, t.Password).String()+"@", 1)
	}
	u, err := base.ParseURL(path)
	if err != nil {
		return nil, errors.New("the target has a path that gortsplib does not take") // the error might show it
	}
	tcp := gortsplib.ProtocolTCP
	c := &gortsplib.Client{
		Scheme: t.Scheme, Host: u.Host, Protocol: &tcp, TLSConfig: s.service.tls, ReadTimeout: s.studio.time, WriteTimeout: s.studio.time,
		DialContext: func(_ context.Context, network, to string) (net.Conn, error) {
			if to != address { // a redirect; whoever is there shall not get the password
				return nil, fmt.Errorf("the camera refers to another one, %s: name that as the target", to)
			}
			return new(net.Dialer).DialContext(ctx, network, to)
		},
	}
	if err := c.Start(); err != nil {
		return nil, err
	}
	stop := context.AfterFunc(ctx, c.Close)
	defer func() {
		stop()
		c.Close()
	}()
	still, b, err := s.watch(ctx, c, u)
	if err != nil && ctx.Err() != nil {
		return nil, fmt.Errorf("no key frame in %v: %w", s.studio.time, ctx.Err())
	}
	if err != nil || still.Format == "mjpeg" {
		return b, err
	}
	c.Close() // the camera need not wait for ffmpeg
	return s.studio.decode(still.Format, b)
}

// watch plays a track of the camera until it has a picture.
func (s *snapshot) watch(ctx context.Context, c *gortsplib.Client, u *base.URL) (*camera.Still, []byte, error) {
	desc, _, err := c.Describe(u)
	if err != nil {
		return nil, nil, err
	}
	media, f, still := choose(desc)
	if still == nil {
		return nil, nil, fmt.Errorf("%w: the camera sends no video that could be made one of", errNoSnapshot)
	}
	if still.Format != "mjpeg" && s.studio.ffmpeg == "" {
		return nil, nil, fmt.Errorf("%w: the camera sends %s, and ffmpeg is not installed, or switched off", errNoSnapshot, still.Format)
	}
	if _, err := c.Setup(desc.BaseURL, media, 0, 0); err != nil {
		return nil, nil, err
	}
	pictures := make(chan []byte, 1)
	c.OnPacketRTP(media, f, func(p *rtp.Packet) {
		if b := still.RTP(p); b != nil && len(b) <= maxStill {
			select {
			case pictures <- b:
			default:
			}
		}
	})
	if _, err := c.Play(nil); err != nil {
		return nil, nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- c.Wait() }() // until pull closes c
	select {
	case b := <-pictures:
		return still, b, nil
	case err := <-ended:
		return nil, nil, err
	case <-ctx.Done():
		return nil, nil, ctx.Err()
	}
}

// choose returns the first track that a picture can be taken out of.
func choose(d *description.Session) (*description.Media, format.Format, *camera.Still) {
	for _, m := range d.Medias {
		for _, f := range m.Formats {
			if still := camera.NewStill(f); still != nil {
				return m, f, still
			}
		}
	}
	return nil, nil, nil
}

// decode has ffmpeg make a JPEG of a picture in that format. Nothing but the picture comes from outside.
func (st *studio) decode(format string, b []byte) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), st.time)
	defer cancel()
	cmd := exec.CommandContext(ctx, st.ffmpeg, "-nostdin", "-hide_banner", "-loglevel", "error", "-threads", "1", "-protocol_whitelist", "pipe", "-max_pixels", maxPixels,
		"-f", format, "-i", "pipe:0", "-frames:v", "1", "-threads", "1", "-q:v", "3", "-f", "mjpeg", "pipe:1")
	cmd.Env = []string{} // not ours
	cmd.Stdin = bytes.NewReader(b)
	out, complaint := &bounded{max: maxSnapshot, full: cancel}, &bounded{max: 1 << 10}
	cmd.Stdout, cmd.Stderr = out, complaint
	cmd.WaitDelay = time.Second
	ownGroup(cmd)
	if err := cmd.Run(); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return nil, fmt.Errorf("%s: %w: %q", st.ffmpeg, err, complaint.b)
	}
	return out.b, nil
}

// bounded keeps so much of what is written, and calls full, if not nil, when there is more.
type bounded struct {
	b    []byte
	max  int
	full func()
}

func (w *bounded) Write(p []byte) (int, error) {
	n := min(len(p), w.max-len(w.b))
	w.b = append(w.b, p[:n]...)
	if n < len(p) && w.full != nil {
		w.full()
	}
	return len(p), nil
}
