package private

import (
	"bytes"
	"fmt"
	"image"
	"image/jpeg"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/liberrors"
	"github.com/pion/rtp"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
)

// streamingCamera is a camera that plays the same packets again and again, to whoever has the password.
type streamingCamera struct {
	server    *gortsplib.Server
	stream    *gortsplib.ServerStream
	password  string // of user viewer; "": none is asked for
	described atomic.Int32
}

func (c *streamingCamera) OnDescribe(ctx *gortsplib.ServerHandlerOnDescribeCtx) (*base.Response, *gortsplib.ServerStream, error) {
	if c.password != "" && !ctx.Conn.VerifyCredentials(ctx.Request, "viewer", c.password) {
		return &base.Response{StatusCode: base.StatusUnauthorized}, nil, liberrors.ErrServerAuth{}
	}
	c.described.Add(1)
	return &base.Response{StatusCode: base.StatusOK}, c.stream, nil
}

func (c *streamingCamera) OnSetup(*gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	return &base.Response{StatusCode: base.StatusOK}, c.stream, nil
}

func (c *streamingCamera) OnPlay(*gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	return &base.Response{StatusCode: base.StatusOK}, nil
}

// streamFormat starts a camera that sends packets of f.
func streamFormat(t *testing.T, password string, f format.Format, packets []*rtp.Packet) *streamingCamera {
	t.Helper()
	c := &streamingCamera{password: password}
	c.server = &gortsplib.Server{Handler: c, RTSPAddress: "127.0.0.1:0"}
	if err := c.server.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(c.server.Close)
	m := &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{f}}
	c.stream = &gortsplib.ServerStream{Server: c.server, Desc: &description.Session{Medias: []*description.Media{m}}}
	if err := c.stream.Initialize(); err != nil {
		t.Fatal(err)
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	t.Cleanup(func() {
		close(stop)
		<-stopped
		c.stream.Close()
	})
	go func() {
		defer close(stopped)
		sequence, stamp := uint16(0), uint32(0)
		tick := time.NewTicker(20 * time.Millisecond)
		defer tick.Stop()
		for {
			for _, p := range packets {
				q := *p
				q.SequenceNumber, q.Timestamp = sequence, stamp
				sequence++
				c.stream.WritePacketRTP(m, &q)
				if p.Marker {
					stamp += 1800
				}
			}
			select {
			case <-tick.C:
			case <-stop:
				return
			}
		}
	}()
	return c
}

// A small stream of H.264: parameter sets that gortsplib takes, a picture that needs others, and a key frame.
var (
	testSPS = []byte{
		0x67, 0x42, 0xc0, 0x28, 0xd9, 0x00, 0x78, 0x02, 0x27, 0xe5, 0x84, 0x00, 0x00, 0x03, 0x00, 0x04, 0x00, 0x00, 0x03, 0x00, 0xf0, 0x3c, 0x60, 0xc9, 0x20,
	}
	testPPS = []byte{0x68, 0xeb, 0xe3, 0xcb, 0x22, 0xc0}
	testIDR = append([]byte{0x65}, bytes.Repeat([]byte{0x88, 0x84, 7}, 1000)...)
)

func streamH264(t *testing.T, password string) *streamingCamera {
	t.Helper()
	f := &format.H264{PayloadTyp: 96, PacketizationMode: 1, SPS: testSPS, PPS: testPPS}
	e, err := f.CreateEncoder()
	if err != nil {
		t.Fatal(err)
	}
	var packets []*rtp.Packet
	for _, au := range [][][]byte{{{0x41, 1, 2, 3}}, {testIDR}} {
		p, err := e.Encode(au)
		if err != nil {
			t.Fatal(err)
		}
		packets = append(packets, p...)
	}
	return streamFormat(t, password, f, packets)
}

