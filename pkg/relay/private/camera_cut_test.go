package private

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"culvert.dev/pkg/memnet"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// source is a camera on a network of its own that plays 25 pictures a second, the first of each second a key frame.
type source struct {
	t      *testing.T
	net    *memnet.Network
	ln     net.Listener
	size   int           // of a packet, of which a picture has ten
	silent chan struct{} // closed: it plays, and sends nothing
	stop   chan struct{}
	ended  chan struct{}

	mu      sync.Mutex
	sent    int           // pictures
	stalled time.Duration // the longest time it had to wait for the relay
}

// counts returns what has been sent, and how long it was stalled.
func (s *source) counts() (sent int, stalled time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sent, s.stalled
}

func newSource(t *testing.T, size int) *source {
	s := &source{t: t, net: &memnet.Network{}, size: size, silent: make(chan struct{}), stop: make(chan struct{}), ended: make(chan struct{})}
	var err error
	if s.ln, err = s.net.Listen("camera:554"); err != nil {
		t.Fatal(err)
	}
	go s.serve()
	return s
}

func (s *source) dial(ctx context.Context) (net.Conn, error) {
	return s.net.Dial(ctx, "tcp", "camera:554")
}

func (s *source) end() {
	close(s.stop)
	s.ln.Close()
	<-s.ended
}

func (s *source) serve() {
	defer close(s.ended)
	c, err := s.ln.Accept()
	if err != nil {
		return
	}
	defer c.Close()
	p := &rtspPeer{t: s.t, r: bufio.NewReader(c), w: c, fill: strings.NewReplacer()}
	for playing := false; !playing; {
		request := p.read()
		answer := "RTSP/1.0 200 OK\nCSeq: " + field(request, "CSeq") + "\nSession: 1\n"
		switch method, _, _ := strings.Cut(request, " "); method {
		case "DESCRIBE":
			answer += "Content-Type: application/sdp\n\nv=0\ns=-\nm=video 0 RTP/AVP 96\na=rtpmap:96 H264/90000\na=control:track1\n"
		case "SETUP":
			answer += "Transport: " + field(request, "Transport") + "\n"
		case "PLAY":
			playing = true
		}
		p.send(answer)
	}
	tick := time.NewTicker(40 * time.Millisecond)
	defer tick.Stop()
	for sent := 0; ; sent++ {
		select {
		case <-s.stop:
			return
		case <-s.silent:
			<-s.stop
			return
		case <-tick.C:
		}
		var b []byte
		for _, frame := range picture(0, sent, 10, s.size, sent%25 == 0) {
			b = append(b, frame...)
		}
		began := time.Now()
		if _, err := c.Write(b); err != nil {
			return
		}
		s.mu.Lock()
		s.stalled = max(s.stalled, time.Since(began))
		s.sent++
		s.mu.Unlock()
	}
}

// viewer is a player on the public side. It checks that pictures are whole, in order, and after a gap begin with a key frame.
type viewer struct {
	t      *testing.T
	stream *tunnel.Stream
	demux  rtsp.Demux
	closed chan error

	answers int
	began   time.Time // the camera began to play
	number  int       // of the last picture; -1
	left    int       // packets of it that have not come
	gaps    []int     // how many pictures are missing
	late    time.Duration
}

func (w *world) view(service string) *viewer {
	w.t.Helper()
	v := &viewer{t: w.t, closed: make(chan error, 1), number: -1}
	w.on(func() {
		header, err := relay.Header{Kind: relay.KindConnect, Service: service, Scheme: "rtsp"}.Append(nil)
		if err != nil {
			w.t.Error(err)
		}
		if v.stream, err = w.hub.session.Open(header); err != nil {
			w.t.Error(err)
			return
		}
		v.stream.SetHandler(v)
		const url = "rtsp://cams.example.com/gate"
		out := streamWriter{v.stream}
		fmt.Fprintf(out, "DESCRIBE %s RTSP/1.0\r\nCSeq: 1\r\n\r\n", url)
		fmt.Fprintf(out, "SETUP %s/track1 RTSP/1.0\r\nCSeq: 2\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n", url)
		fmt.Fprintf(out, "PLAY %s RTSP/1.0\r\nCSeq: 3\r\nSession: 1\r\n\r\n", url)
	})
	return v
}

func (v *viewer) OnData(b []byte) int {
	var m rtsp.Message
	used := 0
	for {
		k, n, err := v.demux.Next(b[used:], &m)
		if err != nil {
			v.t.Error(err)
			return len(b)
		}
		switch k {
		case rtsp.None:
			return used
		case rtsp.Response:
			if v.answers++; m.Status != 200 {
				v.t.Errorf("status %d", m.Status)
			}
			if v.answers == 3 {
				v.began = time.Now()
			}
		case rtsp.Frame:
			v.frame(b[used : used+n])
		}
		used += n
	}
}

