//go:build linux

package e2e

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/bluenviron/gortsplib/v5"
	"github.com/bluenviron/gortsplib/v5/pkg/auth"

	"culvert.dev/pkg/admin"
)

// TestCameraStatus looks at what operators are told of cameras while they are watched, rebooted and left alone.
func TestCameraStatus(t *testing.T) {
	t.Parallel()
	c := startCamera(t, nil, auth.VerifyMethodDigestMD5)
	s := configureCameras(t, nil,
		service{"shared", "rtsp://cams.example.com/shared", c.target()},
		service{"own", "rtsp://cams.example.com/own", c.target()},
	)
	s.more["shared"] = "fan_out = true\n"
	s.startPublic()
	s.startPrivate()
	status := func(name string) *admin.Camera {
		t.Helper()
		out, err := s.tunnelctl("services", "--json").Output()
		var list []admin.Service
		if err == nil {
			err = json.Unmarshal(out, &list)
		}
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		for _, one := range list {
			if one.Name == name && one.Camera != nil {
				return one.Camera
			}
		}
		t.Fatalf("no camera %q in %s", name, out)
		return nil
	}
	shows := func(name string) string { return fmt.Sprint(status(name).Tracks) }
	const small, large = "[{video H264 320 180} {audio AAC 0 0}]", "[{video H264 640 360} {audio AAC 0 0}]"
	for _, name := range []string{"shared", "own"} {
		if one := status(name); one.Viewers != 0 || one.Tracks != nil || one.KeyFrame != nil || one.Received != 0 {
			t.Errorf("%s, before anybody has watched it: %+v", name, one)
		}
	}
	play := func(name string) *watching {
		t.Helper()
		w, err := watch(t, nil, s.rtsp, camURL("rtsp", s.rtsp, "/"+name), gortsplib.TunnelNone, gortsplib.ProtocolTCP)
		if err != nil {
			t.Fatal(err)
		}
		return w
	}
	watched := make(map[string][]*watching)
	for _, name := range []string{"shared", "own"} {
		watched[name] = []*watching{play(name), play(name)}
		for _, w := range watched[name] {
			w.frames(50)
		}
		one := status(name)
		if one.Viewers != 2 || one.KeyFrame == nil || time.Since(*one.KeyFrame) > 10*time.Second || one.Reconnects != 0 || one.Rate == 0 || shows(name) != small {
			t.Errorf("%s, while two watch it: %+v", name, one)
		}
	}
	eventually(t, "the rate of two streams to be that of one and more", func() bool {
		once := status("shared").Rate
		return once > 0 && status("own").Rate > once+once/2
	})
	film, err := largeFilm()
	if err != nil {
		t.Fatal(err)
	}
	before := status("shared").Received
	c.reboot(time.Second, film)
	eventually(t, "the camera's new film", func() bool {
		one := status("shared")
		return one.Reconnects > 0 && one.Received > before && shows("shared") == large
	})
	if one := status("shared"); one.Viewers > 2 {
		t.Errorf("after a reboot: %+v", one)
	}
	for _, list := range watched {
		for _, w := range list {
			w.client.Close()
		}
	}
	for _, name := range []string{"shared", "own"} {
		eventually(t, "the viewers of "+name+" being gone", func() bool { return status(name).Viewers == 0 })
	}
	// The metrics and the table tell the same, and nothing tells what the camera must be told.
	table, err := s.tunnelctl("status").CombinedOutput()
	if err != nil || !strings.Contains(string(table), "H264 640x360, AAC") {
		t.Errorf("%v\n%s", err, table)
	}
	text := s.adminGet("/metrics")
	for _, want := range []string{
		`culvert_camera_viewers{service="shared",site="office"} 0`,
		fmt.Sprintf(`culvert_camera_reconnects_total{service="shared",site="office"} %d`, status("shared").Reconnects),
		`culvert_camera_width_pixels{service="shared",site="office",track="0"} 640`,
		`culvert_camera_track_info{codec="AAC",service="own",site="office",track="1"} 1`,
	} {
		if !strings.Contains(text, "\n"+want+"\n") {
			t.Errorf("the metrics have no %s", want)
		}
	}
	if strings.Contains(string(table)+text, c.password) {
		t.Error("the status tells the camera's password")
	}
	for _, p := range []*process{s.public, s.private} {
		if line, _, ok := p.find(0, c.password); ok {
			t.Errorf("the log of %s tells the camera's password: %s", p.name, line)
		}
	}
}
