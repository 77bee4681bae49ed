package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
)

var update = flag.Bool("update", false, "write the scripts in testdata anew, with what the commands print now")

// nobody is where nothing listens: a port that was free a moment ago may be another test's by now.
const nobody = "127.0.0.1:1"

// fakeRelay is an admin API with a bit of everything.
type fakeRelay struct {
	addr    string            // of the API
	tokens  map[string]string // files with the tokens of admin, operator, viewer, and a wrong one
	foreign string            // one where another program speaks JSON
}

// fixedTime is in what the fake relay says of moments.
var fixedTime = time.Date(2026, 1, 2, 12, 0, 0, 250e6, time.UTC)

func startFake(t *testing.T) *fakeRelay {
	for _, name := range []string{"CULVERT_ADMIN", "CULVERT_RELAY", "CULVERT_CA", "CULVERT_TOKEN_FILE"} {
		t.Setenv(name, "")
	}
	t.Setenv("HOME", t.TempDir())
	t.Setenv("XDG_CONFIG_HOME", "")

	dir := t.TempDir()
	f := &fakeRelay{tokens: make(map[string]string)}
	write := func(name, token string) {
		f.tokens[name] = filepath.Join(dir, name+".token")
		if err := os.WriteFile(f.tokens[name], []byte(token+"\n"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	write("admin", token)
	write("wrong", "a-token-of-another-relay")
	operators, err := auth.OpenOperators(dir)
	if err != nil {
		t.Fatal(err)
	}
	for name, role := range map[string]auth.Role{"operator": auth.Operate, "viewer": auth.Viewer} {
		if err := operators.Add(name+"-vera", role); err != nil {
			t.Fatal(err)
		}
		secret, _, err := operators.Create(name+"-vera", role, time.Hour, "")
		if err != nil {
			t.Fatal(err)
		}
		write(name, secret)
	}
	h := fakeHandler(operators)
	srv := httptest.NewServer(h)
	t.Cleanup(srv.Close)
	t.Cleanup(func() { h.Close() })
	f.addr = srv.Listener.Addr().String()

	other := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		io.WriteString(w, `{"status":"UP"}`)
	}))
	t.Cleanup(other.Close)
	f.foreign = other.Listener.Addr().String()
	return f
}

