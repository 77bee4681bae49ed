//go:build darwin || freebsd || netbsd || openbsd || dragonfly

package daemon

import "golang.org/x/sys/unix"

const getTermios, setTermios = unix.TIOCGETA, unix.TIOCSETAF
