package public

import (
	"bytes"
	"crypto/tls"
	"errors"
	"net/netip"
	"strconv"
	"time"
	"unicode"
	"unicode/utf8"

	"culvert.dev/pkg/http1"
	"culvert.dev/pkg/tunnel"
)

// Bytes of what visitors choose that a line of the access log has at most, before
// they are escaped.
const (
	logMethod = 32
	logHost   = 256
	logPath   = 2048
	logField  = 512 // of a header field
	logName   = 256 // who has authenticated
)

// logGather is how many bytes of lines are gathered before the end of the turn.
const logGather = 64 << 10

// accessLog is what a loop has for the access log since its turn began.
type accessLog struct {
	lines   []byte
	request []byte // scratch
	woken   bool   // leave comes at the end of this turn
	leave   func()
}

// record is what a line of the access log tells, about one request, connection or
// flow. What is zero is left out, but for status, bytes and duration.
type record struct {
	service  *service // nil: none was found
	visitor  netip.AddrPort
	user     string
	subject  string
	operator string // whose it is; "": a visitor's
	replayed string // ID of the request that it is a copy of
	proto    string
	tls      uint16 // version
	request  []byte // of appendRequest; nil: there is none, or none that could be read
	status   int    // 0: it is no request
	err      word

	received, sent uint64
	packets        Datagrams     // of a flow
	began          int64         // in the loop's time
	first          time.Duration // to the first byte of the answer
	stream         *tunnel.Stream
}

// log writes a line, if there is an access log. It is the end of what r is about.
func (l *loop) log(r *record) {
	if l.relay.AccessLog == nil {
		return
	}
	a := &l.access
	a.lines = r.append(a.lines, l)
	switch {
	case len(a.lines) >= logGather:
		l.relay.AccessLog(a.lines)
		a.lines = a.lines[:0]
	case !a.woken:
		a.woken = true
		if a.leave == nil {
			a.leave = l.leave
		}
		l.AfterTurn(a.leave)
	}
}

// leave passes on the lines of this turn.
func (l *loop) leave() {
	a := &l.access
	a.woken = false
	if len(a.lines) > 0 {
		l.relay.AccessLog(a.lines)
		a.lines = a.lines[:0]
	}
}

// logDecision writes the line of a request that is answered as decide has said.
func (l *loop) logDecision(c *client, req *http1.Request, d decision) {
	l.logOwn(c, req, d.service, d.trouble)
}

// logAnswer writes the line of a request that the relay has answered by itself and
// that was for no service. req is nil if it could not be read.
func (l *loop) logAnswer(c *client, req *http1.Request, t *trouble) { l.logOwn(c, req, nil, t) }

func (l *loop) logOwn(c *client, req *http1.Request, s *service, t *trouble) {
	if s != nil {
		s.requests[protocol(c.proto)][t.status/100]++
		s.errors[t.word()]++
		if t.status >= 500 {
			s.ours++
		}
	} else {
		l.refused[t.word()]++
	}
	l.rememberOwn(c, req, s, t)
	if l.relay.AccessLog == nil {
		return
	}
	a := &l.access
	a.request = a.request[:0]
	if req != nil {
		a.request = l.appendRequest(a.request, req)
	}
	l.log(&record{service: s, visitor: c.addr, subject: c.subject(), proto: c.proto, tls: c.tls, request: a.request, status: t.status, err: t.word(), began: l.since()})
}

// transport is that of the link by which a stream goes, "" if there is none.
func (s *session) transport(st *tunnel.Stream) string {
	if st == nil {
		return ""
	}
	via := s.tun.Via(st)
	for _, c := range s.links {
		if c.Link == via {
			return c.transport.String()
		}
	}
	return ""
}

