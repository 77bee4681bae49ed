// Package dashboard is the operators' page: files that a browser is given, which then speaks to the admin API of the
// same listener, over its WebSocket.
//
//	mux.Handle("/", dashboard.Handler())
//
// The files are in the program, as they are in the repository: ES modules and a style sheet, written by hand, with no
// step that builds them. They hold no secret, so nobody is asked for a token before they are served; whatever they show
// comes from the API, which asks.
//
// What holds for all of it:
//
//   - The page fetches nothing from anywhere but its own origin, and runs no script and no style that is not one of its
//     files. The Content-Security-Policy says so, and that no text ever becomes markup (trusted types): the names,
//     paths, headers and log lines that the page shows are written by strangers.
//   - What grows is bounded: the rows that a list has, the requests and lines that a live feed keeps, the points of a chart.
//   - What an operator's role does not allow is not offered. The API refuses it all the same.
package dashboard

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"strconv"
	"strings"
	"sync"
)

//go:embed web
var web embed.FS

// policy is the Content-Security-Policy of all files. Pictures may be of the page's own making, too: the inspector shows
// those that a visitor got.
const policy = "default-src 'self'; img-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; " +
	"frame-ancestors 'none'; require-trusted-types-for 'script'; trusted-types 'none'"

// types are the media types of the files, by their names' ends. Those of the system are not asked: what a browser may run
// must not depend on them.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
}

// file is one file as it is served.
type file struct {
	mediaType string
	body      []byte
	packed    []byte // the same, by gzip; nil: no smaller
	cache     string // Cache-Control
	tag       string // ETag
}

// Handler serves the page at / and the files it consists of below /ui/. Their paths have a hash of all files in it, so that
// a browser keeps them for as long as they are the same, and never mixes those of two versions. Everything else is not
// found: a handler of the API has to be asked before this one.
func Handler() http.Handler { return packed() }

// packed makes the files ready to be served, once: to compress them takes its time.
var packed = sync.OnceValue(newFiles)

// files are all that is served, by path.
type files map[string]*file

func newFiles() files {
	all := files{}
	sum := sha256.New()
	walk := func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		body, err := web.ReadFile(name)
		if err != nil {
			return err
		}
		mediaType, ok := types[path.Ext(name)]
		if !ok {
			return fmt.Errorf("%s has no media type", name)
		}
		fmt.Fprintf(sum, "%s %d\n", name, len(body))
		sum.Write(body)
		all[strings.TrimPrefix(name, "web/")] = &file{mediaType: mediaType, body: body}
		return nil
	}
	if err := fs.WalkDir(web, "web", walk); err != nil {
		panic("BUG: dashboard: " + err.Error()) // what is embedded is what is tested
	}
	version := hex.EncodeToString(sum.Sum(nil)[:8])
	served := files{}
	for name, f := range all {
		at := "/ui/" + version + "/" + name
		f.cache = "public, max-age=31536000, immutable"
		if name == "index.html" {
			at = "/"
			f.cache = "no-cache"
			f.body = bytes.ReplaceAll(f.body, []byte("/ui/-/"), []byte("/ui/"+version+"/"))
		}
		f.tag = `"` + version + `"`
		f.packed = pack(f.body)
		served[at] = f
	}
	return served
}

// pack compresses b, nil if that makes it no smaller.
func pack(b []byte) []byte {
	var packed bytes.Buffer
	w, _ := gzip.NewWriterLevel(&packed, gzip.BestCompression)
	w.Write(b)
	w.Close()
	if packed.Len() >= len(b) {
		return nil
	}
	return packed.Bytes()
}

func (all files) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	h := w.Header()
	h.Set("Content-Security-Policy", policy)
	h.Set("X-Content-Type-Options", "nosniff")
	h.Set("X-Frame-Options", "DENY")
	h.Set("Referrer-Policy", "no-referrer")
	h.Set("Cross-Origin-Opener-Policy", "same-origin")
	h.Set("Cross-Origin-Resource-Policy", "same-origin")
	h.Set("Permissions-Policy", "camera=(), microphone=(), geolocation=(), payment=(), usb=()")
	f := all[r.URL.Path]
	if f == nil {
		http.Error(w, "nothing here: the dashboard is at /", http.StatusNotFound)
		return
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		h.Set("Allow", "GET, HEAD")
		http.Error(w, "the dashboard's files are read by GET", http.StatusMethodNotAllowed)
		return
	}
	h.Set("Cache-Control", f.cache)
	h.Set("Vary", "Accept-Encoding")
	h.Set("Etag", f.tag)
	if r.Header.Get("If-None-Match") == f.tag {
		w.WriteHeader(http.StatusNotModified)
		return
	}
	h.Set("Content-Type", f.mediaType)
	body := f.body
	if f.packed != nil && takesGzip(r.Header.Get("Accept-Encoding")) {
		h.Set("Content-Encoding", "gzip")
		body = f.packed
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.Write(body) // a HEAD's is left out by the server
}

// takesGzip reports whether an Accept-Encoding names gzip, and not with a weight of nothing (rfc9110#section-12.5.3).
func takesGzip(accept string) bool {
	for coding := range strings.SplitSeq(accept, ",") {
		name, weight, _ := strings.Cut(coding, ";")
		if strings.EqualFold(strings.TrimSpace(name), "gzip") {
			weight, _ = strings.CutPrefix(strings.ToLower(strings.ReplaceAll(weight, " ", "")), "q=")
			q, err := strconv.ParseFloat(weight, 64)
			return weight == "" || err == nil && q > 0
		}
	}
	return false
}
