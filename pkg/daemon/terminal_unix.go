//go:build linux || darwin || freebsd || netbsd || openbsd || dragonfly

package daemon

import (
	"os"
	"os/signal"

	"golang.org/x/sys/unix"
)

// isTyped reports whether what comes from f is typed by somebody.
func isTyped(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), getTermios)
	return err == nil
}

// hideInput has the terminal not show what is typed until restore is called, or the program is
// interrupted.
func hideInput(f *os.File) (restore func(), err error) {
	fd := int(f.Fd())
	old, err := unix.IoctlGetTermios(fd, getTermios)
	if err != nil {
		return nil, err
	}
	quiet := *old
	quiet.Lflag &^= unix.ECHO
	quiet.Lflag |= unix.ICANON | unix.ISIG
	interrupted := make(chan os.Signal, 1)
	signal.Notify(interrupted, os.Interrupt, unix.SIGTERM)
	ended := make(chan struct{})
	go func() {
		select {
		case <-interrupted:
			unix.IoctlSetTermios(fd, setTermios, old)
			os.Exit(1)
		case <-ended:
		}
	}()
	return func() {
		signal.Stop(interrupted)
		close(ended)
		unix.IoctlSetTermios(fd, setTermios, old)
	}, unix.IoctlSetTermios(fd, setTermios, &quiet)
}
