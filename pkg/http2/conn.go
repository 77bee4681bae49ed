package http2

import (
	"encoding/binary"
	"time"

	"culvert.dev/pkg/http1"
)

// What a peer may cost. Every bound of the package is here, in frame.go (frames), in hpack.go (tables) or in http1.
const (
	maxStreams   = 128       // requests under way on a connection, by default
	streamWindow = 256 << 10 // bytes of a stream that wait for its handler, at first: see window.go
	connWindow   = 1 << 20   // of all streams of a server's connection
	highMark     = 64 << 10  // bytes of a stream that wait to be sent, before its writer is asked to wait
	maxQueued    = 512 << 10 // of all streams of a connection, before whoever has something queued is
	gatherSize   = 64 << 10  // frames that leave in one write

	// A block of CONTINUATION frames is put together from the transport's own buffer, so it has to fit there.
	maxBlock         = 48 << 10
	maxContinuations = 16
	maxRequestHead   = 16 << 10 // as http1
	maxResponseHead  = 32 << 10

	// calm is the budget of what a peer makes us do without sending or reading payload. It is earned by time, by
	// answered requests and by payload, in either direction, so that only a peer who does little else runs out.
	calmMax       = 1000
	calmPerSecond = 100
	calmPerEnd    = 2       // earned by a request that was answered
	calmPayload   = 1 << 10 // each of these in a DATA frame earns 1, and the frame itself does
	costFrame     = 1       // PING, PRIORITY, SETTINGS, empty DATA, unknown and late frames, interim responses

	// resets is the budget of streams that are reset by the peer, or by us for what it sent: rapid reset
	// (CVE-2023-44487, CVE-2025-8671). It is earned by time, and by each request that was answered, but not by payload:
	// a byte of that is cheaper than what a request sets in motion.
	resetsMax       = 500
	resetsPerSecond = 50

	settingsPerCost = 8 // settings in one frame: each may change the windows of all streams

	// WINDOW_UPDATE is free as far as what we have sent explains it: two for each frame and each KiB, since some open
	// their windows 4 KiB at a time, of the stream and of the connection.
	updatesPerFrame = 2
	updateBytes     = 512
)

// Endpoint makes the connections of one loop, which share its limits and its buffers. The zero value works.
type Endpoint struct {
	// MaxStreams is the number of requests that a visitor may have under way on one connection. 0: 128.
	MaxStreams int

	// Budget is what receive windows grow by. If nil, they do not.
	Budget *Budget

	buffers
	head   head          // being received
	req    http1.Request // lent to OnRequest
	res    http1.Response
	block  []byte        // header block being sent
	fields []http1.Field // being sent
	text   []byte
	lower  []byte
}

// Server makes the server's side of a connection that carries HTTP/2 from its first byte.
func (e *Endpoint) Server(t Transport, h ServerHandler, now time.Time) *Conn {
	c := e.conn(t, connWindow, now)
	c.server = h
	n := e.MaxStreams
	if n == 0 {
		n = maxStreams
	}
	c.maxStreams = uint32(n)
	c.out = appendHeader(c.out, 4*6, typeSettings, 0, 0)
	c.out = appendSetting(c.out, settingStreams, c.maxStreams)
	c.out = appendSetting(c.out, settingWindow, streamWindow)
	c.out = appendSetting(c.out, settingHeaderList, maxRequestHead)
	c.out = appendSetting(c.out, settingConnect, 1)
	c.begin()
	return c
}

// Client makes the client's side.
func (e *Endpoint) Client(t Transport, h ClientHandler, now time.Time) *Conn {
	c := e.conn(t, clientWindow, now)
	c.client = h
	c.state = stateSettings
	c.maxStreams = maxStreamsUntold
	c.out = append(c.out, preface...)
	c.out = appendHeader(c.out, 3*6, typeSettings, 0, 0)
	c.out = appendSetting(c.out, settingPush, 0)
	c.out = appendSetting(c.out, settingWindow, streamWindow)
	c.out = appendSetting(c.out, settingHeaderList, maxResponseHead)
	c.begin()
	return c
}

