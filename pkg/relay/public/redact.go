package public

import (
	"bytes"
	"compress/flate"
	"compress/gzip"
	"compress/zlib"
	"encoding/json"
	"io"
	"mime"
	"net/url"
	"slices"
	"strconv"
	"strings"
	"unicode"
	"unicode/utf16"
	"unicode/utf8"

	"culvert.dev/pkg/http1"
)

// What was captured is shown without secrets: those that have a name which says so. A secret without one, in a path or in prose, is
// not found; nor is one in what cannot be read, so of that nothing is shown that a compression might hide.

const redacted = "[redacted]"

// secretFields are fields of a head that are one secret.
var secretFields = []string{"authorization", "proxy-authorization", "cookie", "set-cookie"}

// secretParts make a name one of a secret wherever they are in it, and secretWords if they are a word of it.
var (
	secretParts = []string{"password", "passwd", "passphrase", "passcode", "secret", "token", "credential", "apikey", "accesskey", "privatekey", "authorization", "bearer"}
	secretWords = []string{"key", "keys", "code", "codes", "pass", "pwd", "pin", "otp", "totp", "auth", "jwt", "cvv", "cvc", "csrf", "xsrf", "sid", "sig", "signature", "session", "sessionid", "cookie"}

	// plainBefore are words that make a code or a key behind them none, and plainNames names that only end like one.
	plainBefore = []string{"status", "error", "err", "http", "country", "currency", "language", "lang", "locale", "postal", "zip", "post", "exit", "response", "result", "reason", "region", "area", "public", "foreign", "primary", "sort"}
	plainNames  = []string{"statuscode", "errorcode", "zipcode", "postcode", "postalcode", "countrycode", "barcode", "qrcode", "unicode", "encode", "decode", "bypass", "compass", "spin", "monkey", "turkey", "hotkey", "publickey"}
)

// isSecret reports whether a field of that name has a secret: "password", "newPassword", "api_key", "X-Auth-Token", "user[pin]".
func isSecret(name string) bool {
	if len(name) > 256 { // nobody's field
		name = name[:256]
	}
	var words []string
	var word strings.Builder
	end := func() {
		if word.Len() > 0 {
			words = append(words, word.String())
			word.Reset()
		}
	}
	var last rune
	for _, c := range name {
		if !unicode.IsLetter(c) {
			end()
			last = c
			continue
		}
		if unicode.IsUpper(c) && unicode.IsLower(last) {
			end()
		}
		word.WriteRune(unicode.ToLower(c))
		last = c
	}
	end()
	all := strings.Join(words, "")
	for _, p := range secretParts {
		if strings.Contains(all, p) {
			return true
		}
	}
	for i, w := range words {
		if slices.Contains(secretWords, w) && (i == 0 || !slices.Contains(plainBefore, words[i-1])) {
			return true
		}
		for _, suffix := range [...]string{"key", "code", "pwd", "pass", "pin", "otp"} {
			if len(w) > len(suffix) && strings.HasSuffix(w, suffix) && !slices.Contains(plainNames, w) {
				return true
			}
		}
	}
	return false
}

// redactField returns the value of a field of a head as it is shown.
func redactField(name, value string) string {
	for _, s := range secretFields {
		if !strings.EqualFold(name, s) {
			continue
		}
		if scheme, _, ok := strings.Cut(value, " "); ok && strings.HasSuffix(s, "authorization") && len(scheme) <= 16 {
			return scheme + " " + redacted
		}
		return redacted
	}
	if isSecret(name) {
		return redacted
	}
	return redactURLs(value)
}

// redactURLs returns s, in which the queries and the passwords of URLs may be, without secrets.
func redactURLs(s string) string {
	if !strings.ContainsAny(s, "?#@") {
		return s
	}
	var b strings.Builder
	for s != "" {
		i := strings.IndexAny(s, "?#@")
		if i < 0 {
			break
		}
		if s[i] == '@' {
			head := s[:i]
			if at := strings.LastIndex(head, "://"); at >= 0 && !strings.ContainsAny(head[at+3:], "/ \t\"'<>,") {
				head = head[:at+3] + redacted
			}
			b.WriteString(head)
			b.WriteByte('@')
			s = s[i+1:]
			continue
		}
		b.WriteString(s[:i+1])
		s = s[i+1:]
		n := strings.IndexAny(s, "?# \t\"'<>")
		if n < 0 {
			n = len(s)
		}
		b.Write(redactForm(nil, []byte(s[:n])))
		s = s[n:]
	}
	b.WriteString(s)
	return b.String()
}

