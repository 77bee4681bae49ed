//go:build !windows

package main

import (
	"os"
	"os/signal"
	"syscall"
)

// enableSequences does nothing: terminals know them.
func enableSequences(*os.File) (restore func(), err error) { return func() {}, nil }

// watchSize has c told when the size of the terminal changes, until stop is called.
func watchSize(c chan os.Signal) (stop func()) {
	signal.Notify(c, syscall.SIGWINCH)
	return func() { signal.Stop(c) }
}

// suspend does what Ctrl-Z does in other programs, and returns when the program is in the foreground again.
func suspend() { syscall.Kill(syscall.Getpid(), syscall.SIGSTOP) }
