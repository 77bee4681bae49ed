package http2

import (
	"encoding/binary"

	"culvert.dev/pkg/http1"
)

// minGather is the first size of a connection's output, which grows to gatherSize.
const minGather = 4 << 10

// room makes room for n bytes in out, whose last frame cannot be added to any more.
func (c *Conn) room(n int) {
	c.tail = nil
	if len(c.out)+n > gatherSize {
		c.push()
	}
	c.grow(n)
}

func (c *Conn) grow(n int) {
	if len(c.out)+n > cap(c.out) {
		larger := append(c.e.get(max(len(c.out)+n, minGather)), c.out...)
		c.e.put(c.out)
		c.out = larger
	}
}

// frame appends the header of a frame of n bytes, which are then appended to out.
func (c *Conn) frame(n int, kind, flags byte, id uint32) {
	c.room(frameHeader + n)
	c.out = appendHeader(c.out, n, kind, flags, id)
	c.ask()
}

// ask has Flush called.
func (c *Conn) ask() {
	if c.flags&connAsked != 0 {
		return
	}
	c.flags |= connAsked
	if c.isServer() {
		c.server.OnOutput()
	} else {
		c.client.OnOutput()
	}
}

// push gives out to the transport.
func (c *Conn) push() {
	if len(c.out) > 0 {
		c.t.Write(c.out)
	}
	c.drop()
}

func (c *Conn) drop() {
	if c.out != nil {
		c.e.put(c.out)
	}
	c.out, c.tail = nil, nil
}

// full reports whether the transport has enough for now. When it is, the transport's own queue is above its high mark,
// once out is there, so that it tells when it has drained.
func (c *Conn) full() bool { return c.t.Pending()+len(c.out) > c.t.HighMark() }

// Flush writes what has been gathered, as far as the transport takes it, and makes the callbacks that are due. Call it
// at the end of a turn in which OnOutput was called, and when the transport has drained.
func (c *Conn) Flush() {
	if c.state != stateClosed {
		c.flags |= connBusy | connAsked // what comes up while sending is sent right here
		for {
			c.sendQueued()
			if len(c.out) == 0 {
				break
			}
			c.push()
			if c.ready.head == nil || c.sendWindow <= 0 || c.full() {
				break
			}
		}
	}
	c.flags &^= connBusy | connAsked
	c.callBack()
}

// sendQueued sends what streams have queued, a frame of each in turn.
func (c *Conn) sendQueued() {
	for c.ready.head != nil && c.sendWindow > 0 && !c.full() {
		s := c.ready.pop()
		s.flags &^= inReady
		b := s.out.bytes()
		n := c.sendData(s, b[:min(len(b), maxFrame)])
		s.out.use(&c.e.buffers, n)
		s.schedule()
		if s.out.len() == 0 && s.flags&ending != 0 {
			s.sendEnd()
		}
		c.unqueue(n)
		s.drained()
	}
}

// unqueue accounts for n bytes that have left the queue of a stream.
func (c *Conn) unqueue(n int) {
	c.queued -= n
	if c.flags&connHigh != 0 && c.queued <= maxQueued/2 {
		c.flags &^= connHigh
		for s := range c.all {
			s.drained()
		}
	}
}

// sendData makes DATA frames of b, as far as windows and transport take it, and returns how much that is. A frame that
// is the last one of out grows.
func (c *Conn) sendData(s *Stream, b []byte) (sent int) {
	for sent < len(b) {
		n := min(len(b)-sent, maxFrame, int(s.sendWindow), int(c.sendWindow))
		if n <= 0 || c.full() {
			break
		}
		if c.tail == s && len(c.out)+n <= gatherSize {
			have := len(c.out) - c.tailAt - frameHeader
			if n = min(n, maxFrame-have); n > 0 {
				c.grow(n)
				c.out = append(c.out, b[sent:sent+n]...)
				putLength(c.out[c.tailAt:], have+n)
				sent += n
				c.sendWindow -= int32(n)
				s.sendWindow -= int32(n)
				continue
			}
			n = min(len(b)-sent, maxFrame, int(s.sendWindow), int(c.sendWindow))
		}
		if !c.isServer() && n >= directSize {
			// The transport is a stream of a session, which copies what it queues: once is enough.
			c.frame(0, typeData, 0, s.id)
			putLength(c.out[len(c.out)-frameHeader:], n)
			c.push()
			c.t.Write(b[sent : sent+n])
		} else {
			c.frame(n, typeData, 0, s.id)
			c.tail, c.tailAt = s, len(c.out)-frameHeader
			c.out = append(c.out, b[sent:sent+n]...)
		}
		sent += n
		c.sendWindow -= int32(n)
		s.sendWindow -= int32(n)
	}
	if sent > 0 {
		c.earn(1 + sent/calmPayload)
		c.updates += updatesPerFrame + sent/updateBytes
	}
	return sent
}

// directSize is the payload that a client writes from where it is.
const directSize = 4 << 10

func putLength(b []byte, n int) { b[0], b[1], b[2] = byte(n>>16), byte(n>>8), byte(n) }