// somePicture is a JPEG that takes several packets.
func somePicture(t *testing.T) []byte {
	t.Helper()
	m := image.NewYCbCr(image.Rect(0, 0, 320, 240), image.YCbCrSubsampleRatio420)
	for i := range m.Y {
		m.Y[i] = byte(i * i >> 5)
	}
	var b bytes.Buffer
	if err := jpeg.Encode(&b, m, nil); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// fakeFFmpeg is a program that keeps its input and its arguments, and writes a picture.
func fakeFFmpeg(t *testing.T, script string) (program, dir string) {
	t.Helper()
	if runtime.GOOS == "windows" {
		t.Skip("needs a shell script")
	}
	dir = t.TempDir()
	program = filepath.Join(dir, "ffmpeg")
	if err := os.WriteFile(filepath.Join(dir, "picture.jpg"), somePicture(t), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(program, []byte("#!/bin/sh\nPATH=/usr/bin:/bin\ncd "+dir+"\n"+script+"\n"), 0o700); err != nil {
		t.Fatal(err)
	}
	return program, dir
}

// album takes the snapshots of a service in tests.
type album struct {
	t    *testing.T
	http http.Handler
	log  *strings.Builder
}

func newAlbum(t *testing.T, ffmpeg string, patience time.Duration, s Service) *album {
	t.Helper()
	a := &album{t: t, log: new(strings.Builder)}
	svc, err := newService(s)
	if err != nil {
		t.Fatal(err)
	}
	st := newStudio(ffmpeg, slog.New(slog.NewTextHandler(io.MultiWriter(a.log, t.Output()), nil)))
	if patience > 0 {
		st.time = patience
	}
	a.http = st.server(svc).Handler
	return a
}

func (a *album) get() *httptest.ResponseRecorder { return a.ask("GET", "/gate/snapshot.jpg") }

func (a *album) ask(method, path string) *httptest.ResponseRecorder {
	rec := httptest.NewRecorder()
	a.http.ServeHTTP(rec, httptest.NewRequest(method, path, nil))
	return rec
}

// wantPicture checks that rec is a JPEG, and returns it.
func wantPicture(t *testing.T, rec *httptest.ResponseRecorder) []byte {
	t.Helper()
	if rec.Code != 200 || rec.Header().Get("Content-Type") != "image/jpeg" || rec.Header().Get("Cache-Control") != "no-store" {
		t.Fatalf("status %d %v %q", rec.Code, rec.Header(), rec.Body)
	}
	b := rec.Body.Bytes()
	if _, err := jpeg.Decode(bytes.NewReader(b)); err != nil {
		t.Fatalf("%d bytes: %v", len(b), err)
	}
	return b
}

// gate is a service with a camera at a target, and a snapshot unless that is "".
func gate(t *testing.T, target, snapshot string) Service {
	t.Helper()
	s := published(t, tcpService(t, "gate", target), "rtsp://cams.example.com/gate")
	if snapshot != "" {
		var err error
		if s.Snapshot, err = relay.ParseSnapshot(snapshot); err != nil {
			t.Fatal(err)
		}
	}
	return s
}

func (c *streamingCamera) url(user string) string {
	return "rtsp://" + user + c.server.NetListener().Addr().String() + "/h264?channel=1"
}

// The camera's own picture is fetched with its password, however it asks for it.
func TestSnapshotFetched(t *testing.T) {
	want := somePicture(t)
	for _, scheme := range []string{"", "Basic", "Digest", "both"} {
		asked := 0
		web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked++
			if r.RequestURI != "/cgi-bin/snap.cgi?channel=1" {
				t.Errorf("the camera is asked for %s", r.RequestURI)
			}
			user, password, _ := r.BasicAuth()
			ok := scheme == "" || scheme == "Basic" && user == "viewer" && password == "pass:word"
			if a, err := rtsp.ParseAuthorization([]byte(r.Header.Get("Authorization"))); err == nil && !a.Basic {
				ok = a.User == "viewer" && a.URI == r.RequestURI && a.Nonce == "4711" && a.Verify("GET", "61d6918702bcaa6dc3b33c924755a939")
			}
			if !ok {
				switch scheme {
				case "both":
					w.Header().Add("WWW-Authenticate", `Basic realm="camera"`)
					fallthrough
				case "Digest":
					w.Header().Add("WWW-Authenticate", `Digest realm="camera", nonce="4711", qop="auth"`)
				default:
					w.Header().Set("WWW-Authenticate", `Basic realm="camera"`)
				}
				w.WriteHeader(401)
				return
			}
			w.Header().Set("Content-Type", "image/jpeg; charset=binary")
			w.Write(want)
		}))
		a := newAlbum(t, "", 0, gate(t, "rtsp://10.0.0.20/h264", "http://viewer:pass%3Aword@"+web.Listener.Addr().String()+"/cgi-bin/snap.cgi?channel=1"))
		if got := wantPicture(t, a.get()); !bytes.Equal(got, want) {
			t.Errorf("%q: %d bytes", scheme, len(got))
		}
		if n := map[string]int{"": 1}[scheme]; asked != max(n, 2-n) {
			t.Errorf("%q: the camera was asked %d times", scheme, asked)
		}
		web.Close()
	}
}

