package main

import (
	"strings"
	"testing"

	"culvert.dev/pkg/admin"
)

func TestFindCameras(t *testing.T) {
	at := startRelay(t, &admin.Status{Sites: []admin.Site{{Name: "office", Publish: []string{"https://*.example.com", "rtsp://*.example.com/"}}}})
	for _, test := range []struct {
		stdin string
		args  []string
		want  string // in what is printed
		notes string
		code  int
	}{
		{args: []string{"office"}, want: "Gate   10.0.0.20   -       needs a user name and password\n"},
		{stdin: "secret\n", args: []string{"office", "--user", "admin"},
			want:  "[[service]] # Gate of admin by secret, 10.0.0.20\nname = \"gate-of-admin-by-secret\"\npublish = \"rtsp://cams.example.com/gate-of-admin-by-secret\"\ntarget = \"rtsp://admin:PASSWORD@10.0.0.20/h264\"\n",
			notes: "put the password in place of PASSWORD"},
		{stdin: "x", args: []string{"elsewhere", "--user", "admin"}, want: `publish = "rtsp://cams.example.com/gate-of-admin-by-x"`, notes: "put what the site may publish in place"},
		{stdin: "x", args: []string{"office", "--user", "admin", "--publish", "rtsps://a.test"}, want: `publish = "rtsps://a.test/gate-of-admin-by-x"`},
		{args: []string{"office", "--json"}, want: `"problem": "needs a user name and password"`},
		{args: []string{"empty"}, notes: "no camera answers"},
		{args: []string{"empty", "--json"}, want: "[]\n"},
		{args: []string{"lab"}, notes: "put the line discovery = true", code: 1},
		{args: []string{"office", "--user", "admin"}, notes: "no password", code: 2},
		{args: nil, notes: "usage: tunnelctl cameras SITE", code: 2},
	} {
		code, out, notes := tunnelctl(t.Context(), test.stdin, append(append([]string{"cameras"}, test.args...), at...)...)
		if code != test.code || !strings.Contains(out, test.want) || test.want == "" && out != "" || !strings.Contains(notes, test.notes) {
			t.Errorf("%q: %d\n%s\n%s", test.args, code, out, notes)
		}
	}
}