func (v *viewer) frame(b []byte) {
	number := numberOf(b)
	if number == v.number {
		v.left--
		return
	}
	key := number%25 == 0
	switch {
	case v.left != 0:
		v.t.Errorf("%d packets of picture %d are missing", v.left, v.number)
	case number < v.number:
		v.t.Errorf("picture %d after %d", number, v.number)
	case number > v.number+1:
		v.gaps = append(v.gaps, number-v.number-1)
		if !key {
			v.t.Errorf("picture %d, which is none to begin with, after %d", number, v.number)
		}
	}
	v.number, v.left = number, 9
	if key {
		v.left++
	}
	v.late = max(v.late, time.Since(v.began.Add(time.Duration(number+1)*40*time.Millisecond)))
}

func (v *viewer) OnEOF()            { v.stream.CloseWrite() }
func (v *viewer) OnDrain()          {}
func (v *viewer) OnClose(err error) { v.closed <- err }

// watching runs f while a viewer watches a source by a link that f cuts.
func watching(t *testing.T, deadline time.Duration, size int, f func(t *testing.T, w *world, s *source, v *viewer), options ...func(*world)) {
	svc := published(t, tcpService(t, "gate", "rtsp://camera/live"), "rtsp://cams.example.com/gate")
	svc.Deadline = deadline
	var s *source
	inWorld(t, []Service{svc}, func(t *testing.T, w *world) {
		time.Sleep(time.Second) // until there is a link
		v := w.view("gate")
		time.Sleep(time.Second)
		f(t, w, s, v)
		s.end()
		<-v.closed
	}, append(options, func(w *world) {
		s = newSource(w.t, size)
		w.relay.dialCamera = s.dial
	})...)
}

// outage has the links lost, and no new one for some time.
func (w *world) outage(d time.Duration) {
	w.net.Cut()
	w.net.Silence(true)
	time.Sleep(d)
	w.net.Silence(false)
}

// A minute of video whose link is cut every ten seconds arrives whole, and the camera does not notice.
func TestCameraCuts(t *testing.T) {
	watching(t, 0, 2000, func(t *testing.T, w *world, s *source, v *viewer) {
		for range 6 {
			w.net.Cut()
			time.Sleep(10 * time.Second)
		}
		synctest.Wait()
		sent, stalled := s.counts()
		w.on(func() {
			if v.number < sent-2 || len(v.gaps) > 0 || sent < 60*25 {
				t.Errorf("picture %d of %d, gaps %v", v.number, sent, v.gaps)
			}
		})
		if stalled > 100*time.Millisecond {
			t.Errorf("the camera was stalled for %v", stalled)
		}
	})
}

// Nor does it when there is no link for ten seconds, or one that has fallen silent. After half a minute it has to wait, and still
// nothing is lost.
func TestCameraOutage(t *testing.T) {
	for _, test := range []struct {
		name   string
		outage time.Duration
		silent bool
		stall  time.Duration // at the most
	}{
		{"cut", 10 * time.Second, false, 100 * time.Millisecond},
		{"silent", 9 * time.Second, true, 100 * time.Millisecond},
		{"long", 30 * time.Second, false, time.Minute},
	} {
		t.Run(test.name, func(t *testing.T) {
			watching(t, 0, 2000, func(t *testing.T, w *world, s *source, v *viewer) {
				if test.silent {
					w.net.Silence(true)
					time.Sleep(test.outage)
					w.net.Silence(false)
				} else {
					w.outage(test.outage)
				}
				time.Sleep(40 * time.Second)
				synctest.Wait()
				sent, stalled := s.counts()
				w.on(func() {
					if v.number < sent-2 || len(v.gaps) > 0 {
						t.Errorf("picture %d of %d, gaps %v", v.number, sent, v.gaps)
					}
				})
				if stalled > test.stall || test.stall == time.Minute && stalled < time.Second {
					t.Errorf("the camera was stalled for %v", stalled)
				}
			})
		})
	}
}

// With a deadline, what is older is dropped when the link is back, whole pictures up to a key frame, and the log has it once.
func TestCameraDeadline(t *testing.T) {
	for _, silent := range []bool{false, true} {
		watching(t, 2*time.Second, 2000, func(t *testing.T, w *world, s *source, v *viewer) {
			if silent {
				w.net.Silence(true)
				time.Sleep(9 * time.Second)
				w.net.Silence(false)
			} else {
				w.outage(10 * time.Second)
			}
			time.Sleep(10 * time.Second)
			synctest.Wait()
			sent, stalled := s.counts()
			var lost int
			w.on(func() {
				if v.number < sent-2 || len(v.gaps) != 1 {
					t.Errorf("picture %d of %d, gaps %v", v.number, sent, v.gaps)
					return
				}
				// What the links had when they were lost comes late.
				lost = v.gaps[0]
				if lost < 6*25 || lost > 12*25 {
					t.Errorf("%d pictures are lost", lost)
				}
				v.late = 0
			})
			if stalled > 100*time.Millisecond {
				t.Errorf("the camera was stalled for %v", stalled)
			}
			if n := w.relay.Status().Services[0].Dropped; n != uint64(lost) || w.log.count("too late") != 1 {
				t.Errorf("%d pictures were dropped, %d are counted; log:\n%s", lost, n, w.log.b.String())
			}
			time.Sleep(5 * time.Second)
			w.on(func() {
				if v.late > 100*time.Millisecond {
					t.Errorf("pictures are %v late", v.late)
				}
			})
		})
	}
}

