package rtsp

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"strings"
	"testing"
)

// demux tells in words what a stream has that arrives in steps. The pieces of a long frame are one line, and
// so are blank lines, because where those are cut depends on what has arrived.
func demux(t testing.TB, stream []byte, cut func(have int) int) string {
	var out strings.Builder
	var d Demux
	var m Message
	blank := false
	var frame []byte
	have, from := 0, 0
	for have < len(stream) {
		have = min(len(stream), have+cut(have))
		for {
			// A copy whose end is the end of what has come, so that nothing can be read behind it.
			b := append([]byte(nil), stream[from:have]...)
			k, n, err := d.Next(b, &m)
			if err != nil {
				var e *Error
				if !errors.As(err, &e) || e.Status < 400 {
					t.Fatalf("error %v is no *Error with a status", err)
				}
				cseq, ok := m.CSeq()
				fmt.Fprintf(&out, "error %v %d cseq %d %t\n", err, e.Status, cseq, ok)
				return out.String()
			}
			if (k == None) != (n == 0) || n > len(b) {
				t.Fatalf("kind %d with %d of %d bytes", k, n, len(b))
			}
			from += n
			if k == None {
				break
			}
			if k == Blank {
				if !blank {
					out.WriteString("blank\n")
				}
				blank = true
				continue
			}
			blank = false
			switch k {
			case Frame:
				if d.First {
					frame = nil
				}
				frame = append(frame, b[:n]...)
				if d.First && (n < 4 || !d.Last && int(b[2])<<8|int(b[3]) <= MaxWhole) {
					t.Fatalf("a frame begins with a piece of %d bytes: %x", n, b[:min(n, 4)])
				}
				if d.Last {
					fmt.Fprintf(&out, "frame %d of %d %x\n", d.Channel, len(frame), sha256.Sum256(frame))
				}
			default:
				if len(m.Fields) > MaxFields || n > MaxMessage {
					t.Fatalf("%d fields, %d bytes", len(m.Fields), n)
				}
				out.WriteString(describe(m.Clone()) + "\n")
			}
		}
	}
	return out.String()
}

func describe(m *Message) string {
	var b strings.Builder
	if m.Status != 0 {
		fmt.Fprintf(&b, "response %d %q", m.Status, m.Reason)
	} else {
		fmt.Fprintf(&b, "request %q %q", m.Method, m.URL)
	}
	for _, f := range m.Fields {
		fmt.Fprintf(&b, " %q=%q", f.Name, f.Value)
	}
	fmt.Fprintf(&b, " body %q", m.Body)
	return b.String()
}

func all(int) int  { return 1 << 30 }
func each(int) int { return 1 }