// What a camera's web server says instead of a picture is not shown to visitors.
func TestSnapshotNotFetched(t *testing.T) {
	for name, h := range map[string]http.HandlerFunc{
		"a page": func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "<html>Acme Camera") },
		"no JPEG": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "image/jpeg")
			io.WriteString(w, "Acme")
		},
		"status 500": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "Acme", 500) },
		"another place": func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, "http://192.0.2.1/Acme", http.StatusFound)
		},
		"wrong password": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", `Basic realm="Acme"`)
			w.WriteHeader(401)
		},
		"too much": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Type", "image/jpeg")
			w.Write(make([]byte, maxSnapshot+1))
		},
		"silence": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
		"the end": func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
	} {
		web := httptest.NewServer(h)
		a := newAlbum(t, "", 200*time.Millisecond, gate(t, "rtsp://10.0.0.20/h264", "http://viewer:secret@"+web.Listener.Addr().String()+"/snap?pwd=secret"))
		rec := a.get()
		if rec.Code != 502 || strings.Contains(rec.Body.String(), "Acme") || strings.Contains(rec.Body.String(), "127.0.0.1") {
			t.Errorf("%s: %d %q", name, rec.Code, rec.Body)
		}
		if log := a.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "service=gate") || strings.Contains(log, "secret") {
			t.Errorf("%s: log %s", name, log)
		}
		web.Close()
	}
}

// A camera that streams MJPEG needs no decoder.
func TestSnapshotOfMJPEG(t *testing.T) {
	f := &format.MJPEG{}
	e, err := f.CreateEncoder()
	if err != nil {
		t.Fatal(err)
	}
	packets, err := e.Encode(somePicture(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, password := range []string{"", "secret"} {
		c := streamFormat(t, password, f, packets)
		wantPicture(t, newAlbum(t, "", 0, gate(t, c.url("viewer:secret@"), "")).get())
	}
}

// Of other streams the first key frame is decoded by ffmpeg, which gets nothing but that from outside.
func TestSnapshotDecoded(t *testing.T) {
	program, dir := fakeFFmpeg(t, `cat > in; echo "$@" > arguments; env > environment; cat picture.jpg`)
	c := streamH264(t, "secret")
	a := newAlbum(t, program, 0, gate(t, c.url("viewer:secret@"), ""))
	wantPicture(t, a.get())
	read := func(name string) string {
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	want := "\x00\x00\x00\x01" + strings.Join([]string{string(testSPS), string(testPPS), string(testIDR)}, "\x00\x00\x00\x01")
	if in := read("in"); in != want {
		t.Errorf("ffmpeg gets %d bytes, %x …, want %d", len(in), in[:min(len(in), 60)], len(want))
	}
	if args := read("arguments"); strings.Contains(args, "viewer") || strings.Contains(args, "127.0.0.1") || !strings.Contains(args, "-f h264 -i pipe:0") {
		t.Errorf("arguments %s", args)
	}
	if env := read("environment"); strings.Contains(env, "HOME") {
		t.Errorf("environment %s", env)
	}

	a = newAlbum(t, program, 0, gate(t, c.url("viewer:wrong@"), ""))
	if rec := a.get(); rec.Code != 502 || strings.Contains(a.log.String(), "wrong") {
		t.Errorf("with a wrong password: %d %q, log %s", rec.Code, rec.Body, a.log)
	}
}

// A decoder that does not do its work ends, with what it has started.
func TestSnapshotNotDecoded(t *testing.T) {
	c := streamH264(t, "")
	for name, script := range map[string]string{
		"failure":  `echo "a complaint" >&2; exit 1`,
		"nothing":  `exit 0`,
		"too much": `while true; do cat picture.jpg; done`,
		"silence":  `sleep 1000 & echo $! > child; wait`,
	} {
		program, dir := fakeFFmpeg(t, script)
		take := func(patience time.Duration) {
			t.Helper()
			if rec := newAlbum(t, program, patience, gate(t, c.url(""), "")).get(); rec.Code != 502 {
				t.Errorf("%s: %d", name, rec.Code)
			}
		}
		if name != "silence" {
			take(10 * time.Second)
		} else {
			var b []byte
			for patience := 500 * time.Millisecond; len(b) == 0; patience *= 2 { // its time may be over before it has begun
				take(patience)
				b, _ = os.ReadFile(filepath.Join(dir, "child"))
			}
			for alive := true; alive; { // or the test's deadline
				stat, err := os.ReadFile("/proc/" + strings.TrimSpace(string(b)) + "/stat")
				alive = err == nil && !bytes.Contains(stat, []byte(") Z"))
				runtime.Gosched()
			}
		}
	}
}

// Without a decoder there is no snapshot, and the log says once what to do.
func TestNoSnapshot(t *testing.T) {
	c := streamH264(t, "")
	a := newAlbum(t, "", 0, gate(t, c.url(""), ""))
	for range 3 {
		a.expire()
		if rec := a.get(); rec.Code != 404 || !strings.Contains(rec.Body.String(), "no snapshot") {
			t.Errorf("%d %q", rec.Code, rec.Body)
		}
	}
	if log := a.log.String(); strings.Count(log, "\n") != 1 || !strings.Contains(log, "install ffmpeg") || !strings.Contains(log, "service=gate") {
		t.Errorf("log %s", log)
	}
	for _, tt := range []struct {
		method, path string
		status       int
	}{{"GET", "/gate/other.jpg", 404}, {"GET", "/snapshot.jpg", 404}, {"POST", "/gate/snapshot.jpg", 405}} {
		if rec := a.ask(tt.method, tt.path); rec.Code != tt.status {
			t.Errorf("%s %s: %d", tt.method, tt.path, rec.Code)
		}
	}
}

// expire makes the snapshot old.
func (a *album) expire() {
	s := a.http.(*snapshot)
	s.mu.Lock()
	s.taken = time.Time{}
	s.mu.Unlock()
}

// All who ask at a time, and in the second after it, get the same picture.
func TestSnapshotShared(t *testing.T) {
	want := somePicture(t)
	var asked atomic.Int32
	release := make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		asked.Add(1)
		<-release
		w.Header().Set("Content-Type", "image/jpeg")
		w.Write(want)
	}))
	defer web.Close()
	a := newAlbum(t, "", 0, gate(t, "rtsp://10.0.0.20/h264", "http://"+web.Listener.Addr().String()+"/"))
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			if rec := a.get(); rec.Code != 200 {
				t.Errorf("status %d", rec.Code)
			}
		})
	}
	close(release)
	wg.Wait()
	if n := asked.Load(); n != 1 {
		t.Errorf("the camera was asked %d times", n)
	}
	a.expire()
	if rec := a.ask("HEAD", "/gate/snapshot.jpg"); rec.Code != 200 || rec.Header().Get("Content-Length") != fmt.Sprint(len(want)) || asked.Load() != 2 {
		t.Errorf("%d %v, asked %d times", rec.Code, rec.Header(), asked.Load())
	}
}

