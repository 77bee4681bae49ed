package main

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"go.uber.org/goleak"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
)

// beProgram is the variable that has the test be tunnelctl instead.
const beProgram = "CULVERT_TEST_TUNNELCTL"

func TestMain(m *testing.M) {
	completeTime = time.Minute
	if os.Getenv(beProgram) != "" {
		main()
	}
	time.Local = time.UTC // for scripts; once, as goroutines of a test that has ended may still look at it
	goleak.VerifyTestMain(m)
}

const token = "operators-token-of-a-test"

// startRelay serves an admin API, and returns the flags
// that lead to it.
func startRelay(t *testing.T, status *admin.Status) []string {
	dir := t.TempDir()
	file := filepath.Join(dir, "admin.token")
	if err := os.WriteFile(file, []byte(token+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	operators, err := auth.OpenOperators(dir)
	if err != nil {
		t.Fatal(err)
	}
	h := &admin.Handler{
		Operators: operators,
		Status:    func() (*admin.Status, error) { return status, nil },
		AddSite: func(_ context.Context, in admin.Invite) (*admin.Invitation, error) {
			if in.Name == "office" {
				return nil, &admin.Error{Code: 409, Text: `site "office" exists`}
			}
			return &admin.Invitation{Site: in.Name, Token: "join-me", Expires: time.Now().Add(in.Lifetime())}, nil
		},
		RevokeSite: func(_ context.Context, in admin.Revoke) error {
			name, key := in.Name, in.Key
			if name != "office" || key != "" && key != "ed25519:known" {
				return &admin.Error{Code: 404, Text: fmt.Sprintf("no site %q with key %q", name, key)}
			}
			return nil
		},
		PromoteSite: func(_ context.Context, p admin.Promote) (*admin.Promoted, error) {
			if p.Name != "office" {
				return nil, &admin.Error{Code: 409, Text: `site "lab" has no private relay connected`}
			}
			return &admin.Promoted{Session: fmt.Sprint(p.Session, "9c01,cut=", p.Cut)}, nil
		},
		Cameras: func(_ context.Context, in admin.Search) (*admin.Cameras, error) {
			switch site := in.Site; {
			case site == "lab":
				return nil, &admin.Error{Code: 409, Text: `site "lab": put the line discovery = true`}
			case site == "empty":
				return &admin.Cameras{Devices: json.RawMessage("[]")}, nil
			case in.User == "":
				return &admin.Cameras{Devices: json.RawMessage(`[{"id":"x","address":"10.0.0.20","name":"Gate","problem":"needs a user name and password"}]`)}, nil
			}
			return &admin.Cameras{Devices: json.RawMessage(`[{"id":"x","address":"10.0.0.20","name":"Gate of ` + in.User + " by " + in.Password + `","streams":[{"url":"rtsp://10.0.0.20/h264"}]}]`)}, nil
		},
	}
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	t.Cleanup(func() { h.Close() })
	return []string{"--admin", srv.Listener.Addr().String(), "--token-file", file}
}

// tunnelctl runs the program and returns its exit code and output.
func tunnelctl(ctx context.Context, stdin string, args ...string) (code int, stdout, stderr string) {
	var out, errs bytes.Buffer
	code = command(ctx, args, strings.NewReader(stdin), &out, &errs)
	return code, out.String(), errs.String()
}

func TestCommands(t *testing.T) {
	for _, name := range []string{"CULVERT_ADMIN", "CULVERT_RELAY", "CULVERT_CA", "CULVERT_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	since := time.Now().Add(-90 * time.Minute)
	relay := startRelay(t, &admin.Status{
		Version: "v1.2.3", Wire: 1, Domain: "relay.example.com", Uptime: 7265, Counters: admin.Counters{Requests: 7, Prefaces: 2},
		Listeners: []admin.Listener{{Name: "https", Addr: "0.0.0.0:443"}},
		Sites: []admin.Site{
			{Name: "office", State: admin.StateConnected, Publish: []string{"https://*.example.com"}, Sessions: []admin.Session{
				{
					ID: "3f2a9c01", State: admin.StateConnected, Active: true, Remote: "203.0.113.7:5000", Software: "culvert 1.2.3", Choice: "wss: the path loses nothing",
					Streams: 3, Received: 3 << 30, Sent: 100, ConnectedSince: since,
					Links: []admin.Link{{Transport: "wss", Role: "interactive", RTT: 12.34}, {Transport: "wss", Role: "bulk", RTT: 13}, {Transport: "quic", Role: "datagram", Suspect: true}},
				},
				{
					ID: "77aa0123", State: admin.StateStandby, Remote: "198.51.100.9:40112", Software: "culvert 1.2.3", ConnectedSince: since,
					Links:   []admin.Link{{Transport: "wss", Role: "interactive", RTT: 30}},
					Refused: []admin.Refused{{Service: "jump", Error: "publish \"tcp://:22\": site \"office\" may not publish this: the public relay's configuration says what it may"}},
				},
				{ID: "00000001", State: admin.StateSuspended, Remote: "198.51.100.9:40113", ConnectedSince: since, SuspendedSince: &since},
			}},
			{Name: "lab", State: admin.StateAway, Keys: []string{"ed25519:lab"}},
		},
		Services: []admin.Service{{Site: "office", Name: "intranet", Publish: "https://intranet.example.com", Target: "http", Errors: map[string]uint64{"unreachable": 3, "timeout": 1}}, {Site: "office", Name: "jump", Target: "tcp"}},
	})
	dir := t.TempDir()
	for _, tc := range []struct {
		args   string
		code   int
		stdout []string // every one of them
		stderr []string
	}{
		{"status", 0, []string{"relay relay.example.com, version v1.2.3, wire 1, up 2h1m", "\nso far 7 requests, 0 answered by the relay itself, 2 bad PROXY headers\n", "0.0.0.0:443", "connected for 1h30m", "12.3 ms", "3.0 GiB", "intranet.example.com", "operators only"}, nil},
		{"sites", 0, []string{
			"\noffice  connected for 1h30m  3f2a9c01  203.0.113.7:5000      -        3   3.0 GiB  100 B\n",
			"\n        standby for 1h30m    77aa0123  198.51.100.9:40112    -        0       0 B    0 B\n",
			"\n        suspended for 1h30m  00000001  ", "\nlab     away\n",
			"\noffice may publish https://*.example.com\n",
			"\n  3f2a9c01: culvert 1.2.3, wss interactive 12.3 ms, wss bulk 13.0 ms, quic datagram (silent)\n    wss: the path loses nothing\n",
			"\n    jump would not be published: publish \"tcp://:22\": site \"office\" may not publish this: the public\n      relay's configuration says what it may\n",
			"\n  00000001: unknown software, no link\n",
		}, nil},
		{"services", 0, []string{"office/intranet", "office/jump", "\n  office/intranet: what went wrong so far: 1 timeout, 3 unreachable\n"}, nil},
		{"services --rates", 0, []string{"RECEIVED/S", "office/intranet"}, nil},
		{"site add lab2 --publish tcp://:15000 --ttl 1h", 0, []string{"join-me\n"}, []string{"relay-private join"}},
		{"site add lab --publish tcp://:15000", 0, []string{"join-me\n"}, []string{"lab is there already", "relay-private join"}},
		{"site add office --publish tcp://:15000", 1, nil, []string{`site "office" exists`}},
		{"site add lab2", 2, nil, []string{"--publish is missing"}},
		{"site add --publish tcp://:1", 2, nil, []string{"usage: tunnelctl site add NAME {--publish"}},
		{"site revoke office", 0, nil, nil},
		{"site revoke nowhere", 4, nil, []string{`no site "nowhere"`}},
		{"site revoke office --key ed25519:known", 0, nil, nil},
		{"site revoke office --key ed25519:other", 4, nil, []string{`with key "ed25519:other"`}},
		{"site revoke office --key=", 2, nil, []string{"--key is empty"}},
		{"site add lab2 --stand-by", 0, []string{"join-me\n"}, []string{"on the other machine"}},
		{"site add lab2 --stand-by --publish tcp://:1", 2, nil, []string{"exclude each other"}},
		{"site promote office", 0, []string{"office: 9c01,cut=false is active\n"}, nil},
		{"site promote office 3f2a --cut", 0, []string{"office: 3f2a9c01,cut=true is active\n"}, nil},
		{"site promote lab", 1, nil, []string{"no private relay connected"}},
		{"site promote", 2, nil, []string{"usage: tunnelctl site promote NAME [ID]"}},
		{"site", 2, nil, []string{"site add, site revoke or site promote"}},
		{"", 2, nil, []string{"which command"}},
		{"nonsense", 2, nil, []string{"nonsense"}},
		{"status --nonsense", 2, nil, []string{"nonsense"}},
		{"connect office", 2, nil, []string{"want SITE/SERVICE"}},
		{"forward office/echo 999999", 2, nil, []string{"is no port"}},
		{"status --admin 192.0.2.1:7070", 2, nil, []string{"in the clear"}},
		{"status --admin relay", 2, nil, []string{"want HOST:PORT"}},
		{"status --relay http://relay.example.com --admin=", 2, nil, []string{"want https://DOMAIN"}},
		{"status --relay relay.example.com", 2, nil, []string{"exclude each other"}},
		{"status --token-file /nonexistent/token", 3, nil, []string{"no token file", "--state"}},
		{"status --admin " + nobody, 5, nil, []string{"nothing listens on", "msg=ready"}},
		{"certs dev " + dir + " localhost *.example.com", 0, []string{"ca.pem", "cert.pem", "key.pem"}, nil},
		{"certs dev nowhere", 2, nil, []string{"usage: tunnelctl certs dev DIR NAME"}},
		{"certs nowhere localhost", 2, nil, []string{"tunnelctl certs dev DIR NAME"}},
		{"stauts", 2, nil, []string{`did you mean "status"?`}},
		{"help exit-codes", 0, []string{"\n4    not found"}, nil},
		{"help nothing", 2, nil, []string{"no command \"nothing\""}},
		{"sites ofice", 4, nil, []string{`no site "ofice": did you mean "office"?`}},
		{"version", 0, []string{"culvert "}, nil},
	} {
		t.Run(tc.args, func(t *testing.T) {
			code, stdout, stderr := tunnelctl(t.Context(), "", append(relay[:len(relay):len(relay)], strings.Fields(tc.args)...)...)
			if code != tc.code {
				t.Errorf("exit code %d, want %d", code, tc.code)
			}
			for _, s := range tc.stdout {
				if !strings.Contains(stdout, s) {
					t.Errorf("stdout lacks %q:\n%s", s, stdout)
				}
			}
			for line := range strings.Lines(stdout) {
				if len(strings.ReplaceAll(line, dir, "DIR")) > textWidth+1 {
					t.Errorf("wide line: %s", line)
				}
			}
			for _, s := range tc.stderr {
				if !strings.Contains(stderr, s) {
					t.Errorf("stderr lacks %q:\n%s", s, stderr)
				}
			}
			if strings.Contains(stdout+stderr, token) {
				t.Error("the token is in the output")
			}
		})
	}

	code, stdout, _ := tunnelctl(t.Context(), "", append(relay, "status", "--json")...)
	var s admin.Status
	if err := json.Unmarshal([]byte(stdout), &s); code != 0 || err != nil || len(s.Sites) != 2 {
		t.Errorf("status --json: %d, %v, %s", code, err, stdout)
	}

	other := filepath.Join(t.TempDir(), "token")
	if err := os.WriteFile(other, []byte("wrong"), 0o600); err != nil {
		t.Fatal(err)
	}
	code, _, stderr := tunnelctl(t.Context(), "", "status", relay[0], relay[1], "--token-file", other)
	if code != exitDenied || !strings.Contains(stderr, "does not accept the token") {
		t.Errorf("wrong token: %d, %s", code, stderr)
	}

	// Everything from the environment.
	t.Setenv("CULVERT_ADMIN", relay[1])
	t.Setenv("CULVERT_TOKEN_FILE", relay[3])
	if code, _, stderr := tunnelctl(t.Context(), "", "sites"); code != 0 {
		t.Errorf("with the environment alone: %d, %s", code, stderr)
	}
}

func runForward(ctx context.Context, codec chan<- int, stdout io.Writer, args []string) {
	codec <- command(ctx, args, strings.NewReader(""), stdout, io.Discard)
}

func TestSizeAndAge(t *testing.T) {
	for n, want := range map[uint64]string{0: "0 B", 1023: "1023 B", 1024: "1.0 KiB", 64 << 20: "64.0 MiB", 1 << 62: "4096.0 PiB"} {
		if got := size(n); got != want {
			t.Errorf("size(%d) = %q, want %q", n, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "0s", 59 * time.Second: "59s", 61 * time.Second: "1m1s", 25 * time.Hour: "1d1h"} {
		if got := age(d); got != want {
			t.Errorf("age(%v) = %q, want %q", d, got, want)
		}
	}
}

// Rates are what came between two looks; of what was not there before it is all, and after a restart nobody knows.
func TestRates(t *testing.T) {
	at := func(uptime float64, services ...admin.Service) *admin.Status {
		return &admin.Status{Uptime: uptime, Services: services, Sites: []admin.Site{{Name: "office", Sessions: []admin.Session{
			{ID: "1", Active: true, Received: 1000 * uint64(uptime), Sent: 10 * uint64(uptime)},
		}}}}
	}
	wiki := func(n uint64) admin.Service {
		return admin.Service{Site: "office", Name: "wiki", Received: n, Sent: 2 * n}
	}
	git := admin.Service{Site: "office", Name: "git", Received: 7, Sent: 8}
	for _, test := range []struct {
		name          string
		now, before   *admin.Status
		wiki, session string
	}{
		{"two seconds", at(12, wiki(5000)), at(10, wiki(1000)), "2.0 KiB 3.9 KiB", "1000 B 10 B"},
		{"a service begins", at(12, wiki(5000)), at(10, git), "2.4 KiB 4.9 KiB", "1000 B 10 B"},
		{"a service begins anew", at(12, wiki(5000)), at(10, wiki(6000)), "2.4 KiB 4.9 KiB", "1000 B 10 B"},
		{"the relay begins anew", at(1, wiki(5000)), at(10, wiki(1000)), "- -", "- -"},
		{"no rates", at(12, wiki(5000)), nil, "4.9 KiB 9.8 KiB", "11.7 KiB 120 B"},
	} {
		var b strings.Builder
		print := func(f func(*view, shown)) string {
			b.Reset()
			f(&view{out: &b}, shown{test.now, test.before})
			return b.String()
		}
		row := func(text, key string) string {
			for line := range strings.Lines(text) {
				if strings.HasPrefix(line, key) {
					return strings.Join(strings.Fields(line), " ")
				}
			}
			t.Fatalf("no row %q in\n%s", key, text)
			return ""
		}
		if got := row(print((*view).services), "office/wiki"); !strings.HasSuffix(got, " "+test.wiki) {
			t.Errorf("%s: %s, want ... %s", test.name, got, test.wiki)
		}
		if got := row(print((*view).sites), "office"); !strings.HasSuffix(got, " "+test.session) {
			t.Errorf("%s: %s, want ... %s", test.name, got, test.session)
		}
		if got := strings.Contains(b.String(), "RECEIVED/S"); got != (test.before != nil) {
			t.Errorf("%s: titles %v", test.name, got)
		}
	}
}

// So have files by TFTP, and all of TFTP has a line.
func TestFiles(t *testing.T) {
	var b strings.Builder
	v := &view{out: &b}
	v.files([]admin.Service{{Site: "office", Name: "wiki"}})
	if b.Len() > 0 {
		t.Errorf("without files: %q", b.String())
	}
	v.tftp(&admin.TFTP{Running: 3, Total: 1200, CacheLimit: 256 << 20})
	v.tftp(&admin.TFTP{
		Running: 3, Unproven: 1, Total: 1200, Refused: map[string]uint64{"limit": 2, "not-found": 5}, Retransmitted: 8, ErrorsSent: 9, Dropped: 10,
		Cached: 12 << 20, CacheLimit: 256 << 20, Hits: 1100,
	})
	v.files([]admin.Service{
		{Site: "office", Name: "wiki"},
		{Site: "office", Name: "boot", Visitors: 3, Files: &admin.Files{Rate: 94_000_000, Retransmitted: 8, Refused: 2, Cached: 12 << 20, Hits: 1100}},
		{Site: "lab", Name: "configs", Files: &admin.Files{}},
	})
	if want := `TFTP: 3 transfers, 1200 so far; cache: 0 B of 256.0 MiB
TFTP: 3 transfers, 1200 so far, 1 from addresses that have not answered yet, 7 requests refused, 8
  packets sent again, 9 errors sent, 10 datagrams dropped, 1100 files had not to come from a site;
  cache: 12.0 MiB of 256.0 MiB

FILES        TRANSFERS         RATE  PACKETS SENT AGAIN  REFUSED      KEPT  READ FROM THAT
office/boot          3  94.0 Mbit/s                   8        2  12.0 MiB            1100
lab/configs          0      0 bit/s                   0        0       0 B               0
`; b.String() != want {
		t.Errorf("got:\n%s\nwant:\n%s", b.String(), want)
	}
}

// A camera has a row of its own.
func TestCameras(t *testing.T) {
	now := time.Unix(1000, 0)
	key := now.Add(-3 * time.Second)
	var b strings.Builder
	v := &view{out: &b}
	v.cameras([]admin.Service{{Site: "office", Name: "wiki"}}, now)
	if b.Len() > 0 {
		t.Errorf("without cameras: %q", b.String())
	}
	v.cameras([]admin.Service{
		{Site: "office", Name: "wiki"},
		{Site: "office", Name: "gate", Camera: &admin.Camera{
			Viewers: 12, Rate: 2_340_000, KeyFrame: &key, Reconnects: 3, Dropped: 40,
			Tracks: []admin.CameraTrack{{Media: "video", Codec: "H264", Width: 1920, Height: 1080}, {Media: "audio", Codec: "AAC"}, {Media: "application"}},
		}},
		{Site: "office", Name: "yard", Camera: &admin.Camera{}},
	}, now)
	if want := `
CAMERA       VIEWERS        RATE  SHOWS                             KEY FRAME  RECONNECTS  FRAMES LEFT OUT
office/gate       12  2.3 Mbit/s  H264 1920x1080, AAC, application  3s ago              3               40
office/yard        0     0 bit/s  not watched yet                   -                   0                0
`; b.String() != want {
		t.Errorf("got:%s\nwant:%s", b.String(), want)
	}
	for n, want := range map[uint64]string{999: "999 bit/s", 64_000: "64 kbit/s", 999_499: "999 kbit/s", 1_000_000: "1.0 Mbit/s"} {
		if got := bitRate(n); got != want {
			t.Errorf("%d is %s, want %s", n, got, want)
		}
	}
}