// captures are the requests of real players and the answers of real servers.
var captures = map[string]string{
	"ffmpeg": "OPTIONS rtsp://cams.example.com:8554/gate RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: Lavf59.27.100\r\n\r\n" +
		"DESCRIBE rtsp://cams.example.com:8554/gate RTSP/1.0\r\nAccept: application/sdp\r\nCSeq: 2\r\nUser-Agent: Lavf59.27.100\r\n\r\n" +
		"SETUP rtsp://cams.example.com:8554/gate/trackID=0 RTSP/1.0\r\nTransport: RTP/AVP/UDP;unicast;client_port=21516-21517\r\nCSeq: 3\r\nUser-Agent: Lavf59.27.100\r\n\r\n" +
		"SETUP rtsp://cams.example.com:8554/gate/trackID=0 RTSP/1.0\r\nTransport: RTP/AVP/TCP;unicast;interleaved=0-1\r\nCSeq: 4\r\nUser-Agent: Lavf59.27.100\r\n\r\n" +
		"PLAY rtsp://cams.example.com:8554/gate/ RTSP/1.0\r\nRange: npt=0.000-\r\nCSeq: 5\r\nUser-Agent: Lavf59.27.100\r\nSession: 4f1a\r\n\r\n" +
		"GET_PARAMETER rtsp://cams.example.com:8554/gate/ RTSP/1.0\r\nCSeq: 6\r\nUser-Agent: Lavf59.27.100\r\nSession: 4f1a\r\n\r\n" +
		"TEARDOWN rtsp://cams.example.com:8554/gate/ RTSP/1.0\r\nCSeq: 7\r\nUser-Agent: Lavf59.27.100\r\nSession: 4f1a\r\n\r\n",
	"GStreamer": "OPTIONS rtsp://cams.example.com:8003/gate RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: GStreamer/1.22.0\r\n" +
		"User-Agent: RealMedia Player Version 6.0.9.1235 (linux-2.0-libc6-i386-gcc2.95)\r\nClientChallenge: 9e26d33f2984236010ef6253fb1887f7\r\n" +
		"CompanyID: KnKV4M4I/B2FjJ1TToLycw==\r\nGUID: 00000000-0000-0000-0000-000000000000\r\nRegionData: 0\r\nPlayerStarttime: [28/03/2003:22:50:23 00:00]\r\n" +
		"ClientID: Linux_2.4_6.0.9.1235_play32_RN01_EN_586\r\nDate: Sun, 22 Nov 2026 10:00:00 GMT\r\n\r\n" +
		"SETUP rtsp://cams.example.com:8003/gate/stream=0 RTSP/1.0\r\nCSeq: 3\r\nUser-Agent: GStreamer/1.22.0\r\n" +
		"Transport: RTP/AVP;unicast;client_port=42910-42911,RTP/AVP;multicast,RTP/AVP/TCP;unicast;interleaved=0-1\r\nDate: Sun, 22 Nov 2026 10:00:00 GMT\r\n\r\n" +
		"PLAY rtsp://cams.example.com:8003/gate/ RTSP/1.0\r\nCSeq: 5\r\nUser-Agent: GStreamer/1.22.0\r\nRange: npt=0-\r\nSession: 4f1a\r\nDate: Sun, 22 Nov 2026 10:00:00 GMT\r\n\r\n" +
		"$\x01\x00\x08\x80\xc9\x00\x01\x12\x34\x56\x78" +
		"PAUSE rtsp://cams.example.com:8003/gate/ RTSP/1.0\r\nCSeq: 6\r\nSession: 4f1a\r\n\r\n",
	"live555": "DESCRIBE rtsp://cams.example.com:8003/gate RTSP/1.0\r\nCSeq: 3\r\nAuthorization: Digest username=\"v\", realm=\"r\", nonce=\"n\", uri=\"rtsp://cams.example.com:8003/gate\", response=\"0123456789abcdef0123456789abcdef\"\r\n" +
		"User-Agent: openRTSP (LIVE555 Streaming Media v2026.06.01)\r\nAccept: application/sdp\r\n\r\n" +
		"$\x01\x00\x04\x81\xcb\x00\x01",
	"QuickTime": "DESCRIBE rtsp://cams.example.com/gate RTSP/1.0\r\nCSeq: 1\r\nAccept: application/sdp\r\nBandwidth: 384000\r\nAccept-Language: en-US\r\nUser-Agent: QuickTime/7.7.9 (qtver=7.7.9;os=Windows NT 6.1Service Pack 1)\r\n\r\n" +
		"SETUP rtsp://cams.example.com/gate/trackID=1 RTSP/1.0\r\nCSeq: 2\r\nTransport: RTP/AVP/TCP;unicast\r\nx-transport-options: late-tolerance=2.900000\r\nx-retransmit: our-retransmit\r\nx-dynamic-rate: 1\r\n\r\n" +
		"SET_PARAMETER rtsp://cams.example.com/gate/ RTSP/1.0\r\nCSeq: 5\r\nSession: 4f1a\r\nContent-Type: text/parameters\r\nContent-Length: 12\r\n\r\nx-a: 1\r\nx: 2",
	"gortsplib": "OPTIONS rtsp://cams.example.com:8554/gate RTSP/1.0\r\nCSeq: 1\r\nUser-Agent: gortsplib\r\n\r\n",
	"server": "RTSP/1.0 200 OK\r\nCSeq: 2\r\nContent-Base: rtsp://10.0.0.20/h264/\r\nContent-Type: application/sdp\r\nContent-Length: 5\r\n\r\nv=0\r\n" +
		"$\x00\x00\x05abcdeRTSP/1.0 200 OK\r\nCSeq: 5\r\nRTP-Info: url=rtsp://10.0.0.20/h264/trackID=1;seq=1;rtptime=2\r\n\r\n$\x01\x00\x00",
	"LF":      "\r\n\r\nRTSP/1.0 404 Not Found\nCSeq: 3\n\nRTSP/1.0 200\ncseq:4\ncontent-LENGTH:  2 \n\nhi\r\n\r\n$\x00\x00\x01x",
	"version": "OPTIONS rtsp://cams.example.com/ RTSP/2.0\r\nCSeq: 7\r\n\r\n",
	"long":    "$\x07\xff\xff" + strings.Repeat("whole", 13107) + "OPTIONS * RTSP/1.0\r\nCSeq: 8\r\n\r\n",
	"http":    "GET /gate HTTP/1.0\r\n\r\n",
	"TLS":     "\x16\x03\x01\x02\x00",
}

