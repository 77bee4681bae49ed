package httpd

import (
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"
)

// folder makes a root with some files, and a secret outside of it.
func folder(t *testing.T) *os.Root {
	t.Helper()
	top := t.TempDir()
	dir := filepath.Join(top, "www")
	modified := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	for name, content := range map[string]string{
		"secret":                 "secret",
		"www/a.txt":              "0123456789",
		"www/page.html":          "<p>",
		"www/data.unknown":       "\x00\x01",
		"www/.env":               "PASSWORD=x",
		"www/.git/config":        "x",
		"www/docs/index.html":    "<h1>docs",
		"www/empty/<b>&.txt":     "x",
		"www/empty/sub/.hidden":  "x",
		"www/with space/100%.md": "x",
	} {
		if runtime.GOOS == "windows" && strings.Contains(name, "<") {
			continue
		}
		path := filepath.Join(top, filepath.FromSlash(name))
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chtimes(path, modified, modified); err != nil {
			t.Fatal(err)
		}
	}
	for from, to := range map[string]string{"inside": "a.txt", "outside": "../secret", "absolute": filepath.Join(top, "secret"), "up": ".."} {
		if err := os.Symlink(to, filepath.Join(dir, from)); err != nil {
			t.Skip(err)
		}
	}
	root, err := os.OpenRoot(dir)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { root.Close() })
	return root
}

func TestFileHandler(t *testing.T) {
	root := folder(t)
	etag := fmt.Sprintf(`"%x-a"`, time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC).UnixNano())
	for _, test := range []struct {
		handler FileHandler
		request string // method, path and fields, by lines
		want    string // status, body and fields, by lines
	}{
		{request: "GET /a.txt", want: "200\n0123456789\nContent-Type: text/plain; charset=utf-8\nLast-Modified: Fri, 02 Jan 2026 03:04:05 GMT\nEtag: " + etag +
			"\nContent-Length: 10\nAccept-Ranges: bytes"},
		{request: "HEAD /a.txt", want: "200\n\nContent-Length: 10\nEtag: " + etag},
		{request: "GET /page.html", want: "200\n<p>\nContent-Type: text/html; charset=utf-8"},
		{request: "GET /data.unknown", want: "200\n\x00\x01\nContent-Type: application/octet-stream"},
		{request: "GET /with%20space/100%25.md", want: "200\nx"},
		{request: "GET /docs/", want: "200\n<h1>docs\nContent-Type: text/html; charset=utf-8"},
		{request: "GET /docs?a=b", want: "301\n\nLocation: ./docs/?a=b"},
		{request: "GET /inside", want: "200\n0123456789"},

		{request: "GET /a.txt\nRange: bytes=2-4", want: "206\n234\nContent-Range: bytes 2-4/10\nContent-Length: 3"},
		{request: "GET /a.txt\nRange: bytes=-3", want: "206\n789"},
		{request: "GET /a.txt\nRange: bytes=10-", want: "416\ninvalid range: failed to overlap\n\nContent-Range: bytes */10"},
		{request: "GET /a.txt\nRange: bytes=2-4\nIf-Range: " + etag, want: "206\n234"},
		{request: "GET /a.txt\nRange: bytes=2-4\nIf-Range: \"old\"", want: "200\n0123456789"},
		{request: "GET /a.txt\nIf-None-Match: " + etag, want: "304\n\nEtag: " + etag},
		{request: "GET /a.txt\nIf-Match: \"old\"", want: "412\n"},
		{request: "GET /a.txt\nIf-Modified-Since: Fri, 02 Jan 2026 03:04:05 GMT", want: "304\n"},

		{request: "POST /a.txt", want: "405\nmethod not allowed\n\nAllow: GET, HEAD"},
		{request: "GET /", want: "404\nnot found\n"},
		{request: "GET /none", want: "404\nnot found\n"},
		{request: "GET /a.txt/", want: "404\nnot found\n"},
		{request: "GET /a.txt/b", want: "404\nnot found\n"},
		{request: "GET /.env", want: "404\nnot found\n"},
		{request: "GET /%2eenv", want: "404\nnot found\n"},
		{request: "GET /.git/config", want: "404\nnot found\n"},
		{request: "GET /../secret", want: "404\nnot found\n"},
		{request: "GET /docs/../../secret", want: "404\nnot found\n"},
		{request: "GET /..%2fsecret", want: "404\nnot found\n"},
		{request: "GET /%2e%2e/secret", want: "404\nnot found\n"},
		{request: "GET /docs%5c..%5c..%5csecret", want: "404\nnot found\n"},
		{request: "GET /outside", want: "404\nnot found\n"},
		{request: "GET /absolute", want: "404\nnot found\n"},
		{request: "GET /up/secret", want: "404\nnot found\n"},
		{request: "GET /a.txt%00", want: "404\nnot found\n"},
		{request: "GET //a.txt", want: "200\n0123456789"},
		{handler: FileHandler{Dots: true}, request: "GET /.env", want: "200\nPASSWORD=x"},
		{handler: FileHandler{Dots: true}, request: "GET /../secret", want: "404\nnot found\n"},
		{handler: FileHandler{Index: true}, request: "GET /empty/", want: "200\n<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n" +
			"<a href=\"./%3Cb%3E&amp;.txt\">&lt;b&gt;&amp;.txt</a>\n<a href=\"./sub/\">sub/</a>\n</pre>\n\nContent-Type: text/html; charset=utf-8"},
		{handler: FileHandler{Index: true}, request: "GET /docs/", want: "200\n<h1>docs"},
	} {
		test.handler.Root = root
		lines := strings.Split(test.request, "\n")
		method, target, _ := strings.Cut(lines[0], " ")
		r := httptest.NewRequest(method, "http://a"+target, nil)
		for _, line := range lines[1:] {
			name, value, _ := strings.Cut(line, ": ")
			r.Header.Set(name, value)
		}
		w := httptest.NewRecorder()
		test.handler.ServeHTTP(w, r)
		status, rest, _ := strings.Cut(test.want, "\n")
		got := fmt.Sprint(w.Code)
		if got != status || !strings.HasPrefix(rest, w.Body.String()) {
			t.Errorf("%s: %s %q", test.request, got, w.Body)
			continue
		}
		for line := range strings.SplitSeq(strings.TrimPrefix(rest, w.Body.String()), "\n") {
			if name, value, ok := strings.Cut(line, ": "); ok && w.Header().Get(name) != value {
				t.Errorf("%s: %s: %q, want %q", test.request, name, w.Header().Get(name), value)
			}
		}
		if strings.Contains(w.Body.String(), "secret") || strings.Contains(fmt.Sprint(w.Header()), root.Name()) {
			t.Errorf("%s: tells what it should not", test.request)
		}
	}
}

// A pipe in the folder must not hold a handler for ever.
func TestFileHandlerSpecial(t *testing.T) {
	root := folder(t)
	if err := mkfifo(filepath.Join(root.Name(), "pipe")); err != nil {
		t.Skip(err)
	}
	w := httptest.NewRecorder()
	(&FileHandler{Root: root}).ServeHTTP(w, httptest.NewRequest("GET", "/pipe", nil))
	if w.Code != http.StatusNotFound {
		t.Errorf("a pipe: %d", w.Code)
	}
}