// redactForm appends what application/x-www-form-urlencoded has, a query say, without secrets.
func redactForm(dst, b []byte) []byte {
	for len(b) > 0 {
		n := bytes.IndexAny(b, "&;")
		if n < 0 {
			n = len(b)
		}
		name, value, ok := bytes.Cut(b[:n], []byte{'='})
		plain, err := url.QueryUnescape(string(name))
		if err != nil {
			plain = string(name)
		}
		if ok && isSecret(plain) {
			dst = append(append(append(dst, name...), '='), redacted...)
		} else if clean, has := redactFormValue(value); has {
			dst = append(append(append(dst, name...), '='), clean...)
		} else {
			dst = append(dst, b[:n]...)
		}
		if b = b[n:]; len(b) > 0 {
			dst = append(dst, b[0])
			b = b[1:]
		}
	}
	return dst
}

// redactFormValue returns a value of a form that is JSON and has secrets (payload=%7B%22token%22...), without them.
func redactFormValue(value []byte) (string, bool) {
	plain, err := url.QueryUnescape(string(value))
	if err != nil || !looksLikeJSON([]byte(plain)) {
		return "", false
	}
	clean := string(redactJSON(nil, []byte(plain), 0))
	return url.QueryEscape(clean), clean != plain
}

// maxNested is how deep JSON in strings of JSON is looked into.
const maxNested = 3

// redactJSON appends what has JSON in it, all of it or a part, without secrets: the values of members whose names say so. What is
// JSON before is so afterwards.
func redactJSON(dst, b []byte, depth int) []byte {
	for {
		i := bytes.IndexByte(b, '"')
		if i < 0 {
			return append(dst, b...)
		}
		dst, b = append(dst, b[:i]...), b[i:]
		n := stringEnd(b)
		if n == 0 { // it is cut off
			return append(dst, redactString(b, depth)...)
		}
		text := b[:n]
		rest := bytes.TrimLeft(b[n:], " \t\r\n")
		if len(rest) == 0 || rest[0] != ':' { // it is no name
			dst, b = append(dst, redactString(text, depth)...), b[n:]
			continue
		}
		value := bytes.TrimLeft(rest[1:], " \t\r\n")
		n = len(b) - len(value)
		dst, b = append(dst, b[:n]...), value
		if !isSecret(unquote(text)) {
			continue
		}
		n = valueEnd(b)
		switch string(b[:n]) {
		case "", "null", "true", "false":
			dst = append(dst, b[:n]...)
		default:
			dst = append(dst, `"`+redacted+`"`...)
		}
		b = b[n:]
	}
}

// redactString returns a string of JSON, with its quotes, in which other JSON or URLs may be.
func redactString(text []byte, depth int) []byte {
	if !bytes.ContainsAny(text, `{[?#@`) {
		return text
	}
	s := unquote(text)
	clean := redactURLs(s)
	if t := strings.TrimLeft(s, " \t\r\n"); depth < maxNested && t != "" && (t[0] == '{' || t[0] == '[') {
		clean = string(redactJSON(nil, []byte(clean), depth+1))
	}
	if clean == s {
		return text
	}
	var out bytes.Buffer
	e := json.NewEncoder(&out)
	e.SetEscapeHTML(false)
	if err := e.Encode(clean); err != nil {
		panic("BUG: " + err.Error())
	}
	return bytes.TrimSuffix(out.Bytes(), []byte{'\n'})
}

// unquote returns what a string of JSON says, as far as it is one.
func unquote(text []byte) string {
	text = text[1:] // the quote
	s := make([]byte, 0, len(text))
	for len(text) > 0 {
		switch c := text[0]; {
		case c == '"':
			return string(s)
		case c != '\\' || len(text) == 1:
			s, text = append(s, c), text[1:]
		case text[1] == 'u':
			r, n := unescapeRune(text)
			s, text = utf8.AppendRune(s, r), text[n:]
		default:
			if i := strings.IndexByte("bfnrt", text[1]); i >= 0 {
				s = append(s, "\b\f\n\r\t"[i])
			} else {
				s = append(s, text[1])
			}
			text = text[2:]
		}
	}
	return string(s)
}