func TestDemuxIsTheSameForEverySplit(t *testing.T) {
	for name, stream := range captures {
		want := demux(t, []byte(stream), all)
		if len(stream) < 1<<12 {
			for at := 1; at < len(stream); at++ {
				if got := demux(t, []byte(stream), func(have int) int {
					if have == 0 {
						return at
					}
					return 1 << 30
				}); got != want {
					t.Fatalf("%s cut at %d:\n%s\nwant\n%s", name, at, got, want)
				}
			}
		}
		if got := demux(t, []byte(stream), each); got != want {
			t.Fatalf("%s byte by byte:\n%s\nwant\n%s", name, got, want)
		}
	}
}

func FuzzDemux(f *testing.F) {
	for _, stream := range captures {
		f.Add([]byte(stream), uint8(1))
		f.Add([]byte(stream), uint8(77))
	}
	f.Fuzz(func(t *testing.T, stream []byte, step uint8) {
		want := demux(t, stream, all)
		if got := demux(t, stream, func(int) int { return int(step) + 1 }); got != want {
			t.Fatalf("in steps of %d:\n%s\nwhole:\n%s", int(step)+1, got, want)
		}
	})
}

// What was parsed and written anew is parsed to the same.
func FuzzRoundTrip(f *testing.F) {
	for _, stream := range captures {
		f.Add([]byte(stream))
	}
	f.Fuzz(func(t *testing.T, stream []byte) {
		var d Demux
		var m Message
		for len(stream) > 0 {
			k, n, err := d.Next(stream, &m)
			if err != nil || k == None {
				return
			}
			if k == Request || k == Response {
				var b []byte
				if k == Request {
					b = AppendRequest(nil, m.Method, m.URL, m.Fields, m.Body)
				} else {
					b = AppendResponse(nil, m.Status, "", m.Fields, m.Body)
				}
				var again Message
				k2, n2, err := new(Demux).Next(b, &again)
				if err != nil && len(b) > MaxHead {
					return // what was tight has grown: ": " for ":"
				}
				if err != nil || k2 != k || n2 != len(b) {
					t.Fatalf("%q: kind %d, %d of %d, %v", b, k2, n2, len(b), err)
				}
				without := func(m *Message) string {
					c := m.Clone()
					var keep []Field
					for _, f := range c.Fields {
						if !Is(f.Name, "Content-Length") {
							keep = append(keep, f)
						}
					}
					c.Fields, c.Reason = keep, nil
					return describe(c)
				}
				if without(&m) != without(&again) {
					t.Fatalf("%s\nwas written as %q\nand read as %s", describe(&m), b, describe(&again))
				}
			}
			stream = stream[n:]
		}
	})
}

