//go:build linux

package e2e

import (
	"encoding/json"
	"io"
	"net/http"
	"net/http/httptest"
	"os/exec"
	"strings"
	"testing"
	"time"

	"culvert.dev/pkg/admin"
)

// A server of the operator's machine has visitors for as long as tunnelctl runs, also across a restart of the relay.
func TestExpose(t *testing.T) {
	t.Parallel()
	s := configure(t, nil)
	s.sites += "[operators]\nexpose = [\"https://*.example.com\"]\n"
	s.startPublic()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, "from the laptop: "+r.Host) }))
	defer server.Close()
	target := strings.TrimPrefix(server.URL, "http://")

	add := func(name, role string) *exec.Cmd {
		file := s.file(name + ".token")
		var made admin.NewToken
		if err := json.Unmarshal([]byte(run(t, s.tunnelctl("--json", "operator", "add", name, "--role", role))), &made); err != nil {
			t.Fatal(err)
		}
		writeFile(t, file, made.Token)
		return exec.Command(command(t, "tunnelctl"), "--admin", s.admin, "--ca", certFile("ca.pem"), "--token-file", file)
	}
	ada, vic := add("ada", "operator"), add("vic", "viewer")
	fails := func(c *exec.Cmd, code int, want string, args ...string) {
		t.Helper()
		one := exec.Command(c.Path, append(c.Args[1:], args...)...)
		out, err := one.CombinedOutput()
		if err == nil || one.ProcessState.ExitCode() != code || !strings.Contains(string(out), want) {
			t.Errorf("%q: %v\n%s\nwant exit code %d and %q", args, err, out, code, want)
		}
	}
	fails(vic, 3, "operator", "expose", target)
	fails(ada, 3, "[operators] expose", "expose", target, "--publish", "https://intranet.example.net")
	fails(ada, 2, "LOCAL", "expose", "nonsense")

	p := start(t, "tunnelctl expose", exec.Command(ada.Path, append(ada.Args[1:], "expose", target)...))
	line := p.await(t, 0, " -> ")
	address, _, _ := strings.Cut(line, " -> ")
	host, _, _ := strings.Cut(strings.TrimPrefix(address, "https://"), ":")
	if !strings.HasSuffix(host, ".example.com") {
		t.Fatalf("exposed at %q", line)
	}
	get := func() string {
		out, _ := s.curlCmd("https://" + host + "/").Output()
		return string(out)
	}
	if got := get(); got != "from the laptop: "+host {
		t.Errorf("got %q", got)
	}
	fails(ada, 1, "already", "expose", target, "--publish", "https://"+host)

	// The relay forgets such sites when it ends. They come back by themselves, under the same name.
	s.public.stop()
	s.startPublic()
	for deadline := time.Now().Add(time.Minute); get() != "from the laptop: "+host; time.Sleep(200 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("after a restart: %q", get())
		}
	}
	p.stop()
	if got := get(); strings.Contains(got, "laptop") {
		t.Errorf("after the end: %q", got)
	}
}
