//go:build linux

package e2e

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// webSystem publishes the sink as app, and nginx with the large file as files.
func webSystem(t testing.TB, more ...service) (*system, blob) {
	t.Helper()
	b := largeFile(t)
	addr := freeAddr(t)
	// A small send buffer, because a thousand stalled downloads would otherwise fill the
	// memory that the system has for TCP, and slow down everybody on this machine.
	nginx := startNginx(t, "nginx target", fmt.Sprintf("server { listen %s sndbuf=128k; root %s; }\n", addr, b.dir), "")
	awaitPort(t, nginx, "tcp", addr)
	return startSystem(t, append([]service{
		{"app", "https://app.example.com", "http://" + startSink(t)},
		{"files", "https://files.example.com", "http://" + addr},
	}, more...)...), b
}

// download is the SHA-256 of what a command writes to its standard output.
func download(t testing.TB, cmd *exec.Cmd) string {
	t.Helper()
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	h := sha256.New()
	io.Copy(h, out)
	if err := cmd.Wait(); err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(cmd.Args, " "), err, &stderr)
	}
	return hex.EncodeToString(h.Sum(nil))
}

func TestWeb(t *testing.T) {
	t.Parallel()
	s, b := webSystem(t, service{"disk", "https://disk.example.com", "file://" + largeFile(t).dir})

	t.Run("curl keeps its connection", func(t *testing.T) {
		args := []string{"--write-out", "%{http_code} %{num_connects}\n"}
		for range 4 {
			args = append(args, "--output", "/dev/null", s.url("app", "/"))
		}
		if got, want := s.curl(args...), "200 1\n200 0\n200 0\n200 0\n"; got != want {
			t.Errorf("codes and new connections:\n%swant\n%s", got, want)
		}
	})
	t.Run("curl downloads from a folder", func(t *testing.T) {
		if got := download(t, s.curlCmd(s.url("disk", "/blob"))); got != b.sha256 {
			t.Errorf("SHA-256 %s, want %s", got, b.sha256)
		}
	})
	t.Run("curl uploads in chunks", func(t *testing.T) {
		want := fmt.Sprintf("%d %s", blobSize(), b.sha256)
		f, err := os.Open(b.path)
		if err != nil {
			t.Fatal(err)
		}
		defer f.Close()
		chunked := s.curlCmd("--upload-file", "-", s.url("app", "/up"))
		chunked.Stdin = f
		if got, err := chunked.Output(); err != nil || string(got) != want {
			t.Errorf("arrived: %s, %v, want %s", got, err, want)
		}
	})
	t.Run("a download outlives three cuts of the link", func(t *testing.T) {
		done := make(chan string)
		at := s.link.total()
		go func() { done <- download(t, s.curlCmd(s.url("files", "/blob"))) }()
		for i := range int64(3) {
			s.link.awaitTotal(at + blobSize()*(i+1)/5)
			if s.link.cut() == 0 {
				t.Error("there was no link to cut")
			}
		}
		if got := <-done; got != b.sha256 {
			t.Errorf("SHA-256 %s, want %s", got, b.sha256)
		}
	})
	t.Run("an upload outlives three cuts of the link", func(t *testing.T) {
		done := make(chan string)
		at := s.link.total()
		go func() {
			out, err := s.curlCmd("--upload-file", b.path, s.url("app", "/up")).Output()
			if err != nil {
				t.Errorf("curl: %v", err)
			}
			done <- string(out)
		}()
		for i := range int64(3) {
			s.link.awaitTotal(at + blobSize()*(i+1)/5)
			s.link.cut()
		}
		if got, want := <-done, fmt.Sprintf("%d %s", blobSize(), b.sha256); got != want {
			t.Errorf("arrived: %s, want %s", got, want)
		}
	})
	for _, host := range []string{"files", "disk"} { // nginx and our own server answer alike
		t.Run("range, HEAD and 304 from "+host, func(t *testing.T) { testStatic(t, s, host, b) })
	}
	t.Run("forwarding headers are ours", func(t *testing.T) {
		got := s.curl("-H", "X-Forwarded-For: 6.6.6.6", "-H", "Forwarded: for=6.6.6.6", "-H", "X-Forwarded-Proto: gopher",
			"-H", "Connection: Secret-Hop", "-H", "Secret-Hop: 1", s.url("app", "/headers"))
		for _, want := range []string{"X-Forwarded-For: 127.0.0.1\n", "X-Forwarded-Proto: https\n", "X-Forwarded-Host: app.example.com"} {
			if !strings.Contains(got, want) {
				t.Errorf("no %q in\n%s", want, got)
			}
		}
		for _, never := range []string{"6.6.6.6", "gopher", "Secret-Hop"} {
			if strings.Contains(got, never) {
				t.Errorf("%q went through:\n%s", never, got)
			}
		}
	})
	t.Run("nothing outside of the folder", func(t *testing.T) {
		outside := filepath.Join(root, "secret.txt")
		writeFile(t, outside, "secret")
		for _, link := range []string{outside, "../secret.txt", ".."} {
			name := filepath.Join(b.dir, "link")
			os.Remove(name)
			if err := os.Symlink(link, name); err != nil {
				t.Fatal(err)
			}
			for _, p := range []string{"/link", "/link/secret.txt"} {
				if out := s.curl("--path-as-is", "-i", s.url("disk", p)); strings.Contains(out, "secret\n") || strings.HasSuffix(out, "secret") || strings.HasPrefix(out, "HTTP/1.1 200") {
					t.Errorf("%s -> %s:\n%s", p, link, out)
				}
			}
			os.Remove(name)
		}
		for _, p := range []string{"/../secret.txt", "/%2e%2e/secret.txt", "/..%2fsecret.txt", "/x/../../secret.txt", "//../secret.txt", "/..%5csecret.txt", "/%00", "/small.txt%00.html"} {
			out := s.curl("--path-as-is", "-i", s.url("disk", p))
			if strings.Contains(out, "\r\n\r\nsecret") || strings.HasPrefix(out, "HTTP/1.1 200") {
				t.Errorf("%s:\n%s", p, out)
			}
		}
		if out := s.curl("-i", s.url("disk", "/")); strings.Contains(out, "small.txt") {
			t.Errorf("the folder is listed:\n%s", out)
		}
	})
	t.Run("errors that say what to do", func(t *testing.T) {
		status := func(url string) string { return s.curl("-o", "/dev/null", "-w", "%{http_code}", url) }
		if got := status(s.url("nobody", "/")); got != "404" {
			t.Errorf("unknown host: %s, want 404", got)
		}
	})
}

