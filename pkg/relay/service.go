package relay

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
)

// A Service is what a site publishes: where visitors come in and where they end
// up.
type Service struct {
	Name    string
	Publish Publish // zero: reachable by operators only
	Target  Target

	Policy  *Policy // what is demanded of visitors; nil: nothing
	Camera  *Camera // how a camera is shown; nil: with nothing of that, and for targets that are none
	Inspect bool    // operators of the public relay may see heads and bodies of requests, and send them again. For http, https, ws and wss publishes
	Files   *Files  // what may be done with files; nil: they are read, and not cached. For tftp publishes only
}

// A Camera says what the public relay does with the streams of a camera. It is part of an announcement, and as
// strict as a Policy: a field that is not known makes it an error.
type Camera struct {
	FanOut  bool `json:"fan_out,omitempty"` // all visitors share one stream of the camera
	UDP     bool `json:"udp,omitempty"`     // visitors may have RTP over UDP
	Roaming bool `json:"roaming,omitempty"` // the two connections of RTSP over HTTP may come from different addresses
}

// UnmarshalJSON takes what MarshalJSON writes, and nothing else.
func (c *Camera) UnmarshalJSON(b []byte) error {
	type plain Camera
	var q plain
	if err := decodeStrict(b, "camera", &q); err != nil {
		return err
	}
	*c = Camera(q)
	return nil
}

// ErrInspect is what Validate says of a service with Inspect that has no requests over HTTP.
var ErrInspect = errors.New("inspect is for http:// and https:// publishes")

// Validate reports what is wrong with s, naming the service.
func (s Service) Validate() error {
	if err := CheckName(s.Name); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	if s.Target.Scheme == "" {
		return fmt.Errorf("service %q: no target", s.Name)
	}
	if s.Camera != nil && !s.Target.IsCamera() {
		return fmt.Errorf("service %q: fan_out, udp and roaming are for rtsp:// and rtsps:// targets, not %s://", s.Name, s.Target.Scheme)
	}
	if s.Inspect && (s.Publish.IsZero() || s.Publish.IsCamera() || !OnHTTP(s.Publish.Scheme, true) && !OnHTTP(s.Publish.Scheme, false)) {
		return fmt.Errorf("service %q: %w", s.Name, ErrInspect)
	}
	if err := s.validateFiles(); err != nil {
		return fmt.Errorf("service %q: %w", s.Name, err)
	}
	switch {
	case s.Publish.Scheme == "tftp":
	case s.Target.Scheme == "rest" && !s.Publish.IsZero() && s.Publish.Scheme != "https" && s.Publish.Scheme != "tls":
		return fmt.Errorf("service %q: a rest:// target is published by https:// or tls://, not %s://: what it tells is not for everybody on the way", s.Name, s.Publish.Scheme)
	case s.Target.Scheme == "rest" && s.Publish.Scheme == "https" && (s.Policy == nil || len(s.Policy.Users) == 0 && s.Policy.ClientCA == ""):
		return fmt.Errorf("service %q: a rest:// target is for operators: leave publish out, or demand users or client_ca of visitors", s.Name)
	case s.Publish.IsZero(): // operators reach any target
	case s.Publish.Scheme == "tcp":
		if s.Target.Scheme != "tcp" && s.Target.Scheme != "unix" && s.Target.Scheme != SchemeListen {
			return fmt.Errorf("service %q: a tcp:// publish needs a tcp:// or unix:// target, not %s://", s.Name, s.Target.Scheme)
		}
	case s.Publish.Scheme == "udp":
		if s.Target.Scheme != "udp" {
			return fmt.Errorf("service %q: a udp:// publish needs a udp:// target, not %s://", s.Name, s.Target.Scheme)
		}
	case s.Publish.Scheme == "tls":
		// What the target speaks is inside the TLS, or behind it when the private relay ends that.
		if s.Target.Scheme == "udp" {
			return fmt.Errorf("service %q: a tls:// publish carries no datagrams: want a tcp:// or unix:// target, not udp://", s.Name)
		}
		if s.Target.IsCamera() {
			return fmt.Errorf("service %q: a tls:// publish is passed through, and no camera is asked for anything there: publish rtsps:// or name a tcp:// target, not %s://", s.Name, s.Target.Scheme)
		}
	case s.Publish.IsCamera():
		if !s.Target.IsCamera() {
			return fmt.Errorf("service %q: an %s:// publish needs an rtsp:// or rtsps:// target, not %s://", s.Name, s.Publish.Scheme, s.Target.Scheme)
		}
	case s.Target.IsCamera():
		return fmt.Errorf("service %q: an %s:// target needs an rtsp:// or rtsps:// publish, which has a page for browsers, too; not %s://", s.Name, s.Target.Scheme, s.Publish.Scheme)
	case isPort(s.Target.Scheme):
		return fmt.Errorf("service %q: an %s:// publish needs an http://, https://, h2c://, h2://, unix:// or file:// target, not %s://", s.Name, s.Publish.Scheme, s.Target.Scheme)
	}
	if s.Policy != nil {
		if err := s.Policy.Validate(s.Publish.Scheme); err != nil {
			return fmt.Errorf("service %q: %w", s.Name, err)
		}
	}
	return nil
}

