package daemon

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	trimEvery = 2 * time.Second
	trimQuiet = 1 << 20 // bytes allocated between two looks: less is a quiet process
	trimWorth = 8 << 20 // bytes allocated since the last trim that make the next one worth its while
)

// Trim gives memory back to the system when a busy time is over, until ctx is done. The runtime collects when the heap
// has doubled, which a process that falls silent after a burst (ten thousand TLS handshakes, say) never reaches: it
// would hold twice what its silent connections need. A busy process is left alone, a silent one is trimmed once.
//
// It also lets the heap grow by half instead of to the double between collections, unless GOGC is set: what relays
// allocate while they are busy is little, so that costs nearly nothing.
func Trim(ctx context.Context) {
	if os.Getenv("GOGC") == "" {
		debug.SetGCPercent(50)
	}
	ticker := time.NewTicker(trimEvery)
	defer ticker.Stop()
	var last, trimmed uint64
	sample := []metrics.Sample{{Name: "/gc/heap/allocs:bytes"}}
	for {
		select {
		case <-ctx.Done():
			return
		case <-ticker.C:
		}
		metrics.Read(sample)
		now := sample[0].Value.Uint64()
		if now-last < trimQuiet && now-trimmed > trimWorth {
			debug.FreeOSMemory()
			trimmed = now
		}
		last = now
	}
}