// sendBlock sends the header block b of a stream.
func (c *Conn) sendBlock(id uint32, b []byte, end bool) {
	kind, flags := byte(typeHeaders), byte(0)
	if end {
		flags = flagEndStream
	}
	for {
		n := min(len(b), maxFrame)
		if n == len(b) {
			flags |= flagEndHeaders
		}
		c.frame(n, kind, flags, id)
		c.out = append(c.out, b[:n]...)
		if b = b[n:]; len(b) == 0 {
			return
		}
		kind, flags = typeContinuation, 0
	}
}

// appendFields appends fields to a block, with their names in lower case.
func (c *Conn) appendFields(block []byte, fields []http1.Field, connect bool) []byte {
	for _, f := range fields {
		lower := c.e.lower[:0]
		for _, b := range f.Name {
			if 'A' <= b && b <= 'Z' {
				b += 'a' - 'A'
			}
			lower = append(lower, b)
		}
		c.e.lower = lower
		if connect { // rfc8441#section-5: the stream itself is the proof that these are
			switch string(lower) {
			case "sec-websocket-key", "sec-websocket-accept":
				continue
			}
		}
		block = c.enc.field(block, lower, f.Value)
	}
	return block
}

// Names of pseudo-header fields.
var (
	nameMethod, nameScheme, nameAuthority = []byte(":method"), []byte(":scheme"), []byte(":authority")
	namePath, nameProtocol, nameStatus    = []byte(":path"), []byte(":protocol"), []byte(":status")
	methodConnect                         = []byte("CONNECT")
)

// Request sends a request of a client, with the forwarding fields set as http1 does; end says that no data follows. A
// request with Upgrade becomes an extended CONNECT: see CanConnect.
func (c *Conn) Request(req *http1.Request, fwd http1.Forward, end bool, h ResponseHandler) (*Stream, error) {
	if c.Room() == 0 {
		return nil, ErrNoRoom
	}
	id := c.last + 2
	if c.last == 0 {
		id = 1
	}
	c.last = id
	c.opened, c.reset = c.opened<<1|1, c.reset<<1
	s := c.open(id)
	s.h = h

	e := c.e
	block := c.enc.begin(e.block[:0])
	if req.Upgrade != nil {
		s.flags |= connect
		s.protocol = append([]byte(nil), req.Upgrade...)
		block = c.enc.field(block, nameMethod, methodConnect)
		block = c.enc.field(block, nameProtocol, req.Upgrade)
		end = false
	} else {
		block = c.enc.field(block, nameMethod, req.Method)
	}
	e.text = append(e.text[:0], fwd.Proto...)
	block = c.enc.field(block, nameScheme, e.text)
	block = c.enc.field(block, nameAuthority, req.Host)
	e.text = append(e.text[:0], req.Path...)
	if req.Query != nil {
		e.text = append(append(e.text, '?'), req.Query...)
	}
	block = c.enc.field(block, namePath, e.text)
	e.fields, e.text = http1.AppendForwardedFields(e.fields[:0], e.text[:0], req, fwd)
	block = c.appendFields(block, e.fields, req.Upgrade != nil)
	clear(e.fields)
	e.block = block
	if string(req.Method) == "HEAD" {
		s.flags |= headRequest
	}
	s.flags |= sentHead
	c.sendBlock(id, block, end)
	if end {
		s.flags |= ending | sentEnd
	}
	return s, nil
}

// Respond sends the head of a response, an interim or the final one, with the hop-by-hop fields removed; end says that
// nothing follows. A 101 answers an extended CONNECT.
func (s *Stream) Respond(res *http1.Response, end bool) {
	c := s.c
	if c == nil || s.flags&sentHead != 0 {
		return
	}
	status := res.Status
	if status == 101 {
		if s.flags&connect == 0 {
			s.Reset(CodeInternal) // there is no such thing in HTTP/2: rfc9113#section-8.6
			return
		}
		status = 200
	}
	if status >= 200 {
		s.flags |= sentHead
		c.earnEnd()
	} else {
		end = false
	}
	e := c.e
	block := c.enc.begin(e.block[:0])
	digits := [3]byte{byte('0' + status/100%10), byte('0' + status/10%10), byte('0' + status%10)}
	block = c.enc.field(block, nameStatus, digits[:])
	e.fields, e.text = http1.AppendForwardedResponseFields(e.fields[:0], e.text[:0], res)
	block = c.appendFields(block, e.fields, s.flags&connect != 0)
	clear(e.fields)
	e.block = block
	c.sendBlock(s.id, block, end)
	if end {
		s.flags |= ending | sentEnd
		s.settle()
	}
}

// refuse resets s for what the peer has sent.
func (c *Conn) refuse(s *Stream, code Code) *Error {
	s.abort(code, &StreamError{Code: code})
	return c.spendReset()
}

// refuseID resets a stream that was not made.
func (c *Conn) refuseID(id uint32, code Code) *Error {
	c.sendReset(id, code)
	return c.spendReset()
}

func (c *Conn) sendReset(id uint32, code Code) {
	if i := (c.last - id) / 2; i < 64 {
		c.reset |= 1 << i
	}
	c.frame(4, typeReset, 0, id)
	c.out = binary.BigEndian.AppendUint32(c.out, uint32(code))
}