// unescapeRune returns the character that b begins with, as \uXXXX or two of these, and the length of that.
func unescapeRune(b []byte) (rune, int) {
	unit := func(b []byte) (rune, bool) {
		if len(b) < 6 || b[0] != '\\' || b[1] != 'u' {
			return 0, false
		}
		n, err := strconv.ParseUint(string(b[2:6]), 16, 16)
		return rune(n), err == nil
	}
	r, ok := unit(b)
	if !ok {
		return utf8.RuneError, min(2, len(b))
	}
	if second, ok := unit(b[6:]); ok && utf16.IsSurrogate(r) {
		if both := utf16.DecodeRune(r, second); both != utf8.RuneError {
			return both, 12
		}
	}
	return r, 6
}

// stringEnd is the length of the string that b begins with, quotes included; 0 if it is cut off.
func stringEnd(b []byte) int {
	for i := 1; i < len(b); i++ {
		switch b[i] {
		case '\\':
			i++
		case '"':
			return i + 1
		}
	}
	return 0
}

// valueEnd is the length of the value that b begins with, or of all of b if it is cut off.
func valueEnd(b []byte) int {
	depth := 0
	for i := 0; i < len(b); i++ {
		switch c := b[i]; c {
		case '"':
			n := stringEnd(b[i:])
			if n == 0 {
				return len(b)
			}
			if i += n - 1; depth == 0 {
				return i + 1
			}
		case '{', '[':
			depth++
		case '}', ']':
			if depth == 0 {
				return i
			}
			if depth--; depth == 0 {
				return i + 1
			}
		case ',', ' ', '\t', '\r', '\n':
			if depth == 0 {
				return i
			}
		}
	}
	return len(b)
}

// redactXML appends what has XML or HTML in it without secrets: the content of elements whose names say so, attributes whose names do,
// and the values of those that are beside such a name, as in <add key="password" value="...">.
func redactXML(dst, b []byte) []byte {
	for {
		i := bytes.IndexByte(b, '<')
		if i < 0 {
			return append(dst, b...)
		}
		dst, b = append(dst, b[:i]...), b[i:]
		end := tagEnd(b)
		if end == 0 {
			return append(dst, redactTag(nil, b)...)
		}
		tag := b[1 : end-1]
		n := bytes.IndexAny(tag, " \t\r\n/")
		if n < 0 {
			n = len(tag)
		}
		name := tag[:n]
		if len(name) == 0 || name[0] == '!' || name[0] == '?' {
			dst, b = append(dst, b[:end]...), b[end:]
			continue
		}
		dst = redactTag(dst, b[:end])
		b = b[end:]
		local := name
		if _, after, ok := bytes.Cut(name, []byte{':'}); ok {
			local = after
		}
		if bytes.HasSuffix(tag, []byte{'/'}) || !isSecret(string(local)) {
			continue
		}
		if n = bytes.Index(b, append([]byte("</"), name...)); n < 0 && !bytes.HasPrefix(bytes.TrimSpace(b), []byte("<![")) {
			n = bytes.IndexByte(b, '<') // it has no end, as some of HTML
		}
		if n < 0 { // it is cut off
			n = len(b)
		}
		if len(bytes.TrimSpace(b[:n])) > 0 {
			dst = append(dst, redacted...)
			b = b[n:]
		}
	}
}

// tagEnd is the length of the tag that b begins with; 0 if it is cut off. A > in quotes is none, if the quotes end.
func tagEnd(b []byte) int {
	quote := byte(0)
	for i, c := range b {
		switch {
		case quote != 0:
			if c == quote {
				quote = 0
			}
		case c == '"' || c == '\'':
			quote = c
		case c == '>':
			return i + 1
		}
	}
	return bytes.IndexByte(b, '>') + 1
}

