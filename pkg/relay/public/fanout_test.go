package public

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/bluenviron/gortsplib/v5/pkg/format"
	"github.com/bluenviron/gortsplib/v5/pkg/format/rtph264"
	"github.com/pion/rtp"

	"culvert.dev/pkg/rtsp"
	"culvert.dev/pkg/tunnel"
)

// sharedURL is what players of a sharedCamera ask for.
const sharedURL = "rtsp://cams.test:8554/gate"

// player connects a player. Its reads and writes wait for the other side, as those of net.Pipe do.
func (c *sharedCamera) player() *testPlayer {
	c.t.Helper()
	a, b := net.Pipe()
	l := c.relay.loops[0]
	addr := netip.MustParseAddrPort("127.0.0.1:40000")
	onLoop(l.Loop, func() {
		conn, err := l.Attach(b)
		if err != nil {
			c.t.Error(err)
			return
		}
		l.serveRTSP(conn, &client{addr: addr, verdict: c.relay.admission.enter(addr.Addr())}, "rtsp", nil)
	})
	c.t.Cleanup(func() { a.Close() })
	return &testPlayer{t: c.t, Conn: a, br: bufio.NewReaderSize(a, 64<<10)}
}

// setUp goes as far as SETUP of both tracks, and returns the session.
func (p *testPlayer) setUp() string {
	p.t.Helper()
	p.ask(200, "DESCRIBE", sharedURL)
	m := p.ask(200, "SETUP", sharedURL+"/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
	id, _ := rtsp.ParseSession(m.Get("session"))
	p.ask(200, "SETUP", sharedURL+"/trackID=1", "Transport: RTP/AVP/TCP;unicast;interleaved=2-3", "Session: "+id)
	return id
}

// read reads until nothing comes for a while, and returns the frames.
func (p *testPlayer) read() (frames [][]byte) {
	p.t.Helper()
	for {
		p.SetReadDeadline(time.Now().Add(time.Second))
		k, m, f, err := p.next()
		p.SetReadDeadline(time.Time{})
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			p.br.Reset(p.Conn)
			return frames
		case err != nil:
			p.t.Fatal(err)
		case k != rtsp.Frame:
			p.t.Fatalf("got %+v among frames", m)
		}
		frames = append(frames, f)
	}
}

// pictures decodes the packets of channel 0 to access units, which must come without a gap.
func pictures(t *testing.T, frames [][]byte) (list [][][]byte) {
	t.Helper()
	d, err := (&format.H264{PayloadTyp: 96, PacketizationMode: 1}).CreateDecoder()
	if err != nil {
		t.Fatal(err)
	}
	var last *rtp.Packet
	for _, f := range frames {
		if f[1] != 0 {
			continue
		}
		p := new(rtp.Packet)
		if err := p.Unmarshal(f[4:]); err != nil {
			t.Fatal(err)
		}
		if last != nil && p.SequenceNumber != last.SequenceNumber+1 {
			t.Fatalf("packet %d comes after %d", p.SequenceNumber, last.SequenceNumber)
		}
		last = p
		au, err := d.Decode(p)
		if err == nil {
			list = append(list, au)
		} else if !errors.Is(err, rtph264.ErrMorePacketsNeeded) {
			t.Fatal(err)
		}
	}
	return list
}

// isKey reports whether an access unit is one to start at: with parameter sets and an IDR picture.
func isKey(au [][]byte) bool {
	var sps, idr bool
	for _, nal := range au {
		sps = sps || nal[0]&0x1f == 7
		idr = idr || nal[0]&0x1f == 5
	}
	return sps && idr
}

