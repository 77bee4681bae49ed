package http1

import (
	"net/netip"
	"strconv"
)

// Forward is what a relay knows about a visitor and tells the server behind it.
type Forward struct {
	Remote netip.Addr // the visitor
	Proto  string     // "http" or "https", as the visitor sees it
	Port   uint16     // where the visitor came in, for X-Forwarded-Port; 0: not said

	// Fields are what else the server is told. The visitor has no say in them: neither in what is
	// forwarded under such a name, if isForwarding knows it, nor by its Connection field.
	Fields []Field
}

// AppendForwardedRequest appends the head of r as it goes to the server: origin-form, HTTP/1.1, with
// the hop-by-hop fields removed (rfc9110#section-7.6.1) and the forwarding fields set, whatever the
// visitor has said in them. The body follows with r.Framing. Upgrade goes along if r.Upgrade is set; set it to nil to refuse.
func AppendForwardedRequest(dst []byte, r *Request, fwd Forward) []byte {
	dst = append(dst, r.Method...)
	dst = append(dst, ' ')
	dst = append(dst, r.Path...)
	if r.Query != nil {
		dst = append(dst, '?')
		dst = append(dst, r.Query...)
	}
	dst = append(dst, " HTTP/1.1\r\nHost: "...)
	dst = append(dst, r.Host...)
	dst = append(dst, "\r\n"...)

	trailers := false // TE: trailers
	for _, f := range r.Fields {
		if lower(f.Name[0]) == 't' && EqualFold(f.Name, "te") {
			trailers = trailers || acceptsTrailers(f.Value)
		} else if r.forwards(f) {
			dst = appendField(dst, f)
		}
	}

	switch {
	case r.Upgrade != nil && trailers:
		dst = append(dst, "Connection: Upgrade, TE\r\nTE: trailers\r\nUpgrade: "...)
	case r.Upgrade != nil:
		dst = append(dst, "Connection: Upgrade\r\nUpgrade: "...)
	case trailers:
		dst = append(dst, "Connection: TE\r\nTE: trailers\r\n"...)
	}
	if r.Upgrade != nil {
		dst = append(dst, r.Upgrade...)
		dst = append(dst, "\r\n"...)
	}
	dst = appendFraming(dst, r.Framing, r.ContentLength)

	var text [512]byte
	own, n, _ := fwd.fields(text[:0], r.Host)
	for _, f := range own[:n] {
		dst = appendField(dst, f)
	}
	for _, f := range fwd.Fields {
		dst = appendField(dst, f)
	}
	return append(dst, "\r\n"...)
}

// forwards reports whether a field of r, which is not TE, goes to the server as it is.
func (r *Request) forwards(f Field) bool {
	switch c := lower(f.Name[0]); {
	case c == 'h' && EqualFold(f.Name, "host"):
		return false
	case c == 'e' && r.Minor == 0 && EqualFold(f.Name, "expect"):
		return false // rfc9110#section-10.1.1: ignored in HTTP/1.0
	case (c == 'x' || c == 'f' || c == 'c') && isForwarding(f.Name):
		return false
	default:
		return !hopByHop(f.Name, c) && !(r.nominated && nominates(r.Fields, f.Name))
	}
}

// AppendForwardedFields appends the fields of r as they go to a server that speaks HTTP/2, which are those that
// AppendForwardedRequest writes, without the Host that is :authority there and without what HTTP/2 has no use for.
// Values that r does not have are appended to text. The case of names is the visitor's.
func AppendForwardedFields(dst []Field, text []byte, r *Request, fwd Forward) ([]Field, []byte) {
	trailers := false
	for _, f := range r.Fields {
		if lower(f.Name[0]) == 't' && EqualFold(f.Name, "te") {
			trailers = trailers || acceptsTrailers(f.Value)
		} else if r.forwards(f) {
			dst = append(dst, f)
		}
	}
	if trailers {
		dst = append(dst, Field{nameTE, valueTrailers})
	}
	if r.Framing != Chunked && r.ContentLength >= 0 {
		start := len(text)
		text = strconv.AppendInt(text, r.ContentLength, 10)
		dst = append(dst, Field{nameLength, text[start:]})
	}
	own, n, text := fwd.fields(text, r.Host)
	return append(append(dst, own[:n]...), fwd.Fields...), text
}

