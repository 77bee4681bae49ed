package rtsp

import (
	"strings"
	"testing"
)

func TestParseURL(t *testing.T) {
	for in, want := range map[string]URL{
		"rtsp://cams.example.com:8554/gate/trackID=1":         {"rtsp", "cams.example.com:8554", "/gate/trackID=1", ""},
		"RTSP://user:p%40ss@Cams.Example.COM/Gate?a=b/c":      {"rtsp", "cams.example.com", "/Gate", "a=b/c"},
		"rtsps://u@x:p@[2001:DB8::1]:322":                     {"rtsps", "[2001:db8::1]:322", "", ""},
		"rtsp://h?channel=1":                                  {"rtsp", "h", "", "channel=1"},
		"rtsp://h/cam/realmonitor?channel=1&subtype=0/track0": {"rtsp", "h", "/cam/realmonitor", "channel=1&subtype=0/track0"},
		"/gate":              {"", "", "/gate", ""},
		"*":                  {"", "", "*", ""},
		"rtsp://h/a..b/...":  {"rtsp", "h", "/a..b/...", ""},
		"rtsp://h/a?q=../..": {"rtsp", "h", "/a", "q=../.."},
	} {
		got, err := ParseURL([]byte(in))
		if err != nil || got != want {
			t.Errorf("%s: %+v %v", in, got, err)
		}
	}
	for _, in := range []string{
		"", "gate", "rtsp:/h/x", "rtsp://", "rtsp:///x", "://h/x", "rtsp://h/a b", "rtsp://h/a\r\nb", "rtsp://h/a#b", `rtsp://h\@i/`,
		"rtsp://h/..", "rtsp://h/a/../b", "rtsp://h/a/%2e%2E/b", "rtsp://h/./b", "rtsp://h/a/x%2f..%2Fb", "rtsp://h/a/%2e.%5cb", "rtsp://h/" + strings.Repeat("x", MaxURL),
	} {
		if got, err := ParseURL([]byte(in)); err == nil {
			t.Errorf("%.80q is taken as %+v", in, got)
		}
	}
}

func TestMapping(t *testing.T) {
	const visitor = "rtsp://cams.example.com:8554/gate"
	const dahua = "rtsp://10.0.0.20/cam/realmonitor?channel=1&subtype=0"
	for _, test := range []struct {
		camera        string // prefix
		visitor, want string // a visitor's URL and the camera's for it, or ""
	}{
		{"rtsp://10.0.0.20/h264", visitor, "rtsp://10.0.0.20/h264"},
		{"rtsp://10.0.0.20/h264", visitor + "/", "rtsp://10.0.0.20/h264/"},
		{"rtsp://10.0.0.20/h264", visitor + "/trackID=1", "rtsp://10.0.0.20/h264/trackID=1"},
		{"rtsp://10.0.0.20/h264", visitor + "?x=1", "rtsp://10.0.0.20/h264?x=1"},
		{"rtsp://10.0.0.20/h264", "RTSP://viewer:pw@Cams.Example.COM:8554/gate/a", "rtsp://10.0.0.20/h264/a"},
		{"rtsp://10.0.0.20/h264", visitor + "way", ""},
		{"rtsp://10.0.0.20/h264", "rtsp://cams.example.com/gate", ""},
		{"rtsp://10.0.0.20/h264", "rtsps://cams.example.com:8554/gate", ""},
		{"rtsp://10.0.0.20/h264", "rtsp://other.example.com:8554/gate", ""},
		{"rtsp://10.0.0.20/h264", visitor + "/../admin", ""},
		{"rtsp://10.0.0.20/h264", visitor + "/%2E%2e/admin", ""},
		{"rtsp://10.0.0.20/h264", "*", ""},
		{"rtsp://10.0.0.20/", visitor + "/a", "rtsp://10.0.0.20/a"},
		{"rtsp://10.0.0.20", visitor + "/a", "rtsp://10.0.0.20/a"},
		{dahua, visitor, dahua},
		{dahua, visitor + "/trackID=0", dahua + "/trackID=0"},
		{dahua, visitor + "?starttime=1", dahua + "&starttime=1"},
	} {
		m := Mapping{Visitor: visitor, Camera: test.camera}
		got, ok := m.ToCamera(test.visitor)
		if got != test.want || ok != (test.want != "") {
			t.Errorf("%s of %s: %q %t, want %q", test.visitor, test.camera, got, ok, test.want)
		}
	}
	for _, test := range []struct {
		camera    string
		url, want string // a camera's URL and the visitor's for it, or ""
	}{
		{"rtsp://10.0.0.20/h264", "rtsp://10.0.0.20:554/h264/", visitor + "/"},
		{"rtsp://10.0.0.20:554/h264", "rtsp://10.0.0.20/h264/trackID=1", visitor + "/trackID=1"},
		{"rtsps://cam.lan:322/h264", "rtsps://CAM.lan/h264/trackID=1", visitor + "/trackID=1"},
		{"rtsp://10.0.0.20/h264", "rtsp://admin:pw@10.0.0.20/h264/a", visitor + "/a"},
		{"rtsp://10.0.0.20/h264", "rtsp://10.0.0.20:8554/h264/a", ""},
		{"rtsp://10.0.0.20/h264", "rtsp://192.168.1.64/h264/a", ""},
		{"rtsp://10.0.0.20/h264", "http://10.0.0.20/h264/a", ""},
		{"rtsp://10.0.0.20/h264", "rtsp://10.0.0.20/h265/a", ""},
		{"rtsp://10.0.0.20/h264", "rtsp://10.0.0.20/h264/~1", ""},
		{"rtsp://10.0.0.20/h264", "trackID=1", ""},
		{"rtsp://10.0.0.20/", "rtsp://10.0.0.20", visitor},
		{"rtsp://10.0.0.20/", "rtsp://10.0.0.20/a/b", visitor + "/a/b"},
		{"rtsp://10.0.0.20", "rtsp://10.0.0.20/a/b", visitor + "/a/b"},
		{dahua, dahua + "/", visitor + "/"},
		{dahua, "rtsp://10.0.0.20:554" + dahua[len("rtsp://10.0.0.20"):] + "/trackID=0", visitor + "/trackID=0"},
		{dahua, dahua + "&starttime=1", ""},
		{"rtsp://10.0.0.20/h264", "rtsp://10.0.0.20/h264/a?user=admin&password=x", ""},
		{"rtsp://10.0.0.20/h264", "rtsp://10.0.0.20/h264?user=admin&password=x", ""},
		{dahua, dahua + "1", ""},
		{dahua, "rtsp://10.0.0.20/cam/realmonitor/", ""},
	} {
		m := Mapping{Visitor: visitor, Camera: test.camera}
		got, ok := m.ToVisitor(test.url)
		if got != test.want || ok != (test.want != "") {
			t.Errorf("%s of %s: %q %t, want %q", test.url, test.camera, got, ok, test.want)
		}
		if back, ok2 := m.ToCamera(got); ok && (!ok2 || comparable(back) != comparable(test.url)) {
			t.Errorf("%s is %s to a visitor, and that is %s", test.url, got, back)
		}
	}
}