// append appends the line.
func (r *record) append(b []byte, l *loop) []byte {
	b = append(b, `{"time":"`...)
	b = l.Now().UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
	b = append(b, '"')
	if s := r.service; s != nil {
		b = appendText(b, "site", s.session.site, logName)
		b = appendText(b, "service", s.name, logName)
	}
	b = append(b, `,"visitor":"`...)
	b = r.visitor.AppendTo(b)
	b = append(b, '"')
	if r.user != "" {
		b = appendText(b, "user", r.user, logName)
	}
	if r.subject != "" {
		b = appendText(b, "subject", r.subject, logName)
	}
	if r.operator != "" {
		b = appendText(b, "operator", r.operator, logName)
	}
	if r.replayed != "" {
		b = appendText(b, "replay_of", r.replayed, logName)
	}
	b = append(append(append(b, `,"proto":"`...), r.proto...), '"')
	if r.tls != 0 {
		b = append(append(append(b, `,"tls":"`...), tlsVersion(r.tls)...), '"')
	}
	b = append(b, r.request...)
	if r.status != 0 {
		b = strconv.AppendInt(append(b, `,"status":`...), int64(r.status), 10)
	}
	b = strconv.AppendUint(append(b, `,"received":`...), r.received, 10)
	b = strconv.AppendUint(append(b, `,"sent":`...), r.sent, 10)
	if r.packets != (Datagrams{}) {
		b = strconv.AppendUint(append(b, `,"datagrams_received":`...), r.packets.Received, 10)
		b = strconv.AppendUint(append(b, `,"datagrams_sent":`...), r.packets.Sent, 10)
	}
	b = appendMillis(append(b, `,"duration_ms":`...), time.Duration(l.since()-r.began))
	if r.first != 0 {
		b = appendMillis(append(b, `,"first_byte_ms":`...), r.first)
	}
	if r.stream != nil {
		b = strconv.AppendUint(append(b, `,"stream":`...), uint64(r.stream.ID()), 10)
	}
	if s := r.service; s != nil {
		b = append(append(append(b, `,"session":"`...), s.session.shortID()...), '"')
		if t := s.session.transport(r.stream); t != "" {
			b = append(append(append(b, `,"link":"`...), t...), '"')
		}
	}
	if r.err != fine {
		b = append(append(append(b, `,"error":"`...), Words[r.err]...), '"')
	}
	return append(b, "}\n"...)
}

// appendRequest appends what the line tells about the head of a request, which is
// gone when the line is written. Without an access log it is nothing.
func (l *loop) appendRequest(b []byte, req *http1.Request) []byte {
	r := l.relay
	if r.AccessLog == nil {
		return b
	}
	b = appendText(b, "method", req.Method, logMethod)
	b = appendText(b, "host", req.Host, logHost)
	b = appendText(b, "path", req.Path, logPath)
	if r.AccessQuery && req.Query != nil {
		b = appendText(b, "query", req.Query, logPath)
	}
	if !r.AccessAgent {
		return b
	}
	if v := http1.Get(req.Fields, "user-agent"); v != nil {
		b = appendText(b, "user_agent", v, logField)
	}
	if v := http1.Get(req.Fields, "referer"); v != nil {
		if !r.AccessQuery {
			v, _, _ = bytes.Cut(v, question)
		}
		b = appendText(b, "referer", v, logField)
	}
	return b
}

var question = []byte{'?'}

// appendText appends a member of a JSON object behind others: a name of ours, and
// a value that can be anything, of which no more than most bytes are taken.
func appendText[T string | []byte](b []byte, name string, value T, most int) []byte {
	b = append(append(append(b, ',', '"'), name...), `":"`...)
	cut := len(value) > most
	if cut {
		value = value[:most]
	}
	plain := 0 // value[plain:i] is to be copied
	for i := 0; i < len(value); {
		c := value[i]
		if c >= ' ' && c != '"' && c != '\\' && c < 0x7f {
			i++
			continue
		}
		r, n := rune(c), 1
		if c >= utf8.RuneSelf {
			r, n = utf8.DecodeRuneInString(string(value[i:min(i+utf8.UTFMax, len(value))]))
			if r == utf8.RuneError && n == 1 && cut && i+utf8.UTFMax > len(value) && !utf8.FullRune([]byte(value[i:])) {
				value = value[:i] // the cut goes through it
				break
			}
			if r != utf8.RuneError && unicode.IsPrint(r) {
				i += n
				continue
			}
		}
		b = append(b, value[plain:i]...)
		b = appendEscaped(b, r)
		i += n
		plain = i
	}
	b = append(b, value[plain:]...)
	if cut {
		b = append(b, "…"...)
	}
	return append(b, '"')
}

