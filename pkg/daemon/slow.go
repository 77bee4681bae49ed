package daemon

import (
	"log/slog"
	"sync"
	"time"
)

// slowEvery is how often slow turns are logged at most.
const slowEvery = 10 * time.Second

// SlowTurns returns a func that logs slow turns of event loops, for evloop.Config: a line in 10 seconds at most, which
// counts those that had none.
func SlowTurns(log *slog.Logger) func(handler string, took time.Duration) {
	var mu sync.Mutex
	var last time.Time
	var unsaid int
	var longest time.Duration
	return func(handler string, took time.Duration) {
		mu.Lock()
		defer mu.Unlock()
		if now := time.Now(); last.IsZero() || now.Sub(last) >= slowEvery {
			attrs := []any{"handler", handler, "took", took}
			if unsaid > 0 {
				attrs = append(attrs, "before", unsaid, "longest", longest)
			}
			log.Warn("slow turn of the event loop", attrs...)
			last, unsaid, longest = now, 0, 0
			return
		}
		unsaid++
		longest = max(longest, took)
	}
}
