package main

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"syscall"
	"testing"

	"culvert.dev/pkg/admin"
	"culvert.dev/pkg/auth"
	"culvert.dev/pkg/daemon"
)

// following is a command that runs until it is told to end.
type following struct {
	t              *testing.T
	stdout, stderr *bufio.Reader
	stop           func()
	code           chan int
}

func (f *fakeRelay) follow(t *testing.T, who string, args ...string) *following {
	ctx, cancel := context.WithCancel(t.Context())
	outr, out := io.Pipe()
	errr, errs := io.Pipe()
	c := &following{t, bufio.NewReader(outr), bufio.NewReader(errr), cancel, make(chan int, 1)}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		c.code <- command(ctx, append(f.flags(who), args...), strings.NewReader(""), out, errs)
		out.Close()
		errs.Close()
	}()
	t.Cleanup(func() {
		cancel()
		outr.Close()
		errr.Close()
		<-ended
	})
	return c
}

// wants reads lines until one has that text.
func (c *following) wants(from *bufio.Reader, text string) {
	c.t.Helper()
	for {
		line, err := from.ReadString('\n')
		if err != nil {
			c.t.Fatalf("no %q: exit code %d", text, <-c.code)
		}
		if strings.Contains(line, text) {
			return
		}
	}
}

// end tells it to end, unless that is nil, and returns the exit code and what else it has said.
func (c *following) end(stop func()) (code int, stdout, stderr string) {
	read := make(chan string, 1)
	go func() {
		b, _ := io.ReadAll(c.stdout)
		read <- string(b)
	}()
	if stop != nil {
		stop()
	}
	b, _ := io.ReadAll(c.stderr)
	return <-c.code, <-read, string(b)
}

// What follows goes on when the relay has ended a feed, and says so: each line of the log is printed once.
func TestFollowAgain(t *testing.T) {
	f := startFake(t) // whose feeds end after two events
	for _, test := range []struct {
		args, note string
		isTwice    bool
	}{
		{"requests -f", f.addr + " is away: waiting for it (the relay has ended the answer", true},
		{"logs -f", f.addr + " is away: waiting for it (the relay has ended the answer", false},
		{"--json logs -f", `{"note":"` + f.addr + " is away: waiting for it (the relay has ended the answer", false},
	} {
		c := f.follow(t, "admin", strings.Fields(test.args)...)
		first, err := c.stdout.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		if _, err := c.stdout.ReadString('\n'); err != nil {
			t.Fatal(err)
		}
		c.wants(c.stderr, test.note)
		c.wants(c.stderr, f.addr+" is back")
		if test.isTwice {
			c.wants(c.stdout, strings.TrimSpace(first))
			c.stop()
		}
		stop := c.stop
		if !test.isTwice {
			c.wants(c.stderr, test.note) // what there was has come again
		}
		if code, stdout, stderr := c.end(stop); code != 0 || !test.isTwice && stdout != "" {
			t.Errorf("%s: exit code %d, %q, %q", test.args, code, stdout, stderr)
		}
	}
}

// Who is not let in any more is told so. Another role is no reason to end, as long as it is large enough.
func TestFollowRevoked(t *testing.T) {
	f := startFake(t)
	do := func(args ...string) func() {
		return func() {
			if code, _, stderr := tunnelctl(t.Context(), "", append(f.flags("admin"), args...)...); code != 0 {
				t.Errorf("%q: exit code %d, %s", args, code, stderr)
			}
		}
	}

	c := f.follow(t, "operator", "top", "--json", "--every", "200ms")
	c.wants(c.stdout, "{")
	do("operator", "role", "operator-vera", "admin")()
	do("operator", "role", "operator-vera", "operator")()
	for range 5 { // no more than two were on their way before the change
		c.wants(c.stdout, "{")
	}
	code, _, stderr := c.end(do("operator", "remove", "operator-vera"))
	if code != exitDenied || !strings.Contains(stderr, "does not accept the token") {
		t.Errorf("after its operator was removed: exit code %d, %s", code, stderr)
	}

	do("operator", "add", "zoe", "--role", "operator")()
	_, secret, _ := tunnelctl(t.Context(), "", append(f.flags("admin"), "token", "create", "--operator", "zoe")...)
	if err := os.WriteFile(f.tokens["operator"], []byte(secret), 0o600); err != nil {
		t.Fatal(err)
	}
	c = f.follow(t, "operator", "logs", "-f")
	c.wants(c.stdout, "site away")
	code, _, stderr = c.end(do("operator", "role", "zoe", auth.Viewer.String()))
	if code != exitDenied || !strings.Contains(stderr, "logs/Follow needs the role operator") {
		t.Errorf("as a viewer: exit code %d, %s", code, stderr)
	}
}

// A connection that breaks may be had later, a port that is taken is the caller's matter.
func TestExitCode(t *testing.T) {
	for _, test := range []struct {
		err  error
		want int
	}{
		{&net.OpError{Op: "dial", Err: syscall.EHOSTUNREACH}, exitUnreachable},
		{fmt.Errorf("the feed broke off: %w", &net.OpError{Op: "read", Err: syscall.ETIMEDOUT}), exitUnreachable},
		{&net.OpError{Op: "accept", Err: net.ErrClosed}, daemon.ExitFailed},
		{&net.OpError{Op: "listen", Err: syscall.EADDRINUSE}, daemon.ExitFailed},
		{&admin.Error{Code: 400}, daemon.ExitUsage},
		{&admin.Error{Code: 409}, daemon.ExitFailed},
	} {
		if got := exitCode(test.err); got != test.want {
			t.Errorf("%v: %d, want %d", test.err, got, test.want)
		}
	}
}