// A Publish says where visitors reach a service. The zero value is a service that
// no visitor reaches. It is comparable, and marshals as its URL.
type Publish struct {
	Scheme string // "https", "http", "wss", "ws", "rtsp", "rtsps", "tls", "tcp", "udp" or "tftp". https carries WebSocket too, and so does http; rtsp has rtsps in it
	Host   string // lower case, without brackets; may be "*.example.com", except for ports, where "" means every address; "" for tftp
	Port   uint16 // tcp and udp only; 0 lets the public relay choose
	Path   string // prefix at a segment boundary: "/" or "/a/b"; "" for tls, tcp and udp
}

// A Target says where the private relay connects the visitors of a service to. It
// marshals as its URL, without its secrets.
type Target struct {
	Scheme string // "http", "https", "h2c", "h2", "rtsp", "rtsps", "tcp", "udp", "tftp", "unix", "file", "rest" or SchemeListen; ws:// and wss:// are read as http and https
	Host   string // but for unix and file: a name or an address without brackets; of rest: what answers, "site"
	Port   uint16 // but for unix, file and rest
	Path   string // of unix and file: absolute; of rtsp, rtsps and snapshots: as written, or ""; of tftp, http and https: see base

	// Of rtsp, rtsps and snapshots only.
	User, Password string // decoded; "": none
	Query          string // as written, without '?'
}

// SchemeListen is the scheme of a target that is the program in which the private relay runs. It has no URL: a file of a
// configuration cannot name it.
const SchemeListen = "listen"

// PerVisitor reports whether a stream to a target of that scheme carries the requests of one visitor's connection, so that
// its header says who they are from. Streams to other HTTP targets are shared, and X-Forwarded-For says it.
func PerVisitor(scheme string) bool { return scheme == "rest" || scheme == SchemeListen }

// ParsePublish reads a publish URL.
func ParsePublish(s string) (Publish, error) {
	p, err := parsePublish(s)
	if err != nil {
		return Publish{}, fmt.Errorf("publish %q: %w", clip(redact(s)), err)
	}
	return p, nil
}

func parsePublish(s string) (Publish, error) {
	u, err := splitURL(s, false)
	if err != nil {
		return Publish{}, err
	}
	p := Publish{Scheme: u.scheme, Host: u.host}
	switch u.scheme {
	case "https", "http", "wss", "ws", "rtsp", "rtsps":
		if u.port != "" {
			return Publish{}, errors.New("leave the port out: the public relay's listeners have it")
		}
		if err := checkHost(u.host, true); err != nil {
			return Publish{}, err
		}
		p.Path, err = cleanPath(u.path)
		return p, err
	case "tls":
		switch {
		case u.port != "":
			return Publish{}, errors.New("leave the port out: the public relay's https listener has it")
		case u.path != "" && u.path != "/":
			return Publish{}, errors.New("tls has no path: it is inside the encryption")
		}
		if _, err := netip.ParseAddr(u.host); err == nil {
			return Publish{}, errors.New("want a host name: TLS clients do not say which address they mean")
		}
		return p, checkHost(u.host, true)
	case "tftp":
		if u.host != "" || u.port != "" {
			return Publish{}, errors.New("want the path after three slashes, tftp:///boot: TFTP clients do not say which host they mean, and the public relay's tftp listener has the port")
		}
		p.Path, err = cleanPath(u.path)
		return p, err
	case "tcp", "udp":
		if u.path != "" && u.path != "/" {
			return Publish{}, errors.New(u.scheme + " has no path")
		}
		if u.host != "" {
			if err := checkHost(u.host, false); err != nil {
				return Publish{}, err
			}
		}
		if u.port == "" {
			return Publish{}, errors.New("no port: want " + u.scheme + "://:15432")
		}
		p.Port, err = parsePort(u.port)
		return p, err
	}
	return Publish{}, unsupported(u.scheme)
}