// appendEscaped appends a character that would end the string, or the line, or
// do something to the terminal of who reads it.
func appendEscaped(b []byte, r rune) []byte {
	const hex = "0123456789abcdef"
	switch r {
	case '"', '\\':
		return append(b, '\\', byte(r))
	case '\n':
		return append(b, `\n`...)
	case '\r':
		return append(b, `\r`...)
	case '\t':
		return append(b, `\t`...)
	}
	units := [2]rune{r}
	n := 1
	if r > 0xffff {
		r -= 0x10000
		units[0], units[1] = 0xd800+r>>10, 0xdc00+r&0x3ff
		n = 2
	}
	for _, u := range units[:n] {
		b = append(b, '\\', 'u', hex[u>>12&15], hex[u>>8&15], hex[u>>4&15], hex[u&15])
	}
	return b
}

// appendMillis appends a duration in milliseconds, to the microsecond.
func appendMillis(b []byte, d time.Duration) []byte {
	us := max(d.Microseconds(), 0)
	b = strconv.AppendInt(b, us/1000, 10)
	if us %= 1000; us != 0 {
		b = append(b, '.', byte('0'+us/100), byte('0'+us/10%10), byte('0'+us%10))
	}
	return b
}

// tlsVersion is what the access log and the counters call a version.
func tlsVersion(v uint16) string {
	switch v {
	case tls.VersionTLS12:
		return "1.2"
	case tls.VersionTLS13:
		return "1.3"
	}
	return "other"
}

// word says what went wrong, in the access log and in the metrics. The set is
// closed: people search for them, and count them.
type word uint8

const (
	fine            word = iota
	wordMalformed        // the request breaks the rules of HTTP
	wordNotFound         // no such service, or no such page of ours
	wordAuth             // who asks is not known
	wordPolicy           // of the service
	wordLimit            // there is too much of something
	wordTimeout          // somebody took too long
	wordCancelled        // the visitor went away
	wordUnreachable      // the target
	wordBadAnswer        // of the target: none, half of one, or not HTTP
	wordAway             // the site
	wordReset            // the target, or the site, ended it
	wordElsewhere        // the request wants a connection of its own
	wordKicked           // an operator has ended it
	numWords
)

// Words are the names of the words, by number; the first one is no trouble.
var Words = [numWords]string{
	"", "malformed", "not-found", "auth", "policy", "limit", "timeout", "cancelled", "unreachable", "bad-answer", "away", "reset", "elsewhere", "kicked",
}

// word is the word for t. An answer that is no error has none.
func (t *trouble) word() word {
	switch t {
	case troubleServer:
		return wordUnreachable
	case troubleAway:
		return wordAway
	case troubleKicked:
		return wordKicked
	case troubleGuesses, troubleNoCert, troubleBadCert:
		return wordAuth
	}
	switch {
	case t.status < 400:
		return fine
	case t.status == 401:
		return wordAuth
	case t.status == 403, t.status == 405:
		return wordPolicy
	case t.status == 421:
		return wordElsewhere
	case t.status == 404:
		return wordNotFound
	case t.status == 408, t.status == 504:
		return wordTimeout
	case t.status == 413, t.status == 429, t.status == 503:
		return wordLimit
	case t.status == 502:
		return wordBadAnswer
	}
	return wordMalformed
}

// wordOf is the word for the end of a connection or a flow.
func wordOf(err error) word {
	if err == nil {
		return fine
	}
	e, ok := errors.AsType[*tunnel.StreamError](err)
	if !ok {
		if errors.Is(err, errDeadline) {
			return wordTimeout
		}
		return wordCancelled
	}
	switch e.Code {
	case tunnel.CodeRefused, tunnel.CodeUnreachable:
		return wordUnreachable
	case tunnel.CodeTimeout:
		return wordTimeout
	case tunnel.CodeNotFound, tunnel.CodeForbidden:
		return wordNotFound
	case tunnel.CodeOverload, tunnel.CodeMemory:
		return wordLimit
	case tunnel.CodeDraining, tunnel.CodeSessionLost:
		return wordAway
	}
	return wordReset
}
