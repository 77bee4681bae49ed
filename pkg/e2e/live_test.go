//go:build linux

package e2e

import (
	"bufio"
	"context"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"image/jpeg"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/auth"
	"github.com/coder/websocket"
)

// liveSystem is a system with a camera at cams.example.com/gate, which visitors need a password for.
func liveSystem(t testing.TB) (*system, *camera) {
	t.Helper()
	c := startCamera(t, nil, auth.VerifyMethodDigestMD5)
	s := configureCameras(t, nil, service{"gate", "rtsp://cams.example.com/gate", c.target()})
	s.more["gate"] = "users = { alice = \"" + digestHash(t, "alice", "visitor-s3cret") + "\" }\n"
	s.startPublic()
	s.startPrivate()
	return s, c
}

// live reads the pictures of live.mp4 until there are some.
func live(client *http.Client, url string, frames int) (p []picture, mime string, err error) {
	req, err := http.NewRequest("GET", url, nil)
	if err != nil {
		return nil, "", err
	}
	req.SetBasicAuth("alice", "visitor-s3cret")
	res, err := client.Do(req)
	if err != nil {
		return nil, "", err
	}
	defer res.Body.Close()
	mime = res.Header.Get("Content-Type")
	if res.StatusCode != 200 {
		return nil, mime, fmt.Errorf("status %d", res.StatusCode)
	}
	br := bufio.NewReader(res.Body)
	for len(p) < frames {
		var head [8]byte // of a box: [length 4, type 4]
		if _, err := io.ReadFull(br, head[:]); err != nil {
			return p, mime, err
		}
		box := make([]byte, binary.BigEndian.Uint32(head[:])-8)
		if _, err := io.ReadFull(br, box); err != nil {
			return p, mime, err
		}
		if string(head[4:]) != "mdat" {
			continue
		}
		// The units of the picture come first, each behind its length; the sound behind them has no label.
		one, err := pictures(func(yield func([]byte) bool) {
			for len(box) > 4 {
				n := int(binary.BigEndian.Uint32(box))
				if n > len(box)-4 || !yield(box[4:4+n]) {
					return
				}
				kind := box[4] & 0x1f
				if box = box[4+n:]; kind == 1 || kind == 5 {
					return
				}
			}
		})
		if err != nil {
			return p, mime, err
		}
		for _, q := range one {
			q.came = time.Now()
			p = append(p, q)
		}
	}
	return p, mime, nil
}

// TestLive reads what browsers get of a camera, in every version of HTTP, and the snapshot.
func TestLive(t *testing.T) {
	t.Parallel()
	s, c := liveSystem(t)
	url := s.url("cams", "/gate/live.mp4")
	h2 := s.visitor()
	h2.Transport.(*http.Transport).ForceAttemptHTTP2 = true
	for name, client := range map[string]*http.Client{"HTTP/1.1": s.visitor(), "HTTP/2": h2, "HTTP/3": s.visitorH3()} {
		p, mime, err := live(client, url, 3*frameRate)
		if err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if !strings.HasPrefix(mime, `video/mp4; codecs="avc1.`) || !strings.HasSuffix(mime, `, mp4a.40.2"`) {
			t.Errorf("%s: %s", name, mime)
		}
		var delays []time.Duration
		for i := range p {
			if p[i].n != p[0].n+i || i == 0 && !p[i].isKey() {
				t.Fatalf("%s: picture %d comes behind %d", name, p[i].n, p[max(i-1, 0)].n)
			}
			if i >= frameRate+1 { // what came at once is older
				delays = append(delays, p[i].came.Sub(p[i].sent))
			}
		}
		slices.Sort(delays)
		t.Logf("%s: a picture comes %v after it was sent, the slowest %v", name, delays[len(delays)/2], delays[len(delays)-1])
	}

	// With other people's programs.
	file := filepath.Join(tempDir(t), "live.mp4")
	cmd := s.curlCmd("--user", "alice:visitor-s3cret", "--max-time", "6", "-o", file, url)
	if out, err := cmd.CombinedOutput(); err == nil {
		t.Errorf("curl ends by itself: %s", out)
	}
	out := run(t, exec.Command(tool(t, "ffprobe", "ffmpeg"), "-v", "error", "-count_frames", "-show_entries", "stream=codec_name,nb_read_frames,width", "-of", "csv=p=0", file))
	var video, audio int
	for line := range strings.Lines(out) {
		f := strings.Split(strings.TrimSpace(line), ",")
		switch n, _ := strconv.Atoi(f[len(f)-1]); f[0] {
		case "h264":
			video = n
		case "aac":
			audio = n
		}
	}
	if video < 3*frameRate || audio < 3*46 || !strings.Contains(out, "h264,320,") || strings.Contains(out, "rror") {
		t.Errorf("ffprobe finds %s", out)
	}

	b := s.curl("--user", "alice:visitor-s3cret", s.url("cams", "/gate/snapshot.jpg"))
	if m, err := jpeg.Decode(strings.NewReader(b)); err != nil || m.Bounds().Dx() != 320 || m.Bounds().Dy() != 180 {
		t.Errorf("the snapshot has %d bytes: %v", len(b), err)
	}
	for _, path := range []string{"", "/player.js", "/live.mp4", "/snapshot.jpg"} {
		if status := s.curl("-o", "/dev/null", "-w", "%{http_code}", s.url("cams", "/gate"+path)); status != "401" {
			t.Errorf("%q without a password: %s", path, status)
		}
	}
	s.keepsSecret("s3cret")
	if _, open := c.count(); open > 1 {
		t.Errorf("%d connections to the camera", open)
	}
}

