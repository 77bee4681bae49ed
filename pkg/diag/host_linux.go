package diag

import (
	"bytes"
	"os"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// fill adds what Linux tells.
func (h *Host) fill() {
	var u unix.Utsname
	if unix.Uname(&u) == nil {
		h.Kernel = printable(string(u.Release[:bytes.IndexByte(u.Release[:], 0)]))
	}
	if f := fieldsOf("/proc/uptime"); len(f) > 0 {
		h.Uptime, _ = strconv.ParseFloat(f[0], 64)
	}
	if f := fieldsOf("/proc/loadavg"); len(f) >= 3 {
		for _, s := range f[:3] {
			v, _ := strconv.ParseFloat(s, 64)
			h.Load = append(h.Load, v)
		}
	}
	b, _ := os.ReadFile("/proc/meminfo")
	for line := range strings.Lines(string(b)) {
		f := strings.Fields(line)
		if len(f) < 2 {
			continue
		}
		n, _ := strconv.ParseUint(f[1], 10, 64)
		switch f[0] {
		case "MemTotal:":
			h.Memory = n << 10
		case "MemAvailable:":
			h.Available = n << 10
		}
	}
	if d, err := os.Open("/proc/self/fd"); err == nil {
		if names, err := d.Readdirnames(1 << 20); err == nil {
			h.OpenFiles = len(names) - 1 // without the folder itself
		}
		d.Close()
	}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		h.MaxFiles = limit.Cur
	}
	var clock unix.Timex
	if state, err := unix.Adjtimex(&clock); err == nil {
		synced := state != unix.TIME_ERROR && clock.Status&unix.STA_UNSYNC == 0
		h.Synced = &synced
	}
}

func fieldsOf(name string) []string {
	b, err := os.ReadFile(name)
	if err != nil {
		return nil
	}
	return strings.Fields(string(b))
}
