package private

import (
	"log/slog"
	"runtime"
	"testing"
	"time"

	"culvert.dev/pkg/camera"
	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/forward"
	"culvert.dev/pkg/memnet"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/tunnel"
)

// discard is a handler that drops what comes.
type discard struct{ n int }

func (d *discard) OnData(b []byte) int { d.n += len(b); return len(b) }
func (d *discard) OnEOF()              {}
func (d *discard) OnDrain()            {}
func (d *discard) OnClose(error)       {}

// tap is an end of which a benchmark calls the handler.
type tap struct{ forward.Handler }

func (t *tap) SetHandler(h forward.Handler) { t.Handler = h }
func (t *tap) Write([]byte)                 {}
func (t *tap) Pending() int                 { return 0 }
func (t *tap) HighMark() int                { return 64 << 10 }
func (t *tap) Pause()                       {}
func (t *tap) Resume()                      {}
func (t *tap) CloseWrite()                  {}
func (t *tap) Close()                       {}
func (t *tap) Abort(error)                  {}

// BenchmarkCamera is what a camera sends on its way into the session, by the proxy and by forward.Splice, which looks at
// nothing: packets of 1400 bytes, 20 in a read.
func BenchmarkCamera(b *testing.B) {
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer core.Close()
	loop := core.Loop(0)
	var video []byte
	for _, frame := range picture(0, 1, 20, 1380, false) {
		video = append(video, frame...)
	}
	bench := func(name string, begin func(p *peer, st *tunnel.Stream) evloop.Handler) {
		b.Run(name, func(b *testing.B) {
			b.SetBytes(int64(len(video)))
			b.ReportAllocs()
			done := make(chan struct{})
			loop.Post(func() {
				defer close(done)
				p := &peer{relay: &Relay{log: slog.New(slog.DiscardHandler)}, loop: loop}
				var h evloop.Handler
				here := tunnel.New(tunnel.Config{Client: true, Accept: func(st *tunnel.Stream, _ []byte) { h = begin(p, st) }}, loop.Now())
				there := tunnel.New(tunnel.Config{}, loop.Now())
				in, out := &pipe{loop: loop, to: here}, &pipe{loop: loop, to: there}
				in.back, out.back = out, in
				here.Attach(out, tunnel.RoleInteractive, loop.Now())
				there.Attach(in, tunnel.RoleInteractive, loop.Now())
				flush := func() {
					for more := true; more; more = in.sent || out.sent {
						in.sent, out.sent = false, false
						here.Flush(loop.Now())
						there.Flush(loop.Now())
					}
				}
				flush()
				st, err := there.Open([]byte("x"))
				if err != nil {
					b.Error(err)
					return
				}
				got := &discard{}
				st.SetHandler(got)
				flush()
				for b.Loop() {
					if n := h.OnData(video); n != len(video) {
						b.Errorf("%d bytes used", n)
						return
					}
					flush()
				}
				if got.n < b.N*len(video) {
					b.Errorf("%d bytes of %d have come", got.n, b.N*len(video))
				}
				here.Close(nil)
				there.Close(nil)
			})
			<-done
		})
	}
	bench("splice", func(p *peer, st *tunnel.Stream) evloop.Handler {
		t := &tap{}
		forward.Splice(t, st, nil)
		return t
	})
	for _, deadline := range []time.Duration{0, 2 * time.Second} {
		name := "proxy"
		if deadline > 0 {
			name = "deadline"
		}
		bench(name, func(p *peer, st *tunnel.Stream) evloop.Handler {
			near, _ := new(memnet.Network).Pipe()
			conn, err := loop.Attach(near)
			if err != nil {
				b.Error(err)
			}
			svc := &service{}
			svc.Deadline = deadline
			c := &proxy{peer: p, service: svc, visitor: st}
			c.begin(conn)
			if c.late != nil {
				c.late.add(0, &camera.Track{Media: "video", Codec: "H264"})
			}
			return cameraSide{c}
		})
	}
}

// BenchmarkCameraSilent is the memory of a session of a camera that is set up and silent, both of its ends in the tunnel and a
// connection without a goroutine included.
func BenchmarkCameraSilent(b *testing.B) {
	const sessions = 500
	header, err := relay.Header{Kind: relay.KindConnect, Service: "gate", Scheme: "rtsp"}.Append(nil)
	if err != nil {
		b.Fatal(err)
	}
	for b.Loop() {
		f := newFakeCamera(b)
		s := newSite(b, f.service(b, "admin:secret", "/live"))
		heap := func() int64 {
			var m runtime.MemStats
			runtime.GC()
			runtime.GC()
			runtime.ReadMemStats(&m)
			return int64(m.HeapAlloc + m.StackInuse)
		}
		goroutines, before := runtime.NumGoroutine(), heap()
		for range sessions {
			s.do(func() {
				st, err := s.far.Open(header)
				if err != nil {
					b.Error(err)
					return
				}
				st.SetHandler(&discard{})
				st.Write([]byte("SETUP rtsp://cams.example.com/gate/trackID=1 RTSP/1.0\r\nCSeq: 1\r\nTransport: RTP/AVP/TCP;interleaved=0-1\r\n\r\n"))
			})
			c, err := f.ln.Accept()
			if err != nil {
				b.Fatal(err)
			}
			defer c.Close()
			var request [1024]byte
			if _, err := c.Read(request[:]); err != nil {
				b.Fatal(err)
			}
			if _, err := c.Write([]byte("RTSP/1.0 200 OK\r\nCSeq: 1\r\nSession: 12345678;timeout=60\r\nTransport: RTP/AVP/TCP;interleaved=0-1\r\n\r\n")); err != nil {
				b.Fatal(err)
			}
		}
		for answered := false; !answered; { // the last one
			s.do(func() { answered = s.far.Stats().Received >= sessions*90 })
			time.Sleep(time.Millisecond)
		}
		b.ReportMetric(float64(heap()-before)/sessions, "bytes/session")
		b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/sessions, "goroutines/session")
	}
}