func fakeHandler(operators *auth.Operators) *admin.Handler {
	since := time.Now().Add(-90 * time.Minute)
	expires, renews, next := time.Now().Add(60*24*time.Hour+time.Minute), time.Now().Add(30*24*time.Hour+time.Minute), time.Now().Add(5*time.Hour+time.Minute/2)
	resolved := time.Now().Add(-65 * time.Minute)
	status := &admin.Status{
		Version: "v1.2.3", Wire: 6, Domain: "relay.example.com", Uptime: 7265, Visitors: 3, Counters: admin.Counters{Requests: 700},
		Listeners: []admin.Listener{{Name: "https", Addr: "0.0.0.0:443"}, {Name: "admin", Addr: "127.0.0.1:7070"}},
		Sites: []admin.Site{
			{
				Name: "lab", State: admin.StateAway, Publish: []string{"tcp://:16000"},
			},
			{
				Name: "office", State: admin.StateConnected, Publish: []string{"https://*.example.com"}, RTT: 12.34, Streams: 3, Received: 3 << 30, Sent: 100, ConnectedSince: &since,
				Sessions: []admin.Session{
					{
						ID: "3f2a9c01", State: admin.StateConnected, Active: true, Remote: "203.0.113.7:5000", Software: "culvert v1.2.3", RTT: 12.34, Streams: 3, Received: 3 << 30, Sent: 100, ConnectedSince: since,
						Links: []admin.Link{
							{Transport: "wss", Role: "interactive", RTT: 12.34, Remote: "203.0.113.7:5000", Since: since},
							{Transport: "quic", Role: "datagram", Remote: "203.0.113.7:5001", Since: since, Suspect: true},
						},
					},
					{
						ID: "77aa0123", State: admin.StateStandby, Remote: "198.51.100.9:40112", Software: "culvert v1.2.3", ConnectedSince: since,
						Links: []admin.Link{{Transport: "wss", Role: "interactive", RTT: 230, Remote: "198.51.100.9:40112", Since: since}},
					},
				},
			},
		},
		Services: []admin.Service{
			{Site: "office", Name: "intranet", Publish: "https://intranet.example.com", Target: "http", Visitors: 2, Total: 40, Received: 1 << 20, Sent: 5 << 20, Errors: map[string]uint64{"timeout": 2}},
			{Site: "office", Name: "ssh", Target: "tcp", Visitors: 1, Total: 7},
		},
		Certificates: []admin.Certificate{
			{Name: "intranet.example.com", Issuer: "Let's Encrypt", Expires: &expires, Renews: &renews},
			{Name: "old.example.com", Error: "DNS problem: NXDOMAIN looking up A for old.example.com", Failures: 3, NextTry: &next},
		},
	}
	streams := []admin.Stream{
		{ID: "s2", Site: "office", Service: "ssh", Scheme: "forward", Remote: "192.0.2.33:40000", Operator: "vera", Since: since.Add(15 * time.Minute), Received: 100, Sent: 2000, Idle: 75, State: "open"},
		{ID: "s1", Site: "office", Service: "intranet", Scheme: "https", Host: "intranet.example.com", Remote: "198.51.100.4:51000", Since: since, Received: 1 << 20, Sent: 5 << 20, Idle: 0.2, State: "open"},
	}
	requests := []admin.Request{
		{ID: "r2", Time: fixedTime.Add(time.Second), Site: "office", Service: "intranet", Remote: "198.51.100.4:51000", Method: "POST", Host: "intranet.example.com", Path: "/login", Proto: "HTTP/2.0", Status: 502, Word: "unreachable", Took: 31},
		{ID: "r1", Time: fixedTime, Site: "office", Service: "intranet", Remote: "198.51.100.4:51000", Method: "GET", Host: "intranet.example.com", Path: "/\x1b[2Jx\u009b31m?q=1", Proto: "HTTP/2.0", Status: 200, Received: 0, Sent: 5120, Wait: 12.5, Took: 1234, Inspectable: true},
	}
	logs := []admin.LogLine{
		{Time: fixedTime, Level: "INFO", Message: "ready", Attrs: map[string]string{"https": "0.0.0.0:443", "admin": "127.0.0.1:7070"}},
		{Time: fixedTime.Add(time.Second), Level: "WARN", Message: "site away", Attrs: map[string]string{"site": "lab", "reason": "the link \x1b[31mbroke\n\u009b0m"}},
	}
	missing := func(what, id string) error {
		return &admin.Error{Code: 404, Text: fmt.Sprintf("no %s %q", what, id)}
	}
	of := func(in admin.Filter, site, service string) bool {
		return (in.Site == "" || in.Site == site) && (in.Service == "" || in.Service == service)
	}
	known := func(name string) error {
		if name != "office" && name != "lab" {
			return missing("site", name)
		}
		return nil
	}
	exchange := func(id string) (*admin.Exchange, error) {
		if id != "r1" {
			return nil, missing("request", id)
		}
		return &admin.Exchange{
			Request:        requests[1],
			RequestHeader:  []admin.HeaderField{{Name: "accept", Value: "text/html"}, {Name: "cookie", Value: "(redacted)"}},
			ResponseHeader: []admin.HeaderField{{Name: "content-type", Value: "text/plain"}},
			ResponseBody:   admin.Body{Text: "hello\x1b]0;x\a\n\tworld\u009d0;x\u009c\n", Size: 5120, Truncated: true, Redacted: true},
			RequestBody:    admin.Body{Base64: []byte{0, 1, 2}, Size: 3},
		}, nil
	}
	return &admin.Handler{
		Operators: operators,
		Version:   admin.Version{Version: "v1.2.3", Wire: 6, Go: "go1.26.8", OS: "linux", Arch: "amd64"},
		Status: func() (*admin.Status, error) {
			copied := *status
			return &copied, nil
		},
		Figures: func(context.Context) (*admin.Look, error) {
			l := &admin.Look{Time: time.Now(), Visitors: status.Visitors, Requests: status.Counters.Requests}
			for i := range status.Sites {
				site := &status.Sites[i]
				one := admin.SiteLook{SiteFigures: admin.SiteFigures{Name: site.Name, State: site.State, RTT: site.RTT, Sessions: len(site.Sessions)}}
				for _, session := range site.Sessions {
					one.Streams += session.Streams
					one.Links += len(session.Links)
				}
				l.Streams += one.Streams
				l.Sites = append(l.Sites, one)
			}
			for _, s := range status.Services {
				l.Services = append(l.Services, admin.ServiceLook{Site: s.Site, Name: s.Name, Visitors: s.Visitors})
			}
			return l, nil
		},
		AddSite: func(_ context.Context, in admin.Invite) (*admin.Invitation, error) {
			return &admin.Invitation{Site: in.Name, Token: "cvt_join-me", Expires: fixedTime.Add(in.Lifetime())}, nil
		},
		RotateSite: func(_ context.Context, in admin.Rotate) (*admin.Invitation, error) {
			return &admin.Invitation{Site: in.Name, Token: "cvt_rotate-me", Expires: fixedTime.Add(24 * time.Hour)}, known(in.Name)
		},
		RevokeSite: func(_ context.Context, in admin.Revoke) error { return known(in.Name) },
		PromoteSite: func(_ context.Context, in admin.Promote) (*admin.Promoted, error) {
			if in.Name == "lab" {
				return nil, &admin.Error{Code: 409, Text: `site "lab" has no private relay connected`}
			}
			return &admin.Promoted{Session: "77aa0123"}, known(in.Name)
		},
		Streams: func(_ context.Context, in admin.Filter) (some []admin.Stream, _ error) {
			some = []admin.Stream{}
			for _, s := range streams {
				if of(in, s.Site, s.Service) && len(some) < in.Limit {
					some = append(some, s)
				}
			}
			return some, nil
		},
		Visitors: func(context.Context, admin.Limit) ([]admin.Visitor, error) {
			return []admin.Visitor{{Address: "198.51.100.4", Streams: 2, Since: since, Received: 1 << 20, Sent: 5 << 20, Services: []string{"office/intranet", "office/ssh"}}}, nil
		},
		KickSession: func(_ context.Context, in admin.ByID) error {
			if in.ID != "3f2a9c01" && in.ID != "77aa0123" {
				return missing("session", in.ID)
			}
			return nil
		},
		KickStream: func(_ context.Context, in admin.ByID) error {
			if in.ID != "s1" && in.ID != "s2" {
				return missing("stream", in.ID)
			}
			return nil
		},
		RenewCertificate: func(_ context.Context, in admin.Named) error {
			if in.Name != "intranet.example.com" {
				return missing("certificate", in.Name)
			}
			return nil
		},
		Requests: func(_ context.Context, in admin.Filter) (some []admin.Request, _ error) {
			some = []admin.Request{}
			for _, r := range requests {
				if of(in, r.Site, r.Service) {
					some = append(some, r)
				}
			}
			return some, nil
		},
		FollowRequests: func(_ context.Context, in admin.Filter, send func(admin.Request) error) error {
			for _, r := range requests {
				if !of(in, r.Site, r.Service) {
					continue
				}
				if err := send(r); err != nil {
					return err
				}
			}
			return nil
		},
		Request: func(_ context.Context, in admin.ByID) (*admin.Exchange, error) { return exchange(in.ID) },
		Replay:  func(_ context.Context, in admin.ByID) (*admin.Exchange, error) { return exchange(in.ID) },
		Alerts: func(context.Context) ([]admin.Alert, error) {
			return []admin.Alert{
				{ID: "a2", Kind: admin.AlertSiteAway, Subject: "lab", Text: "the site has been away for 5 minutes", Since: since},
				{ID: "a1", Kind: admin.AlertDisk, Subject: "/var/lib/culvert", Text: "95 % are in use", Since: since, Resolved: &resolved},
			}, nil
		},
		TestAlerts: func(context.Context) ([]admin.AlertDelivery, error) {
			return []admin.AlertDelivery{{To: "https://hooks.example.com"}, {To: "ops@example.com", Error: "no such host"}}, nil
		},
		Logs: func(_ context.Context, in admin.Lines) ([]admin.LogLine, error) {
			return logs[max(0, len(logs)-in.Lines):], nil
		},
		FollowLogs: func(_ context.Context, in admin.Lines, send func(admin.LogLine) error) error {
			for _, l := range logs[max(0, len(logs)-in.Lines):] {
				if err := send(l); err != nil {
					return err
				}
			}
			return nil
		},
	}
}