// ParseTarget reads a target URL.
func ParseTarget(s string) (Target, error) {
	t, err := parseTarget(s)
	if err != nil {
		return Target{}, fmt.Errorf("target %q: %w", clip(redact(s)), err)
	}
	return t, nil
}

// ParseSnapshot reads the http:// or https:// URL at which a camera has a picture of what it sees.
func ParseSnapshot(s string) (Target, error) {
	t, err := parseSnapshot(s)
	if err != nil {
		return Target{}, fmt.Errorf("snapshot %q: %w", clip(redact(s)), err)
	}
	return t, nil
}

func parseSnapshot(s string) (Target, error) {
	u, err := splitURL(s, true)
	if err != nil {
		return Target{}, err
	}
	t := Target{Scheme: u.scheme}
	switch u.scheme {
	case "http":
		t.Port = 80
	case "https":
		t.Port = 443
	default:
		return Target{}, errors.New("want http:// or https://")
	}
	return t, t.locate(u)
}

// locate sets what u says of a server and of a thing there. The port is the default one before.
func (t *Target) locate(u rawURL) (err error) {
	if err := checkHost(u.host, false); err != nil {
		return err
	}
	t.Host, t.Path, t.Query = u.host, u.path, u.query
	if u.port != "" {
		if t.Port, err = parsePort(u.port); err != nil {
			return err
		}
		if t.Port == 0 {
			return errors.New("port 0: want 1 to 65535")
		}
	}
	t.User, t.Password, err = splitUser(u.user)
	return err
}

func parseTarget(s string) (Target, error) {
	scheme, _, _ := strings.Cut(s, "://")
	u, err := splitURL(s, isCamera(strings.ToLower(scheme)))
	if err != nil {
		return Target{}, err
	}
	t := Target{Scheme: u.scheme, Host: u.host}
	switch u.scheme {
	case "ws":
		t.Scheme = "http"
	case "wss":
		t.Scheme = "https"
	}
	switch t.Scheme {
	case "rtsp":
		t.Port = 554 // rfc7826#section-4.2
		return t, t.locate(u)
	case "rtsps":
		t.Port = 322
		return t, t.locate(u)
	case "http", "https", "tftp", "h2c", "h2", "tcp", "udp":
		switch {
		case t.Scheme == "http", t.Scheme == "https", t.Scheme == "tftp":
			if t.Path, err = base(t.Scheme, u.path); err != nil {
				return Target{}, err
			}
		case u.path == "" || u.path == "/":
		case isPort(t.Scheme):
			return Target{}, errors.New(t.Scheme + " has no path")
		default:
			return Target{}, ErrTargetPath
		}
		if err := checkHost(u.host, false); err != nil {
			return Target{}, err
		}
		switch {
		case u.port != "":
			if t.Port, err = parsePort(u.port); err != nil {
				return Target{}, err
			}
			if t.Port == 0 {
				return Target{}, errors.New("port 0: want 1 to 65535")
			}
		case t.Scheme == "http", t.Scheme == "h2c":
			t.Port = 80
		case t.Scheme == "https", t.Scheme == "h2":
			t.Port = 443
		case t.Scheme == "tftp":
			t.Port = 69
		default:
			return Target{}, errors.New("no port: want " + t.Scheme + "://host:port")
		}
		return t, nil
	case "rest":
		if u.host != "site" || u.port != "" || u.path != "" && u.path != "/" {
			return Target{}, errors.New("want rest://site: what this relay itself tells of its site")
		}
		return t, nil
	case "unix", "file":
		if u.host != "" || u.port != "" {
			return Target{}, fmt.Errorf("want an absolute path after three slashes: %s:///path", t.Scheme)
		}
		if len(u.path) < 2 || u.path[0] != '/' {
			return Target{}, fmt.Errorf("no path: want %s:///path", t.Scheme)
		}
		t.Path = u.path
		if len(t.Path) >= 3 && t.Path[2] == ':' && isAlnum(t.Path[1]) {
			t.Path = t.Path[1:] // file:///C:/srv on Windows
		}
		return t, nil
	}
	return Target{}, unsupported(u.scheme)
}

