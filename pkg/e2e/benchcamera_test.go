//go:build linux

package e2e

import (
	"bufio"
	"encoding/base64"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/textproto"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The camera of the benchmark shows nothing: each of its frames is one packet with the time at which it was sent. Neither
// it nor its players are those of the other tests, because those of many would be all that is measured.
const (
	smallFrame = 400              // bytes of an RTP packet
	slots      = 1000 / frameRate // milliseconds between two frames of a player
	frameSize  = 4 + smallFrame   // with the head of interleaving
	sentAt     = 4 + 12 + 1       // where the time is
	sessionSDP = "v=0\r\no=- 1 1 IN IP4 127.0.0.1\r\ns=camera\r\nt=0 0\r\nm=video 0 RTP/AVP 96\r\na=rtpmap:96 H264/90000\r\na=control:trackID=0\r\n"
)

// cameraWorker is the state of a camera process.
type cameraWorker struct {
	mu      sync.Mutex
	players [slots][]*net.TCPConn // by the millisecond of their frames
	next    int
}

// runCamera is main of a camera process. It ends with the process. Those who ask for /silent get no frames.
func runCamera() int {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	b, _ := json.Marshal(ln.Addr().String())
	fmt.Printf("%s\n", b)
	c := &cameraWorker{}
	go c.show()
	for {
		conn, err := ln.Accept()
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			return 1
		}
		go c.serve(conn.(*net.TCPConn))
	}
}

// serve answers the requests of a connection.
func (c *cameraWorker) serve(conn *net.TCPConn) {
	defer conn.Close()
	r := bufio.NewReaderSize(conn, 1024)
	for {
		method, url, head, err := readRequest(r)
		if err != nil {
			return
		}
		more := ""
		switch method {
		case "OPTIONS":
			more = "Public: OPTIONS, DESCRIBE, SETUP, PLAY, TEARDOWN\r\n\r\n"
		case "DESCRIBE":
			more = fmt.Sprintf("Content-Base: %s/\r\nContent-Type: application/sdp\r\nContent-Length: %d\r\n\r\n%s", url, len(sessionSDP), sessionSDP)
		case "SETUP":
			more = "Session: 12345678;timeout=600\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n"
		default:
			more = "Session: 12345678\r\n\r\n"
		}
		if _, err := fmt.Fprintf(conn, "RTSP/1.0 200 OK\r\nCSeq: %s\r\n%s", head.Get("Cseq"), more); err != nil {
			return
		}
		if method == "PLAY" && !strings.Contains(url, "silent") {
			c.mu.Lock()
			i := c.next % slots
			c.next++
			c.players[i] = append(c.players[i], conn)
			c.mu.Unlock()
		}
	}
}

// readRequest reads a request without a body, and passes frames by.
func readRequest(r *bufio.Reader) (method, url string, head textproto.MIMEHeader, err error) {
	for {
		b, err := r.Peek(4)
		if err != nil {
			return "", "", nil, err
		}
		if b[0] != '$' {
			break
		}
		if _, err := r.Discard(4 + int(binary.BigEndian.Uint16(b[2:]))); err != nil {
			return "", "", nil, err
		}
	}
	t := textproto.NewReader(r)
	line, err := t.ReadLine()
	if err != nil {
		return "", "", nil, err
	}
	method, line, _ = strings.Cut(line, " ")
	url, _, _ = strings.Cut(line, " ")
	head, err = t.ReadMIMEHeader()
	return method, url, head, err
}

// show sends the frames, those of each millisecond to some of the players.
func (c *cameraWorker) show() {
	b := make([]byte, frameSize)
	b[0] = '$'
	binary.BigEndian.PutUint16(b[2:], smallFrame)
	b[4], b[5] = 0x80, 0x80|96
	b[4+12] = 0x41
	began := time.Now()
	for n := 0; ; n++ {
		if wait := time.Until(began.Add(time.Duration(n) * time.Millisecond)); wait > 0 {
			time.Sleep(wait)
		}
		binary.BigEndian.PutUint16(b[6:], uint16(n/slots))
		binary.BigEndian.PutUint32(b[8:], uint32(n*90))
		c.mu.Lock()
		c.players[n%slots] = slices.DeleteFunc(c.players[n%slots], func(conn *net.TCPConn) (gone bool) {
			raw, err := conn.SyscallConn()
			if err == nil {
				err = raw.Control(func(fd uintptr) {
					binary.BigEndian.PutUint64(b[sentAt:], uint64(time.Now().UnixNano()))
					if n, err := unix.Write(int(fd), b); err != nil || n < len(b) {
						gone = true // or it is too slow, and what comes would not be whole
					}
				})
			}
			return gone || err != nil
		})
		c.mu.Unlock()
	}
}

