//go:build linux

package e2e

import (
	"crypto/sha256"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"testing"
	"time"

	"golang.org/x/net/http2"
)

// TestOneAddressDoesNotStarve has one address ask for more than the memory of the session, and read
// none of it. Its neighbour's downloads are complete, and take about as long as before.
func TestOneAddressDoesNotStarve(t *testing.T) {
	dir, b := tempDir(t), make([]byte, largeSize)
	rand.NewChaCha8([32]byte{2}).Read(b)
	writeFile(t, filepath.Join(dir, "large"), string(b))
	large := fmt.Sprintf("%x", sha256.Sum256(b))
	srv := httptest.NewUnstartedServer(http.FileServer(http.Dir(dir)))
	srv.Config.ConnState = func(c net.Conn, s http.ConnState) {
		if s == http.StateNew { // the kernel's memory is shared by all
			c.(*net.TCPConn).SetWriteBuffer(128 << 10)
		}
	}
	srv.Start()
	t.Cleanup(srv.Close)
	t.Cleanup(srv.CloseClientConnections)
	s := configure(t, nil, service{"files", "https://files.example.com", srv.URL})
	s.limits += "\nsession_memory = 33554432"
	s.startPublic()
	s.startPrivate()
	s.curl(s.url("files", "/"))
	get5 := func() time.Duration {
		start := time.Now()
		for range 5 {
			if got := download(t, s.curlCmd("--http2", "--fail-with-body", s.url("files", "/large"))); got != large {
				t.Errorf("the neighbour's download: SHA-256 %s", got)
			}
		}
		return time.Since(start)
	}
	alone := get5()
	public, private := s.public.rss(), s.private.rss()
	for range 12 {
		tcp := dialFrom(t, 0, s.https)
		tcp.SetReadBuffer(64 << 10)
		c := h2Over(t, tcp, "files.example.com", http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
		c.hello(t)
		for id := uint32(1); id < 200; id += 2 {
			c.headers(id, true, get("files.example.com", "/large")...)
		}
		go func() { // what it asked for may be ended
			for {
				if _, err := c.next(); err != nil {
					return
				}
			}
		}()
	}
	during := get5()
	t.Logf("160 MiB alone: %v, beside the crowd: %v; %d and %d MiB more", alone, during,
		(s.public.rss()-public)>>20, (s.private.rss()-private)>>20)
	if during > 5*alone+10*time.Second {
		t.Errorf("160 MiB take %v beside those who do not read, and %v alone", during, alone)
	}
	grown(t, s.public, public, 192<<20)
	grown(t, s.private, private, 256<<20) // 1,200 connections to the target, 64 KiB and more read ahead on each, and as much garbage
}
