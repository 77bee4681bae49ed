package http2

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
)

// TestConformance runs h2spec, which .ci/tools installs, against a server of ours.
func TestConformance(t *testing.T) {
	bin, err := filepath.Abs("../../.ci/bin/h2spec")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		if bin, err = exec.LookPath("h2spec"); err != nil {
			t.Skip("no h2spec: run .ci/tools")
		}
	}
	host, port, _ := net.SplitHostPort(serve(t, new(Endpoint)))
	out, err := exec.Command(bin, "-h", host, "-p", port, "--strict", "-o", "2", "generic", "http2", "hpack").CombinedOutput()
	if err != nil {
		t.Errorf("%v\n%s", err, out)
	} else {
		t.Logf("%s", out[max(0, len(out)-200):])
	}
}
