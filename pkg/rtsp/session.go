package rtsp

import (
	"bytes"
	"time"
)

// DefaultTimeout is how long a server keeps a silent session if it does not say otherwise
// (rfc2326#section-12.37).
const DefaultTimeout = time.Minute

// ParseSession reads a Session field. The timeout is DefaultTimeout if there is none that makes sense.
func ParseSession(v []byte) (id string, timeout time.Duration) {
	b, rest, more := bytes.Cut(v, []byte(";"))
	timeout = DefaultTimeout
	for more {
		var p []byte
		p, rest, more = bytes.Cut(rest, []byte(";"))
		name, value, _ := bytes.Cut(p, []byte("="))
		if Is(bytes.TrimSpace(name), "timeout") {
			if n, ok := digits(bytes.TrimSpace(value)); ok && n > 0 {
				timeout = min(time.Duration(n)*time.Second, 24*time.Hour)
			}
		}
	}
	return string(bytes.TrimSpace(b)), timeout
}
