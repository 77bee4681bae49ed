package http3

import (
	"bytes"
	"errors"
	"io"
	"strconv"

	"github.com/quic-go/qpack"

	"culvert.dev/pkg/http1"
)

// Head decodes field sections of a client, and has http1 make of them what it has for a message. It is
// to be used again and again: what it returns is valid until it is used next.
type Head struct {
	decoder qpack.Decoder
	pseudo  http1.Pseudo
	fields  []http1.Field // the others
	text    []byte        // names and values
}

// Decode takes the field section of a request. An error is an *Error, or an *http1.Error.
func (h *Head) Decode(section []byte) error {
	h.pseudo = http1.Pseudo{}
	if err := h.walk(section); err != nil {
		return err
	}
	if p := &h.pseudo; p.Scheme != nil && !http1.EqualFold(p.Scheme, "https") {
		return malformed("another scheme than https")
	}
	return nil
}

// Method is that of the request.
func (h *Head) Method() []byte { return h.pseudo.Method }

// walk decodes a field section: what is wrong with it as a whole.
func (h *Head) walk(section []byte) error {
	h.fields, h.text = h.fields[:0], h.text[:0]
	next := h.decoder.Decode(section)
	for size := 0; ; {
		f, err := next()
		if err == io.EOF {
			return nil
		}
		if err != nil {
			return violation(DecompressionFailed, "a field section cannot be decoded")
		}
		if size += len(f.Name) + len(f.Value) + 32; size > MaxSection {
			return errSection
		}
		value := h.keep(f.Value)
		if !f.IsPseudo() {
			h.fields = append(h.fields, http1.Field{Name: h.keep(f.Name), Value: value})
			continue
		}
		var p *[]byte
		switch f.Name {
		case ":method":
			p = &h.pseudo.Method
		case ":scheme":
			p = &h.pseudo.Scheme
		case ":authority":
			p = &h.pseudo.Authority
		case ":path":
			p = &h.pseudo.Path
		case ":protocol":
			p = &h.pseudo.Protocol
		}
		switch {
		case p == nil:
			return malformed("unknown pseudo field")
		case *p != nil:
			return malformed("a pseudo field twice")
		case len(h.fields) > 0:
			return malformed("a pseudo field behind others")
		}
		*p = value
	}
}

// keep returns a copy of s, which is not nil.
func (h *Head) keep(s string) []byte {
	start := len(h.text)
	h.text = append(h.text, s...)
	return h.text[start:len(h.text):len(h.text)]
}

// Request makes a Request of what was decoded; end tells that the stream has ended with it. The error is
// an *Error, or an *http1.Error.
func (h *Head) Request(r *http1.Request, end bool) error {
	r.Fields = append(r.Fields[:0], h.fields...)
	return refine(http1.AssembleRequest(r, h.pseudo, end))
}

// Trailers decodes the field section behind a body.
func (h *Head) Trailers(section []byte) ([]http1.Field, error) {
	h.pseudo = http1.Pseudo{}
	if err := h.walk(section); err != nil {
		return nil, err
	}
	if p := &h.pseudo; p.Method != nil || p.Scheme != nil || p.Authority != nil || p.Path != nil || p.Protocol != nil {
		return nil, malformed("a pseudo field in trailers")
	}
	if err := http1.CheckTrailers(h.fields); err != nil {
		return nil, refine(err)
	}
	return h.fields, nil
}

// Priority is what a priority field says (rfc9218#section-4): how urgent the response is, from 0 to 7, the
// least urgent one, and whether a part of it is of use before the rest. What it does not know it ignores.
func Priority(value []byte) (urgency int8, incremental bool) {
	urgency = 3
	for p := range bytes.SplitSeq(value, []byte{','}) {
		p = bytes.Trim(p, " \t")
		switch {
		case len(p) == 3 && p[0] == 'u' && p[1] == '=' && '0' <= p[2] && p[2] <= '7':
			urgency = int8(p[2] - '0')
		case string(p) == "i", string(p) == "i=?1":
			incremental = true
		case string(p) == "i=?0":
			incremental = false
		}
	}
	return urgency, incremental
}

// refine makes an error of HTTP/3 of one of http1, unless it says more than that a message is malformed.
func refine(err error) error {
	if e, ok := errors.AsType[*http1.Error](err); ok && e.Status == 400 {
		return malformed(e.Reason)
	}
	return err
}

// Section encodes the field section of a response, or of trailers: Status, or nothing, then each Field,
// then Append.
type Section struct {
	packed  packed
	encoder *qpack.Encoder
	name    []byte
}

// packed is what an encoder writes to.
type packed []byte

func (p *packed) Write(b []byte) (int, error) { *p = append(*p, b...); return len(b), nil }

// Status begins a response.
func (s *Section) Status(status int) { s.put(":status", strconv.Itoa(status)) }

// Field adds a field. Its name is put into lower case.
func (s *Section) Field(name, value []byte) {
	s.name = append(s.name[:0], name...)
	for i, c := range s.name {
		if 'A' <= c && c <= 'Z' {
			s.name[i] = c + 'a' - 'A'
		}
	}
	s.put(string(s.name), string(value))
}

func (s *Section) put(name, value string) {
	if s.encoder == nil {
		s.encoder = qpack.NewEncoder(&s.packed)
	}
	s.encoder.WriteField(qpack.HeaderField{Name: name, Value: value}) // packed takes everything
}

// Append appends the HEADERS frame, and is ready for the next one.
func (s *Section) Append(dst []byte) []byte {
	if len(s.packed) == 0 {
		s.packed = append(s.packed, 0, 0) // a prefix alone
	}
	dst = appendHead(dst, frameHeaders, len(s.packed))
	dst = append(dst, s.packed...)
	s.packed = s.packed[:0]
	if s.encoder != nil {
		s.encoder.Close()
	}
	return dst
}
