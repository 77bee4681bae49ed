package tftpd

import (
	"encoding/binary"
	"fmt"
	"runtime"
	"testing"
)

// BenchmarkRead reads 64 MiB over the loopback interface, which its client does with blocking calls. The file is in the cache.
func BenchmarkRead(b *testing.B) {
	for _, w := range ways[:2] {
		bench := newBench(b, w, func(s *bench) {
			s.store.files["file"] = make([]byte, 64<<20)
			s.share.Library = NewLibrary(s.share.Loop, s.store, NewCache(256<<20))
		})
		for _, block := range []int{512, 1468, 65464} {
			for _, window := range []int{1, 16, 64} {
				if window > 65536/block {
					continue
				}
				b.Run(fmt.Sprintf("%s/%dx%d", w.name, block, window), func(b *testing.B) {
					b.SetBytes(64 << 20)
					for b.Loop() {
						c := bench.client()
						c.fetch(b, request(1, "boot/file", "octet", "blksize", fmt.Sprint(block), "windowsize", fmt.Sprint(window)), block, window)
						c.Close()
					}
				})
			}
		}
	}
}

// fetch reads a file as fast as it can, and keeps nothing of it.
func (c *client) fetch(b *testing.B, req []byte, block, window int) {
	c.say(req)
	p := make([]byte, 70000)
	answer := []byte{0, 4, 0, 0}
	if n, err := c.Read(p); err != nil || p[1] != 6 {
		b.Fatalf("got %s, %v", show(p[:n]), err)
	}
	c.say(answer)
	for next, since := uint16(1), 0; ; {
		n, err := c.Read(p)
		switch {
		case err != nil:
			b.Fatal(err)
		case p[1] != 3:
			b.Fatalf("got %s", show(p[:n]))
		case binary.BigEndian.Uint16(p[2:]) != next:
			if since = 0; window > 1 {
				binary.BigEndian.PutUint16(answer[2:], next-1)
				c.say(answer)
			}
			continue
		}
		since++
		if n < block+4 || since == window {
			binary.BigEndian.PutUint16(answer[2:], next)
			c.say(answer)
			since = 0
		}
		if n < block+4 {
			return
		}
		next++
	}
}

// BenchmarkSilent says what a transfer costs whose peer says nothing: beside its Reader.
func BenchmarkSilent(b *testing.B) {
	for b.Loop() {
		const many = 4000
		s, n := netBench(b, 0, func(s *bench) {
			s.share.Library = NewLibrary(s.share.Loop, s.store, NewCache(1<<20))
		})
		var before, after runtime.MemStats
		runtime.GC()
		runtime.ReadMemStats(&before)
		for i := range many {
			n.say(spoofed(i), request(1, "boot/hello", "octet", "blksize", "1428", "tsize", "0"))
		}
		for s.Stats().Running < many {
			on(s.core.Loop(0), func() {})
		}
		n.mu.Lock()
		clear(n.sent)
		n.mu.Unlock()
		runtime.GC()
		runtime.ReadMemStats(&after)
		b.ReportMetric(float64(after.HeapAlloc-before.HeapAlloc)/many, "B/transfer")
		runtime.KeepAlive(s)
	}
}