func TestMessageRefused(t *testing.T) {
	head := "OPTIONS rtsp://h/ RTSP/1.0\r\nCSeq: 9\r\n"
	for _, test := range []struct {
		what, in string
		status   int
		cseq     bool // known for the answer
	}{
		{"control character", head + "X: a\x01b\r\n\r\n", 400, true},
		{"NUL", head + "X: a\x00b\r\n\r\n", 400, true},
		{"CR alone", head + "X: a\rb\r\n\r\n", 400, true},
		{"folded field", head + "X: a\r\n b\r\n\r\n", 400, true},
		{"field without a name", head + ": a\r\n\r\n", 400, true},
		{"field without a colon", head + "hello\r\n\r\n", 400, true},
		{"two lengths", head + "Content-Length: 1\r\nContent-Length: 2\r\n\r\nab", 400, true},
		{"list of lengths", head + "Content-Length: 1, 1\r\n\r\na", 400, true},
		{"signed length", head + "Content-Length: +1\r\n\r\na", 400, true},
		{"empty length", head + "Content-Length:\r\n\r\n", 400, true},
		{"huge length", head + "Content-Length: 99999999999999999999\r\n\r\n", 400, true},
		{"long body", head + "Content-Length: 65536\r\n\r\n", 413, true},
		{"long URL", "OPTIONS rtsp://h/" + strings.Repeat("a", MaxURL) + " RTSP/1.0\r\n\r\n", 414, false},
		{"long start line", "OPTIONS rtsp://h/" + strings.Repeat("a", MaxHead), 414, false},
		{"long head", head + "X: " + strings.Repeat("a", MaxHead), 400, false},
		{"many fields", head + strings.Repeat("X: a\r\n", MaxFields) + "\r\n", 400, false},
		{"version 2.0", "OPTIONS rtsp://h/ RTSP/2.0\r\nCSeq: 9\r\n\r\n", 505, true},
		{"version of a response", "RTSP/2.0 200 OK\r\nCSeq: 9\r\n\r\n", 505, true},
		{"HTTP", "GET / HTTP/1.1\r\n", 400, false},
		{"TLS", "\x16", 400, false},
		{"no URL", "OPTIONS RTSP/1.0\r\n", 400, false},
		{"two URLs", "OPTIONS a b RTSP/1.0\r\n", 400, false},
		{"status of two digits", "RTSP/1.0 20 OK\r\n", 400, false},
		{"status of letters", "RTSP/1.0 abc\r\n", 400, false},
	} {
		var m Message
		k, n, err := new(Demux).Next([]byte(test.in), &m)
		var e *Error
		if !errors.As(err, &e) {
			t.Errorf("%s: kind %d, %d bytes, no error", test.what, k, n)
			continue
		}
		if e.Status != test.status {
			t.Errorf("%s: %v has status %d, want %d", test.what, e, e.Status, test.status)
		}
		if _, ok := m.CSeq(); ok != test.cseq {
			t.Errorf("%s: CSeq known: %t, want %t", test.what, ok, test.cseq)
		}
	}
}

// A head that comes byte by byte is looked at once.
func TestDemuxLooksOnce(t *testing.T) {
	b := append([]byte("OPTIONS rtsp://h/ RTSP/1.0\r\nX: "), bytes.Repeat([]byte("a"), MaxHead-100)...)
	var d Demux
	var m Message
	for n := range b {
		if k, _, err := d.Next(b[:n+1], &m); k != None || err != nil {
			t.Fatal(k, err)
		}
		if d.scan != n+1 {
			t.Fatalf("looked at %d of %d bytes", d.scan, n+1)
		}
	}
}

func TestDemuxAllocatesNothing(t *testing.T) {
	stream := []byte("$\x00\x00\x05abcde" + captures["server"])
	var m Message
	run := func() {
		var d Demux
		for b := stream; len(b) > 0; {
			_, n, err := d.Next(b, &m)
			if err != nil || n == 0 {
				t.Fatal(n, err)
			}
			b = b[n:]
		}
	}
	run()
	if n := testing.AllocsPerRun(100, run); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestWrittenTextHasNoLineBreaks(t *testing.T) {
	b := AppendRequest(nil, []byte("PLAY"), []byte("rtsp://h/\r\nX: y"), []Field{{[]byte("A"), []byte("b\nC: d\x00")}}, nil)
	if want := "PLAY rtsp://h/  X: y RTSP/1.0\r\nA: b C: d \r\n\r\n"; string(b) != want {
		t.Errorf("%q, want %q", b, want)
	}
}

func BenchmarkDemuxFrames(b *testing.B) {
	var stream []byte
	for range 40 {
		stream = AppendFrameHead(stream, 0, 1400)
		stream = append(stream, make([]byte, 1400)...)
	}
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	var d Demux
	var m Message
	for b.Loop() {
		for rest := stream; len(rest) > 0; {
			_, n, _ := d.Next(rest, &m)
			rest = rest[n:]
		}
	}
}

func BenchmarkDemuxMessage(b *testing.B) {
	stream := []byte(captures["ffmpeg"])
	b.SetBytes(int64(len(stream)))
	b.ReportAllocs()
	var d Demux
	var m Message
	for b.Loop() {
		for rest := stream; len(rest) > 0; {
			_, n, _ := d.Next(rest, &m)
			rest = rest[n:]
		}
	}
}