func (e *Endpoint) conn(t Transport, window int32, now time.Time) *Conn {
	return &Conn{
		e: e, t: t,
		dec:        table{max: tableSize},
		enc:        encoder{table: table{max: tableSize}},
		out:        e.get(minGather),
		sendWindow: defaultWindow,
		window:     window,
		recvWindow: window,
		began:      now.UnixMilli(),
		peerWindow: defaultWindow,
		calm:       calmMax,
		resets:     resetsMax,
		calmAt:     now.UnixMilli(),
	}
}

// begin sends what a connection starts with.
func (c *Conn) begin() {
	c.out = appendWindowUpdate(c.out, 0, uint32(c.window)-defaultWindow)
	c.push()
}

type connState uint8

// A server's connection starts at the first, a client's at the second; every one may go to the last.
const (
	statePreface  connState = iota // waiting for the client's preface
	stateSettings                  // waiting for the SETTINGS that begin a connection
	stateOpen
	stateClosed // nothing goes in or out any more
)

type drainState uint8

// Draining goes down the list; a client, which knows what it has begun, skips the first step.
const (
	drainNot   drainState = iota
	drainAsked            // GOAWAY with the highest number was sent, and a ping behind it
	drainFinal            // GOAWAY with the last stream was sent: new streams are ignored
)

type connFlags uint8

const (
	connBusy   connFlags = 1 << iota // in Receive or Flush, which run the callbacks that are due before they return
	connAsked                        // OnOutput was called
	connHigh                         // HighMark told a stream that the connection has too much queued
	connGoAway                       // the peer has sent GOAWAY
	connTaken                        // Room was 0: OnRoom is due when it is not
	connMay                          // the peer takes extended CONNECT
)

// Conn is one connection. It belongs to the loop of its Endpoint.
type Conn struct {
	e      *Endpoint
	t      Transport
	server ServerHandler // of a server
	client ClientHandler // of a client
	err    error         // why it is closed

	state connState
	drain drainState
	flags connFlags

	// Receiving.
	dec          table
	data         *Stream // of the DATA frame under way; nil if its payload is dropped
	left         int     // of its payload
	padding      int     // behind the payload
	inData       bool    // such a frame is under way
	dataEnd      bool    // and has END_STREAM
	window       int32   // what the peer may send before handlers have used any of it
	recvWindow   int32   // what of it the peer may still send
	used         int32   // what handlers have used of it and the peer was not told
	shared       int32   // by how much window has grown for all streams together
	excess       int32   // of window: it is not given again
	rtt          int32   // ms; 0: not known
	now, grownAt int32   // ms since began: of the last Receive, and when window was last looked at
	began        int64   // in ms
	calm, resets int32   // what is left of the budgets
	calmAt       int64   // when time last added to them, in ms
	updates      int     // WINDOW_UPDATE frames that are free

	// Streams, by number: open hashing, because numbers are nearly consecutive.
	streams    []*Stream
	n          int
	maxStreams uint32 // of a client: the server's bound
	last       uint32 // the highest stream that the client has opened
	opened     uint64 // bit i: stream last-2i was opened, and not skipped
	reset      uint64 // bit i: stream last-2i was reset by us, or refused: what comes is late and means nothing

	// Sending.
	enc        encoder
	out        []byte  // frames for the transport; nil if there are none
	tail       *Stream // the last frame of out is DATA of it, and can be added to
	tailAt     int     // where that frame begins
	sendWindow int32
	peerWindow int32      // SETTINGS_INITIAL_WINDOW_SIZE of the peer
	queued     int        // bytes in the queues of all streams
	ready      streamList // have something queued, and a window
	due        streamList // have callbacks to come
	pings      int        // not answered
}

func (c *Conn) isServer() bool { return c.server != nil }