// flags leads to the fake relay with somebody's token.
func (f *fakeRelay) flags(who string) []string {
	return []string{"--admin", f.addr, "--token-file", f.tokens[who]}
}

// Each script is a transcript: a line "$ status" is a command, "$ @viewer status" one with the token of a viewer, what follows is
// what it prints, "! " before what goes to stderr, and its exit code if that is not 0.
func TestScripts(t *testing.T) {
	f := startFake(t)
	dir := t.TempDir()
	names := strings.NewReplacer("RELAY", f.addr, "NOBODY", nobody, "FOREIGN", f.foreign, "DIR", dir, "SECRET", filepath.Dir(f.tokens["admin"]))
	hide := strings.NewReplacer(f.addr, "RELAY", nobody, "NOBODY", f.foreign, "FOREIGN", dir, "DIR", filepath.Dir(f.tokens["admin"]), "SECRET")
	files, err := filepath.Glob("testdata/script/*.txt")
	if err != nil || len(files) == 0 {
		t.Fatal("no scripts:", err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			var out strings.Builder
			for line := range strings.Lines(string(b)) {
				command, isCommand := strings.CutPrefix(line, "$ ")
				switch {
				case strings.HasPrefix(line, "#"):
					if out.Len() > 0 {
						out.WriteString("\n")
					}
					out.WriteString(line)
				case isCommand:
					out.WriteString(line)
					out.WriteString(hide.Replace(f.transcript(t, strings.Fields(names.Replace(command)))))
				}
			}
			if *update {
				if err := os.WriteFile(file, []byte(out.String()), 0o666); err != nil {
					t.Fatal(err)
				}
				return
			}
			if got, want := strings.Split(out.String(), "\n"), strings.Split(string(b), "\n"); !reflect.DeepEqual(got, want) {
				for i := range min(len(got), len(want)) {
					if got[i] != want[i] {
						t.Fatalf("%s:%d: got\n%s\nwant\n%s\nwhole:\n%s", file, i+1, got[i], want[i], out.String())
					}
				}
				t.Fatalf("%s: %d lines, want %d:\n%s", file, len(got), len(want), out.String())
			}
		})
	}
}

