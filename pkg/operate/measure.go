package operate

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"culvert.dev/pkg/relay"
)

// A Pinger measures round trips to the private relay of a site, and so to and through the public one. It is used by one
// goroutine.
type Pinger struct {
	conn Conn
	n    uint64
}

// Pinger begins to measure.
func (c *Client) Pinger(ctx context.Context, site string) (*Pinger, error) {
	conn, err := c.Open(ctx, site, relay.ServicePing)
	if err != nil {
		return nil, err
	}
	return &Pinger{conn: conn}, nil
}

// Ping measures one round trip. After an error there are no more.
func (p *Pinger) Ping(ctx context.Context) (time.Duration, error) {
	stop := context.AfterFunc(ctx, func() { p.conn.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	p.n++
	var b [8]byte
	binary.BigEndian.PutUint64(b[:], p.n)
	began := time.Now()
	if _, err := p.conn.Write(b[:]); err != nil {
		return 0, err
	}
	if _, err := io.ReadFull(p.conn, b[:]); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return 0, err
	}
	if binary.BigEndian.Uint64(b[:]) != p.n {
		return 0, &Error{relay.OperateInternal, "the private relay sends back something else"}
	}
	return time.Since(began), nil
}

// Close ends it in good order.
func (p *Pinger) Close() error {
	p.conn.CloseWrite()
	p.conn.SetReadDeadline(time.Now().Add(time.Second))
	io.Copy(io.Discard, p.conn)
	return p.conn.Close()
}

// Latency is what round trips took.
type Latency struct {
	Count            int
	Min, Median, Max time.Duration
}

func latencyOf(all []time.Duration) Latency {
	if len(all) == 0 {
		return Latency{}
	}
	slices.Sort(all)
	return Latency{len(all), all[0], all[len(all)/2], all[len(all)-1]}
}

// Measurement is what Bench has found. Rates are in bytes a second.
type Measurement struct {
	Idle                 Latency // while nothing else was going on
	Down, Up             float64 // from the site, and to it
	LoadedDown, LoadedUp Latency // meanwhile
}

// The phases of Bench.
const (
	PhaseIdle = "latency"
	PhaseDown = "from the site"
	PhaseUp   = "to the site"
)

const (
	pingEvery = 100 * time.Millisecond
	idleTime  = 2 * time.Second
)

// Bench measures the way to the private relay of a site and back: first how long a round trip takes, then how much goes
// through each way for the time d, and what a round trip takes then. progress is told how far a phase is, some times a second, with the
// bytes that it has moved; it may be nil.
func (c *Client) Bench(ctx context.Context, site string, d time.Duration, progress func(phase string, share float64, bytes uint64)) (Measurement, error) {
	if progress == nil {
		progress = func(string, float64, uint64) {}
	}
	var m Measurement
	p, err := c.Pinger(ctx, site)
	if err != nil {
		return m, err
	}
	defer p.Close()
	if m.Idle, err = pingFor(ctx, p, min(d, idleTime), nil, func(share float64) { progress(PhaseIdle, share, 0) }); err != nil {
		return m, err
	}
	if m.LoadedDown, m.Down, err = c.load(ctx, p, site, relay.BenchSource, d, func(share float64, n uint64) { progress(PhaseDown, share, n) }); err != nil {
		return m, err
	}
	m.LoadedUp, m.Up, err = c.load(ctx, p, site, relay.BenchSink, d, func(share float64, n uint64) { progress(PhaseUp, share, n) })
	return m, err
}

// pingFor measures round trips for a time, or until ended is closed.
func pingFor(ctx context.Context, p *Pinger, d time.Duration, ended <-chan struct{}, progress func(share float64)) (Latency, error) {
	began := time.Now()
	var all []time.Duration
	for {
		took, err := p.Ping(ctx)
		if err != nil {
			return Latency{}, err
		}
		all = append(all, took)
		share := float64(time.Since(began)) / float64(d)
		progress(min(share, 1))
		if share >= 1 {
			return latencyOf(all), nil
		}
		select {
		case <-time.After(pingEvery):
		case <-ended:
			return latencyOf(all), nil
		case <-ctx.Done():
			return Latency{}, ctx.Err()
		}
	}
}

// load moves as much as it can one way, for the time d, and pings meanwhile. rate is in bytes a second.
func (c *Client) load(ctx context.Context, p *Pinger, site, what string, d time.Duration, progress func(share float64, n uint64)) (loaded Latency, rate float64, err error) {
	conn, err := c.connect(ctx, site, relay.OperateRequest{Service: relay.ServiceBench, Address: what})
	if err != nil {
		return Latency{}, 0, err
	}
	defer conn.Abort()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(ctx, conn.Abort)()
	var moved atomic.Uint64
	var stop atomic.Bool
	ended := make(chan struct{})
	began := time.Now()
	var moveErr error
	go func() {
		defer close(ended)
		moveErr = move(conn, what == relay.BenchSink, &moved, &stop)
	}()
	loaded, err = pingFor(ctx, p, d, ended, func(share float64) { progress(share, moved.Load()) })
	pace := func() float64 { return float64(moved.Load()) / time.Since(began).Seconds() }
	if err == nil && what == relay.BenchSource {
		rate = pace()
	}
	stop.Store(true)
	if err != nil {
		conn.Abort()
	}
	<-ended
	switch {
	case err != nil:
		return Latency{}, 0, err
	case moveErr != nil:
		return Latency{}, 0, moveErr
	}
	if what == relay.BenchSink { // until all of it was there
		rate = pace()
	}
	return loaded, rate, nil
}

// move reads or writes until it is to stop.
func move(conn Conn, write bool, moved *atomic.Uint64, stop *atomic.Bool) error {
	b := make([]byte, 64<<10)
	for !stop.Load() {
		var n int
		var err error
		if write {
			n, err = conn.Write(b)
		} else {
			n, err = conn.Read(b)
		}
		moved.Add(uint64(n))
		if err != nil {
			return err
		}
	}
	if !write {
		return nil
	}
	if err := conn.CloseWrite(); err != nil {
		return err
	}
	var count [8]byte
	if _, err := io.ReadFull(conn, count[:]); err != nil {
		return err
	}
	if binary.BigEndian.Uint64(count[:]) != moved.Load() {
		return errors.New("the private relay has received something else than what was sent")
	}
	return nil
}