// redactTag appends a tag without secrets in its attributes.
func redactTag(dst, tag []byte) []byte {
	if bytes.IndexByte(tag, '=') < 0 {
		return append(dst, tag...)
	}
	type attribute struct {
		name       string
		begin, end int // of the value, without its quotes
	}
	var list []attribute
	beside := false // there is an attribute that names a secret
	for i := 0; i < len(tag); {
		equals := bytes.IndexByte(tag[i:], '=')
		if equals < 0 {
			break
		}
		equals += i
		name := bytes.TrimRight(tag[i:equals], " \t\r\n")
		name = name[bytes.LastIndexAny(name, " \t\r\n\"'/<")+1:]
		begin := equals + 1
		for begin < len(tag) && strings.IndexByte(" \t\r\n", tag[begin]) >= 0 {
			begin++
		}
		end := begin
		if begin < len(tag) && (tag[begin] == '"' || tag[begin] == '\'') {
			begin++
			if end = bytes.IndexByte(tag[begin:], tag[begin-1]); end < 0 {
				end = len(tag) - begin
			}
			end += begin
			i = min(end+1, len(tag))
		} else {
			if end = bytes.IndexAny(tag[begin:], " \t\r\n>"); end < 0 {
				end = len(tag) - begin
			}
			end += begin
			i = end
		}
		list = append(list, attribute{strings.ToLower(string(name)), begin, end})
		if n := list[len(list)-1].name; n == "name" || n == "id" || n == "key" || n == "property" {
			beside = beside || isSecret(string(tag[begin:end]))
		}
	}
	from := 0
	for _, a := range list {
		_, local, ok := strings.Cut(a.name, ":")
		if !ok {
			local = a.name
		}
		if a.begin < a.end && local != "key" && (isSecret(local) || beside && (local == "value" || local == "content")) {
			dst = append(append(dst, tag[from:a.begin]...), redacted...)
			from = a.end
		}
	}
	return append(dst, tag[from:]...)
}

// redactParts appends multipart/form-data without the parts that have secrets.
func redactParts(dst, b []byte, boundary string) []byte {
	delimiter := []byte("--" + boundary)
	for {
		i := bytes.Index(b, delimiter)
		if i < 0 {
			return append(dst, b...)
		}
		i += len(delimiter)
		dst, b = append(dst, b[:i]...), b[i:]
		end := bytes.Index(b, delimiter)
		if end < 0 {
			end = len(b)
		}
		head := partHead(b[:end])
		if head == 0 {
			dst, b = redactText(dst, b[:end]), b[end:]
			continue
		}
		secret := false
		text := strings.ReplaceAll(string(b[:head]), "\r\n", "\n")
		text = strings.NewReplacer("\n ", " ", "\n\t", " ").Replace(text) // rfc5322#section-2.2.3
		for line := range strings.SplitSeq(text, "\n") {
			name, value, _ := strings.Cut(line, ":")
			if strings.EqualFold(strings.TrimSpace(name), "content-disposition") {
				_, params, err := mime.ParseMediaType(value)
				secret = secret || isSecret(params["name"]) || err != nil && isSecret(value)
			}
		}
		dst = append(dst, b[:head]...)
		body := b[head:end]
		if secret {
			dst = append(append(dst, redacted...), "\r\n"...)
		} else {
			dst = redactText(dst, body)
		}
		b = b[end:]
	}
}

// partHead is the length of the head of a part, with the empty line behind it; 0 if there is none. Many servers take lines
// that end without a CR.
func partHead(b []byte) int {
	n := bytes.Index(b, []byte("\n\n")) + 2
	if m := bytes.Index(b, []byte("\r\n\r\n")) + 4; m > 3 && (n < 2 || m < n) {
		return m
	}
	if n > 1 {
		return n
	}
	return 0
}

// redactText appends text of any kind without secrets.
func redactText(dst, b []byte) []byte {
	b = redactJSON(nil, b, 0)
	if bytes.Contains(b, []byte("</")) || bytes.Contains(b, []byte("/>")) {
		b = redactXML(nil, b)
	}
	return append(dst, b...)
}

// maxInflated bounds what is made of a body that was compressed.
const maxInflated = 4 * maxBodyKept

// Body is what was kept of a body, without secrets.
type Body struct {
	Text      string // if it is text
	Binary    []byte // if it is not
	Size      int64  // bytes of all of it, as it was sent
	Truncated bool   // there was more
	Redacted  bool   // something is not shown: a secret, or all of it because of its coding
}

// maxCodings is how many content codings are undone of a body, one after the other.
const maxCodings = 3