// splitUser takes the user and the password of a URL apart and decodes them. Its errors show neither.
func splitUser(s string) (user, password string, err error) {
	user, password, _ = strings.Cut(s, ":")
	for _, p := range []*string{&user, &password} {
		plain, err := url.PathUnescape(*p)
		if err != nil {
			return "", "", errors.New("the user or password has a '%' that is no escape: write %25")
		}
		if strings.ContainsFunc(plain, func(r rune) bool { return r < ' ' || r == 0x7f }) {
			return "", "", errors.New("the user or password has a control character")
		}
		*p = plain
	}
	if strings.Contains(user, ":") || user == "" && password != "" {
		return "", "", errors.New("the user's name is empty or has a colon, and HTTP and RTSP know no such users") // rfc7617#section-2
	}
	return user, password, nil
}

// IsCamera reports whether p shows a camera: it is reached by RTSP in all its forms, and by browsers.
func (p Publish) IsCamera() bool { return isCamera(p.Scheme) }

// IsCamera reports whether t is a camera.
func (t Target) IsCamera() bool { return isCamera(t.Scheme) }

func isCamera(scheme string) bool { return scheme == "rtsp" || scheme == "rtsps" }

// OnHTTP reports whether what is published by scheme has an address on the public relay's https listener, or
// on its http listener if not secure. Cameras have one on both unless they are rtsps.
func OnHTTP(scheme string, secure bool) bool {
	switch scheme {
	case "https", "wss", "rtsps":
		return secure
	case "http", "ws":
		return !secure
	}
	return scheme == "rtsp"
}

// IsHTTP2 reports whether the target of that scheme speaks HTTP/2 and nothing else.
func IsHTTP2(scheme string) bool { return scheme == "h2c" || scheme == "h2" }

// IsPort reports whether p is a port of its own, and not a name on the relay's
// https and http listeners.
func (p Publish) IsPort() bool { return isPort(p.Scheme) }

func isPort(scheme string) bool { return scheme == "tcp" || scheme == "udp" }

// IsZero reports whether p publishes nothing.
func (p Publish) IsZero() bool { return p == Publish{} }

// String returns the URL that ParsePublish reads, or "" for the zero value.
func (p Publish) String() string {
	switch p.Scheme {
	case "":
		return ""
	case "tcp", "udp":
		return p.Scheme + "://" + net.JoinHostPort(p.Host, strconv.Itoa(int(p.Port)))
	}
	path := p.Path
	if path == "/" && p.Scheme != "tftp" {
		path = ""
	}
	return p.Scheme + "://" + bracket(p.Host) + path
}

// MarshalText returns the URL.
func (p Publish) MarshalText() ([]byte, error) { return []byte(p.String()), nil }

// UnmarshalText reads what ParsePublish reads, or "" as the zero value.
func (p *Publish) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*p = Publish{}
		return nil
	}
	*p, err = ParsePublish(string(b))
	return err
}

// HasSecret reports whether t has something in it that String does not show: a user, a password, or a
// path or query with a password in it, as some cameras have.
func (t Target) HasSecret() bool {
	return t.User != "" || t.Password != "" || !t.isPath() && secretIn(t.Path+"?"+t.Query) >= 0
}

// String returns the URL that ParseTarget reads, with "…" in place of secrets, or "" for the zero value.
func (t Target) String() string {
	switch {
	case t.Scheme == "":
		return ""
	case PerVisitor(t.Scheme):
		return t.Scheme + "://" + t.Host
	case t.isPath():
		if strings.HasPrefix(t.Path, "/") {
			return t.Scheme + "://" + t.Path
		}
		return t.Scheme + ":///" + t.Path
	}
	address := net.JoinHostPort(t.Host, strconv.Itoa(int(t.Port)))
	if t.User != "" || t.Password != "" {
		address = "…@" + address
	}
	path := t.Path
	if t.Query != "" {
		path += "?" + t.Query
	}
	if i := secretIn(path); i >= 0 {
		path = path[:i] + "…"
	}
	return t.Scheme + "://" + address + path
}

