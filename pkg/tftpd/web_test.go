package tftpd

import (
	"bytes"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/memnet"
	"culvert.dev/pkg/tftp"
)

// testWeb is a store of what handler serves below /images.
func testWeb(t testing.TB, handler http.HandlerFunc) (*Web, *httptest.Server) {
	t.Helper()
	server := httptest.NewServer(handler)
	t.Cleanup(server.Close)
	w := &Web{URL: server.URL + "/images"}
	t.Cleanup(w.Close)
	return w, server
}

func TestWebRead(t *testing.T) {
	l := storeLoop(t)
	for _, content := range contents() {
		for _, way := range []string{"length", "chunked", "until the end", "redirected"} {
			w, _ := testWeb(t, func(w http.ResponseWriter, r *http.Request) {
				switch {
				case way == "redirected" && r.URL.Path == "/images/boot/x":
					http.Redirect(w, r, "/elsewhere", http.StatusFound)
					return
				case way == "until the end":
					c, _, _ := http.NewResponseController(w).Hijack()
					io.WriteString(c, "HTTP/1.0 200 OK\r\n\r\n")
					c.Write(content)
					c.Close()
					return
				case way == "chunked":
					http.NewResponseController(w).Flush()
				default:
					w.Header().Set("Content-Length", strconv.Itoa(len(content)))
				}
				w.Write(content)
			})
			u, err := storeGet(t, l, w, &Open{Name: "boot/x", Size: -1})
			size := int64(len(content))
			if way == "chunked" || way == "until the end" {
				size = -1
			}
			if err != nil || !bytes.Equal(u.data, content) || u.file.Size != size {
				t.Errorf("%s: %d bytes of %d, size %d, %v", way, len(u.data), len(content), u.file.Size, err)
			}
		}
	}
}

// What a name has is of the name, whatever it looks like in a URL.
func TestWebNames(t *testing.T) {
	l := storeLoop(t)
	w, server := testWeb(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Host == "" || r.Header.Get("Accept-Encoding") != "identity" || r.Header.Get("Cookie") != "" {
			t.Errorf("request: %v", r.Header)
		}
		http.SetCookie(w, &http.Cookie{Name: "a", Value: "b"})
		io.WriteString(w, r.URL.Path+" "+r.URL.RawQuery)
	})
	for _, name := range []string{"a", "a/b", "a b", "what?x=1", "a#b", "100%", "%2e%2e/x", "%2f", "a;b", "a&b=c+d", "http://other/x", "ä/ö", "ab:c", "-", "...", "a,b@c"} {
		want := "/images/" + strings.ReplaceAll(name, "//", "/")
		if clean, err := tftp.CleanName(name); err != nil {
			t.Errorf("%q: %v", name, err)
		} else {
			name = clean
		}
		for _, url := range []string{server.URL + "/images", server.URL + "/images/"} {
			u, err := storeGet(t, l, &Web{URL: url}, &Open{Name: name, Size: -1})
			if err != nil || string(u.data) != want+" " {
				t.Errorf("%q: %q, %v", name, u.data, err)
			}
		}
	}
	for _, name := range []string{"", "..", "../x", "a/../../x", "/a", "a//b", "./a", "a\\b", "a\x00b", "a\r\nHost: x", "c:/x", strings.Repeat("x", 300)} {
		_, err := storeGet(t, l, w, &Open{Name: name, Size: -1})
		wantCode(t, fmt.Sprintf("%q", name), err, tftp.CodeAccess)
	}
	_, err := storePut(t, l, w, &Open{Name: "a", Size: -1}, nil, 1)
	wantCode(t, "write", err, tftp.CodeAccess)
}

