package tftp

import (
	"fmt"
	"testing"
	"time"
)

// pipe carries packets from one side of a BenchmarkTransfer to the other, in buffers that are used again.
type pipe struct {
	bufs [][]byte
	n    int
}

func (p *pipe) send(b []byte) {
	if p.n == len(p.bufs) {
		p.bufs = append(p.bufs, make([]byte, 0, head+MaxBlock))
	}
	p.bufs[p.n] = append(p.bufs[p.n][:0], b...)
	p.n++
}

func (p *pipe) deliver(to *Transfer, now time.Time) {
	for i := range p.n {
		to.Receive(p.bufs[i], now)
	}
	p.n = 0
}

// endless is a Source that has the same block again and again, of a file of so many bytes.
type endless struct {
	block []byte
	size  int64
}

func (e *endless) Append(dst []byte, off int64, n int) ([]byte, State) {
	if off+int64(n) < e.size {
		return append(dst, e.block[:n]...), More
	}
	return append(dst, e.block[:e.size-off]...), End
}

// BenchmarkTransfer has a server send to a client, in memory: ns/op is one block, from Source to Sink, with its share of
// an ACK and one copy between the two.
func BenchmarkTransfer(b *testing.B) {
	for _, block := range []int{512, 1468, MaxBlock} {
		for _, window := range []int{1, 16, 64} {
			if window > 1 && Window(block, window) == 1 {
				continue // as with 1
			}
			b.Run(fmt.Sprintf("%dx%d", block, Window(block, window)), func(b *testing.B) {
				var down, up pipe
				now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
				req := Request{Op: OpRead, Name: "f", Options: Options{Block: block, Window: window}}
				var client *Transfer
				ended := 0
				closed := func(err error) {
					if err != nil {
						b.Fatal(err)
					}
					ended++
				}
				got := int64(0)
				client = Dial(Config{
					Send:     up.send,
					Sink:     func(b []byte) { got += int64(len(b)) },
					Complete: func() { client.Confirm(now) },
					Closed:   closed,
				}, req, -1, now)
				up.n = 0 // the request
				source := &endless{block: make([]byte, block), size: int64(b.N) * int64(block)}
				server := Serve(Config{Send: down.send, Source: source, Closed: closed}, req, source.size, now)
				b.SetBytes(int64(block))
				b.ReportAllocs()
				for ended < 2 {
					now = now.Add(time.Microsecond)
					down.deliver(client, now)
					up.deliver(server, now)
				}
				if got != source.size {
					b.Fatalf("%d of %d bytes", got, source.size)
				}
			})
		}
	}
}

// TestAllocations counts what a transfer allocates per block: nothing.
func TestAllocations(t *testing.T) {
	if raceEnabled {
		t.Skip("the race detector makes sync.Pool forget")
	}
	var down, up pipe
	now := time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC)
	req := Request{Op: OpRead, Name: "f", Options: Options{Block: 1468, Window: 16}}
	client := Dial(Config{Send: up.send, Sink: func([]byte) {}}, req, -1, now)
	up.n = 0
	server := Serve(Config{Send: down.send, Source: &endless{block: make([]byte, 1468), size: 1 << 40}}, req, 1<<40, now)
	if n := testing.AllocsPerRun(1000, func() { // a window each
		now = now.Add(time.Microsecond)
		down.deliver(client, now)
		up.deliver(server, now)
	}); n != 0 {
		t.Errorf("a window of 16 blocks costs %v allocations", n)
	}
}