// AppendForwardedResponseFields appends the fields of r as they go to a visitor who speaks HTTP/2 or HTTP/3: those of
// AppendForwardedResponse without what only HTTP/1.1 has. A Content-Length is appended to text.
func AppendForwardedResponseFields(dst []Field, text []byte, r *Response) ([]Field, []byte) {
	for _, f := range r.Fields {
		if r.forwards(f) {
			dst = append(dst, f)
		}
	}
	if r.Status >= 200 && r.Status != 204 && r.ContentLength >= 0 && (r.Framing == NoBody || r.Framing == Length) {
		start := len(text)
		text = strconv.AppendInt(text, r.ContentLength, 10)
		dst = append(dst, Field{nameLength, text[start:]})
	}
	return dst, text
}

// The names and values of our own. Never written to.
var (
	nameTE, valueTrailers = []byte("TE"), []byte("trailers")
	nameLength            = []byte("Content-Length")
	nameFor               = []byte("X-Forwarded-For")
	nameRealIP            = []byte("X-Real-IP")
	nameProto             = []byte("X-Forwarded-Proto")
	nameHost              = []byte("X-Forwarded-Host")
	namePort              = []byte("X-Forwarded-Port")
	nameForwarded         = []byte("Forwarded")
)

const maxForwarding = 6 // fields that Forward makes

// fields returns the n forwarding fields. Their values are appended to text.
func (fwd Forward) fields(text, host []byte) (own [maxForwarding]Field, n int, _ []byte) {
	add := func(name, value []byte) {
		own[n] = Field{name, value}
		n++
	}
	remote := fwd.Remote.Unmap().WithZone("")
	start := len(text)
	if remote.IsValid() {
		text = remote.AppendTo(text)
		add(nameFor, text[start:])
		add(nameRealIP, text[start:])
	}
	start = len(text)
	text = append(text, fwd.Proto...)
	add(nameProto, text[start:])
	if host != nil {
		add(nameHost, host)
	}
	if fwd.Port != 0 {
		start = len(text)
		text = strconv.AppendUint(text, uint64(fwd.Port), 10)
		add(namePort, text[start:])
	}
	start = len(text)
	text = appendElement(text, remote, fwd.Proto, host)
	add(nameForwarded, text[start:])
	return own, n, text
}

// appendElement appends our element of Forwarded (rfc7239#section-4 and 6). IPv6 addresses and hosts
// with a port are not tokens and are quoted.
func appendElement(dst []byte, remote netip.Addr, proto string, host []byte) []byte {
	switch {
	case !remote.IsValid():
		dst = append(dst, "for=unknown"...)
	case remote.Is4():
		dst = append(dst, "for="...)
		dst = remote.AppendTo(dst)
	default:
		dst = append(dst, `for="[`...)
		dst = remote.AppendTo(dst)
		dst = append(dst, `]"`...)
	}
	if host != nil {
		quote := false
		for _, c := range host {
			quote = quote || class[c]&isToken == 0
		}
		dst = append(dst, ";host="...)
		if quote {
			dst = append(dst, '"')
		}
		dst = append(dst, host...)
		if quote {
			dst = append(dst, '"')
		}
	}
	dst = append(dst, ";proto="...)
	return append(dst, proto...)
}

// AppendForwardedResponse appends the head of r, an answer to a request of that minor version, as it
// goes to the visitor: HTTP/1.1 with the hop-by-hop fields removed. It returns the framing that the
// body has to be sent with: what was chunked goes to an HTTP/1.0 visitor until close, and what ended
// with the connection goes to an HTTP/1.1 visitor in chunks. If that is UntilClose, or if keepAlive is
// false, the head says Connection: close, and the caller closes behind the body.
func AppendForwardedResponse(dst []byte, r *Response, minor int, keepAlive bool) ([]byte, Framing) {
	dst = append(dst, "HTTP/1.1 "...)
	dst = strconv.AppendInt(dst, int64(r.Status), 10)
	dst = append(dst, ' ')
	if len(r.Reason) > 0 {
		dst = append(dst, r.Reason...)
	} else {
		dst = append(dst, statusText(r.Status)...)
	}
	dst = append(dst, "\r\n"...)
	for _, f := range r.Fields {
		if r.forwards(f) {
			dst = appendField(dst, f)
		}
	}
	framing := r.Framing
	switch {
	case framing == Chunked && minor == 0:
		framing = UntilClose
	case framing == UntilClose && minor == 1:
		framing = Chunked
	}
	// A server may not send Content-Length with 1xx and 204: rfc9110#section-8.6.
	if r.Status >= 200 && r.Status != 204 {
		dst = appendFraming(dst, framing, r.ContentLength)
	}
	switch {
	case r.Upgrade != nil:
		dst = append(dst, "Connection: Upgrade\r\nUpgrade: "...)
		dst = append(dst, r.Upgrade...)
		dst = append(dst, "\r\n"...)
	case r.Status < 200:
	case framing == UntilClose || !keepAlive:
		dst = append(dst, "Connection: close\r\n"...)
	case minor == 0:
		dst = append(dst, "Connection: keep-alive\r\n"...)
	}
	return append(dst, "\r\n"...), framing
}

