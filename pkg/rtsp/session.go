package rtsp

import (
	"bytes"
	"slices"
	"strings"
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

// AppendRTPInfo appends a camera's RTP-Info with the visitor's URLs in it. An absolute URL that is not below
// the prefix becomes the prefix, named[i] the name that AppendSDP gave it; all else stays as it is.
func (m Mapping) AppendRTPInfo(dst, v []byte, named []string) []byte {
	for rest := string(v); rest != ""; {
		var before, url, params string
		before, url, params, rest = cutRTPInfo(rest)
		plain := unquote(url)
		if to, ok := m.ToVisitor(plain); ok {
			plain = to
		} else if i := slices.Index(named, plain); i >= 0 {
			plain = m.name(i)
		} else if strings.Contains(plain, "://") {
			plain = m.Visitor
		}
		dst = append(dst, before...)
		if strings.HasPrefix(url, `"`) {
			dst = append(dst, '"')
			dst = append(dst, plain...)
			dst = append(dst, '"')
		} else {
			dst = append(dst, plain...)
		}
		dst = append(dst, params...)
	}
	return dst
}

// cutRTPInfo cuts the first stream off an RTP-Info: what is before its URL, the URL, its parameters with
// the comma that ends them, and the rest. URLs have commas, semicolons and '=' in them and are often not quoted.
func cutRTPInfo(s string) (before, url, params, rest string) {
	i := indexFold(s, "url=")
	if i < 0 {
		return s, "", "", ""
	}
	i += len("url=")
	end := len(s)
	if strings.HasPrefix(s[i:], `"`) {
		if n := strings.IndexByte(s[i+1:], '"'); n >= 0 {
			end = i + 1 + n + 1
		}
	} else {
		// The URL ends where a parameter begins, or the next stream.
		for at := i; at < len(s); at++ {
			if s[at] == ';' && startsAny(s[at+1:], "seq=", "rtptime=", "ssrc=") || s[at] == ',' && startsAny(s[at+1:], "url=") {
				end = at
				break
			}
		}
	}
	next := len(s)
	for at := end; at < len(s); at++ {
		if s[at] == ',' && startsAny(s[at+1:], "url=") {
			next = at + 1
			break
		}
	}
	return s[:i], s[i:end], s[end:next], s[next:]
}

func startsAny(s string, prefixes ...string) bool {
	s = strings.TrimLeft(s, " \t")
	for _, p := range prefixes {
		if len(s) >= len(p) && Is([]byte(s[:len(p)]), p) {
			return true
		}
	}
	return false
}