// A player of a shared camera: from DESCRIBE to TEARDOWN, with one pull for two of them.
func TestFanOut(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		p := c.player()
		m := p.ask(200, "DESCRIBE", sharedURL, "Accept: application/sdp")
		if s := string(m.Body); string(m.Get("content-base")) != sharedURL+"/" || string(m.Get("content-type")) != "application/sdp" ||
			strings.Count(s, "a=control:trackID=") != 2 || !strings.Contains(s, "sprop-parameter-sets=") || strings.Contains(s, "libavformat") {
			t.Errorf("DESCRIBE is answered by %+v\n%s", m, s)
		}
		m = p.ask(200, "SETUP", sharedURL+"/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
		id, timeout := rtsp.ParseSession(m.Get("session"))
		tr, err := rtsp.ParseTransport(m.Get("transport"))
		if err != nil || tr[0].Interleaved != (rtsp.Pair{0, 1}) || tr[0].SSRC == "" || id == "" || timeout != time.Minute {
			t.Errorf("SETUP is answered by %+v", m)
		}
		m = p.ask(200, "SETUP", sharedURL+"/trackID=1", "Transport: RTP/AVP/TCP;unicast", "Session: "+id)
		if tr, err = rtsp.ParseTransport(m.Get("transport")); err != nil || tr[0].Interleaved != (rtsp.Pair{2, 3}) {
			t.Errorf("SETUP is answered by %+v", m)
		}
		c.send(frames[:len(frames)*3/4]...) // into the second group
		time.Sleep(time.Second)
		m = p.ask(200, "PLAY", sharedURL, "Session: "+id, "Range: npt=0.000-")
		info := string(m.Get("rtp-info"))
		got := p.read()
		list := pictures(t, got)
		if len(list) == 0 || len(list) >= 10 || !isKey(list[0]) {
			t.Fatalf("%d pictures at once", len(list))
		}
		if c.service.cam.viewers != 1 {
			t.Errorf("%d viewers", c.service.cam.viewers)
		}
		want := ""
		for _, ch := range []byte{0, 2} {
			for _, f := range got {
				if f[1] == ch {
					if want != "" {
						want += ","
					}
					want += fmt.Sprintf("url=%s/trackID=%d;seq=%d;rtptime=%d", sharedURL, ch/2, binary.BigEndian.Uint16(f[6:]), binary.BigEndian.Uint32(f[8:]))
					break
				}
			}
		}
		if info != want || string(m.Get("range")) != "npt=now-" {
			t.Errorf("RTP-Info %s, the packets are %s", info, want)
		}
		c.send(frames[len(frames)*3/4:]...)
		if list = pictures(t, append(got, p.read()...)); len(list) != 10 {
			t.Errorf("%d pictures in all", len(list))
		}

		// Another one has a session of its own, and the same stream.
		q := c.player()
		other := q.setUp()
		q.ask(200, "PLAY", sharedURL+"/", "Session: "+other)
		if got = q.read(); len(pictures(t, got)) != 10 || other == id {
			t.Error("the other player does not get the same")
		}
		if s := c.methods(); strings.Count(s, "PLAY") != 1 {
			t.Errorf("the site is asked for %s", s)
		}
		for _, f := range got {
			if f[1] == 1 && f[5] == 200 && binary.BigEndian.Uint32(f[8:]) != binary.BigEndian.Uint32(got[0][12:]) {
				t.Error("a sender report is about another source")
			}
		}

		p.ask(200, "GET_PARAMETER", sharedURL, "Session: "+id)
		p.ask(200, "PAUSE", sharedURL, "Session: "+id)
		c.send(frames...)
		if got := p.read(); len(got) > 0 {
			t.Errorf("%d frames while it pauses", len(got))
		}
		p.ask(200, "PLAY", sharedURL, "Session: "+id)
		if list = pictures(t, p.read()); len(list) != 10 || !isKey(list[0]) {
			t.Errorf("%d pictures after the pause", len(list))
		}
		p.ask(200, "TEARDOWN", sharedURL, "Session: "+id)
		q.read()
		q.ask(200, "TEARDOWN", sharedURL, "Session: "+other)
		time.Sleep(hubRest + time.Second)
		synctest.Wait()
		if s := c.methods(); !strings.HasSuffix(s, "TEARDOWN") || c.service.cam.viewers != 0 || c.service.hub != nil {
			t.Errorf("at the end the site is asked for %s; %d viewers", s, c.service.cam.viewers)
		}
		id = p.setUp() // on the same connection
		p.ask(200, "PLAY", sharedURL, "Session: "+id)
	})
}

