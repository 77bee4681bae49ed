package rtsp

import (
	"bytes"
	"encoding/base64"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestTransport(t *testing.T) {
	for _, test := range []struct {
		who, in string
		want    []Transport
		written string // the last of them
	}{
		{"ffmpeg", "RTP/AVP/TCP;unicast;interleaved=0-1",
			[]Transport{{Protocol: "RTP/AVP", TCP: true, Unicast: true, Interleaved: Pair{0, 1}, HasInterleaved: true}}, "RTP/AVP/TCP;unicast;interleaved=0-1"},
		{"ffmpeg over UDP", "RTP/AVP/UDP;unicast;client_port=21516-21517",
			[]Transport{{Protocol: "RTP/AVP", Unicast: true, ClientPort: Pair{21516, 21517}, HasClientPort: true}}, "RTP/AVP;unicast;client_port=21516-21517"},
		{"GStreamer", "RTP/AVP;unicast;client_port=42910-42911,RTP/AVP;multicast,RTP/AVP/TCP;unicast;interleaved=0-1",
			[]Transport{
				{Protocol: "RTP/AVP", Unicast: true, ClientPort: Pair{42910, 42911}, HasClientPort: true},
				{Protocol: "RTP/AVP", Multicast: true},
				{Protocol: "RTP/AVP", TCP: true, Unicast: true, Interleaved: Pair{0, 1}, HasInterleaved: true},
			}, "RTP/AVP/TCP;unicast;interleaved=0-1"},
		{"QuickTime", "RTP/AVP/TCP;unicast", []Transport{{Protocol: "RTP/AVP", TCP: true, Unicast: true}}, "RTP/AVP/TCP;unicast"},
		{"gortsplib publishing", "RTP/AVP/TCP;unicast;interleaved=2-3;mode=record",
			[]Transport{{Protocol: "RTP/AVP", TCP: true, Unicast: true, Interleaved: Pair{2, 3}, HasInterleaved: true, Mode: "RECORD"}}, `RTP/AVP/TCP;unicast;interleaved=2-3;mode="RECORD"`},
		{"Axis", `RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=3FA7B2C9;mode="PLAY"`,
			[]Transport{{Protocol: "RTP/AVP", TCP: true, Unicast: true, Interleaved: Pair{0, 1}, HasInterleaved: true, SSRC: "3FA7B2C9", Mode: "PLAY"}}, `RTP/AVP/TCP;unicast;interleaved=0-1;ssrc=3FA7B2C9;mode="PLAY"`},
		{"one channel", "RTP/AVP/TCP;interleaved=4", []Transport{{Protocol: "RTP/AVP", TCP: true, Interleaved: Pair{4, 5}, HasInterleaved: true}}, "RTP/AVP/TCP;interleaved=4-5"},
		{"a server over UDP", "RTP/AVP;unicast;destination=10.0.0.9;source=10.0.0.20;client_port=5000-5001;server_port=8000-8001;ssrc=1234",
			[]Transport{{Protocol: "RTP/AVP", Unicast: true, Destination: "10.0.0.9", Source: "10.0.0.20", ClientPort: Pair{5000, 5001}, HasClientPort: true, ServerPort: Pair{8000, 8001}, HasServerPort: true, SSRC: "1234"}},
			"RTP/AVP;unicast;destination=10.0.0.9;source=10.0.0.20;client_port=5000-5001;server_port=8000-8001;ssrc=1234"},
		{"multicast", "RTP/AVP;multicast;destination=239.1.2.3;port=3456-3457;ttl=16;append;layers=2",
			[]Transport{{Protocol: "RTP/AVP", Multicast: true, Destination: "239.1.2.3", Port: Pair{3456, 3457}, HasPort: true, TTL: "16", Append: true}},
			"RTP/AVP;multicast;destination=239.1.2.3;append;ttl=16;port=3456-3457"},
		{"profiles", "RTP/SAVP;unicast, rtp/avpf/tcp; interleaved = 6 - 7 ;", []Transport{
			{Protocol: "RTP/SAVP", Unicast: true},
			{Protocol: "RTP/AVPF", TCP: true, Interleaved: Pair{6, 7}, HasInterleaved: true}}, "RTP/AVPF/TCP;interleaved=6-7"},
		{"quoted", `RTP/AVP/TCP;mode="PLAY,\"x;y\"";interleaved=0-1`, []Transport{
			{Protocol: "RTP/AVP", TCP: true, Mode: `PLAY,"x;y"`, Interleaved: Pair{0, 1}, HasInterleaved: true}}, `RTP/AVP/TCP;interleaved=0-1;mode="PLAY,\"x;y\""`},
		{"other", "MP2T/H2221/UDP;unicast", []Transport{{Protocol: "MP2T/H2221", Unicast: true}}, "MP2T/H2221;unicast"},
	} {
		got, err := ParseTransport([]byte(test.in))
		if err != nil || !reflect.DeepEqual(got, test.want) {
			t.Errorf("%s: %+v %v\nwant %+v", test.who, got, err, test.want)
			continue
		}
		if s := got[len(got)-1].String(); s != test.written {
			t.Errorf("%s: written as %s, want %s", test.who, s, test.written)
		}
	}
	for _, in := range []string{
		"", ",", ";unicast", "RTP//TCP", "RTP/AVP/TCP;interleaved=256-257", "RTP/AVP/TCP;interleaved=255", "RTP/AVP;client_port=70000-70001", "RTP/AVP;client_port=x",
		"RTP/AVP/TCP;interleaved=0-", "RTP/AVP;ttl=x", strings.Repeat("RTP/AVP,", maxTransports+1), "R TP/AVP",
	} {
		if got, err := ParseTransport([]byte(in)); err == nil {
			t.Errorf("%q is taken as %+v", in, got)
		}
	}
}

func FuzzTransport(f *testing.F) {
	f.Add([]byte("RTP/AVP;unicast;client_port=42910-42911,RTP/AVP;multicast,RTP/AVP/TCP;unicast;interleaved=0-1"))
	f.Add([]byte(`RTP/AVP/TCP;unicast;interleaved=0;ssrc=3FA7B2C9;mode="PLAY";destination="a;b"`))
	f.Fuzz(func(t *testing.T, v []byte) {
		all, err := ParseTransport(v)
		if err != nil {
			return
		}
		for _, one := range all {
			again, err := ParseTransport([]byte(one.String()))
			if err != nil || len(again) != 1 || again[0] != one {
				t.Fatalf("%+v is written as %s and read as %+v, %v", one, one, again, err)
			}
		}
	})
}

func TestSession(t *testing.T) {
	for in, want := range map[string]struct {
		id      string
		timeout time.Duration
	}{
		"4f1a":                   {"4f1a", time.Minute},
		"4f1a;timeout=30":        {"4f1a", 30 * time.Second},
		" 4f1a ; Timeout = 120 ": {"4f1a", 2 * time.Minute},
		"4f1a;x=y;timeout=0":     {"4f1a", time.Minute},
		"4f1a;timeout=-1":        {"4f1a", time.Minute},
		"4f1a;timeout=999999999": {"4f1a", 24 * time.Hour},
		"":                       {"", time.Minute},
	} {
		if id, timeout := ParseSession([]byte(in)); id != want.id || timeout != want.timeout {
			t.Errorf("%q: %q %v", in, id, timeout)
		}
	}
}

func TestBase64(t *testing.T) {
	// As players send it: each message by itself, with its padding, and line breaks by some.
	var encoded, plain []byte
	for _, one := range strings.SplitAfter(captures["ffmpeg"], "\r\n\r\n") {
		encoded = base64.StdEncoding.AppendEncode(encoded, []byte(one))
		plain = append(plain, one...)
		if len(one)%2 == 0 {
			encoded = append(encoded, "\r\n "...)
		}
	}
	for at := range len(encoded) + 1 {
		var d Base64
		got, err := d.Decode(nil, encoded[:at])
		if err == nil {
			got, err = d.Decode(got, encoded[at:])
		}
		if err != nil || !bytes.Equal(got, plain) {
			t.Fatalf("cut at %d: %q %v", at, got, err)
		}
	}
	var d Base64
	var got []byte
	for i := range encoded {
		var err error
		if got, err = d.Decode(got, encoded[i:i+1]); err != nil {
			t.Fatal(err)
		}
	}
	if !bytes.Equal(got, plain) {
		t.Errorf("byte by byte: %q", got)
	}
	for _, in := range []string{"=", "A=", "A===", "AA=A", "AAA=====", "AAA-", "A\x00AA", "$\x01\x00\x00"} {
		if got, err := new(Base64).Decode(nil, []byte(in)); err == nil {
			t.Errorf("%q is taken as %q", in, got)
		}
	}
}

func FuzzBase64(f *testing.F) {
	f.Add([]byte("T1BUSU9OUw=="), uint8(3))
	f.Add([]byte("T1BU\r\nSU9OUw==T1BUSU8="), uint8(5))
	f.Fuzz(func(t *testing.T, in []byte, cut uint8) {
		var d Base64
		whole, err := d.Decode(nil, in)
		if want, plain := base64.StdEncoding.DecodeString(string(in)); plain == nil && (err != nil || !bytes.Equal(whole, want)) {
			t.Fatalf("%q: %q %v, want %q", in, whole, err, want)
		}
		at := min(int(cut), len(in))
		var e Base64
		got, err2 := e.Decode(nil, in[:at])
		if err2 == nil {
			got, err2 = e.Decode(got, in[at:])
		}
		if !bytes.Equal(got, whole) || (err == nil) != (err2 == nil) || d != e {
			t.Fatalf("%q cut at %d: %q %v, whole %q %v", in, at, got, err2, whole, err)
		}
		enc := base64.StdEncoding.EncodeToString(in)
		if got, err := new(Base64).Decode(nil, []byte(enc)); err != nil || !bytes.Equal(got, in) {
			t.Fatalf("%q: %q %v", in, got, err)
		}
	})
}
