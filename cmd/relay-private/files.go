package main

import (
	"net"
	"strconv"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/relay"
	"culvert.dev/pkg/relay/private"
)

// filesConfig is what a [[service]] that is published as tftp:// may do with files.
type filesConfig struct {
	// Write lets visitors write files: "new" those that are not there, "replace" (or true) those that are, too. TFTP
	// knows no users: say with Allow who may come. The default is false. Targets of http:// and https:// are only read.
	Write daemon.BoolOrString `toml:"write"`

	// MaxSize bounds a file that is written: "10MB", "64KiB", or a number of bytes. The default is "1GiB".
	MaxSize daemon.Size `toml:"max_size"`

	// Cache lets the public relay keep what was read in its memory. Whoever asks for the same file then gets that, if
	// this relay says that it has not changed. The default is true.
	Cache bool `toml:"cache"`

	// IgnoreCase finds files of a file:// target whose names differ in case, and takes backslashes in names as slashes,
	// which loaders of Windows write. The default is false.
	IgnoreCase bool `toml:"ignore_case"`
}

const defaultMaxSize = 1 << 30

// files reads what c says into svc, whose publish and target are known. Mistakes go to f; at is the service there.
func (c *filesConfig) files(f *daemon.File, at string, svc *private.Service) {
	has := func(key string) bool { return f.Has(at + "." + key) }
	if svc.Publish.Scheme != "tftp" {
		for _, key := range []string{"write", "max_size", "cache", "ignore_case"} {
			if has(key) {
				f.Addf(at+"."+key, "%s is for tftp:// publishes", key)
			}
		}
		return
	}
	svc.Files = &relay.Files{Cache: !has("cache") || c.Cache}
	switch w := c.Write.(type) {
	case bool:
		if w {
			svc.Files.Write = relay.WriteReplace
		}
	case string:
		if w != relay.WriteNew && w != relay.WriteReplace {
			f.Addf(at+".write", "write %q is none of false, true, %q, %q", w, relay.WriteNew, relay.WriteReplace)
			break
		}
		svc.Files.Write = w
	}
	switch {
	case c.Write == nil || c.Write == false:
		if has("max_size") {
			f.Addf(at+".max_size", "max_size bounds what visitors write, and write is false")
		}
	case !has("max_size"):
		svc.Files.MaxSize = defaultMaxSize
	case c.MaxSize <= 0:
		f.Addf(at+".max_size", "max_size %d: want bytes, such as \"64MiB\"; write = false has nobody write at all", c.MaxSize)
	default:
		svc.Files.MaxSize = int64(c.MaxSize)
	}
	if svc.IgnoreCase = c.IgnoreCase; c.IgnoreCase && svc.Target.Scheme != "file" {
		f.Addf(at+".ignore_case", "ignore_case is for file:// targets, not %s://: others look files up themselves", svc.Target.Scheme)
	}
}

// check checks the addresses. Mistakes go to f.
func (c *listenConfig) check(f *daemon.File) {
	_, text, err := net.SplitHostPort(c.TFTP)
	_, numErr := strconv.ParseUint(text, 10, 16)
	switch ports := "listen.tftp_ports"; {
	case c.TFTP == "":
		if c.TFTPPorts != (daemon.PortRange{}) {
			f.Addf(ports, "tftp_ports: listen.tftp is missing, where requests come in")
		}
	case err != nil || numErr != nil:
		f.Addf("listen.tftp", "listen.tftp %q: want HOST:PORT or :PORT, such as \"192.0.2.1:69\"", c.TFTP)
	case c.TFTPPorts.Has(c.TFTP):
		f.Addf(ports, "tftp_ports: the port of listen.tftp is in the range")
	}
}
