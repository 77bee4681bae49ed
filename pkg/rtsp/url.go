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

// dotted reports whether a path has "." or ".." as a part, also for who decodes percent signs before slashes are looked for.
func dotted(path string) bool {
	if strings.Contains(path, "%") {
		path = decoded.Replace(path)
	}
	for part := range strings.SplitSeq(path, "/") {
		if part == "." || part == ".." {
			return true
		}
	}
	return false
}

var decoded = strings.NewReplacer("%2e", ".", "%2E", ".", "%2f", "/", "%2F", "/", "%5c", "/", "%5C", "/")

// Mapping says which URLs of a camera a visitor reaches by which. Both are prefixes: absolute URLs, the
// camera's perhaps with a query, below which some cameras put their tracks:
//
//	rtsp://10.0.0.20/cam/realmonitor?channel=1&subtype=0/trackID=1
//
// A user in a URL does not matter, nor does the case of a host or whether the scheme's own port is written.
type Mapping struct {
	Visitor, Camera string

	// Base is the Content-Base of the camera's description, if it had one that ToVisitor cannot map. The
	// tracks of that description are below it.
	Base string
}

// ToCamera returns the camera's URL for a visitor's, or false for one that is not below the prefix. One
// that a reader of paths could take out of it again, with "..", is not.
func (m Mapping) ToCamera(url string) (string, bool) {
	_, _, rest, ok := split(url)
	path, _, _ := strings.Cut(rest, "?")
	if !ok || dotted(path) {
		return "", false
	}
	return swap(url, m.Visitor, m.Camera)
}

// ToVisitor returns the visitor's URL for a camera's, or false for one that is not below the prefix: of
// another host, even if that is another name of the camera, another scheme, port or path. Nor is one with a query
// that the prefix has not: some cameras write user and password there.
func (m Mapping) ToVisitor(url string) (string, bool) {
	v, ok := swap(url, m.Camera, m.Visitor)
	rest := v[min(len(v), len(m.Visitor)):]
	if !ok || strings.HasPrefix(rest, "/~") || strings.Contains(rest, "?") { // "~": a name of what is outside
		return "", false
	}
	return v, true
}

// split cuts a URL behind the authority, which it returns in the form to compare.
func split(url string) (scheme, authority, rest string, ok bool) {
	scheme, rest, ok = strings.Cut(url, "://")
	end := strings.IndexAny(rest, "/?")
	if end < 0 {
		end = len(rest)
	}
	scheme = strings.ToLower(scheme)
	authority = strings.ToLower(rest[strings.LastIndexByte(rest[:end], '@')+1 : end])
	switch scheme {
	case "rtsp":
		authority = strings.TrimSuffix(authority, ":554")
	case "rtsps":
		authority = strings.TrimSuffix(authority, ":322")
	}
	return scheme, authority, rest[end:], ok
}

func swap(url, from, to string) (string, bool) {
	scheme, authority, rest, ok := split(url)
	wantScheme, wantAuthority, prefix, _ := split(from)
	if !ok || scheme != wantScheme || authority != wantAuthority {
		return "", false
	}
	query := strings.Contains(prefix, "?")
	slash := strings.HasSuffix(prefix, "/")
	if slash && rest == prefix[:len(prefix)-1] {
		rest = prefix
	}
	rest, ok = strings.CutPrefix(rest, prefix)
	if !ok {
		return "", false
	}
	if rest != "" && !slash && rest[0] != '/' && rest[0] != '?' && !(query && rest[0] == '&') {
		return "", false
	}
	if rest == "" {
		return to, true
	}
	toQuery := strings.Contains(to, "?")
	switch {
	case rest[0] == '?' && toQuery:
		return to + "&" + rest[1:], true
	case rest[0] == '&' && query && !slash:
		if toQuery {
			return to + rest, true
		}
		return to + "?" + rest[1:], true
	case rest[0] == '?':
		return to + rest, true
	}
	return strings.TrimSuffix(to, "/") + "/" + strings.TrimPrefix(rest, "/"), true
}
