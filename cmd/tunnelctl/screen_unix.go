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
// It waits to be told so: the signal that stops it may come a moment later, and the terminal is the shell's then.
func suspend() {
	goOn := make(chan os.Signal, 1)
	signal.Notify(goOn, syscall.SIGCONT)
	defer signal.Stop(goOn)
	if syscall.Kill(syscall.Getpid(), syscall.SIGSTOP) == nil {
		<-goOn
	}
}
