package httpd

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/evloop"
)

// inBubble serves s, with its default timeouts, to what connect returns, in the time of a synctest
// bubble.
func inBubble(t *testing.T, s *Server, f func(t *testing.T, connect func() *peer)) {
	synctest.Test(t, func(t *testing.T) {
		core, err := evloop.New(evloop.Config{Portable: true, Loops: 1})
		if err != nil {
			t.Fatal(err)
		}
		defer s.Wait()
		defer core.Close()
		time.Sleep(time.Hour) // a loop that was asleep for long starts its timeouts now
		f(t, func() *peer {
			ours, theirs := net.Pipe()
			t.Cleanup(func() { ours.Close() })
			attached := make(chan error)
			l := core.Loop(0)
			l.Post(func() {
				c, err := l.Attach(theirs)
				if err == nil {
					s.Serve(c, l, Peer{})
				}
				attached <- err
			})
			if err := <-attached; err != nil {
				t.Fatal(err)
			}
			return &peer{t, ours, bufio.NewReader(ours)}
		})
	})
}

// within wants f to take between from and to.
func within(t *testing.T, from, to time.Duration, f func()) {
	t.Helper()
	start := time.Now()
	f()
	if d := time.Since(start); d < from || d > to {
		t.Errorf("took %v, want %v to %v", d, from, to)
	}
}

func TestTimeouts(t *testing.T) {
	s := handler(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/think":
			time.Sleep(5 * time.Minute)
			io.WriteString(w, "42")
		case "/flood":
			var err error
			for err == nil {
				_, err = w.Write(make([]byte, 32<<10))
			}
			if !errors.Is(err, errStalled) {
				t.Errorf("writing to a client that does not read: %v", err)
			}
		default:
			_, err := io.ReadAll(r.Body)
			fmt.Fprint(w, err)
		}
	})(t)
	inBubble(t, s, func(t *testing.T, connect func() *peer) {
		p := connect()
		within(t, 75*time.Second, 81*time.Second, p.wantEOF) // idle before the first request; 5 s of them to linger

		p = connect()
		p.send(get)
		p.want("GET", "200 OK", "<nil>")
		time.Sleep(70 * time.Second)
		p.send(get)
		p.want("GET", "200 OK", "<nil>")
		within(t, 75*time.Second, 81*time.Second, p.wantEOF) // idle after it

		p = connect()
		p.send(get[:20])
		time.Sleep(6 * time.Second)
		p.send(get[20:22]) // a byte now and then does not help
		within(t, 4*time.Second, 5*time.Second, func() { p.wantStatus("408 Request Timeout") })
		p.wantEOF()

		p = connect()
		p.send("PUT / HTTP/1.1", "Host: a", "Content-Length: 10", "", "hello")
		time.Sleep(50 * time.Second)
		p.send("more")
		within(t, 60*time.Second, 61*time.Second, func() { p.want("PUT", "200 OK", "i/o timeout") })
		p.wantEOF()

		p = connect()
		p.send("GET /think HTTP/1.1", "Host: a", "", "")
		p.want("GET", "200 OK", "42") // handlers may take their time

		p = connect()
		p.send("GET /flood HTTP/1.1", "Host: a", "", "")
		for range 20 { // a slow client is not a stalled one
			time.Sleep(55 * time.Second)
			if _, err := p.r.Discard(200 << 10); err != nil {
				t.Fatal(err)
			}
		}
		time.Sleep(130 * time.Second)
		p.Close() // and the handler has returned, or s.Wait would not
	})
}