// transcript runs a command and returns what it has said.
func (f *fakeRelay) transcript(t *testing.T, args []string) string {
	who := "admin"
	if len(args) > 0 && strings.HasPrefix(args[0], "@") {
		who, args = args[0][1:], args[1:]
	}
	code, stdout, stderr := tunnelctl(t.Context(), "", append(f.flags(who), args...)...)
	var b strings.Builder
	b.WriteString(stdout)
	for line := range strings.Lines(stderr) {
		b.WriteString("! " + line)
	}
	if code != 0 {
		fmt.Fprintf(&b, "[exit code %d]\n", code)
	}
	for _, file := range f.tokens {
		if secret, err := os.ReadFile(file); err == nil && strings.Contains(b.String(), strings.TrimSpace(string(secret))) {
			t.Errorf("%v: a token is in the output", args)
		}
	}
	noControls(t, args, b.String())
	return b.String()
}

// noControls checks that what a command has printed cannot steer a terminal.
func noControls(t *testing.T, args any, s string) {
	t.Helper()
	if i := strings.IndexFunc(s, func(r rune) bool { return unicode.IsControl(r) && r != '\n' && r != '\t' }); i >= 0 {
		t.Errorf("%v: control characters in the output: %q", args, s[i:])
	}
}

// What --json prints is what the API's types say, nothing less and nothing more; and errors are JSON, too.
func TestJSON(t *testing.T) {
	f := startFake(t)
	for args, into := range map[string]any{
		"status":                        new(admin.Status),
		"sites":                         new([]admin.Site),
		"sites office":                  new([]admin.Site),
		"services":                      new([]admin.Service),
		"sessions":                      new([]admin.Session),
		"links office":                  new([]admin.Link),
		"streams":                       new([]admin.Stream),
		"visitors":                      new([]admin.Visitor),
		"requests":                      new([]admin.Request),
		"requests show r1":              new(admin.Exchange),
		"requests replay r1":            new(admin.Exchange),
		"logs":                          new([]admin.LogLine),
		"alerts":                        new([]admin.Alert),
		"certs":                         new([]admin.Certificate),
		"site add x --publish tcp://:1": new(admin.Invitation),
		"site rotate office":            new(admin.Invitation),
		"site promote office":           new(admin.Promoted),
		"site kick office":              new(admin.Session),
		"version":                       new(versions),
		"top --once --every 200ms":      new(admin.Figures),
	} {
		code, stdout, stderr := tunnelctl(t.Context(), "", append(f.flags("admin"), append([]string{"--json"}, strings.Fields(args)...)...)...)
		noControls(t, args, stdout)
		d := json.NewDecoder(strings.NewReader(stdout))
		d.DisallowUnknownFields()
		if err := d.Decode(into); code != 0 || err != nil || stderr != "" {
			t.Errorf("%s: exit code %d, %v, stderr %q, stdout\n%s", args, code, err, stderr, stdout)
			continue
		}
		if d.More() {
			t.Errorf("%s: something follows the JSON:\n%s", args, stdout)
		}
		if reflect.ValueOf(into).Elem().IsZero() {
			t.Errorf("%s: nothing in it: %s", args, stdout)
		}
	}
	// Feeds are a line each, and end with the error that says why.
	for args, into := range map[string]any{"requests -f --no-reconnect": new(admin.Request), "logs -f --no-reconnect": new(admin.LogLine)} {
		code, stdout, stderr := tunnelctl(t.Context(), "", append(f.flags("admin"), append([]string{"--json"}, strings.Fields(args)...)...)...)
		noControls(t, args, stdout)
		n := 0
		for line := range strings.Lines(stdout) {
			n++
			if err := json.Unmarshal([]byte(line), into); err != nil {
				t.Errorf("%s: %v: %s", args, err, line)
			}
		}
		if n != 2 || code != exitUnreachable || !strings.HasPrefix(stderr, `{"error":"`) {
			t.Errorf("%s: %d lines, exit code %d, %s", args, n, code, stderr)
		}
	}
	for _, args := range []string{"sites ofice", "sites \u009bofice", "streams kick nothing", "--admin " + nobody + " status", "status --nonsense", "nonsense"} {
		code, stdout, stderr := tunnelctl(t.Context(), "", append(f.flags("admin"), append([]string{"--json"}, strings.Fields(args)...)...)...)
		noControls(t, args, stderr)
		var e struct {
			Error string `json:"error"`
			Code  int    `json:"exit_code"`
		}
		if err := json.Unmarshal([]byte(stderr), &e); err != nil || e.Error == "" || e.Code != code || code == 0 || stdout != "" {
			t.Errorf("%s: %d, %v, %q, stdout %q", args, code, err, stderr, stdout)
		}
	}
}

