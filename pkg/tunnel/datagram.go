package tunnel

// datagrams are those that wait for the control path: a queue for each stream that has
// some, served in turn. When they are too many, a stream that has more than its share
// loses its oldest.
type datagrams struct {
	flows map[*Stream]*flow // nil until there is one
	turns queue[*flow]      // those of flows, and ended ones
	size  int               // bytes, of all
}

// A flow is what waits for one stream.
type flow struct {
	st    *Stream // nil once it is no more in flows
	queue queue[[]byte]
	size  int
}

// A DatagramHandler is a Handler that gets datagrams too. Those of another Handler
// are dropped.
type DatagramHandler interface {
	// OnDatagram is lent b until it returns, and may modify it. Datagrams may be lost,
	// and come in another order than they were sent; each of them comes whole, at most
	// once, never after Close or OnClose, and whether the stream is paused or not.
	OnDatagram(b []byte)
}

// SendDatagram sends a copy of b, or queues it. It never blocks, and never delays streams:
// the oldest datagrams are dropped when the queue is full, all of them when there is no
// link, and one that is longer than MaxDatagram at once.
func (st *Stream) SendDatagram(b []byte) {
	s := st.s
	switch {
	case s == nil:
	case len(b) > MaxDatagram || s.control == nil:
		s.stats.DatagramsDropped++
	case s.direct != nil && st.flags&flagConfirmed != 0 && s.direct.lanes.SendDatagram(st.id, b):
		s.direct.sent += uint64(len(b))
		s.stats.DatagramsSent++
	default:
		s.dgrams.push(s, st, b)
		s.wake()
	}
}

// cost is what a datagram takes of the bounds, so that empty ones are not free.
func cost(b []byte) int { return len(b) + 64 }

func (d *datagrams) push(s *Session, st *Stream, b []byte) {
	f := d.flows[st]
	if f == nil {
		if d.flows == nil {
			d.flows = make(map[*Stream]*flow)
		}
		f = &flow{st: st}
		d.flows[st] = f
		d.turns.push(f)
	}
	f.queue.push(append([]byte(nil), b...))
	f.size += cost(b)
	d.size += cost(b)
	if d.size <= maxDatagrams {
		return
	}
	const enough = maxDatagrams - maxDatagrams/8 // the search for long queues is not for each datagram
	share := enough / len(d.flows)
	for d.size > enough { // so one has more than its share
		f := d.turns.pop()
		for f.size > share && d.size > enough {
			d.pop(f)
			s.stats.DatagramsDropped++
		}
		d.again(f)
	}
}

// pop returns the oldest datagram of f.
func (d *datagrams) pop(f *flow) []byte {
	b := f.queue.pop()
	f.size -= cost(b)
	d.size -= cost(b)
	return b
}

// again puts f, whose turn it was, behind the others if it has more.
func (d *datagrams) again(f *flow) {
	switch {
	case f.st == nil:
	case f.queue.empty():
		delete(d.flows, f.st)
		f.st = nil
	default:
		d.turns.push(f)
	}
}

// drop drops what waits for st.
func (d *datagrams) drop(s *Session, st *Stream) {
	f := d.flows[st]
	if f == nil {
		return
	}
	s.stats.DatagramsDropped += uint64(f.queue.len())
	d.size -= f.size
	delete(d.flows, st)
	*f = flow{}
	if n := d.turns.len(); n > 2*len(d.flows)+100 {
		for range n {
			d.again(d.turns.pop())
		}
	}
}

func (s *Session) dropDatagrams() {
	for _, f := range s.dgrams.flows {
		s.stats.DatagramsDropped += uint64(f.queue.len())
	}
	s.dgrams = datagrams{}
}

// fillDatagrams adds datagrams to an empty batch: as many as fit, or, while others wait,
// half of it. What one is too long for is saved up, so that it goes in time.
func (s *Session) fillDatagrams(c *carrier, b []byte, most int) []byte {
	d := &s.dgrams
	if d.size == 0 {
		return b
	}
	c.allowance = min(c.allowance+(most-Headroom)/2, batchSize)
	if !s.waiting() && s.opens.empty() && s.resets.empty() && s.credits.empty() {
		c.allowance = batchSize
	}
	for held := 0; held < d.turns.len(); {
		f := d.turns.peek()
		if f.st == nil {
			d.turns.pop()
			continue
		}
		if f.st.flags&(flagEmitted|flagOpening) != flagEmitted { // its OPEN comes first
			d.turns.push(d.turns.pop())
			held++
			continue
		}
		n := headerSize + len(f.queue.peek())
		if n > c.allowance || !fits(b, n, most) {
			break
		}
		d.turns.pop()
		id, p := f.st.id, d.pop(f)
		at := len(b)
		b = b[:at+n]
		putHeader(b[at:], frameDatagram, id, len(p))
		copy(b[at+headerSize:], p)
		c.allowance -= n
		s.stats.DatagramsSent++
		d.again(f)
	}
	if d.size == 0 {
		c.allowance = 0
	}
	return b
}

// receiveDatagram gives b to the handler of stream id, if it is open and takes datagrams.
func (s *Session) receiveDatagram(id uint32, b []byte) {
	st := s.lookup(id)
	if st == nil || st.flags&flagEmitted == 0 {
		s.stats.DatagramsDropped++
		return
	}
	st.confirm()
	h, ok := st.h.(DatagramHandler)
	if !ok || st.flags&flagDiscard != 0 {
		s.stats.DatagramsDropped++
		return
	}
	s.stats.DatagramsReceived++
	h.OnDatagram(b)
}
