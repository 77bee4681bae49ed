package http1

// HTTP/2 and HTTP/3 send the control data of a head in pseudo-header fields. What is assembled here from such a
// head passes the same checks as what is parsed from text, so that nothing behind it can be read in two ways when it
// is written as HTTP/1.1: rfc9113#section-8.2 to 8.3, rfc9114#section-4.2 to 4.3, rfc9113#section-10.3.

// Pseudo is the pseudo-header fields of a request. nil is one that was not sent.
type Pseudo struct {
	Method, Scheme, Authority, Path []byte
	Protocol                        []byte // of an extended CONNECT (rfc8441#section-4)
}

var (
	errPseudo     = &Error{400, "missing or unexpected pseudo-header field"}
	errScheme     = &Error{400, "unknown scheme"}
	errUpperCase  = &Error{400, "upper case in field name"}
	errConnection = &Error{400, "connection-specific field"}
	errSpaceValue = &Error{400, "whitespace around field value"}
	errHostDiffer = &Error{400, "Host differs from authority"}
	errNoConnect  = &Error{501, "CONNECT not supported"}
	errProtocol   = &Error{400, "invalid protocol"}
	errEndLength  = &Error{400, "Content-Length of a message without content"}
	errStatus     = &Error{502, "invalid status"}
)

// AssembleRequest makes r, of which only Fields is set, the request that ParseRequest would have made of the same
// head in HTTP/1.1, with the default limits; end says that no content follows. Cookie fields are joined
// (rfc9113#section-8.2.3). An extended CONNECT becomes a GET with Upgrade. The error is an *Error.
func AssembleRequest(r *Request, p Pseudo, end bool) error {
	return Limits{}.AssembleRequest(r, p, end)
}

// AssembleRequest is the function AssembleRequest with limits of one's own.
func (l Limits) AssembleRequest(r *Request, p Pseudo, end bool) error {
	l = l.orDefault(16 << 10)
	*r = Request{Fields: r.Fields, joined: r.joined[:0], Minor: 1, ContentLength: -1}
	return wrap(r.assemble(l, p, end))
}

var methodGet = []byte("GET") // never written to

func (r *Request) assemble(l Limits, p Pseudo, end bool) *Error {
	for _, c := range p.Method {
		if class[c]&isToken == 0 {
			return errMethod
		}
	}
	connect := string(p.Method) == "CONNECT"
	switch {
	case len(p.Method) == 0:
		return errPseudo
	case len(p.Method) > maxMethod:
		return errLongMethod
	case connect && p.Protocol == nil:
		return errNoConnect
	case !connect && p.Protocol != nil, p.Path == nil, p.Scheme == nil:
		return errPseudo
	case !EqualFold(p.Scheme, "http") && !EqualFold(p.Scheme, "https"):
		return errScheme
	}
	r.Method, r.Target, r.Scheme = p.Method, p.Path, p.Scheme
	if connect {
		r.Method = methodGet
		for _, c := range p.Protocol {
			if class[c]&isToken == 0 {
				return errProtocol
			}
		}
		if len(p.Protocol) == 0 || containsFold(p.Protocol, "h2c") {
			return errProtocol
		}
	}

	// The path, in origin-form or asterisk-form.
	if len(p.Path) == 0 || p.Path[0] != '/' && string(p.Path) != "*" {
		return errTarget
	}
	for _, c := range p.Path {
		if class[c]&isTarget == 0 {
			return errTarget
		}
	}
	line := len(r.Method) + len(r.Target) + len("  HTTP/1.1\r\n")
	if line > l.MaxLine {
		return errLongTarget
	}
	if e := r.parseTarget(); e != nil {
		return e
	}
	if p.Authority != nil {
		if !validHost(p.Authority) {
			return errHost
		}
		r.Host = p.Authority
	}
	if e := checkFields(r.Fields, l, line+len("Host: \r\n\r\n")+len(p.Authority), 400); e != nil {
		return e
	}
	r.joinCookies()

	m, hosts, e := r.interpret()
	switch {
	case e != nil:
		return e
	case r.Host == nil:
		return errNoHost
	case hosts > 0 && p.Authority != nil && !equalFoldBytes(Get(r.Fields, "host"), p.Authority):
		return errHostDiffer
	case end && m.length > 0:
		return errEndLength
	case connect && (m.length >= 0 || end):
		return errPseudo
	case connect:
		r.Upgrade = p.Protocol
	case m.length >= 0:
		r.Framing = Length
	case !end:
		r.Framing = Chunked
	default:
		switch string(r.Method) {
		case "POST", "PUT", "PATCH": // some servers insist on it: rfc9110#section-8.6
			r.Framing, r.ContentLength = Length, 0
		}
	}
	if r.Framing == NoBody {
		r.Expect100 = false
	}
	return nil
}