func TestWebStatus(t *testing.T) {
	l := storeLoop(t)
	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { t.Error("another server was asked") }))
	defer other.Close()
	w, server := testWeb(t, func(w http.ResponseWriter, r *http.Request) {
		name := strings.TrimPrefix(r.URL.Path, "/images/")
		if status, err := strconv.Atoi(name); err == nil {
			w.WriteHeader(status)
			io.WriteString(w, "SECRET")
			return
		}
		switch name {
		case "folder":
			http.Redirect(w, r, "/images/folder/", http.StatusMovedPermanently)
		case "elsewhere":
			http.Redirect(w, r, other.URL, http.StatusFound)
		case "secure":
			http.Redirect(w, r, "https://"+r.Host+"/x", http.StatusFound)
		case "password":
			http.Redirect(w, r, "http://a:b@"+r.Host+"/x", http.StatusFound)
		case "nowhere":
			w.Header().Set("Location", "http://[")
			w.WriteHeader(http.StatusFound)
		case "gzip":
			w.Header().Set("Content-Encoding", "gzip")
			io.WriteString(w, "SECRET")
		case "short":
			w.Header().Set("Content-Length", "1000000")
			io.WriteString(w, "SECRET")
		case "torn":
			http.NewResponseController(w).Flush()
			io.WriteString(w, "SECRET")
			panic(http.ErrAbortHandler)
		default: // round and round
			http.Redirect(w, r, "/images/round"+name, http.StatusFound)
		}
	})
	for name, code := range map[string]tftp.Code{
		"404": tftp.CodeNotFound, "410": tftp.CodeNotFound, "414": tftp.CodeNotFound,
		"401": tftp.CodeAccess, "403": tftp.CodeAccess, "451": tftp.CodeAccess,
		"folder": tftp.CodeAccess,
	} {
		u, err := storeGet(t, l, w, &Open{Name: name, Size: -1})
		wantCode(t, name, err, code, "SECRET", server.URL)
		if u.file != nil {
			t.Errorf("%s: %+v", name, u.file)
		}
	}
	for _, name := range []string{"204", "206", "300", "304", "400", "407", "429", "500", "503", "elsewhere", "secure", "password", "nowhere", "gzip", "round", "short", "torn"} {
		u, err := storeGet(t, l, w, &Open{Name: name, Size: -1})
		if _, said := errors.AsType[*tftp.Error](err); err == nil || said || u.eof {
			t.Errorf("%s: %v, end %v", name, err, u.eof)
		}
	}
	w = &Web{URL: "ftp://" + other.Listener.Addr().String()}
	if _, err := storeGet(t, l, w, &Open{Name: "x", Size: -1}); err == nil {
		t.Error("an FTP server was asked")
	}
	server.Close()
	w = &Web{URL: server.URL}
	if _, err := storeGet(t, l, w, &Open{Name: "x", Size: -1}); err == nil || !strings.Contains(err.Error(), server.URL) {
		t.Errorf("no server: %v", err)
	}
}

func TestWebVersion(t *testing.T) {
	l := storeLoop(t)
	at := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	long := `"` + strings.Repeat("x", MaxVersion) + `"`
	for _, test := range []struct {
		fields, version string
		again           map[string]string // what is asked with the version
	}{
		{`ETag: "abc-1"`, `tag:"abc-1"`, map[string]string{"If-None-Match": `"abc-1"`}},
		{`ETag: ""`, `tag:""`, map[string]string{"If-None-Match": `""`}},
		{`ETag: W/"abc"`, "", nil},
		{`ETag: abc`, "", nil},
		{`ETag: "a b"`, "", nil},
		{"ETag: " + long, "", nil},
		{"Last-Modified: " + at.Format(http.TimeFormat), "time:1767323045-4", map[string]string{"If-Modified-Since": at.Format(http.TimeFormat)}},
		{`ETag: W/"abc"` + "\nLast-Modified: " + at.Format(http.TimeFormat), "time:1767323045-4", map[string]string{"If-Modified-Since": at.Format(http.TimeFormat)}},
		{"Last-Modified: " + at.Format(http.TimeFormat) + "\nDate: " + at.Add(time.Second).Format(http.TimeFormat), "", nil},
		{"Last-Modified: yesterday", "", nil},
		{"", "", nil},
	} {
		var asked atomic.Pointer[http.Header]
		w, _ := testWeb(t, func(w http.ResponseWriter, r *http.Request) {
			h := r.Header.Clone()
			asked.Store(&h)
			for line := range strings.SplitSeq(test.fields, "\n") {
				if name, value, ok := strings.Cut(line, ": "); ok {
					w.Header().Set(name, value)
				}
			}
			if r.URL.Path != "/images/always" && (r.Header.Get("If-None-Match") != "" || r.Header.Get("If-Modified-Since") != "") {
				w.WriteHeader(http.StatusNotModified)
				return
			}
			w.Header().Set("Content-Length", "4")
			io.WriteString(w, "data")
		})
		u, err := storeGet(t, l, w, &Open{Name: "x", Size: -1})
		if err != nil || u.file.Version != test.version || string(u.data) != "data" {
			t.Errorf("%q: version %q, %v", test.fields, u.file.Version, err)
		}
		if test.version == "" {
			continue
		}
		for _, name := range []string{"x", "always"} {
			u, err = storeGet(t, l, w, &Open{Name: name, Size: -1, Have: test.version})
			if err != nil || !u.file.Same || u.file.End != nil || u.file.Version != test.version {
				t.Errorf("%q: again: %+v, %v", test.fields, u.file, err)
			}
			for name, value := range test.again {
				if got := asked.Load().Get(name); got != value {
					t.Errorf("%q: %s: %q", test.fields, name, got)
				}
			}
		}
		if u, err := storeGet(t, l, w, &Open{Name: "x", Size: -1, Have: "other"}); err != nil || u.file.Same || string(u.data) != "data" {
			t.Errorf("%q: with another version: %+v, %v", test.fields, u.file, err)
		}
	}
}

