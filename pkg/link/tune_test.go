package link

import (
	"runtime"
	"testing"
	"time"

	"culvert.dev/pkg/evloop"
	"culvert.dev/pkg/tunnel"
)

// halfSecond is what happens on a path in half a second of sending.
type halfSecond struct {
	segments, again uint32
	rtt             time.Duration
	times           int
}

// A path that loses by itself is told from one that is full, and from one that had a bad moment.
func TestLoss(t *testing.T) {
	const base = 50 * time.Millisecond
	for _, tt := range []struct {
		name  string
		path  []halfSecond
		lossy bool
		after int // samples, at most
	}{
		{"clean", []halfSecond{{5000, 0, base, 60}}, false, 0},
		{"1 % at random", []halfSecond{{140, 1, base + time.Millisecond, 1}, {140, 2, base, 1}, {140, 1, base, 28}}, true, 6},
		{"3 %, hardly anything moves", []halfSecond{{35, 1, base, 30}}, true, 7},
		{"0.1 %", []halfSecond{{250, 0, base, 3}, {250, 1, base, 1}, {250, 0, base, 3}, {250, 1, base, 1}, {250, 0, base, 3}, {250, 1, base, 1}, {250, 0, base, 3}, {250, 1, base, 1}, {250, 0, base, 3}, {250, 1, base, 1}, {250, 0, base, 3}, {250, 1, base, 1}}, true, 26},
		{"a full queue", []halfSecond{{5000, 30, 2 * base, 60}}, false, 0},
		{"the start overshoots", []halfSecond{{3000, 900, base, 1}, {5000, 300, base, 1}, {8000, 0, base, 60}}, false, 0},
		{"a sawtooth on a short queue", []halfSecond{{8000, 12, base, 1}, {8000, 0, base, 17}, {8000, 9, base, 1}, {8000, 0, base, 17}, {8000, 14, base, 1}, {8000, 0, base, 17}}, false, 0},
		{"an outage", []halfSecond{{500, 0, base, 10}, {10, 10, base, 1}, {0, 0, base, 10}, {2, 2, base, 2}, {500, 0, base, 30}}, false, 0},
		{"pings now and then", []halfSecond{{3, 0, base, 20}, {3, 1, base, 1}, {3, 0, base, 20}}, false, 0},
		{"a short path with a full queue", []halfSecond{{2000, 2, 4 * time.Millisecond, 40}}, false, 0},
	} {
		var tuner tuner
		var info evloop.TCPInfo
		info.Retransmitted -= 3 // it wraps
		info.MinRTT = base
		if tt.path[0].rtt < base {
			info.MinRTT = 100 * time.Microsecond
		}
		tuner.look(info)
		found, samples := 0, 0
		for _, p := range tt.path {
			for range p.times {
				info.SegmentsOut += p.segments
				info.Retransmitted += p.again
				info.RTT = p.rtt
				samples++
				if _, isLossy := tuner.look(info); isLossy && found == 0 {
					found = samples
				}
			}
		}
		if found > 0 != tt.lossy || found > tt.after {
			t.Errorf("%s: lossy after %d samples, want %v within %d (%.2f %%)", tt.name, found, tt.lossy, tt.after, tuner.path.Loss*100)
		}
	}
}

// What waits follows the rate of the path.
func TestUnsent(t *testing.T) {
	const mbit = 1e6 / 8
	for _, tt := range []struct {
		rate    uint64
		limited bool // by what there was to send
		before  int
		want    int // 0: as before
	}{
		{1 * mbit, false, 0, minUnsent},
		{10 * mbit, false, 0, minUnsent},
		{50 * mbit, false, 0, 32 << 10},
		{200 * mbit, false, 0, 64 << 10},
		{800 * mbit, false, 0, 0},
		{10_000 * mbit, false, 0, maxUnsent},
		{10_000 * mbit, true, 0, maxUnsent}, // it has been that fast
		{10 * mbit, true, 0, 0},             // who knows how fast it is
		{10 * mbit, true, minUnsent, 0},
		{210 * mbit, false, 64 << 10, 0},
		{0, true, 0, 0},
	} {
		tuner := tuner{unsent: tt.before}
		got, _ := tuner.look(evloop.TCPInfo{DeliveryRate: tt.rate, AppLimited: tt.limited})
		want := tt.want
		if want == 0 {
			want = tt.before
		}
		if got != want {
			t.Errorf("%d bytes/s, limited %v: %d before, %d after, want %d", tt.rate, tt.limited, tt.before, got, want)
		}
	}
}

// A link that sends looks at its path, and one that is silent does not.
func TestPath(t *testing.T) {
	n := &network{}
	_, core, key := start(t, n, true)
	loop := core.Loop(0)
	var me *Session
	on(loop, func() { me = NewSession(loop, tunnel.Config{Client: true}) })
	var l *Link
	var p *pump
	d := dial(loop, t.Context(), n.config(key), func(made *Link) {
		l = made
		serve := func(*Link, error) {}
		l.Serve(me, 0, serve)
		if _, ok := l.Path(); ok {
			t.Error("the path is known before anything was sent")
		}
		st, _ := me.Open([]byte("header"))
		p = newPump(st, 8<<20)
	})
	if d.err != nil {
		t.Fatal(d.err)
	}
	if err := <-p.done; err != nil {
		t.Fatal(err)
	}
	var path Path
	var known, running bool
	for deadline := time.Now().Add(10 * time.Second); time.Now().Before(deadline); time.Sleep(tuneEvery / 2) {
		on(loop, func() { path, known = l.Path(); running = l.tune.running })
		if known && !running || l.tune.useless {
			break
		}
	}
	if running {
		t.Error("a silent link looks at its path")
	}
	if runtime.GOOS == "linux" && (path.RTT <= 0 || path.MinRTT <= 0 || path.DeliveryRate == 0 || path.Congestion == "" || path.Loss > 0.5) {
		t.Errorf("a path of %+v", path)
	}
}
