package daemon

import (
	"context"
	"log/slog"
	"net"
	"os"
	"strconv"
	"strings"
	"time"
)

// Ready says that the service can be used: one log line, msg=ready with the attributes (usually addresses),
// and READY=1 to the service manager.
func Ready(log *slog.Logger, attrs ...any) {
	log.Info("ready", attrs...)
	notify("READY=1")
}

// Reloading and then Reloaded enclose a reload, so that `systemctl reload` of a unit with Type=notify-reload
// returns when the new configuration is in force.
func Reloading() { notify("RELOADING=1\nMONOTONIC_USEC=" + monotonicMicroseconds()) }

// Reloaded ends what Reloading began, whether or not the new configuration was taken.
func Reloaded() { notify("READY=1") }

// Stopping tells the service manager that draining has begun and how long it may take; some seconds more are asked for.
func Stopping(drain time.Duration) {
	notify("STOPPING=1\nEXTEND_TIMEOUT_USEC=" + strconv.FormatInt((drain+stopMargin).Microseconds(), 10))
}

// stopMargin is what a command may take to end after its drain.
const stopMargin = 10 * time.Second

// Report keeps the service manager's line about the service (systemctl status) up to date, until ctx is done: text is
// asked for it every 5 seconds. It returns at once when there is no service manager.
func Report(ctx context.Context, text func() string) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	ticker := time.NewTicker(5 * time.Second)
	defer ticker.Stop()
	for last := ""; ; {
		if now := strings.ReplaceAll(text(), "\n", " "); now != last {
			notify("STATUS=" + now)
			last = now
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// notify sends the state to the socket that systemd names, see sd_notify(3). Without one, and when nobody
// reads it, the state is of no interest: there is no error to report to anybody.
func notify(state string) {
	path := os.Getenv("NOTIFY_SOCKET") // a leading @ means an abstract address, to net as well
	if path == "" {
		return
	}
	c, err := net.DialUnix("unixgram", nil, &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return
	}
	defer c.Close()
	_, _ = c.Write([]byte(state))
}
