package httpd

import (
	"errors"
	"fmt"
	"html"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
)

// FileHandler serves a folder.
type FileHandler struct {
	Root  *os.Root // what is served; nothing outside of it can be reached, by symbolic links neither
	Index bool     // lists folders that have no index.html. Otherwise they are 404
	Dots  bool     // serves names that start with a dot. Otherwise they are 404
}

// maxIndex bounds the names of one listing.
const maxIndex = 10000

func (h *FileHandler) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "method not allowed", http.StatusMethodNotAllowed)
		return
	}
	name, ok := h.name(r.URL.Path)
	if !ok {
		notFound(w)
		return
	}
	wantDir := strings.HasSuffix(r.URL.Path, "/")
	f, info, err := h.open(name)
	switch {
	case err != nil:
		refuse(w, err)
		return
	case info.IsDir() && !wantDir:
		f.Close()
		// Relative, so that it holds below whatever path the visitor sees us at.
		target := url.URL{Path: "./" + path.Base(name) + "/", RawQuery: r.URL.RawQuery}
		w.Header().Set("Location", target.String())
		w.WriteHeader(http.StatusMovedPermanently)
		return
	case info.IsDir():
		index, indexInfo, err := h.open(path.Join(name, "index.html"))
		if err != nil || indexInfo.IsDir() {
			if err == nil {
				index.Close()
			}
			h.list(w, f)
			f.Close()
			return
		}
		f.Close()
		f, info = index, indexInfo
	case wantDir:
		f.Close()
		notFound(w)
		return
	}
	defer f.Close()
	w.Header().Set("ETag", fmt.Sprintf(`"%x-%x"`, info.ModTime().UnixNano(), info.Size()))
	w.Header().Set("X-Content-Type-Options", "nosniff")
	http.ServeContent(w, r, info.Name(), info.ModTime(), f)
}

// name makes a path within the root of a decoded URL path.
func (h *FileHandler) name(p string) (name string, ok bool) {
	if !strings.HasPrefix(p, "/") || strings.ContainsAny(p, "\x00\\") {
		return "", false
	}
	for element := range strings.SplitSeq(p, "/") {
		if element == ".." || element == "." || !h.Dots && strings.HasPrefix(element, ".") {
			return "", false
		}
	}
	name = strings.TrimPrefix(path.Clean(p), "/")
	if name == "" {
		name = "."
	}
	return name, true
}

// errSpecial is what devices, sockets and pipes are to us: opening one could block or do something.
var errSpecial = errors.New("not a regular file")

func (h *FileHandler) open(name string) (*os.File, fs.FileInfo, error) {
	info, err := h.Root.Stat(name)
	if err != nil {
		return nil, nil, err
	}
	if !info.IsDir() && !info.Mode().IsRegular() {
		return nil, nil, errSpecial
	}
	f, err := h.Root.Open(name)
	if err != nil {
		return nil, nil, err
	}
	if info, err = f.Stat(); err != nil {
		f.Close()
		return nil, nil, err
	}
	return f, info, nil
}

// list writes the names in a folder.
func (h *FileHandler) list(w http.ResponseWriter, dir *os.File) {
	if !h.Index {
		notFound(w)
		return
	}
	entries, err := dir.ReadDir(maxIndex)
	if err != nil && err != io.EOF {
		refuse(w, err)
		return
	}
	slices.SortFunc(entries, func(a, b fs.DirEntry) int { return strings.Compare(a.Name(), b.Name()) })
	w.Header().Set("Content-Type", "text/html; charset=utf-8")
	io.WriteString(w, "<!doctype html>\n<meta name=\"viewport\" content=\"width=device-width\">\n<pre>\n")
	for _, e := range entries {
		name := e.Name()
		if !h.Dots && strings.HasPrefix(name, ".") {
			continue
		}
		if e.IsDir() {
			name += "/"
		}
		link := url.URL{Path: "./" + name}
		fmt.Fprintf(w, "<a href=\"%s\">%s</a>\n", html.EscapeString(link.String()), html.EscapeString(name))
	}
	io.WriteString(w, "</pre>\n")
}

// refuse answers without telling more than that: errors of the system have paths in them.
func refuse(w http.ResponseWriter, err error) {
	if errors.Is(err, fs.ErrPermission) {
		http.Error(w, "forbidden", http.StatusForbidden)
		return
	}
	notFound(w)
}

func notFound(w http.ResponseWriter) { http.Error(w, "not found", http.StatusNotFound) }
