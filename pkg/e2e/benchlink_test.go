//go:build linux

package e2e

import (
	"fmt"
	"os/exec"
	"strings"
	"sync"
	"testing"
	"time"

	"culvert.dev/pkg/netem"
)

// overLink is an emulated link and the paths over it. The rows share it.
type overLink struct {
	link   *netem.Link
	target targetAddrs
	paths  []path
}

// link starts what is measured over a link, once.
func (t *bench) link(b *testing.B) *overLink {
	if t.over != nil {
		return t.over
	}
	// It outlives the row that is the first one.
	l := newLink(t.b, netem.Config{})
	_, a := startTargetIn(t.b, l.Inside)
	_, bulk := startTargetIn(t.b, l.Inside)
	a.Bulk = bulk.Bulk
	direct := a.at(l.Inside.Addr().String())
	o := &overLink{link: l, target: direct}
	for name := range strings.SplitSeq(*benchPaths, ",") {
		p := path{name: name, from: l.Outside, host: "localhost"}
		options := ""
		switch name {
		case "direct":
			p.echo, p.bulk, p.udp = direct.Echo, direct.Bulk, direct.UDP
			o.paths = append(o.paths, p)
			continue
		case "chain":
			c := startChainIn(t.b, l.Inside, l.Outside, a)
			p.echo, p.bulk = c.echo, c.bulk
			o.paths = append(o.paths, p)
			continue
		case "wss-1", "wss-2":
			options = fmt.Sprintf("transport = \"wss\"\nlinks = %s\n", name[len("wss-"):])
		case "quic":
			options = over("quic")
		}
		p.system = startSystemOver(t.b, l, options,
			service{"echo", "tcp://:{port}", "tcp://" + a.Echo},
			service{"bulk", "tcp://:{port}", "tcp://" + a.Bulk},
			service{"udp", "udp://:{port}", "udp://" + a.UDP})
		p.echo, p.bulk, p.udp = p.system.port("echo"), p.system.port("bulk"), p.system.port("udp")
		o.paths = append(o.paths, p)
	}
	t.over = o
	return o
}

// overLink measures bulk and small round trips over a link that loses packets. What a
// transport does about loss has some seconds to show before each window.
func (t *bench) overLink(loss float64) func(*testing.B, string) {
	return func(b *testing.B, row string) {
		o := t.link(b)
		o.link.SetLoss(loss)
		defer o.link.SetLoss(0)
		const warm = 3 * time.Second
		window := *benchWindow + time.Second // a lossy path is uneven
		one, eight, alone, beside := map[string][]outcome{}, map[string][]outcome{}, map[string][]outcome{}, map[string][]outcome{}
		for _, p := range o.paths {
			run := func(m map[string][]outcome, j job) {
				j.Addr = p.bulk
				if j.Kind == "echo" {
					j.Addr = p.echo
				}
				m[p.name] = []outcome{load(b, p.from, j)}
			}
			run(alone, job{Kind: "echo", Conns: 1, Warm: 500 * time.Millisecond, Window: *benchWindow})
			run(one, job{Kind: "down", Conns: 1, Warm: warm, Window: window})
			bulk := startLoad(b, p.from, job{Kind: "down", Addr: p.bulk, Conns: 8, Warm: warm, Window: window})
			run(beside, job{Kind: "echo", Conns: 1, Warm: warm, Window: window})
			eight[p.name] = []outcome{bulk.result(b)}
			bulk.stop()
		}
		mib := func(o outcome) float64 { return float64(o.Bytes) / (1 << 20) / o.Seconds }
		ms := func(d time.Duration) float64 { return micros(d) / 1e3 }
		t.add(cell{row: row, figure: "1 download", unit: "MiB/s"}, one, mib)
		t.add(cell{row: row, figure: "8 downloads", unit: "MiB/s"}, eight, mib)
		t.add(cell{row: row, figure: "64 B round trip, p50", unit: "ms"}, alone, func(o outcome) float64 { return ms(o.P50) })
		t.add(cell{row: row, figure: "64 B round trip, p99", unit: "ms"}, alone, func(o outcome) float64 { return ms(o.P99) })
		t.add(cell{row: row, figure: "p50 beside the 8 downloads", unit: "ms"}, beside, func(o outcome) float64 { return ms(o.P50) })
		t.add(cell{row: row, figure: "p99 beside the 8 downloads", unit: "ms"}, beside, func(o outcome) float64 { return ms(o.P99) })
	}
}

