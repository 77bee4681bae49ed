package http1

import (
	"bytes"
	"net/netip"
)

// Request is a parsed request head. Reuse one for many requests: Fields keeps its memory.
type Request struct {
	Method []byte // a token; case matters
	Target []byte // as sent
	Scheme []byte // of an absolute-form target, else nil

	// Host is the validated host or host:port of the target, or of the Host field if the target has
	// none (rfc9112#section-3.2.2); nil only in HTTP/1.0, or with Limits.NoHost. The case is the peer's.
	Host []byte

	Path  []byte // starts with '/', or is "*"; nil for CONNECT. Still percent-encoded, encoding checked
	Query []byte // behind the '?'; nil if there is no '?'

	Minor  int // 0 or 1
	Fields []Field

	Framing       Framing // NoBody, Length or Chunked
	ContentLength int64   // -1: no such field

	Close     bool   // the connection ends with this message
	Expect100 bool   // the client waits for 100 (Continue) before it sends the body
	Upgrade   []byte // what the client asks to switch to ("websocket"), nil if nothing. h2c is ignored

	nominated bool   // Connection names fields to remove
	joined    []byte // Cookie, from several fields
}

var (
	errMethod      = &Error{400, "invalid method"}
	errLongMethod  = &Error{501, "method not supported"}
	errRequestLine = &Error{400, "malformed request line"}
	errTarget      = &Error{400, "invalid request target"}
	errLongTarget  = &Error{414, "request line too long"}
	errVersion     = &Error{505, "HTTP version not supported"}
	errHost        = &Error{400, "invalid Host"}
	errNoHost      = &Error{400, "no Host"}
	errTwoHosts    = &Error{400, "more than one Host"}
	errExpect      = &Error{417, "unknown expectation"}
)

// maxMethod is twice the longest registered method (UPDATEREDIRECTREF).
const maxMethod = 34

// Clone returns a copy of r that references nothing of r's input.
func (r *Request) Clone() *Request {
	c := *r
	n := len(r.Method) + len(r.Target) + len(r.Scheme) + len(r.Host) + len(r.Path) + len(r.Query) + len(r.Upgrade)
	for _, f := range r.Fields {
		n += len(f.Name) + len(f.Value)
	}
	buf := make([]byte, 0, n)
	keep := func(b []byte) []byte {
		if b == nil {
			return nil
		}
		start := len(buf)
		buf = append(buf, b...)
		return buf[start:len(buf):len(buf)]
	}
	c.Method, c.Target, c.Scheme, c.Host = keep(r.Method), keep(r.Target), keep(r.Scheme), keep(r.Host)
	c.Path, c.Query, c.Upgrade = keep(r.Path), keep(r.Query), keep(r.Upgrade)
	c.Fields = make([]Field, len(r.Fields))
	for i, f := range r.Fields {
		c.Fields[i] = Field{keep(f.Name), keep(f.Value)}
	}
	return &c
}

// ParseRequest parses the head of a request with the default limits. It returns the length of the
// head, or 0 and no error when b does not hold all of it yet. The error is an *Error.
func ParseRequest(b []byte, r *Request) (n int, err error) {
	return Limits{}.ParseRequest(b, r)
}

// ParseRequest is the function ParseRequest with limits of one's own.
func (l Limits) ParseRequest(b []byte, r *Request) (n int, err error) {
	l = l.orDefault(16 << 10)
	*r = Request{Fields: r.Fields[:0], joined: r.joined[:0], ContentLength: -1}
	full := len(b) >= l.MaxHead
	if full {
		b = b[:l.MaxHead]
	}
	n, e := r.parse(b, l)
	switch {
	case e != nil:
		return 0, e
	case n == 0 && full:
		return 0, errHeadSize
	}
	return n, nil
}

