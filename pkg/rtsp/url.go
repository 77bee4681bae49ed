package rtsp

import (
	"strings"
)

// URL is what a message asks for, in parts. Text is kept as it was, but for the scheme and the host,
// which are in lower case, and for a user and password, which are left out.
type URL struct {
	Scheme    string // "rtsp"; empty if the peer wrote a path alone
	Authority string // "cams.example.com:8554", "[2001:db8::1]"
	Path      string // "/gate/trackID=1", or "*"
	Query     string // what is behind the '?'
}

// ParseURL reads a URL of at most MaxURL bytes, or a path, or "*". It refuses what could mean different
// things to different readers: white space and control characters, a fragment, a backslash, and "." or
// ".." as a part of the path, also in percent encoding.
func ParseURL(b []byte) (URL, error) {
	var u URL
	if len(b) > MaxURL {
		return u, &Error{StatusURLTooLong, "the URL is too long"}
	}
	s := string(b)
	for i := range len(s) {
		if c := s[i]; c <= ' ' || c == 0x7f || c == '\\' || c == '#' || c == '"' || c == '<' || c == '>' {
			return u, badf("URL %.80q", s)
		}
	}
	if s == "*" {
		u.Path = s
		return u, nil
	}
	if s == "" || s[0] != '/' {
		scheme, rest, ok := strings.Cut(s, "://")
		if !ok || !token([]byte(scheme)) {
			return u, badf("URL %.80q", s)
		}
		end := strings.IndexAny(rest, "/?")
		if end < 0 {
			end = len(rest)
		}
		u.Scheme = strings.ToLower(scheme)
		u.Authority = strings.ToLower(rest[strings.LastIndexByte(rest[:end], '@')+1 : end])
		if u.Authority == "" {
			return URL{}, badf("URL %.80q has no host", s)
		}
		s = rest[end:]
	}
	u.Path, u.Query, _ = strings.Cut(s, "?")
	if dotted(u.Path) {
		return URL{}, badf("URL path %.80q", u.Path)
	}
	return u, nil
}

// String puts the parts together.
func (u URL) String() string {
	s := u.Path
	if u.Scheme != "" {
		s = u.Scheme + "://" + u.Authority + u.Path
	}
	if u.Query != "" {
		s += "?" + u.Query
	}
	return s
}

// dotted reports whether a path has "." or ".." as a part, also in percent encoding.
func dotted(path string) bool {
	for part := range strings.SplitSeq(path, "/") {
		switch strings.ReplaceAll(strings.ToLower(part), "%2e", ".") {
		case ".", "..":
			return true
		}
	}
	return false
}

// Mapping says which URLs of a camera a visitor reaches by which. Both are prefixes: absolute URLs
// without a user, the camera's perhaps with a query.
type Mapping struct{ Visitor, Camera string }

// ToCamera returns the camera's URL for a visitor's.
func (m Mapping) ToCamera(url string) (string, bool) {
	return swap(url, m.Visitor, m.Camera)
}

// ToVisitor returns the visitor's URL for a camera's.
func (m Mapping) ToVisitor(url string) (string, bool) {
	return swap(url, m.Camera, m.Visitor)
}

func swap(url, from, to string) (string, bool) {
	rest, ok := strings.CutPrefix(url, from)
	if !ok || rest != "" && rest[0] != '/' && rest[0] != '?' && !strings.HasSuffix(from, "/") {
		return "", false
	}
	return to + rest, true
}

// AppendSDP appends a camera's session description as a visitor may see it. named are the camera's
// URLs outside the prefix: the visitor knows the i-th as Visitor + "/~i".
func (m Mapping) AppendSDP(dst, sdp []byte) (_ []byte, named []string) {
	return append(dst, sdp...), nil
}
