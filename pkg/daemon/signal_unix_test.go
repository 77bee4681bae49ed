//go:build unix

package daemon

import (
	"context"
	"os"
	"os/exec"
	"syscall"
	"testing"
)

func TestSignals(t *testing.T) {
	if os.Getenv("DAEMON_TEST_CHILD") != "" {
		// Told to stop and never finishing its drain: the second signal must end it.
		ctx, stop := Signals(context.Background(), func() {})
		defer stop()
		kill(t, syscall.SIGTERM)
		<-ctx.Done()
		kill(t, syscall.SIGTERM)
		select {}
	}

	reloads := make(chan bool)
	ctx, stop := Signals(t.Context(), func() { reloads <- true })
	kill(t, syscall.SIGHUP)
	<-reloads
	if ctx.Err() != nil {
		t.Fatal("SIGHUP ended the context")
	}
	kill(t, syscall.SIGTERM)
	<-ctx.Done()
	stop()

	child := exec.Command(os.Args[0], "-test.run=^TestSignals$")
	child.Env = append(os.Environ(), "DAEMON_TEST_CHILD=1")
	err := child.Run()
	if code := child.ProcessState.ExitCode(); code != ExitFailed {
		t.Errorf("after a second SIGTERM: exit code %d, %v", code, err)
	}
}

func kill(t *testing.T, s syscall.Signal) {
	t.Helper()
	if err := syscall.Kill(os.Getpid(), s); err != nil {
		t.Fatal(err)
	}
}
