//go:build unix

package public

import (
	"bufio"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"slices"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/base"
	"github.com/bluenviron/gortsplib/v5/pkg/description"
	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/pion/rtp"

	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

var viewersOf = flag.String("viewers-of", "", "with TestViewers: the address of a server of rtsp://cams.test/gate")

const benchViewers = 100

// TestViewers is the other process of BenchmarkFanOut: players that read what they get, until the server ends. It prints
// how much that was.
func TestViewers(t *testing.T) {
	if *viewersOf == "" {
		t.Skip("it is for BenchmarkFanOut")
	}
	done := make(chan int64)
	for range benchViewers {
		c, err := net.Dial("tcp", *viewersOf)
		if err != nil {
			t.Fatal(err)
		}
		c.SetDeadline(time.Now().Add(5 * time.Minute))
		p := &testPlayer{t: t, Conn: c, br: bufio.NewReader(c)}
		m := p.ask(200, "DESCRIBE", sharedURL)
		m = p.ask(200, "SETUP", string(m.Get("content-base"))+"trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
		id, _ := rtsp.ParseSession(m.Get("session"))
		p.ask(200, "PLAY", sharedURL, "Session: "+id)
		go func() {
			n, _ := io.Copy(io.Discard, p.br)
			done <- n
		}()
	}
	fmt.Println("ready")
	sum := int64(0)
	for range benchViewers {
		sum += <-done
	}
	fmt.Println(sum)
}

// benchPackets are the packets of a picture of a camera with 2 Mbit/s: FU-A, from an IDR picture each second.
func benchPackets(n int) (list []*rtp.Packet) {
	kind, parts := byte(1), 7
	if n%25 == 0 {
		kind, parts = 5, 40
	}
	for i := range parts {
		p := &rtp.Packet{Header: rtp.Header{Version: 2, PayloadType: 96, Timestamp: uint32(n) * 3600, Marker: i == parts-1, SSRC: 7}}
		p.Payload = append([]byte{0x7c, kind, 0x9a}, make([]byte, 1200)...)
		switch i {
		case 0:
			p.Payload[1] |= 0x80
		case parts - 1:
			p.Payload[1] |= 0x40
		}
		list = append(list, p)
	}
	return list
}

// BenchmarkFanOut is a camera with a hundred players, 25 pictures a second, each operation being one: what it costs for
// what the players get, beside a server of gortsplib that has the same packets at hand.
func BenchmarkFanOut(b *testing.B) {
	b.Run("hub", func(b *testing.B) {
		r := newCameraRelay(b, false, nil)
		s := r.connect("office", nil)
		replies := make(chan []relay.AnnounceReply, 1)
		var st atomic.Pointer[tunnel.Stream]
		c := &testCamera{instead: func(stream *tunnel.Stream, _ relay.Header, m *rtsp.Message) bool {
			if string(m.Method) == "PLAY" {
				st.Store(stream)
			}
			return false
		}}
		s.camera(c)
		onLoop(s.session.loop.Loop, func() {
			s.announce([]relay.Announcement{{Name: "gate", Publish: "rtsp://cams.test/gate", TargetScheme: "rtsp", Camera: &relay.Camera{FanOut: true}}}, replies)
		})
		<-replies
		seq := uint16(0)
		benchmarkFanOut(b, r.listener("rtsp").String(), func(list []*rtp.Packet) {
			var out []byte
			for _, p := range list {
				p.SequenceNumber = seq
				seq++
				out = rtsp.AppendFrameHead(out, 0, p.MarshalSize())
				d, _ := p.Marshal()
				out = append(out, d...)
			}
			onLoop(s.session.loop.Loop, func() { st.Load().Write(out) })
		}, func() { r.Core.Close() })
	})
	b.Run("gortsplib", func(b *testing.B) {
		h := new(benchServer)
		h.server = &gortsplib.Server{Handler: h, RTSPAddress: "127.0.0.1:0", WriteQueueSize: 1024}
		if err := h.server.Start(); err != nil {
			b.Fatal(err)
		}
		media := &description.Media{Type: description.MediaTypeVideo, Formats: []format.Format{&format.H264{PayloadTyp: 96, PacketizationMode: 1}}}
		h.stream = &gortsplib.ServerStream{Server: h.server, Desc: &description.Session{Medias: []*description.Media{media}}}
		if err := h.stream.Initialize(); err != nil {
			b.Fatal(err)
		}
		benchmarkFanOut(b, h.server.NetListener().Addr().String(), func(list []*rtp.Packet) {
			for _, p := range list {
				if err := h.stream.WritePacketRTP(media, p); err != nil {
					b.Error(err)
				}
			}
		}, h.server.Close)
	})
}

// benchServer is a server of gortsplib with one stream.
type benchServer struct {
	server *gortsplib.Server
	stream *gortsplib.ServerStream
}

func (h *benchServer) OnDescribe(*gortsplib.ServerHandlerOnDescribeCtx) (*base.Response, *gortsplib.ServerStream, error) {
	return &base.Response{StatusCode: 200}, h.stream, nil
}

func (h *benchServer) OnSetup(*gortsplib.ServerHandlerOnSetupCtx) (*base.Response, *gortsplib.ServerStream, error) {
	return &base.Response{StatusCode: 200}, h.stream, nil
}

func (h *benchServer) OnPlay(*gortsplib.ServerHandlerOnPlayCtx) (*base.Response, error) {
	return &base.Response{StatusCode: 200}, nil
}

func benchmarkFanOut(b *testing.B, addr string, send func([]*rtp.Packet), end func()) {
	cmd := exec.Command(os.Args[0], "-test.run=^TestViewers$", "-viewers-of="+addr)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		b.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		b.Fatal(err)
	}
	lines := bufio.NewScanner(out)
	if !lines.Scan() || lines.Text() != "ready" {
		b.Fatalf("the players say %q", lines.Text())
	}
	var pictures [][]*rtp.Packet
	for n := range 25 {
		pictures = append(pictures, benchPackets(n))
	}
	b.ResetTimer()
	before, began := cpuTime(), time.Now()
	for n := range b.N {
		list := slices.Clone(pictures[n%25])
		for _, p := range list {
			p.Timestamp = uint32(n) * 3600
		}
		send(list)
		time.Sleep(time.Until(began.Add(time.Duration(n+1) * 40 * time.Millisecond)))
	}
	spent := cpuTime() - before
	b.StopTimer()
	time.Sleep(100 * time.Millisecond)
	end()
	var got int64
	lines.Scan()
	fmt.Sscan(lines.Text(), &got)
	for lines.Scan() {
	}
	if err := cmd.Wait(); err != nil {
		b.Fatal(err)
	}
	b.ReportMetric(spent.Seconds()/(float64(got)/1e9), "cpu-s/GB")
	b.ReportMetric(float64(got)/1e6, "MB")
}

// cpuTime is what this process has had of the processors.
func cpuTime() time.Duration {
	var u syscall.Rusage
	syscall.Getrusage(syscall.RUSAGE_SELF, &u)
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}