// player begins to watch, over a connection or a tunnel of two, and returns the connection that the frames come by.
func (c *client) player(i int) (down *net.TCPConn, err error) {
	nc, err := c.dial(i)
	if err != nil {
		return nil, err
	}
	nc.SetDeadline(time.Now().Add(30 * time.Second))
	defer nc.SetDeadline(time.Time{})
	up, r := nc, textproto.NewReader(bufio.NewReaderSize(nc, 4096))
	encode := func(text string) string { return text }
	if strings.HasSuffix(c.Kind, "http") {
		encode = func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
		half := "%s /%s HTTP/1.0\r\nHost: %s\r\nx-sessioncookie: session%d\r\n%s: application/x-rtsp-tunnelled\r\n\r\n"
		if _, err := fmt.Fprintf(nc, half, "GET", c.Path, c.Host, i, "Accept"); err != nil {
			return nil, err
		}
		if line, err := r.ReadLine(); err != nil || line != "HTTP/1.0 200 OK" {
			return nil, fmt.Errorf("GET: %q %w", line, err)
		}
		if _, err := r.ReadMIMEHeader(); err != nil {
			return nil, err
		}
		if up, err = c.dial(i); err != nil {
			return nil, err
		}
		c.mu.Lock()
		c.ups = append(c.ups, up)
		c.mu.Unlock()
		if _, err := fmt.Fprintf(up, half, "POST", c.Path, c.Host, i, "Content-Type"); err != nil {
			return nil, err
		}
	}
	url := fmt.Sprintf("rtsp://%s/%s", c.Host, c.Path)
	for n, request := range []string{
		"DESCRIBE " + url, "SETUP " + url + "/trackID=0", "PLAY " + url + "/",
	} {
		if _, err := io.WriteString(up, encode(fmt.Sprintf("%s RTSP/1.0\r\nCSeq: %d\r\nSession: 12345678\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\n\r\n", request, n+1))); err != nil {
			return nil, err
		}
		line, err := r.ReadLine()
		if err != nil || line != "RTSP/1.0 200 OK" {
			return nil, fmt.Errorf("%s: %q %w", request, line, err)
		}
		head, err := r.ReadMIMEHeader()
		if err != nil {
			return nil, err
		}
		length := 0
		fmt.Sscan(head.Get("Content-Length"), &length)
		if _, err := r.R.Discard(length); err != nil {
			return nil, err
		}
	}
	// What has come of the first frame is passed by here, so that others begin with a whole one.
	if n := r.R.Buffered(); n%frameSize > 0 {
		_, err = io.ReadFull(r.R, make([]byte, n-n%frameSize+frameSize))
	}
	return nc.(*net.TCPConn), err
}

// watchCameras starts as many players as there are Conns, and measures how long the frames of a window take.
func (c *client) watchCameras() (out outcome, err error) {
	epoll, err := unix.EpollCreate1(0)
	if err != nil {
		return out, err
	}
	fds := make([]int, c.Conns)
	var next atomic.Int64
	var wg sync.WaitGroup
	for range 32 {
		wg.Go(func() {
			for i := int(next.Add(1)) - 1; i < c.Conns; i = int(next.Add(1)) - 1 {
				// The runtime's poller is not to be woken by each frame, too.
				down, err := c.player(i)
				if err == nil {
					var f *os.File
					if f, err = down.File(); err == nil {
						fds[i], err = unix.Dup(int(f.Fd()))
						f.Close()
						down.Close()
						unix.SetNonblock(fds[i], true)
					}
				}
				if err == nil {
					err = unix.EpollCtl(epoll, unix.EPOLL_CTL_ADD, fds[i], &unix.EpollEvent{Events: unix.EPOLLIN, Fd: int32(fds[i])})
				}
				if err != nil {
					c.fail(fmt.Errorf("player %d: %w", i, err))
					return
				}
			}
		})
	}
	wg.Wait()
	if c.err != nil {
		return out, c.err
	}
	c.Pids["load"] = []int{os.Getpid()}
	var times []time.Duration
	var before map[string]float64
	began := time.Now()
	from, until := began.Add(c.Warm), began.Add(c.Warm+c.Window)
	rest := map[int][]byte{} // what has come of a frame
	b := make([]byte, 64<<10)
	events := make([]unix.EpollEvent, 1024)
	for now := began; now.Before(until); {
		n, err := unix.EpollWait(epoll, events, 100)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			return out, err
		}
		now = time.Now()
		if before == nil && now.After(from) {
			before = c.cpu()
			from = now
		}
		for _, e := range events[:max(n, 0)] {
			fd := int(e.Fd)
			have := copy(b, rest[fd])
			n, err := unix.Read(fd, b[have:])
			if errors.Is(err, syscall.EAGAIN) {
				continue
			} else if err != nil || n == 0 {
				return out, fmt.Errorf("a player's stream has ended: %w", err)
			}
			data := b[:have+n]
			for ; len(data) >= frameSize; data = data[frameSize:] {
				if data[0] != '$' || data[1] != 0 {
					return out, fmt.Errorf("%q for a frame", data[:8])
				}
				if before != nil {
					times = append(times, time.Since(time.Unix(0, int64(binary.BigEndian.Uint64(data[sentAt:])))))
				}
			}
			if len(data) > 0 {
				rest[fd] = slices.Clone(data)
			} else if have > 0 {
				delete(rest, fd)
			}
		}
	}
	out = outcome{Seconds: time.Since(from).Seconds(), Ops: int64(len(times)), CPU: c.cpu(), Open: c.Conns}
	for k := range out.CPU {
		out.CPU[k] -= before[k]
	}
	if len(times) > 0 {
		slices.Sort(times)
		out.P50, out.P99, out.Max = times[len(times)/2], times[len(times)*99/100], times[len(times)-1]
	}
	return out, nil
}