// What a stranger says to have asks nothing else of the server.
func TestWebVersionForged(t *testing.T) {
	l := storeLoop(t)
	w, _ := testWeb(t, func(w http.ResponseWriter, r *http.Request) {
		if r.Header.Get("Injected") != "" || r.Header.Get("If-None-Match") != "" {
			t.Errorf("asked with %v", r.Header)
		}
		io.WriteString(w, "data")
	})
	for _, have := range []string{"tag:\"a\"\r\nInjected: x", "time:1\r\nInjected: x", "time:99999999999999999999", "time:-", "tag:", "tag:*", "tag:W/\"a\"", "tag:\"a\", \"b\"", "tag:\"", ":", "x"} {
		if u, err := storeGet(t, l, w, &Open{Name: "x", Size: -1, Have: have}); err == nil && (u.file.Same || string(u.data) != "data") {
			t.Errorf("%q: %+v", have, u.file)
		}
	}
}

func TestWebNetASCII(t *testing.T) {
	l := storeLoop(t)
	text := []byte(strings.Repeat("a\r\nb\nc\r", 50000))
	w, _ := testWeb(t, func(w http.ResponseWriter, r *http.Request) { w.Write(text) })
	u, err := storeGet(t, l, w, &Open{Name: "x", Mode: tftp.NetASCII, Size: -1})
	if want := new(tftp.EncodeNetASCII).Append(nil, text); err != nil || u.file.Size != -1 || !bytes.Equal(u.data, want) {
		t.Errorf("%d bytes of %d, size %d, %v", len(u.data), len(want), u.file.Size, err)
	}
}

func TestWebTLS(t *testing.T) {
	l := storeLoop(t)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "data") }))
	server.Config.ErrorLog = log.New(io.Discard, "", 0)
	server.StartTLS()
	defer server.Close()
	roots := x509.NewCertPool()
	roots.AddCert(server.Certificate())
	w := &Web{URL: server.URL, RootCAs: roots}
	defer w.Close()
	if u, err := storeGet(t, l, w, &Open{Name: "x", Size: -1}); err != nil || string(u.data) != "data" {
		t.Errorf("%q, %v", u.data, err)
	}
	stranger := &Web{URL: server.URL, RootCAs: x509.NewCertPool()}
	if _, err := storeGet(t, l, stranger, &Open{Name: "x", Size: -1}); err == nil {
		t.Error("a server of a stranger's was believed")
	}
}

