package daemon

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

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
	Stopping(30 * time.Second)
	want("STOPPING=1\nEXTEND_TIMEOUT_USEC=40000000")

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Report(ctx, func() string { return "2 sites,\n7 visitors" })
	}()
	want("STATUS=2 sites, 7 visitors")
	cancel()
	<-done

	// A service manager that went away is not the service's problem.
	c.Close()
	Stopping(0)
}

// A loop that is stuck is named, and is not posted to again; one that turns again is fine.
func TestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		posts, stuck := 0, true
		var held func()
		p := &Probe{N: 2, Post: func(i int, f func()) bool {
			if i == 0 || !stuck {
				go f()
				return true
			}
			posts++
			held = f
			return true
		}}
		turn := func() string {
			ctx, cancel := context.WithTimeout(t.Context(), time.Second)
			defer cancel()
			return fmt.Sprint(p.Turn(ctx))
		}
		for range 3 {
			if err := turn(); err != "event loop 1 does not turn" {
				t.Error(err)
			}
		}
		if posts != 1 {
			t.Errorf("%d posts to a loop that is stuck", posts)
		}
		stuck = false
		held()
		if err := turn(); err != "<nil>" {
			t.Error(err)
		}
		p.Post = func(i int, _ func()) bool { return false }
		for range 2 {
			if err := turn(); err != "event loop 0 has ended" {
				t.Error(err)
			}
		}
	})
}

// The watchdog hears of a process as long as all its loops turn.
func TestWatchdog(t *testing.T) {
	path := filepath.Join(t.TempDir(), "notify")
	c, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Skip(err)
	}
	defer c.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	pings := func(limit time.Duration) bool {
		b := make([]byte, 256)
		c.SetReadDeadline(time.Now().Add(limit))
		n, err := c.Read(b)
		return err == nil && string(b[:n]) == "WATCHDOG=1"
	}
	var stuck atomic.Bool
	held := make(chan func(), 1)
	post := func(i int, f func()) bool {
		if i == 1 && stuck.Load() {
			held <- f
		} else {
			f()
		}
		return true
	}

	probe := &Probe{N: 2, Post: post}
	Watchdog(t.Context(), probe) // nobody watches
	t.Setenv("WATCHDOG_USEC", "20000")
	t.Setenv("WATCHDOG_PID", "1")
	Watchdog(t.Context(), probe) // nobody watches us
	t.Setenv("WATCHDOG_PID", strconv.Itoa(os.Getpid()))
	Watchdog(t.Context(), &Probe{N: 2, Post: func(int, func()) bool { return false }}) // the loops have ended

	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		Watchdog(ctx, probe)
	}()
	for range 3 {
		if !pings(10 * time.Second) {
			t.Fatal("no ping from loops that turn")
		}
	}
	stuck.Store(true)
	f := <-held
	for pings(100 * time.Millisecond) { // those that were on the way
	}
	if pings(200 * time.Millisecond) {
		t.Error("a ping while a loop is stuck")
	}
	stuck.Store(false)
	f()
	if !pings(10 * time.Second) {
		t.Error("no ping when the loop turns again")
	}
	stuck.Store(true)
	<-held
	cancel() // while it waits
	<-done
}

// A loop that is slow in every turn fills no log.
func TestSlowTurns(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var b bytes.Buffer
		slow := SlowTurns(slog.New(slog.NewTextHandler(&b, nil)))
		for i := range 1000 {
			slow("*link.events", time.Duration(i)*time.Millisecond)
			time.Sleep(15 * time.Millisecond)
		}
		if n := strings.Count(b.String(), "slow turn"); n != 2 || !strings.Contains(b.String(), "before=666 longest=666ms") {
			t.Errorf("%d lines:\n%s", n, b.String())
		}
	})
}

// Two processes on one folder are told apart; the lock of one that has ended is free.
func TestLockFolder(t *testing.T) {
	dir := t.TempDir()
	unlock, err := LockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	want := fmt.Sprintf("%s is in use by another process (pid %d): stop that one, or give this one a folder of its own", dir, os.Getpid())
	if _, err := LockFolder(dir); fmt.Sprint(err) != want {
		t.Errorf("locked twice: %v", err)
	}
	unlock()
	unlock, err = LockFolder(dir)
	if err != nil {
		t.Fatal(err)
	}
	unlock()
	if _, err := LockFolder(filepath.Join(dir, "missing")); err == nil {
		t.Error("locked a folder that is not there")
	}
}
