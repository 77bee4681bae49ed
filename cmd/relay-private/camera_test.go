package main

import (
	"os"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/relay"
)

const cameraHead = "relay = \"r\"\nsite = \"s\"\nkey = \"office.key\"\n[[service]]\nname = \"gate\"\npublish = \"rtsp://cams.example.com/gate\"\n"

// loadCamera loads a configuration whose service ends with text.
func loadCamera(t *testing.T, text string, mode os.FileMode) (*settings, error) {
	t.Helper()
	if err := os.WriteFile("private.toml", []byte(cameraHead+text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod("private.toml", mode); err != nil {
		t.Fatal(err)
	}
	return load("private.toml")
}

func TestCamera(t *testing.T) {
	keygen(t)
	t.Chdir(t.TempDir())
	if _, err := auth.GenerateKey("office.key"); err != nil {
		t.Fatal(err)
	}
	s, err := loadCamera(t, `target   = "rtsp://viewer:hunt%65r2@10.0.0.20/h264?channel=1"
fan_out  = true
deadline = "2s"
udp      = true
roaming  = true
snapshot = "http://10.0.0.20:8080/snap.jpg"
`, 0o600)
	if err != nil {
		t.Fatal(err)
	}
	gate := s.services[0]
	if want := (relay.Camera{FanOut: true, UDP: true, Roaming: true}); gate.Camera == nil || *gate.Camera != want || gate.Deadline != 2*time.Second {
		t.Errorf("%+v, %v", gate.Camera, gate.Deadline)
	}
	if want := (relay.Target{Scheme: "rtsp", Host: "10.0.0.20", Port: 554, Path: "/h264", Query: "channel=1", User: "viewer", Password: "hunter2"}); gate.Target != want {
		t.Errorf("the target is %#v", gate.Target)
	}
	// The camera is one device: its user is good for its pictures.
	if want := (relay.Target{Scheme: "http", Host: "10.0.0.20", Port: 8080, Path: "/snap.jpg", User: "viewer", Password: "hunter2"}); gate.Snapshot != want {
		t.Errorf("the snapshot is %#v", gate.Snapshot)
	}
	// Another host is not told of it.
	s, err = loadCamera(t, "target = \"rtsps://viewer:hunter2@10.0.0.20\"\nsnapshot = \"https://10.0.0.21\"\n", 0o600)
	if err != nil || s.services[0].Snapshot.User != "" {
		t.Errorf("%+v, %v", s, err)
	}
	if got := s.services[0]; !reflect.DeepEqual(got.Camera, &relay.Camera{}) || got.Deadline != 0 {
		t.Errorf("a camera of which nothing is said: %+v, %v", got.Camera, got.Deadline)
	}
}

func TestCameraMistakes(t *testing.T) {
	keygen(t)
	t.Chdir(t.TempDir())
	if _, err := auth.GenerateKey("office.key"); err != nil {
		t.Fatal(err)
	}
	hash := func(realm string) string {
		h, err := auth.HashDigest("a", realm, []byte("hunter2"))
		if err != nil {
			t.Fatal(err)
		}
		return h
	}
	const target = "target = \"rtsp://10.0.0.20/h264\"\n"
	for _, tt := range []struct {
		text string
		mode os.FileMode
		want string // "": it is right
	}{
		{target, 0o644, ""},
		{"target = \"rtsp://a:hunter2@10.0.0.20\"\n", 0o640, ""},
		{"target = \"rtsp://a:hunter2@10.0.0.20\"\n", 0o644, ":7:10: target has a password, and everybody may read this file: run chmod 600 private.toml"},
		{"target = \"rtsp://10.0.0.20/?pwd=hunter2\"\n", 0o644, ":7:10: target has a password, and"},
		{target + "snapshot = \"http://a:hunter2@10.0.0.20\"\n", 0o644, ":8:12: snapshot has a password, and"},
		{target + "users = { a = \"" + hash("culvert") + "\" }\n", 0o644, "a Digest hash is as good as a password, and"},
		{target + "users = { a = \"" + hash("culvert") + "\", b = \"" + bcryptHash + "\" }\n", 0o600, ""},
		{target + "users = { a = \"" + hash("culvert") + "\", b = \"" + hash("gate") + "\" }\n", 0o600, "users: the Digest hash of user \"b\" is for realm \"gate\", and that of \"a\" for \"culvert\""},
		{"target = \"rtsp://a:hunter2@10.0.0.20:x\"\n", 0o600, ":7:10: target \"rtsp://…@10.0.0.20:x\": port"},
		{target + "snapshot = \"rtsp://a:hunter2@10.0.0.20\"\n", 0o600, ":8:12: snapshot \"rtsp://…@10.0.0.20\": want http:// or https://"},
		{target + "deadline = \"50ms\"\n", 0o600, ":8:12: deadline 50ms: want 100ms to 30s"},
		{target + "deadline = \"1m\"\n", 0o600, "deadline 1m0s: want"},
		{target + "methods = \"GET\"\n", 0o600, ":8:11: methods: is for http"},
		{target + "client_ca = \"ca.pem\"\n", 0o600, "client_ca"},
		{target + "proxy_protocol = 1\n", 0o600, "proxy_protocol is for"},
		{"target = \"tcp://10.0.0.20:554\"\n", 0o600, "an rtsp:// publish needs an rtsp:// or rtsps:// target"},
		{"target = \"tcp://10.0.0.20:554\"\nfan_out = true\n", 0o600, ":8:11: fan_out is for rtsp:// and rtsps:// targets, not tcp://"},
		{"target = \"tcp://10.0.0.20:554\"\nsnapshot = \"\"\n", 0o600, "snapshot is for rtsp:// and rtsps:// targets"},
		{target + "ca = \"office.key\"\n", 0o600, ":8:6: ca is for https://, h2:// and rtsps:// targets"},
	} {
		if runtime.GOOS == "windows" && tt.mode == 0o644 {
			continue
		}
		_, err := loadCamera(t, tt.text, tt.mode)
		if (err == nil) != (tt.want == "") || err != nil && !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", tt.text, err, tt.want)
		}
		if err != nil && strings.Contains(err.Error(), "hunter2") {
			t.Errorf("%s: the error shows the password: %v", tt.text, err)
		}
	}
}

// The program for snapshots is looked for once, in PATH or where the file says.
func TestFFmpeg(t *testing.T) {
	keygen(t)
	dir := t.TempDir()
	t.Chdir(dir)
	if _, err := auth.GenerateKey("office.key"); err != nil {
		t.Fatal(err)
	}
	name := "ffmpeg"
	if runtime.GOOS == "windows" {
		name += ".exe"
	}
	for _, in := range []string{"path", "empty", "own"} {
		if err := os.Mkdir(in, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, program := range []string{filepath.Join("path", name), filepath.Join("own", name)} {
		if err := os.WriteFile(program, nil, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for _, tt := range []struct{ path, text, want, mistake string }{
		{"path", "", filepath.Join(dir, "path", name), ""},
		{"empty", "", "", ""},
		{"path", `ffmpeg = "none"`, "", ""},
		{"path", `ffmpeg = "own/` + name + `"`, filepath.Join("own", name), ""},
		{"path", `ffmpeg = "empty/` + name + `"`, "", `:1:10: ffmpeg: `},
	} {
		t.Setenv("PATH", filepath.Join(dir, tt.path))
		if err := os.WriteFile("private.toml", []byte(tt.text+"\n"+cameraHead+"target = \"rtsp://10.0.0.20\"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
		s, err := load("private.toml")
		switch {
		case tt.mistake != "":
			if err == nil || !strings.Contains(err.Error(), tt.mistake) {
				t.Errorf("%s: %v", tt.text, err)
			}
		case err != nil || s.ffmpeg != tt.want:
			t.Errorf("%s: %q, %v, want %q", tt.text, s.ffmpeg, err, tt.want)
		}
	}
}