// testStatic asks a server of files what browsers and video players ask.
func testStatic(t *testing.T, s *system, host string, b blob) {
	c := s.visitor()
	get := func(method, path string, header ...string) (*http.Response, string) {
		t.Helper()
		req, _ := http.NewRequestWithContext(t.Context(), method, "https://"+host+".example.com"+path, nil)
		for i := 0; i < len(header); i += 2 {
			req.Header.Set(header[i], header[i+1])
		}
		resp, err := c.Do(req)
		if err != nil {
			t.Fatalf("%s %s: %v", method, path, err)
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err != nil {
			t.Fatalf("%s %s: body: %v", method, path, err)
		}
		return resp, string(body)
	}
	resp, body := get("GET", "/small.txt")
	if resp.StatusCode != 200 || body != smallText {
		t.Fatalf("GET: %s %q", resp.Status, body)
	}
	etag, modified := resp.Header.Get("Etag"), resp.Header.Get("Last-Modified")
	if etag == "" || modified == "" {
		t.Errorf("ETag %q, Last-Modified %q: want both", etag, modified)
	}
	if resp, body := get("HEAD", "/blob"); resp.StatusCode != 200 || body != "" || resp.ContentLength != blobSize() {
		t.Errorf("HEAD: %s, %d bytes announced, %d came", resp.Status, resp.ContentLength, len(body))
	}
	if resp, body := get("GET", "/small.txt", "If-None-Match", etag); resp.StatusCode != 304 || body != "" {
		t.Errorf("If-None-Match: %s %q", resp.Status, body)
	}
	if resp, _ := get("GET", "/small.txt", "If-Modified-Since", modified); resp.StatusCode != 304 {
		t.Errorf("If-Modified-Since: %s", resp.Status)
	}
	if resp, body := get("GET", "/small.txt", "Range", "bytes=2-6"); resp.StatusCode != 206 || body != smallText[2:7] {
		t.Errorf("Range: %s %q", resp.Status, body)
	}
	if resp, body := get("GET", "/small.txt", "Range", "bytes=-5"); resp.StatusCode != 206 || body != smallText[len(smallText)-5:] {
		t.Errorf("suffix Range: %s %q", resp.Status, body)
	}
	if resp, _ := get("GET", "/small.txt", "Range", "bytes=1000-"); resp.StatusCode != 416 {
		t.Errorf("Range past the end: %s, want 416", resp.Status)
	}
	if resp, _ := get("GET", "/none"); resp.StatusCode != 404 {
		t.Errorf("missing file: %s, want 404", resp.Status)
	}
	f, err := os.Open(b.path)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	want := make([]byte, 1000)
	f.ReadAt(want, blobSize()-5000)
	if resp, body := get("GET", "/blob", "Range", fmt.Sprintf("bytes=%d-%d", blobSize()-5000, blobSize()-4001)); resp.StatusCode != 206 || body != string(want) {
		t.Errorf("Range of the large file: %s, %d bytes", resp.Status, len(body))
	}
}

// TestAbsence walks a service through what can be away: its server, its site, its relay.
func TestAbsence(t *testing.T) {
	t.Parallel()
	sink := startSink(t)
	down := freeAddr(t) // nobody listens
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	s := startSystem(t,
		service{"app", "https://app.example.com", "http://" + sink},
		service{"down", "https://down.example.com", "http://" + down},
		service{"tcp", "tcp://:{port}", "tcp://" + sink})
	head := func(host string) string { return s.curl("-i", s.url(host, "/")) }

	if got := head("app"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Fatalf("all is there:\n%s", got)
	}
	if got := head("down"); !strings.HasPrefix(got, "HTTP/1.1 502 ") || strings.Contains(got, down) {
		t.Errorf("server down: want 502 and nothing of the inside, got:\n%s", got)
	}
	if got := head("nobody"); !strings.HasPrefix(got, "HTTP/1.1 404 ") {
		t.Errorf("unknown host: want 404, got:\n%s", got)
	}

	// The site goes away in good order and comes back.
	s.private.signal(t, os.Interrupt)
	if code := s.private.wait(t, 20*time.Second); code != 0 {
		t.Errorf("relay-private ended with %d", code)
	}
	s.public.await(t, 0, "site down")
	if got := head("app"); !strings.HasPrefix(got, "HTTP/1.1 503 ") || !strings.Contains(got, "\r\nRetry-After: ") {
		t.Errorf("site away: want 503 and Retry-After, got:\n%s", got)
	}
	s.startPrivate()
	if got := head("app"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("the site is back:\n%s", got)
	}

	// The public relay is killed and comes back: the private relay finds it by itself.
	s.public.kill()
	mark := s.private.lines()
	s.startPublic()
	s.private.await(t, mark, "service up")
	if got := head("app"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("the public relay is back:\n%s", got)
	}

	// The link goes silent: both sides find out by themselves, and a new link is made.
	s.link.stall()
	s.private.await(t, s.private.lines(), "link lost")
	s.link.flow()
	if got := head("app"); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("after a silent link:\n%s", got)
	}
}

