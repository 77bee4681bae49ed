package rtsp

import (
	"bytes"
	"slices"
	"strings"
	"testing"
)

const hikvisionSDP = "v=0\r\no=- 1109162014219182 1109162014219192 IN IP4 192.168.1.64\r\ns=Media Presentation\r\ne=NONE\r\nb=AS:5050\r\nt=0 0\r\n" +
	"a=control:rtsp://192.168.1.64:554/Streaming/Channels/101/?transportmode=unicast&profile=Profile_1\r\n" +
	"m=video 0 RTP/AVP 96\r\nc=IN IP4 0.0.0.0\r\nb=AS:5000\r\na=recvonly\r\na=x-dimensions:1920,1080\r\n" +
	"a=control:rtsp://192.168.1.64:554/Streaming/Channels/101/trackID=1?transportmode=unicast&profile=Profile_1\r\n" +
	"a=rtpmap:96 H264/90000\r\na=fmtp:96 profile-level-id=420029; packetization-mode=1; sprop-parameter-sets=Z00AKY2NQDwBE/LgLcBAQFAAAD6AAAw1DoYACYFAABfXgu8uNDAATAoAAL68F3lwoA==,aO44gA==\r\n" +
	"a=Media_header:MEDIAINFO=494D4B48010300000400000100000000000000000000000000000000000000000000000000000000;\r\na=appversion:1.0\r\n"

