package daemon

import (
	"os"
	"syscall"
)

var (
	stopSignals   = []os.Signal{syscall.SIGTERM, os.Interrupt}
	reloadSignals []os.Signal
)
