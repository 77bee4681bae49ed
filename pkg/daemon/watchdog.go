package daemon

import (
	"context"
	"os"
	"strconv"
	"time"
)

// Watchdog tells the service manager that the process is alive, twice in the time that it gives (WATCHDOG_USEC, see
// sd_watchdog_enabled(3)), until ctx is done. A process is alive when each of its event loops runs what is posted to
// it: one that is stuck ends the messages, and the service manager ends the process. It returns at once when nobody
// watches, and when a loop has ended.
func Watchdog(ctx context.Context, p *Probe) {
	every := watchdogTime() / 2
	if every <= 0 {
		return
	}
	ticker := time.NewTicker(every)
	defer ticker.Stop()
	for p.Turn(ctx) == nil {
		notify("WATCHDOG=1")
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// watchdogTime is after how long without a message the service manager ends the process; 0: never.
func watchdogTime() time.Duration {
	if pid := os.Getenv("WATCHDOG_PID"); pid != "" && pid != strconv.Itoa(os.Getpid()) {
		return 0
	}
	usec, err := strconv.ParseInt(os.Getenv("WATCHDOG_USEC"), 10, 64)
	if err != nil || usec <= 0 || usec > int64(24*time.Hour/time.Microsecond) {
		return 0
	}
	return time.Duration(usec) * time.Microsecond
}