func TestSDP(t *testing.T) {
	m := Mapping{Visitor: "rtsp://v/gate", Camera: "rtsp://192.168.1.64/Streaming/Channels/101"}
	got, named := m.AppendSDP(nil, []byte(hikvisionSDP))
	want := strings.NewReplacer(
		"IP4 192.168.1.64", "IP4 0.0.0.0",
		"rtsp://192.168.1.64:554/Streaming/Channels/101/?transportmode=unicast&profile=Profile_1", "rtsp://v/gate/~0",
		"rtsp://192.168.1.64:554/Streaming/Channels/101/trackID=1?transportmode=unicast&profile=Profile_1", "rtsp://v/gate/~1",
	).Replace(hikvisionSDP)
	if string(got) != want || len(named) != 2 {
		t.Errorf("%s\nwant\n%s\n%q", got, want, named)
	}
	for _, test := range []struct {
		what, camera, in, want string
		named                  []string
	}{
		{"relative", "rtsp://h.lan/x", "a=control:trackID=1\r\n", "a=control:trackID=1\r\n", nil},
		{"aggregate", "rtsp://h.lan/x", "a=control:*\n", "a=control:*\n", nil},
		{"empty", "rtsp://h.lan/x", "a=control:\n", "a=control:\n", nil},
		{"spaces and case", "rtsp://h.lan/x", "a=Control: rtsp://H.lan/x/1 \n", "a=control:rtsp://v/gate/1\n", nil},
		{"Dahua", "rtsp://h.lan/cam/realmonitor?channel=1&subtype=0", "a=control:rtsp://h.lan:554/cam/realmonitor?channel=1&subtype=0/trackID=0\r\n", "a=control:rtsp://v/gate/trackID=0\r\n", nil},
		{"outside, twice", "rtsp://h.lan/x", "a=control:rtsp://h.lan/y\na=control:rtsp://10.1.1.1/z\na=control:rtsp://h.lan/y\n",
			"a=control:rtsp://v/gate/~0\na=control:rtsp://v/gate/~1\na=control:rtsp://v/gate/~0\n", []string{"rtsp://h.lan/y", "rtsp://10.1.1.1/z"}},
		{"a password in a query", "rtsp://h.lan/x", "a=control:rtsp://h.lan/x/1?user=admin&password=secret\n", "a=control:rtsp://v/gate/~0\n",
			[]string{"rtsp://h.lan/x/1?user=admin&password=secret"}},
		{"absolute path", "rtsp://h.lan:8554/x", "a=control:/x/1\na=control:/y\n", "a=control:rtsp://v/gate/1\na=control:rtsp://v/gate/~0\n", []string{"rtsp://h.lan:8554/y"}},
		{"host in a query", "rtsp://h.lan/x", "a=control:rtsp://h.lan/x/1?at=H.LAN\na=control:t?h.lan\n", "a=control:rtsp://v/gate/~0\na=control:rtsp://v/gate/~1\n",
			[]string{"rtsp://h.lan/x/1?at=H.LAN", "rtsp://h.lan/x/t?h.lan"}},
		{"IPv6", "rtsp://[fd00::20]/x", "o=- 1 1 IN IP6 fd00::20\nc=IN IP6 ff02::1/3\ns=at fd00::20!\n", "o=- 1 1 IN IP6 ::\nc=IN IP6 ::\ns=at 0.0.0.0!\n", nil},
		{"multicast", "rtsp://h.lan/x", "c=IN IP4 239.1.2.3/127/2\r\n", "c=IN IP4 0.0.0.0\r\n", nil},
		{"odd origins", "rtsp://h.lan/x", "o=IP4 1 1 in ip4 10.1.1.1\no=rubbish h.lan\nc=\n", "o=IP4 1 1 in ip4 0.0.0.0\no=rubbish 0.0.0.0\nc=\n", nil},
		{"host of one word", "rtsp://cam/x", "s=cam\na=fmtp:96 sprop=cam\n", "s=cam\na=fmtp:96 sprop=cam\n", nil},
		{"other text", "rtsp://h.lan/x", "u=http://h.lan/\na=tool:h.lan h.lan", "u=http://0.0.0.0/\na=tool:0.0.0.0 0.0.0.0", nil},
		{"rubbish at the end", "rtsp://h.lan/x", "v=0\r\r\n\x00\x00\xff\n\n", "v=0\r\r\n\x00\x00\xff\n\n", nil},
	} {
		m := Mapping{Visitor: "rtsp://v/gate", Camera: test.camera}
		got, named := m.AppendSDP([]byte(">"), []byte(test.in))
		if string(got) != ">"+test.want || !slices.Equal(named, test.named) {
			t.Errorf("%s: %q %q\nwant %q %q", test.what, got, named, test.want, test.named)
		}
	}
	m = Mapping{Visitor: "rtsp://v/gate", Camera: "rtsp://h.lan/live?x=1", Base: "rtsp://h.lan/live/"}
	got, named = m.AppendSDP(nil, []byte("a=control:*\na=control:trackID=1\n"))
	if string(got) != "a=control:*\na=control:rtsp://v/gate/~0\n" || !slices.Equal(named, []string{"rtsp://h.lan/live/trackID=1"}) {
		t.Errorf("below another base: %q %q", got, named)
	}
	var many strings.Builder
	for i := range 100 {
		many.WriteString("a=control:rtsp://other/" + strings.Repeat("x", i) + "\n")
	}
	if got, named := m.AppendSDP(nil, []byte(many.String())); len(named) != MaxMedia || bytes.Count(got, []byte("\n")) != MaxMedia {
		t.Errorf("%d names, %d lines", len(named), bytes.Count(got, []byte("\n")))
	}
}

// Whatever a camera writes, its address does not come out, and each control attribute is relative or the visitor's.
func FuzzSDP(f *testing.F) {
	f.Add([]byte(hikvisionSDP))
	f.Add([]byte("o=- 1 1 IN IP6 ::1\nc=IN IP4 192.168.1.64/2\na=control:192.168.1.64\na=control:/192.168.1.64"))
	f.Fuzz(func(t *testing.T, sdp []byte) {
		m := Mapping{Visitor: "rtsp://v/gate", Camera: "rtsp://192.168.1.64/Streaming/Channels/101"}
		got, named := m.AppendSDP(nil, sdp)
		if bytes.Contains(got, []byte("192.168.1.64")) {
			t.Fatalf("%q becomes %q", sdp, got)
		}
		for line := range bytes.Lines(got) {
			v, ok := bytes.CutPrefix(bytes.TrimSpace(line), []byte("a=control:"))
			if ok && bytes.Contains(v, []byte("://")) && !bytes.HasPrefix(v, []byte("rtsp://v/gate")) {
				t.Fatalf("%q becomes %q", sdp, got)
			}
		}
		if len(named) > MaxMedia {
			t.Fatal(len(named))
		}
	})
}