// Receive takes what the transport has received and returns how much of it was used. The rest, less than 64 KiB, is an
// incomplete frame and is to be shown again with more behind it. The error is an *Error.
func (c *Conn) Receive(b []byte, now time.Time) (used int, err error) {
	c.refill(now)
	c.now = int32(now.UnixMilli() - c.began)
	c.flags |= connBusy
	for used < len(b) && c.state != stateClosed {
		n, e := c.step(b[used:])
		if e != nil {
			c.fail(e)
			err = e
		}
		if n == 0 {
			break
		}
		used += n
	}
	c.flags &^= connBusy
	c.callBack()
	if c.state == stateClosed {
		used = len(b)
	}
	return used, err
}

// Errors of the connection.
var (
	errPreface      = &Error{CodeProtocol, "no preface"}
	errNoSettings   = &Error{CodeProtocol, "first frame is not SETTINGS"}
	errFrameSize    = &Error{CodeFrameSize, "invalid length of a frame"}
	errStreamID     = &Error{CodeProtocol, "invalid stream number"}
	errIdle         = &Error{CodeProtocol, "frame on an idle stream"}
	errClosed       = &Error{CodeStreamClosed, "frame on a closed stream"}
	errPadding      = &Error{CodeProtocol, "invalid padding"}
	errUnexpected   = &Error{CodeProtocol, "unexpected frame"}
	errContinuation = &Error{CodeProtocol, "header block interrupted"}
	errBlock        = &Error{CodeEnhanceYourCalm, "header block too large"}
	errCalm         = &Error{CodeEnhanceYourCalm, "too many frames without payload"}
	errResets       = &Error{CodeEnhanceYourCalm, "too many streams reset"}
	errOverrun      = &Error{CodeFlowControl, "window exceeded"}
	errWindow       = &Error{CodeFlowControl, "window too large"}
	errNoIncrement  = &Error{CodeProtocol, "window increment of 0"}
	errSetting      = &Error{CodeProtocol, "invalid setting"}
	errDependency   = &Error{CodeProtocol, "stream depends on itself"}
)

// step takes one frame from b, or a piece of a DATA frame. It returns 0 if the frame is not complete.
func (c *Conn) step(b []byte) (int, *Error) {
	if c.inData {
		return c.payload(b)
	}
	if c.state == statePreface {
		n := min(len(b), len(preface))
		if string(b[:n]) != preface[:n] {
			return 0, errPreface
		}
		if n < len(preface) {
			return 0, nil
		}
		c.state = stateSettings
		return n, nil
	}
	if len(b) < frameHeader {
		return 0, nil
	}
	h := parseHeader(b)
	switch {
	case c.state == stateSettings && (h.kind != typeSettings || h.flags&flagAck != 0):
		return 0, errNoSettings
	case h.length > maxFrame:
		return 0, errFrameSize
	case h.kind == typeData:
		return c.onData(h, b)
	case h.kind == typeHeaders:
		return c.onHeaders(h, b)
	}
	n := frameHeader + h.length
	if len(b) < n {
		return 0, nil
	}
	return n, c.onControl(h, b[frameHeader:n])
}

// onControl takes a frame without payload for handlers.
func (c *Conn) onControl(h header, b []byte) *Error {
	switch h.kind {
	case typeSettings:
		return c.onSettings(h, b)
	case typePing:
		switch {
		case h.id != 0:
			return errStreamID
		case len(b) != 8:
			return errFrameSize
		case h.flags&flagAck == 0:
			c.frame(8, typePing, flagAck, 0)
			c.out = append(c.out, b...)
		case binary.BigEndian.Uint64(b) == pingDrain && c.drain == drainAsked:
			c.goAway(CodeNone)
		case binary.BigEndian.Uint64(b) == pingAlive && c.pings > 0:
			c.pings = 0
			return nil
		}
		return c.spend(costFrame)
	case typeWindowUpdate:
		return c.onWindowUpdate(h, b)
	case typeReset:
		return c.onReset(h, b)
	case typePriority: // rfc9113#section-5.3.2: ignored
		switch {
		case h.id == 0:
			return errStreamID
		case len(b) != 5:
			return errFrameSize
		case binary.BigEndian.Uint32(b)&maxStreamID == h.id:
			return errDependency
		}
		return c.spend(costFrame)
	case typeGoAway:
		return c.onGoAway(h, b)
	case typePushPromise, typeContinuation: // nobody pushes: SETTINGS_ENABLE_PUSH is 0, and a client may not
		return errUnexpected
	}
	return c.spend(costFrame) // rfc9113#section-4.1: unknown types are ignored
}

