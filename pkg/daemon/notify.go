package daemon

import (
	"log/slog"
	"net"
	"os"
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

// Stopping tells the service manager that draining has begun.
func Stopping() { notify("STOPPING=1") }

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
