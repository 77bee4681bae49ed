package tftpd

import (
	"fmt"
	"runtime"
	"testing"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tftp"
)

// BenchmarkReaders has a thousand readers of one image, as when a rack boots: what a reader costs in memory, and a block in time.
func BenchmarkReaders(b *testing.B) {
	const readers, size = 1000, 16 << 20
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer core.Close()
	l := core.Loop(0)
	for _, block := range []int{512, 1468, 65464} {
		b.Run(fmt.Sprint(block), func(b *testing.B) {
			run(l, func() {
				s := &shelf{files: map[string]book{"f": {data: text(size), version: "1"}}, now: true}
				lib := NewLibrary(l, s, NewCache(2*size))
				var all [readers]*Reader
				open := func() {
					for i := range all {
						lib.Read(&Open{Name: "f", Size: -1}, func(r *Reader, err error) {
							all[i] = r
							r.Ahead(size)
						})
					}
				}
				open()
				for _, r := range all {
					r.Close()
				}
				clear(all[:])
				without := heap()
				open()
				each := float64(heap()-without) / readers

				dst := make([]byte, 0, block)
				b.SetBytes(int64(block))
				b.ResetTimer()
				var off int64
				for n := 0; n < b.N; {
					for _, r := range all { // in step, as they start together
						r.Append(dst, off, block)
						r.Forget(off)
						n++
					}
					if off += int64(block); off+int64(block) > size {
						off = 0
					}
				}
				b.StopTimer()
				b.ReportMetric(each, "B/reader")
				for _, r := range all {
					r.Close()
				}
				lib.Close()
			})
		})
	}
}

// BenchmarkFetch has one reader of a file that is not kept.
func BenchmarkFetch(b *testing.B) {
	const size, block = 16 << 20, 1468
	core, err := evloop.New(evloop.Config{Loops: 1})
	if err != nil {
		b.Fatal(err)
	}
	defer core.Close()
	l := core.Loop(0)
	for _, cached := range []bool{false, true} {
		b.Run(fmt.Sprintf("cached=%v", cached), func(b *testing.B) {
			b.SetBytes(size)
			b.ReportAllocs()
			run(l, func() {
				for b.Loop() {
					s := &shelf{files: map[string]book{"f": {data: text(size), version: "1"}}, now: true}
					var cache *Cache
					if cached {
						cache = NewCache(2 * size)
					}
					lib := NewLibrary(l, s, cache)
					lib.Read(&Open{Name: "f", Size: -1}, func(r *Reader, err error) {
						r.Ahead(1 << 20)
						dst := make([]byte, 0, block)
						state := tftp.More
						for off := int64(0); state == tftp.More; off += block {
							if _, state = r.Append(dst, off, block); state == tftp.Wait {
								panic("it waits")
							}
							r.Forget(off)
						}
						r.Close()
					})
					lib.Close()
				}
			})
		})
	}
}

func heap() int64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
