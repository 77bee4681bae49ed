//go:build linux

package e2e

import (
	"context"
	"crypto/tls"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// TestHandshakeFlood has one address begin ten thousand handshakes. A few cost the relay
// what a handshake costs; and whoever comes from elsewhere meanwhile is served.
func TestHandshakeFlood(t *testing.T) {
	s := configure(t, nil, service{"app", "https://app.example.com", "http://" + startSink(t)})
	s.limits = "handshakes_per_address = 60"
	s.startPublic()
	s.startPrivate()
	const hellos, limit, visits = 10_000, 60, 10 // a fifth of the limit may come at once
	hello := clientHello(t)
	busy, began := cpuSeconds(s.public.pids()), time.Now()

	// The neighbour needs a new connection, and so a handshake, for each request.
	over := make(chan struct{})
	var beside sync.WaitGroup
	beside.Go(func() {
		visitor := &http.Client{Timeout: waitLimit, Transport: &http.Transport{
			DisableKeepAlives: true,
			DialTLSContext: func(context.Context, string, string) (net.Conn, error) {
				d := &net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}}
				return tls.DialWithDialer(d, "tcp", s.https, &tls.Config{RootCAs: caPool(), ServerName: "app.example.com"})
			}}}
		slowest := time.Duration(0)
		defer func() { t.Logf("the neighbour: the slowest visit took %v", slowest) }()
		for n := range visits {
			began := time.Now()
			resp, err := visitor.Get("https://app.example.com/")
			if err != nil {
				t.Errorf("the neighbour, visit %d: %v", n, err)
				return
			}
			io.Copy(io.Discard, resp.Body)
			resp.Body.Close()
			if resp.StatusCode != 200 {
				t.Errorf("the neighbour, visit %d: %s", n, resp.Status)
			}
			slowest = max(slowest, time.Since(began))
			select {
			case <-over:
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	})

	var next, answered atomic.Int64
	var wg sync.WaitGroup
	for range 64 {
		wg.Go(func() {
			for next.Add(1) <= hellos {
				c, err := net.DialTimeout("tcp", s.https, waitLimit)
				if err != nil {
					t.Error(err)
					return
				}
				c.SetDeadline(time.Now().Add(waitLimit))
				c.Write(hello)
				var b [1]byte
				if n, _ := c.Read(b[:]); n == 1 && b[0] == 22 { // a ServerHello: the work is done
					answered.Add(1)
				}
				c.Close()
			}
		})
	}
	wg.Wait()
	close(over)
	beside.Wait()
	took := time.Since(began)
	t.Logf("%d of %d answered in %v; the relay took %.2f s of CPU", answered.Load(), hellos, took.Round(time.Millisecond), cpuSeconds(s.public.pids())-busy)
	if most := limit * (2 + int64(took.Minutes())); answered.Load() > most {
		t.Errorf("%d handshakes of one address were answered, want at most %d", answered.Load(), most)
	}
	if answered.Load() == 0 {
		t.Error("not one was answered")
	}
}
