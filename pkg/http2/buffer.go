package http2

import "math/bits"

const (
	minBuffer  = 10 // 1 KiB
	maxBuffer  = 18 // 256 KiB; larger ones are not pooled
	keptBuffer = 4 << 20
)

// buffers is an Endpoint's stock of byte slices, by power of two.
type buffers struct {
	classes [maxBuffer - minBuffer + 1][][]byte
	bytes   int // in stock
}

// get returns an empty slice with room for n bytes.
func (p *buffers) get(n int) []byte {
	k := max(bits.Len(uint(n-1)), minBuffer)
	if k > maxBuffer {
		return make([]byte, 0, n+n/4)
	}
	class := &p.classes[k-minBuffer]
	if m := len(*class); m > 0 {
		b := (*class)[m-1]
		*class = (*class)[:m-1]
		p.bytes -= 1 << k
		return b
	}
	return make([]byte, 0, 1<<k)
}

// put takes b, which came from get, back.
func (p *buffers) put(b []byte) {
	k := bits.Len(uint(cap(b))) - 1
	if k < minBuffer || k > maxBuffer || cap(b) != 1<<k || p.bytes+cap(b) > keptBuffer {
		return
	}
	p.bytes += cap(b)
	p.classes[k-minBuffer] = append(p.classes[k-minBuffer], b[:0])
}

// queue is bytes that wait. The zero value is empty and holds nothing.
type queue struct {
	b   []byte
	off int // b[:off] is used up
}

func (q *queue) len() int      { return len(q.b) - q.off }
func (q *queue) bytes() []byte { return q.b[q.off:] }

func (q *queue) push(p *buffers, b []byte) {
	if len(q.b)+len(b) > cap(q.b) {
		if n := q.len(); n+len(b) <= cap(q.b) && n <= q.off { // what is moved has been paid for by what left
			q.b, q.off = q.b[:copy(q.b, q.bytes())], 0
		} else {
			larger := append(p.get(n+len(b)), q.bytes()...)
			p.put(q.b)
			q.b, q.off = larger, 0
		}
	}
	q.b = append(q.b, b...)
}

// use takes n bytes off the front.
func (q *queue) use(p *buffers, n int) {
	if q.off += n; q.off == len(q.b) {
		q.drop(p)
	}
}

func (q *queue) drop(p *buffers) {
	if q.b != nil {
		p.put(q.b)
		*q = queue{}
	}
}
