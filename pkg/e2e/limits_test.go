//go:build linux

package e2e

import (
	"runtime"
	"syscall"
	"time"
)

// hangup asks a relay to read its configuration again.
const hangup = syscall.SIGHUP

func cores() int { return runtime.NumCPU() }

// descriptors is the number of files that a process of ours may open. Go raises the soft
// limit to the hard one by itself, in this process and in the relays.
func descriptors() int {
	var l syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &l); err != nil {
		return 1024
	}
	return int(min(l.Max, 1<<20))
}

// waitLimit bounds one step of a test that would otherwise wait for ever.
const waitLimit = 60 * time.Second
