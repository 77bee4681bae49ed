//go:build linux

package e2e

import (
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// buildExample compiles the program of docs/example, once for the whole run.
var buildExample = sync.OnceValues(func() (string, error) {
	name := filepath.Join(root, "example")
	cmd := exec.Command("go", "build", "-o", name, "./docs/example")
	cmd.Dir = filepath.Join("..", "..")
	out, err := cmd.CombinedOutput()
	return string(out), err
})

// TestExample runs the example of the documentation: a program that joins by a token, is reached by curl, ends at Ctrl-C, and
// needs no token the next time.
func TestExample(t *testing.T) {
	if out, err := buildExample(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	s := newSystem(t)
	add := s.tunnelctl("site", "add", "calculator", "--publish", "https://calc.example.com")
	token, err := add.Output()
	if err != nil {
		t.Fatalf("site add: %v", err)
	}
	dir := tempDir(t)
	begin := func(token string) *process {
		cmd := exec.Command(filepath.Join(root, "example"), "https://calc.example.com")
		cmd.Dir = dir
		// The test's authority is none of the system's, and the token does not know it.
		cmd.Env = append(os.Environ(), "CULVERT_TOKEN="+token, "SSL_CERT_FILE="+certFile("ca.pem"))
		p := start(t, "example", cmd)
		p.await(t, 0, "service up", "calculator")
		return p
	}
	sum := func() string {
		return s.curl("--get", s.url("calc", "/calc/Sum"), "-d", "a=3.12", "-d", "b=4.2")
	}
	p := begin(strings.TrimSpace(string(token)))
	if got := strings.TrimSpace(sum()); got != `{"result":7.32}` {
		t.Errorf("curl has got %q", got)
	}
	if got := s.curl(s.url("calc", "/calc/Sum")+"?a=x&b=1", "-w", " %{http_code}"); !strings.Contains(got, `"a\"`) || !strings.HasSuffix(got, "400") {
		t.Errorf("what is no number: %q", got)
	}
	var doc struct{ OpenAPI string }
	if err := json.Unmarshal([]byte(s.curl(s.url("calc", "/openapi.json"))), &doc); err != nil || !strings.HasPrefix(doc.OpenAPI, "3.1") {
		t.Errorf("openapi.json: %+v, %v", doc, err)
	}
	p.signal(t, os.Interrupt)
	if code := p.wait(t, time.Minute); code != 0 {
		t.Errorf("ended by Ctrl-C with %d", code)
	}
	p = begin("")
	if got := strings.TrimSpace(sum()); got != `{"result":7.32}` {
		t.Errorf("without a token, curl has got %q", got)
	}
	p.signal(t, syscall.SIGTERM)
	if code := p.wait(t, time.Minute); code != 0 {
		t.Errorf("ended by SIGTERM with %d", code)
	}

	// What the site may not publish is an error of the program.
	cmd := exec.Command(filepath.Join(root, "example"), "https://other.example.com")
	cmd.Dir = dir
	cmd.Env = append(os.Environ(), "SSL_CERT_FILE="+certFile("ca.pem"))
	if out, _ := cmd.CombinedOutput(); !strings.Contains(string(out), `service "calculator": the public relay does not take it`) {
		t.Errorf("a name of somebody else: %s", out)
	}
}