// Ctrl-C is how one ends what follows: no error.
func TestFollowInterrupted(t *testing.T) {
	f := startFake(t)
	for _, args := range []string{"top --json --every 200ms"} {
		ctx, cancel := context.WithCancel(t.Context())
		r, w := io.Pipe()
		codec := make(chan int, 1)
		go runForward(ctx, codec, w, append(f.flags("admin"), strings.Fields(args)...))
		if err := json.NewDecoder(r).Decode(new(admin.Figures)); err != nil {
			t.Errorf("%s: %v", args, err)
		}
		cancel()
		go io.Copy(io.Discard, r)
		if code := <-codec; code != 0 {
			t.Errorf("%s: exit code %d", args, code)
		}
		w.Close()
	}
}

// Shells are told the names that the relay knows.
func TestCompletion(t *testing.T) {
	f := startFake(t)
	for _, test := range []struct{ args, want string }{
		{"site promote ", "lab\taway\noffice\tconnected\n"},
		{"site promote office ", "3f2a9c01\tconnected\n77aa0123\tstandby\n"},
		{"site revoke of", "office\tconnected\n"},
		{"connect office/", "office/intranet\thttp\noffice/ssh\ttcp\n"},
		{"forward office/s", "office/ssh\ttcp\n"},
		{"sites lab ", ""},
		{"streams --site ", "lab\taway\noffice\tconnected\n"},
		{"streams kick ", "s2\toffice/ssh 192.0.2.33:40000\ns1\toffice/intranet 198.51.100.4:51000\n"},
		{"requests show ", "r1\tGET /?[2Jx?31m?q=1\n"},
		{"certs renew i", "intranet.example.com\n"},
		{"logs --level w", "debug\ninfo\nwarn\nerror\n"},
		{"help site p", "promote\tHave a stand-by take a site's visitors over\n"},
	} {
		// cobra wants the flags behind the name of the command that completes.
		args := append(append([]string{"__complete"}, f.flags("viewer")...), strings.Split(test.args, " ")...)
		code, stdout, _ := tunnelctl(t.Context(), "", args...)
		got, _, _ := strings.Cut(stdout, ":4\n")
		if code != 0 || got != test.want {
			t.Errorf("%s: exit code %d, %q, want %q", test.args, code, stdout, test.want)
		}
	}
	// Nobody waits for a relay that is away, and hears nothing of it.
	code, stdout, _ := tunnelctl(t.Context(), "", "__complete", "--admin", nobody, "--token-file", f.tokens["admin"], "sites", "")
	if code != 0 || stdout != ":4\n" {
		t.Errorf("without a relay: %d, %q", code, stdout)
	}
	for _, shell := range []string{"bash", "zsh", "fish", "powershell"} {
		if code, stdout, stderr := tunnelctl(t.Context(), "", "completion", shell); code != 0 || len(stdout) < 1000 || stderr != "" {
			t.Errorf("completion %s: %d, %d bytes, %s", shell, code, len(stdout), stderr)
		}
	}
}

