package evloop

import "math/bits"

const (
	minBuffer  = 12 // 4 KiB
	maxBuffer  = 19 // 512 KiB; larger ones are not pooled
	keptBuffer = 2 << 20
)

// buffers is a loop's stock of byte slices for output that waits and input that is kept, by power of two.
type buffers struct {
	classes [maxBuffer - minBuffer + 1][][]byte
	bytes   int // in stock
}

// get returns an empty slice with room for n bytes.
func (p *buffers) get(n int) []byte {
	k := max(bits.Len(uint(n-1)), minBuffer)
	if k > maxBuffer {
		return make([]byte, 0, n+n/4) // some room, or appending a little at a time would copy it all each time
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

// append appends data to b, which may be nil, by taking a larger buffer from the stock when b has no room.
func (p *buffers) append(b, data []byte) []byte {
	if len(b)+len(data) <= cap(b) {
		return append(b, data...)
	}
	n := p.get(len(b) + len(data))
	n = append(n, b...)
	n = append(n, data...)
	if b != nil {
		p.put(b)
	}
	return n
}