// onData takes the header of a DATA frame, and the payload as far as it is there.
func (c *Conn) onData(h header, b []byte) (int, *Error) {
	n, padding := frameHeader, 0
	if h.flags&flagPadded != 0 {
		if h.length == 0 {
			return 0, errPadding
		}
		if len(b) == n {
			return 0, nil
		}
		if padding = int(b[n]); padding >= h.length {
			return 0, errPadding
		}
		n++
	}
	if h.id == 0 {
		return 0, errStreamID
	}
	if int32(h.length) > c.recvWindow {
		return 0, errOverrun
	}
	c.recvWindow -= int32(h.length)
	if !c.isServer() {
		// Requests of many share a client's connection. One that is not read has its own window to fill, and
		// takes nothing from the others.
		c.grant(h.length)
	}
	length := h.length - (n - frameHeader) - padding
	if length == 0 && h.flags&flagEndStream == 0 {
		if e := c.spend(costFrame); e != nil {
			return 0, e
		}
	}
	if length > 0 {
		c.earn(1 + length/calmPayload)
	}
	s := c.lookup(h.id)
	code := CodeNone
	switch {
	case s == nil:
		if e := c.late(h.id); e != nil {
			return 0, e
		}
	case s.flags&recvEnd != 0:
		code = CodeStreamClosed
	case int32(h.length) > s.recvWindow:
		code = CodeFlowControl
	case s.flags&recvHead == 0: // of a client's: data before the response
		code = CodeProtocol
	case s.expect >= 0 && int64(length) > s.expect:
		code = CodeProtocol
	}
	if code != CodeNone {
		if e := c.refuse(s, code); e != nil {
			return 0, e
		}
		s = nil
	}
	if s == nil {
		c.give(h.length)
	} else {
		s.recvWindow -= int32(h.length)
		s.give(h.length - length)
		if s.expect >= 0 {
			s.expect -= int64(length)
		}
	}
	c.data, c.left, c.padding, c.dataEnd, c.inData = s, length, padding, h.flags&flagEndStream != 0, true
	m, e := c.payload(b[n:])
	return n + m, e
}

// payload takes what b has of the DATA frame under way.
func (c *Conn) payload(b []byte) (n int, e *Error) {
	s := c.data
	if n = min(c.left, len(b)); n > 0 {
		c.left -= n
		switch {
		case s == nil:
		case s.c == nil: // reset since the frame began
			c.give(n)
		default:
			s.receive(b[:n:n])
		}
	}
	if c.left > 0 {
		return n, nil
	}
	m := min(c.padding, len(b)-n)
	c.padding -= m
	if c.padding == 0 {
		c.data, c.inData = nil, false
		switch {
		case s == nil || s.c == nil:
		case c.dataEnd:
			e = s.end()
		case s.flags&discard != 0:
			s.settle()
		}
	}
	return n + m, e
}

// late says what to think of a frame on a stream that is not open: nil if we have reset it, so that the frame may have
// been under way.
func (c *Conn) late(id uint32) *Error {
	if id > c.last || id%2 == 0 {
		return errIdle
	}
	i := (c.last - id) / 2
	switch {
	case i >= 64, c.reset>>i&1 != 0: // or too long ago to know
		return c.spend(costFrame)
	case c.opened>>i&1 != 0:
		return errClosed
	}
	return errIdle
}

