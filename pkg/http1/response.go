package http1

// Response is a parsed response head. Reuse one for many responses: Fields keeps its memory.
type Response struct {
	Minor  int // 0 or 1
	Status int // 100 to 999
	Reason []byte
	Fields []Field

	Framing       Framing
	ContentLength int64 // -1: no such field. With NoBody it tells what GET would have had

	Close   bool   // the connection ends with this message
	Upgrade []byte // of a 101 (Switching Protocols): what follows the head is no longer HTTP

	nominated bool // Connection names fields to remove
}

var (
	errStatusLine = &Error{502, "malformed status line"}
	errRespVers   = &Error{502, "HTTP version not supported"}
	errSwitch     = &Error{502, "101 without Upgrade"}
)

// ParseResponse parses the head of a response to a request with that method, with the default limits.
// It returns the length of the head, or 0 and no error when b does not hold all of it yet. The error
// is an *Error of status 502.
func ParseResponse(b []byte, method []byte, r *Response) (n int, err error) {
	return Limits{}.ParseResponse(b, method, r)
}

// ParseResponse is the function ParseResponse with limits of one's own.
func (l Limits) ParseResponse(b []byte, method []byte, r *Response) (n int, err error) {
	l = l.orDefault(32 << 10)
	*r = Response{Fields: r.Fields[:0], ContentLength: -1}
	full := len(b) >= l.MaxHead
	if full {
		b = b[:l.MaxHead]
	}
	n, e := r.parse(b, method, l)
	switch {
	case e != nil:
		return 0, e
	case n == 0 && full:
		return 0, malformed(502, errHeadSize)
	}
	return n, nil
}

func (r *Response) parse(b []byte, method []byte, l Limits) (int, *Error) {
	line := b
	if len(line) > l.MaxLine {
		line = b[:l.MaxLine]
	}
	n, e := r.parseLine(line)
	switch {
	case e != nil:
		return 0, e
	case n == 0 && len(line) >= l.MaxLine:
		return 0, errStatusLine
	case n == 0:
		return 0, nil
	}
	n, e = parseFields(b, n, l.MaxFields, &r.Fields, 502)
	if n == 0 || e != nil {
		return 0, e
	}
	if e := r.interpret(method); e != nil {
		return 0, malformed(502, e)
	}
	return n, nil
}

// parseLine reads HTTP-version SP 3DIGIT [SP [reason]] CRLF. The space behind the status is missing
// from enough servers to be optional.
func (r *Response) parseLine(b []byte) (int, *Error) {
	minor, i, e := parseVersion(b)
	switch {
	case e == errVersion:
		return 0, errRespVers
	case e != nil:
		return 0, errStatusLine
	case i == 0:
		return 0, nil
	}
	r.Minor = minor
	if i == len(b) {
		return 0, nil
	}
	if b[i] != ' ' {
		return 0, errStatusLine
	}
	i++
	for range 3 {
		if i == len(b) {
			return 0, nil
		}
		if b[i] < '0' || b[i] > '9' {
			return 0, errStatusLine
		}
		r.Status = r.Status*10 + int(b[i]-'0')
		i++
	}
	if r.Status < 100 {
		return 0, errStatusLine
	}
	if i == len(b) {
		return 0, nil
	}
	if b[i] == ' ' {
		i++
		start := i
		i = skipText(b, i)
		r.Reason = b[start:i:i]
	}
	for _, c := range []byte("\r\n") {
		if i == len(b) {
			return 0, nil
		}
		if b[i] != c {
			return 0, errStatusLine
		}
		i++
	}
	return i, nil
}

// interpret finds out where the message ends: rfc9112#section-6.3.
func (r *Response) interpret(method []byte) *Error {
	m := framing{length: -1}
	for _, f := range r.Fields {
		if e := m.field(f); e != nil {
			return e
		}
	}
	if m.chunked && r.Minor == 0 {
		return errCoding10
	}
	r.ContentLength = m.length
	r.nominated = m.nominated
	r.Close = m.close || r.Minor == 0 && !m.keepAlive
	switch {
	case r.Status < 200:
		if r.Status == 101 {
			if !m.upgrade || len(m.protocol) == 0 {
				return errSwitch
			}
			r.Upgrade = m.protocol
		}
	case r.Status == 204, r.Status == 304, string(method) == "HEAD":
	case m.chunked:
		r.Framing = Chunked
	case m.length >= 0:
		r.Framing = Length
	default:
		r.Framing = UntilClose
		r.Close = true
	}
	return nil
}
