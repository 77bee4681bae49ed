package http1

import "io"

// Body decodes one message body as its bytes arrive. The zero value is an empty body.
type Body struct {
	state bodyState
	left  int64 // bytes of the body or chunk that are still to come
	ext   int   // bytes of chunk extensions seen so far

	// Trailers are the fields behind the last chunk, valid as long as the input of the call of Next
	// that said done.
	Trailers []Field
}

// bodyState goes down its list, in chunked bodies size → data → dataEnd → size … → trailers → done.
type bodyState uint8

const (
	bodyDone     bodyState = iota
	bodyLength             // left bytes, then done
	bodySize               // at a chunk-size line
	bodyData               // left bytes of a chunk
	bodyDataEnd            // the CRLF behind a chunk
	bodyTrailers           // behind the last chunk: field lines and an empty line
	bodyEOF                // until the connection ends
)

const (
	maxChunkLine = 256     // one chunk-size line with its extensions
	maxChunkExt  = 4 << 10 // all extensions of a body: nobody uses them, attackers pad with them
	maxTrailers  = 4 << 10 // the whole trailer section
)

var (
	errChunkSize = &Error{400, "invalid chunk size"}
	errChunkExt  = &Error{400, "chunk extensions too long"}
	errChunkEnd  = &Error{400, "chunk does not end with CRLF"}
	errTrailer   = &Error{400, "field not allowed in trailers"}
	errTrailers  = &Error{431, "trailers too long"}
)

// Reset prepares d for a body with that framing; length counts only with Length.
func (d *Body) Reset(f Framing, length int64) {
	*d = Body{Trailers: d.Trailers[:0]}
	switch f {
	case Length:
		if length > 0 {
			d.state, d.left = bodyLength, length
		}
	case Chunked:
		d.state = bodySize
	case UntilClose:
		d.state = bodyEOF
	}
}

// Next decodes the next part of the body from b. It used the first used bytes of b; payload, which may
// be empty, is among them. Nothing used and not done means that more input is needed: at most 4 KiB
// have to be kept for that. After done it goes on to say done. The error is an *Error.
func (d *Body) Next(b []byte) (payload []byte, used int, done bool, err error) {
	for {
		switch d.state {
		case bodyDone:
			return nil, used, true, nil

		case bodyLength, bodyData:
			n := int(min(int64(len(b)-used), d.left))
			d.left -= int64(n)
			payload, used = b[used:used+n:used+n], used+n
			if d.left == 0 {
				if d.state == bodyLength {
					d.state = bodyDone
				} else {
					d.state = bodyDataEnd
				}
			}
			return payload, used, d.state == bodyDone, nil

		case bodyEOF:
			return b, len(b), false, nil

		case bodySize:
			n, size, e := d.chunkSize(b[used:])
			if n == 0 || e != nil {
				return nil, used, false, wrap(e)
			}
			used += n
			d.left, d.state = size, bodyData
			if size == 0 {
				d.state = bodyTrailers
			}

		case bodyDataEnd:
			if len(b)-used > 0 && b[used] != '\r' || len(b)-used > 1 && b[used+1] != '\n' {
				return nil, used, false, errChunkEnd
			}
			if len(b)-used < 2 {
				return nil, used, false, nil
			}
			used += 2
			d.state = bodySize

		case bodyTrailers:
			n, e := d.trailers(b[used:])
			if n == 0 || e != nil {
				return nil, used, false, wrap(e)
			}
			used += n
			d.state = bodyDone
		}
	}
}

// wrap keeps a nil *Error from becoming an error that is not nil.
func wrap(e *Error) error {
	if e == nil {
		return nil
	}
	return e
}

// Done reports whether the body is complete.
func (d *Body) Done() bool { return d.state == bodyDone }

// EOF says what it means when the input ends here: nil if the body is complete by that.
func (d *Body) EOF() error {
	switch d.state {
	case bodyDone:
		return nil
	case bodyEOF:
		d.state = bodyDone
		return nil
	}
	return io.ErrUnexpectedEOF
}

// chunkSize reads 1*HEXDIG [chunk-ext] CRLF and returns its length, 0 if b ends within it.
func (d *Body) chunkSize(b []byte) (n int, size int64, e *Error) {
	for n < len(b) && class[b[n]]&isHex != 0 {
		if size>>58 != 0 {
			return 0, 0, errChunkSize
		}
		size = size<<4 | int64(hexValue(b[n]))
		n++
		if n > 16 {
			return 0, 0, errChunkSize // leading zeros without end
		}
	}
	if n == len(b) {
		return 0, 0, nil
	}
	if n == 0 || b[n] != ';' && b[n] != '\r' {
		return 0, 0, errChunkSize
	}
	start := n
	if b[n] == ';' {
		n = skipText(b[:min(len(b), maxChunkLine)], n)
		if n == maxChunkLine || d.ext+n-start > maxChunkExt {
			return 0, 0, errChunkExt
		}
	}
	switch {
	case n == len(b):
		return 0, 0, nil
	case b[n] != '\r':
		return 0, 0, errChunkSize
	case n+1 == len(b):
		return 0, 0, nil
	case b[n+1] != '\n':
		return 0, 0, errChunkSize
	}
	d.ext += n - start
	return n + 2, size, nil
}

func hexValue(c byte) byte {
	if c <= '9' {
		return c - '0'
	}
	return c&^0x20 - 'A' + 10
}

func (d *Body) trailers(b []byte) (int, *Error) {
	d.Trailers = d.Trailers[:0]
	full := len(b) >= maxTrailers
	if full {
		b = b[:maxTrailers]
	}
	n, e := parseFields(b, 0, 32, &d.Trailers, 400)
	switch {
	case e != nil:
		return 0, e
	case n == 0 && full:
		return 0, errTrailers
	case n == 0:
		return 0, nil
	}
	for _, f := range d.Trailers {
		if !trailerAllowed(f.Name) {
			return 0, errTrailer
		}
	}
	return n, nil
}

// trailerAllowed keeps what decides about framing, routing and authentication out of trailers
// (rfc9110#section-6.5.1): a recipient that merges them into the head would act on it.
func trailerAllowed(name []byte) bool {
	for _, no := range [...]string{
		"transfer-encoding", "content-length", "host", "connection", "upgrade", "te", "trailer", "expect",
		"content-encoding", "content-type", "content-range", "range", "max-forwards", "cache-control",
		"authorization", "proxy-authorization", "cookie", "set-cookie", "keep-alive", "proxy-connection",
	} {
		if EqualFold(name, no) {
			return false
		}
	}
	return !isForwarding(name)
}