// devtools asks a page of a browser for the values of expressions.
type devtools struct {
	t  testing.TB
	ws *websocket.Conn
	id int
}

// inspect finds the page that browser looks at.
func inspect(t testing.TB, browser *exec.Cmd) *devtools {
	t.Helper()
	var dir string
	for _, a := range browser.Args {
		if d, ok := strings.CutPrefix(a, "--user-data-dir="); ok {
			dir = d
		}
	}
	ctx, cancel := context.WithTimeout(t.Context(), 3*waitLimit)
	defer cancel()
	for ; ; time.Sleep(50 * time.Millisecond) {
		if ctx.Err() != nil {
			t.Fatal("the browser has no page to inspect")
		}
		b, err := os.ReadFile(filepath.Join(dir, "DevToolsActivePort"))
		port, _, ok := strings.Cut(string(b), "\n")
		if err != nil || !ok {
			continue
		}
		res, err := http.Get("http://127.0.0.1:" + port + "/json/list")
		if err != nil {
			continue
		}
		var pages []struct {
			Type string
			URL  string `json:"webSocketDebuggerUrl"`
		}
		err = json.NewDecoder(res.Body).Decode(&pages)
		res.Body.Close()
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range pages {
			if p.Type == "page" {
				ws, _, err := websocket.Dial(ctx, p.URL, nil)
				if err != nil {
					t.Fatal(err)
				}
				ws.SetReadLimit(1 << 20)
				t.Cleanup(func() { ws.CloseNow() })
				return &devtools{t: t, ws: ws}
			}
		}
	}
}

// evaluate sets v to the value of an expression.
func (d *devtools) evaluate(expression string, v any) {
	d.t.Helper()
	var b []byte
	for end := time.Now().Add(waitLimit); b == nil && time.Now().Before(end); { // none: the page was left for another one meanwhile
		b = d.call("Runtime.evaluate", map[string]any{"expression": expression, "returnByValue": true})
	}
	var m struct {
		Result struct{ Value json.RawMessage }
	}
	err := json.Unmarshal(b, &m)
	if err == nil {
		err = json.Unmarshal(m.Result.Value, v)
	}
	if err != nil {
		d.t.Fatalf("%s is %s: %v", expression, b, err)
	}
}

// call returns the result of a method, nil if it has failed.
func (d *devtools) call(method string, params map[string]any) []byte {
	d.t.Helper()
	ctx, cancel := context.WithTimeout(d.t.Context(), waitLimit)
	defer cancel()
	d.id++
	b, err := json.Marshal(map[string]any{"id": d.id, "method": method, "params": params})
	if err == nil {
		err = d.ws.Write(ctx, websocket.MessageText, b)
	}
	if err != nil {
		d.t.Fatal(err)
	}
	for {
		_, b, err := d.ws.Read(ctx)
		if err != nil {
			d.t.Fatal(err)
		}
		var m struct {
			ID     int
			Result json.RawMessage
		}
		if err := json.Unmarshal(b, &m); err != nil {
			d.t.Fatal(err)
		}
		if m.ID == d.id {
			return m.Result
		}
	}
}

// screen is the state of the player.
type screen struct {
	Time, Delay   float64 // seconds
	Width, Height int
	Said, Title   string
	Image, Poster bool
	Protocols     string // that things came by
	Frames        int
}