// isPath reports whether t is something on a disk.
func (t Target) isPath() bool { return t.Scheme == "unix" || t.Scheme == "file" }

// MarshalText returns the URL.
func (t Target) MarshalText() ([]byte, error) { return []byte(t.String()), nil }

// UnmarshalText reads what ParseTarget reads, or "" as the zero value.
func (t *Target) UnmarshalText(b []byte) (err error) {
	if len(b) == 0 {
		*t = Target{}
		return nil
	}
	*t, err = ParseTarget(string(b))
	return err
}

// rawURL is a URL taken apart at its delimiters. net/url is not used because it
// refuses port ranges, repairs what should be an error and decodes what must
// arrive as it is.
type rawURL struct {
	scheme      string
	host, port  string // host in lower case, without brackets
	path        string // as written, with its leading slash, or ""
	user, query string // as written; the user with the password
}

// splitURL takes a URL apart, which may have a user and a query if full.
func splitURL(s string, full bool) (u rawURL, err error) {
	if s == "" {
		return u, errors.New("is empty")
	}
	if len(s) > MaxURL {
		return u, fmt.Errorf("has %d bytes, more than %d", len(s), MaxURL)
	}
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok || scheme == "" {
		return u, errors.New("want scheme://host/path")
	}
	u.scheme = strings.ToLower(scheme)
	authority, ends := rest, "/"
	if full {
		ends = "/?"
	}
	if i := strings.IndexAny(rest, ends); i >= 0 {
		authority, u.path = rest[:i], rest[i:]
	}
	onDisk := u.scheme == "file" || u.scheme == "unix" // a path there is a file name: any characters
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ' || c == 0x7f || c == ' ' && !onDisk:
			return u, errors.New("contains a space or a control character")
		case c > 0x7f && (!onDisk || i < len(s)-len(u.path)):
			return u, errors.New("is not ASCII: write the host in its xn-- form")
		case (c == '?' && !full || c == '#') && (!onDisk || i < len(s)-len(u.path)):
			return u, errors.New("has a query or a fragment")
		}
	}
	if full {
		u.path, u.query, _ = strings.Cut(u.path, "?")
		if i := strings.LastIndexByte(authority, '@'); i >= 0 {
			u.user, authority = authority[:i], authority[i+1:]
		}
		if strings.Contains(u.path+u.query, "@") {
			// What looks like host and port may be a user and the beginning of a password: nothing may show it.
			return u, errors.New("has an '@' behind the host: in a password, '/' is written %2F and '?' %3F; in a path, '@' is %40")
		}
	}
	if strings.Contains(authority, "@") {
		if !isKnown(u.scheme) {
			return u, unsupported(u.scheme)
		}
		return u, errors.New("has a user or password, which is not supported by this version")
	}
	if strings.HasPrefix(authority, "[") {
		i := strings.IndexByte(authority, ']')
		if i < 0 {
			return u, errors.New("missing ']' in the host")
		}
		a, err := netip.ParseAddr(authority[1:i])
		if err != nil || !a.Is6() || a.Zone() != "" {
			return u, fmt.Errorf("host %q is not an IPv6 address", authority[:i+1])
		}
		u.host = a.String()
		authority = authority[i+1:]
		if authority != "" && authority[0] != ':' {
			return u, errors.New("want ':' and a port after ']'")
		}
		if authority == ":" {
			return u, errors.New("no port after ':'")
		}
		u.port = strings.TrimPrefix(authority, ":")
		return u, nil
	}
	host, port, found := strings.Cut(authority, ":")
	if strings.Contains(port, ":") {
		return u, errors.New("an IPv6 address needs brackets: [::1]")
	}
	if found && port == "" {
		return u, errors.New("no port after ':'")
	}
	u.host, u.port = strings.ToLower(host), port
	return u, nil
}

