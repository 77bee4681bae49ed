package rtsp

import (
	"bytes"
	"strconv"
)

// Kind is what Demux.Next found.
type Kind uint8

const (
	None     Kind = iota // more bytes are needed
	Frame                // an interleaved frame, or a piece of a long one
	Request              // a whole request
	Response             // a whole response
	Blank                // blank lines between messages, to be skipped
)

// Demux finds the messages and the interleaved frames of one direction of a connection. Its zero value
// is at the start of the stream.
type Demux struct {
	// Of the Frame that Next returned last. A frame of up to MaxWhole bytes comes whole, with its head of
	// four bytes: First and Last are set. A longer one comes in pieces as they arrive, of which the first
	// has the head.
	Channel     uint8
	First, Last bool

	rest  int // bytes of the current frame that are to come
	line  int // where the line that is looked at begins, in the input of the next call
	scan  int // how far it has been looked at
	lines int // before that line
	need  int // length of the message, once its head is complete; 0 before
}

// Next looks for a message or a frame at the start of b and says what it is and how many bytes it has.
// With None those are 0, and the next call must have the same bytes with more behind them. A message
// is put into m, whose Fields are used again; frames leave m alone. After an error, which is an *Error,
// the stream has no further meaning; m has what could be read, so that an answer can have the CSeq.
func (d *Demux) Next(b []byte, m *Message) (k Kind, n int, err error) {
	if d.rest > 0 {
		n = min(d.rest, len(b))
		if n == 0 {
			return None, 0, nil
		}
		d.rest -= n
		d.First, d.Last = false, d.rest == 0
		return Frame, n, nil
	}
	if len(b) == 0 {
		return None, 0, nil
	}
	switch b[0] {
	case '$':
		return d.frame(b)
	case '\r', '\n':
		for n < len(b) && (b[n] == '\r' || b[n] == '\n') {
			n++
		}
		return Blank, n, nil
	}
	return d.message(b, m)
}

func (d *Demux) frame(b []byte) (Kind, int, error) {
	if len(b) < 4 {
		return None, 0, nil
	}
	n := 4 + (int(b[2])<<8 | int(b[3]))
	if len(b) < n && n <= 4+MaxWhole {
		return None, 0, nil
	}
	d.Channel = b[1]
	whole := n
	n = min(n, len(b))
	d.rest = whole - n
	d.First, d.Last = true, d.rest == 0
	return Frame, n, nil
}

func (d *Demux) message(b []byte, m *Message) (Kind, int, error) {
	if d.need == 0 {
		end, err := d.head(b, m)
		if end == 0 || err != nil {
			return None, 0, err
		}
		n, err := m.parse(b[:end])
		if err != nil {
			return None, 0, err
		}
		if end+n > MaxMessage {
			return None, 0, &Error{StatusRequestTooLarge, "a message of " + strconv.Itoa(end+n) + " bytes, at most " + strconv.Itoa(MaxMessage) + " are taken"}
		}
		d.need = end + n
		if len(b) < d.need {
			d.scan = end
			return None, 0, nil
		}
		m.Body = b[end:d.need:d.need]
	} else {
		if len(b) < d.need {
			return None, 0, nil
		}
		// The head was good when it was complete. It is read again because b may have moved since.
		if _, err := m.parse(b[:d.scan]); err != nil {
			return None, 0, err
		}
		m.Body = b[d.scan:d.need:d.need]
	}
	n := d.need
	d.line, d.scan, d.lines, d.need = 0, 0, 0, 0
	if m.Status != 0 {
		return Response, n, nil
	}
	return Request, n, nil
}

// head returns the length of the head at the start of b, with its empty line, or 0 if that has not come.
func (d *Demux) head(b []byte, m *Message) (int, error) {
	if d.scan == 0 {
		*m = Message{Fields: m.Fields[:0]}
		if !isToken[b[0]] {
			return 0, badf("neither a message nor a frame: begins with byte %#02x", b[0])
		}
	}
	for {
		i := bytes.IndexByte(b[d.scan:], '\n')
		if i < 0 {
			d.scan = len(b)
			if d.scan >= MaxHead {
				return 0, tooLongHead(d.lines)
			}
			return 0, nil
		}
		end := d.scan + i + 1
		if end > MaxHead {
			return 0, tooLongHead(d.lines)
		}
		line := trimLine(b[d.line:end])
		if d.lines == 0 {
			// What is not RTSP at all is told at once.
			if err := m.start(line); err != nil && err.Status != StatusVersionNotSupported {
				return 0, err
			}
		}
		d.line, d.scan = end, end
		if len(line) == 0 {
			return end, nil
		}
		if d.lines++; d.lines > 1+MaxFields {
			return 0, badf("more than %d fields", MaxFields)
		}
	}
}

