//go:build linux

package e2e

import (
	"bytes"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"text/tabwriter"
	"time"

	"culvert.dev/pkg/netem"
)

var (
	profileDir  = flag.String("profile", "", "write a CPU profile of relay-public for each row of BenchmarkTable to this folder")
	benchRounds = flag.Int("rounds", 3, "rounds of each row of BenchmarkTable; its figures are medians")
	benchWindow = flag.Duration("window", 2*time.Second, "length of one measurement of BenchmarkTable")
	benchPaths  = flag.String("paths", strings.Join(columns, ","), "paths that BenchmarkTable measures; over loopback there are the first three alone")
	benchSilent = flag.Int("silent", 20000, "silent connections of BenchmarkTable, at most what the limit of descriptors allows")
)

// columns are the paths of the table. Culvert comes as it is by default, and with its
// transport and number of links chosen.
var columns = []string{"direct", "chain", "culvert", "wss-1", "wss-2", "quic"}

// path is one way from the load to the target.
type path struct {
	name                    string
	echo, bulk, http, https string
	udp                     string // a service over UDP; "" if the path has none
	host                    string
	from                    *netem.Namespace // where the load is
	system                  *system          // nil if it is none of ours
	pids                    map[string][]int // public, private; nil for the direct path
	processes               map[string]*process
}

// bench is what all rows share.
type bench struct {
	b      *testing.B // of the whole table
	paths  []path
	target targetAddrs
	system *system   // nil if the path is not measured
	over   *overLink // nil until a row needs it
	cells  []cell
}

// cell is one line of the table: a figure of each path and what we promise about ours.
type cell struct {
	row, figure, unit string
	values            map[string]float64 // by path
	budget            float64            // of culvert/chain, or of culvert itself when absolute; 0: none
	atMost, absolute  bool
}

// BenchmarkTable measures the tunnel beside a direct connection and beside the chain, two
// nginx joined by TLS, and prints one table. A row can be selected: BenchmarkTable/rr1.
func BenchmarkTable(b *testing.B) {
	target, a := startTarget(b)
	// Bulk comes from a process of its own: 64 busy goroutines beside the echo would be
	// the delay that the loaded row measures.
	_, bulk := startTarget(b)
	a.Bulk, a.Count = bulk.Bulk, bulk.Count
	t := &bench{b: b, target: a}
	t.paths, t.system = startPaths(b, target, a)
	for _, r := range []struct {
		name string
		run  func(*testing.B, string)
	}{
		{"down1", t.bulk("down", 1)},
		{"down8", t.bulk("down", 8)},
		{"up1", t.bulk("up", 1)},
		{"up8", t.bulk("up", 8)},
		{"rr1", t.roundTrips(1)},
		{"rr64", t.roundTrips(64)},
		{"connect", t.connects},
		{"https", t.requests(true)},
		{"http", t.requests(false)},
		{"tls", t.handshakes(false, false)},
		{"tls-resumed", t.handshakes(true, false)},
		{"tls-hybrid", t.handshakes(false, true)},
		{"h1", t.h2load("/", "--h1", "-c", "64")},
		{"h2", t.h2load("/", "-c", "16", "-m", "32")},
		{"h2-1m", t.h2load("/1m", "-c", "4", "-m", "8")},
		{"go-h2", t.asks("h2")},
		{"go-h3", t.asks("h3")},
		{"loaded", t.loaded},
		{"recover", t.recover},
		{"suspended", t.suspended},
		{"udp-0", t.datagrams(0, 2*time.Second)},
		{"link-0", t.overLink(0)},
		{"link-0.1", t.overLink(0.001)},
		{"link-1", t.overLink(0.01)},
		{"link-3", t.overLink(0.03)},
		{"udp-1", t.datagrams(0.01, 8*time.Second)},
		{"pause", t.pauses},
		{"silent-tcp", t.silent("idle", false)},
		{"silent-wss", t.silent("idle-ws", true)},
		{"silent-h2", t.silent("idle-h2", true)},
		{"rtsp-http-500", t.cameraPlayers(500)},
		{"rtsp-http-2000", t.cameraPlayers(2000)}, // more than two processors can do, camera and players included
		{"silent-rtsp", t.silentCameras},
	} {
		b.Run(r.name, func(b *testing.B) {
			b.ReportMetric(0, "ns/op") // the figures are in the table
			stop := t.profile(b, r.name)
			r.run(b, r.name)
			stop()
		})
	}
	t.print()
}