// onHeaders takes HEADERS with the CONTINUATION frames behind it when all of them are there, so that a block is never
// copied to wait, and what it may take is bounded by what the transport keeps.
func (c *Conn) onHeaders(h header, b []byte) (int, *Error) {
	if h.id%2 == 0 { // rfc9113#section-5.1.1; the server of ours does not push
		return 0, errStreamID
	}
	n := frameHeader + h.length
	if len(b) < n {
		return 0, nil
	}
	block := b[frameHeader:n]
	if h.flags&flagPadded != 0 {
		var ok bool
		if block, ok = pad(block); !ok {
			return 0, errPadding
		}
	}
	if h.flags&flagPriority != 0 {
		if len(block) < 5 {
			return 0, errFrameSize
		}
		if binary.BigEndian.Uint32(block)&maxStreamID == h.id {
			return 0, errDependency
		}
		block = block[5:]
	}
	if h.flags&flagEndHeaders == 0 {
		first := n
		size := len(block)
		for count, more := 0, true; more; count++ {
			if len(b) < n+frameHeader {
				return 0, nil
			}
			f := parseHeader(b[n:])
			switch {
			case f.kind != typeContinuation || f.id != h.id:
				return 0, errContinuation
			case f.length > maxFrame:
				return 0, errFrameSize
			}
			if size += f.length; size > maxBlock || count == maxContinuations {
				return 0, errBlock
			}
			more = f.flags&flagEndHeaders == 0
			if n += frameHeader + f.length; len(b) < n {
				return 0, nil
			}
		}
		c.e.block = append(c.e.block[:0], block...)
		for i := first; i < n; {
			f := parseHeader(b[i:])
			c.e.block = append(c.e.block, b[i+frameHeader:i+frameHeader+f.length]...)
			i += frameHeader + f.length
		}
		block = c.e.block
	}
	limit := maxRequestHead
	if !c.isServer() {
		limit = maxResponseHead
	}
	if e := c.dec.decode(block, &c.e.head, limit); e != nil {
		return 0, e
	}
	return n, c.onBlock(h.id, h.flags&flagEndStream != 0)
}

// onBlock takes the header section in c.e.head.
func (c *Conn) onBlock(id uint32, end bool) *Error {
	s := c.lookup(id)
	switch {
	case s == nil && c.isServer() && id > c.last:
		return c.onRequest(id, end)
	case s == nil:
		return c.late(id)
	case s.flags&recvEnd != 0:
		return c.refuse(s, CodeStreamClosed)
	case s.flags&recvHead == 0:
		return c.onResponse(s, end)
	}
	// Trailers.
	h := &c.e.head
	if !end || h.over || http1.CheckTrailers(h.fields) != nil {
		return c.refuse(s, CodeProtocol)
	}
	s.trailers = h.fields
	e := s.end()
	if s.flags&saidEOF == 0 && s.c != nil {
		s.trailers = cloneFields(h.fields)
	} else {
		s.trailers = nil
	}
	return e
}

func (c *Conn) onRequest(id uint32, end bool) *Error {
	skipped := (id - c.last + 1) / 2
	c.opened, c.reset = c.opened<<skipped|1, c.reset<<skipped
	c.last = id
	switch {
	case c.drain == drainFinal:
		c.reset |= 1
		return nil
	case c.n >= int(c.maxStreams):
		return c.refuseID(id, CodeRefused)
	}
	h, e := &c.e.head, c.e
	p, fields, ok := pseudo(h.fields)
	if !ok {
		return c.refuseID(id, CodeProtocol)
	}
	e.req.Fields = append(e.req.Fields[:0], fields...)
	err := http1.AssembleRequest(&e.req, p, end)
	if h.over {
		err = errLargeHead
	}
	bad, _ := err.(*http1.Error)
	if bad != nil && bad.Status == 400 {
		return c.refuseID(id, CodeProtocol)
	}
	s := c.open(id)
	s.flags |= recvHead
	if end {
		s.flags |= recvEnd
	}
	if bad != nil {
		s.flags |= discard
		c.server.OnReject(s, bad)
		return nil
	}
	switch {
	case e.req.Upgrade != nil:
		s.flags |= connect
	case e.req.Framing == http1.Length:
		s.expect = e.req.ContentLength
	case e.req.Framing == http1.NoBody:
		s.expect = 0
	}
	if string(e.req.Method) == "HEAD" {
		s.flags |= headRequest
	}
	c.server.OnRequest(s, &e.req, end)
	if s.h == nil {
		s.flags |= discard // whatever is there to come, nobody wants it
	}
	switch {
	case s.c == nil:
	case end:
		s.sayEOF()
	default:
		s.settle()
	}
	return nil
}

