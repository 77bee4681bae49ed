package http3

import "culvert.dev/pkg/http1"

// Event is what Reader.Next has found.
type Event uint8

const (
	EventNone     Event = iota // everything was used, and more is needed
	EventHead                  // the field section of the request
	EventData                  // a part of its body, never empty
	EventTrailers              // the field section behind it
)

// Reader cuts what a client sends on a request stream into the parts of a request. The zero value is
// at the beginning of one.
//
//	HEADERS → DATA … → HEADERS → end of stream
//
// Frames of unknown types may be anywhere and are skipped.
type Reader struct {
	state   readerState
	head    frameHead
	inside  bool   // of a frame
	kind    uint64 // of it
	left    uint64 // bytes of it to come
	section []byte // the field section that is being gathered
	bounded bool
	length  int64 // bytes of the body to come, if bounded
}

type readerState uint8

const (
	atHead readerState = iota // before the field section of the request
	atBody                    // behind it
	atEnd                     // behind the trailers
)

var errSection = &http1.Error{Status: 431, Reason: "head too large"}

// Expect has the reader check that the body has as many bytes as the request's Content-Length says; -1:
// it has none. It is called once, between the head and what follows.
func (r *Reader) Expect(length int64) { r.bounded, r.length = length >= 0, length }

// Next takes some of b. payload is valid until the next call, or for as long as b. An error is an
// *Error, or an *http1.Error that says what to answer.
func (r *Reader) Next(b []byte) (event Event, payload []byte, used int, err error) {
	for used < len(b) {
		if !r.inside {
			kind, length, n, ok := r.head.take(b[used:])
			used += n
			if !ok {
				break
			}
			if err := r.begin(kind, length); err != nil {
				return EventNone, nil, used, err
			}
			// An empty field section is complete.
			if length > 0 || kind != frameHeaders {
				continue
			}
		}
		n := int(min(uint64(len(b)-used), r.left))
		part := b[used : used+n : used+n]
		used += n
		r.left -= uint64(n)
		r.inside = r.left > 0
		switch r.kind {
		case frameData:
			if r.length -= int64(n); r.bounded && r.length < 0 {
				return EventNone, nil, used, malformed("more body than Content-Length says")
			}
			return EventData, part, used, nil
		case frameHeaders:
			if !r.inside && len(r.section) == 0 {
				return r.advance(), part, used, nil
			}
			r.section = append(r.section, part...)
			if !r.inside {
				payload = r.section
				r.section = nil
				return r.advance(), payload, used, nil
			}
		}
	}
	return EventNone, nil, used, nil
}

// begin looks at the head of a frame.
func (r *Reader) begin(kind, length uint64) error {
	switch {
	case kind == frameData && r.state != atBody, kind == frameHeaders && r.state == atEnd,
		kind == frameCancelPush, kind == frameSettings, kind == framePushPromise, kind == frameGoAway, kind == frameMaxPushID,
		kind == framePriorityUpdate, kind == framePushPriority, ofHTTP2(kind):
		return violation(FrameUnexpected, "unexpected frame on a request stream")
	case kind == frameHeaders && length > MaxSection: // packed it is hardly ever longer than unpacked
		return errSection
	}
	r.kind, r.left = kind, length
	r.inside = length > 0
	return nil
}

// advance is the end of a field section.
func (r *Reader) advance() Event {
	r.state++
	if r.state == atBody {
		return EventHead
	}
	return EventTrailers
}

// EOF is the end of the stream.
func (r *Reader) EOF() error {
	switch {
	case r.inside, r.head.n > 0:
		return violation(FrameError, "a request stream ends within a frame")
	case r.state == atHead:
		return &Error{Code: RequestIncomplete, Reason: "a request stream ends before its request"}
	case r.bounded && r.length > 0:
		return malformed("less body than Content-Length says")
	}
	return nil
}