// comparable writes a URL as it compares.
func comparable(url string) string {
	scheme, authority, rest, _ := split(url)
	return scheme + "://" + authority + strings.TrimSuffix(rest, "/")
}

func TestRTPInfo(t *testing.T) {
	m := Mapping{Visitor: "rtsp://v/gate", Camera: "rtsp://10.0.0.20/cam/realmonitor?channel=1&subtype=0"}
	named := []string{"rtsp://10.0.0.20/other"}
	for in, want := range map[string]string{
		"url=rtsp://10.0.0.20/cam/realmonitor?channel=1&subtype=0/trackID=0;seq=1;rtptime=2,url=rtsp://10.0.0.20/cam/realmonitor?channel=1&subtype=0/trackID=1;seq=3;rtptime=4": "url=rtsp://v/gate/trackID=0;seq=1;rtptime=2,url=rtsp://v/gate/trackID=1;seq=3;rtptime=4",
		"url=rtsp://10.0.0.20:554/cam/realmonitor?channel=1&subtype=0/a;b=c,d;seq=1, URL=trackID=1;ssrc=AB;seq=9":                                                               "url=rtsp://v/gate/a;b=c,d;seq=1, URL=trackID=1;ssrc=AB;seq=9",
		`url="rtsp://10.0.0.20/cam/realmonitor?channel=1&subtype=0/a;seq=7,url=x"; seq=1 ,url=rtsp://10.0.0.20/other`:                                                           `url="rtsp://v/gate/a;seq=7,url=x"; seq=1 ,url=rtsp://v/gate/~0`,
		"url=rtsp://10.9.9.9/x;seq=1": "url=rtsp://v/gate;seq=1",
		"rubbish":                     "rubbish",
		"":                            "",
	} {
		if got := string(m.AppendRTPInfo(nil, []byte(in), named)); got != want {
			t.Errorf("%s\nbecomes %s\nwant    %s", in, got, want)
		}
	}
}

func FuzzMapping(f *testing.F) {
	f.Add("rtsp://10.0.0.20/cam/realmonitor?channel=1&subtype=0", "rtsp://10.0.0.20:554/cam/realmonitor?channel=1&subtype=0/trackID=0")
	f.Add("rtsp://10.0.0.20/", "rtsp://a:b@10.0.0.20/x?y")
	f.Add("rtsp://h", "rtsp://H?x")
	f.Fuzz(func(t *testing.T, camera, url string) {
		m := Mapping{Visitor: "rtsp://v/gate", Camera: camera}
		if _, _, _, ok := split(camera); !ok || strings.Count(camera, "?") > 1 {
			return
		}
		to, ok := m.ToVisitor(url)
		if !ok {
			return
		}
		if rest, ok := strings.CutPrefix(to, m.Visitor); !ok || rest != "" && rest[0] != '/' && rest[0] != '?' {
			t.Fatalf("%q of %q is %q to a visitor", url, camera, to)
		}
		if back, ok := m.ToCamera(to); ok && strings.TrimLeft(comparable(back), "/") != strings.TrimLeft(comparable(url), "/") && !strings.Contains(url, "//") {
			t.Fatalf("%q of %q is %q to a visitor, and that is %q", url, camera, to, back)
		}
	})
}

func FuzzRTPInfo(f *testing.F) {
	f.Add("url=rtsp://10.0.0.20/cam/realmonitor?channel=1&subtype=0/trackID=0;seq=1;rtptime=2,url=trackID=1")
	f.Add(`url="rtsp://10.0.0.20/a,b";seq=1`)
	f.Fuzz(func(t *testing.T, v string) {
		m := Mapping{Visitor: "rtsp://v/gate", Camera: "rtsp://v/gate"}
		if got := string(m.AppendRTPInfo(nil, []byte(v), nil)); !strings.ContainsAny(v, `:"`) && got != v {
			t.Fatalf("%q becomes %q", v, got)
		}
	})
}