// A reader that stands still holds the server up, and one that goes away lets it go at once, wherever it is.
func TestWebAbort(t *testing.T) {
	l := storeLoop(t)
	gone := make(chan struct{}, 1)
	var sent atomic.Int64
	asked := make(chan struct{}, 1)
	w, _ := testWeb(t, func(w http.ResponseWriter, r *http.Request) {
		defer func() { gone <- struct{}{} }()
		asked <- struct{}{}
		if r.URL.Path == "/images/mute" {
			<-r.Context().Done()
			return
		}
		for b := make([]byte, 64<<10); ; {
			n, err := w.Write(b)
			sent.Add(int64(n))
			if err != nil {
				return
			}
		}
	})
	w.MaxRequests = 1
	u := &storeUser{}
	stopped := make(chan struct{})
	u.use = func(b []byte) int {
		u.end.Pause()
		close(stopped)
		return len(b)
	}
	u.open(l, w, &Open{Name: "endless", Size: -1})
	<-asked
	<-stopped
	if _, err := storeGet(t, l, w, &Open{Name: "other", Size: -1}); err != errTooMany {
		t.Errorf("one more than there may be: %v", err)
	}
	for last := int64(-1); last != sent.Load(); time.Sleep(50 * time.Millisecond) {
		last = sent.Load() // until the sockets are full
	}
	if n := sent.Load(); n > 32<<20 {
		t.Errorf("%d bytes were taken for a reader that wants none", n)
	}
	l.Post(func() { u.end.Abort(fs.ErrInvalid) })
	if err := u.wait(t); err != fs.ErrInvalid {
		t.Errorf("aborted: %v", err)
	}
	<-gone

	// Cancelled before there is a response.
	idle := func() {
		for w.running.Load() > 0 {
			time.Sleep(time.Millisecond)
		}
	}
	idle()
	var cancel func()
	l.Post(func() {
		cancel = w.Open(l, &Open{Name: "mute", Size: -1}, func(*File, error) { t.Error("done was called after cancel") })
	})
	<-asked
	l.Post(func() { cancel() })
	<-gone
	idle()
}

// A server that says nothing more is given up, and a core that is closed waits for nobody.
func TestWebCoreClose(t *testing.T) {
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		t.Fatal(err)
	}
	defer core.Close()
	asked := make(chan struct{}, 2)
	w, _ := testWeb(t, func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).Flush()
		asked <- struct{}{}
		<-r.Context().Done()
	})
	u := &storeUser{}
	u.open(core.Loop(0), w, &Open{Name: "x", Size: -1})
	<-asked
	start := time.Now()
	core.Close()
	if d := time.Since(start); d > 30*time.Second {
		t.Errorf("closing took %v", d)
	}
	if n := w.running.Load(); n != 0 {
		t.Errorf("%d requests are under way", n)
	}
}

// A server that says nothing for long is given up, but a reader may stand still for as long as it likes.
func TestWebStall(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		core, err := evloop.New(evloop.Config{Loops: 1, Portable: true})
		if err != nil {
			t.Fatal(err)
		}
		defer core.Close()
		l := core.Loop(0)
		var network memnet.Network
		ln, err := network.Listen("10.0.0.8:80")
		if err != nil {
			t.Fatal(err)
		}
		server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.URL.Path == "/mute" {
				<-r.Context().Done()
				return
			}
			io.WriteString(w, "begun")
			http.NewResponseController(w).Flush()
			if r.URL.Path == "/stall" {
				<-r.Context().Done()
				return
			}
			w.Write(make([]byte, 1<<20))
		})}
		go server.Serve(ln)
		defer server.Close()
		w := &Web{URL: "http://10.0.0.8"}
		w.once.Do(w.open)
		w.client.Transport.(*http.Transport).DialContext = network.Dial
		defer w.Close()

		for name, most := range map[string]time.Duration{"mute": webHeader, "stall": webStall} {
			start := time.Now()
			u := &storeUser{}
			u.open(l, w, &Open{Name: name, Size: -1})
			err := <-u.result
			if d := time.Since(start); err == nil || u.eof || d < most || d > most+time.Second {
				t.Errorf("%s: %v after %v", name, err, d)
			}
		}
		u := &storeUser{}
		var timer evloop.Timer
		n := 0
		u.use = func(b []byte) int {
			if n == 0 {
				u.end.Pause()
				l.Arm(&timer, time.Hour, u.end.Resume)
			}
			n += len(b)
			return len(b)
		}
		u.open(l, w, &Open{Name: "whole", Size: -1})
		if err := <-u.result; err != nil || n != 1<<20+5 {
			t.Errorf("%d bytes, %v", n, err)
		}
	})
}

// The environment does not say where the requests of a site go.
func TestWebProxy(t *testing.T) {
	w := &Web{URL: "http://10.0.0.8/"}
	w.Close()
	if w.client.Transport.(*http.Transport).Proxy != nil {
		t.Error("requests go through a proxy")
	}
}