var errLargeHead = &http1.Error{Status: 431, Reason: "head too large"}

// pseudo takes the pseudo-header fields off a request's section.
func pseudo(fields []http1.Field) (p http1.Pseudo, rest []http1.Field, ok bool) {
	for i, f := range fields {
		var v *[]byte
		switch string(f.Name) {
		case ":method":
			v = &p.Method
		case ":scheme":
			v = &p.Scheme
		case ":authority":
			v = &p.Authority
		case ":path":
			v = &p.Path
		case ":protocol":
			v = &p.Protocol
		default: // an unknown one, or one that comes later, is no field name for http1
			return p, fields[i:], true
		}
		if *v != nil {
			return p, nil, false
		}
		if *v = f.Value; f.Value == nil {
			*v = []byte{}
		}
	}
	return p, nil, true
}

func (c *Conn) onResponse(s *Stream, end bool) *Error {
	h, res := &c.e.head, &c.e.res
	if h.over || len(h.fields) == 0 || string(h.fields[0].Name) != ":status" {
		return c.refuse(s, CodeProtocol)
	}
	res.Fields = append(res.Fields[:0], h.fields[1:]...)
	method := methodGet
	if s.flags&headRequest != 0 {
		method = methodHead
	}
	if http1.AssembleResponse(res, h.fields[0].Value, method, end) != nil {
		return c.refuse(s, CodeProtocol)
	}
	switch {
	case res.Status < 200:
		if e := c.spend(costFrame); e != nil { // a response may have any number of them
			return e
		}
	case s.flags&connect != 0 && res.Status < 300 && !end:
		s.flags |= recvHead
		res.Status, res.Upgrade, res.Framing, res.ContentLength = 101, s.protocol, http1.NoBody, -1
	case s.flags&connect != 0 && res.Status < 300: // accepted, and over
		return c.refuse(s, CodeProtocol)
	default:
		s.flags |= recvHead
		c.earnEnd() // a server may reset, with NO_ERROR, what it has answered early
		switch res.Framing {
		case http1.NoBody:
			s.expect = 0
		case http1.Length:
			s.expect = res.ContentLength
		}
	}
	if r, ok := s.h.(ResponseHandler); ok {
		r.OnResponse(res, end)
	}
	if end && s.c != nil {
		return s.end()
	}
	return nil
}

var methodGet, methodHead = []byte("GET"), []byte("HEAD")

func (c *Conn) onSettings(h header, b []byte) *Error {
	switch {
	case h.id != 0:
		return errStreamID
	case h.flags&flagAck != 0:
		if len(b) != 0 {
			return errFrameSize
		}
		if c.rtt == 0 {
			c.rtt = max(c.now, 1)
		}
		return c.spend(costFrame)
	case len(b)%6 != 0:
		return errFrameSize
	}
	c.state = stateOpen
	cost := int32(costFrame + len(b)/6/settingsPerCost)
	for ; len(b) > 0; b = b[6:] {
		v := binary.BigEndian.Uint32(b[2:])
		switch binary.BigEndian.Uint16(b) {
		case settingTableSize:
			c.enc.setMax(v)
		case settingPush:
			if v > 1 || v == 1 && !c.isServer() {
				return errSetting
			}
		case settingStreams:
			if !c.isServer() {
				c.maxStreams = v
			}
		case settingWindow:
			if v > maxWindow {
				return errWindow
			}
			if e := c.setPeerWindow(int32(v)); e != nil {
				return e
			}
		case settingFrameSize:
			if v < maxFrame || v > 1<<24-1 {
				return errSetting
			}
		case settingConnect:
			if v > 1 || v == 0 && c.flags&connMay != 0 {
				return errSetting
			}
			if v == 1 {
				c.flags |= connMay
			}
		}
	}
	c.frame(0, typeSettings, flagAck, 0)
	if !c.isServer() {
		c.tellRoom()
	}
	return c.spend(cost)
}

