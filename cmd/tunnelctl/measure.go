package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"culvert.dev/pkg/daemon"
	"culvert.dev/pkg/operate"
)

// pingTimeout is how long an answer is waited for before it counts as lost.
const pingTimeout = 10 * time.Second

func pingCommand(at *where) *cobra.Command {
	r := &reach{at: at}
	var count int
	var interval time.Duration
	cmd := &cobra.Command{
		Use:   "ping SITE",
		Short: "Measure the round trip to a site's private relay",
		Long: "Measure the round trip from here through the public relay to the private one, and back, until Ctrl-C or --count.\n\n" +
			"The exit code is 5 if nothing has come back.",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeSites(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			switch {
			case count < 0:
				return daemon.UsageError("--count: want 1 or more, or 0 for no end")
			case interval < 10*time.Millisecond:
				return daemon.UsageError("--interval: want 10ms or more")
			}
			c, err := r.open(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			return r.ping(cmd, args[0], count, interval)
		},
	}
	r.flags(cmd)
	cmd.Flags().IntVarP(&count, "count", "c", 0, "how many (default 0: until Ctrl-C)")
	cmd.Flags().DurationVarP(&interval, "interval", "i", time.Second, "`time` from one to the next")
	return cmd
}

// pings is what a ping has found.
type pings struct {
	Site     string  `json:"site"`
	Sent     int     `json:"sent"`
	Received int     `json:"received"`
	Min      float64 `json:"min_ms"`
	Avg      float64 `json:"avg_ms"`
	Max      float64 `json:"max_ms"`
	Dev      float64 `json:"dev_ms"` // standard deviation
	sum, sq  float64
}

func (p *pings) add(took time.Duration) float64 {
	ms := float64(took.Microseconds()) / 1000
	if p.Received == 0 || ms < p.Min {
		p.Min = ms
	}
	p.Max = max(p.Max, ms)
	p.Received++
	p.sum += ms
	p.sq += ms * ms
	n := float64(p.Received)
	p.Avg = p.sum / n
	p.Dev = math.Sqrt(max(0, p.sq/n-p.Avg*p.Avg))
	return ms
}

func (r *reach) ping(cmd *cobra.Command, site string, count int, interval time.Duration) error {
	ctx := cmd.Context()
	v := r.at.view(cmd)
	p, err := r.client.Pinger(ctx, site)
	if err != nil {
		if ctx.Err() != nil {
			return ctx.Err()
		}
		return r.explain(site, err)
	}
	defer func() {
		if p != nil {
			p.Close()
		}
	}()
	all := &pings{Site: site}
	for ctx.Err() == nil && (count == 0 || all.Sent < count) {
		began := time.Now()
		all.Sent++
		took, err := r.pingOnce(ctx, site, &p)
		switch {
		case ctx.Err() != nil:
			all.Sent-- // nobody has waited for it
		case err != nil:
			v.note("%s", printable(r.explain(site, err).Error()))
		default:
			ms := all.add(took)
			if !v.json {
				v.printf("%s: %.1f ms\n", site, ms)
			}
		}
		if count == 0 || all.Sent < count {
			pause(ctx, interval-time.Since(began))
		}
	}
	if err := v.print(all, func() {
		v.printf("%d sent, %d received", all.Sent, all.Received)
		if all.Received > 0 {
			v.printf(", min/avg/max/dev %.1f/%.1f/%.1f/%.1f ms", all.Min, all.Avg, all.Max, all.Dev)
		}
		v.printf("\n")
	}); err != nil {
		return err
	}
	if all.Received == 0 && all.Sent > 0 {
		return failf(exitUnreachable, "%s: nothing has come back", site)
	}
	return nil
}

// pingOnce measures one round trip, on another stream if the one before was lost.
func (r *reach) pingOnce(ctx context.Context, site string, p **operate.Pinger) (time.Duration, error) {
	ctx, cancel := context.WithTimeout(ctx, pingTimeout)
	defer cancel()
	if *p == nil {
		var err error
		if *p, err = r.client.Pinger(ctx, site); err != nil {
			return 0, err
		}
	}
	took, err := (*p).Ping(ctx)
	if err != nil {
		(*p).Close()
		*p = nil
		if errors.Is(err, context.DeadlineExceeded) {
			err = fmt.Errorf("no answer within %v", pingTimeout)
		}
	}
	return took, err
}

func benchCommand(at *where) *cobra.Command {
	r := &reach{at: at}
	var d time.Duration
	cmd := &cobra.Command{
		Use:   "bench SITE",
		Short: "Measure how much goes through the tunnel to a site, and how long it takes",
		Long: "Measure how long a round trip to the private relay of a site takes, and how much goes through each way: over one connection as any other, " +
			"encrypted, through the public relay. The line is busy meanwhile.",
		Args:              usage(cobra.ExactArgs(1)),
		ValidArgsFunction: completeSites(at, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if d < 100*time.Millisecond || d > time.Minute {
				return daemon.UsageError("--time: want 100ms to 1m")
			}
			c, err := r.open(cmd)
			if err != nil {
				return err
			}
			defer c.Close()
			v := r.at.view(cmd)
			var bar benchBar
			if !v.json && !v.plain && daemon.IsTerminal(cmd.ErrOrStderr()) {
				bar.out = cmd.ErrOrStderr()
			}
			m, err := c.Bench(cmd.Context(), args[0], d, bar.progress)
			bar.clear()
			if err != nil {
				if cmd.Context().Err() != nil {
					return cmd.Context().Err()
				}
				return r.explain(args[0], err)
			}
			return v.print(measured(args[0], m), func() { printMeasurement(v, m) })
		},
	}
	r.flags(cmd)
	cmd.Flags().DurationVarP(&d, "time", "t", 5*time.Second, "how `long` each way is measured")
	return cmd
}

// latency is operate.Latency in milliseconds.
type latency struct {
	Count  int     `json:"count"`
	Min    float64 `json:"min_ms"`
	Median float64 `json:"median_ms"`
	Max    float64 `json:"max_ms"`
}

// measurement is what bench prints with --json. Down is from the site, up to it.
type measurement struct {
	Site        string  `json:"site"`
	Idle        latency `json:"idle"`
	Down        float64 `json:"down_bytes_per_s"`
	DownLatency latency `json:"down_latency"` // meanwhile
	Up          float64 `json:"up_bytes_per_s"`
	UpLatency   latency `json:"up_latency"`
}

func measured(site string, m operate.Measurement) measurement {
	ms := func(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
	l := func(l operate.Latency) latency { return latency{l.Count, ms(l.Min), ms(l.Median), ms(l.Max)} }
	return measurement{site, l(m.Idle), math.Round(m.Down), l(m.LoadedDown), math.Round(m.Up), l(m.LoadedUp)}
}

func printMeasurement(v *view, m operate.Measurement) {
	t := newTable("", ">RATE", ">MIN", ">MEDIAN", ">MAX")
	row := func(name string, rate float64, l operate.Latency) {
		ms := func(d time.Duration) string { return fmt.Sprintf("%.1f ms", float64(d.Microseconds())/1000) }
		t.add(name, speed(rate), ms(l.Min), ms(l.Median), ms(l.Max))
	}
	row("idle", 0, m.Idle)
	row("from the site", m.Down, m.LoadedDown)
	row("to the site", m.Up, m.LoadedUp)
	v.table(t)
}

// benchBar shows how far a measurement is, where there is a terminal.
type benchBar struct {
	out   io.Writer // nil: it is shown nowhere
	drawn bool
}

const barCells = 30

func (b *benchBar) progress(phase string, share float64, bytes uint64) {
	if b.out == nil {
		return
	}
	b.drawn = true
	full := int(share * barCells)
	moved := ""
	if bytes > 0 {
		moved = size(bytes)
	}
	fmt.Fprintf(b.out, "\r%-14s [%s%s] %3.0f%% %-12s", phase, strings.Repeat("#", full), strings.Repeat(".", barCells-full), 100*share, moved)
}

func (b *benchBar) clear() {
	if b.drawn {
		fmt.Fprintf(b.out, "\r%s\r", strings.Repeat(" ", 70))
	}
}