// What JSON leaves as it is, and a terminal does not, means the same as before.
func TestEscaped(t *testing.T) {
	const text = "a\u009b2J\u007f\u202e\U000e0001ü世🙂\n"
	b, err := json.Marshal(text)
	if err != nil {
		t.Fatal(err)
	}
	var back string
	if got := string(escaped(b)); got != `"a\u009b2J\u007f\u202e\udb40\udc01ü世🙂\n"` || json.Unmarshal([]byte(got), &back) != nil || back != text {
		t.Errorf("%s, which is %q", got, back)
	}
	if got := string(escaped([]byte("\"\x9b\""))); got != `"\ufffd"` { // of a json.RawMessage
		t.Errorf("%s", got)
	}
}

// The script for bash does in bash what it is to do. The functions of the package bash-completion are as small as they can be here.
func TestBashCompletion(t *testing.T) {
	bash, err := exec.LookPath("bash")
	if err != nil || runtime.GOOS != "linux" { // elsewhere it is too old
		t.Skip("no bash")
	}
	f := startFake(t)
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Symlink(self, filepath.Join(dir, "tunnelctl")); err != nil {
		t.Fatal(err)
	}
	const script = `
_get_comp_words_by_ref() {
	cur=${COMP_WORDS[COMP_CWORD]} prev=${COMP_WORDS[COMP_CWORD-1]} words=("${COMP_WORDS[@]}") cword=$COMP_CWORD
}
__ltrim_colon_completions() { :; }
compopt() { :; }
source <(tunnelctl completion bash)
try() {
	COMP_WORDS=(tunnelctl "$@") COMP_CWORD=$# COMP_LINE="tunnelctl $*" COMP_TYPE=9 COMP_KEY=9 COMPREPLY=()
	COMP_POINT=${#COMP_LINE}
	__start_tunnelctl
	echo "$*: ${COMPREPLY[*]}"
}
try sit
try site prom
try site promote o
try forward office/ss
try forward office/db 80
try logs --level w
try help exit
try operator add x --role v
`
	cmd := exec.CommandContext(t.Context(), bash, "--norc", "--noprofile", "-c", script)
	cmd.Env = append(os.Environ(), beProgram+"=1", "PATH="+dir+string(os.PathListSeparator)+os.Getenv("PATH"), "CULVERT_ADMIN="+f.addr, "CULVERT_TOKEN_FILE="+f.tokens["viewer"])
	out, err := cmd.CombinedOutput()
	const want = `sit: site sites
site prom: promote
site promote o: office
forward office/ss: office/ssh
forward office/db 80: 
logs --level w: warn
help exit: exit-codes
operator add x --role v: viewer
`
	if err != nil || string(out) != want {
		t.Errorf("%v\n%s", err, out)
	}
}

