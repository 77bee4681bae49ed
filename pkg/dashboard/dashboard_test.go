package dashboard

import (
	"compress/gzip"
	"io"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"testing"
)

// ask sends one request to the handler.
func ask(h http.Handler, method, target string, header ...string) *http.Response {
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	h.ServeHTTP(w, r)
	return w.Result()
}

func text(t *testing.T, r io.Reader) string {
	b, err := io.ReadAll(r)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

func TestFiles(t *testing.T) {
	h := Handler()

	// The page is asked for each time, and names its files by what is in them.
	page := ask(h, "GET", "/")
	body := text(t, page.Body)
	if page.StatusCode != 200 || page.Header.Get("Cache-Control") != "no-cache" || !strings.Contains(body, "<!doctype html>") {
		t.Fatalf("/ = %d %v", page.StatusCode, page.Header)
	}
	if r := ask(h, "GET", "/", "If-None-Match", page.Header.Get("Etag")); r.StatusCode != 304 {
		t.Errorf("the page that the browser has = %d, want 304", r.StatusCode)
	}
	refs := regexp.MustCompile(`(?:src|href)="(/ui/[0-9a-f]{16}/[^"]+)"`).FindAllStringSubmatch(body, -1)
	if len(refs) < 3 {
		t.Fatalf("the page refers to %q", refs)
	}
	for _, ref := range refs {
		r := ask(h, "GET", ref[1])
		if r.StatusCode != 200 || !strings.Contains(r.Header.Get("Cache-Control"), "immutable") {
			t.Errorf("%s = %d %v", ref[1], r.StatusCode, r.Header)
		}
		packed := ask(h, "GET", ref[1], "Accept-Encoding", "br, gzip;q=0.5")
		if packed.Header.Get("Content-Encoding") == "gzip" {
			z, err := gzip.NewReader(packed.Body)
			if err != nil {
				t.Fatal(err)
			}
			if text(t, z) != text(t, r.Body) {
				t.Errorf("%s is another one by gzip", ref[1])
			}
		} else if ask(h, "GET", ref[1]).ContentLength > 500 {
			t.Errorf("%s is not compressed", ref[1])
		}
		if ask(h, "GET", ref[1], "Accept-Encoding", "gzip;q=0").Header.Get("Content-Encoding") != "" {
			t.Errorf("%s is compressed for who does not want it", ref[1])
		}
	}

	for _, target := range []string{"/ui/", "/ui/0123456789abcdef/app.js", "/index.html", "/api/status/Get", "/ui/../", "//"} {
		if r := ask(h, "GET", "http://relay"+target); r.StatusCode != 404 {
			t.Errorf("%s = %d, want 404", target, r.StatusCode)
		}
	}
	if r := ask(h, "POST", "/"); r.StatusCode != 405 || r.Header.Get("Allow") != "GET, HEAD" {
		t.Errorf("POST = %d %v", r.StatusCode, r.Header)
	}
	for _, r := range []*http.Response{page, ask(h, "GET", "/nothing"), ask(h, "POST", "/")} {
		if !strings.HasPrefix(r.Header.Get("Content-Security-Policy"), "default-src 'self';") || r.Header.Get("X-Content-Type-Options") != "nosniff" {
			t.Errorf("%d without its policy: %v", r.StatusCode, r.Header)
		}
	}
}

// TestSources reads what no browser complains about before it is too late.
func TestSources(t *testing.T) {
	forbidden := []struct{ in, pattern, why string }{
		{".html", `(?i)\sstyle=|<style|\son[a-z]+=|<script(?: type="module")?>`, "an inline style or script, which the policy forbids"},
		{".js", `innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function|\bsetAttribute\(['"](?:style|on)`, "text that becomes markup or code"},
		{".js", `localStorage\.setItem\([^)]*token\b|console\.log`, "something that must not stay"},
		{"", `(?i)(?:src|href|url|import|from)[=( ]+["']?(?:https?:)?//`, "another origin"},
	}
	for at, f := range packed() {
		for _, no := range forbidden {
			if at == "/" && no.in == ".html" || strings.HasSuffix(at, no.in) {
				if found := regexp.MustCompile(no.pattern).Find(f.body); found != nil {
					t.Errorf("%s: %q is %s", at, found, no.why)
				}
			}
		}
	}
}