// isKnown reports whether scheme is one that this version can publish or reach.
func isKnown(scheme string) bool {
	switch scheme {
	case "http", "https", "ws", "wss", "rtsp", "rtsps", "h2c", "h2", "tls", "tcp", "udp", "tftp", "unix", "file", "rest":
		return true
	}
	return false
}

func unsupported(scheme string) error {
	if len(scheme) > 16 {
		scheme = scheme[:16]
	}
	return fmt.Errorf("%s is not supported by this version", strings.TrimFunc(scheme, func(r rune) bool { return r < '!' || r > '~' }))
}

// checkHost accepts an IP address or a host name as rfc1123#section-2.1 has it,
// plus underscores. A wildcard stands for exactly one label, the first one.
func checkHost(host string, wildcard bool) error {
	if host == "" {
		return errors.New("no host")
	}
	if a, err := netip.ParseAddr(host); err == nil && a.Zone() == "" {
		return nil
	}
	name := host
	if strings.HasPrefix(host, "*.") {
		if !wildcard {
			return fmt.Errorf("host %q: no wildcard here", host)
		}
		name = host[2:]
		if _, err := netip.ParseAddr(name); err == nil {
			return fmt.Errorf("host %q: a wildcard needs a name", host)
		}
	}
	if len(host) > 253 {
		return errors.New("host is longer than 253 bytes")
	}
	for label := range strings.SplitSeq(name, ".") {
		if label == "" || len(label) > 63 || label[0] == '-' || label[len(label)-1] == '-' {
			return fmt.Errorf("host %q is not a host name", host)
		}
		for i := range len(label) {
			if c := label[i]; !isAlnum(c) && c != '-' && c != '_' {
				return fmt.Errorf("host %q is not a host name", host)
			}
		}
	}
	return nil
}

// cleanPath checks a path prefix and returns it without a trailing slash. What it
// consists of has to mean itself to every server: no escapes, no empty and dot
// segments, no parameters (";v=1", which some drop).
func cleanPath(path string) (string, error) {
	path = strings.TrimSuffix(path, "/")
	if path == "" {
		return "/", nil
	}
	for seg := range strings.SplitSeq(path[1:], "/") {
		if seg == "" || seg == "." || seg == ".." {
			return "", fmt.Errorf("path %q has an empty, \".\" or \"..\" segment", path)
		}
		for i := range len(seg) {
			if c := seg[i]; !isAlnum(c) && strings.IndexByte("-._~!$&'()+,=:@", c) < 0 {
				if c == '*' {
					return "", fmt.Errorf("path %q: '*' is not supported in a path prefix, which has everything below in it", path)
				}
				return "", fmt.Errorf("path %q: character %q is not supported in a path prefix", path, c)
			}
		}
	}
	return path, nil
}

func parsePort(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || s[0] == '+' || len(s) > 1 && s[0] == '0' {
		return 0, fmt.Errorf("port %q: want 0 to 65535", s)
	}
	return uint16(n), nil
}

func bracket(host string) string {
	if strings.Contains(host, ":") {
		return "[" + host + "]"
	}
	return host
}

// clip keeps an error message short whatever the input was.
func clip(s string) string {
	if len(s) > 100 {
		return s[:97] + "..."
	}
	return s
}

// redact hides the user part of a URL, which may hold a password, and what looks like a password behind it.
func redact(s string) string {
	scheme, rest, ok := strings.Cut(s, "://")
	if !ok {
		scheme, rest = "", s
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = "…@" + rest[i+1:]
	}
	if i := secretIn(rest); i >= 0 {
		rest = rest[:i] + "…"
	}
	if !ok {
		return rest
	}
	return scheme + "://" + rest
}

// secretIn returns where the value of a parameter that is called like a password begins in a path or query,
// or -1. Cameras have been seen with /user=admin_password=secret_channel=1.sdp and /live?usr=a&pwd=b.
func secretIn(s string) int {
	lower := strings.ToLower(s)
	for i := range lower {
		for _, word := range [...]string{"pass", "pwd", "psw", "token", "secret"} {
			if strings.HasPrefix(lower[i:], word) {
				if j := strings.IndexAny(lower[i:], "=:/&?"); j >= 0 && (lower[i+j] == '=' || lower[i+j] == ':') && i+j+1 < len(s) {
					return i + j + 1
				}
			}
		}
	}
	return -1
}