// checkFields checks the fields of a head or a trailer section of size bytes without them, as they are in HTTP/2 and
// HTTP/3, one by one.
func checkFields(fields []Field, l Limits, size, status int) *Error {
	if len(fields) > l.MaxFields {
		return malformed(status, errManyFields)
	}
	for _, f := range fields {
		if size += len(f.Name) + len(": \r\n") + len(f.Value); size > l.MaxHead {
			return malformed(status, errHeadSize)
		}
		if len(f.Name) == 0 {
			return malformed(status, errFieldName)
		}
		for _, c := range f.Name {
			if class[c]&isToken == 0 {
				return malformed(status, errFieldName)
			}
			if 'A' <= c && c <= 'Z' {
				return malformed(status, errUpperCase)
			}
		}
		if skipText(f.Value, 0) < len(f.Value) {
			return malformed(status, errFieldValue)
		}
		if len(trim(f.Value)) < len(f.Value) {
			return malformed(status, errSpaceValue)
		}
		switch string(f.Name) {
		case "connection", "proxy-connection", "keep-alive", "transfer-encoding", "upgrade":
			return malformed(status, errConnection)
		case "te":
			if !EqualFold(f.Value, "trailers") {
				return malformed(status, errConnection)
			}
		}
	}
	return nil
}

// joinCookies makes one field of all cookie fields, where the first one is.
func (r *Request) joinCookies() {
	first, kept := -1, r.Fields[:0]
	for _, f := range r.Fields {
		switch {
		case string(f.Name) != "cookie":
			kept = append(kept, f)
		case first < 0:
			first = len(kept)
			kept = append(kept, f)
		default:
			if len(r.joined) == 0 {
				r.joined = append(r.joined, kept[first].Value...)
			}
			r.joined = append(append(r.joined, "; "...), f.Value...)
			kept[first].Value = r.joined
		}
	}
	clear(r.Fields[len(kept):])
	r.Fields = kept
}

// AssembleResponse makes r, of which only Fields is set, the response that ParseResponse would have made of the same
// head in HTTP/1.1, with the default limits; end says that no content follows. The error is an *Error of status 502.
func AssembleResponse(r *Response, status, method []byte, end bool) error {
	return Limits{}.AssembleResponse(r, status, method, end)
}

// AssembleResponse is the function AssembleResponse with limits of one's own.
func (l Limits) AssembleResponse(r *Response, status, method []byte, end bool) error {
	l = l.orDefault(32 << 10)
	*r = Response{Fields: r.Fields, Minor: 1, ContentLength: -1}
	n, ok := parseDecimal(status)
	if len(status) != 3 || !ok || n < 100 || n == 101 { // rfc9113#section-8.6: there is no 101
		return errStatus
	}
	r.Status = int(n)
	if e := checkFields(r.Fields, l, len("HTTP/1.1 200 \r\n\r\n"), 502); e != nil {
		return e
	}
	m := framing{length: -1}
	for _, f := range r.Fields {
		if e := m.field(f); e != nil {
			return malformed(502, e)
		}
	}
	r.ContentLength = m.length
	switch {
	case n < 200:
		if end {
			return errStatus
		}
	case n == 204, n == 304, string(method) == "HEAD":
	case end && m.length > 0:
		return malformed(502, errEndLength)
	case end: // said by END_STREAM, and in HTTP/1.1 by this
		r.Framing, r.ContentLength = Length, 0
	case m.length >= 0:
		r.Framing = Length
	default:
		r.Framing = Chunked
	}
	return nil
}

// CheckTrailers checks a trailer section of HTTP/2 or HTTP/3, within the limits of a request's head. The error is an
// *Error.
func CheckTrailers(fields []Field) error {
	if e := checkFields(fields, Limits{}.orDefault(16<<10), 2, 400); e != nil {
		return e
	}
	for _, f := range fields {
		if !trailerAllowed(f.Name) {
			return errTrailer
		}
	}
	return nil
}