// What players ask for that cannot be.
func TestFanOutRefuses(t *testing.T) {
	share(t, func(c *sharedCamera) {
		const tcp = "Transport: RTP/AVP/TCP;unicast;interleaved=0-1"
		p := c.player()
		p.ask(461, "SETUP", sharedURL+"/trackID=0", "Transport: RTP/AVP;unicast;client_port=5000-5001")
		p.ask(461, "SETUP", sharedURL+"/trackID=0", "Transport: RTP/SAVP/TCP;unicast;interleaved=0-1")
		p.ask(459, "SETUP", sharedURL, tcp)
		p.ask(404, "SETUP", sharedURL+"/trackID=2", tcp)
		p.ask(404, "SETUP", sharedURL+"/trackID=", tcp)
		p.ask(454, "PLAY", sharedURL, "Session: x")
		id := p.setUp()
		session := "Session: " + id
		p.ask(454, "SETUP", sharedURL+"/trackID=0", tcp, "Session: other")
		p.ask(454, "PLAY", sharedURL, "Session: other")
		p.ask(454, "PLAY", sharedURL)
		p.ask(454, "GET_PARAMETER", sharedURL, "Session: other")
		p.ask(460, "PLAY", sharedURL+"/trackID=1", session)
		p.ask(460, "TEARDOWN", sharedURL+"/trackID=1", session)
		p.ask(200, "SETUP", sharedURL+"/trackID=1", "Transport: RTP/AVP/TCP;unicast;interleaved=8-9", session) // it may think again
		p.ask(200, "PLAY", sharedURL+"/", session)
		p.ask(455, "SETUP", sharedURL+"/trackID=1", tcp, session)
		if m := p.ask(200, "OPTIONS", sharedURL, session); string(m.Get("public")) != rtspPublic {
			t.Errorf("OPTIONS is answered by %+v", m)
		}
		_, frames := clip(t)
		c.send(frames[:30]...)
		for _, f := range p.read() {
			if f[1] == 2 || f[1] == 3 {
				t.Fatal("a frame on a channel that is free")
			}
		}

		one := c.player() // for which URLs of the single track are as good
		one.ask(200, "DESCRIBE", sharedURL)
		m := one.ask(200, "SETUP", sharedURL+"/?x=1/trackID=1", "Transport: RTP/AVP/TCP;unicast;interleaved=7-200")
		id, _ = rtsp.ParseSession(m.Get("session"))
		one.ask(200, "PLAY", sharedURL+"/trackID=1", "Session: "+id)
		c.send(frames[30:]...)
		for _, f := range one.read() {
			if f[1] != 7 && f[1] != 200 {
				t.Fatalf("a frame on channel %d", f[1])
			}
		}
	})
}

// A player asks before the camera has answered: all of its requests wait, and are answered in order.
func TestDescribeWaits(t *testing.T) {
	share(t, func(c *sharedCamera) {
		var late func()
		c.do(func() {
			c.answer = func(m *rtsp.Message) string {
				if string(m.Method) != "DESCRIBE" {
					return ""
				}
				cseq, st := string(m.Get("CSeq")), c.streams[0]
				late = func() { st.Write([]byte(reply(cseq, 200, c.sdp, "Content-Type: application/sdp"))) }
				return "-"
			}
		})
		p := c.player()
		p.send("DESCRIBE", sharedURL)
		p.send("SETUP", sharedURL+"/trackID=0", "Transport: RTP/AVP/TCP;unicast;interleaved=0-1")
		p.send("GET_PARAMETER", sharedURL)
		time.Sleep(5 * time.Second)
		c.do(func() { late() })
		for n := 1; n <= 3; n++ {
			p.cseq = n
			if m := p.answer(); m.Status != 200 || (n == 1) != (len(m.Body) > 0) {
				t.Errorf("answer %d is %+v", n, m)
			}
		}
	})
}