// startPaths starts what is measured: the paths that are asked for, before one target.
func startPaths(b *testing.B, target *process, a targetAddrs) (paths []path, s *system) {
	for name := range strings.SplitSeq(*benchPaths, ",") {
		switch name {
		case "direct":
			paths = append(paths, path{name: name, echo: a.Echo, bulk: a.Bulk, http: a.HTTP, https: a.HTTPS, host: "localhost",
				processes: map[string]*process{"public": target}})
		case "chain":
			c := startChain(b, a)
			paths = append(paths, path{name: name, echo: c.echo, bulk: c.bulk, http: c.http, https: c.https, host: "localhost",
				pids:      map[string][]int{"public": c.public.pids(), "private": c.private.pids()},
				processes: map[string]*process{"public": c.public, "private": c.private}})
		case "wss-1", "wss-2", "quic":
		case "culvert":
			s = startSystemDirect(b,
				service{"echo", "tcp://:{port}", "tcp://" + a.Echo},
				service{"bulk", "tcp://:{port}", "tcp://" + a.Bulk},
				service{"web", "https://app.example.com", "http://" + a.HTTP},
				service{"plain", "http://app.example.com", "http://" + a.HTTP})
			paths = append(paths, path{name: name, echo: s.port("echo"), bulk: s.port("bulk"), http: s.http, https: s.https, host: "app.example.com",
				pids:      map[string][]int{"public": s.public.pids(), "private": s.private.pids()},
				processes: map[string]*process{"public": s.public, "private": s.private}})
		default:
			b.Fatalf("-paths %q: want some of %s", *benchPaths, strings.Join(columns, ","))
		}
	}
	return paths, s
}

// profile takes a CPU profile of relay-public while a row runs.
func (t *bench) profile(b *testing.B, row string) (stop func()) {
	if *profileDir == "" || t.system == nil {
		return func() {}
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		// Long enough to see our path in most rows; the rounds of a row take turns.
		text := t.system.adminGet("/debug/pprof/profile?seconds=" + fmt.Sprint(int(benchWindow.Seconds()*float64(*benchRounds*len(t.paths)))))
		if err := os.MkdirAll(*profileDir, 0o755); err != nil {
			b.Error(err)
		}
		if err := os.WriteFile(filepath.Join(*profileDir, row+".pprof"), []byte(text), 0o644); err != nil {
			b.Error(err)
		}
	}()
	return func() { <-done }
}

// measure runs a job on every path in turn, some rounds, and returns the outcomes by path.
func (t *bench) measure(b *testing.B, make func(path) job) map[string][]outcome {
	m := map[string][]outcome{}
	for range *benchRounds {
		for _, p := range t.paths {
			j := make(p)
			j.Warm, j.Window, j.Host, j.Pids = 500*time.Millisecond, *benchWindow, p.host, p.pids
			m[p.name] = append(m[p.name], load(b, p.from, j))
		}
	}
	return m
}

// add puts the medians of a figure into the table.
func (t *bench) add(c cell, m map[string][]outcome, of func(outcome) float64) {
	c.values = map[string]float64{}
	for name, outcomes := range m {
		var v []float64
		for _, o := range outcomes {
			v = append(v, of(o))
		}
		slices.Sort(v)
		c.values[name] = v[len(v)/2]
	}
	t.cells = append(t.cells, c)
}

func micros(d time.Duration) float64 { return float64(d.Nanoseconds()) / 1e3 }

func opsPerSecond(o outcome) float64 { return float64(o.Ops) / o.Seconds }

func (t *bench) bulk(way string, conns int) func(*testing.B, string) {
	return func(b *testing.B, row string) {
		m := t.measure(b, func(p path) job {
			return job{Kind: way, Addr: p.bulk, Conns: conns, Count: t.target.Count}
		})
		t.add(cell{row: row, figure: "throughput", unit: "MiB/s", budget: 1}, m, func(o outcome) float64 {
			return float64(o.Bytes) / (1 << 20) / o.Seconds
		})
		delete(m, "direct") // no relay, no CPU time of relays
		t.add(cell{row: row, figure: "CPU of both relays", unit: "s/GiB", budget: 1, atMost: true}, m, func(o outcome) float64 {
			return (o.CPU["public"] + o.CPU["private"]) / (float64(o.Bytes) / (1 << 30))
		})
	}
}

