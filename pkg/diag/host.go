package diag

import (
	"os"
	"runtime"
	"strings"
	"time"
)

// Host is what there is to know of the machine.
type Host struct {
	Site       string    `json:"site"`
	Name       string    `json:"name"`
	System     string    `json:"system"`           // linux/amd64
	Kernel     string    `json:"kernel,omitempty"` // its version
	Software   string    `json:"software"`         // of the relay
	Go         string    `json:"go"`
	Processors int       `json:"processors"`
	Time       time.Time `json:"time"` // now, by its clock
	Zone       string    `json:"zone"` // "CET +01:00"
	ZoneName   string    `json:"zone_name,omitempty"`
	Synced     *bool     `json:"clock_synchronized,omitempty"` // as the kernel has been told by whoever sets its clock; missing: not known

	Uptime      float64   `json:"uptime_s,omitempty"` // of the machine; 0: not known
	Running     float64   `json:"running_s"`          // of the relay
	Load        []float64 `json:"load,omitempty"`     // of 1, 5 and 15 minutes
	Memory      uint64    `json:"memory,omitempty"`   // bytes
	Available   uint64    `json:"memory_available,omitempty"`
	Used        uint64    `json:"relay_memory"` // what the relay has of the system
	Goroutines  int       `json:"goroutines"`
	OpenFiles   int       `json:"open_files,omitempty"` // of the relay; 0: not known
	MaxFiles    uint64    `json:"max_files,omitempty"`
	Disks       []Disk    `json:"disks,omitempty"`
	Nameservers []string  `json:"nameservers,omitempty"`
	NTP         []string  `json:"ntp,omitempty"` // servers that Clock asks
}

// Disk is one that the relay needs.
type Disk struct {
	Path      string `json:"path"`
	Size      uint64 `json:"size"` // bytes
	Available uint64 `json:"available"`
}

func (s *Site) host() Host {
	name, _ := os.Hostname()
	now := time.Now()
	zone, _ := now.Zone()
	h := Host{
		Site: s.Name, Name: printable(name), System: runtime.GOOS + "/" + runtime.GOARCH, Software: s.Software, Go: runtime.Version(),
		Processors: runtime.NumCPU(), Time: now, Zone: strings.TrimSpace(zone + " " + now.Format("-07:00")), ZoneName: zoneName(),
		Running: time.Since(s.began).Seconds(), Goroutines: runtime.NumGoroutine(), Nameservers: s.nameservers(), NTP: s.ntp(),
	}
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	h.Used = m.Sys
	h.fill()
	for _, path := range append([]string{rootPath()}, s.Folders...) {
		if d, err := disk(path); err == nil && d.Size > 0 {
			h.Disks = append(h.Disks, d)
		}
	}
	return h
}

// rootPath is the disk that the system is on.
func rootPath() string {
	if runtime.GOOS == "windows" {
		return `C:\`
	}
	return "/"
}

// zoneName is the name in the database of time zones, where the system says it.
func zoneName() string {
	if to, err := os.Readlink("/etc/localtime"); err == nil {
		if _, name, ok := strings.Cut(to, "zoneinfo/"); ok {
			return printable(name)
		}
	}
	return ""
}