// datagrams sends 20,000 datagrams per second to a target that counts them. With loss
// there is time for a transport to find its rate.
func (t *bench) datagrams(loss float64, warm time.Duration) func(*testing.B, string) {
	return func(b *testing.B, row string) {
		o := t.link(b)
		o.link.SetLoss(loss)
		defer o.link.SetLoss(0)
		m := map[string][]outcome{}
		for _, p := range o.paths {
			if p.udp != "" {
				m[p.name] = []outcome{load(b, p.from, job{Kind: "udp", Addr: p.udp, Count: o.target.Count, Rate: 20000, Conns: 1,
					Warm: warm, Window: *benchWindow + time.Second})}
			}
		}
		t.add(cell{row: row, figure: "of 20000 datagrams of 512 B/s", unit: "/s"}, m, opsPerSecond)
		t.add(cell{row: row, figure: "lost on the way", unit: "%"}, m, func(o outcome) float64 {
			return max(0, 100*(1-float64(o.Ops)/float64(o.Sent)))
		})
	}
}

// pauses measures the longest round trip while something happens to the link, on all paths
// at once.
func (t *bench) pauses(b *testing.B, row string) {
	o := t.link(b)
	for _, event := range []struct {
		name   string
		do     func() error
		tcp    bool // QUIC is not affected
		window time.Duration
	}{
		{"every TCP connection cut", func() error {
			out, err := exec.Command(tool(b, "ss", "iproute2"), "-K", "-n", "-t", "dst", o.link.Outside.Addr().String()).CombinedOutput()
			if err != nil {
				return fmt.Errorf("ss: %w\n%s", err, out)
			}
			return nil
		}, true, 6 * time.Second},
		{"another address", func() error { return o.link.Inside.Move() }, false, 20 * time.Second},
	} {
		m := map[string][]outcome{}
		var mu sync.Mutex
		var wg sync.WaitGroup
		for _, p := range o.paths {
			if p.system == nil || event.tcp && p.name == "quic" {
				continue
			}
			wg.Go(func() {
				out := load(b, p.from, job{Kind: "echo", Addr: p.echo, Conns: 1, Warm: 500 * time.Millisecond, Window: event.window})
				mu.Lock()
				defer mu.Unlock()
				m[p.name] = []outcome{out}
			})
		}
		time.Sleep(3 * time.Second)
		if err := o.link.Inside.Do(event.do); err != nil {
			b.Error(err)
		}
		wg.Wait()
		t.add(cell{row: row, figure: event.name + ", until bytes flow", unit: "ms"}, m, func(o outcome) float64 { return micros(o.Max) / 1e3 })
	}
}

// suspended measures what streams cost whose link is gone: silent ones, and downloads at
// full speed.
func (t *bench) suspended(b *testing.B, row string) {
	if t.system == nil {
		return
	}
	for _, kind := range []string{"idle", "down"} {
		s := startSystem(b,
			service{"echo", "tcp://:{port}", "tcp://" + t.target.Echo},
			service{"bulk", "tcp://:{port}", "tcp://" + t.target.Bulk})
		const streams = 1000
		j := job{Kind: kind, Addr: s.port("echo"), Conns: streams, Window: time.Minute}
		figure := "silent"
		if kind == "down" {
			j.Addr, figure = s.port("bulk"), "downloading"
		}
		before := [2]int64{s.public.rss(), s.private.rss()}
		l := startLoad(b, nil, j)
		if kind == "idle" {
			l.result(b)
		} else {
			time.Sleep(4 * time.Second)
		}
		s.link.setRefuse(true)
		s.link.cut()
		for i, p := range []*process{s.public, s.private} {
			side := []string{"public", "private"}[i]
			t.cells = append(t.cells, cell{row: row, figure: fmt.Sprintf("%s side, each of %d streams, %s", side, streams, figure), unit: "KB",
				values: map[string]float64{"culvert": float64(settled(p)-before[i]) / streams / 1e3}})
		}
		s.link.setRefuse(false)
		l.p.kill()
	}
}
