package public

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"

	"culvert.dev/pkg/relay"
)

// What is looked at often says the same as the status does.
func TestFigures(t *testing.T) {
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/broken" {
			w.WriteHeader(500)
		}
		io.WriteString(w, "hello")
	})
	r := newTestRelay(t, false, nil)
	echo := target(t, func(c net.Conn, br *bufio.Reader) { io.Copy(c, br) })
	s := r.connect("office", map[string]string{"app": httpTarget(t, h), "port": echo, "lost": "127.0.0.1:1"}, "app", "https://app.test", "port", "tcp://127.0.0.1:0", "lost", "https://lost.test")
	r.connect("home", nil, "web", "https://web.home.test")
	addr := s.port()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	io.WriteString(c, "12345")
	if _, err := io.ReadFull(c, make([]byte, 5)); err != nil {
		t.Fatal(err)
	}
	for _, url := range []string{"https://app.test/", "https://app.test/broken", "https://lost.test/"} {
		res, err := r.client().Get(url)
		if err != nil {
			t.Fatal(err)
		}
		io.Copy(io.Discard, res.Body)
		res.Body.Close()
	}
	var f Figures
	got := func(name string) (one ServiceFigures) {
		for _, s := range f.Services {
			if s.Name == name {
				one = s
			}
		}
		return one
	}
	eventually(t, "three requests", func() bool {
		if err := r.Figures(t.Context(), &f); err != nil {
			t.Fatal(err)
		}
		return got("app").Requests == 2 && got("lost").Requests == 1
	})
	if len(f.Sites) != 2 || len(f.Services) != 4 || f.Requests != 3 || f.Streams == 0 || f.Visitors == 0 {
		t.Errorf("got %+v", f)
	}
	st := r.Status(t.Context())
	for _, session := range st.Sessions {
		for _, want := range session.Services {
			if one := got(want.Name); one.Site != session.Site || one.Visitors != want.Visitors || one.Received != want.Received || one.Sent != want.Sent {
				t.Errorf("got %+v, the status has %+v", one, want)
			}
		}
	}
	for _, one := range f.Sites {
		for _, want := range st.Traffic {
			if one.Name == want.Site && (one.Received != want.Received || one.Sent != want.Sent) {
				t.Errorf("got %+v, the status has %+v", one, want)
			}
		}
	}
	for name, want := range map[string][3]uint64{"app": {2, 1}, "lost": {1, 1}, "port": {1, 0}, "web": {0, 0}} {
		if one := got(name); one.Requests != want[0] || one.Errors != want[1] {
			t.Errorf("got %+v of %s, want %d, and %d wrong", one, name, want[0], want[1])
		}
	}
	if one := got("port"); one.Received != 5 || one.Sent != 5 || one.Visitors != 1 {
		t.Errorf("got %+v", one)
	}
	onLoop(s.session.loop.Loop, s.cut)
	if err := r.Figures(t.Context(), &f); err != nil {
		t.Fatal(err)
	}
	for _, one := range f.Sites {
		if want := (SiteFigures{Name: one.Name, Sessions: 1, Active: true, Lost: one.Name == "office", Streams: one.Streams, RTT: one.RTT, Links: one.Links, Received: one.Received, Sent: one.Sent}); one != want || one.Lost != (one.Links == 0) {
			t.Errorf("got %+v", one)
		}
	}
	// A look that is given up leaves nothing that somebody else still writes to.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	busy := make(chan struct{})
	for _, l := range r.loops {
		l.Post(func() { <-busy })
	}
	if err := r.Figures(ctx, &f); err == nil || f.parts != nil {
		t.Errorf("got %v", err)
	}
	close(busy)
	if err := r.Figures(t.Context(), &f); err != nil || len(f.Services) != 4 || f.Draining {
		t.Errorf("got %v, %+v", err, f)
	}
	r.draining.Store(true)
	if err := r.Figures(t.Context(), &f); err != nil || !f.Draining {
		t.Errorf("while it drains: %v, %+v", err, f)
	}
}

// The bytes of many connections are counted a part at a time, whichever of them go meanwhile, and none twice.
func TestSettle(t *testing.T) {
	r := newTestRelay(t, false, nil)
	s := r.connect("office", nil, "app", "https://app.test")
	onLoop(s.session.loop.Loop, func() {
		svc := s.session.service("app")
		var all []*splice
		streams := make([]countedStream, 3*maxSettled)
		for i := range streams {
			streams[i].n = 10
			j := &splice{service: svc, stream: &streams[i]}
			push(&svc.joined, j)
			all = append(all, j)
		}
		svc.settle(1)
		if svc.received != 10*maxSettled {
			t.Errorf("%d bytes after one look", svc.received)
		}
		svc.drop(svc.cursor)
		svc.drop(all[0])
		svc.drop(all[len(all)-1])
		for range 4 {
			svc.settle(2)
		}
		if want := uint64(10 * (3*maxSettled - 2)); svc.received != want || svc.sent != 2*want {
			t.Errorf("%d and %d bytes, want %d", svc.received, svc.sent, want)
		}
		if in, out := svc.bytes(); in != svc.received || out != svc.sent {
			t.Errorf("%d and %d bytes in the status", in, out)
		}
		streams[5].n = 11
		if in, _ := svc.bytes(); in != svc.received+1 {
			t.Errorf("%d bytes in the status", in)
		}
		svc.joined, svc.cursor = nil, nil
	})
}

// countedStream is a stream of which nothing is asked but how much it has carried.
type countedStream struct {
	stream
	n uint64
}

func (s *countedStream) Bytes() (received, written uint64) { return 2 * s.n, s.n }

// BenchmarkFigures is a look at a relay with so many services.
func BenchmarkFigures(b *testing.B) {
	for _, n := range []int{3, 1000} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			r := newTestRelay(b, false, nil)
			s := r.connect("office", nil)
			var list []relay.Announcement
			for i := range n {
				list = append(list, relay.Announcement{Name: fmt.Sprint("s", i), Publish: fmt.Sprintf("https://s%d.test", i), TargetScheme: "http"})
			}
			replies := make(chan []relay.AnnounceReply, 1)
			onLoop(s.session.loop.Loop, func() { s.announce(list, replies) })
			<-replies
			var f Figures
			b.ReportAllocs()
			for b.Loop() {
				if err := r.Figures(b.Context(), &f); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