// setPeerWindow changes what may be sent on every stream (rfc9113#section-6.9.2).
func (c *Conn) setPeerWindow(v int32) *Error {
	d := int64(v) - int64(c.peerWindow)
	c.peerWindow = v
	for s := range c.all {
		w := int64(s.sendWindow) + d
		if w > maxWindow {
			return errWindow
		}
		s.sendWindow = int32(w)
		s.schedule()
	}
	return nil
}

func (c *Conn) onWindowUpdate(h header, b []byte) *Error {
	if len(b) != 4 {
		return errFrameSize
	}
	if c.updates > 0 {
		c.updates--
	} else if e := c.spend(costFrame); e != nil {
		return e
	}
	n := int64(binary.BigEndian.Uint32(b) & maxStreamID)
	if h.id == 0 {
		switch {
		case n == 0:
			return errNoIncrement
		case int64(c.sendWindow)+n > maxWindow:
			return errWindow
		}
		c.sendWindow += int32(n)
		if c.ready.head != nil {
			c.ask()
		}
		return nil
	}
	s := c.lookup(h.id)
	switch {
	case s == nil && (h.id > c.last || h.id%2 == 0):
		return errIdle
	case s == nil:
		return nil
	case n == 0:
		return c.refuse(s, CodeProtocol)
	case int64(s.sendWindow)+n > maxWindow:
		return c.refuse(s, CodeFlowControl)
	}
	s.sendWindow += int32(n)
	s.schedule()
	return nil
}

func (c *Conn) onReset(h header, b []byte) *Error {
	switch {
	case h.id == 0:
		return errStreamID
	case len(b) != 4:
		return errFrameSize
	}
	s := c.lookup(h.id)
	if s == nil {
		if h.id > c.last || h.id%2 == 0 {
			return errIdle
		}
		return c.spend(costFrame)
	}
	code := Code(binary.BigEndian.Uint32(b))
	switch {
	case code == CodeRefused && !c.isServer() && s.flags&recvHead == 0:
		c.end(s, ErrUnseen)
	case code == CodeNone && !c.isServer() && s.flags&recvEnd != 0: // rfc9113#section-8.1: it needs no more of the request
		c.unqueue(s.out.len())
		s.out.drop(&c.e.buffers)
		s.flags |= ending | sentEnd
		s.settle()
	default:
		c.end(s, &StreamError{Code: code, Remote: true})
	}
	return c.spendReset()
}

func (c *Conn) onGoAway(h header, b []byte) *Error {
	switch {
	case h.id != 0:
		return errStreamID
	case len(b) < 8:
		return errFrameSize
	}
	c.flags |= connGoAway
	if !c.isServer() {
		last := binary.BigEndian.Uint32(b) & maxStreamID
		for s := range c.all {
			if s.id > last {
				c.end(s, ErrUnseen)
			}
		}
		c.client.OnGoAway(Code(binary.BigEndian.Uint32(b[4:])))
	}
	return c.spend(costFrame)
}

// spend takes n off the budget.
func (c *Conn) spend(n int32) *Error {
	if c.calm -= n; c.calm < 0 {
		return errCalm
	}
	return nil
}

// spendReset takes one off the other budget.
func (c *Conn) spendReset() *Error {
	if c.resets--; c.resets < 0 {
		return errResets
	}
	return nil
}

func (c *Conn) earn(n int) { c.calm = min(c.calm+int32(n), calmMax) }

func (c *Conn) earnResets(n int) { c.resets = min(c.resets+int32(n), resetsMax) }

// earnEnd is what an answered request earns.
func (c *Conn) earnEnd() {
	c.earn(calmPerEnd)
	c.earnResets(1)
}

func (c *Conn) refill(now time.Time) {
	ms := now.UnixMilli()
	d := ms - c.calmAt
	if d < 1000/resetsPerSecond && d >= 0 {
		return
	}
	c.calmAt = ms
	if d > 0 { // or the clock was set back
		c.earn(int(min(d*calmPerSecond/1000, calmMax)))
		c.earnResets(int(min(d*resetsPerSecond/1000, resetsMax)))
	}
}