const screenOf = `(() => {
	const v = document.querySelector('video'), i = document.querySelector('img'), b = v ? v.buffered : []
	if (!v || document.readyState === 'loading') return {}
	const by = [...performance.getEntriesByType('navigation'), ...performance.getEntriesByType('resource')].map(e => e.nextHopProtocol)
	return {
		Time: v.currentTime, Delay: b.length ? b.end(b.length - 1) - v.currentTime : -1, Width: v.videoWidth, Height: v.videoHeight,
		Said: document.querySelector('[role=status]').textContent, Title: document.title, Image: !i.hidden && i.naturalWidth > 0, Poster: !!v.poster,
		Protocols: [...new Set(by)].filter(p => p).join(' '), Frames: v.getVideoPlaybackQuality().totalVideoFrames,
	}
})()`

// until waits until the player is as it should be.
func (d *devtools) until(what string, f func(screen) bool) (s screen) {
	d.t.Helper()
	for end := time.Now().Add(2 * waitLimit); ; time.Sleep(100 * time.Millisecond) {
		s = screen{}
		if d.evaluate(screenOf, &s); f(s) {
			return s
		}
		if time.Now().After(end) {
			d.t.Fatalf("%s: not in %v: %+v", what, 2*waitLimit, s)
		}
	}
}

// plays waits until the picture has moved on by more than two seconds.
func (d *devtools) plays(width, height int) screen {
	d.t.Helper()
	var first, last float64
	s := d.until("two seconds", func(s screen) bool {
		if s.Width != width || s.Said != "" || s.Time < last { // it has not begun, or begins again
			first = s.Time
		}
		last = s.Time
		return s.Time > first+2 && s.Frames > 25
	})
	if s.Height != height || s.Title != "gate" || s.Image {
		d.t.Errorf("the page shows %+v", s)
	}
	return s
}

// TestBrowserCamera has Chromium play a camera, over each version of HTTP, and while the camera and the relay go and come.
func TestBrowserCamera(t *testing.T) {
	t.Parallel()
	s, c := liveSystem(t)
	_, port, _ := strings.Cut(s.https, ":")
	url := "https://alice:visitor-s3cret@cams.example.com:" + port + "/gate"
	for _, tt := range []struct {
		protocol string
		args     []string
	}{
		{"http/1.1", []string{"--disable-http2", "--disable-quic"}},
		{"h3", []string{"--origin-to-force-quic-on=cams.example.com:" + port}},
		{"h2", []string{"--disable-quic"}},
	} {
		t.Run(tt.protocol, func(t *testing.T) {
			cmd := chromium(t, url, tt.args...)
			browser := start(t, "chromium", cmd)
			browser.abrupt = true
			d := inspect(t, cmd)
			shown := d.plays(320, 180)
			if shown.Protocols != tt.protocol && shown.Protocols+tt.protocol != "http/1.1" { // which Chromium does not always tell
				t.Errorf("it comes over %q", shown.Protocols)
			}
			t.Logf("%.2f s are in the buffer", shown.Delay)
			if tt.protocol != "h2" {
				return
			}
			large, err := largeFilm()
			if err != nil {
				t.Fatal(err)
			}
			c.reboot(time.Second, large)
			d.plays(640, 360)
			s.public.kill()
			d.until("words", func(s screen) bool { return strings.HasPrefix(s.Said, "The camera is away.") })
			s.startPublic()
			d.plays(640, 360)
		})
	}
}

// A browser that cannot play the stream shows snapshots.
func TestBrowserSnapshots(t *testing.T) {
	t.Parallel()
	s, _ := liveSystem(t)
	cmd := chromium(t, "about:blank")
	browser := start(t, "chromium", cmd)
	browser.abrupt = true
	d := inspect(t, cmd)
	d.call("Page.enable", nil)
	d.call("Page.addScriptToEvaluateOnNewDocument", map[string]any{"source": `
		MediaSource.isTypeSupported = () => false
		new MutationObserver(all => all.forEach(m => { window.pictures = (window.pictures || 0) + 1 })).observe(document, {subtree: true, attributeFilter: ['src']})`})
	_, port, _ := strings.Cut(s.https, ":")
	d.call("Page.navigate", map[string]any{"url": "https://alice:visitor-s3cret@cams.example.com:" + port + "/gate"})
	d.until("a snapshot", func(s screen) bool { return s.Image && s.Said == "" })
	var width, first, n int
	d.evaluate("document.querySelector('img').naturalWidth", &width)
	d.evaluate("window.pictures", &first)
	if width != 320 {
		t.Errorf("the snapshot is %d wide", width)
	}
	d.until("two more", func(screen) bool {
		d.evaluate("window.pictures", &n)
		return n >= first+2
	})
}
