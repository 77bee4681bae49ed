package rtsp

import (
	"bytes"
	"strconv"
	"strings"
)

// MaxMedia bounds the streams of a description that a visitor may know by numbers.
const MaxMedia = 32

// name returns the visitor's URL for what the camera has outside the prefix.
func (m Mapping) name(i int) string {
	return strings.TrimSuffix(m.Visitor, "/") + "/~" + strconv.Itoa(i)
}

// AppendSDP appends a camera's session description (RFC 4566) as a visitor may see it: control attributes
// (rfc2326#section-C.1.1) are relative or the visitor's URLs, and no line has the camera's address. All else is as
// it was, to the byte.
//
// named are URLs of the camera that are not below the prefix: the visitor knows the i-th as Visitor + "/~i".
// Control attributes beyond MaxMedia of those are left out.
func (m Mapping) AppendSDP(dst, sdp []byte) (_ []byte, named []string) {
	host := m.cameraHost()
	for len(sdp) > 0 {
		end := bytes.IndexByte(sdp, '\n') + 1
		if end == 0 {
			end = len(sdp)
		}
		line := bytes.TrimRight(sdp[:end], "\r\n")
		eol := sdp[len(line):end]
		sdp = sdp[end:]
		switch key, value, _ := bytes.Cut(line, []byte(":")); {
		case Is(bytes.TrimSpace(key), "a=control"):
			control, ok := m.control(string(bytes.TrimSpace(value)), host, &named)
			if !ok {
				continue
			}
			dst = append(dst, "a=control:"...)
			dst = append(dst, control...)
		case bytes.HasPrefix(line, []byte("o=")), bytes.HasPrefix(line, []byte("c=")):
			dst = appendWithoutAddress(dst, line, host)
		default:
			dst = hide(dst, line, host)
		}
		dst = append(dst, eol...)
	}
	return dst, named
}

// cameraHost returns the camera's name or address, to be hidden.
func (m Mapping) cameraHost() string {
	_, authority, _, _ := split(m.Camera)
	if v6, ok := strings.CutPrefix(authority, "["); ok {
		v6, _, _ = strings.Cut(v6, "]")
		return v6
	}
	host, _, _ := strings.Cut(authority, ":")
	return host
}

// control returns what a control attribute says to the visitor.
func (m Mapping) control(v, host string, named *[]string) (string, bool) {
	hidden := func(s string) bool { return host != "" && indexFold(s, host) >= 0 }
	url := v
	switch {
	case v == "*" || v == "":
		return v, true
	case strings.Contains(v, "://") && !strings.HasPrefix(v, "/"):
	case strings.HasPrefix(v, "/"):
		// Players differ in what an absolute path is relative to (rfc3986#section-5.2.2 says the host).
		camera, _, _ := strings.Cut(m.Camera, "://")
		_, authority, _, _ := split(m.Camera)
		url = camera + "://" + authority + v
	case m.Base == "" && !hidden(v):
		return v, true
	default:
		base := m.Base
		if base == "" {
			base = m.Camera
		}
		url = strings.TrimSuffix(base, "/") + "/" + v
	}
	if to, ok := m.ToVisitor(url); ok && !hidden(strings.TrimPrefix(to, m.Visitor)) {
		return to, true
	}
	for i, n := range *named {
		if n == url {
			return m.name(i), true
		}
	}
	if len(*named) == MaxMedia {
		return "", false
	}
	*named = append(*named, url)
	return m.name(len(*named) - 1), true
}

// appendWithoutAddress appends an o= or c= line with the unspecified address of the same family in place
// of what follows the type of the address (rfc4566#section-5.2, section 5.7).
func appendWithoutAddress(dst, line []byte, host string) []byte {
	at, address := 0, ""
	for i := len(line) - len(" IP4 "); i > 0 && at == 0; i-- {
		switch family := line[i : i+len(" IP4 ")]; {
		case Is(family, " ip4 "):
			at, address = i+len(family), "0.0.0.0"
		case Is(family, " ip6 "):
			at, address = i+len(family), "::"
		}
	}
	if at > 0 {
		return append(hide(dst, line[:at], host), address...)
	}
	return hide(dst, line, host)
}

// hide appends a line with 0.0.0.0 for each time that it has the camera's host, as the names of some
// sessions do. A host that is a single word is not looked for: it could be any part of a parameter.
func hide(dst, line []byte, host string) []byte {
	if !strings.ContainsAny(host, ".:") {
		return append(dst, line...)
	}
	for {
		i := indexFold(line, host)
		if i < 0 {
			return append(dst, line...)
		}
		dst = append(dst, line[:i]...)
		dst = append(dst, "0.0.0.0"...)
		line = line[i+len(host):]
	}
}

// indexFold is bytes.Index for a sep in lower case that is looked for in any case.
func indexFold[T []byte | string](s T, sep string) int {
	for i := 0; i+len(sep) <= len(s); i++ {
		n := 0
		for n < len(sep) && lower(s[i+n]) == sep[n] {
			n++
		}
		if n == len(sep) {
			return i
		}
	}
	return -1
}