func (l Limits) orDefault(maxHead int) Limits {
	if l.MaxHead == 0 {
		l.MaxHead = maxHead
	}
	if l.MaxLine == 0 {
		l.MaxLine = 8 << 10
	}
	if l.MaxFields == 0 {
		l.MaxFields = 100
	}
	return l
}

func (r *Request) parse(b []byte, l Limits) (int, *Error) {
	// One empty line before a request is ignored (rfc9112#section-2.2).
	i := 0
	if len(b) > 0 && b[0] == '\r' {
		if len(b) == 1 {
			return 0, nil
		}
		if b[1] != '\n' {
			return 0, errBareCR
		}
		i = 2
	}
	line := b
	if len(line)-i > l.MaxLine {
		line = b[:i+l.MaxLine]
	}
	n, e := r.parseLine(line, i)
	switch {
	case e != nil:
		return 0, e
	case n == 0 && len(line)-i >= l.MaxLine:
		return 0, errLongTarget
	case n == 0:
		return 0, nil
	}
	if e := r.parseTarget(); e != nil {
		return 0, e
	}
	n, e = parseFields(b, n, l.MaxFields, &r.Fields, 400)
	if n == 0 || e != nil {
		return 0, e
	}
	m, hosts, e := r.interpret()
	switch {
	case e != nil:
		return 0, e
	case hosts == 0 && r.Minor == 1 && !l.NoHost:
		return 0, errNoHost
	case m.chunked && r.Minor == 0:
		return 0, errCoding10 // rfc9112#section-6.1
	case m.chunked:
		r.Framing = Chunked
	case m.length >= 0:
		r.Framing = Length
	}
	if r.Framing == NoBody {
		r.Expect100 = false
	}
	r.Close = m.close || r.Minor == 0 && !m.keepAlive
	if m.upgrade && r.Minor == 1 && len(m.protocol) > 0 && !containsFold(m.protocol, "h2c") {
		r.Upgrade = m.protocol
	}
	return n, nil
}

// parseLine splits the request line: method SP request-target SP HTTP-version CRLF.
func (r *Request) parseLine(b []byte, i int) (int, *Error) {
	start := i
	for i < len(b) && class[b[i]]&isToken != 0 {
		i++
	}
	if i-start > maxMethod {
		return 0, errLongMethod
	}
	if i == len(b) {
		return 0, nil
	}
	if i == start || b[i] != ' ' {
		return 0, errMethod
	}
	r.Method = b[start:i:i]
	i++
	start = i
	for i < len(b) && class[b[i]]&isTarget != 0 {
		i++
	}
	if i == len(b) {
		return 0, nil
	}
	if i == start || b[i] != ' ' {
		return 0, errTarget
	}
	r.Target = b[start:i:i]
	i++
	const version = "HTTP/1.1\r\n"
	if len(b)-i >= len(version) && string(b[i:i+len(version)]) == version {
		r.Minor = 1
		return i + len(version), nil
	}
	minor, n, e := parseVersion(b[i:])
	if e != nil || n == 0 {
		return 0, e
	}
	r.Minor = minor
	i += n
	for _, c := range []byte("\r\n") {
		if i == len(b) {
			return 0, nil
		}
		if b[i] != c {
			return 0, errRequestLine
		}
		i++
	}
	return i, nil
}

// parseVersion reads "HTTP/1.0" or "HTTP/1.1" and returns its length, 0 if b ends within it.
func parseVersion(b []byte) (minor, n int, e *Error) {
	const form = "HTTP/d.d"
	for n < len(form) {
		if n == len(b) {
			return 0, 0, nil
		}
		if form[n] == 'd' && (b[n] < '0' || b[n] > '9') || form[n] != 'd' && b[n] != form[n] {
			return 0, 0, errRequestLine
		}
		n++
	}
	if b[5] != '1' || b[7] > '1' {
		return 0, 0, errVersion
	}
	return int(b[7] - '0'), n, nil
}