func (t *bench) roundTrips(conns int) func(*testing.B, string) {
	return func(b *testing.B, row string) {
		m := t.measure(b, func(p path) job { return job{Kind: "echo", Addr: p.echo, Conns: conns} })
		p50 := cell{row: row, figure: "64 B round trip, p50", unit: "us"}
		ops := cell{row: row, figure: "round trips", unit: "/s"}
		if conns == 1 {
			p50.budget, p50.atMost = 1, true
		} else {
			ops.budget = 1
		}
		t.add(p50, m, func(o outcome) float64 { return micros(o.P50) })
		t.add(cell{row: row, figure: "64 B round trip, p99", unit: "us"}, m, func(o outcome) float64 { return micros(o.P99) })
		t.add(ops, m, opsPerSecond)
	}
}

func (t *bench) connects(b *testing.B, row string) {
	m := t.measure(b, func(p path) job { return job{Kind: "connect", Addr: p.echo, Conns: 16} })
	t.add(cell{row: row, figure: "connect, round trip, close", unit: "/s", budget: 2}, m, opsPerSecond)
	t.add(cell{row: row, figure: "the same, p99", unit: "us"}, m, func(o outcome) float64 { return micros(o.P99) })
}

func (t *bench) requests(secure bool) func(*testing.B, string) {
	return func(b *testing.B, row string) {
		m := t.measure(b, func(p path) job {
			addr := p.http
			if secure {
				addr = p.https
			}
			return job{Kind: "http", Addr: addr, TLS: secure, Conns: 64}
		})
		t.add(cell{row: row, figure: row + " keep-alive, 64 visitors", unit: "req/s", budget: 1}, m, opsPerSecond)
		t.add(cell{row: row, figure: "the same, p99", unit: "us"}, m, func(o outcome) float64 { return micros(o.P99) })
	}
}

// loaded measures small round trips beside 64 downloads that take all there is.
func (t *bench) loaded(b *testing.B, row string) {
	m := map[string][]outcome{}
	for range *benchRounds {
		for _, p := range t.paths {
			bulk := startLoad(b, nil, job{Kind: "down", Addr: p.bulk, Conns: 64, Warm: 500 * time.Millisecond, Window: *benchWindow + 500*time.Millisecond})
			m[p.name] = append(m[p.name], load(b, nil, job{Kind: "echo", Addr: p.echo, Conns: 1, Warm: 500 * time.Millisecond, Window: *benchWindow}))
			out := bulk.result(b)
			bulk.stop()
			last := &m[p.name][len(m[p.name])-1]
			last.Bytes, last.Seconds = out.Bytes, out.Seconds
		}
	}
	t.add(cell{row: row, figure: "p50 beside 64 downloads", unit: "us"}, m, func(o outcome) float64 { return micros(o.P50) })
	t.add(cell{row: row, figure: "p99 beside 64 downloads", unit: "us", budget: 5000, atMost: true, absolute: true}, m, func(o outcome) float64 { return micros(o.P99) })
	t.add(cell{row: row, figure: "the 64 downloads", unit: "MiB/s"}, m, func(o outcome) float64 { return float64(o.Bytes) / (1 << 20) / o.Seconds })
}

// recover measures how long a download pauses when the link is reset and can be made
// again at once. There is no reference: in the chain it breaks.
func (t *bench) recover(b *testing.B, row string) {
	if t.system == nil {
		return
	}
	s := startSystem(b, service{"bulk", "tcp://:{port}", "tcp://" + t.target.Bulk})
	var m []outcome
	for range *benchRounds {
		l := startLoad(b, nil, job{Kind: "down", Addr: s.port("bulk"), Conns: 1, Warm: time.Second, Window: *benchWindow})
		s.link.awaitTotal(s.link.total() + 64<<20)
		s.link.cut()
		// Every byte in flight is gone with the connections: what comes now came by a new link.
		began, at := time.Now(), s.link.total()
		s.link.awaitTotal(at + 1<<20)
		m = append(m, outcome{P50: time.Since(began)})
		l.result(b)
		l.stop()
	}
	t.add(cell{row: row, figure: "link cut to the next MiB", unit: "ms", budget: 1000, atMost: true, absolute: true},
		map[string][]outcome{"culvert": m}, func(o outcome) float64 { return micros(o.P50) / 1e3 })
}