func TestDescribeInVain(t *testing.T) {
	share(t, func(c *sharedCamera) {
		c.do(func() { c.site.cut() })
		p := c.player()
		began := time.Now()
		p.send("DESCRIBE", sharedURL)
		if m := p.answer(); m.Status != 503 || m.Get("retry-after") == nil {
			t.Errorf("%+v", m)
		}
		took(t, began, describeTime)
		c.do(func() { c.site.attach() })
		time.Sleep(time.Second)
		p.ask(200, "DESCRIBE", sharedURL)

		c.do(func() { c.reset = tunnel.CodeRefused })
		p.Close()
		time.Sleep(time.Minute)
		q := c.player()
		q.send("DESCRIBE", sharedURL)
		if m := q.answer(); m.Status != 502 {
			t.Errorf("%+v", m)
		}
		q.expectEnd()
	})
}

// Who does not read loses whole groups of pictures, sees no gap, and delays nobody; and nothing piles up for it.
func TestSlowPlayer(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		slow, fast := c.player(), c.player()
		for _, p := range []*testPlayer{slow, fast} {
			id := p.setUp()
			p.ask(200, "PLAY", sharedURL, "Session: "+id)
		}
		const rounds = 20
		shift := func(n int) (out [][]byte) {
			for _, f := range frames {
				f = bytes.Clone(f)
				if f[5]&0x7f < 127 && f[5] != 72 && f[1]&1 == 0 {
					of := uint16(0)
					for _, g := range frames {
						if g[1] == f[1] {
							of++
						}
					}
					binary.BigEndian.PutUint16(f[6:], binary.BigEndian.Uint16(f[6:])+uint16(n)*of)
					binary.BigEndian.PutUint32(f[8:], binary.BigEndian.Uint32(f[8:])+uint32(n)*180000)
				}
				out = append(out, f)
			}
			return out
		}
		var got [][]byte
		for n := range rounds {
			c.send(shift(n)...)
			got = append(got, fast.read()...)
		}
		if list := pictures(t, got); len(list) != 20*rounds {
			t.Errorf("the fast one has %d pictures of %d", len(list), 20*rounds)
		}
		var pending int
		c.do(func() {
			for p := c.relay.loops[0].players; p != nil; p = p.after {
				pending = max(pending, p.end.Pending())
			}
		})
		if pending > 64<<10+64<<10 {
			t.Errorf("%d bytes are queued", pending)
		}
		late := slow.read()
		list := pictures(t, late)
		if len(list) == 0 || len(list) >= 20*rounds || !isKey(list[0]) {
			t.Errorf("the slow one has %d pictures", len(list))
		}
		if c.service.cam.dropped == 0 {
			t.Error("nothing is counted as dropped")
		}
		c.send(shift(rounds)...)
		if list := pictures(t, append(late, slow.read()...)); len(list) < 20 || !isKey(list[len(list)-20]) {
			t.Error("it does not go on")
		}
	})
}

// Two hundred players at a time.
func TestManyPlayers(t *testing.T) {
	share(t, func(c *sharedCamera) {
		_, frames := clip(t)
		const many = 200
		counts := make(chan int, many)
		ready := make(chan bool, many)
		for range many {
			p := c.player()
			go func() {
				id := p.setUp()
				p.ask(200, "PLAY", sharedURL, "Session: "+id)
				ready <- true
				counts <- len(pictures(t, p.read()))
			}()
		}
		for range many {
			<-ready
		}
		c.send(frames...)
		for range many {
			if n := <-counts; n != 20 {
				t.Errorf("a player has %d pictures", n)
			}
		}
		if s := c.methods(); strings.Count(s, "PLAY") != 1 {
			t.Errorf("the site is asked for %s", s)
		}
	})
}

// Who has a session and plays nothing is not waited for.
func TestRestingPlayer(t *testing.T) {
	share(t, func(c *sharedCamera) {
		p := c.player()
		p.setUp()
		began := time.Now()
		p.SetDeadline(time.Now().Add(10 * time.Minute))
		if b, err := io.ReadAll(p.br); err != nil || len(b) > 0 {
			t.Errorf("got %q, %v", b, err)
		}
		if d := time.Since(began); d < restingTime || d > restingTime+farewell+time.Second {
			t.Errorf("it has had %v", d)
		}
	})
}