// So many cameras are asked at a time; the others wait, and not for ever.
func TestSnapshotLimit(t *testing.T) {
	var now, most atomic.Int32
	arrived, release := make(chan struct{}, 10), make(chan struct{})
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if n := now.Add(1); n > most.Load() {
			most.Store(n)
		}
		arrived <- struct{}{}
		<-release
		now.Add(-1)
		w.WriteHeader(500)
	}))
	defer web.Close()
	defer close(release)
	st := newStudio("", slog.New(slog.DiscardHandler))
	svc, err := newService(gate(t, "rtsp://10.0.0.20/h264", "http://"+web.Listener.Addr().String()+"/"))
	if err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range maxSnapshots {
		wg.Go(func() { (&snapshot{studio: st, service: svc}).get(t.Context()) })
		<-arrived
	}
	st.time = 10 * time.Millisecond
	rec := httptest.NewRecorder()
	st.server(svc).Handler.ServeHTTP(rec, httptest.NewRequest("GET", "/gate/snapshot.jpg", nil))
	if rec.Code != 503 || rec.Header().Get("Retry-After") == "" {
		t.Errorf("status %d", rec.Code)
	}
	for range maxSnapshots {
		release <- struct{}{}
	}
	wg.Wait()
	if most.Load() != maxSnapshots {
		t.Errorf("%d at a time", most.Load())
	}
}

// A request for a snapshot comes by a stream, as HTTP.
func TestSnapshotStream(t *testing.T) {
	want := somePicture(t)
	web := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "image/jpeg")
		w.Write(want)
	}))
	defer web.Close()
	s := newSite(t, gate(t, "rtsp://10.0.0.20/h264", "http://"+web.Listener.Addr().String()+"/"))
	v := s.visitBy("gate", "https")
	if _, err := io.WriteString(streamFrom{v}, "GET /gate/snapshot.jpg HTTP/1.1\r\nHost: cams.example.com\r\nConnection: close\r\n\r\n"); err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(v.r)
	if err != nil || !bytes.HasPrefix(b, []byte("HTTP/1.1 200 OK\r\n")) || !bytes.HasSuffix(b, want) {
		t.Errorf("got %d bytes, %q …, %v", len(b), b[:min(len(b), 100)], err)
	}
}