// silent measures what a connection costs that has proved itself once and then says nothing.
func (t *bench) silent(kind string, secure bool) func(*testing.B, string) {
	return func(b *testing.B, row string) {
		public := cell{row: row, figure: "public side, per connection", unit: "B", atMost: true, absolute: true, budget: 1024, values: map[string]float64{}}
		private := cell{row: row, figure: "private side, per connection", unit: "B", atMost: true, absolute: true, budget: 1024, values: map[string]float64{}}
		switch {
		case kind == "idle-h2":
			public.budget = 8 << 10 // the tables of fields and the streams' places are part of it
		case secure:
			public.budget = 5 << 10
		}
		// Programs that have done nothing yet, so that no memory of an earlier load is
		// used again; and a target of its own, because the silent connections and those
		// that earlier rows have closed would together need more ports than one has.
		target, a := startTarget(b)
		paths, _ := startPaths(b, target, a)
		for _, p := range paths {
			if p.pids == nil {
				continue
			}
			// A relay needs a descriptor a connection, nginx two, and both some for themselves: a
			// public relay leaves an eighth of them alone.
			n := min(*benchSilent, descriptors()-descriptors()/8-100)
			if p.name == "chain" {
				n = min(n, 5000)
			}
			addr := p.echo
			if secure {
				addr = p.https
			}
			before := map[string]int64{}
			for side, proc := range p.processes {
				before[side] = proc.rss()
			}
			l := startLoad(b, nil, job{Kind: kind, Addr: addr, TLS: secure, Host: p.host, Conns: n})
			open := l.result(b).Open
			if open < n {
				b.Errorf("%s: %d of %d connections are open", p.name, open, n)
			}
			for side, c := range map[string]*cell{"public": &public, "private": &private} {
				c.values[p.name] = float64(settled(p.processes[side])-before[side]) / float64(max(open, 1))
				c.figure += fmt.Sprintf(", %s %d", p.name, open)
			}
			l.stop()
		}
		t.cells = append(t.cells, public, private)
	}
}

// settled is the resident memory once what a burst has left behind is given back: the
// least of 6 s.
func settled(p *process) int64 {
	least := p.rss()
	for range 12 {
		time.Sleep(500 * time.Millisecond)
		least = min(least, p.rss())
	}
	return least
}

// print writes the table.
func (t *bench) print() {
	var out bytes.Buffer
	w := tabwriter.NewWriter(&out, 0, 8, 2, ' ', 0)
	fmt.Fprintf(w, "row\tfigure\tunit\t%s\tculvert/chain\tbudget\t\n", strings.Join(columns, "\t"))
	missed := 0
	for _, c := range t.cells {
		budget, mark, ratio := "", "", ""
		ours, isOurs := c.values["culvert"]
		if chain := c.values["chain"]; chain > 0 && isOurs {
			ratio = fmt.Sprintf("%.2f", ours/chain)
		}
		if c.budget > 0 {
			sign := ">="
			if c.atMost {
				sign = "<="
			}
			judged := ours
			if c.absolute {
				budget = fmt.Sprintf("%s %.0f %s", sign, c.budget, c.unit)
			} else {
				budget = fmt.Sprintf("%s %.1f x", sign, c.budget)
				judged = 0
				if c.values["chain"] > 0 {
					judged = ours / c.values["chain"]
				}
			}
			if isOurs && (c.absolute || c.values["chain"] > 0) {
				mark = "ok"
				if c.atMost && judged > c.budget || !c.atMost && judged < c.budget {
					mark = "MISSED"
					missed++
				}
			}
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t", c.row, c.figure, c.unit)
		for _, name := range columns {
			fmt.Fprintf(w, "%s\t", number(c.values, name))
		}
		fmt.Fprintf(w, "%s\t%s\t%s\n", ratio, budget, mark)
	}
	w.Flush()
	fmt.Printf("\nThe chain is two nginx joined by TLS 1.3. Medians of %d rounds of %v; %s.\n"+
		"Rows from udp-0 on: one round, over an emulated link of 200 Mbit/s and 2 x 25 ms, with a queue of 50 ms, that loses 0 to 3 %% of the packets, congestion control cubic.\n\n%s\n%d budgets missed.\n",
		*benchRounds, *benchWindow, machine(), out.String(), missed)
}

func number(values map[string]float64, name string) string {
	v, ok := values[name]
	switch {
	case !ok:
		return "-"
	case v < 10:
		return fmt.Sprintf("%.2f", v)
	default:
		return fmt.Sprintf("%.0f", v)
	}
}

// machine says what a reader has to know of the machine.
func machine() string {
	control, _ := os.ReadFile("/proc/sys/net/ipv4/tcp_congestion_control")
	kernel, _ := exec.Command("uname", "-r").Output()
	return fmt.Sprintf("%d cores, Linux %s, congestion control %s, %d descriptors a process",
		cores(), bytes.TrimSpace(kernel), bytes.TrimSpace(control), descriptors())
}