// parseTarget tells the four forms of rfc9112#section-3.2 apart.
func (r *Request) parseTarget() *Error {
	t := r.Target
	switch {
	case string(r.Method) == "CONNECT": // authority-form
		if !validHost(t) || len(hostname(t)) == len(t) {
			return errTarget
		}
		r.Host = t
		return nil
	case t[0] == '/': // origin-form
	case len(t) == 1 && t[0] == '*': // asterisk-form
		if string(r.Method) != "OPTIONS" {
			return errTarget
		}
	default: // absolute-form
		i := bytes.IndexByte(t, ':')
		if i < 0 || !EqualFold(t[:i], "http") && !EqualFold(t[:i], "https") || len(t) < i+3 || t[i+1] != '/' || t[i+2] != '/' {
			return errTarget
		}
		r.Scheme, t = t[:i:i], t[i+3:]
		end := bytes.IndexAny(t, "/?")
		if end < 0 {
			end = len(t)
		}
		r.Host, t = t[:end:end], t[end:]
		if !validHost(r.Host) { // userinfo is an error too: rfc9110#section-4.2.4
			return errTarget
		}
	}
	if i := bytes.IndexByte(t, '?'); i >= 0 {
		t, r.Query = t[:i:i], t[i+1:]
	}
	r.Path = t
	if len(t) == 0 {
		r.Path = emptyPath
		if string(r.Method) == "OPTIONS" && r.Query == nil {
			r.Path = asterisk
		}
	}
	for i := bytes.IndexByte(t, '%'); i >= 0; {
		if i+2 >= len(t) || class[t[i+1]]&isHex == 0 || class[t[i+2]]&isHex == 0 {
			return errTarget
		}
		next := bytes.IndexByte(t[i+1:], '%')
		if next < 0 {
			break
		}
		i += 1 + next
	}
	return nil
}

// The path of an absolute-form target that has none (rfc9112#section-3.2.1 and 3.2.4). Never written to.
var emptyPath, asterisk = []byte("/"), []byte("*")

// interpret goes through the fields that matter to every recipient.
func (r *Request) interpret() (m framing, hosts int, e *Error) {
	m.length = -1
	for _, f := range r.Fields {
		switch len(f.Name) {
		case len("Host"):
			if EqualFold(f.Name, "host") {
				if hosts++; hosts > 1 {
					return m, hosts, errTwoHosts
				}
				if !validHost(f.Value) {
					return m, hosts, errHost
				}
				if r.Host == nil {
					r.Host = f.Value
				}
			}
		case len("Expect"):
			if EqualFold(f.Name, "expect") && r.Minor == 1 {
				if !EqualFold(f.Value, "100-continue") {
					return m, hosts, errExpect
				}
				r.Expect100 = true
			}
		case len("Upgrade"), len("Connection"), len("Content-Length"), len("Transfer-Encoding"):
			if e := m.field(f); e != nil {
				return m, hosts, e
			}
		}
	}
	r.ContentLength = m.length
	r.nominated = m.nominated
	return m, hosts, nil
}

// validHost reports whether b is a host name, IPv4 address or bracketed IPv6 address with an optional
// port. Of the characters that rfc3986#section-3.2.2 allows in a name we take those that names have.
func validHost(b []byte) bool {
	if len(b) == 0 || len(b) > 255 {
		return false
	}
	i := 0
	if b[0] == '[' {
		end := bytes.IndexByte(b, ']')
		if end < 0 {
			return false
		}
		if a, err := netip.ParseAddr(string(b[1:end])); err != nil || !a.Is6() || a.Zone() != "" {
			return false
		}
		i = end + 1
	} else {
		for i < len(b) && class[b[i]]&isHost != 0 {
			i++
		}
		if i == 0 {
			return false
		}
	}
	if i == len(b) {
		return true
	}
	port, ok := parseDecimal(b[i+1:])
	return b[i] == ':' && ok && port <= 65535
}