// TestReload changes both configurations under a download that goes on.
func TestReload(t *testing.T) {
	t.Parallel()
	sink := startSink(t)
	target, a := startTarget(t)
	_ = target
	s := startSystem(t,
		service{"app", "https://app.example.com", "http://" + sink},
		service{"echo", "tcp://:{port}", "tcp://" + a.Echo})
	c, err := net.Dial("tcp", s.port("echo"))
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	say := func(when string) {
		t.Helper()
		c.SetDeadline(time.Now().Add(waitLimit))
		buf := []byte("still here?")
		if err := roundTrip(c, buf); err != nil || string(buf) != "still here?" {
			t.Errorf("%s: echo %q, %v", when, buf, err)
		}
	}
	say("before")

	s.services = append(s.services, service{"new", "https://new.example.com", "http://" + sink})
	mark := s.private.lines()
	s.writePrivate()
	s.private.signal(t, hangup)
	s.private.await(t, mark, "service up", `"new"`)
	if got := s.curl("-i", s.url("new", "/")); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("new service:\n%s", got)
	}
	say("after the private relay reloaded")

	mark = s.public.lines()
	good := s.sites + siteTOML("second", s.key, "https://second.example.com")
	s.sites = good
	s.writePublic()
	s.public.signal(t, hangup)
	s.public.await(t, mark, "reloaded")
	say("after the public relay reloaded")

	// A broken file changes nothing, and says where it is broken.
	mark = s.public.lines()
	s.sites = good + "[[site]]\nnmae = \"x\"\n"
	s.writePublic()
	s.public.signal(t, hangup)
	if line := s.public.await(t, mark, "the old configuration stays"); !strings.Contains(line, "nmae") || !strings.Contains(line, "name") {
		t.Errorf("broken file: %s", line)
	}
	say("after a broken file")
	if got := s.curl("-i", s.url("app", "/")); !strings.HasPrefix(got, "HTTP/1.1 200 ") {
		t.Errorf("after a broken file:\n%s", got)
	}

	// A service that is gone is gone.
	s.services = slices.DeleteFunc(s.services, func(v service) bool { return v.name == "new" })
	mark = s.private.lines()
	s.writePrivate()
	s.private.signal(t, hangup)
	s.private.await(t, mark, "service up")
	if got := s.curl("-i", s.url("new", "/")); !strings.HasPrefix(got, "HTTP/1.1 404 ") {
		t.Errorf("removed service:\n%s", got)
	}
	say("after a service was removed")
}