// A --relay that is none says so, and what to look at.
func TestRelayWrong(t *testing.T) {
	f := startFake(t)
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		for {
			c, err := silent.Accept()
			if err != nil {
				return
			}
			io.CopyN(io.Discard, c, 1)
			c.Close()
		}
	}()
	defer func() { silent.Close(); <-done }()
	for _, command := range [][]string{{"status"}, {"ping", "office", "-c", "1"}} {
		for addr, want := range map[string]string{nobody: "nothing listens on", f.foreign: "does not speak TLS", silent.Addr().String(): "has ended the connection"} {
			args := append([]string{"--relay", "https://" + addr, "--token-file", f.tokens["admin"]}, command...)
			code, _, stderr := tunnelctl(t.Context(), "", args...)
			if code != exitUnreachable || !strings.Contains(stderr, want) || !strings.Contains(stderr, "is --relay the URL of") {
				t.Errorf("%q: exit code %d, %s", args, code, stderr)
			}
		}
	}
}

// The relay's https listener is not what --admin wants: it answers what is no TLS with an alert.
func TestAdminWrong(t *testing.T) {
	f := startFake(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	go func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 4096))
			c.Write([]byte("\x15\x03\x01\x00\x02\x02\x46"))
			c.Close()
		}
	}()
	code, _, stderr := tunnelctl(t.Context(), "", "--admin", ln.Addr().String(), "--token-file", f.tokens["admin"], "status")
	if code != exitUnreachable || !strings.Contains(stderr, "does not speak HTTP: is --admin") {
		t.Errorf("exit code %d, %s", code, stderr)
	}
}

// version tells of the relay if one answers, and why not if none does; that is no error.
func TestVersion(t *testing.T) {
	f := startFake(t)
	for _, test := range []struct {
		args           []string
		stdout, stderr string
	}{
		{append(f.flags("viewer"), "version"), "relay   v1.2.3 (wire 6, go1.26.8, linux/amd64)\n", ""},
		{append(f.flags("viewer"), "version", "--client"), "", ""},
		{[]string{"--admin", f.foreign, "--token-file", f.tokens["admin"], "version"}, "", "but not as the admin API of a relay"},
	} {
		code, stdout, stderr := tunnelctl(t.Context(), "", test.args...)
		mine, theirs, _ := strings.Cut(stdout, "\n")
		if code != 0 || !strings.HasPrefix(mine, "culvert ") || theirs != test.stdout || !strings.Contains(stderr, test.stderr) || test.stderr == "" && stderr != "" {
			t.Errorf("%v: exit code %d, %q, %q", test.args, code, stdout, stderr)
		}
	}
}
