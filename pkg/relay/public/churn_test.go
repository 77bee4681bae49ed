package public

import (
	"context"
	"crypto/tls"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/quic-go/quic-go"
	quichttp3 "github.com/quic-go/quic-go/http3"
)

// Whatever visitors of all versions of HTTP, servers and links do, and whenever they end it, nothing is counted
// any more when all of it is over.
func TestChurn(t *testing.T) {
	h := http.NewServeMux()
	h.HandleFunc("/echo", func(w http.ResponseWriter, r *http.Request) {
		http.NewResponseController(w).EnableFullDuplex()
		io.Copy(w, r.Body)
	})
	h.HandleFunc("/early", func(w http.ResponseWriter, r *http.Request) { http.Error(w, "no", http.StatusRequestEntityTooLarge) })
	h.HandleFunc("/hints", func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(103)
		w.WriteHeader(204)
	})
	h.HandleFunc("/never", func(w http.ResponseWriter, r *http.Request) {
		select {
		case <-r.Context().Done():
		case <-time.After(time.Second): // of HTTP/1.1, with a body that nobody reads
		}
	})
	h.HandleFunc("/long", func(w http.ResponseWriter, r *http.Request) {
		for b := make([]byte, 10000); ; {
			if _, err := w.Write(b); err != nil {
				return
			}
		}
	})
	h.HandleFunc("/broken", func(w http.ResponseWriter, r *http.Request) {
		io.WriteString(w, "part")
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	})
	paths := []string{"/echo", "/early", "/hints", "/never", "/long", "/broken"}

	r := newTestRelay3(t, nil)
	targets := map[string]string{"app": httpTarget(t, h), "h2c": http2Target(t, h)}
	services := []string{"app", "https://app.test", "h2c", "https://h2c.test"}
	ts := r.connect("office", targets, services...)
	loop := ts.session.loop

	const workers, requests = 12, 30
	var clients []*http.Client
	var mu sync.Mutex
	var conns []*quic.Conn // their client forgets some of them, open
	var wg sync.WaitGroup
	statuses := make(chan string, workers*requests)
	for i := range workers {
		rnd := rand.New(rand.NewPCG(uint64(i), 1))
		c := []func() *http.Client{r.client, r.client2, r.client3}[i%3]()
		clients = append(clients, c)
		if tr, ok := c.Transport.(*quichttp3.Transport); ok {
			dial := tr.Dial
			tr.Dial = func(ctx context.Context, addr string, tlsConfig *tls.Config, config *quic.Config) (*quic.Conn, error) {
				conn, err := dial(ctx, addr, tlsConfig, config)
				if err == nil {
					mu.Lock()
					conns = append(conns, conn)
					mu.Unlock()
				}
				return conn, err
			}
		}
		wg.Add(1)
		go func() {
			defer wg.Done()
			for range requests {
				host := []string{"app", "h2c"}[rnd.IntN(2)]
				path := paths[rnd.IntN(len(paths))]
				patience := time.Duration(1+rnd.IntN(150)) * time.Millisecond
				if path != "/never" && rnd.IntN(4) == 0 {
					patience = 30 * time.Second // however slow the machine is, some things come to their end
				}
				ctx, cancel := context.WithTimeout(t.Context(), patience)
				method, body := "GET", io.Reader(nil)
				if rnd.IntN(2) == 0 {
					method, body = "POST", strings.NewReader(strings.Repeat("x", rnd.IntN(300000)))
					if rnd.IntN(2) == 0 {
						body = io.MultiReader(body) // of unknown length
					}
				}
				req, err := http.NewRequestWithContext(ctx, method, "https://"+host+".test"+path, body)
				if err != nil {
					t.Error(err)
				} else if res, err := c.Do(req); err == nil {
					io.CopyN(io.Discard, res.Body, int64(rnd.IntN(200000)))
					res.Body.Close()
					statuses <- fmt.Sprint(res.StatusCode)
				} else {
					statuses <- "none"
				}
				cancel()
				if rnd.IntN(10) == 0 {
					c.CloseIdleConnections()
				}
			}
		}()
	}
	stop, stopped := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(stopped)
		for {
			select {
			case <-stop:
				return
			case <-time.After(100 * time.Millisecond):
			}
			onLoop(loop.Loop, ts.cut)
			ts.resume(0)
		}
	}()
	wg.Wait()
	close(stop)
	<-stopped
	close(statuses)
	seen := make(map[string]int)
	for s := range statuses {
		seen[s]++
	}
	t.Log(seen)
	if seen["200"] == 0 || seen["204"] == 0 || seen["413"] == 0 || seen["none"] == 0 {
		t.Error("too little has happened")
	}

	var left string
	defer func() {
		if left != "" {
			t.Error(left)
		}
	}()
	eventually(t, "the end of everything", func() bool {
		left = ""
		mu.Lock()
		for _, c := range conns {
			c.CloseWithError(0, "")
		}
		mu.Unlock()
		for _, c := range clients {
			c.CloseIdleConnections() // some are made for requests that had been given up, and come late
		}
		onLoop(loop.Loop, func() {
			s := ts.session
			for _, name := range []string{"app", "h2c"} {
				svc := s.service(name)
				if svc.visitors != 0 || svc.active != 0 || len(svc.held) != 0 {
					left += fmt.Sprintf("%s: %d visitors, %d active, %d held; ", name, svc.visitors, svc.active, len(svc.held))
				}
				for _, u := range svc.conns {
					if n := u.h2.Streams() + len(u.calls); n > 0 {
						left += fmt.Sprintf("%s: %d streams to the target; ", name, n)
					}
				}
			}
			if len(s.held) != 0 {
				left += fmt.Sprintf("session: %d held; ", len(s.held))
			}
		})
		for _, l := range r.loops {
			onLoop(l.Loop, func() {
				if l.first != nil {
					left += "a visitor in " + fmt.Sprint(l.first.phase) + "; "
				}
			})
		}
		r.admission.mu.Lock()
		defer r.admission.mu.Unlock()
		if r.admission.n != 0 || r.admission.spare != 0 || len(r.admission.addrs) != 0 {
			left += fmt.Sprintf("admission: %d, %d spare, %d addresses", r.admission.n, r.admission.spare, len(r.admission.addrs))
		}
		return left == ""
	})
}