// cameraSystem is a camera process, and relays with it as a service.
func cameraSystem(t testing.TB) (camera *process, addr string, s *system) {
	t.Helper()
	camera = start(t, "camera", worker(t, "camera"))
	if err := json.Unmarshal([]byte(camera.await(t, 0, `"`)), &addr); err != nil {
		t.Fatal(err)
	}
	s = configureCameras(t, nil,
		service{"gate", "rtsp://cams.example.com/gate", "rtsp://" + addr + "/cam"},
		service{"silent", "rtsp://cams.example.com/silent", "rtsp://" + addr + "/silent"})
	s.startPublic()
	s.startPrivate()
	return camera, addr, s
}

// cameraPlayers measures many players of small streams, of the camera itself and over HTTP through both relays.
func (t *bench) cameraPlayers(players int) func(*testing.B, string) {
	return func(b *testing.B, row string) {
		camera, addr, s := cameraSystem(b)
		before := map[string]int64{"public": s.public.rss(), "private": s.private.rss()}
		after := map[string]int64{}
		m := map[string][]outcome{}
		for range *benchRounds {
			for name, j := range map[string]job{
				"direct":  {Kind: "rtsp", Addr: addr, Path: "cam", Host: addr},
				"culvert": {Kind: "rtsp-http", Addr: s.http, Path: "gate", Host: "cams.example.com"},
			} {
				if !slices.Contains(strings.Split(*benchPaths, ","), name) {
					continue
				}
				j.Conns, j.Warm, j.Window = players, 2*time.Second, *benchWindow+3*time.Second
				j.Pids = map[string][]int{"ends": camera.pids()}
				if name == "culvert" {
					j.Pids["public"], j.Pids["private"] = s.public.pids(), s.private.pids()
				}
				l := startLoad(b, nil, j)
				out := l.result(b)
				for side, p := range map[string]*process{"public": s.public, "private": s.private} {
					after[side] = p.rss()
				}
				l.stop()
				m[name] = append(m[name], out)
			}
		}
		figure := fmt.Sprintf("%d players over HTTP, ", players)
		t.add(cell{row: row, figure: figure + "frames", unit: "/s"}, m, opsPerSecond)
		t.add(cell{row: row, figure: "delay of a frame, p50", unit: "us"}, m, func(o outcome) float64 { return micros(o.P50) })
		t.add(cell{row: row, figure: "delay of a frame, p99", unit: "us"}, m, func(o outcome) float64 { return micros(o.P99) })
		perFrame := func(names ...string) func(outcome) float64 {
			return func(o outcome) (sum float64) {
				for _, name := range names {
					sum += o.CPU[name]
				}
				return sum / float64(o.Ops) * 1e6
			}
		}
		t.add(cell{row: row, figure: "CPU of camera and players", unit: "us a frame"}, m, perFrame("ends", "load"))
		delete(m, "direct")
		t.add(cell{row: row, figure: "CPU of the public side", unit: "us a frame"}, m, perFrame("public"))
		t.add(cell{row: row, figure: "CPU of the private side", unit: "us a frame"}, m, perFrame("private"))
		for _, side := range []string{"public", "private"} {
			t.cells = append(t.cells, cell{row: row, figure: side + " side, per session that plays", unit: "B",
				values: map[string]float64{"culvert": float64(after[side]-before[side]) / float64(players)}})
		}
	}
}

// silentCameras measures what a session over HTTP costs by which nothing comes.
func (t *bench) silentCameras(b *testing.B, row string) {
	_, _, s := cameraSystem(b)
	n := min(*benchSilent/4, descriptors()/4)
	before := [2]int64{s.public.rss(), s.private.rss()}
	l := startLoad(b, nil, job{Kind: "idle-rtsp-http", Addr: s.http, Path: "silent", Host: "cams.example.com", Conns: n})
	open := l.result(b).Open
	for i, p := range []*process{s.public, s.private} {
		t.cells = append(t.cells, cell{row: row, figure: fmt.Sprintf("%s side, per session, %d", p.name, open), unit: "B",
			values: map[string]float64{"culvert": float64(settled(p)-before[i]) / float64(max(open, 1))}})
	}
	l.stop()
}
