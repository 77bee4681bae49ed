//go:build !linux

package daemon

// monotonicMicroseconds is for systemd, which runs on Linux alone.
func monotonicMicroseconds() string { return "0" }