// Without a cut nothing is lost or late, deadline or not: 20 Mbit/s over a path of 50 ms.
func TestCameraSteady(t *testing.T) {
	for _, deadline := range []time.Duration{0, 300 * time.Millisecond} {
		watching(t, deadline, 10000, func(t *testing.T, w *world, s *source, v *viewer) {
			time.Sleep(5 * time.Second) // windows grow
			w.on(func() { v.late = 0 })
			time.Sleep(10 * time.Second)
			synctest.Wait()
			sent, _ := s.counts()
			w.on(func() {
				if v.number < sent-5 || len(v.gaps) > 0 || v.late > 100*time.Millisecond {
					t.Errorf("deadline %v: picture %d of %d, gaps %v, %v late", deadline, v.number, sent, v.gaps, v.late)
				}
			})
		}, func(w *world) { w.net.Delay, w.net.Buffer = 25*time.Millisecond, 1<<20 })
	}
}

// A camera that plays and falls silent, or does not answer, ends the stream.
func TestCameraSilent(t *testing.T) {
	watching(t, 0, 1000, func(t *testing.T, w *world, s *source, v *viewer) {
		close(s.silent)
		began := time.Now()
		err := <-v.closed
		v.closed <- nil
		if d := time.Since(began); d < 55*time.Second || d > 70*time.Second || !strings.Contains(err.Error(), "timeout") {
			t.Errorf("ended after %v with %v", d, err)
		}
		if w.log.count("has sent nothing for a minute") != 1 {
			t.Error("the log does not say why")
		}
	})
}

// What many watch ends soon when the service has got another camera, so that they are shown that; a single visitor's
// stream goes on.
func TestCameraMoves(t *testing.T) {
	watching(t, 0, 1000, func(t *testing.T, w *world, s *source, v *viewer) {
		reload := func(target string, fanOut bool) {
			svc := published(t, tcpService(t, "gate", target), "rtsp://cams.example.com/gate")
			svc.Camera = &relay.Camera{FanOut: fanOut}
			if err := w.relay.Reload([]Service{svc}); err != nil {
				t.Error(err)
			}
		}
		for _, fanOut := range []bool{false, true} {
			target := "rtsp://camera/live"
			if !fanOut {
				target = "rtsp://other/live"
			}
			reload(target, fanOut)
			select {
			case err := <-v.closed:
				t.Fatalf("%s, fan_out %v: ended with %v", target, fanOut, err)
			case <-time.After(3 * lookAtCameraInterval):
			}
		}
		reload("rtsp://other/live", true)
		select {
		case err := <-v.closed:
			if err != nil {
				t.Errorf("ended with %v", err)
			}
		case <-time.After(lookAtCameraInterval + time.Second):
			t.Fatal("the old camera is watched on")
		}
		v.closed <- nil
	})
}

// A camera that does not answer ends the stream, too, with an answer to the visitor.
func TestCameraAnswersNot(t *testing.T) {
	svc := published(t, tcpService(t, "gate", "rtsp://camera/live"), "rtsp://cams.example.com/gate")
	mem := &memnet.Network{}
	ln, err := mem.Listen("camera:554")
	if err != nil {
		t.Fatal(err)
	}
	inWorld(t, []Service{svc}, func(t *testing.T, w *world) {
		synctest.Wait()
		d := &download{closed: make(chan error, 1)}
		w.on(func() {
			header, err := relay.Header{Kind: relay.KindConnect, Service: "gate", Scheme: "rtsp"}.Append(nil)
			if err != nil {
				t.Error(err)
			}
			if d.stream, err = w.hub.session.Open(header); err != nil {
				t.Error(err)
				return
			}
			d.stream.SetHandler(d)
			fmt.Fprint(streamWriter{d.stream}, "OPTIONS rtsp://cams.example.com/gate RTSP/1.0\r\nCSeq: 1\r\n\r\n")
		})
		c, err := ln.Accept()
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		began := time.Now()
		if err := <-d.closed; err != nil {
			t.Error(err)
		}
		if wait := time.Since(began); wait < answerTimeout || wait > 2*answerTimeout {
			t.Errorf("ended after %v", wait)
		}
		if got := d.got.String(); got != "RTSP/1.0 504 Gateway Time-out\r\nCSeq: 1\r\n\r\n" {
			t.Errorf("answer %q", got)
		}
		if w.log.count("the camera does not answer") != 1 {
			t.Error("the log does not say why")
		}
	}, func(w *world) {
		w.relay.dialCamera = func(ctx context.Context) (net.Conn, error) { return mem.Dial(ctx, "tcp", "camera:554") }
	})
}