func tooLongHead(lines int) *Error {
	if lines == 0 {
		return &Error{StatusURLTooLong, "the start line is too long"}
	}
	return badf("more than %d bytes of fields", MaxHead)
}

// trimLine cuts off the end of a line, which may be LF alone.
func trimLine(b []byte) []byte {
	b = b[:len(b)-1]
	if len(b) > 0 && b[len(b)-1] == '\r' {
		b = b[:len(b)-1]
	}
	return b
}

// start reads the first line of a message into m.
func (m *Message) start(line []byte) *Error {
	if i := control(line); i >= 0 {
		return badf("control character %#02x in the start line", line[i])
	}
	if v, ok := bytes.CutPrefix(line, []byte("RTSP/")); ok {
		version, rest, _ := bytes.Cut(v, []byte(" "))
		code, reason, _ := bytes.Cut(bytes.TrimLeft(rest, " "), []byte(" "))
		status, err := strconv.ParseUint(string(code), 10, 16)
		if err != nil || len(code) != 3 || status < 100 {
			return badf("a response with status %.10q", code)
		}
		m.Status, m.Reason = int(status), bytes.TrimSpace(reason)
		return checkVersion(version)
	}
	method, rest, ok := bytes.Cut(line, []byte(" "))
	i := bytes.LastIndexByte(rest, ' ')
	if !ok || i < 0 || !token(method) {
		return badf("not a request line: %.40q", line)
	}
	m.Method, m.URL = method, bytes.Trim(rest[:i], " ")
	version, ok := bytes.CutPrefix(rest[i+1:], []byte("RTSP/"))
	switch {
	case !ok:
		return badf("not a request of RTSP: %.40q", line)
	case len(m.URL) > MaxURL:
		return &Error{StatusURLTooLong, "the URL has " + strconv.Itoa(len(m.URL)) + " bytes, at most " + strconv.Itoa(MaxURL) + " are taken"}
	case len(m.URL) == 0 || bytes.IndexByte(m.URL, ' ') >= 0:
		return badf("not a request line: %.40q", line)
	}
	return checkVersion(version)
}

func checkVersion(v []byte) *Error {
	if string(v) != "1.0" {
		return &Error{StatusVersionNotSupported, "version RTSP/" + strconv.QuoteToASCII(string(v[:min(len(v), 10)]))}
	}
	return nil
}

// parse reads a whole head into m and returns the length of the body.
func (m *Message) parse(head []byte) (body int, err error) {
	*m = Message{Fields: m.Fields[:0]}
	var bad *Error
	length := -1
	for first := true; ; first = false {
		end := bytes.IndexByte(head, '\n') + 1
		line := trimLine(head[:end])
		head = head[end:]
		if first {
			// A version that is not ours is told after the fields, for the CSeq of the answer.
			if bad = m.start(line); bad != nil && bad.Status != StatusVersionNotSupported {
				return 0, bad
			}
			continue
		}
		if len(line) == 0 {
			break
		}
		f, err := parseField(line)
		if err != nil {
			return 0, err
		}
		if len(f.Name) == len("Content-Length") && Is(f.Name, "Content-Length") {
			n, ok := digits(f.Value)
			if !ok || length >= 0 && n != length {
				return 0, badf("Content-Length %.20q", f.Value)
			}
			length = n
		}
		m.Fields = append(m.Fields, f)
	}
	if bad != nil {
		return 0, bad
	}
	return max(length, 0), nil
}

func parseField(line []byte) (Field, *Error) {
	if line[0] == ' ' || line[0] == '\t' {
		return Field{}, badf("a field that goes on in the next line")
	}
	if i := control(line); i >= 0 {
		return Field{}, badf("control character %#02x in a field", line[i])
	}
	name, value, ok := bytes.Cut(line, []byte(":"))
	name = bytes.TrimRight(name, " \t")
	if !ok || !token(name) {
		return Field{}, badf("not a field: %.40q", line)
	}
	for len(value) > 0 && (value[0] == ' ' || value[0] == '\t') {
		value = value[1:]
	}
	for len(value) > 0 && (value[len(value)-1] == ' ' || value[len(value)-1] == '\t') {
		value = value[:len(value)-1]
	}
	return Field{name, value}, nil
}

// control returns where in a line the first control character other than a tab is, or -1.
func control(line []byte) int {
	for i, c := range line {
		if c < ' ' && c != '\t' || c == 0x7f {
			return i
		}
	}
	return -1
}

// digits reads a number of at most nine digits.
func digits(b []byte) (n int, ok bool) {
	if len(b) == 0 || len(b) > 9 {
		return 0, false
	}
	for _, c := range b {
		if c < '0' || c > '9' {
			return 0, false
		}
		n = n*10 + int(c-'0')
	}
	return n, true
}