// show makes a Body of what was kept, with the head that it belongs to.
func (k *keptBody) show(fields []http1.Field) Body {
	s := Body{Size: k.size, Truncated: k.truncated()}
	b := k.bytes
	if len(b) == 0 {
		return s
	}
	var codings [][]byte
	for _, f := range fields {
		if http1.EqualFold(f.Name, "content-encoding") {
			codings = append(codings, bytes.Split(f.Value, comma)...)
		}
	}
	slices.Reverse(codings) // the last one was applied last
	for i, coding := range codings {
		var ok bool
		var cut bool
		if b, cut, ok = inflate(b, strings.ToLower(string(bytes.TrimSpace(coding)))); !ok || i >= maxCodings {
			s.Redacted = true
			return s
		}
		s.Truncated = s.Truncated || cut
	}
	kind, params, _ := mime.ParseMediaType(string(http1.Get(fields, "content-type")))
	var clean []byte
	switch {
	case strings.HasPrefix(kind, "multipart/") && params["boundary"] != "":
		clean = redactParts(nil, b, params["boundary"])
	case kind == "application/x-www-form-urlencoded" && !looksLikeJSON(b), kind == "" && looksLikeForm(b):
		clean = redactForm(nil, b)
	case isWide(b, params["charset"]): // names are not found in it
		s.Redacted = true
		return s
	default: // a byte that is none of UTF-8's does not hide what is around it
		clean = redactText(nil, b)
	}
	s.Redacted = !bytes.Equal(clean, b)
	if isText(clean) {
		s.Text = strings.ToValidUTF8(string(clean), "\uFFFD")
	} else {
		s.Binary = bytes.Clone(clean)
	}
	return s
}

// isWide reports whether b is text in which ASCII is not itself: UTF-16, say, in which JSON was once allowed to be.
func isWide(b []byte, charset string) bool {
	charset = strings.ToLower(charset)
	for _, name := range [...]string{"utf-16", "utf16", "utf-32", "utf32", "utf-7", "ucs-", "iso-10646-ucs", "ebcdic", "ibm", "cp037"} {
		if strings.HasPrefix(charset, name) {
			return true
		}
	}
	if len(b) < 2 {
		return false
	}
	const begins = "{[\"<"
	return b[0] == 0xfe && b[1] == 0xff || b[0] == 0xff && b[1] == 0xfe || bytes.HasPrefix(b, []byte{0, 0, 0xfe, 0xff}) || bytes.HasPrefix(b, []byte{0, 0, 0, '{'}) ||
		b[0] == 0 && strings.IndexByte(begins, b[1]) >= 0 || b[1] == 0 && strings.IndexByte(begins, b[0]) >= 0
}

// looksLikeForm reports whether b could be one.
func looksLikeForm(b []byte) bool {
	return bytes.IndexByte(b, '=') > 0 && !bytes.ContainsAny(b, " \t\r\n{<\"")
}

// looksLikeJSON reports whether b begins as an object or an array of JSON does. Clients say that such a body is a form if nobody
// has told them better, curl -d among them.
func looksLikeJSON(b []byte) bool {
	b = bytes.TrimLeft(b, " \t\r\n\uFEFF")
	return len(b) > 0 && (b[0] == '{' || b[0] == '[')
}

// isText reports whether b is UTF-8 without control characters that are none of text. Its last character may be cut.
func isText(b []byte) bool {
	for i := 0; i < len(b); {
		c := b[i]
		if c < utf8.RuneSelf {
			if c < ' ' && c != '\t' && c != '\n' && c != '\r' && c != '\f' && c != 0x1b {
				return false
			}
			i++
			continue
		}
		r, n := utf8.DecodeRune(b[i:])
		if r == utf8.RuneError && n == 1 {
			return i > 0 && !utf8.FullRune(b[i:])
		}
		i += n
	}
	return true
}

// inflate undoes a content coding (rfc9110#section-8.4.1), as far as there is something and no further than maxInflated. It reports
// whether that was all, and whether it knows the coding.
func inflate(b []byte, coding string) (plain []byte, cut, known bool) {
	var r io.Reader
	var err error
	switch coding {
	case "", "identity":
		return b, false, true
	case "gzip", "x-gzip":
		r, err = gzip.NewReader(bytes.NewReader(b))
	case "deflate":
		if r, err = zlib.NewReader(bytes.NewReader(b)); err != nil { // some servers leave the header out
			r, err = flate.NewReader(bytes.NewReader(b)), nil
		}
	default:
		return nil, false, false
	}
	if err != nil {
		return nil, true, false
	}
	plain, err = io.ReadAll(io.LimitReader(r, maxInflated+1))
	if len(plain) > maxInflated {
		return plain[:maxInflated], true, true
	}
	return plain, err != nil, len(plain) > 0 || err == nil
}