// TestDrain ends each relay while a visitor is in the middle of something.
func TestDrain(t *testing.T) {
	_, a := startTarget(t)
	for _, side := range []string{"public", "private"} {
		t.Run(side, func(t *testing.T) {
			s := startSystem(t,
				service{"echo", "tcp://:{port}", "tcp://" + a.Echo},
				service{"web", "https://app.example.com", "http://" + a.HTTP})
			c, err := net.Dial("tcp", s.port("echo"))
			if err != nil {
				t.Fatal(err)
			}
			defer c.Close()
			c.SetDeadline(time.Now().Add(waitLimit))
			buf := make([]byte, 5)
			if err := roundTrip(c, buf); err != nil {
				t.Fatal(err)
			}
			p := s.public
			if side == "private" {
				p = s.private
			}
			mark := p.lines()
			p.signal(t, os.Interrupt)
			p.await(t, mark, "stopping")
			if err := roundTrip(c, buf); err != nil {
				t.Errorf("a visitor was cut while the relay drains: %v", err)
			}
			if side == "public" {
				s.awaitNoVisitors()
				if err := roundTrip(c, buf); err != nil {
					t.Errorf("a visitor was cut while the relay drains: %v", err)
				}
			}
			c.Close()
			if code := p.wait(t, 20*time.Second); code != 0 { // it would wait for 30 s
				t.Errorf("ended with %d", code)
			}
		})
	}
}

// within is a context with a deadline for one step of a test.
func within(t testing.TB, d time.Duration) context.Context {
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}
