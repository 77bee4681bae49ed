package tunnel

const (
	smallChunk = 1 << 10 // an interactive stream's queue
	largeChunk = 16 << 10

	// maxFree bounds the free chunks that a pool keeps, in bytes of each size.
	maxFree = 16 << 20
)

// A chunk holds bytes of one stream: b[:len(b)] is filled.
type chunk struct {
	next *chunk
	off  uint64 // stream offset of b[0]; send queues only
	r    int    // bytes of b that are used up; receive queues only
	seen bool   // the handler left what is here; receive queues only
	b    []byte
}

// chunks is a queue of chunks. The zero value is empty.
type chunks struct{ head, tail *chunk }

func (q *chunks) push(c *chunk) {
	c.next = nil
	if q.tail == nil {
		q.head = c
	} else {
		q.tail.next = c
	}
	q.tail = c
}

func (q *chunks) pushFront(c *chunk) {
	c.next = q.head
	q.head = c
	if q.tail == nil {
		q.tail = c
	}
}

func (q *chunks) pop() *chunk {
	c := q.head
	q.head = c.next
	if q.head == nil {
		q.tail = nil
	}
	c.next = nil
	return c
}

// room is the tail's free space.
func (q *chunks) room() int {
	if q.tail == nil {
		return 0
	}
	return cap(q.tail.b) - len(q.tail.b)
}

// A pool is the session's free list. The last chunk freed is the next one given
// out, so that what is hot in the cache stays in use.
type pool struct {
	free [2]chunkList
	used int // bytes of the chunks in use: the session's memory
}

type chunkList struct {
	head *chunk
	n    int
	low  int // least n since the last trim: these were not needed
}

// get returns an empty chunk for n more bytes of a queue that is empty or not.
func (p *pool) get(n int, empty bool) *chunk {
	class, size := 1, largeChunk
	if empty && n <= smallChunk {
		class, size = 0, smallChunk
	}
	p.used += size
	l := &p.free[class]
	c := l.head
	if c == nil {
		return &chunk{b: make([]byte, 0, size)}
	}
	l.head = c.next
	c.next = nil
	l.n--
	l.low = min(l.low, l.n)
	return c
}

func (p *pool) put(c *chunk) {
	size := cap(c.b)
	p.used -= size
	class := 1
	switch size {
	case smallChunk:
		class = 0
	case largeChunk:
	default:
		return // joined by hand
	}
	l := &p.free[class]
	if l.n >= maxFree/size {
		return
	}
	c.b, c.r, c.off, c.seen = c.b[:0], 0, 0, false
	c.next = l.head
	l.head = c
	l.n++
}

func (p *pool) putAll(q *chunks) {
	for q.head != nil {
		p.put(q.pop())
	}
}

// join makes one chunk of a queue's first two; what a has used up is gone.
func (p *pool) join(a, b *chunk) *chunk {
	n := len(a.b) - a.r + len(b.b) - b.r
	c := &chunk{b: make([]byte, 0, max(n+n/2, 2*smallChunk+1))}
	if cap(c.b) == largeChunk {
		c.b = make([]byte, 0, largeChunk+1) // never mistaken for a pooled one
	}
	p.used += cap(c.b)
	c.b = append(append(c.b, a.b[a.r:]...), b.b[b.r:]...)
	c.next = b.next
	p.put(a)
	p.put(b)
	return c
}

// trim drops what was not needed since the last trim.
func (p *pool) trim() {
	for i := range p.free {
		l := &p.free[i]
		for ; l.low > 0; l.low-- {
			l.head = l.head.next
			l.n--
		}
		l.low = l.n
	}
}