// forwards reports whether a field of r goes to the visitor.
func (r *Response) forwards(f Field) bool {
	c := lower(f.Name[0])
	return !(hopByHop(f.Name, c) || c == 't' && EqualFold(f.Name, "te") || r.nominated && nominates(r.Fields, f.Name))
}

func appendFraming(dst []byte, f Framing, length int64) []byte {
	switch {
	case f == Chunked:
		return append(dst, "Transfer-Encoding: chunked\r\n"...)
	case length >= 0 && f != UntilClose:
		dst = append(dst, "Content-Length: "...)
		dst = strconv.AppendInt(dst, length, 10)
		return append(dst, "\r\n"...)
	}
	return dst
}

// hopByHop reports whether a field is meant for the next recipient only; c is the first letter of
// name. Content-Length is among them because we write our own. So that a recipient which maps '_' to
// '-' (CGI, WSGI) does not see what we removed, both count as the same.
func hopByHop(name []byte, c byte) bool {
	switch c {
	case 'c':
		return equalLoose(name, "connection") || equalLoose(name, "content-length")
	case 't':
		return equalLoose(name, "transfer-encoding")
	case 'k':
		return equalLoose(name, "keep-alive")
	case 'p':
		return equalLoose(name, "proxy-connection")
	case 'u':
		return EqualFold(name, "upgrade")
	}
	return false
}

// nominates reports whether a Connection field of the head names the field.
func nominates(fields []Field, name []byte) bool {
	for _, f := range fields {
		if !EqualFold(f.Name, "connection") {
			continue
		}
		for list := f.Value; len(list) > 0; {
			var option []byte
			option, list = nextElement(list)
			if equalFoldBytes(option, name) {
				return true
			}
		}
	}
	return false
}

func equalFoldBytes(a, b []byte) bool {
	if len(a) != len(b) {
		return false
	}
	for i, c := range a {
		if lower(c) != lower(b[i]) {
			return false
		}
	}
	return true
}

// acceptsTrailers reports whether a TE field says trailers (rfc9110#section-10.1.4).
func acceptsTrailers(list []byte) bool {
	for len(list) > 0 {
		var coding []byte
		coding, list = nextElement(list)
		if EqualFold(coding, "trailers") {
			return true
		}
	}
	return false
}

// isForwarding reports whether a field tells a server about the client of the proxy in front of it: where
// it is, or who it has proved to be (Client-Cert is rfc9440's). A visitor has no say in these.
func isForwarding(name []byte) bool {
	return hasPrefixLoose(name, "x-forwarded-") || hasPrefixLoose(name, "x-client-cert-") ||
		equalLoose(name, "x-real-ip") || equalLoose(name, "forwarded") || equalLoose(name, "x-remote-user") ||
		equalLoose(name, "client-cert") || equalLoose(name, "client-cert-chain")
}

func hasPrefixLoose(name []byte, prefix string) bool {
	return len(name) > len(prefix) && equalLoose(name[:len(prefix)], prefix)
}

// Remove removes the fields of those names, which are in lower case. So that a recipient which maps '_' to '-'
// does not see what was removed, both count as the same. What is left keeps its order and its memory.
func Remove(fields []Field, names []string) []Field {
	left := fields[:0]
next:
	for _, f := range fields {
		for _, name := range names {
			if equalLoose(f.Name, name) {
				continue next
			}
		}
		left = append(left, f)
	}
	return left
}

// equalLoose is EqualFold that takes '_' for '-'.
func equalLoose(b []byte, s string) bool {
	if len(b) != len(s) {
		return false
	}
	for i, c := range b {
		if c == '_' {
			c = '-'
		}
		if lower(c) != s[i] {
			return false
		}
	}
	return true
}
