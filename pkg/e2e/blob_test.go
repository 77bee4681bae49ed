//go:build linux

package e2e

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"culvert.dev/pkg/netem"
)

// blobSize is the size of the large file: more than a session may keep, 128 MiB with -short.
func blobSize() int64 {
	if testing.Short() {
		return 128 << 20
	}
	return 288 << 20
}

type blob struct {
	dir, path string // the folder holds nothing else than "blob" and "small.txt"
	sha256    string
}

const smallText = "a small file behind the firewall\n"

// theBlob writes the large file once a run. No two of its MiB are the same, so that
// pieces in a wrong order would show.
var theBlob = sync.OnceValues(func() (blob, error) {
	dir := filepath.Join(root, "www")
	b := blob{dir: dir, path: filepath.Join(dir, "blob")}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return b, err
	}
	if err := os.WriteFile(filepath.Join(dir, "small.txt"), []byte(smallText), 0o644); err != nil {
		return b, err
	}
	f, err := os.Create(b.path)
	if err != nil {
		return b, err
	}
	defer f.Close()
	h := sha256.New()
	block := make([]byte, 1<<20)
	rand.Read(block)
	for i := range blobSize() >> 20 {
		binary.BigEndian.PutUint64(block, uint64(i))
		h.Write(block)
		if _, err := f.Write(block); err != nil {
			return b, err
		}
	}
	b.sha256 = hex.EncodeToString(h.Sum(nil))
	return b, f.Close()
})

func largeFile(t testing.TB) blob {
	t.Helper()
	b, err := theBlob()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// startSink runs an HTTP server that answers an upload with its size, its SHA-256 and its
// forwarding headers, /slow with the head of an answer whose body never comes, and
// anything else with the number of the connection that the request came on.
func startSink(t testing.TB) string {
	t.Helper()
	return startSinkIn(t, nil)
}

func startSinkIn(t testing.TB, n *netem.Namespace) string {
	t.Helper()
	srv := httptest.NewUnstartedServer(http.HandlerFunc(serveSink))
	srv.Listener.Close()
	var err error
	if srv.Listener, err = listenIn(n, "127.0.0.1:0"); err != nil {
		t.Fatal(err)
	}
	srv.Start()
	t.Cleanup(srv.Close)
	return srv.Listener.Addr().String()
}

func serveSink(w http.ResponseWriter, r *http.Request) {
	switch {
	case r.Method == "PUT" || r.Method == "POST":
		h := sha256.New()
		n, err := io.Copy(h, r.Body)
		if err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
		fmt.Fprintf(w, "%d %x", n, h.Sum(nil))
	case r.URL.Path == "/headers":
		for _, name := range []string{"X-Forwarded-For", "X-Forwarded-Proto", "X-Forwarded-Host", "Forwarded", "Connection", "Keep-Alive", "Secret-Hop"} {
			if v := r.Header.Values(name); len(v) > 0 {
				fmt.Fprintf(w, "%s: %s\n", name, strings.Join(v, " | "))
			}
		}
	default:
		fmt.Fprintf(w, "%s %s from behind the firewall\n", r.Method, r.URL.Path)
	}
}
