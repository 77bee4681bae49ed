package daemon

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("os/signal.loop"))
}

func TestNewLogger(t *testing.T) {
	var b bytes.Buffer
	for _, test := range []struct{ format, level, want string }{
		{"text", "info", "msg=ready https=127.0.0.1:443\n"},
		{"json", "warn", ""},
		{"auto", "info", `"msg":"ready","https":"127.0.0.1:443"}` + "\n"},
	} {
		b.Reset()
		log, err := NewLogger(&b, test.format, test.level)
		if err != nil {
			t.Fatal(err)
		}
		Ready(log, "https", "127.0.0.1:443")
		if !strings.HasSuffix(b.String(), test.want) || test.want == "" && b.Len() > 0 {
			t.Errorf("%s, %s: %q", test.format, test.level, b.String())
		}
	}
	for _, bad := range [][2]string{{"xml", "info"}, {"text", "loud"}} {
		if _, err := NewLogger(&b, bad[0], bad[1]); ExitCode(err) != ExitUsage {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestExitCode(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{{nil, 0}, {errors.New("x"), 1}, {UsageError("x"), 2}, {errors.Join(Problems{{Message: "x"}}), 2}, {context.Canceled, 1}} {
		if got := ExitCode(test.err); got != test.want {
			t.Errorf("%v: %d", test.err, got)
		}
	}
}

// What systemd is told in the life of a service.
func TestNotify(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Skip(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	want := func(prefix string) {
		t.Helper()
		b := make([]byte, 256)
		n, err := c.Read(b)
		if err != nil || !strings.HasPrefix(string(b[:n]), prefix) {
			t.Errorf("got %q, %v, want %q", b[:n], err, prefix)
		}
	}
	Ready(slog.New(slog.DiscardHandler))
	want("READY=1")
	Reloading()
	want("RELOADING=1\nMONOTONIC_USEC=")
	Reloaded()
	want("READY=1")
	Stopping()
	want("STOPPING=1")

	// A service manager that went away is not the service's problem.
	c.Close()
	Stopping()
}