// fail ends the connection by a GOAWAY.
func (c *Conn) fail(e *Error) {
	last := uint32(0)
	if c.isServer() {
		last = c.last
	}
	c.tail = nil
	c.out = appendGoAway(c.out, last, e.Code, e.Reason)
	c.push()
	c.shut(e)
}

// shut ends all streams, with err.
func (c *Conn) shut(err error) {
	c.state, c.err = stateClosed, err
	for s := range c.all {
		c.end(s, err)
	}
	c.drop()
	c.closeWindow()
}

// Close ends all streams with err. Nothing else is sent or received: the transport is lost, or about to be closed.
func (c *Conn) Close(err error) {
	if c.state != stateClosed {
		c.shut(err)
	}
	if c.flags&connBusy == 0 {
		c.callBack()
	}
}

// Held returns how many bytes of payload wait for handlers.
func (c *Conn) Held() (n int) {
	for s := range c.all {
		n += s.in.len()
	}
	return n
}

// Streams returns the number of streams that are open.
func (c *Conn) Streams() int { return c.n }

// Ready reports whether the peer's settings have come.
func (c *Conn) Ready() bool { return c.state == stateOpen }

// CanConnect reports whether the server takes extended CONNECT (rfc8441#section-3). It is false until its settings came.
func (c *Conn) CanConnect() bool { return c.flags&connMay != 0 }

// Room returns how many requests a client can make now.
func (c *Conn) Room() int {
	if c.state == stateClosed || c.drain != drainNot || c.flags&connGoAway != 0 || c.last >= lastClientStreamID {
		return 0
	}
	if n := int(c.maxStreams) - c.n; n > 0 {
		return n
	}
	c.flags |= connTaken
	return 0
}

// MaxStreams returns how many streams the server lets a client have open, as far as it has said.
func (c *Conn) MaxStreams() int { return int(c.maxStreams) }

// tellRoom calls OnRoom if somebody has found no room before.
func (c *Conn) tellRoom() {
	if c.flags&connTaken != 0 && c.Room() > 0 {
		c.flags &^= connTaken
		c.client.OnRoom()
	}
}

// What our pings carry.
const (
	pingAlive = 0x63756c7665727400 // "culvert" 0
	pingDrain = 0x63756c7665727401 // "culvert" 1
)

// Ping asks the peer for a sign of life.
func (c *Conn) Ping() {
	if c.state != stateClosed {
		c.pings++
		c.ping(pingAlive)
	}
}

func (c *Conn) ping(payload uint64) {
	c.frame(8, typePing, 0, 0)
	c.out = binary.BigEndian.AppendUint64(c.out, payload)
}

// Unanswered returns how many pings await an answer.
func (c *Conn) Unanswered() int { return c.pings }

// Drain has the peer make no further requests, without losing any that are under way: a GOAWAY with the highest number,
// and one with the last stream a round trip later (rfc9113#section-6.8). Done reports when all is over.
func (c *Conn) Drain() {
	switch {
	case c.state == stateClosed || c.drain != drainNot:
	case !c.isServer():
		c.goAway(CodeNone)
	default:
		c.drain = drainAsked
		c.sendGoAway(maxStreamID, CodeNone)
		c.ping(pingDrain)
	}
}

// GoAway refuses at once whatever the peer has not begun yet.
func (c *Conn) GoAway(code Code) {
	if c.state != stateClosed && c.drain != drainFinal {
		c.goAway(code)
	}
}

func (c *Conn) goAway(code Code) {
	c.drain = drainFinal
	last := uint32(0)
	if c.isServer() {
		last = c.last
	}
	c.sendGoAway(last, code)
}

func (c *Conn) sendGoAway(last uint32, code Code) {
	c.room(frameHeader + 8)
	c.out = appendGoAway(c.out, last, code, "")
	c.ask()
}

// Done reports whether the connection was drained, by either side, and has no streams and nothing to send: the transport
// can be closed.
func (c *Conn) Done() bool {
	return c.state == stateClosed || (c.drain == drainFinal || c.flags&connGoAway != 0) && c.n == 0 && len(c.out) == 0
}
