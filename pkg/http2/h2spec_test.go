package http2

import (
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"testing"
)

// TestConformance runs h2spec, which .ci/tools installs, against a server of ours.
func TestConformance(t *testing.T) {
	bin, err := filepath.Abs("../../.ci/bin/h2spec")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(bin); err != nil {
		switch bin, err = exec.LookPath("h2spec"); {
		case err == nil:
		case runtime.GOOS == "linux":
			t.Fatal("h2spec is neither in .ci/bin nor in the PATH: run .ci/tools")
		default:
			t.Skip(".ci/tools is for Linux")
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
